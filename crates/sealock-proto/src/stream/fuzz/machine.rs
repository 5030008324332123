//! One side of a stream against a peer and a driver that do anything in any order (F45).
//!
//! Whatever happens: memory stays in its bounds, a broken rule ends the stream, the verdict comes once, no state waits
//! without a timer, and when all has been silent for two windows the stream lets go.

use std::time::{Duration, Instant};

use bytes::Bytes;
use sealock_core::reason::Reason;

use crate::fuzz::{Input, Seen, Target};
use crate::stream::model::origin;
use crate::stream::{
    Ack, Attach, AttachError, Epoch, Event, Frame, Output, Progress, Read, Role, Stream,
    StreamConfig, Violation,
};

pub(crate) const MACHINE: Target = Target {
    name: "stream_machine",
    run,
    reaches: &[
        "attached",
        "parked",
        "read",
        "end",
        "verdict DONE",
        "verdict of a reset",
        "verdict RESUME_EXPIRED",
        "verdict PROTOCOL_VIOLATION",
        "stale leg",
        "wrong role",
        "leg of a stream that is over",
        "violation in ATTACH",
        "not attached",
        "stray attach",
        "ack backwards",
        "ack beyond sent",
        "limit backwards",
        "end not sent",
        "beyond limit",
        "gap",
        "after fin",
        "fin moved",
        "closed early",
        "stray goaway",
        "leg wanted",
    ],
};

// Long runs find nothing that short ones do not, and slow the fuzzer down.
const STEPS: usize = 200;
const WINDOW: u32 = 64;
const MAX_WINDOW: u32 = 200;
const RESUME: Duration = Duration::from_secs(120);

struct Run {
    stream: Stream,
    role: Role,
    now: Instant,
    seen: Seen,
    verdicts: usize,
    released: bool,
}

fn run(input: &[u8]) -> Seen {
    let mut input = Input(input);
    let role = if input.byte() & 1 == 0 {
        Role::Opener
    } else {
        Role::Accepter
    };
    let config = StreamConfig {
        initial_window: WINDOW,
        max_window: MAX_WINDOW,
        early: 8,
        ack_delay: Duration::from_millis(10),
        resume_window: RESUME,
    };
    let now = origin();
    let mut run = Run {
        stream: Stream::new(now, role, config),
        role,
        now,
        seen: Seen::new(),
        verdicts: 0,
        released: false,
    };
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        run.step(&mut input);
        run.drain();
        run.check();
    }
    run.end()
}

impl Run {
    fn step(&mut self, input: &mut Input<'_>) {
        let epoch = self.stream.epoch();
        match input.byte() % 16 {
            0 => self.open_leg(input),
            1 => self.stream.detach(self.now, epoch),
            2 => {
                let mut bytes = Bytes::from(vec![7; usize::from(input.byte())]);
                let _taken = self.stream.write(&mut bytes);
            }
            3 => match self.stream.read(self.now, input.byte().into()) {
                Read::Data(_) => drop(self.seen.insert("read")),
                Read::End => drop(self.seen.insert("end")),
                Read::Blocked | Read::Broken(_) => {}
            },
            4 => drop(self.stream.finish()),
            5 if input.byte() == 0 => self.stream.reset(self.now, Reason::Cancelled),
            6 => self.wait(Duration::from_millis(input.byte().into())),
            7 if input.byte() == 0 => self.wait(RESUME),
            // What a driver calls without need does no harm.
            8 => {
                self.stream.handle_timeout(self.now);
                self.stream.go_away();
            }
            9 => self.hear(
                epoch,
                Frame::Data {
                    offset: 0,
                    bytes: Bytes::from_static(b"old"),
                },
            ),
            _ => {
                let frame = self.frame(input);
                self.hear(epoch, frame);
            }
        }
    }

    fn open_leg(&mut self, input: &mut Input<'_>) {
        let result = match self.role {
            Role::Opener => match self.stream.attach(self.now, None) {
                Ok(epoch) => {
                    // A peer that does not answer says something else first.
                    let answers = input.0.first().is_none_or(|lie| lie & 0xf0 != 0xf0);
                    let answer = self.attach(input, epoch);
                    self.drain();
                    if answers {
                        self.hear(epoch, Frame::Attach(answer));
                    }
                    Ok(())
                }
                Err(error) => Err(error),
            },
            Role::Accepter => {
                let epoch = Epoch(self.stream.epoch().0 + u32::from(input.byte() % 3));
                let attach = self.attach(input, epoch);
                self.stream.accept_attach(self.now, &attach, None)
            }
        };
        let known = match result {
            Ok(()) => return,
            Err(AttachError::Stale) => "stale leg",
            Err(AttachError::WrongRole) => "wrong role",
            Err(AttachError::Over) => "leg of a stream that is over",
            Err(AttachError::Violation(_)) => "violation in ATTACH",
        };
        self.seen.insert(known);
        let attach = self.attach(input, Epoch(u32::MAX));
        let wrong = match self.role {
            Role::Opener => self.stream.accept_attach(self.now, &attach, None),
            Role::Accepter => self.stream.attach(self.now, None).map(|_| ()),
        };
        assert_eq!(wrong, Err(AttachError::WrongRole));
        self.seen.insert("wrong role");
    }

