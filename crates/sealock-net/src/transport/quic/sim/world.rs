//! The run of one seed: a network with faults, an opener behind it, an accepter whose process may restart.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use noq_proto::{
    Connection, ConnectionError, Dir, Event as QuicEvent, ReadError, StreamEvent, StreamId, VarInt,
};
use sealock_core::reason::Reason;
use sealock_proto::stream::{
    AttachError, Decoder, Encoded, Epoch, Event, Frame, Read, Role, Stream, StreamConfig,
};

use super::identity::Identities;
use super::node::Node;
use crate::transport::TransportKeys;

pub(super) const OPENER: usize = 0;
pub(super) const ACCEPTER: usize = 1;

// Behind the faults nothing is lost any more.
const FAULTS_FOR: Duration = Duration::from_secs(15);
// The resume window, and the time to say goodbye.
const LIMIT: Duration = Duration::from_secs(140);
const STEP_LIMIT: u64 = 300_000;
const REDIAL: Duration = Duration::from_millis(300);
/// What a killed leg is reset with.
pub(super) const KILLED: u32 = 0x31;

/// What a seed draws.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    pub(super) bytes: [usize; 2],
    pub(super) loss_percent: u64,
    pub(super) duplicate_percent: u64,
    pub(super) delay_us: u64,
    pub(super) jitter_us: u64,
    pub(super) happenings: [Option<(u64, Happening)>; 3],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Happening {
    /// The accepter's end of QUIC is another process, with the same keys.
    Restart,
    /// The opener's packets come from another address.
    Rebind,
    /// One leg is reset, its connection lives.
    KillLeg,
    /// Nothing gets through, either way, for so many milliseconds.
    Silence(u64),
}

/// What happened, for the tests to ask.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) trace: u64,
    pub(super) took: Duration,
    pub(super) legs: u32,
    pub(super) connections: u32,
    pub(super) stateless_resets: u32,
    pub(super) reset_codes: u32,
    pub(super) lost: u32,
    /// From the restart to the moment the opener knew of it.
    pub(super) noticed_in: Option<Duration>,
}

/// A small seeded generator: splitmix64.
#[derive(Debug, Clone)]
pub(super) struct Rng(pub(super) u64);

impl Rng {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn upto(&mut self, max: u64) -> u64 {
        self.next() % (max + 1)
    }

    pub(super) fn chance(&mut self, percent: u64) -> bool {
        self.upto(99) < percent
    }

    fn seed(&mut self) -> [u8; 32] {
        let mut seed = [0; 32];
        for part in seed.chunks_mut(8) {
            part.copy_from_slice(&self.next().to_be_bytes());
        }
        seed
    }
}

struct Leg {
    connection: usize,
    stream: StreamId,
    epoch: Option<Epoch>,
    decoder: Decoder,
    unsent: Vec<u8>,
}

struct Side {
    stream: Stream,
    written: usize,
    finished: bool,
    read: Vec<u8>,
    ended: bool,
    verdict: Option<Result<(), Reason>>,
    released: bool,
    leg: Option<(usize, StreamId)>,
}

struct Datagram {
    to: usize,
    from: SocketAddr,
    bytes: Vec<u8>,
}

pub(super) struct World {
    plan: Plan,
    identities: Identities,
    keys: [TransportKeys; 2],
    rng: Rng,
    origin: Instant,
    now: Instant,
    nodes: [Node; 2],
    sides: [Side; 2],
    legs: [BTreeMap<(usize, StreamId), Leg>; 2],
    patterns: [Bytes; 2],
    address: SocketAddr,
    silent_until: Instant,
    connection: Option<(usize, bool)>,
    dial_at: Instant,
    restarted_at: Option<Instant>,
    packets: BTreeMap<(Instant, u64), Datagram>,
    order: u64,
    outcome: Outcome,
}

fn server_address() -> SocketAddr {
    ([10, 0, 0, 1], 443).into()
}

fn pattern(seed: u64, length: usize) -> Bytes {
    let mut rng = Rng(seed);
    (0..length).map(|_| rng.next().to_be_bytes()[0]).collect()
}

