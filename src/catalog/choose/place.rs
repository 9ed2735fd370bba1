//! Where packages come from: NVIDIA's repository for this distribution (or a mirror of it), or the distribution.

use super::{Context, Repository, Source};
use crate::catalog::Catalog;
use crate::catalog::data::Key;
use crate::catalog::tables::{DistroRow, Range, RepositoryRow};
use crate::catalog::version::Version;
use crate::error::{Code, Error, Result};
use crate::facts::os::Arch;
use crate::text::parse_url;

/// A source that has been found to exist for this machine.
#[derive(Clone, Copy)]
pub(super) enum Place<'a> {
    Nvidia(Nvidia<'a>),
    Distro(&'a DistroRow),
}

/// NVIDIA's repository for one distribution, with its key.
#[derive(Clone, Copy)]
pub(super) struct Nvidia<'a> {
    pub row: &'a RepositoryRow,
    pub key: &'a Key,
    pub directory: &'a str,
    pub toolkits: &'a Range,
    pub branches: &'a Range,
}

impl Place<'_> {
    /// For messages: `NVIDIA's repository for Debian 12`, `Debian 12`.
    pub(super) fn title(&self) -> String {
        match self {
            Place::Nvidia(n) => format!("NVIDIA's repository for {}", title(n.row)),
            Place::Distro(row) => row.title.clone(),
        }
    }
}

fn title(row: &RepositoryRow) -> &str {
    row.title.as_deref().unwrap_or(&row.distro)
}

/// The place that `source.packages` names, if it serves this distribution and processor.
pub(super) fn find<'a>(ctx: &Context<'a>) -> Result<Place<'a>> {
    match ctx.config.source.packages.as_str() {
        "distro" => distro(ctx),
        "nvidia" => nvidia(ctx),
        url => mirror(url).and_then(|()| nvidia(ctx)),
    }
}

/// The source as the plan needs it.
pub(super) fn source(ctx: &Context, place: Place) -> Source {
    match place {
        Place::Distro(row) => Source::Distro { components: row.components.clone() },
        Place::Nvidia(n) => {
            let all = &ctx.catalog.repositories;
            let base = match ctx.config.source.packages.as_str() {
                "nvidia" => all.base.as_str(),
                url => url.trim_end_matches('/'),
            };
            Source::Nvidia(Repository {
                url: format!("{base}/{}/{}/", n.row.distro, n.directory),
                fingerprint: n.key.fingerprint.clone(),
                key: n.key.armour.clone(),
                label: n.row.label.clone().unwrap_or_else(|| all.label.clone()),
                date_floor: n.row.date_floor.clone().unwrap_or_default(),
                may_supply: all.may_supply.clone(),
                always_allow: all.always_allow.clone(),
                components: n.row.components.clone().unwrap_or_default(),
            })
        }
    }
}

/// Whether `url` can be a mirror: a base to which `/ubuntu2204/x86_64/` can be appended.
fn mirror(url: &str) -> Result<()> {
    let wrong = |what: &str| {
        Error::new(Code::ConfigType, format!("source.packages = {url:?}: {what}")).with_hint(
            "write \"nvidia\", \"distro\", or the URL of a mirror of NVIDIA's compute/cuda/repos directory, such as \
             \"https://mirror.example/compute/cuda/repos\"",
        )
    };
    if !url.contains("://") {
        return Err(wrong("no such source"));
    }
    // Nothing here may print a password: the parse error does not quote the URL, and credentials are refused.
    let parsed = match parse_url(url) {
        Ok(parsed) if parsed.password().is_some() || !parsed.username().is_empty() => {
            return Err(Error::new(
                Code::ConfigType,
                "source.packages: a mirror's URL may not hold credentials",
            )
            .with_hint(
                "let the mirror admit the machine by its address, or use a presigned or private endpoint",
            ));
        }
        Ok(parsed) => parsed,
        Err(why) => return Err(wrong(&format!("this is no URL: {why}"))),
    };
    match parsed.scheme() {
        "http" | "https" if parsed.query().is_some() || parsed.fragment().is_some() => {
            Err(wrong("a mirror's URL has neither query nor fragment"))
        }
        "http" | "https" => Ok(()),
        other => Err(wrong(&format!("{other} is not supported, only http and https"))),
    }
}

fn distro<'a>(ctx: &Context<'a>) -> Result<Place<'a>> {
    let (name, rows) = (ctx.facts.os.distro(), &ctx.catalog.distros.distro);
    let row = rows.iter().find(|r| r.name == name).ok_or_else(|| unsupported_os(ctx))?;
    if row.architectures.contains(&ctx.facts.os.arch.value) {
        return Ok(Place::Distro(row));
    }
    Err(Error::new(
        Code::UnsupportedArch,
        format!("{} packages no CUDA for {}", row.title, arch_name(ctx.facts.os.arch.value)),
    ))
}

fn nvidia<'a>(ctx: &Context<'a>) -> Result<Place<'a>> {
    let (name, all) = (ctx.facts.os.distro(), &ctx.catalog.repositories);
    let row = all.rows.iter().find(|r| r.distro == name).ok_or_else(|| unsupported_os(ctx))?;
    let arch = ctx.facts.os.arch.value;
    let directories = row.directories.as_ref();
    let Some(directory) = directories.and_then(|d| d.get(arch.debian_name())) else {
        return Err(Error::new(
            Code::UnsupportedArch,
            format!("NVIDIA has no repository for {} on {}", title(row), arch_name(arch)),
        ));
    };
    let Some(key) = all.key_of(row) else {
        return Err(Error::new(
            Code::RepositoryKeyUnknown,
            format!("nobody here knows the key that signs NVIDIA's repository for {}", title(row)),
        )
        .with_hint("name the key in a repositories.toml and pass its directory by --catalog"));
    };
    match (&row.toolkits, &row.branches) {
        (Some(toolkits), Some(branches)) => {
            Ok(Place::Nvidia(Nvidia { row, key, directory, toolkits, branches }))
        }
        _ => Err(Error::new(Code::CatalogInvalid, format!("repositories.toml: {name} is incomplete"))),
    }
}

fn unsupported_os(ctx: &Context) -> Error {
    let os = &ctx.facts.os;
    let shown = format!("{} {}", os.id.value, os.version_id.value);
    let names: Vec<_> = ctx.catalog.distros.distro.iter().map(|d| d.title.as_str()).collect();
    Error::new(Code::UnsupportedOs, format!("{} is not supported", shown.trim()))
        .with_hint(format!("use {}", names.join(", ")))
}

fn arch_name(arch: Arch) -> &'static str {
    match arch {
        Arch::Amd64 => "x86_64 (amd64)",
        Arch::Arm64 => "arm64 (sbsa)",
    }
}

impl Catalog {
    /// The branches that `place` has packages of, newest first.
    pub(super) fn branches_at(&self, place: Place) -> Vec<Version> {
        let mut found: Vec<Version> = match place {
            Place::Nvidia(n) => {
                let known = self.drivers.branch.iter().map(|b| b.name.clone());
                known.filter(|b| n.branches.contains(b)).collect()
            }
            Place::Distro(row) => row.driver.iter().flat_map(|d| d.branches.keys().cloned()).collect(),
        };
        found.sort_by(|a, b| b.cmp(a));
        found
    }
}
