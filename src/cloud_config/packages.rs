//! `packages`, `package_update` and `package_upgrade`: by apt alone, with the options that no configuration may override.

use super::read::Reader;
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::yaml::{Node, Value};

/// What apt is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Packages {
    /// `name` or `name=version`.
    names: Vec<String>,
    upgrade: bool,
    update: bool,
}

/// What the three keys say.
pub(super) fn read(
    reader: &mut Reader,
    list: Option<&Node>,
    update: Option<&Node>,
    upgrade: Option<&Node>,
) -> Packages {
    let mut is_on =
        |key: &str, node: Option<&Node>| node.is_some_and(|node| reader.switch(key, node) == Some(true));
    let (update, upgrade) = (is_on("package_update", update), is_on("package_upgrade", upgrade));
    let mut names = Vec::new();
    for node in list.and_then(|node| reader.list("packages", node)).unwrap_or_default() {
        let found = match &node.value {
            Value::List(words) => match words.as_slice() {
                [name] => reader.line("packages", name),
                [name, version] if version.value == Value::Null => reader.line("packages", name),
                [name, version] => {
                    let (name, version) = (reader.line("packages", name), reader.line("packages", version));
                    name.zip(version).map(|(name, version)| format!("{name}={version}"))
                }
                _ => {
                    reader.wrong(node.at, "packages: a list is a name and a version");
                    None
                }
            },
            _ => reader.line("packages", node),
        };
        let Some(name) = found else { continue };
        if is_package(&name) {
            names.push(name);
        } else {
            reader.wrong(node.at, format!("packages: {name:?} is no name of a package, nor name=version"));
        }
    }
    Packages { names, upgrade, update }
}

/// Nothing that apt would take for an option, a path or a pattern.
fn is_package(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.:=~_/".contains(&b))
}

impl Packages {
    /// Whether there is nothing to do.
    pub(super) fn is_empty(&self) -> bool {
        self.names.is_empty() && !self.upgrade && !self.update
    }

    /// What `user-data check` says, and what is told afterwards.
    pub(super) fn sentence(&self) -> String {
        let mut words = vec!["package lists are updated".to_owned()];
        if self.upgrade {
            words.push("all packages are upgraded".into());
        }
        if !self.names.is_empty() {
            words.push(format!("apt installs {}", self.names.join(", ")));
        }
        words.join("; ")
    }
}

/// Updates, upgrades, installs. As cloud-init does it, what fails keeps the rest from nothing.
pub(super) async fn apply(host: &Host, packages: &Packages) -> Result<String> {
    let mut failures = Vec::new();
    failures.extend(host.apt().update().await.err());
    if packages.upgrade {
        failures.extend(host.apt().for_users(&["dist-upgrade"], &[]).await.err());
    }
    if !packages.names.is_empty() {
        failures.extend(host.apt().for_users(&["install"], &packages.names).await.err());
    }
    match failures.into_iter().next_back() {
        None => Ok(packages.sentence()),
        Some(error) => Err(Error::new(Code::UserDataFailed, format!("packages: {}", error.message()))
            .with_hint(error.hint().unwrap_or_default().to_owned())
            .because(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::yaml::parse;

    #[test]
    fn names_versions_and_what_is_neither() {
        let node = parse("- a\n- [b, '1.2-3']\n- [c]\n- -o\n- ./x.deb\n- [d, 1.10]\n- 'e f'\n").unwrap();
        let mut reader = Reader::default();
        let found = read(&mut reader, node.as_ref(), None, None);
        assert_eq!(found.names, ["a", "b=1.2-3", "c"]);
        let lines: Vec<_> = reader.problems.iter().map(|problem| problem.at.0).collect();
        assert_eq!(lines, [4, 5, 6, 7]);
    }
}
