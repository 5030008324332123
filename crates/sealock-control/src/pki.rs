//! The certificate authority: one active root that signs, more roots that are trusted, and leaves that live an hour.
//!
//! What a leaf says comes from the store: the identity, the purposes of its role, the times. Of a request only the key
//! is taken, after its signature has proved that the requester holds it. Root keys lie beside the database, mode 0600.
//! Deliberately absent: intermediates, names of hosts, and lists of revoked certificates; views carry revocations.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyUsagePurpose, PublicKeyData, SanType,
    SerialNumber,
};
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer};
use sealock_core::identity::{Role, SpiffeId};
use sealock_core::name::TrustDomain;
use sealock_core::token::CaPin;
use sealock_net::files::{self, FileError};
use sealock_net::identity::{
    BACKDATED, KeyError, KeyPair, LeafError, PeerIdentity, Trust, root_pin,
};
use sealock_net::tls::eku;
use sha2::{Digest, Sha256};

use crate::store::{Act, Certificate, RootState, Store, StoreError};

/// How long a leaf lives.
pub const LEAF_LIFETIME: SignedDuration = SignedDuration::from_hours(1);
/// How long the certificate of the view signer lives; it is replaced at half of it.
pub const SIGNER_LIFETIME: SignedDuration = SignedDuration::from_hours(24 * 365);
const ROOT_LIFETIME: SignedDuration = SignedDuration::from_hours(24 * 3_653); // ten years

/// Why a certificate was not made.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// Not a PKCS #10 request, or its signature does not fit its key.
    #[error("the certificate request cannot be read or does not prove its key")]
    Request,
    /// The key is not P-256 in its one canonical form.
    #[error("the key of the certificate request is not a P-256 key")]
    KeyKind,
    /// The signer did not do its work.
    #[error("the certificate could not be signed")]
    Sign(#[source] rcgen::Error),
    /// What was signed does not read back.
    #[error("the new certificate is not an identity")]
    Leaf(#[source] LeafError),
    /// A time that no certificate can hold.
    #[error("the certificate's times are out of range")]
    Time,
}

/// Why the authority cannot work.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A key file is missing, damaged or open to others.
    #[error(transparent)]
    File(#[from] FileError),
    /// A root's key file holds no key, or another one.
    #[error("{} is not the key of the active root\nhint: restore the controller's state directory as a whole", path.display())]
    WrongKey {
        /// The file.
        path: PathBuf,
    },
    /// A key could not be made.
    #[error("no key could be made")]
    Key(#[source] KeyError),
    /// The root could not be made.
    #[error("the root certificate could not be made")]
    Root(#[source] PkiError),
    /// The database belongs to another deployment.
    #[error(
        "the controller's state is of the trust domain `{found}`, but `{wanted}` is configured\nhint: use another state directory, or set the trust domain back"
    )]
    TrustDomain {
        /// What the state says.
        found: String,
        /// What is configured.
        wanted: TrustDomain,
    },
}

/// A request for a certificate whose signature has proved its key.
#[derive(Debug)]
pub struct Csr {
    public_key: rcgen::PublicKey,
    key_digest: String,
}

// The SubjectPublicKeyInfo of an uncompressed P-256 point (RFC 5480 §2), up to the point itself.
const P256_SPKI: &[u8] = &[
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00, 0x04,
];
const P256_SPKI_LENGTH: usize = 91;

impl Csr {
    /// Reads a PKCS #10 request and verifies that its sender holds the key.
    ///
    /// # Errors
    /// When it cannot be read, is signed with another key, or the key is not P-256.
    pub fn read(der: &[u8]) -> Result<Self, PkiError> {
        let request = CertificateSigningRequestDer::from(der);
        let verified =
            CertificateSigningRequestParams::from_der(&request).map_err(|_| PkiError::Request)?;
        let spki = verified.public_key.subject_public_key_info();
        // The library names the curve after the signature's algorithm, so the key inside is looked at itself.
        let inside = spki_of(der).ok_or(PkiError::Request)?;
        if inside.len() != P256_SPKI_LENGTH || !inside.starts_with(P256_SPKI) || inside != spki {
            return Err(PkiError::KeyKind);
        }
        Ok(Self {
            key_digest: data_encoding::HEXLOWER.encode(&Sha256::digest(&spki)),
            public_key: verified.public_key,
        })
    }

    /// The SHA-256 of the SubjectPublicKeyInfo, lower-case hex.
    #[must_use]
    pub fn key_digest(&self) -> &str {
        &self.key_digest
    }
}

fn spki_of(der: &[u8]) -> Option<Vec<u8>> {
    use x509_parser::certification_request::X509CertificationRequest;
    use x509_parser::prelude::FromDer;
    let (rest, request) = X509CertificationRequest::from_der(der).ok()?;
    let spki = request.certification_request_info.subject_pki.raw;
    rest.is_empty().then(|| spki.to_vec())
}

/// What a certificate is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// The role in the identity.
    Role,
    /// Signing the heads of views.
    ViewSigner,
}

