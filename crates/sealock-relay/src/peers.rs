//! Other relays: who is at them, and the way of a leg from one relay to another.
//!
//! Each relay dials each other one and hears from it which agents are there and what they offer, so there is one
//! connection for each direction, with many legs on it. A leg is passed on once and no further: the relay that takes it
//! has no voucher to show to a third. What goes wrong with a leg stays in its stream, which has a window of its own; the
//! connection has room for many that are full. Deliberately absent: belief in what a relay says of a caller; see
//! `sealock_net::tls::voucher`.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use sealock_core::address::HostPort;
use sealock_core::fact::{Fact, Facts, Goal, Source};
use sealock_core::identity::{AgentId, Principal};
use sealock_core::name::{NodeName, ServiceName};
use sealock_core::reason::Reason;
use sealock_flow::arrival::{InletKind, Near};
use sealock_flow::hop;
use sealock_flow::inlet;
use sealock_flow::outlet::session::{Load, PeerRelay};
use sealock_net::identity::{IdentityStore, PeerIdentity};
use sealock_net::message::{self, Inbox, ReadError};
use sealock_net::relays::RelayList;
use sealock_net::session::{Dialer, accept};
use sealock_net::task::Scope;
use sealock_net::transport::{BiStream, Connection, SendHalf};
use sealock_proto::wire::{Forward, Message, PRESENCE_LIMIT, Presence, Present};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tracing::Instrument;

use crate::session::Shared;

/// What a relay knows of the others; clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Peers {
    known: Arc<Mutex<BTreeMap<NodeName, Known>>>,
}

/// Another relay, while there is a connection to it.
#[derive(Debug)]
struct Known {
    connection: Connection,
    agents: Agents,
}

/// The agents at another relay.
#[derive(Debug, Default)]
struct Agents {
    here: HashMap<AgentId, Remote>,
    /// How many agents and offers were told.
    count: usize,
}

/// An agent at another relay.
#[derive(Debug, Default)]
struct Remote {
    offers: HashSet<ServiceName>,
    /// What goes to it from here.
    load: Load,
}

/// How many agents and offers another relay may tell of: as many agents as a relay can hold, with a few offers each.
const TOLD_LIMIT: usize = 500_000;

impl Agents {
    fn take(&mut self, presence: Presence) -> Result<(), Reason> {
        for gone in presence.gone {
            self.remove(&gone);
        }
        for Present { agent, offers } in presence.here {
            self.count += usize::from(!self.here.contains_key(&agent));
            let remote = self.here.entry(agent).or_default();
            if let Some(service) = offers {
                self.count += usize::from(remote.offers.insert(service));
            }
        }
        if self.count > TOLD_LIMIT {
            return Err(Reason::QuotaExceeded);
        }
        Ok(())
    }

    fn remove(&mut self, gone: &Present) {
        match &gone.offers {
            None => {
                let remote = self.here.remove(&gone.agent);
                self.count -= remote.map_or(0, |remote| remote.offers.len() + 1);
            }
            Some(service) => {
                let remote = self.here.get_mut(&gone.agent);
                let was_there = remote.is_some_and(|remote| remote.offers.remove(service));
                self.count -= usize::from(was_there);
            }
        }
    }
}
/// How long a relay may take to say what its stream is for.
const WORD_DEADLINE: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Changes of this time are told together.
const GATHER: Duration = Duration::from_millis(20); // far below an open's round trip to another region
/// Streams of one relay that may be between their arrival and their head.
const HEADLESS_LIMIT: usize = 256;

impl Peers {
    /// The relays that the agent is at and offers the service, the nearest one first.
    pub(crate) fn providing(&self, agent: &AgentId, service: &ServiceName) -> Vec<PeerRelay> {
        self.that(agent, |remote| remote.offers.contains(service))
    }

    /// The relays that the agent is at, the nearest one first.
    pub(crate) fn holding(&self, agent: &AgentId) -> Vec<PeerRelay> {
        self.that(agent, |_remote| true)
    }

    fn that(&self, agent: &AgentId, fits: impl Fn(&Remote) -> bool) -> Vec<PeerRelay> {
        let known = self.known.lock();
        let found = known.iter().filter_map(|(name, peer)| {
            let remote = peer.agents.here.get(agent).filter(|remote| fits(remote))?;
            Some(PeerRelay {
                relay: name.clone(),
                connection: peer.connection.clone(),
                agent: agent.name.clone(),
                load: remote.load.clone(),
            })
        });
        let mut found: Vec<PeerRelay> = found.collect();
        drop(known);
        found.sort_by_key(|peer| peer.connection.rtt());
        found
    }

