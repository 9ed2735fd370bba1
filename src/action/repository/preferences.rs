//! apt's preferences: reading others' pins, and writing ours (`apt_preferences(5)`).

use std::fmt::Write as _;

use super::control;

/// The file that apt reads first.
pub(crate) const MAIN_FILE: &str = "/etc/apt/preferences";
/// The drop-in directory.
pub(crate) const PARTS_DIR: &str = "/etc/apt/preferences.d";

/// One record of a preferences file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// Its line, from 1.
    pub(crate) line: usize,
    /// Names and patterns it is about.
    pub(crate) packages: Vec<String>,
    /// `release l=…`, `origin …`, `version …`.
    pub(crate) pin: String,
}

/// The records of a file; what apt could not parse is left out.
pub(crate) fn parse(text: &str) -> Vec<Record> {
    let stanzas = control::parse(text).unwrap_or_default();
    stanzas
        .iter()
        .filter_map(|s| {
            let packages = s.get("Package")?.split_whitespace().map(str::to_owned).collect();
            Some(Record { line: s.line, packages, pin: s.get("Pin")?.to_owned() })
        })
        .collect()
}

/// apt reads drop-ins without a suffix or with `.pref`, whose names have these characters only.
pub(crate) fn is_read_by_apt(name: &str) -> bool {
    let suffix = name.split_once('.').map(|_| name.rsplit('.').next().unwrap_or_default());
    suffix.is_none_or(|s| s == "pref")
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b))
        && !name.starts_with('.')
}

impl Record {
    /// Whether it pins versions by coming from the repository of this label or host.
    pub(crate) fn concerns(&self, label: &str, host: &str) -> bool {
        let (kind, rest) = self.pin.split_once(char::is_whitespace).unwrap_or((&self.pin, ""));
        let unquoted = |t: &str| t.trim().trim_matches('"').to_owned();
        match kind {
            "release" => rest.split(',').filter_map(|term| term.split_once('=')).any(|(key, value)| {
                let value = unquoted(value);
                key.trim() == "l" && super::matches(value.as_bytes(), label.as_bytes()) && value != "*"
            }),
            "origin" => {
                let pattern = unquoted(rest);
                pattern != "*" && !pattern.is_empty() && super::matches(pattern.as_bytes(), host.as_bytes())
            }
            _ => false,
        }
    }
}

/// What a repository may supply.
pub(crate) struct Pins<'a> {
    /// Its label.
    pub(crate) label: &'a str,
    /// Its host, when no other source of the machine shares it.
    pub(crate) host: Option<&'a str>,
    /// Names and patterns that it may supply, sorted.
    pub(crate) allowed: &'a [&'a str],
    /// Names that it may supply in versions of this pattern only.
    pub(crate) version: Option<(&'a str, &'a [&'a str])>,
}

/// Above the 500 of the distribution's archive, below the 1000 from which apt would downgrade.
const PREFERRED: i32 = 600;
/// Never installed, but still shown by `apt policy`.
const NEVER: i32 = -1;

/// Column at which the list of names is wrapped.
const WIDTH: usize = 110;

/// Our preferences file: the repository negative as a whole, the allowed names positive. A record with names wins
/// over a record for `*`, wherever it stands.
pub(crate) fn write(pins: &Pins<'_>) -> String {
    let mut text = String::from(
        "# Written by gpu-bootstrap; changes are undone by its next run.\n\
         # The repository may supply these packages, and nothing else.\n",
    );
    let label = pins.label;
    if !pins.allowed.is_empty() {
        let _ = write!(
            text,
            "Package: {}\nPin: release l={label}\nPin-Priority: {PREFERRED}\n\n",
            wrapped(pins.allowed)
        );
    }
    if let Some((version, names)) = pins.version {
        let _ = write!(
            text,
            "Package: {}\nPin: version {version}\nPin-Priority: {PREFERRED}\n\n",
            wrapped(names)
        );
    }
    let _ = write!(text, "Package: *\nPin: release l={label}\nPin-Priority: {NEVER}\n");
    if let Some(host) = pins.host {
        let _ = write!(text, "\nPackage: *\nPin: origin \"{host}\"\nPin-Priority: {NEVER}\n");
    }
    text
}

/// The names separated by spaces, in lines of at most [`WIDTH`] columns that continue the field.
fn wrapped(names: &[&str]) -> String {
    let mut text = String::new();
    let mut column = "Package:".len();
    for name in names {
        if column + 1 + name.len() > WIDTH {
            text.push('\n');
            column = 0;
        }
        if column == 0 || !text.is_empty() {
            text.push(' ');
        }
        text.push_str(name);
        column += 1 + name.len();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_pins_of_this_repository_are_recognised() {
        let old = "Package: *\nPin: release l=NVIDIA CUDA\nPin-Priority: 600\n";
        let new = format!("Package: nsight-compute\nPin: origin *ubuntu.com*\nPin-Priority: -1\n\n{old}");
        let concerned = |text: &str| {
            let all: Vec<bool> =
                parse(text).iter().map(|r| r.concerns("NVIDIA CUDA", "repo.example.org")).collect();
            all
        };
        assert_eq!(concerned(old), [true]);
        assert_eq!(concerned(&new), [false, true]);
        assert_eq!(concerned("Package: *\nPin: origin \"repo.example.org\"\nPin-Priority: 9\n"), [true]);
        assert_eq!(concerned("Package: *\nPin: release o=Debian, l=Debian\nPin-Priority: 9\n"), [false]);
        assert_eq!(concerned("Package: *\nPin: release a=stable\nPin-Priority: 9\n"), [false]);
        assert_eq!(concerned("Package: x\nPin: version 1.*\nPin-Priority: 9\n"), [false]);
    }

    #[test]
    fn files_that_apt_ignores_do_not_count() {
        assert!(is_read_by_apt("cuda-repository-pin-600") && is_read_by_apt("x.pref"));
        assert!(!is_read_by_apt("x.pref.dpkg-old") && !is_read_by_apt("cuda.pin") && !is_read_by_apt("a b"));
    }

    #[test]
    fn long_lists_are_wrapped_as_continuations() {
        let names: Vec<String> = (0..40).map(|n| format!("cuda-package-{n:02}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let text = write(&Pins {
            label: "NVIDIA CUDA",
            host: Some("repo.example.org"),
            allowed: &names,
            version: None,
        });
        assert!(text.lines().all(|l| l.len() <= WIDTH));
        let records = parse(&text);
        assert_eq!(records[0].packages, names);
        assert_eq!(records.iter().map(|r| r.packages.len()).collect::<Vec<_>>(), [40, 1, 1]);
        assert!(records.iter().all(|r| r.concerns("NVIDIA CUDA", "repo.example.org")));
    }
}
