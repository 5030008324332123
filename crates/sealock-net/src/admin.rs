//! The local admin address of a role: metrics, health, readiness.
//!
//! `/metrics` speaks OpenMetrics, `/healthz` says that the process runs, `/readyz` says whether it can do its work and
//! if not, why. The address must be loopback: these pages are for the machine, not for the network. Other users of the
//! machine reach it too, so who asks has a deadline, and only so many may ask at once.

use std::fmt;
use std::future::ready;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::task::Spawner;

/// Says what a role still lacks to do its work; empty when it is ready.
pub type Readiness = Arc<dyn Fn() -> Vec<&'static str> + Send + Sync>;

/// Adds a figure that is asked for whenever the metrics are read, so that it is never older than the page.
pub fn register_gauge(
    registry: &mut Registry,
    name: &'static str,
    help: &'static str,
    value: impl Fn() -> usize + Send + Sync + 'static,
) {
    let value = Box::new(value);
    registry.register_collector(Box::new(Asked { name, help, value }));
}

struct Asked {
    name: &'static str,
    help: &'static str,
    value: Box<dyn Fn() -> usize + Send + Sync>,
}

impl fmt::Debug for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Asked")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Collector for Asked {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let gauge = ConstGauge::new(i64::try_from((self.value)()).unwrap_or(i64::MAX));
        let kind = gauge.metric_type();
        gauge.encode(encoder.encode_descriptor(self.name, self.help, None, kind)?)
    }
}

/// Why the admin address is not served.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// Not a loopback address.
    #[error("the admin address {0} is not a loopback address; hint: use 127.0.0.1, or \"off\"")]
    NotLoopback(SocketAddr),
    /// The operating system refuses the address.
    #[error(
        "the admin address {address} cannot be used; hint: is another role using it? set [admin] listen"
    )]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the operating system said.
        source: std::io::Error,
    },
}

/// Serves the pages until the tasks' owner ends; returns the address, which matters when port 0 was asked for.
///
/// # Errors
/// When the address is not loopback or cannot be bound.
pub async fn serve(
    address: SocketAddr,
    registry: Registry,
    readiness: Readiness,
    tasks: &Spawner,
) -> Result<SocketAddr, AdminError> {
    if !address.ip().is_loopback() {
        return Err(AdminError::NotLoopback(address));
    }
    let bind = |source| AdminError::Bind { address, source };
    let listener = TcpListener::bind(address).await.map_err(bind)?;
    let bound = listener.local_addr().map_err(bind)?;
    let registry = Arc::new(registry); // handlers are cloned for each request
    let router = Router::new()
        .route("/metrics", get(move || ready(metrics(&registry))))
        .route("/healthz", get(|| ready("ok\n")))
        .route("/livez", get(|| ready("ok\n")))
        .route("/readyz", get(move || ready(readyz(&readiness()))));
    let own = tasks.clone();
    tasks.spawn("admin", async move {
        accept_all(&listener, &router, &own).await
    });
    Ok(bound)
}

const CONNECTIONS: usize = 64; // scrapers and probes hold one each; others wait in the kernel's queue
const HEADER_DEADLINE: Duration = Duration::from_secs(5); // from this machine, where nothing takes long
const HEADER_BYTES: usize = 16 * 1024;
/// The longest that one connection is kept: a scraper comes again.
const LONGEST: Duration = Duration::from_secs(300);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100); // out of descriptors: others have to close some first

