//! The server name in the Initial packets that a QUIC client sends first (RFC 9001 §5.2, RFC 9369 for version 2).
//!
//! Their keys follow from a connection id that stands in the clear, so they hide nothing; they prove that a packet is
//! whole. The hello may be cut into frames of several packets, in any order. Deliberately absent: later packets, whose
//! keys only the two ends have, and versions whose salt we do not know.

pub(crate) mod keys;
mod pieces;

use super::{Cursor, Sniffed, Why, tls};
use keys::{Keys, Version};
use pieces::Pieces;

const ID_LIMIT: usize = 20; // RFC 9000 §17.2, for both versions
/// Packets that are opened for one flow: a hello of [`super::BUDGET`] bytes fits into eight, and some are sent twice.
const PACKETS_LIMIT: usize = 24;

/// Collects the first packets of one flow.
#[derive(Debug, Default)]
pub struct Initials {
    keys: Option<Keys>,
    pieces: Pieces,
    packets: usize,
    decided: Option<Sniffed>,
}

impl Initials {
    /// What the flow's datagrams tell, with this next one.
    pub fn handle(&mut self, datagram: &[u8]) -> Sniffed {
        if let Some(decided) = &self.decided {
            return decided.clone();
        }
        let sniffed = match self.datagram(datagram) {
            Ok(()) => self.pieces.tell(),
            Err(why) => Sniffed::None(why),
        };
        if sniffed != Sniffed::NeedMore {
            self.decided = Some(sniffed.clone());
        }
        sniffed
    }

    /// Several packets may share a datagram (RFC 9000 §12.2).
    fn datagram(&mut self, datagram: &[u8]) -> Result<(), Why> {
        let mut rest = datagram;
        let mut is_first = self.packets == 0;
        while !rest.is_empty() {
            match Packet::parse(rest) {
                Ok(packet) => {
                    rest = packet.behind;
                    self.packet(&packet)?;
                }
                // Behind an Initial packet there may be others, and padding.
                Err(_) if !is_first => break,
                Err(why) => return Err(why),
            }
            is_first = false;
        }
        Ok(())
    }

    fn packet(&mut self, packet: &Packet<'_>) -> Result<(), Why> {
        self.packets += 1;
        if self.packets > PACKETS_LIMIT {
            return Err(Why::TooLong);
        }
        let known = self.keys.take();
        let known = known.and_then(|keys| Some((keys.open(packet)?, keys)));
        let (frames, keys) = match known {
            Some((frames, keys)) => (frames, keys),
            None => {
                // The first packet, or the first one after a Retry (RFC 9001 §5.2), which begins the hello again.
                let keys = Keys::of_client(packet.version, packet.destination);
                let frames = keys.open(packet).ok_or(Why::Malformed)?;
                self.pieces = Pieces::default();
                (frames, keys)
            }
        };
        self.keys = Some(keys);
        self.frames(&frames)
    }

    fn frames(&mut self, frames: &[u8]) -> Result<(), Why> {
        let mut rest = Cursor(frames);
        while let Some(kind) = rest.u8() {
            frame(kind, &mut rest, &mut self.pieces)?;
        }
        Ok(())
    }
}

/// One frame of those that an Initial packet may hold (RFC 9000 §12.4).
fn frame(kind: u8, rest: &mut Cursor<'_>, pieces: &mut Pieces) -> Result<(), Why> {
    match kind {
        0x00 | 0x01 => Ok(()), // PADDING, PING
        0x02 | 0x03 => acknowledgement(kind, rest).ok_or(Why::Malformed),
        0x06 => {
            let offset = varint(rest).ok_or(Why::Malformed)?;
            let length = varint(rest).ok_or(Why::Malformed)?;
            let bytes = usize::try_from(length).ok().and_then(|n| rest.take(n));
            pieces.insert(offset, bytes.ok_or(Why::Malformed)?)
        }
        0x1c => Err(Why::Absent), // CONNECTION_CLOSE: no hello will follow
        _ => Err(Why::Malformed),
    }
}

fn acknowledgement(kind: u8, rest: &mut Cursor<'_>) -> Option<()> {
    varint(rest)?; // the largest
    varint(rest)?; // the delay
    let ranges = varint(rest)?;
    varint(rest)?; // the first range
    for _ in 0..ranges {
        varint(rest)?;
        varint(rest)?;
    }
    if kind == 0x03 {
        for _ in 0..3 {
            varint(rest)?;
        }
    }
    Some(())
}

/// RFC 9000 §16.
fn varint(rest: &mut Cursor<'_>) -> Option<u64> {
    let first = rest.u8()?;
    let more = rest.take((1 << (first >> 6)) - 1)?;
    let start = u64::from(first & 0x3f);
    Some(more.iter().fold(start, |sum, &b| (sum << 8) | u64::from(b)))
}

/// An Initial packet, still encrypted.
struct Packet<'a> {
    version: Version,
    destination: &'a [u8],
    /// From its first byte to its last.
    whole: &'a [u8],
    /// Where the number of the packet stands in it.
    number_at: usize,
    /// What follows it in the datagram.
    behind: &'a [u8],
}

impl<'a> Packet<'a> {
    /// RFC 9000 §17.2.2.
    fn parse(bytes: &'a [u8]) -> Result<Self, Why> {
        let mut rest = Cursor(bytes);
        let first = rest.u8().ok_or(Why::Unknown)?;
        let version = rest.take(4).ok_or(Why::Unknown)?;
        let version = Version::of(version).filter(|_| first & 0x80 != 0);
        let version = version.ok_or(Why::Unknown)?;
        if (first >> 4) & 3 != version.initial_type() {
            return Err(Why::Unknown);
        }
        let mut id = || rest.vector(1).filter(|id| id.len() <= ID_LIMIT);
        let destination = id().ok_or(Why::Malformed)?;
        let _source = id().ok_or(Why::Malformed)?;
        let token = varint(&mut rest).and_then(|n| usize::try_from(n).ok());
        token.and_then(|n| rest.take(n)).ok_or(Why::Malformed)?;
        let length = varint(&mut rest).and_then(|n| usize::try_from(n).ok());
        let number_at = bytes.len() - rest.0.len();
        length.and_then(|n| rest.take(n)).ok_or(Why::Malformed)?;
        let (whole, behind) = bytes.split_at(bytes.len() - rest.0.len());
        Ok(Self {
            version,
            destination,
            whole,
            number_at,
            behind,
        })
    }
}

impl Pieces {
    fn tell(&self) -> Sniffed {
        match tls::hello(self.start()) {
            Sniffed::None(Why::Unknown) => Sniffed::None(Why::Malformed),
            told @ (Sniffed::Name(_) | Sniffed::NeedMore | Sniffed::None(_)) => told,
        }
    }
}

#[cfg(any(test, fuzzing))]
pub(crate) mod seal;
