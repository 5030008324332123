//! Flows through the whole system: what arrives, how it ends, and what policy lets through.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use sealock_agent::{AgentConfig, AgentHandle};
use sealock_control::controller::Starter;
use sealock_core::address::HostPort;
use sealock_core::api::{agent, audit, policy};
use sealock_core::policy::Action;
use sealock_core::policy::condition::{Condition, Conditions, Expires};
use sealock_core::reason::Reason;
use sealock_net::stream::MEMORY_LIMIT;
use sealock_net::task::Scope;
use sealock_proto::wire::SessionKind;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::deployment::{
    DAY, Deployment, READY, address, any_port, echo_between, echo_server, eventually, exchange,
    expose_echo, serve,
};

/// A deployment with one flow over which bytes go round without end.
struct LiveFlow {
    deployment: Deployment,
    agents: [AgentHandle; 2],
    stream: TcpStream,
    _tasks: Scope,
}

/// H3, H6: policy's hand reaches live flows within this.
const CUT_DEADLINE: Duration = Duration::from_secs(5);

impl LiveFlow {
    async fn start() -> Result<Self> {
        let tasks = Scope::new("test");
        let deployment = Deployment::start(Starter::Open).await?;
        let provider = deployment.agent("provider", SessionKind::Full).await?;
        let caller = deployment.agent("caller", SessionKind::CallerOnly).await?;
        let listen = echo_between(&provider, &caller, &tasks).await?;
        let mut stream = TcpStream::connect(listen).await?;
        stream.write_all(b"first").await?;
        let mut first = [0; 5];
        stream.read_exact(&mut first).await?;
        Ok(Self {
            deployment,
            agents: [provider, caller],
            stream,
            _tasks: tasks,
        })
    }

    /// The client keeps talking and must see a reset in time, never a clean end; somebody wrote down why.
    async fn expect_cut(mut self, reason: Reason) -> Result<()> {
        let talk = async {
            let mut answer = [0; 4];
            loop {
                if let Err(error) = self.stream.write_all(b"more").await {
                    return error;
                }
                match self.stream.read(&mut answer).await {
                    Ok(0) => return std::io::ErrorKind::UnexpectedEof.into(),
                    Ok(_) => {}
                    Err(error) => return error,
                }
            }
        };
        let ended = tokio::time::timeout(CUT_DEADLINE, talk)
            .await
            .context("the flow was not cut")?;
        assert_eq!(ended.kind(), std::io::ErrorKind::ConnectionReset, "{ended}");
        for agent in self.agents {
            agent.stop().await;
        }
        let request = audit::ListRequest {
            action: Some("flow.open".to_owned()),
            ..audit::ListRequest::default()
        };
        let written = async {
            loop {
                let list = self.deployment.admin::<audit::List>(&request).await?;
                if list.rows.iter().any(|row| row.reason == reason) {
                    return anyhow::Ok(());
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let written = tokio::time::timeout(READY, written).await;
        written.with_context(|| format!("nobody wrote {reason} down"))??;
        self.deployment.stop().await;
        Ok(())
    }
}

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

/// Reads until the end, and says whether it was clean.
async fn read_to_end(mut stream: TcpStream) -> (Vec<u8>, std::io::Result<()>) {
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match stream.read(&mut buffer).await {
            Ok(0) => return (bytes, Ok(())),
            Ok(length) => bytes.extend_from_slice(&buffer[..length]),
            Err(error) => return (bytes, Err(error)),
        }
    }
}

/// A reset may come before `connect` has returned.
async fn connect_and_read(address: SocketAddr) -> (Vec<u8>, std::io::Result<()>) {
    match TcpStream::connect(address).await {
        Ok(stream) => read_to_end(stream).await,
        Err(error) => (Vec::new(), Err(error)),
    }
}

fn is_reset(outcome: &std::io::Result<()>) -> bool {
    matches!(outcome, Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset)
}

// Done when: without a rule the open fails in < 300 ms with the reason, and the client sees no byte of ours.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_rule_a_client_sees_a_reset_and_no_byte() -> Result<()> {
    let tasks = Scope::new("test");
    let deployment = Deployment::start(Starter::Closed).await?;
    let provider = deployment.agent("provider", SessionKind::Full).await?;
    let caller = deployment.agent("caller", SessionKind::CallerOnly).await?;
    expose_echo(&provider, &tasks).await?;
    deployment.registered("echo").await?;
    let listen = caller.connect("echo".parse()?, &any_port()).await?;
    let (bytes, outcome) = connect_and_read(address(&listen)?).await;
    assert!(
        bytes.is_empty() && is_reset(&outcome),
        "{bytes:?} {outcome:?}"
    );
    assert_eq!(caller.stdio("echo".parse()?).await, Reason::PolicyDenied);
    deployment.stop().await;
    Ok(())
}

// H6: a rule that is taken back cuts the live flows that it allowed, abnormally, on both sides.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn taking_a_rule_back_resets_the_live_flows_that_it_allowed() -> Result<()> {
    let live = LiveFlow::start().await?;
    let remove = policy::RemoveRequest {
        tenant: "default".parse()?,
        id: "starter".parse()?,
    };
    live.deployment.admin::<policy::Remove>(&remove).await?;
    Box::pin(live.expect_cut(Reason::PolicyRevoked)).await
}

