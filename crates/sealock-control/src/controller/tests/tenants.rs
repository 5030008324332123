//! S11: whatever an agent writes into any field of any message, another tenant stays out of its reach and out of its
//! sight.
//!
//! The fields are read from the contract itself, so a field that is added there fails here until somebody has said what
//! a stranger could do with it.

use std::time::Instant;

use sealock_net::node_api::proto::node_client::NodeClient as Generated;
use tokio_rustls::TlsConnector;
use tonic::transport::Channel;

use super::*;
use crate::store::{AuditQuery, Registration, Sharing};

mod long;

/// What may stand in a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holds {
    /// The name of somebody or something: it is swapped for another tenant's.
    Name(Named),
    /// Numbers, keys, signatures and what is only shown to people.
    NoName,
    /// A message whose own fields are in this list.
    Message,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Named {
    Tenant,
    Agent,
    Service,
}

/// Every field of every message that a node sends.
const FIELDS: &[(&str, &str, Holds)] = &[
    ("EnrolRequest", "secret", Holds::NoName),
    ("EnrolRequest", "csr", Holds::NoName),
    ("EnrolRequest", "name", Holds::Name(Named::Agent)),
    ("EnrolRequest", "role", Holds::NoName),
    ("EnrolRequest", "addresses", Holds::NoName),
    ("EnrolRequest", "own_name", Holds::Name(Named::Agent)),
    ("RecoverRequest", "certificate", Holds::NoName), // names its holder, which another test is about
    ("RecoverRequest", "csr", Holds::NoName),
    ("RecoverRequest", "at_ms", Holds::NoName),
    ("RecoverRequest", "proof", Holds::NoName),
    ("RenewRequest", "csr", Holds::NoName),
    ("Have", "tenant", Holds::Name(Named::Tenant)),
    ("Have", "version", Holds::NoName),
    ("WatchRequest", "have", Holds::Message),
    ("WatchRequest", "kept", Holds::NoName),
    ("WatchRequest", "region", Holds::NoName),
    ("Offer", "name", Holds::Name(Named::Service)),
    ("Offer", "labels", Holds::NoName),
    ("Offer", "weight", Holds::NoName),
    ("Offer", "standby", Holds::NoName),
    ("Offer", "region", Holds::NoName),
    ("Offer", "sticky", Holds::NoName),
    ("RegisterRequest", "generation", Holds::NoName),
    ("RegisterRequest", "services", Holds::Message),
    ("UnregisterRequest", "generation", Holds::NoName),
    ("UnregisterRequest", "services", Holds::Name(Named::Service)),
    ("DecisionRow", "at_ms", Holds::NoName),
    ("DecisionRow", "tenant", Holds::Name(Named::Tenant)),
    ("DecisionRow", "caller", Holds::Name(Named::Agent)),
    ("DecisionRow", "service", Holds::Name(Named::Service)),
    ("DecisionRow", "reason", Holds::NoName),
    ("DecisionRow", "rule", Holds::NoName),
    ("DecisionRow", "count", Holds::NoName),
    ("ReportRequest", "decisions", Holds::Message),
    ("ReportRequest", "addresses", Holds::NoName),
];

/// The messages of the contract that a node sends, with their fields, as its text says.
fn contract() -> BTreeSet<(String, String)> {
    let text = include_str!("../../../../sealock-net/proto/node.proto");
    let sent = ["Have", "Offer", "DecisionRow"];
    let mut open: Vec<String> = Vec::new();
    let mut fields = BTreeSet::new();
    for line in text.lines().map(str::trim) {
        let code = line.split("//").next().unwrap_or_default().trim();
        if let Some(rest) = code.strip_prefix("message ") {
            let name = rest.trim_end_matches(['{', '}', ' ']).to_owned();
            if code.ends_with('{') {
                open.push(name);
            }
        } else if code.ends_with('{') {
            open.push(String::new()); // an enum, a oneof, the service
        } else if code.starts_with('}') {
            open.pop();
        } else if let (Some(message), Some((declared, _))) = (open.last(), code.split_once(" = "))
            && (message.ends_with("Request") || sent.contains(&message.as_str()))
        {
            let field = declared.rsplit(' ').next().unwrap_or_default();
            fields.insert((message.clone(), field.to_owned()));
        }
    }
    fields
}

