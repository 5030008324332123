//! Drives a resumable stream over its legs: the state machine of `sealock-proto`, a task, and two halves for the user.
//!
//! The task owns the leg and is the only one who reads and writes it; the halves touch the machine alone and wake the
//! task. So a slow application never holds up acknowledgements, and a leg can be exchanged under a live stream.
//! When both halves are dropped, the task stays until the peer has all it needs, or time is up.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use sealock_core::reason::Reason;
use sealock_proto::stream::{Event, Read, Role, Stream, StreamConfig, WriteError};
use tokio::sync::Notify;

use crate::task::Spawner;
use crate::transport::BiStream;

mod driver;

/// Begins a stream on its first leg: an opener has sent the leg's head, an accepter has also answered it.
#[must_use]
pub fn start(role: Role, leg: BiStream, tasks: &Spawner) -> (StreamReader, StreamWriter) {
    let shared = Arc::new(Shared {
        machine: Mutex::new(Stream::new(Instant::now(), role, config())),
        driver: Notify::new(),
        readable: Notify::new(),
        writable: Notify::new(),
    });
    tasks.spawn("stream", driver::run(Arc::clone(&shared), role, leg));
    (
        StreamReader {
            shared: Arc::clone(&shared),
        },
        StreamWriter {
            shared,
            ended: false,
        },
    )
}

fn config() -> StreamConfig {
    StreamConfig {
        // Of the resume window only the time that a settled stream waits for the peer's last word is used so far.
        resume_window: Duration::from_secs(10),
        ..StreamConfig::default()
    }
}

#[derive(Debug)]
struct Shared {
    machine: Mutex<Stream>,
    /// The user changed the machine.
    driver: Notify,
    readable: Notify,
    writable: Notify,
}

impl Shared {
    /// Tells the halves what happened.
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
}

/// The most that one read gives: what the machine holds in one piece is seldom more.
const READ_LIMIT: usize = 64 * 1024;

/// The half of a stream that bytes come from.
#[derive(Debug)]
pub struct StreamReader {
    shared: Arc<Shared>,
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
            let read = self.shared.machine.lock().read(Instant::now(), READ_LIMIT);
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
            let taken = self
                .shared
                .machine
                .lock()
                .write(&mut bytes)
                .map_err(reason_of)?;
            if taken > 0 {
                self.shared.driver.notify_one();
            } else {
                self.shared.writable.notified().await;
            }
        }
        Ok(())
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
