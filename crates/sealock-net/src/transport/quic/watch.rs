//! Watches over one connection: asks the peer as [`Pulse`] says, and ends the connection that it gives up.
//!
//! Streams hold the watch, and those that carry somebody's bytes make it attentive. The library closes a connection
//! that is given up as if this side wished so; what really happened is kept here.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use noq::{ConnectionError, FrameStats, PathId, WeakConnectionHandle};
use sealock_core::reason::Reason;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::lost;
use super::places::Place;
use super::wire::Wire;
use crate::task::Scope;
use crate::transport::pulse::{Pulse, Seen, Side};
use crate::transport::{Lost, Settings};

/// How long a wire that was dialled outlives its connection. Longer than any silence is endured: a machine says of no
/// port of a process that lives that nobody listens there.
const OUTLIVES: Duration = Duration::from_secs(5);

/// The watch over a connection; it ends with the connection.
#[derive(Debug)]
pub(super) struct Watch {
    state: Arc<State>,
    /// Of all connections of an endpoint.
    _tasks: Arc<Scope>,
}

#[derive(Debug, Default)]
struct State {
    /// Streams that carry somebody's bytes.
    attending: AtomicUsize,
    begun: Notify,
    verdict: OnceLock<Lost>,
}

impl Watch {
    /// Begins with a connection that is up.
    pub(super) fn begin(
        connection: &noq::Connection,
        wire: Arc<Wire>,
        side: Side,
        settings: &Settings,
        tasks: Arc<Scope>,
    ) -> Arc<Self> {
        let state = Arc::new(State::default());
        let seldom = settings.seldom();
        let pulse = Pulse::new(side, settings.keep_alive, seldom, Instant::now());
        let round = Round {
            connection: connection.weak_handle(),
            wire,
            state: Arc::clone(&state),
            pulse,
            frames: FrameStats::default(),
            looked: Instant::now(),
            alive: Instant::now(),
        };
        let closed = connection.on_closed();
        tasks.spawn("watch", async move {
            let wire = Arc::clone(&round.wire);
            round.watch(async { drop(closed.await) }).await;
            if side == Side::Dialled {
                tokio::time::sleep(OUTLIVES).await;
            }
            drop(wire);
        });
        let _tasks = tasks;
        Arc::new(Self { state, _tasks })
    }

    /// How many streams carry somebody's bytes.
    pub(super) fn attending(&self) -> usize {
        self.state.attending.load(Ordering::Relaxed)
    }

    /// What a stream holds, beside its place.
    pub(super) fn hold(self: &Arc<Self>, place: Option<Place>) -> Arc<Hold> {
        if self.state.attending.fetch_add(1, Ordering::Relaxed) == 0 {
            self.state.begun.notify_one();
        }
        Arc::new(Hold {
            watch: Arc::clone(self),
            attends: AtomicBool::new(true),
            _place: place,
        })
    }

    /// How the connection ended, whatever the library calls it.
    pub(super) fn lost(&self, error: &ConnectionError) -> Lost {
        match (error, self.state.verdict.get()) {
            (ConnectionError::LocallyClosed, Some(verdict)) => verdict.clone(),
            (error, _) => lost(error),
        }
    }
}

/// A stream's part in the watch, until both of its halves are dropped.
#[derive(Debug)]
pub(super) struct Hold {
    watch: Arc<Watch>,
    attends: AtomicBool,
    /// Of a stream that the other side opened.
    _place: Option<Place>,
}

impl Hold {
    /// Whether the stream carries somebody's bytes.
    pub(super) fn attends(&self) -> bool {
        self.attends.load(Ordering::Relaxed)
    }

    /// From here on the stream alone is no reason to ask the peer more often.
    pub(super) fn stand_by(&self) {
        if self.attends.swap(false, Ordering::Relaxed) {
            self.watch.state.attending.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// See [`Watch::lost`].
    pub(super) fn lost(&self, error: &ConnectionError) -> Lost {
        self.watch.lost(error)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.stand_by();
    }
}

/// What the task of a watch goes by.
struct Round {
    /// The watch keeps no connection alive.
    connection: WeakConnectionHandle,
    wire: Arc<Wire>,
    state: Arc<State>,
    pulse: Pulse,
    /// What had come in at the last look.
    frames: FrameStats,
    /// When the last look was.
    looked: Instant,
    /// The look before the peer was heard for the last time: its machine may have spoken for it soon after.
    alive: Instant,
}

impl Round {
    async fn watch(mut self, closed: impl Future<Output = ()>) {
        let mut closed = pin!(closed);
        let mut next = Some(Instant::now());
        loop {
            tokio::select! {
                biased; // a connection that is over needs no more looks
                () = &mut closed => return,
                () = self.state.begun.notified() => if self.pulse.is_attentive() {
                    continue; // streams that come and go are not worth a question each
                },
                () = until(next) => {}
            }
            let Some(connection) = self.connection.upgrade() else {
                return;
            };
            next = self.look(&connection);
        }
    }

    fn look(&mut self, connection: &noq::Connection) -> Option<Instant> {
        let now = Instant::now();
        let path = connection.path(PathId::ZERO)?;
        let frames = connection.stats().frame_rx;
        let answered = frames.acks != self.frames.acks;
        let heard = frames != self.frames;
        self.frames = frames;
        let remote = path.remote_address().ok();
        let refused = |remote: SocketAddr| self.wire.refused(remote, self.alive);
        let seen = Seen {
            answered,
            heard,
            attended: self.state.attending.load(Ordering::Relaxed) > 0,
            refused: !heard && remote.is_some_and(refused),
            rtt: connection.rtt(PathId::ZERO).unwrap_or_default(),
        };
        if heard {
            self.alive = self.looked;
        }
        self.looked = now;
        let step = self.pulse.handle_look(now, seen);
        if step.doubt {
            match self.wire.follow_route() {
                Ok(true) => self.pulse.handle_move(),
                Ok(false) => {}
                Err(error) => {
                    tracing::debug!(err = %error, "there is no way to the peer at this time");
                }
            }
        }
        if step.probe {
            // The path is there, or the connection is over.
            path.ping().ok();
        }
        if let Some(verdict) = step.verdict {
            tracing::info!(err = %verdict, "the connection is given up");
            // The first verdict stands; there is no second.
            self.state.verdict.set(verdict).ok();
            connection.close(Reason::SessionLost.number().into(), b"");
        }
        step.next
    }
}

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}
