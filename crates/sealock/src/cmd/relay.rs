//! `sealock relay`: the role that joins what it cannot read; and the list of relays.

use std::net::SocketAddr;
use std::time::Duration;

use jiff::Timestamp;
use sealock_core::address::HostPort;
use sealock_core::api::relay::{List, ListRequest};
use sealock_core::config::Config;
use sealock_core::identity::Role;
use sealock_core::reason::Reason;
use sealock_net::identity::{IdentityDir, Trust};
use sealock_net::join::{self, JoinError};
use sealock_net::recover::recover_relay;
use sealock_relay::{OpenLimit, RelayConfig, RelayHandle};

use super::ask;
use super::join::{forget_views, naming, read_token};
use super::up::Public;
use crate::cli::{Common, Json, Relay};
use crate::failure::Failure;
use crate::print;
use crate::settings::{self, Kind, Places, flag};
use crate::signals::{Stop, Wish};

const NEW_TOKEN: &str =
    "`sealock token create --role relay` on the controller's machine prints the line to type here";

pub(crate) async fn run(common: &Common, flags: Relay) -> anyhow::Result<()> {
    let given = [
        flag("--name", "relay.name", flags.name.as_ref()),
        flag("--listen", "relay.listen", flags.listen.as_ref()),
        flag(
            "--controller",
            "relay.controller",
            flags.controller.as_ref(),
        ),
    ];
    let config = settings::load(common, Kind::Role, given.into_iter().flatten())?;
    let public = advertised(&config, &flags.advertise)?;
    let places = Places::of(&config);
    let _lock = places.lock_relay()?;
    let dir = IdentityDir::open(places.relay())?;
    if !is_usable(&dir, None)?
        && let Some(token) = &flags.token
    {
        let token = read_token(token)?;
        let naming = naming(config.relay.name.as_ref());
        let joined = join::join_relay(&token, naming, public.addresses.clone(), &dir).await;
        joined.map_err(explain)?;
        forget_views(&dir)?;
        places.keep_relay_controller(&token.addresses)?;
    }
    if dir.load_svid()?.is_none() {
        let text = "this relay has no identity";
        return Err(Failure::new(text).hint(NEW_TOKEN).into());
    }
    let controller = match &config.relay.controller {
        Some(controller) => controller.clone(),
        None => places.relay_controller()?.ok_or_else(|| {
            Failure::usage("it is not known where the controller is")
                .hint("give it with --controller HOST:PORT")
        })?,
    };
    if !is_usable(&dir, None)? {
        come_back(&dir, &controller).await?;
    }
    let mut stop = Stop::new()?;
    let shown = print::list(&public.addresses);
    let relay = sealock_relay::start(self::config(&config, public.addresses.clone(), controller));
    let relay = relay.await?;
    print::line(&format!(
        "Agents reach this relay at {shown} (UDP and TCP)."
    ));
    if let Some(doubt) = public.doubt() {
        print::line(&format!(
            "  {doubt}. If they should come from elsewhere, restart with --advertise HOST."
        ));
    }
    let wish = stop.wished().await;
    wind_down(relay, wish, config.relay.drain_time, &mut stop).await;
    Ok(())
}

/// Goes on with an identity that ended while the relay was off.
async fn come_back(dir: &IdentityDir, controller: &HostPort) -> anyhow::Result<()> {
    match recover_relay(dir, controller).await {
        Ok((svid, _)) => {
            let expires = svid.leaf().not_after;
            tracing::warn!(%expires, "this relay's certificate had ended; it was given a new one");
            Ok(())
        }
        Err(error) => {
            let hint = if error.is_transient() {
                "is the controller running there, and may this machine open TCP to it?"
            } else {
                NEW_TOKEN
            };
            let failure = Failure::of(error.reason()).about("this relay's certificate has ended");
            Err(failure.hint(hint).into())
        }
    }
}

/// Ends a relay as it was asked to: at once, or when what flows through it has moved on. A second wish ends it at once.
pub(crate) async fn wind_down(relay: RelayHandle, wish: Wish, limit: Duration, stop: &mut Stop) {
    match wish {
        Wish::Now => {
            print::error("stopping");
            relay.stop().await;
        }
        Wish::Politely => {
            print::error("draining; a second signal ends it at once");
            // The order is free: a second wish ends the drain by dropping it.
            tokio::select! {
                () = relay.drain(limit) => {}
                () = stop.asked() => {}
            }
        }
    }
}

