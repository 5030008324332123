//! One suite over every method of capture, each in a namespace of its own.

use std::io::{ErrorKind, Read as _};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use sealock_net::capture::{
    Capture, DatagramReceiver, Method, Plan, StreamListener, probe, remove, reply_socket,
};
use sealock_net::namespace::NetworkNamespace;

const PORTS: [u16; 3] = [22, 443, 50_123];
const PATIENCE: Duration = Duration::from_secs(20); // on loopback, even on a machine that is busy elsewhere

fn plan(method: Method) -> Plan {
    Plan {
        method,
        names: false,
        datagrams: true,
        ports: PORTS.to_vec(),
    }
}

fn captured(plan: &Plan) -> (NetworkNamespace, Capture) {
    let namespace = NetworkNamespace::new().expect("the right to make namespaces");
    let capture = namespace
        .within(|| Capture::install(plan))
        .expect("the namespace is entered")
        .expect("captured");
    (namespace, capture)
}

/// Addresses of the world, of private networks, and of a cloud's metadata.
fn places() -> Vec<SocketAddr> {
    let ips = [
        "8.8.8.8",
        "169.254.169.254",
        "10.1.2.3",
        "2001:db8::7",
        "fd00::1",
        "64:ff9b::808:808",
    ];
    let ips = ips.map(|ip| ip.parse::<IpAddr>().expect("an address"));
    ips.into_iter()
        .flat_map(|ip| PORTS.map(|port| SocketAddr::new(ip, port)))
        .collect()
}

fn connect(namespace: &NetworkNamespace, place: SocketAddr) -> std::io::Result<TcpStream> {
    namespace.within(|| TcpStream::connect_timeout(&place, PATIENCE))?
}

#[tokio::test]
#[ignore = "makes network namespaces: `make test` runs it in the lab"]
async fn in_a_namespace_every_connection_arrives_with_the_address_that_it_was_made_to() {
    for method in Method::ALL {
        let (namespace, capture) = captured(&plan(method));
        let listeners: Vec<StreamListener> = capture
            .sockets
            .streams
            .into_iter()
            .map(|socket| StreamListener::new(socket, method).expect("a listener"))
            .collect();
        for place in places() {
            let _near = connect(&namespace, place)
                .unwrap_or_else(|error| panic!("{} to {place}: {error}", method.as_str()));
            let accepts = listeners.iter().map(|listener| Box::pin(listener.accept()));
            let (accepted, _, _) =
                tokio::time::timeout(PATIENCE, futures_util::future::select_all(accepts))
                    .await
                    .expect("it arrives");
            let arrived = accepted.expect("accepted").destination;
            assert_eq!(arrived, Some(place), "{}", method.as_str());
        }
    }
}

#[tokio::test]
#[ignore = "makes network namespaces: `make test` runs it in the lab"]
async fn in_a_namespace_datagrams_tell_where_they_were_sent_and_are_answered_from_there() {
    for method in Method::ALL {
        if !method.keeps_datagram_destination() {
            continue;
        }
        let (namespace, capture) = captured(&plan(method));
        let sockets: Vec<DatagramReceiver> = capture
            .sockets
            .datagrams
            .into_iter()
            .map(|socket| DatagramReceiver::new(socket).expect("a socket"))
            .collect();
        for place in places() {
            let any = if place.is_ipv4() {
                "0.0.0.0:0"
            } else {
                "[::]:0"
            };
            let sender = namespace
                .within(|| {
                    let socket = UdpSocket::bind(any)?;
                    socket.connect(place)?;
                    socket.set_read_timeout(Some(PATIENCE))?;
                    socket.send(b"question")?;
                    std::io::Result::Ok(socket)
                })
                .expect("the namespace is entered")
                .unwrap_or_else(|error| panic!("{} to {place}: {error}", method.as_str()));
            let mut buffers = vec![[0_u8; 64]; sockets.len()];
            let receives = sockets
                .iter()
                .zip(&mut buffers)
                .map(|(socket, buffer)| Box::pin(socket.receive(buffer)));
            let (received, at, _) =
                tokio::time::timeout(PATIENCE, futures_util::future::select_all(receives))
                    .await
                    .expect("it arrives");
            let datagram = received.expect("received");
            assert_eq!(datagram.destination, place, "{}", method.as_str());
            assert_eq!(&buffers[at][..datagram.length], b"question");
            if method == Method::Anyip {
                continue; // its socket has the port, and answers with the address that it picks
            }
            let reply = namespace
                .within(|| reply_socket(place))
                .expect("entered")
                .expect("a socket at a foreign address");
            reply.send_to(b"answer", datagram.remote).expect("sent");
            let mut answer = [0; 64];
            let length = sender
                .recv(&mut answer)
                .expect("an answer from that very address");
            assert_eq!(&answer[..length], b"answer");
        }
    }
}

