//! `sealock audit`: what was decided and done.

use sealock_core::api::audit::{List, ListRequest, Verify, VerifyRequest};

use super::policy::{Direction, moment};
use super::{ask, tenant};
use crate::cli::{Audit, AuditVerb, Common, Json};
use crate::failure::Failure;
use crate::print;

pub(crate) async fn run(common: &Common, flags: Audit) -> anyhow::Result<()> {
    match flags.verb {
        Some(AuditVerb::Verify { deployment, form }) => verify(common, deployment, form).await,
        None => list(common, flags).await,
    }
}

async fn list(common: &Common, flags: Audit) -> anyhow::Result<()> {
    let since = flags.since.as_deref();
    let request = ListRequest {
        deployment: flags.deployment,
        limit: Some(flags.limit),
        before: flags.before,
        since: since
            .map(|text| moment(text, Direction::Past))
            .transpose()?,
        actor: flags.actor,
        action: flags.action,
        ..ListRequest::default()
    };
    let listed = ask::<List>(common, &request).await?;
    if flags.form.json {
        return print::json(&listed);
    }
    let last = listed.rows.last().map(|row| row.number);
    let rows = listed.rows.into_iter().map(|row| {
        vec![
            row.number.to_string(),
            print::time(row.at),
            row.actor,
            row.action,
            row.subject,
            row.reason.code().to_owned(),
        ]
    });
    print::table(
        &["ROW", "TIME", "WHO", "DID", "TO", "REASON"],
        rows.collect(),
        "no row matches",
    );
    if let Some(last) = last.filter(|_| listed.more) {
        print::error(&format!("older rows: --before {last}"));
    }
    Ok(())
}

async fn verify(common: &Common, deployment: bool, form: Json) -> anyhow::Result<()> {
    let request = VerifyRequest {
        tenant: tenant(common)?,
        deployment,
    };
    let verified = ask::<Verify>(common, &request).await?;
    if form.json {
        print::json(&verified)?;
    } else if verified.broken_at.is_none() {
        print::line(&format!(
            "{} row(s), an unbroken chain; the newest hash is {}",
            verified.rows, verified.head
        ));
    }
    match verified.broken_at {
        None => Ok(()),
        Some(row) => Err(Failure::new(format!(
            "the chain is broken at row {row}: it, or one before it, was changed or taken out"
        ))
        .hint("compare with a backup, or with a hash that was kept elsewhere")
        .into()),
    }
}
