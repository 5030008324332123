//! Capture: every connection that a workload makes, to whatever address and port, arrives at a socket of ours.
//!
//! The workload lives in a network namespace whose only interface is loopback, so what is not captured goes nowhere; a
//! method says by which means of the kernel it is. All of it, routes, rules and sockets, is made from inside of that
//! namespace, by somebody with the right to; the sockets are then used by somebody without.
//! Deliberately absent: what becomes of a captured connection.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

mod names;
mod probe;
mod route;
mod rules;
mod socket;

pub use names::answer_names;
pub use probe::{Finding, probe};
pub use rules::{Rules, RulesError};
pub use socket::{Captured, DatagramReceiver, StreamListener, reply_socket};

use route::Routes;

/// By which means of the kernel a workload's packets come to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Method {
    /// Every address is local, and TPROXY gives its packets to one socket: all ports, TCP and UDP, nothing rewritten.
    AnyipTproxy,
    /// The destination is rewritten to ours, and remembered by connection tracking: TCP alone.
    Redirect,
    /// As the first, by way of a packet mark and a routing rule, for namespaces with routes of their own.
    Tproxy,
    /// Every address is local, without packet rules: one socket for each port that is known before.
    Anyip,
}

impl Method {
    /// All, the preferred one first.
    pub const ALL: [Self; 4] = [Self::AnyipTproxy, Self::Redirect, Self::Tproxy, Self::Anyip];

    /// The word in logs and tables.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AnyipTproxy => "anyip_tproxy",
            Self::Redirect => "redirect",
            Self::Tproxy => "tproxy",
            Self::Anyip => "anyip",
        }
    }

    /// The method with this word.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|method| method.as_str() == word)
    }

    /// Whether connections to ports that nobody knew of before are captured.
    #[must_use]
    pub fn catches_every_port(self) -> bool {
        match self {
            Self::AnyipTproxy | Self::Redirect | Self::Tproxy => true,
            Self::Anyip => false,
        }
    }

    /// Whether a datagram still tells where it was sent to.
    #[must_use]
    pub fn keeps_datagram_destination(self) -> bool {
        match self {
            Self::AnyipTproxy | Self::Tproxy | Self::Anyip => true,
            Self::Redirect => false,
        }
    }

    fn is_transparent(self) -> bool {
        match self {
            Self::AnyipTproxy | Self::Tproxy => true,
            Self::Redirect | Self::Anyip => false,
        }
    }

    fn rewrites(self) -> bool {
        match self {
            Self::Redirect => true,
            Self::AnyipTproxy | Self::Tproxy | Self::Anyip => false,
        }
    }

    /// Where our sockets are bound.
    fn addresses(self) -> [IpAddr; 2] {
        match self {
            // Not an address that a program tries by habit, and no wildcard: what is said to them is said to us.
            Self::AnyipTproxy | Self::Tproxy => [
                Ipv4Addr::new(127, 86, 0, 1).into(),
                Ipv6Addr::LOCALHOST.into(),
            ],
            // Where the kernel redirects to.
            Self::Redirect => [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
            Self::Anyip => [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
        }
    }
}

const MARK: u32 = 0x5ea1; // any number that nobody else in the workload's own namespace uses

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    const BOTH: [Self; 2] = [Self::V4, Self::V6];

    fn number(self) -> u8 {
        match self {
            Self::V4 => 2,  // AF_INET
            Self::V6 => 10, // AF_INET6
        }
    }
}

/// The port of the socket that takes connections.
const STREAMS: u16 = 15_001;
/// The port of the socket that takes questions for names.
const NAMES: u16 = 53;

/// The ports of our sockets in the namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Endpoints {
    /// Of connections.
    streams: u16,
    /// Of questions for names, over TCP and UDP: those to any address and port 53 come here. `None`: they are
    /// connections and datagrams like others.
    names: Option<u16>,
    /// Of all other datagrams; `None`: the kernel says to their sender at once that nobody listens.
    datagrams: Option<u16>,
}

/// What is to be captured, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// By which means.
    pub method: Method,
    /// Whether questions for names go to sockets of their own.
    pub names: bool,
    /// Whether datagrams are captured.
    pub datagrams: bool,
    /// Which ports, for a method that must know them before.
    pub ports: Vec<u16>,
}

impl Plan {
    /// Connections and questions for names, by the preferred method.
    #[must_use]
    pub fn usual() -> Self {
        Self {
            method: Method::AnyipTproxy,
            names: true,
            datagrams: false,
            ports: Vec::new(),
        }
    }

    /// The address, in the namespace, at which questions for names are taken.
    #[must_use]
    pub fn resolver(&self) -> IpAddr {
        let [v4, _] = self.method.addresses();
        v4
    }

