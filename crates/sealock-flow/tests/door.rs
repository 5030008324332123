//! Front doors over real sockets, with a judge that knows a few ports.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use sealock_core::address::HostPort;
use sealock_core::fact::Facts;
use sealock_core::identity::AgentId;
use sealock_core::policy::RuleId;
use sealock_core::reason::Reason;
use sealock_flow::arrival::LegHead;
use sealock_flow::audit::Audit;
use sealock_flow::hop::Hop;
use sealock_flow::inlet::door::{Door, Speech, serve};
use sealock_flow::live::LiveFlows;
use sealock_flow::meter::Meter;
use sealock_flow::outlet::Way;
use sealock_flow::rule::Judge;
use sealock_net::socket;
use sealock_net::task::Scope;
use sealock_proto::door::{Login, connect};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Sends everything to loopback, at the port that was asked for; a service is at port 9.
struct Nearby;

const DENIED: u16 = 1;
const SLOW: u16 = 2;

impl Judge for Nearby {
    fn judge(&self, facts: &Facts) -> Result<RuleId, Reason> {
        match facts.goal.destination() {
            Some(place) if place.port() == DENIED => Err(Reason::PolicyDenied),
            Some(_) => "nearby".parse().map_err(|_| Reason::Internal),
            None => Err(Reason::NoSuchService),
        }
    }

    fn plan(&self, facts: &Facts, _leg: Option<&LegHead>) -> Result<Vec<Way>, Reason> {
        let place = facts.goal.destination().ok_or(Reason::Internal)?;
        Ok(vec![match place.port() {
            SLOW => Way::Refuse(Reason::TargetTimeout),
            port => Way::Direct(HostPort::from(at(port))),
        }])
    }
}

fn at(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

async fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind(at(0)).await.expect("loopback");
    let port = listener.local_addr().expect("bound").port();
    (listener, port)
}

/// A door that is open as long as the scope lives, and where it is.
async fn door(speech: Speech, login: Option<&str>) -> (Scope, u16) {
    let (listener, port) = listener().await;
    let caller = AgentId {
        tenant: "local".parse().expect("a name"),
        name: "test".parse().expect("a name"),
    };
    let door = Door {
        speech,
        login: login.map(|it| Login::new(it).expect("a login")),
        caller,
        hop: Hop {
            judge: Arc::new(Nearby),
            live: LiveFlows::new(64),
            audit: Audit::new(),
            meter: Meter::unread(),
        },
    };
    let scope = Scope::new("door");
    let tasks = scope.spawner();
    scope.spawn("door", async move {
        serve(listener, Arc::new(door), &tasks).await;
    });
    (scope, port)
}

/// The longest that a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(30);

/// Says something to a door, ends this direction, and gives all that comes back.
async fn said(port: u16, bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(at(port)).await?;
    stream.write_all(bytes).await?;
    stream.shutdown().await?;
    rest(&mut stream).await
}

async fn rest(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut heard = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut heard));
    read.await.map_err(|_elapsed| io::ErrorKind::TimedOut)??;
    Ok(heard)
}

fn socks5_to(port: u16) -> Vec<u8> {
    let mut bytes = b"\x05\x01\x00\x05\x01\x00\x03\x0dplace.example".to_vec();
    bytes.extend_from_slice(&port.to_be_bytes());
    bytes
}

const GRANTED: &[u8] = &[5, 0, 5, 0, 0, 1, 0, 0, 0, 0, 0, 0];

/// A server that hears its client out before it answers, and ends.
fn echo_at_the_end(listener: TcpListener, scope: &Scope) {
    scope.spawn("echo", async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut heard = b"heard: ".to_vec();
            stream.read_to_end(&mut heard).await.expect("a clean end");
            stream.write_all(&heard).await.expect("written");
        }
    });
}

#[tokio::test]
async fn what_a_client_says_with_its_request_and_its_half_close_reach_the_server() {
    let (scope, port) = door(Speech::Socks5, None).await;
    let (server, target) = listener().await;
    echo_at_the_end(server, &scope);
    let asked = [socks5_to(target), b"early".to_vec()].concat();
    let heard = said(port, &asked).await.expect("a clean end");
    assert_eq!(heard, [GRANTED, b"heard: early"].concat());
    let (scope, port) = door(Speech::Http, None).await;
    let asked = format!("CONNECT place.example:{target} HTTP/1.1\r\n\r\nearly");
    let heard = said(port, asked.as_bytes()).await.expect("a clean end");
    assert_eq!(heard, [connect::GRANTED, b"heard: early"].concat());
    drop(scope);
}

