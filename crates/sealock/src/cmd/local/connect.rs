//! `sealock connect`: reaches a service of another machine, by a local port or over standard input and output.
//!
//! A port goes through the machine's agent when one runs. Standard input and output always have a session of their own,
//! so that an ssh over them depends on no other process.

use std::process::ExitCode;
use std::time::Duration;

use sealock_agent::AgentHandle;
use sealock_core::address::Target;
use sealock_core::api::ApiError;
use sealock_core::api::local::{Connect as Method, ConnectRequest, Event};
use sealock_core::config::Config;
use sealock_core::name::ServiceName;
use sealock_core::reason::Reason;
use sealock_net::identity::IdentityDir;
use sealock_net::unix::{self, UnixClient};

use super::{End, follow, lost, no_agent, request};
use crate::cli::{Common, Connect};
use crate::cmd::agent::{self, PATIENCE, Seat, waiting};
use crate::failure::Failure;
use crate::print;
use crate::settings::{self, Kind, Places};
use crate::signals::Stop;

/// How long `--stdio` waits for a relay before it gives up: its user waits at a prompt.
const STDIO_PATIENCE: Duration = Duration::from_secs(4); // a relay restart heals in 3 s at most

pub(crate) async fn run(common: &Common, flags: Connect) -> anyhow::Result<ExitCode> {
    let config = settings::load(common, Kind::Client, [])?;
    let mut stop = Stop::new()?;
    let Some(listen) = flags.listen else {
        return stdio(&config, flags.name, &mut stop).await;
    };
    let wanted = ConnectRequest {
        service: flags.name,
        listen,
        detached: flags.detach,
    };
    let mut own = None;
    // The order is free: the wish to stop is never lost, and a listener ends with its connection.
    let outcome = tokio::select! {
        outcome = keep(&config, &wanted, &mut own) => outcome,
        () = stop.asked() => Ok(()),
    };
    if let Some(agent) = own {
        agent.stop().await;
    }
    outcome.map(|()| ExitCode::SUCCESS)
}

fn listening(service: &ServiceName, listen: &Target) -> String {
    format!("listening on {listen} for `{service}`")
}

async fn keep(
    config: &Config,
    wanted: &ConnectRequest,
    own: &mut Option<AgentHandle>,
) -> anyhow::Result<()> {
    let client = UnixClient::new(Places::of(config).agent_socket());
    let told = |event: &Event| match event {
        Event::Listening { service, listen } => Some(listening(service, listen)),
        Event::Registered { .. } | Event::Waiting { .. } | Event::Ended { .. } | Event::Alive => {
            None
        }
    };
    let asked = request::<Method>(&client, wanted).await;
    if let Some(mut events) = asked.map_err(|error| told_why(error, config, &wanted.service))? {
        match follow(&mut events, wanted.detached, told).await? {
            End::Settled => return Ok(()),
            End::Lost => lost(),
        }
    }
    if wanted.detached {
        return Err(no_agent().into());
    }
    let agent = own.insert(sealock_agent::start(agent::config(config, Seat::Own)?).await?);
    match agent.ready(PATIENCE).await {
        Ok(()) => {}
        Err(reason) if reason.is_transient() => waiting(reason),
        Err(reason) => return Err(Failure::of(reason).into()),
    }
    agent
        .may_open(wanted.service.clone())
        .await
        .map_err(|reason| refused(reason, agent, &wanted.service))?;
    let at = agent
        .connect(wanted.service.clone(), &wanted.listen)
        .await?;
    print::line(&listening(&wanted.service, &at));
    std::future::pending().await
}

async fn stdio(config: &Config, service: ServiceName, stop: &mut Stop) -> anyhow::Result<ExitCode> {
    let agent = sealock_agent::start(agent::config(config, Seat::Own)?).await?;
    let flow = async {
        match agent.ready(STDIO_PATIENCE).await {
            Ok(()) => agent.stdio(service.clone()).await,
            Err(reason) => reason,
        }
    };
    // The order is free: a flow that ended just now is cut all the same.
    let reason = tokio::select! {
        reason = flow => reason,
        () = stop.asked() => Reason::Cancelled,
    };
    let failure = refused(reason, &agent, &service);
    agent.stop().await;
    if reason == Reason::Done {
        return Ok(ExitCode::SUCCESS);
    }
    Err(failure.into())
}

/// A running agent answers in general words; here the names are known.
fn told_why(error: anyhow::Error, config: &Config, service: &ServiceName) -> anyhow::Error {
    let Some(unix::CallError::Api(ApiError {
        reason: Some(reason),
        ..
    })) = error.downcast_ref()
    else {
        return error;
    };
    let svid = IdentityDir::open(Places::of(config).agent())
        .ok()
        .and_then(|dir| dir.load_svid().ok().flatten());
    let me = svid.as_ref().and_then(|svid| svid.leaf().agent());
    let me = me.map_or("CALLER", |agent| agent.name.as_str());
    named(*reason, me, service).into()
}

/// Why a service cannot be opened, with the hint in the names of this case.
fn refused(reason: Reason, agent: &AgentHandle, service: &ServiceName) -> Failure {
    let me = agent.id().principal.as_agent();
    let me = me.map_or("CALLER", |agent| agent.name.as_str());
    named(reason, me, service)
}

fn named(reason: Reason, caller: &str, service: &ServiceName) -> Failure {
    Failure::of(reason)
        .about(format!("`{service}`"))
        .naming(caller, service.as_str())
}