fn purposes(role: Role, profile: Profile) -> Vec<ExtendedKeyUsagePurpose> {
    use ExtendedKeyUsagePurpose::{ClientAuth, Other, ServerAuth};
    match (profile, role) {
        (Profile::ViewSigner, _) => vec![Other(eku::VIEW_SIGNER.to_vec())],
        (Profile::Role, Role::Agent) => vec![ClientAuth, Other(eku::E2E.to_vec())],
        (Profile::Role, Role::Relay) => vec![ServerAuth, ClientAuth],
        (Profile::Role, Role::Controller) => vec![ServerAuth],
        (Profile::Role, Role::User) => Vec::new(),
    }
}

/// The certificate authority of a deployment.
#[derive(Clone)]
pub struct Authority {
    trust: Trust,
    root: CertificateDer<'static>,
    key: Arc<KeyPair>,
    leaf_lifetime: SignedDuration,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Authority").field(&self.trust).finish()
    }
}

impl Authority {
    /// Opens the authority whose roots the store knows, or makes the first root.
    ///
    /// # Errors
    /// When a key is missing or of another root, or the state belongs to another trust domain.
    ///
    /// # Cancel safety
    /// Safe: a root counts from the moment it is active in the store; a key without a root is never used.
    pub async fn open(
        dir: &Path,
        store: &dyn Store,
        trust_domain: &TrustDomain,
        now: Timestamp,
    ) -> Result<Self, AuthorityError> {
        let found = store.meta_or("trust_domain", trust_domain.as_str()).await?;
        if found != trust_domain.as_str() {
            return Err(AuthorityError::TrustDomain {
                found,
                wanted: trust_domain.clone(),
            });
        }
        let mut rows = store.roots().await?;
        if !rows.iter().any(|row| row.state == RootState::Active) {
            let root = prepare_root(dir, store, trust_domain, now).await?;
            let act = Act::done(now, "controller", "ca.activate", pin_text(&root)?);
            store.set_root(&root, RootState::Active, &act).await?;
            rows = store.roots().await?;
        }
        let active = rows.iter().find(|row| row.state == RootState::Active);
        let active = active.ok_or(StoreError::Unreadable("root"))?;
        let root = CertificateDer::from(active.certificate.clone());
        let key = load_key(dir, &root)?;
        let trusted = rows.iter().filter(|row| row.state != RootState::Revoked);
        let roots = trusted.map(|row| CertificateDer::from(row.certificate.clone()));
        Ok(Self {
            trust: Trust {
                trust_domain: trust_domain.clone(),
                roots: roots.collect(),
            },
            root,
            key: Arc::new(key),
            leaf_lifetime: LEAF_LIFETIME,
        })
    }

    /// The same authority with another lifetime of leaves.
    #[must_use]
    pub fn with_leaf_lifetime(mut self, lifetime: SignedDuration) -> Self {
        self.leaf_lifetime = lifetime;
        self
    }

    /// How long its leaves live.
    #[must_use]
    pub fn leaf_lifetime(&self) -> SignedDuration {
        self.leaf_lifetime
    }

    /// The roots that every node is to trust.
    #[must_use]
    pub fn trust(&self) -> &Trust {
        &self.trust
    }

    /// What join tokens pin.
    ///
    /// # Panics
    /// Never: the root was read when the authority was opened.
    #[must_use]
    pub fn pin(&self) -> CaPin {
        root_pin(&self.root).expect("the root was read before")
    }

    /// When the active root ends.
    #[must_use]
    pub fn expires(&self) -> Option<Timestamp> {
        let (_, root) = x509_parser::parse_x509_certificate(&self.root).ok()?;
        Timestamp::from_second(root.validity().not_after.timestamp()).ok()
    }

