//! The receiving direction: what arrived and is not read yet, and what the peer is told of it.
//!
//! `delivered <= received <= limit <= delivered + window`; the limit never goes back. The window doubles when half
//! of it is read within two round trips, because then it, and not the application, is what holds the peer up.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use super::bug::bug;
use super::{Ack, IDLE_CHUNKS, Read, StreamConfig, Violation};

// A short piece would keep the whole buffer alive that it arrived in, so behind unread bytes it is copied.
const SHORT: usize = 1 << 10;
const TAIL_LIMIT: usize = 16 << 10;

#[derive(Debug)]
pub(super) struct Inbound {
    chunks: VecDeque<Bytes>,
    /// Short pieces behind the chunks, joined.
    tail: BytesMut,
    received: u64,
    delivered: u64,
    /// Up to where the peer may send, by our last word.
    limit: u64,
    window: u32,
    /// How much the window may grow yet.
    room: u32,
    fin: Option<u64>,
    /// The last that the peer was told on this leg.
    announced: u64,
    end_announced: bool,
    ack_due: bool,
    ack_at: Option<Instant>,
    tuning: Tuning,
}

/// Measures how fast the application reads against how long a grant takes to have an effect.
#[derive(Debug, Default)]
struct Tuning {
    round_trip: Option<Duration>,
    /// A grant that the peer needs before it can send the byte at this offset.
    probe: Option<(u64, Instant)>,
    /// Where and when the measured half window began.
    mark: Option<(u64, Instant)>,
}

impl Inbound {
    pub(super) fn new(config: &StreamConfig) -> Self {
        let window = config.initial_window.max(config.early).max(1);
        Self {
            chunks: VecDeque::new(),
            tail: BytesMut::new(),
            received: 0,
            delivered: 0,
            limit: window.into(),
            window,
            room: u32::MAX,
            fin: None,
            announced: 0,
            end_announced: false,
            ack_due: false,
            ack_at: None,
            tuning: Tuning::default(),
        }
    }

    /// Takes bytes from the leg; what is already here is trimmed. Says whether anything was new.
    pub(super) fn data(
        &mut self,
        now: Instant,
        offset: u64,
        mut bytes: Bytes,
    ) -> Result<bool, Violation> {
        if bug!(TwoReaders) {
            return Ok(self.append(bytes));
        }
        let end = offset + bytes.len() as u64;
        if end > self.limit {
            return Err(Violation::BeyondLimit);
        }
        if self.fin.is_some_and(|fin| end > fin) {
            return Err(Violation::AfterFin);
        }
        if offset > self.received {
            return Err(Violation::Gap);
        }
        let known = usize::try_from(self.received - offset).unwrap_or(usize::MAX);
        if known >= bytes.len() {
            return Ok(false);
        }
        let fresh = bytes.split_off(known);
        if let Some((offset, since)) = self.tuning.probe
            && end > offset
        {
            self.tuning.sample(now.saturating_duration_since(since));
            self.tuning.probe = None;
        }
        Ok(self.append(fresh))
    }

    fn append(&mut self, bytes: Bytes) -> bool {
        self.received += bytes.len() as u64;
        if self.chunks.is_empty() || bytes.len() >= SHORT {
            self.freeze_tail();
            self.chunks.push_back(bytes);
        } else {
            self.tail.extend_from_slice(&bytes);
            if self.tail.len() >= TAIL_LIMIT {
                self.freeze_tail();
            }
        }
        true
    }

    fn freeze_tail(&mut self) {
        if !self.tail.is_empty() {
            self.chunks
                .push_back(std::mem::take(&mut self.tail).freeze());
        }
    }

    /// The peer's direction ends at `offset`.
    pub(super) fn fin(&mut self, offset: u64) -> Result<(), Violation> {
        if offset > self.received {
            return Err(Violation::Gap);
        }
        if offset < self.received || self.fin.is_some_and(|fin| fin != offset) {
            return Err(Violation::FinMoved);
        }
        self.fin = Some(offset);
        self.ack_due |= self.is_at_end();
        Ok(())
    }

    /// Gives at most `max` bytes to the application.
    pub(super) fn read(&mut self, now: Instant, max: usize, config: &StreamConfig) -> Read {
        if self.is_at_end() {
            return Read::End;
        }
        if self.chunks.is_empty() {
            self.freeze_tail();
        }
        let Some(first) = self.chunks.front_mut() else {
            return Read::Blocked;
        };
        if max == 0 {
            return Read::Blocked;
        }
        let bytes = first.split_to(max.min(first.len()));
        if first.is_empty() {
            self.chunks.pop_front();
        }
        if self.chunks.is_empty() && self.chunks.capacity() > IDLE_CHUNKS {
            self.chunks = VecDeque::new();
        }
        self.delivered += bytes.len() as u64;
        self.tune(now, config);
        self.schedule_ack(now, config);
        Read::Data(bytes)
    }

