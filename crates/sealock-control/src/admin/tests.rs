//! Every method against every permission, and what the methods do to the store and the record.

use std::sync::Arc;

use sealock_core::api::{ApiError, Permission};
use sealock_core::reason::Reason;
use sealock_net::tls::signed::ViewSigner;
use serde_json::{Value, json};

use super::*;
use crate::pki::Authority;
use crate::store::sqlite::{IfMissing, SqliteStore};
use crate::store::{AuditQuery, Store};
use crate::views::Views;

struct Bench {
    admin: Admin,
    _dir: tempfile::TempDir,
}

fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).expect("in range")
}

async fn bench() -> Bench {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("controller");
    sealock_net::files::ensure_private_dir(&path).expect("made");
    let store = SqliteStore::open(&path.join("db.sqlite"), IfMissing::Create).await;
    let store: Arc<dyn Store> = Arc::new(store.expect("opens"));
    let domain = "sealock".parse().expect("canonical");
    let authority = Authority::open(&path, &*store, &domain, now())
        .await
        .expect("opens");
    let act = Act::done(now(), "test", "tenant.add", "default");
    let tenant = api::default_tenant();
    assert!(store.add_tenant(&tenant, &[], &act).await.expect("added"));
    let key = sealock_net::identity::KeyPair::generate().expect("randomness");
    let signer = ViewSigner::new(&key, Vec::new()).expect("a key");
    let views = Views::open(Arc::clone(&store), signer, now())
        .await
        .expect("built");
    let admin = Admin {
        shared: Shared::new(store, authority, views, now, SignedDuration::ZERO),
        name: "main".parse().expect("canonical"),
        listen: "127.0.0.1:7444".parse().expect("an address"),
        advertise: Vec::new(),
        token_ttl: SignedDuration::from_mins(15),
        started: now(),
    };
    Bench { admin, _dir: dir }
}

fn who(holds: Permission) -> Actor {
    Actor {
        name: format!("admin:{holds}"),
        holds,
    }
}

/// A lawful request for every method; a method that is missing here fails the matrix.
fn sample(path: &str) -> Value {
    match path {
        "/v1/agent/revoke" | "/v1/service/remove" => json!({"name": "web"}),
        "/v1/policy/allow" | "/v1/policy/deny" => json!({"callers": ["*"], "services": ["web"]}),
        "/v1/policy/apply" => json!({"rules": []}),
        "/v1/policy/remove" => json!({"id": "starter"}),
        "/v1/policy/why" => json!({"caller": "cart", "service": "web"}),
        "/v1/token/create" => json!({"addresses": ["relay.example:7443"]}),
        _ => json!({}),
    }
}

async fn rows(admin: &Admin, tenant: bool) -> Vec<api::audit::AuditRow> {
    let query = AuditQuery {
        tenant: tenant.then(api::default_tenant),
        limit: 1_000,
        before: None,
        since: None,
        actor: None,
        action: None,
    };
    admin.shared.store.audit(&query).await.expect("listed").0
}

#[tokio::test]
async fn every_method_asks_for_its_permission_and_no_weaker_one_is_enough() {
    let Bench { admin, _dir } = bench().await;
    let before = rows(&admin, false).await.len();
    let mut refusals = 0;
    for (path, needs) in METHODS {
        for holds in Permission::ALL {
            let result = invoke_json(path, &admin, &who(holds), &sample(path)).await;
            let is_refused = matches!(
                &result,
                Err(ApiError {
                    reason: Some(Reason::PolicyDenied),
                    ..
                })
            );
            assert_eq!(
                is_refused,
                !holds.includes(*needs),
                "{path} with {holds}: {result:?}"
            );
            refusals += usize::from(is_refused);
        }
    }
    assert!(refusals > 10, "{refusals}");
    assert_eq!(
        rows(&admin, false).await.len() - before,
        refusals,
        "each refusal is recorded"
    );
}

#[test]
fn what_changes_something_needs_more_than_reading() {
    for (path, needs) in METHODS {
        let verb = path.rsplit('/').next().expect("a verb");
        let is_reading = matches!(verb, "list" | "show" | "why" | "verify");
        assert_eq!(*needs == Permission::Read, is_reading, "{path}");
    }
}

