//! Opens that come over a session: at a relay from the caller's agent, at a provider from the relay.
//!
//! The relay believes the certificate of the session. The provider believes only the certificate that the caller shows
//! end to end, inside the leg; what the relay said of the caller must agree with it.

use sealock_core::fact::{CertificateRef, Fact, Facts, Source};
use sealock_core::identity::AgentId;
use sealock_core::name::AgentName;
use sealock_core::reason::Reason;
use sealock_net::e2e::EndToEnd;
use sealock_net::identity::PeerIdentity;
use sealock_net::transport::BiStream;
use sealock_proto::wire::{Incoming, Message, Open};

use crate::arrival::{Arrival, InletKind, LegHead, Near};

/// At a relay: a caller's open, with the identity of its session.
#[must_use]
pub fn at_relay(caller: &AgentId, peer: &PeerIdentity, open: Open, leg: BiStream) -> Arrival {
    let facts = Facts {
        tenant: caller.tenant.clone(),
        caller: Fact::new(caller.clone(), Source::Certificate),
        certificate: Some(certificate(peer)),
        service: Fact::new(open.service, Source::Asked),
    };
    Arrival {
        inlet: InletKind::Session,
        facts,
        leg: Some(LegHead {
            stream: open.stream,
            epoch: open.epoch,
            provider: open.provider,
        }),
        near: Near::Leg(leg),
    }
}

/// At a provider: takes the leg, lets the caller prove itself end to end, and hears what it asks for.
///
/// # Errors
/// The reason why there is nobody to answer: the caller has been told already.
pub async fn at_provider(
    end_to_end: &EndToEnd,
    me: &AgentName,
    incoming: Incoming,
    mut leg: BiStream,
) -> Result<Arrival, Reason> {
    let head = LegHead {
        stream: incoming.stream,
        epoch: incoming.epoch,
        provider: None,
    };
    leg.send.write(Message::Opened(me.clone()).encode()).await?;
    // In a box, so that the flow does not keep the handshake's memory.
    let caller = Box::pin(end_to_end.answer(leg, incoming.stream)).await?;
    let proved = caller.agent().clone();
    if proved != incoming.caller || *caller.service() != incoming.service {
        // The relay and the caller tell different stories: neither is believed.
        tracing::warn!(caller = %proved, claimed = %incoming.caller, "the relay named another caller or service");
        caller.refuse(Reason::PeerNotAuthentic).await;
        return Err(Reason::PeerNotAuthentic);
    }
    let facts = Facts {
        tenant: proved.tenant.clone(),
        caller: Fact::new(proved, Source::Certificate),
        certificate: Some(certificate(caller.peer())),
        service: Fact::new(caller.service().clone(), Source::Asked),
    };
    Ok(Arrival {
        inlet: InletKind::Session,
        facts,
        leg: Some(head),
        near: Near::Sealed(Box::new(caller)),
    })
}

fn certificate(peer: &PeerIdentity) -> CertificateRef {
    CertificateRef {
        serial: peer.serial.clone(),
        key_digest: peer.key_digest.clone(),
    }
}
