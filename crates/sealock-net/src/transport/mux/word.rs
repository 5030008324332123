//! The words of a mux's control stream: what the mux itself cannot say about its streams and the connection.
//!
//! Every word has 13 bytes: its kind, a stream's number (4 bytes) and a value (8 bytes), big-endian.

use sealock_core::reason::Reason;

/// The length of every word.
pub(super) const WORD: usize = 13;

/// Something that one side tells the other outside of the streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Word {
    /// My direction of the stream ends cleanly after this many bytes.
    Finished { lane: u32, length: u64 },
    /// I gave my direction of the stream up.
    Reset { lane: u32, reason: Reason },
    /// I want no more of your direction of the stream.
    Stop { lane: u32, reason: Reason },
    /// I read your direction of the stream to its clean end.
    Read { lane: u32 },
    /// You may have opened this many streams since the beginning.
    Streams { total: u64 },
    /// Are you there?
    Ping { nonce: u64 },
    /// I am.
    Pong { nonce: u64 },
    /// I leave.
    Close { reason: Reason },
}

impl Word {
    pub(super) fn encode(self) -> [u8; WORD] {
        let number = |reason: Reason| u64::from(reason.number());
        let (kind, lane, value) = match self {
            Self::Finished { lane, length } => (1, lane, length),
            Self::Reset { lane, reason } => (2, lane, number(reason)),
            Self::Stop { lane, reason } => (3, lane, number(reason)),
            Self::Read { lane } => (4, lane, 0),
            Self::Streams { total } => (5, 0, total),
            Self::Ping { nonce } => (6, 0, nonce),
            Self::Pong { nonce } => (7, 0, nonce),
            Self::Close { reason } => (8, 0, number(reason)),
        };
        let mut bytes = [0; WORD];
        bytes[0] = kind;
        bytes[1..5].copy_from_slice(&u32::to_be_bytes(lane));
        bytes[5..].copy_from_slice(&u64::to_be_bytes(value));
        bytes
    }

    /// Nothing for a kind that we do not know.
    pub(super) fn decode(bytes: [u8; WORD]) -> Option<Self> {
        let [kind, a, b, c, d, value @ ..] = bytes;
        let lane = u32::from_be_bytes([a, b, c, d]);
        let value = u64::from_be_bytes(value);
        Some(match kind {
            1 => Self::Finished {
                lane,
                length: value,
            },
            2 => Self::Reset {
                lane,
                reason: given_up(value),
            },
            3 => Self::Stop {
                lane,
                reason: given_up(value),
            },
            4 => Self::Read { lane },
            5 => Self::Streams { total: value },
            6 => Self::Ping { nonce: value },
            7 => Self::Pong { nonce: value },
            8 => Self::Close {
                reason: Reason::from_number(value),
            },
            _ => return None,
        })
    }
}

/// The reason in a reset or a stop. Neither is ever a clean end, whatever number the other side sends.
fn given_up(number: u64) -> Reason {
    let reason = Reason::from_number(number);
    if reason == Reason::Done {
        return Reason::Unknown;
    }
    reason
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_read_as_it_was_written_and_unknown_kinds_are_none() {
        let words = [
            Word::Finished {
                lane: 3,
                length: u64::MAX,
            },
            Word::Reset {
                lane: u32::MAX,
                reason: Reason::FarReset,
            },
            Word::Stop {
                lane: 2,
                reason: Reason::Cancelled,
            },
            Word::Read { lane: 7 },
            Word::Streams { total: 4_096 },
            Word::Ping { nonce: 9 },
            Word::Pong { nonce: 9 },
            Word::Close {
                reason: Reason::Draining,
            },
        ];
        for word in words {
            assert_eq!(Word::decode(word.encode()), Some(word));
        }
        for kind in [0, 9, 255] {
            let mut bytes = [0; WORD];
            bytes[0] = kind;
            assert_eq!(Word::decode(bytes), None);
        }
    }

    #[test]
    fn a_stream_that_is_given_up_never_looks_done() {
        let mut bytes = Word::Read { lane: 1 }.encode();
        for kind in [2, 3] {
            bytes[0] = kind; // with the number of `Done`
            let read = Word::decode(bytes);
            let Some(Word::Reset { reason, .. } | Word::Stop { reason, .. }) = read else {
                panic!("{read:?}");
            };
            assert_eq!(reason, Reason::Unknown);
        }
    }
}
