//! Each boundary against everybody who might stand there, through real handshakes.

use std::collections::BTreeSet;
use std::sync::Arc;

use rcgen::ExtendedKeyUsagePurpose;
use rustls::{ClientConnection, ServerConnection};
use sealock_core::identity::{AgentId, Role};
use sealock_core::reason::Reason;

use super::verify::VerifyError;
use super::*;
use crate::identity::testing::{Leaf, TestCa};
use crate::identity::{IdentityStore, PeerIdentity, TrustStore};

/// What each side met, and who the other one turned out to be.
#[derive(Debug)]
struct Met {
    client: Result<Option<PeerIdentity>, rustls::Error>,
    server: Result<Option<PeerIdentity>, rustls::Error>,
}

impl Met {
    fn both_fine(&self) -> bool {
        self.client.is_ok() && self.server.is_ok()
    }

    /// The error of the side that judged and said no.
    fn verdict(&self) -> VerifyError {
        let errors = [self.client.as_ref().err(), self.server.as_ref().err()];
        let mut ours = errors
            .into_iter()
            .flatten()
            .filter_map(VerifyError::carried_by);
        ours.next()
            .unwrap_or_else(|| panic!("nobody judged: {self:?}"))
    }
}

fn handshake(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> Met {
    let mut client = ClientConnection::new(client, unused_server_name()).expect("a client");
    let mut server = ServerConnection::new(server).expect("a server");
    let (mut client_error, mut server_error) = (None, None);
    for _ in 0..8 {
        let mut wire = Vec::new();
        client.write_tls(&mut wire).expect("memory");
        let mut wire = wire.as_slice();
        while !wire.is_empty() && server_error.is_none() {
            server.read_tls(&mut wire).expect("memory");
            server_error = server.process_new_packets().err();
        }
        let mut wire = Vec::new();
        server.write_tls(&mut wire).expect("memory");
        let mut wire = wire.as_slice();
        while !wire.is_empty() && client_error.is_none() {
            client.read_tls(&mut wire).expect("memory");
            client_error = client.process_new_packets().err();
        }
    }
    let who = |chain| peer_identity(chain).expect("a verified leaf");
    Met {
        client: client_error.map_or_else(|| Ok(who(client.peer_certificates())), Err),
        server: server_error.map_or_else(|| Ok(who(server.peer_certificates())), Err),
    }
}

fn agent(name: &str) -> AgentId {
    AgentId {
        tenant: "default".parse().expect("a name"),
        name: name.parse().expect("a name"),
    }
}

fn only(name: &str) -> BTreeSet<AgentId> {
    BTreeSet::from([agent(name)])
}

type Boundary = fn(&IdentityStore, &IdentityStore, &TrustStore) -> Met;

const BOUNDARIES: [(&str, Role, Role, Boundary); 4] = [
    ("session", Role::Agent, Role::Relay, |c, s, t| {
        handshake(relay_client(c, t), relay_listener(s, t))
    }),
    (
        "node interface from an agent",
        Role::Agent,
        Role::Controller,
        |c, s, t| handshake(controller_client(c, t), controller_listener(s, t)),
    ),
    (
        "node interface from a relay",
        Role::Relay,
        Role::Controller,
        |c, s, t| handshake(controller_client(c, t), controller_listener(s, t)),
    ),
    ("end to end", Role::Agent, Role::Agent, |c, s, t| {
        handshake(
            e2e_client(c, t, &only("agent"), None),
            e2e_server(s, t, None),
        )
    }),
];

fn of_role(ca: &TestCa, role: Role) -> IdentityStore {
    ca.identity(match role {
        Role::Agent => "default/agent/agent",
        Role::Relay => "relay/relay",
        Role::Controller => "controller/controller",
        Role::User => "default/user/user",
    })
}

const ROLES: [Role; 3] = [Role::Agent, Role::Relay, Role::Controller];

// S10: whoever plays another role than the boundary expects is refused, on either side of it.
#[test]
fn each_boundary_lets_through_its_own_roles_and_nobody_else() {
    let ca = TestCa::new("td");
    let trust = ca.trust_store();
    for (name, client_role, server_role, boundary) in BOUNDARIES {
        for client in ROLES {
            for server in ROLES {
                let met = boundary(&of_role(&ca, client), &of_role(&ca, server), &trust);
                // The controller and the relay take agents and relays on one listener; there `admit` tells them apart.
                let client_fits = client == client_role
                    || (matches!(server_role, Role::Controller | Role::Relay)
                        && client != Role::Controller);
                let expected = client_fits && server == server_role;
                assert_eq!(
                    met.both_fine(),
                    expected,
                    "{name}: {client} → {server}: {met:?}"
                );
                if !expected {
                    let verdict = met.verdict();
                    assert!(
                        matches!(verdict, VerifyError::WrongRole { .. }),
                        "{name}: {client} → {server}: {verdict}"
                    );
                }
            }
        }
    }
}

#[test]
fn both_sides_learn_who_the_other_is() {
    let ca = TestCa::new("td");
    let (a, r) = (ca.identity("default/agent/a"), ca.identity("relay/r"));
    let trust = ca.trust_store();
    let met = handshake(relay_client(&a, &trust), relay_listener(&r, &trust));
    let client_saw = met.client.expect("fine").expect("a relay");
    let server_saw = met.server.expect("fine").expect("an agent");
    assert_eq!(client_saw.id.to_string(), "spiffe://td/relay/r");
    assert_eq!(&server_saw, a.current().expect("there").leaf());
}

// S02, S10: the role in the path is not enough, the purposes must fit as well, and the other way round.
#[test]
fn a_certificate_with_foreign_purposes_is_refused() {
    let ca = TestCa::new("td");
    let trust = ca.trust_store();
    use ExtendedKeyUsagePurpose::{Any, ClientAuth, Other, ServerAuth};
    let wrong = [
        vec![],
        vec![Any],
        vec![ServerAuth],
        vec![ClientAuth, ServerAuth],
        vec![Other(eku::VIEW_SIGNER.to_vec())],
    ];
    let caller = ca.identity("default/agent/caller");
    for purposes in wrong {
        let mut leaf = Leaf::of(Role::Agent, &["spiffe://td/default/agent/agent"]);
        leaf.purposes = purposes.clone();
        let provider = IdentityStore::new(ca.svid(&leaf));
        let client = e2e_client(&caller, &trust, &only("agent"), None);
        let met = handshake(client, e2e_server(&provider, &trust, None));
        let verdict = met.verdict();
        assert!(
            matches!(verdict, VerifyError::WrongPurpose { .. }),
            "{purposes:?}: {verdict}"
        );
    }
    let mut leaf = Leaf::of(Role::Relay, &["spiffe://td/relay/r"]);
    leaf.purposes = vec![ClientAuth, Other(eku::E2E.to_vec())];
    let relay = IdentityStore::new(ca.svid(&leaf));
    let met = handshake(
        relay_client(&caller, &trust),
        relay_listener(&relay, &trust),
    );
    assert!(matches!(met.verdict(), VerifyError::WrongPurpose { .. }));
}

// S10: an agent's certificate is not good as the web server of any host, `localhost` least of all.
#[test]
fn an_agents_certificate_is_no_web_server_for_localhost() {
    let ca = TestCa::new("td");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca.trust().roots[0].clone()).expect("our root");
    let web = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let server = of_role(&ca, Role::Agent).current().expect("there");
    let key = server.key().pkcs8_for_tests();
    let server = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_no_client_auth()
        .with_single_cert(server.chain().to_vec(), key)
        .expect("a pair");
    let localhost = "localhost".try_into().expect("a host name");
    let mut client = ClientConnection::new(Arc::new(web), localhost).expect("a client");
    let mut server = ServerConnection::new(Arc::new(server)).expect("a server");
    let mut wire = Vec::new();
    client.write_tls(&mut wire).expect("memory");
    server.read_tls(&mut wire.as_slice()).expect("memory");
    server.process_new_packets().expect("a hello");
    let mut wire = Vec::new();
    server.write_tls(&mut wire).expect("memory");
    client.read_tls(&mut wire.as_slice()).expect("memory");
    assert!(matches!(
        client.process_new_packets(),
        Err(rustls::Error::InvalidCertificate(_))
    ));
}

