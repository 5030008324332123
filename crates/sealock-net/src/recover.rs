//! Coming back: a node that was away for longer than its certificate gets the next one by the key of the last.
//!
//! The way is that of joining, without a certificate of ours: through a relay and blindly to the controller, which is
//! held to the roots that the node already trusts. In place of a token stands a [`Claim`]: the last certificate, a new
//! request and a time, signed by the last key. Deliberately absent: what decides whether it is good, which is the
//! controller's; a node that is refused has to join again.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rustls_pki_types::CertificateDer;
use sealock_core::address::HostPort;
use sealock_core::reason::Reason;
use sha2::{Digest, Sha256};
use tokio::time::Instant;
use webpki::EndEntityCert;

use crate::files::FileError;
use crate::identity::{
    IdentityDir, KeyError, KeyPair, LeafError, LoadError, PeerIdentity, Svid, SvidError, Trust,
    TrustStore,
};
use crate::join::{dial_controller, dial_through};
use crate::node_api::{CallError, NodeClient};
use crate::session::{Dialer, Plan};
use crate::tls;
use crate::transport::Settings;

/// What is signed begins so, and nothing else that our keys sign does.
const PREFIX: &[u8] = b"sealock recover v1\0";

/// A node's wish to come back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The last certificate, which may have ended.
    pub certificate: CertificateDer<'static>,
    /// A PKCS #10 request for the next key, DER.
    pub csr: Vec<u8>,
    /// When it was signed, by the clock of the node.
    pub at: Timestamp,
}

/// Why a claim proves nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClaimError {
    /// The certificate names nobody.
    #[error("the certificate of the claim names nobody")]
    Certificate(#[from] LeafError),
    /// The signature is not of the certificate's key.
    #[error("the claim is not signed by the key of its certificate")]
    Proof,
}

impl Claim {
    fn signed_bytes(&self) -> Vec<u8> {
        let mut bytes = PREFIX.to_vec();
        bytes.extend_from_slice(&Sha256::digest(&self.certificate));
        bytes.extend_from_slice(&Sha256::digest(&self.csr));
        bytes.extend_from_slice(&self.at.as_millisecond().to_be_bytes());
        bytes
    }

    /// Names what is claimed, so that it can be taken once. Of the content, because a signature has a second spelling.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        Sha256::digest(self.signed_bytes()).into()
    }

    /// Signs the claim with the key of its certificate.
    ///
    /// # Errors
    /// When the key cannot sign.
    pub fn sign(&self, key: &KeyPair) -> Result<Vec<u8>, KeyError> {
        key.sign(&self.signed_bytes())
    }

    /// Who claims, when the proof is of the certificate's key. Whether anybody issued that certificate is another
    /// question, and the controller's.
    ///
    /// # Errors
    /// When the certificate is not an identity, or another key signed.
    pub fn verify(&self, proof: &[u8]) -> Result<PeerIdentity, ClaimError> {
        let identity = PeerIdentity::from_leaf(&self.certificate)?;
        let certificate =
            EndEntityCert::try_from(&self.certificate).map_err(|_| ClaimError::Proof)?;
        certificate
            .verify_signature(
                webpki::aws_lc_rs::ECDSA_P256_SHA256,
                &self.signed_bytes(),
                proof,
            )
            .map_err(|_| ClaimError::Proof)?;
        Ok(identity)
    }
}

