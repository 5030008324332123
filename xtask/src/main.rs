//! Work on the repository itself: `cargo xtask tidy` checks its rules, and `gen` writes its generated pages.
//!
//! A rule lives here when neither the compiler nor clippy can hold it: which crate may know which, what a file
//! must look like, that tests speak of every reason, and that a generated page is what its source says. Each check
//! is a function from text to findings, so that its tests show it failing. Deliberately absent: anything that builds
//! or releases.

mod coverage;
mod edges;
mod finding;
mod leaks;
mod lex;
mod purity;
mod reference;
mod repository;
mod shape;

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use sealock_core::reason::Reason;

use crate::{finding::Finding, repository::Repository};

#[expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line tool answers on its terminal"
)]
fn main() -> ExitCode {
    let verb = std::env::args().nth(1).unwrap_or_default();
    match run(&verb) {
        Ok(lines) if lines.is_empty() => ExitCode::SUCCESS,
        Ok(lines) => {
            for line in &lines {
                println!("{line}");
            }
            if verb == "tidy" {
                eprintln!("tidy: {} findings", lines.len());
                return ExitCode::FAILURE;
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: &str) -> Result<Vec<String>> {
    let repository = Repository::here()?;
    match verb {
        "tidy" => Ok(tidy(&repository)?.iter().map(Finding::to_string).collect()),
        "gen" => reference::write(repository.root()),
        _ => bail!("usage: cargo xtask tidy|gen"),
    }
}

/// Every check over every file, in the order of the files.
fn tidy(repository: &Repository) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let mut tests = coverage::Tests::default();
    for path in repository.files() {
        let Some(text) = repository.read(path)? else {
            continue;
        };
        findings.extend(leaks::check(path, &text));
        findings.extend(shape::check_path(path));
        findings.extend(purity::check_bans(path, &text));
        if path.ends_with("Cargo.toml") && path != "Cargo.toml" {
            findings.extend(edges::check_manifest(path, &text));
        }
        if path.ends_with(".rs") {
            let source = lex::Source::new(&text);
            findings.extend(shape::check_source(path, &text, &source));
            findings.extend(edges::check_imports(path, &source));
            findings.extend(purity::check_source(path, &source));
            tests.add(path, &text, &source);
        }
    }
    for path in purity::required_files() {
        if repository.read(&path)?.is_none() {
            findings.push(Finding::new(
                &path,
                1,
                "a pure crate has a clippy.toml of its own",
            ));
        }
    }
    let list = repository.read(coverage::LIST)?;
    let list = list.context("the list of the reasons is not where it was")?;
    findings.extend(tests.check(Reason::ALL, &list));
    findings.extend(reference::check(repository.root())?);
    Ok(findings)
}
