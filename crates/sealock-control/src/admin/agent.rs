//! Agents: who there is, and ending an identity.

use sealock_core::api::ApiError;
use sealock_core::api::agent::{
    List, ListRequest, ListResponse, Revoke, RevokeRequest, RevokeResponse,
};
use sealock_core::identity::AgentId;

use super::{Actor, Admin, Handle, api_error};

impl Handle for List {
    async fn handle(
        admin: &Admin,
        _actor: &Actor,
        request: ListRequest,
    ) -> Result<ListResponse, ApiError> {
        let agents = admin.shared.store.agents(&request.tenant).await;
        let agents = agents.map_err(|error| api_error(&error))?;
        Ok(ListResponse { agents })
    }
}

impl Handle for Revoke {
    async fn handle(
        admin: &Admin,
        actor: &Actor,
        request: RevokeRequest,
    ) -> Result<RevokeResponse, ApiError> {
        let agent = AgentId {
            tenant: request.tenant,
            name: request.name,
        };
        let act = admin.act(actor, "agent.revoke", &agent);
        let revoked = admin.shared.store.revoke_agent(&agent, &act).await;
        let (certificates, version) = revoked
            .map_err(|error| api_error(&error).with_hint("`sealock agent list` shows the names"))?;
        admin.changed();
        // Watches of the agent end at once, before the next view is built.
        admin.shared.views.announce();
        Ok(RevokeResponse {
            certificates,
            version,
        })
    }
}
