//! S31: a flood of QUIC Initials from many sources at a relay's door, of which none is ever heard of again.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sealock_core::token::CaPin;
use sealock_net::transport::{Endpoint, Settings};

use crate::program::{Deployment, Running, eventually, run, token_of};

/// Three times what a relay takes on at once before authentication.
const CALLERS: usize = 3_072;
const SOURCES: usize = 512;
/// Two thousand a second: each new one costs the relay far more than us.
const BURST: usize = 20;
const PAUSE: Duration = Duration::from_millis(10);
/// F30: what a door may cost beside its users.
const MEMORY: u64 = 64 << 20;

/// First packets of as many connections, all of them lawful: caught from a client that dials a deaf listener.
fn initials() -> Vec<Vec<u8>> {
    let deaf = UdpSocket::bind("127.0.0.1:0").expect("a port");
    deaf.set_read_timeout(Some(Duration::from_millis(300)))
        .expect("set");
    let at = deaf.local_addr().expect("its address");
    let dialling = std::thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        runtime.block_on(async {
            let endpoint = Endpoint::client(Settings::default()).expect("a socket");
            let tls = sealock_net::tls::join_relay_client(CaPin([7; 32]));
            for _ in 0..CALLERS / 64 {
                let deadline = tokio::time::Instant::now() + Duration::from_millis(100);
                let calls = (0..64).map(|_| endpoint.connect(at, Arc::clone(&tls), deadline));
                futures_util::future::join_all(calls).await;
            }
        });
    });
    // By the connection id that the caller chose (RFC 9000 §17.2): the first of its packets.
    let mut first = BTreeMap::new();
    let mut buffer = [0; 2_048];
    loop {
        match deaf.recv(&mut buffer) {
            Ok(length) => {
                let id_length = usize::from(buffer[5]);
                let id = buffer[6..6 + id_length].to_vec();
                first.entry(id).or_insert_with(|| buffer[..length].to_vec());
            }
            Err(_) if dialling.is_finished() => break,
            Err(_) => {}
        }
    }
    dialling.join().expect("it dials");
    first.into_values().collect()
}

/// Sockets at as many addresses of this machine: loopback has sixteen million.
fn sources() -> Vec<UdpSocket> {
    let at = |number: usize| {
        let [high, low] = (u16::try_from(number).expect("few") + 256).to_be_bytes();
        let ip = IpAddr::V4(Ipv4Addr::new(127, 77, high, low));
        let socket = UdpSocket::bind(SocketAddr::new(ip, 0)).expect("a port");
        socket.set_nonblocking(true).expect("set");
        socket
    };
    (0..SOURCES).map(at).collect()
}

struct Flood {
    over: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Flood {
    fn at(relay: SocketAddr, initials: Vec<Vec<u8>>) -> Self {
        let (over, sent) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let (told, counted) = (Arc::clone(&over), Arc::clone(&sent));
        let sources = sources();
        let thread = std::thread::spawn(move || {
            let mut number = 0;
            while !told.load(Ordering::Relaxed) {
                for _ in 0..BURST {
                    let initial = &initials[number % initials.len()];
                    let source = &sources[number % sources.len()];
                    if source.send_to(initial, relay).is_ok() {
                        counted.fetch_add(1, Ordering::Relaxed);
                    }
                    number += 1;
                }
                std::thread::park_timeout(PAUSE);
            }
        });
        Self {
            over,
            sent,
            thread: Some(thread),
        }
    }

    fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

#[test]
fn a_flood_of_first_packets_neither_keeps_honest_agents_out_nor_takes_memory() {
    let deployment = Deployment::start(&[]);
    let exposed = deployment.expose("echo");
    assert_eq!(deployment.stdio("echo", b"before").1, "before");
    let before = deployment.up.resident();
    let initials = initials();
    assert!(initials.len() > CALLERS / 2, "{} callers", initials.len());
    let flood = Flood::at(deployment.relay, initials);
    let enough = 3 * u64::try_from(CALLERS).expect("few");
    eventually(|| flood.sent(), |sent| *sent > enough);

    let began = Instant::now();
    assert_eq!(deployment.stdio("echo", b"meanwhile").1, "meanwhile");
    let opened = began.elapsed();
    let (_, line, _) = deployment.admin(&["token", "create"]);
    let join = ["join", token_of(&line), "--name", "late"];
    let (code, _, err) = run(&deployment.state("late"), &join);
    assert_eq!(code, 0, "{err}");
    let joined = began.elapsed() - opened;
    let during = deployment.up.resident();
    // Two processes start, dial, prove their addresses and their identities, on a machine that is busy with the flood.
    let bearable = Duration::from_secs(4);
    assert!(
        opened < bearable && joined < bearable,
        "{opened:?} {joined:?}"
    );
    drop(flood);
    assert!(
        during < before + MEMORY,
        "{} MiB before, {} MiB during",
        before >> 20,
        during >> 20
    );
    assert_eq!(deployment.stdio("echo", b"after").1, "after");
    no_complaint(&exposed);
    no_complaint(&deployment.up);
}

/// Nothing panicked, and what was live stayed.
fn no_complaint(running: &Running) {
    let errors = running.errors();
    assert!(
        !errors.contains("panicked") && !errors.contains("ERROR"),
        "{errors}"
    );
}
