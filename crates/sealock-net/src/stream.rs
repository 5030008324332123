//! Drives a resumable stream over its legs: the state machine of `sealock-proto`, a task, and two halves for the user.
//!
//! The task owns the leg and is the only one who reads and writes it; the halves touch the machine alone and wake the
//! task. So a slow application never holds up acknowledgements, and a leg is exchanged under a live stream.
//! When both halves are dropped, the task stays until the peer has all it needs, or time is up.
//!
//! Legs come from a [`LegSource`] at the opener, and through a [`Door`](door::Door) at the accepter.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use bytes::Bytes;
use futures_util::FutureExt;
use parking_lot::Mutex;
use sealock_core::identity::AgentId;
use sealock_core::reason::Reason;
use sealock_proto::stream::{Event, Read, Role, Stream, StreamConfig, Ticket, WriteError};
use tokio::sync::Notify;

use crate::limit::PeerLimit;
use crate::task::Spawner;

mod carrier;
pub mod door;
mod driver;
mod leg;
mod memory;
mod pace;
mod way;

pub use leg::{Leg, LegSource, loses_only_the_leg};
pub use memory::MEMORY_LIMIT;
pub use pace::Bulk;
pub use way::Again;

use carrier::{Carrier, News};
use door::Place;
use memory::{Memory, Share, parking};
use way::{Asking, Gates, Way};

/// What all streams of an agent share; clones are the same.
#[derive(Debug, Clone)]
pub struct Streams {
    tasks: Spawner,
    memory: Memory,
    parking: PeerLimit,
    gates: Gates,
    tally: Arc<Tally>,
    bulk: Bulk,
}

impl Streams {
    /// Streams whose tasks live in `tasks`.
    #[must_use]
    pub fn new(tasks: Spawner) -> Self {
        Self {
            tasks,
            memory: Memory::new(MEMORY_LIMIT),
            parking: parking(),
            gates: Gates::default(),
            tally: Arc::default(),
            bulk: Bulk::default(),
        }
    }

    /// The same, with so much memory for all streams together.
    #[must_use]
    pub fn with_memory(self, limit: u64) -> Self {
        Self {
            memory: Memory::new(limit),
            ..self
        }
    }

    /// The same, with another measure of what is bulk.
    #[must_use]
    pub fn with_bulk(self, bulk: Bulk) -> Self {
        Self { bulk, ..self }
    }

    /// Begins a stream on a leg whose head was sent. Without `again` it ends with its first leg.
    ///
    /// # Errors
    /// [`Reason::Overloaded`] when the other streams hold all the memory; the leg is reset.
    pub fn open(
        &self,
        first: Leg,
        again: Option<Again>,
    ) -> Result<(StreamReader, StreamWriter), Reason> {
        let asking = Asking::new(again, self.gates.clone());
        self.start(Role::Opener, first, Way::Opener(Box::new(asking)))
    }

    /// Begins a stream on a leg that was offered and answered.
    ///
    /// # Errors
    /// [`Reason::Overloaded`] when the other streams hold all the memory; the leg is reset.
    pub fn accept(&self, first: Leg, place: Place) -> Result<(StreamReader, StreamWriter), Reason> {
        self.start(Role::Accepter, first, Way::Accepter(place))
    }

    fn start(
        &self,
        role: Role,
        first: Leg,
        way: Way,
    ) -> Result<(StreamReader, StreamWriter), Reason> {
        let Some((memory, initial_window)) = self.memory.enter() else {
            tracing::warn!("streams hold all the memory that they may have; one is refused");
            first.io.reset(Reason::Overloaded);
            return Err(Reason::Overloaded);
        };
        let config = StreamConfig {
            initial_window,
            ..StreamConfig::default()
        };
        let shared = Arc::new(Shared {
            machine: Mutex::new(Stream::new(Instant::now(), role, config)),
            resume: OnceLock::new(),
            bulk: self.bulk,
            memory,
            driver: Notify::new(),
            readable: Notify::new(),
            writable: Notify::new(),
        });
        let carrier = Box::new(Carrier::new(first));
        let driver = driver::run(
            Arc::clone(&shared),
            role,
            carrier,
            way,
            self.parking.clone(),
        );
        let driven = Counted::new(&self.tally, |tally| &tally.driven);
        // Not an async block, which would keep room for the driver twice.
        self.tasks.spawn("stream", driver.map(|()| drop(driven)));
        let used = Arc::new(Counted::new(&self.tally, |tally| &tally.used));
        Ok((
            StreamReader {
                shared: Arc::clone(&shared),
                _used: Arc::clone(&used),
            },
            StreamWriter {
                shared,
                ended: false,
                _used: used,
            },
        ))
    }

    /// How many bytes the streams hold and have promised to hold.
    #[must_use]
    pub fn memory(&self) -> u64 {
        self.memory.used()
    }

    /// How many streams wait for another leg.
    #[must_use]
    pub fn parked(&self) -> usize {
        self.parking.len()
    }

    /// How many streams that nobody uses any more have still a last word to say, or to hear.
    #[must_use]
    pub fn ending(&self) -> usize {
        let driven = self.tally.driven.load(Ordering::Relaxed);
        driven.saturating_sub(self.tally.used.load(Ordering::Relaxed))
    }
}

/// How many streams there are, and how many of them have a user.
#[derive(Debug, Default)]
struct Tally {
    driven: AtomicUsize,
    used: AtomicUsize,
}

/// One in a count of the tally, until dropped.
#[derive(Debug)]
struct Counted {
    tally: Arc<Tally>,
    count: fn(&Tally) -> &AtomicUsize,
}

