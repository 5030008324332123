//! The calling side of a control socket: one connection for each call.

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use bytes::{Buf, Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HOST};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use sealock_core::api::{ApiError, Method};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::Caller;
use crate::task::Scope;

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Nobody listens at the socket.
    #[error("nothing is running at {}", path.display())]
    NotRunning {
        /// The socket.
        path: PathBuf,
    },
    /// The socket is there but not for us.
    #[error("{} is not open to this user; hint: run as the user that the node runs as", path.display())]
    NotAllowed {
        /// The socket.
        path: PathBuf,
    },
    /// The socket is served by another user, who could be anybody.
    #[error("{} is served by user {uid}, not by this user or root", path.display())]
    ForeignServer {
        /// The socket.
        path: PathBuf,
        /// The user who serves it.
        uid: u32,
    },
    /// The method said no.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The connection broke.
    #[error("the connection to the node broke")]
    Broken(#[source] io::Error),
    /// What came back is not an answer to this method.
    #[error(
        "the node's answer is not understood; hint: are both of one version? compare `sealock version`"
    )]
    NotUnderstood,
}

const ANSWER_LIMIT: usize = 64 * 1024 * 1024; // 100 000 audit rows

/// Calls methods of a running node.
#[derive(Debug, Clone)]
pub struct UnixClient {
    path: PathBuf,
}

impl UnixClient {
    /// Calls whoever listens at `path`.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The socket's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Calls a method that answers once.
    ///
    /// # Errors
    /// When nobody listens, the method says no, or the answer is not understood.
    ///
    /// # Cancel safety
    /// The method may have been carried out.
    pub async fn call<M: Method>(&self, request: &M::Request) -> Result<M::Response, CallError> {
        let mut lines = self.lines::<M>(request).await?;
        lines.next().await?.ok_or(CallError::NotUnderstood)
    }

    /// Calls a method that answers with one line after another.
    ///
    /// # Errors
    /// When nobody listens, or the method says no.
    ///
    /// # Cancel safety
    /// The method may have been carried out.
    pub async fn lines<M: Method>(
        &self,
        request: &M::Request,
    ) -> Result<Lines<M::Response>, CallError> {
        let lines = self.post(M::PATH, request).await?;
        if lines.is_answer {
            return Ok(lines.typed());
        }
        let error = lines.typed::<ApiError>().next().await?;
        Err(error.map_or(CallError::NotUnderstood, CallError::Api))
    }

    async fn post<T: Serialize>(&self, path: &str, request: &T) -> Result<RawLines, CallError> {
        let stream = self.connect().await?;
        let broken = |error: hyper::Error| CallError::Broken(io::Error::other(error));
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        let scope = Scope::new("control-call");
        scope.spawn("connection", async move {
            connection.await.ok(); // the body's reader meets the same error
        });
        let body = serde_json::to_vec(request).map_err(|_| CallError::NotUnderstood)?;
        let request = http::Request::post(path)
            .header(HOST, "sealock")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|_| CallError::NotUnderstood)?;
        let response = sender.send_request(request).await.map_err(broken)?;
        Ok(RawLines {
            is_answer: response.status().is_success(),
            body: response.into_body(),
            buffer: BytesMut::new(),
            searched: 0,
            _scope: scope,
        })
    }

    async fn connect(&self) -> Result<UnixStream, CallError> {
        let stream = UnixStream::connect(&self.path)
            .await
            .map_err(|error| self.unreached(error))?;
        let server = Caller::of(&stream).map_err(CallError::Broken)?;
        if !server.is_trusted() {
            return Err(CallError::ForeignServer {
                path: self.path.clone(),
                uid: server.uid,
            });
        }
        Ok(stream)
    }

    fn unreached(&self, error: io::Error) -> CallError {
        let path = self.path.clone();
        let kind = error.kind();
        if kind == io::ErrorKind::NotFound || kind == io::ErrorKind::ConnectionRefused {
            return CallError::NotRunning { path };
        }
        if kind == io::ErrorKind::PermissionDenied {
            return CallError::NotAllowed { path };
        }
        CallError::Broken(error)
    }
}

struct RawLines {
    is_answer: bool,
    body: Incoming,
    buffer: BytesMut,
    /// How much of the buffer holds no line end.
    searched: usize,
    _scope: Scope,
}

impl RawLines {
    fn typed<T>(self) -> Lines<T> {
        Lines {
            raw: self,
            kind: PhantomData,
        }
    }
}

/// The lines of an answer; dropping it ends the call.
pub struct Lines<T> {
    raw: RawLines,
    kind: PhantomData<fn() -> T>,
}

impl<T> fmt::Debug for Lines<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let buffered = self.raw.buffer.len();
        f.debug_struct("Lines")
            .field("buffered", &buffered)
            .finish()
    }
}

impl<T: DeserializeOwned> Lines<T> {
    /// The next line; nothing at the end.
    ///
    /// # Errors
    /// When the connection broke, or a line is not understood.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn next(&mut self) -> Result<Option<T>, CallError> {
        let raw = &mut self.raw;
        loop {
            let rest = &raw.buffer[raw.searched..];
            if let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
                let line = raw.buffer.split_to(raw.searched + end);
                raw.buffer.advance(1);
                raw.searched = 0;
                let value = serde_json::from_slice(&line).map_err(|_| CallError::NotUnderstood)?;
                return Ok(Some(value));
            }
            raw.searched = raw.buffer.len();
            if raw.searched > ANSWER_LIMIT {
                return Err(CallError::NotUnderstood);
            }
            match raw.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        raw.buffer.extend_from_slice(&data);
                    }
                }
                Some(Err(error)) => return Err(CallError::Broken(io::Error::other(error))),
                None if raw.buffer.is_empty() => return Ok(None),
                None => return Err(CallError::NotUnderstood), // cut in the middle of a line
            }
        }
    }
}
