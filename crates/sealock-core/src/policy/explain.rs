//! Why policy decided so: every rule that applied or came near, part by part, in words.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Answer, Decision, Effect, Question, Rule, RuleId, RuleSet, Subject};

/// Which part of a rule is spoken of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PartKind {
    /// Who the rule speaks of.
    Caller,
    /// Which services it speaks of.
    Service,
    /// Which destinations it speaks of.
    Destination,
    /// What it speaks of.
    Action,
    /// When it speaks.
    Condition,
}

/// One part of a rule against the question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Which part.
    pub kind: PartKind,
    /// Whether it matched.
    pub answer: Answer,
    /// What was compared with what.
    pub words: String,
}

/// One rule against the question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleExplained {
    /// The rule's id.
    pub id: RuleId,
    /// Allow or deny.
    pub effect: Effect,
    /// Whether every part lets the rule apply.
    pub applies: bool,
    /// The parts, in the order caller, service, action, conditions.
    pub parts: Vec<Part>,
}

/// A decision with all that led to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// What was decided.
    pub decision: Decision,
    /// The rules that applied, then those that failed in one part only; denies first, then by id.
    pub rules: Vec<RuleExplained>,
}

impl Explanation {
    /// The explanation for people: the decision, then each rule with its parts under it.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![self.decision.to_string()];
        for rule in &self.rules {
            let verdict = if rule.applies {
                "applies"
            } else {
                "does not apply"
            };
            lines.push(format!("{} rule `{}` {verdict}:", rule.effect, rule.id));
            let parts = rule.parts.iter();
            lines.extend(parts.map(|part| format!("  {} {}", part.answer, part.words)));
        }
        lines
    }
}

impl RuleSet {
    /// Decides as [`Self::decide`] does, and tells of every rule that applied or missed by one part.
    #[must_use]
    pub fn explain(&self, question: &Question<'_>, now: Timestamp) -> Explanation {
        let mut near: Vec<(usize, RuleExplained)> = self
            .iter()
            .map(|rule| rule.explain(question, now))
            .map(|rule| (rule.misses(), rule))
            .filter(|(misses, _)| *misses <= 1)
            .collect();
        // Stable, so ids stay sorted within a group.
        near.sort_by_key(|(misses, rule)| (*misses, rule.effect == Effect::Allow));
        Explanation {
            decision: self.decide(question, now),
            rules: near.into_iter().map(|(_, rule)| rule).collect(),
        }
    }
}

impl RuleExplained {
    fn misses(&self) -> usize {
        let missed = |part: &&Part| !part.answer.satisfies(self.effect);
        self.parts.iter().filter(missed).count()
    }
}

impl Rule {
    /// Holds the rule against the question, part by part.
    #[must_use]
    pub fn explain(&self, question: &Question<'_>, now: Timestamp) -> RuleExplained {
        let mut parts = vec![
            self.caller_part(question),
            self.subject_part(question),
            self.action_part(question),
        ];
        parts.extend(self.conditions.iter().map(|condition| Part {
            kind: PartKind::Condition,
            answer: condition.eval(question, now),
            words: condition.explain(now),
        }));
        RuleExplained {
            id: self.id.clone(),
            effect: self.effect,
            applies: parts.iter().all(|it| it.answer.satisfies(self.effect)),
            parts,
        }
    }

    fn caller_part(&self, question: &Question<'_>) -> Part {
        let answers = self.callers.iter().map(|it| (it.matches(question), it));
        let who = format!("caller `{}`", question.caller.name);
        part(PartKind::Caller, &who, answers)
    }

    fn subject_part(&self, question: &Question<'_>) -> Part {
        let what = question.subject.to_string();
        match question.subject {
            Subject::Service { name, labels } => {
                let patterns = self.services.iter();
                let answers = patterns.map(|it| (it.matches(name, labels), it));
                part(PartKind::Service, &what, answers)
            }
            Subject::Destination(destination) => {
                let patterns = self.destinations.iter();
                let answers = patterns.map(|it| (it.matches(destination, self.effect), it));
                part(PartKind::Destination, &what, answers)
            }
        }
    }

    fn action_part(&self, question: &Question<'_>) -> Part {
        let action = question.action;
        let listed: Vec<&str> = self.actions.iter().map(|it| it.as_str()).collect();
        let holds = self.actions.contains(&action);
        let verb = if holds {
            "speaks of"
        } else {
            "does not speak of"
        };
        Part {
            kind: PartKind::Action,
            answer: holds.into(),
            words: format!(
                "the rule {verb} `{action}` (actions: {})",
                listed.join(", ")
            ),
        }
    }
}

/// The best answer of several patterns: yes before unknown before no.
fn part<P: ToString>(
    kind: PartKind,
    subject: &str,
    answers: impl Iterator<Item = (Answer, P)>,
) -> Part {
    let all: Vec<(Answer, String)> = answers.map(|(it, p)| (it, p.to_string())).collect();
    let first = |wanted: Answer| all.iter().find(|(answer, _)| *answer == wanted);
    if let Some((answer, pattern)) = first(Answer::Yes) {
        return Part {
            kind,
            answer: *answer,
            words: format!("{subject} matches `{pattern}`"),
        };
    }
    if let Some((answer, pattern)) = first(Answer::Unknown) {
        return Part {
            kind,
            answer: *answer,
            words: format!("whether {subject} matches `{pattern}` cannot be decided"),
        };
    }
    let patterns: Vec<&str> = all.iter().map(|(_, pattern)| pattern.as_str()).collect();
    let words = if patterns.is_empty() {
        format!("{subject}: the rule speaks of none")
    } else {
        format!("{subject} matches none of `{}`", patterns.join("`, `"))
    };
    Part {
        kind,
        answer: Answer::No,
        words,
    }
}

#[cfg(test)]
mod tests {
    use crate::identity::AgentId;
    use crate::policy::{Action, PolicyFile, Question, RuleSet, Subject};

    #[test]
    fn tells_what_matched_and_what_missed_in_words() {
        let text = r#"
[[rule]]
id = "ops"
effect = "allow"
callers = ["group:ops", "ana"]
services = ["db.*"]

[[rule]]
id = "old"
effect = "allow"
callers = ["bob"]
services = ["db.prod"]
expires = 2025-01-01T00:00:00Z

[[rule]]
id = "far"
effect = "deny"
callers = ["carl"]
services = ["web"]
"#;
        let file = PolicyFile::parse(text, "p.toml").expect("a good file");
        let caller = AgentId {
            tenant: "t".parse().expect("a name"),
            name: "bob".parse().expect("a name"),
        };
        let question = Question {
            caller: &caller,
            groups: &Default::default(),
            labels: &Default::default(),
            action: Action::Open,
            subject: Subject::Service {
                name: &"db.prod".parse().expect("a name"),
                labels: Some(&Default::default()),
            },
        };
        let now = "2026-01-05T12:00:00Z".parse().expect("RFC 3339");
        let explanation = RuleSet::new(file.rules).explain(&question, now);
        let lines = explanation.lines();
        assert_eq!(
            lines,
            [
                "denied: no rule allows it",
                "allow rule `old` does not apply:",
                "  yes caller `bob` matches `bob`",
                "  yes service `db.prod` matches `db.prod`",
                "  yes the rule speaks of `open` (actions: open)",
                "  no  it ended at 2025-01-01T00:00:00Z",
                "allow rule `ops` does not apply:",
                "  no  caller `bob` matches none of `group:ops`, `ana`",
                "  yes service `db.prod` matches `db.*`",
                "  yes the rule speaks of `open` (actions: open)",
            ]
        );
    }
}
