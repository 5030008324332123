//! The program as a process: how it is started, what it prints, and one whole deployment of it on loopback.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tempfile::TempDir;

pub(crate) const SOON: Duration = Duration::from_secs(8);

pub(crate) fn sealock(state: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sealock"));
    command
        .args(arguments)
        .env_clear()
        .env("SEALOCK_STATE__DIR", state)
        .env("SEALOCK_ADMIN__LISTEN", "off");
    command
}

/// Runs a verb to its end: exit code, standard output, standard error.
pub(crate) fn run(state: &Path, arguments: &[&str]) -> (i32, String, String) {
    run_with(sealock(state, arguments), b"")
}

pub(crate) fn run_with(mut command: Command, input: &[u8]) -> (i32, String, String) {
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
pub(crate) struct Running {
    child: Child,
    lines: Receiver<String>,
    errors: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl Running {
    pub(crate) fn start(state: &Path, arguments: &[&str]) -> Self {
        Self::spawn(sealock(state, arguments))
    }

    pub(crate) fn spawn(mut command: Command) -> Self {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program starts");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                // Nobody may listen any more; the pipe is read to its end all the same.
                sender.send(line).ok();
            }
        });
        let stderr = BufReader::new(child.stderr.take().expect("piped"));
        let errors = Arc::new(Mutex::new(String::new()));
        let kept = Arc::clone(&errors);
        let reader = std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let mut kept = kept.lock();
                kept.push_str(&line);
                kept.push('\n');
            }
        });
        Self {
            child,
            lines,
            errors,
            reader: Some(reader),
        }
    }

    /// What it has written to standard error so far.
    pub(crate) fn errors(&self) -> String {
        self.errors.lock().clone()
    }

    /// Its memory that is in use, in bytes.
    pub(crate) fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let status = status.expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib: u64 = line
            .and_then(|line| line.trim().strip_suffix(" kB"))
            .and_then(|kib| kib.trim().parse().ok())
            .expect("a size");
        kib * 1_024
    }

    /// Waits for a line that holds `text`, and gives it.
    pub(crate) fn wait_for(&self, text: &str) -> String {
        let mut lines = self.lines_until(text, SOON);
        lines.pop().expect("the last one holds the text")
    }

    /// The next lines up to the one that holds `text`, which may take so long.
    pub(crate) fn lines_until(&self, text: &str, within: Duration) -> Vec<String> {
        let deadline = Instant::now() + within;
        let mut told = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left);
            assert!(
                line.is_ok(),
                "no line with «{text}» in time; it said: {told:#?} {}",
                self.errors()
            );
            told.extend(line);
            if told.last().is_some_and(|line| line.contains(text)) {
                return told;
            }
        }
    }

    /// The number of the process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it ends by itself, and gives its exit code.
    pub(crate) fn wait(mut self) -> i32 {
        self.child.wait().expect("it ends").code().unwrap_or(-1)
    }

    /// Asks it to stop as Ctrl-C does, and waits for its end.
    pub(crate) fn interrupt(self) -> i32 {
        self.end().0
    }

    /// The same; gives also all that it wrote to standard error.
    pub(crate) fn end(mut self) -> (i32, String) {
        let asked = Command::new("kill")
            .args(["-INT", &self.child.id().to_string()])
            .status();
        assert!(asked.expect("kill runs").success());
        let code = self.child.wait().expect("it ends").code().unwrap_or(-1);
        let read = self.reader.take().map(JoinHandle::join);
        assert!(read.is_some_and(|read| read.is_ok()), "the log is whole");
        (code, self.errors())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// An address of this process alone: at 127.0.0.1 a free port may be taken by anybody's connection before it is used.
fn own_loopback() -> Ipv4Addr {
    let [_, second, third, fourth] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, 128 | second, third, fourth)
}

pub(crate) fn free_tcp() -> SocketAddr {
    let listener = TcpListener::bind((own_loopback(), 0)).expect("a port");
    listener.local_addr().expect("its address")
}

