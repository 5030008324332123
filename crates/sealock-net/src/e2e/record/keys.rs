//! The keys of both directions after the handshake, and how they are renewed.
//!
//! A key is renewed after a number of records that both ends count for themselves, so nobody has to say so: between two
//! that have proved themselves the stream loses and repeats nothing. The next key comes from a secret that the two
//! exported from their handshake (RFC 8446 §7.5), and each secret makes the next one and is overwritten: a key that got
//! out opens nothing that came before it.

use aws_lc_rs::hkdf;
use bytes::{Bytes, BytesMut};
use rustls::crypto::cipher::{AeadKey, Iv};
use rustls::{ConnectionTrafficSecrets, Error};
use sealock_core::secret::Secret;

use crate::transport::record::cipher::{Key, Kind, Opener, PLAINTEXT, Sealer};

/// Uses of a key after which it is renewed. AES-GCM is good for 2^24.5 full records (RFC 8446 §5.5).
const WORN: u64 = 1 << 23;
/// What a key, the number that its nonces begin with, and the secret of the next key are made of.
const KEY: &[u8] = b"sealock key";
const IV: &[u8] = b"sealock iv";
const NEXT: &[u8] = b"sealock next";

/// What the next keys of a direction come from.
#[derive(Debug)]
pub(super) struct Renewal(pub(super) Secret<[u8; 32]>);

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
pub(super) struct Seals {
    sealer: Sealer,
    renewal: Renewal,
}

impl Seals {
    pub(super) fn new(
        first: (u64, ConnectionTrafficSecrets),
        renewal: Renewal,
    ) -> Result<Self, Error> {
        let sealer = Sealer::new(Key::new(first)?);
        Ok(Self { sealer, renewal })
    }

    /// The records of these bytes.
    pub(super) fn seal(&mut self, mut plaintext: &[u8]) -> Result<Bytes, Error> {
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
    pub(super) fn word(&mut self, kind: Kind, word: &[u8]) -> Result<Bytes, Error> {
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
    pub(super) fn wear(&mut self, left: u64) {
        self.sealer.key.wear(WORN - left);
    }
}

/// What the other side says.
pub(super) struct Opens {
    opener: Opener,
    renewal: Renewal,
}

impl Opens {
    /// Begins with what came behind the handshake.
    pub(super) fn new(
        first: (u64, ConnectionTrafficSecrets),
        renewal: Renewal,
        buffer: BytesMut,
    ) -> Result<Self, Error> {
        let key = Key::new(first)?;
        let opener = Opener { key, buffer };
        Ok(Self { opener, renewal })
    }

    /// Takes what came; it is opened in its own place, where nobody else holds it.
    pub(super) fn push(&mut self, bytes: Bytes) {
        let buffer = &mut self.opener.buffer;
        if buffer.is_empty() {
            *buffer = bytes.into();
        } else {
            buffer.extend_from_slice(&bytes);
        }
    }

    /// The content of the next record, or nothing until more has come.
    pub(super) fn open(&mut self) -> Result<Option<(Kind, BytesMut)>, Error> {
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
    pub(super) fn waiting(&self) -> usize {
        self.opener.buffer.len()
    }

    /// As if so many records were left to the key.
    #[cfg(test)]
    pub(super) fn wear(&mut self, left: u64) {
        self.opener.key.wear(WORN - left);
    }
}
