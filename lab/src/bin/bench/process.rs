//! What processes cost, as the kernel counts it in /proc.

use std::collections::BTreeMap;
use std::fs;

/// The clock ticks of /proc/PID/stat; Linux fixed them at 100 a second for user space.
const TICKS: f64 = 100.0;

/// Processor time and memory of a set of processes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cost {
    pub(crate) cpu_seconds: f64,
    pub(crate) rss_kib: u64,
}

struct Stat {
    parent: u32,
    ticks: u64,
    /// Of children that ended and were waited for.
    reaped: u64,
}

fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in brackets may hold anything, so fields are counted behind its end.
    let (_, fields) = text.rsplit_once(')')?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    Some(Stat {
        parent: u32::try_from(number(1)?).ok()?,
        ticks: number(11)? + number(12)?,
        reaped: number(13)? + number(14)?,
    })
}

fn all() -> BTreeMap<u32, Stat> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return BTreeMap::new();
    };
    let pids = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| Some((pid, stat(pid)?))).collect()
}

/// The process `root` and all that descend from it.
pub(crate) fn family(root: u32) -> Vec<u32> {
    let all = all();
    let mut family = vec![root];
    let mut index = 0;
    while let Some(&parent) = family.get(index) {
        let children = all.iter().filter(|(_, stat)| stat.parent == parent);
        family.extend(children.map(|(pid, _)| *pid));
        index += 1;
    }
    family
}

/// What a process and its descendants have cost so far.
pub(crate) fn cost(root: u32) -> Cost {
    let mut cost = Cost::default();
    for pid in family(root) {
        if let Some(stat) = stat(pid) {
            cost.cpu_seconds += (stat.ticks + stat.reaped) as f64 / TICKS;
        }
        cost.rss_kib += rss_kib(pid);
    }
    cost
}

fn rss_kib(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    kib.unwrap_or(0)
}
