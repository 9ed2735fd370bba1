//! apt's sources as the machine has them: `/etc/apt/sources.list` and `/etc/apt/sources.list.d/*`, both formats.
//! Read only: no file of somebody else's is edited; it is set aside as a whole or left alone.

use crate::error::Result;
use crate::host::Host;

use super::control;

/// Where sources stand besides the drop-in directory.
pub(crate) const MAIN_FILE: &str = "/etc/apt/sources.list";
/// The drop-in directory.
pub(crate) const PARTS_DIR: &str = "/etc/apt/sources.list.d";

/// One line of a `.list` file, or one stanza of a `.sources` file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The file it stands in.
    pub(crate) file: String,
    /// Its line, from 1.
    pub(crate) line: usize,
    /// `deb`, `deb-src` or both.
    pub(crate) types: Vec<String>,
    /// Base URLs.
    pub(crate) uris: Vec<String>,
    /// Suites; one that ends in `/` is a path in a flat repository.
    pub(crate) suites: Vec<String>,
    /// Components; none in a flat repository.
    pub(crate) components: Vec<String>,
    /// Everything else, under the names of the deb822 format (`Signed-By`), values as written.
    pub(crate) options: Vec<(String, String)>,
}

impl Entry {
    /// An option by its deb822 name.
    pub(crate) fn option(&self, name: &str) -> Option<&str> {
        self.options.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    /// `file:line`, for messages.
    pub(crate) fn place(&self) -> String {
        format!("{}:{}", self.file, self.line)
    }

    /// Whether an option switches the checking of signatures off.
    pub(crate) fn is_unsigned(&self) -> bool {
        let on = |value: &str| {
            ["yes", "true", "with", "on", "enable", "1"].contains(&value.to_ascii_lowercase().as_str())
        };
        ["Trusted", "Allow-Insecure", "Allow-Weak", "Allow-Downgrade-To-Insecure"]
            .iter()
            .any(|name| self.option(name).is_some_and(on))
    }
}

/// The enabled entries of all source files that apt reads, in apt's order.
pub(crate) fn read(host: &Host) -> Result<Vec<Entry>> {
    // While packages come from a bundle, apt reads its sources only.
    let (main, parts) =
        if host.bundle().is_some() { (None, crate::bundle::SOURCES) } else { (Some(MAIN_FILE), PARTS_DIR) };
    let mut files: Vec<_> = main.map(str::to_owned).into_iter().collect();
    files
        .extend(host.files.list(parts)?.iter().filter(|n| is_read_by_apt(n)).map(|n| format!("{parts}/{n}")));
    let mut entries = Vec::new();
    for file in files {
        if let Some(text) = host.files.read_text(&file)? {
            entries.extend(parse(&file, &text));
        }
    }
    Ok(entries)
}

/// apt reads drop-ins of these two suffixes whose names have these characters only.
fn is_read_by_apt(name: &str) -> bool {
    let suffix = name.rsplit_once('.').map(|(_, s)| s);
    matches!(suffix, Some("list" | "sources"))
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b))
        && !name.starts_with('.')
}

/// The enabled entries of one file. What apt itself could not parse is left out: apt will say so.
pub(crate) fn parse(file: &str, text: &str) -> Vec<Entry> {
    if file.ends_with(".sources") {
        let stanzas = control::parse(text).unwrap_or_default();
        stanzas.iter().filter_map(|s| from_stanza(file, s)).collect()
    } else {
        (1..).zip(text.lines()).filter_map(|(number, line)| from_line(file, number, line)).collect()
    }
}

