//! Agents of a tenant: who there is, and ending an identity.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{default_tenant, method};
use crate::name::{AgentName, GroupName, ServiceName, TenantName};
use crate::view::ViewVersion;

method! {
    /// Lists the tenant's agents.
    List "/v1/agent/list" Read ListRequest => ListResponse
}

method! {
    /// Ends an agent's identity: its certificates, its key, its registrations and its live flows.
    Revoke "/v1/agent/revoke" Admin RevokeRequest => RevokeResponse
}

/// Whose agents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListRequest {
    /// The tenant.
    #[serde(default = "default_tenant")]
    pub tenant: TenantName,
}

/// The tenant's agents, in name order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListResponse {
    /// One row for each agent.
    pub agents: Vec<AgentRow>,
}

/// What the controller knows of an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentRow {
    /// The agent's name.
    pub name: AgentName,
    /// Its groups.
    pub groups: BTreeSet<GroupName>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// When it joined.
    pub created: jiff::Timestamp,
    /// When its identity was ended, if it was.
    pub revoked: Option<jiff::Timestamp>,
    /// When its newest certificate ends.
    pub certificate_expires: Option<jiff::Timestamp>,
    /// When it last spoke to the controller.
    pub last_seen: Option<jiff::Timestamp>,
    /// The services that it provides.
    pub services: BTreeSet<ServiceName>,
}

/// Which agent to end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RevokeRequest {
    /// The tenant.
    #[serde(default = "default_tenant")]
    pub tenant: TenantName,
    /// The agent.
    pub name: AgentName,
}

/// What ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevokeResponse {
    /// How many certificates are on the revocation list because of this.
    pub certificates: u64,
    /// The version of the view that tells the nodes.
    pub version: ViewVersion,
}
