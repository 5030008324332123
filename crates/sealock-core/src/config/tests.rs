//! Every option in every layer, generated from the table, and what is refused.

use super::*;

fn pair(name: &str, value: &str) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

fn flag(key: &str, value: &str) -> Flag {
    Flag {
        flag: format!("--set {key}"),
        key: key.to_owned(),
        value: value.to_owned(),
    }
}

fn file_of(row: &OptionRow) -> String {
    let (section, key) = row.key.split_once('.').expect("section.key");
    format!("[{section}]\n{key} = {}\n", row.example_toml)
}

fn explained(layers: &Layers, key: &str) -> Explained {
    let config = Config::resolve(layers).unwrap_or_else(|errors| panic!("{key}: {errors:?}"));
    let found = config.explain().iter().find(|it| it.key == key);
    found.expect("every option is explained").clone()
}

fn errors(layers: &Layers) -> Vec<String> {
    let errors = Config::resolve(layers).expect_err("must be refused");
    errors.iter().map(ToString::to_string).collect()
}

// S83: a documented setting that one of its layers ignored for years was a hole.
#[test]
fn every_option_works_from_file_environment_and_flag_and_tells_its_origin() {
    for row in OPTIONS {
        let file = Layers::new().with_file("f.toml", &file_of(row));
        let environment = Layers::new().with_environment([pair(&row.variable(), row.example)]);
        let flags = Layers::new().with_flags([flag(row.key, row.example)]);
        let from_file = Origin::File {
            name: "f.toml".to_owned(),
            line: 2,
        };
        let from_environment = Origin::Environment {
            variable: row.variable(),
        };
        let from_flag = Origin::Flag {
            flag: format!("--set {}", row.key),
        };
        let layers = [
            (file, from_file),
            (environment, from_environment),
            (flags, from_flag),
        ];
        let default = explained(&Layers::new(), row.key);
        assert_eq!(default.origin, Origin::Default, "{}", row.key);
        for (layers, origin) in layers {
            let set = explained(&layers, row.key);
            assert_eq!(set.origin, origin, "{}", row.key);
            assert_eq!(set.value.as_deref(), Ok(row.example), "{}", row.key);
            assert_ne!(set.value, default.value, "{}: example is default", row.key);
        }
    }
}

#[test]
fn a_higher_layer_wins_and_the_lower_one_still_must_be_right() {
    for row in OPTIONS {
        let file = Layers::new().with_file("f.toml", &file_of(row));
        let both = file
            .clone()
            .with_environment([pair(&row.variable(), row.example)]);
        let all = both.clone().with_flags([flag(row.key, row.example)]);
        assert!(matches!(
            explained(&both, row.key).origin,
            Origin::Environment { .. }
        ));
        assert!(matches!(
            explained(&all, row.key).origin,
            Origin::Flag { .. }
        ));
    }
    let hidden = Layers::new()
        .with_file("f.toml", "[log]\nlevel = \"loud\"\n")
        .with_flags([flag("log.level", "info")]);
    assert_eq!(
        errors(&hidden),
        ["f.toml:2: `log.level`: `loud` is none of error, warn, info, debug, trace"]
    );
}

#[test]
fn values_reach_what_runs() {
    let text = r#"
[state]
dir = "/srv/x"
[admin]
listen = "off"
[controller]
token_ttl = "5m"
[relay]
max_sessions = 1_000
advertise = ["relay.example:7443"]
[[agent.expose]]
service = "db.prod"
target = "unix:/run/db.sock"
labels = { tier = "db" }
weight = 3
standby = true
sticky = true
[[agent.connect]]
service = "web"
listen = "127.0.0.1:8080"
[[agent.door]]
kind = "http"
listen = "0.0.0.0:3128"
anywhere = true
ways = ["socks5://proxy.example:1080", "direct"]
login_file = "/etc/login"
"#;
    let config = Config::resolve(&Layers::new().with_file("f.toml", text)).expect("a good file");
    assert_eq!(config.state.dir, PathBuf::from("/srv/x"));
    assert_eq!(config.admin.listen(Role::Relay), None);
    assert_eq!(config.controller.token_ttl, Duration::from_secs(300));
    assert_eq!(config.relay.max_sessions, 1_000);
    assert_eq!(config.relay.advertise[0].host(), "relay.example");
    assert_eq!(config.agent.expose[0].labels["tier"], "db");
    let db = &config.agent.expose[0];
    assert_eq!((db.weight.number(), db.standby, db.sticky), (3, true, true));
    assert_eq!(
        config.agent.expose[0].target.to_string(),
        "unix:/run/db.sock"
    );
    assert_eq!(config.agent.connect[0].listen.port(), 8080);
    let door = &config.agent.door[0];
    assert_eq!((door.kind, door.listen.port()), (DoorKind::Http, 3128));
    assert_eq!(door.ways[0].to_string(), "socks5://proxy.example:1080");
    assert_eq!(door.login_file, Some(PathBuf::from("/etc/login")));
}

