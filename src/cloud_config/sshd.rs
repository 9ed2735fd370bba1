//! Settings of sshd, each a file of ours among those that it includes; and `ssh_genkeytypes`, which is one of them.

use super::read::Reader;
use super::system;
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::host::exec::Call;
use crate::yaml::Node;

const CONFIG: &str = "/etc/ssh/sshd_config";
/// The first word on a setting is the one that sshd takes, so that ours come before what an image may have.
const INCLUDE: &str = "/etc/ssh/sshd_config.d/*.conf";
const HOST_KEYS: &str = "/etc/ssh/sshd_config.d/10-gpu-bootstrap-host-keys.conf";
/// Kinds of host keys that an instance has.
const KINDS: [&str; 3] = ["ed25519", "ecdsa", "rsa"];

/// Puts a setting in force. It is there only if sshd takes it: without sshd nobody gets in.
pub(super) async fn set(host: &Host, key: &str, path: &str, setting: &str) -> Result<()> {
    let config = host.files.read_text(CONFIG)?.unwrap_or_default();
    let is_include = |line: &str| {
        let mut words = line.split_whitespace();
        words.next().is_some_and(|word| word.eq_ignore_ascii_case("include"))
            && words.any(|word| word == INCLUDE)
    };
    if !config.lines().any(is_include) {
        return Err(Error::new(Code::UserDataFailed, format!("{key}: {CONFIG} does not include {INCLUDE}"))
            .with_hint(format!("put `Include {INCLUDE}` first in it, in the image")));
    }
    let text = format!("# Written by gpu-bootstrap from user-data ({key}).\n{setting}");
    let before = host.files.read(path)?;
    if before.as_deref() == Some(text.as_bytes()) {
        return Ok(());
    }
    host.files.write(path, text.as_bytes(), 0o600)?;
    if host.files.exists("/usr/sbin/sshd")?
        && let Err(error) = check(host).await
    {
        match before {
            Some(before) => host.files.write(path, &before, 0o600)?,
            None => host.files.remove(path)?,
        }
        let message = format!("{key}: sshd does not take its configuration; nothing was kept");
        return Err(Error::new(Code::UserDataFailed, message)
            .with_hint("`sshd -t` says what is wrong with it")
            .because(error));
    }
    system::service(host, "try-reload-or-restart", "ssh").await
}

async fn check(host: &Host) -> Result<()> {
    // Its own directory is made by its unit, which may not have run yet.
    host.files.make_dir("/run/sshd", 0o755)?;
    host.exec.run(&Call::new("sshd").args(["-t"])).await.map(drop)
}

/// Kinds of host keys that are offered.
pub(super) fn read_kinds(reader: &mut Reader, node: &Node) -> Option<Vec<String>> {
    let kinds = reader.lines("ssh_genkeytypes", node)?;
    for kind in kinds.iter().filter(|kind| !KINDS.contains(&kind.as_str())) {
        reader.wrong(
            node.at,
            format!("ssh_genkeytypes: {kind:?} is not supported; supported are {}", KINDS.join(", ")),
        );
    }
    if kinds.is_empty() {
        reader
            .wrong(node.at, "ssh_genkeytypes: without any host key sshd does not start, and nobody gets in");
    }
    Some(kinds)
}

/// What `user-data check` says, and what is told afterwards.
pub(super) fn kinds_sentence(kinds: &[String]) -> String {
    format!("sshd offers host keys of the kinds {}", kinds.join(", "))
}

/// The early part has made them, or makes them (RSA); here it is said which of them are offered.
pub(super) async fn apply_kinds(host: &Host, kinds: &[String]) -> Result<String> {
    let mut setting = String::new();
    let mut is_any_there = false;
    for kind in kinds {
        let path = format!("/etc/ssh/ssh_host_{kind}_key");
        is_any_there |= host.files.exists(&path)?;
        setting.extend(["HostKey ", &path, "\n"]);
    }
    if !is_any_there {
        let message = format!(
            "ssh_genkeytypes: there is none of the keys {} yet, and nobody would get in",
            kinds.join(", ")
        );
        return Err(Error::new(Code::UserDataFailed, message)
            .with_hint("name ed25519 or ecdsa as well, which are there when sshd starts"));
    }
    set(host, "ssh_genkeytypes", HOST_KEYS, &setting).await?;
    Ok(kinds_sentence(kinds))
}
