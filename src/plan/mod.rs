//! The plan: the steps chosen for these facts and this config, with values filled in, and its digest.

mod containers;
pub mod custom;
pub mod digest;
pub mod distributed;
mod mount_unit;
pub mod select;
pub mod show;
pub mod step;
mod unattended;
pub mod values;

use serde::Serialize;

use crate::action::{Action, Check};
use crate::catalog::{Stack, distributed as training, frameworks};
use crate::config::Config;
use crate::embedded::{self, inflate_text};
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
    /// The administrator's file that it stands in; `None` for a built-in step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
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
            Check::Deferred { why } if self.installs(host, action).await => Ok(Check::needed(why)),
            Check::Deferred { why } => {
                Ok(Check::satisfied(format!("{why}, and no package is to be installed")))
            }
            other => Ok(other),
        }
    }

    /// Whether a package is missing, or may be: one of those for which `source` is there. A bundle has wheels, too.
    async fn installs(&self, host: &Host, source: &Action) -> bool {
        let takes = |action: &&Action| match (action, source) {
            (Action::PythonEnvironment(_), Action::Bundle(_)) => true,
            (action, _) => action.installs(),
        };
        for action in self.steps.iter().flat_map(|step| &step.actions).filter(takes) {
            if !matches!(action.check(host).await, Ok(Check::Satisfied { .. })) {
                return true;
            }
        }
        false
    }
}

/// Chooses the steps that these facts, this config and this stack ask for, and fills in their values. The
/// administrator's steps come in the order of their files' names, after all that is built in but the last step, which is
/// the proof.
pub fn build(facts: &Facts, config: &Config, stack: &Stack, custom: &[custom::File]) -> Result<Plan> {
    let conditions = select::conditions(facts, config, stack);
    let frameworks = frameworks::choose(facts, config, stack)?;
    let training = training::choose(facts, config, stack)?;
    let values = values::compute(facts, config, stack, frameworks.as_ref(), &training);
    // While an image is baked, there is no instance yet whose steps these could be.
    let belongs = |scope| scope == step::Scope::Image || !facts.gpu.gpus.is_empty();
    let build = |file: &str, text: &str, id: &str, names: &[&str]| {
        let raw = step::parse(file, text)?;
        let chosen = select::holds(&raw, &conditions)? && belongs(raw.scope());
        chosen.then(|| raw.fill(id, names, &values)).transpose()
    };
    let built_in = |files: &[embedded::File]| {
        let steps = files.iter().map(|(file, compressed)| {
            build(file, &inflate_text(compressed), step::id_of(file), values::VALUE_NAMES)
        });
        steps.filter_map(Result::transpose).collect::<Result<Vec<_>>>()
    };
    let (before, proof) = step::EMBEDDED.split_at(step::EMBEDDED.len() - 1);
    let mut steps = built_in(before)?;
    for file in custom {
        let step = build(&file.path, &file.text, &file.id, values::CUSTOM_VALUE_NAMES)?;
        steps.extend(step.map(|step| Step { origin: Some(file.path.clone()), ..step }));
    }
    steps.extend(built_in(proof)?);
    let digest = digest::plan(&steps);
    Ok(Plan { steps, digest })
}
