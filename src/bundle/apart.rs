//! An apt of its own: its root is a directory that is thrown away, its sources are another distribution's, and this
//! machine's apt only lends its program. Nothing below `/etc/apt`, `/var/lib/apt` and `/var/lib/dpkg` is read or written
//! (but for `apt.conf`, where proxies stand).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::manifest;
use crate::action::repository::list_name;
use crate::action::repository::sources::{self, Entry};
use crate::action::repository::{control, packages};
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::host::files::Files;

/// A distribution's own archive.
#[derive(Debug)]
pub(super) struct Distribution {
    pub(super) id: &'static str,
    pub(super) version: &'static str,
    pub(super) codename: &'static str,
}

/// Codenames are those of the distributions' own `os-release` files.
const DISTRIBUTIONS: &[Distribution] = &[
    Distribution { id: "debian", version: "11", codename: "bullseye" },
    Distribution { id: "debian", version: "12", codename: "bookworm" },
    Distribution { id: "debian", version: "13", codename: "trixie" },
    Distribution { id: "ubuntu", version: "18.04", codename: "bionic" },
    Distribution { id: "ubuntu", version: "20.04", codename: "focal" },
    Distribution { id: "ubuntu", version: "22.04", codename: "jammy" },
    Distribution { id: "ubuntu", version: "24.04", codename: "noble" },
];

/// Where the keyrings lie that Debian and Ubuntu package for each other.
const KEYRINGS: &[(&str, &str, &str)] = &[
    ("debian", "/usr/share/keyrings/debian-archive-keyring.gpg", "debian-archive-keyring"),
    ("ubuntu", "/usr/share/keyrings/ubuntu-archive-keyring.gpg", "ubuntu-keyring"),
];

impl Distribution {
    /// By its name: `debian12`, `ubuntu22.04`, `ubuntu-2204`.
    pub(super) fn named(name: &str) -> Result<&'static Self> {
        let plain = |text: &str| text.to_ascii_lowercase().replace(['.', '-', '_', ' '], "");
        let known = |d: &&Self| plain(&format!("{}{}", d.id, d.version)) == plain(name);
        DISTRIBUTIONS.iter().find(known).ok_or_else(|| {
            let names: Vec<_> = DISTRIBUTIONS.iter().map(|d| format!("{}{}", d.id, d.version)).collect();
            Error::new(Code::Usage, format!("--os {name} is no distribution that a bundle can be made for"))
                .with_hint(format!("there are {}", names.join(", ")))
        })
    }

    /// As the catalog spells it: `ubuntu2204`.
    pub(super) fn distro(&self) -> String {
        format!("{}{}", self.id, self.version.replace('.', ""))
    }

    /// The sources of its archive, as its images have them.
    fn sources(&self, arch: &str, components: &[String]) -> String {
        let codename = self.codename;
        let own = if self.id == "debian" { vec!["main"] } else { vec!["main", "universe", "restricted"] };
        let mut all: BTreeSet<&str> = own.into_iter().collect();
        all.extend(components.iter().map(String::as_str));
        let components = all.into_iter().collect::<Vec<_>>().join(" ");
        let stanza = |uri: &str, suites: &str| {
            format!("Types: deb\nURIs: {uri}\nSuites: {suites}\nComponents: {components}\n")
        };
        let updates = format!("{codename} {codename}-updates");
        let security = format!("{codename}-security");
        if self.id == "debian" {
            let base = "http://deb.debian.org";
            return [
                stanza(&format!("{base}/debian/"), &updates),
                stanza(&format!("{base}/debian-security/"), &security),
            ]
            .join("\n");
        }
        let [archive, secure] = if arch == "amd64" {
            ["http://archive.ubuntu.com/ubuntu/", "http://security.ubuntu.com/ubuntu/"]
        } else {
            ["http://ports.ubuntu.com/ubuntu-ports/"; 2]
        };
        [stanza(archive, &updates), stanza(secure, &security)].join("\n")
    }
}

