//! Who we are and who the other side is, as X.509 certificates with one SPIFFE id each (SPIFFE X.509-SVID §2–§5).
//!
//! A [`PeerIdentity`] is read from a leaf strictly: exactly one subject alternative name, a canonical id, nothing else.
//! Our own identity and the trusted roots are snapshots that are swapped whole, so a renewal or a new root needs no
//! restart and the next handshake sees it. Deliberately absent: issuing (`sealock-control`) and verification (`tls`).

mod dir;
mod key;
#[cfg(any(test, feature = "test-util"))]
pub mod testing;

use std::fmt;
use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};
use data_encoding::{BASE64, HEXLOWER};
use rustls::client::ResolvesClientCert;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::CertificateDer;
use sealock_core::identity::{AgentId, IdentityError, Principal, Role, SpiffeId};
use sealock_core::name::TrustDomain;
use sealock_core::token::CaPin;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

pub use dir::{IdentityDir, LoadError};
pub use key::{KeyError, KeyPair};

/// How far the begin of a certificate lies before its issue, for clocks that run behind the controller's.
pub const BACKDATED: jiff::SignedDuration = jiff::SignedDuration::from_mins(5);

/// What a verified leaf certificate says of its holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerIdentity {
    /// Who it is.
    pub id: SpiffeId,
    /// The certificate's serial number: lower-case hex without leading zero bytes.
    pub serial: String,
    /// The SHA-256 of the SubjectPublicKeyInfo, lower-case hex; the same for every certificate of this key.
    pub key_digest: String,
    /// When the certificate begins to be valid.
    pub not_before: jiff::Timestamp,
    /// When the certificate ends.
    pub not_after: jiff::Timestamp,
}

/// Why a certificate names nobody whom we can speak of.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LeafError {
    /// Not an X.509 certificate, or one with repeated or broken extensions.
    #[error("the certificate cannot be read")]
    Unreadable,
    /// It names nobody.
    #[error("the certificate has no subject alternative name")]
    NoName,
    /// It names more than one, so nobody could say who it is.
    #[error("the certificate has {count} subject alternative names; an identity has exactly one")]
    ManyNames {
        /// How many there are.
        count: usize,
    },
    /// A DNS name, an address, a mail address…
    #[error("the certificate's subject alternative name is not a URI")]
    NotUri,
    /// The URI is not an identity in its canonical spelling.
    #[error("the certificate's URI is not an identity of Sealock")]
    NotCanonical(#[source] IdentityError),
    /// A user: a gateway vouches for users, certificates never name them.
    #[error("the certificate names a user; users have no certificates")]
    NamesUser,
}

impl PeerIdentity {
    /// Reads a leaf. It says who the holder claims to be; only verification makes that true.
    ///
    /// # Errors
    /// When the leaf has anything but exactly one subject alternative name that is a canonical id.
    pub fn from_leaf(leaf: &CertificateDer<'_>) -> Result<Self, LeafError> {
        let (rest, certificate) =
            X509Certificate::from_der(leaf).map_err(|_| LeafError::Unreadable)?;
        if !rest.is_empty() {
            return Err(LeafError::Unreadable);
        }
        let id = only_name(&certificate)?;
        let time = |time: x509_parser::time::ASN1Time| {
            jiff::Timestamp::from_second(time.timestamp()).map_err(|_| LeafError::Unreadable)
        };
        Ok(Self {
            id,
            serial: serial_hex(certificate.raw_serial()),
            key_digest: hex_digest(certificate.public_key().raw),
            not_before: time(certificate.validity().not_before)?,
            not_after: time(certificate.validity().not_after)?,
        })
    }

    /// The part that the holder plays.
    #[must_use]
    pub fn role(&self) -> Role {
        self.id.principal.role()
    }

    /// The agent, when the holder is one.
    #[must_use]
    pub fn agent(&self) -> Option<&AgentId> {
        self.id.principal.as_agent()
    }
}

