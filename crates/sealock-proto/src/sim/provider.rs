//! The provider's rules: it takes legs of streams that it knows, from whom they belong to, and parks within bounds.

use sealock_core::reason::Reason;

use super::check::{self, Failure};
use super::defect::Defect;
use super::link::Body;
use super::plan::{Micros, SECOND};
use super::world::{Happening, OPENER, PROVIDER, Place, World};
use crate::stream::{Attach, AttachError, Epoch, Frame, Role};
use crate::wire::{Incoming, Message};

/// How long a leg that was taken may take to say its ATTACH.
const ATTACH_TIMEOUT: Micros = 10 * SECOND;
/// How many streams of others an agent holds.
pub(super) const PLACES: usize = 64;

impl World {
    pub(super) fn offered(&mut self, leg: usize, incoming: &Incoming) -> Result<(), Failure> {
        let verdict = self.verdict_on_offer(leg, incoming);
        let message = match verdict {
            Ok(()) => {
                let end = PROVIDER;
                let at = self.now + ATTACH_TIMEOUT;
                self.schedule(at, Happening::LegTimeout { leg, end });
                let agent = self.legs[leg].provider.unwrap_or_default();
                Message::Opened(self.agent_id(agent).name)
            }
            Err(reason) => {
                self.decided(leg, "provider", Some(reason));
                Message::Refused(reason)
            }
        };
        let refused = matches!(message, Message::Refused(_));
        let message = message.encode();
        self.send_on_leg(leg, PROVIDER, Body::Head { leg, message });
        if refused {
            self.legs[leg].closed[PROVIDER] = true;
        }
        Ok(())
    }

    fn verdict_on_offer(&self, leg: usize, incoming: &Incoming) -> Result<(), Reason> {
        let agent = self.legs[leg].provider.ok_or(Reason::Internal)?;
        let stream = self.stream_of(incoming.stream, agent);
        let stream = stream.ok_or(Reason::PeerLost)?;
        let caller = self.agent_of(&incoming.caller);
        let caller = caller.ok_or(Reason::ProtocolViolation)?;
        let known = self.ends.get(&(stream, PROVIDER));
        let judged_before = known.is_some() && self.has(Defect::PolicyOnce);
        if !judged_before && self.is_denied(agent, (caller, agent)) {
            return Err(Reason::PolicyDenied);
        }
        match known {
            Some(_) if caller != self.truths[stream].agents[OPENER] => Err(Reason::AttachRefused),
            Some(end) if self.legs[leg].epoch <= end.stream.epoch() => {
                Err(Reason::ProtocolViolation)
            }
            Some(_) => Ok(()),
            None if incoming.epoch > Epoch::FIRST => Err(Reason::PeerLost),
            None if self.agents[agent].places >= PLACES => Err(Reason::QuotaExceeded),
            None => Ok(()),
        }
    }

    fn is_denied(&self, agent: usize, pair: (usize, usize)) -> bool {
        self.policy.views[self.plan.relays + agent].contains(&pair)
    }

    /// The first frame of a leg, at the provider.
    pub(super) fn attach_arrives(&mut self, leg: usize, frame: Frame) -> Result<(), Failure> {
        self.legs[leg].attach_heard = true;
        let verdict = if let Frame::Attach(attach) = &frame {
            self.verdict_on_attach(leg, attach)
        } else {
            Err(Reason::ProtocolViolation)
        };
        self.decided(leg, "provider", verdict.err());
        let (Frame::Attach(attach), Ok(())) = (frame, verdict) else {
            let reason = verdict.err();
            self.close_leg(leg, PROVIDER, reason);
            return Ok(());
        };
        self.take_leg(leg, &attach)
    }

    fn verdict_on_attach(&self, leg: usize, attach: &Attach) -> Result<(), Reason> {
        let known = &self.legs[leg];
        let stream = known.stream;
        if attach.epoch != known.epoch {
            return Err(Reason::ProtocolViolation);
        }
        let agent = self.truths[stream].agents[PROVIDER];
        let end = self.ends.get(&(stream, PROVIDER));
        let judged_before = end.is_some() && self.has(Defect::PolicyOnce);
        if !judged_before && self.is_denied(agent, (known.asserted, agent)) {
            return Err(Reason::PolicyDenied);
        }
        let Some(end) = end else {
            let first = attach.epoch == Epoch::FIRST;
            return if first {
                Ok(())
            } else {
                Err(Reason::SessionLost)
            };
        };
        let proof = attach.proof.as_ref();
        let genuine = end.ticket.verify(Role::Opener, attach.epoch, proof);
        if genuine || self.has(Defect::TicketUnchecked) {
            Ok(())
        } else {
            Err(Reason::AttachRefused)
        }
    }

