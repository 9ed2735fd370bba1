//! Step files: typed TOML, embedded at build time. `${name}` stands for a value of [`super::values`]; nothing
//! else is ever interpreted.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Step, digest, values::Values};
use crate::action::Action;
use crate::error::{Code, Error, Result};
use crate::text::position;

include!(concat!(env!("OUT_DIR"), "/steps.rs")); // const EMBEDDED: &[embedded::File], in file name order

/// How often a step belongs to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// Once; its result survives into an image made from this machine.
    Image,
    /// Once per instance id.
    Instance,
    /// At every boot.
    Boot,
}

impl Scope {
    /// As in step files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Instance => "instance",
            Self::Boot => "boot",
        }
    }
}

/// A step file as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct RawStep {
    /// For people; may hold `${…}`.
    pub title: String,
    /// How often.
    pub scope: Scope,
    /// Conditions, all of which must hold; see [`super::select`].
    #[serde(default)]
    pub when: BTreeMap<String, String>,
    /// The actions, in order.
    pub action: Vec<toml::Table>,
}

/// Parses a step file. Errors carry file, line and column.
pub fn parse(file: &str, text: &str) -> Result<RawStep> {
    toml::from_str(text).map_err(|e| {
        let (line, column) = e.span().map_or((1, 1), |s| position(text, s.start));
        Error::new(Code::StepInvalid, format!("{file}:{line}:{column}: {}", e.message()))
    })
}

/// Fills in the values and turns the actions into their types.
pub fn fill(file: &str, raw: RawStep, values: &Values) -> Result<Step> {
    let id = id_of(file).to_owned();
    let title = match values.fill(&toml::Value::String(raw.title)) {
        Ok(toml::Value::String(title)) => title,
        Ok(_) => return Err(invalid(file, "title: a list cannot stand in a title")),
        Err(name) => return Err(invalid(file, &format!("title: no value is called {name}"))),
    };
    let mut actions = Vec::new();
    for (index, table) in raw.action.into_iter().enumerate() {
        let at = format!("action {}", index + 1);
        let filled = values
            .fill(&toml::Value::Table(table))
            .map_err(|name| invalid(file, &format!("{at}: no value is called {name}")))?;
        actions
            .push(filled.try_into::<Action>().map_err(|e| invalid(file, &format!("{at}: {}", e.message())))?);
    }
    let digest = digest::step(&id, &actions);
    Ok(Step { id, title, scope: raw.scope, actions, digest })
}

/// `40-cuda-toolkit.toml` → `cuda-toolkit`
fn id_of(file: &str) -> &str {
    let name = file.strip_suffix(".toml").unwrap_or(file);
    name.split_once('-').map_or(name, |(_, id)| id)
}

fn invalid(file: &str, what: &str) -> Error {
    Error::new(Code::StepInvalid, format!("{file}: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_file_line_and_column() {
        let error = parse("40-x.toml", "title = \"x\"\nscope = \"imagine\"\n").unwrap_err();
        assert!(error.message().starts_with("40-x.toml:2:9: "), "{}", error.message());
    }

    #[test]
    fn the_id_is_the_file_name_without_its_number() {
        assert_eq!(id_of("40-cuda-toolkit.toml"), "cuda-toolkit");
    }
}
