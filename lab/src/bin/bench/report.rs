//! The figures, and how they are written down: tables of medians with ratios, in Markdown.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::time::Duration;

use crate::profile::Profile;
use crate::systems::VARIANTS;
use crate::{SHAPES, Shape};

/// Everything that one run measured.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) systems: BTreeMap<&'static str, Figures>,
    pub(crate) memory: BTreeMap<&'static str, Vec<Memory>>,
    pub(crate) idle_streams: usize,
    pub(crate) handshakes: Vec<(usize, f64)>,
    /// A table as it was printed.
    pub(crate) layers: String,
    pub(crate) profiles: Vec<Profile>,
}

/// What one system did, a value a round.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    pub(crate) transfers: BTreeMap<Shape, Transfer>,
    pub(crate) echo: Times,
    pub(crate) first_byte: Times,
    pub(crate) opens: Vec<f64>,
    /// Milliseconds.
    pub(crate) cpu_per_open: Vec<f64>,
}

/// One kind of transfer.
#[derive(Debug, Default)]
pub(crate) struct Transfer {
    /// MB/s.
    pub(crate) rates: Vec<f64>,
    /// Processor seconds per GB of all processes.
    pub(crate) cpu: Vec<f64>,
    pub(crate) parts: BTreeMap<&'static str, Vec<f64>>,
}

/// Quantiles of many times, one pair a round, in milliseconds.
#[derive(Debug, Default)]
pub(crate) struct Times {
    middle: Vec<f64>,
    tail: Vec<f64>,
}

impl Times {
    pub(crate) fn add(&mut self, mut times: Vec<Duration>) {
        times.sort();
        let at = |share: f64| {
            let index = (times.len() as f64 * share) as usize;
            let time = times.get(index.min(times.len().saturating_sub(1)));
            time.map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
        };
        let (middle, tail) = (at(0.5), at(0.99));
        self.middle.push(middle);
        self.tail.push(tail);
    }
}

/// Resident memory of one process, in KiB.
#[derive(Debug)]
pub(crate) struct Memory {
    pub(crate) part: &'static str,
    pub(crate) idle: u64,
    pub(crate) with_some: u64,
    pub(crate) with_double: u64,
}

pub(crate) fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

const PEERS: [&str; 4] = ["loopback", "haproxy", "stunnel", "ssh -L"];
pub(crate) const OURS: &str = "sealock";
const THEIRS: &str = "ssh -L";

/// The systems as the tables list them: ours last.
fn order() -> impl Iterator<Item = &'static str> {
    PEERS
        .into_iter()
        .chain(VARIANTS.map(|variant| variant.name))
}

impl Report {
    pub(crate) fn markdown(&self, options: &BTreeMap<String, String>) -> String {
        let mut out = String::new();
        let known = |name: &str| options.get(name).map_or("unknown", String::as_str);
        line(
            &mut out,
            &format!("# Measured {}, commit {}", known("date"), known("commit")),
        );
        line(&mut out, "");
        line(&mut out, &machine());
        line(&mut out, "");
        if !self.systems.is_empty() {
            self.transfers(&mut out);
            self.latencies(&mut out);
            self.parts(&mut out);
            self.memories(&mut out);
        }
        if !self.handshakes.is_empty() {
            self.shakes(&mut out);
        }
        if !self.layers.is_empty() {
            line(&mut out, "## What the resumable layer costs");
            line(&mut out, "");
            line(
                &mut out,
                "One stream over one leg within one process, without end-to-end encryption, beside the same leg bare.",
            );
            line(&mut out, "");
            line(&mut out, &self.layers);
        }
        for profile in &self.profiles {
            profiled(&mut out, profile);
        }
        out
    }

    fn shakes(&self, out: &mut String) {
        line(out, "## Handshakes");
        line(out, "");
        line(
            out,
            "Agent sessions a second, by one client on the same machine: QUIC with both certificates, Hello, Welcome, close.",
        );
        line(out, "");
        line(out, "| agents at once | sessions/s |");
        line(out, "|---:|---:|");
        for (knockers, rate) in &self.handshakes {
            line(out, &format!("| {knockers} | {rate:.0} |"));
        }
        line(out, "");
    }

    fn ordered(&self) -> impl Iterator<Item = (&'static str, &Figures)> {
        order().filter_map(|name| Some((name, self.systems.get(name)?)))
    }

    fn transfers(&self, out: &mut String) {
        line(
            out,
            "## Throughput, MB/s, and processor seconds per GB of all of a system's processes",
        );
        line(out, "");
        let mut head = "| system |".to_owned();
        for shape in SHAPES {
            head += &format!(" {} | CPU s/GB |", shape.name());
        }
        line(out, &head);
        line(out, &format!("|---|{}", "---:|---:|".repeat(SHAPES.len())));
        for (name, figures) in self.ordered() {
            let mut row = format!("| {name} |");
            for shape in SHAPES {
                let Some(transfer) = figures.transfers.get(&shape) else {
                    continue;
                };
                let (rate, cpu) = (median(&transfer.rates), median(&transfer.cpu));
                row += &format!(" {rate:.0} | {cpu:.2} |");
            }
            line(out, &row);
        }
        for ours in VARIANTS.map(|variant| variant.name) {
            self.ratios(out, ours);
        }
        line(out, "");
    }

