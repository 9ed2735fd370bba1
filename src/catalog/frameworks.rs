//! Which lock of the frameworks fits the machine: by its Python, its driver and its GPUs, or a refusal with the reason. The
//! wheels bring CUDA's libraries themselves, so the toolkit's version only breaks ties; what counts is the driver.

use std::fmt::Write as _;

use super::choose::Stack;
use super::version::Version;
use crate::config::Config;
use crate::config::schema::FrameworksConfig;
use crate::embedded::inflate_text;
use crate::error::{Code, Error, Result};
use crate::facts::Facts;
use crate::facts::os::Arch;

/// All locks, each wheel once (`build.rs` writes it): lines of wheels, an empty line, a line for each lock.
const LOCKS: &[u8] = include_bytes!(env!("FRAMEWORK_LOCKS"));

/// The distribution's own Python 3. Sources: Debian's and Ubuntu's package lists.
const PYTHONS: [(&str, &str); 9] = [
    ("debian11", "3.9"),
    ("debian12", "3.11"),
    ("debian13", "3.13"),
    ("ubuntu1804", "3.6"),
    ("ubuntu2004", "3.8"),
    ("ubuntu2204", "3.10"),
    ("ubuntu2404", "3.12"),
    ("ubuntu2504", "3.13"),
    ("ubuntu2604", "3.14"),
];

/// What wheels are built for.
#[derive(Debug)]
struct Device {
    /// First part of the lock's name.
    name: &'static str,
    /// Its toolkits' major version.
    cuda: u32,
    /// The oldest driver that runs every program of that major version (CUDA's release notes, minor version compatibility).
    driver: &'static str,
    /// Architectures that the wheels have no code for. `PyTorch`'s RELEASE.md: CUDA 12.8 begins with Volta, 13 with Turing.
    without: &'static [&'static str],
}

const CUDA: [Device; 2] = [
    Device {
        name: "cuda13",
        cuda: 13,
        driver: "580.65.06",
        without: &["Fermi", "Kepler", "Maxwell", "Pascal", "Volta"],
    },
    Device {
        name: "cuda12",
        cuda: 12,
        driver: "525.60.13",
        without: &["Fermi", "Kepler", "Maxwell", "Pascal"],
    },
];

/// `PyTorch` 2.8, the last for Python 3.9, has no code for Volta by its release notes, and has it by its build script: what is
/// not sure is not chosen.
const WITHOUT_VOLTA: &str = "3.9";

/// What will be installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frameworks {
    /// The version of Python, `3.11`.
    pub python: String,
    /// What the wheels are built for: `cuda12`, `cuda13`, `cpu`.
    pub device: &'static str,
    /// The frameworks, sorted.
    pub wanted: Vec<String>,
    /// Where the environment lies.
    pub path: String,
    /// A pip requirements file: every wheel by version and SHA-256, its size behind `#`.
    pub requirements: String,
}

impl Frameworks {
    /// A few words.
    pub fn describe(&self) -> String {
        format!("{} for {} and Python {}", self.wanted.join(", "), self.device, self.python)
    }
}

/// Chooses; `None` where the configuration names no framework.
pub fn choose(facts: &Facts, config: &Config, stack: &Stack) -> Result<Option<Frameworks>> {
    let wish = &config.frameworks;
    if wish.python.is_empty() {
        return Ok(None);
    }
    let mut wanted = wish.python.clone();
    wanted.sort();
    let python = python_of(facts)?;
    if facts.os.arch.value != Arch::Amd64 {
        return Err(refused("there are no locks of the frameworks for arm64")
            .with_hint("leave [frameworks] away; on arm64, install them by hand"));
    }
    let device = device(driver(facts, config, stack), wish, stack, python, &wanted)?;
    let requirements = requirements(device, python, &wanted)?;
    let path = match wish.path.as_str() {
        "" => format!("/opt/gpu-bootstrap/{}-{device}", wanted.join("-")),
        path => path.to_owned(),
    };
    Ok(Some(Frameworks { python: python.into(), device, wanted, path, requirements }))
}

fn python_of(facts: &Facts) -> Result<&'static str> {
    let distro = facts.os.distro();
    PYTHONS.iter().find(|(name, _)| *name == distro).map(|(_, python)| *python).ok_or_else(|| {
        refused(format!(
            "nobody here knows which Python {distro} has, so that no lock of the frameworks can be chosen"
        ))
        .with_hint(
            "leave [frameworks] away, or use a release of Debian or Ubuntu that docs/frameworks.md lists",
        )
    })
}

