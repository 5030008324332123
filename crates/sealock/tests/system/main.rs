//! The whole system in one process: controller, relay and agents over real sockets on loopback.

mod audited;
mod bounds;
mod choice;
mod closed;
mod conduit;
mod deployment;
mod door;
mod evil_peer;
mod evil_relay;
mod faults;
mod flows;
mod idle;
mod long;
mod providers;
mod relay_to_relay;
mod resume;
mod returning;
mod secrets;
mod several_relays;
mod taken_back;
mod world;
