//! Starts a relay from what it needs, and keeps it until its handle is stopped.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus_client::registry::Registry;
use sealock_core::address::HostPort;
use sealock_core::identity::SpiffeId;
use sealock_core::name::Region;
use sealock_core::reason::Reason;
use sealock_flow::audit::{self, Audit};
use sealock_flow::hop::{Hop, REJUDGE_EVERY};
use sealock_flow::live::LiveFlows;
use sealock_flow::meter::Meter;
use sealock_net::admin::{self, AdminError};
use sealock_net::files::FileError;
use sealock_net::identity::{IdentityDir, IdentityStore, LoadError, TrustStore};
use sealock_net::join::dial_controller;
use sealock_net::link::{Link, WayBack};
use sealock_net::node_api::NodeClient;
use sealock_net::recover::recover_relay;
use sealock_net::relays::RelayList;
use sealock_net::session::Dialer;
use sealock_net::task::Scope;
use sealock_net::tls;
use sealock_net::tls::voucher::VoucherCheck;
use sealock_net::transport::admission::{PreAuthBudget, PreAuthLimits};
use sealock_net::transport::conduit::Conduits;
use sealock_net::transport::{Endpoint, KeysError, Settings, TcpEndpoint, TransportKeys};
use sealock_net::views::ViewStore;
use tokio_util::sync::CancellationToken;

use crate::admit;
use crate::budget::OpenLimit;
use crate::controller::ControllerWay;
use crate::directory::Directory;
use crate::judge::{self, RelayJudge};
use crate::peers::Peers;
use crate::session::Shared;

/// What a relay needs.
#[derive(Debug, Clone)]
pub struct RelayConfig {
    /// Its state: identity, transport keys, views.
    pub dir: PathBuf,
    /// Where agents reach it, as it listens.
    pub listen: SocketAddr,
    /// Where agents reach it, as they are told.
    pub advertise: Vec<HostPort>,
    /// Where the controller is.
    pub controller: HostPort,
    /// How old a view may be and still allow anything.
    pub max_policy_age: Duration,
    /// How many agents may be connected.
    pub max_sessions: usize,
    /// How many streams an agent may have open.
    pub max_streams_per_session: u32,
    /// How many opens an agent may make in a time.
    pub open_limit: OpenLimit,
    /// Where metrics and health are served.
    pub admin: Option<SocketAddr>,
    /// Where it is, as its operator calls it; agents of the same region prefer it.
    pub region: Option<Region>,
}

