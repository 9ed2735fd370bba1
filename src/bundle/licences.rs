//! What of a bundle is under a licence that somebody has to accept, and may not be passed on to everybody.

use std::path::Path;

use super::manifest::Licence;
use crate::error::{Code, Error, Result};
use crate::report::streams;

/// Asks for what must be accepted, before anything is kept. `paths` are those of the bundle's files.
pub(super) fn accepted<'a>(
    paths: impl Iterator<Item = &'a String>,
    accepted: &[String],
) -> Result<Vec<Licence>> {
    let files = paths.filter(|path| is_nvidias(path)).count();
    if files == 0 {
        return Ok(Vec::new());
    }
    let text = format!(
        "{files} files of this bundle are under NVIDIA's licences (driver, CUDA, cuDNN) or in a component that is not \
         free; whether you may pass them on to others is for those licences to say, and nobody here has verified it"
    );
    if !accepted.iter().any(|name| name == "nvidia") {
        return Err(Error::new(Code::LicenceNotAccepted, text));
    }
    streams::err(&text);
    Ok(vec![Licence { name: "nvidia".into(), files }])
}

/// Whether a package is under a licence of NVIDIA's, or of somebody else's that is not free. Wheels of NVIDIA's bring CUDA's
/// libraries; their names begin so.
fn is_nvidias(path: &str) -> bool {
    const NOT_FREE: [&str; 3] = ["/pool/non-free", "/pool/restricted/", "/pool/multiverse/"];
    let ends_with = |suffix: &str| Path::new(path).extension().is_some_and(|e| e == suffix);
    if ends_with("whl") {
        return path.starts_with("wheels/nvidia_") || path.starts_with("wheels/nvidia-");
    }
    ends_with("deb")
        && (path.starts_with("nvidia/")
            || path.starts_with("debs/")
            || NOT_FREE.iter().any(|part| path.contains(part)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn licences_are_by_where_a_package_comes_from() {
        for path in [
            "nvidia/debian12/x86_64/a.deb",
            "debs/0.deb",
            "distribution/0/pool/non-free/n/a.deb",
            "wheels/nvidia_cudnn_cu12-9.10.2.21-py3-none-manylinux_2_27_x86_64.whl",
        ] {
            assert!(is_nvidias(path), "{path}");
        }
        for path in [
            "distribution/0/pool/main/g/gcc.deb",
            "nvidia/debian12/x86_64/Packages",
            "wheels/keras-3.15.1-py3-none-any.whl",
        ] {
            assert!(!is_nvidias(path), "{path}");
        }
    }
}
