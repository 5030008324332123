//! A whole deployment of Sealock: a public machine, a consumer and a provider behind a translator each.
//!
//! Every machine runs the real program with a state directory of its own, as its user would type it. Agents dial out
//! and nothing can dial in: the translators drop it. The servers and clients beside the agents are the test's.

use std::{
    ffi::OsStr,
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::{Family, Namespace, Node, Spec, Topology, node::Ended, topology::Lab6, wait};

/// Where the relay listens.
pub const RELAY_PORT: u16 = 7443;
/// Where the controller listens.
pub const CONTROLLER_PORT: u16 = 7444;
/// For a start, on a machine whose two cores others use as well.
pub const PATIENCE: Duration = Duration::from_secs(20);

// Which events a program tells of.
const LOG: &str = "RUST_LOG";

/// The first relay's place on the public network.
pub const RELAY_HOST: u8 = 11;
/// The second relay's place, in a deployment that has one.
pub const SECOND_HOST: u8 = 12;
const CONTROLLER_HOST: u8 = 13;

/// A machine: a namespace and the state directory of the Sealock there.
#[derive(Debug, Clone)]
pub struct Machine<'a> {
    lab: &'a Topology,
    namespace: Namespace,
    state: PathBuf,
    variables: Vec<(String, String)>,
}

impl<'a> Machine<'a> {
    /// A machine whose state is named after its namespace.
    #[must_use]
    pub fn new(lab: &'a Topology, namespace: &Namespace) -> Self {
        let state = lab.directory().join(format!("{}-state", namespace.short()));
        Self::with_state(lab, namespace, state)
    }

    /// A machine with its state in a directory of the test's choice.
    #[must_use]
    pub fn with_state(lab: &'a Topology, namespace: &Namespace, state: PathBuf) -> Self {
        Self {
            lab,
            namespace: namespace.clone(),
            state,
            variables: Vec::new(),
        }
    }

    /// The same machine, where every `sealock` runs with this environment variable: most are settings.
    #[must_use]
    pub fn with_env(mut self, key: &str, value: &str) -> Self {
        self.variables.push((key.to_owned(), value.to_owned()));
        self
    }

    /// The topology that it is part of.
    #[must_use]
    pub fn lab(&self) -> &'a Topology {
        self.lab
    }

    /// Where it is.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The state directory.
    #[must_use]
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// `sealock --state … ` with these arguments, not started yet.
    ///
    /// # Errors
    ///
    /// Fails when the program cannot be built.
    pub fn spec<A: AsRef<OsStr>>(
        &self,
        name: &str,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<Spec> {
        let mut spec = Spec::sealock(name)?.args(["--state"]).args([&self.state]);
        for (key, value) in &self.variables {
            spec = spec.env(key, value);
        }
        Ok(spec.args(arguments))
    }

    /// Starts a verb that stays, and waits until it prints a line with `ready`.
    ///
    /// # Errors
    ///
    /// Fails when it ends, or does not print that in time.
    pub fn start<A: AsRef<OsStr>>(
        &self,
        name: &str,
        arguments: impl IntoIterator<Item = A>,
        ready: &str,
    ) -> Result<Node> {
        let mut spec = self.spec(name, arguments)?;
        if !self.variables.iter().any(|(key, _)| key == LOG) {
            // What it did stands in the log of a scene that failed.
            spec = spec.env(LOG, "info");
        }
        let mut node = self.lab.start(&self.namespace, spec)?;
        node.wait_for_line(ready, PATIENCE)?;
        Ok(node)
    }

    /// Runs a verb to its end; how it ends is for the caller to judge.
    ///
    /// # Errors
    ///
    /// Fails when it cannot be started or does not end.
    pub fn run<A: AsRef<OsStr>>(
        &self,
        name: &str,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<Ended> {
        self.lab.run(&self.namespace, self.spec(name, arguments)?)
    }

    /// Runs a verb that must succeed, written as a user writes it, and returns what it printed.
    ///
    /// # Errors
    ///
    /// Fails when it does not succeed.
    pub fn ask(&self, line: &str) -> Result<String> {
        let verb = line.split(' ').next().unwrap_or(line);
        self.run(verb, line.split(' '))?
            .success()
            .with_context(|| format!("`sealock {line}` on {}", self.namespace.short()))
    }

    /// Uses a join token.
    ///
    /// # Errors
    ///
    /// Fails when the machine is not let in.
    pub fn join(&self, token: &str, name: &str) -> Result<()> {
        let ended = self.run("join", ["join", token, "--name", name])?;
        ended.success().context("joining").map(drop)
    }

    /// Runs the machine's agent in the background, and waits until it has a session and a policy.
    ///
    /// # Errors
    ///
    /// Fails when it is not ready in time.
    pub fn agent(&self) -> Result<Node> {
        let node = self.start("agent", ["agent"], "runs; ")?;
        self.wait_ready()?;
        Ok(node)
    }

    /// Waits until the agent that runs here has a session and a policy.
    ///
    /// # Errors
    ///
    /// Fails when it is not ready in time.
    pub fn wait_ready(&self) -> Result<()> {
        wait::until("the agent's readiness", PATIENCE, || {
            let ready = self.run("ready", ["ready"])?.status.success();
            Ok(ready.then_some(()))
        })
    }

    /// Offers a service by a process of its own.
    ///
    /// # Errors
    ///
    /// Fails when it is not offered in time.
    pub fn expose(&self, target: &str, service: &str) -> Result<Node> {
        let arguments = ["expose", target, "--as", service];
        self.start(&format!("expose-{service}"), arguments, "exposed `")
    }

    /// Reaches a service at a port of this machine's loopback, by a process of its own.
    ///
    /// # Errors
    ///
    /// Fails when it does not listen in time.
    pub fn connect(&self, service: &str, port: u16) -> Result<Node> {
        let listen = loopback(port).to_string();
        let arguments = ["connect", service, "--listen", &listen];
        self.start(&format!("connect-{service}"), arguments, "listening on")
    }
}

/// A port of a machine's own loopback.
#[must_use]
pub fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// How the public side begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// With the rule that lets agents open each other's services.
    Open,
    /// Without any rule.
    Closed,
}

