//! Many agents in one process: joins one with each token, keeps a session for each, and says when all of them are up.
//!
//! `swarm DIRECTORY COUNT`: reads COUNT join tokens, a line each, and keeps the identities below the directory. Every
//! agent has a socket and a loopback address of its own, because a relay slows down a source that knocks too often. It
//! prints `joined N` for every hundredth, `all N up` each time the last agent has got its session, and `first lost`
//! when one loses it after that. The lab kills and restarts the relay under it.
#![expect(
    clippy::print_stdout,
    reason = "a tool whose only answer is its output"
)]

use std::collections::BTreeSet;
use std::error::Error;
use std::io::BufRead as _;
use std::net::Ipv4Addr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::time::Duration;

use sealock_core::name::ServiceName;
use sealock_core::token::JoinToken;
use sealock_net::identity::{IdentityDir, IdentityStore, TrustStore};
use sealock_net::join::{self, Naming};
use sealock_net::relays::RelayList;
use sealock_net::session::{self, Dialer, SessionConfig, Sessions};
use sealock_net::task::Scope;
use sealock_net::tls;
use sealock_net::transport::{Endpoint, Settings, TransportKeys};
use sealock_proto::wire::SessionKind;
use tokio::sync::{mpsc, watch};

/// What keeps one agent's session.
struct Agent {
    sessions: Sessions,
    // The session ends with what it listens to.
    _offers: watch::Sender<BTreeSet<ServiceName>>,
    _renewed: watch::Sender<()>,
    _offered: mpsc::Receiver<session::Offered>,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [directory, count] = arguments.as_slice() else {
        return Err("usage: swarm DIRECTORY COUNT".into());
    };
    let count: usize = count.parse()?;
    let scope = Scope::new("swarm");
    let mut agents = Vec::new();
    let lines = std::io::stdin().lock().lines();
    for (number, line) in (0_u32..).zip(lines.take(count)) {
        let directory = Path::new(directory).join(number.to_string());
        agents.push(agent(&scope, &line?, &directory, number).await?);
        if agents.len() % 100 == 0 {
            println!("joined {}", agents.len());
        }
    }
    loop {
        for agent in &agents {
            agent.sessions.current().await;
        }
        // All at once, not each at some time: one that was lost meanwhile is waited for again.
        if !agents.iter().all(|agent| is_up(&agent.sessions)) {
            continue;
        }
        println!("all {} up", agents.len());
        while agents.iter().all(|agent| is_up(&agent.sessions)) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        println!("first lost");
    }
}

fn is_up(sessions: &Sessions) -> bool {
    matches!(sessions.state(), session::State::Up(_))
}

async fn agent(
    scope: &Scope,
    token: &str,
    directory: &Path,
    number: u32,
) -> Result<Agent, Box<dyn Error>> {
    let token: JoinToken = token.trim().parse()?;
    // Nobody else may look into what holds a key.
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)?;
    let dir = IdentityDir::open(directory)?;
    let naming = Naming {
        asked: Some(format!("swarm-{number}").parse()?),
        own: None,
    };
    join::join_agent(&token, naming, &dir, &Default::default()).await?;
    let identity = IdentityStore::new(dir.load_svid()?.ok_or("no identity")?);
    let trust = TrustStore::new(dir.load_trust()?.ok_or("no trust bundle")?);
    // Nobody calls it; an endpoint that could be called may choose its address.
    let unused = tls::e2e_server(&identity, &trust, None);
    let source = Ipv4Addr::from_bits(Ipv4Addr::new(127, 1, 0, 1).to_bits() + number);
    let keys = TransportKeys::generate();
    let endpoint = Endpoint::server((source, 0).into(), unused, Settings::default(), &keys)?;
    let (offers, offered_services) = watch::channel(BTreeSet::new());
    let (renewals, renewed) = watch::channel(());
    let (offered, legs) = mpsc::channel(1);
    let mut instance = [0; 16];
    instance[..4].copy_from_slice(&number.to_be_bytes());
    let (sessions, keep) = session::maintain(SessionConfig {
        relays: token.addresses.clone(),
        list: RelayList::look_at(&directory.join("known-relays.json")),
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
    scope.spawn("session", keep);
    Ok(Agent {
        sessions,
        _offers: offers,
        _renewed: renewals,
        _offered: legs,
    })
}
