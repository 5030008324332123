//! Moves bytes from one TCP connection to another within the kernel.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

/// How much may be between the two: what an unprivileged process may have a few hundred times.
const PIPE: usize = 256 * 1024;

/// Moves bytes until `from` ends, and ends `to` then; counts them.
///
/// # Errors
/// When either of them breaks.
///
/// # Cancel safety
/// Bytes that are between the two are lost.
pub(super) async fn pour(from: &TcpStream, to: &TcpStream, count: &AtomicU64) -> io::Result<()> {
    let (outlet, inlet) = pipe()?;
    loop {
        let held = shift(from, Interest::READABLE, || {
            splice(from, None, &inlet, None, PIPE, FLAGS)
        });
        let mut held = held.await?;
        if held == 0 {
            return SockRef::from(to).shutdown(std::net::Shutdown::Write);
        }
        count.fetch_add(held as u64, Ordering::Relaxed);
        while held > 0 {
            let gone = shift(to, Interest::WRITABLE, || {
                splice(&outlet, None, to, None, held, FLAGS)
            });
            match gone.await? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                gone => held -= gone,
            }
        }
    }
}

const FLAGS: SpliceFlags = SpliceFlags::MOVE.union(SpliceFlags::NONBLOCK);

async fn shift(
    socket: &TcpStream,
    interest: Interest,
    mut splice: impl FnMut() -> rustix::io::Result<usize>,
) -> io::Result<usize> {
    socket
        .async_io(interest, || splice().map_err(io::Error::from))
        .await
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (outlet, inlet) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    // A user with many pipes is given small ones; they do as well.
    fcntl_setpipe_size(&inlet, PIPE).ok();
    Ok((outlet, inlet))
}
