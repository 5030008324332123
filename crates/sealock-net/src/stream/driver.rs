//! The task behind a stream: moves frames between the machine and the leg, keeps its times, passes events on.

use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use sealock_core::reason::Reason;
use sealock_proto::stream::{Decoder, Epoch, Event, Frame, Role, Stream};
use sealock_proto::wire::Message;

use super::Shared;
use crate::message;
use crate::transport::{BiStream, RecvHalf, SendHalf};

/// How much is made ready for the leg at once: enough to fill it, little enough to stay fresh.
const BATCH: usize = 128 * 1024;
/// The most that is read from the leg at once.
const CHUNK: usize = 128 * 1024;

/// Runs a stream on its leg until the peer needs nothing more of it.
pub(super) async fn run(shared: Arc<Shared>, role: Role, leg: BiStream) {
    let BiStream {
        recv: mut reader,
        send: writer,
    } = leg;
    let mut driver = Driver::new(&shared, writer);
    let begun = match role {
        Role::Opener => driver.open(&mut reader).await,
        Role::Accepter => driver.accept(&mut reader).await,
    };
    let failed = match begun {
        Ok(()) => driver.carry(&mut reader).await,
        Err(reason) => Some(reason),
    };
    let Some(reason) = failed else { return };
    // Whoever is at the leg's other end learns why, too.
    driver.writer.reset(reason);
    reader.stop(reason);
    shared.machine.lock().fail(Instant::now(), reason);
    shared.pass_on(&mut shared.machine.lock());
}

struct Driver<'a> {
    shared: &'a Shared,
    writer: SendHalf,
    epoch: Epoch,
    decoder: Decoder,
    outbox: Outbox,
    released: bool,
}

impl<'a> Driver<'a> {
    fn new(shared: &'a Shared, writer: SendHalf) -> Self {
        Self {
            shared,
            writer,
            epoch: Epoch::FIRST,
            decoder: Decoder::new(),
            outbox: Outbox::default(),
            released: false,
        }
    }

    /// The opener speaks first and hears meanwhile whether the provider took the leg.
    async fn open(&mut self, reader: &mut RecvHalf) -> Result<(), Reason> {
        let attached = self.shared.machine.lock().attach(Instant::now(), None);
        self.epoch = attached.map_err(|_| Reason::Internal)?;
        let answer = message::read(reader);
        tokio::pin!(answer);
        let answer = loop {
            self.still_wanted()?;
            let idle = self.prepare();
            let deadline = self.shared.machine.lock().next_timeout();
            tokio::select! {
                biased; // an answer decides whether there is anything more to say
                answer = &mut answer => break answer,
                sent = self.outbox.send(&mut self.writer), if !idle => sent?,
                () = self.shared.driver.notified() => {}
                () = until(deadline) => return Err(Reason::OpenTimeout),
            }
        };
        match answer {
            Ok(Message::Opened(_)) => Ok(()),
            Ok(Message::Refused(reason)) => Err(reason),
            Ok(_) => Err(Reason::ProtocolViolation),
            Err(error) => Err(error.reason()),
        }
    }

    /// The accepter hears the opener's ATTACH before it says anything.
    async fn accept(&mut self, reader: &mut RecvHalf) -> Result<(), Reason> {
        let attach = loop {
            self.still_wanted()?;
            match self.decoder.next() {
                Ok(Some(Frame::Attach(attach))) => break attach,
                Ok(None) => {}
                Ok(Some(_)) | Err(_) => return Err(Reason::ProtocolViolation),
            }
            tokio::select! {
                biased; // bytes that came count, even when the user has just given up
                chunk = reader.read_chunk(CHUNK) => self.decoder.push(chunk?.ok_or(Reason::PeerLost)?),
                () = self.shared.driver.notified() => {}
            }
        };
        self.epoch = attach.epoch;
        self.shared
            .machine
            .lock()
            .accept_attach(Instant::now(), &attach, None)
            .map_err(|_| Reason::ProtocolViolation)?;
        self.heard()
    }

    /// Before both sides have attached, a stream that its user gave up has nobody to say goodbye to.
    fn still_wanted(&self) -> Result<(), Reason> {
        if self.shared.machine.lock().is_ending() {
            return Err(Reason::Cancelled);
        }
        Ok(())
    }

