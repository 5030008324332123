//! The methods of the node interface: each asks first who calls, by the certificate alone.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use sealock_core::address::HostPort;
use sealock_core::identity::{AgentId, Principal, Role, SpiffeId};
use sealock_core::name::{NodeName, Region, ServiceName, TenantName};
use sealock_core::policy::{Action, Question, RuleSet, Subject};
use sealock_core::reason::Reason;
use sealock_core::view::{Offering, ViewVersion};
use sealock_net::identity::PeerIdentity;
use sealock_net::node_api::proto::node_server::Node;
use sealock_net::node_api::{self, BadMessage, DecisionRow, REASON_KEY, WatchEvent, proto};
use sealock_net::relays::{RELAYS_LIMIT, Relay};
use sealock_net::task::Spawner;
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio_stream::Stream;
use tonic::{Code, Request, Response, Status};

use super::budget::Budgets;
use super::{Limits, Peer};
use crate::pki::{Authority, Csr, PkiError, Profile};
use crate::store::{
    Act, Certificate, Holder, Redemption, Registration, Sharing, Store, StoreError,
};
use crate::views::{Mark, Views};

/// How long a registration stands without being repeated.
pub const LEASE: SignedDuration = SignedDuration::from_secs(60);
const SERVICES: usize = 1_024; // of one agent; a heartbeat names them all
const ADDRESSES: usize = 16; // of one relay; a join token takes no more
const LEAP: u64 = 1_000_000; // more changes than a copy can have missed; a claim beyond it is a lie
const SECRET_LENGTH: usize = 16;

/// What all methods share.
#[derive(Debug)]
pub struct Shared {
    /// What the controller remembers.
    pub store: Arc<dyn Store>,
    /// Who signs certificates.
    pub authority: Authority,
    /// What nodes are told.
    pub views: Arc<Views>,
    /// The clock.
    pub now: fn() -> Timestamp,
    /// How long after its certificate ended a node may come back without a new token.
    pub recover_within: SignedDuration,
    watching: Mutex<BTreeMap<NodeName, Watching>>,
}

/// A relay that watches.
#[derive(Debug, Default)]
struct Watching {
    /// How many watches it has: two for the moment of a renewal.
    count: u32,
    /// Where it says that it is.
    region: Option<Region>,
}

impl Shared {
    /// Puts the parts together.
    #[must_use]
    pub fn new(
        store: Arc<dyn Store>,
        authority: Authority,
        views: Arc<Views>,
        now: fn() -> Timestamp,
        recover_within: SignedDuration,
    ) -> Arc<Self> {
        Arc::new(Self {
            store,
            authority,
            views,
            now,
            recover_within,
            watching: Mutex::new(BTreeMap::new()),
        })
    }

    /// Whether the relay watches right now.
    #[must_use]
    pub fn is_watching(&self, relay: &NodeName) -> bool {
        self.watching.lock().contains_key(relay)
    }

    /// The relays as nodes are told of them.
    async fn relays(&self) -> Result<Vec<Relay>, StoreError> {
        let known = self.store.relays().await?;
        let watching = self.watching.lock();
        let relay = |row: crate::store::RelayRow| {
            let seen = watching.get(&row.name);
            Relay {
                region: seen.and_then(|seen| seen.region.clone()),
                connected: seen.is_some(),
                name: row.name,
                addresses: row.addresses,
            }
        };
        Ok(known.into_iter().take(RELAYS_LIMIT).map(relay).collect())
    }

    fn id(&self, principal: &Principal) -> SpiffeId {
        SpiffeId {
            trust_domain: self.authority.trust().trust_domain.clone(),
            principal: principal.clone(),
        }
    }

    pub(super) fn issue<'a>(
        &'a self,
        csr: &'a Csr,
        now: Timestamp,
    ) -> impl Fn(&Principal) -> Result<Certificate, PkiError> + Send + Sync + 'a {
        move |principal| {
            let id = self.id(principal);
            self.authority.issue(&id, csr, Profile::Role, now)
        }
    }
}

/// The node interface.
#[derive(Debug, Clone)]
pub struct NodeService {
    pub(super) shared: Arc<Shared>,
    budgets: Arc<Budgets>,
    spawner: Spawner,
}

