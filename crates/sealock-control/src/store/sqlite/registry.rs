//! Agents, relays, services and who provides them.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use sealock_core::address::HostPort;
use sealock_core::api::service::{ProviderRow, ServiceRow};
use sealock_core::identity::{AgentId, Principal};
use sealock_core::name::{AgentName, ServiceName, TenantName};
use sealock_core::policy::Rule;
use sealock_core::reason::Reason;
use sealock_core::view::{Agent, Offering, ViewVersion};
use serde_json::json;
use sqlx::sqlite::SqliteConnection;

use super::{audit, from_json, from_ms, from_ms_opt, name, raise, rules, to_json, to_ms, version};
use crate::store::{Act, AgentRow, MayProvide, Registration, RelayRow, Sharing, StoreError};

type AgentColumns = (
    String,
    String,
    String,
    i64,
    Option<i64>,
    Option<i64>,
    Option<i64>,
);

pub(super) async fn agents(
    connection: &mut SqliteConnection,
    tenant: &TenantName,
) -> Result<Vec<AgentRow>, StoreError> {
    version(connection, tenant).await?;
    let found: Vec<AgentColumns> = sqlx::query_as(
        "SELECT name, labels, groups, created, revoked, last_seen,
                (SELECT max(not_after) FROM certificates
                 WHERE holder = agents.tenant || '/agent/' || agents.name AND revoked IS NULL)
         FROM agents WHERE tenant = ? ORDER BY name",
    )
    .bind(tenant.as_str())
    .fetch_all(&mut *connection)
    .await?;
    let provided: Vec<(String, String)> =
        sqlx::query_as("SELECT agent, service FROM registrations WHERE tenant = ?")
            .bind(tenant.as_str())
            .fetch_all(connection)
            .await?;
    let mut services: BTreeMap<String, BTreeSet<ServiceName>> = BTreeMap::new();
    for (agent, service) in provided {
        let of_agent = services.entry(agent).or_default();
        of_agent.insert(name("service name", &service)?);
    }
    let row = |(agent, labels, groups, created, revoked, seen, expires): AgentColumns| {
        Ok(AgentRow {
            services: services.remove(&agent).unwrap_or_default(),
            name: name("agent name", &agent)?,
            labels: from_json("label", &labels)?,
            groups: from_json("group", &groups)?,
            created: from_ms(created)?,
            revoked: from_ms_opt(revoked)?,
            certificate_expires: from_ms_opt(expires)?,
            last_seen: from_ms_opt(seen)?,
        })
    };
    found.into_iter().map(row).collect()
}

async fn live_agent(
    connection: &mut SqliteConnection,
    agent: &AgentId,
) -> Result<Agent, StoreError> {
    let found: Option<(String, String)> = sqlx::query_as(
        "SELECT labels, groups FROM agents WHERE tenant = ? AND name = ? AND revoked IS NULL",
    )
    .bind(agent.tenant.as_str())
    .bind(agent.name.as_str())
    .fetch_optional(connection)
    .await?;
    let (labels, groups) = found.ok_or(StoreError::Refused(Reason::IdentityRevoked))?;
    Ok(Agent {
        name: agent.name.clone(),
        labels: from_json("label", &labels)?,
        groups: from_json("group", &groups)?,
    })
}

pub(super) async fn register(
    connection: &mut SqliteConnection,
    registration: &Registration,
    now: Timestamp,
    may_provide: &MayProvide<'_>,
) -> Result<BTreeMap<ServiceName, Reason>, StoreError> {
    let generation = generation(registration.generation)?;
    let agent = live_agent(connection, &registration.agent).await?;
    let principal = Principal::Agent(registration.agent.clone());
    seen(connection, &principal, None, now).await?;
    let (rows, _) = rules::rules(connection, &registration.agent.tenant).await?;
    let rules: Vec<Rule> = rows.into_iter().map(|row| row.rule).collect();
    let mut answers = BTreeMap::new();
    let mut acts = Vec::new();
    let mut changed = false;
    for (service, offering) in &registration.services {
        let offer = Offer {
            registration,
            service,
            offering,
            generation,
        };
        let may = |service_labels: &BTreeMap<String, String>| {
            may_provide(&Sharing {
                rules: &rules,
                caller: &registration.agent,
                agent: &agent,
                service,
                service_labels,
            })
        };
        let taken = offer.take(connection, now, &may).await?;
        let (reason, is_news) = match taken {
            Taken::Renewed => (Reason::Done, false),
            Taken::Changed => (Reason::Done, true),
            Taken::Refused(reason) => (reason, false),
        };
        changed |= is_news;
        if is_news || reason != Reason::Done {
            let id = Principal::Agent(registration.agent.clone());
            acts.push(Act::done(now, id, "service.register", service).refused(reason));
        }
        answers.insert(service.clone(), reason);
    }
    if changed {
        raise(connection, &registration.agent.tenant).await?;
    }
    if !acts.is_empty() {
        audit::record(connection, Some(&registration.agent.tenant), &acts).await?;
    }
    Ok(answers)
}

