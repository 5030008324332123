//! Which relays an agent knows, how they did so far, and which of its sessions holds which.
//!
//! A seat is the right to try one relay: no two sessions of an agent are with the same one, also when it has several
//! addresses, because who answered is remembered by its certificate. An attempt that failed closes its relay for a
//! while, with full jitter: agents that lost a relay together do not come back together.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use sealock_core::address::HostPort;
use sealock_core::identity::SpiffeId;
use sealock_core::reason::Reason;
use tokio::sync::Notify;
use tokio::time::Instant;

/// The relays of an agent; clones share them.
#[derive(Debug, Clone)]
pub(super) struct Seats {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    relays: Mutex<Vec<Known>>,
    changed: Notify,
}

/// What is known of one address of a relay.
#[derive(Debug)]
struct Known {
    address: HostPort,
    /// Who answered there last.
    relay: Option<SpiffeId>,
    failures: u32,
    not_before: Instant,
    is_held: bool,
}

/// The right to try one relay, until it is dropped.
#[derive(Debug)]
pub(super) struct Seat {
    seats: Seats,
    address: HostPort,
}

/// What there is for whoever wants a seat.
enum Free {
    Now(HostPort),
    At(Instant),
    None,
}

const FIRST_PAUSE: Duration = Duration::from_millis(100); // a relay restart takes less than a second
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
const HOPELESS_PAUSE: Duration = Duration::from_secs(60); // where only a person can help
const SUPERSEDED_PAUSE: Duration = Duration::from_secs(120); // two machines with one identity swap once a minute at most
const STABLE: Duration = Duration::from_secs(10); // a session that lived so long starts the back-off anew

