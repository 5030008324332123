//! Starts an agent from what it needs, and keeps it until its handle is stopped.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus_client::registry::Registry;
use sealock_core::address::{HostPort, Target};
use sealock_core::config::Transport;
use sealock_core::fact::{Fact, Facts, Goal, Source};
use sealock_core::identity::{AgentId, SpiffeId};
use sealock_core::name::{Region, ServiceName};
use sealock_core::reason::Reason;
use sealock_core::route::{Routes, Way};
use sealock_flow::arrival::InletKind;
use sealock_flow::audit::{self, Audit};
use sealock_flow::hop::{self, Hop, REJUDGE_EVERY};
use sealock_flow::inlet;
use sealock_flow::inlet::door::{Door, Speech};
use sealock_flow::live::{LiveFlow, LiveFlows};
use sealock_flow::meter::Meter;
use sealock_flow::rules::Rules;
use sealock_net::admin::{self, AdminError};
use sealock_net::e2e::EndToEnd;
use sealock_net::files::{self, FileError};
use sealock_net::identity::{IdentityDir, IdentityStore, LoadError, Svid, Trust, TrustStore};
use sealock_net::link::{Link, RenewError, WayBack};
use sealock_net::node_api::NodeClient;
use sealock_net::recover::{RecoverError, recover_agent};
use sealock_net::relays::RelayList;
use sealock_net::session::{self, Dialer, Plan, Session, SessionConfig, Sessions, State, Ways};
use sealock_net::stream::Bulk;
use sealock_net::task::Scope;
use sealock_net::transport::Settings;
use sealock_net::unix::{BindError, PrivateListener};
use sealock_net::views::ViewStore;
use sealock_proto::door::Login;
use sealock_proto::wire::SessionKind;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::control;
use crate::egress::EgressJudge;
use crate::health;
use crate::judge::{CallerJudge, DoorJudge, ProviderJudge};
use crate::listeners::{ListenError, Listeners};
use crate::offers::{self, NewOffer, Offers};
use crate::provide;

/// What an agent needs.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// Its state: identity, views, where its relays are.
    pub dir: PathBuf,
    /// The relays that its token named; the controller tells of others.
    pub relays: Vec<HostPort>,
    /// Where it is, as its operator calls it: relays of the same region come first.
    pub region: Option<Region>,
    /// Whether it offers services too, or only opens them.
    pub kind: SessionKind,
    /// By which ways relays are reached.
    pub ways: Plan,
    /// How old a view may be and still allow anything.
    pub max_policy_age: Duration,
    /// How many bytes its streams may hold and promise to hold together.
    pub stream_memory: u64,
    /// Which streams are bulk, and get a conduit.
    pub bulk: Bulk,
    /// Its control socket, when it has one.
    pub socket: Option<ControlSocket>,
    /// Where metrics and health are served.
    pub admin: Option<SocketAddr>,
}

/// Where other programs of the machine talk to an agent.
#[derive(Debug, Clone)]
pub struct ControlSocket {
    /// Its path.
    pub path: PathBuf,
    /// Whether the agent stays when the program that began it is done; only then can something be left to it.
    pub stays: bool,
}

