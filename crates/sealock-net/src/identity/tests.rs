//! What is and what is not an identity, and how identities survive on disk.

use std::net::{IpAddr, Ipv4Addr};

use rcgen::SanType;
use sealock_core::identity::Role;

use super::testing::{Leaf, TestCa, uri};
use super::*;
use crate::files;

const GOOD: &str = "spiffe://td/default/agent/a";

fn read(
    ca: &TestCa,
    names: Vec<SanType>,
    common_name: Option<&'static str>,
) -> Result<PeerIdentity, LeafError> {
    let leaf = Leaf {
        names,
        common_name,
        ..Leaf::of(Role::Agent, &[])
    };
    PeerIdentity::from_leaf(&ca.sign(&leaf, &new_key()))
}

fn new_key() -> KeyPair {
    KeyPair::generate().expect("randomness")
}

// S09: one URI in one spelling, or nobody.
#[test]
fn a_leaf_names_exactly_one_canonical_id_or_nobody() {
    let ca = TestCa::new("td");
    let dns = |text: &str| SanType::DnsName(text.try_into().expect("ASCII"));
    let mail = |text: &str| SanType::Rfc822Name(text.try_into().expect("ASCII"));
    let address = SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let long = format!("spiffe://td/default/agent/{}", "a".repeat(2_000));
    let cases = [
        (
            "two URIs, the good one first",
            vec![uri(GOOD), uri("spiffe://td/default/agent/b")],
        ),
        (
            "two URIs, the good one second",
            vec![uri("https://x/"), uri(GOOD)],
        ),
        ("the same URI twice", vec![uri(GOOD), uri(GOOD)]),
        ("a DNS name beside", vec![uri(GOOD), dns("localhost")]),
        ("a DNS name before", vec![dns("localhost"), uri(GOOD)]),
        ("an address beside", vec![uri(GOOD), address.clone()]),
        ("a mail address beside", vec![uri(GOOD), mail("a@td")]),
        ("an address alone", vec![address]),
        ("a DNS name alone", vec![dns("a.td")]),
        ("a DNS name that looks like an id", vec![dns(GOOD)]),
        ("a mail address alone", vec![mail("a@td")]),
        ("no name", vec![]),
        ("a wildcard", vec![uri("spiffe://td/default/agent/*")]),
        (
            "upper case in the scheme",
            vec![uri("SPIFFE://td/default/agent/a")],
        ),
        (
            "upper case in the domain",
            vec![uri("spiffe://TD/default/agent/a")],
        ),
        (
            "upper case in the name",
            vec![uri("spiffe://td/default/agent/A")],
        ),
        (
            "percent-encoding",
            vec![uri("spiffe://td/default/agent/%61")],
        ),
        (
            "dots for the name",
            vec![uri("spiffe://td/default/agent/..")],
        ),
        (
            "dots on the way",
            vec![uri("spiffe://td/x/../default/agent/a")],
        ),
        ("a NUL", vec![uri("spiffe://td/default/agent/a\0.evil")]),
        ("a line end", vec![uri("spiffe://td/default/agent/a\n")]),
        ("2 000 bytes", vec![uri(&long)]),
        ("a port", vec![uri("spiffe://td:443/default/agent/a")]),
        (
            "a query",
            vec![uri("spiffe://td/default/agent/a?role=relay")],
        ),
        ("a fragment", vec![uri("spiffe://td/default/agent/a#b")]),
        (
            "a slash at the end",
            vec![uri("spiffe://td/default/agent/a/")],
        ),
        ("another scheme", vec![uri("https://td/default/agent/a")]),
        ("a user", vec![uri("spiffe://td/default/user/ana")]),
        (
            "a punycode look-alike with a capital",
            vec![uri("spiffe://td/default/agent/xn--A")],
        ),
        ("nothing", vec![uri("")]),
    ];
    assert!(cases.len() >= 20);
    for (what, names) in cases {
        for common_name in [None, Some(GOOD)] {
            let outcome = read(&ca, names.clone(), common_name);
            assert!(outcome.is_err(), "{what}: {outcome:?}");
        }
    }
    let peer = read(&ca, vec![uri(GOOD)], Some("relay/r")).expect("the one that is fine");
    assert_eq!(peer.id.to_string(), GOOD);
}

#[test]
fn the_error_counts_the_names() {
    let ca = TestCa::new("td");
    let names = vec![uri(GOOD), uri(GOOD)];
    assert_eq!(
        read(&ca, names, None),
        Err(LeafError::ManyNames { count: 2 })
    );
    assert_eq!(read(&ca, vec![], Some(GOOD)), Err(LeafError::NoName));
}

#[test]
fn bytes_behind_the_certificate_make_it_unreadable() {
    let ca = TestCa::new("td");
    let key = new_key();
    let der = ca.sign(&Leaf::of(Role::Agent, &[GOOD]), &key);
    let mut longer = der.to_vec();
    longer.push(0);
    for bytes in [longer, der[..der.len() - 1].to_vec(), vec![]] {
        let outcome = PeerIdentity::from_leaf(&CertificateDer::from(bytes));
        assert_eq!(outcome, Err(LeafError::Unreadable));
    }
}

// S15: a copy with an altered signature or another serial is still the same key.
#[test]
fn every_certificate_of_a_key_has_the_same_key_digest() {
    let ca = TestCa::new("td");
    let key = new_key();
    let leaf = Leaf::of(Role::Agent, &[GOOD]);
    let first = ca.sign(&leaf, &key);
    let mut flipped = first.to_vec();
    *flipped.last_mut().expect("not empty") ^= 1; // the last byte of the signature's s
    let digests = [
        first.clone(),
        ca.sign(&leaf, &key),
        CertificateDer::from(flipped),
    ]
    .map(|der| PeerIdentity::from_leaf(&der).expect("readable").key_digest);
    assert!(
        digests.iter().all(|digest| *digest == key.digest()),
        "{digests:?}"
    );
    let serials = [first, ca.sign(&leaf, &key)]
        .map(|der| PeerIdentity::from_leaf(&der).expect("readable").serial);
    assert_ne!(serials[0], serials[1]);
}

