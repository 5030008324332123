//! Flows through the whole system: what arrives, how it ends, and what policy lets through.

use anyhow::Result;
use sealock_control::controller::Starter;
use sealock_net::task::Scope;
use sealock_proto::wire::SessionKind;

use crate::deployment::{Deployment, address, any_port, eventually, expose_echo};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_go_both_ways_between_two_agents_through_the_relay() -> Result<()> {
    let tasks = Scope::new("test");
    let deployment = Deployment::start(Starter::Open).await?;
    let provider = deployment.agent("provider", SessionKind::Full).await?;
    let caller = deployment.agent("caller", SessionKind::CallerOnly).await?;
    expose_echo(&provider, &tasks).await?;
    let listen = caller.connect("echo".parse()?, &any_port()).await?;
    let bytes: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    let answer = eventually(address(&listen)?, &bytes).await?;
    assert!(answer == bytes, "the echo differs");
    caller.stop().await;
    provider.stop().await;
    deployment.stop().await;
    Ok(())
}
