//! TLS 1.3 as Sealock speaks it: one configuration for each boundary, one verifier for all of them.
//!
//! Every boundary names the role that it expects on the other side. There is no resumption, no early data, no TLS 1.2
//! and no server name: identities are SPIFFE ids, so host names decide nothing and are not sent.
//! Deliberately absent: the web's authorities; only the roots of the own deployment count.

pub mod signed;
pub mod verify;
pub mod voucher;

use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock};

use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs as suite;
use rustls::server::NoServerSessionStorage;
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::{CertificateDer, ServerName};
use sealock_core::identity::{AgentId, Principal, Role, SpiffeId};
use sealock_core::name::NodeName;
use sealock_core::reason::Reason;
use sealock_core::token::CaPin;

use crate::identity::{IdentityStore, LeafError, PeerIdentity, ServerIdentity, TrustStore};
use verify::{Expect, Purpose, SpiffeVerifier};

/// The protocols that a handshake may agree on.
pub mod alpn {
    /// A session between an agent and a relay; needs an agent's certificate.
    pub const SESSION: &[u8] = b"sealock/1";
    /// One stream to the controller for a node that has no certificate yet.
    pub const JOIN: &[u8] = b"sealock-join/1";
    /// What clients speak before a WebSocket; its path names one of the protocols above.
    pub const HTTP: &[u8] = b"http/1.1";
    /// One leg of one stream, of which the relay joins the two ends; needs an agent's certificate, and TCP.
    pub const CONDUIT: &[u8] = b"sealock-conduit/1";
    /// Between two relays; needs a relay's certificate.
    pub const MESH: &[u8] = b"sealock-mesh/1";
    /// The node interface of the controller.
    pub const H2: &[u8] = b"h2";
    /// An end-to-end stream between two agents.
    pub const E2E: &[u8] = b"sealock-e2e/1";
    /// What every version offers to a relay behind its own, and means nothing: two that share only this have no version
    /// in common, and can tell each other so. Without it the QUIC library of a server falls silent.
    pub const NONE: &[u8] = b"sealock-none";
}

/// The purposes of certificates that no standard names, as random numbers under the UUID arc 2.25 (ITU-T X.667).
pub mod eku {
    /// May serve end-to-end streams: providing agents.
    pub const E2E: &[u64] = &[2, 25, 2_645_163_688_315_909_872];
    /// The same as the content of a DER object identifier.
    pub const E2E_DER: &[u8] = &[0x69, 0xa4, 0xda, 0xe0, 0xcb, 0xc1, 0xf6, 0xd3, 0xed, 0x70];
    /// May sign the heads of views: the controller's signer.
    pub const VIEW_SIGNER: &[u64] = &[2, 25, 1_887_222_829_154_624_511];
    /// The same as the content of a DER object identifier.
    pub const VIEW_SIGNER_DER: &[u8] =
        &[0x69, 0x9a, 0x98, 0xb0, 0xe5, 0xa0, 0xbe, 0x93, 0xc7, 0x7f];
}

/// The cryptography of every connection: TLS 1.3 suites, post-quantum key exchange first.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    // One for all: every call of a service makes a configuration.
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        let mut provider = suite::default_provider();
        provider
            .cipher_suites
            .retain(|suite| suite.tls13().is_some());
        provider.kx_groups = vec![
            suite::kx_group::X25519MLKEM768,
            suite::kx_group::X25519,
            suite::kx_group::SECP256R1,
        ];
        Arc::new(provider)
    });
    Arc::clone(&PROVIDER)
}

/// The name that the TLS library asks for; it is never sent and decides nothing.
///
/// # Panics
/// Never: the name is well formed.
#[must_use]
pub fn unused_server_name() -> ServerName<'static> {
    UNUSED_NAME.try_into().expect("`sealock` is a host name")
}

pub(crate) const UNUSED_NAME: &str = "sealock";

/// For a relay's listener: agents with a certificate ([`alpn::SESSION`]), other relays with theirs ([`alpn::MESH`]) and
/// joining nodes without ([`alpn::JOIN`]).
///
/// TLS itself neither demands the certificate nor compares its role with the protocol; [`admit`] decides once both are
/// known.
#[must_use]
pub fn relay_listener(identity: &IdentityStore, trust: &TrustStore) -> Arc<ServerConfig> {
    let expect = Expect::roles(&[Role::Agent, Role::Relay], Purpose::Client);
    let alpn = [alpn::SESSION, alpn::MESH, alpn::JOIN, alpn::NONE];
    server(identity, trust, expect, Demand::Optional, &alpn)
}

