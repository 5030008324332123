//! A certificate authority for tests, with every freedom that the real one lacks.

use std::sync::Arc;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyUsagePurpose, SanType,
};
use rustls_pki_types::CertificateDer;
use sealock_core::identity::{Principal, Role, SpiffeId};
use sealock_core::token::CaPin;
use time::OffsetDateTime;

use super::{IdentityStore, KeyPair, Svid, Trust, TrustStore, root_pin};
use crate::tls::eku;
use crate::tls::signed::ViewSigner;

/// An authority of one trust domain.
#[derive(Debug)]
pub struct TestCa {
    trust: Trust,
    issuer: Issuer<'static, rcgen::KeyPair>,
}

/// What a certificate shall say, sensible or not.
#[derive(Debug, Clone)]
pub struct Leaf {
    /// Its subject alternative names.
    pub names: Vec<SanType>,
    /// Its purposes.
    pub purposes: Vec<ExtendedKeyUsagePurpose>,
    /// When it begins, seconds from now.
    pub from: i64,
    /// When it ends, seconds from now.
    pub until: i64,
    /// Its common name, which must mean nothing.
    pub common_name: Option<&'static str>,
}

impl Leaf {
    /// A leaf with these URIs, the purposes of `role`, and an hour to live.
    #[must_use]
    pub fn of(role: Role, uris: &[&str]) -> Self {
        Self {
            names: uris.iter().map(|text| uri(text)).collect(),
            purposes: purposes_of(role),
            from: -300,
            until: 3_600,
            common_name: None,
        }
    }
}

/// A URI as a subject alternative name, whatever it says.
///
/// # Panics
/// When the text is not ASCII.
#[must_use]
pub fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().expect("ASCII"))
}

/// The purposes that a certificate of this role has.
#[must_use]
pub fn purposes_of(role: Role) -> Vec<ExtendedKeyUsagePurpose> {
    use ExtendedKeyUsagePurpose::{ClientAuth, Other, ServerAuth};
    match role {
        Role::Agent => vec![ClientAuth, Other(eku::E2E.to_vec())],
        Role::Relay => vec![ServerAuth, ClientAuth],
        Role::Controller => vec![ServerAuth],
        Role::User => vec![],
    }
}

impl TestCa {
    /// A new authority for a trust domain.
    ///
    /// # Panics
    /// When the trust domain is not one, or the machine has no randomness.
    #[must_use]
    pub fn new(trust_domain: &str) -> Self {
        let key = rcgen::KeyPair::generate().expect("randomness");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params
            .distinguished_name
            .push(DnType::CommonName, "test root");
        let root = params.self_signed(&key).expect("signs itself");
        Self {
            trust: Trust {
                trust_domain: trust_domain.parse().expect("a trust domain"),
                roots: vec![root.der().clone()],
            },
            issuer: Issuer::new(params, key),
        }
    }

    /// The trust in this authority alone.
    #[must_use]
    pub fn trust(&self) -> Trust {
        self.trust.clone()
    }

    /// The same in a store of its own.
    #[must_use]
    pub fn trust_store(&self) -> TrustStore {
        TrustStore::new(self.trust())
    }

    /// What a token would pin.
    ///
    /// # Panics
    /// Never: the root is well formed.
    #[must_use]
    pub fn pin(&self) -> CaPin {
        root_pin(&self.trust.roots[0]).expect("our own root")
    }

    /// A certificate that says what `leaf` says, for `key`.
    ///
    /// # Panics
    /// When it cannot be encoded.
    #[must_use]
    pub fn sign(&self, leaf: &Leaf, key: &KeyPair) -> CertificateDer<'static> {
        let now = OffsetDateTime::now_utc();
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        if let Some(name) = leaf.common_name {
            params.distinguished_name.push(DnType::CommonName, name);
        }
        // The library would derive it from the key, and two certificates of a key would share it.
        params.serial_number = Some(rand::random::<[u8; 16]>().to_vec().into());
        params.subject_alt_names.clone_from(&leaf.names);
        params.extended_key_usages.clone_from(&leaf.purposes);
        params.not_before = now + time::Duration::seconds(leaf.from);
        params.not_after = now + time::Duration::seconds(leaf.until);
        let signed = params.signed_by(key.as_rcgen(), &self.issuer);
        signed.expect("encodable").der().clone()
    }

    /// An identity that says what `leaf` says, under a new key.
    ///
    /// # Panics
    /// When the leaf is not an identity.
    #[must_use]
    pub fn svid(&self, leaf: &Leaf) -> Svid {
        let key = KeyPair::generate().expect("randomness");
        let certificate = self.sign(leaf, &key);
        Svid::new(vec![certificate], Arc::new(key)).expect("an identity")
    }

    /// A proper identity: `default/agent/a`, `relay/r`, `controller/c`…
    ///
    /// # Panics
    /// When the path is not one.
    #[must_use]
    pub fn identity(&self, path: &str) -> IdentityStore {
        let text = format!("spiffe://{}/{path}", self.trust.trust_domain);
        let id: SpiffeId = text.parse().expect("an identity");
        IdentityStore::new(self.svid(&Leaf::of(id.principal.role(), &[&text])))
    }

    /// A signer of views.
    ///
    /// # Panics
    /// When the machine has no randomness.
    #[must_use]
    pub fn view_signer(&self) -> ViewSigner {
        let id = SpiffeId {
            trust_domain: self.trust.trust_domain.clone(),
            principal: Principal::Controller("signer".parse().expect("a name")),
        };
        let mut leaf = Leaf::of(Role::Controller, &[&id.to_string()]);
        leaf.purposes = vec![ExtendedKeyUsagePurpose::Other(eku::VIEW_SIGNER.to_vec())];
        ViewSigner::from_svid(&self.svid(&leaf)).expect("a P-256 key")
    }
}

/// The deadline of steps that take milliseconds.
pub const SOON: Duration = Duration::from_secs(20);
