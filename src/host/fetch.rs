//! Downloads: bytes into memory (bounded) or into the cache (hashed while streaming). Used by the actions, and
//! for its HTTP client by the CloudWatch report. What it knows of servers (what is final, what is worth another
//! attempt, which redirects are followed, what may be shown of a URL) also serves `install::fetch`.
//!
//! What goes wrong on the way is retried within a budget; what a server means is not. A download into the cache that
//! breaks goes on where it broke, if the server says by which version it may. Nothing that does not have the expected
//! SHA-256 ever gets a name in the cache. `docs/network-faults.md` lists what can go wrong.

use std::error::Error as StdError;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Once, OnceLock};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use reqwest::header::{
    CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderMap, HeaderValue, IF_RANGE, LAST_MODIFIED, LOCATION, RANGE,
    RETRY_AFTER,
};
use reqwest::{Response, StatusCode, Url};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::fault::{self, Kind};
use super::retry::{Backoff, retry_after};
use super::{Host, paths, proxy};
use crate::error::{Code, Error, Result};
use crate::report::event::{Progress, Unit};
use crate::text::{UrlError, parse_url};

/// Attempts at one download without getting on.
pub(crate) const ATTEMPTS: u32 = 5;
/// So many further bytes prove that a download gets on: its failures are forgotten. Firewalls that count bytes cut
/// connections at 64 KiB.
pub(crate) const PROOF: u64 = 32 << 10;
/// A connection that brings less than this in [`Patience::trickle`] counts as dead.
const TRICKLE: u64 = 16 << 10;
/// Waits between attempts.
pub(crate) const FIRST_WAIT: Duration = Duration::from_millis(250);
pub(crate) const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// The longest `Retry-After` that is waited for; a server that asks for more is as good as down.
pub(crate) const LONGEST_ASKED_WAIT: Duration = Duration::from_secs(60);
/// Redirects followed; mirrors and object stores need one or two.
pub(crate) const MAX_REDIRECTS: u32 = 5;
/// Chunks on their way from the network to the writer; bounds memory when the disk is slower.
const QUEUE: usize = 32;
/// How a `.deb` begins: it is an `ar` archive.
const AR_MAGIC: &[u8] = b"!<arch>\n";
/// Name of unfinished downloads in the cache's directory.
pub(crate) const PARTIAL_PREFIX: &str = ".download-";
/// Progress is reported no more often than this.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// How long a server is waited for.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Until a connection is made.
    pub connect: Duration,
    /// Silence after which a connection counts as dead.
    pub silence: Duration,
    /// A connection that brings next to nothing in this time counts as dead, too.
    pub trickle: Duration,
    /// A download with all its attempts; for packages, all of them together.
    pub total: Duration,
}

impl Default for Patience {
    /// Far servers behind slow proxies still answer in these times; the whole is apt's limit for an installation.
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            silence: Duration::from_secs(30),
            trickle: Duration::from_secs(60),
            total: Duration::from_secs(3 * 60 * 60),
        }
    }
}

/// The HTTP client of the agent, made on first use (reading root certificates takes milliseconds).
#[derive(Debug, Default)]
pub struct Fetch {
    http: OnceLock<reqwest::Client>,
    extra_roots: Option<PathBuf>,
    patience: Patience,
    swept: OnceLock<()>,
}

/// What the bytes must be, besides having the right sum.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Expect {
    Anything,
    Deb,
}

/// The beginning of a download, which has no name yet.
struct Partial {
    temp: NamedTempFile,
    hash: Sha256,
    length: u64,
    /// By what the server knows this version again (`If-Range`); without it nothing can go on.
    validator: Option<HeaderValue>,
    /// Whether more than one answer is in it.
    is_pieced: bool,
}

/// Why an attempt failed.
pub(crate) enum Failed {
    /// Another attempt may do better, after the time that the server asks for.
    Maybe(Error, Option<Duration>),
    /// No other attempt would do better.
    Surely(Error),
}

impl Fetch {
    /// A client that has not connected to anything. It trusts webpki's roots, the system's, and those in the
    /// file that `AWS_CA_BUNDLE` names.
    pub fn new() -> Self {
        Self { extra_roots: std::env::var_os("AWS_CA_BUNDLE").map(PathBuf::from), ..Self::default() }
    }

    /// A client that trusts the certificates in `bundle` (PEM) instead of those that `AWS_CA_BUNDLE` names.
    pub fn trusting(bundle: PathBuf) -> Self {
        Self { extra_roots: Some(bundle), ..Self::default() }
    }

