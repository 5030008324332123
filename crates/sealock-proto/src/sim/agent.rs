//! What every agent does, whichever end of a stream it holds: its sessions, its applications, its frames.

use std::collections::VecDeque;

use bytes::Bytes;
use sealock_core::name::ServiceName;
use sealock_core::reason::Reason;
use sealock_core::secret::Secret;

use super::check::{self, Failure};
use super::clock::Certificate;
use super::defect::Defect;
use super::link::{AGENT, Body, RELAY, decode};
use super::plan::Micros;
use super::rng::mix;
use super::world::{Happening, OPENER, PROVIDER, Place, World, small};
use crate::session::AgentEvent;
use crate::stream::{Encoded, Epoch, Event, Frame, Read, Role, Stream, Ticket, TicketContext};
use crate::wire::{Hello, Message, PROTOCOL_VERSION, SessionKind};

#[derive(Debug)]
pub(super) struct Agent {
    /// Which process of this agent it is.
    pub(super) process: u32,
    pub(super) paused_until: Micros,
    pub(super) resumed_at: Micros,
    /// What came meanwhile, in its order.
    pub(super) deferred: VecDeque<Happening>,
    pub(super) sessions: Vec<Option<usize>>,
    pub(super) dialing: Vec<bool>,
    pub(super) dials: Vec<u32>,
    pub(super) certificate: Certificate,
    /// How many places for streams of others are taken.
    pub(super) places: usize,
}

impl Agent {
    pub(super) fn new(relays: usize) -> Self {
        Self {
            process: 0,
            paused_until: 0,
            resumed_at: 0,
            deferred: VecDeque::new(),
            sessions: vec![None; relays],
            dialing: vec![true; relays],
            dials: vec![0; relays],
            certificate: Certificate::issued(0),
            places: 0,
        }
    }
}

/// One end of a stream at an agent.
#[derive(Debug)]
pub(super) struct End {
    pub(super) stream: Stream,
    pub(super) ticket: Ticket,
    pub(super) leg: Option<usize>,
    /// A leg that the newest one takes the place of; it may still deliver.
    pub(super) old_leg: Option<usize>,
    /// Dials since a leg last carried.
    pub(super) attempts: u32,
    pub(super) dial_at: Option<Micros>,
    pub(super) dialled: VecDeque<Micros>,
    pub(super) parked_at: Option<Micros>,
    timer: Option<Micros>,
    reading: bool,
    writing: bool,
}

impl End {
    pub(super) fn received(&self) -> u64 {
        self.stream.progress_report().received
    }
}

impl World {
    /// What an agent offers; the services of two tenants have the same names.
    pub(super) fn service_of(&self, agent: usize) -> ServiceName {
        let name = self.agent_id(agent).name;
        format!("svc-of-{name}").parse().expect("a name")
    }

    pub(super) fn new_end(&mut self, (stream, side): Place) -> End {
        let truth = &self.truths[stream];
        let (role, now) = match side {
            OPENER => (Role::Opener, self.clock()),
            _ => (Role::Accepter, self.clock()),
        };
        // Exported from the stream's end-to-end TLS: nobody but its two ends has it.
        let mut secret = [0; 32];
        secret[..8].copy_from_slice(&mix(stream as u64 ^ 0x7ea1).to_be_bytes());
        let context = TicketContext {
            stream: truth.id.0,
            opener: self.agent_id(truth.agents[OPENER]),
            accepter: self.agent_id(truth.agents[PROVIDER]),
        };
        End {
            stream: Stream::new(now, role, self.plan.streams[stream].config[side]),
            ticket: Ticket::new(Secret::new(secret), context),
            leg: None,
            old_leg: None,
            attempts: 0,
            dial_at: None,
            dialled: VecDeque::new(),
            parked_at: None,
            timer: None,
            reading: false,
            writing: false,
        }
    }

    pub(super) fn process_of(&self, (stream, side): Place) -> u32 {
        self.agents[self.truths[stream].agents[side]].process
    }

    pub(super) fn begin_end(&mut self, place: Place, end: End) {
        self.ends.insert(place, end);
        self.truths[place.0].sides[place.1].begun = true;
        let process = self.process_of(place);
        if let Some(at) = self.plan.streams[place.0].apps[place.1].reset_at {
            self.schedule(self.now + at, Happening::Reset { place, process });
        }
        self.wake_reader(place);
        self.wake_writer(place);
    }

