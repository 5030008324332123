//! Through a session: at an agent to a service, at a relay to the agent that provides it.
//!
//! The agent opens a leg at its relay and encrypts end to end on it, in one round trip: the handshake leaves together
//! with the open. The relay opens a leg to the provider and is done; what it passes on from then on it cannot read.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use sealock_core::fact::Facts;
use sealock_core::identity::AgentId;
use sealock_core::name::{AgentName, NodeName};
use sealock_core::reason::Reason;
use sealock_core::view::View;
use sealock_net::e2e::{Call, EndToEnd};
use sealock_net::identity::PeerIdentity;
use sealock_net::session::{Session, SessionId, Sessions, State};
use sealock_net::stream::LegSource;
use sealock_net::transport::Connection;
use sealock_net::transport::conduit::{Conduits, Expected};
use sealock_net::views::ViewStore;
use sealock_proto::stream::Epoch;
use sealock_proto::wire::{Forward, Incoming, Message, Open, StreamId};

use crate::arrival::LegHead;
use crate::io::Io;
use crate::outlet::Opening;

/// An agent's way to the services of its tenant.
#[derive(Debug)]
pub struct ServiceOutlet {
    sessions: Sessions,
    legs: Arc<dyn LegSource>,
    end_to_end: EndToEnd,
    views: ViewStore,
}

/// How often an open is begun again on another session.
const ATTEMPTS: usize = 3; // a relay that drains and the one after it
/// How long an open waits for a session that is being made anew.
const SESSION_WAIT: Duration = Duration::from_secs(5); // a relay restart takes about 1 s to heal
/// How long an open rests between two questions for a provider that is on its way back.
const PROVIDER_PAUSE: Duration = Duration::from_millis(50); // some round trips

impl ServiceOutlet {
    /// A way through these sessions, with this identity, to the providers that these views name.
    #[must_use]
    pub fn new(sessions: Sessions, end_to_end: EndToEnd, views: ViewStore) -> Self {
        Self {
            legs: Arc::new(sessions.clone()),
            sessions,
            end_to_end,
            views,
        }
    }

    /// Opens a stream to a provider and authenticates it end to end.
    ///
    /// A session that is lost in the middle costs nothing but time. The same goes for a leg that is lost when only this
    /// side is done with the handshake: the provider has forgotten the stream then, or does not know yet whose it is.
    /// What the application had said is said again on the next stream, which the provider takes only when it heard none
    /// of it before; whether it did, a relay cannot tell in its place.
    pub(super) async fn open(&self, opening: &mut Opening<'_>) -> Result<Io, Reason> {
        let (facts, mut tried, mut last) = (opening.facts, Vec::new(), Reason::NoProvider);
        let (mut said, mut attempts, mut lost_at) = (Said::default(), 0, None::<Instant>);
        loop {
            // A provider that lost its session with us needs as long as we did to come back.
            let is_near = lost_at.is_some_and(|at| at.elapsed() < SESSION_WAIT);
            let Some(session) = self.session(&tried, last).await? else {
                if !is_near {
                    return Err(last);
                }
                tokio::time::sleep(PROVIDER_PAUSE).await;
                tried.clear();
                continue;
            };
            let outcome = self.attempt(&session, facts, (&mut said, opening)).await;
            let reason = match outcome {
                Err(reason) if may_begin_again(reason) => reason,
                outcome => return outcome,
            };
            last = reason;
            let elsewhere = matches!(reason, Reason::Draining | Reason::NoProvider);
            if reason != Reason::NoProvider {
                lost_at = lost_at.or_else(|| Some(Instant::now()));
                attempts += 1;
                if attempts > ATTEMPTS {
                    return Err(reason);
                }
            }
            // Where our own session is still there, the leg was lost at its other end.
            if elsewhere || session.is_lost() {
                tried.push(session.id());
            }
        }
    }

