//! Which package names are NVIDIA's. Two lists, because two decisions hang on them; names are from NVIDIA's
//! repositories, Ubuntu's restricted and Debian's non-free components.

/// The driver's packages: another flavour or branch may replace these, so that only these may be removed.
pub const DRIVER_PACKAGES: &[&str] = &[
    "cuda-compat-*",
    "cuda-drivers*",
    "firmware-nvidia-gsp*",
    "libcuda1*",
    "libcudadebugger1*",
    "libnvcuvid1*",
    "libnvidia-*",
    "libnvoptix1*",
    "libxnvctrl*",
    "linux-modules-nvidia-*",
    "linux-objects-nvidia-*",
    "linux-signatures-nvidia-*",
    "nvidia-*",
    "xserver-xorg-video-nvidia*",
];

/// Toolkit and libraries, besides the driver.
const TOOLKIT_PACKAGES: &[&str] = &[
    "cuda-*",
    "cudnn*",
    "gds-tools*",
    "libaccinj64-*",
    "libcub-dev",
    "libcublas*",
    "libcudart*",
    "libcudla*",
    "libcudnn*",
    "libcufft*",
    "libcufile*",
    "libcuinj64-*",
    "libcupti*",
    "libcurand*",
    "libcusolver*",
    "libcusparse*",
    "libnccl*",
    "libnpp*",
    "libnvblas*",
    "libnvfatbin*",
    "libnvinfer*",
    "libnvjitlink*",
    "libnvjpeg*",
    "libnvonnxparsers*",
    "libnvparsers*",
    "libnvptxcompiler*",
    "libnvrtc*",
    "libnvsdm*",
    "libnvtoolsext*",
    "libnvvm*",
    "nsight-*",
    "nvlsm*",
    "tensorrt*",
];

/// Whether the package may be removed to make room for the wanted driver.
pub(super) fn may_be_removed(name: &str) -> bool {
    DRIVER_PACKAGES.iter().any(|p| matches(p, name))
}

/// Whether a change of the package's version would break the set that was chosen together. Kernel module
/// packages are left out: they must follow the kernel, or the next kernel comes without a module.
pub fn belongs_to_the_set(name: &str) -> bool {
    !name.starts_with("linux-") && DRIVER_PACKAGES.iter().chain(TOOLKIT_PACKAGES).any(|p| matches(p, name))
}

/// Shell-style pattern with `*` and `?`, as apt reads those of versions.
pub fn matches(pattern: &str, text: &str) -> bool {
    match (pattern.chars().next(), text.chars().next()) {
        (None, _) => text.is_empty(),
        (Some('*'), first) => {
            matches(&pattern[1..], text) || first.is_some_and(|c| matches(pattern, &text[c.len_utf8()..]))
        }
        (Some(p), Some(t)) if p == '?' || p == t => matches(&pattern[p.len_utf8()..], &text[t.len_utf8()..]),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_the_whole_name() {
        for (pattern, text, expected) in [
            ("nvidia-*", "nvidia-driver-580", true),
            ("nvidia-*", "nvidia-", true),
            ("nvidia-*", "xnvidia-a", false),
            ("12.8.*-1", "12.8.1-1", true),
            ("12.8.*-1", "12.8.1-2", false),
            ("*", "", true),
            ("*+cuda12.?", "2.32.3-1+cuda12.9", true),
            ("*+cuda12.?", "2.32.3-1+cuda13.2", false),
            ("a?", "a", false),
            ("é?*", "éü", true),
            ("a", "ab", false),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn look_alikes_are_not_nvidia_s() {
        for name in ["libcups2", "libcurl4", "libnvme1", "libc6", "cups", "linux-image-aws", "gcc"] {
            assert!(!belongs_to_the_set(name) && !may_be_removed(name), "{name}");
        }
        for name in ["cuda-nvcc-12-8", "libcublas-12-8", "libcuda1", "nvidia-open", "libcudnn9-cuda-12"] {
            assert!(belongs_to_the_set(name), "{name}");
        }
        assert!(!belongs_to_the_set("linux-modules-nvidia-580-server-aws"));
        assert!(
            may_be_removed("linux-modules-nvidia-580-server-aws") && !may_be_removed("cuda-toolkit-12-8")
        );
    }
}
