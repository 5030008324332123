//! Requests that an HTTP proxy is asked to forward: each is judged by the place that its target names.
//!
//! A place gets a flow, as whatever else goes there, and the requests that follow one another to the same place share
//! it. Heads are read and written by one HTTP library on both sides, so where a message ends is never copied from one
//! to the other. Deliberately absent: caching, upgrades, and `https` targets, for which there is CONNECT.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::{Either, Empty, Full};
use hyper::body::Body as _;
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use sealock_core::destination::Destination;
use sealock_core::reason::Reason;
use sealock_net::socket;
use sealock_net::task::Spawner;
use sealock_proto::door::{self, connect};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::oneshot;

use super::Door;
use crate::arrival::Near;
use crate::hop;

/// How long a head may take, and how long a client may say nothing between two requests.
const HEAD_LIMIT: Duration = Duration::from_secs(30); // browsers keep idle connections about as long
/// How much of a head is read; cookies are long.
const HEAD_BYTES: usize = 64 * 1024;
/// How long the end of a flow, whose connection is gone, may take to be known.
const REASON_LIMIT: Duration = Duration::from_secs(2); // it is a task of this process that ends

type Answer = Response<Either<Incoming, Full<Bytes>>>;
/// A request on its way on.
type Forwarded = Request<Either<Incoming, Empty<Bytes>>>;

/// Serves a client's requests, one after the other, until it goes; `read` are the first bytes of them.
pub(super) async fn serve(stream: TcpStream, read: Vec<u8>, door: Arc<Door>, tasks: Spawner) {
    let unread = Bytes::from(read);
    let client = Arc::new(Client {
        door,
        tasks: tasks.clone(),
        far: Mutex::new(None),
    });
    let service = service_fn(move |request| {
        let client = Arc::clone(&client);
        async move { Ok::<_, Infallible>(client.answer(request).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(Rewound { unread, stream }), service);
    let mut connection = std::pin::pin!(connection);
    // The order is free: a request that is under way is finished in either case.
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = tasks.stopping() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(err = %error, "a client of the proxy ended abnormally");
    }
}

/// A client whose requests are forwarded.
struct Client {
    door: Arc<Door>,
    tasks: Spawner,
    /// Where its last request went, for the next one.
    far: Mutex<Option<Far>>,
}

/// A flow that carries requests.
struct Far {
    place: Destination,
    sender: SendRequest<Either<Incoming, Empty<Bytes>>>,
    ended: oneshot::Receiver<Reason>,
}

impl Client {
    async fn answer(&self, request: Request<Incoming>) -> Answer {
        match self.forward(request).await {
            Ok(response) => response,
            Err(Refusal::Request(status)) => status_answer(status),
            Err(Refusal::Flow(reason)) => reason_answer(reason),
        }
    }

    async fn forward(&self, mut request: Request<Incoming>) -> Result<Answer, Refusal> {
        self.check_login(request.headers())?;
        let place = direct_to(&mut request)?;
        let request = request.map(Either::Left);
        let old = self.far.lock().take();
        let old = old.filter(|far| far.place == place && !far.sender.is_closed());
        // The server may close an idle connection while a request is on its way to it (RFC 9112 §9.3.1).
        let spare = old.as_ref().and_then(|_| again(&request));
        let is_reused = old.is_some();
        let far = match old {
            Some(far) => far,
            None => self.open(place.clone()).await?,
        };
        let (far, outcome) = far.send(request).await;
        let (far, outcome) = match outcome {
            Err(unsent) if is_reused => match unsent.map(|it| *it).or(spare) {
                Some(request) => self.open(place).await?.send(request).await,
                None => (far, Err(None)),
            },
            outcome => (far, outcome),
        };
        match outcome {
            Ok(mut response) => {
                *self.far.lock() = Some(far);
                strip(response.headers_mut());
                response
                    .headers_mut()
                    .append(header::VIA, HeaderValue::from_static(VIA));
                Ok(response.map(Either::Left))
            }
            Err(_) => Err(Refusal::Flow(far.reason().await)),
        }
    }

    fn check_login(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let Some(login) = &self.door.login else {
            return Ok(());
        };
        let mut told = headers.get_all(header::PROXY_AUTHORIZATION).iter();
        match (told.next(), told.next()) {
            (Some(value), None) if login.is_basic(value.as_bytes()) => Ok(()),
            _ => Err(Refusal::Request(connect::Status::Login)),
        }
    }

    /// A flow to the place; whether it may be and where it gets to, the first request finds out.
    async fn open(&self, place: Destination) -> Result<Far, Refusal> {
        let internal = |_| Refusal::Flow(Reason::Overloaded);
        let (ours, theirs) = UnixStream::pair().map_err(internal)?;
        let arrival = self.door.arrival(place.clone(), Near::Unix(theirs.into()));
        let flow = hop::run(&self.door.hop, arrival);
        let (tell, ended) = oneshot::channel();
        self.tasks.spawn("flow", async move {
            let reason = flow.await;
            // Whoever does not wait for it has its answer.
            let _unheard = tell.send(reason);
        });
        let made = hyper::client::conn::http1::Builder::new()
            .max_buf_size(HEAD_BYTES)
            .handshake(TokioIo::new(ours))
            .await;
        let (sender, connection) = made.map_err(|_| Refusal::Flow(Reason::Internal))?;
        self.tasks.spawn("requests", async move {
            if let Err(error) = connection.await {
                tracing::debug!(err = %error, "a forwarded connection ended abnormally");
            }
        });
        Ok(Far {
            place,
            sender,
            ended,
        })
    }
}

impl Far {
    /// Sends a request and waits for its answer. One that never left comes back.
    async fn send(
        mut self,
        request: Forwarded,
    ) -> (Self, Result<Response<Incoming>, Option<Box<Forwarded>>>) {
        let outcome = match self.sender.ready().await {
            Ok(()) => self.sender.try_send_request(request).await,
            Err(_) => return (self, Err(Some(Box::new(request)))),
        };
        let outcome = outcome.map_err(|mut error| error.take_message().map(Box::new));
        (self, outcome)
    }

    /// Why there is no answer.
    async fn reason(self) -> Reason {
        drop(self.sender);
        let ended = tokio::time::timeout(REASON_LIMIT, self.ended).await;
        ended.ok().and_then(Result::ok).unwrap_or(Reason::FarReset)
    }
}

/// The same request, to be sent once more: one without a body, that changes nothing (RFC 9110 §9.2.1).
fn again(request: &Forwarded) -> Option<Forwarded> {
    let may = request.method().is_safe() && request.body().is_end_stream();
    may.then(|| {
        let mut again = Request::new(Either::Right(Empty::new()));
        *again.method_mut() = request.method().clone();
        *again.uri_mut() = request.uri().clone();
        *again.headers_mut() = request.headers().clone();
        again
    })
}

/// Why a request gets no answer of its server.
enum Refusal {
    Request(connect::Status),
    Flow(Reason),
}

/// What we call ourselves to whoever sees a forwarded message (RFC 9110 §7.6.3).
const VIA: &str = "1.1 sealock";

/// Where a request is to go. Makes it one to the server itself: its target a path, its `Host` what the target said.
fn direct_to(request: &mut Request<Incoming>) -> Result<Destination, Refusal> {
    let bad = || Refusal::Request(connect::Status::BadRequest);
    let uri = request.uri();
    let is_http = uri.scheme_str() == Some("http") && request.method() != Method::CONNECT;
    let authority = uri.authority().filter(|_| is_http).ok_or_else(bad)?;
    // With a login in it the authority is refused: two readers could take two hosts from it (S26).
    let place = door::authority(authority.as_str().as_bytes(), Some(80)).ok_or_else(bad)?;
    let host = HeaderValue::from_str(authority.as_str()).map_err(|_| bad())?;
    let path = uri.path_and_query().cloned();
    *request.uri_mut() = path.map_or_else(|| Uri::from_static("/"), Uri::from);
    *request.version_mut() = http::Version::HTTP_11;
    let headers = request.headers_mut();
    strip(headers);
    headers.insert(header::HOST, host);
    headers.append(header::VIA, HeaderValue::from_static(VIA));
    Ok(place)
}

/// Headers that are for us and not for whoever is behind us (RFC 9110 §7.6.1, §11.7).
const OURS: [HeaderName; 6] = [
    header::CONNECTION,
    header::PROXY_AUTHORIZATION,
    header::PROXY_AUTHENTICATE,
    header::TE,
    header::UPGRADE,
    header::TRANSFER_ENCODING, // each side frames its own messages
];

fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&OURS) {
        headers.remove(name);
    }
    for name in ["keep-alive", "proxy-connection"] {
        headers.remove(name);
    }
}

