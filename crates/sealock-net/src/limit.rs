//! A bound on how much goes on at once, for all peers together and for each: whoever floods takes its own places only.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use parking_lot::Mutex;
use sealock_core::identity::AgentId;

/// Places, counted for each peer; clones share them.
#[derive(Debug)]
pub struct PeerLimit<P: Eq + Hash = AgentId> {
    inner: Arc<Inner<P>>,
}

impl<P: Eq + Hash> Clone for PeerLimit<P> {
    fn clone(&self) -> Self {
        let inner = Arc::clone(&self.inner);
        Self { inner }
    }
}

#[derive(Debug)]
struct Inner<P> {
    all: usize,
    of_one: usize,
    taken: Mutex<Taken<P>>,
}

#[derive(Debug)]
struct Taken<P> {
    total: usize,
    by_peer: HashMap<P, usize>,
}

/// A place that a peer has, until it is dropped.
#[derive(Debug)]
pub struct Entered<P: Eq + Hash = AgentId> {
    limit: PeerLimit<P>,
    peer: P,
}

impl<P: Eq + Hash + Clone> PeerLimit<P> {
    /// So many places for all peers together, and so many for one.
    #[must_use]
    pub fn new(all: usize, of_one: usize) -> Self {
        let inner = Inner {
            all,
            of_one,
            taken: Mutex::new(Taken {
                total: 0,
                by_peer: HashMap::new(),
            }),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// A place for this peer, while there is one.
    #[must_use]
    pub fn enter(&self, peer: &P) -> Option<Entered<P>> {
        let mut taken = self.inner.taken.lock();
        let of_peer = taken.by_peer.get(peer).copied().unwrap_or(0);
        if taken.total >= self.inner.all || of_peer >= self.inner.of_one {
            return None;
        }
        taken.total += 1;
        taken.by_peer.insert(peer.clone(), of_peer + 1);
        Some(Entered {
            limit: self.clone(),
            peer: peer.clone(),
        })
    }

    /// How many places are taken.
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner.taken.lock().total
    }

    /// Whether no place is taken.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<P: Eq + Hash> Drop for Entered<P> {
    fn drop(&mut self) {
        let mut taken = self.limit.inner.taken.lock();
        taken.total -= 1;
        if let Some(count) = taken.by_peer.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                taken.by_peer.remove(&self.peer);
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

    // S19: whoever takes all it can takes its own places only.
    #[test]
    fn a_peer_that_floods_leaves_places_for_others() {
        let limit = PeerLimit::new(4_096, 1_024);
        let flood: Vec<_> = (0..100_000)
            .filter_map(|_| limit.enter(&agent("mallory")))
            .collect();
        assert_eq!(flood.len(), 1_024);
        let honest = limit.enter(&agent("ann"));
        assert!(honest.is_some());
        drop((flood, honest));
        assert!(limit.is_empty() && limit.inner.taken.lock().by_peer.is_empty());
        assert!(limit.enter(&agent("mallory")).is_some());
    }

    #[test]
    fn all_peers_together_stay_within_the_bound() {
        let limit = PeerLimit::new(100, 30);
        let all: Vec<_> = (0..10)
            .flat_map(|n| std::iter::repeat_n(agent(&format!("a{n}")), 30))
            .filter_map(|peer| limit.enter(&peer))
            .collect();
        assert_eq!(all.len(), 100);
    }
}
