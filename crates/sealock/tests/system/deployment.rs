//! A deployment in one process, and small servers and clients around it.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use jiff::SignedDuration;
use sealock_agent::{AgentConfig, AgentHandle};
use sealock_control::controller::{self, ControllerHandle, Starter};
use sealock_core::address::{HostPort, Target};
use sealock_core::api::token::CreateRequest;
use sealock_core::api::{Method, service};
use sealock_core::identity::Role;
use sealock_core::token::JoinToken;
use sealock_net::identity::IdentityDir;
use sealock_net::join;
use sealock_net::stream::MEMORY_LIMIT;
use sealock_net::task::Scope;
use sealock_net::unix::UnixClient;
use sealock_proto::wire::SessionKind;
use sealock_relay::{RelayConfig, RelayHandle};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

pub(crate) const DAY: Duration = Duration::from_secs(24 * 3_600);
pub(crate) const READY: Duration = Duration::from_secs(10);

/// A deployment of one controller and one relay.
pub(crate) struct Deployment {
    pub(crate) state: TempDir,
    pub(crate) controller: ControllerHandle,
    pub(crate) relay: RelayHandle,
    pub(crate) scope: Scope,
}

impl Deployment {
    pub(crate) async fn start(starter: Starter) -> Result<Self> {
        Self::start_with(starter, |_| ()).await
    }

    /// The same, with a controller whose configuration was changed.
    pub(crate) async fn start_with(
        starter: Starter,
        change: impl FnOnce(&mut controller::Config),
    ) -> Result<Self> {
        let _already = rustls::crypto::aws_lc_rs::default_provider().install_default();
        // `RUST_LOG=debug cargo nextest run -p sealock --test system --no-capture` shows what goes on.
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let _already = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_test_writer()
            .try_init();
        let state = tempfile::tempdir()?;
        let scope = Scope::new("controller");
        let config = controller_config(state.path(), starter, change)?;
        let controller = controller::start(config, &scope).await?;
        let relay = start_relay(state.path(), &controller).await?;
        Ok(Self {
            state,
            controller,
            relay,
            scope,
        })
    }

    /// Joins an agent by a token of its own and starts it.
    pub(crate) async fn agent(&self, name: &str, kind: SessionKind) -> Result<AgentHandle> {
        let dir = self.state.path().join(name);
        if !dir.exists() {
            let token = token(&self.controller, Role::Agent, Some(name)).await?;
            join::join_agent(
                &token,
                join::Naming::default(),
                &IdentityDir::open(&dir)?,
                &Default::default(),
            )
            .await?;
        }
        let agent = sealock_agent::start(AgentConfig {
            dir,
            relays: vec![HostPort::from(self.relay.listen)],
            region: None,
            kind,
            ways: Default::default(),
            max_policy_age: DAY,
            stream_memory: MEMORY_LIMIT,
            bulk: Default::default(),
            socket: None,
            admin: None,
        })
        .await?;
        agent.ready(READY).await?;
        Ok(agent)
    }

    /// Calls a method of the administrators' interface over its socket.
    pub(crate) async fn admin<M: Method>(&self, request: &M::Request) -> Result<M::Response> {
        let client = UnixClient::new(self.state.path().join("controller/admin.sock"));
        Ok(client.call::<M>(request).await?)
    }

