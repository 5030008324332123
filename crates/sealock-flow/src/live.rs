//! Live flows and their permits: what policy can take back while bytes move.
//!
//! A flow is entered here before it is judged, so no change of policy can fall between its verdict and its entry. On
//! every change the owner calls [`LiveFlows::rejudge`]; what is no longer allowed is cut with the reason.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use parking_lot::Mutex;
use sealock_core::fact::Facts;
use sealock_core::reason::Reason;
use sealock_net::transport::conduit::Expected;
use tokio::sync::Notify;

use crate::arrival::InletKind;
use crate::outlet::session::Carried;

/// A flow's number in its process, for logs and access records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowId(pub u64);

impl std::fmt::Display for FlowId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

/// A flow that exists at this hop.
#[derive(Debug)]
pub struct LiveFlow {
    /// Its number.
    pub id: FlowId,
    /// Where it came in.
    pub inlet: InletKind,
    /// What is known of it.
    pub facts: Facts,
    /// When it arrived.
    pub began: Instant,
    /// Bytes from near to far that were read here; see [`Self::bytes`].
    pub bytes_up: AtomicU64,
    /// Bytes from far to near that were read here.
    pub bytes_down: AtomicU64,
    /// Its place in the load of the provider that it goes to, at a relay.
    carried: OnceLock<Carried>,
    /// The conduit that its bytes go over, at a relay; it ends with the flow.
    conduit: OnceLock<Box<Expected>>,
    revoked: OnceLock<Reason>,
    wake: Notify,
}

impl LiveFlow {
    /// Counts the flow in a provider's load until the flow ends.
    pub(crate) fn count_at(&self, carried: Carried) {
        // A plan ends with the first way that opens, so there is no second one.
        let _first = self.carried.set(carried);
    }

    /// Has the flow's bytes go over a conduit, for as long as the flow lasts.
    pub(crate) fn goes_over(&self, conduit: Expected) {
        // A plan ends with the first way that opens, so there is no second one.
        let _first = self.conduit.set(Box::new(conduit));
    }

    /// All bytes so far: from near to far, and from far to near.
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        let (up, down) = self.conduit.get().map_or((0, 0), |it| it.moved());
        (
            up + self.bytes_up.load(Ordering::Relaxed),
            down + self.bytes_down.load(Ordering::Relaxed),
        )
    }

    /// Takes the flow's permit back; the first reason stays. Says whether it was this one.
    pub fn revoke(&self, reason: Reason) -> bool {
        let is_first = self.revoked.set(reason).is_ok();
        if is_first {
            self.wake.notify_waiters();
        }
        is_first
    }
}

/// Flows of all hops of a process count together, so that a log line names one flow.
static NEXT: AtomicU64 = AtomicU64::new(1);

/// Every flow of a hop, bounded.
#[derive(Debug, Clone)]
pub struct LiveFlows {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    flows: Mutex<HashMap<FlowId, Arc<LiveFlow>>>,
    limit: usize,
}

impl LiveFlows {
    /// Room for at most `limit` flows at once.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        let inner = Inner {
            flows: Mutex::default(),
            limit,
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Enters a flow.
    ///
    /// # Errors
    /// [`Reason::Overloaded`] when the hop is full: a new flow is refused rather than an old one hurt.
    pub fn enter(&self, inlet: InletKind, facts: Facts) -> Result<Permit, Reason> {
        let id = FlowId(NEXT.fetch_add(1, Ordering::Relaxed));
        let flow = Arc::new(LiveFlow {
            id,
            inlet,
            facts,
            began: Instant::now(),
            bytes_up: AtomicU64::new(0),
            bytes_down: AtomicU64::new(0),
            carried: OnceLock::new(),
            conduit: OnceLock::new(),
            revoked: OnceLock::new(),
            wake: Notify::new(),
        });
        let mut flows = self.inner.flows.lock();
        if flows.len() >= self.inner.limit {
            return Err(Reason::Overloaded);
        }
        flows.insert(id, Arc::clone(&flow));
        drop(flows);
        Ok(Permit {
            flow,
            live: self.clone(),
        })
    }

    /// How many flows there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner.flows.lock().len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every flow, as of now.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<LiveFlow>> {
        self.inner.flows.lock().values().cloned().collect()
    }

    /// Judges every flow again and cuts those that `verdict` no longer allows; returns what was cut and why.
    pub fn rejudge(
        &self,
        verdict: impl Fn(&Facts) -> Result<(), Reason>,
    ) -> Vec<(Arc<LiveFlow>, Reason)> {
        let cut = |flow: Arc<LiveFlow>| {
            let reason = verdict(&flow.facts).err()?;
            flow.revoke(reason).then_some((flow, reason))
        };
        self.list().into_iter().filter_map(cut).collect()
    }
}

/// A flow's right to be; ends with the flow.
#[derive(Debug)]
pub struct Permit {
    flow: Arc<LiveFlow>,
    live: LiveFlows,
}

impl Permit {
    /// The flow that the permit is for.
    #[must_use]
    pub fn flow(&self) -> &LiveFlow {
        &self.flow
    }

    /// Waits until policy takes the permit back.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn revoked(&self) -> Reason {
        loop {
            let woken = self.flow.wake.notified();
            if let Some(&reason) = self.flow.revoked.get() {
                return reason;
            }
            woken.await;
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.live.inner.flows.lock().remove(&self.flow.id);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use sealock_core::fact::{Fact, Goal, Source};
    use sealock_core::identity::AgentId;

    use super::*;

    // S43: between the look at the limit and the entry nobody else gets in.
    #[test]
    fn opens_of_many_threads_never_exceed_the_limit() {
        const LIMIT: usize = 32; // fewer than threads, so that each of them meets it
        let live = LiveFlows::new(LIMIT);
        let agent: AgentId = AgentId {
            tenant: "default".parse().expect("a name"),
            name: "ann".parse().expect("a name"),
        };
        let facts = Facts {
            tenant: agent.tenant.clone(),
            caller: Fact::new(agent, Source::Certificate),
            certificate: None,
            goal: Goal::Service(Fact::new("db".parse().expect("a name"), Source::Asked)),
        };
        let (held, entered) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..64 {
                scope.spawn(|| {
                    for _ in 0..10_000 {
                        let Ok(permit) = live.enter(InletKind::Session, facts.clone()) else {
                            continue;
                        };
                        assert!(held.fetch_add(1, Ordering::SeqCst) < LIMIT);
                        entered.fetch_add(1, Ordering::Relaxed);
                        if entered.load(Ordering::Relaxed).is_multiple_of(64) {
                            std::thread::yield_now();
                        }
                        held.fetch_sub(1, Ordering::SeqCst);
                        drop(permit);
                    }
                });
            }
        });
        assert!(entered.into_inner() >= 10_000 && live.is_empty());
    }
}
