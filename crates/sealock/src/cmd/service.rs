//! `sealock service`: who provides what.

use sealock_core::api::default_tenant;
use sealock_core::api::service::{List, ListRequest, Remove, RemoveRequest};

use super::ask;
use crate::cli::{Common, Json, ServiceVerb};
use crate::print;

pub(crate) async fn run(common: &Common, verb: ServiceVerb) -> anyhow::Result<()> {
    match verb {
        ServiceVerb::List(form) => list(common, form).await,
        ServiceVerb::Remove { name, agent } => {
            let request = RemoveRequest {
                tenant: default_tenant(),
                name: name.clone(),
                agent,
            };
            let removed = ask::<Remove>(common, &request).await?;
            print::line(&format!(
                "`{name}`: {} registration(s) removed",
                removed.registrations
            ));
            Ok(())
        }
    }
}

async fn list(common: &Common, form: Json) -> anyhow::Result<()> {
    let request = ListRequest {
        tenant: default_tenant(),
    };
    let listed = ask::<List>(common, &request).await?;
    if form.json {
        return print::json(&listed);
    }
    let rows = listed.services.into_iter().map(|service| {
        let labels = service
            .labels
            .iter()
            .map(|(key, value)| format!("{key}={value}"));
        let providers = service.providers.iter().map(|provider| {
            let state = if provider.live { "" } else { " (away)" };
            format!("{}{state}", provider.agent)
        });
        vec![
            service.name.to_string(),
            print::list(providers),
            service.owner.to_string(),
            print::list(labels),
        ]
    });
    print::table(
        &["SERVICE", "PROVIDERS", "OWNER", "LABELS"],
        rows.collect(),
        "no service is exposed; `sealock expose PORT --as NAME` on a machine that joined offers one",
    );
    Ok(())
}
