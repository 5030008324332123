//! Relays of the deployment.

use serde::{Deserialize, Serialize};

use super::method;
use crate::address::HostPort;
use crate::name::NodeName;

method! {
    /// Lists the relays.
    List "/v1/relay/list" Read ListRequest => ListResponse
}

/// All relays; there is nothing to choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListRequest {}

/// The relays, in name order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListResponse {
    /// One row for each relay.
    pub relays: Vec<RelayRow>,
}

/// What the controller knows of a relay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayRow {
    /// The relay's name.
    pub name: NodeName,
    /// Where agents reach it.
    pub addresses: Vec<HostPort>,
    /// When it joined.
    pub created: jiff::Timestamp,
    /// When it last spoke to the controller.
    pub last_seen: Option<jiff::Timestamp>,
    /// Whether it watches right now.
    pub connected: bool,
}
