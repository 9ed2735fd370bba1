//! `efa-installer`: libfabric, rdma-core and NCCL's plugin for EFA, by AWS's installer: a tar file with packages and the script that
//! knows which of them go with which distribution. Nothing of it runs before the file's SHA-256 is the wanted one.
//!
//! The kernel's own EFA module is used where it has one; the installer's, by DKMS, only where not. What the script installs is told by
//! its list (`/opt/amazon/efa_installed_packages`) and dpkg, and noted for `uninstall` by what was there before.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{Applied, Check, Converge, driver};
use crate::catalog::version::Version;
use crate::error::{Code, Error, Result};
use crate::host::added::AddedPackage;
use crate::host::apt::locks;
use crate::host::dpkg::{Package, State};
use crate::host::exec::Call;
use crate::host::fetch::redact_text;
use crate::host::{Host, paths};
use crate::install::Installer;

/// The installer's own list of what it has installed.
const LIST: &str = "/opt/amazon/efa_installed_packages";
/// libfabric's program that lists providers; the last thing that one looks for.
const FI_INFO: &str = "/opt/amazon/efa/bin/fi_info";
/// Where it is unpacked; gone afterwards.
const ROOM: &str = "/var/lib/gpu-bootstrap/efa";
/// The packages that were there before it began, for a run that goes on after a kill.
const BEFORE: &str = "/var/lib/gpu-bootstrap/efa-before";
/// Unpacked, it takes about what it takes packed (packages are compressed), and what they unpack to as much again.
const ROOM_FACTOR: u64 = 3;
const UNPACK_LIMIT: Duration = Duration::from_mins(10);
/// A hundred packages on a slow disk, and a module by DKMS where the kernel has none.
const INSTALL_LIMIT: Duration = Duration::from_mins(40);

/// What apt is told: the script gives it no options of this kind.
const APT: &str = "DPkg::Lock::Timeout \"600\";\n\
                   DPkg::Options:: \"--force-confdef\";\nDPkg::Options:: \"--force-confold\";\n";

/// EFA's libraries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct EfaInstaller {
    /// Where the tar file is.
    pub url: String,
    /// 64 hexadecimal digits, lower case.
    pub sha256: String,
}

impl EfaInstaller {
    /// `1.50.0` of `…/aws-efa-installer-1.50.0.tar.gz`; `None` where the name does not tell.
    fn version(&self) -> Option<&str> {
        let name = self.url.split(['?', '#']).next()?.rsplit('/').next()?;
        let version = name.strip_prefix("aws-efa-installer-")?.strip_suffix(".tar.gz")?;
        version.starts_with(|c: char| c.is_ascii_digit()).then_some(version)
    }

    /// What is missing; `None` if all is there.
    fn missing(&self, host: &Host) -> Result<Result<List, String>> {
        let Some(list) = host.files.read_text(LIST)?.map(|text| List::read(&text)) else {
            return Ok(Err(format!("{LIST} does not exist")));
        };
        if host.files.exists(BEFORE)? {
            return Ok(Err("EFA's installer has not come to its end".into()));
        }
        // It replaces nothing by an older version, so a newer one that the image brought stays.
        let older = |wanted: &&str| match (Version::parse(&list.version), Version::parse(wanted)) {
            (Some(there), Some(wanted)) => there < wanted,
            _ => list.version != **wanted,
        };
        if let Some(wanted) = self.version().filter(older) {
            return Ok(Err(format!("EFA's installer {} was here, wanted {wanted}", list.version)));
        }
        let database = host.packages()?;
        if let Some(name) = list.names.iter().find(|name| database.installed(name, None).is_none()) {
            return Ok(Err(format!("{name} of EFA's installer is not installed")));
        }
        Ok(if host.files.exists(FI_INFO)? { Ok(list) } else { Err(format!("{FI_INFO} does not exist")) })
    }

    /// Whether the running kernel brings the module.
    async fn kernel_has_module(host: &Host) -> Result<bool> {
        let call = Call::new("modinfo").args([
            "--set-version",
            &driver::kernel(host)?,
            "--field",
            "filename",
            "efa",
        ]);
        match host.exec.output(&call).await {
            Ok(output) => Ok(output.ok()),
            Err(e) if e.code() == Code::Exec => Ok(false), // no modinfo: its own module it is
            Err(e) => Err(e),
        }
    }