    /// How many other relays there is a connection to.
    pub(crate) fn len(&self) -> usize {
        self.known.lock().len()
    }

    /// Keeps a connection to each relay of the list but this one, until dropped.
    pub(crate) async fn keep(
        self,
        me: Principal,
        list: RelayList,
        dialer: Dialer,
        identity: IdentityStore,
    ) {
        let mut changes = list.changes();
        let mut kept: BTreeMap<NodeName, (Vec<HostPort>, Scope)> = BTreeMap::new();
        loop {
            let relays = Arc::clone(&changes.borrow_and_update());
            kept.retain(|name, (addresses, _)| {
                let same = |relay: &sealock_net::relays::Relay| {
                    relay.name == *name && relay.addresses == *addresses
                };
                relays.iter().any(same)
            });
            for relay in relays.iter() {
                if me == Principal::Relay(relay.name.clone()) || kept.contains_key(&relay.name) {
                    continue;
                }
                let scope = Scope::new("peer");
                let (peers, name) = (self.clone(), relay.name.clone());
                let (dialer, identity) = (dialer.clone(), identity.clone());
                let addresses = relay.addresses.clone();
                scope.spawn("peer", async move {
                    let entry = Entry { peers, name };
                    entry.keep(&addresses, &dialer, &identity).await;
                });
                kept.insert(relay.name.clone(), (relay.addresses.clone(), scope));
            }
            if changes.changed().await.is_err() {
                return;
            }
        }
    }
}

/// The place of one other relay; it is empty again when this is dropped.
struct Entry {
    peers: Peers,
    name: NodeName,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.peers.known.lock().remove(&self.name);
    }
}

/// Why a connection to another relay is to be made anew.
enum Again {
    /// Half of the life of our certificate is over: the connection that there is serves until the next one does.
    Renewed,
    /// It was lost, or never made.
    Lost(Reason),
}