    /// Waits for servers as `patience` says, instead of as long as by default.
    #[must_use]
    pub fn waiting(mut self, patience: Patience) -> Self {
        self.patience = patience;
        self
    }

    /// How long servers are waited for.
    pub fn patience(&self) -> Patience {
        self.patience
    }

    /// A client of the same kind, with connections of its own.
    pub(crate) fn alike(&self) -> Self {
        Self { extra_roots: self.extra_roots.clone(), patience: self.patience, ..Self::default() }
    }

    /// The file with certificates that are trusted besides webpki's and the system's.
    pub fn extra_roots(&self) -> Option<PathBuf> {
        self.extra_roots.clone()
    }

    /// The client itself: rustls, hickory, the system's proxies; no redirect is followed.
    pub fn http(&self) -> Result<&reqwest::Client> {
        if let Some(http) = self.http.get() {
            return Ok(http);
        }
        proxy::check_environment()?;
        warn_of_search_domains();
        let built = builder(roots(self.extra_roots.as_deref())?)?
            .connect_timeout(self.patience.connect)
            .read_timeout(self.patience.silence)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|e| Error::new(Code::Fetch, "cannot set up the HTTP client").because(e))?;
        Ok(self.http.get_or_init(|| built))
    }

    /// Downloads `url` into memory; an answer longer than `limit` bytes is an error.
    pub async fn get(&self, url: &str, limit: usize) -> Result<Vec<u8>> {
        let url = parse(url)?;
        let mut budget = Budget::new();
        loop {
            match self.get_once(&url, limit).await {
                Ok(bytes) => return Ok(bytes),
                Err(failed) => budget.wait_after(failed, 0, |_| {}).await?,
            }
        }
    }

    /// Downloads `url` and returns where the verified file lies in the cache (path inside the root). A file
    /// that is there already is hashed again, and fetched again if its sum is wrong.
    pub async fn into_cache(&self, host: &Host, url: &str, sha256: &str) -> Result<PathBuf> {
        self.cached(host, url, sha256, Expect::Anything).await
    }

    /// Like [`Fetch::into_cache`], for a Debian package: an answer that is none (a login page, mostly) is
    /// recognised by its first bytes, and said so.
    pub async fn into_cache_deb(&self, host: &Host, url: &str, sha256: &str) -> Result<PathBuf> {
        self.cached(host, url, sha256, Expect::Deb).await
    }

    async fn cached(&self, host: &Host, url: &str, sha256: &str, expect: Expect) -> Result<PathBuf> {
        let wanted = self.look_for(host, url, sha256).await?;
        if wanted.is_there {
            return Ok(wanted.inside);
        }
        let whole = self.download(host, &wanted.url, &wanted.place, &wanted.sha256, expect);
        match tokio::time::timeout(self.patience.total, whole).await {
            Ok(outcome) => outcome.map(|()| wanted.inside),
            Err(_elapsed) => Err(out_of_time(&shown(&wanted.url), self.patience.total)),
        }
    }

    /// Looks for the file in the cache and hashes it; one with a wrong sum is removed.
    pub(crate) async fn look_for(&self, host: &Host, url: &str, sha256: &str) -> Result<Wanted> {
        if sha256.len() != 64 || !sha256.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(Error::new(
                Code::ConfigType,
                format!("the sha256 given for {} is not 64 hexadecimal digits", redact_url(url)),
            ));
        }
        let sha256 = sha256.to_ascii_lowercase();
        let url = parse(url)?;
        let inside = Path::new(paths::CACHE_DIR).join(&sha256);
        self.sweep(host)?;
        host.files.make_dir(paths::CACHE_DIR, 0o755)?;
        let place = host.files.outside(&inside)?;
        let is_there = holds(host, &inside, &place, &sha256).await?;
        Ok(Wanted { url, sha256, inside, place, is_there })
    }

    /// A whole download into `place`, however many attempts it takes.
    async fn download(
        &self,
        host: &Host,
        url: &Url,
        place: &Path,
        sha256: &str,
        expect: Expect,
    ) -> Result<()> {
        let (mut budget, mut partial) = (Budget::new(), None);
        loop {
            match self.attempt(host, url, place, sha256, expect, &mut partial).await {
                Ok(()) => return Ok(()),
                Err(failed) => {
                    let reached = partial.as_ref().map_or(0, |p: &Partial| p.length);
                    budget.wait_after(failed, reached, |progress| host.progress(progress)).await?;
                }
            }
        }
    }

    /// Removes downloads that a power cut or SIGKILL left unfinished. Only before this process's first own
    /// download: the run's lock keeps other runs out.
    pub(crate) fn sweep(&self, host: &Host) -> Result<()> {
        if self.swept.set(()).is_err() {
            return Ok(());
        }
        for name in host.files.list(paths::CACHE_DIR)?.iter().filter(|n| n.starts_with(PARTIAL_PREFIX)) {
            let path = Path::new(paths::CACHE_DIR).join(name);
            if let Err(e) = host.files.remove(&path) {
                tracing::warn!(path = %path.display(), error = %e, "cannot remove an unfinished download");
            }
        }
        Ok(())
    }

    /// How many bytes the Debian package at `url` has, if its server tells and answers ranges with ranges. `None` for
    /// everything else: whoever fetches it whole finds out what it is.
    pub(crate) async fn size_of_deb(&self, url: &Url) -> Option<u64> {
        let range = format!("bytes=0-{}", AR_MAGIC.len() - 1);
        let headers = HeaderMap::from_iter([(RANGE, HeaderValue::try_from(&range).ok()?)]);
        let response = self.answer(url, headers).await.ok()?.1;
        if response.status() != StatusCode::PARTIAL_CONTENT {
            return None;
        }
        let said = response.headers().get(CONTENT_RANGE)?.to_str().ok()?;
        let total = said.strip_prefix(&range.replace('=', " "))?.strip_prefix('/')?.parse().ok()?;
        let is_short = response.content_length() == Some(AR_MAGIC.len() as u64);
        let is_deb = is_short && response.bytes().await.ok()? == AR_MAGIC;
        is_deb.then_some(total)
    }

    async fn get_once(&self, url: &Url, limit: usize) -> Result<Vec<u8>, Failed> {
        let mut response = self.open(url, None).await?;
        let mut bytes = Vec::new();
        let mut trickle = Trickle::new(self.patience.trickle);
        while let Some(chunk) = response.chunk().await.map_err(|e| broken(url, e))? {
            trickle.add(url, chunk.len())?;
            bytes.extend_from_slice(&chunk);
            if bytes.len() > limit {
                return Err(Failed::Surely(Error::new(
                    Code::Fetch,
                    format!("{} is longer than {limit} bytes", shown(url)),
                )));
            }
        }
        Ok(bytes)
    }

    /// One attempt. What it has brought when it fails is left in `partial` if the next one may go on from there;
    /// otherwise it is removed as its handle is dropped.
    async fn attempt(
        &self,
        host: &Host,
        url: &Url,
        place: &Path,
        sha256: &str,
        expect: Expect,
        partial: &mut Option<Partial>,
    ) -> Result<(), Failed> {
        let response = self.open(url, partial.as_ref()).await?;
        let begun = match partial.take() {
            Some(partial) if partial.is_continued_by(&response) => Partial { is_pieced: true, ..partial },
            Some(_) if response.status() != StatusCode::OK => return Err(not_continued(url, &response)),
            _ => Partial::new(place, &response)
                .map_err(|e| Failed::Surely(full_hint(Error::io("write the download of", shown(url), e))))?,
        };
        refuse_if_full(host, url, response.content_length()).map_err(Failed::Surely)?;
        let expect = if begun.length == 0 { expect } else { Expect::Anything };
        let meter = Meter::new(host, url, begun.length, response.content_length());
        let (queue, writer) = start_writer(begun, shown(url));
        let sent = pump(url, response, expect, queue, meter, self.patience.trickle).await;
        let written = writer.await.map_err(|e| {
            Failed::Surely(Error::new(Code::Io, format!("the writer of {} failed", shown(url))).because(e))
        })?;
        // When the disk is full, the queue breaks as well; the disk is the cause that has to be told.
        let written = written.map_err(Failed::Surely)?;
        if let Err(failed) = sent {
            *partial = Some(written).filter(Partial::can_go_on);
            return Err(failed);
        }
        let digest = format!("{:x}", written.hash.finalize());
        if digest != sha256 {
            let error = Error::new(
                Code::ChecksumMismatch,
                format!("sha256 of {} is {digest}, expected {sha256}; nothing was kept", shown(url)),
            )
            .with_hint("run again, or correct the pin");
            // A server that does not keep its versions apart may have given pieces of two.
            return Err(if written.is_pieced { Failed::Maybe(error, None) } else { Failed::Surely(error) });
        }
        let (temp, place) = (written.temp, place.to_owned());
        let to = place.clone();
        let kept = tokio::task::spawn_blocking(move || keep(temp, &to)).await.map_err(io::Error::other);
        kept.and_then(|kept| kept).map_err(|e| Failed::Surely(full_hint(Error::io("keep", place, e))))
    }

    /// A successful answer to GET, redirects followed; where something is there already, any answer to the question
    /// for the rest of it.
    async fn open(&self, url: &Url, partial: Option<&Partial>) -> Result<Response, Failed> {
        let mut headers = HeaderMap::new();
        if let Some((partial, validator)) = partial.and_then(|p| Some((p, p.validator.clone()?)))
            && let Ok(rest) = HeaderValue::try_from(format!("bytes={}-", partial.length))
        {
            headers.extend([(RANGE, rest), (IF_RANGE, validator)]);
        }
        let (at, response) = self.answer(url, headers).await?;
        accept(&at, response, partial.is_some())
    }

    /// The answer to GET with these headers, redirects followed, and where it came from.
    async fn answer(&self, url: &Url, headers: HeaderMap) -> Result<(Url, Response), Failed> {
        let http = self.http().map_err(Failed::Surely)?;
        let mut at = url.clone();
        for _ in 0..=MAX_REDIRECTS {
            fault::point(Kind::Fetch, at.as_str()).map_err(|e| unsent(&at, e))?;
            let response =
                http.get(at.clone()).headers(headers.clone()).send().await.map_err(|e| broken(&at, e))?;
            match redirect_target(&at, &response).map_err(Failed::Surely)? {
                Some(next) => at = next,
                None => return Ok((at, response)),
            }
        }
        Err(Failed::Surely(Error::new(
            Code::Fetch,
            format!("{} was redirected more than {MAX_REDIRECTS} times", shown(url)),
        )))
    }
}

