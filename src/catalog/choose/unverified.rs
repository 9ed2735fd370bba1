//! What an answer rests on that no source confirms. A choice is looked at afterwards: which of its parts lie where a table
//! is marked `unverified`. A refusal is tried again with such marks lifted: if it falls, it rested on them.

use serde::{Deserialize, Serialize};

use super::place::Place;
use super::target::{FabricNeed, Target};
use super::{Context, Stack};
use crate::catalog::Catalog;
use crate::catalog::tables::Range;
use crate::catalog::version::Version;
use crate::facts::os::Arch;

/// Something that an answer rests on, and that no source confirms.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unverified {
    /// Where in the catalog, in two words: `repository.branches`. docs/stacks.md lists them.
    pub key: String,
    /// What is not confirmed, to follow "no source confirms".
    pub what: String,
}

impl Unverified {
    pub(super) fn new(key: &str, what: impl Into<String>) -> Self {
        Self { key: key.to_owned(), what: what.into() }
    }
}

/// What they are about, to follow "no source confirms": `that a, that b or that c`.
pub fn words(all: &[Unverified]) -> Option<String> {
    let (last, before) = all.split_last()?;
    let before: Vec<_> = before.iter().map(|u| u.what.as_str()).collect();
    Some(if before.is_empty() {
        last.what.clone()
    } else {
        format!("{} or {}", before.join(", "), last.what)
    })
}

/// One sentence about all of them.
pub(super) fn sentence(all: &[Unverified]) -> Option<String> {
    words(all).map(|words| format!("No source confirms {words}."))
}

fn marked(keys: &[String], key: &str) -> bool {
    keys.iter().any(|k| k == key)
}

/// What a choice rests on. `driver` is the branch or version that it was made for.
pub(super) fn of_choice(
    ctx: &Context,
    target: &Target,
    place: Place,
    driver: Option<&Version>,
    stack: &Stack,
) -> Vec<Unverified> {
    let mut found = Vec::new();
    let toolkits: Vec<Version> = stack.toolkits.iter().filter_map(|t| Version::parse(&t.version)).collect();
    of_gpus(target, stack, driver, &toolkits, &mut found);
    match place {
        Place::Nvidia(n) => {
            let (keys, title) = (&n.row.unverified, place.title());
            if let Some(driver) = stack.driver.as_ref().filter(|_| marked(keys, "branches")) {
                let what = format!("that {title} has driver branch {}", driver.branch);
                found.push(Unverified::new("repository.branches", what));
            }
            let unsure = |v: &&Version| {
                let first = marked(keys, "toolkits.first") && v.prefix(2) != n.toolkits.last;
                marked(keys, "toolkits") || first
            };
            let names: Vec<_> = toolkits.iter().filter(unsure).map(ToString::to_string).collect();
            if !names.is_empty() {
                let what = format!("that {title} has CUDA {}", names.join(" and "));
                found.push(Unverified::new("repository.toolkits", what));
            }
            if let Some(cudnn) = stack.cudnn.as_ref().filter(|_| marked(keys, "cudnn-last")) {
                let what = format!("that {title} has {}", cudnn.packages.join(" and "));
                found.push(Unverified::new("repository.cudnn", what));
            }
            of_packages(ctx, stack, &title, &mut found);
        }
        Place::Distro(row) => {
            if ctx.facts.os.arch.value == Arch::Arm64 && marked(&row.unverified, "architectures") {
                let what = format!("that {} packages all of this for arm64", row.title);
                found.push(Unverified::new("distribution.arm64", what));
            }
        }
    }
    for version in &toolkits {
        of_driver_minimum(ctx, version, driver, &mut found);
    }
    found
}

/// Limits of GPUs count where the choice lies on one: later branches and toolkits know what earlier ones know.
fn of_gpus(
    target: &Target,
    stack: &Stack,
    driver: Option<&Version>,
    toolkits: &[Version],
    found: &mut Vec<Unverified>,
) {
    let branch = driver.filter(|_| stack.driver.is_some()).map(|d| d.prefix(1));
    for gpu in &target.gpus {
        if gpu.unlisted {
            found.push(Unverified::new("gpu.architecture", format!("what architecture {} has", gpu.name)));
        }
        let mut limit = |key: &str, limit: Option<&Version>, chosen: &[Version], what: &str| {
            let on_it = limit.is_some_and(|limit| chosen.iter().any(|c| c.prefix(limit.depth()) == *limit));
            if on_it && marked(&gpu.unverified, key) {
                found.push(Unverified::new("gpu.limits", format!("that {what} knows {}", gpu.title())));
            }
        };
        if let Some(branch) = &branch {
            let (chosen, what) = (std::slice::from_ref(branch), format!("driver branch {branch}"));
            limit("first-branch", gpu.first_branch.as_ref(), chosen, &what);
            limit("last-branch", gpu.last_branch.as_ref(), chosen, &what);
        }
        for version in toolkits {
            let (chosen, what) = (std::slice::from_ref(version), format!("CUDA {version}"));
            limit("first-toolkit", gpu.first_toolkit.as_ref(), chosen, &what);
            limit("last-toolkit", gpu.last_toolkit.as_ref(), chosen, &what);
        }
        if gpu.fabric_unverified && target.fabric == FabricNeed::Nvlink5 && stack.driver.is_some() {
            let what = format!("that {} needs fabric manager and the NVLink subnet manager", gpu.title());
            found.push(Unverified::new("gpu.fabric", what));
        }
    }
    if let Some(name) = &target.uncounted {
        found.push(Unverified::new("instance.gpus", format!("how many GPUs {name} has")));
    }
}

