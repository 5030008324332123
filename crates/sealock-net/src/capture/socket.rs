//! The sockets that catch what a workload sends, made in the workload's namespace and used outside of it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::Interest;
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use super::Method;
use crate::sys;

// More connections wait in the kernel than any workload opens at once; the system's own limit caps it.
const BACKLOG: i32 = 4_096;

/// A socket that takes connections to every address.
///
/// # Errors
/// Without the right to, in the calling thread's namespace.
pub(super) fn stream_listener(address: SocketAddr, method: Method) -> io::Result<OwnedFd> {
    let socket = socket(address, method, Type::STREAM, Protocol::TCP)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// A socket that takes datagrams to every address.
///
/// # Errors
/// Without the right to, in the calling thread's namespace.
pub(super) fn datagram_socket(address: SocketAddr, method: Method) -> io::Result<OwnedFd> {
    let socket = socket(address, method, Type::DGRAM, Protocol::UDP)?;
    sys::tell_destinations(&socket, address.is_ipv6())?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// A socket that answers a datagram from the address that it was sent to, which is nobody's here.
///
/// # Errors
/// Without the right to, in the calling thread's namespace.
pub fn reply_socket(destination: SocketAddr) -> io::Result<std::net::UdpSocket> {
    let method = Method::AnyipTproxy; // what makes a socket transparent is the same for all
    let socket = socket(destination, method, Type::DGRAM, Protocol::UDP)?;
    socket.bind(&destination.into())?;
    Ok(socket.into())
}

fn socket(
    address: SocketAddr,
    method: Method,
    kind: Type,
    protocol: Protocol,
) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    if method.is_transparent() {
        match address.ip() {
            IpAddr::V4(_) => socket.set_ip_transparent_v4(true)?,
            IpAddr::V6(_) => socket.set_ip_transparent_v6(true)?,
        }
    }
    Ok(socket)
}

/// Takes captured connections.
#[derive(Debug)]
pub struct StreamListener {
    listener: TcpListener,
    method: Method,
}

/// A connection that was captured.
#[derive(Debug)]
pub struct Captured {
    /// It.
    pub stream: TcpStream,
    /// Where the workload wanted it to go; `None` when it was made to our own socket, or the kernel does not tell.
    pub destination: Option<SocketAddr>,
}

impl StreamListener {
    /// Around a socket of [`super::Sockets`].
    ///
    /// # Errors
    /// When it is no listener, or there is no runtime.
    pub fn new(socket: OwnedFd, method: Method) -> io::Result<Self> {
        let listener = TcpListener::from_std(socket.into())?;
        Ok(Self { listener, method })
    }

    /// By which means connections come to it.
    #[must_use]
    pub fn method(&self) -> Method {
        self.method
    }

    /// Waits for the next connection.
    ///
    /// # Errors
    /// What the operating system says; the listener goes on.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn accept(&self) -> io::Result<Captured> {
        let (stream, _remote) = self.listener.accept().await?;
        Ok(self.captured(stream))
    }

    /// Takes a connection that was made before this moment, without waiting.
    ///
    /// # Errors
    /// `WouldBlock` when there is none.
    pub fn accept_now(&self) -> io::Result<Captured> {
        // Past the runtime, which learns of a connection a little after it was made.
        let (stream, _remote) = SockRef::from(&self.listener).accept()?;
        stream.set_nonblocking(true)?;
        Ok(self.captured(TcpStream::from_std(stream.into())?))
    }

    fn captured(&self, stream: TcpStream) -> Captured {
        let destination = destination(&stream, self.method);
        Captured {
            stream,
            destination,
        }
    }
}

/// Where a connection was to go. One to an address of loopback was not captured: somebody found our socket.
fn destination(stream: &TcpStream, method: Method) -> Option<SocketAddr> {
    let local = canonical(stream.local_addr().ok()?);
    let original = if method.rewrites() {
        let socket = SockRef::from(stream);
        let told = if local.is_ipv4() {
            socket.original_dst_v4()
        } else {
            socket.original_dst_v6()
        };
        // Without an answer (a full table of connections) the place to go is unknown, and not a guess.
        told.ok()?
            .as_socket()
            .filter(|original| *original != local)?
    } else {
        local
    };
    Some(canonical(original)).filter(|original| !original.ip().is_loopback())
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Takes captured datagrams.
#[derive(Debug)]
pub struct DatagramReceiver {
    socket: UdpSocket,
}

impl DatagramReceiver {
    /// Around a socket of [`super::Sockets`].
    ///
    /// # Errors
    /// When it is no such socket, or there is no runtime.
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        let socket = UdpSocket::from_std(socket.into())?;
        Ok(Self { socket })
    }

    /// Waits for the next datagram, with where it was sent to.
    ///
    /// # Errors
    /// What the operating system says; the socket goes on.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn receive(&self, buffer: &mut [u8]) -> io::Result<sys::Datagram> {
        self.socket
            .async_io(Interest::READABLE, || {
                sys::receive(self.socket.as_fd(), buffer)
            })
            .await
    }

    /// Answers a datagram from the address that it was sent to, at this socket's own port.
    ///
    /// # Errors
    /// What the operating system says; a full buffer loses the reply, as any network may.
    pub fn reply(&self, bytes: &[u8], remote: SocketAddr, source: IpAddr) -> io::Result<()> {
        sys::send_from(self.socket.as_fd(), bytes, remote, source)
    }
}
