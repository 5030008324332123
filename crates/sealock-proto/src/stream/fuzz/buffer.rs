//! The replay buffer against one that keeps every byte for ever and counts in plain numbers.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;

use crate::fuzz::{Input, Seen, Target};
use crate::stream::outbound::Outbound;
use crate::stream::{MAX_DATA, StreamConfig, Violation, WriteError};

pub(crate) const BUFFER: Target = Target {
    name: "replay_buffer",
    run,
    reaches: &[
        "written",
        "cut short",
        "written behind the end",
        "sent",
        "sent again",
        "end sent",
        "end acknowledged",
        "acknowledged",
        "relief",
        "ack backwards",
        "ack beyond sent",
        "limit backwards",
        "end not sent",
        "cleared",
    ],
};

const STEPS: usize = 300;
const CONFIG: StreamConfig = StreamConfig {
    initial_window: 300,
    max_window: 5_000,
    early: 50,
    ack_delay: Duration::ZERO,
    resume_window: Duration::ZERO,
};

/// What is not acknowledged yet, as bytes in a queue, and where each counter is.
#[derive(Debug, Default)]
struct Plain {
    held: VecDeque<u8>,
    acked: u64,
    next: u64,
    sent: u64,
    limit: u64,
    begun: bool,
    attached: bool,
    first: bool,
    finished: bool,
    fin_on_leg: bool,
    fin_ever: bool,
    fin_acked: bool,
    starved: bool,
    over: bool,
    filler: u8,
}

impl Plain {
    fn end(&self) -> u64 {
        self.acked + self.held.len() as u64
    }

    fn attach(&mut self, received: u64, delivered: u64) -> Result<(), Violation> {
        if received > self.sent || delivered > received {
            return Err(Violation::AckBeyondSent);
        }
        if delivered < self.acked {
            return Err(Violation::AckBackwards);
        }
        if !self.begun {
            self.next = received;
        }
        self.begun = true;
        self.attached = true;
        self.forget(delivered);
        Ok(())
    }

    fn ack(&mut self, delivered: u64, limit: u64, end: bool) -> Result<(), Violation> {
        if delivered < self.acked {
            return Err(Violation::AckBackwards);
        }
        if delivered > self.next {
            return Err(Violation::AckBeyondSent);
        }
        if limit < self.limit {
            return Err(Violation::LimitBackwards);
        }
        if end && !(self.fin_ever && delivered == self.end()) {
            return Err(Violation::EndNotSent);
        }
        self.forget(delivered);
        self.limit = limit;
        self.fin_acked |= end;
        Ok(())
    }

    fn forget(&mut self, delivered: u64) {
        while self.acked < delivered {
            self.held.pop_front();
            self.acked += 1;
        }
    }
}

struct Run {
    buffer: Outbound,
    plain: Plain,
    seen: Seen,
}

fn run(input: &[u8]) -> Seen {
    let mut input = Input(input);
    let early = u64::from(CONFIG.early);
    let mut run = Run {
        buffer: Outbound::new(early),
        plain: Plain {
            limit: early,
            first: true,
            ..Plain::default()
        },
        seen: Seen::new(),
    };
    for _ in 0..STEPS {
        if input.is_empty() || run.plain.over {
            break;
        }
        run.step(&mut input);
        run.check();
    }
    run.seen
}

impl Run {
    fn step(&mut self, input: &mut Input<'_>) {
        match input.byte() % 8 {
            0 | 1 => self.write(usize::from(input.byte()) * usize::from(1 + input.byte() % 8)),
            2 | 3 => self.send(),
            4 => {
                self.buffer.begin_leg();
                self.plain.first = false;
                (self.plain.begun, self.plain.attached, self.plain.fin_on_leg) =
                    (false, false, false);
                let received = self.near(input, self.plain.sent);
                let delivered = self.near(input, self.plain.acked);
                let result = self.buffer.attach(received, delivered);
                assert_eq!(result, self.plain.attach(received, delivered));
                self.outcome(result);
            }
            5 | 6 => {
                let delivered = self.near(input, self.plain.next);
                let limit = self.near(input, self.plain.limit + 500);
                let end = input.byte() & 1 != 0;
                let result = self.buffer.ack(delivered, limit, end);
                assert_eq!(result, self.plain.ack(delivered, limit, end));
                self.outcome(result);
            }
            _ => match input.byte() {
                0..=9 => {
                    self.plain.finished = true;
                    let _finished = self.buffer.finish();
                }
                10 => {
                    self.buffer.clear();
                    self.plain.over = true;
                    assert_eq!(self.buffer.take_data(), None);
                    self.seen.insert("cleared");
                }
                _ => self.relieve(),
            },
        }
    }

