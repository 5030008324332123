//! The one verifier: chain, purpose, trust domain, role, expected ids, and what the caller's judge adds.
//!
//! What a certificate claims is compared first, because «a relay, where a controller was expected» helps more than
//! «unknown issuer»; nothing is believed before the chain has been verified as well.
//! A verifier whose trust holds no root refuses everybody.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, PeerIncompatible,
    SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use sealock_core::identity::{Role, SpiffeId};
use sealock_core::name::TrustDomain;
use sealock_core::reason::Reason;
use sealock_core::token::CaPin;
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

use super::{Judge, eku, provider};
use crate::identity::{LeafError, PeerIdentity, TrustStore, root_pin};

/// What a certificate is used for at a boundary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Being a TLS client.
    Client,
    /// Being a relay or a controller that is connected to.
    Server,
    /// Being the providing end of an end-to-end stream.
    E2eServer,
    /// Signing the heads of views.
    ViewSigner,
}

const CLIENT_AUTH_DER: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 2]; // 1.3.6.1.5.5.7.3.2, RFC 5280 §4.2.1.12
const SERVER_AUTH_DER: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 1]; // 1.3.6.1.5.5.7.3.1

impl Purpose {
    // Required, not «required if present»: a certificate without purposes would be good for all of them.
    fn key_usage(self) -> KeyUsage {
        KeyUsage::required(match self {
            Self::Client => CLIENT_AUTH_DER,
            Self::Server => SERVER_AUTH_DER,
            Self::E2eServer => eku::E2E_DER,
            Self::ViewSigner => eku::VIEW_SIGNER_DER,
        })
    }

    fn text(self) -> &'static str {
        match self {
            Self::Client => "a client",
            Self::Server => "a server",
            Self::E2eServer => "the providing end of a stream",
            Self::ViewSigner => "the signer of views",
        }
    }
}

/// Whom a boundary expects.
#[derive(Clone)]
pub struct Expect {
    roles: &'static [Role],
    purpose: Purpose,
    ids: Option<BTreeSet<SpiffeId>>,
    judge: Option<Judge>,
}

impl fmt::Debug for Expect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Expect")
            .field("roles", &self.roles)
            .field("purpose", &self.purpose)
            .field("ids", &self.ids)
            .field("judged", &self.judge.is_some())
            .finish()
    }
}

impl Expect {
    /// Anybody of one role.
    #[must_use]
    pub fn role(role: Role, purpose: Purpose) -> Self {
        Self::roles(
            match role {
                Role::Agent => &[Role::Agent],
                Role::User => &[], // users have no certificates, so nobody
                Role::Relay => &[Role::Relay],
                Role::Controller => &[Role::Controller],
            },
            purpose,
        )
    }

    /// Anybody of several roles.
    #[must_use]
    pub fn roles(roles: &'static [Role], purpose: Purpose) -> Self {
        Self {
            roles,
            purpose,
            ids: None,
            judge: None,
        }
    }

    /// Only these ids; an empty set is nobody.
    #[must_use]
    pub fn only(mut self, ids: BTreeSet<SpiffeId>) -> Self {
        self.ids = Some(ids);
        self
    }

    /// Only whom the judge lets through.
    #[must_use]
    pub fn judged_by(mut self, judge: Option<Judge>) -> Self {
        self.judge = judge;
        self
    }
}

/// Why the other side's certificate was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// It names nobody whom we can speak of.
    #[error(transparent)]
    Leaf(#[from] LeafError),
    /// It belongs to another deployment.
    #[error(
        "the certificate is of the trust domain `{found}`, expected was `{expected}`; hint: this node joined another deployment"
    )]
    WrongTrustDomain {
        /// Where it claims to come from.
        found: TrustDomain,
        /// Where we belong.
        expected: TrustDomain,
    },
    /// The holder plays another part.
    #[error(
        "the certificate is of a {found}, expected was {}; hint: is this the right address?",
        Words(expected)
    )]
    WrongRole {
        /// The part that it claims.
        found: Role,
        /// The parts that are expected here.
        expected: &'static [Role],
    },
    /// The holder is somebody else.
    #[error("the certificate is of {found}, who is not expected here")]
    NotExpected {
        /// Who it claims to be.
        found: SpiffeId,
    },
    /// Its time is over.
    #[error(
        "the certificate ended at {not_after}, and this machine's clock says {now}; hint: compare the clocks of both machines, or let the other side renew"
    )]
    Expired {
        /// When it ended.
        not_after: jiff::Timestamp,
        /// What our clock says.
        now: jiff::Timestamp,
    },
    /// Its time has not come.
    #[error(
        "the certificate begins at {not_before}, and this machine's clock says {now}; hint: compare the clocks of both machines: `date -u`"
    )]
    NotYetValid {
        /// When it begins.
        not_before: jiff::Timestamp,
        /// What our clock says.
        now: jiff::Timestamp,
    },
    /// None of our roots issued it.
    #[error(
        "the certificate was not issued by a root that this node trusts; hint: join again with a new token if the authority was replaced"
    )]
    UnknownIssuer,
    /// It was not issued for what it is used for.
    #[error("the certificate was not issued for {}", purpose.text())]
    WrongPurpose {
        /// What it is used for here.
        purpose: Purpose,
    },
    /// The root of the join token is not in the presented chain.
    #[error(
        "the other side does not know the authority that the join token names; hint: is this the right address, and the newest token?"
    )]
    PinMismatch,
    /// The judge of this boundary said no.
    #[error("the certificate is valid but refused: {0}")]
    Refused(Reason),
    /// A signature or an encoding is wrong.
    #[error("the certificate chain does not hold")]
    Chain(#[source] webpki::Error),
}

