//! One PutMetricData at the end of a run: that it ended, how, and how long it took. Called by [`crate::boot`];
//! whatever goes wrong here becomes a sentence in the result and never fails the run.
//!
//! The request is AWS JSON 1.0, signed with the instance role's credentials (or those of the environment). They
//! are asked for when they are needed, and neither logged nor stored.

use std::fmt;
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use jiff::{SignedDuration, Timestamp};
use reqwest::header::{DATE, RETRY_AFTER};
use serde::Deserialize;
use serde_json::json;

use crate::config::schema::{CloudwatchConfig, Enabled};
use crate::error::Error;
use crate::facts::identity::Identity;
use crate::host::fault::{self, Kind};
use crate::host::fetch::{Fetch, redact_url};
use crate::host::retry::{Backoff, http_date, retry_after};
use crate::imds;
use crate::text::parse_url;

/// All of it: credentials, attempts and waits. A report is not worth more of a boot's time.
const TOTAL: Duration = Duration::from_secs(8);
/// What the metadata service gets of that; it is one hop away and has answered before.
const METADATA: Duration = Duration::from_secs(3);
/// Attempts, as many as the AWS SDKs make.
const ATTEMPTS: u32 = 3;
const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(2);
/// AWS accepts signatures that are up to 5 minutes old; a clock that is off by less is not what it complains about.
const TOLERATED_SKEW: SignedDuration = SignedDuration::from_mins(4);
/// Answers are `{}` or a short error; more is not read.
const MAX_ANSWER: usize = 64 * 1024;
/// Of a server's message, for the result. AWS puts the canonical request, session token included, behind the
/// first line of some messages, so no more than that line is ever shown.
const MAX_MESSAGE: usize = 200;

const SERVICE: &str = "monitoring";
const CONTENT_TYPE: &str = "application/x-amz-json-1.0";
const TARGET: &str = "GraniteServiceVersion20100801.PutMetricData";
const ROLES: &str = "meta-data/iam/security-credentials/";
const DOMAIN: &str = "meta-data/services/domain";

/// Regions begin with one of these; the first that fits decides (so `us-gov-` stands before `us-`).
const PARTITIONS: &[(&str, &str)] = &[
    ("us-gov-", "amazonaws.com"),
    ("us-isob-", "sc2s.sgov.gov"),
    ("us-isof-", "csp.hci.ic.gov"),
    ("us-iso-", "c2s.ic.gov"),
    ("eu-isoe-", "cloud.adc-e.uk"),
    ("eusc-", "amazonaws.eu"),
    ("cn-", "amazonaws.com.cn"),
    ("us-", "amazonaws.com"),
    ("eu-", "amazonaws.com"),
    ("ap-", "amazonaws.com"),
    ("sa-", "amazonaws.com"),
    ("ca-", "amazonaws.com"),
    ("me-", "amazonaws.com"),
    ("af-", "amazonaws.com"),
    ("il-", "amazonaws.com"),
    ("mx-", "amazonaws.com"),
];

/// Figures of a run.
#[derive(Clone, Debug)]
pub struct RunMetrics {
    /// `converged`, `failed`, `reboot-needed`, `skipped` or `interrupted`: a dimension, so one of few.
    pub outcome: &'static str,
    /// How long the run took.
    pub seconds: f64,
}

/// What became of the report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// CloudWatch has it.
    Sent,
    /// It was not wanted, or (with `enabled = "auto"`) there is nobody to send it as.
    Off {
        /// One sentence.
        why: String,
    },
    /// It was wanted and did not arrive.
    Failed {
        /// One sentence, without secrets.
        why: String,
    },
}

impl fmt::Display for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sent => f.write_str("sent"),
            Self::Off { why } => write!(f, "off: {why}"),
            Self::Failed { why } => write!(f, "failed: {why}"),
        }
    }
}

/// What the process's environment says, by the AWS SDKs' names.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    credentials: Option<Credentials>,
    region: Option<String>,
    endpoint: Option<String>,
}