    fn take_leg(&mut self, leg: usize, attach: &Attach) -> Result<(), Failure> {
        let stream = self.legs[leg].stream;
        let place = (stream, PROVIDER);
        let (now, epoch) = (self.clock(), attach.epoch);
        if !self.ends.contains_key(&place) {
            let agent = self.truths[stream].agents[PROVIDER];
            if self.truths[stream].sides[PROVIDER].begun {
                // The first leg of a stream that was here and is gone: too late.
                self.close_leg(leg, PROVIDER, Some(Reason::SessionLost));
                return Ok(());
            }
            self.agents[agent].places += 1;
            let end = self.new_end(place);
            self.begin_end(place, end);
        }
        let Some(end) = self.ends.get_mut(&place) else {
            return Ok(());
        };
        let parked_long = end.parked_at.is_some_and(|at| self.now - at > 2 * SECOND);
        if parked_long && self.defect == Some(Defect::ExpiryTakesLeg) {
            return Ok(());
        }
        let proof = (epoch > Epoch::FIRST).then(|| end.ticket.prove(Role::Accepter, epoch));
        let taken = end.stream.accept_attach(now, attach, proof);
        match taken {
            Ok(()) => {}
            Err(AttachError::Stale | AttachError::Over) => {
                self.close_leg(leg, PROVIDER, Some(Reason::ProtocolViolation));
                return Ok(());
            }
            Err(AttachError::Violation(violation)) => {
                let side = PROVIDER;
                return Err(Failure::Accused {
                    stream,
                    side,
                    violation,
                });
            }
            Err(AttachError::WrongRole) => {
                return Err(check::stuck(self, "the accepter refused its part"));
            }
        }
        let was_parked = end.parked_at.take().is_some();
        let recorded = !(was_parked && self.defect == Some(Defect::LegNotRecorded));
        let old = if recorded {
            end.leg.replace(leg)
        } else {
            end.leg
        };
        check::taken(self, leg)?;
        if let Some(old) = old
            && old != leg
        {
            self.close_leg(old, PROVIDER, None);
        }
        self.pump(place)
    }

    pub(super) fn go_away(&mut self, tenant: usize, pick: usize) -> Result<(), Failure> {
        let live: Vec<Place> = self
            .ends
            .keys()
            .copied()
            .filter(|place| place.1 == PROVIDER && self.plan.streams[place.0].tenant == tenant)
            .collect();
        let Some(&place) = live.get(pick % live.len().max(1)) else {
            return Ok(());
        };
        if let Some(end) = self.ends.get_mut(&place) {
            end.stream.go_away();
        }
        self.pump(place)
    }

    /// A stream has lost its leg: there is room for so many, and not for one more.
    pub(super) fn keep_parked_in_bounds(&mut self, (stream, side): Place) {
        if self.has(Defect::ParkedUnbounded) {
            return;
        }
        let agent = self.truths[stream].agents[side];
        if self.parked_at(agent) > self.plan.parked_limit {
            let now = self.clock();
            if let Some(end) = self.ends.get_mut(&(stream, side)) {
                end.stream.fail(now, Reason::Overloaded);
            }
            self.truths[stream].crowded_out = true;
        }
    }

    /// How many streams of others this agent holds without a leg.
    pub(super) fn parked_at(&self, agent: usize) -> usize {
        self.ends
            .iter()
            .filter(|((stream, side), end)| {
                *side == PROVIDER
                    && self.truths[*stream].agents[PROVIDER] == agent
                    && end.leg.is_none()
                    && !end.stream.is_released()
            })
            .count()
    }

    /// Policy has changed: what it does not allow any more ends, with a leg or without.
    pub(super) fn provider_cuts(
        &mut self,
        agent: usize,
        pair: (usize, usize),
    ) -> Result<(), Failure> {
        if pair.1 != agent {
            return Ok(());
        }
        let now = self.clock();
        for stream in 0..self.truths.len() {
            let agents = self.truths[stream].agents;
            if (agents[OPENER], agents[PROVIDER]) != pair {
                continue;
            }
            let Some(end) = self.ends.get_mut(&(stream, PROVIDER)) else {
                continue;
            };
            if end.leg.is_none() && self.defect == Some(Defect::PolicyOnce) {
                continue;
            }
            if end.leg.is_some() {
                end.stream.reset(now, Reason::PolicyRevoked);
            } else {
                end.stream.fail(now, Reason::PolicyRevoked);
            }
            self.pump((stream, PROVIDER))?;
        }
        Ok(())
    }
}
