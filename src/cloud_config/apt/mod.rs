//! `apt`: sources, mirrors, keys, proxies and configuration, as files of ours, before anything is installed. The package
//! lists are updated when the GPUs are set up, once ([`update`], or `packages`).

mod key;
mod source;
mod sources_list;

use std::time::{Duration, Instant};

use super::read::{Map, Reader};
use crate::error::{Code, Error, Result};
use crate::facts::os;
use crate::host::Host;
use crate::host::apt::locks;
use crate::host::exec::Call;
use crate::host::fetch::redact_url;
use crate::yaml::{Node, Value};
use source::Source;
use sources_list::SourcesList;

const KEYS: [&str; 11] = [
    "sources",
    "primary",
    "security",
    "preserve_sources_list",
    "sources_list",
    "disable_suites",
    "proxy",
    "http_proxy",
    "https_proxy",
    "ftp_proxy",
    "conf",
];
/// Kept apart: it is debconf's, and the last of [`KEYS`] in messages.
const DEBCONF: &str = "debconf_selections";
/// The spellings before 2016, and where the same stands now.
pub(super) const OLD: [(&str, &str); 15] = [
    ("apt_sources", "apt.sources"),
    ("apt_mirror", "apt.primary"),
    ("apt_mirror_search", "apt.primary"),
    ("apt_mirror_search_dns", "apt.primary"),
    ("apt_proxy", "apt.proxy"),
    ("apt_http_proxy", "apt.http_proxy"),
    ("apt_https_proxy", "apt.https_proxy"),
    ("apt_ftp_proxy", "apt.ftp_proxy"),
    ("apt_preserve_sources_list", "apt.preserve_sources_list"),
    ("apt_custom_sources_list", "apt.sources_list"),
    ("apt_update", "package_update"),
    ("apt_upgrade", "package_upgrade"),
    ("apt_reboot_if_required", "package_reboot_if_required"),
    ("debconf_selections", "apt.debconf_selections"),
    ("ca-certs", "ca_certs"),
];
/// Proxies, by apt's names for what they are for. `proxy` is that of http.
const PROXIES: [(&str, &str); 4] =
    [("proxy", "http"), ("http_proxy", "http"), ("ftp_proxy", "ftp"), ("https_proxy", "https")];
const PROXY_FILE: &str = "/etc/apt/apt.conf.d/90gpu-bootstrap-aptproxy";
const CONF_FILE: &str = "/etc/apt/apt.conf.d/94gpu-bootstrap-config";
/// debconf's database may be in use by an installation that goes on.
const LOCKS: Duration = Duration::from_mins(2);

/// What `apt` says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Apt {
    sources: Vec<Source>,
    list: SourcesList,
    /// apt's name of the method, and the proxy's address.
    proxies: Vec<(&'static str, String)>,
    conf: Option<String>,
    /// Lines of debconf-set-selections(1).
    selections: String,
}

pub(super) fn read(reader: &mut Reader, node: &Node) -> Option<Apt> {
    let known: Vec<_> = KEYS.into_iter().chain([DEBCONF]).collect();
    let map = reader.map("apt", node, &known)?;
    let mut proxies = Vec::new();
    for (key, method) in PROXIES {
        let Some(node) = map.get(key) else { continue };
        let Some(address) = reader.line(&format!("apt.{key}"), node) else { continue };
        if address.contains(['"', '\\']) {
            reader.wrong(node.at, format!("apt.{key} takes an address without quotes and backslashes"));
        } else if !address.is_empty() {
            proxies.push((method, address));
        }
    }
    Some(Apt {
        sources: map.get("sources").map(|node| source::read(reader, node)).unwrap_or_default(),
        list: sources_list::read(reader, &map),
        proxies,
        conf: map
            .get("conf")
            .and_then(|node| reader.text("apt.conf", node))
            .filter(|text| !text.trim().is_empty()),
        selections: selections(reader, &map),
    })
}

/// Sets of lines, in the order of their names, as cloud-init hands them over.
fn selections(reader: &mut Reader, map: &Map<'_>) -> String {
    let Some(node) = map.get(DEBCONF) else { return String::new() };
    let Value::Map(entries) = &node.value else {
        reader.wrong(node.at, format!("apt.{DEBCONF} takes a mapping, and this is {}", node.kind()));
        return String::new();
    };
    let mut sets = Vec::new();
    for (name, node) in entries {
        let Some(text) = reader.text(&format!("apt.{DEBCONF}"), node) else { continue };
        let is_selection =
            |line: &str| line.trim_start().starts_with('#') || line.split_whitespace().count() >= 3;
        if let Some(line) = text.lines().find(|line| !line.trim().is_empty() && !is_selection(line)) {
            let form = "package, question, type and value";
            reader.wrong(node.at, format!("apt.{DEBCONF}: {line:?} is no selection: it takes {form}"));
        }
        sets.push((name.python().unwrap_or_default(), text.trim_end().to_owned() + "\n"));
    }
    sets.sort();
    sets.into_iter().map(|(_, text)| text).collect()
}

impl Apt {
    /// What `user-data check` says, and what is told afterwards.
    pub(super) fn sentence(&self) -> String {
        let mut words: Vec<String> = self.sources.iter().map(Source::sentence).collect();
        words.extend(self.list.sentence());
        words.extend(
            self.proxies.iter().map(|(method, url)| format!("{method} by the proxy {}", redact_url(url))),
        );
        words.extend(self.conf.as_ref().map(|_| format!("configuration in {CONF_FILE}")));
        words.extend((!self.selections.is_empty()).then(|| "answers for debconf".to_owned()));
        if words.is_empty() { "apt stays as it is".into() } else { words.join("; ") }
    }