fn status_answer(status: connect::Status) -> Answer {
    let (code, phrase) = status.line();
    let mut answer = plain(code, format!("sealock: {phrase}\n"));
    let headers = answer.headers_mut();
    // What a client says that is no request to a proxy, nobody should guess at again.
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    if status == connect::Status::Login {
        let challenge = HeaderValue::from_static(connect::CHALLENGE);
        headers.insert(header::PROXY_AUTHENTICATE, challenge);
    }
    answer
}

fn reason_answer(reason: Reason) -> Answer {
    let (code, _) = connect::status(reason);
    let mut answer = plain(code, connect::words(reason));
    if let Ok(told) = HeaderValue::from_str(&connect::proxy_status(reason)) {
        answer
            .headers_mut()
            .insert(HeaderName::from_static("proxy-status"), told);
    }
    answer
}

fn plain(code: u16, text: String) -> Answer {
    let mut answer = Response::new(Either::Right(Full::new(text.into())));
    *answer.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::BAD_GATEWAY);
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    answer.headers_mut().insert(header::CONTENT_TYPE, kind);
    answer
}

/// A connection of which some bytes were read already. Ended without a shutdown, it is reset.
struct Rewound {
    unread: Bytes,
    stream: TcpStream,
}

impl AsyncRead for Rewound {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.unread.is_empty() {
            return Pin::new(&mut self.stream).poll_read(context, buffer);
        }
        let length = self.unread.len().min(buffer.remaining());
        let taken = self.unread.split_to(length);
        buffer.put_slice(&taken);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Rewound {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Only a clean end gets here, and what was written before it must not be discarded.
        socket::close_cleanly(&self.stream);
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
