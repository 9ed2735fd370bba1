//! What training on several GPUs and machines takes on this one: NCCL by the toolkit's CUDA generation, EFA by the devices on
//! the bus, `GDRCopy`, and the check; or a refusal with the reason.

use super::Catalog;
use super::choose::{Deb, Source, Stack};
use super::version::Version;
use crate::bundle;
use crate::config::Config;
use crate::config::schema::{CollectiveCheck, Enabled};
use crate::error::{Code, Error, Result};
use crate::facts::Facts;

/// NCCL in the distributions' own archives (Debian's contrib, Ubuntu's multiverse). Source: their indexes, November 2026.
const DISTRO_NCCL: [(&str, &str); 3] =
    [("debian13", "2.22.3"), ("ubuntu2404", "2.18.5"), ("ubuntu2604", "2.22.3")];

/// An installer of EFA whose sum its publisher confirms.
struct Installer {
    version: &'static str,
    sha256: &'static str,
    /// Distributions that a source of AWS's installs it on.
    distros: &'static [&'static str],
}

/// Newest first. Source: aws-parallelcluster-cookbook 3.10, `attributes/environment.rb` and `resources/efa/`.
const INSTALLERS: [Installer; 1] = [Installer {
    version: "1.32.0",
    sha256: "5f7233760be57f6fee6de8c09acbfbf59238de848e06048dc54d156ef578fc66",
    distros: &["ubuntu2004", "ubuntu2204"],
}];

/// The installer that AWS's user guide named last. Its sum is not confirmed by AWS here, so it is never chosen.
const NEWEST: &str = "1.50.0";

/// Where AWS lists the sums.
const SUMS: &str = "https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/efa-verify.html";

/// What is wanted of all this.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Distributed {
    /// NCCL's packages, with a pattern of versions.
    pub nccl: Vec<String>,
    /// EFA's installer.
    pub efa: Option<Efa>,
    /// `GDRCopy`'s packages.
    pub gdrcopy: Vec<Deb>,
}

/// EFA's installer: a tar file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Efa {
    /// Where it is.
    pub url: String,
    /// 64 hexadecimal digits, lower case.
    pub sha256: String,
}

/// Whether anything of it is asked for: then the environment is written.
pub fn is_wanted(facts: &Facts, config: &Config, stack: &Stack) -> bool {
    let d = &config.distributed;
    d.nccl != "none"
        || !d.gdrcopy.is_empty()
        || d.check != CollectiveCheck::None
        || wants_efa(facts, config, stack)
}

/// Whether an image is made, on a machine without a GPU, for machines that are named.
fn bakes(facts: &Facts, config: &Config) -> bool {
    facts.gpu.gpus.is_empty() && !config.policy.bake_for.is_empty()
}

/// The most EFA devices that the machine can have, or any of those that an image is for.
pub(super) fn most_efa(catalog: &Catalog, facts: &Facts, config: &Config) -> Option<u32> {
    if !bakes(facts, config) {
        return catalog.type_of(facts).map(|t| t.efa);
    }
    let types = config.policy.bake_for.iter().filter_map(|name| catalog.instance_type(name));
    types.map(|t| t.efa).max()
}

/// Whether EFA is to be set up: asked for, or left to the machine, which has devices. While an image is baked, the types that
/// it is for decide.
pub fn wants_efa(facts: &Facts, config: &Config, stack: &Stack) -> bool {
    match &config.distributed.efa {
        Enabled::Fixed(wanted) => *wanted,
        Enabled::Auto(_) if bakes(facts, config) => stack.most_efa.is_some_and(|most| most > 0),
        Enabled::Auto(_) => !facts.efa.is_empty(),
    }
}

/// Chooses.
pub fn choose(facts: &Facts, config: &Config, stack: &Stack) -> Result<Distributed> {
    check(config)?;
    let gdrcopy = config.distributed.gdrcopy.iter();
    Ok(Distributed {
        nccl: nccl(facts, config, stack)?,
        efa: wants_efa(facts, config, stack).then(|| efa(facts, config, stack)).transpose()?,
        gdrcopy: gdrcopy
            .map(|d| Deb { url: d.url.clone(), sha256: d.sha256.to_ascii_lowercase(), index: None })
            .collect(),
    })
}

