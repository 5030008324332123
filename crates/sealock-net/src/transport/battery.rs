//! What every carrier promises, tried with each of them between two real ends on loopback.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use sealock_core::config::Transport;
use sealock_core::reason::Reason;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use super::*;
use crate::identity::testing::{Leaf, SOON, TestCa};
use crate::identity::{IdentityStore, TrustStore};
use crate::task::Scope;
use crate::tls::{self, alpn};
use fairness::bulk_streams_of_one_connection_get_like_shares;

mod doors;
mod fairness;
mod paths;

/// Both ends of one carrier.
struct Net {
    transport: Transport,
    ca: TestCa,
    trust: TrustStore,
    agent: IdentityStore,
    udp: (Endpoint, Endpoint),
    tcp: (TcpEndpoint, TcpEndpoint),
    address: SocketAddr,
}

const LOOPBACK: &str = "127.0.0.1:0";

impl Net {
    fn new(transport: Transport, settings: Settings) -> Self {
        let ca = TestCa::new("td");
        let trust = ca.trust_store();
        let relay = ca.identity("relay/r");
        let loopback = LOOPBACK.parse().expect("an address");
        let quic = tls::relay_listener(&relay, &trust);
        let keys = TransportKeys::generate();
        let udp = Endpoint::server(loopback, quic, settings, &keys).expect("a free port");
        let over_tcp = tls::relay_tcp_listener(&relay, &trust);
        let tcp = TcpEndpoint::server(loopback, over_tcp, settings).expect("a free port");
        let address = match transport {
            Transport::Quic => udp.local_addr().expect("bound"),
            Transport::Tls | Transport::Websocket => tcp.local_addr().expect("bound"),
        };
        Self {
            transport,
            agent: ca.identity("default/agent/a"),
            udp: (Endpoint::client(settings).expect("a socket"), udp),
            tcp: (TcpEndpoint::client(settings), tcp),
            address,
            ca,
            trust,
        }
    }

    async fn dial_at(
        &self,
        address: SocketAddr,
        tls: std::sync::Arc<rustls::ClientConfig>,
    ) -> Result<Connection, ConnectError> {
        if self.transport == Transport::Quic {
            return self.udp.0.connect(address, tls, soon()).await;
        }
        let stream = TcpStream::connect(address).await.expect("listening");
        let (transport, host) = (self.transport, "relay.example");
        let connect = self.tcp.0.connect(transport, stream, host, tls, soon());
        connect.await
    }

    async fn dial(&self) -> Result<Connection, ConnectError> {
        let tls = tls::relay_client(&self.agent, &self.trust);
        self.dial_at(self.address, tls).await
    }

    async fn welcome(&self) -> Result<Connection, ConnectError> {
        if self.transport == Transport::Quic {
            let incoming = self.udp.1.accept().await.expect("open");
            return incoming.handshake(soon()).await;
        }
        let incoming = self.tcp.1.accept().await.expect("open");
        incoming.handshake(soon()).await
    }

    async fn pair(&self) -> (Connection, Connection) {
        let (near, far) = tokio::join!(self.dial(), self.welcome());
        (near.expect("connected"), far.expect("welcomed"))
    }
}

fn soon() -> Instant {
    Instant::now() + SOON
}

async fn in_time<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, future).await.expect("in time")
}

/// A stream that `near` opened, as both sides hold it; `x` has been written and read.
async fn stream(near: &Connection, far: &Connection) -> (BiStream, BiStream) {
    let mut opened = near.open_bi().await.expect("a stream");
    let x = Bytes::from_static(b"x");
    opened.send.write(x.clone()).await.expect("written");
    let mut accepted = in_time(far.accept_bi()).await.expect("a stream");
    let first = accepted.recv.read_chunk(16).await.expect("read");
    assert_eq!(first, Some(x));
    (opened, accepted)
}

async fn all_of(recv: &mut RecvHalf) -> Result<Vec<u8>, ReadError> {
    let mut all = Vec::new();
    while let Some(chunk) = recv.read_chunk(64 * 1024).await? {
        all.extend_from_slice(&chunk);
    }
    Ok(all)
}

