//! The resolvers that are asked, and what is kept of their answers.
//!
//! A question that is under way is not asked twice: whoever comes later waits for the same answer. When there is an
//! older answer nobody waits longer than RFC 8767 says. Which resolver answered last is asked first.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use sealock_core::host::HostName;
use sealock_proto::dns::cache::{Cache, Key, Look};
use sealock_proto::dns::upstream::Answer;
use sealock_proto::dns::wire::Question;
use tokio::sync::watch;

use super::ask::{AskError, PATIENCE, ask};
use crate::task::Spawner;

/// How long a client is kept waiting while there is an old answer (RFC 8767 §5).
const STALE_AFTER: Duration = Duration::from_millis(1_800);
/// How long a question is tried at all: resolvers in stubs wait five seconds, and ask again then.
const DEADLINE: Duration = Duration::from_secs(5);
/// Questions under way; more would be a storm, and are refused.
const FLIGHTS_LIMIT: usize = 512;
/// Every resolver is tried twice: a datagram may be lost.
const ROUNDS: usize = 2;

/// What there is to say to a question.
#[derive(Debug)]
pub(super) enum Found {
    /// An answer, and its age.
    Answer(Arc<Answer>, Duration),
    /// An old answer, because resolvers fail.
    Stale(Arc<Answer>),
    /// No resolver answers.
    Silent,
    /// No answer can be used.
    Failed,
}

type Flight = Option<Result<Arc<Answer>, bool>>;

/// Resolvers with a common memory; clones share it.
#[derive(Debug, Clone)]
pub struct Upstreams {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    zones: Vec<Zone>,
    cache: Mutex<Cache>,
    flights: Mutex<HashMap<Key, watch::Receiver<Flight>>>,
    tasks: Spawner,
}

#[derive(Debug)]
struct Zone {
    resolvers: Vec<SocketAddr>,
    /// Which one answered last.
    best: AtomicUsize,
}

impl Upstreams {
    /// The first resolvers know everything, the others one zone each, in the order of the settings' split.
    #[must_use]
    pub fn new(first: Vec<SocketAddr>, split: Vec<Vec<SocketAddr>>, tasks: Spawner) -> Self {
        let all = std::iter::once(first).chain(split);
        let zones = all.map(|resolvers| Zone {
            resolvers,
            best: AtomicUsize::new(0),
        });
        Self {
            inner: Arc::new(Inner {
                zones: zones.collect(),
                cache: Mutex::default(),
                flights: Mutex::default(),
                tasks,
            }),
        }
    }

    /// # Cancel safety
    /// Safe: a question that was asked goes on.
    pub(super) async fn find(&self, zone: usize, name: &HostName, kind: u16) -> Found {
        let key = (zone, name.clone(), kind);
        let look = self.inner.cache.lock().look(Instant::now(), &key);
        let stale = match look {
            Look::Fresh { answer, age, renew } => {
                if renew {
                    self.flight(key);
                }
                return Found::Answer(answer, age);
            }
            Look::Failed(Some(stale)) => return Found::Stale(stale),
            Look::Failed(None) => return Found::Silent,
            Look::Ask(stale) => stale,
        };
        let Some(mut flight) = self.flight(key) else {
            return stale.map_or(Found::Failed, Found::Stale);
        };
        let patience = if stale.is_some() {
            STALE_AFTER
        } else {
            DEADLINE + PATIENCE
        };
        let landed = tokio::time::timeout(patience, flight.wait_for(Option::is_some)).await;
        let told = landed
            .ok()
            .and_then(Result::ok)
            .and_then(|told| told.clone());
        match (told, stale) {
            (Some(Ok(answer)), _) => Found::Answer(answer, Duration::ZERO),
            (_, Some(stale)) => Found::Stale(stale),
            (Some(Err(true)), None) => Found::Failed,
            (Some(Err(false)) | None, None) => Found::Silent,
        }
    }

    /// The question that is under way, or a new one; `None` when too many are.
    fn flight(&self, key: Key) -> Option<watch::Receiver<Flight>> {
        let mut flights = self.inner.flights.lock();
        if let Some(flight) = flights.get(&key) {
            return Some(flight.clone());
        }
        if flights.len() >= FLIGHTS_LIMIT {
            return None;
        }
        let (tell, flight) = watch::channel(None);
        flights.insert(key.clone(), flight.clone());
        let landing = Landing {
            upstreams: self.clone(),
            key,
            tell,
        };
        self.inner.tasks.spawn("dns upstream", async move {
            let told = landing.upstreams.ask_all(&landing.key).await;
            landing.land(told);
        });
        Some(flight)
    }

    async fn ask_all(&self, key: &Key) -> Result<Arc<Answer>, bool> {
        let (zone, name, kind) = key;
        let Some(zone) = self.inner.zones.get(*zone) else {
            return Err(false);
        };
        let question = Question::of(name, *kind);
        let asked = zone.ask(&question);
        tokio::time::timeout(DEADLINE, asked)
            .await
            .unwrap_or(Err(false))
    }
}

/// A question that is under way. Dropped, it failed: whoever waits is told, and the next one asks again.
struct Landing {
    upstreams: Upstreams,
    key: Key,
    tell: watch::Sender<Flight>,
}

impl Landing {
    fn land(self, told: Result<Arc<Answer>, bool>) {
        let answer = told.as_ref().ok().cloned();
        let mut cache = self.upstreams.inner.cache.lock();
        cache.learn(Instant::now(), self.key.clone(), answer);
        drop(cache);
        self.tell.send_replace(Some(told));
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        self.upstreams.inner.flights.lock().remove(&self.key);
    }
}

impl Zone {
    /// The first usable answer; else whether any resolver answered.
    async fn ask(&self, question: &Question) -> Result<Arc<Answer>, bool> {
        let count = self.resolvers.len();
        let best = self.best.load(Ordering::Relaxed);
        let mut has_answered = false;
        for turn in 0..count * ROUNDS {
            let index = (best + turn) % count;
            match ask(self.resolvers[index], question).await {
                Ok(answer) => {
                    self.best.store(index, Ordering::Relaxed);
                    return Ok(Arc::new(answer));
                }
                Err(AskError::Silent) => {}
                Err(AskError::Unusable(error)) => {
                    has_answered = true;
                    tracing::debug!(err = %error, "a resolver's answer cannot be used");
                }
            }
        }
        Err(has_answered)
    }
}
