//! Datagrams with the address that they were sent to, for sockets that take those of every address.

use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};

use socket2::{SockAddr, SockAddrStorage};

use super::errors::set_flag;

/// A datagram as it came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Datagram {
    /// How many bytes of the buffer it fills.
    pub length: usize,
    /// Who sent it.
    pub remote: SocketAddr,
    /// Where it was sent to, before the kernel gave it to this socket.
    pub destination: SocketAddr,
}

/// Lets the kernel tell, with each datagram, where it was sent to.
///
/// # Errors
/// When the socket is of neither IPv4 nor IPv6.
pub fn tell_destinations(socket: impl AsFd, ipv6: bool) -> io::Result<()> {
    if ipv6 {
        set_flag(
            socket.as_fd(),
            libc::IPPROTO_IPV6,
            libc::IPV6_RECVORIGDSTADDR,
        )
    } else {
        set_flag(socket.as_fd(), libc::IPPROTO_IP, libc::IP_RECVORIGDSTADDR)
    }
}

#[repr(align(8))] // as control messages are
struct Control([u8; CONTROL_SPACE]);
const CONTROL_SPACE: usize = 128; // one address of either family with its header, and room for the kernel's growth

/// Takes the next datagram, without waiting.
///
/// # Errors
/// `WouldBlock` when there is none; `InvalidData` for one that the kernel tells no destination of.
#[expect(
    unsafe_code,
    reason = "no crate that we use reads these control messages"
)]
pub fn receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<Datagram> {
    let mut control = Control([0; CONTROL_SPACE]);
    let mut part = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
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
    // SAFETY: the descriptor is open; every pointer in the header is to memory that outlives the call, of the length
    // that stands beside it.
    let length = unsafe { libc::recvmsg(descriptor, &raw mut message, libc::MSG_DONTWAIT) };
    let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: the kernel has filled the header, and the control buffer is alive.
    let destination = unsafe { destination(&message) };
    // SAFETY: the kernel has written an address of this length.
    let remote = unsafe { SockAddr::new(storage, message.msg_namelen) }.as_socket();
    match (remote, destination) {
        (Some(remote), Some(destination)) => Ok(Datagram {
            length,
            remote,
            destination,
        }),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// # Safety
/// The kernel has filled `message`, and its control buffer is alive.
#[expect(unsafe_code, reason = "control messages are walked by pointers")]
unsafe fn destination(message: &libc::msghdr) -> Option<SocketAddr> {
    // SAFETY: the caller vouches for the header.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(message) };
    // SAFETY: not null means within the buffer, header whole.
    while let Some(header) = unsafe { next.as_ref() } {
        // SAFETY: the header is within the buffer.
        let data = unsafe { libc::CMSG_DATA(next) };
        match (header.cmsg_level, header.cmsg_type) {
            (libc::IPPROTO_IP, libc::IP_ORIGDSTADDR) => {
                // SAFETY: the kernel puts an address of this type behind such a header.
                let address = unsafe { data.cast::<libc::sockaddr_in>().read_unaligned() };
                let ip = Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr));
                return Some((ip, u16::from_be(address.sin_port)).into());
            }
            (libc::IPPROTO_IPV6, libc::IPV6_ORIGDSTADDR) => {
                // SAFETY: the kernel puts an address of this type behind such a header.
                let address = unsafe { data.cast::<libc::sockaddr_in6>().read_unaligned() };
                let ip = Ipv6Addr::from(address.sin6_addr.s6_addr);
                return Some((ip, u16::from_be(address.sin6_port)).into());
            }
            _ => {}
        }
        // SAFETY: header and message are the kernel's, see above.
        next = unsafe { libc::CMSG_NXTHDR(message, next) };
    }
    None
}

/// Sends a datagram from an address of this machine that the socket is not bound to, at the socket's own port.
///
/// # Errors
/// When the address is not this machine's, or the datagram is too large.
#[expect(
    unsafe_code,
    reason = "no crate that we use writes these control messages"
)]
pub fn send_from(
    socket: impl AsFd,
    bytes: &[u8],
    remote: SocketAddr,
    source: IpAddr,
) -> io::Result<()> {
    let remote = SockAddr::from(remote);
    let mut control = Control([0; CONTROL_SPACE]);
    let mut part = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: all-zero is a valid message header.
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    message.msg_name = remote.as_ptr().cast_mut().cast();
    message.msg_namelen = remote.len();
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = CONTROL_SPACE;
    let used = match source {
        IpAddr::V4(v4) => {
            let info = libc::in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: libc::in_addr {
                    s_addr: u32::from(v4).to_be(),
                },
                ipi_addr: libc::in_addr { s_addr: 0 },
            };
            // SAFETY: the control buffer is alive, and larger than one such message.
            unsafe { put(&message, (libc::IPPROTO_IP, libc::IP_PKTINFO), info) }
        }
        IpAddr::V6(v6) => {
            let info = libc::in6_pktinfo {
                ipi6_addr: libc::in6_addr {
                    s6_addr: v6.octets(),
                },
                ipi6_ifindex: 0,
            };
            // SAFETY: the control buffer is alive, and larger than one such message.
            unsafe { put(&message, (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO), info) }
        }
    };
    message.msg_controllen = used;
    let descriptor = socket.as_fd().as_raw_fd();
    // SAFETY: the descriptor is open; every pointer in the header is to memory that outlives the call, of the length
    // that stands beside it, and none is written to.
    let sent = unsafe { libc::sendmsg(descriptor, &raw const message, libc::MSG_NOSIGNAL) };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Writes the one control message of a header; returns the space that it takes.
///
/// # Safety
/// The header's control buffer is alive, aligned, and has room for a message with a `T`.
#[expect(unsafe_code, reason = "control messages are written by pointers")]
unsafe fn put<T>(message: &libc::msghdr, (level, kind): (i32, i32), value: T) -> usize {
    let size = u32::try_from(size_of::<T>()).unwrap_or(0);
    // SAFETY: the caller vouches for the buffer, so there is a first header, and room for the value behind it.
    unsafe {
        let header = libc::CMSG_FIRSTHDR(message);
        (*header).cmsg_level = level;
        (*header).cmsg_type = kind;
        (*header).cmsg_len = libc::CMSG_LEN(size) as usize;
        libc::CMSG_DATA(header).cast::<T>().write_unaligned(value);
        libc::CMSG_SPACE(size) as usize
    }
}
