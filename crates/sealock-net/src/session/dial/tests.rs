//! The ladder on loopback: real endpoints, UDP that is black-holed by a socket that reads nothing, and its healing.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

use sealock_core::config::Upstreams;

use super::*;
use crate::identity::testing::TestCa;
use crate::task::Scope;
use crate::transport::{Endpoint, Settings, TcpEndpoint, TransportKeys};

struct Net {
    ca: TestCa,
    trust: TrustStore,
    dialer: Dialer,
}

impl Net {
    fn new(transports: &[Transport], upstreams: Upstreams) -> Self {
        let ca = TestCa::new("td");
        let trust = ca.trust_store();
        let plan = Plan {
            transports: transports.to_vec(),
            upstreams,
        };
        let ways = plan.open(Settings::default()).expect("a socket");
        let dialer = Dialer::for_sessions(ways, &ca.identity("default/agent/a"), &trust);
        Self { ca, trust, dialer }
    }

    fn quic(&self, address: SocketAddr, scope: &Scope) {
        let tls = tls::relay_listener(&self.ca.identity("relay/r"), &self.trust);
        let keys = TransportKeys::generate();
        let endpoint = Endpoint::server(address, tls, Settings::default(), &keys);
        let endpoint = endpoint.expect("a free port");
        scope.spawn("quic", async move {
            let mut kept = Vec::new();
            while let Some(incoming) = endpoint.accept().await {
                kept.push(incoming.handshake(soon()).await);
            }
        });
    }

    fn tcp(&self, address: SocketAddr, scope: &Scope) -> SocketAddr {
        let tls = tls::relay_tcp_listener(&self.ca.identity("relay/r"), &self.trust);
        let endpoint = TcpEndpoint::server(address, tls, Settings::default());
        let endpoint = endpoint.expect("a free port");
        let address = endpoint.local_addr().expect("bound");
        scope.spawn("tcp", async move {
            let mut kept = Vec::new();
            while let Some(incoming) = endpoint.accept().await {
                kept.push(incoming.handshake(soon()).await);
            }
        });
        address
    }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().expect("an address")
}

/// A port that is black-holed over UDP: somebody has it and reads nothing. At an address of this process alone, or the
/// TCP port of the same number could be taken meanwhile by a connection of another one.
fn black_hole() -> (UdpSocket, SocketAddr) {
    let [_, second, third, fourth] = std::process::id().to_be_bytes();
    let own = Ipv4Addr::new(127, 128 | second, third, fourth);
    let hole = UdpSocket::bind((own, 0)).expect("a port");
    let address = hole.local_addr().expect("bound");
    (hole, address)
}

async fn dialled(net: &Net, address: SocketAddr) -> Connection {
    let relay = HostPort::from(address);
    net.dialer.dial(&relay).await.expect("connected")
}

#[tokio::test]
async fn the_best_transport_wins_where_all_get_through() {
    let net = Net::new(Transport::ALL, Upstreams::default());
    let scope = Scope::new("relay");
    let address = net.tcp(loopback(), &scope);
    net.quic(address, &scope);
    let connection = dialled(&net, address).await;
    assert_eq!(connection.transport(), Transport::Quic);
    let relay = HostPort::from(address);
    assert_eq!(net.dialer.passed_over(&relay, Transport::Quic), []);
}

