//! Keeps an agent's sessions: a slot for each, which makes one, replaces it when there is cause, and starts over when
//! it is lost.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sealock_core::identity::Principal;
use sealock_core::name::NodeName;
use sealock_core::reason::Reason;
use sealock_proto::wire::{Drain, SessionKind};
use tokio::sync::watch;
use tracing::Instrument;

use super::board::{Board, State};
use super::live::{self, Ended, Live};
use super::seats::{self, Seat, Seats};
use super::{Session, SessionConfig};
use crate::task::Scope;
use crate::transport::Connection;

/// How many sessions an agent keeps, each with another relay.
pub(super) fn slots(kind: SessionKind) -> usize {
    match kind {
        SessionKind::Full => 2, // the loss of one relay then leaves a way that is up already
        SessionKind::CallerOnly => 1,
    }
}

/// What the slots share.
struct Keeping {
    config: Arc<SessionConfig>,
    board: Board,
    seats: Seats,
}

pub(super) async fn keep(config: Arc<SessionConfig>, board: Board) {
    let seats = Seats::new(&config.relays, config.instance, config.region.clone());
    seats.update(&config.list.current());
    let keeping = Arc::new(Keeping {
        config,
        board,
        seats,
    });
    let slots = (0..slots(keeping.config.kind)).map(|slot| keep_slot(Arc::clone(&keeping), slot));
    let slots = futures_util::future::join_all(slots);
    tokio::join!(slots, keeping.follow_list(), keeping.survey());
}

async fn keep_slot(keeping: Arc<Keeping>, slot: usize) {
    loop {
        if !keeping.seats.has_free() {
            keeping.board.clear(slot);
        }
        let seat = keeping.seats.take().await;
        let began = Instant::now();
        let (seat, reason) = match keeping.establish(&seat).await {
            Ok(live) => hold(&keeping, slot, live, seat).await,
            Err(Failed::Doubled) => continue,
            Err(Failed::Reason(reason)) => (seat, reason),
        };
        let state = State::Connecting { last: Some(reason) };
        keeping.board.set(slot, seat.address(), state);
        seat.failed(reason, began.elapsed());
        report(&seat, reason);
    }
}

/// Why an attempt brought no session.
enum Failed {
    /// Another session is with this relay already, at another address.
    Doubled,
    Reason(Reason),
}

fn report(seat: &Seat, reason: Reason) {
    let relay = seat.address();
    if reason == Reason::Superseded {
        tracing::error!(%relay, reason = reason.code(), "another machine uses this agent's identity");
    } else if !reason.is_transient() {
        tracing::warn!(%relay, reason = reason.code(), "the relay refuses the session; trying again cannot help");
    } else {
        tracing::info!(%relay, reason = reason.code(), "no session to the relay");
    }
}

/// Keeps a session, and those that take its place, until one is lost; says which and why.
async fn hold(keeping: &Keeping, slot: usize, mut live: Live, mut seat: Seat) -> (Seat, Reason) {
    let retired = Scope::new("retired sessions");
    loop {
        let session = live.session.clone();
        keeping
            .board
            .set(slot, seat.address(), State::Up(session.clone()));
        let next = keeping.replacement(&session, &seat, live.renewed.clone());
        let draining = |drain: Drain| {
            keeping.seats.add(&drain.successors);
            keeping.board.touch();
        };
        let running = live.run(&keeping.config, next, draining);
        match running.instrument(session.span.clone()).await {
            Ended::Replaced(next) => {
                let Next {
                    live: newer,
                    seat: newer_seat,
                } = *next;
                live = newer;
                if let Some(newer) = newer_seat {
                    if session.is_retiring() {
                        // The relay drains; another of this agent's sessions may come back to it when it has.
                        seat.failed(Reason::Draining, Duration::ZERO);
                    }
                    seat = newer;
                }
                // The next one is shown before anybody is told to leave this one.
                keeping
                    .board
                    .set(slot, seat.address(), State::Up(live.session.clone()));
                session.retire();
                let (offered, span) = (keeping.config.offered.clone(), session.span.clone());
                retired.spawn("retire", live::retire(session, offered).instrument(span));
            }
            Ended::Lost(reason) => {
                session
                    .span
                    .in_scope(|| tracing::info!(reason = reason.code(), "session ended"));
                session.connection.close(reason);
                session.retire();
                return (seat, reason);
            }
        }
    }
}

/// What takes the place of a session.
pub(super) struct Next {
    live: Live,
    /// When it is with another relay.
    seat: Option<Seat>,
}

/// Before the relays that are not in use are looked at for the first time: whoever starts has more to do.
const FIRST_SURVEY: Duration = Duration::from_secs(5);
const SURVEY_EVERY: Duration = Duration::from_secs(600); // distances change with routes, a few times a day