impl Counted {
    fn new(tally: &Arc<Tally>, count: fn(&Tally) -> &AtomicUsize) -> Self {
        count(tally).fetch_add(1, Ordering::Relaxed);
        Self {
            tally: Arc::clone(tally),
            count,
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        (self.count)(&self.tally).fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Debug)]
struct Shared {
    machine: Mutex<Stream>,
    /// What later legs need; there once both agents have proved themselves.
    resume: OnceLock<Resume>,
    bulk: Bulk,
    memory: Share,
    /// The user changed the machine.
    driver: Notify,
    readable: Notify,
    writable: Notify,
}

/// What a stream needs to be taken up again.
#[derive(Debug)]
struct Resume {
    ticket: Arc<Ticket>,
    peer: AgentId,
}

impl Shared {
    /// Tells the halves of all events, and the driver what they ask of it.
    fn pass_on(&self, machine: &mut Stream) -> News {
        let mut news = News::default();
        while let Some(event) = machine.poll_event() {
            news.note(event);
            self.announce(event);
        }
        news
    }

    fn announce(&self, event: Event) {
        match event {
            Event::Readable | Event::FinReceived => self.readable.notify_one(),
            Event::Writable => self.writable.notify_one(),
            Event::PeerReset(_) | Event::Closed(_) => {
                self.readable.notify_one();
                self.writable.notify_one();
            }
            Event::Attached(_) | Event::Parked | Event::LegWanted | Event::Released => {}
        }
    }

    /// Ends the stream for this side alone.
    fn fail(&self, reason: Reason) {
        let mut machine = self.machine.lock();
        machine.fail(Instant::now(), reason);
        let _nobody_drives_on = self.pass_on(&mut machine);
    }

    fn verdict(&self) -> Option<Result<(), Reason>> {
        self.machine.lock().verdict()
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

/// The most that one read gives: what the machine holds in one piece is seldom more.
const READ_LIMIT: usize = 64 * 1024;

/// The half of a stream that bytes come from.
#[derive(Debug)]
pub struct StreamReader {
    shared: Arc<Shared>,
    _used: Arc<Counted>,
}

impl StreamReader {
    /// The next bytes; `None` at the clean end that the peer made. What is returned counts as delivered.
    ///
    /// # Errors
    /// The reason why the stream ended abnormally.
    ///
    /// # Cancel safety
    /// Safe: bytes are either returned or still to be read.
    pub async fn read(&mut self) -> Result<Option<Bytes>, Reason> {
        loop {
            let read = {
                let mut machine = self.shared.machine.lock();
                let memory = &self.shared.memory;
                memory.read(&mut machine, Instant::now(), READ_LIMIT)
            };
            match read {
                Read::Data(bytes) => {
                    self.shared.driver.notify_one();
                    return Ok(Some(bytes));
                }
                Read::End => {
                    self.shared.driver.notify_one();
                    return Ok(None);
                }
                Read::Broken(reason) => return Err(reason),
                Read::Blocked => self.shared.readable.notified().await,
            }
        }
    }
}

/// The half of a stream that bytes go to. Dropped without an end, it resets the stream as cancelled.
#[derive(Debug)]
pub struct StreamWriter {
    shared: Arc<Shared>,
    ended: bool,
    _used: Arc<Counted>,
}

impl StreamWriter {
    /// Takes all the bytes into the stream, waiting while its buffer is full.
    ///
    /// # Errors
    /// The reason why the stream ended.
    ///
    /// # Cancel safety
    /// Not safe: part of the bytes may have been taken.
    pub async fn write(&mut self, mut bytes: Bytes) -> Result<(), Reason> {
        while !bytes.is_empty() {
            let taken = {
                let mut machine = self.shared.machine.lock();
                let taken = self.shared.memory.write(&mut machine, &mut bytes);
                taken.map_err(reason_of)?
            };
            if taken > 0 {
                self.shared.driver.notify_one();
            } else {
                self.shared.writable.notified().await;
            }
        }
        Ok(())
    }

    /// From here on the stream outlives its legs: with proofs of this ticket, with this agent at the other end.
    pub(crate) fn outlive_legs(&self, ticket: Arc<Ticket>, peer: AgentId) {
        // A second time changes nothing; there is one handshake.
        let _first = self.shared.resume.set(Resume { ticket, peer });
        self.shared.driver.notify_one();
    }

    /// Ends this direction cleanly.
    ///
    /// # Errors
    /// The reason why the stream ended before.
    pub fn finish(&mut self) -> Result<(), Reason> {
        self.ended = true;
        let outcome = self.shared.machine.lock().finish();
        self.shared.driver.notify_one();
        outcome.map_err(reason_of)
    }

    /// Waits until both sides know how the stream ended; before that, a clean end is only what this side hopes for.
    ///
    /// # Errors
    /// The reason why it did not end cleanly.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn settled(&mut self) -> Result<(), Reason> {
        loop {
            if let Some(verdict) = self.shared.verdict() {
                return verdict;
            }
            self.shared.writable.notified().await;
        }
    }

    /// Ends the stream abnormally, both directions at once.
    pub fn reset(&mut self, reason: Reason) {
        self.ended = true;
        self.shared.machine.lock().reset(Instant::now(), reason);
        self.shared.driver.notify_one();
    }
}

impl Drop for StreamWriter {
    fn drop(&mut self) {
        if !self.ended {
            self.reset(Reason::Cancelled);
        }
    }
}

fn reason_of(error: WriteError) -> Reason {
    match error {
        WriteError::Ended(reason) => reason,
        // Our own halves finish once and write no more.
        WriteError::Finished => Reason::Internal,
    }
}