fn check(config: &Config) -> Result<()> {
    let d = &config.distributed;
    let torch = config.frameworks.python.iter().any(|f| f == "torch");
    if d.check == CollectiveCheck::Torch && !torch {
        return Err(refused(
            "distributed.check = \"torch\" needs PyTorch, and frameworks.python does not name it",
        )
        .with_hint("add \"torch\" to frameworks.python, or write check = \"nccl-tests\""));
    }
    let needless = match d.check {
        CollectiveCheck::NcclTests => None,
        _ if !d.check_command.is_empty() => Some("check-command"),
        CollectiveCheck::None if d.check_bandwidth > 0 => Some("check-bandwidth"),
        _ => None,
    };
    needless.map_or(Ok(()), |key| {
        Err(Error::new(
            Code::ConfigType,
            format!("distributed.{key} is set, and distributed.check does not use it"),
        )
        .with_hint("write check = \"nccl-tests\" below [distributed], or leave the key away"))
    })
}

/// NCCL's packages. NVIDIA's repository has each version once for every CUDA generation, told by the end of the version
/// (`2.28.9-1+cuda13.0`); the newest of them need not be the toolkit's.
fn nccl(facts: &Facts, config: &Config, stack: &Stack) -> Result<Vec<String>> {
    let wish = config.distributed.nccl.as_str();
    if wish == "none" {
        return Ok(Vec::new());
    }
    let Some(cuda) = stack.toolkits.first().and_then(|t| Version::parse(&t.version)) else {
        return Err(refused(format!(
            "distributed.nccl = {wish:?} follows the toolkit's CUDA, and no toolkit is wanted"
        ))
        .with_hint(
            "let cuda.toolkit choose one, or leave nccl away: frameworks' wheels bring their own NCCL",
        ));
    };
    let version = match &stack.source {
        Source::Nvidia(_) => Some(pattern(wish, cuda.major())),
        Source::Distro { .. } => {
            of_distribution(&facts.os.distro(), wish)?;
            None
        }
    };
    let spec = |name: &str| version.as_ref().map_or_else(|| name.to_owned(), |v| format!("{name}={v}"));
    Ok(["libnccl2", "libnccl-dev"].map(spec).into())
}

/// A pattern of versions for apt. It must not end with a star: apt takes that for the beginning of a version, letter by letter.
fn pattern(wish: &str, cuda: u32) -> String {
    match (wish, wish.matches('.').count()) {
        ("auto", _) => format!("*+cuda{cuda}.?"),
        (version, 2) => format!("{version}-*+cuda{cuda}.?"),
        (version, _) => format!("{version}.*+cuda{cuda}.?"),
    }
}

fn of_distribution(distro: &str, wish: &str) -> Result<()> {
    let found = DISTRO_NCCL.iter().find(|(name, _)| *name == distro).map(|(_, version)| *version);
    let fits = |version: &str| wish == "auto" || version == wish || version.starts_with(&format!("{wish}."));
    match found {
        Some(version) if fits(version) => Ok(()),
        Some(version) => Err(refused(format!("{distro} packages NCCL {version}, not {wish}"))),
        None => Err(refused(format!("{distro} packages no NCCL"))),
    }
    .map_err(|e| e.with_hint("take packages from NVIDIA (source.packages = \"nvidia\"), or leave nccl away"))
}

/// EFA's installer: the configured one, or one that is known here.
fn efa(facts: &Facts, config: &Config, stack: &Stack) -> Result<Efa> {
    let d = &config.distributed;
    if d.efa == Enabled::Fixed(true) && facts.efa.is_empty() && !facts.gpu.gpus.is_empty() {
        return Err(no_device(facts, stack));
    }
    if bundle::is_wanted(config) {
        return Err(refused("distributed.efa: a bundle does not hold EFA's installer").with_hint(
            "set EFA up while an image is baked with a network, or write efa = false for this machine",
        ));
    }
    match (d.efa_url.as_str(), d.efa_sha256.as_str()) {
        ("", "") => known(&facts.os.distro()),
        (_, "") | ("", _) => Err(Error::new(
            Code::ConfigType,
            "distributed.efa-url and efa-sha256 are one thing: a file and its sum".to_owned(),
        )
        .with_hint(format!("give both; AWS lists the sums at {SUMS}"))),
        (url, sha256) => Ok(Efa { url: url.to_owned(), sha256: sha256.to_ascii_lowercase() }),
    }
}

