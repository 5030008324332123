//! What strangers may cost before they have proved anything: a global number of handshakes and a rate per source.
//!
//! An address that was not validated may be forged, so it is never held against its owner: over its rate it is asked to
//! prove itself (Retry, which keeps no state); only validated addresses are refused. IPv6 sources count by /64, because
//! one host owns that many. Of a crowd only as many are let in as can be done with soon, and the others wait outside:
//! handshakes that all go on at once all end too late. Deliberately absent: penalties after a handshake; those belong to
//! who knows the outcome.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;

/// The limits before authentication.
#[derive(Debug, Clone, Copy)]
pub struct PreAuthLimits {
    /// Handshakes in progress at the same time.
    pub handshakes: usize,
    /// From this many on, every address must be validated first.
    pub retry_from: usize,
    /// Of those in progress, how many may have begun within the last [`FRESH`]; half of them without a validated address.
    pub fresh: usize,
    /// Handshakes that a source may begin at once.
    pub burst: u32,
    /// The time after which a source may begin one more.
    pub refill: Duration,
    /// Sources that are remembered.
    pub sources: usize,
}

impl Default for PreAuthLimits {
    fn default() -> Self {
        Self {
            handshakes: 1_024, // × ~32 KiB of TLS and QUIC state = 32 MiB, the budget before authentication
            retry_from: 256, // a fleet that returns after a restart gets through without the extra round trip
            fresh: FRESH_PER_CORE * std::thread::available_parallelism().map_or(1, usize::from),
            burst: 64, // an office behind one address
            refill: Duration::from_millis(100),
            sources: 16_384, // × ~64 bytes = 1 MiB
        }
    }
}

/// A handshake that is older waits for its peer, and not for us.
pub const FRESH: Duration = Duration::from_secs(2); // a few round trips of the longest ways
/// A core does them within a quarter of a second: so long may those wait who are in already.
const FRESH_PER_CORE: usize = 64;
/// How often is looked whether time alone has made room.
const LOOK: Duration = Duration::from_millis(100);

/// What to do with somebody at the door.
#[derive(Debug)]
pub enum Verdict {
    /// Begin the handshake; hold the ticket until it has ended.
    Accept(HandshakeTicket),
    /// Let it prove its address first.
    Retry,
    /// Let it wait its turn: see [`PreAuthBudget::room`].
    Wait,
    /// Tell it no.
    Refuse,
}

/// Counts one handshake in progress until it is dropped.
#[derive(Debug)]
pub struct HandshakeTicket {
    shared: Arc<Shared>,
    begun: (Instant, u64),
}

impl Drop for HandshakeTicket {
    fn drop(&mut self) {
        self.shared.state.lock().in_progress.remove(&self.begun);
        self.shared.ended.notify_one();
    }
}

/// Counts what strangers cost; clones share the count.
#[derive(Debug, Clone)]
pub struct PreAuthBudget {
    limits: PreAuthLimits,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// A handshake has ended.
    ended: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// When each began, and a number that tells it from others of the same moment.
    in_progress: BTreeSet<(Instant, u64)>,
    next: u64,
    // Apart, so that forgers can neither empty the bucket of an address's owner nor fill up the room for it.
    validated: Sources,
    unvalidated: Sources,
}

#[derive(Debug, Default)]
struct Sources {
    buckets: BTreeMap<IpAddr, Bucket>,
    swept: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: u32,
    since: Instant,
}

impl PreAuthBudget {
    /// A budget with these limits, all of it free.
    #[must_use]
    pub fn new(limits: PreAuthLimits) -> Self {
        Self {
            limits,
            shared: Arc::default(),
        }
    }

    /// How many handshakes are in progress.
    #[must_use]
    pub fn in_progress(&self) -> usize {
        self.shared.state.lock().in_progress.len()
    }