    /// Waits until the controller lists the service.
    pub(crate) async fn registered(&self, name: &str) -> Result<()> {
        let request = service::ListRequest {
            tenant: "default".parse()?,
        };
        let look = async {
            loop {
                let list = self.admin::<service::List>(&request).await?;
                if list.services.iter().any(|row| row.name.as_str() == name) {
                    return anyhow::Ok(());
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(READY, look)
            .await
            .context("the service was never registered")?
    }

    pub(crate) async fn stop(self) {
        self.relay.stop().await;
        self.scope.shutdown(Duration::from_secs(2)).await;
    }
}

/// A controller's configuration over this state, after `change`.
pub(crate) fn controller_config(
    state: &Path,
    starter: Starter,
    change: impl FnOnce(&mut controller::Config),
) -> Result<controller::Config> {
    let mut config = controller::Config {
        state_dir: state.join("controller"),
        socket: state.join("controller/admin.sock"),
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        advertise: Vec::new(),
        trust_domain: "sealock".parse()?,
        name: "main".parse()?,
        tenant: "default".parse()?,
        starter,
        audit_retention: SignedDuration::from_hours(24),
        token_ttl: SignedDuration::from_mins(15),
        certificate_ttl: SignedDuration::from_hours(1),
        recover_within: SignedDuration::from_hours(24),
        limits: Default::default(),
        admin: None,
    };
    change(&mut config);
    Ok(config)
}

pub(crate) async fn start_relay(
    state: &Path,
    controller: &ControllerHandle,
) -> Result<RelayHandle> {
    let dir = state.join("relay");
    let listen = free_udp_port()?;
    let token = token(controller, Role::Relay, Some("relay-1")).await?;
    let addresses = vec![HostPort::from(listen)];
    join::join_relay(
        &token,
        join::Naming::default(),
        addresses.clone(),
        &IdentityDir::open(&dir)?,
    )
    .await?;
    let relay = sealock_relay::start(RelayConfig {
        dir,
        listen,
        advertise: addresses,
        controller: HostPort::from(controller.listen()),
        max_policy_age: DAY,
        max_sessions: 100,
        max_streams_per_session: 1_000,
        open_limit: Default::default(),
        admin: None,
        region: None,
    });
    Ok(relay.await?)
}

/// A port that is free for a relay, which listens on UDP and TCP. At an address of this process alone: at 127.0.0.1 it
/// may be taken by anybody's connection before it is used.
pub(crate) fn free_udp_port() -> Result<SocketAddr> {
    let [_, second, third, fourth] = std::process::id().to_be_bytes();
    let own = std::net::Ipv4Addr::new(127, 128 | second, third, fourth);
    loop {
        let address = std::net::UdpSocket::bind((own, 0))?.local_addr()?;
        if std::net::TcpListener::bind(address).is_ok() {
            return Ok(address);
        }
    }
}

pub(crate) async fn token(
    controller: &ControllerHandle,
    role: Role,
    name: Option<&str>,
) -> Result<JoinToken> {
    let addresses = match role {
        Role::Relay => vec![HostPort::from(controller.listen())],
        Role::Agent | Role::User | Role::Controller => Vec::new(),
    };
    let request = CreateRequest {
        role,
        addresses,
        name: name.map(str::to_owned),
        ..CreateRequest::default()
    };
    let created = controller
        .create_token(request)
        .await
        .map_err(|error| anyhow!("{error}"))?;
    Ok(created.text.parse()?)
}

/// Serves every connection of a listener on loopback; returns its address.
pub(crate) async fn serve<F, Served>(tasks: &Scope, serve: F) -> Result<Target>
where
    F: Fn(TcpStream) -> Served + Send + Sync + 'static,
    Served: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let spawner = tasks.spawner();
    tasks.spawn("server", async move {
        while let Ok((stream, _)) = listener.accept().await {
            spawner.spawn("served", serve(stream));
        }
    });
    Ok(Target::Tcp(address.into()))
}

/// Answers every connection with what it sends, until its end, and then ends too.
pub(crate) async fn echo_server(tasks: &Scope) -> Result<Target> {
    let echo = |mut stream: TcpStream| async move {
        let (mut reader, mut writer) = stream.split();
        let _ended = tokio::io::copy(&mut reader, &mut writer).await;
        let _ended = writer.shutdown().await;
    };
    serve(tasks, echo).await
}

pub(crate) fn any_port() -> Target {
    Target::Tcp(SocketAddr::from(([127, 0, 0, 1], 0)).into())
}

pub(crate) fn address(target: &Target) -> Result<SocketAddr> {
    match target {
        Target::Tcp(address) => address.as_socket_addr().context("an IP address"),
        Target::Unix(_) => Err(anyhow!("not a TCP target")),
    }
}

/// Exposes an echo server at `provider` and waits until callers can open it.
pub(crate) async fn expose_echo(provider: &AgentHandle, tasks: &Scope) -> Result<()> {
    let target = echo_server(tasks).await?;
    assert!(provider.expose("echo".parse()?, target, Default::default()));
    Ok(())
}

/// Exposes an echo server at `provider` and gives the port of `caller` that leads to it, once it does.
pub(crate) async fn echo_between(
    provider: &AgentHandle,
    caller: &AgentHandle,
    tasks: &Scope,
) -> Result<SocketAddr> {
    expose_echo(provider, tasks).await?;
    let listen = address(&caller.connect("echo".parse()?, &any_port()).await?)?;
    eventually(listen, b"warm").await?;
    Ok(listen)
}

pub(crate) async fn exchange(address: SocketAddr, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address).await?;
    let (mut reader, mut writer) = stream.split();
    let mut answer = Vec::new();
    let send = async {
        writer.write_all(bytes).await?;
        writer.shutdown().await
    };
    let (sent, received) = tokio::join!(send, reader.read_to_end(&mut answer));
    sent?;
    received?;
    Ok(answer)
}

/// Repeats an exchange until it works: a registration takes a moment to reach everybody.
pub(crate) async fn eventually(address: SocketAddr, bytes: &[u8]) -> Result<Vec<u8>> {
    let attempts = async {
        loop {
            match exchange(address, bytes).await {
                Ok(answer) if answer.len() == bytes.len() => return answer,
                Ok(_) | Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    tokio::time::timeout(READY, attempts)
        .await
        .context("the service never answered")
}
