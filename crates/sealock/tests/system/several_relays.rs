//! Several relays: sessions with two of them, drains, relays that come and go.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use sealock_agent::{AgentConfig, AgentHandle};
use sealock_core::address::HostPort;
use sealock_core::identity::Role;
use sealock_core::reason::Reason;
use sealock_net::identity::IdentityDir;
use sealock_net::join;
use sealock_net::stream::MEMORY_LIMIT;
use sealock_net::task::Scope;
use sealock_proto::wire::SessionKind;
use sealock_relay::{RelayConfig, RelayHandle};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::deployment::{
    DAY, Deployment, READY, address, any_port, echo_between, eventually, exchange, expose_echo,
    free_udp_port, token,
};
use crate::world::{RelayLimits, World, slow_way, until};

const RELAYS: [&str; 2] = ["relay-1", "relay-2"];
/// Longer than anything that a test waits for.
pub(crate) const LONG_DRAIN: Duration = Duration::from_secs(30);

impl World {
    pub(crate) async fn relay_called(
        &self,
        name: &'static str,
        listen: SocketAddr,
    ) -> Result<RelayHandle> {
        let limits = RelayLimits {
            name,
            listen,
            ..Default::default()
        };
        self.relay_with(limits).await
    }

    /// An agent that knows these relays.
    pub(crate) async fn agent_of(
        &self,
        name: &str,
        kind: SessionKind,
        relays: &[SocketAddr],
    ) -> Result<AgentHandle> {
        let mut config = self.agent_config(name, kind, relays[0])?;
        config.relays = relays.iter().copied().map(HostPort::from).collect();
        let agent = sealock_agent::start(config).await?;
        agent.ready(READY).await?;
        Ok(agent)
    }
}

