//! The controller: who is who, who provides what, who may do what, and the record of it.
//!
//! Nodes come over gRPC ([`node`]), administrators over a private socket ([`admin`]); both act on one [`store`], whose
//! changes reach the nodes as signed [`views`]. Deliberately absent: traffic. No flow passes here, and an open asks nobody.

pub mod admin;
pub mod controller;
pub mod meter;
pub mod node;
pub mod pki;
pub mod store;
pub mod views;
