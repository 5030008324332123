//! Relays of the deployment.

use sealock_core::api::ApiError;
use sealock_core::api::relay::{List, ListRequest, ListResponse, RelayRow};

use super::{Actor, Admin, Handle, api_error};

impl Handle for List {
    async fn handle(
        admin: &Admin,
        _actor: &Actor,
        _request: ListRequest,
    ) -> Result<ListResponse, ApiError> {
        let relays = admin.shared.store.relays().await;
        let relays = relays.map_err(|error| api_error(&error))?;
        let row = |relay: crate::store::RelayRow| RelayRow {
            connected: admin.shared.is_watching(&relay.name),
            name: relay.name,
            addresses: relay.addresses,
            created: relay.created,
            last_seen: relay.last_seen,
        };
        let relays = relays.into_iter().map(row).collect();
        Ok(ListResponse { relays })
    }
}