impl Partial {
    /// Nothing yet of what `response` begins to bring, beside its later `place`.
    fn new(place: &Path, response: &Response) -> io::Result<Self> {
        fault::point(Kind::Create, place)?;
        let temp = tempfile::Builder::new()
            .prefix(PARTIAL_PREFIX)
            .permissions(fs::Permissions::from_mode(0o644))
            .tempfile_in(parent(place))?;
        let validator = validator(response.headers());
        Ok(Self { temp, hash: Sha256::new(), length: 0, validator, is_pieced: false })
    }

    /// Whether the next attempt may ask for the rest only.
    fn can_go_on(&self) -> bool {
        self.validator.is_some() && self.length >= AR_MAGIC.len() as u64
    }

    /// Whether the answer begins where this ends.
    fn is_continued_by(&self, response: &Response) -> bool {
        let said = response.headers().get(CONTENT_RANGE).and_then(|v| v.to_str().ok());
        let range = said.and_then(content_range).map(|(range, _)| range);
        response.status() == StatusCode::PARTIAL_CONTENT && range.is_some_and(|r| r.start == self.length)
    }
}

/// What names a version of a file for certain: a strong `ETag`, or the time of its last change.
fn validator(headers: &HeaderMap) -> Option<HeaderValue> {
    let strong = headers.get(ETAG).filter(|tag| !tag.as_bytes().starts_with(b"W/"));
    strong.or_else(|| headers.get(LAST_MODIFIED)).cloned()
}

