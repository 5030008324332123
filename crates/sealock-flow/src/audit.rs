//! Decisions on their way to the audit record.
//!
//! A hop writes each decision into a bounded queue; the node's link to the controller empties it. While the controller
//! is away the queue keeps the newest decisions and counts what it had to drop: the data path never waits for it.
//! A decision leaves the queue when the controller has it, so whoever stops can wait until all are told. In a flood,
//! decisions that are alike become one row with a count.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use sealock_core::address::HostPort;
use sealock_core::fact::{Facts, Goal, Source};
use sealock_core::identity::AgentId;
use sealock_core::name::TenantName;
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
    pub goal: Goal,
    /// The rule that allowed it, if one did.
    pub rule: Option<RuleId>,
    /// `DONE` when it was allowed and the way is open; else why not.
    pub reason: Reason,
    /// How many decisions like it this one stands for.
    pub count: u64,
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
            goal: facts.goal.clone(),
            rule,
            reason: refusal.unwrap_or(Reason::Done),
            count: 1,
        }
    }

    /// Whether both say the same, but for their time.
    fn is_like(&self, other: &Self) -> bool {
        self.reason == other.reason
            && self.goal == other.goal
            && self.caller == other.caller
            && self.caller_source == other.caller_source
            && self.tenant == other.tenant
            && self.rule == other.rule
    }
}

/// A decision that allows an open, until it is known what came of the open. Dropped before, it counts as cancelled.
#[derive(Debug)]
pub struct Undecided {
    audit: Audit,
    decision: Option<Decision>,
}

impl Undecided {
    /// Writes the decision down with what came of it: `DONE` when the way is open.
    pub fn came_to(mut self, reason: Reason) {
        self.write(reason);
    }

    fn write(&mut self, reason: Reason) {
        if let Some(decision) = self.decision.take() {
            self.audit.decided(Decision { reason, ..decision });
        }
    }
}

impl Drop for Undecided {
    fn drop(&mut self) {
        self.write(Reason::Cancelled);
    }
}

/// How many decisions wait at most.
const QUEUE_LIMIT: usize = 16 * 1024; // about 4 MiB: an hour without controller at 5 opens a second
/// From how many that wait on, decisions that are alike become one.
const FLOOD: usize = 1_024; // no honest use has as many at once; each of them still has its own row
/// How many of the newest are looked through for one that is alike.
const ALIKE_DEPTH: usize = 64; // as many different callers may flood at once

/// The queue of decisions: any number of writers, one reader.
#[derive(Debug, Clone, Default)]
pub struct Audit {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    queue: Mutex<Queue>,
    wake: Notify,
    /// Somebody waits for all to be told.
    hurry: Notify,
    /// A report arrived, or did not.
    reported: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    decisions: VecDeque<Decision>,
    /// How many of the oldest are in a report that is not answered.
    on_the_way: usize,
    dropped: u64,
    /// How many reports did not arrive.
    failures: u64,
}

impl Queue {
    fn enter(&mut self, decision: Decision) {
        let waiting = self.decisions.len() - self.on_the_way;
        if waiting >= FLOOD {
            let newest = self.decisions.iter_mut().skip(self.on_the_way).rev();
            let mut newest = newest.take(ALIKE_DEPTH);
            if let Some(known) = newest.find(|known| known.is_like(&decision)) {
                known.count += decision.count;
                return;
            }
        }
        if self.decisions.len() >= QUEUE_LIMIT {
            self.decisions.remove(self.on_the_way);
            self.dropped += 1;
        }
        self.decisions.push_back(decision);
    }
}

impl Audit {
    /// An empty queue.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Writes a decision down. A full queue drops its oldest entry: the newest say most about what goes on.
    pub fn decided(&self, decision: Decision) {
        self.inner.queue.lock().enter(decision);
        self.inner.wake.notify_one();
    }

    /// A decision about a flow that this rule allows, to be written down when it is known what came of its open.
    #[must_use]
    pub fn allows(&self, facts: &Facts, rule: RuleId) -> Undecided {
        Undecided {
            audit: self.clone(),
            decision: Some(Decision::new(facts, Some(rule), None)),
        }
    }

    /// Every decision that the controller does not have yet, the oldest first.
    #[must_use]
    pub fn untold(&self) -> Vec<Decision> {
        self.inner.queue.lock().decisions.iter().cloned().collect()
    }

