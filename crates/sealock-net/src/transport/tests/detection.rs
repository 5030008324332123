//! How soon each end notices that the other is gone, and that it notices nothing where nothing is.

use super::*;

/// Passes packets between a client and a server, or loses them.
struct Between {
    front: SocketAddr,
    loses: tokio::sync::watch::Sender<Loses>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Loses {
    up: bool,
    down: bool,
}

async fn between(scope: &Scope, target: SocketAddr) -> Between {
    let front = UdpSocket::bind(LOOPBACK).await.expect("a port");
    let back = UdpSocket::bind(LOOPBACK).await.expect("a port");
    let address = front.local_addr().expect("bound");
    let (loses, current) = tokio::sync::watch::channel(Loses::default());
    scope.spawn("between", async move {
        let (mut up, mut down) = (vec![0; 65_536], vec![0; 65_536]);
        let mut client = None;
        loop {
            tokio::select! { // order is free: packets may be reordered
                Ok((length, from)) = front.recv_from(&mut up) => {
                    client = Some(from);
                    if !current.borrow().up {
                        back.send_to(&up[..length], target).await.ok();
                    }
                }
                Ok((length, _)) = back.recv_from(&mut down) => {
                    if let Some(client) = client.filter(|_| !current.borrow().down) {
                        front.send_to(&down[..length], client).await.ok();
                    }
                }
            }
        }
    });
    Between {
        front: address,
        loses,
    }
}

/// The two ends of a connection over [`Between`], with a stream that the client opened.
struct Ends {
    near: (Connection, BiStream),
    far: (Connection, BiStream),
    between: Between,
    _scope: Scope,
    _net: Net,
}

async fn ends() -> Ends {
    let scope = Scope::new("test");
    let mut net = Net::new(Settings::default());
    let between = between(&scope, net.address).await;
    net.address = between.front;
    let (near, far) = net.stream().await;
    Ends {
        near,
        far,
        between,
        _scope: scope,
        _net: net,
    }
}

/// When each end was lost, and how.
async fn both_lost(ends: &Ends, within: Duration) -> [(Duration, Lost); 2] {
    let begin = Instant::now();
    let end = |connection: Connection| async move {
        let lost = connection.closed().await;
        (begin.elapsed(), lost)
    };
    let both = async { tokio::join!(end(ends.near.0.clone()), end(ends.far.0.clone())) };
    let (near, far) = tokio::time::timeout(within, both).await.expect("noticed");
    [near, far]
}

// Two seconds, and what a machine that builds besides takes.
const NOTICED: Duration = Duration::from_millis(2_800);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_that_swallows_everything_is_dead_within_two_seconds_at_both_ends() {
    let mut ends = ends().await;
    ends.between.loses.send_replace(Loses {
        up: true,
        down: true,
    });
    let lost = both_lost(&ends, 3 * NOTICED).await;
    for (after, lost) in &lost {
        assert_eq!(*lost, Lost::Silent);
        assert!(
            *after > Duration::from_millis(1_400) && *after < NOTICED,
            "{after:?}"
        );
    }
    // The streams know why, too: nobody wished so.
    let read = ends.near.1.recv.read_chunk(1).await;
    assert_eq!(read, Err(ReadError::Lost(Lost::Silent)));
    let written = ends.far.1.send.write(Bytes::from_static(b"x")).await;
    assert_eq!(written, Err(WriteError::Lost(Lost::Silent)));
}

// F16: whichever way it is that is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_that_carries_one_way_only_is_dead_within_two_seconds() {
    for loses in [
        Loses {
            up: true,
            down: false,
        },
        Loses {
            up: false,
            down: true,
        },
    ] {
        let ends = ends().await;
        ends.between.loses.send_replace(loses);
        let [(near_after, near), (far_after, far)] = both_lost(&ends, 3 * NOTICED).await;
        assert!(near_after < NOTICED, "{loses:?}: {near_after:?}");
        assert!(far_after < NOTICED, "{loses:?}: {far_after:?}");
        // The first one to notice tells the other, where that is heard.
        let told = Lost::ByPeer(Reason::SessionLost);
        assert!(
            [Lost::Silent, told.clone()].contains(&near),
            "{loses:?}: {near:?}"
        );
        assert!([Lost::Silent, told].contains(&far), "{loses:?}: {far:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_with_streams_that_say_nothing_lives_through_gaps_below_the_limit() {
    let ends = ends().await;
    for _ in 0..3 {
        ends.between.loses.send_replace(Loses {
            up: true,
            down: true,
        });
        tokio::time::sleep(Duration::from_millis(1_000)).await;
        ends.between.loses.send_replace(Loses::default());
        tokio::time::sleep(Duration::from_millis(1_000)).await;
    }
    assert_eq!(ends.near.0.close_reason(), None);
    assert_eq!(ends.far.0.close_reason(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_whose_streams_only_stand_by_is_given_the_time_of_an_idle_one() {
    let ends = ends().await;
    ends.near.1.stand_by();
    ends.far.1.stand_by();
    ends.between.loses.send_replace(Loses {
        up: true,
        down: true,
    });
    tokio::time::sleep(NOTICED).await;
    assert_eq!(ends.near.0.close_reason(), None);
    assert_eq!(ends.far.0.close_reason(), None);
    // The next stream finds out: whoever waits for it waits for two seconds and not for the rest of an idle time.
    let begin = Instant::now();
    let _stream = ends.near.0.open_bi().await.expect("nobody knows yet");
    assert_eq!(ends.near.0.closed().await, Lost::Silent);
    assert!(begin.elapsed() < NOTICED, "{:?}", begin.elapsed());
}

// A process that ends takes its port with it, and its machine says so.
#[test]
fn a_peer_whose_process_is_gone_is_told_from_one_that_is_silent() {
    let runtime = || tokio::runtime::Runtime::new().expect("a runtime");
    for listener_dies in [true, false] {
        let (stays, dies) = (runtime(), runtime());
        let (server, client) = if listener_dies {
            (&dies, &stays)
        } else {
            (&stays, &dies)
        };
        let ca = TestCa::new("td");
        let trust = ca.trust_store();
        let guard = server.enter();
        let keys = TransportKeys::generate();
        let endpoint = listen(&ca, &trust, LOOPBACK, &keys, Settings::default());
        drop(guard);
        let address = endpoint.local_addr().expect("bound");
        let far = server.spawn(async move {
            let incoming = endpoint.accept().await.expect("open");
            let far = incoming.handshake(soon()).await.expect("welcomed");
            let mut stream = far.accept_bi().await.expect("a stream");
            stream.recv.read_chunk(1).await.expect("read");
            (far, stream, endpoint)
        });
        let tls = tls::relay_client(&ca.identity("default/agent/a"), &trust);
        let near = client.spawn(async move {
            let endpoint = Endpoint::client(Settings::default()).expect("an endpoint");
            let near = endpoint.connect(address, tls, soon()).await.expect("there");
            let mut stream = near.open_bi().await.expect("open");
            stream
                .send
                .write(Bytes::from_static(b"x"))
                .await
                .expect("ok");
            (near, stream, endpoint)
        });
        let (near, far) =
            stays.block_on(async { (near.await.expect("ok"), far.await.expect("ok")) });
        let (survivor, dead) = if listener_dies {
            (near, far)
        } else {
            (far, near)
        };
        // Without its runtime it cannot say goodbye; what is left of it is its open socket.
        dies.shutdown_timeout(SOON);
        let begin = std::time::Instant::now();
        drop(dead);
        let ended = stays.block_on(async { tokio::time::timeout(SOON, survivor.0.closed()).await });
        assert_eq!(ended.expect("noticed"), Lost::PeerGone, "{listener_dies}");
        let after = begin.elapsed();
        assert!(
            after > Duration::from_millis(700) && after < NOTICED,
            "{after:?}"
        );
        stays.shutdown_background();
    }
}

#[tokio::test]
async fn a_relay_that_does_not_run_is_known_to_be_away_at_once() {
    let net = Net::new(Settings::default());
    let nobody = UdpSocket::bind(LOOPBACK).await.expect("a port");
    let address = nobody.local_addr().expect("bound");
    drop(nobody);
    let tls = tls::relay_client(&net.agent, &net.trust);
    let begin = Instant::now();
    let error = net.client.connect(address, tls, soon()).await;
    assert!(
        matches!(error, Err(ConnectError::Lost(Lost::PeerGone))),
        "{error:?}"
    );
    assert!(begin.elapsed() < Duration::from_secs(2));
    assert!(error.is_err_and(|error| error.is_transient()));
}

// Issue 3, drain of the only relay: its next process listens a moment after a dial that came too early.
#[tokio::test]
async fn a_relay_that_listens_a_moment_later_is_reached_by_the_dial_that_was_refused() {
    let net = Net::new(Settings::default());
    // An address of this process alone: nobody else takes the port meanwhile.
    let [_, second, third, fourth] = std::process::id().to_be_bytes();
    let own = std::net::Ipv4Addr::new(127, 128 | second, third, fourth);
    let nobody = UdpSocket::bind((own, 0)).await.expect("a port");
    let address = nobody.local_addr().expect("bound");
    drop(nobody);
    let keys = TransportKeys::generate();
    let next = async {
        // On this one thread the first packet has left when the timer fires, and nothing is tried while the socket is made.
        tokio::time::sleep(Duration::from_millis(5)).await;
        let server = listen(
            &net.ca,
            &net.trust,
            &address.to_string(),
            &keys,
            Settings::default(),
        );
        let incoming = server.accept().await.expect("open");
        incoming.handshake(soon()).await.expect("welcomed")
    };
    let tls = tls::relay_client(&net.agent, &net.trust);
    let dialled = net.client.connect(address, tls, soon());
    let (near, _far) = tokio::join!(dialled, next);
    near.expect("connected");
}
