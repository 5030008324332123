//! Links between agents and relays, the sessions on them, and the legs that run over two of them.
//!
//! A link loses nothing in the end, as a transport does: a lost packet comes late, and what a clogged way holds comes
//! when it is open again, unless the session was given up by then. Packets of one leg keep their order.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use sealock_core::reason::Reason;

use super::check::Failure;
use super::clock::Certificate;
use super::plan::{Micros, SECOND};
use super::world::{Happening, OPENER, PROVIDER, World};
use crate::session::{AgentSide, RelaySide};
use crate::stream::{Decoder, Epoch};
use crate::wire::{HEADER_LENGTH, Header, Message};

/// The ends of a session.
pub(super) const AGENT: usize = 0;
pub(super) const RELAY: usize = 1;

/// How long an agent waits before it dials a relay again, at first and at most.
const REDIAL: [Micros; 2] = [SECOND / 5, 5 * SECOND];

#[derive(Debug)]
pub(super) struct Link {
    delay: Micros,
    /// How many faults block each way: up, down.
    pub(super) clogs: [u32; 2],
    clogged_at: [Micros; 2],
    held: [VecDeque<u64>; 2],
}

impl Link {
    pub(super) fn new(delay: Micros) -> Self {
        Self {
            delay,
            clogs: [0; 2],
            clogged_at: [0; 2],
            held: Default::default(),
        }
    }
}

#[derive(Debug)]
pub(super) struct Session {
    pub(super) agent: usize,
    pub(super) relay: usize,
    pub(super) process: u32,
    /// The one that the agent showed.
    pub(super) certificate: Certificate,
    pub(super) alive: [bool; 2],
    pub(super) welcomed: bool,
    pub(super) agent_side: AgentSide,
    pub(super) relay_side: RelaySide,
    /// When the last packet of each lane arrives: what comes behind it comes later.
    lanes: BTreeMap<(usize, usize), Micros>,
}

/// What goes over a link.
#[derive(Debug, Clone)]
pub(super) struct Packet {
    pub(super) session: usize,
    pub(super) up: bool,
    pub(super) body: Body,
}

#[derive(Debug, Clone)]
pub(super) enum Body {
    /// A message of the control stream.
    Control(Bytes),
    /// The session ends.
    Bye,
    /// A message at a leg's head.
    Head { leg: usize, message: Bytes },
    /// Bytes of a leg.
    Data {
        leg: usize,
        from: usize,
        bytes: Bytes,
    },
    /// A leg's end; a reset carries its reason, a clean one came behind the last word.
    End { leg: usize, reason: Option<Reason> },
}

/// One leg: from the opener's agent to a relay, from there to the provider's.
#[derive(Debug)]
pub(super) struct Leg {
    pub(super) stream: usize,
    pub(super) epoch: Epoch,
    /// Who dialled it; the stream's opener, unless it is a thief.
    pub(super) caller: usize,
    /// Whom the relay says that it is; a hostile relay may say anything.
    pub(super) asserted: usize,
    pub(super) provider: Option<usize>,
    pub(super) relay: usize,
    pub(super) sessions: [Option<usize>; 2],
    /// Each agent's own end: a closed end neither reads nor writes.
    pub(super) closed: [bool; 2],
    pub(super) relay_closed: bool,
    /// Whether its caller's certificate was valid when the relay judged it.
    pub(super) certified: bool,
    /// What a thief does with it.
    pub(super) stolen: u64,
    /// The provider has heard the leg's ATTACH.
    pub(super) attach_heard: bool,
    pub(super) decoders: [Decoder; 2],
    pub(super) in_flight: [usize; 2],
}

impl Leg {
    pub(super) fn agent_at(&self, end: usize) -> Option<usize> {
        if end == OPENER {
            Some(self.caller)
        } else {
            self.provider
        }
    }
}

/// Reads one message; what our own sides encode is whole.
pub(super) fn decode(bytes: &[u8]) -> Option<Message> {
    let (head, body) = bytes.split_first_chunk::<HEADER_LENGTH>()?;
    Header::decode(*head).ok()?.decode_body(body).ok()?
}

impl World {
    fn link_of(&self, session: usize) -> usize {
        let session = &self.sessions[session];
        session.agent * self.plan.relays + session.relay
    }

