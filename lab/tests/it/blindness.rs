//! C1: what passes through the relay is nowhere in it, and the search that says so finds it where it must be.

use std::{
    fs::{self, File},
    io::Read as _,
    net::TcpListener,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use lab::{
    Deployment, Family, Spec,
    capture::Capture,
    deployment::loopback,
    evidence::{Search, search_files, search_memory},
    say, scene,
};

const STREAMS: usize = 200;
const REPEATS: usize = 256;

/// A program that sends a canary through many streams, fifty at once, gets it back, and keeps all open until its input ends.
const CLIENT: &str = "
import socket, sys
canary = bytes.fromhex(sys.stdin.readline())
block = canary * REPEATS
open_streams = []
def get(stream):
    got = b''
    while len(got) < len(block):
        part = stream.recv(65536)
        if not part: sys.exit('ended early')
        got += part
    if got != block: sys.exit('wrong bytes')
for wave in range(STREAMS // 50):
    for number in range(50):
        stream = socket.create_connection(('127.0.0.1', 8080))
        stream.sendall(block)
        open_streams.append(stream)
    for stream in open_streams[-50:]: get(stream)
    # Some stay, so that buffers are searched while they are in use; a session has a hundred streams at most.
    while len(open_streams) > (wave + 1) * 10: open_streams.pop().close()
for stream in open_streams: stream.sendall(block); get(stream)
print('canary sent', len(open_streams), flush=True)
sys.stdin.read()
";

#[test]
fn a_canary_through_two_hundred_streams_is_nowhere_in_the_relay() {
    scene(Family::V4, |lab| {
        let (it, roles) = Deployment::split(lab)?;
        let listener = it.net.prv.enter(|| TcpListener::bind(loopback(7000)))??;
        std::thread::spawn(move || echo(&listener));
        let exposed = it.provider.expose("7000", "echo")?;
        let connected = it.consumer.connect("echo", 8080)?;
        let at_relay = Capture::start(it.lab(), &it.net.rel1)?;
        let at_provider = Capture::start(it.lab(), &it.net.prv)?;

        let canary = canary()?;
        let program = CLIENT
            .replace("STREAMS", &STREAMS.to_string())
            .replace("REPEATS", &REPEATS.to_string());
        let spec = Spec::new("client", "/usr/bin/python3").args(["-c", &program]);
        let mut client = it.lab().start(&it.net.con, spec.open_input())?;
        let mut input = client.take_input().context("an open input")?;
        std::io::Write::write_all(&mut input, format!("{}\n", hex(&canary)).as_bytes())?;
        client.wait_for_line("canary sent", Duration::from_secs(60))?;

        // The searches must find it where it is in clear: in its own program and on the provider's loopback.
        let found = search_memory(client.pid(), &canary)?;
        ensure!(
            !found.places.is_empty(),
            "the client itself does not hold it"
        );
        let found = at_provider.stop()?.search(&canary)?;
        ensure!(
            found.places.len() == 1,
            "the provider's loopback did not carry it"
        );
        for (what, node) in [("consuming", &connected), ("providing", &exposed)] {
            let found = search_memory(node.pid(), &canary)?;
            say(&format!(
                "in the memory of the {what} agent: {} of {} bytes",
                found.places.len(),
                found.looked_at
            ));
        }

        for (what, node) in [("relay", &roles.relay), ("controller", &roles.controller)] {
            nowhere(what, search_memory(node.pid(), &canary)?)?;
        }
        for machine in [&it.public, &it.admin] {
            nowhere("its state", search_files(machine.state(), &canary)?)?;
        }
        let captured = at_relay.stop()?;
        let size = fs::metadata(captured.file())?.len();
        // All that was sent has passed here, twice over: in and out.
        ensure!(
            size > (STREAMS * REPEATS * 16) as u64 * 4,
            "only {size} bytes captured"
        );
        nowhere("the relay's interface", captured.search(&canary)?)?;
        let text = hex(&canary);
        for log in logs(it.lab().directory(), &["rel1.", "ctl."])? {
            let mut found = search_files(&log, &canary)?;
            found
                .places
                .extend(search_files(&log, text.as_bytes())?.places);
            found.looked_at += 1; // a log may be empty
            nowhere("a log", found)?;
        }
        drop(input);
        Ok(())
    });
}

fn nowhere(what: &str, search: Search) -> Result<()> {
    say(&format!("{what}: {} bytes searched", search.looked_at));
    search.found_nothing().with_context(|| what.to_owned())
}

pub(crate) fn echo(listener: &TcpListener) {
    while let Ok((stream, _)) = listener.accept() {
        std::thread::spawn(move || {
            let Ok(mut back) = stream.try_clone() else {
                return;
            };
            // Ends with its connection, in whatever way.
            drop(std::io::copy(&mut &stream, &mut back));
        });
    }
}

/// Sixteen bytes that nobody else has.
fn canary() -> Result<[u8; 16]> {
    let mut canary = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut canary)?;
    Ok(canary)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The logs of some namespaces.
fn logs(directory: &std::path::Path, of: &[&str]) -> Result<Vec<std::path::PathBuf>> {
    let mut logs = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let kind = path.extension().and_then(|kind| kind.to_str());
        if matches!(kind, Some("out" | "err"))
            && of
                .iter()
                .any(|of| name.is_some_and(|name| name.starts_with(of)))
        {
            logs.push(path);
        }
    }
    ensure!(!logs.is_empty(), "no logs of {of:?}");
    Ok(logs)
}
