//! `sealock run` as any user of a machine has it: without root, in front of real programs and a real network.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::SocketAddr,
    os::unix::{fs::PermissionsExt as _, net::UnixListener},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use lab::{
    Family, Namespace, Node, Spec, Topology, binary,
    capture::Capture,
    node::{Ended, Signal},
    scene, servers, wait,
};

const PATIENCE: Duration = Duration::from_secs(30); // a loaded machine; the programs take a blink
const HTTP: u16 = 80;
const OTHER: u16 = 8080;
const NOBODY_LISTENS: u16 = 8081;
const NOBODY: &str = "65534";
const TEXT: &str = "behind the fence\n";

/// A machine with a user who has no rights, and a server that it can reach.
struct Scene<'a> {
    lab: &'a Topology,
    machine: Namespace,
    server: Namespace,
    at: SocketAddr,
    sealock: PathBuf,
    hosts: PathBuf,
    _servers: [Node; 2],
}

fn set(lab: &mut Topology) -> Result<Scene<'_>> {
    let bridge = lab.bridge("ix")?;
    let machine = lab.host("con", &bridge, 1)?;
    let server = lab.host("org", &bridge, 2)?;
    let files = lab.directory().join("files");
    fs::create_dir(&files)?;
    fs::write(files.join("text"), TEXT)?;
    let at = SocketAddr::new(bridge.v4(2), HTTP);
    let other = SocketAddr::new(bridge.v4(2), OTHER);
    let running = [
        servers::http(lab, &server, at, &files)?,
        servers::http(lab, &server, other, &files)?,
    ];
    // Where a user without rights can start it, whoever built it.
    fs::set_permissions(lab.directory(), fs::Permissions::from_mode(0o755))?;
    let sealock = lab.directory().join("sealock-for-all");
    fs::copy(binary::sealock()?, &sealock)?;
    fs::set_permissions(&sealock, fs::Permissions::from_mode(0o755))?;
    let hosts = lab.directory().join("hosts");
    fs::write(&hosts, format!("{} api.example.test\n", at.ip()))?;
    Ok(Scene {
        lab,
        machine,
        server,
        at,
        sealock,
        hosts,
        _servers: running,
    })
}

impl Scene<'_> {
    /// `sealock run` with these options in front of a program, by a user without any right.
    fn fenced(&self, options: &[&str], program: &[&str]) -> Spec {
        // The machine's own names, which sealock knows and the program does not.
        let named = format!(
            "mount --bind {} /etc/hosts && exec \"$@\"",
            self.hosts.display()
        );
        Spec::new("run", "unshare")
            .args(["--mount", "sh", "-c", &named, "sh", "setpriv"])
            .args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "--"])
            .args([&self.sealock])
            .args(["run"])
            .args(options)
            .args(["--"])
            .args(program)
            .env("HOME", "/")
            .directory("/")
    }

    fn run(&self, options: &[&str], program: &[&str]) -> Result<Ended> {
        self.lab.run(&self.machine, self.fenced(options, program))
    }

    fn curl(&self, options: &[&str], at: SocketAddr) -> Result<Ended> {
        let url = format!("http://{at}/text");
        self.run(options, &["curl", "-sS", "--max-time", "20", &url])
    }

    fn start(&self, options: &[&str], program: &[&str]) -> Result<Node> {
        self.lab.start(&self.machine, self.fenced(options, program))
    }
}

fn code(ended: &Ended) -> Result<i32> {
    ended.status.code().context("it was killed itself")
}

