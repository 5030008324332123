//! Audit rows: written once, chained, pruned from the old end only.

use jiff::Timestamp;
use sealock_core::api::audit::{AuditRow, VerifyResponse};
use sealock_core::name::TenantName;
use sealock_core::reason::Reason;
use sqlx::sqlite::SqliteConnection;

use super::{from_json, from_ms, to_json, to_ms, unsigned};
use crate::store::{Act, AuditQuery, Link, StoreError};

const TEXT_LIMIT: usize = 512; // longer than every legal identity and name
const DETAIL_LIMIT: usize = 8 * 1024;
const NO_TENANT: &str = "";
const START: [u8; 32] = [0; 32]; // the hash before the first row

fn chain_name(tenant: Option<&TenantName>) -> &str {
    tenant.map_or(NO_TENANT, TenantName::as_str)
}

/// Cuts what is too long and escapes what a terminal would obey.
fn clean(text: &str) -> String {
    let mut cleaned = String::new();
    for c in text.chars() {
        if c.is_control() {
            cleaned.extend(c.escape_default());
        } else {
            cleaned.push(c);
        }
        if cleaned.len() >= TEXT_LIMIT {
            cleaned.push('…');
            break;
        }
    }
    cleaned
}

pub(super) async fn record(
    connection: &mut SqliteConnection,
    tenant: Option<&TenantName>,
    acts: &[Act],
) -> Result<(), StoreError> {
    let chain = chain_name(tenant);
    let end: Option<(i64, Vec<u8>)> =
        sqlx::query_as("SELECT number, hash FROM chains WHERE tenant = ?")
            .bind(chain)
            .fetch_optional(&mut *connection)
            .await?;
    let is_new = end.is_none();
    let (mut number, mut hash) = end.unwrap_or_else(|| (0, START.to_vec()));
    if is_new {
        sqlx::query("INSERT INTO chains VALUES (?, 0, ?, 0, ?)")
            .bind(chain)
            .bind(&START[..])
            .bind(&START[..])
            .execute(&mut *connection)
            .await?;
    }
    for act in acts {
        number += 1;
        hash = insert(connection, chain, number, &hash, act).await?;
    }
    sqlx::query("UPDATE chains SET number = ?, hash = ? WHERE tenant = ?")
        .bind(number)
        .bind(hash)
        .bind(chain)
        .execute(connection)
        .await?;
    Ok(())
}

async fn insert(
    connection: &mut SqliteConnection,
    chain: &str,
    number: i64,
    before: &[u8],
    act: &Act,
) -> Result<Vec<u8>, StoreError> {
    let (actor, subject) = (clean(&act.actor), clean(&act.subject));
    let mut detail = to_json(&act.detail)?;
    if detail.len() > DETAIL_LIMIT {
        detail = r#"{"too_long":true}"#.to_owned();
    }
    let link = Link {
        number: unsigned(number)?,
        at: to_ms(act.at),
        actor: &actor,
        action: act.action,
        subject: &subject,
        reason: act.reason.number(),
        detail: &detail,
    };
    let hash = link.hash(before).to_vec();
    sqlx::query("INSERT INTO audit VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)")
        .bind(chain)
        .bind(number)
        .bind(to_ms(act.at))
        .bind(&actor)
        .bind(act.action)
        .bind(&subject)
        .bind(i64::from(act.reason.number()))
        .bind(&detail)
        .bind(&hash)
        .execute(connection)
        .await?;
    Ok(hash)
}

type Columns = (i64, i64, String, String, String, i64, String);

pub(super) async fn rows(
    connection: &mut SqliteConnection,
    query: &AuditQuery,
) -> Result<(Vec<AuditRow>, bool), StoreError> {
    let before = match query.before {
        Some(number) => i64::try_from(number).unwrap_or(i64::MAX),
        None => i64::MAX,
    };
    let found: Vec<Columns> = sqlx::query_as(
        "SELECT number, at, actor, action, subject, reason, detail FROM audit
         WHERE tenant = ?1 AND number < ?2 AND at >= ?3
           AND (?4 IS NULL OR actor = ?4)
           AND (?5 IS NULL OR action = ?5 OR substr(action, 1, length(?5) + 1) = ?5 || '.')
         ORDER BY number DESC LIMIT ?6",
    )
    .bind(chain_name(query.tenant.as_ref()))
    .bind(before)
    .bind(query.since.map_or(i64::MIN, to_ms))
    .bind(query.actor.as_deref())
    .bind(query.action.as_deref())
    .bind(i64::from(query.limit) + 1)
    .fetch_all(connection)
    .await?;
    let limit = usize::try_from(query.limit).unwrap_or(usize::MAX);
    let more = found.len() > limit;
    let rows = found.into_iter().take(limit).map(row);
    Ok((rows.collect::<Result<_, _>>()?, more))
}