#[test]
fn without_any_layer_the_defaults_run() {
    let config = Config::resolve(&Layers::new()).expect("defaults");
    assert_eq!(config.state.dir, PathBuf::from("/var/lib/sealock"));
    assert_eq!(config.relay.listen.to_string(), "0.0.0.0:7443");
    assert_eq!(config.relay.max_streams_per_session, 4096);
    assert_eq!(
        config.controller.certificate_ttl,
        Duration::from_secs(3_600)
    );
    for (role, port) in [
        (Role::Relay, 9100),
        (Role::Controller, 9101),
        (Role::Agent, 9102),
    ] {
        let listen = config.admin.listen(role).expect("on by default");
        assert_eq!(listen, SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    }
}

#[test]
fn a_home_decides_where_state_lies_by_default() {
    for (pairs, dir) in [
        (
            vec![pair("HOME", "/home/ana")],
            "/home/ana/.local/state/sealock",
        ),
        (
            vec![pair("HOME", "/home/ana"), pair("XDG_STATE_HOME", "/x")],
            "/x/sealock",
        ),
        (
            vec![pair("HOME", "/home/ana"), pair("XDG_STATE_HOME", "x")],
            "/home/ana/.local/state/sealock",
        ),
        (vec![pair("HOME", "")], "/var/lib/sealock"),
        (
            vec![pair("HOME", "/h"), pair("SEALOCK_STATE__DIR", "/s")],
            "/s",
        ),
    ] {
        let layers = Layers::new().with_environment(pairs);
        let config = Config::resolve(&layers).expect("a good environment");
        assert_eq!(config.state.dir, PathBuf::from(dir));
    }
}

#[test]
fn unknown_keys_are_errors_in_every_layer_with_the_nearest_known_one() {
    let layers = Layers::new()
        .with_file(
            "f.toml",
            "x = 1\nrelay = 2\n[relai]\n[log]\nlevl = \"info\"\n[[agent.expose]]\nservice = \"a\"\ntaget = \"80\"\n",
        )
        .with_environment([
            pair("SEALOCK_RELAY__LISTN", "127.0.0.1:1"),
            pair("SEALOCK_RELAY_LISTEN", "127.0.0.1:1"),
            pair("SEALOCK_relay__listen", "127.0.0.1:1"),
        ])
        .with_flags([flag("relay.max_session", "1")]);
    assert_eq!(
        errors(&layers),
        [
            "f.toml:1: unknown key `x`",
            "f.toml:2: `relay` must be a table, not integer",
            "f.toml:3: unknown key `relai`\n  hint: did you mean `relay`?",
            "f.toml:5: unknown key `log.levl`\n  hint: did you mean `log.level`?",
            "f.toml:6: `target` is missing",
            "f.toml:8: unknown key `taget`\n  hint: did you mean `target`?",
            "SEALOCK_RELAY__LISTN: unknown key `relay.listn`\n  hint: did you mean `SEALOCK_RELAY__LISTEN`?",
            "SEALOCK_RELAY_LISTEN: unknown key `relay_listen`\n  hint: did you mean `SEALOCK_RELAY__LISTEN`?",
            "SEALOCK_relay__listen: unknown key `relay__listen`\n  hint: did you mean `SEALOCK_RELAY__LISTEN`?",
            "--set relay.max_session: unknown key `relay.max_session`\n  hint: did you mean `relay.max_sessions`?",
        ]
    );
}

#[test]
fn variables_of_others_are_passed_over() {
    let layers = Layers::new().with_environment([
        pair("PATH", "/bin"),
        pair("SEALOCK_CONFIG", "/etc/sealock.toml"),
        // What an orchestrator sets for a service named `sealock`.
        pair("SEALOCK_SERVICE_HOST", "10.0.0.1"),
        pair("SEALOCK_PORT_7443_TCP_PORT", "7443"),
    ]);
    let config = Config::resolve(&layers).expect("nothing of ours is wrong");
    assert!(
        config
            .explain()
            .iter()
            .all(|it| it.origin == Origin::Default)
    );
}

#[test]
fn bad_values_are_refused_with_their_place() {
    for (key, value, why) in [
        ("admin.listen", "0.0.0.0:9100", "loopback"),
        ("admin.listen", "on", "loopback"),
        ("log.format", "JSON", "none of text, json"),
        ("relay.max_streams_per_session", "10001", "1 to 10000"),
        ("relay.max_streams_per_session", "0", "1 to 10000"),
        ("relay.max_policy_age", "24", "no duration"),
        ("controller.certificate_ttl", "25h", "10s to 1d"),
        ("relay.listen", "localhost:7443", "no IP:PORT"),
        ("relay.advertise", "relay.example", "no port"),
        ("relay.advertise", "a:1,a:1", "twice"),
        ("relay.name", "", "empty"),
        ("state.dir", "", "empty"),
        ("agent.expose", "web", "SERVICE=TARGET"),
        ("agent.expose", "web=80,web=81", "twice"),
        ("agent.expose", "Web=80", "service name"),
        ("agent.connect", "web=8080", "invalid socket address"),
        ("agent.door", "socks4=127.0.0.1:1", "none of socks5, http"),
        ("agent.door", "socks5=0.0.0.0:1", "anywhere = true"),
        ("agent.door", "http=127.0.0.1:1,socks5=127.0.0.1:1", "twice"),
    ] {
        let found = errors(&Layers::new().with_flags([flag(key, value)]));
        assert_eq!(found.len(), 1, "{key}={value}");
        assert!(found[0].contains(why), "{}", found[0]);
        let row = OPTIONS.iter().find(|row| row.key == key).expect(key);
        let layers = Layers::new().with_environment([pair(&row.variable(), value)]);
        assert!(errors(&layers)[0].starts_with(&row.variable()), "{key}");
    }
}

#[test]
fn all_errors_of_a_file_are_shown_at_once() {
    let text = r#"
[log]
level = 3
format = ["text"]
[relay]
listen = "x"
advertise = "relay:1"
[[agent.connect]]
service = "a"
listen = "127.0.0.1:1"
[[agent.connect]]
service = "b"
listen = "127.0.0.1:1"
[[agent.expose]]
service = "a"
target = "0"
labels = { Tier = "x" }
"#;
    let found = errors(&Layers::new().with_file("f.toml", text));
    let lines: Vec<&str> = found
        .iter()
        .filter_map(|error| error.split(": ").next())
        .collect();
    let wanted = [3, 4, 6, 7, 11, 16, 17].map(|line| format!("f.toml:{line}"));
    assert_eq!(lines, wanted, "{found:#?}");
}

#[test]
fn broken_toml_is_an_error_with_its_line() {
    let found = errors(&Layers::new().with_file("f.toml", "[log]\nlevel = \n"));
    assert!(found[0].starts_with("f.toml:2: "), "{found:?}");
}

#[test]
fn an_agent_without_any_transport_is_refused_and_told_which_there_are() {
    let file = "[agent]\ntransports = []\n";
    let found = errors(&Layers::new().with_file("f.toml", file));
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(
        found[0].contains("at least one of quic, tls, websocket"),
        "{found:?}"
    );
    let empty = errors(&Layers::new().with_flags([flag("agent.transports", "")]));
    assert_eq!(empty.len(), 1, "{empty:?}");
}
