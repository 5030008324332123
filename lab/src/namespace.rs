//! One network namespace: made, entered and removed.
//!
//! A thread of its own lives inside for as long as the namespace does. Programs are started from it, so that they
//! are born inside and the kernel kills them when the test dies; sockets are opened on it, so that they belong to
//! the namespace wherever they are used afterwards. Threads started on it stay inside too.

use std::{
    fs,
    path::Path,
    process::{Child, Command},
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::JoinHandle,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::{
    io::Errno,
    process::{Pid, Signal, geteuid, kill_process, test_kill_process},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

const PREFIX: &str = "sl-";
// Where `ip netns` keeps its names.
const NAMES: &str = "/run/netns";
// Starting a program and opening a socket are short; more than this many at once is a test that spins.
const JOBS: usize = 64;

type Job = Box<dyn FnOnce() + Send>;

/// A handle to a network namespace, which is removed with the last handle.
#[derive(Debug, Clone)]
pub struct Namespace(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    short: String,
    name: String,
    jobs: Option<SyncSender<Job>>,
    worker: Option<JoinHandle<()>>,
}

impl Namespace {
    /// Makes a namespace with its loopback up. `scope` tells apart the topologies of one process.
    ///
    /// # Errors
    ///
    /// Fails without the right to make namespaces, and says how to get it.
    pub(crate) fn create(scope: &str, short: &str) -> Result<Self> {
        require_rights()?;
        let name = format!("{scope}-{short}");
        host("ip", &["netns", "add", &name])?;
        let mut inner = Inner {
            short: short.to_owned(),
            name,
            jobs: None,
            worker: None,
        };
        let (jobs, worker) = start_worker(&inner.name)?;
        inner.jobs = Some(jobs);
        inner.worker = Some(worker);
        let namespace = Self(Arc::new(inner));
        namespace.ip(&["link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    /// The name within its topology: `con`, `rel1`.
    #[must_use]
    pub fn short(&self) -> &str {
        &self.0.short
    }

    /// The name that `ip netns exec` knows.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Runs a short piece of code on the thread inside and waits for its result.
    ///
    /// # Errors
    ///
    /// Fails when the code panics.
    pub fn enter<T: Send + 'static>(&self, code: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        let (answer, result) = sync_channel(1);
        let job: Job = Box::new(move || {
            // The asker waits below; a send fails only when it panicked meanwhile.
            drop(answer.send(code()));
        });
        let jobs = self
            .0
            .jobs
            .as_ref()
            .context("the namespace is being removed")?;
        jobs.send(job)
            .map_err(|_| anyhow!("the thread inside {} has ended", self.name()))?;
        result
            .recv()
            .with_context(|| format!("code inside {} panicked", self.name()))
    }

    /// Starts a program inside; the kernel kills it when this test process ends.
    ///
    /// # Errors
    ///
    /// Fails when the program cannot be started.
    pub(crate) fn start(&self, mut command: Command) -> Result<Child> {
        Ok(self.enter(move || command.spawn())??)
    }

    /// Runs `ip` inside.
    ///
    /// # Errors
    ///
    /// Fails with what `ip` says.
    pub fn ip(&self, arguments: &[&str]) -> Result<String> {
        host("ip", &[&["-n", self.name()], arguments].concat())
    }

    /// Feeds a script to `nft` inside.
    ///
    /// # Errors
    ///
    /// Fails with what `nft` says.
    pub fn nft(&self, script: &str) -> Result<String> {
        let mut command = Command::new("nft");
        command.arg(script);
        let output = self
            .enter(move || command.output())?
            .context("running nft")?;
        ensure!(
            output.status.success(),
            "nft in {}: {}\n{script}",
            self.name(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Sets a switch below `/proc/sys/net` inside.
    ///
    /// # Errors
    ///
    /// Fails when the kernel does not take it.
    pub fn set(&self, switch: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/net/{switch}");
        let value = value.to_owned();
        self.enter(move || fs::write(&path, value))?
            .with_context(|| format!("setting {switch} in {}", self.name()))
    }

    /// The listening sockets inside, as `ss -ltnu` prints them, without its heading.
    ///
    /// # Errors
    ///
    /// Fails when `ss` does.
    pub fn listeners(&self) -> Result<Vec<String>> {
        let output = self
            .enter(|| {
                Command::new("ss")
                    .args(["-H", "-l", "-t", "-u", "-n"])
                    .output()
            })?
            .context("running ss")?;
        ensure!(
            output.status.success(),
            "ss: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout)
            .lines()
            .map(str::to_owned)
            .collect())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(worker) = self.worker.take() {
            // A panic inside was reported to the one who asked for the code.
            drop(worker.join());
        }
        remove(&self.name);
    }
}

fn start_worker(name: &str) -> Result<(SyncSender<Job>, JoinHandle<()>)> {
    let file = fs::File::open(Path::new(NAMES).join(name)).context("opening the new namespace")?;
    let (jobs, queue): (SyncSender<Job>, Receiver<Job>) = sync_channel(JOBS);
    let (entered, entry) = sync_channel(1);
    let worker = std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            use std::os::fd::AsFd as _;
            let moved = move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network));
            let inside = moved.is_ok();
            entered.send(moved).ok();
            if inside {
                while let Ok(job) = queue.recv() {
                    job();
                }
            }
        })?;
    entry
        .recv()
        .context("the thread inside ended")?
        .context("entering the namespace")?;
    Ok((jobs, worker))
}

/// Ends what still runs inside and removes the name. Only the lab starts programs in a namespace of this name.
fn remove(name: &str) {
    for pid in pids(name) {
        // It may have ended by itself since it was listed.
        kill_process(pid, Signal::KILL).ok();
    }
    if let Err(error) = host("ip", &["netns", "del", name]) {
        crate::node::say(&format!("lab: could not remove {name}: {error:#}"));
    }
}

fn pids(name: &str) -> Vec<Pid> {
    let listed = host("ip", &["netns", "pids", name]).unwrap_or_default();
    let own = std::process::id().to_string();
    listed
        .split_whitespace()
        .filter(|pid| *pid != own)
        .filter_map(|pid| Pid::from_raw(pid.parse().ok()?))
        .collect()
}

/// Removes namespaces of test processes that were killed before they could do so.
pub(crate) fn sweep() {
    for name in listed() {
        let owner = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split('-').next());
        let Some(owner) = owner.and_then(|pid| Pid::from_raw(pid.parse().ok()?)) else {
            continue;
        };
        if test_kill_process(owner) == Err(Errno::SRCH) {
            remove(&name);
        }
    }
}

/// The lab's namespaces on this machine.
#[must_use]
pub fn listed() -> Vec<String> {
    let Ok(entries) = fs::read_dir(NAMES) else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with(PREFIX))
        .collect()
}

/// What all names of a topology begin with.
pub(crate) fn scope(number: usize) -> String {
    format!("{PREFIX}{}-{number}", std::process::id())
}

fn require_rights() -> Result<()> {
    if !geteuid().is_root() {
        bail!(
            "the lab needs root, or an own user namespace: `make lab`, or `scripts/in-lab.sh cargo nextest run -p lab`"
        );
    }
    for tool in ["ip", "nft", "ss", "setpriv"] {
        let found = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"]
            .iter()
            .any(|directory| Path::new(directory).join(tool).exists());
        ensure!(
            found,
            "the lab needs `{tool}`: `make setup-lab` installs it"
        );
    }
    Ok(())
}

/// Runs a short command of the host and returns what it prints.
pub(crate) fn host(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .with_context(|| format!("running {program}"))?;
    ensure!(
        output.status.success(),
        "{program} {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
