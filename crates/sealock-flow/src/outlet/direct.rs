//! A TCP connection to the program behind a service: the addresses of its name, each a little after the one before,
//! until one answers (RFC 8305).

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use sealock_core::address::HostPort;
use sealock_core::reason::Reason;
use sealock_net::names::{self, NameError};
use tokio::net::TcpStream;

/// How long one address may take.
const ADDRESS_DEADLINE: Duration = Duration::from_secs(5); // two retransmitted SYNs; a black hole must not eat it all
/// How many addresses of a name are tried.
const ADDRESS_LIMIT: usize = 4;
/// How long an address has the race for itself.
const STAGGER: Duration = Duration::from_millis(250); // RFC 8305 §5

/// Connects to the target.
///
/// # Errors
/// Refused, unreachable or too slow; the last address decides.
pub async fn open(target: &HostPort) -> Result<TcpStream, Reason> {
    first(addresses(target).await?).await
}

/// Connects to the first of the addresses that answers: one after the other, a next one as soon as one failed or had
/// its time.
///
/// # Errors
/// Refused, unreachable or too slow; the last address to fail decides.
pub(super) async fn first(addresses: Vec<SocketAddr>) -> Result<TcpStream, Reason> {
    let mut waiting = interleaved(addresses).into_iter().take(ADDRESS_LIMIT);
    let mut dialled = FuturesUnordered::new();
    let mut last = Reason::TargetUnreachable;
    loop {
        if let Some(address) = waiting.next() {
            dialled.push(dial(address));
        } else if dialled.is_empty() {
            return Err(last);
        }
        let answer = async {
            match waiting.len() {
                0 => dialled.next().await,
                _ => tokio::time::timeout(STAGGER, dialled.next())
                    .await
                    .unwrap_or_default(),
            }
        };
        match answer.await {
            Some(Ok(stream)) => return Ok(stream),
            Some(Err(reason)) => last = reason,
            None => {}
        }
    }
}

/// The addresses with their families in turn, the first one's first (RFC 8305 §4).
fn interleaved(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let is_like_first = addresses.first().map(SocketAddr::is_ipv4);
    let (mut ours, mut others): (VecDeque<_>, VecDeque<_>) = addresses
        .into_iter()
        .partition(|address| Some(address.is_ipv4()) == is_like_first);
    let mut turns = Vec::new();
    while !ours.is_empty() || !others.is_empty() {
        turns.extend(ours.pop_front());
        turns.extend(others.pop_front());
    }
    turns
}

/// The addresses of a host.
///
/// # Errors
/// When it has none, or nobody can tell.
pub(super) async fn addresses(target: &HostPort) -> Result<Vec<SocketAddr>, Reason> {
    names::lookup(target).await.map_err(|error| {
        tracing::debug!(err = %error, "the target's name has no address");
        match error {
            NameError::Slow => Reason::TargetTimeout,
            NameError::Unknown | NameError::Failed(_) | NameError::Busy => {
                Reason::TargetUnreachable
            }
        }
    })
}

async fn dial(address: SocketAddr) -> Result<TcpStream, Reason> {
    match tokio::time::timeout(ADDRESS_DEADLINE, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => {
            // Small writes of an application must not wait for acknowledgements that we hide from it.
            stream
                .set_nodelay(true)
                .map_err(|_| Reason::TargetUnreachable)?;
            Ok(stream)
        }
        Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => {
            Err(Reason::TargetRefused)
        }
        Ok(Err(error)) if error.kind() == ErrorKind::TimedOut => Err(Reason::TargetTimeout),
        Ok(Err(error)) => {
            tracing::debug!(err = %error, "the target cannot be reached");
            Err(Reason::TargetUnreachable)
        }
        Err(_elapsed) => Err(Reason::TargetTimeout),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use socket2::{Domain, Socket, Type};

    use super::*;

    fn target(address: SocketAddr) -> HostPort {
        HostPort::from(address)
    }

    /// A listener whose queue is full: the kernel answers no further SYN.
    fn full_listener() -> (Socket, Vec<Socket>, SocketAddr) {
        let tcp = || Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let listener = tcp();
        listener.bind(&any.into()).expect("loopback");
        listener.listen(0).expect("listens");
        let bound = listener.local_addr().expect("bound");
        let waiting = (0..3).map(|_| {
            let socket = tcp();
            socket.set_nonblocking(true).expect("a flag");
            let _in_progress = socket.connect(&bound);
            socket
        });
        let waiting = waiting.collect();
        let address = bound.as_socket().expect("an IP address");
        (listener, waiting, address)
    }

    // F09: the clock is virtual, so this takes no time.
    #[tokio::test(start_paused = true)]
    async fn a_target_that_never_answers_is_a_timeout() {
        let (_listener, _waiting, address) = full_listener();
        let opened = open(&target(address)).await;
        assert_eq!(opened.err(), Some(Reason::TargetTimeout));
    }

    #[test]
    fn the_families_take_turns_and_the_first_one_begins() {
        let read = |text: &str| text.parse::<SocketAddr>().expect(text);
        let given = ["[::1]:1", "[::2]:1", "[::3]:1", "1.1.1.1:1"].map(read);
        let turns = ["[::1]:1", "1.1.1.1:1", "[::2]:1", "[::3]:1"].map(read);
        assert_eq!(interleaved(given.to_vec()), turns);
        assert_eq!(interleaved(Vec::new()), []);
    }

    // F23: a family that swallows packets costs a quarter of a second, not the whole deadline.
    #[tokio::test(start_paused = true)]
    async fn a_silent_address_is_passed_by_after_its_stagger() {
        let (_silent, _waiting, silent) = full_listener();
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let open = tokio::net::TcpListener::bind(any).await.expect("loopback");
        let open = open.local_addr().expect("bound");
        let began = tokio::time::Instant::now();
        let stream = first(vec![silent, open]).await;
        assert_eq!(stream.ok().and_then(|it| it.peer_addr().ok()), Some(open));
        assert!(began.elapsed() < ADDRESS_DEADLINE);
    }

    #[tokio::test]
    async fn a_target_without_a_listener_is_refused() {
        let (listener, _waiting, address) = full_listener();
        drop(listener);
        assert_eq!(
            open(&target(address)).await.err(),
            Some(Reason::TargetRefused)
        );
    }
}
