//! A choice with everything that was not chosen: each driver branch, toolkit and series of cuDNN, and why not.

use serde::Serialize;

use super::driver::{self, Wish};
use super::place::{self, Place};
use super::target::{self, Target};
use super::unverified::{of_driver_minimum, of_refusal};
use super::{Choice, Context, Outcome, Stack, Unverified, attempt, cudnn, loaded, toolkit, with_alternative};
use crate::catalog::Catalog;
use crate::catalog::tables::{Branch, BranchKind, CudnnSeries, ToolkitRow};
use crate::catalog::version::Version;
use crate::config::Config;
use crate::config::schema::OneOrMany;
use crate::error::{Code, Error, Result};
use crate::facts::Facts;

/// What became of one of the catalog's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It is part of the stack.
    Chosen,
    /// It could be, if the configuration asked for it.
    Possible,
    /// It cannot be.
    Refused,
}

impl State {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Chosen => "chosen",
            Self::Possible => "possible",
            Self::Refused => "refused",
        }
    }
}

/// A driver branch, a toolkit or a series of cuDNN.
#[derive(Clone, Debug, Serialize)]
pub struct Candidate {
    /// `580`, `12.8`, `9.0 to 9.6`.
    pub name: String,
    /// What became of it.
    pub state: State,
    /// Why, or what is to be known about it; may be empty for what was chosen.
    pub why: String,
    /// What this rests on that no source confirms.
    pub unverified: Vec<Unverified>,
}

/// Everything that there was to choose from, newest first.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Candidates {
    /// Driver branches.
    pub drivers: Vec<Candidate>,
    /// Toolkits.
    pub toolkits: Vec<Candidate>,
    /// Series of cuDNN, for the default toolkit.
    pub cudnn: Vec<Candidate>,
}

/// Chooses, and says of a refusal what it rests on that no source confirms. (A choice has that in itself.)
pub fn judge(catalog: &Catalog, facts: &Facts, config: &Config) -> (Result<Choice>, Vec<Unverified>) {
    let ctx = Context { catalog, facts, config };
    match attempt(ctx, None) {
        Ok(choice) => {
            let unverified = match &choice {
                Choice::Install(stack) => stack.unverified.clone(),
                Choice::Nothing { .. } => Vec::new(),
            };
            (Ok(choice), unverified)
        }
        Err(error) => {
            let unverified = of_refusal(&ctx, |ctx| attempt(*ctx, None).is_err());
            (Err(with_alternative(ctx, error)), unverified)
        }
    }
}

/// Every row of the catalog with what became of it; nothing where the machine itself is refused.
pub fn candidates(catalog: &Catalog, facts: &Facts, config: &Config, stack: Option<&Stack>) -> Candidates {
    let ctx = Context { catalog, facts, config };
    if let Err(error) = where_and_what(&ctx, |_, _, _| Ok(())) {
        tracing::debug!("{error}");
        return Candidates::default();
    }
    let mut drivers: Vec<_> = catalog.drivers.branch.iter().collect();
    drivers.sort_by(|a, b| b.name.cmp(&a.name));
    let mut toolkits: Vec<_> = catalog.toolkits.toolkit.iter().collect();
    toolkits.sort_by(|a, b| b.version.cmp(&a.version));
    let mut found = Candidates {
        drivers: drivers.into_iter().map(|row| of_branch(&ctx, row, stack)).collect(),
        toolkits: toolkits.into_iter().map(|row| of_toolkit(&ctx, row, stack)).collect(),
        cudnn: Vec::new(),
    };
    let listed = |version: &str| catalog.toolkits.toolkit.iter().any(|row| is_of(row, version));
    let own = stack.iter().flat_map(|s| &s.toolkits).filter(|t| !listed(&t.version));
    found.toolkits.extend(own.map(|toolkit| Candidate {
        name: toolkit.version.clone(),
        state: State::Chosen,
        why: "the distribution's own".into(),
        unverified: Vec::new(),
    }));
    let cuda = stack.and_then(|s| s.toolkits.first()).and_then(|t| Version::parse(&t.version));
    if let (Some(cuda), Some(stack)) = (cuda, stack) {
        found.cudnn = catalog.cudnn.series.iter().map(|row| of_cudnn(&ctx, row, &cuda, stack)).collect();
    }
    found
}