#[tokio::test]
async fn every_act_of_an_administrator_is_in_the_record_under_its_name() {
    let Bench { admin, _dir } = bench().await;
    let actor = who(Permission::Admin);
    for path in [
        "/v1/token/create",
        "/v1/policy/allow",
        "/v1/policy/deny",
        "/v1/policy/apply",
    ] {
        invoke_json(path, &admin, &actor, &sample(path))
            .await
            .expect(path);
    }
    let rows = rows(&admin, true).await;
    let acts = rows
        .iter()
        .filter(|row| row.actor == actor.name)
        .map(|row| row.action.as_str());
    let acts: Vec<&str> = acts.collect();
    assert_eq!(
        acts,
        [
            "policy.apply",
            "policy.deny",
            "policy.allow",
            "token.create"
        ]
    );
    let text = serde_json::to_string(&rows).expect("JSON");
    assert!(!text.contains("SLK1-"), "no token is in the record");
}

#[tokio::test]
async fn a_token_without_an_address_is_refused_with_the_next_step() {
    let Bench { admin, _dir } = bench().await;
    for (role, hint) in [("agent", "--role relay"), ("relay", "controller.advertise")] {
        let request = json!({"role": role});
        let error = invoke_json(
            "/v1/token/create",
            &admin,
            &who(Permission::Admin),
            &request,
        )
        .await;
        let error = error.expect_err("nowhere to go");
        assert!(
            error.hint.as_deref().unwrap_or("").contains(hint),
            "{error:?}"
        );
    }
    for bad in [
        json!({"role": "controller", "addresses": ["a:1"]}),
        json!({"name": "Not Canonical", "addresses": ["a:1"]}),
        json!({"ttl_seconds": 1, "addresses": ["a:1"]}),
        json!({"ttl_seconds": u64::MAX, "addresses": ["a:1"]}),
        json!({"tenant": "unknown", "addresses": ["a:1"]}),
    ] {
        let result = invoke_json("/v1/token/create", &admin, &who(Permission::Admin), &bad).await;
        assert!(result.is_err(), "{bad}");
    }
}

#[tokio::test]
async fn applying_a_file_shows_first_and_then_does_the_same() {
    let Bench { admin, _dir } = bench().await;
    let actor = who(Permission::Admin);
    let request = |dry_run| {
        let rule = json!({
            "id": "f1", "effect": "allow", "callers": ["cart"], "services": ["web"], "actions": ["open"],
        });
        serde_json::from_value::<api::policy::ApplyRequest>(
            json!({"rules": [rule], "dry_run": dry_run}),
        )
        .expect("a request")
    };
    let shown = invoke::<api::policy::Apply>(&admin, &actor, request(true))
        .await
        .expect("shown");
    let list = || api::policy::ListRequest {
        tenant: api::default_tenant(),
    };
    let listed = invoke::<api::policy::List>(&admin, &actor, list())
        .await
        .expect("listed");
    assert!(listed.rules.is_empty(), "a dry run changes nothing");
    let done = invoke::<api::policy::Apply>(&admin, &actor, request(false))
        .await
        .expect("done");
    assert_eq!((&shown.added, &shown.removed), (&done.added, &done.removed));
    assert!(done.version > shown.version);
    let listed = invoke::<api::policy::List>(&admin, &actor, list())
        .await
        .expect("listed");
    assert_eq!(listed.rules[0].origin, api::policy::Origin::File);
    let why: api::policy::WhyRequest =
        serde_json::from_value(json!({"caller": "cart", "service": "web"})).expect("a request");
    let why = invoke::<api::policy::Why>(&admin, &actor, why)
        .await
        .expect("explained");
    assert!(
        !why.allowed && why.reason == Some(Reason::PolicyDenied),
        "nobody knows the caller: {why:?}"
    );
}

#[test]
fn what_the_store_cannot_do_is_told_with_a_code_and_the_next_step() {
    for (error, hint) in [
        (StoreError::Full, "free some space"),
        (StoreError::Busy, "try again"),
        (StoreError::Unsafe, "the controller's log"),
    ] {
        let told = api_error(&error);
        assert_eq!(told.reason, Some(Reason::Internal), "{error}");
        assert_eq!(told.message, error.to_string());
        assert!(
            told.hint.as_deref().is_some_and(|it| it.contains(hint)),
            "{told:?}"
        );
    }
}