impl World {
    pub(super) fn new(seed: u64, plan: Plan, identities: &Identities) -> Self {
        let mut rng = Rng(seed);
        let origin = Instant::now();
        let keys = [TransportKeys::generate(), TransportKeys::generate()];
        let nodes = [OPENER, ACCEPTER]
            .map(|node| Node::new(identities, &keys[node], rng.seed(), node == ACCEPTER));
        let side = |role| Side {
            stream: Stream::new(origin, role, StreamConfig::default()),
            written: 0,
            finished: false,
            read: Vec::new(),
            ended: false,
            verdict: None,
            released: false,
            leg: None,
        };
        Self {
            plan,
            identities: identities.clone(),
            keys,
            nodes,
            sides: [side(Role::Opener), side(Role::Accepter)],
            legs: Default::default(),
            patterns: [0, 1].map(|side| pattern(seed ^ (side as u64 + 1), plan.bytes[side])),
            address: ([192, 0, 2, 1], 40_000).into(),
            silent_until: origin,
            connection: None,
            dial_at: origin,
            restarted_at: None,
            packets: BTreeMap::new(),
            order: 0,
            outcome: Outcome {
                trace: seed,
                ..Outcome::default()
            },
            rng,
            origin,
            now: origin,
        }
    }

    /// Runs to the end, or says what is wrong.
    pub(super) fn run(mut self) -> Result<Outcome, String> {
        for _ in 0..STEP_LIMIT {
            self.happen();
            self.deliver();
            self.work()?;
            if self.sides.iter().all(|side| side.released) {
                self.outcome.took = self.now - self.origin;
                return self.judge();
            }
            let Some(next) = self.next_time() else {
                return Err("nothing is left to happen".to_owned());
            };
            self.now = self.now.max(next);
            if self.now > self.origin + LIMIT {
                let read = [0, 1].map(|side| self.sides[side].read.len());
                return Err(format!("not over after {LIMIT:?}, read {read:?}"));
            }
        }
        Err("the run does not end".to_owned())
    }

    fn judge(self) -> Result<Outcome, String> {
        for side in [OPENER, ACCEPTER] {
            if self.sides[side].verdict != Some(Ok(())) {
                return Err(format!("verdict {:?}", self.sides[side].verdict));
            }
            if self.sides[side].read != self.patterns[1 - side] || !self.sides[side].ended {
                return Err("not every byte arrived".to_owned());
            }
        }
        Ok(self.outcome)
    }

    fn next_time(&self) -> Option<Instant> {
        let packet = self.packets.first_key_value().map(|((at, _), _)| *at);
        let happening = self.plan.happenings.iter().flatten();
        let happening = happening.map(|(at, _)| self.origin + Duration::from_millis(*at));
        let dial = (self.sides[OPENER].leg.is_none()).then_some(self.dial_at);
        let timers = [OPENER, ACCEPTER].into_iter().flat_map(|side| {
            let stream = self.sides[side].stream.next_timeout();
            [self.nodes[side].next_timeout(), stream]
        });
        let times = timers
            .flatten()
            .chain(packet)
            .chain(dial.filter(|at| *at > self.now));
        times.chain(happening).min()
    }

    // ---- the network

    fn happen(&mut self) {
        for index in 0..self.plan.happenings.len() {
            let Some((at, happening)) = self.plan.happenings[index] else {
                continue;
            };
            if self.origin + Duration::from_millis(at) > self.now {
                continue;
            }
            self.plan.happenings[index] = None;
            match happening {
                Happening::Restart => self.restart(),
                Happening::Rebind => self.address.set_port(self.address.port() + 1),
                Happening::KillLeg => self.kill_leg(),
                Happening::Silence(lasts) => {
                    self.silent_until = self.now + Duration::from_millis(lasts);
                }
            }
        }
    }

    fn restart(&mut self) {
        let seed = self.rng.seed();
        self.nodes[ACCEPTER] = Node::new(&self.identities, &self.keys[ACCEPTER], seed, true);
        self.legs[ACCEPTER].clear();
        self.restarted_at = Some(self.now);
        self.lose_leg(ACCEPTER);
    }

