//! `/etc/apt/sources.list`, written whole where mirrors or a list of one's own are asked for, and the mirrors that sources
//! may name. It stays as the image has it otherwise.

use super::super::read::{Map, Reader};
use super::super::template;
use super::key::{self, Key};
use crate::action::repository::sources::{MAIN_FILE, PARTS_DIR};
use crate::error::{Code, Error, Result};
use crate::facts::os::{Arch, Os};
use crate::host::Host;
use crate::host::fetch;
use crate::yaml::Node;

const MIRROR_KEYS: [&str; 5] = ["arches", "uri", "key", "keyid", "keyserver"];
/// What a list may name, in the spellings of cloud-init's own templates as well.
const NAMES: [&str; 8] =
    ["MIRROR", "PRIMARY", "SECURITY", "RELEASE", "mirror", "primary", "security", "codename"];
/// Short names of suites.
const SUITES: [(&str, &str); 5] = [
    ("updates", "$RELEASE-updates"),
    ("backports", "$RELEASE-backports"),
    ("security", "$RELEASE-security"),
    ("proposed", "$RELEASE-proposed"),
    ("release", "$RELEASE"),
];
const HEADER: &str =
    "# Written by gpu-bootstrap from user-data (apt), whole: changes are lost on the next new instance.\n";
/// cloud-init's own lists for the two distributions.
const DEBIAN: &str = "\
deb $MIRROR $RELEASE main
deb-src $MIRROR $RELEASE main
deb $SECURITY $RELEASE-security main
deb-src $SECURITY $RELEASE-security main
deb $MIRROR $RELEASE-updates main
deb-src $MIRROR $RELEASE-updates main
deb $MIRROR $RELEASE-backports main
deb-src $MIRROR $RELEASE-backports main
";
const UBUNTU: &str = "\
deb $MIRROR $RELEASE main restricted
deb $MIRROR $RELEASE-updates main restricted
deb $MIRROR $RELEASE universe
deb $MIRROR $RELEASE-updates universe
deb $MIRROR $RELEASE multiverse
deb $MIRROR $RELEASE-updates multiverse
deb $MIRROR $RELEASE-backports main restricted universe multiverse
deb $SECURITY $RELEASE-security main restricted
deb $SECURITY $RELEASE-security universe
deb $SECURITY $RELEASE-security multiverse
";

/// What of `apt` is about it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SourcesList {
    primary: Vec<Mirror>,
    security: Vec<Mirror>,
    /// `preserve_sources_list`.
    preserve: Option<bool>,
    /// A list of one's own, not yet filled in.
    text: Option<String>,
    disabled: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Mirror {
    /// dpkg's names, or `default`.
    arches: Vec<String>,
    uri: Option<String>,
    key: Option<Key>,
}

/// Addresses for this machine.
pub(super) struct Mirrors {
    primary: String,
    security: String,
    release: String,
}

pub(super) fn read(reader: &mut Reader, map: &Map<'_>) -> SourcesList {
    let mut list = SourcesList {
        primary: map.get("primary").map(|node| mirrors(reader, "apt.primary", node)).unwrap_or_default(),
        security: map.get("security").map(|node| mirrors(reader, "apt.security", node)).unwrap_or_default(),
        preserve: map
            .get("preserve_sources_list")
            .and_then(|node| reader.switch("apt.preserve_sources_list", node)),
        ..SourcesList::default()
    };
    if let Some(node) = map.get("sources_list") {
        list.text = reader.text("apt.sources_list", node);
        if let Some(why) = list.text.as_ref().and_then(|text| template::problem(text, &NAMES)) {
            reader.wrong(node.at, format!("apt.sources_list: {why}"));
        }
    }
    if let Some(node) = map.get("disable_suites") {
        list.disabled = reader.lines("apt.disable_suites", node).unwrap_or_default();
        for suite in &list.disabled {
            if let Some(why) = template::problem(suite, &["RELEASE"]) {
                reader.wrong(node.at, format!("apt.disable_suites: {why}"));
            }
        }
    }
    list
}

