//! Many agents in one process: enrols them in a controller's database, keeps a session for each, and says how soon all
//! of them have one and how many dials each of them needed.
//!
//! `swarm STATE RELAY COUNT`, where STATE is the state directory of a controller that does not run: ten thousand joins
//! through a relay would take a quarter of an hour, at the rate that it allows. Every agent is an agent like any other
//! to controller and relay, and has a socket and a loopback address of its own, because a relay slows down a source that
//! knocks too often. It prints `enrolled COUNT`; then it is told what happens, a word a line:
//!
//! - `go`: all agents dial at once.
//! - `kill`: the relay is about to be killed; from now on everybody needs a new session.
//! - `ready`: it listens again; the clock begins anew.
//!
//! When everybody has a session, after `go` or `ready`, it prints a line of `all up` and [`Tally`]'s figures.
#![expect(
    clippy::print_stdout,
    reason = "a tool whose only answer is its output"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fmt;
use std::io::BufRead as _;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use sealock_control::pki::{Authority, Csr, Profile};
use sealock_control::store::sqlite::{IfMissing, SqliteStore};
use sealock_control::store::{Act, Admits, Redemption, Store, TokenRow};
use sealock_core::address::HostPort;
use sealock_core::identity::{Principal, Role, SpiffeId};
use sealock_core::name::ServiceName;
use sealock_net::identity::{IdentityStore, KeyPair, Svid, Trust, TrustStore};
use sealock_net::relays::RelayList;
use sealock_net::session::{self, Dialer, SessionConfig, Sessions};
use sealock_net::task::Scope;
use sealock_net::tls;
use sealock_net::transport::{Endpoint, Settings, TransportKeys};
use sealock_proto::wire::SessionKind;
use tokio::sync::{mpsc, watch};
use tracing::span;

type Failed = Box<dyn Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Failed> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [state, relay, count] = arguments.as_slice() else {
        return Err("usage: swarm STATE RELAY COUNT".into());
    };
    let (relay, count): (HostPort, u32) = (relay.parse()?, count.parse()?);
    let crowd = Arc::new(Crowd::of(count));
    tracing::subscriber::set_global_default(Dials(Arc::clone(&crowd)))?;
    let (trust, svids) = enrol(Path::new(state), count).await?;
    println!("enrolled {count}");

    let mut words = words();
    let scope = Scope::new("swarm");
    while words.recv().await.as_deref() != Some("go") {}
    crowd.begin(Begin::All);
    for (number, svid) in (0..count).zip(svids) {
        spawn_agent(&scope, &crowd, (number, svid), &relay, &trust)?;
    }
    crowd.report_when_all_up().await;
    while let Some(word) = words.recv().await {
        match word.as_str() {
            "kill" => crowd.begin(Begin::All),
            "ready" => {
                crowd.begin(Begin::Clock);
                crowd.report_when_all_up().await;
            }
            _ => return Err(format!("what is `{word}`?").into()),
        }
    }
    Ok(())
}

/// The lines of standard input, read beside the runtime, which it would hold up.
fn words() -> mpsc::Receiver<String> {
    let (tell, words) = mpsc::channel(1);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if tell.blocking_send(line).is_err() {
                return;
            }
        }
    });
    words
}

/// How long an agent's token lives, which is used at once.
const TOKEN_LIFE: SignedDuration = SignedDuration::from_mins(1);

/// Makes the agents `swarm-0`, `swarm-1`… as tokens and joins do, without the way over the network.
async fn enrol(state: &Path, count: u32) -> Result<(Trust, Vec<Svid>), Failed> {
    let store = SqliteStore::open(&state.join("db.sqlite"), IfMissing::Refuse).await?;
    let domain = store.meta_or("trust_domain", "").await?.parse()?;
    let authority = Authority::open(state, &store, &domain, Timestamp::now()).await?;
    let mut svids = Vec::new();
    for number in 0..count {
        let now = Timestamp::now();
        let key = KeyPair::generate()?;
        let csr = Csr::read(&key.request_der()?)?;
        let mut hash = [0; 32];
        hash[..4].copy_from_slice(&number.to_be_bytes());
        let admits = Admits::Agent {
            tenant: "default".parse()?,
            name: Some(format!("swarm-{number}").parse()?),
            labels: BTreeMap::new(),
            groups: BTreeSet::new(),
        };
        let token = TokenRow {
            hash,
            admits,
            created: now,
            expires: now.saturating_add(TOKEN_LIFE)?,
        };
        let act = Act::done(now, "swarm", "token.create", number);
        store.add_token(&token, &act).await?;
        let redemption = Redemption {
            hash,
            role: Role::Agent,
            name: None,
            own_name: None,
            key_digest: csr.key_digest().to_owned(),
            addresses: Vec::new(),
            source: "swarm".to_owned(),
        };
        let issue = |principal: &Principal| {
            let id = SpiffeId {
                trust_domain: authority.trust().trust_domain.clone(),
                principal: principal.clone(),
            };
            authority.issue(&id, &csr, Profile::Role, now)
        };
        let (_, certificate) = store.redeem(&redemption, now, &issue).await?;
        let chain = certificate.chain.into_iter().map(Into::into).collect();
        svids.push(Svid::new(chain, Arc::new(key))?);
    }
    let trust = authority.trust().clone();
    store.close().await;
    Ok((trust, svids))
}

