//! What strangers may cost before they have proved anything: a global number of handshakes and a rate per source.
//!
//! An address that was not validated may be forged, so it is never held against its owner: over its rate it is asked to
//! prove itself (Retry, which keeps no state); only validated addresses are refused. IPv6 sources count by /64, because
//! one host owns that many. Deliberately absent: penalties after a handshake; those belong to who knows the outcome.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// The limits before authentication.
#[derive(Debug, Clone, Copy)]
pub struct PreAuthLimits {
    /// Handshakes in progress at the same time.
    pub handshakes: usize,
    /// From this many on, every address must be validated first.
    pub retry_from: usize,
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
            burst: 64,       // an office behind one address
            refill: Duration::from_millis(100),
            sources: 16_384, // × ~64 bytes = 1 MiB
        }
    }
}

/// What to do with somebody at the door.
#[derive(Debug)]
pub enum Verdict {
    /// Begin the handshake; hold the ticket until it has ended.
    Accept(HandshakeTicket),
    /// Let it prove its address first.
    Retry,
    /// Tell it no.
    Refuse,
}

/// Counts one handshake in progress until it is dropped.
#[derive(Debug)]
pub struct HandshakeTicket {
    shared: Arc<Mutex<State>>,
}

impl Drop for HandshakeTicket {
    fn drop(&mut self) {
        self.shared.lock().in_progress -= 1;
    }
}

/// Counts what strangers cost; clones share the count.
#[derive(Debug, Clone)]
pub struct PreAuthBudget {
    limits: PreAuthLimits,
    shared: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    in_progress: usize,
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
        self.shared.lock().in_progress
    }

    /// Decides about somebody at `now`; `validated` is whether the address has been proved.
    #[must_use]
    pub fn admit(&self, now: Instant, source: IpAddr, validated: bool) -> Verdict {
        let mut state = self.shared.lock();
        let turned_away = if validated {
            Verdict::Refuse
        } else {
            Verdict::Retry
        };
        if state.in_progress >= self.limits.handshakes {
            return Verdict::Refuse; // a Retry would only bring it back
        }
        if !validated && state.in_progress >= self.limits.retry_from {
            return Verdict::Retry;
        }
        let sources = if validated {
            &mut state.validated
        } else {
            &mut state.unvalidated
        };
        if !sources.take_token(network_of(source), now, &self.limits) {
            return turned_away;
        }
        state.in_progress += 1;
        let shared = Arc::clone(&self.shared);
        Verdict::Accept(HandshakeTicket { shared })
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
            other @ (Verdict::Retry | Verdict::Refuse) => panic!("not accepted: {other:?}"),
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
        assert!(budget.shared.lock().validated.buckets.len() <= LIMITS.sources);
    }
}
