//! Where a workload's packet wants to go, as far as anybody knows.
//!
//! A name that we can answer for (the workload asked us to connect to it, or our own DNS gave it this address) *is* the
//! destination, and the address is of no matter: we look the name up ourselves. A name that only the first bytes of the
//! flow tell is a claim beside the address, and the two are never mixed: a flow goes to the claimed name at an address
//! that we looked up, or to the address that the workload dialled, whichever of them policy allows.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::address::{AddressError, HostPort};
use crate::fact::{Fact, Source};
use crate::guard;
use crate::host::{HostName, HostNameError};

/// What carries a flow's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Streams.
    Tcp,
    /// Datagrams.
    Udp,
}

impl Protocol {
    /// Every protocol.
    pub const ALL: [Self; 2] = [Self::Tcp, Self::Udp];

    /// The word in patterns and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Where a flow wants to go: a name, an address, or an address for which a name is claimed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Destination {
    protocol: Protocol,
    place: Place,
    port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Place {
    Name(Fact<HostName>),
    Address(IpAddr),
    Claimed(IpAddr, Fact<HostName>),
}

impl Destination {
    /// The address that a packet was sent to.
    #[must_use]
    pub fn at(protocol: Protocol, address: SocketAddr) -> Self {
        Self {
            protocol,
            place: Place::Address(guard::plain(address.ip())),
            port: address.port(),
        }
    }

    /// A name that we look up ourselves, and how we know that it is meant.
    #[must_use]
    pub fn named(protocol: Protocol, name: Fact<HostName>, port: u16) -> Self {
        Self {
            protocol,
            place: Place::Name(name),
            port,
        }
    }

    /// The same destination with the name that the flow's own bytes tell; it changes nothing where a name is known.
    #[must_use]
    pub fn claimed(self, name: HostName, source: Source) -> Self {
        let place = match self.place {
            Place::Address(address) => Place::Claimed(address, Fact::new(name, source)),
            known @ (Place::Name(_) | Place::Claimed(..)) => known,
        };
        Self { place, ..self }
    }

    /// What carries the flow.
    #[must_use]
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The name that is known or claimed, and how.
    #[must_use]
    pub fn name(&self) -> Option<&Fact<HostName>> {
        match &self.place {
            Place::Name(name) | Place::Claimed(_, name) => Some(name),
            Place::Address(_) => None,
        }
    }

    /// The address that the workload dialled, where that matters.
    #[must_use]
    pub fn address(&self) -> Option<IpAddr> {
        match &self.place {
            Place::Address(address) | Place::Claimed(address, _) => Some(*address),
            Place::Name(_) => None,
        }
    }

    /// Whether the name is only the flow's own word.
    #[must_use]
    pub fn is_claimed(&self) -> bool {
        matches!(self.place, Place::Claimed(..))
    }

    /// The claim without the address: what would be judged if the workload had asked for the name.
    #[must_use]
    pub fn by_name(&self) -> Option<Self> {
        self.name().map(|name| Self {
            protocol: self.protocol,
            place: Place::Name(name.clone()),
            port: self.port,
        })
    }

    /// The address without the claim.
    #[must_use]
    pub fn by_address(&self) -> Option<Self> {
        self.address().map(|address| Self {
            protocol: self.protocol,
            place: Place::Address(address),
            port: self.port,
        })
    }

    /// One of the addresses that the destination's name has, to be judged before it is dialled.
    #[must_use]
    pub fn resolved(&self, address: IpAddr) -> Self {
        let address = guard::plain(address);
        let place = match self.name() {
            Some(name) => Place::Claimed(address, name.clone()),
            None => Place::Address(address),
        };
        Self {
            protocol: self.protocol,
            place,
            port: self.port,
        }
    }
}

/// Why a text is not a destination.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DestinationError {
    /// No host with a port.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The host is no name.
    #[error(transparent)]
    Host(#[from] HostNameError),
}

impl FromStr for Destination {
    type Err = DestinationError;

    /// Reads `HOST:PORT`, with `/tcp` or `/udp` behind it where one is meant; without, it is TCP.
    fn from_str(text: &str) -> Result<Self, DestinationError> {
        let (place, protocol) = match text.rsplit_once('/') {
            Some((place, "udp")) => (place, Protocol::Udp),
            Some((place, "tcp")) => (place, Protocol::Tcp),
            Some(_) | None => (text, Protocol::Tcp),
        };
        let place: HostPort = place.parse()?;
        if let Some(address) = place.as_socket_addr() {
            return Ok(Self::at(protocol, address));
        }
        let name = Fact::new(place.host().parse()?, Source::Asked);
        Ok(Self::named(protocol, name, place.port()))
    }
}

impl fmt::Display for Destination {
    /// `host:port/protocol`, with the address of a claimed name behind it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (port, protocol) = (self.port, self.protocol);
        match &self.place {
            Place::Name(name) => write!(f, "{}:{port}/{protocol}", name.value),
            Place::Address(address) => {
                write!(f, "{}/{protocol}", SocketAddr::new(*address, port))
            }
            Place::Claimed(address, name) => {
                write!(f, "{}:{port}/{protocol} ({address})", name.value)
            }
        }
    }
}