#[test]
fn a_fenced_program_reaches_what_was_allowed_and_the_refusal_of_the_rest_names_its_rule() {
    scene(Family::V4, |lab| {
        let scene = set(lab)?;
        let at = scene.at;
        let allowed = scene.curl(&["--allow", &at.to_string(), "--verbose"], at)?;
        ensure!(allowed.stdout == TEXT, "{allowed:?}");
        ensure!(
            allowed.stderr.contains("allowed by rule `allow`"),
            "{allowed:?}"
        );
        let other = SocketAddr::new(at.ip(), OTHER);
        let refused = scene.curl(&["--allow", &at.to_string()], other)?;
        ensure!(
            code(&refused)? == 56 || code(&refused)? == 7,
            "no reset: {refused:?}"
        );
        let line = format!("{other}/tcp denied: no rule allows it");
        ensure!(refused.stderr.contains(&line), "{refused:?}");
        let policy = scene.lab.directory().join("policy.toml");
        fs::write(
            &policy,
            "[[rule]]\nid = \"not-this-one\"\neffect = \"deny\"\ncallers = [\"*\"]\ndestinations = [\"10.0.0.0/8\"]\n",
        )?;
        let policy = policy.to_str().context("a path")?.to_owned();
        let denied = scene.curl(&["--allow", "*", "--policy", &policy], at)?;
        ensure!(
            denied.stderr.contains("denied by rule `not-this-one`"),
            "{denied:?}"
        );
        // Also without --verbose: the program only sees a reset.
        let nobody = SocketAddr::new(at.ip(), NOBODY_LISTENS);
        let unopened = scene.curl(&["--allow", "*"], nobody)?;
        let line = format!("{nobody}/tcp was not reached: nobody takes connections there");
        ensure!(unopened.stderr.contains(&line), "{unopened:?}");
        ensure!(unopened.stderr.contains("\nhint: "), "{unopened:?}");
        let unfenced = scene.curl(&[], at)?;
        ensure!(
            code(&unfenced)? != 0,
            "without rules nothing goes out: {unfenced:?}"
        );
        Ok(())
    });
}

#[test]
fn what_is_allowed_goes_out_by_the_way_that_was_said() {
    scene(Family::V4, |lab| {
        let scene = set(lab)?;
        let allow = scene.at.to_string();
        let nowhere = scene.curl(&["--allow", &allow, "--via", "refuse"], scene.at)?;
        ensure!(
            code(&nowhere)? != 0 && nowhere.stdout.is_empty(),
            "{nowhere:?}"
        );
        // A server of its own at the end of the way, so the answer tells which way it was.
        let path = scene.lab.directory().join("way.sock");
        let listener = UnixListener::bind(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777))?;
        let answer = "by the way\n";
        let server = std::thread::spawn(move || -> std::io::Result<()> {
            let (mut stream, _) = listener.accept()?;
            let mut request = [0; 1024];
            let _length = stream.read(&mut request)?;
            let head = format!(
                "HTTP/1.0 200 Fine\r\nContent-Length: {}\r\n\r\n",
                answer.len()
            );
            stream.write_all(format!("{head}{answer}").as_bytes())
        });
        let via = format!("unix:{}", path.display());
        let led = scene.curl(&["--allow", &allow, "--via", &via], scene.at)?;
        ensure!(led.stdout == answer, "{led:?}");
        server.join().ok().context("the server")??;
        Ok(())
    });
}

#[test]
fn a_fenced_program_knows_the_names_of_its_rules_alone_whichever_resolver_it_asks() {
    scene(Family::V4, |lab| {
        let scene = set(lab)?;
        let options = ["--allow", "*.example.test:80"];
        let curl = |url: &str| scene.run(&options, &["curl", "-sS", "--max-time", "20", url]);
        let reached = curl("http://api.example.test/text")?;
        ensure!(reached.stdout == TEXT, "{reached:?}");
        let port = curl("http://api.example.test:8080/text")?;
        let line = "api.example.test:8080/tcp denied: no rule allows it";
        ensure!(port.stderr.contains(line), "{port:?}");
        let unknown = curl("http://www.example.org/")?;
        ensure!(
            code(&unknown)? == 6,
            "a name that no rule speaks of was given: {unknown:?}"
        );
        // A name that our DNS never gave for the address is a claim, and is looked up again.
        let resolve = ["--resolve", "api.example.test:80:192.0.2.7"];
        let claimed = [
            &["curl", "-sS", "--max-time", "20"][..],
            &resolve,
            &["http://api.example.test/text"],
        ]
        .concat();
        let claimed = scene.run(&options, &claimed)?;
        ensure!(claimed.stdout == TEXT, "{claimed:?}");
        // The question goes to a resolver of the world, and is answered in its name.
        let script = ASK.replace("RESOLVER", "9.9.9.9");
        let asked = scene.run(&options, &["/usr/bin/python3", "-c", &script])?;
        ensure!(asked.stdout == "0 5\n", "{asked:?}");
        Ok(())
    });
}

