//! Operating system, architecture, kernel, and whether this is a container. Facts only: what is supported is
//! the catalog's business.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::io;

use nix::sys::utsname::uname;
use serde::{Deserialize, Serialize};

use super::Fact;
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::host::exec::Call;

/// Processor architecture in Debian's spelling.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Arch {
    /// `x86_64`
    Amd64,
    /// `aarch64`
    Arm64,
}

impl Arch {
    /// dpkg's name for it.
    pub fn debian_name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// Reads dpkg's name (`amd64`) or the kernel's (`x86_64`).
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "amd64" | "x86_64" => Some(Self::Amd64),
            "arm64" | "aarch64" => Some(Self::Arm64),
            _ => None,
        }
    }
}

/// What runs here.
#[derive(Clone, Debug, Serialize)]
pub struct Os {
    /// `ID` of os-release: `ubuntu`, `debian`, …; `linux` where there is none, as os-release(5) has it.
    pub id: Fact<String>,
    /// `VERSION_ID` of os-release: `22.04`, `12`, …; empty on Debian's testing.
    pub version_id: Fact<String>,
    /// `VERSION_CODENAME` of os-release: `jammy`, `bookworm`, …; empty where there is none.
    pub codename: Fact<String>,
    /// dpkg's architecture.
    pub arch: Fact<Arch>,
    /// `uname -r`.
    pub kernel: Fact<String>,
    /// Whether UEFI Secure Boot is on: the kernel then loads signed modules only.
    pub secure_boot: Fact<bool>,
    /// The kind of container this runs in (`docker`, `lxc`, …), if it is one.
    pub container: Option<Fact<String>>,
}

impl Os {
    /// The name NVIDIA's repositories use: `ubuntu2204`, `debian12`.
    pub fn distro(&self) -> String {
        format!("{}{}", self.id.value, self.version_id.value.replace('.', ""))
    }
}

/// In the order in which os-release(5) wants them looked at.
const OS_RELEASE: &[&str] = &["/etc/os-release", "/usr/lib/os-release"];
const DPKG_ARCH: &str = "/var/lib/dpkg/arch";
const DPKG: &str = "/usr/bin/dpkg";
const SECURE_BOOT: &str = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";
const KERNEL_RELEASE: &str = "/proc/sys/kernel/osrelease";

/// Reads os-release, dpkg's architecture, the kernel's release and the marks of containers.
pub async fn gather(host: &Host) -> Result<Os> {
    let (release, source) = read_os_release(host)?;
    let field = |key: &str, default: &str| {
        Fact::new(release.get(key).cloned().unwrap_or_else(|| default.to_owned()), source)
    };
    Ok(Os {
        id: field("ID", "linux"),
        version_id: field("VERSION_ID", ""),
        codename: field("VERSION_CODENAME", ""),
        arch: architecture(host).await?,
        kernel: kernel(host)?,
        secure_boot: secure_boot(host)?,
        container: container(host)?,
    })
}

fn read_os_release(host: &Host) -> Result<(BTreeMap<String, String>, &'static str)> {
    for file in OS_RELEASE {
        if let Some(text) = host.files.read_text(file)? {
            return Ok((os_release(&text), file));
        }
    }
    Ok((BTreeMap::new(), "no os-release file"))
}

/// The assignments of an os-release file: comments and lines that assign nothing left out, quotes and escapes
/// undone as a shell would, the last of two assignments counting.
pub fn os_release(text: &str) -> BTreeMap<String, String> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once('='))
        .filter(|(key, _)| !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'))
        .map(|(key, value)| (key.to_owned(), unquote(value)))
        .collect()
}

/// A shell word without its quotes: nothing is special in single quotes, and inside double quotes the backslash
/// only before one of ``$ " \ ` ``.
fn unquote(word: &str) -> String {
    let mut value = String::new();
    let mut quote = None;
    let mut chars = word.chars().peekable();
    while let Some(c) = chars.next() {
        match (c, quote) {
            (c, Some(q)) if c == q => quote = None,
            ('"' | '\'', None) => quote = Some(c),
            ('\\', None) => value.extend(chars.next()),
            ('\\', Some('"')) if chars.peek().is_some_and(|next| "$\"\\`".contains(*next)) => {
                value.extend(chars.next());
            }
            (c, None) if c.is_whitespace() => break,
            (c, _) => value.push(c),
        }
    }
    value
}

