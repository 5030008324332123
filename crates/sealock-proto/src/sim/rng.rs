//! A small seeded generator (xoshiro256**, seeded by splitmix64) and a pattern whose bytes depend on their position.

#[derive(Debug, Clone)]
pub(crate) struct Rng([u64; 4]);

pub(crate) fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        let a = mix(seed);
        let b = mix(a);
        let c = mix(b);
        Self([a, b, c, mix(c)])
    }

    pub(crate) fn next(&mut self) -> u64 {
        let s = &mut self.0;
        let result = s[1].wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// A value in `0..=max`.
    pub(crate) fn upto(&mut self, max: u64) -> u64 {
        if max == u64::MAX {
            return self.next();
        }
        let wide = u128::from(self.next()) * (u128::from(max) + 1);
        u64::try_from(wide >> 64).expect("below max + 1")
    }

    pub(crate) fn size(&mut self, max: usize) -> usize {
        usize::try_from(self.upto(max as u64)).expect("at most max")
    }

    /// Small values as often as large ones: uniform in the number of bits.
    pub(crate) fn scaled(&mut self, max: u64) -> u64 {
        let bits = u64::from(64 - max.leading_zeros());
        let shift = self.upto(bits);
        self.upto(max >> shift)
    }

    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.upto(99) < percent
    }
}

/// Bytes whose value at each position depends on the position and on `key`.
pub(crate) fn pattern(key: u64, length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length + 8);
    let mut word = 0;
    while bytes.len() < length {
        bytes.extend_from_slice(&mix(key ^ word).to_le_bytes());
        word += 1;
    }
    bytes.truncate(length);
    bytes
}
