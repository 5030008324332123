//! Drives one mux connection: its streams, its control stream, its signs of life, and its end.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use futures_util::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::time::{Instant, Interval, MissedTickBehavior, Sleep};

use super::lane::{GREETING, Lane, halves};
use super::wire::{Heard, Pipe, Wire};
use super::word::{WORD, Word};
use super::{Opening, Shared, Side, VIOLATION};
use crate::transport::pulse::{self, Pulse, Seen};
use crate::transport::{Lost, Settings};

/// A frame holds what a stream reads and writes at once, and no frame may be longer; its header leaves together with it.
const FRAME: usize = 64 * 1024;
/// More streams than any setting allows, in both directions together.
const STREAMS: usize = 65_536;
const WINDOW: usize = yamux::DEFAULT_CREDIT as usize;
/// What the windows of streams that are read fast may grow by, all together: 1 Gbit/s at 128 ms, as with QUIC.
const GROWTH: usize = 16 * 1024 * 1024;
/// How long a farewell may take to leave, and the other side to hang up.
const FAREWELL: Duration = Duration::from_millis(300); // as long as an agent that stops waits for its last packets
const LEAST_TICK: Duration = Duration::from_millis(1); // an interval of nothing would panic
/// Ends that are looked at in one go, before the task lets others run.
const TURNS: usize = 64;

pub(super) struct Driver {
    mux: yamux::Connection<Wire>,
    side: Side,
    shared: Arc<Shared>,
    heard: Heard,
    opening: mpsc::Receiver<Opening>,
    /// Taken from `opening`, and waiting for the mux.
    next_open: VecDeque<Opening>,
    control: Option<yamux::Stream>,
    outgoing: BytesMut,
    incoming: BytesMut,
    numbers: Numbers,
    /// Words about streams whose first byte is still on its way, by the stream's number.
    early: BTreeMap<u32, Vec<Word>>,
    /// How many streams the other side has allowed since the beginning.
    granted: u64,
    /// What the other side asked last, to be answered.
    asked: Option<u64>,
    /// Whether the control stream ended; the connection did too then, or it is told so.
    deaf: bool,
    /// Whether the first byte of the control stream, which is no word, has been read.
    greeted: bool,
    tick: Interval,
    idle_timeout: Duration,
    pulse: Pulse,
    next_look: Pin<Box<Sleep>>,
    looks: bool,
    /// When the other side had been heard at the last look.
    heard_then: u64,
}

/// Which of the other side's streams have been seen. They may come a little out of order.
#[derive(Debug)]
struct Numbers {
    next: u32,
    missing: BTreeSet<u32>,
}

impl Numbers {
    fn is_new(&self, lane: u32) -> bool {
        lane % 2 == self.next % 2 && (lane >= self.next || self.missing.contains(&lane))
    }

    /// Notes a stream; says whether that was in order, with at most `room` streams left out before it.
    fn take(&mut self, lane: u32, room: usize) -> bool {
        if !self.is_new(lane) {
            return false;
        }
        if self.missing.remove(&lane) {
            return true;
        }
        let left_out = usize::try_from((lane - self.next) / 2).unwrap_or(usize::MAX);
        if left_out.saturating_add(self.missing.len()) > room {
            return false;
        }
        self.missing.extend((self.next..lane).step_by(2));
        self.next = lane.saturating_add(2);
        true
    }
}

