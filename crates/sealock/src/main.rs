//! The program `sealock`: reads the command line, runs one verb, and says how it ended.
//!
//! Every verb is a function of `cmd`; roles are wired there and live in their own crates. Exit codes: 0 done, 1 failed,
//! 2 usage or configuration, 3 refused by policy, 4 somebody could not be reached.
//! Deliberately absent: anything that another program could want to link.

mod cli;
mod cmd;
mod failure;
mod log;
mod print;
mod settings;
mod signals;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::Cli;
use crate::cmd::Prepared;

fn main() -> ExitCode {
    sealock_net::sys::keep_freed_memory();
    // Before the first use of TLS; the only error is that one is installed already.
    let installed = rustls::crypto::aws_lc_rs::default_provider().install_default();
    debug_assert!(installed.is_ok(), "main runs once");
    let cli = Cli::parse();
    // Before the runtime: what it prepares needs a process of one thread.
    let fence = match cmd::fence(&cli.verb) {
        Ok(Prepared::Nothing) => None,
        Ok(Prepared::Fence(fence)) => Some(fence),
        Ok(Prepared::Ended(code)) => return code,
        Err(error) => return failure::report(&error),
    };
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            let error = anyhow::Error::from(error).context("the runtime cannot be started");
            return failure::report(&error);
        }
    };
    let outcome = runtime.block_on(Box::pin(cmd::run(cli, fence)));
    // A read of a terminal cannot be cancelled, and nobody waits for one any more.
    runtime.shutdown_background();
    outcome.unwrap_or_else(|error| failure::report(&error))
}
