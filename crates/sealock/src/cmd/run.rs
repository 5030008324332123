//! `sealock run`: a program in a fence, which reaches what was allowed and nothing else.

use std::ffi::OsStr;
use std::io;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use sealock_net::capture::Method;
use sealock_net::fence::{self, EarlySignals, Fence, FenceError};
use sealock_net::task::Scope;

use crate::cli::{Common, Inside, Run};
use crate::print;
use crate::settings::{self, Kind};

mod names;
mod outside;
mod policy;

/// This binary, wherever it was started from.
pub(super) const OWN_BINARY: &str = "/proc/self/exe";
/// The verb of the process inside.
pub(super) const INSIDE: &str = "inside";

/// By which means the fence captures: it needs nothing that this user may lack, see `sealock doctor`.
const METHOD: Method = Method::AnyipTproxy;

/// How long what a program that has ended said last may still be under way.
const LAST_WORDS: Duration = Duration::from_secs(3); // a retransmission or two; what it left running is cut off then

// As `env` and `timeout` do it, so that scripts know.
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;

/// A fence that is up, and the signals that were held for its program.
#[derive(Debug)]
pub(crate) struct Fenced {
    fence: Fence,
    signals: EarlySignals,
}

/// Puts the fence up and holds signals, while the process has one thread.
pub(super) fn set_up(flags: &Run) -> anyhow::Result<Fenced> {
    let fence = Fence::set_up(&fence::Fenced {
        binary: OsStr::new(OWN_BINARY),
        verb: &[INSIDE],
        method: METHOD,
        command: &flags.command,
    })?;
    let signals = EarlySignals::hold().context("holding signals")?;
    Ok(Fenced { fence, signals })
}

/// The process inside: becomes the program, or tries methods of capture and prints what it found.
pub(super) fn inside(flags: &Inside) -> ExitCode {
    let method = flags.method.as_deref().and_then(Method::from_word);
    if let (Some(channel), Some(method)) = (flags.channel, method) {
        fence::become_program(channel, method, &flags.command);
        return ExitCode::from(NOT_FOUND); // the process outside was told why
    }
    match fence::try_methods() {
        Ok(findings) => {
            for finding in findings {
                let obstacle = finding.obstacle.unwrap_or_default();
                let obstacle = obstacle.replace('\n', " ");
                print::line(&format!("{} {obstacle}", finding.method.as_str()));
            }
            ExitCode::SUCCESS
        }
        Err(words) => {
            print::error(&words);
            ExitCode::FAILURE
        }
    }
}

pub(super) async fn run(
    common: &Common,
    flags: &Run,
    fenced: Option<Fenced>,
) -> anyhow::Result<ExitCode> {
    let Fenced { mut fence, signals } = fenced.context("the fence is put up before threads")?;
    settings::load(common, Kind::Client, [])?;
    let signals = signals.listen().context("listening for signals")?;
    let scope = Scope::new("run");
    let sockets = std::mem::take(&mut fence.sockets);
    outside::serve(sockets, policy::rules(flags)?, flags, &scope)?;
    let mut program = match fence.go() {
        Ok(program) => program,
        Err(FenceError::Program(error)) => return Ok(cannot_begin(&flags.command[0], &error)),
        Err(error) => return Err(error.into()),
    };
    let status = loop {
        // The order is free: a signal for a program that has ended goes nowhere.
        tokio::select! {
            status = program.ended() => break status?,
            signal = signals.next() => program.pass_on(signal?),
        }
    };
    scope.shutdown(LAST_WORDS).await;
    Ok(ExitCode::from(fence::exit_code(status)))
}

fn cannot_begin(program: &OsStr, error: &io::Error) -> ExitCode {
    print::error(&format!("error: {}: {error}", program.display()));
    ExitCode::from(if error.kind() == io::ErrorKind::NotFound {
        NOT_FOUND
    } else {
        NOT_EXECUTABLE
    })
}
