//! The driver: its branch, flavour and packages, and fabric manager with exactly the same version.

use super::place::Place;
use super::target::{FabricNeed, GpuClass, Target};
use super::{Context, Driver, VersionPin, impossible, nearest, the_nearest};
use crate::catalog::tables::{Branch, BranchKind, KernelRow, ModuleRule, PackagedFlavour, matches};
use crate::catalog::version::Version;
use crate::config::schema::{Flavour, HoldKernel, Modules};
use crate::error::{Code, Error, Result};

/// A driver with what belongs to it.
pub(super) struct Chosen {
    pub driver: Driver,
    /// The branch, or the exact version that was wished for.
    pub version: Version,
    pub fabric_manager: Option<Vec<String>>,
}

/// What the config says about the version.
pub(super) enum Wish {
    None,
    Auto,
    /// A branch (`580`) or an exact version (`580.82.07`).
    Version(Version),
}

impl Wish {
    /// Reads `driver.branch`.
    pub(super) fn read(text: &str) -> Result<Self> {
        match text {
            "none" => Ok(Self::None),
            "auto" => Ok(Self::Auto),
            _ => Version::parse(text).filter(|v| v.depth() <= 3).map(Self::Version).ok_or_else(|| {
                Error::new(
                    Code::ConfigType,
                    format!("driver.branch = {text:?} is neither a branch nor a version"),
                )
                .with_hint(
                    "write \"auto\", \"none\", a branch such as \"580\", or a version such as \"580.82.07\"",
                )
            }),
        }
    }
}

/// Chooses for one wish. `None` only for the wish for none.
pub(super) fn choose(
    ctx: &Context,
    target: &Target,
    place: Place,
    wish: &Wish,
    reasons: &mut Vec<String>,
) -> Result<Option<Chosen>> {
    let rule = target.modules()?;
    check_flavour(ctx.config.driver.flavour, rule, target)?;
    let version = match wish {
        Wish::None => {
            reasons.push("No driver is installed, as configured.".into());
            return Ok(None);
        }
        Wish::Version(version) => {
            let branch = known_branch(ctx, version)?;
            check_branch(ctx, target, place, branch)?;
            reasons.push(format!("Driver {version} is what the configuration asks for.{}", ended(branch)));
            version.clone()
        }
        Wish::Auto => newest(ctx, target, place, rule, reasons)?,
    };
    let branch = version.prefix(1);
    let (open, recipe) = flavour(ctx, target, place, rule, &branch, reasons)?;
    let kernel = modules_and_kernel(ctx, target, place, &recipe, reasons)?;
    let exact = (version.depth() > 1).then(|| format!("{version}-*"));
    let mut packages = kernel.modules;
    packages.extend(recipe.libraries.iter().cloned());
    let mut fabric_manager = fabric_manager(ctx, target, place, &recipe, reasons)?;
    let mut imex = imex(ctx, target, place, reasons)?;
    if let Some(exact) = &exact {
        // One package of the driver and fabric manager name the version, so that apt fails where it is not
        // there; the pin takes everything else to it.
        ask_for(&mut packages, recipe.libraries.first(), exact);
        ask_for(fabric_manager.as_deref_mut().unwrap_or_default(), None, exact);
        ask_for(&mut imex, None, exact);
    }
    let parameters = parameters(ctx, target, &branch, open, reasons);
    let hold_kernel = hold_kernel(ctx, kernel.without_headers, reasons);
    let mut modules = ctx.catalog.drivers.modules.clone();
    if target.fabric == FabricNeed::Nvlink5 {
        modules.extend(ctx.catalog.drivers.nvlink5_modules.iter().cloned());
    }
    // The distribution has one version of each name; NVIDIA's repository has every branch under some names.
    let pinned = exact.or_else(|| matches!(place, Place::Nvidia(_)).then(|| format!("{branch}.*")));
    let pin = pinned.map(|version| VersionPin { packages: ctx.catalog.drivers.pinned.clone(), version });
    let (row, flavour) = running_kernel(ctx).map_or((None, ""), |(row, flavour)| (Some(row), flavour));
    let images = row.filter(|_| !kernel.patterns.is_empty()).map(|row| row.image.as_slice());
    let driver = Driver {
        branch: branch.to_string(),
        open,
        packages,
        without: rivals(place, &branch, open),
        kernel_packages: for_kernel(&kernel.patterns, flavour),
        running_kernel_packages: for_kernel(&kernel.patterns, &ctx.facts.os.kernel.value),
        kernel_image: for_kernel(images.unwrap_or_default(), flavour),
        modules,
        parameters,
        imex,
        hold_kernel,
        pin,
        prebuilt: kernel.prebuilt,
    };
    Ok(Some(Chosen { driver, version, fabric_manager }))
}