    fn kill_leg(&mut self) {
        let Some((handle, id)) = self.sides[OPENER].leg else {
            return;
        };
        if let Some(connection) = self.nodes[OPENER].connections.get_mut(&handle) {
            let code = VarInt::from_u32(KILLED);
            let _sent = connection.send_stream(id).reset(code);
            let _told = connection.recv_stream(id).stop(code);
        }
        self.legs[OPENER].remove(&(handle, id));
        self.lose_leg(OPENER);
        self.dial_at = self.now;
    }

    fn is_faulty(&self) -> bool {
        self.now < self.origin + FAULTS_FOR
    }

    fn carry(&mut self, from: usize) {
        for (to, bytes) in std::mem::take(&mut self.nodes[from].outbox) {
            let hash = Rng(self.outcome.trace ^ (bytes.len() as u64) << 1 ^ from as u64).next();
            let at = u64::try_from((self.now - self.origin).as_nanos()).unwrap_or(u64::MAX);
            self.outcome.trace = hash ^ at;
            let faulty = self.is_faulty();
            let lost = faulty && self.rng.chance(self.plan.loss_percent);
            let copies = 1 + u64::from(faulty && self.rng.chance(self.plan.duplicate_percent));
            let (node, source) = match from {
                OPENER => (ACCEPTER, self.address),
                _ => (OPENER, server_address()),
            };
            // The old mapping of a NAT leads nowhere.
            let reaches = from == OPENER || to == self.address;
            if lost || !reaches || self.now < self.silent_until {
                self.outcome.lost += 1;
                continue;
            }
            for _ in 0..copies {
                let jitter = if faulty {
                    self.rng.upto(self.plan.jitter_us)
                } else {
                    0
                };
                let at = self.now + Duration::from_micros(self.plan.delay_us + jitter);
                self.order += 1;
                let bytes = bytes.clone();
                let from = source;
                self.packets.insert(
                    (at, self.order),
                    Datagram {
                        to: node,
                        from,
                        bytes,
                    },
                );
            }
        }
    }

    fn deliver(&mut self) {
        while let Some(entry) = self.packets.first_entry() {
            if entry.key().0 > self.now {
                return;
            }
            let datagram = entry.remove();
            let made = self.nodes[datagram.to].receive(self.now, datagram.from, &datagram.bytes);
            self.outcome.connections += u32::from(made.is_some());
        }
    }

    // ---- both ends

    // Until nobody has anything more to do at this time.
    fn work(&mut self) -> Result<(), String> {
        loop {
            self.dial()?;
            for node in [OPENER, ACCEPTER] {
                let side = &mut self.sides[node];
                if side.stream.next_timeout().is_some_and(|at| at <= self.now) {
                    side.stream.handle_timeout(self.now);
                }
                self.application(node)?;
                self.pump(node)?;
            }
            let mut quiet = true;
            for node in [OPENER, ACCEPTER] {
                for (handle, event) in self.nodes[node].drive(self.now) {
                    quiet = false;
                    self.event(node, handle, event)?;
                }
                quiet &= self.nodes[node].outbox.is_empty();
                self.carry(node);
            }
            if quiet {
                return Ok(());
            }
        }
    }

    fn dial(&mut self) -> Result<(), String> {
        let opener = &mut self.sides[OPENER];
        if opener.released || opener.leg.is_some() || self.dial_at > self.now {
            return Ok(());
        }
        let Some((handle, ready)) = self.connection else {
            let handle = self.nodes[OPENER].connect(self.now, server_address());
            self.connection = Some((handle, false));
            return Ok(());
        };
        if !ready {
            return Ok(());
        }
        let Some(connection) = self.nodes[OPENER].connections.get_mut(&handle) else {
            return Ok(());
        };
        let Some(id) = connection.streams().open(Dir::Bi) else {
            return Ok(());
        };
        let epoch = opener
            .stream
            .attach(self.now, None)
            .map_err(|error| error.to_string())?;
        opener.leg = Some((handle, id));
        self.outcome.legs += 1;
        self.legs[OPENER].insert((handle, id), Leg::new(handle, id, Some(epoch)));
        Ok(())
    }

