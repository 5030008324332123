//! Coming back with a certificate that ended: who may, who may not, and how often.

use super::*;

const WITHIN: SignedDuration = SignedDuration::from_hours(24);

fn recovery(holder: &Holder, proof: u8, key: &str) -> Recovery {
    Recovery {
        holder: holder.clone(),
        proof: [proof; 32],
        key_digest: key.to_owned(),
        within: WITHIN,
        source: "192.0.2.1".to_owned(),
    }
}

/// Comes back at `second` with `key`; certificates of the battery end an hour after the beginning.
async fn come_back(
    store: &Arc<dyn Store>,
    recovery: &Recovery,
    second: i64,
) -> Result<Holder, StoreError> {
    let issue = issuing(&recovery.key_digest);
    let certificate = store.recover(recovery, at(second), &issue).await?;
    Ok(Holder {
        principal: recovery.holder.principal.clone(),
        serial: certificate.serial,
        key_digest: certificate.key_digest,
    })
}

pub(in crate::store) async fn a_node_comes_back_by_the_last_certificate_that_it_kept<B: Bench>() {
    let (_bench, store) = with_tenant::<B>().await;
    let first = join(&store, 1, "one", "k1").await;
    store.keeps(&first, at(2)).await.expect("noted");
    let second = come_back(&store, &recovery(&first, 1, "k2"), 4_000).await;
    let second = second.expect("back");
    assert!(store.admits(&second).await.expect("known"));
    store.keeps(&second, at(4_001)).await.expect("noted");
    // The new one is in use, so a copy of the older disk is worth nothing.
    let refusal = come_back(&store, &recovery(&first, 2, "k3"), 4_002).await;
    assert_eq!(refused(refusal), Reason::NotAdmitted);
    let third = come_back(&store, &recovery(&second, 3, "k4"), 8_000).await;
    assert!(third.is_ok(), "{third:?}");
    let acts = AuditQuery {
        action: Some("node.recover".to_owned()),
        ..all_rows()
    };
    let (rows, _) = store.audit(&acts).await.expect("readable");
    assert_eq!(rows.len(), 2);
    assert_eq!(rows[0].actor, "default/agent/one");
    assert_eq!(rows[0].detail["last"], second.serial);
}

pub(in crate::store) async fn an_answer_that_was_lost_locks_nobody_out<B: Bench>() {
    let (_bench, store) = with_tenant::<B>().await;
    let kept = join(&store, 1, "one", "k1").await;
    store.keeps(&kept, at(2)).await.expect("noted");
    // A renewal and a first return, of which the node never heard.
    let issue = issuing("lost");
    let lost = store.renew(&kept, "lost", at(1_800), &issue).await;
    lost.expect("renewed");
    let again = recovery(&kept, 1, "k2");
    come_back(&store, &again, 4_000).await.expect("back");
    let again = recovery(&kept, 2, "k3");
    come_back(&store, &again, 4_001).await.expect("back");
}

pub(in crate::store) async fn whoever_is_revoked_or_too_late_or_unknown_does_not_come_back<
    B: Bench,
>() {
    let (_bench, store) = with_tenant::<B>().await;
    let one = join(&store, 1, "one", "k1").await;
    let two = join(&store, 2, "two", "k2").await;
    let end = 3_600;
    let beyond = end + WITHIN.as_secs();
    let late = come_back(&store, &recovery(&one, 1, "n"), beyond).await;
    assert_eq!(refused(late), Reason::NotAdmitted, "too late");
    // A serial number, a key or a name of somebody else's.
    for stranger in [
        Holder {
            serial: two.serial.clone(),
            ..one.clone()
        },
        Holder {
            key_digest: "unknown".to_owned(),
            ..one.clone()
        },
        Holder {
            principal: two.principal.clone(),
            ..one.clone()
        },
        Holder {
            principal: Principal::Agent(AgentId {
                tenant: "other".parse().expect("canonical"),
                name: "one".parse().expect("canonical"),
            }),
            ..one.clone()
        },
    ] {
        let outcome = come_back(&store, &recovery(&stranger, 2, "n"), 4_000).await;
        assert_eq!(refused(outcome), Reason::NotAdmitted, "{stranger:?}");
    }
    // Revoked after its certificate ended, by itself or with its next key.
    let revoked = Act::done(at(3_900), "admin:0", "agent.revoke", "one");
    store
        .revoke_agent(&agent("one"), &revoked)
        .await
        .expect("revoked");
    let outcome = come_back(&store, &recovery(&one, 3, "n"), 4_000).await;
    assert_eq!(refused(outcome), Reason::IdentityRevoked);
    let outcome = come_back(&store, &recovery(&two, 4, "k1"), 4_000).await;
    assert_eq!(refused(outcome), Reason::IdentityRevoked, "a revoked key");
    // The name joins again on another machine; the old disk stays out.
    join(&store, 3, "one", "k3").await;
    let outcome = come_back(&store, &recovery(&one, 5, "n"), 4_100).await;
    assert_eq!(refused(outcome), Reason::IdentityRevoked);
    come_back(&store, &recovery(&two, 6, "k4"), 4_100)
        .await
        .expect("nobody else is concerned");
}

pub(in crate::store) async fn a_proof_is_taken_once<B: Bench>() {
    let (_bench, store) = with_tenant::<B>().await;
    let holder = join(&store, 1, "one", "k1").await;
    let again = recovery(&holder, 1, "k2");
    let attempts = (0..16).map(|_| come_back(&store, &again, 4_000));
    let won = join_all(attempts).await.into_iter().filter(Result::is_ok);
    assert_eq!(won.count(), 1);
    let keep = keep(at(0));
    store.tidy(at(4_000), keep).await.expect("tidied");
    let replayed = come_back(&store, &again, 4_001).await;
    assert_eq!(refused(replayed), Reason::NotAdmitted);
}

pub(in crate::store) async fn what_is_replaced_is_dropped_and_what_may_come_back_is_not<
    B: Bench,
>() {
    let (_bench, store) = with_tenant::<B>().await;
    let first = join(&store, 1, "one", "k1").await;
    let issue = issuing("k2");
    let second = store.renew(&first, "k2", at(2), &issue).await;
    let second = Holder {
        serial: second.expect("renewed").serial,
        key_digest: "k2".to_owned(),
        ..first.clone()
    };
    store.keeps(&second, at(3)).await.expect("noted");
    let keep = Keep {
        audit_from: at(0),
        recoverable_from: at(0),
    };
    store.tidy(at(4_000), keep).await.expect("tidied");
    assert!(!store.admits(&first).await.expect("asked"), "dropped");
    assert!(store.admits(&second).await.expect("asked"), "kept");
    let keep = Keep {
        audit_from: at(0),
        recoverable_from: at(3_600),
    };
    store.tidy(at(4_000), keep).await.expect("tidied");
    assert!(!store.admits(&second).await.expect("asked"), "too long ago");
    let outcome = come_back(&store, &recovery(&second, 1, "n"), 4_000).await;
    assert_eq!(refused(outcome), Reason::NotAdmitted);
}
