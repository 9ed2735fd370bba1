//! A bucket of S3: signed URLs for downloads, which the ordinary fetchers take, and the few requests that a bundle needs.
//! Used by `crate::bundle`.

use std::path::Path;
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{
    PercentEncodingMode, SignableBody, SignableRequest, SignatureLocation, SigningSettings,
    UriPathNormalizationMode, sign,
};
use aws_sigv4::sign::v4;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Method;
use reqwest::header::CONTENT_LENGTH;

use super::{Refusal, Refused, S3, Session, ask};
use crate::host::fetch::redact_url;
use crate::host::retry::Backoff;
use crate::text::parse_url;

/// A signed URL holds so long: the largest bundle over a slow line.
const VALID: Duration = Duration::from_hours(12);
/// Attempts at a request, and the waits between them.
const ATTEMPTS: u32 = 4;
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(8);
/// S3 takes no larger object in one request.
const LARGEST: u64 = 5 << 30;
/// Where S3 keeps the sum that an upload was sent with.
const SUM: &str = "x-amz-meta-sha256";
/// What S3 shall make a copy of by itself.
const COPY_SOURCE: &str = "x-amz-copy-source";
/// Names the region of a bucket, also in refusals.
const REGION: &str = "x-amz-bucket-region";

/// One bucket.
pub struct Bucket<'a> {
    session: &'a Session,
    name: String,
    region: String,
    /// With a slash at its end.
    base: String,
}

impl Session {
    /// A bucket, wherever its region is.
    pub async fn bucket(&self, name: &str) -> Result<Bucket<'_>, Refused> {
        let region = self.region(None)?.to_owned();
        let own = [S3.endpoint_variable(), super::ANY_ENDPOINT.to_owned()];
        let is_given = own.iter().any(|variable| self.environment.endpoint(variable).is_some());
        let mut bucket =
            Bucket { session: self, name: name.into(), base: self.base(name, &region).await?, region };
        if !is_given && let Some(region) = bucket.home().await? {
            bucket.base = self.base(name, &region).await?;
            bucket.region = region;
        }
        Ok(bucket)
    }

    /// By its own host name; where a dot in its name would break TLS, or where an endpoint is given, by a path.
    async fn base(&self, name: &str, region: &str) -> Result<String, Refused> {
        let endpoint = self.endpoint(&S3, region).await?;
        match endpoint.strip_prefix("https://s3") {
            Some(rest) if !name.contains('.') => Ok(format!("https://{name}.s3{rest}")),
            _ => Ok(format!("{endpoint}{name}/")),
        }
    }
}

