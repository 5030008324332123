//! What a running deployment tells of itself: log lines, access records, metrics, health.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use serde_json::Value;

use crate::program::{
    Deployment, Running, echo_server, eventually, exchange, free_tcp, json, page, run, sealock,
};

const FORMAT: (&str, &str) = ("SEALOCK_LOG__FORMAT", "json");

/// An agent as the role, with log lines for machines.
fn agent(deployment: &Deployment, name: &str) -> Running {
    let mut command = sealock(&deployment.state(name), &["agent"]);
    command.env(FORMAT.0, FORMAT.1);
    let agent = Running::spawn(command);
    agent.wait_for("runs");
    agent
}

/// The log lines that say this.
fn lines(log: &str, message: &str) -> Vec<Value> {
    let lines = log.lines().filter(|line| line.starts_with('{')).map(json);
    let says = |line: &Value| line["fields"]["message"] == message;
    lines.filter(says).collect()
}

/// How many flows ended cleanly.
fn done(log: &str) -> usize {
    let ended = lines(log, "flow ended");
    let is_done = |line: &&Value| line["fields"]["reason"] == "DONE";
    ended.iter().filter(is_done).count()
}

/// What became of the connections that a test made.
#[derive(Debug, Default)]
struct Made {
    carried: usize,
    refused: usize,
}

impl Made {
    /// One more connection; says whether it was carried.
    fn connect(&mut self, at: SocketAddr) -> bool {
        let is_carried = exchange(at, b"a few bytes").is_ok_and(|answer| answer == b"a few bytes");
        if is_carried {
            self.carried += 1;
        } else {
            self.refused += 1;
        }
        is_carried
    }
}

#[test]
fn every_flow_has_one_access_record_at_each_hop_and_stands_in_its_session() {
    let deployment = Deployment::start_with(&[], &[FORMAT]);
    let (provider, consumer) = (
        agent(&deployment, "provider"),
        agent(&deployment, "consumer"),
    );
    let (target, echo, vault) = (echo_server().to_string(), free_tcp(), free_tcp());
    for (service, listen) in [("echo", echo), ("vault", vault)] {
        let expose = ["expose", &target, "--as", service, "--detach"];
        assert_eq!(run(&deployment.state("provider"), &expose).0, 0);
        let connect = [
            "connect",
            service,
            "--listen",
            &listen.to_string(),
            "--detach",
        ];
        let state = deployment.state("consumer");
        eventually(|| run(&state, &connect).0, |code| *code == 0);
    }
    let mut made = Made::default();
    for listen in [echo, vault] {
        eventually(|| made.connect(listen), |is_carried| *is_carried);
    }
    let deny = ["policy", "deny", "consumer", "vault"];
    assert_eq!(deployment.admin(&deny).0, 0);
    eventually(|| made.connect(vault), |is_carried| !is_carried);
    for _ in 0..5 {
        assert!(made.connect(echo) && !made.connect(vault), "{made:?}");
    }
    for running in [&provider, &consumer, &deployment.up] {
        eventually(|| done(&running.errors()), |count| *count >= made.carried);
    }

    let (code, log) = consumer.end();
    assert_eq!(code, 0);
    let (ended, refused) = (lines(&log, "flow ended"), lines(&log, "flow refused"));
    assert_eq!(done(&log), made.carried);
    assert_eq!(ended.len() + refused.len(), made.carried + made.refused);
    let ids: BTreeSet<String> = ended
        .iter()
        .map(|line| line["fields"]["flow_id"].to_string())
        .collect();
    assert_eq!(ids.len(), ended.len(), "one record for one flow");
    let denied = refused
        .iter()
        .map(|line| &line["fields"])
        .filter(|fields| fields["reason"] == "POLICY_DENIED");
    let denied: Vec<_> = denied.collect();
    assert!(denied.len() >= 5, "{refused:?}");
    for fields in denied {
        assert_eq!(fields["service"], "vault");
        assert_eq!(fields["caller"], "consumer");
    }
    let (_, log) = provider.end();
    assert_eq!(done(&log), made.carried, "at the provider");
    let (_, log) = deployment.up.end();
    assert_eq!(done(&log), made.carried, "at the relay");
    in_sessions(&log);
}

