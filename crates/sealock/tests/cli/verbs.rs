//! Each verb as its user meets it: what it prints and how it ends.

use std::process::Command;
use std::time::{Duration, Instant};

use assert_cmd::assert::OutputAssertExt;

use crate::program::{
    Deployment, Running, echo_server, eventually, exchange, free_tcp, page, run, sealock, token_of,
};

#[test]
fn bytes_go_both_ways_through_a_port_and_through_standard_input_and_output() {
    let deployment = Deployment::start(&[]);
    let _exposed = deployment.expose("echo");
    let listen = free_tcp();
    let arguments = ["connect", "echo", "--listen", &listen.to_string()];
    let connected = Running::start(&deployment.state("consumer"), &arguments);
    connected.wait_for("listening on");
    let bytes: Vec<u8> = (0..1_000_000u32).map(|n| (n % 251) as u8).collect();
    let answer = eventually(
        || exchange(listen, &bytes).unwrap_or_default(),
        |it| !it.is_empty(),
    );
    assert!(answer == bytes, "the echo differs");
    assert_eq!(
        deployment.stdio("echo", b"hello"),
        (0, "hello".to_owned(), String::new())
    );
    assert_eq!(connected.interrupt(), 0);
    assert_eq!(deployment.up.interrupt(), 0);
}

#[test]
fn a_denied_open_ends_with_3_and_its_reason_and_not_one_byte_on_standard_output() {
    let deployment = Deployment::start(&[]);
    let _exposed = deployment.expose("echo");
    assert_eq!(
        deployment.admin(&["policy", "deny", "consumer", "echo"]).0,
        0
    );
    let (code, out, err) = eventually(|| deployment.stdio("echo", b"hello"), |it| it.0 != 0);
    assert_eq!((code, out.as_str()), (3, ""));
    assert!(err.contains("POLICY_DENIED"), "{err}");
    assert!(err.contains("hint: `sealock why consumer echo`"), "{err}");
    let listen = free_tcp().to_string();
    let arguments = ["connect", "echo", "--listen", &listen];
    let (code, out, err) = run(&deployment.state("consumer"), &arguments);
    assert_eq!((code, out.as_str()), (3, ""), "{err}");
    let (code, out, _) = deployment.admin(&["why", "consumer", "echo"]);
    assert_eq!(code, 3);
    assert!(out.starts_with("no: denied by rule"), "{out}");
    // Both processes are gone, and told what they had decided before they went.
    let (_, out, _) = deployment.admin(&["audit", "--json", "--action", "flow.open"]);
    let listed: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    let rows = listed["rows"].as_array().cloned().unwrap_or_default();
    let of_consumer = |row: &&serde_json::Value| {
        let text = row.to_string();
        text.contains("POLICY_DENIED") && text.contains("consumer")
    };
    assert_eq!(rows.iter().filter(of_consumer).count(), 2, "{out}");
}

// F27: the log of those on the way tells a flow that ended as it should from one whose caller was lost.
#[test]
fn a_flow_over_standard_input_and_output_ends_as_done_for_everybody() {
    let deployment = Deployment::start_with(&[], &[("RUST_LOG", "info")]);
    let target = echo_server().to_string();
    let state = deployment.state("provider");
    let mut expose = sealock(&state, &["expose", &target, "--as", "echo"]);
    expose.env("RUST_LOG", "info");
    let exposed = Running::spawn(expose);
    exposed.wait_for("exposed");
    let ended = |log: &str| log.matches("flow ended").count();
    for count in 1..=5 {
        assert_eq!(deployment.stdio("echo", b"hello").0, 0);
        for log in [&deployment.up, &exposed] {
            eventually(|| ended(&log.errors()), |seen| *seen == count);
            assert!(!log.errors().contains("PEER_LOST"), "{}", log.errors());
        }
    }
    let log = deployment.up.errors();
    assert_eq!(log.matches("DONE").count(), 5, "{log}");
}

#[test]
fn a_closed_start_allows_nothing_until_a_rule_does() {
    let deployment = Deployment::start(&["--closed"]);
    let _exposed = deployment.expose("echo");
    assert_eq!(deployment.stdio("echo", b"hello").0, 3);
    assert_eq!(
        deployment.admin(&["policy", "allow", "consumer", "echo"]).0,
        0
    );
    let (_, out, _) = eventually(|| deployment.stdio("echo", b"hello"), |it| it.0 == 0);
    assert_eq!(out, "hello");
}

