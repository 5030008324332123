//! Waiting for a state that somebody else brings about, always with a deadline.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

// Short beside every bound that a test asserts, long beside one look at a process.
const STEP: Duration = Duration::from_millis(5);

/// Looks again and again until `look` finds something.
///
/// # Errors
///
/// Fails when nothing was found in time, or when looking itself fails.
pub fn until<T>(
    what: &str,
    within: Duration,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let started = Instant::now();
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if started.elapsed() >= within {
            bail!("waited {within:?} for {what}");
        }
        pause(STEP);
    }
}

/// Lets time pass on this thread: for pacing and for outages of a given length, never in place of [`until`].
#[expect(
    clippy::disallowed_methods,
    reason = "the lab's threads are its own; no runtime is blocked"
)]
pub fn pause(time: Duration) {
    std::thread::sleep(time);
}
