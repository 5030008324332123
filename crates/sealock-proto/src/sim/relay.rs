//! The relay's rules: it greets, judges each leg, joins two ends blindly, and keeps nothing of a stream.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use sealock_core::name::ServiceName;
use sealock_core::reason::Reason;

use super::check::Failure;
use super::defect::Defect;
use super::link::{AGENT, Body, RELAY, Session, decode};
use super::plan::SECOND;
use super::world::{Happening, OPENER, PROVIDER, World};
use crate::session::RelayEvent;
use crate::stream::Epoch;
use crate::wire::{Incoming, Message, Open, Services, Welcome};

#[derive(Debug)]
pub(super) struct Relay {
    pub(super) is_up: bool,
    /// How far its wall clock is off.
    pub(super) wall: i64,
    pub(super) sessions: BTreeSet<usize>,
    /// Each agent's newest session.
    pub(super) by_agent: BTreeMap<usize, usize>,
}

impl Default for Relay {
    fn default() -> Self {
        Self {
            is_up: true,
            wall: 0,
            sessions: BTreeSet::new(),
            by_agent: BTreeMap::new(),
        }
    }
}

impl World {
    pub(super) fn relay_hears(&mut self, session: usize, body: Body) -> Result<(), Failure> {
        match body {
            Body::Control(bytes) => self.relay_control(session, &bytes),
            Body::Head { leg, message } => self.relay_head(session, leg, &message),
            Body::Data { leg, from, bytes } => {
                if self.legs[leg].relay_closed {
                    return Ok(());
                }
                if let Some(far) = self.legs[leg].sessions[1 - from] {
                    self.send(far, false, Body::Data { leg, from, bytes });
                }
                Ok(())
            }
            Body::End { leg, reason } => {
                if std::mem::replace(&mut self.legs[leg].relay_closed, true) {
                    return Ok(());
                }
                let from = self.side_of(leg, session);
                if let Some(far) = self.legs[leg].sessions[1 - from] {
                    self.send(far, false, Body::End { leg, reason });
                }
                Ok(())
            }
            Body::Bye => Ok(()),
        }
    }

    // An agent counts its own sessions alone: a count over all of them would tell it what the others do.
    fn number_of(&self, session: usize) -> u64 {
        let agent = self.sessions[session].agent;
        let counted = |other: &&Session| self.has(Defect::NumbersShared) || other.agent == agent;
        self.sessions[..session].iter().filter(counted).count() as u64
    }

    /// Which end of a leg this session is.
    pub(super) fn side_of(&self, leg: usize, session: usize) -> usize {
        if self.legs[leg].sessions[OPENER] == Some(session) {
            OPENER
        } else {
            PROVIDER
        }
    }

    fn relay_control(&mut self, session: usize, bytes: &Bytes) -> Result<(), Failure> {
        let (agent, relay) = (self.sessions[session].agent, self.sessions[session].relay);
        let Some(message) = decode(bytes) else {
            return Err(Failure::NoMessage);
        };
        let event = self.sessions[session].relay_side.handle_message(message);
        match event.map_err(|_| Failure::NoMessage)? {
            RelayEvent::Greeted(_) => {
                let welcome = Message::Welcome(Welcome {
                    session: self.number_of(session),
                });
                self.send(session, false, Body::Control(welcome.encode()));
                // The newest session of an agent is the agent; the older one is told so.
                if let Some(old) = self.relays[relay].by_agent.insert(agent, session) {
                    self.give_up_session(old, RELAY)?;
                }
                Ok(())
            }
            RelayEvent::OffersChanged { sequence, .. } => {
                let names = Vec::new();
                let answer = Message::Registered(Services { sequence, names });
                self.send(session, false, Body::Control(answer.encode()));
                Ok(())
            }
            RelayEvent::Draining | RelayEvent::Left(_) => Ok(()),
        }
    }

    fn relay_head(&mut self, session: usize, leg: usize, bytes: &Bytes) -> Result<(), Failure> {
        let message = decode(bytes).ok_or(Failure::NoMessage)?;
        match message {
            Message::Open(open) => {
                self.judge_open(leg, &open);
                Ok(())
            }
            Message::Opened(_) | Message::Refused(_) => {
                let from = self.side_of(leg, session);
                if self.legs[leg].relay_closed {
                    return Ok(());
                }
                if matches!(message, Message::Refused(_)) {
                    self.legs[leg].relay_closed = true;
                }
                if let Some(far) = self.legs[leg].sessions[1 - from] {
                    let message = bytes.clone();
                    self.send(far, false, Body::Head { leg, message });
                }
                Ok(())
            }
            Message::Hello(_)
            | Message::Welcome(_)
            | Message::Register(_)
            | Message::Withdraw(_)
            | Message::Registered(_)
            | Message::Drain(_)
            | Message::Bye(_)
            | Message::Incoming(_)
            | Message::Peer
            | Message::Presence(_)
            | Message::Forward(_)
            | Message::Controller
            | Message::Join(_)
            | Message::Joined(_) => Err(Failure::NoMessage),
        }
    }

