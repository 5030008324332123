//! What breaks by itself: controllers and relays that go away, agents that die, disks, views and targets that are not
//! what they should be, readers that do not read.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sealock_core::address::{HostPort, Target};
use sealock_core::identity::Role;
use sealock_core::reason::Reason;
use sealock_core::secret::Secret;
use sealock_core::token::JoinToken;
use sealock_net::files;
use sealock_net::identity::IdentityDir;
use sealock_net::identity::testing::TestCa;
use sealock_net::join::{self, Naming};
use sealock_net::task::Scope;
use sealock_net::views::ViewStore;
use sealock_proto::wire::SessionKind;
use sealock_relay::RelayHandle;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::deployment::{
    DAY, READY, address, any_port, echo_between, eventually, exchange, free_udp_port, serve,
};
use crate::world::{World, until};

async fn offered(relay: &RelayHandle) -> Result<()> {
    let offers = || {
        relay
            .directory
            .list()
            .iter()
            .any(|one| !one.offers.is_empty())
    };
    until("the provider offers", READY, offers).await
}

// F11: with the controller away a relay that restarts serves from its disk, what is allowed and what is denied.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_restarts_without_a_controller_serves_from_its_disk() -> Result<()> {
    let tasks = Scope::new("test");
    let mut world = World::new()?;
    world.forbid_everything();
    world.allow("callers", "caller", "*");
    let at = free_udp_port()?;
    let relay = world.relay_at(at).await?;
    let provider = world.agent("provider", SessionKind::Full, at).await?;
    let caller = world.agent("caller", SessionKind::CallerOnly, at).await?;
    let second = world.agent("second", SessionKind::CallerOnly, at).await?;
    let listen = echo_between(&provider, &caller, &tasks).await?;
    relay.stop().await;
    let _relay = world.relay_at(at).await?;
    eventually(listen, b"after").await?;
    assert_eq!(second.stdio("echo".parse()?).await, Reason::PolicyDenied);
    Ok(())
}

// F11: with the controller away a join fails with a clear reason, and soon.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_join_without_a_controller_fails_soon_and_says_why() -> Result<()> {
    let world = World::new()?;
    let relay = world.relay().await?;
    let token = JoinToken {
        role: Role::Agent,
        pin: world.ca.pin(),
        secret: Secret::new([7; 16]),
        addresses: vec![HostPort::from(relay.listen)],
    };
    let dir = IdentityDir::open(world.state.path().join("new"))?;
    let began = Instant::now();
    let outcome = join::join_agent(&token, Naming::default(), &dir, &Default::default()).await;
    let reason = outcome.err().map(|error| error.reason());
    assert_eq!(reason, Some(Reason::ControllerUnreachable));
    assert!(began.elapsed() < Duration::from_secs(10));
    Ok(())
}

// F07, lesson 03: an agent that is killed in the middle of an answer is a reset for the client, never a clean end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_that_dies_in_the_middle_of_an_answer_is_a_reset() -> Result<()> {
    let tasks = Scope::new("test");
    let world = World::new()?;
    let relay = world.relay().await?;
    let answered = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&answered);
    let target = serve(&tasks, move |mut stream: TcpStream| {
        let counter = Arc::clone(&counter);
        async move {
            let _sent = stream.write_all(b"the first half").await;
            counter.fetch_add(1, Ordering::Relaxed);
            std::future::pending::<()>().await;
        }
    })
    .await?;
    // A runtime of its own, so that it can end as a killed process does: without a word to anybody.
    let process = tokio::runtime::Runtime::new()?;
    let config = world.agent_config("provider", SessionKind::Full, relay.listen)?;
    let provider = process
        .spawn(async move {
            let provider = sealock_agent::start(config).await?;
            provider.ready(READY).await?;
            ensure!(provider.expose("echo".parse()?, target, Default::default()));
            Ok(provider)
        })
        .await??;
    let caller = world
        .agent("caller", SessionKind::CallerOnly, relay.listen)
        .await?;
    offered(&relay).await?;
    let listen = address(&caller.connect("echo".parse()?, &any_port()).await?)?;
    let mut stream = TcpStream::connect(listen).await?;
    stream.read_exact(&mut [0; 14]).await?;
    let began = Instant::now();
    let killed = async {
        let both = || answered.load(Ordering::Relaxed) == 2;
        until("both flows are answered", READY, both).await?;
        // Without its runtime it says nothing any more; then its sockets close, as the kernel closes those of the dead.
        tokio::task::spawn_blocking(move || process.shutdown_timeout(READY)).await?;
        drop(provider);
        let mut byte = [0; 1];
        let ended = tokio::time::timeout(Duration::from_secs(15), stream.read(&mut byte)).await?;
        anyhow::Ok(ended)
    };
    let (lost, ended) = tokio::join!(caller.stdio("echo".parse()?), killed);
    assert_eq!(lost, Reason::PeerLost);
    let ended = ended?;
    tracing::info!(took = ?began.elapsed(), "the client saw the end");
    assert_eq!(
        ended.map_err(|error| error.kind()),
        Err(std::io::ErrorKind::ConnectionReset)
    );
    assert!(
        began.elapsed() < Duration::from_secs(4),
        "2 s, and as much again for the machine"
    );
    Ok(())
}

