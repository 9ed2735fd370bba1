//! A client of AWS's services: whom to sign as, where to send, one signed request, and why it was refused. When to try
//! again is the caller's to decide; two things are put right at once, because waiting would not help: a wrong clock (the
//! server's is taken from then on) and credentials that have ended.

mod credentials;
mod endpoint;
mod refusal;
pub mod s3;

use std::cell::Cell;
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use jiff::{SignedDuration, Timestamp};
use reqwest::header::{DATE, HeaderValue, RETRY_AFTER};
use tokio::sync::Mutex;

pub use credentials::Environment;
pub use endpoint::{AUTO_SCALING, CLOUDFORMATION, CLOUDWATCH, EC2, EVENTBRIDGE, LOGS, S3, SNS, Service};
pub use refusal::{Refusal, Refused};

use crate::config::schema::AwsConfig;
use crate::host::fault::{self, Kind};
use crate::host::fetch::{Fetch, Patience, redact_url};
use crate::host::retry::{http_date, retry_after};
use crate::imds;
use crate::text::parse_url;

/// A request may wait so long for its answer: one that is slow has been taken, and would be taken twice.
const PATIENCE: Duration = Duration::from_secs(90);
/// Answers are `{}`, a list of what was refused, or a short error; more is not read.
const MAX_ANSWER: usize = 64 * 1024;
/// What the metadata service gets when it is asked for the partition's domain.
const METADATA: Duration = Duration::from_secs(3);
const DOMAIN: &str = "meta-data/services/domain";
/// The variable that names the endpoint of every service.
const ANY_ENDPOINT: &str = "AWS_ENDPOINT_URL";

/// Whom to ask, and as whom. One for a process; requests may run at the same time.
pub struct Session {
    environment: Environment,
    config: AwsConfig,
    /// The instance's region, where known.
    region: Option<String>,
    imds: Option<imds::Client>,
    fetch: Fetch,
    /// The role's credentials, as last asked for.
    role: Mutex<Option<Credentials>>,
    /// What has to be added to our clock, once a server has said so.
    offset: Cell<SignedDuration>,
}

/// One request.
#[derive(Debug)]
pub struct Request<'a> {
    /// To whom.
    pub service: &'a Service,
    /// The region, where it is not the instance's.
    pub region: Option<&'a str>,
    /// The body's form.
    pub content_type: &'static str,
    /// Name of the operation, for the JSON protocols.
    pub target: Option<&'static str>,
    /// The body is compressed by gzip.
    pub is_gzip: bool,
    /// The body.
    pub body: Vec<u8>,
}

impl Session {
    /// `region` and `imds` are the instance's, where this is one.
    pub fn new(
        environment: Environment,
        config: &AwsConfig,
        region: Option<String>,
        imds: Option<imds::Client>,
    ) -> Self {
        let config = AwsConfig {
            fips: config.fips || environment.fips,
            dual_stack: config.dual_stack || environment.dual_stack,
        };
        Self {
            environment,
            config,
            region,
            imds,
            // The limit of a whole request stands above the limits of its parts.
            fetch: Fetch::new().waiting(Patience { silence: PATIENCE, ..Patience::default() }),
            role: Mutex::new(None),
            offset: Cell::new(SignedDuration::ZERO),
        }
    }

    /// The time by the servers' clock, as far as it is known.
    pub fn now(&self) -> Timestamp {
        self.corrected(Timestamp::now())
    }

    /// A time of our own clock, by the servers'.
    pub fn corrected(&self, at: Timestamp) -> Timestamp {
        at.checked_add(self.offset.get()).unwrap_or(at)
    }

    /// The plain HTTP client, for what is not AWS's.
    pub fn http(&self) -> Result<&reqwest::Client, Refused> {
        // A proxy or a certificate that cannot be used: neither changes while this process lives.
        self.fetch.http().map_err(|e| Refused::because(&e).for_good())
    }

    /// The metadata client, where there is a service.
    pub fn imds(&self) -> Option<&imds::Client> {
        self.imds.as_ref()
    }