// As while one root takes over from another: certificates of either are good for whoever knows both.
#[test]
fn certificates_of_two_roots_meet_wherever_both_are_trusted() {
    let (one, other) = (TestCa::new("td"), TestCa::new("td"));
    let mut trust = one.trust();
    trust.roots.extend(other.trust().roots);
    let both = TrustStore::new(trust);
    for (what, client, server, boundary) in BOUNDARIES {
        for (of_client, of_server) in [
            (&one, &one),
            (&one, &other),
            (&other, &one),
            (&other, &other),
        ] {
            let (client, server) = (of_role(of_client, client), of_role(of_server, server));
            let met = boundary(&client, &server, &both);
            assert!(met.both_fine(), "{what}: {met:?}");
        }
        for (of_client, of_server) in [(&one, &other), (&other, &one)] {
            let (client, server) = (of_role(of_client, client), of_role(of_server, server));
            let met = boundary(&client, &server, &one.trust_store());
            assert!(!met.both_fine(), "{what}: one root was enough");
        }
    }
}

#[test]
fn only_the_expected_provider_is_taken_and_an_empty_set_is_nobody() {
    let ca = TestCa::new("td");
    let trust = ca.trust_store();
    let (caller, provider) = (
        ca.identity("default/agent/caller"),
        ca.identity("default/agent/p"),
    );
    let meet = |expected: &BTreeSet<AgentId>| {
        let client = e2e_client(&caller, &trust, expected, None);
        handshake(client, e2e_server(&provider, &trust, None))
    };
    assert!(meet(&only("p")).both_fine());
    for expected in [only("q"), BTreeSet::new()] {
        assert!(matches!(
            meet(&expected).verdict(),
            VerifyError::NotExpected { .. }
        ));
    }
    let other_tenant = AgentId {
        tenant: "other".parse().expect("a name"),
        ..agent("p")
    };
    let met = meet(&BTreeSet::from([other_tenant]));
    assert!(matches!(met.verdict(), VerifyError::NotExpected { .. }));
}

