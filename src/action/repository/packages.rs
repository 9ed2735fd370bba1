//! Packages files: what a repository offers, and what our packages need from it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::BufRead;

use super::{control, matches};
use crate::host::dpkg::compare_versions;

/// An index, reduced to names, versions and relations (a few hundred bytes per package).
#[derive(Debug, Default)]
pub(crate) struct Index {
    offers: HashMap<Box<str>, Vec<Offer>>,
    /// Virtual name → names of the packages that provide it.
    providers: HashMap<Box<str>, Vec<Box<str>>>,
    count: usize,
}

/// One version of one package.
#[derive(Debug)]
struct Offer {
    version: Box<str>,
    /// `Pre-Depends` and `Depends`, as written, joined by a comma.
    depends: Box<str>,
}

/// `name (= version)` or `name`, one alternative of a relation.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Wanted<'a> {
    name: &'a str,
    exactly: Option<&'a str>,
}

impl Index {
    /// Reads an index. The error names the line; a stanza without name, version, file or sum is malformed.
    pub(crate) fn read(reader: impl BufRead) -> Result<Self, String> {
        let mut index = Self::default();
        let wanted = ["Package", "Version", "Filename", "SHA256", "Pre-Depends", "Depends", "Provides"];
        control::stream(reader, wanted, |line, [name, version, file, sha256, pre, depends, provides]| {
            let required = [("Package", name), ("Version", version), ("Filename", file), ("SHA256", sha256)];
            if let Some((field, _)) = required.iter().find(|(_, value)| value.is_empty()) {
                return Err(format!("the stanza at line {line} has no {field}"));
            }
            if !is_package_name(name) {
                return Err(format!("the stanza at line {line} names a package {name:?}"));
            }
            for Wanted { name: virtual_name, .. } in relations(provides).flatten() {
                let known = index.providers.entry(virtual_name.into()).or_default();
                if !known.iter().any(|k| **k == **name) {
                    known.push(name.as_str().into());
                }
            }
            let depends = match (pre.is_empty(), depends.is_empty()) {
                (true, _) => depends.as_str().into(),
                (false, true) => pre.as_str().into(),
                (false, false) => format!("{pre}, {depends}").into(),
            };
            let offer = Offer { version: version.as_str().into(), depends };
            index.offers.entry(name.as_str().into()).or_default().push(offer);
            index.count += 1;
            Ok(())
        })?;
        Ok(index)
    }

    /// Forgets what is offered of the packages whose names match `names`, but in a version that does not match
    /// `version` (shell-style patterns).
    pub(crate) fn keep_versions(&mut self, names: &[String], version: &str) {
        self.offers.retain(|name, offers| {
            if super::matches_any(names, name) {
                offers.retain(|o| super::matches(version.as_bytes(), o.version.as_bytes()));
            }
            !offers.is_empty()
        });
    }

    /// How many packages (all versions counted) it offers.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// The newest version of a package that is offered under this very name.
    pub(crate) fn newest(&self, name: &str) -> Option<&str> {
        self.newest_offer(name).map(|o| &*o.version)
    }

