//! Policy: who may do what to which service, or to which destination outside.
//!
//! Closed world: what no rule allows is denied. Deny beats allow, and the order of rules never matters. What cannot be
//! decided (a condition of a newer version, labels of a service that nobody knows) never satisfies an allow and always
//! satisfies a deny. Rules are texts at the border only: [`pattern`] and [`condition`] parse them once, [`RuleSet`]
//! indexes them, and a decision costs microseconds however many rules there are.
//! Deliberately absent: regular expressions, rule priorities, and any default that allows.

pub mod condition;
mod explain;
mod file;
mod index;
#[cfg(test)]
mod oracle;
pub mod pattern;
pub mod place;
mod places;
mod set;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use self::condition::{Condition, Conditions};
pub use self::explain::{Explanation, Part, PartKind, RuleExplained};
pub use self::file::{PolicyFile, PolicyTest, TestGoal, TestOutcome};
pub use self::pattern::{CallerPattern, Label, PatternError, ServicePattern};
pub use self::place::{DestinationPattern, HostPattern, PlaceError, Ports};
pub use self::set::RuleSet;
use crate::destination::Destination;
use crate::identity::AgentId;
use crate::name::{GroupName, ServiceName};
use crate::reason::Reason;

/// What a rule says about the flows that it matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    /// The flow may be.
    Allow,
    /// The flow may not be, whatever other rules say.
    Deny,
}

impl Effect {
    /// Every effect.
    pub const ALL: [Self; 2] = [Self::Allow, Self::Deny];

    /// The effect's word in files and on the command line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
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

impl Action {
    /// Every action.
    pub const ALL: [Self; 2] = [Self::Open, Self::Provide];

    /// The action's word in files and on the command line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Provide => "provide",
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Why a text is not a rule's id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a rule id: use 1 to 128 of a-z, 0-9, `-`, `_` and `.`")]
pub struct RuleIdError(String);

/// A rule's name in its tenant; decisions and audit rows cite it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RuleId(Arc<str>);

const RULE_ID_LIMIT: usize = 128; // two service names' worth of reading; longer ones are data, not names

impl RuleId {
    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RuleId {
    type Err = RuleIdError;

    fn from_str(text: &str) -> Result<Self, RuleIdError> {
        let lawful =
            |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.');
        if (1..=RULE_ID_LIMIT).contains(&text.len()) && text.bytes().all(lawful) {
            Ok(Self(text.into()))
        } else {
            let shown: String = text.chars().take(RULE_ID_LIMIT).collect();
            Err(RuleIdError(shown.escape_default().to_string()))
        }
    }
}

impl TryFrom<String> for RuleId {
    type Error = RuleIdError;

    fn try_from(text: String) -> Result<Self, RuleIdError> {
        text.parse()
    }
}

impl From<RuleId> for String {
    fn from(id: RuleId) -> Self {
        id.0.as_ref().to_owned()
    }
}

impl fmt::Display for RuleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// One line of policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "StoredRule")]
pub struct Rule {
    /// The rule's name in its tenant.
    pub id: RuleId,
    /// Allow or deny.
    pub effect: Effect,
    /// The agents that it speaks of: one of these patterns must match.
    pub callers: Vec<CallerPattern>,
    /// The services that it speaks of: one of these patterns must match.
    pub services: Vec<ServicePattern>,
    /// The destinations that it speaks of: one of these patterns must match.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub destinations: Vec<DestinationPattern>,
    /// What it speaks of.
    pub actions: BTreeSet<Action>,
    /// When it speaks at all: every one must hold.
    #[serde(skip_serializing_if = "Conditions::is_empty")]
    pub conditions: Conditions,
}

/// A rule as it lies in the store: its lists may still be empty.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredRule {
    id: RuleId,
    effect: Effect,
    callers: Vec<CallerPattern>,
    #[serde(default)]
    services: Vec<ServicePattern>,
    #[serde(default)]
    destinations: Vec<DestinationPattern>,
    actions: BTreeSet<Action>,
    #[serde(default)]
    conditions: Conditions,
}

/// A rule that could never match, which for a deny would be a hole.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("rule `{id}` can never match: its `{list}` is empty")]
pub struct EmptyRule {
    /// The rule.
    pub id: RuleId,
    /// Which list holds nothing.
    pub list: &'static str,
}

impl Rule {
    /// Makes sure that the rule can match at all.
    ///
    /// # Errors
    /// When one of its lists is empty.
    pub fn check(&self) -> Result<(), EmptyRule> {
        let lists = [
            ("callers", self.callers.is_empty()),
            (
                "services",
                self.services.is_empty() && self.destinations.is_empty(),
            ),
            ("actions", self.actions.is_empty()),
        ];
        match lists.iter().find(|(_, empty)| *empty) {
            Some((list, _)) => Err(EmptyRule {
                id: self.id.clone(),
                list,
            }),
            None => Ok(()),
        }
    }
}

impl TryFrom<StoredRule> for Rule {
    type Error = EmptyRule;

