//! The right to take a stream up again: a proof that its holder is the same agent, of the same stream, once.
//!
//! The secret comes from the stream's own end-to-end TLS (an exporter), so no relay can make a proof. A proof is an
//! HMAC-SHA256 over who, what and when; the epoch in it is used up by the leg it opens, because a
//! [`Stream`](super::Stream) takes no epoch twice. Deliberately absent: where the secret is kept, and when it ends.

use std::fmt;

use hmac::{Hmac, Mac};
use sealock_core::identity::AgentId;
use sealock_core::secret::Secret;
use sha2::Sha256;

use super::{Epoch, Role};
use crate::wire::Salt;

const DOMAIN: &[u8] = b"sealock resume ticket v1";
const CONDUIT_DOMAIN: &[u8] = b"sealock conduit v1";

/// Shows the holder of a stream's resume secret; good for one leg. Two are compared in constant time.
#[derive(Clone)]
pub struct Proof(Secret<[u8; Self::SIZE]>);

impl Proof {
    /// Its length in bytes.
    pub const SIZE: usize = 32;

    /// A proof as a peer sent it; it proves nothing before [`Ticket::verify`].
    #[must_use]
    pub fn from_bytes(bytes: [u8; Self::SIZE]) -> Self {
        Self(Secret::new(bytes))
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; Self::SIZE] {
        self.0.expose()
    }
}

impl PartialEq for Proof {
    fn eq(&self, other: &Self) -> bool {
        self.0.matches(other.as_bytes())
    }
}

impl Eq for Proof {}

impl fmt::Debug for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[proof]")
    }
}

/// What a ticket is bound to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TicketContext {
    /// The stream's id.
    pub stream: [u8; 16],
    /// The agent that opened the stream, with its tenant.
    pub opener: AgentId,
    /// The agent that accepted it, with its tenant.
    pub accepter: AgentId,
}

/// One side's ticket of one stream.
#[derive(Debug, Clone)]
pub struct Ticket {
    secret: Secret<[u8; 32]>,
    context: TicketContext,
}

impl Ticket {
    /// The ticket of the stream that `context` names, under a secret that only its two agents know.
    #[must_use]
    pub fn new(secret: Secret<[u8; 32]>, context: TicketContext) -> Self {
        Self { secret, context }
    }

    /// The proof that `role` sends with the ATTACH of `epoch`.
    #[must_use]
    pub fn prove(&self, role: Role, epoch: Epoch) -> Proof {
        Proof::from_bytes(self.mac(DOMAIN, role, epoch).finalize().into_bytes().into())
    }

    /// Whether `proof` came from the `role` side of this very stream for this very epoch; in constant time.
    #[must_use]
    pub fn verify(&self, role: Role, epoch: Epoch, proof: Option<&Proof>) -> bool {
        let Some(proof) = proof else { return false };
        let mac = self.mac(DOMAIN, role, epoch);
        mac.verify_slice(proof.as_bytes()).is_ok()
    }

    /// What the keys come from that seal what `role` says on a conduit that is the leg of `epoch`. Each side's salt is
    /// random for each attempt, so nothing is sealed twice under one key, whoever is between the two.
    #[must_use]
    pub fn conduit_secret(
        &self,
        role: Role,
        epoch: Epoch,
        (opener, accepter): (Salt, Salt),
    ) -> Secret<[u8; 32]> {
        let mut mac = self.mac(CONDUIT_DOMAIN, role, epoch);
        mac.update(&opener.0);
        mac.update(&accepter.0);
        Secret::new(mac.finalize().into_bytes().into())
    }

    // Each field is preceded by its length, so that no two contexts have the same bytes.
    fn mac(&self, domain: &[u8], role: Role, epoch: Epoch) -> Hmac<Sha256> {
        let mut mac = <Hmac<Sha256> as Mac>::new_from_slice(self.secret.expose())
            .expect("HMAC takes a key of any length");
        let side: &[u8] = match role {
            Role::Opener => b"opener",
            Role::Accepter => b"accepter",
        };
        let context = &self.context;
        for field in [
            domain,
            side,
            &context.stream,
            context.opener.tenant.as_str().as_bytes(),
            context.opener.name.as_str().as_bytes(),
            context.accepter.tenant.as_str().as_bytes(),
            context.accepter.name.as_str().as_bytes(),
            &epoch.0.to_be_bytes(),
        ] {
            mac.update(&(field.len() as u64).to_be_bytes());
            mac.update(field);
        }
        mac
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(tenant: &str, name: &str) -> AgentId {
        AgentId {
            tenant: tenant.parse().expect("a label"),
            name: name.parse().expect("a label"),
        }
    }

    fn context() -> TicketContext {
        TicketContext {
            stream: [1; 16],
            opener: agent("t", "ann"),
            accepter: agent("t", "bob"),
        }
    }

    fn ticket(secret: u8, context: TicketContext) -> Ticket {
        Ticket::new(Secret::new([secret; 32]), context)
    }

    #[test]
    fn a_proof_is_good_for_its_own_side_and_epoch() {
        let ticket = ticket(7, context());
        let proof = ticket.prove(Role::Opener, Epoch(2));
        assert!(ticket.verify(Role::Opener, Epoch(2), Some(&proof)));
        assert!(!ticket.verify(Role::Opener, Epoch(3), Some(&proof)), "S17");
        assert!(
            !ticket.verify(Role::Accepter, Epoch(2), Some(&proof)),
            "S18"
        );
        assert!(!ticket.verify(Role::Opener, Epoch(2), None));
    }

    // S16: whatever differs, the proof is worthless.
    #[test]
    fn a_proof_is_worthless_for_every_other_context() {
        let good = ticket(7, context());
        let mut others = vec![ticket(8, context())];
        for change in [
            (|c: &mut TicketContext| c.stream[15] = 2) as fn(&mut TicketContext),
            |c| c.opener = agent("t", "eve"),
            |c| c.opener = agent("u", "ann"),
            |c| c.accepter = agent("t", "eve"),
            |c| c.accepter = agent("u", "bob"),
            |c| std::mem::swap(&mut c.opener, &mut c.accepter),
            // The same letters, cut elsewhere.
            |c| c.opener = agent("ta", "nn"),
        ] {
            let mut context = context();
            change(&mut context);
            others.push(ticket(7, context));
        }
        for other in others {
            let proof = other.prove(Role::Opener, Epoch(2));
            assert!(
                !good.verify(Role::Opener, Epoch(2), Some(&proof)),
                "{:?}",
                other.context
            );
        }
    }

    #[test]
    fn each_side_epoch_and_pair_of_salts_has_a_secret_of_its_own() {
        let ticket = ticket(7, context());
        let (a, b) = (Salt([1; 16]), Salt([2; 16]));
        let secret =
            |role, epoch, salts| *ticket.conduit_secret(role, Epoch(epoch), salts).expose();
        let all = [
            secret(Role::Opener, 2, (a, b)),
            secret(Role::Accepter, 2, (a, b)),
            secret(Role::Opener, 3, (a, b)),
            secret(Role::Opener, 2, (b, a)),
            secret(Role::Opener, 2, (a, a)),
            *ticket.prove(Role::Opener, Epoch(2)).as_bytes(),
        ];
        let different: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(different.len(), all.len());
        assert_eq!(
            all[0],
            secret(Role::Opener, 2, (a, b)),
            "both ends make the same"
        );
    }
}
