//! Views under the controller's signature: made, verified, kept on disk.
//!
//! The signer's certificate is judged at the time that the head names, so that a view stays readable when the signer
//! was replaced since; how old a view may be is another question with its own answer. Deltas need no trust, see
//! `sealock_core::view`. Deliberately absent: fetching and pushing.

use std::sync::Arc;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use data_encoding::BASE64;
use rustls_pki_types::CertificateDer;
use sealock_core::identity::Role;
use sealock_core::reason::Reason;
use sealock_core::view::{Entries, Head, View, ViewError};
use serde::{Deserialize, Serialize};
use webpki::EndEntityCert;

use super::verify::{Expect, Purpose, VerifyError, unix_time, verify_chain};
use crate::identity::{KeyPair, Svid, Trust};

/// A head, its signature, and the chain of the signer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedHead {
    /// What is signed.
    pub head: Head,
    /// ECDSA P-256 with SHA-256 over [`Head::signed_bytes`], ASN.1.
    pub signature: Vec<u8>,
    /// The signer's chain in DER, the leaf first.
    pub chain: Vec<CertificateDer<'static>>,
}

/// Why a signed view was not used.
#[derive(Debug, thiserror::Error)]
pub enum SignedViewError {
    /// There is no certificate beside the signature.
    #[error("the view comes without its signer's certificate")]
    NoSigner,
    /// The signer is not a controller's signer of ours.
    #[error("the view's signer was not accepted")]
    Signer(#[source] VerifyError),
    /// The signature belongs to other bytes or another key.
    #[error("the view's signature does not match it")]
    Signature,
    /// The head was issued in the future.
    #[error(
        "the view is of {issued_at}, and this machine's clock says {now}; hint: compare the clocks of both machines"
    )]
    FromTheFuture {
        /// When the controller made it.
        issued_at: jiff::Timestamp,
        /// What our clock says.
        now: jiff::Timestamp,
    },
    /// Older than views may be.
    #[error(
        "the view is of {issued_at}, which is longer ago than a view may be used; hint: bring the controller back"
    )]
    TooOld {
        /// When the controller made it.
        issued_at: jiff::Timestamp,
    },
    /// The entries are not those that were signed, or not understood.
    #[error(transparent)]
    View(#[from] ViewError),
}

impl SignedViewError {
    /// How an open that needs this view is refused.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::TooOld { .. } => Reason::PolicyStale,
            Self::NoSigner
            | Self::Signer(_)
            | Self::Signature
            | Self::FromTheFuture { .. }
            | Self::View(_) => Reason::NoPolicy,
        }
    }
}

impl SignedHead {
    /// Verifies that a controller of this deployment signed the head.
    ///
    /// # Errors
    /// When the signer or the signature is not what it must be.
    pub fn verify(&self, trust: &Trust) -> Result<(), SignedViewError> {
        verify_signed_head(&self.head, &self.signature, &self.chain, trust)
    }
}

/// Verifies that a controller of this deployment signed the head.
///
/// # Errors
/// When the signer or the signature is not what it must be.
pub fn verify_signed_head(
    head: &Head,
    signature: &[u8],
    chain: &[CertificateDer<'_>],
    trust: &Trust,
) -> Result<(), SignedViewError> {
    let (leaf, others) = chain.split_first().ok_or(SignedViewError::NoSigner)?;
    let roots: Vec<&CertificateDer<'_>> = trust.roots.iter().collect();
    let expect = Expect::role(Role::Controller, Purpose::ViewSigner);
    let at = unix_time(head.issued_at);
    let domain = Some(&trust.trust_domain);
    verify_chain(&expect, leaf, others, &roots, domain, at).map_err(SignedViewError::Signer)?;
    let certificate = EndEntityCert::try_from(leaf)
        .map_err(|error| SignedViewError::Signer(VerifyError::Chain(error)))?;
    let algorithm = webpki::aws_lc_rs::ECDSA_P256_SHA256;
    certificate
        .verify_signature(algorithm, &head.signed_bytes(), signature)
        .map_err(|_| SignedViewError::Signature)
}

/// Signs heads for the controller.
#[derive(Debug, Clone)]
pub struct ViewSigner {
    key: Arc<EcdsaKeyPair>,
    chain: Vec<CertificateDer<'static>>,
}

/// Why the controller cannot sign.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The key is not a P-256 key.
    #[error("the signer's key cannot be used")]
    Key,
    /// The operating system gave no randomness.
    #[error("the view could not be signed")]
    Randomness,
}