    /// The names offered, in no particular order.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.offers.keys().map(|n| &**n)
    }

    /// Whether the request (`name` or `name=version`) can be met; a virtual name can without a version.
    pub(crate) fn can_meet(&self, request: &str) -> bool {
        let Wanted { name, exactly } = wanted(request);
        match exactly {
            Some(v) => self
                .offers
                .get(name)
                .is_some_and(|all| all.iter().any(|o| matches(v.as_bytes(), o.version.as_bytes()))),
            None => self.offers.contains_key(name) || self.providers.contains_key(name),
        }
    }

    /// What to suggest for a request that cannot be met: other versions of it, or the names most like it.
    pub(crate) fn nearest(&self, request: &str) -> Vec<String> {
        let Wanted { name, .. } = wanted(request);
        if let Some(all) = self.offers.get(name) {
            let mut versions: Vec<&str> = all.iter().map(|o| &*o.version).collect();
            versions.sort_by(|a, b| compare_versions(b, a));
            return versions.iter().take(3).map(|v| format!("{name}={v}")).collect();
        }
        let mut ranked: Vec<(usize, &str)> = self.names().map(|n| (distance(name, n), n)).collect();
        ranked.sort_unstable();
        // Beyond a third of its letters, a name is no typo any more.
        ranked.iter().take(3).filter(|(d, _)| *d <= name.len() / 3).map(|(_, n)| (*n).to_owned()).collect()
    }

    /// The names in this index that installing `requests` may bring in, the requested ones included: dependencies
    /// and pre-dependencies, all alternatives, virtual names by way of their providers. A dependency on one
    /// exact version follows that version, any other the newest. Names that are not offered here are left to
    /// the distribution.
    pub(crate) fn closure(&self, requests: &[String]) -> BTreeSet<&str> {
        let mut pending: Vec<Wanted<'_>> = requests.iter().map(|r| wanted(r)).collect();
        let mut seen: BTreeSet<Wanted<'_>> = BTreeSet::new();
        let mut names = BTreeSet::new();
        while let Some(next) = pending.pop() {
            if !seen.insert(next.clone()) {
                continue;
            }
            if let (Some((name, _)), Some(offer)) = (self.offers.get_key_value(next.name), self.offer(&next))
            {
                names.insert(&**name);
                pending.extend(relations(&offer.depends).flatten());
            }
            let providers = self.providers.get(next.name).into_iter().flatten();
            pending.extend(providers.map(|p| Wanted { name: p, exactly: None }));
        }
        names
    }

    fn offer(&self, wanted: &Wanted<'_>) -> Option<&Offer> {
        // As apt does, a request may give a pattern of versions (`8.9.7.29-1+cuda11.*`).
        let exact = wanted.exactly.and_then(|v| {
            let all = self.offers.get(wanted.name)?.iter();
            all.filter(|o| matches(v.as_bytes(), o.version.as_bytes()))
                .max_by(|a, b| compare_versions(&a.version, &b.version))
        });
        exact.or_else(|| self.newest_offer(wanted.name))
    }

    fn newest_offer(&self, name: &str) -> Option<&Offer> {
        self.offers.get(name)?.iter().max_by(|a, b| compare_versions(&a.version, &b.version))
    }
}

/// `name`, `name=version`, `name:arch`, as apt's command line has them.
fn wanted(request: &str) -> Wanted<'_> {
    let (name, exactly) = match request.split_once('=') {
        Some((name, version)) => (name, Some(version)),
        None => (request, None),
    };
    Wanted { name: name.split(':').next().unwrap_or(name), exactly }
}

/// The name alone of a request.
pub(crate) fn request_name(request: &str) -> &str {
    wanted(request).name
}

/// The alternatives of each relation of a `Depends`-like field.
fn relations(field: &str) -> impl Iterator<Item = impl Iterator<Item = Wanted<'_>>> {
    field.split(',').map(|relation| relation.split('|').filter_map(alternative))
}

/// `libfoo:any (>= 1.2) [amd64]` → name, and the version if the relation is `=`.
fn alternative(text: &str) -> Option<Wanted<'_>> {
    let text = text.trim();
    let end =
        text.find(|c: char| c.is_whitespace() || matches!(c, '(' | '[' | '<' | ':')).unwrap_or(text.len());
    let name = &text[..end];
    let constraint = text[end..].split_once('(').and_then(|(_, c)| c.split_once(')')).map(|(c, _)| c.trim());
    let exactly = constraint.and_then(|c| c.strip_prefix('=')).map(str::trim);
    (!name.is_empty()).then_some(Wanted { name, exactly })
}

/// The names that a field of relations mentions.
pub(crate) fn names_in(field: &str) -> impl Iterator<Item = &str> {
    relations(field).flatten().map(|w| w.name)
}

/// Debian policy 5.6.1, with the capitals and underscores that dpkg tolerates.
fn is_package_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-._".contains(&b))
}

/// Levenshtein distance.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}