fn generation(number: u64) -> Result<i64, StoreError> {
    i64::try_from(number).map_err(|_| StoreError::OutOfRange("generation"))
}

/// One service of a registration.
struct Offer<'a> {
    registration: &'a Registration,
    service: &'a ServiceName,
    offering: &'a Offering,
    generation: i64,
}

enum Taken {
    /// It stood already; its lease is longer.
    Renewed,
    /// It is new, or says something new: the view changes.
    Changed,
    /// It may not be.
    Refused(Reason),
}

impl Offer<'_> {
    async fn take(
        &self,
        connection: &mut SqliteConnection,
        now: Timestamp,
        may_provide: &(dyn Fn(&BTreeMap<String, String>) -> bool + Sync),
    ) -> Result<Taken, StoreError> {
        let AgentId { tenant, name } = &self.registration.agent;
        let known: Option<(i64, String, bool)> = sqlx::query_as(
            "SELECT generation, terms, sticky FROM registrations
             WHERE tenant = ? AND service = ? AND agent = ?",
        )
        .bind(tenant.as_str())
        .bind(self.service.as_str())
        .bind(name.as_str())
        .fetch_optional(&mut *connection)
        .await?;
        let service: Option<(String, String)> =
            sqlx::query_as("SELECT owner, labels FROM services WHERE tenant = ? AND name = ?")
                .bind(tenant.as_str())
                .bind(self.service.as_str())
                .fetch_optional(&mut *connection)
                .await?;
        let labels = to_json(&self.offering.labels)?;
        let terms = to_json(&self.offering.terms)?;
        let mut taken = match (&known, &service) {
            // A connection of an earlier start of the same agent: it may not shorten what the newer one holds.
            (Some((newer, ..)), _) if *newer > self.generation => {
                return Ok(Taken::Refused(Reason::Superseded));
            }
            // The permission to share a name is judged each time: a lease is no way around policy.
            (_, Some((owner, said)))
                if owner != name.as_str() && !may_provide(&from_json("label", said)?) =>
            {
                self.withdraw(connection, known.is_some()).await?;
                return Ok(Taken::Refused(Reason::NameTaken));
            }
            (Some((_, said, sticky)), _) if (said, *sticky) == (&terms, self.offering.sticky) => {
                Taken::Renewed
            }
            (Some(_) | None, _) => Taken::Changed,
        };
        if service.is_none() {
            self.own(connection, &labels, now).await?;
        }
        if let Some((owner, said)) = &service
            && owner == name.as_str()
            && *said != labels
        {
            sqlx::query("UPDATE services SET labels = ? WHERE tenant = ? AND name = ?")
                .bind(&labels)
                .bind(tenant.as_str())
                .bind(self.service.as_str())
                .execute(&mut *connection)
                .await?;
            taken = Taken::Changed;
        }
        self.keep(connection, &terms, now).await?;
        Ok(taken)
    }

    /// The first to register a free name owns it.
    async fn own(
        &self,
        connection: &mut SqliteConnection,
        labels: &str,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        sqlx::query("INSERT INTO services VALUES (?, ?, ?, ?, ?)")
            .bind(self.registration.agent.tenant.as_str())
            .bind(self.service.as_str())
            .bind(self.registration.agent.name.as_str())
            .bind(labels)
            .bind(to_ms(now))
            .execute(connection)
            .await?;
        Ok(())
    }

    async fn keep(
        &self,
        connection: &mut SqliteConnection,
        terms: &str,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO registrations VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
             ON CONFLICT DO UPDATE SET generation = ?4, lease_ends = ?5, terms = ?7, sticky = ?8",
        )
        .bind(self.registration.agent.tenant.as_str())
        .bind(self.service.as_str())
        .bind(self.registration.agent.name.as_str())
        .bind(self.generation)
        .bind(to_ms(self.registration.lease_ends))
        .bind(to_ms(now))
        .bind(terms)
        .bind(self.offering.sticky)
        .execute(connection)
        .await?;
        Ok(())
    }

    /// Takes back what was registered while a rule still allowed it.
    async fn withdraw(
        &self,
        connection: &mut SqliteConnection,
        is_registered: bool,
    ) -> Result<(), StoreError> {
        if !is_registered {
            return Ok(());
        }
        let AgentId { tenant, name } = &self.registration.agent;
        delete(connection, tenant, self.service, Some(name), None).await?;
        raise(connection, tenant).await?;
        Ok(())
    }
}

