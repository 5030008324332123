//! Where flows come in. An inlet makes [`crate::arrival::Arrival`]s; it never learns what becomes of them.

pub mod captured;
pub mod door;
pub mod port;
pub mod session;
pub mod stdio;
