//! The processes of the demonstration: one public side, two agents, each with a state directory of its own.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use sealock_core::address::{HostPort, Target};
use sealock_core::api::{Method, local, token};
use sealock_core::choice::Weight;
use sealock_core::name::ServiceName;
use sealock_core::reason::Reason;
use sealock_net::unix::UnixClient;
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};

/// How long a process may take to be ready.
const READY: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(20);

/// Everything that runs; dropped, it is killed and its state removed.
#[derive(Debug)]
pub(super) struct Stage {
    /// Where the relay listens.
    pub(super) relay: HostPort,
    pub(super) public: Child,
    pub(super) provider: Agent,
    pub(super) caller: Agent,
    state: State,
}

/// A private directory that is removed at the end.
#[derive(Debug)]
struct State(PathBuf);

impl State {
    fn make() -> anyhow::Result<Self> {
        let path =
            std::env::temp_dir().join(format!("sealock-demo-{:016x}", rand::random::<u64>()));
        sealock_net::files::ensure_private_dir(&path)?;
        Ok(Self(path))
    }

    fn of(&self, who: &str) -> PathBuf {
        self.0.join(who)
    }
}

impl Drop for State {
    fn drop(&mut self) {
        // Nothing of it is of use to anybody; what cannot be removed, the system's cleaner takes.
        let _left = std::fs::remove_dir_all(&self.0);
    }
}

/// An agent's process and its control socket.
#[derive(Debug)]
pub(super) struct Agent {
    pub(super) process: Child,
    state: PathBuf,
}

impl Stage {
    /// Starts everything and waits until it works.
    pub(super) async fn set() -> anyhow::Result<Self> {
        let state = State::make()?;
        let relay = HostPort::from(free_port()?);
        let controller = free_port()?;
        let public_state = state.of("public");
        let listen = relay.to_string();
        let controller = controller.to_string();
        let up = [
            "up",
            "--listen",
            &listen,
            "--public",
            &listen,
            "--controller-listen",
            &controller,
        ];
        let public = start(&public_state, &up)?;
        let admin = UnixClient::new(public_state.join("controller/admin.sock"));
        until("the public side did not start", async || {
            // A token can be made as soon as the relay has told where it is reached.
            admin
                .call::<token::Create>(&token::CreateRequest::default())
                .await
                .is_ok()
        })
        .await?;
        let provider = Agent::join(&state.of("provider"), &admin, "provider").await?;
        let caller = Agent::join(&state.of("caller"), &admin, "caller").await?;
        Ok(Self {
            relay,
            public,
            provider,
            caller,
            state,
        })
    }

    /// Calls the controller as an administrator does.
    pub(super) async fn admin<M: Method>(
        &self,
        request: &M::Request,
    ) -> anyhow::Result<M::Response> {
        let client = UnixClient::new(self.state.of("public").join("controller/admin.sock"));
        Ok(client.call::<M>(request).await?)
    }

    /// Asks every process to stop and waits for it.
    pub(super) async fn end(mut self) {
        for process in [
            &mut self.caller.process,
            &mut self.provider.process,
            &mut self.public,
        ] {
            stop(process).await;
        }
    }
}

impl Agent {
    async fn join(state: &Path, admin: &UnixClient, name: &str) -> anyhow::Result<Self> {
        let request = token::CreateRequest {
            name: Some(name.to_owned()),
            ..token::CreateRequest::default()
        };
        let token = admin.call::<token::Create>(&request).await?;
        // By standard input: a secret in the arguments would be seen by everybody on the machine.
        let mut join = command(state, &["join", "-"])?;
        let mut process = join
            .stdin(Stdio::piped())
            .spawn()
            .context("starting `sealock join`")?;
        let mut input = process.stdin.take().context("a pipe was asked for")?;
        input.write_all(token.text.as_bytes()).await?;
        drop(input);
        let ended = process.wait_with_output().await?;
        if !ended.status.success() {
            bail!(
                "`sealock join` said: {}",
                String::from_utf8_lossy(&ended.stderr).trim()
            );
        }
        let process = start(state, &["agent"])?;
        let agent = Self {
            process,
            state: state.to_owned(),
        };
        until("an agent did not come up", async || agent.is_ready().await).await?;
        Ok(agent)
    }

    fn socket(&self) -> UnixClient {
        UnixClient::new(self.state.join("agent/agent.sock"))
    }

    async fn is_ready(&self) -> bool {
        let status = self
            .socket()
            .call::<local::Status>(&local::StatusRequest {})
            .await;
        status.is_ok_and(|status| {
            status.policy.is_some() && status.sessions.iter().any(|session| session.up)
        })
    }

