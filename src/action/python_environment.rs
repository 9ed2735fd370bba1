//! `python-environment`: a virtual environment of the distribution's Python 3 that holds exactly the locked wheels. Only
//! wheels are installed, each by its SHA-256: no `setup.py` ever runs, and no dependency comes along unasked.
//!
//! It is made at its place, because an environment cannot be moved, and converges: what a killed run was at is named in a file
//! of ours before pip begins, and is installed again whatever it looks like.

mod distributions;
mod pip;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub(crate) use self::distributions::{Locked, parse as locked};
use super::{Applied, Check, Converge};
use crate::bundle::WHEELS;
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::host::exec::Call;
use crate::host::files::Files;
use crate::report::event::{Progress, Unit};

/// The requirements file in the environment; it says that the directory is ours.
const REQUIREMENTS: &str = "gpu-bootstrap-requirements.txt";
/// Names of what is being installed, one a line, as long as it is not on the disk.
const IN_FLIGHT: &str = "gpu-bootstrap-in-flight";
/// pip's own room: `/tmp` may be memory, and a wheel has a gigabyte.
const TEMPORARY: &str = "gpu-bootstrap-tmp";
/// Unpacked wheels of this kind come to less than this many times their size, with what Python compiles.
const UNPACKED: u64 = 3;
/// Making an environment runs pip's own installation from a file: seconds, a minute on a cold disk.
const MAKE_LIMIT: Duration = Duration::from_mins(10);

/// A virtual environment with locked packages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct PythonEnvironment {
    /// Its directory.
    pub path: String,
    /// The version that its Python has, `3.11`.
    pub python: String,
    /// A pip requirements file: `name==version --hash=sha256:…` a line; behind `#` may stand the wheel's bytes.
    pub requirements: String,
    /// URL of the package index; empty for pip's own, which is `PyPI`.
    #[serde(default)]
    pub index: String,
    /// A directory of wheels, which takes the index's place; empty for none.
    #[serde(default)]
    pub wheels: String,
}

/// What an environment and the wheels of our locks have at its top.
const TOP: [&str; 11] = [
    "bin",
    "include",
    "lib",
    "lib64",
    "share",
    "etc",
    "pyvenv.cfg",
    ".gitignore",
    REQUIREMENTS,
    IN_FLIGHT,
    TEMPORARY,
];
/// What an environment has without any lock.
const OF_VENV: [&str; 2] = ["pip", "setuptools"];

/// What an environment at `path` has that no run of ours has put there: distributions that its lock does not name, and
/// paths at its top. `None` if it is no environment of ours.
pub(crate) fn others(files: &Files, path: &str) -> Result<Option<Vec<String>>> {
    let Some(text) = files.read_text(format!("{path}/{REQUIREMENTS}"))? else { return Ok(None) };
    let locked = locked(&text)?;
    let top = files.list(path)?.into_iter().filter(|name| !TOP.contains(&name.as_str()));
    let mut others: Vec<String> = top.collect();
    for python in files.list(format!("{path}/lib"))? {
        let there = distributions::names(files, &format!("{path}/lib/{python}/site-packages"))?;
        others.extend(there.into_iter().filter(|name| {
            !OF_VENV.contains(&name.as_str()) && locked.iter().all(|locked| locked.name != *name)
        }));
    }
    Ok(Some(others))
}

/// Removes an environment of ours. What says that it is ours goes last, so that a removal that was killed is gone on with.
pub(crate) fn remove(files: &Files, path: &str) -> Result<()> {
    for name in files.list(path)?.iter().filter(|name| *name != REQUIREMENTS) {
        let path = format!("{path}/{name}");
        match files.lstat(&path)? {
            Some(meta) if meta.is_dir() => files.remove_tree(&path)?,
            _ => files.remove(&path)?,
        }
    }
    files.remove_tree(path)
}

/// How the environment stands.
enum Stand {
    /// It is to be made, possibly after what is there is gone.
    Make { why: String, remove: bool },
    /// It works, and these are not whole; the first's reason.
    Install { names: BTreeSet<String>, why: String },
    /// All is there.
    Whole,
}

impl PythonEnvironment {
    /// What it holds.
    pub(crate) fn locked(&self) -> Result<Vec<Locked>> {
        locked(&self.requirements)
    }