impl NodeService {
    /// Serves what `shared` holds; watches end when the scope of `spawner` is asked to stop.
    #[must_use]
    pub fn new(shared: Arc<Shared>, limits: Limits, spawner: Spawner) -> Self {
        Self {
            shared,
            budgets: Budgets::new(limits),
            spawner,
        }
    }

    pub(super) fn budgets(&self) -> &Arc<Budgets> {
        &self.budgets
    }

    /// The caller, when its certificate stands and its role may use the method.
    async fn caller<T>(
        &self,
        request: &Request<T>,
        method: &'static str,
        roles: &[Role],
    ) -> Result<Caller, Status> {
        let peer = peer(request)?;
        let Some(identity) = peer.identity else {
            return Err(refuse(Code::Unauthenticated, Reason::NotAdmitted));
        };
        let admitted = self.admit(&identity, roles).await;
        if let Err((_, reason)) = &admitted {
            let act = Act::done((self.shared.now)(), &identity.id, method, &identity.id);
            let act = act.refused(*reason).with(json!({"source": peer.source}));
            self.record(None, &[act]).await?;
        }
        match admitted {
            Ok(()) => Ok(Caller { identity }),
            Err((code, reason)) => Err(refuse(code, reason)),
        }
    }

    async fn admit(&self, peer: &PeerIdentity, roles: &[Role]) -> Result<(), (Code, Reason)> {
        let denied = (Code::PermissionDenied, Reason::NotAdmitted);
        let is_ours = peer.id.trust_domain == self.shared.authority.trust().trust_domain;
        if !is_ours || !roles.contains(&peer.role()) {
            return Err(denied);
        }
        // A connection outlives its handshake; the certificate does not.
        if peer.not_after <= (self.shared.now)() {
            return Err((Code::Unauthenticated, Reason::NotAdmitted));
        }
        match self.shared.store.admits(&holder(peer)).await {
            Ok(true) => Ok(()),
            Ok(false) => Err((Code::Unauthenticated, Reason::IdentityRevoked)),
            Err(err) => {
                tracing::warn!(%err, "the store could not say whether a certificate stands");
                Err((Code::Unavailable, Reason::ControllerUnreachable))
            }
        }
    }

    pub(super) async fn record(
        &self,
        tenant: Option<&TenantName>,
        acts: &[Act],
    ) -> Result<(), Status> {
        let recorded = self.shared.store.record(tenant, acts).await;
        recorded.map_err(|error| status(&error))
    }

    async fn redeem(
        &self,
        peer: &Peer,
        request: proto::EnrolRequest,
    ) -> Result<proto::Identity, Status> {
        let role: Role = request.role().try_into().map_err(bad)?;
        let csr = Csr::read(&request.csr).map_err(|_| bad(BadMessage("certificate request")))?;
        if request.secret.len() != SECRET_LENGTH {
            return Err(refuse(Code::Unauthenticated, Reason::TokenInvalid));
        }
        let redemption = Redemption {
            hash: Sha256::digest(&request.secret).into(),
            role,
            name: (!request.name.is_empty()).then_some(request.name),
            own_name: (!request.own_name.is_empty()).then_some(request.own_name),
            key_digest: csr.key_digest().to_owned(),
            addresses: addresses(&request.addresses)?,
            source: peer.source.to_string(),
        };
        let now = (self.shared.now)();
        let issue = self.shared.issue(&csr, now);
        let redeemed = self.shared.store.redeem(&redemption, now, &issue).await;
        if let Err(StoreError::Refused(reason)) = &redeemed {
            let name = redemption
                .name
                .as_deref()
                .or(redemption.own_name.as_deref());
            let name = name.unwrap_or_default();
            let act = Act::done(now, peer.source, "node.enrol", name).refused(*reason);
            self.record(None, &[act]).await?;
        }
        let (principal, certificate) = redeemed.map_err(|error| status(&error))?;
        self.shared.views.poke();
        Ok(self.identity(&principal, certificate))
    }

