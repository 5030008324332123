//! What a fenced program may reach: the patterns of the command line, and the rules of a file.

use std::sync::Arc;

use anyhow::Context;
use sealock_core::policy::{Action, CallerPattern, Conditions, Effect, PolicyFile, Rule, RuleSet};

use crate::cli::Run;
use crate::failure::Failure;

/// What the rule of the flags is called in lines about flows.
const FLAG_RULE: &str = "allow";

pub(super) fn rules(flags: &Run) -> anyhow::Result<Arc<RuleSet>> {
    let mut rules = Vec::new();
    if !flags.allow.is_empty() {
        rules.push(Rule {
            id: FLAG_RULE.parse().context("the name of a rule")?,
            effect: Effect::Allow,
            callers: vec![CallerPattern::Any],
            services: Vec::new(),
            destinations: flags.allow.clone(),
            actions: [Action::Open].into(),
            conditions: Conditions::default(),
        });
    }
    if let Some(path) = &flags.policy {
        let text = std::fs::read_to_string(path).map_err(|error| {
            Failure::usage(format!("{} cannot be read: {error}", path.display()))
        })?;
        let file = PolicyFile::parse(&text, &path.display().to_string()).map_err(|errors| {
            let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
            Failure::usage(format!("the policy is wrong\n{}", lines.join("\n")))
        })?;
        rules.extend(file.rules);
    }
    Ok(Arc::new(RuleSet::new(rules)))
}
