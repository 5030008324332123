//! Seeded chance: what happens to a packet is drawn from the seed, its direction and its number, and nothing else.

use std::{fmt, time::Duration};

use anyhow::{Context, Result, ensure};

use super::lane::Heading;
use crate::pattern::{Xoshiro, split_mix};

// A loss of one packet in a thousand million is none at the rates of a lab.
const WHOLE: u64 = 1_000_000_000;

/// A part of all packets, given in percent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Share(u64);

impl Share {
    /// Nothing of it.
    pub const NONE: Self = Self(0);
    /// All of it.
    pub const ALL: Self = Self(WHOLE);

    /// Parses a number of percent, such as `20` or `0.5`.
    ///
    /// # Errors
    ///
    /// Fails outside of 0 to 100.
    pub fn parse(text: &str) -> Result<Self> {
        let percent: f64 = text
            .trim_end_matches('%')
            .parse()
            .with_context(|| format!("`{text}` is no number of percent"))?;
        ensure!((0.0..=100.0).contains(&percent), "`{text}` percent");
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between 0 and 10^9, as was just ensured"
        )]
        let share = (percent * 1e7).round() as u64;
        Ok(Self(share))
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:07}%", self.0 / 10_000_000, self.0 % 10_000_000)
    }
}

/// The draws of one packet.
#[derive(Debug)]
pub(super) struct Chance(Xoshiro);

impl Chance {
    /// Those of the packet with this number.
    pub(super) fn of(seed: u64, heading: Heading, number: u64) -> Self {
        let mut mixed = seed ^ heading.salt();
        mixed = split_mix(&mut mixed) ^ number;
        Self(Xoshiro::seeded(mixed))
    }

    /// Whether something happens that happens to this share of packets. Always takes one draw.
    pub(super) fn happens(&mut self, share: Share) -> bool {
        self.0.next() % WHOLE < share.0
    }

    /// A time from nothing to this one. Always takes one draw.
    pub(super) fn up_to(&mut self, most: Duration) -> Duration {
        let nanos = u64::try_from(most.as_nanos()).unwrap_or(u64::MAX - 1);
        Duration::from_nanos(self.0.next() % (nanos + 1))
    }

    /// A number to choose a place with. Always takes one draw.
    pub(super) fn number(&mut self) -> u64 {
        self.0.next()
    }
}