/// The kind of device that has a lock with all that is wanted, a driver that runs it, and code for every GPU.
fn device(
    driver: Option<Version>,
    wish: &FrameworksConfig,
    stack: &Stack,
    python: &str,
    wanted: &[String],
) -> Result<&'static str> {
    use crate::config::schema::Device::{Auto, Cpu, Cuda12, Cuda13};
    let asked = match wish.device {
        Cpu => return locked("cpu", python, wanted).map(|()| "cpu"),
        Auto => None,
        Cuda12 => Some(12),
        Cuda13 => Some(13),
    };
    let toolkit = stack.toolkits.first().and_then(|t| Version::parse(&t.version)).map(|v| v.major());
    let driver = driver.ok_or_else(|| {
        refused("the frameworks are to use the GPU, and no driver is wanted or loaded")
            .with_hint("let driver.branch choose one, or write device = \"cpu\" below [frameworks]")
    })?;
    let mut devices: Vec<_> = CUDA.iter().filter(|d| asked.is_none_or(|asked| d.cuda == asked)).collect();
    // The toolkit's generation first, where there is a choice.
    devices.sort_by_key(|d| Some(d.cuda) != toolkit);
    let mut reasons = String::new();
    for device in devices {
        match fits(device, &driver, stack, python, wanted) {
            Ok(()) => return Ok(device.name),
            Err(why) => {
                let _ =
                    write!(reasons, "{}{}: {why}", if reasons.is_empty() { "" } else { "; " }, device.name);
            }
        }
    }
    Err(refused(format!("no lock of the frameworks fits: {reasons}"))
        .with_hint("ask for fewer frameworks, a newer driver branch or another release; device = \"cpu\" does without the GPU"))
}

fn fits(
    device: &Device,
    driver: &Version,
    stack: &Stack,
    python: &str,
    wanted: &[String],
) -> Result<(), String> {
    // A branch that was not asked for by an exact version is its newest release.
    let oldest = Version::parse(device.driver).ok_or("the table is wrong")?;
    let enough = if driver.depth() == 1 { driver.major() >= oldest.major() } else { *driver >= oldest };
    if !enough {
        return Err(format!("it needs driver {oldest}, and this is {driver}"));
    }
    let is_without = |name: &&String| {
        device.without.contains(&name.as_str()) || (python == WITHOUT_VOLTA && *name == "Volta")
    };
    if let Some(old) = stack.gpu_architectures.iter().find(is_without) {
        return Err(format!("its wheels have no code for {old} GPUs"));
    }
    locked(device.name, python, wanted).map_err(|e| e.message().to_owned())
}

/// The driver that there will be: a branch, or the version that was asked for; without a driver of ours, the loaded one.
fn driver(facts: &Facts, config: &Config, stack: &Stack) -> Option<Version> {
    let exact = Version::parse(&config.driver.branch).filter(|wish| wish.depth() > 1);
    let planned = stack.driver.as_ref().and_then(|d| exact.or_else(|| Version::parse(&d.branch)));
    planned.or_else(|| Version::parse(&facts.gpu.driver.as_ref()?.value.version))
}

/// Refuses what the lock does not have.
fn locked(device: &str, python: &str, wanted: &[String]) -> Result<()> {
    requirements(device, python, wanted).map(drop)
}

/// The lines of the lock that these frameworks need, with the wheels' sizes behind `#`.
fn requirements(device: &str, python: &str, wanted: &[String]) -> Result<String> {
    let text = inflate_text(LOCKS);
    let (wheels, locks) = text.split_once("\n\n").unwrap_or_default();
    let wheels: Vec<_> = wheels.lines().collect();
    let name = format!("{device}-{python} ");
    let lock = locks.lines().find_map(|line| line.strip_prefix(&name)).ok_or_else(|| {
        refused(format!("PyPI has no wheels of these frameworks for {device} and Python {python}"))
    })?;
    // `12:keras+torch`: the number of a wheel's line, and whose it is.
    let entries: Vec<(&str, Vec<&str>)> = lock
        .split(' ')
        .filter_map(|entry| entry.split_once(':'))
        .filter_map(|(n, users)| Some((*wheels.get(n.parse::<usize>().ok()?)?, users.split('+').collect())))
        .collect();
    let has = |framework: &String| entries.iter().any(|(_, users)| users.contains(&framework.as_str()));
    if let Some(missing) = wanted.iter().find(|f| !has(f)) {
        return Err(refused(format!("PyPI has no wheel of {missing} for {device} and Python {python}")));
    }
    let needed = entries.iter().filter(|(_, users)| users.iter().any(|u| wanted.iter().any(|w| w == u)));
    Ok(needed.fold(String::new(), |text, (line, _)| text + line + "\n"))
}