impl Seats {
    pub(super) fn new(relays: &[HostPort]) -> Self {
        let now = Instant::now();
        let known = |address: &HostPort| Known {
            address: address.clone(),
            relay: None,
            failures: 0,
            not_before: now,
            is_held: false,
        };
        let inner = Inner {
            relays: Mutex::new(relays.iter().map(known).collect()),
            changed: Notify::new(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// The best relay that nobody holds, waiting until one may be tried.
    ///
    /// # Cancel safety
    /// Safe.
    pub(super) async fn take(&self) -> Seat {
        loop {
            let changed = self.inner.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            match self.free() {
                Free::Now(address) => {
                    return Seat {
                        seats: self.clone(),
                        address,
                    };
                }
                Free::At(when) => tokio::select! {
                    biased; // a change may bring an earlier time
                    () = changed => {}
                    () = tokio::time::sleep_until(when) => {}
                },
                Free::None => changed.await,
            }
        }
    }

    /// Whether there is a relay that nobody holds.
    pub(super) fn has_free(&self) -> bool {
        let relays = self.inner.relays.lock();
        relays.iter().any(|known| is_free(&relays, known))
    }

    /// Finds and holds.
    fn free(&self) -> Free {
        let now = Instant::now();
        let mut relays = self.inner.relays.lock();
        let free = relays
            .iter()
            .enumerate()
            .filter(|(_, known)| is_free(&relays, known));
        let first = free.min_by_key(|(at, known)| (known.not_before.max(now), *at));
        match first.map(|(at, known)| (at, known.not_before)) {
            Some((at, not_before)) if not_before <= now => {
                relays[at].is_held = true;
                Free::Now(relays[at].address.clone())
            }
            Some((_, not_before)) => Free::At(not_before),
            None => Free::None,
        }
    }

    fn with<R>(&self, address: &HostPort, change: impl FnOnce(&mut Known) -> R) -> Option<R> {
        let mut relays = self.inner.relays.lock();
        let known = relays.iter_mut().find(|known| known.address == *address)?;
        Some(change(known))
    }
}

/// Whether neither the address nor the relay behind it is held.
fn is_free(relays: &[Known], known: &Known) -> bool {
    let same = |other: &Known| other.relay.is_some() && other.relay == known.relay;
    !known.is_held && !relays.iter().any(|other| other.is_held && same(other))
}

impl Seat {
    pub(super) fn address(&self) -> &HostPort {
        &self.address
    }

    /// Remembers who answered; says whether another seat is with the same relay already.
    pub(super) fn is_doubled_by(&self, relay: &SpiffeId) -> bool {
        let mut relays = self.seats.inner.relays.lock();
        if let Some(known) = relays.iter_mut().find(|one| one.address == self.address) {
            known.relay = Some(relay.clone());
        }
        // Under the same lock: of two that find each other, exactly one stays.
        relays.iter().any(|other| {
            other.is_held && other.address != self.address && other.relay.as_ref() == Some(relay)
        })
    }

    /// An attempt failed, or a session that lived so long ended: the relay may be tried again after a pause.
    pub(super) fn failed(&self, reason: Reason, lived: Duration) {
        self.seats.with(&self.address, |known| {
            if lived > STABLE {
                known.failures = 0;
            }
            known.not_before = Instant::now() + pause(reason, known.failures);
            known.failures = known.failures.saturating_add(1);
        });
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.seats
            .with(&self.address, |known| known.is_held = false);
        self.seats.inner.changed.notify_waiters();
    }
}

fn pause(reason: Reason, failures: u32) -> Duration {
    if reason == Reason::Superseded {
        SUPERSEDED_PAUSE.mul_f64(rand::random_range(0.5..1.0))
    } else if !reason.is_transient() {
        HOPELESS_PAUSE.mul_f64(rand::random_range(0.1..1.0))
    } else {
        let longest = FIRST_PAUSE.saturating_mul(1 << failures.min(16));
        longest
            .min(LONGEST_PAUSE)
            .mul_f64(rand::random_range(0.1..1.0))
    }
}

/// A pause before another attempt that nothing waits for.
pub(super) fn unhurried() -> Duration {
    LONGEST_PAUSE.mul_f64(rand::random_range(0.1..1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seats(addresses: &[&str]) -> Seats {
        let parse = |text: &&str| text.parse().expect("an address");
        Seats::new(&addresses.iter().map(parse).collect::<Vec<_>>())
    }

    fn relay(id: &str) -> SpiffeId {
        format!("spiffe://sealock/relay/{id}")
            .parse()
            .expect("an id")
    }

    #[tokio::test]
    async fn a_relay_that_failed_comes_after_the_others_and_again_after_a_pause() {
        let seats = seats(&["a:1", "b:1"]);
        let first = seats.take().await;
        assert_eq!(first.address().to_string(), "a:1");
        first.failed(Reason::RelayUnreachable, Duration::ZERO);
        drop(first);
        let second = seats.take().await;
        assert_eq!(second.address().to_string(), "b:1");
        let again = seats.take().await;
        assert_eq!(again.address().to_string(), "a:1");
    }

    #[tokio::test]
    async fn two_addresses_of_one_relay_are_one_seat() {
        let seats = seats(&["a:1", "a.example:1"]);
        let first = seats.take().await;
        assert!(!first.is_doubled_by(&relay("r1")));
        let second = seats.take().await;
        assert!(second.is_doubled_by(&relay("r1")));
        drop(second);
        assert!(!seats.has_free());
        first.failed(Reason::SessionLost, Duration::ZERO);
        drop(first);
        assert_eq!(seats.take().await.address().to_string(), "a.example:1");
    }

    #[test]
    fn pauses_grow_to_a_bound_and_are_long_where_waiting_does_not_help() {
        for failures in 0..100 {
            assert!(pause(Reason::SessionLost, failures) <= LONGEST_PAUSE);
        }
        assert!(pause(Reason::SessionLost, 0) <= FIRST_PAUSE);
        assert!(pause(Reason::NotAdmitted, 0) >= HOPELESS_PAUSE / 10);
        assert!(pause(Reason::Superseded, 0) >= SUPERSEDED_PAUSE / 2);
    }
}