pub(crate) fn free_udp() -> SocketAddr {
    let socket = UdpSocket::bind((own_loopback(), 0)).expect("a port");
    socket.local_addr().expect("its address")
}

/// Answers every connection with what it sends, until its end.
pub(crate) fn echo_server() -> SocketAddr {
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

pub(crate) fn exchange(address: SocketAddr, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
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

/// Asks the admin address of a role for a page: the status of the answer and what it says.
pub(crate) fn page(admin: SocketAddr, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(admin).ok()?;
    stream.set_read_timeout(Some(SOON)).ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: {admin}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}

/// What a verb printed with `--json`.
pub(crate) fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).expect("JSON")
}

/// Repeats a look until it shows what is waited for: a change takes a moment to reach every node.
pub(crate) fn eventually<T: std::fmt::Debug>(
    mut look: impl FnMut() -> T,
    is_there: impl Fn(&T) -> bool,
) -> T {
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

pub(crate) fn token_of(line: &str) -> &str {
    let at = line.find("SLK1-").expect("a token");
    line[at..].trim()
}

/// A public side and two agents that have joined.
pub(crate) struct Deployment {
    pub(crate) dir: TempDir,
    pub(crate) up: Running,
    pub(crate) relay: SocketAddr,
}

impl Deployment {
    pub(crate) fn start(extra: &[&str]) -> Self {
        Self::start_with(extra, &[])
    }

    /// The same, with variables in the environment of the public side.
    pub(crate) fn start_with(extra: &[&str], environment: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let (relay, controller) = (free_udp(), free_tcp().to_string());
        let listen = relay.to_string();
        let mut arguments = vec![
            "up",
            "--listen",
            &listen,
            "--controller-listen",
            &controller,
        ];
        arguments.extend(extra);
        let mut command = sealock(&dir.path().join("public"), &arguments);
        command.envs(environment.iter().copied());
        let up = Running::spawn(command);
        let line = up.wait_for("SLK1-");
        let deployment = Self { dir, up, relay };
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

    /// The same with the controller in a process of its own, so that it can be away while the relay is there.
    pub(crate) fn split() -> (Self, Running) {
        let dir = tempfile::tempdir().expect("a directory");
        let (listen, relay) = (free_tcp().to_string(), free_udp());
        let public = dir.path().join("public");
        let arguments = ["controller", "--listen", &listen];
        let controller = Running::start(&public, &arguments);
        let create = ["token", "create", "--role", "relay", "--address", &listen];
        let (_, line, _) = eventually(|| run(&public, &create), |it| it.0 == 0);
        let at = relay.to_string();
        let arguments = ["relay", "--token", token_of(&line), "--listen", &at];
        let up = Running::start(&dir.path().join("relay"), &arguments);
        up.wait_for("Agents reach");
        let deployment = Self { dir, up, relay };
        for name in ["provider", "consumer"] {
            let join = ["join", &deployment.token(), "--name", name];
            let (code, _, err) = run(&deployment.state(name), &join);
            assert_eq!(code, 0, "{err}");
        }
        (deployment, controller)
    }

    /// A token for one more agent.
    pub(crate) fn token(&self) -> String {
        let at = self.relay.to_string();
        let (code, line, err) = self.admin(&["token", "create", "--address", &at]);
        assert_eq!(code, 0, "{err}");
        token_of(&line).to_owned()
    }

    pub(crate) fn state(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn admin(&self, arguments: &[&str]) -> (i32, String, String) {
        run(&self.state("public"), arguments)
    }

    pub(crate) fn expose(&self, service: &str) -> Running {
        let target = echo_server().to_string();
        let arguments = ["expose", &target, "--as", service];
        let running = Running::start(&self.state("provider"), &arguments);
        running.wait_for("exposed");
        running
    }

    pub(crate) fn stdio(&self, service: &str, input: &[u8]) -> (i32, String, String) {
        let arguments = ["connect", service, "--stdio"];
        run_with(sealock(&self.state("consumer"), &arguments), input)
    }
}
