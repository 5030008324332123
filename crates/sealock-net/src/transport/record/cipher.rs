//! Seals and opens TLS 1.3 records (RFC 8446 §5) in the very buffers that they travel in.
//!
//! Keys come from rustls, which made the handshake; numbers and nonces are counted here. Deliberately absent: when keys
//! are renewed, and what a record means.

use aws_lc_rs::aead::{
    AES_128_GCM, AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey,
};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use rustls::{ConnectionTrafficSecrets, Error, PeerMisbehaved};

const HEADER: usize = 5; // type, version (2 bytes), length (2)
const TAG: usize = 16; // of all three suites
/// The most that one record holds.
pub(crate) const PLAINTEXT: usize = 1 << 14;
const EXPANSION: usize = 256; // RFC 8446 §5.2: a record with its padding and its tag

/// What a record carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Alert,
    Handshake,
    Data,
}

impl Kind {
    fn number(self) -> u8 {
        match self {
            Self::Alert => 21,
            Self::Handshake => 22,
            Self::Data => 23,
        }
    }

    fn from_number(number: u8) -> Option<Self> {
        let kinds = [Self::Alert, Self::Handshake, Self::Data];
        kinds.into_iter().find(|kind| kind.number() == number)
    }
}

/// The key of one direction, and how often it was used.
pub(crate) struct Key {
    aead: LessSafeKey,
    iv: [u8; 12],
    sequence: u64,
}

impl Key {
    pub(crate) fn new((sequence, secrets): (u64, ConnectionTrafficSecrets)) -> Result<Self, Error> {
        let (algorithm, key, iv) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&CHACHA20_POLY1305, key, iv),
            _ => return Err(Error::EncryptError), // a suite of a later library, which we do not offer
        };
        let key = UnboundKey::new(algorithm, key.as_ref()).map_err(|_| Error::EncryptError)?;
        let iv = iv.as_ref().try_into().map_err(|_| Error::EncryptError)?;
        Ok(Self {
            aead: LessSafeKey::new(key),
            iv,
            sequence,
        })
    }

    /// As if it had been used so often.
    #[cfg(test)]
    pub(crate) fn wear(&mut self, uses: u64) {
        self.sequence = uses;
    }

    pub(crate) fn uses(&self) -> u64 {
        self.sequence
    }

    // RFC 8446 §5.3. The key is renewed long before its numbers end.
    fn nonce(&mut self) -> Nonce {
        let mut nonce = self.iv;
        for (byte, number) in nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= number;
        }
        self.sequence += 1;
        Nonce::assume_unique_for_key(nonce)
    }
}

fn header(length: usize) -> [u8; HEADER] {
    let [.., high, low] = length.to_be_bytes();
    [Kind::Data.number(), 3, 3, high, low]
}

/// Joins what is written to records, and seals those that are full.
pub(crate) struct Sealer {
    pub(crate) key: Key,
    buffer: BytesMut,
    /// Where the record begins that is being filled; what is before it is ready to leave.
    open: usize,
}

impl Sealer {
    pub(crate) fn new(key: Key) -> Self {
        Self {
            key,
            buffer: BytesMut::new(),
            open: 0,
        }
    }

    /// Takes bytes until so many are `ready`; says how many it took.
    pub(crate) fn push(&mut self, bytes: &[u8], ready: usize) -> Result<usize, Error> {
        let mut rest = bytes;
        while !rest.is_empty() && self.open < ready {
            self.begin(rest.len().min(ready));
            let room = self.room();
            let (part, behind) = rest.split_at(room.min(rest.len()));
            self.buffer.extend_from_slice(part);
            rest = behind;
            if part.len() == room {
                self.seal(Kind::Data)?;
            }
        }
        Ok(bytes.len() - rest.len())
    }

    /// How much fits into the record that is being filled.
    pub(crate) fn room(&self) -> usize {
        PLAINTEXT - (self.buffer.len() - self.open).saturating_sub(HEADER)
    }

