//! Checks of the CUDA libraries: whether they load, and whether they are the ones that were installed.

use super::{Check, broken_process, call};
use crate::catalog::version::Version;
use crate::device_query::NotRun;
use crate::device_query::launch::Ended;
use crate::device_query::libraries::{Installed, agree};

pub(super) fn library(installed: &Installed) -> Check {
    let name = &installed.check;
    match &installed.run {
        Err(NotRun::NoDriver) => {
            return Check::unknown(
                name,
                "no NVIDIA kernel module is loaded; no library was loaded",
                "Load the driver first.",
            );
        }
        Err(NotRun::Missing(soname)) => {
            let version = installed.wanted_words().map(|w| format!(" in version {w}")).unwrap_or_default();
            return Check::fail(
                name,
                format!("{soname} is not found, and the plan installed it{version}"),
                "Run gpu-bootstrap again, which installs its package anew; if it stays, run ldconfig and see where the package's files are.",
            );
        }
        _ => {}
    }
    if let Some(failure) = installed.version.as_ref().and_then(|v| v.error.as_ref()) {
        return Check::fail(
            name,
            call(failure),
            "Reinstall the package that ships the library: a part of it, or a library that it needs, is missing.",
        );
    }
    if let Some(mut broken) = broken_process(name, &installed.run) {
        if matches!(&installed.run, Ok(l) if matches!(l.ended, Ended::Signal(_))) {
            broken.advice = "Reinstall the package that ships the library: it is there in part.".into();
        }
        return broken;
    }
    match (&installed.version, installed.says()) {
        (Some(said), Some(version)) => library_version(installed, &said.library, &version),
        _ => Check::unknown(
            name,
            "it did not say its version",
            "Reinstall the package that ships the library.",
        ),
    }
}

/// What the library says against its package and the plan.
fn library_version(installed: &Installed, path: &str, says: &str) -> Check {
    let name = &installed.check;
    let said = Version::parse(says);
    let differs = |other: &Version| said.as_ref().is_some_and(|said| !agree(said, other));
    let owned = match &installed.owner {
        Some(owner) => format!("its package is {} {}", owner.name, owner.version),
        None => "it belongs to no package".to_owned(),
    };
    if let Some(owner) = &installed.owner
        && owner.version_of(installed.name).is_some_and(|version| differs(&version))
    {
        return Check::fail(
            name,
            format!("{path} says {says}, and {owned}"),
            format!(
                "Reinstall it (apt-get install --reinstall {}): an upgrade was interrupted, or somebody replaced the file.",
                owner.name
            ),
        );
    }
    if let Some((other, owner)) = &installed.shadowed
        && owner.version_of(installed.name).is_some_and(|version| differs(&version))
    {
        return Check::fail(
            name,
            format!(
                "{path} says {says} and belongs to no package; it hides {} of {} {}",
                other.display(),
                owner.name,
                owner.version
            ),
            HIDES,
        );
    }
    if let Some(wanted) = installed.wanted_words()
        && installed.wanted.iter().all(differs)
    {
        let advice = match installed.owner {
            Some(_) => {
                "Run gpu-bootstrap again, so that the planned version is installed; if it stays, see who holds the package."
            }
            None => HIDES,
        };
        return Check::fail(
            name,
            format!("{path} says {says}, and the plan installed {wanted}; {owned}"),
            advice,
        );
    }
    Check::pass(name, format!("{path} says {says}; {owned}"))
}

const HIDES: &str = "Remove this copy, or its directory from /etc/ld.so.conf.d, and run ldconfig.";
