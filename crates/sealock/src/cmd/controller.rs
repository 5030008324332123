//! `sealock controller`: the role that says who is who and who may do what.

use std::net::SocketAddr;
use std::time::Duration;

use jiff::SignedDuration;
use sealock_control::controller::{self, Starter};
use sealock_control::node::Limits;
use sealock_core::address::HostPort;
use sealock_core::config::Config;
use sealock_core::identity::Role;

use super::relay::with_port;
use super::up::Public;
use crate::cli::{Common, Controller};
use crate::print;
use crate::settings::{self, Kind, Places, flag};
use crate::signals::Stop;

const GRACE: Duration = Duration::from_secs(5);

pub(crate) async fn run(common: &Common, flags: &Controller) -> anyhow::Result<()> {
    let listen = flag("--listen", "controller.listen", flags.listen.as_ref());
    let config = settings::load(common, Kind::Role, listen)?;
    let mut stop = Stop::new()?;
    let scope = sealock_net::task::Scope::new("controller");
    let starter = if flags.closed {
        Starter::Closed
    } else {
        Starter::Open
    };
    let first = !Places::of(&config).controller().join("db.sqlite").exists();
    let guess = Public::guess(config.controller.listen);
    let advertise = advertised(&config, &flags.advertise, &guess.addresses)?;
    let shown = print::list(&advertise);
    controller::start(self::config(&config, advertise, starter)?, &scope).await?;
    print::line(&format!("Relays reach the controller at TCP {shown}."));
    if first && starter == Starter::Open {
        print::line(
            "First rule: agents that joined may open each other's services (rule `starter`).",
        );
    }
    print::line(
        "Let relays in with `sealock token create --role relay`, agents with `sealock token create`.",
    );
    stop.asked().await;
    print::error("stopping");
    scope.shutdown(GRACE).await;
    Ok(())
}

/// Where relays elsewhere reach the controller: as flags say, else as the configuration says, else at `hosts`.
pub(crate) fn advertised(
    config: &Config,
    flags: &[String],
    hosts: &[HostPort],
) -> anyhow::Result<Vec<HostPort>> {
    let part = &config.controller;
    let port = part.listen.port();
    let given: Result<Vec<HostPort>, _> = flags.iter().map(|text| with_port(text, port)).collect();
    let given = given?;
    if !given.is_empty() {
        return Ok(given);
    }
    if !part.advertise.is_empty() {
        return Ok(part.advertise.clone());
    }
    if !part.listen.ip().is_unspecified() {
        return Ok(vec![part.listen.into()]);
    }
    let with_own_port = |host: &HostPort| match host.as_socket_addr() {
        Some(address) => Ok(SocketAddr::new(address.ip(), port).into()),
        None => with_port(host.host(), port),
    };
    hosts.iter().map(with_own_port).collect()
}

/// What the controller needs, of what the user said.
pub(crate) fn config(
    config: &Config,
    advertise: Vec<HostPort>,
    starter: Starter,
) -> anyhow::Result<controller::Config> {
    let places = Places::of(config);
    let part = &config.controller;
    Ok(controller::Config {
        state_dir: places.controller(),
        socket: places.admin_socket(),
        listen: part.listen,
        advertise,
        trust_domain: part.trust_domain.clone(),
        name: "main".parse()?,
        tenant: part.tenant.clone(),
        starter,
        audit_retention: SignedDuration::try_from(part.audit_retention)?,
        token_ttl: SignedDuration::try_from(part.token_ttl)?,
        certificate_ttl: SignedDuration::try_from(part.certificate_ttl)?,
        recover_within: SignedDuration::try_from(part.recover_within)?,
        limits: Limits::default(),
        admin: settings::admin_address(config, Role::Controller),
    })
}