#[test]
#[ignore = "makes network namespaces: `make test` runs it in the lab"]
fn in_a_namespace_whose_agent_is_gone_a_connection_is_reset_also_beside_a_listener_of_the_workload()
{
    for method in Method::ALL {
        let (namespace, capture) = captured(&plan(method));
        let first =
            connect(&namespace, "8.8.8.8:443".parse().expect("an address")).expect("captured");
        drop(capture); // as the kernel does for an agent that was killed
        for place in places() {
            let refused = connect(&namespace, place).expect_err("nobody is there");
            assert_eq!(
                refused.kind(),
                ErrorKind::ConnectionRefused,
                "{} {place}",
                method.as_str()
            );
        }
        let mut first = first;
        first.set_read_timeout(Some(PATIENCE)).expect("set");
        let ended = first.read(&mut [0; 1]);
        assert!(!matches!(ended, Ok(1..)), "{ended:?}");
        if method == Method::Anyip || method == Method::Redirect {
            continue; // theirs may be answered by the workload itself; nothing leaves all the same
        }
        let own = namespace.within(|| std::net::TcpListener::bind("[::]:443"));
        let _own = own.expect("entered").expect("bound");
        let place = "1.1.1.1:443".parse().expect("an address");
        let refused = connect(&namespace, place).expect_err("not answered in the world's name");
        assert_eq!(
            refused.kind(),
            ErrorKind::ConnectionRefused,
            "{}",
            method.as_str()
        );
    }
}

#[tokio::test]
#[ignore = "makes network namespaces: `make test` runs it in the lab"]
async fn in_a_namespace_our_own_socket_tells_a_visitor_from_a_captured_connection() {
    for method in [Method::AnyipTproxy, Method::Redirect, Method::Tproxy] {
        let (namespace, mut capture) = captured(&plan(method));
        let socket = std::net::TcpListener::from(capture.sockets.streams.remove(0));
        let ours = socket.local_addr().expect("bound");
        let listener = StreamListener::new(socket.into(), method).expect("a listener");
        let _near = connect(&namespace, ours).expect("it listens");
        let accepted = tokio::time::timeout(PATIENCE, listener.accept()).await;
        let visitor = accepted.expect("in time").expect("accepted");
        assert_eq!(visitor.destination, None, "{}", method.as_str());
    }
}

#[test]
#[ignore = "makes network namespaces: `make test` runs it in the lab"]
fn in_a_namespace_with_what_a_crash_left_a_second_run_begins_and_removal_leaves_nothing() {
    for method in Method::ALL {
        let (namespace, capture) = captured(&plan(method));
        drop(capture);
        let again = namespace
            .within(|| Capture::install(&plan(method)))
            .expect("entered")
            .unwrap_or_else(|error| panic!("{}: {error:?}", method.as_str()));
        let in_force = || {
            let rules = again.rules.as_ref()?;
            let told = namespace.within(|| rules.are_in_force()).expect("entered");
            Some(told.expect("nft answers"))
        };
        assert_ne!(in_force(), Some(false), "{}", method.as_str());
        namespace.within(remove).expect("entered").expect("removed");
        assert_ne!(in_force(), Some(true), "{}", method.as_str());
        let unreachable = connect(&namespace, "8.8.8.8:443".parse().expect("an address"))
            .expect_err("no route is left");
        assert_eq!(
            unreachable.kind(),
            ErrorKind::NetworkUnreachable,
            "{}",
            method.as_str()
        );
    }
}

#[test]
#[ignore = "makes network namespaces: `make test` runs it in the lab"]
fn in_a_namespace_a_change_of_the_rules_is_noticed() {
    let (namespace, capture) = captured(&Plan::usual());
    let changed = namespace.within(|| {
        std::process::Command::new("/usr/sbin/nft")
            .args(["flush", "chain", "inet", "sealock_capture", "arriving"])
            .status()
    });
    assert!(changed.expect("entered").expect("nft runs").success());
    let rules = capture.rules.expect("it has some");
    let stands = namespace.within(|| rules.are_in_force()).expect("entered");
    assert!(!stands.expect("nft answers"));
}

#[test]
#[ignore = "makes network namespaces: `make test` runs it in the lab"]
fn in_a_namespace_every_method_of_this_kernel_is_found_to_work() {
    let namespace = NetworkNamespace::new().expect("the right to make namespaces");
    let found = namespace.within(probe).expect("entered");
    assert_eq!(found.len(), Method::ALL.len());
    for finding in found {
        assert_eq!(finding.obstacle, None, "{}", finding.method.as_str());
    }
}
