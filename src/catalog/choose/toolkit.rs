//! Toolkits: the ones wished for, each checked against GPUs, place and driver, or the newest that fits them all.

use super::place::Place;
use super::target::Target;
use super::{Context, Toolkit, impossible, nearest, the_nearest};
use crate::catalog::tables::ToolkitRow;
use crate::catalog::version::Version;
use crate::config::schema::OneOrMany;
use crate::error::{Code, Error, Result};

/// What the config says.
#[derive(Clone)]
pub(super) enum Wish {
    None,
    Auto,
    Versions(Vec<Version>),
}

impl Wish {
    /// Reads `cuda.toolkit`.
    pub(super) fn read(wish: &OneOrMany) -> Result<Self> {
        let texts = match wish {
            OneOrMany::One(text) if text == "none" => return Ok(Self::None),
            OneOrMany::One(text) if text == "auto" => return Ok(Self::Auto),
            OneOrMany::One(text) => std::slice::from_ref(text),
            OneOrMany::Many(texts) => texts,
        };
        let mut versions: Vec<Version> = Vec::new();
        for text in texts {
            let version = Version::parse(text).filter(|v| (2..=3).contains(&v.depth())).ok_or_else(|| {
                Error::new(Code::ConfigType, format!("cuda.toolkit: {text:?} is no toolkit's version"))
                    .with_hint("write \"auto\", \"none\", a version such as \"12.8\", or a list of versions")
            })?;
            if !versions.contains(&version) {
                versions.push(version);
            }
        }
        if versions.is_empty() {
            return Err(Error::new(Code::ConfigType, "cuda.toolkit is an empty list")
                .with_hint("write \"none\" for no toolkit"));
        }
        Ok(Self::Versions(versions))
    }
}

/// How a toolkit gets on with the driver.
pub(super) enum Fit {
    /// The driver is at least the one that the toolkit came with.
    Native,
    /// Only by minor-version compatibility.
    Compatible,
}

/// Chooses for one wish; `driver` is a branch, an exact version, or nothing known.
pub(super) fn choose(
    ctx: &Context,
    target: &Target,
    place: Place,
    driver: Option<&Version>,
    wish: &Wish,
    reasons: &mut Vec<String>,
) -> Result<Vec<Toolkit>> {
    match wish {
        Wish::None => {
            reasons.push("No toolkit is installed, as configured.".into());
            Ok(Vec::new())
        }
        Wish::Versions(versions) => {
            let mut chosen = Vec::new();
            for version in versions {
                let fit = check(ctx, target, place, driver, version)?;
                reasons.push(format!("CUDA {version} is what the configuration asks for."));
                note(&fit, version, driver, reasons);
                chosen.push(toolkit(ctx, place, version));
            }
            Ok(chosen)
        }
        Wish::Auto => newest(ctx, target, place, driver, reasons).map(|t| vec![t]),
    }
}

fn newest(
    ctx: &Context,
    target: &Target,
    place: Place,
    driver: Option<&Version>,
    reasons: &mut Vec<String>,
) -> Result<Toolkit> {
    if let Place::Distro(row) = place {
        let fit = check(ctx, target, place, driver, &row.toolkit)?;
        reasons.push(format!("CUDA {} is the one that {} packages.", row.toolkit, row.title));
        note(&fit, &row.toolkit, driver, reasons);
        return Ok(toolkit(ctx, place, &row.toolkit));
    }
    let mut known: Vec<&Version> = ctx.catalog.toolkits.toolkit.iter().map(|t| &t.version).collect();
    known.sort_by(|a, b| b.cmp(a));
    let fitting: Vec<_> =
        known.iter().filter_map(|v| Some((*v, check(ctx, target, place, driver, v).ok()?))).collect();
    let native = fitting.iter().find(|(_, fit)| matches!(fit, Fit::Native));
    if let Some((version, fit)) = native.or(fitting.first()) {
        let at = place.title();
        reasons.push(match driver {
            Some(d) => format!("CUDA {version} is the newest that fits the GPUs, {at}, and driver {d}."),
            None => format!("CUDA {version} is the newest that fits the GPUs and {at}."),
        });
        note(fit, version, driver, reasons);
        return Ok(toolkit(ctx, place, version));
    }
    Err(nothing_fits(target, place, driver))
}

fn note(fit: &Fit, version: &Version, driver: Option<&Version>, reasons: &mut Vec<String>) {
    if let (Fit::Compatible, Some(driver)) = (fit, driver) {
        reasons.push(format!(
            "CUDA {version} came with a newer driver than {driver}: its programs run by minor-version compatibility, \
             but PTX is not compiled."
        ));
    }
}

/// Whether a toolkit exists, and fits GPUs, place and driver.
pub(super) fn check(
    ctx: &Context,
    target: &Target,
    place: Place,
    driver: Option<&Version>,
    version: &Version,
) -> Result<Fit> {
    let minor = version.prefix(2);
    let row = ctx.catalog.toolkits.toolkit.iter().find(|t| t.version == minor);
    check_exists(ctx, place, version, row)?;
    check_gpus(target, &minor)?;
    check_place(place, version)?;
    match (row, driver) {
        (Some(row), Some(driver)) => check_driver(ctx, row, version, driver),
        // What is too old for the table runs on every driver in the catalog.
        _ => Ok(Fit::Native),
    }
}

