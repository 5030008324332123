//! Reads along with the frames of the mux, and judges what the mux itself would let pass.
//!
//! The mux answers a violation with a word of its own and goes on; it takes frames without bytes for as long as they
//! come. Deliberately absent: what the frames mean to their streams.

use tokio::time::Instant;

use crate::transport::glitches::Glitches;

const HEADER: usize = 12; // version, kind, flags (2 bytes), stream (4), length or credit (4)
const DATA: u8 = 0;
const CREDIT: u8 = 1;
const PING: u8 = 2;
const GO_AWAY: u8 = 3;
/// The longest body. Our frames are a TLS record at most; whatever a header claims is memory before the bytes come.
const LONGEST: u32 = 64 * 1024;
/// The mux gives credit when half of a window is free. Crumbs of it would be answered with crumbs of bytes.
const LEAST_CREDIT: u32 = 1_024;

/// The header of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    kind: u8,
    flags: u16,
    pub(super) stream: u32,
    length: u32,
}

impl Header {
    fn decode(bytes: [u8; HEADER]) -> Self {
        let [_version, kind, f, g, a, b, c, d, lengths @ ..] = bytes;
        Self {
            kind,
            flags: u16::from_be_bytes([f, g]),
            stream: u32::from_be_bytes([a, b, c, d]),
            length: u32::from_be_bytes(lengths),
        }
    }

    fn body(self) -> u32 {
        if self.kind == DATA { self.length } else { 0 }
    }

    /// Whether it brings a stream some bytes, which the mux keeps until they are read.
    pub(super) fn is_kept(self) -> bool {
        self.body() > 0
    }

    /// Whether it is the mux's answer to a violation.
    pub(super) fn is_farewell(self) -> bool {
        self.kind == GO_AWAY
    }

    fn carries_nothing(self) -> bool {
        match self.kind {
            DATA => self.flags == 0 && self.length == 0,
            CREDIT => self.flags == 0 && self.length < LEAST_CREDIT,
            PING => true,
            _ => false,
        }
    }
}

/// Follows one direction from header to header.
#[derive(Debug, Default)]
pub(super) struct Reading {
    header: [u8; HEADER],
    have: usize,
    body: u32,
}

impl Reading {
    /// Goes on by some bytes, and tells each header that they complete.
    pub(super) fn pass(&mut self, mut bytes: &[u8], mut header: impl FnMut(Header)) {
        while !bytes.is_empty() {
            if self.body > 0 {
                let length = bytes
                    .len()
                    .min(usize::try_from(self.body).unwrap_or(usize::MAX));
                self.body -= u32::try_from(length).unwrap_or(self.body);
                bytes = &bytes[length..];
                continue;
            }
            let length = bytes.len().min(HEADER - self.have);
            let (part, rest) = bytes.split_at(length);
            self.header[self.have..self.have + length].copy_from_slice(part);
            self.have += length;
            bytes = rest;
            if self.have == HEADER {
                self.have = 0;
                let whole = Header::decode(self.header);
                self.body = whole.body();
                header(whole);
            }
        }
    }
}

/// Judges what the other side sends.
#[derive(Debug)]
pub(super) struct Judge(Glitches);

impl Judge {
    pub(super) fn new(now: Instant) -> Self {
        Self(Glitches::new(now))
    }

    /// Whether a frame of the other side is one that no honest side sends.
    pub(super) fn is_violation(&mut self, header: Header, now: Instant) -> bool {
        header.body() > LONGEST || header.carries_nothing() && self.0.is_flood(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u16, stream: u32, length: u32) -> Vec<u8> {
        let mut bytes = vec![0, kind];
        bytes.extend(flags.to_be_bytes());
        bytes.extend(stream.to_be_bytes());
        bytes.extend(length.to_be_bytes());
        if kind == DATA {
            bytes.resize(bytes.len() + length as usize, 7);
        }
        bytes
    }

    #[test]
    fn headers_are_found_however_the_bytes_are_cut() {
        let bytes = [
            frame(DATA, 1, 3, 20),
            frame(CREDIT, 0, 3, u32::MAX),
            frame(DATA, 0, 5, 0),
            frame(GO_AWAY, 0, 0, 1),
        ]
        .concat();
        for piece in 1..bytes.len() {
            let (mut reading, mut found) = (Reading::default(), Vec::new());
            for part in bytes.chunks(piece) {
                reading.pass(part, |header| found.push((header.kind, header.stream)));
            }
            assert_eq!(
                found,
                [(DATA, 3), (CREDIT, 3), (DATA, 5), (GO_AWAY, 0)],
                "in pieces of {piece}"
            );
        }
    }

    #[test]
    fn what_honest_sides_send_for_hours_is_never_a_violation() {
        let now = Instant::now();
        let mut judge = Judge::new(now);
        for header in [
            (DATA, 0, 1),
            (DATA, 8, 0),
            (DATA, 4, 0),
            (CREDIT, 0, 131_072),
            (CREDIT, 1, 0),
        ] {
            let (kind, flags, length) = header;
            let header = Header {
                kind,
                flags,
                stream: 3,
                length,
            };
            for _ in 0..100_000 {
                assert!(!judge.is_violation(header, now), "{header:?}");
            }
        }
    }
}
