//! (GPU, operating system, wish) → one consistent stack, or a refusal with the reason and an alternative.

use serde::{Deserialize, Serialize};

use super::Catalog;
use super::version::Version;
use crate::config::Config;
use crate::config::schema::ExpectGpus;
use crate::error::{Code, Error, Result};
use crate::facts::Facts;

mod alternative;
mod cudnn;
mod deb_index;
mod driver;
pub mod explain;
mod place;
mod target;
mod toolkit;
mod unverified;

pub use unverified::{Unverified, words as unverified_words};

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
    /// The most EFA devices that the machine can have, by its instance type or, where an image is made, by those that it is for;
    /// `None` where the catalog knows none of them.
    #[serde(default)]
    pub most_efa: Option<u32>,
    /// Memory of each GPU of the machine's instance type by EC2's figures, MiB.
    #[serde(default)]
    pub gpu_memory: Option<u32>,
    /// One sentence per choice, for `plan` and the status file.
    pub reasons: Vec<String>,
    /// What this rests on that no source confirms; also the last of the reasons.
    #[serde(default)]
    pub unverified: Vec<Unverified>,
}

impl Stack {
    /// Version of cuDNN: `auto` where repository or package files decide, `None` where there is none.
    pub fn cudnn_version(&self) -> Option<&str> {
        let files = (!self.cudnn_debs.is_empty()).then_some("auto");
        self.cudnn.as_ref().map(|c| c.version.as_str()).or(files)
    }

    /// Directories of the toolkits' libraries, the default toolkit's first; none where they lie in `/usr`.
    pub fn library_dirs(&self) -> Vec<String> {
        self.toolkits.iter().filter_map(|t| t.home.as_ref()).map(|home| format!("{home}/lib64")).collect()
    }
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
    /// Packages that would keep another driver in use, where several can be installed beside each other.
    #[serde(default)]
    pub without: Vec<String>,
    /// Packages of the distribution's kernel (headers for DKMS). They are not held: they must go with the kernel.
    pub kernel_packages: Vec<String>,
    /// The same packages for exactly the running kernel, which need not be the newest.
    #[serde(default)]
    pub running_kernel_packages: Vec<String>,
    /// The newest kernel itself, for when the running kernel's packages are not offered any more.
    #[serde(default)]
    pub kernel_image: Vec<String>,
    /// Kernel modules to load, in order.
    pub modules: Vec<String>,
    /// `name=value` of the parameters that the module is loaded with, by the names in `/proc/driver/nvidia/params`.
    #[serde(default)]
    pub parameters: Vec<String>,
    /// IMEX's packages, where the GPUs belong to a rack.
    #[serde(default)]
    pub imex: Vec<String>,
    /// The running kernel, where its packages are to be held.
    #[serde(default)]
    pub hold_kernel: Option<String>,
    /// What keeps apt on the branch, where the package names alone do not.
    pub pin: Option<VersionPin>,
    /// Whether the kernel modules come compiled and signed from the distribution, instead of being built here.
    #[serde(default)]
    pub prebuilt: bool,
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
    /// 64 hexadecimal digits, lower case; empty where the index has it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sha256: String,
    /// The signed index that its sum is taken from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<DebIndex>,
}

/// A repository that vouches for a package file by its signed index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct DebIndex {
    /// Base URL with a trailing slash (flat repository).
    pub url: String,
    /// The one key: 40 hexadecimal digits.
    pub fingerprint: String,
    /// The key itself, ASCII-armoured.
    pub key: String,
    /// dpkg's name of the architecture.
    pub architecture: String,
    /// An older index is refused; empty where nobody knows how old is too old.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub date_floor: String,
}

/// What there is to go on.
#[derive(Clone, Copy)]
struct Context<'a> {
    catalog: &'a Catalog,
    facts: &'a Facts,
    config: &'a Config,
}

/// A part's choice, or nothing to do.
enum Outcome<T> {
    Go(T),
    Nothing(String),
}