#[test]
fn a_second_expose_uses_the_first_ones_agent_and_takes_its_place_when_it_ends() {
    let deployment = Deployment::start(&[]);
    let first = deployment.expose("one");
    let second = deployment.expose("two");
    assert_eq!(deployment.stdio("two", b"a").1, "a");
    assert_eq!(first.interrupt(), 0);
    second.wait_for("exposed `two`");
    eventually(|| deployment.stdio("two", b"b").1, |out| out == "b");
    let (code, _, err) = deployment.stdio("one", b"c");
    assert!(code != 0 && err.contains("NO_SUCH_SERVICE"), "{code} {err}");
}

#[test]
fn the_list_of_services_tells_how_each_provider_wants_to_be_chosen() {
    let deployment = Deployment::start(&[]);
    let provider = deployment.state("provider");
    let agent = Running::start(&provider, &["agent"]);
    agent.wait_for("runs");
    let target = echo_server().to_string();
    let expose = ["expose", &target, "--as", "echo", "--detach"];
    let terms = ["--weight", "3", "--standby", "--sticky"];
    let (code, _, err) = run(&provider, &[&expose[..], &terms[..]].concat());
    assert_eq!(code, 0, "{err}");
    let (_, out, _) = deployment.admin(&["service", "list"]);
    assert!(out.contains("echo (sticky)"), "{out}");
    assert!(out.contains("provider (weight 3, standby)"), "{out}");
    let (code, _, err) = run(&provider, &[&expose[..], &["--weight", "0"]].concat());
    assert!(code != 0 && err.contains("1 to 256"), "{code} {err}");
}

#[test]
fn a_running_agent_takes_expose_and_connect_and_keeps_them_when_detached() {
    let deployment = Deployment::start(&[]);
    let provider = deployment.state("provider");
    let agent = Running::start(&provider, &["agent"]);
    agent.wait_for("runs");
    let target = echo_server().to_string();
    let expose = ["expose", &target, "--as", "echo", "--detach"];
    let (code, out, err) = run(&provider, &expose);
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("exposed `echo`"), "{out}");
    eventually(|| deployment.stdio("echo", b"x").1, |out| out == "x");
    let (code, _, err) = run(&provider, &expose);
    assert_eq!(code, 1);
    assert!(err.contains("already") && err.contains("hint:"), "{err}");
    let (_, out, _) = run(&provider, &["status", "--json"]);
    let status: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(status["agent"]["exposed"][0]["service"], "echo");
    assert_eq!(status["agent"]["sessions"][0]["up"], true);
    assert_eq!(run(&provider, &["ready"]).0, 0);
}

#[test]
fn nothing_is_left_to_an_agent_that_ends_with_another_terminal() {
    let deployment = Deployment::start(&[]);
    let provider = deployment.state("provider");
    let _foreground = deployment.expose("one");
    let (target, listen) = (echo_server().to_string(), free_tcp().to_string());
    for arguments in [
        ["expose", &target, "--as", "two", "--detach"],
        ["connect", "one", "--listen", &listen, "--detach"],
    ] {
        let (code, out, err) = run(&provider, &arguments);
        assert_eq!((code, out.as_str()), (1, ""), "{err}");
        assert!(err.contains("ends with it"), "{err}");
        let hint = err.lines().last().unwrap_or_default();
        assert!(
            hint.contains("hint: ") && hint.contains("`sealock agent`"),
            "{err}"
        );
    }
    let (_, out, _) = run(&provider, &["status", "--json"]);
    let status: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    let exposed = status["agent"]["exposed"].as_array().map(Vec::len);
    assert_eq!(exposed, Some(1), "{out}");
}

