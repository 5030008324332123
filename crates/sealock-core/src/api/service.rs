//! Services of a tenant: who provides what, and taking a name back.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{default_tenant, method};
use crate::choice::Terms;
use crate::name::{AgentName, ServiceName, TenantName};
use crate::view::ViewVersion;

method! {
    /// Lists the tenant's services.
    List "/v1/service/list" Read ListRequest => ListResponse
}

method! {
    /// Removes a service, or one agent's registration of it; the name is free again after the last one.
    Remove "/v1/service/remove" Operate RemoveRequest => RemoveResponse
}

/// Whose services.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListRequest {
    /// The tenant.
    #[serde(default = "default_tenant")]
    pub tenant: TenantName,
}

/// The tenant's services, in name order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListResponse {
    /// One row for each service.
    pub services: Vec<ServiceRow>,
}

/// A service and its providers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceRow {
    /// The service's name.
    pub name: ServiceName,
    /// The agent that registered the name first.
    pub owner: AgentName,
    /// What its owner said of it.
    pub labels: BTreeMap<String, String>,
    /// Whether a caller is to get the same provider each time.
    #[serde(default)]
    pub sticky: bool,
    /// Who serves it, in name order.
    pub providers: Vec<ProviderRow>,
}

/// One agent's registration of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProviderRow {
    /// The agent.
    pub agent: AgentName,
    /// How it wants to be chosen.
    #[serde(flatten)]
    pub terms: Terms,
    /// Whether its lease still runs, which means that it was heard of lately.
    pub live: bool,
    /// When its lease ends or ended.
    pub lease_ends: jiff::Timestamp,
}

/// What to remove.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemoveRequest {
    /// The tenant.
    #[serde(default = "default_tenant")]
    pub tenant: TenantName,
    /// The service.
    pub name: ServiceName,
    /// Only this agent's registration; all of them when absent.
    #[serde(default)]
    pub agent: Option<AgentName>,
}

/// What was removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoveResponse {
    /// How many registrations went.
    pub registrations: u64,
    /// The version of the view that tells the nodes.
    pub version: ViewVersion,
}
