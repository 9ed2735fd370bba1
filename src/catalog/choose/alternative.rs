//! What to change so that an impossible wish becomes a possible one. Every alternative has been tried.

use super::{Choice, Context, Stack, attempt, nearest};
use crate::catalog::machine;
use crate::catalog::version::Version;
use crate::config::Config;
use crate::config::schema::{Flavour, Modules, OneOrMany};
use crate::facts::Fact;

/// More would not be read.
const ENOUGH: usize = 2;

/// Up to two ways out.
pub(super) fn find(ctx: Context) -> Vec<String> {
    let mut ways = settings(ctx);
    if ways.is_empty() {
        ways = all_settings(ctx);
    }
    if ways.is_empty() {
        ways = other_systems(ctx);
    }
    ways
}

type Change = (&'static str, fn(&mut Config));

const CHANGES: &[Change] = &[
    ("cuda.toolkit = \"auto\"", |c| c.cuda.toolkit = OneOrMany::One("auto".into())),
    ("driver.branch = \"auto\"", |c| c.driver.branch = "auto".into()),
    ("driver.flavour = \"auto\"", |c| c.driver.flavour = Flavour::Auto),
    ("driver.modules = \"auto\"", |c| c.driver.modules = Modules::Auto),
    ("cudnn.version = \"auto\"", |c| c.cudnn.version = "auto".into()),
    ("source.packages = \"nvidia\"", |c| c.source.packages = "nvidia".into()),
    ("source.packages = \"distro\"", |c| c.source.packages = "distro".into()),
];

/// One setting changed.
fn settings(ctx: Context) -> Vec<String> {
    let left_open = CHANGES.iter().map(|(text, change)| {
        let mut config = ctx.config.clone();
        change(&mut config);
        ((*text).to_owned(), config)
    });
    let tried = nearest_versions(ctx).into_iter().chain(left_open).filter_map(|(text, config)| {
        let stack = possible(ctx, &config)?;
        Some(format!("set {text}, which gives {}", summary(&stack)))
    });
    tried.take(ENOUGH).collect()
}

/// In place of a version that the catalog does not know, those next to it: of the same major version first.
fn nearest_versions(ctx: Context) -> Vec<(String, Config)> {
    let mut changed = Vec::new();
    let mut offer = |key: &str, wish: &str, known: Vec<&Version>, set: fn(&mut Config, String)| {
        let Some(wish) = Version::parse(wish) else { return };
        if known.iter().any(|v| v.refines(&wish)) {
            return;
        }
        let mut near = nearest(known, &wish);
        near.sort_by_key(|v| v.major() != wish.major());
        for version in near {
            let mut config = ctx.config.clone();
            set(&mut config, version.to_string());
            changed.push((format!("{key} = \"{version}\""), config));
        }
    };
    let catalog = ctx.catalog;
    if let OneOrMany::One(wish) = &ctx.config.cuda.toolkit {
        let known = catalog.toolkits.toolkit.iter().map(|t| &t.version).collect();
        offer("cuda.toolkit", wish, known, |c, v| c.cuda.toolkit = OneOrMany::One(v));
    }
    let branches = catalog.drivers.branch.iter().map(|b| &b.name).collect();
    let branch = ctx.config.driver.branch.split('.').next().unwrap_or_default();
    offer("driver.branch", branch, branches, |c, v| c.driver.branch = v);
    let cudnn = catalog.cudnn.versions.keys().collect();
    offer("cudnn.version", &ctx.config.cudnn.version, cudnn, |c, v| c.cudnn.version = v);
    changed.extend(toolkit_for_cudnn(ctx));
    changed
}

/// The newest toolkit of the last major version that the wished cuDNN was built for.
fn toolkit_for_cudnn(ctx: Context) -> Option<(String, Config)> {
    let wish = Version::parse(&ctx.config.cudnn.version)?;
    let built = ctx.catalog.cudnn.versions.iter().filter(|(v, _)| v.refines(&wish));
    let last = built.flat_map(|(_, cudas)| cudas).max()?;
    let toolkits = ctx.catalog.toolkits.toolkit.iter().map(|t| &t.version);
    let newest = toolkits.filter(|t| t.refines(last)).max()?;
    let mut config = ctx.config.clone();
    config.cuda.toolkit = OneOrMany::One(newest.to_string());
    Some((format!("cuda.toolkit = \"{newest}\""), config))
}

/// Everything left to the agent, from either source.
fn all_settings(ctx: Context) -> Vec<String> {
    let tried = ["nvidia", "distro"].iter().filter_map(|source| {
        let stack = possible(ctx, &left_open(ctx.config, source))?;
        Some(format!(
            "set source.packages = \"{source}\" and leave the versions to \"auto\", which gives {}",
            summary(&stack)
        ))
    });
    tried.collect()
}

/// Another distribution: with packages from where they are to come from now, or else from the other source.
fn other_systems(ctx: Context) -> Vec<String> {
    let now = ctx.config.source.packages.as_str();
    let other = if now == "distro" { "nvidia" } else { "distro" };
    let on = |source: &str| {
        let rows = ctx.catalog.distros.distro.iter().rev().filter(|row| {
            let mut facts = ctx.facts.clone();
            let (id, version) = machine::split(&row.name);
            facts.os.id = Fact::new(id, "alternative");
            facts.os.version_id = Fact::new(version, "alternative");
            let config = left_open(ctx.config, source);
            possible(Context { facts: &facts, ..ctx }, &config).is_some()
        });
        rows.map(|row| row.title.as_str()).collect::<Vec<_>>().join(" or ")
    };
    match on(now) {
        names if !names.is_empty() => vec![format!("use {names}")],
        _ => match on(other) {
            names if !names.is_empty() => vec![format!("use {names} with source.packages = \"{other}\"")],
            _ => Vec::new(),
        },
    }
}

fn left_open(config: &Config, source: &str) -> Config {
    let mut config = config.clone();
    for (_, change) in CHANGES {
        change(&mut config);
    }
    config.source.packages = source.into();
    config
}

fn possible(ctx: Context, config: &Config) -> Option<Box<Stack>> {
    match attempt(Context { config, ..ctx }, None) {
        Ok(Choice::Install(stack)) => Some(stack),
        _ => None,
    }
}

fn summary(stack: &Stack) -> String {
    let driver = stack.driver.as_ref().map(|d| format!("driver branch {}", d.branch));
    let toolkits = stack.toolkits.iter().map(|t| format!("CUDA {}", t.version));
    driver.into_iter().chain(toolkits).collect::<Vec<_>>().join(" with ")
}