// F09: each way in which the program behind a service fails has its own reason, within bounded time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_failure_of_a_target_has_its_own_reason() -> Result<()> {
    let mut world = World::new()?;
    for service in [
        "closed",
        "no-name",
        "no-socket",
        "dead-socket",
        "nobody-offers",
    ] {
        world.provide(service, &["provider"])?;
    }
    let relay = world.relay().await?;
    let (provider, caller) = world.pair(relay.listen).await?;
    let closed = TcpListener::bind("127.0.0.1:0").await?.local_addr()?;
    let dead = world.state.path().join("dead.sock");
    drop(std::os::unix::net::UnixListener::bind(&dead)?);
    let targets = [
        ("closed", Target::Tcp(closed.into())),
        ("no-name", "nowhere.invalid:80".parse()?),
        (
            "no-socket",
            Target::Unix(world.state.path().join("missing.sock")),
        ),
        ("dead-socket", Target::Unix(dead)),
    ];
    for (service, target) in targets {
        ensure!(provider.expose(service.parse()?, target, Default::default()));
    }
    let all = || {
        relay
            .directory
            .list()
            .iter()
            .any(|one| one.offers.len() == 4)
    };
    until("the provider offers", READY, all).await?;
    for (service, expected) in [
        ("closed", Reason::TargetRefused),
        ("no-name", Reason::TargetUnreachable),
        ("no-socket", Reason::TargetUnreachable),
        ("dead-socket", Reason::TargetRefused),
        ("nobody-offers", Reason::NoProvider),
        ("unknown", Reason::NoSuchService),
    ] {
        let open = caller.stdio(service.parse()?);
        let reason = tokio::time::timeout(Duration::from_secs(6), open).await;
        assert_eq!(reason.context(service)?, expected, "{service}");
    }
    Ok(())
}

// Lesson 03, I8: a client that resets before anything is open is a reset for the program behind, or never seen by it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_resets_at_once_is_never_a_clean_end_at_the_target() -> Result<()> {
    let tasks = Scope::new("test");
    let world = World::new()?;
    let relay = world.relay().await?;
    let (provider, caller) = world.pair(relay.listen).await?;
    let (seen_in, mut seen) = tokio::sync::mpsc::channel(100);
    let target = serve(&tasks, move |mut stream: TcpStream| {
        let seen_in = seen_in.clone();
        async move {
            let ended = stream
                .read(&mut [0; 16])
                .await
                .map_err(|error| error.kind());
            let _told = seen_in.send(ended).await;
        }
    })
    .await?;
    ensure!(provider.expose("echo".parse()?, target, Default::default()));
    offered(&relay).await?;
    let listen = address(&caller.connect("echo".parse()?, &any_port()).await?)?;
    for _ in 0..50 {
        let stream = TcpStream::connect(listen).await?;
        sealock_net::socket::reset_on_close(&stream);
        drop(stream);
    }
    // One that speaks, so that there is something to wait for.
    let mut stream = TcpStream::connect(listen).await?;
    stream.write_all(b"hello").await?;
    let mut spoken = false;
    while !spoken {
        let ended = tokio::time::timeout(READY, seen.recv())
            .await?
            .context("open")?;
        assert_ne!(ended, Ok(0), "a reset became a clean end");
        spoken = ended == Ok(5);
    }
    Ok(())
}

