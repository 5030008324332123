//! What we ask of the operating system beyond the standard library, one question per function.
//!
//! This is the one module that may hold `unsafe`, and only where no maintained crate makes the call safely.
//! Deliberately absent: decisions. Callers say what an answer means.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;

use parking_lot::Mutex;
use rustix::fs::Mode;

mod datagram;
mod errors;
mod heap;
mod namespace;
mod signals;

pub use datagram::{Datagram, receive, send_from, tell_destinations};
pub use errors::{PacketError, keep_errors, next_error};
pub use heap::keep_freed_memory;
pub use namespace::{inherited, unshare};
pub use signals::{Delivered, hold_signals, next_signal, watch};

/// How many files the process may have open; as good as endless where there is no limit.
#[must_use]
pub fn file_limit() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit.map_or(usize::MAX, |files| {
        usize::try_from(files).unwrap_or(usize::MAX)
    })
}

// The mask belongs to the process: a directory made by another thread meanwhile would lose its search bit.
static UMASK: Mutex<()> = Mutex::new(());

/// Runs `body` while new files get no bits for group and others and no execute bit; puts the old mask back after it.
pub fn with_private_umask<T>(body: impl FnOnce() -> T) -> T {
    struct Restore(Mode);
    impl Drop for Restore {
        fn drop(&mut self) {
            rustix::process::umask(self.0);
        }
    }
    let _alone = UMASK.lock();
    let _restore = Restore(rustix::process::umask(Mode::from_raw_mode(0o177)));
    body()
}

/// Runs `body`, which makes directories, while no [`with_private_umask`] is under way.
pub fn without_private_umask<T>(body: impl FnOnce() -> T) -> T {
    let _alone = UMASK.lock();
    body()
}

/// The user that this process acts as.
#[must_use]
pub fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// The buffer sizes that a socket really got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BufferSizes {
    /// Bytes for what has arrived and was not read.
    pub receive: usize,
    /// Bytes for what was written and has not left.
    pub send: usize,
}

/// Raises a socket's buffers to `bytes` as far as allowed: past the system's limit when we hold `CAP_NET_ADMIN`.
///
/// # Errors
/// When the socket does not tell its sizes.
pub fn raise_buffers(socket: impl AsFd, bytes: usize) -> io::Result<BufferSizes> {
    use rustix::net::sockopt;
    let socket = socket.as_fd();
    if sockopt::set_socket_recv_buffer_size_force(socket, bytes).is_err() {
        // A smaller buffer works, only worse; what we got is reported below.
        sockopt::set_socket_recv_buffer_size(socket, bytes).ok();
    }
    if sockopt::set_socket_send_buffer_size_force(socket, bytes).is_err() {
        sockopt::set_socket_send_buffer_size(socket, bytes).ok();
    }
    Ok(BufferSizes {
        receive: sockopt::socket_recv_buffer_size(socket)?,
        send: sockopt::socket_send_buffer_size(socket)?,
    })
}

/// The longest IP packet that this machine sends on its way to `address` without cutting it, as far as it knows.
///
/// # Errors
/// When there is no way to it.
pub fn route_mtu(address: SocketAddr) -> io::Result<u32> {
    use rustix::net::sockopt;
    let socket = connected_udp(address)?;
    let mtu = match address {
        SocketAddr::V4(_) => sockopt::ip_mtu(&socket)?,
        SocketAddr::V6(_) => sockopt::ipv6_mtu(&socket)?,
    };
    Ok(mtu)
}

/// A UDP socket that speaks with `remote` alone, from the address that the way to it begins at at this time.
///
/// # Errors
/// When there is no way to it.
pub fn connected_udp(remote: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = match remote {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(remote)?; // sends nothing
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_to_this_machine_itself_takes_more_than_ethernet_does() {
        let mtu = route_mtu(([127, 0, 0, 1], 9).into()).expect("loopback is there");
        assert!(mtu > 1_500, "{mtu}");
    }

    #[test]
    fn buffers_grow_beyond_what_a_socket_has_at_first() {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
        let small = raise_buffers(&socket, 4_096).expect("told");
        let large = raise_buffers(&socket, 8 * 1024 * 1024).expect("told");
        assert!(
            large.receive > small.receive && large.send > small.send,
            "{small:?} {large:?}"
        );
    }

    #[test]
    fn the_umask_is_back_after_a_private_one_even_after_a_panic() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mode = |name: &str| {
            use std::os::unix::fs::MetadataExt;
            let path = dir.path().join(name);
            std::fs::write(&path, b"").expect("written");
            std::fs::metadata(&path).expect("there").mode() & 0o777
        };
        let before = mode("before");
        assert_eq!(with_private_umask(|| mode("within")), 0o600);
        let caught =
            std::panic::catch_unwind(|| with_private_umask(|| panic!("as the test wishes")));
        assert!(caught.is_err());
        assert_eq!(mode("after"), before);
    }
}
