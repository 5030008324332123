//! The run of one seed: an event queue in virtual time, two sides and their legs.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sealock_core::reason::Reason;

use super::check::{self, Failure};
use super::leg::{Leg, Pipe};
use super::swarm::{ACK_DELAY, Micros, Plan, SECOND};
use crate::sim::rng::{Rng, mix, pattern};
use crate::stream::{
    Ack, Attach, AttachError, Decoder, Encoded, Epoch, Event, Frame, Read, Role, Stream,
};

pub(super) const OPENER: usize = 0;
pub(super) const ACCEPTER: usize = 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Happening {
    Arrive { leg: usize, from: usize },
    Write { side: usize },
    Read { side: usize },
    Timer { side: usize },
    Reset { side: usize },
    Break { leg: usize },
    Notice { leg: usize, side: usize },
    Dial,
    Answered { leg: usize },
    Evil,
}

/// One end of the stream with its application.
#[derive(Debug)]
pub(super) struct Side {
    pub(super) role: Role,
    pub(super) stream: Option<Stream>,
    pub(super) verdict: Option<Result<(), Reason>>,
    pub(super) never_reached: bool,
    pub(super) wrote: u64,
    pub(super) finished: bool,
    pub(super) read: u64,
    pub(super) reset_with: Option<Reason>,
    bytes: Bytes,
    ended: bool,
    released: bool,
    reading: bool,
    writing: bool,
    leg: Option<usize>,
    timer: Option<Micros>,
}

#[derive(Debug)]
pub(super) struct World {
    pub(super) plan: Plan,
    pub(super) sides: [Side; 2],
    pub(super) now: Micros,
    /// A broken frame was put in, so the sides need not agree on counters any more.
    pub(super) tainted: bool,
    /// The counters inside the machines are not looked at.
    pub(super) from_outside: bool,
    origin: Instant,
    rng: Rng,
    legs: Vec<Leg>,
    queue: BinaryHeap<Reverse<(Micros, u64, Happening)>>,
    order: u64,
    faults_left: u32,
    trace: u64,
    steps: u64,
}

/// What a run without failure leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) trace: u64,
    pub(super) legs: usize,
    pub(super) steps: u64,
    pub(super) verdict: Option<Result<(), Reason>>,
}

// No run may take longer, whatever it draws: it would be a loop.
const STEP_LIMIT: u64 = 2_000_000;

/// Runs one seed to its end under every checker.
pub(super) fn run(seed: u64) -> Result<Outcome, Failure> {
    run_world(World::new(seed))
}

/// Runs one seed and looks only at what applications and drivers see, not into the machines.
pub(super) fn run_from_outside(seed: u64) -> Result<Outcome, Failure> {
    let mut world = World::new(seed);
    world.from_outside = true;
    run_world(world)
}

fn run_world(mut world: World) -> Result<Outcome, Failure> {
    world.run()?;
    check::at_the_end(&world)?;
    Ok(Outcome {
        trace: world.trace,
        legs: world.legs.len(),
        steps: world.steps,
        verdict: world.sides[OPENER].verdict,
    })
}

#[expect(
    clippy::disallowed_methods,
    reason = "an Instant has no other beginning; only differences to it are used"
)]
fn origin() -> Instant {
    Instant::now()
}

impl Side {
    fn new(role: Role, bytes: Vec<u8>) -> Self {
        Self {
            role,
            stream: None,
            verdict: None,
            never_reached: true,
            wrote: 0,
            finished: false,
            read: 0,
            reset_with: None,
            bytes: bytes.into(),
            ended: false,
            released: false,
            reading: false,
            writing: false,
            leg: None,
            timer: None,
        }
    }
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let plan = Plan::draw(&mut rng);
        let bytes = |side: usize| pattern(mix(seed ^ (side as u64 + 1)), plan.apps[side].total);
        let sides = [
            Side::new(Role::Opener, bytes(OPENER)),
            Side::new(Role::Accepter, bytes(ACCEPTER)),
        ];
        let origin = origin();
        let mut world = Self {
            faults_left: plan.faults.budget,
            plan,
            sides,
            now: 0,
            tainted: false,
            from_outside: false,
            origin,
            rng,
            legs: Vec::new(),
            queue: BinaryHeap::new(),
            order: 0,
            trace: seed,
            steps: 0,
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        let stream = Stream::new(self.origin, Role::Opener, self.plan.config[OPENER]);
        self.sides[OPENER].stream = Some(stream);
        self.sides[OPENER].never_reached = false;
        self.schedule(0, Happening::Dial);
        self.start_app(OPENER);
        if let Some(at) = self.plan.faults.evil_at {
            self.schedule(at, Happening::Evil);
        }
    }

