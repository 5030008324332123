//! What a node lets others do at once: floods and hogs get a refusal with a code, and everybody else goes on.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sealock_core::reason::Reason;
use sealock_flow::audit::Audit;
use sealock_net::task::Scope;
use sealock_proto::wire::{Message, SessionKind};
use sealock_relay::OpenLimit;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::deployment::{READY, address, any_port, echo_between, exchange, expose_echo};
use crate::world::{Raw, RelayLimits, World, until};

/// How many decisions about opens of this caller ended so.
pub(crate) fn written(audit: &Audit, caller: &str, reason: Reason) -> u64 {
    let rows = audit.untold();
    let of_caller = rows
        .iter()
        .filter(|row| row.caller.name.as_str() == caller && row.reason == reason);
    of_caller.map(|row| row.count).sum()
}

/// Room for some tens of streams: two begin with all they may have, some with less, the rest with the least.
const SMALL: u64 = 2 << 20;
const PAYLOAD: usize = 256 << 10;

/// A new connection that has had its first byte back.
async fn says_a_byte(listen: SocketAddr) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(listen).await?;
    stream.write_all(b"x").await?;
    stream.read_exact(&mut [0; 1]).await?;
    Ok(stream)
}

/// Sends a pattern around and checks every byte of it.
async fn goes_around(stream: &mut TcpStream) -> Result<()> {
    let payload: Vec<u8> = (0..PAYLOAD).map(|n| (n % 251) as u8).collect();
    let (mut reader, mut writer) = stream.split();
    let mut answer = vec![0; PAYLOAD];
    let (sent, received) = tokio::join!(writer.write_all(&payload), reader.read_exact(&mut answer));
    sent?;
    received?;
    ensure!(answer == payload, "a wrong byte");
    Ok(())
}

/// Sends without ever reading, until nobody takes more for a while; says how much that was.
async fn hog(stream: &mut TcpStream) -> Result<usize> {
    let (block, mut taken) = (vec![5; 64 << 10], 0);
    while let Ok(wrote) =
        tokio::time::timeout(Duration::from_millis(300), stream.write(&block)).await
    {
        taken += wrote?;
        ensure!(taken < 256 << 20, "nobody holds the sender back");
    }
    Ok(taken)
}

// Issue 3, item 1: the streams of an agent share a bounded memory; at the bound they are held back, and all still move.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_the_memory_limit_no_stream_begins_and_every_stream_moves() -> Result<()> {
    let (world, tasks) = (World::new()?, Scope::new("test"));
    let relay = world.relay().await?;
    let small = |name, kind| {
        let mut config = world.agent_config(name, kind, relay.listen)?;
        config.stream_memory = SMALL;
        anyhow::Ok(config)
    };
    let provider = sealock_agent::start(small("provider", SessionKind::Full)?).await?;
    let caller = sealock_agent::start(small("caller", SessionKind::CallerOnly)?).await?;
    provider.ready(READY).await?;
    caller.ready(READY).await?;
    let listen = echo_between(&provider, &caller, &tasks).await?;

    let mut streams = Vec::new();
    while written(caller.audit(), "caller", Reason::Overloaded) == 0 {
        ensure!(streams.len() < 100, "there is no limit");
        // The one that is refused may be reset as soon as it is connected.
        if let Ok(stream) = says_a_byte(listen).await {
            streams.push(stream);
        }
    }
    ensure!(streams.len() > 20, "{} streams", streams.len());

    let greedy = &mut streams.pop().context("a stream")?;
    let most = AtomicU64::new(0);
    let watch = async {
        loop {
            let used = caller.stream_memory().max(provider.stream_memory());
            most.fetch_max(used, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let talk = async {
        hog(greedy).await?;
        let all = streams.iter_mut().map(goes_around);
        futures_util::future::try_join_all(all).await?;
        anyhow::Ok(())
    };
    tokio::select! {
        () = watch => {}
        talked = tokio::time::timeout(3 * READY, talk) => talked.context("a deadlock")??,
    }
    let most = most.load(Ordering::Relaxed);
    ensure!((SMALL / 2..=SMALL).contains(&most), "{most} bytes");
    Ok(())
}

// S35: opens that are given up at once cost a budget; beyond it they are refused, counted, and nobody else's concern.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_opens_is_refused_beyond_its_budget_and_written_down() -> Result<()> {
    const OPENS: u64 = 300;
    let (world, tasks) = (World::new()?, Scope::new("test"));
    let opens = OpenLimit {
        burst: 100,
        per_second: 1,
    };
    let limits = RelayLimits {
        opens,
        ..RelayLimits::default()
    };
    let relay = world.relay_with(limits).await?;
    let (provider, caller) = world.pair(relay.listen).await?;
    let listen = echo_between(&provider, &caller, &tasks).await?;
    let mallory = world.connect_as("mallory", relay.listen).await?;
    let _control = mallory.greet(SessionKind::CallerOnly, [1; 16]).await?;
    let mut refused = 0;
    for _ in 0..OPENS {
        let (answer, leg) = mallory.open("echo").await?;
        refused += u64::from(answer == Message::Refused(Reason::QuotaExceeded));
        leg.reset(Reason::Cancelled);
    }
    ensure!(refused >= OPENS / 3, "{refused} of {OPENS} were refused");
    let all = || written(&relay.audit, "mallory", Reason::QuotaExceeded) == refused;
    until("every refusal is written down", READY, all).await?;
    ensure!(exchange(listen, b"honest").await? == b"honest");
    until("the relay forgets them", READY, || relay.live.is_empty()).await
}

// S35: whoever begins handshakes and never goes on with them keeps nobody else from a provider.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_proves_nothing_takes_its_own_places_only() -> Result<()> {
    const LEGS: usize = 600; // more than half of what a provider hears at once
    let (world, tasks) = (World::new()?, Scope::new("test"));
    let relay = world.relay().await?;
    let (provider, caller) = world.pair(relay.listen).await?;
    let listen = echo_between(&provider, &caller, &tasks).await?;
    let mallory = world.connect_as("mallory", relay.listen).await?;
    let _control = mallory.greet(SessionKind::CallerOnly, [1; 16]).await?;
    let mut held = Vec::new();
    for _ in 0..LEGS {
        let mut leg = mallory.connection.open_bi().await?;
        leg.send.write(crate::world::open("echo")?.encode()).await?;
        held.push(leg);
    }
    let refused = || written(provider.audit(), "mallory", Reason::Overloaded) > 0;
    until("it is refused and written down", READY, refused).await?;
    ensure!(exchange(listen, b"honest").await? == b"honest");
    Ok(())
}

