//! How fast a stream moves its bytes, as far as that says something: while it moves them.

use std::time::{Duration, Instant};

/// When a stream is bulk, and so worth a conduit.
#[derive(Debug, Clone, Copy)]
pub struct Bulk {
    /// How many bytes are measured at once: enough that a measure says something of the way and not of the moment.
    pub stretch: u64,
    /// What a stream moves in a second at least when a conduit is worth its while, in bytes.
    pub rate: u64,
    /// A conduit that carries less than this part of what the stream moved before is left again.
    pub part: u64,
}

impl Default for Bulk {
    fn default() -> Self {
        Self {
            stretch: 8 * 1024 * 1024,
            rate: 16 * 1024 * 1024, // below, what a session costs more is nothing that anybody notices
            part: 2,
        }
    }
}

/// Who pauses for so long had nothing to move: the measure begins anew.
const PAUSE: Duration = Duration::from_millis(200); // longer than a round trip nearly everywhere

/// The bytes of a leg, both ways.
#[derive(Debug, Default)]
pub(super) struct Pace {
    began: Option<Instant>,
    last: Option<Instant>,
    moved: u64,
}

impl Pace {
    /// Counts bytes that were moved just now; at the end of a stretch, the bytes in a second.
    pub(super) fn moved(&mut self, length: usize, now: Instant, stretch: u64) -> Option<u64> {
        let paused = self.last.is_none_or(|last| now - last >= PAUSE);
        self.last = Some(now);
        let began = match self.began {
            Some(began) if !paused => began,
            Some(_) | None => {
                self.began = Some(now);
                self.moved = 0;
                return None;
            }
        };
        self.moved += length as u64;
        if self.moved < stretch {
            return None;
        }
        let millis = (now - began).as_millis().max(1);
        let rate = u128::from(self.moved) * 1_000 / millis;
        self.began = Some(now);
        self.moved = 0;
        Some(u64::try_from(rate).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1024 * 1024;

    /// Moves so many MiB, with so many milliseconds after each; what was measured last.
    fn rate(pace: &mut Pace, now: &mut Instant, mebibytes: usize, millis: u64) -> Option<u64> {
        let mut last = None;
        for _ in 0..mebibytes {
            last = pace.moved(MIB, *now, Bulk::default().stretch).or(last);
            *now += Duration::from_millis(millis);
        }
        last
    }

    #[test]
    fn a_rate_is_told_after_each_stretch_and_not_before() {
        let (mut pace, mut now) = (Pace::default(), Instant::now());
        assert_eq!(rate(&mut pace, &mut now, 8, 10), None);
        assert_eq!(rate(&mut pace, &mut now, 1, 10), Some(100 * MIB as u64));
        assert_eq!(rate(&mut pace, &mut now, 7, 10), None);
    }

    #[test]
    fn a_stream_that_pauses_is_not_slow() {
        let (mut pace, mut now) = (Pace::default(), Instant::now());
        assert_eq!(rate(&mut pace, &mut now, 5, 10), None);
        now += Duration::from_secs(10);
        assert_eq!(rate(&mut pace, &mut now, 9, 10), Some(100 * MIB as u64));
    }

    #[test]
    fn many_small_pieces_with_pauses_are_no_bulk() {
        let (mut pace, mut now) = (Pace::default(), Instant::now());
        assert_eq!(rate(&mut pace, &mut now, 100, 250), None);
    }
}