/// Asks `question` where there is something to choose for and to choose from.
fn where_and_what<T>(
    ctx: &Context,
    question: impl FnOnce(&Context, &Target, Place) -> Result<T>,
) -> Result<T> {
    match target::find(ctx.catalog, ctx.facts, ctx.config, &mut Vec::new())? {
        Outcome::Go(target) => question(ctx, &target, place::find(ctx)?),
        Outcome::Nothing(why) => Err(Error::new(Code::NoGpu, why)),
    }
}

fn refused(name: String, error: &Error, unverified: Vec<Unverified>) -> Candidate {
    Candidate { name, state: State::Refused, why: error.message().to_owned(), unverified }
}

/// The driver that comes of a configuration, and the toolkits with it.
fn with_branch(ctx: &Context, branch: &Version) -> Result<()> {
    where_and_what(ctx, |ctx, target, place| {
        let wish = Wish::Version(branch.clone());
        driver::choose(ctx, target, place, &wish, &mut Vec::new())?;
        let toolkits = toolkit::Wish::read(&ctx.config.cuda.toolkit)?;
        toolkit::choose(ctx, target, place, Some(branch), &toolkits, &mut Vec::new()).map(drop)
    })
}

fn of_branch(ctx: &Context, row: &Branch, stack: Option<&Stack>) -> Candidate {
    let name = row.name.to_string();
    let is_chosen = stack.and_then(|s| s.driver.as_ref()).is_some_and(|d| d.branch == name);
    let until = || row.until.as_ref().map(|until| format!("supported until {until}"));
    if is_chosen {
        let unverified = stack.map(|s| s.unverified.clone()).unwrap_or_default();
        let unverified = unverified.into_iter().filter(|u| BRANCH_KEYS.contains(&u.key.as_str())).collect();
        let why = until().unwrap_or_default();
        return Candidate { name, state: State::Chosen, why, unverified: of_life(row, unverified) };
    }
    if let Err(error) = with_branch(ctx, &row.name) {
        return refused(name, &error, of_refusal(ctx, |ctx| with_branch(ctx, &row.name).is_err()));
    }
    let kind = (row.kind == BranchKind::Feature).then(|| "a feature branch, never chosen by itself".into());
    let why = kind.into_iter().chain(until()).collect::<Vec<_>>().join(", ");
    let mut config = ctx.config.clone();
    config.driver.branch.clone_from(&name);
    let unverified = of_life(row, of_wish(ctx, &config, &BRANCH_KEYS));
    Candidate { name, state: State::Possible, why, unverified }
}

/// What of the branch itself is not confirmed.
fn of_life(row: &Branch, of: Vec<Unverified>) -> Vec<Unverified> {
    let mut all = of;
    if !row.unverified.is_empty() {
        let what = format!("until when NVIDIA supports branch {}, or that it exists", row.name);
        all.push(Unverified::new("driver.branch", what));
    }
    all
}

const BRANCH_KEYS: [&str; 3] = ["repository.branches", "driver.packages", "gpu.limits"];
const TOOLKIT_KEYS: [&str; 3] = ["repository.toolkits", "toolkit.driver", "gpu.limits"];

/// What another wish would rest on, as far as it is about the row in question.
fn of_wish(ctx: &Context, config: &Config, keys: &[&str]) -> Vec<Unverified> {
    match attempt(Context { config, ..*ctx }, None) {
        Ok(Choice::Install(stack)) => {
            stack.unverified.into_iter().filter(|u| keys.contains(&u.key.as_str())).collect()
        }
        _ => Vec::new(),
    }
}

/// The driver that the toolkit would meet: the configured or chosen one, else the loaded one.
fn driver_for(ctx: &Context, target: &Target, place: Place) -> Result<Option<Version>> {
    let wish = Wish::read(&ctx.config.driver.branch)?;
    let chosen = driver::choose(ctx, target, place, &wish, &mut Vec::new())?;
    Ok(chosen.map(|d| d.version).or_else(|| loaded(ctx.facts)))
}

