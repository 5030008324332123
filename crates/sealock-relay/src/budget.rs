//! What an agent may ask of a relay in a time: opens cost the relay and a provider work, however soon they are given up.
//!
//! A budget that was saved up is spent at once, so all streams of an agent can be taken up again in one go; what it
//! fills up by bounds a flood.

use std::time::{Duration, Instant};

/// How many opens an agent may make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenLimit {
    /// At once, after a quiet time.
    pub burst: u32,
    /// In a second, for as long as it likes.
    pub per_second: u32,
}

impl Default for OpenLimit {
    fn default() -> Self {
        Self {
            // All streams that an agent parks, taken up again, and as many new ones.
            burst: 8_192,
            // Three times what an agent manages with its handshakes.
            per_second: 1_000,
        }
    }
}

/// What one agent has left of its limit.
#[derive(Debug)]
pub(crate) struct OpenBudget {
    limit: OpenLimit,
    left: u32,
    /// Up to when the budget was filled up.
    filled: Instant,
}

impl OpenBudget {
    pub(crate) fn new(limit: OpenLimit, now: Instant) -> Self {
        Self {
            limit,
            left: limit.burst,
            filled: now,
        }
    }

    /// Spends one open, while there is one left.
    pub(crate) fn spend(&mut self, now: Instant) -> bool {
        self.fill(now);
        let spent = self.left > 0;
        self.left = self.left.saturating_sub(1);
        spent
    }

    // In whole opens: what of the time makes no whole one counts later.
    fn fill(&mut self, now: Instant) {
        let one = Duration::from_secs(1) / self.limit.per_second.max(1);
        let since = now.saturating_duration_since(self.filled);
        let opens = since.as_nanos() / one.as_nanos().max(1);
        let opens = u32::try_from(opens).unwrap_or(u32::MAX);
        self.left = self.left.saturating_add(opens).min(self.limit.burst);
        self.filled = if self.left == self.limit.burst {
            now
        } else {
            self.filled + one * opens
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_gets_what_was_saved_up_and_then_so_many_a_second() {
        let limit = OpenLimit {
            burst: 100,
            per_second: 10,
        };
        let began = Instant::now();
        let mut budget = OpenBudget::new(limit, began);
        let mut in_second = |second: u64| {
            let at = |n: u64| began + Duration::from_millis(second * 1_000 + n);
            (0..1_000).filter(|n| budget.spend(at(*n))).count()
        };
        assert_eq!(in_second(0), 109);
        assert_eq!(in_second(1), 10);
        assert_eq!(in_second(2), 10);
        // A quiet time saves the burst up again, and no more than that.
        assert_eq!(in_second(100), 109);
    }
}