// H3: a revoked agent's live flows are cut, and it gets no new session.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revoking_an_agent_cuts_its_live_flows() -> Result<()> {
    let live = LiveFlow::start().await?;
    let revoke = agent::RevokeRequest {
        tenant: "default".parse()?,
        name: "caller".parse()?,
    };
    live.deployment.admin::<agent::Revoke>(&revoke).await?;
    Box::pin(live.expect_cut(Reason::IdentityRevoked)).await
}

// A9, F09: each direction ends on its own; a request behind a half-close is answered whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_close_is_carried_and_the_other_direction_goes_on() -> Result<()> {
    let tasks = Scope::new("test");
    let deployment = Deployment::start(Starter::Open).await?;
    let provider = deployment.agent("provider", SessionKind::Full).await?;
    let caller = deployment.agent("caller", SessionKind::CallerOnly).await?;
    // Speaks only after it has heard the end.
    let target = serve(&tasks, |mut stream: TcpStream| async move {
        let mut heard = Vec::new();
        if stream.read_to_end(&mut heard).await.is_ok() {
            heard.reverse();
            let _told = stream.write_all(&heard).await;
            let _told = stream.shutdown().await;
        }
    })
    .await?;
    assert!(provider.expose("late".parse()?, target, Default::default()));
    let listen = address(&caller.connect("late".parse()?, &any_port()).await?)?;
    assert_eq!(eventually(listen, b"abc").await?, b"cba");
    deployment.stop().await;
    Ok(())
}

// F07, F09, lesson 03: a server that resets is a reset at the client, never a clean end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_of_the_server_reaches_the_client_as_a_reset() -> Result<()> {
    let tasks = Scope::new("test");
    let deployment = Deployment::start(Starter::Open).await?;
    let provider = deployment.agent("provider", SessionKind::Full).await?;
    let caller = deployment.agent("caller", SessionKind::CallerOnly).await?;
    let echo = echo_server(&tasks).await?;
    assert!(provider.expose("echo".parse()?, echo, Default::default()));
    let target = serve(&tasks, |mut stream: TcpStream| async move {
        let mut request = [0; 4];
        if stream.read_exact(&mut request).await.is_ok() && stream.write_all(b"half").await.is_ok()
        {
            sealock_net::socket::reset_on_close(&stream);
        }
    })
    .await?;
    assert!(provider.expose("rude".parse()?, target, Default::default()));
    let echo = address(&caller.connect("echo".parse()?, &any_port()).await?)?;
    eventually(echo, b"both services are known now").await?;
    let listen = address(&caller.connect("rude".parse()?, &any_port()).await?)?;
    let mut stream = TcpStream::connect(listen).await?;
    stream.write_all(b"ping").await?;
    let (bytes, outcome) = read_to_end(stream).await;
    assert!(is_reset(&outcome), "{bytes:?} {outcome:?}");
    deployment.stop().await;
    Ok(())
}

