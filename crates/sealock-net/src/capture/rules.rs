//! The packet rules of a captured namespace: one nft table that is ours by its name.
//!
//! A table is put in force as a whole or not at all, replaces what an earlier run left, and stays when we are gone: then
//! new connections are reset. Deliberately absent: rules in any table of somebody else.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::process::{Command, Stdio};

use super::{Endpoints, MARK, Method};

const TABLE: &str = "inet sealock_capture";

/// Why rules are not in force.
#[derive(Debug, thiserror::Error)]
pub enum RulesError {
    /// The program is not there.
    #[error("`nft` cannot be run; hint: install the package nftables")]
    Absent(#[source] io::Error),
    /// The kernel, or the program, does not take them.
    #[error("nft: {0}")]
    Refused(Box<str>),
}

/// Rules that were put in force, as the kernel tells of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    listing: String,
}

impl Rules {
    /// Puts a method's rules in force in the calling thread's namespace.
    ///
    /// # Errors
    /// When the kernel or `nft` does not take them; then nothing has changed.
    pub(super) fn install(method: Method, endpoints: Endpoints) -> Result<Self, RulesError> {
        nft(&["-f", "-"], &script(method, endpoints))?;
        let listing = list()?;
        Ok(Self { listing })
    }

    /// Whether they are still in force in the calling thread's namespace, all of them as they were.
    ///
    /// # Errors
    /// When `nft` cannot be asked.
    pub fn are_in_force(&self) -> Result<bool, RulesError> {
        match list() {
            Ok(listing) => Ok(listing == self.listing),
            Err(RulesError::Refused(_)) => Ok(false),
            Err(absent) => Err(absent),
        }
    }
}

/// Removes our rules from the calling thread's namespace, also those of an earlier run.
///
/// # Errors
/// When `nft` does not do it.
pub(super) fn remove() -> Result<(), RulesError> {
    nft(&["-f", "-"], &format!("{}\n", fresh_start()))?;
    Ok(())
}

/// Deleting fails where there is nothing, so it is made first.
fn fresh_start() -> String {
    format!("table {TABLE}\ndelete table {TABLE}")
}

fn list() -> Result<String, RulesError> {
    let words: Vec<&str> = ["list", "table"]
        .into_iter()
        .chain(TABLE.split(' '))
        .collect();
    nft(&words, "")
}

fn nft(arguments: &[&str], input: &str) -> Result<String, RulesError> {
    let start = |program: &str| {
        Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
    };
    // Users other than root seldom have /usr/sbin in their PATH.
    let mut child = start("/usr/sbin/nft")
        .or_else(|_| start("nft"))
        .map_err(RulesError::Absent)?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that ends early says why below.
        stdin.write_all(input.as_bytes()).ok();
    }
    let output = child.wait_with_output().map_err(RulesError::Absent)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let first = said.lines().next().unwrap_or("it failed without a word");
    Err(RulesError::Refused(first.into()))
}

/// The whole table. One statement a line: nft 1.0 wants it so.
fn script(method: Method, endpoints: Endpoints) -> String {
    let chains = match method {
        Method::AnyipTproxy => turned_over("", endpoints),
        Method::Tproxy => turned_over(&format!("meta mark set {MARK:#x} "), endpoints) + &marked(),
        Method::Redirect => redirected(endpoints),
        Method::Anyip => String::new(),
    };
    format!(
        "{}\ntable {TABLE} {{\n{chains}{}}}\n",
        fresh_start(),
        false_echoes()
    )
}

/// What a workload says to its own loopback is its own affair.
const LEAVE_LOOPBACK: &str = "    ip daddr 127.0.0.0/8 return\n    ip6 daddr ::1 return\n";

/// TPROXY: the kernel gives packets to our sockets without touching them.
fn turned_over(mark: &str, endpoints: Endpoints) -> String {
    let mut chain = String::from(
        "  chain arriving {\n    type filter hook prerouting priority mangle; policy accept;\n",
    );
    chain += LEAVE_LOOPBACK;
    // Packets for an address of the interface that they came in by are for this namespace itself.
    chain += "    meta l4proto { tcp, udp } fib daddr . iif type local iifname != \"lo\" return\n";
    writeln!(
        chain,
        "    meta l4proto tcp socket transparent 1 {mark}accept"
    )
    .ok();
    for (family, keyword, address) in families() {
        let mut to = |what: &str, port: u16| {
            let line = format!(
                "meta nfproto {family} meta l4proto {what} {mark}tproxy {keyword} to {address}:{port} accept"
            );
            writeln!(chain, "    {line}").ok();
        };
        if let Some(port) = endpoints.names {
            to("tcp th dport 53", port);
            to("udp th dport 53", port);
        }
        to("tcp", endpoints.streams);
        if let Some(port) = endpoints.datagrams {
            to("udp", port);
        }
    }
    // Nobody listens for us any more: a program inside with a listener of its own must not answer in place of the world.
    chain += "    tcp flags & (syn | ack) == syn reject with tcp reset\n";
    chain += "  }\n";
    chain
}

fn families() -> [(&'static str, &'static str, String); 2] {
    let [v4, v6] = Method::AnyipTproxy.addresses();
    [
        ("ipv4", "ip", v4.to_string()),
        ("ipv6", "ip6", format!("[{v6}]")),
    ]
}

/// Programs of the namespace itself: what they send is marked, and so comes back in.
fn marked() -> String {
    format!(
        "  chain leaving {{\n    type route hook output priority mangle; policy accept;\n{LEAVE_LOOPBACK}\
         \x20   fib saddr type != local return\n    meta l4proto {{ tcp, udp }} meta mark set {MARK:#x}\n  }}\n"
    ) // answers of our transparent sockets come from foreign addresses: marked, they would come back to us
}

/// REDIRECT: the kernel writes our address into packets, and remembers the one that stood there.
fn redirected(endpoints: Endpoints) -> String {
    let mut chain = String::from(
        "  chain leaving_nat {\n    type nat hook output priority -100; policy accept;\n",
    );
    chain += LEAVE_LOOPBACK;
    if let Some(port) = endpoints.names {
        writeln!(
            chain,
            "    meta l4proto {{ tcp, udp }} th dport 53 redirect to :{port}"
        )
        .ok();
    }
    writeln!(
        chain,
        "    meta l4proto tcp redirect to :{}",
        endpoints.streams
    )
    .ok();
    chain += "  }\n";
    chain
}

/// Our kernel would answer a ping in the name of any address: that would tell a workload what is not so.
fn false_echoes() -> String {
    "  chain echoes {\n    type filter hook output priority filter; policy accept;\n\
     \x20   ip daddr != 127.0.0.0/8 icmp type echo-request reject with icmpx type admin-prohibited\n\
     \x20   ip6 daddr != ::1 icmpv6 type echo-request reject with icmpx type admin-prohibited\n  }\n"
        .to_owned()
}
