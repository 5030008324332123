//! Machines that were off, or asleep, for longer than their certificates live.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jiff::SignedDuration;
use sealock_agent::{AgentConfig, StartError};
use sealock_control::controller::Starter;
use sealock_core::address::HostPort;
use sealock_core::api::agent::{Revoke, RevokeRequest};
use sealock_core::reason::Reason;
use sealock_net::identity::IdentityDir;
use sealock_net::stream::MEMORY_LIMIT;
use sealock_net::task::Scope;
use sealock_proto::wire::SessionKind;

use crate::deployment::{
    DAY, Deployment, address, any_port, eventually, expose_echo, free_udp_port,
};

/// Renewed every two seconds while somebody is there to do it.
const LIFE: SignedDuration = SignedDuration::from_secs(4);

async fn short_lived() -> Result<Deployment> {
    Deployment::start_with(Starter::Open, |config| config.certificate_ttl = LIFE).await
}

/// Waits until what lies on disk has ended.
async fn off_for_long(deployment: &Deployment, name: &str) -> Result<()> {
    let dir = IdentityDir::open(deployment.state.path().join(name))?;
    let ended = dir.load_svid()?.context("an identity")?.leaf().not_after;
    let left = ended.duration_since(jiff::Timestamp::now());
    let left = Duration::try_from(left).unwrap_or_default();
    tokio::time::sleep(left + Duration::from_millis(100)).await;
    Ok(())
}

fn config(deployment: &Deployment, name: &str, relay: HostPort) -> AgentConfig {
    AgentConfig {
        dir: deployment.state.path().join(name),
        relays: vec![relay],
        region: None,
        kind: SessionKind::Full,
        ways: Default::default(),
        max_policy_age: DAY,
        stream_memory: MEMORY_LIMIT,
        bulk: Default::default(),
        socket: None,
        admin: None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_that_were_off_for_longer_than_their_certificates_work_again_without_a_token()
-> Result<()> {
    let tasks = Scope::new("test");
    let deployment = short_lived().await?;
    for (name, kind) in [
        ("provider", SessionKind::Full),
        ("caller", SessionKind::CallerOnly),
    ] {
        deployment.agent(name, kind).await?.stop().await;
    }
    off_for_long(&deployment, "provider").await?;
    off_for_long(&deployment, "caller").await?;
    // The relay and the controller have renewed theirs meanwhile.
    let provider = deployment.agent("provider", SessionKind::Full).await?;
    let caller = deployment.agent("caller", SessionKind::CallerOnly).await?;
    expose_echo(&provider, &tasks).await?;
    deployment.registered("echo").await?;
    let listen = address(&caller.connect("echo".parse()?, &any_port()).await?)?;
    eventually(listen, b"back again").await?;
    deployment.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_programs_of_one_machine_come_back_at_once_with_one_identity() -> Result<()> {
    let deployment = short_lived().await?;
    let agent = deployment.agent("laptop", SessionKind::Full).await?;
    agent.stop().await;
    off_for_long(&deployment, "laptop").await?;
    let start = |kind| deployment.agent("laptop", kind);
    let both = tokio::try_join!(start(SessionKind::Full), start(SessionKind::CallerOnly));
    both?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_agent_is_told_to_join_again() -> Result<()> {
    let deployment = short_lived().await?;
    deployment
        .agent("gone", SessionKind::Full)
        .await?
        .stop()
        .await;
    off_for_long(&deployment, "gone").await?;
    let revoke = RevokeRequest {
        tenant: "default".parse()?,
        name: "gone".parse()?,
    };
    deployment.admin::<Revoke>(&revoke).await?;
    let relay = HostPort::from(deployment.relay.listen);
    let started = sealock_agent::start(config(&deployment, "gone", relay)).await;
    let error = started.err().context("it started")?;
    ensure!(
        matches!(&error, StartError::Expired { why, .. } if why.reason() == Reason::IdentityRevoked),
        "{error:?}"
    );
    ensure!(error.to_string().contains("sealock join SLK1-"), "{error}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_relay_an_agent_that_was_off_says_what_it_waits_for() -> Result<()> {
    let deployment = short_lived().await?;
    deployment
        .agent("alone", SessionKind::Full)
        .await?
        .stop()
        .await;
    off_for_long(&deployment, "alone").await?;
    let nowhere = HostPort::from(free_udp_port()?);
    let began = std::time::Instant::now();
    let started = sealock_agent::start(config(&deployment, "alone", nowhere)).await;
    let error = started.err().context("it started")?;
    ensure!(
        matches!(error, StartError::ExpiredAndAlone { .. }),
        "{error:?}"
    );
    ensure!(
        began.elapsed() < Duration::from_secs(8),
        "{:?}",
        began.elapsed()
    );
    // Nothing is lost by the attempt.
    deployment.agent("alone", SessionKind::Full).await?;
    Ok(())
}

// F11: a controller that was away for longer than the certificates live takes everybody back when it returns, relay and
// agents, without a token and without a restart of theirs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_that_was_away_for_long_takes_relay_and_agents_back() -> Result<()> {
    let tasks = Scope::new("test");
    let listen = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let deployment = Deployment::start_with(Starter::Open, |config| {
        config.certificate_ttl = LIFE;
        config.listen = listen;
    })
    .await?;
    let provider = deployment.agent("provider", SessionKind::Full).await?;
    let caller = deployment.agent("caller", SessionKind::Full).await?;
    expose_echo(&provider, &tasks).await?;
    deployment.registered("echo").await?;
    let port = address(&caller.connect("echo".parse()?, &any_port()).await?)?;
    eventually(port, b"before").await?;
    let Deployment {
        state,
        controller,
        relay: _relay,
        scope,
    } = deployment;
    drop(controller);
    scope.shutdown(Duration::from_secs(2)).await;
    tokio::time::sleep(Duration::try_from(LIFE)? + Duration::from_secs(1)).await;
    for name in ["provider", "caller", "relay"] {
        let dir = IdentityDir::open(state.path().join(name))?;
        let ended = dir.load_svid()?.context("an identity")?.leaf().not_after;
        ensure!(ended < jiff::Timestamp::now(), "{name} was renewed");
    }
    let scope = Scope::new("controller again");
    let config = crate::deployment::controller_config(state.path(), Starter::Open, |config| {
        config.certificate_ttl = LIFE;
        config.listen = listen;
    })?;
    let _controller = sealock_control::controller::start(config, &scope).await?;
    let back = async {
        while !matches!(
            crate::deployment::exchange(port, b"after").await.as_deref(),
            Ok(b"after")
        ) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    // Pauses between attempts grow up to 15 s at the link and 60 s at a session that was refused.
    tokio::time::timeout(Duration::from_secs(90), back)
        .await
        .context("they never came back")
}
