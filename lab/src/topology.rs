//! Networks made of namespaces: hosts on bridges, bridges behind address translators.
//!
//! Every bridge is a namespace of its own, so that a fault of the network happens in the network: neither end's
//! own firewall answers, packets are simply lost. Addresses are given out by the bridge: host 7 on the second
//! network is `10.77.2.7` and `fd77:2::7`. None of them exists outside the namespaces.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU8, AtomicUsize, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::{
    Namespace, Node, Spec, namespace,
    node::{Ended, say, tail},
    wait,
};

/// Names the seed of a scene, to repeat one that failed or to try another.
pub const SEED_VARIABLE: &str = "SEALOCK_LAB_SEED";
// A change is judged by the same chance as the one before it.
const SEED: u64 = 1;

/// What addresses the hosts of a topology have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4 alone.
    V4,
    /// IPv6 alone.
    V6,
    /// Both.
    Both,
}

impl Family {
    fn has_v4(self) -> bool {
        matches!(self, Self::V4 | Self::Both)
    }

    fn has_v6(self) -> bool {
        matches!(self, Self::V6 | Self::Both)
    }
}

/// A network under test; all of it is gone when this is dropped.
#[derive(Debug)]
pub struct Topology {
    scope: String,
    directory: PathBuf,
    family: Family,
    namespaces: Vec<Namespace>,
    networks: AtomicU8,
    seed: u64,
}

/// A network that hosts can join, and where faults happen.
#[derive(Debug, Clone)]
pub struct Bridge {
    namespace: Namespace,
    network: u8,
    gateway: bool,
}

/// A box that hides the hosts of its inside network behind its own outside address.
#[derive(Debug, Clone)]
pub struct Nat {
    /// The box itself.
    pub namespace: Namespace,
    /// The network behind it, whose hosts go out through it.
    pub inside: Bridge,
}

/// The usual six machines on one network, with the two sides behind address translation when asked for.
#[derive(Debug)]
pub struct Lab6 {
    /// The network between all sites.
    pub ix: Bridge,
    /// The consumer's network and its translator, when there is one.
    pub nat1: Option<Nat>,
    /// The provider's network and its translator, when there is one.
    pub nat2: Option<Nat>,
    /// A client machine beside the consuming agent.
    pub cli: Namespace,
    /// The consuming agent.
    pub con: Namespace,
    /// The first relay.
    pub rel1: Namespace,
    /// The second relay.
    pub rel2: Namespace,
    /// The controller.
    pub ctl: Namespace,
    /// The providing agent.
    pub prv: Namespace,
    /// The origin server beside the providing agent.
    pub org: Namespace,
}

/// Runs a test in a fresh topology. When it fails, prints the logs and how to look into each namespace.
///
/// With `SEALOCK_LAB_HOLD` set, a failed scene stays as it is until the file that it names is removed.
///
/// # Panics
///
/// When the test fails: that is how a test says so.
#[expect(clippy::panic, reason = "the end of a failed test")]
pub fn scene(family: Family, test: impl FnOnce(&mut Topology) -> Result<()>) {
    let mut topology = match Topology::new(family) {
        Ok(topology) => topology,
        Err(error) => panic!("the lab cannot start: {error:#}"),
    };
    if let Err(error) = test(&mut topology) {
        panic!("{error:#}");
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the lab's own configuration, read at this one place"
)]
fn seed() -> Result<u64> {
    let Ok(text) = std::env::var(SEED_VARIABLE) else {
        return Ok(SEED);
    };
    text.parse()
        .with_context(|| format!("{SEED_VARIABLE}={text} is no number"))
}

impl Topology {
    /// An empty network.
    ///
    /// # Errors
    ///
    /// Fails when there is no place for its logs.
    pub fn new(family: Family) -> Result<Self> {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        namespace::sweep();
        let scope = namespace::scope(NUMBER.fetch_add(1, Ordering::Relaxed));
        let directory = std::env::temp_dir().join(&scope);
        if directory.exists() {
            // Left by a failed test of an earlier process with this pid.
            fs::remove_dir_all(&directory)?;
        }
        fs::create_dir(&directory).with_context(|| format!("making {}", directory.display()))?;
        Ok(Self {
            scope,
            directory,
            family,
            namespaces: Vec::new(),
            networks: AtomicU8::new(0),
            seed: seed()?,
        })
    }

    /// What addresses the hosts have.
    #[must_use]
    pub fn family(&self) -> Family {
        self.family
    }

