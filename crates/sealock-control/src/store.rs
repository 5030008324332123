//! What the controller remembers: one trait, so that every back end passes one battery of tests.
//!
//! Each method is one transaction. What changes a tenant's view raises the view's version in that same transaction, and
//! what an administrator or a node did is an audit row in that same transaction: neither can be there without the other.
//! Deliberately absent: clocks and keys. `now` is an argument, and certificates are issued by a function that the
//! store calls between «the token is good» and the commit, so that no certificate leaves without its token being used.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use jiff::{SignedDuration, Timestamp};
use sealock_core::address::HostPort;
use sealock_core::api::audit::{AuditRow, VerifyResponse};
use sealock_core::api::policy::{ApplyResponse, Origin, RuleRow};
use sealock_core::api::service::ServiceRow;
use sealock_core::identity::{AgentId, Principal, Role};
use sealock_core::name::{AgentName, GroupName, NodeName, ServiceName, TenantName};
use sealock_core::policy::{Rule, RuleId};
use sealock_core::reason::Reason;
use sealock_core::view::{Agent, Entries, Offering, ViewVersion};

#[cfg(test)]
mod battery;
pub mod sqlite;

/// Why the store did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// What was asked for may not be; nothing changed.
    #[error("{}", .0.text())]
    Refused(Reason),
    /// There is no such thing; nothing changed.
    #[error("no {kind} `{name}` exists")]
    NoSuch {
        /// What kind of thing was asked for.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// There is one already; nothing changed.
    #[error("a {kind} `{name}` exists already")]
    Exists {
        /// What kind of thing was to be made.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// A number that no honest peer sends.
    #[error("the {0} is out of range")]
    OutOfRange(&'static str),
    /// The certificate could not be made.
    #[error("the certificate could not be issued")]
    Issue(#[source] crate::pki::PkiError),
    /// No space is left; nothing changed, and reading still works.
    #[error("the disk of the controller's database is full")]
    Full,
    /// Another process holds the database; trying again may help.
    #[error("the controller's database is locked by another process")]
    Busy,
    /// The disk did not confirm a write, so nothing is written any more until a restart has checked the database.
    #[error("the controller's database could not be written safely; restart the controller")]
    Unsafe,
    /// A row that cannot be read: the database was changed by other hands or a newer version.
    #[error("the controller's database holds a {0} that cannot be read")]
    Unreadable(&'static str),
    /// Anything else that the database said.
    #[error("the controller's database failed")]
    Database(#[source] sqlx::Error),
}

impl StoreError {
    /// Whether the same call may succeed later without anybody changing anything.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Refused(reason) => reason.is_transient(),
            Self::Full | Self::Busy => true,
            Self::NoSuch { .. }
            | Self::Exists { .. }
            | Self::OutOfRange(_)
            | Self::Issue(_)
            | Self::Unsafe
            | Self::Unreadable(_)
            | Self::Database(_) => false,
        }
    }
}

/// An act for the audit record: who did what to what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Act {
    /// When.
    pub at: Timestamp,
    /// An identity, `admin:<uid>`, or the source address of an anonymous peer.
    pub actor: String,
    /// `<area>.<verb>`.
    pub action: &'static str,
    /// To whom or what.
    pub subject: String,
    /// How it ended.
    pub reason: Reason,
    /// More of it.
    pub detail: serde_json::Value,
}

impl Act {
    /// An act that is done.
    pub fn done(
        at: Timestamp,
        actor: impl fmt::Display,
        action: &'static str,
        subject: impl fmt::Display,
    ) -> Self {
        Self {
            at,
            actor: actor.to_string(),
            action,
            subject: subject.to_string(),
            reason: Reason::Done,
            detail: serde_json::Value::Null,
        }
    }

    /// The same act with more of it.
    #[must_use]
    pub fn with(mut self, detail: serde_json::Value) -> Self {
        self.detail = detail;
        self
    }

    /// The same act as it ended when it was refused.
    #[must_use]
    pub fn refused(mut self, reason: Reason) -> Self {
        self.reason = reason;
        self
    }
}

/// How far a root is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RootState {
    /// Trusted, signs nothing yet.
    Prepared,
    /// Trusted, signs.
    Active,
    /// Trusted while the last certificates under it end.
    Tainted,
    /// Not trusted.
    Revoked,
}

/// A root certificate; its key lies in a file beside the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootRow {
    /// How far it is in its life.
    pub state: RootState,
    /// The certificate, DER.
    pub certificate: Vec<u8>,
    /// When it was made.
    pub created: Timestamp,
}

