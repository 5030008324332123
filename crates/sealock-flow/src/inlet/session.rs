//! Opens that come over a session: at a relay from the caller's agent, at a provider from the relay.
//!
//! The relay believes the certificate of the session. The provider believes only the certificate that the caller shows
//! end to end, inside the leg; what the relay said of the caller must agree with it.

use sealock_core::fact::{CertificateRef, Fact, Facts, Goal, Source};
use sealock_core::identity::AgentId;
use sealock_core::name::{AgentName, ServiceName};
use sealock_core::reason::Reason;
use sealock_net::e2e::{Caller, EndToEnd};
use sealock_net::identity::PeerIdentity;
use sealock_net::stream::Leg;
use sealock_net::stream::door::{Door, Doors, Place};
use sealock_net::transport::BiStream;
use sealock_proto::stream::Epoch;
use sealock_proto::wire::{ConduitId, Incoming, Message, Open, StreamId};

use crate::arrival::{Arrival, InletKind, LegHead, Near};
use crate::audit::Decision;
use crate::hop::Hop;

/// At a relay: a caller's open, with the identity of its session.
#[must_use]
pub fn at_relay(caller: &AgentId, peer: &PeerIdentity, open: Open, leg: BiStream) -> Arrival {
    let facts = proved_facts(caller.clone(), peer, open.service);
    Arrival {
        inlet: InletKind::Session,
        facts,
        leg: Some(LegHead {
            stream: open.stream,
            epoch: open.epoch,
            provider: open.provider,
            conduit: open.conduit,
            region: None,
            vouched: None,
        }),
        near: Near::Leg(leg),
    }
}

/// What a relay says of a leg that it offers: claims, until the caller has proved them end to end.
#[must_use]
pub fn claimed(incoming: &Incoming) -> Facts {
    Facts {
        tenant: incoming.caller.tenant.clone(),
        caller: Fact::new(incoming.caller.clone(), Source::Relayed),
        certificate: None,
        goal: Goal::Service(Fact::new(incoming.service.clone(), Source::Relayed)),
    }
}

/// Who did not arrive, for the record.
#[derive(Debug)]
pub struct Stranger {
    /// What it proved, or what the relay said of one that proved nothing.
    pub facts: Facts,
    /// Why it did not arrive.
    pub reason: Reason,
}

/// At a provider: takes the leg, lets the caller prove itself end to end, and hears what it asks for.
///
/// # Errors
/// Who it was and why there is nobody to answer: the caller has been told already.
pub async fn at_provider(
    end_to_end: &EndToEnd,
    me: &AgentName,
    incoming: Incoming,
    (mut leg, place): (Leg, Place),
) -> Result<Arrival, Box<Stranger>> {
    let unproved = |reason| {
        let facts = claimed(&incoming);
        Box::new(Stranger { facts, reason })
    };
    let head = LegHead {
        stream: incoming.stream,
        epoch: incoming.epoch,
        provider: None,
        conduit: incoming.conduit,
        region: None,
        vouched: None,
    };
    leg.io
        .send
        .write(Message::Opened(me.clone()).encode())
        .await
        .map_err(|lost| unproved(lost.into()))?;
    let caller = end_to_end.answer(leg, place).await;
    let caller = caller.map_err(unproved)?;
    let proved = caller.agent().clone();
    if proved != incoming.caller || *caller.service() != incoming.service {
        // The relay and the caller tell different stories: neither is believed.
        tracing::warn!(caller = %proved, claimed = %incoming.caller, "the relay named another caller or service");
        let (facts, reason) = (facts_of(proved, &caller), Reason::PeerNotAuthentic);
        caller.refuse(reason).await;
        return Err(Box::new(Stranger { facts, reason }));
    }
    let facts = facts_of(proved, &caller);
    Ok(Arrival {
        inlet: InletKind::Session,
        facts,
        leg: Some(head),
        near: Near::Sealed(Box::new(caller)),
    })
}

fn facts_of(proved: AgentId, caller: &Caller) -> Facts {
    proved_facts(proved, caller.peer(), caller.service().clone())
}

/// At a provider: a later leg for a stream that lives here. Judged as the first one was, by the identity that the
/// caller proved then, and written down once, whatever comes of it.
pub async fn take_up(hop: &Hop, doors: &Doors, me: &AgentName, incoming: Incoming, leg: Leg) {
    let (stream, epoch, conduit) = (incoming.stream, incoming.epoch, incoming.conduit);
    let claimed = claimed(&incoming);
    let (facts, found) = match owned(doors, stream, &claimed) {
        Ok((door, facts)) => (facts, Ok(door)),
        Err(reason) => (claimed, Err(reason)),
    };
    let allowed = found.and_then(|door| Ok((door, hop.judge.judge(&facts)?)));
    let (rule, outcome) = match allowed {
        Ok((door, rule)) => (Some(rule), let_in((&door, leg), me, epoch, conduit).await),
        Err(reason) => {
            Near::Leg(leg.io).refuse(reason).await;
            (None, Err(reason))
        }
    };
    if let Err(reason) = outcome {
        tracing::info!(stream_id = %stream, epoch = epoch.0, reason = reason.code(), "a later leg was refused");
    }
    hop.audit
        .decided(Decision::new(&facts, rule, outcome.err()));
}

/// The stream's door and what is known of its owner, when that is who the relay says is calling.
fn owned(doors: &Doors, stream: StreamId, claimed: &Facts) -> Result<(Door, Facts), Reason> {
    let door = doors.find(stream)?;
    let (caller, peer) = door.owner().ok_or(Reason::AttachRefused)?;
    let is_same = *caller == claimed.caller.value && claimed.goal.service() == Some(door.service());
    if !is_same {
        return Err(Reason::PeerNotAuthentic);
    }
    let facts = proved_facts(caller.clone(), peer, door.service().clone());
    Ok((door, facts))
}

async fn let_in(
    (door, mut leg): (&Door, Leg),
    me: &AgentName,
    epoch: Epoch,
    conduit: Option<ConduitId>,
) -> Result<(), Reason> {
    leg.io
        .send
        .write(Message::Opened(me.clone()).encode())
        .await?;
    door.let_in(leg, epoch, conduit).await
}

fn proved_facts(caller: AgentId, peer: &PeerIdentity, service: ServiceName) -> Facts {
    Facts {
        tenant: caller.tenant.clone(),
        caller: Fact::new(caller, Source::Certificate),
        certificate: Some(certificate(peer)),
        goal: Goal::Service(Fact::new(service, Source::Asked)),
    }
}

fn certificate(peer: &PeerIdentity) -> CertificateRef {
    CertificateRef {
        serial: peer.serial.clone(),
        key_digest: peer.key_digest.clone(),
    }
}
