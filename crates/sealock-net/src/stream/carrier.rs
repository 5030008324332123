//! A leg at work: its frames in and out, until it is lost, replaced, or the stream is over.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use sealock_core::reason::Reason;
use sealock_proto::stream::{Decoder, Epoch, Event, Frame, Role};
use sealock_proto::wire::Message;
use tokio_util::sync::CancellationToken;

use super::leg::{Leg, LegReader, LegWriter, Parts, lost_reading, lost_writing};
use super::pace::Pace;
use super::way::{Next, Way};
use super::{Shared, until};
use crate::message;
use crate::session::ConduitWay;

/// How much is made ready for the leg at once: enough to fill it, little enough to stay fresh.
const BATCH: usize = 128 * 1024;
/// The most that is read from the leg at once.
const CHUNK: usize = 128 * 1024;
/// How long the first leg may take to be answered.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

/// How long the other side may take to answer the end of the stream on a leg that works.
const GOODBYE_DEADLINE: Duration = Duration::from_secs(10);
/// How long a leg whose stream is over may take to end at both of its ends.
const PART_DEADLINE: Duration = Duration::from_secs(2); // a round trip, and some that were lost

/// A leg with all that its bytes need on their way.
pub(super) struct Carrier {
    reader: LegReader,
    writer: LegWriter,
    leaving: CancellationToken,
    /// How conduits lead to the leg's relay.
    conduits: Option<Arc<ConduitWay>>,
    pace: Pace,
    /// It has been seen that the leg is to be left.
    left: bool,
    epoch: Epoch,
    /// Until when the other side must have answered our ATTACH.
    answer_by: Option<Instant>,
    decoder: Decoder,
    outbox: Outbox,
    /// The other side will say no more.
    silent: bool,
    released: bool,
    /// Until when the other side must have said its last word.
    goodbye_by: Option<Instant>,
    /// The leg before this one, until this one is known to carry.
    former: Option<Box<(LegWriter, LegReader)>>,
}

/// How a leg's work ended.
pub(super) enum Ended {
    /// The stream is over and the leg closed.
    Over,
    /// There is another leg; this one still works.
    Next(Box<Next>),
    /// The leg is of no more use.
    Lost(Reason),
}

impl Carrier {
    /// The first leg.
    pub(super) fn new(leg: Leg) -> Self {
        Self::later(leg, Epoch::FIRST, None)
    }

    /// A later leg, that must be answered in time.
    pub(super) fn later(leg: Leg, epoch: Epoch, answer_by: Option<Instant>) -> Self {
        let Parts {
            writer,
            reader,
            leaving,
            way,
        } = leg.into_parts();
        Self {
            reader,
            writer,
            leaving,
            conduits: way,
            pace: Pace::default(),
            left: false,
            epoch,
            answer_by,
            decoder: Decoder::new(),
            outbox: Outbox::default(),
            silent: false,
            released: false,
            goodbye_by: None,
            former: None,
        }
    }

    /// Ends the leg of a stream that is over. Everybody on the way sees a clean end, also when the process and its
    /// session end right afterwards.
    pub(super) async fn part(mut self: Box<Self>) {
        // Both sides have said their last word; a failure to say goodbye changes nothing.
        let _goodbye = self.writer.finish();
        let Self {
            writer,
            reader,
            silent,
            ..
        } = &mut *self;
        let heard = async move {
            while !*silent && matches!(reader.read_chunk(CHUNK).await, Ok(Some(_))) {}
        };
        let ended = async { tokio::join!(writer.stopped(), heard) };
        tokio::time::timeout(PART_DEADLINE, ended).await.ok();
    }

    /// Goes on with bytes that were read from the leg before.
    pub(super) fn go_on_with(&mut self, decoder: Decoder) {
        self.decoder = decoder;
    }

    pub(super) fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Another leg takes this one's place; this one is closed when the other is known to carry.
    pub(super) fn succeed(&mut self, successor: Self) {
        let former = std::mem::replace(self, successor);
        self.former = Some(Box::new((former.writer, former.reader)));
        if self.answer_by.is_none() {
            self.close_former();
        }
    }

    // A clean end in both directions: nothing was lost on it.
    fn close_former(&mut self) {
        if let Some(former) = self.former.take() {
            let (mut writer, mut reader) = *former;
            // One that is lost already needs no closing.
            let _closed = writer.finish();
            reader.stop(Reason::Done);
        }
    }

    /// Tells whoever is at the other end why the leg is of no more use.
    pub(super) fn abandon(&mut self, reason: Reason) {
        if let Some(conduits) = self.conduits.as_ref().filter(|_| self.writer.is_conduit()) {
            conduits.rest();
        }
        self.writer.reset(reason);
        self.reader.stop(reason);
    }