/// Turns `name` (or the first package) into `name=version`.
fn ask_for(packages: &mut [String], name: Option<&String>, version: &str) {
    let position = name.map_or(Some(0), |name| packages.iter().position(|p| p == name));
    if let Some(package) = position.and_then(|at| packages.get_mut(at)) {
        *package = format!("{package}={version}");
    }
}

pub(super) fn known_branch<'a>(ctx: &Context<'a>, version: &Version) -> Result<&'a Branch> {
    let branches = &ctx.catalog.drivers.branch;
    branches.iter().find(|b| b.name == version.prefix(1)).ok_or_else(|| {
        let near = nearest(branches.iter().map(|b| &b.name), &version.prefix(1));
        impossible(format!(
            "driver.branch = \"{version}\": the catalog knows no branch {}; {}",
            version.major(),
            the_nearest(&near)
        ))
    })
}

/// A sentence about a branch whose support has an end.
pub(super) fn ended(branch: &Branch) -> String {
    branch
        .until
        .as_ref()
        .map_or_else(String::new, |until| format!(" NVIDIA supports branch {} until {until}.", branch.name))
}

fn check_flavour(wish: Flavour, rule: ModuleRule, target: &Target) -> Result<()> {
    let one = |rule| target.gpus.iter().find(|g| g.modules == rule).map(GpuClass::title).unwrap_or_default();
    match (wish, rule) {
        (Flavour::Open, ModuleRule::Proprietary) => Err(impossible(format!(
            "driver.flavour = \"open\": the open kernel modules do not run {}, only Turing and newer",
            one(rule)
        ))),
        (Flavour::Proprietary, ModuleRule::Open) => Err(impossible(format!(
            "driver.flavour = \"proprietary\": {} runs with the open kernel modules only",
            one(rule)
        ))),
        _ => Ok(()),
    }
}

/// Refuses a branch that one of the GPUs or the place does not have.
pub(super) fn check_branch(ctx: &Context, target: &Target, place: Place, branch: &Branch) -> Result<()> {
    let name = &branch.name;
    if let Some((gpu, first)) = target.first_branch().filter(|(_, first)| *first > name) {
        return Err(impossible(format!(
            "driver branch {name} does not know {}; {first} is the first that does",
            gpu.title()
        )));
    }
    if let Some((gpu, last)) = target.last_branch().filter(|(_, last)| *last < name) {
        return Err(impossible(format!(
            "driver branch {name} has dropped {}; {last} is the last that runs it",
            gpu.title()
        )));
    }
    let there = ctx.catalog.branches_at(place);
    if there.contains(name) {
        return Ok(());
    }
    let names: Vec<_> = there.iter().rev().map(ToString::to_string).collect();
    Err(impossible(format!("{} has no driver branch {name}, only {}", place.title(), names.join(", "))))
}

/// The newest branch with production or long-term support that runs all GPUs (an old GPU's last branch counts).
fn newest(
    ctx: &Context,
    target: &Target,
    place: Place,
    rule: ModuleRule,
    reasons: &mut Vec<String>,
) -> Result<Version> {
    let there = ctx.catalog.branches_at(place);
    let supported =
        there.iter().filter_map(|name| ctx.catalog.drivers.branch.iter().find(|b| b.name == *name));
    let mut without_modules = None;
    let fitting = supported
        .filter(|b| b.kind != BranchKind::Feature)
        .filter(|b| check_branch(ctx, target, place, b).is_ok())
        .find(|b| match flavour(ctx, target, place, rule, &b.name, &mut Vec::new()) {
            Ok(_) => true,
            Err(why) => {
                without_modules.get_or_insert(why);
                false
            }
        });
    if let Some(branch) = fitting {
        let why = match (target.last_branch(), branch.kind) {
            (Some((gpu, last)), _) if *last == branch.name => format!("the last that runs {}", gpu.title()),
            (_, BranchKind::Lts) => "the newest with long-term support that fits".to_owned(),
            _ => "the newest production branch that fits".to_owned(),
        };
        reasons.push(format!("Driver branch {} is {why}.{}", branch.name, ended(branch)));
        return Ok(branch.name.clone());
    }
    if let Some(why) = without_modules {
        return Err(why); // a branch is there, but not the modules that these GPUs need
    }
    let limit = match (target.first_branch(), target.last_branch()) {
        (Some((old, first)), Some((new, last))) if first > last => {
            format!("{} needs driver branch {first} or newer, {} at most {last}", old.title(), new.title())
        }
        (_, Some((gpu, last))) => format!("{} needs driver branch {last} or older", gpu.title()),
        (Some((gpu, first)), None) => format!("{} needs driver branch {first} or newer", gpu.title()),
        (None, None) => "no driver branch fits the configuration".to_owned(),
    };
    let has = match (there.last(), there.first()) {
        (Some(oldest), Some(newest)) if oldest != newest => format!("{oldest} to {newest}"),
        (Some(only), _) => format!("{only} only"),
        (None, _) => "none".to_owned(),
    };
    Err(impossible(format!("{limit}, and {} has {has}", place.title())))
}

