//! Roots, tokens, certificates and their ends.

use jiff::{Timestamp, ToSpan};
use sealock_core::address::HostPort;
use sealock_core::identity::{AgentId, Principal};
use sealock_core::name::{AgentName, NodeName, TenantName};
use sealock_core::reason::Reason;
use sealock_core::view::ViewVersion;
use serde_json::json;
use sqlx::sqlite::SqliteConnection;

use super::{audit, from_ms, name, raise, to_json, to_ms, version};
use crate::store::{
    Act, Admits, Certificate, Holder, Issue, Keep, Redemption, RootRow, RootState, StoreError,
    TokenRow, principal_text,
};

pub(super) async fn meta_or(
    connection: &mut SqliteConnection,
    key: &str,
    value: &str,
) -> Result<String, StoreError> {
    sqlx::query("INSERT INTO meta VALUES (?, ?) ON CONFLICT DO NOTHING")
        .bind(key)
        .bind(value)
        .execute(&mut *connection)
        .await?;
    let (kept,): (String,) = sqlx::query_as("SELECT value FROM meta WHERE key = ?")
        .bind(key)
        .fetch_one(connection)
        .await?;
    Ok(kept)
}

fn state_text(state: RootState) -> &'static str {
    match state {
        RootState::Prepared => "prepared",
        RootState::Active => "active",
        RootState::Tainted => "tainted",
        RootState::Revoked => "revoked",
    }
}

fn state_of(text: &str) -> Result<RootState, StoreError> {
    match text {
        "prepared" => Ok(RootState::Prepared),
        "active" => Ok(RootState::Active),
        "tainted" => Ok(RootState::Tainted),
        "revoked" => Ok(RootState::Revoked),
        _ => Err(StoreError::Unreadable("root state")),
    }
}

pub(super) async fn roots(connection: &mut SqliteConnection) -> Result<Vec<RootRow>, StoreError> {
    let found: Vec<(String, Vec<u8>, i64)> =
        sqlx::query_as("SELECT state, certificate, created FROM roots ORDER BY id")
            .fetch_all(connection)
            .await?;
    let row = |(state, certificate, created): (String, Vec<u8>, i64)| {
        Ok(RootRow {
            state: state_of(&state)?,
            certificate,
            created: from_ms(created)?,
        })
    };
    found.into_iter().map(row).collect()
}

pub(super) async fn add_root(
    connection: &mut SqliteConnection,
    certificate: &[u8],
    act: &Act,
) -> Result<(), StoreError> {
    sqlx::query("INSERT INTO roots (state, certificate, created) VALUES ('prepared', ?, ?)")
        .bind(certificate)
        .bind(to_ms(act.at))
        .execute(&mut *connection)
        .await?;
    audit::record(connection, None, std::slice::from_ref(act)).await
}

pub(super) async fn set_root(
    connection: &mut SqliteConnection,
    certificate: &[u8],
    state: RootState,
    act: &Act,
) -> Result<(), StoreError> {
    if state == RootState::Active {
        sqlx::query("UPDATE roots SET state = 'tainted' WHERE state = 'active'")
            .execute(&mut *connection)
            .await?;
    }
    let moved = sqlx::query("UPDATE roots SET state = ? WHERE certificate = ?")
        .bind(state_text(state))
        .bind(certificate)
        .execute(&mut *connection)
        .await?;
    if moved.rows_affected() == 0 {
        return Err(StoreError::NoSuch {
            kind: "root",
            name: act.subject.clone(),
        });
    }
    audit::record(connection, None, std::slice::from_ref(act)).await
}

pub(super) async fn add_token(
    connection: &mut SqliteConnection,
    token: &TokenRow,
    act: &Act,
) -> Result<(), StoreError> {
    let (role, tenant, name, labels, groups) = match &token.admits {
        Admits::Agent {
            tenant,
            name,
            labels,
            groups,
        } => {
            version(connection, tenant).await?;
            let name = name.as_ref().map(AgentName::as_str);
            (
                "agent",
                Some(tenant),
                name,
                to_json(labels)?,
                to_json(groups)?,
            )
        }
        Admits::Relay { name } => {
            let name = name.as_ref().map(NodeName::as_str);
            ("relay", None, name, "{}".to_owned(), "[]".to_owned())
        }
    };
    sqlx::query("INSERT INTO tokens VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL, NULL)")
        .bind(&token.hash[..])
        .bind(role)
        .bind(tenant.map(TenantName::as_str))
        .bind(name)
        .bind(labels)
        .bind(groups)
        .bind(to_ms(token.created))
        .bind(to_ms(token.expires))
        .execute(&mut *connection)
        .await?;
    audit::record(connection, tenant, std::slice::from_ref(act)).await
}

