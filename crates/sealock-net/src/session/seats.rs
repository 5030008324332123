//! Which relays an agent knows, how they did so far, and which of its sessions holds which.
//!
//! A seat is the right to try one relay: no two sessions of an agent are with the same one, also when it has several
//! addresses, because who answered is remembered by its certificate. An attempt that failed closes its relay for a
//! while, with full jitter: agents that lost a relay together do not come back together.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use sealock_core::address::HostPort;
use sealock_core::name::{NodeName, Region};
use sealock_core::reason::Reason;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::relays::Relay;

/// The relays of an agent; clones share them.
#[derive(Debug, Clone)]
pub(super) struct Seats {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    relays: Mutex<Vec<Known>>,
    changed: Notify,
    /// Spreads agents that see the same relays at the same distance.
    seed: [u8; 16],
    region: Option<Region>,
}

/// What is known of one address of a relay.
#[derive(Debug, Clone)]
struct Known {
    address: HostPort,
    /// Who is there, as the controller says or as answered last.
    relay: Option<NodeName>,
    /// Whether it was given and not told: then it stays, whatever the controller lists.
    is_given: bool,
    /// Whether the controller does not see it.
    is_away: bool,
    is_of_region: bool,
    rtt: Option<Duration>,
    spread: u64,
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

/// Relays whose round trips differ by less are the same to an agent, and chosen by spread.
const BAND: Duration = Duration::from_millis(10); // less than any distance that a person notices
/// A relay must be nearer by a third and by this much before a session moves to it.
const WORTH_A_MOVE: Duration = Duration::from_millis(5);

impl Known {
    fn new(address: &HostPort, seed: &[u8; 16]) -> Self {
        let mut hasher = DefaultHasher::new();
        (seed, address.to_string()).hash(&mut hasher);
        Self {
            address: address.clone(),
            relay: None,
            is_given: false,
            is_away: false,
            is_of_region: false,
            rtt: None,
            spread: hasher.finish(),
            failures: 0,
            not_before: Instant::now(),
            is_held: false,
        }
    }

    /// The smaller, the better.
    fn rank(&self) -> (bool, bool, u128, u64) {
        // One that was not measured is worth a try.
        let band = self.rtt.unwrap_or_default().as_micros() / BAND.as_micros();
        (self.is_away, !self.is_of_region, band, self.spread)
    }

