//! The machine's name, its time zone, and the locale of logins.

use super::read::Reader;
use super::yaml::Node;
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::host::exec::Call;
use crate::host::files::Files;
use crate::instance::hostname::{self as name, Name};

const ZONES: &str = "/usr/share/zoneinfo";

/// The name that the machine is to have; `None` keeps what it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hostname(Option<Name>);

/// What the three keys say.
pub(super) fn hostname(
    reader: &mut Reader,
    host: Option<&Node>,
    fqdn: Option<&Node>,
    preserve: Option<&Node>,
) -> Option<Hostname> {
    if preserve.is_some_and(|node| reader.switch("preserve_hostname", node) == Some(true)) {
        return Some(Hostname(None));
    }
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
        (Some(short), Some(full)) => Some(Hostname(Some(Name { short, full }))),
        (Some(full), None) | (None, Some(full)) => Some(Hostname(Some(Name { short: first(&full), full }))),
        (None, None) => None,
    }
}

impl Hostname {
    pub(super) fn sentence(&self) -> String {
        match &self.0 {
            Some(Name { short, full }) => format!("the machine is called {short} ({full})"),
            None => "the machine keeps its name".into(),
        }
    }

    pub(super) fn apply(&self, files: &Files) -> Result<String> {
        match &self.0 {
            Some(wanted) => name::apply(files, wanted).map(|told| told.text),
            None => Ok(self.sentence()),
        }
    }
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
            host.exec.run(&call.limit(std::time::Duration::from_secs(300))).await.map_err(|e| {
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