    fn start_app(&mut self, side: usize) {
        let app = &self.plan.apps[side];
        let (read_from, reset_at, answers) = (app.read_from, app.reset_at, app.answers);
        self.sides[side].reading = true;
        self.schedule(self.now + read_from, Happening::Read { side });
        if !answers {
            self.sides[side].writing = true;
            self.schedule(self.now, Happening::Write { side });
        }
        if let Some(at) = reset_at {
            self.schedule(self.now + at, Happening::Reset { side });
        }
    }

    fn schedule(&mut self, at: Micros, happening: Happening) {
        self.order += 1;
        self.queue.push(Reverse((at, self.order, happening)));
    }

    fn clock(&self) -> Instant {
        self.origin + Duration::from_micros(self.now)
    }

    fn run(&mut self) -> Result<(), Failure> {
        let faults = &self.plan.faults;
        let each = faults.notice + faults.dial + faults.cut_time + 4 * faults.delay;
        // Every fault, then the window twice (to expire, to forget), then the applications.
        let limit = u64::from(faults.budget + 1) * each + 250 * SECOND + self.plan.pace();
        let limit = limit + (4 * faults.delay + ACK_DELAY) * self.turns();
        while !self.is_over() {
            let Some(Reverse((at, _, happening))) = self.queue.pop() else {
                return Err(check::stuck(self, "nothing is left to happen"));
            };
            self.now = at;
            self.steps += 1;
            if at > limit || self.steps > STEP_LIMIT {
                return Err(check::stuck(self, "the liveness phase takes too long"));
            }
            self.step(happening)?;
            check::after_step(self)?;
        }
        Ok(())
    }

    // How many round trips the windows alone may cost.
    fn turns(&self) -> u64 {
        let bytes: usize = self.plan.apps.iter().map(|app| app.total).sum();
        let window = self.plan.config.iter().map(|c| c.initial_window).min();
        let window = window.unwrap_or(1).max(1) as usize;
        let transport = self.plan.faults.transport;
        (bytes / window.min(transport) + 1) as u64 + 4 * (bytes as u64)
    }

    fn is_over(&self) -> bool {
        let [opener, accepter] = &self.sides;
        opener.released && (accepter.released || accepter.never_reached)
    }

    fn step(&mut self, happening: Happening) -> Result<(), Failure> {
        self.note(happening);
        match happening {
            Happening::Arrive { leg, from } => self.arrive(leg, from),
            Happening::Write { side } => {
                self.write(side);
                self.pump(side)
            }
            Happening::Read { side } => {
                self.read(side)?;
                self.pump(side)
            }
            Happening::Timer { side } => self.timer(side),
            Happening::Reset { side } => self.reset(side),
            Happening::Break { leg } => {
                self.break_leg(leg);
                Ok(())
            }
            Happening::Notice { leg, side } => self.notice(leg, side),
            Happening::Dial => self.dial(),
            Happening::Answered { leg } => self.answered(leg),
            Happening::Evil => self.evil(),
        }
    }

    fn note(&mut self, happening: Happening) {
        let mut trace = mix(self.trace ^ self.now);
        let kind = match happening {
            Happening::Arrive { leg, from } => 0x100 + 2 * leg + from,
            Happening::Write { side } => 0x10 + side,
            Happening::Read { side } => 0x20 + side,
            Happening::Timer { side } => 0x30 + side,
            Happening::Reset { side } => 0x40 + side,
            Happening::Break { leg } => 0x10_000 + leg,
            Happening::Notice { leg, side } => 0x20_000 + 2 * leg + side,
            Happening::Dial => 0x50,
            Happening::Answered { leg } => 0x30_000 + leg,
            Happening::Evil => 0x60,
        };
        trace = mix(trace ^ kind as u64);
        for side in &self.sides {
            trace = mix(trace ^ side.read ^ (side.wrote << 32));
        }
        self.trace = trace;
    }

    fn may_fault(&mut self, percent: u64) -> bool {
        self.faults_left > 0 && self.rng.chance(percent)
    }

    // ---- legs