fn only_name(certificate: &X509Certificate<'_>) -> Result<SpiffeId, LeafError> {
    let names = certificate
        .subject_alternative_name()
        .map_err(|_| LeafError::Unreadable)?
        .map(|extension| extension.value.general_names.as_slice());
    let uri = match names {
        None | Some([]) => return Err(LeafError::NoName),
        Some([GeneralName::URI(uri)]) => uri,
        Some([_]) => return Err(LeafError::NotUri),
        Some(names) => return Err(LeafError::ManyNames { count: names.len() }),
    };
    let id: SpiffeId = uri.parse().map_err(LeafError::NotCanonical)?;
    match id.principal {
        Principal::User { .. } => Err(LeafError::NamesUser),
        Principal::Agent(_) | Principal::Relay(_) | Principal::Controller(_) => Ok(id),
    }
}

/// A serial number as views, audit rows and people write it: lower-case hex without leading zero bytes.
#[must_use]
pub fn serial_hex(big_endian: &[u8]) -> String {
    let first = big_endian.iter().position(|&byte| byte != 0);
    HEXLOWER.encode(first.map_or(&[0], |first| &big_endian[first..]))
}

/// The SHA-256 of `bytes` in lower-case hex.
#[must_use]
pub(crate) fn hex_digest(bytes: &[u8]) -> String {
    HEXLOWER.encode(&Sha256::digest(bytes))
}

/// The roots and the trust domain by which certificates are judged.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "TrustFile", into = "TrustFile")]
pub struct Trust {
    /// The deployment whose identities are accepted; there is no other.
    pub trust_domain: TrustDomain,
    /// The certificates of the authorities that may issue them, in DER.
    pub roots: Vec<CertificateDer<'static>>,
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pin = |root| root_pin(root).map(|pin| HEXLOWER.encode(&pin.0)).ok();
        let roots = self.roots.iter().map(pin);
        f.debug_struct("Trust")
            .field("trust_domain", &self.trust_domain)
            .field("roots", &roots.collect::<Vec<_>>())
            .finish()
    }
}

/// What a join token says of a root certificate.
///
/// # Errors
/// When the certificate cannot be read.
pub fn root_pin(root: &CertificateDer<'_>) -> Result<CaPin, LeafError> {
    let (_, certificate) = X509Certificate::from_der(root).map_err(|_| LeafError::Unreadable)?;
    Ok(CaPin(Sha256::digest(certificate.public_key().raw).into()))
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TrustFile {
    trust_domain: TrustDomain,
    roots: Vec<String>,
}

impl From<Trust> for TrustFile {
    fn from(trust: Trust) -> Self {
        Self {
            trust_domain: trust.trust_domain,
            roots: trust.roots.iter().map(|root| BASE64.encode(root)).collect(),
        }
    }
}

impl TryFrom<TrustFile> for Trust {
    type Error = data_encoding::DecodeError;

    fn try_from(file: TrustFile) -> Result<Self, Self::Error> {
        let decode = |root: String| BASE64.decode(root.as_bytes()).map(CertificateDer::from);
        Ok(Self {
            trust_domain: file.trust_domain,
            roots: file
                .roots
                .into_iter()
                .map(decode)
                .collect::<Result<_, _>>()?,
        })
    }
}

/// The trust that every verifier reads at each handshake; clones share one snapshot.
#[derive(Debug, Clone)]
pub struct TrustStore(Arc<ArcSwap<Trust>>);

impl TrustStore {
    /// Holds `trust`.
    #[must_use]
    pub fn new(trust: Trust) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(trust)))
    }

    /// The snapshot of this moment; take it once per decision.
    #[must_use]
    pub fn current(&self) -> Arc<Trust> {
        self.0.load_full()
    }

    /// Replaces the trust for every handshake from here on.
    pub fn set(&self, trust: Trust) {
        self.0.store(Arc::new(trust));
    }
}

/// Our own certificate chain and its key.
#[derive(Clone)]
pub struct Svid {
    leaf: PeerIdentity,
    chain: Vec<CertificateDer<'static>>,
    key: Arc<KeyPair>,
    certified: Arc<CertifiedKey>,
}