    fn schedule_ack(&mut self, now: Instant, config: &StreamConfig) {
        let unannounced = self.delivered - self.announced;
        let quarter = u64::from(self.window / 4).max(1);
        // A peer that stands at its limit waits for this very acknowledgement.
        let peer_waits = self.received == self.limit && self.unread() == 0;
        if self.is_at_end() || unannounced >= quarter || peer_waits {
            self.ack_due = true;
        } else if self.ack_at.is_none() {
            self.ack_at = Some(now + config.ack_delay);
        }
    }

    fn tune(&mut self, now: Instant, config: &StreamConfig) {
        let half = u64::from(self.window / 2).max(1);
        let Some((offset, since)) = self.tuning.mark else {
            self.tuning.mark = Some((self.delivered, now));
            return;
        };
        if self.delivered - offset < half {
            return;
        }
        let took = now.saturating_duration_since(since);
        self.tuning.mark = Some((self.delivered, now));
        let fast = self.tuning.round_trip.is_some_and(|trip| took <= 2 * trip);
        // Where bytes wait for the application, a larger window would only let more of them wait.
        let fast = fast && self.unread() < half / 4;
        if fast {
            let max = config.max_window.max(self.window);
            let max = max.min(self.window.saturating_add(self.room));
            let before = self.window;
            self.window = self.window.saturating_mul(2).min(max);
            self.room -= self.window - before;
        }
    }

    /// Sets how much the window may grow from here on.
    pub(super) fn set_room(&mut self, room: u32) {
        self.room = room;
    }

    /// A round trip of the leg, measured by who can.
    pub(super) fn sample_round_trip(&mut self, took: Duration) {
        self.tuning.sample(took);
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if self.ack_at.is_some_and(|at| at <= now) {
            self.ack_due = true;
            self.ack_at = None;
        }
    }

    pub(super) fn next_timeout(&self) -> Option<Instant> {
        self.ack_at
    }

    /// The acknowledgement that is due, if one is.
    pub(super) fn take_ack(&mut self, now: Instant) -> Option<Ack> {
        let news = self.announced < self.delivered || self.end_announced != self.is_at_end();
        let due = std::mem::take(&mut self.ack_due) && news;
        due.then(|| self.announce(now))
    }

    /// What to tell the peer; it counts as told.
    pub(super) fn announce(&mut self, now: Instant) -> Ack {
        let limit = self.limit.max(self.delivered + u64::from(self.window));
        if limit > self.limit && self.tuning.probe.is_none() {
            self.tuning.probe = Some((self.limit, now));
        }
        self.limit = limit;
        self.announced = self.delivered;
        self.end_announced = self.is_at_end();
        self.ack_due = false;
        self.ack_at = None;
        Ack {
            delivered: self.delivered,
            limit: self.limit,
            end_delivered: self.is_at_end(),
        }
    }

    /// A new leg begins: nothing was told on it, and its round trip is another.
    pub(super) fn begin_leg(&mut self) {
        self.tuning = Tuning::default();
        self.ack_at = None;
    }

    /// The stream is over: nothing will be read again.
    pub(super) fn clear(&mut self) {
        self.chunks = VecDeque::new();
        self.tail = BytesMut::new();
        self.ack_at = None;
        self.ack_due = false;
    }

    /// Whether the application has read everything up to the peer's end.
    pub(super) fn is_at_end(&self) -> bool {
        self.fin == Some(self.delivered)
    }

    #[cfg(test)]
    pub(super) fn heap(&self) -> usize {
        self.chunks.capacity() * size_of::<Bytes>() + self.tail.capacity()
    }

    pub(super) fn received(&self) -> u64 {
        self.received
    }

    pub(super) fn delivered(&self) -> u64 {
        self.delivered
    }

    pub(super) fn unread(&self) -> u64 {
        self.received - self.delivered
    }

    pub(super) fn window(&self) -> u32 {
        self.window
    }

    pub(super) fn limit(&self) -> u64 {
        self.limit
    }
}

impl Tuning {
    fn sample(&mut self, took: Duration) {
        let least = self.round_trip.map_or(took, |known| known.min(took));
        self.round_trip = Some(least);
    }
}