    async fn attempt(
        &self,
        session: &Session,
        facts: &Facts,
        (said, opening): (&mut Said, &mut Opening<'_>),
    ) -> Result<Io, Reason> {
        let service = facts.service()?.clone();
        let view = self.views.current(&facts.tenant)?;
        let providers = providers(&view, facts)?;
        let stream = StreamId(rand::random());
        let open = Open {
            stream,
            epoch: Epoch::FIRST,
            service: service.clone(),
            provider: None,
            conduit: None,
        };
        let leg = session.open_leg(open).await?;
        let call = Call {
            stream,
            service,
            providers: providers.clone(),
            // The name alone does not do: a certificate that was stolen and revoked still bears it (S15).
            judge: Arc::new(move |peer: &PeerIdentity| {
                if view.is_revoked(&peer.serial, &peer.key_digest) {
                    Err(Reason::IdentityRevoked)
                } else {
                    Ok(())
                }
            }),
            legs: Some(Arc::clone(&self.legs)),
            instead_of: said.on.clone(),
        };
        let early = || said.early_on(stream, opening);
        let (reader, writer) = self.end_to_end.call(leg, call, early).await?;
        Ok(Io::Sealed(reader, writer))
    }

    /// The best session that was not tried, also one that is being made anew; at once the reason why not, where waiting
    /// cannot mend it, and nothing when all were tried and no other can be expected.
    async fn session(&self, tried: &[SessionId], last: Reason) -> Result<Option<Session>, Reason> {
        let mut sessions = self.sessions.clone();
        let found = async {
            loop {
                let mut all = sessions.all().into_iter();
                let fresh = all.find(|one| !one.is_retiring() && !tried.contains(&one.id()));
                if fresh.is_some() {
                    return Ok(fresh);
                }
                match sessions.state() {
                    // A session that drains or is lost is about to say so, and another one will come.
                    State::Up(_) if last != Reason::NoProvider => sessions.changed().await,
                    State::Up(_) => return Ok(None),
                    State::Connecting { last: Some(reason) } if !reason.is_transient() => {
                        return Err(reason);
                    }
                    State::Connecting { .. } => sessions.changed().await,
                }
            }
        };
        let found = tokio::time::timeout(SESSION_WAIT, found).await;
        found.unwrap_or(Err(Reason::RelayUnreachable))
    }
}

/// What the application said before its flow was open, and the streams that it was said on.
#[derive(Default)]
struct Said {
    early: Bytes,
    on: Vec<StreamId>,
}

impl Said {
    /// What is said on this stream before its provider answered.
    fn early_on(&mut self, stream: StreamId, opening: &mut Opening<'_>) -> Result<Bytes, Reason> {
        if self.early.is_empty() {
            self.early = opening.early()?;
        }
        if !self.early.is_empty() {
            self.on.push(stream);
        }
        Ok(self.early.clone())
    }
}

/// Whether an open that failed for this reason may succeed with a new stream.
fn may_begin_again(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::SessionLost
            | Reason::Draining
            | Reason::NoProvider
            | Reason::PeerLost
            | Reason::AttachRefused
    )
}

/// Those who may answer for the service: what the controller signed, not what the relay says.
fn providers(view: &View, facts: &Facts) -> Result<BTreeSet<AgentId>, Reason> {
    let service = view
        .service(facts.service()?)
        .ok_or(Reason::NoSuchService)?;
    let id = |name: &AgentName| AgentId {
        tenant: facts.tenant.clone(),
        name: name.clone(),
    };
    Ok(service.providers.keys().map(id).collect())
}

/// At a relay: an agent that provides the service, and its session.
#[derive(Debug, Clone)]
pub struct Provider {
    /// The agent.
    pub agent: AgentId,
    /// The connection of its session.
    pub connection: Connection,
    /// What it carries through this relay.
    pub load: Load,
    /// Where its conduits are joined, for a leg that may have one.
    pub conduits: Option<Conduits>,
}

impl Provider {
    /// The same, whose legs may have conduits.
    #[must_use]
    pub fn over_conduits(self, conduits: Conduits) -> Self {
        Self {
            conduits: Some(conduits),
            ..self
        }
    }

