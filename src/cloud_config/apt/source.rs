//! `apt.sources`: one file of `sources.list(5)` lines for each name, and the key of its repository.

use super::super::read::Reader;
use super::super::template;
use super::key::{self, Key};
use super::sources_list::Mirrors;
use crate::action::repository::sources::{self, PARTS_DIR};
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::yaml::{Node, Value};

const KEYS: [&str; 6] = ["source", "key", "keyid", "keyserver", "filename", "append"];
/// What a source may name.
const NAMES: [&str; 5] = ["MIRROR", "PRIMARY", "SECURITY", "RELEASE", "KEY_FILE"];
/// Keys that a source names by `$KEY_FILE`: apt trusts them for that source alone.
const KEYRINGS: &str = "/etc/apt/keyrings";
/// Keys of sources that do not, where cloud-init has them: apt trusts them for every source without `signed-by`.
const TRUSTED: &str = "/etc/apt/trusted.gpg.d";

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Source {
    /// Its file.
    path: String,
    /// Its lines, not yet filled in; `None` where there is only a key.
    lines: Option<String>,
    key: Option<(String, Key)>,
    /// The lines are added to those of the file.
    append: bool,
}

pub(super) fn read(reader: &mut Reader, node: &Node) -> Vec<Source> {
    let Value::Map(entries) = &node.value else {
        reader.wrong(
            node.at,
            format!("apt.sources takes a mapping of file names and sources, and this is {}", node.kind()),
        );
        return Vec::new();
    };
    entries.iter().filter_map(|(name, node)| entry(reader, name, node)).collect()
}

fn entry(reader: &mut Reader, name: &Node, node: &Node) -> Option<Source> {
    let name_text = reader.line("apt.sources", name)?;
    let label = format!("apt.sources.{name_text}");
    let map = reader.map(&label, node, &KEYS)?;
    let key = key::read(reader, &label, &map);
    let (at, filename) = match map.get("filename") {
        Some(node) => (node.at, reader.line(&format!("{label}.filename"), node)?),
        None => (name.at, name_text),
    };
    let file =
        filename.strip_prefix(PARTS_DIR).map_or(filename.as_str(), |rest| rest.trim_start_matches('/'));
    // apt passes by files with other names in silence.
    let is_name = !file.is_empty()
        && !file.starts_with('.')
        && file.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b));
    if !is_name {
        let rule = format!("letters, digits, _, - and ., as a file of {PARTS_DIR}");
        reader.wrong(at, format!("{label}: {filename:?} is no name that apt reads: it takes {rule}"));
        return None;
    }
    let lines = match map.get("source") {
        Some(node) => Some(lines(
            reader,
            &label,
            node,
            key.is_some() || map.get("key").is_some() || map.get("keyid").is_some(),
        )?),
        None => None,
    };
    if lines.is_none() && key.is_none() && map.get("key").is_none() && map.get("keyid").is_none() {
        reader.wrong(map.at, format!("{label} needs source, key or keyid"));
    }
    let stem = file.rsplit_once('.').map_or(file, |(stem, _)| stem);
    let is_named = lines.as_ref().is_some_and(|lines| lines.contains("KEY_FILE"));
    let directory = if is_named { KEYRINGS } else { TRUSTED };
    Some(Source {
        path: format!("{PARTS_DIR}/{}.list", file.strip_suffix(".list").unwrap_or(file)),
        lines,
        key: key.map(|key| (format!("{directory}/{stem}.gpg"), key)),
        append: map
            .get("append")
            .is_none_or(|node| reader.switch(&format!("{label}.append"), node) != Some(false)),
    })
}

fn lines(reader: &mut Reader, label: &str, node: &Node, has_key: bool) -> Option<String> {
    let text = reader.text(&format!("{label}.source"), node)?;
    let mut wrong = |why: String| reader.wrong(node.at, format!("{label}.source: {why}"));
    if let Some(why) = template::problem(&text, &NAMES) {
        wrong(why);
        return None;
    }
    if let Some((archive, rest)) = text.trim().split_once(':')
        && archive.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b))
        && rest.starts_with(|c: char| c.is_alphanumeric())
    {
        wrong(format!(
            "{} needs add-apt-repository, which asks the network what to trust; write the archive's `deb` line and its key, \
             both of which its page shows",
            text.trim()
        ));
        return None;
    }
    if text.contains("KEY_FILE") && !has_key {
        wrong("$KEY_FILE needs key or keyid".into());
    }
    // Any values will do to see whether they are lines.
    let filled =
        template::fill(&text, |name| Some(if name == "RELEASE" { "x" } else { "http://x/x" }.into()));
    for line in filled.unwrap_or_default().lines().map(str::trim) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match sources::parse("x.list", line).first() {
            Some(entry) if entry.is_unsigned() => wrong(
                "an option switches signatures off, and what is not signed is not installed; give the repository's key".into(),
            ),
            Some(_) => {}
            None => wrong(format!("{line:?} is no line of sources.list(5): deb URL SUITE COMPONENT")),
        }
    }
    Some(text)
}

impl Source {
    pub(super) fn is_a_source(&self) -> bool {
        self.lines.is_some()
    }