#[tokio::test]
async fn a_server_that_speaks_first_and_closes_first_loses_nothing() {
    let banner = vec![b'b'; 300_000]; // more than waits in any socket's buffer
    let (server, target) = listener().await;
    let (scope, port) = door(Speech::Socks5, None).await;
    let sent = banner.clone();
    scope.spawn("banner", async move {
        let (mut stream, _) = server.accept().await.expect("the door comes");
        stream.write_all(&sent).await.expect("written");
    });
    let mut stream = TcpStream::connect(at(port)).await.expect("the door");
    stream.write_all(&socks5_to(target)).await.expect("written");
    let mut granted = [0; 12];
    stream.read_exact(&mut granted).await.expect("an answer");
    assert_eq!(granted, GRANTED);
    let heard = rest(&mut stream).await.expect("a clean end");
    assert!(heard == banner, "{} bytes", heard.len());
}

#[tokio::test]
async fn a_request_in_single_bytes_is_read_as_in_one_piece() {
    let (server, target) = listener().await;
    let asked = format!("CONNECT place.example:{target} HTTP/1.1\r\nHost: x\r\n\r\n").into_bytes();
    for (speech, asked) in [(Speech::Socks5, socks5_to(target)), (Speech::Http, asked)] {
        let (_scope, port) = door(speech, None).await;
        let mut stream = TcpStream::connect(at(port)).await.expect("the door");
        stream.set_nodelay(true).expect("a flag");
        for byte in asked {
            stream.write_all(&[byte]).await.expect("written");
            tokio::task::yield_now().await;
        }
        let came = tokio::time::timeout(PATIENCE, server.accept()).await;
        assert!(came.is_ok_and(|it| it.is_ok()), "{speech:?}");
    }
}

#[tokio::test]
async fn a_refusal_is_told_in_the_words_of_the_door() {
    let (gone, refused) = listener().await;
    drop(gone);
    let (_scope, socks5) = door(Speech::Socks5, None).await;
    let (_http_scope, http) = door(Speech::Http, None).await;
    let cases = [
        (DENIED, 2, "403 Forbidden", "POLICY_DENIED"),
        (SLOW, 6, "504 Gateway Timeout", "TARGET_TIMEOUT"),
        (refused, 5, "502 Bad Gateway", "TARGET_REFUSED"),
    ];
    for (target, code, status, reason) in cases {
        let heard = said(socks5, &socks5_to(target)).await.expect("an answer");
        assert_eq!(heard[2..4], [5, code], "{reason}");
        let asked = format!("CONNECT place.example:{target} HTTP/1.1\r\n\r\nunread");
        let get =
            format!("GET http://place.example:{target}/ HTTP/1.1\r\nConnection: close\r\n\r\n");
        for asked in [asked, get] {
            let mut stream = TcpStream::connect(at(http)).await.expect("the door");
            stream.write_all(asked.as_bytes()).await.expect("written");
            let heard = rest(&mut stream).await.expect("an answer, whole");
            let heard = String::from_utf8(heard).expect("text");
            assert!(heard.starts_with(&format!("HTTP/1.1 {status}")), "{heard}");
            let told = heard.to_ascii_lowercase();
            assert!(told.contains("proxy-status: sealock; error="), "{heard}");
            assert!(heard.contains(&format!("details=\"{reason}\"")), "{heard}");
        }
    }
    let service = b"CONNECT db.sealock.internal:5432 HTTP/1.1\r\n\r\n";
    let heard = said(http, service).await.expect("an answer");
    let heard = String::from_utf8_lossy(&heard);
    assert!(heard.contains("NO_SUCH_SERVICE"), "{heard}");
}