    pub(super) fn send(&mut self, session: usize, up: bool, body: Body) {
        let link = self.link_of(session);
        let way = usize::from(!up);
        let lane = match &body {
            Body::Control(_) | Body::Bye => usize::MAX,
            Body::Head { leg, .. } | Body::Data { leg, .. } | Body::End { leg, .. } => *leg,
        };
        let mut delay = self.links[link].delay;
        let (agent, percent) = (self.sessions[session].agent, self.plan.loss_percent);
        // Lost once or twice, and sent again when the other side missed it.
        while percent > 0 && !self.healing && self.rng(agent).chance(percent) {
            delay += 2 * self.links[link].delay + 1;
        }
        let lanes = &mut self.sessions[session].lanes;
        let last = lanes.entry((lane, way)).or_insert(0);
        let at = (*last).max(self.now + delay);
        *last = at;
        if let Body::Data { leg, from, bytes } = &body {
            self.legs[*leg].in_flight[*from] += bytes.len();
        }
        let packet = self.next_packet;
        self.next_packet += 1;
        self.packets.insert(packet, Packet { session, up, body });
        self.schedule(at, Happening::Packet { packet });
    }

    pub(super) fn packet_arrives(&mut self, packet: u64) -> Result<(), Failure> {
        let Some(known) = self.packets.get(&packet) else {
            return Ok(());
        };
        let (session, up) = (known.session, known.up);
        let link = self.link_of(session);
        let way = usize::from(!up);
        if self.links[link].clogs[way] > 0 {
            self.links[link].held[way].push_back(packet);
            return Ok(());
        }
        let Some(Packet { body, .. }) = self.packets.remove(&packet) else {
            return Ok(());
        };
        // Bytes are on their way until the last hop; a relay puts them on the second one.
        if let Body::Data { leg, from, bytes } = &body {
            self.legs[*leg].in_flight[*from] -= bytes.len();
            // There is room for more.
            let place = (self.legs[*leg].stream, *from);
            let process = self.process_of(place);
            self.schedule(self.now, Happening::Timer { place, process });
        }
        let end = if up { RELAY } else { AGENT };
        if !self.sessions[session].alive[end] {
            return Ok(());
        }
        if let Body::Bye = body {
            return self.session_lost(session, end);
        }
        if up {
            self.relay_hears(session, body)
        } else {
            self.agent_hears(session, body)
        }
    }

    // ---- clogs

    pub(super) fn clog(&mut self, link: usize, way: usize) {
        self.links[link].clogs[way] += 1;
        if self.links[link].clogs[way] > 1 {
            return;
        }
        let since = self.now;
        self.links[link].clogged_at[way] = since;
        self.schedule(
            since + self.plan.detect,
            Happening::Silence { link, way, since },
        );
    }

    pub(super) fn unclog(&mut self, link: usize, way: usize) -> Result<(), Failure> {
        let known = &mut self.links[link];
        known.clogs[way] = known.clogs[way].saturating_sub(1);
        if known.clogs[way] > 0 {
            return Ok(());
        }
        for packet in std::mem::take(&mut known.held[way]) {
            self.packet_arrives(packet)?;
        }
        Ok(())
    }

    // Nothing came this way for so long that the side that listens gives its sessions up.
    pub(super) fn silence(
        &mut self,
        link: usize,
        way: usize,
        since: Micros,
    ) -> Result<(), Failure> {
        let known = &self.links[link];
        if known.clogs[way] == 0 || known.clogged_at[way] != since {
            return Ok(());
        }
        let end = if way == 0 { RELAY } else { AGENT };
        for session in 0..self.sessions.len() {
            if self.link_of(session) == link {
                self.give_up_session(session, end)?;
            }
        }
        // A session that is made meanwhile meets the same silence.
        self.schedule(
            self.now + self.plan.detect,
            Happening::Silence { link, way, since },
        );
        Ok(())
    }

    // ---- sessions

