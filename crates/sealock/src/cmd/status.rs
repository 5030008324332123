//! `sealock status`: what runs on this machine, seen through the sockets of its state directory.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use sealock_core::api::Method;
use sealock_core::api::local::{self, HealthRow, StatusResponse};
use sealock_core::api::status::{Show, ShowRequest, ShowResponse};
use sealock_core::config::Transport;
use sealock_core::identity::Role;
use sealock_core::reason::Reason;
use sealock_net::unix::{CallError, UnixClient};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::cli::{Common, Json};
use crate::failure::{self, Failure};
use crate::print;
use crate::settings::{self, Kind, Places};

/// All parts, for JSON.
#[derive(Debug, Serialize)]
struct Status {
    agent: Option<StatusResponse>,
    controller: Option<ShowResponse>,
    relay: Option<RelayState>,
}

/// What the relay's `/readyz` page says.
#[derive(Debug, Serialize, Deserialize)]
struct RelayState {
    ready: bool,
    #[serde(default)]
    waiting_for: Vec<String>,
}

pub(crate) async fn run(common: &Common, form: Json) -> anyhow::Result<()> {
    let status = ask_all(common).await?;
    if form.json {
        return print::json(&status);
    }
    if let Some(controller) = &status.controller {
        show_controller(controller);
    }
    if let Some(relay) = &status.relay {
        show_relay(relay);
    }
    if let Some(agent) = &status.agent {
        show_agent(agent);
    }
    Ok(())
}

async fn ask_all(common: &Common) -> anyhow::Result<Status> {
    let config = settings::load(common, Kind::Client, [])?;
    let places = Places::of(&config);
    let has_relay = places.relay().join("cert.pem").exists();
    let page = config.admin.listen(Role::Relay).filter(|_| has_relay);
    let relay = match page {
        Some(address) => relay_state(address).await,
        None => None,
    };
    let (agent, controller) = tokio::try_join!(
        if_running::<local::Status>(places.agent_socket(), local::StatusRequest {}),
        if_running::<Show>(places.admin_socket(), ShowRequest {}),
    )?;
    if agent.is_some() || controller.is_some() || relay.is_some() {
        return Ok(Status {
            agent,
            controller,
            relay,
        });
    }
    let state = places.state().display();
    let joined = places.agent().join("cert.pem").exists();
    let failure = if has_relay && !joined {
        Failure::new(format!(
            "the relay of {state} does not run, or its admin address is another"
        ))
        .hint("start it with `sealock relay`; set [admin] listen here as it is there")
    } else if joined {
        Failure::new(format!("this machine has joined, but no agent runs in {state}"))
            .hint("`sealock agent` stays in the background and can be asked, a `sealock connect` by itself cannot")
    } else {
        Failure::new(format!(
            "nothing of Sealock runs in {state}, and this machine has not joined"
        ))
        .hint("`sealock up` on a public machine, then `sealock join SLK1-…` here")
    };
    Err(failure.into())
}

const PAGE_DEADLINE: Duration = Duration::from_secs(2);
const PAGE_LIMIT: u64 = 16 * 1024;

/// Reads the relay's readiness from its admin address; nothing when nobody answers there as a relay does.
async fn relay_state(address: SocketAddr) -> Option<RelayState> {
    let reading = async {
        let mut stream = TcpStream::connect(address).await.ok()?;
        let request = b"GET /readyz HTTP/1.0\r\nHost: localhost\r\n\r\n";
        stream.write_all(request).await.ok()?;
        let mut answer = Vec::new();
        stream
            .take(PAGE_LIMIT)
            .read_to_end(&mut answer)
            .await
            .ok()?;
        let text = String::from_utf8(answer).ok()?;
        let (_, body) = text.split_once("\r\n\r\n")?;
        serde_json::from_str(body).ok()
    };
    tokio::time::timeout(PAGE_DEADLINE, reading).await.ok()?
}

fn show_relay(it: &RelayState) {
    if it.ready {
        return print::line("relay: ready");
    }
    print::line(&format!(
        "relay: waiting for {}",
        print::list(&it.waiting_for)
    ));
}