/// How a place packages one branch in one flavour.
#[derive(Default)]
struct Recipe {
    /// Modules built by the distribution, with `{kernel}` still to be filled in.
    prebuilt: Option<Vec<String>>,
    /// Modules that are built here.
    dkms: Option<Vec<String>>,
    /// What the modules' packages do not bring with them.
    libraries: Vec<String>,
    fabric_manager: Option<Vec<String>>,
}

fn recipe(ctx: &Context, place: Place, branch: &Version, open: bool) -> Option<Recipe> {
    let named = |patterns: &Vec<String>| -> Vec<String> {
        patterns.iter().map(|p| p.replace("{branch}", &branch.to_string())).collect()
    };
    match place {
        Place::Nvidia(n) => {
            let drivers = &ctx.catalog.drivers;
            let wanted = if open { PackagedFlavour::Open } else { PackagedFlavour::Proprietary };
            let row = drivers
                .packages
                .iter()
                .filter(|p| p.flavour == wanted && matches(&p.distros, &n.row.distro))
                .find(|p| p.first_branch.as_ref().is_none_or(|first| first <= branch))?;
            let fabric = drivers.fabric_manager.iter().find(|f| {
                f.first_branch.as_ref().is_none_or(|first| first <= branch)
                    && f.last_branch.as_ref().is_none_or(|last| branch <= last)
            });
            Some(Recipe {
                dkms: Some(named(&row.packages)),
                fabric_manager: fabric.map(|f| named(&f.packages)),
                ..Recipe::default()
            })
        }
        Place::Distro(row) => {
            let driver = row.driver.iter().find(|d| d.branches.contains_key(branch))?;
            let modules = if open { driver.open.as_ref() } else { driver.proprietary.as_ref() }?;
            Some(Recipe {
                prebuilt: modules.prebuilt.as_ref().map(named),
                dkms: modules.dkms.as_ref().map(named),
                libraries: named(&driver.libraries),
                fabric_manager: driver.fabric_manager.as_ref().map(named),
            })
        }
    }
}

/// What other branches, and the other flavour of this one, hang on. Debian installs them beside each other, and then the
/// highest number is used, whatever was wished for.
fn rivals(place: Place, branch: &Version, open: bool) -> Vec<String> {
    let Place::Distro(row) = place else { return Vec::new() };
    let (own, others): (Vec<_>, Vec<_>) = row.driver.iter().partition(|d| d.branches.contains_key(branch));
    let mut rivals: Vec<String> = others.into_iter().flat_map(|d| d.base.iter().cloned()).collect();
    for driver in own {
        let other_flavour = if open { &driver.proprietary } else { &driver.open };
        rivals.extend(other_flavour.iter().flat_map(|m| m.base.iter().cloned()));
        rivals.retain(|name| !driver.base.contains(name));
    }
    rivals
}