/// `bytes 0-99/1000` as the range and the total, which may be unknown (`*`).
pub(crate) fn content_range(value: &str) -> Option<(Range<u64>, Option<u64>)> {
    let (range, total) = value.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    let total = if total == "*" { None } else { Some(total.parse().ok()?) };
    (first <= last).then_some((first..last.checked_add(1)?, total))
}

/// An answer to the question for the rest that has something else. The next attempt begins anew.
fn not_continued(url: &Url, response: &Response) -> Failed {
    let status = response.status();
    let text = format!("{} does not go on where its first part ended ({status})", shown(url));
    Failed::Maybe(Error::new(Code::Fetch, text), None)
}

/// A file that belongs into the cache.
pub(crate) struct Wanted {
    /// Where it is fetched from.
    pub(crate) url: Url,
    /// In small letters.
    pub(crate) sha256: String,
    /// Its place in the cache, inside the root.
    pub(crate) inside: PathBuf,
    /// The same, outside.
    pub(crate) place: PathBuf,
    /// Whether it is there, with the right bytes.
    pub(crate) is_there: bool,
}

/// Attempts left, and the wait before the next.
struct Budget {
    left: u32,
    backoff: Backoff,
    /// The most bytes that were ever there.
    reached: u64,
}

impl Budget {
    fn new() -> Self {
        Self { left: ATTEMPTS - 1, backoff: Backoff::new(FIRST_WAIT, LONGEST_WAIT), reached: 0 }
    }

