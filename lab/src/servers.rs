//! Real servers from Debian, to stand behind a service: PostgreSQL, redis, ssh, HTTP, git, iperf3.
//!
//! Each runs in a namespace with its state in the topology's directory, listens where it is told and nowhere else,
//! and is ready when the function returns. Nothing of the host's own servers is touched. Their clients need no help:
//! `psql`, `redis-cli`, `curl` and `nc` are a [`Spec`] each.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    os::unix::fs::{DirBuilderExt as _, chown},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::{Namespace, Node, Spec, Topology, namespace::host, wait};

// A database that makes its files on a loaded machine of two cores; the others are ready at once.
const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until something listens on a TCP port in a namespace.
///
/// # Errors
///
/// Fails when nothing does in time.
pub fn wait_listening(namespace: &Namespace, port: u16, within: Duration) -> Result<()> {
    let ending = format!(":{port}");
    let what = format!("a listener on port {port} in {}", namespace.name());
    wait::until(&what, within, || {
        let listening = namespace.listeners()?.iter().any(|line| {
            let mut words = line.split_whitespace();
            words.next() == Some("tcp") && words.any(|word| word.ends_with(&ending))
        });
        Ok(listening.then_some(()))
    })
}

/// PostgreSQL with a new, empty database; everybody may enter as `postgres`.
///
/// # Errors
///
/// Fails when it is not installed or does not start.
pub fn postgres(lab: &Topology, namespace: &Namespace, listen: SocketAddr) -> Result<Node> {
    let programs = newest_postgres()?;
    let data = lab.directory().join("postgres");
    fs::create_dir(&data)?;
    let id = |flag: &str| -> Result<u32> { Ok(host("id", &[flag, "postgres"])?.trim().parse()?) };
    chown(&data, Some(id("-u")?), Some(id("-g")?))?;
    // PostgreSQL does not run as root.
    let as_postgres = |name: &str, program: &str| {
        Spec::new(name, "setpriv")
            .args(["--reuid=postgres", "--regid=postgres", "--init-groups"])
            // A change of user undoes what asks for the kill, so it is asked for again behind it.
            .args(["setpriv", "--pdeathsig", "KILL", "--"])
            .args([programs.join(program)])
            .args(["-D"])
            .args([&data])
            .directory("/")
    };
    let init = as_postgres("initdb", "initdb").args([
        "-U",
        "postgres",
        "-A",
        "trust",
        "--no-sync",
        "--locale=C",
    ]);
    lab.run(namespace, init)?.success().context("initdb")?;
    fs::write(data.join("pg_hba.conf"), "host all all all trust\n")?;
    let serve = as_postgres("postgres", "postgres").args([
        "-h",
        &listen.ip().to_string(),
        "-p",
        &listen.port().to_string(),
        "-c",
        "fsync=off",
        "-k",
        "",
    ]);
    let mut node = lab.start(namespace, serve)?;
    node.wait_for_line("ready to accept connections", PATIENCE)?;
    Ok(node)
}

fn newest_postgres() -> Result<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql")
        .context("PostgreSQL is not installed: `make setup-lab`")?;
    let mut found: Vec<(u32, PathBuf)> = versions
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let version = path.file_name()?.to_str()?.parse().ok()?;
            Some((version, path.join("bin")))
        })
        .collect();
    found.sort();
    found
        .pop()
        .map(|(_, path)| path)
        .context("PostgreSQL has no programs")
}

/// redis, without files.
///
/// # Errors
///
/// Fails when it is not installed or does not start.
pub fn redis(lab: &Topology, namespace: &Namespace, listen: SocketAddr) -> Result<Node> {
    let spec = Spec::new("redis", "redis-server")
        .args([
            "--bind",
            &listen.ip().to_string(),
            "--port",
            &listen.port().to_string(),
        ])
        .args(["--save", "", "--protected-mode", "no", "--dir"])
        .args([lab.directory()]);
    ready(lab.start(namespace, spec)?, namespace, listen)
}

/// An HTTP server for the files of a directory.
///
/// # Errors
///
/// Fails when Python is not installed or does not start.
pub fn http(
    lab: &Topology,
    namespace: &Namespace,
    listen: SocketAddr,
    files: &Path,
) -> Result<Node> {
    let spec = Spec::new("http", "/usr/bin/python3")
        .args([
            "-m",
            "http.server",
            "--bind",
            &listen.ip().to_string(),
            &listen.port().to_string(),
            "--directory",
        ])
        .args([files]);
    ready(lab.start(namespace, spec)?, namespace, listen)
}