fn bytes(count: u32) -> Vec<u8> {
    (0..count)
        .map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1])
        .collect()
}

async fn both_ends_know_each_other_the_protocol_and_the_carrier(transport: Transport) {
    let net = Net::new(transport, Settings::default());
    let (near, far) = net.pair().await;
    let ids = [&near, &far].map(|end| end.peer().expect("proved").id.to_string());
    assert_eq!(ids, ["spiffe://td/relay/r", "spiffe://td/default/agent/a"]);
    for end in [&near, &far] {
        assert_eq!(end.alpn(), Some(alpn::SESSION));
        assert_eq!(end.transport(), transport);
        assert_eq!(end.close_reason(), None);
    }
    assert_eq!(near.remote_address(), Some(net.address));
    assert_ne!(near.id(), far.id());
    let told = async {
        while near.rtt().is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    in_time(told).await;
    let joining = tls::join_relay_client(net.ca.pin());
    let (near, far) = tokio::join!(net.dial_at(net.address, joining), net.welcome());
    let far = far.expect("welcomed");
    assert!(near.is_ok() && far.peer().is_none());
    assert_eq!(far.alpn(), Some(alpn::JOIN));
}

async fn bytes_arrive_in_order_and_each_direction_ends_by_itself(transport: Transport) {
    let net = Net::new(transport, Settings::default());
    let (near, far) = net.pair().await;
    for (from, to) in [(&near, &far), (&far, &near)] {
        let (mut opened, mut accepted) = stream(from, to).await;
        let data = bytes(3_000_000);
        let up = async {
            for chunk in data.chunks(50_000) {
                opened.send.write(Bytes::copy_from_slice(chunk)).await?;
            }
            opened.send.finish()
        };
        let (sent, read) = in_time(async { tokio::join!(up, all_of(&mut accepted.recv)) }).await;
        sent.expect("sent");
        assert!(read.expect("a clean end") == data, "the bytes are the same");
        assert_eq!(in_time(opened.send.stopped()).await, Ok(None));
        // The other direction goes on.
        accepted
            .send
            .write(Bytes::from_static(b"late"))
            .await
            .expect("written");
        accepted.send.finish().expect("finished");
        assert_eq!(all_of(&mut opened.recv).await.expect("clean"), b"late");
        assert_eq!(opened.send.finish(), Err(WriteError::Finished));
    }
}

async fn an_end_without_bytes_and_a_half_that_was_dropped_after_its_end_are_clean(
    transport: Transport,
) {
    let net = Net::new(transport, Settings::default());
    let (near, far) = net.pair().await;
    let mut empty = near.open_bi().await.expect("a stream");
    empty.send.finish().expect("finished");
    let mut accepted = in_time(far.accept_bi()).await.expect("a stream");
    assert_eq!(all_of(&mut accepted.recv).await, Ok(Vec::new()));
    let (opened, mut accepted) = stream(&near, &far).await;
    let BiStream { mut send, recv } = opened;
    send.write(Bytes::from(vec![7; 100_000]))
        .await
        .expect("written");
    send.finish().expect("finished");
    drop(send);
    assert_eq!(
        in_time(all_of(&mut accepted.recv))
            .await
            .expect("clean")
            .len(),
        100_000
    );
    drop(recv);
}

async fn resets_and_stops_carry_their_reasons_each_way(transport: Transport) {
    let net = Net::new(transport, Settings::default());
    let (near, far) = net.pair().await;
    for (from, to) in [(&near, &far), (&far, &near)] {
        let (mut opened, mut accepted) = stream(from, to).await;
        opened.send.reset(Reason::TargetRefused);
        let read = in_time(accepted.recv.read_chunk(16)).await;
        assert_eq!(read, Err(ReadError::Reset(Reason::TargetRefused)));
        // The reset of one direction leaves the other alone.
        accepted
            .send
            .write(Bytes::from_static(b"on"))
            .await
            .expect("written");
        let read = in_time(opened.recv.read_chunk(16)).await;
        assert_eq!(read, Ok(Some(Bytes::from_static(b"on"))));
        opened.recv.stop(Reason::PolicyRevoked);
        let stopped = in_time(accepted.send.stopped()).await;
        assert_eq!(stopped, Ok(Some(Reason::PolicyRevoked)));
        let refused = accepted.send.write(Bytes::from_static(b"?")).await;
        assert_eq!(refused, Err(WriteError::Stopped(Reason::PolicyRevoked)));
        // Halves that are dropped in the middle are resets too.
        let (opened, mut accepted) = stream(from, to).await;
        drop(opened);
        let read = in_time(accepted.recv.read_chunk(16)).await;
        assert_eq!(read, Err(ReadError::Reset(Reason::Cancelled)));
        let stopped = in_time(accepted.send.stopped()).await;
        assert_eq!(stopped, Ok(Some(Reason::Cancelled)));
        // `Done` is no reason to give up.
        let (opened, mut accepted) = stream(from, to).await;
        opened.reset(Reason::Done);
        let read = in_time(accepted.recv.read_chunk(16)).await;
        assert_eq!(read, Err(ReadError::Reset(Reason::Unknown)));
    }
}

async fn a_reader_that_waits_hears_of_the_reset(transport: Transport) {
    let net = Net::new(transport, Settings::default());
    let (near, far) = net.pair().await;
    let (mut opened, mut accepted) = stream(&near, &far).await;
    let mut reading = std::pin::pin!(accepted.recv.read_chunk(16));
    assert!(futures_util::poll!(reading.as_mut()).is_pending());
    opened.send.reset(Reason::FarReset);
    assert_eq!(
        in_time(reading).await,
        Err(ReadError::Reset(Reason::FarReset))
    );
}

/// Fills the window of a stream that nobody reads; says how much went in.
async fn fill(send: &mut SendHalf) -> usize {
    let mut filled = 0;
    loop {
        let mut chunk = [Bytes::from(vec![1; 16 * 1024])];
        let write = send.write_all_chunks(&mut chunk);
        let wrote = tokio::time::timeout(Duration::from_millis(200), write).await;
        filled += 16 * 1024 - chunk[0].len();
        if wrote.is_err() {
            return filled;
        }
        assert!(filled < 64 * 1024 * 1024, "a window that has no end");
    }
}

async fn a_slow_reader_stalls_no_other_stream_and_loses_nothing(transport: Transport) {
    let net = Net::new(transport, Settings::default());
    let (near, far) = net.pair().await;
    let (mut slow, mut unread) = stream(&near, &far).await;
    let filled = fill(&mut slow.send).await;
    assert!(filled > 0);
    let (mut quick, mut accepted) = stream(&near, &far).await;
    let data = bytes(2_000_000);
    let up = async {
        quick.send.write(data.clone().into()).await?;
        quick.send.finish()
    };
    let (sent, read) = in_time(async { tokio::join!(up, all_of(&mut accepted.recv)) }).await;
    sent.expect("sent");
    assert!(read.expect("a clean end") == data);
    slow.send.finish().expect("finished");
    assert_eq!(
        in_time(all_of(&mut unread.recv))
            .await
            .expect("clean")
            .len(),
        filled
    );
}

async fn a_writer_without_room_can_reset_and_hears_a_stop(transport: Transport) {
    let net = Net::new(transport, Settings::default());
    let (near, far) = net.pair().await;
    let (mut opened, mut unread) = stream(&near, &far).await;
    fill(&mut opened.send).await;
    opened.send.reset(Reason::NearReset);
    let told = in_time(unread.recv.reset_received()).await;
    assert_eq!(told, Ok(Some(Reason::NearReset)));
    let (mut opened, mut unread) = stream(&near, &far).await;
    fill(&mut opened.send).await;
    let mut writing = std::pin::pin!(opened.send.write(Bytes::from_static(b"more")));
    assert!(futures_util::poll!(writing.as_mut()).is_pending());
    unread.recv.stop(Reason::Overloaded);
    assert_eq!(
        in_time(writing).await,
        Err(WriteError::Stopped(Reason::Overloaded))
    );
}

/// Opens `count` streams at once, writes and reads on each in both directions, and ends them.
async fn many(transport: Transport, count: u32) {
    let net = Net::new(
        transport,
        Settings {
            streams: count,
            idle_timeout: Duration::from_secs(60), // an unoptimised build on a busy machine
            ..Settings::default()
        },
    );
    let (near, far) = net.pair().await;
    let scope = Scope::new("echo");
    let (server, tasks) = (far.clone(), scope.spawner());
    scope.spawn("accept", async move {
        while let Ok(mut accepted) = server.accept_bi().await {
            tasks.spawn("one", async move {
                if let Ok(read) = all_of(&mut accepted.recv).await {
                    accepted.send.write(read.into()).await.ok();
                    accepted.send.finish().ok();
                }
            });
        }
    });
    let all_open = tokio::sync::Barrier::new(usize::try_from(count).expect("small"));
    let talk = (0..count).map(async |n| {
        let mut opened = near.open_bi().await.expect("a stream");
        let text = Bytes::from(format!("stream {n}"));
        opened.send.write(text.clone()).await.expect("written");
        all_open.wait().await;
        opened.send.finish().expect("finished");
        all_of(&mut opened.recv).await.expect("clean") == text
    });
    let all = tokio::time::timeout(Duration::from_secs(100), join_all(talk)).await;
    assert!(all.expect("in time").into_iter().all(|same| same));
}

async fn a_thousand_streams_at_once_each_get_their_own_bytes(transport: Transport) {
    many(transport, 1_000).await;
}

async fn streams_beyond_the_allowed_number_wait_until_others_end(transport: Transport) {
    let net = Net::new(
        transport,
        Settings {
            streams: 2,
            ..Settings::default()
        },
    );
    let (near, far) = net.pair().await;
    let (first, taken) = stream(&near, &far).await;
    let _second = stream(&near, &far).await;
    let mut third = std::pin::pin!(near.open_bi());
    assert!(futures_util::poll!(third.as_mut()).is_pending());
    drop((first, taken));
    let third = in_time(third).await.expect("the place of the first");
    let mut fourth = std::pin::pin!(near.open_bi());
    assert!(futures_util::poll!(fourth.as_mut()).is_pending());
    far.allow_streams(3);
    in_time(fourth).await.expect("one more");
    drop(third);
}

async fn a_thousand_streams_that_are_given_up_free_their_places(transport: Transport) {
    let net = Net::new(
        transport,
        Settings {
            streams: 10,
            ..Settings::default()
        },
    );
    let (near, far) = net.pair().await;
    let scope = Scope::new("drop");
    let server = far.clone();
    scope.spawn("accept", async move {
        while server.accept_bi().await.is_ok() {}
    });
    for _ in 0..1_000 {
        let mut opened = in_time(near.open_bi()).await.expect("a place");
        opened.send.write(Bytes::from_static(b"x")).await.ok(); // it may be stopped already
    }
    assert_eq!(near.close_reason(), None);
}

async fn futures_may_be_dropped_at_every_await(transport: Transport) {
    let net = Net::new(
        transport,
        Settings {
            streams: 4,
            ..Settings::default()
        },
    );
    let (near, far) = net.pair().await;
    for polls in 0..20 {
        let mut open = Box::pin(near.open_bi());
        for _ in 0..polls {
            if futures_util::poll!(open.as_mut()).is_ready() {
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(open);
        let mut accept = Box::pin(far.accept_bi());
        for _ in 0..polls {
            if futures_util::poll!(accept.as_mut()).is_ready() {
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(accept);
    }
    // What the other side opened and gave up is in the queue still.
    let find = async {
        let mut opened = near.open_bi().await.expect("the places came back");
        opened
            .send
            .write(Bytes::from_static(b"found"))
            .await
            .expect("written");
        let accept = async {
            loop {
                let mut accepted = far.accept_bi().await.expect("a stream");
                if let Ok(Some(read)) = accepted.recv.read_chunk(16).await {
                    return (read, accepted);
                }
            }
        };
        (accept.await, opened)
    };
    let ((read, mut accepted), mut opened) = in_time(find).await;
    assert_eq!(read, "found");
    // A read that is given up loses no byte, and a write is where its chunks say.
    let data = bytes(300_000);
    let scope = Scope::new("writer");
    let (sent, mut chunks) = (data.clone(), [Bytes::from(data)]);
    scope.spawn("write", async move {
        while !chunks[0].is_empty() {
            let write = opened.send.write_all_chunks(&mut chunks);
            tokio::time::timeout(Duration::from_micros(300), write)
                .await
                .ok();
        }
        opened.send.finish().ok();
        opened.send.stopped().await.ok();
    });
    let mut read = Vec::new();
    let reading = async {
        loop {
            let chunk = accepted.recv.read_chunk(5_000);
            match tokio::time::timeout(Duration::from_micros(300), chunk).await {
                Ok(Ok(Some(chunk))) => read.extend_from_slice(&chunk),
                Ok(Ok(None)) => return,
                Ok(Err(error)) => panic!("{error}"),
                Err(_elapsed) => {}
            }
        }
    };
    in_time(reading).await;
    assert!(read == sent, "the bytes are the same");
}

async fn a_close_tells_its_reason_and_ends_every_stream_with_it(transport: Transport) {
    let net = Net::new(transport, Settings::default());
    for near_closes in [false, true] {
        let (near, far) = net.pair().await;
        let (mut opened, mut accepted) = stream(&near, &far).await;
        let (closing, other) = if near_closes {
            (&near, &far)
        } else {
            (&far, &near)
        };
        closing.close(Reason::Draining);
        assert_eq!(
            in_time(other.closed()).await,
            Lost::ByPeer(Reason::Draining)
        );
        assert_eq!(closing.close_reason(), Some(Lost::ByUs));
        let (here, there) = if near_closes {
            (&mut opened, &mut accepted)
        } else {
            (&mut accepted, &mut opened)
        };
        let by_peer = Lost::ByPeer(Reason::Draining);
        let read = in_time(all_of(&mut there.recv)).await;
        assert_eq!(read, Err(ReadError::Lost(by_peer.clone())));
        let write = there.send.write(Bytes::from_static(b"?")).await;
        assert_eq!(write, Err(WriteError::Lost(by_peer.clone())));
        let read = in_time(all_of(&mut here.recv)).await;
        assert_eq!(read, Err(ReadError::Lost(Lost::ByUs)));
        assert_eq!(in_time(other.open_bi()).await.expect_err("closed"), by_peer);
        assert_eq!(
            in_time(other.accept_bi()).await.expect_err("closed"),
            by_peer
        );
    }
}

async fn a_connection_that_nobody_holds_closes(transport: Transport) {
    let net = Net::new(transport, Settings::default());
    let (near, far) = net.pair().await;
    let (opened, _accepted) = stream(&near, &far).await;
    drop(near);
    assert_eq!(far.close_reason(), None, "its stream holds it");
    drop(opened);
    assert_eq!(in_time(far.closed()).await, Lost::ByPeer(Reason::Done));
}

async fn an_endpoint_that_closes_tells_its_peers_and_accepts_nobody(transport: Transport) {
    let net = Net::new(transport, Settings::default());
    let (near, _far) = net.pair().await;
    net.udp.1.close(Reason::Draining);
    net.tcp.1.close(Reason::Draining);
    assert_eq!(in_time(near.closed()).await, Lost::ByPeer(Reason::Draining));
    assert!(net.udp.1.accept().await.is_none() && net.tcp.1.accept().await.is_none());
    in_time(net.udp.1.wait_idle()).await;
    in_time(net.tcp.1.wait_idle()).await;
}

async fn an_agent_that_is_not_accepted_learns_why_before_it_believes_to_be_connected(
    transport: Transport,
) {
    let net = Net::new(transport, Settings::default());
    let agent = |from| Leaf {
        from,
        until: -60,
        ..Leaf::of(
            sealock_core::identity::Role::Agent,
            &["spiffe://td/default/agent/a"],
        )
    };
    net.agent.set(net.ca.svid(&agent(-7_200)));
    let (near, far) = tokio::join!(net.dial(), net.welcome());
    let near = near.expect_err("expired");
    let expired = ConnectError::NotAccepted {
        alert: Alert::Expired,
    };
    assert_eq!(near.to_string(), expired.to_string());
    assert_eq!(near.reason(), Reason::NotAdmitted);
    assert!(matches!(far, Err(ConnectError::NotAuthentic(_))), "{far:?}");
    let other = TestCa::new("td");
    let tls = tls::relay_client(&net.agent, &other.trust_store());
    let (near, far) = tokio::join!(net.dial_at(net.address, tls), net.welcome());
    let near = near.expect_err("another root");
    assert!(matches!(near, ConnectError::NotAuthentic(_)), "{near:?}");
    assert_eq!(near.reason(), Reason::PeerNotAuthentic);
    assert!(far.is_err());
}

async fn silence_ends_a_connection_and_keep_alives_keep_it(transport: Transport) {
    let silent = Settings {
        idle_timeout: Duration::from_secs(1),
        keep_alive: Duration::from_secs(60),
        streams: 1,
        ..Settings::default()
    };
    let net = Net::new(transport, silent);
    let (near, far) = net.pair().await;
    let (near, far) = in_time(async { tokio::join!(near.closed(), far.closed()) }).await;
    assert!(near == Lost::Silent || far == Lost::Silent, "{near} {far}");
    assert_eq!(near.reason(), Reason::SessionLost);
    let kept = Settings {
        keep_alive: Duration::from_millis(50),
        ..silent
    };
    let net = Net::new(transport, kept);
    let (near, _far) = net.pair().await;
    let lasted = tokio::time::timeout(Duration::from_millis(2_500), near.closed()).await;
    assert!(lasted.is_err(), "{lasted:?}");
}

/// One test for each carrier.
macro_rules! battery {
    ($($test:ident),+ $(,)?) => {
        mod over_quic {
            $(#[tokio::test] async fn $test() { super::$test(super::Transport::Quic).await; })+
        }
        mod over_tls {
            $(#[tokio::test] async fn $test() { super::$test(super::Transport::Tls).await; })+
        }
        mod over_websocket {
            $(#[tokio::test] async fn $test() { super::$test(super::Transport::Websocket).await; })+
        }
    };
}

battery!(
    both_ends_know_each_other_the_protocol_and_the_carrier,
    bytes_arrive_in_order_and_each_direction_ends_by_itself,
    an_end_without_bytes_and_a_half_that_was_dropped_after_its_end_are_clean,
    resets_and_stops_carry_their_reasons_each_way,
    a_reader_that_waits_hears_of_the_reset,
    a_slow_reader_stalls_no_other_stream_and_loses_nothing,
    a_writer_without_room_can_reset_and_hears_a_stop,
    a_thousand_streams_at_once_each_get_their_own_bytes,
    streams_beyond_the_allowed_number_wait_until_others_end,
    a_thousand_streams_that_are_given_up_free_their_places,
    futures_may_be_dropped_at_every_await,
    a_close_tells_its_reason_and_ends_every_stream_with_it,
    a_connection_that_nobody_holds_closes,
    an_endpoint_that_closes_tells_its_peers_and_accepts_nobody,
    an_agent_that_is_not_accepted_learns_why_before_it_believes_to_be_connected,
    silence_ends_a_connection_and_keep_alives_keep_it,
    bulk_streams_of_one_connection_get_like_shares,
);

mod long {
    macro_rules! ten_thousand {
        ($($name:ident: $transport:ident),+ $(,)?) => {
            $(
                #[tokio::test]
                async fn $name() {
                    super::many(super::Transport::$transport, 10_000).await;
                }
            )+
        };
    }

    ten_thousand!(
        ten_thousand_streams_at_once_over_quic: Quic,
        ten_thousand_streams_at_once_over_tls: Tls,
        ten_thousand_streams_at_once_over_a_websocket: Websocket,
    );
}
