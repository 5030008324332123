//! The opener's rules: it dials legs, backs off, and knows which refusals end a stream and which only a leg.

use bytes::Bytes;
use sealock_core::reason::Reason;

use super::check::Failure;
use super::defect::Defect;
use super::link::{Body, Leg};
use super::plan::{Micros, SECOND};
use super::world::{Happening, OPENER, PROVIDER, World, small};
use crate::stream::{Decoder, Epoch, Role};
use crate::wire::{Message, Open};

/// How long a leg may take to be answered.
const LEG_TIMEOUT: Micros = 10 * SECOND;
/// The pause before the second try for a leg, and the longest one; the first try is at once.
pub(super) const BACK_OFF: [Micros; 2] = [SECOND / 10, 5 * SECOND];
/// No stream dials more often than this in a minute, whatever happens to its legs.
pub(super) const DIALS_A_MINUTE: usize = 60;

impl World {
    pub(super) fn start_stream(&mut self, stream: usize) -> Result<(), Failure> {
        self.stats.streams += 1;
        let agent = self.truths[stream].agents[OPENER];
        let place = (stream, OPENER);
        let end = self.new_end(place);
        self.begin_end(place, end);
        if self.usable_sessions(agent).is_empty() {
            // An application that asks while there is no relay is told so.
            return self.end_opener(stream, Reason::RelayUnreachable);
        }
        self.dial_when_parked(stream);
        Ok(())
    }

    fn end_opener(&mut self, stream: usize, reason: Reason) -> Result<(), Failure> {
        let now = self.clock();
        if let Some(end) = self.ends.get_mut(&(stream, OPENER)) {
            end.stream.fail(now, reason);
        }
        self.pump((stream, OPENER))
    }

    /// Plans the next leg of a stream that has none.
    pub(super) fn dial_when_parked(&mut self, stream: usize) {
        let agent = self.truths[stream].agents[OPENER];
        let process = self.agents[agent].process;
        let at = self.now + self.back_off(stream);
        let Some(end) = self.ends.get_mut(&(stream, OPENER)) else {
            return;
        };
        if end.leg.is_some() || end.stream.is_released() || end.dial_at.is_some() {
            return;
        }
        end.dial_at = Some(at);
        self.schedule(at, Happening::LegDial { stream, process });
    }

    fn back_off(&mut self, stream: usize) -> Micros {
        let agent = self.truths[stream].agents[OPENER];
        let attempts = self
            .ends
            .get(&(stream, OPENER))
            .map_or(0, |end| end.attempts);
        if attempts == 0 || self.has(Defect::NoBackOff) {
            return 0;
        }
        let [first, most] = BACK_OFF;
        let pause = (first << (attempts - 1).min(10)).min(most);
        pause / 2 + self.rng(agent).upto(pause / 2)
    }

    pub(super) fn dial_leg(&mut self, stream: usize, process: u32) -> Result<(), Failure> {
        let agent = self.truths[stream].agents[OPENER];
        if process != self.agents[agent].process {
            return Ok(());
        }
        if self.has(Defect::OneAfterAnother) && self.waits_for_another(stream) {
            let at = self.now + SECOND / 10;
            if let Some(end) = self.ends.get_mut(&(stream, OPENER)) {
                end.dial_at = Some(at);
                self.schedule(at, Happening::LegDial { stream, process });
            }
            return Ok(());
        }
        let usable = self.usable_sessions(agent);
        let Some(end) = self.ends.get_mut(&(stream, OPENER)) else {
            return Ok(());
        };
        end.dial_at = None;
        if end.stream.is_released() || usable.is_empty() {
            // The next session brings all parked streams back.
            return Ok(());
        }
        let attempts = small(end.attempts.into());
        let session = usable[attempts % usable.len()];
        self.open_leg(stream, session)
    }

    fn waits_for_another(&self, stream: usize) -> bool {
        let agent = self.truths[stream].agents[OPENER];
        self.ends.iter().any(|(&(other, side), end)| {
            side == OPENER
                && other != stream
                && self.truths[other].agents[OPENER] == agent
                && end.leg.is_some()
                && !end.stream.is_attached()
        })
    }

