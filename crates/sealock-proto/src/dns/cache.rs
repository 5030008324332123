//! What is kept of answers: fresh ones while they hold, old ones for when upstreams fail, and that they failed.
//!
//! A question that is asked often is asked again a little before its answer ends, so that nobody waits for it. Deliberately
//! absent: the asking, which is for who owns the cache; this says only whether it is time.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sealock_core::host::HostName;

use super::upstream::{Answer, Content};

/// How long an answer serves behind its end while upstreams fail (RFC 8767 §5: one to three days).
const STALE: Duration = Duration::from_secs(24 * 3_600);
/// What an old answer says how long it may be kept, in seconds (RFC 8767 §4).
pub const STALE_TTL: u32 = 30;
/// After a failure nobody is asked for so long (RFC 9520 §3.2: at least a second).
const FAILED: Duration = Duration::from_secs(1);
/// Answers that were asked for again are renewed when less than one tenth of their time is left.
const AHEAD: u32 = 10;
/// Answers that are kept; beyond, the one that was used longest ago is forgotten.
pub const ENTRIES_LIMIT: usize = 8_192;
/// The memory for answers that are kept as bytes.
const BYTES_LIMIT: usize = 8 * 1024 * 1024;
/// What an entry takes besides its bytes, roughly.
const ENTRY_SIZE: usize = 512;

/// What a question is kept by: which upstreams were asked, for which name and type.
pub type Key = (usize, HostName, u16);

/// What the cache knows of a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Look {
    /// An answer, and how old it is.
    Fresh {
        /// The answer.
        answer: Arc<Answer>,
        /// How long ago it came.
        age: Duration,
        /// Whether it is time to ask again, without anybody waiting; said once.
        renew: bool,
    },
    /// It is to be asked; until there is an answer, there may be an old one.
    Ask(Option<Arc<Answer>>),
    /// Upstreams failed just now; there may be an old answer.
    Failed(Option<Arc<Answer>>),
}

/// Answers by their questions.
#[derive(Debug, Default)]
pub struct Cache {
    entries: HashMap<Key, Entry>,
    used: BTreeMap<u64, Key>,
    uses: u64,
    bytes: usize,
}

#[derive(Debug, Default)]
struct Entry {
    answer: Option<(Instant, Arc<Answer>)>,
    failed: Option<Instant>,
    is_renewed: bool,
    hits: u32,
    used: u64,
}

fn size(answer: &Answer) -> usize {
    ENTRY_SIZE
        + match &answer.content {
            Content::Addresses(addresses) => addresses.len() * 17,
            Content::Records(records) => records.aged(Duration::ZERO, 0).bytes.len(),
        }
}

impl Cache {
    /// What is known of a question.
    pub fn look(&mut self, now: Instant, key: &Key) -> Look {
        let Some(entry) = self.entries.get_mut(key) else {
            return Look::Ask(None);
        };
        self.uses += 1;
        self.used.remove(&entry.used);
        entry.used = self.uses;
        self.used.insert(self.uses, key.clone());
        entry.look(now)
    }

    /// Takes over what came of a question; `None` when the upstreams failed.
    pub fn learn(&mut self, now: Instant, key: Key, answer: Option<Arc<Answer>>) {
        self.uses += 1;
        let entry = self.entries.entry(key.clone()).or_default();
        self.used.remove(&entry.used);
        entry.used = self.uses;
        self.used.insert(self.uses, key);
        entry.is_renewed = false;
        match answer {
            None => entry.failed = Some(now),
            Some(answer) => {
                entry.failed = None;
                entry.hits = 0;
                self.bytes += size(&answer);
                let old = entry.answer.replace((now, answer));
                self.bytes -= old.map_or(0, |(_, old)| size(&old));
            }
        }
        while self.entries.len() > ENTRIES_LIMIT || self.bytes > BYTES_LIMIT {
            let Some((_, oldest)) = self.used.pop_first() else {
                break;
            };
            let gone = self.entries.remove(&oldest).and_then(|entry| entry.answer);
            self.bytes -= gone.map_or(0, |(_, answer)| size(&answer));
        }
    }