    /// Waits if there is to be another attempt, and tells `say` what for; returns the error if not. `reached` is the
    /// number of bytes that need not be fetched again.
    async fn wait_after(&mut self, failed: Failed, reached: u64, say: impl Fn(Progress)) -> Result<()> {
        let (error, asked) = match failed {
            Failed::Surely(error) => return Err(error),
            Failed::Maybe(error, asked) => (error, asked),
        };
        if reached >= self.reached + PROOF {
            *self = Self { reached, ..Self::new() };
        }
        let wait = asked.unwrap_or_else(|| self.backoff.next_wait());
        if self.left == 0 || wait > LONGEST_ASKED_WAIT {
            return Err(error);
        }
        self.left -= 1;
        tracing::info!(error = %error, wait_ms = wait.as_millis(), "trying the download again");
        say(waiting(error.message(), wait));
        tokio::time::sleep(wait).await;
        Ok(())
    }
}

/// What is said while a server is given time; `why` names it.
pub(crate) fn waiting(why: &str, wait: Duration) -> Progress {
    Progress {
        what: "waiting to try again".into(),
        item: why.to_owned(),
        done: 0,
        total: Some(wait.as_secs()),
        unit: Unit::Seconds,
    }
}

/// Tells a body that trickles from one that is only slow.
pub(crate) struct Trickle {
    limit: Duration,
    since: Instant,
    bytes: u64,
}

impl Trickle {
    /// Nothing has come yet.
    pub(crate) fn new(limit: Duration) -> Self {
        Self { limit, since: Instant::now(), bytes: 0 }
    }

    /// Takes note of bytes that have come from `url`; fails where next to none have for too long.
    pub(crate) fn add(&mut self, url: &Url, count: usize) -> Result<(), Failed> {
        self.bytes += count as u64;
        if self.since.elapsed() < self.limit {
            return Ok(());
        }
        let came = std::mem::take(&mut self.bytes);
        self.since = Instant::now();
        if came >= TRICKLE {
            return Ok(());
        }
        let text = format!("{} brought {came} bytes in {} s", shown(url), self.limit.as_secs_f64());
        Err(Failed::Maybe(Error::new(Code::Fetch, text), None))
    }
}

/// The end of every patience.
pub(crate) fn out_of_time(what: &str, limit: Duration) -> Error {
    Error::new(Code::Fetch, format!("{what} was not there after {} s", limit.as_secs_f64()))
        .with_hint("use a nearer mirror, or see what slows the network down; then run again")
}

/// The URL as it may be shown: without user, password, query and fragment, any of which may be a secret.
pub fn redact_url(url: &str) -> String {
    // `user:password@host` without a scheme parses as scheme `user`, so only hierarchical URLs count as parsed.
    if let Ok(parsed) = Url::parse(url)
        && parsed.has_host()
    {
        return shown(&parsed);
    }
    let bare = url.split(['?', '#']).next().unwrap_or_default();
    match bare.rsplit_once('@') {
        Some((before, host)) => {
            let scheme = before.split_once("://").map_or(String::new(), |(s, _)| format!("{s}://"));
            format!("{scheme}{host}")
        }
        None => bare.to_owned(),
    }
}

pub(crate) fn shown(url: &Url) -> String {
    let mut bare = url.clone();
    bare.set_query(None);
    bare.set_fragment(None);
    // Both fail only for URLs that cannot have a user part.
    let _ = bare.set_username("");
    let _ = bare.set_password(None);
    bare.to_string()
}

/// The URL, if it is one that can be fetched.
pub(crate) fn parse(url: &str) -> Result<Url> {
    let parsed = parse_url(url)
        .map_err(|why| Error::new(Code::Fetch, format!("{} is not a URL: {why}", redact_url(url))))?;
    if matches!(parsed.scheme(), "http" | "https") {
        return Ok(parsed);
    }
    Err(Error::new(Code::Fetch, format!("{} is neither http nor https", shown(&parsed))))
}

/// Where a redirect leads, if the answer is one.
pub(crate) fn redirect_target(from: &Url, response: &Response) -> Result<Option<Url>> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let location = response.headers().get(LOCATION).and_then(|l| l.to_str().ok());
    let next = match location.map(|l| from.join(l)) {
        Some(Ok(next)) => next,
        Some(Err(UrlError::IdnaError)) => {
            return Err(Error::new(
                Code::Fetch,
                format!("{} was redirected to a host name that is not in ASCII", shown(from)),
            )
            .with_hint("name the final address in the configuration, with the host name as xn--…"));
        }
        Some(Err(_)) | None => {
            return Err(Error::new(Code::Fetch, format!("{} was redirected to nowhere", shown(from))));
        }
    };
    check_redirect(from, &next)?;
    Ok(Some(next))
}