    fn dial(&mut self) -> Result<(), Failure> {
        let now = self.clock();
        let Some(stream) = &mut self.sides[OPENER].stream else {
            return Ok(());
        };
        let Ok(epoch) = stream.attach(now, None) else {
            return Ok(());
        };
        let leg = self.legs.len();
        let delays = [0, 1].map(|_| 1 + self.rng.scaled(self.plan.faults.delay));
        let mut cuts = [None, None];
        if self.may_fault(self.plan.faults.cut_percent) {
            self.faults_left -= 1;
            let cut = Some(self.rng.upto(self.plan.faults.cut_span));
            match self.rng.upto(2) {
                0 => {
                    let at = self.now + self.rng.scaled(self.plan.faults.cut_time);
                    self.schedule(at, Happening::Break { leg });
                }
                1 => cuts[OPENER] = cut,
                _ => cuts[ACCEPTER] = cut,
            }
        }
        self.legs.push(Leg {
            epoch: [Some(epoch), None],
            pipes: [Pipe::new(delays[0], cuts[0]), Pipe::new(delays[1], cuts[1])],
            decoders: [Decoder::new(), Decoder::new()],
            broken: false,
            closed: [false; 2],
        });
        let old = self.sides[OPENER].leg.replace(leg);
        if let Some(old) = old {
            // The old leg may still deliver for a while.
            let at = self.now + self.rng.scaled(3 * SECOND);
            self.schedule(at, Happening::Break { leg: old });
        }
        if self.may_fault(self.plan.faults.twice_percent) {
            self.faults_left -= 1;
            let at = self.now + self.rng.scaled(2 * self.plan.faults.delay);
            self.schedule(at, Happening::Dial);
        } else if self.may_fault(self.plan.faults.move_percent) {
            self.faults_left -= 1;
            let at = self.now + self.rng.scaled(self.plan.faults.cut_time);
            self.schedule(at, Happening::Dial);
        }
        // ATTACH is the first that a leg carries, each way.
        let by = self.now + delays[0] + delays[1] + 1;
        self.schedule(by, Happening::Answered { leg });
        self.pump(OPENER)
    }

    fn answered(&mut self, leg: usize) -> Result<(), Failure> {
        let current = self.sides[OPENER].leg == Some(leg);
        let asked = self.legs[leg].epoch[ACCEPTER].is_some();
        let whole = !self.legs[leg].broken && !self.legs[leg].closed.contains(&true);
        let open = self.sides[OPENER].verdict.is_none() && !self.sides[ACCEPTER].released;
        let Some(stream) = &self.sides[OPENER].stream else {
            return Ok(());
        };
        if current && asked && whole && open && !self.tainted && !stream.is_attached() {
            return Err(check::stuck(self, "an attach is not answered at once"));
        }
        Ok(())
    }

    fn break_leg(&mut self, leg: usize) {
        if self.legs[leg].broken {
            return;
        }
        self.legs[leg].broken = true;
        for side in [OPENER, ACCEPTER] {
            let in_flight = self.legs[leg].pipes[side].in_flight_bytes;
            let keep = match self.rng.upto(2) {
                0 => in_flight,
                1 => 0,
                _ => self.rng.size(in_flight),
            };
            self.legs[leg].pipes[side].lose(keep);
            let at = self.now + self.rng.scaled(self.plan.faults.notice);
            self.schedule(at, Happening::Notice { leg, side });
        }
    }

    fn notice(&mut self, leg: usize, side: usize) -> Result<(), Failure> {
        if std::mem::replace(&mut self.legs[leg].closed[side], true) {
            return Ok(());
        }
        let (now, epoch) = (self.clock(), self.legs[leg].epoch[side]);
        if let (Some(stream), Some(epoch)) = (&mut self.sides[side].stream, epoch) {
            stream.detach(now, epoch);
        }
        if self.sides[side].leg != Some(leg) {
            return self.pump(side);
        }
        self.sides[side].leg = None;
        if side == OPENER && !self.sides[side].released {
            let faults = &self.plan.faults;
            let wait = match (self.faults_left, faults.outlasts) {
                (_, true) => self.rng.upto(faults.dial),
                (0, false) => self.rng.scaled(SECOND / 4),
                (_, false) => self.rng.scaled(faults.dial),
            };
            let at = self.now + wait;
            self.schedule(at, Happening::Dial);
        }
        self.pump(side)
    }

    fn close_leg(&mut self, leg: usize, side: usize) {
        self.legs[leg].closed[side] = true;
        if self.sides[side].leg == Some(leg) {
            self.sides[side].leg = None;
        }
        // The other side sees the end behind all bytes.
        let pipe = &self.legs[leg].pipes[side];
        let at = pipe.arrives_last.max(self.now) + pipe.delay + 1;
        let side = 1 - side;
        self.schedule(at, Happening::Notice { leg, side });
    }