    /// A node that knows a newer view than we have shows that our database is a restored copy. Nodes never go back, so
    /// our version goes past theirs; otherwise they would keep the rules and revocations of before for good.
    async fn catch_up(
        &self,
        caller: &Caller,
        have: &BTreeMap<TenantName, Has>,
    ) -> Result<(), Status> {
        for (tenant, has) in have.iter().filter(|(tenant, _)| caller.may_see(tenant)) {
            let Some(newest) = self.shared.views.newest(tenant) else {
                continue;
            };
            let claimed = has.mark().version;
            let ahead = claimed.0.saturating_sub(newest.head.head.version.0);
            if ahead == 0 || ahead > LEAP {
                continue;
            }
            tracing::warn!(%tenant, ahead, "a node knows a newer view: is the database a restored copy?");
            let actor = &caller.identity.id.principal;
            let act = Act::done((self.shared.now)(), actor, "view.raise", tenant);
            let act = act.with(json!({"claimed": claimed, "ahead": ahead}));
            let raised = self.shared.store.raise_view(tenant, claimed, &act).await;
            raised.map_err(|error| status(&error))?;
            self.shared.views.poke();
        }
        Ok(())
    }

    pub(super) fn identity(
        &self,
        principal: &Principal,
        certificate: Certificate,
    ) -> proto::Identity {
        proto::Identity {
            chain: certificate.chain,
            trust: Some(self.shared.authority.trust().into()),
            id: self.shared.id(principal).to_string(),
        }
    }
}

struct Caller {
    identity: Arc<PeerIdentity>,
}

impl Caller {
    fn agent(&self) -> Result<&AgentId, Status> {
        let agent = self.identity.agent();
        agent.ok_or_else(|| refuse(Code::PermissionDenied, Reason::NotAdmitted))
    }

    /// The tenants of which it may know: an agent its own, a relay all.
    fn may_see(&self, tenant: &TenantName) -> bool {
        match &self.identity.id.principal {
            Principal::Agent(agent) => agent.tenant == *tenant,
            Principal::Relay(_) => true,
            Principal::User { .. } | Principal::Controller(_) => false,
        }
    }
}

fn peer<T>(request: &Request<T>) -> Result<Peer, Status> {
    let peer = request.extensions().get::<Peer>();
    peer.cloned()
        .ok_or_else(|| refuse(Code::Unauthenticated, Reason::NotAdmitted))
}

pub(super) fn holder(peer: &PeerIdentity) -> Holder {
    Holder {
        principal: peer.id.principal.clone(),
        serial: peer.serial.clone(),
        key_digest: peer.key_digest.clone(),
    }
}

pub(super) fn refuse(code: Code, reason: Reason) -> Status {
    let mut status = Status::new(code, reason.text());
    status
        .metadata_mut()
        .insert(REASON_KEY, reason.number().into());
    status
}

pub(super) fn bad(error: BadMessage) -> Status {
    let mut status = Status::invalid_argument(error.to_string());
    let number = Reason::ProtocolViolation.number();
    status.metadata_mut().insert(REASON_KEY, number.into());
    status
}

/// What a node may learn of our failures: the reason, never the cause.
pub(super) fn status(error: &StoreError) -> Status {
    match error {
        StoreError::Refused(reason) => {
            let is_about_caller = matches!(
                reason,
                Reason::TokenInvalid | Reason::IdentityRevoked | Reason::NotAdmitted
            );
            let code = if is_about_caller {
                Code::Unauthenticated
            } else {
                Code::FailedPrecondition
            };
            refuse(code, *reason)
        }
        StoreError::OutOfRange(what) => bad(BadMessage(what)),
        StoreError::NoSuch { .. } | StoreError::Exists { .. } => {
            refuse(Code::NotFound, Reason::NotAdmitted)
        }
        StoreError::Issue(err) => {
            tracing::error!(%err, "a certificate could not be issued");
            refuse(Code::Internal, Reason::Internal)
        }
        StoreError::Full
        | StoreError::Busy
        | StoreError::Unsafe
        | StoreError::Unreadable(_)
        | StoreError::Database(_) => {
            tracing::error!(err = error as &dyn std::error::Error, "the store failed");
            refuse(Code::Unavailable, Reason::ControllerUnreachable)
        }
    }
}

