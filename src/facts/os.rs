//! Operating system, architecture, kernel, and whether this is a container.

use serde::{Deserialize, Serialize};

use super::Fact;
use crate::error::Result;
use crate::host::Host;

/// Processor architecture in Debian's spelling.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Arch {
    /// `x86_64`
    Amd64,
    /// `aarch64`
    Arm64,
}

/// What runs here.
#[derive(Clone, Debug, Serialize)]
pub struct Os {
    /// `ID` of os-release: `ubuntu`, `debian`, …
    pub id: Fact<String>,
    /// `VERSION_ID` of os-release: `22.04`, `12`, …; empty on Debian's testing.
    pub version_id: Fact<String>,
    /// `VERSION_CODENAME` of os-release: `jammy`, `bookworm`, …
    pub codename: Fact<String>,
    /// dpkg's architecture.
    pub arch: Fact<Arch>,
    /// `uname -r`.
    pub kernel: Fact<String>,
    /// The kind of container this runs in (`docker`, `lxc`, …), if it is one.
    pub container: Option<Fact<String>>,
}

impl Os {
    /// The name NVIDIA's repositories use: `ubuntu2204`, `debian12`.
    pub fn distro(&self) -> String {
        format!("{}{}", self.id.value, self.version_id.value.replace('.', ""))
    }
}

/// Reads os-release, dpkg's architecture and the kernel's release.
pub fn gather(host: &Host) -> Result<Os> {
    let _ = host;
    let unset = || Fact::new(String::new(), "not implemented");
    Ok(Os {
        id: unset(),
        version_id: unset(),
        codename: unset(),
        arch: Fact::new(Arch::Amd64, "not implemented"),
        kernel: unset(),
        container: None,
    })
}
