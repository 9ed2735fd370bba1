//! Sources whose own options switch signatures off (`trusted=yes` and its like). No option of apt-get can
//! overrule them, so apt's choice is compared with them before anything is installed.

use crate::error::Result;
use crate::host::Host;

/// A source that apt would believe without a valid signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unsigned {
    /// The file that names it (inside the root).
    pub(super) file: String,
    /// The line of the entry, from 1.
    pub(super) line: usize,
    /// The option as written (`trusted=yes`).
    pub(super) option: String,
    /// Base of its files' URIs, without a trailing slash.
    base: String,
}

impl Unsigned {
    /// Whether a file at `uri` comes from below this source.
    pub(super) fn supplies(&self, uri: &str) -> bool {
        normal(uri).strip_prefix(&self.base).is_some_and(|rest| rest.starts_with('/'))
    }
}

/// Options by which a source is believed unsigned, or signed in a way that apt has retired.
const OPTIONS: [&str; 4] = ["trusted", "allow-insecure", "allow-weak", "allow-downgrade-to-insecure"];

/// Reads all enabled sources.
pub(super) fn unsigned(host: &Host) -> Result<Vec<Unsigned>> {
    let mut files = vec!["/etc/apt/sources.list".to_owned()];
    let dir = "/etc/apt/sources.list.d";
    files.extend(host.files.list(dir)?.into_iter().map(|name| format!("{dir}/{name}")));
    let mut found = Vec::new();
    for file in files {
        let is_stanzas = file.ends_with(".sources");
        if !is_stanzas && std::path::Path::new(&file).extension().is_none_or(|e| e != "list") {
            continue; // apt ignores it, too
        }
        let Some(text) = host.files.read_text(&file)? else { continue };
        found.extend(if is_stanzas { in_stanzas(&file, &text) } else { in_lines(&file, &text) });
    }
    Ok(found)
}

/// `deb [ option=value … ] URI suite component…`
pub(super) fn in_lines(file: &str, text: &str) -> Vec<Unsigned> {
    let mut found = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        let Some(rest) = line.strip_prefix("deb").filter(|r| r.starts_with([' ', '\t', '['])) else {
            continue;
        };
        let Some((options, rest)) = rest.trim_start().strip_prefix('[').and_then(|r| r.split_once(']'))
        else {
            continue;
        };
        let option = options
            .split_ascii_whitespace()
            .find(|option| option.split_once('=').is_some_and(|(key, value)| is_option(key) && is_on(value)));
        if let (Some(option), Some(uri)) = (option, rest.split_ascii_whitespace().next()) {
            found.push(Unsigned {
                file: file.to_owned(),
                line: index + 1,
                option: option.to_owned(),
                base: normal(uri),
            });
        }
    }
    found
}

/// Stanzas of `Field: value` lines (deb822).
pub(super) fn in_stanzas(file: &str, text: &str) -> Vec<Unsigned> {
    let mut found = Vec::new();
    let mut stanza = Stanza::default();
    for (index, line) in text.lines().chain([""]).enumerate() {
        if line.starts_with('#') {
            continue;
        }
        if line.trim().is_empty() {
            found.extend(std::mem::take(&mut stanza).unsigned(file));
        } else if line.starts_with([' ', '\t']) {
            if stanza.in_uris {
                stanza.uris.extend(line.split_ascii_whitespace().map(str::to_owned));
            }
        } else if let Some((key, value)) = line.split_once(':') {
            stanza.field(index + 1, &key.trim().to_ascii_lowercase(), value.trim());
        }
    }
    found
}

#[derive(Default)]
struct Stanza {
    first_line: usize,
    disabled: bool,
    option: Option<(usize, String)>,
    uris: Vec<String>,
    in_uris: bool,
}