/// The keyring of a distribution: the named one, or one that a package has brought to this machine.
pub(super) fn keyring(id: &str, named: Option<&Path>) -> Result<Vec<u8>> {
    if let Some(path) = named {
        return super::target::file(path, "--keyring");
    }
    let (_, path, package) = KEYRINGS.iter().find(|(of, ..)| *of == id).copied().unwrap_or(KEYRINGS[0]);
    std::fs::read(path).map_err(|e| {
        Error::new(Code::RepositoryKeyUnknown, format!("the keyring of {id}'s archive is not here: {path}"))
            .with_hint(format!(
                "install {package}, or name the keyring by --keyring: it decides whose packages the bundle holds"
            ))
            .because(e)
    })
}

/// A repository that the bundle takes from.
#[derive(Clone, Debug)]
pub(super) struct Repo {
    /// With a slash at its end.
    pub(super) uri: String,
    /// Where it lies in the bundle.
    pub(super) path: String,
    pub(super) suites: Vec<String>,
    pub(super) components: Vec<String>,
}

/// The apt apart.
pub(super) struct Apart {
    pub(super) host: Host,
    pub(super) repos: Vec<Repo>,
    arch: &'static str,
    /// `keys/distribution.gpg` or `.asc`
    pub(super) keyring: String,
    pub(super) keyring_bytes: Vec<u8>,
}

/// What it is made from.
pub(super) struct Origin<'a> {
    pub(super) distribution: &'static Distribution,
    pub(super) arch: &'static str,
    pub(super) components: &'a [String],
    pub(super) keyring: Vec<u8>,
    /// A sources file and its name, in place of the distribution's archive.
    pub(super) sources: Option<(String, String)>,
    /// dpkg's status file, in place of the minimal set.
    pub(super) installed: Option<Vec<u8>>,
}

impl Apart {
    /// Makes the root and reads the distribution's indexes.
    pub(super) async fn make(root: PathBuf, origin: Origin<'_>) -> Result<Self> {
        let host = Host::apart(root);
        for dir in [
            "/var/lib/dpkg",
            "/var/lib/apt/lists/partial",
            "/var/cache/apt/archives/partial",
            "/etc/apt/sources.list.d",
            "/etc/apt/preferences.d",
            "/etc/apt/trusted.gpg.d",
            "/keys",
        ] {
            host.files.make_dir(dir, 0o755)?;
        }
        let is_armoured = origin.keyring.starts_with(b"-----BEGIN");
        let keyring = format!("keys/distribution.{}", if is_armoured { "asc" } else { "gpg" });
        host.files.write(format!("/{keyring}"), &origin.keyring, 0o644)?;
        host.files.write("/var/lib/dpkg/arch", format!("{}\n", origin.arch).as_bytes(), 0o644)?;
        host.files.write("/var/lib/dpkg/status", origin.installed.as_deref().unwrap_or_default(), 0o644)?;
        let (name, text) = origin.sources.unwrap_or_else(|| {
            ("distribution.sources".into(), origin.distribution.sources(origin.arch, origin.components))
        });
        let repos = repos(&name, &sources::parse(&name, &text))?;
        let mut written = String::new();
        for repo in &repos {
            let _ = write!(written, "\nTypes: deb\nURIs: {}\nSuites: {}\n", repo.uri, repo.suites.join(" "));
            if !repo.components.is_empty() {
                let _ = writeln!(written, "Components: {}", repo.components.join(" "));
            }
            let keyring = host.seen(&format!("/{keyring}"));
            let _ =
                write!(written, "Architectures: {}\nSigned-By: {keyring}\nTargets: Packages\n", origin.arch);
        }
        host.files.write("/etc/apt/sources.list.d/distribution.sources", written.as_bytes(), 0o644)?;
        host.apt().update().await?;
        let apart = Self { host, repos, arch: origin.arch, keyring, keyring_bytes: origin.keyring };
        if origin.installed.is_none() {
            let status = apart.minimal()?;
            apart.host.files.write("/var/lib/dpkg/status", status.as_bytes(), 0o644)?;
        }
        Ok(apart)
    }

