//! Bulk streams over conduits: on them, off them, and whatever happens to them on the way.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Result, ensure};
use sealock_agent::AgentHandle;
use sealock_core::config::Transport;
use sealock_core::reason::Reason;
use sealock_net::stream::Bulk;
use sealock_net::task::Scope;
use sealock_proto::wire::SessionKind;
use sealock_relay::RelayHandle;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::deployment::{READY, echo_between};
use crate::resume::{Front, Traffic};
use crate::world::{self, World};

/// How long a stream may take to find a conduit, or to do without, on a machine that may do much else.
const PATIENCE: Duration = Duration::from_secs(40);

/// Every stream that moves anything is bulk, and stays on its conduit however slow that is.
const ANY: Bulk = Bulk {
    stretch: 64 * 1024,
    rate: 0,
    part: u64::MAX,
};

/// An agent for whom every stream is bulk.
async fn agent(
    world: &World,
    name: &str,
    kind: SessionKind,
    relay: SocketAddr,
    change: impl FnOnce(&mut sealock_agent::AgentConfig),
) -> Result<AgentHandle> {
    let mut config = world.agent_config(name, kind, relay)?;
    config.bulk = ANY;
    change(&mut config);
    let agent = sealock_agent::start(config).await?;
    agent.ready(READY).await?;
    Ok(agent)
}

/// A relay behind a front, a provider, and a caller with a port to its echo.
struct Scene {
    _tasks: Scope,
    relay: RelayHandle,
    front: Front,
    agents: [AgentHandle; 2],
    port: SocketAddr,
}

impl Scene {
    async fn start() -> Result<Self> {
        Self::start_with(|_| ()).await
    }

    async fn start_with(change: impl FnOnce(&mut sealock_agent::AgentConfig)) -> Result<Self> {
        let (tasks, world) = (Scope::new("test"), World::new()?);
        let relay = world.relay().await?;
        let front = Front::start(relay.listen).await?;
        let (provider, caller) = (SessionKind::Full, SessionKind::CallerOnly);
        let provider = agent(&world, "provider", provider, front.address, |_| ()).await?;
        let caller = agent(&world, "caller", caller, front.address, change).await?;
        let port = echo_between(&provider, &caller, &tasks).await?;
        Ok(Self {
            _tasks: tasks,
            relay,
            front,
            agents: [provider, caller],
            port,
        })
    }

    async fn conduits(&self, count: usize) -> Result<()> {
        let what = format!("{count} conduits carry bytes");
        world::until(&what, PATIENCE, || self.relay.conduits.joined() == count).await
    }
}

// Issue 3: bulk streams move to the leg that carries most.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bulk_streams_go_over_conduits_while_the_session_stays_on_quic() -> Result<()> {
    let it = Scene::start().await?;
    let traffic = Traffic::start(it.port, 3).await?;
    it.conduits(3).await?;
    traffic.moves().await?;
    traffic.moves().await?;
    assert!(
        it.agents
            .iter()
            .all(|agent| agent.transports() == [Transport::Quic])
    );
    let flows = it.relay.live.list();
    let moved: u64 = flows
        .iter()
        .map(|flow| flow.bytes().0.min(flow.bytes().1))
        .sum();
    traffic.finish().await?;
    assert!(moved > 0, "what goes over conduits is counted");
    it.conduits(0).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conduit_that_is_cut_costs_no_byte() -> Result<()> {
    let it = Scene::start().await?;
    let traffic = Traffic::start(it.port, 3).await?;
    it.conduits(3).await?;
    traffic.moves().await?;
    it.front.wires.cut();
    it.conduits(0).await?;
    traffic.moves().await?;
    traffic.finish().await
}

// Over a session it would be the same: whoever alters what is on the way ends a leg and nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_alters_what_goes_over_a_conduit_ends_the_conduit_and_no_stream() -> Result<()> {
    let it = Scene::start().await?;
    let traffic = Traffic::start(it.port, 2).await?;
    it.conduits(2).await?;
    traffic.moves().await?;
    it.front.wires.spoil.store(16, Ordering::Relaxed);
    it.conduits(0).await?;
    traffic.moves().await?;
    traffic.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_tcp_does_not_get_through_bulk_streams_stay_on_the_session() -> Result<()> {
    let it = Scene::start().await?;
    it.front.wires.are_refused.store(true, Ordering::Relaxed);
    let traffic = Traffic::start(it.port, 2).await?;
    for _ in 0..8 {
        traffic.moves().await?;
    }
    assert_eq!(it.relay.conduits.joined(), 0);
    traffic.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_may_use_quic_alone_asks_for_no_conduit() -> Result<()> {
    let it = Scene::start_with(|config| config.ways.transports = vec![Transport::Quic]).await?;
    let traffic = Traffic::start(it.port, 2).await?;
    for _ in 0..8 {
        traffic.moves().await?;
    }
    assert_eq!(it.relay.conduits.joined(), 0);
    traffic.finish().await
}

// F27: what goes over a conduit is no less subject to policy.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policy_that_is_taken_back_cuts_a_conduit_by_reset() -> Result<()> {
    let it = Scene::start().await?;
    let mut stream = TcpStream::connect(it.port).await?;
    let bytes = vec![7; 256 * 1024];
    let (mut reader, mut writer) = stream.split();
    let reading = async {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            match reader.read(&mut buffer).await {
                Ok(0) => return None,
                Ok(_) => {}
                Err(error) => return Some(error.kind()),
            }
        }
    };
    let writing = async {
        while writer.write_all(&bytes).await.is_ok() {}
        std::future::pending::<()>().await;
    };
    let taking_back = async {
        world::until("a conduit", PATIENCE, || it.relay.conduits.joined() == 1).await?;
        for flow in it.relay.live.list() {
            flow.revoke(Reason::PolicyRevoked);
        }
        std::future::pending::<Result<()>>().await
    };
    let ended = tokio::select! {
        ended = reading => ended,
        () = writing => None,
        failed = taking_back => return failed,
        () = tokio::time::sleep(PATIENCE) => None,
    };
    ensure!(
        ended == Some(std::io::ErrorKind::ConnectionReset),
        "{ended:?}"
    );
    drop(stream);
    it.conduits(0).await
}
