//! Ethernet frames, as far as a wire looks into them: what must always pass, and where a bit can be flipped.

use std::ops::Range;

const ETHERNET: usize = 14;
const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];
const IPV6_HEADER: usize = 40;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
// Listener reports are the only packets of a lab with options for every router.
const HOP_BY_HOP: u8 = 0;
// RFC 4861 and RFC 2710: what IPv4 leaves to the layer below, from listener queries to redirects; RFC 3810's report.
const NEIGHBOURS: [std::ops::RangeInclusive<u8>; 2] = [130..=137, 143..=143];

/// Whether a frame carries IP and is none of what finds neighbours: the rest passes a wire that is up unharmed,
/// because losing it would be another fault than the one that was asked for.
#[must_use]
pub fn can_suffer(frame: &[u8]) -> bool {
    match frame.get(12..ETHERNET) {
        Some(kind) if kind == IPV4 => true,
        Some(kind) if kind == IPV6 => {
            let next = frame.get(ETHERNET + 6);
            let message = frame.get(ETHERNET + IPV6_HEADER).unwrap_or(&0);
            let is_neighbours = NEIGHBOURS.iter().any(|range| range.contains(message));
            next != Some(&HOP_BY_HOP) && (next != Some(&ICMPV6) || !is_neighbours)
        }
        _ => false,
    }
}

/// The length of the IP packet in a frame.
#[must_use]
pub fn packet_length(frame: &[u8]) -> usize {
    frame.len().saturating_sub(ETHERNET)
}

/// Flips a bit behind the IP header; the transport's checksum does not fit any more. False when there is nothing
/// to flip.
pub fn corrupt(frame: &mut [u8], choice: u64) -> bool {
    let Some(segment) = segment(frame) else {
        return false;
    };
    flip(&mut frame[segment.range], choice).is_some()
}

/// Flips a bit of what TCP or UDP carries and makes the checksum fit again. False when there is nothing to flip.
pub fn forge(frame: &mut [u8], choice: u64) -> bool {
    let Some(segment) = segment(frame) else {
        return false;
    };
    let transport = &mut frame[segment.range];
    let (payload, checksum) = match segment.transport {
        TCP => {
            let Some(offset) = transport.get(12) else {
                return false;
            };
            (usize::from(offset >> 4) * 4, 16)
        }
        UDP => (8, 6),
        _ => return false,
    };
    if payload >= transport.len() || payload < 8 {
        return false;
    }
    let before = transport.to_vec();
    let Some(at) = flip(&mut transport[payload..], choice) else {
        return false;
    };
    let word = (payload + at) & !1;
    let old = read_word(&before, word);
    let new = read_word(transport, word);
    let sum = read_word(transport, checksum);
    // RFC 768: no checksum at all, which fits everything.
    if segment.transport == UDP && sum == 0 {
        return true;
    }
    // RFC 1624, equation 3.
    let mut total = u32::from(!sum) + u32::from(!old) + u32::from(new);
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    let [high, low] = total.to_be_bytes()[2..] else {
        return false;
    };
    let mut fitting = !u16::from_be_bytes([high, low]);
    if segment.transport == UDP && fitting == 0 {
        fitting = 0xffff;
    }
    transport[checksum..checksum + 2].copy_from_slice(&fitting.to_be_bytes());
    true
}

struct Segment {
    transport: u8,
    range: Range<usize>,
}

/// The bytes behind the IP header, without the padding of short frames.
fn segment(frame: &[u8]) -> Option<Segment> {
    let packet = frame.get(ETHERNET..)?;
    let (transport, begin, end) = match frame.get(12..ETHERNET)? {
        kind if kind == IPV4 => {
            let header = usize::from(packet.first()? & 0x0f) * 4;
            let fragment = read_word(packet.get(6..8)?, 0) & 0x1fff;
            if fragment != 0 {
                return None;
            }
            let total = usize::from(read_word(packet.get(2..4)?, 0));
            (*packet.get(9)?, header, total)
        }
        kind if kind == IPV6 => {
            let length = usize::from(read_word(packet.get(4..6)?, 0));
            (*packet.get(6)?, IPV6_HEADER, IPV6_HEADER + length)
        }
        _ => return None,
    };
    (begin < end && end <= packet.len()).then(|| Segment {
        transport,
        range: ETHERNET + begin..ETHERNET + end,
    })
}

fn flip(bytes: &mut [u8], choice: u64) -> Option<usize> {
    let bits = u64::try_from(bytes.len()).ok()?.checked_mul(8)?;
    let bit = choice.checked_rem(bits)?;
    let at = usize::try_from(bit / 8).ok()?;
    *bytes.get_mut(at)? ^= 1 << (bit % 8);
    Some(at)
}

/// A word of sixteen bits; the byte behind an odd end counts as zero, as in the checksum.
fn read_word(bytes: &[u8], at: usize) -> u16 {
    let byte = |at: usize| bytes.get(at).copied().unwrap_or(0);
    u16::from_be_bytes([byte(at), byte(at + 1)])
}