/// Chooses. `earlier` is what an earlier run on this image chose: where the configuration leaves it open and the
/// GPUs' architectures are the same, it is kept.
pub fn choose(catalog: &Catalog, facts: &Facts, config: &Config, earlier: Option<&Stack>) -> Result<Choice> {
    let ctx = Context { catalog, facts, config };
    attempt(ctx, earlier).map_err(|error| with_alternative(ctx, error))
}

/// Adds what would be possible. A hint that an error has already is something else that helps.
fn with_alternative(ctx: Context, error: Error) -> Error {
    let wishes = [Code::ImpossibleWish, Code::UnsupportedArch, Code::RepositoryKeyUnknown];
    if !wishes.contains(&error.code()) {
        return error;
    }
    let own = error.has_own_hint().then(|| error.hint().unwrap_or_default().to_owned());
    let ways: Vec<_> = alternative::find(ctx).into_iter().chain(own).collect();
    match ways.as_slice() {
        [] => error.with_hint("no other setting helps on this machine"),
        ways => error.with_hint(ways.join("; or ")),
    }
}

/// One choice, without looking for alternatives where it fails.
fn attempt(ctx: Context, earlier: Option<&Stack>) -> Result<Choice> {
    let wish = driver::Wish::read(&ctx.config.driver.branch)?;
    let toolkit_wish = toolkit::Wish::read(&ctx.config.cuda.toolkit)?;
    check_expectation(ctx.config)?;
    if let Some(kind) = &ctx.facts.os.container
        && !matches!(wish, driver::Wish::None)
    {
        return Err(Error::new(
            Code::Container,
            format!("this is a container ({}), which has no kernel of its own", kind.value),
        )
        .with_hint("run on the host; for the toolkit alone set driver.branch = \"none\""));
    }
    let mut reasons = Vec::new();
    let target = match target::find(ctx.catalog, ctx.facts, ctx.config, &mut reasons)? {
        Outcome::Go(target) => target,
        Outcome::Nothing(why) => return Ok(Choice::Nothing { why }),
    };
    let place = place::find(&ctx)?;
    let earlier = still_fitting(&target, place, earlier, &mut reasons);
    let driver = choose_driver(&ctx, &target, place, &wish, earlier, &mut reasons)?;
    let version = driver.as_ref().map(|d| d.version.clone()).or_else(|| loaded(ctx.facts));
    let toolkits =
        choose_toolkits(&ctx, &target, place, version.as_ref(), &toolkit_wish, earlier, &mut reasons)?;
    let cudnn_debs = cudnn::debs(&ctx)?;
    let cudnn = if cudnn_debs.is_empty() {
        cudnn::choose(&ctx, &target, place, &toolkits, &mut reasons)?
    } else {
        reasons.push("cuDNN comes from the configured package files.".into());
        None
    };
    let (driver, fabric_manager) = driver.map_or((None, None), |d| (Some(d.driver), d.fabric_manager));
    let mut stack = Stack {
        gpu_architectures: target.architectures(),
        source: place::source(&ctx, place),
        driver,
        toolkits,
        cudnn,
        cudnn_debs,
        fabric_manager,
        expect_gpus: target.expect,
        most_efa: super::distributed::most_efa(ctx.catalog, ctx.facts, ctx.config),
        gpu_memory: ctx.catalog.type_of(ctx.facts).and_then(|t| t.memory),
        reasons,
        unverified: Vec::new(),
    };
    stack.unverified = unverified::of_choice(&ctx, &target, place, version.as_ref(), &stack);
    stack.reasons.extend(unverified::sentence(&stack.unverified));
    Ok(Choice::Install(Box::new(stack)))
}

fn check_expectation(config: &Config) -> Result<()> {
    match &config.policy.expect_gpus {
        ExpectGpus::Auto(text) if text != "auto" => {
            Err(Error::new(Code::ConfigType, format!("policy.expect-gpus = {text:?} is no number"))
                .with_hint("write \"auto\" or a number without quotes"))
        }
        _ => Ok(()),
    }
}

/// The version of the driver that runs now, for a toolkit without a driver of ours.
fn loaded(facts: &Facts) -> Option<Version> {
    facts.gpu.driver.as_ref().and_then(|d| Version::parse(&d.value.version))
}

