//! The facts of a machine that is not here, as far as a choice of packages needs them.

use std::fs;

use super::apart::Distribution;
use crate::catalog::machine;
use crate::config::Config;
use crate::config::schema::OnNoGpu;
use crate::error::{Code, Error, Result};
use crate::facts::os::Arch;
use crate::facts::{Fact, Facts};

const SOURCE: &str = "the command line";

/// What the command line says about it.
#[derive(Clone, Debug, Default)]
pub struct Target {
    /// EC2 instance types.
    pub instance_types: Vec<String>,
    /// `debian12`, `ubuntu22.04`, …
    pub os: Option<String>,
    /// `amd64` or `arm64`.
    pub arch: Option<String>,
    /// `uname -r`.
    pub kernel: Option<String>,
}

impl Target {
    /// Whether it is this machine.
    pub fn is_here(&self) -> bool {
        self.instance_types.is_empty() && self.os.is_none() && self.arch.is_none() && self.kernel.is_none()
    }

    /// Packages are chosen for the named instance types.
    pub fn tell(&self, config: &mut Config) {
        if !self.instance_types.is_empty() {
            config.policy.on_no_gpu = OnNoGpu::Install;
            config.policy.bake_for.clone_from(&self.instance_types);
        }
    }

    /// Its facts; what the command line leaves out is as here. `arch` is what its instance types have.
    pub fn facts(&self, here: &Facts, arch: Option<Arch>) -> Result<Facts> {
        let named = self.os.as_deref().map(Distribution::named).transpose()?;
        let distro = named.map_or_else(|| here.os.distro(), Distribution::distro);
        let arch = match &self.arch {
            Some(name) => Some(Arch::parse(name).ok_or_else(|| {
                Error::new(Code::Usage, format!("--arch {name} is neither amd64 nor arm64"))
            })?),
            None => arch,
        };
        let mut facts = machine::facts(&distro, arch.unwrap_or(here.os.arch.value));
        facts.os.codename = match named {
            Some(distribution) => Fact::new(distribution.codename.to_owned(), SOURCE),
            None => here.os.codename.clone(),
        };
        if let Some(release) = &self.kernel {
            facts.os.kernel = Fact::new(release.clone(), SOURCE);
        }
        Ok(facts)
    }
}

/// Reads a file of whoever calls.
pub(super) fn file(path: &std::path::Path, flag: &str) -> Result<Vec<u8>> {
    fs::read(path).map_err(|e| {
        let e = Error::io("read", path, e);
        Error::new(Code::Usage, format!("{flag} {} cannot be read", path.display())).because(e)
    })
}
