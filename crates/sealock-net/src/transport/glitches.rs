//! How much a peer may send that carries nothing: as much as honest software ever does, and no flood.

use std::time::Duration;

use tokio::time::Instant;

/// What may come at once: keep-alives of everything on the way that waited for a path to be back.
const BURST: u32 = 1_000;
/// What may come for as long as the connection lasts. Honest peers and gateways send one in seconds.
const EVERY: Duration = Duration::from_millis(10);

/// Counts what carries nothing, as a bucket that time fills again.
#[derive(Debug)]
pub(super) struct Glitches {
    left: u32,
    since: Instant,
}

impl Glitches {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            left: BURST,
            since: now,
        }
    }

    /// Takes note of one; says whether it is one too many.
    pub(super) fn is_flood(&mut self, now: Instant) -> bool {
        let gained = now.saturating_duration_since(self.since).as_nanos() / EVERY.as_nanos();
        let gained = u32::try_from(gained).unwrap_or(u32::MAX);
        self.since += EVERY * gained.min(BURST);
        if gained >= BURST {
            self.since = now;
        }
        self.left = self.left.saturating_add(gained).min(BURST);
        let left = self.left.checked_sub(1);
        self.left = left.unwrap_or(0);
        left.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_and_a_steady_rate_are_none_and_more_is_a_flood() {
        let began = Instant::now();
        let mut glitches = Glitches::new(began);
        for _ in 0..BURST {
            assert!(!glitches.is_flood(began));
        }
        assert!(glitches.is_flood(began));
        for n in 1..=5_000 {
            assert!(!glitches.is_flood(began + EVERY * n), "{n}");
        }
        let later = began + EVERY * 5_000;
        assert!(glitches.is_flood(later), "no more than the rate");
        let day = later + Duration::from_secs(86_400);
        let taken = (0..2 * BURST).take_while(|_| !glitches.is_flood(day));
        assert_eq!(taken.count(), BURST as usize, "a pause earns one burst");
    }
}