// F32: a client that does not read holds its window and nothing more, and others go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_does_not_read_holds_up_nobody_else() -> Result<()> {
    let tasks = Scope::new("test");
    let world = World::new()?;
    let relay = world.relay().await?;
    let (provider, caller) = world.pair(relay.listen).await?;
    let (sent_in, sent) = tokio::sync::watch::channel(0_usize);
    let target = serve(&tasks, move |mut stream: TcpStream| {
        let sent_in = sent_in.clone();
        async move {
            let wanted = stream.read_u32().await.unwrap_or(0) as usize;
            let block = vec![5; 64 * 1024];
            let mut left = wanted;
            while left > 0 {
                let part = left.min(block.len());
                if stream.write_all(&block[..part]).await.is_err() {
                    return;
                }
                left -= part;
                if wanted > SLOW {
                    sent_in.send_modify(|sent| *sent += part);
                }
            }
        }
    })
    .await?;
    ensure!(provider.expose("echo".parse()?, target, Default::default()));
    offered(&relay).await?;
    let listen = address(&caller.connect("echo".parse()?, &any_port()).await?)?;
    let mut slow = TcpStream::connect(listen).await?;
    slow.write_u32(u32::MAX).await?;
    slow.read_exact(&mut [0; 1_000]).await?;
    for _ in 0..10 {
        let mut fast = TcpStream::connect(listen).await?;
        fast.write_u32(u32::try_from(SLOW)?).await?;
        let mut bytes = vec![0; SLOW];
        tokio::time::timeout(READY, fast.read_exact(&mut bytes)).await??;
    }
    // Four socket buffers, two windows of the stream, and what is between them.
    let taken = *sent.borrow();
    assert!(
        taken < 64 * 1024 * 1024,
        "{taken} bytes for a client that does not read"
    );
    let before = taken;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(
        *sent.borrow() - before < 4 * 1024 * 1024,
        "it goes on taking"
    );
    Ok(())
}

const SLOW: usize = 2_000_000;

// S72: what others could read is refused with the command that repairs it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_others_can_read_is_refused_with_the_command_that_helps() -> Result<()> {
    let world = World::new()?;
    let config = world.agent_config("caller", SessionKind::CallerOnly, free_udp_port()?)?;
    let key = config.dir.join("key.pem");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644))?;
    let error = sealock_agent::start(config)
        .await
        .err()
        .context("it started")?;
    let text = format!("{:#}", anyhow::Error::from(error));
    assert!(
        text.contains("chmod 600") && text.contains("key.pem"),
        "{text}"
    );
    Ok(())
}

fn store(world: &World, max_age: Duration) -> Result<ViewStore> {
    let dir = world.state.path().join("store");
    Ok(ViewStore::open(world.ca.trust_store(), dir, max_age)?)
}

