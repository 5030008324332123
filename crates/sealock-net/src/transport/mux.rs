//! Many streams over one ordered pipe: yamux for bytes and windows, and a control stream of ours for everything that
//! it cannot say: reasons, clean ends, how many streams may be open, signs of life and farewells.
//!
//! The dialling side opens the control stream first of all. Only its words end anything cleanly; what the mux or the
//! pipe do by themselves is a loss. A task of its own drives each connection and is all that touches the pipe.
//! Deliberately absent: who the other side is (the caller knows from TLS), and what the pipe is.

mod driver;
mod frames;
#[cfg(test)]
mod hostile;
mod lane;
mod wire;
mod word;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use sealock_core::reason::Reason;
use tokio::sync::{Notify, Semaphore, mpsc, oneshot, watch};

use super::{Lost, Settings};
use crate::identity::PeerIdentity;
use crate::task::Spawner;
use driver::Driver;
use lane::Lane;
pub(crate) use lane::{RecvHalf, SendHalf};
pub(crate) use wire::Pipe;
use word::Word;

/// Which side of a connection this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// It dialled.
    Dials,
    /// It listens.
    Listens,
}

/// What is known of the other side before the first stream.
#[derive(Debug)]
pub(crate) struct Facts {
    pub(crate) peer: Option<PeerIdentity>,
    pub(crate) alpn: Option<Vec<u8>>,
    pub(crate) remote: Option<SocketAddr>,
}

/// A connection whose streams share one pipe.
#[derive(Debug, Clone)]
pub(crate) struct Connection(Arc<Handle>);

/// Held by the connection's clones and its streams; closes the connection when they are gone.
#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
    opens: mpsc::Sender<Opening>,
    facts: Facts,
    number: usize,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.close(Reason::Done);
    }
}

/// Somebody who waits for a stream; who gives up leaves no stream behind.
#[derive(Debug)]
struct Opening {
    handle: Arc<Handle>,
    answer: oneshot::Sender<(SendHalf, RecvHalf)>,
}

/// What the driver, the connection and its streams share.
#[derive(Debug)]
struct Shared {
    /// Wakes the driver.
    driver: AtomicWaker,
    words: Mutex<BytesMut>,
    lanes: Mutex<BTreeMap<u32, Arc<Lane>>>,
    /// Streams without halves, whose last word has to leave before they do.
    retired: Mutex<Vec<yamux::Stream>>,
    arrived: Mutex<VecDeque<Arc<Lane>>>,
    arrival: Notify,
    /// What the other side allows beyond what has been opened.
    may_open: Semaphore,
    places: Mutex<Places>,
    lost: watch::Sender<Option<Lost>>,
    /// Why this side leaves, once it does.
    farewell: Mutex<Option<Reason>>,
    rtt_micros: AtomicU64,
    /// Streams that carry somebody's bytes.
    attending: AtomicUsize,
    /// Frames that came for streams and that nobody has read.
    kept: AtomicUsize,
    leaving: Leaving,
}

/// Whether what is written leaves, or the other side reads nothing.
#[derive(Debug, Default)]
struct Leaving {
    /// The pipe takes no more for now.
    held: AtomicBool,
    /// Everything has left since places were told last.
    left: AtomicBool,
}

impl Leaving {
    fn hold(&self) {
        self.held.store(true, Ordering::Relaxed);
    }

    /// Says whether that is news.
    fn release(&self) -> bool {
        self.left.store(true, Ordering::Relaxed);
        self.held.swap(false, Ordering::Relaxed)
    }

    fn is_held(&self) -> bool {
        self.held.load(Ordering::Relaxed) && !self.left.load(Ordering::Relaxed)
    }
}

/// How many streams the other side may have open.
#[derive(Debug)]
struct Places {
    /// How many at once.
    limit: u32,
    /// How many of its streams are there, and how many there have been.
    open: u64,
    opened: u64,
    /// What it was told: so many since the beginning.
    told: u64,
}

impl Places {
    /// What to tell the other side, when that is more than it was told.
    fn grant(&mut self) -> Option<u64> {
        let total = self.opened + u64::from(self.limit).saturating_sub(self.open);
        (total > self.told).then(|| {
            self.told = total;
            total
        })
    }
}

