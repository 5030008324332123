//! Each boundary against each role.