// A4, F21: UDP that is black-holed at the start costs less than a second, and it is climbed to when it heals.
#[tokio::test]
async fn black_holed_udp_costs_a_moment_and_is_climbed_to_when_it_heals() {
    let net = Net::new(Transport::ALL, Upstreams::default());
    let scope = Scope::new("relay");
    let (hole, address) = black_hole();
    net.tcp(address, &scope);
    let began = Instant::now();
    let connection = dialled(&net, address).await;
    assert_eq!(connection.transport(), Transport::Tls);
    assert!(
        began.elapsed() < Duration::from_secs(1),
        "{:?}",
        began.elapsed()
    );
    let relay = HostPort::from(address);
    let passed = net.dialer.passed_over(&relay, Transport::Tls);
    assert_eq!(passed.len(), 1, "{passed:?}");
    assert_eq!(passed[0].transport, Transport::Quic);
    drop(hole);
    net.quic(address, &scope);
    let better = net.dialer.better(&relay, &connection);
    let better = tokio::time::timeout(Duration::from_secs(30), better).await;
    assert_eq!(better.expect("healed").transport(), Transport::Quic);
    assert_eq!(net.dialer.passed_over(&relay, Transport::Quic), []);
}

#[tokio::test]
async fn only_the_transports_that_may_be_used_are_tried() {
    for only in [Transport::Tls, Transport::Websocket] {
        let net = Net::new(&[only], Upstreams::default());
        let scope = Scope::new("relay");
        let address = net.tcp(loopback(), &scope);
        net.quic(address, &scope);
        let connection = dialled(&net, address).await;
        assert_eq!(connection.transport(), only);
        let relay = HostPort::from(address);
        let mut better = std::pin::pin!(net.dialer.better(&relay, &connection));
        assert!(futures_util::poll!(better.as_mut()).is_pending());
    }
}

#[tokio::test]
async fn a_relay_that_is_back_within_the_race_is_reached_by_it() {
    let net = Net::new(&[Transport::Quic, Transport::Tls], Upstreams::default());
    let scope = Scope::new("relay");
    let (_hole, address) = black_hole();
    let back = async {
        tokio::time::sleep(Duration::from_millis(600)).await;
        net.tcp(address, &scope);
    };
    let (connection, ()) = tokio::join!(dialled(&net, address), back);
    assert_eq!(connection.transport(), Transport::Tls);
}

#[tokio::test]
async fn nobody_there_is_told_and_says_why_by_transport() {
    let net = Net::new(
        &[Transport::Tls, Transport::Websocket],
        Upstreams::default(),
    );
    let (_hole, address) = black_hole();
    let error = net
        .dialer
        .dial(&HostPort::from(address))
        .await
        .expect_err("nobody");
    assert!(
        matches!(error, DialError::Connect(ConnectError::Tcp(_))),
        "{error:?}"
    );
    assert_eq!(error.reason(), Reason::RelayUnreachable);
}

// A5: with a proxy, what runs over TCP goes through it, under the relay's name.
#[tokio::test]
async fn tcp_goes_through_the_proxy_with_its_login() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let scope = Scope::new("proxy");
    let listener = tokio::net::TcpListener::bind(loopback())
        .await
        .expect("a port");
    let proxy = listener.local_addr().expect("bound");
    let upstream = format!("http://user:pass@{proxy}")
        .parse()
        .expect("a proxy");
    let transports = [Transport::Tls, Transport::Websocket];
    let net = Net::new(&transports, Upstreams::new(Some(upstream), ""));
    let target = net.tcp(loopback(), &scope);
    scope.spawn("proxy", async move {
        let (mut near, _) = listener.accept().await.expect("accepted");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(near.read_u8().await.expect("a head"));
        }
        let head = String::from_utf8(head).expect("text");
        assert!(
            head.starts_with("CONNECT relay.invalid:443 HTTP/1.1\r\n"),
            "{head}"
        );
        assert!(head.contains("Proxy-Authorization: Basic dXNlcjpwYXNz\r\n"));
        near.write_all(b"HTTP/1.1 200 OK\r\n\r\n")
            .await
            .expect("written");
        let mut far = TcpStream::connect(target).await.expect("connected");
        tokio::io::copy_bidirectional(&mut near, &mut far)
            .await
            .ok();
    });
    let relay = "relay.invalid:443".parse().expect("an address");
    let connection = net.dialer.dial(&relay).await.expect("through the proxy");
    assert_eq!(connection.transport(), Transport::Tls);
}