fn check_exists(ctx: &Context, place: Place, version: &Version, row: Option<&ToolkitRow>) -> Result<()> {
    let Some(row) = row else {
        let own = matches!(place, Place::Distro(d) if d.toolkit == *version);
        return if own { Ok(()) } else { Err(unknown(ctx, version)) };
    };
    if version.depth() > 2 && !row.releases.contains_key(version) {
        let known: Vec<_> = row.releases.keys().map(ToString::to_string).collect();
        return Err(impossible(format!(
            "CUDA {version} is not known; CUDA {} has {}",
            row.version,
            known.join(", ")
        )));
    }
    let arch = ctx.facts.os.arch.value;
    if row.architectures.as_ref().is_some_and(|only| !only.contains(&arch)) {
        return Err(impossible(format!(
            "CUDA {} does not exist for this processor architecture",
            row.version
        )));
    }
    Ok(())
}

fn unknown(ctx: &Context, version: &Version) -> Error {
    let near = nearest(ctx.catalog.toolkits.toolkit.iter().map(|t| &t.version), version);
    impossible(format!("CUDA {version} does not exist in the catalog; {}", the_nearest(&near)))
}

fn check_gpus(target: &Target, version: &Version) -> Result<()> {
    if let Some((gpu, first)) = target.first_toolkit().filter(|(_, first)| *first > version) {
        return Err(impossible(format!(
            "CUDA {version} does not know {}; {first} is the first that does",
            gpu.title()
        )));
    }
    if let Some((gpu, last)) = target.last_toolkit().filter(|(_, last)| *last < version) {
        return Err(impossible(format!(
            "CUDA {version} has dropped {}; {last} is the last that supports it",
            gpu.title()
        )));
    }
    Ok(())
}

fn check_place(place: Place, version: &Version) -> Result<()> {
    let minor = version.prefix(2);
    match place {
        Place::Nvidia(n) if n.toolkits.contains(&minor) => Ok(()),
        Place::Nvidia(n) => Err(impossible(format!(
            "{} has CUDA {} to {}, not {minor}",
            place.title(),
            n.toolkits.first,
            n.toolkits.last
        ))),
        Place::Distro(row) if row.toolkit == *version => Ok(()),
        Place::Distro(row) => {
            Err(impossible(format!("{} packages CUDA {} only, not {version}", row.title, row.toolkit)))
        }
    }
}

fn check_driver(ctx: &Context, row: &ToolkitRow, version: &Version, driver: &Version) -> Result<Fit> {
    let newest = row.releases.values().next_back();
    let Some(needed) = row.releases.get(version).or(newest) else { return Ok(Fit::Native) };
    // Of a branch, apt installs the newest version: the branch alone is compared.
    let reaches = |needed: &Version| *driver >= needed.prefix(driver.depth());
    if reaches(needed) {
        return Ok(Fit::Native);
    }
    match ctx.catalog.toolkits.minor_compatibility.get(&version.major().to_string()) {
        Some(least) if reaches(least) => Ok(Fit::Compatible),
        least => Err(impossible(format!(
            "CUDA {version} needs driver {} or newer, not {driver}",
            least.unwrap_or(needed)
        ))),
    }
}

fn nothing_fits(target: &Target, place: Place, driver: Option<&Version>) -> Error {
    let mut limits = match (target.first_toolkit(), target.last_toolkit()) {
        (Some((gpu, first)), Some((same, last))) if gpu == same => {
            vec![format!("{} needs CUDA {first} to {last}", gpu.title())]
        }
        (first, last) => {
            let first = first.map(|(gpu, first)| format!("{} needs CUDA {first} or newer", gpu.title()));
            let last = last.map(|(gpu, last)| format!("{} needs CUDA {last} or older", gpu.title()));
            first.into_iter().chain(last).collect()
        }
    };
    if let Place::Nvidia(n) = place {
        limits.push(format!("{} has {} to {}", place.title(), n.toolkits.first, n.toolkits.last));
    }
    if let Some(driver) = driver {
        limits.push(format!("the driver is {driver}"));
    }
    impossible(format!("no CUDA toolkit fits: {}", limits.join(", ")))
}

fn toolkit(ctx: &Context, place: Place, version: &Version) -> Toolkit {
    let minor = version.prefix(2);
    let fill =
        |pattern: &str| pattern.replace("{dashed}", &minor.dashed()).replace("{version}", &minor.to_string());
    match place {
        Place::Distro(row) => {
            Toolkit { version: version.to_string(), packages: row.toolkit_packages.clone(), home: None }
        }
        Place::Nvidia(_) => {
            let name = fill(&ctx.catalog.toolkits.package);
            let package = if version.depth() > 2 { format!("{name}={version}-*") } else { name };
            let home = Some(fill(&ctx.catalog.toolkits.home));
            Toolkit { version: version.to_string(), packages: vec![package], home }
        }
    }
}
