//! The program's own standard input and output as one flow, for `ProxyCommand` and the like.

use sealock_core::fact::Facts;

use crate::arrival::{Arrival, InletKind, Near};

/// The one flow of this program.
#[must_use]
pub fn arrival(facts: Facts) -> Arrival {
    Arrival {
        inlet: InletKind::Stdio,
        facts,
        leg: None,
        near: Near::Stdio,
    }
}
