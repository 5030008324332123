//! A whole controller in this process: what nodes and administrators see of it over their real interfaces.

use std::collections::{BTreeMap, BTreeSet};

use sealock_core::api::{self, Method};
use sealock_core::identity::AgentId;
use sealock_core::name::ServiceName;
use sealock_core::reason::Reason;
use sealock_core::token::JoinToken;
use sealock_core::view::{Entries, Offering, View, ViewVersion};
use sealock_net::node_api::{
    CallError, Enrol, Issued, Naming, NodeClient, Watch, WatchEvent, proto,
};
use sealock_net::tls::signed::{SignedHead, SignedView};
use sealock_net::tls::{controller_client, enrol_client};
use sealock_net::unix::UnixClient;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::*;

mod bench;
mod hostile;
mod recover;
mod redeem;
mod roots;
mod tenants;

use bench::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_joins_watches_and_registers() {
    let running = started(|_| ()).await;
    let member = running.join("web-1").await;
    assert_eq!(
        member.svid.id().to_string(),
        "spiffe://sealock/default/agent/web-1"
    );
    let mut watch = member
        .client
        .watch(&BTreeMap::new())
        .await
        .expect("watches");
    let mut held = Held::default();
    let knows = |view: &View| view.knows(&agent("web-1"));
    let kinds = until(&mut watch, &mut held, &member.trust, knows).await;
    assert_eq!(kinds[..2], ["trust", "full"]);
    let answer = member
        .client
        .register(1, &services(&["web"]))
        .await
        .expect("answered");
    assert_eq!(answer.services[&service("web")], Reason::Done);
    assert!(answer.lease >= Duration::from_secs(30));
    let kinds = until(&mut watch, &mut held, &member.trust, |view| {
        view.service(&service("web")).is_some()
    })
    .await;
    assert_eq!(kinds, ["delta"]);
}

/// F27: within five seconds every node knows, and the agent itself is cut off.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_agent_is_cut_off_and_every_node_hears_of_it() {
    let running = started(|_| ()).await;
    let member = running.join("web-1").await;
    member
        .client
        .register(1, &services(&["web"]))
        .await
        .expect("answered");
    let mut watch = member
        .client
        .watch(&BTreeMap::new())
        .await
        .expect("watches");
    let relay = running.join_relay("eu-1").await;
    let mut relay_watch = relay.client.watch(&BTreeMap::new()).await.expect("watches");
    let revoke = api::agent::RevokeRequest {
        tenant: agent("web-1").tenant,
        name: agent("web-1").name,
    };
    let revoked = running
        .client
        .call::<api::agent::Revoke>(&revoke)
        .await
        .expect("revoked");
    assert_eq!(revoked.certificates, 1);
    let leaf = member.svid.leaf().clone();
    let mut relay_held = Held::default();
    until(&mut relay_watch, &mut relay_held, &relay.trust, |view| {
        view.is_revoked("", &leaf.key_digest) && view.service(&service("web")).is_none()
    })
    .await;
    let ended = timeout(SOON, async {
        loop {
            if let Err(error) = watch.next().await {
                return error.reason();
            }
        }
    });
    assert_eq!(
        ended.await.expect("within five seconds"),
        Reason::IdentityRevoked
    );
    let refused = member
        .client
        .register(1, &services(&["web"]))
        .await
        .expect_err("revoked");
    assert_eq!(refused.reason(), Reason::IdentityRevoked);
    let refused = member
        .client
        .renew(
            KeyPair::generate()
                .expect("randomness")
                .request_der()
                .expect("signed"),
        )
        .await;
    assert_eq!(
        refused.expect_err("revoked").reason(),
        Reason::IdentityRevoked
    );
}

