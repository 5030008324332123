//! The relays of the deployment, as the controller says: kept on disk, so that a relay that came later is found without
//! joining again, also while the controller is away.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sealock_core::address::HostPort;
use sealock_core::name::{NodeName, Region};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::files;

/// How many relays a deployment may have; a longer list is not taken.
pub const RELAYS_LIMIT: usize = 1_024;

/// A relay that joined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Relay {
    /// Its name.
    pub name: NodeName,
    /// Where it is reached.
    pub addresses: Vec<HostPort>,
    /// Where it is, as its operator calls it.
    pub region: Option<Region>,
    /// Whether the controller sees it right now.
    pub connected: bool,
}

/// The list of the moment; clones share it.
#[derive(Debug, Clone)]
pub struct RelayList {
    relays: watch::Sender<Arc<[Relay]>>,
    path: Option<Arc<PathBuf>>,
}

impl RelayList {
    /// The list that is kept at `path`, empty when there is none that can be read.
    #[must_use]
    pub fn open(path: &Path) -> Self {
        Self {
            path: Some(Arc::new(path.to_owned())),
            ..Self::look_at(path)
        }
    }

    /// The same for a program that does not own the file: what comes later is not kept.
    #[must_use]
    pub fn look_at(path: &Path) -> Self {
        let kept = files::read_private(path).ok();
        let kept = kept.and_then(|bytes| serde_json::from_slice::<Vec<Relay>>(&bytes).ok());
        let (relays, _) = watch::channel(kept.unwrap_or_default().into());
        Self { relays, path: None }
    }

    /// The relays of this moment.
    #[must_use]
    pub fn current(&self) -> Arc<[Relay]> {
        Arc::clone(&self.relays.borrow())
    }

    /// The relays, now and later.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<Arc<[Relay]>> {
        self.relays.subscribe()
    }

    /// Replaces the list.
    pub fn set(&self, relays: Vec<Relay>) {
        if let Some(path) = &self.path
            && let Ok(bytes) = serde_json::to_vec(&relays)
            && let Err(error) = files::write_private(path, &bytes)
        {
            tracing::warn!(err = %error, "the list of relays could not be kept on disk");
        }
        self.relays.send_replace(relays.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_there_again_after_a_restart_and_a_damaged_one_is_empty() {
        let dir = tempfile::tempdir().expect("a directory");
        let dir = dir.path().join("private");
        files::ensure_private_dir(&dir).expect("a private directory");
        let path = dir.join("known-relays.json");
        let relay = Relay {
            name: "eu-1".parse().expect("a name"),
            addresses: vec!["relay.example:7443".parse().expect("an address")],
            region: Some("eu".parse().expect("a region")),
            connected: true,
        };
        RelayList::open(&path).set(vec![relay.clone()]);
        assert_eq!(*RelayList::open(&path).current(), [relay]);
        files::write_private(&path, b"[{").expect("a file");
        assert!(RelayList::open(&path).current().is_empty());
    }
}
