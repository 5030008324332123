//! Which methods of capture this kernel allows, tried and not guessed: a connection is made and must arrive.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use super::{Capture, CaptureError, Family, Method, Plan, families, remove};

/// What became of trying a method.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The method.
    pub method: Method,
    /// Why it cannot be used here, in words; `None` when it can.
    pub obstacle: Option<String>,
}

const PORT: u16 = 7; // any: nobody listens in a namespace that was made for this
const PATIENCE: Duration = Duration::from_secs(2); // on loopback a connection takes microseconds

/// Tries every method in the calling thread's namespace, which is thrown away after it.
#[must_use]
pub fn probe() -> Vec<Finding> {
    let found = |method| Finding {
        method,
        obstacle: try_out(method).err(),
    };
    Method::ALL.into_iter().map(found).collect()
}

fn try_out(method: Method) -> Result<(), String> {
    remove().or_else(without_nft(method)).map_err(in_words)?;
    let plan = Plan {
        method,
        ports: vec![PORT],
        ..Plan::usual()
    };
    let capture = Capture::install(&plan).map_err(in_words)?;
    // The sockets stand in the order of the families, one of each.
    for (family, socket) in families().zip(capture.sockets.streams) {
        let ip = match family {
            Family::V4 => Ipv4Addr::new(192, 0, 2, 1).into(), // RFC 5737: nobody's
            Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(), // RFC 3849: nobody's
        };
        arrives(&socket.into(), SocketAddr::new(ip, PORT))
            .map_err(|error| format!("a connection to {ip} does not arrive: {error}"))?;
    }
    Ok(())
}

/// What needs no rules is not in want of the program that removes them.
fn without_nft(method: Method) -> impl Fn(CaptureError) -> Result<(), CaptureError> {
    move |error| match method {
        Method::Anyip => Ok(()),
        Method::AnyipTproxy | Method::Redirect | Method::Tproxy => Err(error),
    }
}

fn arrives(listener: &TcpListener, destination: SocketAddr) -> std::io::Result<()> {
    let _near = TcpStream::connect_timeout(&destination, PATIENCE)?;
    let began = Instant::now();
    loop {
        match listener.accept() {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::WouldBlock && began.elapsed() < PATIENCE => {
                std::thread::yield_now();
            }
            Err(error) => return Err(error),
        }
    }
}

fn in_words(error: CaptureError) -> String {
    let mut words = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(deeper) = cause {
        words = format!("{words}: {deeper}");
        cause = deeper.source();
    }
    words
}
