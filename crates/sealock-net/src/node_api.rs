//! The node interface: what agents and relays ask of the controller, as a typed client and the generated server.
//!
//! `proto` is the generated code and stops here and in the controller's handlers: everybody else uses [`NodeClient`]
//! and the domain types. Deliberately absent: TLS and dialling. The caller gives a connector, because an agent reaches
//! the controller through a relay and a relay reaches it directly.

#[allow(
    missing_docs,
    unreachable_pub,
    unnameable_types,
    unused_qualifications,
    clippy::allow_attributes_without_reason,
    clippy::use_self,
    clippy::or_fun_call,
    clippy::wildcard_enum_match_arm,
    clippy::too_many_lines,
    reason = "generated"
)]
pub mod proto {
    tonic::include_proto!("sealock.node.v1");
}