fn row(columns: Columns) -> Result<AuditRow, StoreError> {
    let (number, at, actor, action, subject, reason, detail) = columns;
    Ok(AuditRow {
        number: unsigned(number)?,
        at: from_ms(at)?,
        actor,
        action,
        subject,
        reason: Reason::from_number(unsigned(reason)?),
        detail: from_json("audit detail", &detail)?,
    })
}

type LinkColumns = (i64, i64, String, String, String, i64, String, Vec<u8>);

pub(super) async fn verify(
    connection: &mut SqliteConnection,
    tenant: Option<&TenantName>,
) -> Result<VerifyResponse, StoreError> {
    let chain = chain_name(tenant);
    let ends: Option<(i64, Vec<u8>, i64, Vec<u8>)> = sqlx::query_as(
        "SELECT number, hash, anchor_number, anchor_hash FROM chains WHERE tenant = ?",
    )
    .bind(chain)
    .fetch_optional(&mut *connection)
    .await?;
    let (last, head, mut number, mut hash) =
        ends.unwrap_or_else(|| (0, START.to_vec(), 0, START.to_vec()));
    let mut report = VerifyResponse {
        rows: 0,
        broken_at: None,
        head: data_encoding::HEXLOWER.encode(&head),
    };
    loop {
        // Page by page, because years of rows need not fit the memory.
        let page: Vec<LinkColumns> = sqlx::query_as(
            "SELECT number, at, actor, action, subject, reason, detail, hash FROM audit
             WHERE tenant = ? AND number > ? ORDER BY number LIMIT 1000",
        )
        .bind(chain)
        .bind(number)
        .fetch_all(&mut *connection)
        .await?;
        if page.is_empty() {
            break;
        }
        for columns in page {
            number += 1;
            report.rows += 1;
            let kept = columns.7.clone();
            if columns.0 != number || recompute(&columns, &hash)? != kept {
                report.broken_at = Some(unsigned(number)?);
                return Ok(report);
            }
            hash = kept;
        }
    }
    if number != last || hash != head {
        report.broken_at = Some(unsigned(number)? + 1);
    }
    Ok(report)
}

fn recompute(columns: &LinkColumns, before: &[u8]) -> Result<Vec<u8>, StoreError> {
    let (number, at, actor, action, subject, reason, detail, _) = columns;
    let link = Link {
        number: unsigned(*number)?,
        at: *at,
        actor,
        action,
        subject,
        reason: u32::try_from(*reason).map_err(|_| StoreError::Unreadable("reason"))?,
        detail,
    };
    Ok(link.hash(before).to_vec())
}

/// Takes rows from the old end of every chain and remembers where the kept part begins.
pub(super) async fn prune(
    connection: &mut SqliteConnection,
    from: Timestamp,
) -> Result<(), StoreError> {
    let chains: Vec<(String,)> = sqlx::query_as("SELECT tenant FROM chains")
        .fetch_all(&mut *connection)
        .await?;
    for (chain,) in chains {
        // The first row to keep bounds what goes, so that rows of a clock that ran back leave no hole.
        let last: Option<(i64, Vec<u8>)> = sqlx::query_as(
            "SELECT number, hash FROM audit WHERE tenant = ?1
               AND number < coalesce((SELECT min(number) FROM audit WHERE tenant = ?1 AND at >= ?2), 9223372036854775807)
             ORDER BY number DESC LIMIT 1",
        )
        .bind(&chain)
        .bind(to_ms(from))
        .fetch_optional(&mut *connection)
        .await?;
        let Some((number, hash)) = last else { continue };
        sqlx::query("UPDATE chains SET anchor_number = ?, anchor_hash = ? WHERE tenant = ?")
            .bind(number)
            .bind(hash)
            .bind(&chain)
            .execute(&mut *connection)
            .await?;
        sqlx::query("DELETE FROM audit WHERE tenant = ? AND number <= ?")
            .bind(&chain)
            .bind(number)
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}