impl fmt::Debug for Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Svid").field(&self.leaf).finish()
    }
}

/// Why a chain and a key are not an identity.
#[derive(Debug, thiserror::Error)]
pub enum SvidError {
    /// There is no certificate.
    #[error("the certificate chain is empty")]
    Empty,
    /// The leaf names nobody.
    #[error("the certificate is not an identity")]
    Leaf(#[source] LeafError),
    /// The certificate was issued for another key.
    #[error("the certificate belongs to another key")]
    WrongKey,
    /// The key cannot sign.
    #[error("the key cannot be used")]
    Key(#[source] KeyError),
}

impl Svid {
    /// Joins a chain (the leaf first) with the key that its leaf was issued for.
    ///
    /// # Errors
    /// When the leaf is not an identity or belongs to another key.
    pub fn new(chain: Vec<CertificateDer<'static>>, key: Arc<KeyPair>) -> Result<Self, SvidError> {
        let leaf = PeerIdentity::from_leaf(chain.first().ok_or(SvidError::Empty)?)
            .map_err(SvidError::Leaf)?;
        if leaf.key_digest != key.digest() {
            return Err(SvidError::WrongKey);
        }
        let signer = key.tls_signer().map_err(SvidError::Key)?;
        let certified = Arc::new(CertifiedKey::new(chain.clone(), signer));
        Ok(Self {
            leaf,
            chain,
            key,
            certified,
        })
    }

    /// Who we are.
    #[must_use]
    pub fn id(&self) -> &SpiffeId {
        &self.leaf.id
    }

    /// What our leaf says, as a peer sees it.
    #[must_use]
    pub fn leaf(&self) -> &PeerIdentity {
        &self.leaf
    }

    /// The chain in DER, the leaf first.
    #[must_use]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The leaf's key.
    #[must_use]
    pub fn key(&self) -> &Arc<KeyPair> {
        &self.key
    }
}

/// Our own identity as every handshake reads it; clones share one snapshot. Empty until the node has joined.
#[derive(Debug, Clone, Default)]
pub struct IdentityStore(Arc<ArcSwapOption<Svid>>);

impl IdentityStore {
    /// Holds `svid`.
    #[must_use]
    pub fn new(svid: Svid) -> Self {
        Self(Arc::new(ArcSwapOption::from_pointee(svid)))
    }

    /// The identity of this moment, if the node has one.
    #[must_use]
    pub fn current(&self) -> Option<Arc<Svid>> {
        self.0.load_full()
    }

    /// Replaces the identity for every handshake from here on.
    pub fn set(&self, svid: Svid) {
        self.0.store(Some(Arc::new(svid)));
    }

    fn certified(&self) -> Option<Arc<CertifiedKey>> {
        self.current().map(|svid| Arc::clone(&svid.certified))
    }
}

impl ResolvesClientCert for IdentityStore {
    fn resolve(
        &self,
        _root_hint_subjects: &[&[u8]],
        _sigschemes: &[rustls::SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        self.certified()
    }

    fn has_certs(&self) -> bool {
        self.0.load().is_some()
    }
}

/// Presents our identity, and behind it the roots to those who do not know them yet and judge them by a pin.
#[derive(Debug)]
pub(crate) struct ServerIdentity {
    pub(crate) identity: IdentityStore,
    pub(crate) trust: TrustStore,
    /// The protocols whose clients may come with nothing but a pin.
    pub(crate) pinned_alpns: &'static [&'static [u8]],
}

impl ResolvesServerCert for ServerIdentity {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let certified = self.identity.certified()?;
        let mut offered = hello.alpn().into_iter().flatten();
        if !offered.any(|alpn| self.pinned_alpns.contains(&alpn)) {
            return Some(certified);
        }
        let trust = self.trust.current();
        let missing = trust
            .roots
            .iter()
            .filter(|root| !certified.cert.contains(root));
        let chain = certified.cert.iter().chain(missing).cloned().collect();
        Some(Arc::new(CertifiedKey::new(
            chain,
            Arc::clone(&certified.key),
        )))
    }
}

#[cfg(test)]
mod tests;
