//! Services: who provides what, and taking a name back.

use sealock_core::api::ApiError;
use sealock_core::api::service::{
    List, ListRequest, ListResponse, Remove, RemoveRequest, RemoveResponse,
};

use super::{Actor, Admin, Handle, api_error};

impl Handle for List {
    async fn handle(
        admin: &Admin,
        _actor: &Actor,
        request: ListRequest,
    ) -> Result<ListResponse, ApiError> {
        let now = (admin.shared.now)();
        let services = admin.shared.store.services(&request.tenant, now).await;
        let services = services.map_err(|error| api_error(&error))?;
        Ok(ListResponse { services })
    }
}

impl Handle for Remove {
    async fn handle(
        admin: &Admin,
        actor: &Actor,
        request: RemoveRequest,
    ) -> Result<RemoveResponse, ApiError> {
        let act = admin.act(actor, "service.remove", &request.name);
        let RemoveRequest {
            tenant,
            name,
            agent,
        } = &request;
        let store = &admin.shared.store;
        let removed = store
            .remove_service(tenant, name, agent.as_ref(), &act)
            .await;
        let (registrations, version) = removed.map_err(|error| {
            api_error(&error).with_hint("`sealock service list` shows the names")
        })?;
        admin.changed();
        Ok(RemoveResponse {
            registrations,
            version,
        })
    }
}