fn addresses(texts: &[String]) -> Result<Vec<HostPort>, Status> {
    if texts.len() > ADDRESSES {
        return Err(bad(BadMessage("list of addresses")));
    }
    let parse = |text: &String| text.parse().map_err(|_| bad(BadMessage("address")));
    texts.iter().map(parse).collect()
}

fn services<'a>(names: impl Iterator<Item = &'a str>) -> Result<Vec<ServiceName>, Status> {
    let parse = |name: &str| name.parse().map_err(|_| bad(BadMessage("service name")));
    let names: Vec<ServiceName> = names
        .take(SERVICES + 1)
        .map(parse)
        .collect::<Result<_, _>>()?;
    if names.len() > SERVICES {
        return Err(bad(BadMessage("number of services")));
    }
    Ok(names)
}

fn may_provide(sharing: &Sharing<'_>, now: Timestamp) -> bool {
    let question = Question {
        caller: sharing.caller,
        groups: &sharing.agent.groups,
        labels: &sharing.agent.labels,
        action: Action::Provide,
        subject: Subject::Service {
            name: sharing.service,
            labels: Some(sharing.service_labels),
        },
    };
    let rules = RuleSet::new(sharing.rules.to_vec());
    rules.decide(&question, now).is_allowed()
}

type Events = Pin<Box<dyn Stream<Item = Result<proto::WatchEvent, Status>> + Send>>;

const NODES: &[Role] = &[Role::Agent, Role::Relay];
const AGENTS: &[Role] = &[Role::Agent];

#[tonic::async_trait]
impl Node for NodeService {
    async fn enrol(
        &self,
        request: Request<proto::EnrolRequest>,
    ) -> Result<Response<proto::Identity>, Status> {
        let peer = peer(&request)?;
        if !self.budgets.join(peer.source.ip(), Instant::now()) {
            return Err(refuse(Code::ResourceExhausted, Reason::Overloaded));
        }
        let identity = self.redeem(&peer, request.into_inner()).await?;
        Ok(Response::new(identity))
    }

    async fn recover(
        &self,
        request: Request<proto::RecoverRequest>,
    ) -> Result<Response<proto::Identity>, Status> {
        let peer = peer(&request)?;
        if !self.budgets.join(peer.source.ip(), Instant::now()) {
            return Err(refuse(Code::ResourceExhausted, Reason::Overloaded));
        }
        let identity = self.take_back(&peer, request.into_inner()).await?;
        Ok(Response::new(identity))
    }

    async fn renew(
        &self,
        request: Request<proto::RenewRequest>,
    ) -> Result<Response<proto::Identity>, Status> {
        let caller = self.caller(&request, "node.renew", NODES).await?;
        let csr = Csr::read(&request.get_ref().csr);
        let csr = csr.map_err(|_| bad(BadMessage("certificate request")))?;
        let now = (self.shared.now)();
        let holder = holder(&caller.identity);
        let issue = self.shared.issue(&csr, now);
        let renewed = self
            .shared
            .store
            .renew(&holder, csr.key_digest(), now, &issue)
            .await;
        let certificate = renewed.map_err(|error| status(&error))?;
        Ok(Response::new(self.identity(&holder.principal, certificate)))
    }

    type WatchStream = Events;

    async fn watch(
        &self,
        request: Request<proto::WatchRequest>,
    ) -> Result<Response<Events>, Status> {
        let caller = self.caller(&request, "node.watch", NODES).await?;
        let principal = &caller.identity.id.principal;
        let seen = self.shared.store.seen(principal, None, (self.shared.now)());
        seen.await.map_err(|error| status(&error))?;
        let request = request.into_inner();
        if request.kept {
            let holder = holder(&caller.identity);
            let noted = self.shared.store.keeps(&holder, (self.shared.now)());
            noted.await.map_err(|error| status(&error))?;
        }
        let mut have = BTreeMap::new();
        let region = node_api::region(&request.region).map_err(bad)?;
        for row in request.have {
            let tenant = row.tenant.parse().map_err(|_| bad(BadMessage("tenant")))?;
            have.insert(tenant, Has::Claimed(ViewVersion(row.version)));
        }
        self.catch_up(&caller, &have).await?;
        let watcher = Watcher::new(self.clone(), caller, have, region);
        let events = futures_util::stream::unfold(watcher, |mut watcher| async {
            let event = watcher.next().await?;
            Some((event, watcher))
        });
        Ok(Response::new(Box::pin(events)))
    }

