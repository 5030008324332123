//! `sealock doctor`: which methods of capture this machine allows to this user, each tried for real.

use std::process::Command;

use anyhow::Context;
use serde::Serialize;

use crate::cli::Json;
use crate::cmd::run::{INSIDE, OWN_BINARY};
use crate::failure::Failure;
use crate::print;

#[derive(Debug, Serialize)]
struct Row<'a> {
    method: &'a str,
    usable: bool,
    reason: &'a str,
}

pub(crate) fn run(form: Json) -> anyhow::Result<()> {
    // In a process of its own: this one has threads, and a user namespace can be made by one alone.
    let tried = Command::new(OWN_BINARY)
        .arg(INSIDE)
        .output()
        .context("starting the process that tries methods of capture")?;
    if !tried.status.success() {
        let said = String::from_utf8_lossy(&tried.stderr);
        return Err(Failure::new(said.trim()).into());
    }
    let text = String::from_utf8_lossy(&tried.stdout);
    let rows: Vec<Row<'_>> = text
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(method, reason)| Row {
            method,
            usable: reason.is_empty(),
            reason,
        })
        .collect();
    if form.json {
        return print::json(&rows);
    }
    let cells = rows.iter().map(|row| {
        let usable = if row.usable { "yes" } else { "no" };
        [row.method, usable, row.reason].map(str::to_owned).to_vec()
    });
    let header = ["CAPTURE", "USABLE", "WHY NOT"];
    print::table(&header, cells.collect(), "nothing was tried");
    Ok(())
}
