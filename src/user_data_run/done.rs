//! What of the user-data is done, for which instance, and how often what is not done was begun. An image takes this file
//! along; the live instance id then says that it is of another one.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::item::{Frequency, Item};
use super::report::Outcome;
use crate::boot;
use crate::error::{Code, Error, Result};
use crate::host::files::Files;
use crate::host::paths::USER_DATA;
use crate::report::streams;

/// How often an item is begun that never comes to its end: a script that reboots the machine before it is over would do so
/// for ever.
const MOST_BEGINNINGS: u32 = 3;
/// The scope of what is done once.
const ONCE: &str = "once";

/// What is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Done {
    /// `i-…`
    instance_id: String,
    #[serde(skip)]
    boot_id: String,
    #[serde(skip)]
    is_new: bool,
    /// SHA-256 of the parts that this instance was given when it was new, and of those that were accepted since.
    accepted: BTreeSet<String>,
    items: Vec<Entry>,
}

/// One item that was begun.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Entry {
    name: String,
    sha256: String,
    /// `once`, an instance id, or a boot id.
    scope: String,
    /// `begun`, `done` or `failed`.
    state: String,
    beginnings: u32,
}

/// Whether an item is to be done.
#[derive(Debug)]
pub(super) enum Due {
    /// Yes.
    Now,
    /// No, and that is well.
    Not(Outcome, &'static str),
    /// No, and it never came to its end.
    Never(Error),
}

impl Done {
    /// What earlier boots left; nothing where that cannot be read: then all is done again.
    pub(super) fn load(files: &Files) -> Self {
        let read = files.read(USER_DATA).and_then(|bytes| {
            let Some(bytes) = bytes else { return Ok(Self::default()) };
            serde_json::from_slice(&bytes)
                .map_err(|e| Error::new(Code::Io, format!("{USER_DATA} is no state of ours")).because(e))
        });
        read.unwrap_or_else(|error| {
            tracing::warn!("{}", boot::explain(&error));
            Self::default()
        })
    }

    /// What of it holds for this instance and this boot.
    #[must_use]
    pub(super) fn of(mut self, instance_id: &str, boot_id: &str) -> Self {
        self.is_new = self.instance_id != instance_id;
        if self.is_new {
            self.accepted.clear();
            instance_id.clone_into(&mut self.instance_id);
        }
        boot_id.clone_into(&mut self.boot_id);
        // What was only begun keeps its count over boots, whatever its scope.
        self.items.retain(|entry| {
            [ONCE, instance_id, boot_id].contains(&entry.scope.as_str())
                || (!self.is_new && entry.state == "begun")
        });
        self
    }

    /// Nothing was kept of this instance.
    pub(super) fn is_new(&self) -> bool {
        self.is_new
    }

    /// These are what the instance is meant to do.
    pub(super) fn accept(&mut self, items: &[Item]) {
        self.accepted.extend(items.iter().map(|item| item.sha256.clone()));
    }

    /// Whether the item is to be done; `again` does what is done once more.
    pub(super) fn due(&self, item: &Item, again: bool) -> Due {
        if !self.accepted.contains(&item.sha256) {
            return Due::Not(
                Outcome::NotApplied,
                "it came after this instance was set up: `gpu-bootstrap user-data run --changed` does it",
            );
        }
        if again {
            return Due::Now;
        }
        match self.entry(item) {
            Some(entry) if entry.state == "begun" && entry.beginnings >= MOST_BEGINNINGS => {
                let message = format!(
                    "{} was begun {MOST_BEGINNINGS} times and never came to its end: it is not begun again",
                    item.name
                );
                Due::Never(Error::new(Code::UserDataFailed, message).with_hint(
                    "see why it was cut off (does it reboot the machine?); `gpu-bootstrap user-data run --again` begins it",
                ))
            }
            Some(entry) if entry.state == "done" => Due::Not(Outcome::Earlier, "done before"),
            Some(entry) if entry.state == "failed" => Due::Not(
                Outcome::EarlierFailed,
                "it failed before: `gpu-bootstrap user-data run --again` does it once more",
            ),
            _ => Due::Now,
        }
    }

    /// The item is about to begin.
    pub(super) fn begin(&mut self, item: &Item) {
        let earlier = self.take(item).filter(|entry| entry.state == "begun");
        let beginnings = earlier.map_or(0, |entry| entry.beginnings) + 1;
        self.put(item, "begun", beginnings);
    }