/// The server of iperf3.
///
/// # Errors
///
/// Fails when it is not installed or does not start.
pub fn iperf3(lab: &Topology, namespace: &Namespace, listen: SocketAddr) -> Result<Node> {
    let spec = Spec::new("iperf3-server", "iperf3").args([
        "-s",
        "-B",
        &listen.ip().to_string(),
        "-p",
        &listen.port().to_string(),
    ]);
    ready(lab.start(namespace, spec)?, namespace, listen)
}

/// git's own server for the repositories below a directory, to be read by everybody.
///
/// # Errors
///
/// Fails when it is not installed or does not start.
pub fn git(
    lab: &Topology,
    namespace: &Namespace,
    listen: SocketAddr,
    repositories: &Path,
) -> Result<Node> {
    let spec = Spec::new("git-daemon", "git")
        .args(["daemon", "--export-all", "--reuseaddr"])
        .args([
            format!("--listen={}", listen.ip()),
            format!("--port={}", listen.port()),
            format!("--base-path={}", repositories.display()),
        ])
        .env("GIT_CONFIG_GLOBAL", "/dev/null");
    ready(lab.start(namespace, spec)?, namespace, listen)
}

fn ready(mut node: Node, namespace: &Namespace, listen: SocketAddr) -> Result<Node> {
    let listening = wait_listening(namespace, listen.port(), PATIENCE);
    if listening.is_err() && !node.is_running()? {
        // Shows its last lines, which say why.
        node.wait_for_line("ready", Duration::ZERO)?;
    }
    listening.map(|()| node)
}

/// A running sshd that lets one key in.
#[derive(Debug)]
pub struct Ssh {
    /// The server.
    pub node: Node,
    key: PathBuf,
    // sshd wants this directory; it is the host's, and removed again when it was not there before.
    _separation: Separation,
}

impl Ssh {
    /// Starts sshd with keys of its own.
    ///
    /// # Errors
    ///
    /// Fails when it is not installed or does not start.
    pub fn start(lab: &Topology, namespace: &Namespace, listen: SocketAddr) -> Result<Self> {
        let directory = lab.directory().join("ssh");
        fs::DirBuilder::new().mode(0o700).create(&directory)?;
        let (host_key, key) = (directory.join("host"), directory.join("user"));
        for path in [&host_key, &key] {
            let path = path.to_str().context("a path in UTF-8")?;
            host("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", path])?;
        }
        let config = directory.join("config");
        fs::write(
            &config,
            format!(
                "ListenAddress {}\nHostKey {}\nAuthorizedKeysFile {}.pub\nPasswordAuthentication no\nUsePAM no\n\
                 StrictModes no\nPidFile none\nPermitRootLogin prohibit-password\n",
                bracketed(listen),
                host_key.display(),
                key.display()
            ),
        )?;
        let separation = Separation::make()?;
        let spec = Spec::new("sshd", "/usr/sbin/sshd")
            .args(["-D", "-e", "-f"])
            .args([&config]);
        let node = ready(lab.start(namespace, spec)?, namespace, listen)?;
        Ok(Self {
            node,
            key,
            _separation: separation,
        })
    }

    /// The `ssh` that gets in, ready for `-p`, a `ProxyCommand`, the host and a command.
    #[must_use]
    pub fn client(&self, name: &str) -> Spec {
        Spec::new(name, "ssh")
            .args(["-F", "none", "-i"])
            .args([&self.key])
            .args([
                "-o",
                "StrictHostKeyChecking=no",
                "-o",
                "UserKnownHostsFile=/dev/null",
            ])
            .args(["-o", "LogLevel=ERROR", "-o", "BatchMode=yes", "-l", "root"])
    }
}

fn bracketed(address: SocketAddr) -> String {
    match address.ip() {
        IpAddr::V4(ip) => format!("{ip}:{}", address.port()),
        IpAddr::V6(ip) => format!("[{ip}]:{}", address.port()),
    }
}

#[derive(Debug)]
struct Separation {
    made: bool,
}

const SEPARATION: &str = "/run/sshd";

impl Separation {
    fn make() -> Result<Self> {
        let made = !Path::new(SEPARATION).exists();
        if made {
            fs::DirBuilder::new()
                .mode(0o755)
                .create(SEPARATION)
                .context("making sshd's directory")?;
        }
        ensure!(
            Path::new(SEPARATION).is_dir(),
            "{SEPARATION} is no directory"
        );
        Ok(Self { made })
    }
}

impl Drop for Separation {
    fn drop(&mut self) {
        if self.made {
            // Somebody else's sshd may have moved in meanwhile; then it stays.
            fs::remove_dir(SEPARATION).ok();
        }
    }
}