#[tokio::test]
async fn a_door_with_a_login_opens_for_nobody_else() {
    let (server, target) = listener().await;
    let (scope, http) = door(Speech::Http, Some("user:pass")).await;
    echo_at_the_end(server, &scope);
    let ask = |headers: &str| format!("CONNECT a.example:{target} HTTP/1.1\r\n{headers}\r\n");
    let without = said(http, ask("").as_bytes()).await.expect("an answer");
    assert!(without.starts_with(b"HTTP/1.1 407 "), "{without:?}");
    let shown = ask("Proxy-Authorization: Basic dXNlcjpwYXNz\r\n");
    let with = said(http, shown.as_bytes()).await.expect("an answer");
    assert!(with.starts_with(connect::GRANTED), "{with:?}");
    let get = format!("GET http://a.example:{target}/ HTTP/1.1\r\nConnection: close\r\n\r\n");
    let mut stream = TcpStream::connect(at(http)).await.expect("the door");
    stream.write_all(get.as_bytes()).await.expect("written");
    let heard = rest(&mut stream).await.expect("an answer");
    assert!(heard.starts_with(b"HTTP/1.1 407 "), "{heard:?}");
}

// S28: whoever does not say what it wants has a deadline. The clock is virtual, so this takes no time.
#[tokio::test(start_paused = true)]
async fn a_client_that_never_asks_is_cut_off() {
    for speech in [Speech::Socks5, Speech::Http] {
        let (_scope, port) = door(speech, None).await;
        let mut stream = TcpStream::connect(at(port)).await.expect("the door");
        let heard = tokio::time::timeout(Duration::from_secs(60), stream.read_u8()).await;
        let error = heard.expect("an end").expect_err("nothing is said");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{speech:?}");
    }
}

/// A server of pages that says how many connections it has had, and what it was asked; each connection takes so many requests.
fn pages(listener: TcpListener, of_one: usize, scope: &Scope) {
    let tasks = scope.spawner();
    scope.spawn("pages", async move {
        let mut connections = 0;
        while let Ok((stream, _)) = listener.accept().await {
            connections += 1;
            tasks.spawn("page", async move {
                let mut stream = tokio::io::BufStream::new(stream);
                for _ in 0..of_one {
                    let Some(head) = head(&mut stream).await else {
                        return;
                    };
                    let body = format!("connection {connections}\n{head}");
                    let length = body.len();
                    let answer =
                        format!("HTTP/1.1 200 Fine\r\nContent-Length: {length}\r\n\r\n{body}");
                    stream.write_all(answer.as_bytes()).await.expect("written");
                    stream.flush().await.expect("written");
                }
            });
        }
    });
}

async fn head(stream: &mut tokio::io::BufStream<TcpStream>) -> Option<String> {
    use tokio::io::AsyncBufReadExt;
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head).await.ok()? == 0 {
            return None;
        }
    }
    Some(head)
}

