//! Decisions on their way to the audit record.
//!
//! A hop writes each decision into a bounded queue; the node's link to the controller empties it. While the controller
//! is away the queue keeps the newest decisions and counts what it had to drop: the data path never waits for it.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use sealock_core::address::HostPort;
use sealock_core::fact::{Facts, Source};
use sealock_core::identity::AgentId;
use sealock_core::name::{ServiceName, TenantName};
use sealock_core::policy::RuleId;
use sealock_core::reason::Reason;
use sealock_net::link::Link;
use sealock_net::node_api::DecisionRow;
use tokio::sync::Notify;

/// What a hop decided about a flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// When, by the wall clock of the hop.
    pub at: jiff::Timestamp,
    /// In whose world.
    pub tenant: TenantName,
    /// Who asked.
    pub caller: AgentId,
    /// How the hop knew who asked.
    pub caller_source: Source,
    /// For what.
    pub service: ServiceName,
    /// The rule that allowed it, if one did.
    pub rule: Option<RuleId>,
    /// `DONE` when it was allowed.
    pub reason: Reason,
}

impl Decision {
    /// Of a flow with these facts, by this rule or refused for this reason.
    #[must_use]
    pub fn new(facts: &Facts, rule: Option<RuleId>, refusal: Option<Reason>) -> Self {
        Self {
            at: jiff::Timestamp::now(),
            tenant: facts.tenant.clone(),
            caller: facts.caller.value.clone(),
            caller_source: facts.caller.source,
            service: facts.service.value.clone(),
            rule,
            reason: refusal.unwrap_or(Reason::Done),
        }
    }
}

/// How many decisions wait at most.
const QUEUE_LIMIT: usize = 16 * 1024; // about 4 MiB: an hour without controller at 5 opens a second

/// The queue of decisions: any number of writers, one reader.
#[derive(Debug, Clone, Default)]
pub struct Audit {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    queue: Mutex<Queue>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    decisions: VecDeque<Decision>,
    dropped: u64,
}

impl Audit {
    /// An empty queue.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Writes a decision down. A full queue drops its oldest entry: the newest say most about what goes on.
    pub fn decided(&self, decision: Decision) {
        let mut queue = self.inner.queue.lock();
        if queue.decisions.len() >= QUEUE_LIMIT {
            queue.decisions.pop_front();
            queue.dropped += 1;
        }
        queue.decisions.push_back(decision);
        drop(queue);
        self.inner.wake.notify_one();
    }

    /// Takes up to `limit` of the oldest decisions, waiting for the first, and how many were dropped before them.
    ///
    /// # Cancel safety
    /// Safe: decisions are taken only when they are returned.
    pub async fn take(&self, limit: usize) -> (Vec<Decision>, u64) {
        loop {
            {
                let mut queue = self.inner.queue.lock();
                if !queue.decisions.is_empty() {
                    let count = queue.decisions.len().min(limit);
                    let dropped = std::mem::take(&mut queue.dropped);
                    return (queue.decisions.drain(..count).collect(), dropped);
                }
            }
            self.inner.wake.notified().await;
        }
    }

    /// Puts back what could not be delivered.
    pub fn put_back(&self, decisions: Vec<Decision>) {
        let mut queue = self.inner.queue.lock();
        for decision in decisions.into_iter().rev() {
            if queue.decisions.len() >= QUEUE_LIMIT {
                queue.dropped += 1;
            } else {
                queue.decisions.push_front(decision);
            }
        }
    }
}

/// How many decisions one report holds: about 20 KiB.
const BATCH: usize = 128;
const PAUSE: std::time::Duration = std::time::Duration::from_secs(2);

/// Delivers decisions to the controller, until dropped; keeps them while it is away. A relay also says where it is
/// reached, at once and with every report.
pub async fn deliver(audit: &Audit, link: &Link, addresses: &[HostPort]) {
    if !addresses.is_empty() {
        while let Err(error) = link.client().report(&[], addresses).await {
            tracing::debug!(err = %error, "the relay's addresses could not be told");
            tokio::time::sleep(PAUSE).await;
        }
    }
    loop {
        let (decisions, dropped) = audit.take(BATCH).await;
        if dropped > 0 {
            tracing::warn!(
                dropped,
                "decisions were dropped before they could be recorded"
            );
        }
        let rows: Vec<DecisionRow> = decisions.iter().map(row).collect();
        if let Err(error) = link.client().report(&rows, addresses).await {
            tracing::debug!(err = %error, "decisions wait for the controller");
            audit.put_back(decisions);
            tokio::time::sleep(PAUSE).await;
        }
    }
}

fn row(decision: &Decision) -> DecisionRow {
    DecisionRow {
        at: decision.at,
        tenant: decision.tenant.clone(),
        caller: decision.caller.name.to_string(),
        service: decision.service.to_string(),
        reason: decision.reason,
        rule: decision
            .rule
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
        count: 1,
    }
}
