//! `sealock status`: what runs on this machine, seen through the sockets of its state directory.

use std::process::ExitCode;

use sealock_core::api::Method;
use sealock_core::api::local::{self, StatusResponse};
use sealock_core::api::status::{Show, ShowRequest, ShowResponse};
use sealock_net::unix::{CallError, UnixClient};
use serde::Serialize;

use crate::cli::{Common, Json};
use crate::failure::{self, Failure};
use crate::print;
use crate::settings::{self, Kind, Places};

/// Both halves, for JSON.
#[derive(Debug, Serialize)]
struct Status {
    agent: Option<StatusResponse>,
    controller: Option<ShowResponse>,
}

pub(crate) async fn run(common: &Common, form: Json) -> anyhow::Result<()> {
    let status = ask_both(common).await?;
    if form.json {
        return print::json(&status);
    }
    if let Some(controller) = &status.controller {
        show_controller(controller);
    }
    if let Some(agent) = &status.agent {
        show_agent(agent);
    }
    Ok(())
}

async fn ask_both(common: &Common) -> anyhow::Result<Status> {
    let config = settings::load(common, Kind::Client, [])?;
    let places = Places::of(&config);
    let (agent, controller) = tokio::try_join!(
        if_running::<local::Status>(places.agent_socket(), local::StatusRequest {}),
        if_running::<Show>(places.admin_socket(), ShowRequest {}),
    )?;
    if agent.is_some() || controller.is_some() {
        return Ok(Status { agent, controller });
    }
    let state = places.state().display();
    let joined = places.agent().join("cert.pem").exists();
    let failure = if joined {
        Failure::new(format!("this machine has joined, but no agent runs in {state}"))
            .hint("`sealock expose PORT --as NAME` offers a program, `sealock agent` stays in the background")
    } else {
        Failure::new(format!(
            "nothing of Sealock runs in {state}, and this machine has not joined"
        ))
        .hint("`sealock up` on a public machine, then `sealock join SLK1-…` here")
    };
    Err(failure.into())
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

fn show_agent(it: &StatusResponse) {
    print::line(&format!(
        "agent {}, version {}, since {}",
        it.identity,
        it.version,
        print::time(it.started)
    ));
    for session in &it.sessions {
        let state = match (session.up, session.rtt_ms, session.reason) {
            (true, Some(rtt), _) => format!("up, round trip {rtt} ms"),
            (true, None, _) => "up".to_owned(),
            (false, _, Some(reason)) => format!("down: {}", failure::words(reason)),
            (false, _, None) => "connecting".to_owned(),
        };
        let since = print::time(session.since);
        print::line(&format!(
            "  relay {}: {state}, since {since}",
            session.relay
        ));
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
            (Some(true), _) => "offered".to_owned(),
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

/// For probes of service managers: no words unless something is missing.
pub(crate) async fn ready(common: &Common) -> anyhow::Result<ExitCode> {
    let status = ask_both(common).await?;
    let Some(agent) = &status.agent else {
        return Ok(ExitCode::SUCCESS);
    };
    if !agent.sessions.iter().any(|session| session.up) {
        let reason = agent.sessions.iter().find_map(|session| session.reason);
        let reason = reason.unwrap_or(sealock_core::reason::Reason::RelayUnreachable);
        return Err(Failure::of(reason).into());
    }
    if agent.policy.is_none() {
        return Err(Failure::of(sealock_core::reason::Reason::NoPolicy).into());
    }
    Ok(ExitCode::SUCCESS)
}
