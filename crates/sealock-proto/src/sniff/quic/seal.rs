//! Initial packets as clients make them, for tests and the fuzzer.

use super::keys::{Keys, Version};

/// An Initial packet of a client that chose this id, with these frames, padded as RFC 9000 §14.1 asks when `is_padded`.
pub(crate) fn initial(
    version: Version,
    keyed_by: &[u8],
    destination: &[u8],
    number: u32,
    frames: &[u8],
) -> Vec<u8> {
    let wire = match version {
        Version::One => 0x0000_0001_u32,
        Version::Two => 0x6b33_43cf,
    };
    let id_length = u8::try_from(destination.len()).expect("an id");
    let mut head = vec![0xc0 | version.initial_type() << 4 | 3];
    head.extend_from_slice(&wire.to_be_bytes());
    head.push(id_length);
    head.extend_from_slice(destination);
    head.extend_from_slice(&[0, 0]); // no source id, no token
    let length = u16::try_from(4 + frames.len() + 16).expect("a packet");
    head.extend_from_slice(&(0x4000 | length).to_be_bytes());
    let number_at = head.len();
    head.extend_from_slice(&number.to_be_bytes());
    let keys = Keys::of_client(version, keyed_by);
    let mut body = frames.to_vec();
    keys.seal(&head, number.into(), &mut body);
    let sample = body.first_chunk().expect("a tag at least");
    let mask = keys.mask(*sample);
    head[0] ^= mask[0] & 0x0f;
    for (byte, mask) in head[number_at..].iter_mut().zip(&mask[1..]) {
        *byte ^= mask;
    }
    head.extend_from_slice(&body);
    head
}

/// A CRYPTO frame.
pub(crate) fn crypto(offset: usize, bytes: &[u8]) -> Vec<u8> {
    let varint = |n: usize| (0x4000 | u16::try_from(n).expect("short")).to_be_bytes();
    let mut frame = vec![0x06];
    frame.extend_from_slice(&varint(offset));
    frame.extend_from_slice(&varint(bytes.len()));
    frame.extend_from_slice(bytes);
    frame
}