/// Asks on an open connection, and gives the body of the answer.
async fn ask(stream: &mut tokio::io::BufStream<TcpStream>, url: &str) -> String {
    let request = format!(
        "GET {url} HTTP/1.1\r\nHost: other.example\r\nProxy-Connection: keep-alive\r\nConnection: X-Hop\r\nX-Hop: 1\r\nX-Kept: 2\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.expect("written");
    stream.flush().await.expect("written");
    let answer = tokio::time::timeout(PATIENCE, head(stream)).await;
    let answer = answer.expect("in time").expect("an answer");
    let lower = answer.to_ascii_lowercase();
    assert!(lower.starts_with("http/1.1 200"), "{answer}");
    let length = lower.split_once("content-length: ").expect("a length").1;
    let length: usize = length
        .split_once('\r')
        .expect("a line")
        .0
        .parse()
        .expect("a number");
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.expect("a body");
    String::from_utf8(body).expect("text")
}

#[tokio::test]
async fn requests_of_one_connection_are_forwarded_each_to_where_its_target_says() {
    let (scope, port) = door(Speech::Http, None).await;
    let ((first, one), (second, two)) = (listener().await, listener().await);
    pages(first, usize::MAX, &scope);
    pages(second, usize::MAX, &scope);
    let stream = TcpStream::connect(at(port)).await.expect("the door");
    let mut stream = tokio::io::BufStream::new(stream);
    let there = ask(&mut stream, &format!("http://one.example:{one}/a?b")).await;
    assert!(
        there.starts_with("connection 1\nGET /a?b HTTP/1.1\r\n"),
        "{there}"
    );
    let lower = there.to_ascii_lowercase();
    assert!(
        lower.contains(&format!("host: one.example:{one}\r\n")),
        "{there}"
    );
    assert!(!lower.contains("other.example"), "{there}");
    assert!(
        !lower.contains("hop") && !lower.contains("proxy-"),
        "{there}"
    );
    assert!(lower.contains("x-kept: 2\r\n") && lower.contains("via: 1.1 sealock\r\n"));
    let again = ask(&mut stream, &format!("http://one.example:{one}/")).await;
    assert!(again.starts_with("connection 1\nGET / "), "{again}");
    let elsewhere = ask(&mut stream, &format!("http://two.example:{two}")).await;
    assert!(elsewhere.starts_with("connection 1\nGET / "), "{elsewhere}");
    // Another name is another flow, also where it leads to the same address.
    let other = ask(&mut stream, &format!("http://three.example:{one}/")).await;
    assert!(other.starts_with("connection 2\n"), "{other}");
}

#[tokio::test]
async fn a_server_that_closes_between_two_requests_costs_nothing() {
    let (scope, port) = door(Speech::Http, None).await;
    let (server, target) = listener().await;
    pages(server, 1, &scope);
    let stream = TcpStream::connect(at(port)).await.expect("the door");
    let mut stream = tokio::io::BufStream::new(stream);
    for number in 1..=5 {
        let page = ask(&mut stream, &format!("http://a.example:{target}/")).await;
        assert!(
            page.starts_with(&format!("connection {number}\n")),
            "{page}"
        );
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_never_looks_whole() {
    let (scope, port) = door(Speech::Http, None).await;
    for length in ["Content-Length: 100\r\n", ""] {
        let (server, target) = listener().await;
        scope.spawn("broken", async move {
            let (stream, _) = server.accept().await.expect("the door comes");
            let mut stream = tokio::io::BufStream::new(stream);
            head(&mut stream).await.expect("a request");
            let answer = format!("HTTP/1.1 200 Fine\r\n{length}\r\nhalf");
            stream.write_all(answer.as_bytes()).await.expect("written");
            stream.flush().await.expect("written");
            let stream = stream.into_inner();
            socket::reset_on_close(&stream);
        });
        let mut stream = TcpStream::connect(at(port)).await.expect("the door");
        // HTTP/1.0: without a length, only the end of the connection ends the answer.
        let get = format!("GET http://a.example:{target}/ HTTP/1.0\r\n\r\n");
        stream.write_all(get.as_bytes()).await.expect("written");
        let heard = rest(&mut stream).await;
        let is_told = heard
            .as_ref()
            .is_ok_and(|it| it.starts_with(b"HTTP/1.1 502") || it.starts_with(b"HTTP/1.0 502"));
        assert!(heard.is_err() || is_told, "{length:?}: {heard:?}");
    }
}

#[tokio::test]
async fn what_is_no_request_to_a_proxy_is_refused_and_opens_nothing() {
    let (_scope, port) = door(Speech::Http, None).await;
    let (server, target) = listener().await;
    for request in [
        format!("GET / HTTP/1.1\r\nHost: a.example:{target}\r\n\r\n"),
        format!("GET https://a.example:{target}/ HTTP/1.1\r\n\r\n"),
        format!("GET http://user@a.example:{target}/ HTTP/1.1\r\n\r\n"),
        format!("GET http://127.1:{target}/ HTTP/1.1\r\n\r\n"),
        "GET http://a.example:0/ HTTP/1.1\r\n\r\n".to_owned(),
        "CONNECT a.example HTTP/1.1\r\n\r\n".to_owned(),
    ] {
        let mut stream = TcpStream::connect(at(port)).await.expect("the door");
        stream.write_all(request.as_bytes()).await.expect("written");
        let heard = rest(&mut stream).await.expect("an answer");
        assert!(heard.starts_with(b"HTTP/1.1 400 "), "{request}: {heard:?}");
    }
    let came = futures_util::FutureExt::now_or_never(server.accept());
    assert!(came.is_none(), "something was opened");
}
