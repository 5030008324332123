//! Agents whose process is known to have ended, for as long as anybody may want to take up a stream with them.
//!
//! It is remembered only with evidence: the agent's machine said that nobody listens where it was, and it was silent. An
//! agent that is merely not reached is not here, and its streams wait for it. A process that comes back speaks for
//! itself, and is forgotten here.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use sealock_core::identity::AgentId;

/// As long as a stream may wait to be taken up again.
const REMEMBERED_FOR: Duration = Duration::from_secs(120);
/// How many agents are remembered; beyond, the one that has been known for longest is forgotten.
const LIMIT: usize = 1_024; // × ~100 bytes

/// The agents whose process is gone.
#[derive(Debug, Default)]
pub(crate) struct Gone {
    since: Mutex<HashMap<AgentId, Instant>>,
}

impl Gone {
    pub(crate) fn remember(&self, agent: AgentId, now: Instant) {
        let mut since = self.since.lock();
        since.retain(|_, when| is_fresh(*when, now));
        if since.len() >= LIMIT && !since.contains_key(&agent) {
            let oldest = since.iter().min_by_key(|(_, when)| **when);
            if let Some(oldest) = oldest.map(|(agent, _)| agent.clone()) {
                since.remove(&oldest);
            }
        }
        since.insert(agent, now);
    }

    pub(crate) fn forget(&self, agent: &AgentId) {
        self.since.lock().remove(agent);
    }

    pub(crate) fn knows(&self, agent: &AgentId, now: Instant) -> bool {
        let since = self.since.lock();
        since.get(agent).is_some_and(|when| is_fresh(*when, now))
    }
}

fn is_fresh(since: Instant, now: Instant) -> bool {
    now.saturating_duration_since(since) < REMEMBERED_FOR
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(number: usize) -> AgentId {
        AgentId {
            tenant: "default".parse().expect("a name"),
            name: format!("agent-{number}").parse().expect("a name"),
        }
    }

    #[test]
    fn an_agent_is_gone_until_it_comes_back_or_nobody_waits_for_it_any_more() {
        let (gone, now) = (Gone::default(), Instant::now());
        gone.remember(agent(1), now);
        gone.remember(agent(2), now);
        assert!(gone.knows(&agent(1), now) && !gone.knows(&agent(3), now));
        gone.forget(&agent(1));
        assert!(!gone.knows(&agent(1), now));
        assert!(gone.knows(&agent(2), now + REMEMBERED_FOR / 2));
        assert!(!gone.knows(&agent(2), now + REMEMBERED_FOR));
    }

    #[test]
    fn a_fleet_that_dies_takes_bounded_memory_and_the_newest_are_known() {
        let (gone, now) = (Gone::default(), Instant::now());
        for number in 0..2 * LIMIT {
            let at = now + Duration::from_millis(number as u64);
            gone.remember(agent(number), at);
        }
        let now = now + Duration::from_secs(10);
        assert_eq!(gone.since.lock().len(), LIMIT);
        assert!(gone.knows(&agent(2 * LIMIT - 1), now) && gone.knows(&agent(LIMIT), now));
        assert!(!gone.knows(&agent(LIMIT - 1), now));
        let later = now + REMEMBERED_FOR;
        gone.remember(agent(0), later);
        assert_eq!(gone.since.lock().len(), 1, "what is old goes by itself");
    }
}