impl Environment {
    /// Reads it through `lookup`, usually [`std::env::var`].
    pub fn from_lookup(lookup: impl Fn(&str) -> Option<String>) -> Self {
        let set = |name| lookup(name).map(|v| v.trim().to_owned()).filter(|v| !v.is_empty());
        let credentials = match (set("AWS_ACCESS_KEY_ID"), set("AWS_SECRET_ACCESS_KEY")) {
            (Some(id), Some(secret)) => {
                Some(Credentials::new(id, secret, set("AWS_SESSION_TOKEN"), None, "environment"))
            }
            _ => None,
        };
        Self {
            credentials,
            region: set("AWS_REGION").or_else(|| set("AWS_DEFAULT_REGION")),
            endpoint: set("AWS_ENDPOINT_URL_CLOUDWATCH").or_else(|| set("AWS_ENDPOINT_URL")),
        }
    }
}

/// Why nothing was sent.
enum Undelivered {
    /// Nobody to send it as: no fault, if it was left to us.
    Nobody(String),
    /// It went wrong.
    Broken(String),
}

impl From<Error> for Undelivered {
    fn from(e: Error) -> Self {
        Self::Broken(std::iter::once(e.to_string()).chain(e.causes()).collect::<Vec<_>>().join(": "))
    }
}

/// Sends the figures of a run. Takes [`TOTAL`] at most.
pub async fn put(
    run: &RunMetrics,
    config: &CloudwatchConfig,
    identity: &Identity,
    imds: Option<&imds::Client>,
) -> Delivery {
    let environment = Environment::from_lookup(|name| std::env::var(name).ok());
    put_from(&environment, run, config, identity, imds).await
}

/// [`put`] with an environment that the caller brings.
pub async fn put_from(
    environment: &Environment,
    run: &RunMetrics,
    config: &CloudwatchConfig,
    identity: &Identity,
    imds: Option<&imds::Client>,
) -> Delivery {
    if config.enabled == Enabled::Fixed(false) {
        return Delivery::Off { why: "the configuration says so".into() };
    }
    // The firmware decides whether there is a metadata service to ask, here as for the facts.
    let imds = imds.filter(|_| identity.on_ec2.value).map(|client| client.renewed(METADATA));
    let report = Report { environment, run, config, identity, imds };
    match tokio::time::timeout(TOTAL, report.deliver()).await {
        Ok(Ok(())) => Delivery::Sent,
        Ok(Err(Undelivered::Nobody(why))) if config.enabled != Enabled::Fixed(true) => Delivery::Off { why },
        Ok(Err(Undelivered::Nobody(why) | Undelivered::Broken(why))) => Delivery::Failed { why },
        Err(_elapsed) => {
            Delivery::Failed { why: format!("CloudWatch did not answer within {} s", TOTAL.as_secs()) }
        }
    }
}

/// One report on its way.
struct Report<'a> {
    environment: &'a Environment,
    run: &'a RunMetrics,
    config: &'a CloudwatchConfig,
    identity: &'a Identity,
    imds: Option<imds::Client>,
}

