//! What verbs print: the words for people and the JSON for scripts.

use std::process::Command;

use jiff::{SignedDuration, Timestamp};

use crate::program::{
    Deployment, Running, SOON, echo_server, eventually, free_tcp, free_udp, json, run, run_with,
    sealock, token_of,
};

#[test]
fn completions_are_a_script_that_the_shell_takes() {
    let dir = tempfile::tempdir().expect("a directory");
    for shell in ["bash", "zsh", "fish"] {
        let (code, script, err) = run(dir.path(), &["completions", shell]);
        assert_eq!(code, 0, "{err}");
        for verb in ["expose", "connect", "completions"] {
            assert!(script.contains(verb), "{shell}: {verb} is missing");
        }
        if shell == "bash" {
            let mut bash = Command::new("bash");
            bash.args(["-c", "eval \"$(cat)\" && complete -p sealock"]);
            let (code, out, err) = run_with(bash, script.as_bytes());
            assert!(code == 0 && out.contains("sealock"), "{out}{err}");
        }
    }
    assert_eq!(run(dir.path(), &["completions", "cmd"]).0, 2);
}

#[test]
fn a_version_is_told_to_people_and_to_scripts() {
    let dir = tempfile::tempdir().expect("a directory");
    let (code, out, _) = run(dir.path(), &["version"]);
    let version = env!("CARGO_PKG_VERSION");
    assert!(
        code == 0 && out.starts_with(&format!("sealock {version} (protocol ")),
        "{out}"
    );
    let (code, told, _) = run(dir.path(), &["version", "--json"]);
    let told = json(&told);
    assert_eq!((code, &told["version"]), (0, &version.into()));
    let protocol = told["protocol"].as_str().expect("a text");
    assert!(out.contains(protocol), "{out}");
}

#[test]
fn the_configuration_is_explained_with_where_each_value_came_from() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("sealock.toml");
    std::fs::write(&file, "\n[relay]\nlisten = \"127.0.0.1:17443\"\n").expect("written");
    let file = file.to_str().expect("text");
    let explain = |more: &[&str]| {
        let arguments = [&["--config", file, "config", "explain"], more].concat();
        let mut command = sealock(dir.path(), &arguments);
        command.env("SEALOCK_LOG__LEVEL", "debug");
        let (code, out, err) = run_with(command, b"");
        assert_eq!(code, 0, "{err}");
        out
    };
    let told = explain(&[]);
    for line in [
        &format!("relay.listen = 127.0.0.1:17443  [{file}:3]"),
        "log.level = debug  [SEALOCK_LOG__LEVEL]",
        "relay.max_sessions = 10000  [default]",
        "relay.region = not set: no region: the distance alone decides  [default]",
    ] {
        assert!(told.lines().any(|told| told == line), "«{line}» in {told}");
    }
    let rows = json(&explain(&["--json"]));
    let row = |key: &str| {
        let rows = rows.as_array().expect("a list");
        rows.iter()
            .find(|row| row["key"] == key)
            .expect("explained")
            .clone()
    };
    assert_eq!(row("relay.listen")["value"], "127.0.0.1:17443");
    assert_eq!(row("relay.listen")["origin"], format!("{file}:3"));
    assert_eq!(row("log.level")["origin"], "SEALOCK_LOG__LEVEL");
    assert!(row("relay.region")["value"].is_null());
    assert_eq!(row("relay.max_sessions")["origin"], "default");
}

const RULE: &str =
    "[[rule]]\nid = \"a\"\neffect = \"allow\"\ncallers = [\"consumer\"]\nservices = [\"echo\"]\n";

fn case(expect: &str) -> String {
    format!("\n[[test]]\ncaller = \"consumer\"\nservice = \"echo\"\nexpect = \"{expect}\"\n")
}

#[test]
fn the_tests_of_a_policy_file_are_told_to_scripts() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("policy.toml");
    std::fs::write(&file, format!("{RULE}{}{}", case("allow"), case("deny"))).expect("written");
    let (code, out, err) = run(
        dir.path(),
        &["policy", "test", file.to_str().expect("text"), "--json"],
    );
    assert!(code == 1 && err.contains("1 test(s) failed"), "{err}");
    let rows = json(&out);
    let passed: Vec<_> = rows
        .as_array()
        .expect("a list")
        .iter()
        .map(|row| &row["passed"])
        .collect();
    assert_eq!(passed, [true, false]);
    assert_eq!(rows[1]["expect"], "deny");
}

