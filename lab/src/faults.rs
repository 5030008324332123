//! What goes wrong in a network: lost packets, parted hosts, links without a carrier.
//!
//! Each fault is a guard; dropping it heals the network. Faults of processes are [`Node::kill`](crate::Node::kill),
//! [`Node::freeze`](crate::Node::freeze) and their like. Rules sit in the bridge, so a sender sees nothing: no
//! error, no answer. Deliberately absent: delay and reordering, which are [`wire`](crate::wire)'s.

use std::{
    fmt,
    net::IpAddr,
    sync::atomic::{AtomicUsize, Ordering},
};

use anyhow::{Context, Result, ensure};

use crate::{
    Bridge, Namespace, Nat, Topology,
    node::{event, say},
};

// What IPv4 does below IP, IPv6 does with packets of its own: losing those would be another fault.
const PASSES: &str = "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept";

/// Which packets a fault meets; empty means all of IP. Neighbour discovery always passes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Traffic {
    from: Option<IpAddr>,
    to: Option<IpAddr>,
    port: Option<(Transport, u16)>,
    transport: Option<Transport>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transport {
    Tcp,
    Udp,
}

impl Traffic {
    /// Every packet.
    #[must_use]
    pub fn any() -> Self {
        Self::default()
    }

    /// Only packets of this sender.
    #[must_use]
    pub fn from(mut self, address: IpAddr) -> Self {
        self.from = Some(address);
        self
    }

    /// Only packets to this host.
    #[must_use]
    pub fn to(mut self, address: IpAddr) -> Self {
        self.to = Some(address);
        self
    }

    /// Only UDP.
    #[must_use]
    pub fn udp(mut self) -> Self {
        self.transport = Some(Transport::Udp);
        self
    }

    /// Only UDP to this port.
    #[must_use]
    pub fn udp_port(mut self, port: u16) -> Self {
        self.port = Some((Transport::Udp, port));
        self
    }

    /// Only TCP to this port.
    #[must_use]
    pub fn tcp_port(mut self, port: u16) -> Self {
        self.port = Some((Transport::Tcp, port));
        self
    }

    fn rules(self, verdict: &str) -> Vec<String> {
        // Without an address of either family, IP of both families, and nothing below IP.
        let families: &[&str] = match self.from.or(self.to) {
            Some(IpAddr::V4(_)) => &["ip"],
            Some(IpAddr::V6(_)) => &["ip6"],
            None => &["ip", "ip6"],
        };
        families
            .iter()
            .map(|family| format!("{} {verdict}", self.matching(family)))
            .collect()
    }

    fn matching(self, family: &str) -> String {
        let mut parts = vec![format!("ether type {family}")];
        parts.extend(self.from.map(|address| format!("{family} saddr {address}")));
        parts.extend(self.to.map(|address| format!("{family} daddr {address}")));
        parts.extend(
            self.transport
                .map(|transport| format!("meta l4proto {}", transport.word())),
        );
        parts.extend(
            self.port
                .map(|(transport, port)| format!("{} dport {port}", transport.word())),
        );
        parts.join(" ")
    }
}

impl Transport {
    fn word(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// A fault that lasts until it is dropped.
#[derive(Debug)]
#[must_use = "a fault that is dropped at once never happens"]
pub struct Fault {
    namespace: Namespace,
    cure: Cure,
}

#[derive(Debug)]
enum Cure {
    DeleteTable(String),
    LinkUp(String),
}

impl fmt::Display for Cure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DeleteTable(table) => f.write_str(table),
            Self::LinkUp(port) => write!(f, "cable of {port}"),
        }
    }
}

/// One line of the time-line that a failed scene shows.
fn note(what: &str, cure: &Cure) {
    event(&format!("{cure} {what}"));
}

impl Fault {
    /// Ends the fault.
    pub fn heal(self) {
        drop(self);
    }

    /// How many packets were lost to it so far.
    ///
    /// # Errors
    ///
    /// Fails for a fault that does not count packets.
    pub fn lost(&self) -> Result<u64> {
        self.counted()
    }

    fn counted(&self) -> Result<u64> {
        let Cure::DeleteTable(table) = &self.cure else {
            anyhow::bail!("a link without carrier counts nothing");
        };
        let listing = self.namespace.nft(&format!("list table bridge {table}"))?;
        counted(&listing)
    }
}

/// The sum of the packet counters in what `nft` lists.
fn counted(listing: &str) -> Result<u64> {
    let mut sum = 0;
    for after in listing.split("counter packets ").skip(1) {
        let number = after.split(' ').next().context("a counter has a number")?;
        sum += number.parse::<u64>()?;
    }
    Ok(sum)
}

impl Drop for Fault {
    fn drop(&mut self) {
        note("healed", &self.cure);
        let healed = match &self.cure {
            Cure::DeleteTable(table) => self.namespace.nft(&format!("delete table bridge {table}")),
            Cure::LinkUp(port) => self.namespace.ip(&["link", "set", port, "up"]),
        };
        if let Err(error) = healed {
            say(&format!("lab: a fault could not be healed: {error:#}"));
        }
    }
}

