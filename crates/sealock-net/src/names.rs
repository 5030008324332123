//! The addresses of hosts, by the system's resolver: one question for a name at a time, and what was known before when
//! the resolver fails.
//!
//! The resolver is the process's own (its files and its order of sources), so its answers are shared by all of the
//! process. It does not tell how long an answer holds: one is used for a second, then asked for again. When the resolver
//! cannot answer, the last good answer serves for a day (RFC 8767 §4); when it says that the name does not exist, that
//! is believed.
//! Deliberately absent: a resolver of our own, with servers of its own.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use dns_lookup::{AddrInfoHints, LookupError, LookupErrorKind, SockType};
use parking_lot::Mutex;
use sealock_core::address::HostPort;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

const FRESH: Duration = Duration::from_secs(1); // many flows that open at once ask once; a move is seen soon
const REFUSED: Duration = Duration::from_secs(1); // as long is «no» believed before it is asked again
const STALE: Duration = Duration::from_secs(24 * 3_600); // RFC 8767 §5 says one to three days
const STALE_AFTER: Duration = Duration::from_millis(1_800); // what RFC 8767 §5 lets a client wait
const PATIENCE: Duration = Duration::from_secs(5); // the system's resolver asks the next server after as long
/// Names that are remembered; beyond, the one that was used least lately is forgotten.
const NAMES_LIMIT: usize = 1_024;
/// Addresses that are kept of an answer: more than anybody tries.
const ADDRESSES_LIMIT: usize = 16;
/// Questions at a time, each of which holds a thread until the system answers.
const ASKING_LIMIT: usize = 16;

/// Why a name has no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// It does not exist, or has no address.
    #[error("there is no such host, or it has no address")]
    Unknown,
    /// The resolver could not tell, and nothing was known before.
    #[error("the resolver failed: {0}")]
    Failed(String),
    /// The resolver did not answer in time, and nothing was known before.
    #[error("the resolver does not answer")]
    Slow,
    /// So many other names are asked for that this one has to wait.
    #[error("too many names are asked for at once")]
    Busy,
}

type Answer = Result<Vec<IpAddr>, NameError>;
/// Asks the system, for as long as that takes.
type Ask = dyn Fn(&str) -> Answer + Send + Sync;

/// The addresses of host names; clones share what they know.
#[derive(Clone)]
pub struct Names {
    ask: Arc<Ask>,
    known: Arc<Mutex<HashMap<String, Arc<Name>>>>,
    asking: Arc<Semaphore>,
}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Names").finish_non_exhaustive()
    }
}

static SYSTEM: LazyLock<Names> = LazyLock::new(|| Names::asked_of(Arc::new(ask_system)));

/// The addresses of a host, in the order in which the system would try them.
///
/// # Errors
/// Why there are none. After five seconds at most.
///
/// # Cancel safety
/// Safe: a question that was asked goes on, and its answer is there for the next one.
pub async fn lookup(host: &HostPort) -> Result<Vec<SocketAddr>, NameError> {
    if let Some(address) = host.as_socket_addr() {
        return Ok(vec![address]);
    }
    let found = SYSTEM.lookup(host.host()).await?;
    let addresses = found.into_iter();
    Ok(addresses.map(|ip| (ip, host.port()).into()).collect())
}

fn ask_system(host: &str) -> Answer {
    let hints = AddrInfoHints {
        socktype: SockType::Stream.into(), // else each address comes once for every kind of socket
        ..AddrInfoHints::default()
    };
    let found = dns_lookup::getaddrinfo(Some(host), None, Some(hints));
    let found: io::Result<Vec<_>> = found.map_err(name_error)?.collect();
    let found = found.map_err(|error| NameError::Failed(error.to_string()))?;
    Ok(found.into_iter().map(|info| info.sockaddr.ip()).collect())
}

fn name_error(error: LookupError) -> NameError {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "a foreign enum; all other kinds say that the resolver failed"
    )]
    match error.kind() {
        LookupErrorKind::NoName | LookupErrorKind::NoData => NameError::Unknown,
        _ => NameError::Failed(io::Error::from(error).to_string()),
    }
}

impl Names {
    fn asked_of(ask: Arc<Ask>) -> Self {
        Self {
            ask,
            known: Arc::default(),
            asking: Arc::new(Semaphore::new(ASKING_LIMIT)),
        }
    }

