//! The process inside: makes the namespaces, sets capture up, gives its rights up, becomes the program.
//!
//! It has one thread, and stays so: a user namespace can be made by no other.

use std::ffi::OsString;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::process::{getegid, geteuid, getppid};
use rustix::thread::UnshareFlags;

use super::channel::{self, Word};
use super::{mounts, privileges};
use crate::capture::{self, Capture, Finding, Method, Plan};
use crate::sys;

/// Sets a fence up, waits for the word to go on, and becomes the program. Returns only when that fails, and the process
/// outside has been told.
pub fn become_program(channel: i32, method: Method, command: &[OsString]) {
    let Ok(channel) = sys::inherited(channel) else {
        return; // nobody can be told
    };
    if let Err(words) = set_up_and_go(&channel, method, command) {
        channel::send(channel.as_fd(), &words).ok(); // the other side may have gone first
    }
}

fn set_up_and_go(channel: &OwnedFd, method: Method, command: &[OsString]) -> Result<(), Word> {
    let parent = getppid();
    let failed = |what: &str| {
        let what = what.to_owned();
        move |error: io::Error| Word::Failed(format!("{what}: {error}"))
    };
    enter(UnshareFlags::NEWNS)?;
    privileges::lend().map_err(failed("rights cannot be lent"))?;
    let plan = Plan {
        method,
        ..Plan::usual()
    };
    let capture = Capture::install(&plan).map_err(|error| Word::Failed(with_causes(&error)))?;
    let resolver: IpAddr = plan.resolver();
    mounts::replace(resolver, geteuid().as_raw()).map_err(failed("files cannot be covered"))?;
    let sockets = capture.sockets;
    channel::send(channel.as_fd(), &Word::Ready(sockets))
        .map_err(failed("the sockets cannot be handed out"))?;
    match channel::receive(channel.as_fd()) {
        Ok(Word::Go) => {}
        Ok(_) | Err(_) => return Err(Word::Ended),
    }
    privileges::give_up(parent).map_err(failed("rights cannot be given up"))?;
    let Some((program, arguments)) = command.split_first() else {
        return Err(Word::NoProgram(libc::ENOENT));
    };
    let error = Command::new(program).args(arguments).exec();
    Err(Word::NoProgram(
        error.raw_os_error().unwrap_or(libc::ENOEXEC),
    ))
}

/// Tries every method of capture in a namespace of this process's own.
///
/// # Errors
/// Why there is no such namespace, in words.
pub fn try_methods() -> Result<Vec<Finding>, String> {
    let in_words = |word| match word {
        Word::Failed(words) => words,
        Word::Ready(_) | Word::Go | Word::NoProgram(_) | Word::Ended => String::new(),
    };
    enter(UnshareFlags::empty()).map_err(in_words)?;
    privileges::lend().map_err(|error| error.to_string())?;
    Ok(capture::probe())
}

/// Makes the namespaces. The user stays who it is, with rights over them and none over the host.
fn enter(more: UnshareFlags) -> Result<(), Word> {
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    let namespaces = UnshareFlags::NEWUSER | UnshareFlags::NEWNET | more;
    sys::unshare(namespaces).map_err(|error| Word::Failed(forbidden(&error)))?;
    let mapped = || {
        std::fs::write("/proc/self/setgroups", "deny")?; // else the kernel takes no map of groups (user_namespaces(7))
        std::fs::write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
        std::fs::write("/proc/self/gid_map", format!("{gid} {gid} 1"))
    };
    mapped().map_err(|error| Word::Failed(forbidden(&error)))
}

/// What the system says to a user namespace, and what its owner can do.
fn forbidden(error: &io::Error) -> String {
    let is_on = |switch: &str, value: &str| {
        std::fs::read_to_string(format!("/proc/sys/{switch}"))
            .is_ok_and(|text| text.trim() == value)
    };
    let hint = if is_on("kernel/apparmor_restrict_unprivileged_userns", "1") {
        "AppArmor forbids it: sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or a profile for sealock, or run it as root"
    } else if is_on("kernel/unprivileged_userns_clone", "0") {
        "the kernel forbids it: sysctl -w kernel.unprivileged_userns_clone=1, or run it as root"
    } else if is_on("user/max_user_namespaces", "0") {
        "none are allowed: sysctl -w user.max_user_namespaces=10000"
    } else {
        "in a container, allow it: --security-opt seccomp=unconfined, or run sealock outside of it"
    };
    format!("this user may make no user namespace: {error}; hint: {hint}")
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(deeper) = cause {
        words = format!("{words}: {deeper}");
        cause = deeper.source();
    }
    words
}