/// Asks a resolver for a name that may be known, over UDP, and for one that may not, over TCP; prints both answers' codes.
const ASK: &str = r#"
import socket, struct
def question(name):
    labels = b"".join(bytes([len(l)]) + l.encode() for l in name.split("."))
    return struct.pack(">HHHHHH", 7, 0x100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">HH", 1, 1)
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); udp.settimeout(20)
udp.connect(("RESOLVER", 53)); udp.send(question("api.example.test"))
known = udp.recv(4096)
tcp = socket.create_connection(("RESOLVER", 53), 20)
asked = question("www.example.org"); tcp.send(struct.pack(">H", len(asked)) + asked)
tcp.recv(2, socket.MSG_WAITALL); unknown = tcp.recv(4096)
print(known[3] & 15, unknown[3] & 15)
"#;

#[test]
fn a_fence_passes_on_input_output_exit_codes_and_signals() {
    scene(Family::V4, |lab| {
        let scene = set(lab)?;
        for (script, expected) in [("exit 7", 7), ("kill -9 $$", 137), ("kill -15 $$", 143)] {
            let ended = scene.run(&[], &["sh", "-c", script])?;
            ensure!(code(&ended)? == expected, "{script}: {ended:?}");
        }
        let absent = scene.run(&[], &["/no/such/program"])?;
        ensure!(code(&absent)? == 127, "{absent:?}");
        let no_program = scene.run(&[], &["/etc/passwd"])?;
        ensure!(code(&no_program)? == 126, "{no_program:?}");
        let input = "a line\nand no end of it";
        let cat = scene
            .fenced(&[], &["sh", "-c", "cat; echo told >&2"])
            .input(input);
        let cat = scene.lab.run(&scene.machine, cat)?;
        ensure!(cat.stdout == input && cat.stderr == "told\n", "{cat:?}");
        let script = "trap 'echo asked; exit 3' TERM; echo waiting; while :; do sleep 0.05; done";
        let mut waiting = scene.start(&[], &["sh", "-c", script])?;
        wait::until("the program begins", PATIENCE, || {
            Ok(waiting.stdout().contains("waiting").then_some(()))
        })?;
        waiting.signal(Signal::TERM)?;
        let ended = waiting.finish(PATIENCE)?;
        ensure!(
            code(&ended)? == 3 && ended.stdout.contains("asked"),
            "{ended:?}"
        );
        Ok(())
    });
}

#[test]
fn doctor_tries_every_method_of_capture_for_a_user_without_rights() {
    scene(Family::V4, |lab| {
        let scene = set(lab)?;
        let doctor = Spec::new("doctor", "setpriv")
            .args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "--"])
            .args([&scene.sealock])
            .args(["doctor", "--json"])
            .directory("/");
        let told = scene.lab.run(&scene.machine, doctor)?.success()?;
        for method in ["anyip_tproxy", "redirect", "tproxy", "anyip"] {
            ensure!(
                told.contains(&format!("\"method\": \"{method}\"")),
                "{told}"
            );
        }
        ensure!(told.matches("\"usable\": true").count() == 4, "{told}");
        Ok(())
    });
}

