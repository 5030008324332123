//! The files that a fenced program sees in place of the host's: a resolver that is ours, and no doors around the fence.
//!
//! A socket file is not in the network: a program that may speak to the host's bus, its containers or its resolver has
//! others speak to the world for it. The known ones are covered. Deliberately absent: a view of the file system that is
//! restricted further.

use std::fs;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};

const RESOLVER: &str = "/etc/resolv.conf";

/// Doors of the host, of services that act for whoever asks.
const DOORS: &[&str] = &[
    "/run/nscd/socket",
    "/run/systemd/resolve/io.systemd.Resolve",
    "/run/systemd/resolve/io.systemd.Resolve.Monitor",
    "/run/systemd/private",
    "/run/dbus/system_bus_socket",
    "/run/docker.sock",
    "/run/containerd/containerd.sock",
    "/run/crio/crio.sock",
    "/run/podman/podman.sock",
];

/// The same, in the directory of a user.
const USER_DOORS: &[&str] = &[
    "bus",
    "systemd/private",
    "podman/podman.sock",
    "docker.sock",
];

/// Changes what the calling process sees, in a mount namespace of its own.
pub(super) fn replace(resolver: IpAddr, uid: u32) -> io::Result<()> {
    let flags = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", flags)?;
    let of_user = USER_DOORS
        .iter()
        .map(|door| format!("/run/user/{uid}/{door}"));
    for door in DOORS.iter().map(|door| (*door).to_owned()).chain(of_user) {
        if Path::new(&door).exists() {
            mount_bind("/dev/null", &door)?;
        }
    }
    resolve_by(resolver)
}

/// Without such a file a program asks this machine itself, where we answer as well.
fn resolve_by(resolver: IpAddr) -> io::Result<()> {
    let Ok(target) = fs::canonicalize(RESOLVER) else {
        return Ok(());
    };
    let name = format!("sealock-resolver-{}", std::process::id());
    let file = std::env::temp_dir().join(name);
    let mut options = fs::OpenOptions::new();
    let mut written = options
        .write(true)
        .create_new(true)
        .mode(0o644)
        .open(&file)?;
    let mounted =
        writeln!(written, "nameserver {resolver}").and_then(|()| Ok(mount_bind(&file, &target)?));
    // The mount keeps what it needs.
    fs::remove_file(&file)?;
    mounted
}