    /// Waits until somebody who was to wait may be asked about again.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn room(&self) {
        // An elapsed wait is a look too: a handshake that has grown old makes room.
        let _ended = tokio::time::timeout(LOOK, self.shared.ended.notified()).await;
    }

    /// Decides about somebody at `now`; `validated` is whether the address has been proved.
    #[must_use]
    pub fn admit(&self, now: Instant, source: IpAddr, validated: bool) -> Verdict {
        let mut state = self.shared.state.lock();
        let turned_away = if validated {
            Verdict::Refuse
        } else {
            Verdict::Retry
        };
        let in_progress = state.in_progress.len();
        if in_progress >= self.limits.handshakes {
            return Verdict::Refuse; // a Retry would only bring it back
        }
        // Forgers leave the other half to those who are where they say.
        let is_crowd = state.has_fresh(self.limits.fresh / 2, now);
        if !validated && (in_progress >= self.limits.retry_from || is_crowd) {
            return Verdict::Retry;
        }
        if is_crowd && state.has_fresh(self.limits.fresh, now) {
            return Verdict::Wait;
        }
        let sources = if validated {
            &mut state.validated
        } else {
            &mut state.unvalidated
        };
        if !sources.take_token(network_of(source), now, &self.limits) {
            return turned_away;
        }
        let begun = (now, state.next);
        state.next += 1;
        state.in_progress.insert(begun);
        let shared = Arc::clone(&self.shared);
        Verdict::Accept(HandshakeTicket { shared, begun })
    }
}

impl State {
    /// Whether so many began within the last [`FRESH`].
    fn has_fresh(&self, count: usize, now: Instant) -> bool {
        let newest = self.in_progress.iter().rev();
        let oldest_of_them = newest.take(count).nth(count.saturating_sub(1));
        oldest_of_them.is_some_and(|(begun, _)| now.saturating_duration_since(*begun) < FRESH)
    }
}

impl Sources {
    fn take_token(&mut self, source: IpAddr, now: Instant, limits: &PreAuthLimits) -> bool {
        if !self.buckets.contains_key(&source) && !self.make_room(now, limits) {
            return false;
        }
        let full = Bucket {
            tokens: limits.burst,
            since: now,
        };
        let bucket = self.buckets.entry(source).or_insert(full);
        *bucket = bucket.refilled(now, limits);
        match bucket.tokens.checked_sub(1) {
            Some(left) => {
                bucket.tokens = left;
                true
            }
            None => false,
        }
    }

    /// Forgets sources whose bucket is full again, which holds no information. When there are none, a newcomer waits
    /// rather than that anybody is forgotten.
    fn make_room(&mut self, now: Instant, limits: &PreAuthLimits) -> bool {
        if self.buckets.len() < limits.sources {
            return true;
        }
        let due = |swept| now.saturating_duration_since(swept) >= limits.refill;
        if self.swept.is_none_or(due) {
            // Once an interval at most: a walk over all sources for every packet would be an attack on ourselves.
            self.swept = Some(now);
            self.buckets
                .retain(|_, bucket| bucket.refilled(now, limits).tokens < limits.burst);
        }
        self.buckets.len() < limits.sources
    }
}

impl Bucket {
    fn refilled(self, now: Instant, limits: &PreAuthLimits) -> Self {
        let waited = now.saturating_duration_since(self.since).as_nanos();
        let gained = waited / limits.refill.as_nanos().max(1);
        let gained = u32::try_from(gained).unwrap_or(u32::MAX);
        let tokens = self.tokens.saturating_add(gained);
        if tokens >= limits.burst {
            return Self {
                tokens: limits.burst,
                since: now,
            };
        }
        // The part of an interval that has passed is kept, or frequent callers would never gain a token.
        let since = self.since + limits.refill * gained;
        Self { tokens, since }
    }
}

