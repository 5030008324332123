//! The transport between two real endpoints on loopback.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use sealock_core::reason::Reason;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UdpSocket;
use tokio::time::Instant;

use super::admission::{PreAuthBudget, PreAuthLimits, Verdict};
use super::*;
use crate::identity::testing::{Leaf, SOON, TestCa};
use crate::identity::{IdentityStore, TrustStore};
use crate::task::Scope;
use crate::tls::{self, alpn};

mod detection;
mod hostile;
mod raw_quic;

struct Net {
    ca: TestCa,
    trust: TrustStore,
    agent: IdentityStore,
    server: Endpoint,
    client: Endpoint,
    address: SocketAddr,
}

const LOOPBACK: &str = "127.0.0.1:0";

fn listen(
    ca: &TestCa,
    trust: &TrustStore,
    address: &str,
    keys: &TransportKeys,
    settings: Settings,
) -> Endpoint {
    let tls = tls::relay_listener(&ca.identity("relay/r"), trust);
    let address = address.parse().expect("an address");
    Endpoint::server(address, tls, settings, keys).expect("a free port")
}

impl Net {
    fn new(settings: Settings) -> Self {
        let ca = TestCa::new("td");
        let trust = ca.trust_store();
        let server = listen(&ca, &trust, LOOPBACK, &TransportKeys::generate(), settings);
        Self {
            agent: ca.identity("default/agent/a"),
            client: Endpoint::client(settings).expect("a socket"),
            address: server.local_addr().expect("bound"),
            server,
            ca,
            trust,
        }
    }

    async fn dial(&self) -> Result<Connection, ConnectError> {
        let tls = tls::relay_client(&self.agent, &self.trust);
        self.client.connect(self.address, tls, soon()).await
    }

    async fn welcome(&self) -> Result<Connection, ConnectError> {
        let incoming = self.server.accept().await.expect("open");
        incoming.handshake(soon()).await
    }

    async fn pair(&self) -> (Connection, Connection) {
        let (near, far) = tokio::join!(self.dial(), self.welcome());
        (near.expect("connected"), far.expect("welcomed"))
    }

    /// A stream that the client opened, as both sides hold it; `x` has been written and read.
    async fn stream(&self) -> ((Connection, BiStream), (Connection, BiStream)) {
        let (near, far) = self.pair().await;
        let mut opened = near.open_bi().await.expect("open");
        opened
            .send
            .write(Bytes::from_static(b"x"))
            .await
            .expect("written");
        let mut accepted = far.accept_bi().await.expect("a stream");
        let first = accepted.recv.read_chunk(16).await.expect("read");
        assert_eq!(first.as_deref(), Some(b"x".as_slice()));
        ((near, opened), (far, accepted))
    }
}

fn soon() -> Instant {
    Instant::now() + SOON
}

async fn all_of(recv: &mut RecvHalf) -> Result<Vec<u8>, ReadError> {
    let mut all = Vec::new();
    while let Some(chunk) = recv.read_chunk(64 * 1024).await? {
        all.extend_from_slice(&chunk);
    }
    Ok(all)
}

#[tokio::test]
async fn both_ends_know_each_other_and_the_protocol() {
    let net = Net::new(Settings::default());
    let (near, far) = net.pair().await;
    assert_eq!(
        near.peer().expect("a relay").id.to_string(),
        "spiffe://td/relay/r"
    );
    assert_eq!(
        far.peer().expect("an agent").id.to_string(),
        "spiffe://td/default/agent/a"
    );
    assert_eq!(
        (near.alpn(), far.alpn()),
        (Some(alpn::SESSION), Some(alpn::SESSION))
    );
    assert_eq!(near.remote_address(), Some(net.address));
    assert!(
        far.remote_address().expect("known").ip().is_ipv4(),
        "not as an IPv6-mapped address"
    );
    assert!(near.rtt().is_some());
}

