//! Which instance this machine was last set up as, and what of that is done. An image takes this file along; the live
//! instance id then says that it is of another one.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::boot;
use crate::error::{Code, Error, Result};
use crate::host::files::Files;
use crate::host::paths::INSTANCE;

/// What is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct State {
    /// `i-…`
    pub(super) instance_id: String,
    /// Names of the duties that are done; unknown ones are another version's.
    pub(super) done: BTreeSet<String>,
    /// Names of those that the configuration had switched off.
    pub(super) off: BTreeSet<String>,
}

impl State {
    /// What the last boot left; the default where there is nothing, or nothing that can be read: then this is a new
    /// instance, and all is done again.
    pub(super) fn load(files: &Files) -> Self {
        let read = files.read(INSTANCE).and_then(|bytes| {
            let Some(bytes) = bytes else { return Ok(Self::default()) };
            serde_json::from_slice(&bytes)
                .map_err(|e| Error::new(Code::Io, format!("{INSTANCE} is no state of ours")).because(e))
        });
        read.unwrap_or_else(|error| {
            tracing::warn!("{}", boot::explain(&error));
            Self::default()
        })
    }

    /// What of it holds for the instance that this machine is now.
    #[must_use]
    pub(super) fn of(self, instance_id: &str) -> Self {
        if self.instance_id == instance_id {
            return self;
        }
        Self { instance_id: instance_id.into(), ..Self::default() }
    }

    /// Whether there is nothing left to do for this duty.
    pub(super) fn is_over(&self, duty: &str) -> bool {
        self.done.contains(duty) || self.off.contains(duty)
    }

    /// Writes it, durably.
    pub(super) fn save(&self, files: &Files) -> Result<()> {
        files.write(INSTANCE, crate::report::streams::json(self)?.as_bytes(), 0o644)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_done_on_one_instance_is_not_done_on_another() {
        let first = State {
            instance_id: "i-1".into(),
            done: ["hostname".into()].into(),
            off: ["grow-root".into()].into(),
        };
        assert!(first.is_over("hostname") && first.is_over("grow-root") && !first.is_over("ssh-keys"));
        assert_eq!(first.clone().of("i-1"), first);
        assert_eq!(first.of("i-2"), State { instance_id: "i-2".into(), ..State::default() });
    }

    #[test]
    fn an_unreadable_state_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path().into());
        assert_eq!(State::load(&files), State::default());
        for unreadable in [&b"\0\0\0"[..], b"", b"{\"instance_id\": 5}", b"[]"] {
            files.write(INSTANCE, unreadable, 0o644).unwrap();
            assert_eq!(State::load(&files), State::default());
        }
        let state = State {
            instance_id: "i-1".into(),
            done: ["of a later version".into()].into(),
            ..State::default()
        };
        state.save(&files).unwrap();
        assert_eq!(State::load(&files), state);
    }
}
