//! The relay: the public meeting point of agents that all dial out.
//!
//! It admits agents by certificate, judges each open by the tenant's signed view, and joins the caller's leg with the
//! provider's. It holds no state that a restart would lose: sessions come back by themselves and views are kept on disk.
//! It never parses what it passes on, and never asks the controller while a flow waits.

mod admit;
mod budget;
mod controller;
mod directory;
mod gone;
mod judge;
mod peers;
mod relay;
mod session;

pub use budget::OpenLimit;
pub use directory::{Directory, SessionSummary};
pub use relay::{RelayConfig, RelayHandle, StartError, start};
