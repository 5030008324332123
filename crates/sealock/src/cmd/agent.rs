//! `sealock agent`: the role beside the programs; and what the controller knows of agents.

use std::time::Duration;

use sealock_agent::{AgentConfig, AgentHandle, ControlSocket, DoorPlan, NewOffer};
use sealock_core::address::Target;
use sealock_core::api::agent::{List, ListRequest, Revoke, RevokeRequest};
use sealock_core::config::{Config, Door, DoorKind};
use sealock_core::identity::Role;
use sealock_core::name::AgentName;
use sealock_core::reason::Reason;
use sealock_flow::inlet::door::Speech;
use sealock_net::files;
use sealock_net::stream::MEMORY_LIMIT;
use sealock_proto::door::Login;
use sealock_proto::wire::SessionKind;

use super::{ask, tenant};
use crate::cli::{Common, Json};
use crate::failure::{self, Failure};
use crate::print;
use crate::settings::{self, Kind, Places};
use crate::signals::{Stop, Wish};

/// How long a start waits for the relay before it tells that it goes on waiting.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

pub(crate) async fn run(common: &Common) -> anyhow::Result<()> {
    let config = settings::load(common, Kind::Role, [])?;
    let mut stop = Stop::new()?;
    let admin = settings::admin_address(&config, Role::Agent);
    let full = AgentConfig {
        admin,
        ..self::config(&config, Seat::Standing)?
    };
    let agent = sealock_agent::start(full).await?;
    for offer in &config.agent.expose {
        let new = NewOffer {
            service: offer.service.clone(),
            target: offer.target.clone(),
            labels: offer.labels.clone(),
            check: offer.check.clone(),
            weight: offer.weight,
            standby: offer.standby,
            sticky: offer.sticky,
        };
        // The configuration holds each name once, and nobody else could offer yet.
        if !agent.offer(new) {
            tracing::warn!(service = %offer.service, "this service is offered already");
        }
    }
    for port in &config.agent.connect {
        let listen = Target::Tcp(port.listen.into());
        agent.connect(port.service.clone(), &listen).await?;
    }
    for door in &config.agent.door {
        agent.open_door(plan(door)?).await?;
    }
    print::line(&format!(
        "The agent of {} runs; `sealock status` shows it.",
        agent.id()
    ));
    // The order is free: a trouble that waiting cannot mend ends the agent as a signal does.
    let outcome = tokio::select! {
        outcome = keep(&agent) => outcome,
        wish = stop.wished() => Ok(wish),
    };
    match outcome {
        Ok(Wish::Politely) => {
            // The order is free: a second wish ends the drain by dropping it.
            tokio::select! {
                () = agent.drain(config.agent.drain_time) => {}
                () = stop.asked() => {}
            }
            Ok(())
        }
        Ok(Wish::Now) => {
            agent.stop().await;
            Ok(())
        }
        Err(error) => {
            agent.stop().await;
            Err(error)
        }
    }
}

/// A front door as it was configured, with the login that its file holds.
fn plan(door: &Door) -> anyhow::Result<DoorPlan> {
    let login = match &door.login_file {
        Some(path) => {
            let text = String::from_utf8(files::read_private(path)?).unwrap_or_default();
            let login = Login::new(text.trim_end_matches(['\r', '\n']));
            Some(login.ok_or_else(|| {
                Failure::usage(format!("{} holds no USER:PASSWORD", path.display()))
                    .hint("write one line, with at most 255 bytes on each side of the colon")
            })?)
        }
        None => None,
    };
    Ok(DoorPlan {
        speech: match door.kind {
            DoorKind::Socks5 => Speech::Socks5,
            DoorKind::Http => Speech::Http,
        },
        listen: door.listen,
        login,
        ways: door.ways.clone(),
    })
}

/// Tells once why the agent is not ready, and ends when waiting cannot mend it.
async fn keep(agent: &AgentHandle) -> anyhow::Result<Wish> {
    match agent.ready(PATIENCE).await {
        Ok(()) => {}
        Err(reason) if reason.is_transient() => waiting(reason),
        Err(reason) => return Err(Failure::of(reason).into()),
    }
    std::future::pending().await
}

/// Tells why something does not work yet.
pub(crate) fn waiting(reason: Reason) {
    print::error(&format!("waiting: {}", failure::words(reason)));
}

/// How an agent sits on its machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seat {
    /// It is the machine's agent, and stays: others use it over its control socket, and may leave it something.
    Standing,
    /// It is the machine's agent for as long as this program runs.
    Passing,
    /// It only opens services, for this one program, beside whatever agent runs.
    Own,
}

/// What an agent needs, of what the user said.
pub(crate) fn config(config: &Config, seat: Seat) -> anyhow::Result<AgentConfig> {
    let places = Places::of(config);
    let (kind, stays) = match seat {
        Seat::Standing => (SessionKind::Full, Some(true)),
        Seat::Passing => (SessionKind::Full, Some(false)),
        Seat::Own => (SessionKind::CallerOnly, None),
    };
    let path = places.agent_socket();
    let socket = stays.map(|stays| ControlSocket { path, stays });
    Ok(AgentConfig {
        dir: places.agent(),
        relays: places.relays()?,
        region: config.agent.region.clone(),
        kind,
        ways: settings::ways(config)?,
        max_policy_age: config.agent.max_policy_age,
        stream_memory: MEMORY_LIMIT,
        bulk: Default::default(),
        socket,
        admin: None,
    })
}

pub(crate) async fn list(common: &Common, form: Json) -> anyhow::Result<()> {
    let request = ListRequest {
        tenant: tenant(common)?,
    };
    let listed = ask::<List>(common, &request).await?;
    if form.json {
        return print::json(&listed);
    }
    let rows = listed.agents.into_iter().map(|agent| {
        let labels = agent
            .labels
            .iter()
            .map(|(key, value)| format!("{key}={value}"));
        let state = if agent.revoked.is_some() {
            "revoked"
        } else {
            "joined"
        };
        vec![
            agent.name.to_string(),
            state.to_owned(),
            print::list(&agent.services),
            print::list(labels),
            print::list(&agent.groups),
            print::maybe_time(agent.last_seen),
        ]
    });
    print::table(
        &[
            "AGENT",
            "STATE",
            "SERVICES",
            "LABELS",
            "GROUPS",
            "LAST SEEN",
        ],
        rows.collect(),
        "no agent has joined; `sealock token create` lets one in",
    );
    Ok(())
}

pub(crate) async fn revoke(common: &Common, name: AgentName) -> anyhow::Result<()> {
    let request = RevokeRequest {
        tenant: tenant(common)?,
        name: name.clone(),
    };
    let revoked = ask::<Revoke>(common, &request).await?;
    print::line(&format!(
        "`{name}` is revoked: {} certificate(s); its live connections end within seconds",
        revoked.certificates
    ));
    Ok(())
}
