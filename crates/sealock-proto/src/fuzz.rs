//! The bodies of the fuzz targets, and the names of all that an input can reach in each.
//!
//! A body takes any bytes, panics when a promise is broken, and says what the bytes reached. `fuzz/` feeds each body
//! to libFuzzer; the test below feeds it the committed corpora, so that what fuzzing once found out is held on every
//! run without a nightly compiler. Exists under `cfg(test)` and `cfg(fuzzing)` alone. Deliberately absent: randomness.

use std::collections::BTreeSet;

mod control;
mod join;
mod ticket;

#[cfg(test)]
mod tests;

/// What one input reached, by the names in [`Target::reaches`].
pub type Seen = BTreeSet<&'static str>;

/// One fuzz target.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// The target's name, and that of its corpus.
    pub name: &'static str,
    /// Feeds it one input.
    pub run: fn(&[u8]) -> Seen,
    /// All that inputs can reach; the corpus reaches each of them.
    pub reaches: &'static [&'static str],
}

/// Every target, in the order of the wire: what a stranger sends first comes first.
pub const TARGETS: &[Target] = &[
    join::TOKEN,
    join::PATTERN,
    control::MESSAGES,
    crate::dns::fuzz::MESSAGE,
    crate::dns::fuzz::ANSWER,
    crate::door::fuzz::SOCKS5,
    crate::door::fuzz::CONNECT,
    crate::sniff::fuzz::STREAM,
    crate::sniff::fuzz::QUIC,
    crate::stream::fuzz::FRAMES,
    crate::stream::fuzz::MACHINE,
    crate::stream::fuzz::MODEL,
    crate::stream::fuzz::BUFFER,
    ticket::TICKET,
];

/// Feeds one input to the target of this name.
///
/// # Panics
/// When there is no such target, and when the input breaks a promise.
pub fn run(name: &str, input: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name);
    let target = target.expect("each file in fuzz/fuzz_targets is named like its target");
    let seen = (target.run)(input);
    let unknown = seen.iter().find(|name| !target.reaches.contains(name));
    assert_eq!(unknown, None, "an outcome that the list does not have");
}

/// Takes an input apart, a number at a time; behind its end all numbers are 0.
#[derive(Debug)]
pub(crate) struct Input<'a>(pub(crate) &'a [u8]);

impl Input<'_> {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn byte(&mut self) -> u8 {
        let Some((&byte, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        byte
    }

    pub(crate) fn array<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| self.byte())
    }

    /// A number that is often small and sometimes huge.
    pub(crate) fn number(&mut self) -> u64 {
        match self.byte() {
            small @ 0..=0xef => small.into(),
            0xf0..=0xf7 => u16::from_be_bytes(self.array()).into(),
            0xf8..=0xfb => u32::from_be_bytes(self.array()).into(),
            _ => u64::from_be_bytes(self.array()) & ((1 << 62) - 1),
        }
    }
}
