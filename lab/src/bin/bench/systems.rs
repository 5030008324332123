//! The systems that are measured, each started from nothing on loopback and killed at the end.

use std::fs::{self, File};
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use crate::load;
use crate::process::{self, Cost};

/// One way from a client to the origin.
#[derive(Debug)]
pub(crate) struct System {
    pub(crate) name: &'static str,
    /// Where clients connect to.
    pub(crate) entry: SocketAddr,
    parts: Vec<Part>,
}

/// One process of a system, with its descendants. Dropped, it is killed.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) name: &'static str,
    child: Child,
}

impl Part {
    pub(crate) fn cost(&self) -> Cost {
        process::cost(self.child.id())
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        for pid in process::family(self.child.id()).into_iter().skip(1) {
            // sshd's sessions outlive their parent; what has gone already needs no signal.
            let _gone = Command::new("kill").arg(pid.to_string()).output();
        }
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}

impl System {
    pub(crate) fn parts(&self) -> &[Part] {
        &self.parts
    }

    pub(crate) fn cpu_seconds(&self) -> f64 {
        self.parts.iter().map(|part| part.cost().cpu_seconds).sum()
    }
}

const READY: Duration = Duration::from_secs(30);

fn until(what: &str, mut look: impl FnMut() -> bool) -> anyhow::Result<()> {
    let begun = Instant::now();
    while !look() {
        ensure!(begun.elapsed() < READY, "{what} is not ready after 30 s");
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn free_port() -> anyhow::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    Ok(listener.local_addr()?.port())
}

fn local(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// Starts a program that goes on; what it says lands beside its files.
fn start(name: &'static str, dir: &Path, command: &mut Command) -> anyhow::Result<Part> {
    let log = File::create(dir.join(format!("{name}.log")))?;
    let child = command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("starting {name}"))?;
    Ok(Part { name, child })
}

fn run(command: &mut Command) -> anyhow::Result<String> {
    let output = command
        .output()
        .with_context(|| format!("starting {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn ready(name: &'static str, entry: SocketAddr, parts: Vec<Part>) -> anyhow::Result<System> {
    until(name, || load::first_byte(entry).is_ok())?;
    Ok(System { name, entry, parts })
}

/// The origin itself.
pub(crate) fn loopback(origin: SocketAddr) -> anyhow::Result<System> {
    ready("loopback", origin, Vec::new())
}

/// haproxy as a bare TCP relay.
pub(crate) fn haproxy(origin: SocketAddr, dir: &Path) -> anyhow::Result<System> {
    let entry = local(free_port()?);
    let config = dir.join("haproxy.cfg");
    fs::write(
        &config,
        format!(
            "global\n  maxconn 4096\ndefaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n\
             listen bench\n  bind {entry}\n  server origin {origin}\n"
        ),
    )?;
    let part = start(
        "haproxy",
        dir,
        Command::new("/usr/sbin/haproxy")
            .arg("-db")
            .arg("-f")
            .arg(&config),
    )?;
    ready("haproxy", entry, vec![part])
}

/// stunnel on both sides: plain in, TLS 1.3 between, plain out.
pub(crate) fn stunnel(origin: SocketAddr, dir: &Path) -> anyhow::Result<System> {
    let (entry, middle) = (local(free_port()?), local(free_port()?));
    let pem = dir.join("stunnel.pem");
    let (key, certificate) = (dir.join("stunnel.key"), dir.join("stunnel.crt"));
    run(Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
        ])
        .args(["-nodes", "-days", "2", "-subj", "/CN=bench", "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&certificate))?;
    fs::write(&pem, [fs::read(&key)?, fs::read(&certificate)?].concat())?;
    let begin = "foreground = yes\npid =\ndebug = 3\nsocket = l:TCP_NODELAY=1\nsocket = r:TCP_NODELAY=1\n[bench]\n";
    let server = dir.join("stunnel-server.conf");
    let pem = pem.display();
    fs::write(
        &server,
        format!("{begin}accept = {middle}\nconnect = {origin}\ncert = {pem}\n"),
    )?;
    let client = dir.join("stunnel-client.conf");
    fs::write(
        &client,
        format!("{begin}client = yes\naccept = {entry}\nconnect = {middle}\n"),
    )?;
    let parts = [("server", server), ("client", client)]
        .into_iter()
        .map(|(name, config)| start(name, dir, Command::new("stunnel4").arg(config)));
    ready("stunnel", entry, parts.collect::<anyhow::Result<_>>()?)
}

/// `ssh -L` to a server of its own, with keys made for it.
pub(crate) fn ssh(origin: SocketAddr, dir: &Path) -> anyhow::Result<System> {
    let (entry, port) = (local(free_port()?), free_port()?);
    for key in ["host", "user"] {
        run(Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(dir.join(key)))?;
    }
    fs::copy(dir.join("user.pub"), dir.join("authorized"))?;
    let at = dir.display();
    let config = dir.join("sshd_config");
    fs::write(
        &config,
        format!(
            "ListenAddress 127.0.0.1:{port}\nHostKey {at}/host\nAuthorizedKeysFile {at}/authorized\nStrictModes no\n\
             UsePAM no\nPidFile none\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n"
        ),
    )?;
    // Where a server that runs as root parts its privileges; only the package's own service makes it.
    fs::create_dir_all("/run/sshd").ok();
    let server = start(
        "sshd",
        dir,
        Command::new("/usr/sbin/sshd")
            .args(["-D", "-e", "-f"])
            .arg(&config),
    )?;
    let user = run(Command::new("id").arg("-un"))?;
    until("sshd", || std::net::TcpStream::connect(local(port)).is_ok())?;
    let client = start(
        "ssh",
        dir,
        Command::new("ssh")
            .args(["-N", "-F", "none", "-o", "StrictHostKeyChecking=no"])
            .args([
                "-o",
                "UserKnownHostsFile=/dev/null",
                "-o",
                "ExitOnForwardFailure=yes",
                "-i",
            ])
            .arg(dir.join("user"))
            .args(["-p", &port.to_string(), "-L", &format!("{entry}:{origin}")])
            .arg(format!("{user}@127.0.0.1")),
    )?;
    ready("ssh -L", entry, vec![server, client])
}

/// One setting of ours that is measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Variant {
    pub(crate) name: &'static str,
    /// The word of `--only` for it.
    pub(crate) key: &'static str,
    /// What the agents are given beside their standard settings.
    settings: &'static [(&'static str, &'static str)],
}

/// As it comes, and with the agents held to one rung of the ladder.
pub(crate) const VARIANTS: [Variant; 3] = [
    Variant {
        name: "sealock",
        key: "sealock",
        settings: &[],
    },
    Variant {
        name: "sealock, TLS",
        key: "tls",
        settings: &[("SEALOCK_AGENT__TRANSPORTS", "tls")],
    },
    Variant {
        name: "sealock, WebSocket",
        key: "websocket",
        settings: &[("SEALOCK_AGENT__TRANSPORTS", "websocket")],
    },
];

/// Sealock's own: the public side (controller and relay), a provider, a caller.
#[derive(Debug)]
pub(crate) struct Sealock {
    program: PathBuf,
    dir: PathBuf,
    variant: Variant,
    pub(crate) relay: SocketAddr,
}

impl Sealock {
    /// Starts all of it and waits until the origin answers through it.
    pub(crate) fn start(
        variant: Variant,
        program: &Path,
        origin: SocketAddr,
        dir: &Path,
    ) -> anyhow::Result<(Self, System)> {
        let relay = local(free_port()?);
        let dir = dir.join(variant.key);
        fs::create_dir(&dir)?;
        let this = Self {
            program: program.to_owned(),
            dir,
            variant,
            relay,
        };
        let (listen, controller) = (relay.to_string(), local(free_port()?).to_string());
        let public = start(
            "relay",
            &this.dir,
            this.command("public")
                .args(["up", "--listen", &listen, "--public", &listen])
                .args(["--controller-listen", &controller]),
        )?;
        let provider = this.agent("provider")?;
        let consumer = this.agent("consumer")?;
        let entry = local(free_port()?);
        let (target, listen) = (origin.to_string(), entry.to_string());
        this.ask(
            "provider",
            &["expose", &target, "--as", "bench", "--detach"],
        )?;
        this.ask(
            "consumer",
            &["connect", "bench", "--listen", &listen, "--detach"],
        )?;
        let system = ready(variant.name, entry, vec![provider, public, consumer])?;
        Ok((this, system))
    }

    fn command(&self, who: &str) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg("--state")
            .arg(self.state(who))
            .env("SEALOCK_ADMIN__LISTEN", "off")
            .env("SEALOCK_RELAY__MAX_STREAMS_PER_SESSION", "4096")
            .envs(self.variant.settings.iter().copied())
            .env_remove("SEALOCK_CONFIG");
        command
    }

    /// Where a node keeps its state.
    pub(crate) fn state(&self, who: &str) -> PathBuf {
        self.dir.join(who)
    }

    /// Gives a node an identity; it does not run yet.
    pub(crate) fn join(&self, who: &'static str) -> anyhow::Result<()> {
        let mut token = String::new();
        until("the public side", || {
            let made = run(self
                .command("public")
                .args(["token", "create", "--json", "--name", who]));
            made.map(|text| token = text).is_ok()
        })?;
        let token = token
            .split('"')
            .find(|word| word.starts_with("SLK1-"))
            .context("no token in the answer")?;
        let mut join = self
            .command(who)
            .args(["join", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut input = join.stdin.take().context("a pipe was asked for")?;
        input.write_all(token.as_bytes())?;
        drop(input);
        let ended = join.wait_with_output()?;
        let said = String::from_utf8_lossy(&ended.stderr);
        ensure!(ended.status.success(), "`sealock join` said: {said}");
        Ok(())
    }

    fn agent(&self, who: &'static str) -> anyhow::Result<Part> {
        self.join(who)?;
        start(who, &self.dir, self.command(who).arg("agent"))
    }

    /// Asks a running agent for something, as soon as it listens.
    fn ask(&self, who: &'static str, verb: &[&str]) -> anyhow::Result<()> {
        let mut said = String::new();
        let asked = until(who, || match run(self.command(who).args(verb)) {
            Ok(_) => true,
            Err(error) => {
                said = error.to_string();
                false
            }
        });
        asked.context(said)
    }
}
