//! What is counted of the node interface, for `/metrics`: calls by method and outcome, and who watches.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use sealock_core::reason::Reason;
use sealock_net::admin::register_gauge;
use sealock_net::node_api::REASON_KEY;
use tower::{Layer, Service};

use crate::views::Views;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Call {
    method: &'static str,
    reason: &'static str,
}

/// Counts the calls of nodes; clones count together.
#[derive(Debug, Clone, Default)]
pub struct Meter {
    calls: Family<Call, Counter>,
}

impl Meter {
    /// A meter whose figures appear in `registry`, together with the watchers of `views`.
    #[must_use]
    pub fn registered(registry: &mut Registry, views: &Arc<Views>) -> Self {
        let meter = Self::default();
        let calls = meter.calls.clone();
        registry.register("node_calls", "Calls of nodes, by method and outcome", calls);
        let views = Arc::clone(views);
        let help = "Nodes that watch right now";
        register_gauge(registry, "node_watchers", help, move || views.watchers());
        meter
    }

    fn count(&self, method: &'static str, reason: Reason) {
        let reason = reason.code();
        self.calls.get_or_create(&Call { method, reason }).inc();
    }
}

/// The methods by name, so that a stranger's path makes no label.
fn method(path: &str) -> &'static str {
    const METHODS: [&str; 6] = [
        "Enrol",
        "Renew",
        "Watch",
        "Register",
        "Unregister",
        "Report",
    ];
    let last = path.rsplit('/').next().unwrap_or_default();
    let known = METHODS.into_iter().find(|method| *method == last);
    known.unwrap_or("other")
}

/// A refusal names its reason in the head of the answer; what comes later in a stream is not a call.
fn outcome<B>(response: &Response<B>) -> Reason {
    let number = response.headers().get(REASON_KEY);
    let number = number.and_then(|number| number.to_str().ok()?.parse().ok());
    let failed = response
        .headers()
        .get("grpc-status")
        .is_some_and(|status| status != "0");
    match (number, failed) {
        (Some(number), _) => Reason::from_number(number),
        (None, true) => Reason::Internal,
        (None, false) => Reason::Done,
    }
}

impl<S> Layer<S> for Meter {
    type Service = Metered<S>;

    fn layer(&self, inner: S) -> Metered<S> {
        let meter = self.clone();
        Metered { inner, meter }
    }
}

/// A service whose calls are counted.
#[derive(Debug, Clone)]
pub struct Metered<S> {
    inner: S,
    meter: Meter,
}

impl<S, In, Out> Service<Request<In>> for Metered<S>
where
    S: Service<Request<In>, Response = Response<Out>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<In>) -> Self::Future {
        let (method, meter) = (method(request.uri().path()), self.meter.clone());
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            meter.count(method, outcome(&answer));
            Ok(answer)
        })
    }
}
