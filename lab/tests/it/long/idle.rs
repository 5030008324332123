//! F33: streams that nobody uses cost their relay little memory, and hardly any processor time.

use std::{
    io::Write as _,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lab::{Deployment, Family, Machine, Node, Spec, say, scene, wait};

/// An agent offers 4 096 streams to others, and its own program has a file for each.
const PAIRS: u16 = 4;
const STREAMS_EACH: usize = 2_500;
const STREAMS: u64 = PAIRS as u64 * STREAMS_EACH as u64;
/// The fault list has an hour; what a stream does by itself it does every few seconds, and nothing of it grows later
/// than with the last step of a session's keep-alives, which streams hold back.
const IDLE: Duration = Duration::from_secs(180);
/// An open takes some milliseconds of all three processes.
const OPENED: Duration = Duration::from_secs(240);
const SOON: Duration = Duration::from_secs(60);
/// Of the relay's memory, for each stream.
const PER_STREAM: u64 = 8 << 10;
/// Of one core, for each process.
const SHARE: f64 = 0.01;
/// Where the first pair has its origin and its clients; the others follow.
const FAR: u16 = 7_000;
const NEAR: u16 = 8_000;

/// Sends back what comes, on every port.
const ORIGIN: &str = "
import selectors, socket, sys
loop = selectors.DefaultSelector()
for port in map(int, sys.argv[1:]):
    door = socket.create_server(('127.0.0.1', port), backlog=4096)
    loop.register(door, selectors.EVENT_READ, True)
print('listening', flush=True)
while True:
    for key, _ in loop.select():
        if key.data:
            loop.register(key.fileobj.accept()[0], selectors.EVENT_READ, False)
            continue
        bytes = key.fileobj.recv(4096)
        if bytes:
            key.fileobj.sendall(bytes)
        else:
            loop.unregister(key.fileobj)
            key.fileobj.close()
";

/// Opens so many streams on every port and tries each, once then and once for every line that it reads.
const CLIENT: &str = "
import socket, sys
count, ports = int(sys.argv[1]), [int(port) for port in sys.argv[2:]]
def tried(stream):
    stream.sendall(b'x')
    assert stream.recv(1) == b'x', 'no echo'
    return stream
streams = []
for _ in range(count):
    streams += [socket.create_connection(('127.0.0.1', port), 60) for port in ports]
    for stream in streams[-len(ports):]: tried(stream)
print('open', len(streams), flush=True)
for _ in sys.stdin:
    for stream in streams: tried(stream)
    print('alive', len(streams), flush=True)
";

/// A python program whose sockets the system lets it have.
fn python(name: &str, program: &str, arguments: impl IntoIterator<Item = String>) -> Spec {
    Spec::new(name, "prlimit")
        .args(["--nofile=16384", "/usr/bin/python3", "-c", program])
        .args(arguments)
        .open_input()
}

/// The two agents of one service, each on a machine of its own as far as Sealock knows.
fn pair(it: &Deployment<'_>, number: u16) -> Result<[Node; 2]> {
    let machine = |kind: &str, namespace| -> Result<Machine<'_>> {
        let name = format!("{kind}-{number}");
        let state = it.lab().directory().join(format!("{name}-state"));
        let machine = Machine::with_state(it.lab(), namespace, state);
        machine.join(&it.token()?, &name)?;
        Ok(machine)
    };
    let service = format!("web-{number}");
    let provider = machine("provider", &it.net.prv)?;
    let consumer = machine("consumer", &it.net.con)?;
    let target = (FAR + number).to_string();
    let agents = [
        provider.expose(&target, &service)?,
        consumer.connect(&service, NEAR + number)?,
    ];
    for agent in &agents {
        let limit = [format!("--pid={}", agent.pid()), "--nofile=16384:".into()];
        let spec = Spec::new("prlimit", "prlimit").args(limit);
        it.lab().run(&it.net.con, spec)?.success()?;
    }
    Ok(agents)
}

/// How much of a core each used while the time passed.
fn shares(nodes: &[(String, &Node)], time: Duration) -> Result<Vec<f64>> {
    let used = || -> Result<Vec<Duration>> { nodes.iter().map(|(_, it)| it.cpu_time()).collect() };
    let (before, began) = (used()?, Instant::now());
    wait::pause(time);
    let passed = began.elapsed().as_secs_f64();
    let pairs = used()?.into_iter().zip(before);
    Ok(pairs
        .map(|(after, before)| after.saturating_sub(before).as_secs_f64() / passed)
        .collect())
}

#[test]
fn ten_thousand_idle_streams_cost_eight_kib_each_and_no_processor_time() {
    scene(Family::V4, |lab| {
        let (it, roles) = Deployment::split(lab)?;
        let ports = |first: u16| (first..first + PAIRS).map(|port| port.to_string());
        let mut origin = it
            .lab()
            .start(&it.net.prv, python("origin", ORIGIN, ports(FAR)))?;
        origin.wait_for_line("listening", SOON)?;
        let pairs: Vec<[Node; 2]> = (0..PAIRS)
            .map(|number| pair(&it, number))
            .collect::<Result<_>>()?;
        let mut nodes = vec![("relay".to_owned(), &roles.relay)];
        for (number, [provider, consumer]) in pairs.iter().enumerate() {
            nodes.push((format!("provider {number}"), provider));
            nodes.push((format!("consumer {number}"), consumer));
        }

        let empty = roles.relay.resident_bytes()?;
        let began = Instant::now();
        let arguments = [STREAMS_EACH.to_string()].into_iter().chain(ports(NEAR));
        let client = python("client", CLIENT, arguments);
        let mut client = it.lab().start(&it.net.con, client)?;
        let mut words = client.take_input().context("an open input")?;
        client.wait_for_line(&format!("open {STREAMS}"), OPENED)?;
        say(&format!("F33: {STREAMS} streams in {:?}", began.elapsed()));

        let shares = shares(&nodes, IDLE)?;
        let each = roles.relay.resident_bytes()?.saturating_sub(empty) / STREAMS;
        let load = std::fs::read_to_string("/proc/loadavg")?;
        say(&format!(
            "F33: {each} bytes of the relay for each stream; load average {load}"
        ));
        for ((name, node), share) in nodes.iter().zip(&shares) {
            say(&format!(
                "F33, {name}: {:.2} % of a core, {} MiB",
                share * 100.0,
                node.resident_bytes()? >> 20
            ));
        }
        writeln!(words, "try")?;
        client.wait_for_line(&format!("alive {STREAMS}"), SOON)?;
        ensure!(each <= PER_STREAM, "{each} bytes for each stream");
        for ((name, node), share) in nodes.iter().zip(shares) {
            ensure!(share < SHARE, "{name} used {share:.4} of a core");
            node.without_complaints()?;
        }
        Ok(())
    });
}