/// A token that is good right now.
struct Good {
    tenant: Option<TenantName>,
    bound: Option<String>,
    labels: String,
    groups: String,
}

type TokenColumns = (String, Option<String>, Option<String>, String, String);

/// One statement checks and marks, so that no two redemptions can both find the token unused.
async fn take_token(
    connection: &mut SqliteConnection,
    redemption: &Redemption,
    now: Timestamp,
) -> Result<Good, StoreError> {
    // `created` guards against a clock that was moved back behind the token's birth.
    let taken: Option<TokenColumns> = sqlx::query_as(
        "UPDATE tokens SET used_at = ?2
         WHERE hash = ?1 AND used_at IS NULL AND expires > ?2 AND created <= ?2
         RETURNING role, tenant, name, labels, groups",
    )
    .bind(&redemption.hash[..])
    .bind(to_ms(now))
    .fetch_optional(connection)
    .await?;
    let (role, tenant, bound, labels, groups) =
        taken.ok_or(StoreError::Refused(Reason::TokenInvalid))?;
    if role != redemption.role.as_str() {
        return Err(StoreError::Refused(Reason::TokenInvalid));
    }
    let tenant = tenant.map(|tenant| name("tenant", &tenant)).transpose()?;
    Ok(Good {
        tenant,
        bound,
        labels,
        groups,
    })
}

/// The name that the node gets: the bound one, or the one it asks for, or what it is called anyway.
fn settle_name(bound: Option<&str>, redemption: &Redemption) -> Result<String, StoreError> {
    let (asked, own) = (redemption.name.as_deref(), redemption.own_name.as_deref());
    match (bound, asked) {
        (Some(bound), Some(asked)) if bound != asked => {
            Err(StoreError::Refused(Reason::TokenInvalid))
        }
        (Some(settled), _) | (None, Some(settled)) => Ok(settled.to_owned()),
        (None, None) => own
            .map(str::to_owned)
            .ok_or(StoreError::Refused(Reason::TokenInvalid)),
    }
}

pub(super) async fn redeem(
    connection: &mut SqliteConnection,
    redemption: &Redemption,
    now: Timestamp,
    issue: &Issue<'_>,
) -> Result<(Principal, Certificate), StoreError> {
    let good = take_token(connection, redemption, now).await?;
    let settled = settle_name(good.bound.as_deref(), redemption)?;
    let malformed = |_| StoreError::Refused(Reason::TokenInvalid);
    let principal = match &good.tenant {
        Some(tenant) => Principal::Agent(AgentId {
            tenant: tenant.clone(),
            name: settled.parse().map_err(malformed)?,
        }),
        None => Principal::Relay(settled.parse().map_err(malformed)?),
    };
    refuse_revoked_key(connection, &redemption.key_digest).await?;
    match &principal {
        Principal::Agent(agent) => {
            join_agent(connection, agent, &good, redemption, now).await?;
        }
        Principal::Relay(relay) => join_relay(connection, relay, &good, redemption, now).await?,
        Principal::User { .. } | Principal::Controller(_) => {
            return Err(StoreError::Refused(Reason::TokenInvalid));
        }
    }
    sqlx::query("UPDATE tokens SET used_by = ? WHERE hash = ?")
        .bind(principal_text(&principal))
        .bind(&redemption.hash[..])
        .execute(&mut *connection)
        .await?;
    let certificate = record_issue(connection, &principal, now, issue).await?;
    let act = Act::done(now, &redemption.source, "node.enrol", &principal)
        .with(json!({"serial": certificate.serial, "role": redemption.role.as_str()}));
    audit::record(connection, good.tenant.as_ref(), &[act]).await?;
    Ok((principal, certificate))
}

/// A name that is in use, or was revoked, is only given to a token that an administrator bound to it.
async fn join_agent(
    connection: &mut SqliteConnection,
    agent: &AgentId,
    good: &Good,
    redemption: &Redemption,
    now: Timestamp,
) -> Result<(), StoreError> {
    let known: Option<(i64,)> =
        sqlx::query_as("SELECT created FROM agents WHERE tenant = ? AND name = ?")
            .bind(agent.tenant.as_str())
            .bind(agent.name.as_str())
            .fetch_optional(&mut *connection)
            .await?;
    if known.is_some() {
        if good.bound.is_none() {
            return Err(StoreError::Refused(Reason::NameTaken));
        }
        // Whoever held the name before holds it no more, unless it is the same key that joins again.
        let holder = principal_text(&Principal::Agent(agent.clone()));
        revoke_certificates(connection, &holder, Some(&redemption.key_digest), now).await?;
    }
    sqlx::query(
        "INSERT INTO agents VALUES (?1, ?2, ?3, ?4, ?5, NULL, ?5)
         ON CONFLICT DO UPDATE SET labels = ?3, groups = ?4, revoked = NULL, last_seen = ?5",
    )
    .bind(agent.tenant.as_str())
    .bind(agent.name.as_str())
    .bind(&good.labels)
    .bind(&good.groups)
    .bind(to_ms(now))
    .execute(&mut *connection)
    .await?;
    raise(connection, &agent.tenant).await?;
    Ok(())
}