    fn send(&mut self, leg: usize, side: usize, frame: Frame) {
        let Encoded { header, payload } = frame.encode();
        let mut parts = vec![Bytes::copy_from_slice(header.as_ref())];
        parts.extend(payload);
        for part in parts {
            if self.legs[leg].broken {
                return;
            }
            let pipe = &mut self.legs[leg].pipes[side];
            if let Some(at) = pipe.put(self.now, part) {
                self.schedule(at, Happening::Arrive { leg, from: side });
            }
            if self.legs[leg].pipes[side].is_cut() {
                self.cut(leg, side);
            }
        }
    }

    // The bytes before the cut arrive; what the other way does is open.
    fn cut(&mut self, leg: usize, side: usize) {
        let kept = self.legs[leg].pipes[side].in_flight.clone();
        let bytes = self.legs[leg].pipes[side].in_flight_bytes;
        self.break_leg(leg);
        self.legs[leg].pipes[side].in_flight = kept;
        self.legs[leg].pipes[side].in_flight_bytes = bytes;
    }

    fn arrive(&mut self, leg: usize, from: usize) -> Result<(), Failure> {
        let Some(bytes) = self.legs[leg].pipes[from].take() else {
            return Ok(());
        };
        let side = 1 - from;
        // A leg that died before its ATTACH came is never taken.
        if self.legs[leg].closed[side] && self.legs[leg].epoch[side].is_none() {
            return Ok(());
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            let length = if self.rng.chance(self.plan.faults.resplit_percent) {
                1 + self.rng.size(rest.len() - 1)
            } else {
                rest.len()
            };
            let piece = rest.split_to(length);
            self.legs[leg].decoders[side].push(piece);
            self.frames(leg, side)?;
        }
        self.pump(side)?;
        self.pump(from)
    }

    fn frames(&mut self, leg: usize, side: usize) -> Result<(), Failure> {
        // Also from a closed end: what it reads late is the very fault of lesson 01.
        while let Some(frame) = self.legs[leg].decoders[side]
            .next()
            .map_err(Failure::NoFrame)?
        {
            self.trace = mix(self.trace ^ frame_hash(&frame));
            self.frame(leg, side, frame)?;
        }
        Ok(())
    }

    fn frame(&mut self, leg: usize, side: usize, frame: Frame) -> Result<(), Failure> {
        let now = self.clock();
        let Some(epoch) = self.legs[leg].epoch[side] else {
            return self.first_frame(leg, frame);
        };
        let Some(stream) = &mut self.sides[side].stream else {
            return Ok(());
        };
        match stream.handle_frame(now, epoch, frame) {
            Ok(()) => Ok(()),
            Err(_) if self.tainted => Ok(()),
            Err(violation) => Err(Failure::Accused {
                side: self.sides[side].role,
                violation,
            }),
        }
    }

    // On the accepter's side of a leg.
    fn first_frame(&mut self, leg: usize, frame: Frame) -> Result<(), Failure> {
        let Frame::Attach(attach) = frame else {
            return Ok(());
        };
        let now = self.clock();
        self.legs[leg].epoch[ACCEPTER] = Some(attach.epoch);
        if std::mem::take(&mut self.sides[ACCEPTER].never_reached) {
            let stream = Stream::new(now, Role::Accepter, self.plan.config[ACCEPTER]);
            self.sides[ACCEPTER].stream = Some(stream);
            self.start_app(ACCEPTER);
        }
        let answer = match &mut self.sides[ACCEPTER].stream {
            Some(stream) => stream.accept_attach(now, &attach, None),
            None => Err(AttachError::Over),
        };
        match answer {
            Ok(()) => {
                self.sides[ACCEPTER].leg = Some(leg);
                Ok(())
            }
            Err(AttachError::Over) => {
                let verdict = Reason::ResumeExpired;
                self.send(leg, ACCEPTER, Frame::Closed { verdict });
                self.close_leg(leg, ACCEPTER);
                Ok(())
            }
            Err(AttachError::Stale) => {
                self.close_leg(leg, ACCEPTER);
                Ok(())
            }
            Err(AttachError::Violation(_)) if self.tainted => {
                self.sides[ACCEPTER].leg = Some(leg);
                Ok(())
            }
            Err(AttachError::Violation(violation)) => Err(Failure::Accused {
                side: Role::Accepter,
                violation,
            }),
            Err(AttachError::WrongRole) => Err(check::stuck(self, "the accepter refused its part")),
        }
    }

