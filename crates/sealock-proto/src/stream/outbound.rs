//! The sending direction: the replay buffer and what of it went out on the current leg.
//!
//! Chunks are refcounted and never copied. Bytes leave the buffer when the peer's application has read them, and for
//! no other reason: a full buffer takes no more from the application. `acked <= next <= sent <= end`, `next <= limit`.

use std::collections::VecDeque;

use bytes::Bytes;

use super::bug::bug;
use super::{IDLE_CHUNKS, MAX_DATA, StreamConfig, Violation, WriteError};

// A byte in a chunk of its own costs about a hundred; with this bound a full buffer costs little more than its bytes.
const MEAN_CHUNK: usize = 256;
const FREE_CHUNKS: usize = 64;

#[derive(Debug)]
pub(super) struct Outbound {
    chunks: VecDeque<Bytes>,
    /// Where the first chunk begins.
    front: u64,
    /// Up to where the peer's application has read.
    acked: u64,
    /// Where the next byte to send is, on this leg.
    next: u64,
    /// The chunk that holds `next`, and where it begins.
    cursor: usize,
    cursor_at: u64,
    /// The furthest that was ever sent.
    sent: u64,
    /// Where the application's next byte goes.
    end: u64,
    /// Up to where the peer lets us send.
    limit: u64,
    /// Something was sent on this leg, so `next` is where this leg is.
    begun: bool,
    finished: bool,
    fin_sent: bool,
    fin_ever_sent: bool,
    fin_acked: bool,
    /// A write was cut short.
    starved: bool,
}

impl Outbound {
    pub(super) fn new(limit: u64) -> Self {
        Self {
            chunks: VecDeque::new(),
            front: 0,
            acked: 0,
            next: 0,
            cursor: 0,
            cursor_at: 0,
            sent: 0,
            end: 0,
            limit,
            begun: false,
            finished: false,
            fin_sent: false,
            fin_ever_sent: false,
            fin_acked: false,
            starved: false,
        }
    }

    /// How many bytes a write would take: what the peer lets us have in flight, within our own bounds.
    pub(super) fn writable(&self, config: &StreamConfig) -> usize {
        let max = u64::from(config.max_window);
        let least = u64::from(config.initial_window).min(max);
        let budget = self.limit.saturating_sub(self.acked).clamp(least, max);
        if bug!(Evict) {
            return usize::MAX;
        }
        let budget = usize::try_from(budget).unwrap_or(usize::MAX);
        if self.chunks.len() >= FREE_CHUNKS + budget / MEAN_CHUNK {
            return 0;
        }
        budget.saturating_sub(self.held())
    }

    /// How many bytes the peer's application has not read yet.
    pub(super) fn held(&self) -> usize {
        usize::try_from(self.end - self.acked).unwrap_or(usize::MAX)
    }

    pub(super) fn write(
        &mut self,
        bytes: &mut Bytes,
        room: usize,
        config: &StreamConfig,
    ) -> Result<usize, WriteError> {
        if self.finished {
            return Err(WriteError::Finished);
        }
        let taken = self.writable(config).min(room).min(bytes.len());
        self.starved = taken < bytes.len();
        if taken > 0 {
            self.end += taken as u64;
            self.chunks.push_back(bytes.split_to(taken));
        }
        if bug!(Evict) {
            self.evict(config);
        }
        Ok(taken)
    }

    // Only a planted defect comes here.
    fn evict(&mut self, config: &StreamConfig) {
        while self.held() > config.initial_window as usize && self.chunks.len() > 1 {
            let Some(oldest) = self.chunks.pop_front() else {
                return;
            };
            self.front += oldest.len() as u64;
            self.acked = self.acked.max(self.front);
            self.rewind(self.next.max(self.front));
        }
    }

    pub(super) fn finish(&mut self) -> Result<(), WriteError> {
        if self.finished {
            return Err(WriteError::Finished);
        }
        self.finished = true;
        Ok(())
    }

    /// Whether a write that was cut short can go on; says so once.
    pub(super) fn take_relief(&mut self, config: &StreamConfig) -> bool {
        let relieved = self.starved && !self.finished && self.writable(config) > 0;
        if relieved {
            self.starved = false;
        }
        relieved
    }