/// For a relay's listener over TCP: the same, and WebSockets for both.
#[must_use]
pub fn relay_tcp_listener(identity: &IdentityStore, trust: &TrustStore) -> Arc<ServerConfig> {
    let expect = Expect::role(Role::Agent, Purpose::Client);
    let alpn = [alpn::SESSION, alpn::CONDUIT, alpn::JOIN, alpn::HTTP];
    server(identity, trust, expect, Demand::Optional, &alpn)
}

/// For an agent's session to a relay.
#[must_use]
pub fn relay_client(identity: &IdentityStore, trust: &TrustStore) -> Arc<ClientConfig> {
    let verifier = SpiffeVerifier::new(trust, Expect::role(Role::Relay, Purpose::Server));
    client(Some(identity), verifier, &[alpn::SESSION, alpn::NONE])
}

/// For a relay's connection to another relay.
#[must_use]
pub fn mesh_client(identity: &IdentityStore, trust: &TrustStore) -> Arc<ClientConfig> {
    let verifier = SpiffeVerifier::new(trust, Expect::role(Role::Relay, Purpose::Server));
    client(Some(identity), verifier, &[alpn::MESH, alpn::NONE])
}

/// For a node that has nothing but a token, on its way through a relay.
#[must_use]
pub fn join_relay_client(pin: CaPin) -> Arc<ClientConfig> {
    let verifier = SpiffeVerifier::pinned(pin, Expect::role(Role::Relay, Purpose::Server));
    client(None, verifier, &[alpn::JOIN, alpn::NONE])
}

/// For the controller's node interface: agents and relays with a certificate, joining nodes without.
///
/// Each method asks for the role that it serves.
#[must_use]
pub fn controller_listener(identity: &IdentityStore, trust: &TrustStore) -> Arc<ServerConfig> {
    let expect = Expect::roles(&[Role::Agent, Role::Relay], Purpose::Client);
    server(identity, trust, expect, Demand::Optional, &[alpn::H2])
}

/// For a node's calls to the controller.
#[must_use]
pub fn controller_client(identity: &IdentityStore, trust: &TrustStore) -> Arc<ClientConfig> {
    let expect = Expect::role(Role::Controller, Purpose::Server);
    let verifier = SpiffeVerifier::new(trust, expect);
    client(Some(identity), verifier, &[alpn::H2])
}

/// For the enrolment of a node that has nothing but a token.
#[must_use]
pub fn enrol_client(pin: CaPin) -> Arc<ClientConfig> {
    let expect = Expect::role(Role::Controller, Purpose::Server);
    client(None, SpiffeVerifier::pinned(pin, expect), &[alpn::H2])
}

/// For a node whose certificate ended, on its way through a relay of the roots that it knows.
#[must_use]
pub fn recover_relay_client(trust: &TrustStore) -> Arc<ClientConfig> {
    let expect = Expect::role(Role::Relay, Purpose::Server);
    let verifier = SpiffeVerifier::new(trust, expect);
    client(None, verifier, &[alpn::JOIN, alpn::NONE])
}

/// For the return of a node whose certificate ended.
#[must_use]
pub fn recover_client(trust: &TrustStore) -> Arc<ClientConfig> {
    let expect = Expect::role(Role::Controller, Purpose::Server);
    client(None, SpiffeVerifier::new(trust, expect), &[alpn::H2])
}

/// Judges a peer whose certificate has been verified, e.g. against the revocations of a view.
pub type Judge = Arc<dyn Fn(&PeerIdentity) -> Result<(), Reason> + Send + Sync>;

/// For the calling end of an end-to-end stream: the other end must be one of `providers`.
#[must_use]
pub fn e2e_client(
    identity: &IdentityStore,
    trust: &TrustStore,
    providers: &BTreeSet<AgentId>,
    judge: Option<Judge>,
) -> Arc<ClientConfig> {
    let trust_domain = trust.current().trust_domain.clone();
    let to_id = |agent: &AgentId| SpiffeId {
        trust_domain: trust_domain.clone(),
        principal: Principal::Agent(agent.clone()),
    };
    let expect = Expect::role(Role::Agent, Purpose::E2eServer)
        .only(providers.iter().map(to_id).collect())
        .judged_by(judge);
    let verifier = SpiffeVerifier::new(trust, expect);
    let mut config = client(Some(identity), verifier, &[alpn::E2E]);
    Arc::make_mut(&mut config).enable_secret_extraction = true; // see `e2e::record`
    config
}

