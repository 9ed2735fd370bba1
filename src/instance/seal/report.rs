//! What was done, a line for each item while it is done; or all of it as one document.

use serde::Serialize;

use super::items::Item;
use crate::error::Result;
use crate::host::directory::Left;
use crate::report::streams;

/// Paths that a line names; the document has all.
const SHOWN: usize = 6;

/// How it stands with an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Outcome {
    /// There was none.
    Clean,
    /// It was there, and is gone.
    Gone,
    /// It is there, and would go.
    WouldGo,
}

#[derive(Debug, Serialize)]
struct Entry {
    item: &'static str,
    outcome: Outcome,
    paths: Vec<String>,
    left: Vec<Stays>,
}

#[derive(Debug, Serialize)]
struct Stays {
    path: String,
    why: String,
}

/// The whole.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    agent_version: &'static str,
    dry_run: bool,
    /// Nothing of the instance is there that must not be in an image.
    sealed: bool,
    items: Vec<Entry>,
    notes: Vec<String>,
    #[serde(skip)]
    json: bool,
}

impl Report {
    pub(super) fn new(dry_run: bool, json: bool) -> Self {
        let agent_version = env!("CARGO_PKG_VERSION");
        Self { agent_version, dry_run, sealed: true, items: Vec::new(), notes: Vec::new(), json }
    }

    pub(super) fn is_dry_run(&self) -> bool {
        self.dry_run
    }

    /// Notes and says how it stands with an item.
    pub(super) fn item(&mut self, item: &Item, outcome: Outcome, paths: &[String], left: &[Left]) {
        self.sealed &= outcome != Outcome::WouldGo || !item.must;
        let line = match outcome {
            Outcome::Clean => format!("clean    {}", item.title),
            Outcome::Gone => format!("gone     {}: {}", item.title, few(paths)),
            Outcome::WouldGo => format!("would go {}: {}", item.title, few(paths)),
        };
        self.say(&line);
        for left in left {
            let path = left.path.display().to_string();
            let space = if path.is_empty() { "" } else { " " };
            self.say(&format!("left     {path}{space}{}", left.why));
        }
        let left = left.iter().map(|l| Stays { path: l.path.display().to_string(), why: l.why.clone() });
        self.items.push(Entry { item: item.name, outcome, paths: paths.to_vec(), left: left.collect() });
    }

    /// Something to know besides.
    pub(super) fn note(&mut self, text: String) {
        self.notes.push(text);
    }

    /// The last word.
    pub(super) fn finish(&self) -> Result<()> {
        for note in &self.notes {
            self.say(&format!("note     {note}"));
        }
        self.say(match (self.dry_run, self.sealed) {
            (false, _) => "sealed   stop this machine now, and capture it",
            (true, true) => "sealed   nothing of this instance is left",
            (true, false) => "nothing was changed",
        });
        if self.json { streams::out(&streams::json(self)?) } else { Ok(()) }
    }

    fn say(&self, line: &str) {
        if !self.json {
            streams::say(line);
        }
    }
}

/// The first of them, and how many more there are.
pub(super) fn few(paths: &[String]) -> String {
    match paths.len().saturating_sub(SHOWN) {
        0 => paths.join(", "),
        more => format!("{} and {more} more", paths[..SHOWN].join(", ")),
    }
}