    pub(super) fn dial_session(&mut self, agent: usize, relay: usize, process: u32) {
        let known = &mut self.agents[agent];
        if known.process != process || known.sessions[relay].is_some() {
            return;
        }
        known.dialing[relay] = false;
        let link = agent * self.plan.relays + relay;
        let reachable = self.links[link].clogs == [0, 0]
            && self.relays[relay].is_up
            && self.admits(relay, self.agents[agent].certificate);
        if !reachable {
            self.redial(agent, relay);
            return;
        }
        self.agents[agent].dials[relay] = 0;
        self.sessions.push(Session {
            agent,
            relay,
            process,
            certificate: self.agents[agent].certificate,
            alive: [true; 2],
            welcomed: false,
            agent_side: AgentSide::default(),
            relay_side: RelaySide::default(),
            lanes: BTreeMap::new(),
        });
        let session = self.sessions.len() - 1;
        self.agents[agent].sessions[relay] = Some(session);
        self.relays[relay].sessions.insert(session);
        let at = self.now + 2 * self.links[link].delay;
        self.schedule(at, Happening::SessionUp { session });
    }

    fn redial(&mut self, agent: usize, relay: usize) {
        let [first, most] = REDIAL;
        let known = &mut self.agents[agent];
        if std::mem::replace(&mut known.dialing[relay], true) {
            return;
        }
        let wait = (first << known.dials[relay].min(10)).min(most);
        known.dials[relay] += 1;
        let process = known.process;
        // Jitter between agents, so that they do not come back all at once.
        let at = self.now + wait / 2 + self.rng(agent).upto(wait / 2);
        self.schedule(
            at,
            Happening::SessionDial {
                agent,
                relay,
                process,
            },
        );
    }

    /// This end stops to believe in the session and says so; whether the other one hears it is open.
    pub(super) fn give_up_session(&mut self, session: usize, end: usize) -> Result<(), Failure> {
        if !self.sessions[session].alive[end] {
            return Ok(());
        }
        // Into a way that was given up, the word is not always said.
        let agent = self.sessions[session].agent;
        if self.rng(agent).chance(50) {
            self.send(session, end == AGENT, Body::Bye);
        } else {
            let at = self.now + self.plan.detect;
            self.schedule(
                at,
                Happening::SessionLost {
                    session,
                    end: 1 - end,
                },
            );
        }
        self.session_lost(session, end)
    }

    pub(super) fn session_lost(&mut self, session: usize, end: usize) -> Result<(), Failure> {
        if !std::mem::replace(&mut self.sessions[session].alive[end], false) {
            return Ok(());
        }
        let (agent, relay) = (self.sessions[session].agent, self.sessions[session].relay);
        if end == RELAY {
            return self.relay_loses(relay, session);
        }
        if self.sessions[session].process != self.agents[agent].process {
            return Ok(());
        }
        if self.agents[agent].sessions[relay] == Some(session) {
            self.agents[agent].sessions[relay] = None;
            self.redial(agent, relay);
        }
        for leg in 0..self.legs.len() {
            for side in [OPENER, PROVIDER] {
                if self.legs[leg].sessions[side] == Some(session) {
                    self.leg_lost(leg, side, None)?;
                }
            }
        }
        Ok(())
    }

    /// Sends something of a leg from one of its agents.
    pub(super) fn send_on_leg(&mut self, leg: usize, side: usize, body: Body) {
        let Some(session) = self.legs[leg].sessions[side] else {
            return;
        };
        if !self.sessions[session].alive[AGENT] || self.legs[leg].closed[side] {
            return;
        }
        self.send(session, true, body);
    }

    /// Closes this agent's end of a leg.
    pub(super) fn close_leg(&mut self, leg: usize, side: usize, reason: Option<Reason>) {
        self.send_on_leg(leg, side, Body::End { leg, reason });
        self.legs[leg].closed[side] = true;
    }

    pub(super) fn kill_leg(&mut self, tenant: usize, pick: usize) -> Result<(), Failure> {
        let live: Vec<usize> = (0..self.legs.len())
            .filter(|&leg| !self.legs[leg].relay_closed)
            .filter(|&leg| self.plan.tenant_of(self.legs[leg].caller) == tenant)
            .collect();
        let Some(&leg) = live.get(pick % live.len().max(1)) else {
            return Ok(());
        };
        self.relay_ends_leg(leg, Reason::SessionLost);
        Ok(())
    }
}
