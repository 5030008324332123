//! Signals read like bytes, with who sent them: a terminal tells a whole group of processes, `kill` tells one.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A signal that was sent to this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delivered {
    /// Its number.
    pub number: i32,
    /// Whether the kernel sent it by itself, as for a key of the terminal: then every process of the group has it.
    pub from_kernel: bool,
}

/// Holds back the signals of these `numbers` from now on, for this thread and for those that it starts later, to be
/// read from the descriptor. Programs that the standard library starts get them as usual.
///
/// # Errors
/// When a number is no signal, or descriptors are used up.
#[expect(unsafe_code, reason = "no crate that we use makes signal descriptors")]
pub fn hold_signals(numbers: &[i32]) -> io::Result<OwnedFd> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the set lives through the call, which fills it.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    for number in numbers {
        // SAFETY: the set was filled above.
        if unsafe { libc::sigaddset(set.as_mut_ptr(), *number) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: the set was filled above, and the old mask is not asked for.
    let error =
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut()) };
    if error != 0 {
        return Err(io::Error::from_raw_os_error(error));
    }
    let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
    // SAFETY: the set was filled above; -1 asks for a new descriptor.
    let descriptor = unsafe { libc::signalfd(-1, set.as_ptr(), flags) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Takes the next signal that [`hold_signals`] held, without waiting.
///
/// # Errors
/// `WouldBlock` when there is none.
pub fn next_signal(held: impl AsFd) -> io::Result<Delivered> {
    let mut bytes = [0_u8; size_of::<libc::signalfd_siginfo>()];
    rustix::io::read(held, &mut bytes)?;
    // The first three fields: number, errno, code (signalfd(2)).
    let field =
        |at: usize| i32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    Ok(Delivered {
        number: field(0),
        from_kernel: field(8) == libc::SI_KERNEL,
    })
}

/// Waits, on the runtime of the caller, for a descriptor that is no socket.
///
/// # Errors
/// When there is no runtime, or the descriptor is of a kind that cannot be waited for.
#[expect(
    unsafe_code,
    reason = "the runtime cannot know who closes a descriptor"
)]
pub fn watch(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is owned by what is returned, and so open for as long as it is watched.
    let watched = unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) };
    Ok(watched?)
}