impl Bucket<'_> {
    /// Another region than the one that was asked, if the bucket lies there.
    async fn home(&self) -> Result<Option<String>, Refused> {
        let url = self.signed(&Method::HEAD, "", &[], &[]).await?;
        let request = self.session.http()?.head(url);
        // Whatever stands in the way, the first real request meets it, too.
        let Ok(Ok(response)) = tokio::time::timeout(super::PATIENCE, request.send()).await else {
            return Ok(None);
        };
        let region = response.headers().get(REGION).and_then(|v| v.to_str().ok());
        Ok(region.filter(|r| super::endpoint::is_region(r) && *r != self.region).map(str::to_owned))
    }

    /// A URL by which an object can be had without further signing.
    pub async fn url(&self, key: &str) -> Result<String, Refused> {
        self.signed(&Method::GET, key, &[], &[]).await
    }

    /// The keys that begin with `prefix`.
    pub async fn list(&self, prefix: &str) -> Result<Vec<String>, Refused> {
        let mut keys = Vec::new();
        let mut after = String::new();
        loop {
            // Few enough for one answer.
            let mut query = vec![("list-type", "2"), ("max-keys", "100"), ("prefix", prefix)];
            if !after.is_empty() {
                query.push(("start-after", &after));
            }
            let (_, body) = self.request(Method::GET, "", &query, &[], None).await?;
            let text = String::from_utf8_lossy(&body).into_owned();
            let page: Vec<String> = elements(&text, "Key").map(unescaped).collect();
            let is_truncated = elements(&text, "IsTruncated").any(|t| t == "true");
            let last = page.last().cloned();
            keys.extend(page);
            match last {
                Some(last) if is_truncated => after = last,
                _ => return Ok(keys),
            }
        }
    }

    /// Whether an object was sent with this sum.
    pub async fn has(&self, key: &str, size: u64, sha256: &str) -> Result<bool, Refused> {
        let url = self.signed(&Method::HEAD, key, &[], &[]).await?;
        let sent = tokio::time::timeout(super::PATIENCE, self.session.http()?.head(url).send()).await;
        let Ok(Ok(response)) = sent else { return Ok(false) };
        let header = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok());
        Ok(response.status().is_success()
            && header(CONTENT_LENGTH.as_str()) == Some(&size.to_string())
            && header(SUM) == Some(sha256))
    }

    /// Sends a file. S3 itself compares the bytes that arrive with the sum.
    pub async fn put(&self, key: &str, file: &Path, size: u64, sha256: &[u8; 32]) -> Result<(), Refused> {
        if size > LARGEST {
            let text = format!("{} has {size} bytes; S3 takes 5 GiB in one request", file.display());
            return Err(Refused::new(Refusal::Invalid, text));
        }
        let hex = crate::text::hex(sha256);
        let sum = STANDARD.encode(sha256);
        let headers = [("x-amz-checksum-sha256", sum.as_str()), (SUM, hex.as_str())];
        self.request(Method::PUT, key, &[], &headers, Some((file, size))).await.map(drop)
    }

    /// Makes an object from another of this bucket, with the sum that it was sent with. The bytes do not leave S3.
    pub async fn copy(&self, from: &str, to: &str) -> Result<(), Refused> {
        let source = format!("/{}/{}", self.name, encoded(from, true));
        let headers = [(COPY_SOURCE, source.as_str())];
        let (_, body) = self.request(Method::PUT, to, &[], &headers, None).await?;
        if failed_after_all(&body) {
            let text = format!("s3://{}/{from} was not copied to {to}", self.name);
            return Err(Refused::new(Refusal::Temporary, text));
        }
        Ok(())
    }

    /// Removes an object.
    pub async fn remove(&self, key: &str) -> Result<(), Refused> {
        self.request(Method::DELETE, key, &[], &[], None).await.map(drop)
    }

    async fn request(
        &self,
        method: Method,
        key: &str,
        query: &[(&str, &str)],
        headers: &[(&str, &str)],
        file: Option<(&Path, u64)>,
    ) -> Result<(u16, Vec<u8>), Refused> {
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        let mut attempt = 1;
        loop {
            let refused = match self.request_once(&method, key, query, headers, file).await {
                Ok(answer) => return Ok(answer),
                Err(refused) => refused,
            };
            if refused.refusal != Refusal::Temporary || attempt == ATTEMPTS {
                return Err(refused);
            }
            attempt += 1;
            let wait = backoff.next_wait();
            tokio::time::sleep(refused.retry_after.map_or(wait, |asked| asked.min(LONGEST_WAIT))).await;
        }
    }

    async fn request_once(
        &self,
        method: &Method,
        key: &str,
        query: &[(&str, &str)],
        headers: &[(&str, &str)],
        file: Option<(&Path, u64)>,
    ) -> Result<(u16, Vec<u8>), Refused> {
        let url = self.signed(method, key, query, headers).await?;
        let mut request = self.session.http()?.request(method.clone(), &url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (status, answer) = if let Some((path, size)) = file {
            let file = tokio::fs::File::open(path).await.map_err(|e| {
                Refused::new(Refusal::Invalid, format!("{} cannot be read: {e}", path.display()))
            })?;
            let body = reqwest::Body::wrap_stream(chunks(file));
            // However slow the line is, no more than it takes.
            super::ask_within(S3.name, &url, request.header(CONTENT_LENGTH, size).body(body), VALID).await?
        } else {
            ask(S3.name, &url, request).await?
        };
        if (200..300).contains(&status) {
            return Ok((status, answer.body));
        }
        let refused = Refused::answer(S3.name, status, &answer.body, answer.retry_after, answer.server_time);
        Err(refused.with_advice(&format!("s3://{}/{key}", self.name)))
    }

    async fn signed(
        &self,
        method: &Method,
        key: &str,
        query: &[(&str, &str)],
        headers: &[(&str, &str)],
    ) -> Result<String, Refused> {
        let credentials = self.session.credentials(None).await?;
        let mut url = format!("{}{}", self.base, encoded(key, true));
        if key.is_empty() && !self.base_is_a_host() {
            url.truncate(url.trim_end_matches('/').len());
        }
        let pairs: Vec<String> =
            query.iter().map(|(n, v)| format!("{}={}", encoded(n, false), encoded(v, false))).collect();
        if !pairs.is_empty() {
            url = format!("{url}?{}", pairs.join("&"));
        }
        parse_url(&url)
            .map_err(|why| Refused::new(Refusal::Invalid, format!("s3://{}/{key}: {why}", self.name)))?;
        presigned(method, &url, headers, &self.region, credentials, self.session.now().into(), VALID)
    }

    fn base_is_a_host(&self) -> bool {
        self.base.starts_with(&format!("https://{}.", self.name))
    }
}

