//! The instance metadata client (IMDSv2 only). Used by facts (identity and user-data) and by the CloudWatch
//! report (credentials).
//!
//! EC2 counts and throttles metadata requests per instance, so the client keeps one connection, asks for named
//! items only, and counts what it sends. It never goes through a proxy (the address is link-local), never
//! follows a redirect, and never falls back to `IMDSv1`.

mod endpoint;
mod kept;
mod verdict;

use std::pin::pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock, PoisonError};
use std::time::Duration;

use futures_util::future::{Either, select};
use reqwest::header::{HeaderValue, RETRY_AFTER};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout, timeout_at};

pub use endpoint::Endpoint;
use kept::Kept;
#[cfg(any(test, fuzzing))]
pub(crate) use kept::fuzz;
use verdict::{Kind, Verdict, verdict};

use crate::error::{Code, Error, Result};
use crate::host::fault;
use crate::host::fetch::client_without_roots;
use crate::host::files::Files;
use crate::host::retry::{Backoff, retry_after};

/// Below `/latest/`; tokens exist in no other version of the interface.
const TOKEN_PATH: &str = "api/token";
/// The longest life that EC2 grants a token: one token serves a whole run.
const TOKEN_TTL_SECONDS: &str = "21600";
/// The service is one hop away: a connection that takes longer is not going to be made.
const CONNECT: Duration = Duration::from_secs(1);
/// Silence after which an attempt is given up.
const READ: Duration = Duration::from_secs(2);
/// A whole attempt, so that a server that sends a byte at a time cannot hold us.
const ATTEMPT: Duration = Duration::from_secs(3);
/// How long IPv4 is waited for before IPv6 is asked as well (RFC 6555's order of magnitude; cloud-init's value).
const STAGGER: Duration = Duration::from_millis(150);
/// Waits between attempts.
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// Kept of the deadline for a last attempt, so that a long wait does not end it early.
const LAST_ATTEMPT: Duration = Duration::from_millis(250);
/// EC2 limits user-data, the largest item, to 16 KiB; whatever sends more than this is not EC2.
const MAX_ANSWER: usize = 1 << 20;

/// A client of the instance metadata service. Cloning is not offered: [`Client::renewed`] makes a handle with
/// a deadline of its own over the same connection, token and count.
#[derive(Debug)]
pub struct Client {
    shared: Arc<Shared>,
    limit: Duration,
    ends: OnceLock<Instant>,
}

#[derive(Debug)]
struct Shared {
    endpoint: Endpoint,
    http: OnceLock<reqwest::Client>,
    /// The base URL that gave the first token.
    base: OnceLock<String>,
    /// The token, marked sensitive so that `Debug` hides it. Held for a whole request: that is what keeps it to
    /// one connection.
    token: Mutex<Option<HeaderValue>>,
    requests: AtomicU32,
    /// What the units of this boot share; not for runs by hand.
    kept: std::sync::Mutex<Option<Kept>>,
}

/// One HTTP answer.
struct Answer {
    status: reqwest::StatusCode,
    retry_after: Option<Duration>,
    body: Vec<u8>,
    base: String,
}

/// Why an attempt brought no answer.
enum Missed {
    /// Not reached, or the connection broke: worth another attempt.
    Transport(Box<dyn std::error::Error + Send + Sync>),
    /// An answer that no other attempt would better.
    Final(Error),
}

impl Client {
    /// A client of `endpoint` that gives up `limit` after its first request. Makes no request yet.
    pub fn new(endpoint: Endpoint, limit: Duration) -> Self {
        let shared = Shared {
            endpoint,
            http: OnceLock::new(),
            base: OnceLock::new(),
            token: Mutex::new(None),
            requests: AtomicU32::new(0),
            kept: std::sync::Mutex::default(),
        };
        Self { shared: Arc::new(shared), limit, ends: OnceLock::new() }
    }

    /// The client that the process's environment asks for, by the AWS SDKs' names; `None` when metadata is
    /// disabled there. `limit` is 300 s at boot and 5 s for a run by hand.
    pub fn from_env(limit: Duration) -> Result<Option<Self>> {
        let endpoint = Endpoint::from_lookup(|name| std::env::var(name).ok())?;
        Ok(endpoint.map(|e| Self::new(e, limit)))
    }

