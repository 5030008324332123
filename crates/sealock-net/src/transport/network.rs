//! Tells when the machine's network changes: an address, a route or a link came or went (rtnetlink(7)).
//!
//! Deliberately absent: what changed. Who asks only wants to know when another look is worth it.

use std::io;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tokio::net::UnixDatagram;

// RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE, RTMGRP_IPV6_IFADDR, RTMGRP_IPV6_ROUTE of linux/rtnetlink.h.
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;
const MESSAGE: usize = 8 * 1024; // longer ones are cut, which is no loss here

/// The changes of the network from here on.
///
/// The runtime's only type for datagrams without addresses is that of unix sockets; receiving is the same call.
#[derive(Debug)]
pub struct NetworkChanges(Option<UnixDatagram>);

impl NetworkChanges {
    /// Begins to watch. Where the system does not tell, nothing ever changes.
    ///
    /// Must be called within the runtime.
    #[must_use]
    pub fn watch() -> Self {
        match open() {
            Ok(socket) => Self(Some(socket)),
            Err(error) => {
                tracing::debug!(err = %error, "changes of the network cannot be watched");
                Self(None)
            }
        }
    }

    /// Waits for the next change; those that came together are one.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn changed(&mut self) {
        let Some(socket) = &self.0 else {
            return std::future::pending().await;
        };
        let mut message = vec![0; MESSAGE];
        match socket.recv(&mut message).await {
            Ok(_) => {}
            Err(error) if were_dropped(&error) => {}
            Err(_) => {
                self.0 = None;
                return std::future::pending().await;
            }
        }
        loop {
            match socket.try_recv(&mut message) {
                Ok(_) => {}
                Err(error) if were_dropped(&error) => {}
                Err(_) => return,
            }
        }
    }
}

/// Whether there were more messages than the kernel keeps, which is news as well.
fn were_dropped(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::NOBUFS.raw_os_error())
}

fn open() -> io::Result<UnixDatagram> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let route = None; // NETLINK_ROUTE is protocol 0
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, route)?;
    rustix::net::bind(&socket, &SocketAddrNetlink::new(0, GROUPS))?;
    UnixDatagram::from_std(socket.into())
}
