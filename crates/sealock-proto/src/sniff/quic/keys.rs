//! The keys of a client's Initial packets, and what they open (RFC 9001 §5, RFC 9369 §3).

use aes_gcm::aead::AeadInPlace;
use aes_gcm::aes::Aes128;
use aes_gcm::aes::cipher::{BlockEncrypt, KeyInit};
use aes_gcm::{Aes128Gcm, Nonce, Tag};
use hmac::{Hmac, Mac};
use sha2::Sha256;

use super::Packet;

const TAG: usize = 16; // RFC 9001 §5.3
const SAMPLE: usize = 16; // RFC 9001 §5.4.2
/// The number of a packet is sampled as if it were as long as it can be.
const NUMBER_LIMIT: usize = 4;

/// A version of QUIC whose Initial packets can be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    /// RFC 9000.
    One,
    /// RFC 9369.
    Two,
}

impl Version {
    /// The version with this number on the wire.
    pub(crate) fn of(number: &[u8]) -> Option<Self> {
        match number {
            [0, 0, 0, 1] => Some(Self::One),
            [0x6b, 0x33, 0x43, 0xcf] => Some(Self::Two),
            _ => None,
        }
    }

    /// The two bits that say «Initial» in a packet's first byte.
    pub(crate) fn initial_type(self) -> u8 {
        match self {
            Self::One => 0,
            Self::Two => 1,
        }
    }

    fn salt(self) -> [u8; 20] {
        match self {
            // RFC 9001 §5.2
            Self::One => [
                0x38, 0x76, 0x2c, 0xf7, 0xf5, 0x59, 0x34, 0xb3, 0x4d, 0x17, 0x9a, 0xe6, 0xa4, 0xc8,
                0x0c, 0xad, 0xcc, 0xbb, 0x7f, 0x0a,
            ],
            // RFC 9369 §3.3.1
            Self::Two => [
                0x0d, 0xed, 0xe3, 0xde, 0xf7, 0x00, 0xa6, 0xdb, 0x81, 0x93, 0x81, 0xbe, 0x6e, 0x26,
                0x9d, 0xcb, 0xf9, 0xbd, 0x2e, 0xd9,
            ],
        }
    }

    /// RFC 9001 §5.1, RFC 9369 §3.3.2.
    fn labels(self) -> [&'static str; 3] {
        match self {
            Self::One => ["quic key", "quic iv", "quic hp"],
            Self::Two => ["quicv2 key", "quicv2 iv", "quicv2 hp"],
        }
    }
}

/// Opens the Initial packets of one client.
pub(crate) struct Keys {
    version: Version,
    cipher: Aes128Gcm,
    iv: [u8; 12],
    header: Aes128,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys").finish_non_exhaustive()
    }
}

impl Keys {
    /// The keys of the client that chose this id for its server.
    pub(crate) fn of_client(version: Version, id: &[u8]) -> Self {
        let initial = hmac(&version.salt(), &[id]);
        let client: [u8; 32] = expand(&initial, "client in");
        let [key, iv, header] = version.labels();
        let key: [u8; 16] = expand(&client, key);
        let header: [u8; 16] = expand(&client, header);
        Self {
            version,
            cipher: Aes128Gcm::new(&key.into()),
            iv: expand(&client, iv),
            header: Aes128::new(&header.into()),
        }
    }

    /// What protects the header: RFC 9001 §5.4.3.
    pub(crate) fn mask(&self, sample: [u8; SAMPLE]) -> [u8; SAMPLE] {
        let mut block = sample.into();
        self.header.encrypt_block(&mut block);
        block.into()
    }

    fn nonce(&self, number: u64) -> [u8; 12] {
        let mut nonce = self.iv;
        for (byte, number) in nonce[4..].iter_mut().zip(number.to_be_bytes()) {
            *byte ^= number;
        }
        nonce
    }

    /// The packet's frames; `None` when it is not one of these keys, or damaged.
    pub(super) fn open(&self, packet: &Packet<'_>) -> Option<Vec<u8>> {
        if packet.version != self.version {
            return None;
        }
        let sampled_at = packet.number_at + NUMBER_LIMIT;
        let sample = packet.whole.get(sampled_at..)?.first_chunk::<SAMPLE>()?;
        let mask = self.mask(*sample);
        let mut head = packet.whole[..sampled_at].to_vec();
        head[0] ^= mask[0] & 0x0f;
        let length = usize::from(head[0] & 3) + 1;
        head.truncate(packet.number_at + length);
        let mut number = 0;
        for (byte, mask) in head[packet.number_at..].iter_mut().zip(&mask[1..]) {
            *byte ^= mask;
            // A client has few Initial packets: the low bytes are the number.
            number = (number << 8) | u64::from(*byte);
        }
        let sealed = &packet.whole[packet.number_at + length..];
        let (body, tag) = sealed.split_at_checked(sealed.len().checked_sub(TAG)?)?;
        let mut body = body.to_vec();
        let nonce = self.nonce(number);
        let tag = Tag::from_slice(tag);
        self.cipher
            .decrypt_in_place_detached(Nonce::from_slice(&nonce), &head, &mut body, tag)
            .ok()?;
        Some(body)
    }

    /// Encrypts frames under a whole, unprotected header.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn seal(&self, head: &[u8], number: u64, frames: &mut Vec<u8>) {
        let nonce = self.nonce(number);
        let tag = self
            .cipher
            .encrypt_in_place_detached(Nonce::from_slice(&nonce), head, frames)
            .expect("far below the limit of the cipher");
        frames.extend_from_slice(&tag);
    }
}

fn hmac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mut mac =
        <Hmac<Sha256> as Mac>::new_from_slice(key).expect("a key of any length is a lawful one");
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

/// HKDF-Expand-Label (RFC 8446 §7.1) of at most one block, without a context.
fn expand<const N: usize>(secret: &[u8; 32], label: &str) -> [u8; N] {
    const { assert!(N <= 32) };
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the longest label has 16 bytes"
    )]
    let (size, length) = (N as u16, label.len() as u8 + 6);
    let block = hmac(
        secret,
        &[
            &size.to_be_bytes(),
            &[length],
            b"tls13 ",
            label.as_bytes(),
            &[0, 1],
        ],
    );
    std::array::from_fn(|at| block[at])
}