    /// A status file in which everything of priority required, and what that depends on, is installed in a version older
    /// than any: what has to be of a certain version is then in the bundle, however old the machine is that installs it.
    fn minimal(&self) -> Result<String> {
        #[derive(Default)]
        struct Known {
            fields: String,
            depends: String,
            is_required: bool,
        }
        let mut known: BTreeMap<String, Known> = BTreeMap::new();
        let mut provided: BTreeMap<String, String> = BTreeMap::new();
        for (inside, _) in self.indexes()?.iter().filter(|(inside, _)| inside.ends_with("Packages")) {
            let text = self.list(inside)?;
            let wanted = [
                "Package",
                "Architecture",
                "Priority",
                "Essential",
                "Multi-Arch",
                "Provides",
                "Pre-Depends",
                "Depends",
            ];
            control::stream(
                text.as_slice(),
                wanted,
                |_, [name, arch, priority, essential, multi, provides, pre, depends]| {
                    let mut fields =
                        format!("Package: {name}\nStatus: install ok installed\nPriority: {priority}\n");
                    let _ = write!(fields, "Maintainer: nobody\nArchitecture: {arch}\nVersion: 0\n");
                    for (field, value) in
                        [("Essential", essential), ("Multi-Arch", multi), ("Provides", provides)]
                    {
                        if !value.is_empty() {
                            let _ = writeln!(fields, "{field}: {value}");
                        }
                    }
                    fields.push_str("Description: taken as installed\n\n");
                    for provided_name in packages::names_in(provides) {
                        provided.entry(provided_name.to_owned()).or_insert_with(|| name.clone());
                    }
                    let is_required = priority == "required" || essential == "yes";
                    known.insert(
                        name.clone(),
                        Known { fields, depends: format!("{pre}, {depends}"), is_required },
                    );
                    Ok(())
                },
            )
            .map_err(|why| Error::new(Code::IndexMalformed, format!("{inside}: {why}")))?;
        }
        let mut pending: Vec<String> =
            known.iter().filter(|(_, k)| k.is_required).map(|(name, _)| name.clone()).collect();
        let mut chosen: BTreeSet<String> = BTreeSet::new();
        while let Some(name) = pending.pop() {
            let real = if known.contains_key(&name) { Some(&name) } else { provided.get(&name) };
            let Some((real, package)) = real.and_then(|name| Some((name, known.get(name)?))) else {
                continue;
            };
            if !chosen.insert(real.clone()) {
                continue;
            }
            for relation in package.depends.split(',') {
                let alternatives: Vec<&str> = packages::names_in(relation).collect();
                let is_met = alternatives.iter().any(|a| chosen.contains(*a));
                let first =
                    alternatives.iter().find(|a| known.contains_key(**a) || provided.contains_key(**a));
                pending.extend(first.filter(|_| !is_met).map(|name| (*name).to_owned()));
            }
        }
        Ok(chosen.iter().filter_map(|name| known.get(name)).map(|k| k.fields.as_str()).collect())
    }

    /// A list's bytes. Of a `file:` repository apt keeps a link, which leads out of the root.
    pub(super) fn list(&self, inside: &str) -> Result<Vec<u8>> {
        let at = self.host.files.outside(inside)?;
        Files::new("/".into())
            .read(at)?
            .ok_or_else(|| Error::new(Code::IndexMalformed, format!("apt has not kept {inside}")))
    }

