//! The controller at a glance.

use jiff::Timestamp;
use sealock_core::api::ApiError;
use sealock_core::api::status::{Show, ShowRequest, ShowResponse, TenantRow};

use super::{Actor, Admin, Handle, api_error};
use crate::store::StoreError;

impl Handle for Show {
    async fn handle(
        admin: &Admin,
        _actor: &Actor,
        _request: ShowRequest,
    ) -> Result<ShowResponse, ApiError> {
        let rows = tenants(admin).await;
        let (tenants, relays) = rows.map_err(|error| api_error(&error))?;
        let authority = &admin.shared.authority;
        Ok(ShowResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            trust_domain: authority.trust().trust_domain.clone(),
            name: admin.name.clone(),
            started: admin.started,
            listen: admin.listen.to_string(),
            ca_pin: data_encoding::HEXLOWER.encode(&authority.pin().0),
            ca_expires: authority.expires().unwrap_or(Timestamp::MAX),
            tenants,
            relays,
            watchers: admin.shared.views.watchers() as u64,
        })
    }
}

async fn tenants(admin: &Admin) -> Result<(Vec<TenantRow>, u64), StoreError> {
    let store = &admin.shared.store;
    let mut rows = Vec::new();
    for (name, version) in store.versions().await? {
        let counts = store.counts(&name).await?;
        rows.push(TenantRow {
            name,
            version,
            agents: counts.agents,
            services: counts.services,
            rules: counts.rules,
        });
    }
    Ok((rows, store.relays().await?.len() as u64))
}
