//! What must never be in a log, at whatever level.

use std::io;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use parking_lot::Mutex;
use sealock_control::controller::Starter;
use sealock_core::api::token::CreateRequest;
use sealock_core::identity::Role;
use sealock_core::token::JoinToken;
use sealock_net::identity::IdentityDir;
use sealock_net::join::{self, Naming};
use sealock_net::task::Scope;
use sealock_proto::wire::SessionKind;
use tracing_subscriber::filter::LevelFilter;

use crate::deployment::{Deployment, address, any_port, eventually, expose_echo};

#[derive(Debug, Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The lines of every private key below `dir`.
fn key_lines(dir: &Path, found: &mut Vec<String>) -> Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            key_lines(&path, found)?;
        } else if let Ok(text) = std::fs::read_to_string(&path)
            && text.contains("PRIVATE KEY-----")
        {
            let lines = text.lines().filter(|line| !line.starts_with("-----"));
            found.extend(lines.map(str::to_owned));
        }
    }
    Ok(())
}

// S72, C16: one thread, so that everything there is to log comes by here.
#[tokio::test(flavor = "current_thread")]
async fn no_secret_is_logged_at_trace_from_the_join_to_the_end_of_a_flow() -> Result<()> {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(LevelFilter::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let tasks = Scope::new("test");
    let deployment = Deployment::start(Starter::Open).await?;
    let request = CreateRequest {
        role: Role::Agent,
        name: Some("provider".to_owned()),
        ..CreateRequest::default()
    };
    let created = deployment.controller.create_token(request).await;
    let text = created.map_err(|error| anyhow::anyhow!("{error}"))?.text;
    let token: JoinToken = text.parse()?;
    let dir = IdentityDir::open(deployment.state.path().join("provider"))?;
    join::join_agent(&token, Naming::default(), &dir, &Default::default()).await?;
    let spent = join::join_agent(&token, Naming::default(), &dir, &Default::default()).await;
    ensure!(spent.is_err(), "a token is good for one join");
    let provider = deployment.agent("provider", SessionKind::Full).await?;
    let caller = deployment.agent("caller", SessionKind::CallerOnly).await?;
    expose_echo(&provider, &tasks).await?;
    let listen = address(&caller.connect("echo".parse()?, &any_port()).await?)?;
    let plaintext = b"the-plaintext-of-a-flow";
    eventually(listen, plaintext).await?;

    let secret = token.secret.expose();
    let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    let list = format!("{secret:?}");
    let list = list.trim_matches(['[', ']']).to_owned();
    let mut secrets = vec![
        text.trim_start_matches("SLK1-").to_owned(),
        hex,
        list,
        String::from_utf8_lossy(plaintext).into_owned(),
    ];
    key_lines(deployment.state.path(), &mut secrets)?;
    ensure!(secrets.len() > 8, "the keys were not found");
    let logged = String::from_utf8_lossy(&log.0.lock()).into_owned();
    ensure!(logged.contains("session up"), "nothing was captured");
    ensure!(logged.contains("TRACE"), "nothing was captured at TRACE");
    for secret in secrets.iter().filter(|secret| secret.len() >= 12) {
        if let Some(at) = logged.find(secret.as_str()) {
            let line = logged[..at].lines().last().context("a line")?;
            anyhow::bail!("a secret is in the log, after: {line}");
        }
    }
    Ok(())
}
