//! A fence around one program: namespaces of its own, in which every connection is captured, without root.
//!
//! Two processes of this binary. The one inside makes the namespaces, sets capture up, hands the sockets out over a
//! socket pair and waits; told to go on, it gives up every right and becomes the program. The one outside keeps its own
//! network, and never holds a right over the fence. When the one outside ends in whatever way, the program is killed;
//! what it started stays where nothing answers.
//! Deliberately absent: what is done with captured connections, and any fence but that around the network and the
//! sockets of the host that are ways around it.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use rustix::io::FdFlags;
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::capture::{Method, Sockets};
use crate::sys::{self, Delivered};

mod channel;
mod inside;
mod mounts;
mod privileges;

pub use inside::{become_program, try_methods};

use channel::Word;

/// Why there is no fence, or no program in it.
#[derive(Debug, thiserror::Error)]
pub enum FenceError {
    /// The process inside cannot be started.
    #[error("the process inside cannot be started")]
    Start(#[source] io::Error),
    /// It could not set the fence up; its own words, with a hint where it has one.
    #[error("the fence cannot be set up: {0}")]
    Setup(Box<str>),
    /// It ended, or said nothing, before the fence was up.
    #[error("the process inside ended before the fence was up")]
    Silent(#[source] io::Error),
    /// The program cannot be started in it.
    #[error("the program cannot be started")]
    Program(#[source] io::Error),
}

/// How long the process inside may take; a machine that swaps is slow, and a user waits no longer.
const SETUP_LIMIT: Duration = Duration::from_secs(20);

/// What to fence, and how.
#[derive(Debug)]
pub struct Fenced<'a> {
    /// This binary.
    pub binary: &'a OsStr,
    /// The words that make it call [`become_program`]; the channel's number and the rest of this come behind them.
    pub verb: &'a [&'a str],
    /// By which means connections are captured.
    pub method: Method,
    /// The program and its arguments.
    pub command: &'a [OsString],
}

/// A fence that is up, with a process inside that waits.
#[derive(Debug)]
pub struct Fence {
    child: Child,
    channel: OwnedFd,
    /// The sockets that capture.
    pub sockets: Sockets,
}

impl Fence {
    /// Puts a fence up. The calling thread must live for as long as the program: it dies with it.
    ///
    /// # Errors
    /// What is missing.
    pub fn set_up(fenced: &Fenced<'_>) -> Result<Self, FenceError> {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(|error| FenceError::Start(error.into()))?;
        let child = start(fenced, &theirs).map_err(FenceError::Start)?;
        drop(theirs); // so that its end is seen
        let limited = sockopt::set_socket_timeout(&ours, Timeout::Recv, Some(SETUP_LIMIT));
        limited.map_err(|error| FenceError::Start(error.into()))?;
        let mut fence = Self {
            child,
            channel: ours,
            sockets: Sockets::default(),
        };
        match channel::receive(fence.channel.as_fd()).map_err(FenceError::Silent)? {
            Word::Ready(sockets) => {
                fence.sockets = sockets;
                Ok(fence)
            }
            Word::Failed(words) => Err(FenceError::Setup(words.into())),
            Word::Go | Word::NoProgram(_) | Word::Ended => {
                Err(FenceError::Silent(io::ErrorKind::UnexpectedEof.into()))
            }
        }
    }

    /// Lets the program begin.
    ///
    /// # Errors
    /// When it is not there or cannot be executed.
    pub fn go(mut self) -> Result<Running, FenceError> {
        channel::send(self.channel.as_fd(), &Word::Go).map_err(FenceError::Silent)?;
        match channel::receive(self.channel.as_fd()).map_err(FenceError::Silent)? {
            // The channel is closed by the program's start.
            Word::Ended => {}
            Word::NoProgram(code) => {
                self.child.wait().ok(); // it has ended, and its status says less
                return Err(FenceError::Program(io::Error::from_raw_os_error(code)));
            }
            Word::Failed(words) => return Err(FenceError::Setup(words.into())),
            Word::Go | Word::Ready(_) => {
                return Err(FenceError::Silent(io::ErrorKind::InvalidData.into()));
            }
        }
        Running::new(self.child).map_err(FenceError::Start)
    }
}

fn start(fenced: &Fenced<'_>, theirs: &OwnedFd) -> io::Result<Child> {
    rustix::io::fcntl_setfd(theirs, FdFlags::empty())?;
    let started = Command::new(fenced.binary)
        .args(fenced.verb)
        .arg(theirs.as_raw_fd().to_string())
        .arg(fenced.method.as_str())
        .arg("--")
        .args(fenced.command)
        .spawn();
    rustix::io::fcntl_setfd(theirs, FdFlags::CLOEXEC)?;
    started
}

/// A program in its fence.
#[derive(Debug)]
pub struct Running {
    child: Child,
    handle: AsyncFd<OwnedFd>,
}

impl Running {
    fn new(child: Child) -> io::Result<Self> {
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or(io::ErrorKind::NotFound)?;
        let handle = pidfd_open(pid, PidfdFlags::empty())?;
        let handle = sys::watch(handle)?;
        Ok(Self { child, handle })
    }

    /// The process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until the program has ended.
    ///
    /// # Errors
    /// When the system does not tell.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn ended(&mut self) -> io::Result<ExitStatus> {
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            self.handle.readable().await?.clear_ready();
        }
    }

    /// Passes a signal on, unless the program has it already: what a key of the terminal sends, the whole group gets.
    pub fn pass_on(&self, signal: Delivered) {
        if signal.from_kernel {
            return;
        }
        if let Some(signal) = Signal::from_named_raw(signal.number) {
            // One that has just ended needs no signal.
            pidfd_send_signal(self.handle.get_ref(), signal).ok();
        }
    }
}

/// The exit code that tells how a program ended, as shells do it.
#[must_use]
pub fn exit_code(status: ExitStatus) -> u8 {
    const SIGNALLED: i32 = 128;
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| SIGNALLED + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

/// The signals that people and service managers send to a program by way of us.
#[derive(Debug)]
pub struct ForwardedSignals {
    handle: AsyncFd<OwnedFd>,
}

/// Signals that were held before a runtime was there.
#[derive(Debug)]
pub struct EarlySignals(OwnedFd);

impl EarlySignals {
    /// Holds them from now on. To be called while the process has one thread.
    ///
    /// # Errors
    /// When the system does not allow it.
    pub fn hold() -> io::Result<Self> {
        let numbers = [
            libc::SIGHUP,
            libc::SIGINT,
            libc::SIGQUIT,
            libc::SIGTERM,
            libc::SIGUSR1,
            libc::SIGUSR2,
            libc::SIGWINCH,
        ];
        sys::hold_signals(&numbers).map(Self)
    }

    /// Waits for them on the runtime of the caller.
    ///
    /// # Errors
    /// When there is none.
    pub fn listen(self) -> io::Result<ForwardedSignals> {
        let handle = sys::watch(self.0)?;
        Ok(ForwardedSignals { handle })
    }
}

impl ForwardedSignals {
    /// Waits for the next one.
    ///
    /// # Errors
    /// When the system does not tell.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn next(&self) -> io::Result<Delivered> {
        self.handle
            .async_io(Interest::READABLE, |held| sys::next_signal(held))
            .await
    }
}
