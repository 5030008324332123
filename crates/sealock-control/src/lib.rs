//! The controller: who is who, who provides what, who may do what, and the record of it.

pub mod pki;
pub mod store;