/// For the providing end of an end-to-end stream: the other end must be an agent.
#[must_use]
pub fn e2e_server(
    identity: &IdentityStore,
    trust: &TrustStore,
    judge: Option<Judge>,
) -> Arc<ServerConfig> {
    let expect = Expect::role(Role::Agent, Purpose::Client).judged_by(judge);
    let mut config = server(identity, trust, expect, Demand::Mandatory, &[alpn::E2E]);
    Arc::make_mut(&mut config).enable_secret_extraction = true; // see `e2e::record`
    config
}

/// Whether a client without a certificate gets through the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Demand {
    Mandatory,
    Optional,
}

fn server(
    identity: &IdentityStore,
    trust: &TrustStore,
    expect: Expect,
    demand: Demand,
    alpn: &[&[u8]],
) -> Arc<ServerConfig> {
    let mut verifier = SpiffeVerifier::new(trust, expect);
    if demand == Demand::Optional {
        verifier = verifier.client_certificate_optional();
    }
    let resolver = ServerIdentity {
        identity: identity.clone(),
        trust: trust.clone(),
        pinned_alpns: &[alpn::JOIN, alpn::HTTP, alpn::H2],
    };
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has TLS 1.3 suites")
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(resolver));
    config.alpn_protocols = alpn.iter().map(|alpn| alpn.to_vec()).collect();
    // A resumed session would skip the look at the certificate and at revocations; early data could be replayed.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Arc::new(config)
}

fn client(
    identity: Option<&IdentityStore>,
    verifier: SpiffeVerifier,
    alpn: &[&[u8]],
) -> Arc<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has TLS 1.3 suites")
        .dangerous() // «dangerous» is any verifier but the web's
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match identity {
        Some(identity) => builder.with_client_cert_resolver(Arc::new(identity.clone())),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|alpn| alpn.to_vec()).collect();
    config.enable_sni = false;
    config.enable_early_data = false;
    config.resumption = Resumption::disabled();
    Arc::new(config)
}

/// Who came to a relay's listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// An agent with a session to open.
    Agent(AgentId, PeerIdentity),
    /// Another relay, which passes legs on.
    Relay(NodeName, PeerIdentity),
    /// A node without a certificate, which gets one stream to the controller and nothing else.
    Joining,
}

/// Decides by protocol and certificate who came to a relay's listener.
///
/// # Errors
/// `NotAdmitted` for a session without an agent's certificate and a relay's protocol without a relay's, `VersionUnsupported` for any other protocol.
pub fn admit(alpn: Option<&[u8]>, peer: Option<&PeerIdentity>) -> Result<Admission, Reason> {
    match (alpn, peer) {
        (Some(alpn::SESSION), Some(peer)) => match &peer.id.principal {
            Principal::Agent(agent) => Ok(Admission::Agent(agent.clone(), peer.clone())),
            Principal::User { .. } | Principal::Relay(_) | Principal::Controller(_) => {
                Err(Reason::NotAdmitted)
            }
        },
        (Some(alpn::MESH), Some(peer)) => match &peer.id.principal {
            Principal::Relay(relay) => Ok(Admission::Relay(relay.clone(), peer.clone())),
            Principal::User { .. } | Principal::Agent(_) | Principal::Controller(_) => {
                Err(Reason::NotAdmitted)
            }
        },
        (Some(alpn::SESSION | alpn::MESH), None) => Err(Reason::NotAdmitted),
        (Some(alpn::JOIN), _) => Ok(Admission::Joining),
        (Some(_) | None, _) => Err(Reason::VersionUnsupported),
    }
}

/// The identity that the other side proved in a handshake, from the chain that the TLS library hands out.
///
/// # Errors
/// When the leaf is not an identity; after a handshake with our verifier it always is.
pub fn peer_identity(
    chain: Option<&[CertificateDer<'_>]>,
) -> Result<Option<PeerIdentity>, LeafError> {
    chain
        .and_then(<[_]>::first)
        .map(PeerIdentity::from_leaf)
        .transpose()
}

#[cfg(test)]
mod tests;
