//! The keys by which a restarted node still recognises the connections of its former life.
//!
//! A stateless reset (RFC 9000 §10.3) tells a peer at once that its connection is gone, if the new process knows the
//! old reset key and sees from a connection id that the old process made it. Both are random and stay on this machine.

use std::path::Path;
use std::time::Duration;

use aws_lc_rs::hmac;
use noq::{ConnectionId, ConnectionIdGenerator, InvalidCid};
use sealock_core::secret::Secret;

use crate::files::{self, FileError};

const KEY_LENGTH: usize = 32;

/// The reset key and the connection-id key of an endpoint.
#[derive(Debug, Clone)]
pub struct TransportKeys {
    reset: Secret<[u8; KEY_LENGTH]>,
    connection_id: Secret<[u8; KEY_LENGTH]>,
}

/// Why the keys on disk were not used.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The file is unreadable or open to others.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file is not what this program wrote.
    #[error("the transport keys are damaged; hint: remove the file, a new one is made")]
    Damaged,
}

impl TransportKeys {
    /// Makes new keys.
    #[must_use]
    pub fn generate() -> Self {
        Self {
            reset: Secret::new(rand::random()),
            connection_id: Secret::new(rand::random()),
        }
    }

    /// Reads the keys at `path`, or makes new ones and stores them there.
    ///
    /// # Errors
    /// When the file is open to others, damaged, or cannot be written.
    pub fn load_or_create(path: &Path) -> Result<Self, KeysError> {
        match files::read_private(path) {
            Ok(bytes) => Self::from_bytes(&zeroize::Zeroizing::new(bytes)),
            Err(error) if error.is_not_found() => {
                let keys = Self::generate();
                let both = [*keys.reset.expose(), *keys.connection_id.expose()];
                files::write_private(path, zeroize::Zeroizing::new(both).as_flattened())?;
                Ok(keys)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, KeysError> {
        let (reset, connection_id) = bytes
            .split_at_checked(KEY_LENGTH)
            .ok_or(KeysError::Damaged)?;
        let key = |bytes: &[u8]| bytes.try_into().map(Secret::new);
        match (key(reset), key(connection_id)) {
            (Ok(reset), Ok(connection_id)) => Ok(Self {
                reset,
                connection_id,
            }),
            (Err(_), _) | (_, Err(_)) => Err(KeysError::Damaged),
        }
    }

    pub(super) fn reset_key(&self) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, self.reset.expose())
    }

    pub(super) fn connection_ids(&self) -> KeyedConnectionIds {
        KeyedConnectionIds {
            key: hmac::Key::new(hmac::HMAC_SHA256, self.connection_id.expose()),
        }
    }
}

const NONCE_LENGTH: usize = 8; // 2^32 connections before two are likely to share one
const TAG_LENGTH: usize = 4; // one forged id in 2^32 costs us a reset packet

/// Makes connection ids that this machine recognises as its own, and nobody can link.
#[derive(Debug, Clone)]
pub(super) struct KeyedConnectionIds {
    key: hmac::Key,
}

impl KeyedConnectionIds {
    fn tag(&self, nonce: &[u8]) -> [u8; TAG_LENGTH] {
        let mut tag = [0; TAG_LENGTH];
        tag.copy_from_slice(&hmac::sign(&self.key, nonce).as_ref()[..TAG_LENGTH]);
        tag
    }
}

impl ConnectionIdGenerator for KeyedConnectionIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let nonce: [u8; NONCE_LENGTH] = rand::random();
        ConnectionId::new(&[nonce.as_slice(), &self.tag(&nonce)].concat())
    }

    fn validate(&self, cid: ConnectionId) -> Result<(), InvalidCid> {
        let (nonce, tag) = cid.split_at_checked(NONCE_LENGTH).ok_or(InvalidCid)?;
        if self.tag(nonce) == tag {
            Ok(())
        } else {
            Err(InvalidCid)
        }
    }

    fn cid_len(&self) -> usize {
        NONCE_LENGTH + TAG_LENGTH
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_survive_on_disk_and_recognise_ids_of_the_former_process() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let state = dir.path().join("state");
        files::ensure_private_dir(&state).expect("made");
        let path = state.join("transport.key");
        let first = TransportKeys::load_or_create(&path).expect("made");
        let id = first.connection_ids().generate_cid();
        let second = TransportKeys::load_or_create(&path).expect("read");
        assert!(second.connection_ids().validate(id).is_ok());
        assert!(
            TransportKeys::generate()
                .connection_ids()
                .validate(id)
                .is_err()
        );
        assert!(
            second
                .connection_ids()
                .validate(ConnectionId::new(&[1; 5]))
                .is_err()
        );
        assert_eq!(
            hmac::sign(&first.reset_key(), b"x").as_ref(),
            hmac::sign(&second.reset_key(), b"x").as_ref()
        );
        files::write_private(&path, b"short").expect("written");
        assert!(matches!(
            TransportKeys::load_or_create(&path),
            Err(KeysError::Damaged)
        ));
    }
}
