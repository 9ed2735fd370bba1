//! `/run/gpu-bootstrap/status.json` at each event, `result.json` only at the end. World-readable, so they hold
//! no secret: no user-data, and URLs only without query and user part.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Listener;
use super::event::{Event, EventKind, Progress};
use crate::device_query::verdicts::Verdicts;
use crate::host::files::Files;
use crate::host::paths;
use crate::install::report::Report;

/// The content of both files. Readers must accept unknown fields and unknown states.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// Version of this format.
    pub schema: u32,
    /// `running` or `finished`.
    pub state: String,
    /// `converged`, `failed`, `reboot-needed`, `skipped` or `interrupted`; absent while running.
    pub outcome: Option<String>,
    /// The process's exit code; absent while running.
    pub exit_code: Option<u8>,
    /// Version of the agent.
    pub agent_version: String,
    /// Process id of the run.
    pub pid: u32,
    /// Instance id, or `local`.
    pub instance_id: String,
    /// Instance type, where known.
    pub instance_type: Option<String>,
    /// The kernel's id of the boot that the run belongs to.
    pub boot_id: String,
    /// SHA-256 of the plan.
    pub plan_digest: String,
    /// One sentence per choice.
    pub choices: Vec<String>,
    /// When the run began.
    pub started: Option<Timestamp>,
    /// When this file was last written.
    pub updated: Option<Timestamp>,
    /// Duration of the run, seconds.
    pub seconds: Option<f64>,
    /// The steps, in order.
    pub steps: Vec<StepStatus>,
    /// What the run made of the GPUs when it examined them last; absent where it did not.
    pub gpus: Option<Verdicts>,
    /// What went wrong.
    pub error: Option<ErrorStatus>,
    /// Why a reboot is needed.
    pub reboot: Option<String>,
    /// Things to know that are no failure.
    pub notices: Vec<String>,
    /// The long work that goes on right now.
    pub progress: Option<Progress>,
    /// What became of each report that leaves the machine (`cloudwatch: sent`).
    pub reports: Vec<String>,
}

/// One step.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct StepStatus {
    /// Stable id.
    pub id: String,
    /// For people.
    pub title: String,
    /// `pending`, `running`, `done`, `failed`, `interrupted`.
    pub state: String,
    /// Whether the step changed anything.
    pub changed: bool,
    /// One line per action.
    pub evidence: Vec<String>,
    /// When it began; absent while it waits.
    pub started: Option<Timestamp>,
    /// How long it took.
    pub seconds: Option<f64>,
    /// How its packages were installed, and what that took.
    pub installs: Vec<Report>,
}

/// A failure.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ErrorStatus {
    /// The step it happened in, if in one.
    pub step: Option<String>,
    /// Stable code; `docs/status.md` lists them.
    pub code: String,
    /// One sentence.
    pub message: String,
    /// Causes, outermost first.
    pub causes: Vec<String>,
    /// What to do.
    pub hint: Option<String>,
}

/// Keeps the files.
pub struct StatusFile {
    files: Files,
    status: Status,
    progress_written: Option<Timestamp>,
}

/// Progress is written at most this often; the other events always are.
const PROGRESS_INTERVAL: jiff::SignedDuration = jiff::SignedDuration::from_millis(500);

impl StatusFile {
    /// A listener that writes below the root of `files`.
    pub fn new(files: Files) -> Self {
        let status = Status {
            schema: 1,
            state: "running".into(),
            agent_version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            ..Status::default()
        };
        Self { files, status, progress_written: None }
    }

    /// Says that a run has begun: until it has a plan, a reader would take the last run's end for this one's.
    #[must_use]
    pub fn begun(mut self) -> Self {
        let now = crate::host::clock::Clock.now();
        (self.status.started, self.status.updated) = (Some(now), Some(now));
        self.write(paths::STATUS);
        self
    }

    fn write(&self, path: &str) {
        let written = serde_json::to_vec_pretty(&self.status).map_err(|e| e.to_string()).and_then(|json| {
            self.files.write(path, &json, 0o644).map_err(|e| format!("{e}: {}", e.causes().join(": ")))
        });
        if let Err(e) = written {
            tracing::warn!("{path} could not be written: {e}");
        }
    }