fn refused(message: impl Into<String>) -> Error {
    Error::new(Code::ImpossibleWish, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(framework: &[&str]) -> Vec<String> {
        framework.iter().map(|f| (*f).to_owned()).collect()
    }

    fn stack(architecture: &str, branch: Option<&str>, toolkit: Option<&str>) -> Stack {
        let driver = branch.map(|branch| {
            serde_json::json!({ "branch": branch, "open": true, "packages": [], "kernel_packages": [], "modules": [] })
        });
        let toolkits: Vec<_> = toolkit
            .iter()
            .map(|v| serde_json::json!({ "version": v, "packages": [], "home": null }))
            .collect();
        serde_json::from_value(serde_json::json!({
            "gpu_architectures": [architecture], "source": { "distro": { "components": [] } }, "driver": driver,
            "toolkits": toolkits, "cudnn": null, "cudnn_debs": [], "fabric_manager": null, "expect_gpus": 1, "reasons": [],
        }))
        .unwrap()
    }

    #[test]
    fn every_lock_has_whole_lines_and_every_wheel_its_sum() {
        let text = inflate_text(LOCKS);
        let (_, locks) = text.split_once("\n\n").unwrap();
        let mut seen = 0;
        for lock in locks.lines() {
            let (device, python) = lock.split_once(' ').unwrap().0.split_once('-').unwrap();
            let wanted = ["tensorflow", "keras", "torch", "jax", "tensorboard"].map(str::to_owned);
            let has: Vec<_> =
                wanted.iter().filter(|w| locked(device, python, &[(*w).clone()]).is_ok()).cloned().collect();
            let requirements = requirements(device, python, &has).unwrap();
            assert!(requirements.lines().count() > 10, "{lock}");
            for line in requirements.lines() {
                let (pin, rest) = line.split_once(" --hash=sha256:").unwrap();
                let (sum, size) = rest.split_once(" # ").unwrap();
                assert!(pin.split("==").count() == 2, "{line}");
                assert!(sum.len() == 64 && sum.bytes().all(|b| b.is_ascii_hexdigit()), "{line}");
                assert!(size.parse::<u64>().unwrap() > 500, "{line}");
            }
            seen += 1;
        }
        assert!(seen >= 15, "{seen}");
    }

    #[test]
    fn fewer_frameworks_need_fewer_wheels() {
        let torch = requirements("cuda12", "3.11", &names(&["torch"])).unwrap();
        assert!(torch.contains("\ntorch==2.") || torch.starts_with("torch==2."), "{torch}");
        assert!(torch.contains("nvidia-cudnn-cu12==") && !torch.contains("tensorflow=="), "{torch}");
        let both = requirements("cuda12", "3.11", &names(&["keras", "torch"])).unwrap();
        assert!(both.contains("keras==3.") && both.lines().count() > torch.lines().count());
    }

    #[test]
    fn the_driver_and_the_gpu_decide_and_the_toolkit_breaks_ties() {
        let chosen = |stack: &Stack, wanted: &[&str], python: &str| {
            let branch = stack.driver.as_ref().and_then(|d| Version::parse(&d.branch));
            device(branch, &FrameworksConfig::default(), stack, python, &names(wanted))
                .map_err(|e| e.message().to_owned())
        };
        assert_eq!(chosen(&stack("Ampere", Some("580"), Some("13.0")), &["torch"], "3.11"), Ok("cuda13"));
        assert_eq!(chosen(&stack("Ampere", Some("580"), Some("12.8")), &["torch"], "3.11"), Ok("cuda12"));
        assert_eq!(
            chosen(&stack("Ampere", Some("580"), Some("13.0")), &["tensorflow"], "3.11"),
            Ok("cuda12")
        );
        assert_eq!(chosen(&stack("Ampere", Some("570"), Some("12.8")), &["jax"], "3.12"), Ok("cuda12"));
        assert_eq!(chosen(&stack("Volta", Some("580"), None), &["torch"], "3.11"), Ok("cuda12"));
        assert_eq!(chosen(&stack("Ampere", Some("525.60.13"), None), &["torch"], "3.11"), Ok("cuda12"));
        for (stack, wanted, python, why) in [
            (
                stack("Ampere", Some("525.53"), None),
                "torch",
                "3.11",
                "needs driver 525.60.13, and this is 525.53",
            ),
            (
                stack("Ampere", Some("470"), Some("11.4")),
                "torch",
                "3.11",
                "cuda12: it needs driver 525.60.13",
            ),
            (stack("Pascal", Some("580"), None), "torch", "3.11", "no code for Pascal"),
            (stack("Volta", Some("580"), None), "torch", "3.9", "no code for Volta"),
            (
                stack("Ampere", Some("580"), None),
                "tensorflow",
                "3.14",
                "no wheel of tensorflow for cuda13 and Python 3.14",
            ),
            (
                stack("Ampere", Some("580"), None),
                "torch",
                "3.8",
                "no wheels of these frameworks for cuda12 and Python 3.8",
            ),
            (stack("Ampere", None, None), "torch", "3.11", "no driver is wanted or loaded"),
        ] {
            let error = chosen(&stack, &[wanted], python).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }
}
