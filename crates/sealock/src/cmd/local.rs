//! Verbs that use the agent of this machine: `expose` and `connect`.

pub(crate) mod connect;
pub(crate) mod expose;

use sealock_core::api::Method;
use sealock_core::api::local::Event;
use sealock_core::reason::Reason;
use sealock_net::unix::{CallError, Lines, UnixClient};

use super::agent::waiting;
use crate::failure::Failure;
use crate::print;

/// How a request to the running agent ended.
#[derive(Debug)]
enum End {
    /// It is done: a detached request was settled.
    Settled,
    /// The agent went away.
    Lost,
}

/// A request to a running agent, if one runs.
async fn request<M: Method<Response = Event>>(
    client: &UnixClient,
    request: &M::Request,
) -> anyhow::Result<Option<Lines<Event>>> {
    match client.lines::<M>(request).await {
        Ok(events) => Ok(Some(events)),
        Err(CallError::NotRunning { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Tells what happens to a request until it ends.
async fn follow(
    events: &mut Lines<Event>,
    detached: bool,
    done: impl Fn(&Event) -> Option<String>,
) -> anyhow::Result<End> {
    loop {
        let event = match events.next().await {
            Ok(Some(event)) => event,
            Ok(None) if detached => return Ok(End::Settled),
            Ok(None) | Err(CallError::Broken(_) | CallError::NotUnderstood) => {
                return Ok(End::Lost);
            }
            Err(error) => return Err(error.into()),
        };
        if let Some(text) = done(&event) {
            print::line(&text);
        }
        match event {
            Event::Waiting { reason } => waiting(reason),
            Event::Ended { reason } => return Err(ended(reason).into()),
            Event::Registered { .. } | Event::Listening { .. } | Event::Alive => {}
        }
    }
}

fn ended(reason: Reason) -> Failure {
    if reason == Reason::Cancelled {
        return Failure::new("it was withdrawn by another command");
    }
    Failure::of(reason)
}

/// What `--detach` needs.
fn no_agent() -> Failure {
    Failure::new("no agent is running on this machine to leave it to")
        .hint("start one with `sealock agent`, or leave out --detach")
}

/// Says that the agent that carried the request ended, and that this process goes on without it.
fn lost() {
    print::error("the agent that carried this has ended; going on without it");
}