    /// Every index that apt has fetched and verified: where it lies (path inside), and where it belongs in the bundle.
    pub(super) fn indexes(&self) -> Result<Vec<(String, String)>> {
        const LISTS: &str = "/var/lib/apt/lists";
        let names: BTreeSet<String> = self.host.files.list(LISTS)?.into_iter().collect();
        let mut found = Vec::new();
        for repo in &self.repos {
            for suite in &repo.suites {
                let base = match suite.as_str() {
                    "/" => String::new(),
                    flat if flat.ends_with('/') => flat.to_owned(),
                    suite => format!("dists/{suite}/"),
                };
                let mut files: Vec<String> =
                    ["InRelease", "Release", "Release.gpg"].map(str::to_owned).into();
                if repo.components.is_empty() {
                    files.push("Packages".into());
                }
                for component in &repo.components {
                    files
                        .extend([self.arch, "all"].map(|arch| format!("{component}/binary-{arch}/Packages")));
                }
                for file in files {
                    let name = list_name(&format!("{}{base}{file}", repo.uri));
                    if names.contains(&name) {
                        let path = format!("{}/{base}{file}", repo.path).replace("/./", "/");
                        found.push((format!("{LISTS}/{name}"), path));
                    }
                }
            }
        }
        Ok(found)
    }

    /// Where a file that apt names belongs in the bundle.
    pub(super) fn path_of(&self, uri: &str) -> Result<String> {
        let repo = self
            .repos
            .iter()
            .filter(|r| uri.starts_with(r.uri.as_str()))
            .max_by_key(|r| r.uri.len())
            .ok_or_else(|| {
                Error::new(Code::BundleInvalid, format!("{uri} is in no repository of the bundle"))
            })?;
        let rest = crate::text::percent_decoded(&uri[repo.uri.len()..]);
        let path = format!("{}/{}", repo.path, rest.trim_start_matches("./")).replace("/./", "/");
        if manifest::is_path(&path) {
            return Ok(path);
        }
        Err(Error::new(Code::BundleInvalid, format!("{uri} has a name that no bundle can hold")))
    }
}

/// The repositories of a sources file, each address once.
fn repos(name: &str, entries: &[Entry]) -> Result<Vec<Repo>> {
    let mut repos = Vec::new();
    for entry in entries.iter().filter(|e| e.types.iter().any(|t| t == "deb")) {
        if entry.is_unsigned() {
            let text = format!("{}: signatures are switched off there", entry.place());
            return Err(Error::new(Code::UntrustedSource, text));
        }
        // Several addresses of one entry are the same archive.
        let Some(uri) = entry.uris.first() else { continue };
        let scheme = uri.split(':').next().unwrap_or_default();
        if !matches!(scheme, "http" | "https" | "file") {
            let text = format!("{}: {scheme}: is not supported, only http, https and file", entry.place());
            return Err(Error::new(Code::Usage, text));
        }
        repos.push(Repo {
            uri: format!("{}/", uri.trim_end_matches('/')),
            path: format!("distribution/{}", repos.len()),
            suites: entry.suites.clone(),
            components: entry.components.clone(),
        });
    }
    if repos.is_empty() {
        return Err(Error::new(Code::Usage, format!("--sources {name} names no repository of packages")));
    }
    Ok(repos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distributions_have_several_spellings() {
        for name in ["ubuntu2204", "ubuntu22.04", "Ubuntu-22.04"] {
            assert_eq!(Distribution::named(name).unwrap().codename, "jammy");
        }
        assert_eq!(Distribution::named("debian9").unwrap_err().code(), Code::Usage);
    }

    #[test]
    fn sources_that_nobody_signs_are_refused() {
        let read = |text: &str| repos("x.list", &sources::parse("x.list", text));
        assert_eq!(read("deb [trusted=yes] http://a/ x main\n").unwrap_err().code(), Code::UntrustedSource);
        assert_eq!(read("deb cdrom:[x]/ x main\n").unwrap_err().code(), Code::Usage);
        assert_eq!(read("# nothing\n").unwrap_err().code(), Code::Usage);
        let two = read("deb http://a/debian x main\ndeb-src http://b/ x main\ndeb http://c/ ./\n").unwrap();
        assert_eq!(
            two.iter().map(|r| r.path.as_str()).collect::<Vec<_>>(),
            ["distribution/0", "distribution/1"]
        );
    }
}