fn spawn_agent(
    scope: &Scope,
    crowd: &Arc<Crowd>,
    (number, svid): (u32, Svid),
    relay: &HostPort,
    trust: &Trust,
) -> Result<(), Failed> {
    let identity = IdentityStore::new(svid);
    let trust = TrustStore::new(trust.clone());
    // Nobody calls it; an endpoint that could be called may choose its address.
    let unused = tls::e2e_server(&identity, &trust, None);
    let source = Ipv4Addr::from_bits(Ipv4Addr::new(127, 1, 0, 1).to_bits() + number);
    let keys = TransportKeys::generate();
    let endpoint = Endpoint::server((source, 0).into(), unused, Settings::default(), &keys)?;
    let (offers, offered_services) = watch::channel(BTreeSet::<ServiceName>::new());
    let (renewals, renewed) = watch::channel(());
    let (offered, legs) = mpsc::channel(1);
    let mut instance = [0; 16];
    instance[..4].copy_from_slice(&number.to_be_bytes());
    let (sessions, keep) = session::maintain(SessionConfig {
        relays: vec![relay.clone()],
        list: RelayList::look_at(Path::new("/nonexistent")),
        region: None,
        dialer: Dialer::for_sessions(endpoint, &identity, &trust),
        identity,
        instance,
        kind: SessionKind::Full,
        offers: offered_services,
        offered,
        renewed,
        farewell: Default::default(),
    });
    let crowd = Arc::clone(crowd);
    scope.spawn("agent", async move {
        // The session ends with what it listens to.
        let _open = (offers, renewals, legs);
        let watched = watch_sessions(&crowd, number, &sessions);
        NUMBER
            .scope(number, async { tokio::join!(keep, watched) })
            .await;
    });
    Ok(())
}

/// Counts every session that an agent gets.
async fn watch_sessions(crowd: &Crowd, number: u32, sessions: &Sessions) {
    loop {
        let retiring = sessions.current().await.retiring();
        crowd.is_up(number);
        retiring.await;
    }
}

tokio::task_local! {
    /// Which agent a task is.
    static NUMBER: u32;
}

/// What the agents are at.
struct Crowd {
    dials: Vec<AtomicU32>,
    tally: Mutex<Tally>,
    changed: watch::Sender<()>,
}

/// From when on is counted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Begin {
    /// Everything is counted anew.
    All,
    /// Sessions go on counting; the time and the dials begin anew.
    Clock,
}

/// What is printed: milliseconds until agents had a session, and how many agents needed how many dials since the last
/// word. An agent whose dial was under way already when the word came may need none.
struct Tally {
    began: Instant,
    /// When an agent got its first session since `All`.
    up: Vec<Option<Instant>>,
    missing: usize,
    /// The dials of agents that have a session, or had at the last word.
    needed: Vec<u32>,
}

impl Crowd {
    fn of(count: u32) -> Self {
        let tally = Tally {
            began: Instant::now(),
            up: Vec::new(),
            missing: 0,
            needed: Vec::new(),
        };
        Self {
            dials: (0..count).map(|_| AtomicU32::new(0)).collect(),
            tally: Mutex::new(tally),
            changed: watch::Sender::new(()),
        }
    }

    fn begin(&self, from: Begin) {
        let mut tally = self.tally.lock();
        tally.began = Instant::now();
        if from == Begin::All {
            tally.up = vec![None; self.dials.len()];
            tally.missing = self.dials.len();
        }
        tally.needed = vec![0; self.dials.len()];
        for dials in &self.dials {
            dials.store(0, Ordering::Relaxed);
        }
    }

    fn is_up(&self, number: u32) {
        let at = number as usize;
        let mut tally = self.tally.lock();
        if tally.up[at].is_none() {
            tally.up[at] = Some(Instant::now());
            tally.needed[at] = self.dials[at].load(Ordering::Relaxed);
            tally.missing -= 1;
        }
        if tally.missing == 0 {
            self.changed.send_replace(());
        }
    }

    async fn report_when_all_up(&self) {
        let mut changed = self.changed.subscribe();
        while self.tally.lock().missing > 0 {
            if changed.changed().await.is_err() {
                return; // we hold the sender ourselves
            }
        }
        println!("all up {}", self.tally.lock());
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut after: Vec<Duration> = self
            .up
            .iter()
            .flatten()
            .map(|up| up.saturating_duration_since(self.began))
            .collect();
        after.sort();
        let mut dials = self.needed.clone();
        dials.sort_unstable();
        let place = |hundredth: usize| (after.len() * hundredth / 100).min(after.len() - 1);
        for (name, hundredth) in [("p50", 50), ("p99", 99), ("last", 100)] {
            write!(f, "{name}={} ", after[place(hundredth)].as_millis())?;
        }
        for (name, hundredth) in [("p50", 50), ("p99", 99), ("most", 100)] {
            write!(f, "dials_{name}={} ", dials[place(hundredth)])?;
        }
        let mut how_many: BTreeMap<u32, usize> = BTreeMap::new();
        for needed in dials {
            *how_many.entry(needed).or_default() += 1;
        }
        write!(f, "dials={how_many:?}")
    }
}

/// Counts the dials of each agent, by what the dialler tells of itself.
struct Dials(Arc<Crowd>);

impl tracing::Subscriber for Dials {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        let is_dial = metadata.target() == "sealock_net::session::dial";
        is_dial && metadata.is_event() && *metadata.level() == tracing::Level::DEBUG
    }

    fn event(&self, _dial_begins: &tracing::Event<'_>) {
        // Outside of an agent nobody dials.
        let _counted = NUMBER.try_with(|number| {
            self.0.dials[*number as usize].fetch_add(1, Ordering::Relaxed);
        });
    }

    fn new_span(&self, _none: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _span: &span::Id, _values: &span::Record<'_>) {}
    fn record_follows_from(&self, _span: &span::Id, _follows: &span::Id) {}
    fn enter(&self, _span: &span::Id) {}
    fn exit(&self, _span: &span::Id) {}
}