    // ---- sessions

    pub(super) fn session_up(&mut self, session: usize) -> Result<(), Failure> {
        let known = &self.sessions[session];
        if known.alive != [true, true] || known.process != self.agents[known.agent].process {
            return Ok(());
        }
        let mut instance = [0; 16];
        instance[..4].copy_from_slice(&known.process.to_be_bytes());
        let hello = Message::Hello(Hello {
            protocol: PROTOCOL_VERSION,
            instance,
            kind: SessionKind::Full,
            software: "0.1.0".into(),
            voucher: None,
            region: None,
        });
        self.send(session, true, Body::Control(hello.encode()));
        Ok(())
    }

    pub(super) fn agent_hears(&mut self, session: usize, body: Body) -> Result<(), Failure> {
        let known = &self.sessions[session];
        if known.process != self.agents[known.agent].process {
            return Ok(());
        }
        match body {
            Body::Control(bytes) => self.agent_control(session, &bytes),
            Body::Head { leg, message } => self.agent_head(leg, &message),
            Body::Data { leg, from, bytes } => self.leg_bytes(leg, 1 - from, bytes),
            Body::End { leg, reason } => {
                let side = self.side_of(leg, session);
                self.leg_lost(leg, side, reason)
            }
            Body::Bye => Ok(()),
        }
    }

    fn agent_head(&mut self, leg: usize, bytes: &Bytes) -> Result<(), Failure> {
        let message = decode(bytes).ok_or(Failure::NoMessage)?;
        match message {
            Message::Incoming(incoming) => self.offered(leg, &incoming),
            Message::Opened(_) => self.opened(leg),
            Message::Refused(reason) => self.refused(leg, reason),
            Message::Hello(_)
            | Message::Welcome(_)
            | Message::Register(_)
            | Message::Withdraw(_)
            | Message::Registered(_)
            | Message::Drain(_)
            | Message::Bye(_)
            | Message::Open(_)
            | Message::Peer
            | Message::Presence(_)
            | Message::Forward(_)
            | Message::Controller
            | Message::Join(_)
            | Message::Joined(_) => Err(Failure::NoMessage),
        }
    }

    fn agent_control(&mut self, session: usize, bytes: &Bytes) -> Result<(), Failure> {
        let agent = self.sessions[session].agent;
        let message = decode(bytes).ok_or(Failure::NoMessage)?;
        let event = self.sessions[session].agent_side.handle_message(message);
        match event.map_err(|_| Failure::NoMessage)? {
            AgentEvent::Welcomed(_) => {
                self.sessions[session].welcomed = true;
                let names = [self.service_of(agent)];
                for message in self.sessions[session].agent_side.register(&names) {
                    self.send(session, true, Body::Control(message.encode()));
                }
                // All streams that have no leg, at once.
                for stream in 0..self.truths.len() {
                    if self.truths[stream].agents[OPENER] == agent {
                        self.dial_when_parked(stream);
                    }
                }
                Ok(())
            }
            AgentEvent::Registered(_) | AgentEvent::Draining(_) | AgentEvent::Left(_) => Ok(()),
        }
    }

    /// The sessions on which this agent can open legs.
    pub(super) fn usable_sessions(&self, agent: usize) -> Vec<usize> {
        let sessions = self.agents[agent].sessions.iter().flatten().copied();
        sessions
            .filter(|&session| {
                self.sessions[session].welcomed && self.sessions[session].alive[AGENT]
            })
            .collect()
    }

    pub(super) fn pause_agent(&mut self, agent: usize, until: Micros) {
        let known = &mut self.agents[agent];
        known.paused_until = known.paused_until.max(until);
        self.schedule(until, Happening::Resume { agent });
        if until - self.now <= self.plan.detect {
            return;
        }
        let heard_of = self.now + self.plan.detect;
        for session in self.agents[agent].sessions.clone().into_iter().flatten() {
            self.schedule(
                heard_of,
                Happening::SessionLost {
                    session,
                    end: RELAY,
                },
            );
            // The next that the agent sends is answered by a reset.
            let most = 2 * self.plan.delay;
            let at = until + self.rng(agent).upto(most);
            self.schedule(
                at,
                Happening::SessionLost {
                    session,
                    end: AGENT,
                },
            );
        }
    }

