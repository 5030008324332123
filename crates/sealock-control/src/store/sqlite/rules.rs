//! Tenants, their rules, and the entries of their views.

use std::collections::{BTreeMap, BTreeSet};

use sealock_core::api::policy::{ApplyResponse, Origin, RuleRow};
use sealock_core::choice::Terms;
use sealock_core::name::{AgentName, ServiceName, TenantName};
use sealock_core::policy::{Rule, RuleId};
use sealock_core::view::{Agent, Entries, Entry, Revoked, Service, ViewVersion};
use serde_json::json;
use sqlx::sqlite::SqliteConnection;

use super::{audit, from_json, from_ms, name, raise, to_json, to_ms, unsigned, version};
use crate::store::{Act, Counts, StoreError};

pub(super) async fn add_tenant(
    connection: &mut SqliteConnection,
    tenant: &TenantName,
    first: &[Rule],
    act: &Act,
) -> Result<bool, StoreError> {
    let made = sqlx::query("INSERT INTO tenants VALUES (?, ?) ON CONFLICT DO NOTHING")
        .bind(tenant.as_str())
        .bind(to_ms(act.at))
        .execute(&mut *connection)
        .await?;
    if made.rows_affected() == 0 {
        return Ok(false);
    }
    sqlx::query("INSERT INTO views VALUES (?, 1)")
        .bind(tenant.as_str())
        .execute(&mut *connection)
        .await?;
    for rule in first {
        insert(connection, tenant, rule, Origin::Starter, act).await?;
    }
    let ids: Vec<&str> = first.iter().map(|rule| rule.id.as_str()).collect();
    let act = act.clone().with(json!({"rules": ids}));
    audit::record(connection, Some(tenant), &[act]).await?;
    Ok(true)
}

pub(super) async fn versions(
    connection: &mut SqliteConnection,
) -> Result<BTreeMap<TenantName, ViewVersion>, StoreError> {
    let found: Vec<(String, i64)> = sqlx::query_as("SELECT tenant, version FROM views")
        .fetch_all(connection)
        .await?;
    let pair = |(tenant, version): (String, i64)| {
        Ok((name("tenant", &tenant)?, ViewVersion(unsigned(version)?)))
    };
    found.into_iter().map(pair).collect()
}

pub(super) async fn raise_view(
    connection: &mut SqliteConnection,
    tenant: &TenantName,
    than: ViewVersion,
    act: &Act,
) -> Result<(), StoreError> {
    let out_of_range = StoreError::OutOfRange("version");
    let next = than.0.checked_add(1).and_then(|it| i64::try_from(it).ok());
    let next = next.ok_or(out_of_range)?;
    let raised = sqlx::query("UPDATE views SET version = ?1 WHERE tenant = ?2 AND version < ?1")
        .bind(next)
        .bind(tenant.as_str())
        .execute(&mut *connection)
        .await?;
    if raised.rows_affected() > 0 {
        audit::record(connection, Some(tenant), std::slice::from_ref(act)).await?;
    }
    Ok(())
}

pub(super) async fn view(
    connection: &mut SqliteConnection,
    tenant: &TenantName,
) -> Result<(ViewVersion, Entries), StoreError> {
    let (rows, version) = rules(connection, tenant).await?;
    let mut entries = Entries::default();
    for row in rows {
        entries.put_entry(&Entry::Rule(row.rule));
    }
    for entry in services(connection, tenant).await? {
        entries.put_entry(&entry);
    }
    let found: Vec<(String, String, String)> = sqlx::query_as(
        "SELECT name, labels, groups FROM agents WHERE tenant = ? AND revoked IS NULL",
    )
    .bind(tenant.as_str())
    .fetch_all(&mut *connection)
    .await?;
    for (agent, labels, groups) in found {
        entries.put_entry(&Entry::Agent(Agent {
            name: name("agent name", &agent)?,
            groups: from_json("group", &groups)?,
            labels: from_json("label", &labels)?,
        }));
    }
    for entry in revocations(connection, tenant).await? {
        entries.put_entry(&entry);
    }
    Ok((version, entries))
}

