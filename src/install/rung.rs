//! Which of the three ways a request takes. Each reason names what stands in the way, for the result and for whoever
//! wants the faster way.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::fetch::ProxyChoice;
use crate::error::Result;
use crate::host::Host;
use crate::host::apt::Request;
use crate::host::apt::simulate::Plan;
use crate::host::exec::Call;

/// A way to install.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rung {
    /// Everything by plain apt.
    Apt,
    /// Package files fetched and verified by us, installed by plain apt and dpkg.
    Originals,
    /// Unpacked by us; dpkg links.
    Pipeline,
}

impl Rung {
    /// As it is printed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Apt => "apt",
            Self::Originals => "originals",
            Self::Pipeline => "pipeline",
        }
    }
}

impl fmt::Display for Rung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A way, and why not a faster one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chosen {
    pub(super) rung: Rung,
    pub(super) why: String,
    /// As apt is configured.
    pub(super) proxy: ProxyChoice,
}

impl Chosen {
    fn new(rung: Rung, why: impl Into<String>) -> Self {
        Self { rung, why: why.into(), proxy: ProxyChoice::Environment }
    }

    fn by(mut self, proxy: ProxyChoice) -> Self {
        self.proxy = proxy;
        self
    }
}

/// apt's settings for a proxy, in small letters.
const PROXIES: [&str; 2] = ["acquire::http::proxy", "acquire::https::proxy"];
/// Their word for none.
const DIRECT: &str = "DIRECT";

/// dpkg's major and minor versions whose handling of hard links, and of `dpkg-deb` by search path, the tests cover.
const DPKGS: [&str; 4] = ["1.20", "1.21", "1.22", "1.23"];
/// apt's, whose archives are taken by size, and which hands its search path on.
const APTS: [&str; 12] = ["2.2", "2.3", "2.4", "2.5", "2.6", "2.7", "2.8", "2.9", "3.0", "3.1", "3.2", "3.3"];

/// Programs that apt calls with the list of archives before dpkg starts, and that do not need whole ones: debconf reads
/// control data, which the placeholders have by then, and the others are told to keep quiet by our environment.
const KNOWN_READERS: [&str; 3] =
    ["/usr/sbin/dpkg-preconfigure --apt", "/usr/bin/apt-listchanges --apt", "/usr/sbin/apt-listbugs apt"];

/// Chooses, by what the machine says.
pub(super) async fn choose(host: &Host, request: &Request, plan: &Plan, most: Rung) -> Result<Chosen> {
    if plan.downloads.is_empty() && request.local_files().next().is_none() {
        return Ok(Chosen::new(Rung::Apt, "there is nothing to fetch"));
    }
    if most == Rung::Apt {
        return Ok(Chosen::new(Rung::Apt, "install.method asks for it"));
    }
    if let Some(download) = plan.downloads.iter().find(|d| {
        !is_http(&d.uri) && host.bundle().is_none_or(|bundle| bundle.supplies(host, &d.uri).is_none())
    }) {
        let scheme = download.uri.split(':').next().unwrap_or_default();
        return Ok(Chosen::new(
            Rung::Apt,
            format!("{} comes by {scheme}:, which only apt handles", download.file),
        ));
    }
    if let Some(download) = plan.downloads.iter().find(|d| d.sha256.is_none()) {
        return Ok(Chosen::new(Rung::Apt, format!("the index has no SHA-256 of {}", download.file)));
    }
    let settings = Settings::read(host).await?;
    if let Some(why) = settings.only_apt_can_fetch(host, plan)? {
        return Ok(Chosen::new(Rung::Apt, why));
    }
    let whole = if most == Rung::Originals {
        Some("install.method asks for it".to_owned())
    } else if let Some(why) = settings.needs_whole_archives(host)? {
        Some(why)
    } else if let Some(why) = unknown_versions(host).await? {
        Some(why)
    } else if plan.installs.iter().all(|i| i.old.is_some()) {
        Some("every package replaces one that is installed".to_owned())
    } else {
        None
    };
    let rung = if whole.is_some() { Rung::Originals } else { Rung::Pipeline };
    Ok(Chosen::new(rung, whole.unwrap_or_default()).by(settings.proxy(plan)))
}

/// `http://host:80/path` → `host`
fn host_of(uri: &str) -> &str {
    let rest = uri.split_once("://").map_or(uri, |(_, rest)| rest);
    let authority = rest.split('/').next().unwrap_or_default();
    let host = authority.rsplit('@').next().unwrap_or_default();
    match host.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    }
}

