//! Taking packages away, for `uninstall`. apt's own simulation says what would go with them.

use super::{Apt, call, failure, judge_removal};
use crate::error::{Code, Error, Result};
use crate::host::exec::Call;

/// What a removal would take away besides what it was asked for is never taken.
const NO_AUTOREMOVE: [&str; 2] = ["-o", "APT::Get::AutomaticRemove=0"];

impl Apt<'_> {
    /// The names of the packages that would go if these (`name`, or `name:arch`) were removed.
    pub(crate) async fn would_remove(&self, ids: &[String]) -> Result<Vec<String>> {
        let call = removal("remove", ids, call::SIMULATE_LIMIT).args(["--simulate"]);
        let output = self.locked(&call).await?;
        if !output.ok() {
            return Err(failure::explain("see what would be removed", &output));
        }
        let text = output.text();
        let removed =
            text.lines().filter_map(|l| l.strip_prefix("Remv ").or_else(|| l.strip_prefix("Purg ")));
        let mut names: Vec<_> =
            removed.filter_map(|l| l.split([' ', ':']).next()).map(str::to_owned).collect();
        names.dedup();
        Ok(names)
    }

    /// Removes them, configuration files excepted. They must have been asked for with [`Apt::would_remove`].
    pub(crate) async fn remove(&self, ids: &[String]) -> Result<()> {
        let output = self.installing(&removal("remove", ids, call::INSTALL_LIMIT), None).await?;
        judge_removal("remove packages", &output)
    }

    /// Removes the configuration files of packages that are removed already.
    pub(crate) async fn purge(&self, ids: &[String]) -> Result<()> {
        // Not by apt: it would plan with every package, and these are none of anybody's dependencies any more.
        let call = call::program("dpkg", call::INSTALL_LIMIT).args(["--purge"]).args(ids.iter().cloned());
        let output = self.installing(&call, None).await?;
        judge_removal("purge packages", &output)
    }

    /// Takes holds back.
    pub(crate) async fn unhold(&self, packages: &[String]) -> Result<()> {
        self.mark("unhold", "take holds back", packages).await
    }

    /// The packages (names, or `name:arch` of a foreign architecture) that somebody has asked for.
    pub(crate) async fn manual(&self) -> Result<Vec<String>> {
        let call = call::program("apt-mark", call::SIMULATE_LIMIT).args(["showmanual"]);
        let output = self.locked(&call).await?;
        if !output.ok() {
            return Err(Error::new(Code::AptFailed, "apt-mark showmanual failed").because(output.tail()));
        }
        Ok(output.text().lines().map(|l| l.trim().to_owned()).collect())
    }
}

fn removal(verb: &str, ids: &[String], limit: std::time::Duration) -> Call {
    call::apt_get(limit)
        .args(NO_AUTOREMOVE)
        .args([verb, "--allow-change-held-packages"])
        .args(ids.iter().cloned())
}
