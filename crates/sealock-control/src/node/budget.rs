//! What a source may cost us before it has shown who it is.
//!
//! Relays carry the joins of many agents from one address, so the budgets are wide; they keep one source from taking
//! everything, while the token's 128 bits are what keeps strangers out.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use super::party;

/// What sources without a certificate may do.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// How many connections without a certificate one source may hold, handshakes included.
    pub unproven: u32,
    /// How many joins one source may try at once before it has to wait.
    pub joins: u32,
    /// How many more joins it may try a second.
    pub joins_per_second: f64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            unproven: 512, // the agents of a relay all come back from one address after a restart of ours
            joins: 60,
            joins_per_second: 10.0,
        }
    }
}

const SOURCES: usize = 65_536; // 4 MiB; beyond it new sources wait until others are idle

#[derive(Debug)]
struct Source {
    unproven: u32,
    joins: f64,
    filled: Instant,
}

/// The budgets of all sources.
#[derive(Debug)]
pub(super) struct Budgets {
    limits: Limits,
    sources: Mutex<HashMap<IpAddr, Source>>,
}

/// A connection's place in its source's budget; dropping it gives the place back.
#[derive(Debug)]
pub(super) struct Place {
    budgets: Arc<Budgets>,
    party: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut sources = self.budgets.sources.lock();
        if let Some(source) = sources.get_mut(&self.party) {
            source.unproven = source.unproven.saturating_sub(1);
        }
    }
}

impl Budgets {
    pub(super) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            limits,
            sources: Mutex::new(HashMap::new()),
        })
    }

    /// A place for a connection that has not shown a certificate yet.
    pub(super) fn unproven(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let party = party(address);
        let is_free = self.with(party, Instant::now(), |source, limits| {
            let is_free = source.unproven < limits.unproven;
            source.unproven += u32::from(is_free);
            is_free
        });
        is_free.then(|| Place {
            budgets: Arc::clone(self),
            party,
        })
    }

    /// Whether the source may try a join at `now`.
    pub(super) fn join(&self, address: IpAddr, now: Instant) -> bool {
        self.with(party(address), now, |source, limits| {
            let waited = now.saturating_duration_since(source.filled).as_secs_f64();
            let filled = source.joins + waited * limits.joins_per_second;
            source.joins = filled.min(f64::from(limits.joins));
            source.filled = now;
            let may = source.joins >= 1.0;
            source.joins -= f64::from(u8::from(may));
            may
        })
    }

    fn with(
        &self,
        party: IpAddr,
        now: Instant,
        use_it: impl FnOnce(&mut Source, &Limits) -> bool,
    ) -> bool {
        let mut sources = self.sources.lock();
        if sources.len() >= SOURCES && !sources.contains_key(&party) {
            let full = f64::from(self.limits.joins) / self.limits.joins_per_second;
            // Who holds nothing and would be full again is as good as new.
            sources.retain(|_, source| {
                let idle = now.saturating_duration_since(source.filled).as_secs_f64();
                source.unproven > 0 || idle < full
            });
            if sources.len() >= SOURCES {
                return false;
            }
        }
        let source = sources.entry(party).or_insert_with(|| Source {
            unproven: 0,
            joins: f64::from(self.limits.joins),
            filled: now,
        });
        use_it(source, &self.limits)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn budgets() -> Arc<Budgets> {
        Budgets::new(Limits {
            unproven: 2,
            joins: 3,
            joins_per_second: 1.0,
        })
    }

    #[test]
    fn a_source_gets_its_places_back_and_takes_none_from_others() {
        let budgets = budgets();
        let one: IpAddr = "192.0.2.1".parse().expect("an address");
        let other: IpAddr = "192.0.2.2".parse().expect("an address");
        let first = budgets.unproven(one);
        let second = budgets.unproven(one);
        assert!(first.is_some() && second.is_some() && budgets.unproven(one).is_none());
        assert!(budgets.unproven(other).is_some());
        drop(first);
        assert!(budgets.unproven(one).is_some());
    }

    #[test]
    fn joins_come_back_with_time() {
        let budgets = budgets();
        let source: IpAddr = "192.0.2.1".parse().expect("an address");
        let start = Instant::now();
        let tries: Vec<bool> = (0..4).map(|_| budgets.join(source, start)).collect();
        assert_eq!(tries, [true, true, true, false]);
        assert!(budgets.join(source, start + Duration::from_secs(1)));
        assert!(!budgets.join(source, start + Duration::from_secs(1)));
    }

    #[test]
    fn all_addresses_of_one_ipv6_network_are_one_source() {
        let one = party("2001:db8::1".parse().expect("an address"));
        let two = party("2001:db8::ffff:1".parse().expect("an address"));
        let other = party("2001:db8:0:1::1".parse().expect("an address"));
        assert!(one == two && one != other);
        let mapped = party("::ffff:192.0.2.1".parse().expect("an address"));
        assert_eq!(mapped, "192.0.2.1".parse::<IpAddr>().expect("an address"));
    }
}
