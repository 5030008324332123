//! Our private keys: P-256, made here, never printed.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use rcgen::{CertificateParams, PublicKeyData};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use sealock_core::secret::Secret;

use super::hex_digest;

/// A P-256 key pair.
pub struct KeyPair(rcgen::KeyPair);

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("KeyPair").field(&self.digest()).finish()
    }
}

/// Why a key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// It is not a P-256 key in PKCS #8 PEM.
    #[error("it is not a P-256 key in PKCS #8 PEM")]
    Unreadable,
    /// The cryptographic library did not do its work.
    #[error("the cryptographic library refused the key")]
    Refused(#[source] rcgen::Error),
    /// The operating system gave no randomness.
    #[error("the operating system gave no randomness")]
    Randomness,
    /// The TLS library cannot sign with it.
    #[error("the TLS library refused the key")]
    Tls(#[source] rustls::Error),
}

impl KeyPair {
    /// Makes a new key.
    ///
    /// # Errors
    /// When the operating system gives no randomness.
    pub fn generate() -> Result<Self, KeyError> {
        rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)
            .map(Self)
            .map_err(KeyError::Refused)
    }

    /// Reads a key from PKCS #8 PEM.
    ///
    /// # Errors
    /// When the text is not such a key.
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        let algorithm = &rcgen::PKCS_ECDSA_P256_SHA256;
        rcgen::KeyPair::from_pkcs8_pem_and_sign_algo(pem, algorithm)
            .map(Self)
            .map_err(|_| KeyError::Unreadable)
    }

    /// The key in PKCS #8 PEM.
    #[must_use]
    pub fn to_pem(&self) -> Secret<String> {
        Secret::new(self.0.serialize_pem())
    }

    /// A PKCS #10 request, DER: it proves that we hold the key and asks for no name.
    ///
    /// # Errors
    /// When the key cannot sign.
    pub fn request_der(&self) -> Result<Vec<u8>, KeyError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        let request = params.serialize_request(&self.0);
        Ok(request.map_err(KeyError::Refused)?.der().to_vec())
    }

    /// Signs bytes: ECDSA P-256 with SHA-256, ASN.1.
    pub(crate) fn sign(&self, bytes: &[u8]) -> Result<Vec<u8>, KeyError> {
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, self.pkcs8_der())
            .map_err(|_| KeyError::Unreadable)?;
        let signature = key.sign(&SystemRandom::new(), bytes);
        Ok(signature
            .map_err(|_| KeyError::Randomness)?
            .as_ref()
            .to_vec())
    }

    /// The SHA-256 of the SubjectPublicKeyInfo, lower-case hex; equals [`super::PeerIdentity::key_digest`].
    #[must_use]
    pub fn digest(&self) -> String {
        hex_digest(&self.0.subject_public_key_info())
    }

    /// The key for the certificate library, to issue with.
    #[must_use]
    pub fn as_rcgen(&self) -> &rcgen::KeyPair {
        &self.0
    }

    pub(crate) fn pkcs8_der(&self) -> &[u8] {
        self.0.serialized_der()
    }

    #[cfg(test)]
    pub(crate) fn pkcs8_for_tests(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.pkcs8_der().to_vec()).into()
    }

    pub(super) fn tls_signer(&self) -> Result<Arc<dyn rustls::sign::SigningKey>, KeyError> {
        let der = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.pkcs8_der()));
        rustls::crypto::aws_lc_rs::sign::any_ecdsa_type(&der).map_err(KeyError::Tls)
    }
}