    /// The directory that takes the index's place, if one does: a bundle's, where packages come from one, unless another is
    /// named.
    fn wheels<'a>(&'a self, host: &Host) -> Option<&'a str> {
        let own = Some(self.wheels.as_str()).filter(|wheels| !wheels.is_empty());
        own.or_else(|| host.bundle().map(|_| WHEELS))
    }

    fn at(&self, name: &str) -> String {
        format!("{}/{name}", self.path)
    }

    fn interpreter(&self) -> String {
        self.at("bin/python")
    }

    async fn stand(&self, host: &Host, locked: &[Locked]) -> Result<Stand> {
        let make = |why: String, remove| Ok(Stand::Make { why, remove });
        match host.files.lstat(&self.path)? {
            None => return make(format!("{} does not exist", self.path), false),
            Some(meta) if !meta.is_dir() => return Err(self.foreign("is no directory")),
            Some(_) if host.files.exists(self.at(REQUIREMENTS))? => {}
            Some(_) if host.files.list(&self.path)?.is_empty() => {
                return make(format!("{} is empty", self.path), false);
            }
            Some(_) => return Err(self.foreign("holds something that is not ours")),
        }
        if !host.files.exists(self.interpreter())? || !host.files.exists(self.at("pyvenv.cfg"))? {
            return make(format!("{} has no Python", self.path), true);
        }
        // Without the packages' own start-up files: a check runs nothing of theirs.
        let version = "import sys; print('%d.%d' % sys.version_info[:2])";
        let asked = host.exec.output(&Call::new(&self.interpreter()).args(["-I", "-S", "-c", version])).await;
        match asked {
            Ok(output) if output.ok() && output.text().trim() == self.python => {}
            Ok(output) if output.ok() => {
                return make(
                    format!("{} is Python {}, not {}", self.interpreter(), output.text().trim(), self.python),
                    true,
                );
            }
            _ => return make(format!("{} does not run", self.interpreter()), true),
        }
        let in_flight = host.files.read_text(self.at(IN_FLIGHT))?.unwrap_or_default();
        let site = self.at(&format!("lib/python{}/site-packages", self.python));
        let mut first = None;
        let mut names = BTreeSet::new();
        for (distribution, why) in distributions::not_whole(&host.files, &site, locked, &in_flight)? {
            first.get_or_insert(why);
            names.insert(distribution);
        }
        Ok(match first {
            Some(why) if names.len() == 1 => Stand::Install { names, why },
            Some(why) => Stand::Install { why: format!("{why}; {} more", names.len() - 1), names },
            None => Stand::Whole,
        })
    }

    fn foreign(&self, why: &str) -> Error {
        Error::new(Code::PathInUse, format!("{} {why}; it was left as it is", self.path))
            .with_hint("name another directory in [frameworks] path, or free this one")
    }

    /// Makes the environment, without packages.
    async fn make(&self, host: &Host, remove: bool) -> Result<()> {
        if remove {
            // Out of the way in one move, so that a killed run leaves it whole or gone.
            let room = host.files.beside(Path::new(&self.path))?;
            host.files.rename(&self.path, room.output())?;
        }
        // First, so that what follows is known as ours whatever happens.
        host.files.write(self.at(REQUIREMENTS), self.requirements.as_bytes(), 0o644)?;
        let call = Call::new("python3").args(["-I", "-m", "venv", &self.path]).limit(MAKE_LIMIT);
        let output = host.exec.output(&call).await?;
        if !output.ok() {
            return Err(Error::new(
                Code::Exec,
                format!("{} failed with status {}", call.line(), output.status),
            )
            .with_hint("install python3-venv, and see that the disk has room; then run again")
            .because(output.tail()));
        }
        Ok(())
    }

    /// Installs what is not whole, big wheels one by one, so that what has been downloaded is kept when the run is killed.
    async fn install(&self, host: &Host, locked: &[Locked], names: &BTreeSet<String>) -> Result<()> {
        let missing: Vec<_> = locked.iter().filter(|l| names.contains(&l.name)).collect();
        if let Some(bundle) = host.bundle().filter(|_| self.wheels.is_empty()) {
            let wanted: Vec<Locked> = missing.iter().map(|l| (*l).clone()).collect();
            bundle.refuse_without(&wanted, &self.path)?;
        }
        let bytes: u64 = missing.iter().filter_map(|l| l.bytes).sum();
        let free = host.files.free_bytes(&self.path)?;
        if free < bytes * UNPACKED {
            return Err(Error::new(
                Code::DiskFull,
                format!(
                    "{} has {} MB free, and the wheels need {} MB unpacked",
                    self.path,
                    free >> 20,
                    (bytes * UNPACKED) >> 20
                ),
            ));
        }
        // What an earlier run was at stays named until it is whole.
        let listed = names.iter().fold(String::new(), |text, name| text + name + "\n");
        host.files.write(self.at(IN_FLIGHT), listed.as_bytes(), 0o644)?;
        let site = self.at(&format!("lib/python{}/site-packages", self.python));
        distributions::forget(&host.files, &site, names)?;
        let mut done = 0;
        for batch in pip::batches(&missing) {
            let item = batch.first().map(|l| l.name.clone()).unwrap_or_default();
            host.progress(Progress {
                what: "installing Python packages".into(),
                item,
                done,
                total: (bytes > 0).then_some(bytes),
                unit: Unit::Bytes,
            });
            pip::install(host, self, &batch).await?;
            done += batch.iter().filter_map(|l| l.bytes).sum::<u64>();
        }
        host.files.remove_tree(self.at(TEMPORARY))?;
        host.sync(&[&self.path]).await?;
        host.files.write(self.at(REQUIREMENTS), self.requirements.as_bytes(), 0o644)?;
        host.files.remove(self.at(IN_FLIGHT))
    }
}

impl Converge for PythonEnvironment {
    async fn check(&self, host: &Host) -> Result<Check> {
        let locked = self.locked()?;
        Ok(match Box::pin(self.stand(host, &locked)).await? {
            Stand::Make { why, .. } | Stand::Install { why, .. } => Check::needed(why),
            Stand::Whole => Check::satisfied(format!(
                "{} has Python {} and {} locked packages, each file in its size",
                self.path,
                self.python,
                locked.len()
            )),
        })
    }

    async fn apply(&self, host: &Host) -> Result<Applied> {
        let locked = self.locked()?;
        if let Stand::Make { remove, .. } = Box::pin(self.stand(host, &locked)).await? {
            Box::pin(self.make(host, remove)).await?;
        }
        if !pip::works(host, self).await? {
            Box::pin(self.make(host, true)).await?;
        }
        match Box::pin(self.stand(host, &locked)).await? {
            Stand::Whole => {}
            Stand::Install { names, .. } => Box::pin(self.install(host, &locked, &names)).await?,
            Stand::Make { why, .. } => {
                return Err(Error::new(Code::Exec, format!("python3 made an environment, but {why}")).with_hint(
                    "python3 must be the distribution's own; remove what takes its place in /usr/local/bin, then run again",
                ));
            }
        }
        Ok(Applied::Done)
    }

    fn target(&self) -> Option<&str> {
        Some(&self.path)
    }

    fn describe(&self) -> String {
        format!("Python environment {}", self.path)
    }
}
