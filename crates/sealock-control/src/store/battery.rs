//! One suite for every back end: what a store must do, whatever it is made of.
//!
//! A back end joins by implementing [`Bench`] and one line of [`battery!`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::future::join_all;
use jiff::{Timestamp, ToSpan};
use sealock_core::choice::Terms;
use sealock_core::policy::RuleId;
use sealock_core::view::{Entry, Head, View};

use super::*;

mod recover;

pub(super) use recover::*;

/// A back end under test.
pub(super) trait Bench: Sized {
    /// An empty store.
    async fn fresh() -> Self;
    /// The store.
    fn store(&self) -> Arc<dyn Store>;
    /// The same data, read anew, as after `kill -9`: nothing is closed before the copy is taken.
    async fn killed(self) -> Self;
    /// Statements by other hands, past every guard.
    async fn tamper(&self, sql: &'static str);
}

pub(super) fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).expect("in range")
}

fn tenant() -> TenantName {
    "default".parse().expect("canonical")
}

fn agent(name: &str) -> AgentId {
    AgentId {
        tenant: tenant(),
        name: name.parse().expect("canonical"),
    }
}

fn act(action: &'static str) -> Act {
    Act::done(at(0), "admin:0", action, "test")
}

pub(super) fn rule(id: &str) -> Rule {
    serde_json::from_value(serde_json::json!({
        "id": id, "effect": "allow", "callers": ["*"], "services": ["web"], "actions": ["open"],
    }))
    .expect("a rule")
}

pub(super) fn token(secret: u8, name: Option<&str>) -> TokenRow {
    TokenRow {
        hash: [secret; 32],
        admits: Admits::Agent {
            tenant: tenant(),
            name: name.map(|name| name.parse().expect("canonical")),
            labels: BTreeMap::from([("zone".to_owned(), "a".to_owned())]),
            groups: BTreeSet::new(),
        },
        created: at(0),
        expires: at(600),
    }
}

pub(super) fn redemption(secret: u8, name: &str, key: &str) -> Redemption {
    Redemption {
        hash: [secret; 32],
        role: Role::Agent,
        name: Some(name.to_owned()),
        own_name: None,
        key_digest: key.to_owned(),
        addresses: Vec::new(),
        source: "192.0.2.1".to_owned(),
    }
}

static SERIAL: AtomicU64 = AtomicU64::new(1);

fn certificate(key: &str) -> Certificate {
    Certificate {
        serial: format!("{:x}", SERIAL.fetch_add(1, Ordering::Relaxed)),
        key_digest: key.to_owned(),
        chain: vec![vec![1]],
        not_after: at(3_600),
    }
}

pub(super) fn issuing(
    key: &str,
) -> impl Fn(&Principal) -> Result<Certificate, crate::pki::PkiError> + use<> {
    let key = key.to_owned();
    move |_| Ok(certificate(&key))
}

/// Audit rows since then, and every certificate for as long as it stands.
fn keep(audit_from: Timestamp) -> Keep {
    Keep {
        audit_from,
        recoverable_from: Timestamp::MAX,
    }
}

async fn with_tenant<B: Bench>() -> (B, Arc<dyn Store>) {
    let bench = B::fresh().await;
    let store = bench.store();
    let made = store.add_tenant(&tenant(), &[], &act("tenant.add")).await;
    assert!(made.expect("made"), "there was none");
    (bench, store)
}

async fn join(store: &Arc<dyn Store>, secret: u8, name: &str, key: &str) -> Holder {
    store
        .add_token(&token(secret, Some(name)), &act("token.create"))
        .await
        .expect("kept");
    let (principal, certificate) = store
        .redeem(&redemption(secret, name, key), at(1), &issuing(key))
        .await
        .expect("joined");
    Holder {
        principal,
        serial: certificate.serial,
        key_digest: certificate.key_digest,
    }
}

