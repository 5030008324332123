//! What the streams of an agent may hold together: bytes in buffers, and streams without a leg.
//!
//! Nothing that was taken over is ever thrown away for want of room. As room gets scarce, windows and replay buffers
//! grow less and then no more: the applications feel it as back-pressure.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use sealock_core::identity::AgentId;

const MEMORY_LIMIT: u64 = 256 << 20; // sixteen streams at full size, or a thousand that idle with all granted
const WIDE: u32 = 16 << 20; // 1 Gbit/s at 128 ms
const NARROW: u32 = 1 << 20; // 1 Gbit/s at 8 ms
const SCARCE: u32 = 64 << 10; // what one write takes at most, so that everything still moves

/// The bytes that an agent's streams hold and have promised to hold; clones share them.
#[derive(Debug, Clone, Default)]
pub(super) struct Memory {
    used: Arc<AtomicU64>,
}

impl Memory {
    /// What the window and the replay buffer of a stream may grow to, as things are.
    pub(super) fn ceiling(&self) -> u32 {
        match self.used.load(Ordering::Relaxed) {
            used if used < MEMORY_LIMIT / 2 => WIDE,
            used if used < MEMORY_LIMIT / 4 * 3 => NARROW,
            _ => SCARCE,
        }
    }

    /// A stream that held `before` holds `after` now.
    pub(super) fn settle(&self, before: u64, after: u64) {
        if after > before {
            self.used.fetch_add(after - before, Ordering::Relaxed);
        } else {
            self.used.fetch_sub(before - after, Ordering::Relaxed);
        }
    }
}

const PARKED_LIMIT: usize = 4_096; // as many as a port of our own takes flows
const PARKED_LIMIT_PER_PEER: usize = 1_024; // a peer that cuts all its legs leaves room for the others

/// The streams without a leg, counted for each peer; clones share them.
#[derive(Debug, Clone, Default)]
pub(super) struct Parking {
    parked: Arc<Mutex<Places>>,
}

#[derive(Debug, Default)]
struct Places {
    total: usize,
    by_peer: HashMap<AgentId, usize>,
}

/// A stream's place among the parked.
#[derive(Debug)]
pub(super) struct Parked {
    parking: Parking,
    peer: AgentId,
}

impl Parking {
    /// A place for a stream with this peer, while there is one.
    pub(super) fn enter(&self, peer: &AgentId) -> Option<Parked> {
        let mut places = self.parked.lock();
        let of_peer = places.by_peer.get(peer).copied().unwrap_or(0);
        if places.total >= PARKED_LIMIT || of_peer >= PARKED_LIMIT_PER_PEER {
            return None;
        }
        places.total += 1;
        places.by_peer.insert(peer.clone(), of_peer + 1);
        Some(Parked {
            parking: self.clone(),
            peer: peer.clone(),
        })
    }

    /// How many streams are parked.
    pub(super) fn len(&self) -> usize {
        self.parked.lock().total
    }
}

impl Drop for Parked {
    fn drop(&mut self) {
        let mut places = self.parking.parked.lock();
        places.total -= 1;
        if let Some(count) = places.by_peer.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                places.by_peer.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(name: &str) -> AgentId {
        AgentId {
            tenant: "default".parse().expect("a name"),
            name: name.parse().expect("a name"),
        }
    }

    #[test]
    fn windows_grow_less_as_memory_gets_scarce_and_again_when_it_is_free() {
        let memory = Memory::default();
        assert_eq!(memory.ceiling(), WIDE);
        memory.settle(0, MEMORY_LIMIT / 2);
        assert_eq!(memory.ceiling(), NARROW);
        memory.settle(0, MEMORY_LIMIT / 4);
        assert_eq!(memory.ceiling(), SCARCE);
        memory.settle(MEMORY_LIMIT / 2, 0);
        assert_eq!(memory.ceiling(), WIDE);
    }

    // S19: whoever parks all it can takes its own places only.
    #[test]
    fn a_peer_that_parks_in_floods_leaves_places_for_others() {
        let parking = Parking::default();
        let flood: Vec<_> = (0..100_000)
            .filter_map(|_| parking.enter(&agent("mallory")))
            .collect();
        assert_eq!(flood.len(), PARKED_LIMIT_PER_PEER);
        let honest = parking.enter(&agent("ann"));
        assert!(honest.is_some());
        drop((flood, honest));
        assert_eq!(parking.len(), 0);
        assert!(parking.enter(&agent("mallory")).is_some());
    }

    #[test]
    fn all_peers_together_park_within_the_bound() {
        let parking = Parking::default();
        let all: Vec<_> = (0..10)
            .flat_map(|n| std::iter::repeat_n(agent(&format!("a{n}")), PARKED_LIMIT_PER_PEER))
            .filter_map(|peer| parking.enter(&peer))
            .collect();
        assert_eq!(all.len(), PARKED_LIMIT);
    }
}
