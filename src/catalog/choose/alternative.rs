//! What to change so that an impossible wish becomes a possible one. Every alternative has been tried.

use super::{Choice, Context, Stack, attempt};
use crate::config::Config;
use crate::config::schema::{Flavour, Modules, OneOrMany};
use crate::facts::Fact;

/// More would not be read.
const ENOUGH: usize = 2;

/// One line with up to two ways out, or `None`.
pub(super) fn find(ctx: Context) -> Option<String> {
    let mut ways = settings(ctx);
    if ways.is_empty() {
        ways = all_settings(ctx);
    }
    if ways.is_empty() {
        ways = other_systems(ctx);
    }
    ways.truncate(ENOUGH);
    (!ways.is_empty()).then(|| ways.join("; or "))
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
    let tried = CHANGES.iter().filter_map(|(text, change)| {
        let mut config = ctx.config.clone();
        change(&mut config);
        let stack = possible(ctx, &config)?;
        Some(format!("set {text}, which gives {}", summary(&stack)))
    });
    tried.collect()
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

/// Another release of an operating system.
fn other_systems(ctx: Context) -> Vec<String> {
    let mut names = Vec::new();
    for row in ctx.catalog.distros.distro.iter().rev() {
        let mut facts = ctx.facts.clone();
        let digits = row.name.find(|c: char| c.is_ascii_digit()).unwrap_or(row.name.len());
        let (id, number) = row.name.split_at(digits);
        facts.os.id = Fact::new(id.to_owned(), "alternative");
        facts.os.version_id = Fact::new(number.to_owned(), "alternative");
        let config = left_open(ctx.config, "nvidia");
        if possible(Context { facts: &facts, ..ctx }, &config).is_some() {
            names.push(row.title.as_str());
        }
    }
    (!names.is_empty()).then(|| format!("use {}", names.join(" or "))).into_iter().collect()
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
