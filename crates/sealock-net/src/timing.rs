//! For tests: whether the time that a thing takes tells two kinds of it apart.
//!
//! Both kinds are measured in turns that chance decides, so that whatever else the machine does meets both alike; then
//! Welch's t is taken of the means (as «dudect» does). Deliberately absent: an opinion on what a secret is.

use std::time::Duration;

/// The share of the measurements that is left out, from the slow end: those that were interrupted.
const INTERRUPTED: f64 = 0.1;

/// How far apart the means of two kinds may be that are alike, as Welch's t: measurements of one kind exceed 4.5 once in
/// 10^5 times; a machine with other work on it gets twice as much.
pub const ALIKE: f64 = 10.0;

/// Measurements of two kinds of one thing.
#[derive(Debug, Clone, Default)]
pub struct Timings([Vec<f64>; 2]);

impl Timings {
    /// So many measurements in all. `measure` does what is of one kind or, when told so, of the other, and says how long
    /// it took.
    ///
    /// # Errors
    /// The first that `measure` fails with.
    ///
    /// # Cancel safety
    /// As safe as `measure`.
    pub async fn take<E>(
        count: usize,
        mut measure: impl AsyncFnMut(bool) -> Result<Duration, E>,
    ) -> Result<Self, E> {
        let mut timings = Self::default();
        for _ in 0..count {
            let is_other = rand::random();
            let took = measure(is_other).await?;
            timings.add(is_other, took);
        }
        Ok(timings)
    }

    /// Adds one measurement.
    pub fn add(&mut self, is_other: bool, took: Duration) {
        self.0[usize::from(is_other)].push(took.as_secs_f64());
    }

    /// Welch's t of both kinds: how many standard errors their means are apart.
    #[must_use]
    pub fn t(&self) -> f64 {
        let slowest = self.slowest();
        let [one, other] = [0, 1].map(|kind| Moments::of(&self.0[kind], slowest));
        let error = (one.variance / one.count + other.variance / other.count).sqrt();
        if error == 0.0 {
            return if one.mean == other.mean {
                0.0
            } else {
                f64::INFINITY
            };
        }
        (one.mean - other.mean).abs() / error
    }

    /// The means of both kinds.
    #[must_use]
    pub fn means(&self) -> [Duration; 2] {
        let slowest = self.slowest();
        [0, 1].map(|kind| Duration::from_secs_f64(Moments::of(&self.0[kind], slowest).mean))
    }

    /// The same bound for both kinds, or the one that is cut more would seem the faster.
    fn slowest(&self) -> f64 {
        let mut all = self.0.concat();
        all.sort_by(f64::total_cmp);
        let kept = all.len() as f64 * (1.0 - INTERRUPTED);
        all.get(kept as usize).copied().unwrap_or(f64::INFINITY)
    }
}

struct Moments {
    count: f64,
    mean: f64,
    variance: f64,
}

impl Moments {
    fn of(all: &[f64], slowest: f64) -> Self {
        let kept = || all.iter().filter(|took| **took <= slowest);
        let count = kept().count().max(1) as f64;
        let mean = kept().sum::<f64>() / count;
        let squares = kept().map(|took| (took - mean).powi(2)).sum::<f64>();
        Self {
            count,
            mean,
            variance: squares / (count - 1.0).max(1.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(kinds: [fn(u64) -> u64; 2]) -> f64 {
        let mut timings = Timings::default();
        for number in 0..4_000 {
            for (is_other, kind) in [(false, kinds[0]), (true, kinds[1])] {
                timings.add(is_other, Duration::from_micros(kind(number)));
            }
        }
        timings.t()
    }

    #[test]
    fn tells_apart_what_differs_by_less_than_it_varies_and_nothing_else() {
        let noise = |number: u64| 100 + number * 7_919 % 40;
        assert!(of([noise, noise]) < 1.0);
        assert!(of([noise, |number| 108 + number * 7_919 % 40]) > ALIKE);
        // A few that were interrupted are no difference.
        let interrupted = |number| match number % 50 {
            0 => 9_000,
            _ => 100 + number * 7_919 % 40,
        };
        assert!(of([noise, interrupted]) < ALIKE);
        assert!(of([|_| 5, |_| 6]) > ALIKE && of([|_| 5, |_| 5]) == 0.0);
    }
}
