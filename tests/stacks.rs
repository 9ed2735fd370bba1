//! Every instance type × distribution × wish is a consistent stack, or a refusal with a reason; and where a refusal names a
//! setting, that setting is tried and works. Exhaustive: what a stack must fulfil is written down here once more, from the
//! sources, so that a mistake in the catalog's data does not prove itself.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};

use gpu_bootstrap::catalog::choose::{Source, Stack};
use gpu_bootstrap::catalog::{Catalog, Choice, choose, distributions, machine};
use gpu_bootstrap::config::Config;
use gpu_bootstrap::error::{Code, Error};
use gpu_bootstrap::facts::Facts;
use gpu_bootstrap::facts::os::Arch;

type Number = Vec<u32>;

fn number(text: &str) -> Number {
    let text = text.split(['-', '=', '+']).next().unwrap();
    text.split('.').map(|p| p.parse().unwrap_or_else(|_| panic!("{text:?}"))).collect()
}

/// (GPU's id, first toolkit, last toolkit, first branch, last branch, open modules: n(ever), e(ither), a(lways)), from the
/// matrix of driver branches and architectures, and the toolkits' release notes.
const GPUS: &[(u16, &str, &str, u32, u32, char)] = &[
    (0x118a, "1.0", "10.2", 0, 470, 'n'),
    (0x102d, "1.0", "11.8", 0, 470, 'n'),
    (0x13f2, "6.5", "12.9", 0, 580, 'n'),
    (0x1db1, "9.0", "12.9", 0, 580, 'n'),
    (0x1db5, "9.0", "12.9", 0, 580, 'n'),
    (0x1eb8, "10.0", "99", 410, 999, 'e'),
    (0x1eb4, "10.0", "99", 470, 999, 'e'),
    (0x20b0, "11.0", "99", 450, 999, 'e'),
    (0x20b2, "11.0", "99", 450, 999, 'e'),
    (0x2237, "11.1", "99", 470, 999, 'e'),
    (0x27b8, "11.8", "99", 520, 999, 'e'),
    (0x26b9, "11.8", "99", 520, 999, 'e'),
    (0x2330, "11.8", "99", 520, 999, 'e'),
    (0x2335, "11.8", "99", 520, 999, 'e'),
    (0x2901, "12.8", "99", 570, 999, 'a'),
    (0x2941, "12.8", "99", 570, 999, 'a'),
    (0x2c3a, "12.8", "99", 570, 999, 'a'),
    (0x2bb5, "12.8", "99", 570, 999, 'a'),
    (0x3182, "12.9", "99", 575, 999, 'a'),
    (0x31c2, "12.9", "99", 575, 999, 'a'),
];

/// The oldest branch that runs what a toolkit compiles: the one it came with before CUDA 11, minor-version compatibility since.
fn least_branch(cuda: &Number) -> u32 {
    match cuda[0] {
        0..=9 => 0,
        10 => {
            if cuda[1] == 2 {
                440
            } else {
                418
            }
        }
        11 => 450,
        12 => 525,
        _ => 580,
    }
}

/// Of cuDNN by its series: the first and last GPU architecture, and the major versions of CUDA.
fn cudnn_knows(version: &Number, architecture: &str, cuda: u32) -> bool {
    const OLDEST_FIRST: &[&str] = &[
        "Kepler",
        "Maxwell",
        "Pascal",
        "Volta",
        "Turing",
        "Ampere",
        "Ada",
        "Hopper",
        "Blackwell",
        "Blackwell Ultra",
    ];
    let at = |name: &str| OLDEST_FIRST.iter().position(|a| *a == name).unwrap();
    let (first, last, cudas): (&str, &str, &[u32]) = match (version[0], version[1]) {
        (7, _) => ("Kepler", "Turing", &[9, 10]),
        (8, 0..=5) => ("Kepler", "Ampere", &[10, 11]),
        (8, 6 | 7) => ("Kepler", "Hopper", &[10, 11]),
        (8, _) | (9, 0..=6) => ("Maxwell", "Hopper", &[11, 12]),
        (9, 7..=10) => ("Maxwell", "Blackwell Ultra", &[11, 12]),
        _ => ("Turing", "Blackwell Ultra", &[12, 13]),
    };
    (at(first)..=at(last)).contains(&at(architecture)) && cudas.contains(&cuda)
}