    // Mostly what an honest peer would say, for else nothing goes far.
    fn attach(&self, input: &mut Input<'_>, epoch: Epoch) -> Attach {
        let near = self.stream.progress_report();
        let lie = input.byte();
        let number = |known: u64, bit: u8, input: &mut Input<'_>| {
            if lie & bit == 0 {
                known
            } else {
                input.number()
            }
        };
        Attach {
            epoch,
            received: number(near.sent, 1, input),
            delivered: number(near.acked, 2, input),
            limit: number(1 << 20, 4, input),
            end_delivered: lie & 8 != 0,
            proof: None,
        }
    }

    fn frame(&self, input: &mut Input<'_>) -> Frame {
        let near = self.stream.progress_report();
        let kind = input.byte();
        // Off by a few from what fits, or anything.
        let around = |known: u64, input: &mut Input<'_>| match input.byte() {
            0..=127 => known,
            off @ 128..=191 => known.saturating_add(u64::from(off - 128)),
            off @ 192..=250 => known.saturating_sub(u64::from(off - 191)),
            _ => input.number(),
        };
        match kind % 8 {
            0 | 1 => {
                let offset = around(near.received, input);
                let bytes = Bytes::from(vec![9; 1 + usize::from(input.byte() % 100)]);
                Frame::Data { offset, bytes }
            }
            2 | 3 => Frame::Ack(Ack {
                delivered: around(near.sent, input),
                limit: around(1 << 20, input),
                end_delivered: kind & 0x80 != 0,
            }),
            4 => Frame::Fin {
                offset: around(near.received, input),
            },
            5 => Frame::Attach(self.attach(input, self.stream.epoch())),
            6 => Frame::Closed {
                verdict: if kind & 0x80 == 0 {
                    Reason::Done
                } else {
                    Reason::FarReset
                },
            },
            _ if kind & 0x80 != 0 => Frame::Reset {
                reason: Reason::FarReset,
            },
            _ if kind & 0x40 != 0 => Frame::GoAway,
            _ => Frame::Ack(Ack {
                delivered: near.acked,
                limit: 1 << 20,
                end_delivered: kind & 0x20 != 0,
            }),
        }
    }

    fn hear(&mut self, epoch: Epoch, frame: Frame) {
        let was_ending = self.stream.is_ending();
        let Err(violation) = self.stream.handle_frame(self.now, epoch, frame) else {
            return;
        };
        assert!(
            was_ending || self.stream.is_ending(),
            "{violation} ends a stream"
        );
        self.seen.insert(match violation {
            Violation::NotAttached => "not attached",
            Violation::StrayAttach => "stray attach",
            Violation::AckBackwards => "ack backwards",
            Violation::AckBeyondSent => "ack beyond sent",
            Violation::LimitBackwards => "limit backwards",
            Violation::EndNotSent => "end not sent",
            Violation::BeyondLimit => "beyond limit",
            Violation::Gap => "gap",
            Violation::AfterFin => "after fin",
            Violation::FinMoved => "fin moved",
            Violation::ClosedEarly => "closed early",
            Violation::StrayGoAway => "stray goaway",
        });
    }

    fn wait(&mut self, time: Duration) {
        self.now += time;
        self.stream.handle_timeout(self.now);
    }

    fn drain(&mut self) {
        // Each frame moves an offset or a flag: more than this would never end.
        for _ in 0..1_000 {
            match self.stream.poll_output() {
                Output::Send(frame) => assert!(self.may_say(&frame), "{frame:?}"),
                Output::Event(event) => self.note(event),
                Output::Wait(_) => return,
            }
        }
        panic!("a drain has an end");
    }

    fn may_say(&self, frame: &Frame) -> bool {
        !matches!(frame, Frame::Data { bytes, .. } if bytes.is_empty()) && !self.stream.is_parked()
    }

    fn note(&mut self, event: Event) {
        assert!(
            !self.released,
            "nothing comes behind the release: {event:?}"
        );
        match event {
            Event::Attached(epoch) => {
                assert_eq!(epoch, self.stream.epoch());
                self.seen.insert("attached");
            }
            Event::Parked => drop(self.seen.insert("parked")),
            Event::LegWanted => drop(self.seen.insert("leg wanted")),
            Event::Closed(verdict) => {
                self.verdicts += 1;
                self.seen.insert(match verdict {
                    Ok(()) => "verdict DONE",
                    Err(Reason::ResumeExpired) => "verdict RESUME_EXPIRED",
                    Err(Reason::ProtocolViolation) => "verdict PROTOCOL_VIOLATION",
                    Err(_) => "verdict of a reset",
                });
            }
            Event::Released => self.released = true,
            Event::Readable | Event::Writable | Event::FinReceived | Event::PeerReset(_) => {}
        }
    }

    fn check(&self) {
        let Progress {
            acked,
            sent,
            replay_bytes,
            received,
            delivered,
            unread_bytes,
            limit,
            window,
        } = self.stream.progress_report();
        assert!(
            acked <= sent && delivered <= received && received <= limit,
            "K4"
        );
        assert!(window <= MAX_WINDOW && unread_bytes <= window.into(), "K8");
        // The first chunk is held whole, and a chunk has up to 255 bytes here.
        assert!(replay_bytes <= u64::from(MAX_WINDOW) + 255, "K8");
        assert!(limit - delivered <= MAX_WINDOW.into(), "K8");
        let waits = self.stream.is_parked() || self.stream.verdict().is_some();
        if waits && !self.stream.is_released() {
            assert!(self.stream.next_timeout().is_some(), "K12");
        }
        assert!(self.verdicts <= 1);
    }

    fn end(mut self) -> Seen {
        let epoch = self.stream.epoch();
        self.stream.detach(self.now, epoch);
        self.drain();
        for _ in 0..2 {
            self.wait(RESUME);
            self.drain();
        }
        assert!(self.stream.is_released() && self.released, "K12");
        assert_eq!(self.verdicts, 1, "one verdict");
        self.seen
    }
}
