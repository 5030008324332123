//! Pieces of a handshake in any order, put together.

use crate::sniff::{BUDGET, Why};

/// Gaps that the pieces may leave: more than a sender with a reason makes.
const GAPS_LIMIT: usize = 64;

/// The beginning of the handshake, as far as it came.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    bytes: Vec<u8>,
    /// What of `bytes` came: in order, apart, none empty.
    came: Vec<(usize, usize)>,
}

impl Pieces {
    /// What came without a gap.
    pub(super) fn start(&self) -> &[u8] {
        match self.came.first() {
            Some((0, end)) => &self.bytes[..*end],
            Some(_) | None => &[],
        }
    }

    /// Takes a piece; what repeats an earlier one must say the same.
    pub(super) fn insert(&mut self, offset: u64, piece: &[u8]) -> Result<(), Why> {
        let from = usize::try_from(offset).unwrap_or(BUDGET).min(BUDGET);
        let piece = &piece[..piece.len().min(BUDGET - from)];
        let to = from + piece.len();
        if piece.is_empty() {
            return Ok(()); // or behind all that we look at
        }
        for (start, end) in &self.came {
            let (low, high) = (from.max(*start), to.min(*end));
            if low < high && self.bytes[low..high] != piece[low - from..high - from] {
                return Err(Why::Ambiguous);
            }
        }
        if self.bytes.len() < to {
            self.bytes.resize(to, 0);
        }
        self.bytes[from..to].copy_from_slice(piece);
        self.note(from, to);
        if self.came.len() > GAPS_LIMIT {
            return Err(Why::TooLong);
        }
        Ok(())
    }

    fn note(&mut self, from: usize, to: usize) {
        let (mut from, mut to) = (from, to);
        self.came.retain(|(start, end)| {
            let is_apart = *end < from || *start > to;
            if !is_apart {
                (from, to) = (from.min(*start), to.max(*end));
            }
            is_apart
        });
        let place = self.came.partition_point(|(start, _)| *start < from);
        self.came.insert(place, (from, to));
    }
}
