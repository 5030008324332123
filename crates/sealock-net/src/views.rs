//! The views that a node holds: verified, the newest only, and kept on disk so that a node starts and serves with the
//! controller away.
//!
//! A view is taken whole or not at all. A file that cannot be read or verified is put aside and the node waits for the
//! controller with nothing allowed: a damaged view never opens anything wider.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use sealock_core::name::TenantName;
use sealock_core::reason::Reason;
use sealock_core::view::{Delta, View, ViewVersion};
use tokio::sync::watch;

use crate::files;
use crate::identity::TrustStore;
use crate::tls::signed::{SignedHead, SignedView, SignedViewError};

/// The views of a node; clones share them.
#[derive(Debug, Clone)]
pub struct ViewStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    trust: TrustStore,
    dir: PathBuf,
    max_age: Duration,
    views: ArcSwap<BTreeMap<TenantName, Arc<View>>>,
    /// What the views were read from; deltas apply to it. Held while a change is made, so changes do not cross.
    signed: Mutex<BTreeMap<TenantName, SignedView>>,
    changes: watch::Sender<u64>,
    /// Whether the controller was heard since the start; until then the views are those of an earlier run.
    confirmed: AtomicBool,
    /// How often a view was offered that is not right.
    not_taken: Counter,
}

/// Why a view was not taken.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    /// It is not what the controller signed, or too old, or not understood.
    #[error(transparent)]
    Signed(#[from] SignedViewError),
    /// Older than the one that is held: somebody repeats old policy.
    #[error("version {} of the view is older than version {}, which is held", offered.0, held.0)]
    Older {
        /// The version that came.
        offered: ViewVersion,
        /// The version that is held.
        held: ViewVersion,
    },
    /// A change to a version that is not held; only the whole view can help.
    #[error("the change is not to the version that is held")]
    WrongBase,
}

impl ViewStore {
    /// Reads what an earlier run kept in `dir`.
    ///
    /// # Errors
    /// When the directory is not private to this user.
    pub fn open(
        trust: TrustStore,
        dir: PathBuf,
        max_age: Duration,
    ) -> Result<Self, files::FileError> {
        files::ensure_private_dir(&dir)?;
        let (changes, _) = watch::channel(0);
        let inner = Inner {
            trust,
            dir,
            max_age,
            views: ArcSwap::default(),
            signed: Mutex::default(),
            changes,
            confirmed: AtomicBool::new(false),
            not_taken: Counter::default(),
        };
        let store = Self {
            inner: Arc::new(inner),
        };
        store.load();
        Ok(store)
    }

    fn load(&self) {
        let Ok(entries) = std::fs::read_dir(&self.inner.dir) else {
            return;
        };
        for path in entries.flatten().map(|entry| entry.path()) {
            if path
                .extension()
                .is_some_and(|extension| extension == "json")
            {
                self.load_file(&path);
            }
        }
    }

    fn load_file(&self, path: &Path) {
        let read = files::read_private(path).map_err(text_of);
        let parsed = read.and_then(|bytes| {
            serde_json::from_slice::<SignedView>(&bytes).map_err(|error| error.to_string())
        });
        let taken = parsed.and_then(|signed| {
            self.take(signed, Keep::InMemory)
                .map_err(|error| error.to_string())
        });
        if let Err(error) = taken {
            let aside = path.with_extension("rejected");
            let moved = std::fs::rename(path, &aside).is_ok();
            self.inner.not_taken.inc();
            tracing::error!(err = %error, path = %path.display(), moved, "a kept view was not used; nothing is allowed by it");
        }
    }