    pub(super) fn crash_agent(&mut self, agent: usize, until: Micros) -> Result<(), Failure> {
        let known = &mut self.agents[agent];
        known.process += 1;
        known.places = 0;
        known.paused_until = 0;
        let deferred = std::mem::take(&mut known.deferred);
        let process = known.process;
        let detected = self.now + self.plan.detect;
        for relay in 0..self.plan.relays {
            let known = &mut self.agents[agent];
            known.dialing[relay] = true;
            if let Some(session) = known.sessions[relay].take() {
                self.sessions[session].alive[AGENT] = false;
                self.schedule(
                    detected,
                    Happening::SessionLost {
                        session,
                        end: RELAY,
                    },
                );
            }
            self.schedule(
                until,
                Happening::SessionDial {
                    agent,
                    relay,
                    process,
                },
            );
        }
        // What was meant for the dead process is known by its number.
        for happening in deferred {
            self.schedule(self.now, happening);
        }
        let gone: Vec<Place> = self.ends.keys().copied().collect();
        for place in gone {
            if self.truths[place.0].agents[place.1] == agent {
                self.ends.remove(&place);
                self.truths[place.0].sides[place.1].died = true;
            }
        }
        for leg in &mut self.legs {
            for side in [OPENER, PROVIDER] {
                leg.closed[side] |= leg.agent_at(side) == Some(agent);
            }
        }
        Ok(())
    }

    // ---- legs

    fn leg_bytes(&mut self, leg: usize, side: usize, bytes: Bytes) -> Result<(), Failure> {
        if side == OPENER && self.plan.is_thief(self.legs[leg].caller) {
            return Ok(());
        }
        let was_taken = side == OPENER || self.legs[leg].attach_heard;
        let unfenced = self.has(Defect::EpochUnfenced) && was_taken;
        if self.legs[leg].closed[side] && !unfenced {
            return Ok(());
        }
        self.legs[leg].decoders[side].push(bytes);
        loop {
            let next = self.legs[leg].decoders[side].next();
            let hostile = self.plan.is_thief(self.legs[leg].caller);
            let frame = match next {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(_) if hostile => break,
                Err(error) => return Err(Failure::NoFrame(error)),
            };
            let first = side == PROVIDER && !self.legs[leg].attach_heard;
            if first {
                self.attach_arrives(leg, frame)?;
            } else {
                self.frame(leg, side, frame)?;
            }
        }
        self.pump((self.legs[leg].stream, side))
    }

    fn frame(&mut self, leg: usize, side: usize, frame: Frame) -> Result<(), Failure> {
        let (now, stream) = (self.clock(), self.legs[leg].stream);
        let unfenced = self.has(Defect::EpochUnfenced);
        let Some(end) = self.ends.get_mut(&(stream, side)) else {
            return Ok(());
        };
        let epoch = if unfenced {
            end.stream.epoch()
        } else {
            self.legs[leg].epoch
        };
        if let (OPENER, Frame::Attach(attach)) = (side, &frame) {
            let genuine = attach.epoch == Epoch::FIRST
                || end
                    .ticket
                    .verify(Role::Accepter, attach.epoch, attach.proof.as_ref());
            if !genuine {
                return Err(check::stuck(
                    self,
                    "an honest provider's proof is not taken",
                ));
            }
        }
        end.stream
            .handle_frame(now, epoch, frame)
            .map_err(|violation| Failure::Accused {
                stream,
                side,
                violation,
            })
    }

    /// This agent's end of a leg is of no use any more.
    pub(super) fn leg_lost(
        &mut self,
        leg: usize,
        side: usize,
        reason: Option<Reason>,
    ) -> Result<(), Failure> {
        if std::mem::replace(&mut self.legs[leg].closed[side], true) {
            return Ok(());
        }
        let place = (self.legs[leg].stream, side);
        if side == OPENER && self.plan.is_thief(self.legs[leg].caller) {
            return Ok(());
        }
        let (now, epoch) = (self.clock(), self.legs[leg].epoch);
        let Some(end) = self.ends.get_mut(&place) else {
            return Ok(());
        };
        if end.old_leg == Some(leg) {
            end.old_leg = None;
        }
        if end.leg != Some(leg) {
            return Ok(());
        }
        end.leg = None;
        end.parked_at = Some(self.now);
        if reason == Some(Reason::PolicyRevoked) {
            end.stream.fail(now, Reason::PolicyRevoked);
        } else {
            end.stream.detach(now, epoch);
        }
        if side == OPENER {
            self.dial_when_parked(place.0);
        } else {
            self.keep_parked_in_bounds(place);
        }
        self.pump(place)
    }

