//! One attempt at a file for the cache: hashed and written as it comes, named only when it is whole and right.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use reqwest::header::{CONTENT_RANGE, CONTENT_TYPE, HeaderValue};
use reqwest::{Response, StatusCode, Url};
use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::address::{downloading, shown};
use super::answer::{Failed, broken, content_range, validator};
use super::full_hint;
use super::patience::Trickle;
use crate::error::{Code, Error, Result};
use crate::host::fault::{self, Kind};
use crate::host::{Host, paths};
use crate::report::event::{Progress, Unit};

/// Chunks on their way from the network to the writer; bounds memory when the disk is slower.
const QUEUE: usize = 32;

/// How a `.deb` begins: it is an `ar` archive.
pub(super) const AR_MAGIC: &[u8] = b"!<arch>\n";

/// Name of unfinished downloads in the cache's directory.
pub(crate) const PARTIAL_PREFIX: &str = ".download-";

/// Progress is reported no more often than this.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// What the bytes must be, besides having the right sum.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Expect {
    Anything,
    Deb,
}

/// The beginning of a download, which has no name yet.
pub(super) struct Partial {
    pub(super) temp: NamedTempFile,
    pub(super) hash: Sha256,
    pub(super) length: u64,
    /// By what the server knows this version again (`If-Range`); without it nothing can go on.
    pub(super) validator: Option<HeaderValue>,
    /// Whether more than one answer is in it.
    pub(super) is_pieced: bool,
}

impl Partial {
    /// Nothing yet of what `response` begins to bring, beside its later `place`.
    pub(super) fn new(place: &Path, response: &Response) -> io::Result<Self> {
        fault::point(Kind::Create, place)?;
        let temp = tempfile::Builder::new()
            .prefix(PARTIAL_PREFIX)
            .permissions(fs::Permissions::from_mode(0o644))
            .tempfile_in(parent(place))?;
        let validator = validator(response.headers());
        Ok(Self { temp, hash: Sha256::new(), length: 0, validator, is_pieced: false })
    }

    /// Whether the next attempt may ask for the rest only.
    pub(super) fn can_go_on(&self) -> bool {
        self.validator.is_some() && self.length >= AR_MAGIC.len() as u64
    }

    /// Whether the answer begins where this ends.
    pub(super) fn is_continued_by(&self, response: &Response) -> bool {
        let said = response.headers().get(CONTENT_RANGE).and_then(|v| v.to_str().ok());
        let range = said.and_then(content_range).map(|(range, _)| range);
        response.status() == StatusCode::PARTIAL_CONTENT && range.is_some_and(|r| r.start == self.length)
    }
}

/// An answer to the question for the rest that has something else. The next attempt begins anew.
pub(super) fn not_continued(url: &Url, response: &Response) -> Failed {
    let status = response.status();
    let text = format!("{} does not go on where its first part ended ({status})", shown(url));
    Failed::Maybe(Error::new(Code::Fetch, text), None)
}

/// Starts the thread that hashes and writes what comes through the queue; it ends with the queue.
pub(super) fn start_writer(
    begun: Partial,
    url: String,
) -> (mpsc::Sender<Vec<u8>>, JoinHandle<Result<Partial>>) {
    let (queue, mut chunks) = mpsc::channel::<Vec<u8>>(QUEUE);
    let mut partial = begun;
    let work = move || -> io::Result<Partial> {
        while let Some(chunk) = chunks.blocking_recv() {
            partial.hash.update(&chunk);
            fault::point(Kind::Write, paths::CACHE_DIR)?;
            partial.temp.write_all(&chunk)?;
            partial.length += chunk.len() as u64;
        }
        Ok(partial)
    };
    let to_error = move |e| full_hint(Error::io("write the download of", &url, e));
    (queue, tokio::task::spawn_blocking(move || work().map_err(to_error)))
}

/// Hands the body to the writer, chunk by chunk, and says how far it has come.
pub(super) async fn pump(
    url: &Url,
    response: Response,
    expect: Expect,
    queue: mpsc::Sender<Vec<u8>>,
    mut meter: Meter<'_>,
    patience: Duration,
) -> Result<(), Failed> {
    let is_page = response
        .headers()
        .get(CONTENT_TYPE)
        .is_some_and(|t| t.as_bytes().to_ascii_lowercase().starts_with(b"text/html"));
    let mut trickle = Trickle::new(patience);
    let mut head = Vec::new();
    let mut is_checked = expect == Expect::Anything;
    let mut body = response.bytes_stream();
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|e| broken(url, e))?;
        meter.add(chunk.len());
        trickle.add(url, chunk.len())?;
        if !is_checked {
            head.extend_from_slice(&chunk[..chunk.len().min(AR_MAGIC.len() - head.len())]);
            is_checked = head.len() == AR_MAGIC.len();
            if is_checked && head != AR_MAGIC {
                return Err(Failed::Surely(not_a_deb(url, is_page, &head)));
            }
        }
        if queue.send(chunk.into()).await.is_err() {
            break; // the writer has failed, and its error will be told
        }
    }
    meter.finish();
    if is_checked { Ok(()) } else { Err(Failed::Surely(not_a_deb(url, is_page, &head))) }
}

fn not_a_deb(url: &Url, is_page: bool, head: &[u8]) -> Error {
    let url = shown(url);
    if is_page || head.first() == Some(&b'<') {
        return Error::new(
            Code::NotADeb,
            format!("{url} answered with a web page, probably a login page, instead of a Debian package"),
        )
        .with_hint("download the package by hand and put it where this machine may read it without a login");
    }
    Error::new(
        Code::NotADeb,
        format!("{url} is not a Debian package: it begins with \"{}\"", head.escape_ascii()),
    )
    .with_hint("check the URL")
}

/// Gives a verified download its name, durably.
pub(super) fn keep(temp: NamedTempFile, place: &Path) -> io::Result<()> {
    fault::point(Kind::Sync, place)?;
    temp.as_file().sync_all()?;
    fault::point(Kind::Rename, place)?;
    temp.persist(place).map_err(|e| e.error)?;
    fault::point(Kind::Sync, parent(place))?;
    File::open(parent(place))?.sync_all()
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

/// Says how far a download has come, not too often.
pub(super) struct Meter<'a> {
    host: &'a Host,
    what: String,
    done: u64,
    total: Option<u64>,
    said: Instant,
}

impl<'a> Meter<'a> {
    /// `done` bytes are there already, and `rest` are to come.
    pub(super) fn new(host: &'a Host, url: &Url, done: u64, rest: Option<u64>) -> Self {
        let what = downloading(url);
        let meter = Self { host, what, done, total: rest.map(|rest| done + rest), said: Instant::now() };
        meter.say();
        meter
    }

    pub(super) fn add(&mut self, bytes: usize) {
        self.done += bytes as u64;
        if self.said.elapsed() >= PROGRESS_EVERY {
            self.said = Instant::now();
            self.say();
        }
    }

    pub(super) fn finish(&self) {
        self.say();
    }

    pub(super) fn say(&self) {
        self.host.progress(Progress {
            what: self.what.clone(),
            item: String::new(),
            done: self.done,
            total: self.total,
            unit: Unit::Bytes,
        });
    }
}
