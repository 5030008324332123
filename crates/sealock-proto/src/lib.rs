//! The talk of Sealock: what goes over the wire and the state machines that answer it.
//!
//! Everything here is sans-IO: verbs are `handle_*(now, …)` and `poll_output()`, bytes and clocks are arguments, and
//! after each handled input the caller drains the outputs. `wire` is what agents and relays say to each other;
//! `stream` is what two agents say to each other above it, which a relay passes on without looking. `sniff`, `dns`
//! and `door` read and answer what workloads and local clients say.

pub mod dns;
pub mod door;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod session;
#[cfg(test)]
mod sim;
pub mod sniff;
pub mod stream;
pub mod wire;