    // ---- the driver

    fn pump(&mut self, side: usize) -> Result<(), Failure> {
        loop {
            let Some(stream) = &mut self.sides[side].stream else {
                return Ok(());
            };
            if let Some(event) = stream.poll_event() {
                self.event(side, event)?;
                continue;
            }
            let Some(leg) = self.sides[side].leg else {
                break;
            };
            let full = self.legs[leg].pipes[side].in_flight_bytes >= self.plan.faults.transport;
            if full && !self.legs[leg].broken {
                break;
            }
            let Some(frame) = stream.poll_frame() else {
                let Some(event) = stream.poll_event() else {
                    break;
                };
                self.event(side, event)?;
                continue;
            };
            if !self.legs[leg].closed[side] {
                self.send(leg, side, frame);
            }
        }
        self.set_timer(side);
        Ok(())
    }

    fn set_timer(&mut self, side: usize) {
        let next = self.sides[side]
            .stream
            .as_ref()
            .and_then(Stream::next_timeout);
        let Some(at) = next else { return };
        let since = at.saturating_duration_since(self.origin).as_nanos();
        let at = u64::try_from(since.div_ceil(1_000)).expect("virtual time is short");
        let at = at.max(self.now);
        if self.sides[side].timer.is_none_or(|timer| at < timer) {
            self.sides[side].timer = Some(at);
            self.schedule(at, Happening::Timer { side });
        }
    }

    fn timer(&mut self, side: usize) -> Result<(), Failure> {
        if self.sides[side].timer == Some(self.now) {
            self.sides[side].timer = None;
        }
        let now = self.clock();
        if let Some(stream) = &mut self.sides[side].stream {
            stream.handle_timeout(now);
        }
        self.pump(side)
    }

    fn event(&mut self, side: usize, event: Event) -> Result<(), Failure> {
        match event {
            Event::Attached(_) | Event::Parked | Event::PeerReset(_) | Event::LegWanted => {}
            Event::Readable | Event::FinReceived => self.wake_reader(side),
            Event::Writable => self.wake_writer(side),
            Event::Closed(verdict) => {
                if self.sides[side].verdict.replace(verdict).is_some() {
                    return Err(check::stuck(self, "a verdict came twice"));
                }
                if verdict.is_ok() {
                    check::at_clean_end(self, side)?;
                }
                self.wake_reader(side);
            }
            Event::Released => {
                self.sides[side].released = true;
                self.sides[side].stream = None;
                if let Some(leg) = self.sides[side].leg {
                    self.close_leg(leg, side);
                }
            }
        }
        Ok(())
    }

    // ---- the application

    fn wake_reader(&mut self, side: usize) {
        if !std::mem::replace(&mut self.sides[side].reading, true) {
            self.schedule(self.now, Happening::Read { side });
        }
    }

    fn wake_writer(&mut self, side: usize) {
        if !std::mem::replace(&mut self.sides[side].writing, true) {
            self.schedule(self.now, Happening::Write { side });
        }
    }

    fn write(&mut self, side: usize) {
        self.sides[side].writing = false;
        let app = &self.plan.apps[side];
        let (chunk, gap) = (app.write_chunk, app.write_gap);
        loop {
            let Side {
                stream: Some(stream),
                bytes,
                wrote,
                finished,
                ..
            } = &mut self.sides[side]
            else {
                return;
            };
            if *finished {
                return;
            }
            let at = usize::try_from(*wrote).expect("small");
            if at == bytes.len() {
                *finished = stream.finish().is_ok();
                return;
            }
            let mut next = bytes.slice(at..bytes.len().min(at + chunk));
            let Ok(taken) = stream.write(&mut next) else {
                return;
            };
            *wrote += taken as u64;
            if !next.is_empty() {
                return;
            }
            if gap > 0 {
                self.sides[side].writing = true;
                self.schedule(self.now + gap, Happening::Write { side });
                return;
            }
        }
    }

    fn read(&mut self, side: usize) -> Result<(), Failure> {
        self.sides[side].reading = false;
        let (now, app) = (self.clock(), &self.plan.apps[side]);
        let (chunk, gap) = (app.read_chunk, app.read_gap);
        loop {
            let Some(stream) = &mut self.sides[side].stream else {
                return Ok(());
            };
            match stream.read(now, chunk) {
                Read::Data(bytes) => self.compare(side, &bytes)?,
                Read::Blocked | Read::Broken(_) => return Ok(()),
                Read::End => return self.end(side),
            }
            if gap > 0 {
                self.sides[side].reading = true;
                self.schedule(self.now + gap, Happening::Read { side });
                return Ok(());
            }
        }
    }

