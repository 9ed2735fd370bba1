//! The machine's name, its time zone, and the locale of logins.

use super::Instance;
use super::read::Reader;
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::host::exec::Call;
use crate::host::files::Files;
use crate::instance::hostname::{self as name, Name};
use crate::yaml::Node;

const ZONES: &str = "/usr/share/zoneinfo";
/// A daemon reads its configuration in less.
const SERVICE_LIMIT: std::time::Duration = std::time::Duration::from_secs(90);

/// The name that the machine is to have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Hostname {
    /// `None` is the one that EC2 gives.
    name: Option<Name>,
    /// The machine calls itself by all of it.
    with_domain: bool,
    /// It keeps the name that it has.
    is_kept: bool,
}

/// What the four keys say.
pub(super) fn hostname(
    reader: &mut Reader,
    [host, fqdn, preserve, prefer_fqdn]: [Option<&Node>; 4],
) -> Option<Hostname> {
    if preserve.is_some_and(|node| reader.switch("preserve_hostname", node) == Some(true)) {
        return Some(Hostname { is_kept: true, ..Hostname::default() });
    }
    let with_domain =
        prefer_fqdn.is_some_and(|node| reader.switch("prefer_fqdn_over_hostname", node) == Some(true));
    let named = |name| Some(Hostname { name, with_domain, is_kept: false });
    let read = |reader: &mut Reader, key: &str, node: &Node| {
        let text = reader.line(key, node)?;
        let valid = name::is_name(&text);
        if !valid {
            reader.wrong(
                node.at,
                format!(
                    "{key}: {text:?} is no host name: labels of letters, digits and -, with dots between"
                ),
            );
        }
        valid.then_some(text)
    };
    let host = match host {
        Some(node) => Some(read(reader, "hostname", node)?),
        None => None,
    };
    let fqdn = match fqdn {
        Some(node) => Some(read(reader, "fqdn", node)?),
        None => None,
    };
    let first = |text: &str| text.split('.').next().unwrap_or_default().to_owned();
    match (host, fqdn) {
        // With fqdn the name is what it is, dots or not; cloud-init's rule.
        (Some(short), Some(full)) => named(Some(Name { short, full })),
        (Some(full), None) | (None, Some(full)) => named(Some(Name { short: first(&full), full })),
        (None, None) if with_domain => named(None),
        (None, None) => None,
    }
}

impl Hostname {
    /// The name that the user-data gives.
    pub(super) fn name(&self) -> Option<&Name> {
        self.name.as_ref()
    }

    pub(super) fn sentence(&self) -> String {
        match &self.name {
            _ if self.is_kept => "the machine keeps its name".into(),
            Some(Name { full, .. }) if self.with_domain => format!("the machine is called {full}"),
            Some(Name { short, full }) => format!("the machine is called {short} ({full})"),
            None => "the machine is called by the name that EC2 gives, with its domain".into(),
        }
    }

    pub(super) async fn apply(&self, files: &Files, instance: &Instance<'_>) -> Result<String> {
        if self.is_kept {
            return Ok(self.sentence());
        }
        let wanted = match &self.name {
            Some(name) => name.clone(),
            None => instance.name(files).await?,
        };
        let called = if self.with_domain { &wanted.full } else { &wanted.short };
        name::apply_as(files, &wanted, called).map(|told| told.text)
    }
}

/// Asks systemd to do something about a unit, where systemd runs.
pub(super) async fn service(host: &Host, verb: &str, unit: &str) -> Result<()> {
    if !host.files.exists("/run/systemd/system")? {
        return Ok(());
    }
    host.exec.run(&Call::new("systemctl").args([verb, unit]).limit(SERVICE_LIMIT)).await.map(drop).map_err(
        |e| {
            Error::new(Code::ServiceFailed, format!("{unit} did not take its new configuration"))
                .with_hint(format!("journalctl --boot --unit {unit} says why"))
                .because(e)
        },
    )
}

/// `Europe/Berlin`.
pub(super) fn timezone(reader: &mut Reader, node: &Node) -> Option<String> {
    let zone = reader.line("timezone", node)?;
    let is_zone = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-_".contains(&b))
    };
    if zone.split('/').all(is_zone) {
        return Some(zone);
    }
    reader.wrong(
        node.at,
        format!("timezone: {zone:?} is no name of a time zone; it takes one such as Europe/Berlin or UTC"),
    );
    None
}

/// `/etc/timezone` and `/etc/localtime`, as Debian has them.
pub(super) fn apply_timezone(files: &Files, zone: &str) -> Result<String> {
    let file = format!("{ZONES}/{zone}");
    if !files.exists(&file)? {
        return Err(Error::new(Code::UserDataFailed, format!("timezone: there is no {file}"))
            .with_hint("correct the name, or install tzdata in the image"));
    }
    files.write("/etc/timezone", format!("{zone}\n").as_bytes(), 0o644)?;
    files.symlink("/etc/localtime", &file)?;
    Ok(format!("the time zone is {zone}"))
}

/// `en_US.UTF-8`; not read from a file's name, so that anything that a locale's name can be will do.
pub(super) fn locale(reader: &mut Reader, node: &Node) -> Option<String> {
    let locale = reader.line("locale", node)?;
    if !locale.is_empty() && locale.bytes().all(|b| b.is_ascii_alphanumeric() || b"._@-".contains(&b)) {
        return Some(locale);
    }
    reader.wrong(
        node.at,
        format!("locale: {locale:?} is no name of a locale; it takes one such as en_US.UTF-8"),
    );
    None
}

/// Made where it is missing, and what logins get.
pub(super) async fn apply_locale(host: &Host, locale: &str) -> Result<String> {
    let is_built_in = ["C", "POSIX", "C.UTF-8", "C.utf8"].contains(&locale);
    if !is_built_in {
        let have = host.exec.run(&Call::new("locale").args(["-a"])).await?.text();
        let plain = |name: &str| name.to_lowercase().replace('-', "");
        if !have.lines().any(|known| plain(known) == plain(locale)) {
            let call = Call::new("localedef").args(["-i", language(locale), "-f", charset(locale), locale]);
            host.exec.run(&call.limit(std::time::Duration::from_mins(5))).await.map_err(|e| {
                Error::new(Code::UserDataFailed, format!("locale: {locale} cannot be made"))
                    .with_hint("install the package locales in the image, or take C.UTF-8")
                    .because(e)
            })?;
        }
    }
    let setting = format!("LANG={locale}");
    if host.files.exists("/usr/sbin/update-locale")? {
        host.exec.run(&Call::new("update-locale").args([&setting])).await?;
    } else {
        host.files.write("/etc/default/locale", format!("{setting}\n").as_bytes(), 0o644)?;
    }
    Ok(format!("logins get LANG={locale}"))
}

fn language(locale: &str) -> &str {
    locale.split('.').next().unwrap_or_default()
}

fn charset(locale: &str) -> &str {
    locale.split_once('.').map_or("ISO-8859-1", |(_, charset)| charset)
}