    pub(super) fn leg_times_out(&mut self, leg: usize, side: usize) -> Result<(), Failure> {
        if self.legs[leg].closed[side] {
            return Ok(());
        }
        let place = (self.legs[leg].stream, side);
        let unanswered = match side {
            OPENER => self
                .ends
                .get(&place)
                .is_some_and(|end| end.leg == Some(leg) && !end.stream.is_attached()),
            _ => !self.legs[leg].attach_heard,
        };
        if !unanswered {
            return Ok(());
        }
        self.send_on_leg(
            leg,
            side,
            Body::End {
                leg,
                reason: Some(Reason::OpenTimeout),
            },
        );
        self.leg_lost(leg, side, None)
    }

    // ---- the machine

    pub(super) fn pump(&mut self, place: Place) -> Result<(), Failure> {
        loop {
            let Some(end) = self.ends.get_mut(&place) else {
                return Ok(());
            };
            if let Some(event) = end.stream.poll_event() {
                self.event(place, event)?;
                continue;
            }
            let Some(leg) = end.leg else { break };
            if self.legs[leg].in_flight[place.1] >= self.plan.transport {
                break;
            }
            let Some(frame) = end.stream.poll_frame() else {
                let Some(event) = end.stream.poll_event() else {
                    break;
                };
                self.event(place, event)?;
                continue;
            };
            if let Frame::Attach(attach) = &frame
                && let Some(proof) = &attach.proof
                && place.1 == OPENER
            {
                self.overheard.push((place.0, attach.epoch, proof.clone()));
            }
            let Encoded { header, payload } = frame.encode();
            let mut bytes = header.as_ref().to_vec();
            bytes.extend(payload.iter().flatten());
            let (from, bytes) = (place.1, bytes.into());
            self.send_on_leg(leg, from, Body::Data { leg, from, bytes });
        }
        self.set_timer(place);
        Ok(())
    }

    fn set_timer(&mut self, place: Place) {
        let process = self.process_of(place);
        let Some(next) = self
            .ends
            .get(&place)
            .and_then(|end| end.stream.next_timeout())
        else {
            return;
        };
        let at = self.micros_of(next).max(self.now);
        let Some(end) = self.ends.get_mut(&place) else {
            return;
        };
        if end
            .timer
            .is_none_or(|timer| at < timer || timer <= self.now)
        {
            end.timer = Some(at);
            self.schedule(at, Happening::Timer { place, process });
        }
    }

    pub(super) fn timer(&mut self, place: Place, process: u32) -> Result<(), Failure> {
        if process != self.process_of(place) {
            return Ok(());
        }
        let now = self.clock();
        if let Some(end) = self.ends.get_mut(&place) {
            end.stream.handle_timeout(now);
            if end.timer.is_some_and(|timer| timer <= self.now) {
                end.timer = None;
            }
        }
        self.pump(place)
    }

    pub(super) fn spurious(&mut self, tenant: usize, pick: usize) -> Result<(), Failure> {
        let of = |place: &Place| self.plan.streams[place.0].tenant == tenant;
        let places: Vec<Place> = self.ends.keys().copied().filter(of).collect();
        let Some(&place) = places.get(pick % places.len().max(1)) else {
            return Ok(());
        };
        self.timer(place, self.process_of(place))
    }

    fn event(&mut self, place: Place, event: Event) -> Result<(), Failure> {
        match event {
            Event::Parked | Event::PeerReset(_) => {}
            Event::LegWanted => self.leg_wanted(place.0)?,
            Event::Attached(epoch) => self.attached(place, epoch)?,
            Event::Readable | Event::FinReceived => self.wake_reader(place),
            Event::Writable => self.wake_writer(place),
            Event::Closed(verdict) => {
                let known = &mut self.truths[place.0].sides[place.1].verdict;
                if known.replace(verdict).is_some() {
                    return Err(check::stuck(self, "a verdict came twice"));
                }
            }
            Event::Released => self.released(place),
        }
        Ok(())
    }

