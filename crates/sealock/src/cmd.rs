//! The verbs, one file for each area of the interfaces; `up`, `join` and the roles beside them.

mod agent;
mod audit;
mod config;
mod controller;
mod demo;
mod doctor;
mod join;
mod local;
mod policy;
mod relay;
mod run;
mod service;
mod status;
mod token;
mod up;
mod version;

use std::process::ExitCode;

use sealock_core::api::Method;
use sealock_core::name::TenantName;
use sealock_net::unix::{CallError, UnixClient};

use crate::cli::{AgentVerb, Cli, Common, RelayVerb, Verb};
use crate::failure::Failure;
use crate::settings::{self, Kind, Places};

/// Runs a verb to its end.
pub(crate) async fn run(cli: Cli, fence: Option<run::Fenced>) -> anyhow::Result<ExitCode> {
    let common = cli.common;
    let done = match cli.verb {
        Verb::Demo(flags) => Box::pin(demo::run(&common, &flags)).await,
        Verb::Up(flags) => Box::pin(up::run(&common, &flags)).await,
        Verb::Join(flags) => Box::pin(join::run(&common, flags)).await,
        Verb::Expose(flags) => Box::pin(local::expose::run(&common, flags)).await,
        Verb::Connect(flags) => return Box::pin(local::connect::run(&common, flags)).await,
        Verb::Run(flags) => return Box::pin(run::run(&common, &flags, fence)).await,
        Verb::Inside(_) => Err(Failure::usage("this verb is for sealock itself").into()),
        Verb::Doctor(form) => doctor::run(form),
        Verb::Status(form) => status::run(&common, form).await,
        Verb::Agent(agent) => match agent.verb {
            None => Box::pin(agent::run(&common)).await,
            Some(AgentVerb::List(form)) => agent::list(&common, form).await,
            Some(AgentVerb::Revoke { name }) => agent::revoke(&common, name).await,
        },
        Verb::Relay(flags) => match flags.verb {
            None => Box::pin(relay::run(&common, flags)).await,
            Some(RelayVerb::List(form)) => relay::list(&common, form).await,
        },
        Verb::Controller(flags) => Box::pin(controller::run(&common, &flags)).await,
        Verb::Token(verb) => token::run(&common, verb).await,
        Verb::Policy(verb) => policy::run(&common, verb).await,
        Verb::Service(verb) => service::run(&common, verb).await,
        Verb::Audit(flags) => audit::run(&common, flags).await,
        Verb::Why(flags) => return policy::why(&common, flags).await,
        Verb::Config(verb) => config::run(&common, &verb),
        Verb::Completions { shell } => version::completions(shell),
        Verb::Version(form) => version::run(form),
        Verb::Ready => return status::ready(&common).await,
    };
    done.map(|()| ExitCode::SUCCESS)
}

/// What was done before the process had threads.
pub(crate) enum Prepared {
    /// Nothing: the verb needs none of it.
    Nothing,
    /// A fence, for the verb to run a program in.
    Fence(run::Fenced),
    /// The verb has ended.
    Ended(ExitCode),
}

/// Prepares what must be prepared by a process of one thread.
pub(crate) fn fence(verb: &Verb) -> anyhow::Result<Prepared> {
    if let Verb::Inside(flags) = verb {
        return Ok(Prepared::Ended(run::inside(flags)));
    }
    if let Verb::Run(flags) = verb {
        return run::set_up(flags).map(Prepared::Fence);
    }
    Ok(Prepared::Nothing)
}

/// The tenant that a verb means: the one that the configuration gives the deployment.
fn tenant(common: &Common) -> anyhow::Result<TenantName> {
    Ok(settings::read(common, [])?.controller.tenant)
}

/// Calls a method of the controller of this state directory.
async fn ask<M: Method>(common: &Common, request: &M::Request) -> anyhow::Result<M::Response> {
    let config = settings::load(common, Kind::Client, [])?;
    let places = Places::of(&config);
    let client = UnixClient::new(places.admin_socket());
    match client.call::<M>(request).await {
        Ok(answer) => Ok(answer),
        Err(CallError::NotRunning { .. }) => {
            let text = format!("no controller runs in {}", places.state().display());
            let hint = "run this on the machine of `sealock up`, as its user; with --state DIR if it has one";
            Err(Failure::new(text).hint(hint).into())
        }
        Err(error) => Err(error.into()),
    }
}
