//! What is written down: each decision once, with what came of it, wherever it was made.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sealock_core::address::Target;
use sealock_core::reason::Reason;
use sealock_flow::audit::{Audit, Decision};
use sealock_net::task::Scope;
use sealock_proto::wire::{Message, SessionKind};
use tokio::net::TcpListener;

use crate::deployment::{READY, address, any_port, exchange, expose_echo};
use crate::world::{Raw, World, agent_leaf, until};

/// The decisions about opens of this caller, once there are as many; the controller is away for ever.
pub(crate) async fn rows(audit: &Audit, caller: &str, count: usize) -> Result<Vec<Decision>> {
    let of_caller = || {
        let mut all = audit.untold();
        all.retain(|row| row.caller.name.as_str() == caller);
        all
    };
    until("the decisions are written down", READY, || {
        of_caller().len() >= count
    })
    .await
    .with_context(|| format!("{:?}", audit.untold()))?;
    let rows = of_caller();
    ensure!(rows.len() == count, "{rows:?}");
    Ok(rows)
}

fn outcomes(rows: &[Decision]) -> Vec<(Reason, bool)> {
    let outcome = |row: &Decision| (row.reason, row.rule.is_some());
    rows.iter().map(outcome).collect()
}

// Issue 2, item 3: the row of an open says what came of it, at the caller as at the provider.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_row_of_an_open_tells_how_the_open_ended() -> Result<()> {
    let tasks = Scope::new("test");
    let mut world = World::new()?;
    world.provide("closed", &["provider"])?;
    world.provide("nobody-offers", &["provider"])?;
    let relay = world.relay().await?;
    let (provider, caller) = world.pair(relay.listen).await?;
    let closed = TcpListener::bind("127.0.0.1:0").await?.local_addr()?;
    let closed = Target::Tcp(closed.into());
    ensure!(provider.expose("closed".parse()?, closed, Default::default()));
    expose_echo(&provider, &tasks).await?;
    let all = || {
        relay
            .directory
            .list()
            .iter()
            .any(|one| one.offers.len() == 2)
    };
    until("the provider offers", READY, all).await?;

    let reason = caller.stdio("nobody-offers".parse()?).await;
    assert_eq!(reason, Reason::NoProvider);
    let mine = rows(caller.audit(), "caller", 1).await?;
    assert_eq!(outcomes(&mine), [(Reason::NoProvider, true)]);
    // The caller asks again, in case another session knows a provider.
    ensure!(
        relay
            .audit
            .untold()
            .iter()
            .all(|row| row.reason == Reason::NoProvider)
    );
    let before = relay.audit.untold().len();

    assert_eq!(caller.stdio("closed".parse()?).await, Reason::TargetRefused);
    let mine = rows(caller.audit(), "caller", 2).await?;
    assert_eq!(outcomes(&mine)[1], (Reason::TargetRefused, true));
    let there = rows(provider.audit(), "caller", 1).await?;
    assert_eq!(outcomes(&there), [(Reason::TargetRefused, true)]);
    // The relay passed it on, and that is all that it can know.
    let between = rows(&relay.audit, "caller", before + 1).await?;
    assert_eq!(outcomes(&between)[before], (Reason::Done, true));

    let listen = address(&caller.connect("echo".parse()?, &any_port()).await?)?;
    ensure!(exchange(listen, b"hello").await? == b"hello");
    let mine = rows(caller.audit(), "caller", 3).await?;
    assert_eq!(outcomes(&mine)[2], (Reason::Done, true));
    let there = rows(provider.audit(), "caller", 2).await?;
    assert_eq!(outcomes(&there)[1], (Reason::Done, true));
    Ok(())
}

// What a relay refuses before it asks policy is written down where all refusals are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_writes_down_whom_it_refuses_for_an_ended_certificate_or_because_it_drains()
-> Result<()> {
    let world = World::new()?;
    let relay = world.relay().await?;
    let audit = relay.audit.clone();
    let mut leaf = agent_leaf(&["spiffe://sealock/default/agent/mallory"]);
    leaf.until = 2;
    let config = world.with_certificate(&world.ca, &leaf)?;
    let mallory = Raw::connect(relay.listen, config).await?;
    let _control = mallory.greet(SessionKind::CallerOnly, [1; 16]).await?;
    let caller = world.connect_as("caller", relay.listen).await?;
    let _control_of_caller = caller.greet(SessionKind::CallerOnly, [2; 16]).await?;

    let refused = async {
        loop {
            let (answer, _leg) = mallory.open("echo").await?;
            if answer == Message::Refused(Reason::NotAdmitted) {
                return anyhow::Ok(());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(READY, refused).await??;
    let ended = || {
        let rows = audit.untold();
        let mut ended = rows.iter().filter(|row| row.reason == Reason::NotAdmitted);
        ended.any(|row| row.caller.name.as_str() == "mallory")
    };
    until("the end of the certificate is written down", READY, ended).await?;

    let tasks = Scope::new("drain");
    tasks.spawn("drain", relay.drain(READY));
    let refused = async {
        while mallory.connection.close_reason().is_none() {
            let (answer, _leg) = caller.open("echo").await?;
            if answer == Message::Refused(Reason::Draining) {
                break;
            }
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(READY, refused).await??;
    let drained = || {
        let rows = audit.untold();
        let mut drained = rows.iter().filter(|row| row.reason == Reason::Draining);
        drained.any(|row| row.caller.name.as_str() == "caller")
    };
    until("the drain is written down", READY, drained).await
}