async fn services(
    connection: &mut SqliteConnection,
    tenant: &TenantName,
) -> Result<Vec<Entry>, StoreError> {
    let found: Vec<(String, String, String)> =
        sqlx::query_as("SELECT service, agent, terms FROM registrations WHERE tenant = ?")
            .bind(tenant.as_str())
            .fetch_all(&mut *connection)
            .await?;
    let mut providers: BTreeMap<String, BTreeMap<AgentName, Terms>> = BTreeMap::new();
    for (service, agent, terms) in found {
        let of_service = providers.entry(service).or_default();
        of_service.insert(name("agent name", &agent)?, from_json("terms", &terms)?);
    }
    let found: Vec<(String, String, bool)> = sqlx::query_as(
        "SELECT s.name, s.labels, r.sticky FROM services s
         JOIN registrations r ON (r.tenant, r.service, r.agent) = (s.tenant, s.name, s.owner)
         WHERE s.tenant = ?",
    )
    .bind(tenant.as_str())
    .fetch_all(connection)
    .await?;
    let entry = |(service, labels, sticky): (String, String, bool)| {
        Ok(Entry::Service(Service {
            providers: providers.remove(&service).unwrap_or_default(),
            name: name::<ServiceName>("service name", &service)?,
            labels: from_json("label", &labels)?,
            sticky,
        }))
    };
    found.into_iter().map(entry).collect()
}

type RevokedColumns = (String, String, String, i64);

async fn revocations(
    connection: &mut SqliteConnection,
    tenant: &TenantName,
) -> Result<Vec<Entry>, StoreError> {
    let found: Vec<RevokedColumns> = sqlx::query_as(
        "SELECT holder, serial, key_digest, not_after FROM certificates
         WHERE tenant = ? AND revoked IS NOT NULL",
    )
    .bind(tenant.as_str())
    .fetch_all(connection)
    .await?;
    let entry = |(holder, serial, key_digest, not_after): RevokedColumns| {
        let (_, agent) = holder
            .rsplit_once('/')
            .ok_or(StoreError::Unreadable("certificate holder"))?;
        Ok(Entry::Revoked(Revoked {
            agent: name("agent name", agent)?,
            serial,
            key_digest,
            expires: from_ms(not_after)?,
        }))
    };
    found.into_iter().map(entry).collect()
}

pub(super) async fn counts(
    connection: &mut SqliteConnection,
    tenant: &TenantName,
) -> Result<Counts, StoreError> {
    version(connection, tenant).await?;
    let (agents, services, rules): (i64, i64, i64) = sqlx::query_as(
        "SELECT (SELECT count(*) FROM agents WHERE tenant = ?1 AND revoked IS NULL),
                (SELECT count(*) FROM services WHERE tenant = ?1),
                (SELECT count(*) FROM rules WHERE tenant = ?1)",
    )
    .bind(tenant.as_str())
    .fetch_one(connection)
    .await?;
    Ok(Counts {
        agents: unsigned(agents)?,
        services: unsigned(services)?,
        rules: unsigned(rules)?,
    })
}

fn origin_text(origin: Origin) -> &'static str {
    match origin {
        Origin::Starter => "starter",
        Origin::Command => "command",
        Origin::File => "file",
    }
}

fn origin_of(text: &str) -> Result<Origin, StoreError> {
    [Origin::Starter, Origin::Command, Origin::File]
        .into_iter()
        .find(|&origin| origin_text(origin) == text)
        .ok_or(StoreError::Unreadable("rule origin"))
}

pub(super) async fn rules(
    connection: &mut SqliteConnection,
    tenant: &TenantName,
) -> Result<(Vec<RuleRow>, ViewVersion), StoreError> {
    let version = version(connection, tenant).await?;
    let found: Vec<(String, String)> =
        sqlx::query_as("SELECT origin, rule FROM rules WHERE tenant = ? ORDER BY id")
            .bind(tenant.as_str())
            .fetch_all(connection)
            .await?;
    let row = |(origin, rule): (String, String)| {
        Ok(RuleRow {
            rule: from_json("rule", &rule)?,
            origin: origin_of(&origin)?,
        })
    };
    let rows: Result<_, StoreError> = found.into_iter().map(row).collect();
    Ok((rows?, version))
}