/// Why an agent does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// It has not joined.
    #[error("this machine has not joined (no identity in {}); hint: `sealock token create` on the controller, then `sealock join SLK1-…` here", .0.display())]
    NotJoined(PathBuf),
    /// Its certificate has ended while it was away, and the controller did not take it back.
    #[error(
        "this machine's certificate ended at {ended}, and it was given no new one: {}; hint: `sealock token create` on the controller, then `sealock join SLK1-…` here", why.reason().text()
    )]
    Expired {
        /// When.
        ended: jiff::Timestamp,
        /// Why it was not taken back.
        why: RecoverError,
    },
    /// Its certificate has ended while it was away, and nobody could be asked for a new one.
    #[error(
        "this machine's certificate ended at {ended}, and the controller cannot be reached for a new one; hint: start it again when `sealock up` runs there and this machine may send UDP to it"
    )]
    ExpiredAndAlone {
        /// When.
        ended: jiff::Timestamp,
        /// What was tried last.
        why: RecoverError,
    },
    /// Its identity is none of an agent.
    #[error("the identity in {} belongs to {id}, which is no agent; hint: use another state directory", dir.display())]
    NotAgent {
        /// Where it is.
        dir: PathBuf,
        /// Whose it is.
        id: SpiffeId,
    },
    /// Its identity cannot be read.
    #[error("this machine's identity cannot be used")]
    Identity(#[from] LoadError),
    /// Its state directory cannot be used.
    #[error("the state directory cannot be used")]
    State(#[from] FileError),
    /// The control socket cannot be made.
    #[error(transparent)]
    Socket(#[from] BindError),
    /// No UDP socket.
    #[error("no UDP socket can be opened")]
    Udp(#[source] std::io::Error),
    /// The admin address cannot be served.
    #[error(transparent)]
    Admin(#[from] AdminError),
}

/// A front door that is to be opened.
#[derive(Debug, Clone)]
pub struct DoorPlan {
    /// In which protocol it is spoken to.
    pub speech: Speech,
    /// Where it listens.
    pub listen: SocketAddr,
    /// What its clients have to show.
    pub login: Option<Login>,
    /// By which ways its flows to places outside go.
    pub ways: Vec<Way>,
}

/// What all parts of an agent share.
#[derive(Clone)]
pub(crate) struct Parts {
    pub(crate) me: AgentId,
    pub(crate) id: SpiffeId,
    pub(crate) identity: IdentityStore,
    pub(crate) started: jiff::Timestamp,
    pub(crate) sessions: Sessions,
    pub(crate) dialer: Dialer,
    pub(crate) views: ViewStore,
    pub(crate) offers: Offers,
    pub(crate) listeners: Listeners,
    /// The judge of what this agent opens.
    pub(crate) calls: CallerJudge,
    /// The pipe for what this agent opens.
    pub(crate) caller: Hop,
    /// The pipe for what others open here.
    pub(crate) provider: Hop,
    pub(crate) flows: sealock_net::task::Spawner,
}

impl Parts {
    /// What is known of a flow that this agent opens.
    pub(crate) fn facts(&self, service: ServiceName) -> Facts {
        Facts {
            tenant: self.me.tenant.clone(),
            caller: Fact::new(self.me.clone(), Source::Configured),
            certificate: None,
            goal: Goal::Service(Fact::new(service, Source::Configured)),
        }
    }
}

impl Parts {
    /// Whether policy, as far as it is known here, allows an open. What waiting may mend is no refusal.
    pub(crate) fn may_open(&self, facts: &Facts) -> Result<(), Reason> {
        match self.caller.judge.judge(facts) {
            Err(Reason::NoSuchService) => Ok(()),
            Err(reason) if !reason.is_transient() => {
                self.caller.note_refusal(InletKind::Port, facts, reason);
                Err(reason)
            }
            Ok(_) | Err(_) => Ok(()),
        }
    }
}

/// An agent that runs.
pub struct AgentHandle {
    parts: Parts,
    link: Link,
    generation: u64,
    ways: Ways,
    end_to_end: EndToEnd,
    farewell: CancellationToken,
    /// Flows and streams, which are given time to end.
    flows: Scope,
    /// What goes on for as long as the agent does.
    standing: Scope,
}

impl std::fmt::Debug for AgentHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AgentHandle")
            .field("id", &self.parts.id)
            .finish_non_exhaustive()
    }
}

const FLOWS_LIMIT: usize = 20_000; // × 12 KiB of memory an idle one
const OFFERED_LIMIT: usize = 256;
const CALLED_LIMIT: u32 = 4_096; // flows of others at once, as many as a port of our own takes
/// What waits on a session is held by its streams as well, and the memory for those has a limit of its own; so it need
/// not be bounded again where a thousand streams with full windows would keep a new one from saying its first word.
const UNSENT_LIMIT: u32 = 256 * 1024 * 1024; // a thousand streams with 256 KiB each

/// Starts an agent; must be called within the runtime.
///
/// # Errors
/// When it has not joined, or its state or socket is not usable.
pub async fn start(config: AgentConfig) -> Result<AgentHandle, StartError> {
    let dir = IdentityDir::open(&config.dir)?;
    let (svid, trust) = load(&config, &dir).await?;
    let id = svid.id().clone();
    let not_agent = || StartError::NotAgent {
        dir: config.dir.clone(),
        id: id.clone(),
    };
    let me = id.principal.as_agent().cloned().ok_or_else(not_agent)?;
    let (identity, trust) = (IdentityStore::new(svid), TrustStore::new(trust));
    let (flows, standing) = (Scope::new("agent flows"), Scope::new("agent"));
    let views = ViewStore::open(
        trust.clone(),
        config.dir.join("views"),
        config.max_policy_age,
    )?;
    let ways = config.ways.open(settings()).map_err(StartError::Udp)?;
    let dialer = Dialer::for_sessions(ways.clone(), &identity, &trust);
    let offers = Offers::new(config.region.clone());
    let (offered_in, offered) = mpsc::channel(OFFERED_LIMIT);
    let (renewed_in, renewed) = watch::channel(());
    let relays = relay_list(&config);
    let farewell = CancellationToken::new();
    let (sessions, keep_session) = session::maintain(SessionConfig {
        relays: config.relays.clone(),
        list: relays.clone(),
        region: config.region.clone(),
        dialer: dialer.clone(),
        identity: identity.clone(),
        instance: rand::random(),
        kind: config.kind,
        offers: offers.well(),
        offered: offered_in,
        renewed,
        farewell: farewell.clone(),
    });
    standing.spawn("session", keep_session);
    standing.spawn("health", health::keep(offers.clone()));

    let owned = (config.kind == SessionKind::Full).then(|| dir.clone());
    let link = link(&sessions, &identity, &trust, owned);
    let link = link.with_way_back(way_back(&config, dir));
    let end_to_end = EndToEnd::new(identity.clone(), trust, flows.spawner())
        .with_memory(config.stream_memory)
        .with_bulk(config.bulk);
    let mut registry = Registry::with_prefix("sealock_agent");
    views.register(&mut registry);
    let calls = CallerJudge::new(&sessions, &end_to_end, &views);
    let Hops { caller, provider } = hops(&calls, &offers, &mut registry);

    let parts = Parts {
        me: me.clone(),
        id,
        identity,
        started: jiff::Timestamp::now(),
        sessions,
        dialer,
        views: views.clone(),
        offers: offers.clone(),
        listeners: Listeners::default(),
        calls,
        provider: provider.clone(),
        caller: caller.clone(),
        flows: flows.spawner(),
    };
    let provide = provide::serve(
        offered,
        me.name,
        provider.clone(),
        end_to_end.clone(),
        flows.spawner(),
    );
    standing.spawn("provide", provide);
    standing.spawn(
        "policy",
        follow_policy(caller.clone(), provider, views.clone(), offers.clone()),
    );
    standing.spawn("renewed", tell_renewals(link.clone(), renewed_in));
    let generation = spawn_link(&config, &standing, &link, (&parts, &relays));
    if let Some(socket) = &config.socket {
        let listener = PrivateListener::bind(socket.path.clone())?;
        control::serve(listener, parts.clone(), socket.stays, &standing);
    }
    if let Some(address) = config.admin {
        serve_admin(address, registry, &parts, &standing).await?;
    }
    tracing::info!(id = %parts.id, "agent started");
    Ok(AgentHandle {
        parts,
        link,
        generation,
        ways,
        end_to_end,
        farewell,
        flows,
        standing,
    })
}

/// What an agent chooses of its sessions.
fn settings() -> Settings {
    Settings {
        streams: CALLED_LIMIT,
        unsent: UNSENT_LIMIT,
        ..Settings::default()
    }
}

/// The two pipes of an agent. Each judges its own flows only, so each has a table of its own.
struct Hops {
    caller: Hop,
    provider: Hop,
}

fn hops(calls: &CallerJudge, offers: &Offers, registry: &mut Registry) -> Hops {
    let audit = Audit::new();
    let provider = ProviderJudge {
        views: calls.views.clone(),
        offers: offers.clone(),
    };
    Hops {
        caller: Hop {
            judge: Arc::new(calls.clone()),
            live: LiveFlows::new(FLOWS_LIMIT),
            audit: audit.clone(),
            meter: Meter::registered(registry.sub_registry_with_prefix("caller")),
        },
        provider: Hop {
            judge: Arc::new(provider),
            live: LiveFlows::new(FLOWS_LIMIT),
            audit,
            meter: Meter::registered(registry.sub_registry_with_prefix("provider")),
        },
    }
}

/// The identity on disk; when it ended while the machine was off, the one that follows it.
async fn load(config: &AgentConfig, dir: &IdentityDir) -> Result<(Svid, Trust), StartError> {
    let (Some(svid), Some(trust)) = (dir.load_svid()?, dir.load_trust()?) else {
        return Err(StartError::NotJoined(config.dir.clone()));
    };
    let ended = svid.leaf().not_after;
    if ended > jiff::Timestamp::now() {
        return Ok((svid, trust));
    }
    match recover_agent(dir, &config.relays, &config.ways).await {
        Ok((svid, trust)) => {
            let expires = svid.leaf().not_after;
            tracing::warn!(%ended, %expires, "this machine's certificate had ended; it was given a new one");
            Ok((svid, trust))
        }
        Err(why) if why.is_transient() => Err(StartError::ExpiredAndAlone { ended, why }),
        Err(why) => Err(StartError::Expired { ended, why }),
    }
}

/// How an agent that slept for long comes back while it runs.
fn way_back(config: &AgentConfig, dir: IdentityDir) -> WayBack {
    let (relays, ways) = (config.relays.clone(), config.ways.clone());
    Arc::new(move || {
        let (dir, relays, ways) = (dir.clone(), relays.clone(), ways.clone());
        Box::pin(async move { recover_agent(&dir, &relays, &ways).await })
    })
}

/// How long a call to the controller waits for a session.
const SESSION_WAIT: Duration = Duration::from_secs(3);

/// The agent reaches the controller through its relay, which passes on bytes that it cannot read.
fn link(
    sessions: &Sessions,
    identity: &IdentityStore,
    trust: &TrustStore,
    dir: Option<IdentityDir>,
) -> Link {
    let sessions = sessions.clone();
    let make = move |tls| {
        let sessions = sessions.clone();
        NodeClient::new(tls, move || {
            let sessions = sessions.clone();
            async move {
                let session = tokio::time::timeout(SESSION_WAIT, sessions.current()).await;
                let session =
                    session.map_err(|_| std::io::Error::from(Reason::RelayUnreachable))?;
                let stream = session
                    .open_controller()
                    .await
                    .map_err(std::io::Error::from)?;
                Ok(stream.into_io())
            }
        })
    };
    Link::new(Arc::new(make), identity.clone(), trust.clone(), dir)
}

/// On every change of the view and of the offers, and from time to time, flows that are no longer allowed end.
async fn follow_policy(caller: Hop, provider: Hop, views: ViewStore, offers: Offers) {
    let (mut policy, mut names) = (views.changes(), offers.names());
    loop {
        let changed = tokio::select! {
            changed = policy.changed() => changed.is_ok(),
            changed = names.changed() => changed.is_ok(),
            // Rules end by themselves too.
            () = tokio::time::sleep(REJUDGE_EVERY) => true,
        };
        if !changed {
            return;
        }
        caller.rejudge();
        provider.rejudge();
    }
}

/// A renewed certificate is worth nothing until the session and the calls are made with it.
async fn tell_renewals(link: Link, renewed: watch::Sender<()>) {
    let mut renewals = link.renewals();
    while renewals.changed().await.is_ok() {
        renewed.send_replace(());
    }
}

/// The relays that the controller told last. A program beside the agent looks at the agent's own list.
fn relay_list(config: &AgentConfig) -> RelayList {
    let path = config.dir.join("known-relays.json");
    match config.kind {
        SessionKind::Full => RelayList::open(&path),
        SessionKind::CallerOnly => RelayList::look_at(&path),
    }
}

fn spawn_link(
    config: &AgentConfig,
    scope: &Scope,
    link: &Link,
    (parts, relays): (&Parts, &RelayList),
) -> u64 {
    let (watcher, views, relays) = (link.clone(), parts.views.clone(), relays.clone());
    scope.spawn("views", async move {
        watcher.keep_views(&views, &relays).await;
    });
    let renewer = link.clone();
    scope.spawn("renewal", async move { renewer.keep_identity().await });
    let (reporter, audit) = (link.clone(), parts.caller.audit.clone());
    scope.spawn("audit", async move {
        audit::deliver(&audit, &reporter, &[]).await
    });
    let generation = next_generation(&config.dir);
    if config.kind == SessionKind::Full {
        scope.spawn(
            "register",
            offers::register(parts.offers.clone(), link.clone(), generation),
        );
    }
    generation
}

/// A number that grows with each start, also when the clock was set back.
fn next_generation(dir: &std::path::Path) -> u64 {
    let path = dir.join("generation");
    let last = files::read_private(&path)
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok());
    let last: u64 = last.and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    let clock = u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or(0);
    let generation = clock.max(last + 1);
    if let Err(error) = files::write_private(&path, generation.to_string().as_bytes()) {
        tracing::warn!(err = %error, "the agent's generation could not be kept");
    }
    generation
}

async fn serve_admin(
    address: SocketAddr,
    registry: Registry,
    parts: &Parts,
    scope: &Scope,
) -> Result<SocketAddr, AdminError> {
    let (sessions, views) = (parts.sessions.clone(), parts.views.clone());
    let readiness = move || {
        let mut missing = Vec::new();
        if !matches!(sessions.state(), State::Up(_)) {
            missing.push("a session to a relay");
        }
        if views.versions().is_empty() {
            missing.push("a view from the controller");
        }
        missing
    };
    admin::serve(address, registry, Arc::new(readiness), &scope.spawner()).await
}

/// How long a refusal by kept policy waits for the controller's word.
const CONFIRM_PATIENCE: Duration = Duration::from_secs(2);
/// How long relays go on sending opens to an agent that drains.
const SETTLE: Duration = Duration::from_millis(500); // the way there, from there to other relays, and back
/// How often an agent that drains looks whether it is done.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long the last packets may take to leave.
const CLOSE_GRACE: Duration = Duration::from_millis(300);
/// How long streams that are over may take to say so.
const GOODBYE_GRACE: Duration = Duration::from_secs(1); // some round trips, while there is a way at all
/// How long flows may go on after the agent was asked to stop.
const STOP_GRACE: Duration = Duration::from_secs(2);

impl AgentHandle {
    /// Renews the certificate now, as happens by itself at half of its life.
    ///
    /// # Errors
    /// When the controller does not issue one; the old one stays.
    pub async fn renew(&self) -> Result<(), RenewError> {
        self.link.renew().await
    }

    /// How many flows and streams there are, and how many tasks serve them; for status and for tests of leaks.
    #[must_use]
    pub fn load(&self) -> (usize, usize) {
        let flows = self.parts.caller.live.len() + self.parts.provider.live.len();
        (flows, self.flows.len())
    }

    /// What it judges by.
    #[must_use]
    pub fn views(&self) -> &ViewStore {
        &self.parts.views
    }

    /// What was decided and not yet told to the controller.
    #[must_use]
    pub fn audit(&self) -> &Audit {
        &self.parts.caller.audit
    }

    /// How many streams wait for another leg.
    #[must_use]
    pub fn parked(&self) -> usize {
        self.end_to_end.parked()
    }

    /// How many bytes its streams hold and have promised to hold.
    #[must_use]
    pub fn stream_memory(&self) -> u64 {
        self.end_to_end.memory()
    }

    /// What its sessions go over, the best one first.
    #[must_use]
    pub fn transports(&self) -> Vec<Transport> {
        let all = self.parts.sessions.all();
        all.iter().map(Session::transport).collect()
    }

    /// Who it is.
    #[must_use]
    pub fn id(&self) -> &SpiffeId {
        &self.parts.id
    }

    /// Waits until the agent has a session and a view, so that it can open services.
    ///
    /// # Errors
    /// The reason why the session is not there, when that is one which waiting cannot mend, or at the deadline.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn ready(&self, deadline: Duration) -> Result<(), Reason> {
        let mut sessions = self.parts.sessions.clone();
        let mut views = self.parts.views.changes();
        let waiting = async {
            loop {
                match sessions.state() {
                    State::Up(_) => break,
                    State::Connecting { last: Some(reason) } if !reason.is_transient() => {
                        return Err(reason);
                    }
                    State::Connecting { .. } => sessions.changed().await,
                }
            }
            while self.parts.views.current(&self.parts.me.tenant).is_err() {
                if views.changed().await.is_err() {
                    return Err(Reason::Internal);
                }
            }
            Ok(())
        };
        tokio::time::timeout(deadline, waiting)
            .await
            .unwrap_or_else(|_| Err(self.trouble()))
    }

    fn trouble(&self) -> Reason {
        match self.parts.sessions.state() {
            State::Up(_) => Reason::NoPolicy,
            State::Connecting { last } => last.unwrap_or(Reason::RelayUnreachable),
        }
    }

    /// Runs the program's own standard input and output as one flow to a service, and says how it ended.
    pub async fn stdio(&self, service: ServiceName) -> Reason {
        self.settle(&service).await;
        hop::run(
            &self.parts.caller,
            inlet::stdio::arrival(self.parts.facts(service)),
        )
        .await
    }

    /// A refusal by the policy of an earlier run counts only when the controller confirms it, or is away.
    async fn settle(&self, service: &ServiceName) {
        let (parts, mut changes) = (&self.parts, self.parts.views.changes());
        let facts = parts.facts(service.clone());
        let settled = async {
            while parts.caller.judge.judge(&facts).is_err() && !parts.views.is_confirmed() {
                if changes.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::time::timeout(CONFIRM_PATIENCE, settled).await.ok();
    }

    /// Whether policy, as far as this agent knows it, lets it open a service; one that does not exist yet may come.
    ///
    /// # Errors
    /// The reason of the refusal.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn may_open(&self, service: ServiceName) -> Result<(), Reason> {
        self.settle(&service).await;
        self.parts.may_open(&self.parts.facts(service))
    }

    /// Listens for a service until the agent stops; returns where.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub async fn connect(
        &self,
        service: ServiceName,
        listen: &Target,
    ) -> Result<Target, ListenError> {
        let parts = &self.parts;
        let (hop, facts) = (parts.caller.clone(), parts.facts(service));
        let guard = parts
            .listeners
            .add(listen, true, hop, facts, parts.flows.clone())
            .await?;
        Ok(guard.listen.clone())
    }

    /// Opens a front door until the agent stops; returns where.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub async fn open_door(&self, plan: DoorPlan) -> Result<SocketAddr, ListenError> {
        let parts = &self.parts;
        let rules = Rules::View(parts.views.clone());
        let judge = DoorJudge {
            services: parts.calls.clone(),
            outside: EgressJudge::new(rules, Arc::new(Routes::all_by(plan.ways))),
        };
        let door = Door {
            speech: plan.speech,
            login: plan.login,
            caller: parts.me.clone(),
            // Its flows are in the table of the caller's hop, so a change of policy ends them too.
            hop: Hop {
                judge: Arc::new(judge),
                ..parts.caller.clone()
            },
        };
        let flows = parts.flows.clone();
        parts.listeners.open_door(plan.listen, door, flows).await
    }

    /// Offers a service until the agent stops; says whether the name was free in this agent.
    #[must_use]
    pub fn expose(
        &self,
        service: ServiceName,
        target: Target,
        labels: std::collections::BTreeMap<String, String>,
    ) -> bool {
        self.offer(NewOffer {
            labels,
            ..NewOffer::new(service, target)
        })
    }

    /// Offers a service as described until the agent stops; says whether the name was free in this agent.
    #[must_use]
    pub fn offer(&self, offer: NewOffer) -> bool {
        self.parts.offers.add(offer, true).is_some()
    }

    /// Takes nothing new, waits until nothing flows any more, at the latest until `grace` is over, and stops. What still
    /// flows then is reset with `DRAINING`.
    ///
    /// # Cancel safety
    /// Dropping the future drops the agent.
    pub async fn drain(self, grace: Duration) {
        // Nothing is offered at the relays any more, and nobody here can open: what runs goes on.
        self.farewell.cancel();
        self.parts.listeners.clear();
        let began = Instant::now();
        // What a relay sent before it knew is still on its way, and is served.
        tokio::time::sleep(SETTLE.min(grace)).await;
        self.empty(grace.saturating_sub(began.elapsed())).await;
        for flow in self.live() {
            let _first = flow.revoke(Reason::Draining);
        }
        self.empty(CLOSE_GRACE).await;
        self.stop().await;
    }

    fn live(&self) -> Vec<Arc<LiveFlow>> {
        let mut all = self.parts.caller.live.list();
        all.extend(self.parts.provider.live.list());
        all
    }

    /// Waits until nothing flows, or `limit` is over.
    async fn empty(&self, limit: Duration) {
        let nothing = async {
            while !(self.parts.caller.live.is_empty() && self.parts.provider.live.is_empty()) {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        tokio::time::timeout(limit, nothing).await.ok();
    }

    /// Lets streams whose flows are over say their last word while there are sessions to say it on.
    async fn goodbye(&self) {
        let said = async {
            while self.end_to_end.ending() > 0 {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        tokio::time::timeout(GOODBYE_GRACE, said).await.ok();
    }

    /// Stops: offers of passing requests are taken back and the last decisions told, then the session ends.
    pub async fn stop(self) {
        // Without a session nothing can be taken back, and nobody should wait for one now.
        if matches!(self.parts.sessions.state(), State::Up(_)) {
            offers::farewell(&self.parts.offers, &self.link, self.generation).await;
            self.audit().flush().await;
        }
        self.goodbye().await;
        self.ways.close(Reason::Draining);
        drop(self.standing);
        // Only so that the last packet leaves: it is no loss when a relay that is away does not see it.
        tokio::time::timeout(CLOSE_GRACE, self.ways.wait_idle())
            .await
            .ok();
        self.flows.shutdown(STOP_GRACE).await;
    }
}