    /// The item has come to its end.
    pub(super) fn end(&mut self, item: &Item, is_good: bool) {
        self.take(item);
        self.put(item, if is_good { "done" } else { "failed" }, 0);
    }

    /// Writes it, durably.
    pub(super) fn save(&self, files: &Files) -> Result<()> {
        files.write(USER_DATA, streams::json(self)?.as_bytes(), 0o600)
    }

    fn scope(&self, item: &Item) -> &str {
        match item.frequency {
            Frequency::Once => ONCE,
            Frequency::Instance => &self.instance_id,
            Frequency::Boot => &self.boot_id,
        }
    }

    /// What is known of the item: in its scope, or that it was begun in an earlier boot.
    fn entry(&self, item: &Item) -> Option<&Entry> {
        self.items.iter().find(|entry| self.is_of(entry, item))
    }

    fn is_of(&self, entry: &Entry, item: &Item) -> bool {
        (&entry.name, &entry.sha256) == (&item.name, &item.sha256)
            && (entry.scope == self.scope(item) || entry.state == "begun")
    }

    fn take(&mut self, item: &Item) -> Option<Entry> {
        let at = self.items.iter().position(|entry| self.is_of(entry, item))?;
        Some(self.items.remove(at))
    }

    fn put(&mut self, item: &Item, state: &str, beginnings: u32) {
        let (name, sha256) = (item.name.clone(), item.sha256.clone());
        let scope = self.scope(item).to_owned();
        self.items.push(Entry { name, sha256, scope, state: state.into(), beginnings });
    }
}

#[cfg(test)]
mod tests {
    use super::super::item::{Stage, Work};
    use super::*;

    fn item(name: &str, frequency: Frequency) -> Item {
        Item {
            name: name.into(),
            sha256: name.repeat(2),
            frequency,
            stage: Stage::Final,
            work: Work::Script(Vec::new()),
        }
    }

    fn is_due(done: &Done, item: &Item) -> bool {
        matches!(done.due(item, false), Due::Now)
    }

    fn new(items: &[Item]) -> Done {
        let mut done = Done::default().of("i-1", "b-1");
        done.accept(items);
        done
    }

    #[test]
    fn what_is_done_is_done_again_in_its_next_scope() {
        let all = [Frequency::Once, Frequency::Instance, Frequency::Boot].map(|f| item(f.name(), f));
        let mut done = new(&all);
        for item in &all {
            assert!(is_due(&done, item));
            done.begin(item);
            done.end(item, true);
        }
        let due = |done: &Done| all.iter().map(|item| is_due(done, item)).collect::<Vec<_>>();
        assert_eq!(due(&done), [false, false, false]);
        assert_eq!(due(&done.clone().of("i-1", "b-2")), [false, false, true]);
        let mut clone = done.of("i-2", "b-3");
        assert!(clone.is_new());
        clone.accept(&all);
        assert_eq!(due(&clone), [false, true, true]);
    }

    #[test]
    fn what_came_later_waits_to_be_accepted() {
        let (first, later) = (item("first", Frequency::Instance), item("later", Frequency::Boot));
        let mut done = new(std::slice::from_ref(&first)).of("i-1", "b-2");
        assert!(!done.is_new() && is_due(&done, &first));
        assert!(matches!(done.due(&later, true), Due::Not(Outcome::NotApplied, _)));
        done.accept(std::slice::from_ref(&later));
        assert!(is_due(&done, &later));
    }

    #[test]
    fn what_never_ends_is_not_begun_for_ever() {
        for frequency in [Frequency::Instance, Frequency::Boot] {
            let item = item("reboots", frequency);
            let mut done = new(std::slice::from_ref(&item));
            for boot in 0..MOST_BEGINNINGS {
                assert!(is_due(&done, &item), "{boot}");
                done.begin(&item);
                done = done.of("i-1", &format!("b-{boot}"));
            }
            assert!(matches!(done.due(&item, false), Due::Never(_)));
            assert!(matches!(done.due(&item, true), Due::Now));
            done.begin(&item);
            done.end(&item, false);
            assert!(matches!(done.due(&item, false), Due::Not(Outcome::EarlierFailed, _)));
            assert_eq!(done.items.len(), 1);
        }
    }

    #[test]
    fn an_unreadable_state_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path().into());
        for unreadable in [&b"\0"[..], b"", b"{\"items\": 5}"] {
            files.write(USER_DATA, unreadable, 0o600).unwrap();
            assert_eq!(Done::load(&files), Done::default());
        }
    }
}