    /// Offers a program as a service, until the end of the demonstration.
    pub(super) async fn expose(&self, service: &str, target: SocketAddr) -> anyhow::Result<()> {
        let request = local::ExposeRequest {
            service: service.parse()?,
            target: Target::Tcp(target.into()),
            check: None,
            labels: Default::default(),
            weight: Weight::default(),
            standby: false,
            sticky: false,
            detached: true,
        };
        let mut events = self.socket().lines::<local::Expose>(&request).await?;
        while let Some(event) = events.next().await? {
            match event {
                local::Event::Registered { .. } => return Ok(()),
                local::Event::Ended { reason } => return Err(anyhow!(reason)),
                local::Event::Waiting { .. }
                | local::Event::Alive
                | local::Event::Listening { .. } => {}
            }
        }
        bail!("the agent ended before the service was known")
    }

    /// Listens for a service, until the end of the demonstration; says where.
    pub(super) async fn connect(&self, service: &ServiceName) -> anyhow::Result<SocketAddr> {
        let listen = Target::Tcp(free_port()?.into());
        let request = local::ConnectRequest {
            service: service.clone(),
            listen,
            detached: true,
        };
        let mut events = self.socket().lines::<local::Connect>(&request).await?;
        while let Some(event) = events.next().await? {
            match event {
                local::Event::Listening {
                    listen: Target::Tcp(address),
                    ..
                } => {
                    return address
                        .as_socket_addr()
                        .context("an IP address was asked for");
                }
                local::Event::Ended { reason } => return Err(anyhow!(reason)),
                local::Event::Waiting { .. }
                | local::Event::Alive
                | local::Event::Registered { .. }
                | local::Event::Listening { .. } => {}
            }
        }
        bail!("the agent ended before it listened")
    }

    /// Opens a service as `ssh` would, by `sealock connect --stdio`; says how that ended and what was said.
    pub(super) async fn open_by_stdio(
        &self,
        service: &str,
    ) -> anyhow::Result<(i32, String, Vec<u8>)> {
        let mut command = command(&self.state, &["connect", service, "--stdio"])?;
        let ended = command.stdin(Stdio::null()).output().await?;
        let said = String::from_utf8_lossy(&ended.stderr).trim().to_owned();
        Ok((ended.status.code().unwrap_or(-1), said, ended.stdout))
    }
}

/// A free port of loopback. Another program may take it first; then the start fails and says so.
fn free_port() -> anyhow::Result<SocketAddr> {
    loop {
        // A relay listens on UDP and TCP.
        let socket = UdpSocket::bind("127.0.0.1:0").context("looking for a free port")?;
        let address = socket.local_addr()?;
        if TcpListener::bind(address).is_ok() {
            return Ok(address);
        }
    }
}

fn command(state: &Path, arguments: &[&str]) -> anyhow::Result<Command> {
    let program = std::env::current_exe().context("finding this program")?;
    let mut command = Command::new(program);
    command
        .arg("--state")
        .arg(state)
        .args(arguments)
        .env("SEALOCK_ADMIN__LISTEN", "off") // several roles on one machine would want the same port
        .env_remove("SEALOCK_CONFIG")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    Ok(command)
}

/// Starts a process that goes on; its log lands in its state directory.
fn start(state: &Path, arguments: &[&str]) -> anyhow::Result<Child> {
    sealock_net::files::ensure_private_dir(state)?;
    let log = std::fs::File::create(state.join("demo.log"))?;
    let mut command = command(state, arguments)?;
    command.stdout(log.try_clone()?).stderr(log);
    command
        .spawn()
        .with_context(|| format!("starting `sealock {}`", arguments.join(" ")))
}

async fn stop(process: &mut Child) {
    if let Some(pid) = process.id().and_then(rustix_pid) {
        // A process that is gone already needs no signal.
        let _gone = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
    if tokio::time::timeout(READY, process.wait()).await.is_err() {
        let _gone = process.kill().await;
    }
}

fn rustix_pid(pid: u32) -> Option<rustix::process::Pid> {
    rustix::process::Pid::from_raw(i32::try_from(pid).ok()?)
}

/// Looks until it is so.
pub(super) async fn until(
    otherwise: &'static str,
    mut look: impl AsyncFnMut() -> bool,
) -> anyhow::Result<()> {
    let looking = async {
        while !look().await {
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::time::timeout(READY, looking)
        .await
        .context(otherwise)
}

/// What a failed open says of itself, for the scenes.
pub(super) fn names(said: &str, reason: Reason) -> bool {
    said.contains(reason.code())
}
