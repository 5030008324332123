//! Vouchers: an agent's signed word that it is at one relay, which that relay shows to others with each leg it passes on.
//!
//! The other relay believes the agent's certificate and signature, never the relay that brings them: a relay can speak
//! only for agents that vouched for being at it, and only until their certificates end. The caller proves itself end to
//! end besides, at the provider. Deliberately absent: revocation and policy; whoever takes a leg judges those by its
//! own view.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustls_pki_types::CertificateDer;
use sealock_core::identity::Role;
use sealock_core::name::NodeName;
use sealock_core::reason::Reason;
use sealock_proto::wire::{Forward, Voucher};
use sha2::{Digest, Sha256};
use webpki::EndEntityCert;

use super::verify::{Expect, Purpose, unix_time, verify_chain};
use crate::identity::{KeyError, PeerIdentity, Svid, TrustStore};

/// Vouches that the process `instance` of this agent is at `relay`, for as long as the certificate lives.
///
/// # Errors
/// When the key cannot sign.
pub fn vouch(svid: &Svid, relay: &NodeName, instance: [u8; 16]) -> Result<Voucher, KeyError> {
    let expires_ms = svid.leaf().not_after.as_millisecond();
    let bytes = Voucher::signed_bytes(relay, instance, expires_ms);
    Ok(Voucher {
        expires_ms,
        signature: svid.key().sign(&bytes)?,
        chain: svid.chain().iter().map(|der| der.to_vec()).collect(),
    })
}

/// How many vouchers are remembered: one for each session of the largest neighbour.
const SEEN_LIMIT: usize = 16_384; // × about 400 bytes
/// How long a voucher is believed without another look at its chain: roots can be taken out of trust.
const SEEN_FOR: Duration = Duration::from_secs(60);

/// Whom a voucher proved, and when it was looked at, by what the verdict depends on.
type Seen = HashMap<[u8; 32], (PeerIdentity, Instant)>;

/// Verifies vouchers, each once a minute; clones share what they have seen.
#[derive(Debug, Clone)]
pub struct VoucherCheck {
    trust: TrustStore,
    seen: Arc<Mutex<Seen>>,
}

impl VoucherCheck {
    /// Judges by the roots of `trust`.
    #[must_use]
    pub fn new(trust: TrustStore) -> Self {
        Self {
            trust,
            seen: Arc::default(),
        }
    }

    /// The proved identity of the caller of a leg that `relay` passes on.
    ///
    /// # Errors
    /// `NOT_ADMITTED` for a voucher or a certificate that has ended, `PEER_NOT_AUTHENTIC` for anything else that is not
    /// the caller's own word for being at this relay.
    pub fn verify(
        &self,
        forward: &Forward,
        relay: &NodeName,
        now: jiff::Timestamp,
    ) -> Result<PeerIdentity, Reason> {
        let voucher = &forward.voucher;
        let expires = jiff::Timestamp::from_millisecond(voucher.expires_ms);
        let expires = expires.map_err(|_| Reason::PeerNotAuthentic)?;
        if expires <= now {
            return Err(Reason::NotAdmitted);
        }
        let signed = Voucher::signed_bytes(relay, forward.instance, voucher.expires_ms);
        let key = digest(&signed, voucher);
        let seen = self.seen.lock().get(&key).cloned();
        let peer = match seen {
            Some((peer, at)) if at.elapsed() < SEEN_FOR => peer,
            Some(_) | None => {
                let peer = self.verify_anew(voucher, &signed, now)?;
                let mut seen = self.seen.lock();
                if seen.len() >= SEEN_LIMIT {
                    // Whoever is still there is verified again, at 0.1 ms each.
                    seen.clear();
                }
                seen.insert(key, (peer.clone(), Instant::now()));
                peer
            }
        };
        if peer.agent() != Some(&forward.caller) || expires > peer.not_after {
            return Err(Reason::PeerNotAuthentic);
        }
        Ok(peer)
    }

    fn verify_anew(
        &self,
        voucher: &Voucher,
        signed: &[u8],
        now: jiff::Timestamp,
    ) -> Result<PeerIdentity, Reason> {
        let chain = voucher.chain.iter();
        let chain: Vec<CertificateDer<'_>> = chain.map(|der| der.as_slice().into()).collect();
        let (leaf, others) = chain.split_first().ok_or(Reason::PeerNotAuthentic)?;
        let trust = self.trust.current();
        let roots: Vec<&CertificateDer<'_>> = trust.roots.iter().collect();
        let expect = Expect::role(Role::Agent, Purpose::Client);
        let domain = Some(&trust.trust_domain);
        let peer = verify_chain(&expect, leaf, others, &roots, domain, unix_time(now));
        let peer = peer.map_err(|error| {
            tracing::debug!(err = %error, "the certificate of a voucher was not accepted");
            Reason::PeerNotAuthentic
        })?;
        let certificate = EndEntityCert::try_from(leaf).map_err(|_| Reason::PeerNotAuthentic)?;
        let algorithm = webpki::aws_lc_rs::ECDSA_P256_SHA256;
        certificate
            .verify_signature(algorithm, signed, &voucher.signature)
            .map_err(|_| Reason::PeerNotAuthentic)?;
        Ok(peer)
    }
}

