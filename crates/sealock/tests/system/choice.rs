//! How a provider is chosen among several, through real agents and relays: weight, standby, region, stickiness.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use sealock_agent::{AgentHandle, NewOffer};
use sealock_core::api::service::{List, ListRequest, ServiceRow};
use sealock_core::check::{Check, Probe};
use sealock_core::choice::Terms;
use sealock_net::task::Scope;
use sealock_proto::wire::SessionKind;

use crate::deployment::{Deployment, READY};
use crate::providers::{answers, cast, lettered, listen_for, offer, until};
use crate::relay_to_relay::neighbours;
use crate::several_relays::holds;
use crate::world::World;

/// Waits until the controller's list of the service is as wanted.
async fn until_listed(deployment: &Deployment, wanted: impl Fn(&ServiceRow) -> bool) -> Result<()> {
    let look = async {
        while !listed(deployment).await.is_ok_and(|row| wanted(&row)) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(READY, look)
        .await
        .context("the list never came as wanted")
}

async fn listed(deployment: &Deployment) -> Result<ServiceRow> {
    let tenant = "default".parse()?;
    let list = deployment.admin::<List>(&ListRequest { tenant }).await?;
    list.services.into_iter().next().context("no service")
}

/// A check that passes while the file is there.
fn while_there(file: &Path) -> Check {
    let words = [
        "test".to_owned(),
        "-e".to_owned(),
        file.display().to_string(),
    ];
    Check {
        interval: Duration::from_millis(100),
        rise: 1,
        fall: 1,
        ..Check::new(Probe::Command(words.into()))
    }
}

fn in_region(region: &str, standby: bool) -> Result<Terms> {
    Ok(Terms {
        standby,
        region: Some(region.parse()?),
        ..Terms::default()
    })
}

// D2: the flows of a service follow the weights that its providers registered, and the list tells them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_shares_of_two_providers_follow_their_weights() -> Result<()> {
    let tasks = Scope::new("test");
    let (deployment, [first, second], caller) = cast().await?;
    let heavy = NewOffer {
        weight: 4.try_into()?,
        ..offer(lettered(&tasks, b'a').await?)?
    };
    assert!(first.offer(heavy));
    let listen = listen_for(&caller).await?;
    until(listen, |found| found == "aaaa").await?;
    assert!(second.offer(offer(lettered(&tasks, b'b').await?)?));
    until(listen, |found| found.contains('b')).await?;
    let found = answers(listen, 100).await?;
    let light = found.matches('b').count();
    // One in five, give or take five standard deviations.
    assert!((1..=40).contains(&light), "{found}");
    let providers = listed(&deployment).await?.providers;
    let weights: Vec<_> = providers
        .iter()
        .map(|row| row.terms.weight.number())
        .collect();
    assert_eq!(weights, [4, 1]);
    deployment.stop().await;
    Ok(())
}

// D2: a standby serves while no active provider is left, and no longer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_serves_only_while_no_active_provider_is_left() -> Result<()> {
    let tasks = Scope::new("test");
    let (deployment, [first, second], caller) = cast().await?;
    let file = deployment.state.path().join("well");
    std::fs::write(&file, b"")?;
    let active = NewOffer {
        check: Some(while_there(&file)),
        ..offer(lettered(&tasks, b'a').await?)?
    };
    assert!(first.offer(active));
    let listen = listen_for(&caller).await?;
    until(listen, |found| found == "aaaa").await?;
    let standby = NewOffer {
        standby: true,
        ..offer(lettered(&tasks, b'b').await?)?
    };
    assert!(second.offer(standby));
    holds(&deployment.relay, "second", 1).await?;
    let has_standby = |row: &ServiceRow| row.providers.iter().any(|one| one.terms.standby);
    until_listed(&deployment, has_standby).await?;
    assert_eq!(answers(listen, 20).await?, "a".repeat(20));
    std::fs::remove_file(&file)?;
    until(listen, |found| found == "bbbb").await?;
    assert_eq!(answers(listen, 20).await?, "b".repeat(20));
    std::fs::write(&file, b"")?;
    until(listen, |found| found == "aaaa").await?;
    assert_eq!(answers(listen, 20).await?, "a".repeat(20));
    deployment.stop().await;
    Ok(())
}