fn known(distro: &str) -> Result<Efa> {
    let found = INSTALLERS.iter().find(|i| i.distros.contains(&distro)).ok_or_else(|| {
        refused(format!("no sum of an EFA installer for {distro} is confirmed here")).with_hint(format!(
            "give distributed.efa-url = \"{}\" and efa-sha256 as AWS lists it at {SUMS}",
            installer_url(NEWEST)
        ))
    })?;
    Ok(Efa { url: installer_url(found.version), sha256: found.sha256.into() })
}

fn installer_url(version: &str) -> String {
    format!("https://efa-installer.amazonaws.com/aws-efa-installer-{version}.tar.gz")
}

fn no_device(facts: &Facts, stack: &Stack) -> Error {
    let name = facts.identity.instance.as_ref().map(|i| i.value.instance_type.as_str());
    let error = refused("distributed.efa = true, and this machine has no EFA device");
    match (name, stack.most_efa) {
        (Some(name), Some(0)) => error.with_hint(format!(
            "{name} can have none: use a larger size, or write efa = \"auto\" for a fleet of several types"
        )),
        (Some(name), Some(most)) => error.with_hint(format!(
            "launch {name} with network interfaces of the type efa (up to {most}; it cannot be added while it runs), or write efa = \"auto\""
        )),
        _ => error.with_hint("launch the instance with a network interface of the type efa, or write efa = \"auto\""),
    }
}