/// Open or proprietary: what the GPUs demand, else what is configured, else NVIDIA's own default for the branch.
fn flavour(
    ctx: &Context,
    target: &Target,
    place: Place,
    rule: ModuleRule,
    branch: &Version,
    reasons: &mut Vec<String>,
) -> Result<(bool, Recipe)> {
    let names = target.architectures().join(" and ");
    let default_open = *branch >= ctx.catalog.drivers.open_by_default_from;
    let (open, why) = match (rule, ctx.config.driver.flavour) {
        (ModuleRule::Open, _) => (true, format!("{names} runs with no others")),
        (ModuleRule::Proprietary, _) => (false, format!("the open ones do not run {names}")),
        (ModuleRule::Either, Flavour::Open) => (true, "the configuration asks for them".into()),
        (ModuleRule::Either, Flavour::Proprietary) => (false, "the configuration asks for them".into()),
        (ModuleRule::Either, Flavour::Auto) if default_open => {
            (true, format!("NVIDIA recommends them for {names}"))
        }
        (ModuleRule::Either, Flavour::Auto) => {
            (false, format!("branch {branch} is older than NVIDIA's recommendation of the open ones"))
        }
    };
    let word = |open| if open { "open" } else { "proprietary" };
    if let Some(found) = recipe(ctx, place, branch, open) {
        reasons.push(format!("The {} kernel modules are used: {why}.", word(open)));
        return Ok((open, found));
    }
    let may_turn = rule == ModuleRule::Either && ctx.config.driver.flavour == Flavour::Auto;
    if let Some(found) = recipe(ctx, place, branch, !open).filter(|_| may_turn) {
        let (other, title) = (word(!open), place.title());
        reasons
            .push(format!("The {other} kernel modules are used: {title} has no others of branch {branch}."));
        return Ok((!open, found));
    }
    let needs = if rule == ModuleRule::Either { String::new() } else { format!(", and {why}") };
    Err(impossible(format!(
        "{} has no {} kernel modules of driver branch {branch}{needs}",
        place.title(),
        word(open)
    )))
}

/// Modules' packages, and the packages that go with the kernel, `{kernel}` still to be filled in.
struct Kernel {
    modules: Vec<String>,
    patterns: Vec<String>,
    /// Whether the modules are compiled already.
    prebuilt: bool,
    /// Whether modules are built here, and no package brings headers along with the kernel's updates.
    without_headers: bool,
}

fn modules_and_kernel(
    ctx: &Context,
    target: &Target,
    place: Place,
    recipe: &Recipe,
    reasons: &mut Vec<String>,
) -> Result<Kernel> {
    let wish = ctx.config.driver.modules;
    let running = running_kernel(ctx);
    let mut patterns = Vec::new();
    if let Some((row, _)) = running
        && target.fabric == FabricNeed::Nvlink5
    {
        patterns.extend(row.infiniband.iter().cloned());
    }
    let prebuilt = recipe.prebuilt.as_ref().filter(|_| wish != Modules::Dkms).zip(running);
    if let Some((names, (_, flavour))) = prebuilt {
        reasons
            .push(format!("{} has these modules prebuilt and signed for {flavour} kernels.", place.title()));
        return Ok(Kernel {
            modules: for_kernel(names, flavour),
            patterns,
            prebuilt: true,
            without_headers: false,
        });
    }
    if let Some(names) = recipe.dkms.as_ref().filter(|_| wish != Modules::Prebuilt) {
        check_secure_boot(ctx, place, wish, reasons)?;
        match running {
            Some((row, _)) => patterns.extend(row.headers.iter().cloned()),
            None => reasons.push(format!(
                "No package of headers follows kernel {}; DKMS builds only if its headers are here.",
                ctx.facts.os.kernel.value
            )),
        }
        let without_headers = running.is_none();
        return Ok(Kernel { modules: names.clone(), patterns, prebuilt: false, without_headers });
    }
    let asked = if wish == Modules::Prebuilt { "prebuilt" } else { "dkms" };
    Err(impossible(format!(
        "driver.modules = \"{asked}\": {} has no such kernel modules for kernel {}",
        place.title(),
        ctx.facts.os.kernel.value
    )))
}

/// Modules that are built here are signed by nobody whom the firmware knows; enrolling a key takes somebody at the
/// console, which EC2 does not have.
fn check_secure_boot(ctx: &Context, place: Place, wish: Modules, reasons: &mut Vec<String>) -> Result<()> {
    match (ctx.facts.os.secure_boot.value, wish) {
        (false, _) => Ok(()),
        (true, Modules::Dkms) => {
            reasons.push(
                "Secure Boot is on: modules that are built here load only if their key is enrolled.".into(),
            );
            Ok(())
        }
        (true, _) => Err(impossible(format!(
            "Secure Boot is on, so the kernel loads signed modules only, and those from {} are built here \
             (driver.modules = \"dkms\" does it all the same, for a machine where your key is enrolled)",
            place.title()
        ))),
    }
}