fn is_http(uri: &str) -> bool {
    uri.starts_with("http://") || uri.starts_with("https://")
}

/// apt's configuration, as far as it matters here.
struct Settings(Vec<(String, String)>);

impl Settings {
    async fn read(host: &Host) -> Result<Self> {
        let names = ["Acquire", "DPkg", "Dir::Etc"];
        let output = host.exec.run(&Call::new("apt-config").args(["dump"]).args(names)).await?;
        Ok(Self::parse(&output.text()))
    }

    /// Lines like `Acquire::http::Proxy "http://proxy:3128";`
    fn parse(text: &str) -> Self {
        let line = |l: &str| {
            let (name, value) = l.split_once(' ')?;
            Some((name.to_ascii_lowercase(), value.trim_end_matches(';').trim_matches('"').to_owned()))
        };
        Self(text.lines().filter_map(line).filter(|(_, value)| !value.is_empty()).collect())
    }

    fn named<'a>(&'a self, part: &'a str) -> impl Iterator<Item = &'a (String, String)> {
        self.0.iter().filter(move |(name, _)| name.contains(part))
    }

    /// What only apt's own methods know how to do.
    fn only_apt_can_fetch(&self, host: &Host, plan: &Plan) -> Result<Option<String>> {
        const SETTINGS: [&str; 8] = [
            "::proxy-auto-detect",
            "::proxyautodetect",
            "::sslcert",
            "::sslkey",
            "::cainfo",
            "::crlfile",
            "::issuercert",
            "::verify-peer",
        ];
        for (name, value) in self.named("acquire::http") {
            // A proxy for single hosts, or one that speaks something else than http.
            let is_proxy =
                name.contains("::proxy") && !name.contains("::proxy-") && !name.contains("::proxyauto");
            let special = is_proxy
                && (!PROXIES.contains(&name.as_str()) || value.starts_with("socks"))
                && !(value == DIRECT && self.are_direct(plan));
            if special || SETTINGS.iter().any(|s| name.contains(s)) {
                return Ok(Some(format!("apt's configuration has {name}, which only apt follows")));
            }
        }
        let mut logins = vec!["/etc/apt/auth.conf".to_owned()];
        let directory = "/etc/apt/auth.conf.d";
        logins.extend(host.files.list(directory)?.into_iter().map(|name| format!("{directory}/{name}")));
        for file in logins {
            if host.files.read_text(&file)?.is_some_and(|text| text.contains("machine")) {
                return Ok(Some(format!("{file} holds logins, which only apt reads")));
            }
        }
        Ok(None)
    }

    /// Whether apt reaches every host of the downloads without a proxy, by their own settings.
    fn are_direct(&self, plan: &Plan) -> bool {
        let is_direct = |host: &str| {
            let names = PROXIES.map(|p| format!("{p}::{}", host.to_ascii_lowercase()));
            self.0.iter().any(|(name, value)| names.contains(name) && value == DIRECT)
        };
        plan.downloads.iter().all(|d| is_direct(host_of(&d.uri)))
    }

    /// The proxy that apt's configuration names, else those of the environment, which apt follows, too.
    fn proxy(&self, plan: &Plan) -> ProxyChoice {
        if !plan.downloads.is_empty() && self.are_direct(plan) {
            return ProxyChoice::Direct;
        }
        let named =
            |wanted: &str| self.0.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.clone());
        let [http, https] = PROXIES.map(named);
        match (http.as_deref(), https.as_deref()) {
            (None, None) => ProxyChoice::Environment,
            (Some(DIRECT), None | Some(DIRECT)) => ProxyChoice::Direct,
            // apt takes the one for http where there is none for https.
            _ => {
                let https = https.or_else(|| http.clone()).filter(|p| p != DIRECT);
                ProxyChoice::Given { http: http.filter(|p| p != DIRECT), https }
            }
        }
    }

    /// What reads package archives besides dpkg.
    fn needs_whole_archives(&self, host: &Host) -> Result<Option<String>> {
        for (name, value) in self.named("dpkg::pre-install-pkgs") {
            let known = KNOWN_READERS.iter().any(|k| value.contains(k));
            if name.starts_with("dpkg::pre-install-pkgs") && !known {
                return Ok(Some(format!("a program of somebody else's reads every archive first ({value})")));
            }
        }
        if debsig_is_active(host)? {
            return Ok(Some("debsig-verify checks every archive".into()));
        }
        Ok(None)
    }
}

