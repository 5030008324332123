//! Our identity on disk: `key.pem`, `cert.pem`, `trust.json`, all private.
//!
//! A renewal replaces key and certificate. The new key is written as `next-key.pem` before the certificate and takes
//! its place after it, so a crash at any point leaves a pair that fits.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::{KeyError, KeyPair, Svid, SvidError, Trust};
use crate::files::{self, FileError};

const KEY: &str = "key.pem";
const NEXT_KEY: &str = "next-key.pem";
const CERTIFICATE: &str = "cert.pem";
const TRUST: &str = "trust.json";
const LOCK: &str = "identity.lock";

/// The directory that holds a node's identity.
#[derive(Debug, Clone)]
pub struct IdentityDir {
    path: PathBuf,
}

/// Why the identity on disk was not used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file is missing, unreadable or open to others.
    #[error(transparent)]
    File(#[from] FileError),
    /// The key is damaged.
    #[error("{} holds no usable key", path.display())]
    Key {
        /// The key's file.
        path: PathBuf,
        /// What is wrong with it.
        source: KeyError,
    },
    /// The certificate is damaged.
    #[error("{} holds no certificate in PEM", path.display())]
    Certificate {
        /// The certificate's file.
        path: PathBuf,
    },
    /// Key and certificate are not a pair, or the certificate is not an identity.
    #[error("{} is of no use; hint: join again with a new token", path.display())]
    Svid {
        /// The certificate's file.
        path: PathBuf,
        /// What is wrong with it.
        source: SvidError,
    },
    /// The trust file is damaged.
    #[error("{} is damaged; hint: join again with a new token", path.display())]
    Trust {
        /// The trust file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

impl IdentityDir {
    /// Uses `path`, which is made with mode 0700 if it is missing.
    ///
    /// # Errors
    /// When it cannot be made or is open to others.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, FileError> {
        let path = path.into();
        files::ensure_private_dir(&path)?;
        Ok(Self { path })
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Keeps the other programs of this machine from replacing the identity, until dropped; nothing while one of them
    /// does so.
    ///
    /// # Errors
    /// When the lock cannot be made.
    pub fn try_lock(&self) -> Result<Option<File>, FileError> {
        let path = self.path.join(LOCK);
        let failed = |source| FileError::Io {
            verb: "locked",
            path: path.clone(),
            source,
        };
        let mut open = OpenOptions::new();
        let open = open.create(true).truncate(false).write(true).mode(0o600);
        let file = open.open(&path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }

    /// The identity, or nothing when the node has not joined.
    ///
    /// # Errors
    /// When a file is damaged, open to others, or key and certificate do not fit.
    pub fn load_svid(&self) -> Result<Option<Svid>, LoadError> {
        let path = self.path.join(CERTIFICATE);
        let pem = match files::read_private(&path) {
            Ok(pem) => pem,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let chain = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
        let chain = chain.map_err(|_| LoadError::Certificate { path: path.clone() })?;
        // A crash between certificate and key leaves the new key here, and it is the one that fits.
        if let Some(next) = self.load_key(NEXT_KEY)?
            && let Ok(svid) = Svid::new(chain.clone(), Arc::new(next))
        {
            self.promote_next_key()?;
            return Ok(Some(svid));
        }
        let Some(key) = self.load_key(KEY)? else {
            let path = self.path.join(KEY);
            let source = KeyError::Unreadable;
            return Err(LoadError::Key { path, source });
        };
        Svid::new(chain, Arc::new(key))
            .map(Some)
            .map_err(|source| LoadError::Svid { path, source })
    }

    fn load_key(&self, name: &str) -> Result<Option<KeyPair>, LoadError> {
        let path = self.path.join(name);
        let pem = match files::read_private(&path) {
            Ok(pem) => zeroize::Zeroizing::new(pem),
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let key = std::str::from_utf8(&pem)
            .map_err(|_| KeyError::Unreadable)
            .and_then(KeyPair::from_pem);
        key.map(Some)
            .map_err(|source| LoadError::Key { path, source })
    }

    /// Replaces the identity on disk.
    ///
    /// # Errors
    /// When a file cannot be written; the pair that was there still fits.
    pub fn store_svid(&self, svid: &Svid) -> Result<(), FileError> {
        let key = svid.key().to_pem();
        files::write_private(&self.path.join(NEXT_KEY), key.expose().as_bytes())?;
        let pem: String = svid.chain().iter().map(|der| pem_of(der)).collect();
        files::write_private(&self.path.join(CERTIFICATE), pem.as_bytes())?;
        self.promote_next_key()
    }

    fn promote_next_key(&self) -> Result<(), FileError> {
        let key = self.path.join(KEY);
        std::fs::rename(self.path.join(NEXT_KEY), &key).map_err(|source| FileError::Io {
            verb: "replaced",
            path: key,
            source,
        })?;
        files::sync_dir(&self.path)
    }

    /// The trust, or nothing when the node has not joined.
    ///
    /// # Errors
    /// When the file is damaged or open to others.
    pub fn load_trust(&self) -> Result<Option<Trust>, LoadError> {
        let path = self.path.join(TRUST);
        let json = match files::read_private(&path) {
            Ok(json) => json,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        serde_json::from_slice(&json)
            .map(Some)
            .map_err(|source| LoadError::Trust { path, source })
    }

    /// Replaces the trust on disk.
    ///
    /// # Errors
    /// When the file cannot be written; the old one is then untouched.
    pub fn store_trust(&self, trust: &Trust) -> Result<(), FileError> {
        files::write_private(&self.path.join(TRUST), &json_of(trust))
    }
}

fn json_of(trust: &Trust) -> Vec<u8> {
    serde_json::to_vec_pretty(trust).expect("trust is text, which JSON can always express")
}

const PEM_LINE: usize = 64; // RFC 7468 §2

fn pem_of(der: &CertificateDer<'_>) -> String {
    let body = data_encoding::BASE64.encode(der);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in body.as_bytes().chunks(PEM_LINE) {
        pem.extend(line.iter().map(|&byte| char::from(byte)));
        pem.push('\n');
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}
