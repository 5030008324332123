//! Bytes that know their place: what a stream must carry, and what exactly is wrong when it does not.
//!
//! Byte `i` of a stream depends on the stream, the direction and `i` alone, so any part can be made anywhere. A
//! checker compares as bytes arrive. At the first wrong byte it keeps what follows as evidence and looks for where
//! that really belongs: later means that bytes were lost, earlier that they were repeated.

use std::fmt;

use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};

const BLOCK: usize = 256;
// Sixteen pattern bytes do not occur twice by chance within any window that a test looks through.
const NEEDLE: usize = 16;
/// How much is kept behind the first wrong byte to judge by.
pub const EVIDENCE: usize = 256 * 1024;
const WINDOW: u64 = 16 * 1024 * 1024;

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Way {
    /// From the client to the server.
    Up,
    /// From the server to the client.
    Down,
}

/// The bytes of one direction of one stream.
#[derive(Debug, Clone, Copy)]
pub struct Pattern {
    key: u64,
}

impl Pattern {
    /// The pattern of a stream's direction.
    #[must_use]
    pub fn new(stream: u64, way: Way) -> Self {
        let mut state = stream
            ^ match way {
                Way::Up => 0x7570,
                Way::Down => 0xd00d_0000,
            };
        Self {
            key: split_mix(&mut state),
        }
    }

    /// Writes the bytes that belong at `offset`.
    pub fn fill(self, offset: u64, out: &mut [u8]) {
        let mut at = offset;
        let mut rest = out;
        while !rest.is_empty() {
            let block = self.block(at / BLOCK as u64);
            let from = within_block(at);
            let length = rest.len().min(BLOCK - from);
            let (now, later) = rest.split_at_mut(length);
            now.copy_from_slice(&block[from..from + length]);
            at += length as u64;
            rest = later;
        }
    }

    /// The bytes that belong at `offset`.
    #[must_use]
    pub fn bytes(self, offset: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.fill(offset, &mut bytes);
        bytes
    }

    /// The SHA-256 of the first `length` bytes, in hexadecimal.
    #[must_use]
    pub fn sha256(self, length: u64) -> String {
        let mut hash = Sha256::new();
        let mut chunk = [0; 64 * BLOCK];
        let mut at = 0;
        while at < length {
            let size =
                usize::try_from(length - at).map_or(chunk.len(), |left| left.min(chunk.len()));
            self.fill(at, &mut chunk[..size]);
            hash.update(&chunk[..size]);
            at += size as u64;
        }
        HEXLOWER.encode(&hash.finalize())
    }

    fn block(self, number: u64) -> [u8; BLOCK] {
        let seed = self.key ^ number.wrapping_mul(0xd134_2543_de82_ef95);
        let mut generator = Xoshiro::seeded(seed);
        let mut block = [0; BLOCK];
        for word in block.chunks_exact_mut(8) {
            word.copy_from_slice(&generator.next().to_le_bytes());
        }
        block
    }
}

fn within_block(offset: u64) -> usize {
    usize::try_from(offset % BLOCK as u64).expect("less than a block")
}

/// xoshiro256**, by Blackman and Vigna.
#[derive(Debug, Clone)]
pub(crate) struct Xoshiro([u64; 4]);

impl Xoshiro {
    /// The generator whose numbers all follow from a seed.
    pub(crate) fn seeded(mut seed: u64) -> Self {
        Self([0; 4].map(|_: u64| split_mix(&mut seed)))
    }

    /// The next number.
    pub(crate) fn next(&mut self) -> u64 {
        let state = &mut self.0;
        let result = state[1].wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let shifted = state[1] << 17;
        state[2] ^= state[0];
        state[3] ^= state[1];
        state[1] ^= state[2];
        state[0] ^= state[3];
        state[2] ^= shifted;
        state[3] = state[3].rotate_left(45);
        result
    }
}

