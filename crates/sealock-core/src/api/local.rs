//! The running agent's own interface: what it is, what it exposes, what it connects.
//!
//! `expose` and `connect` answer with one JSON line after another ([`Event`]). A request that is not `detached` lasts
//! as long as its HTTP connection: when the client goes, so does what it asked for. A detached one ends after its first
//! settled event and stays until `withdraw`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::method;
use crate::address::{HostPort, Target};
use crate::check::Check;
use crate::choice::Weight;
use crate::config::Transport;
use crate::identity::SpiffeId;
use crate::name::ServiceName;
use crate::reason::Reason;
use crate::view::ViewVersion;

method! {
    /// Tells the state of the agent.
    Status "/v1/local/status" Read StatusRequest => StatusResponse
}

method! {
    /// Offers a local program as a service; answers with events.
    Expose "/v1/local/expose" Operate ExposeRequest => Event
}

method! {
    /// Listens locally for a service of another agent; answers with events.
    Connect "/v1/local/connect" Operate ConnectRequest => Event
}

method! {
    /// Ends what a detached `expose` or `connect` began.
    Withdraw "/v1/local/withdraw" Operate WithdrawRequest => WithdrawResponse
}

/// The whole agent; there is nothing to choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatusRequest {}

/// The state of the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusResponse {
    /// The program's version.
    pub version: String,
    /// Who it is.
    pub identity: SpiffeId,
    /// When its certificate ends.
    pub certificate_expires: jiff::Timestamp,
    /// When it started.
    pub started: jiff::Timestamp,
    /// Its sessions to relays.
    pub sessions: Vec<SessionRow>,
    /// The policy that it judges by, if it has one.
    pub policy: Option<PolicyState>,
    /// What it offers.
    pub exposed: Vec<ExposedRow>,
    /// What it listens for.
    pub connected: Vec<ConnectedRow>,
    /// How many flows are live.
    pub flows: u64,
}

/// A session to a relay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRow {
    /// The relay's address as configured.
    pub relay: HostPort,
    /// Whether new flows take it.
    pub preferred: bool,
    /// Whether it is up.
    pub up: bool,
    /// Since when it is as it is.
    pub since: jiff::Timestamp,
    /// Why it is down, when it is.
    pub reason: Option<Reason>,
    /// The round trip time in milliseconds, when it is up.
    pub rtt_ms: Option<u64>,
    /// What carries it, when it is up.
    #[serde(default)]
    pub transport: Option<Transport>,
    /// The better transports that do not carry it, and why.
    #[serde(default)]
    pub passed_over: Vec<PassedOverRow>,
}

/// A transport that is better than the one in use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassedOverRow {
    /// Which one.
    pub transport: Transport,
    /// What the last try said.
    pub because: String,
    /// Since when it says so.
    pub since: jiff::Timestamp,
}

/// The policy that a node judges by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyState {
    /// The view's version.
    pub version: ViewVersion,
    /// When the controller last confirmed it.
    pub confirmed: jiff::Timestamp,
}

/// A service that the agent offers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExposedRow {
    /// The service.
    pub service: ServiceName,
    /// The program behind it.
    pub target: Target,
    /// Whether the controller accepted it; `None` while it has not answered.
    pub registered: Option<bool>,
    /// Why the controller did not accept it, when it did not.
    pub reason: Option<Reason>,
    /// What its check says, when it has one. Only what is well is offered at the relays.
    pub health: Option<HealthRow>,
    /// Whether it outlives the request that asked for it.
    pub detached: bool,
}

/// What the check of an offer says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthRow {
    /// The check, as it was written.
    pub check: String,
    /// Whether the program is well; `None` before the first result.
    pub well: Option<bool>,
    /// Why not, in words, when it is not.
    pub why: Option<String>,
}

/// A service that the agent listens for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectedRow {
    /// The service.
    pub service: ServiceName,
    /// Where it listens.
    pub listen: Target,
    /// Whether it outlives the request that asked for it.
    pub detached: bool,
}

/// What to offer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExposeRequest {
    /// The service's name.
    pub service: ServiceName,
    /// The program behind it.
    pub target: Target,
    /// What is said of it.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// What tells whether the program is well; none: it always counts as well.
    #[serde(default)]
    pub check: Option<Check>,
    /// Its share of the service's flows, beside the weights of other providers.
    #[serde(default)]
    pub weight: Weight,
    /// Whether it serves only while no active provider is left.
    #[serde(default)]
    pub standby: bool,
    /// Whether a caller is to get the same provider each time; counts when this agent owns the service.
    #[serde(default)]
    pub sticky: bool,
    /// Whether it outlives this request.
    #[serde(default)]
    pub detached: bool,
}

/// What to listen for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConnectRequest {
    /// The service's name.
    pub service: ServiceName,
    /// Where to listen: an address or a unix socket.
    pub listen: Target,
    /// Whether it outlives this request.
    #[serde(default)]
    pub detached: bool,
}

/// What happens to an `expose` or a `connect`: one JSON line each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "event")]
pub enum Event {
    /// The controller accepted the service.
    Registered {
        /// The service.
        service: ServiceName,
    },
    /// The agent listens.
    Listening {
        /// The service.
        service: ServiceName,
        /// Where.
        listen: Target,
    },
    /// It does not work right now; the agent goes on trying.
    Waiting {
        /// Why.
        reason: Reason,
    },
    /// It ended, and will not come back by itself.
    Ended {
        /// Why.
        reason: Reason,
    },
    /// Nothing happened; the line shows both sides that the other is there.
    Alive,
}

/// What to end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WithdrawRequest {
    /// The service that is offered or listened for.
    pub service: ServiceName,
}

/// What ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WithdrawResponse {
    /// How many offers and listeners.
    pub ended: u64,
}