    /// The next bytes for the leg.
    pub(super) fn take_data(&mut self) -> Option<(u64, Bytes)> {
        if bug!(LateCount) {
            self.sent = self.sent.max(self.next);
        }
        let room = usize::try_from(self.limit.checked_sub(self.next)?).unwrap_or(usize::MAX);
        let chunk = self.chunks.get(self.cursor)?;
        let within = usize::try_from(self.next - self.cursor_at).ok()?;
        let length = (chunk.len() - within).min(room).min(MAX_DATA);
        if length == 0 {
            return None;
        }
        let offset = self.next;
        self.begun = true;
        let bytes = chunk.slice(within..within + length);
        self.next += length as u64;
        if within + length == chunk.len() {
            self.cursor += 1;
            self.cursor_at = self.next;
        }
        if !bug!(LateCount) {
            self.sent = self.sent.max(self.next);
        }
        Some((offset, bytes))
    }

    /// The end, once a leg, behind the last byte.
    pub(super) fn take_fin(&mut self) -> Option<u64> {
        let due = self.finished && !self.fin_sent && !self.fin_acked && self.next == self.end;
        if !due {
            return None;
        }
        self.begun = true;
        self.fin_sent = true;
        self.fin_ever_sent = true;
        Some(self.end)
    }

    /// A new leg begins, or this side of it: nothing was sent on it.
    pub(super) fn begin_leg(&mut self) {
        self.fin_sent = false;
        self.begun = false;
    }

    /// The peer has what is before `received`, its application what is before `delivered`.
    pub(super) fn attach(&mut self, received: u64, delivered: u64) -> Result<(), Violation> {
        if received > self.sent || delivered > received {
            return Err(Violation::AckBeyondSent);
        }
        if delivered < self.acked {
            return Err(Violation::AckBackwards);
        }
        // What the opener sent early is on this very leg, and the peer's ATTACH may be from before its arrival.
        if !self.begun && !bug!(NoRetransmit) {
            self.rewind(received);
        }
        self.begun = true;
        self.release(delivered);
        Ok(())
    }

    /// The peer's application has read up to `delivered`, and to our end when `end` is set.
    pub(super) fn ack(&mut self, delivered: u64, limit: u64, end: bool) -> Result<(), Violation> {
        if bug!(AckUnbounded) {
            self.believe(delivered);
        }
        if delivered < self.acked {
            return Err(Violation::AckBackwards);
        }
        // Not only `sent`: on this leg the peer cannot have read what it was not sent again.
        if delivered > self.next {
            return Err(Violation::AckBeyondSent);
        }
        if limit < self.limit {
            return Err(Violation::LimitBackwards);
        }
        if end && !(self.fin_ever_sent && delivered == self.end) {
            return Err(Violation::EndNotSent);
        }
        self.release(delivered);
        self.limit = limit;
        self.fin_acked |= end;
        Ok(())
    }

    // Only a planted defect comes here.
    fn believe(&mut self, delivered: u64) {
        if delivered > self.next {
            self.chunks.clear();
            self.front = delivered;
            self.end = self.end.max(delivered);
            self.sent = self.sent.max(delivered);
            self.next = delivered;
            self.cursor = 0;
            self.cursor_at = delivered;
        }
    }

    fn release(&mut self, delivered: u64) {
        self.acked = delivered;
        while let Some(first) = self.chunks.front() {
            let behind = self.front + first.len() as u64;
            if behind > delivered {
                return;
            }
            self.front = behind;
            self.chunks.pop_front();
            // The cursor is beyond: `delivered <= next`, and at a chunk's end it moves to the next one.
            self.cursor = self.cursor.saturating_sub(1);
        }
        // An idle stream holds no memory for having been busy once.
        if self.chunks.capacity() > IDLE_CHUNKS {
            self.chunks = VecDeque::new();
        }
    }

    fn rewind(&mut self, to: u64) {
        self.next = to;
        self.cursor = 0;
        self.cursor_at = self.front;
        for chunk in &self.chunks {
            let behind = self.cursor_at + chunk.len() as u64;
            if behind > to {
                return;
            }
            self.cursor += 1;
            self.cursor_at = behind;
        }
    }

    /// The stream is over: nothing will be sent again.
    pub(super) fn clear(&mut self) {
        self.chunks = VecDeque::new();
        self.front = self.end;
        self.next = self.end;
        self.cursor = 0;
        self.cursor_at = self.end;
        self.starved = false;
    }

    /// How many bytes are in memory.
    pub(super) fn replay_bytes(&self) -> u64 {
        self.end - self.front
    }

    #[cfg(test)]
    pub(super) fn heap(&self) -> usize {
        self.chunks.capacity() * size_of::<Bytes>()
    }

    pub(super) fn acked(&self) -> u64 {
        self.acked
    }

    pub(super) fn sent(&self) -> u64 {
        self.sent
    }

    pub(super) fn fin_was_sent(&self) -> bool {
        self.fin_ever_sent
    }

    pub(super) fn is_fin_acked(&self) -> bool {
        self.fin_acked
    }
}