/// A relay where another one was: its socket is free when the last of its connections is.
pub(crate) async fn relay_again(
    world: &World,
    name: &'static str,
    listen: SocketAddr,
) -> Result<RelayHandle> {
    let again = async {
        loop {
            match world.relay_called(name, listen).await {
                Ok(relay) => return relay,
                Err(_taken) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    let relay = tokio::time::timeout(READY, again).await;
    relay.context("the address does not become free")
}

/// Waits until the relay holds a session of the agent; with offers when it should.
pub(crate) async fn holds(relay: &RelayHandle, agent: &str, offers: usize) -> Result<()> {
    let there = || {
        let list = relay.directory.list();
        let mut sessions = list.iter().filter(|one| one.agent.name.as_str() == agent);
        sessions.any(|one| one.offers.len() == offers)
    };
    until(&format!("{agent} is at {}", relay.id), READY, there).await
}

/// Ends the opens also when a drain failed.
struct Stop(Arc<AtomicBool>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

pub(crate) async fn two_relays(world: &World) -> Result<[RelayHandle; 2]> {
    let first = world.relay_called(RELAYS[0], free_udp_port()?).await?;
    let second = world.relay_called(RELAYS[1], free_udp_port()?).await?;
    Ok([first, second])
}

// A8: an agent that offers is at two relays, and its offers at both; one that only calls has one session.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_has_a_session_and_its_offers_at_two_relays() -> Result<()> {
    let tasks = Scope::new("test");
    let world = World::new()?;
    let relays = two_relays(&world).await?;
    let at = relays.each_ref().map(|relay| relay.listen);
    let provider = world.agent_of("provider", SessionKind::Full, &at).await?;
    expose_echo(&provider, &tasks).await?;
    for relay in &relays {
        holds(relay, "provider", 1).await?;
    }
    let _caller = world
        .agent_of("caller", SessionKind::CallerOnly, &at)
        .await?;
    let sessions = || -> usize {
        relays
            .iter()
            .map(|relay| relay.directory.list().len())
            .sum()
    };
    until("three sessions", READY, || sessions() == 3).await?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(sessions(), 3, "a program that only calls has one");
    Ok(())
}

// Two addresses of one relay are one relay: there is no second session with it, and none takes the other's place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_addresses_of_one_relay_make_one_session() -> Result<()> {
    let world = World::new()?;
    let relay = world.relay().await?;
    let named: HostPort = format!("localhost:{}", relay.listen.port()).parse()?;
    let mut config = world.agent_config("provider", SessionKind::Full, relay.listen)?;
    config.relays.push(named);
    let agent = sealock_agent::start(config).await?;
    agent.ready(READY).await?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(relay.directory.list().len(), 1);
    Ok(())
}

// A8: of two relays that an agent is at, new flows take the one that is nearer by measure, whichever was named first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_flows_take_the_relay_that_is_measured_to_be_nearer() -> Result<()> {
    let tasks = Scope::new("test");
    let world = World::new()?;
    let [far, near] = two_relays(&world).await?;
    let slow = slow_way(&tasks, far.listen, Duration::from_millis(100)).await?;
    let at = [far.listen, near.listen];
    let provider = world.agent_of("provider", SessionKind::Full, &at).await?;
    let caller = world
        .agent_of("caller", SessionKind::Full, &[slow, near.listen])
        .await?;
    for relay in [&far, &near] {
        holds(relay, "caller", 0).await?;
    }
    let listen = echo_between(&provider, &caller, &tasks).await?;
    for relay in [&far, &near] {
        holds(relay, "provider", 1).await?;
        until("no flow is left", READY, || relay.live.is_empty()).await?;
    }
    let mut streams = Vec::new();
    for _ in 0..5 {
        let mut stream = TcpStream::connect(listen).await?;
        say(&mut stream, b"by the near one").await?;
        streams.push(stream);
    }
    assert_eq!((far.live.len(), near.live.len()), (0, 5));
    Ok(())
}

// A8: a token lists every relay, and a node joins and works while the first one is away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_lists_both_relays_and_either_is_enough_to_join() -> Result<()> {
    let deployment = Deployment::start(sealock_control::controller::Starter::Open).await?;
    let second = second_relay(&deployment).await?;
    let token = token(&deployment.controller, Role::Agent, Some("late")).await?;
    let both = [&deployment.relay, &second].map(|relay| HostPort::from(relay.listen));
    assert_eq!(token.addresses, both);
    let Deployment {
        state,
        relay,
        controller: _controller,
        scope: _scope,
    } = deployment;
    relay.stop().await;
    let dir = state.path().join("late");
    let identity = IdentityDir::open(&dir)?;
    join::join_agent(
        &token,
        join::Naming::default(),
        &identity,
        &Default::default(),
    )
    .await?;
    let config = AgentConfig {
        dir,
        relays: token.addresses.clone(),
        region: None,
        stream_memory: MEMORY_LIMIT,
        bulk: Default::default(),
        kind: SessionKind::Full,
        ways: Default::default(),
        max_policy_age: DAY,
        socket: None,
        admin: None,
    };
    let agent = sealock_agent::start(config).await?;
    agent.ready(READY).await?;
    holds(&second, "late", 0).await?;
    Ok(())
}

