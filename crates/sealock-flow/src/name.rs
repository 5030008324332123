//! The second stage: what the flow is called. It never fails; «unknown» is a name too.
//!
//! A flow of this version is always for a service that the opener named, so naming only fixes which facts go on to be
//! judged. Sniffed names and names from our DNS join here with their own sources.

use sealock_core::fact::Facts;

use crate::arrival::{Arrival, InletKind, LegHead, Near};

/// A flow whose name is settled.
#[derive(Debug)]
pub struct Named {
    /// Where it came in.
    pub inlet: InletKind,
    /// What is known of it; from here on it does not change.
    pub facts: Facts,
    /// Which leg of which stream it is.
    pub leg: Option<LegHead>,
    /// Who waits for an answer.
    pub near: Near,
}

/// Settles the name of a flow.
#[must_use]
pub fn settle(arrival: Arrival) -> Named {
    let Arrival {
        inlet,
        facts,
        leg,
        near,
    } = arrival;
    Named {
        inlet,
        facts,
        leg,
        near,
    }
}