/// Deletes registrations; the last one takes the service along, otherwise the name passes to the oldest one left.
async fn delete(
    connection: &mut SqliteConnection,
    tenant: &TenantName,
    service: &ServiceName,
    agent: Option<&AgentName>,
    generation: Option<i64>,
) -> Result<u64, StoreError> {
    let gone = sqlx::query(
        "DELETE FROM registrations WHERE tenant = ?1 AND service = ?2
           AND (?3 IS NULL OR agent = ?3) AND (?4 IS NULL OR generation <= ?4)",
    )
    .bind(tenant.as_str())
    .bind(service.as_str())
    .bind(agent.map(AgentName::as_str))
    .bind(generation)
    .execute(&mut *connection)
    .await?;
    sqlx::query(
        "DELETE FROM services WHERE tenant = ?1 AND name = ?2
           AND NOT EXISTS (SELECT 1 FROM registrations WHERE tenant = ?1 AND service = ?2)",
    )
    .bind(tenant.as_str())
    .bind(service.as_str())
    .execute(&mut *connection)
    .await?;
    sqlx::query(
        "UPDATE services SET owner =
           (SELECT agent FROM registrations WHERE tenant = ?1 AND service = ?2 ORDER BY created, agent LIMIT 1)
         WHERE tenant = ?1 AND name = ?2
           AND owner NOT IN (SELECT agent FROM registrations WHERE tenant = ?1 AND service = ?2)",
    )
    .bind(tenant.as_str())
    .bind(service.as_str())
    .execute(connection)
    .await?;
    Ok(gone.rows_affected())
}

pub(super) async fn unregister(
    connection: &mut SqliteConnection,
    agent: &AgentId,
    number: u64,
    services: &BTreeSet<ServiceName>,
    now: Timestamp,
) -> Result<u64, StoreError> {
    let generation = generation(number)?;
    let mut gone = 0;
    let mut acts = Vec::new();
    for service in services {
        let deleted = delete(
            connection,
            &agent.tenant,
            service,
            Some(&agent.name),
            Some(generation),
        )
        .await?;
        if deleted > 0 {
            let id = Principal::Agent(agent.clone());
            acts.push(Act::done(now, id, "service.unregister", service));
        }
        gone += deleted;
    }
    if gone > 0 {
        raise(connection, &agent.tenant).await?;
        audit::record(connection, Some(&agent.tenant), &acts).await?;
    }
    Ok(gone)
}

/// Takes all registrations of an agent that has ended.
pub(super) async fn drop_registrations(
    connection: &mut SqliteConnection,
    agent: &AgentId,
) -> Result<(), StoreError> {
    let found: Vec<(String,)> =
        sqlx::query_as("SELECT service FROM registrations WHERE tenant = ? AND agent = ?")
            .bind(agent.tenant.as_str())
            .bind(agent.name.as_str())
            .fetch_all(&mut *connection)
            .await?;
    for (service,) in found {
        let service = name("service name", &service)?;
        delete(connection, &agent.tenant, &service, Some(&agent.name), None).await?;
    }
    Ok(())
}

