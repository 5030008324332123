//! Configuration: what the user wrote, what it means, where it came from.

pub(crate) mod document;

pub use self::document::{FileError, Problem, Tombstone};