    fn lose_leg(&mut self, node: usize) {
        let side = &mut self.sides[node];
        side.leg = None;
        let epoch = side.stream.epoch();
        side.stream.detach(self.now, epoch);
    }

    fn event(&mut self, node: usize, handle: usize, event: QuicEvent) -> Result<(), String> {
        match event {
            QuicEvent::Connected if node == OPENER => {
                self.connection = Some((handle, true));
                self.dial_at = self.now;
                Ok(())
            }
            QuicEvent::ConnectionLost { reason } => {
                self.connection_lost(node, handle, &reason);
                Ok(())
            }
            QuicEvent::Stream(StreamEvent::Opened { .. }) => {
                while let Some(connection) = self.nodes[node].connections.get_mut(&handle)
                    && let Some(id) = connection.streams().accept(Dir::Bi)
                {
                    self.legs[node].insert((handle, id), Leg::new(handle, id, None));
                    self.receive(node, (handle, id))?;
                }
                Ok(())
            }
            QuicEvent::Stream(StreamEvent::Readable { id }) => self.receive(node, (handle, id)),
            QuicEvent::Stream(_)
            | QuicEvent::Connected
            | QuicEvent::HandshakeDataReady
            | QuicEvent::HandshakeConfirmed
            | QuicEvent::DatagramReceived
            | QuicEvent::DatagramsUnblocked
            | QuicEvent::Path(_)
            | QuicEvent::NatTraversal(_) => Ok(()),
        }
    }

    fn connection_lost(&mut self, node: usize, handle: usize, reason: &ConnectionError) {
        if *reason == ConnectionError::Reset {
            self.outcome.stateless_resets += 1;
            let since = self.restarted_at.take();
            self.outcome.noticed_in = since.map(|since| self.now - since);
        }
        self.legs[node].retain(|(connection, _), _| *connection != handle);
        if self.sides[node]
            .leg
            .is_some_and(|(connection, _)| connection == handle)
        {
            self.lose_leg(node);
        }
        if node == OPENER && self.connection.is_some_and(|(known, _)| known == handle) {
            self.connection = None;
            // At once when it worked before; what fails is tried again behind a pause.
            let worked = *reason == ConnectionError::Reset;
            self.dial_at = self.now + if worked { Duration::ZERO } else { REDIAL };
        }
    }

    fn receive(&mut self, node: usize, key: (usize, StreamId)) -> Result<(), String> {
        let Some(connection) = self.nodes[node].connections.get_mut(&key.0) else {
            return Ok(());
        };
        let Some(leg) = self.legs[node].get_mut(&key) else {
            return Ok(());
        };
        let (chunks, end) = read_all(connection, key.1);
        for chunk in chunks {
            leg.decoder.push(chunk);
        }
        loop {
            let Some(leg) = self.legs[node].get_mut(&key) else {
                return Ok(());
            };
            match leg.decoder.next().map_err(|error| error.to_string())? {
                Some(frame) => self.frame(node, key, frame)?,
                None => break,
            }
        }
        if let Some(end) = end {
            if let Err(code) = end {
                self.outcome.reset_codes += u32::from(code == VarInt::from_u32(KILLED));
            }
            self.legs[node].remove(&key);
            if self.sides[node].leg == Some(key) {
                self.lose_leg(node);
                self.dial_at = self.now;
            }
        }
        Ok(())
    }