#[test]
fn a_policy_file_is_applied_whole_or_not_at_all_and_says_what_changed() {
    let deployment = Deployment::start(&["--closed"]);
    let file = deployment.state("policy.toml");
    let path = file.to_str().expect("text");
    let apply = |text: &str, more: &[&str]| {
        std::fs::write(&file, text).expect("written");
        deployment.admin(&[&["policy", "apply", path], more].concat())
    };
    let rules = || json(&deployment.admin(&["policy", "list", "--json"]).1)["rules"].clone();
    let (code, out, _) = apply(&format!("{RULE}{}", case("deny")), &[]);
    assert_eq!((code, out.as_str()), (1, ""));
    let (code, out, err) = apply(RULE, &["--dry-run"]);
    assert_eq!(code, 0, "{err}");
    assert_eq!(out, "would be added: a: consumer may open echo\n");
    assert_eq!(rules(), serde_json::json!([]), "nothing was applied so far");
    let (code, out, err) = apply(RULE, &["--json"]);
    assert_eq!(code, 0, "{err}");
    assert_eq!(json(&out)["added"][0]["id"], "a");
    assert_eq!(apply(RULE, &[]).1, "nothing differs\n");
    let other = RULE.replace("echo", "web");
    assert_eq!(apply(&other, &[]).1, "changed: a: consumer may open web\n");
    assert_eq!(rules()[0]["rule"]["services"][0], "web");
    assert_eq!(rules()[0]["origin"], "file");
    assert_eq!(apply("", &[]).1, "removed: a: consumer may open web\n");
    assert_eq!(rules(), serde_json::json!([]));
}

#[test]
fn why_answers_scripts_as_it_answers_people() {
    let deployment = Deployment::start(&[]);
    let _exposed = deployment.expose("echo");
    let why = || deployment.admin(&["why", "consumer", "echo", "--json"]);
    let (code, out, err) = why();
    assert_eq!((code, &json(&out)["allowed"]), (0, &true.into()), "{err}");
    let deny = ["policy", "deny", "consumer", "echo", "--id", "no"];
    assert_eq!(deployment.admin(&deny).0, 0);
    let (code, out, _) = why();
    let answer = json(&out);
    assert_eq!((code, &answer["allowed"]), (3, &false.into()));
    assert_eq!(answer["reason"], "POLICY_DENIED");
    let rules = answer["rules"].as_array().expect("a list");
    let denies = |rule: &serde_json::Value| rule["id"] == "no" && rule["applies"] == true;
    assert!(rules.iter().any(denies), "{answer}");
}

#[test]
fn a_rule_speaks_of_a_place_outside_and_why_explains_it() {
    let deployment = Deployment::start(&[]);
    let _exposed = deployment.expose("echo");
    let why = |to: &str| deployment.admin(&["why", "provider", "--to", to]);
    let (code, out, _) = why("api.example.com:443");
    assert!(code == 3 && out.contains("no rule allows it"), "{out}");
    let allow = ["policy", "allow", "provider", "--to", "*.example.com:443"];
    let (code, out, err) = deployment.admin(&allow);
    assert!(
        code == 0 && out.contains("may open *.example.com:443"),
        "{out}{err}"
    );
    let (code, out, _) = why("api.example.com:443");
    assert!(
        code == 0 && out.contains("matches `*.example.com:443`"),
        "{out}"
    );
    for other in ["api.example.com:80", "example.com:443", "127.0.0.1:443"] {
        assert_eq!(why(other).0, 3, "{other}");
    }
    let (_, listed, _) = deployment.admin(&["policy", "list"]);
    assert!(listed.contains("*.example.com:443"), "{listed}");
    let deny = ["policy", "deny", "*", "--to", "**.example.com"];
    assert_eq!(deployment.admin(&deny).0, 0);
    let (code, out, _) = why("api.example.com:443");
    assert!(code == 3 && out.contains("denied by rule"), "{out}");
    for wrong in [
        &["why", "provider"][..],
        &["why", "provider", "echo", "--to", "a.example:1"],
        &["why", "provider", "--to", "127.1:80"],
        &["policy", "allow", "provider"],
        &["policy", "allow", "provider", "--to", "10.0.0.1/8"],
    ] {
        assert_eq!(deployment.admin(wrong).0, 2, "{wrong:?}");
    }
}

#[test]
fn a_rule_that_expires_holds_until_then() {
    let deployment = Deployment::start(&["--closed"]);
    let _exposed = deployment.expose("echo");
    let why = || deployment.admin(&["why", "consumer", "echo"]);
    assert_eq!(why().0, 3);
    let allow = ["policy", "allow", "consumer", "echo", "--expires", "2s"];
    let (code, out, err) = deployment.admin(&allow);
    assert_eq!(code, 0, "{err}");
    assert!(
        out.starts_with("added: ") && out.contains("consumer may open echo, "),
        "{out}"
    );
    assert_eq!(why().0, 0);
    let (_, out, _) = eventually(why, |answer| answer.0 == 3);
    assert!(out.starts_with("no: "), "{out}");
    let wrong = ["policy", "allow", "consumer", "echo", "--expires", "soon"];
    assert_eq!(deployment.admin(&wrong).0, 2);
}