async fn view(store: &Arc<dyn Store>) -> View {
    let (version, entries) = store.view(&tenant()).await.expect("readable");
    let head = Head {
        tenant: tenant(),
        version,
        issued_at: at(0),
        digest: entries.digest(),
    };
    View::read(head, &entries).expect("a lawful view")
}

fn refused<T: fmt::Debug>(result: Result<T, StoreError>) -> Reason {
    let error = result.expect_err("refused");
    let StoreError::Refused(reason) = error else {
        panic!("failed otherwise: {error:?}");
    };
    reason
}

/// S13: of 64 that redeem one token at once, exactly one gets a certificate, round after round.
pub(super) async fn one_token_lets_exactly_one_of_many_in<B: Bench>() {
    let (_bench, store) = with_tenant::<B>().await;
    for round in 0..8u8 {
        let made = store
            .add_token(&token(round, None), &act("token.create"))
            .await;
        made.expect("kept");
        let issued = Arc::new(AtomicU64::new(0));
        let attempts = (0..64).map(|number| {
            let (store, issued) = (Arc::clone(&store), Arc::clone(&issued));
            async move {
                let key = format!("key-{round}-{number}");
                let wanted = redemption(round, &format!("a{round}-{number}"), &key);
                let issue = |_: &Principal| {
                    issued.fetch_add(1, Ordering::Relaxed);
                    Ok(certificate(&key))
                };
                store.redeem(&wanted, at(1), &issue).await.is_ok()
            }
        });
        let won = join_all(attempts).await.into_iter().filter(|won| *won);
        assert_eq!(won.count(), 1, "round {round}");
        assert_eq!(issued.load(Ordering::Relaxed), 1, "round {round}");
    }
    assert_eq!(store.agents(&tenant()).await.expect("listed").len(), 8);
}

pub(super) async fn a_certificate_that_cannot_be_made_leaves_the_token_unused<B: Bench>() {
    let (_bench, store) = with_tenant::<B>().await;
    store
        .add_token(&token(1, None), &act("token.create"))
        .await
        .expect("kept");
    let wanted = redemption(1, "a", "k");
    let failing = |_: &Principal| Err(crate::pki::PkiError::Request);
    let failed = store.redeem(&wanted, at(1), &failing).await;
    assert!(matches!(failed, Err(StoreError::Issue(_))), "{failed:?}");
    assert!(store.agents(&tenant()).await.expect("listed").is_empty());
    let again = store.redeem(&wanted, at(2), &issuing("k")).await;
    assert!(again.is_ok(), "{again:?}");
}

/// S14: after its time, before its time (a clock that was moved back), for another role or name, and after a restart.
pub(super) async fn a_token_lets_in_only_whom_and_when_it_says<B: Bench>() {
    let (bench, store) = with_tenant::<B>().await;
    let add = |token: TokenRow| {
        let store = Arc::clone(&store);
        async move { store.add_token(&token, &act("token.create")).await }
    };
    add(token(1, Some("web-1"))).await.expect("kept");
    let good = redemption(1, "web-1", "k1");
    let other_name = redemption(1, "web-2", "k1");
    let other_role = Redemption {
        role: Role::Relay,
        ..good.clone()
    };
    let unknown = redemption(9, "web-1", "k1");
    for (wanted, when) in [
        (&good, at(600)),
        (&good, at(-1)),
        (&other_name, at(1)),
        (&other_role, at(1)),
        (&unknown, at(1)),
    ] {
        let result = store.redeem(wanted, when, &issuing("k1")).await;
        assert_eq!(
            refused(result),
            Reason::TokenInvalid,
            "{wanted:?} at {when}"
        );
    }
    let (principal, _) = store
        .redeem(&good, at(599), &issuing("k1"))
        .await
        .expect("the right one");
    assert_eq!(principal, Principal::Agent(agent("web-1")));
    let bench = bench.killed().await;
    let result = bench.store().redeem(&good, at(2), &issuing("k1")).await;
    assert_eq!(refused(result), Reason::TokenInvalid, "after a restart");
}