// F29, I15: whatever is not a newer view of ours leaves the last good one in force, and on disk.
#[tokio::test]
async fn a_view_that_is_not_right_leaves_the_last_good_one() -> Result<()> {
    let mut world = World::new()?;
    world.forbid_everything();
    let views = store(&world, DAY)?;
    let now = jiff::Timestamp::now();
    views.put(world.view(5, now)?)?;
    world.allow("everything", "*", "*");
    let wider = world.view(6, now)?;

    let mut altered = wider.clone();
    altered
        .entries
        .put("rule/everything".into(), b"{}".to_vec());
    let mut unsigned = wider.clone();
    unsigned.head.signature[9] ^= 1;
    let mut renamed = wider.clone();
    renamed.head.head.version.0 = 7;
    let mut nobodys = wider.clone();
    nobodys.head.chain.clear();
    let mut stranger = World::new()?;
    stranger.ca = TestCa::new("sealock");
    stranger.allow("everything", "*", "*");
    let mut unknown = World {
        ca: world.ca,
        ..World::new()?
    };
    unknown.entries.put("ban/caller".into(), b"{}".to_vec());
    let cases = [
        ("altered", altered),
        ("unsigned", unsigned),
        ("renamed", renamed),
        ("without a signer", nobodys),
        ("of another authority", stranger.view(8, now)?),
        ("of a kind that we do not know", unknown.view(9, now)?),
        ("from tomorrow", unknown.view(10, now + DAY)?),
        ("from last week", unknown.view(11, now - 7 * DAY)?),
    ];
    let tenant = "default".parse()?;
    for (what, view) in cases {
        ensure!(views.put(view).is_err(), "{what}: taken");
        let current = views.current(&tenant)?;
        assert_eq!(current.head.version.0, 5, "{what}");
        assert!(current.rules().is_empty(), "{what}: opened wider");
    }
    unknown.entries.apply(sealock_core::view::Delta {
        put: Vec::new(),
        remove: vec!["ban/caller".into()],
    });
    ensure!(
        views.put(unknown.view(4, now)?).is_err(),
        "an older version"
    );
    Ok(())
}

// F29, S07, C20: a kept view that is damaged or a giant is put aside at the start, and nothing is allowed.
#[tokio::test]
async fn a_damaged_view_at_the_start_is_put_aside_and_allows_nothing() -> Result<()> {
    let world = World::new()?;
    let good = serde_json::to_vec(&world.view(1, jiff::Timestamp::now())?)?;
    let mut flipped = good.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    let cases = [
        ("flipped", flipped),
        ("cut", good[..good.len() / 2].to_vec()),
        ("empty", Vec::new()),
        ("zeros", vec![0; 4_096]),
    ];
    let dir = world.state.path().join("store");
    let kept = dir.join("default.json");
    files::ensure_private_dir(&dir)?;
    let tenant = "default".parse()?;
    for (what, bytes) in cases {
        files::write_private(&kept, &bytes)?;
        let refused = store(&world, DAY)?.current(&tenant).err();
        assert_eq!(refused, Some(Reason::NoPolicy), "{what}");
        assert!(!kept.exists(), "{what}: left in place");
    }
    files::write_private(&kept, b"")?;
    std::fs::OpenOptions::new()
        .write(true)
        .open(&kept)?
        .set_len(300 * 1024 * 1024)?;
    let refused = store(&world, DAY)?.current(&tenant).err();
    assert_eq!(refused, Some(Reason::NoPolicy), "a giant");
    files::write_private(&kept, &good)?;
    assert!(store(&world, DAY)?.current(&tenant).is_ok(), "the good one");
    Ok(())
}

// C2, F29: a view that is older than it may be allows nothing and says so, also after a restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_view_that_became_too_old_is_stale_and_allows_nothing() -> Result<()> {
    let world = World::new()?;
    let relay = world.relay().await?;
    let mut config = world.agent_config("caller", SessionKind::CallerOnly, relay.listen)?;
    config.max_policy_age = Duration::from_secs(1);
    let before = sealock_agent::start(config.clone()).await?;
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    assert_eq!(before.stdio("echo".parse()?).await, Reason::PolicyStale);
    drop(before);
    let after = sealock_agent::start(config.clone()).await?;
    assert_eq!(after.stdio("echo".parse()?).await, Reason::PolicyStale);
    drop(after);
    config.max_policy_age = DAY;
    let patient = sealock_agent::start(config).await?;
    assert_eq!(patient.stdio("echo".parse()?).await, Reason::NoProvider);
    Ok(())
}