/// The kernel's flavour (`aws`) with the packages that follow it.
pub(super) fn running_kernel<'a>(ctx: &Context<'a>) -> Option<(&'a KernelRow, &'a str)> {
    let (release, distro) = (&ctx.facts.os.kernel.value, ctx.facts.os.distro());
    let rows = ctx.catalog.distros.kernel.iter().filter(|row| matches(&row.distros, &distro));
    let ends = rows.flat_map(|row| row.flavours.iter().map(move |flavour| (row, flavour.as_str())));
    let mut fitting: Vec<_> = ends.filter(|(_, flavour)| release.ends_with(&format!("-{flavour}"))).collect();
    // The longest that fits, and of equals the first in the file: the sort is stable.
    fitting.sort_by_key(|(_, flavour)| std::cmp::Reverse(flavour.len()));
    fitting.first().copied()
}

/// Names of packages for all kernels of a flavour (`aws`), or for one release (`6.8.0-1021-aws`).
fn for_kernel(patterns: &[String], kernel: &str) -> Vec<String> {
    patterns.iter().map(|p| p.replace("{kernel}", kernel)).collect()
}

/// Fabric manager's packages, where the host has to run one.
fn fabric_manager(
    ctx: &Context,
    target: &Target,
    place: Place,
    recipe: &Recipe,
    reasons: &mut Vec<String>,
) -> Result<Option<Vec<String>>> {
    if target.fabric == FabricNeed::None {
        return Ok(None);
    }
    let nvlink5 = target.fabric == FabricNeed::Nvlink5;
    let mut packages = match &recipe.fabric_manager {
        // The subnet manager of NVLink 5 is only in NVIDIA's repository.
        Some(packages) if !nvlink5 || matches!(place, Place::Nvidia(_)) => packages.clone(),
        _ => {
            return Err(impossible(format!(
                "these GPUs are joined by NVSwitches, and {} has no fabric manager for them",
                place.title()
            )));
        }
    };
    let mut why =
        "The GPUs are joined by NVSwitches: fabric manager is installed in exactly the driver's version.";
    if nvlink5 {
        packages.extend(ctx.catalog.drivers.nvlink5_packages.iter().cloned());
        why = "The GPUs are joined by NVLink 5: fabric manager, in exactly the driver's version, and the NVLink subnet \
               manager are installed.";
    }
    reasons.push(why.into());
    Ok(Some(packages))
}

/// IMEX's packages, where memory of GPUs in other hosts of the rack is reached.
fn imex(ctx: &Context, target: &Target, place: Place, reasons: &mut Vec<String>) -> Result<Vec<String>> {
    if !target.rack {
        return Ok(Vec::new());
    }
    if !matches!(place, Place::Nvidia(_)) {
        return Err(impossible(format!(
            "these GPUs reach others in their rack by IMEX, which {} does not have",
            place.title()
        )));
    }
    reasons.push(
        "The GPUs belong to a rack: IMEX is installed in exactly the driver's version. It runs once \
         /etc/nvidia-imex/nodes_config.cfg lists the hosts that work together."
            .into(),
    );
    Ok(ctx.catalog.drivers.imex_packages.clone())
}

/// `name=value` of the parameters that the module is loaded with.
fn parameters(
    ctx: &Context,
    target: &Target,
    branch: &Version,
    open: bool,
    reasons: &mut Vec<String>,
) -> Vec<String> {
    let rows = ctx.catalog.gpus.proprietary_parameter.iter().filter(|row| {
        !open && row.first_branch <= *branch && row.gpus.iter().any(|id| target.ids.contains(&id.0))
    });
    rows.map(|row| {
        reasons.push(format!("The kernel module is loaded with {}={}: {}.", row.name, row.value, row.why));
        format!("{}={}", row.name, row.value)
    })
    .collect()
}

/// The running kernel, where its packages are to be held.
fn hold_kernel(ctx: &Context, without_headers: bool, reasons: &mut Vec<String>) -> Option<String> {
    let release = &ctx.facts.os.kernel.value;
    let why = match ctx.config.policy.hold_kernel {
        HoldKernel::Always => "as configured",
        HoldKernel::Auto if without_headers => {
            "an update would come without headers to build the modules with"
        }
        HoldKernel::Auto | HoldKernel::Never => return None,
    };
    reasons.push(format!("The packages of kernel {release} are held: {why}."));
    Some(release.clone())
}