/// A join token as it is kept: without its secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRow {
    /// The SHA-256 of the secret.
    pub hash: [u8; 32],
    /// Whom it lets in.
    pub admits: Admits,
    /// When it was made.
    pub created: Timestamp,
    /// After this it lets nobody in.
    pub expires: Timestamp,
}

/// Whom a token lets in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admits {
    /// An agent of a tenant.
    Agent {
        /// The tenant that it joins.
        tenant: TenantName,
        /// The only name that it may take.
        name: Option<AgentName>,
        /// The labels that it gets.
        labels: BTreeMap<String, String>,
        /// The groups that it gets.
        groups: BTreeSet<GroupName>,
    },
    /// A relay.
    Relay {
        /// The only name that it may take.
        name: Option<NodeName>,
    },
}

/// A node's attempt to use a token.
#[derive(Debug, Clone)]
pub struct Redemption {
    /// The SHA-256 of the secret that it showed.
    pub hash: [u8; 32],
    /// The role that it asks for.
    pub role: Role,
    /// The name that it asks for.
    pub name: Option<String>,
    /// What its machine is called: taken when neither the token nor `name` says a name.
    pub own_name: Option<String>,
    /// The SHA-256 of its key's SubjectPublicKeyInfo, lower-case hex.
    pub key_digest: String,
    /// Of a relay: where agents reach it.
    pub addresses: Vec<HostPort>,
    /// Where it comes from, for the audit record.
    pub source: String,
}

/// What the store notes of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// The serial number, lower-case hex.
    pub serial: String,
    /// The SHA-256 of its key's SubjectPublicKeyInfo, lower-case hex.
    pub key_digest: String,
    /// The chain, DER, the leaf first.
    pub chain: Vec<Vec<u8>>,
    /// When it ends.
    pub not_after: Timestamp,
}

/// Makes the certificate for a principal; called inside the transaction that records it.
pub type Issue<'a> =
    dyn Fn(&Principal) -> Result<Certificate, crate::pki::PkiError> + Send + Sync + 'a;

/// An agent that wants to provide a service which another agent owns.
#[derive(Debug, Clone, Copy)]
pub struct Sharing<'a> {
    /// Every rule of the tenant.
    pub rules: &'a [Rule],
    /// Who wants it.
    pub caller: &'a AgentId,
    /// What rules may know of it.
    pub agent: &'a Agent,
    /// What it wants to provide.
    pub service: &'a ServiceName,
    /// What is said of the service.
    pub service_labels: &'a BTreeMap<String, String>,
}

/// Whether policy allows the sharing; asked inside the transaction that would register it.
pub type MayProvide<'a> = dyn Fn(&Sharing<'_>) -> bool + Send + Sync + 'a;

/// What a certificate says of its holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Who it is.
    pub principal: Principal,
    /// The certificate's serial number, lower-case hex.
    pub serial: String,
    /// The SHA-256 of its key's SubjectPublicKeyInfo, lower-case hex.
    pub key_digest: String,
}

/// A node's attempt to come back with a certificate that ended.
#[derive(Debug, Clone)]
pub struct Recovery {
    /// Who it proved to be, and by which certificate.
    pub holder: Holder,
    /// Names the proof, which is good once.
    pub proof: [u8; 32],
    /// The SHA-256 of its next key's SubjectPublicKeyInfo, lower-case hex.
    pub key_digest: String,
    /// How long after its end a certificate is still good for coming back.
    pub within: SignedDuration,
    /// Where it comes from, for the audit record.
    pub source: String,
}

/// An agent's offer of services.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// Who offers.
    pub agent: AgentId,
    /// Counts the starts of the agent.
    pub generation: u64,
    /// What is offered, with what is said of each.
    pub services: BTreeMap<ServiceName, Offering>,
    /// Until when the offer stands without being repeated.
    pub lease_ends: Timestamp,
}

/// An agent as the store knows it.
pub type AgentRow = sealock_core::api::agent::AgentRow;

/// A relay as the store knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayRow {
    /// Its name.
    pub name: NodeName,
    /// Where agents reach it.
    pub addresses: Vec<HostPort>,
    /// When it joined.
    pub created: Timestamp,
    /// When it last spoke to the controller.
    pub last_seen: Option<Timestamp>,
}

