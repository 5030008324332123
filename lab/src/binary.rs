//! Where the `sealock` program under test is, and that it is the one of this source.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use anyhow::{Context, Result, anyhow, ensure};

/// Names a program that was built already; without it the lab asks cargo once per test process.
pub const BIN_VARIABLE: &str = "SEALOCK_BIN";

/// The path of the program under test, built first when nobody says that it is.
///
/// # Errors
///
/// Fails when it cannot be built or is not there.
pub fn sealock() -> Result<&'static Path> {
    static PATH: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let found = PATH.get_or_init(|| locate().map_err(|error| format!("{error:#}")));
    found.as_deref().map_err(|error| anyhow!("{error}"))
}

#[expect(
    clippy::disallowed_methods,
    reason = "the lab's own configuration, read at this one place"
)]
fn locate() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(BIN_VARIABLE) {
        let path = PathBuf::from(path);
        ensure!(
            path.is_file(),
            "{BIN_VARIABLE} names no file: {}",
            path.display()
        );
        return Ok(path);
    }
    build()
}

/// Where cargo puts the programs of the profile that the running test was built in.
///
/// # Errors
///
/// Fails when the test does not lie where cargo puts tests.
pub(crate) fn profile_directory() -> Result<PathBuf> {
    let test = std::env::current_exe().context("finding the test program")?;
    // target/<profile>/deps/<test>
    let profile = test.ancestors().nth(2);
    Ok(profile
        .context("the test lies in cargo's target directory")?
        .to_owned())
}

/// An example of the workspace, which `cargo build --all-targets` has built.
///
/// # Errors
///
/// Fails when it was not built.
pub fn example(name: &str) -> Result<PathBuf> {
    let path = profile_directory()?.join("examples").join(name);
    ensure!(
        path.is_file(),
        "there is no {}: cargo build --workspace --all-targets",
        path.display()
    );
    Ok(path)
}

fn build() -> Result<PathBuf> {
    let profile = profile_directory()?;
    let target = profile
        .parent()
        .context("a profile lies in the target directory")?;
    let name = match profile.file_name().and_then(|name| name.to_str()) {
        Some("debug") => "dev",
        Some(name) => name,
        None => "dev",
    };
    crate::node::say(&format!("lab: cargo build --bin sealock (profile {name})"));
    let output = Command::new("cargo")
        .args([
            "build",
            "--quiet",
            "--workspace",
            "--bin",
            "sealock",
            "--profile",
            name,
            "--target-dir",
        ])
        .arg(target)
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .output()
        .context("running cargo build")?;
    ensure!(
        output.status.success(),
        "the program under test does not build:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let path = profile.join("sealock");
    ensure!(path.is_file(), "cargo built no {}", path.display());
    Ok(path)
}