// D2: each caller of a sticky service stays with its provider, goes elsewhere while that one is ill, and comes back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_of_a_sticky_service_stays_with_its_provider_while_that_one_is_well() -> Result<()>
{
    let tasks = Scope::new("test");
    let (deployment, providers, first_caller) = cast().await?;
    let mut files = BTreeMap::new();
    for (provider, letter) in providers.iter().zip(["a", "b"]) {
        let file = deployment.state.path().join(letter);
        std::fs::write(&file, b"")?;
        let sticky = NewOffer {
            check: Some(while_there(&file)),
            sticky: true,
            ..offer(lettered(&tasks, letter.as_bytes()[0]).await?)?
        };
        assert!(provider.offer(sticky));
        deployment.registered("letter").await?;
        files.insert(letter.to_owned(), file);
    }
    for name in ["first", "second"] {
        holds(&deployment.relay, name, 1).await?;
    }
    until_listed(&deployment, |row| row.sticky && row.providers.len() == 2).await?;
    let second_caller = deployment
        .agent("caller-2", SessionKind::CallerOnly)
        .await?;
    for caller in [first_caller, second_caller] {
        let listen = listen_for(&caller).await?;
        until(listen, |found| found.len() == 4).await?;
        let found: BTreeSet<char> = answers(listen, 20).await?.chars().collect();
        let mine = found.iter().collect::<String>();
        assert_eq!(found.len(), 1, "{found:?}");
        let file = &files[&mine];
        let other = if mine == "a" { "b" } else { "a" };
        std::fs::remove_file(file)?;
        until(listen, |found| found == other.repeat(4)).await?;
        std::fs::write(file, b"")?;
        until(listen, |found| found == mine.repeat(4)).await?;
        assert_eq!(answers(listen, 20).await?, mine.repeat(20));
    }
    deployment.stop().await;
    Ok(())
}

/// Two lettered providers of `letter` at these relays, and a caller at the first relay who says where it is.
async fn lettered_at(
    world: &World,
    tasks: &Scope,
    [first, second]: [SocketAddr; 2],
    region: Option<&str>,
) -> Result<([AgentHandle; 2], AgentHandle, SocketAddr)> {
    let providers = [
        world.agent("provider", SessionKind::Full, first).await?,
        world.agent("second", SessionKind::Full, second).await?,
    ];
    for (provider, letter) in providers.iter().zip([b'a', b'b']) {
        assert!(provider.offer(offer(lettered(tasks, letter).await?)?));
    }
    let mut config = world.agent_config("caller", SessionKind::Full, first)?;
    config.region = region.map(str::parse).transpose()?;
    let caller = sealock_agent::start(config).await?;
    caller.ready(READY).await?;
    let listen = listen_for(&caller).await?;
    Ok((providers, caller, listen))
}

// D2: a caller gets a provider of its own region first, and another one when there is none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_of_the_callers_region_comes_first() -> Result<()> {
    let tasks = Scope::new("test");
    let mut world = World::new()?;
    let terms = [
        ("provider", in_region("here", false)?),
        ("second", in_region("there", false)?),
    ];
    world.provide_on("letter", &terms)?;
    let relay = world.relay().await?;
    let at = [relay.listen; 2];
    let ([_first, second], _caller, listen) =
        lettered_at(&world, &tasks, at, Some("there")).await?;
    for name in ["provider", "second"] {
        holds(&relay, name, 1).await?;
    }
    assert_eq!(answers(listen, 20).await?, "b".repeat(20));
    second.stop().await;
    until(listen, |found| found == "aaaa").await?;
    Ok(())
}

// D2, A7: an active provider behind another relay comes before a standby at our own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_at_the_callers_relay_waits_while_an_active_one_is_at_another() -> Result<()> {
    let tasks = Scope::new("test");
    let mut world = World::new()?;
    let terms = [
        ("provider", in_region("here", true)?),
        ("second", in_region("there", false)?),
    ];
    world.provide_on("letter", &terms)?;
    let [near, far] = neighbours(&world).await?;
    let at = [near.listen, far.listen];
    let ([_standby, active], _caller, listen) =
        lettered_at(&world, &tasks, at, Some("here")).await?;
    holds(&near, "provider", 1).await?;
    until(listen, |found| found == "bbbb").await?;
    assert_eq!(answers(listen, 20).await?, "b".repeat(20));
    active.stop().await;
    until(listen, |found| found == "aaaa").await?;
    Ok(())
}