    fn step(&mut self, id: &str) -> Option<&mut StepStatus> {
        self.status.steps.iter_mut().find(|s| s.id == id)
    }

    fn update(&mut self, at: Timestamp, kind: &EventKind) {
        match kind {
            EventKind::RunStarted { steps, plan_digest, instance_id, instance_type, boot_id, choices } => {
                self.status.steps = steps
                    .iter()
                    .map(|s| StepStatus {
                        id: s.id.clone(),
                        title: s.title.clone(),
                        state: "pending".into(),
                        ..StepStatus::default()
                    })
                    .collect();
                self.status.plan_digest.clone_from(plan_digest);
                self.status.instance_id.clone_from(instance_id);
                self.status.instance_type.clone_from(instance_type);
                self.status.boot_id.clone_from(boot_id);
                self.status.choices.clone_from(choices);
            }
            EventKind::StepStarted { step } => {
                if let Some(s) = self.step(step) {
                    s.state = "running".into();
                    s.started = Some(at);
                }
            }
            EventKind::ActionChecked { .. } | EventKind::Output { .. } | EventKind::Unknown => {}
            EventKind::Progress(progress) => self.status.progress = Some(progress.clone()),
            EventKind::Notice { text } => self.status.notices.push(text.clone()),
            EventKind::Installed { report, .. } => {
                if let Some(s) = self.status.steps.iter_mut().find(|s| s.state == "running") {
                    s.installs.push((**report).clone());
                }
            }
            EventKind::GpusChecked(verdicts) => self.status.gpus = Some((**verdicts).clone()),
            EventKind::StepFinished { step, changed, evidence, seconds } => {
                self.status.progress = None;
                if let Some(s) = self.step(step) {
                    s.state = "done".into();
                    s.changed = *changed;
                    s.evidence.clone_from(evidence);
                    s.seconds = Some(*seconds);
                }
            }
            EventKind::Failed { step, code, message, causes, hint } => {
                self.status.progress = None;
                if let Some(s) = step.as_ref().and_then(|id| self.step(id)) {
                    s.state = "failed".into();
                    s.seconds = s.started.map(|began| at.duration_since(began).as_secs_f64());
                }
                self.status.error = Some(ErrorStatus {
                    step: step.clone(),
                    code: code.clone(),
                    message: message.clone(),
                    causes: causes.clone(),
                    hint: hint.clone(),
                });
            }
            EventKind::RebootNeeded { why } => self.status.reboot = Some(why.clone()),
            EventKind::Reported { text } => self.status.reports.push(text.clone()),
            EventKind::RunFinished { outcome, exit_code, seconds } => {
                self.status.state = "finished".into();
                // Nothing runs any more: the step was cut off by a signal, or waits for the next boot.
                let cut = if outcome == "reboot-needed" { "pending" } else { "interrupted" };
                for step in self.status.steps.iter_mut().filter(|s| s.state == "running") {
                    step.state = cut.into();
                }
                self.status.outcome = Some(outcome.clone());
                self.status.exit_code = Some(*exit_code);
                self.status.seconds = Some(*seconds);
            }
        }
    }

    /// Whether this event is worth a write: a no-op run says a dozen things within milliseconds, and only
    /// changes of state and (now and then) progress matter to a reader.
    fn due(&mut self, event: &Event) -> bool {
        match &event.kind {
            EventKind::ActionChecked { .. } => false,
            EventKind::Progress(_) => {
                let due = self
                    .progress_written
                    .is_none_or(|last| event.at.duration_since(last) >= PROGRESS_INTERVAL);
                if due {
                    self.progress_written = Some(event.at);
                }
                due
            }
            _ => true,
        }
    }
}

impl Listener for StatusFile {
    fn hear(&mut self, event: &Event) {
        self.status.started.get_or_insert(event.at);
        self.status.updated = Some(event.at);
        self.update(event.at, &event.kind);
        if self.due(event) {
            self.write(paths::STATUS);
        }
        if matches!(event.kind, EventKind::RunFinished { .. }) {
            self.write(paths::RESULT);
            self.write(paths::LAST_RESULT);
            if self.status.steps.iter().any(|s| !s.installs.is_empty()) {
                self.write(paths::LAST_INSTALLATION);
            }
        }
    }
}
