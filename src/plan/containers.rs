//! What the plan says of containers: where NVIDIA's toolkit comes from, and its repository's key.

use crate::config::Config;
use crate::facts::Facts;

/// The toolkit's repository: flat, one directory per architecture, and the same for every distribution.
/// <https://nvidia.github.io/libnvidia-container/stable/deb/nvidia-container-toolkit.list>
const REPOSITORY: &str = "https://nvidia.github.io/libnvidia-container/stable/deb";
/// Its key, C95B321B61E88C1809C4F759DDCAE044F796ECB0, as NVIDIA/nvidia-docker carries it in its `gpgkey`. It verifies the
/// repository's `InRelease` of November 2024.
pub(super) const KEY: &str = include_str!("../../steps/catalog/keys/ddcae044.asc");

/// Whether any runtime is to get the GPUs.
pub(super) fn wanted(config: &Config) -> bool {
    !config.containers.runtime.is_empty()
}

/// The address of the toolkit's repository for this machine; `None` where no toolkit is wanted.
pub(super) fn repository(facts: &Facts, config: &Config) -> Option<String> {
    let base = match config.containers.toolkit.as_str() {
        "none" => return None,
        "nvidia" => REPOSITORY,
        mirror => mirror.trim_end_matches('/'),
    };
    wanted(config).then(|| format!("{base}/{}/", facts.os.arch.value.debian_name()))
}
