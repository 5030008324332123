//! The audit record of a tenant: who did what, in a chain that shows when a row was changed or taken out.

use serde::{Deserialize, Serialize};

use super::{default_tenant, method};
use crate::name::TenantName;
use crate::reason::Reason;

method! {
    /// Lists audit rows, the newest first.
    List "/v1/audit/list" Read ListRequest => ListResponse
}

method! {
    /// Recomputes the chain over all kept rows.
    Verify "/v1/audit/verify" Read VerifyRequest => VerifyResponse
}

/// Which rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListRequest {
    /// The tenant.
    #[serde(default = "default_tenant")]
    pub tenant: TenantName,
    /// The rows that belong to no tenant in place of a tenant's: relays, the authority, joins that were refused.
    #[serde(default)]
    pub deployment: bool,
    /// At most this many rows; the controller's limit when absent.
    #[serde(default)]
    pub limit: Option<u32>,
    /// Only rows before this number: the last one of the page before.
    #[serde(default)]
    pub before: Option<u64>,
    /// Only rows since this time.
    #[serde(default)]
    pub since: Option<jiff::Timestamp>,
    /// Only rows of this actor.
    #[serde(default)]
    pub actor: Option<String>,
    /// Only rows of this action, or of all actions that begin with it: `policy` finds `policy.allow`.
    #[serde(default)]
    pub action: Option<String>,
}

impl Default for ListRequest {
    fn default() -> Self {
        Self {
            tenant: default_tenant(),
            deployment: false,
            limit: None,
            before: None,
            since: None,
            actor: None,
            action: None,
        }
    }
}

/// A page of rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListResponse {
    /// The rows, the newest first.
    pub rows: Vec<AuditRow>,
    /// Whether older rows match as well.
    pub more: bool,
}

/// Something that was done or refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditRow {
    /// The row's number in its tenant.
    pub number: u64,
    /// When it was recorded.
    pub at: jiff::Timestamp,
    /// Who did it: an identity, `admin:<uid>`, or the source address of an anonymous peer.
    pub actor: String,
    /// What was done: `<area>.<verb>`.
    pub action: String,
    /// To whom or what.
    pub subject: String,
    /// How it ended; `DONE` when it was done.
    pub reason: Reason,
    /// More of it, as JSON.
    pub detail: serde_json::Value,
}

/// Whose chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VerifyRequest {
    /// The tenant.
    #[serde(default = "default_tenant")]
    pub tenant: TenantName,
    /// The chain that belongs to no tenant in place of a tenant's.
    #[serde(default)]
    pub deployment: bool,
}

/// What the chain says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyResponse {
    /// How many rows were checked.
    pub rows: u64,
    /// The first row that does not fit the one before it, if any.
    pub broken_at: Option<u64>,
    /// The hash of the newest row, for keeping elsewhere.
    pub head: String,
}