impl Report<'_> {
    async fn deliver(&self) -> Result<(), Undelivered> {
        let mut credentials = self.credentials().await?;
        let region = self.region()?;
        let url = self.endpoint(&region).await?;
        let fetch = Fetch::new();
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        let mut offset = SignedDuration::ZERO;
        let mut is_renewed = false;
        let mut attempt = 1;
        loop {
            let at = Timestamp::now() + offset;
            let body = self.body(at);
            let headers = signed_headers(&url, &region, &credentials, &body, at)?;
            let refused = match post(fetch.http()?, &url, headers, body).await {
                Ok(()) => return Ok(()),
                Err(refused) => refused,
            };
            let skew = refused.skew().filter(|_| offset.is_zero());
            let mut wait = Duration::ZERO;
            if let Some(skew) = skew {
                tracing::debug!(seconds = skew.as_secs(), "CloudWatch's clock differs; signing by it");
                offset = skew;
            } else if refused.is_expired() && !is_renewed && self.environment.credentials.is_none() {
                is_renewed = true;
                credentials = self.credentials().await?;
            } else if refused.is_temporary() && attempt < ATTEMPTS {
                attempt += 1;
                wait = refused.retry_after.unwrap_or_else(|| backoff.next_wait());
            } else {
                return Err(Undelivered::Broken(refused.to_string()));
            }
            tokio::time::sleep(wait).await;
        }
    }

    /// The environment's credentials, or else the instance role's.
    async fn credentials(&self) -> Result<Credentials, Undelivered> {
        if let Some(credentials) = &self.environment.credentials {
            return Ok(credentials.clone());
        }
        let Some(client) = &self.imds else {
            return Err(Undelivered::Nobody(
                "there are no credentials in the environment and no instance role to ask for".into(),
            ));
        };
        let roles = client.get(ROLES).await?.unwrap_or_default();
        let role = String::from_utf8_lossy(&roles).lines().next().unwrap_or_default().trim().to_owned();
        if role.is_empty() {
            return Err(Undelivered::Nobody("the instance has no role".into()));
        }
        if !role.bytes().all(|b| b.is_ascii_alphanumeric() || b"+=,.@-_".contains(&b)) {
            return Err(Undelivered::Broken(format!("{} names an impossible role", client.url(ROLES))));
        }
        let answer = client.get(&format!("{ROLES}{role}")).await?.unwrap_or_default();
        role_credentials(&answer, &role)
    }

    fn region(&self) -> Result<String, Undelivered> {
        let known = self.identity.instance.as_ref().map(|i| &i.value.region);
        let region =
            self.environment.region.as_ref().or(known).ok_or_else(|| {
                Undelivered::Nobody("the region is not known; AWS_REGION can name it".into())
            })?;
        if region.is_empty()
            || !region.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        {
            return Err(Undelivered::Broken(format!("{region:?} is no region")));
        }
        Ok(region.clone())
    }

    /// Where to post: the environment's word, the region's partition, or for a new partition what EC2 says.
    async fn endpoint(&self, region: &str) -> Result<String, Undelivered> {
        if let Some(url) = &self.environment.endpoint {
            parse_url(url).map_err(|why| {
                Undelivered::Broken(format!(
                    "AWS_ENDPOINT_URL is {}, which is no URL: {why}",
                    redact_url(url)
                ))
            })?;
            return Ok(format!("{}/", url.trim_end_matches('/')));
        }
        if let Some(suffix) = suffix(region) {
            return Ok(format!("https://{SERVICE}.{region}.{suffix}/"));
        }
        let unknown =
            || Undelivered::Broken(format!("region {region} belongs to no partition that is known"));
        let client = self.imds.as_ref().ok_or_else(unknown)?;
        let domain = client.get(DOMAIN).await?.ok_or_else(unknown)?;
        let domain = String::from_utf8_lossy(&domain).trim().to_owned();
        let is_name = !domain.is_empty()
            && domain.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b));
        if is_name { Ok(format!("https://{SERVICE}.{region}.{domain}/")) } else { Err(unknown()) }
    }

    /// The request's body. Every combination of dimensions is billed as a metric, so there are only two with few values.
    fn body(&self, at: Timestamp) -> Vec<u8> {
        let dimensions = json!([
            { "Name": "InstanceType", "Value": self.identity.instance_type().unwrap_or("unknown") },
            { "Name": "Outcome", "Value": self.run.outcome },
        ]);
        let datum = |name: &str, value: f64, unit: &str| {
            json!({
                "MetricName": name, "Dimensions": dimensions, "Value": value, "Unit": unit,
                "Timestamp": at.as_second(),
            })
        };
        let metrics = [datum("Outcome", 1.0, "Count"), datum("Seconds", self.run.seconds, "Seconds")];
        json!({ "Namespace": self.config.namespace, "MetricData": metrics }).to_string().into_bytes()
    }
}

/// What the metadata service answers for a role.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RoleAnswer {
    code: String,
    #[serde(default)]
    access_key_id: String,
    #[serde(default)]
    secret_access_key: String,
    #[serde(default)]
    token: String,
}

fn role_credentials(answer: &[u8], role: &str) -> Result<Credentials, Undelivered> {
    // serde's message is left out: it may quote what it could not read.
    let answer: RoleAnswer = serde_json::from_slice(answer).map_err(|_quotes_secrets| {
        Undelivered::Broken(format!("the metadata service has no usable credentials of role {role}"))
    })?;
    if answer.code != "Success" {
        return Err(Undelivered::Broken(format!(
            "the metadata service has no credentials of role {role}: {}",
            first_line(&answer.code)
        )));
    }
    Ok(Credentials::new(answer.access_key_id, answer.secret_access_key, Some(answer.token), None, "role"))
}

fn suffix(region: &str) -> Option<&'static str> {
    PARTITIONS.iter().find(|(prefix, _)| region.starts_with(prefix)).map(|(_, suffix)| *suffix)
}

