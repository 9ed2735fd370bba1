//! Which steps apply. `when` is a conjunction over a closed list of conditions, each with a closed list of values.

use std::collections::BTreeMap;

use super::step::RawStep;
use super::{containers, values};
use crate::action::container_runtime::Runtime;
use crate::bundle;
use crate::catalog::choose::Source;
use crate::catalog::{Stack, distributed as training};
use crate::config::Config;
use crate::config::schema::CollectiveCheck;
use crate::error::Result;
use crate::facts::Facts;

/// The value of every condition on this machine.
pub type Conditions = BTreeMap<&'static str, &'static str>;

/// Computes every condition. The names and values are documented in `steps/README.md`.
pub fn conditions(facts: &Facts, config: &Config, stack: &Stack) -> Conditions {
    let either = |yes: bool, a: &'static str, b: &'static str| if yes { a } else { b };
    let home = stack.toolkits.first().map(|t| t.home.is_some());
    BTreeMap::from([
        ("source", source(stack)),
        ("bundle", either(bundle::is_wanted(config), "wanted", "none")),
        ("components", either(components(stack), "wanted", "none")),
        (
            "kernel-packages",
            either(stack.driver.as_ref().is_some_and(|d| !d.kernel_packages.is_empty()), "wanted", "none"),
        ),
        ("driver", either(stack.driver.is_some(), "wanted", "none")),
        (
            "kernel-hold",
            either(stack.driver.as_ref().is_some_and(|d| d.hold_kernel.is_some()), "wanted", "none"),
        ),
        ("imex", either(stack.driver.as_ref().is_some_and(|d| !d.imex.is_empty()), "needed", "none")),
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
        ("apt-mirror", either(values::apt_mirror(facts, config).is_some(), "region", "none")),
        ("instance-store", either(values::store(facts, config).is_some(), "wanted", "none")),
        (
            "instance-store-tools",
            either(values::store(facts, config).is_some_and(|s| !s.packages.is_empty()), "wanted", "none"),
        ),
        ("frameworks", either(config.frameworks.python.is_empty(), "none", "wanted")),
        ("training", either(config.frameworks.training_check, "wanted", "none")),
        ("profile", either(config.profile.path, "wanted", "none")),
        ("containers", either(containers::wanted(config), "wanted", "none")),
        ("container-toolkit", either(containers::repository(facts, config).is_some(), "wanted", "none")),
        ("docker", either(config.containers.runtime.contains(&Runtime::Docker), "wanted", "none")),
        ("containerd", either(config.containers.runtime.contains(&Runtime::Containerd), "wanted", "none")),
        ("node-labels", either(config.containers.node_labels, "wanted", "none")),
        ("distributed", either(training::is_wanted(facts, config, stack), "wanted", "none")),
        ("nccl", either(config.distributed.nccl != "none", "wanted", "none")),
        ("efa", either(training::wants_efa(facts, config, stack), "wanted", "none")),
        ("efa-devices", either(facts.efa.is_empty(), "none", "present")),
        ("gdrcopy", either(config.distributed.gdrcopy.is_empty(), "none", "wanted")),
        ("collective-check", either(config.distributed.check == CollectiveCheck::None, "none", "wanted")),
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

/// The values that each condition can have anywhere: one that is none of them would never hold, unnoticed.
const POSSIBLE: &[(&str, &[&str])] = &[
    ("source", &["nvidia", "distro", "none"]),
    ("bundle", &["wanted", "none"]),
    ("components", &["wanted", "none"]),
    ("kernel-packages", &["wanted", "none"]),
    ("driver", &["wanted", "none"]),
    ("kernel-hold", &["wanted", "none"]),
    ("imex", &["needed", "none"]),
    ("fabric-manager", &["needed", "none"]),
    ("cuda", &["wanted", "none"]),
    ("cuda-home", &["own", "system", "none"]),
    ("cudnn", &["apt", "deb", "none"]),
    ("apt-mirror", &["region", "none"]),
    ("instance-store", &["wanted", "none"]),
    ("instance-store-tools", &["wanted", "none"]),
    ("frameworks", &["wanted", "none"]),
    ("training", &["wanted", "none"]),
    ("profile", &["wanted", "none"]),
    ("containers", &["wanted", "none"]),
    ("container-toolkit", &["wanted", "none"]),
    ("docker", &["wanted", "none"]),
    ("containerd", &["wanted", "none"]),
    ("node-labels", &["wanted", "none"]),
    ("distributed", &["wanted", "none"]),
    ("nccl", &["wanted", "none"]),
    ("efa", &["wanted", "none"]),
    ("efa-devices", &["present", "none"]),
    ("gdrcopy", &["wanted", "none"]),
    ("collective-check", &["wanted", "none"]),
    ("gpu", &["present", "absent"]),
    ("gpu-proof", &["possible", "none"]),
];

/// Whether all of the step's `when` holds. An unknown condition or value is an error, not a "no".
pub fn holds(step: &RawStep<'_>, conditions: &Conditions) -> Result<bool> {
    let mut all = true;
    for (name, wanted) in step.when() {
        let known = POSSIBLE.iter().find(|(known, _)| known == name.get_ref());
        let Some((_, possible)) = known else {
            let names: Vec<_> = POSSIBLE.iter().map(|(name, _)| *name).collect();
            let what = format!("no condition is called {}; there are: {}", name.get_ref(), names.join(", "));
            return Err(step.invalid(name.span(), &what));
        };
        if !possible.contains(&wanted.get_ref().as_str()) {
            let what =
                format!("{} is never {:?}, only {}", name.get_ref(), wanted.get_ref(), possible.join(", "));
            return Err(step.invalid(wanted.span(), &what));
        }
        all &= conditions.get(name.get_ref().as_str()).is_some_and(|actual| actual == wanted.get_ref());
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::step;

    #[test]
    fn a_condition_that_can_never_hold_is_an_error_with_its_place() {
        let conditions = Conditions::from([("driver", "wanted"), ("gpu", "absent")]);
        let holds = |when: &str| {
            let text = format!("title = \"x\"\nscope = \"image\"\nwhen = {{ {when} }}\n[[action]]\nx = 1\n");
            step::parse("40-x.toml", &text).and_then(|raw| holds(&raw, &conditions))
        };
        assert!(holds("driver = \"wanted\"").unwrap());
        assert!(!holds("driver = \"wanted\", gpu = \"present\"").unwrap());
        let error = holds("drivr = \"wanted\"").unwrap_err();
        assert!(error.message().starts_with("40-x.toml:3:10: no condition is called drivr"), "{error}");
        let error = holds("gpu = \"absent\", driver = \"want\"").unwrap_err();
        assert!(error.message().starts_with("40-x.toml:3:35: driver is never \"want\""), "{error}");
    }
}