fn check_redirect(from: &Url, to: &Url) -> Result<()> {
    match (from.scheme(), to.scheme()) {
        (_, "https") | ("http", "http") => Ok(()),
        ("https", "http") => Err(Error::new(
            Code::InsecureRedirect,
            format!("{} was redirected to {}, which is not encrypted", shown(from), shown(to)),
        )
        .with_hint("name the final https address in the configuration, or ask who runs the mirror")),
        (_, other) => {
            Err(Error::new(Code::Fetch, format!("{} was redirected to a {other} address", shown(from))))
        }
    }
}

/// The answer if it is a success (for a rest: or about it), otherwise what its status means.
fn accept(url: &Url, response: Response, is_rest: bool) -> Result<Response, Failed> {
    match response.status() {
        StatusCode::OK => Ok(response),
        StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE if is_rest => Ok(response),
        _ => Err(refused(url, &response)),
    }
}

/// What an answer that is no success means.
pub(crate) fn refused(url: &Url, response: &Response) -> Failed {
    let status = response.status();
    let failed = |code| Error::new(code, format!("{} answered {status}", shown(url)));
    match status.as_u16() {
        401 | 403 => Failed::Surely(failed(Code::FetchDenied).with_hint(
            "the server wants a login, or a signed URL has expired; put the file where this machine may read it",
        )),
        407 => Failed::Surely(failed(Code::FetchDenied).with_hint(
            "the proxy wants a login: put it into https_proxy (http://user:password@proxy:port)",
        )),
        404 | 410 => Failed::Surely(Error::new(
            Code::Fetch,
            format!("{} does not exist ({status})", shown(url)),
        )),
        408 | 425 | 429 | 500..=599 => {
            let asked = response.headers().get(RETRY_AFTER).and_then(|v| v.to_str().ok());
            let asked = asked.and_then(|v| retry_after(v, jiff::Timestamp::now()));
            Failed::Maybe(failed(Code::Fetch), asked)
        }
        _ => Failed::Surely(failed(Code::Fetch)),
    }
}

/// A connection that failed or broke. reqwest's own text is kept as cause, without the URL, which may hold secrets.
pub(crate) fn broken(url: &Url, e: reqwest::Error) -> Failed {
    let e = e.without_url();
    let error = Error::new(Code::Fetch, format!("cannot download {}", shown(url)));
    if is_certificate_problem(&e) {
        return Failed::Surely(error.because(e).with_hint(
            "check the clock; where a proxy inspects TLS, name its certificate by AWS_CA_BUNDLE or SSL_CERT_FILE",
        ));
    }
    Failed::Maybe(error.because(e), None)
}

/// A request that did not even leave this machine.
pub(crate) fn unsent(url: &Url, e: io::Error) -> Failed {
    Failed::Maybe(Error::new(Code::Fetch, format!("cannot download {}", shown(url))).because(e), None)
}

