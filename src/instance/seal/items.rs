//! What is an instance's and not an image's, in the order in which it goes.

use super::network::OF_CLOUD_INIT;
use super::trace::{Found, ends};
use super::{Scene, people};
use crate::error::Result;
use crate::host::paths;
use crate::instance::{host_keys, hostname};
use crate::user_data_stub::CONFIG_FILE;

const MACHINE_ID: &str = "/etc/machine-id";
const CLOUD_INIT: &str = "/var/lib/cloud";
/// Tells cloud-init that it has never run, and is cloud-init's to understand; an empty file is systemd's own form.
const UNINITIALIZED: &str = "uninitialized";
/// What of our state is the image's: what was chosen, and what proves that it is there. Everything else is the instance's,
/// whatever a later version calls it.
const OF_THE_IMAGE: [&str; 10] = [
    "choice.json",
    "added.json",
    "originals",
    "in-flight.json",
    "packages",
    "lists",
    "set-aside",
    "lock",
    "lists-unsynced", // goes with apt's lists
    "no-archives",
];

/// One kind of trace.
pub(super) struct Item {
    /// Its name in the document.
    pub(super) name: &'static str,
    /// For people.
    pub(super) title: &'static str,
    /// An image with any of it is not sealed.
    pub(super) must: bool,
    /// It comes after everything else is gone for good.
    pub(super) last: bool,
    /// What systemd's part of it is told before it goes, where this path is there.
    pub(super) calm: Option<(&'static str, &'static [&'static str])>,
    /// Looks for it.
    pub(super) look: fn(&Scene<'_>, &mut Found) -> Result<()>,
}

const USUAL: Item = Item { name: "", title: "", must: true, last: false, calm: None, look: |_, _| Ok(()) };

/// All of them.
pub(super) const ITEMS: &[Item] = &[
    // First, or a machine on which this was interrupted would think itself set up, and let nobody in.
    Item { name: "state", title: "what gpu-bootstrap knows of this instance", look: state, ..USUAL },
    Item { name: "cloud-init", title: "what cloud-init knows of this instance", look: cloud_init, ..USUAL },
    Item { name: "login-keys", title: "keys that log in", look: people::keys, ..USUAL },
    Item { name: "host-keys", title: "sshd's host keys", look: host_keys, ..USUAL },
    Item { name: "apt-credentials", title: "apt's credentials", look: apt_credentials, ..USUAL },
    Item { name: "shell-history", title: "shell history", look: people::history, ..USUAL },
    Item {
        name: "random-seeds",
        title: "random seeds",
        // It writes a new one when it is stopped: now, and not when the machine is.
        calm: Some(("/var/lib/systemd/random-seed", &["systemctl", "stop", "systemd-random-seed.service"])),
        look: random_seeds,
        ..USUAL
    },
    Item { name: "dhcp-leases", title: "DHCP leases", look: dhcp_leases, ..USUAL },
    Item { name: "apt-cache", title: "apt's lists and archives", must: false, look: apt_cache, ..USUAL },
    Item {
        name: "logs",
        title: "logs and crash dumps",
        must: false, // a running machine goes on writing them
        calm: Some(("/var/log/journal", &["journalctl", "--relinquish-var"])),
        look: logs,
        ..USUAL
    },
    Item { name: "temporary", title: "temporary files", must: false, look: temporary, ..USUAL },
    Item { name: "hostname", title: "the name", look: name, ..USUAL },
    Item { name: "machine-id", title: "machine-id", last: true, look: machine_id, ..USUAL },
];

#[expect(clippy::unnecessary_wraps, reason = "one signature for all")]
fn state(scene: &Scene<'_>, found: &mut Found) -> Result<()> {
    let (first, _) = split(paths::INSTANCE);
    found.take_in(scene, paths::STATE_DIR, |name| name == first);
    found.take_in(scene, paths::STATE_DIR, |name| name != first && !OF_THE_IMAGE.contains(&name));
    // Receipts of other instances, kept unread; what else lies there is the administrator's.
    found.take_in(scene, paths::SET_ASIDE_DIR, |name| name.starts_with("var__lib__gpu-bootstrap__"));
    let (stub, directory) = split(CONFIG_FILE);
    found.take_in(scene, directory, |name| name == stub);
    let (lock, directory) = split(paths::EARLY_LOCK);
    let (of_rsa, _) = split(paths::RSA_LOCK);
    found.take_in(scene, directory, |name| name != lock && name != of_rsa);
    Ok(())
}

fn cloud_init(scene: &Scene<'_>, found: &mut Found) -> Result<()> {
    // Seeds are what an image gives its instances.
    found.take_in(scene, CLOUD_INIT, |name| name != "seed");
    if scene.cloud_init_network {
        for (directory, is_its) in OF_CLOUD_INIT {
            found.take_in(scene, directory, is_its);
        }
    }
    if scene.cloud_init.is_some() {
        for script in scene.files.list("/etc/cloud/clean.d")?.iter().filter(|name| *name != "README") {
            found.leave(
                format!("/etc/cloud/clean.d/{script}"),
                "is run by `cloud-init clean`, and not by this command",
            );
        }
    }
    Ok(())
}

#[expect(clippy::unnecessary_wraps, reason = "one signature for all")]
fn host_keys(scene: &Scene<'_>, found: &mut Found) -> Result<()> {
    found.take_in(scene, host_keys::DIRECTORY, host_keys::is_host_key);
    Ok(())
}

#[expect(clippy::unnecessary_wraps, reason = "one signature for all")]
fn apt_credentials(scene: &Scene<'_>, found: &mut Found) -> Result<()> {
    found.take_in(scene, "/etc/apt", |name| name == "auth.conf");
    found.take_in(scene, "/etc/apt/auth.conf.d", |_| true);
    // A proxy of this instance's user-data, perhaps with user and password.
    found.take_in(scene, "/etc/apt/apt.conf.d", |name| name == "90gpu-bootstrap-aptproxy");
    Ok(())
}

#[expect(clippy::unnecessary_wraps, reason = "one signature for all")]
fn random_seeds(scene: &Scene<'_>, found: &mut Found) -> Result<()> {
    for directory in
        ["/var/lib/systemd", "/var/lib/urandom", "/boot/efi/loader", "/boot/loader", "/efi/loader"]
    {
        found.take_in(scene, directory, |name| name == "random-seed");
    }
    Ok(())
}

#[expect(clippy::unnecessary_wraps, reason = "one signature for all")]
fn dhcp_leases(scene: &Scene<'_>, found: &mut Found) -> Result<()> {
    for directory in ["/var/lib/dhcp", "/var/lib/dhclient"] {
        // dhcpd.leases is a server's memory of others.
        found.take_in(scene, directory, |name| name.starts_with("dhclient"));
    }
    for directory in ["/var/lib/dhcpcd", "/var/lib/dhcpcd5", "/var/db/dhcpcd"] {
        found.take_in(scene, directory, |name| name.contains(".lease") || ["duid", "secret"].contains(&name));
    }
    // The key makes addresses that are stable on one machine.
    let own = ["secret_key", "timestamps", "seen-bssids"];
    found.take_in(scene, "/var/lib/NetworkManager", |name| ends(name, ".lease") || own.contains(&name));
    found.take_in(scene, "/var/lib/systemd/network", |_| true);
    if !scene.files.is_machine() {
        // Of a running machine they are in memory, and in use.
        found.take_in(scene, "/run/systemd/netif/leases", |_| true);
    }
    Ok(())
}

#[expect(clippy::unnecessary_wraps, reason = "one signature for all")]
fn apt_cache(scene: &Scene<'_>, found: &mut Found) -> Result<()> {
    const FRAME: [&str; 3] = ["lock", "partial", "auxfiles"];
    const LISTS: &str = "/var/lib/apt/lists";
    const ARCHIVES: &str = "/var/cache/apt/archives";
    found.take_in(scene, LISTS, |name| !FRAME.contains(&name));
    for inner in
        ["/var/lib/apt/lists/partial", "/var/lib/apt/lists/auxfiles", "/var/cache/apt/archives/partial"]
    {
        found.take_in(scene, inner, |_| true);
    }
    found.take_in(scene, ARCHIVES, |name| ends(name, ".deb"));
    found.take_in(scene, "/var/cache/apt", |name| name.ends_with("pkgcache.bin"));
    // The boot in which lists were written: not before they are gone.
    let (unsynced, directory) = split(paths::LISTS_UNSYNCED);
    found.take_in(scene, directory, |name| name == unsynced);
    Ok(())
}

#[expect(clippy::unnecessary_wraps, reason = "one signature for all")]
fn logs(scene: &Scene<'_>, found: &mut Found) -> Result<()> {
    // Directories are called by the machine-id.
    found.take_in(scene, "/var/log/journal", |_| true);
    found.empty_in(scene, "/var/log", is_old_log);
    found.take_in(scene, "/var/lib/systemd/coredump", |_| true);
    found.take_in(scene, "/var/crash", |_| true);
    Ok(())
}

/// Nobody writes to it any more: `syslog.1`, `kern.log.2.gz`, `x.log-20260101`, `wtmp.old`.
fn is_old_log(name: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let ending = name.rsplit('.').next().unwrap_or_default();
    let is_compressed = ["gz", "xz", "bz2", "zst", "old"].contains(&ending);
    let is_dated = name.rsplit_once('-').is_some_and(|(_, date)| date.len() == 8 && digits(date));
    is_compressed || is_dated || (ending != name && digits(ending))
}

fn temporary(scene: &Scene<'_>, found: &mut Found) -> Result<()> {
    for path in ["/tmp", "/var/tmp"] {
        let is_private = |name: &str| name.starts_with("systemd-private-");
        found.take_in(scene, path, |name| !is_private(name));
        // Whoever was started with a directory of its own goes on needing it.
        if scene.files.list(path)?.iter().any(|name| is_private(name)) {
            found.leave(path, "keeps the directories of running services; the next boot removes them");
        }
    }
    Ok(())
}

fn name(scene: &Scene<'_>, found: &mut Found) -> Result<()> {
    for (path, content) in hostname::of_an_image(scene.files)? {
        found.write(path, &content, 0o644);
    }
    let own = scene.files.read_text(hostname::HOSTNAME)?.unwrap_or_default();
    let own = own.trim();
    let hosts = scene.files.read_text(hostname::HOSTS)?.unwrap_or_default();
    let names =
        |line: &&str| !hostname::is_ours(line.as_bytes()) && line.split_whitespace().any(|w| w == own);
    if own != hostname::NEUTRAL
        && let Some(at) = hosts.lines().position(|line| names(&line))
    {
        found.leave(hostname::HOSTS, format!("names {own} in line {}, which is not ours", at + 1));
    }
    Ok(())
}

fn machine_id(scene: &Scene<'_>, found: &mut Found) -> Result<()> {
    const DBUS: &str = "/var/lib/dbus/machine-id";
    let Some(id) = scene.files.read_text(MACHINE_ID)? else { return Ok(()) };
    if scene.files.lstat(DBUS)?.is_some_and(|meta| meta.is_file()) {
        found.link(DBUS, MACHINE_ID);
    }
    if !id.trim().is_empty() && id.trim() != UNINITIALIZED {
        found.write(MACHINE_ID, b"", 0o444);
    }
    Ok(())
}

/// What nobody on this image will do at its instances' first boot.
pub(super) fn next_boot(scene: &Scene<'_>) -> Result<Option<String>> {
    const UNIT: &str = "/etc/systemd/system/multi-user.target.wants/gpu-bootstrap-early.service";
    const SWITCH: &str = "/etc/gpu-bootstrap/disabled";
    if scene.cloud_init.is_some() {
        return Ok(None);
    }
    let why = if scene.files.exists(SWITCH)? {
        format!("{SWITCH} keeps the early part from working")
    } else if !scene.files.exists(UNIT)? {
        "gpu-bootstrap-early.service is not enabled".into()
    } else {
        return Ok(None);
    };
    Ok(Some(format!(
        "there is no cloud-init, and {why}: unless something else makes host keys and lets a key pair in, nobody can log \
         in to an instance of this image"
    )))
}

/// A path's last component, and its directory.
fn split(path: &'static str) -> (&'static str, &'static str) {
    path.rsplit_once('/').map_or((path, "/"), |(directory, name)| (name, directory))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn current_logs_are_told_from_old_ones() {
        for old in
            ["syslog.1", "kern.log.2.gz", "dpkg.log-20260101", "Xorg.0.log.old", "alternatives.log.12.xz"]
        {
            assert!(is_old_log(old), "{old}");
        }
        for current in ["syslog", "auth.log", "wtmp", "lastlog", "cloud-init-output.log", "a-1.log", "1"] {
            assert!(!is_old_log(current), "{current}");
        }
    }

    #[test]
    fn the_order_is_that_of_a_machine_that_may_be_killed_in_the_middle() {
        let names: Vec<_> = ITEMS.iter().map(|item| item.name).collect();
        assert_eq!(
            (names[0], names[1]),
            ("state", "cloud-init"),
            "the next boot must let its key pair in again"
        );
        let (last, others) = ITEMS.split_last().unwrap();
        assert!(last.last && last.must && last.name == "machine-id");
        assert!(others.iter().all(|item| !item.last));
    }
}