async fn if_running<M: Method>(
    socket: std::path::PathBuf,
    request: M::Request,
) -> anyhow::Result<Option<M::Response>> {
    match UnixClient::new(socket).call::<M>(&request).await {
        Ok(answer) => Ok(Some(answer)),
        Err(CallError::NotRunning { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn show_controller(it: &ShowResponse) {
    print::line(&format!(
        "controller `{}` of {}, version {}, since {}",
        it.name,
        it.trust_domain,
        it.version,
        print::time(it.started)
    ));
    print::line(&format!("  nodes reach it at TCP {}", it.listen));
    print::line(&format!(
        "  {} relay(s), {} node(s) connected now",
        it.relays, it.watchers
    ));
    for tenant in &it.tenants {
        print::line(&format!(
            "  tenant `{}`: {} agent(s), {} service(s), {} rule(s), policy version {}",
            tenant.name, tenant.agents, tenant.services, tenant.rules, tenant.version.0
        ));
    }
    print::line(&format!(
        "  its root certificate ends {}",
        print::time(it.ca_expires)
    ));
}

fn way(transport: Transport) -> &'static str {
    match transport {
        Transport::Quic => "quic (UDP)",
        Transport::Tls => "tls (TCP)",
        Transport::Websocket => "websocket (TCP)",
    }
}

fn show_agent(it: &StatusResponse) {
    print::line(&format!(
        "agent {}, version {}, since {}",
        it.identity,
        it.version,
        print::time(it.started)
    ));
    for session in &it.sessions {
        let over = session.transport.map(|it| format!(" over {}", way(it)));
        let over = over.unwrap_or_default();
        let state = match (session.up, session.rtt_ms, session.reason) {
            (true, Some(rtt), _) => format!("up{over}, round trip {rtt} ms"),
            (true, None, _) => format!("up{over}"),
            (false, _, Some(reason)) => format!("down: {}", failure::words(reason)),
            (false, _, None) => "connecting".to_owned(),
        };
        let since = print::time(session.since);
        let choice = if session.preferred && it.sessions.len() > 1 {
            ", preferred"
        } else {
            ""
        };
        print::line(&format!(
            "  relay {}: {state}{choice}, since {since}",
            session.relay
        ));
        for it in &session.passed_over {
            let (since, because) = (print::time(it.since), &it.because);
            print::line(&format!(
                "    not over {}: {because}, since {since}",
                it.transport
            ));
        }
    }
    match &it.policy {
        Some(policy) => print::line(&format!(
            "  policy version {}, confirmed {}",
            policy.version.0,
            print::time(policy.confirmed)
        )),
        None => print::line("  no policy yet, so nothing is allowed"),
    }
    for row in &it.exposed {
        let state = match (row.registered, row.reason) {
            (Some(true), _) => health(row.health.as_ref()),
            (Some(false), Some(reason)) => format!("refused: {}", failure::words(reason)),
            (Some(false), None) => "refused".to_owned(),
            (None, Some(reason)) => format!("waiting: {}", failure::words(reason)),
            (None, None) => "waiting".to_owned(),
        };
        print::line(&format!(
            "  exposes `{}` → {}: {state}",
            row.service, row.target
        ));
    }
    for row in &it.connected {
        print::line(&format!(
            "  listens on {} for `{}`",
            row.listen, row.service
        ));
    }
    let expires = print::time(it.certificate_expires);
    print::line(&format!(
        "  {} live flow(s); its certificate ends {expires}",
        it.flows
    ));
}

/// How an accepted offer is, as its check tells.
fn health(row: Option<&HealthRow>) -> String {
    match row.map(|row| (row.well, row)) {
        None => "offered".to_owned(),
        Some((Some(true), row)) => format!("offered, check {} passes", row.check),
        Some((Some(false), row)) => {
            let why = row.why.as_deref().unwrap_or("no result");
            format!("taken back: check {} fails: {why}", row.check)
        }
        Some((None, row)) => format!("waiting for check {}", row.check),
    }
}

/// For probes of service managers: no words unless something is missing.
pub(crate) async fn ready(common: &Common) -> anyhow::Result<ExitCode> {
    let status = ask_all(common).await?;
    if let Some(relay) = status.relay.filter(|relay| !relay.ready) {
        let text = format!("the relay waits for {}", print::list(&relay.waiting_for));
        return Err(Failure::new(text).into());
    }
    let Some(agent) = &status.agent else {
        return Ok(ExitCode::SUCCESS);
    };
    if !agent.sessions.iter().any(|session| session.up) {
        let reason = agent.sessions.iter().find_map(|session| session.reason);
        return Err(Failure::of(reason.unwrap_or(Reason::RelayUnreachable)).into());
    }
    if agent.policy.is_none() {
        return Err(Failure::of(Reason::NoPolicy).into());
    }
    Ok(ExitCode::SUCCESS)
}
