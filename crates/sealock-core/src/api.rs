//! The methods of the control interfaces, as types that compile without any server: path, permission, request, response.
//!
//! Every method is `POST /v1/<area>/<verb>` with a JSON body over a private unix socket; the answer is the response
//! or an [`ApiError`]. One file per area, and the same area name again in `sealock-control/admin` and `sealock/cmd`,
//! so that one search finds all three. The areas of the controller are `token`, `agent`, `service`, `policy`, `audit`,
//! `relay` and `status`; `local` is the running agent's own. Deliberately absent: handlers, and any way to reach them.

use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::name::TenantName;
use crate::reason::Reason;

pub mod agent;
pub mod audit;
pub mod local;
pub mod policy;
pub mod relay;
pub mod service;
pub mod status;
pub mod token;

/// What a caller must hold to use a method; each includes the ones before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Permission {
    /// See what there is.
    Read,
    /// Let nodes in and take services away.
    Operate,
    /// Change policy and end identities.
    Admin,
}

impl Permission {
    /// Every permission, the weakest first.
    pub const ALL: [Self; 3] = [Self::Read, Self::Operate, Self::Admin];

    /// Whether a caller who holds `self` may use a method that needs `needed`.
    #[must_use]
    pub fn includes(self, needed: Self) -> bool {
        self >= needed
    }

    /// The word for messages and audit rows.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Operate => "operate",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// One method of a control interface.
pub trait Method {
    /// The path that it is posted to.
    const PATH: &'static str;
    /// What the caller must hold.
    const NEEDS: Permission;
    /// What the caller sends.
    type Request: Serialize + DeserializeOwned + Send + 'static;
    /// What comes back: one value, or one JSON line after another where the method's doc says so.
    type Response: Serialize + DeserializeOwned + Send + 'static;
}

/// Why a method did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// The coded reason, where one fits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// One sentence for people.
    pub message: String,
    /// The next step, when we know it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl ApiError {
    /// An error without a coded reason.
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            reason: None,
            message: message.into(),
            hint: None,
        }
    }

    /// The same error with the next step.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl From<Reason> for ApiError {
    fn from(reason: Reason) -> Self {
        let hint = reason.hint();
        Self {
            reason: Some(reason),
            message: reason.text().to_owned(),
            hint: (!hint.is_empty()).then(|| hint.to_owned()),
        }
    }
}

/// The tenant of everybody who names none.
///
/// # Panics
/// Never: the name is canonical.
#[must_use]
pub fn default_tenant() -> TenantName {
    "default".parse().expect("`default` is a canonical name")
}

macro_rules! method {
    ($(#[$doc:meta])* $name:ident $path:literal $needs:ident $request:ty => $response:ty) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy)]
        pub struct $name;

        impl $crate::api::Method for $name {
            const PATH: &'static str = $path;
            const NEEDS: $crate::api::Permission = $crate::api::Permission::$needs;
            type Request = $request;
            type Response = $response;
        }
    };
}
use method;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stronger_permission_includes_the_weaker_ones_and_never_the_other_way() {
        for (at, held) in Permission::ALL.into_iter().enumerate() {
            for (needs, needed) in Permission::ALL.into_iter().enumerate() {
                assert_eq!(held.includes(needed), at >= needs, "{held} for {needed}");
            }
        }
    }

    #[test]
    fn an_error_from_a_reason_carries_its_code_and_next_step() {
        let error = ApiError::from(Reason::NameTaken);
        let json = serde_json::to_value(&error).expect("plain data");
        assert_eq!(json["reason"], "NAME_TAKEN");
        assert_eq!(json["hint"], Reason::NameTaken.hint());
    }

    #[test]
    fn a_request_may_leave_out_everything_that_has_a_default() {
        let request: token::CreateRequest = serde_json::from_str("{}").expect("all have defaults");
        assert_eq!(request.tenant, default_tenant());
        assert!(serde_json::from_str::<token::CreateRequest>(r#"{"tenent":"a"}"#).is_err());
    }
}