struct Words<'a>(&'a [Role]);

impl fmt::Display for Words<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, role) in self.0.iter().enumerate() {
            let article = if *role == Role::Agent { "an" } else { "a" };
            let joint = if at == 0 { "" } else { " or " };
            write!(f, "{joint}{article} {role}")?;
        }
        Ok(())
    }
}

impl VerifyError {
    /// The error that a failed handshake carries, when our verifier ended it.
    #[must_use]
    pub fn carried_by(error: &rustls::Error) -> Option<Self> {
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "a foreign enum with dozens of variants, of which one is ours"
        )]
        match error {
            rustls::Error::InvalidCertificate(error) => Self::from_certificate_error(error),
            _ => None,
        }
    }

    fn from_certificate_error(error: &CertificateError) -> Option<Self> {
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "a foreign enum with dozens of variants, of which three are ours"
        )]
        match error {
            CertificateError::ExpiredContext { time, not_after } => Some(Self::Expired {
                not_after: timestamp(*not_after),
                now: timestamp(*time),
            }),
            CertificateError::NotValidYetContext { time, not_before } => Some(Self::NotYetValid {
                not_before: timestamp(*not_before),
                now: timestamp(*time),
            }),
            CertificateError::Other(OtherError(inner)) => inner.downcast_ref::<Self>().cloned(),
            _ => None,
        }
    }

    /// How a flow or a session ends that met this error.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Refused(reason) => *reason,
            Self::Leaf(_)
            | Self::WrongTrustDomain { .. }
            | Self::WrongRole { .. }
            | Self::NotExpected { .. }
            | Self::Expired { .. }
            | Self::NotYetValid { .. }
            | Self::UnknownIssuer
            | Self::WrongPurpose { .. }
            | Self::PinMismatch
            | Self::Chain(_) => Reason::PeerNotAuthentic,
        }
    }
}

impl From<VerifyError> for rustls::Error {
    fn from(error: VerifyError) -> Self {
        // These two travel as alerts of their own, so the other side learns that its clock may be wrong.
        let certificate_error = match &error {
            VerifyError::Expired { not_after, now } => CertificateError::ExpiredContext {
                time: unix_time(*now),
                not_after: unix_time(*not_after),
            },
            VerifyError::NotYetValid { not_before, now } => CertificateError::NotValidYetContext {
                time: unix_time(*now),
                not_before: unix_time(*not_before),
            },
            VerifyError::Leaf(_)
            | VerifyError::WrongTrustDomain { .. }
            | VerifyError::WrongRole { .. }
            | VerifyError::NotExpected { .. }
            | VerifyError::UnknownIssuer
            | VerifyError::WrongPurpose { .. }
            | VerifyError::PinMismatch
            | VerifyError::Refused(_)
            | VerifyError::Chain(_) => CertificateError::Other(OtherError(Arc::new(error))),
        };
        Self::InvalidCertificate(certificate_error)
    }
}

pub(super) fn timestamp(time: UnixTime) -> jiff::Timestamp {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    jiff::Timestamp::from_second(seconds).unwrap_or(jiff::Timestamp::MAX)
}

pub(super) fn unix_time(time: jiff::Timestamp) -> UnixTime {
    let seconds = u64::try_from(time.as_second()).unwrap_or(0); // before 1970 nothing was valid
    UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds))
}

/// What the chain must lead to.
#[derive(Debug)]
enum Basis {
    Trust(TrustStore),
    Pin(CaPin),
}

/// Verifies the other side of a handshake, whichever side it is.
#[derive(Debug)]
pub struct SpiffeVerifier {
    basis: Basis,
    expect: Expect,
    client_certificate_mandatory: bool,
    provider: Arc<CryptoProvider>,
}

impl SpiffeVerifier {
    /// Judges by the roots and the trust domain of `trust`, as they are at each handshake.
    #[must_use]
    pub fn new(trust: &TrustStore, expect: Expect) -> Self {
        Self::on(Basis::Trust(trust.clone()), expect)
    }

