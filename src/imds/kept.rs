//! What the metadata service said in this boot, of what cannot change while an instance runs: the units share it, so that
//! five of them ask no more than one. Root's alone, gone with the boot. Nothing here fails a request: what cannot be used
//! is asked for anew (decision 0014).

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use super::Item;
use crate::error::{Code, Error, Result};
use crate::host::files::Files;
use crate::host::paths::METADATA;
use crate::report::streams;

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// An instance that was hibernated goes on with the same boot id, and may come back with other user-data. The clock that
/// this is measured by goes on meanwhile. A boot takes less.
const MOST_AGE: Duration = Duration::from_mins(15);
/// User-data of 16 KiB and 32 keys in base64 are far less.
const MOST_BYTES: u64 = 1 << 20;

/// Whether an item stays as it is while the instance runs. Tags, credentials, the spot action and lifecycle states do not.
fn is_constant(path: &str) -> bool {
    ["dynamic/instance-identity/document", "user-data", "meta-data/local-hostname"].contains(&path)
        || path.starts_with("meta-data/public-keys/")
}

/// Whether that there is no such item is an answer for good. A key pair's list may come late.
fn may_be_absent(path: &str) -> bool {
    path == "user-data"
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Document {
    boot_id: String,
    /// Another service gives other answers.
    endpoint: String,
    answers: Vec<Answer>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Answer {
    path: String,
    /// Where it was asked for.
    url: String,
    /// Seconds of `CLOCK_BOOTTIME`, before it was asked for.
    asked: f64,
    /// Base64; absent where the item does not exist.
    body: Option<String>,
}

/// The answers that are kept.
#[derive(Debug)]
pub(super) struct Kept {
    files: Files,
    document: Document,
}

impl Kept {
    /// What the units of this boot were told by this service. What cannot be read or is another boot's is none.
    pub(super) fn open(files: Files, endpoint: String) -> Result<Self> {
        let boot_id = files.read_text(BOOT_ID)?.map(|text| text.trim().to_owned()).unwrap_or_default();
        if boot_id.is_empty() {
            return Err(Error::new(Code::FactsUnreadable, format!("{BOOT_ID} is missing or empty")));
        }
        let found = read(&files).unwrap_or_else(|error| {
            tracing::warn!("{error}; the metadata service is asked anew");
            None
        });
        let is_ours = |document: &Document| document.boot_id == boot_id && document.endpoint == endpoint;
        let document = found.filter(is_ours);
        let document = document.unwrap_or(Document { boot_id, endpoint, answers: Vec::new() });
        Ok(Self { files, document })
    }

    /// The item, or that there is none; `None` where it has to be asked for.
    pub(super) fn get(&self, path: &str) -> Option<Item> {
        let answer = self.answer(path).filter(|_| is_constant(path))?;
        let age = boot_time() - answer.asked;
        if !(0.0..MOST_AGE.as_secs_f64()).contains(&age) {
            return None;
        }
        match &answer.body {
            Some(body) => STANDARD.decode(body).ok().map(Item::There),
            None => may_be_absent(path).then_some(Item::Absent),
        }
    }

    /// Where a kept item was asked for.
    pub(super) fn url(&self, path: &str) -> Option<String> {
        self.get(path)?;
        self.answer(path).map(|answer| answer.url.clone())
    }

    /// Keeps an answer, if it is one to keep.
    pub(super) fn put(&mut self, path: &str, url: String, asked: f64, body: Option<&[u8]>) {
        if !is_constant(path) || (body.is_none() && !may_be_absent(path)) {
            return;
        }
        self.document.answers.retain(|answer| answer.path != path);
        let body = body.map(|bytes| STANDARD.encode(bytes));
        self.document.answers.push(Answer { path: path.into(), url, asked, body });
        self.save();
    }

    /// Keeps it no longer.
    pub(super) fn forget(&mut self, path: &str) {
        let before = self.document.answers.len();
        self.document.answers.retain(|answer| answer.path != path);
        if self.document.answers.len() < before {
            self.save();
        }
    }

    fn answer(&self, path: &str) -> Option<&Answer> {
        self.document.answers.iter().find(|answer| answer.path == path)
    }

    fn save(&self) {
        let text = streams::json(&self.document);
        if let Err(error) = text.and_then(|text| self.files.write(METADATA, text.as_bytes(), 0o600)) {
            tracing::warn!("{error}; the next unit asks the metadata service itself");
        }
    }
}

/// The file, if there is one: root's own all the way, no link, and whole.
fn read(files: &Files) -> Result<Option<Document>> {
    let (dir, name) = METADATA.rsplit_once('/').unwrap_or_default();
    let found = files.read_trusted_dir(dir, |found| found == name, MOST_BYTES)?;
    let Some((_, bytes)) = found.into_iter().next() else { return Ok(None) };
    parse(&bytes).map(Some)
}

fn parse(bytes: &[u8]) -> Result<Document> {
    serde_json::from_slice(bytes)
        .map_err(|e| Error::new(Code::Io, format!("{METADATA} is not what a unit has written")).because(e))
}

/// Seconds since the machine was started, those in which it slept included.
pub(super) fn boot_time() -> f64 {
    // Fails for no clock that exists.
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(0.0, |time| Duration::from(time).as_secs_f64())
}

/// What was kept, as bytes.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(bytes: &[u8]) {
    let Ok(document) = parse(bytes) else { return };
    let paths: Vec<_> = document.answers.iter().map(|answer| answer.path.clone()).collect();
    let kept = Kept { files: Files::new("/nonexistent".into()), document };
    for path in &paths {
        assert!(kept.get(path).is_none() || is_constant(path), "{path}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = "dynamic/instance-identity/document";
    const SERVICE: &str = "http://169.254.169.254";

    fn machine() -> (tempfile::TempDir, Files) {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path().into());
        files.write(BOOT_ID, b"b-1\n", 0o644).unwrap();
        (dir, files)
    }

    fn open(files: &Files) -> Kept {
        Kept::open(files.clone(), SERVICE.into()).unwrap()
    }

    fn put(files: &Files, path: &str, age: f64, body: Option<&[u8]>) {
        open(files).put(path, format!("{SERVICE}/latest/{path}"), boot_time() - age, body);
    }

    #[test]
    fn what_cannot_change_is_kept_and_nothing_else() {
        let (_dir, files) = machine();
        for path in [DOCUMENT, "user-data", "meta-data/public-keys/", "meta-data/public-keys/0/openssh-key"] {
            put(&files, path, 0.0, Some(b"\xff\n"));
            assert_eq!(open(&files).get(path), Some(Item::There(b"\xff\n".to_vec())), "{path}");
            assert_eq!(open(&files).url(path), Some(format!("{SERVICE}/latest/{path}")));
        }
        for path in [
            "meta-data/iam/security-credentials/role",
            "meta-data/tags/instance/Name",
            "meta-data/spot/instance-action",
            "api/token",
        ] {
            put(&files, path, 0.0, Some(b"x"));
            assert_eq!(open(&files).get(path), None, "{path}");
        }
        put(&files, "user-data", 0.0, None);
        assert_eq!(open(&files).get("user-data"), Some(Item::Absent));
        put(&files, DOCUMENT, 0.0, None);
        assert_eq!(
            open(&files).get(DOCUMENT),
            Some(Item::There(b"\xff\n".to_vec())),
            "no document is no answer"
        );
        let mut kept = open(&files);
        kept.forget(DOCUMENT);
        assert_eq!(open(&files).get(DOCUMENT), None);
    }

    #[test]
    fn another_boot_another_service_and_what_is_old_ask_anew() {
        let (_dir, files) = machine();
        put(&files, DOCUMENT, 0.0, Some(b"x"));
        assert_eq!(Kept::open(files.clone(), "http://[::1]".into()).unwrap().get(DOCUMENT), None);
        files.write(BOOT_ID, b"b-2\n", 0o644).unwrap();
        assert_eq!(open(&files).get(DOCUMENT), None);
        for (age, is_kept) in [(14.0 * 60.0, true), (15.0 * 60.0, false), (-5.0, false), (f64::NAN, false)] {
            put(&files, DOCUMENT, age, Some(b"x"));
            assert_eq!(open(&files).get(DOCUMENT).is_some(), is_kept, "{age}");
        }
    }

    #[test]
    fn what_is_torn_or_anybodys_is_none() {
        let (dir, files) = machine();
        put(&files, DOCUMENT, 0.0, Some(b"x"));
        let whole = files.read(METADATA).unwrap().unwrap();
        for torn in [&whole[..whole.len() / 2], b"", b"\0\0", b"[]", b"{\"answers\": 5}"] {
            files.write(METADATA, torn, 0o600).unwrap();
            assert_eq!(open(&files).get(DOCUMENT), None);
        }
        files.write(METADATA, &whole, 0o666).unwrap();
        assert_eq!(open(&files).get(DOCUMENT), None, "anybody can write it");
        files.write(METADATA, &whole, 0o600).unwrap();
        assert!(open(&files).get(DOCUMENT).is_some());
        let place = dir.path().join(METADATA.trim_start_matches('/'));
        std::fs::rename(&place, place.with_file_name("elsewhere")).unwrap();
        std::os::unix::fs::symlink("elsewhere", &place).unwrap();
        assert_eq!(open(&files).get(DOCUMENT), None, "a link");
        put(&files, DOCUMENT, 0.0, Some(b"y"));
        assert_eq!(open(&files).get(DOCUMENT), Some(Item::There(b"y".to_vec())), "it is written anew");
    }
}
