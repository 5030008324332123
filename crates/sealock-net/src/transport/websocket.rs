//! A byte pipe over WebSocket messages (RFC 6455), and the HTTP/1.1 before it.
//!
//! The path of the upgrade is the protocol that TLS would have agreed on: `GET /sealock/1`. Whatever else is asked gets
//! a plain 404, so that the port looks like an empty web server. Borders of messages mean nothing.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use futures_util::{Sink, Stream};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::Instant;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

use super::ConnectError;
use super::glitches::Glitches;
use super::record::Records;
use super::tcp::{cut, failed};
use crate::tls::alpn;

/// The longest head of a request: ours has 200 bytes, a gateway on the way may add some.
const HEAD_LIMIT: usize = 8 * 1024;
const HEADERS_LIMIT: usize = 64;
/// The longest message: a join of the mux's frames, with room.
const MESSAGE_LIMIT: usize = 256 * 1024;
const READ_BUFFER: usize = 16 * 1024; // kept for each connection, busy or not
const WRITE_BUFFER: usize = 64 * 1024;

fn config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(WRITE_BUFFER)
        .max_write_buffer_size(2 * MESSAGE_LIMIT)
        .max_message_size(Some(MESSAGE_LIMIT))
        .max_frame_size(Some(MESSAGE_LIMIT))
}

/// Asks for the upgrade to `protocol`.
pub(super) async fn dial(
    stream: Records,
    host: &str,
    protocol: &[u8],
) -> Result<Pipe<Records>, ConnectError> {
    let protocol = std::str::from_utf8(protocol).map_err(|_| ConnectError::Endpoint)?;
    let request = format!("wss://{host}/{protocol}").into_client_request();
    let request = request.map_err(|_| ConnectError::Endpoint)?;
    let upgrade = tokio_tungstenite::client_async_with_config(request, stream, Some(config()));
    match upgrade.await {
        Ok((messages, _response)) => Ok(Pipe::new(messages)),
        Err(Error::Io(error)) => Err(failed(&error)),
        Err(_) => Err(ConnectError::NotSealock),
    }
}

/// Reads a request and upgrades to the protocol that it names; says which.
pub(super) async fn accept(
    mut stream: Records,
) -> Result<(Pipe<Records>, &'static [u8]), ConnectError> {
    let mut read = Vec::new();
    let asked = loop {
        let mut piece = [0; 1_024];
        let length = stream.read(&mut piece).await.map_err(|_| cut())?;
        if length == 0 {
            return Err(cut());
        }
        read.extend_from_slice(&piece[..length]);
        match upgrade(&read) {
            Asked::More if read.len() < HEAD_LIMIT => {}
            asked @ (Asked::More | Asked::Other | Asked::Upgrade { .. }) => break asked,
        }
    };
    let Asked::Upgrade {
        protocol,
        answer,
        head,
    } = asked
    else {
        // Who does not read it has lost nothing.
        stream.write_all(NOT_FOUND).await.ok();
        stream.shutdown().await.ok();
        return Err(ConnectError::NotSealock);
    };
    stream
        .write_all(answer.as_bytes())
        .await
        .map_err(|_| cut())?;
    stream.flush().await.map_err(|_| cut())?;
    let rest = read.split_off(head);
    let messages = WebSocketStream::from_partially_read(stream, rest, Role::Server, Some(config()));
    Ok((Pipe::new(messages.await), protocol))
}

const NOT_FOUND: &[u8] =
    b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/// What the bytes so far ask for.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    /// Nothing yet.
    More,
    /// The upgrade; the head is so long.
    Upgrade {
        protocol: &'static [u8],
        answer: String,
        head: usize,
    },
    /// Something else, or no HTTP at all.
    Other,
}

fn upgrade(bytes: &[u8]) -> Asked {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_LIMIT];
    let mut request = httparse::Request::new(&mut headers);
    let head = match request.parse(bytes) {
        Ok(httparse::Status::Complete(head)) => head,
        Ok(httparse::Status::Partial) => return Asked::More,
        Err(_) => return Asked::Other,
    };
    let path = request.path.unwrap_or_default().as_bytes();
    let protocols = [alpn::SESSION, alpn::JOIN];
    let protocol = protocols
        .into_iter()
        .find(|name| path.strip_prefix(b"/") == Some(*name));
    // Exactly one of each: two that differ would be read differently on the way.
    let header = |name: &str| {
        let mut found = request
            .headers
            .iter()
            .filter(|it| it.name.eq_ignore_ascii_case(name));
        let only = found.next().filter(|_| found.next().is_none())?;
        std::str::from_utf8(only.value).ok()
    };
    let says = |name, word: &str| {
        header(name).is_some_and(|value| {
            let mut words = value.split(',');
            words.any(|it| it.trim().eq_ignore_ascii_case(word))
        })
    };
    // A web page has no business here, and its browser says that it is one (RFC 6455 §10.2).
    let is_page = request
        .headers
        .iter()
        .any(|it| it.name.eq_ignore_ascii_case("origin"));
    let asks = request.method == Some("GET")
        && says("Upgrade", "websocket")
        && says("Connection", "upgrade")
        && header("Sec-WebSocket-Version") == Some("13")
        && !is_page;
    let key = header("Sec-WebSocket-Key").filter(|key| key.len() == KEY);
    let (true, Some(protocol), Some(key)) = (asks, protocol, key) else {
        return Asked::Other;
    };
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {}\r\n\r\n",
        derive_accept_key(key.as_bytes())
    );
    Asked::Upgrade {
        protocol,
        answer,
        head,
    }
}

const KEY: usize = 24; // 16 bytes as Base64, RFC 6455 §4.1

