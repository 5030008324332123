//! The two ends of every measurement: an origin that does as it is told, and clients that tell it and look at the clock.
//!
//! A client's first nine bytes are a verb and a length. Both ends are plain threads and blocking sockets, the same for
//! every system, and their own processor time is nobody's.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

/// Which way bytes go, seen by the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Up,
    Down,
}

const ECHO: u8 = b'e';
const SEND: u8 = b's';
const TAKE: u8 = b't';
const ONE: u8 = b'1';

const BUFFER: usize = 256 * 1024;
const MESSAGE: usize = 64;
/// No single answer may take longer; a system that hangs fails the run and is named.
const PATIENCE: Duration = Duration::from_secs(120);

/// Starts the origin on a port of loopback.
pub(crate) fn serve() -> io::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A client that went away ends its thread, and that is all.
            thread::Builder::new()
                .stack_size(BUFFER)
                .spawn(move || answer(stream).ok())
                .ok();
        }
    });
    Ok(address)
}

fn answer(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut order = [0; 9];
    stream.read_exact(&mut order)?;
    let [verb, length @ ..] = order;
    let mut left = u64::from_be_bytes(length);
    match verb {
        ECHO => {
            let mut message = [0; MESSAGE];
            while stream.read_exact(&mut message).is_ok() {
                stream.write_all(&message)?;
            }
        }
        ONE => {
            stream.write_all(&[1])?;
            while stream.read(&mut order)? > 0 {}
        }
        SEND => {
            let buffer = vec![7; BUFFER];
            while left > 0 {
                let part = buffer.len().min(usize::try_from(left).unwrap_or(BUFFER));
                stream.write_all(&buffer[..part])?;
                left -= part as u64;
            }
        }
        TAKE => {
            receive(&mut stream, left)?;
            stream.write_all(&[1])?;
        }
        _ => {}
    }
    Ok(())
}

fn receive(stream: &mut TcpStream, mut left: u64) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    while left > 0 {
        match stream.read(&mut buffer)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => left = left.saturating_sub(read as u64),
        }
    }
    Ok(())
}

fn order(stream: &mut TcpStream, verb: u8, length: u64) -> io::Result<()> {
    let mut order = [verb; 9];
    order[1..].copy_from_slice(&length.to_be_bytes());
    stream.write_all(&order)
}

fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Connects and waits for one byte: the time to the first byte, and the stream, which idles from then on.
pub(crate) fn first_byte(address: SocketAddr) -> io::Result<(Duration, TcpStream)> {
    let begun = Instant::now();
    let mut stream = connect(address)?;
    order(&mut stream, ONE, 0)?;
    stream.read_exact(&mut [0])?;
    Ok((begun.elapsed(), stream))
}

/// Moves `bytes` over so many connections at once; how long the whole took.
pub(crate) fn transfer(
    address: SocketAddr,
    way: Way,
    streams: usize,
    bytes: u64,
) -> anyhow::Result<Duration> {
    let share = bytes / streams as u64;
    let start = Arc::new(Barrier::new(streams + 1));
    let movers: Vec<_> = (0..streams)
        .map(|_| {
            let start = Arc::clone(&start);
            thread::spawn(move || {
                let stream = connect(address);
                start.wait();
                move_bytes(stream?, way, share)
            })
        })
        .collect();
    start.wait();
    let begun = Instant::now();
    for mover in movers {
        let Ok(moved) = mover.join() else {
            bail!("a client's thread panicked");
        };
        moved.context("moving bytes")?;
    }
    Ok(begun.elapsed())
}

fn move_bytes(mut stream: TcpStream, way: Way, bytes: u64) -> io::Result<()> {
    match way {
        Way::Down => {
            order(&mut stream, SEND, bytes)?;
            receive(&mut stream, bytes)
        }
        Way::Up => {
            order(&mut stream, TAKE, bytes)?;
            let buffer = vec![7; BUFFER];
            let mut left = bytes;
            while left > 0 {
                let part = buffer.len().min(usize::try_from(left).unwrap_or(BUFFER));
                stream.write_all(&buffer[..part])?;
                left -= part as u64;
            }
            stream.read_exact(&mut [0])
        }
    }
}

/// The times of so many round trips of 64 bytes on one open connection.
pub(crate) fn echo(address: SocketAddr, count: usize) -> anyhow::Result<Vec<Duration>> {
    let mut stream = connect(address)?;
    order(&mut stream, ECHO, 0)?;
    let mut times = Vec::with_capacity(count);
    let mut message = [3; MESSAGE];
    for turn in 0..=count {
        let begun = Instant::now();
        stream.write_all(&message)?;
        stream.read_exact(&mut message)?;
        if turn > 0 {
            times.push(begun.elapsed()); // the first one opens the stream
        }
    }
    Ok(times)
}

/// Opens `count` connections by so many clients at once, each to its first byte; how many a second.
pub(crate) fn opens(address: SocketAddr, clients: usize, count: usize) -> anyhow::Result<f64> {
    let begun = Instant::now();
    let share = count / clients;
    let openers: Vec<_> = (0..clients)
        .map(|_| {
            thread::spawn(move || (0..share).try_for_each(|_| first_byte(address).map(|_| ())))
        })
        .collect();
    for opener in openers {
        let Ok(opened) = opener.join() else {
            bail!("a client's thread panicked");
        };
        opened.context("opening a connection")?;
    }
    ensure!(share > 0, "fewer opens than clients");
    Ok((share * clients) as f64 / begun.elapsed().as_secs_f64())
}