pub(super) async fn a_token_without_a_name_cannot_take_a_name_that_is_known<B: Bench>() {
    let (_bench, store) = with_tenant::<B>().await;
    let first = join(&store, 1, "web", "k1").await;
    for secret in [2, 3] {
        let made = store
            .add_token(&token(secret, None), &act("token.create"))
            .await;
        made.expect("kept");
    }
    let taken = store
        .redeem(&redemption(2, "web", "k2"), at(2), &issuing("k2"))
        .await;
    assert_eq!(refused(taken), Reason::NameTaken);
    let revoke = store
        .revoke_agent(&agent("web"), &act("agent.revoke"))
        .await;
    revoke.expect("revoked");
    let taken = store
        .redeem(&redemption(3, "web", "k3"), at(2), &issuing("k3"))
        .await;
    assert_eq!(
        refused(taken),
        Reason::NameTaken,
        "nor one that was revoked"
    );
    for made in [token(5, None), token(6, Some("db"))] {
        let kept = store.add_token(&made, &act("token.create")).await;
        kept.expect("kept");
    }
    let called = |secret, key| Redemption {
        name: None,
        own_name: Some("laptop".to_owned()),
        ..redemption(secret, "", key)
    };
    let (principal, _) = store
        .redeem(&called(5, "k5"), at(2), &issuing("k5"))
        .await
        .expect("a token without a name takes the machine's own");
    assert_eq!(principal, Principal::Agent(agent("laptop")));
    let (principal, _) = store
        .redeem(&called(6, "k6"), at(2), &issuing("k6"))
        .await
        .expect("a token with a name keeps it");
    assert_eq!(principal, Principal::Agent(agent("db")));
    // An administrator may say so: the token is bound to the name.
    let second = join(&store, 4, "web", "k4").await;
    assert!(store.admits(&second).await.expect("asked"));
    assert!(!store.admits(&first).await.expect("asked"));
}

/// S15: what is revoked is the key, so neither a re-signed certificate nor a new one for the key comes back.
pub(super) async fn a_revoked_key_never_comes_back<B: Bench>() {
    let (_bench, store) = with_tenant::<B>().await;
    let holder = join(&store, 1, "web", "k1").await;
    let before = view(&store).await.head.version;
    assert!(store.admits(&holder).await.expect("asked"));
    let (certificates, version) = store
        .revoke_agent(&agent("web"), &act("agent.revoke"))
        .await
        .expect("revoked");
    assert_eq!((certificates, version.0), (1, before.0 + 1));
    assert!(!store.admits(&holder).await.expect("asked"));
    let renewed = store.renew(&holder, "k2", at(3), &issuing("k2")).await;
    assert_eq!(refused(renewed), Reason::IdentityRevoked);
    let seen = view(&store).await;
    assert!(seen.is_revoked("none", "k1"), "by the key alone");
    assert!(
        seen.is_revoked(&holder.serial, "none"),
        "by the serial alone"
    );
    assert!(!seen.knows(&agent("web")));
    store
        .add_token(&token(2, Some("web")), &act("token.create"))
        .await
        .expect("kept");
    let again = store
        .redeem(&redemption(2, "web", "k1"), at(3), &issuing("k1"))
        .await;
    assert_eq!(refused(again), Reason::IdentityRevoked);
}

pub(super) async fn a_revocation_leaves_the_view_when_its_certificate_has_ended<B: Bench>() {
    let (_bench, store) = with_tenant::<B>().await;
    join(&store, 1, "web", "k1").await;
    let revoke = store
        .revoke_agent(&agent("web"), &act("agent.revoke"))
        .await;
    let (_, version) = revoke.expect("revoked");
    store.tidy(at(3_599), keep(at(-1))).await.expect("tidied");
    assert!(view(&store).await.is_revoked("none", "k1"));
    store.tidy(at(3_600), keep(at(-1))).await.expect("tidied");
    let seen = view(&store).await;
    assert!(!seen.is_revoked("none", "k1"));
    assert!(seen.head.version > version);
}

