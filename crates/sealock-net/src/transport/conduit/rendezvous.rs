//! Where a relay brings the two ends of a conduit together.
//!
//! An end is let in only while a leg that the relay itself has opened waits for it, only from the very agent that it was
//! opened for, and only once. With the leg its conduit ends.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use sealock_core::identity::AgentId;
use sealock_core::reason::Reason;
use sealock_proto::wire::{ConduitId, Join};
use tokio_util::sync::CancellationToken;

use super::Arriving;
use super::pour::pour;
use crate::limit::{Entered, PeerLimit};
use crate::sys;

/// How many conduits there may be, and how many of one caller.
const LIMIT: usize = 512;
const LIMIT_PER_CALLER: usize = 64;
/// What a conduit needs: two connections, and two pipes with two ends each.
const FILES: usize = 6;
/// Which part of the files that the process may open is for conduits: sessions come first.
const PART: usize = 4;
/// Which part of the conduits one caller may have at most.
const PART_OF_CALLER: usize = 4;
/// How long an end may take to say which conduit it is of.
const WORD_DEADLINE: Duration = Duration::from_secs(5);

/// The conduits of a relay; clones share them.
#[derive(Debug, Clone)]
pub struct Conduits(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    awaited: Mutex<HashMap<ConduitId, Awaited>>,
    limit: PeerLimit,
    /// How many carry bytes.
    joined: AtomicUsize,
}

/// Bytes that were moved: of the opener, and of the accepter.
#[derive(Debug, Default)]
struct Moved {
    up: AtomicU64,
    down: AtomicU64,
}

/// A conduit of which at least one end is missing.
#[derive(Debug)]
struct Awaited {
    opener: AgentId,
    accepter: AgentId,
    first: Option<End>,
    moved: Arc<Moved>,
    over: CancellationToken,
}

/// An end that has arrived.
#[derive(Debug)]
struct End {
    arriving: Arriving,
    join: Join,
}

/// Two ends that belong together.
struct Pair {
    opener: End,
    accepter: End,
    moved: Arc<Moved>,
    over: CancellationToken,
}

/// That a conduit may come; dropped, it ends.
#[derive(Debug)]
pub struct Expected {
    conduits: Conduits,
    id: ConduitId,
    moved: Arc<Moved>,
    over: CancellationToken,
    _place: Entered,
}

impl Expected {
    /// How many bytes went over it, from the opener and from the accepter.
    #[must_use]
    pub fn moved(&self) -> (u64, u64) {
        let now = |count: &AtomicU64| count.load(Ordering::Relaxed);
        (now(&self.moved.up), now(&self.moved.down))
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        self.over.cancel();
        self.conduits.0.awaited.lock().remove(&self.id);
    }
}

impl Default for Conduits {
    fn default() -> Self {
        Self::within(sys::file_limit())
    }
}

impl Conduits {
    /// As many as do no harm where the process may open so many files.
    pub(super) fn within(files: usize) -> Self {
        let all = LIMIT.min(files / PART / FILES);
        let of_one = LIMIT_PER_CALLER.min(all.div_ceil(PART_OF_CALLER));
        Self(Arc::new(Inner {
            awaited: Mutex::default(),
            limit: PeerLimit::new(all, of_one),
            joined: AtomicUsize::new(0),
        }))
    }

    /// Lets the two agents bring a conduit of this name; nothing when there are too many, or the name is taken.
    #[must_use]
    pub fn expect(&self, id: ConduitId, opener: AgentId, accepter: AgentId) -> Option<Expected> {
        let place = self.0.limit.enter(&opener)?;
        let (moved, over) = (Arc::<Moved>::default(), CancellationToken::new());
        let mut awaited = self.0.awaited.lock();
        if awaited.contains_key(&id) {
            return None;
        }
        awaited.insert(
            id,
            Awaited {
                opener,
                accepter,
                first: None,
                moved: Arc::clone(&moved),
                over: over.clone(),
            },
        );
        drop(awaited);
        Some(Expected {
            conduits: self.clone(),
            id,
            moved,
            over,
            _place: place,
        })
    }

    /// How many conduits carry bytes.
    #[must_use]
    pub fn joined(&self) -> usize {
        self.0.joined.load(Ordering::Relaxed)
    }

    /// Serves somebody who comes with an end: the second one stays until the conduit's end.
    pub async fn serve(&self, mut arriving: Arriving) {
        let said = tokio::time::timeout(WORD_DEADLINE, arriving.hear()).await;
        let Ok(Some(join)) = said else {
            arriving.refuse(Reason::ProtocolViolation).await;
            return;
        };
        match self.let_in(End { arriving, join }) {
            Ok(Some(pair)) => {
                let over = pair.over.clone();
                tokio::select! {
                    biased; // with its leg a conduit ends, even while bytes move
                    () = over.cancelled() => {}
                    ended = self.run(pair) => if let Err(error) = ended {
                        tracing::debug!(err = %error, "a conduit broke");
                    }
                }
            }
            Ok(None) => {} // it waits for the other one
            Err(stranger) => {
                tracing::debug!(peer = %stranger.peer().id, "an end of no conduit that is awaited");
                stranger.refuse(Reason::AttachRefused).await;
            }
        }
    }

    /// Keeps an end until the other one is there. A name that is not known, an agent that it was not meant for and an end
    /// that is there already are told apart for nobody.
    fn let_in(&self, end: End) -> Result<Option<Pair>, Box<Arriving>> {
        let id = end.join.conduit;
        let mut all = self.0.awaited.lock();
        let Some(awaited) = all.get_mut(&id) else {
            return Err(Box::new(end.arriving));
        };
        let meant = if end.join.is_opener {
            &awaited.opener
        } else {
            &awaited.accepter
        };
        let is_meant = end.arriving.peer().agent() == Some(meant);
        let is_there = |first: &End| first.join.is_opener == end.join.is_opener;
        if !is_meant || awaited.first.as_ref().is_some_and(is_there) {
            return Err(Box::new(end.arriving));
        }
        let Some(first) = awaited.first.take() else {
            awaited.first = Some(end);
            return Ok(None);
        };
        let Some(awaited) = all.remove(&id) else {
            return Ok(None); // it was there a moment ago, under the same lock
        };
        let (opener, accepter) = if end.join.is_opener {
            (end, first)
        } else {
            (first, end)
        };
        Ok(Some(Pair {
            opener,
            accepter,
            moved: awaited.moved,
            over: awaited.over,
        }))
    }

    async fn run(&self, pair: Pair) -> io::Result<()> {
        let Pair {
            opener,
            accepter,
            moved,
            ..
        } = pair;
        let (from_opener, from_accepter) = (opener.join.salt, accepter.join.salt);
        // Both at once: neither can hold up the other.
        let (opener, accepter) = tokio::try_join!(
            opener.arriving.joined(from_accepter),
            accepter.arriving.joined(from_opener),
        )?;
        let _counted = Counted::new(&self.0.joined);
        tokio::try_join!(
            pour(&opener, &accepter, &moved.up),
            pour(&accepter, &opener, &moved.down),
        )?;
        Ok(())
    }
}

/// One in a count, until dropped.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
