//! What certificates say, what requests may not, and where the keys lie.

use std::sync::Arc;

use sealock_core::identity::Principal;
use x509_parser::parse_x509_certificate;

use super::*;
use crate::store::sqlite::{IfMissing, SqliteStore};

struct Deployment {
    _dir: tempfile::TempDir,
    path: PathBuf,
    store: Arc<SqliteStore>,
    authority: Authority,
}

fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).expect("in range")
}

fn domain() -> TrustDomain {
    "corp.example".parse().expect("canonical")
}

async fn deployment() -> Deployment {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("controller");
    files::ensure_private_dir(&path).expect("made");
    let store = SqliteStore::open(&path.join("db.sqlite"), IfMissing::Create).await;
    let store = Arc::new(store.expect("opens"));
    let authority = Authority::open(&path, &*store, &domain(), now()).await;
    Deployment {
        _dir: dir,
        path,
        store,
        authority: authority.expect("opens"),
    }
}

fn csr() -> Csr {
    let key = KeyPair::generate().expect("randomness");
    Csr::read(&key.request_der().expect("signs")).expect("a request")
}

fn id(text: &str) -> SpiffeId {
    text.parse().expect("canonical")
}

#[tokio::test]
async fn each_role_gets_its_own_purposes_one_uri_and_one_hour() {
    let deployment = deployment().await;
    for (text, server, client, others) in [
        ("spiffe://corp.example/default/agent/web", false, true, 1),
        ("spiffe://corp.example/relay/eu", true, true, 0),
        ("spiffe://corp.example/controller/main", true, false, 0),
    ] {
        let issued = deployment
            .authority
            .issue(&id(text), &csr(), Profile::Role, now());
        let issued = issued.expect("issued");
        let (_, leaf) = parse_x509_certificate(&issued.chain[0]).expect("a certificate");
        let purposes = leaf
            .extended_key_usage()
            .expect("readable")
            .expect("there")
            .value;
        assert_eq!(
            (
                purposes.server_auth,
                purposes.client_auth,
                purposes.other.len()
            ),
            (server, client, others),
            "{text}"
        );
        let name = PeerIdentity::from_leaf(&CertificateDer::from(issued.chain[0].clone()));
        assert_eq!(name.expect("one name").id, id(text));
        let validity = leaf.validity();
        assert_eq!(validity.not_before.timestamp(), now().as_second() - 300);
        assert_eq!(validity.not_after.timestamp(), now().as_second() + 3_600);
        assert!(!leaf.is_ca());
    }
}

#[tokio::test]
async fn serial_numbers_never_repeat() {
    let deployment = deployment().await;
    let csr = csr();
    let mut serials = std::collections::BTreeSet::new();
    for _ in 0..100 {
        let id = id("spiffe://corp.example/relay/eu");
        let issued = deployment.authority.issue(&id, &csr, Profile::Role, now());
        assert!(serials.insert(issued.expect("issued").serial));
    }
}

#[test]
fn a_request_counts_for_nothing_but_its_key() {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("randomness");
    let params = CertificateParams::new(vec!["evil.example".to_owned()]).expect("a name");
    let request = params.serialize_request(&key).expect("signed");
    assert!(
        Csr::read(request.der()).is_ok(),
        "what it asks for is not looked at"
    );
}

#[test]
fn refuses_requests_that_do_not_prove_a_p256_key() {
    let key = KeyPair::generate().expect("randomness");
    let good = key.request_der().expect("signed");
    let mut loose = 0;
    for at in 0..good.len() {
        let mut altered = good.clone();
        altered[at] ^= 1;
        // The frame around the signed part has loose bits; what counts is that no other key gets through.
        if let Ok(read) = Csr::read(&altered) {
            assert_eq!(read.key_digest(), key.digest(), "byte {at}");
            loose += 1;
        }
        assert!(Csr::read(&good[..at]).is_err(), "cut at {at}");
    }
    assert!(loose < 10, "{loose} bytes");
    let mut longer = good;
    longer.push(0);
    assert!(Csr::read(&longer).is_err());
    for algorithm in [&rcgen::PKCS_ED25519, &rcgen::PKCS_ECDSA_P384_SHA384] {
        let key = rcgen::KeyPair::generate_for(algorithm).expect("randomness");
        let request = CertificateParams::default()
            .serialize_request(&key)
            .expect("signed");
        assert!(
            matches!(Csr::read(request.der()), Err(PkiError::KeyKind)),
            "{algorithm:?}"
        );
    }
}

#[tokio::test]
async fn the_authority_stays_the_same_over_restarts_and_keeps_its_key_private() {
    use std::os::unix::fs::MetadataExt;
    let first = deployment().await;
    let again = Authority::open(&first.path, &*first.store, &domain(), now()).await;
    let again = again.expect("opens");
    assert_eq!(again.trust(), first.authority.trust());
    assert_eq!(again.pin(), first.authority.pin());
    assert!(has_root_keys(&first.path));
    let key = key_path(&first.path, &format!("{:?}", first.authority.pin()));
    assert_eq!(
        std::fs::metadata(&key).expect("there").mode() & 0o777,
        0o600
    );
    std::fs::remove_file(&key).expect("there");
    let lost = Authority::open(&first.path, &*first.store, &domain(), now()).await;
    assert!(matches!(lost, Err(AuthorityError::File(_))), "{lost:?}");
    let other = "other.example".parse().expect("canonical");
    let foreign = Authority::open(&first.path, &*first.store, &other, now()).await;
    assert!(
        matches!(foreign, Err(AuthorityError::TrustDomain { .. })),
        "{foreign:?}"
    );
}

#[tokio::test]
async fn the_signer_of_views_is_nothing_but_that() {
    let deployment = deployment().await;
    let id = SpiffeId {
        trust_domain: domain(),
        principal: Principal::Controller("main".parse().expect("canonical")),
    };
    let issued = deployment
        .authority
        .issue(&id, &csr(), Profile::ViewSigner, now());
    let issued = issued.expect("issued");
    let (_, leaf) = parse_x509_certificate(&issued.chain[0]).expect("a certificate");
    let purposes = leaf
        .extended_key_usage()
        .expect("readable")
        .expect("there")
        .value;
    assert!(!purposes.server_auth && !purposes.client_auth && !purposes.any);
    assert_eq!(purposes.other.len(), 1);
}
