//! Floods as large as they are feared; they take minutes, so they belong to `make lab`.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use sealock_core::reason::Reason;
use sealock_net::e2e::EndToEnd;
use sealock_net::stream::{Leg, MEMORY_LIMIT};
use sealock_net::task::Scope;
use sealock_proto::stream::Epoch;
use sealock_proto::wire::{Message, Open, SessionKind, StreamId};
use sealock_relay::OpenLimit;

use crate::bounds::{leaves_nothing_behind, written};
use crate::deployment::{echo_between, exchange};
use crate::resume;
use crate::world::{Raw, RelayLimits, World, call, until};

mod timing;

// S42.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_refusals_leave_nothing_behind_and_no_close_waits() -> Result<()> {
    leaves_nothing_behind(10_000).await
}

/// How many streams an agent parks with one peer.
const PARKED: usize = 1_024;
/// How many the peer leaves without a leg.
const LEFT: usize = PARKED + 76;
/// How many later legs it asks for.
const LATER: usize = 100_000;
const AT_A_TIME: usize = 100;
const SOON: std::time::Duration = std::time::Duration::from_secs(60);

/// The memory of this process, with every node in it.
pub(crate) fn resident() -> Result<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let pages: u64 = statm.split(' ').nth(1).context("a size")?.parse()?;
    Ok(pages * 4_096)
}

/// Each stream takes two of this process's files at the provider and two in the program behind it.
fn allow_files() -> Result<()> {
    let process = std::process::id().to_string();
    let raised = Command::new("prlimit")
        .args(["--pid", &process, "--nofile=8192:"])
        .status()?;
    ensure!(raised.success(), "this process may not open enough files");
    Ok(())
}

/// Opens streams by hand, proves itself on each, and cuts the legs of all of them.
async fn leave_streams(world: &World, mallory: &Raw, tasks: &Scope) -> Result<()> {
    let identity = world.ca.identity("default/agent/mallory");
    let end_to_end = EndToEnd::new(identity, world.ca.trust_store(), tasks.spawner());
    let mut held = Vec::new();
    while held.len() < LEFT {
        let calls = (0..AT_A_TIME).map(|_| async {
            let call = call("echo", &["provider"])?;
            let mut leg = mallory.connection.open_bi().await?;
            let head = resume::open(call.stream, Epoch::FIRST, None)?;
            leg.send.write(head.encode()).await?;
            let halves = end_to_end.call(Leg::lasting(leg), call, || Ok(Bytes::new()));
            anyhow::Ok(halves.await?)
        });
        held.extend(futures_util::future::try_join_all(calls).await?);
    }
    mallory.connection.close(Reason::SessionLost);
    Ok(())
}

/// Asks for another leg of a stream that nobody has.
async fn ask_in_vain(mallory: &Raw) -> Result<()> {
    let mut leg = mallory.connection.open_bi().await?;
    let head = Message::Open(Open {
        stream: StreamId(rand::random()),
        epoch: Epoch(2),
        service: "echo".parse()?,
        provider: Some("provider".parse()?),
        conduit: None,
    });
    leg.send.write(head.encode()).await?;
    let answer = sealock_net::message::read(&mut leg.recv).await?;
    ensure!(answer == Message::Refused(Reason::PeerLost), "{answer:?}");
    Ok(())
}

// S19, issue 3, bad input: a peer that parks whatever it can takes its own places only, and a bounded memory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_thousand_halves_of_one_peer_are_bounded_refused_and_written_down() -> Result<()>
{
    allow_files()?;
    let (world, tasks) = (World::new()?, Scope::new("test"));
    let limits = RelayLimits {
        streams: 4_096,
        // What the provider bounds is asked here, not what the relay does before.
        opens: OpenLimit {
            burst: u32::MAX,
            per_second: u32::MAX,
        },
        ..RelayLimits::default()
    };
    let relay = world.relay_with(limits).await?;
    let (provider, caller) = world.pair(relay.listen).await?;
    let listen = echo_between(&provider, &caller, &tasks).await?;
    let mallory = world.connect_as("mallory", relay.listen).await?;
    let _control = mallory.greet(SessionKind::CallerOnly, [1; 16]).await?;
    leave_streams(&world, &mallory, &tasks).await?;
    let parked = || provider.parked() == PARKED && provider.load().0 == PARKED;
    until("the bound holds", SOON, parked).await?;
    ensure!(provider.stream_memory() <= MEMORY_LIMIT, "beyond the limit");
    ensure!(exchange(listen, b"honest").await? == b"honest");

    let mallory = world.connect_as("mallory", relay.listen).await?;
    let _control = mallory.greet(SessionKind::CallerOnly, [2; 16]).await?;
    let before = resident()?;
    for _ in 0..LATER / AT_A_TIME {
        let asked = (0..AT_A_TIME).map(|_| ask_in_vain(&mallory));
        futures_util::future::try_join_all(asked).await?;
    }
    let grown = resident()?.saturating_sub(before);
    ensure!(grown < 64 << 20, "{grown} bytes more");
    ensure!(provider.parked() == PARKED, "{} parked", provider.parked());
    let all = || written(provider.audit(), "mallory", Reason::PeerLost) == LATER as u64;
    until("every attach is written down", SOON, all).await?;
    ensure!(exchange(listen, b"honest").await? == b"honest");
    Ok(())
}
