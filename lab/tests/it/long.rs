//! Scenes that take longer than a change should wait for: `make lab` runs them, `make test` does not.

mod certificates;
mod detection;
mod families;
mod fleet;
mod idle;
mod ladder;
mod links;
mod names;
mod resources;
mod rolling;
mod strangers;
mod survival;
mod transfers;
mod two_relays;
mod ways;