    fn open_leg(&mut self, stream: usize, session: usize) -> Result<(), Failure> {
        let now = self.clock();
        let place = (stream, OPENER);
        let Some(end) = self.ends.get_mut(&place) else {
            return Ok(());
        };
        let proof = match end.stream.next_epoch() {
            Some(epoch) if epoch > Epoch::FIRST => Some(end.ticket.prove(Role::Opener, epoch)),
            _ => None,
        };
        let Ok(epoch) = end.stream.attach(now, proof) else {
            return Ok(());
        };
        end.attempts += 1;
        end.dialled.push_back(self.now);
        let leg = self.legs.len();
        if let Some(older) = end.old_leg.take() {
            self.legs[older].closed[OPENER] = true;
        }
        let Some(end) = self.ends.get_mut(&place) else {
            return Ok(());
        };
        end.old_leg = end.leg.replace(leg);
        let caller = self.truths[stream].agents[OPENER];
        self.legs.push(self.new_leg(stream, epoch, caller, session));
        self.send_open(leg);
        self.schedule(
            self.now + LEG_TIMEOUT,
            Happening::LegTimeout { leg, end: OPENER },
        );
        self.pump(place)
    }

    pub(super) fn new_leg(
        &self,
        stream: usize,
        epoch: Epoch,
        caller: usize,
        session: usize,
    ) -> Leg {
        Leg {
            stream,
            epoch,
            caller,
            asserted: caller,
            provider: None,
            relay: self.sessions[session].relay,
            sessions: [Some(session), None],
            closed: [false; 2],
            relay_closed: false,
            certified: false,
            stolen: 0,
            attach_heard: false,
            decoders: [Decoder::new(), Decoder::new()],
            in_flight: [0; 2],
        }
    }

    pub(super) fn send_open(&mut self, leg: usize) {
        let (stream, epoch) = (self.legs[leg].stream, self.legs[leg].epoch);
        let provider = self.truths[stream].agents[PROVIDER];
        let open = Message::Open(Open {
            stream: self.truths[stream].id,
            epoch,
            service: self.service_of(provider),
            // A later leg goes to the one who holds the other end, and to nobody else.
            provider: (epoch > Epoch::FIRST).then(|| self.agent_id(provider).name),
            conduit: None,
        });
        let message: Bytes = open.encode();
        self.send_on_leg(leg, OPENER, Body::Head { leg, message });
    }

    pub(super) fn opened(&mut self, leg: usize) -> Result<(), Failure> {
        // A thief says what it has prepared; an opener has said it early.
        if self.plan.is_thief(self.legs[leg].caller) {
            return self.thief_goes_on(leg);
        }
        Ok(())
    }

    pub(super) fn refused(&mut self, leg: usize, reason: Reason) -> Result<(), Failure> {
        if self.plan.is_thief(self.legs[leg].caller) {
            self.legs[leg].closed[OPENER] = true;
            return Ok(());
        }
        let stream = self.legs[leg].stream;
        let Some(end) = self.ends.get(&(stream, OPENER)) else {
            return Ok(());
        };
        let (current, first) = (end.leg == Some(leg), !self.truths[stream].attached);
        let denied = matches!(reason, Reason::PolicyDenied | Reason::PolicyRevoked);
        // The provider itself does not know the stream, or policy forbids it: no other leg will do better. And what
        // never began has no window to wait for.
        let last = first || denied || reason == Reason::PeerLost;
        if current && last {
            let as_done = reason == Reason::PeerLost && self.has(Defect::LostAsDone);
            let reason = if denied && !first {
                Reason::PolicyRevoked
            } else if as_done {
                Reason::Done
            } else {
                reason
            };
            return self.end_opener(stream, reason);
        }
        self.leg_lost(leg, OPENER, None)
    }

    /// The provider's end of the leg will go away: another one takes its place while it still carries.
    pub(super) fn leg_wanted(&mut self, stream: usize) -> Result<(), Failure> {
        let agent = self.truths[stream].agents[OPENER];
        match self.usable_sessions(agent).last() {
            Some(&session) => self.open_leg(stream, session),
            None => Ok(()),
        }
    }

    pub(super) fn move_leg(&mut self, tenant: usize, pick: usize) -> Result<(), Failure> {
        let live: Vec<usize> = self
            .ends
            .iter()
            .filter(|((_, side), end)| *side == OPENER && end.leg.is_some())
            .filter(|((stream, _), _)| self.plan.streams[*stream].tenant == tenant)
            .map(|((stream, _), _)| *stream)
            .collect();
        let Some(&stream) = live.get(pick % live.len().max(1)) else {
            return Ok(());
        };
        let agent = self.truths[stream].agents[OPENER];
        let usable = self.usable_sessions(agent);
        let waits = self.agents[agent].paused_until > 0;
        match usable.get(pick % usable.len().max(1)) {
            Some(&session) if !waits => self.open_leg(stream, session),
            _ => Ok(()),
        }
    }
}
