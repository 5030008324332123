//! Which rules speak of a name, found without asking each rule.
//!
//! Rules are numbered by their place. For each pattern the numbers of its rules are kept as a short list or, when they
//! are many, as a bit set; what speaks of one caller (or one service) is the union of a handful of these. Globs are found
//! by the bytes that their matches begin or end with. So the cost grows with the patterns that match, and not with the
//! rules, except for one bit a rule.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::pattern::{Glob, Label};

/// A set of rules, by their numbers.
#[derive(Debug, Clone)]
pub(super) struct Bits(Vec<u64>);

const WORD: usize = u64::BITS as usize;

impl Bits {
    /// The empty set, with room for so many rules.
    pub(super) fn none(rules: usize) -> Self {
        Self(vec![0; rules.div_ceil(WORD)])
    }

    pub(super) fn insert(&mut self, rule: usize) {
        if let Some(word) = self.0.get_mut(rule / WORD) {
            *word |= 1 << (rule % WORD);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    pub(super) fn add(&mut self, other: &Self) {
        for (word, more) in self.0.iter_mut().zip(&other.0) {
            *word |= more;
        }
    }

    /// The union of these sets; nothing is copied when there is nothing to add.
    pub(super) fn with<'a>(&'a self, others: impl Iterator<Item = &'a Self>) -> Cow<'a, Self> {
        let mut union = Cow::Borrowed(self);
        for other in others.filter(|it| !it.is_empty()) {
            union.to_mut().add(other);
        }
        union
    }

    /// The rules that are in all three sets, from the smallest number upwards.
    pub(super) fn common<'a>(
        &'a self,
        second: &'a Self,
        third: &'a Self,
    ) -> impl Iterator<Item = usize> + 'a {
        let words = self.0.iter().zip(&second.0).zip(&third.0);
        words.enumerate().flat_map(|(place, ((a, b), c))| {
            let mut left = a & b & c;
            std::iter::from_fn(move || {
                if left == 0 {
                    return None;
                }
                let bit = left.trailing_zeros() as usize;
                left &= left - 1;
                Some(place * WORD + bit)
            })
        })
    }
}

/// The rules of one pattern: a list while that is smaller than a bit set.
#[derive(Debug, Clone)]
pub(super) enum Posting {
    Few(Vec<u32>),
    Many(Bits),
}

impl Posting {
    pub(super) fn empty() -> Self {
        Self::Few(Vec::new())
    }

    pub(super) fn insert(&mut self, rule: usize, rules: usize) {
        match self {
            Self::Few(list) if list.len() * 2 < rules.div_ceil(WORD) || list.len() < 4 => {
                list.push(u32::try_from(rule).unwrap_or(u32::MAX));
            }
            Self::Few(list) => {
                let mut bits = Bits::none(rules);
                for rule in list.iter() {
                    bits.insert(*rule as usize);
                }
                bits.insert(rule);
                *self = Self::Many(bits);
            }
            Self::Many(bits) => bits.insert(rule),
        }
    }

    pub(super) fn add_to(&self, all: &mut Bits) {
        match self {
            Self::Few(list) => {
                for rule in list {
                    all.insert(*rule as usize);
                }
            }
            Self::Many(bits) => all.add(bits),
        }
    }
}