    /// Sends a request signed by Signature Version 4, and returns the answer's body.
    pub async fn send(&self, request: &Request<'_>) -> Result<Vec<u8>, Refused> {
        let mut credentials = self.credentials(None).await?;
        let region = self.region(request.region)?;
        let url = self.endpoint(request.service, region).await?;
        let (mut is_set_right, mut is_renewed) = (false, false);
        loop {
            let headers = signed(request, &url, region, &credentials, self.now())?;
            let refused = match self.post(request.service.name, &url, headers, request.body.clone()).await {
                Ok(body) => return Ok(body),
                Err(refused) => refused,
            };
            if let Some(skew) = refused.skew().filter(|_| !is_set_right) {
                tracing::debug!(seconds = skew.as_secs(), "AWS's clock differs; signing by it");
                is_set_right = true;
                self.offset.set(skew);
            } else if refused.is_expired() && !is_renewed && !self.environment.has_credentials() {
                is_renewed = true;
                credentials = self.credentials(Some(&credentials)).await?;
            } else {
                return Err(refused);
            }
        }
    }

    /// Sends a request with an `Authorization` of the caller's making.
    pub async fn send_as(&self, request: &Request<'_>, authorization: &str) -> Result<Vec<u8>, Refused> {
        let region = self.region(request.region)?;
        let url = self.endpoint(request.service, region).await?;
        let mut headers = plain_headers(request);
        headers.push(("authorization".into(), authorization.into()));
        self.post(request.service.name, &url, headers, request.body.clone()).await
    }

    /// The environment's credentials, or else the instance role's: those that were asked for last, unless they end soon
    /// or are the ones that were refused.
    async fn credentials(&self, refused: Option<&Credentials>) -> Result<Credentials, Refused> {
        if let Some(credentials) = &self.environment.credentials {
            return Ok(credentials.clone());
        }
        let Some(client) = &self.imds else {
            return Err(Refused::new(
                Refusal::Nobody,
                "there are no credentials in the environment and no instance role to ask for",
            ));
        };
        let mut held = self.role.lock().await;
        let good = held.as_ref().filter(|c| {
            !credentials::is_over(c, self.now())
                && refused.is_none_or(|r| r.session_token() != c.session_token())
        });
        if let Some(credentials) = good {
            return Ok(credentials.clone());
        }
        let fresh = credentials::of_role(client).await?;
        Ok(held.insert(fresh).clone())
    }

    fn region<'a>(&'a self, wanted: Option<&'a str>) -> Result<&'a str, Refused> {
        let known = wanted.or(self.environment.region.as_deref()).or(self.region.as_deref());
        let region = known.ok_or_else(|| {
            Refused::new(Refusal::Nobody, "the region is not known; AWS_REGION can name it")
        })?;
        if endpoint::is_region(region) {
            Ok(region)
        } else {
            Err(Refused::new(Refusal::Denied, format!("{region:?} is no region")))
        }
    }

    /// Where to post: the environment's word, the region's partition, or for a new partition what EC2 says.
    async fn endpoint(&self, service: &Service, region: &str) -> Result<String, Refused> {
        let own = service.endpoint_variable();
        for variable in [own.as_str(), ANY_ENDPOINT] {
            let Some(url) = self.environment.endpoint(variable) else { continue };
            parse_url(url).map_err(|why| {
                let url = redact_url(url);
                Refused::new(Refusal::Denied, format!("{variable} is {url}, which is no URL: {why}"))
            })?;
            return Ok(format!("{}/", url.trim_end_matches('/')));
        }
        if let Some(url) = service.url(region, &self.config) {
            return Ok(url);
        }
        let unknown = || {
            Refused::new(Refusal::Denied, format!("region {region} belongs to no partition that is known"))
        };
        let client = self.imds.as_ref().ok_or_else(unknown)?.renewed(METADATA);
        let domain = client.get(DOMAIN).await.map_err(|e| Refused::because(&e))?.ok_or_else(unknown)?;
        let domain = String::from_utf8_lossy(&domain).trim().to_owned();
        let is_name = !domain.is_empty()
            && domain.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b));
        if is_name { Ok(format!("https://{}.{region}.{domain}/", service.prefix)) } else { Err(unknown()) }
    }

    async fn post(
        &self,
        name: &str,
        url: &str,
        headers: Vec<(String, String)>,
        body: Vec<u8>,
    ) -> Result<Vec<u8>, Refused> {
        let mut request = self.http()?.post(url).body(body);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let (status, answer) = ask(name, url, request).await?;
        if (200..300).contains(&status) {
            return Ok(answer.body);
        }
        Err(Refused::answer(name, status, &answer.body, answer.retry_after, answer.server_time))
    }
}