pub(super) async fn renewal_needs_the_very_certificate_that_was_issued<B: Bench>() {
    let (_bench, store) = with_tenant::<B>().await;
    let holder = join(&store, 1, "web", "k1").await;
    for stranger in [
        Holder {
            serial: "ff00".to_owned(),
            ..holder.clone()
        },
        Holder {
            key_digest: "other".to_owned(),
            ..holder.clone()
        },
        Holder {
            principal: Principal::Agent(agent("db")),
            ..holder.clone()
        },
        Holder {
            principal: Principal::Relay("web".parse().expect("canonical")),
            ..holder.clone()
        },
    ] {
        assert!(
            !store.admits(&stranger).await.expect("asked"),
            "{stranger:?}"
        );
        let renewed = store.renew(&stranger, "k2", at(2), &issuing("k2")).await;
        assert_eq!(refused(renewed), Reason::IdentityRevoked, "{stranger:?}");
    }
    let next = store.renew(&holder, "k2", at(2), &issuing("k2")).await;
    assert_eq!(next.expect("renewed").key_digest, "k2");
    assert!(
        store
            .admits(&holder)
            .await
            .expect("the old one ends by itself")
    );
}

fn offer(name: &str, generation: u64, services: &[&str], lease: i64) -> Registration {
    let service = |name: &&str| (name.parse().expect("canonical"), Offering::default());
    Registration {
        agent: agent(name),
        generation,
        services: services.iter().map(service).collect(),
        lease_ends: at(lease),
    }
}

fn never(_: &Sharing<'_>) -> bool {
    false
}

fn always(_: &Sharing<'_>) -> bool {
    true
}

fn names(names: &[&str]) -> BTreeSet<ServiceName> {
    let name = |name: &&str| name.parse().expect("canonical");
    names.iter().map(name).collect()
}

fn providers(view: &View, service: &str) -> Vec<String> {
    let service = view.service(&service.parse().expect("canonical"));
    let of = |service: &sealock_core::view::Service| {
        service.providers.keys().map(ToString::to_string).collect()
    };
    service.map(of).unwrap_or_default()
}

pub(super) async fn the_first_owns_a_name_and_another_needs_a_rule<B: Bench>() {
    let (_bench, store) = with_tenant::<B>().await;
    join(&store, 1, "one", "k1").await;
    join(&store, 2, "two", "k2").await;
    let web: ServiceName = "web".parse().expect("canonical");
    let first = store
        .register(&offer("one", 1, &["web"], 60), at(2), &never)
        .await;
    assert_eq!(first.expect("answered")[&web], Reason::Done);
    let second = store
        .register(&offer("two", 1, &["web", "api"], 60), at(2), &never)
        .await;
    let answers = second.expect("answered");
    assert_eq!(answers[&web], Reason::NameTaken);
    assert_eq!(answers[&"api".parse().expect("canonical")], Reason::Done);
    assert_eq!(providers(&view(&store).await, "web"), ["one"]);
    let allowed = store
        .register(&offer("two", 1, &["web"], 60), at(2), &always)
        .await;
    assert_eq!(allowed.expect("answered")[&web], Reason::Done);
    assert_eq!(providers(&view(&store).await, "web"), ["one", "two"]);
    // The rule is gone: the next heartbeat takes the registration back, though its lease runs.
    let withdrawn = store
        .register(&offer("two", 1, &["web"], 60), at(3), &never)
        .await;
    assert_eq!(withdrawn.expect("answered")[&web], Reason::NameTaken);
    assert_eq!(providers(&view(&store).await, "web"), ["one"]);
}

pub(super) async fn every_provider_has_its_terms_and_the_owner_says_whether_callers_stay<
    B: Bench,