/// The earlier choice, if it was made for the same GPUs and the same kind of source.
fn still_fitting<'a>(
    target: &target::Target,
    place: place::Place,
    earlier: Option<&'a Stack>,
    reasons: &mut Vec<String>,
) -> Option<&'a Stack> {
    let earlier = earlier?;
    let now = target.architectures();
    if earlier.gpu_architectures != now {
        let (before, now) = (earlier.gpu_architectures.join(" and "), now.join(" and "));
        reasons.push(format!("The stack is chosen anew: the last one was for {before}, the GPUs are {now}."));
        return None;
    }
    let same_source = matches!(
        (&earlier.source, place),
        (Source::Nvidia(_), place::Place::Nvidia(_)) | (Source::Distro { .. }, place::Place::Distro(_))
    );
    if !same_source {
        reasons.push("The stack is chosen anew: packages come from another source than last time.".into());
    }
    same_source.then_some(earlier)
}

fn choose_driver(
    ctx: &Context,
    target: &target::Target,
    place: place::Place,
    wish: &driver::Wish,
    earlier: Option<&Stack>,
    reasons: &mut Vec<String>,
) -> Result<Option<driver::Chosen>> {
    let kept = earlier.and_then(|e| e.driver.as_ref()).and_then(|d| Version::parse(&d.branch));
    if let (driver::Wish::Auto, Some(branch)) = (wish, kept) {
        let mut attempt = Vec::new();
        match driver::choose(ctx, target, place, &driver::Wish::Version(branch.clone()), &mut attempt) {
            Ok(chosen) => {
                reasons.push(format!("Driver branch {branch} is kept from an earlier run on this image."));
                reasons.extend(attempt.into_iter().skip(1)); // the first says that it was configured
                return Ok(chosen);
            }
            Err(e) => reasons.push(format!("Driver branch {branch} of an earlier run is not kept: {e}.")),
        }
    }
    driver::choose(ctx, target, place, wish, reasons)
}

fn choose_toolkits(
    ctx: &Context,
    target: &target::Target,
    place: place::Place,
    driver: Option<&Version>,
    wish: &toolkit::Wish,
    earlier: Option<&Stack>,
    reasons: &mut Vec<String>,
) -> Result<Vec<Toolkit>> {
    let before =
        earlier.map(|e| e.toolkits.iter().filter_map(|t| Version::parse(&t.version)).collect::<Vec<_>>());
    if let (toolkit::Wish::Auto, Some(versions)) = (wish, before.filter(|v| !v.is_empty())) {
        let names = versions.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let kept = toolkit::Wish::Versions(versions);
        match toolkit::choose(ctx, target, place, driver, &kept, &mut Vec::new()) {
            Ok(toolkits) => {
                reasons.push(format!("CUDA {names} is kept from an earlier run on this image."));
                return Ok(toolkits);
            }
            Err(e) => reasons.push(format!("CUDA {names} of an earlier run is not kept: {e}.")),
        }
    }
    toolkit::choose(ctx, target, place, driver, wish, reasons)
}

/// A wish that cannot come true; `choose` adds what would.
fn impossible(message: impl Into<String>) -> Error {
    Error::new(Code::ImpossibleWish, message)
}

/// The versions just below and above one that does not exist.
fn nearest<'a>(known: impl IntoIterator<Item = &'a Version>, wished: &Version) -> Vec<&'a Version> {
    let (mut below, mut above): (Option<&Version>, Option<&Version>) = (None, None);
    for version in known {
        if version < wished {
            below = below.max(Some(version));
        } else if above.is_none_or(|least| version < least) {
            above = Some(version);
        }
    }
    below.into_iter().chain(above).collect()
}

/// Part of a sentence.
fn the_nearest(near: &[&Version]) -> String {
    match near {
        [] => "it lists none".to_owned(),
        [only] => format!("the nearest is {only}"),
        [first, second, ..] => format!("the nearest are {first} and {second}"),
    }
}
