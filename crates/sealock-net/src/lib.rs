//! All wires of Sealock: files and sockets of the operating system, TLS, transports, and the drivers of session and stream.
//!
//! Other crates name no TLS, QUIC or socket library; they use the types here. Deliberately absent: policy and roles.

pub mod admin;
pub mod capture;
pub mod dns;
pub mod e2e;
pub mod fence;
pub mod files;
pub mod identity;
pub mod join;
pub mod limit;
pub mod link;
pub mod message;
pub mod names;
pub mod namespace;
pub mod node_api;
pub mod recover;
pub mod relays;
pub mod session;
pub mod socket;
pub mod stream;
pub mod sys;
pub mod task;
#[cfg(any(test, feature = "test-util"))]
pub mod timing;
pub mod tls;
pub mod transport;
pub mod unix;
pub mod views;
