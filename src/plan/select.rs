//! Which steps apply. `when` is a conjunction over a closed list of conditions, each with a closed list of values.

use std::collections::BTreeMap;

use crate::catalog::Stack;
use crate::catalog::choose::Source;
use crate::config::Config;
use crate::error::{Code, Error, Result};
use crate::facts::Facts;

/// The value of every condition on this machine.
pub type Conditions = BTreeMap<&'static str, &'static str>;

/// Computes every condition. The names and values are documented in `steps/README.md`.
pub fn conditions(facts: &Facts, config: &Config, stack: &Stack) -> Conditions {
    let either = |yes: bool, a: &'static str, b: &'static str| if yes { a } else { b };
    let home = stack.toolkits.first().map(|t| t.home.is_some());
    BTreeMap::from([
        ("source", source(stack)),
        ("components", either(components(stack), "wanted", "none")),
        (
            "kernel-packages",
            either(stack.driver.as_ref().is_some_and(|d| !d.kernel_packages.is_empty()), "wanted", "none"),
        ),
        ("driver", either(stack.driver.is_some(), "wanted", "none")),
        ("fabric-manager", either(stack.fabric_manager.is_some(), "needed", "none")),
        ("cuda", either(!stack.toolkits.is_empty(), "wanted", "none")),
        (
            "cuda-home",
            match home {
                Some(true) => "own",
                Some(false) => "system",
                None => "none",
            },
        ),
        (
            "cudnn",
            match (&stack.cudnn, stack.cudnn_debs.is_empty()) {
                (_, false) => "deb",
                (Some(_), true) => "apt",
                (None, true) => "none",
            },
        ),
        ("profile", either(config.profile.path, "wanted", "none")),
        ("gpu", either(facts.gpu.gpus.is_empty(), "absent", "present")),
        ("gpu-proof", either(can_prove(facts, stack), "possible", "none")),
    ])
}

/// Whether GPUs are there with a driver that the plan installs, or that is loaded. A container shows its host's
/// driver in `/proc`, whether or not it was given the GPUs, so there only a wanted one counts.
fn can_prove(facts: &Facts, stack: &Stack) -> bool {
    let loaded = facts.gpu.driver.is_some() && facts.os.container.is_none();
    !facts.gpu.gpus.is_empty() && (stack.driver.is_some() || loaded)
}

/// Whether packages are wanted that need components of the distribution's archive.
fn components(stack: &Stack) -> bool {
    let components = match &stack.source {
        Source::Nvidia(repository) => &repository.components,
        Source::Distro { components } => components,
    };
    source(stack) != "none" && !components.is_empty()
}

/// Where packages come from; `none` when no package is wanted from there, so that nobody gets a repository
/// for nothing.
fn source(stack: &Stack) -> &'static str {
    match stack.source {
        _ if stack.driver.is_none() && stack.toolkits.is_empty() && stack.cudnn.is_none() => "none",
        Source::Nvidia(_) => "nvidia",
        Source::Distro { .. } => "distro",
    }
}

/// Whether all of `when` holds. An unknown condition is an error, not a "no".
pub fn holds(file: &str, when: &BTreeMap<String, String>, conditions: &Conditions) -> Result<bool> {
    for (name, wanted) in when {
        match conditions.get(name.as_str()) {
            Some(actual) if actual == wanted => {}
            Some(_) => return Ok(false),
            None => {
                return Err(Error::new(
                    Code::StepInvalid,
                    format!("{file}: when: no condition is called {name}"),
                ));
            }
        }
    }
    Ok(true)
}
