//! The facts of a machine that is not here, as far as a choice of packages needs them.

use std::fs;

use super::apart::Distribution;
use crate::config::Config;
use crate::config::schema::OnNoGpu;
use crate::error::{Code, Error, Result};
use crate::facts::disk::Disk;
use crate::facts::gpu::GpuFacts;
use crate::facts::identity::Identity;
use crate::facts::os::{Arch, Os};
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
        let fact = |text: &str| Fact::new(text.to_owned(), SOURCE);
        let mut os = Os { container: None, secure_boot: Fact::new(false, SOURCE), ..here.os.clone() };
        if let Some(name) = &self.os {
            let distribution = Distribution::named(name)?;
            os.id = fact(distribution.id);
            os.version_id = fact(distribution.version);
            os.codename = fact(distribution.codename);
        }
        let arch = match &self.arch {
            Some(name) => Some(Arch::parse(name).ok_or_else(|| {
                Error::new(Code::Usage, format!("--arch {name} is neither amd64 nor arm64"))
            })?),
            None => arch,
        };
        os.arch = Fact::new(arch.unwrap_or(os.arch.value), SOURCE);
        os.kernel = match &self.kernel {
            Some(release) => fact(release),
            // EC2's images have these flavours; the version is nobody's.
            None if os.id.value == "debian" => fact(&format!("0-cloud-{}", os.arch.value.debian_name())),
            None => fact("0-aws"),
        };
        let room = || Fact::new(u64::MAX, SOURCE);
        Ok(Facts {
            identity: Identity {
                on_ec2: Fact::new(false, SOURCE),
                instance: None,
                user_data: None,
                boot_id: here.identity.boot_id.clone(),
            },
            os,
            gpu: GpuFacts::default(),
            disk: Disk { usr_free: room(), var_free: room(), instance_store: Fact::new(Vec::new(), SOURCE) },
        })
    }
}

/// Reads a file of whoever calls.
pub(super) fn file(path: &std::path::Path, flag: &str) -> Result<Vec<u8>> {
    fs::read(path).map_err(|e| {
        let e = Error::io("read", path, e);
        Error::new(Code::Usage, format!("{flag} {} cannot be read", path.display())).because(e)
    })
}