    /// How many questions are known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

impl Entry {
    fn look(&mut self, now: Instant) -> Look {
        if let Some((came, answer)) = &self.answer {
            let age = now.saturating_duration_since(*came);
            if age < answer.ttl {
                self.hits = self.hits.saturating_add(1);
                let is_late = answer.ttl - age < answer.ttl / AHEAD;
                let renew = is_late && self.hits > 1 && !self.is_renewed && !self.has_failed(now);
                self.is_renewed |= renew;
                let answer = Arc::clone(answer);
                return Look::Fresh { answer, age, renew };
            }
        }
        let old = self.answer.as_ref().filter(|(came, answer)| {
            let age = now.saturating_duration_since(*came);
            // A «no» is no help when upstreams fail: the name may be there by now.
            !answer.is_empty() && age < answer.ttl + STALE
        });
        let old = old.map(|(_, answer)| Arc::clone(answer));
        if self.has_failed(now) {
            Look::Failed(old)
        } else {
            Look::Ask(old)
        }
    }

    fn has_failed(&self, now: Instant) -> bool {
        self.failed.is_some_and(|at| now < at + FAILED)
    }
}

#[cfg(test)]
mod tests {
    use super::super::origin;
    use super::*;

    fn key(name: &str) -> Key {
        (0, name.parse().expect("a host name"), 1)
    }

    fn answer(ttl: u64, addresses: usize) -> Arc<Answer> {
        Arc::new(Answer {
            exists: true,
            content: Content::Addresses(vec![[192, 0, 2, 1].into(); addresses]),
            ttl: Duration::from_secs(ttl),
        })
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn an_answer_is_fresh_while_it_may_be_kept_and_serves_on_when_upstreams_fail() {
        let (mut cache, now, key) = (Cache::default(), origin(), key("a.example"));
        assert_eq!(cache.look(now, &key), Look::Ask(None));
        let known = answer(60, 1);
        cache.learn(now, key.clone(), Some(Arc::clone(&known)));
        let fresh = |age, renew| Look::Fresh {
            answer: Arc::clone(&known),
            age,
            renew,
        };
        assert_eq!(cache.look(now + SECOND, &key), fresh(SECOND, false));
        let later = now + SECOND * 60;
        let old = Some(Arc::clone(&known));
        assert_eq!(cache.look(later, &key), Look::Ask(old.clone()));
        cache.learn(later, key.clone(), None);
        assert_eq!(cache.look(later, &key), Look::Failed(old.clone()));
        assert_eq!(cache.look(later + FAILED, &key), Look::Ask(old));
        assert_eq!(cache.look(later + STALE, &key), Look::Ask(None));
    }

    // F42: an answer that may not be kept is not kept, and a «no» does not outlive its time.
    #[test]
    fn what_may_not_be_kept_is_asked_again() {
        let (mut cache, now, key) = (Cache::default(), origin(), key("a.example"));
        cache.learn(now, key.clone(), Some(answer(0, 1)));
        assert!(matches!(cache.look(now, &key), Look::Ask(Some(_))));
        cache.learn(now, key.clone(), Some(answer(5, 0)));
        assert!(matches!(cache.look(now, &key), Look::Fresh { .. }));
        assert_eq!(cache.look(now + SECOND * 5, &key), Look::Ask(None));
    }

    #[test]
    fn an_answer_that_is_used_is_renewed_once_before_it_ends() {
        let (mut cache, now, key) = (Cache::default(), origin(), key("a.example"));
        cache.learn(now, key.clone(), Some(answer(100, 1)));
        let mut renewals = |at: u32| match cache.look(now + SECOND * at, &key) {
            Look::Fresh { renew, .. } => renew,
            Look::Ask(_) | Look::Failed(_) => panic!("it is fresh"),
        };
        assert_eq!(
            [1, 50, 89, 91, 92, 99].map(&mut renewals),
            [false, false, false, true, false, false]
        );
        cache.learn(now + SECOND * 99, key.clone(), None);
        assert!(matches!(
            cache.look(now + SECOND * 99, &key),
            Look::Fresh { renew: false, .. }
        ));
    }

    #[test]
    fn memory_is_bounded_and_the_least_used_goes_first() {
        let (mut cache, now) = (Cache::default(), origin());
        for n in 0..ENTRIES_LIMIT * 2 {
            cache.learn(now, key(&format!("n{n}.example")), Some(answer(60, 8)));
            assert!(
                matches!(cache.look(now, &key("n0.example")), Look::Fresh { .. }),
                "{n}"
            );
        }
        assert_eq!(
            (cache.len(), cache.used.len()),
            (ENTRIES_LIMIT, ENTRIES_LIMIT)
        );
        assert_eq!(cache.bytes, ENTRIES_LIMIT * size(&answer(60, 8)));
        for n in 0..ENTRIES_LIMIT * 2 {
            cache.learn(now, key(&format!("n{n}.example")), Some(answer(60, 100)));
        }
        assert!(cache.bytes <= BYTES_LIMIT && cache.len() == cache.used.len());
    }
}
