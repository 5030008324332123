//! TCP connections through an upstream proxy: HTTP CONNECT (RFC 9110 §9.3.6) and SOCKS5 (RFC 1928, RFC 1929).
//!
//! The proxy gets the name of the target, not an address: it may be the only one that can look it up. Of a relay it
//! learns what TLS shows anybody on the way. Not one byte is sent or read beyond the proxy's own talk. Deadlines are the
//! caller's; every answer has a bound. Deliberately absent: which proxy, if any (`Upstreams`).

use std::io;
use std::net::IpAddr;

use data_encoding::BASE64;
use sealock_core::address::HostPort;
use sealock_core::config::{Upstream, UpstreamKind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Why a proxy did not open the way.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// It cannot be connected to, or hung up.
    #[error("the proxy {proxy} cannot be talked to")]
    Io {
        /// Where it is.
        proxy: HostPort,
        /// What the operating system says.
        source: io::Error,
    },
    /// It wants a login, or another one.
    #[error(
        "the proxy {0} wants a login, or another one; hint: write it into the URL of `agent.proxy` or of the environment"
    )]
    Login(HostPort),
    /// It does not open the way.
    #[error("the proxy {proxy} refused (code {code})")]
    Refused {
        /// Where it is.
        proxy: HostPort,
        /// The HTTP status, or the reply of SOCKS5 (RFC 1928 §6).
        code: u16,
    },
    /// It speaks something else.
    #[error(
        "the proxy {0} does not answer as one; hint: is it an `http://` or a `socks5://` proxy?"
    )]
    Protocol(HostPort),
    /// Its login, or the name of the target, is longer than the protocol can say.
    #[error("the login for the proxy {0}, or the name of the target, is too long")]
    TooLong(HostPort),
}

/// Opens a connection to `target` through a proxy.
///
/// # Errors
/// When the proxy cannot be reached or does not open it.
///
/// # Cancel safety
/// Dropping the future gives the attempt up.
pub async fn open(upstream: &Upstream, target: &HostPort) -> Result<TcpStream, ProxyError> {
    let proxy = upstream.address();
    let talk = async {
        let mut stream = TcpStream::connect((proxy.host(), proxy.port())).await?;
        stream.set_nodelay(true)?;
        let opened = match upstream.kind() {
            UpstreamKind::Http => http_connect(&mut stream, upstream, target).await?,
            UpstreamKind::Socks5 => socks5(&mut stream, upstream, target).await?,
        };
        Ok((stream, opened))
    };
    let talked: io::Result<_> = talk.await;
    let proxy = proxy.clone();
    Err(match talked {
        Ok((stream, Opened::Yes)) => return Ok(stream),
        Ok((_, Opened::Login)) => ProxyError::Login(proxy),
        Ok((_, Opened::Refused(code))) => ProxyError::Refused { proxy, code },
        Ok((_, Opened::Protocol)) => ProxyError::Protocol(proxy),
        Ok((_, Opened::TooLong)) => ProxyError::TooLong(proxy),
        Err(source) => ProxyError::Io { proxy, source },
    })
}

/// What a proxy made of the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Opened {
    Yes,
    Login,
    Refused(u16),
    Protocol,
    TooLong,
}

/// The longest head of an answer; proxies like to add headers, not this many.
const HEAD_LIMIT: usize = 16 * 1024;
const HEADERS_LIMIT: usize = 64;

async fn http_connect(
    stream: &mut TcpStream,
    upstream: &Upstream,
    target: &HostPort,
) -> io::Result<Opened> {
    let mut request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n");
    if let Some((user, password)) = upstream.login() {
        // RFC 7617: the user name ends at the first colon.
        let login = BASE64.encode(format!("{user}:{password}").as_bytes());
        request.push_str(&format!("Proxy-Authorization: Basic {login}\r\n"));
    }
    request.push_str("\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut head = Vec::new();
    loop {
        // Byte by byte, so that nothing of what follows the head is taken; it is read once, before a handshake.
        head.push(stream.read_u8().await?);
        if !head.ends_with(b"\r\n\r\n") {
            if head.len() >= HEAD_LIMIT {
                return Ok(Opened::Protocol);
            }
            continue;
        }
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_LIMIT];
        let mut answer = httparse::Response::new(&mut headers);
        let parsed = answer.parse(&head).is_ok_and(|status| status.is_complete());
        let Some(code) = answer.code.filter(|_| parsed) else {
            return Ok(Opened::Protocol);
        };
        match code {
            100..200 => head.clear(), // RFC 9110 §15.2: the answer comes later
            200..300 => return Ok(Opened::Yes),
            407 => return Ok(Opened::Login),
            code => return Ok(Opened::Refused(code)),
        }
    }
}

const SOCKS: u8 = 5;
const NO_LOGIN: u8 = 0;
const PASSWORD: u8 = 2;

async fn socks5(
    stream: &mut TcpStream,
    upstream: &Upstream,
    target: &HostPort,
) -> io::Result<Opened> {
    let login = upstream.login();
    let methods: &[u8] = if login.is_some() {
        &[SOCKS, 2, NO_LOGIN, PASSWORD]
    } else {
        &[SOCKS, 1, NO_LOGIN]
    };
    stream.write_all(methods).await?;
    let mut chosen = [0; 2];
    stream.read_exact(&mut chosen).await?;
    match (chosen, login) {
        ([SOCKS, NO_LOGIN], _) => {}
        ([SOCKS, PASSWORD], Some((user, password))) => {
            let (Some(user), Some(password)) = (counted(user), counted(password)) else {
                return Ok(Opened::TooLong);
            };
            stream
                .write_all(&[&[1], &*user, &*password].concat())
                .await?; // RFC 1929 §2
            let mut verdict = [0; 2];
            stream.read_exact(&mut verdict).await?;
            if verdict[1] != 0 {
                return Ok(Opened::Login);
            }
        }
        ([SOCKS, 0xff], _) => return Ok(Opened::Login),
        _ => return Ok(Opened::Protocol),
    }
    let host = match target.host().parse::<IpAddr>() {
        Ok(IpAddr::V4(address)) => [&[1][..], &address.octets()].concat(),
        Ok(IpAddr::V6(address)) => [&[4][..], &address.octets()].concat(),
        Err(_) => match counted(target.host()) {
            Some(name) => [&[3][..], &name].concat(),
            None => return Ok(Opened::TooLong),
        },
    };
    let request = [&[SOCKS, 1, 0][..], &host, &target.port().to_be_bytes()].concat();
    stream.write_all(&request).await?;
    let mut reply = [0; 4];
    stream.read_exact(&mut reply).await?;
    let [SOCKS, code, _, kind] = reply else {
        return Ok(Opened::Protocol);
    };
    if code != 0 {
        return Ok(Opened::Refused(code.into()));
    }
    let length = match kind {
        1 => 4,
        4 => 16,
        3 => usize::from(stream.read_u8().await?),
        _ => return Ok(Opened::Protocol),
    };
    let mut bound = [0; 255 + 2];
    stream.read_exact(&mut bound[..length + 2]).await?; // where the proxy dials from, which is nobody's business here
    Ok(Opened::Yes)
}

/// A text with its length before it, which has one byte.
fn counted(text: &str) -> Option<Vec<u8>> {
    let length = u8::try_from(text.len()).ok()?;
    Some([&[length], text.as_bytes()].concat())
}

#[cfg(test)]
mod tests;