    async fn register(
        &self,
        request: Request<proto::RegisterRequest>,
    ) -> Result<Response<proto::RegisterResponse>, Status> {
        let caller = self.caller(&request, "node.register", AGENTS).await?;
        let request = request.into_inner();
        let names = services(request.services.iter().map(|offer| offer.name.as_str()))?;
        let offerings = request.services.into_iter().map(Offering::try_from);
        let offerings: Vec<Offering> = offerings.collect::<Result<_, _>>().map_err(bad)?;
        let now = (self.shared.now)();
        let registration = Registration {
            agent: caller.agent()?.clone(),
            generation: request.generation,
            services: names.into_iter().zip(offerings).collect(),
            lease_ends: now.saturating_add(LEASE).unwrap_or(Timestamp::MAX),
        };
        let may = |sharing: &Sharing<'_>| may_provide(sharing, now);
        let answers = self.shared.store.register(&registration, now, &may).await;
        let answers = answers.map_err(|error| status(&error))?;
        self.shared.views.poke();
        let row = |(name, reason): (ServiceName, Reason)| proto::Registered {
            name: name.to_string(),
            reason: reason.number(),
        };
        Ok(Response::new(proto::RegisterResponse {
            services: answers.into_iter().map(row).collect(),
            lease_seconds: u32::try_from(LEASE.as_secs()).unwrap_or(u32::MAX),
        }))
    }

    async fn unregister(
        &self,
        request: Request<proto::UnregisterRequest>,
    ) -> Result<Response<proto::UnregisterResponse>, Status> {
        let caller = self.caller(&request, "node.unregister", AGENTS).await?;
        let request = request.into_inner();
        let names = services(request.services.iter().map(String::as_str))?;
        let names: BTreeSet<ServiceName> = names.into_iter().collect();
        let now = (self.shared.now)();
        let agent = caller.agent()?;
        let gone = self
            .shared
            .store
            .unregister(agent, request.generation, &names, now)
            .await;
        gone.map_err(|error| status(&error))?;
        self.shared.views.poke();
        Ok(Response::new(proto::UnregisterResponse {}))
    }

    async fn report(
        &self,
        request: Request<proto::ReportRequest>,
    ) -> Result<Response<proto::ReportResponse>, Status> {
        let caller = self.caller(&request, "node.report", NODES).await?;
        let request = request.into_inner();
        let now = (self.shared.now)();
        let mut acts: BTreeMap<TenantName, Vec<Act>> = BTreeMap::new();
        for row in request.decisions {
            let mut row = DecisionRow::try_from(row).map_err(bad)?;
            // An agent speaks for its own tenant, whatever it wrote.
            if let Some(agent) = caller.identity.agent() {
                row.tenant = agent.tenant.clone();
            }
            let act = decision(&caller, &row, now);
            acts.entry(row.tenant).or_default().push(act);
        }
        let known = self.shared.views.tenants();
        for (tenant, acts) in acts.iter().filter(|(tenant, _)| known.contains(tenant)) {
            self.record(Some(tenant), acts).await?;
        }
        let told = addresses(&request.addresses)?;
        let told = (!told.is_empty()).then_some(told.as_slice());
        let principal = &caller.identity.id.principal;
        let seen = self.shared.store.seen(principal, told, now).await;
        seen.map_err(|error| status(&error))?;
        if told.is_some() {
            // It may have moved; each watcher compares for itself.
            self.shared.views.announce();
        }
        Ok(Response::new(proto::ReportResponse {}))
    }
}

/// The row keeps the controller's time; the node's own clock stands beside it.
fn decision(caller: &Caller, row: &DecisionRow, now: Timestamp) -> Act {
    let actor = &caller.identity.id.principal;
    Act::done(now, actor, "flow.open", &row.service)
        .refused(row.reason)
        .with(json!({
            "caller": row.caller, "rule": row.rule, "count": row.count, "at": row.at,
        }))
}

