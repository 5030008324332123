//! What a verb runs with: flags over environment over file over defaults, and where things lie.

use std::fs::{File, OpenOptions, TryLockError};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use sealock_core::address::HostPort;
use sealock_core::config::{
    Config, Flag, Layers, LogLevel, Origin, Upstream, UpstreamError, Upstreams,
};
use sealock_core::identity::Role;
use sealock_net::files;
use sealock_net::session::Plan;
use sealock_net::sys;

use crate::cli::Common;
use crate::failure::Failure;
use crate::log;

/// What the verb is for the person who runs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It does something and ends: only what is wrong is logged.
    Client,
    /// It runs until it is stopped: its states are logged.
    Role,
}

/// A flag that sets an option.
pub(crate) fn flag(flag: &str, key: &str, value: Option<&String>) -> Option<Flag> {
    value.map(|value| Flag {
        flag: flag.to_owned(),
        key: key.to_owned(),
        value: value.clone(),
    })
}

/// Reads all layers, and starts logging as they say.
pub(crate) fn load(
    common: &Common,
    kind: Kind,
    flags: impl IntoIterator<Item = Flag>,
) -> anyhow::Result<Config> {
    let config = read(common, flags)?;
    let level = match kind {
        Kind::Client if is_default(&config, "log.level") => LogLevel::Warn,
        Kind::Client | Kind::Role => config.log.level,
    };
    log::start(config.log, level);
    Ok(config)
}

/// Reads all layers.
pub(crate) fn read(
    common: &Common,
    flags: impl IntoIterator<Item = Flag>,
) -> anyhow::Result<Config> {
    let mut layers = Layers::new()
        .with_environment(environment(sys::own_uid()))
        .with_flags(common.flags())
        .with_flags(flags);
    if let Some(path) = &common.config {
        let text = std::fs::read_to_string(path).map_err(|error| {
            Failure::usage(format!("{} cannot be read: {error}", path.display()))
                .hint("give the configuration file with --config FILE or SEALOCK_CONFIG")
        })?;
        layers = layers.with_file(&path.display().to_string(), &text);
    }
    Config::resolve(&layers).map_err(|errors| {
        let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
        let hint = "`sealock config explain` lists every option";
        Failure::usage(format!("the configuration is wrong\n{}", errors.join("\n")))
            .hint(hint)
            .into()
    })
}

/// The environment as text. The superuser's state lies with the system's, not in a home.
fn environment(uid: u32) -> Vec<(String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| uid != 0 || name != "HOME")
        .collect()
}

/// By which ways relays are reached: as configured, and through the proxy that the environment names when the
/// configuration names none. Names in capitals come first; an empty value means none.
pub(crate) fn ways(config: &Config) -> anyhow::Result<Plan> {
    Ok(Plan {
        transports: config.agent.transports.clone(),
        upstreams: upstreams(config, &environment(sys::own_uid()))?,
    })
}

fn upstreams(config: &Config, environment: &[(String, String)]) -> anyhow::Result<Upstreams> {
    let find = |name: &str| {
        let value = environment.iter().find(|(key, _)| key == name);
        value
            .map(|(_, value)| value.as_str())
            .filter(|value| !value.is_empty())
    };
    let either = |upper: &str| find(upper).or_else(|| find(&upper.to_ascii_lowercase()));
    let proxy = match (
        &config.agent.proxy,
        either("HTTPS_PROXY"),
        either("ALL_PROXY"),
    ) {
        (Some(proxy), _, _) => Some(proxy.clone()),
        (None, Some(text), _) => Some(from_environment("HTTPS_PROXY", text)?),
        (None, None, Some(text)) => Some(from_environment("ALL_PROXY", text)?),
        (None, None, None) => None,
    };
    Ok(Upstreams::new(
        proxy,
        either("NO_PROXY").unwrap_or_default(),
    ))
}

fn from_environment(name: &str, text: &str) -> anyhow::Result<Upstream> {
    // The text itself is not shown: it may hold a password.
    text.parse().map_err(|error: UpstreamError| {
        Failure::usage(format!("{name} of the environment cannot be used: {error}"))
            .hint("set `agent.proxy`, or unset the variable")
            .into()
    })
}

/// Whether nobody said anything of this option.
pub(crate) fn is_default(config: &Config, key: &str) -> bool {
    let mut options = config.explain().iter();
    options.any(|option| option.key == key && option.origin == Origin::Default)
}

/// Where things lie below the state directory.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    state: PathBuf,
}

/// Keeps a second process of the same role out of a state directory for as long as it is held.
#[derive(Debug)]
pub(crate) struct StateLock {
    _file: File,
}

const RELAYS: &str = "relays.json";
const CONTROLLER: &str = "controller.json";

impl Places {
    pub(crate) fn of(config: &Config) -> Self {
        Self {
            state: config.state.dir.clone(),
        }
    }

    /// The state directory itself.
    pub(crate) fn state(&self) -> &Path {
        &self.state
    }

    pub(crate) fn agent(&self) -> PathBuf {
        self.state.join("agent")
    }

    pub(crate) fn agent_socket(&self) -> PathBuf {
        self.agent().join("agent.sock")
    }

    pub(crate) fn relay(&self) -> PathBuf {
        self.state.join("relay")
    }

    pub(crate) fn controller(&self) -> PathBuf {
        self.state.join("controller")
    }

    pub(crate) fn admin_socket(&self) -> PathBuf {
        self.controller().join("admin.sock")
    }

