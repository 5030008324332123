//! A node that was away for longer than its certificate: who may come back, and who has to join again.
//!
//! The claim is proved by the key of the last certificate, is about as old as the network is slow, and is taken once; what
//! the store says of that certificate decides. A stranger learns one thing from every refusal: that it was one.

use jiff::{SignedDuration, Timestamp};
use sealock_core::reason::Reason;
use sealock_net::identity::BACKDATED;
use sealock_net::node_api::{BadMessage, proto};
use sealock_net::recover::Claim;
use serde_json::json;
use tonic::{Code, Status};

use super::Peer;
use super::service::{NodeService, bad, holder, refuse, status};
use crate::pki::Csr;
use crate::store::{Act, Recovery, StoreError};

/// How far a claim's time may be from ours: as far as certificates bear it.
const LEEWAY: SignedDuration = BACKDATED;
/// More than any certificate of ours has.
const CERTIFICATE_LIMIT: usize = 4_096;

impl NodeService {
    /// Gives a node that proves the key of its last certificate the next one.
    pub(super) async fn take_back(
        &self,
        peer: &Peer,
        request: proto::RecoverRequest,
    ) -> Result<proto::Identity, Status> {
        let csr = Csr::read(&request.csr).map_err(|_| bad(BadMessage("certificate request")))?;
        let at = Timestamp::from_millisecond(request.at_ms);
        let claim = Claim {
            certificate: request.certificate.into(),
            csr: request.csr,
            at: at.map_err(|_| bad(BadMessage("time")))?,
        };
        if claim.certificate.len() > CERTIFICATE_LIMIT {
            return Err(bad(BadMessage("certificate")));
        }
        let now = (self.shared.now)();
        let proved = claim.verify(&request.proof).ok();
        let is_now = now.duration_since(claim.at).abs() <= LEEWAY;
        let ours = &self.shared.authority.trust().trust_domain;
        let Some(identity) = proved.filter(|it| is_now && it.id.trust_domain == *ours) else {
            return Err(self.turn_away(peer, "", Reason::NotAdmitted).await);
        };
        let recovery = Recovery {
            holder: holder(&identity),
            proof: claim.digest(),
            key_digest: csr.key_digest().to_owned(),
            within: self.shared.recover_within,
            source: peer.source.to_string(),
        };
        let issue = self.shared.issue(&csr, now);
        match self.shared.store.recover(&recovery, now, &issue).await {
            Ok(certificate) => Ok(self.identity(&identity.id.principal, certificate)),
            Err(StoreError::Refused(reason)) => {
                let claimed = identity.id.to_string();
                Err(self.turn_away(peer, &claimed, reason).await)
            }
            Err(error) => Err(status(&error)),
        }
    }

    async fn turn_away(&self, peer: &Peer, claimed: &str, reason: Reason) -> Status {
        let act = Act::done((self.shared.now)(), peer.source, "node.recover", claimed);
        let act = act.refused(reason).with(json!({"source": peer.source}));
        match self.record(None, &[act]).await {
            Ok(()) => refuse(Code::Unauthenticated, reason),
            Err(error) => error,
        }
    }
}
