//! The client side of both proxies against scripted ones on loopback.

use std::time::Duration;

use tokio::net::TcpListener;

use super::*;
use crate::task::Scope;

/// Plays a proxy: expects what we say, answers, and so on; what comes after the last answer is echoed.
async fn open_through(
    scheme: &str,
    login: &str,
    script: Vec<(&'static [u8], &'static [u8])>,
) -> Result<TcpStream, ProxyError> {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let scope = Scope::new("proxy");
    scope.spawn("script", async move {
        let (mut stream, _) = listener.accept().await.expect("accepted");
        for (expected, answer) in script {
            let mut heard = vec![0; expected.len()];
            if stream.read_exact(&mut heard).await.is_err() || heard != expected {
                return; // hangs up, which the client tells
            }
            stream.write_all(answer).await.ok();
        }
        let mut rest = [0; 16];
        let length = stream.read(&mut rest).await.unwrap_or(0);
        stream.write_all(&rest[..length]).await.ok();
    });
    let upstream: Upstream = format!("{scheme}://{login}{address}")
        .parse()
        .expect("a URL");
    let target = "relay.example:443".parse().expect("an address");
    let opened = tokio::time::timeout(Duration::from_secs(5), open(&upstream, &target)).await;
    let mut stream = opened.expect("in time")?;
    stream.write_all(b"through").await.expect("written");
    let mut echo = [0; 7];
    stream.read_exact(&mut echo).await.expect("echoed");
    assert_eq!(&echo, b"through", "not a byte too many was read");
    Ok(stream)
}

const CONNECT: &[u8] = b"CONNECT relay.example:443 HTTP/1.1\r\nHost: relay.example:443\r\n\r\n";
const CONNECT_WITH_LOGIN: &[u8] = b"CONNECT relay.example:443 HTTP/1.1\r\nHost: relay.example:443\r\nProxy-Authorization: Basic dXNlcjpwYXNz\r\n\r\n";
const ASK: &[u8] = b"\x05\x01\x00\x03\x0drelay.example\x01\xbb";

#[tokio::test]
async fn http_connect_opens_the_way_with_and_without_a_login() {
    let ok: &[u8] = b"HTTP/1.1 200 Connection established\r\nVia: p\r\n\r\n";
    open_through("http", "", vec![(CONNECT, ok)])
        .await
        .expect("open");
    let script = vec![(
        CONNECT_WITH_LOGIN,
        &b"HTTP/1.0 103 Early\r\n\r\nHTTP/1.0 200 OK\r\n\r\n"[..],
    )];
    open_through("http", "user:pass@", script)
        .await
        .expect("open");
}

#[tokio::test]
async fn socks5_opens_the_way_with_and_without_a_login() {
    let v4: &[u8] = b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00";
    let script = vec![(&b"\x05\x01\x00"[..], &b"\x05\x00"[..]), (ASK, v4)];
    open_through("socks5", "", script).await.expect("open");
    let named: &[u8] = b"\x05\x00\x00\x03\x02ab\x00\x00";
    let script = vec![
        (&b"\x05\x02\x00\x02"[..], &b"\x05\x02"[..]),
        (b"\x01\x04user\x04pass", b"\x01\x00"),
        (ASK, named),
    ];
    open_through("socks5", "user:pass@", script)
        .await
        .expect("open");
}

#[tokio::test]
async fn refusals_say_what_to_do_and_nonsense_is_told_from_them() {
    let login = |error: &ProxyError| matches!(error, ProxyError::Login(_));
    let refused = |error: &ProxyError| matches!(error, ProxyError::Refused { .. });
    let protocol = |error: &ProxyError| matches!(error, ProxyError::Protocol(_));
    let hung_up = |error: &ProxyError| matches!(error, ProxyError::Io { .. });
    type Case = (
        &'static str,
        Vec<(&'static [u8], &'static [u8])>,
        fn(&ProxyError) -> bool,
    );
    let hello: &[u8] = b"\x05\x01\x00";
    let cases: Vec<Case> = vec![
        (
            "http",
            vec![(CONNECT, b"HTTP/1.1 407 Login\r\n\r\n")],
            login,
        ),
        ("http", vec![(CONNECT, b"HTTP/1.1 503 No\r\n\r\n")], refused),
        (
            "http",
            vec![(CONNECT, b"\x05\x00 nonsense\r\n\r\n")],
            protocol,
        ),
        ("http", vec![(CONNECT, &[b'a'; HEAD_LIMIT])], protocol),
        ("http", vec![(b"something else", b"")], hung_up),
        ("socks5", vec![(hello, b"\x05\xff")], login),
        ("socks5", vec![(hello, b"\x05\x02")], protocol),
        ("socks5", vec![(hello, b"HT")], protocol),
        (
            "socks5",
            vec![(hello, b"\x05\x00"), (ASK, b"\x05\x05\x00\x01")],
            refused,
        ),
        (
            "socks5",
            vec![(hello, b"\x05\x00"), (ASK, b"\x05\x00\x00\x09")],
            protocol,
        ),
    ];
    for (at, (scheme, script, expected)) in cases.into_iter().enumerate() {
        match open_through(scheme, "", script).await {
            Err(error) => assert!(expected(&error), "case {at}: {error:?}"),
            other => panic!("case {at}: {other:?}"),
        }
    }
}