    /// The opener speaks first and hears meanwhile whether the provider took the leg.
    pub(super) async fn open(&mut self, shared: &Shared) -> Result<(), Reason> {
        let begun = Instant::now();
        shared
            .machine
            .lock()
            .attach(begun, None)
            .map_err(|_| Reason::Internal)?;
        let Self {
            reader,
            writer,
            outbox,
            ..
        } = self;
        // A first leg is never a conduit.
        let reader = reader.of_session().ok_or(Reason::Internal)?;
        // One future for the whole wait: a message must not be read by halves.
        let answer = message::read(reader);
        tokio::pin!(answer);
        let answer = loop {
            still_wanted(shared)?;
            let turn = outbox.fill(shared);
            tokio::select! {
                biased; // an answer decides whether there is anything more to say
                answer = &mut answer => break answer,
                sent = outbox.send(writer), if !turn.is_idle => sent?,
                () = shared.driver.notified() => {}
                () = until(Some(begun + ANSWER_DEADLINE)) => return Err(Reason::OpenTimeout),
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
    pub(super) async fn accept(&mut self, shared: &Shared) -> Result<(), Reason> {
        let attach = loop {
            still_wanted(shared)?;
            match self.decoder.next() {
                Ok(Some(Frame::Attach(attach))) => break attach,
                Ok(None) => {}
                Ok(Some(_)) | Err(_) => return Err(Reason::ProtocolViolation),
            }
            tokio::select! {
                biased; // bytes that came count, even when the user has just given up
                chunk = self.reader.read_chunk(CHUNK) => {
                    self.decoder.push(chunk?.ok_or(Reason::PeerLost)?);
                }
                () = shared.driver.notified() => {}
            }
        };
        self.epoch = attach.epoch;
        shared
            .machine
            .lock()
            .accept_attach(Instant::now(), &attach, None)
            .map_err(|_| Reason::ProtocolViolation)?;
        self.heard(shared)
    }

    /// Carries the stream over the leg for as long as that is the thing to do.
    ///
    /// # Cancel safety
    /// Safe: it can be called again and goes on where it was.
    pub(super) async fn carry(&mut self, shared: &Shared, way: &mut Way) -> Ended {
        // What came together with the ATTACH.
        if let Err(reason) = self.heard(shared) {
            return Ended::Lost(reason);
        }
        loop {
            let turn = self.prepare(shared);
            if turn.is_idle && self.released {
                return Ended::Over;
            }
            if turn.wants_leg {
                way.want();
            }
            if turn.is_attached {
                self.answer_by = None;
                self.close_former();
            }
            if turn.is_ending && self.goodbye_by.is_none() {
                self.goodbye_by = Some(Instant::now() + GOODBYE_DEADLINE);
            }
            let resume = shared.resume.get();
            let moves = resume.is_some() && way.is_open();
            let own = earliest(self.answer_by, self.goodbye_by);
            let outcome = tokio::select! {
                biased; // what comes in frees buffers and may end the stream, so it goes before what goes out
                chunk = self.reader.read_chunk(CHUNK), if !self.silent => match chunk {
                    Ok(Some(chunk)) => {
                        self.moved(chunk.len(), (shared, way));
                        self.decoder.push(chunk);
                        self.heard(shared)
                    }
                    // Only frames end a stream. A leg that ends without is a leg that was lost.
                    Ok(None) => {
                        self.silent = true;
                        if shared.verdict().is_some() { Ok(()) } else { Err(Reason::SessionLost) }
                    }
                    Err(error) => Err(lost_reading(&error)),
                },
                sent = self.outbox.send(&mut self.writer), if !turn.is_idle => sent.map(|()| self.moved(turn.size, (shared, way))),
                () = shared.driver.notified() => Ok(()),
                () = self.leaving.cancelled(), if !self.left => {
                    self.left = true;
                    shared.machine.lock().go_away();
                    way.want();
                    Ok(())
                }
                next = next_leg(shared, way), if moves => match next {
                    Ok(next) => return Ended::Next(Box::new(next)),
                    // The leg that is there is as good as before; who took the right back will cut it.
                    Err(reason) => {
                        tracing::debug!(reason = reason.code(), "a stream stays on its leg");
                        Ok(())
                    }
                },
                () = until(earliest(turn.deadline, own)) => self.timeout(shared),
            };
            if let Err(reason) = outcome {
                return Ended::Lost(reason);
            }
        }
    }

    /// Counts bytes, and has the opener of a bulk stream look for the leg that carries most: a conduit, unless that turns
    /// out to be slower.
    fn moved(&mut self, length: usize, (shared, way): (&Shared, &mut Way)) {
        let bulk = shared.bulk;
        let Some(rate) = self.pace.moved(length, Instant::now(), bulk.stretch) else {
            return;
        };
        if self.writer.is_conduit() {
            if rate < way.before_conduit() / bulk.part {
                tracing::debug!(rate, "a stream goes back from its conduit");
                way.leave_conduit();
            }
        } else if rate >= bulk.rate && self.conduits.as_ref().is_some_and(|it| it.is_open()) {
            way.want_conduit(rate);
        }
    }

    fn timeout(&self, shared: &Shared) -> Result<(), Reason> {
        let now = Instant::now();
        shared.machine.lock().handle_timeout(now);
        if self.answer_by.is_some_and(|by| by <= now) {
            return Err(Reason::OpenTimeout);
        }
        // Whoever can be heard and does not answer is owed nothing more.
        if self.goodbye_by.is_some_and(|by| by <= now) {
            return Err(Reason::Cancelled);
        }
        Ok(())
    }

    /// Takes over what the decoder has, frame by frame.
    fn heard(&mut self, shared: &Shared) -> Result<(), Reason> {
        let mut machine = shared.machine.lock();
        let now = Instant::now();
        while let Some(frame) = self.decoder.next().map_err(|_| Reason::ProtocolViolation)? {
            // On a first leg there is no proof, and no place for a second ATTACH: the machine says so.
            if let Frame::Attach(attach) = &frame
                && self.epoch > Epoch::FIRST
            {
                // Somebody on the way who answers in the accepter's place gets no stream.
                let ticket = shared.resume.get().map(|resume| &resume.ticket);
                let proof = attach.proof.as_ref();
                if !ticket.is_some_and(|it| it.verify(Role::Accepter, attach.epoch, proof)) {
                    tracing::warn!(
                        epoch = attach.epoch.0,
                        "a leg was answered without the stream's secret"
                    );
                    return Err(Reason::SessionLost);
                }
            }
            machine
                .handle_frame(now, self.epoch, frame)
                .map_err(|violation| {
                    // Nothing that such a peer would still say is waited for; the leg's reset tells it why.
                    tracing::warn!(err = %violation, "the peer broke the stream's protocol");
                    Reason::ProtocolViolation
                })?;
        }
        shared.memory.settle(&mut machine);
        Ok(())
    }

    /// Passes events on and makes frames ready.
    fn prepare(&mut self, shared: &Shared) -> Turn {
        let turn = self.outbox.fill(shared);
        self.released |= turn.released;
        turn
    }
}

async fn next_leg(shared: &Shared, way: &mut Way) -> Result<Next, Reason> {
    let epoch = shared.machine.lock().next_epoch();
    match shared.resume.get() {
        Some(resume) => way.next(resume, epoch).await,
        None => std::future::pending().await,
    }
}

/// Before both sides have attached, a stream that its user gave up has nobody to say goodbye to.
fn still_wanted(shared: &Shared) -> Result<(), Reason> {
    if shared.machine.lock().is_ending() {
        return Err(Reason::Cancelled);
    }
    Ok(())
}

fn earliest(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    one.into_iter().chain(other).min()
}

/// What a look at the machine showed.
#[derive(Debug, Clone, Copy)]
struct Turn {
    /// There is nothing to write.
    is_idle: bool,
    /// How much there is to write.
    size: usize,
    /// The peer needs nothing more.
    released: bool,
    /// The other side asked for another leg.
    wants_leg: bool,
    /// Both sides have attached.
    is_attached: bool,
    /// The stream is over, or about to be.
    is_ending: bool,
    deadline: Option<Instant>,
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

    /// Passes events on and takes the frames that the machine has.
    fn fill(&mut self, shared: &Shared) -> Turn {
        let mut machine = shared.machine.lock();
        let before = shared.pass_on(&mut machine);
        let mut size = self.size();
        while size < BATCH {
            let Some(frame) = machine.poll_frame() else {
                break;
            };
            self.push(frame);
            size = self.size();
        }
        // Saying the last word may have released the stream, also when there was no more to say: where both sides said
        // theirs at once, nothing else would ever wake this task.
        let after = shared.pass_on(&mut machine);
        Turn {
            is_idle: size == 0,
            size,
            released: before.released || after.released,
            wants_leg: before.wants_leg || after.wants_leg,
            is_attached: machine.is_attached(),
            is_ending: machine.is_ending(),
            deadline: machine.next_timeout(),
        }
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
    async fn send(&mut self, writer: &mut LegWriter) -> Result<(), Reason> {
        if !self.headers.is_empty() {
            self.chunks.push(self.headers.split().freeze());
        }
        let sent = writer.write_all_chunks(&mut self.chunks).await;
        sent.map_err(|error| lost_writing(&error))?;
        // A stream that idles keeps no buffers.
        *self = Self::default();
        Ok(())
    }
}

/// What the events of a machine ask of its driver.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct News {
    pub(super) released: bool,
    pub(super) wants_leg: bool,
}

impl News {
    pub(super) fn note(&mut self, event: Event) {
        self.released |= event == Event::Released;
        self.wants_leg |= event == Event::LegWanted;
    }
}
