//! One direction of a wire as a machine without a clock: frames and times go in, frames and waits come out.
//!
//! A packet is judged when it enters: lost, spoilt, copied, and when it will leave. After each
//! [`Lane::handle_frame`] or [`Lane::apply`], poll until [`Output::Wait`] or [`Output::Idle`].

use std::{cmp::Reverse, collections::BinaryHeap, fmt, time::Duration};

use super::{
    chance::Chance,
    frame,
    profile::{Profile, Setting},
};

// What 1 Gbit/s holds in half a second. On top of it packets are lost, as in any queue.
const IN_FLIGHT: usize = 40_000;

/// Which way along the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heading {
    /// From its first end to its second.
    There,
    /// From its second end to its first.
    Back,
}

impl Heading {
    /// Both.
    pub const ALL: [Self; 2] = [Self::There, Self::Back];

    pub(super) fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.to_string() == word)
    }

    /// Tells the draws of the two apart.
    pub(super) fn salt(self) -> u64 {
        match self {
            Self::There => 0x7468_6572,
            Self::Back => 0x6261_636b,
        }
    }
}

impl fmt::Display for Heading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::There => "there",
            Self::Back => "back",
        })
    }
}

/// What a lane wants done.
#[derive(Debug, PartialEq, Eq)]
pub enum Output {
    /// This frame leaves.
    Send(Vec<u8>),
    /// The next one leaves at this time.
    Wait(Duration),
    /// There is nothing on the way.
    Idle,
}

/// What became of the packets; a copy counts as passed like its original.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Sent on.
    pub passed: u64,
    /// Lost by chance.
    pub lost: u64,
    /// Lost while the wire was down.
    pub cut: u64,
    /// Lost because the queue was full.
    pub overflowed: u64,
    /// Lost because it was too long.
    pub too_long: u64,
    /// Held back behind others.
    pub reordered: u64,
    /// Copied.
    pub duplicated: u64,
    /// Spoilt so that the receiver sees it.
    pub corrupted: u64,
    /// Spoilt under a checksum that fits.
    pub forged: u64,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "passed={} lost={} cut={} overflowed={} too_long={} reordered={} duplicated={} corrupted={} forged={}",
            self.passed,
            self.lost,
            self.cut,
            self.overflowed,
            self.too_long,
            self.reordered,
            self.duplicated,
            self.corrupted,
            self.forged
        )
    }
}

/// One direction of a wire.
#[derive(Debug)]
pub struct Lane {
    heading: Heading,
    seed: u64,
    profile: Profile,
    tally: Tally,
    packets: u64,
    in_burst: bool,
    // When the last packet that waits for its turn has left the queue.
    busy_until: Duration,
    // When the last packet that was not held back arrives: the next may not overtake it.
    last_due: Duration,
    on_the_way: BinaryHeap<Reverse<Due>>,
    entered: u64,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Due {
    at: Duration,
    // Two that are due at once leave as they came.
    number: u64,
    frame: Vec<u8>,
}

impl Lane {
    /// A perfect cable.
    #[must_use]
    pub fn new(heading: Heading, seed: u64) -> Self {
        Self {
            heading,
            seed,
            profile: Profile::default(),
            tally: Tally::default(),
            packets: 0,
            in_burst: false,
            busy_until: Duration::ZERO,
            last_due: Duration::ZERO,
            on_the_way: BinaryHeap::new(),
            entered: 0,
        }
    }

    /// Changes the profile for what enters from here on.
    pub fn apply(&mut self, setting: Setting) {
        self.profile.apply(setting);
    }

    /// What became of the packets so far.
    #[must_use]
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// Takes a frame in.
    pub fn handle_frame(&mut self, now: Duration, mut frame: Vec<u8>) {
        if self.profile.down {
            self.tally.cut += 1;
            return;
        }
        if !frame::can_suffer(&frame) {
            self.put(now, frame);
            return;
        }
        self.packets += 1;
        let mut chance = Chance::of(self.seed, self.heading, self.packets);
        if self.is_lost(&mut chance) {
            self.tally.lost += 1;
            return;
        }
        let length = frame::packet_length(&frame);
        if self.profile.mtu.is_some_and(|most| length > most) {
            self.tally.too_long += 1;
            return;
        }
        self.spoil(&mut chance, &mut frame);
        let is_copied = chance.happens(self.profile.duplicate);
        let is_held = chance.happens(self.profile.reorder.0);
        let jitter = chance.up_to(self.profile.jitter);
        let Some(sent) = self.queue(now, length) else {
            self.tally.overflowed += 1;
            return;
        };
        let mut due = (sent + self.profile.delay + jitter).max(self.last_due);
        if is_held {
            self.tally.reordered += 1;
            due += self.profile.reorder.1;
        } else {
            self.last_due = due;
        }
        if is_copied {
            self.tally.duplicated += 1;
            self.put(due, frame.clone());
        }
        self.put(due, frame);
    }

    /// Gives out the next frame that is due, or says when there will be one.
    pub fn poll_output(&mut self, now: Duration) -> Output {
        match self.on_the_way.peek() {
            None => Output::Idle,
            Some(Reverse(due)) if due.at > now => Output::Wait(due.at),
            Some(_) => {
                self.tally.passed += 1;
                self.on_the_way
                    .pop()
                    .map_or(Output::Idle, |Reverse(due)| Output::Send(due.frame))
            }
        }
    }

    fn is_lost(&mut self, chance: &mut Chance) -> bool {
        let alone = chance.happens(self.profile.loss);
        let Some(burst) = self.profile.burst else {
            return alone;
        };
        self.in_burst = if self.in_burst {
            !chance.happens(burst.end)
        } else {
            chance.happens(burst.begin)
        };
        let in_burst = chance.happens(burst.loss) && self.in_burst;
        alone || in_burst
    }

    fn spoil(&mut self, chance: &mut Chance, frame: &mut [u8]) {
        let place = chance.number();
        if chance.happens(self.profile.corrupt) && frame::corrupt(frame, place) {
            self.tally.corrupted += 1;
        }
        let place = chance.number();
        if chance.happens(self.profile.forge) && frame::forge(frame, place) {
            self.tally.forged += 1;
        }
    }

    /// When a packet has left the queue; nothing when it finds no room there.
    fn queue(&mut self, now: Duration, length: usize) -> Option<Duration> {
        let Some(rate) = self.profile.rate else {
            return Some(now);
        };
        let waits = self.busy_until.saturating_sub(now);
        let held = u128::from(rate) * waits.as_nanos() / 8_000_000_000;
        if held > u128::from(self.profile.queue) {
            return None;
        }
        let bits = u64::try_from(length).ok()? * 8;
        let takes = Duration::from_nanos(bits.saturating_mul(1_000_000_000) / rate);
        self.busy_until = self.busy_until.max(now) + takes;
        Some(self.busy_until)
    }

    fn put(&mut self, at: Duration, frame: Vec<u8>) {
        if self.on_the_way.len() >= IN_FLIGHT {
            self.tally.overflowed += 1;
            return;
        }
        self.entered += 1;
        let number = self.entered;
        self.on_the_way.push(Reverse(Due { at, number, frame }));
    }
}