/// Over everything that the verdict depends on, each part behind its length.
fn digest(signed: &[u8], voucher: &Voucher) -> [u8; 32] {
    let mut hash = Sha256::new();
    let parts = [signed, &voucher.signature].into_iter();
    for part in parts.chain(voucher.chain.iter().map(Vec::as_slice)) {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use sealock_proto::stream::Epoch;
    use sealock_proto::wire::{Open, StreamId};

    use super::*;
    use crate::identity::testing::{Leaf, TestCa};

    fn name(text: &str) -> NodeName {
        text.parse().expect("a name")
    }

    fn forward(svid: &Svid, relay: &str) -> Forward {
        Forward {
            open: Open {
                stream: StreamId([1; 16]),
                epoch: Epoch::FIRST,
                service: "echo".parse().expect("a name"),
                provider: None,
                conduit: None,
            },
            caller: svid.leaf().agent().expect("an agent").clone(),
            instance: [7; 16],
            voucher: vouch(svid, &name(relay), [7; 16]).expect("signs"),
        }
    }

    // Lesson 13, S04, S06: what a relay says of a caller counts for nothing without the caller's own word.
    #[test]
    fn only_the_callers_own_word_for_this_relay_and_process_counts() {
        let ca = TestCa::new("td");
        let caller = ca.identity("default/agent/caller");
        let caller = caller.current().expect("there");
        let mallory = ca.identity("default/agent/mallory");
        let mallory = mallory.current().expect("there");
        let check = VoucherCheck::new(ca.trust_store());
        let now = jiff::Timestamp::now();
        let good = forward(&caller, "a");
        let verified = check.verify(&good, &name("a"), now).expect("its own word");
        assert_eq!(&verified, caller.leaf());
        assert_eq!(
            check.verify(&good, &name("a"), now).as_ref(),
            Ok(caller.leaf()),
            "again"
        );

        let another_ca = TestCa::new("td").identity("default/agent/caller");
        let cases: [(&str, Forward); 7] = [
            (
                "another process",
                Forward {
                    instance: [8; 16],
                    ..good.clone()
                },
            ),
            (
                "of another agent",
                Forward {
                    caller: good.caller.clone(),
                    ..forward(&mallory, "a")
                },
            ),
            (
                "for another agent",
                Forward {
                    caller: forward(&mallory, "a").caller,
                    ..good.clone()
                },
            ),
            ("for another relay", forward(&caller, "b")),
            (
                "of another authority",
                forward(&another_ca.current().expect("there"), "a"),
            ),
            ("without a signature", {
                let mut forward = good.clone();
                forward.voucher.signature.clear();
                forward
            }),
            ("without a certificate", {
                let mut forward = good.clone();
                forward.voucher.chain.clear();
                forward
            }),
        ];
        for (what, forward) in cases {
            let outcome = check.verify(&forward, &name("a"), now);
            assert_eq!(outcome, Err(Reason::PeerNotAuthentic), "{what}");
        }
        let mut later = good.clone();
        later.voucher.expires_ms += 1;
        assert_eq!(
            check.verify(&later, &name("a"), now),
            Err(Reason::PeerNotAuthentic)
        );
    }

    #[test]
    fn a_voucher_ends_with_the_certificate() {
        let ca = TestCa::new("td");
        let check = VoucherCheck::new(ca.trust_store());
        let leaf = Leaf::of(Role::Agent, &["spiffe://td/default/agent/caller"]);
        let svid = ca.svid(&leaf);
        let forward = forward(&svid, "a");
        let at = svid.leaf().not_after;
        assert_eq!(
            check.verify(&forward, &name("a"), at),
            Err(Reason::NotAdmitted)
        );
        assert!(
            check
                .verify(&forward, &name("a"), jiff::Timestamp::now())
                .is_ok()
        );
        assert_eq!(
            check.verify(&forward, &name("a"), at),
            Err(Reason::NotAdmitted),
            "also when seen before"
        );
    }
}