fn mirrors(reader: &mut Reader, label: &str, node: &Node) -> Vec<Mirror> {
    let mut found = Vec::new();
    for node in reader.list(label, node).unwrap_or_default() {
        let Some(map) = reader.map(label, node, &MIRROR_KEYS) else { continue };
        let Some(arches) = map.get("arches").and_then(|node| reader.lines(&format!("{label}.arches"), node))
        else {
            reader.wrong(map.at, format!("{label}: an entry needs arches, such as [default]"));
            continue;
        };
        let uri = match map.get("uri") {
            Some(node) => {
                let Some(uri) = reader.line(&format!("{label}.uri"), node) else { continue };
                if uri.contains(char::is_whitespace) || fetch::parse(&uri).is_err() {
                    reader.wrong(
                        node.at,
                        format!("{label}.uri: {uri:?} is no URL; it takes one such as https://host/debian"),
                    );
                }
                Some(uri)
            }
            None => None,
        };
        found.push(Mirror { arches, uri, key: key::read(reader, label, &map) });
    }
    found
}

impl SourcesList {
    /// Whether the file is written. Where nothing says so, what is asked for does.
    pub(super) fn is_written(&self) -> bool {
        let is_asked_for = !self.primary.is_empty()
            || !self.security.is_empty()
            || self.text.is_some()
            || !self.disabled.is_empty();
        self.preserve.map_or(is_asked_for, |preserve| !preserve)
    }

    pub(super) fn sentence(&self) -> Option<String> {
        self.is_written().then(|| format!("{MAIN_FILE} is written whole"))
    }

    /// As cloud-init chooses: a primary mirror is that of security updates, too, unless there is one.
    pub(super) fn mirrors(&self, os: &Os) -> Mirrors {
        let arch = os.arch.value.debian_name();
        let chosen = |list: &[Mirror]| of(list, arch).and_then(|mirror| mirror.uri.clone());
        let (primary, security) = (chosen(&self.primary), chosen(&self.security));
        let (main, updates) = usual(os);
        Mirrors {
            security: security.or_else(|| primary.clone()).unwrap_or_else(|| updates.into()),
            primary: primary.unwrap_or_else(|| main.into()),
            release: os.codename.value.clone(),
        }
    }
}

/// The entry for this architecture.
fn of<'a>(list: &'a [Mirror], arch: &str) -> Option<&'a Mirror> {
    let named = |name: &str| list.iter().find(|mirror| mirror.arches.iter().any(|known| known == name));
    named(arch).or_else(|| named("default"))
}

fn usual(os: &Os) -> (&'static str, &'static str) {
    match (os.id.value.as_str(), os.arch.value) {
        ("ubuntu", Arch::Arm64) => {
            ("http://ports.ubuntu.com/ubuntu-ports", "http://ports.ubuntu.com/ubuntu-ports")
        }
        ("ubuntu", _) => ("http://archive.ubuntu.com/ubuntu", "http://security.ubuntu.com/ubuntu"),
        _ => ("https://deb.debian.org/debian", "https://deb.debian.org/debian-security"),
    }
}

impl Mirrors {
    /// What a name in a text stands for.
    pub(super) fn value(&self, name: &str) -> Option<String> {
        match name {
            "MIRROR" | "PRIMARY" | "mirror" | "primary" => Some(self.primary.clone()),
            "SECURITY" | "security" => Some(self.security.clone()),
            "RELEASE" | "codename" => Some(self.release.clone()),
            _ => None,
        }
    }
}