    /// Another handle on the same connection, token and count, that gives up `limit` after its own first request.
    #[must_use]
    pub fn renewed(&self, limit: Duration) -> Self {
        Self { shared: Arc::clone(&self.shared), limit, ends: OnceLock::new() }
    }

    /// Takes from `files` what another unit was told in this boot, and leaves there what this one is told.
    #[must_use]
    pub fn sharing(self, files: Files) -> Self {
        match Kept::open(files, self.shared.endpoint.describe()) {
            Ok(kept) => *self.kept() = Some(kept),
            Err(error) => tracing::warn!("{error}; metadata is not shared with other units"),
        }
        self
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Option<Kept>> {
        self.shared.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What an item said turned out to be no answer: no other unit takes it for one.
    pub fn forget(&self, path: &str) {
        if let Some(kept) = self.kept().as_mut() {
            kept.forget(path);
        }
    }

    /// Where the service is.
    pub fn endpoint(&self) -> &Endpoint {
        &self.shared.endpoint
    }

    /// Requests sent so far, each attempt counted.
    pub fn requests(&self) -> u32 {
        self.shared.requests.load(Ordering::Relaxed)
    }

    /// The URL of an item, for messages and as a fact's source.
    pub fn url(&self, path: &str) -> String {
        let kept = self.kept().as_ref().and_then(|kept| kept.url(path));
        kept.unwrap_or_else(|| item_url(self.base(), path))
    }

    /// The address that answered, or before that the one that is asked first.
    fn base(&self) -> &str {
        match (self.shared.base.get(), &self.shared.endpoint) {
            (Some(base), _)
            | (None, Endpoint::Race { v4: base, .. } | Endpoint::Fixed(base) | Endpoint::Explicit(base)) => {
                base
            }
        }
    }

    /// `GET /latest/<path>`; `None` when the service answers 404 (the item does not exist).
    pub async fn get(&self, path: &str) -> Result<Option<Vec<u8>>> {
        if let Some(item) = self.kept().as_ref().and_then(|kept| kept.get(path)) {
            return Ok(item.into_option());
        }
        let asked = kept::boot_time();
        let body = self.ask(path).await?;
        if let Some(kept) = self.kept().as_mut() {
            kept.put(path, item_url(self.base(), path), asked, body.as_deref());
        }
        Ok(body)
    }

    async fn ask(&self, path: &str) -> Result<Option<Vec<u8>>> {
        let mut held = self.shared.token.lock().await;
        if let Some(item) = self.item(&mut held, path).await? {
            return Ok(item.into_option());
        }
        tracing::debug!(path, "the metadata token was refused; asking for a new one");
        *held = None;
        match self.item(&mut held, path).await? {
            Some(item) => Ok(item.into_option()),
            None => Err(Error::new(
                Code::MetadataInvalid,
                format!("the metadata service refuses the token it has just given, for {}", self.url(path)),
            )
            .with_hint(
                "look for something that answers in its place, such as a metadata proxy for containers",
            )),
        }
    }

    /// Asks for an item with the token that is held, or a new one; `None` when the token is refused.
    async fn item(&self, held: &mut Option<HeaderValue>, path: &str) -> Result<Option<Item>> {
        let token = match held {
            Some(token) => token.clone(),
            None => held.insert(self.new_token().await?).clone(),
        };
        let answer = self.persist(Kind::Item, path, Some(&token)).await?;
        match verdict(Kind::Item, answer.status.as_u16()) {
            Verdict::Take => Ok(Some(Item::There(answer.body))),
            Verdict::Absent => Ok(Some(Item::Absent)),
            Verdict::TokenRefused => Ok(None),
            other => Err(refusal(other, &self.url(path), answer.status)),
        }
    }

    /// Asks for a token, and keeps to the address that gave it.
    async fn new_token(&self) -> Result<HeaderValue> {
        let answer = self.persist(Kind::Token, TOKEN_PATH, None).await?;
        let url = item_url(&answer.base, TOKEN_PATH);
        match verdict(Kind::Token, answer.status.as_u16()) {
            Verdict::Take => {}
            other => return Err(refusal(other, &url, answer.status)),
        }
        let token = header_from(&answer.body).ok_or_else(|| {
            Error::new(Code::MetadataInvalid, format!("PUT {url} answered with something that is no token"))
                .with_hint("look for something that answers in the metadata service's place")
        })?;
        self.shared.base.get_or_init(|| answer.base);
        Ok(token)
    }

    /// Repeats a request until there is an answer other than "later", or the deadline has come.
    async fn persist(&self, kind: Kind, path: &str, token: Option<&HeaderValue>) -> Result<Answer> {
        let ends = *self.ends.get_or_init(|| Instant::now() + self.limit);
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        let mut last: Box<dyn std::error::Error + Send + Sync> = "no attempt was finished".into();
        loop {
            let mut asked = None;
            match timeout_at(ends, self.attempt(path, token)).await {
                Err(_elapsed) => return Err(self.unreachable(last)),
                Ok(Err(Missed::Final(e))) => return Err(e),
                Ok(Err(Missed::Transport(e))) => last = e,
                Ok(Ok(answer)) if verdict(kind, answer.status.as_u16()) != Verdict::Later => {
                    return Ok(answer);
                }
                Ok(Ok(answer)) => {
                    asked = answer.retry_after;
                    last = format!("{} answered {}", item_url(&answer.base, path), answer.status).into();
                }
            }
            let left = ends.saturating_duration_since(Instant::now());
            let wait = asked.unwrap_or_else(|| backoff.next_wait().min(left.saturating_sub(LAST_ATTEMPT)));
            if left <= LAST_ATTEMPT || wait >= left {
                return Err(self.unreachable(last));
            }
            tracing::debug!(path, wait_ms = wait.as_millis(), cause = %last, "asking the metadata service again");
            tokio::time::sleep(wait).await;
        }
    }

    /// One attempt. A token is asked of both addresses as long as neither has given one.
    async fn attempt(&self, path: &str, token: Option<&HeaderValue>) -> Result<Answer, Missed> {
        match (&self.shared.endpoint, self.shared.base.get()) {
            (Endpoint::Race { v4, v6 }, None) => self.race(v4, v6, path).await,
            _ => self.send(self.base(), path, token).await,
        }
    }

    /// Asks IPv4 first and, when it fails or is slow, IPv6 as well; the first good answer wins.
    async fn race(&self, v4: &str, v6: &str, path: &str) -> Result<Answer, Missed> {
        let mut first = pin!(self.send(v4, path, None));
        match timeout(STAGGER, &mut first).await {
            // Whatever it says, it is the service that says it.
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(no_v4)) => return self.send(v6, path, None).await.map_err(|_also_failed| no_v4),
            Err(_slow) => {}
        }
        match select(first, pin!(self.send(v6, path, None))).await {
            Either::Left((left, right)) => either(left, right).await,
            Either::Right((right, left)) => either(right, left).await,
        }
    }

    async fn send(&self, base: &str, path: &str, token: Option<&HeaderValue>) -> Result<Answer, Missed> {
        let url = item_url(base, path);
        let http = self.http().map_err(Missed::Final)?;
        let request = match token {
            Some(token) => http.get(&url).header("X-aws-ec2-metadata-token", token),
            None => http.put(&url).header("X-aws-ec2-metadata-token-ttl-seconds", TOKEN_TTL_SECONDS),
        };
        self.shared.requests.fetch_add(1, Ordering::Relaxed);
        fault::point(fault::Kind::Fetch, &url).map_err(|e| Missed::Transport(e.into()))?;
        let mut response = request.send().await.map_err(|e| Missed::Transport(e.into()))?;
        let status = response.status();
        tracing::debug!(url, %status, "metadata");
        let wait = response.headers().get(RETRY_AFTER).and_then(|v| v.to_str().ok());
        let wait = wait.and_then(|v| retry_after(v, jiff::Timestamp::now()));
        let mut body = Vec::new();
        // Error pages are read to their end, too, though never parsed: it keeps the connection.
        while let Some(chunk) = response.chunk().await.map_err(|e| Missed::Transport(e.into()))? {
            body.extend_from_slice(&chunk);
            if body.len() > MAX_ANSWER {
                return Err(Missed::Final(Error::new(
                    Code::MetadataInvalid,
                    format!("{url} answered with more than {MAX_ANSWER} bytes"),
                )));
            }
        }
        Ok(Answer { status, retry_after: wait, body, base: base.to_owned() })
    }

    fn http(&self) -> Result<&reqwest::Client> {
        if let Some(http) = self.shared.http.get() {
            return Ok(http);
        }
        let built = client_without_roots()?
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .http1_only()
            .pool_max_idle_per_host(1)
            .connect_timeout(CONNECT)
            .read_timeout(READ)
            .timeout(ATTEMPT)
            .build()
            .map_err(|e| {
                Error::new(Code::MetadataUnreachable, "cannot set up the metadata client").because(e)
            })?;
        Ok(self.shared.http.get_or_init(|| built))
    }

    fn unreachable(&self, last: Box<dyn std::error::Error + Send + Sync>) -> Error {
        Error::new(
            Code::MetadataUnreachable,
            format!(
                "the metadata service at {} did not answer within {} s",
                self.shared.endpoint.describe(),
                self.limit.as_secs_f64()
            ),
        )
        .with_hint(
            "check that no firewall rule blocks 169.254.169.254 and that the instance's metadata endpoint is \
             enabled; --no-imds goes on without it",
        )
        .because(last)
    }
}

/// An item's state.
#[derive(Debug, PartialEq, Eq)]
enum Item {
    There(Vec<u8>),
    Absent,
}

impl Item {
    fn into_option(self) -> Option<Vec<u8>> {
        match self {
            Self::There(bytes) => Some(bytes),
            Self::Absent => None,
        }
    }
}

/// The better of two answers, of which one has come: a good one at once, otherwise what the other brings.
async fn either(
    come: Result<Answer, Missed>,
    other: impl Future<Output = Result<Answer, Missed>>,
) -> Result<Answer, Missed> {
    match come {
        Ok(answer) if answer.status.is_success() => Ok(answer),
        Ok(answer) => Ok(other.await.ok().filter(|o| o.status.is_success()).unwrap_or(answer)),
        Err(missed) => other.await.map_err(|_also_failed| missed),
    }
}

fn item_url(base: &str, path: &str) -> String {
    format!("{base}/latest/{path}")
}

/// A token as a header value: printable, of a plausible length.
fn header_from(body: &[u8]) -> Option<HeaderValue> {
    let token = body.trim_ascii();
    if token.is_empty() || token.len() > 1024 || !token.iter().all(u8::is_ascii_graphic) {
        return None;
    }
    let mut value = HeaderValue::from_bytes(token).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// The error for an answer that is final and no success.
fn refusal(verdict: Verdict, url: &str, status: reqwest::StatusCode) -> Error {
    let (code, why, hint) = match verdict {
        Verdict::Disabled => (
            Code::MetadataDisabled,
            "metadata is switched off for this instance",
            "enable it with `aws ec2 modify-instance-metadata-options --instance-id … --http-endpoint enabled`, \
             or go on without it by --no-imds",
        ),
        Verdict::OurMistake => (
            Code::MetadataInvalid,
            "it finds our request for a token wrong",
            "this is a bug of gpu-bootstrap, or something else answers in the metadata service's place",
        ),
        Verdict::NoTokens => (
            Code::MetadataInvalid,
            "it gives no IMDSv2 tokens, and IMDSv1 is never used",
            "look for something that answers in the metadata service's place, such as an old emulator",
        ),
        _ => (
            Code::MetadataInvalid,
            "the metadata service never answers so",
            "look for something that answers in the metadata service's place",
        ),
    };
    Error::new(code, format!("{url} answered {status}: {why}")).with_hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_printable_and_short() {
        assert_eq!(header_from(b"AQAEAFTNrA4e==\n").unwrap(), "AQAEAFTNrA4e==");
        for bad in [&b""[..], b"two words", b"a\nb", "\u{e4}".as_bytes(), &[b'x'; 1025], b"<html> <p>"] {
            assert!(header_from(bad).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn debug_output_hides_the_token() {
        let client = Client::new(Endpoint::ec2(), READ);
        *client.shared.token.try_lock().unwrap() = header_from(b"secret-token");
        let shown = format!("{client:?}");
        assert!(shown.contains("Sensitive") && !shown.contains("secret-token"), "{shown}");
    }
}