    /// Makes room for about so many bytes that are ready, in whole records.
    pub(crate) fn make_room(&mut self, ready: usize) {
        let records = ready / PLAINTEXT + 2; // the last one may begin just before it is enough
        let all = records * (HEADER + PLAINTEXT + 1 + TAG);
        self.buffer.reserve(all.saturating_sub(self.buffer.len()));
    }

    /// Makes room for so many bytes, behind a header.
    fn begin(&mut self, length: usize) {
        let overhead = (HEADER + 1 + TAG) * (length / PLAINTEXT + 1);
        self.buffer.reserve(length + overhead);
        if self.buffer.len() == self.open {
            self.buffer.put_bytes(0, HEADER);
        }
    }

    /// Seals the record that is being filled, if there is one.
    pub(crate) fn close(&mut self) -> Result<(), Error> {
        if self.buffer.len() > self.open {
            self.seal(Kind::Data)?;
        }
        Ok(())
    }

    /// Seals a record of its own for a word of TLS itself.
    pub(crate) fn word(&mut self, kind: Kind, word: &[u8]) -> Result<(), Error> {
        self.close()?;
        self.begin(word.len());
        self.buffer.extend_from_slice(word);
        self.seal(kind)
    }

    fn seal(&mut self, kind: Kind) -> Result<(), Error> {
        self.buffer.put_u8(kind.number());
        let (head, body) = self.buffer[self.open..].split_at_mut(HEADER);
        head.copy_from_slice(&header(body.len() + TAG));
        let nonce = self.key.nonce();
        let tag = (self.key.aead).seal_in_place_separate_tag(nonce, Aad::from(&*head), body);
        let tag = tag.map_err(|_| Error::EncryptError)?;
        self.buffer.extend_from_slice(tag.as_ref());
        self.open = self.buffer.len();
        Ok(())
    }

    /// What may leave.
    pub(crate) fn ready(&self) -> &[u8] {
        &self.buffer[..self.open]
    }

    /// All that may leave, where nothing is left open. Keeps no buffer.
    pub(crate) fn take(&mut self) -> Bytes {
        self.open = 0;
        std::mem::take(&mut self.buffer).freeze()
    }

    /// So much has left.
    pub(crate) fn sent(&mut self, length: usize) {
        self.buffer.advance(length);
        self.open -= length;
    }
}

/// Finds records in what comes, and opens them.
pub(crate) struct Opener {
    pub(crate) key: Key,
    pub(crate) buffer: BytesMut,
}

impl Opener {
    /// The next record's content, or nothing until more has come.
    pub(crate) fn open(&mut self) -> Result<Option<(Kind, BytesMut)>, Error> {
        let Some(&[kind, _, _, high, low]) = self.buffer.first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let length = usize::from(u16::from_be_bytes([high, low]));
        if kind != Kind::Data.number() {
            return Err(PeerMisbehaved::IllegalMiddleboxChangeCipherSpec.into());
        }
        if length > PLAINTEXT + EXPANSION {
            return Err(Error::PeerSentOversizedRecord);
        }
        if self.buffer.len() < HEADER + length {
            return Ok(None);
        }
        let mut record = self.buffer.split_to(HEADER + length);
        let nonce = self.key.nonce();
        let (head, body) = record.split_at_mut(HEADER);
        let plain = (self.key.aead).open_in_place(nonce, Aad::from(&*head), body);
        let plain = plain.map_err(|_| Error::DecryptError)?;
        // The type is behind the content and before the padding, which is zeros.
        let Some(end) = plain.iter().rposition(|byte| *byte != 0) else {
            return Err(PeerMisbehaved::IllegalTlsInnerPlaintext.into());
        };
        let kind = Kind::from_number(plain[end]).ok_or(Error::DecryptError)?;
        if end > PLAINTEXT {
            return Err(Error::PeerSentOversizedRecord);
        }
        record.truncate(HEADER + end);
        record.advance(HEADER);
        Ok(Some((kind, record)))
    }
}
