//! The errors that a UDP socket's packets met on their way (ICMP), which the kernel keeps in a queue beside the packets.

use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use socket2::{SockAddr, SockAddrStorage};

/// Lets the kernel keep a socket's errors with the address that each packet was sent to.
///
/// From here on, sending and receiving on the socket may fail once with the error of any packet that was sent before.
///
/// # Errors
/// When the socket is not of IPv4 or IPv6.
pub fn keep_errors(socket: impl AsFd, ipv6: bool) -> io::Result<()> {
    let socket = socket.as_fd();
    // A socket for both families has errors of both.
    set_flag(socket, libc::IPPROTO_IP, libc::IP_RECVERR)?;
    if ipv6 {
        set_flag(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVERR)?;
    }
    Ok(())
}

#[expect(unsafe_code, reason = "no crate that we use sets this option")]
pub(super) fn set_flag(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    option: libc::c_int,
) -> io::Result<()> {
    let on: libc::c_int = 1;
    let length = socklen::<libc::c_int>();
    // SAFETY: the descriptor is open while it is borrowed; the value is an int that lives through the call, and its
    // length is told.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const on).cast(),
            length,
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn socklen<T>() -> libc::socklen_t {
    libc::socklen_t::try_from(size_of::<T>()).unwrap_or(libc::socklen_t::MAX)
}

/// What a packet met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PacketError {
    /// Where the packet was to go.
    pub remote: SocketAddr,
    /// Whether the machine there said that nobody listens at that port.
    pub nobody_listens: bool,
}

const CONTROL_SPACE: usize = 256; // the error, the address of who reported it, and the options that the socket asks for

/// Takes the oldest error off the queue; nothing when it is empty. What is neither IPv4 nor IPv6 is passed over.
///
/// # Errors
/// When the socket cannot be asked.
#[expect(
    unsafe_code,
    reason = "no crate that we use reads this queue with its control messages"
)]
pub fn next_error(socket: impl AsFd) -> io::Result<Option<PacketError>> {
    #[repr(align(8))] // as control messages are
    struct Control([u8; CONTROL_SPACE]);
    let mut control = Control([0; CONTROL_SPACE]);
    let mut nothing = [0u8; 1];
    let mut part = libc::iovec {
        iov_base: nothing.as_mut_ptr().cast(),
        iov_len: nothing.len(),
    };
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: all-zero is a valid message header.
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    message.msg_name = (&raw mut storage).cast();
    message.msg_namelen = storage.size_of();
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = CONTROL_SPACE;
    let descriptor = socket.as_fd().as_raw_fd();
    let flags = libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT;
    // SAFETY: the descriptor is open; every pointer in the header is to a local that outlives the call, of the length
    // that stands beside it.
    if unsafe { libc::recvmsg(descriptor, &raw mut message, flags) } < 0 {
        let error = io::Error::last_os_error();
        let empty = error.kind() == io::ErrorKind::WouldBlock;
        return if empty { Ok(None) } else { Err(error) };
    }
    // SAFETY: the kernel has filled the header, and the control buffer is alive.
    let nobody_listens = unsafe { says_nobody_listens(&message) };
    // SAFETY: the kernel has written an address of this length.
    let address = unsafe { SockAddr::new(storage, message.msg_namelen) };
    Ok(address.as_socket().map(|remote| PacketError {
        remote,
        nobody_listens,
    }))
}

/// # Safety
/// The kernel has filled `message`, and its control buffer is alive.
#[expect(unsafe_code, reason = "control messages are walked by pointers")]
unsafe fn says_nobody_listens(message: &libc::msghdr) -> bool {
    // SAFETY: the caller vouches for the header.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(message) };
    // SAFETY: not null means within the buffer, header whole.
    while let Some(header) = unsafe { next.as_ref() } {
        let kind = (header.cmsg_level, header.cmsg_type);
        let ours = [
            (libc::IPPROTO_IP, libc::IP_RECVERR),
            (libc::IPPROTO_IPV6, libc::IPV6_RECVERR),
        ];
        if ours.contains(&kind) {
            let data = {
                // SAFETY: computes an address within the buffer that `header` is in.
                unsafe { libc::CMSG_DATA(header) }
            };
            let error = data.cast::<libc::sock_extended_err>();
            // SAFETY: the kernel puts a `sock_extended_err` behind headers of these kinds.
            return is_port_unreachable(&unsafe { error.read_unaligned() });
        }
        // SAFETY: `header` came from this buffer.
        next = unsafe { libc::CMSG_NXTHDR(message, header) };
    }
    false
}

fn is_port_unreachable(error: &libc::sock_extended_err) -> bool {
    match error.ee_origin {
        libc::SO_EE_ORIGIN_ICMP => (error.ee_type, error.ee_code) == (3, 3), // RFC 792
        libc::SO_EE_ORIGIN_ICMP6 => (error.ee_type, error.ee_code) == (1, 4), // RFC 4443 §3.1
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    fn error_of(bind: &str, closed: SocketAddr) -> Option<PacketError> {
        let socket = UdpSocket::bind(bind).expect("a port");
        keep_errors(&socket, socket.local_addr().expect("bound").is_ipv6()).expect("an option");
        assert_eq!(next_error(&socket).expect("asked"), None);
        socket.send_to(b"anybody?", closed).expect("sent");
        // Loopback answers within the call.
        let error = next_error(&socket).expect("asked");
        assert_eq!(next_error(&socket).expect("asked"), None, "only one");
        // Taken off the queue, it disturbs nobody any more.
        socket.send_to(b"anybody?", closed).expect("sent");
        error
    }

    #[test]
    fn a_machine_that_has_no_such_port_says_so_and_for_which() {
        for (bind, any) in [
            ("0.0.0.0:0", "127.0.0.1:0"),
            ("[::]:0", "[::1]:0"),
            ("[::]:0", "127.0.0.1:0"),
        ] {
            let gone = UdpSocket::bind(any)
                .expect("a port")
                .local_addr()
                .expect("bound");
            let mut target = gone;
            if bind.starts_with('[')
                && let SocketAddr::V4(v4) = gone
            {
                target = SocketAddr::from((v4.ip().to_ipv6_mapped(), v4.port()));
            }
            let error = error_of(bind, target).expect("an answer");
            assert_eq!(
                (error.remote, error.nobody_listens),
                (target, true),
                "{bind} {any}"
            );
        }
    }
}