    /// What the chance in this scene follows from: `SEALOCK_LAB_SEED`, or always the same.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// A directory for logs, captures and state; removed after a test that succeeds.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Makes a host with nothing but a loopback.
    ///
    /// # Errors
    ///
    /// Fails without the right to make namespaces.
    pub fn namespace(&mut self, short: &str) -> Result<Namespace> {
        // The interface beside the bridge carries this name, and the kernel allows 15 characters.
        ensure!(short.len() <= 15, "`{short}` is too long for an interface");
        let namespace = Namespace::create(&self.scope, short)?;
        self.namespaces.push(namespace.clone());
        Ok(namespace)
    }

    /// Makes a network that hosts can join.
    ///
    /// # Errors
    ///
    /// Fails without the right to make namespaces.
    pub fn bridge(&mut self, short: &str) -> Result<Bridge> {
        let namespace = self.namespace(short)?;
        self.bridge_in(namespace, false)
    }

    fn bridge_in(&self, namespace: Namespace, gateway: bool) -> Result<Bridge> {
        namespace.ip(&["link", "add", "br0", "type", "bridge"])?;
        namespace.ip(&["link", "set", "br0", "up"])?;
        let network = self.networks.fetch_add(1, Ordering::Relaxed) + 1;
        Ok(Bridge {
            namespace,
            network,
            gateway,
        })
    }

    /// Makes a host and joins it to a network.
    ///
    /// # Errors
    ///
    /// Fails when the name or the address is taken.
    pub fn host(&mut self, short: &str, bridge: &Bridge, host: u8) -> Result<Namespace> {
        let namespace = self.namespace(short)?;
        self.join(&namespace, bridge, host)?;
        Ok(namespace)
    }

    /// Gives a host a place on a network; its interface there has the network's name.
    ///
    /// # Errors
    ///
    /// Fails when the name or the address is taken.
    pub fn join(&self, namespace: &Namespace, bridge: &Bridge, host: u8) -> Result<()> {
        let device = bridge.namespace.short();
        let port = namespace.short();
        namespace.ip(&[
            "link",
            "add",
            device,
            "type",
            "veth",
            "peer",
            "name",
            port,
            "netns",
            bridge.namespace.name(),
        ])?;
        self.plug(namespace, bridge, host)
    }

    /// Sets up both ends of a cable that is there, whatever it is made of: the host's, named like the network, and
    /// the network's, named like the host.
    pub(crate) fn plug(&self, namespace: &Namespace, bridge: &Bridge, host: u8) -> Result<()> {
        let device = bridge.namespace.short();
        let port = namespace.short();
        bridge
            .namespace
            .ip(&["link", "set", port, "master", "br0", "up"])?;
        namespace.ip(&["link", "set", device, "up"])?;
        self.address(namespace, device, bridge, host)?;
        if bridge.gateway {
            for gateway in self.addresses(bridge, 1) {
                let version = if gateway.is_ipv4() { "-4" } else { "-6" };
                namespace.ip(&[
                    version,
                    "route",
                    "add",
                    "default",
                    "via",
                    &gateway.to_string(),
                ])?;
            }
        }
        Ok(())
    }

    pub(crate) fn address(
        &self,
        namespace: &Namespace,
        device: &str,
        bridge: &Bridge,
        host: u8,
    ) -> Result<()> {
        for address in self.addresses(bridge, host) {
            let length = if address.is_ipv4() { 24 } else { 64 };
            let text = format!("{address}/{length}");
            let mut arguments = vec!["addr", "add", text.as_str(), "dev", device];
            if address.is_ipv6() {
                // Nobody else can have it, and the check for that would make every test wait.
                arguments.push("nodad");
            }
            namespace.ip(&arguments)?;
        }
        Ok(())
    }

    /// The addresses that a host has on a network.
    #[must_use]
    pub fn addresses(&self, bridge: &Bridge, host: u8) -> Vec<IpAddr> {
        let v4 = self.family.has_v4().then(|| bridge.v4(host));
        let v6 = self.family.has_v6().then(|| bridge.v6(host));
        v4.into_iter().chain(v6).collect()
    }

    /// Puts a box with address translation on a network, and a network behind it.
    ///
    /// # Errors
    ///
    /// Fails when the name or the address is taken.
    pub fn nat(&mut self, short: &str, outside: &Bridge, host: u8) -> Result<Nat> {
        let namespace = self.namespace(short)?;
        self.join(&namespace, outside, host)?;
        let inside = self.bridge_in(namespace.clone(), true)?;
        self.address(&namespace, "br0", &inside, 1)?;
        if self.family.has_v4() {
            namespace.set("ipv4/ip_forward", "1")?;
        }
        if self.family.has_v6() {
            namespace.set("ipv6/conf/all/forwarding", "1")?;
        }
        let device = outside.namespace.short();
        namespace.nft(&format!(
            "table inet nat {{
                chain translate {{ type nat hook postrouting priority 100; oifname \"{device}\" masquerade; }}
                chain pass {{
                    type filter hook forward priority 0; policy drop;
                    ct state established,related accept
                    iifname \"br0\" accept
                }}
            }}"
        ))?;
        Ok(Nat { namespace, inside })
    }

