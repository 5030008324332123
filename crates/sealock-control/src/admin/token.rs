//! Join tokens.

use std::fmt;
use std::str::FromStr;

use jiff::SignedDuration;
use sealock_core::address::HostPort;
use sealock_core::api::ApiError;
use sealock_core::api::token::{Create, CreateRequest, CreateResponse};
use sealock_core::identity::Role;
use sealock_core::secret::Secret;
use sealock_core::token::JoinToken;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::{Actor, Admin, Handle, api_error};
use crate::store::{Admits, TokenRow};

const SHORTEST: i64 = 10; // seconds; less is a mistake in the unit
const LONGEST: i64 = 7 * 24 * 3_600;
const ADDRESSES: usize = 8; // each makes the text that people copy longer

impl Handle for Create {
    async fn handle(
        admin: &Admin,
        actor: &Actor,
        request: CreateRequest,
    ) -> Result<CreateResponse, ApiError> {
        let admits = admits(&request)?;
        let ttl = ttl(admin, request.ttl_seconds)?;
        let addresses = addresses(admin, &request).await?;
        let now = (admin.shared.now)();
        let expires = now.saturating_add(ttl);
        let expires = expires.map_err(|_| ApiError::new("the time to live is too long"))?;
        let token = JoinToken {
            role: request.role,
            pin: admin.shared.authority.pin(),
            secret: Secret::new(rand::random()),
            addresses,
        };
        let row = TokenRow {
            hash: Sha256::digest(token.secret.expose()).into(),
            admits,
            created: now,
            expires,
        };
        let subject = request.name.as_deref().unwrap_or("any name");
        let act = admin.act(actor, "token.create", subject).with(json!({
            "role": request.role.as_str(), "expires": expires,
        }));
        let kept = admin.shared.store.add_token(&row, &act).await;
        kept.map_err(|error| api_error(&error))?;
        Ok(CreateResponse {
            text: token.to_text(),
            expires,
            addresses: token.addresses,
        })
    }
}

fn admits(request: &CreateRequest) -> Result<Admits, ApiError> {
    match request.role {
        Role::Agent => Ok(Admits::Agent {
            tenant: request.tenant.clone(),
            name: parsed(request.name.as_deref())?,
            labels: request.labels.clone(),
            groups: request.groups.clone(),
        }),
        Role::Relay => Ok(Admits::Relay {
            name: parsed(request.name.as_deref())?,
        }),
        Role::User | Role::Controller => {
            let message = format!("a {} does not join with a token", request.role);
            Err(ApiError::new(message).with_hint("use the role agent or relay"))
        }
    }
}

fn parsed<T>(name: Option<&str>) -> Result<Option<T>, ApiError>
where
    T: FromStr,
    T::Err: fmt::Display,
{
    let name = name.map(str::parse).transpose();
    name.map_err(|error: T::Err| ApiError::new(error.to_string()))
}

fn ttl(admin: &Admin, seconds: Option<u64>) -> Result<SignedDuration, ApiError> {
    let Some(seconds) = seconds else {
        return Ok(admin.token_ttl);
    };
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
    if (SHORTEST..=LONGEST).contains(&seconds) {
        Ok(SignedDuration::from_secs(seconds))
    } else {
        Err(ApiError::new("a token lives for 10 seconds to 7 days"))
    }
}

/// Where the node goes first: agents to relays, relays to the controller.
async fn addresses(admin: &Admin, request: &CreateRequest) -> Result<Vec<HostPort>, ApiError> {
    let mut addresses = request.addresses.clone();
    if addresses.is_empty() && request.role == Role::Relay {
        addresses.clone_from(&admin.advertise);
    }
    if addresses.is_empty() && request.role == Role::Agent {
        let relays = admin.shared.store.relays().await;
        let relays = relays.map_err(|error| api_error(&error))?;
        addresses = relays.into_iter().flat_map(|it| it.addresses).collect();
    }
    addresses.truncate(ADDRESSES);
    match (addresses.is_empty(), request.role) {
        (false, _) => Ok(addresses),
        (true, Role::Relay) => Err(ApiError::new("the controller's own address is not known")
            .with_hint("set `controller.advertise`, or give `--address HOST:PORT`")),
        (true, Role::Agent | Role::User | Role::Controller) => {
            Err(ApiError::new("no relay has joined yet, so an agent would have nowhere to go")
                .with_hint("start a relay first: `sealock token create --role relay`; or give `--address HOST:PORT`"))
        }
    }
}
