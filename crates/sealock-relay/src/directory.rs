//! Who is connected, and what they offer: one live session for each agent.
//!
//! A newer session of an agent takes the place of the older one, which is told so. A session can only remove itself,
//! so an old connection that dies late takes nothing from its successor. Sessions that only call stand beside the
//! agent's own, a few for each agent.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use sealock_core::identity::AgentId;
use sealock_core::name::{Region, ServiceName};
use sealock_core::reason::Reason;
use sealock_flow::arrival::Vouched;
use sealock_flow::outlet::session::{Load, Provider};
use sealock_net::identity::PeerIdentity;
use sealock_net::transport::{Connection, Lost};
use sealock_proto::wire::{Hello, Present, SessionKind};
use tokio::sync::watch;

use crate::gone::Gone;

/// A session that is up.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) number: u64,
    pub(crate) agent: AgentId,
    pub(crate) peer: PeerIdentity,
    pub(crate) connection: Connection,
    /// The process behind it: tells a reconnect from a second machine with the same identity.
    instance: [u8; 16],
    offers: Mutex<BTreeSet<ServiceName>>,
    /// Whether it ever offered something, so that streams of others may run to it.
    has_offered: AtomicBool,
    /// Where the agent says that it is.
    pub(crate) region: Option<Region>,
    /// Whether the agent said farewell: the session lives on for its streams alone.
    is_leaving: AtomicBool,
    /// The agent's word for being here, for legs to other relays.
    pub(crate) vouched: Option<Arc<Vouched>>,
}

/// What an operator sees of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionSummary {
    /// The relay's number for it.
    pub number: u64,
    /// The agent at its other end.
    pub agent: AgentId,
    /// What the agent offers.
    pub offers: BTreeSet<ServiceName>,
}

/// The sessions of a relay; clones share them.
#[derive(Debug, Clone)]
pub struct Directory {
    inner: Arc<Inner>,
}

/// The sessions of one agent.
#[derive(Debug, Default)]
struct Slots {
    full: Option<Arc<Live>>,
    callers: Vec<Arc<Live>>,
    /// What the agent carries through this relay, over all its sessions.
    load: Load,
    /// Earlier sessions of the same process, alive for the streams that still run on them.
    retired: Vec<Arc<Live>>,
}

impl Slots {
    /// Puts a session in the place of the agent's own; returns those that have to go.
    fn replace(&mut self, newer: &Arc<Live>) -> Vec<Arc<Live>> {
        let Some(older) = self.full.replace(Arc::clone(newer)) else {
            return Vec::new();
        };
        if older.instance != newer.instance {
            // Two machines with one identity, or a restart that was seen before the end of the old process.
            tracing::warn!(session_id = older.number, agent = %older.agent, "another process took this agent's place");
            return std::iter::once(older)
                .chain(self.retired.drain(..))
                .collect();
        }
        // The same process with a renewed certificate, or after a loss that it saw first: what it offered goes on
        // without a gap, and what still runs on the older session may end in peace.
        newer.set_offers(older.offers.lock().clone());
        let has_offered = older.has_offered.load(Ordering::Relaxed);
        newer.has_offered.fetch_or(has_offered, Ordering::Relaxed);
        self.retired.push(older);
        let surplus = self.retired.len().saturating_sub(RETIRED_LIMIT);
        self.retired.drain(..surplus).collect()
    }

    fn all(&self) -> impl Iterator<Item = &Arc<Live>> {
        self.full.iter().chain(&self.callers).chain(&self.retired)
    }
}

/// A session's number is drawn, because the agent is told it: a count would tell a tenant what the others do (K10).
const NUMBER_SHIFT: u32 = 16; // 48 bits: no two sessions meet, and every reader of JSON logs keeps them whole

/// How many earlier sessions of a process may live on.
const RETIRED_LIMIT: usize = 256; // five days of renewals at half of an hour; one without streams closes by itself

/// How many sessions that only call an agent may have.
const CALLERS_LIMIT: usize = 32; // as many `ssh` through one laptop as anybody opens at once