>() {
    let (_bench, store) = with_tenant::<B>().await;
    join(&store, 1, "one", "k1").await;
    join(&store, 2, "two", "k2").await;
    let said = |name: &str, weight: u32, standby, sticky| {
        let terms = Terms {
            weight: weight.try_into().expect("a weight"),
            standby,
            region: Some("eu".parse().expect("a region")),
        };
        let mut said = offer(name, 1, &["web"], 60);
        for offering in said.services.values_mut() {
            (offering.terms, offering.sticky) = (terms.clone(), sticky);
        }
        (said, terms)
    };
    let told = async || {
        let view = view(&store).await;
        let web = view.service(&"web".parse().expect("canonical"));
        let web = web.expect("registered").clone();
        let row = store.services(&tenant(), at(3)).await.expect("listed")[0].clone();
        let listed = row.providers.into_iter().map(|row| (row.agent, row.terms));
        assert_eq!(
            web.providers,
            listed.collect(),
            "the list says what the view does"
        );
        assert_eq!(web.sticky, row.sticky);
        let terms: Vec<Terms> = web.providers.into_values().collect();
        (terms, web.sticky)
    };
    let (one, first) = said("one", 3, false, true);
    store.register(&one, at(2), &never).await.expect("answered");
    let (two, second) = said("two", 1, true, false);
    store
        .register(&two, at(2), &always)
        .await
        .expect("answered");
    assert_eq!(told().await, (vec![first.clone(), second.clone()], true));
    // A heartbeat that says the same is no news; another weight is.
    let before = store.view(&tenant()).await.expect("read").0;
    store
        .register(&two, at(3), &always)
        .await
        .expect("answered");
    assert_eq!(store.view(&tenant()).await.expect("read").0, before);
    let (two, second) = said("two", 7, true, false);
    store
        .register(&two, at(3), &always)
        .await
        .expect("answered");
    assert_eq!(told().await, (vec![first, second.clone()], true));
    // The name passes on, and with it the word on stickiness.
    let gone = store
        .unregister(&agent("one"), 1, &names(&["web"]), at(3))
        .await;
    assert_eq!(gone.expect("answered"), 1);
    assert_eq!(told().await, (vec![second], false));
}

pub(super) async fn an_older_generation_changes_nothing<B: Bench>() {
    let (_bench, store) = with_tenant::<B>().await;
    join(&store, 1, "one", "k1").await;
    let web: ServiceName = "web".parse().expect("canonical");
    let newer = store
        .register(&offer("one", 7, &["web"], 60), at(2), &never)
        .await;
    assert_eq!(newer.expect("answered")[&web], Reason::Done);
    let older = store
        .register(&offer("one", 6, &["web"], 30), at(2), &never)
        .await;
    assert_eq!(older.expect("answered")[&web], Reason::Superseded);
    let gone = store
        .unregister(&agent("one"), 6, &names(&["web"]), at(3))
        .await;
    assert_eq!(gone.expect("answered"), 0);
    let row = &store.services(&tenant(), at(59)).await.expect("listed")[0];
    assert!(row.providers[0].live && row.providers[0].lease_ends == at(60));
    let gone = store
        .unregister(&agent("one"), 7, &names(&["web"]), at(3))
        .await;
    assert_eq!(gone.expect("answered"), 1);
    assert!(
        store
            .services(&tenant(), at(3))
            .await
            .expect("listed")
            .is_empty()
    );
}

/// S44: numbers that fit no column are refused, not cut.
pub(super) async fn a_generation_beyond_the_range_is_refused<B: Bench>() {
    let (_bench, store) = with_tenant::<B>().await;
    join(&store, 1, "one", "k1").await;
    for generation in [u64::MAX, 1 << 63] {
        let result = store
            .register(&offer("one", generation, &["web"], 60), at(2), &never)
            .await;
        let result = result;
        assert!(
            matches!(result, Err(StoreError::OutOfRange(_))),
            "{result:?}"
        );
    }
    let most = i64::MAX.unsigned_abs();
    let result = store
        .register(&offer("one", most, &["web"], 60), at(2), &never)
        .await;
    assert!(result.is_ok());
}

