//! A hop: the pipe, run once for every flow.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use sealock_core::fact::Facts;
use sealock_core::reason::Reason;
use tracing::Instrument;

use crate::arrival::{Arrival, InletKind};
use crate::audit::{Audit, Decision, Undecided};
use crate::carry;
use crate::io::Io;
use crate::live::{LiveFlows, Permit};
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

/// A flow on its way to its end, which says why it ended.
pub type Running = BoxFuture<'static, Reason>;

/// Does what goes before a flow, and then runs the flow, if it came to one. What went before keeps no memory then.
pub fn follow(
    before: impl Future<Output = Option<Running>> + Send + 'static,
) -> impl Future<Output = ()> + Send + 'static {
    let before = Box::pin(before);
    async {
        if let Some(flow) = before.await {
            flow.await;
        }
    }
}

/// Runs one flow from its arrival to its end, and says why it ended.
///
/// All that comes before the bytes is done in a box that is gone afterwards: for its long idle life a flow keeps the
/// memory of `carry` alone.
pub fn run(hop: &Hop, arrival: Arrival) -> Running {
    let beginning = Box::pin(begin(hop.clone(), arrival));
    Box::pin(async {
        match beginning.await {
            Ok(carried) => carried.await,
            Err(reason) => reason,
        }
    })
}

/// Judges and opens a flow; what is left to do is to carry its bytes.
async fn begin(hop: Hop, arrival: Arrival) -> Result<Running, Reason> {
    let named = name::settle(arrival);
    match rule::decide(hop.judge.as_ref(), &hop.live, &hop.audit, named) {
        Ok((ruled, undecided)) => {
            let flow = ruled.permit.flow();
            let span = tracing::info_span!("flow", flow_id = %flow.id, inlet = flow.inlet.as_str());
            hop.meter.began(flow.inlet);
            let opened = open(&hop, ruled, undecided);
            let (near, far, permit) = opened.instrument(span.clone()).await?;
            let carried = carry::carry(near, far, permit).map(move |(reason, permit)| {
                hop.meter.ended(permit.flow(), reason);
                reason
            });
            Ok(Box::pin(carried.instrument(span)))
        }
        Err(refused) => {
            let Refused { named, reason } = *refused;
            hop.meter.refused(named.inlet, &named.facts, reason);
            named.near.refuse(reason).await;
            Err(reason)
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

async fn open(
    hop: &Hop,
    ruled: rule::Ruled,
    undecided: Undecided,
) -> Result<(Io, Io, Permit), Reason> {
    let (opened, permit) = match outlet::open(ruled).await {
        Ok(opened) => {
            undecided.came_to(Reason::Done);
            opened
        }
        Err(failed) => {
            undecided.came_to(failed.reason);
            hop.meter.ended(failed.permit.flow(), failed.reason);
            failed.near.refuse(failed.reason).await;
            return Err(failed.reason);
        }
    };
    let Opened { near, far } = opened;
    // Only here, with the far side open, is the near side accepted.
    match near.accept().await {
        Ok(near) => Ok((near, far, permit)),
        Err(reason) => {
            far.reset(reason);
            hop.meter.ended(permit.flow(), reason);
            Err(reason)
        }
    }
}