/// The headers of a signed request, the signature among them.
fn signed_headers(
    url: &str,
    region: &str,
    credentials: &Credentials,
    body: &[u8],
    at: Timestamp,
) -> Result<Vec<(String, String)>, Undelivered> {
    let plain = [("content-type", CONTENT_TYPE), ("x-amz-target", TARGET)];
    let mut headers: Vec<_> = plain.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
    headers.extend(signature(SERVICE, url, region, credentials, &plain, body, at)?);
    Ok(headers)
}

/// Signature Version 4 of a POST: the headers to be added.
fn signature(
    service: &str,
    url: &str,
    region: &str,
    credentials: &Credentials,
    headers: &[(&str, &str)],
    body: &[u8],
    at: Timestamp,
) -> Result<Vec<(String, String)>, Undelivered> {
    let cannot = |e: &dyn std::error::Error| {
        Undelivered::Broken(format!("cannot sign a request to {}: {e}", redact_url(url)))
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
    let request = SignableRequest::new("POST", url, headers.iter().copied(), SignableBody::Bytes(body))
        .map_err(|e| cannot(&e))?;
    let (instructions, _signature) = sign(request, &params.into()).map_err(|e| cannot(&e))?.into_parts();
    Ok(instructions.headers().map(|(n, v)| (n.to_owned(), v.to_owned())).collect())
}

/// Why CloudWatch did not take a request.
#[derive(Debug, Default)]
struct Refused {
    /// Absent when there was no answer.
    status: Option<u16>,
    /// AWS's name of the error, without `Exception`.
    code: String,
    message: String,
    retry_after: Option<Duration>,
    server_time: Option<Timestamp>,
}

impl Refused {
    fn is_temporary(&self) -> bool {
        let is_throttled = [
            "Throttling",
            "Throttled",
            "TooManyRequests",
            "RequestLimitExceeded",
            "SlowDown",
            "RequestTimeout",
        ];
        self.status.is_none_or(|s| s == 429 || s >= 500) || is_throttled.contains(&self.code.as_str())
    }

    fn is_expired(&self) -> bool {
        self.code == "ExpiredToken"
    }

    /// How far our clock is off, if that may be the reason.
    fn skew(&self) -> Option<SignedDuration> {
        let is_about_time =
            ["RequestExpired", "RequestTimeTooSkewed", "SignatureDoesNotMatch", "InvalidSignature"];
        let skew = self.server_time?.duration_since(Timestamp::now());
        (is_about_time.contains(&self.code.as_str()) && skew.abs() > TOLERATED_SKEW).then_some(skew)
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.status {
            None => return write!(f, "CloudWatch cannot be reached: {}", self.message),
            Some(status) => write!(f, "CloudWatch answered {status}")?,
        }
        for part in [&self.code, &self.message] {
            if !part.is_empty() {
                write!(f, ": {part}")?;
            }
        }
        if self.code.starts_with("AccessDenied") {
            f.write_str(" (the role needs cloudwatch:PutMetricData)")?;
        }
        Ok(())
    }
}

async fn post(
    http: &reqwest::Client,
    url: &str,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
) -> Result<(), Refused> {
    let mut request = http.post(url).body(body);
    for (name, value) in headers {
        request = request.header(name, value);
    }
    fault::point(Kind::Fetch, url).map_err(|e| Refused { message: e.to_string(), ..Refused::default() })?;
    let mut response = request.send().await.map_err(unreached)?;
    let status = response.status();
    if status == reqwest::StatusCode::OK {
        return Ok(());
    }
    let header =
        |name| response.headers().get(name).and_then(|v: &reqwest::header::HeaderValue| v.to_str().ok());
    let retry_after = header(RETRY_AFTER).and_then(|v| retry_after(v, Timestamp::now()));
    let server_time = header(DATE).and_then(http_date);
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(unreached)? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > MAX_ANSWER {
            break;
        }
    }
    let (code, message) = error_of(&String::from_utf8_lossy(&bytes));
    Err(Refused { status: Some(status.as_u16()), code, message, retry_after, server_time })
}

fn unreached(e: reqwest::Error) -> Refused {
    let e = e.without_url();
    let mut message = e.to_string();
    let mut next = std::error::Error::source(&e);
    while let Some(cause) = next {
        message = format!("{message}: {cause}");
        next = cause.source();
    }
    Refused { status: None, code: String::new(), message, retry_after: None, server_time: None }
}

