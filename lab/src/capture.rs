//! What passes through a namespace, kept by tcpdump and searched afterwards.
//!
//! Packets are searched as they are: a text that is split over two packets is not put together again, so a test
//! sends its text many times, or keeps it short.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};

use crate::{
    Namespace, Node, Spec, Topology,
    evidence::{Search, search_files},
    node::Signal,
};

// tcpdump starts and ends within milliseconds; this is for a machine under load.
const PATIENCE: Duration = Duration::from_secs(10);

/// A running capture.
#[derive(Debug)]
pub struct Capture {
    tcpdump: Node,
    namespace: Namespace,
    file: PathBuf,
}

/// A capture that has ended.
#[derive(Debug)]
pub struct Captured {
    namespace: Namespace,
    file: PathBuf,
}

impl Capture {
    /// Keeps every packet of all interfaces of a namespace, from the return of this call on.
    ///
    /// # Errors
    ///
    /// Fails when tcpdump does not start.
    pub fn start(topology: &Topology, namespace: &Namespace) -> Result<Self> {
        let file = topology
            .directory()
            .join(format!("{}.pcap", namespace.short()));
        let spec = Spec::new("tcpdump", "tcpdump")
            .args([
                "-i",
                "any",
                "-s",
                "0",
                "-U",
                "--immediate-mode",
                "-Z",
                "root",
                "-w",
            ])
            .args([&file]);
        let mut tcpdump = topology.start(namespace, spec)?;
        tcpdump
            .wait_for_line("listening on", PATIENCE)
            .context("tcpdump")?;
        Ok(Self {
            tcpdump,
            namespace: namespace.clone(),
            file,
        })
    }

    /// Ends the capture.
    ///
    /// # Errors
    ///
    /// Fails when tcpdump had ended before, or does not end.
    pub fn stop(mut self) -> Result<Captured> {
        self.tcpdump.signal(Signal::INT)?;
        self.tcpdump.wait(PATIENCE)?;
        Ok(Captured {
            namespace: self.namespace,
            file: self.file,
        })
    }
}

impl Captured {
    /// The file, in the format of tcpdump.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Looks for bytes in all packets.
    ///
    /// # Errors
    ///
    /// Fails when the file cannot be read.
    pub fn search(&self, needle: &[u8]) -> Result<Search> {
        search_files(&self.file, needle)
    }

    /// The packets that a tcpdump filter lets through (`""` for all), one line each.
    ///
    /// # Errors
    ///
    /// Fails when the filter is not understood.
    pub fn packets(&self, topology: &Topology, filter: &str) -> Result<Vec<String>> {
        let spec = Spec::new("tcpdump-read", "tcpdump")
            .args(["-nn", "-r"])
            .args([&self.file])
            .args([filter]);
        let text = topology.run(&self.namespace, spec)?.success()?;
        Ok(text.lines().map(str::to_owned).collect())
    }
}
