//! Where an index or a directory has the wheels of a lock. The lock names each by its SHA-256, so nothing is chosen here, and
//! what a wheel is built for (Python, architecture, C library) need not be what this machine has.

use std::collections::BTreeMap;
use std::time::Duration;

use reqwest::Url;

use super::manifest;
use crate::action::python_environment::{Locked, PythonEnvironment};
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::host::exec::Call;
use crate::host::fetch::redact_text;
use crate::host::files::Files;
use crate::host::tree;

/// Where wheels lie in a bundle.
pub(super) const DIRECTORY: &str = "wheels";
/// The page of a project with ten thousand files takes some megabytes.
const PAGE: usize = 64 << 20;
/// Prints the index that pip itself would ask, by its arguments, environment, files and default.
const ASK_PIP: &str = "from pip._internal.commands import create_command as c; print(c('download').parser.parse_args([])[0].index_url)";
const ASK_PIP_LIMIT: Duration = Duration::from_mins(1);

/// A wheel that was found.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wheel {
    /// Its file's name, which pip reads.
    pub(super) name: String,
    /// A URL, or a path of whoever calls.
    pub(super) from: String,
}

/// Who has wheels.
pub(super) enum Source {
    /// A package index with a page for each project (PEP 503).
    Index(Url),
    /// A directory: names of its wheels by their sums.
    Directory(String, BTreeMap<String, String>),
}

impl Source {
    /// What the environment is configured to take its wheels from.
    pub(super) async fn of(host: &Host, environment: &PythonEnvironment) -> Result<Self> {
        if !environment.wheels.is_empty() {
            return directory(&environment.wheels);
        }
        let index = match environment.index.as_str() {
            "" => pips_index(host).await?,
            index => index.to_owned(),
        };
        let url = crate::host::fetch::parse(&format!("{}/", index.trim_end_matches('/')))?;
        Ok(Self::Index(url))
    }

    /// Looks for a wheel of the lock.
    pub(super) async fn find(&self, host: &Host, locked: &Locked) -> Result<Wheel> {
        let missing = |place: &str| {
            let text = format!(
                "{place} has no wheel of {}=={} with the locked SHA-256",
                locked.name, locked.version
            );
            Error::new(Code::WheelMissing, text)
        };
        match self {
            Self::Directory(dir, names) => {
                let name = names.get(&locked.sha256).ok_or_else(|| missing(dir))?;
                Ok(Wheel { name: name.clone(), from: format!("{dir}/{name}") })
            }
            Self::Index(index) => {
                let place = redact_text(index.as_str());
                let page = index.join(&format!("{}/", locked.name)).map_err(|_| missing(&place))?;
                let bytes = host.fetch.get(page.as_str(), PAGE).await.map_err(|e| {
                    Error::new(e.code(), format!("the page of {} in {place} cannot be read", locked.name))
                        .because(e)
                })?;
                on_page(&String::from_utf8_lossy(&bytes), &page, &locked.sha256)
                    .ok_or_else(|| missing(&place))
            }
        }
    }
}

fn directory(dir: &str) -> Result<Source> {
    let files = Files::new("/".into());
    let mut names = BTreeMap::new();
    for name in files.list(dir)?.into_iter().filter(|name| is_wheel(name)) {
        let path = format!("{dir}/{name}");
        let fail = |what: String| Error::new(Code::Io, format!("{path} {what}"));
        let (mut file, _) = files.open_plain(dir, &name).map_err(fail)?;
        let sum = tree::sha256(&mut file).map_err(|e| Error::io("read", &path, e))?;
        names.insert(sum, name);
    }
    Ok(Source::Directory(dir.to_owned(), names))
}

/// The index of whoever calls, as their pip has it: no address is built in.
async fn pips_index(host: &Host) -> Result<String> {
    let is_pips =
        |name: &str| name.starts_with("PIP_") || matches!(name, "HOME" | "PATH" | "XDG_CONFIG_HOME");
    let call = Call::new("python3").args(["-c", ASK_PIP]).limit(ASK_PIP_LIMIT);
    let call = std::env::vars()
        .filter(|(name, _)| is_pips(name))
        .fold(call, |call, (name, value)| call.env(&name, value));
    let why = match host.exec.output(&call).await {
        Ok(output) if output.ok() && !output.text().trim().is_empty() => {
            return Ok(output.text().trim().to_owned());
        }
        Ok(output) => Error::new(Code::Exec, output.tail()),
        Err(e) => e,
    };
    let text =
        "no package index is known: frameworks.index is not set, and there is no pip that would know one";
    Err(Error::new(Code::ConfigType, text)
        .with_hint("set index below [frameworks], or install python3-pip")
        .because(why))
}

fn is_wheel(name: &str) -> bool {
    std::path::Path::new(name).extension().is_some_and(|e| e == "whl")
        && !name.contains('/')
        && manifest::is_path(name)
}

/// The wheel with this sum on a project's page: `<a href="URL#sha256=SUM">`.
fn on_page(page: &str, at: &Url, sha256: &str) -> Option<Wheel> {
    let mark = format!("#sha256={sha256}");
    let end = page.find(&mark)?;
    let start = page[..end].rfind(['"', '\''])? + 1;
    let mut url = at.join(&page[start..end].replace("&amp;", "&")).ok()?;
    let name = crate::text::percent_decoded(url.path_segments()?.next_back()?);
    // An index that wants a password wants it for its files, too.
    if (url.scheme(), url.host_str(), url.port()) == (at.scheme(), at.host_str(), at.port())
        && url.username().is_empty()
    {
        url.set_username(at.username()).ok()?;
        url.set_password(at.password()).ok()?;
    }
    is_wheel(&name).then(|| Wheel { name, from: url.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUM: &str = "4aadc7124afc431ac6a227a05dc8eff417b6fd8f90fc6c44d514ddfca9a6b474";

    #[test]
    fn a_wheel_is_found_by_its_sum_alone() {
        let at = Url::parse("https://u:p@index.example/simple/torch/").unwrap();
        let page = |href: &str| {
            format!(
                "<a href=\"x-1-py3-none-any.whl#sha256=00\">x</a>\n<a data-a='1' href=\"{href}#sha256={SUM}\" y>z</a>"
            )
        };
        let found = |href: &str| on_page(&page(href), &at, SUM);
        let wheel = |name: &str, from: &str| Some(Wheel { name: name.into(), from: from.into() });
        assert_eq!(
            found("../../p/torch-2%2Bcu-py3-none-any.whl?a=1&amp;b=2"),
            wheel(
                "torch-2+cu-py3-none-any.whl",
                "https://u:p@index.example/p/torch-2%2Bcu-py3-none-any.whl?a=1&b=2"
            )
        );
        // Nobody else gets the password.
        assert_eq!(
            found("https://files.example/torch-2-py3-none-any.whl"),
            wheel("torch-2-py3-none-any.whl", "https://files.example/torch-2-py3-none-any.whl")
        );
        for not in ["torch-2.tar.gz", "..%2F..%2Fetc%2Fx.whl", "x y.whl"] {
            assert_eq!(found(not), None, "{not}");
        }
        assert_eq!(on_page(&page("torch-2-py3-none-any.whl"), &at, &"0".repeat(64)), None);
    }
}