async fn accept_all(listener: &TcpListener, router: &Router, tasks: &Spawner) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return; // never closed
        };
        match listener.accept().await {
            Ok((stream, _source)) => {
                let router = router.clone();
                tasks.spawn("admin-connection", async move {
                    serve_one(stream, router).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(err = %error, "the admin address cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve_one(stream: TcpStream, router: Router) {
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_DEADLINE)
        .max_buf_size(HEADER_BYTES)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    match tokio::time::timeout(LONGEST, served).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(err = %error, "an admin connection ended early"),
        Err(_elapsed) => tracing::debug!("an admin connection was kept for too long"),
    }
}

fn metrics(registry: &Registry) -> Response {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, registry) {
        Ok(()) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(fmt::Error) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

fn readyz(missing: &[&'static str]) -> Response {
    let status = if missing.is_empty() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let body = serde_json::json!({ "ready": missing.is_empty(), "waiting_for": missing });
    (status, axum::Json(body)).into_response()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;
    use crate::task::Scope;

    async fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.expect("served");
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("asked");
        let mut page = String::new();
        stream.read_to_string(&mut page).await.expect("answered");
        page
    }

    #[tokio::test]
    async fn pages_tell_figures_and_what_is_missing() {
        let scope = Scope::new("test");
        let ready = Arc::new(AtomicBool::new(false));
        let mut registry = Registry::with_prefix("sealock_test");
        register_gauge(&mut registry, "fish", "Fish in the lock", || 3);
        let known = Arc::clone(&ready);
        let readiness = Arc::new(move || match known.load(Ordering::Relaxed) {
            true => Vec::new(),
            false => vec!["water"],
        });
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let address = serve(any, registry, readiness, &scope.spawner())
            .await
            .expect("loopback");
        assert!(
            get(address, "/metrics")
                .await
                .contains("sealock_test_fish 3")
        );
        assert!(get(address, "/healthz").await.starts_with("HTTP/1.1 200"));
        let waiting = get(address, "/readyz").await;
        assert!(waiting.starts_with("HTTP/1.1 503") && waiting.contains("water"));
        ready.store(true, Ordering::Relaxed);
        assert!(get(address, "/readyz").await.starts_with("HTTP/1.1 200"));
    }

    async fn served(scope: &Scope) -> SocketAddr {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let readiness: Readiness = Arc::new(Vec::new);
        let tasks = scope.spawner();
        let served = serve(any, Registry::default(), readiness, &tasks).await;
        served.expect("loopback")
    }

    // S28: who says nothing, or ever so little, is shown out, and then others get in.
    #[tokio::test]
    async fn whoever_holds_every_place_and_never_asks_holds_it_briefly() {
        let scope = Scope::new("test");
        let address = served(&scope).await;
        let mut silent = Vec::new();
        for _ in 0..CONNECTIONS {
            let mut stream = TcpStream::connect(address).await.expect("served");
            stream.write_all(b"GET /healthz HT").await.expect("sent");
            silent.push(stream);
        }
        let began = tokio::time::Instant::now();
        let patience = HEADER_DEADLINE + Duration::from_secs(20); // a slow machine
        let page = tokio::time::timeout(patience, get(address, "/healthz")).await;
        assert!(page.expect("a place").starts_with("HTTP/1.1 200"));
        assert!(
            began.elapsed() > HEADER_DEADLINE / 2,
            "no more than so many at once: {:?}",
            began.elapsed()
        );
        for mut stream in silent {
            let mut told = Vec::new();
            let ended = tokio::time::timeout(patience, stream.read_to_end(&mut told)).await;
            ended.expect("shown out").ok();
            assert!(told.is_empty() || told.starts_with(b"HTTP/1.1 408"));
        }
    }

    // S30: headers have limits that are applied before memory is taken.
    #[tokio::test]
    async fn a_request_of_a_million_bytes_or_ten_thousand_headers_is_refused() {
        let scope = Scope::new("test");
        let address = served(&scope).await;
        let long = format!(
            "GET /healthz HTTP/1.1\r\na: {}\r\n\r\n",
            "b".repeat(1 << 20)
        );
        let many = format!("GET /healthz HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(10_000));
        for request in [long, many] {
            let mut stream = TcpStream::connect(address).await.expect("served");
            stream.write_all(request.as_bytes()).await.ok(); // it hangs up in the middle
            let mut told = Vec::new();
            stream.read_to_end(&mut told).await.ok();
            assert!(
                told.is_empty() || told.starts_with(b"HTTP/1.1 431"),
                "{}",
                String::from_utf8_lossy(&told)
            );
        }
        assert!(get(address, "/healthz").await.starts_with("HTTP/1.1 200"));
    }

    #[tokio::test]
    async fn an_address_of_the_network_is_refused() {
        let scope = Scope::new("test");
        let everywhere = SocketAddr::from(([0, 0, 0, 0], 0));
        let readiness: Readiness = Arc::new(Vec::new);
        let served = serve(everywhere, Registry::default(), readiness, &scope.spawner()).await;
        assert!(matches!(served, Err(AdminError::NotLoopback(_))));
    }
}
