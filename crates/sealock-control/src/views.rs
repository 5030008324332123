//! Views as nodes get them: built from the store, signed, kept for a few versions, and announced.
//!
//! One task builds. It looks at the store when somebody says that something changed, and every second besides, so a
//! change whose author went away before saying so is out within the five seconds that a revocation may take. Watchers
//! are told only that there is something new; each compares for itself and takes the delta, or the whole view when it
//! fell too far behind. So no watcher has a queue that could grow, and a slow one costs nothing.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use sealock_core::name::TenantName;
use sealock_core::view::{Delta, Entries, Head, ViewVersion};
use sealock_net::node_api::WatchEvent;
use sealock_net::task::Spawner;
use sealock_net::tls::signed::{SignError, SignedHead, ViewSigner};
use tokio::sync::{Notify, watch};

use crate::store::{Store, StoreError};

const LOOK: Duration = Duration::from_secs(1); // leaves four of the five seconds for the way to the nodes
const KEPT: usize = 8; // a watcher further behind gets the whole view
const REFRESHED: SignedDuration = SignedDuration::from_mins(10); // far below the day after which nodes stop to trust a view

/// One version of a tenant's view, ready to send.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// The head and its signature.
    pub head: SignedHead,
    /// What the head is of.
    pub entries: Arc<Entries>,
    /// What leads here from older versions: made once, for all watchers that are equally far behind.
    deltas: Arc<Mutex<BTreeMap<ViewVersion, Delta>>>,
}

impl Snapshot {
    fn version(&self) -> ViewVersion {
        self.head.head.version
    }

    fn delta_from(&self, base: &Self) -> Delta {
        let mut deltas = self.deltas.lock();
        let delta = deltas
            .entry(base.version())
            .or_insert_with(|| base.entries.delta_to(&self.entries));
        delta.clone()
    }

    /// Which snapshot this is: a head that was signed again has the same version, but is news.
    pub(crate) fn mark(&self) -> Mark {
        Mark {
            version: self.version(),
            issued_at: self.head.head.issued_at,
        }
    }
}

/// What a watcher has of a tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) version: ViewVersion,
    pub(crate) issued_at: Timestamp,
}

/// Why a view was not built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The signer failed.
    #[error(transparent)]
    Sign(#[from] SignError),
}

/// The newest views of all tenants.
pub struct Views {
    store: Arc<dyn Store>,
    signer: Mutex<ViewSigner>,
    /// The newest last; held for a few lines, never across an await.
    published: Mutex<BTreeMap<TenantName, VecDeque<Snapshot>>>,
    news: watch::Sender<u64>,
    poke: Notify,
}

impl fmt::Debug for Views {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Views").finish_non_exhaustive()
    }
}

impl Views {
    /// Builds the view of every tenant once.
    ///
    /// # Errors
    /// When the store or the signer fails.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn open(
        store: Arc<dyn Store>,
        signer: ViewSigner,
        now: Timestamp,
    ) -> Result<Arc<Self>, BuildError> {
        let views = Self {
            store,
            signer: Mutex::new(signer),
            published: Mutex::new(BTreeMap::new()),
            news: watch::Sender::new(0),
            poke: Notify::new(),
        };
        views.build(now).await?;
        Ok(Arc::new(views))
    }

    /// Says that something changed; returns at once.
    pub fn poke(&self) {
        self.poke.notify_one();
    }

    /// Signs with another certificate from here on.
    pub fn set_signer(&self, signer: ViewSigner) {
        *self.signer.lock() = signer;
    }

    /// Resolves anew whenever there is something new.
    pub(crate) fn news(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    /// Tells every watcher to look again, though no view changed.
    pub(crate) fn announce(&self) {
        self.news.send_modify(|count| *count += 1);
    }

    /// How many watch.
    #[must_use]
    pub fn watchers(&self) -> usize {
        self.news.receiver_count()
    }

    /// The newest view of a tenant.
    #[must_use]
    pub fn newest(&self, tenant: &TenantName) -> Option<Snapshot> {
        self.published.lock().get(tenant)?.back().cloned()
    }

    /// Every tenant that has a view.
    #[must_use]
    pub fn tenants(&self) -> Vec<TenantName> {
        self.published.lock().keys().cloned().collect()
    }

    /// What leads a watcher to the newest view, or nothing when it has that.
    pub(crate) fn step(
        &self,
        tenant: &TenantName,
        have: Option<Mark>,
    ) -> Option<(Mark, WatchEvent)> {
        let (newest, base) = {
            let published = self.published.lock();
            let kept = published.get(tenant)?;
            let newest = kept.back()?.clone();
            let version = have.map(|have| have.version);
            let base = kept.iter().find(|kept| Some(kept.version()) == version);
            (newest, base.cloned())
        };
        if have == Some(newest.mark()) {
            return None;
        }
        let mark = newest.mark();
        let event = match (base, have) {
            (Some(base), Some(have)) => WatchEvent::Delta {
                from: have.version,
                delta: newest.delta_from(&base),
                head: newest.head,
            },
            (None, _) | (_, None) => WatchEvent::Full {
                head: newest.head,
                entries: Arc::unwrap_or_clone(newest.entries),
            },
        };
        Some((mark, event))
    }

    /// Builds what changed until the scope is asked to stop.
    pub async fn run(self: Arc<Self>, spawner: Spawner, now: fn() -> Timestamp) {
        loop {
            tokio::select! {
                biased; // a stopping controller announces nothing more
                () = spawner.stopping() => return,
                () = self.poke.notified() => {}
                () = tokio::time::sleep(LOOK) => {}
            }
            // Nodes keep the last good view; what could not be built is tried again in a second.
            if let Err(err) = self.build(now()).await {
                tracing::warn!(%err, "the views could not be built");
            }
        }
    }

    /// Builds the view of every tenant whose version is new or whose head is old.
    async fn build(&self, now: Timestamp) -> Result<(), BuildError> {
        let mut is_news = false;
        for (tenant, version) in self.store.versions().await? {
            let newest = self.newest(&tenant);
            let is_current = newest.is_some_and(|newest| {
                let age = now.duration_since(newest.head.head.issued_at);
                newest.version() == version && age < REFRESHED
            });
            if is_current {
                continue;
            }
            let (version, entries) = self.store.view(&tenant).await?;
            let head = Head {
                tenant: tenant.clone(),
                version,
                issued_at: now,
                digest: entries.digest(),
            };
            let head = self.signer.lock().sign(head)?;
            let snapshot = Snapshot {
                head,
                entries: Arc::new(entries),
                deltas: Arc::default(),
            };
            self.publish(tenant, snapshot);
            is_news = true;
        }
        if is_news {
            self.announce();
        }
        Ok(())
    }

    fn publish(&self, tenant: TenantName, snapshot: Snapshot) {
        let mut published = self.published.lock();
        let kept = published.entry(tenant).or_default();
        kept.retain(|old| old.version() != snapshot.version());
        kept.push_back(snapshot);
        while kept.len() > KEPT {
            kept.pop_front();
        }
    }
}
