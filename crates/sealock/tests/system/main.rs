//! The whole system in one process: controller, relay and agents over real sockets on loopback.

mod deployment;
mod flows;
