//! Certificates that ended and are still good for one thing: that their holder comes back with the next one.
//!
//! Good is the certificate that the node has shown to lie on its disk, and whatever was issued after it and may have got
//! lost on the way. So an answer that is lost locks nobody out, and a copy of an older disk is worth nothing.

use jiff::{SignedDuration, Timestamp};
use sealock_core::name::TenantName;
use sealock_core::reason::Reason;
use serde_json::json;
use sqlx::sqlite::SqliteConnection;

use super::identity::{admits, record_issue, refuse_revoked_key};
use super::{audit, to_ms};
use crate::store::{Act, Certificate, Holder, Issue, Recovery, StoreError, principal_text};

/// A proof is remembered for as long as its time would be taken, and as long again.
const PROOFS: SignedDuration = SignedDuration::from_mins(20);

pub(super) async fn recover(
    connection: &mut SqliteConnection,
    recovery: &Recovery,
    now: Timestamp,
    issue: &Issue<'_>,
) -> Result<Certificate, StoreError> {
    let refused = StoreError::Refused;
    let holder = &recovery.holder;
    let fresh = sqlx::query("INSERT INTO recoveries VALUES (?, ?) ON CONFLICT DO NOTHING")
        .bind(&recovery.proof[..])
        .bind(to_ms(now))
        .execute(&mut *connection)
        .await?;
    if fresh.rows_affected() == 0 {
        return Err(refused(Reason::NotAdmitted));
    }
    refuse_revoked_key(connection, &holder.key_digest).await?;
    refuse_revoked_key(connection, &recovery.key_digest).await?;
    let last: Option<(i64, i64)> = sqlx::query_as(
        "SELECT issued, not_after FROM certificates WHERE serial = ? AND key_digest = ? AND holder = ?",
    )
    .bind(&holder.serial)
    .bind(&holder.key_digest)
    .bind(principal_text(&holder.principal))
    .fetch_optional(&mut *connection)
    .await?;
    // Issued by another, or so long ago, or replaced so surely, that it was dropped.
    let (issued, not_after) = last.ok_or_else(|| refused(Reason::NotAdmitted))?;
    if !admits(connection, holder).await? {
        return Err(refused(Reason::IdentityRevoked));
    }
    let oldest = now
        .saturating_sub(recovery.within)
        .unwrap_or(Timestamp::MIN);
    if not_after <= to_ms(oldest) || is_replaced(connection, holder, issued).await? {
        return Err(refused(Reason::NotAdmitted));
    }
    let certificate = record_issue(connection, &holder.principal, now, issue).await?;
    let act = Act::done(now, &holder.principal, "node.recover", &holder.principal).with(json!({
        "serial": certificate.serial, "last": holder.serial, "source": recovery.source,
    }));
    let tenant = holder.principal.as_agent().map(|agent| &agent.tenant);
    let tenant: Option<&TenantName> = tenant;
    audit::record(connection, tenant, &[act]).await?;
    Ok(certificate)
}

/// Whether the holder has shown that a later certificate lies on its disk.
async fn is_replaced(
    connection: &mut SqliteConnection,
    holder: &Holder,
    issued: i64,
) -> Result<bool, StoreError> {
    let later = sqlx::query(
        "SELECT 1 FROM certificates WHERE holder = ? AND kept IS NOT NULL AND issued > ? LIMIT 1",
    )
    .bind(principal_text(&holder.principal))
    .bind(issued)
    .fetch_optional(connection)
    .await?;
    Ok(later.is_some())
}

pub(super) async fn keeps(
    connection: &mut SqliteConnection,
    holder: &Holder,
    now: Timestamp,
) -> Result<(), StoreError> {
    sqlx::query("UPDATE certificates SET kept = ? WHERE serial = ? AND kept IS NULL")
        .bind(to_ms(now))
        .bind(&holder.serial)
        .execute(connection)
        .await?;
    Ok(())
}

/// Drops what ended and is of no use for coming back: revoked, replaced, or too long ago.
pub(super) async fn drop_ended(
    connection: &mut SqliteConnection,
    now: Timestamp,
    recoverable_from: Timestamp,
) -> Result<(), StoreError> {
    sqlx::query(
        "DELETE FROM certificates WHERE not_after <= ?1 AND (
             revoked IS NOT NULL OR not_after <= ?2 OR EXISTS (
                 SELECT 1 FROM certificates AS later WHERE later.holder = certificates.holder
                 AND later.kept IS NOT NULL AND later.issued > certificates.issued))",
    )
    .bind(to_ms(now))
    .bind(to_ms(recoverable_from))
    .execute(&mut *connection)
    .await?;
    let forgotten = now.saturating_sub(PROOFS).unwrap_or(Timestamp::MIN);
    sqlx::query("DELETE FROM recoveries WHERE at <= ?")
        .bind(to_ms(forgotten))
        .execute(connection)
        .await?;
    Ok(())
}