fn from_stanza(file: &str, stanza: &control::Stanza) -> Option<Entry> {
    let words = |name| stanza.get(name).unwrap_or_default().split_whitespace().map(str::to_owned).collect();
    let off = |v: &str| {
        ["no", "false", "without", "off", "disable", "0"].contains(&v.to_ascii_lowercase().as_str())
    };
    if stanza.get("Enabled").is_some_and(off) {
        return None;
    }
    let known = ["Types", "URIs", "Suites", "Components", "Enabled"];
    let options = stanza.fields().iter().filter(|(n, _)| !known.iter().any(|k| k.eq_ignore_ascii_case(n)));
    let entry = Entry {
        file: file.to_owned(),
        line: stanza.line,
        types: words("Types"),
        uris: words("URIs"),
        suites: words("Suites"),
        components: words("Components"),
        options: options.cloned().collect(),
    };
    (!entry.types.is_empty() && !entry.uris.is_empty()).then_some(entry)
}

/// `deb [arch=amd64 signed-by=/x] https://… suite component…`
fn from_line(file: &str, number: usize, line: &str) -> Option<Entry> {
    let line = line.split('#').next().unwrap_or_default().trim();
    let (kind, rest) = line.split_once(char::is_whitespace)?;
    if kind != "deb" && kind != "deb-src" {
        return None;
    }
    let rest = rest.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(inner) => inner.split_once(']')?,
        None => ("", rest),
    };
    let mut words = rest.split_whitespace().map(str::to_owned);
    Some(Entry {
        file: file.to_owned(),
        line: number,
        types: vec![kind.to_owned()],
        uris: vec![words.next()?],
        suites: vec![words.next()?],
        components: words.collect(),
        options: options.split_whitespace().filter_map(option_from_line).collect(),
    })
}

/// `arch=amd64,arm64` → `Architectures: amd64 arm64`; `arch+=i386` → `Architectures-Add: i386`.
fn option_from_line(option: &str) -> Option<(String, String)> {
    let (name, value) = option.split_once('=')?;
    let (name, suffix) = match (name.strip_suffix('+'), name.strip_suffix('-')) {
        (Some(n), _) => (n, "-Add"),
        (_, Some(n)) => (n, "-Remove"),
        _ => (name, ""),
    };
    let long = match name.to_ascii_lowercase().as_str() {
        "arch" => "Architectures".to_owned(),
        "lang" => "Languages".to_owned(),
        "target" => "Targets".to_owned(),
        "pdiffs" => "PDiffs".to_owned(),
        other => capitalised(other),
    };
    Some((format!("{long}{suffix}"), value.replace(',', " ")))
}

/// `signed-by` → `Signed-By`
fn capitalised(name: &str) -> String {
    let part = |p: &str| p[..1].to_ascii_uppercase() + &p[1..];
    name.split('-')
        .map(|p| if p.is_ascii() && !p.is_empty() { part(p) } else { p.to_owned() })
        .collect::<Vec<_>>()
        .join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_formats_give_the_same_entry() {
        let line = "deb [arch=amd64,arm64 signed-by=/usr/share/keyrings/x.gpg trusted=yes] https://repo.example.org/cuda/ / # c\n# deb http://off / \n";
        let stanza = "# c\nTypes: deb\nURIs: https://repo.example.org/cuda/\nSuites: /\nArchitectures: amd64 arm64\n\
                      Signed-By: /usr/share/keyrings/x.gpg\nTrusted: yes\n\nTypes: deb\nURIs: http://off\nSuites: x\nEnabled: no\n";
        let one = parse("/a.list", line);
        let two = parse("/a.sources", stanza);
        assert_eq!((one.len(), two.len()), (1, 1));
        assert_eq!(
            (&one[0].uris, &one[0].suites, &one[0].options),
            (&two[0].uris, &two[0].suites, &two[0].options)
        );
        assert!(one[0].is_unsigned() && one[0].components.is_empty());
        assert_eq!((one[0].place().as_str(), two[0].place().as_str()), ("/a.list:1", "/a.sources:2"));
    }

    #[test]
    fn only_files_that_apt_reads_count() {
        assert!(is_read_by_apt("cuda-ubuntu2204-x86_64.list") && is_read_by_apt("debian.sources"));
        for name in ["cuda.list.save", "cuda.list.dpkg-old", "cuda list.list", ".x.list"] {
            assert!(!is_read_by_apt(name), "{name}");
        }
    }
}