/// What is asked of one machine, as configuration.
fn wishes() -> Vec<String> {
    let toolkits = [
        "auto", "none", "9.0", "10.2", "11.0", "11.1", "11.2", "11.3", "11.4", "11.5", "11.6", "11.7",
        "11.8", "12.0", "12.1", "12.2", "12.3", "12.4", "12.5", "12.6", "12.7", "12.8", "12.9", "13.0",
        "13.1", "13.2", "13.3", "14.0", "12.8.1",
    ];
    let branches = [
        "none",
        "390",
        "450",
        "460",
        "470",
        "510",
        "515",
        "520",
        "525",
        "530",
        "535",
        "536",
        "545",
        "550",
        "555",
        "560",
        "565",
        "570",
        "575",
        "580",
        "590",
        "595",
        "610",
        "580.82.07",
        "470.82.01",
    ];
    let cudnn = [
        "none", "7.6.5", "8.2.4", "8.7.0", "8.9.7", "9.5.1", "9.8.0", "9.10.2", "9.15.0", "9.25.0", "9.99.9",
        "6.0.21",
    ];
    let mut all = Vec::new();
    for source in ["nvidia", "distro"] {
        let source = format!("source.packages = '{source}'\n");
        all.extend(toolkits.iter().map(|v| format!("{source}cuda.toolkit = '{v}'")));
        all.extend(branches.iter().map(|v| format!("{source}driver.branch = '{v}'")));
        all.extend(cudnn.iter().map(|v| format!("{source}cudnn.version = '{v}'")));
        for flavour in ["open", "proprietary"] {
            all.push(format!("{source}driver.flavour = '{flavour}'"));
            all.push(format!("{source}driver.flavour = '{flavour}'\ndriver.branch = '535'"));
        }
        for modules in ["prebuilt", "dkms"] {
            all.push(format!("{source}driver.modules = '{modules}'"));
        }
        for (branch, cuda) in
            [("550", "13.0"), ("470", "11.8"), ("580", "12.4"), ("none", "12.4"), ("525", "12.8")]
        {
            all.push(format!("{source}driver.branch = '{branch}'\ncuda.toolkit = '{cuda}'"));
        }
        for (cuda, cudnn) in [
            ("12.4", "9.8.0"),
            ("11.8", "8.7.0"),
            ("13.0", "9.8.0"),
            ("10.2", "7.6.5"),
            ("10.2", "8.2.0"),
            ("none", "9.8.0"),
        ] {
            all.push(format!("{source}cuda.toolkit = '{cuda}'\ncudnn.version = '{cudnn}'"));
        }
        all.push(format!("{source}cuda.toolkit = ['12.6', '12.4']"));
    }
    all
}

fn machines(catalog: &Catalog) -> Vec<(String, Facts)> {
    let types = include_str!("fixtures/catalog/ec2_types.txt");
    let names = types.lines().filter(|l| !l.starts_with('#')).flat_map(str::split_whitespace);
    let names = names.map(|pair| pair.split_once('=').unwrap().0).chain(["g2.2xlarge", "g2.8xlarge"]);
    // One of each GPU, alone and with what joins several: nothing else of a type decides (the GPUs' number is expected, no more).
    let mut kinds = BTreeMap::new();
    for found in names.map(|name| catalog.instance_type(name).unwrap()) {
        kinds.entry((found.device, found.subsystem, found.gpus > 1, found.nvswitch)).or_insert(found);
    }
    let mut all = Vec::new();
    for distro in distributions(catalog) {
        for found in kinds.values() {
            all.push((format!("{} on {}", found.name, distro.name), machine::instance(&distro.name, found)));
        }
        let mut gb300 = machine::facts(&distro.name, Arch::Arm64);
        machine::plug(&mut gb300.gpu, machine::function(0x10de, 0x31c2, 0x0302));
        all.push((format!("GB300 on {}", distro.name), gb300));
    }
    all
}

