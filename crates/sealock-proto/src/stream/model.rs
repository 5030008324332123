//! A naive stream, and the machine held against it: whatever is done to both, both say the same.
//!
//! The model keeps every byte ever written in one vector a direction and knows nothing of windows, chunks, acks or
//! epochs: what was written arrives in order, a finished direction ends behind its last byte, a reset ends all.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sealock_core::reason::Reason;

use super::{AttachError, Decoder, Event, Frame, Read, Role, Stream, StreamConfig};

#[cfg(test)]
mod tests;

/// What may be done to a pair; behind it every event and frame is drained.
#[derive(Debug, Clone)]
pub(super) enum Step {
    Write {
        side: usize,
        length: usize,
    },
    Read {
        side: usize,
        max: usize,
    },
    Finish {
        side: usize,
    },
    Reset {
        side: usize,
    },
    /// Carries this many bytes of one way of the live leg.
    Carry {
        from: usize,
        bytes: usize,
    },
    /// Cuts the leg; what is in flight is lost.
    Cut,
    Attach,
    Wait {
        millis: u64,
    },
}

const RESUME_WINDOW: Duration = Duration::from_secs(120);

/// One direction of the model.
#[derive(Debug, Default)]
struct Direction {
    written: Vec<u8>,
    read: usize,
    finished: bool,
}

/// Two machines on one leg at most, and what a naive model says of them.
pub(super) struct Pair {
    now: Instant,
    streams: [Stream; 2],
    directions: [Direction; 2],
    verdicts: [Option<Result<(), Reason>>; 2],
    reset: Option<Reason>,
    leg: Option<super::Epoch>,
    pipes: [VecDeque<u8>; 2],
    decoders: [Decoder; 2],
    next_byte: u8,
    /// Time enough went by for a window to end.
    outlasted: bool,
    waited: Duration,
}

fn config() -> StreamConfig {
    StreamConfig {
        initial_window: 24,
        max_window: 100,
        early: 8,
        ack_delay: Duration::from_millis(10),
        resume_window: RESUME_WINDOW,
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "an Instant has no other beginning; only differences to it are used"
)]
pub(super) fn origin() -> Instant {
    Instant::now()
}

impl Pair {
    pub(super) fn new() -> Self {
        let now = origin();
        Self {
            now,
            streams: [Role::Opener, Role::Accepter].map(|role| Stream::new(now, role, config())),
            directions: Default::default(),
            verdicts: [None, None],
            reset: None,
            leg: None,
            pipes: Default::default(),
            decoders: Default::default(),
            next_byte: 0,
            outlasted: false,
            waited: Duration::ZERO,
        }
    }

    pub(super) fn step(&mut self, step: &Step) {
        match *step {
            Step::Write { side, length } => self.write(side, length),
            Step::Read { side, max } => self.read(side, max),
            Step::Finish { side } => {
                if self.streams[side].finish().is_ok() {
                    self.directions[side].finished = true;
                }
            }
            Step::Reset { side } => {
                if self.streams[side].verdict().is_none() {
                    self.reset = Some(Reason::Cancelled);
                }
                self.streams[side].reset(self.now, Reason::Cancelled);
            }
            Step::Carry { from, bytes } => self.carry(from, bytes),
            Step::Cut => self.cut(),
            Step::Attach => self.attach(),
            Step::Wait { millis } => self.wait(Duration::from_millis(millis)),
        }
        self.drain(0);
        self.drain(1);
    }

    fn write(&mut self, side: usize, length: usize) {
        let bytes: Vec<u8> = (0..length)
            .map(|_| {
                self.next_byte = self.next_byte.wrapping_mul(5).wrapping_add(113);
                self.next_byte
            })
            .collect();
        let room = self.streams[side].writable();
        let mut rest = Bytes::from(bytes.clone());
        if let Ok(taken) = self.streams[side].write(&mut rest) {
            assert_eq!(
                taken,
                room.min(length),
                "a write takes what there is room for"
            );
            self.directions[side].written.extend(&bytes[..taken]);
        }
    }

    fn read(&mut self, side: usize, max: usize) {
        let direction = &mut self.directions[1 - side];
        match self.streams[side].read(self.now, max) {
            Read::Data(bytes) => {
                let expected = &direction.written[direction.read..];
                assert!(!bytes.is_empty() && bytes.len() <= max);
                assert_eq!(expected.get(..bytes.len()), Some(&bytes[..]), "K1");
                direction.read += bytes.len();
            }
            Read::End => {
                assert!(direction.finished, "K3");
                assert_eq!(direction.read, direction.written.len(), "K2");
            }
            Read::Blocked => {}
            Read::Broken(Reason::ResumeExpired) => {
                assert!(self.outlasted, "the window was not over")
            }
            Read::Broken(reason) => assert_eq!(Some(reason), self.reset, "nobody else broke it"),
        }
    }

