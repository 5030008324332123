//! Methods as routes: path and types come from the method, errors are `ApiError` in JSON.

use std::convert::Infallible;
use std::future::Future;
use std::time::Duration;

use axum::body::{Body, HttpBody, to_bytes};
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Extension, Router};
use futures_util::{Stream, StreamExt};
use http::StatusCode;
use http::header::CONTENT_TYPE;
use sealock_core::api::{ApiError, Method};
use sealock_core::reason::{Fault, Reason};
use serde::Serialize;

use super::Caller;

const BODY_LIMIT: usize = 4 * 1024 * 1024; // a policy file of 10 000 rules

const BODY_DEADLINE: Duration = Duration::from_secs(10); // from one process to another on the same machine

/// The methods that a socket serves.
#[derive(Debug, Default)]
pub struct Routes {
    router: Router,
}

impl Routes {
    /// No method yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Serves a method that answers once.
    #[must_use]
    pub fn method<M, F, A>(self, handler: F) -> Self
    where
        M: Method,
        F: Fn(Caller, M::Request) -> A + Clone + Send + Sync + 'static,
        A: Future<Output = Result<M::Response, ApiError>> + Send,
    {
        let route = post(
            move |Extension(caller): Extension<Caller>, request: Request| async move {
                let request = match read::<M>(request).await {
                    Ok(request) => request,
                    Err(refusal) => return refusal,
                };
                match handler(caller, request).await {
                    Ok(response) => answer(StatusCode::OK, &response),
                    Err(error) => answer_error(&error),
                }
            },
        );
        Self {
            router: self.router.route(M::PATH, route),
        }
    }

    /// Serves a method that answers with one line after another; a caller who leaves drops the stream.
    #[must_use]
    pub fn lines<M, F, A, S>(self, handler: F) -> Self
    where
        M: Method,
        F: Fn(Caller, M::Request) -> A + Clone + Send + Sync + 'static,
        A: Future<Output = Result<S, ApiError>> + Send,
        S: Stream<Item = M::Response> + Send + 'static,
    {
        let route = post(
            move |Extension(caller): Extension<Caller>, request: Request| async move {
                let request = match read::<M>(request).await {
                    Ok(request) => request,
                    Err(refusal) => return refusal,
                };
                match handler(caller, request).await {
                    Ok(lines) => {
                        let lines = lines.map(|line| Ok::<_, Infallible>(json_line(&line)));
                        let kind = [(CONTENT_TYPE, "application/x-ndjson")];
                        (kind, Body::from_stream(lines)).into_response()
                    }
                    Err(error) => answer_error(&error),
                }
            },
        );
        Self {
            router: self.router.route(M::PATH, route),
        }
    }

    /// The router, which answers everything else with an `ApiError` as well.
    pub fn into_router(self) -> Router {
        self.router
            .fallback(|| async { unknown_method() })
            .method_not_allowed_fallback(|| async { unknown_method() })
    }
}

fn unknown_method() -> Response {
    let error = ApiError::new("this node does not know the method")
        .with_hint("are both of one version? compare `sealock version`");
    answer(StatusCode::NOT_FOUND, &error)
}

async fn read<M: Method>(request: Request) -> Result<M::Request, Response> {
    let too_large = || {
        let error = ApiError::new(format!("the request is larger than {BODY_LIMIT} bytes"));
        answer(StatusCode::PAYLOAD_TOO_LARGE, &error)
    };
    // Said before it is sent: there is no need to wait for it.
    if request.body().size_hint().lower() > BODY_LIMIT as u64 {
        return Err(too_large());
    }
    let body = tokio::time::timeout(BODY_DEADLINE, to_bytes(request.into_body(), BODY_LIMIT));
    match body.await {
        Ok(Ok(body)) => serde_json::from_slice(&body).map_err(|error| {
            answer_error(&ApiError::new(format!(
                "the request cannot be read: {error}"
            )))
        }),
        Ok(Err(_)) => Err(too_large()), // or the caller left, and nobody reads this
        Err(_) => {
            let error = ApiError::new("the request did not arrive in time");
            Err(answer(StatusCode::REQUEST_TIMEOUT, &error))
        }
    }
}

fn json_line<T: Serialize>(value: &T) -> Vec<u8> {
    let mut line = serde_json::to_vec(value).expect("API types are expressible in JSON");
    line.push(b'\n');
    line
}

fn answer<T: Serialize>(status: StatusCode, value: &T) -> Response {
    let kind = [(CONTENT_TYPE, "application/json")];
    (status, kind, json_line(value)).into_response()
}

fn answer_error(error: &ApiError) -> Response {
    answer(status_of(error.reason), error)
}

fn status_of(reason: Option<Reason>) -> StatusCode {
    match reason.map(Reason::fault) {
        None | Some(Fault::None | Fault::Near) => StatusCode::BAD_REQUEST,
        Some(Fault::Policy) => StatusCode::FORBIDDEN,
        Some(Fault::Far) => StatusCode::BAD_GATEWAY,
        Some(Fault::Us) => StatusCode::SERVICE_UNAVAILABLE,
    }
}
