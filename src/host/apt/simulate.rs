//! What apt would do, before it does it: its simulation and its list of files, read into a [`Plan`], and the
//! plans that are refused. `Inst` lines tell versions; only the list of files tells where each comes from.

use std::path::Path;

use super::nvidia;
use super::sources::Unsigned;
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::host::dpkg::compare_versions;
use crate::host::exec::Call;
use crate::host::fetch::PARTIAL_PREFIX;
use crate::host::paths::CACHE_DIR;

/// Room that must be left after the installation: module builds and a new initramfs take some 200 MB.
pub(crate) const SPARE: u64 = 256 << 20;

/// What apt would do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) installs: Vec<Install>,
    pub(crate) removes: Vec<String>,
    pub(crate) downloads: Vec<Download>,
    /// Bytes by which the installed system grows.
    pub(crate) unpacked: u64,
    /// What it was computed with, and has to be done with.
    pub(crate) holds: Holds,
}

/// Whether apt may change packages on hold that nobody named.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Holds {
    /// They stay.
    #[default]
    Kept,
    /// They may be changed and removed like any other.
    Ignored,
}

impl Holds {
    /// The call with the option for it; the last of several counts.
    pub(super) fn option(self, call: Call) -> Call {
        match self {
            Self::Kept => call,
            Self::Ignored => call.args(["-o", "APT::Ignore-Hold=1"]),
        }
    }
}

/// One package that apt would install, upgrade or install again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Install {
    pub(crate) name: String,
    pub(crate) arch: String,
    pub(crate) old: Option<String>,
    pub(crate) new: String,
}

/// One file that apt would fetch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Download {
    pub(crate) uri: String,
    pub(crate) file: String,
    pub(crate) size: u64,
    /// 64 hexadecimal digits, where the index has this sum.
    pub(crate) sha256: Option<String>,
}

impl Plan {
    /// From the output of `apt-get install --simulate` and of `apt-get install --print-uris`.
    pub(crate) fn read(simulated: &str, uris: &str) -> Self {
        Self {
            installs: simulated.lines().filter_map(install).collect(),
            removes: simulated.lines().filter_map(remove).collect(),
            downloads: uris.lines().filter_map(download).collect(),
            unpacked: uris.lines().find_map(growth).unwrap_or(0),
            holds: Holds::Kept,
        }
    }

    /// Refuses removals and downgrades that nobody asked for.
    pub(crate) fn judge(&self, may_downgrade: bool) -> Result<()> {
        let foreign: Vec<&str> =
            self.removes.iter().map(String::as_str).filter(|n| !nvidia::may_be_removed(n)).collect();
        if !foreign.is_empty() {
            return Err(Error::new(
                Code::WouldRemove,
                format!("the installation would remove {}; nothing was changed", foreign.join(", ")),
            )
            .with_hint("remove them by hand if they are not needed (apt-get remove), then run again"));
        }
        let older = self.installs.iter().find(|i| {
            !may_downgrade && i.old.as_ref().is_some_and(|old| compare_versions(&i.new, old).is_lt())
        });
        if let Some(i) = older {
            let old = i.old.as_deref().unwrap_or_default();
            return Err(Error::new(
                Code::WouldDowngrade,
                format!(
                    "{} {old} is installed, and would be replaced by the older {}; nothing was changed",
                    i.name, i.new
                ),
            )
            .with_hint(format!(
                "ask for another version, or downgrade by hand: apt-get install --allow-downgrades {}={}",
                i.name, i.new
            )));
        }
        Ok(())
    }

    /// Refuses packages from sources that are believed without a signature.
    pub(super) fn refuse_unsigned(&self, sources: &[Unsigned]) -> Result<()> {
        for download in &self.downloads {
            if let Some(source) = sources.iter().find(|s| s.supplies(&download.uri)) {
                return Err(Error::new(
                    Code::UntrustedSource,
                    format!(
                        "apt would take {} from {}:{}, where signatures are switched off ({}); nothing was installed",
                        download.package(),
                        source.file,
                        source.line,
                        source.option
                    ),
                )
                .with_hint(format!(
                    "remove {} there and give the source a Signed-By key, or disable the source",
                    source.option
                )));
            }
        }
        Ok(())
    }

