//! One leg: two ordered byte pipes that can break at any byte.

use std::collections::VecDeque;

use bytes::Bytes;

use super::swarm::Micros;
use crate::stream::{Decoder, Epoch};

#[derive(Debug)]
pub(super) struct Leg {
    /// As each side knows it; the accepter learns it from ATTACH.
    pub(super) epoch: [Option<Epoch>; 2],
    pub(super) pipes: [Pipe; 2],
    pub(super) decoders: [Decoder; 2],
    /// Nothing that is written from here on arrives.
    pub(super) broken: bool,
    /// Each side's own end: a closed end neither reads nor writes.
    pub(super) closed: [bool; 2],
}

/// The bytes on their way from one side.
#[derive(Debug)]
pub(super) struct Pipe {
    pub(super) delay: Micros,
    pub(super) in_flight: VecDeque<Bytes>,
    pub(super) in_flight_bytes: usize,
    pub(super) written: u64,
    pub(super) arrives_last: Micros,
    /// The leg breaks when this many bytes were written.
    pub(super) cut_at: Option<u64>,
}

impl Pipe {
    pub(super) fn new(delay: Micros, cut_at: Option<u64>) -> Self {
        Self {
            delay,
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            written: 0,
            arrives_last: 0,
            cut_at,
        }
    }

    /// Puts bytes in and says when they arrive, or `None` when they came to nothing.
    pub(super) fn put(&mut self, now: Micros, mut bytes: Bytes) -> Option<Micros> {
        if let Some(cut_at) = self.cut_at {
            let room = usize::try_from(cut_at.saturating_sub(self.written)).unwrap_or(usize::MAX);
            self.written += bytes.len() as u64;
            bytes.truncate(room);
        } else {
            self.written += bytes.len() as u64;
        }
        if bytes.is_empty() {
            return None;
        }
        self.in_flight_bytes += bytes.len();
        self.in_flight.push_back(bytes);
        self.arrives_last = self.arrives_last.max(now + self.delay);
        Some(self.arrives_last)
    }

    pub(super) fn is_cut(&self) -> bool {
        self.cut_at.is_some_and(|cut_at| self.written >= cut_at)
    }

    pub(super) fn take(&mut self) -> Option<Bytes> {
        let bytes = self.in_flight.pop_front()?;
        self.in_flight_bytes -= bytes.len();
        Some(bytes)
    }

    /// Loses everything in flight but its first `keep` bytes.
    pub(super) fn lose(&mut self, mut keep: usize) {
        let mut kept = 0;
        for bytes in &mut self.in_flight {
            bytes.truncate(keep);
            keep -= bytes.len();
            kept += bytes.len();
        }
        self.in_flight_bytes = kept;
    }
}