impl Stanza {
    fn field(&mut self, line: usize, key: &str, value: &str) {
        if self.first_line == 0 {
            self.first_line = line;
        }
        self.in_uris = key == "uris";
        if self.in_uris {
            self.uris.extend(value.split_ascii_whitespace().map(str::to_owned));
        } else if key == "enabled" {
            self.disabled = is_off(value);
        } else if is_option(key) && is_on(value) {
            self.option = Some((line, format!("{key}: {value}")));
        }
    }

    fn unsigned(self, file: &str) -> Vec<Unsigned> {
        let Some((line, option)) = self.option.filter(|_| !self.disabled) else { return Vec::new() };
        let entry = |uri: &String| Unsigned {
            file: file.to_owned(),
            line,
            option: option.clone(),
            base: normal(uri),
        };
        self.uris.iter().map(entry).collect()
    }
}

fn is_option(key: &str) -> bool {
    OPTIONS.contains(&key.to_ascii_lowercase().as_str())
}

/// apt's words for true.
fn is_on(value: &str) -> bool {
    ["yes", "true", "with", "on", "enable", "1"].contains(&value.trim().to_ascii_lowercase().as_str())
}

/// apt's words for false.
fn is_off(value: &str) -> bool {
    ["no", "false", "without", "off", "disable", "0"].contains(&value.trim().to_ascii_lowercase().as_str())
}

/// One spelling for what apt takes as the same: no `//` after `file:`, no user part, no doubled or last slash.
fn normal(uri: &str) -> String {
    let (scheme, rest) = uri.split_once(':').unwrap_or(("", uri));
    let (authority, path) = match rest.strip_prefix("//") {
        Some(rest) => rest.split_at(rest.find('/').unwrap_or(rest.len())),
        None => ("", rest),
    };
    let host = authority.rsplit('@').next().unwrap_or_default().to_ascii_lowercase();
    let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty() && *p != ".").collect();
    format!("{}://{host}/{}", scheme.to_ascii_lowercase(), parts.join("/")).trim_end_matches('/').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_formats_are_read_with_file_line_and_option() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path().into());
        let write = |path: &str, text: &str| host.files.write(path, text.as_bytes(), 0o644).unwrap();
        write(
            "/etc/apt/sources.list",
            "# deb [trusted=yes] http://commented/ x\ndeb http://plain/debian bookworm main\n\
             deb [ arch=amd64 Trusted=YES ] http://User:pw@Host/debian/ sid main\n\
             deb [trusted=no] http://no/ x main\ndeb-src [trusted=yes] http://src/ x main\n",
        );
        write(
            "/etc/apt/sources.list.d/a.sources",
            "# head\nTypes: deb\nURIs: file:///srv/repo\n http://second/x\nSuites: ./\nTrusted: yes\n\n\
             Enabled: no\nTypes: deb\nURIs: http://disabled/\nTrusted: yes\n\n\
             Types: deb\nURIs: http://weak/\nAllow-Weak: yes\n",
        );
        write("/etc/apt/sources.list.d/a.sources.save", "Types: deb\nURIs: http://ignored/\nTrusted: yes\n");
        let found = unsigned(&host).unwrap();
        let seen: Vec<_> =
            found.iter().map(|u| (u.file.rsplit('/').next().unwrap(), u.line, u.base.as_str())).collect();
        assert_eq!(
            seen,
            [
                ("sources.list", 3, "http://host/debian"),
                ("a.sources", 6, "file:///srv/repo"),
                ("a.sources", 6, "http://second/x"),
                ("a.sources", 15, "http://weak"),
            ]
        );
        assert_eq!(found[0].option, "Trusted=YES");
        assert!(found[0].supplies("http://host/debian/pool/main/h/hello_1_amd64.deb"));
        assert!(!found[0].supplies("http://host/debian-security/pool/x.deb"));
        assert!(found[1].supplies("file:/srv/repo/./alpha_1.0_amd64.deb"));
        assert!(found[3].supplies("http://weak/a.deb"));
    }
}