/// Why a node did not come back.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// Another program of this machine has been at it for too long.
    #[error("another program of this machine holds the identity's lock")]
    Locked,
    /// It has not joined, so there is nothing to come back as.
    #[error("there is no identity")]
    NotJoined,
    /// What lies on disk cannot be used.
    #[error("this machine's identity cannot be used")]
    Load(#[from] LoadError),
    /// No UDP socket.
    #[error("no UDP socket can be opened")]
    Socket(#[source] io::Error),
    /// The machine makes no keys, or does not sign.
    #[error("a key could not be used")]
    Key(#[from] KeyError),
    /// The controller did not take it back.
    #[error("{}", .0.reason().text())]
    Refused(#[source] CallError),
    /// No relay leads to the controller.
    #[error("the controller cannot be reached through any relay")]
    Unreachable(#[source] CallError),
    /// What was issued is of no use.
    #[error("the controller issued a certificate that cannot be used")]
    Issued(#[source] SvidError),
    /// The identity cannot be kept.
    #[error("the new identity cannot be written to disk")]
    Keep(#[from] FileError),
}

impl RecoverError {
    /// How it is shown to users.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::NotJoined => Reason::NotAdmitted,
            Self::Locked | Self::Load(_) | Self::Socket(_) | Self::Key(_) | Self::Keep(_) => {
                Reason::Internal
            }
            Self::Refused(error) | Self::Unreachable(error) => error.reason(),
            Self::Issued(_) => Reason::ProtocolViolation,
        }
    }

    /// Whether the same attempt may succeed later without anybody changing anything.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(
            self.reason(),
            Reason::ControllerUnreachable | Reason::Overloaded
        )
    }
}

/// How long the other programs of this machine may be at it: each gives up sooner at every relay.
const LOCK_PATIENCE: Duration = Duration::from_secs(30);
const LOCK_PAUSE: Duration = Duration::from_millis(100);

/// Brings an agent's identity back to life through one of its relays, unless another program of this machine has just
/// done so, and keeps it in `dir`.
///
/// # Errors
/// When the controller does not take it back, or is not reached through any of `relays`.
///
/// # Cancel safety
/// Safe: the last identity is good for coming back until the next one was kept and shown.
pub async fn recover_agent(
    dir: &IdentityDir,
    relays: &[HostPort],
    ways: &Plan,
) -> Result<(Svid, Trust), RecoverError> {
    let ways = ways
        .open(Settings::default())
        .map_err(RecoverError::Socket)?;
    let through = |trust: &TrustStore| {
        let dialer = Dialer::for_recovery(ways.clone(), trust);
        let client = |relay: &HostPort| {
            let (dialer, relay) = (dialer.clone(), relay.clone());
            NodeClient::new(tls::recover_client(trust), move || {
                let (dialer, relay) = (dialer.clone(), relay.clone());
                async move { dial_through(&dialer, &relay).await }
            })
        };
        relays.iter().map(client).collect()
    };
    let recovered = recover(dir, through).await;
    ways.close(Reason::Done);
    ways.wait_idle().await;
    recovered
}

/// Brings a relay's identity back to life at its controller, and keeps it in `dir`.
///
/// # Errors
/// When the controller does not take it back, or is not reached.
///
/// # Cancel safety
/// Safe: the last identity is good for coming back until the next one was kept and shown.
pub async fn recover_relay(
    dir: &IdentityDir,
    controller: &HostPort,
) -> Result<(Svid, Trust), RecoverError> {
    let directly = |trust: &TrustStore| {
        let controller = controller.clone();
        let tls = tls::recover_client(trust);
        vec![NodeClient::new(tls, move || {
            dial_controller(controller.clone())
        })]
    };
    recover(dir, directly).await
}

async fn recover(
    dir: &IdentityDir,
    ways: impl Fn(&TrustStore) -> Vec<NodeClient>,
) -> Result<(Svid, Trust), RecoverError> {
    let until = Instant::now() + LOCK_PATIENCE;
    let _lock = loop {
        match dir.try_lock()? {
            Some(lock) => break lock,
            None if Instant::now() < until => tokio::time::sleep(LOCK_PAUSE).await,
            None => return Err(RecoverError::Locked),
        }
    };
    let (Some(last), Some(trust)) = (dir.load_svid()?, dir.load_trust()?) else {
        return Err(RecoverError::NotJoined);
    };
    if last.leaf().not_after > Timestamp::now() {
        return Ok((last, trust));
    }
    let mut error = CallError::TimedOut;
    for client in ways(&TrustStore::new(trust)) {
        match ask(&client, &last).await {
            Ok((svid, trust)) => {
                dir.store_trust(&trust)?;
                dir.store_svid(&svid)?;
                return Ok((svid, trust));
            }
            Err(RecoverError::Unreachable(next)) => error = next,
            Err(refused) => return Err(refused),
        }
    }
    Err(RecoverError::Unreachable(error))
}

/// Asks for the certificate that follows `last`, over a client that shows none.
///
/// # Errors
/// When the controller does not issue one, or it is of no use.
///
/// # Cancel safety
/// Safe: a certificate that nobody got ends by itself.
pub async fn ask(client: &NodeClient, last: &Svid) -> Result<(Svid, Trust), RecoverError> {
    let key = Arc::new(KeyPair::generate()?);
    let claim = Claim {
        certificate: last.chain()[0].clone(),
        csr: key.request_der()?,
        at: Timestamp::now(),
    };
    let proof = claim.sign(last.key())?;
    match client.recover(&claim, proof).await {
        Ok(issued) => {
            let svid = Svid::new(issued.chain, key).map_err(RecoverError::Issued)?;
            Ok((svid, issued.trust))
        }
        Err(error @ CallError::Refused(_)) => Err(RecoverError::Refused(error)),
        Err(error) => Err(RecoverError::Unreachable(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::testing::TestCa;

    fn claim() -> (Claim, Svid) {
        let identity = TestCa::new("sealock").identity("default/agent/cart");
        let svid = Svid::clone(&*identity.current().expect("an identity"));
        let claim = Claim {
            certificate: svid.chain()[0].clone(),
            csr: vec![1, 2, 3],
            at: Timestamp::UNIX_EPOCH,
        };
        (claim, svid)
    }

    #[test]
    fn a_claim_is_proved_by_the_key_of_its_certificate_and_no_other() {
        let (claim, svid) = claim();
        let proof = claim.sign(svid.key()).expect("signed");
        let proved = claim.verify(&proof).expect("proved");
        assert_eq!(proved.id, *svid.id());
        let other = KeyPair::generate().expect("randomness");
        let forged = claim.sign(&other).expect("signed");
        assert_eq!(claim.verify(&forged), Err(ClaimError::Proof));
    }

    #[test]
    fn a_proof_is_worth_nothing_for_anything_else_than_was_signed() {
        let (claim, svid) = claim();
        let proof = claim.sign(svid.key()).expect("signed");
        let (other, _) = self::claim();
        let changed = [
            Claim {
                csr: vec![1, 2, 4],
                ..claim.clone()
            },
            Claim {
                at: Timestamp::from_millisecond(1).expect("in range"),
                ..claim.clone()
            },
            Claim {
                certificate: other.certificate,
                ..claim.clone()
            },
        ];
        for changed in changed {
            assert_eq!(changed.verify(&proof), Err(ClaimError::Proof));
            assert_ne!(changed.digest(), claim.digest());
        }
        for at in 0..proof.len() {
            let mut flipped = proof.clone();
            flipped[at] ^= 1;
            assert!(claim.verify(&flipped).is_err(), "byte {at}");
        }
    }
}
