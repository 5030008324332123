//! The agent: beside the workload, dials out only, offers services inwards and opens services of others.
//!
//! One agent has one session to a relay, a table of what it offers and a table of where it listens. A program that only
//! calls (`sealock connect` without a running agent) is an agent whose table of offers stays empty.

mod agent;
mod control;
pub mod egress;
mod health;
mod judge;
mod listeners;
mod offers;
mod provide;

pub use agent::{AgentConfig, AgentHandle, ControlSocket, DoorPlan, StartError, start};
pub use listeners::ListenError;
pub use offers::NewOffer;