#[tokio::test]
async fn a_joining_node_comes_without_a_certificate() {
    let net = Net::new(Settings::default());
    let tls = tls::join_relay_client(net.ca.pin());
    let (near, far) = tokio::join!(net.client.connect(net.address, tls, soon()), net.welcome());
    let far = far.expect("welcomed");
    assert!(near.is_ok() && far.peer().is_none());
    assert_eq!(far.alpn(), Some(alpn::JOIN));
}

#[tokio::test]
async fn bytes_arrive_in_order_and_each_direction_ends_by_itself() {
    let net = Net::new(Settings::default());
    let ((_near, mut opened), (_far, mut accepted)) = net.stream().await;
    let data: Vec<u8> = (0..3_000_000u32)
        .map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1])
        .collect();
    let whole = Bytes::from(data.clone());
    let mut chunks: Vec<Bytes> = (0..30)
        .map(|n| whole.slice(n * 100_000..(n + 1) * 100_000))
        .collect();
    let (written, read) = tokio::join!(
        async {
            opened.send.write_all_chunks(&mut chunks).await?;
            opened.send.finish()
        },
        all_of(&mut accepted.recv)
    );
    written.expect("written");
    assert!(read.expect("clean") == data, "the bytes are the same");
    // Half-close: the other direction is still open.
    accepted
        .send
        .write(Bytes::from_static(b"answer"))
        .await
        .expect("written");
    accepted.send.finish().expect("finished");
    assert_eq!(all_of(&mut opened.recv).await, Ok(b"answer".to_vec()));
    assert_eq!(opened.send.stopped().await, Ok(None));
    assert_eq!(opened.send.finish(), Err(WriteError::Finished));
}

#[tokio::test]
async fn every_reason_crosses_a_reset_and_a_stop() {
    let net = Net::new(Settings {
        streams: 200,
        ..Settings::default()
    });
    let (near, far) = net.pair().await;
    for &reason in Reason::ALL {
        let mut opened = near.open_bi().await.expect("open");
        opened
            .send
            .write(Bytes::from_static(b"x"))
            .await
            .expect("written");
        let mut accepted = far.accept_bi().await.expect("a stream");
        accepted.recv.read_chunk(1).await.expect("read");
        opened.send.reset(reason);
        // «Done» in a reset is a contradiction, and never a clean end.
        let expected = if reason == Reason::Done {
            Reason::Unknown
        } else {
            reason
        };
        assert_eq!(
            all_of(&mut accepted.recv).await,
            Err(ReadError::Reset(expected))
        );
        opened.recv.stop(reason);
        assert_eq!(accepted.send.stopped().await, Ok(Some(expected)));
        let written = accepted.send.write(Bytes::from_static(b"x")).await;
        assert_eq!(written, Err(WriteError::Stopped(expected)));
    }
}

#[tokio::test]
async fn a_dropped_half_is_a_reset_and_never_a_clean_end() {
    let net = Net::new(Settings::default());
    let ((_near, opened), (_far, mut accepted)) = net.stream().await;
    drop(opened);
    assert_eq!(
        all_of(&mut accepted.recv).await,
        Err(ReadError::Reset(Reason::Cancelled))
    );
    assert_eq!(accepted.send.stopped().await, Ok(Some(Reason::Cancelled)));
}

// The library tells of a reset once, and a reader that joins pieces may meet it while it does so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_behind_bytes_is_never_taken_for_a_clean_end() {
    let net = Net::new(Settings::default());
    let (near, far) = net.pair().await;
    for turn in 0..200 {
        let mut opened = near.open_bi().await.expect("opened");
        let writing = async {
            for _ in 0..turn % 20 + 1 {
                opened.send.write(vec![7; 3_000].into()).await.expect("ok");
            }
            tokio::task::yield_now().await;
            opened.send.reset(Reason::TargetRefused);
        };
        let reading = async {
            let mut accepted = far.accept_bi().await.expect("accepted");
            loop {
                match accepted.recv.read_chunk(64 * 1024).await {
                    Ok(Some(bytes)) => assert!(!bytes.is_empty()),
                    Ok(None) => return None,
                    Err(error) => return Some(error),
                }
            }
        };
        let ((), ended) = tokio::join!(writing, reading);
        assert_eq!(ended, Some(ReadError::Reset(Reason::TargetRefused)));
    }
}

