//! The administrators' interface: every method of the controller, each with what its caller must hold.
//!
//! One file per area, named as the area's types in `sealock-core/api`. A method is in [`METHODS`] or it does not exist:
//! the table makes the routes and the authorization test. Whoever reaches the private socket is the operating system's
//! owner of this controller and holds everything; what each of them did is in the audit record under their user id.

mod agent;
mod audit;
mod policy;
mod relay;
mod service;
mod status;
mod token;

use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use sealock_core::address::HostPort;
use sealock_core::api::{self, ApiError, Method, Permission};
use sealock_core::name::NodeName;
use sealock_core::reason::Reason;
use sealock_net::unix::{Caller, Routes};

use crate::node::Shared;
use crate::store::{Act, StoreError};

/// What the methods work on.
#[derive(Debug)]
pub struct Admin {
    /// The store, the authority and the views.
    pub shared: Arc<Shared>,
    /// The controller's name.
    pub name: NodeName,
    /// Where nodes reach it on this machine.
    pub listen: SocketAddr,
    /// Where relays elsewhere reach it.
    pub advertise: Vec<HostPort>,
    /// How long a join token waits when its maker does not say.
    pub token_ttl: SignedDuration,
    /// When the controller started.
    pub started: Timestamp,
}

/// Who calls, and what it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    /// The name in the audit record.
    pub name: String,
    /// What it holds.
    pub holds: Permission,
}

impl Actor {
    /// The caller of the private socket.
    #[must_use]
    pub fn of(caller: Caller) -> Self {
        Self {
            name: format!("admin:{}", caller.uid),
            holds: Permission::Admin,
        }
    }

    /// This process itself.
    #[must_use]
    pub fn own() -> Self {
        Self {
            name: "controller".to_owned(),
            holds: Permission::Admin,
        }
    }
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.name)
    }
}

/// A method and what it does here.
pub(crate) trait Handle: Method {
    /// Does it. The caller holds what the method needs.
    fn handle(
        admin: &Admin,
        actor: &Actor,
        request: Self::Request,
    ) -> impl Future<Output = Result<Self::Response, ApiError>> + Send;
}

/// Checks the caller and does the method.
pub(crate) async fn invoke<M: Handle>(
    admin: &Admin,
    actor: &Actor,
    request: M::Request,
) -> Result<M::Response, ApiError> {
    if !actor.holds.includes(M::NEEDS) {
        let act = admin
            .act(actor, "admin.refused", M::PATH)
            .refused(Reason::PolicyDenied);
        let recorded = admin.shared.store.record(None, &[act]).await;
        recorded.map_err(|error| api_error(&error))?;
        return Err(ApiError {
            reason: Some(Reason::PolicyDenied),
            message: format!("this needs the permission `{}`", M::NEEDS),
            hint: None,
        });
    }
    M::handle(admin, actor, request).await
}

macro_rules! methods {
    ($($method:ty),* $(,)?) => {
        /// Every method: its path, and what its caller must hold.
        pub const METHODS: &[(&str, Permission)] = &[$((<$method>::PATH, <$method>::NEEDS)),*];

        fn routes(admin: &Arc<Admin>) -> Routes {
            Routes::new()$(.method::<$method, _, _>({
                let admin = Arc::clone(admin);
                move |caller, request| {
                    let admin = Arc::clone(&admin);
                    async move { invoke::<$method>(&admin, &Actor::of(caller), request).await }
                }
            }))*
        }

        #[cfg(test)]
        pub(crate) async fn invoke_json(
            path: &str,
            admin: &Admin,
            actor: &Actor,
            request: &serde_json::Value,
        ) -> Result<(), ApiError> {
            $(if path == <$method>::PATH {
                let request = serde_json::from_value(request.clone()).expect(path);
                return invoke::<$method>(admin, actor, request).await.map(drop);
            })*
            panic!("{path} is not in the table");
        }
    };
}

methods! {
    api::agent::List,
    api::agent::Revoke,
    api::audit::List,
    api::audit::Verify,
    api::policy::Allow,
    api::policy::Apply,
    api::policy::Deny,
    api::policy::List,
    api::policy::Remove,
    api::policy::Why,
    api::relay::List,
    api::service::List,
    api::service::Remove,
    api::status::Show,
    api::token::Create,
}

impl Admin {
    /// The routes for [`sealock_net::unix::serve_json`].
    #[must_use]
    pub fn routes(self: &Arc<Self>) -> Routes {
        routes(self)
    }

    fn act(&self, actor: &Actor, action: &'static str, subject: impl fmt::Display) -> Act {
        Act::done((self.shared.now)(), actor, action, subject)
    }

    /// Tells the nodes; they hear of it within seconds even when this is not reached.
    fn changed(&self) {
        self.shared.views.poke();
    }
}

/// What a caller learns of a failure of the store.
fn api_error(error: &StoreError) -> ApiError {
    match error {
        StoreError::Refused(reason) => ApiError::from(*reason),
        StoreError::NoSuch { .. } | StoreError::Exists { .. } | StoreError::OutOfRange(_) => {
            ApiError::new(error.to_string())
        }
        StoreError::Full => unavailable(error).with_hint("free some space; nothing was changed"),
        StoreError::Busy => unavailable(error).with_hint("try again; is a backup running?"),
        StoreError::Unsafe
        | StoreError::Issue(_)
        | StoreError::Unreadable(_)
        | StoreError::Database(_) => {
            tracing::error!(err = error as &dyn std::error::Error, "the store failed");
            unavailable(error).with_hint("the controller's log says more")
        }
    }
}

fn unavailable(error: &StoreError) -> ApiError {
    ApiError {
        reason: Some(Reason::Internal),
        message: error.to_string(),
        hint: None,
    }
}

#[cfg(test)]
mod tests;