/// dpkg's architecture: its list of architectures (the first is its own; there only where others were added),
/// what it was built for, or, without dpkg, the kernel's.
async fn architecture(host: &Host) -> Result<Fact<Arch>> {
    let list = host.files.read_text(DPKG_ARCH)?.unwrap_or_default();
    let first = list.lines().next().unwrap_or_default().trim();
    let (name, source) = if !first.is_empty() {
        (first.to_owned(), DPKG_ARCH)
    } else if host.files.exists(DPKG)? {
        let output = host.exec.run(&Call::new("dpkg").args(["--print-architecture"])).await?;
        (output.text().trim().to_owned(), "dpkg --print-architecture")
    } else {
        (system()?.machine().to_string_lossy().into_owned(), "uname -m")
    };
    let arch = Arch::parse(&name).ok_or_else(|| {
        Error::new(Code::UnsupportedArch, format!("the architecture is {name:?} (says {source})"))
            .with_hint("use an instance and image of amd64 (x86_64) or arm64 (aarch64)")
    })?;
    Ok(Fact::new(arch, source))
}

fn kernel(host: &Host) -> Result<Fact<String>> {
    let text = host.files.read_text(KERNEL_RELEASE)?.unwrap_or_default();
    let release = text.trim();
    if release.is_empty() {
        return Ok(Fact::new(system()?.release().to_string_lossy().into_owned(), "uname -r"));
    }
    Ok(Fact::new(release.to_owned(), KERNEL_RELEASE))
}

/// Four bytes of attributes, then 1 when Secure Boot is on. No EFI variables, no Secure Boot.
pub fn secure_boot(host: &Host) -> Result<Fact<bool>> {
    let variable = match host.files.read(SECURE_BOOT) {
        Err(e) if is_permission_denied(&e) => None,
        other => other?,
    };
    Ok(Fact::new(variable.is_some_and(|bytes| bytes.get(4) == Some(&1)), SECURE_BOOT))
}

fn system() -> Result<nix::sys::utsname::UtsName> {
    uname().map_err(|e| Error::new(Code::FactsUnreadable, "cannot ask the kernel by uname").because(e))
}

/// Files whose text is the name of the container manager. Both are made at start, in `/run`, by the manager
/// (the first) or by systemd as process 1 of the container (the second).
const MANAGER_FILES: &[&str] = &["/run/host/container-manager", "/run/systemd/container"];
/// Empty files that a container engine leaves, and the engine.
const ENGINE_FILES: &[(&str, &str)] = &[("/.dockerenv", "docker"), ("/run/.containerenv", "podman")];
const FIRST_PROCESS: &str = "/proc/1/environ";
const PID_NAMESPACE: &str = "/proc/self/ns/pid";
/// The inode of the kernel's first pid namespace (`PROC_PID_INIT_INO` in `include/linux/proc_ns.h`).
const FIRST_PID_NAMESPACE: &str = "pid:[4026531836]";

/// The kind of container, as systemd-detect-virt(1) tells it: managers that say so themselves (systemd-nspawn,
/// LXC, podman, docker with systemd inside), the environment of process 1 (which also shows Kubernetes pods),
/// then the files that docker and podman leave.
///
/// Those files stay behind where a container's tree was made into a machine image, so they do not count in the
/// kernel's first pid namespace: there is no container around that.
///
/// Namespaces alone (unshare, a chroot, a rehearsal) are not containers for us: nothing here marks them.
fn container(host: &Host) -> Result<Option<Fact<String>>> {
    for file in MANAGER_FILES {
        let manager = host.files.read_text(file)?.unwrap_or_default();
        if !manager.trim().is_empty() {
            return Ok(Some(Fact::new(manager.trim().to_owned(), *file)));
        }
    }
    if let Some(kind) = container_of_environment(&first_environment(host)?) {
        return Ok(Some(Fact::new(kind, FIRST_PROCESS)));
    }
    let namespace = host.files.read_link(PID_NAMESPACE)?;
    if namespace.is_some_and(|n| n.as_os_str() == FIRST_PID_NAMESPACE) {
        return Ok(None);
    }
    for (file, engine) in ENGINE_FILES {
        if host.files.exists(file)? {
            return Ok(Some(Fact::new((*engine).to_owned(), *file)));
        }
    }
    Ok(None)
}