pub(super) async fn a_lease_that_ended_keeps_the_provider_in_the_view<B: Bench>() {
    let (_bench, store) = with_tenant::<B>().await;
    join(&store, 1, "one", "k1").await;
    let offered = store
        .register(&offer("one", 1, &["web"], 60), at(2), &never)
        .await;
    offered.expect("answered");
    let row = &store.services(&tenant(), at(61)).await.expect("listed")[0];
    assert!(!row.providers[0].live);
    assert_eq!(providers(&view(&store).await, "web"), ["one"]);
    store.extend_leases(at(120)).await.expect("extended");
    let row = &store.services(&tenant(), at(61)).await.expect("listed")[0];
    assert!(row.providers[0].live);
}

pub(super) async fn a_heartbeat_that_says_nothing_new_makes_no_version<B: Bench>() {
    let (_bench, store) = with_tenant::<B>().await;
    join(&store, 1, "one", "k1").await;
    let offered = store
        .register(&offer("one", 1, &["web"], 60), at(2), &never)
        .await;
    offered.expect("answered");
    let before = view(&store).await.head.version;
    let again = store
        .register(&offer("one", 1, &["web"], 90), at(30), &never)
        .await;
    again.expect("answered");
    assert_eq!(view(&store).await.head.version, before);
}

pub(super) async fn a_name_passes_on_when_its_owner_goes<B: Bench>() {
    let (_bench, store) = with_tenant::<B>().await;
    join(&store, 1, "one", "k1").await;
    join(&store, 2, "two", "k2").await;
    for name in ["one", "two"] {
        let offered = store
            .register(&offer(name, 1, &["web"], 60), at(2), &always)
            .await;
        offered.expect("answered");
    }
    let revoke = store
        .revoke_agent(&agent("one"), &act("agent.revoke"))
        .await;
    revoke.expect("revoked");
    let row = &store.services(&tenant(), at(3)).await.expect("listed")[0];
    assert_eq!(row.owner.as_str(), "two");
    let removed = store
        .remove_service(&tenant(), &row.name, None, &act("service.remove"))
        .await;
    assert_eq!(removed.expect("removed").0, 1);
    assert!(view(&store).await.services().next().is_none());
}

pub(super) async fn every_change_of_the_rules_makes_one_version<B: Bench>() {
    let (_bench, store) = with_tenant::<B>().await;
    let start = view(&store).await.head.version.0;
    let add = |id: &str| {
        let (store, rule) = (Arc::clone(&store), rule(id));
        async move {
            let act = act("policy.allow");
            store
                .add_rule(&tenant(), &rule, Origin::Command, &act)
                .await
        }
    };
    assert_eq!(add("a").await.expect("added").0, start + 1);
    let twice = add("a").await;
    assert!(matches!(twice, Err(StoreError::Exists { .. })), "{twice:?}");
    assert_eq!(view(&store).await.head.version.0, start + 1, "undone whole");
    let id: RuleId = "a".parse().expect("an id");
    let (gone, version) = store
        .remove_rule(&tenant(), &id, &act("policy.remove"))
        .await
        .expect("removed");
    assert_eq!((gone, version.0), (rule("a"), start + 2));
    let again = store
        .remove_rule(&tenant(), &id, &act("policy.remove"))
        .await;
    assert!(matches!(again, Err(StoreError::NoSuch { .. })), "{again:?}");
}