/// The network that a source counts by.
#[must_use]
pub fn network_of(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: PreAuthLimits = PreAuthLimits {
        handshakes: 8,
        retry_from: 4,
        fresh: 16, // more than are in progress
        burst: 2,
        refill: Duration::from_secs(1),
        sources: 16,
    };

    fn source(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    fn accepted(verdict: Verdict) -> HandshakeTicket {
        match verdict {
            Verdict::Accept(ticket) => ticket,
            other @ (Verdict::Retry | Verdict::Wait | Verdict::Refuse) => {
                panic!("not accepted: {other:?}")
            }
        }
    }

    // S31: forged sources cost a Retry each and never the real owner's place.
    #[test]
    fn forged_addresses_cannot_use_up_the_rate_of_their_owner() {
        let budget = PreAuthBudget::new(LIMITS);
        let now = Instant::now();
        for _ in 0..2 {
            drop(accepted(budget.admit(now, source(1), false)));
        }
        for _ in 0..10_000 {
            assert!(matches!(
                budget.admit(now, source(1), false),
                Verdict::Retry
            ));
        }
        drop(accepted(budget.admit(now, source(1), true)));
    }

    #[test]
    fn a_validated_source_over_its_rate_is_refused_and_gains_a_place_with_time() {
        let budget = PreAuthBudget::new(LIMITS);
        let now = Instant::now();
        for _ in 0..2 {
            drop(accepted(budget.admit(now, source(1), true)));
        }
        assert!(matches!(
            budget.admit(now, source(1), true),
            Verdict::Refuse
        ));
        drop(accepted(budget.admit(now, source(2), true)));
        let later = now + LIMITS.refill;
        drop(accepted(budget.admit(later, source(1), true)));
        assert!(matches!(
            budget.admit(later, source(1), true),
            Verdict::Refuse
        ));
    }

    #[test]
    fn a_source_that_asks_all_the_time_still_gains_its_places() {
        let budget = PreAuthBudget::new(LIMITS);
        let start = Instant::now();
        let step = LIMITS.refill / 4;
        let gained = (0..40).filter(|&n| {
            matches!(
                budget.admit(start + step * n, source(1), true),
                Verdict::Accept(_)
            )
        });
        assert_eq!(gained.count(), 2 + 9); // the burst, then one a second
    }

    #[test]
    fn many_handshakes_in_progress_mean_retry_and_then_refusal() {
        let budget = PreAuthBudget::new(LIMITS);
        let now = Instant::now();
        let mut held: Vec<_> = (0..4)
            .map(|n| accepted(budget.admit(now, source(n), false)))
            .collect();
        assert!(matches!(
            budget.admit(now, source(9), false),
            Verdict::Retry
        ));
        held.extend((4..8).map(|n| accepted(budget.admit(now, source(n), true))));
        assert!(matches!(
            budget.admit(now, source(9), true),
            Verdict::Refuse
        ));
        assert!(matches!(
            budget.admit(now, source(9), false),
            Verdict::Refuse
        ));
        held.clear();
        assert_eq!(budget.in_progress(), 0);
        drop(accepted(budget.admit(now, source(9), false)));
    }

    // F34: of a crowd, those who cannot be done with soon wait outside, and those that wait for themselves hold up nobody.
    #[test]
    fn a_crowd_is_let_in_no_faster_than_it_is_done_with() {
        let limits = PreAuthLimits {
            handshakes: 100,
            retry_from: 100,
            fresh: 8,
            ..LIMITS
        };
        let budget = PreAuthBudget::new(limits);
        let now = Instant::now();
        let mut held: Vec<_> = (0..4)
            .map(|n| accepted(budget.admit(now, source(n), false)))
            .collect();
        assert!(matches!(
            budget.admit(now, source(9), false),
            Verdict::Retry
        ));
        held.extend((4..8).map(|n| accepted(budget.admit(now, source(n), true))));
        assert!(matches!(budget.admit(now, source(9), true), Verdict::Wait));
        // One is done, and another one comes in; then the time alone makes room.
        held.pop();
        held.push(accepted(budget.admit(now, source(9), true)));
        assert!(matches!(budget.admit(now, source(8), true), Verdict::Wait));
        let later = now + FRESH;
        held.push(accepted(budget.admit(later, source(8), true)));
        assert_eq!(budget.in_progress(), 9);
    }

    #[test]
    fn hosts_of_one_ipv6_network_share_a_rate_and_memory_is_bounded() {
        let budget = PreAuthBudget::new(LIMITS);
        let now = Instant::now();
        for n in 0..2u16 {
            let host = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, n, 0, 0, 1);
            drop(accepted(budget.admit(now, host.into(), true)));
        }
        let third = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 9, 0, 0, 1);
        assert!(matches!(
            budget.admit(now, third.into(), true),
            Verdict::Refuse
        ));
        for n in 0..1_000u16 {
            let host = Ipv6Addr::new(0x2001, 0xdb8, n, 1, 0, 0, 0, 1);
            drop(budget.admit(now, host.into(), true));
        }
        assert!(budget.shared.state.lock().validated.buckets.len() <= LIMITS.sources);
    }
}
