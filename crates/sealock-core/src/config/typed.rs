//! Configuration as typed: what the user wrote, in which layer, and the table of all options.
//!
//! The table is the one place of an option: its key, type, default with its reason, an example, and its doc. Files,
//! environment, flags, `config explain` and the reference are made of it, and a test sets each option in each layer.

use std::net::SocketAddr;

use super::document::{Document, Item, Problem, Tombstone, unknown_key};
use super::origin::{Explained, Given, Origin};
use super::transport::Transport;
use super::unit::{Count, Span};
use super::upstream::Upstream;
use super::value::{AdminListen, Connect, Door, Expose, LogFormat, LogLevel, StateDir, Value};
use crate::address::HostPort;
use crate::name::{AgentName, NodeName, Region, TenantName, TrustDomain};

/// What holds when nobody sets an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standard {
    /// This value.
    Value(&'static str),
    /// No value, which means what the text says.
    Nothing(&'static str),
}

/// A line of the table of options.
#[derive(Debug, Clone, Copy)]
pub struct OptionRow {
    /// `section.key`, as in a file.
    pub key: &'static str,
    /// What it does, in one sentence.
    pub doc: &'static str,
    /// What holds when nobody sets it.
    pub standard: Standard,
    /// Why that is so.
    pub because: &'static str,
    /// A value as the environment and flags take it.
    pub example: &'static str,
    /// The same value as a file takes it.
    pub example_toml: &'static str,
}

impl OptionRow {
    /// The environment variable that sets the option.
    #[must_use]
    pub fn variable(&self) -> String {
        variable(self.key)
    }
}

/// The environment variable of a key: `relay.listen` is `SEALOCK_RELAY__LISTEN`.
#[must_use]
pub(crate) fn variable(key: &str) -> String {
    format!("SEALOCK_{}", key.to_ascii_uppercase().replace('.', "__"))
}

/// Keys that were renamed.
pub(crate) const TOMBSTONES: &[Tombstone] = &[];

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// How long a node may decide with a policy that it could not refresh.
pub type PolicyAge = Span<MINUTE, { 30 * DAY }>;

macro_rules! options {
    ($(
        #[doc = $doc:literal]
        $field:ident: $type:ty = $key:literal, $standard:expr, because $because:literal,
        example $example:literal, $toml:literal;
    )+) => {
        /// What one layer, or all layers together, say.
        #[derive(Debug, Clone, Default)]
        pub struct Typed {
            $(#[doc = $doc] pub $field: Option<Given<$type>>,)+
        }

        /// Every option, in the order of the reference.
        pub const OPTIONS: &[OptionRow] = &[$(OptionRow {
            key: $key,
            doc: $doc.trim_ascii(),
            standard: $standard,
            because: $because,
            example: $example,
            example_toml: $toml,
        },)+];

        impl Typed {
            /// Sets an option from a text; `tombstones` explain keys that are gone.
            pub(crate) fn put_text(
                &mut self,
                key: &str,
                text: &str,
                origin: &Origin,
                tombstones: &[Tombstone],
            ) -> Result<(), Problem> {
                match key {
                    $($key => put(&mut self.$field, key, text, origin),)+
                    _ => Err(unknown(key, tombstones)),
                }
            }

            /// Sets an option from a file; says whether there is such an option.
            pub(crate) fn put_item(
                &mut self,
                document: &mut Document<'_>,
                key: &str,
                item: &Item<'_>,
            ) -> bool {
                match key {
                    $($key => put_item(&mut self.$field, document, key, item),)+
                    _ => return false,
                }
                true
            }

            /// These values, and those of a lower layer where there are none.
            pub(crate) fn over(self, lower: Self) -> Self {
                Self { $($field: self.$field.or(lower.$field),)+ }
            }

            /// Every option with its value and where that came from.
            pub(crate) fn explain(&self) -> Vec<Explained> {
                let values = [$(self.$field.as_ref().map(shown),)+];
                OPTIONS.iter().zip(values).map(Explained::new).collect()
            }
        }
    };
}

fn put<T: Value>(
    slot: &mut Option<Given<T>>,
    key: &str,
    text: &str,
    origin: &Origin,
) -> Result<(), Problem> {
    let value = T::from_text(text).map_err(|why| Problem::Invalid {
        key: key.to_owned(),
        why,
    })?;
    *slot = Some(Given {
        value,
        origin: origin.clone(),
    });
    Ok(())
}

fn put_item<T: Value>(
    slot: &mut Option<Given<T>>,
    document: &mut Document<'_>,
    key: &str,
    item: &Item<'_>,
) {
    let origin = Origin::File {
        name: document.file().to_owned(),
        line: document.line(item.span().start),
    };
    if let Some(value) = T::from_item(document, item, key) {
        *slot = Some(Given { value, origin });
    }
}

fn shown<T: Value>(given: &Given<T>) -> (String, Origin) {
    (given.value.show(), given.origin.clone())
}

/// What is wrong with a key that is no option.
pub(crate) fn unknown(key: &str, tombstones: &[Tombstone]) -> Problem {
    unknown_key(key, OPTIONS.iter().map(|row| row.key), tombstones)
}

impl Typed {
    /// The lowest layer: the defaults of the table.
    ///
    /// # Panics
    /// Never: a test reads every default.
    pub(crate) fn defaults() -> Self {
        let mut typed = Self::default();
        for row in OPTIONS {
            if let Standard::Value(text) = row.standard {
                typed
                    .put_text(row.key, text, &Origin::Default, &[])
                    .expect("a test reads every default of the table");
            }
        }
        typed
    }
}

options! {
    /// The directory of keys, certificates and databases.
    state_dir: StateDir = "state.dir", Standard::Value("/var/lib/sealock"),
        because "where services keep state; with a home, $XDG_STATE_HOME/sealock or ~/.local/state/sealock, which need no root",
        example "/srv/sealock", "\"/srv/sealock\"";
    /// How log lines look: `text` or `json`.
    log_format: LogFormat = "log.format", Standard::Value("text"),
        because "the first reader is a person at a terminal",
        example "json", "\"json\"";
    /// The least urgent log lines that are written: `error`, `warn`, `info`, `debug` or `trace`.
    log_level: LogLevel = "log.level", Standard::Value("info"),
        because "every state that a user would notice, and nothing a flow",
        example "debug", "\"debug\"";
    /// The loopback address of metrics and health, or `off`.
    admin_listen: AdminListen = "admin.listen",
        Standard::Nothing("127.0.0.1 with port 9100 (relay), 9101 (controller) or 9102 (agent)"),
        because "the three roles may share a machine",
        example "127.0.0.1:9200", "\"127.0.0.1:9200\"";
    /// The TCP address at which nodes reach the controller.
    controller_listen: SocketAddr = "controller.listen", Standard::Value("0.0.0.0:7444"),
        because "relays connect from other machines; everything but joining needs a certificate",
        example "127.0.0.1:17444", "\"127.0.0.1:17444\"";
    /// The addresses at which relays find the controller, as they are written into join tokens.
    controller_advertise: Vec<HostPort> = "controller.advertise", Standard::Nothing("the address that the controller listens at"),
        because "only the operator knows the public name",
        example "control.example:7444", "[\"control.example:7444\"]";
    /// The trust domain of all identities that the controller issues.
    controller_trust_domain: TrustDomain = "controller.trust_domain", Standard::Value("sealock"),
        because "a deployment that trusts no other needs no name of its own",
        example "corp.example", "\"corp.example\"";
    /// The tenant that is made at the first start.
    controller_tenant: TenantName = "controller.tenant", Standard::Value("default"),
        because "most deployments have one tenant, and commands without one mean this",
        example "acme", "\"acme\"";
    /// How long audit rows are kept.
    controller_audit_retention: Span<HOUR, { 3_660 * DAY }> = "controller.audit_retention",
        Standard::Value("30d"),
        because "long enough to look into last month, short enough for a small disk",
        example "90d", "\"90d\"";
    /// How long a join token can be used.
    controller_token_ttl: Span<10, { 7 * DAY }> = "controller.token_ttl", Standard::Value("15m"),
        because "a person copies it to the other machine at once; a leaked one is soon worthless",
        example "1h", "\"1h\"";
    /// How long a node's certificate is valid; it is renewed at half of that.
    controller_certificate_ttl: Span<10, DAY> = "controller.certificate_ttl", Standard::Value("1h"),
        because "a node that missed a revocation is out within the hour",
        example "2h", "\"2h\"";
    /// How long after its certificate ended a node may come back without a new token.
    controller_recover_within: Span<0, { 365 * DAY }> = "controller.recover_within", Standard::Value("30d"),
        because "a machine comes back from a holiday by itself; a disk that was lost is revoked by then",
        example "7d", "\"7d\"";
    /// The relay's name that is asked for at joining.
    relay_name: NodeName = "relay.name", Standard::Nothing("the name that the join token or the controller gives"),
        because "a name is chosen once, at joining",
        example "eu-1", "\"eu-1\"";
    /// The address at which agents reach the relay, over UDP and over TCP at the same port.
    relay_listen: SocketAddr = "relay.listen", Standard::Value("0.0.0.0:7443"),
        because "agents come from anywhere; everything but joining needs a certificate",
        example "127.0.0.1:17443", "\"127.0.0.1:17443\"";
    /// The addresses at which agents find the relay, as they are written into join tokens.
    relay_advertise: Vec<HostPort> = "relay.advertise", Standard::Nothing("the address that the relay listens at"),
        because "only the operator knows the public name",
        example "relay.example:7443,192.0.2.1:7443", "[\"relay.example:7443\", \"192.0.2.1:7443\"]";
    /// The controller that the relay takes its policy from.
    relay_controller: HostPort = "relay.controller", Standard::Nothing("the controller that the relay joined"),
        because "joining stores it; set it when the controller moved",
        example "control.example:7444", "\"control.example:7444\"";
    /// How old the relay's policy may be before it refuses new flows.
    relay_max_policy_age: PolicyAge = "relay.max_policy_age", Standard::Value("24h"),
        because "a controller may be down over a night, and a cut-off relay must not decide for ever",
        example "6h", "\"6h\"";
    /// How many sessions the relay holds at once.
    relay_max_sessions: Count<1, 100_000> = "relay.max_sessions", Standard::Value("10000"),
        because "about 1 GiB at 96 KiB for an idle session",
        example "500", "500";
    /// How many streams one session may have open at once.
    relay_max_streams_per_session: Count<1, 10_000> = "relay.max_streams_per_session", Standard::Value("4096"),
        because "a page opens a hundred, an agent serves many; places are made as they are used, about 10 KiB each",
        example "1000", "1000";
    /// How long what flows through the relay may go on after it was asked to stop.
    relay_drain_time: Span<0, HOUR> = "relay.drain_time", Standard::Value("10s"),
        because "agents that know another relay are there within one; what has nowhere to go is not helped by waiting",
        example "1m", "\"1m\"";
    /// Where the relay is, as its operator calls it; agents of the same region prefer it.
    relay_region: Region = "relay.region", Standard::Nothing("no region: the distance alone decides"),
        because "a distance is measured, what a place is called is not",
        example "eu", "\"eu\"";
    /// The agent's name that is asked for at joining.
    agent_name: AgentName = "agent.name", Standard::Nothing("the name that the join token or the controller gives"),
        because "a name is chosen once, at joining",
        example "laptop-1", "\"laptop-1\"";
    /// How old the agent's policy may be before it refuses new flows.
    agent_max_policy_age: PolicyAge = "agent.max_policy_age", Standard::Value("24h"),
        because "a controller may be down over a night, and a cut-off agent must not decide for ever",
        example "6h", "\"6h\"";
    /// What may carry the agent's sessions: `quic`, `tls` and `websocket`, tried in this order and a little apart.
    agent_transports: Vec<Transport> = "agent.transports", Standard::Value("quic,tls,websocket"),
        because "the best one that gets through is used, and a better one again as soon as it does",
        example "quic,tls", "[\"quic\", \"tls\"]";
    /// The proxy towards the relays for what runs over TCP: `http://` or `socks5://`, with USER:PASSWORD@ if it wants a login.
    agent_proxy: Upstream = "agent.proxy", Standard::Nothing("the one that HTTPS_PROXY or ALL_PROXY names, but for the hosts of NO_PROXY"),
        because "most programs find their proxy there",
        example "socks5://proxy.example:1080", "\"socks5://proxy.example:1080\"";
    /// How long what flows through the agent may go on after it was asked to stop.
    agent_drain_time: Span<0, HOUR> = "agent.drain_time", Standard::Value("2s"),
        because "short exchanges end by themselves; whoever stops an agent wants it to stop",
        example "30s", "\"30s\"";
    /// Where the agent is, as its operator calls it: relays of the same region come first.
    agent_region: Region = "agent.region", Standard::Nothing("no region: the distance alone decides"),
        because "a distance is measured, what a place is called is not",
        example "eu", "\"eu\"";
    /// The services that the agent provides: `[[agent.expose]]` with `service`, `target` and `labels`; also `weight`, `standby`, `sticky` and `check`.
    agent_expose: Vec<Expose> = "agent.expose", Standard::Nothing("only what `sealock expose` adds"),
        because "nothing is offered that nobody named",
        example "web=127.0.0.1:3000,db=unix:/run/db.sock",
        "[{ service = \"web\", target = \"127.0.0.1:3000\" }, { service = \"db\", target = \"unix:/run/db.sock\" }]";
    /// The local ports that lead to services: `[[agent.connect]]` with `service` and `listen`.
    agent_connect: Vec<Connect> = "agent.connect", Standard::Nothing("only what `sealock connect` adds"),
        because "no port is opened that nobody named",
        example "db=127.0.0.1:5432", "[{ service = \"db\", listen = \"127.0.0.1:5432\" }]";
    /// The front doors for local programs: `[[agent.door]]` with `kind` (`socks5` or `http`) and `listen`; also `ways`, `login_file` and `anywhere`.
    agent_door: Vec<Door> = "agent.door", Standard::Nothing("no front door"),
        because "no port is opened that nobody named, and rules say where its flows may go",
        example "socks5=127.0.0.1:1080,http=127.0.0.1:8080",
        "[{ kind = \"socks5\", listen = \"127.0.0.1:1080\" }, { kind = \"http\", listen = \"127.0.0.1:8080\" }]";
}