    /// Whether apt has something to fetch afterwards that it does not have.
    pub(super) fn changes_sources(&self) -> bool {
        self.sources.iter().any(Source::is_a_source) || self.list.is_written()
    }
}

/// Writes everything. Each is tried; the first failure is what is told.
pub(super) async fn apply(host: &Host, apt: &Apt) -> Result<String> {
    let os = os::gather(host).await?;
    let mirrors = apt.list.mirrors(&os);
    let mut failures = Vec::new();
    failures.extend(debconf(host, &apt.selections).await.err());
    failures.extend(sources_list::apply(host, &apt.list, &mirrors, &os).await.err());
    failures.extend(configuration(host, apt).await.err());
    for source in &apt.sources {
        failures.extend(source::apply(host, source, &mirrors).await.err());
    }
    let count = failures.len();
    match failures.into_iter().next() {
        None => Ok(apt.sentence()),
        Some(only) if count == 1 => Err(only),
        Some(first) => {
            let message = format!("apt: {count} things failed; the first: {}", first.message());
            Err(Error::new(first.code(), message).because(first))
        }
    }
}

/// The package lists, where nothing else asks for them.
pub(super) async fn update(host: &Host) -> Result<String> {
    host.apt().update().await.map_err(|e| {
        Error::new(Code::UserDataFailed, format!("apt: {}", e.message()))
            .with_hint(e.hint().unwrap_or_default().to_owned())
            .because(e)
    })?;
    Ok("package lists are updated".into())
}

async fn debconf(host: &Host, selections: &str) -> Result<()> {
    if selections.is_empty() {
        return Ok(());
    }
    locks::wait(host, Instant::now() + LOCKS).await?;
    // By standard input: answers may be passwords.
    let call = Call::new("debconf-set-selections").input(selections.to_owned());
    host.exec.run(&call).await.map(drop)
}

/// A file that apt stumbles over would stop every installation, that of the GPUs among them: it is read by apt first.
async fn configuration(host: &Host, apt: &Apt) -> Result<()> {
    let proxies = apt.proxies.iter().map(|(method, url)| format!("Acquire::{method}::Proxy \"{url}\";\n"));
    let proxies = proxies.collect::<Vec<_>>().concat();
    for (path, text) in [(PROXY_FILE, proxies), (CONF_FILE, apt.conf.clone().unwrap_or_default())] {
        if text.is_empty() {
            // What another instance's user-data left in the image.
            host.files.remove(path)?;
            continue;
        }
        if host.files.exists("/usr/bin/apt-config")? {
            const CHECKED: &str = "/run/gpu-bootstrap/apt.conf";
            host.files.write(CHECKED, text.as_bytes(), 0o644)?;
            let call = Call::new("apt-config").args(["dump"]).env("APT_CONFIG", CHECKED);
            let checked = host.exec.run(&call).await;
            host.files.remove(CHECKED)?;
            checked.map_err(|e| {
                let message = format!("apt.conf: apt does not take it; {path} was not written");
                Error::new(Code::UserDataFailed, message).with_hint("see apt.conf(5)").because(e)
            })?;
        }
        host.files.write(path, text.as_bytes(), 0o644)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::yaml::parse;

    pub(super) fn apt(text: &str) -> (Option<Apt>, Vec<String>) {
        let mut reader = Reader::default();
        let found = read(&mut reader, &parse(text).unwrap().unwrap());
        (found, reader.problems.into_iter().map(|p| format!("{}:{} {}", p.at.0, p.at.1, p.text)).collect())
    }

    #[test]
    fn all_of_it_as_people_write_it() {
        let (found, problems) = apt(
            "preserve_sources_list: true\nhttp_proxy: http://me:secret@proxy:3128\nconf: |\n  APT::X \"1\";\n\
             sources:\n  my.list: {source: 'deb $MIRROR $RELEASE contrib'}\n\
             debconf_selections:\n  b: 'x x/y boolean true'\n  a: |\n    # first\n    p p/q string\n",
        );
        assert_eq!(problems, Vec::<String>::new());
        let found = found.unwrap();
        assert_eq!(found.selections, "# first\np p/q string\nx x/y boolean true\n");
        assert_eq!(found.proxies, [("http", "http://me:secret@proxy:3128".to_owned())]);
        assert!(found.changes_sources() && !found.list.is_written());
        let sentence = found.sentence();
        assert!(
            sentence.contains("http by the proxy http://proxy:3128/") && !sentence.contains("secret"),
            "{sentence}"
        );
    }

    #[test]
    fn mistakes_are_named_with_their_place() {
        let (_, problems) = apt(
            "proxy: 'http://x\";'\ndebconf_selections:\n  a: 'one two'\nadd_apt_repo_match: x\nsources: [x]\n",
        );
        for words in [
            "1:8 apt.proxy takes an address without quotes",
            "3:6 apt.debconf_selections: \"one two\" is no selection",
            "4:1 apt.add_apt_repo_match is not supported; supported are sources, primary",
            "5:10 apt.sources takes a mapping",
        ] {
            assert!(problems.iter().any(|p| p.starts_with(words)), "{words}: {problems:#?}");
        }
        assert_eq!(problems.len(), 4, "{problems:#?}");
    }
}