/// Panics where a stack does not hang together.
fn check(catalog: &Catalog, facts: &Facts, config: &Config, stack: &Stack, shown: &str) {
    let id = facts.gpu.gpus[0].value.device;
    let (_, first_toolkit, last_toolkit, first_branch, last_branch, open) =
        *GPUS.iter().find(|g| g.0 == id).unwrap_or_else(|| panic!("{shown}: {id:04x}"));
    let architecture = catalog.architecture(id).unwrap();
    let branch = stack.driver.as_ref().map(|d| d.branch.parse::<u32>().unwrap());
    if let (Some(driver), Some(branch)) = (&stack.driver, branch) {
        assert!((first_branch..=last_branch).contains(&branch), "{shown}: branch {branch}");
        assert!(open == 'e' || driver.open == (open == 'a'), "{shown}: open {}", driver.open);
        assert!(!driver.packages.is_empty(), "{shown}");
        assert!(driver.prebuilt || !driver.kernel_packages.is_empty(), "{shown}: DKMS without headers");
        assert_eq!(
            driver.prebuilt,
            driver.packages.iter().any(|p| p.starts_with("linux-modules-nvidia-")),
            "{shown}"
        );
        match &stack.source {
            Source::Nvidia(_) => assert!(driver.pin.is_some(), "{shown}: nothing keeps the branch"),
            Source::Distro { .. } => {
                assert_eq!(driver.pin.is_some(), config.driver.branch.contains('.'), "{shown}");
            }
        }
        let switched =
            !facts.gpu.nvswitches.is_empty() || [0x2901, 0x3182].contains(&id) && facts.gpu.gpus.len() > 1;
        assert_eq!(stack.fabric_manager.is_some(), switched, "{shown}: {:?}", stack.fabric_manager);
    } else {
        assert!(config.driver.branch == "none" && stack.fabric_manager.is_none(), "{shown}");
    }
    for toolkit in &stack.toolkits {
        let version = number(&toolkit.version);
        let minor = version[..2].to_vec();
        assert!(number(first_toolkit) <= minor && minor <= number(last_toolkit), "{shown}: {minor:?}");
        assert!(branch.is_none_or(|b| b >= least_branch(&version)), "{shown}: CUDA {minor:?} on {branch:?}");
        for package in &toolkit.packages {
            let harmless = ["nvidia-cuda-toolkit", "g++"].contains(&package.as_str());
            assert!(harmless || package.starts_with("cuda-toolkit-"), "{shown}: {package} pulls a driver");
        }
    }
    if let Some(cudnn) = &stack.cudnn {
        let cuda = number(&stack.toolkits[0].version)[0];
        let name = cudnn.packages[0].split('=').next().unwrap();
        assert!(!name.contains("-cuda-") || name.ends_with(&format!("-cuda-{cuda}")), "{shown}: {name}");
        let newest = if cuda == 11 { vec![9, 10] } else { vec![9, 25] };
        let version = if cudnn.version == "auto" { newest } else { number(&cudnn.version) };
        assert!(
            cudnn_knows(&version, &architecture, cuda),
            "{shown}: cuDNN {version:?}, CUDA {cuda}, {architecture}"
        );
    }
    for reason in &stack.reasons {
        assert!(reason.ends_with('.'), "{reason}");
        assert!(reason.chars().next().unwrap().is_uppercase() || reason.starts_with("cuDNN"), "{reason}");
    }
    let last = stack.reasons.last().unwrap();
    assert_eq!(!stack.unverified.is_empty(), last.starts_with("No source confirms"), "{shown}: {last}");
}

/// The settings that a hint names: `key = "value"`.
fn settings(hint: &str) -> Vec<String> {
    let mut found = Vec::new();
    let parts: Vec<_> = hint.split(" = \"").collect();
    for pair in parts.windows(2) {
        let key = pair[0].rsplit(' ').next().unwrap();
        let value = pair[1].split('"').next().unwrap();
        found.push(format!("{key} = '{value}'"));
    }
    found
}

/// A configuration with one key set anew.
fn with(wish: &str, setting: &str) -> Config {
    let key = setting.split(" = ").next().unwrap();
    let kept = wish.lines().filter(|line| line.split(" = ").next() != Some(key));
    let text = kept.chain([setting]).collect::<Vec<_>>().join("\n");
    toml::from_str(&text).unwrap_or_else(|e| panic!("{text}: {e}"))
}

/// Ways out that were tried on a machine: refusals name the same ones again and again.
type Tried = BTreeSet<String>;