    /// Carries the stream over the leg. Returns why the leg is of no more use, or nothing when the stream is over.
    async fn carry(&mut self, reader: &mut RecvHalf) -> Option<Reason> {
        let mut hears = true;
        loop {
            let idle = self.prepare();
            if idle && self.released {
                // The peer has said its last word and so have we; a failure to say goodbye changes nothing.
                let _goodbye = self.writer.finish();
                return None;
            }
            let deadline = self.shared.machine.lock().next_timeout();
            let outcome = tokio::select! {
                biased; // what comes in frees buffers and may end the stream, so it goes before what goes out
                chunk = reader.read_chunk(CHUNK), if hears => match chunk {
                    Ok(Some(chunk)) => {
                        self.decoder.push(chunk);
                        self.heard()
                    }
                    // Only frames end a stream. A leg that ends without is a leg that was lost.
                    Ok(None) => {
                        hears = false;
                        if self.shared.machine.lock().verdict().is_some() { Ok(()) } else { Err(Reason::PeerLost) }
                    }
                    Err(error) => Err(error.reason()),
                },
                sent = self.outbox.send(&mut self.writer), if !idle => sent,
                () = self.shared.driver.notified() => Ok(()),
                () = until(deadline) => {
                    self.shared.machine.lock().handle_timeout(Instant::now());
                    Ok(())
                }
            };
            if let Err(reason) = outcome {
                return Some(reason);
            }
        }
    }

    /// Takes over what the decoder has, frame by frame.
    fn heard(&mut self) -> Result<(), Reason> {
        let mut machine = self.shared.machine.lock();
        let now = Instant::now();
        while let Some(frame) = self.decoder.next().map_err(|_| Reason::ProtocolViolation)? {
            machine
                .handle_frame(now, self.epoch, frame)
                .map_err(|violation| {
                    // Nothing that such a peer would still say is waited for; the leg's reset tells it why.
                    tracing::warn!(err = %violation, "the peer broke the stream's protocol");
                    Reason::ProtocolViolation
                })?;
        }
        Ok(())
    }

    /// Passes events on and makes frames ready; says whether there is nothing to write.
    fn prepare(&mut self) -> bool {
        let mut machine = self.shared.machine.lock();
        self.released |= self.shared.pass_on(&mut machine);
        let mut size = self.outbox.size();
        while size < BATCH {
            let Some(frame) = machine.poll_frame() else {
                break;
            };
            self.outbox.push(frame);
            size = self.outbox.size();
        }
        // Saying the last word may have released the stream, also when there was no more to say: where both sides said
        // theirs at once, nothing else would ever wake this task.
        self.released |= self.shared.pass_on(&mut machine);
        size == 0
    }
}

impl Shared {
    /// Tells of all events; says whether one of them releases the stream.
    fn pass_on(&self, machine: &mut Stream) -> bool {
        let mut released = false;
        while let Some(event) = machine.poll_event() {
            released |= event == Event::Released;
            self.announce(event);
        }
        released
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

/// Frames as bytes, on their way to the leg.
#[derive(Default)]
struct Outbox {
    chunks: Vec<Bytes>,
    headers: BytesMut,
}

impl Outbox {
    fn size(&self) -> usize {
        self.headers.len() + self.chunks.iter().map(Bytes::len).sum::<usize>()
    }

    fn push(&mut self, frame: Frame) {
        let encoded = frame.encode();
        self.headers.extend_from_slice(encoded.header.as_ref());
        if let Some(payload) = encoded.payload {
            self.chunks.push(self.headers.split().freeze());
            self.chunks.push(payload);
        }
    }

    /// Writes all of it.
    ///
    /// # Cancel safety
    /// Safe: what was written is taken off as it goes.
    async fn send(&mut self, writer: &mut SendHalf) -> Result<(), Reason> {
        if !self.headers.is_empty() {
            self.chunks.push(self.headers.split().freeze());
        }
        writer.write_all_chunks(&mut self.chunks).await?;
        // A stream that idles keeps no buffers.
        *self = Self::default();
        Ok(())
    }
}