#[test]
fn every_field_that_a_node_sends_is_known_to_the_tests_of_tenancy() {
    let known: BTreeSet<_> = FIELDS
        .iter()
        .map(|(message, field, _)| ((*message).to_owned(), (*field).to_owned()))
        .collect();
    assert_eq!(known, contract());
}

/// Two tenants with the same kinds of things in them: `default`, where the attacker is, and `other`.
struct Tenants {
    running: Running,
    attacker: Member,
    other: TenantName,
}

/// The same length everywhere, so that an answer cannot differ by what was asked.
const THEIRS: [(Named, &str); 3] = [
    (Named::Tenant, "other"),
    (Named::Agent, "cart1"),
    (Named::Service, "bank1"),
];
const NOBODYS: [(Named, &str); 3] = [
    (Named::Tenant, "nobdy"),
    (Named::Agent, "nobdy"),
    (Named::Service, "nobdy"),
];

fn of(names: &[(Named, &'static str); 3], named: Named) -> &'static str {
    names
        .iter()
        .find(|(kind, _)| *kind == named)
        .expect("each kind has a name")
        .1
}

impl Tenants {
    async fn start() -> Self {
        Self::start_with(|_| ()).await
    }

    async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let running = started(change).await;
        let other: TenantName = "other".parse().expect("canonical");
        let now = Timestamp::now();
        let store = &running.shared().store;
        let act = Act::done(now, "test", "tenant.add", &other);
        assert!(store.add_tenant(&other, &[], &act).await.expect("added"));
        let request = CreateRequest {
            tenant: other.clone(),
            name: Some("cart1".to_owned()),
            ..CreateRequest::default()
        };
        let token = running.token(request).await;
        running
            .enrol(&token, "cart1", Role::Agent)
            .await
            .expect("joins");
        let registration = Registration {
            agent: AgentId {
                tenant: other.clone(),
                name: "cart1".parse().expect("canonical"),
            },
            generation: 1,
            services: services(&["bank1"]),
            lease_ends: now + SignedDuration::from_secs(60),
        };
        let never = |_: &Sharing<'_>| false;
        let offered = store.register(&registration, now, &never).await;
        offered.expect("offered");
        running.shared().views.poke();
        let attacker = running.join("web-1").await;
        Self {
            running,
            attacker,
            other,
        }
    }

    /// All that there is of the other tenant, in words.
    async fn theirs(&self) -> String {
        let store = &self.running.shared().store;
        let query = AuditQuery {
            tenant: Some(self.other.clone()),
            limit: 1_000,
            before: None,
            since: None,
            actor: None,
            action: None,
        };
        let now = Timestamp::now();
        let view = store.view(&self.other).await.expect("readable");
        let agents = store.agents(&self.other).await.expect("readable");
        let services = store.services(&self.other, now).await.expect("readable");
        let audit = store.audit(&query).await.expect("readable");
        format!("{view:?}\n{agents:?}\n{services:?}\n{audit:?}")
    }

    /// The generated client as the attacker holds it: it can put anything into any field.
    fn raw(&self) -> Generated<Channel> {
        let identity = IdentityStore::new(self.attacker.svid.clone());
        let trust = TrustStore::new(self.attacker.trust.clone());
        let tls = TlsConnector::from(controller_client(&identity, &trust));
        let address = self.running.handle.listen();
        let connector = tower::service_fn(move |_: http::Uri| {
            let tls = tls.clone();
            async move {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                let name = sealock_net::tls::unused_server_name();
                let stream = tls.connect(name, stream).await?;
                std::io::Result::Ok(hyper_util::rt::TokioIo::new(stream))
            }
        });
        let endpoint = tonic::transport::Endpoint::from_static("http://sealock");
        Generated::new(endpoint.connect_with_connector_lazy(connector))
    }

    /// Sends one message with `name` in one of its fields; a watch has said all when it says nothing for so long.
    async fn send(
        &self,
        mut raw: Generated<Channel>,
        (message, field): (&str, &str),
        name: &str,
        quiet: Duration,
    ) -> Answer {
        let name = name.to_owned();
        match (message, field) {
            ("EnrolRequest", _) => {
                // A token of the own tenant that is bound to no name.
                let token = self.running.token(CreateRequest::default()).await;
                let key = KeyPair::generate().expect("randomness");
                let (asked, own) = match field {
                    "name" => (name, String::new()),
                    _ => (String::new(), name),
                };
                let request = proto::EnrolRequest {
                    secret: token.secret.expose().to_vec(),
                    csr: key.request_der().expect("signed"),
                    name: asked,
                    own_name: own,
                    role: proto::Role::Agent.into(),
                    addresses: Vec::new(),
                };
                let id = |answer: tonic::Response<proto::Identity>| answer.map(|it| it.id);
                Answer::of(async { raw.enrol(request).await.map(id) }).await
            }
            ("Have", "tenant") => {
                let have = proto::watch_request::Have {
                    tenant: name,
                    version: 1,
                };
                let request = proto::WatchRequest {
                    have: vec![have],
                    kept: false,
                    ..Default::default()
                };
                let began = Instant::now();
                let mut events = raw.watch(request).await.expect("served").into_inner();
                let mut next = events.message().await;
                let took = began.elapsed();
                // The own view comes whatever was asked for; how often it changes just now says nothing.
                let mut heard = BTreeSet::new();
                loop {
                    let event = next.expect("an event").and_then(|event| event.event);
                    heard.insert(head_of(event.expect("some event")));
                    let Ok(event) = timeout(quiet, events.message()).await else {
                        let words = format!("{heard:?}");
                        return Answer { words, took };
                    };
                    next = event;
                }
            }
            ("Offer", "name") => {
                let offer = proto::Offer {
                    name,
                    ..proto::Offer::default()
                };
                let request = proto::RegisterRequest {
                    generation: 1,
                    services: vec![offer],
                };
                Answer::of(raw.register(request)).await
            }
            ("UnregisterRequest", "services") => {
                let request = proto::UnregisterRequest {
                    generation: 1,
                    services: vec![name],
                };
                Answer::of(raw.unregister(request)).await
            }
            ("DecisionRow", _) => {
                let own = |wanted: &str, own: &str| {
                    if field == wanted {
                        name.clone()
                    } else {
                        own.to_owned()
                    }
                };
                let row = proto::DecisionRow {
                    at_ms: 0,
                    tenant: own("tenant", "default"),
                    caller: own("caller", "web-1"),
                    service: own("service", "web"),
                    reason: Reason::PolicyDenied.number(),
                    rule: String::new(),
                    count: 1,
                };
                let request = proto::ReportRequest {
                    decisions: vec![row],
                    addresses: Vec::new(),
                };
                Answer::of(raw.report(request)).await
            }
            (message, field) => panic!("no attack is written for {message}.{field}"),
        }
    }
}

/// The tenant whose view an event brings; `all` for what concerns every tenant.
fn head_of(event: proto::watch_event::Event) -> String {
    use proto::watch_event::Event;
    let head = match event {
        Event::Full(full) => full.head,
        Event::Delta(delta) => delta.head,
        Event::Trust(_) | Event::Relays(_) => return "all".to_owned(),
    };
    let head = head.expect("a head").head;
    let head: serde_json::Value = serde_json::from_slice(&head).expect("JSON");
    head["tenant"].as_str().expect("a name").to_owned()
}

/// A watch that says nothing for so long has said all.
const QUIET: Duration = Duration::from_millis(150);

/// What came back, and after what time.
struct Answer {
    /// Without the name that was asked for, which an answer may repeat.
    words: String,
    took: Duration,
}

impl Answer {
    async fn of<T: std::fmt::Debug>(
        call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    ) -> Self {
        let began = Instant::now();
        let answer = call.await.map(tonic::Response::into_inner);
        let took = began.elapsed();
        let mut words = match answer {
            Ok(answer) => format!("{answer:?}"),
            Err(status) => format!("{:?} {}", status.code(), status.message()),
        };
        for (_, name) in THEIRS.iter().chain(&NOBODYS) {
            words = words.replace(name, "NAME");
        }
        Self { words, took }
    }
}

/// S11: neither changed nor seen nor told from what does not exist.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_of_another_tenant_in_any_field_is_a_name_of_nobody() {
    let tenants = Tenants::start().await;
    let before = tenants.theirs().await;
    let mut attacks = 0;
    for (message, field, holds) in FIELDS {
        let Holds::Name(named) = holds else { continue };
        let send = |name| tenants.send(tenants.raw(), (*message, *field), name, QUIET);
        let nobodys = send(of(&NOBODYS, *named)).await.words;
        let theirs = send(of(&THEIRS, *named)).await.words;
        assert_eq!(theirs, nobodys, "{message}.{field} tells them apart");
        assert_eq!(
            tenants.theirs().await,
            before,
            "{message}.{field} changed them"
        );
        attacks += 1;
    }
    assert_eq!(attacks, 8);
}
