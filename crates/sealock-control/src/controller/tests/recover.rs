//! A node that was away for longer than its certificate, over the real interface, and those who pretend to be one.

use sealock_net::recover::{self, Claim, RecoverError};
use sealock_net::tls::recover_client;

use super::*;

/// Long enough to join with, short enough to wait for.
const LIFE: SignedDuration = SignedDuration::from_secs(2);

async fn started_with_short_certificates() -> Running {
    started(|config| config.certificate_ttl = LIFE).await
}

async fn end_of(svid: &Svid) {
    let left = svid.leaf().not_after.duration_since(Timestamp::now());
    let left = Duration::try_from(left).unwrap_or_default();
    tokio::time::sleep(left + Duration::from_millis(50)).await;
}

fn anonymous(running: &Running) -> NodeClient {
    running.connect(recover_client(&TrustStore::new(
        running.handle.trust().clone(),
    )))
}

fn claim(certificate: &Svid) -> (Claim, Arc<KeyPair>) {
    let key = Arc::new(KeyPair::generate().expect("randomness"));
    let claim = Claim {
        certificate: certificate.chain()[0].clone(),
        csr: key.request_der().expect("signed"),
        at: Timestamp::now(),
    };
    (claim, key)
}

/// The reason why a claim with this proof is refused.
async fn refusal(running: &Running, claim: &Claim, proof: Vec<u8>) -> Reason {
    let outcome = anonymous(running).recover(claim, proof).await;
    outcome.expect_err("refused").reason()
}

async fn rows(running: &Running, action: &str) -> Vec<api::audit::AuditRow> {
    let list = api::audit::ListRequest {
        action: Some(action.to_owned()),
        ..Default::default()
    };
    let listed = running.client.call::<api::audit::List>(&list).await;
    listed.expect("listed").rows
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_certificate_ended_comes_back_and_works_as_before() {
    let running = started_with_short_certificates().await;
    let member = running.join("web-1").await;
    end_of(&member.svid).await;
    assert!(
        member
            .client
            .register(1, &services(&["web"]))
            .await
            .is_err()
    );
    let client = anonymous(&running);
    let (svid, trust) = recover::ask(&client, &member.svid).await.expect("back");
    assert_eq!(svid.id(), member.svid.id());
    assert_ne!(svid.leaf().key_digest, member.svid.leaf().key_digest);
    let identity = IdentityStore::new(svid.clone());
    let back = running
        .connect(controller_client(&identity, &TrustStore::new(trust)))
        .with_kept_certificate();
    let answer = back.register(2, &services(&["web"])).await.expect("served");
    assert_eq!(answer.services[&service("web")], Reason::Done);
    assert_eq!(rows(&running, "node.recover").await.len(), 1);
    // The watch says that the new certificate is on disk; from then on the one before is worth nothing.
    recover::ask(&client, &member.svid).await.expect("not yet");
    back.watch(&BTreeMap::new()).await.expect("watches");
    let late = recover::ask(&client, &member.svid).await;
    assert!(
        matches!(&late, Err(RecoverError::Refused(error)) if error.reason() == Reason::NotAdmitted),
        "{late:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_comes_back_too() {
    let running = started_with_short_certificates().await;
    let relay = running.join_relay("eu-1").await;
    end_of(&relay.svid).await;
    let (svid, _) = recover::ask(&anonymous(&running), &relay.svid)
        .await
        .expect("back");
    assert_eq!(svid.id(), relay.svid.id());
}

/// S14, S15: another key, a proof for something else, one from another time, one that was used.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_fresh_proof_by_the_last_key_is_taken_and_only_once() {
    let running = started_with_short_certificates().await;
    let member = running.join("web-1").await;
    end_of(&member.svid).await;
    let (good, _) = claim(&member.svid);
    let proof = good.sign(member.svid.key()).expect("signed");
    let other = KeyPair::generate().expect("randomness");
    let forged = good.sign(&other).expect("signed");
    assert_eq!(refusal(&running, &good, forged).await, Reason::NotAdmitted);
    let (elsewhere, _) = claim(&member.svid);
    let swapped = refusal(&running, &elsewhere, proof.clone()).await;
    assert_eq!(swapped, Reason::NotAdmitted, "another request");
    for minutes in [-6, 6] {
        let (mut early, _) = claim(&member.svid);
        early.at = Timestamp::now() + SignedDuration::from_mins(minutes);
        let proof = early.sign(member.svid.key()).expect("signed");
        let refused = refusal(&running, &early, proof).await;
        assert_eq!(refused, Reason::NotAdmitted, "{minutes} minutes");
    }
    let client = anonymous(&running);
    client.recover(&good, proof.clone()).await.expect("back");
    assert_eq!(refusal(&running, &good, proof).await, Reason::NotAdmitted);
    let acts = rows(&running, "node.recover").await;
    assert_eq!(acts.len(), 1, "the refused ones are of no tenant");
    let query = crate::store::AuditQuery {
        tenant: None,
        limit: 100,
        before: None,
        since: None,
        actor: None,
        action: Some("node.recover".to_owned()),
    };
    let refused = running.shared().store.audit(&query);
    assert_eq!(refused.await.expect("readable").0.len(), 5, "each is a row");
}

/// C5: a revoked agent never comes back, and neither does one that joined again elsewhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_agent_never_comes_back() {
    let running = started_with_short_certificates().await;
    let (gone, moved) = (running.join("gone").await, running.join("moved").await);
    let revoke = api::agent::RevokeRequest {
        tenant: agent("gone").tenant,
        name: agent("gone").name,
    };
    let revoked = running.client.call::<api::agent::Revoke>(&revoke).await;
    revoked.expect("revoked");
    end_of(&moved.svid).await;
    let request = CreateRequest {
        name: Some("moved".to_owned()),
        ..CreateRequest::default()
    };
    let token = running.token(request).await;
    let joined = running.enrol(&token, "moved", Role::Agent).await;
    joined.expect("joins on another machine");
    for member in [&gone, &moved] {
        let outcome = recover::ask(&anonymous(&running), &member.svid).await;
        assert!(
            matches!(&outcome, Err(RecoverError::Refused(error)) if error.reason() == Reason::IdentityRevoked),
            "{outcome:?}"
        );
    }
}

