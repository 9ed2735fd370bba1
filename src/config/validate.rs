//! One layer's text → its keys, or every problem in it with its place and the mend. Pure; [`super::layers`]
//! adds the file's name.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Range, RangeInclusive};

use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

use super::keys::{self, Key, Kind};
use super::url;
use crate::error::Code;

/// Something wrong in a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    /// `config-syntax`, `config-unknown-key` or `config-type`.
    pub code: Code,
    /// Byte offset in the text.
    pub offset: usize,
    /// What is wrong and how to mend it, one sentence.
    pub text: String,
}

/// A layer without problems.
#[derive(Clone, Debug)]
pub(super) struct Parsed {
    /// Its keys and values.
    pub table: toml::Table,
    /// Where each value stands: full key → byte offset.
    pub offsets: BTreeMap<String, usize>,
}

/// Parses and checks one layer. Problems come in the order of the text.
pub(super) fn parse(text: &str) -> Result<Parsed, Vec<Problem>> {
    let tree = DeTable::parse(text).map_err(|e| vec![syntax(text, &e)])?;
    let mut walk = Walk { text, problems: Vec::new(), offsets: BTreeMap::new() };
    walk.table("", tree.get_ref());
    if !walk.problems.is_empty() {
        walk.problems.sort_by_key(|p| p.offset);
        return Err(walk.problems);
    }
    let table = toml::from_str(text).map_err(|e| vec![syntax(text, &e)])?;
    Ok(Parsed { table, offsets: walk.offsets })
}

/// Line and column (both from 1, the column in characters) of a byte offset.
pub(super) fn position(text: &str, offset: usize) -> (usize, usize) {
    let mut end = offset.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let before = &text[..end];
    let line_start = before.rfind('\n').map_or(0, |i| i + 1);
    // A byte order mark is not a column that an editor shows.
    let column = before[line_start..].chars().filter(|c| *c != '\u{feff}').count();
    (before.matches('\n').count() + 1, column + 1)
}

/// A TOML syntax error, with the mend for the two mistakes that people make: values without quotes.
fn syntax(text: &str, error: &toml::de::Error) -> Problem {
    let offset = error.span().map_or(0, |s| s.start);
    let line_start = text[..floor(text, offset)].rfind('\n').map_or(0, |i| i + 1);
    let line = text[line_start..].lines().next().unwrap_or_default();
    let problem = |offset, text| Problem { code: Code::ConfigSyntax, offset, text };
    if let Some((key, value, at)) = bare_value(line) {
        let kind = if value.starts_with(|c: char| c.is_ascii_digit()) {
            "versions are strings"
        } else {
            "text needs quotes"
        };
        return problem(line_start + at, format!("{kind}; write {key} = \"{value}\""));
    }
    let message = error.message().lines().collect::<Vec<_>>().join(", ");
    problem(offset, format!("not valid TOML: {message}"))
}

/// `key`, `value` and the value's column of a line such as `branch = 535.309.01` or `flavour = open`.
fn bare_value(line: &str) -> Option<(&str, &str, usize)> {
    let (key, rest) = line.split_once('=')?;
    let value = rest.split('#').next()?.trim();
    let is_key =
        !key.trim().is_empty() && key.trim().chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    let is_bare = value.starts_with(|c: char| c.is_ascii_alphanumeric())
        && value.chars().all(|c| c.is_ascii_alphanumeric() || "-_.:/".contains(c))
        && !matches!(value, "true" | "false");
    let at = key.len() + 1 + rest.len() - rest.trim_start().len();
    // A value that TOML can read is not what the syntax error is about.
    let readable = DeValue::parse(value).is_ok();
    (is_key && is_bare && !readable).then_some((key.trim(), value, at))
}

fn floor(text: &str, offset: usize) -> usize {
    let mut at = offset.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

type Value<'a> = Spanned<DeValue<'a>>;

struct Walk<'t> {
    text: &'t str,
    problems: Vec<Problem>,
    offsets: BTreeMap<String, usize>,
}

