//! (GPU, operating system, wish) → one consistent stack, or a refusal with the reason and an alternative.

use serde::{Deserialize, Serialize};

use super::Catalog;
use crate::config::Config;
use crate::error::Result;
use crate::facts::Facts;

/// What there is to do on this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Choice {
    /// This stack is wanted.
    Install(Box<Stack>),
    /// Nothing is: the machine has no GPU, and `policy.on-no-gpu = "skip"`.
    Nothing {
        /// One sentence.
        why: String,
    },
}

/// What will be installed, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stack {
    /// The architectures of the GPUs, oldest first: a choice is kept while they stay the same.
    pub gpu_architectures: Vec<String>,
    /// Where packages come from.
    pub source: Source,
    /// The driver; `None` when the config says so.
    pub driver: Option<Driver>,
    /// Toolkits, the default one first; empty when the config says so.
    pub toolkits: Vec<Toolkit>,
    /// cuDNN from the repository; `None` when there is none, or when it comes as `.deb` files.
    pub cudnn: Option<Cudnn>,
    /// cuDNN as `.deb` files.
    pub cudnn_debs: Vec<Deb>,
    /// Whether an NVSwitch asks for fabric manager, and its packages.
    pub fabric_manager: Option<Vec<String>>,
    /// How many GPUs the machine must have, when that is known.
    pub expect_gpus: Option<u32>,
    /// One sentence per choice, for `plan` and the status file.
    pub reasons: Vec<String>,
}

/// Where packages come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// NVIDIA's repository, or a mirror of it.
    Nvidia(Repository),
    /// The distribution's own packages; the components that must be enabled for them (`contrib`, `non-free`, …).
    Distro {
        /// Components, possibly none.
        components: Vec<String>,
    },
}

/// An apt repository and what it takes to trust it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repository {
    /// Base URL with a trailing slash (flat repository).
    pub url: String,
    /// The one key: 40 hexadecimal digits, upper case.
    pub fingerprint: String,
    /// The key itself, ASCII-armoured.
    pub key: String,
    /// The `Label` of its Release file (used for pins).
    pub label: String,
    /// An index older than this (RFC 3339 date) is refused.
    pub date_floor: String,
    /// Shell-style patterns of package names that it may supply at all.
    pub may_supply: Vec<String>,
    /// Shell-style patterns that are pinned positive besides the closure of our packages.
    pub always_allow: Vec<String>,
    /// Components of the distribution that its packages depend on (`contrib` on Debian), often none.
    pub components: Vec<String>,
}

/// A driver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Driver {
    /// Branch, for example `580`.
    pub branch: String,
    /// Open or proprietary kernel modules.
    pub open: bool,
    /// Packages to ask apt for, and to hold.
    pub packages: Vec<String>,
    /// Packages of the distribution's kernel (headers for DKMS). They are not held: they must go with the kernel.
    pub kernel_packages: Vec<String>,
    /// Kernel modules to load, in order.
    pub modules: Vec<String>,
    /// What keeps apt on the branch, where the package names alone do not.
    pub pin: Option<VersionPin>,
}

/// A pin by version, for package names that a repository has in several branches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionPin {
    /// Shell-style patterns of package names.
    pub packages: Vec<String>,
    /// Pattern of versions: `580.*`.
    pub version: String,
}

/// A toolkit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Toolkit {
    /// `12.8`
    pub version: String,
    /// Packages to ask apt for.
    pub packages: Vec<String>,
    /// Its directory, for example `/usr/local/cuda-12.8`; `None` when its files lie in `/usr` itself.
    pub home: Option<String>,
}

/// cuDNN from the repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cudnn {
    /// Version wished for, or `auto` for the newest that fits.
    pub version: String,
    /// Packages to ask apt for, possibly as `name=version`.
    pub packages: Vec<String>,
}

/// A package file by URL.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deb {
    /// Where it is.
    pub url: String,
    /// 64 hexadecimal digits, lower case.
    pub sha256: String,
}

/// Chooses. `earlier` is what an earlier run on this image chose, kept where it still fits.
pub fn choose(catalog: &Catalog, facts: &Facts, config: &Config, earlier: Option<&Stack>) -> Result<Choice> {
    let _ = (catalog, facts, config, earlier);
    todo!("the catalog")
}
