//! The keys of both directions between two agents, and how they are renewed.
//!
//! A key is renewed after a number of records that both ends count for themselves, so nobody has to say so: between two
//! that have proved themselves nothing is lost and repeated. The next key comes from a secret that the two exported from
//! their handshake (RFC 8446 §7.5), and each secret makes the next one and is overwritten: a key that got
//! out opens nothing that came before it.

use aws_lc_rs::hkdf;
use bytes::{Bytes, BytesMut};
use rustls::crypto::cipher::{AeadKey, Iv};
use rustls::{ConnectionTrafficSecrets, Error};
use sealock_core::secret::Secret;

use super::cipher::{Key, Kind, Opener, PLAINTEXT, Sealer};

/// Uses of a key after which it is renewed. AES-GCM is good for 2^24.5 full records (RFC 8446 §5.5).
const WORN: u64 = 1 << 23;
/// What a key, the number that its nonces begin with, and the secret of the next key are made of.
const KEY: &[u8] = b"sealock key";
const IV: &[u8] = b"sealock iv";
const NEXT: &[u8] = b"sealock next";

/// What the next keys of a direction come from.
#[derive(Debug)]
pub(crate) struct Renewal(pub(crate) Secret<[u8; 32]>);

/// A length of what is derived.
struct Length(usize);

impl hkdf::KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

impl Renewal {
    /// The next key.
    fn next(&mut self) -> Result<Key, Error> {
        let key = AeadKey::from(self.derive(KEY)?);
        let iv = Iv::from(self.derive(IV)?);
        self.0 = Secret::new(self.derive(NEXT)?);
        Key::new((0, ConnectionTrafficSecrets::Aes256Gcm { key, iv }))
    }

    fn derive<const N: usize>(&self, what: &[u8]) -> Result<[u8; N], Error> {
        let mut out = [0; N];
        // The secret is as good as random, so it needs no extraction (RFC 5869 §3.3).
        let secret = hkdf::Prk::new_less_safe(hkdf::HKDF_SHA256, self.0.expose());
        let derived = secret
            .expand(&[what], Length(N))
            .and_then(|okm| okm.fill(&mut out));
        derived.map_err(|_| Error::EncryptError)?;
        Ok(out)
    }
}

/// What this side says.
pub(crate) struct Seals {
    sealer: Sealer,
    renewal: Renewal,
}

impl Seals {
    pub(crate) fn new(
        first: (u64, ConnectionTrafficSecrets),
        renewal: Renewal,
    ) -> Result<Self, Error> {
        let sealer = Sealer::new(Key::new(first)?);
        Ok(Self { sealer, renewal })
    }

    /// Begins with a secret alone.
    pub(crate) fn from_secret(secret: Secret<[u8; 32]>) -> Result<Self, Error> {
        let mut renewal = Renewal(secret);
        let sealer = Sealer::new(renewal.next()?);
        Ok(Self { sealer, renewal })
    }

    /// Takes bytes until about so many are [`Self::ready`]; says how many it took.
    pub(crate) fn push(&mut self, bytes: &[u8], ready: usize) -> Result<usize, Error> {
        let mut rest = bytes;
        // At once for all that will be ready: a buffer that grows is copied each time.
        self.sealer.make_room(ready);
        while !rest.is_empty() && self.sealer.ready().len() < ready {
            // A record at a time, because a key may be worn after each.
            let (part, behind) = rest.split_at(self.sealer.room().min(rest.len()));
            self.sealer.push(part, usize::MAX)?;
            self.renew()?;
            rest = behind;
        }
        Ok(bytes.len() - rest.len())
    }

    /// Seals what was pushed and fills no record.
    pub(crate) fn close(&mut self) -> Result<(), Error> {
        self.sealer.close()?;
        self.renew()
    }

    /// What may leave.
    pub(crate) fn ready(&self) -> &[u8] {
        self.sealer.ready()
    }

    /// Keeps no buffer, where all has left.
    pub(crate) fn forget_buffer(&mut self) {
        drop(self.sealer.take());
    }

    /// So much of it has left.
    pub(crate) fn sent(&mut self, length: usize) {
        self.sealer.sent(length);
    }

    /// The records of these bytes.
    pub(crate) fn seal(&mut self, mut plaintext: &[u8]) -> Result<Bytes, Error> {
        while !plaintext.is_empty() {
            let records = usize::try_from(WORN - self.sealer.key.uses()).unwrap_or(1);
            let room = records.saturating_mul(PLAINTEXT).min(plaintext.len());
            let (part, rest) = plaintext.split_at(room);
            self.sealer.push(part, usize::MAX)?;
            self.sealer.close()?;
            self.renew()?;
            plaintext = rest;
        }
        Ok(self.sealer.take())
    }

    /// The record of a word of TLS itself.
    pub(crate) fn word(&mut self, kind: Kind, word: &[u8]) -> Result<Bytes, Error> {
        self.sealer.word(kind, word)?;
        self.renew()?;
        Ok(self.sealer.take())
    }

    fn renew(&mut self) -> Result<(), Error> {
        if self.sealer.key.uses() >= WORN {
            self.sealer.key = self.renewal.next()?;
        }
        Ok(())
    }

    /// As if so many records were left to the key.
    #[cfg(test)]
    pub(crate) fn wear(&mut self, left: u64) {
        self.sealer.key.wear(WORN - left);
    }
}

/// What the other side says.
pub(crate) struct Opens {
    opener: Opener,
    renewal: Renewal,
}

impl Opens {
    /// Begins with what came behind the handshake.
    pub(crate) fn new(
        first: (u64, ConnectionTrafficSecrets),
        renewal: Renewal,
        buffer: BytesMut,
    ) -> Result<Self, Error> {
        let key = Key::new(first)?;
        let opener = Opener { key, buffer };
        Ok(Self { opener, renewal })
    }

    /// Begins with a secret alone, and what came already.
    pub(crate) fn from_secret(secret: Secret<[u8; 32]>, buffer: BytesMut) -> Result<Self, Error> {
        let mut renewal = Renewal(secret);
        let key = renewal.next()?;
        let opener = Opener { key, buffer };
        Ok(Self { opener, renewal })
    }

    /// Where what comes is read to.
    pub(crate) fn buffer(&mut self) -> &mut BytesMut {
        &mut self.opener.buffer
    }

    /// Takes what came; it is opened in its own place, where nobody else holds it.
    pub(crate) fn push(&mut self, bytes: Bytes) {
        let buffer = &mut self.opener.buffer;
        if buffer.is_empty() {
            *buffer = bytes.into();
        } else {
            buffer.extend_from_slice(&bytes);
        }
    }

    /// The content of the next record, or nothing until more has come.
    pub(crate) fn open(&mut self) -> Result<Option<(Kind, BytesMut)>, Error> {
        let opened = self.opener.open()?;
        if opened.is_some() && self.opener.key.uses() >= WORN {
            self.opener.key = self.renewal.next()?;
        }
        if self.opener.buffer.is_empty() {
            // Empty, it would still hold all that it was cut from.
            self.opener.buffer = BytesMut::new();
        }
        Ok(opened)
    }

    /// How much waits to be opened.
    pub(crate) fn waiting(&self) -> usize {
        self.opener.buffer.len()
    }

    /// As if so many records were left to the key.
    #[cfg(test)]
    pub(crate) fn wear(&mut self, left: u64) {
        self.opener.key.wear(WORN - left);
    }
}
