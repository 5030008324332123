//! The agent's two judgements: of what it opens itself, early, and of what others open at it, with the last word.

use std::sync::Arc;

use sealock_core::address::Target;
use sealock_core::fact::{Facts, Goal};
use sealock_core::policy::RuleId;
use sealock_core::reason::Reason;
use sealock_flow::arrival::LegHead;
use sealock_flow::outlet::Way;
use sealock_flow::outlet::session::ServiceOutlet;
use sealock_flow::rule::Judge;
use sealock_flow::rules;
use sealock_net::e2e::EndToEnd;
use sealock_net::session::Sessions;
use sealock_net::views::ViewStore;

use crate::egress::EgressJudge;
use crate::offers::Offers;

/// Judges the agent's own opens, so that what the tenant does not allow fails here, at once and with the reason.
#[derive(Debug, Clone)]
pub(crate) struct CallerJudge {
    pub(crate) views: ViewStore,
    pub(crate) outlet: Arc<ServiceOutlet>,
}

impl CallerJudge {
    /// By these views, over these sessions.
    pub(crate) fn new(sessions: &Sessions, end_to_end: &EndToEnd, views: &ViewStore) -> Self {
        let outlet = ServiceOutlet::new(sessions.clone(), end_to_end.clone(), views.clone());
        Self {
            views: views.clone(),
            outlet: Arc::new(outlet),
        }
    }
}

impl Judge for CallerJudge {
    fn judge(&self, facts: &Facts) -> Result<RuleId, Reason> {
        rules::by_view(&self.views, facts)
    }

    fn plan(&self, _facts: &Facts, _leg: Option<&LegHead>) -> Result<Vec<Way>, Reason> {
        Ok(vec![Way::Service(Arc::clone(&self.outlet))])
    }
}

/// Judges what comes in at a front door: a service is opened as the agent opens any, a place outside by the door's ways.
#[derive(Debug, Clone)]
pub(crate) struct DoorJudge {
    pub(crate) services: CallerJudge,
    pub(crate) outside: EgressJudge,
}

impl Judge for DoorJudge {
    fn judge(&self, facts: &Facts) -> Result<RuleId, Reason> {
        self.services.judge(facts)
    }

    fn plan(&self, facts: &Facts, leg: Option<&LegHead>) -> Result<Vec<Way>, Reason> {
        match &facts.goal {
            Goal::Service(_) => self.services.plan(facts, leg),
            Goal::Destination(_) => self.outside.plan(facts, leg),
        }
    }
}

/// Judges callers who proved their identity end to end, by the agent's own view: no relay can widen this.
#[derive(Debug, Clone)]
pub(crate) struct ProviderJudge {
    pub(crate) views: ViewStore,
    pub(crate) offers: Offers,
}

impl Judge for ProviderJudge {
    fn judge(&self, facts: &Facts) -> Result<RuleId, Reason> {
        let rule = rules::by_view(&self.views, facts)?;
        // Also when a flow is judged again: an offer that was taken back ends its flows.
        match self.offers.target(facts.service()?) {
            Some(_) => Ok(rule),
            None => Err(Reason::PeerRefused),
        }
    }

    fn plan(&self, facts: &Facts, _leg: Option<&LegHead>) -> Result<Vec<Way>, Reason> {
        let target = self
            .offers
            .target(facts.service()?)
            .ok_or(Reason::PeerRefused)?;
        Ok(vec![match target {
            Target::Tcp(address) => Way::Direct(address),
            Target::Unix(path) => Way::Unix(path),
        }])
    }
}
