//! The third stage: policy's verdict, a permit that it can take back, and the ways to try in order.

use sealock_core::fact::Facts;
use sealock_core::policy::RuleId;
use sealock_core::reason::Reason;

use crate::arrival::LegHead;
use crate::audit::{Audit, Decision, Undecided};
use crate::live::{LiveFlows, Permit};
use crate::name::Named;
use crate::outlet::Way;

/// Decides over flows at one hop. Every role brings its own.
pub trait Judge: Send + Sync + 'static {
    /// Says whether the flow may be, by the policy of this moment, and which rule says so.
    ///
    /// # Errors
    /// The reason why not.
    fn judge(&self, facts: &Facts) -> Result<RuleId, Reason>;

    /// The ways to the far side, the best one first; never empty. `leg` is what was said of a leg of a session.
    ///
    /// # Errors
    /// The reason why there is none.
    fn plan(&self, facts: &Facts, leg: Option<&LegHead>) -> Result<Vec<Way>, Reason>;
}

/// A flow that may be, and how.
#[derive(Debug)]
pub struct Ruled {
    /// The flow.
    pub named: Named,
    /// Its right to be.
    pub permit: Permit,
    /// The ways to try, in order.
    pub ways: Vec<Way>,
}

/// A flow that may not be.
#[derive(Debug)]
pub struct Refused {
    /// The flow, still unanswered.
    pub named: Named,
    /// Why.
    pub reason: Reason,
}

/// Judges a flow and plans its ways. A refusal is written down here; a permission when it is known what came of it.
///
/// # Errors
/// The flow itself with the reason, so that its near side can be answered.
pub fn decide(
    judge: &dyn Judge,
    live: &LiveFlows,
    audit: &Audit,
    named: Named,
) -> Result<(Ruled, Undecided), Box<Refused>> {
    // Entered before it is judged: see `live`.
    let entered = live.enter(named.inlet, named.facts.clone());
    let verdict = entered.and_then(|permit| Ok((judge.judge(&named.facts)?, permit)));
    let (rule, permit) = match verdict {
        Ok(allowed) => allowed,
        Err(reason) => {
            audit.decided(Decision::new(&named.facts, None, Some(reason)));
            return Err(Box::new(Refused { named, reason }));
        }
    };
    let undecided = audit.allows(&named.facts, rule);
    match judge.plan(&named.facts, named.leg.as_ref()) {
        Ok(ways) => {
            let ruled = Ruled {
                named,
                permit,
                ways,
            };
            Ok((ruled, undecided))
        }
        Err(reason) => {
            undecided.came_to(reason);
            Err(Box::new(Refused { named, reason }))
        }
    }
}