    fn compare(&mut self, side: usize, bytes: &Bytes) -> Result<(), Failure> {
        let near = self.sides[side].read;
        let expected = usize::try_from(near)
            .ok()
            .and_then(|from| self.sides[1 - side].bytes.get(from..from + bytes.len()));
        if expected != Some(bytes.as_ref()) {
            let reader = self.sides[side].role;
            return Err(Failure::WrongByte { reader, near });
        }
        self.sides[side].read += bytes.len() as u64;
        Ok(())
    }

    fn end(&mut self, side: usize) -> Result<(), Failure> {
        check::at_clean_end(self, side)?;
        if !std::mem::replace(&mut self.sides[side].ended, true) && self.plan.apps[side].answers {
            self.wake_writer(side);
        }
        Ok(())
    }

    fn reset(&mut self, side: usize) -> Result<(), Failure> {
        let now = self.clock();
        let reason = match self.sides[side].role {
            Role::Opener => Reason::NearReset,
            Role::Accepter => Reason::FarReset,
        };
        if let Some(stream) = &mut self.sides[side].stream {
            stream.reset(now, reason);
            self.sides[side].reset_with = Some(reason);
        }
        self.pump(side)
    }

    // ---- a hostile peer (F45)

    fn evil(&mut self) -> Result<(), Failure> {
        let side = self.rng.size(1);
        let kind = self.rng.upto(9);
        let big = [1, 1 + self.rng.scaled(1 << 20), 1 << 61][self.rng.size(2)];
        let now = self.clock();
        let role = self.sides[side].role;
        let Some(stream) = &mut self.sides[side].stream else {
            return Ok(());
        };
        // Only a live, open stream has something to lose.
        if stream.verdict().is_some() || !stream.is_attached() || stream.is_ending() {
            return Ok(());
        }
        let near = stream.progress_report();
        let frame = bad_frame(kind, big, stream.epoch(), &near);
        let Some(frame) = frame else { return Ok(()) };
        self.tainted = true;
        let epoch = stream.epoch();
        if stream.handle_frame(now, epoch, frame).is_ok() {
            return Err(Failure::NotNoticed { side: role, kind });
        }
        self.pump(side)
    }
}

fn bad_frame(kind: u64, big: u64, epoch: Epoch, near: &crate::stream::Progress) -> Option<Frame> {
    let ack = |delivered, limit, end_delivered| {
        Some(Frame::Ack(Ack {
            delivered,
            limit,
            end_delivered,
        }))
    };
    let bytes = Bytes::from_static(b"evil");
    match kind {
        0 | 1 => ack(near.sent + big, near.sent + big, false),
        2 if near.acked > 0 => ack(near.acked - 1, 1 << 61, false),
        3 if near.sent > 0 => ack(near.acked, near.sent - 1, false),
        4 => {
            let offset = near.received + big;
            Some(Frame::Data { offset, bytes })
        }
        5 => {
            let offset = near.limit;
            Some(Frame::Data { offset, bytes })
        }
        6 => Some(Frame::Fin {
            offset: near.received + big,
        }),
        7 if near.received > 0 => Some(Frame::Fin {
            offset: near.received - 1,
        }),
        8 => Some(Frame::Attach(Attach {
            epoch,
            received: 0,
            delivered: 0,
            limit: 1 << 61,
            end_delivered: false,
            proof: None,
        })),
        9 => ack(near.sent + big, 1 << 61, true),
        _ => None,
    }
}

fn frame_hash(frame: &Frame) -> u64 {
    match frame {
        Frame::Attach(attach) => mix(attach.received ^ (attach.limit << 24)) ^ 1,
        Frame::Data { offset, bytes } => mix(offset ^ ((bytes.len() as u64) << 32)) ^ 2,
        Frame::Ack(ack) => mix(ack.delivered ^ (ack.limit << 24)) ^ 3,
        Frame::Fin { offset } => mix(*offset) ^ 4,
        Frame::Reset { reason } => mix(reason.number().into()) ^ 5,
        Frame::Closed { verdict } => mix(verdict.number().into()) ^ 6,
        Frame::GoAway => 7,
    }
}
