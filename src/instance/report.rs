//! What the early part did: a sentence for each duty, on standard output or standard error, and in
//! `/run/gpu-bootstrap/early.json`.

use serde::Serialize;

use crate::boot;
use crate::error::{Result, exit};
use crate::host::files::Files;
use crate::host::paths::EARLY;
use crate::report::streams;

/// What a duty came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Told {
    /// Something on the machine is other than before.
    pub(crate) changed: bool,
    /// One sentence.
    pub(crate) text: String,
}

/// How a duty ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Outcome {
    /// The machine was changed.
    Changed,
    /// All was as wanted.
    Unchanged,
    /// Switched off by the configuration.
    Off,
    /// See the sentence; other duties went on.
    Failed,
}

/// A duty and its end.
#[derive(Clone, Debug, Serialize)]
struct Entry {
    duty: &'static str,
    outcome: Outcome,
    text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'static str>,
}

/// The whole.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Report {
    agent_version: &'static str,
    /// What this machine is: `new` or `same` as at the last boot, `not-ours`, or `unknown`.
    pub(super) instance: &'static str,
    /// Why, or the instance's id.
    pub(super) reason: String,
    duties: Vec<Entry>,
    /// Requests to the metadata service.
    pub(super) metadata_requests: u32,
    /// How long it took.
    pub(super) seconds: f64,
    exit_code: u8,
}

impl Default for Report {
    fn default() -> Self {
        Self {
            agent_version: env!("CARGO_PKG_VERSION"),
            instance: "unknown",
            reason: String::new(),
            duties: Vec::new(),
            metadata_requests: 0,
            seconds: 0.0,
            exit_code: exit::CONVERGED,
        }
    }
}

impl Report {
    /// Says what this machine is, and why, or which.
    pub(super) fn is(&mut self, instance: &'static str, reason: impl Into<String>) {
        self.instance = instance;
        self.reason = reason.into();
        streams::say(&self.reason);
    }

    /// Notes and says how a duty ended. Returns whether it is done.
    pub(super) fn ended(&mut self, duty: &'static str, result: Result<Told>) -> bool {
        match result {
            Ok(Told { changed, text }) => {
                let outcome = if changed { Outcome::Changed } else { Outcome::Unchanged };
                self.note(Entry { duty, outcome, text, code: None });
                true
            }
            Err(error) => {
                streams::err(&boot::explain(&error));
                let text =
                    std::iter::once(error.message().to_owned()).chain(error.causes()).collect::<Vec<_>>();
                let code = Some(error.code().name());
                self.duties.push(Entry { duty, outcome: Outcome::Failed, text: text.join(": "), code });
                false
            }
        }
    }

    /// Notes and says that a duty is switched off.
    pub(super) fn off(&mut self, duty: &'static str) {
        let text = "switched off by the configuration".into();
        self.note(Entry { duty, outcome: Outcome::Off, text, code: None });
    }

    fn note(&mut self, entry: Entry) {
        streams::say(&format!("{}: {}", entry.duty, entry.text));
        self.duties.push(entry);
    }

    /// Writes the file and returns the process's exit code: 0, unless nothing could be done.
    pub(super) fn finish(mut self, files: &Files) -> Result<u8> {
        let could = |entry: &Entry| entry.outcome != Outcome::Failed;
        if !self.duties.is_empty() && !self.duties.iter().any(could) {
            self.exit_code = exit::FAILED;
        }
        files.write(EARLY, streams::json(&self)?.as_bytes(), 0o644)?;
        Ok(self.exit_code)
    }
}