/// The environment of process 1, empty where we may not read it: that takes root, and even root is refused where
/// process 1 is protected. The other marks are readable by everyone.
fn first_environment(host: &Host) -> Result<Vec<u8>> {
    match host.files.read(FIRST_PROCESS) {
        Ok(bytes) => Ok(bytes.unwrap_or_default()),
        Err(e) if is_permission_denied(&e) => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

fn is_permission_denied(e: &Error) -> bool {
    let cause = e.source().and_then(|s| s.downcast_ref::<io::Error>());
    cause.is_some_and(|c| c.kind() == io::ErrorKind::PermissionDenied)
}

/// The kind of container that NUL-separated assignments tell: `container=` is the convention among managers, and
/// Kubernetes names its API server to every process that it starts.
pub fn container_of_environment(environment: &[u8]) -> Option<String> {
    let mut assignments = environment.split(|b| *b == 0);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assignments
        .clone()
        .find_map(|a| a.strip_prefix(b"container="))
        .filter(|v| !v.is_empty())
        .map(text)
        .or_else(|| {
            assignments.any(|a| a.starts_with(b"KUBERNETES_SERVICE_HOST=")).then(|| "kubernetes".to_owned())
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn os_release_of_ubuntu_and_debian() {
        let ubuntu = os_release(
            "PRETTY_NAME=\"Ubuntu 22.04.5 LTS\"\nNAME=\"Ubuntu\"\nVERSION_ID=\"22.04\"\nVERSION_CODENAME=jammy\nID=ubuntu\nID_LIKE=debian\n",
        );
        assert_eq!((ubuntu["ID"].as_str(), ubuntu["VERSION_ID"].as_str()), ("ubuntu", "22.04"));
        let debian = os_release("ID=debian\nVERSION_ID='12'\nVERSION_CODENAME=bookworm");
        assert_eq!((debian["VERSION_ID"].as_str(), debian["VERSION_CODENAME"].as_str()), ("12", "bookworm"));
    }

    #[test]
    fn quotes_escapes_and_comments_as_a_shell_reads_them() {
        let r = os_release(
            "# ID=comment\n\n  A=\"x \\\"y\\\" \\$z \\n\"\nB='a\\b'\nC=plain # not this\nD=\"a\"'b'c\nE=\nID=one\nID=two\nno assignment\nF G=1\n=x\n",
        );
        assert_eq!(r["A"], "x \"y\" $z \\n");
        assert_eq!(r["B"], "a\\b");
        assert_eq!(r["C"], "plain");
        assert_eq!(r["D"], "abc");
        assert_eq!(r["E"], "");
        assert_eq!(r["ID"], "two");
        assert_eq!(r.len(), 6);
    }

    #[test]
    fn the_distro_is_spelt_as_the_repositories_do() {
        let fact = |v: &str| Fact::new(v.to_owned(), "test");
        let os = |id, version| Os {
            id: fact(id),
            version_id: fact(version),
            codename: fact(""),
            arch: Fact::new(Arch::Amd64, "test"),
            kernel: fact(""),
            secure_boot: Fact::new(false, "test"),
            container: None,
        };
        assert_eq!(os("ubuntu", "22.04").distro(), "ubuntu2204");
        assert_eq!(os("debian", "12").distro(), "debian12");
    }

    #[test]
    fn the_first_process_tells_its_container() {
        let kind = |e: &str| container_of_environment(e.as_bytes());
        assert_eq!(kind("TERM=linux\0container=lxc\0"), Some("lxc".into()));
        assert_eq!(kind("KUBERNETES_SERVICE_HOST=10.0.0.1\0"), Some("kubernetes".into()));
        assert_eq!(kind("TERM=linux\0not_container=lxc\0"), None);
        assert_eq!(kind("container=\0"), None);
    }
}