    /// Makes the usual machines. With `nats`, consumer and provider sit behind a translator each.
    ///
    /// Hosts on `ix`: rel1 11, rel2 12, ctl 13, nat1 21, nat2 22. Beside each other, there or behind their
    /// translator: cli 31 and con 32, prv 41 and org 42.
    ///
    /// # Errors
    ///
    /// Fails without the right to make namespaces.
    pub fn lab6(&mut self, nats: bool) -> Result<Lab6> {
        let ix = self.bridge("ix")?;
        let nat1 = nats.then(|| self.nat("nat1", &ix, 21)).transpose()?;
        let nat2 = nats.then(|| self.nat("nat2", &ix, 22)).transpose()?;
        let near = nat1
            .as_ref()
            .map_or_else(|| ix.clone(), |nat| nat.inside.clone());
        let far = nat2
            .as_ref()
            .map_or_else(|| ix.clone(), |nat| nat.inside.clone());
        Ok(Lab6 {
            cli: self.host("cli", &near, 31)?,
            con: self.host("con", &near, 32)?,
            rel1: self.host("rel1", &ix, 11)?,
            rel2: self.host("rel2", &ix, 12)?,
            ctl: self.host("ctl", &ix, 13)?,
            prv: self.host("prv", &far, 41)?,
            org: self.host("org", &far, 42)?,
            ix,
            nat1,
            nat2,
        })
    }

    /// Starts a program in a namespace of this topology.
    ///
    /// # Errors
    ///
    /// Fails when it cannot be started.
    pub fn start(&self, namespace: &Namespace, spec: Spec) -> Result<Node> {
        Node::start(namespace, &self.directory, spec)
    }

    /// Runs a program to its end, within half a minute.
    ///
    /// # Errors
    ///
    /// Fails when it cannot be started or does not end; how it ends is for the caller to judge.
    pub fn run(&self, namespace: &Namespace, spec: Spec) -> Result<Ended> {
        self.start(namespace, spec)?.finish(Duration::from_secs(30))
    }

    fn explain(&self) {
        let mut text = format!(
            "lab: failed; logs are in {}\nlab: the seed was {}: {SEED_VARIABLE}={} repeats it\n",
            self.directory.display(),
            self.seed,
            self.seed
        );
        let mut logs: Vec<PathBuf> = fs::read_dir(&self.directory)
            .map(|entries| {
                entries
                    .filter_map(|entry| Some(entry.ok()?.path()))
                    .collect()
            })
            .unwrap_or_default();
        logs.sort();
        for log in logs {
            if log
                .extension()
                .is_some_and(|kind| kind == "out" || kind == "err")
            {
                text.push_str(&tail(&log));
            }
        }
        text.push_str(
            "lab: to look inside, set SEALOCK_LAB_HOLD=1 and run this test alone; then\n",
        );
        for namespace in &self.namespaces {
            text.push_str(&format!("  ip netns exec {} bash\n", namespace.name()));
        }
        say(&text);
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the lab's own configuration, read at this one place"
    )]
    fn hold(&self) {
        if std::env::var_os("SEALOCK_LAB_HOLD").is_none() {
            return;
        }
        let hold = self.directory.join("hold");
        if fs::write(&hold, "remove this file to end the test\n").is_ok() {
            say(&format!(
                "lab: everything stays as it is until you remove {}",
                hold.display()
            ));
            while hold.exists() {
                wait::pause(Duration::from_millis(200));
            }
        }
    }
}

impl Drop for Topology {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.explain();
            self.hold();
        } else if let Err(error) = fs::remove_dir_all(&self.directory) {
            say(&format!(
                "lab: could not remove {}: {error}",
                self.directory.display()
            ));
        }
    }
}

impl Bridge {
    /// The namespace that the network itself lives in.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// A host's IPv4 address on this network.
    #[must_use]
    pub fn v4(&self, host: u8) -> IpAddr {
        Ipv4Addr::new(10, 77, self.network, host).into()
    }

    /// A host's IPv6 address on this network.
    #[must_use]
    pub fn v6(&self, host: u8) -> IpAddr {
        Ipv6Addr::new(0xfd77, self.network.into(), 0, 0, 0, 0, 0, host.into()).into()
    }
}
