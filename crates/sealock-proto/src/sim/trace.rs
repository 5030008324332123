//! What each tenant sees of a run, as one number: what happens to its agents, when, and what they hear.
//!
//! Two runs of one seed that differ anywhere differ here. So do two runs of which one has another tenant beside this
//! one, when a relay lets something of it through: K10. Nothing in here may count what tenants share, such as the
//! place of a session in the world's list.

use super::link::{Body, Packet};
use super::rng::mix;
use super::world::{Happening, OPENER, World};

/// So much of the bytes of a leg is looked at here; K1 compares them all.
const LOOKED_AT: usize = 16;

impl World {
    /// Adds one happening to the trace of its tenant, until all streams of that one have ended.
    pub(super) fn note(&mut self, happening: Happening) {
        let Some((tenant, kind, what)) = self.seen(happening) else {
            return;
        };
        if self.has_ended(tenant) {
            return;
        }
        let mut trace = mix(self.traces[tenant] ^ self.now) ^ (kind << 56) ^ what;
        for (stream, truth) in self.truths.iter().enumerate() {
            if self.plan.streams[stream].tenant == tenant {
                for side in &truth.sides {
                    trace = mix(trace ^ side.read ^ (side.wrote << 32));
                }
            }
        }
        self.traces[tenant] = trace;
    }

    // Whose happening it is, its kind, and what else the tenant can tell of it. All see a relay's faults by what
    // follows from them.
    fn seen(&self, happening: Happening) -> Option<(usize, u64, u64)> {
        let of_agent = |agent: usize| self.plan.tenant_of(agent);
        let of_stream = |stream: usize| self.plan.streams[stream].tenant;
        let session_of = |session: usize| {
            let session = &self.sessions[session];
            (session.agent, (session.agent * 16 + session.relay) as u64)
        };
        Some(match happening {
            Happening::Packet { packet } => {
                let Packet { session, up, body } = self.packets.get(&packet)?;
                let (agent, session) = session_of(*session);
                let what = mix(session ^ u64::from(*up)) ^ looked_at(body);
                (of_agent(agent), 1, what & (u64::MAX >> 8))
            }
            Happening::Silence { link, .. } => (of_agent(link / self.plan.relays), 2, link as u64),
            Happening::SessionDial { agent, relay, .. } => {
                (of_agent(agent), 3, (agent * 16 + relay) as u64)
            }
            Happening::SessionUp { session } => {
                let (agent, what) = session_of(session);
                (of_agent(agent), 4, what)
            }
            Happening::SessionLost { session, end } => {
                let (agent, what) = session_of(session);
                (of_agent(agent), 5, 2 * what + end as u64)
            }
            Happening::StreamStart { stream } => (of_stream(stream), 6, stream as u64),
            Happening::LegDial { stream, .. } => (of_stream(stream), 7, stream as u64),
            Happening::LegTimeout { leg, end } => {
                let agent = self.legs[leg].agent_at(end)?;
                (of_agent(agent), 8, (2 * self.legs[leg].stream + end) as u64)
            }
            Happening::Write { place, .. } => (of_stream(place.0), 9, flat(place)),
            Happening::Read { place, .. } => (of_stream(place.0), 10, flat(place)),
            Happening::Reset { place, .. } => (of_stream(place.0), 11, flat(place)),
            Happening::Timer { place, .. } => (of_stream(place.0), 12, flat(place)),
            Happening::Fault { index } | Happening::Healed { index } => {
                let planned = self.plan.faults[index];
                if planned.fault.is_of_relay() {
                    return None;
                }
                (planned.tenant, 13, index as u64)
            }
            Happening::View { node, .. } => {
                let agent = node.checked_sub(self.plan.relays)?;
                (of_agent(agent), 14, node as u64)
            }
            Happening::Resume { agent } => (of_agent(agent), 16, agent as u64),
            Happening::Heal => return None,
        })
    }
}

fn flat((stream, side): (usize, usize)) -> u64 {
    (2 * stream + usize::from(side != OPENER)) as u64
}

fn looked_at(body: &Body) -> u64 {
    let (kind, bytes, more) = match body {
        Body::Control(bytes) => (1, bytes.as_ref(), 0),
        Body::Bye => (2, [].as_slice(), 0),
        Body::Head { message, .. } => (3, message.as_ref(), 0),
        Body::Data { bytes, from, .. } => (
            4,
            &bytes[..bytes.len().min(LOOKED_AT)],
            from + 2 * bytes.len(),
        ),
        Body::End { reason, .. } => (
            5,
            [].as_slice(),
            reason.map_or(0, |reason| 1 + reason.number() as usize),
        ),
    };
    let start = mix(kind ^ ((more as u64) << 8));
    bytes
        .iter()
        .fold(start, |sum, &byte| mix(sum ^ u64::from(byte)))
}
