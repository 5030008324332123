//! A TCP connection to the program behind a service: every address of its name in turn, until one answers.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use sealock_core::address::HostPort;
use sealock_core::reason::Reason;
use sealock_net::names::{self, NameError};
use tokio::net::TcpStream;

/// How long one address may take.
const ADDRESS_DEADLINE: Duration = Duration::from_secs(5); // two retransmitted SYNs; a black hole must not eat it all
/// How many addresses of a name are tried.
const ADDRESS_LIMIT: usize = 4;

/// Connects to the target.
///
/// # Errors
/// Refused, unreachable or too slow; the last address decides.
pub async fn open(target: &HostPort) -> Result<TcpStream, Reason> {
    let mut last = Reason::TargetUnreachable;
    for address in addresses(target).await?.into_iter().take(ADDRESS_LIMIT) {
        match dial(address).await {
            Ok(stream) => return Ok(stream),
            Err(reason) => last = reason,
        }
    }
    Err(last)
}

async fn addresses(target: &HostPort) -> Result<Vec<SocketAddr>, Reason> {
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