    async fn unpack(&self, host: &Host) -> Result<()> {
        let tar = host.fetch.into_cache(host, &self.url, &self.sha256).await?;
        let tar = tar.display().to_string();
        let size = host.files.lstat(&tar)?.map_or(0, |m| m.len());
        let free = host.files.free_bytes(paths::STATE_DIR)?;
        if free < size * ROOM_FACTOR {
            let (free, needed) = (free >> 20, (size * ROOM_FACTOR) >> 20);
            let text =
                format!("{} has {free} MB free, and EFA's installer needs {needed} MB", paths::STATE_DIR);
            return Err(Error::new(Code::DiskFull, text));
        }
        host.files.remove_tree(ROOM)?;
        host.files.make_dir(ROOM, 0o700)?;
        let call = Call::new("tar").args([
            "--extract",
            "--gzip",
            "--no-same-owner",
            "--file",
            &tar,
            "--directory",
            ROOM,
        ]);
        let output = host.exec.output(&call.limit(UNPACK_LIMIT)).await?;
        let script = format!("{ROOM}/aws-efa-installer/efa_installer.sh");
        if output.ok() && host.files.exists(&script)? {
            return Ok(());
        }
        host.files.remove_tree(ROOM)?;
        let text = format!("{} is no installer of EFA", redact_text(&self.url));
        Err(Error::new(Code::EfaFailed, text)
            .with_hint(
                "give the aws-efa-installer-….tar.gz and its sum by distributed.efa-url and efa-sha256",
            )
            .because(output.tail()))
    }

    async fn execute(&self, host: &Host) -> Result<()> {
        let apt = format!("{ROOM}/apt.conf");
        host.files.write(&apt, APT.as_bytes(), 0o644)?;
        let mut flags = vec!["--yes", "--no-verify", "--skip-limit-conf"];
        if Self::kernel_has_module(host).await? {
            flags.push("--skip-kmod");
        }
        // It insists on its own directory.
        let call = Call::new("env")
            .args([&format!("--chdir={ROOM}/aws-efa-installer"), "./efa_installer.sh"])
            .args(flags)
            .env("APT_CONFIG", apt)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .env("NEEDRESTART_MODE", "l")
            .limit(INSTALL_LIMIT);
        let output = host.exec.watch(&call, |_, line| host.said(redact_text(line))).await?;
        if output.ok() {
            return Ok(());
        }
        Err(Error::new(Code::EfaFailed, format!("EFA's installer failed with status {}", output.status))
            .because(redact_text(&last_lines(&output.text())))
            .because(redact_text(&output.tail())))
    }
}

/// The installer says on standard output what it was at.
fn last_lines(text: &str) -> String {
    let lines: Vec<_> = text.lines().filter(|l| !l.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(8)..].join("\n")
}

/// The installer's list.
#[derive(Debug, PartialEq, Eq)]
struct List {
    version: String,
    /// Packages.
    names: BTreeSet<String>,
}

impl List {
    /// `# EFA installer version: 1.50.0`, other comments, and then packages as their files are called: `name_version_architecture`.
    fn read(text: &str) -> Self {
        let version =
            text.lines().find_map(|l| l.strip_prefix("# EFA installer version:")).unwrap_or_default();
        let words = text.lines().filter(|l| !l.starts_with('#')).flat_map(str::split_whitespace);
        let names = words.filter_map(|word| word.split('_').next()).map(str::to_owned);
        Self { version: version.trim().to_owned(), names: names.collect() }
    }
}

/// Packages that are there in any state, each as `name:architecture`.
fn there(host: &Host) -> Result<BTreeSet<String>> {
    Ok(host.packages()?.all().filter(|p| p.state != State::Absent).map(Package::id).collect())
}

/// Those that were there before the installer first began.
fn before(host: &Host) -> Result<BTreeSet<String>> {
    if let Some(text) = host.files.read_text(BEFORE)? {
        return Ok(text.lines().map(str::to_owned).collect());
    }
    let there = there(host)?;
    let lines = there.iter().fold(String::new(), |text, id| text + id + "\n");
    host.files.write(BEFORE, lines.as_bytes(), 0o600)?;
    Ok(there)
}