    /// Refuses files that a bundle's indexes name, and that are not in it: apt would only say that they are missing.
    pub(super) fn refuse_what_no_bundle_has(&self, host: &Host) -> Result<()> {
        let Some(bundle) = host.bundle().filter(|b| b.is_verified()) else { return Ok(()) };
        let lacks = |d: &&Download| {
            let there = bundle.supplies(host, &d.uri);
            there.is_none_or(|(_, file)| d.sha256.as_deref() != Some(file.sha256.as_str()))
        };
        let missing: Vec<_> = self.downloads.iter().filter(lacks).map(|d| d.file.as_str()).collect();
        let Some(first) = missing.first() else { return Ok(()) };
        let more = if missing.len() > 1 { format!(" and {} more", missing.len() - 1) } else { String::new() };
        let text = format!("the bundle {} lacks {first}{more}, which this machine needs", bundle.location);
        Err(Error::new(Code::BundleIncomplete, text))
    }

    /// What would be downloaded if nothing were in apt's cache.
    pub(crate) fn download_bytes(&self) -> u64 {
        self.downloads.iter().map(|d| d.size).sum()
    }

    /// Fails unless downloads and packages fit on the file systems that they go to.
    pub(crate) fn fits(&self, host: &Host) -> Result<()> {
        let cache = Path::new("/var/cache/apt/archives");
        let mut fetched = 0;
        for download in &self.downloads {
            let mut places = vec![cache.join(&download.file)];
            // What was fetched ahead, or has its room already.
            if let Some(sha256) = &download.sha256 {
                places.extend(["", PARTIAL_PREFIX].map(|p| Path::new(CACHE_DIR).join([p, sha256].concat())));
            }
            let mut is_there = false;
            for place in places {
                is_there |= host.files.lstat(place)?.is_some_and(|m| m.len() == download.size);
            }
            if !is_there {
                fetched += download.size;
            }
        }
        if device(host, cache)? == device(host, Path::new("/usr"))? {
            return room(host, Path::new("/usr"), fetched + self.unpacked);
        }
        room(host, cache, fetched)?;
        room(host, Path::new("/usr"), self.unpacked)
    }
}

impl Download {
    /// `name version` out of `name_version_arch.deb` (`%3a` is the colon of an epoch).
    fn package(&self) -> String {
        let mut parts = self.file.split('_');
        let name = parts.next().unwrap_or(&self.file);
        let version = parts.next().unwrap_or_default().replace("%3a", ":");
        format!("{name} {version}").trim_end().to_owned()
    }
}

fn device(host: &Host, path: &Path) -> Result<Option<u64>> {
    // The nearest directory that is there decides.
    for dir in path.ancestors() {
        if let Some(m) = host.files.lstat(dir)? {
            return Ok(Some(std::os::unix::fs::MetadataExt::dev(&m)));
        }
    }
    Ok(None)
}

fn room(host: &Host, path: &Path, wanted: u64) -> Result<()> {
    if wanted == 0 {
        return Ok(());
    }
    let needed = wanted + SPARE;
    let free = host.files.free_bytes(path)?;
    if free >= needed {
        return Ok(());
    }
    let gb = |bytes: u64| format!("{}.{:02} GB", bytes / 1_000_000_000, bytes % 1_000_000_000 / 10_000_000);
    Err(Error::new(
        Code::DiskFull,
        format!(
            "the file system of {} has {} free, and the installation needs {} ({needed} bytes); nothing was fetched",
            path.display(),
            gb(free),
            gb(needed)
        ),
    )
    .with_hint("enlarge the volume (aws ec2 modify-volume, growpart, resize2fs), or free space with apt-get clean"))
}

/// `Inst name[:arch] [old] (new origin… [arch])`
fn install(line: &str) -> Option<Install> {
    let rest = line.strip_prefix("Inst ")?;
    let (name, rest) = rest.split_once(' ')?;
    let (old, rest) = match rest.strip_prefix('[') {
        Some(r) => r.split_once(']').map(|(old, rest)| (Some(old.to_owned()), rest))?,
        None => (None, rest),
    };
    let inside = rest.trim_start().strip_prefix('(')?.split_once(')')?.0;
    let new = inside.split(' ').next()?.to_owned();
    let arch = inside.rsplit_once('[')?.1.trim_end_matches(']').to_owned();
    let name = name.split(':').next()?.to_owned();
    Some(Install { name, arch, old, new })
}

