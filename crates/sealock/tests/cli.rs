//! The program as its user meets it: what it prints, how it ends, and one whole deployment on loopback.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use assert_cmd::assert::OutputAssertExt;
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(8);

fn sealock(state: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sealock"));
    command
        .args(arguments)
        .env_clear()
        .env("SEALOCK_STATE__DIR", state)
        .env("SEALOCK_ADMIN__LISTEN", "off");
    command
}

/// Runs a verb to its end: exit code, standard output, standard error.
fn run(state: &Path, arguments: &[&str]) -> (i32, String, String) {
    run_with(sealock(state, arguments), b"")
}

fn run_with(mut command: Command, input: &[u8]) -> (i32, String, String) {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program starts");
    let mut stdin = child.stdin.take().expect("piped");
    // A program that ended already does not read, which is no error of this test.
    stdin.write_all(input).ok();
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (
        output.status.code().unwrap_or(-1),
        text(output.stdout),
        text(output.stderr),
    )
}

/// A verb that runs until it is stopped; dropping it kills exactly that process.
struct Running {
    child: Child,
    lines: Receiver<String>,
}

impl Running {
    fn start(state: &Path, arguments: &[&str]) -> Self {
        let mut command = sealock(state, arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("the program starts");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, lines }
    }

    /// Waits for a line that holds `text`, and gives it.
    fn wait_for(&self, text: &str) -> String {
        let deadline = Instant::now() + SOON;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left);
            assert!(line.is_ok(), "no line with «{text}» in time");
            let line = line.unwrap_or_default();
            if line.contains(text) {
                return line;
            }
        }
    }

    /// Asks it to stop as Ctrl-C does, and waits for its end.
    fn interrupt(mut self) -> i32 {
        let asked = Command::new("kill")
            .args(["-INT", &self.child.id().to_string()])
            .status();
        assert!(asked.expect("kill runs").success());
        self.child.wait().expect("it ends").code().unwrap_or(-1)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn free_tcp() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("its address")
}

fn free_udp() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
    socket.local_addr().expect("its address")
}

/// Answers every connection with what it sends, until its end.
fn echo_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address");
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let mut reader = stream.try_clone().expect("a second handle");
                let mut writer = stream;
                std::io::copy(&mut reader, &mut writer).ok();
                writer.shutdown(Shutdown::Write).ok();
            });
        }
    });
    address
}

fn exchange(address: SocketAddr, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(SOON))?;
    let mut writer = stream.try_clone()?;
    let sent = bytes.to_vec();
    let sender = std::thread::spawn(move || {
        writer.write_all(&sent)?;
        writer.shutdown(Shutdown::Write)
    });
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    let sent = sender.join();
    sent.map_err(|_| std::io::Error::other("the sender panicked"))??;
    read.map(|_| answer)
}

/// Repeats a look until it shows what is waited for: a change takes a moment to reach every node.
fn eventually<T: std::fmt::Debug>(mut look: impl FnMut() -> T, is_there: impl Fn(&T) -> bool) -> T {
    let deadline = Instant::now() + SOON;
    loop {
        let seen = look();
        if is_there(&seen) {
            return seen;
        }
        assert!(Instant::now() < deadline, "never came; last: {seen:?}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

fn token_of(line: &str) -> &str {
    let at = line.find("SLK1-").expect("a token");
    line[at..].trim()
}

/// A public side and two agents that have joined.
struct Deployment {
    dir: TempDir,
    up: Running,
}

impl Deployment {
    fn start(extra: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let (relay, controller) = (free_udp().to_string(), free_tcp().to_string());
        let mut arguments = vec!["up", "--listen", &relay, "--controller-listen", &controller];
        arguments.extend(extra);
        let up = Running::start(&dir.path().join("public"), &arguments);
        let line = up.wait_for("SLK1-");
        let deployment = Self { dir, up };
        let provider = deployment.state("provider");
        let join = ["join", token_of(&line), "--name", "provider"];
        assert_eq!(run(&provider, &join).0, 0);
        let (code, line, _) = deployment.admin(&["token", "create", "--name", "consumer"]);
        assert_eq!(code, 0);
        let join = sealock(&deployment.state("consumer"), &["join", "-"]);
        let (code, said, _) = run_with(join, token_of(&line).as_bytes());
        assert_eq!(code, 0);
        assert!(said.contains("joined as `consumer`"), "{said}");
        deployment
    }

    fn state(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    fn admin(&self, arguments: &[&str]) -> (i32, String, String) {
        run(&self.state("public"), arguments)
    }

    fn expose(&self, service: &str) -> Running {
        let target = echo_server().to_string();
        let arguments = ["expose", &target, "--as", service];
        let running = Running::start(&self.state("provider"), &arguments);
        running.wait_for("exposed");
        running
    }

    fn stdio(&self, service: &str, input: &[u8]) -> (i32, String, String) {
        let arguments = ["connect", service, "--stdio"];
        run_with(sealock(&self.state("consumer"), &arguments), input)
    }
}

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