    /// Takes the relay's state for this process: two relays with one identity would each take the other's agents.
    pub(crate) fn lock_relay(&self) -> anyhow::Result<StateLock> {
        let dir = self.relay();
        files::ensure_private_dir(&dir)?;
        let mut open = OpenOptions::new();
        let open = open.create(true).truncate(false).write(true).mode(0o600);
        let file = open
            .open(dir.join("lock"))
            .context("opening the lock of the relay's state")?;
        match file.try_lock() {
            Ok(()) => Ok(StateLock { _file: file }),
            Err(TryLockError::WouldBlock) => {
                let text = format!("{} is in use by a running relay", dir.display());
                let hint =
                    "stop it first, or give this one a directory of its own with --state DIR";
                Err(Failure::new(text).hint(hint).into())
            }
            Err(TryLockError::Error(error)) => Err(error).context("locking the relay's state"),
        }
    }

    /// Where the agent's relays are, as its token said.
    pub(crate) fn relays(&self) -> anyhow::Result<Vec<HostPort>> {
        addresses(&self.agent().join(RELAYS))
    }

    pub(crate) fn keep_relays(&self, relays: &[HostPort]) -> anyhow::Result<()> {
        keep(&self.agent().join(RELAYS), relays)
    }

    /// Where the relay's controller is, as its token said.
    pub(crate) fn relay_controller(&self) -> anyhow::Result<Option<HostPort>> {
        Ok(addresses(&self.relay().join(CONTROLLER))?
            .into_iter()
            .next())
    }

    pub(crate) fn keep_relay_controller(&self, addresses: &[HostPort]) -> anyhow::Result<()> {
        keep(&self.relay().join(CONTROLLER), addresses)
    }
}

fn keep(path: &Path, addresses: &[HostPort]) -> anyhow::Result<()> {
    files::write_private(path, &serde_json::to_vec_pretty(addresses)?)?;
    Ok(())
}

/// The addresses in a file; none when it is not there.
fn addresses(path: &Path) -> anyhow::Result<Vec<HostPort>> {
    let bytes = match files::read_private(path) {
        Ok(bytes) => bytes,
        Err(error) if error.is_not_found() => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    serde_json::from_slice(&bytes).map_err(|error| {
        let text = format!("{} holds no list of addresses", path.display());
        anyhow::Error::from(error)
            .context(Failure::new(text).hint("join again with a new token and --force"))
    })
}

/// Where a role serves metrics and health. A default address that is taken is passed over with a warning, because many
/// programs use 9100; one that somebody chose is not.
pub(crate) fn admin_address(config: &Config, role: Role) -> Option<SocketAddr> {
    let address = config.admin.listen(role)?;
    if is_default(config, "admin.listen")
        && let Err(err) = std::net::TcpListener::bind(address)
    {
        tracing::warn!(%address, %err, "metrics and health are off: set [admin] listen to another address");
        return None;
    }
    Some(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The proxy towards a relay, as configuration and environment say.
    fn proxy(configured: Option<&str>, environment: &[(&str, &str)]) -> Option<String> {
        let configured = configured.map(ToOwned::to_owned);
        let layers = Layers::new().with_flags(flag("--proxy", "agent.proxy", configured.as_ref()));
        let config = Config::resolve(&layers).expect("valid");
        let environment: Vec<_> = environment
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        let upstreams = upstreams(&config, &environment).expect("valid");
        let relay = "relay.example:443".parse().expect("an address");
        Some(upstreams.towards(&relay)?.address().to_string())
    }

    #[test]
    fn the_configured_proxy_comes_before_the_environments_and_capitals_before_the_rest() {
        const CONFIGURED: Option<&str> = Some("http://configured:1");
        let all = [
            ("all_proxy", "socks5://all-lower:5"),
            ("ALL_PROXY", "socks5://all:4"),
            ("https_proxy", "http://https-lower:3"),
            ("HTTPS_PROXY", "http://https:2"),
            ("HTTP_PROXY", "http://never:9"),
        ];
        type Case<'a> = (Option<&'a str>, &'a [(&'a str, &'a str)], Option<&'a str>);
        let cases: [Case<'_>; 9] = [
            (CONFIGURED, &all, Some("configured:1")),
            (None, &all, Some("https:2")),
            (None, &all[..3], Some("https-lower:3")),
            (None, &all[..2], Some("all:4")),
            (None, &all[..1], Some("all-lower:5")),
            (None, &all[4..], None),
            (None, &[("HTTPS_PROXY", ""), all[2]], Some("https-lower:3")),
            (None, &[("HTTPS_PROXY", ""), all[1]], Some("all:4")),
            (None, &[], None),
        ];
        for (configured, environment, expected) in cases {
            let found = proxy(configured, environment);
            assert_eq!(found.as_deref(), expected, "{configured:?} {environment:?}");
        }
    }

    #[test]
    fn hosts_of_no_proxy_are_reached_without_one_whoever_named_it() {
        let https = ("HTTPS_PROXY", "http://https:2");
        for without in ["relay.example", "example", "*", "a, .EXAMPLE ,b"] {
            for name in ["NO_PROXY", "no_proxy"] {
                assert_eq!(proxy(None, &[https, (name, without)]), None, "{without}");
                let configured = Some("http://configured:1");
                assert_eq!(proxy(configured, &[(name, without)]), None, "{without}");
            }
        }
        let other = ("NO_PROXY", "other.example");
        assert_eq!(proxy(None, &[https, other]).as_deref(), Some("https:2"));
    }

    #[test]
    fn a_proxy_of_the_environment_that_cannot_be_used_is_named_without_its_password() {
        let config = Config::resolve(&Layers::new()).expect("valid");
        let bad = "ftp://user:hunter2@proxy:1".to_owned();
        let error = upstreams(&config, &[("https_proxy".to_owned(), bad)]);
        let error = format!("{:#}", error.expect_err("no proxy of ours"));
        assert!(error.contains("HTTPS_PROXY"), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
}
