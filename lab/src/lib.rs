//! The laboratory: networks of namespaces in which the real `sealock` program meets real clients and real faults.
//!
//! A test describes a network ([`Topology`]), starts programs in it ([`Node`]), disturbs it ([`faults`], [`wire`]) and judges
//! what arrived ([`pattern`], [`traffic`]) and what was left behind ([`evidence`], [`capture`]). Everything is
//! named `sl-<pid>-…`, belongs to a guard, and is gone when the guard is. [`scene`] wraps a whole test: when it
//! fails, it says where the logs are and how to enter each namespace.
//!
//! Deliberately absent: skipping. A machine that cannot make namespaces fails the test with the reason.

pub mod binary;
pub mod capture;
pub mod deployment;
pub mod evidence;
pub mod faults;
pub mod namespace;
pub mod node;
pub mod pattern;
pub mod servers;
pub mod topology;
pub mod traffic;
pub mod wait;
pub mod wire;

pub use deployment::{Begin, Deployment, Machine};
pub use namespace::Namespace;
pub use node::{Node, Spec, say};
pub use topology::{Bridge, Family, Lab6, Nat, Topology, scene};