pub(crate) fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut word = *state;
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// What is wrong with a stream, and from which byte on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    /// Bytes are missing; what follows is right.
    Lost {
        /// The first wrong byte.
        at: u64,
        /// How many are missing.
        bytes: u64,
    },
    /// Bytes came a second time.
    Repeated {
        /// The first wrong byte.
        at: u64,
        /// Where the bytes that came there belong.
        from: u64,
    },
    /// Later bytes overtook earlier ones, which came after them.
    Reordered {
        /// The first wrong byte.
        at: u64,
        /// Where the bytes that came there belong.
        from: u64,
    },
    /// Bytes that are not of this stream came in between; what follows them is right.
    Inserted {
        /// The first wrong byte.
        at: u64,
        /// How many there are.
        bytes: u64,
    },
    /// Bytes were changed in their place; what follows them is right.
    Altered {
        /// The first wrong byte.
        at: u64,
        /// How many bytes there are up to the first right ones.
        bytes: u64,
    },
    /// What came belongs nowhere near.
    Foreign {
        /// The first wrong byte.
        at: u64,
    },
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost { at, bytes } => write!(f, "{bytes} bytes lost at byte {at}"),
            Self::Repeated { at, from } => {
                write!(f, "at byte {at} those from byte {from} came again")
            }
            Self::Reordered { at, from } => {
                write!(f, "at byte {at} came those from byte {from}, out of order")
            }
            Self::Inserted { at, bytes } => {
                write!(f, "{bytes} foreign bytes inserted at byte {at}")
            }
            Self::Altered { at, bytes } => write!(f, "{bytes} bytes altered at byte {at}"),
            Self::Foreign { at } => write!(f, "bytes of something else at byte {at}"),
        }
    }
}

impl std::error::Error for Damage {}

/// Compares a stream with its pattern as it arrives.
#[derive(Debug)]
pub struct Checker {
    pattern: Pattern,
    right: u64,
    hash: Sha256,
    evidence: Vec<u8>,
}

impl Checker {
    /// A checker at the stream's first byte.
    #[must_use]
    pub fn new(pattern: Pattern) -> Self {
        Self {
            pattern,
            right: 0,
            hash: Sha256::new(),
            evidence: Vec::new(),
        }
    }

    /// Takes the next bytes. Returns whether all so far were right.
    pub fn accept(&mut self, bytes: &[u8]) -> bool {
        if !self.evidence.is_empty() {
            self.keep(bytes);
            return false;
        }
        let wanted = self.pattern.bytes(self.right, bytes.len());
        let same = if wanted == bytes {
            bytes.len()
        } else {
            bytes
                .iter()
                .zip(&wanted)
                .take_while(|(a, b)| a == b)
                .count()
        };
        self.hash.update(&bytes[..same]);
        self.right += same as u64;
        self.keep(&bytes[same..]);
        same == bytes.len()
    }