/// RFC 9000 §20.1 PROTOCOL_VIOLATION, the code that all carriers use for it.
const VIOLATION: Lost = Lost::Transport { code: 0x0a };
/// Frames of one stream that may wait to be read. Each costs about 100 bytes beside what it carries, and a window holds
/// fewer of the smallest that honest agents send.
const KEPT_OF_ONE: usize = 65_536;
/// Frames of all streams that may wait, 100 MiB, until those streams that keep more than their share are given up.
const KEPT_OF_ALL: usize = 1 << 20;
const KEPT_SHARE: usize = 1_024; // what 1 024 streams come to, once more as much
const OPENS_WAITING: usize = 64; // the driver takes them as fast as it runs
static NUMBERS: AtomicUsize = AtomicUsize::new(0);
const UNKNOWN_RTT: u64 = u64::MAX;

/// Makes a connection of a pipe whose other end is known; `tasks` drive it.
pub(crate) fn start(
    pipe: Box<dyn Pipe>,
    side: Side,
    settings: &Settings,
    facts: Facts,
    tasks: &Spawner,
) -> Connection {
    let (opens, opening) = mpsc::channel(OPENS_WAITING);
    let shared = Arc::new(Shared {
        driver: AtomicWaker::new(),
        words: Mutex::default(),
        lanes: Mutex::default(),
        retired: Mutex::default(),
        arrived: Mutex::default(),
        arrival: Notify::new(),
        may_open: Semaphore::new(0),
        places: Mutex::new(Places {
            limit: settings.streams,
            open: 0,
            opened: 0,
            told: 0,
        }),
        lost: watch::Sender::new(None),
        farewell: Mutex::default(),
        rtt_micros: AtomicU64::new(UNKNOWN_RTT),
        attending: AtomicUsize::new(0),
        kept: AtomicUsize::new(0),
        leaving: Leaving::default(),
    });
    let driver = Driver::new(pipe, side, settings, Arc::clone(&shared), opening);
    tasks.spawn("mux", driver.run());
    Connection(Arc::new(Handle {
        shared,
        opens,
        facts,
        // Odd, as no address is that other carriers number their connections by.
        number: NUMBERS.fetch_add(2, Ordering::Relaxed) | 1,
    }))
}

impl Shared {
    fn lost(&self) -> Option<Lost> {
        self.lost.borrow().clone()
    }

    /// Queues a word for the other side. Each stream has six at most, and their number is limited.
    fn say(&self, word: Word) {
        self.words.lock().extend_from_slice(&word.encode());
        self.driver.wake();
    }

    /// Ends the connection for everybody here; the first cause stays.
    fn end(&self, lost: Lost) -> bool {
        let first = self.lost.send_if_modified(|slot| {
            let first = slot.is_none();
            if first {
                *slot = Some(lost);
            }
            first
        });
        if first {
            let lanes: Vec<_> = self.lanes.lock().values().cloned().collect();
            lanes.iter().for_each(|lane| lane.wake());
            self.arrived.lock().clear();
            self.arrival.notify_waiters();
        }
        first
    }

    fn rtt(&self) -> Option<Duration> {
        let micros = self.rtt_micros.load(Ordering::Relaxed);
        (micros != UNKNOWN_RTT).then(|| Duration::from_micros(micros))
    }

    fn close(&self, reason: Reason) {
        if self.end(Lost::ByUs) {
            *self.farewell.lock() = Some(reason);
        }
        self.driver.wake();
    }

    /// Forgets a stream whose halves are gone.
    fn retire(&self, lane: &Lane, stream: Option<yamux::Stream>) {
        self.lanes.lock().remove(&lane.id());
        self.kept.fetch_sub(lane.forget_kept(), Ordering::Relaxed);
        self.retired.lock().extend(stream);
        if lane.inbound {
            self.places.lock().open -= 1;
        }
        self.driver.wake(); // it tells the places that are free
    }