    async fn lookup(&self, host: &str) -> Answer {
        let name = self.name(host);
        let begun = Instant::now();
        loop {
            let mut news = std::pin::pin!(name.news.notified());
            news.as_mut().enable();
            let patience = match name.look(Instant::now()) {
                Look::Done(answer) => return answer,
                Look::Ask => {
                    self.ask(host, &name);
                    continue;
                }
                Look::Wait(patience) => patience,
            };
            if tokio::time::timeout_at(begun + patience, news)
                .await
                .is_err()
            {
                return name.known_before(Instant::now()).ok_or(NameError::Slow);
            }
        }
    }

    fn name(&self, host: &str) -> Arc<Name> {
        let host = host.to_ascii_lowercase();
        let mut known = self.known.lock();
        if known.len() >= NAMES_LIMIT && !known.contains_key(&host) {
            let oldest = known.iter().min_by_key(|(_, name)| name.state.lock().used);
            let oldest = oldest.map(|(host, _)| host.clone());
            known.remove(&oldest.unwrap_or_default());
        }
        let name = known.entry(host).or_default();
        name.state.lock().used = Some(Instant::now());
        Arc::clone(name)
    }

    /// The answer is kept even when nobody waits for it any more.
    fn ask(&self, host: &str, name: &Arc<Name>) {
        let Ok(place) = Arc::clone(&self.asking).try_acquire_owned() else {
            name.learn(Err(NameError::Busy));
            return;
        };
        let (ask, host) = (Arc::clone(&self.ask), host.to_owned());
        let question = Question {
            name: Arc::clone(name),
            _place: place,
        };
        tokio::task::spawn_blocking(move || question.end(ask(&host)));
    }
}

/// A question that the system has not answered yet. Dropped, it failed.
struct Question {
    name: Arc<Name>,
    _place: OwnedSemaphorePermit,
}

impl Question {
    fn end(self, answer: Answer) {
        self.name.learn(answer);
    }
}

impl Drop for Question {
    fn drop(&mut self) {
        // Also when the resolver panicked or the runtime ends: who waits must not wait for ever.
        let failed = NameError::Failed("the question was dropped".to_owned());
        self.name.learn(Err(failed));
    }
}

/// What is known of a name.
#[derive(Debug, Default)]
struct Name {
    state: Mutex<State>,
    news: Notify,
}

#[derive(Debug, Default)]
struct State {
    is_asked: bool,
    good: Option<(Instant, Vec<IpAddr>)>,
    refused: Option<(Instant, NameError)>,
    used: Option<Instant>,
}

enum Look {
    Done(Answer),
    Ask,
    Wait(Duration),
}

impl State {
    fn good_for(&self, span: Duration, now: Instant) -> Option<Vec<IpAddr>> {
        let (since, addresses) = self.good.as_ref()?;
        (now < *since + span).then(|| addresses.clone())
    }
}

impl Name {
    fn look(&self, now: Instant) -> Look {
        let mut state = self.state.lock();
        if let Some(addresses) = state.good_for(FRESH, now) {
            return Look::Done(Ok(addresses));
        }
        if let Some((since, error)) = &state.refused
            && now < *since + REFUSED
        {
            let stale = state.good_for(STALE, now);
            return Look::Done(stale.ok_or_else(|| error.clone()));
        }
        if !std::mem::replace(&mut state.is_asked, true) {
            return Look::Ask;
        }
        let is_known = state.good_for(STALE, now).is_some();
        Look::Wait(if is_known { STALE_AFTER } else { PATIENCE })
    }

    fn known_before(&self, now: Instant) -> Option<Vec<IpAddr>> {
        self.state.lock().good_for(STALE, now)
    }

    fn learn(&self, answer: Answer) {
        let mut state = self.state.lock();
        if !std::mem::replace(&mut state.is_asked, false) {
            return; // answered already
        }
        let now = Instant::now();
        match answer {
            Ok(mut addresses) if !addresses.is_empty() => {
                addresses.truncate(ADDRESSES_LIMIT);
                state.good = Some((now, addresses));
                state.refused = None;
            }
            Ok(_) | Err(NameError::Unknown) => {
                state.good = None;
                state.refused = Some((now, NameError::Unknown));
            }
            Err(error) => state.refused = Some((now, error)),
        }
        drop(state);
        self.news.notify_waiters();
    }
}

#[cfg(test)]
mod tests;
