//! How every apt and dpkg program is called: the options and the environment that no configuration of the
//! machine may override, and time limits. Called by the rest of `host::apt`.

use std::time::Duration;

use crate::bundle::{LISTS, SOURCES};
use crate::host::Host;
use crate::host::exec::Call;

/// `apt-get update`: full indexes are 60 MB; a line of 100 kB/s needs ten minutes for them.
pub(super) const UPDATE_LIMIT: Duration = Duration::from_mins(15);

/// `apt-get install`: 4 GB at 1 MB/s take 70 minutes, and a kernel module built by DKMS ten more. Killing dpkg
/// half-way is costly, so the limit only has to end what would never end.
pub(super) const INSTALL_LIMIT: Duration = Duration::from_hours(3);

/// Simulations only compute: two seconds for a full-size index, minutes on an instance without CPU credits.
pub(super) const SIMULATE_LIMIT: Duration = Duration::from_mins(5);

/// Options that keep signatures in force whatever `/etc/apt/apt.conf.d` says. A source's own `trusted=yes` is
/// not an option; [`super::sources`] deals with it.
const SIGNATURES_ON: [&str; 8] = [
    "APT::Get::AllowUnauthenticated=0",
    "APT::Get::Force-Yes=0",
    "Acquire::AllowInsecureRepositories=0",
    "Acquire::AllowDowngradeToInsecureRepositories=0",
    "Acquire::AllowWeakRepositories=0",
    "APT::Authentication::TrustCDROM=0",
    "APT::Get::allow-remove-essential=0",
    "APT::Ignore-Hold=0",
];

/// Options of behaviour: no question is ever asked, and a changed configuration file stays as it is.
const BEHAVIOUR: [&str; 8] = [
    "Acquire::Retries=3",
    "Dpkg::Use-Pty=0",
    // Progress comes on standard output among other lines: a descriptor of its own would have to be inherited
    // by every maintainer script.
    "APT::Status-Fd=3",
    "APT::Color=0",
    "APT::Install-Suggests=0",
    "APT::Get::AutomaticRemove=0",
    "DPkg::Options::=--force-confdef",
    "DPkg::Options::=--force-confold",
];

/// A call of `apt-get` with everything that holds for each of them.
pub(super) fn apt_get(limit: Duration) -> Call {
    let options = SIGNATURES_ON.iter().chain(&BEHAVIOUR).flat_map(|o| ["-o".to_owned(), (*o).to_owned()]);
    quiet(Call::new("apt-get")).status_descriptor().args(["-q", "-y"]).args(options).limit(limit)
}

/// What stands in the place of the machine's sources and lists: a bundle's, or a directory of its own.
pub(super) fn place(host: &Host) -> Vec<String> {
    let options = if host.bundle().is_some() {
        vec![
            "Dir::Etc::sourcelist=/dev/null".to_owned(),
            format!("Dir::Etc::sourceparts={SOURCES}"),
            format!("Dir::State::lists={LISTS}"),
            // No caches: they would replace the machine's.
            "Dir::Cache::pkgcache=".to_owned(),
            "Dir::Cache::srcpkgcache=".to_owned(),
            "Acquire::Languages=none".to_owned(),
            // Of the forms that a Release file names, only this one is in the bundle; for a packed one apt's `file:` method
            // would bring it under the wrong sum.
            "Acquire::IndexTargets::deb::Packages::CompressionTypes=uncompressed".to_owned(),
            // The bundle may lie where only root can read; every byte of it has been compared with its sum.
            "APT::Sandbox::User=root".to_owned(),
        ]
    } else if host.is_apart() {
        let root = host.files.root().display();
        vec![
            format!("Dir={root}"),
            format!("Dir::State={root}/var/lib/apt"),
            format!("Dir::State::status={root}/var/lib/dpkg/status"),
            format!("Dir::Cache={root}/var/cache/apt"),
            format!("Dir::Etc={root}/etc/apt"),
            "Dir::Etc::sourcelist=/dev/null".to_owned(),
            format!("Dir::Etc::sourceparts={root}/etc/apt/sources.list.d"),
            format!("Dir::Etc::preferencesparts={root}/etc/apt/preferences.d"),
            format!("Dir::Etc::trusted={root}/etc/apt/trusted.gpg"),
            format!("Dir::Etc::trustedparts={root}/etc/apt/trusted.gpg.d"),
            "Acquire::Languages=none".to_owned(),
            "Acquire::GzipIndexes=false".to_owned(),
            "APT::Sandbox::User=root".to_owned(),
            "Debug::NoLocking=1".to_owned(),
        ]
    } else {
        Vec::new()
    };
    let architecture = host.files.read_text("/var/lib/dpkg/arch").ok().flatten().unwrap_or_default();
    let architecture = architecture.lines().next().filter(|_| host.is_apart()).map(str::to_owned);
    let of_architecture = architecture
        .into_iter()
        .flat_map(|name| [format!("APT::Architecture={name}"), format!("APT::Architectures={name}")]);
    options.into_iter().chain(of_architecture).flat_map(|o| ["-o".to_owned(), o]).collect()
}

/// A call of `apt-get` for what a user asks for: it waits for dpkg's lock, and takes nothing away.
pub(super) fn for_users(lock_timeout: Duration) -> Call {
    let lock = format!("DPkg::Lock::Timeout={}", lock_timeout.as_secs());
    apt_get(INSTALL_LIMIT).args(["-o", &lock, "--no-remove"])
}

/// A call of another program of the family (`dpkg`, `apt-mark`), with the same silent environment.
pub(super) fn program(name: &str, limit: Duration) -> Call {
    quiet(Call::new(name)).limit(limit)
}

/// What apt's methods read of the environment.
const PROXIES: [&str; 4] = ["http_proxy", "https_proxy", "ftp_proxy", "no_proxy"];

/// The environment in which neither debconf, nor a configuration file, nor a service restart asks anything.
fn quiet(call: Call) -> Call {
    // The one thing of the caller's environment that apt needs: the way out. Downloads of ours take it, too.
    let proxies = PROXIES.iter().filter_map(|name| Some((*name, std::env::var(name).ok()?)));
    let call = proxies.fold(call, |call, (name, value)| call.env(name, value));
    call.env("DEBIAN_FRONTEND", "noninteractive")
        .env("DEBCONF_NONINTERACTIVE_SEEN", "true")
        .env("DEBCONF_NOWARNINGS", "yes")
        .env("UCF_FORCE_CONFFOLD", "1")
        .env("NEEDRESTART_MODE", "l")
        .env("NEEDRESTART_SUSPEND", "1")
        .env("APT_LISTCHANGES_FRONTEND", "none")
        .env("APT_LISTBUGS_FRONTEND", "none")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_forces_signatures_and_asks_nothing() {
        let line = apt_get(UPDATE_LIMIT).line();
        for option in SIGNATURES_ON.iter().chain(&BEHAVIOUR) {
            assert!(line.contains(option), "{option} in {line}");
        }
    }
}
