//! What others see of an agent's sessions: which are up, which is the best, and why one is missing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use sealock_core::address::HostPort;
use sealock_core::reason::Reason;
use sealock_proto::wire::Open;
use tokio::sync::watch;

use super::Session;
use crate::stream::{Leg, LegSource};

/// What a session is at.
#[derive(Debug, Clone)]
pub enum State {
    /// Being made, for the first time or again, and why the last one ended.
    Connecting {
        /// Why there is none, when one was there or tried.
        last: Option<Reason>,
    },
    /// Up.
    Up(Session),
}

/// What a session is at, where, and since when.
#[derive(Debug, Clone)]
pub struct SessionStatus {
    /// What it is at.
    pub state: State,
    /// The relay that it is with, or that was tried last.
    pub relay: HostPort,
    /// Since when.
    pub since: jiff::Timestamp,
}

impl SessionStatus {
    fn up(&self) -> Option<&Session> {
        match &self.state {
            State::Up(session) => Some(session),
            State::Connecting { .. } => None,
        }
    }
}

/// One entry for each session that is kept; nothing where no relay is left for one.
type Slots = Vec<Option<SessionStatus>>;

/// The sessions of an agent, as others see them.
#[derive(Debug, Clone)]
pub struct Sessions {
    slots: watch::Receiver<Slots>,
}

/// Where the keeper writes what [`Sessions`] shows.
#[derive(Debug, Clone)]
pub(super) struct Board(Arc<watch::Sender<Slots>>);

pub(super) fn new(count: usize, first: Option<&HostPort>) -> (Board, Sessions) {
    // A configuration without relays never gets anywhere; `sealock` refuses it before.
    let nowhere = || HostPort::from(SocketAddr::from(([0, 0, 0, 0], 0)));
    let mut slots: Slots = vec![None; count];
    slots[0] = Some(SessionStatus {
        state: State::Connecting { last: None },
        relay: first.cloned().unwrap_or_else(nowhere),
        since: jiff::Timestamp::now(),
    });
    let (publish, slots) = watch::channel(slots);
    (Board(Arc::new(publish)), Sessions { slots })
}

impl Board {
    /// Tells a slot's state; the time stays while nothing but the reason changes.
    pub(super) fn set(&self, slot: usize, relay: &HostPort, state: State) {
        self.0.send_modify(|slots| {
            let is_up = matches!(state, State::Up(_));
            let before = slots[slot].as_ref();
            let since = before
                .filter(|before| before.up().is_some() == is_up)
                .map_or_else(jiff::Timestamp::now, |before| before.since);
            slots[slot] = Some(SessionStatus {
                state,
                relay: relay.clone(),
                since,
            });
        });
    }

    /// There is no relay for this slot.
    pub(super) fn clear(&self, slot: usize) {
        self.0.send_modify(|slots| {
            // One is always shown, so that there is a reason to show.
            if slots
                .iter()
                .enumerate()
                .any(|(at, status)| at != slot && status.is_some())
            {
                slots[slot] = None;
            }
        });
    }

    /// Every session that is up.
    pub(super) fn sessions(&self) -> Vec<Session> {
        up(&self.0.borrow()).cloned().collect()
    }

    /// A session began to retire.
    pub(super) fn touch(&self) {
        self.0.send_modify(|_slots| {});
    }
}

impl LegSource for Sessions {
    fn open(&self, open: Open, attempt: u32) -> BoxFuture<'_, Result<Leg, Reason>> {
        Box::pin(async move { self.for_attempt(attempt).await.open_leg(open).await })
    }
}

impl Sessions {
    /// The best session at first; after refusals the others in turn, for a relay may not know yet who is where.
    async fn for_attempt(&self, attempt: u32) -> Session {
        let all = self.all();
        let live: Vec<&Session> = all.iter().filter(|it| !it.is_retiring()).collect();
        let turn = usize::try_from(attempt).unwrap_or(0);
        match live.get(turn % live.len().max(1)) {
            Some(&session) => session.clone(),
            None => self.current().await,
        }
    }