fn with_toolkit(ctx: &Context, version: &Version) -> Result<(toolkit::Fit, Option<Version>)> {
    where_and_what(ctx, |ctx, target, place| {
        // Where no driver fits at all, the toolkit is judged without one.
        let driver = driver_for(ctx, target, place).unwrap_or_default();
        Ok((toolkit::check(ctx, target, place, driver.as_ref(), version)?, driver))
    })
}

/// Whether a toolkit's version, which may name a release, is of this row.
fn is_of(row: &ToolkitRow, version: &str) -> bool {
    Version::parse(version).is_some_and(|v| v.prefix(2) == row.version)
}

fn of_toolkit(ctx: &Context, row: &ToolkitRow, stack: Option<&Stack>) -> Candidate {
    let name = row.version.to_string();
    if let Some(stack) = stack
        && stack.toolkits.iter().any(|t| is_of(row, &t.version))
    {
        let all = stack.unverified.iter().filter(|u| TOOLKIT_KEYS.contains(&u.key.as_str()));
        let all = all.filter(|u| u.key == "repository.toolkits" || u.what.contains(&name));
        let unverified = all.cloned().collect();
        return Candidate { name, state: State::Chosen, why: String::new(), unverified };
    }
    match with_toolkit(ctx, &row.version) {
        Err(error) => refused(name, &error, of_refusal(ctx, |ctx| with_toolkit(ctx, &row.version).is_err())),
        Ok((fit, driver)) => {
            let why = match (fit, &driver) {
                (toolkit::Fit::Compatible, Some(d)) => {
                    format!("by minor-version compatibility with driver {d}, which does not compile its PTX")
                }
                _ => String::new(),
            };
            let mut config = ctx.config.clone();
            config.cuda.toolkit = OneOrMany::One(name.clone());
            let mut unverified = of_wish(ctx, &config, &TOOLKIT_KEYS);
            if unverified.is_empty() {
                of_driver_minimum(ctx, &row.version, driver.as_ref(), &mut unverified);
            }
            Candidate { name, state: State::Possible, why, unverified }
        }
    }
}

fn with_cudnn(ctx: &Context, series: &Version, cuda: &Version) -> Result<Version> {
    where_and_what(ctx, |ctx, target, place| {
        if let Place::Distro(row) = place {
            return Err(super::impossible(format!("{} packages no cuDNN", row.title)));
        }
        // Looked up again: the catalog may be another one.
        let row = ctx.catalog.cudnn.series.iter().find(|s| s.first == *series);
        let row = row.ok_or_else(|| super::impossible(format!("there is no cuDNN {series}")))?;
        cudnn::check(ctx, target, place, row, cuda).map_err(super::impossible)?;
        let newest = cudnn::versions(ctx, row, cuda).first().map(|v| (*v).clone());
        newest.ok_or_else(|| super::impossible(format!("no version of it was built for CUDA {cuda}")))
    })
}

fn of_cudnn(ctx: &Context, row: &CudnnSeries, cuda: &Version, stack: &Stack) -> Candidate {
    let name = match &row.last {
        None => format!("{} and newer", row.first),
        Some(last) => format!("{} to {last}", row.first),
    };
    let inside =
        |v: &Version| v.prefix(2) >= row.first && row.last.as_ref().is_none_or(|last| v.prefix(2) <= *last);
    match with_cudnn(ctx, &row.first, cuda) {
        Err(error) => {
            refused(name, &error, of_refusal(ctx, |ctx| with_cudnn(ctx, &row.first, cuda).is_err()))
        }
        Ok(newest) => {
            let is_it = |version: &str| {
                Version::parse(version).map_or(inside(&newest) && row.last.is_none(), |v| inside(&v))
            };
            let state = match &stack.cudnn {
                Some(cudnn) if is_it(&cudnn.version) => State::Chosen,
                _ => State::Possible,
            };
            let unverified =
                stack.unverified.iter().filter(|u| u.key == "repository.cudnn").cloned().collect();
            let only_asked = if row.auto { "" } else { ", installed only if its version is asked for" };
            let why = format!("{newest} is the newest known for CUDA {cuda}{only_asked}");
            Candidate { name, state, why, unverified }
        }
    }
}