#[test]
fn serial_numbers_have_one_spelling() {
    for (bytes, text) in [
        (&[0x00, 0x8a, 0x01][..], "8a01"),
        (&[0x8a, 0x01], "8a01"),
        (&[0x00, 0x00, 0x0f], "0f"),
        (&[0x00], "00"),
        (&[], "00"),
    ] {
        assert_eq!(serial_hex(bytes), text);
    }
}

#[test]
fn a_certificate_of_another_key_is_no_identity() {
    let ca = TestCa::new("td");
    let (key, other) = (new_key(), new_key());
    let chain = vec![ca.sign(&Leaf::of(Role::Agent, &[GOOD]), &key)];
    assert!(matches!(
        Svid::new(chain, Arc::new(other)),
        Err(SvidError::WrongKey)
    ));
    assert!(matches!(
        Svid::new(vec![], Arc::new(key)),
        Err(SvidError::Empty)
    ));
}

#[test]
fn a_request_proves_the_key_and_asks_for_no_name() {
    let key = new_key();
    let der = key.request_der().expect("signs");
    let request = rcgen::CertificateSigningRequestParams::from_der(&der.into()).expect("verifies");
    assert!(request.params.subject_alt_names.is_empty());
    assert_eq!(request.params.distinguished_name.iter().count(), 0);
    use rcgen::PublicKeyData;
    assert_eq!(
        hex_digest(&request.public_key.subject_public_key_info()),
        key.digest()
    );
}

#[test]
fn nothing_secret_is_in_debug_output() {
    let ca = TestCa::new("td");
    let svid = ca.svid(&Leaf::of(Role::Agent, &[GOOD]));
    let secret = svid.key().to_pem();
    let line = secret
        .expose()
        .lines()
        .nth(1)
        .expect("a line of the key")
        .to_owned();
    let shown = format!(
        "{svid:?} {:?} {:?} {secret:?}",
        svid.key(),
        IdentityStore::new(svid.clone())
    );
    assert!(!shown.contains(&line));
    assert!(!shown.contains("PRIVATE"));
}

fn identity_dir() -> (tempfile::TempDir, IdentityDir) {
    let guard = tempfile::tempdir().expect("a temporary directory");
    let dir = IdentityDir::open(guard.path().join("agent")).expect("made");
    (guard, dir)
}

#[test]
fn identity_and_trust_come_back_from_disk() {
    let (_guard, dir) = identity_dir();
    assert!(dir.load_svid().expect("nothing yet").is_none());
    assert!(dir.load_trust().expect("nothing yet").is_none());
    let ca = TestCa::new("td");
    for _ in 0..2 {
        let svid = ca.svid(&Leaf::of(Role::Agent, &[GOOD]));
        dir.store_svid(&svid).expect("stored");
        let loaded = dir.load_svid().expect("readable").expect("there");
        assert_eq!(loaded.leaf(), svid.leaf());
        assert_eq!(loaded.chain(), svid.chain());
    }
    dir.store_trust(&ca.trust()).expect("stored");
    assert_eq!(dir.load_trust().expect("readable"), Some(ca.trust()));
}

#[test]
fn a_crash_in_the_middle_of_a_renewal_leaves_a_pair_that_fits() {
    let ca = TestCa::new("td");
    let old = ca.svid(&Leaf::of(Role::Agent, &[GOOD]));
    let new = ca.svid(&Leaf::of(Role::Agent, &[GOOD]));
    let (_guard, dir) = identity_dir();
    dir.store_svid(&old).expect("stored");
    // Crash after the first step: the new key is there, the old certificate still counts.
    let next = dir.path().join("next-key.pem");
    files::write_private(&next, new.key().to_pem().expose().as_bytes()).expect("written");
    let loaded = dir.load_svid().expect("readable").expect("there");
    assert_eq!(loaded.leaf(), old.leaf());
    // Crash after the second: certificate and next key fit.
    dir.store_svid(&new).expect("stored");
    std::fs::rename(dir.path().join("key.pem"), &next).expect("as if not renamed yet");
    files::write_private(
        &dir.path().join("key.pem"),
        old.key().to_pem().expose().as_bytes(),
    )
    .expect("written");
    for _ in 0..2 {
        let loaded = dir.load_svid().expect("readable").expect("there");
        assert_eq!(loaded.leaf(), new.leaf());
    }
    assert!(!next.exists());
}

#[test]
fn damaged_or_open_identity_files_are_refused() {
    use std::os::unix::fs::PermissionsExt;
    let ca = TestCa::new("td");
    let (_guard, dir) = identity_dir();
    dir.store_svid(&ca.svid(&Leaf::of(Role::Agent, &[GOOD])))
        .expect("stored");
    let key = dir.path().join("key.pem");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).expect("ours");
    assert!(matches!(dir.load_svid(), Err(LoadError::File(_))));
    files::write_private(&key, b"-----BEGIN NOTHING-----").expect("written");
    assert!(matches!(dir.load_svid(), Err(LoadError::Key { .. })));
    let other = new_key();
    files::write_private(&key, other.to_pem().expose().as_bytes()).expect("written");
    assert!(matches!(dir.load_svid(), Err(LoadError::Svid { .. })));
    files::write_private(&dir.path().join("trust.json"), b"{}").expect("written");
    assert!(matches!(dir.load_trust(), Err(LoadError::Trust { .. })));
}
