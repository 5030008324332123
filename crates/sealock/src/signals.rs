//! The wish to stop: SIGINT (Ctrl-C) or SIGTERM.

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Both signals, caught from the moment this is made.
#[derive(Debug)]
pub(crate) struct Stop {
    interrupt: Signal,
    terminate: Signal,
}

/// How the end is wished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    /// A person at a terminal, who waits.
    Now,
    /// A service manager or an upgrade: what runs may end or move first.
    Politely,
}

impl Stop {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let caught = |kind| signal(kind).context("catching signals");
        Ok(Self {
            interrupt: caught(SignalKind::interrupt())?,
            terminate: caught(SignalKind::terminate())?,
        })
    }

    /// Waits for one of them, and says how the end is wished.
    ///
    /// # Cancel safety
    /// Safe.
    pub(crate) async fn wished(&mut self) -> Wish {
        // The order is free: whoever sends both at once gets either.
        tokio::select! {
            _ = self.interrupt.recv() => Wish::Now,
            _ = self.terminate.recv() => Wish::Politely,
        }
    }

    /// Waits for one of them.
    ///
    /// # Cancel safety
    /// Safe.
    pub(crate) async fn asked(&mut self) {
        // The order is free: both mean the same.
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