/// The packages without which a Debian system does not work: those marked essential in dpkg's status file, and
/// all that they depend on (libc6 among them).
pub(crate) fn essential_closure(status: impl BufRead) -> Result<BTreeSet<String>, String> {
    let mut depends: BTreeMap<String, String> = BTreeMap::new();
    let mut pending: Vec<String> = Vec::new();
    control::stream(
        status,
        ["Package", "Essential", "Pre-Depends", "Depends"],
        |_, [name, essential, pre, dep]| {
            if essential == "yes" {
                pending.push(name.clone());
            }
            depends.insert(name.clone(), format!("{pre}, {dep}"));
            Ok(())
        },
    )?;
    let mut all = BTreeSet::new();
    while let Some(name) = pending.pop() {
        let Some(field) = depends.get(&name) else { continue };
        if all.insert(name) {
            pending.extend(names_in(field).map(str::to_owned));
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(stanzas: &[(&str, &str, &str)]) -> Index {
        let stanza = |(name, version, more): &(&str, &str, &str)| {
            format!("Package: {name}\nVersion: {version}\nFilename: ./x.deb\nSHA256: aa\n{more}\n\n")
        };
        let text = stanzas.iter().map(stanza).collect::<Vec<_>>().concat();
        Index::read(text.as_bytes()).unwrap()
    }

    fn closure(index: &Index, request: &str) -> Vec<String> {
        index.closure(&[request.to_owned()]).into_iter().map(str::to_owned).collect()
    }

    #[test]
    fn the_closure_follows_alternatives_providers_and_predepends() {
        let i = index(&[
            ("top", "1", "Depends: a (>= 1) | b, virtual, libc6 (>= 2.3)\nPre-Depends: pre:any"),
            ("a", "1", ""),
            ("b", "1", "Depends: top"),
            ("p", "1", "Provides: virtual (= 3), other"),
            ("pre", "1", ""),
            ("apart", "1", ""),
        ]);
        assert_eq!(closure(&i, "top"), ["a", "b", "p", "pre", "top"]);
        assert_eq!(closure(&i, "virtual"), ["p"]);
    }

    #[test]
    fn a_pattern_of_versions_follows_the_newest_that_it_names() {
        let i = index(&[
            ("drv", "550.9-1", "Depends: old"),
            ("drv", "550.10-1", "Depends: new"),
            ("drv", "560.1-1", "Depends: other"),
            ("old", "1", ""),
            ("new", "1", ""),
            ("other", "1", ""),
        ]);
        assert_eq!(closure(&i, "drv=550.*"), ["drv", "new"]);
        assert!(i.can_meet("drv=550.*") && !i.can_meet("drv=570.*"));
    }

    #[test]
    fn an_exact_version_follows_that_version_and_others_the_newest() {
        let i = index(&[
            ("drv", "550.9-1", "Depends: lib (= 550.9-1)"),
            ("drv", "550.10-1", "Depends: lib (= 550.10-1), new"),
            ("lib", "550.10-1", "Depends: lib-new"),
            ("lib", "550.9-1", "Depends: lib-old"),
            ("new", "1", ""),
            ("lib-old", "1", ""),
            ("lib-new", "1", ""),
        ]);
        assert_eq!(closure(&i, "drv=550.9-1"), ["drv", "lib", "lib-old"]);
        assert_eq!(closure(&i, "drv"), ["drv", "lib", "lib-new", "new"]);
        assert_eq!(i.newest("drv"), Some("550.10-1"));
    }

    #[test]
    fn a_branch_is_kept_by_version() {
        let mut i = index(&[
            ("nvidia-open", "610.1-1", "Depends: libcuda1, new"),
            ("nvidia-open", "595.2-1", "Depends: libcuda1"),
            ("libcuda1", "610.1-1", ""),
            ("libcuda1", "595.2-1", ""),
            ("new", "610.1-1", ""),
            ("apart", "1", ""),
        ]);
        let names = ["nvidia-*", "libcuda1", "new"].map(str::to_owned);
        i.keep_versions(&names, "595.*");
        assert_eq!(i.newest("nvidia-open"), Some("595.2-1"));
        assert_eq!(closure(&i, "nvidia-open"), ["libcuda1", "nvidia-open"]);
        assert!(!i.can_meet("new") && i.can_meet("apart"));
    }

    #[test]
    fn a_missing_package_has_near_ones() {
        let i = index(&[("cuda-toolkit-12-8", "12.8.1-1", ""), ("libx", "1", "")]);
        assert!(!i.can_meet("cuda-toolkit-12-9"));
        assert_eq!(i.nearest("cuda-toolkit-12-9"), ["cuda-toolkit-12-8"]);
        assert!(!i.can_meet("libx=2"));
        assert_eq!(i.nearest("libx=2"), ["libx=1"]);
        assert!(i.nearest("something-else-entirely").is_empty());
    }

    #[test]
    fn stanzas_that_apt_could_not_use_are_malformed() {
        let error = |text: &str| Index::read(text.as_bytes()).unwrap_err();
        assert_eq!(error("Version: 1\n"), "the stanza at line 1 has no Package");
        assert_eq!(error("Package: a\nVersion: 1\nFilename: x\n"), "the stanza at line 1 has no SHA256");
        assert!(error("Package: a b\nVersion: 1\nFilename: x\nSHA256: y\n").contains("names a package"));
    }

    #[test]
    fn libc_is_essential_by_way_of_others() {
        let status = "Package: bash\nEssential: yes\nPre-Depends: libc6 (>= 2.36)\n\nPackage: libc6\nDepends: gcc-base\n\n\
                      Package: gcc-base\n\nPackage: vim\nDepends: libc6\n";
        let all = essential_closure(status.as_bytes()).unwrap();
        assert_eq!(all.into_iter().collect::<Vec<_>>(), ["bash", "gcc-base", "libc6"]);
    }
}
