//! `sealock controller`: the role that says who is who and who may do what.

use std::time::Duration;

use jiff::SignedDuration;
use sealock_control::controller::{self, Starter};
use sealock_core::address::HostPort;
use sealock_core::config::Config;

use super::relay::with_port;
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
    let handle =
        controller::start(self::config(&config, &flags.advertise, starter)?, &scope).await?;
    print::line(&format!(
        "Relays reach the controller at TCP {}.",
        handle.listen()
    ));
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

/// What the controller needs, of what the user said.
pub(crate) fn config(
    config: &Config,
    public: &[String],
    starter: Starter,
) -> anyhow::Result<controller::Config> {
    let places = Places::of(config);
    let part = &config.controller;
    let port = part.listen.port();
    let mut advertise = Vec::new();
    for text in public {
        let given = with_port(text, port)?;
        // A port that was written is the relay's.
        advertise.push(with_port(given.host(), port).unwrap_or(given));
    }
    if advertise.is_empty() && !part.listen.ip().is_unspecified() {
        advertise.push(HostPort::from(part.listen));
    }
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
        limits: controller_limits(),
    })
}

fn controller_limits() -> sealock_control::node::Limits {
    sealock_control::node::Limits::default()
}
