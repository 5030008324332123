//! `sealock policy` and `sealock why`: who may open what, and because of which rule.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::ExitCode;

use jiff::Timestamp;
use sealock_core::api::policy::{
    AddRequest, Allow, Apply, ApplyRequest, ChangeResponse, Deny, List, ListRequest, Origin,
    Remove, RemoveRequest, Why as WhyMethod, WhyRequest,
};
use sealock_core::config::unit::Span;
use sealock_core::policy::condition::CONDITIONS;
use sealock_core::policy::{Action, Conditions, Effect, PolicyFile, Rule};
use sealock_core::reason::Reason;
use serde::Serialize;

use super::{ask, tenant};
use crate::cli::{self, Common, Json, PolicyVerb, Why};
use crate::failure::{FAILED, Failure};
use crate::print;
use crate::settings::{self, Kind};

pub(crate) async fn run(common: &Common, verb: PolicyVerb) -> anyhow::Result<()> {
    match verb {
        PolicyVerb::Allow(rule) => {
            let change = ask::<Allow>(common, &request(common, rule)?).await?;
            changed("added", &change);
            Ok(())
        }
        PolicyVerb::Deny(rule) => {
            let change = ask::<Deny>(common, &request(common, rule)?).await?;
            changed("added", &change);
            Ok(())
        }
        PolicyVerb::List(form) => list(common, form).await,
        PolicyVerb::Remove { id } => {
            let tenant = tenant(common)?;
            let change = ask::<Remove>(common, &RemoveRequest { tenant, id }).await?;
            changed("removed", &change);
            Ok(())
        }
        PolicyVerb::Apply {
            file,
            dry_run,
            form,
        } => apply(common, &file, dry_run, form).await,
        PolicyVerb::Test { file, form } => test(common, &file, form),
    }
}

fn request(common: &Common, rule: cli::Rule) -> anyhow::Result<AddRequest> {
    let mut conditions = Conditions::default();
    if let Some(text) = &rule.expires {
        let end = moment(text, Direction::Future)?.to_string();
        for kind in CONDITIONS.iter().filter(|kind| kind.name == "expires") {
            conditions.put(kind.parse(&end)?);
        }
    }
    let action = if rule.provide {
        Action::Provide
    } else {
        Action::Open
    };
    Ok(AddRequest {
        tenant: tenant(common)?,
        id: rule.id,
        callers: vec![rule.caller],
        services: rule.service.into_iter().collect(),
        destinations: rule.to,
        actions: BTreeSet::from([action]),
        conditions,
    })
}

fn changed(what: &str, change: &ChangeResponse) {
    print::line(&format!("{what}: {}", sentence(&change.rule)));
}

/// A rule in one line.
fn sentence(rule: &Rule) -> String {
    let may = match rule.effect {
        Effect::Allow => "may",
        Effect::Deny => "must not",
    };
    let mut text = format!(
        "{}: {} {may} {} {}",
        rule.id,
        print::list(&rule.callers),
        print::list(&rule.actions),
        subjects(rule)
    );
    let now = Timestamp::now();
    for condition in rule.conditions.iter() {
        text.push_str(&format!(", {}", condition.explain(now)));
    }
    text
}

/// What a rule speaks of: services, and destinations behind them.
fn subjects(rule: &Rule) -> String {
    let services = rule.services.iter().map(ToString::to_string);
    let destinations = rule.destinations.iter().map(ToString::to_string);
    print::list(services.chain(destinations))
}

/// Which way a length of time counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    Past,
    Future,
}

/// Reads a time, or a length of time from now.
pub(crate) fn moment(text: &str, direction: Direction) -> anyhow::Result<Timestamp> {
    type Length = Span<1, { 3_660 * 24 * 3_600 }>;
    if let Ok(length) = text.parse::<Length>() {
        let now = Timestamp::now();
        let moment = match direction {
            Direction::Past => now.checked_sub(length.duration())?,
            Direction::Future => now.checked_add(length.duration())?,
        };
        return Ok(Timestamp::from_second(moment.as_second())?); // nobody counts in nanoseconds
    }
    text.parse().map_err(|_| {
        Failure::usage(format!("`{text}` is neither a time nor a length of time"))
            .hint("write 2027-01-31T12:00:00Z, or 8h, or 30d")
            .into()
    })
}

async fn list(common: &Common, form: Json) -> anyhow::Result<()> {
    let tenant = tenant(common)?;
    let listed = ask::<List>(common, &ListRequest { tenant }).await?;
    if form.json {
        return print::json(&listed);
    }
    let now = Timestamp::now();
    let rows = listed.rules.into_iter().map(|row| {
        let rule = row.rule;
        let origin = match row.origin {
            Origin::Starter => "starter",
            Origin::Command => "command",
            Origin::File => "file",
        };
        vec![
            rule.id.to_string(),
            rule.effect.to_string(),
            print::list(&rule.callers),
            print::list(&rule.actions),
            subjects(&rule),
            print::list(
                rule.conditions
                    .iter()
                    .map(|condition| condition.explain(now)),
            ),
            origin.to_owned(),
        ]
    });
    print::table(
        &["RULE", "EFFECT", "CALLERS", "ACTIONS", "TO", "WHEN", "FROM"],
        rows.collect(),
        "no rule: nothing can be opened; `sealock policy allow CALLER SERVICE` adds one",
    );
    Ok(())
}