pub(super) async fn applying_a_file_touches_only_what_came_from_files<B: Bench>() {
    let (_bench, store) = with_tenant::<B>().await;
    let by_hand = act("policy.allow");
    store
        .add_rule(&tenant(), &rule("hand"), Origin::Command, &by_hand)
        .await
        .expect("added");
    let apply = |ids: &'static [&'static str], mode| {
        let store = Arc::clone(&store);
        async move {
            let rules: Vec<Rule> = ids.iter().map(|id| rule(id)).collect();
            let act = act("policy.apply");
            store.apply_rules(&tenant(), &rules, mode, &act).await
        }
    };
    let dry = apply(&["f1", "f2"], Apply::DryRun).await.expect("compared");
    assert_eq!((dry.added.len(), dry.removed.len()), (2, 0));
    assert_eq!(
        view(&store).await.rules().len(),
        1,
        "a dry run changes nothing"
    );
    apply(&["f1", "f2"], Apply::Now).await.expect("applied");
    let before = view(&store).await.head.version;
    let same = apply(&["f1", "f2"], Apply::Now).await.expect("applied");
    assert_eq!(same.version, before, "nothing changed, so no version");
    let next = apply(&["f2", "f3"], Apply::Now).await.expect("applied");
    assert_eq!(
        (next.added.len(), next.removed.len(), next.changed.len()),
        (1, 1, 0)
    );
    let ids: Vec<String> = view(&store)
        .await
        .rules()
        .iter()
        .map(|rule| rule.id.to_string())
        .collect();
    assert_eq!(ids, ["f2", "f3", "hand"]);
    let before = view(&store).await.head.version;
    for bad in [&["f2", "hand"][..], &["f4", "f4"][..]] {
        let refused = apply(bad, Apply::Now).await;
        assert!(
            matches!(refused, Err(StoreError::Exists { .. })),
            "{refused:?}"
        );
    }
    assert_eq!(
        view(&store).await.head.version,
        before,
        "at once or not at all"
    );
}

pub(super) async fn tenants_see_nothing_of_each_other<B: Bench>() {
    let (_bench, store) = with_tenant::<B>().await;
    let other: TenantName = "other".parse().expect("canonical");
    store
        .add_tenant(&other, &[rule("theirs")], &act("tenant.add"))
        .await
        .expect("made");
    join(&store, 1, "one", "k1").await;
    let offered = store
        .register(&offer("one", 1, &["web"], 60), at(2), &never)
        .await;
    offered.expect("answered");
    let (_, entries) = store.view(&other).await.expect("readable");
    let keys: Vec<&str> = entries.iter().map(|(key, _)| key).collect();
    assert_eq!(keys, ["rule/theirs"]);
    assert!(store.agents(&other).await.expect("listed").is_empty());
    assert!(
        store
            .services(&other, at(3))
            .await
            .expect("listed")
            .is_empty()
    );
    let unknown: TenantName = "unknown".parse().expect("canonical");
    let missing = store.agents(&unknown).await;
    assert!(
        matches!(missing, Err(StoreError::NoSuch { .. })),
        "{missing:?}"
    );
    let mut expected = Entries::default();
    expected.put_entry(&Entry::Rule(rule("theirs")));
    assert_eq!(entries, expected);
}

fn all_rows() -> AuditQuery {
    AuditQuery {
        tenant: Some(tenant()),
        limit: 100,
        before: None,
        since: None,
        actor: None,
        action: None,
    }
}

pub(super) async fn the_record_holds_every_act_and_can_be_searched<B: Bench>() {
    let (_bench, store) = with_tenant::<B>().await;
    join(&store, 1, "one", "k1").await;
    let nasty = Act::done(at(5), "eve\u{1b}[2J\n", "agent.revoke", "x".repeat(9_000));
    store.record(Some(&tenant()), &[nasty]).await.expect("kept");
    let (rows, more) = store.audit(&all_rows()).await.expect("listed");
    let actions: Vec<&str> = rows.iter().map(|row| row.action.as_str()).collect();
    assert_eq!(
        actions,
        ["agent.revoke", "node.enrol", "token.create", "tenant.add"]
    );
    assert!(!more && rows[0].subject.len() < 1_000);
    assert!(
        !rows[0].actor.chars().any(char::is_control),
        "{}",
        rows[0].actor
    );
    let page = AuditQuery {
        limit: 2,
        before: Some(4),
        ..all_rows()
    };
    let (rows, more) = store.audit(&page).await.expect("listed");
    assert_eq!((rows[0].number, rows.len(), more), (3, 2, true));
    let search = AuditQuery {
        action: Some("token".to_owned()),
        ..all_rows()
    };
    assert_eq!(store.audit(&search).await.expect("listed").0.len(), 1);
    let search = AuditQuery {
        action: Some("tok".to_owned()),
        ..all_rows()
    };
    assert!(store.audit(&search).await.expect("listed").0.is_empty());
}