impl Driver {
    pub(super) fn new(
        pipe: Box<dyn Pipe>,
        side: Side,
        settings: &Settings,
        shared: Arc<Shared>,
        opening: mpsc::Receiver<Opening>,
    ) -> Self {
        let heard = Heard::new();
        let wire = Wire::new(pipe, heard.clone(), Arc::clone(&shared));
        let mut config = yamux::Config::default();
        // Both numbers are ours to keep: the other side's streams are counted in `Places`, ours by its leave. The mux
        // would end the connection for one too many.
        config
            .set_max_connection_receive_window(Some(STREAMS * WINDOW + GROWTH))
            .set_max_num_streams(STREAMS)
            .set_split_send_size(FRAME);
        let mode = match side {
            Side::Dials => yamux::Mode::Client,
            Side::Listens => yamux::Mode::Server,
        };
        let mut tick = tokio::time::interval((settings.idle_timeout / 4).max(LEAST_TICK));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            mux: yamux::Connection::new(wire, config, mode),
            side,
            shared,
            heard,
            opening,
            next_open: VecDeque::new(),
            control: None,
            outgoing: BytesMut::new(),
            incoming: BytesMut::new(),
            numbers: Numbers {
                next: if side == Side::Dials { 2 } else { 3 }, // 1 is the control stream
                missing: BTreeSet::new(),
            },
            early: BTreeMap::new(),
            granted: 0,
            asked: None,
            deaf: false,
            greeted: side == Side::Dials, // only the dialling side begins with one
            tick,
            idle_timeout: settings.idle_timeout,
            pulse: Pulse::new(
                match side {
                    Side::Dials => pulse::Side::Dialled,
                    Side::Listens => pulse::Side::Listens,
                },
                settings.keep_alive,
                settings.seldom(),
                Instant::now(),
            ),
            next_look: Box::pin(tokio::time::sleep(Duration::ZERO)),
            looks: true,
            heard_then: 0,
        }
    }

    pub(super) async fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let ended = std::future::poll_fn(|cx| self.poll(cx)).await;
        shared.end(ended.clone());
        let farewell = shared.farewell.lock().take();
        let last = match (farewell, ended) {
            (Some(reason), _) => reason,
            (None, lost @ Lost::Transport { .. }) => lost.reason(),
            (None, _) => return,
        };
        // The other side hangs up when it has read this; until then its bytes are read, or the system would answer them
        // with a reset that overtakes the word.
        shared.say(Word::Close { reason: last });
        let leave = std::future::poll_fn(|cx| {
            shared.driver.register(cx.waker());
            loop {
                if self.write_words(cx).is_err() || self.deaf {
                    return Poll::Ready(());
                }
                match self.mux.poll_next_inbound(cx) {
                    // The control stream, if it was still on its way.
                    Poll::Ready(Some(Ok(stream))) if self.control.is_none() => {
                        self.control = Some(stream);
                    }
                    Poll::Ready(Some(Ok(_unwanted))) => {}
                    Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(()),
                    Poll::Pending => return Poll::Pending,
                }
            }
        });
        // The time-out is for a peer that does not hang up.
        let _over = tokio::time::timeout(FAREWELL, leave).await;
    }

    /// Goes on until the connection ends.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Lost> {
        self.shared.driver.register(cx.waker());
        for _ in 0..TURNS {
            if let Some(lost) = self.shared.lost() {
                return Poll::Ready(lost);
            }
            match self.turn(cx) {
                Ok(true) => {}
                Ok(false) => return Poll::Pending,
                Err(lost) => return Poll::Ready(lost),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Looks at everything once; says whether anything moved.
    fn turn(&mut self, cx: &mut Context<'_>) -> Result<bool, Lost> {
        let mut moved = self.open(cx)?;
        moved |= self.write_words(cx)?;
        moved |= self.read_words(cx)?;
        if self.tick.poll_tick(cx).is_ready() {
            if self.heard.silence() >= self.idle_timeout {
                return Err(Lost::Silent);
            }
            if self.deaf {
                return Err(VIOLATION); // the mux goes on without its control stream
            }
            moved = true;
        }
        moved |= self.look(cx)?;
        // Last: it also sends what the others above have written.
        match self.mux.poll_next_inbound(cx) {
            Poll::Pending => Ok(moved || self.shared.lost().is_some()),
            Poll::Ready(None) => Err(Lost::Cut),
            Poll::Ready(Some(Err(error))) => Err(broken(&error)),
            Poll::Ready(Some(Ok(stream))) => {
                self.take_in(stream, cx)?;
                Ok(true)
            }
        }
    }

    /// Asks whether the other side is there, as the pulse says.
    fn look(&mut self, cx: &mut Context<'_>) -> Result<bool, Lost> {
        let attended = self.shared.attending.load(Ordering::Relaxed) > 0;
        let is_due = self.looks && self.next_look.as_mut().poll(cx).is_ready();
        if !is_due && (!attended || self.pulse.is_attentive()) {
            return Ok(false);
        }
        // Everything shares one pipe, where an answer waits its turn: whatever comes shows as much as that.
        let heard = self.heard.last() != std::mem::replace(&mut self.heard_then, self.heard.last());
        let seen = Seen {
            answered: heard,
            heard,
            attended,
            refused: false,
            rtt: self.shared.rtt().unwrap_or_default(),
        };
        let step = self.pulse.handle_look(Instant::now(), seen);
        if let Some(verdict) = step.verdict {
            return Err(verdict);
        }
        if step.probe {
            let nonce = self.heard.clock();
            self.shared.say(Word::Ping { nonce });
        }
        self.looks = step.next.is_some();
        if let Some(next) = step.next {
            self.next_look.as_mut().reset(next);
        }
        Ok(true)
    }

    fn open(&mut self, cx: &mut Context<'_>) -> Result<bool, Lost> {
        if self.side == Side::Dials && self.control.is_none() {
            let Poll::Ready(stream) = self.mux.poll_new_outbound(cx) else {
                return Ok(false);
            };
            self.control = Some(greet(stream.map_err(|error| broken(&error))?, cx)?);
            return Ok(true);
        }
        if self.next_open.is_empty()
            && let Poll::Ready(Some(opening)) = self.opening.poll_recv(cx)
        {
            self.next_open.push_back(opening);
        }
        if self.next_open.is_empty() || self.control.is_none() {
            return Ok(false);
        }
        let Poll::Ready(stream) = self.mux.poll_new_outbound(cx) else {
            return Ok(false);
        };
        let stream = greet(stream.map_err(|error| broken(&error))?, cx)?;
        if let Some(Opening { handle, answer }) = self.next_open.pop_front() {
            let lane = Lane::new(stream, false);
            self.shared
                .lanes
                .lock()
                .insert(lane.id(), Arc::clone(&lane));
            // Whoever gave up drops the halves, which tells the other side.
            drop(answer.send(halves(lane, handle)));
        }
        Ok(true)
    }

    /// Takes a stream that the other side opened.
    fn take_in(&mut self, stream: yamux::Stream, cx: &mut Context<'_>) -> Result<(), Lost> {
        let number = stream.id().val();
        if self.side == Side::Listens && self.control.is_none() {
            if number != 1 {
                return Err(VIOLATION);
            }
            self.control = Some(stream);
            return Ok(());
        }
        let room = {
            let mut places = self.shared.places.lock();
            if places.opened >= places.told {
                return Err(VIOLATION);
            }
            places.opened += 1;
            places.open += 1;
            usize::try_from(places.told - places.opened).unwrap_or(usize::MAX)
        };
        if !self.numbers.take(number, room) {
            return Err(VIOLATION);
        }
        // The answer tells the other side's mux that the stream was taken.
        let lane = Lane::new(greet(stream, cx)?, true);
        for word in self.early.remove(&number).unwrap_or_default() {
            lane.hear(word);
        }
        self.shared.lanes.lock().insert(number, Arc::clone(&lane));
        self.shared.arrived.lock().push_back(lane);
        self.shared.arrival.notify_one();
        Ok(())
    }

    fn write_words(&mut self, cx: &mut Context<'_>) -> Result<bool, Lost> {
        let Some(control) = &mut self.control else {
            return Ok(false);
        };
        let mut moved = false;
        loop {
            if self.outgoing.is_empty() {
                // Streams leave behind their last words, so they are taken first.
                let retired = std::mem::take(&mut *self.shared.retired.lock());
                std::mem::swap(&mut self.outgoing, &mut self.shared.words.lock());
                if let Some(total) = self.shared.grant() {
                    let word = Word::Streams { total };
                    self.outgoing.extend_from_slice(&word.encode());
                }
                if let Some(nonce) = self.asked.take() {
                    let word = Word::Pong { nonce };
                    self.outgoing.extend_from_slice(&word.encode());
                }
                if self.outgoing.is_empty() {
                    drop(retired);
                    return Ok(moved);
                }
                self.shared.retired.lock().extend(retired);
            }
            match Pin::new(&mut *control).poll_write(cx, &self.outgoing) {
                Poll::Pending => return Ok(moved),
                Poll::Ready(Err(_closed)) => {
                    self.deaf = true;
                    return Ok(moved);
                }
                Poll::Ready(Ok(count)) => {
                    self.outgoing.advance(count);
                    moved = true;
                }
            }
        }
    }

    fn read_words(&mut self, cx: &mut Context<'_>) -> Result<bool, Lost> {
        let mut moved = false;
        while let Some(control) = self.control.as_mut().filter(|_| !self.deaf) {
            let mut piece = [0; 32 * WORD];
            match Pin::new(control).poll_read(cx, &mut piece) {
                Poll::Pending => break,
                Poll::Ready(Ok(0) | Err(_)) => {
                    self.deaf = true;
                    break;
                }
                Poll::Ready(Ok(count)) => self.incoming.extend_from_slice(&piece[..count]),
            }
            moved = true;
            if !std::mem::replace(&mut self.greeted, true) {
                self.incoming.advance(GREETING.len());
            }
            while let Some(word) = self.incoming.first_chunk::<WORD>() {
                let word = Word::decode(*word).ok_or(VIOLATION)?;
                self.incoming.advance(WORD);
                self.hear(word)?;
            }
        }
        Ok(moved)
    }

    fn hear(&mut self, word: Word) -> Result<(), Lost> {
        match word {
            Word::Finished { lane, .. }
            | Word::Reset { lane, .. }
            | Word::Stop { lane, .. }
            | Word::Read { lane } => return self.hear_of(lane, word),
            Word::Streams { total } => self.allow(total)?,
            Word::Ping { nonce } => self.asked = Some(nonce),
            Word::Pong { nonce } => {
                let rtt = self.heard.clock().saturating_sub(nonce);
                self.shared.rtt_micros.store(rtt, Ordering::Relaxed);
            }
            Word::Close { reason } => return Err(Lost::ByPeer(reason)),
        }
        Ok(())
    }

    fn hear_of(&mut self, lane: u32, word: Word) -> Result<(), Lost> {
        let known = self.shared.lanes.lock().get(&lane).cloned();
        if let Some(known) = known {
            known.hear(word);
        } else if self.numbers.is_new(lane) {
            let (awaited, so_far) = {
                let places = self.shared.places.lock();
                (places.told - places.opened, self.early.len() as u64)
            };
            let words = self.early.entry(lane).or_default();
            // A stream has four words, and only streams that may be opened have any.
            if words.len() >= 4 || so_far > awaited {
                return Err(VIOLATION);
            }
            words.push(word);
        }
        Ok(()) // about a stream that is no more
    }
}

impl Driver {
    fn allow(&mut self, total: u64) -> Result<(), Lost> {
        let more = total.checked_sub(self.granted).ok_or(VIOLATION)?;
        let more = usize::try_from(more).unwrap_or(usize::MAX);
        if more > STREAMS {
            return Err(VIOLATION);
        }
        self.granted = total;
        self.shared.may_open.add_permits(more);
        Ok(())
    }
}

/// Writes the first byte of a new stream, for which there is always room.
fn greet(mut stream: yamux::Stream, cx: &mut Context<'_>) -> Result<yamux::Stream, Lost> {
    match Pin::new(&mut stream).poll_write(cx, GREETING) {
        Poll::Ready(Ok(_)) => Ok(stream),
        Poll::Ready(Err(_)) | Poll::Pending => Err(Lost::Cut),
    }
}

fn broken(error: &yamux::ConnectionError) -> Lost {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "a foreign enum that may grow; what is no violation is a loss"
    )]
    match error {
        yamux::ConnectionError::Decode(yamux::FrameDecodeError::Io(_)) => Lost::Cut,
        yamux::ConnectionError::Decode(_) | yamux::ConnectionError::InvalidWindowUpdate => {
            VIOLATION
        }
        _ => Lost::Cut,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_may_come_out_of_order_but_neither_twice_nor_from_afar() {
        let mut numbers = Numbers {
            next: 3,
            missing: BTreeSet::new(),
        };
        assert!(numbers.take(7, 10)); // 5 and 3 were overtaken
        assert!(numbers.is_new(3) && numbers.is_new(5) && !numbers.is_new(7));
        assert!(numbers.take(3, 10) && !numbers.take(3, 10));
        assert!(!numbers.take(4, 10), "a number of this side");
        assert!(!numbers.take(1_001, 10), "more left out than may be open");
        assert!(numbers.take(9, 10) && numbers.take(5, 10));
        assert!(!numbers.take(u32::MAX, 10));
    }
}