    fn carry(&mut self, from: usize, bytes: usize) {
        let Some(epoch) = self.leg else { return };
        let bytes = bytes.min(self.pipes[from].len());
        let bytes: Vec<u8> = self.pipes[from].drain(..bytes).collect();
        let to = 1 - from;
        self.decoders[to].push(bytes.into());
        while let Some(frame) = self.decoders[to].next().expect("honest bytes") {
            let stream = &mut self.streams[to];
            let opens = to == 1 && stream.epoch() < epoch;
            if opens && let Frame::Attach(attach) = frame {
                match stream.accept_attach(self.now, &attach, None) {
                    Ok(()) => {}
                    // What a driver says for a stream that it does not know any more.
                    Err(AttachError::Over) => {
                        let verdict = Reason::ResumeExpired;
                        let encoded = Frame::Closed { verdict }.encode();
                        self.pipes[to].extend(encoded.header.as_ref());
                        return;
                    }
                    Err(error) => panic!("an honest attach: {error}"),
                }
            } else {
                stream
                    .handle_frame(self.now, epoch, frame)
                    .expect("an honest frame");
            }
            if stream.is_released() {
                return;
            }
        }
    }

    fn cut(&mut self) {
        let Some(epoch) = self.leg.take() else { return };
        for stream in &mut self.streams {
            stream.detach(self.now, epoch);
        }
    }

    fn attach(&mut self) {
        self.cut();
        if let Ok(epoch) = self.streams[0].attach(self.now, None) {
            self.leg = Some(epoch);
            self.pipes = Default::default();
            self.decoders = Default::default();
        }
    }

    fn wait(&mut self, time: Duration) {
        self.now += time;
        self.waited += time;
        self.outlasted |= self.waited >= RESUME_WINDOW;
        for stream in &mut self.streams {
            if stream.next_timeout().is_some_and(|at| at <= self.now) {
                stream.handle_timeout(self.now);
            }
        }
    }

    fn drain(&mut self, side: usize) {
        loop {
            match self.streams[side].poll_output() {
                super::Output::Send(frame) => {
                    let encoded = frame.encode();
                    self.pipes[side].extend(encoded.header.as_ref());
                    self.pipes[side].extend(encoded.payload.iter().flatten());
                }
                super::Output::Event(Event::Closed(verdict)) => {
                    assert_eq!(self.verdicts[side].replace(verdict), None, "one verdict");
                }
                super::Output::Event(_) => {}
                super::Output::Wait(_) => return,
            }
        }
    }

    // Heals everything and lets both applications read to the end.
    pub(super) fn settle(&mut self) {
        for side in [0, 1] {
            self.step(&Step::Finish { side });
        }
        for _ in 0..2_000 {
            if self.verdicts.iter().all(Option::is_some) {
                return;
            }
            if self.leg.is_none() {
                self.step(&Step::Attach);
            }
            for side in [0, 1] {
                self.step(&Step::Carry {
                    from: side,
                    bytes: 1_000,
                });
                self.step(&Step::Read { side, max: 1_000 });
            }
            // In all more than a window: who was left alone by then expires.
            self.step(&Step::Wait { millis: 100 });
        }
        panic!("K12: not settled: {:?}", self.verdicts);
    }

    /// The verdict that both came to; who was cut off for a whole window may have another one.
    pub(super) fn judge(&self) -> Result<(), Reason> {
        let [opener, accepter] = self.verdicts.map(|verdict| verdict.expect("settled"));
        let cut_off = |verdict| self.outlasted && verdict == Err(Reason::ResumeExpired);
        assert!(
            opener == accepter || cut_off(opener) || cut_off(accepter),
            "one verdict"
        );
        if self.reset.is_none() && !self.outlasted {
            assert_eq!(opener, Ok(()), "nobody broke it");
        }
        if opener == Ok(()) {
            let whole = |direction: &Direction| {
                direction.finished && direction.read == direction.written.len()
            };
            assert!(self.directions.iter().all(whole), "K2");
        }
        opener
    }

    pub(super) fn carried_both_ways(&self) -> bool {
        self.directions.iter().all(|direction| direction.read > 0)
    }
}