    fn frame(&mut self, node: usize, key: (usize, StreamId), frame: Frame) -> Result<(), String> {
        let Some(leg) = self.legs[node].get_mut(&key) else {
            return Ok(());
        };
        let side = &mut self.sides[node];
        if let Some(epoch) = leg.epoch {
            let heard = side.stream.handle_frame(self.now, epoch, frame);
            return heard.map_err(|violation| format!("an honest peer is accused: {violation}"));
        }
        let Frame::Attach(attach) = frame else {
            return Err("a leg begins without ATTACH".to_owned());
        };
        leg.epoch = Some(attach.epoch);
        match side.stream.accept_attach(self.now, &attach, None) {
            Ok(()) => {
                side.leg = Some(key);
                Ok(())
            }
            Err(AttachError::Over) => {
                let verdict = Reason::ResumeExpired;
                leg.unsent.extend(bytes_of(Frame::Closed { verdict }));
                Ok(())
            }
            Err(AttachError::Stale) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }

    fn pump(&mut self, node: usize) -> Result<(), String> {
        while let Some(event) = self.sides[node].stream.poll_event() {
            self.stream_event(node, event);
        }
        if let Some(key) = self.sides[node].leg {
            while self.flush(node, key) {
                let Some(frame) = self.sides[node].stream.poll_frame() else {
                    break;
                };
                if let Some(leg) = self.legs[node].get_mut(&key) {
                    leg.unsent.extend(bytes_of(frame));
                }
            }
            while let Some(event) = self.sides[node].stream.poll_event() {
                self.stream_event(node, event);
            }
        }
        Ok(())
    }

    /// Writes what waits; says whether there is room for more.
    fn flush(&mut self, node: usize, key: (usize, StreamId)) -> bool {
        let Some(leg) = self.legs[node].get_mut(&key) else {
            return false;
        };
        let Some(connection) = self.nodes[node].connections.get_mut(&leg.connection) else {
            return false;
        };
        while !leg.unsent.is_empty() {
            match connection.send_stream(leg.stream).write(&leg.unsent) {
                Ok(taken) => drop(leg.unsent.drain(..taken)),
                Err(_) => return false,
            }
        }
        true
    }

    fn stream_event(&mut self, node: usize, event: Event) {
        let side = &mut self.sides[node];
        match event {
            Event::Closed(verdict) => side.verdict = Some(verdict),
            Event::Released => side.released = true,
            // The application looks at every step, and a lost leg is dialled anew by whoever lost it.
            Event::Attached(_)
            | Event::Parked
            | Event::LegWanted
            | Event::Readable
            | Event::Writable
            | Event::FinReceived
            | Event::PeerReset(_) => {}
        }
    }

    fn application(&mut self, node: usize) -> Result<(), String> {
        let side = &mut self.sides[node];
        let bytes = &self.patterns[node];
        let mut rest = bytes.slice(side.written..);
        if !side.finished {
            side.written += side.stream.write(&mut rest).unwrap_or(0);
            if side.written == bytes.len() {
                side.finished = side.stream.finish().is_ok();
            }
        }
        loop {
            match side.stream.read(self.now, 64 << 10) {
                Read::Data(bytes) => side.read.extend_from_slice(&bytes),
                Read::End => {
                    side.ended = true;
                    break;
                }
                Read::Blocked | Read::Broken(_) => break,
            }
        }
        if self.patterns[1 - node].starts_with(&side.read) {
            Ok(())
        } else {
            Err("a wrong byte".to_owned())
        }
    }
}

impl Leg {
    fn new(connection: usize, stream: StreamId, epoch: Option<Epoch>) -> Self {
        Self {
            connection,
            stream,
            epoch,
            decoder: Decoder::new(),
            unsent: Vec::new(),
        }
    }
}

fn bytes_of(frame: Frame) -> Vec<u8> {
    let Encoded { header, payload } = frame.encode();
    let mut bytes = header.as_ref().to_vec();
    bytes.extend(payload.iter().flatten());
    bytes
}

/// What came on a stream, and how it ended when it did: cleanly, or with a code.
fn read_all(connection: &mut Connection, id: StreamId) -> (Vec<Bytes>, Option<Result<(), VarInt>>) {
    let mut stream = connection.recv_stream(id);
    let Ok(mut chunks) = stream.read(true) else {
        return (Vec::new(), None);
    };
    let mut bytes = Vec::new();
    let end = loop {
        match chunks.next(usize::MAX) {
            Ok(Some(chunk)) => bytes.push(chunk.bytes),
            Ok(None) => break Some(Ok(())),
            Err(ReadError::Reset(code)) => break Some(Err(code)),
            Err(ReadError::Blocked) => break None,
        }
    };
    let _transmit = chunks.finalize();
    (bytes, end)
}
