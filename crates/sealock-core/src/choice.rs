//! Which of several providers gets an open: their terms, and the order in which they are to be tried.
//!
//! Providers of one rank share the opens, and the next rank gets some only when the one before it has nobody left: active
//! ones before standbys, those of the caller's region before others, those at the relay itself before those that another
//! relay must be asked for. Within a rank flows follow weights: of the least loaded, counted in flows for each unit of
//! weight, one is drawn with odds by weight. For a sticky service the draw depends on names alone, so that every relay
//! draws the same provider for a caller, and load and distance say nothing.
//! Deliberately absent: state between opens, so a relay forgets nothing when it restarts.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::config::unit::{Count, UnitError};
use crate::identity::AgentId;
use crate::name::{AgentName, Region, ServiceName};

/// How large a share of its service's flows a provider wants, beside the weights of the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Weight(u32);

/// The greatest weight; what balancers of the same habits take.
const WEIGHT_LIMIT: u32 = 256;

impl Weight {
    /// The number itself, at least 1.
    #[must_use]
    pub fn number(self) -> u32 {
        self.0
    }

    fn is_usual(&self) -> bool {
        *self == Self::default()
    }
}

impl Default for Weight {
    fn default() -> Self {
        Self(1)
    }
}

impl FromStr for Weight {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let count: Count<1, WEIGHT_LIMIT> = text.parse()?;
        Ok(Self(count.number()))
    }
}

impl TryFrom<u32> for Weight {
    type Error = UnitError;

    fn try_from(number: u32) -> Result<Self, UnitError> {
        number.to_string().parse()
    }
}

impl From<Weight> for u32 {
    fn from(weight: Weight) -> Self {
        weight.0
    }
}

impl fmt::Display for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How a provider wants to be chosen among those of its service.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Terms {
    /// Its share beside the others.
    #[serde(default, skip_serializing_if = "Weight::is_usual")]
    pub weight: Weight,
    /// Whether it serves only while no active provider is left.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub standby: bool,
    /// Where it is, as its operator calls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<Region>,
}

/// A provider that may be chosen for an open.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// The agent.
    pub agent: &'a AgentName,
    /// How it wants to be chosen.
    pub terms: &'a Terms,
    /// Whether it takes new flows: it offers the service, its check passes, and it does not drain.
    pub is_taking: bool,
    /// Whether only another relay has a session with it.
    pub is_beyond: bool,
    /// How many flows it carries, as far as the relay knows.
    pub legs: usize,
}

/// An open for which a provider is to be chosen.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// What is opened.
    pub service: &'a ServiceName,
    /// Who opens it.
    pub caller: &'a AgentId,
    /// Where the caller is, when that is known.
    pub region: Option<&'a Region>,
    /// Whether a caller is to get the same provider each time.
    pub is_sticky: bool,
    /// Random for each open.
    pub seed: u64,
}

/// The smaller, the better. Only the first rank that has somebody gets opens.
type Rank = (bool, bool, bool);

impl Asked<'_> {
    fn rank(&self, candidate: &Candidate<'_>) -> Rank {
        let terms = candidate.terms;
        let is_elsewhere = self.region.is_some() && terms.region.as_ref() != self.region;
        let is_far = candidate.is_beyond && !self.is_sticky;
        (terms.standby, is_elsewhere, is_far)
    }

    /// The candidate's lot in the draw: the smallest one wins, and the odds follow the weights.
    fn lot(&self, candidate: &Candidate<'_>) -> f64 {
        let mut hash = Sha256::new();
        let mut part = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_be_bytes());
            hash.update(bytes);
        };
        if self.is_sticky {
            part(self.service.as_str().as_bytes());
            part(self.caller.tenant.as_str().as_bytes());
            part(self.caller.name.as_str().as_bytes());
        } else {
            part(&self.seed.to_be_bytes());
        }
        part(candidate.agent.as_str().as_bytes());
        let digest = hash.finalize();
        let drawn = digest[..4]
            .iter()
            .fold(0, |sum, byte| sum << 8 | u32::from(*byte));
        // Between 0 and 1, without either end.
        let uniform = (f64::from(drawn) + 0.5) / (f64::from(u32::MAX) + 1.0);
        // The least of exponential variables falls to each in proportion to its rate.
        -uniform.ln() / f64::from(candidate.terms.weight.number())
    }
}

/// How often the candidate was filled up: the lightest takes one flow each time, the others in proportion.
fn level(candidate: &Candidate<'_>, lightest: u32) -> u64 {
    let legs = u64::try_from(candidate.legs).unwrap_or(u64::MAX);
    legs.saturating_mul(u64::from(lightest)) / u64::from(candidate.terms.weight.number())
}

/// The candidates that take new flows, as places in the list, in the order in which to try them.
#[must_use]
pub fn order(asked: &Asked<'_>, candidates: &[Candidate<'_>]) -> Vec<usize> {
    let mut lightest: BTreeMap<Rank, u32> = BTreeMap::new();
    let taking = candidates.iter().enumerate();
    let taking: Vec<_> = taking.filter(|(_, one)| one.is_taking).collect();
    for (_, one) in &taking {
        let least = lightest.entry(asked.rank(one)).or_insert(u32::MAX);
        *least = (*least).min(one.terms.weight.number());
    }
    let key = |one: &Candidate<'_>| {
        let rank = asked.rank(one);
        let level = match lightest.get(&rank) {
            Some(lightest) if !asked.is_sticky => level(one, *lightest),
            Some(_) | None => 0,
        };
        (rank, level, asked.lot(one))
    };
    let mut keyed: Vec<_> = taking.into_iter().map(|(at, one)| (key(one), at)).collect();
    keyed.sort_by(
        |((rank, level, lot), _), ((other_rank, other_level, other_lot), _)| {
            let coarse: Ordering = (rank, level).cmp(&(other_rank, other_level));
            coarse.then_with(|| lot.total_cmp(other_lot))
        },
    );
    keyed.into_iter().map(|(_, at)| at).collect()
}

#[cfg(test)]
mod tests;
