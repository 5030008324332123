//! The pipe: `arrival → named → ruled → opened → carried`, the same four calls at every hop.
//!
//! A flow comes in at an inlet, leaves by an outlet, and is in between judged, watched and counted. Each stage consumes
//! the one before, so their order cannot be broken. Inlets know no outlets, outlets know no inlets, and neither knows
//! which role it serves: agent, relay and gateway differ only in the [`hop::Hop`] that they build.

pub mod arrival;
pub mod audit;
pub mod carry;
pub mod hop;
pub mod inlet;
pub mod io;
pub mod live;
pub mod meter;
pub mod name;
pub mod outlet;
pub mod rule;
pub mod rules;
