//! `sealock service`: who provides what.

use sealock_core::api::service::{List, ListRequest, ProviderRow, Remove, RemoveRequest};
use sealock_core::choice::Weight;

use super::{ask, tenant};
use crate::cli::{Common, Json, ServiceVerb};
use crate::print;

pub(crate) async fn run(common: &Common, verb: ServiceVerb) -> anyhow::Result<()> {
    match verb {
        ServiceVerb::List(form) => list(common, form).await,
        ServiceVerb::Remove { name, agent } => {
            let request = RemoveRequest {
                tenant: tenant(common)?,
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
        tenant: tenant(common)?,
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
        let providers = service
            .providers
            .iter()
            .map(|provider| format!("{}{}", provider.agent, remarks(provider)));
        let name = &service.name;
        let name = if service.sticky {
            format!("{name} (sticky)")
        } else {
            name.to_string()
        };
        vec![
            name,
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

/// What is special about a provider: how it wants to be chosen, and whether it is away.
fn remarks(provider: &ProviderRow) -> String {
    let terms = &provider.terms;
    let weight = (terms.weight != Weight::default()).then(|| format!("weight {}", terms.weight));
    let standby = terms.standby.then(|| "standby".to_owned());
    let region = terms.region.as_ref().map(|region| format!("in {region}"));
    let away = (!provider.live).then(|| "away".to_owned());
    let remarks: Vec<String> = [weight, standby, region, away]
        .into_iter()
        .flatten()
        .collect();
    if remarks.is_empty() {
        String::new()
    } else {
        format!(" ({})", remarks.join(", "))
    }
}