/// Reads a policy file; everything that is wrong in it is told at once.
fn read(path: &Path) -> anyhow::Result<PolicyFile> {
    let name = path.display().to_string();
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::usage(format!("{name} cannot be read: {error}")))?;
    PolicyFile::parse(&text, &name).map_err(|errors| {
        let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
        Failure::usage(format!("the policy file is wrong\n{}", errors.join("\n"))).into()
    })
}

async fn apply(common: &Common, path: &Path, dry_run: bool, form: Json) -> anyhow::Result<()> {
    let file = read(path)?;
    let failed = file.run_tests(Timestamp::now());
    let failed = failed.iter().filter(|outcome| !outcome.passed()).count();
    if failed > 0 {
        let text = format!(
            "{failed} test(s) of {} fail, so nothing was applied",
            path.display()
        );
        let hint = format!("`sealock policy test {}` shows them", path.display());
        return Err(Failure::new(text).hint(hint).into());
    }
    let request = ApplyRequest {
        tenant: tenant(common)?,
        rules: file.rules,
        dry_run,
    };
    let applied = ask::<Apply>(common, &request).await?;
    if form.json {
        return print::json(&applied);
    }
    let parts = [
        ("added", &applied.added),
        ("changed", &applied.changed),
        ("removed", &applied.removed),
    ];
    let mut count = 0;
    for (what, rules) in parts {
        count += rules.len();
        for rule in rules {
            let what = if dry_run {
                format!("would be {what}")
            } else {
                what.to_owned()
            };
            print::line(&format!("{what}: {}", sentence(rule)));
        }
    }
    if count == 0 {
        print::line("nothing differs");
    }
    Ok(())
}

#[derive(Debug, Serialize)]
struct TestRow {
    line: usize,
    caller: String,
    goal: String,
    expect: String,
    passed: bool,
    decision: String,
}

fn test(common: &Common, path: &Path, form: Json) -> anyhow::Result<()> {
    settings::load(common, Kind::Client, [])?;
    let file = read(path)?;
    let rows: Vec<TestRow> = file
        .run_tests(Timestamp::now())
        .iter()
        .map(|outcome| TestRow {
            line: outcome.test.line,
            caller: outcome.test.caller.to_string(),
            goal: outcome.test.goal.to_string(),
            expect: outcome.test.expect.to_string(),
            passed: outcome.passed(),
            decision: outcome.decision.to_string(),
        })
        .collect();
    let failed = rows.iter().filter(|row| !row.passed).count();
    if form.json {
        print::json(&rows)?;
    } else {
        for row in rows.iter().filter(|row| !row.passed) {
            print::line(&format!(
                "{}:{}: {} to {}: expected {}, but {}",
                path.display(),
                row.line,
                row.caller,
                row.goal,
                row.expect,
                row.decision
            ));
        }
        print::line(&format!("{} test(s), {failed} failed", rows.len()));
    }
    if failed > 0 {
        return Err(Failure::new(format!("{failed} test(s) failed")).into());
    }
    Ok(())
}

/// `sealock why`: 0 when it is allowed, the reason's code when not.
pub(crate) async fn why(common: &Common, flags: Why) -> anyhow::Result<ExitCode> {
    let action = if flags.provide {
        Action::Provide
    } else {
        Action::Open
    };
    let request = WhyRequest {
        tenant: tenant(common)?,
        caller: flags.caller,
        service: flags.service,
        destination: flags.to.map(|it| it.to_string()),
        action,
    };
    let answer = ask::<WhyMethod>(common, &request).await?;
    if flags.form.json {
        print::json(&answer)?;
    } else {
        let verdict = if answer.allowed { "yes" } else { "no" };
        print::line(&format!("{verdict}: {}", answer.words));
        for rule in &answer.rules {
            let applies = if rule.applies {
                "applies"
            } else {
                "does not apply"
            };
            print::line(&format!("  rule {} ({}) {applies}", rule.id, rule.effect));
            for part in &rule.parts {
                print::line(&format!("    {}", part.words));
            }
        }
    }
    let code = answer.reason.map_or(FAILED, Reason::exit_code);
    Ok(if answer.allowed {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(code)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_a_time_or_a_length_from_now() {
        let day = moment("2027-01-31T12:00:00Z", Direction::Future).expect("a time");
        assert_eq!(day.to_string(), "2027-01-31T12:00:00Z");
        let now = Timestamp::now();
        assert!(moment("8h", Direction::Future).expect("a length") > now);
        assert!(moment("8h", Direction::Past).expect("a length") < now);
        assert!(moment("soon", Direction::Future).is_err());
    }
}
