//! The node interface: what agents and relays ask of the controller, as a typed client and the generated server.
//!
//! [`proto`] is the generated code and stops here and in the controller's handlers: everybody else uses [`NodeClient`]
//! and the domain types. Deliberately absent: dialling. The caller gives a connector, because an agent reaches the
//! controller through a relay and a relay reaches it directly; TLS is put on top here, so that it cannot be forgotten.

mod client;
mod convert;

use std::collections::BTreeMap;

use rustls_pki_types::CertificateDer;
use sealock_core::address::HostPort;
use sealock_core::identity::{Role, SpiffeId};
use sealock_core::name::{ServiceName, TenantName};
use sealock_core::reason::Reason;
use sealock_core::token::TokenSecret;
use sealock_core::view::{Delta, Entries, ViewVersion};

pub use client::{Away, CallError, NodeClient, Watch};
pub use convert::{BadMessage, region};

use crate::identity::Trust;
use crate::relays::Relay;
use crate::tls::signed::SignedHead;

/// The generated messages, client and server.
#[allow(
    missing_docs,
    unreachable_pub,
    unnameable_types,
    unused_qualifications,
    clippy::all,
    clippy::use_self,
    clippy::too_many_lines,
    clippy::wildcard_enum_match_arm,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]
pub mod proto {
    tonic::include_proto!("sealock.node.v1");
}

/// The metadata key that carries the number of a [`Reason`] beside an error status.
pub const REASON_KEY: &str = "sealock-reason";

/// The largest message that the controller reads; the longest lawful one is a report of decisions.
pub const REQUEST_LIMIT: usize = 256 * 1024;

/// The largest message that a node reads: a view of a few hundred thousand entries.
pub const RESPONSE_LIMIT: usize = 64 * 1024 * 1024;

/// What a node that joins wants to be called.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Naming {
    /// The name that it must get; a token that is bound to another is refused.
    pub asked: Option<String>,
    /// What its machine is called anyway: taken when neither the token nor `asked` says a name.
    pub own: Option<String>,
}

/// A node's wish to join.
#[derive(Debug, Clone)]
pub struct Enrol {
    /// The secret of its join token.
    pub secret: TokenSecret,
    /// A PKCS #10 request, DER.
    pub csr: Vec<u8>,
    /// What it wants to be called.
    pub naming: Naming,
    /// The role of its token.
    pub role: Role,
    /// Of a relay: where agents reach it.
    pub addresses: Vec<HostPort>,
}

/// A new certificate and what belongs to it.
#[derive(Debug, Clone)]
pub struct Issued {
    /// The chain in DER, the leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// The roots to trust.
    pub trust: Trust,
    /// The identity in the leaf.
    pub id: SpiffeId,
}

/// What a watcher is told.
#[derive(Debug, Clone)]
pub enum WatchEvent {
    /// A whole view.
    Full {
        /// The head and its signature.
        head: SignedHead,
        /// All entries.
        entries: Entries,
    },
    /// What leads from a version that the watcher has to the newest; nothing when only the head is newer.
    Delta {
        /// The head and its signature.
        head: SignedHead,
        /// The version that it leads from.
        from: ViewVersion,
        /// What changes.
        delta: Delta,
    },
    /// The roots to trust from now on.
    Trust(Trust),
    /// The relays of the deployment.
    Relays(Vec<Relay>),
}

/// What the controller answered to an offer of services.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registered {
    /// `Done` for what was accepted, the reason for what was not.
    pub services: BTreeMap<ServiceName, Reason>,
    /// How long the offer stands without being repeated.
    pub lease: std::time::Duration,
}

/// A decision of a node for the audit record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecisionRow {
    /// When, by the clock of the node.
    pub at: jiff::Timestamp,
    /// The tenant of the flow.
    pub tenant: TenantName,
    /// Who wanted it.
    pub caller: String,
    /// What was wanted.
    pub service: String,
    /// What was decided.
    pub reason: Reason,
    /// The rule that decided, or nothing.
    pub rule: String,
    /// How many decisions like it this row stands for.
    pub count: u64,
}