/// A pattern reduced to how it is looked up.
pub(super) enum Key<'a> {
    Any,
    Name(&'a str),
    Glob(&'a Glob),
    Group(&'a str),
    Label(&'a Label),
    Unknown,
}

/// The index over one side of the rules: their callers or their services.
#[derive(Debug, Clone)]
pub(super) struct Side {
    rules: usize,
    any: Bits,
    unknown: Bits,
    with_label: Bits,
    names: BTreeMap<Arc<str>, Posting>,
    groups: BTreeMap<Arc<str>, Posting>,
    labels: BTreeMap<Arc<str>, BTreeMap<Arc<str>, Posting>>,
    globs: Globs,
}

impl Side {
    pub(super) fn new(rules: usize) -> Self {
        Self {
            rules,
            any: Bits::none(rules),
            unknown: Bits::none(rules),
            with_label: Bits::none(rules),
            names: BTreeMap::new(),
            groups: BTreeMap::new(),
            labels: BTreeMap::new(),
            globs: Globs::default(),
        }
    }

    /// Notes that a pattern of this rule is `key`.
    pub(super) fn insert(&mut self, key: &Key<'_>, rule: usize) {
        let posting = match key {
            Key::Any => return self.any.insert(rule),
            Key::Unknown => return self.unknown.insert(rule),
            Key::Name(name) => entry(&mut self.names, name),
            Key::Group(group) => entry(&mut self.groups, group),
            Key::Label(label) => {
                self.with_label.insert(rule);
                let values = self.labels.entry(label.key().into()).or_default();
                entry(values, label.value())
            }
            Key::Glob(glob) => self.globs.posting(glob),
        };
        posting.insert(rule, self.rules);
    }

    /// The rules with a pattern that surely matches the name.
    pub(super) fn of_name(&self, name: &str) -> Bits {
        let mut found = self.any.clone();
        if let Some(posting) = self.names.get(name) {
            posting.add_to(&mut found);
        }
        self.globs.add_matches(name, &mut found);
        found
    }

    /// Adds the rules that speak of the group.
    pub(super) fn add_group(&self, group: &str, found: &mut Bits) {
        if let Some(posting) = self.groups.get(group) {
            posting.add_to(found);
        }
    }

    /// Adds the rules that speak of one of the labels.
    pub(super) fn add_labels(&self, labels: &BTreeMap<String, String>, found: &mut Bits) {
        for (key, value) in labels {
            let values = self.labels.get(key.as_str());
            if let Some(posting) = values.and_then(|values| values.get(value.as_str())) {
                posting.add_to(found);
            }
        }
    }

    /// The rules with a pattern that nobody can decide: to these belong labels when they are unknown.
    pub(super) fn undecided(&self, labels_unknown: bool) -> impl Iterator<Item = &Bits> {
        let with_label = labels_unknown.then_some(&self.with_label);
        [&self.unknown].into_iter().chain(with_label)
    }
}

fn entry<'a>(map: &'a mut BTreeMap<Arc<str>, Posting>, key: &str) -> &'a mut Posting {
    map.entry(key.into()).or_insert_with(Posting::empty)
}

/// Globs by what their matches begin with, or end with, or neither.
#[derive(Debug, Clone, Default)]
struct Globs {
    by_prefix: BTreeMap<Arc<str>, BTreeMap<Glob, Posting>>,
    by_suffix: BTreeMap<Arc<str>, BTreeMap<Glob, Posting>>,
    others: BTreeMap<Glob, Posting>,
}

// Longer keys would sort finer, but each length costs a look-up a decision.
const KEY_LIMIT: usize = 8;

/// The last bytes of a name or a glob's suffix; all of it is ASCII.
fn tail(text: &str, length: usize) -> &str {
    text.get(text.len().saturating_sub(length)..)
        .unwrap_or_default()
}

impl Globs {
    fn posting(&mut self, glob: &Glob) -> &mut Posting {
        let (prefix, suffix) = (glob.prefix(), glob.suffix());
        let bucket = if !prefix.is_empty() {
            let key = prefix.get(..KEY_LIMIT).unwrap_or(prefix);
            self.by_prefix.entry(key.into()).or_default()
        } else if !suffix.is_empty() {
            self.by_suffix
                .entry(tail(suffix, KEY_LIMIT).into())
                .or_default()
        } else {
            &mut self.others
        };
        bucket.entry(glob.clone()).or_insert_with(Posting::empty)
    }

    fn add_matches(&self, name: &str, found: &mut Bits) {
        let lengths = 1..=KEY_LIMIT.min(name.len());
        let prefixed = lengths
            .clone()
            .filter_map(|length| self.by_prefix.get(name.get(..length)?));
        let suffixed = lengths.filter_map(|length| self.by_suffix.get(tail(name, length)));
        let buckets = prefixed.chain(suffixed).chain([&self.others]);
        for (glob, posting) in buckets.flatten() {
            if glob.matches(name) {
                posting.add_to(found);
            }
        }
    }
}