// K2: a relay is drained under a steady stream of opens; none fails and none waits long.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_is_drained_under_opens_and_none_fails() -> Result<()> {
    let tasks = Scope::new("test");
    let world = World::new()?;
    // Two, so that both agents are at both: without a controller relays know nothing of each other.
    let mut relays = Vec::from(two_relays(&world).await?);
    let at: Vec<SocketAddr> = relays.iter().map(|relay| relay.listen).collect();
    let provider = world.agent_of("provider", SessionKind::Full, &at).await?;
    let caller = world.agent_of("caller", SessionKind::Full, &at).await?;
    expose_echo(&provider, &tasks).await?;
    let listen = address(&caller.connect("echo".parse()?, &any_port()).await?)?;
    eventually(listen, b"begin").await?;
    for relay in &relays {
        holds(relay, "provider", 1).await?;
        holds(relay, "caller", 0).await?;
    }
    let stop = Arc::new(AtomicBool::new(false));
    let opened = Arc::new(AtomicUsize::new(0));
    let (stopped, count) = (Arc::clone(&stop), Arc::clone(&opened));
    let opens = async move {
        let (mut failed, mut slowest) = (Vec::new(), Duration::ZERO);
        while !stopped.load(Ordering::Relaxed) {
            let began = Instant::now();
            let payload = format!("open {}", count.fetch_add(1, Ordering::Relaxed));
            match exchange(listen, payload.as_bytes()).await {
                Ok(answer) if answer == payload.as_bytes() => {}
                outcome => failed.push(format!("{payload}: {outcome:?}")),
            }
            slowest = slowest.max(began.elapsed());
        }
        (failed, slowest)
    };
    let drains = async {
        let _stops = Stop(stop);
        while relays.len() > 1 {
            let relay = relays.remove(0);
            let id = relay.id.clone();
            tokio::time::timeout(LONG_DRAIN / 2, relay.drain(LONG_DRAIN))
                .await
                .with_context(|| format!("{id} did not end though all had left"))?;
            for relay in &relays {
                holds(relay, "provider", 1).await?;
                holds(relay, "caller", 0).await?;
            }
            let enough = opened.load(Ordering::Relaxed) + 150;
            let many = || opened.load(Ordering::Relaxed) >= enough;
            until("opens go on", READY, many).await?;
        }
        anyhow::Ok(())
    };
    let ((failed, slowest), drained) = tokio::join!(opens, drains);
    drained?;
    let opened = opened.load(Ordering::Relaxed);
    assert_eq!(failed, Vec::<String>::new());
    assert!(opened >= 150, "only {opened} opens");
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    Ok(())
}

// K2: a relay that drains lets what flows go on until it is done, and opens nothing new.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_drains_keeps_its_flows_and_takes_no_new_ones() -> Result<()> {
    let tasks = Scope::new("test");
    let world = World::new()?;
    let relay = world.relay().await?;
    let at = relay.listen;
    let provider = world.agent("provider", SessionKind::Full, at).await?;
    let caller = world.agent("caller", SessionKind::Full, at).await?;
    expose_echo(&provider, &tasks).await?;
    let listen = address(&caller.connect("echo".parse()?, &any_port()).await?)?;
    eventually(listen, b"begin").await?;
    let mut stream = TcpStream::connect(listen).await?;
    say(&mut stream, b"before").await?;
    let mut draining = spawned(&tasks, relay.drain(LONG_DRAIN));
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(1_500) {
        say(&mut stream, b"during").await?;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(draining.try_recv().is_err(), "it waits for the flow");
    drop(stream);
    tokio::time::timeout(READY, draining).await??;
    // The only relay is back: so are the agents, without anybody's help.
    let _again = relay_again(&world, RELAYS[0], at).await?;
    eventually(listen, b"again").await?;
    Ok(())
}

/// Runs in the background; the receiver hears of the end.
pub(crate) fn spawned(
    tasks: &Scope,
    work: impl Future<Output = ()> + Send + 'static,
) -> tokio::sync::oneshot::Receiver<()> {
    let (done, ended) = tokio::sync::oneshot::channel();
    tasks.spawn("background", async move {
        work.await;
        let _heard = done.send(());
    });
    ended
}

pub(crate) async fn say(stream: &mut TcpStream, word: &[u8]) -> Result<()> {
    stream.write_all(word).await?;
    let mut answer = vec![0; word.len()];
    tokio::time::timeout(READY, stream.read_exact(&mut answer)).await??;
    anyhow::ensure!(answer == word, "{answer:?}");
    Ok(())
}

// K2: what still flows when the drain time is over is cut with a reset, never a clean end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_drains_waits_for_its_flows_and_resets_what_remains() -> Result<()> {
    let tasks = Scope::new("test");
    let world = World::new()?;
    let relay = world.relay().await?;
    let at = relay.listen;
    let provider = world.agent("provider", SessionKind::Full, at).await?;
    let caller = world.agent("caller", SessionKind::Full, at).await?;
    expose_echo(&provider, &tasks).await?;
    let listen = address(&caller.connect("echo".parse()?, &any_port()).await?)?;
    eventually(listen, b"begin").await?;
    let mut stream = TcpStream::connect(listen).await?;
    say(&mut stream, b"before").await?;
    let grace = Duration::from_millis(800);
    let began = Instant::now();
    let draining = spawned(&tasks, provider.drain(grace));
    holds(&relay, "provider", 0).await?;
    say(&mut stream, b"during").await?;
    let ended = tokio::time::timeout(READY, stream.read(&mut [0; 1])).await?;
    let ended = ended.map_err(|error| error.kind());
    assert_eq!(ended, Err(std::io::ErrorKind::ConnectionReset));
    assert!(began.elapsed() >= grace, "{:?}", began.elapsed());
    tokio::time::timeout(READY, draining).await??;
    Ok(())
}