#[test]
fn certificates_outside_their_time_are_refused_with_both_clocks_named() {
    let ca = TestCa::new("td");
    let trust = ca.trust_store();
    let relay = ca.identity("relay/r");
    let meet = |from, until| {
        let leaf = Leaf {
            from,
            until,
            ..Leaf::of(Role::Agent, &["spiffe://td/default/agent/a"])
        };
        let agent = IdentityStore::new(ca.svid(&leaf));
        let not_after = agent.current().expect("there").leaf().not_after;
        let not_before = agent.current().expect("there").leaf().not_before;
        let met = handshake(relay_client(&agent, &trust), relay_listener(&relay, &trust));
        (met, not_before, not_after)
    };
    let (met, _, ended) = meet(-7_200, -10);
    let verdict = met.verdict();
    let VerifyError::Expired { not_after, now } = &verdict else {
        panic!("{verdict}")
    };
    assert_eq!(*not_after, ended);
    let text = verdict.to_string();
    assert!(
        text.contains(&ended.to_string()) && text.contains(&now.to_string()),
        "{text}"
    );
    assert!(text.contains("hint:"));
    let (met, begins, _) = meet(3_600, 7_200);
    let verdict = met.verdict();
    assert!(
        matches!(&verdict, VerifyError::NotYetValid { not_before, .. } if *not_before == begins)
    );
    assert!(verdict.to_string().contains("clock"));
}

#[test]
fn another_deployment_and_another_root_are_told_apart() {
    let (ours, theirs, impostor) = (TestCa::new("td"), TestCa::new("other"), TestCa::new("td"));
    let trust = ours.trust_store();
    let relay = ours.identity("relay/r");
    let meet = |ca: &TestCa| {
        let client = relay_client(&ca.identity("default/agent/a"), &trust);
        handshake(client, relay_listener(&relay, &trust)).verdict()
    };
    assert!(matches!(
        meet(&theirs),
        VerifyError::WrongTrustDomain { .. }
    ));
    // The same trust domain and the same root name, but not our root's key.
    let verdict = meet(&impostor);
    assert!(
        matches!(verdict, VerifyError::Chain(_) | VerifyError::UnknownIssuer),
        "{verdict}"
    );
    assert_eq!(verdict.reason(), Reason::PeerNotAuthentic);
}

// S07: without roots nobody is let in.
#[test]
fn trust_without_roots_refuses_everybody() {
    let ca = TestCa::new("td");
    let empty = TrustStore::new(crate::identity::Trust {
        roots: vec![],
        ..ca.trust()
    });
    let (a, r) = (ca.identity("default/agent/a"), ca.identity("relay/r"));
    let met = handshake(
        relay_client(&a, &ca.trust_store()),
        relay_listener(&r, &empty),
    );
    assert_eq!(met.verdict(), VerifyError::UnknownIssuer);
    let met = handshake(
        relay_client(&a, &empty),
        relay_listener(&r, &ca.trust_store()),
    );
    assert_eq!(met.verdict(), VerifyError::UnknownIssuer);
}

