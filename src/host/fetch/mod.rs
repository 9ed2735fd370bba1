//! Downloads: bytes into memory (bounded) or into the cache (hashed while streaming). Used by the actions, and
//! for its HTTP client by the CloudWatch report. What it knows of servers (what is final, what is worth another
//! attempt, which redirects are followed, what may be shown of a URL) also serves `install::fetch`.
//!
//! What goes wrong on the way is retried within a budget; what a server means is not. A download into the cache that
//! breaks goes on where it broke, if the server says by which version it may. Nothing that does not have the expected
//! SHA-256 ever gets a name in the cache. `docs/network-faults.md` lists what can go wrong.

mod address;
mod answer;
mod client;
mod partial;
mod patience;
mod post;

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use reqwest::header::{CONTENT_RANGE, HeaderMap, HeaderValue, IF_RANGE, RANGE};
use reqwest::{Response, StatusCode, Url};
use sha2::{Digest, Sha256};

pub use self::address::redact_url;
pub(crate) use self::address::{downloading, parse, redact_text, shown};
use self::answer::accept;
pub(crate) use self::answer::{Failed, broken, content_range, redirect_target, refused, unsent};
use self::client::warn_of_search_domains;
pub(crate) use self::client::{builder, client_without_roots, roots};
pub(crate) use self::partial::PARTIAL_PREFIX;
use self::partial::{AR_MAGIC, Expect, Meter, Partial, keep, not_continued, pump, start_writer};
use self::patience::Budget;
pub use self::patience::Patience;
pub(crate) use self::patience::{
    ATTEMPTS, FIRST_WAIT, LONGEST_ASKED_WAIT, LONGEST_WAIT, PROOF, Trickle, out_of_time, waiting,
};
use super::fault::{self, Kind};
use super::{Host, paths, proxy};
use crate::error::{Code, Error, Result};

/// Redirects followed; mirrors and object stores need one or two.
pub(crate) const MAX_REDIRECTS: u32 = 5;

/// The HTTP client of the agent, made on first use (reading root certificates takes milliseconds).
#[derive(Debug, Default)]
pub struct Fetch {
    http: OnceLock<reqwest::Client>,
    extra_roots: Option<PathBuf>,
    patience: Patience,
    swept: OnceLock<()>,
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

/// Adds what to do about a full disk.
pub(crate) fn full_hint(e: Error) -> Error {
    if e.code() == Code::DiskFull {
        return e
            .with_hint(format!("make room where {} lies, or use a larger root volume", paths::CACHE_DIR));
    }
    e
}
