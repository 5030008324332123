//! The frames of a resumable stream and their bytes.
//!
//! A frame is a type byte, its integers as QUIC varints (RFC 9000 §16), and for DATA the payload:
//!
//! | type | frame | fields |
//! |---|---|---|
//! | 0x01 | ATTACH | epoch, received, delivered, limit, flags (1 = proof follows, 2 = end delivered), [proof: 32 bytes] |
//! | 0x02 | DATA | offset, length (1 ..= 65 536), that many bytes |
//! | 0x03 | ACK | delivered, limit |
//! | 0x04 | ACK with end | delivered, limit |
//! | 0x05 | FIN | offset |
//! | 0x06 | RESET | reason number |
//! | 0x07 | CLOSED | reason number, 0 = both directions ended cleanly |
//! | 0x08 | GOAWAY | – |
//!
//! Encoding never copies a payload. Decoding is [`Decoder`](super::Decoder)'s.

use std::fmt;

use bytes::Bytes;
use sealock_core::reason::Reason;

use super::{Epoch, Proof, varint};

/// The longest payload of one DATA frame: a bound on what a frame can hold up, as for control frames of others.
pub const MAX_DATA: usize = 64 << 10;

pub(super) const ATTACH: u8 = 0x01;
pub(super) const DATA: u8 = 0x02;
pub(super) const ACK: u8 = 0x03;
pub(super) const ACK_END: u8 = 0x04;
pub(super) const FIN: u8 = 0x05;
pub(super) const RESET: u8 = 0x06;
pub(super) const CLOSED: u8 = 0x07;
pub(super) const GOAWAY: u8 = 0x08;

pub(super) const FLAG_PROOF: u8 = 1;
pub(super) const FLAG_END: u8 = 2;

/// One message on a leg.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Begins a leg, once from each side.
    Attach(Attach),
    /// Bytes of the stream. A decoder may give one DATA frame in several pieces.
    Data {
        /// Where the bytes begin.
        offset: u64,
        /// The bytes, never empty.
        bytes: Bytes,
    },
    /// How far the peer's application has read, and how far we may send.
    Ack(Ack),
    /// The sender's direction ends here.
    Fin {
        /// How many bytes the direction had.
        offset: u64,
    },
    /// The sender ends both directions at once.
    Reset {
        /// Why.
        reason: Reason,
    },
    /// The sender has come to its verdict and needs nothing more.
    Closed {
        /// The verdict; `DONE` when both directions ended cleanly.
        verdict: Reason,
    },
    /// The accepter's end of the leg will go away soon: the opener makes another one meanwhile.
    GoAway,
}

/// What a side says at the beginning of a leg.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attach {
    /// The leg's number.
    pub epoch: Epoch,
    /// Up to where bytes have arrived: the other side sends from here.
    pub received: u64,
    /// Up to where the application has read: the other side may forget what is before.
    pub delivered: u64,
    /// Up to where the other side may send.
    pub limit: u64,
    /// Whether the application has reached the other side's end.
    pub end_delivered: bool,
    /// That the sender holds the stream's resume secret; absent on a stream's first leg.
    pub proof: Option<Proof>,
}

/// How far the sender's application has read, and how far the other side may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack {
    /// Up to where the application has read.
    pub delivered: u64,
    /// Up to where the other side may send.
    pub limit: u64,
    /// Whether the application has reached the other side's end.
    pub end_delivered: bool,
}

/// A frame as bytes: what to write first, and the payload to write behind it without copying.
#[derive(Debug, Clone)]
pub struct Encoded {
    /// Type and integers.
    pub header: Header,
    /// The payload of a DATA frame.
    pub payload: Option<Bytes>,
}

impl Encoded {
    /// How many bytes the frame has.
    #[must_use]
    pub fn size(&self) -> usize {
        self.header.as_ref().len() + self.payload.as_ref().map_or(0, Bytes::len)
    }
}

// ATTACH, the longest: type, four varints, flags, proof.
pub(super) const MAX_HEADER: usize = 1 + 4 * 8 + 1 + 32;

/// The bytes of a frame before its payload.
#[derive(Clone)]
pub struct Header {
    bytes: [u8; MAX_HEADER],
    length: u8,
}

impl Header {
    fn new(kind: u8) -> Self {
        let mut header = Self {
            bytes: [0; MAX_HEADER],
            length: 0,
        };
        header.put(&[kind]);
        header
    }

    fn put(&mut self, bytes: &[u8]) {
        let start = usize::from(self.length);
        self.bytes[start..start + bytes.len()].copy_from_slice(bytes);
        self.length += u8::try_from(bytes.len()).expect("a header is shorter than 67 bytes");
    }

    fn varint(mut self, value: u64) -> Self {
        let mut bytes = [0; 8];
        let length = varint::write(value, &mut bytes);
        self.put(&bytes[..length]);
        self
    }
}

impl AsRef<[u8]> for Header {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

impl fmt::Debug for Header {
    // The bytes may hold a proof.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Header({:#04x}, {} bytes)", self.bytes[0], self.length)
    }
}

impl Frame {
    /// The frame as bytes.
    ///
    /// # Panics
    /// In debug builds when an offset is 2^62 or above, or a payload is empty or over [`MAX_DATA`]; a
    /// [`Stream`](super::Stream) makes no such frame.
    #[must_use]
    pub fn encode(self) -> Encoded {
        let (header, payload) = match self {
            Self::Attach(attach) => (attach.header(), None),
            Self::Data { offset, bytes } => {
                debug_assert!(!bytes.is_empty() && bytes.len() <= MAX_DATA);
                let header = Header::new(DATA).varint(offset).varint(bytes.len() as u64);
                (header, Some(bytes))
            }
            Self::Ack(ack) => {
                let kind = if ack.end_delivered { ACK_END } else { ACK };
                let header = Header::new(kind).varint(ack.delivered).varint(ack.limit);
                (header, None)
            }
            Self::Fin { offset } => (Header::new(FIN).varint(offset), None),
            Self::Reset { reason } => (Header::new(RESET).varint(reason.number().into()), None),
            Self::Closed { verdict } => (Header::new(CLOSED).varint(verdict.number().into()), None),
            Self::GoAway => (Header::new(GOAWAY), None),
        };
        Encoded { header, payload }
    }
}

impl Attach {
    fn header(&self) -> Header {
        let mut header = Header::new(ATTACH)
            .varint(self.epoch.0.into())
            .varint(self.received)
            .varint(self.delivered)
            .varint(self.limit);
        let end = if self.end_delivered { FLAG_END } else { 0 };
        match &self.proof {
            Some(proof) => {
                header.put(&[end | FLAG_PROOF]);
                header.put(proof.as_bytes());
            }
            None => header.put(&[end]),
        }
        header
    }
}