/// Names of packages that are known from another distribution.
fn of_packages(ctx: &Context, stack: &Stack, title: &str, found: &mut Vec<Unverified>) {
    let Some(driver) = &stack.driver else { return };
    let asked = |pattern: &String| {
        let name = pattern.replace("{branch}", &driver.branch);
        driver.packages.iter().any(|p| p.split('=').next() == Some(name.as_str()))
    };
    let rows = ctx.catalog.drivers.packages.iter();
    if rows.filter(|row| marked(&row.unverified, "distros")).any(|row| row.packages.iter().any(asked)) {
        let what = format!("that {title} has {}", driver.packages.join(" and "));
        found.push(Unverified::new("driver.packages", what));
    }
}

/// The driver that a toolkit needs matters where the chosen one is of the same branch.
pub(super) fn of_driver_minimum(
    ctx: &Context,
    version: &Version,
    driver: Option<&Version>,
    found: &mut Vec<Unverified>,
) {
    let row = ctx.catalog.toolkits.toolkit.iter().find(|t| t.version == version.prefix(2));
    let Some((row, driver)) = row.zip(driver) else { return };
    let release = row.releases.get_key_value(version).or(row.releases.iter().next_back());
    if let Some((release, needed)) = release
        && marked(&row.unverified, &release.to_string())
        && driver.prefix(1) == needed.prefix(1)
    {
        let what = format!("that CUDA {release} needs driver {needed}");
        found.push(Unverified::new("toolkit.driver", what));
    }
}

/// A kind of mark: what it is about, and the catalog without the limits that carry it.
struct Mark {
    key: &'static str,
    lift: fn(&mut Catalog),
    what: fn(&str) -> String,
}

const MARKS: &[Mark] = &[
    Mark {
        key: "gpu.limits",
        lift: |c| {
            for a in &mut c.gpus.architecture {
                let keys = std::mem::take(&mut a.unverified);
                for (key, limit) in [
                    ("first-toolkit", &mut a.first_toolkit),
                    ("last-toolkit", &mut a.last_toolkit),
                    ("first-branch", &mut a.first_branch),
                    ("last-branch", &mut a.last_branch),
                ] {
                    if marked(&keys, key) {
                        *limit = None;
                    }
                }
            }
        },
        what: |_| "the first and last driver branch and toolkit of this GPU".into(),
    },
    Mark {
        key: "repository.branches",
        lift: |c| {
            for row in c.repositories.rows.iter_mut().filter(|r| marked(&r.unverified, "branches")) {
                row.branches = everything();
            }
        },
        what: |os| format!("which driver branches NVIDIA's repository for {os} has"),
    },
    Mark {
        key: "repository.toolkits",
        lift: |c| {
            for row in &mut c.repositories.rows {
                if marked(&row.unverified, "toolkits") {
                    row.toolkits = everything();
                } else if let Some(range) = row.toolkits.as_mut().zip(everything())
                    && marked(&row.unverified, "toolkits.first")
                {
                    range.0.first = range.1.first;
                }
            }
        },
        what: |os| format!("which toolkits NVIDIA's repository for {os} has"),
    },
    Mark {
        key: "repository.cudnn",
        lift: |c| {
            for row in c.repositories.rows.iter_mut().filter(|r| marked(&r.unverified, "cudnn-last")) {
                row.cudnn_last = None;
            }
        },
        what: |os| format!("which cuDNN NVIDIA's repository for {os} has"),
    },
    Mark {
        key: "repository.arm64",
        lift: |c| {
            for row in c.repositories.rows.iter_mut().filter(|r| marked(&r.unverified, "directories.arm64")) {
                row.directories.get_or_insert_default().insert("arm64".into(), "sbsa".into());
            }
        },
        what: |os| format!("that NVIDIA has no repository for {os} on arm64"),
    },
    Mark {
        key: "driver.packages",
        lift: |c| {
            for row in c.drivers.packages.iter_mut().filter(|p| marked(&p.unverified, "distros")) {
                row.distros = vec!["*".into()];
            }
        },
        what: |os| format!("that NVIDIA's repository for {os} lacks the open kernel modules"),
    },
    Mark {
        key: "cudnn.architectures",
        lift: |c| {
            for series in &mut c.cudnn.series {
                if marked(&series.unverified, "first-architecture") {
                    series.first_architecture = None;
                }
                if marked(&series.unverified, "last-architecture") {
                    series.last_architecture = None;
                }
            }
        },
        what: |_| "which GPUs this cuDNN knows".into(),
    },
];

fn everything() -> Option<Range> {
    Some(Range { first: Version::parse("0")?, last: Version::parse("9999")? })
}

/// What a refusal rests on: the marks without which it would fall. `refused` asks again, with another catalog.
pub(super) fn of_refusal(ctx: &Context, refused: impl Fn(&Context) -> bool) -> Vec<Unverified> {
    let falls = |marks: &[&Mark]| {
        let mut catalog = ctx.catalog.clone();
        for mark in marks {
            (mark.lift)(&mut catalog);
        }
        !refused(&Context { catalog: &catalog, ..*ctx })
    };
    let mut needed: Vec<&Mark> = MARKS.iter().collect();
    if !falls(&needed) {
        return Vec::new();
    }
    for mark in MARKS {
        let fewer: Vec<_> = needed.iter().copied().filter(|m| m.key != mark.key).collect();
        if falls(&fewer) {
            needed = fewer;
        }
    }
    let name = ctx.facts.os.distro();
    let title =
        ctx.catalog.distros.distro.iter().find(|d| d.name == name).map_or(name.as_str(), |d| &d.title);
    needed.iter().map(|mark| Unverified::new(mark.key, (mark.what)(title))).collect()
}