/// Any bytes as an answer: a refusal is a short sentence of one line, whatever was said.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz_answer(bytes: &[u8]) {
    for status in [200, 400, 403, 429, 503] {
        let text = Refused::answer("AWS", status, bytes, None, None).to_string();
        assert!(text.chars().count() < 500 && text.lines().count() == 1, "{text:?}");
    }
    credentials::fuzz_role(bytes);
}

/// What came back.
struct Answer {
    body: Vec<u8>,
    retry_after: Option<Duration>,
    server_time: Option<Timestamp>,
}

/// Sends a request within its time and reads the answer.
async fn ask(name: &str, url: &str, request: reqwest::RequestBuilder) -> Result<(u16, Answer), Refused> {
    ask_within(name, url, request, PATIENCE).await
}

async fn ask_within(
    name: &str,
    url: &str,
    request: reqwest::RequestBuilder,
    patience: Duration,
) -> Result<(u16, Answer), Refused> {
    fault::point(Kind::Fetch, url)
        .map_err(|e| Refused::new(Refusal::Temporary, format!("{name} cannot be reached: {e}")))?;
    let work = async {
        let mut response = request.send().await.map_err(|e| unreached(name, e))?;
        let status = response.status().as_u16();
        let header = |header| response.headers().get(header).and_then(|v: &HeaderValue| v.to_str().ok());
        let retry_after = header(RETRY_AFTER).and_then(|v| retry_after(v, Timestamp::now()));
        let server_time = header(DATE).and_then(http_date);
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|e| unreached(name, e))? {
            body.extend_from_slice(&chunk);
            if body.len() > MAX_ANSWER {
                break;
            }
        }
        Ok((status, Answer { body, retry_after, server_time }))
    };
    tokio::time::timeout(patience, work).await.unwrap_or_else(|_elapsed| {
        let text = format!("{name} did not answer within {} s", patience.as_secs());
        Err(Refused::new(Refusal::Temporary, text))
    })
}

/// A request to somebody who is not AWS (a webhook), with the same patience and the same sentences.
pub async fn send_plain(name: &str, url: &str, request: reqwest::RequestBuilder) -> Result<(), Refused> {
    let (status, answer) = ask(name, url, request).await?;
    if (200..300).contains(&status) {
        return Ok(());
    }
    Err(Refused::answer(name, status, b"", answer.retry_after, answer.server_time))
}

fn unreached(name: &str, e: reqwest::Error) -> Refused {
    let e = e.without_url();
    let mut message = e.to_string();
    let mut next = std::error::Error::source(&e);
    while let Some(cause) = next {
        message = format!("{message}: {cause}");
        next = cause.source();
    }
    Refused::new(Refusal::Temporary, format!("{name} cannot be reached: {message}"))
}

fn plain_headers(request: &Request<'_>) -> Vec<(String, String)> {
    let mut headers = vec![("content-type".to_owned(), request.content_type.to_owned())];
    if let Some(target) = request.target {
        headers.push(("x-amz-target".into(), target.into()));
    }
    if request.is_gzip {
        headers.push(("content-encoding".into(), "gzip".into()));
    }
    headers
}

/// The headers of a request signed for `at`, the signature among them.
fn signed(
    request: &Request<'_>,
    url: &str,
    region: &str,
    credentials: &Credentials,
    at: Timestamp,
) -> Result<Vec<(String, String)>, Refused> {
    let mut headers = plain_headers(request);
    let added = signature(request.service.prefix, url, region, credentials, &headers, &request.body, at)?;
    headers.extend(added);
    Ok(headers)
}

