//! DESC
pub mod node_api;
