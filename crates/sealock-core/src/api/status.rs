//! The controller at a glance.

use serde::{Deserialize, Serialize};

use super::method;
use crate::name::{NodeName, TenantName, TrustDomain};
use crate::view::ViewVersion;

method! {
    /// Tells the state of the controller.
    Show "/v1/status/show" Read ShowRequest => ShowResponse
}

/// The whole controller; there is nothing to choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShowRequest {}

/// The state of the controller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShowResponse {
    /// The program's version.
    pub version: String,
    /// The trust domain that it rules.
    pub trust_domain: TrustDomain,
    /// Its own name.
    pub name: NodeName,
    /// When it started.
    pub started: jiff::Timestamp,
    /// Where nodes reach it.
    pub listen: String,
    /// The SHA-256 of the active root's SubjectPublicKeyInfo, lower-case hex: what join tokens pin.
    pub ca_pin: String,
    /// When the active root ends.
    pub ca_expires: jiff::Timestamp,
    /// One row for each tenant, in name order.
    pub tenants: Vec<TenantRow>,
    /// How many relays there are.
    pub relays: u64,
    /// How many nodes watch right now.
    pub watchers: u64,
}

/// A tenant at a glance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantRow {
    /// The tenant.
    pub name: TenantName,
    /// The version of its view.
    pub version: ViewVersion,
    /// How many agents it has.
    pub agents: u64,
    /// How many services it has.
    pub services: u64,
    /// How many rules it has.
    pub rules: u64,
}
