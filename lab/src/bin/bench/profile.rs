//! Where processor time goes: samples of all of a system's processes while bytes move, by kind of work.
//!
//! `perf` samples the processor's clock, so it works without hardware counters. A sample belongs to the first kind one of
//! whose words its function's name has; inlined work counts for the function that it was inlined into.

use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::load::{self, Way};
use crate::systems::System;

/// Kinds of work and the words in function names that mean them, most telling first.
const KINDS: &[(&str, &[&str])] = &[
    (
        "encryption (AES-GCM of QUIC and of end-to-end TLS)",
        &[
            "aes_",
            "gcm",
            "aead",
            "ghash",
            "aws_lc",
            "header_protection",
            "chacha",
            "poly1305",
        ],
    ),
    (
        "kernel: UDP and IP",
        &[
            "udp",
            "ip_",
            "ip6_",
            "skb_segment",
            "__skb",
            "gso",
            "gro",
            "inet_gso",
            "dev_",
            "loopback",
            "netif",
            "nf_",
            "net_rx",
            "process_backlog",
            "icmp",
        ],
    ),
    ("kernel: TCP", &["tcp_", "tcp4", "tcp6"]),
    (
        "copies and zeroing",
        &[
            "memcpy",
            "memmove",
            "memset",
            "copy_user",
            "rep_movs",
            "_copy_to_iter",
            "_copy_from_iter",
            "copy_page",
            "clear_page",
            "csum",
        ],
    ),
    (
        "allocation",
        &[
            "malloc",
            "free",
            "realloc",
            "calloc",
            "brk",
            "mmap",
            "page_fault",
            "folio",
            "alloc_pages",
            "get_page",
            "charge",
            "madvise",
            "unmap",
            "zap_",
            "kmem",
            "slab",
            "slub",
            "skb_release",
            "alloc_skb",
        ],
    ),
    ("QUIC (noq)", &["noq"]),
    ("TLS records (rustls)", &["rustls"]),
    ("Sealock's own", &["sealock"]),
    (
        "runtime (tokio, futures, locks)",
        &[
            "tokio",
            "futures",
            "mio",
            "parking_lot",
            "core::",
            "alloc::",
            "std::",
            "pthread",
        ],
    ),
    (
        "kernel: scheduling, polling, system calls",
        &[
            "sched", "futex", "epoll", "syscall", "wake", "schedule", "switch", "entry_", "ksys",
            "sock_", "fget", "spin", "rcu", "idle", "poll", "eventfd", "timer", "ktime", "sendmsg",
            "recvmsg",
        ],
    ),
];

const REST: &str = "the rest";

/// Processor time by process and by kind of work.
#[derive(Debug, Default)]
pub(crate) struct Profile {
    pub(crate) unit: &'static str,
    pub(crate) parts: Vec<(&'static str, f64)>,
    /// Kind, and its cost in each part.
    pub(crate) rows: Vec<(&'static str, Vec<f64>)>,
    /// The functions that cost most over all parts.
    pub(crate) top: Vec<(String, f64)>,
}

/// What a system does while it is sampled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// Bytes down one stream; figures are per GB.
    Bytes,
    /// Opens one after the other, each to its first byte; figures are per thousand.
    Opens,
}

impl Work {
    /// Does some of it, and says how much in its unit.
    fn go_on(self, system: &System) -> anyhow::Result<f64> {
        match self {
            Self::Bytes => {
                let bytes = 256 << 20;
                load::transfer(system.entry, Way::Down, 1, bytes)?;
                Ok(bytes as f64 / 1e9)
            }
            Self::Opens => {
                for _ in 0..100 {
                    load::first_byte(system.entry)?;
                }
                Ok(0.1)
            }
        }
    }

    pub(crate) fn unit(self) -> &'static str {
        match self {
            Self::Bytes => "seconds per GB, one stream down",
            Self::Opens => "milliseconds per open, one after the other",
        }
    }
}

/// Lets a system work for so long and says where the time went.
pub(crate) fn take(
    system: &System,
    work: Work,
    seconds: u64,
    dir: &Path,
) -> anyhow::Result<Profile> {
    let data = dir.join("perf.data");
    let parts = system.parts();
    let pids: Vec<String> = parts.iter().map(|part| part.pid().to_string()).collect();
    let mut perf = Command::new("perf")
        .args(["record", "-e", "cpu-clock", "-F", "997", "-o"])
        .arg(&data)
        .args(["-p", &pids.join(",")])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("starting perf (package linux-perf)")?;
    thread::sleep(Duration::from_secs(1));
    let cpu = || parts.iter().map(|part| part.cost().cpu_seconds).collect();
    let before: Vec<f64> = cpu();
    let begun = Instant::now();
    let mut done = 0.0;
    while begun.elapsed() < Duration::from_secs(seconds) {
        done += work.go_on(system)?;
    }
    let after = cpu().into_iter().zip(before);
    let costs: Vec<f64> = after
        .map(|(after, before)| (after - before) / done)
        .collect();
    // perf ends its file well on SIGINT.
    Command::new("kill")
        .args(["-INT", &perf.id().to_string()])
        .status()?;
    perf.wait()?;
    let mut profile = Profile {
        unit: work.unit(),
        ..Profile::default()
    };
    let mut top = std::collections::BTreeMap::<String, f64>::new();
    let mut table = vec![Vec::new(); KINDS.len() + 1];
    for (part, cost) in system.parts().iter().zip(costs) {
        profile.parts.push((part.name, cost));
        let mut shares = vec![0.0; KINDS.len() + 1];
        for (symbol, share) in functions(&data, part.pid())? {
            shares[kind(&symbol)] += share;
            *top.entry(symbol).or_default() += share * cost;
        }
        for (row, share) in table.iter_mut().zip(shares) {
            row.push(share * cost);
        }
    }
    let names = KINDS.iter().map(|(name, _)| *name).chain([REST]);
    profile.rows = names.zip(table).collect();
    profile.top = top.into_iter().collect();
    profile.top.sort_by(|a, b| b.1.total_cmp(&a.1));
    profile.top.truncate(40);
    Ok(profile)
}

fn kind(symbol: &str) -> usize {
    let found = KINDS
        .iter()
        .position(|(_, words)| words.iter().any(|word| symbol.contains(word)));
    found.unwrap_or(KINDS.len())
}

/// The functions of one process and their shares of its samples.
fn functions(data: &Path, pid: u32) -> anyhow::Result<Vec<(String, f64)>> {
    let output = Command::new("perf")
        .args([
            "report",
            "--stdio",
            "--no-children",
            "-g",
            "none",
            "-F",
            "overhead,symbol",
        ])
        .args(["--percentage", "relative", "--pid", &pid.to_string(), "-i"])
        .arg(data)
        .output()?;
    ensure!(output.status.success(), "perf report failed");
    let text = String::from_utf8_lossy(&output.stdout);
    let lines = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.starts_with('#'));
    let parsed = lines.filter_map(|line| {
        let (share, symbol) = line.split_once('%')?;
        let share: f64 = share.trim().parse().ok()?;
        Some((symbol.trim().to_owned(), share / 100.0))
    });
    Ok(parsed.collect())
}