/// `Remv name[:arch] [version]`, or `Purg`.
fn remove(line: &str) -> Option<String> {
    let rest = line.strip_prefix("Remv ").or_else(|| line.strip_prefix("Purg "))?;
    rest.split([' ', ':']).next().map(str::to_owned)
}

/// `'uri' file size hash`
fn download(line: &str) -> Option<Download> {
    let (uri, rest) = line.strip_prefix('\'')?.split_once('\'')?;
    let mut fields = rest.split_ascii_whitespace();
    let file = fields.next()?.to_owned();
    let size = fields.next()?.parse().ok()?;
    let sha256 = fields.next().and_then(|sum| sum.strip_prefix("SHA256:")).map(str::to_ascii_lowercase);
    Some(Download { uri: uri.to_owned(), file, size, sha256 })
}

/// `After this operation, 75.9 MB of additional disk space will be used.` (decimal units, rounded: the spare
/// room covers the rounding)
fn growth(line: &str) -> Option<u64> {
    let rest = line.strip_prefix("After this operation, ")?;
    let (amount, rest) = rest.split_once(' ')?;
    let (unit, rest) = rest.split_once(' ')?;
    if !rest.contains("will be used") {
        return Some(0); // space will be freed
    }
    let factor = match unit {
        "B" => 1.0,
        "kB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        "TB" => 1e12,
        _ => return None,
    };
    let bytes = amount.replace(',', "").parse::<f64>().ok()? * factor;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a size that apt printed")]
    Some(bytes as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIMULATED: &str = "\
Reading package lists...
The following packages will be REMOVED:
  nvidia-dkms-535
Remv nvidia-dkms-535:i386 [535.1-1]
Inst libssl3 [3.0.15-1~deb12u1] (3.0.16-1~deb12u1 Debian:12.11/oldstable, Debian-Security:12/oldstable-security [amd64])
Inst hello:i386 (2.10-3 Debian:12.11/oldstable [i386]) [libc6:i386 ]
Inst local (1.0 local-deb [all])
Conf hello (2.10-3 Debian:12.11/oldstable [amd64])
";
    const URIS: &str = "\
Need to get 66.3 kB of archives.
After this operation, 5,608 MB of additional disk space will be used.
'http://h/pool/h/hello_2.10-3_amd64.deb' hello_1%3a2.10-3_amd64.deb 53080 SHA256:2e6e
'file:/srv/repo/./alpha_1.0_amd64.deb' alpha_1.0_amd64.deb 652 MD5Sum:9682
";

    #[test]
    fn simulation_and_list_of_files_are_read() {
        let plan = Plan::read(SIMULATED, URIS);
        let seen: Vec<_> = plan
            .installs
            .iter()
            .map(|i| (i.name.as_str(), i.arch.as_str(), i.old.as_deref(), i.new.as_str()))
            .collect();
        assert_eq!(
            seen,
            [
                ("libssl3", "amd64", Some("3.0.15-1~deb12u1"), "3.0.16-1~deb12u1"),
                ("hello", "i386", None, "2.10-3"),
                ("local", "all", None, "1.0"),
            ]
        );
        assert_eq!(plan.removes, ["nvidia-dkms-535"]);
        assert_eq!(plan.downloads.iter().map(|d| d.size).collect::<Vec<_>>(), [53080, 652]);
        assert_eq!(plan.downloads[0].package(), "hello 1:2.10-3");
        assert_eq!(plan.unpacked, 5_608_000_000);
        plan.judge(false).unwrap();
    }

    #[test]
    fn removals_and_downgrades_are_refused_by_name() {
        let remove = Plan::read("Remv openssh-server [1]\nRemv libcuda1 [1]\n", "");
        let error = remove.judge(false).unwrap_err();
        assert_eq!(error.code(), Code::WouldRemove);
        assert!(error.message().contains("openssh-server;"), "{error}");
        let down = Plan::read("Inst a [2.0] (1.0 X [amd64])\n", "");
        assert_eq!(down.judge(false).unwrap_err().code(), Code::WouldDowngrade);
        down.judge(true).unwrap();
    }
}
