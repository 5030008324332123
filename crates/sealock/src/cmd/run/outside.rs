//! The data part of a fence: takes what the program sends, judges it, sends it out, and tells the user.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anyhow::Context;
use sealock_agent::egress::EgressJudge;
use sealock_core::fact::Facts;
use sealock_core::identity::AgentId;
use sealock_core::policy::{Action, Question, RuleId, RuleSet, Subject};
use sealock_core::reason::Reason;
use sealock_core::route::Routes;
use sealock_flow::arrival::LegHead;
use sealock_flow::audit::Audit;
use sealock_flow::hop::Hop;
use sealock_flow::inlet::captured::{self, Notes, Workload};
use sealock_flow::live::LiveFlows;
use sealock_flow::meter::Meter;
use sealock_flow::outlet::Way;
use sealock_flow::rule::Judge;
use sealock_flow::rules::Rules;
use sealock_net::capture::{Sockets, StreamListener};
use sealock_net::task::Scope;

use super::{METHOD, names};
use crate::cli::Run;
use crate::failure;
use crate::print;

/// How many flows a fenced program may have at once: more than its descriptors allow it by default.
const FLOWS_LIMIT: usize = 65_536;

/// Serves the sockets of a fence until the scope ends.
pub(super) fn serve(
    sockets: Sockets,
    rules: Arc<RuleSet>,
    flags: &Run,
    scope: &Scope,
) -> anyhow::Result<()> {
    let verbose = flags.verbose;
    let routes = match flags.via.as_slice() {
        [] => Routes::default(), // direct
        ways => Routes::all_by(ways.to_vec()),
    };
    let local = Rules::Local(Arc::clone(&rules));
    let caller = AgentId {
        tenant: "local".parse().context("the tenant of this machine")?,
        name: "run".parse().context("the name of the program")?,
    };
    let told = Arc::new(Told { rules, verbose });
    let judge = Telling {
        judge: EgressJudge::new(local.clone(), Arc::new(routes)),
        verbose,
    };
    let hop = Hop {
        judge: Arc::new(judge),
        live: LiveFlows::new(FLOWS_LIMIT),
        audit: Audit::new(),
        meter: Meter::unread(),
    };
    let desk = names::desk(Arc::clone(&told.rules), scope)?;
    names::serve(&desk, sockets.name_streams, sockets.name_datagrams, scope)?;
    let workload = Workload {
        caller,
        rules: local,
        desk,
        notes: told,
    };
    for socket in sockets.streams {
        let listener = StreamListener::new(socket, METHOD)?;
        let (hop, workload, tasks) = (hop.clone(), workload.clone(), scope.spawner());
        scope.spawn("captured", async move {
            captured::serve(listener, hop, workload, &tasks).await;
        });
    }
    Ok(())
}

/// Judges as the rules say, and tells the user of what is allowed.
struct Telling {
    judge: EgressJudge,
    verbose: bool,
}

impl Judge for Telling {
    fn judge(&self, facts: &Facts) -> Result<RuleId, Reason> {
        let rule = self.judge.judge(facts)?;
        if self.verbose {
            print::error(&format!("sealock: {} allowed by rule `{rule}`", facts.goal));
        }
        Ok(rule)
    }

    fn plan(&self, facts: &Facts, leg: Option<&LegHead>) -> Result<Vec<Way>, Reason> {
        self.judge.plan(facts, leg)
    }
}

/// What is known of the program's flows, and told of them.
struct Told {
    rules: Arc<RuleSet>,
    verbose: bool,
}

impl Notes for Told {
    fn ended(&self, facts: &Facts, reason: Reason) {
        if reason == Reason::PolicyDenied {
            print::error(&format!("sealock: {} {}", facts.goal, self.verdict(facts)));
        } else if let Some((trouble, hint)) = unopened(reason) {
            let goal = &facts.goal;
            print::error(&format!(
                "sealock: {goal} was not reached: {trouble} ({reason})"
            ));
            print::error(&format!("hint: {hint}"));
        } else if self.verbose {
            print::error(&format!(
                "sealock: {} ended: {}",
                facts.goal,
                failure::words(reason)
            ));
        }
    }
}

/// Why an allowed flow did not open, in the words of who waits for a place outside, and what to do. `None`: it did open.
fn unopened(reason: Reason) -> Option<(&'static str, &'static str)> {
    if reason == Reason::TargetRefused {
        let hint = "is the port right? behind a proxy, is the proxy willing?";
        return Some(("nobody takes connections there", hint));
    }
    if reason == Reason::TargetUnreachable {
        let hint = "does this machine know the name (`getent hosts NAME`), and a way to it?";
        return Some(("its name has no address, or no way leads there", hint));
    }
    if [Reason::TargetTimeout, Reason::OpenTimeout].contains(&reason) {
        let hint =
            "does a firewall swallow it? try the same without the fence, or another way with --via";
        return Some(("it did not answer in time", hint));
    }
    if [Reason::Overloaded, Reason::Internal, Reason::NoSuchService].contains(&reason) {
        return Some((reason.text(), reason.hint()));
    }
    None
}

impl Told {
    /// Why a flow was refused. Where rules allow the place itself, it is its address that they do not.
    fn verdict(&self, facts: &Facts) -> String {
        let Some(destination) = facts.goal.destination() else {
            return failure::words(Reason::PolicyDenied);
        };
        let question = Question {
            caller: &facts.caller.value,
            groups: &BTreeSet::new(),
            labels: &BTreeMap::new(),
            action: Action::Open,
            subject: Subject::Destination(destination),
        };
        let decision = self.rules.decide(&question, jiff::Timestamp::now());
        if decision.is_allowed() {
            return "denied: no rule allows the addresses that it has".to_owned();
        }
        decision.to_string()
    }
}
