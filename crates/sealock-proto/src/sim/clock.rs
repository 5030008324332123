//! Wall clocks that are wrong and certificates that end: what a relay judges by, and what must not depend on it.
//!
//! The machines know no wall clock, and nothing that runs may stop or wait because of one. What reads it is the relay,
//! when an agent comes with a certificate and when a session of that certificate opens a leg.

use std::time::Duration;

use super::check::Failure;
use super::defect::Defect;
use super::link::{AGENT, RELAY};
use super::plan::{Micros, Node};
use super::world::{Happening, OPENER, Place, World};

// Renewed at its half: at any moment as much is left, or more.
const CERTIFICATE_LEFT: i64 = 30 * 60 * 1_000_000;
/// How far two clocks may differ before a certificate is believed to be from the future.
const SKEW: i64 = 5 * 60 * 1_000_000;

/// When a certificate begins and ends, by a true clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Certificate {
    from: i64,
    until: i64,
}

impl Certificate {
    pub(super) fn issued(now: Micros) -> Self {
        let from = signed(now);
        Self {
            from,
            until: from + CERTIFICATE_LEFT,
        }
    }
}

fn signed(at: Micros) -> i64 {
    i64::try_from(at).expect("virtual time is short")
}

impl World {
    /// A clock is so far off from here on.
    pub(super) fn step_clock(&mut self, node: Node, by: i64) -> Result<(), Failure> {
        match node {
            Node::Relay(relay) => {
                self.relays[relay].wall = by;
                Ok(())
            }
            Node::Agent(agent) if self.has(Defect::TimersByWall) => self.jump(agent, by),
            // Nothing that an agent does with a stream asks what time of day it is.
            Node::Agent(_) => Ok(()),
        }
    }

    fn jump(&mut self, agent: usize, by: i64) -> Result<(), Failure> {
        let then = self.clock() + Duration::from_micros(u64::try_from(by).unwrap_or(0));
        for place in self.ends.keys().copied().collect::<Vec<Place>>() {
            if self.truths[place.0].agents[place.1] == agent
                && let Some(end) = self.ends.get_mut(&place)
            {
                end.stream.handle_timeout(then);
                self.pump(place)?;
            }
        }
        Ok(())
    }

    /// Whether a relay takes a certificate at its door, by its own clock.
    pub(super) fn admits(&self, relay: usize, certificate: Certificate) -> bool {
        let wall = self.wall_of(relay);
        certificate.from - SKEW <= wall && wall < certificate.until
    }

    /// Whether the certificate behind a leg's session has not ended, by the relay's clock.
    pub(super) fn is_certified(&self, leg: usize) -> bool {
        let known = &self.legs[leg];
        let behind = known.sessions[OPENER].map(|session| self.sessions[session].certificate);
        behind.is_some_and(|certificate| self.wall_of(known.relay) < certificate.until)
    }

    fn wall_of(&self, relay: usize) -> i64 {
        signed(self.now) + self.relays[relay].wall
    }

    /// Nobody renews the agent's certificate, and it ends.
    pub(super) fn end_certificate(&mut self, agent: usize) {
        let until = signed(self.now);
        self.agents[agent].certificate.until = until;
        for session in &mut self.sessions {
            if session.agent == agent {
                session.certificate.until = session.certificate.until.min(until);
            }
        }
    }

    /// A new certificate wants sessions of its own, and those of the old one go.
    pub(super) fn renew_certificate(&mut self, agent: usize) -> Result<(), Failure> {
        self.agents[agent].certificate = Certificate::issued(self.now);
        let sessions = self.agents[agent].sessions.clone();
        let paused = self.agents[agent].paused_until > 0;
        for session in sessions.into_iter().flatten() {
            if !paused {
                self.give_up_session(session, AGENT)?;
                continue;
            }
            for (end, at) in [(AGENT, self.now), (RELAY, self.now + self.plan.detect)] {
                self.schedule(at, Happening::SessionLost { session, end });
            }
        }
        Ok(())
    }
}