async fn insert(
    connection: &mut SqliteConnection,
    tenant: &TenantName,
    rule: &Rule,
    origin: Origin,
    act: &Act,
) -> Result<(), StoreError> {
    let inserted = sqlx::query("INSERT INTO rules VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING")
        .bind(tenant.as_str())
        .bind(rule.id.as_str())
        .bind(origin_text(origin))
        .bind(to_json(rule)?)
        .bind(to_ms(act.at))
        .execute(connection)
        .await?;
    if inserted.rows_affected() == 0 {
        return Err(StoreError::Exists {
            kind: "rule",
            name: rule.id.to_string(),
        });
    }
    Ok(())
}

async fn delete(
    connection: &mut SqliteConnection,
    tenant: &TenantName,
    id: &RuleId,
) -> Result<Rule, StoreError> {
    let gone: Option<(String,)> =
        sqlx::query_as("DELETE FROM rules WHERE tenant = ? AND id = ? RETURNING rule")
            .bind(tenant.as_str())
            .bind(id.as_str())
            .fetch_optional(connection)
            .await?;
    let (rule,) = gone.ok_or_else(|| StoreError::NoSuch {
        kind: "rule",
        name: id.to_string(),
    })?;
    from_json("rule", &rule)
}

pub(super) async fn add_rule(
    connection: &mut SqliteConnection,
    tenant: &TenantName,
    rule: &Rule,
    origin: Origin,
    act: &Act,
) -> Result<ViewVersion, StoreError> {
    let version = raise(connection, tenant).await?;
    insert(connection, tenant, rule, origin, act).await?;
    let act = act.clone().with(json!({"rule": rule}));
    audit::record(connection, Some(tenant), &[act]).await?;
    Ok(version)
}

pub(super) async fn remove_rule(
    connection: &mut SqliteConnection,
    tenant: &TenantName,
    id: &RuleId,
    act: &Act,
) -> Result<(Rule, ViewVersion), StoreError> {
    let version = raise(connection, tenant).await?;
    let rule = delete(connection, tenant, id).await?;
    let act = act.clone().with(json!({"rule": rule}));
    audit::record(connection, Some(tenant), &[act]).await?;
    Ok((rule, version))
}

/// What taking the file's rules over would change.
pub(super) async fn preview(
    connection: &mut SqliteConnection,
    tenant: &TenantName,
    wanted: &[Rule],
) -> Result<ApplyResponse, StoreError> {
    let (rows, version) = rules(connection, tenant).await?;
    let mut present: BTreeMap<RuleId, RuleRow> = rows
        .into_iter()
        .map(|row| (row.rule.id.clone(), row))
        .collect();
    let mut difference = ApplyResponse {
        added: Vec::new(),
        changed: Vec::new(),
        removed: Vec::new(),
        version,
    };
    let mut ids = BTreeSet::new();
    for rule in wanted {
        let is_twice = !ids.insert(&rule.id);
        match present.remove(&rule.id) {
            Some(row) if row.origin == Origin::File && !is_twice => {
                if row.rule != *rule {
                    difference.changed.push(rule.clone());
                }
            }
            None if !is_twice => difference.added.push(rule.clone()),
            Some(_) | None => {
                return Err(StoreError::Exists {
                    kind: "rule",
                    name: rule.id.to_string(),
                });
            }
        }
    }
    let gone = present
        .into_values()
        .filter(|row| row.origin == Origin::File);
    difference.removed = gone.map(|row| row.rule).collect();
    Ok(difference)
}

pub(super) async fn apply(
    connection: &mut SqliteConnection,
    tenant: &TenantName,
    wanted: &[Rule],
    act: &Act,
) -> Result<ApplyResponse, StoreError> {
    let mut difference = preview(connection, tenant, wanted).await?;
    let gone = difference.removed.iter().chain(&difference.changed);
    let ids = |rules: &[Rule]| {
        rules
            .iter()
            .map(|rule| rule.id.clone())
            .collect::<Vec<RuleId>>()
    };
    let act = act.clone().with(json!({
        "added": ids(&difference.added),
        "changed": ids(&difference.changed),
        "removed": ids(&difference.removed),
    }));
    let mut is_change = false;
    for rule in gone {
        delete(connection, tenant, &rule.id).await?;
        is_change = true;
    }
    for rule in difference.added.iter().chain(&difference.changed) {
        insert(connection, tenant, rule, Origin::File, &act).await?;
        is_change = true;
    }
    if is_change {
        difference.version = raise(connection, tenant).await?;
    }
    audit::record(connection, Some(tenant), &[act]).await?;
    Ok(difference)
}