#[tokio::test]
async fn what_was_taken_ahead_is_read_before_anything_later_by_every_way_of_reading() {
    use tokio::io::AsyncReadExt;
    let net = Net::new(Settings::default());
    let ((_near, mut opened), (_far, mut accepted)) = net.stream().await;
    let data: Vec<u8> = (0..200_000u32).map(|n| (n % 251) as u8).collect();
    opened.send.write(data.clone().into()).await.expect("ok");
    opened.send.finish().expect("finished");
    let mut read = Vec::new();
    for max in [3, 20_000, 1, 16_384, 5, 17_000].into_iter().cycle() {
        let chunk = accepted.recv.read_chunk(max).await.expect("no error");
        let chunk = chunk.expect("not the end");
        assert!(chunk.len() <= max, "{} of {max}", chunk.len());
        read.extend_from_slice(&chunk);
        if read.len() > 100_000 {
            break;
        }
    }
    let mut rest = accepted.into_io();
    rest.read_to_end(&mut read).await.expect("a clean end");
    assert!(read == data, "the bytes are the same");
}

#[tokio::test]
async fn packets_grow_where_the_way_takes_them() {
    let net = Net::new(Settings::default());
    let (near, far) = net.pair().await;
    let grown = async {
        // Both ends feel their way up by packets of their own.
        while [&near, &far].map(|end| end.packet_size().unwrap_or(0) < 6_000) != [false; 2] {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(5), grown).await;
    let sizes = [near.packet_size(), far.packet_size()];
    assert!(waited.is_ok(), "{sizes:?}");
}

#[tokio::test]
async fn a_busy_connection_gets_places_beyond_the_first_ones() {
    let net = Net::new(Settings {
        streams: 300,
        ..Settings::default()
    });
    let (near, far) = net.pair().await;
    let mut held = Vec::new();
    for _ in 0..300 {
        let opening = async {
            let mut opened = near.open_bi().await.expect("a place");
            opened
                .send
                .write(Bytes::from_static(b"x"))
                .await
                .expect("ok");
            opened
        };
        let (opened, accepted) = tokio::join!(opening, far.accept_bi());
        held.push((opened, accepted.expect("accepted")));
    }
    let mut beyond = std::pin::pin!(near.open_bi());
    assert!(futures_util::poll!(beyond.as_mut()).is_pending());
    held.truncate(100); // the library tells of free places by the eighth
    beyond.await.expect("a place of those that ended");
}

/// More than a connection takes of what nobody reads, unless room was made for it.
const UNREAD: usize = 20 * 1024 * 1024;

// A7: between relays the streams of many share a connection; some that are not read leave it to the others.
#[tokio::test]
async fn streams_that_are_not_read_leave_a_shared_connection_to_the_others() {
    let (tasks, net) = (Scope::new("test"), Net::new(Settings::default()));
    let (near, far) = net.pair().await;
    far.make_room();
    let written = Arc::new(AtomicUsize::new(0));
    let mut unread = Vec::new();
    for _ in 0..16 {
        let mut opened = near.open_bi().await.expect("a place");
        let written = Arc::clone(&written);
        tasks.spawn("writer", async move {
            let chunk = Bytes::from(vec![7; 64 * 1024]);
            while opened.send.write(chunk.clone()).await.is_ok() {
                written.fetch_add(chunk.len(), Ordering::Relaxed);
            }
        });
        unread.push(far.accept_bi().await.expect("a stream"));
    }
    let filled = async {
        while written.load(Ordering::Relaxed) < UNREAD {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let filled = tokio::time::timeout(SOON, filled).await;
    assert!(filled.is_ok(), "{written:?} bytes are all that went");
    let mut opened = near.open_bi().await.expect("a place");
    let word = Bytes::from_static(b"of another");
    opened.send.write(word.clone()).await.expect("written");
    opened.send.finish().expect("finished");
    let mut accepted = far.accept_bi().await.expect("a stream");
    let heard = tokio::time::timeout(SOON, all_of(&mut accepted.recv)).await;
    assert_eq!(heard.expect("in time").expect("clean"), word);
}

#[tokio::test]
async fn a_dropped_half_that_was_finished_delivers_everything() {
    let net = Net::new(Settings::default());
    let ((_near, mut opened), (_far, mut accepted)) = net.stream().await;
    opened
        .send
        .write(Bytes::from(vec![7; 100_000]))
        .await
        .expect("written");
    opened.send.finish().expect("finished");
    drop(opened.send);
    assert_eq!(
        all_of(&mut accepted.recv).await.expect("clean").len(),
        100_000
    );
}

#[tokio::test]
async fn a_closed_connection_ends_its_streams_with_the_reason() {
    let net = Net::new(Settings::default());
    let ((near, mut opened), (far, mut accepted)) = net.stream().await;
    far.close(Reason::Draining);
    assert_eq!(near.closed().await, Lost::ByPeer(Reason::Draining));
    assert_eq!(far.close_reason(), Some(Lost::ByUs));
    let read = all_of(&mut opened.recv).await;
    assert_eq!(read, Err(ReadError::Lost(Lost::ByPeer(Reason::Draining))));
    assert_eq!(
        accepted.recv.read_chunk(1).await,
        Err(ReadError::Lost(Lost::ByUs))
    );
    assert_eq!(
        near.open_bi().await.expect_err("closed"),
        Lost::ByPeer(Reason::Draining)
    );
}

#[tokio::test]
async fn a_stream_reads_and_writes_as_one_and_its_errors_carry_reasons() {
    let net = Net::new(Settings::default());
    let ((_near, opened), (_far, accepted)) = net.stream().await;
    let (mut near, mut far) = (opened.into_io(), accepted.into_io());
    near.write_all(b"question").await.expect("written");
    near.shutdown().await.expect("finished");
    near.shutdown().await.expect("twice is fine");
    let mut text = String::new();
    far.read_to_string(&mut text).await.expect("clean end");
    assert_eq!(text, "question");
    far.into_stream().reset(Reason::TargetRefused);
    let error = near.read(&mut [0; 8]).await.expect_err("reset");
    assert_eq!(Reason::carried_by(&error), Some(Reason::TargetRefused));
}

#[tokio::test]
async fn streams_beyond_the_allowed_number_wait_until_more_are_allowed() {
    let net = Net::new(Settings {
        streams: 2,
        ..Settings::default()
    });
    let (near, far) = net.pair().await;
    let _held = [
        near.open_bi().await.expect("one"),
        near.open_bi().await.expect("two"),
    ];
    let mut third = std::pin::pin!(near.open_bi());
    assert!(futures_util::poll!(third.as_mut()).is_pending());
    far.allow_streams(3);
    third.await.expect("three");
}

#[tokio::test]
async fn an_agent_that_is_not_accepted_learns_so_before_it_believes_to_be_connected() {
    let net = Net::new(Settings::default());
    let leaf = Leaf {
        from: -7_200,
        until: -60,
        ..Leaf::of(
            sealock_core::identity::Role::Agent,
            &["spiffe://td/default/agent/a"],
        )
    };
    net.agent.set(net.ca.svid(&leaf));
    let (near, far) = tokio::join!(net.dial(), net.welcome());
    let near = near.expect_err("expired");
    assert!(
        matches!(
            near,
            ConnectError::NotAccepted {
                alert: Alert::Expired
            }
        ),
        "{near:?}"
    );
    assert!(near.to_string().contains("clock"));
    assert_eq!(near.reason(), Reason::NotAdmitted);
    assert!(matches!(
        far,
        Err(ConnectError::NotAuthentic(VerifyError::Expired { .. }))
    ));
    let stranger = TestCa::new("td");
    net.agent.set(stranger.svid(&Leaf::of(
        sealock_core::identity::Role::Agent,
        &["spiffe://td/default/agent/a"],
    )));
    let (near, _far) = tokio::join!(net.dial(), net.welcome());
    assert!(
        matches!(
            near,
            Err(ConnectError::NotAccepted {
                alert: Alert::CertificateRefused
            })
        ),
        "{near:?}"
    );
}

#[tokio::test]
async fn a_server_that_is_not_whom_we_expect_is_left() {
    let net = Net::new(Settings::default());
    let other = TestCa::new("td");
    let tls = tls::relay_client(&net.agent, &other.trust_store());
    let (near, far) = tokio::join!(net.client.connect(net.address, tls, soon()), net.welcome());
    let near = near.expect_err("another root");
    assert!(matches!(near, ConnectError::NotAuthentic(_)), "{near:?}");
    assert_eq!(near.reason(), Reason::PeerNotAuthentic);
    assert!(far.is_err());
}

// S28: a peer that never answers costs a deadline, on either side.
#[tokio::test]
async fn handshakes_have_deadlines() {
    let net = Net::new(Settings::default());
    let silent = UdpSocket::bind(LOOPBACK).await.expect("a port");
    let tls = tls::relay_client(&net.agent, &net.trust);
    let brief = Instant::now() + Duration::from_millis(50);
    let error = net
        .client
        .connect(silent.local_addr().expect("bound"), tls, brief)
        .await;
    assert!(matches!(error, Err(ConnectError::Timeout)), "{error:?}");
    assert_eq!(ConnectError::Timeout.reason(), Reason::HandshakeTimeout);
    // Towards the server: a first packet from a client that says nothing more.
    let mut first = [0; 2_048];
    let (length, _) = silent
        .recv_from(&mut first)
        .await
        .expect("the client's hello");
    let ghost = UdpSocket::bind(LOOPBACK).await.expect("a port");
    ghost
        .send_to(&first[..length], net.address)
        .await
        .expect("sent");
    let incoming = net.server.accept().await.expect("open");
    let error = incoming
        .handshake(Instant::now() + Duration::from_millis(50))
        .await;
    assert!(matches!(error, Err(ConnectError::Timeout)), "{error:?}");
}

#[tokio::test]
async fn a_port_that_nothing_can_listen_at_is_refused_at_once() {
    let net = Net::new(Settings::default());
    let tls = tls::relay_client(&net.agent, &net.trust);
    let nowhere = "127.0.0.1:0".parse().expect("an address");
    let error = net.client.connect(nowhere, tls, soon()).await;
    assert!(
        matches!(error, Err(ConnectError::Address(address)) if address == nowhere),
        "{error:?}"
    );
}

// S31: accept, retry, refuse and ignore in any order, and the endpoint goes on.
#[tokio::test]
async fn a_retry_lets_honest_clients_through_and_a_refusal_is_told() {
    let net = Net::new(Settings::default());
    let welcome = async {
        let first = net.server.accept().await.expect("open");
        assert!(!first.is_validated());
        first.retry();
        let second = net.server.accept().await.expect("open");
        assert!(second.is_validated());
        second.handshake(soon()).await
    };
    let (near, far) = tokio::join!(net.dial(), welcome);
    assert!(near.is_ok() && far.is_ok());
    for turn_away in [Incoming::refuse, drop::<Incoming>] {
        let (near, ()) = tokio::join!(net.dial(), async {
            turn_away(net.server.accept().await.expect("open"));
        });
        assert!(
            matches!(near, Err(ConnectError::Lost(Lost::Transport { code: 2 }))),
            "{near:?}"
        ); // CONNECTION_REFUSED
        // A relay that is full, or stops in order, is worth another attempt soon.
        assert!(near.is_err_and(|error| error.is_transient()));
    }
    let twice = async {
        net.server.accept().await.expect("open").retry();
        net.server.accept().await.expect("open").retry(); // a second Retry is not allowed: refused
    };
    let (near, ()) = tokio::join!(net.dial(), twice);
    assert!(near.is_err());
    assert!(net.pair().await.0.peer().is_some());
}

#[tokio::test]
async fn a_flood_from_one_source_is_held_back_and_others_get_through() {
    let net = Net::new(Settings::default());
    let budget = PreAuthBudget::new(PreAuthLimits {
        burst: 1,
        refill: Duration::from_secs(3_600),
        ..PreAuthLimits::default()
    });
    let welcome_all = async {
        loop {
            let incoming = net.server.accept().await.expect("open");
            let source = incoming.remote_address().ip();
            match budget.admit(std::time::Instant::now(), source, incoming.is_validated()) {
                Verdict::Accept(_ticket) => drop(incoming.handshake(soon()).await),
                Verdict::Retry => incoming.retry(),
                Verdict::Wait => incoming.ignore(),
                Verdict::Refuse => incoming.refuse(),
            }
        }
    };
    let dial = async {
        let mut outcomes = Vec::new();
        for _ in 0..3 {
            outcomes.push(net.dial().await.is_ok());
        }
        outcomes
    };
    let outcomes = tokio::select! {
        biased; // the loop never ends
        outcomes = dial => outcomes,
        () = welcome_all => unreachable!("endless"),
    };
    assert_eq!(outcomes, [true, true, false]); // its unvalidated place, its validated one, and no more
    assert_eq!(budget.in_progress(), 0);
}

#[tokio::test]
async fn garbage_reaches_nobody_and_harms_nothing() {
    let net = Net::new(Settings::default());
    let socket = UdpSocket::bind(LOOPBACK).await.expect("a port");
    for n in 0..500u16 {
        let mut packet = vec![n.to_le_bytes()[0]; 1 + usize::from(n) * 3];
        packet[0] |= 0xc0; // looks like a long header
        socket.send_to(&packet, net.address).await.expect("sent");
    }
    assert!(net.pair().await.1.peer().is_some());
}

#[tokio::test]
async fn a_closed_endpoint_accepts_nobody_and_tells_its_peers() {
    let net = Net::new(Settings::default());
    let (near, _far) = net.pair().await;
    net.server.close(Reason::Draining);
    assert_eq!(near.closed().await, Lost::ByPeer(Reason::Draining));
    assert!(net.server.accept().await.is_none());
    net.server.wait_idle().await;
}

#[tokio::test]
async fn silence_ends_a_connection_after_its_idle_timeout() {
    let settings = Settings {
        idle_timeout: Duration::from_secs(1),
        keep_alive: Duration::from_secs(60),
        streams: 1,
        ..Settings::default()
    };
    let net = Net::new(settings);
    let (near, far) = net.pair().await;
    let (near, far) = tokio::join!(near.closed(), far.closed());
    assert_eq!((near.clone(), far), (Lost::Silent, Lost::Silent));
    assert_eq!(near.reason(), Reason::SessionLost);
}

#[tokio::test]
async fn keep_alives_outlast_the_idle_timeout() {
    let settings = Settings {
        idle_timeout: Duration::from_millis(1_500),
        keep_alive: Duration::from_millis(50),
        streams: 1,
        ..Settings::default()
    };
    let net = Net::new(settings);
    let (near, _far) = net.pair().await;
    let lasted = tokio::time::timeout(Duration::from_millis(3_500), near.closed()).await;
    assert!(lasted.is_err(), "{lasted:?}");
}

/// Forwards packets to whichever server is current, as a NAT that outlives the relay's process.
struct Forwarder {
    front: SocketAddr,
    target: Arc<parking_lot::Mutex<SocketAddr>>,
}

async fn forwarder(scope: &Scope, target: SocketAddr) -> Forwarder {
    let front = UdpSocket::bind(LOOPBACK).await.expect("a port");
    let back = UdpSocket::bind(LOOPBACK).await.expect("a port");
    let address = front.local_addr().expect("bound");
    let target = Arc::new(parking_lot::Mutex::new(target));
    let current = Arc::clone(&target);
    scope.spawn("forwarder", async move {
        let (mut up, mut down) = ([0; 65_536], [0; 65_536]);
        let mut client = None;
        loop {
            tokio::select! { // order is free: packets may be reordered
                Ok((length, from)) = front.recv_from(&mut up) => {
                    client = Some(from);
                    let target = *current.lock();
                    back.send_to(&up[..length], target).await.ok();
                }
                Ok((length, _)) = back.recv_from(&mut down) => {
                    if let Some(client) = client {
                        front.send_to(&down[..length], client).await.ok();
                    }
                }
            }
        }
    });
    Forwarder {
        front: address,
        target,
    }
}

// A restarted relay that kept its keys ends the old connections at once, long before their idle timeout.
#[tokio::test]
async fn a_restart_with_the_same_keys_is_told_to_old_peers_at_once() {
    let ca = TestCa::new("td");
    let trust = ca.trust_store();
    let keys = TransportKeys::generate();
    let settings = Settings {
        idle_timeout: Duration::from_secs(600),
        keep_alive: Duration::from_millis(50),
        streams: 1,
        ..Settings::default()
    };
    let first = listen(&ca, &trust, LOOPBACK, &keys, settings);
    let scope = Scope::new("test");
    let between = forwarder(&scope, first.local_addr().expect("bound")).await;
    let client = Endpoint::client(settings).expect("a socket");
    let tls = tls::relay_client(&ca.identity("default/agent/a"), &trust);
    let welcome = async { first.accept().await.expect("open").handshake(soon()).await };
    let (near, far) = tokio::join!(client.connect(between.front, tls, soon()), welcome);
    let (near, _far) = (near.expect("connected"), far.expect("welcomed"));
    // The first process is as good as dead: its packets go nowhere, and the second has never heard of the connection.
    let second = listen(&ca, &trust, LOOPBACK, &keys, settings);
    *between.target.lock() = second.local_addr().expect("bound");
    let ended = tokio::time::timeout(SOON, near.closed())
        .await
        .expect("told at once");
    assert_eq!(ended, Lost::PeerRestarted);
    assert_eq!(ended.reason(), Reason::SessionLost);
}

// F34: the agents of a relay that restarted are told all at once, not one after the other.
#[tokio::test]
async fn a_restart_is_told_to_a_crowd_of_old_peers_at_once() {
    const CROWD: usize = 250;
    // One answer every 20 ms, as the library has it, takes five seconds for them.
    const ALL: Duration = Duration::from_secs(4);
    let ca = TestCa::new("td");
    let trust = ca.trust_store();
    let keys = TransportKeys::generate();
    let settings = Settings {
        idle_timeout: Duration::from_secs(600),
        keep_alive: Duration::from_millis(250),
        streams: 1,
        ..Settings::default()
    };
    let first = listen(&ca, &trust, LOOPBACK, &keys, settings);
    let scope = Scope::new("test");
    let between = forwarder(&scope, first.local_addr().expect("bound")).await;
    // All of one socket, so that whoever stands between needs to know one peer only.
    let client = listen(&ca, &trust, LOOPBACK, &TransportKeys::generate(), settings);
    let tls = tls::relay_client(&ca.identity("default/agent/a"), &trust);
    let mut crowd = Vec::new();
    for _ in 0..CROWD {
        let welcome = async { first.accept().await.expect("open").handshake(soon()).await };
        let near = client.connect(between.front, tls.clone(), soon());
        let (near, far) = tokio::join!(near, welcome);
        crowd.push((near.expect("connected"), far.expect("welcomed")));
    }
    let second = listen(&ca, &trust, LOOPBACK, &keys, settings);
    let ended = crowd.iter().map(|(near, _far)| near.closed());
    *between.target.lock() = second.local_addr().expect("bound");
    let ended = tokio::time::timeout(ALL, futures_util::future::join_all(ended)).await;
    let ended = ended.expect("told in time");
    assert!(ended.iter().all(|lost| *lost == Lost::PeerRestarted));
}
