//! The administrator's own steps: `/etc/gpu-bootstrap/steps.d/*.toml`, in the language of the built-in ones
//! (docs/custom-steps.md). They say what root does, so nobody but root may have written them.

use std::path::Path;

use super::step;
use crate::error::{Code, Error, Result};
use crate::host::files::Files;
use crate::host::paths;

/// Longest step file that is read.
const MAX_BYTES: u64 = 1 << 20;

/// A step file of the administrator's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Its path.
    pub path: String,
    /// The step's id: its name without number and suffix.
    pub id: String,
    /// TOML.
    pub text: String,
}

/// Reads the step files, in the order of their names. One that somebody else could have written is refused
/// (`step-untrusted`), and so is one that has no name of its own (`step-invalid`).
pub fn read(files: &Files) -> Result<Vec<File>> {
    // A hidden file is an editor's or our own temporary file.
    let is_step =
        |name: &str| !name.starts_with('.') && Path::new(name).extension().is_some_and(|e| e == "toml");
    let mut found: Vec<File> = Vec::new();
    for (name, bytes) in files.read_trusted_dir(paths::CUSTOM_STEPS_DIR, is_step, MAX_BYTES)? {
        let path = format!("{}/{name}", paths::CUSTOM_STEPS_DIR);
        let id = step::id_of(&name).to_owned();
        if let Some(why) = misnamed(&name, &found) {
            return Err(Error::new(Code::StepInvalid, format!("{path}: {why}")).with_hint(
                "rename the file: a number, a hyphen, and a name of its own, as in 50-docker.toml",
            ));
        }
        let text = String::from_utf8(bytes).map_err(|e| {
            Error::new(Code::StepInvalid, format!("{path}: this is not UTF-8 text")).because(e)
        })?;
        found.push(File { path, id, text });
    }
    Ok(found)
}

/// What is wrong with a file's name.
fn misnamed(name: &str, others: &[File]) -> Option<String> {
    let (number, _) = name.split_once('-').unwrap_or_default();
    let id = step::id_of(name);
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if number.is_empty()
        || !number.bytes().all(|b| b.is_ascii_digit())
        || !id.starts_with(|c: char| c.is_ascii_lowercase())
        || !id.chars().all(is_plain)
    {
        return Some(
            "a step's file is called NN-name.toml: digits, then small letters, digits and hyphens".into(),
        );
    }
    if step::EMBEDDED.iter().any(|(file, _)| step::id_of(file) == id) {
        return Some(format!("a built-in step is called {id}, too"));
    }
    let twin = others.iter().find(|other| other.id == id)?;
    Some(format!("{} is called {id}, too", twin.path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_number_and_an_id_of_its_own() {
        let twin = File { path: "/10-mig.toml".into(), id: "mig".into(), text: String::new() };
        for (name, why) in [
            ("50-docker.toml", None),
            ("5-a1-b.toml", None),
            ("docker.toml", Some("NN-name.toml")),
            ("my-step.toml", Some("NN-name.toml")),
            ("50-.toml", Some("NN-name.toml")),
            ("50-My Step.toml", Some("NN-name.toml")),
            ("99-driver.toml", Some("built-in step is called driver")),
            ("20-mig.toml", Some("/10-mig.toml is called mig, too")),
        ] {
            let found = misnamed(name, std::slice::from_ref(&twin));
            assert!(
                found.as_deref().map_or(why.is_none(), |f| why.is_some_and(|w| f.contains(w))),
                "{name}: {found:?}"
            );
        }
    }
}
