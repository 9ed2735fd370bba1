//! What became of the user-data: a sentence for each item, on standard output or standard error, and in
//! `/run/gpu-bootstrap/user-data.json`, which is written before and after each.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::item::Item;
use crate::boot;
use crate::error::{Code, Error, Result, exit};
use crate::host::files::Files;
use crate::host::paths::USER_DATA_REPORT;
use crate::report::streams;

/// How it stands with an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Outcome {
    /// Its turn has not come.
    Waiting,
    /// It is at work.
    Running,
    /// It was done now.
    Done,
    /// It failed; see the sentence.
    Failed,
    /// It was done before.
    Earlier,
    /// It failed before.
    EarlierFailed,
    /// It came after this instance was set up.
    NotApplied,
    /// Of a later version.
    #[serde(other)]
    Unknown,
}

/// An item and how it stands with it.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Entry {
    name: String,
    sha256: String,
    frequency: String,
    outcome: Outcome,
    text: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    code: Option<String>,
    seconds: f64,
}

/// The whole.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Report {
    agent_version: String,
    /// `running`, `done`, `failed`; `refused` (a mistake: nothing was done), `not-ours` or
    /// `ignored`.
    state: String,
    /// Why, where nothing was done.
    reason: String,
    /// `i-…`, or `local`.
    pub(super) instance_id: String,
    /// The kernel's id of this boot.
    pub(super) boot_id: String,
    /// What is wrong besides items.
    problems: Vec<String>,
    items: Vec<Entry>,
    /// Requests to the metadata service, those that failed included.
    #[serde(default)]
    pub(super) metadata_requests: u32,
    exit_code: u8,
}

impl Default for Report {
    fn default() -> Self {
        Self {
            agent_version: env!("CARGO_PKG_VERSION").into(),
            state: "running".into(),
            reason: String::new(),
            instance_id: String::new(),
            boot_id: String::new(),
            problems: Vec::new(),
            items: Vec::new(),
            metadata_requests: 0,
            exit_code: exit::CONVERGED,
        }
    }
}

impl Report {
    /// Says why there is nothing to do.
    pub(super) fn is(&mut self, state: &str, reason: impl Into<String>) {
        self.state = state.into();
        self.reason = reason.into();
        streams::say(&self.reason);
    }

    /// Notes why nothing of it is done. Whoever called says it.
    pub(super) fn refused(&mut self, error: &Error) {
        self.state = "refused".into();
        self.reason = sentence(error);
        self.exit_code = error.code().exit_code();
    }

    /// Notes and says something that is wrong, and that items go on without.
    pub(super) fn problem(&mut self, error: &Error) {
        streams::err(&boot::explain(error));
        self.problems.push(sentence(error));
    }

    /// Every item waits.
    pub(super) fn begin(&mut self, items: &[Item]) {
        let entry = |item: &Item| Entry {
            name: item.name.clone(),
            sha256: item.sha256.clone(),
            frequency: item.frequency.name().into(),
            outcome: Outcome::Waiting,
            text: String::new(),
            code: None,
            seconds: 0.0,
        };
        self.items = items.iter().map(entry).collect();
    }

    /// An item is not to be done now.
    pub(super) fn not_now(&mut self, index: usize, outcome: Outcome, why: &str) {
        self.note(index, outcome, why.into());
    }

    /// An item begins.
    pub(super) fn running(&mut self, index: usize) {
        self.note(index, Outcome::Running, "begins".into());
    }

    /// An item has ended.
    pub(super) fn ended(&mut self, index: usize, result: Result<String>, took: Duration) {
        self.items[index].seconds = took.as_secs_f64();
        match result {
            Ok(text) => self.note(index, Outcome::Done, format!("{text} ({:.1} s)", took.as_secs_f64())),
            Err(error) => {
                streams::err(&boot::explain(&error));
                let entry = &mut self.items[index];
                entry.outcome = Outcome::Failed;
                entry.text = sentence(&error);
                entry.code = Some(error.code().name().into());
            }
        }
    }

    fn note(&mut self, index: usize, outcome: Outcome, text: String) {
        let entry = &mut self.items[index];
        streams::say(&format!("{}: {text}", entry.name));
        entry.outcome = outcome;
        entry.text = text;
    }

    /// Writes the file as it stands.
    pub(super) fn write(&self, files: &Files) -> Result<()> {
        files.write(USER_DATA_REPORT, streams::json(self)?.as_bytes(), 0o644)
    }

    /// Writes the file for the last time and returns the process's exit code: 0, unless something failed.
    pub(super) fn finish(mut self, files: &Files) -> Result<u8> {
        if self.state == "running" {
            let is_bad = !self.problems.is_empty() || self.items.iter().any(|e| e.outcome == Outcome::Failed);
            self.state = if is_bad { "failed" } else { "done" }.into();
            self.exit_code = if is_bad { exit::FAILED } else { exit::CONVERGED };
            if self.items.is_empty() {
                streams::say("the user-data asks for nothing that is to be done here");
            }
        }
        self.write(files)?;
        Ok(self.exit_code)
    }
}

/// What `status` says of it; nothing where nothing was or is to be done.
pub fn summary(files: &Files) -> Result<Option<String>> {
    let Some(bytes) = files.read(USER_DATA_REPORT)? else { return Ok(None) };
    let report: Report = serde_json::from_slice(&bytes)
        .map_err(|e| Error::new(Code::Io, format!("cannot understand {USER_DATA_REPORT}")).because(e))?;
    let mut text = match report.state.as_str() {
        "refused" => format!("refused, nothing was done: {}", report.reason),
        "running" if !super::is_at_work(files)? => {
            "killed; what did not end is begun again at the next boot".into()
        }
        "running" | "done" | "failed" if !report.items.is_empty() || !report.problems.is_empty() => {
            report.state.clone()
        }
        _ => return Ok(None),
    };
    let waiting = report.items.iter().filter(|entry| entry.outcome == Outcome::Waiting).count();
    if report.state != "running" && waiting > 0 {
        text = format!("{text}, and {waiting} more when the GPUs are set up");
    }
    for entry in &report.items {
        if matches!(
            entry.outcome,
            Outcome::Running | Outcome::Failed | Outcome::EarlierFailed | Outcome::NotApplied
        ) {
            text = format!("{text}\n  {}: {}", entry.name, entry.text);
        }
    }
    for problem in &report.problems {
        text = format!("{text}\n  {problem}");
    }
    Ok(Some(text))
}

fn sentence(error: &Error) -> String {
    std::iter::once(error.message().to_owned()).chain(error.causes()).collect::<Vec<_>>().join(": ")
}