/// Notes for `uninstall` what has come.
fn note(host: &Host, before: &BTreeSet<String>) -> Result<()> {
    let list = List::read(&host.files.read_text(LIST)?.unwrap_or_default());
    let database = host.packages()?;
    let new = database.all().filter(|p| p.state != State::Absent && !before.contains(&p.id()));
    let new = new.map(|p| {
        let asked = list.names.contains(&p.name);
        (p.id(), AddedPackage { version: p.version.clone(), asked })
    });
    host.note_packages(new, std::iter::empty())
}

impl Converge for EfaInstaller {
    async fn check(&self, host: &Host) -> Result<Check> {
        Ok(match self.missing(host)? {
            Ok(list) => Check::satisfied(format!(
                "EFA's installer {} has been here: {} packages installed",
                list.version,
                list.names.len()
            )),
            Err(why) => Check::needed(why),
        })
    }

    async fn apply(&self, host: &Host) -> Result<Applied> {
        Installer::new(host).recover().await?;
        self.unpack(host).await?;
        let wait = host.install_options().lock_timeout;
        locks::wait(host, Instant::now() + wait).await?;
        let before = before(host)?;
        let done = Box::pin(self.execute(host)).await;
        note(host, &before)?;
        host.files.remove_tree(ROOM)?;
        done?;
        host.sync(&["/opt", "/usr", "/var/lib/dpkg"]).await?;
        host.files.remove(BEFORE)?;
        Ok(Applied::Done)
    }

    fn target(&self) -> Option<&str> {
        Some(LIST)
    }

    fn describe(&self) -> String {
        match self.version() {
            Some(version) => format!("EFA's installer {version}"),
            None => "EFA's installer".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_stands_in_the_files_name() {
        let of =
            |url: &str| EfaInstaller { url: url.into(), sha256: String::new() }.version().map(str::to_owned);
        assert_eq!(of("https://x/aws-efa-installer-1.50.0.tar.gz?a=/b").as_deref(), Some("1.50.0"));
        assert_eq!(of("https://x/aws-efa-installer-latest.tar.gz"), None);
        assert_eq!(of("https://x/efa.tar.gz"), None);
    }

    #[test]
    fn the_installers_list_is_read() {
        let list = List::read(
            "# EFA installer version: 1.50.0\n# Debug packages installed: no\n# Packages installed:\n\
             libfabric1-aws_2.6.0amzn1.0_amd64 rdma-core_64.0-1_amd64\n",
        );
        assert_eq!(list.version, "1.50.0");
        assert_eq!(list.names.iter().collect::<Vec<_>>(), ["libfabric1-aws", "rdma-core"]);
    }

    #[tokio::test]
    async fn it_is_there_when_its_list_dpkg_and_the_files_agree() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path().into());
        let put = |path: &str, text: &str| host.files.write(path, text.as_bytes(), 0o755).unwrap();
        let action =
            EfaInstaller { url: "https://x/aws-efa-installer-1.50.0.tar.gz".into(), sha256: String::new() };
        let why = async || action.check(&host).await.unwrap().why().to_owned();
        let package = |status: &str| {
            format!(
                "Package: libfabric1-aws\nStatus: install ok {status}\nArchitecture: amd64\nVersion: 2.6.0amzn1.0\n\n"
            )
        };
        assert!(why().await.ends_with("does not exist"));
        put(LIST, "# EFA installer version: 1.49.0\nlibfabric1-aws_2.6.0amzn1.0_amd64\n");
        put("/var/lib/dpkg/status", &package("installed"));
        put(FI_INFO, "");
        assert_eq!(why().await, "EFA's installer 1.49.0 was here, wanted 1.50.0");
        for version in ["1.50.0", "1.51.0"] {
            put(LIST, &format!("# EFA installer version: {version}\nlibfabric1-aws_2.6.0amzn1.0_amd64\n"));
            assert_eq!(action.check(&host).await.unwrap().state(), "satisfied");
        }
        assert_eq!(action.check(&host).await.unwrap().state(), "satisfied");
        put(BEFORE, "");
        assert!(why().await.contains("not come to its end"));
        host.files.remove(BEFORE).unwrap();
        put("/var/lib/dpkg/status", &package("half-configured"));
        assert_eq!(why().await, "libfabric1-aws of EFA's installer is not installed");
        put("/var/lib/dpkg/status", &package("installed"));
        host.files.remove(FI_INFO).unwrap();
        assert_eq!(why().await, format!("{FI_INFO} does not exist"));
    }
}
