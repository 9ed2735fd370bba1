//! The plan: the steps chosen for these facts and this config, with values filled in, and its digest.

pub mod digest;
pub mod select;
pub mod show;
pub mod step;
pub mod values;

use serde::Serialize;

use crate::action::Action;
use crate::catalog::Stack;
use crate::config::Config;
use crate::embedded::inflate_text;
use crate::error::Result;
use crate::facts::Facts;

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