/// Opens so many legs that are refused, some of them at a time.
pub(crate) async fn refusals(by: &Raw, count: usize) -> Result<()> {
    const AT_A_TIME: usize = 50;
    for _ in 0..count / AT_A_TIME {
        let opens = (0..AT_A_TIME).map(|_| by.open("no-such-service"));
        for opened in futures_util::future::try_join_all(opens).await? {
            let refused = Message::Refused(Reason::NoSuchService);
            ensure!(opened.0 == refused, "{:?}", opened.0);
        }
    }
    Ok(())
}

/// What nodes that have just started need to come to rest.
const SETTLED: Duration = Duration::from_millis(500);

/// Refusals leave nothing behind, and nobody has to be waited for at the end.
pub(crate) async fn leaves_nothing_behind(count: usize) -> Result<()> {
    let (world, tasks) = (World::new()?, Scope::new("test"));
    let relay = world.relay().await?;
    let (provider, caller) = world.pair(relay.listen).await?;
    let mallory = world.connect_as("mallory", relay.listen).await?;
    let _control = mallory.greet(SessionKind::CallerOnly, [1; 16]).await?;
    // A few first, and a moment: dials that lost their race still have tasks at the relay when the sessions are up.
    refusals(&mallory, 50).await?;
    tokio::time::sleep(SETTLED).await;
    let load = || [provider.load(), caller.load(), relay.load()];
    let before = load();
    refusals(&mallory, count).await?;
    let no_more = || {
        let pairs = load().into_iter().zip(before);
        pairs
            .into_iter()
            .all(|(now, then)| now.0 <= then.0 && now.1 <= then.1)
    };
    until("there is no more than before", READY, no_more).await?;

    expose_echo(&provider, &tasks).await?;
    let listen = address(&caller.connect("echo".parse()?, &any_port()).await?)?;
    crate::deployment::eventually(listen, b"warm").await?;
    let mut greedy = TcpStream::connect(listen).await?;
    hog(&mut greedy).await?;
    // Nobody reads what they still have to say.
    tokio::time::timeout(READY, provider.stop()).await?;
    tokio::time::timeout(READY, caller.stop()).await?;
    tokio::time::timeout(READY, relay.stop()).await?;
    Ok(())
}

// S42.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_refusals_leave_nothing_behind_and_no_close_waits() -> Result<()> {
    leaves_nothing_behind(1_000).await
}
