//! What a rehearsal needs of this machine, each with its own clear refusal, and how it becomes root.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use crate::error::{Code, Error, Result};

/// Programs without which nothing can be installed in the copy.
const NEEDED_PROGRAMS: &[&str] = &["/usr/bin/apt-get", "/usr/bin/dpkg"];
/// The kinds of namespaces that the sandbox consists of.
const NEEDED_NAMESPACES: &[&str] = &["mnt", "pid", "net", "uts", "ipc"];

/// Checks everything that can be told before root's rights are needed. Whether the kernel grants namespaces and
/// overlays shows when they are made; those refusals stand there.
pub(super) fn check() -> Result<()> {
    let release = ["/etc/os-release", "/usr/lib/os-release"]
        .iter()
        .find_map(|path| std::fs::read_to_string(path).ok())
        .unwrap_or_default();
    if !is_debian_like(&release) {
        return Err(unavailable("a rehearsal needs Debian or Ubuntu, and this is neither")
            .with_hint("run it on an Ubuntu or Debian machine, for example a small cloud instance"));
    }
    if let Some(program) = NEEDED_PROGRAMS.iter().find(|p| !Path::new(p).exists()) {
        return Err(unavailable(&format!("a rehearsal needs {program}, which does not exist here")));
    }
    let missing = |name: &&&str| !Path::new("/proc/self/ns").join(name).exists();
    if let Some(kind) = NEEDED_NAMESPACES.iter().find(missing) {
        let text = format!("a rehearsal needs {kind} namespaces, which this kernel does not have");
        return Err(unavailable(&text));
    }
    Ok(())
}

/// By `ID` and `ID_LIKE`, so that derivatives count, too.
fn is_debian_like(os_release: &str) -> bool {
    os_release
        .lines()
        .filter_map(|l| l.strip_prefix("ID=").or_else(|| l.strip_prefix("ID_LIKE=")))
        .flat_map(|v| v.trim_matches(['"', '\'']).split_whitespace())
        .any(|id| id == "debian" || id == "ubuntu")
}

/// Becomes `sudo <this very binary> <the same arguments>`. Nothing is built as root: the binary is there already.
pub(super) fn ask_sudo() -> Result<u8> {
    let binary = std::env::current_exe()
        .map_err(|e| Error::new(Code::NotRoot, "cannot tell which binary this is").because(e))?;
    eprintln!("a rehearsal needs root for its namespaces: asking sudo for {}", binary.display());
    let error = Command::new("sudo").arg("--").arg(&binary).args(std::env::args_os().skip(1)).exec();
    // exec only returns when it failed.
    let hint = format!("run it as root: {} rehearse", binary.display());
    Err(Error::new(Code::NotRoot, "a rehearsal needs root, and sudo cannot be run")
        .with_hint(hint)
        .because(error))
}

fn unavailable(text: &str) -> Error {
    Error::new(Code::RehearsalUnavailable, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derivatives_count_as_debian_or_ubuntu() {
        for text in ["ID=debian\n", "ID=\"ubuntu\"\n", "ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n"] {
            assert!(is_debian_like(text), "{text}");
        }
        assert!(!is_debian_like("NAME=Fedora\nID=fedora\nVERSION_ID=42\n"));
    }
}