impl Walk<'_> {
    fn problem(&mut self, code: Code, offset: usize, text: String) {
        self.problems.push(Problem { code, offset, text });
    }

    fn table(&mut self, prefix: &str, table: &DeTable<'_>) {
        for (name, value) in table {
            let path = if prefix.is_empty() {
                name.get_ref().to_string()
            } else {
                format!("{prefix}.{}", name.get_ref())
            };
            if let Some(key) = keys::find(&path) {
                self.offsets.insert(path, value.span().start);
                self.value(key, value);
            } else if keys::is_table(&path) {
                self.section(&path, name.span().start, value);
            } else {
                self.unknown(&path, name.span().start);
            }
        }
    }

    fn section(&mut self, path: &str, at: usize, value: &Value<'_>) {
        match value.get_ref() {
            DeValue::Table(inner) => self.table(path, inner),
            other => self.problem(
                Code::ConfigType,
                at,
                format!("{path} is a table, not {}; write [{path}] and its keys below it", what(other)),
            ),
        }
    }

    fn unknown(&mut self, path: &str, at: usize) {
        let text = if let Some(near) = keys::suggest(path) {
            let kind = if keys::is_table(near) { "the table" } else { "the key" };
            format!("there is no key `{path}`; {kind} `{near}` is probably meant")
        } else {
            format!("there is no key `{path}`; remove it (docs/config.md lists every key)")
        };
        self.problem(Code::ConfigUnknownKey, at, text);
    }

    fn value(&mut self, key: &Key, value: &Value<'_>) {
        match key.kind {
            Kind::Choice(values) => self.string(key, value, |s| choice(s, values)),
            Kind::Source => self.string(key, value, source),
            Kind::Sum => self.string(key, value, |s| none_or(s, sum)),
            Kind::Branch => self.string(key, value, branch),
            Kind::CudnnVersion => self.string(key, value, cudnn_version),
            Kind::NcclVersion => self.string(key, value, nccl_version),
            Kind::Words => self.words(key, value),
            Kind::Bandwidth => self.number(key, value, &keys::BANDWIDTH, false),
            Kind::Namespace => self.string(key, value, namespace),
            Kind::Memory => self.string(key, value, memory),
            Kind::User => self.string(key, value, user),
            Kind::Directory => self.string(key, value, |s| none_or(s, directory)),
            Kind::Switch => self.switch(key, value, false),
            Kind::SwitchOrAuto => self.switch(key, value, true),
            Kind::GpuCount => self.number(key, value, &(1..=u32::MAX.into()), true),
            Kind::Seconds => self.number(key, value, &keys::SECONDS, false),
            Kind::Days => self.days(key, value),
            Kind::LogGroup => self.string(key, value, log_group),
            Kind::Name => self.string(key, value, |s| none_or(s, name)),
            Kind::TagKey => self.string(key, value, |s| none_or(s, tag_key)),
            Kind::Topic => self.string(key, value, |s| none_or(s, topic)),
            Kind::Webhook => self.string(key, value, |s| none_or(s, |s| url::check(s).map(drop))),
            Kind::Toolkits => self.toolkits(key, value),
            Kind::InstanceTypes => self.names(key, value, instance_type),
            Kind::Runtimes => self.names(key, value, |s| choice(s, keys::RUNTIMES)),
            Kind::ContainerToolkit => self.string(key, value, container_toolkit),
            Kind::Debs | Kind::SummedDebs => self.debs(key, value),
            Kind::Frameworks => self.frameworks(key, value),
            Kind::Url => self.string(key, value, |s| none_or(s, |s| url::check(s).map(drop))),
        }
    }

    /// A value of a type that the key does not take.
    fn wrong_type(&mut self, key: &Key, value: &Value<'_>) {
        let text = format!("{} takes {}, not {}", key.path, key.kind.takes(), what(value.get_ref()));
        self.problem(Code::ConfigType, value.span().start, text);
    }

    fn string(&mut self, key: &Key, value: &Value<'_>, check: impl Fn(&str) -> Result<(), String>) {
        match value.get_ref() {
            DeValue::String(s) => {
                if let Err(why) = check(s) {
                    self.problem(Code::ConfigType, value.span().start, format!("{}: {why}", key.path));
                }
            }
            DeValue::Integer(_) | DeValue::Float(_) if is_version(key.kind) => self.unquoted(key, value),
            _ => self.wrong_type(key, value),
        }
    }

    /// A version written as a number: the one mistake that TOML cannot see and that changes the meaning.
    fn unquoted(&mut self, key: &Key, value: &Value<'_>) {
        let written = slice(self.text, value.span());
        let mut text = format!("{}: versions are strings; write \"{written}\"", key.path);
        if let DeValue::Float(f) = value.get_ref()
            && let Ok(number) = f.as_str().parse::<f64>()
            && number.to_string() != written
        {
            text = format!("{text}, because {written} as a number is {number}");
        }
        self.problem(Code::ConfigType, value.span().start, text);
    }

    fn switch(&mut self, key: &Key, value: &Value<'_>, or_auto: bool) {
        match value.get_ref() {
            DeValue::Boolean(_) => {}
            DeValue::String(s) if or_auto && s == "auto" => {}
            DeValue::String(s) if matches!(s.as_ref(), "true" | "false") => {
                let text = format!("{} takes {}; write {s} without quotes", key.path, key.kind.takes());
                self.problem(Code::ConfigType, value.span().start, text);
            }
            DeValue::String(s) => {
                let text = format!("{} takes {}, not \"{s}\"", key.path, key.kind.takes());
                self.problem(Code::ConfigType, value.span().start, text);
            }
            _ => self.wrong_type(key, value),
        }
    }

    /// A whole number, or `auto` where that is taken.
    fn number(&mut self, key: &Key, value: &Value<'_>, range: &RangeInclusive<u64>, or_auto: bool) {
        let takes = format!("{} takes {}", key.path, key.kind.takes());
        let text = match value.get_ref() {
            DeValue::String(s) if or_auto && s == "auto" => return,
            DeValue::String(s) if s.parse().is_ok_and(|n| range.contains(&n)) => {
                format!("{takes}; write {s} without quotes")
            }
            DeValue::String(s) => format!("{takes}, not \"{s}\""),
            DeValue::Integer(i)
                if u64::from_str_radix(i.as_str(), i.radix()).is_ok_and(|n| range.contains(&n)) =>
            {
                return;
            }
            DeValue::Integer(_) | DeValue::Float(_) => {
                format!("{takes}, not {}", slice(self.text, value.span()))
            }
            _ => return self.wrong_type(key, value),
        };
        self.problem(Code::ConfigType, value.span().start, text);
    }

    fn days(&mut self, key: &Key, value: &Value<'_>) {
        match value.get_ref() {
            DeValue::Integer(i)
                if u64::from_str_radix(i.as_str(), i.radix()).is_ok_and(|n| keys::DAYS.contains(&n)) => {}
            DeValue::Integer(_) => {
                let written = slice(self.text, value.span());
                let text = format!("{} takes {}, not {written}", key.path, key.kind.takes());
                self.problem(Code::ConfigType, value.span().start, text);
            }
            _ => self.wrong_type(key, value),
        }
    }

    fn toolkits(&mut self, key: &Key, value: &Value<'_>) {
        let DeValue::Array(items) = value.get_ref() else {
            let or_word = |s: &str| if matches!(s, "auto" | "none") { Ok(()) } else { toolkit(s) };
            return self.string(key, value, or_word);
        };
        if items.is_empty() {
            let text = format!("{}: the list is empty; write \"none\" for no toolkit", key.path);
            self.problem(Code::ConfigType, value.span().start, text);
        }
        self.list(key, items, |s| match s {
            "auto" | "none" => Err(format!("\"{s}\" cannot stand in a list; write toolkit = \"{s}\"")),
            version => toolkit(version),
        });
    }

    fn names(&mut self, key: &Key, value: &Value<'_>, check: impl Fn(&str) -> Result<(), String>) {
        match value.get_ref() {
            DeValue::Array(items) => self.list(key, items, check),
            DeValue::String(s) => {
                let text = format!("{} takes a list; write [\"{s}\"]", key.path);
                self.problem(Code::ConfigType, value.span().start, text);
            }
            _ => self.wrong_type(key, value),
        }
    }

    fn frameworks(&mut self, key: &Key, value: &Value<'_>) {
        let DeValue::Array(items) = value.get_ref() else { return self.wrong_type(key, value) };
        self.list(key, items, |s| choice(s, keys::FRAMEWORKS));
        let has =
            |names: &[&str]| items.iter().any(|i| i.get_ref().as_str().is_some_and(|s| names.contains(&s)));
        if has(&["keras"]) && !has(&["torch", "tensorflow", "jax"]) {
            let text = format!(
                "{}: keras computes with another framework; add \"torch\", \"tensorflow\" or \"jax\"",
                key.path
            );
            self.problem(Code::ConfigType, value.span().start, text);
        }
    }

    /// The strings of a list: each passes `check`, and none comes twice.
    fn list(&mut self, key: &Key, items: &DeArray<'_>, check: impl Fn(&str) -> Result<(), String>) {
        let mut seen = BTreeSet::new();
        for item in items {
            self.string(key, item, &check);
            if let DeValue::String(s) = item.get_ref()
                && !seen.insert(s.as_ref())
            {
                let text = format!("{}: \"{s}\" stands in the list twice; remove one", key.path);
                self.problem(Code::ConfigType, item.span().start, text);
            }
        }
    }

    /// A program and its arguments; a shell line is understood, so that it can be refused with the mend.
    fn words(&mut self, key: &Key, value: &Value<'_>) {
        let problem = match value.get_ref() {
            DeValue::Array(items) => {
                match items.iter().find(|i| i.get_ref().as_str().is_none_or(|s| s.contains('\0'))) {
                    Some(item) => return self.wrong_type(key, item),
                    None if items.first().is_some_and(|i| i.get_ref().as_str() == Some("")) => {
                        "it names no program".to_owned()
                    }
                    None => return,
                }
            }
            DeValue::String(line) => {
                let list: Vec<_> = line.split_whitespace().map(|word| format!("{word:?}")).collect();
                format!("it is a list of words, not a shell line; write [{}]", list.join(", "))
            }
            _ => return self.wrong_type(key, value),
        };
        self.problem(Code::ConfigType, value.span().start, format!("{}: {problem}", key.path));
    }

    fn debs(&mut self, key: &Key, value: &Value<'_>) {
        let DeValue::Array(items) = value.get_ref() else { return self.wrong_type(key, value) };
        for item in items {
            match item.get_ref() {
                DeValue::Table(entry) => self.deb(key, item.span().start, entry),
                _ => self.wrong_type(key, item),
            }
        }
    }

    fn deb(&mut self, key: &Key, at: usize, entry: &DeTable<'_>) {
        const KNOWN: [&str; 4] = ["url", "sha256", "repository", "signed-by"];
        let mut is_misspelled = false;
        for (name, value) in entry {
            match name.get_ref().as_ref() {
                "url" => self.string(key, value, package_url),
                "sha256" => self.string(key, value, |s| none_or(s, sha256)),
                "repository" => self.string(key, value, |s| none_or(s, |s| url::check(s).map(drop))),
                "signed-by" => self.string(key, value, |_| Ok(())),
                other => {
                    let near = keys::nearest(other, &KNOWN).map_or_else(
                        || "; an entry has url and sha256, or repository and signed-by".to_owned(),
                        |n| format!("; `{n}` is probably meant"),
                    );
                    let text = format!("there is no key `{other}` in an entry of {}{near}", key.path);
                    self.problem(Code::ConfigUnknownKey, name.span().start, text);
                    is_misspelled = true;
                }
            }
        }
        if is_misspelled {
            return; // the misspelled key may be the missing one
        }
        let of = |wanted: &str| {
            let value = entry.iter().find(|(name, _)| name.get_ref() == wanted);
            value.and_then(|(_, v)| v.get_ref().as_str()).unwrap_or_default()
        };
        let has = |wanted: &str| !of(wanted).is_empty();
        let what = if !entry.keys().any(|k| k.get_ref() == "url") {
            "the entry has no url"
        } else if of("url").starts_with("s3://") && !has("sha256") {
            "the entry has no sha256, and no signed index of a bucket is read"
        } else if matches!(key.kind, Kind::SummedDebs) && !has("sha256") {
            "the entry has no sha256, and no signed index is asked for it"
        } else if has("repository") != has("signed-by") {
            "repository and signed-by go together"
        } else if has("repository") && has("sha256") {
            "the entry has a sha256, so no index is asked for it: remove repository and signed-by, or the sha256"
        } else {
            return;
        };
        let text = format!("{}: {what}; write {}", key.path, key.kind.takes());
        self.problem(Code::ConfigType, at, text);
    }
}