    /// Waits for the conduit that the caller asked for, where there can be one.
    fn expect(&self, head: &LegHead, facts: &Facts) -> Option<Expected> {
        let (conduits, id) = (self.conduits.as_ref()?, head.conduit?);
        conduits.expect(id, facts.caller.value.clone(), self.agent.clone())
    }
}

/// How many legs to an agent a relay carries, or opens at this moment; clones share the count.
#[derive(Debug, Clone, Default)]
pub struct Load(Arc<AtomicUsize>);

impl Load {
    /// The legs, as of now.
    #[must_use]
    pub fn legs(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    fn enter(&self) -> Carried {
        self.0.fetch_add(1, Ordering::Relaxed);
        Carried(self.clone())
    }
}

/// One leg of a load, counted until it is dropped.
#[derive(Debug)]
pub(crate) struct Carried(Load);

impl Drop for Carried {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How long a provider that has all its streams in use may take to free one; then the next provider is tried.
const STREAM_WAIT: Duration = Duration::from_secs(2);

/// Opens a leg to the provider. It answers the caller itself, through the leg.
pub(super) async fn forward(provider: &Provider, opening: &Opening<'_>) -> Result<Io, Reason> {
    let head = opening.leg.ok_or(Reason::Internal)?;
    // Before the first wait, so that opens at the same moment spread too.
    let carried = provider.load.enter();
    let conduit = provider.expect(head, opening.facts);
    let mut leg = tokio::time::timeout(STREAM_WAIT, provider.connection.open_bi())
        .await
        .map_err(|_elapsed| Reason::Overloaded)?
        .map_err(|_lost| Reason::NoProvider)?;
    let incoming = Message::Incoming(Incoming {
        stream: head.stream,
        epoch: head.epoch,
        service: opening.facts.service()?.clone(),
        caller: opening.facts.caller.value.clone(),
        conduit: head.conduit.filter(|_| conduit.is_some()),
    });
    leg.send
        .write(incoming.encode())
        .await
        .map_err(|_lost| Reason::NoProvider)?;
    opening.flow.count_at(carried);
    if let Some(conduit) = conduit {
        opening.flow.goes_over(conduit);
    }
    Ok(Io::Leg(leg))
}

/// At a relay: another relay, which a provider is at.
#[derive(Debug, Clone)]
pub struct PeerRelay {
    /// Its name.
    pub relay: NodeName,
    /// The connection to it.
    pub connection: Connection,
    /// The provider.
    pub agent: AgentName,
    /// What goes to the provider that way from here.
    pub load: Load,
}

/// Passes the leg on to another relay, which answers the caller itself, or lets a provider do so.
pub(super) async fn hand_over(peer: &PeerRelay, opening: &Opening<'_>) -> Result<Io, Reason> {
    let head = opening.leg.as_ref().ok_or(Reason::Internal)?;
    // Planned only for callers that vouched.
    let vouched = head.vouched.as_ref().ok_or(Reason::NoProvider)?;
    let carried = peer.load.enter();
    let mut leg = tokio::time::timeout(STREAM_WAIT, peer.connection.open_bi())
        .await
        .map_err(|_elapsed| Reason::Overloaded)?
        .map_err(|_lost| Reason::NoProvider)?;
    let forward = Forward {
        open: Open {
            stream: head.stream,
            epoch: head.epoch,
            service: opening.facts.service()?.clone(),
            provider: Some(peer.agent.clone()),
            conduit: None,
        },
        caller: opening.facts.caller.value.clone(),
        instance: vouched.instance,
        voucher: vouched.voucher.clone(),
    };
    let message = Message::Forward(Box::new(forward));
    leg.send
        .write(message.encode())
        .await
        .map_err(|_lost| Reason::NoProvider)?;
    opening.flow.count_at(carried);
    Ok(Io::Passed(leg))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leg_counts_from_its_opening_to_its_end_and_never_twice() {
        let load = Load::default();
        let (first, second) = (load.enter(), load.clone().enter());
        assert_eq!(load.legs(), 2);
        drop(first);
        assert_eq!(load.legs(), 1);
        drop(second);
        assert_eq!(load.legs(), 0);
    }
}
