//! All wires of Sealock: files and sockets of the operating system, TLS, transports, and the drivers of session and stream.
//!
//! Other crates name no TLS, QUIC or socket library; they use the types here. Deliberately absent: policy and roles.

pub mod files;
pub mod identity;
pub mod node_api;
pub mod sys;
pub mod task;
pub mod tls;
pub mod transport;
pub mod unix;
