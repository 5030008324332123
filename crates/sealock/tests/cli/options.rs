//! Options of the configuration whose effect only whole programs show.

use std::process::Command;

use jiff::{SignedDuration, Timestamp};
use sealock_control::store::sqlite::{IfMissing, SqliteStore};
use sealock_control::store::{Act, Store};

use crate::program::{
    Deployment, Running, echo_server, eventually, exchange, free_tcp, run, sealock,
};

/// `sealock agent` with this configuration file.
fn agent(deployment: &Deployment, name: &str, config: &str) -> Running {
    let file = deployment.dir.path().join(format!("{name}.toml"));
    std::fs::write(&file, config).expect("written");
    let file = file.to_str().expect("text");
    let agent = Running::start(&deployment.state(name), &["--config", file, "agent"]);
    agent.wait_for("runs");
    agent
}

// agent.expose, agent.connect
#[test]
fn an_agent_exposes_and_connects_what_its_configuration_says() {
    let deployment = Deployment::start(&[]);
    let target = echo_server();
    let _provider = agent(
        &deployment,
        "provider",
        &format!(
            "[[agent.expose]]\nservice = \"echo\"\ntarget = \"{target}\"\nlabels = {{ zone = \"a\" }}\n"
        ),
    );
    let listen = free_tcp();
    let _consumer = agent(
        &deployment,
        "consumer",
        &format!("[[agent.connect]]\nservice = \"echo\"\nlisten = \"{listen}\"\n"),
    );
    let answer = eventually(
        || exchange(listen, b"as configured").unwrap_or_default(),
        |answer| !answer.is_empty(),
    );
    assert_eq!(answer, b"as configured");
    let (_, listed, _) = deployment.admin(&["service", "list", "--json"]);
    let listed: serde_json::Value = serde_json::from_str(&listed).expect("JSON");
    assert_eq!(listed["services"][0]["name"], "echo");
    assert_eq!(listed["services"][0]["labels"]["zone"], "a");
    let (_, status, _) = run(&deployment.state("consumer"), &["status", "--json"]);
    let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
    assert_eq!(status["agent"]["connected"][0]["service"], "echo");
}

/// A running controller over a database that was filled before.
fn controller(dir: &std::path::Path, environment: &[(&str, &str)]) -> Running {
    let listen = free_tcp().to_string();
    let mut command = sealock(dir, &["controller", "--listen", &listen]);
    command.envs(environment.iter().copied());
    let running = Running::spawn(command);
    eventually(|| run(dir, &["policy", "list"]).0, |code| *code == 0);
    running
}

/// How many rows of the record are of the time before the start.
fn old_rows(dir: &std::path::Path) -> usize {
    let (code, out, err) = run(dir, &["audit", "--json", "--action", "test"]);
    assert_eq!(code, 0, "{err}");
    let listed: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    listed["rows"].as_array().map(Vec::len).unwrap_or_default()
}

// controller.audit_retention
#[test]
fn audit_rows_are_kept_as_long_as_the_configuration_says() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let dirs: Vec<_> = ["1h", "4h"]
        .into_iter()
        .map(|retention| {
            let dir = tempfile::tempdir().expect("a directory");
            runtime.block_on(with_old_rows(dir.path()));
            // What has ended is dropped at every quarter of a certificate's life.
            let environment = [
                ("SEALOCK_CONTROLLER__AUDIT_RETENTION", retention),
                ("SEALOCK_CONTROLLER__CERTIFICATE_TTL", "10s"),
            ];
            let running = controller(dir.path(), &environment);
            (dir, running)
        })
        .collect();
    let (short, long) = (dirs[0].0.path(), dirs[1].0.path());
    assert_eq!(eventually(|| old_rows(short), |rows| *rows < 3), 1);
    assert_eq!(old_rows(long), 3, "a longer retention keeps them");
    for dir in [short, long] {
        let (code, out, err) = run(dir, &["audit", "verify"]);
        assert!(code == 0 && out.contains("unbroken"), "{out}{err}");
    }
}

/// A database with rows that are three, two and no hours old.
async fn with_old_rows(state: &std::path::Path) {
    let dir = state.join("controller");
    sealock_net::files::ensure_private_dir(&dir).expect("made");
    let store = SqliteStore::open(&dir.join("db.sqlite"), IfMissing::Create).await;
    let store = store.expect("opened");
    let tenant = "default".parse().expect("canonical");
    let ago = |hours| Timestamp::now() - SignedDuration::from_hours(hours);
    let made = Act::done(ago(3), "test", "tenant.add", "default");
    store.add_tenant(&tenant, &[], &made).await.expect("made");
    for hours in [3, 2, 0] {
        let act = Act::done(ago(hours), "admin:0", "test.act", hours);
        store.record(Some(&tenant), &[act]).await.expect("recorded");
    }
    store.close().await;
}

fn logged(format: &str) -> String {
    let deployment = Deployment::start_with(&[], &[("SEALOCK_LOG__FORMAT", format)]);
    let errors = deployment.up.errors();
    assert!(
        errors.contains("ready"),
        "a role tells its states: {errors}"
    );
    errors
}

// log.format
#[test]
fn log_lines_have_the_form_that_the_configuration_says() {
    let json = logged("json");
    for line in json.lines() {
        let line: serde_json::Value = serde_json::from_str(line).expect("one object a line");
        assert!(
            line["level"].is_string() && line["fields"].is_object(),
            "{line}"
        );
    }
    let text = logged("text");
    for line in text.lines() {
        assert!(
            serde_json::from_str::<serde_json::Value>(line).is_err(),
            "{line}"
        );
    }
    let help = Command::new(env!("CARGO_BIN_EXE_sealock"))
        .env("SEALOCK_LOG__FORMAT", "xml")
        .arg("status")
        .output();
    assert_eq!(
        help.expect("it runs").status.code(),
        Some(2),
        "no other form"
    );
}
