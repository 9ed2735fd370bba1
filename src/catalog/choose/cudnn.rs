//! cuDNN: by package files, by its version, or the newest that fits toolkit, GPUs and place.

use super::place::Place;
use super::target::Target;
use super::{Context, Cudnn, Deb, Toolkit, impossible, nearest, the_nearest};
use crate::catalog::tables::CudnnSeries;
use crate::catalog::version::Version;
use crate::error::{Code, Error, Result};

/// What helps besides another setting.
const BY_FILES: &str = "give the package files by cudnn.deb";

/// The package files of `cudnn.deb`, their sums in lower case.
pub(super) fn debs(ctx: &Context) -> Result<Vec<Deb>> {
    let mut debs = Vec::new();
    for deb in &ctx.config.cudnn.deb {
        let sha256 = deb.sha256.to_ascii_lowercase();
        if sha256.is_empty() {
            let index = Some(super::deb_index::find(ctx, deb)?);
            debs.push(Deb { url: deb.url.clone(), sha256, index });
            continue;
        }
        if sha256.len() != 64 || !sha256.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(Error::new(Code::ConfigType, format!("cudnn.deb: {:?} is no SHA-256", deb.sha256))
                .with_hint("a SHA-256 is 64 hexadecimal digits; sha256sum prints it"));
        }
        debs.push(Deb { url: deb.url.clone(), sha256, index: None });
    }
    Ok(debs)
}

/// Chooses cuDNN from the repository, for the default toolkit.
pub(super) fn choose(
    ctx: &Context,
    target: &Target,
    place: Place,
    toolkits: &[Toolkit],
    reasons: &mut Vec<String>,
) -> Result<Option<Cudnn>> {
    let wish = ctx.config.cudnn.version.as_str();
    let wished = match wish {
        "none" => {
            reasons.push("No cuDNN is installed, as configured.".into());
            return Ok(None);
        }
        "auto" => None,
        text => Some(Version::parse(text).filter(|v| (2..=4).contains(&v.depth())).ok_or_else(|| {
            Error::new(Code::ConfigType, format!("cudnn.version = {text:?} is no version of cuDNN"))
                .with_hint("write \"auto\", \"none\", or a version such as \"9.8.0\"")
        })?),
    };
    let toolkit = toolkits.first().and_then(|t| Version::parse(&t.version));
    let (cuda, version) = match (toolkit, wished) {
        (None, None) => return Ok(None),
        (None, Some(version)) => {
            return Err(impossible(format!("cudnn.version = \"{version}\" has no toolkit to go with")));
        }
        (Some(cuda), version) => (cuda, version),
    };
    match (place, version) {
        (Place::Distro(row), None) => {
            reasons.push(format!(
                "No cuDNN is installed: {} has only packages that download it unverified; give it by cudnn.deb.",
                row.title
            ));
            Ok(None)
        }
        (Place::Distro(row), Some(version)) => {
            Err(impossible(format!("{} packages no cuDNN, so not cuDNN {version}", row.title))
                .with_hint(BY_FILES))
        }
        (Place::Nvidia(_), Some(version)) => exact(ctx, target, place, &cuda, &version, reasons).map(Some),
        (Place::Nvidia(_), None) => Ok(newest(ctx, target, place, &cuda, reasons)),
    }
}

fn major(cuda: &Version) -> Version {
    cuda.prefix(1)
}

/// Whether versions of a series go with CUDA, GPUs and repository; the error is the reason.
pub(super) fn check(
    ctx: &Context,
    target: &Target,
    place: Place,
    series: &CudnnSeries,
    cuda: &Version,
) -> Result<(), String> {
    let name = format!("cuDNN {}", series.last.as_ref().unwrap_or(&series.first));
    if !series.cuda.contains(&major(cuda)) {
        let majors: Vec<_> = series.cuda.iter().map(ToString::to_string).collect();
        return Err(format!("{name} goes with CUDA {}, not {cuda}", majors.join(" and ")));
    }
    let generation = |name: &String| ctx.catalog.gpus.architecture.iter().position(|a| a.name == *name);
    let first = series.first_architecture.as_ref().and_then(|a| Some((a, generation(a)?)));
    if let Some((architecture, first)) = first
        && let Some(gpu) = target.gpus.iter().find(|g| g.generation < first)
    {
        return Err(format!("{name} needs {architecture} or newer, and {} is older", gpu.title()));
    }
    let last = series.last_architecture.as_ref().and_then(|a| Some((a, generation(a)?)));
    if let Some((architecture, last)) = last
        && let Some(gpu) = target.gpus.iter().find(|g| g.generation > last)
    {
        return Err(format!("{name} knows GPUs up to {architecture}, and {} is newer", gpu.title()));
    }
    if let Place::Nvidia(n) = place
        && let Some(last) = n.row.cudnn_last.as_ref().filter(|last| **last < series.first)
    {
        return Err(format!("{} has cuDNN up to {last}, not {name}", place.title()));
    }
    if series.apt { Ok(()) } else { Err(format!("{name} is not in NVIDIA's CUDA repository")) }
}