    /// Up to `limit` of the oldest decisions, waiting for the first, and how many were dropped before them. They stay
    /// in the queue until they [`arrived`](Self::arrived).
    ///
    /// # Cancel safety
    /// Safe.
    async fn next(&self, limit: usize) -> (Vec<Decision>, u64) {
        loop {
            {
                let mut queue = self.inner.queue.lock();
                if !queue.decisions.is_empty() {
                    queue.on_the_way = queue.decisions.len().min(limit);
                    let dropped = std::mem::take(&mut queue.dropped);
                    let decisions = queue.decisions.iter().take(queue.on_the_way);
                    return (decisions.cloned().collect(), dropped);
                }
            }
            self.inner.wake.notified().await;
        }
    }

    /// Waits for the first decision, and then a little for those that follow it closely: a report costs both sides the
    /// same for one as for many. Whoever is about to stop is not kept waiting.
    ///
    /// # Cancel safety
    /// Safe.
    async fn gather(&self) {
        while self.inner.queue.lock().decisions.is_empty() {
            self.inner.wake.notified().await;
        }
        if self.inner.queue.lock().decisions.len() < BATCH {
            let hurry = self.inner.hurry.notified();
            tokio::time::timeout(GATHER, hurry).await.ok();
        }
    }

    fn arrived(&self) {
        let mut queue = self.inner.queue.lock();
        let told = std::mem::take(&mut queue.on_the_way);
        queue.decisions.drain(..told);
        drop(queue);
        self.inner.reported.notify_waiters();
    }

    fn failed(&self) {
        let mut queue = self.inner.queue.lock();
        queue.on_the_way = 0;
        queue.failures += 1;
        drop(queue);
        self.inner.reported.notify_waiters();
    }

    /// The time between a report that did not arrive and the next one, unless somebody is in a hurry.
    async fn pause(&self) {
        let hurry = self.inner.hurry.notified();
        tokio::time::timeout(PAUSE, hurry).await.ok();
    }

    /// Waits until the controller has every decision, for whoever is about to stop; says whether it has. One more
    /// report that does not arrive is the end of the waiting, and so are two seconds.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn flush(&self) -> bool {
        let failures = self.inner.queue.lock().failures;
        self.inner.hurry.notify_one();
        let told = async {
            loop {
                let reported = self.inner.reported.notified();
                tokio::pin!(reported);
                // Before the look, so that no report falls between the two.
                reported.as_mut().enable();
                {
                    let queue = self.inner.queue.lock();
                    if queue.decisions.is_empty() || queue.failures != failures {
                        return queue.decisions.is_empty();
                    }
                }
                reported.await;
            }
        };
        let told = tokio::time::timeout(FLUSH_LIMIT, told).await;
        told.unwrap_or(false)
    }
}

/// How long a node that stops waits for the controller to take its last decisions.
const FLUSH_LIMIT: Duration = Duration::from_secs(2); // a call that has to begin with TLS takes some round trips

/// How many decisions one report holds: about 20 KiB.
const BATCH: usize = 128;
/// How long a decision waits for others to travel with it.
const GATHER: Duration = Duration::from_millis(100); // nobody reads the record sooner
const PAUSE: Duration = Duration::from_secs(2);

/// Delivers decisions to the controller, until dropped; keeps them while it is away. A relay also says where it is
/// reached, at once and with every report.
pub async fn deliver(audit: &Audit, link: &Link, addresses: &[HostPort]) {
    if !addresses.is_empty() {
        while let Err(error) = link.client().report(&[], addresses).await {
            tracing::debug!(err = %error, "the relay's addresses could not be told");
            audit.failed();
            audit.pause().await;
        }
    }
    loop {
        audit.gather().await;
        let (decisions, dropped) = audit.next(BATCH).await;
        if dropped > 0 {
            tracing::warn!(
                dropped,
                "decisions were dropped before they could be recorded"
            );
        }
        let rows: Vec<DecisionRow> = decisions.iter().map(row).collect();
        match link.client().report(&rows, addresses).await {
            Ok(()) => audit.arrived(),
            Err(error) => {
                tracing::debug!(err = %error, "decisions wait for the controller");
                audit.failed();
                audit.pause().await;
            }
        }
    }
}

fn row(decision: &Decision) -> DecisionRow {
    DecisionRow {
        at: decision.at,
        tenant: decision.tenant.clone(),
        caller: decision.caller.name.to_string(),
        service: decision.goal.to_string(),
        reason: decision.reason,
        rule: decision
            .rule
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
        count: decision.count,
    }
}

#[cfg(test)]
mod tests {
    use sealock_core::fact::Fact;

    use super::*;

