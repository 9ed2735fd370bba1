//! What is shown at the end: result, time per step, and where the status files are.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::filesystem::{Copy, make_dir};
use super::{Job, failed};
use crate::error::{Error, Result};
use crate::host::files::Files;
use crate::host::paths;
use crate::report::status_file::Status;

/// Prints a line: on standard error where standard output belongs to a JSON document.
pub(super) fn printer(to_stderr: bool) -> impl Fn(&str) + Send + 'static {
    use std::io::Write;
    move |line| {
        // A reader that went away is no reason to stop.
        let _ = if to_stderr {
            writeln!(std::io::stderr(), "{line}")
        } else {
            writeln!(std::io::stdout(), "{line}")
        };
    }
}

/// How the run inside ended.
pub(super) struct Verdict {
    exit_code: u8,
    /// As `plan --json` printed it; null where there was nothing to plan.
    plan: Value,
    /// The status file as the run left it; `None` where the run ended before it wrote one.
    status: Option<Status>,
    status_json: Value,
}

impl Verdict {
    /// Reads what the run left in the copy.
    pub(super) fn read(copy: &Copy, exit_code: u8, plan: &[u8]) -> Result<Self> {
        let path = paths::STATUS.trim_start_matches("/run");
        let bytes = Files::new(copy.run()).read(path)?.unwrap_or_default();
        let mut status = None;
        if !bytes.is_empty() {
            status = Some(serde_json::from_slice(&bytes).map_err(|e| failed("read the run's status", e))?);
        }
        Ok(Self {
            exit_code,
            plan: serde_json::from_slice(plan).unwrap_or(Value::Null),
            status,
            status_json: serde_json::from_slice(&bytes).unwrap_or(Value::Null),
        })
    }

    /// Prints everything.
    pub(super) fn show(&self, job: &Job, simulated: &[String], kept: &[String]) -> Result<()> {
        let say = printer(false);
        if job.json {
            let document = json!({
                "rehearsal": true,
                "instance_type": job.instance_type,
                "simulated": simulated,
                "plan": self.plan,
                "status": self.status_json,
                "exit_code": self.exit_code,
                "kept": kept,
            });
            let text =
                serde_json::to_string_pretty(&document).map_err(|e| failed("write the result as JSON", e))?;
            say(&text);
            return Ok(());
        }
        say(&format!("result of the rehearsal on a simulated {}:", job.instance_type));
        match &self.status {
            Some(status) => lines(status).iter().for_each(|line| say(line)),
            None => say("  the run ended before it wrote a status file"),
        }
        say(&format!("  exit code {}", self.exit_code));
        say(&if kept.is_empty() {
            format!("status file: {} inside, gone with the copy (--keep DIR keeps it)", paths::STATUS)
        } else {
            format!("status files (of a simulated instance): {}", kept.join(", "))
        });
        Ok(())
    }
}

/// Copies the status files and the receipt to a directory of the host, and returns their names.
pub(super) fn keep(copy: &Copy, dir: &Path) -> Result<Vec<String>> {
    make_dir(dir)?;
    let mut kept = Vec::new();
    let inside = Files::new(copy.root());
    for path in [paths::STATUS, paths::RESULT, paths::RECEIPT] {
        let bytes = match path.strip_prefix("/run/") {
            Some(below_run) => Files::new(copy.run()).read(format!("/{below_run}"))?,
            None => inside.read(path)?,
        };
        let to = dir.join(Path::new(path).file_name().unwrap_or_default());
        if let Some(bytes) = bytes {
            fs::write(&to, labelled(bytes)).map_err(|e| Error::io("write", &to, e))?;
            kept.push(to.display().to_string());
        }
    }
    Ok(kept)
}

/// A JSON document of the run inside, marked as such: outside the copy nothing else tells it from a real one.
fn labelled(bytes: Vec<u8>) -> Vec<u8> {
    let Ok(Value::Object(mut document)) = serde_json::from_slice(&bytes) else { return bytes };
    document.insert("simulated".into(), "by gpu-bootstrap rehearse".into());
    serde_json::to_vec_pretty(&document).unwrap_or(bytes)
}

/// The status for people.
fn lines(status: &Status) -> Vec<String> {
    let outcome = status.outcome.as_deref().unwrap_or(&status.state);
    let mut lines = vec![match status.seconds {
        Some(seconds) => format!("  {outcome} after {seconds:.1} s"),
        None => format!("  {outcome}"),
    }];
    for step in &status.steps {
        let time = step.seconds.map_or("      –".to_owned(), |s| format!("{s:6.2} s"));
        let changed = if step.changed { ", changed" } else { "" };
        lines.push(format!("  {time}  {} ({}{changed})", step.title, step.state));
    }
    if let Some(error) = &status.error {
        lines.push(format!("  {} [{}]", error.message, error.code));
        lines.extend(error.causes.iter().map(|c| format!("    because: {c}")));
        lines.extend(error.hint.iter().map(|h| format!("    hint: {h}")));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::status_file::StepStatus;

    #[test]
    fn every_step_has_a_line_with_its_time() {
        let step = StepStatus {
            title: "driver".into(),
            state: "done".into(),
            seconds: Some(1.5),
            changed: true,
            ..StepStatus::default()
        };
        let pending =
            StepStatus { title: "toolkit".into(), state: "pending".into(), ..StepStatus::default() };
        let status = Status { state: "running".into(), steps: vec![step, pending], ..Status::default() };
        assert_eq!(
            lines(&status),
            ["  running", "    1.50 s  driver (done, changed)", "        –  toolkit (pending)"]
        );
    }
}