    /// The tenant's view.
    ///
    /// # Errors
    /// [`Reason::NoPolicy`] when there is none, [`Reason::PolicyStale`] when it is older than it may be.
    pub fn current(&self, tenant: &TenantName) -> Result<Arc<View>, Reason> {
        let views = self.inner.views.load();
        let view = views.get(tenant).ok_or(Reason::NoPolicy)?;
        let age = jiff::Timestamp::now().duration_since(view.head.issued_at);
        if age
            > jiff::SignedDuration::try_from(self.inner.max_age)
                .unwrap_or(jiff::SignedDuration::MAX)
        {
            return Err(Reason::PolicyStale);
        }
        Ok(Arc::clone(view))
    }

    /// Which versions are held.
    #[must_use]
    pub fn versions(&self) -> BTreeMap<TenantName, ViewVersion> {
        self.inner
            .views
            .load()
            .iter()
            .map(|(tenant, view)| (tenant.clone(), view.head.version))
            .collect()
    }

    /// Whether the controller sent or confirmed a view since the start.
    #[must_use]
    pub fn is_confirmed(&self) -> bool {
        self.inner.confirmed.load(Ordering::Acquire)
    }

    /// Tells of every change from here on.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changes.subscribe()
    }

    /// Takes a whole view over.
    ///
    /// # Errors
    /// When it cannot be verified, or is older than the one that is held.
    pub fn put(&self, signed: SignedView) -> Result<(), TakeError> {
        let taken = self.take(signed, Keep::OnDisk);
        if taken.is_err() {
            self.inner.not_taken.inc();
        }
        taken
    }

    /// Takes a change over.
    ///
    /// # Errors
    /// When it is to another version than the one that is held, or the outcome cannot be verified.
    pub fn apply(
        &self,
        head: SignedHead,
        from: ViewVersion,
        delta: Delta,
    ) -> Result<(), TakeError> {
        let base = self.inner.signed.lock().get(&head.head.tenant).cloned();
        let mut signed = base
            .filter(|base| base.head.head.version == from)
            .ok_or(TakeError::WrongBase)?;
        signed.entries.apply(delta);
        signed.head = head;
        self.put(signed)
    }

    /// Shows in `registry` how often a view was not taken: somebody should look at the controller then.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "views_not_taken",
            "Views that were altered, older than the one that is held, or not understood",
            self.inner.not_taken.clone(),
        );
    }

    fn take(&self, signed: SignedView, keep: Keep) -> Result<(), TakeError> {
        let trust = self.inner.trust.current();
        // A kept view that has become too old is still known to be that: `current` says so and allows nothing by it.
        let max_age = match keep {
            Keep::OnDisk => self.inner.max_age,
            Keep::InMemory => Duration::MAX,
        };
        let view = signed.verify(&trust, jiff::Timestamp::now(), max_age)?;
        let tenant = view.head.tenant.clone();
        let mut all = self.inner.signed.lock();
        if let Some(held) = all.get(&tenant).map(|held| held.head.head.version)
            && view.head.version < held
        {
            return Err(TakeError::Older {
                offered: view.head.version,
                held,
            });
        }
        if matches!(keep, Keep::OnDisk) {
            self.keep(&tenant, &signed);
            self.inner.confirmed.store(true, Ordering::Release);
        }
        let mut views = BTreeMap::clone(&self.inner.views.load());
        views.insert(tenant.clone(), Arc::new(view));
        self.inner.views.store(Arc::new(views));
        all.insert(tenant, signed);
        drop(all);
        self.inner.changes.send_modify(|count| *count += 1);
        Ok(())
    }

    /// A disk that takes no more costs the next start its policy, not this run.
    fn keep(&self, tenant: &TenantName, signed: &SignedView) {
        let path = self.inner.dir.join(format!("{tenant}.json"));
        let kept = serde_json::to_vec(signed)
            .map_err(|error| error.to_string())
            .and_then(|bytes| files::write_private(&path, &bytes).map_err(text_of));
        if let Err(error) = kept {
            tracing::error!(err = %error, "the view could not be kept on disk");
        }
    }
}

fn text_of(error: files::FileError) -> String {
    error.to_string()
}

#[derive(Clone, Copy)]
enum Keep {
    OnDisk,
    InMemory,
}
