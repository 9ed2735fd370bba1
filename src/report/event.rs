//! The event stream: everything the engine says, serialisable, in order.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::device_query::verdicts::Verdicts;
use crate::install::report::Report;

/// One thing that happened.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Event {
    /// When, UTC.
    pub at: Timestamp,
    /// What.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What can happen in a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum EventKind {
    /// The plan is made and the work begins.
    RunStarted {
        /// Every step that will be looked at, in order.
        steps: Vec<StepTitle>,
        /// SHA-256 of the plan, hexadecimal.
        plan_digest: String,
        /// The instance id, or `local` off EC2.
        instance_id: String,
        /// The instance type, where known.
        instance_type: Option<String>,
        /// The kernel's id of this boot.
        boot_id: String,
        /// One sentence per choice that the catalog made.
        choices: Vec<String>,
    },
    /// A step begins.
    StepStarted {
        /// The step's id.
        step: String,
    },
    /// An action was looked at.
    ActionChecked {
        /// The step's id.
        step: String,
        /// The action, described for people.
        action: String,
        /// `satisfied`, `needed` or `unknown`.
        state: String,
        /// Evidence, or what is missing.
        why: String,
    },
    /// Long work inside a step.
    Progress(Progress),
    /// Something a person should know that is no failure (a file was set aside, a source disagrees).
    Notice {
        /// The sentence.
        text: String,
    },
    /// A line that a command of the administrator's printed. It stays on the machine: nobody knows what it says.
    Output {
        /// The line, with URLs as they may be shown.
        line: String,
    },
    /// Packages were installed.
    Installed {
        /// For people.
        sentence: String,
        /// How, and what it took.
        report: Box<Report>,
    },
    /// The GPUs were examined; what that came to.
    GpusChecked(Box<Verdicts>),
    /// A step ended well.
    StepFinished {
        /// The step's id.
        step: String,
        /// Whether anything was changed.
        changed: bool,
        /// One line of evidence per action.
        evidence: Vec<String>,
        /// How long it took.
        seconds: f64,
    },
    /// A step (or the run itself, when `step` is absent) failed.
    Failed {
        /// The step's id.
        step: Option<String>,
        /// The error's stable code.
        code: String,
        /// The error's sentence.
        message: String,
        /// Its causes, outermost first.
        causes: Vec<String>,
        /// What to do.
        hint: Option<String>,
    },
    /// The machine has to be rebooted before the run goes on.
    RebootNeeded {
        /// Why.
        why: String,
    },
    /// What became of a report that leaves the machine.
    Reported {
        /// The sentence (`cloudwatch: sent`).
        text: String,
    },
    /// The run is over.
    RunFinished {
        /// `converged`, `failed`, `reboot-needed`, `skipped` or `interrupted`.
        outcome: String,
        /// The process's exit code.
        exit_code: u8,
        /// How long it took.
        seconds: f64,
    },
    /// An event of a later version.
    #[serde(other)]
    Unknown,
}

/// A step's id and title.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StepTitle {
    /// Stable id: the step file's name without number and suffix.
    pub id: String,
    /// For people.
    pub title: String,
}

/// How far a piece of long work has come.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Progress {
    /// What is being done ("downloading packages", "installing packages"); one bar on a terminal.
    pub what: String,
    /// The thing that it is at ("cuda-nvcc-12-8"); empty when there is only one.
    #[serde(default)]
    pub item: String,
    /// Units done so far.
    pub done: u64,
    /// Units in all, when known.
    pub total: Option<u64>,
    /// Unit of `done` and `total`.
    pub unit: Unit,
}

/// Units of [`Progress`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unit {
    /// Bytes.
    Bytes,
    /// Hundredths of a percent, where nobody knows the amount itself.
    Fraction,
    /// Seconds, of waiting.
    Seconds,
}