impl Entry {
    async fn keep(&self, addresses: &[HostPort], dialer: &Dialer, identity: &IdentityStore) {
        let mut pause = FIRST_PAUSE;
        loop {
            for address in addresses {
                let again = self.once(address, dialer, identity).await;
                if let Again::Lost(reason) = again {
                    let had = self.peers.known.lock().remove(&self.name).is_some();
                    tracing::debug!(relay = %self.name, reason = reason.code(), "no connection to a relay");
                    if had {
                        pause = FIRST_PAUSE;
                    }
                    tokio::time::sleep(pause.mul_f64(rand::random_range(0.1..1.0))).await;
                }
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn once(&self, address: &HostPort, dialer: &Dialer, identity: &IdentityStore) -> Again {
        let renew_in = until_renewal(identity);
        let connection = match dialer.dial(address).await {
            Ok(connection) => connection,
            Err(error) => return Again::Lost(error.reason()),
        };
        let peer = connection.peer().map(|peer| &peer.id.principal);
        if peer != Some(&Principal::Relay(self.name.clone())) {
            connection.close(Reason::PeerNotAuthentic);
            return Again::Lost(Reason::PeerNotAuthentic);
        }
        connection.make_room();
        let heard = tokio::select! {
            biased; // a loss is told before the time is looked at
            reason = self.hear(&connection) => Some(reason),
            () = tokio::time::sleep(renew_in) => None,
        };
        match heard {
            Some(reason) => {
                connection.close(reason);
                Again::Lost(reason)
            }
            None => Again::Renewed,
        }
    }

    /// Enters what the other relay said; the first word on a connection takes the place of an earlier one's.
    fn take(&self, connection: &Connection, presence: Presence) -> Result<(), Reason> {
        let mut known = self.peers.known.lock();
        let fresh = || Known {
            connection: connection.clone(),
            agents: Agents::default(),
        };
        let entry = known.entry(self.name.clone()).or_insert_with(fresh);
        if entry.connection.id() != connection.id() {
            *entry = fresh();
        }
        entry.agents.take(presence)
    }

    /// Hears who is at the other relay until the connection is lost; says why it was.
    async fn hear(&self, connection: &Connection) -> Reason {
        let control = async {
            let mut control = connection.open_bi().await?;
            control.send.write(Message::Peer.encode()).await?;
            Ok::<_, Reason>(control)
        };
        // The sending half is kept: its end would be the end of the connection.
        let (mut inbox, _kept) = match control.await {
            Ok(BiStream { recv, send }) => (Inbox::new(recv), send),
            Err(reason) => return reason,
        };
        loop {
            let presence = match inbox.next().await {
                Ok(Message::Presence(presence)) => presence,
                Ok(_) => return Reason::ProtocolViolation,
                Err(error) => {
                    let closed = connection.close_reason();
                    return closed.map_or_else(|| error.reason(), |lost| lost.reason());
                }
            };
            if let Err(reason) = self.take(connection, presence) {
                return reason;
            }
        }
    }
}

/// Half of what is left of our certificate's life.
fn until_renewal(identity: &IdentityStore) -> Duration {
    let ends = identity.current().map(|svid| svid.leaf().not_after);
    let left = ends.map(|ends| ends.duration_since(jiff::Timestamp::now()));
    let left = left.and_then(|left| Duration::try_from(left).ok());
    (left.unwrap_or_default() / 2).max(FIRST_PAUSE)
}

/// Serves another relay that came to ours: says who is here, and takes the legs that it passes on.
pub(crate) async fn serve(
    shared: Shared,
    connection: Connection,
    name: NodeName,
    peer: PeerIdentity,
) {
    let ended = match greet(&shared, &connection, &name).await {
        Ok((inbox, writer)) => {
            connection.make_room();
            let transport = connection.transport();
            let span = tracing::info_span!("session", relay = %name, %transport);
            let session = async {
                tracing::info!("another relay is connected");
                run(&shared, &connection, (inbox, writer), &name, &peer).await
            };
            session.instrument(span).await
        }
        Err(reason) => reason,
    };
    tracing::info!(relay = %name, reason = ended.code(), "another relay is gone");
    connection.close(ended);
}

async fn greet(
    shared: &Shared,
    connection: &Connection,
    name: &NodeName,
) -> Result<(Inbox, SendHalf), Reason> {
    if shared.draining.is_cancelled() {
        return Err(Reason::Draining);
    }
    let relays = shared.relays.current();
    if !relays.iter().any(|relay| relay.name == *name) {
        // It may be newer than our list: it tries again.
        return Err(Reason::ControllerUnreachable);
    }
    let hear = async {
        let BiStream { recv, send } = connection.accept_bi().await?;
        let mut inbox = Inbox::new(recv);
        let first = inbox.next().await.map_err(ReadError::reason)?;
        if first != Message::Peer {
            return Err(Reason::ProtocolViolation);
        }
        Ok((inbox, send))
    };
    let heard = tokio::time::timeout(WORD_DEADLINE, hear).await;
    heard.unwrap_or(Err(Reason::HandshakeTimeout))
}

async fn run(
    shared: &Shared,
    connection: &Connection,
    (mut inbox, mut writer): (Inbox, SendHalf),
    name: &NodeName,
    peer: &PeerIdentity,
) -> Reason {
    let headless = Arc::new(Semaphore::new(HEADLESS_LIMIT));
    let mut changes = shared.directory.changes();
    changes.mark_changed();
    let (mut told, mut due) = (Told::default(), None);
    loop {
        let step = tokio::select! {
            biased; // the end, then news, then new work
            lost = connection.closed() => return lost.reason(),
            heard = inbox.next() => match heard {
                Ok(_) => Err(Reason::ProtocolViolation),
                Err(error) => Err(error.reason()),
            },
            Ok(()) = changes.changed() => {
                due.get_or_insert_with(|| Instant::now() + GATHER);
                Ok(())
            }
            () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                due = None;
                told.tell(&mut writer, shared.present()).await
            }
            () = shared.draining.cancelled(), if !told.present.is_empty() => {
                told.tell(&mut writer, BTreeSet::new()).await
            }
            arrived = accept(connection, &headless) => match arrived {
                Ok((leg, slot)) => {
                    let (shared, name, ends) = (shared.clone(), name.clone(), peer.not_after);
                    let tasks = shared.tasks.clone();
                    let stream = async move { take_in(shared, &name, ends, leg, slot).await };
                    tasks.spawn("peer stream", hop::follow(stream).in_current_span());
                    Ok(())
                }
                Err(lost) => Err(lost.reason()),
            },
        };
        if let Err(reason) = step {
            let closed = connection.close_reason();
            return closed.map_or(reason, |lost| lost.reason());
        }
    }
}

/// What another relay was told.
#[derive(Default)]
struct Told {
    present: BTreeSet<Present>,
    has_begun: bool,
}

impl Told {
    /// Tells what changed, in messages of a bounded size; the first one comes also when there is nothing to tell.
    async fn tell(&mut self, writer: &mut SendHalf, now: BTreeSet<Present>) -> Result<(), Reason> {
        let here = now.difference(&self.present).map(|present| (true, present));
        let gone = self
            .present
            .difference(&now)
            .map(|present| (false, present));
        let changes: Vec<(bool, &Present)> = here.chain(gone).collect();
        let mut messages: Vec<Message> = changes.chunks(PRESENCE_LIMIT).map(presence).collect();
        if messages.is_empty() && !self.has_begun {
            messages.push(Message::Presence(Presence::default()));
        }
        for message in messages {
            writer.write(message.encode()).await?;
        }
        self.has_begun = true;
        self.present = now;
        Ok(())
    }
}

fn presence(changes: &[(bool, &Present)]) -> Message {
    let mut presence = Presence::default();
    for (is_here, present) in changes {
        let list = if *is_here {
            &mut presence.here
        } else {
            &mut presence.gone
        };
        list.push((*present).clone());
    }
    Message::Presence(presence)
}

/// Reads a stream's head and takes the leg, in a task of its own: a slow head holds up nobody.
async fn take_in(
    shared: Shared,
    relay: &NodeName,
    ends: jiff::Timestamp,
    mut leg: BiStream,
    slot: tokio::sync::OwnedSemaphorePermit,
) -> Option<hop::Running> {
    let head = tokio::time::timeout(WORD_DEADLINE, message::read(&mut leg.recv)).await;
    drop(slot);
    let forward = match head {
        Ok(Ok(Message::Forward(forward))) => *forward,
        Ok(Ok(_) | Err(_)) => {
            leg.reset(Reason::ProtocolViolation);
            return None;
        }
        Err(_elapsed) => {
            leg.reset(Reason::HandshakeTimeout);
            return None;
        }
    };
    let now = jiff::Timestamp::now();
    let verdict = if shared.draining.is_cancelled() {
        Err(Reason::Draining)
    } else if ends < now {
        Err(Reason::NotAdmitted)
    } else {
        shared.vouchers.verify(&forward, relay, now)
    };
    match verdict {
        Ok(caller) => {
            let Forward {
                open, caller: id, ..
            } = forward;
            let arrival = inlet::session::at_relay(&id, &caller, open, leg);
            let arrival = arrival.over(InletKind::Peer);
            Some(hop::run(&shared.hop, arrival))
        }
        Err(reason) => {
            tracing::warn!(%relay, caller = %forward.caller, reason = reason.code(), "a leg of another relay was not taken");
            // Recorded as a claim: nobody proved it.
            let facts = Facts {
                tenant: forward.caller.tenant.clone(),
                caller: Fact::new(forward.caller, Source::Relayed),
                certificate: None,
                goal: Goal::Service(Fact::new(forward.open.service, Source::Asked)),
            };
            shared.hop.note_refusal(InletKind::Peer, &facts, reason);
            Near::Leg(leg).refuse(reason).await;
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn present(agent: &str, offers: Option<&str>) -> Present {
        Present {
            agent: AgentId {
                tenant: "default".parse().expect("a name"),
                name: agent.parse().expect("a name"),
            },
            offers: offers.map(|name| name.parse().expect("a name")),
        }
    }

    #[test]
    fn what_another_relay_tells_twice_or_takes_back_twice_counts_once() {
        let all = [
            present("a", None),
            present("a", Some("db")),
            present("a", Some("web")),
            present("b", Some("db")), // its own presence comes later, or never
        ];
        let told = |here: &[Present], gone: &[Present]| Presence {
            here: here.to_vec(),
            gone: gone.to_vec(),
        };
        let mut agents = Agents::default();
        for (here, gone, count) in [
            (&all[..], &[][..], 5),
            (&all[..], &[], 5),
            (&[], &all[1..2], 4),
            (&[], &all[1..2], 4),
            (&[], &all[..1], 2), // who is gone offers nothing
            (&[], &all[..3], 2),
            (&all[..2], &[], 4),
        ] {
            let taken = agents.take(told(here, gone));
            assert_eq!((taken, agents.count), (Ok(()), count));
        }
        let offers: usize = agents.here.values().map(|remote| remote.offers.len()).sum();
        assert_eq!(agents.count, agents.here.len() + offers);
    }
}