/// The name of the relay at the other end.
pub(super) fn relay_name(connection: &Connection) -> Option<NodeName> {
    match &connection.peer()?.id.principal {
        Principal::Relay(name) => Some(name.clone()),
        Principal::Agent(_) | Principal::User { .. } | Principal::Controller(_) => None,
    }
}

impl Keeping {
    async fn follow_list(&self) {
        let mut list = self.config.list.changes();
        while list.changed().await.is_ok() {
            let relays = Arc::clone(&list.borrow_and_update());
            self.seats.update(&relays);
        }
    }

    /// Measures from time to time how far the relays are, also those that no session is with.
    async fn survey(&self) {
        if self.config.kind == SessionKind::CallerOnly {
            return; // a short-lived program takes what it finds
        }
        let mut pause = FIRST_SURVEY;
        loop {
            tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
            let sessions = self.board.sessions();
            if sessions.is_empty() {
                // Whoever has no session has more to do, and so may the relays.
                pause = FIRST_SURVEY;
                continue;
            }
            pause = SURVEY_EVERY;
            for session in sessions {
                self.seats.measured(session.relay(), None, session.rtt());
            }
            for address in self.seats.unheld() {
                if let Ok(connection) = self.config.dialer.dial(&address).await {
                    let name = relay_name(&connection);
                    self.seats.measured(&address, name, connection.rtt());
                    connection.close(Reason::Cancelled);
                }
            }
        }
    }

    async fn establish(&self, seat: &Seat) -> Result<Live, Failed> {
        let renewed = self.renewed();
        let relay = seat.address();
        let dialled = self.config.dialer.dial(relay).await;
        let connection = dialled.map_err(|error| {
            tracing::debug!(%relay, err = %error, "dialling the relay failed");
            Failed::Reason(error.reason())
        })?;
        if relay_name(&connection).is_some_and(|name| seat.is_doubled_by(&name)) {
            connection.close(Reason::Cancelled);
            return Err(Failed::Doubled);
        }
        self.seats.measured(relay, None, connection.rtt());
        let welcomed = live::welcome(&self.config, connection, relay, renewed).await;
        welcomed.map_err(Failed::Reason)
    }

    /// Taken before a handshake: a renewal during it may come too late for it.
    fn renewed(&self) -> watch::Receiver<()> {
        let mut renewed = self.config.renewed.clone();
        renewed.mark_unchanged();
        renewed
    }

    /// Waits for a cause to leave a session, and makes the one that takes its place while the old one still serves.
    ///
    /// There are four causes: the identity was renewed, the relay drains (then the next one is with another relay, when
    /// there is one that no other session is with), another relay is better by far, and the dialler found a better way
    /// to the same relay.
    async fn replacement(
        &self,
        session: &Session,
        seat: &Seat,
        mut renewed: watch::Receiver<()>,
    ) -> Next {
        let mut is_renewed = false;
        loop {
            let made = tokio::select! {
                biased; // a relay that drains takes no session with a new identity either
                () = session.retiring() => {
                    let seat = self.seats.take().await;
                    let made = self.establish(&seat).await;
                    if let Err(Failed::Reason(reason)) = &made {
                        seat.failed(*reason, Duration::ZERO);
                    }
                    made.map(|live| Next { live, seat: Some(seat) })
                }
                seat = self.seats.take_better(seat), if !is_renewed => {
                    let made = self.establish(&seat).await;
                    if let Err(Failed::Reason(reason)) = &made {
                        seat.failed(*reason, Duration::ZERO);
                    }
                    made.map(|live| Next { live, seat: Some(seat) })
                }
                changed = renewed.changed(), if !is_renewed => {
                    if changed.is_err() {
                        std::future::pending::<()>().await;
                    }
                    is_renewed = true;
                    continue;
                }
                made = self.establish(seat), if is_renewed => made.map(|live| Next { live, seat: None }),
                better = self.config.dialer.better(seat.address(), &session.connection), if !is_renewed => {
                    let made = live::welcome(&self.config, better, seat.address(), self.renewed()).await;
                    made.map(|live| Next { live, seat: None }).map_err(Failed::Reason)
                }
            };
            match made {
                Ok(next) => return next,
                Err(Failed::Doubled) => {}
                Err(Failed::Reason(reason)) => {
                    tracing::info!(
                        reason = reason.code(),
                        "nothing takes the session's place yet"
                    );
                    // A relay that begins to drain is not waited for.
                    let pause = tokio::time::sleep(seats::unhurried());
                    tokio::select! {
                        () = pause => {}
                        () = session.retiring(), if !session.is_retiring() => {}
                    }
                }
            }
        }
    }
}