/// dpkg calls debsig-verify where it is installed, unless its configuration says `no-debsig`, as Debian's does.
fn debsig_is_active(host: &Host) -> Result<bool> {
    if !host.files.exists("/usr/bin/debsig-verify")? {
        return Ok(false);
    }
    let mut files = vec!["/etc/dpkg/dpkg.cfg".to_owned()];
    let directory = "/etc/dpkg/dpkg.cfg.d";
    files.extend(host.files.list(directory)?.into_iter().map(|name| format!("{directory}/{name}")));
    for file in files {
        let text = host.files.read_text(&file)?.unwrap_or_default();
        if text.lines().any(|l| l.trim() == "no-debsig") {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Versions that nobody has tried.
async fn unknown_versions(host: &Host) -> Result<Option<String>> {
    for (program, known) in [("dpkg", &DPKGS[..]), ("apt", &APTS)] {
        let Some(version) = host.packages()?.installed(program, None).map(|p| p.version.clone()) else {
            return Ok(Some(format!("dpkg does not know {program} as a package")));
        };
        let matches =
            |k: &&str| version.strip_prefix(*k).is_some_and(|r| !r.starts_with(|c: char| c.is_ascii_digit()));
        if !known.iter().any(matches) {
            return Ok(Some(format!("{program} {version} has not been tried with it")));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rungs_are_ordered_and_named() {
        assert!(Rung::Pipeline > Rung::Originals && Rung::Originals > Rung::Apt);
        assert_eq!(Rung::Originals.to_string(), "originals");
    }

    #[test]
    fn settings_that_only_apt_follows_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path().into());
        let from = |uris: &str| Plan::read("", uris);
        let plan = from("'http://repo.example/a_1_all.deb' a_1_all.deb 5 SHA256:00");
        let why = |text: &str| Settings::parse(text).only_apt_can_fetch(&host, &plan).unwrap();
        assert_eq!(why("Acquire \"\";\nAcquire::http \"\";\nAcquire::http::Timeout \"30\";\n"), None);
        for line in [
            "Acquire::http::Proxy::repo.example \"http://proxy:3128\";",
            "Acquire::http::Proxy \"socks5h://proxy:1080\";",
            "Acquire::https::repo.example::SslCert \"/etc/ssl/client.pem\";",
            "Acquire::http::Proxy-Auto-Detect \"/usr/bin/detect\";",
        ] {
            assert!(why(line).is_some(), "{line}");
        }
        assert_eq!(why("Acquire::http::Proxy \"DIRECT\";"), None);
        let proxy = |text: &str| Settings::parse(text).proxy(&plan);
        assert_eq!(proxy("Acquire::http::Proxy \"DIRECT\";"), ProxyChoice::Direct);
        assert_eq!(proxy(""), ProxyChoice::Environment);
        let apart =
            "Acquire::http::Proxy \"http://proxy:3128\";\nAcquire::http::Proxy::Repo.Example \"DIRECT\";";
        assert_eq!((why(apart), proxy(apart)), (None, ProxyChoice::Direct));
        let other = from("'http://[2001:db8::1]:80/b.deb' b.deb 5 SHA256:00");
        assert!(Settings::parse(apart).only_apt_can_fetch(&host, &other).unwrap().is_some());
        let both = Some("http://proxy:3128".to_owned());
        assert_eq!(
            proxy("Acquire::http::Proxy \"http://proxy:3128\";"),
            ProxyChoice::Given { http: both.clone(), https: both }
        );
        host.files.write("/etc/apt/auth.conf.d/x.conf", b"machine h login a password b\n", 0o600).unwrap();
        assert!(why("").unwrap().contains("/etc/apt/auth.conf.d/x.conf"));
    }

    #[test]
    fn readers_of_archives_are_known_or_named() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path().into());
        let why = |text: &str| Settings::parse(text).needs_whole_archives(&host).unwrap();
        let known = "DPkg::Pre-Install-Pkgs \"\";\nDPkg::Pre-Install-Pkgs:: \"/usr/sbin/dpkg-preconfigure --apt || true\";\n\
                     DPkg::Tools::Options::/usr/bin/apt-listchanges::Version \"2\";\n";
        assert_eq!(why(known), None);
        assert!(
            why("DPkg::Pre-Install-Pkgs:: \"/usr/local/bin/scan\";").unwrap().contains("/usr/local/bin/scan")
        );
        host.files.write("/usr/bin/debsig-verify", b"", 0o755).unwrap();
        assert!(why("").is_some());
        host.files.write("/etc/dpkg/dpkg.cfg", b"# x\nno-debsig\n", 0o644).unwrap();
        assert_eq!(why(""), None);
    }
}