    fn endpoints(&self) -> Endpoints {
        Endpoints {
            streams: STREAMS,
            names: self.names.then_some(NAMES),
            datagrams: self.datagrams.then_some(STREAMS),
        }
    }
}

/// Our sockets in a namespace, both families of each; one of IPv6 is absent where the kernel has none.
#[derive(Debug, Default)]
pub struct Sockets {
    /// Take connections.
    pub streams: Vec<OwnedFd>,
    /// Take questions for names, over TCP.
    pub name_streams: Vec<OwnedFd>,
    /// Take questions for names, over UDP.
    pub name_datagrams: Vec<OwnedFd>,
    /// Take other datagrams.
    pub datagrams: Vec<OwnedFd>,
}

/// Why a namespace is not captured.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The kernel does not let us set its routes.
    #[error("the routes cannot be set")]
    Routes(#[source] io::Error),
    /// The rules are not taken.
    #[error("the packet rules are not taken")]
    Rules(#[from] RulesError),
    /// A socket cannot be made.
    #[error("a socket for {address} cannot be made")]
    Socket {
        /// Where it was to be.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A namespace that is captured.
#[derive(Debug)]
pub struct Capture {
    /// The sockets; nothing else keeps them.
    pub sockets: Sockets,
    /// The rules, of a method that has some.
    pub rules: Option<Rules>,
}

impl Capture {
    /// Captures the namespace of the calling thread: from here on nothing but what the sockets are given can be opened.
    /// Takes away first what an earlier run may have left.
    ///
    /// # Errors
    /// What is missing; then the namespace may be captured in part, which lets out nothing.
    pub fn install(plan: &Plan) -> Result<Self, CaptureError> {
        // Sockets before rules before routes: no packet finds a half-made capture.
        let sockets = open(plan)?;
        let rules = match plan.method {
            Method::Anyip => None,
            method @ (Method::AnyipTproxy | Method::Redirect | Method::Tproxy) => {
                Some(Rules::install(method, plan.endpoints())?)
            }
        };
        let routes = Routes::open().map_err(CaptureError::Routes)?;
        claim(&routes, plan.method).map_err(CaptureError::Routes)?;
        Ok(Self { sockets, rules })
    }
}

/// Removes all routes and rules of ours from the calling thread's namespace, also those of an earlier run.
///
/// # Errors
/// What could not be removed.
pub fn remove() -> Result<(), CaptureError> {
    let routes = Routes::open().map_err(CaptureError::Routes)?;
    for family in Family::BOTH {
        routes.release(family).map_err(CaptureError::Routes)?;
    }
    Ok(rules::remove()?)
}

fn claim(routes: &Routes, method: Method) -> io::Result<()> {
    routes.raise_loopback()?;
    for family in families() {
        routes.release(family)?;
        match method {
            Method::AnyipTproxy | Method::Redirect | Method::Anyip => {
                routes.claim_all_addresses(family)?;
            }
            Method::Tproxy => routes.claim_marked(family)?,
        }
    }
    Ok(())
}

/// A kernel without IPv6 has nothing of it that could be captured.
fn families() -> impl Iterator<Item = Family> {
    let has_v6 = std::path::Path::new("/proc/thread-self/net/if_inet6").exists();
    Family::BOTH
        .into_iter()
        .filter(move |family| *family == Family::V4 || has_v6)
}

fn open(plan: &Plan) -> Result<Sockets, CaptureError> {
    // The addresses of loopback exist once it is up.
    let routes = Routes::open().map_err(CaptureError::Routes)?;
    routes.raise_loopback().map_err(CaptureError::Routes)?;
    let mut sockets = Sockets::default();
    let method = plan.method;
    let [v4, v6] = method.addresses();
    for family in families() {
        let ip = match family {
            Family::V4 => v4,
            Family::V6 => v6,
        };
        let streams: &[u16] = if method.catches_every_port() {
            &[STREAMS]
        } else {
            &plan.ports
        };
        for port in streams {
            let listener = made((ip, *port), method, socket::stream_listener)?;
            sockets.streams.push(listener);
            if plan.datagrams && method.keeps_datagram_destination() {
                let socket = made((ip, *port), method, socket::datagram_socket)?;
                sockets.datagrams.push(socket);
            }
        }
        if plan.names {
            let listener = made((ip, NAMES), method, socket::stream_listener)?;
            sockets.name_streams.push(listener);
            let socket = made((ip, NAMES), method, socket::datagram_socket)?;
            sockets.name_datagrams.push(socket);
        }
    }
    Ok(sockets)
}

fn made(
    address: (IpAddr, u16),
    method: Method,
    make: fn(SocketAddr, Method) -> io::Result<OwnedFd>,
) -> Result<OwnedFd, CaptureError> {
    let address = SocketAddr::from(address);
    make(address, method).map_err(|source| CaptureError::Socket { address, source })
}