/// Signature Version 4 of a POST: the headers to be added.
fn signature(
    service: &str,
    url: &str,
    region: &str,
    credentials: &Credentials,
    headers: &[(String, String)],
    body: &[u8],
    at: Timestamp,
) -> Result<Vec<(String, String)>, Refused> {
    let cannot = |e: &dyn std::error::Error| {
        Refused::new(Refusal::Invalid, format!("cannot sign a request to {}: {e}", redact_url(url)))
    };
    let identity = credentials.clone().into();
    let params = v4::SigningParams::builder()
        .identity(&identity)
        .region(region)
        .name(service)
        .time(SystemTime::from(at))
        .settings(SigningSettings::default())
        .build()
        .map_err(|e| cannot(&e))?;
    let headers = headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let request =
        SignableRequest::new("POST", url, headers, SignableBody::Bytes(body)).map_err(|e| cannot(&e))?;
    let (instructions, _signature) = sign(request, &params.into()).map_err(|e| cannot(&e))?.into_parts();
    Ok(instructions.headers().map(|(n, v)| (n.to_owned(), v.to_owned())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a session, in AWS's Signature Version 4 test suite.
    const TOKEN: &str = "AQoDYXdzEPT//////////wEXAMPLEtc764bNrC9SAPBSM22wDOk4x4HIZ8j4FZTwdQWLWsKWHGBuFqwAeMicRXmxfpSPfIeoIYRqTflfKD8YUuwthAx7mSEI/qkPpKPi/kMcGdQrmGdeehM4IC1NtBmUpp2wUE8phUZampKsburEDy0KPkyQDYwT7WZ0wq5VSXDvp75YU9HFvlRd8Tx6q6fE8YQcHNVXAkiY9q6d+xo0rKwT38xVqr7ZD0u0iPPkUL64lIZbqBAz+scqKmlzm8FDrypNC9Yjc8fPOLn9FX9KSYvKTr4rvx3iSIlTJabIQwj2ICCR/oLxBA==";

    /// Every POST of that suite but the two that sign their body's sum as a header, which we do not.
    #[test]
    fn the_published_signatures_are_reproduced() {
        let at: Timestamp = "2015-08-30T12:36:00Z".parse().unwrap();
        for (name, path, header, token, names, signature) in [
            (
                "post-vanilla",
                "/",
                None,
                None,
                "host;x-amz-date",
                "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b",
            ),
            (
                "post-vanilla-query",
                "/?Param1=value1",
                None,
                None,
                "host;x-amz-date",
                "28038455d6de14eafc1f9222cf5aa6f1a96197d7deb8263271d420d138af7f11",
            ),
            (
                "post-header-key-sort",
                "/",
                Some("value1"),
                None,
                "host;my-header1;x-amz-date",
                "c5410059b04c1ee005303aed430f6e6645f61f4dc9e1461ec8f8916fdf18852c",
            ),
            (
                "post-header-value-case",
                "/",
                Some("VALUE1"),
                None,
                "host;my-header1;x-amz-date",
                "cdbc9802e29d2942e5e10b5bccfdd67c5f22c7c4e8ae67b53629efa58b974b7d",
            ),
            (
                "post-sts-header-before",
                "/",
                None,
                Some(TOKEN),
                "host;x-amz-date;x-amz-security-token",
                "85d96828115b5dc0cfc3bd16ad9e210dd772bbebba041836c64533a82be05ead",
            ),
        ] {
            let key = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
            let credentials = Credentials::new("AKIDEXAMPLE", key, token.map(Into::into), None, "test");
            let url = format!("https://example.amazonaws.com{path}");
            let headers: Vec<_> =
                header.map(|v| ("My-Header1".to_owned(), v.to_owned())).into_iter().collect();
            let signed =
                super::signature("service", &url, "us-east-1", &credentials, &headers, b"", at).unwrap();
            let authorization = signed.iter().find(|(n, _)| n == "authorization").map(|(_, v)| v.as_str());
            let expected = format!(
                "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, \
                 SignedHeaders={names}, Signature={signature}"
            );
            assert_eq!(authorization, Some(expected.as_str()), "{name}");
        }
    }
}
