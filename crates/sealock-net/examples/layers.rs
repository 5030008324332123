//! What the resumable layer costs: bytes over a leg by a resumable stream, beside the same bytes over the same leg bare.
//!
//! `layers [MIB] [ROUNDS]`: both ends are in this process, the leg is a stream of a connection over loopback, by QUIC and
//! by TLS over TCP. Each round sends so many MiB each way of doing it, in an order that alternates; medians are printed,
//! with their ratios. There is no end-to-end encryption in either, so the share is larger than of a whole path.
#![expect(
    clippy::print_stdout,
    reason = "a tool whose only answer is its output"
)]
#![expect(
    clippy::disallowed_methods,
    reason = "a tool of one task and its counterpart"
)]

use std::error::Error;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sealock_core::config::Transport;
use sealock_net::identity::testing::TestCa;
use sealock_net::message;
use sealock_net::stream::door::Doors;
use sealock_net::stream::{Leg, Streams};
use sealock_net::task::Scope;
use sealock_net::tls;
use sealock_net::transport::{
    BiStream, Connection, Endpoint, Settings, TcpEndpoint, TransportKeys,
};
use sealock_proto::stream::Epoch;
use sealock_proto::wire::{Message, Open, StreamId};
use tokio::net::TcpStream;

/// What is written at once: what an agent reads of a socket at once.
const CHUNK: usize = 64 * 1024;
const DEADLINE: Duration = Duration::from_secs(60); // a transfer on a machine with much else to do

type Outcome<T> = Result<T, Box<dyn Error>>;

#[tokio::main]
async fn main() -> Outcome<()> {
    let mut words = std::env::args().skip(1);
    let mib: usize = words.next().map_or(Ok(256), |word| word.parse())?;
    let rounds: usize = words.next().map_or(Ok(5), |word| word.parse())?;
    println!("| leg | bare, MB/s | CPU s/GB | resumable, MB/s | CPU s/GB | throughput | CPU |");
    println!("|---|---:|---:|---:|---:|---:|---:|");
    for transport in [Transport::Quic, Transport::Tls] {
        let (near, far) = connections(transport).await?;
        let (mut bare, mut resumable) = (Vec::new(), Vec::new());
        for round in 0..rounds {
            for turn in 0..2 {
                if (round + turn) % 2 == 0 {
                    bare.push(measured(mib, send_bare(&near, &far, mib)).await?);
                } else {
                    resumable.push(measured(mib, send_resumable(&near, &far, mib)).await?);
                }
            }
        }
        let (bare, resumable) = (median(bare), median(resumable));
        println!(
            "| {transport:?} | {:.0} | {:.2} | {:.0} | {:.2} | {:.2} | {:.2} |",
            bare.rate,
            bare.cpu,
            resumable.rate,
            resumable.cpu,
            resumable.rate / bare.rate,
            resumable.cpu / bare.cpu,
        );
    }
    Ok(())
}

/// Megabytes a second, and processor seconds of this process for each of 10^9 bytes.
#[derive(Debug, Clone, Copy)]
struct Measured {
    rate: f64,
    cpu: f64,
}

fn median(all: Vec<Measured>) -> Measured {
    let middle = |of: fn(&Measured) -> f64| {
        let mut sorted: Vec<f64> = all.iter().map(of).collect();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
    };
    Measured {
        rate: middle(|one| one.rate),
        cpu: middle(|one| one.cpu),
    }
}

async fn measured(mib: usize, work: impl Future<Output = Outcome<()>>) -> Outcome<Measured> {
    let (began, spent) = (Instant::now(), processor_time()?);
    tokio::time::timeout(DEADLINE, work).await??;
    let took = began.elapsed();
    let spent = processor_time()? - spent;
    let megabytes = f64::from(u32::try_from(mib)?) * 1.048_576;
    Ok(Measured {
        rate: megabytes / took.as_secs_f64(),
        cpu: spent.as_secs_f64() / (megabytes / 1_000.0),
    })
}

/// Of all threads of this process so far.
fn processor_time() -> Outcome<Duration> {
    let mut sum = 0;
    for task in std::fs::read_dir("/proc/self/task")? {
        let text = std::fs::read_to_string(task?.path().join("schedstat"))?;
        let nanos = text.split(' ').next().unwrap_or_default();
        sum += nanos.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(sum))
}