fn explain(error: JoinError) -> anyhow::Error {
    match &error {
        JoinError::WrongRole { token, .. } => {
            let article = if *token == Role::Agent { "an" } else { "a" };
            let text = format!("this token lets in {article} {token}, not a relay");
            let failure = Failure::usage(text);
            failure.hint(NEW_TOKEN).into()
        }
        JoinError::Refused(_) => {
            let failure = Failure::of(error.reason());
            let hint = if error.reason() == Reason::NameTaken {
                "choose another name with --name NAME"
            } else {
                NEW_TOKEN
            };
            failure.hint(hint).into()
        }
        JoinError::Unreachable(_) | JoinError::NoRelay(_) => {
            let failure = Failure::of(error.reason())
                .hint("is the controller running there, and may this machine open TCP to it?");
            anyhow::Error::from(error).context(failure)
        }
        JoinError::Socket(_) | JoinError::Key(_) | JoinError::Issued(_) | JoinError::Keep(_) => {
            error.into()
        }
    }
}

/// Whether there is an identity of a relay that still runs, of this deployment where one is given.
pub(crate) fn is_usable(dir: &IdentityDir, deployment: Option<&Trust>) -> anyhow::Result<bool> {
    let (Some(svid), Some(trust)) = (dir.load_svid()?, dir.load_trust()?) else {
        return Ok(false);
    };
    let is_ours = deployment.is_none_or(|ours| {
        ours.trust_domain == trust.trust_domain
            && ours.roots.iter().any(|root| trust.roots.contains(root))
    });
    let is_relay = svid.id().principal.role() == Role::Relay;
    Ok(is_ours && is_relay && svid.leaf().not_after > Timestamp::now())
}

/// Where agents reach the relay: as flags say, else as the configuration says, else a guess.
pub(crate) fn advertised(config: &Config, flags: &[String]) -> anyhow::Result<Public> {
    let listen: SocketAddr = config.relay.listen;
    let mut addresses = Vec::new();
    for text in flags {
        addresses.push(with_port(text, listen.port())?);
    }
    if addresses.is_empty() {
        addresses.clone_from(&config.relay.advertise);
    }
    if addresses.is_empty() {
        return Ok(Public::guess(listen));
    }
    Ok(Public {
        addresses,
        is_given: true,
    })
}

/// Reads `HOST` or `HOST:PORT`.
pub(crate) fn with_port(text: &str, port: u16) -> anyhow::Result<HostPort> {
    let full = if text.parse::<std::net::Ipv6Addr>().is_ok() {
        format!("[{text}]:{port}")
    } else if text.ends_with(']') || !text.contains(':') {
        format!("{text}:{port}")
    } else {
        text.to_owned()
    };
    full.parse()
        .map_err(|error: sealock_core::address::AddressError| {
            Failure::usage(error.to_string())
                .hint("write HOST or HOST:PORT, such as relay.example")
                .into()
        })
}

/// What the relay needs, of what the user said.
pub(crate) fn config(
    config: &Config,
    advertise: Vec<HostPort>,
    controller: HostPort,
) -> RelayConfig {
    let part = &config.relay;
    RelayConfig {
        dir: Places::of(config).relay(),
        listen: part.listen,
        advertise,
        controller,
        max_policy_age: part.max_policy_age,
        max_sessions: usize::try_from(part.max_sessions).unwrap_or(usize::MAX),
        max_streams_per_session: part.max_streams_per_session,
        open_limit: OpenLimit::default(),
        admin: settings::admin_address(config, Role::Relay),
        region: part.region.clone(),
    }
}

pub(crate) async fn list(common: &Common, form: Json) -> anyhow::Result<()> {
    let listed = ask::<List>(common, &ListRequest {}).await?;
    if form.json {
        return print::json(&listed);
    }
    let rows = listed.relays.into_iter().map(|relay| {
        vec![
            relay.name.to_string(),
            print::list(&relay.addresses),
            if relay.connected { "yes" } else { "no" }.to_owned(),
            print::maybe_time(relay.last_seen),
        ]
    });
    print::table(
        &["RELAY", "ADDRESSES", "CONNECTED", "LAST SEEN"],
        rows.collect(),
        "no relay has joined",
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_gets_the_port_that_it_lacks() {
        for (text, full) in [
            ("relay.example", "relay.example:7443"),
            ("relay.example:9", "relay.example:9"),
            ("192.0.2.1", "192.0.2.1:7443"),
            ("2001:db8::1", "[2001:db8::1]:7443"),
            ("[2001:db8::1]", "[2001:db8::1]:7443"),
            ("[2001:db8::1]:9", "[2001:db8::1]:9"),
        ] {
            let read = with_port(text, 7443).expect(text);
            assert_eq!(read.to_string(), full);
        }
        assert!(with_port("a b", 7443).is_err());
    }
}