async fn join_relay(
    connection: &mut SqliteConnection,
    relay: &NodeName,
    good: &Good,
    redemption: &Redemption,
    now: Timestamp,
) -> Result<(), StoreError> {
    let known: Option<(i64,)> = sqlx::query_as("SELECT created FROM relays WHERE name = ?")
        .bind(relay.as_str())
        .fetch_optional(&mut *connection)
        .await?;
    if known.is_some() && good.bound.is_none() {
        return Err(StoreError::Refused(Reason::NameTaken));
    }
    if known.is_some() {
        let holder = principal_text(&Principal::Relay(relay.clone()));
        revoke_certificates(connection, &holder, Some(&redemption.key_digest), now).await?;
    }
    let addresses: &[HostPort] = &redemption.addresses;
    sqlx::query(
        "INSERT INTO relays VALUES (?1, ?2, ?3, ?3)
         ON CONFLICT DO UPDATE SET addresses = ?2, last_seen = ?3",
    )
    .bind(relay.as_str())
    .bind(to_json(&addresses)?)
    .bind(to_ms(now))
    .execute(connection)
    .await?;
    Ok(())
}

pub(super) async fn refuse_revoked_key(
    connection: &mut SqliteConnection,
    key_digest: &str,
) -> Result<(), StoreError> {
    let revoked = sqlx::query("SELECT 1 FROM revoked_keys WHERE key_digest = ?")
        .bind(key_digest)
        .fetch_optional(connection)
        .await?;
    match revoked {
        Some(_) => Err(StoreError::Refused(Reason::IdentityRevoked)),
        None => Ok(()),
    }
}

pub(super) async fn record_issue(
    connection: &mut SqliteConnection,
    principal: &Principal,
    now: Timestamp,
    issue: &Issue<'_>,
) -> Result<Certificate, StoreError> {
    let certificate = issue(principal).map_err(StoreError::Issue)?;
    let tenant = principal.as_agent().map(|agent| &agent.tenant);
    sqlx::query("INSERT INTO certificates VALUES (?, ?, ?, ?, ?, ?, NULL, NULL)")
        .bind(&certificate.serial)
        .bind(&certificate.key_digest)
        .bind(principal_text(principal))
        .bind(tenant.map(TenantName::as_str))
        .bind(to_ms(now))
        .bind(to_ms(certificate.not_after))
        .execute(connection)
        .await?;
    Ok(certificate)
}

pub(super) async fn admits(
    connection: &mut SqliteConnection,
    holder: &Holder,
) -> Result<bool, StoreError> {
    // Issued by this store to this holder with this key: a certificate from another copy of the root is a stranger.
    let stands: Option<(i64,)> = sqlx::query_as(
        "SELECT 1 FROM certificates WHERE serial = ?1 AND key_digest = ?2 AND holder = ?3 AND revoked IS NULL
         AND NOT EXISTS (SELECT 1 FROM revoked_keys WHERE key_digest = ?2)",
    )
    .bind(&holder.serial)
    .bind(&holder.key_digest)
    .bind(principal_text(&holder.principal))
    .fetch_optional(&mut *connection)
    .await?;
    if stands.is_none() {
        return Ok(false);
    }
    let known = match &holder.principal {
        Principal::Agent(agent) => {
            sqlx::query("SELECT 1 FROM agents WHERE tenant = ? AND name = ? AND revoked IS NULL")
                .bind(agent.tenant.as_str())
                .bind(agent.name.as_str())
                .fetch_optional(connection)
                .await?
        }
        Principal::Relay(relay) => {
            sqlx::query("SELECT 1 FROM relays WHERE name = ?")
                .bind(relay.as_str())
                .fetch_optional(connection)
                .await?
        }
        Principal::Controller(_) => return Ok(true),
        Principal::User { .. } => return Ok(false),
    };
    Ok(known.is_some())
}