// F37: a disk that takes no more costs the next start its policy, not this run.
#[tokio::test]
async fn a_view_that_cannot_be_kept_is_in_force_all_the_same() -> Result<()> {
    let world = World::new()?;
    let views = store(&world, DAY)?;
    std::fs::remove_dir_all(world.state.path().join("store"))?;
    views.put(world.view(1, jiff::Timestamp::now())?)?;
    assert!(views.current(&"default".parse()?).is_ok());
    Ok(())
}

// F37: an agent whose state can no longer be written goes on with what it has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_whose_state_is_gone_goes_on() -> Result<()> {
    let tasks = Scope::new("test");
    let world = World::new()?;
    let relay = world.relay().await?;
    let (provider, caller) = world.pair(relay.listen).await?;
    std::fs::remove_dir_all(world.state.path().join("provider"))?;
    std::fs::remove_dir_all(world.state.path().join("caller"))?;
    let listen = echo_between(&provider, &caller, &tasks).await?;
    let answer = exchange(listen, b"and again").await?;
    assert_eq!(answer, b"and again");
    Ok(())
}

/// An address of the relay that stays the same over a restart.
impl World {
    async fn relay_at(&self, at: SocketAddr) -> Result<RelayHandle> {
        self.relay_with(crate::world::RelayLimits {
            listen: at,
            ..Default::default()
        })
        .await
    }
}

/// What an agent says of its flows at its admin address.
async fn figures(admin: SocketAddr) -> Result<String> {
    let mut stream = TcpStream::connect(admin).await?;
    let request = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    Ok(text)
}

/// Waits until an agent has counted an end of a flow for this reason.
async fn counted(admin: SocketAddr, side: &str, reason: Reason) -> Result<()> {
    let prefix = format!("sealock_agent_{side}_flows_ended_total{{");
    let label = format!("reason=\"{}\"", reason.code());
    let mut seen = String::new();
    let wait = async {
        loop {
            seen = figures(admin).await?;
            let mut lines = seen.lines();
            if lines.any(|line| line.starts_with(&prefix) && line.contains(&label)) {
                return anyhow::Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let waited = tokio::time::timeout(READY, wait).await;
    waited.with_context(|| format!("{side} counts no {reason}: {seen}"))?
}

// F09: sockets say only «reset»; which program it was that broke off, both agents tell apart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_agents_say_which_programs_reset_ended_a_flow() -> Result<()> {
    let tasks = Scope::new("test");
    let world = World::new()?;
    let relay = world.relay().await?;
    let mut admins = Vec::new();
    let mut agents = Vec::new();
    for (name, kind) in [
        ("provider", SessionKind::Full),
        ("caller", SessionKind::CallerOnly),
    ] {
        let admin = free_udp_port()?;
        let mut config = world.agent_config(name, kind, relay.listen)?;
        config.admin = Some(admin);
        let agent = sealock_agent::start(config).await?;
        agent.ready(READY).await?;
        admins.push(admin);
        agents.push(agent);
    }
    // Breaks off at the second word that it hears.
    let target = serve(&tasks, |mut stream: TcpStream| async move {
        let mut word = [0; 4];
        let echoed = async {
            stream.read_exact(&mut word).await?;
            stream.write_all(&word).await?;
            stream.read_exact(&mut word).await
        };
        if echoed.await.is_ok() {
            sealock_net::socket::reset_on_close(&stream);
        }
    })
    .await?;
    ensure!(agents[0].expose("echo".parse()?, target, Default::default()));
    offered(&relay).await?;
    let listen = address(&agents[1].connect("echo".parse()?, &any_port()).await?)?;
    for reason in [Reason::NearReset, Reason::FarReset] {
        let mut stream = TcpStream::connect(listen).await?;
        stream.write_all(b"word").await?;
        stream.read_exact(&mut [0; 4]).await?;
        if reason == Reason::NearReset {
            sealock_net::socket::reset_on_close(&stream);
        } else {
            stream.write_all(b"more").await?;
            let ended = stream.read(&mut [0; 4]).await;
            ensure!(ended.is_err(), "the end looks clean: {ended:?}");
        }
        drop(stream);
        counted(admins[1], "caller", reason).await?;
        counted(admins[0], "provider", reason).await?;
    }
    Ok(())
}