// S09: two names in a chain that is otherwise good.
#[test]
fn a_leaf_with_two_uris_is_refused_in_the_handshake() {
    let ca = TestCa::new("td");
    let trust = ca.trust_store();
    let good = "spiffe://td/default/agent/a";
    let leaf = Leaf::of(Role::Agent, &[good, "spiffe://td/default/agent/b"]);
    let key = crate::identity::KeyPair::generate().expect("key");
    let der = ca.sign(&leaf, &key);
    let verifier = SpiffeVerifier::new(&trust, Expect::role(Role::Agent, Purpose::Client));
    let now = rustls_pki_types::UnixTime::now();
    let verdict = verifier.verify(&der, &[], now).expect_err("two names");
    assert_eq!(
        verdict,
        VerifyError::Leaf(LeafError::ManyNames { count: 2 })
    );
    assert!(
        verifier
            .verify(&ca.sign(&Leaf::of(Role::Agent, &[good]), &key), &[], now)
            .is_ok()
    );
}

// S15: the judge sees the key digest, so a certificate that was issued again for a revoked key stays out.
#[test]
fn a_revoked_key_stays_out_under_a_new_certificate() {
    let ca = TestCa::new("td");
    let trust = ca.trust_store();
    let caller = ca.identity("default/agent/caller");
    let provider = ca.identity("default/agent/p");
    let old = caller.current().expect("there");
    let revoked = old.leaf().key_digest.clone();
    let judge: Judge = Arc::new(move |peer: &PeerIdentity| {
        if peer.key_digest == revoked {
            Err(Reason::IdentityRevoked)
        } else {
            Ok(())
        }
    });
    let again = ca.sign(
        &Leaf::of(Role::Agent, &["spiffe://td/default/agent/caller"]),
        old.key(),
    );
    let again = crate::identity::Svid::new(vec![again], Arc::clone(old.key())).expect("a pair");
    assert_ne!(again.leaf().serial, old.leaf().serial);
    for (identity, fine) in [
        (caller, false),
        (IdentityStore::new(again), false),
        (ca.identity("default/agent/x"), true),
    ] {
        let client = e2e_client(&identity, &trust, &only("p"), None);
        let met = handshake(
            client,
            e2e_server(&provider, &trust, Some(Arc::clone(&judge))),
        );
        assert_eq!(met.both_fine(), fine, "{met:?}");
        if !fine {
            assert_eq!(met.verdict(), VerifyError::Refused(Reason::IdentityRevoked));
        }
    }
}

