//! TAP devices, made where they are wanted.

use std::{fs::File, os::fd::AsFd as _, path::Path, thread};

use anyhow::{Context, Result, anyhow};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tun_rs::{DeviceBuilder, Layer, SyncDevice};

// Where `ip netns` keeps its names.
const NAMES: &str = "/run/netns";

/// Makes a TAP device, `NAME` here or `NETNS/NAME` in a namespace. It is gone when it is dropped.
pub(crate) fn tap(place: &str) -> Result<SyncDevice> {
    let made = match place.split_once('/') {
        None => make(place),
        Some((namespace, name)) => {
            let (namespace, name) = (Path::new(NAMES).join(namespace), name.to_owned());
            // A device is made in the namespace of the thread that asks for it, and stays there.
            let maker = thread::spawn(move || {
                let file = File::open(&namespace)
                    .with_context(|| format!("opening {}", namespace.display()))?;
                move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
                    .context("entering the namespace")?;
                make(&name)
            });
            maker
                .join()
                .unwrap_or_else(|_| Err(anyhow!("the thread that makes it panicked")))
        }
    };
    made.with_context(|| {
        format!("making the TAP device {place} (needs root of the namespace and /dev/net/tun)")
    })
}

fn make(name: &str) -> Result<SyncDevice> {
    Ok(DeviceBuilder::new()
        .name(name)
        .layer(Layer::L2)
        .build_sync()?)
}
