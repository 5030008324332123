//! A cable that behaves badly on purpose: delay, jitter, loss in bursts, reordering, copies, flipped bits, a slow link.
//!
//! The kernel of a test machine cannot be asked for these, so a program of our own, `wire`, stands between two TAP
//! devices and carries every frame from one to the other, as its [`Profile`](profile::Profile) says and at the times
//! its script says. What it does to the nth packet of a direction follows from the seed, that direction, n and the
//! profile of that moment alone: the same packets under the same seed suffer the same. The rules are a machine
//! without a clock ([`lane`]); devices and threads are in the program. In a scene, [`Topology::rewire`] replaces a
//! host's plain cable by a wire. Deliberately absent: faults of names, of addresses and of programs.

use std::{collections::BTreeMap, path::PathBuf, process::ChildStdin, time::Duration};

use anyhow::{Context, Result, ensure};

use crate::{Bridge, Namespace, Node, Spec, Topology, binary};

mod chance;
pub mod frame;
pub mod lane;
pub mod profile;
pub mod script;
#[cfg(test)]
mod tests;

use lane::Heading;

// Two devices and four threads, on a machine whose cores others use as well.
const PATIENCE: Duration = Duration::from_secs(10);

/// A wire between a host and its network; the host is cut off when this is dropped.
#[derive(Debug)]
pub struct Wire {
    node: Node,
    input: ChildStdin,
    asked: u64,
}

/// What became of the packets of one direction, by the words that the program prints: `passed`, `lost`, `cut`, ….
pub type Counts = BTreeMap<String, u64>;

impl Wire {
    /// Changes the profile from here on, in the words of a [script](script::parse): times count from this call.
    ///
    /// # Errors
    ///
    /// Fails when the words are wrong, or the program has ended.
    pub fn change(&mut self, script: &str) -> Result<()> {
        use std::io::Write as _;
        script::parse(script)?;
        writeln!(self.input, "{script}").context("the wire has ended")?;
        // The program answers in order: once it has counted, what stands before that is in force.
        self.counts(Heading::There).map(drop)
    }

    /// What became of all packets so far that went one way.
    ///
    /// # Errors
    ///
    /// Fails when the program has ended.
    pub fn counts(&mut self, heading: Heading) -> Result<Counts> {
        use std::io::Write as _;
        self.asked += 1;
        writeln!(self.input, "count {}", self.asked).context("the wire has ended")?;
        let wanted = format!("counted {} {heading}:", self.asked);
        let line = self.node.wait_for_line(&wanted, PATIENCE)?;
        let mut counts = Counts::new();
        for word in line.split_whitespace().skip(3) {
            let (name, number) = word.split_once('=').context("a count")?;
            counts.insert(name.to_owned(), number.parse()?);
        }
        ensure!(!counts.is_empty(), "the wire counted nothing: {line}");
        Ok(counts)
    }
}

impl Topology {
    /// Puts a wire in the place of a host's cable. `There` is from the host to the network, `Back` to the host.
    ///
    /// The host keeps its addresses and the one of its card, so its neighbours notice nothing but the faults.
    ///
    /// # Errors
    ///
    /// Fails when the host is not on this network, the script is wrong, or there are no TAP devices here.
    pub fn rewire(
        &self,
        namespace: &Namespace,
        bridge: &Bridge,
        host: u8,
        script: &str,
    ) -> Result<Wire> {
        script::parse(script)?;
        let device = bridge.namespace().short();
        let port = namespace.short();
        let card = card(namespace, device)?;
        namespace.ip(&["link", "del", device])?;
        let spec = Spec::new(format!("wire-{device}"), program()?)
            .args(["--one", &format!("{}/{device}", namespace.name())])
            .args(["--other", &format!("{}/{port}", bridge.namespace().name())])
            .args(["--seed", &self.seed().to_string(), "--script", script])
            .open_input();
        let mut node = self.start(namespace, spec)?;
        node.wait_for_line("ready:", PATIENCE)?;
        let input = node.take_input().context("an open input")?;
        namespace.ip(&["link", "set", device, "address", &card])?;
        self.plug(namespace, bridge, host)?;
        Ok(Wire {
            node,
            input,
            asked: 0,
        })
    }
}

/// The hardware address of a host's interface.
fn card(namespace: &Namespace, device: &str) -> Result<String> {
    let shown = namespace.ip(&["-o", "link", "show", "dev", device])?;
    let mut words = shown
        .split_whitespace()
        .skip_while(|word| *word != "link/ether");
    let card = words.nth(1).context("the interface has no card")?;
    Ok(card.to_owned())
}

/// The program lies beside the tests: cargo builds a package's programs for its tests.
fn program() -> Result<PathBuf> {
    let profile = binary::profile_directory()?;
    let path = profile.join("wire");
    ensure!(path.is_file(), "there is no {}", path.display());
    Ok(path)
}