    /// Judges by a root that the other side presents and whose key has the pinned digest; any trust domain, because
    /// the node learns its own only afterwards.
    #[must_use]
    pub fn pinned(pin: CaPin, expect: Expect) -> Self {
        Self::on(Basis::Pin(pin), expect)
    }

    fn on(basis: Basis, expect: Expect) -> Self {
        Self {
            basis,
            expect,
            client_certificate_mandatory: true,
            provider: provider(),
        }
    }

    /// Lets clients without a certificate through the handshake; one that is presented must still be good.
    #[must_use]
    pub fn client_certificate_optional(mut self) -> Self {
        self.client_certificate_mandatory = false;
        self
    }

    /// Verifies a chain at a time.
    ///
    /// # Errors
    /// With the first thing that is not as it must be.
    pub fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<PeerIdentity, VerifyError> {
        match &self.basis {
            Basis::Trust(trust) => {
                let trust = trust.current();
                let roots: Vec<&CertificateDer<'_>> = trust.roots.iter().collect();
                let domain = Some(&trust.trust_domain);
                verify_chain(&self.expect, leaf, others, &roots, domain, now)
            }
            Basis::Pin(pin) => {
                let pinned = |root: &&CertificateDer<'_>| root_pin(root).is_ok_and(|p| p == *pin);
                let root = others.iter().find(pinned).ok_or(VerifyError::PinMismatch)?;
                verify_chain(&self.expect, leaf, others, &[root], None, now)
            }
        }
    }
}

/// Verifies that `leaf` leads to one of `roots`, is valid at `now`, and is whom `expect` asks for.
pub(super) fn verify_chain(
    expect: &Expect,
    leaf: &CertificateDer<'_>,
    others: &[CertificateDer<'_>],
    roots: &[&CertificateDer<'_>],
    trust_domain: Option<&TrustDomain>,
    now: UnixTime,
) -> Result<PeerIdentity, VerifyError> {
    let peer = PeerIdentity::from_leaf(leaf)?;
    check_claims(expect, &peer, trust_domain)?;
    let anchors = roots
        .iter()
        .map(|root| anchor_from_trusted_cert(root))
        .collect::<Result<Vec<_>, _>>()
        .map_err(VerifyError::Chain)?;
    let certificate = EndEntityCert::try_from(leaf).map_err(VerifyError::Chain)?;
    certificate
        .verify_for_usage(
            provider().signature_verification_algorithms.all,
            &anchors,
            others,
            now,
            expect.purpose.key_usage(),
            None, // revocation is the views' business: serial and key digest, see the judge
            None,
        )
        .map_err(|error| chain_error(error, expect.purpose))?;
    if let Some(judge) = &expect.judge {
        judge(&peer).map_err(VerifyError::Refused)?;
    }
    Ok(peer)
}

fn check_claims(
    expect: &Expect,
    peer: &PeerIdentity,
    trust_domain: Option<&TrustDomain>,
) -> Result<(), VerifyError> {
    if let Some(expected) = trust_domain
        && peer.id.trust_domain != *expected
    {
        return Err(VerifyError::WrongTrustDomain {
            found: peer.id.trust_domain.clone(),
            expected: expected.clone(),
        });
    }
    if !expect.roles.contains(&peer.role()) {
        return Err(VerifyError::WrongRole {
            found: peer.role(),
            expected: expect.roles,
        });
    }
    match &expect.ids {
        Some(ids) if !ids.contains(&peer.id) => Err(VerifyError::NotExpected {
            found: peer.id.clone(),
        }),
        Some(_) | None => Ok(()),
    }
}

fn chain_error(error: webpki::Error, purpose: Purpose) -> VerifyError {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "a foreign enum; what has no clearer words of ours is passed on as it is"
    )]
    match error {
        webpki::Error::CertExpired { time, not_after } => VerifyError::Expired {
            not_after: timestamp(not_after),
            now: timestamp(time),
        },
        webpki::Error::CertNotValidYet { time, not_before } => VerifyError::NotYetValid {
            not_before: timestamp(not_before),
            now: timestamp(time),
        },
        webpki::Error::UnknownIssuer => VerifyError::UnknownIssuer,
        webpki::Error::RequiredEkuNotFoundContext(_) | webpki::Error::EmptyEkuExtension => {
            VerifyError::WrongPurpose { purpose }
        }
        other => VerifyError::Chain(other),
    }
}

impl ServerCertVerifier for SpiffeVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verify(end_entity, intermediates, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let supported = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, supported)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

impl ClientCertVerifier for SpiffeVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.client_certificate_mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[] // the names of our authorities are nobody's business
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.verify(end_entity, intermediates, now)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        ServerCertVerifier::verify_tls13_signature(self, message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ServerCertVerifier::supported_verify_schemes(self)
    }
}

fn tls12() -> rustls::Error {
    PeerIncompatible::Tls12NotOffered.into()
}