    /// Issues a certificate for an identity.
    ///
    /// # Errors
    /// When the signer fails.
    pub fn issue(
        &self,
        id: &SpiffeId,
        csr: &Csr,
        profile: Profile,
        now: Timestamp,
    ) -> Result<Certificate, PkiError> {
        let lifetime = match profile {
            Profile::Role => self.leaf_lifetime,
            Profile::ViewSigner => SIGNER_LIFETIME,
        };
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let uri = id.to_string().try_into().map_err(PkiError::Sign)?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = purposes(id.principal.role(), profile);
        params.use_authority_key_identifier_extension = true;
        set_times(&mut params, now, lifetime)?;
        let issuer = Issuer::from_ca_cert_der(&self.root, self.key.as_rcgen());
        let issuer = issuer.map_err(PkiError::Sign)?;
        let leaf = params
            .signed_by(&csr.public_key, &issuer)
            .map_err(PkiError::Sign)?;
        let read = PeerIdentity::from_leaf(leaf.der()).map_err(PkiError::Leaf)?;
        Ok(Certificate {
            serial: read.serial,
            key_digest: read.key_digest,
            chain: vec![leaf.der().to_vec()],
            not_after: read.not_after,
        })
    }
}

fn set_times(
    params: &mut CertificateParams,
    now: Timestamp,
    lifetime: SignedDuration,
) -> Result<(), PkiError> {
    let time = |at: Result<Timestamp, jiff::Error>| {
        let second = at.map_err(|_| PkiError::Time)?.as_second();
        time::OffsetDateTime::from_unix_timestamp(second).map_err(|_| PkiError::Time)
    };
    params.not_before = time(now.checked_sub(BACKDATED))?;
    params.not_after = time(now.checked_add(lifetime))?;
    // 128 random bits behind a byte that keeps the number positive and its length constant.
    let mut serial = vec![1u8];
    serial.extend(rand::random::<[u8; 16]>());
    params.serial_number = Some(SerialNumber::from(serial));
    Ok(())
}

fn pin_text(root: &[u8]) -> Result<String, StoreError> {
    let pin = root_pin(&CertificateDer::from(root)).map_err(|_| StoreError::Unreadable("root"))?;
    Ok(data_encoding::HEXLOWER.encode(&pin.0))
}

fn key_path(dir: &Path, pin: &str) -> PathBuf {
    dir.join(format!("root-{}.pem", &pin[..16]))
}

/// Whether keys of an authority lie here, so that a database must be here as well.
#[must_use]
pub fn has_root_keys(dir: &Path) -> bool {
    let names = std::fs::read_dir(dir).into_iter().flatten().flatten();
    names
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .any(|name| name.starts_with("root-") && name.ends_with(".pem"))
}

/// Makes a root that is trusted from the next start on, and signs nothing before it is active.
pub(crate) async fn prepare_root(
    dir: &Path,
    store: &dyn Store,
    trust_domain: &TrustDomain,
    now: Timestamp,
) -> Result<Vec<u8>, AuthorityError> {
    let key = KeyPair::generate().map_err(AuthorityError::Key)?;
    let root = self_signed(&key, trust_domain, now).map_err(AuthorityError::Root)?;
    let pin = key.digest();
    // The key first: a root whose key is lost would be trusted and of no use.
    files::write_private(&key_path(dir, &pin), key.to_pem().expose().as_bytes())?;
    let act = Act::done(now, "controller", "ca.prepare", &pin);
    store.add_root(&root, &act).await?;
    Ok(root)
}

fn self_signed(
    key: &KeyPair,
    trust_domain: &TrustDomain,
    now: Timestamp,
) -> Result<Vec<u8>, PkiError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let common_name = format!("Sealock root of {trust_domain}");
    params.distinguished_name.push(
        DnType::CommonName,
        common_name.chars().take(64).collect::<String>(),
    ); // RFC 5280: ub-common-name
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_times(&mut params, now, ROOT_LIFETIME)?;
    let root = params.self_signed(key.as_rcgen()).map_err(PkiError::Sign)?;
    Ok(root.der().to_vec())
}

fn load_key(dir: &Path, root: &CertificateDer<'_>) -> Result<KeyPair, AuthorityError> {
    let pin = pin_text(root)?;
    let path = key_path(dir, &pin);
    let pem = files::read_private(&path)?;
    let key = std::str::from_utf8(&pem)
        .ok()
        .and_then(|pem| KeyPair::from_pem(pem).ok())
        .filter(|key| key.digest() == pin);
    key.ok_or(AuthorityError::WrongKey { path })
}

#[cfg(test)]
mod tests;