/// What a watcher has of a tenant.
#[derive(Debug, Clone, Copy)]
enum Has {
    /// It says so; whether the head is the newest is not known.
    Claimed(ViewVersion),
    /// We sent it.
    Sent(Mark),
}

impl Has {
    fn mark(self) -> Mark {
        match self {
            // No head is of this time, so the newest head is sent once even when the version fits.
            Self::Claimed(version) => Mark {
                version,
                issued_at: Timestamp::MIN,
            },
            Self::Sent(mark) => mark,
        }
    }
}

/// One open watch.
struct Watcher {
    service: NodeService,
    caller: Caller,
    news: tokio::sync::watch::Receiver<u64>,
    has: BTreeMap<TenantName, Has>,
    has_trust: bool,
    /// The relays that it was told of.
    relays: Vec<Relay>,
    has_ended: bool,
}

impl Drop for Watcher {
    fn drop(&mut self) {
        if let Principal::Relay(relay) = &self.caller.identity.id.principal {
            let mut watching = self.service.shared.watching.lock();
            if let Some(seen) = watching.get_mut(relay) {
                seen.count -= 1;
                if seen.count == 0 {
                    watching.remove(relay);
                }
            }
            drop(watching);
            self.service.shared.views.announce();
        }
    }
}

impl Watcher {
    fn new(
        service: NodeService,
        caller: Caller,
        has: BTreeMap<TenantName, Has>,
        region: Option<Region>,
    ) -> Self {
        if let Principal::Relay(relay) = &caller.identity.id.principal {
            let mut watching = service.shared.watching.lock();
            let seen = watching.entry(relay.clone()).or_default();
            seen.count += 1;
            seen.region = region;
            drop(watching);
            service.shared.views.announce();
        }
        Self {
            news: service.shared.views.news(),
            service,
            caller,
            has,
            has_trust: false,
            relays: Vec::new(),
            has_ended: false,
        }
    }

    async fn next(&mut self) -> Option<Result<proto::WatchEvent, Status>> {
        if self.has_ended {
            return None;
        }
        if !self.has_trust {
            self.has_trust = true;
            let trust = self.service.shared.authority.trust().clone();
            return Some(Ok((&WatchEvent::Trust(trust)).into()));
        }
        loop {
            // Before the look, so that what comes during it wakes us again.
            self.news.borrow_and_update();
            let admitted = self.service.admit(&self.caller.identity, NODES).await;
            if let Err((code, reason)) = admitted {
                self.has_ended = true;
                return Some(Err(refuse(code, reason)));
            }
            if let Some(event) = self.step() {
                return Some(Ok((&event).into()));
            }
            match self.service.shared.relays().await {
                Ok(relays) if self.relays != relays => {
                    self.relays.clone_from(&relays);
                    return Some(Ok((&WatchEvent::Relays(relays)).into()));
                }
                Ok(_) => {}
                Err(err) => tracing::warn!(%err, "the relays could not be read"),
            }
            self.wait().await?;
        }
    }

    fn step(&mut self) -> Option<WatchEvent> {
        let views = &self.service.shared.views;
        let mut tenants = views.tenants();
        tenants.retain(|tenant| self.caller.may_see(tenant));
        for tenant in tenants {
            let have = self.has.get(&tenant).map(|has| has.mark());
            if let Some((mark, event)) = views.step(&tenant, have) {
                self.has.insert(tenant, Has::Sent(mark));
                return Some(event);
            }
        }
        None
    }

    /// Until there is news or the certificate ends; nothing when the controller stops.
    async fn wait(&mut self) -> Option<()> {
        let left = self
            .caller
            .identity
            .not_after
            .duration_since((self.service.shared.now)());
        let left = left.unsigned_abs(); // admitted just before, so it is not over
        tokio::select! {
            biased; // a stopping controller ends its watches
            () = self.service.spawner.stopping() => None,
            changed = self.news.changed() => changed.ok(),
            () = tokio::time::sleep(left) => Some(()),
        }
    }
}