    /// Whether leaving `other` for this one is worth it.
    fn is_worth_leaving(&self, other: &Self) -> bool {
        if self.is_away || self.failures > 0 || self.is_of_region != other.is_of_region {
            return !self.is_away && self.failures == 0 && self.is_of_region;
        }
        match (self.rtt, other.rtt) {
            (Some(this), Some(that)) => this + WORTH_A_MOVE.max(that / 3) < that,
            (Some(_) | None, None) | (None, Some(_)) => false,
        }
    }
}

const FIRST_PAUSE: Duration = Duration::from_millis(100); // a relay restart takes less than a second
const LONGEST_PAUSE: Duration = Duration::from_secs(3); // live streams wait for nothing else
const HOPELESS_PAUSE: Duration = Duration::from_secs(60); // where only a person can help
const SUPERSEDED_PAUSE: Duration = Duration::from_secs(120); // two machines with one identity swap once a minute at most
const STABLE: Duration = Duration::from_secs(2); // a session that lived so long starts the back-off anew

impl Seats {
    pub(super) fn new(given: &[HostPort], seed: [u8; 16], region: Option<Region>) -> Self {
        let known = |address: &HostPort| Known {
            is_given: true,
            ..Known::new(address, &seed)
        };
        let inner = Inner {
            relays: Mutex::new(given.iter().map(known).collect()),
            changed: Notify::new(),
            seed,
            region,
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Takes the controller's list over; what is held stays until it is left.
    pub(super) fn update(&self, list: &[Relay]) {
        let mut relays = self.inner.relays.lock();
        let is_listed = |known: &Known| {
            list.iter()
                .any(|relay| relay.addresses.contains(&known.address))
        };
        relays.retain(|known| known.is_given || known.is_held || is_listed(known));
        for relay in list {
            let is_of_region = relay.region.is_some() && relay.region == self.inner.region;
            for address in &relay.addresses {
                let at = find_or_add(&mut relays, address, &self.inner.seed);
                relays[at].relay = Some(relay.name.clone());
                relays[at].is_away = !relay.connected;
            }
            // Also where the relay answers at an address that was given.
            let same = |known: &&mut Known| known.relay.as_ref() == Some(&relay.name);
            for known in relays.iter_mut().filter(same) {
                known.is_of_region = is_of_region;
            }
        }
        drop(relays);
        self.inner.changed.notify_waiters();
    }

    /// Adds what a relay that drains says of others.
    pub(super) fn add(&self, addresses: &[HostPort]) {
        let mut relays = self.inner.relays.lock();
        for address in addresses {
            let at = find_or_add(&mut relays, address, &self.inner.seed);
            relays[at].is_away = false;
        }
        drop(relays);
        self.inner.changed.notify_waiters();
    }

    /// The addresses that nobody holds and nobody measured yet, or all that nobody holds.
    pub(super) fn unheld(&self) -> Vec<HostPort> {
        let relays = self.inner.relays.lock();
        let free = relays.iter().filter(|known| is_free(&relays, known));
        free.map(|known| known.address.clone()).collect()
    }

    /// Remembers who answered at an address and how far it is.
    pub(super) fn measured(
        &self,
        address: &HostPort,
        relay: Option<NodeName>,
        rtt: Option<Duration>,
    ) {
        self.with(address, |known| {
            known.relay = relay.or_else(|| known.relay.take());
            known.rtt = rtt.or(known.rtt);
        });
        self.inner.changed.notify_waiters();
    }

    /// A relay that is better by far than the one of `seat`, waiting until there is one that nobody holds.
    ///
    /// # Cancel safety
    /// Safe.
    pub(super) async fn take_better(&self, seat: &Seat) -> Seat {
        loop {
            let changed = self.inner.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(address) = self.better(seat) {
                return Seat {
                    seats: self.clone(),
                    address,
                };
            }
            changed.await;
        }
    }

    fn better(&self, seat: &Seat) -> Option<HostPort> {
        let mut relays = self.inner.relays.lock();
        let mine = relays.iter().find(|known| known.address == seat.address)?;
        let better = relays
            .iter()
            .enumerate()
            .filter(|(_, known)| is_free(&relays, known) && known.is_worth_leaving(mine));
        let (at, _) = better.min_by_key(|(_, known)| known.rank())?;
        relays[at].is_held = true;
        Some(relays[at].address.clone())
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
        let first = free.min_by_key(|(_, known)| (known.not_before.max(now), known.rank()));
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

fn find_or_add(relays: &mut Vec<Known>, address: &HostPort, seed: &[u8; 16]) -> usize {
    let found = relays.iter().position(|known| known.address == *address);
    found.unwrap_or_else(|| {
        relays.push(Known::new(address, seed));
        relays.len() - 1
    })
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
    pub(super) fn is_doubled_by(&self, relay: &NodeName) -> bool {
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
        // A session that ended and a dial too early for the relay's next process are one failure, not two.
        let longest = FIRST_PAUSE.saturating_mul(1 << failures.saturating_sub(1).min(16));
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
        let given: Vec<_> = addresses.iter().map(parse).collect();
        Seats::new(&given, [1; 16], Some(region("here")))
    }

    fn name(text: &str) -> NodeName {
        text.parse().expect("a name")
    }

    fn region(text: &str) -> Region {
        text.parse().expect("a region")
    }

    fn listed(name: &str, address: &str, region: Option<&str>) -> Relay {
        Relay {
            name: self::name(name),
            addresses: vec![address.parse().expect("an address")],
            region: region.map(self::region),
            connected: true,
        }
    }

    fn ms(n: u64) -> Option<Duration> {
        Some(Duration::from_millis(n))
    }

    #[tokio::test]
    async fn a_relay_that_failed_comes_after_the_others_and_again_after_a_pause() {
        let seats = seats(&["a:1", "b:1"]);
        let first = seats.take().await;
        let failed = first.address().clone();
        first.failed(Reason::RelayUnreachable, Duration::ZERO);
        drop(first);
        let second = seats.take().await;
        assert_ne!(*second.address(), failed);
        assert_eq!(*seats.take().await.address(), failed);
    }

    #[tokio::test]
    async fn two_addresses_of_one_relay_are_one_seat() {
        let seats = seats(&["a:1", "a.example:1"]);
        let first = seats.take().await;
        assert!(!first.is_doubled_by(&name("r1")));
        let second = seats.take().await;
        let other = second.address().clone();
        assert!(second.is_doubled_by(&name("r1")));
        drop(second);
        assert!(!seats.has_free());
        first.failed(Reason::SessionLost, Duration::ZERO);
        drop(first);
        assert_eq!(*seats.take().await.address(), other);
    }

    #[tokio::test]
    async fn a_relay_of_our_region_comes_first_then_the_nearer_one_and_those_away_last() {
        let seats = seats(&[]);
        let mut away = listed("away", "away:1", Some("here"));
        away.connected = false;
        seats.update(&[
            listed("far", "far:1", Some("there")),
            away,
            listed("near", "near:1", None),
            listed("home", "home:1", Some("here")),
        ]);
        seats.measured(&"far:1".parse().expect("an address"), None, ms(200));
        seats.measured(&"near:1".parse().expect("an address"), None, ms(20));
        let mut order = Vec::new();
        for _ in 0..4 {
            let seat = seats.take().await;
            order.push(seat.address().to_string());
            std::mem::forget(seat); // held
        }
        assert_eq!(order, ["home:1", "near:1", "far:1", "away:1"]);
    }

    #[tokio::test]
    async fn a_session_moves_only_to_a_relay_that_is_clearly_better_and_free() {
        let seats = seats(&["a:1"]);
        let seat = seats.take().await;
        seats.measured(seat.address(), Some(name("a")), ms(40));
        for (rtt, expected) in [(36, false), (30, false), (20, true)] {
            seats.update(&[listed("b", "b:1", None)]);
            seats.measured(&"b:1".parse().expect("an address"), None, ms(rtt));
            let found = seats.better(&seat);
            assert_eq!(found.is_some(), expected, "{rtt} ms against 40 ms");
        }
        assert_eq!(seats.better(&seat), None, "it is held");
        seats.update(&[listed("c", "c:1", Some("here"))]);
        assert!(seats.better(&seat).is_some(), "one of our region");
    }

    #[test]
    fn agents_that_see_the_same_relays_spread_over_them() {
        let mut firsts = std::collections::BTreeSet::new();
        for seed in 0..32 {
            let seats = Seats::new(&[], [seed; 16], None);
            seats.update(&[listed("a", "a:1", None), listed("b", "b:1", None)]);
            if let Free::Now(address) = seats.free() {
                firsts.insert(address.to_string());
            }
        }
        assert_eq!(firsts.len(), 2);
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
