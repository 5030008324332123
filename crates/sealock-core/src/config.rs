//! Configuration: what the user wrote, what it means, and where each value came from.
//!
//! [`Layers`] holds what was said (flags over environment over file over defaults), [`typed::Typed`] what was understood
//! of it, and [`Config`] what runs: nothing in it is optional that must exist at run time. All errors are collected and
//! shown with their place; an unknown key is an error in every layer. Deliberately absent: reading files, the
//! environment or the command line, which the binary does.

pub(crate) mod document;
mod layers;
mod origin;
mod transport;
pub mod typed;
pub mod unit;
mod upstream;
mod value;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

pub use self::document::{FileError, Problem, Tombstone};
pub use self::layers::{Flag, Layers};
pub use self::origin::{ConfigError, Explained, Given, Origin};
pub use self::transport::Transport;
use self::typed::Typed;
pub use self::typed::{OPTIONS, OptionRow, Standard};
pub use self::upstream::{Upstream, UpstreamError, UpstreamKind, Upstreams};
pub use self::value::{
    AdminListen, Connect, Door, DoorKind, Expose, LogFormat, LogLevel, StateDir, ValueError,
};
use crate::address::HostPort;
use crate::identity::Role;
use crate::name::{AgentName, NodeName, Region, TenantName, TrustDomain};

/// The configuration that runs.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where state lies.
    pub state: StateConfig,
    /// What is logged.
    pub log: LogConfig,
    /// Metrics and health.
    pub admin: AdminConfig,
    /// The controller's part.
    pub controller: ControllerConfig,
    /// The relay's part.
    pub relay: RelayConfig,
    /// The agent's part.
    pub agent: AgentConfig,
    explained: Vec<Explained>,
}

/// Where state lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateConfig {
    /// The directory of keys, certificates and databases.
    pub dir: PathBuf,
}

/// What is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogConfig {
    /// How lines look.
    pub format: LogFormat,
    /// The least urgent lines that are written.
    pub level: LogLevel,
}

/// Metrics and health.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdminConfig {
    listen: Option<AdminListen>,
}

impl AdminConfig {
    /// Where a role serves its metrics and health, unless that is off.
    #[must_use]
    pub fn listen(&self, role: Role) -> Option<SocketAddr> {
        match self.listen {
            Some(AdminListen::Off) => None,
            Some(AdminListen::At(address)) => Some(address),
            None => {
                let port = match role {
                    Role::Relay => 9100,
                    Role::Controller => 9101,
                    Role::Agent => 9102,
                    Role::User => return None,
                };
                Some(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
            }
        }
    }
}

/// The controller's part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControllerConfig {
    /// The TCP address at which nodes reach it.
    pub listen: SocketAddr,
    /// The addresses that the join tokens of relays tell; empty means the one it listens at.
    pub advertise: Vec<HostPort>,
    /// The trust domain of all identities that it issues.
    pub trust_domain: TrustDomain,
    /// The tenant that is made at the first start.
    pub tenant: TenantName,
    /// How long audit rows are kept.
    pub audit_retention: Duration,
    /// How long a join token can be used.
    pub token_ttl: Duration,
    /// How long a node's certificate is valid.
    pub certificate_ttl: Duration,
    /// How long after its certificate ended a node may come back without a new token.
    pub recover_within: Duration,
}

/// The relay's part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayConfig {
    /// The name to ask for at joining; without one the token or the controller gives it.
    pub name: Option<NodeName>,
    /// The address at which agents reach it, over UDP and over TCP.
    pub listen: SocketAddr,
    /// The addresses that join tokens tell; empty means the one it listens at.
    pub advertise: Vec<HostPort>,
    /// The controller to follow; without one it is that which the relay joined.
    pub controller: Option<HostPort>,
    /// How old its policy may be before it refuses new flows.
    pub max_policy_age: Duration,
    /// How many sessions it holds at once.
    pub max_sessions: u32,
    /// How many streams one session may have open at once.
    pub max_streams_per_session: u32,
    /// How long what flows may go on after it was asked to stop.
    pub drain_time: Duration,
    /// Where it is, as its operator calls it.
    pub region: Option<Region>,
}

/// The agent's part.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// The name to ask for at joining; without one the token or the controller gives it.
    pub name: Option<AgentName>,
    /// How old its policy may be before it refuses new flows.
    pub max_policy_age: Duration,
    /// What may carry its sessions.
    pub transports: Vec<Transport>,
    /// The proxy to the relays; without one the environment names it.
    pub proxy: Option<Upstream>,
    /// How long what flows may go on after it was asked to stop.
    pub drain_time: Duration,
    /// Where it is, as its operator calls it.
    pub region: Option<Region>,
    /// The services that it provides.
    pub expose: Vec<Expose>,
    /// The local ports that lead to services.
    pub connect: Vec<Connect>,
    /// The front doors for local programs.
    pub door: Vec<Door>,
}

impl Config {
    /// Reads all layers and makes of them what runs.
    ///
    /// # Errors
    /// Everything that is wrong in any layer, also in values that a higher layer would hide.
    pub fn resolve(layers: &Layers) -> Result<Self, Vec<ConfigError>> {
        layers.merge().map(Self::from_typed)
    }

    /// Every option with its value, where that came from and what it does; for `sealock config explain`.
    #[must_use]
    pub fn explain(&self) -> &[Explained] {
        &self.explained
    }

    fn from_typed(typed: Typed) -> Self {
        let explained = typed.explain();
        Self {
            state: StateConfig {
                dir: must(typed.state_dir).0,
            },
            log: LogConfig {
                format: must(typed.log_format),
                level: must(typed.log_level),
            },
            admin: AdminConfig {
                listen: typed.admin_listen.map(|it| it.value),
            },
            controller: ControllerConfig {
                listen: must(typed.controller_listen),
                advertise: list(typed.controller_advertise),
                trust_domain: must(typed.controller_trust_domain),
                tenant: must(typed.controller_tenant),
                audit_retention: must(typed.controller_audit_retention).duration(),
                token_ttl: must(typed.controller_token_ttl).duration(),
                certificate_ttl: must(typed.controller_certificate_ttl).duration(),
                recover_within: must(typed.controller_recover_within).duration(),
            },
            relay: RelayConfig {
                name: typed.relay_name.map(|it| it.value),
                listen: must(typed.relay_listen),
                advertise: list(typed.relay_advertise),
                controller: typed.relay_controller.map(|it| it.value),
                max_policy_age: must(typed.relay_max_policy_age).duration(),
                max_sessions: must(typed.relay_max_sessions).number(),
                max_streams_per_session: must(typed.relay_max_streams_per_session).number(),
                drain_time: must(typed.relay_drain_time).duration(),
                region: typed.relay_region.map(|it| it.value),
            },
            agent: AgentConfig {
                name: typed.agent_name.map(|it| it.value),
                max_policy_age: must(typed.agent_max_policy_age).duration(),
                transports: must(typed.agent_transports),
                proxy: typed.agent_proxy.map(|it| it.value),
                drain_time: must(typed.agent_drain_time).duration(),
                region: typed.agent_region.map(|it| it.value),
                expose: list(typed.agent_expose),
                connect: list(typed.agent_connect),
                door: list(typed.agent_door),
            },
            explained,
        }
    }
}

/// The value of an option with a default.
fn must<T>(given: Option<Given<T>>) -> T {
    given
        .map(|it| it.value)
        .expect("the table has a default for it: a test resolves the empty configuration")
}

fn list<T>(given: Option<Given<Vec<T>>>) -> Vec<T> {
    given.map(|it| it.value).unwrap_or_default()
}

#[cfg(test)]
mod tests;