/// Why a relay does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// It has not joined.
    #[error("this relay has no identity in {}; hint: `sealock token create --role relay` on the controller, then `sealock relay --token SLK1-…`", .0.display())]
    NotJoined(PathBuf),
    /// Its identity cannot be read.
    #[error("the relay's identity cannot be used")]
    Identity(#[from] LoadError),
    /// Its state directory cannot be used.
    #[error("the relay's state cannot be used")]
    State(#[from] FileError),
    /// Its transport keys cannot be used.
    #[error("the relay's transport keys cannot be used")]
    Keys(#[from] KeysError),
    /// The address cannot be listened at.
    #[error(
        "cannot listen at UDP and TCP {address}; hint: is another relay running? choose another with --listen"
    )]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// No UDP socket for the way to other relays.
    #[error("no UDP socket can be opened")]
    Udp(#[source] std::io::Error),
    /// The admin address cannot be served.
    #[error(transparent)]
    Admin(#[from] AdminError),
}

/// A relay that runs.
#[derive(Debug)]
pub struct RelayHandle {
    /// Who it is.
    pub id: SpiffeId,
    /// Where it listens.
    pub listen: SocketAddr,
    /// Where metrics and health are served.
    pub admin: Option<SocketAddr>,
    /// Who is connected.
    pub directory: Directory,
    /// What flows through it.
    pub live: LiveFlows,
    /// The conduits of bulk streams.
    pub conduits: Conduits,
    /// The relays of the deployment.
    pub relays: RelayList,
    /// What was decided and not yet told to the controller.
    pub audit: Audit,
    peers: Peers,
    views: ViewStore,
    doors: Doors,
    /// Dials other relays.
    outwards: Endpoint,
    draining: CancellationToken,
    /// Sessions and flows, which are given time to end.
    flows: Scope,
    /// What goes on for as long as the relay does.
    standing: Scope,
}

/// How many flows a relay carries at once.
const FLOWS_LIMIT: usize = 100_000; // × 8 KiB of memory an idle one

/// Starts a relay; must be called within the runtime.
///
/// # Errors
/// When its state is not usable or an address is taken.
pub async fn start(config: RelayConfig) -> Result<RelayHandle, StartError> {
    let dir = IdentityDir::open(&config.dir)?;
    let (Some(svid), Some(trust)) = (dir.load_svid()?, dir.load_trust()?) else {
        return Err(StartError::NotJoined(config.dir));
    };
    let id = svid.id().clone();
    let (identity, trust) = (IdentityStore::new(svid), TrustStore::new(trust));
    let views = ViewStore::open(
        trust.clone(),
        config.dir.join("views"),
        config.max_policy_age,
    )?;
    let doors = listen(&config, &identity, &trust)?;
    let (flows, standing) = (Scope::new("relay flows"), Scope::new("relay"));
    let outwards = Endpoint::client(Settings::default()).map_err(StartError::Udp)?;
    let to_peers = Dialer::for_peers(outwards.clone(), &identity, &trust);
    let (peers, vouchers) = (Peers::default(), VoucherCheck::new(trust.clone()));
    let link = link(&config, &identity, &trust, dir);
    let (directory, conduits) = (Directory::new(config.max_sessions), Conduits::default());
    let live = LiveFlows::new(FLOWS_LIMIT);
    let audit = Audit::new();
    let mut registry = Registry::with_prefix("sealock_relay");
    let hop = Hop {
        judge: Arc::new(RelayJudge {
            views: views.clone(),
            directory: directory.clone(),
            conduits: conduits.clone(),
            peers: peers.clone(),
            region: config.region.clone(),
        }),
        live: live.clone(),
        audit: audit.clone(),
        meter: Meter::registered(&mut registry),
    };
    views.register(&mut registry);
    directory.register(&mut registry);
    let help = "Conduits that carry the bytes of bulk streams";
    let counted = conduits.clone();
    admin::register_gauge(&mut registry, "conduits", help, move || counted.joined());
    let relays = RelayList::open(&config.dir.join("known-relays.json"));
    let draining = CancellationToken::new();
    let shared = Shared {
        vouchers,
        me: id.principal.clone(),
        relays: relays.clone(),
        draining: draining.clone(),
        open_limit: config.open_limit,
        hop: hop.clone(),
        directory: directory.clone(),
        conduits: conduits.clone(),
        views: views.clone(),
        controller: ControllerWay::new(config.controller.clone()),
        tasks: flows.spawner(),
    };
    let budget = PreAuthBudget::new(PreAuthLimits::default());
    let (over_tcp, same) = (doors.tcp.clone(), budget.clone());
    standing.spawn(
        "accept TCP",
        admit::serve_tcp(over_tcp, same, shared.clone()),
    );
    standing.spawn("accept", admit::serve(doors.udp.clone(), budget, shared));
    standing.spawn(
        "policy",
        follow_policy(hop, directory.clone(), views.clone()),
    );
    let me = id.principal.clone();
    standing.spawn(
        "peers",
        peers
            .clone()
            .keep(me, relays.clone(), to_peers, identity.clone()),
    );
    spawn_link(
        &standing,
        &link,
        (&views, &relays),
        audit.clone(),
        &config.advertise,
    );
    let admin = serve_admin(&config, registry, &directory, &views, &standing).await?;
    let listen = doors.udp.local_addr().unwrap_or(config.listen);
    tracing::info!(%listen, %id, "relay ready");
    Ok(RelayHandle {
        id,
        listen,
        admin,
        directory,
        live,
        conduits,
        relays,
        audit,
        peers,
        views,
        doors,
        outwards,
        draining,
        flows,
        standing,
    })
}

/// Where agents come in: the same port over UDP and over TCP.
#[derive(Debug)]
struct Doors {
    udp: Endpoint,
    tcp: TcpEndpoint,
}

impl Doors {
    fn close(&self, reason: Reason) {
        self.udp.close(reason);
        self.tcp.close(reason);
    }

    async fn wait_idle(&self) {
        tokio::join!(self.udp.wait_idle(), self.tcp.wait_idle());
    }
}

/// A stream over TCP may fill 256 KiB of our memory from its beginning; a session that way gets 1 024 of them, 256 MiB.
const STREAMS_OVER_TCP: u32 = 1_024;
/// How often a port is chosen that must be free over UDP and TCP alike.
const PORT_CHOICES: usize = 16;

fn listen(
    config: &RelayConfig,
    identity: &IdentityStore,
    trust: &TrustStore,
) -> Result<Doors, StartError> {
    let keys = TransportKeys::load_or_create(&config.dir.join("transport.json"))?;
    let settings = Settings {
        streams: config.max_streams_per_session,
        ..Settings::default()
    };
    let over_tcp = Settings {
        streams: settings.streams.min(STREAMS_OVER_TCP),
        ..settings
    };
    let open = || {
        let quic = tls::relay_listener(identity, trust);
        let udp = Endpoint::server(config.listen, quic, settings, &keys)?;
        let tls = tls::relay_tcp_listener(identity, trust);
        let tcp = TcpEndpoint::server(udp.local_addr()?, tls, over_tcp)?;
        Ok(Doors { udp, tcp })
    };
    // The system chooses port 0 for UDP alone; the same one may be in use over TCP.
    let choices = if config.listen.port() == 0 {
        PORT_CHOICES
    } else {
        1
    };
    let mut opened = open();
    for _ in 1..choices {
        if opened.is_ok() {
            break;
        }
        opened = open();
    }
    opened.map_err(|source| StartError::Listen {
        address: config.listen,
        source,
    })
}

fn link(
    config: &RelayConfig,
    identity: &IdentityStore,
    trust: &TrustStore,
    dir: IdentityDir,
) -> Link {
    let controller = config.controller.clone();
    let make = move |tls| {
        let controller = controller.clone();
        NodeClient::new(tls, move || dial_controller(controller.clone()))
    };
    let (last, controller) = (dir.clone(), config.controller.clone());
    // A controller that was away for longer than our certificate lives takes us back when it returns.
    let way_back: WayBack = Arc::new(move || {
        let (last, controller) = (last.clone(), controller.clone());
        Box::pin(async move { recover_relay(&last, &controller).await })
    });
    Link::new(Arc::new(make), identity.clone(), trust.clone(), Some(dir))
        .with_way_back(way_back)
        .in_region(config.region.clone())
}

fn spawn_link(
    scope: &Scope,
    link: &Link,
    (views, relays): (&ViewStore, &RelayList),
    audit: Audit,
    addresses: &[HostPort],
) {
    let addresses = addresses.to_vec();
    let (watcher, views, relays) = (link.clone(), views.clone(), relays.clone());
    scope.spawn("views", async move {
        watcher.keep_views(&views, &relays).await;
    });
    let renewer = link.clone();
    scope.spawn("renewal", async move { renewer.keep_identity().await });
    let reporter = link.clone();
    scope.spawn("audit", async move {
        audit::deliver(&audit, &reporter, &addresses).await
    });
}

/// On every change of a view, and from time to time: flows and sessions that it no longer allows end.
async fn follow_policy(hop: Hop, directory: Directory, views: ViewStore) {
    let mut changes = views.changes();
    loop {
        // An elapsed wait is a look too: rules end by themselves.
        let news = tokio::time::timeout(REJUDGE_EVERY, changes.changed()).await;
        if matches!(news, Ok(Err(_))) {
            return;
        }
        directory.sweep(|agent, peer| judge::admits(&views, agent, peer));
        hop.rejudge();
    }
}

async fn serve_admin(
    config: &RelayConfig,
    mut registry: Registry,
    directory: &Directory,
    views: &ViewStore,
    scope: &Scope,
) -> Result<Option<SocketAddr>, AdminError> {
    let Some(address) = config.admin else {
        return Ok(None);
    };
    let (counted, known) = (directory.clone(), views.clone());
    let help = "Agents that have a session";
    admin::register_gauge(&mut registry, "agents_connected", help, move || {
        counted.agents()
    });
    let readiness = move || {
        if known.versions().is_empty() {
            vec!["a view from the controller"]
        } else {
            Vec::new()
        }
    };
    admin::serve(address, registry, Arc::new(readiness), &scope.spawner())
        .await
        .map(Some)
}

/// How long the last packets may take to leave, and the sockets to be free.
const CLOSE_GRACE: Duration = Duration::from_millis(300);
/// The same after a drain, where streams stand still meanwhile, and an agent that misses the word hears of it from the
/// next relay, or from this machine.
const DRAIN_GRACE: Duration = Duration::from_millis(40); // thousands of packets that are on their way out
/// How long agents have at least to make a session elsewhere before the relay is gone.
const SETTLE: Duration = Duration::from_secs(1); // a dial and a greeting, ten times over
/// How often a relay that drains looks whether it is done.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long flows may go on after the relay was asked to stop.
const STOP_GRACE: Duration = Duration::from_secs(5);

impl RelayHandle {
    /// Whether the relay has a view of any tenant, so that it can allow anything.
    #[must_use]
    pub fn has_views(&self) -> bool {
        !self.views.versions().is_empty()
    }

    /// How many other relays it is connected to.
    #[must_use]
    pub fn peers(&self) -> usize {
        self.peers.len()
    }

    /// How many flows there are, and how many tasks serve sessions, streams and flows; for tests of leaks.
    #[must_use]
    pub fn load(&self) -> (usize, usize) {
        (self.live.len(), self.flows.len())
    }

    /// Takes nothing new, tells every agent where to go, and stops when nothing flows any more, at the latest after
    /// `limit`: what still flows then is cut with `DRAINING`.
    ///
    /// # Cancel safety
    /// Dropping the future drops the relay.
    pub async fn drain(self, limit: Duration) {
        let began = Instant::now();
        self.draining.cancel();
        loop {
            let age = began.elapsed();
            // Agents that have nowhere else to go stay; without flows they are not waited for.
            let is_left = self.directory.staying() == 0 || age > SETTLE;
            if age >= limit || (is_left && self.live.is_empty()) {
                break;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        tracing::info!(
            flows = self.live.len(),
            sessions = self.directory.staying(),
            "drained"
        );
        self.end(DRAIN_GRACE).await;
    }

    /// Stops: agents are told, so that they go elsewhere at once.
    pub async fn stop(self) {
        self.end(CLOSE_GRACE).await;
    }

    async fn end(self, grace: Duration) {
        // What can be done before flows are cut does not add to how long they stand still.
        self.audit.flush().await;
        self.doors.close(Reason::Draining);
        self.outwards.close(Reason::Draining);
        // Agents that dial again at once would keep it busy for ever.
        let told = tokio::time::timeout(grace, self.doors.wait_idle());
        let _late = tokio::join!(told, self.audit.flush());
        // Waited for: whoever takes this relay's place wants its address at once.
        self.standing.shutdown(Duration::ZERO).await;
        self.flows.shutdown(STOP_GRACE).await;
    }
}