fn check_refusal(
    catalog: &Catalog,
    facts: &Facts,
    wish: &str,
    error: &Error,
    shown: &str,
    known_ways: &mut Tried,
) -> usize {
    let shown = format!("{shown}: {error}; {:?}", error.hint());
    if error.code() == Code::FractionalGpu {
        return 0;
    }
    let known = [Code::ImpossibleWish, Code::UnsupportedArch, Code::RepositoryKeyUnknown];
    assert!(known.contains(&error.code()), "{} {shown}", error.code());
    assert!(error.has_own_hint() && !error.message().ends_with('.'), "{shown}");
    let hint = error.hint().unwrap();
    let mut count = 0;
    for way in hint.split("; or ").filter(|way| way.starts_with("set ")) {
        let mut config = with(wish, &settings(way)[0]);
        if way.contains("leave the versions to \"auto\"") {
            config = with("", &settings(way)[0]);
        }
        if !known_ways.insert(format!("{way} {config:?}")) {
            continue;
        }
        let tried = choose(catalog, facts, &config, None);
        let Ok(Choice::Install(stack)) = &tried else { panic!("{way} does not help {shown}: {tried:?}") };
        check(catalog, facts, &config, stack, &shown);
        if let Some(branch) = way.split("driver branch ").nth(1) {
            assert_eq!(stack.driver.as_ref().unwrap().branch, branch[..3], "{shown}");
        }
        count += 1;
    }
    for way in hint.split("; or ").filter_map(|way| way.strip_prefix("use ")) {
        let (systems, source) = way.split_once(" with ").unwrap_or((way, ""));
        let kept = wish.lines().find(|line| line.starts_with("source.packages")).unwrap_or_default();
        let config = match settings(&format!(" {source}")).pop() {
            Some(source) => with("", &source),
            None => toml::from_str(kept).unwrap(),
        };
        for system in systems.split(" or ") {
            if !known_ways.insert(format!("{system} {source} {kept}")) {
                continue;
            }
            let distro = distributions(catalog).into_iter().find(|d| d.title == system);
            let name = distro.unwrap_or_else(|| panic!("{system}: {shown}")).name;
            let mut facts = facts.clone();
            facts.os = machine::facts(&name, facts.os.arch.value).os;
            let tried = choose(catalog, &facts, &config, None);
            assert!(matches!(tried, Ok(Choice::Install(_))), "{system} does not help {shown}: {tried:?}");
            count += 1;
        }
    }
    count
}

#[test]
fn every_machine_and_wish_is_a_consistent_stack_or_a_refusal_with_a_way_out() {
    let catalog = Catalog::embedded().unwrap();
    let (machines, wishes) = (machines(&catalog), wishes());
    let parts = 4;
    let totals = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..parts)
            .map(|part| {
                let (catalog, machines, wishes) = (&catalog, &machines, &wishes);
                scope.spawn(move || {
                    let (mut stacks, mut refusals, mut ways) = (0, 0, 0);
                    for (name, facts) in machines.iter().skip(part).step_by(parts) {
                        let mut known_ways = Tried::new();
                        for wish in wishes {
                            let shown = format!("{name}, {}", wish.replace('\n', ", "));
                            let config: Config = toml::from_str(wish).unwrap();
                            match choose(catalog, facts, &config, None) {
                                Ok(Choice::Install(stack)) => {
                                    check(catalog, facts, &config, &stack, &shown);
                                    stacks += 1;
                                }
                                Ok(Choice::Nothing { why }) => panic!("{shown}: {why}"),
                                Err(error) => {
                                    ways +=
                                        check_refusal(catalog, facts, wish, &error, &shown, &mut known_ways);
                                    refusals += 1;
                                }
                            }
                        }
                    }
                    (stacks, refusals, ways)
                })
            })
            .collect();
        workers
            .into_iter()
            .map(|w| w.join().unwrap())
            .fold((0, 0, 0), |a, b| (a.0 + b.0, a.1 + b.1, a.2 + b.2))
    });
    println!(
        "{} machines, {} wishes each: (stacks, refusals, ways out tried) = {totals:?}",
        machines.len(),
        wishes.len()
    );
    assert!(totals.0 > 5_000 && totals.1 > 20_000 && totals.2 > 3_000, "{totals:?}");
}

#[test]
fn every_release_of_a_gpu_that_nobody_knows_yet_is_served() {
    let catalog = Catalog::embedded().unwrap();
    for id in 0x3400..=0x3fff_u16 {
        let mut facts = machine::facts("ubuntu2404", Arch::Amd64);
        machine::plug(&mut facts.gpu, machine::function(0x10de, id, 0x0302));
        let Ok(Choice::Install(stack)) = choose(&catalog, &facts, &Config::default(), None) else {
            panic!("{id:04x}")
        };
        assert!(stack.driver.unwrap().open, "{id:04x}");
        assert!(stack.reasons.iter().any(|r| r.contains("newest architecture")), "{id:04x}");
        assert!(stack.unverified.iter().any(|u| u.key == "gpu.architecture"), "{id:04x}");
    }
}
