//! `wire`: carries frames between two TAP devices and treats them badly, as told.
//!
//! `wire --one [NETNS/]DEVICE --other [NETNS/]DEVICE [--seed N] [--script TEXT]` makes both devices, in namespaces
//! that `ip netns` knows, and prints `ready:`. Every further line of its input is a script whose times count from
//! that moment, or `count WORD`, which is answered with what became of the packets. It prints each change when it is
//! made. The devices live as long as the program, which ends only when it is killed or its devices are taken away.
//! Addresses, bridges and routes are for its user to set.
#![expect(clippy::print_stderr, reason = "a tool that says why it ended")]

mod device;
mod pump;

use std::{
    io::{BufRead as _, Write as _, stdin, stdout},
    process::ExitCode,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use lab::{
    wait,
    wire::{
        lane::Heading,
        script::{self, Change},
    },
};

use crate::pump::Pump;

struct Options {
    one: String,
    other: String,
    seed: u64,
    script: Vec<Change>,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("wire: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let options = options(std::env::args().skip(1))?;
    let ends = [device::tap(&options.one)?, device::tap(&options.other)?];
    let began = Instant::now();
    let pump = Arc::new(Pump::new(ends, options.seed, began));
    // What stands at the very beginning is in force before the first frame.
    let (at_once, later) = options
        .script
        .into_iter()
        .partition::<Vec<_>, _>(|change| change.at.is_zero());
    for change in &at_once {
        make(&pump, began, change);
    }
    let ended = pump.start();
    print(&format!(
        "ready: there is {} to {}, seed {}",
        options.one, options.other, options.seed
    ));
    follow(&pump, began, later);
    let listening = Arc::clone(&pump);
    thread::spawn(move || listen(&listening, began));
    // A device that was taken away ends the program; nothing else does.
    ended
        .recv()
        .unwrap_or_else(|_| bail!("the threads of the wire have ended"))
}

fn options(mut words: impl Iterator<Item = String>) -> Result<Options> {
    let (mut one, mut other, mut seed, mut script) = (None, None, 1, Vec::new());
    while let Some(word) = words.next() {
        let value = words.next().with_context(|| format!("{word} what?"))?;
        match word.as_str() {
            "--one" => one = Some(value),
            "--other" => other = Some(value),
            "--seed" => seed = value.parse().context("the seed")?,
            "--script" => script = script::parse(&value)?,
            _ => bail!("{word} is none of --one, --other, --seed, --script"),
        }
    }
    Ok(Options {
        one: one.context("--one [NETNS/]DEVICE is missing")?,
        other: other.context("--other [NETNS/]DEVICE is missing")?,
        seed,
        script,
    })
}

/// Makes changes as their times come, on a thread of its own.
fn follow(pump: &Arc<Pump>, began: Instant, changes: Vec<Change>) {
    if changes.is_empty() {
        return;
    }
    let (pump, from) = (Arc::clone(pump), Instant::now());
    thread::spawn(move || {
        for change in changes {
            wait::pause(change.at.saturating_sub(from.elapsed()));
            make(&pump, began, &change);
        }
    });
}

fn make(pump: &Pump, began: Instant, change: &Change) {
    for heading in Heading::ALL {
        if change.concerns(heading) {
            pump.apply(heading, change.setting);
        }
    }
    print(&format!(
        "at {:.3}s: {change}",
        began.elapsed().as_secs_f64()
    ));
}

/// Follows the lines of the input. Its end is no reason to end: the input of a program without a user is empty.
fn listen(pump: &Arc<Pump>, began: Instant) {
    for line in stdin().lock().lines() {
        let Ok(line) = line else {
            return;
        };
        if let Some(word) = line.strip_prefix("count ") {
            for heading in Heading::ALL {
                print(&format!(
                    "counted {word} {heading}: {}",
                    pump.tally(heading)
                ));
            }
            continue;
        }
        match script::parse(&line) {
            Ok(changes) => {
                let (at_once, later) = changes
                    .into_iter()
                    .partition::<Vec<_>, _>(|change| change.at == Duration::ZERO);
                for change in &at_once {
                    make(pump, began, change);
                }
                follow(pump, began, later);
            }
            Err(error) => eprintln!("wire: {error:#}"),
        }
    }
}

fn print(line: &str) {
    // A reader that has gone away is no reason to stop carrying.
    writeln!(stdout().lock(), "{line}").ok();
}