/// A public side and two machines that have joined it: `cons` behind one translator, `prov` behind another.
#[derive(Debug)]
pub struct Deployment<'a> {
    /// The network.
    pub net: Lab6,
    /// The public machine: the relay is here, and the controller too unless it is [`Split`].
    pub public: Machine<'a>,
    /// The machine of the controller, where its administrator types.
    pub admin: Machine<'a>,
    /// The consumer, joined as `cons`.
    pub consumer: Machine<'a>,
    /// The provider, joined as `prov`.
    pub provider: Machine<'a>,
}

/// The processes of a public side whose roles run apart.
#[derive(Debug)]
pub struct Split {
    /// The relay.
    pub relay: Node,
    /// The controller.
    pub controller: Node,
}

/// The processes of a public side with two relays.
#[derive(Debug)]
pub struct Twin {
    /// Both relays.
    pub relays: [Node; 2],
    /// The controller.
    pub controller: Node,
}

impl<'a> Deployment<'a> {
    /// `sealock up` on the public machine, and both others joined.
    ///
    /// # Errors
    ///
    /// Fails when a step of it does.
    pub fn up(lab: &'a mut Topology, begin: Begin) -> Result<(Self, Node)> {
        let it = Self::machines(lab)?;
        let node = it.start_up(begin)?;
        it.join_both()?;
        Ok((it, node))
    }

    /// The same, where both others use QUIC and nothing else: on a busy machine TLS may be up first at a start, and what
    /// QUIC alone can tell (that a process is gone) would then be looked for in vain.
    #[must_use]
    pub fn over_quic(mut self) -> Self {
        for machine in [&mut self.consumer, &mut self.provider] {
            *machine = machine
                .clone()
                .with_env("SEALOCK_AGENT__TRANSPORTS", "quic");
        }
        self
    }

    /// `sealock controller` and `sealock relay` on machines of their own, and both others joined.
    ///
    /// # Errors
    ///
    /// Fails when a step of it does.
    pub fn split(lab: &'a mut Topology) -> Result<(Self, Split)> {
        let mut it = Self::machines(lab)?;
        it.admin = Machine::new(it.public.lab, &it.net.ctl);
        let controller = it.start_controller()?;
        let made = it.admin.ask("token create --role relay")?;
        let relay = it.start_relay(&["--token", token_of(&made)?])?;
        it.join_both()?;
        Ok((it, Split { relay, controller }))
    }

    /// As [`Deployment::split`], with a second relay on the machine `rel2`, which both others know of too.
    ///
    /// # Errors
    ///
    /// Fails when a step of it does.
    pub fn twin(lab: &'a mut Topology) -> Result<(Self, Twin)> {
        let mut it = Self::machines(lab)?;
        it.admin = Machine::new(it.public.lab, &it.net.ctl);
        let controller = it.start_controller()?;
        let mut relays = Vec::new();
        for (number, name) in ["rel1", "rel2"].into_iter().enumerate() {
            let made = it.admin.ask("token create --role relay")?;
            let first = ["--token", token_of(&made)?, "--name", name];
            relays.push(it.start_relay_of_two(number, &first)?);
        }
        let relays = relays.try_into().ok().context("two relays")?;
        it.join_both()?;
        Ok((it, Twin { relays, controller }))
    }

    /// Starts one of two relays, 0 or 1, also again on the state that is there.
    ///
    /// # Errors
    ///
    /// Fails when it does not get ready.
    pub fn start_relay_of_two(&self, number: usize, more: &[&str]) -> Result<Node> {
        let (machine, host) = match number {
            0 => (self.public.clone(), RELAY_HOST),
            _ => (Machine::new(self.public.lab, &self.net.rel2), SECOND_HOST),
        };
        self.start_relay_at(&machine, host, more)
    }