impl ViewSigner {
    /// Signs with this key and presents this chain.
    ///
    /// # Errors
    /// When the key is not usable.
    pub fn new(key: &KeyPair, chain: Vec<CertificateDer<'static>>) -> Result<Self, SignError> {
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, key.pkcs8_der())
            .map_err(|_| SignError::Key)?;
        let key = Arc::new(key);
        Ok(Self { key, chain })
    }

    /// Signs with the key of an identity.
    ///
    /// # Errors
    /// When the key is not usable.
    pub fn from_svid(svid: &Svid) -> Result<Self, SignError> {
        Self::new(svid.key(), svid.chain().to_vec())
    }

    /// Signs a head.
    ///
    /// # Errors
    /// When the operating system gives no randomness.
    pub fn sign(&self, head: Head) -> Result<SignedHead, SignError> {
        let signature = self
            .key
            .sign(&SystemRandom::new(), &head.signed_bytes())
            .map_err(|_| SignError::Randomness)?;
        Ok(SignedHead {
            head,
            signature: signature.as_ref().to_vec(),
            chain: self.chain.clone(),
        })
    }
}

/// A whole view under its signature, as it is sent and kept in `view.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "ViewFile", into = "ViewFile")]
pub struct SignedView {
    /// What is signed.
    pub head: SignedHead,
    /// What the head's digest is of.
    pub entries: Entries,
}

// A head may be ahead of our clock by as much as certificates are backdated.
const CLOCK_LEEWAY: jiff::SignedDuration = crate::identity::BACKDATED;

impl SignedView {
    /// Verifies signature, age and entries, and reads the view.
    ///
    /// # Errors
    /// When any of them is not what it must be; a view is taken whole or not at all.
    pub fn verify(
        &self,
        trust: &Trust,
        now: jiff::Timestamp,
        max_age: std::time::Duration,
    ) -> Result<View, SignedViewError> {
        self.head.verify(trust)?;
        let issued_at = self.head.head.issued_at;
        let age = now.duration_since(issued_at);
        if age < -CLOCK_LEEWAY {
            return Err(SignedViewError::FromTheFuture { issued_at, now });
        }
        if age > jiff::SignedDuration::try_from(max_age).unwrap_or(jiff::SignedDuration::MAX) {
            return Err(SignedViewError::TooOld { issued_at });
        }
        Ok(View::read(self.head.head.clone(), &self.entries)?)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ViewFile {
    head: Head,
    signature: String,
    chain: Vec<String>,
    /// Values as text: each is JSON of its own, and its exact bytes are what the digest covers.
    entries: Vec<(String, String)>,
}

/// Why `view.json` is not a signed view.
#[derive(Debug, thiserror::Error)]
pub enum ViewFileError {
    /// A signature or a certificate is not Base64.
    #[error("a signature or certificate in it is not Base64")]
    Base64(#[from] data_encoding::DecodeError),
}

impl From<SignedView> for ViewFile {
    fn from(view: SignedView) -> Self {
        let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
        Self {
            signature: BASE64.encode(&view.head.signature),
            chain: view
                .head
                .chain
                .iter()
                .map(|der| BASE64.encode(der))
                .collect(),
            head: view.head.head,
            entries: view
                .entries
                .iter()
                .map(|(key, value)| (key.to_owned(), text(value)))
                .collect(),
        }
    }
}

impl TryFrom<ViewFile> for SignedView {
    type Error = ViewFileError;

    fn try_from(file: ViewFile) -> Result<Self, ViewFileError> {
        let decode = |text: &String| BASE64.decode(text.as_bytes());
        let chain = file
            .chain
            .iter()
            .map(decode)
            .map(|der| der.map(CertificateDer::from));
        let mut entries = Entries::default();
        for (key, value) in file.entries {
            entries.put(key, value.into_bytes());
        }
        Ok(Self {
            head: SignedHead {
                head: file.head,
                signature: decode(&file.signature)?,
                chain: chain.collect::<Result<_, _>>()?,
            },
            entries,
        })
    }
}

#[cfg(test)]
mod tests;