    // Each leg is judged anew, and each judgement is one line of the audit.
    fn judge_open(&mut self, leg: usize, open: &Open) {
        self.legs[leg].certified = self.is_certified(leg);
        let verdict = self.verdict_on_open(leg, &open.service);
        self.decided(leg, "relay", verdict.err());
        let session = match verdict {
            Ok(session) => session,
            Err(reason) => {
                self.legs[leg].relay_closed = true;
                if let Some(near) = self.legs[leg].sessions[OPENER] {
                    // A relay's own word about a provider is not the provider's: the leg is reset, not refused.
                    let refused = Message::Refused(reason).encode();
                    self.send(
                        near,
                        false,
                        Body::Head {
                            leg,
                            message: refused,
                        },
                    );
                }
                return;
            }
        };
        self.legs[leg].sessions[PROVIDER] = Some(session);
        self.legs[leg].provider = Some(self.sessions[session].agent);
        let incoming = Message::Incoming(Incoming {
            stream: open.stream,
            epoch: open.epoch,
            service: open.service.clone(),
            caller: self.agent_id(self.legs[leg].asserted),
            conduit: None,
        });
        let message = incoming.encode();
        self.send(session, false, Body::Head { leg, message });
    }

    fn verdict_on_open(&self, leg: usize, service: &ServiceName) -> Result<usize, Reason> {
        let relay = self.legs[leg].relay;
        let tenant = self.tenant_of(self.legs[leg].asserted);
        let everybody = self.plan.tenants.iter().flat_map(|tenant| tenant.agents());
        let mut candidates: Box<dyn Iterator<Item = usize>> = if self.has(Defect::TenantsMixed) {
            Box::new(everybody)
        } else {
            Box::new(tenant.agents())
        };
        let provider = candidates.find(|&agent| self.service_of(agent) == *service);
        let provider = provider.ok_or(Reason::NoProvider)?;
        if !self.legs[leg].certified && !self.has(Defect::CertificateUnchecked) {
            return Err(Reason::NotAdmitted);
        }
        let pair = (self.legs[leg].asserted, provider);
        let judged_before = self.legs[leg].epoch > Epoch::FIRST && self.has(Defect::PolicyOnce);
        if !judged_before && self.policy.views[relay].contains(&pair) {
            return Err(Reason::PolicyDenied);
        }
        let session = self.relays[relay].by_agent.get(&provider);
        let session = *session.ok_or(Reason::NoProvider)?;
        let offers = self.sessions[session].relay_side.offers();
        if offers.contains(service) {
            Ok(session)
        } else {
            Err(Reason::NoProvider)
        }
    }

    /// One decision of an enforcer, and its line in the audit.
    pub(super) fn decided(&mut self, leg: usize, by: &'static str, refused: Option<Reason>) {
        *self.decisions.entry((leg, by)).or_default() += 1;
        if refused.is_some() {
            self.stats.refusals += 1;
            if self.has(Defect::RefusalUnaudited) {
                return;
            }
        }
        *self.audit.entry((leg, by)).or_default() += 1;
    }

    pub(super) fn relay_ends_leg(&mut self, leg: usize, reason: Reason) {
        if std::mem::replace(&mut self.legs[leg].relay_closed, true) {
            return;
        }
        for session in self.legs[leg].sessions.into_iter().flatten() {
            if self.sessions[session].alive[RELAY] {
                let reason = Some(reason);
                self.send(session, false, Body::End { leg, reason });
            }
        }
    }

    pub(super) fn relay_loses(&mut self, relay: usize, session: usize) -> Result<(), Failure> {
        let agent = self.sessions[session].agent;
        self.relays[relay].sessions.remove(&session);
        // An old session takes away only what is its own.
        let own = self.relays[relay].by_agent.get(&agent) == Some(&session);
        if own || self.has(Defect::FreshSessionRemoved) {
            self.relays[relay].by_agent.remove(&agent);
        }
        for leg in 0..self.legs.len() {
            if self.legs[leg].sessions.contains(&Some(session)) {
                self.relay_ends_leg(leg, Reason::SessionLost);
            }
        }
        Ok(())
    }

    pub(super) fn relay_cuts(&mut self, relay: usize, pair: (usize, usize)) -> Result<(), Failure> {
        for leg in 0..self.legs.len() {
            let known = &self.legs[leg];
            let joined = known.relay == relay && known.provider == Some(pair.1);
            if joined && known.asserted == pair.0 {
                self.relay_ends_leg(leg, Reason::PolicyRevoked);
            }
        }
        Ok(())
    }

    pub(super) fn crash_relay(&mut self, relay: usize, persisted: bool) -> Result<(), Failure> {
        self.relays[relay].is_up = false;
        self.relays[relay].by_agent.clear();
        for session in std::mem::take(&mut self.relays[relay].sessions) {
            self.sessions[session].alive[RELAY] = false;
            let agent = self.sessions[session].agent;
            // Without the keys nobody tells the agents; with them the new process does, when it is there.
            if !persisted || self.rng(agent).chance(50) {
                let at = self.now + self.plan.detect;
                self.schedule(
                    at,
                    Happening::SessionLost {
                        session,
                        end: AGENT,
                    },
                );
            }
        }
        for leg in &mut self.legs {
            leg.relay_closed |= leg.relay == relay;
        }
        Ok(())
    }

    pub(super) fn restart_relay(&mut self, relay: usize, persisted: bool) {
        self.relays[relay].is_up = true;
        if !persisted {
            return;
        }
        for session in 0..self.sessions.len() {
            let known = &self.sessions[session];
            if known.relay == relay && known.alive == [true, false] {
                let (agent, most) = (known.agent, 2 * self.plan.delay);
                // The next keep-alive is answered by a stateless reset.
                let at = self.now + SECOND / 4 + self.rng(agent).upto(most);
                self.schedule(
                    at,
                    Happening::SessionLost {
                        session,
                        end: AGENT,
                    },
                );
            }
        }
    }
}