    fn attached(&mut self, place: Place, epoch: Epoch) -> Result<(), Failure> {
        let Some(end) = self.ends.get_mut(&place) else {
            return Ok(());
        };
        end.attempts = 0;
        end.parked_at = None;
        let (leg, old) = (end.leg, end.old_leg.take());
        if place.1 == OPENER {
            self.truths[place.0].attached = true;
            self.stats.resumes += u64::from(epoch > Epoch::FIRST);
            check::one_leg(self, place.0, epoch, leg)?;
        }
        if let Some(old) = old {
            self.close_leg(old, place.1, None);
        }
        Ok(())
    }

    fn released(&mut self, place: Place) {
        let Some(end) = self.ends.remove(&place) else {
            return;
        };
        for leg in [end.leg, end.old_leg].into_iter().flatten() {
            self.close_leg(leg, place.1, None);
        }
        if place.1 == PROVIDER {
            let leaks = end.leg.is_none() && self.has(Defect::PlaceLeaks);
            let agent = self.truths[place.0].agents[PROVIDER];
            self.agents[agent].places -= usize::from(!leaks);
        }
    }

    // ---- the application

    fn wake_reader(&mut self, place: Place) {
        let process = self.process_of(place);
        if let Some(end) = self.ends.get_mut(&place)
            && !std::mem::replace(&mut end.reading, true)
        {
            self.schedule(self.now, Happening::Read { place, process });
        }
    }

    fn wake_writer(&mut self, place: Place) {
        let process = self.process_of(place);
        if let Some(end) = self.ends.get_mut(&place)
            && !std::mem::replace(&mut end.writing, true)
        {
            self.schedule(self.now, Happening::Write { place, process });
        }
    }

    pub(super) fn write(&mut self, place: Place, process: u32) -> Result<(), Failure> {
        if process != self.process_of(place) {
            return Ok(());
        }
        let app = &self.plan.streams[place.0].apps[place.1];
        let (chunk, gap) = (app.chunk, app.write_gap);
        let Some(end) = self.ends.get_mut(&place) else {
            return Ok(());
        };
        end.writing = false;
        let side = &mut self.truths[place.0].sides[place.1];
        while !side.finished {
            let at = small(side.wrote);
            if at == side.bytes.len() {
                side.finished = end.stream.finish().is_ok();
                break;
            }
            let mut next = side.bytes.slice(at..side.bytes.len().min(at + chunk));
            let Ok(taken) = end.stream.write(&mut next) else {
                break;
            };
            side.wrote += taken as u64;
            if !next.is_empty() {
                break;
            }
            if gap > 0 {
                end.writing = true;
                self.schedule(self.now + gap, Happening::Write { place, process });
                break;
            }
        }
        self.pump(place)
    }

    pub(super) fn read(&mut self, place: Place, process: u32) -> Result<(), Failure> {
        if process != self.process_of(place) {
            return Ok(());
        }
        let app = &self.plan.streams[place.0].apps[place.1];
        let (chunk, gap, now) = (app.read_chunk, app.read_gap, self.clock());
        let Some(end) = self.ends.get_mut(&place) else {
            return Ok(());
        };
        end.reading = false;
        loop {
            let Some(end) = self.ends.get_mut(&place) else {
                return Ok(());
            };
            match end.stream.read(now, chunk) {
                Read::Data(bytes) => check::bytes_read(self, place, &bytes)?,
                Read::Blocked | Read::Broken(_) => break,
                Read::End => {
                    check::clean_end(self, place)?;
                    break;
                }
            }
            if gap > 0 {
                if let Some(end) = self.ends.get_mut(&place) {
                    end.reading = true;
                }
                self.schedule(self.now + gap, Happening::Read { place, process });
                break;
            }
        }
        self.pump(place)
    }

    pub(super) fn app_resets(&mut self, place: Place, process: u32) -> Result<(), Failure> {
        if process != self.process_of(place) {
            return Ok(());
        }
        let now = self.clock();
        let reason = match place.1 {
            OPENER => Reason::NearReset,
            _ => Reason::FarReset,
        };
        if let Some(end) = self.ends.get_mut(&place)
            && end.stream.verdict().is_none()
        {
            end.stream.reset(now, reason);
            self.truths[place.0].sides[place.1].reset_with = Some(reason);
        }
        self.pump(place)
    }
}