    fn start_relay_at(&self, machine: &Machine<'_>, host: u8, more: &[&str]) -> Result<Node> {
        let at = SocketAddr::new(self.address(host), RELAY_PORT).to_string();
        let arguments = ["relay", "--listen", &at];
        let arguments = arguments.iter().chain(more);
        machine.start("relay", arguments, "Agents reach this relay")
    }

    fn machines(lab: &'a mut Topology) -> Result<Self> {
        let net = lab.lab6(true)?;
        let lab: &'a Topology = lab;
        let public = Machine::new(lab, &net.rel1);
        Ok(Self {
            admin: public.clone(),
            consumer: Machine::new(lab, &net.con),
            provider: Machine::new(lab, &net.prv),
            public,
            net,
        })
    }

    /// The topology that it lives in.
    #[must_use]
    pub fn lab(&self) -> &'a Topology {
        self.public.lab
    }

    /// The relay's address on the public network.
    #[must_use]
    pub fn relay_ip(&self) -> IpAddr {
        self.address(RELAY_HOST)
    }

    fn address(&self, host: u8) -> IpAddr {
        match self.lab().family() {
            Family::V4 | Family::Both => self.net.ix.v4(host),
            Family::V6 => self.net.ix.v6(host),
        }
    }

    /// Starts `sealock up`, also again on the state that is there.
    ///
    /// # Errors
    ///
    /// Fails when it does not get ready.
    pub fn start_up(&self, begin: Begin) -> Result<Node> {
        let at = SocketAddr::new(self.relay_ip(), RELAY_PORT).to_string();
        let mut arguments = vec!["up", "--public", &at, "--listen", &at];
        arguments.extend((begin == Begin::Closed).then_some("--closed"));
        self.public.start("up", arguments, "That token works once")
    }

    /// Starts the controller of a split deployment, also again on the state that is there.
    ///
    /// # Errors
    ///
    /// Fails when it does not get ready.
    pub fn start_controller(&self) -> Result<Node> {
        let at = SocketAddr::new(self.address(CONTROLLER_HOST), CONTROLLER_PORT).to_string();
        let arguments = ["controller", "--listen", &at];
        self.admin
            .start("controller", arguments, "Let relays in with")
    }

    /// Starts the relay of a split deployment, also again on the state that is there.
    ///
    /// # Errors
    ///
    /// Fails when it does not get ready.
    pub fn start_relay(&self, more: &[&str]) -> Result<Node> {
        self.start_relay_at(&self.public, RELAY_HOST, more)
    }

    fn join_both(&self) -> Result<()> {
        self.consumer.join(&self.token()?, "cons")?;
        self.provider.join(&self.token()?, "prov")
    }

    /// A new join token for an agent.
    ///
    /// # Errors
    ///
    /// Fails when the controller makes none.
    pub fn token(&self) -> Result<String> {
        let printed = self.admin.ask("token create")?;
        Ok(token_of(&printed)?.to_owned())
    }
}

/// The token in what `sealock token create` prints.
fn token_of(printed: &str) -> Result<&str> {
    let mut words = printed.split_whitespace();
    let token = words.find(|word| word.starts_with("SLK1-"));
    token.with_context(|| format!("no token in `{printed}`"))
}

/// A file system of memory, of a given size, at a directory; unmounted when dropped.
#[derive(Debug)]
pub struct SmallDisk {
    at: PathBuf,
}

impl SmallDisk {
    /// Mounts it.
    ///
    /// # Errors
    ///
    /// Fails without the right to mount.
    pub fn mount(at: &Path, kib: u32) -> Result<Self> {
        fs::create_dir_all(at)?;
        let size = format!("size={kib}k,mode=0700");
        let path = at.to_str().context("a path in UTF-8")?;
        crate::namespace::host("mount", &["-t", "tmpfs", "-o", &size, "tmpfs", path])?;
        Ok(Self {
            at: at.to_path_buf(),
        })
    }

    /// Writes a file until nothing more fits.
    ///
    /// # Errors
    ///
    /// Fails when something other than a full disk ends it.
    pub fn fill(&self) -> Result<PathBuf> {
        use std::io::Write as _;
        let path = self.at.join("filler");
        let mut file = fs::File::create(&path)?;
        let mut step = 64 * 1024;
        while step > 0 {
            match file.write(&vec![0; step]) {
                Ok(0) => step /= 2,
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::StorageFull => step /= 2,
                Err(error) => return Err(error).context("filling the disk"),
            }
        }
        ensure!(
            fs::write(self.at.join("probe"), [0; 4096]).is_err(),
            "the disk is not full"
        );
        fs::remove_file(self.at.join("probe"))?;
        Ok(path)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if let Some(path) = self.at.to_str() {
            // Lazily: a process that was just killed may still hold a file for a moment.
            if let Err(error) = crate::namespace::host("umount", &["-l", path]) {
                crate::node::say(&format!("lab: could not unmount {path}: {error:#}"));
            }
        }
    }
}
