//! Views under signatures: which are taken, and what each alteration is called.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rcgen::ExtendedKeyUsagePurpose;
use sealock_core::choice::Terms;
use sealock_core::view::{Entry, Service, ViewVersion};

use super::*;
use crate::identity::testing::{Leaf, TestCa};

const DAY: Duration = Duration::from_secs(24 * 3_600);

fn entries() -> Entries {
    let mut entries = Entries::default();
    for name in ["db", "web"] {
        entries.put_entry(&Entry::Service(Service {
            name: name.parse().expect("a name"),
            providers: [("a".parse().expect("a name"), Terms::default())].into(),
            labels: [("note".to_owned(), "ünïcode \"quoted\"\n".to_owned())].into(),
            sticky: false,
        }));
    }
    entries
}

fn signed(signer: &ViewSigner, issued_at: Timestamp) -> SignedView {
    let entries = entries();
    let head = Head {
        tenant: "default".parse().expect("a name"),
        version: ViewVersion(7),
        issued_at,
        digest: entries.digest(),
    };
    SignedView {
        head: signer.sign(head).expect("signs"),
        entries,
    }
}

#[test]
fn a_view_comes_back_from_its_file_and_is_taken() {
    let ca = TestCa::new("td");
    let now = Timestamp::now();
    let view = signed(&ca.view_signer(), now);
    let json = serde_json::to_vec(&view).expect("text");
    let read: SignedView = serde_json::from_slice(&json).expect("its own form");
    assert_eq!(read, view);
    let taken = read.verify(&ca.trust(), now, DAY).expect("in order");
    assert_eq!(taken.head.version, ViewVersion(7));
    assert_eq!(taken.services().count(), 2);
}

#[test]
fn an_altered_head_signature_or_entry_is_found_out() {
    let ca = TestCa::new("td");
    let (now, trust) = (Timestamp::now(), ca.trust());
    let good = signed(&ca.view_signer(), now);
    let alter: [fn(&mut SignedView); 5] = [
        |view| view.head.head.version = ViewVersion(8),
        |view| view.head.head.tenant = "other".parse().expect("a name"),
        |view| view.head.head.digest = Entries::default().digest(),
        |view| view.head.signature[10] ^= 1,
        |view| view.head.signature.clear(),
    ];
    for (n, alter) in alter.into_iter().enumerate() {
        let mut view = good.clone();
        alter(&mut view);
        let error = view.verify(&trust, now, DAY).expect_err("altered");
        assert!(matches!(error, SignedViewError::Signature), "{n}: {error}");
        assert_eq!(error.reason(), Reason::NoPolicy);
    }
    let mut view = good.clone();
    view.entries.put("rule/x".to_owned(), b"{}".to_vec());
    assert!(matches!(
        view.verify(&trust, now, DAY),
        Err(SignedViewError::View(ViewError::Digest { .. }))
    ));
    let mut view = good;
    view.head.chain.clear();
    assert!(matches!(
        view.verify(&trust, now, DAY),
        Err(SignedViewError::NoSigner)
    ));
}

// A relay, an agent, a controller's TLS certificate or a foreign authority cannot sign a view.
#[test]
fn only_a_controllers_view_signer_of_our_roots_can_sign() {
    let (ca, foreign) = (TestCa::new("td"), TestCa::new("td"));
    let (now, trust) = (Timestamp::now(), ca.trust());
    let purpose = vec![ExtendedKeyUsagePurpose::Other(
        crate::tls::eku::VIEW_SIGNER.to_vec(),
    )];
    let with_purpose = |role, uri: &str| Leaf {
        purposes: purpose.clone(),
        ..Leaf::of(role, &[uri])
    };
    let leaves = [
        Leaf::of(Role::Controller, &["spiffe://td/controller/c"]),
        with_purpose(Role::Relay, "spiffe://td/relay/r"),
        with_purpose(Role::Agent, "spiffe://td/default/agent/a"),
        with_purpose(Role::Controller, "spiffe://other/controller/c"),
    ];
    for leaf in leaves {
        let signer = ViewSigner::from_svid(&ca.svid(&leaf)).expect("a key");
        let error = signed(&signer, now)
            .verify(&trust, now, DAY)
            .expect_err("no signer");
        assert!(
            matches!(error, SignedViewError::Signer(_)),
            "{leaf:?}: {error}"
        );
    }
    let view = signed(&foreign.view_signer(), now);
    assert!(matches!(
        view.verify(&trust, now, DAY),
        Err(SignedViewError::Signer(_))
    ));
}

#[test]
fn age_is_judged_by_our_clock_and_the_signer_by_the_heads() {
    let ca = TestCa::new("td");
    let trust = ca.trust();
    let issued_at = Timestamp::now();
    let view = signed(&ca.view_signer(), issued_at);
    let after = |seconds| issued_at + SignedDuration::from_secs(seconds);
    // The signer's test certificate ended 23 hours before, and the view is still good.
    assert!(view.verify(&trust, after(24 * 3_600), DAY).is_ok());
    let error = view
        .verify(&trust, after(24 * 3_600 + 1), DAY)
        .expect_err("too old");
    assert!(matches!(error, SignedViewError::TooOld { .. }));
    assert_eq!(error.reason(), Reason::PolicyStale);
    assert!(view.verify(&trust, after(-300), DAY).is_ok());
    let error = view
        .verify(&trust, after(-301), DAY)
        .expect_err("from the future");
    assert!(matches!(error, SignedViewError::FromTheFuture { .. }));
    // A head that claims a time at which its signer was not valid.
    let view = signed(&ca.view_signer(), after(-7_200));
    assert!(matches!(
        view.verify(&trust, issued_at, DAY),
        Err(SignedViewError::Signer(VerifyError::NotYetValid { .. }))
    ));
}

#[test]
fn a_file_with_unknown_keys_or_broken_base64_is_refused() {
    let ca = TestCa::new("td");
    let view = signed(&ca.view_signer(), Timestamp::now());
    let good = serde_json::to_value(&view).expect("text");
    let mut unknown = good.clone();
    unknown["extra"] = 1.into();
    let mut broken = good;
    broken["signature"] = "%%%".into();
    for json in [unknown, broken] {
        assert!(serde_json::from_value::<SignedView>(json).is_err());
    }
}
