//! Policy: who may do what to which service.
//!
//! Closed world: what no rule allows is denied. Deny beats allow, and the order of rules never matters.
//! A condition that cannot be decided never satisfies an allow and always satisfies a deny.

use serde::{Deserialize, Serialize};

use crate::identity::AgentId;
use crate::name::ServiceName;

/// What a rule says about the flows that it matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    /// The flow may be.
    Allow,
    /// The flow may not be, whatever other rules say.
    Deny,
}

/// What somebody wants to do to a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Open a flow to it.
    Open,
    /// Serve it although another agent does already.
    Provide,
}

/// One line of policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// The rule's name in its tenant; decisions and audit rows cite it.
    pub id: String,
    /// Allow or deny.
    pub effect: Effect,
    /// The agents that it speaks of, as patterns.
    pub callers: Vec<String>,
    /// The services that it speaks of, as patterns.
    pub services: Vec<String>,
    /// What it speaks of.
    pub actions: Vec<Action>,
}

/// What policy is asked.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// Who wants it.
    pub caller: &'a AgentId,
    /// What is wanted.
    pub action: Action,
    /// To what.
    pub service: &'a ServiceName,
}

/// What policy answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// This rule allows it.
    Allowed {
        /// The rule's id.
        rule: String,
    },
    /// This rule denies it.
    Denied {
        /// The rule's id.
        rule: String,
    },
    /// No rule speaks of it, so it is denied.
    NoRule,
}