/// AWS's error code (without `Exception`) and the first line of its message, from JSON or from XML, which
/// signature errors come in even where JSON was asked for.
fn error_of(body: &str) -> (String, String) {
    let (code, message) = match serde_json::from_str::<serde_json::Value>(body) {
        Ok(json) => {
            let text = |name| json.get(name).and_then(|v| v.as_str()).map(str::to_owned);
            (text("__type"), text("message").or_else(|| text("Message")))
        }
        Err(_not_json) => (element(body, "Code"), element(body, "Message")),
    };
    let code = code.unwrap_or_default();
    let code = code.rsplit('#').next().unwrap_or_default();
    let code = code.strip_suffix("Exception").unwrap_or(code);
    (first_line(code), first_line(&message.unwrap_or_default()))
}

fn element(xml: &str, name: &str) -> Option<String> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once(&format!("</{name}>"))?;
    Some(text.to_owned())
}

fn first_line(text: &str) -> String {
    text.trim().lines().next().unwrap_or_default().chars().take(MAX_MESSAGE).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_partition_has_its_domain() {
        for (region, expected) in [
            ("us-east-1", "amazonaws.com"),
            ("mx-central-1", "amazonaws.com"),
            ("us-gov-west-1", "amazonaws.com"),
            ("cn-north-1", "amazonaws.com.cn"),
            ("eusc-de-east-1", "amazonaws.eu"),
            ("us-iso-east-1", "c2s.ic.gov"),
            ("us-isob-east-1", "sc2s.sgov.gov"),
            ("us-isof-south-1", "csp.hci.ic.gov"),
            ("eu-isoe-west-1", "cloud.adc-e.uk"),
        ] {
            assert_eq!(suffix(region), Some(expected), "{region}");
        }
        assert_eq!(suffix("moon-base-1"), None);
    }

    #[test]
    fn the_published_signature_is_reproduced() {
        // `post-vanilla` of AWS's Signature Version 4 test suite.
        let credentials =
            Credentials::new("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", None, None, "test");
        let at: Timestamp = "2015-08-30T12:36:00Z".parse().unwrap();
        let url = "https://example.amazonaws.com/";
        let headers = signature("service", url, "us-east-1", &credentials, &[], b"", at);
        let headers = headers.unwrap_or_else(|_| panic!("it signs"));
        let authorization = headers.iter().find(|(n, _)| n == "authorization").map(|(_, v)| v.as_str());
        assert_eq!(
            authorization,
            Some(
                "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, \
                 SignedHeaders=host;x-amz-date, \
                 Signature=5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"
            )
        );
    }

    #[test]
    fn errors_are_read_from_json_and_xml_and_stay_short() {
        let json = r#"{"__type":"com.amazon.coral.service#AccessDeniedException","Message":"no"}"#;
        assert_eq!(error_of(json), ("AccessDenied".into(), "no".into()));
        let xml = "<ErrorResponse><Error><Code>SignatureDoesNotMatch</Code><Message>Wrong.\n\nThe Canonical \
                   String was x-amz-security-token:geheim</Message></Error></ErrorResponse>";
        assert_eq!(error_of(xml), ("SignatureDoesNotMatch".into(), "Wrong.".into()));
        assert_eq!(error_of("<html>"), (String::new(), String::new()));
        let long = format!(r#"{{"__type":"X","message":"{}"}}"#, "ä".repeat(1000));
        assert_eq!(error_of(&long).1.chars().count(), MAX_MESSAGE);
    }

    #[test]
    fn the_environments_names_are_the_sdks() {
        let read = |vars: &[(&str, &str)]| {
            let vars: Vec<_> = vars.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            Environment::from_lookup(|name| vars.iter().find(|(k, _)| k == name).map(|(_, v)| v.clone()))
        };
        let all = read(&[
            ("AWS_ACCESS_KEY_ID", "AKIA"),
            ("AWS_SECRET_ACCESS_KEY", "geheim"),
            ("AWS_DEFAULT_REGION", "eu-west-1"),
            ("AWS_REGION", "eu-central-1"),
            ("AWS_ENDPOINT_URL", "http://all"),
            ("AWS_ENDPOINT_URL_CLOUDWATCH", "http://cloudwatch"),
        ]);
        assert_eq!(all.region.as_deref(), Some("eu-central-1"));
        assert_eq!(all.endpoint.as_deref(), Some("http://cloudwatch"));
        assert!(all.credentials.is_some() && !format!("{all:?}").contains("geheim"));
        assert!(read(&[("AWS_ACCESS_KEY_ID", "AKIA")]).credentials.is_none());
    }
}
