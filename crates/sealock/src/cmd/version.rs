//! `sealock version` and `sealock completions`.

use clap::CommandFactory;
use serde::Serialize;

use crate::cli::{Cli, Json};
use crate::print;

#[derive(Debug, Serialize)]
struct Version {
    version: &'static str,
    protocol: &'static str,
}

pub(crate) fn run(form: Json) -> anyhow::Result<()> {
    let version = Version {
        version: env!("CARGO_PKG_VERSION"),
        protocol: std::str::from_utf8(sealock_net::tls::alpn::SESSION)?,
    };
    if form.json {
        return print::json(&version);
    }
    print::line(&format!(
        "sealock {} (protocol {})",
        version.version, version.protocol
    ));
    Ok(())
}

pub(crate) fn completions(shell: clap_complete::Shell) -> anyhow::Result<()> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "sealock", &mut text);
    print::line(std::str::from_utf8(&text)?.trim_end());
    Ok(())
}
