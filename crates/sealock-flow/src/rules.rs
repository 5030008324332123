//! Whose rules a hop goes by: the tenant's, signed by the controller, or those of this machine alone.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use sealock_core::destination::Destination;
use sealock_core::fact::{Facts, Goal};
use sealock_core::policy::{Action, Decision, Question, RuleId, RuleSet, Subject};
use sealock_core::reason::Reason;
use sealock_net::views::ViewStore;

/// Where the rules come from.
#[derive(Debug, Clone)]
pub enum Rules {
    /// The tenant's view, as it is at each question.
    View(ViewStore),
    /// This machine alone, which knows no groups, no labels and no services.
    Local(Arc<RuleSet>),
}

impl Rules {
    /// Says whether the flow may be, and by which rule.
    ///
    /// # Errors
    /// The reason why not; without a view, or with one that is too old, nothing is allowed.
    pub fn judge(&self, facts: &Facts) -> Result<RuleId, Reason> {
        match self {
            Self::View(views) => by_view(views, facts),
            Self::Local(rules) => match &facts.goal {
                Goal::Service(_) => Err(Reason::NoSuchService),
                Goal::Destination(destination) => {
                    let none = Nothing::default();
                    let now = jiff::Timestamp::now();
                    said(&rules.decide(&none.question(facts, destination), now))
                }
            },
        }
    }

    /// Says whether an address of the destination, which may be opened, may be dialled: it may be denied by itself, and a
    /// special one has to be named.
    ///
    /// # Errors
    /// The reason why not.
    pub fn admits(
        &self,
        facts: &Facts,
        destination: &Destination,
        address: IpAddr,
    ) -> Result<RuleId, Reason> {
        let now = jiff::Timestamp::now();
        match self {
            Self::View(views) => {
                let view = views.current(&facts.tenant)?;
                said(&view.admits(&facts.caller.value, destination, address, now))
            }
            Self::Local(rules) => {
                let none = Nothing::default();
                said(&rules.admits(&none.question(facts, destination), address, now))
            }
        }
    }
}

/// What the tenant's view says of a flow: is the caller's certificate still good, and does a rule allow the open?
///
/// # Errors
/// The reason why not; without a view, or with one that is too old, nothing is allowed.
pub fn by_view(views: &ViewStore, facts: &Facts) -> Result<RuleId, Reason> {
    let view = views.current(&facts.tenant)?;
    if let Some(certificate) = &facts.certificate
        && view.is_revoked(&certificate.serial, &certificate.key_digest)
    {
        return Err(Reason::IdentityRevoked);
    }
    let now = jiff::Timestamp::now();
    let wanted = (&facts.goal).into();
    said(&view.judge(&facts.caller.value, Action::Open, wanted, now))
}

/// What is known of a caller where there is no tenant.
#[derive(Default)]
struct Nothing {
    groups: BTreeSet<sealock_core::name::GroupName>,
    labels: BTreeMap<String, String>,
}

impl Nothing {
    fn question<'a>(&'a self, facts: &'a Facts, destination: &'a Destination) -> Question<'a> {
        Question {
            caller: &facts.caller.value,
            groups: &self.groups,
            labels: &self.labels,
            action: Action::Open,
            subject: Subject::Destination(destination),
        }
    }
}

/// The rule that allows, or the reason that a refused caller is told.
fn said(verdict: &Decision) -> Result<RuleId, Reason> {
    match (verdict.reason(), verdict.rule()) {
        (None, Some(rule)) => Ok(rule.clone()),
        (reason, _) => Err(reason.unwrap_or(Reason::PolicyDenied)),
    }
}