#[derive(Debug)]
struct Inner {
    sessions: Mutex<HashMap<AgentId, Slots>>,
    limit: usize,
    gone: Gone,
    /// How often another process took an agent's place.
    superseded: Counter,
    /// Counts what other relays should hear of.
    changed: watch::Sender<u64>,
}

impl Directory {
    /// Room for `limit` sessions.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        let inner = Inner {
            sessions: Mutex::default(),
            limit,
            gone: Gone::default(),
            superseded: Counter::default(),
            changed: watch::Sender::new(0),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Shows in `registry` how often another process took an agent's place: two machines may use one identity.
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register(
            "agents_superseded",
            "Agents whose place another process with the same identity took",
            self.inner.superseded.clone(),
        );
    }

    /// Enters a session; an older one of the same agent and kind is told and closed.
    ///
    /// # Errors
    /// [`Reason::Overloaded`] when the relay is full, [`Reason::QuotaExceeded`] when the agent is.
    pub(crate) fn enter(
        &self,
        agent: AgentId,
        peer: PeerIdentity,
        connection: Connection,
        hello: &Hello,
    ) -> Result<Arc<Live>, Reason> {
        let live = Arc::new(Live {
            number: rand::random::<u64>() >> NUMBER_SHIFT,
            agent: agent.clone(),
            peer,
            connection,
            instance: hello.instance,
            offers: Mutex::default(),
            has_offered: AtomicBool::new(false),
            region: hello.region.clone(),
            is_leaving: AtomicBool::new(false),
            vouched: hello.voucher.clone().map(|voucher| {
                let instance = hello.instance;
                Arc::new(Vouched { instance, voucher })
            }),
        });
        let mut sessions = self.inner.sessions.lock();
        if sessions.len() >= self.inner.limit && !sessions.contains_key(&agent) {
            return Err(Reason::Overloaded);
        }
        if hello.kind == SessionKind::Full {
            self.inner.gone.forget(&agent);
        }
        let slots = sessions.entry(agent).or_default();
        let gone = match hello.kind {
            SessionKind::Full => slots.replace(&live),
            SessionKind::CallerOnly if slots.callers.len() >= CALLERS_LIMIT => {
                return Err(Reason::QuotaExceeded);
            }
            SessionKind::CallerOnly => {
                slots.callers.push(Arc::clone(&live));
                Vec::new()
            }
        };
        drop(sessions);
        self.touch();
        if gone.iter().any(|older| older.instance != live.instance) {
            self.inner.superseded.inc();
        }
        for session in gone {
            session.connection.close(Reason::Superseded);
        }
        Ok(live)
    }

    /// Takes a session out, unless another one has taken its place.
    pub(crate) fn leave(&self, live: &Live) {
        let mut sessions = self.inner.sessions.lock();
        let Some(slots) = sessions.get_mut(&live.agent) else {
            return;
        };
        slots.callers.retain(|caller| caller.number != live.number);
        slots
            .retired
            .retain(|retired| retired.number != live.number);
        let its_own = slots.full.take_if(|full| full.number == live.number);
        if its_own.is_some() && live.connection.close_reason() == Some(Lost::PeerGone) {
            self.inner.gone.remember(live.agent.clone(), Instant::now());
        }
        if slots.all().next().is_none() {
            sessions.remove(&live.agent);
        }
        drop(sessions);
        self.touch();
    }

    /// The agent, when it is here, and whether it offers the service.
    #[must_use]
    pub(crate) fn provider(
        &self,
        agent: &AgentId,
        service: &ServiceName,
    ) -> Option<(Provider, bool)> {
        let mut offers = false;
        let found = self.full_if(agent, |live| {
            offers = live.offers.lock().contains(service);
            true
        });
        found.map(|provider| (provider, offers))
    }

    /// The agent, when it is here to take up streams, whatever it offers: they were opened while it did.
    #[must_use]
    pub(crate) fn holder(&self, agent: &AgentId) -> Option<Provider> {
        // On a session that it left the agent answers for a short while only; it is at another relay by then.
        self.full_if(agent, |live| !live.is_leaving.load(Ordering::Relaxed))
    }

    fn full_if(&self, agent: &AgentId, fits: impl FnOnce(&Live) -> bool) -> Option<Provider> {
        let sessions = self.inner.sessions.lock();
        let slots = sessions.get(agent)?;
        let live = slots.full.as_ref()?;
        if !fits(live) {
            return None;
        }
        Some(Provider {
            agent: live.agent.clone(),
            connection: live.connection.clone(),
            load: slots.load.clone(),
            conduits: None,
        })
    }

    /// Closes every session that `verdict` no longer lets in; returns how many.
    pub(crate) fn sweep(
        &self,
        verdict: impl Fn(&AgentId, &PeerIdentity) -> Result<(), Reason>,
    ) -> usize {
        let all: Vec<Arc<Live>> = self
            .inner
            .sessions
            .lock()
            .values()
            .flat_map(Slots::all)
            .cloned()
            .collect();
        let out = |live: &&Arc<Live>| match verdict(&live.agent, &live.peer) {
            Ok(()) => false,
            Err(reason) => {
                tracing::info!(
                    session_id = live.number,
                    reason = reason.code(),
                    "session closed by policy"
                );
                live.connection.close(reason);
                true
            }
        };
        all.iter().filter(out).count()
    }

    /// Whether the agent's process is known to have ended, so that none of its streams can be taken up again.
    ///
    /// An agent that is merely not reached is not gone.
    #[must_use]
    pub fn is_gone(&self, agent: &AgentId) -> bool {
        self.inner.gone.knows(agent, Instant::now())
    }

    /// Every session, as of now, in the order of their agents.
    #[must_use]
    pub fn list(&self) -> Vec<SessionSummary> {
        let sessions = self.inner.sessions.lock();
        let mut list: Vec<SessionSummary> = sessions
            .values()
            .flat_map(Slots::all)
            .map(|live| live.summary())
            .collect();
        drop(sessions);
        list.sort_by(|a, b| (&a.agent, a.number).cmp(&(&b.agent, b.number)));
        list
    }

    /// Something changed in who is here and offers.
    pub(crate) fn touch(&self) {
        self.inner.changed.send_modify(|count| *count += 1);
    }

    /// Resolves anew on every change of [`Self::present`].
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changed.subscribe()
    }

    /// What the agents offer that are here. One that offered something before is here without offers too, for its streams.
    pub(crate) fn present(&self) -> BTreeSet<Present> {
        let sessions = self.inner.sessions.lock();
        let full = sessions.values().filter_map(|slots| slots.full.as_ref());
        let staying = full.filter(|live| !live.is_leaving.load(Ordering::Relaxed));
        let told = staying.filter(|live| live.has_offered.load(Ordering::Relaxed));
        told.flat_map(|live| {
            let offers: Vec<_> = live.offers.lock().iter().cloned().map(Some).collect();
            let said = std::iter::once(None).chain(offers);
            said.map(|offers| Present {
                agent: live.agent.clone(),
                offers,
            })
        })
        .collect()
    }

    /// How many sessions there are of which the agent has not said farewell.
    pub(crate) fn staying(&self) -> usize {
        let sessions = self.inner.sessions.lock();
        let staying = |live: &&Arc<Live>| !live.is_leaving.load(Ordering::Relaxed);
        sessions
            .values()
            .flat_map(Slots::all)
            .filter(staying)
            .count()
    }

    /// How many agents are connected.
    #[must_use]
    pub fn agents(&self) -> usize {
        self.inner.sessions.lock().len()
    }
}

impl Live {
    pub(crate) fn set_offers(&self, offers: BTreeSet<ServiceName>) {
        self.has_offered
            .fetch_or(!offers.is_empty(), Ordering::Relaxed);
        *self.offers.lock() = offers;
    }

    /// The agent takes nothing new on this session.
    pub(crate) fn leave(&self) {
        self.is_leaving.store(true, Ordering::Relaxed);
        self.set_offers(BTreeSet::new());
    }

    fn summary(&self) -> SessionSummary {
        SessionSummary {
            number: self.number,
            agent: self.agent.clone(),
            offers: self.offers.lock().clone(),
        }
    }
}