/// S09, S10, S11: a certificate that nobody here issued, whoever it names.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_of_another_hand_brings_nobody_back() {
    let running = started_with_short_certificates().await;
    let other = started_with_short_certificates().await;
    let member = running.join("web-1").await;
    let namesake = other.join("web-1").await;
    end_of(&namesake.svid).await;
    let (claim, _) = claim(&namesake.svid);
    let proof = claim.sign(namesake.svid.key()).expect("signed");
    assert_eq!(refusal(&running, &claim, proof).await, Reason::NotAdmitted);
    let before = rows(&running, "node.recover").await.len();
    assert_eq!(before, 0);
    // The same key in a certificate of one's own making, with the name of another tenant's agent.
    let ca = sealock_net::identity::testing::TestCa::new("sealock");
    for path in [
        "other/agent/cart",
        "default/agent/web-1",
        "relay/eu-1",
        "controller/main",
    ] {
        let forged = ca.identity(path).current().expect("an identity");
        let (claim, _) = self::claim(&forged);
        let proof = claim.sign(forged.key()).expect("signed");
        let refused = refusal(&running, &claim, proof).await;
        assert_eq!(refused, Reason::NotAdmitted, "{path}");
    }
    recover::ask(&anonymous(&running), &member.svid)
        .await
        .expect("the owner is not concerned");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_was_away_for_too_long_joins_again() {
    let running = started(|config| {
        config.certificate_ttl = LIFE;
        config.recover_within = SignedDuration::ZERO;
    })
    .await;
    let member = running.join("web-1").await;
    end_of(&member.svid).await;
    let outcome = recover::ask(&anonymous(&running), &member.svid).await;
    assert!(
        matches!(&outcome, Err(RecoverError::Refused(error)) if error.reason() == Reason::NotAdmitted),
        "{outcome:?}"
    );
}

/// S33: one source cannot try without end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_source_cannot_try_to_come_back_without_end() {
    let running = started(|config| {
        config.limits.joins = 3;
        config.limits.joins_per_second = 0.001;
    })
    .await;
    let member = running.join("web-1").await; // the first of the three
    let (claim, _) = claim(&member.svid);
    let mut reasons = Vec::new();
    for _ in 0..4 {
        reasons.push(refusal(&running, &claim, vec![1, 2, 3]).await);
    }
    let (late, early) = (Reason::Overloaded, Reason::NotAdmitted);
    assert_eq!(reasons, [early, early, late, late]);
}

/// Garbage in any field is refused as what it is, and the interface goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_claims_are_refused() {
    let running = started(|_| ()).await;
    let member = running.join("web-1").await;
    let (good, _) = claim(&member.svid);
    let none = Claim {
        certificate: Vec::new().into(),
        ..good.clone()
    };
    assert_eq!(
        refusal(&running, &none, Vec::new()).await,
        Reason::NotAdmitted
    );
    let giant = Claim {
        certificate: vec![0; 100_000].into(),
        ..good.clone()
    };
    let unasked = Claim {
        csr: b"no request".to_vec(),
        ..good
    };
    for claim in [giant, unasked] {
        let refused = refusal(&running, &claim, Vec::new()).await;
        assert_eq!(refused, Reason::ProtocolViolation);
    }
}