    fn refusal(caller: &str) -> Decision {
        let caller = AgentId {
            tenant: "default".parse().expect("a name"),
            name: caller.parse().expect("a name"),
        };
        let facts = Facts {
            tenant: caller.tenant.clone(),
            caller: Fact::new(caller, Source::Relayed),
            certificate: None,
            goal: Goal::Service(Fact::new("db".parse().expect("a name"), Source::Relayed)),
        };
        Decision::new(&facts, None, Some(Reason::QuotaExceeded))
    }

    // S35: whoever is refused a hundred thousand times is counted, and pushes nobody else's row out.
    #[test]
    fn in_a_flood_decisions_that_are_alike_are_counted_in_few_rows() {
        let audit = Audit::new();
        audit.decided(refusal("honest"));
        for n in 0..100_000 {
            let flooder = if n % 2 == 0 { "mallory" } else { "trudy" };
            audit.decided(refusal(flooder));
        }
        let rows = audit.untold();
        assert!(rows.len() <= FLOOD + 2, "{}", rows.len());
        assert_eq!(rows.iter().map(|row| row.count).sum::<u64>(), 100_001);
        assert_eq!(rows[0].caller.name.as_str(), "honest");
    }

    #[test]
    fn a_few_decisions_have_a_row_each() {
        let audit = Audit::new();
        (0..FLOOD).for_each(|_| audit.decided(refusal("mallory")));
        assert_eq!(audit.untold().len(), FLOOD);
    }

    #[test]
    fn a_full_queue_drops_the_oldest_and_never_what_is_on_the_way() {
        let audit = Audit::new();
        let numbered = |n: usize| refusal(&format!("a{n}"));
        (0..QUEUE_LIMIT).for_each(|n| audit.decided(numbered(n)));
        audit.inner.queue.lock().on_the_way = 2;
        audit.decided(numbered(QUEUE_LIMIT));
        let rows = audit.untold();
        let name = |row: &Decision| row.caller.name.to_string();
        let first: Vec<String> = rows.iter().take(3).map(name).collect();
        assert_eq!(rows.len(), QUEUE_LIMIT);
        assert_eq!(first, ["a0", "a1", "a3"]);
    }

    #[test]
    fn an_open_that_nobody_waits_for_any_more_is_written_down_as_cancelled() {
        let audit = Audit::new();
        let Decision {
            tenant,
            caller,
            goal,
            ..
        } = refusal("ann");
        let facts = Facts {
            tenant,
            caller: Fact::new(caller, Source::Certificate),
            certificate: None,
            goal,
        };
        drop(audit.allows(&facts, "starter".parse().expect("a rule")));
        audit
            .allows(&facts, "starter".parse().expect("a rule"))
            .came_to(Reason::Done);
        let reasons: Vec<Reason> = audit.untold().iter().map(|row| row.reason).collect();
        assert_eq!(reasons, [Reason::Cancelled, Reason::Done]);
    }

    #[tokio::test]
    async fn whoever_stops_waits_for_the_last_report_and_not_for_a_controller_that_is_away() {
        let audit = Audit::new();
        assert!(audit.flush().await, "there is nothing to tell");
        audit.decided(refusal("mallory"));
        let (flushed, ()) = tokio::join!(audit.flush(), async {
            assert_eq!(audit.next(BATCH).await.0.len(), 1);
            audit.failed();
        });
        assert!(!flushed);
        let (flushed, ()) = tokio::join!(audit.flush(), async {
            audit.pause().await;
            assert_eq!(audit.next(BATCH).await.0.len(), 1);
            audit.arrived();
        });
        assert!(flushed && audit.untold().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn decisions_of_a_moment_travel_together_unless_somebody_is_about_to_stop() {
        let audit = Audit::new();
        let begun = tokio::time::Instant::now();
        let ((), ()) = tokio::join!(audit.gather(), async {
            for caller in ["ann", "bob", "eve"] {
                audit.decided(refusal(caller));
                tokio::time::sleep(GATHER / 10).await;
            }
        });
        assert_eq!(audit.next(BATCH).await.0.len(), 3);
        assert_eq!(begun.elapsed(), GATHER);
        audit.inner.hurry.notify_one();
        audit.gather().await;
        assert_eq!(begun.elapsed(), GATHER, "at once");
        // A report that is full has nothing to wait for.
        (0..BATCH).for_each(|_| audit.decided(refusal("mallory")));
        audit.gather().await;
        assert_eq!(begun.elapsed(), GATHER, "at once");
    }
}
