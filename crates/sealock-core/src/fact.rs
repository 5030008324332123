//! What is known of a flow, and how it is known.
//!
//! A name that a workload states is a claim, not a truth; so every fact keeps its source, and policy can ask for it.

use std::fmt;

use crate::destination::Destination;
use crate::identity::AgentId;
use crate::name::{ServiceName, TenantName};
use crate::reason::Reason;

/// How a fact came to be known, from the weakest to the strongest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// The plain server name of a TLS handshake says so, over TCP or QUIC.
    Sni,
    /// The host of an HTTP request says so.
    Host,
    /// The opener asked for it by name.
    Asked,
    /// A hop on the way said so; we authenticated the hop, not the fact.
    Relayed,
    /// Our own DNS gave this name to this workload for the address that it used.
    Dns,
    /// Our own configuration says so.
    Configured,
    /// A certificate that we verified ourselves says so.
    Certificate,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Sni => "sni",
            Self::Host => "host",
            Self::Asked => "asked",
            Self::Relayed => "relayed",
            Self::Dns => "dns",
            Self::Configured => "configured",
            Self::Certificate => "certificate",
        })
    }
}

/// A value with its source.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Fact<T> {
    /// What is known.
    pub value: T,
    /// How it is known.
    pub source: Source,
}

impl<T> Fact<T> {
    /// States `value` as known from `source`.
    pub fn new(value: T, source: Source) -> Self {
        Self { value, source }
    }
}

/// The certificate that a caller proved to hold, in the form that revocations name it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CertificateRef {
    /// The serial number, lower-case hex.
    pub serial: String,
    /// The SHA-256 of its SubjectPublicKeyInfo, lower-case hex.
    pub key_digest: String,
}

/// All that is known of a flow when it is judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The tenant in which the flow is judged; flows never cross tenants.
    pub tenant: TenantName,
    /// Who opened the flow.
    pub caller: Fact<AgentId>,
    /// What the caller proved itself with, at the hops that asked it to.
    pub certificate: Option<CertificateRef>,
    /// What it was opened to.
    pub goal: Goal,
}

impl Facts {
    /// The service that the flow is opened to.
    ///
    /// # Errors
    /// [`Reason::NoSuchService`] when it is opened to a place outside.
    pub fn service(&self) -> Result<&ServiceName, Reason> {
        self.goal.service().ok_or(Reason::NoSuchService)
    }
}

/// What a flow is opened to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Goal {
    /// A service of the tenant.
    Service(Fact<ServiceName>),
    /// A place outside: somewhere on a network.
    Destination(Destination),
}

impl Goal {
    /// The service, when it is one.
    #[must_use]
    pub fn service(&self) -> Option<&ServiceName> {
        match self {
            Self::Service(service) => Some(&service.value),
            Self::Destination(_) => None,
        }
    }

    /// The destination, when it is one.
    #[must_use]
    pub fn destination(&self) -> Option<&Destination> {
        match self {
            Self::Destination(destination) => Some(destination),
            Self::Service(_) => None,
        }
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(service) => service.value.fmt(f),
            Self::Destination(destination) => destination.fmt(f),
        }
    }
}