/// The URL with Signature Version 4 in its query; the body is not signed.
fn presigned(
    method: &Method,
    url: &str,
    headers: &[(&str, &str)],
    region: &str,
    credentials: Credentials,
    at: SystemTime,
    valid: Duration,
) -> Result<String, Refused> {
    let cannot = |e: &dyn std::error::Error| {
        let url = redact_url(url);
        Refused::new(Refusal::Invalid, format!("cannot sign a request to {url}: {e}"))
    };
    let mut settings = SigningSettings::default();
    settings.percent_encoding_mode = PercentEncodingMode::Single;
    settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
    settings.signature_location = SignatureLocation::QueryParams;
    settings.expires_in = Some(valid);
    let identity = credentials.into();
    let params = v4::SigningParams::builder()
        .identity(&identity)
        .region(region)
        .name(S3.prefix)
        .time(at)
        .settings(settings)
        .build()
        .map_err(|e| cannot(&e))?;
    let headers = headers.iter().copied();
    let request = SignableRequest::new(method.as_str(), url, headers, SignableBody::UnsignedPayload);
    let request = request.map_err(|e| cannot(&e))?;
    let (instructions, _signature) = sign(request, &params.into()).map_err(|e| cannot(&e))?.into_parts();
    let added = instructions.params().iter();
    let added: Vec<String> = added.map(|(n, v)| format!("{n}={}", encoded(v, false))).collect();
    let joint = if url.contains('?') { '&' } else { '?' };
    Ok(format!("{url}{joint}{}", added.join("&")))
}

/// S3 may find out that it cannot copy after it has said 200.
fn failed_after_all(body: &[u8]) -> bool {
    String::from_utf8_lossy(body).contains("<Error>")
}

/// A file in pieces.
fn chunks(
    file: tokio::fs::File,
) -> impl futures_util::Stream<Item = std::io::Result<Vec<u8>>> + Send + 'static {
    use tokio::io::AsyncReadExt as _;
    const PIECE: usize = 1 << 20;
    futures_util::stream::try_unfold(file, |mut file| async move {
        let mut piece = vec![0; PIECE];
        let length = file.read(&mut piece).await?;
        piece.truncate(length);
        Ok((length > 0).then_some((piece, file)))
    })
}

/// Percent-encoded as Signature Version 4 wants it; slashes stay in paths.
fn encoded(text: &str, is_path: bool) -> String {
    use std::fmt::Write as _;
    let mut out = String::new();
    for b in text.bytes() {
        if b.is_ascii_alphanumeric() || b"-._~".contains(&b) || (is_path && b == b'/') {
            out.push(char::from(b));
        } else {
            let _ = write!(out, "%{b:02X}");
        }
    }
    out
}

/// What stands between `<name>` and `</name>`.
fn elements<'a>(text: &'a str, name: &str) -> impl Iterator<Item = &'a str> {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    let parts: Vec<&str> = text.split(open.as_str()).skip(1).collect();
    parts.into_iter().filter_map(move |part| part.split_once(close.as_str()).map(|(value, _)| value))
}

fn unescaped(text: &str) -> String {
    text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&amp;", "&")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example in S3's documentation of signatures in the query.
    #[test]
    fn the_published_signature_is_reproduced() {
        let credentials = Credentials::new(
            "AKIAIOSFODNN7EXAMPLE",
            "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
            None,
            None,
            "test",
        );
        let at: jiff::Timestamp = "2013-05-24T00:00:00Z".parse().unwrap();
        let url = "https://examplebucket.s3.amazonaws.com/test.txt";
        let day = Duration::from_hours(24);
        let signed = presigned(&Method::GET, url, &[], "us-east-1", credentials, at.into(), day).unwrap();
        assert!(
            signed.ends_with(
                "X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"
            ),
            "{signed}"
        );
    }

    #[test]
    fn a_copy_that_fails_after_200_has_failed() {
        assert!(failed_after_all(b"<?xml version=\"1.0\"?>\n<Error><Code>InternalError</Code></Error>"));
        assert!(!failed_after_all(b"<CopyObjectResult><ETag>&quot;0&quot;</ETag></CopyObjectResult>"));
    }

    #[test]
    fn keys_are_encoded_as_signatures_want_them() {
        assert_eq!(encoded("pool/g++_12~rc1:amd64.deb", true), "pool/g%2B%2B_12~rc1%3Aamd64.deb");
        assert_eq!(encoded("a/b c", false), "a%2Fb%20c");
    }

    #[test]
    fn a_listing_is_read() {
        let text = "<R><IsTruncated>false</IsTruncated><Contents><Key>a/b+c</Key></Contents><Contents><Key>d&amp;e</Key></Contents></R>";
        assert_eq!(elements(text, "Key").map(unescaped).collect::<Vec<_>>(), ["a/b+c", "d&e"]);
        assert_eq!(elements(text, "IsTruncated").collect::<Vec<_>>(), ["false"]);
    }
}