/// Both ends of a connection over loopback.
async fn connections(transport: Transport) -> Outcome<(Connection, Connection)> {
    let ca = TestCa::new("td");
    let trust = ca.trust_store();
    let relay = ca.identity("relay/r");
    let client = tls::relay_client(&ca.identity("default/agent/a"), &trust);
    let (address, settings) = ("127.0.0.1:0".parse()?, Settings::default());
    let deadline = tokio::time::Instant::now() + DEADLINE;
    if transport == Transport::Quic {
        let listener = tls::relay_listener(&relay, &trust);
        let server = Endpoint::server(address, listener, settings, &TransportKeys::generate())?;
        let to = server.local_addr()?;
        let dialling = Endpoint::client(settings)?;
        let welcome = async {
            let incoming = server.accept().await.ok_or("closed")?;
            Ok::<_, Box<dyn Error>>(incoming.handshake(deadline).await?)
        };
        let (near, far) = tokio::join!(dialling.connect(to, client, deadline), welcome);
        // They live for as long as this process.
        std::mem::forget((server, dialling));
        return Ok((near?, far?));
    }
    let listener = tls::relay_tcp_listener(&relay, &trust);
    let server = TcpEndpoint::server(address, listener, settings)?;
    let to = server.local_addr().ok_or("not bound")?;
    let dialling = TcpEndpoint::client(settings);
    let stream = TcpStream::connect(to).await?;
    let welcome = async {
        let incoming = server.accept().await.ok_or("closed")?;
        Ok::<_, Box<dyn Error>>(incoming.handshake(deadline).await?)
    };
    let connecting = dialling.connect(transport, stream, "localhost", client, deadline);
    let (near, far) = tokio::join!(connecting, welcome);
    std::mem::forget((server, dialling));
    Ok((near?, far?))
}

/// A leg whose head was sent and read, as both sides hold it.
async fn leg(near: &Connection, far: &Connection) -> Outcome<(BiStream, BiStream, StreamId)> {
    let stream = StreamId(rand::random());
    let open = Open {
        stream,
        epoch: Epoch::FIRST,
        service: "db".parse()?,
        provider: None,
        conduit: None,
    };
    let mut near = near.open_bi().await?;
    near.send.write(Message::Open(open).encode()).await?;
    let mut far = far.accept_bi().await?;
    message::read(&mut far.recv).await?;
    Ok((near, far, stream))
}

async fn send_bare(near: &Connection, far: &Connection, mib: usize) -> Outcome<()> {
    let (mut near, mut far, _) = leg(near, far).await?;
    let receiving = tokio::spawn(async move {
        let mut sum = 0;
        while let Some(chunk) = far.recv.read_chunk(CHUNK).await? {
            sum += chunk.len();
        }
        far.send.finish()?;
        Ok::<_, Box<dyn Error + Send + Sync>>(sum)
    });
    for _ in 0..mib * 1024 * 1024 / CHUNK {
        near.send.write(Bytes::from(vec![7; CHUNK])).await?;
    }
    near.send.finish()?;
    check(receiving.await?, mib)
}

async fn send_resumable(near: &Connection, far: &Connection, mib: usize) -> Outcome<()> {
    let scope = Scope::new("layers");
    let (near, mut far, stream) = leg(near, far).await?;
    far.send
        .write(Message::Opened("b".parse()?).encode())
        .await?;
    let place = Doors::default().enter(stream, "db".parse()?);
    let place = place.ok_or("the stream is there already")?;
    let (_near_reader, mut writer) =
        Streams::new(scope.spawner()).open(Leg::lasting(near), None)?;
    let (mut reader, mut far_writer) =
        Streams::new(scope.spawner()).accept(Leg::lasting(far), place)?;
    let receiving = tokio::spawn(async move {
        let mut sum = 0;
        while let Some(chunk) = reader.read().await? {
            sum += chunk.len();
        }
        far_writer.finish()?;
        Ok::<_, Box<dyn Error + Send + Sync>>(sum)
    });
    for _ in 0..mib * 1024 * 1024 / CHUNK {
        writer.write(Bytes::from(vec![7; CHUNK])).await?;
    }
    writer.finish()?;
    check(receiving.await?, mib)
}

fn check(received: Result<usize, Box<dyn Error + Send + Sync>>, mib: usize) -> Outcome<()> {
    let received = received.map_err(|error| error.to_string())?;
    if received == mib * 1024 * 1024 {
        Ok(())
    } else {
        Err(format!("{received} bytes of {mib} MiB arrived").into())
    }
}
