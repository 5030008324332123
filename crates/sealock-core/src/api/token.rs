//! Join tokens: made here, redeemed over the node interface, never listed, because only their hash is kept.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{default_tenant, method};
use crate::address::HostPort;
use crate::identity::Role;
use crate::name::{GroupName, TenantName};

method! {
    /// Makes a token that lets one node in, once.
    Create "/v1/token/create" Operate CreateRequest => CreateResponse
}

/// Which node the token is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateRequest {
    /// The tenant that the node joins; relays belong to none and ignore it.
    #[serde(default = "default_tenant")]
    pub tenant: TenantName,
    /// The role that the node will have: agent or relay.
    #[serde(default = "agent")]
    pub role: Role,
    /// The only name that the node may take; without it, it may take any free one.
    #[serde(default)]
    pub name: Option<String>,
    /// How long the token waits for its node, in seconds; the controller's default when absent.
    #[serde(default)]
    pub ttl_seconds: Option<u64>,
    /// Labels that the agent gets.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Groups that the agent gets.
    #[serde(default)]
    pub groups: BTreeSet<GroupName>,
    /// Where the node goes first; the known relays (for an agent) or the controller (for a relay) when empty.
    #[serde(default)]
    pub addresses: Vec<HostPort>,
}

fn agent() -> Role {
    Role::Agent
}

impl Default for CreateRequest {
    fn default() -> Self {
        Self {
            tenant: default_tenant(),
            role: agent(),
            name: None,
            ttl_seconds: None,
            labels: BTreeMap::new(),
            groups: BTreeSet::new(),
            addresses: Vec::new(),
        }
    }
}

/// The new token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateResponse {
    /// The text for `sealock join`; it holds the secret.
    pub text: String,
    /// After this the token lets nobody in.
    pub expires: jiff::Timestamp,
    /// Where the node will go first.
    pub addresses: Vec<HostPort>,
}
