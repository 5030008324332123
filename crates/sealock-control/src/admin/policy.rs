//! Rules: seen, changed one by one, replaced from a file, and explained.

use sealock_core::api::ApiError;
use sealock_core::api::policy::{
    AddRequest, Allow, Apply, ApplyRequest, ApplyResponse, ChangeResponse, Deny, List, ListRequest,
    ListResponse, Origin, Remove, RemoveRequest, Why, WhyRequest, WhyResponse,
};
use sealock_core::destination::{Destination, DestinationError};
use sealock_core::identity::AgentId;
use sealock_core::policy::{Effect, Rule, RuleId};
use sealock_core::view::{Head, View, Wanted};
use sha2::{Digest, Sha256};

use super::{Actor, Admin, Handle, api_error};
use crate::store::Apply as Mode;

impl Handle for List {
    async fn handle(
        admin: &Admin,
        _actor: &Actor,
        request: ListRequest,
    ) -> Result<ListResponse, ApiError> {
        let rules = admin.shared.store.rules(&request.tenant).await;
        let (rules, version) = rules.map_err(|error| api_error(&error))?;
        Ok(ListResponse { rules, version })
    }
}

impl Handle for Allow {
    async fn handle(
        admin: &Admin,
        actor: &Actor,
        request: AddRequest,
    ) -> Result<ChangeResponse, ApiError> {
        add(admin, actor, Effect::Allow, request).await
    }
}

impl Handle for Deny {
    async fn handle(
        admin: &Admin,
        actor: &Actor,
        request: AddRequest,
    ) -> Result<ChangeResponse, ApiError> {
        add(admin, actor, Effect::Deny, request).await
    }
}

async fn add(
    admin: &Admin,
    actor: &Actor,
    effect: Effect,
    request: AddRequest,
) -> Result<ChangeResponse, ApiError> {
    let action = match effect {
        Effect::Allow => "policy.allow",
        Effect::Deny => "policy.deny",
    };
    let id = request.id.clone();
    let rule = Rule {
        id: id.map_or_else(|| made_id(effect, &request), Ok)?,
        effect,
        callers: request.callers,
        services: request.services,
        destinations: request.destinations,
        actions: request.actions,
        conditions: request.conditions,
    };
    rule.check()
        .map_err(|error| ApiError::new(error.to_string()))?;
    let act = admin.act(actor, action, &rule.id);
    let store = &admin.shared.store;
    let added = store
        .add_rule(&request.tenant, &rule, Origin::Command, &act)
        .await;
    let version = added.map_err(|error| api_error(&error))?;
    admin.changed();
    Ok(ChangeResponse { rule, version })
}

/// An id of the rule's content, so that adding the same rule twice is noticed.
fn made_id(effect: Effect, request: &AddRequest) -> Result<RuleId, ApiError> {
    let content = (
        &request.callers,
        &request.services,
        &request.destinations,
        &request.actions,
        &request.conditions,
    );
    let content =
        serde_json::to_vec(&content).map_err(|_| ApiError::new("the rule is unreadable"))?;
    let digest = data_encoding::HEXLOWER.encode(&Sha256::digest(content)[..4]);
    let id = format!("{effect}-{digest}").parse();
    id.map_err(|_| ApiError::new("no id could be made for the rule"))
}

impl Handle for Remove {
    async fn handle(
        admin: &Admin,
        actor: &Actor,
        request: RemoveRequest,
    ) -> Result<ChangeResponse, ApiError> {
        let act = admin.act(actor, "policy.remove", &request.id);
        let store = &admin.shared.store;
        let removed = store.remove_rule(&request.tenant, &request.id, &act).await;
        let (rule, version) = removed
            .map_err(|error| api_error(&error).with_hint("`sealock policy list` shows the ids"))?;
        admin.changed();
        Ok(ChangeResponse { rule, version })
    }
}

impl Handle for Apply {
    async fn handle(
        admin: &Admin,
        actor: &Actor,
        request: ApplyRequest,
    ) -> Result<ApplyResponse, ApiError> {
        for rule in &request.rules {
            rule.check()
                .map_err(|error| ApiError::new(error.to_string()))?;
        }
        let mode = if request.dry_run {
            Mode::DryRun
        } else {
            Mode::Now
        };
        let act = admin.act(actor, "policy.apply", &request.tenant);
        let store = &admin.shared.store;
        let applied = store
            .apply_rules(&request.tenant, &request.rules, mode, &act)
            .await;
        let difference = applied.map_err(|error| {
            api_error(&error)
                .with_hint("rules of commands and files need different ids; nothing was changed")
        })?;
        admin.changed();
        Ok(difference)
    }
}

fn destination(text: &str) -> Result<Destination, ApiError> {
    text.parse()
        .map_err(|error: DestinationError| ApiError::new(error.to_string()))
}

impl Handle for Why {
    async fn handle(
        admin: &Admin,
        _actor: &Actor,
        request: WhyRequest,
    ) -> Result<WhyResponse, ApiError> {
        let now = (admin.shared.now)();
        let found = admin.shared.store.view(&request.tenant).await;
        let (version, entries) = found.map_err(|error| api_error(&error))?;
        let head = Head {
            tenant: request.tenant.clone(),
            version,
            issued_at: now,
            digest: entries.digest(),
        };
        let view = View::read(head, &entries).map_err(|error| ApiError::new(error.to_string()))?;
        let caller = AgentId {
            tenant: request.tenant,
            name: request.caller,
        };
        let destination = match &request.destination {
            Some(text) => Some(destination(text)?),
            None => None,
        };
        let wanted = match (&request.service, &destination) {
            (Some(service), None) => Wanted::Service(service),
            (None, Some(destination)) => Wanted::Destination(destination),
            _ => {
                let error = ApiError::new("a question is about a service or about a destination");
                return Err(error.with_hint("name exactly one of them"));
            }
        };
        let explained = view.why(&caller, request.action, wanted, now);
        let decision = explained.decision;
        let rule = decision.rule().and_then(|id| view.rules().get(id));
        Ok(WhyResponse {
            allowed: decision.is_allowed(),
            reason: decision.reason(),
            rule: rule.cloned(),
            words: decision.to_string(),
            rules: explained.rules,
            version,
        })
    }
}
