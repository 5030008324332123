//! Certificates that are the same in every run: Ed25519 keys from fixed bytes, fixed names, numbers and dates.

use std::sync::Arc;

use noq::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SerialNumber, date_time_ymd,
};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::tls;

pub(super) const SERVER_NAME: &str = "relay.test";
const ALPN: &[u8] = b"sim";

// RFC 8410 §7: what comes before the 32 bytes of an Ed25519 key.
const PKCS8: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

/// What both ends need to talk to each other, and to nobody else.
#[derive(Clone)]
pub(super) struct Identities {
    pub(super) client: Arc<QuicClientConfig>,
    pub(super) server: Arc<QuicServerConfig>,
}

fn key(fill: u8) -> (KeyPair, PrivatePkcs8KeyDer<'static>) {
    let bytes = PrivatePkcs8KeyDer::from([PKCS8.as_slice(), &[fill; 32]].concat());
    let pair = KeyPair::from_pkcs8_der_and_sign_algo(&bytes, &rcgen::PKCS_ED25519);
    (pair.expect("an Ed25519 key"), bytes)
}

fn params(names: &[&str], serial: u8) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let mut params = CertificateParams::new(names).expect("names");
    params.serial_number = Some(SerialNumber::from_slice(&[serial]));
    params.not_before = date_time_ymd(2000, 1, 1);
    params.not_after = date_time_ymd(2100, 1, 1);
    params
}

impl Identities {
    pub(super) fn new() -> Self {
        Self::padded(0)
    }

    /// Certificates that are longer by so many bytes: the handshake then fills its packets otherwise.
    pub(super) fn padded(padding: usize) -> Self {
        let (root_key, _) = key(1);
        let mut root = params(&[], 1);
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root_certificate = root.self_signed(&root_key).expect("signs itself");
        let issuer = Issuer::new(root, root_key);
        let mut roots = RootCertStore::empty();
        roots.add(root_certificate.der().clone()).expect("a root");
        let roots = Arc::new(roots);
        let leaf =
            |fill: u8, name: &str| -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
                let (pair, bytes) = key(fill);
                let mut params = params(&[name], fill);
                let more = DnType::OrganizationName;
                params.distinguished_name.push(more, "x".repeat(padding));
                let signed = params.signed_by(&pair, &issuer);
                (vec![signed.expect("signs").der().clone()], bytes.into())
            };
        let (chain, private) = leaf(2, SERVER_NAME);
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), tls::provider());
        let mut server = ServerConfig::builder_with_provider(tls::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_client_cert_verifier(verifier.build().expect("a verifier"))
            .with_single_cert(chain, private)
            .expect("a certificate");
        server.alpn_protocols = vec![ALPN.to_vec()];
        let (chain, private) = leaf(3, "agent.test");
        let mut client = ClientConfig::builder_with_provider(tls::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, private)
            .expect("a certificate");
        client.alpn_protocols = vec![ALPN.to_vec()];
        // A ticket would make the second handshake another one.
        client.resumption = rustls::client::Resumption::disabled();
        server.send_tls13_tickets = 0;
        Self {
            client: Arc::new(client.try_into().expect("TLS 1.3")),
            server: Arc::new(server.try_into().expect("TLS 1.3")),
        }
    }
}