    fn try_from(stored: StoredRule) -> Result<Self, EmptyRule> {
        let rule = Self {
            id: stored.id,
            effect: stored.effect,
            callers: stored.callers,
            services: stored.services,
            destinations: stored.destinations,
            actions: stored.actions,
            conditions: stored.conditions,
        };
        rule.check()?;
        Ok(rule)
    }
}

/// What policy is asked.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// Who wants it.
    pub caller: &'a AgentId,
    /// The groups that an administrator put the caller in.
    pub groups: &'a BTreeSet<GroupName>,
    /// The labels that the caller's token gave it.
    pub labels: &'a BTreeMap<String, String>,
    /// What is wanted.
    pub action: Action,
    /// To what.
    pub subject: Subject<'a>,
}

/// What something is wanted to be done to.
#[derive(Debug, Clone, Copy)]
pub enum Subject<'a> {
    /// A service of the tenant.
    Service {
        /// Its name.
        name: &'a ServiceName,
        /// What is said of it; nothing is known of one that does not exist.
        labels: Option<&'a BTreeMap<String, String>>,
    },
    /// A place outside.
    Destination(&'a Destination),
}

impl fmt::Display for Subject<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service { name, .. } => write!(f, "service `{name}`"),
            Self::Destination(destination) => write!(f, "destination `{destination}`"),
        }
    }
}

/// What policy answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// This rule allows it.
    Allowed {
        /// The rule's id.
        rule: RuleId,
    },
    /// This rule denies it.
    Denied {
        /// The rule's id.
        rule: RuleId,
    },
    /// No rule speaks of it, so it is denied.
    NoRule,
    /// The caller belongs to another tenant, so it is denied.
    ForeignCaller,
    /// The controller knows no such caller (any more), so it is denied.
    UnknownCaller,
    /// This rule would allow it, but there is no such service.
    NoSuchService {
        /// The rule's id.
        rule: RuleId,
    },
}

impl Decision {
    /// Whether it may be.
    #[must_use]
    pub fn is_allowed(&self) -> bool {
        self.reason().is_none()
    }

    /// What a refused caller is told; nothing when it is allowed.
    ///
    /// A service that the caller may not open and one that does not exist give the same reason.
    #[must_use]
    pub fn reason(&self) -> Option<Reason> {
        match self {
            Self::Allowed { .. } => None,
            Self::Denied { .. } | Self::NoRule | Self::ForeignCaller | Self::UnknownCaller => {
                Some(Reason::PolicyDenied)
            }
            Self::NoSuchService { .. } => Some(Reason::NoSuchService),
        }
    }

    /// The rule that decided, for logs and audit rows.
    #[must_use]
    pub fn rule(&self) -> Option<&RuleId> {
        match self {
            Self::Allowed { rule } | Self::Denied { rule } | Self::NoSuchService { rule } => {
                Some(rule)
            }
            Self::NoRule | Self::ForeignCaller | Self::UnknownCaller => None,
        }
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Allowed { rule } => write!(f, "allowed by rule `{rule}`"),
            Self::Denied { rule } => write!(f, "denied by rule `{rule}`"),
            Self::NoRule => f.write_str("denied: no rule allows it"),
            Self::ForeignCaller => f.write_str("denied: the caller belongs to another tenant"),
            Self::UnknownCaller => f.write_str("denied: the caller is not known"),
            Self::NoSuchService { rule } => {
                write!(f, "there is no such service (rule `{rule}` would allow it)")
            }
        }
    }
}

/// Whether something holds, when it may be that nobody can say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// It holds.
    Yes,
    /// It does not hold.
    No,
    /// It cannot be decided.
    Unknown,
}

impl Answer {
    /// Whether the answer lets a rule of this effect apply: the unknown never allows and always denies.
    #[must_use]
    pub fn satisfies(self, effect: Effect) -> bool {
        match (self, effect) {
            (Self::Yes, Effect::Allow | Effect::Deny) | (Self::Unknown, Effect::Deny) => true,
            (Self::No, Effect::Allow | Effect::Deny) | (Self::Unknown, Effect::Allow) => false,
        }
    }
}

impl From<bool> for Answer {
    fn from(holds: bool) -> Self {
        if holds { Self::Yes } else { Self::No }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Yes => "yes",
            // As wide as a yes, so that explanations line up.
            Self::No => "no ",
            Self::Unknown => "?? ",
        })
    }
}