/// The same certificate under the other valid signature of its issuer: (r, n − s) in the place of (r, s).
fn with_flipped_signature(der: &CertificateDer<'_>) -> CertificateDer<'static> {
    use x509_parser::prelude::{FromDer, X509Certificate};
    const P256_ORDER: &str = "ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551";
    let (_, certificate) = X509Certificate::from_der(der).expect("readable");
    let signature = certificate.signature_value.data.as_ref();
    let r_length = usize::from(signature[3]);
    let (r, s) = signature[2..].split_at(2 + r_length);
    let order = data_encoding::HEXLOWER
        .decode(P256_ORDER.as_bytes())
        .expect("hex");
    let mut old = [0u8; 32];
    let digits = &s[2..][s.len().saturating_sub(2 + 32)..];
    old[32 - digits.len()..].copy_from_slice(digits);
    let mut flipped = vec![0u8; 33]; // the leading zero keeps the integer positive
    let mut borrow = 0;
    for at in (0..32).rev() {
        let digit = i16::from(order[at]) - i16::from(old[at]) - borrow;
        borrow = i16::from(digit < 0);
        flipped[at + 1] = digit.to_le_bytes()[0];
    }
    while flipped[0] == 0 && flipped[1] < 0x80 {
        flipped.remove(0); // DER wants the shortest form
    }
    let length = |bytes: &[u8]| u8::try_from(bytes.len()).expect("short");
    let mut pair = r.to_vec();
    pair.extend([2, length(&flipped)]);
    pair.extend(flipped);
    let mut body = der[4..der.len() - signature.len() - 3].to_vec(); // without the outer header and the bit string
    body.extend([3, length(&pair) + 3, 0, 0x30, length(&pair)]);
    body.extend(pair);
    let outer = u16::try_from(body.len()).expect("a small certificate");
    let mut whole = vec![0x30, 0x82];
    whole.extend(outer.to_be_bytes());
    whole.extend(body);
    CertificateDer::from(whole)
}

// S15: ECDSA signatures can be flipped by anybody, and the copy verifies; it must not verify its way past a revocation.
#[test]
fn a_revoked_leaf_with_a_flipped_signature_is_still_revoked() {
    let ca = TestCa::new("td");
    let trust = ca.trust_store();
    let (caller, provider) = (
        ca.identity("default/agent/caller"),
        ca.identity("default/agent/p"),
    );
    let old = caller.current().expect("there");
    let copy = with_flipped_signature(&old.chain()[0]);
    assert_ne!(copy, old.chain()[0]);
    let copy = crate::identity::Svid::new(vec![copy], Arc::clone(old.key())).expect("a pair");
    assert_eq!(copy.leaf(), old.leaf());
    let revoked = (old.leaf().serial.clone(), old.leaf().key_digest.clone());
    let judge: Judge = Arc::new(move |peer: &PeerIdentity| {
        if peer.serial == revoked.0 || peer.key_digest == revoked.1 {
            return Err(Reason::IdentityRevoked);
        }
        Ok(())
    });
    caller.set(copy);
    let client = e2e_client(&caller, &trust, &only("p"), None);
    let met = handshake(Arc::clone(&client), e2e_server(&provider, &trust, None));
    assert!(met.both_fine(), "the copy is a valid certificate: {met:?}");
    let met = handshake(client, e2e_server(&provider, &trust, Some(judge)));
    assert_eq!(met.verdict(), VerifyError::Refused(Reason::IdentityRevoked));
}

#[test]
fn a_joining_node_trusts_the_pinned_root_and_no_other() {
    let (ca, other) = (TestCa::new("td"), TestCa::new("td"));
    let trust = ca.trust_store();
    let (relay, controller) = (ca.identity("relay/r"), ca.identity("controller/c"));
    let via_relay = |pin| handshake(join_relay_client(pin), relay_listener(&relay, &trust));
    let enrol = |pin| handshake(enrol_client(pin), controller_listener(&controller, &trust));
    assert!(via_relay(ca.pin()).both_fine());
    assert!(enrol(ca.pin()).both_fine());
    assert_eq!(via_relay(other.pin()).verdict(), VerifyError::PinMismatch);
    assert_eq!(enrol(other.pin()).verdict(), VerifyError::PinMismatch);
    // A relay that poses as the controller, and a root that is shown but did not issue the leaf.
    let posing = handshake(enrol_client(ca.pin()), {
        server(
            &relay,
            &trust,
            Expect::role(Role::Agent, Purpose::Client),
            Demand::Optional,
            &[alpn::H2],
        )
    });
    assert!(matches!(posing.verdict(), VerifyError::WrongRole { .. }));
    let impostor = other.identity("controller/c");
    let met = handshake(
        enrol_client(ca.pin()),
        controller_listener(&impostor, &trust),
    );
    let verdict = met.verdict();
    assert!(
        matches!(verdict, VerifyError::Chain(_) | VerifyError::UnknownIssuer),
        "{verdict}"
    );
}

#[test]
fn sessions_are_admitted_by_protocol_and_certificate() {
    let ca = TestCa::new("td");
    let leaf = |path: &str| ca.identity(path).current().expect("there").leaf().clone();
    let (a, r) = (leaf("default/agent/a"), leaf("relay/r"));
    assert_eq!(
        admit(Some(alpn::SESSION), Some(&a)),
        Ok(Admission::Agent(agent("a"), a.clone()))
    );
    assert_eq!(admit(Some(alpn::JOIN), None), Ok(Admission::Joining));
    assert_eq!(admit(Some(alpn::JOIN), Some(&a)), Ok(Admission::Joining));
    assert_eq!(admit(Some(alpn::SESSION), None), Err(Reason::NotAdmitted));
    assert_eq!(
        admit(Some(alpn::SESSION), Some(&r)),
        Err(Reason::NotAdmitted)
    );
    for other in [None, Some(alpn::H2), Some(b"sealock/2".as_slice())] {
        assert_eq!(admit(other, Some(&a)), Err(Reason::VersionUnsupported));
    }
}

#[test]
fn no_common_protocol_ends_the_handshake() {
    let ca = TestCa::new("td");
    let trust = ca.trust_store();
    let met = handshake(
        controller_client(&ca.identity("default/agent/a"), &trust),
        relay_listener(&ca.identity("relay/r"), &trust),
    );
    assert!(matches!(
        met.server,
        Err(rustls::Error::NoApplicationProtocol)
    ));
    assert!(met.client.is_err());
}

// S03: a peer that only speaks older TLS gets nothing, from either side.
#[test]
fn older_tls_is_refused() {
    let ca = TestCa::new("td");
    let trust = ca.trust_store();
    let mut hello = vec![0x16, 3, 1, 0, 45, 1, 0, 0, 41, 3, 3]; // a TLS 1.2 ClientHello without extensions
    hello.extend([0; 32]);
    hello.extend([0, 0, 2, 0xc0, 0x2b, 1, 0]);
    let mut server =
        ServerConnection::new(relay_listener(&ca.identity("relay/r"), &trust)).expect("a server");
    server.read_tls(&mut hello.as_slice()).expect("memory");
    let error = server.process_new_packets().expect_err("TLS 1.2");
    assert!(
        matches!(error, rustls::Error::PeerIncompatible(_)),
        "{error}"
    );
    for suite in &provider().cipher_suites {
        assert!(suite.tls13().is_some());
    }
    let mut plain =
        ServerConnection::new(relay_listener(&ca.identity("relay/r"), &trust)).expect("a server");
    plain
        .read_tls(&mut b"GET / HTTP/1.1\r\n\r\n".as_slice())
        .expect("memory");
    assert!(
        plain.process_new_packets().is_err(),
        "plain text is no handshake"
    );
}

// S84: nothing to resume, nothing early.
#[test]
fn there_are_no_tickets_no_early_data_and_no_server_name() {
    let ca = TestCa::new("td");
    let trust = ca.trust_store();
    let (a, r) = (ca.identity("default/agent/a"), ca.identity("relay/r"));
    let server_configs = [
        relay_listener(&r, &trust),
        controller_listener(&r, &trust),
        e2e_server(&a, &trust, None),
    ];
    for config in server_configs {
        assert_eq!(
            (config.send_tls13_tickets, config.max_early_data_size),
            (0, 0)
        );
        assert!(!config.session_storage.can_cache());
    }
    for config in [relay_client(&a, &trust), enrol_client(ca.pin())] {
        assert!(!config.enable_early_data && !config.enable_sni);
    }
    let client_config = relay_client(&a, &trust);
    for _ in 0..2 {
        let mut client = ClientConnection::new(Arc::clone(&client_config), unused_server_name())
            .expect("a client");
        let mut server = ServerConnection::new(relay_listener(&r, &trust)).expect("a server");
        while client.is_handshaking() || server.is_handshaking() {
            let mut wire = Vec::new();
            client.write_tls(&mut wire).expect("memory");
            server.read_tls(&mut wire.as_slice()).expect("memory");
            server.process_new_packets().expect("fine");
            let mut wire = Vec::new();
            server.write_tls(&mut wire).expect("memory");
            client.read_tls(&mut wire.as_slice()).expect("memory");
            client.process_new_packets().expect("fine");
        }
        assert_eq!(client.handshake_kind(), Some(rustls::HandshakeKind::Full));
        let group = client.negotiated_key_exchange_group().expect("one");
        assert_eq!(group.name(), rustls::NamedGroup::X25519MLKEM768);
    }
}

#[test]
fn a_renewed_identity_and_new_trust_count_from_the_next_handshake() {
    let (old, new) = (TestCa::new("td"), TestCa::new("td"));
    let trust = old.trust_store();
    let (a, r) = (old.identity("default/agent/a"), old.identity("relay/r"));
    let (client, server) = (relay_client(&a, &trust), relay_listener(&r, &trust));
    assert!(handshake(Arc::clone(&client), Arc::clone(&server)).both_fine());
    a.set(new.svid(&Leaf::of(Role::Agent, &["spiffe://td/default/agent/a"])));
    assert!(!handshake(Arc::clone(&client), Arc::clone(&server)).both_fine());
    let mut both = old.trust();
    both.roots.extend(new.trust().roots);
    trust.set(both);
    assert!(handshake(Arc::clone(&client), Arc::clone(&server)).both_fine());
    trust.set(new.trust()); // the old root is gone, and with it the relay's certificate
    assert!(!handshake(client, server).both_fine());
}