#[test]
fn whoever_is_away_is_named_and_soon() {
    let (deployment, controller) = Deployment::split();
    let _exposed = deployment.expose("echo");
    eventually(|| deployment.stdio("echo", b"x").1, |out| out == "x");
    let token = deployment.token();
    drop(controller);
    let join = |state: &str| {
        let began = Instant::now();
        let (code, out, err) = run(
            &deployment.state(state),
            &["join", &token, "--name", "late"],
        );
        assert_eq!((code, out.as_str()), (4, ""), "{err}");
        assert!(
            began.elapsed() < Duration::from_secs(7),
            "{:?}",
            began.elapsed()
        );
        err
    };
    let err = join("late");
    assert!(err.contains("CONTROLLER_UNREACHABLE"), "{err}");
    assert!(err.contains("hint: is the controller running?"), "{err}");
    // What is known works without it.
    assert_eq!(deployment.stdio("echo", b"y").1, "y");
    let (consumer, relay) = (deployment.state("consumer"), deployment.up.interrupt());
    assert_eq!(relay, 0);
    let late = run(&deployment.dir.path().join("late"), &["join", &token]);
    assert!(late.2.contains("RELAY_UNREACHABLE"), "{}", late.2);
    assert!(
        late.2.contains("start it there with --public HOST"),
        "{}",
        late.2
    );
    for err in [&err, &late.2] {
        assert!(!err.contains("tonic"), "a library's words: {err}");
    }
    let began = Instant::now();
    let (code, out, err) = run(&consumer, &["connect", "echo", "--stdio"]);
    assert_eq!((code, out.as_str()), (4, ""), "{err}");
    assert!(
        err.contains("RELAY_UNREACHABLE") && err.contains("hint: "),
        "{err}"
    );
    assert!(
        began.elapsed() < Duration::from_secs(6),
        "{:?}",
        began.elapsed()
    );
}

// F41: the machine that was put out says of its services what its callers find.
#[test]
fn a_machine_that_another_one_with_its_identity_put_out_shows_its_services_as_refused() {
    let admin = free_tcp();
    let listen = admin.to_string();
    let deployment = Deployment::start_with(&[], &[("SEALOCK_ADMIN__LISTEN", &listen)]);
    let put_out = deployment.expose("echo");
    let (older, clone) = (deployment.state("provider"), deployment.state("clone"));
    // A file that the running agent is just replacing goes away under the copy; then the copy is made again.
    let copy = || {
        std::fs::remove_dir_all(&clone).ok();
        let copied = Command::new("cp").arg("-a").args([&older, &clone]).status();
        copied.expect("cp runs").success()
    };
    eventually(copy, |whole| *whole);
    std::fs::remove_file(clone.join("agent/agent.sock")).ok();
    let target = echo_server().to_string();
    let _newer = Running::start(&clone, &["expose", &target, "--as", "echo"]);
    let status = || {
        let (_, out, _) = run(&older, &["status", "--json"]);
        let status: serde_json::Value = serde_json::from_str(&out).expect("JSON");
        status["agent"]["exposed"][0].clone()
    };
    let row = eventually(status, |row| row["reason"] == "SUPERSEDED");
    assert_eq!(row["registered"], false, "{row}");
    eventually(|| deployment.stdio("echo", b"new").1, |out| out == "new");
    // Whoever looks after the two machines is alarmed: by a line on either side, and by a figure.
    for (node, line) in [
        (&put_out, "another machine uses this agent's identity"),
        (&deployment.up, "another process took this agent's place"),
    ] {
        eventually(|| node.errors(), |told| told.contains(line));
    }
    let (_, figures) = page(admin, "/metrics").expect("served");
    assert!(
        figures.contains("sealock_relay_agents_superseded_total 1\n"),
        "{figures}"
    );
}

#[test]
fn every_listing_is_json_when_asked() {
    let deployment = Deployment::start(&[]);
    let _exposed = deployment.expose("echo");
    for (verb, list) in [
        (&["agent", "list", "--json"][..], "agents"),
        (&["service", "list", "--json"], "services"),
        (&["relay", "list", "--json"], "relays"),
        (&["policy", "list", "--json"], "rules"),
        (&["audit", "--json"], "rows"),
    ] {
        let (code, out, _) = deployment.admin(verb);
        let listed: serde_json::Value = serde_json::from_str(&out).expect("JSON");
        let rows = listed[list].as_array().map(Vec::len).unwrap_or_default();
        assert!(code == 0 && rows > 0, "{verb:?}: {out}");
    }
    let (code, out, _) = deployment.admin(&["audit", "verify"]);
    assert!(code == 0 && out.contains("unbroken"), "{out}");
}

#[test]
fn a_token_lets_one_machine_in_once_and_only_in_its_role() {
    let deployment = Deployment::start(&[]);
    let (_, line, _) = deployment.admin(&["token", "create"]);
    let token = token_of(&line);
    let join = |state: &str, token: &str, more: &[&str]| {
        let arguments = [&["join", token], more].concat();
        run(&deployment.state(state), &arguments)
    };
    assert_eq!(join("third", token, &[]).0, 0);
    let (code, out, err) = join("fourth", token, &[]);
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(
        err.contains("TOKEN_INVALID") && err.contains("hint: make a new token"),
        "{err}"
    );
    let (code, _, err) = join("third", token, &[]);
    assert!(code == 1 && err.contains("--force"), "{err}");
    let relay = ["token", "create", "--role", "relay"];
    let (_, line, _) = deployment.admin(&relay);
    let (code, _, err) = join("fourth", token_of(&line), &[]);
    assert!(
        code == 2 && err.contains("lets in a relay, not an agent"),
        "{err}"
    );
    let (_, line, err) = deployment.admin(&["token", "create"]);
    assert!(err.contains("this machine alone"), "it is loopback: {err}");
    let relay = ["relay", "--token", token_of(&line)];
    let (code, _, err) = run(&deployment.state("relay-2"), &relay);
    assert!(
        code == 2 && err.contains("lets in an agent, not a relay"),
        "{err}"
    );
}

