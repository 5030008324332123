//! `sealock config`: is it right, and where does each value come from.

use serde::Serialize;

use crate::cli::{Common, ConfigVerb};
use crate::print;
use crate::settings;

#[derive(Debug, Serialize)]
struct Row<'a> {
    key: &'a str,
    value: Option<&'a str>,
    /// What holds when there is no value.
    meaning: Option<&'a str>,
    origin: String,
    doc: &'a str,
}

pub(crate) fn run(common: &Common, verb: &ConfigVerb) -> anyhow::Result<()> {
    let config = settings::read(common, [])?;
    let form = match verb {
        ConfigVerb::Check => {
            print::line("the configuration is right");
            return Ok(());
        }
        ConfigVerb::Explain(form) => form,
    };
    let rows: Vec<Row<'_>> = config
        .explain()
        .iter()
        .map(|option| Row {
            key: option.key,
            value: option.value.as_deref().ok(),
            meaning: option.value.as_ref().err().copied(),
            origin: option.origin.to_string(),
            doc: option.doc,
        })
        .collect();
    if form.json {
        return print::json(&rows);
    }
    for row in rows {
        let value = match (row.value, row.meaning) {
            (Some(value), _) => value.to_owned(),
            (None, meaning) => format!("not set: {}", meaning.unwrap_or_default()),
        };
        print::line(&format!("{} = {value}  [{}]", row.key, row.origin));
        print::line(&format!("    {}", row.doc));
    }
    Ok(())
}