#[test]
fn where_user_namespaces_are_forbidden_it_says_what_to_change_and_starts_nothing() {
    scene(Family::V4, |lab| {
        let scene = set(lab)?;
        let forbid = "echo 0 > /proc/sys/user/max_user_namespaces && exec \"$@\"";
        let spec = Spec::new("forbidden", "unshare")
            .args(["--user", "--map-root-user", "sh", "-c", forbid, "sh"])
            .args([&scene.sealock])
            .args(["run", "--", "echo", "begun"]);
        let ended = scene.lab.run(&scene.machine, spec)?;
        ensure!(code(&ended)? == 1 && ended.stdout.is_empty(), "{ended:?}");
        let hint = "hint: none are allowed: sysctl -w user.max_user_namespaces=10000";
        ensure!(ended.stderr.contains(hint), "{ended:?}");
        Ok(())
    });
}

/// All but what a kernel says by itself on a network: neighbours (ARP, ICMPv6 from 133 on) and groups.
const FROM_PROGRAMS: &str =
    "not arp and not igmp and not (icmp6 and ip6[40] >= 130) and not (ip6 and ip6[6] == 0)";

/// Tries ways out; prints a line for each that worked.
const WAYS_OUT: &str = r#"
import ctypes, os, socket, subprocess, sys
place, host_net = sys.argv[1], sys.argv[2]
def way(name, attempt):
    try:
        attempt()
    except FileNotFoundError as error:
        print("LEFT", name, "was not tried", error)
    except Exception as error:
        print("held", name, error)
    else:
        print("LEFT", name)
def udp(port):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(0.3)
    s.connect((place, port)); s.send(b"out"); s.recv(10)
def raw(family, kind, protocol):
    socket.socket(family, kind, protocol)
def run(*words):
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=20)
def enter():
    fd = os.open(host_net, os.O_RDONLY)
    if ctypes.CDLL(None, use_errno=True).setns(fd, 0): raise OSError(ctypes.get_errno())
def icmp():
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 1); s.settimeout(0.3)
    s.sendto(b"\x08\0\0\0\0\1\0\1", (place, 0)); s.recv(10)
def tcp6():
    socket.create_connection(("fd77:1::2", 80), 5).send(b"x")
    s = socket.create_connection(("fd77:1::2", 80), 5); s.send(b"GET / HTTP/1.0\r\n\r\n")
    if not s.recv(1): raise OSError("ended")
way("udp 53 past our resolver", lambda: udp(53))
way("udp 443", lambda: udp(443))
way("icmp", icmp)
way("raw ip", lambda: raw(socket.AF_INET, socket.SOCK_RAW, 1))
way("raw ip6", lambda: raw(socket.AF_INET6, socket.SOCK_RAW, 58))
way("packets", lambda: raw(socket.AF_PACKET, socket.SOCK_RAW, 3))
way("routes", lambda: run("/usr/sbin/ip", "route", "del", "local", "default", "dev", "lo", "table", "main"))
way("a link", lambda: run("/usr/sbin/ip", "link", "add", "sl-out", "type", "veth"))
way("rules", lambda: run("/usr/sbin/nft", "flush", "ruleset"))
way("rules of a nested user", lambda: run("unshare", "-Ur", "/usr/sbin/nft", "flush", "ruleset"))
way("the network of the host", enter)
way("our own socket", lambda: socket.create_connection(("127.86.0.1", 15001), 5).recv(1)[0])
way("IPv6", tcp6)
status = open("/proc/self/status").read()
for line in ("CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1"):
    print("held" if line in status else "LEFT", line)
"#;

#[test]
fn a_hostile_program_finds_no_way_out_of_its_fence_as_any_user_and_as_root() {
    scene(Family::Both, |lab| {
        let scene = set(lab)?;
        let script = scene.lab.directory().join("ways.py");
        fs::write(&script, WAYS_OUT)?;
        let script = script.to_str().context("a path")?;
        let place = scene.at.ip().to_string();
        let net = format!("/proc/{}/ns/net", std::process::id());
        let wire = Capture::start(scene.lab, &scene.machine)?;
        let program = ["/usr/bin/python3", script, &place, &net];
        let as_root = Spec::new("root", &scene.sealock)
            .args(["run", "--"])
            .args(program);
        let tries = [scene.fenced(&[], &program), as_root];
        for tried in tries {
            let ended = scene.lab.run(&scene.machine, tried)?;
            ensure!(code(&ended)? == 0, "{ended:?}");
            ensure!(!ended.stdout.contains("LEFT"), "{}", ended.stdout);
            ensure!(
                ended.stdout.matches("held").count() == 16,
                "{}",
                ended.stdout
            );
        }
        let seen = wire.stop()?.packets(scene.lab, FROM_PROGRAMS)?;
        ensure!(seen.is_empty(), "{seen:#?}");
        Ok(())
    });
}