pub(super) async fn services(
    connection: &mut SqliteConnection,
    tenant: &TenantName,
    now: Timestamp,
) -> Result<Vec<ServiceRow>, StoreError> {
    version(connection, tenant).await?;
    let found: Vec<(String, String, i64, String)> = sqlx::query_as(
        "SELECT service, agent, lease_ends, terms FROM registrations
         WHERE tenant = ? ORDER BY agent",
    )
    .bind(tenant.as_str())
    .fetch_all(&mut *connection)
    .await?;
    let mut providers: BTreeMap<String, Vec<ProviderRow>> = BTreeMap::new();
    for (service, agent, lease_ends, terms) in found {
        providers.entry(service).or_default().push(ProviderRow {
            agent: name("agent name", &agent)?,
            terms: from_json("terms", &terms)?,
            live: lease_ends > to_ms(now),
            lease_ends: from_ms(lease_ends)?,
        });
    }
    let found: Vec<(String, String, String, bool)> = sqlx::query_as(
        "SELECT s.name, s.owner, s.labels, r.sticky FROM services s
         JOIN registrations r ON (r.tenant, r.service, r.agent) = (s.tenant, s.name, s.owner)
         WHERE s.tenant = ? ORDER BY s.name",
    )
    .bind(tenant.as_str())
    .fetch_all(connection)
    .await?;
    let row = |(service, owner, labels, sticky): (String, String, String, bool)| {
        Ok(ServiceRow {
            providers: providers.remove(&service).unwrap_or_default(),
            name: name("service name", &service)?,
            owner: name("agent name", &owner)?,
            labels: from_json("label", &labels)?,
            sticky,
        })
    };
    found.into_iter().map(row).collect()
}

pub(super) async fn remove_service(
    connection: &mut SqliteConnection,
    tenant: &TenantName,
    service: &ServiceName,
    agent: Option<&AgentName>,
    act: &Act,
) -> Result<(u64, ViewVersion), StoreError> {
    version(connection, tenant).await?;
    let gone = delete(connection, tenant, service, agent, None).await?;
    if gone == 0 {
        return Err(StoreError::NoSuch {
            kind: "service",
            name: service.to_string(),
        });
    }
    let version = raise(connection, tenant).await?;
    let act = act.clone().with(json!({"registrations": gone}));
    audit::record(connection, Some(tenant), &[act]).await?;
    Ok((gone, version))
}

pub(super) async fn extend_leases(
    connection: &mut SqliteConnection,
    until: Timestamp,
) -> Result<(), StoreError> {
    sqlx::query("UPDATE registrations SET lease_ends = max(lease_ends, ?)")
        .bind(to_ms(until))
        .execute(connection)
        .await?;
    Ok(())
}

pub(super) async fn relays(connection: &mut SqliteConnection) -> Result<Vec<RelayRow>, StoreError> {
    let found: Vec<(String, String, i64, Option<i64>)> =
        sqlx::query_as("SELECT name, addresses, created, last_seen FROM relays ORDER BY name")
            .fetch_all(connection)
            .await?;
    let row = |(relay, addresses, created, seen): (String, String, i64, Option<i64>)| {
        Ok(RelayRow {
            name: name("relay name", &relay)?,
            addresses: from_json("address", &addresses)?,
            created: from_ms(created)?,
            last_seen: from_ms_opt(seen)?,
        })
    };
    found.into_iter().map(row).collect()
}

pub(super) async fn seen(
    connection: &mut SqliteConnection,
    principal: &Principal,
    addresses: Option<&[HostPort]>,
    now: Timestamp,
) -> Result<(), StoreError> {
    let query = match principal {
        Principal::Agent(agent) => {
            sqlx::query("UPDATE agents SET last_seen = ?1 WHERE tenant = ?2 AND name = ?3")
                .bind(to_ms(now))
                .bind(agent.tenant.as_str().to_owned())
                .bind(agent.name.as_str().to_owned())
        }
        Principal::Relay(relay) => sqlx::query(
            "UPDATE relays SET last_seen = ?1, addresses = coalesce(?2, addresses) WHERE name = ?3",
        )
        .bind(to_ms(now))
        .bind(addresses.map(|addresses| to_json(&addresses)).transpose()?)
        .bind(relay.as_str().to_owned()),
        Principal::User { .. } | Principal::Controller(_) => return Ok(()),
    };
    query.execute(connection).await?;
    Ok(())
}
