//! What the way under a connection over TCP can do: be cut, or take everything and bring nothing.

use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::watch;

use super::*;

/// What passes between the two ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Open,
    /// Takes what comes in these directions and passes nothing on, not even an end.
    Swallows {
        up: bool,
        down: bool,
    },
    /// Keeps everything back for now.
    Holds,
    Cut,
}

impl Way {
    fn swallows(self, direction: Direction) -> bool {
        match (self, direction) {
            (Self::Swallows { up, .. }, Direction::Up) => up,
            (Self::Swallows { down, .. }, Direction::Down) => down,
            (Self::Open | Self::Holds | Self::Cut, _) => false,
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Direction {
    Up,
    Down,
}

/// A TCP connection that goes through here, and that can be cut, or stopped from passing anything on.
async fn between(scope: &Scope, target: SocketAddr, way: watch::Receiver<Way>) -> SocketAddr {
    let listener = TcpListener::bind(LOOPBACK).await.expect("a port");
    let address = listener.local_addr().expect("bound");
    scope.spawn("between", async move {
        let (near, _) = listener.accept().await.expect("accepted");
        let far = TcpStream::connect(target).await.expect("connected");
        let (mut near_reader, mut near_writer) = near.into_split();
        let (mut far_reader, mut far_writer) = far.into_split();
        let mut cut = way.clone();
        tokio::select! { // order is free: all end in the same
            () = pass(&mut near_reader, &mut far_writer, Direction::Up, &way) => {}
            () = pass(&mut far_reader, &mut near_writer, Direction::Down, &way) => {}
            _ = cut.wait_for(|way| *way == Way::Cut) => {}
        }
    });
    address
}

async fn pass(
    from: &mut OwnedReadHalf,
    to: &mut OwnedWriteHalf,
    direction: Direction,
    way: &watch::Receiver<Way>,
) {
    let mut piece = [0; 16 * 1024];
    let mut open = way.clone();
    while let Ok(length) = from.read(&mut piece).await {
        if open.wait_for(|way| *way != Way::Holds).await.is_err() {
            return; // the test is over
        }
        let swallows = way.borrow().swallows(direction);
        if length == 0 && swallows {
            std::future::pending::<()>().await; // an end is swallowed too
        }
        if length == 0 {
            return;
        }
        if !swallows && to.write_all(&piece[..length]).await.is_err() {
            return;
        }
    }
}

/// Two ends with a stream, and the way between them.
struct Ends {
    near: (Connection, BiStream),
    far: (Connection, BiStream),
    way: watch::Sender<Way>,
    _scope: Scope,
    _net: Net,
}

async fn ends(transport: Transport) -> Ends {
    let net = Net::new(transport, Settings::default());
    let scope = Scope::new("test");
    let (tell, way) = watch::channel(Way::Open);
    let address = between(&scope, net.address, way).await;
    let tls = tls::relay_client(&net.agent, &net.trust);
    let (near, far) = tokio::join!(net.dial_at(address, tls), net.welcome());
    let (near, far) = (near.expect("connected"), far.expect("welcomed"));
    let (opened, accepted) = stream(&near, &far).await;
    Ends {
        near: (near, opened),
        far: (far, accepted),
        way: tell,
        _scope: scope,
        _net: net,
    }
}

const OVER_TCP: [Transport; 2] = [Transport::Tls, Transport::Websocket];

// K3, F07: what the network does is never an end of a stream.
#[tokio::test]
async fn a_cut_tcp_connection_is_an_error_and_never_an_end() {
    for transport in OVER_TCP {
        let mut ends = ends(transport).await;
        ends.way.send_replace(Way::Cut);
        assert_eq!(in_time(ends.near.0.closed()).await, Lost::Cut);
        assert_eq!(in_time(ends.far.0.closed()).await, Lost::Cut);
        for recv in [&mut ends.near.1.recv, &mut ends.far.1.recv] {
            assert_eq!(recv.read_chunk(1).await, Err(ReadError::Lost(Lost::Cut)));
        }
        assert_eq!(Lost::Cut.reason(), Reason::SessionLost);
    }
}

/// Two seconds, and what a machine that builds besides takes; the same as over QUIC.
const NOTICED: Duration = Duration::from_millis(2_800);
/// What a living peer may be silent for.
const TOO_SOON: Duration = Duration::from_millis(1_400);

/// How each end was lost, and after what time.
async fn both_lost(near: &Connection, far: &Connection) -> [(Duration, Lost); 2] {
    let began = Instant::now();
    let end = async |connection: &Connection| {
        let lost = connection.closed().await;
        (began.elapsed(), lost)
    };
    let both = async { tokio::join!(end(near), end(far)) };
    let both = tokio::time::timeout(3 * NOTICED, both).await;
    both.expect("noticed").into()
}

/// Goes on writing for as long as it is taken.
async fn write_on(send: &mut SendHalf) -> WriteError {
    loop {
        let chunk = Bytes::from_static(&[0; 16 * 1024]);
        if let Err(error) = send.write(chunk).await {
            return error;
        }
    }
}

// F16, lesson «a path is alive because a write succeeded»: with what is set by default, within the same time as over
// QUIC, whether somebody writes all the while or nobody does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_over_tcp_that_only_swallows_is_dead_within_two_seconds_at_both_ends() {
    let swallows = async |transport, busy| {
        let mut ends = ends(transport).await;
        let (near, far) = (ends.near.0.clone(), ends.far.0.clone());
        ends.way.send_replace(Way::Swallows {
            up: true,
            down: true,
        });
        let write = async {
            if busy {
                let (up, down) = (&mut ends.near.1.send, &mut ends.far.1.send);
                let ended = tokio::join!(write_on(up), write_on(down));
                let silent = WriteError::Lost(Lost::Silent);
                assert_eq!(ended, (silent.clone(), silent), "{transport}");
            }
        };
        let (lost, ()) = tokio::join!(both_lost(&near, &far), write);
        for (after, lost) in lost {
            assert_eq!(lost, Lost::Silent, "{transport}, busy: {busy}");
            assert!(
                after > TOO_SOON && after < NOTICED,
                "{transport}, busy: {busy}: {after:?}"
            );
        }
        let read = ends.near.1.recv.read_chunk(1).await;
        assert_eq!(read, Err(ReadError::Lost(Lost::Silent)), "{transport}");
    };
    tokio::join!(
        swallows(Transport::Tls, false),
        swallows(Transport::Tls, true),
        swallows(Transport::Websocket, false),
        swallows(Transport::Websocket, true),
    );
}

// F16: whichever way it is that is lost. The end that hears nothing hangs up, which the other one is told by TCP.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_over_tcp_that_carries_one_way_only_is_dead_within_two_seconds() {
    let one_way = async |transport, up: bool| {
        let ends = ends(transport).await;
        ends.way.send_replace(Way::Swallows { up, down: !up });
        for (after, lost) in both_lost(&ends.near.0, &ends.far.0).await {
            assert!(
                [Lost::Silent, Lost::Cut].contains(&lost),
                "{transport}, up: {up}: {lost:?}"
            );
            assert!(after < NOTICED, "{transport}, up: {up}: {after:?}");
        }
    };
    tokio::join!(
        one_way(Transport::Tls, true),
        one_way(Transport::Tls, false),
        one_way(Transport::Websocket, true),
        one_way(Transport::Websocket, false),
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_over_tcp_lives_through_gaps_below_the_limit() {
    let gaps = async |transport| {
        let ends = ends(transport).await;
        for _ in 0..2 {
            ends.way.send_replace(Way::Holds);
            tokio::time::sleep(Duration::from_secs(1)).await;
            ends.way.send_replace(Way::Open);
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        assert_eq!(ends.near.0.close_reason(), None, "{transport}");
        assert_eq!(ends.far.0.close_reason(), None, "{transport}");
    };
    tokio::join!(gaps(Transport::Tls), gaps(Transport::Websocket));
}
