//! Variable-length integers of RFC 9000 §16: the first two bits say how many bytes follow.

/// The largest value that can be written.
pub(super) const MAX: u64 = (1 << 62) - 1;

/// Reads one integer: its value and its length in bytes, or `None` while bytes are missing.
pub(super) fn read(bytes: &[u8]) -> Option<(u64, usize)> {
    let first = *bytes.first()?;
    let length = 1usize << (first >> 6);
    let tail = bytes.get(1..length)?;
    let value = tail.iter().fold(u64::from(first & 0x3f), |value, &byte| {
        (value << 8) | u64::from(byte)
    });
    Some((value, length))
}

/// Writes the shortest form of `value`, which the caller keeps at or below [`MAX`], and returns its length.
pub(super) fn write(value: u64, into: &mut [u8; 8]) -> usize {
    debug_assert!(value <= MAX, "offsets and epochs stay below 2^62");
    let (length, mark) = match value {
        0..=0x3f => (1usize, 0u64),
        0x40..=0x3fff => (2, 1),
        0x4000..=0x3fff_ffff => (4, 2),
        _ => (8, 3),
    };
    let bits = 8 * length - 2;
    let marked = (value & MAX) | (mark << bits);
    let bytes = marked.to_be_bytes();
    into[..length].copy_from_slice(&bytes[8 - length..]);
    length
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_value_round_trips_in_its_shortest_form(value in 0..=MAX, shift in 0u32..62) {
            let value = value >> shift;
            let mut bytes = [0; 8];
            let length = write(value, &mut bytes);
            prop_assert_eq!(read(&bytes[..length]), Some((value, length)));
            prop_assert_eq!(read(&bytes[..length - 1]), None);
        }
    }

    // RFC 9000 §A.1
    #[test]
    fn reads_the_examples_of_the_rfc() {
        assert_eq!(
            read(&[0xc2, 0x19, 0x7c, 0x5e, 0xff, 0x14, 0xe8, 0x8c]),
            Some((151_288_809_941_952_652, 8))
        );
        assert_eq!(read(&[0x9d, 0x7f, 0x3e, 0x7d]), Some((494_878_333, 4)));
        assert_eq!(read(&[0x7b, 0xbd]), Some((15_293, 2)));
        assert_eq!(
            read(&[0x40, 0x25]),
            Some((37, 2)),
            "not minimal, but lawful"
        );
    }
}