/// Keys of the mirrors, then the list. The distribution's list in the other form would name everything twice: it is set
/// aside.
pub(super) async fn apply(host: &Host, list: &SourcesList, mirrors: &Mirrors, os: &Os) -> Result<()> {
    if !list.is_written() {
        return Ok(());
    }
    for (name, of_kind) in [("primary", &list.primary), ("security", &list.security)] {
        if let Some(key) = of(of_kind, os.arch.value.debian_name()).and_then(|mirror| mirror.key.as_ref()) {
            let bytes = key.bytes(host).await?;
            host.files.write(format!("/etc/apt/trusted.gpg.d/{name}.gpg"), &bytes, 0o644)?;
        }
    }
    if os.codename.value.is_empty() {
        return Err(Error::new(
            Code::UserDataFailed,
            "apt: os-release names no VERSION_CODENAME for $RELEASE",
        )
        .with_hint("write the sources by write_files"));
    }
    let text = rendered(list, mirrors, &os.id.value)
        .map_err(|why| Error::new(Code::UserDataFailed, format!("apt.sources_list: {why}")))?;
    host.files.write(MAIN_FILE, text.as_bytes(), 0o644)?;
    let other = format!("{PARTS_DIR}/{}.sources", os.id.value);
    if host.files.lstat(&other)?.is_some_and(|meta| meta.is_file()) {
        host.files.set_aside(&other)?;
    }
    Ok(())
}

fn rendered(list: &SourcesList, mirrors: &Mirrors, distribution: &str) -> Result<String, String> {
    let fill = |text: &str| template::fill(text, |name| mirrors.value(name));
    let usual = if distribution == "ubuntu" { UBUNTU } else { DEBIAN };
    let text = match &list.text {
        Some(own) => fill(own)?,
        None => HEADER.to_owned() + &fill(usual)?,
    };
    let mut disabled = Vec::new();
    for suite in &list.disabled {
        let long = SUITES.iter().find(|(short, _)| short == suite).map_or(suite.as_str(), |(_, long)| *long);
        disabled.push(fill(long)?);
    }
    let line = |line: &str| {
        if suite(line).is_some_and(|suite| disabled.iter().any(|off| off == suite)) {
            format!("# suite disabled by gpu-bootstrap: {line}\n")
        } else {
            format!("{line}\n")
        }
    };
    Ok(text.lines().map(line).collect())
}

/// The suite of a line of `sources.list(5)`, whose options may have blanks in them.
fn suite(line: &str) -> Option<&str> {
    let rest = line.trim_start().strip_prefix("deb")?;
    let rest = rest.strip_prefix("-src").unwrap_or(rest).trim_start();
    let rest = rest.strip_prefix('[').and_then(|rest| rest.split_once(']')).map_or(rest, |(_, rest)| rest);
    rest.split_whitespace().nth(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn here() -> Mirrors {
        Mirrors { primary: "http://p".into(), security: "http://s".into(), release: "noble".into() }
    }

    #[test]
    fn suites_are_switched_off_by_short_and_long_names() {
        let list = SourcesList {
            disabled: vec!["security".into(), "$RELEASE-updates".into(), "none".into()],
            ..SourcesList::default()
        };
        let text = rendered(&list, &here(), "ubuntu").unwrap();
        let kept: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(
            kept,
            [
                "deb http://p noble main restricted",
                "deb http://p noble universe",
                "deb http://p noble multiverse",
                "deb http://p noble-backports main restricted universe multiverse"
            ]
        );
        assert_eq!(suite("deb [ arch=amd64 a=b ] http://x y z"), Some("y"));
        assert_eq!(suite("# deb http://x y z"), None);
    }

    #[test]
    fn mirrors_are_chosen_by_architecture() {
        let mirror =
            |arch: &str, uri: &str| Mirror { arches: vec![arch.into()], uri: Some(uri.into()), key: None };
        let list = [mirror("default", "http://d"), mirror("arm64", "http://a")];
        let uri = |arch| of(&list, arch).and_then(|mirror| mirror.uri.as_deref());
        assert_eq!((uri("arm64"), uri("amd64")), (Some("http://a"), Some("http://d")));
        assert_eq!(of(&list[1..], "amd64"), None);
    }

    #[test]
    fn the_list_is_written_where_it_is_asked_for() {
        let list = |preserve, text: Option<&str>| SourcesList {
            preserve,
            text: text.map(Into::into),
            ..SourcesList::default()
        };
        assert!(!list(None, None).is_written() && list(None, Some("x")).is_written());
        assert!(list(Some(false), None).is_written() && !list(Some(true), Some("x")).is_written());
    }
}