/// At the relay each session has one span, with who it is and what carries it, and its flows stand in it.
fn in_sessions(log: &str) {
    let mut numbers = BTreeSet::new();
    let up = lines(log, "session up");
    for line in &up {
        let span = &line["span"];
        assert_eq!(span["name"], "session", "{line}");
        // Whichever got through first on a busy machine.
        let transport = span["transport"].as_str().unwrap_or_default();
        assert!(["quic", "tls", "websocket"].contains(&transport), "{line}");
        let agent = span["agent"].as_str().unwrap_or_default();
        assert!(agent.starts_with("default/"), "{line}");
        assert!(numbers.insert(span["session_id"].to_string()), "{line}");
    }
    assert!(up.len() >= 2, "two agents");
    for line in lines(log, "flow ended") {
        let spans = line["spans"].as_array().expect("a list");
        let names: Vec<_> = spans.iter().map(|span| &span["name"]).collect();
        assert_eq!(names, ["session", "flow"], "{line}");
        assert!(
            numbers.contains(&spans[0]["session_id"].to_string()),
            "{line}"
        );
    }
}

// admin.listen
#[test]
fn an_agent_is_healthy_at_once_and_ready_when_its_relay_is_there() {
    let (deployment, _controller) = Deployment::split();
    let dir = deployment.dir.path().to_owned();
    let at = deployment.relay.to_string();
    assert_eq!(deployment.up.interrupt(), 0);
    let admin = free_tcp();
    let mut command = sealock(&dir.join("consumer"), &["agent"]);
    command.env("SEALOCK_ADMIN__LISTEN", admin.to_string());
    let _agent = Running::spawn(command);
    let health = eventually(|| page(admin, "/healthz"), Option::is_some);
    assert_eq!(health, Some((200, "ok\n".to_owned())));
    let (status, missing) = page(admin, "/readyz").expect("served");
    assert_eq!(status, 503);
    assert!(missing.contains("a session to a relay"), "{missing}");
    let relay = Running::start(&dir.join("relay"), &["relay", "--listen", &at]);
    relay.wait_for("Agents reach");
    let ready = || page(admin, "/readyz").map(|(status, _)| status);
    eventually(ready, |status| *status == Some(200));
    let (_, figures) = page(admin, "/metrics").expect("served");
    assert!(
        figures.contains("sealock_agent_caller_flows_live 0"),
        "{figures}"
    );
}

// F29: the alarm of a view that is not right.
#[test]
fn an_agent_says_by_a_line_and_a_figure_that_its_kept_view_is_damaged() {
    let deployment = Deployment::start(&[]);
    let _exposed = deployment.expose("echo");
    eventually(|| deployment.stdio("echo", b"x").1, |out| out == "x");
    let view = deployment
        .state("consumer")
        .join("agent/views/default.json");
    let kept = std::fs::read_to_string(&view).unwrap_or_default();
    let altered = kept.replacen("allow", "deny", 1);
    std::fs::write(&view, altered).expect("written");
    let admin = free_tcp();
    let mut command = sealock(&deployment.state("consumer"), &["agent"]);
    command.env("SEALOCK_ADMIN__LISTEN", admin.to_string());
    let agent = Running::spawn(command);
    agent.wait_for("runs");
    let told = agent.errors();
    assert!(told.contains("ERROR"), "{told}");
    assert!(
        told.contains("a kept view was not used; nothing is allowed by it"),
        "{told}"
    );
    let (_, figures) = page(admin, "/metrics").expect("served");
    assert!(
        figures.contains("sealock_agent_views_not_taken_total 1\n"),
        "{figures}"
    );
    // The controller sends a good one.
    let ready = || page(admin, "/readyz").map(|(status, _)| status);
    eventually(ready, |status| *status == Some(200));
}
