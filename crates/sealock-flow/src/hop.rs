//! A hop: the pipe, run once for every flow.

use std::sync::Arc;
use std::time::Duration;

use sealock_core::fact::Facts;
use sealock_core::reason::Reason;
use tracing::Instrument;

use crate::arrival::{Arrival, InletKind};
use crate::audit::{Audit, Decision, Undecided};
use crate::carry;
use crate::live::LiveFlows;
use crate::meter::Meter;
use crate::name;
use crate::outlet::{self, Opened};
use crate::rule::{self, Judge, Refused};

/// What a role brings to the pipe.
#[derive(Clone)]
pub struct Hop {
    /// Decides and plans.
    pub judge: Arc<dyn Judge>,
    /// The flows that exist.
    pub live: LiveFlows,
    /// Where decisions are written down.
    pub audit: Audit,
    /// What is counted.
    pub meter: Meter,
}

impl std::fmt::Debug for Hop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hop")
            .field("live", &self.live)
            .finish_non_exhaustive()
    }
}

impl Hop {
    /// Cuts every live flow that the policy of this moment no longer allows, and writes each down; returns how many.
    pub fn rejudge(&self) -> usize {
        let cut = self.live.rejudge(|facts| match self.judge.judge(facts) {
            Ok(_) => Ok(()),
            // The flow was allowed once, so what is missing now was taken back.
            Err(Reason::PolicyDenied | Reason::NoSuchService) => Err(Reason::PolicyRevoked),
            // Nothing was taken back: an old policy opens nothing new, and cuts nothing that it allowed.
            Err(Reason::PolicyStale) => Ok(()),
            Err(reason) => Err(reason),
        });
        for (flow, reason) in &cut {
            let decision = Decision::new(&flow.facts, None, Some(*reason));
            self.audit.decided(decision);
        }
        if !cut.is_empty() {
            tracing::info!(flows = cut.len(), "policy took permits back");
        }
        cut.len()
    }

    /// Writes down and counts that a flow with these facts may not be. Whoever waits for an answer is told by the caller.
    pub fn note_refusal(&self, inlet: InletKind, facts: &Facts, reason: Reason) {
        self.audit.decided(Decision::new(facts, None, Some(reason)));
        self.meter.refused(inlet, facts, reason);
    }
}

/// How often live flows are judged again without news, for rules that end by themselves.
pub const REJUDGE_EVERY: Duration = Duration::from_secs(2);

/// Runs one flow from its arrival to its end, and says why it ended.
pub async fn run(hop: &Hop, arrival: Arrival) -> Reason {
    let named = name::settle(arrival);
    match rule::decide(hop.judge.as_ref(), &hop.live, &hop.audit, named) {
        Ok((ruled, undecided)) => {
            let flow = ruled.permit.flow();
            let span = tracing::info_span!("flow", flow_id = %flow.id, inlet = flow.inlet.as_str());
            hop.meter.began(flow.inlet);
            go_on(hop, ruled, undecided).instrument(span).await
        }
        Err(refused) => {
            let Refused { named, reason } = *refused;
            hop.meter.refused(named.inlet, &named.facts, reason);
            Box::pin(named.near.refuse(reason)).await;
            reason
        }
    }
}

/// Refuses a flow before policy is asked: the node itself does not take it.
pub async fn refuse(hop: &Hop, arrival: Arrival, reason: Reason) {
    let Arrival {
        inlet, facts, near, ..
    } = arrival;
    hop.note_refusal(inlet, &facts, reason);
    near.refuse(reason).await;
}

// Each step in a box of its own: for its long idle life a flow keeps the memory of `carry`, not that of the handshakes.
async fn go_on(hop: &Hop, ruled: rule::Ruled, undecided: Undecided) -> Reason {
    let (opened, permit) = match Box::pin(outlet::open(ruled)).await {
        Ok(opened) => {
            undecided.came_to(Reason::Done);
            opened
        }
        Err(failed) => {
            undecided.came_to(failed.reason);
            hop.meter.ended(failed.permit.flow(), failed.reason);
            Box::pin(failed.near.refuse(failed.reason)).await;
            return failed.reason;
        }
    };
    let Opened { near, far } = opened;
    // Only here, with the far side open, is the near side accepted.
    let reason = match Box::pin(near.accept()).await {
        Ok(near) => Box::pin(carry::carry(near, far, &permit)).await,
        Err(reason) => {
            far.reset(reason);
            reason
        }
    };
    hop.meter.ended(permit.flow(), reason);
    reason
}
