//! A set of rules, compiled once and asked often.

use jiff::Timestamp;

use std::net::IpAddr;

use super::index::{Bits, Key, Side};
use super::places::Places;
use super::{
    Action, CallerPattern, Decision, Effect, Question, Rule, RuleId, ServicePattern, Subject,
};
use crate::guard;

/// The rules of one tenant, ready for decisions; their order as given has no influence.
#[derive(Debug, Clone)]
pub struct RuleSet {
    // Sorted by id, so the first rule found is the smallest id.
    rules: Vec<Rule>,
    callers: Side,
    services: Side,
    destinations: Places,
    masks: [Mask; 4],
}

/// The rules of one effect on one action.
#[derive(Debug, Clone)]
struct Mask {
    effect: Effect,
    action: Action,
    rules: Bits,
}

impl Default for RuleSet {
    fn default() -> Self {
        Self::new(Vec::new())
    }
}

impl RuleSet {
    /// Compiles rules; an empty set denies everything.
    #[must_use]
    pub fn new(mut rules: Vec<Rule>) -> Self {
        rules.sort_by(|a, b| a.id.cmp(&b.id));
        let count = rules.len();
        let mut callers = Side::new(count);
        let mut services = Side::new(count);
        let mut destinations = Places::new(count);
        let kinds = [
            (Effect::Deny, Action::Open),
            (Effect::Allow, Action::Open),
            (Effect::Deny, Action::Provide),
            (Effect::Allow, Action::Provide),
        ];
        let mut masks = kinds.map(|(effect, action)| Mask {
            effect,
            action,
            rules: Bits::none(count),
        });
        for (number, rule) in rules.iter().enumerate() {
            for pattern in &rule.callers {
                callers.insert(&caller_key(pattern), number);
            }
            for pattern in &rule.services {
                services.insert(&service_key(pattern), number);
            }
            for pattern in &rule.destinations {
                destinations.insert(pattern, number);
            }
            for mask in &mut masks {
                if mask.effect == rule.effect && rule.actions.contains(&mask.action) {
                    mask.rules.insert(number);
                }
            }
        }
        Self {
            rules,
            callers,
            services,
            destinations,
            masks,
        }
    }

    /// Every rule, in the order of their ids.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Rule> {
        self.rules.iter()
    }

    /// The rule of this id.
    #[must_use]
    pub fn get(&self, id: &RuleId) -> Option<&Rule> {
        let place = self.rules.binary_search_by(|rule| rule.id.cmp(id)).ok()?;
        self.rules.get(place)
    }

    /// How many rules there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Whether there is no rule, so that everything is denied.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Decides: a deny that applies wins, then an allow that applies, else nothing is allowed.
    ///
    /// Of several rules the one with the smallest id is cited.
    #[must_use]
    pub fn decide(&self, question: &Question<'_>, now: Timestamp) -> Decision {
        let callers = self.callers_of(question);
        if let Some(rule) = self.first_deny(question, now, &callers) {
            return Decision::Denied { rule };
        }
        let Some(allows) = self.mask(Effect::Allow, question.action) else {
            return Decision::NoRule;
        };
        let subjects = self.subjects_of(question.subject, Effect::Allow);
        match self.first(callers.common(&subjects, allows), question, now) {
            Some(rule) => Decision::Allowed { rule },
            None => Decision::NoRule,
        }
    }

    /// Decides whether an address of a destination that is allowed may be dialled: no rule denies it, and if it is
    /// special, a rule allows it by name.
    #[must_use]
    pub fn admits(&self, question: &Question<'_>, address: IpAddr, now: Timestamp) -> Decision {
        let Subject::Destination(destination) = question.subject else {
            return Decision::NoRule;
        };
        let asked = |destination| Question {
            subject: Subject::Destination(destination),
            ..*question
        };
        let resolved = destination.resolved(address);
        let question = asked(&resolved);
        let decision = self.decide(&question, now);
        if guard::special(address).is_none() || !decision.is_allowed() {
            return decision;
        }
        match resolved.by_address() {
            Some(alone) => self.decide(&asked(&alone), now),
            None => Decision::NoRule,
        }
    }

    /// The smallest deny that applies: to it also belongs what cannot be decided.
    fn first_deny(
        &self,
        question: &Question<'_>,
        now: Timestamp,
        callers: &Bits,
    ) -> Option<RuleId> {
        let denies = self.mask(Effect::Deny, question.action)?;
        let callers = callers.with(self.callers.undecided(false));
        let subjects = self.subjects_of(question.subject, Effect::Deny);
        self.first(callers.common(&subjects, denies), question, now)
    }

    fn mask(&self, effect: Effect, action: Action) -> Option<&Bits> {
        let wanted = |mask: &&Mask| mask.effect == effect && mask.action == action;
        let mask = &self.masks.iter().find(wanted)?.rules;
        (!mask.is_empty()).then_some(mask)
    }

    fn first(
        &self,
        mut numbers: impl Iterator<Item = usize>,
        question: &Question<'_>,
        now: Timestamp,
    ) -> Option<RuleId> {
        numbers.find_map(|number| {
            let rule = self.rules.get(number)?;
            let answer = rule.conditions.eval(question, now);
            answer.satisfies(rule.effect).then(|| rule.id.clone())
        })
    }

    fn callers_of(&self, question: &Question<'_>) -> Bits {
        let mut found = self.callers.of_name(question.caller.name.as_str());
        for group in question.groups {
            self.callers.add_group(group.as_str(), &mut found);
        }
        self.callers.add_labels(question.labels, &mut found);
        found
    }

    /// The rules that speak of the subject, if they have this effect.
    fn subjects_of(&self, subject: Subject<'_>, effect: Effect) -> Bits {
        let (name, labels) = match subject {
            Subject::Service { name, labels } => (name, labels),
            Subject::Destination(destination) => return self.destinations.of(destination, effect),
        };
        let mut found = self.services.of_name(name.as_str());
        if let Some(labels) = labels {
            self.services.add_labels(labels, &mut found);
        }
        match effect {
            Effect::Allow => found,
            Effect::Deny => found
                .with(self.services.undecided(labels.is_none()))
                .into_owned(),
        }
    }
}

fn caller_key(pattern: &CallerPattern) -> Key<'_> {
    match pattern {
        CallerPattern::Any => Key::Any,
        CallerPattern::Name(name) => Key::Name(name.as_str()),
        CallerPattern::Glob(glob) => Key::Glob(glob),
        CallerPattern::Group(group) => Key::Group(group.as_str()),
        CallerPattern::Label(label) => Key::Label(label),
        CallerPattern::Unknown(_) => Key::Unknown,
    }
}

fn service_key(pattern: &ServicePattern) -> Key<'_> {
    match pattern {
        ServicePattern::Any => Key::Any,
        ServicePattern::Name(name) => Key::Name(name.as_str()),
        ServicePattern::Glob(glob) => Key::Glob(glob),
        ServicePattern::Label(label) => Key::Label(label),
        ServicePattern::Unknown(_) => Key::Unknown,
    }
}