    /// How many streams to allow the other side, when that is more than it was told. Nothing while what was written
    /// does not leave: who reads nothing could open streams for ever, which stay until our last words have left.
    fn grant(&self) -> Option<u64> {
        if self.leaving.is_held() {
            return None;
        }
        let granted = self.places.lock().grant()?;
        self.leaving.left.store(false, Ordering::Relaxed);
        Some(granted)
    }

    /// Notes a frame that the mux keeps for a stream until it is read. A stream of which too many wait is given up, and
    /// no other with it: what it carries may come from far behind the other side.
    fn keep(&self, lane: u32) {
        let Some(lane) = self.lanes.lock().get(&lane).cloned() else {
            return; // of no stream that is open, which the mux drops, or the first of a stream
        };
        let (of_one, of_all) = (lane.keep(), self.kept.fetch_add(1, Ordering::Relaxed));
        if of_one >= KEPT_OF_ONE || of_all >= KEPT_OF_ALL && of_one >= KEPT_SHARE {
            lane.give_up(self);
        }
    }
}

impl Connection {
    pub(crate) fn peer(&self) -> Option<&PeerIdentity> {
        self.0.facts.peer.as_ref()
    }

    pub(crate) fn alpn(&self) -> Option<&[u8]> {
        self.0.facts.alpn.as_deref()
    }

    pub(crate) async fn open_bi(&self) -> Result<(SendHalf, RecvHalf), Lost> {
        let shared = &self.0.shared;
        let open = async {
            let place = shared.may_open.acquire().await.ok()?;
            let (answer, opened) = oneshot::channel();
            let handle = Arc::clone(&self.0);
            let ask = self.0.opens.send(Opening { handle, answer });
            ask.await.ok()?;
            place.forget(); // the other side counts it from here on
            opened.await.ok()
        };
        tokio::select! {
            biased; // a stream of a connection that has ended is of no use
            lost = self.closed() => Err(lost),
            opened = open => match opened {
                Some(halves) => Ok(halves),
                // The driver is gone, and has said why or been dropped with its endpoint.
                None => Err(shared.lost().unwrap_or(Lost::ByUs)),
            },
        }
    }

    pub(crate) async fn accept_bi(&self) -> Result<(SendHalf, RecvHalf), Lost> {
        let shared = &self.0.shared;
        loop {
            let mut arrival = std::pin::pin!(shared.arrival.notified());
            arrival.as_mut().enable();
            if let Some(lost) = shared.lost() {
                return Err(lost);
            }
            let next = shared.arrived.lock().pop_front();
            if let Some(lane) = next {
                if !shared.arrived.lock().is_empty() {
                    shared.arrival.notify_one(); // for the next one who waits
                }
                return Ok(lane::halves(lane, Arc::clone(&self.0)));
            }
            arrival.await;
        }
    }

    pub(crate) fn allow_streams(&self, streams: u32) {
        self.0.shared.places.lock().limit = streams;
        self.0.shared.driver.wake();
    }

    pub(crate) fn close(&self, reason: Reason) {
        self.0.shared.close(reason);
    }

    pub(crate) async fn closed(&self) -> Lost {
        let mut lost = self.0.shared.lost.subscribe();
        let ended = lost.wait_for(Option::is_some).await;
        ended
            .ok()
            .and_then(|lost| lost.clone())
            .unwrap_or(Lost::ByUs)
    }

    pub(crate) fn close_reason(&self) -> Option<Lost> {
        self.0.shared.lost()
    }

    pub(crate) fn rtt(&self) -> Option<Duration> {
        self.0.shared.rtt()
    }

    pub(crate) fn remote_address(&self) -> Option<SocketAddr> {
        self.0.facts.remote
    }

    pub(crate) fn id(&self) -> usize {
        self.0.number
    }

    pub(crate) fn closer(&self) -> Closer {
        Closer(Arc::downgrade(&self.0.shared))
    }
}

/// Closes a connection without keeping it.
#[derive(Debug)]
pub(crate) struct Closer(std::sync::Weak<Shared>);

impl Closer {
    /// Closes; says whether there was anything to close.
    pub(crate) fn close(&self, reason: Reason) -> bool {
        let shared = self.0.upgrade();
        if let Some(shared) = &shared {
            shared.close(reason);
        }
        shared.is_some()
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.0.strong_count() == 0
    }
}