#[test]
fn a_name_that_is_taken_can_be_provided_by_whom_a_rule_lets() {
    let deployment = Deployment::start(&[]);
    let _first = deployment.expose("echo");
    let target = echo_server().to_string();
    let expose = ["expose", &target, "--as", "echo"];
    let second = || Running::start(&deployment.state("consumer"), &expose);
    let refused = second();
    eventually(|| refused.errors(), |said| said.contains("NAME_TAKEN"));
    drop(refused);
    let allow = ["policy", "allow", "consumer", "echo", "--provide"];
    let (code, out, err) = deployment.admin(&allow);
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("consumer may provide echo"), "{out}");
    let provide = ["why", "consumer", "echo", "--provide"];
    assert_eq!(deployment.admin(&provide).0, 0);
    let _second = second();
    let providers = || {
        let (_, out, _) = deployment.admin(&["service", "list", "--json"]);
        json(&out)["services"][0]["providers"]
            .as_array()
            .map(Vec::len)
    };
    eventually(providers, |count| *count == Some(2));
}

#[test]
fn a_service_that_is_removed_is_gone_from_the_list() {
    let deployment = Deployment::start(&[]);
    drop(deployment.expose("echo")); // killed: it did not take its service back
    let (code, out, _) = deployment.admin(&["service", "list"]);
    assert!(
        code == 0 && out.contains("echo") && out.contains("provider"),
        "{out}"
    );
    let (code, out, err) = deployment.admin(&["service", "remove", "echo"]);
    assert_eq!(code, 0, "{err}");
    assert_eq!(out, "`echo`: 1 registration(s) removed\n");
    let (code, out, _) = deployment.admin(&["service", "list"]);
    assert!(code == 0 && !out.contains("echo"), "{out}");
    let (code, _, err) = deployment.admin(&["service", "remove", "echo"]);
    assert!(code == 1 && err.contains("echo"), "{err}");
}

#[test]
fn agents_are_listed_for_people_with_their_state() {
    let deployment = Deployment::start(&[]);
    let _exposed = deployment.expose("echo");
    let row = |name: &str| {
        let (code, out, err) = deployment.admin(&["agent", "list"]);
        assert_eq!(code, 0, "{err}");
        let head = out.lines().next().unwrap_or_default();
        for column in ["AGENT", "STATE", "SERVICES", "LAST SEEN"] {
            assert!(head.contains(column), "{out}");
        }
        let row = out.lines().find(|line| line.contains(name));
        row.expect("it joined").to_owned()
    };
    let provider = row("provider");
    assert!(
        provider.contains("joined") && provider.contains("echo"),
        "{provider}"
    );
    let (code, out, _) = deployment.admin(&["agent", "revoke", "consumer"]);
    assert!(
        code == 0 && out.contains("`consumer` is revoked: 1 certificate(s)"),
        "{out}"
    );
    assert!(row("consumer").contains("revoked"));
}

#[test]
fn a_token_is_made_for_scripts_with_its_end_and_where_it_leads() {
    let deployment = Deployment::start(&[]);
    let create = [
        "token", "create", "--ttl", "1h", "--name", "third", "--json",
    ];
    let (code, out, err) = deployment.admin(&create);
    assert_eq!((code, err.as_str()), (0, ""), "nothing but JSON");
    let made = json(&out);
    assert_eq!(made["addresses"][0], deployment.relay.to_string());
    let ends: Timestamp = made["expires"]
        .as_str()
        .and_then(|at| at.parse().ok())
        .expect("a time");
    let left = ends.duration_since(Timestamp::now());
    assert!(
        left > SignedDuration::from_mins(58) && left <= SignedDuration::from_mins(60),
        "{left}"
    );
    let token = made["text"].as_str().expect("a text");
    let (code, said, err) = run(&deployment.state("third"), &["join", token]);
    assert!(
        code == 0 && said.contains("joined as `third`"),
        "{said}{err}"
    );
}

#[test]
fn a_first_start_says_which_rule_there_is_and_a_later_one_does_not() {
    let dir = tempfile::tempdir().expect("a directory");
    let (open, closed) = (dir.path().join("open"), dir.path().join("closed"));
    let told = |state: &std::path::Path, more: &[&str]| {
        let (listen, controller) = (free_udp().to_string(), free_tcp().to_string());
        let usual = [
            "up",
            "--listen",
            &listen,
            "--controller-listen",
            &controller,
        ];
        let up = Running::start(state, &[&usual, more].concat());
        let told = up.lines_until("SLK1-", SOON);
        token_of(told.last().expect("a line"));
        assert_eq!(up.interrupt(), 0);
        told.join("\n")
    };
    let first = told(&open, &[]);
    for words in [
        "First rule: agents that joined may open each other's services (rule `starter`).",
        "`sealock policy remove starter` takes it back",
        "(UDP and TCP)",
        "within 15 minutes",
    ] {
        assert!(first.contains(words), "«{words}» in {first}");
    }
    let later = told(&open, &[]);
    assert!(!later.contains("rule"), "{later}");
    let first = told(&closed, &["--closed"]);
    assert!(
        first.contains("No rule yet: nothing can be opened"),
        "{first}"
    );
}