/// Whether the other side's certificate was refused, which no other attempt will change.
fn is_certificate_problem(e: &(dyn StdError + 'static)) -> bool {
    if let Some(tls) = e.downcast_ref::<rustls::Error>() {
        return matches!(tls, rustls::Error::InvalidCertificate(_));
    }
    // An io::Error does not name the error it wraps as its source, but that error's source.
    let wrapped = e.downcast_ref::<io::Error>().and_then(|io| io.get_ref());
    match (wrapped, e.source()) {
        (Some(inner), _) => is_certificate_problem(inner),
        (None, Some(source)) => is_certificate_problem(source),
        (None, None) => false,
    }
}

/// Refuses a download that the disk has no room for.
pub(crate) fn refuse_if_full(host: &Host, url: &Url, length: Option<u64>) -> Result<()> {
    let Some(length) = length else { return Ok(()) };
    let free = host.files.free_bytes(paths::CACHE_DIR)?;
    if length <= free {
        return Ok(());
    }
    Err(full_hint(Error::new(
        Code::DiskFull,
        format!(
            "{} has {length} bytes, but only {free} are free where {} lies",
            shown(url),
            paths::CACHE_DIR
        ),
    )))
}

/// Hands the body to the writer, chunk by chunk, and says how far it has come.
async fn pump(
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

/// Starts the thread that hashes and writes what comes through the queue; it ends with the queue.
fn start_writer(begun: Partial, url: String) -> (mpsc::Sender<Vec<u8>>, JoinHandle<Result<Partial>>) {
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

/// Gives a verified download its name, durably.
fn keep(temp: NamedTempFile, place: &Path) -> io::Result<()> {
    fault::point(Kind::Sync, place)?;
    temp.as_file().sync_all()?;
    fault::point(Kind::Rename, place)?;
    temp.persist(place).map_err(|e| e.error)?;
    fault::point(Kind::Sync, parent(place))?;
    File::open(parent(place))?.sync_all()
}

/// What a download is called while it goes on: by the file's name, or else the host's.
pub(crate) fn downloading(url: &Url) -> String {
    let name = url.path_segments().and_then(|mut s| s.next_back()).filter(|n| !n.is_empty());
    format!("downloading {}", name.or(url.host_str()).unwrap_or_default())
}

/// Whether the cache holds the file already, by its bytes; one with a wrong sum is removed.
async fn holds(host: &Host, inside: &Path, place: &Path, sha256: &str) -> Result<bool> {
    if !host.files.exists(inside)? {
        return Ok(false);
    }
    let path = place.to_owned();
    let digest = tokio::task::spawn_blocking(move || hash_file(&path))
        .await
        .map_err(|e| Error::new(Code::Io, format!("hashing {} failed", inside.display())).because(e))?
        .map_err(|e| Error::io("hash", inside, e))?;
    if digest == sha256 {
        return Ok(true);
    }
    tracing::warn!(path = %inside.display(), digest, "a cached file has changed; fetching it again");
    host.files.remove(inside)?;
    Ok(false)
}

/// SHA-256 of a file, in lower-case hexadecimal digits.
fn hash_file(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(format!("{:x}", hash.finalize())),
            n => hash.update(&buffer[..n]),
        }
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

/// Adds what to do about a full disk.
pub(crate) fn full_hint(e: Error) -> Error {
    if e.code() == Code::DiskFull {
        return e
            .with_hint(format!("make room where {} lies, or use a larger root volume", paths::CACHE_DIR));
    }
    e
}

/// Says how far a download has come, not too often.
struct Meter<'a> {
    host: &'a Host,
    what: String,
    done: u64,
    total: Option<u64>,
    said: Instant,
}

impl<'a> Meter<'a> {
    /// `done` bytes are there already, and `rest` are to come.
    fn new(host: &'a Host, url: &Url, done: u64, rest: Option<u64>) -> Self {
        let what = downloading(url);
        let meter = Self { host, what, done, total: rest.map(|rest| done + rest), said: Instant::now() };
        meter.say();
        meter
    }

    fn add(&mut self, bytes: usize) {
        self.done += bytes as u64;
        if self.said.elapsed() >= PROGRESS_EVERY {
            self.said = Instant::now();
            self.say();
        }
    }

    fn finish(&self) {
        self.say();
    }

    fn say(&self) {
        self.host.progress(Progress {
            what: self.what.clone(),
            item: String::new(),
            done: self.done,
            total: self.total,
            unit: Unit::Bytes,
        });
    }
}

/// A builder with our TLS and the given roots. HTTP/1.1, because parallel downloads over one HTTP/2 connection
/// would share one connection's throughput.
pub(crate) fn builder(roots: RootCertStore) -> Result<reqwest::ClientBuilder> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::new(Code::Fetch, "cannot set up TLS").because(e))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .http1_only()
        .referer(false)
        .user_agent(concat!("gpu-bootstrap/", env!("CARGO_PKG_VERSION"))))
}

/// A builder for a client of plain http only: no certificate is trusted, and none is read.
pub(crate) fn client_without_roots() -> Result<reqwest::ClientBuilder> {
    builder(RootCertStore::empty())
}

/// webpki's roots, the system's where there are any, and those of `extra`. A bare instance may lack
/// ca-certificates; a company's own authority is in the system's store or in the extra file.
pub(crate) fn roots(extra: Option<&Path>) -> Result<RootCertStore> {
    let mut store = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    let native = rustls_native_certs::load_native_certs();
    store.add_parsable_certificates(native.certs);
    for e in native.errors {
        warn_once(&e);
    }
    let Some(path) = extra else { return Ok(store) };
    let unusable = |why| {
        Error::new(Code::Fetch, format!("cannot use the certificates in {}", path.display()))
            .with_hint("correct or unset AWS_CA_BUNDLE")
            .because(why)
    };
    let certificates: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|e| unusable(Box::<dyn StdError + Send + Sync>::from(e.to_string())))?;
    let (added, _) = store.add_parsable_certificates(certificates);
    if added == 0 {
        return Err(unusable("it holds no certificate in PEM form".into()));
    }
    Ok(store)
}