// F25: certificates change under a live flow without a dropped byte, and new flows use the new ones.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewal_on_both_sides_drops_no_flow() -> Result<()> {
    let mut live = LiveFlow::start().await?;
    for round in 0..3u8 {
        for agent in &live.agents {
            agent.renew().await?;
        }
        live.stream.write_all(&[round]).await?;
        let mut answer = [0; 1];
        live.stream.read_exact(&mut answer).await?;
        assert_eq!(answer, [round]);
    }
    let listen = live.agents[1].connect("echo".parse()?, &any_port()).await?;
    assert_eq!(exchange(address(&listen)?, b"anew").await?, b"anew");
    live.deployment.stop().await;
    Ok(())
}

// H6: only what a change forbids is cut. Both pipes of an agent judge their own flows alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_policy_leaves_the_flows_alone_that_it_still_allows() -> Result<()> {
    let mut live = LiveFlow::start().await?;
    let rule = policy::AddRequest {
        tenant: "default".parse()?,
        id: None,
        callers: vec!["somebody".parse()?],
        services: vec!["else".parse()?],
        destinations: Vec::new(),
        actions: std::iter::once(Action::Open).collect(),
        conditions: Conditions::default(),
    };
    live.deployment.admin::<policy::Deny>(&rule).await?;
    // Longer than the change needs to reach everybody, as the tests of cuts show.
    for round in 0..20u8 {
        live.stream.write_all(&[round]).await?;
        assert_eq!(live.stream.read_u8().await?, round);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    live.deployment.stop().await;
    Ok(())
}

// H5: a rule that ends by itself cuts the live flows that it alone allowed; nobody sends any news of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rule_that_ends_by_itself_cuts_the_flows_that_it_alone_allowed() -> Result<()> {
    let live = LiveFlow::start().await?;
    let ends = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(1);
    let brief = policy::AddRequest {
        tenant: "default".parse()?,
        id: Some("brief".parse()?),
        callers: vec!["caller".parse()?],
        services: vec!["echo".parse()?],
        destinations: Vec::new(),
        actions: std::iter::once(Action::Open).collect(),
        conditions: std::iter::once(Condition::Expires(Expires::at(ends))).collect(),
    };
    live.deployment.admin::<policy::Allow>(&brief).await?;
    let remove = policy::RemoveRequest {
        tenant: "default".parse()?,
        id: "starter".parse()?,
    };
    live.deployment.admin::<policy::Remove>(&remove).await?;
    Box::pin(live.expect_cut(Reason::PolicyRevoked)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_whose_relay_is_gone_says_so_in_seconds() -> Result<()> {
    let deployment = Deployment::start(Starter::Open).await?;
    let before = deployment.agent("caller", SessionKind::CallerOnly).await?;
    before.stop().await;
    let Deployment {
        state,
        relay,
        scope,
        ..
    } = deployment;
    let gone = HostPort::from(relay.listen);
    relay.stop().await;
    let after = sealock_agent::start(AgentConfig {
        dir: state.path().join("caller"),
        relays: vec![gone],
        region: None,
        kind: SessionKind::CallerOnly,
        ways: Default::default(),
        max_policy_age: DAY,
        stream_memory: MEMORY_LIMIT,
        bulk: Default::default(),
        socket: None,
        admin: None,
    });
    let after = after.await?;
    let waited = after.ready(Duration::from_secs(7)).await;
    assert_eq!(waited.err(), Some(Reason::RelayUnreachable));
    after.stop().await;
    scope.shutdown(Duration::from_secs(1)).await;
    Ok(())
}