fn slice(text: &str, span: Range<usize>) -> &str {
    text.get(span).unwrap_or_default()
}

fn is_version(kind: Kind) -> bool {
    matches!(kind, Kind::Branch | Kind::Toolkits | Kind::CudnnVersion | Kind::NcclVersion)
}

/// A value's type in words.
fn what(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "text",
        DeValue::Integer(_) | DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

fn choice(written: &str, values: &[&str]) -> Result<(), String> {
    if values.contains(&written) {
        return Ok(());
    }
    let near =
        keys::nearest(written, values).map_or_else(String::new, |n| format!("; \"{n}\" is probably meant"));
    Err(format!("\"{written}\" is not one of the values {}{near}", keys::one_of(values)))
}

fn container_toolkit(written: &str) -> Result<(), String> {
    if matches!(written, "nvidia" | "none") {
        return Ok(());
    }
    if !written.contains("://") {
        return Err(format!("\"{written}\" is not {}", Kind::ContainerToolkit.takes()));
    }
    url::check(written).map(drop)
}

fn source(written: &str) -> Result<(), String> {
    if matches!(written, "nvidia" | "distro") {
        return Ok(());
    }
    if let Some(place) = written.strip_prefix("bundle:") {
        return crate::bundle::Location::parse(place).map(drop);
    }
    if !written.contains("://") {
        let near = keys::nearest(written, &["nvidia", "distro"])
            .map_or_else(String::new, |n| format!("; \"{n}\" is probably meant"));
        return Err(format!("\"{written}\" is not {}{near}", Kind::Source.takes()));
    }
    let url = url::check(written)?;
    if url.query().is_some() || url.fragment().is_some() {
        return Err("a mirror's URL has no ? and no #, because paths are added to it".into());
    }
    Ok(())
}

/// Where a package file may lie.
fn package_url(written: &str) -> Result<(), String> {
    if written.starts_with("s3://") {
        return crate::bundle::Location::of_object(written).map(drop);
    }
    url::check(written).map(drop)
}

fn sum(written: &str) -> Result<(), String> {
    let is_sum = written.len() == 64 && written.bytes().all(|b| b.is_ascii_hexdigit());
    if is_sum { Ok(()) } else { Err(format!("\"{written}\" is not {}", Kind::Sum.takes())) }
}

/// Numbers joined by dots; how many of them, and how many digits each may have.
fn is_dotted(written: &str, parts: std::ops::RangeInclusive<usize>, digits: usize) -> bool {
    let all: Vec<_> = written.split('.').collect();
    parts.contains(&all.len())
        && all.iter().all(|p| (1..=digits).contains(&p.len()) && p.bytes().all(|b| b.is_ascii_digit()))
}

fn branch(written: &str) -> Result<(), String> {
    let major = written.split('.').next().unwrap_or_default();
    if matches!(written, "auto" | "none") || (major.len() == 3 && is_dotted(written, 1..=3, 3)) {
        return Ok(());
    }
    Err(format!("\"{written}\" is not {}", Kind::Branch.takes()))
}

fn toolkit(written: &str) -> Result<(), String> {
    if is_dotted(written, 2..=2, 2) {
        return Ok(());
    }
    if is_dotted(written, 3..=4, 4) {
        let short = written.splitn(3, '.').take(2).collect::<Vec<_>>().join(".");
        return Err(format!("\"{written}\" is too exact; packages carry major.minor, write \"{short}\""));
    }
    if is_dotted(written, 1..=1, 2) {
        return Err(format!("\"{written}\" is not exact enough; write major.minor, such as \"12.8\""));
    }
    Err(format!("\"{written}\" is not {}", Kind::Toolkits.takes()))
}

fn cudnn_version(written: &str) -> Result<(), String> {
    if matches!(written, "auto" | "none") || is_dotted(written, 3..=4, 4) {
        return Ok(());
    }
    Err(format!("\"{written}\" is not {}", Kind::CudnnVersion.takes()))
}

fn nccl_version(written: &str) -> Result<(), String> {
    if matches!(written, "auto" | "none") || is_dotted(written, 2..=3, 3) {
        return Ok(());
    }
    Err(format!("\"{}\" is not {}", written.escape_debug(), Kind::NcclVersion.takes()))
}

/// The shape only; whether the type exists is the catalog's to say.
fn instance_type(written: &str) -> Result<(), String> {
    let is_name = |s: &str| {
        !s.is_empty() && s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    if written.split_once('.').is_some_and(|(family, size)| is_name(family) && is_name(size)) {
        return Ok(());
    }
    Err(format!("\"{written}\" is not an instance type; write family.size, such as \"g5.xlarge\""))
}

/// Nothing, or what passes `check`.
fn none_or(written: &str, check: impl Fn(&str) -> Result<(), String>) -> Result<(), String> {
    if written.is_empty() { Ok(()) } else { check(written) }
}

/// Names of stacks, resources, groups, hooks and buses: each service has its own rule, and says it.
fn name(written: &str) -> Result<(), String> {
    if written.len() <= 512 && written.bytes().all(|b| b.is_ascii_graphic()) {
        return Ok(());
    }
    Err(format!("\"{written}\" is not {}", Kind::Name.takes()))
}

/// A directory that something may be mounted at without hiding the system.
fn directory(written: &str) -> Result<(), String> {
    const SYSTEM: &[&str] = &[
        "bin", "boot", "dev", "etc", "lib", "lib32", "lib64", "libx32", "proc", "run", "sbin", "sys", "usr",
    ];
    const TOP: &[&str] = &["home", "media", "opt", "root", "srv", "tmp", "var"];
    let mut parts = written.strip_prefix('/').unwrap_or_default().split('/');
    let is_plain = |part: &str| {
        !matches!(part, "" | "." | "..")
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
    };
    let first = parts.next().unwrap_or_default();
    let all_plain = is_plain(first) && parts.clone().all(is_plain);
    let is_system = SYSTEM.contains(&first) || (TOP.contains(&first) && parts.next().is_none());
    if all_plain && !is_system && written.len() <= 200 {
        return Ok(());
    }
    Err(format!("\"{}\" is not {}", written.escape_debug(), Kind::Directory.takes()))
}

fn user(written: &str) -> Result<(), String> {
    if is_user_name(written) {
        return Ok(());
    }
    Err(format!("\"{}\" is not {}", written.escape_debug(), Kind::User.takes()))
}

/// The names that `useradd` and `adduser` give without being forced to others. None of them means anything to a shell.
pub(crate) fn is_user_name(written: &str) -> bool {
    (1..=32).contains(&written.len())
        && written.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && written.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_".contains(&b))
}

fn log_group(written: &str) -> Result<(), String> {
    let is_name = (1..=512).contains(&written.len())
        && written.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_/#".contains(&b))
        && !written.starts_with("aws/");
    if is_name { Ok(()) } else { Err(format!("\"{written}\" is not {}", Kind::LogGroup.takes())) }
}

fn tag_key(written: &str) -> Result<(), String> {
    if written.chars().count() <= 128 && !written.to_ascii_lowercase().starts_with("aws:") {
        return Ok(());
    }
    Err(format!("\"{written}\" is not {}", Kind::TagKey.takes()))
}

fn topic(written: &str) -> Result<(), String> {
    let parts: Vec<_> = written.split(':').collect();
    let is_arn = matches!(parts.as_slice(), ["arn", _, "sns", region, _, name]
        if !region.is_empty() && !name.is_empty() && written.bytes().all(|b| b.is_ascii_graphic()));
    if is_arn { Ok(()) } else { Err(format!("\"{written}\" is not {}", Kind::Topic.takes())) }
}

/// The service's rule: <https://docs.aws.amazon.com/AmazonCloudWatch/latest/APIReference/API_PutMetricData.html>.
fn namespace(written: &str) -> Result<(), String> {
    let length = written.chars().count();
    if (1..=255).contains(&length)
        && !written.starts_with(':')
        && !written.starts_with("AWS/")
        && !written.chars().any(char::is_control)
    {
        return Ok(());
    }
    Err(format!("\"{}\" is no namespace; it takes {}", written.escape_debug(), Kind::Namespace.takes()))
}

fn memory(written: &str) -> Result<(), String> {
    const LEAST: u64 = 64 << 20;
    if written == "auto" || memory_bytes(written).is_some_and(|bytes| bytes >= LEAST) {
        return Ok(());
    }
    Err(format!("\"{}\" is no amount of memory; it takes {}", written.escape_debug(), Kind::Memory.takes()))
}

/// Bytes of `512M` or `2G` (powers of 1024); `None` for anything else.
pub(super) fn memory_bytes(written: &str) -> Option<u64> {
    let (digits, factor) = match written.split_at_checked(written.len().checked_sub(1)?)? {
        (digits, "M") => (digits, 1 << 20),
        (digits, "G") => (digits, 1 << 30),
        _ => return None,
    };
    let plain = digits.bytes().all(|b| b.is_ascii_digit());
    digits.parse::<u64>().ok().filter(|_| plain)?.checked_mul(factor)
}

/// What is wrong with `written` as a SHA-256, with the mend.
pub fn sha256(written: &str) -> Result<(), String> {
    let length = written.chars().count();
    if let Some(bad) = written.chars().find(|c| !c.is_ascii_hexdigit()) {
        return Err(format!(
            "a sha256 has 64 hexadecimal digits and nothing else, but {bad:?} stands in this one; copy it from `sha256sum FILE`"
        ));
    }
    if length != 64 {
        return Err(format!(
            "a sha256 has 64 hexadecimal digits, and this has {length}; copy it from `sha256sum FILE`"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn first(text: &str) -> (Code, usize, usize, String) {
        let p = parse(text).unwrap_err().remove(0);
        let (line, column) = position(text, p.offset);
        (p.code, line, column, p.text)
    }

    #[test]
    fn a_mount_may_not_hide_the_system() {
        for good in ["/mnt", "/mnt/store", "/var/lib/docker", "/opt/a_b-c.d", "/scratch"] {
            assert!(directory(good).is_ok(), "{good}");
        }
        for bad in [
            "mnt",
            "/",
            "/mnt/",
            "//mnt",
            "/mnt/../etc",
            "/mnt/.",
            "/usr",
            "/usr/local/x",
            "/etc/x",
            "/var",
            "/home",
            "/a b",
            "/a\n",
        ] {
            assert!(directory(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_unquoted_version_says_what_the_number_would_be() {
        let (code, line, column, text) = first("[cuda]\ntoolkit = 12.10\n");
        assert_eq!((code, line, column), (Code::ConfigType, 2, 11));
        assert_eq!(
            text,
            "cuda.toolkit: versions are strings; write \"12.10\", because 12.10 as a number is 12.1"
        );
        let (_, _, _, text) = first("cuda.toolkit = 12.8");
        assert_eq!(text, "cuda.toolkit: versions are strings; write \"12.8\"");
        let (_, line, column, text) = first("[cuda]\ntoolkit = [\"12.8\",\n  13.0]");
        assert_eq!((line, column), (3, 3));
        assert!(text.contains("write \"13.0\", because 13.0 as a number is 13"), "{text}");
        let (_, _, _, text) = first("[driver]\nbranch = 580");
        assert_eq!(text, "driver.branch: versions are strings; write \"580\"");
    }

    #[test]
    fn an_unquoted_value_that_toml_cannot_read_gets_the_mend() {
        let (code, line, column, text) = first("[driver]\nbranch = 535.309.01 # exact\n");
        assert_eq!((code, line, column), (Code::ConfigSyntax, 2, 10));
        assert_eq!(text, "versions are strings; write branch = \"535.309.01\"");
        let (code, _, _, text) = first("[driver]\nflavour = open\n");
        assert_eq!(
            (code, text.as_str()),
            (Code::ConfigSyntax, "text needs quotes; write flavour = \"open\"")
        );
    }

    #[test]
    fn amounts_of_memory_have_a_unit() {
        assert_eq!(memory_bytes("512M"), Some(512 << 20));
        assert_eq!(memory_bytes("2G"), Some(2 << 30));
        for wrong in ["", "M", "512", "+5M", "1.5G", "5T", "99999999999999999G", "5é"] {
            assert_eq!(memory_bytes(wrong), None, "{wrong}");
        }
        assert!(memory("auto").is_ok() && memory("64M").is_ok());
        assert!(memory("63M").unwrap_err().contains("63M"));
    }

    #[test]
    fn positions_count_characters() {
        assert_eq!(position("", 0), (1, 1));
        assert_eq!(position("a\nüb", 4), (2, 2));
        assert_eq!(position("a\nüb", 3), (2, 1), "inside a character");
        assert_eq!(position("a", 99), (1, 2));
        assert_eq!(position("\u{feff}ab", 4), (1, 2));
    }

    #[test]
    fn hostile_text_never_panics() {
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        let pieces = [
            "[",
            "]",
            "=",
            "\"",
            "'''",
            "\\u{",
            "driver",
            ".",
            "12.10",
            "\n",
            "\r",
            "{",
            "}",
            ",",
            "é",
            "#",
            "\u{feff}",
            "inf",
            "1979-05-27",
            "0x",
            " ",
            "cudnn.deb",
            "url",
            "-",
        ];
        for _ in 0..20_000 {
            let mut text = String::new();
            for _ in 0..12 {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                text.push_str(pieces[usize::try_from(seed % pieces.len() as u64).unwrap()]);
            }
            if let Err(problems) = parse(&text) {
                assert!(!problems.is_empty());
                for p in problems {
                    position(&text, p.offset);
                }
            }
        }
    }
}