pub(super) async fn the_chain_shows_every_edit_and_every_gap<B: Bench>() {
    for (sql, broken_at) in [
        (
            "UPDATE audit SET actor = 'someone else' WHERE number = 2",
            Some(2),
        ),
        ("UPDATE audit SET reason = 16 WHERE number = 3", Some(3)),
        ("DELETE FROM audit WHERE number = 2", Some(2)),
        ("DELETE FROM audit WHERE number = 1", Some(1)),
        ("DELETE FROM audit WHERE number = 4", Some(4)),
        ("UPDATE audit SET tenant = 'x' WHERE number = 1", Some(1)),
        ("UPDATE meta SET value = value", None),
    ] {
        let (bench, store) = with_tenant::<B>().await;
        let acts: Vec<Act> = ["a.b", "c.d", "e.f"].into_iter().map(act).collect();
        store.record(Some(&tenant()), &acts).await.expect("kept");
        bench.tamper(sql).await;
        let report = store.verify_audit(Some(&tenant())).await.expect("checked");
        assert_eq!(report.broken_at, broken_at, "{sql}");
    }
}

pub(super) async fn retention_takes_the_old_end_and_leaves_a_whole_chain<B: Bench>() {
    let (_bench, store) = with_tenant::<B>().await;
    for second in [10, 20, 30] {
        let act = Act {
            at: at(second),
            ..act("a.b")
        };
        store.record(Some(&tenant()), &[act]).await.expect("kept");
    }
    store.tidy(at(40), keep(at(20))).await.expect("tidied");
    let report = store.verify_audit(Some(&tenant())).await.expect("checked");
    assert_eq!((report.rows, report.broken_at), (2, None));
    store
        .record(Some(&tenant()), &[act("c.d")])
        .await
        .expect("kept");
    let report = store.verify_audit(Some(&tenant())).await.expect("checked");
    assert_eq!((report.rows, report.broken_at), (3, None));
    store
        .tidy(
            at(40).saturating_add(1.hour()).expect("in range"),
            keep(at(99)),
        )
        .await
        .expect("tidied");
    let report = store.verify_audit(Some(&tenant())).await.expect("checked");
    assert_eq!(
        (report.rows, report.broken_at),
        (0, None),
        "even when nothing is left"
    );
}

/// F10: whatever was confirmed before the kill is there after it, and nothing is there by half.
pub(super) async fn a_kill_loses_nothing_that_was_confirmed<B: Bench>() {
    let (mut bench, mut store) = with_tenant::<B>().await;
    for round in 0..6u8 {
        let name = format!("agent-{round}");
        let holder = join(&store, round, &name, &format!("k{round}")).await;
        // One more change is under way when the copy is taken; it may be there or not.
        let registration = offer(&name, 1, &["web"], 60);
        let pending = store.register(&registration, at(2), &always);
        drop(
            tokio::time::timeout(
                std::time::Duration::from_micros(u64::from(round) * 40),
                pending,
            )
            .await,
        );
        bench = bench.killed().await;
        store = bench.store();
        assert!(store.admits(&holder).await.expect("asked"), "round {round}");
        let agents = store.agents(&tenant()).await.expect("listed");
        assert_eq!(agents.len(), usize::from(round) + 1);
        let report = store.verify_audit(Some(&tenant())).await.expect("checked");
        assert_eq!(report.broken_at, None);
        view(&store).await;
    }
}

pub(super) async fn the_first_value_of_a_setting_stays<B: Bench>() {
    let bench = B::fresh().await;
    let store = bench.store();
    assert_eq!(store.meta_or("trust_domain", "a").await.expect("kept"), "a");
    assert_eq!(store.meta_or("trust_domain", "b").await.expect("kept"), "a");
}

macro_rules! battery {
    ($bench:ty: $($case:ident)*) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $case() {
            $crate::store::battery::$case::<$bench>().await;
        })*
    };
}
pub(super) use battery;