fn refused(message: impl Into<String>) -> Error {
    Error::new(Code::ImpossibleWish, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{Choice, machine};

    fn config(text: &str) -> Config {
        toml::from_str(text).unwrap()
    }

    fn chosen(distro: &str, instance_type: &str, text: &str) -> Result<Distributed> {
        let catalog = Catalog::embedded().unwrap();
        let facts = machine::instance(distro, &catalog.instance_type(instance_type).unwrap());
        let config = config(text);
        match crate::catalog::choose(&catalog, &facts, &config, None)? {
            Choice::Install(stack) => choose(&facts, &config, &stack),
            Choice::Nothing { why } => panic!("{why}"),
        }
    }

    #[track_caller]
    fn refusal(distro: &str, instance_type: &str, text: &str) -> String {
        let error = chosen(distro, instance_type, text).unwrap_err();
        format!("{}; {}", error.message(), error.hint().unwrap_or_default())
    }

    #[test]
    fn nothing_is_wanted_unless_it_is_asked_for() {
        assert_eq!(chosen("ubuntu2204", "p5.48xlarge", "").unwrap(), Distributed::default());
    }

    #[test]
    fn nccl_follows_the_toolkits_generation() {
        let of = |cuda: &str, nccl: &str| {
            let text = format!("[cuda]\ntoolkit = \"{cuda}\"\n[distributed]\nnccl = \"{nccl}\"\n");
            chosen("ubuntu2204", "p4d.24xlarge", &text).unwrap().nccl
        };
        assert_eq!(of("12.8", "auto"), ["libnccl2=*+cuda12.?", "libnccl-dev=*+cuda12.?"]);
        assert_eq!(of("13.0", "2.28.9")[0], "libnccl2=2.28.9-*+cuda13.?");
        assert_eq!(of("13.0", "2.28")[0], "libnccl2=2.28.*+cuda13.?");
        let matches =
            |pattern: &str, version: &str| crate::action::repository::matches_any(&[pattern.into()], version);
        assert!(matches("2.28.9-*+cuda13.?", "2.28.9-1+cuda13.0"));
        assert!(
            !matches("2.28.9-*+cuda13.?", "2.28.9-1+cuda12.9") && !matches("*+cuda12.?", "2.32.3-1+cuda13.2")
        );
    }

    #[test]
    fn the_distributions_nccl_is_what_their_archives_have() {
        let distro = "[source]\npackages = \"distro\"\n[distributed]\nnccl = ";
        let of = |name: &str, nccl: &str| chosen(name, "g4dn.xlarge", &format!("{distro}\"{nccl}\""));
        assert_eq!(of("debian13", "auto").unwrap().nccl, ["libnccl2", "libnccl-dev"]);
        assert!(of("ubuntu2404", "2.18").is_ok());
        for (name, nccl, why) in [
            ("debian12", "auto", "debian12 packages no NCCL"),
            ("ubuntu2404", "2.28.9", "packages NCCL 2.18.5, not 2.28.9"),
        ] {
            let error = of(name, nccl).unwrap_err();
            assert!(error.message().contains(why), "{error}");
        }
    }

    #[test]
    fn without_a_toolkit_nobody_knows_which_nccl() {
        let text =
            "[cuda]\ntoolkit = \"none\"\n[cudnn]\nversion = \"none\"\n[distributed]\nnccl = \"auto\"\n";
        assert!(
            refusal("ubuntu2204", "g5.xlarge", text)
                .contains("no toolkit is wanted; let cuda.toolkit choose one")
        );
    }

    #[test]
    fn efa_follows_the_devices() {
        let auto = "[distributed]\nefa = \"auto\"\n";
        let found = chosen("ubuntu2204", "p5.48xlarge", auto).unwrap().efa.unwrap();
        assert!(found.url.ends_with("aws-efa-installer-1.32.0.tar.gz") && found.sha256.starts_with("5f72"));
        assert_eq!(chosen("ubuntu2204", "g5.xlarge", auto).unwrap().efa, None);
        let must = "[distributed]\nefa = true\n";
        let text = refusal("ubuntu2204", "g5.xlarge", must);
        assert!(text.contains("has no EFA device; g5.xlarge can have none"), "{text}");
        // Baked without a GPU: the types that it is for.
        let baked = |types: &str| {
            let facts = machine::facts("ubuntu2204", crate::facts::os::Arch::Amd64);
            let config = config(&format!("{auto}[policy]\non-no-gpu = \"install\"\nfor = [{types}]"));
            match crate::catalog::choose(&Catalog::embedded().unwrap(), &facts, &config, None).unwrap() {
                Choice::Install(stack) => wants_efa(&facts, &config, &stack),
                Choice::Nothing { why } => panic!("{why}"),
            }
        };
        assert!(baked("\"g5.xlarge\", \"g5.8xlarge\"") && !baked("\"g5.xlarge\""));
    }

    #[test]
    fn tables_in_place_of_the_built_in_ones_count() {
        let mut catalog = Catalog::embedded().unwrap();
        let facts = machine::instance("ubuntu2204", &catalog.instance_type("g5.xlarge").unwrap());
        let most =
            |catalog: &Catalog| match crate::catalog::choose(catalog, &facts, &config(""), None).unwrap() {
                Choice::Install(stack) => (stack.most_efa, stack.gpu_memory),
                Choice::Nothing { why } => panic!("{why}"),
            };
        assert_eq!(most(&catalog).0, Some(0));
        let family = catalog.instances.family.iter_mut().find(|f| f.name == "g5").unwrap();
        family.efa.insert("xlarge".into(), 2);
        family.memory = Some(1234);
        assert_eq!(most(&catalog), (Some(2), Some(1234)));
    }

    #[test]
    fn an_installer_comes_with_a_sum_that_somebody_answers_for() {
        let text = refusal("ubuntu2404", "p5.48xlarge", "[distributed]\nefa = \"auto\"\n");
        assert!(text.contains("no sum of an EFA installer for ubuntu2404 is confirmed here"), "{text}");
        assert!(
            text.contains("aws-efa-installer-1.50.0.tar.gz") && text.contains("efa-verify.html"),
            "{text}"
        );
        let url = "efa-url = \"https://example.com/aws-efa-installer-1.50.0.tar.gz\"\n";
        let own = format!("[distributed]\nefa = \"auto\"\n{url}");
        assert!(refusal("ubuntu2404", "p5.48xlarge", &own).contains("a file and its sum"));
        let own = format!("{own}efa-sha256 = \"{}\"\n", "AB".repeat(32));
        assert_eq!(chosen("ubuntu2404", "p5.48xlarge", &own).unwrap().efa.unwrap().sha256, "ab".repeat(32));
    }

    #[test]
    fn a_check_that_cannot_work_is_refused() {
        let text = refusal("ubuntu2204", "g5.xlarge", "[distributed]\ncheck = \"torch\"\n");
        assert!(text.contains("frameworks.python does not name it"), "{text}");
        let text = refusal("ubuntu2204", "g5.xlarge", "[distributed]\ncheck-command = [\"a\"]\n");
        assert!(text.contains("check-command is set"), "{text}");
    }
}
