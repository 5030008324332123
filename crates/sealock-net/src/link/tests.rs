//! The link against a controller of the test's own making, which says what no real one would.

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use futures_util::StreamExt;
use futures_util::stream::{self, Stream};
use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;
use sealock_core::view::{Entries, Head};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tonic::{Request, Response, Status};

use super::*;
use crate::identity::testing::TestCa;
use crate::node_api::proto::node_server::{Node, NodeServer};
use crate::node_api::{RESPONSE_LIMIT, proto};
use crate::task::Scope;
use crate::tls::signed::SignedView;

#[test]
fn a_certificate_is_renewed_at_half_of_the_life_that_its_issue_began() {
    let issue: jiff::Timestamp = "2026-01-01T00:00:00Z".parse().expect("a time");
    let at = |seconds: i64| issue + jiff::SignedDuration::from_secs(seconds);
    for (life, age, left) in [
        (3_600, 0, 1_800),
        (3_600, 1_000, 800),
        (3_600, 1_801, 0),
        // Shorter than what it is backdated by.
        (10, 0, 5),
        (10, 4, 1),
        (10, 20, 0),
    ] {
        let left = Duration::from_secs(left);
        assert_eq!(due(at(-300), at(life), at(age)), left, "{life} {age}");
    }
    // Not backdated, by another hand.
    assert_eq!(due(at(0), at(60), at(10)), Duration::from_secs(20));
}

type Events = Pin<Box<dyn Stream<Item = Result<proto::WatchEvent, Status>> + Send>>;

/// Says these things on one watch after another, and then nothing more.
#[derive(Clone)]
struct Controller {
    watches: Arc<Vec<Vec<proto::WatchEvent>>>,
    asked: Arc<AtomicUsize>,
}

#[tonic::async_trait]
impl Node for Controller {
    type WatchStream = Events;

    async fn watch(
        &self,
        _request: Request<proto::WatchRequest>,
    ) -> Result<Response<Events>, Status> {
        let number = self.asked.fetch_add(1, Ordering::Relaxed);
        let events = self.watches.get(number).cloned().unwrap_or_default();
        let said = stream::iter(events.into_iter().map(Ok));
        Ok(Response::new(Box::pin(said.chain(stream::pending()))))
    }

    async fn enrol(
        &self,
        _request: Request<proto::EnrolRequest>,
    ) -> Result<Response<proto::Identity>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn recover(
        &self,
        _request: Request<proto::RecoverRequest>,
    ) -> Result<Response<proto::Identity>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn renew(
        &self,
        _request: Request<proto::RenewRequest>,
    ) -> Result<Response<proto::Identity>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn register(
        &self,
        _request: Request<proto::RegisterRequest>,
    ) -> Result<Response<proto::RegisterResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn unregister(
        &self,
        _request: Request<proto::UnregisterRequest>,
    ) -> Result<Response<proto::UnregisterResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn report(
        &self,
        _request: Request<proto::ReportRequest>,
    ) -> Result<Response<proto::ReportResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

/// A connection that the HTTP library takes.
struct Wire(TlsStream<DuplexStream>);

impl Connected for Wire {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// A link of an agent to this controller.
fn link_to(controller: &Controller, ca: &TestCa, tasks: &Scope) -> Link {
    let (spawner, controller) = (tasks.spawner(), controller.clone());
    let tls = tls::controller_listener(&ca.identity("controller/main"), &ca.trust_store());
    let make = move |client| {
        let (spawner, controller, tls) = (spawner.clone(), controller.clone(), tls.clone());
        NodeClient::new(client, move || {
            let (near, far) = tokio::io::duplex(1 << 20);
            let (controller, tls) = (controller.clone(), TlsAcceptor::from(tls.clone()));
            spawner.spawn("controller", async move {
                let Ok(wire) = tls.accept(far).await else {
                    return;
                };
                let incoming = stream::once(async { std::io::Result::Ok(Wire(wire)) });
                let _ended = Server::builder()
                    .add_service(NodeServer::new(controller))
                    .serve_with_incoming(incoming.chain(stream::pending()))
                    .await;
            });
            async { std::io::Result::Ok(near) }
        })
    };
    let identity = ca.identity("default/agent/cart");
    Link::new(Arc::new(make), identity, ca.trust_store(), None)
}

fn view(ca: &TestCa, version: u64, entries: &Entries) -> SignedView {
    let head = Head {
        tenant: "default".parse().expect("canonical"),
        version: ViewVersion(version),
        issued_at: jiff::Timestamp::now(),
        digest: entries.digest(),
    };
    SignedView {
        head: ca.view_signer().sign(head).expect("signed"),
        entries: entries.clone(),
    }
}

fn full(view: SignedView) -> proto::WatchEvent {
    (&WatchEvent::Full {
        head: view.head,
        entries: view.entries,
    })
        .into()
}

fn wide_open() -> Entries {
    let rule =
        r#"{"id":"all","effect":"allow","callers":["*"],"services":["*"],"actions":["open"]}"#;
    let mut entries = Entries::default();
    entries.put("rule/all".to_owned(), rule.as_bytes().to_vec());
    entries
}

// F29: a bundle that is altered, older, or larger than any may be leaves the last good view in force, and the next good
// one is taken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bundle_that_is_not_right_leaves_the_last_good_view_and_the_next_one_is_taken() {
    let (ca, tasks) = (TestCa::new("sealock"), Scope::new("test"));
    let mut altered = view(&ca, 6, &Entries::default());
    altered.entries = wide_open();
    let older = view(&ca, 4, &wide_open());
    let stranger = view(&TestCa::new("sealock"), 7, &wide_open());
    let mut giant = wide_open();
    giant.put("agent/giant".to_owned(), vec![b' '; RESPONSE_LIMIT + 1]);
    let giant = view(&ca, 8, &giant);
    let controller = Controller {
        watches: Arc::new(vec![
            vec![
                full(view(&ca, 5, &Entries::default())),
                full(altered),
                full(older),
                full(stranger),
                full(giant), // ends the watch
            ],
            vec![full(view(&ca, 9, &Entries::default()))],
        ]),
        asked: Arc::default(),
    };
    let dir = tempfile::tempdir().expect("a directory");
    let age = Duration::from_secs(3_600);
    let views = ViewStore::open(ca.trust_store(), dir.path().join("views"), age).expect("opened");
    let link = link_to(&controller, &ca, &tasks);
    let (kept, tenant) = (views.clone(), "default".parse().expect("canonical"));
    let relays = RelayList::look_at(std::path::Path::new("nowhere"));
    tasks.spawn(
        "views",
        async move { link.keep_views(&kept, &relays).await },
    );
    let mut changes = views.changes();
    let mut seen = Vec::new();
    let ended = async {
        while seen.last() != Some(&9) {
            changes.changed().await.expect("the store lives");
            let current = views.current(&tenant).expect("there is one");
            assert!(current.rules().is_empty(), "opened wider");
            seen.push(current.head.version.0);
        }
    };
    tokio::time::timeout(Duration::from_secs(30), ended)
        .await
        .expect("the good one comes through");
    assert_eq!(seen.first(), Some(&5));
    assert!(
        seen.iter().all(|version| [5, 9].contains(version)),
        "{seen:?}"
    );
    assert_eq!(
        controller.asked.load(Ordering::Relaxed),
        2,
        "asked again once"
    );
    let (mut registry, mut figures) = (Registry::default(), String::new());
    views.register(&mut registry);
    text::encode(&mut figures, &registry).expect("written");
    // The giant never became a view.
    assert!(figures.contains("views_not_taken_total 3\n"), "{figures}");
}