/// The bytes of the messages.
#[derive(Debug)]
pub(super) struct Pipe<S> {
    messages: WebSocketStream<S>,
    read: Bytes,
    glitches: Glitches,
}

impl<S> Pipe<S> {
    fn new(messages: WebSocketStream<S>) -> Self {
        Self {
            messages,
            read: Bytes::new(),
            glitches: Glitches::new(Instant::now()),
        }
    }
}

fn broken(error: Error) -> io::Error {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "a foreign enum, of which one variant says more than that it is broken"
    )]
    match error {
        Error::Io(error) => error,
        error => io::Error::new(io::ErrorKind::InvalidData, error),
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Pipe<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.read.is_empty() {
            match ready!(Pin::new(&mut self.messages).poll_next(cx)) {
                Some(Ok(Message::Binary(bytes))) if !bytes.is_empty() => self.read = bytes,
                Some(Ok(Message::Binary(_) | Message::Ping(_) | Message::Pong(_))) => {
                    if self.glitches.is_flood(Instant::now()) {
                        return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
                    }
                }
                Some(Ok(Message::Text(_) | Message::Frame(_))) => {
                    return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
                }
                // The mux has said farewell before, or this is no end.
                Some(Ok(Message::Close(_))) | None => {
                    return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                }
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
            }
        }
        let length = buffer.remaining().min(self.read.len());
        buffer.put_slice(&self.read[..length]);
        self.read.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Pipe<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut messages = Pin::new(&mut self.messages);
        ready!(messages.as_mut().poll_ready(cx)).map_err(broken)?;
        let length = bytes.len().min(WRITE_BUFFER);
        let message = Message::Binary(Bytes::copy_from_slice(&bytes[..length]));
        messages.start_send(message).map_err(broken)?;
        Poll::Ready(Ok(length))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.messages).poll_flush(cx).map_err(broken)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.messages).poll_close(cx).map_err(broken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "GET /sealock/1 HTTP/1.1\r\nHost: r\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

    #[test]
    fn an_upgrade_is_understood_with_the_bytes_behind_it() {
        let bytes = format!("{HEAD}rest");
        let Asked::Upgrade {
            protocol,
            answer,
            head,
        } = upgrade(bytes.as_bytes())
        else {
            panic!("no upgrade");
        };
        assert_eq!((protocol, &bytes[head..]), (alpn::SESSION, "rest"));
        assert!(
            answer.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
            "RFC 6455 §1.3"
        );
        for length in 0..HEAD.len() {
            assert_eq!(upgrade(&HEAD.as_bytes()[..length]), Asked::More);
        }
        let join = HEAD.replace("/sealock/1", "/sealock-join/1");
        assert!(
            matches!(upgrade(join.as_bytes()), Asked::Upgrade { protocol, .. } if protocol == alpn::JOIN)
        );
    }

    // S37: messages that carry nothing, in a row and with a byte now and then.
    #[tokio::test]
    async fn a_flood_of_messages_without_bytes_is_cut_off() {
        use futures_util::SinkExt as _;
        let empty = || Message::Binary(Bytes::new());
        let ping = || Message::Ping(Bytes::from_static(b"?"));
        let pong = || Message::Pong(Bytes::from_static(b"!"));
        for (what, nothing) in [("empty", empty()), ("pings", ping()), ("pongs", pong())] {
            let (ours, theirs) = tokio::io::duplex(64 * 1024);
            let raw = WebSocketStream::from_raw_socket(theirs, Role::Client, Some(config()));
            let messages = WebSocketStream::from_raw_socket(ours, Role::Server, Some(config()));
            let (mut raw, mut pipe) = (raw.await, Pipe::new(messages.await));
            let flood = async {
                for n in 1..=20_000 {
                    let sent = raw.feed(nothing.clone()).await;
                    let byte = Message::Binary(Bytes::from_static(b"x"));
                    if sent.is_err() || n % 50 == 0 && raw.send(byte).await.is_err() {
                        return n;
                    }
                }
                raw.flush().await.ok();
                20_000
            };
            let read = async {
                let (mut bytes, mut read) = ([0; 64], 0);
                while let Ok(length) = pipe.read(&mut bytes).await {
                    read += length;
                }
                drop(pipe);
                read
            };
            let (sent, read) = tokio::join!(flood, read);
            assert!(read < 200, "{what}: {read} of {sent} messages");
        }
    }

    // S30, S34, S66: other methods and paths, doubled headers, web pages, more headers than anybody needs, no HTTP.
    #[test]
    fn everything_else_is_something_else() {
        let changes = [
            ("GET", "POST"),
            ("/sealock/1", "/"),
            ("/sealock/1", "/sealock/1/"),
            ("/sealock/1", "/sealock/2"),
            ("Upgrade: websocket\r\n", ""),
            ("Upgrade: websocket\r\n", "Upgrade: h2c\r\n"),
            ("keep-alive, Upgrade", "keep-alive"),
            ("Version: 13", "Version: 8"),
            (
                "Version: 13\r\n",
                "Version: 13\r\nSec-WebSocket-Version: 13\r\n",
            ),
            ("dGhlIHNhbXBsZSBub25jZQ==", "short"),
            ("Host: r\r\n", "Host: r\r\nOrigin: https://page.example\r\n"),
            ("GET /sealock/1 HTTP/1.1", "\u{16}\u{3}\u{1}"),
        ];
        for (from, to) in changes {
            let changed = HEAD.replacen(from, to, 1);
            assert_eq!(upgrade(changed.as_bytes()), Asked::Other, "{from} → {to}");
        }
        let many = HEAD.replacen("Host: r\r\n", &"A: b\r\n".repeat(100), 1);
        assert_eq!(upgrade(many.as_bytes()), Asked::Other);
    }
}
