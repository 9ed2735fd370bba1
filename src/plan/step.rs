//! Step files: typed TOML. Those of `steps/` are embedded at build time, the administrator's are read by
//! [`super::custom`]. `${name}` stands for a value of [`super::values`]; nothing else is ever interpreted.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};
use toml::Spanned;
use toml::de::{DeTable, DeValue, Deserializer, ValueDeserializer};

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

/// The field whose words may hold `${output}`.
const COMMAND: &str = "command";

/// A step file as written, with the place of everything that may turn out to be wrong.
#[derive(Debug)]
pub struct RawStep<'t> {
    file: &'t str,
    text: &'t str,
    head: Head,
    actions: Vec<Spanned<DeValue<'t>>>,
}

/// What a step file says besides its actions.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Head {
    /// For people; may hold `${…}`.
    title: Spanned<String>,
    /// How often.
    scope: Scope,
    /// Conditions, all of which must hold; see [`super::select`].
    #[serde(default)]
    when: BTreeMap<Spanned<String>, Spanned<String>>,
}

/// Parses a step file. Errors carry file, line and column.
pub fn parse<'t>(file: &'t str, text: &'t str) -> Result<RawStep<'t>> {
    let fail = |e: &toml::de::Error| invalid(file, text, e.span().unwrap_or_default(), e.message());
    let mut table = DeTable::parse(text).map_err(|e| fail(&e))?;
    let written = table.get_mut().remove("action").map(|value| (value.span(), value.into_inner()));
    let head = Head::deserialize(Deserializer::from(table)).map_err(|e| fail(&e))?;
    let actions: Vec<_> = match written {
        Some((_, DeValue::Array(items))) if !items.is_empty() => items.into_iter().collect(),
        Some((span, _)) => return Err(invalid(file, text, span, "an action is a table: write [[action]]")),
        None => return Err(invalid(file, text, 0..0, "the step has no [[action]], so it would do nothing")),
    };
    Ok(RawStep { file, text, head, actions })
}

impl RawStep<'_> {
    /// How often it belongs to run.
    pub fn scope(&self) -> Scope {
        self.head.scope
    }

    /// Its conditions, each a name and a value.
    pub fn when(&self) -> impl Iterator<Item = (&Spanned<String>, &Spanned<String>)> {
        self.head.when.iter()
    }

    /// An error about what stands at `span`.
    pub fn invalid(&self, span: Range<usize>, what: &str) -> Error {
        invalid(self.file, self.text, span, what)
    }

    /// Fills in the values, of which `names` may be used, and turns the actions into their types.
    pub fn fill(self, id: &str, names: &[&str], values: &Values) -> Result<Step> {
        let Self { file, text, head, actions: written } = self;
        let everywhere: Vec<_> = names.iter().copied().filter(|name| *name != "output").collect();
        let fill = |value, names: &[&str]| {
            values.fill(value, names).map_err(|e| {
                let within =
                    text.get(e.span.clone()).and_then(|s| s.find(&e.placeholder)).unwrap_or_default();
                invalid(file, text, e.span.start + within..e.span.end, &e.why)
            })
        };
        let at = head.title.span();
        let title = DeValue::String(head.title.into_inner().into());
        let title = fill(Spanned::new(at.clone(), title), &everywhere)?.into_inner();
        let title =
            title.as_str().ok_or_else(|| invalid(file, text, at, "a list cannot stand in a title"))?;
        let mut actions = Vec::new();
        for value in written {
            let whole = value.span();
            let only = value.get_ref().as_table().and_then(|table| table.iter().next());
            let is_command = only.is_some_and(|(kind, _)| kind.get_ref() == COMMAND);
            let inside = only.map_or(whole.clone(), |(_, fields)| fields.span());
            let filled = fill(value, if is_command { names } else { &everywhere })?;
            let action = Action::deserialize(ValueDeserializer::from(filled)).map_err(|e| {
                let place = e.span().filter(|span| *span != whole).unwrap_or(inside);
                invalid(file, text, place, e.message())
            })?;
            actions.push(action);
        }
        let digest = digest::step(id, &actions);
        let (id, title) = (id.to_owned(), title.to_owned());
        Ok(Step { id, title, scope: head.scope, origin: None, actions, digest })
    }
}

/// `40-cuda-toolkit.toml` → `cuda-toolkit`
pub(super) fn id_of(file: &str) -> &str {
    let name = file.strip_suffix(".toml").unwrap_or(file);
    name.split_once('-').map_or(name, |(_, id)| id)
}

fn invalid(file: &str, text: &str, span: Range<usize>, what: &str) -> Error {
    let (line, column) = position(text, span.start);
    let what = what.lines().collect::<Vec<_>>().join(", ");
    Error::new(Code::StepInvalid, format!("{file}:{line}:{column}: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The error of a step file with this text.
    fn error(text: &str) -> String {
        let parsed = parse("40-x.toml", text);
        let filled = parsed.and_then(|raw| raw.fill("x", &["cuda.home", "output"], &Values::default()));
        filled.unwrap_err().message().to_owned()
    }

    #[test]
    fn every_error_names_file_line_and_column() {
        let head = "title = \"x\"\nscope = \"image\"\n";
        for (text, place, what) in [
            ("title = \"x\"\nscope = \"imagine\"\n".to_owned(), "2:9", "imagine"),
            ("title = \"x\"\nscop = \"image\"\n".to_owned(), "2:1", "unknown field `scop`"),
            ("title = x\n".to_owned(), "1:9", ""),
            (head.to_owned(), "1:1", "no [[action]]"),
            (format!("{head}action = 3\n"), "3:10", "write [[action]]"),
            (format!("{head}[[action]]\nfiel = {{ path = \"/a\" }}\n"), "4:1", "unknown variant `fiel`"),
            (
                format!("{head}[[action]]\nfile = {{ path = \"/a\", mod = 1 }}\n"),
                "4:23",
                "unknown field `mod`",
            ),
            (format!("{head}[[action]]\nfile = {{ path = 7, content = \"\" }}\n"), "4:17", "integer"),
            (
                format!("{head}[[action]]\nlink = {{ path = \"/a\", target = \"/b/${{cuda.hom}}\" }}\n"),
                "4:36",
                "cuda.hom;",
            ),
            (
                format!("{head}[[action]]\nlink = {{ path = \"/a\", target = \"${{output}}\" }}\n"),
                "4:33",
                "output",
            ),
            (
                format!("{head}[[action]]\nlink = {{ path = \"/a\", target = \"${{cuda.home}}\" }}\n"),
                "4:33",
                "no value on",
            ),
        ] {
            let error = error(&text);
            assert!(
                error.starts_with(&format!("40-x.toml:{place}: ")) && error.contains(what),
                "{text}: {error}"
            );
        }
    }

    #[test]
    fn every_embedded_step_parses() {
        for (file, compressed) in EMBEDDED {
            parse(file, &crate::embedded::inflate_text(compressed)).unwrap();
        }
    }

    #[test]
    fn the_id_is_the_file_name_without_its_number() {
        assert_eq!(id_of("40-cuda-toolkit.toml"), "cuda-toolkit");
    }
}