    /// The best session for a new leg, waiting until there is one. It is never one that retires.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn current(&self) -> Session {
        let mut slots = self.slots.clone();
        loop {
            if let Some(session) = best(&slots.borrow_and_update()) {
                return session.clone();
            }
            if slots.changed().await.is_err() {
                // The owner is gone, and so will be whoever waits here.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Every session that is up, the best one first; those that retire while nothing replaces them come last.
    #[must_use]
    pub fn all(&self) -> Vec<Session> {
        let slots = self.slots.borrow();
        let first = best(&slots).map(Session::id);
        let mut all: Vec<Session> = up(&slots).cloned().collect();
        drop(slots);
        all.sort_by_key(|session| (session.is_retiring(), Some(session.id()) != first));
        all
    }

    /// What there is for a new leg: the best session, or why there is none.
    #[must_use]
    pub fn state(&self) -> State {
        let slots = self.slots.borrow();
        match best(&slots) {
            Some(session) => State::Up(session.clone()),
            None => State::Connecting {
                last: trouble(&slots),
            },
        }
    }

    /// What the best session is at, where, and since when.
    #[must_use]
    pub fn status(&self) -> SessionStatus {
        let slots = self.slots.borrow();
        let shown = best(&slots).map(Session::id);
        let is_shown = |status: &&SessionStatus| status.up().map(Session::id) == shown;
        let mut all = slots.iter().flatten();
        let found = all.clone().find(is_shown).or_else(|| all.next());
        found.cloned().expect("one slot is always shown")
    }

    /// What each session is at, the best one first.
    #[must_use]
    pub fn statuses(&self) -> Vec<SessionStatus> {
        let slots = self.slots.borrow();
        let first = best(&slots).map(Session::id);
        let mut all: Vec<SessionStatus> = slots.iter().flatten().cloned().collect();
        drop(slots);
        all.sort_by_key(|status| first.is_none() || status.up().map(Session::id) != first);
        all
    }

    /// Waits until the state changes.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn changed(&mut self) {
        if self.slots.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

fn up(slots: &Slots) -> impl Iterator<Item = &Session> {
    slots.iter().flatten().filter_map(SessionStatus::up)
}

/// The session for a new leg: the first one, unless another is clearly nearer.
fn best(slots: &Slots) -> Option<&Session> {
    up(slots)
        .filter(|session| !session.is_retiring())
        .reduce(|best, other| {
            if is_clearly_nearer(other.rtt(), best.rtt()) {
                other
            } else {
                best
            }
        })
}

/// What a round trip must be shorter by, so that two relays at the same distance do not take turns.
const CLEARLY: Duration = Duration::from_millis(2); // more than the scheduling noise of an idle machine

fn is_clearly_nearer(this: Option<Duration>, that: Option<Duration>) -> bool {
    match (this, that) {
        (Some(this), Some(that)) => this + CLEARLY.max(that / 4) < that,
        (Some(_) | None, None) | (None, Some(_)) => false,
    }
}

/// Why there is no session: what waiting may mend comes before what it cannot.
fn trouble(slots: &Slots) -> Option<Reason> {
    let mut reasons = slots.iter().flatten().map(|status| match &status.state {
        State::Connecting { last } => *last,
        State::Up(_) => Some(Reason::Draining),
    });
    let first = reasons.clone().next().flatten();
    reasons
        .find(|last| last.is_none_or(Reason::is_transient))
        .unwrap_or(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> HostPort {
        "relay.example:443".parse().expect("an address")
    }

    fn connecting(last: Option<Reason>) -> State {
        State::Connecting { last }
    }

    #[test]
    fn a_relay_is_nearer_only_by_a_clear_margin() {
        let ms = |n| Some(Duration::from_millis(n));
        for (this, that, expected) in [
            (ms(1), ms(2), false),
            (ms(1), ms(4), true),
            (ms(80), ms(100), false),
            (ms(70), ms(100), true),
            (None, ms(100), false),
            (ms(1), None, false),
        ] {
            assert_eq!(is_clearly_nearer(this, that), expected, "{this:?} {that:?}");
        }
    }

    #[test]
    fn a_reason_that_waiting_may_mend_is_shown_before_one_that_it_cannot() {
        let (board, sessions) = new(2, Some(&host()));
        board.set(0, &host(), connecting(Some(Reason::NotAdmitted)));
        let shown = |expected: Option<Reason>| {
            assert!(
                matches!(sessions.state(), State::Connecting { last } if last == expected),
                "{:?}",
                sessions.state()
            );
        };
        shown(Some(Reason::NotAdmitted));
        board.set(1, &host(), connecting(Some(Reason::RelayUnreachable)));
        shown(Some(Reason::RelayUnreachable));
        board.clear(0);
        board.clear(1);
        assert_eq!(sessions.statuses().len(), 1, "one is always shown");
    }
}