impl Nat {
    /// Forgets every mapping, as a translator that was restarted does: what is sent next comes from other ports.
    ///
    /// # Errors
    ///
    /// Fails when the rules are not accepted.
    pub fn forget(&self) -> Result<()> {
        static NUMBER: AtomicUsize = AtomicUsize::new(1);
        // A zone that was never used knows no mapping; ports of its own make sure that none is chosen again.
        let zone = NUMBER.fetch_add(1, Ordering::Relaxed);
        ensure!(zone < 100, "a translator forgets at most a hundred times");
        let ports = 20_000 + 100 * zone;
        let last = ports + 99;
        self.namespace.nft(&format!(
            "table inet forget {{}}
            delete table inet forget
            table inet forget {{
                chain zone {{ type filter hook prerouting priority raw; ct zone set {zone}; }}
                chain translate {{
                    type nat hook postrouting priority 99;
                    iifname \"br0\" meta l4proto {{ tcp, udp }} masquerade to :{ports}-{last}
                }}
                chain seen {{
                    type filter hook postrouting priority 110;
                    meta l4proto {{ tcp, udp }} th sport {ports}-{last} counter
                }}
            }}"
        ))?;
        event(&format!("{} forgets its mappings", self.namespace.short()));
        Ok(())
    }

    /// How many packets have left by mappings made since it forgot the last time.
    ///
    /// # Errors
    ///
    /// Fails when it never did.
    pub fn mapped_again(&self) -> Result<u64> {
        counted(&self.namespace.nft("list table inet forget")?)
    }

    /// Moves to another address outside, as a line does that was dialled again; every mapping is gone with the old one.
    ///
    /// # Errors
    ///
    /// Fails when the address is taken.
    pub fn readdress(&self, lab: &Topology, outside: &Bridge, from: u8, to: u8) -> Result<()> {
        let device = outside.namespace().short();
        lab.address(&self.namespace, device, outside, to)?;
        for address in lab.addresses(outside, from) {
            let length = if address.is_ipv4() { 24 } else { 64 };
            let text = format!("{address}/{length}");
            // A secondary address of the same network goes with its primary one, unless it is promoted.
            self.namespace
                .set(&format!("ipv4/conf/{device}/promote_secondaries"), "1")?;
            self.namespace.ip(&["addr", "del", &text, "dev", device])?;
        }
        self.forget()
    }

    /// Lets mappings of UDP die after this many seconds without a packet.
    ///
    /// # Errors
    ///
    /// Fails when the kernel does not take it.
    pub fn expire_idle(&self, seconds: u32) -> Result<()> {
        for switch in [
            "nf_conntrack_udp_timeout",
            "nf_conntrack_udp_timeout_stream",
        ] {
            self.namespace
                .set(&format!("netfilter/{switch}"), &seconds.to_string())?;
        }
        Ok(())
    }
}

/// Counts packets that pass a network, until it is dropped. It harms none.
#[derive(Debug)]
pub struct Counter(Fault);

impl Counter {
    /// How many packets it has met so far.
    ///
    /// # Errors
    ///
    /// Fails when the rule is gone.
    pub fn met(&self) -> Result<u64> {
        self.0.counted()
    }
}

impl Bridge {
    /// Counts all packets of a kind.
    ///
    /// # Errors
    ///
    /// Fails when the rule is not accepted.
    pub fn count(&self, traffic: Traffic) -> Result<Counter> {
        Ok(Counter(self.fault(&traffic.rules("counter"))?))
    }

    /// Loses all packets of a kind.
    ///
    /// # Errors
    ///
    /// Fails when the rule is not accepted.
    pub fn lose(&self, traffic: Traffic) -> Result<Fault> {
        self.fault(&traffic.rules("counter drop"))
    }

    /// Loses each packet of a kind with a chance in a thousand.
    ///
    /// # Errors
    ///
    /// Fails when the rule is not accepted.
    pub fn lose_random(&self, traffic: Traffic, per_mille: u16) -> Result<Fault> {
        ensure!(per_mille <= 1_000, "{per_mille} in a thousand");
        self.fault(&traffic.rules(&format!(
            "numgen random mod 1000 < {per_mille} counter drop"
        )))
    }

    /// Loses every nth packet of a kind, the same ones in every run.
    ///
    /// # Errors
    ///
    /// Fails when the rule is not accepted.
    pub fn lose_every(&self, traffic: Traffic, nth: u16) -> Result<Fault> {
        ensure!(nth > 0, "every 0th packet");
        self.fault(&traffic.rules(&format!("numgen inc mod {nth} {} counter drop", nth - 1)))
    }

    /// Parts two hosts: nothing passes either way.
    ///
    /// # Errors
    ///
    /// Fails when the rule is not accepted.
    pub fn part(&self, one: IpAddr, other: IpAddr) -> Result<Fault> {
        let mut rules = Traffic::any().from(one).to(other).rules("counter drop");
        rules.extend(Traffic::any().from(other).to(one).rules("counter drop"));
        self.fault(&rules)
    }

    /// Takes a host's carrier away, as a pulled cable does.
    ///
    /// # Errors
    ///
    /// Fails when the host is not on this network.
    pub fn unplug(&self, host: &Namespace) -> Result<Fault> {
        let port = host.short().to_owned();
        self.namespace().ip(&["link", "set", &port, "down"])?;
        let cure = Cure::LinkUp(port);
        note("begins", &cure);
        Ok(Fault {
            namespace: self.namespace().clone(),
            cure,
        })
    }

    fn fault(&self, rules: &[String]) -> Result<Fault> {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let table = format!("fault{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let rules = rules.join("\n");
        self.namespace().nft(&format!(
            "table bridge {table} {{\nchain pass {{\ntype filter hook forward priority 0;\n{PASSES}\n{rules}\n}}\n}}"
        ))?;
        let cure = Cure::DeleteTable(table);
        note(&format!("begins: {rules}"), &cure);
        Ok(Fault {
            namespace: self.namespace().clone(),
            cure,
        })
    }
}