    fn keep(&mut self, bytes: &[u8]) {
        let room = EVIDENCE - self.evidence.len();
        self.evidence
            .extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    /// How many bytes were right, from the first on.
    #[must_use]
    pub fn right(&self) -> u64 {
        self.right
    }

    /// Whether more bytes would not change the judgement.
    #[must_use]
    pub fn is_sure(&self) -> bool {
        self.evidence.len() >= EVIDENCE
    }

    /// The SHA-256 of the right bytes, in hexadecimal.
    #[must_use]
    pub fn sha256(&self) -> String {
        HEXLOWER.encode(&self.hash.clone().finalize())
    }

    /// What is wrong, when anything is.
    #[must_use]
    pub fn damage(&self) -> Option<Damage> {
        if self.evidence.is_empty() {
            return None;
        }
        let (at, evidence) = (self.right, self.evidence.as_slice());
        let Some(needle) = evidence.get(..NEEDLE) else {
            return Some(Damage::Foreign { at });
        };
        let wanted = self.pattern.bytes(at, NEEDLE);
        let returns = find(evidence, &wanted);
        if let Some(distance) = find(&self.pattern.bytes(at, window(WINDOW)), needle) {
            let from = at + distance as u64;
            return Some(match returns {
                Some(_) => Damage::Reordered { at, from },
                None => Damage::Lost {
                    at,
                    bytes: from - at,
                },
            });
        }
        let start = at.saturating_sub(WINDOW);
        if let Some(distance) = find(
            &self
                .pattern
                .bytes(start, window(at - start + NEEDLE as u64)),
            needle,
        ) {
            return Some(Damage::Repeated {
                at,
                from: start + distance as u64,
            });
        }
        if let Some(bytes) = returns {
            return Some(Damage::Inserted {
                at,
                bytes: bytes as u64,
            });
        }
        Some(
            self.altered()
                .map_or(Damage::Foreign { at }, |bytes| Damage::Altered {
                    at,
                    bytes,
                }),
        )
    }

    /// The distance to the next run of right bytes in their right place.
    fn altered(&self) -> Option<u64> {
        let wanted = self.pattern.bytes(self.right, self.evidence.len());
        let mut pairs = self.evidence.windows(NEEDLE).zip(wanted.windows(NEEDLE));
        pairs
            .position(|(have, want)| have == want)
            .map(|at| at as u64)
    }
}

fn window(bytes: u64) -> usize {
    usize::try_from(bytes).expect("a window fits into memory")
}

/// Where `needle` first occurs.
pub(crate) fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    let (&first, rest) = needle.split_first()?;
    let mut from = 0;
    while let Some(step) = haystack[from..].iter().position(|&byte| byte == first) {
        let at = from + step;
        if haystack[at + 1..].starts_with(rest) {
            return Some(at);
        }
        from = at + 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTH: usize = 100_000;

    fn pattern() -> Pattern {
        Pattern::new(7, Way::Down)
    }

    /// What the checker says of a stream that `harm` was done to, given in pieces of many sizes.
    fn judge(harm: impl Fn(&mut Vec<u8>)) -> Vec<Option<Damage>> {
        let mut bytes = pattern().bytes(0, LENGTH);
        harm(&mut bytes);
        [1, 7, 1_000, LENGTH * 2]
            .into_iter()
            .map(|size| {
                let mut checker = Checker::new(pattern());
                for piece in bytes.chunks(size) {
                    checker.accept(piece);
                }
                checker.damage()
            })
            .collect()
    }

    #[test]
    fn any_part_can_be_made_anywhere() {
        let whole = pattern().bytes(0, LENGTH);
        for (offset, length) in [(0, 1), (1, 300), (255, 2), (256, 256), (12_345, 6_789)] {
            let from = usize::try_from(offset).expect("small");
            assert_eq!(pattern().bytes(offset, length), whole[from..from + length]);
        }
        assert_ne!(whole, Pattern::new(7, Way::Up).bytes(0, LENGTH));
        assert_ne!(whole, Pattern::new(8, Way::Down).bytes(0, LENGTH));
    }

    #[test]
    fn the_generator_is_xoshiro256_star_star() {
        // Reference values of the authors' C code for the state 1, 2, 3, 4.
        let mut generator = Xoshiro([1, 2, 3, 4]);
        assert_eq!(
            [0; 4].map(|_: u64| generator.next()),
            [11_520, 0, 1_509_978_240, 1_215_971_899_390_074_240]
        );
    }

    #[test]
    fn an_exact_stream_has_no_damage_and_the_hash_of_its_pattern() {
        assert_eq!(judge(|_| ()), [None; 4]);
        let mut checker = Checker::new(pattern());
        assert!(checker.accept(&pattern().bytes(0, LENGTH)));
        assert_eq!(checker.right(), LENGTH as u64);
        assert_eq!(checker.sha256(), pattern().sha256(LENGTH as u64));
    }

    #[test]
    fn lost_bytes_are_found_with_their_number() {
        let damage = judge(|bytes| drop(bytes.drain(5_000..6_234)));
        assert_eq!(
            damage,
            [Some(Damage::Lost {
                at: 5_000,
                bytes: 1_234
            }); 4]
        );
    }

    #[test]
    fn repeated_bytes_are_found_with_their_place() {
        let damage = judge(|bytes| {
            let again = bytes[40_000..41_000].to_vec();
            bytes.splice(41_000..41_000, again);
        });
        assert_eq!(
            damage,
            [Some(Damage::Repeated {
                at: 41_000,
                from: 40_000
            }); 4]
        );
    }

    #[test]
    fn bytes_out_of_order_are_told_from_lost_ones() {
        let damage = judge(|bytes| bytes[10_000..14_000].rotate_left(2_000));
        assert_eq!(
            damage,
            [Some(Damage::Reordered {
                at: 10_000,
                from: 12_000
            }); 4]
        );
    }

    #[test]
    fn altered_and_inserted_bytes_are_found() {
        let damage = judge(|bytes| bytes[777] ^= 1);
        assert_eq!(damage, [Some(Damage::Altered { at: 777, bytes: 1 }); 4]);
        let damage = judge(|bytes| drop(bytes.splice(777..777, [0_u8; 40])));
        let bytes = 40;
        assert_eq!(damage, [Some(Damage::Inserted { at: 777, bytes }); 4]);
    }

    #[test]
    fn another_stream_is_foreign() {
        let damage = judge(|bytes| *bytes = Pattern::new(8, Way::Down).bytes(0, LENGTH));
        assert_eq!(damage, [Some(Damage::Foreign { at: 0 }); 4]);
    }
}
