//! `sealock expose`: offers a local program as a service.
//!
//! One agent of an identity provides at a time, so all `expose` of a machine share one: the `sealock agent` that runs, or
//! the first `expose` itself. When the one that carries the others ends, another takes its place.

use std::time::Duration;

use sealock_agent::{AgentHandle, StartError};
use sealock_core::api::local::{Event, Expose as Method, ExposeRequest};
use sealock_core::config::Config;
use sealock_net::unix::{BindError, UnixClient};

use super::{End, follow, lost, no_agent, request};
use crate::cli::{Common, Expose};
use crate::cmd::agent::{self, PATIENCE, Seat};
use crate::failure::Failure;
use crate::settings::{self, Kind, Places};
use crate::signals::Stop;

/// Between two attempts to find or be the machine's agent.
const PAUSE: Duration = Duration::from_millis(200);

pub(crate) async fn run(common: &Common, flags: Expose) -> anyhow::Result<()> {
    let config = settings::load(common, Kind::Client, [])?;
    let mut stop = Stop::new()?;
    let labels = flags.labels.iter();
    let wanted = ExposeRequest {
        service: flags.name.clone(),
        target: flags.target.clone(),
        labels: labels
            .map(|label| (label.key().to_owned(), label.value().to_owned()))
            .collect(),
        check: flags.check(),
        weight: flags.weight,
        standby: flags.standby,
        sticky: flags.sticky,
        detached: flags.detach,
    };
    let mut host = None;
    // The order is free: the wish to stop is never lost, and an offer ends with its connection.
    let outcome = tokio::select! {
        outcome = keep(&config, &wanted, &mut host) => outcome,
        () = stop.asked() => Ok(()),
    };
    if let Some(host) = host {
        host.stop().await;
    }
    outcome
}

async fn keep(
    config: &Config,
    wanted: &ExposeRequest,
    host: &mut Option<AgentHandle>,
) -> anyhow::Result<()> {
    let client = UnixClient::new(Places::of(config).agent_socket());
    let told = |event: &Event| match event {
        Event::Registered { service } => Some(format!("exposed `{service}` → {}", wanted.target)),
        Event::Listening { .. } | Event::Waiting { .. } | Event::Ended { .. } | Event::Alive => {
            None
        }
    };
    loop {
        if let Some(mut events) = request::<Method>(&client, wanted).await? {
            match follow(&mut events, wanted.detached, told).await? {
                End::Settled => return Ok(()),
                End::Lost => lost(),
            }
        } else if wanted.detached {
            return Err(no_agent().into());
        } else if host.is_none() {
            *host = start(config).await?;
            if let Some(host) = host {
                refuse_hopeless(host).await?;
            }
        }
        tokio::time::sleep(PAUSE.mul_f64(rand::random_range(0.5..1.5))).await;
    }
}

/// Becomes the machine's agent, unless another process does so first.
async fn start(config: &Config) -> anyhow::Result<Option<AgentHandle>> {
    match sealock_agent::start(agent::config(config, Seat::Passing)?).await {
        Ok(agent) => Ok(Some(agent)),
        Err(StartError::Socket(BindError::InUse { .. })) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// What waiting cannot mend ends the verb; for everything else the events tell what it waits for.
async fn refuse_hopeless(agent: &AgentHandle) -> anyhow::Result<()> {
    match agent.ready(PATIENCE).await {
        Err(reason) if !reason.is_transient() => Err(Failure::of(reason).into()),
        Ok(()) | Err(_) => Ok(()),
    }
}
