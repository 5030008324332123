//! Options of the configuration whose effect only whole programs show.

use std::process::Command;

use jiff::{SignedDuration, Timestamp};
use sealock_control::store::sqlite::{IfMissing, SqliteStore};
use sealock_control::store::{Act, Store};

use crate::program::{
    Deployment, Running, SOON, echo_server, eventually, exchange, free_tcp, free_udp, json, run,
    run_with, sealock, token_of,
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

/// `sealock up` with these variables, and what it tells up to its first token.
fn up(dir: &std::path::Path, environment: &[(&str, &str)]) -> (Running, Vec<String>) {
    let (listen, controller) = (free_udp().to_string(), free_tcp().to_string());
    let arguments = [
        "up",
        "--listen",
        &listen,
        "--controller-listen",
        &controller,
    ];
    let mut command = sealock(dir, &arguments);
    command.envs(environment.iter().copied());
    let up = Running::spawn(command);
    let told = up.lines_until("SLK1-", SOON);
    (up, told)
}

// controller.token_ttl
#[test]
fn a_token_lives_as_long_as_the_configuration_says() {
    let dir = tempfile::tempdir().expect("a directory");
    let (_up, told) = up(dir.path(), &[("SEALOCK_CONTROLLER__TOKEN_TTL", "40m")]);
    let told = told.join("\n");
    assert!(told.contains("within 40 minutes"), "{told}");
    let made = json(&run(dir.path(), &["token", "create", "--json"]).1);
    let ends = made["expires"].as_str().and_then(|at| at.parse().ok());
    let left = ends.map(|ends: Timestamp| ends.duration_since(Timestamp::now()));
    let left = left.expect("a time").as_mins();
    assert!((38..=40).contains(&left), "{left}");
}

// relay.advertise, relay.name
#[test]
fn a_relay_is_called_and_found_as_the_configuration_says() {
    let dir = tempfile::tempdir().expect("a directory");
    let environment = [
        ("SEALOCK_RELAY__ADVERTISE", "relay.example:7443"),
        ("SEALOCK_RELAY__NAME", "eu-1"),
    ];
    let (_up, told) = up(dir.path(), &environment);
    assert_eq!(
        told[0],
        "Agents reach this machine at relay.example:7443 (UDP and TCP)."
    );
    let made = json(&run(dir.path(), &["token", "create", "--json"]).1);
    assert_eq!(made["addresses"], serde_json::json!(["relay.example:7443"]));
    let relays = json(&run(dir.path(), &["relay", "list", "--json"]).1)["relays"].clone();
    assert_eq!(relays[0]["name"], "eu-1");
    assert_eq!(relays[0]["addresses"], made["addresses"]);
}

// controller.advertise
#[test]
fn relays_are_led_to_the_controller_where_the_configuration_says() {
    let dir = tempfile::tempdir().expect("a directory");
    let environment = [("SEALOCK_CONTROLLER__ADVERTISE", "control.example:7444")];
    let _controller = controller(dir.path(), &environment);
    let create = ["token", "create", "--role", "relay", "--json"];
    let made = json(&run(dir.path(), &create).1);
    assert_eq!(
        made["addresses"],
        serde_json::json!(["control.example:7444"])
    );
}

// controller.trust_domain, agent.name
#[test]
fn identities_are_of_the_trust_domain_and_the_name_that_the_configuration_says() {
    let dir = tempfile::tempdir().expect("a directory");
    let environment = [("SEALOCK_CONTROLLER__TRUST_DOMAIN", "corp.example")];
    let (_up, told) = up(dir.path(), &environment);
    let token = token_of(told.last().expect("a line"));
    let state = dir.path().join("agent");
    let mut join = sealock(&state, &["join", token]);
    join.env("SEALOCK_AGENT__NAME", "laptop-1");
    let (code, said, err) = run_with(join, b"");
    assert!(
        code == 0 && said.contains("joined as `laptop-1`"),
        "{said}{err}"
    );
    let agent = Running::start(&state, &["agent"]);
    let line = agent.wait_for("runs");
    assert!(line.contains("spiffe://corp.example/"), "{line}");
}

// controller.tenant
#[test]
fn the_first_tenant_has_the_name_that_the_configuration_says() {
    let dir = tempfile::tempdir().expect("a directory");
    let setting = ("SEALOCK_CONTROLLER__TENANT", "acme");
    let (_up, told) = up(dir.path(), &[setting]);
    let token = token_of(told.last().expect("a line"));
    let state = dir.path().join("agent");
    let (code, _, err) = run(&state, &["join", token, "--name", "first"]);
    assert_eq!(code, 0, "{err}");
    let agent = Running::start(&state, &["agent"]);
    let line = agent.wait_for("runs");
    assert!(line.contains("/acme/"), "{line}");
    // Commands that name no tenant mean it.
    let mut list = sealock(dir.path(), &["agent", "list", "--json"]);
    list.env(setting.0, setting.1);
    let (code, out, err) = run_with(list, b"");
    assert_eq!(code, 0, "{err}");
    assert_eq!(json(&out)["agents"][0]["name"], "first");
}

// relay.max_sessions
#[test]
fn a_relay_takes_as_many_agents_as_the_configuration_says() {
    let deployment = Deployment::start_with(&[], &[("SEALOCK_RELAY__MAX_SESSIONS", "1")]);
    let exposed = deployment.expose("echo");
    let (code, out, err) = deployment.stdio("echo", b"x");
    assert_eq!((code, out.as_str()), (1, ""), "{err}");
    assert!(err.contains("OVERLOADED"), "{err}");
    assert_eq!(exposed.interrupt(), 0);
    let second = Running::start(&deployment.state("consumer"), &["agent"]);
    second.wait_for("runs");
    let ready = || run(&deployment.state("consumer"), &["ready"]).0;
    eventually(ready, |code| *code == 0);
}

// relay.controller
#[test]
fn a_relay_goes_to_the_controller_that_the_configuration_says() {
    let (deployment, moved) = Deployment::split();
    let dir = deployment.dir.path().to_owned();
    let at = deployment.relay.to_string();
    assert_eq!(deployment.up.interrupt(), 0);
    assert_eq!(moved.interrupt(), 0);
    let (public, listen) = (dir.join("public"), free_tcp().to_string());
    let _controller = Running::start(&public, &["controller", "--listen", &listen]);
    let mut command = sealock(&dir.join("relay"), &["relay", "--listen", &at]);
    command.env("SEALOCK_RELAY__CONTROLLER", &listen);
    let _relay = Running::spawn(command);
    let is_connected = || {
        let (_, out, _) = run(&public, &["relay", "list", "--json"]);
        let listed: serde_json::Value = serde_json::from_str(&out).unwrap_or_default();
        listed["relays"][0]["connected"] == true
    };
    eventually(is_connected, |connected| *connected);
}

// log.level
#[test]
fn as_many_log_lines_are_written_as_the_configuration_says() {
    let told = |level: &str| {
        let dir = tempfile::tempdir().expect("a directory");
        let (up, _) = up(dir.path(), &[("SEALOCK_LOG__LEVEL", level)]);
        let (code, told) = up.end();
        assert_eq!(code, 0);
        let has = |level: &str| told.lines().any(|line| line.contains(level));
        (has(" INFO "), has(" DEBUG "))
    };
    assert_eq!(told("error"), (false, false));
    assert_eq!(told("info"), (true, false));
    assert_eq!(told("debug"), (true, true));
}