/// What a user may get wrong before anything runs: the exit code and a text that names what to do.
#[test]
fn wrong_usage_ends_with_2_and_names_what_to_do() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("sealock.toml");
    std::fs::write(&file, "[relay]\nlisen = \"0.0.0.0:1\"\n").expect("written");
    let file = file.to_str().expect("text");
    for (arguments, wanted) in [
        (&["expoze"][..], "expose"),
        (&["expose", "3000"], "--as"),
        (&["expose", "http://x", "--as", "web"], "HOST:PORT"),
        (
            &["expose", "3000", "--as", "Web"],
            "a-z, 0-9 and inner hyphens",
        ),
        (&["connect", "web"], "--listen <[HOST:]PORT>|--stdio"),
        (&["connect", "web", "--listen", "70000"], "1 to 65535"),
        (&["join"], "<TOKEN>"),
        (&["join", "hello"], "begins with SLK1-"),
        (&["join", "SLK1-AAAA"], "copy it again"),
        (&["join", "SLK1-AA!A"], "was it copied whole?"),
        (&["up", "--listen", "here"], "IP:PORT"),
        (
            &["config", "check", "--config", file],
            "did you mean `relay.listen`?",
        ),
        (&["--config", file, "up"], "sealock.toml:2"),
        (&["--config", "/nowhere", "status"], "SEALOCK_CONFIG"),
        (&["policy", "test", "/nowhere"], "cannot be read"),
        (&["token", "create", "--ttl", "1s"], "10s to 7d"),
    ] {
        let (code, out, err) = run(dir.path(), arguments);
        assert_eq!((code, out.as_str()), (2, ""), "{arguments:?}: {err}");
        assert!(err.contains(wanted), "{arguments:?}: {err}");
    }
    sealock(dir.path(), &["status"])
        .env("SEALOCK_RELAY__LISEN", "1")
        .assert()
        .code(2);
}

#[test]
fn verbs_without_their_counterpart_fail_with_a_hint() {
    let dir = tempfile::tempdir().expect("a directory");
    for (arguments, hint) in [
        (&["token", "create"][..], "sealock up"),
        (&["policy", "list"], "sealock up"),
        (&["status"], "sealock join SLK1-"),
        (&["ready"], "sealock join SLK1-"),
        (&["agent"], "sealock join SLK1-"),
        (&["relay"], "sealock token create --role relay"),
        (&["expose", "3000", "--as", "web"], "sealock join SLK1-"),
        (&["connect", "web", "--stdio"], "sealock join SLK1-"),
        (
            &["expose", "3000", "--as", "web", "--detach"],
            "sealock agent",
        ),
    ] {
        let (code, out, err) = run(dir.path(), arguments);
        assert_eq!((code, out.as_str()), (1, ""), "{arguments:?}: {err}");
        let last = err.lines().last().unwrap_or_default();
        assert!(
            last.starts_with("hint: ") && last.contains(hint),
            "{arguments:?}: {err}"
        );
    }
}

#[test]
fn a_policy_file_is_tested_without_a_controller() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("policy.toml");
    let policy = |expect: &str| {
        format!(
            "[[rule]]\nid = \"a\"\neffect = \"allow\"\ncallers = [\"cart\"]\nservices = [\"db\"]\n\n\
             [[test]]\ncaller = \"cart\"\nservice = \"db\"\nexpect = \"{expect}\"\n"
        )
    };
    let test = ["policy", "test", file.to_str().expect("text")];
    std::fs::write(&file, policy("allow")).expect("written");
    let (code, out, err) = run(dir.path(), &test);
    assert_eq!((code, out.as_str()), (0, "1 test(s), 0 failed\n"), "{err}");
    std::fs::write(&file, policy("deny")).expect("written");
    let (code, out, _) = run(dir.path(), &test);
    assert!(code == 1 && out.contains("expected deny"), "{out}");
}