/// Reads each connection to its end, and prints how much there was.
const LISTENER: &str =
    "import socket,sys; l = socket.create_server(('', 9000)); print('ready', flush=True)
while True:
    s, _ = l.accept(); n = 0
    while d := s.recv(65536): n += len(d)
    print('heard', n, flush=True)";

#[test]
fn what_a_program_said_last_arrives_though_it_has_ended() {
    scene(Family::V4, |lab| {
        let scene = set(lab)?;
        let spec = Spec::new("listener", "/usr/bin/python3").args(["-c", LISTENER]);
        let listener = scene.lab.start(&scene.server, spec)?;
        wait::until("it listens", PATIENCE, || {
            Ok(listener.stdout().contains("ready").then_some(()))
        })?;
        let place = scene.at.ip();
        let script = format!(
            "import os,socket; s = socket.create_connection(('{place}', 9000)); s.sendall(b'x' * 100000); os._exit(5)"
        );
        let options = ["--allow", "10.0.0.0/8:9000"];
        let said = scene.run(&options, &["/usr/bin/python3", "-c", &script])?;
        ensure!(code(&said)? == 5, "{said:?}");
        wait::until("all of it arrives", PATIENCE, || {
            Ok(listener.stdout().contains("heard 100000").then_some(()))
        })
    });
}

#[test]
fn when_its_agent_is_killed_the_program_ends_and_what_it_left_behind_reaches_nothing() {
    scene(Family::V4, |lab| {
        let scene = set(lab)?;
        let at = scene.at;
        let marks = scene.lab.directory().join("marks");
        fs::create_dir(&marks)?;
        fs::set_permissions(&marks, fs::Permissions::from_mode(0o777))?;
        let marks = marks.to_str().context("a path")?.to_owned();
        // The child outlives its parent, and tries for as long as it is let.
        let script = format!(
            "(until [ -e {marks}/go ]; do sleep 0.02; done; \
             curl -s --max-time 5 http://{at}/text > {marks}/got; echo $? > {marks}/code.new; \
             mv {marks}/code.new {marks}/code) & echo $$ > {marks}/pid; echo begun; wait"
        );
        let options = ["--allow", "10.0.0.0/8"];
        let mut fence = scene.start(&options, &["sh", "-c", &script])?;
        wait::until("the program begins", PATIENCE, || {
            Ok(fence.stdout().contains("begun").then_some(()))
        })?;
        let pid = fs::read_to_string(format!("{marks}/pid"))?;
        let wire = Capture::start(scene.lab, &scene.machine)?;
        fence.kill()?;
        let gone = format!("/proc/{}", pid.trim());
        wait::until("the program ends with its agent", PATIENCE, || {
            Ok((!fs::exists(&gone)?).then_some(()))
        })?;
        fs::write(format!("{marks}/go"), "")?;
        let file = format!("{marks}/code");
        let code = wait::until("what it left behind gives up", PATIENCE, || {
            Ok(fs::read_to_string(&file).ok())
        })?;
        ensure!(code.trim() == "7", "not refused at once: {code}");
        ensure!(
            fs::read_to_string(format!("{marks}/got"))?.is_empty(),
            "it got an answer"
        );
        let seen = wire.stop()?.packets(scene.lab, FROM_PROGRAMS)?;
        ensure!(seen.is_empty(), "{seen:#?}");
        Ok(())
    });
}
