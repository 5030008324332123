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
const HOSTS: &str = "/etc/hosts";

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
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let hosts = format!(
        "127.0.0.1 localhost {host}\n::1 localhost\n",
        host = host.trim()
    );
    cover(RESOLVER, &format!("nameserver {resolver}\n"))?;
    // A name that this file gave an address would be a claim for us, where it can be known.
    cover(HOSTS, &hosts)
}

/// Shows another text in the place of a file. Without a resolver's file a program asks this machine itself, where we
/// answer as well, so one that is absent stays so.
fn cover(path: &str, text: &str) -> io::Result<()> {
    let Ok(target) = fs::canonicalize(path) else {
        return Ok(());
    };
    let name = format!("sealock-fence-{}", std::process::id());
    let file = std::env::temp_dir().join(name);
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true).mode(0o644);
    let mut written = options.open(&file)?;
    let mounted = written
        .write_all(text.as_bytes())
        .and_then(|()| Ok(mount_bind(&file, &target)?));
    // The mount keeps what it needs.
    fs::remove_file(&file)?;
    mounted
}