    // At, shortly before or behind a known offset.
    fn near(&self, input: &mut Input<'_>, known: u64) -> u64 {
        match input.byte() {
            0..=99 => known,
            off @ 100..=169 => known.saturating_sub(u64::from(off - 99)),
            off @ 170..=219 => known.saturating_sub(u64::from(off - 169) * 20),
            off @ 220..=249 => known + u64::from(off - 219),
            _ => input.number(),
        }
    }

    fn outcome(&mut self, result: Result<(), Violation>) {
        let known = match result {
            Ok(()) => "acknowledged",
            Err(Violation::AckBackwards) => "ack backwards",
            Err(Violation::AckBeyondSent) => "ack beyond sent",
            Err(Violation::LimitBackwards) => "limit backwards",
            Err(Violation::EndNotSent) => "end not sent",
            Err(other) => panic!("{other} is not of the sending direction"),
        };
        self.seen.insert(known);
        // A machine ends its stream here, and never asks the buffer again.
        self.plain.over = result.is_err();
    }

    fn write(&mut self, length: usize) {
        let from = self.plain.filler;
        let bytes: Vec<u8> = (0..length).map(|at| from.wrapping_add(at as u8)).collect();
        let room = self.buffer.writable(&CONFIG);
        let mut rest = Bytes::from(bytes.clone());
        match self.buffer.write(&mut rest, usize::MAX, &CONFIG) {
            Ok(taken) => {
                assert_eq!(taken, room.min(length));
                assert_eq!(rest.len(), length - taken);
                self.plain.held.extend(&bytes[..taken]);
                self.plain.filler = from.wrapping_add(taken as u8).wrapping_mul(3);
                self.plain.starved = taken < length;
                let known = if taken < length {
                    "cut short"
                } else {
                    "written"
                };
                self.seen.insert(known);
            }
            Err(error) => {
                assert_eq!(error, WriteError::Finished);
                assert!(self.plain.finished);
                self.seen.insert("written behind the end");
            }
        }
    }

    fn send(&mut self) {
        if !self.plain.attached && !self.plain.first {
            return;
        }
        if let Some((offset, bytes)) = self.buffer.take_data() {
            assert_eq!(offset, self.plain.next, "no gap and no repetition on a leg");
            assert!(!bytes.is_empty() && bytes.len() <= MAX_DATA);
            let end = offset + bytes.len() as u64;
            assert!(end <= self.plain.limit, "never beyond the limit");
            let skip = usize::try_from(offset - self.plain.acked).expect("within the buffer");
            assert!(
                self.plain
                    .held
                    .iter()
                    .skip(skip)
                    .take(bytes.len())
                    .eq(bytes.iter())
            );
            let again = end <= self.plain.sent;
            self.seen.insert(if again { "sent again" } else { "sent" });
            self.plain.next = end;
            self.plain.sent = self.plain.sent.max(end);
            self.plain.begun = true;
            return;
        }
        let stopped = self.plain.next == self.plain.end() || self.plain.next >= self.plain.limit;
        assert!(stopped, "what may be sent is sent");
        let due = self.plain.finished
            && !self.plain.fin_on_leg
            && !self.plain.fin_acked
            && self.plain.next == self.plain.end();
        assert_eq!(self.buffer.take_fin(), due.then(|| self.plain.end()));
        if due {
            (self.plain.begun, self.plain.fin_on_leg, self.plain.fin_ever) = (true, true, true);
            self.seen.insert("end sent");
        }
    }

    fn relieve(&mut self) {
        let room = self.buffer.writable(&CONFIG) > 0;
        let due = self.plain.starved && !self.plain.finished && room;
        assert_eq!(self.buffer.take_relief(&CONFIG), due);
        if due {
            self.plain.starved = false;
            self.seen.insert("relief");
        }
    }

    fn check(&mut self) {
        if self.plain.over {
            return;
        }
        assert_eq!(self.buffer.acked(), self.plain.acked);
        assert_eq!(self.buffer.sent(), self.plain.sent);
        assert_eq!(self.buffer.held(), self.plain.held.len());
        assert_eq!(self.buffer.is_fin_acked(), self.plain.fin_acked);
        assert!(self.buffer.replay_bytes() >= self.plain.held.len() as u64);
        if self.plain.fin_acked {
            self.seen.insert("end acknowledged");
        }
    }
}