/// The resolver cannot read a search domain outside ASCII ([`parse_url`] says why), and then asks public servers instead
/// of the machine's own.
fn warn_of_search_domains() {
    const FILE: &str = "/etc/resolv.conf";
    if fs::read(FILE).is_ok_and(|text| has_foreign_search_domain(&text)) {
        tracing::warn!(
            "{FILE} names a search domain that is not in ASCII, so public name servers are asked; write it as xn--…"
        );
    }
}

fn has_foreign_search_domain(resolv_conf: &[u8]) -> bool {
    let names_one = |line: &[u8]| line.starts_with(b"search") || line.starts_with(b"domain");
    resolv_conf.split(|byte| *byte == b'\n').any(|line| names_one(line.trim_ascii()) && !line.is_ascii())
}

fn warn_once(e: &rustls_native_certs::Error) {
    static SAID: Once = Once::new();
    SAID.call_once(|| tracing::warn!(error = %e, "cannot read all of the system's root certificates"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shown_urls_hold_no_secret() {
        for (url, expected) in [
            ("https://user:geheim@host/p/x.deb?X-Amz-Signature=geheim#geheim", "https://host/p/x.deb"),
            ("https://host:8443/x.deb", "https://host:8443/x.deb"),
            ("//user:geheim@host/x?geheim", "host/x"),
            ("http://user:geheim@[bad/x?geheim", "http://[bad/x"),
            ("user:geheim@host/x.deb", "host/x.deb"),
            ("x.deb", "x.deb"),
        ] {
            assert_eq!(redact_url(url), expected);
        }
    }

    #[test]
    fn encryption_is_never_lost_on_the_way() {
        let url = |u: &str| Url::parse(u).unwrap();
        assert!(check_redirect(&url("http://a/"), &url("http://b/")).is_ok());
        assert!(check_redirect(&url("http://a/"), &url("https://b/")).is_ok());
        assert!(check_redirect(&url("https://a/"), &url("https://b/")).is_ok());
        let e = check_redirect(&url("https://a/x?s=geheim"), &url("http://b/?s=geheim")).unwrap_err();
        assert_eq!(e.code(), Code::InsecureRedirect);
        assert!(!e.message().contains("geheim"));
        assert_eq!(
            check_redirect(&url("https://a/"), &url("file:///etc/shadow")).unwrap_err().code(),
            Code::Fetch
        );
    }

    #[test]
    fn a_host_name_outside_ascii_is_refused_with_the_mend() {
        for url in ["https://bücher.example/x", "https://b%C3%BCcher.example/x"] {
            assert_eq!(parse_url(url).unwrap_err(), "the host name is not in ASCII; write it as xn--…");
            assert!(parse(url).unwrap_err().message().contains("write it as xn--…"));
        }
        let ascii = parse("https://xn--bcher-kva.example/%C3%BC").unwrap();
        assert_eq!(ascii.as_str(), "https://xn--bcher-kva.example/%C3%BC");
    }

    #[test]
    fn a_search_domain_outside_ascii_is_noticed() {
        assert!(has_foreign_search_domain("nameserver 10.0.0.2\n search bücher.example\n".as_bytes()));
        let ascii =
            "# für xn--bcher-kva.example\nsearch ec2.internal xn--bcher-kva.example\nnameserver 10.0.0.2\n";
        assert!(!has_foreign_search_domain(ascii.as_bytes()));
    }

    #[test]
    fn only_http_is_fetched() {
        assert_eq!(parse("ftp://host/x").unwrap_err().code(), Code::Fetch);
        assert_eq!(parse("/etc/passwd").unwrap_err().code(), Code::Fetch);
    }

    #[test]
    fn a_refused_certificate_is_found_below_io_errors() {
        let tls = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let outer = io::Error::other(io::Error::new(io::ErrorKind::InvalidData, tls));
        assert!(is_certificate_problem(&outer));
        assert!(!is_certificate_problem(&io::Error::from(io::ErrorKind::ConnectionRefused)));
    }

    #[test]
    fn an_empty_bundle_is_an_error_that_names_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let e = roots(Some(file.path())).unwrap_err();
        assert!(e.message().contains(&file.path().display().to_string()));
        assert!(roots(Some(Path::new("/nonexistent/bundle.pem"))).is_err());
    }
}