// K2, B1: a provider that drains takes no new flows, and its streams are taken up again after a loss all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_of_a_provider_that_drains_outlives_a_restart_of_its_relay() -> Result<()> {
    let tasks = Scope::new("test");
    let world = World::new()?;
    let relay = world.relay().await?;
    let at = relay.listen;
    let provider = world.agent("provider", SessionKind::Full, at).await?;
    let caller = world.agent("caller", SessionKind::Full, at).await?;
    let listen = echo_between(&provider, &caller, &tasks).await?;
    let mut stream = TcpStream::connect(listen).await?;
    say(&mut stream, b"before").await?;
    let mut draining = spawned(&tasks, provider.drain(LONG_DRAIN));
    holds(&relay, "provider", 0).await?;
    say(&mut stream, b"during").await?;
    relay.stop().await;
    let relay = relay_again(&world, RELAYS[0], at).await?;
    say(&mut stream, b"on another leg").await?;
    holds(&relay, "provider", 0).await?;
    assert_eq!(caller.stdio("echo".parse()?).await, Reason::NoProvider);
    assert!(draining.try_recv().is_err(), "it waits for the stream");
    drop(stream);
    tokio::time::timeout(READY, draining).await??;
    Ok(())
}

// A8: a relay that joined later is found without joining again, and still known when the controller is away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_was_added_later_is_found_and_kept() -> Result<()> {
    let tasks = Scope::new("test");
    let deployment = Deployment::start(sealock_control::controller::Starter::Open).await?;
    let provider = deployment.agent("provider", SessionKind::Full).await?;
    expose_echo(&provider, &tasks).await?;
    holds(&deployment.relay, "provider", 1).await?;
    let second = second_relay(&deployment).await?;
    holds(&second, "provider", 1).await?;
    let told = || {
        let known = deployment.relay.relays.current();
        let told = known.iter().map(|relay| {
            let region = relay.region.as_ref();
            (relay.name.to_string(), region.map(ToString::to_string))
        });
        told.collect::<Vec<_>>()
    };
    // A relay's region comes with its own watch, a moment after its name.
    let both = [("relay-1", None), ("relay-2", Some("there"))];
    let both = both.map(|(name, region)| (name.to_owned(), region.map(str::to_owned)));
    until("both relays are told", READY, || told() == both).await?;
    // The agent comes back with the old token's relay gone: it knows the other one from its disk.
    provider.stop().await;
    let Deployment { state, relay, .. } = &deployment;
    let kept = state.path().join("provider/known-relays.json");
    let kept = String::from_utf8(std::fs::read(kept)?)?;
    assert!(kept.contains(&second.listen.to_string()), "{kept}");
    assert!(relay.listen != second.listen);
    Ok(())
}

async fn second_relay(deployment: &Deployment) -> Result<RelayHandle> {
    let token = token(&deployment.controller, Role::Relay, Some("relay-2")).await?;
    let dir = deployment.state.path().join("relay-2");
    let listen = free_udp_port()?;
    let addresses = vec![HostPort::from(listen)];
    let identity = IdentityDir::open(&dir)?;
    join::join_relay(
        &token,
        join::Naming::default(),
        addresses.clone(),
        &identity,
    )
    .await?;
    let relay = sealock_relay::start(RelayConfig {
        dir,
        listen,
        advertise: addresses,
        controller: HostPort::from(deployment.controller.listen()),
        max_policy_age: DAY,
        max_sessions: 100,
        max_streams_per_session: 1_000,
        open_limit: Default::default(),
        admin: None,
        region: Some("there".parse()?),
    });
    Ok(relay.await?)
}
