//! `sealock up`: the public side in one process, controller and relay.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, anyhow};
use sealock_control::controller::{self, ControllerHandle, Starter};
use sealock_core::address::HostPort;
use sealock_core::api::token::{CreateRequest, CreateResponse};
use sealock_core::config::Config;
use sealock_core::identity::Role;
use sealock_net::identity::IdentityDir;
use sealock_net::join::{self, Naming};
use sealock_net::task::Scope;
use sealock_relay::RelayHandle;

use super::controller as controller_role;
use super::join::forget_views;
use super::relay as relay_role;
use super::token;
use crate::cli::{Common, Up};
use crate::print;
use crate::settings::{self, Kind, Places, flag};
use crate::signals::Stop;

const GRACE: Duration = Duration::from_secs(5);

pub(crate) async fn run(common: &Common, flags: &Up) -> anyhow::Result<()> {
    let given = [
        flag("--listen", "relay.listen", flags.listen.as_ref()),
        flag(
            "--controller-listen",
            "controller.listen",
            flags.controller_listen.as_ref(),
        ),
    ];
    let mut config = settings::load(common, Kind::Role, given.into_iter().flatten())?;
    if settings::is_default(&config, "controller.listen") {
        // Agents come through the relay, so nobody elsewhere needs this door.
        config.controller.listen.set_ip(Ipv4Addr::LOCALHOST.into());
    }
    let public = relay_role::advertised(&config, &flags.public)?;
    let mut stop = Stop::new()?;
    let scope = Scope::new("controller");
    let places = Places::of(&config);
    let starter = if flags.closed {
        Starter::Closed
    } else {
        Starter::Open
    };
    let first = !places.controller().join("db.sqlite").exists();
    let elsewhere = controller_role::advertised(&config, &[], &public.addresses)?;
    let mut controller_config = controller_role::config(&config, elsewhere, starter)?;
    if !settings::is_default(&config, "admin.listen") {
        controller_config.admin = None; // one address was given, and the relay's part has more to tell
    }
    let _lock = places.lock_relay()?;
    let controller = controller::start(controller_config, &scope).await?;
    let relay = start_relay(&config, &controller, &public).await?;
    let request = CreateRequest {
        tenant: config.controller.tenant.clone(),
        addresses: public.addresses.clone(),
        ..CreateRequest::default()
    };
    let created = controller.create_token(request).await;
    let created = created.map_err(|error| anyhow!(error).context("making a first token"))?;
    welcome(&created, &public, first.then_some(starter));
    let wish = stop.wished().await;
    relay_role::wind_down(relay, wish, config.relay.drain_time, &mut stop).await;
    scope.shutdown(GRACE).await;
    Ok(())
}

async fn start_relay(
    config: &Config,
    controller: &ControllerHandle,
    public: &Public,
) -> anyhow::Result<RelayHandle> {
    let places = Places::of(config);
    let dir = IdentityDir::open(places.relay())?;
    let at = HostPort::from(reachable(controller.listen()));
    if !relay_role::is_usable(&dir, Some(controller.trust()))? {
        let name = config
            .relay
            .name
            .as_ref()
            .map_or("relay-1", |name| name.as_str());
        let request = CreateRequest {
            role: Role::Relay,
            name: Some(name.to_owned()),
            addresses: vec![at.clone()],
            ..CreateRequest::default()
        };
        let created = controller.create_token(request).await;
        let created = created.map_err(|error| anyhow!(error).context("letting the relay in"))?;
        let token = created.text.parse()?;
        let joined = join::join_relay(&token, Naming::default(), public.addresses.clone(), &dir);
        joined.await.context("letting the relay in")?;
        forget_views(&dir)?;
    }
    let relay = relay_role::config(config, public.addresses.clone(), at);
    let relay = sealock_relay::start(relay).await;
    relay.context("starting the relay")
}

/// An address at which this machine reaches its own listener.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    SocketAddr::new(ip, listen.port())
}

/// Where agents reach the relay.
#[derive(Debug, Clone)]
pub(crate) struct Public {
    pub(crate) addresses: Vec<HostPort>,
    /// Whether somebody said so; otherwise it is a guess.
    pub(crate) is_given: bool,
}

impl Public {
    /// The address at which others see this machine, as far as it can know without asking anybody.
    pub(crate) fn guess(listen: SocketAddr) -> Self {
        let ip = if listen.ip().is_unspecified() {
            own_address(listen.ip()).unwrap_or_else(|| Ipv4Addr::LOCALHOST.into())
        } else {
            listen.ip()
        };
        Self {
            addresses: vec![SocketAddr::new(ip, listen.port()).into()],
            is_given: false,
        }
    }

    /// What may be wrong with the guess.
    pub(crate) fn doubt(&self) -> Option<String> {
        let ip = self.addresses.first()?.as_socket_addr()?.ip();
        if self.is_given {
            return None;
        }
        let kind = match ip {
            _ if ip.is_loopback() => "a loopback address: only this machine reaches it",
            IpAddr::V4(ip) if ip.is_private() || ip.is_link_local() => {
                "a private address: only machines of the same network reach it"
            }
            IpAddr::V6(ip) if ip.is_unique_local() || ip.is_unicast_link_local() => {
                "a private address: only machines of the same network reach it"
            }
            IpAddr::V4(_) | IpAddr::V6(_) => return None,
        };
        Some(format!("{ip} is {kind}"))
    }
}

/// The source address of the default route. Connecting a UDP socket sends nothing.
fn own_address(listen: IpAddr) -> Option<IpAddr> {
    // RFC 5737 and RFC 3849: addresses for documentation, which only the default route leads to.
    let (any, far): (SocketAddr, SocketAddr) = if listen.is_ipv4() {
        (
            (Ipv4Addr::UNSPECIFIED, 0).into(),
            (Ipv4Addr::new(192, 0, 2, 1), 9).into(),
        )
    } else {
        let far = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
        ((Ipv6Addr::UNSPECIFIED, 0).into(), (far, 9).into())
    };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(far).ok()?;
    socket.local_addr().ok().map(|address| address.ip())
}

fn welcome(created: &CreateResponse, public: &Public, first: Option<Starter>) {
    print::line(&format!(
        "Agents reach this machine at {} (UDP and TCP).",
        print::list(&public.addresses)
    ));
    if let Some(doubt) = public.doubt() {
        print::line(&format!(
            "  {doubt}. If they should come from elsewhere, restart with --public HOST."
        ));
    }
    match first {
        Some(Starter::Open) => {
            print::line(
                "First rule: agents that joined may open each other's services (rule `starter`).",
            );
            print::line(
                "  `sealock policy remove starter` takes it back, `sealock policy list` shows all.",
            );
        }
        Some(Starter::Closed) => {
            print::line(
                "No rule yet: nothing can be opened until `sealock policy allow CALLER SERVICE`.",
            );
        }
        None => {}
    }
    let minutes = created
        .expires
        .duration_since(jiff::Timestamp::now())
        .as_mins()
        + 1;
    print::line("");
    print::line(&format!("On the next machine, within {minutes} minutes:"));
    print::line("");
    print::line(&format!("  {}", token::command(Role::Agent, created)));
    print::line("");
    print::line(
        "That token works once. For more machines, here in another terminal: `sealock token create`.",
    );
}
