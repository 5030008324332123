//! What a workload sends out: judged by the rules of its agent, and sent by the ways of its routes.
//!
//! Where a flow only claims a name, it goes to that name at an address that is looked up, or else to the address that the
//! workload dialled; each of the two has to be allowed by itself, and the workload's mixture of both is never dialled.

use std::sync::Arc;

use sealock_core::destination::Destination;
use sealock_core::fact::{Facts, Goal};
use sealock_core::policy::RuleId;
use sealock_core::reason::Reason;
use sealock_core::route::{self, Routes};
use sealock_flow::arrival::LegHead;
use sealock_flow::outlet::Way;
use sealock_flow::outlet::outside::Outside;
use sealock_flow::rule::Judge;
use sealock_flow::rules::Rules;

/// Judges the flows of workloads, which lead outside.
#[derive(Debug, Clone)]
pub struct EgressJudge {
    rules: Rules,
    routes: Arc<Routes>,
}

impl EgressJudge {
    /// By these rules, over these routes.
    #[must_use]
    pub fn new(rules: Rules, routes: Arc<Routes>) -> Self {
        Self { rules, routes }
    }

    /// What the flow may go to: a claimed name first, for that is what the workload means.
    fn places(&self, facts: &Facts, destination: &Destination) -> Vec<Destination> {
        if !destination.is_claimed() {
            return vec![destination.clone()];
        }
        let allowed = |place: &Destination| {
            let facts = Facts {
                goal: Goal::Destination(place.clone()),
                ..facts.clone()
            };
            self.rules.judge(&facts).is_ok()
        };
        let both = [destination.by_name(), destination.by_address()];
        both.into_iter().flatten().filter(allowed).collect()
    }

    fn way(&self, place: &Destination, way: &route::Way) -> Way {
        let outside = |proxy| {
            Way::Outside(Box::new(Outside {
                place: place.clone(),
                rules: self.rules.clone(),
                proxy,
            }))
        };
        match way {
            route::Way::Direct => outside(None),
            route::Way::Proxy(upstream) => outside(Some(upstream.clone())),
            route::Way::Unix(path) => Way::Unix(path.clone()),
            // A workload without a tunnel has no services.
            route::Way::Service(_) => Way::Refuse(Reason::NoSuchService),
            route::Way::Refuse => Way::Refuse(Reason::PolicyDenied),
        }
    }
}

impl Judge for EgressJudge {
    fn judge(&self, facts: &Facts) -> Result<RuleId, Reason> {
        self.rules.judge(facts)
    }

    fn plan(&self, facts: &Facts, _leg: Option<&LegHead>) -> Result<Vec<Way>, Reason> {
        let destination = facts.goal.destination().ok_or(Reason::NoSuchService)?;
        let mut ways = Vec::new();
        for place in self.places(facts, destination) {
            ways.extend(
                self.routes
                    .ways(&place)
                    .iter()
                    .map(|way| self.way(&place, way)),
            );
        }
        if ways.is_empty() {
            return Err(Reason::PolicyDenied);
        }
        Ok(ways)
    }
}

#[cfg(test)]
mod tests {
    use sealock_core::destination::Protocol;
    use sealock_core::fact::{Fact, Source};
    use sealock_core::identity::AgentId;
    use sealock_core::policy::{PolicyFile, RuleSet};

    use super::*;

    fn judge(destinations: &str) -> EgressJudge {
        let text = format!(
            "[[rule]]\nid = \"a\"\neffect = \"allow\"\ncallers = [\"*\"]\ndestinations = {destinations}\n"
        );
        let file = PolicyFile::parse(&text, "test").expect("rules");
        let rules = Rules::Local(Arc::new(RuleSet::new(file.rules)));
        EgressJudge::new(rules, Arc::default())
    }

    fn claimed() -> Facts {
        let caller = AgentId {
            tenant: "local".parse().expect("a name"),
            name: "run".parse().expect("a name"),
        };
        let dialled = "192.0.2.1:443".parse().expect("an address");
        let claim = "allowed.example".parse().expect("a name");
        Facts {
            tenant: caller.tenant.clone(),
            caller: Fact::new(caller, Source::Configured),
            certificate: None,
            goal: Goal::Destination(
                Destination::at(Protocol::Tcp, dialled).claimed(claim, Source::Sni),
            ),
        }
    }

    fn places(judge: &EgressJudge) -> Vec<String> {
        let ways = judge.plan(&claimed(), None).unwrap_or_default();
        let place = |way: Way| {
            let Way::Outside(outside) = way else {
                panic!("{way:?} leads elsewhere");
            };
            outside.place.to_string()
        };
        ways.into_iter().map(place).collect()
    }

    // C12, S56: an allowed name in front of another address opens the way to the name, never to the address.
    #[test]
    fn a_claimed_name_never_opens_the_way_to_the_address_beside_it() {
        let name = "allowed.example:443/tcp";
        let address = "192.0.2.1:443/tcp";
        assert_eq!(places(&judge("[\"allowed.example\"]")), [name]);
        assert_eq!(places(&judge("[\"192.0.2.0/24\"]")), [address]);
        assert_eq!(places(&judge("[\"*\"]")), [name, address]);
        let nothing = judge("[\"other.example\"]");
        assert_eq!(nothing.judge(&claimed()).err(), Some(Reason::PolicyDenied));
    }
}
