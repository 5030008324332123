//! `sealock token`: lets machines in.

use sealock_core::api::token::{Create, CreateRequest, CreateResponse};
use sealock_core::identity::Role;

use super::join::is_loopback;
use super::{ask, tenant};
use crate::cli::{Common, TokenCreate, TokenRole, TokenVerb};
use crate::print;

pub(crate) async fn run(common: &Common, verb: TokenVerb) -> anyhow::Result<()> {
    match verb {
        TokenVerb::Create(flags) => create(common, flags).await,
    }
}

async fn create(common: &Common, flags: TokenCreate) -> anyhow::Result<()> {
    let role = match flags.role {
        TokenRole::Agent => Role::Agent,
        TokenRole::Relay => Role::Relay,
    };
    let labels = flags.labels.iter();
    let request = CreateRequest {
        tenant: tenant(common)?,
        role,
        name: flags.name,
        ttl_seconds: flags.ttl.map(|ttl| ttl.duration().as_secs()),
        labels: labels
            .map(|label| (label.key().to_owned(), label.value().to_owned()))
            .collect(),
        groups: flags.groups.into_iter().collect(),
        addresses: flags.addresses,
    };
    let created = ask::<Create>(common, &request).await?;
    if flags.form.json {
        return print::json(&created);
    }
    print::line(&command(role, &created));
    print::error(&format!(
        "The token lets one machine in, once, until {}.",
        print::time(created.expires)
    ));
    if created.addresses.iter().all(is_loopback) {
        print::error(&only_here(role, &created));
    }
    Ok(())
}

/// What to do when the token leads machines to themselves.
fn only_here(role: Role, created: &CreateResponse) -> String {
    let again = match role {
        Role::Relay => "--controller-listen 0.0.0.0:7444 --public HOST",
        Role::Agent | Role::User | Role::Controller => "--public HOST",
    };
    format!(
        "It leads to {}, which is this machine alone. For one elsewhere, restart `sealock up` with {again}.",
        print::list(&created.addresses)
    )
}

/// What to type on the machine that joins.
pub(crate) fn command(role: Role, created: &CreateResponse) -> String {
    match role {
        Role::Relay => format!("sealock relay --token {}", created.text),
        Role::Agent | Role::User | Role::Controller => format!("sealock join {}", created.text),
    }
}
