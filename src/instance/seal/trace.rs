//! Traces of an instance: what was found of an item, and how each goes. Everything is found and taken away below open
//! directories, so that no link leads anywhere else, whoever made it.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::Scene;
use crate::error::{Error, Result};
use crate::host::directory::{Directory, Entry, Left};
use crate::host::files::Files;

/// Deepest directory below which logs are looked for.
const DEEPEST: u32 = 32;

/// Something to be taken away.
#[derive(Debug)]
enum Trace {
    /// A file, a link, or a directory with all that is in it.
    Gone { directory: Rc<Directory>, name: OsString },
    /// A file that a running program writes to: its content.
    Emptied { directory: Rc<Directory>, name: OsString },
    /// A file of the machine's that gets this content.
    Written { path: &'static str, content: Vec<u8>, mode: u32 },
    /// A name that becomes a link.
    Linked { path: &'static str, target: &'static str },
}

/// What was found of an item.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Each with what else is to be said of it.
    traces: Vec<(Trace, String)>,
    /// What stays.
    pub(super) left: Vec<Left>,
    /// What could not be looked at.
    pub(super) refused: Vec<Error>,
}

impl Found {
    /// A name in a directory goes.
    pub(super) fn take(&mut self, directory: &Rc<Directory>, name: &OsStr, word: &str) {
        if directory.is_mount(name) {
            self.leave(directory.path().join(name), "is mounted, and no part of the image");
            return;
        }
        let trace = Trace::Gone { directory: directory.clone(), name: name.into() };
        self.traces.push((trace, word.into()));
    }

    /// Every name in a directory that is wanted goes.
    pub(super) fn take_in(&mut self, scene: &Scene<'_>, path: &str, wanted: impl Fn(&str) -> bool) {
        let taken = scene.directory(path).and_then(|directory| {
            let Some(directory) = directory else { return Ok(()) };
            for name in directory.names()? {
                if wanted(&name.to_string_lossy()) {
                    self.take(&directory, &name, "");
                }
            }
            Ok(())
        });
        self.refused.extend(taken.err());
    }

    /// Below a directory, old logs go, and current ones are emptied.
    pub(super) fn empty_in(&mut self, scene: &Scene<'_>, path: &str, is_old: fn(&str) -> bool) {
        let taken = scene.directory(path).and_then(|directory| match directory {
            Some(directory) => self.empty_below(&directory, is_old, 0),
            None => Ok(()),
        });
        self.refused.extend(taken.err());
    }

    fn empty_below(&mut self, directory: &Rc<Directory>, is_old: fn(&str) -> bool, depth: u32) -> Result<()> {
        for name in directory.names()? {
            match directory.entry(&name)? {
                Some(Entry::Directory) if depth >= DEEPEST || directory.is_mount(&name) => {
                    self.leave(directory.path().join(&name), "is mounted, or lies too deep");
                }
                Some(Entry::Directory) => {
                    if let Some(inner) = directory.enter(&name)? {
                        self.empty_below(&Rc::new(inner), is_old, depth + 1)?;
                    }
                }
                // A file with another name elsewhere may be somebody's: only this name goes.
                Some(Entry::File { is_single, .. }) if !is_single || is_old(&name.to_string_lossy()) => {
                    self.take(directory, &name, "");
                }
                Some(Entry::File { bytes: 1.., .. }) => {
                    let trace = Trace::Emptied { directory: directory.clone(), name };
                    self.traces.push((trace, String::new()));
                }
                Some(Entry::File { .. } | Entry::Other) | None => {}
            }
        }
        Ok(())
    }

    /// A file of the machine's gets this content.
    pub(super) fn write(&mut self, path: &'static str, content: &[u8], mode: u32) {
        self.traces.push((Trace::Written { path, content: content.into(), mode }, String::new()));
    }

    /// A name becomes a link.
    pub(super) fn link(&mut self, path: &'static str, target: &'static str) {
        self.traces.push((Trace::Linked { path, target }, format!(" → {target}")));
    }

    /// Something stays, for this reason.
    pub(super) fn leave(&mut self, path: impl Into<PathBuf>, why: impl Into<String>) {
        self.left.push(Left { path: path.into(), why: why.into() });
    }

    /// What goes, for people.
    pub(super) fn words(&self) -> Vec<String> {
        self.traces.iter().map(|(trace, word)| format!("{}{word}", trace.path().display())).collect()
    }

    /// Takes it all away, with names durably so; what is mounted within stays. One that fails stops no other.
    pub(super) fn clear(&mut self, files: &Files) -> Vec<Error> {
        let mut failed = Vec::new();
        let mut directories: Vec<&Rc<Directory>> = Vec::new();
        for (trace, _) in &self.traces {
            let cleared = match trace {
                Trace::Gone { directory, name } => {
                    if !directories.last().is_some_and(|last| Rc::ptr_eq(last, directory)) {
                        directories.push(directory);
                    }
                    directory.remove(name, &mut self.left)
                }
                Trace::Emptied { directory, name } => directory.empty(name),
                Trace::Written { path, content, mode } => files.write(path, content, *mode),
                Trace::Linked { path, target } => files.symlink(path, target),
            };
            failed.extend(cleared.err());
        }
        failed.extend(directories.iter().filter_map(|directory| directory.sync().err()));
        failed
    }
}

impl Trace {
    fn path(&self) -> PathBuf {
        match self {
            Self::Gone { directory, name } | Self::Emptied { directory, name } => directory.path().join(name),
            Self::Written { path, .. } | Self::Linked { path, .. } => Path::new(path).into(),
        }
    }
}

/// What could not be done, as something that stays.
pub(super) fn left(error: &Error) -> Left {
    let causes = error.causes();
    let why = std::iter::once(error.message()).chain(causes.iter().map(String::as_str));
    Left { path: PathBuf::new(), why: why.collect::<Vec<_>>().join(": ") }
}

/// Whether a name has this ending. Case counts: that is how whoever reads these files looks at names.
pub(super) fn ends(name: &str, ending: &str) -> bool {
    name.ends_with(ending)
}
