//! The tenant's rules: seen, changed one by one, replaced from a file, and explained.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{default_tenant, method};
use crate::name::{AgentName, ServiceName, TenantName};
use crate::policy::{
    Action, CallerPattern, Conditions, DestinationPattern, Rule, RuleExplained, RuleId,
    ServicePattern,
};
use crate::reason::Reason;
use crate::view::ViewVersion;

method! {
    /// Lists the tenant's rules.
    List "/v1/policy/list" Read ListRequest => ListResponse
}

method! {
    /// Adds a rule that allows.
    Allow "/v1/policy/allow" Admin AddRequest => ChangeResponse
}

method! {
    /// Adds a rule that denies; deny beats allow.
    Deny "/v1/policy/deny" Admin AddRequest => ChangeResponse
}

method! {
    /// Removes a rule.
    Remove "/v1/policy/remove" Admin RemoveRequest => ChangeResponse
}

method! {
    /// Replaces all rules that came from a file by these, at once or not at all.
    Apply "/v1/policy/apply" Admin ApplyRequest => ApplyResponse
}

method! {
    /// Says what policy decides, and because of which rule.
    Why "/v1/policy/why" Read WhyRequest => WhyResponse
}

/// Where a rule came from; `apply` touches none but its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// The controller made it at its first start.
    Starter,
    /// Somebody added it by command.
    Command,
    /// It stands in a policy file.
    File,
}

/// A rule and where it came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleRow {
    /// The rule.
    pub rule: Rule,
    /// Where it came from.
    pub origin: Origin,
}

/// Whose rules.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListRequest {
    /// The tenant.
    #[serde(default = "default_tenant")]
    pub tenant: TenantName,
}

/// The tenant's rules, in the order of their ids.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListResponse {
    /// One row for each rule.
    pub rules: Vec<RuleRow>,
    /// The version of the view that holds them.
    pub version: ViewVersion,
}

/// The rule to add; `allow` and `deny` take the effect from their path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddRequest {
    /// The tenant.
    #[serde(default = "default_tenant")]
    pub tenant: TenantName,
    /// The rule's id; one is made of its content when absent.
    #[serde(default)]
    pub id: Option<RuleId>,
    /// The agents that it speaks of, as patterns.
    pub callers: Vec<CallerPattern>,
    /// The services that it speaks of, as patterns.
    #[serde(default)]
    pub services: Vec<ServicePattern>,
    /// The destinations outside that it speaks of, as patterns.
    #[serde(default)]
    pub destinations: Vec<DestinationPattern>,
    /// What it speaks of.
    #[serde(default = "open")]
    pub actions: BTreeSet<Action>,
    /// When it speaks at all.
    #[serde(default)]
    pub conditions: Conditions,
}

fn open() -> BTreeSet<Action> {
    BTreeSet::from([Action::Open])
}

/// Which rule to remove.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemoveRequest {
    /// The tenant.
    #[serde(default = "default_tenant")]
    pub tenant: TenantName,
    /// The rule's id.
    pub id: RuleId,
}

/// A rule that was added or removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeResponse {
    /// The rule.
    pub rule: Rule,
    /// The version of the view that tells the nodes.
    pub version: ViewVersion,
}

/// The whole content of a policy file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApplyRequest {
    /// The tenant.
    #[serde(default = "default_tenant")]
    pub tenant: TenantName,
    /// Every rule of the file.
    pub rules: Vec<Rule>,
    /// Only say what would change.
    #[serde(default)]
    pub dry_run: bool,
}

/// What changed, or would.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApplyResponse {
    /// Rules that are new.
    pub added: Vec<Rule>,
    /// Rules whose content differs, as they are afterwards.
    pub changed: Vec<Rule>,
    /// Rules that are gone.
    pub removed: Vec<Rule>,
    /// The version of the view that tells the nodes; the present one when nothing changed.
    pub version: ViewVersion,
}

/// What to explain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WhyRequest {
    /// The tenant.
    #[serde(default = "default_tenant")]
    pub tenant: TenantName,
    /// Who wants it.
    pub caller: AgentName,
    /// To which service; or else to which destination.
    #[serde(default)]
    pub service: Option<ServiceName>,
    /// To which destination outside: `HOST:PORT`, with `/udp` behind it where that is meant.
    #[serde(default)]
    pub destination: Option<String>,
    /// What is wanted.
    #[serde(default = "open_one")]
    pub action: Action,
}

fn open_one() -> Action {
    Action::Open
}

/// What policy decides, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhyResponse {
    /// Whether it may be.
    pub allowed: bool,
    /// The reason that a flow would end with, when it may not.
    pub reason: Option<Reason>,
    /// The rule that decided, if one did.
    pub rule: Option<Rule>,
    /// The decision in one sentence.
    pub words: String,
    /// The rules that applied, then those that missed by one part.
    pub rules: Vec<RuleExplained>,
    /// The version of the view that was asked.
    pub version: ViewVersion,
}