    /// One of ours against its peer: rate, and processor time for the same bytes.
    fn ratios(&self, out: &mut String, ours: &str) {
        let mut row = format!("| **{ours} / {THEIRS}** |");
        for shape in SHAPES {
            let transfer = |system| self.systems.get(system)?.transfers.get(&shape);
            let (Some(ours), Some(theirs)) = (transfer(ours), transfer(THEIRS)) else {
                return;
            };
            let rate = median(&ours.rates) / median(&theirs.rates);
            let cpu = median(&ours.cpu) / median(&theirs.cpu);
            row += &format!(" **{rate:.2}** | {cpu:.2} |");
        }
        line(out, &row);
    }

    fn latencies(&self, out: &mut String) {
        line(out, "## Latency, milliseconds, and opens");
        line(out, "");
        line(
            out,
            "| system | echo p50 | echo p99 | first byte p50 | first byte p99 | opens/s | CPU ms per open |",
        );
        line(out, "|---|---:|---:|---:|---:|---:|---:|");
        for (name, figures) in self.ordered() {
            let quantiles = [&figures.echo, &figures.first_byte]
                .map(|times| format!("{:.3} | {:.3}", median(&times.middle), median(&times.tail)));
            line(
                out,
                &format!(
                    "| {name} | {} | {} | {:.0} | {:.2} |",
                    quantiles[0],
                    quantiles[1],
                    median(&figures.opens),
                    median(&figures.cpu_per_open)
                ),
            );
        }
        if let Some(figures) = self.systems.get(OURS) {
            let (echo, first) = (
                median(&figures.echo.middle),
                median(&figures.first_byte.middle),
            );
            line(out, "");
            line(
                out,
                &format!(
                    "First byte against its goal of two round trips through the relay (echo p50) and 1 ms: {first:.2} ms of {:.2} ms.",
                    2.0 * echo + 1.0
                ),
            );
        }
        line(out, "");
    }

    fn parts(&self, out: &mut String) {
        let Some(ours) = self.systems.get(OURS) else {
            return;
        };
        line(out, "## Processor seconds per GB of each of our processes");
        line(out, "");
        line(
            out,
            "| transfer | provider | relay (with controller) | consumer |",
        );
        line(out, "|---|---:|---:|---:|");
        for shape in SHAPES {
            let Some(transfer) = ours.transfers.get(&shape) else {
                continue;
            };
            let mut row = format!("| {} |", shape.name());
            for part in ["provider", "relay", "consumer"] {
                let cost = transfer
                    .parts
                    .get(part)
                    .map_or(f64::NAN, |costs| median(costs));
                row += &format!(" {cost:.2} |");
            }
            line(out, &row);
        }
        line(out, "");
    }

    fn memories(&self, out: &mut String) {
        line(out, "## Memory (RSS), KiB");
        line(out, "");
        line(
            out,
            &format!(
                "| process | idle | {} idle streams | per stream | {} idle streams | per further stream |",
                self.idle_streams,
                2 * self.idle_streams
            ),
        );
        line(out, "|---|---:|---:|---:|---:|---:|");
        let systems = order().filter_map(|name| Some((name, self.memory.get(name)?)));
        for (name, parts) in systems {
            for memory in parts {
                let per = |more: u64, less: u64| {
                    more.saturating_sub(less) as f64 / self.idle_streams as f64
                };
                line(
                    out,
                    &format!(
                        "| {name}: {} | {} | {} | {:.1} | {} | {:.1} |",
                        memory.part,
                        memory.idle,
                        memory.with_some,
                        per(memory.with_some, memory.idle),
                        memory.with_double,
                        per(memory.with_double, memory.with_some),
                    ),
                );
            }
        }
        line(out, "");
    }
}

fn profiled(out: &mut String, profile: &Profile) {
    line(
        out,
        &format!(
            "## Where processor time goes ({}; perf, cpu-clock)",
            profile.unit
        ),
    );
    line(out, "");
    let names: Vec<&str> = profile.parts.iter().map(|(name, _)| *name).collect();
    line(out, &format!("| work | {} | all |", names.join(" | ")));
    line(out, &format!("|---|{}", "---:|".repeat(names.len() + 1)));
    for (kind, costs) in &profile.rows {
        let cells: String = costs.iter().map(|cost| format!(" {cost:.2} |")).collect();
        line(
            out,
            &format!("| {kind} |{cells} {:.2} |", costs.iter().sum::<f64>()),
        );
    }
    let cells: String = profile
        .parts
        .iter()
        .map(|(_, cost)| format!(" {cost:.2} |"))
        .collect();
    let sum: f64 = profile.parts.iter().map(|(_, cost)| cost).sum();
    line(out, &format!("| **together** |{cells} **{sum:.2}** |"));
    line(out, "");
    line(out, "The functions that cost most, over all processes:");
    line(out, "");
    for (symbol, cost) in &profile.top {
        line(out, &format!("- {cost:.3} `{symbol}`"));
    }
    line(out, "");
}

fn line(out: &mut String, text: &str) {
    // Writing to a string cannot fail.
    let _written = writeln!(out, "{text}");
}

/// What the figures were measured on, without its name.
fn machine() -> String {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or("unknown processor", |(_, model)| model.trim());
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib: u64 = memory
        .lines()
        .find_map(|line| {
            line.strip_prefix("MemTotal:")?
                .split_whitespace()
                .next()?
                .parse()
                .ok()
        })
        .unwrap_or_default();
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    // What a distributor adds behind the version says nothing to a reader.
    let kernel = release.split('-').next().unwrap_or_default();
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split_whitespace().next().unwrap_or("?");
    format!(
        "Machine: {cores} × {model}, {} MiB, Linux {}; load average at the end {load}.",
        kib / 1024,
        kernel.trim()
    )
}
