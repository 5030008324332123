//! Leaving the namespaces that the calling thread shares with others, and taking what the parent process left us.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use rustix::thread::UnshareFlags;

/// Puts the calling thread into new namespaces; one of users can only be made by a process of one thread.
///
/// # Errors
/// When the system does not allow it, or when more than namespaces is asked for.
#[expect(
    unsafe_code,
    reason = "the crate cannot know that descriptors stay shared"
)]
pub fn unshare(namespaces: UnshareFlags) -> io::Result<()> {
    if namespaces.contains(UnshareFlags::FILES) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: descriptors stay shared between threads, see above; nothing else is asked of the caller.
    unsafe { rustix::thread::unshare_unsafe(namespaces) }?;
    Ok(())
}

/// The descriptor that the parent process left open under a number, which it told us. To be asked once for each.
///
/// # Errors
/// When nothing is open there, or when the number is one of the three that belong to everybody.
#[expect(unsafe_code, reason = "a number becomes a descriptor in no other way")]
pub fn inherited(number: i32) -> io::Result<OwnedFd> {
    if number <= libc::STDERR_FILENO {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: asking and setting flags is harmless for any number.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, and nothing in this process has made it: the number came from the parent, once.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