/// Known versions of a series that were built for this CUDA, newest first. From CUDA 11 on a build serves its major version.
pub(super) fn versions<'a>(ctx: &Context<'a>, series: &CudnnSeries, cuda: &Version) -> Vec<&'a Version> {
    let built = ctx.catalog.cudnn.versions.iter().rev();
    let fitting = built.filter(|(v, cudas)| {
        let minor = v.prefix(2);
        let inside = minor >= series.first && series.last.as_ref().is_none_or(|last| minor <= *last);
        let goes_with = |built: &Version| match built.depth() {
            1 => built.major() == cuda.major(),
            _ if cuda.major() >= 11 => built.major() == cuda.major(),
            _ => *built == cuda.prefix(2),
        };
        inside && cudas.iter().any(goes_with)
    });
    fitting.map(|(v, _)| v).collect()
}

fn newest(
    ctx: &Context,
    target: &Target,
    place: Place,
    cuda: &Version,
    reasons: &mut Vec<String>,
) -> Option<Cudnn> {
    let all = &ctx.catalog.cudnn.series;
    let fits = |s: &&CudnnSeries| s.auto && check(ctx, target, place, s, cuda).is_ok();
    let Some(series) = all.iter().find(fits) else {
        reasons.push(format!("No cuDNN in {} goes with CUDA {cuda} and these GPUs.", place.title()));
        let older = all.iter().filter(|s| !s.auto && check(ctx, target, place, s, cuda).is_ok());
        if let Some(version) = older.flat_map(|s| versions(ctx, s, cuda)).next() {
            reasons.push(format!("cuDNN {version} may do, and is installed if cudnn.version asks for it."));
        }
        return None;
    };
    // A name that a newer series shares, or that serves several CUDA versions, needs the version with it.
    let shared = all.iter().take_while(|s| s.first != series.first);
    let shared = shared.filter(|s| s.cuda.contains(&major(cuda))).any(|s| s.packages == series.packages);
    if !shared && !series.version_suffix.contains("{major}") {
        reasons.push(format!(
            "cuDNN {} is the newest for CUDA {} in {}.",
            series.first.major(),
            major(cuda),
            place.title()
        ));
        return Some(Cudnn { version: "auto".into(), packages: packages(series, cuda, None) });
    }
    let version = *versions(ctx, series, cuda).first()?;
    reasons.push(format!("cuDNN {version} is the newest that goes with CUDA {cuda} and these GPUs."));
    Some(Cudnn { version: version.to_string(), packages: packages(series, cuda, Some(version)) })
}

fn exact(
    ctx: &Context,
    target: &Target,
    place: Place,
    cuda: &Version,
    wished: &Version,
    reasons: &mut Vec<String>,
) -> Result<Cudnn> {
    let known: Vec<&Version> = ctx.catalog.cudnn.versions.keys().collect();
    if !known.iter().any(|v| v.refines(wished)) {
        let near = nearest(known, wished);
        return Err(impossible(format!("the catalog knows no cuDNN {wished}; {}", the_nearest(&near)))
            .with_hint(BY_FILES));
    }
    let mut refused = None;
    for series in &ctx.catalog.cudnn.series {
        let Some(version) = versions(ctx, series, cuda).into_iter().find(|v| v.refines(wished)) else {
            continue;
        };
        match check(ctx, target, place, series, cuda) {
            Ok(()) => {
                reasons.push(format!("cuDNN {wished} is what the configuration asks for."));
                return Ok(Cudnn {
                    version: version.to_string(),
                    packages: packages(series, cuda, Some(version)),
                });
            }
            Err(why) => refused = Some(why),
        }
    }
    let why = refused.unwrap_or_else(|| {
        let built: Vec<_> = ctx.catalog.cudnn.versions.iter().filter(|(v, _)| v.refines(wished)).collect();
        let cudas: Vec<_> = built.iter().flat_map(|(_, c)| c.iter().map(ToString::to_string)).collect();
        format!("it was built for CUDA {}, not {cuda}", cudas.join(" and "))
    });
    Err(impossible(format!("cuDNN {wished} cannot be installed here: {why}")).with_hint(BY_FILES))
}

fn packages(series: &CudnnSeries, cuda: &Version, version: Option<&Version>) -> Vec<String> {
    let major = major(cuda).to_string();
    let names = series.packages.iter().map(|p| p.replace("{major}", &major));
    match version {
        None => names.collect(),
        Some(version) => {
            let suffix = series.version_suffix.replace("{major}", &major);
            names.map(|name| format!("{name}={version}{suffix}")).collect()
        }
    }
}