    pub(super) fn sentence(&self) -> String {
        let key = self.key.as_ref().map(|(path, key)| {
            let scope =
                if path.starts_with(TRUSTED) { ", trusted for every source without signed-by" } else { "" };
            format!("key {} in {path}{scope}", key.sentence())
        });
        let source = self.lines.as_ref().map(|_| format!("source {}", self.path));
        source.into_iter().chain(key).collect::<Vec<_>>().join(" with ")
    }
}

/// The key first: a source whose key is missing stops every update.
pub(super) async fn apply(host: &Host, source: &Source, mirrors: &Mirrors) -> Result<()> {
    if let Some((path, key)) = &source.key {
        host.files.write(path, &key.bytes(host).await?, 0o644)?;
    }
    let Some(lines) = &source.lines else { return Ok(()) };
    let key_file = source.key.as_ref().map(|(path, _)| path.clone());
    let filled =
        template::fill(lines, |name| if name == "KEY_FILE" { key_file.clone() } else { mirrors.value(name) });
    let filled = filled.map_err(|why| Error::new(Code::UserDataFailed, format!("{}: {why}", source.path)))?;
    let before =
        if source.append { host.files.read_text(&source.path)?.unwrap_or_default() } else { String::new() };
    host.files.write(&source.path, merged(&before, &filled).as_bytes(), 0o644)
}

/// What is there, and the lines that are not.
fn merged(before: &str, lines: &str) -> String {
    let mut text = before.to_owned();
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    for line in lines.lines() {
        if line.trim().is_empty() || !before.lines().any(|known| known.trim() == line.trim()) {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::yaml::parse;

    const KEY: &str = include_str!("../../../tests/fixtures/keys/throw-away.asc");

    fn sources(text: &str) -> (Vec<Source>, Vec<String>) {
        let mut reader = Reader::default();
        let found = read(&mut reader, &parse(text).unwrap().unwrap());
        (found, reader.problems.into_iter().map(|p| format!("{}:{} {}", p.at.0, p.at.1, p.text)).collect())
    }

    #[test]
    fn names_of_files_and_places_of_keys() {
        let key = KEY.replace('\n', "\n    ");
        let (found, problems) = sources(&format!(
            "docker.list:\n  source: 'deb [signed-by=$KEY_FILE] https://d.example $RELEASE stable'\n  key: |\n    {key}\n\
             more:\n  source: |\n    deb $MIRROR $RELEASE a\n    # a word\n    deb-src [arch=amd64] $SECURITY $RELEASE b\n  append: false\n\
             only:\n  filename: /etc/apt/sources.list.d/x.y\n  keyid: 'A4B4 6996 3BF8 63CC A4B4 6996 3BF8 63CC 0000 ffff'\n",
        ));
        assert_eq!(problems, Vec::<String>::new());
        let of = |source: &Source| {
            (source.path.clone(), source.key.as_ref().map(|(path, _)| path.clone()), source.append)
        };
        assert_eq!(
            found.iter().map(of).collect::<Vec<_>>(),
            [
                (format!("{PARTS_DIR}/docker.list"), Some("/etc/apt/keyrings/docker.gpg".into()), true),
                (format!("{PARTS_DIR}/more.list"), None, false),
                (format!("{PARTS_DIR}/x.y.list"), Some("/etc/apt/trusted.gpg.d/x.gpg".into()), true),
            ]
        );
        assert!(
            found[2]
                .sentence()
                .contains("A4B469963BF863CCA4B469963BF863CC0000FFFF from https://keyserver.ubuntu.com")
        );
    }

    #[test]
    fn what_is_no_source_is_told_with_what_to_write() {
        let (_, problems) = sources(
            "a: {source: 'ppa:me/x'}\nb: {source: 'deb http://x'}\nc: {source: 'deb [trusted=yes] http://x s c'}\n\
             d: {source: 'deb [signed-by=$KEY_FILE] http://x s c'}\ne: {source: 'deb $MIROR s c'}\nf: {}\n\
             g/h: {source: 'deb http://x s c'}\ni: {keyid: F430BBA5}\nj: {key: nonsense}\nk: {keyid: '0', keyserver: 'ldap://x'}\n",
        );
        for words in [
            "1:13 apt.sources.a.source: ppa:me/x needs add-apt-repository",
            "2:13 apt.sources.b.source: \"deb http://x\" is no line",
            "3:13 apt.sources.c.source: an option switches signatures off",
            "4:13 apt.sources.d.source: $KEY_FILE needs key or keyid",
            "5:13 apt.sources.e.source: $MIROR is not known; known are $MIRROR",
            "6:4 apt.sources.f needs source, key or keyid",
            "7:1 apt.sources.g/h: \"g/h\" is no name that apt reads",
            "8:12 apt.sources.i.keyid: \"F430BBA5\" could be anybody's key",
            "9:10 apt.sources.j.key is no public key",
            "10:28 apt.sources.k.keyserver: \"ldap://x\" is no name of a server",
        ] {
            assert!(problems.iter().any(|p| p.starts_with(words)), "{words}: {problems:#?}");
        }
        assert_eq!(problems.len(), 10, "{problems:#?}");
    }

    #[test]
    fn a_line_that_is_there_is_not_added_again() {
        assert_eq!(merged("deb a b c", "deb x y z\ndeb a b c\n"), "deb a b c\ndeb x y z\n");
        let once = merged("", "deb x y z");
        assert_eq!(merged(&once, "deb x y z"), once);
    }
}