pub(super) async fn renew(
    connection: &mut SqliteConnection,
    holder: &Holder,
    key_digest: &str,
    now: Timestamp,
    issue: &Issue<'_>,
) -> Result<Certificate, StoreError> {
    if !admits(connection, holder).await? {
        return Err(StoreError::Refused(Reason::IdentityRevoked));
    }
    refuse_revoked_key(connection, key_digest).await?;
    let certificate = record_issue(connection, &holder.principal, now, issue).await?;
    let act = Act::done(now, &holder.principal, "node.renew", &holder.principal)
        .with(json!({"serial": certificate.serial}));
    let tenant = holder.principal.as_agent().map(|agent| &agent.tenant);
    audit::record(connection, tenant, &[act]).await?;
    Ok(certificate)
}

pub(super) async fn issue_own(
    connection: &mut SqliteConnection,
    principal: &Principal,
    now: Timestamp,
    issue: &Issue<'_>,
) -> Result<Certificate, StoreError> {
    let certificate = record_issue(connection, principal, now, issue).await?;
    // This process needs nobody to come back to, so the certificate before is of no more use.
    let holder = Holder {
        principal: principal.clone(),
        serial: certificate.serial.clone(),
        key_digest: certificate.key_digest.clone(),
    };
    super::recover::keeps(connection, &holder, now).await?;
    let act = Act::done(now, principal, "controller.issue", principal)
        .with(json!({"serial": certificate.serial}));
    audit::record(connection, None, &[act]).await?;
    Ok(certificate)
}

/// Revokes every certificate of the holder that time has not ended, but those of the key that is spared.
async fn revoke_certificates(
    connection: &mut SqliteConnection,
    holder: &str,
    spared_key: Option<&str>,
    now: Timestamp,
) -> Result<u64, StoreError> {
    let spared = spared_key.unwrap_or("");
    sqlx::query(
        "INSERT INTO revoked_keys SELECT DISTINCT key_digest, ?2 FROM certificates
         WHERE holder = ?1 AND key_digest <> ?3 ON CONFLICT DO NOTHING",
    )
    .bind(holder)
    .bind(to_ms(now))
    .bind(spared)
    .execute(&mut *connection)
    .await?;
    let revoked = sqlx::query(
        "UPDATE certificates SET revoked = ?2
         WHERE holder = ?1 AND not_after > ?2 AND revoked IS NULL AND key_digest <> ?3",
    )
    .bind(holder)
    .bind(to_ms(now))
    .bind(spared)
    .execute(connection)
    .await?;
    Ok(revoked.rows_affected())
}

pub(super) async fn revoke_agent(
    connection: &mut SqliteConnection,
    agent: &AgentId,
    act: &Act,
) -> Result<(u64, ViewVersion), StoreError> {
    let ended = sqlx::query(
        "UPDATE agents SET revoked = coalesce(revoked, ?) WHERE tenant = ? AND name = ?",
    )
    .bind(to_ms(act.at))
    .bind(agent.tenant.as_str())
    .bind(agent.name.as_str())
    .execute(&mut *connection)
    .await?;
    if ended.rows_affected() == 0 {
        return Err(StoreError::NoSuch {
            kind: "agent",
            name: agent.name.to_string(),
        });
    }
    let holder = principal_text(&Principal::Agent(agent.clone()));
    let certificates = revoke_certificates(connection, &holder, None, act.at).await?;
    super::registry::drop_registrations(connection, agent).await?;
    let version = raise(connection, &agent.tenant).await?;
    let act = act.clone().with(json!({"certificates": certificates}));
    audit::record(connection, Some(&agent.tenant), &[act]).await?;
    Ok((certificates, version))
}

/// Drops what time has ended.
pub(super) async fn tidy(
    connection: &mut SqliteConnection,
    now: Timestamp,
    keep: Keep,
) -> Result<(), StoreError> {
    // A view shows revocations until the certificate ends by itself; the change needs a version of its own.
    let tenants: Vec<(String,)> = sqlx::query_as(
        "SELECT DISTINCT tenant FROM certificates
         WHERE not_after <= ? AND revoked IS NOT NULL AND tenant IS NOT NULL",
    )
    .bind(to_ms(now))
    .fetch_all(&mut *connection)
    .await?;
    for (tenant,) in tenants {
        raise(connection, &name("tenant", &tenant)?).await?;
    }
    super::recover::drop_ended(connection, now, keep.recoverable_from).await?;
    // Kept for a day, so that the record can still say that a token was used rather than unknown.
    let day_ago = now.checked_sub(24.hours()).unwrap_or(now);
    sqlx::query("DELETE FROM tokens WHERE expires <= ?")
        .bind(to_ms(day_ago))
        .execute(connection)
        .await?;
    Ok(())
}