/// S85: a name that another agent owns is shared only when a rule says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_provider_needs_a_rule_and_loses_the_name_with_it() {
    let running = started(|_| ()).await;
    let (one, two) = (running.join("one").await, running.join("two").await);
    let offer = services(&["web"]);
    let web = service("web");
    let answer = one.client.register(1, &offer).await.expect("answered");
    assert_eq!(answer.services[&web], Reason::Done);
    let answer = two.client.register(1, &offer).await.expect("answered");
    assert_eq!(
        answer.services[&web],
        Reason::NameTaken,
        "the starter rule is about opening"
    );
    let add: api::policy::AddRequest = serde_json::from_value(serde_json::json!({
        "id": "share", "callers": ["two"], "services": ["web"], "actions": ["provide"],
    }))
    .expect("a request");
    running
        .client
        .call::<api::policy::Allow>(&add)
        .await
        .expect("added");
    let answer = two.client.register(1, &offer).await.expect("answered");
    assert_eq!(answer.services[&web], Reason::Done);
    let gone = BTreeSet::from([web.clone()]);
    one.client
        .unregister(0, &gone)
        .await
        .expect("an older generation is no error");
    let list = api::service::ListRequest {
        tenant: agent("one").tenant,
    };
    let listed = running
        .client
        .call::<api::service::List>(&list)
        .await
        .expect("listed");
    assert_eq!(listed.services[0].providers.len(), 2, "and changes nothing");
    one.client.unregister(1, &gone).await.expect("taken back");
    let listed = running
        .client
        .call::<api::service::List>(&list)
        .await
        .expect("listed");
    assert_eq!(
        (
            listed.services[0].providers.len(),
            listed.services[0].owner.as_str()
        ),
        (1, "two")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_that_fell_behind_gets_the_whole_view_and_a_near_one_the_difference() {
    let running = started(|_| ()).await;
    let member = running.join("web-1").await;
    let tenant = agent("web-1").tenant;
    let shared = running.shared();
    let newest = || {
        shared
            .views
            .newest(&tenant)
            .expect("there is one")
            .head
            .head
            .version
    };
    let first = newest();
    for round in 0..12 {
        let offer = if round % 2 == 0 {
            vec!["web"]
        } else {
            vec!["web", "api"]
        };
        let before = newest();
        member
            .client
            .unregister(1, &BTreeSet::from([service("api"), service("web")]))
            .await
            .expect("taken back");
        member
            .client
            .register(1, &services(&offer))
            .await
            .expect("answered");
        let moved = async {
            while newest() <= before {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(SOON, moved).await.expect("a new version");
    }
    for (version, expected) in [
        (first, "full"),
        (newest(), "delta"),
        (ViewVersion(u64::MAX), "full"),
    ] {
        let have = BTreeMap::from([(tenant.clone(), version)]);
        let mut watch = member.client.watch(&have).await.expect("watches");
        let trust = watch.next().await.expect("an event");
        assert!(matches!(trust, WatchEvent::Trust(_)));
        let event = watch.next().await.expect("an event");
        let kind = match event {
            WatchEvent::Full { .. } => "full",
            WatchEvent::Delta { .. } => "delta",
            WatchEvent::Trust(_) => "trust",
            WatchEvent::Relays(_) => "relays",
        };
        assert_eq!(kind, expected, "from {version:?}");
    }
}

/// A database that was restored from a copy is behind its nodes, and they would refuse every older view.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_behind_its_nodes_goes_past_them() {
    let running = started(|_| ()).await;
    let member = running.join("web-1").await;
    let claimed = ViewVersion(500);
    let have = BTreeMap::from([(agent("web-1").tenant, claimed)]);
    let mut watch = member.client.watch(&have).await.expect("watches");
    let mut held = Held::default();
    let past = |view: &View| view.head.version > claimed;
    until(&mut watch, &mut held, &member.trust, past).await;
    let other = BTreeMap::from([("other".parse().expect("canonical"), claimed)]);
    call(&member.client, "watch").await.expect("served");
    member.client.watch(&other).await.expect("served");
    let list = api::audit::ListRequest {
        action: Some("view.raise".to_owned()),
        ..Default::default()
    };
    let rows = running.client.call::<api::audit::List>(&list).await;
    assert_eq!(rows.expect("listed").rows.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_lets_in_once_in_time_and_in_its_role() {
    let running = started(|_| ()).await;
    let token = running.token(CreateRequest::default()).await;
    let wrong = running
        .enrol(&token, "web-1", Role::Relay)
        .await
        .expect_err("another role");
    assert_eq!(wrong.reason(), Reason::TokenInvalid);
    running
        .enrol(&token, "web-1", Role::Agent)
        .await
        .expect("the first");
    let twice = running
        .enrol(&token, "web-2", Role::Agent)
        .await
        .expect_err("the second");
    assert_eq!(twice.reason(), Reason::TokenInvalid);
    assert!(matches!(twice, CallError::Refused(_)) && !twice.is_transient());
    let bound = CreateRequest {
        name: Some("db".to_owned()),
        ..CreateRequest::default()
    };
    let bound = running.token(bound).await;
    let other = running
        .enrol(&bound, "web-3", Role::Agent)
        .await
        .expect_err("another name");
    assert_eq!(other.reason(), Reason::TokenInvalid);
    let (issued, _) = running
        .enrol(&bound, "db", Role::Agent)
        .await
        .expect("its name");
    assert_eq!(issued.id.to_string(), "spiffe://sealock/default/agent/db");
    // The record holds each attempt that failed.
    let list = api::audit::ListRequest {
        deployment: true,
        action: Some("node.enrol".to_owned()),
        ..Default::default()
    };
    let rows = running
        .client
        .call::<api::audit::List>(&list)
        .await
        .expect("listed")
        .rows;
    assert_eq!(rows.len(), 3);
    assert!(rows.iter().all(|row| row.reason == Reason::TokenInvalid));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_expects_another_authority_does_not_talk() {
    let running = started(|_| ()).await;
    let mut token = running.token(CreateRequest::default()).await;
    let good = token.pin;
    token.pin = CaPin([7; 32]);
    let error = running
        .enrol(&token, "web-1", Role::Agent)
        .await
        .expect_err("another pin");
    assert!(matches!(error, CallError::Unreachable(_)), "{error:?}");
    token.pin = good;
    running
        .enrol(&token, "web-1", Role::Agent)
        .await
        .expect("the token was not used");
}

/// Every method of the node interface, called with nothing in it.
async fn call(client: &NodeClient, method: &str) -> Result<(), CallError> {
    let none = BTreeSet::new();
    match method {
        "renew" => client
            .renew(
                KeyPair::generate()
                    .expect("randomness")
                    .request_der()
                    .expect("signed"),
            )
            .await
            .map(drop),
        "watch" => client.watch(&BTreeMap::new()).await.map(drop),
        "register" => client.register(1, &BTreeMap::new()).await.map(drop),
        "unregister" => client.unregister(1, &none).await,
        "report" => client.report(&[], &[]).await,
        other => panic!("the matrix has no call for `{other}`"),
    }
}

/// The methods as the interface itself lists them, so that a new one cannot be forgotten here.
fn methods() -> Vec<String> {
    let text = include_str!("../../../sealock-net/proto/node.proto");
    let lines = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("rpc "));
    let name = |line: &str| line.split('(').next().expect("a name").to_lowercase();
    lines
        .map(name)
        .filter(|name| name != "enrol" && name != "recover")
        .collect()
}

/// S81 and S10: without a certificate nothing but a join is answered; with one, only what its role is for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_method_answers_the_roles_that_it_is_for_and_nobody_else() {
    let running = started(|_| ()).await;
    let agent = running.join("web-1").await;
    let relay = running.join_relay("eu-1").await;
    let anonymous = running.connect(enrol_client(running.handle.pin()));
    let methods = methods();
    assert_eq!(methods.len(), 5);
    for method in &methods {
        let is_for_relays = matches!(method.as_str(), "renew" | "watch" | "report");
        for (who, client, is_lawful) in [
            ("agent", &agent.client, true),
            ("relay", &relay.client, is_for_relays),
            ("nobody", &anonymous, false),
        ] {
            let result = call(client, method).await;
            match result {
                Ok(()) => assert!(is_lawful, "{who} may not {method}"),
                Err(error) => {
                    assert!(!is_lawful, "{who} may {method}: {error:?}");
                    assert_eq!(error.reason(), Reason::NotAdmitted, "{who} {method}");
                }
            }
        }
    }
}

/// A controller's own certificate, one of another authority, and one of another deployment do not pass TLS.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_of_other_kinds_and_authorities_do_not_pass_the_handshake() {
    let running = started(|_| ()).await;
    let other = started(|_| ()).await;
    let stranger = other.join("web-1").await;
    let own = Own {
        principal: Principal::Controller("main".parse().expect("canonical")),
        store: Arc::clone(&running.shared().store),
        authority: running.shared().authority.clone(),
    };
    let trust = TrustStore::new(running.handle.trust().clone());
    for profile in [Profile::Role, Profile::ViewSigner] {
        let svid = own.svid(profile, Timestamp::now()).await.expect("issued");
        let client = running.connect(controller_client(&IdentityStore::new(svid), &trust));
        assert!(call(&client, "watch").await.is_err(), "{profile:?}");
    }
    let identity = IdentityStore::new(stranger.svid.clone());
    let client = running.connect(controller_client(&identity, &trust));
    let error = call(&client, "watch").await.expect_err("a stranger");
    assert!(matches!(error, CallError::Unreachable(_)), "{error:?}");
}

/// S81: plain text gets no answer, and neither it nor a silent client keeps others out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plain_text_and_silence_get_no_answer_and_block_nobody() {
    let running = started(|_| ()).await;
    let mut silent = Vec::new();
    for _ in 0..50 {
        silent.push(
            TcpStream::connect(running.handle.listen())
                .await
                .expect("connects"),
        );
    }
    let mut plain = TcpStream::connect(running.handle.listen())
        .await
        .expect("connects");
    plain
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
        .await
        .expect("sent");
    let mut answer = Vec::new();
    let read = timeout(SOON, plain.read_to_end(&mut answer))
        .await
        .expect("closed soon");
    drop(read); // a reset is as good as an end
    // At most a TLS alert comes back, never HTTP/2.
    assert!(
        answer.len() <= 7 && !answer.starts_with(&[0, 0]),
        "{answer:?}"
    );
    running.join("web-1").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_see_their_own_tenant_and_relays_see_all() {
    let running = started(|_| ()).await;
    let other: TenantName = "other".parse().expect("canonical");
    let act = Act::done(Timestamp::now(), "test", "tenant.add", &other);
    let added = running.shared().store.add_tenant(&other, &[], &act).await;
    assert!(added.expect("added"));
    running.shared().views.poke();
    let member = running.join("web-1").await;
    let relay = running.join_relay("eu-1").await;
    let have = BTreeMap::from([(other.clone(), ViewVersion(1))]);
    let mut watch = member.client.watch(&have).await.expect("watches");
    let mut held = Held::default();
    until(&mut watch, &mut held, &member.trust, |view| {
        view.knows(&agent("web-1"))
    })
    .await;
    let relays = timeout(SOON, watch.next()).await.expect("the relays");
    assert!(matches!(relays, Ok(WatchEvent::Relays(_))), "{relays:?}");
    let quiet = timeout(Duration::from_millis(300), watch.next()).await;
    assert!(quiet.is_err(), "nothing of another tenant: {quiet:?}");
    assert!(!held.0.contains_key(&other));
    let mut watch = relay.client.watch(&BTreeMap::new()).await.expect("watches");
    let both = async {
        let mut held = Held::default();
        while held.0.len() < 2 {
            held.take(watch.next().await.expect("an event"));
        }
    };
    timeout(SOON, both).await.expect("both tenants");
    let relays = running
        .client
        .call::<api::relay::List>(&api::relay::ListRequest {})
        .await;
    assert!(relays.expect("listed").relays[0].connected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewal_keeps_the_identity_and_a_report_is_recorded_for_the_own_tenant() {
    let running = started(|_| ()).await;
    let member = running.join("web-1").await;
    let key = Arc::new(KeyPair::generate().expect("randomness"));
    let issued = member
        .client
        .renew(key.request_der().expect("signed"))
        .await
        .expect("renewed");
    assert_eq!(issued.id, *member.svid.id());
    let renewed = running.member(issued, key);
    assert_ne!(renewed.svid.leaf().serial, member.svid.leaf().serial);
    let row = sealock_net::node_api::DecisionRow {
        at: Timestamp::now(),
        tenant: "other".parse().expect("canonical"),
        caller: "default/cart".to_owned(),
        service: "web\u{1b}[2J".to_owned(),
        reason: Reason::PolicyDenied,
        rule: String::new(),
        count: 3,
    };
    renewed.client.report(&[row], &[]).await.expect("recorded");
    let list = api::audit::ListRequest {
        action: Some("flow".to_owned()),
        ..Default::default()
    };
    let rows = running
        .client
        .call::<api::audit::List>(&list)
        .await
        .expect("listed")
        .rows;
    assert_eq!(
        (rows.len(), rows[0].reason, &rows[0].detail["count"]),
        (1, Reason::PolicyDenied, &3.into())
    );
    assert_eq!(rows[0].actor, "default/agent/web-1");
    assert!(!rows[0].subject.contains('\u{1b}'));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_are_too_large_or_malformed_are_refused_and_the_connection_lives() {
    let running = started(|_| ()).await;
    let member = running.join("web-1").await;
    let label = BTreeMap::from([("x".to_owned(), "y".repeat(300 * 1024))]);
    let large = Offering {
        labels: label,
        ..Offering::default()
    };
    let large = BTreeMap::from([(service("web"), large)]);
    assert!(member.client.register(1, &large).await.is_err());
    let error = member
        .client
        .register(u64::MAX, &services(&["web"]))
        .await
        .expect_err("out of range");
    assert_eq!(error.reason(), Reason::ProtocolViolation);
    let error = member
        .client
        .renew(b"no request".to_vec())
        .await
        .expect_err("no request");
    assert_eq!(error.reason(), Reason::ProtocolViolation);
    member
        .client
        .register(1, &services(&["web"]))
        .await
        .expect("still served");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_source_cannot_try_joins_without_end() {
    let running = started(|config| {
        config.limits = Limits {
            joins: 3,
            joins_per_second: 0.001,
            ..Limits::default()
        };
    })
    .await;
    let token = JoinToken {
        secret: sealock_core::secret::Secret::new([1; 16]),
        ..running.token(CreateRequest::default()).await
    };
    let mut reasons = Vec::new();
    for _ in 0..4 {
        let error = running
            .enrol(&token, "web-1", Role::Agent)
            .await
            .expect_err("a wrong secret");
        reasons.push(error.reason());
    }
    assert_eq!(reasons[..3], [Reason::TokenInvalid; 3]);
    assert_eq!(reasons[3], Reason::Overloaded);
}

/// S14, F10: what was used stays used, what was trusted stays trusted, and a lost database is no new beginning.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_keeps_everything_and_a_lost_database_stops_the_start() {
    let running = started(|_| ()).await;
    let used = running.token(CreateRequest::default()).await;
    let (issued, key) = running
        .enrol(&used, "web-1", Role::Agent)
        .await
        .expect("joins");
    running
        .member(issued.clone(), Arc::clone(&key))
        .client
        .register(1, &services(&["web"]))
        .await
        .expect("answered");
    let before = running
        .shared()
        .views
        .newest(&agent("web-1").tenant)
        .expect("there is one");
    let (config, dir) = running.stop().await;
    let running = again(config).await;
    let member = running.member(issued, key);
    call(&member.client, "watch")
        .await
        .expect("the certificate still stands");
    let twice = running
        .enrol(&used, "web-2", Role::Agent)
        .await
        .expect_err("used before");
    assert_eq!(twice.reason(), Reason::TokenInvalid);
    let after = running
        .shared()
        .views
        .newest(&agent("web-1").tenant)
        .expect("there is one");
    assert!(after.head.head.version >= before.head.head.version);
    assert_eq!(
        after.head.chain, before.head.chain,
        "the signer is the same"
    );
    let report = running
        .shared()
        .store
        .verify_audit(Some(&agent("web-1").tenant))
        .await;
    assert_eq!(report.expect("checked").broken_at, None);
    let (config, _) = running.stop().await;
    std::fs::remove_file(config.state_dir.join("db.sqlite")).expect("there");
    let scope = Scope::new("test-controller");
    let error = start(config, &scope).await.expect_err("no database");
    assert!(format!("{error:#}").contains("restore a copy"), "{error:#}");
    drop(dir);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_controller_over_the_same_state_does_not_start() {
    let running = started(|_| ()).await;
    let scope = Scope::new("second");
    let other_socket = running.config.state_dir.join("other.sock");
    for socket in [running.config.socket.clone(), other_socket] {
        let config = Config {
            socket,
            ..running.config.clone()
        };
        let error = start(config, &scope).await.expect_err("in use");
        assert!(format!("{error:#}").contains("in use"), "{error:#}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropping_the_scope_ends_every_connection() {
    let running = started(|_| ()).await;
    let member = running.join("web-1").await;
    let mut watch = member
        .client
        .watch(&BTreeMap::new())
        .await
        .expect("watches");
    drop(running.scope);
    let ended = timeout(SOON, async { while watch.next().await.is_ok() {} });
    ended.await.expect("ends at once");
    let error = call(&member.client, "watch")
        .await
        .expect_err("nobody is there");
    assert_eq!(error.reason(), Reason::ControllerUnreachable);
}

/// F11: without a controller a join fails with a code within five seconds, even when somebody listens and is silent.
#[tokio::test]
async fn a_join_without_a_controller_fails_with_a_code_in_five_seconds() {
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("listens");
    let address = silent.local_addr().expect("bound");
    let client = NodeClient::new(enrol_client(CaPin([7; 32])), move || {
        TcpStream::connect(address)
    });
    let enrol = Enrol {
        secret: sealock_core::secret::Secret::new([1; 16]),
        csr: vec![1],
        naming: Naming::default(),
        role: Role::Agent,
        addresses: Vec::new(),
    };
    let start = std::time::Instant::now();
    let error = client.enrol(&enrol).await.expect_err("nobody answers");
    assert_eq!(error.reason(), Reason::ControllerUnreachable);
    assert!(
        start.elapsed() < Duration::from_millis(5_500),
        "{:?}",
        start.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_are_sent_to_the_relays_that_joined() {
    let running = started(|_| ()).await;
    let nowhere = running.handle.create_token(CreateRequest::default()).await;
    assert!(nowhere.expect_err("no relay yet").hint.is_some());
    let request = CreateRequest {
        role: Role::Relay,
        ..CreateRequest::default()
    };
    let token = running
        .handle
        .create_token(request)
        .await
        .expect("the controller advertises itself");
    let token: JoinToken = token.text.parse().expect("a token");
    assert_eq!(token.addresses, running.config.advertise);
    let key = KeyPair::generate().expect("randomness");
    let enrol = Enrol {
        secret: token.secret.clone(),
        csr: key.request_der().expect("signed"),
        naming: Naming {
            asked: Some("eu-1".to_owned()),
            own: None,
        },
        role: Role::Relay,
        addresses: vec!["eu-1.example:7443".parse().expect("an address")],
    };
    let client = running.connect(enrol_client(token.pin));
    let issued = client.enrol(&enrol).await.expect("joins");
    let created = running
        .handle
        .create_token(CreateRequest::default())
        .await
        .expect("created");
    assert_eq!(created.addresses, enrol.addresses);
    let relay = running.member(issued, Arc::new(key));
    let moved = ["eu-1.example:8443".parse().expect("an address")];
    relay.client.report(&[], &moved).await.expect("told");
    let created = running
        .handle
        .create_token(CreateRequest::default())
        .await
        .expect("created");
    assert_eq!(created.addresses, moved);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_ends_with_the_certificate_that_opened_it() {
    let running = started(|config| config.certificate_ttl = SignedDuration::from_secs(3)).await;
    let member = running.join("web-1").await;
    let mut watch = member
        .client
        .watch(&BTreeMap::new())
        .await
        .expect("watches");
    let ended = timeout(SOON, async {
        loop {
            if let Err(error) = watch.next().await {
                return error.reason();
            }
        }
    });
    assert_eq!(
        ended.await.expect("soon after its end"),
        Reason::NotAdmitted
    );
    let error = call(&member.client, "register").await.expect_err("ended");
    assert_eq!(error.reason(), Reason::NotAdmitted);
    // The controller's own certificate was renewed meanwhile.
    running.join("web-2").await;
}

#[test]
fn the_paths_of_the_generated_service_are_those_of_the_contract() {
    assert_eq!(proto::node_server::SERVICE_NAME, "sealock.node.v1.Node");
    assert_eq!(Create::PATH, "/v1/token/create");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_of_nodes_are_counted_by_method_and_outcome() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback");
    let address = free.local_addr().expect("bound");
    drop(free);
    let running = started(|config| config.admin = Some(address)).await;
    let relay = running.join_relay("relay-1").await;
    let refused = relay.client.register(1, &services(&["web"])).await;
    assert!(refused.is_err(), "a relay provides nothing");
    let _watch = relay.client.watch(&BTreeMap::new()).await.expect("watches");
    let mut page = String::new();
    let mut stream = TcpStream::connect(address).await.expect("served");
    let request = b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    stream.write_all(request).await.expect("asked");
    stream.read_to_string(&mut page).await.expect("answered");
    for line in [
        r#"sealock_controller_node_calls_total{method="Enrol",reason="DONE"} 1"#,
        r#"sealock_controller_node_calls_total{method="Register",reason="NOT_ADMITTED"} 1"#,
        "sealock_controller_node_watchers 1",
    ] {
        assert!(page.contains(line), "{line} is missing in:\n{page}");
    }
}