/// What `apply` is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Apply {
    /// Change the rules.
    Now,
    /// Only say what would change.
    DryRun,
}

/// Which audit rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditQuery {
    /// The tenant; `None` for what belongs to none.
    pub tenant: Option<TenantName>,
    /// At most this many.
    pub limit: u32,
    /// Only rows before this number.
    pub before: Option<u64>,
    /// Only rows since this time.
    pub since: Option<Timestamp>,
    /// Only rows of this actor.
    pub actor: Option<String>,
    /// Only actions that are this or begin with it and a dot.
    pub action: Option<String>,
}

/// What [`Store::tidy`] keeps of what has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// Audit rows since then.
    pub audit_from: Timestamp,
    /// The last certificates of nodes that ended since then: they may come back.
    pub recoverable_from: Timestamp,
}

/// How much there is in a tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Agents that are not revoked.
    pub agents: u64,
    /// Services.
    pub services: u64,
    /// Rules.
    pub rules: u64,
}

/// What the controller remembers.
///
/// # Cancel safety
/// A dropped call has either happened whole or not at all; which of both is not known.
#[tonic::async_trait]
pub trait Store: fmt::Debug + Send + Sync + 'static {
    /// The value kept under `key`, after keeping `value` there if nothing was.
    async fn meta_or(&self, key: &str, value: &str) -> Result<String, StoreError>;

    /// Every root, the oldest first.
    async fn roots(&self) -> Result<Vec<RootRow>, StoreError>;
    /// Adds a root in the state `prepared`.
    async fn add_root(&self, certificate: &[u8], act: &Act) -> Result<(), StoreError>;
    /// Moves a root on; the root that was active before becomes tainted when another one is activated.
    async fn set_root(
        &self,
        certificate: &[u8],
        state: RootState,
        act: &Act,
    ) -> Result<(), StoreError>;

    /// Makes a tenant with its first rules; says whether there was none.
    async fn add_tenant(
        &self,
        tenant: &TenantName,
        rules: &[Rule],
        act: &Act,
    ) -> Result<bool, StoreError>;
    /// The version of each tenant's view.
    async fn versions(&self) -> Result<BTreeMap<TenantName, ViewVersion>, StoreError>;
    /// Makes the version of a tenant's view greater than `than`, if it is not.
    async fn raise_view(
        &self,
        tenant: &TenantName,
        than: ViewVersion,
        act: &Act,
    ) -> Result<(), StoreError>;
    /// A tenant's entries and their version, read in one moment.
    async fn view(&self, tenant: &TenantName) -> Result<(ViewVersion, Entries), StoreError>;
    /// How much there is in a tenant.
    async fn counts(&self, tenant: &TenantName) -> Result<Counts, StoreError>;

    /// Keeps a token.
    async fn add_token(&self, token: &TokenRow, act: &Act) -> Result<(), StoreError>;
    /// Uses a token: checks it, makes the identity, issues the certificate and marks the token, all or nothing.
    async fn redeem(
        &self,
        redemption: &Redemption,
        now: Timestamp,
        issue: &Issue<'_>,
    ) -> Result<(Principal, Certificate), StoreError>;

    /// Whether the holder's certificate still stands: issued here, neither it nor its holder revoked.
    async fn admits(&self, holder: &Holder) -> Result<bool, StoreError>;
    /// Issues the next certificate of a holder who is still admitted.
    async fn renew(
        &self,
        holder: &Holder,
        key_digest: &str,
        now: Timestamp,
        issue: &Issue<'_>,
    ) -> Result<Certificate, StoreError>;
    /// Issues the next certificate of a holder whose last one has ended, when neither is revoked, the proof is new, and
    /// no later certificate has been [kept](Self::keeps).
    async fn recover(
        &self,
        recovery: &Recovery,
        now: Timestamp,
        issue: &Issue<'_>,
    ) -> Result<Certificate, StoreError>;
    /// Notes that the holder has this certificate on its disk: what it had there before is good for nothing any more.
    async fn keeps(&self, holder: &Holder, now: Timestamp) -> Result<(), StoreError>;
    /// Issues a certificate for a role of this process, without a token.
    async fn issue_own(
        &self,
        principal: &Principal,
        now: Timestamp,
        issue: &Issue<'_>,
    ) -> Result<Certificate, StoreError>;

    /// The tenant's agents, in name order.
    async fn agents(&self, tenant: &TenantName) -> Result<Vec<AgentRow>, StoreError>;
    /// Ends an agent's identity; says how many certificates that revoked.
    async fn revoke_agent(
        &self,
        agent: &AgentId,
        act: &Act,
    ) -> Result<(u64, ViewVersion), StoreError>;

    /// Takes a registration or a heartbeat; answers each service.
    async fn register(
        &self,
        registration: &Registration,
        now: Timestamp,
        may_provide: &MayProvide<'_>,
    ) -> Result<BTreeMap<ServiceName, Reason>, StoreError>;
    /// Takes services back that were registered with this or an older generation; says how many.
    async fn unregister(
        &self,
        agent: &AgentId,
        generation: u64,
        services: &BTreeSet<ServiceName>,
        now: Timestamp,
    ) -> Result<u64, StoreError>;
    /// The tenant's services, in name order; live is what has a lease at `now`.
    async fn services(
        &self,
        tenant: &TenantName,
        now: Timestamp,
    ) -> Result<Vec<ServiceRow>, StoreError>;
    /// Removes a service, or one agent's registration of it; says how many registrations went.
    async fn remove_service(
        &self,
        tenant: &TenantName,
        service: &ServiceName,
        agent: Option<&AgentName>,
        act: &Act,
    ) -> Result<(u64, ViewVersion), StoreError>;
    /// Gives every registration at least this lease: nobody could repeat an offer while the controller was away.
    async fn extend_leases(&self, until: Timestamp) -> Result<(), StoreError>;

    /// The tenant's rules, in the order of their ids, and the version of the view that holds them.
    async fn rules(&self, tenant: &TenantName) -> Result<(Vec<RuleRow>, ViewVersion), StoreError>;
    /// Adds a rule.
    async fn add_rule(
        &self,
        tenant: &TenantName,
        rule: &Rule,
        origin: Origin,
        act: &Act,
    ) -> Result<ViewVersion, StoreError>;
    /// Removes a rule.
    async fn remove_rule(
        &self,
        tenant: &TenantName,
        id: &RuleId,
        act: &Act,
    ) -> Result<(Rule, ViewVersion), StoreError>;
    /// Replaces the rules that came from a file.
    async fn apply_rules(
        &self,
        tenant: &TenantName,
        rules: &[Rule],
        mode: Apply,
        act: &Act,
    ) -> Result<ApplyResponse, StoreError>;

    /// The relays, in name order.
    async fn relays(&self) -> Result<Vec<RelayRow>, StoreError>;
    /// Notes that a node spoke; `addresses` are a relay's own, when it told them.
    async fn seen(
        &self,
        principal: &Principal,
        addresses: Option<&[HostPort]>,
        now: Timestamp,
    ) -> Result<(), StoreError>;

    /// Adds rows to a chain, in one transaction; `None` is the chain of what belongs to no tenant.
    async fn record(&self, tenant: Option<&TenantName>, acts: &[Act]) -> Result<(), StoreError>;
    /// Audit rows, the newest first, and whether there are more.
    async fn audit(&self, query: &AuditQuery) -> Result<(Vec<AuditRow>, bool), StoreError>;
    /// Recomputes a chain over all kept rows.
    async fn verify_audit(&self, tenant: Option<&TenantName>)
    -> Result<VerifyResponse, StoreError>;

    /// Drops what time has ended.
    async fn tidy(&self, now: Timestamp, keep: Keep) -> Result<(), StoreError>;
}

/// The text under which a principal stands in the `holder` and `actor` columns.
fn principal_text(principal: &Principal) -> String {
    principal.to_string()
}

/// What goes into a chain's hash beside the hash before it.
struct Link<'a> {
    number: u64,
    at: i64,
    actor: &'a str,
    action: &'a str,
    subject: &'a str,
    reason: u32,
    detail: &'a str,
}

impl Link<'_> {
    /// The SHA-256 over the hash before and all fields, each behind its length, so that no two rows share one spelling.
    fn hash(&self, before: &[u8]) -> [u8; 32] {
        use sha2::{Digest, Sha256};
        let mut hash = Sha256::new();
        let number = self.number.to_be_bytes();
        let at = self.at.to_be_bytes();
        let reason = self.reason.to_be_bytes();
        let parts: [&[u8]; 8] = [
            before,
            &number,
            &at,
            self.actor.as_bytes(),
            self.action.as_bytes(),
            self.subject.as_bytes(),
            &reason,
            self.detail.as_bytes(),
        ];
        for part in parts {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        hash.finalize().into()
    }
}
