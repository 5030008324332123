//! The network namespace of a workload, in which others than its own processes make sockets.
//!
//! A thread that enters a namespace serves one piece of work and ends, so that no thread of ours ever goes on in a
//! namespace that is not ours. What it made there, sockets above all, stays there wherever it is used.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use crate::sys;

/// A handle that keeps a network namespace alive.
#[derive(Debug)]
pub struct NetworkNamespace(File);

impl NetworkNamespace {
    /// The one that a path names, such as those of `ip netns` below `/run/netns`.
    ///
    /// # Errors
    /// When nothing can be opened there.
    pub fn at(path: &Path) -> io::Result<Self> {
        File::open(path).map(Self)
    }

    /// The one that a process is in.
    ///
    /// # Errors
    /// When there is no such process, or it is not ours to look at.
    pub fn of_process(pid: u32) -> io::Result<Self> {
        File::open(format!("/proc/{pid}/ns/net")).map(Self)
    }

    /// A new one with nothing in it, which ends with the last handle and socket.
    ///
    /// # Errors
    /// Without the right to make one.
    pub fn new() -> io::Result<Self> {
        on_a_thread(|| {
            sys::unshare(UnshareFlags::NEWNET)?;
            File::open("/proc/thread-self/ns/net").map(Self)
        })?
    }

    /// Does a piece of work inside.
    ///
    /// # Errors
    /// Without the right to enter, or when the work panics.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        on_a_thread(|| {
            move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network))?;
            Ok(work())
        })?
    }
}

fn on_a_thread<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, work)?;
        thread
            .join()
            .map_err(|_| io::Error::other("the work inside a namespace panicked"))
    })
}
