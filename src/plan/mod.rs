//! The plan: the steps chosen for these facts and this config, with values filled in, and its digest.

pub mod digest;
pub mod select;
pub mod show;
pub mod step;
pub mod values;

use serde::Serialize;

use crate::action::{Action, Check};
use crate::catalog::Stack;
use crate::config::Config;
use crate::embedded::inflate_text;
use crate::error::Result;
use crate::facts::Facts;
use crate::host::Host;

/// What a run will make true, in order.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// The steps.
    pub steps: Vec<Step>,
    /// SHA-256 over the steps' digests, hexadecimal.
    pub digest: String,
}

/// A named, ordered list of actions.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// The step file's name without number and suffix. Never renamed.
    pub id: String,
    /// For people.
    pub title: String,
    /// How often it belongs to run.
    pub scope: step::Scope,
    /// What it makes true.
    pub actions: Vec<Action>,
    /// SHA-256 of its canonical, filled-in form, hexadecimal.
    pub digest: String,
}

impl Plan {
    /// An action's answer. What only an installation would take (apt's own indexes of the sources) counts as needed where
    /// a package of this plan is to be installed, and else as nothing: an instance of an image in which all is installed
    /// asks no repository for anything.
    pub async fn check(&self, action: &Action, host: &Host) -> Result<Check> {
        match action.check(host).await? {
            Check::Deferred { why } if self.installs(host).await => Ok(Check::needed(why)),
            Check::Deferred { why } => {
                Ok(Check::satisfied(format!("{why}, and no package is to be installed")))
            }
            other => Ok(other),
        }
    }

    /// Whether a package is missing, or may be.
    async fn installs(&self, host: &Host) -> bool {
        for action in self.steps.iter().flat_map(|step| &step.actions).filter(|action| action.installs()) {
            if !matches!(action.check(host).await, Ok(Check::Satisfied { .. })) {
                return true;
            }
        }
        false
    }
}

/// Chooses the steps that these facts, this config and this stack ask for, and fills in their values.
pub fn build(facts: &Facts, config: &Config, stack: &Stack) -> Result<Plan> {
    let conditions = select::conditions(facts, config, stack);
    let values = values::compute(facts, stack);
    let mut steps = Vec::new();
    for (file, compressed) in step::EMBEDDED {
        let raw = step::parse(file, &inflate_text(compressed))?;
        if select::holds(file, &raw.when, &conditions)? {
            steps.push(step::fill(file, raw, &values)?);
        }
    }
    let digest = digest::plan(&steps);
    Ok(Plan { steps, digest })
}
