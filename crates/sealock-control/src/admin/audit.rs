//! The audit record: read and recomputed, never changed.

use sealock_core::api::ApiError;
use sealock_core::api::audit::{
    List, ListRequest, ListResponse, Verify, VerifyRequest, VerifyResponse,
};

use super::{Actor, Admin, Handle, api_error};
use crate::store::AuditQuery;

const LIMIT: u32 = 100; // a screen or two
const MOST: u32 = 1_000; // a few hundred kilobytes of JSON

impl Handle for List {
    async fn handle(
        admin: &Admin,
        _actor: &Actor,
        request: ListRequest,
    ) -> Result<ListResponse, ApiError> {
        let query = AuditQuery {
            tenant: (!request.deployment).then_some(request.tenant),
            limit: request.limit.unwrap_or(LIMIT).min(MOST),
            before: request.before,
            since: request.since,
            actor: request.actor,
            action: request.action,
        };
        let found = admin.shared.store.audit(&query).await;
        let (rows, more) = found.map_err(|error| api_error(&error))?;
        Ok(ListResponse { rows, more })
    }
}

impl Handle for Verify {
    async fn handle(
        admin: &Admin,
        _actor: &Actor,
        request: VerifyRequest,
    ) -> Result<VerifyResponse, ApiError> {
        let tenant = (!request.deployment).then_some(&request.tenant);
        let verified = admin.shared.store.verify_audit(tenant).await;
        verified.map_err(|error| api_error(&error))
    }
}
