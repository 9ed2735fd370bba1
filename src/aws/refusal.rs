//! Why AWS did not take a request: read from whatever it answers, and told in one sentence without secrets.

use std::fmt;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

/// AWS accepts signatures that are up to 5 minutes old; a clock that is off by less is not what it complains about.
const TOLERATED_SKEW: SignedDuration = SignedDuration::from_mins(4);
/// Of a server's message. AWS puts the canonical request, session token included, behind the first line of some
/// messages, so no more than that line is ever shown.
const MAX_MESSAGE: usize = 200;

/// What a refusal means for the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Worth another attempt: not reached, throttled, out of order.
    Temporary,
    /// Whoever signed may not do this (or is not who it says); another attempt would end the same way.
    Denied,
    /// There are no credentials and no role.
    Nobody,
    /// What the request is about does not exist.
    Missing,
    /// It exists already.
    Exists,
    /// The request is wrong in itself.
    Invalid,
}

/// A request that was not taken.
#[derive(Clone, Debug)]
pub struct Refused {
    /// What it means.
    pub refusal: Refusal,
    /// Asked for by the server.
    pub retry_after: Option<Duration>,
    /// AWS's name of the error, without `Exception`.
    pub code: String,
    /// The first line of what it says.
    pub message: String,
    sentence: String,
    server_time: Option<Timestamp>,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)
    }
}

impl Refused {
    /// One that no server spoke.
    pub fn new(refusal: Refusal, sentence: impl Into<String>) -> Self {
        Self {
            refusal,
            retry_after: None,
            code: String::new(),
            message: String::new(),
            sentence: sentence.into(),
            server_time: None,
        }
    }

    /// Something else failed on the way: worth another attempt.
    pub fn because(e: &crate::error::Error) -> Self {
        let sentence = std::iter::once(e.to_string()).chain(e.causes()).collect::<Vec<_>>().join(": ");
        Self::new(Refusal::Temporary, sentence)
    }

    /// No attempt of this process would end otherwise.
    #[must_use]
    pub(super) fn for_good(self) -> Self {
        Self { refusal: Refusal::Denied, ..self }
    }

    /// What `service` answered.
    pub(super) fn answer(
        service: &str,
        status: u16,
        body: &[u8],
        retry_after: Option<Duration>,
        server_time: Option<Timestamp>,
    ) -> Self {
        let (code, message) = error_of(&String::from_utf8_lossy(body));
        let mut sentence = format!("{service} answered {status}");
        for part in [&code, &message] {
            if !part.is_empty() {
                sentence = format!("{sentence}: {part}");
            }
        }
        Self { refusal: meaning(status, &code), retry_after, code, message, sentence, server_time }
    }

    /// Adds what would mend it.
    #[must_use]
    pub fn with_advice(mut self, advice: &str) -> Self {
        self.sentence = format!("{} ({advice})", self.sentence);
        self
    }

    /// Whether the credentials have ended.
    pub(super) fn is_expired(&self) -> bool {
        matches!(self.code.as_str(), "ExpiredToken" | "RequestExpired" | "TokenRefreshRequired")
    }

    /// How far our clock is off, if that may be the reason.
    pub(super) fn skew(&self) -> Option<SignedDuration> {
        let is_about_time =
            ["RequestExpired", "RequestTimeTooSkewed", "SignatureDoesNotMatch", "InvalidSignature"];
        let skew = self.server_time?.duration_since(Timestamp::now());
        (is_about_time.contains(&self.code.as_str()) && skew.abs() > TOLERATED_SKEW).then_some(skew)
    }
}

/// The AWS SDKs' list of codes to be tried again, and what the services say besides.
fn meaning(status: u16, code: &str) -> Refusal {
    match code {
        "Throttling"
        | "Throttled"
        | "ThrottledException"
        | "RequestThrottled"
        | "TooManyRequests"
        | "RequestLimitExceeded"
        | "LimitExceeded"
        | "BandwidthLimitExceeded"
        | "SlowDown"
        | "PriorRequestNotComplete"
        | "EC2Throttled"
        | "RequestTimeout"
        | "ServiceUnavailable"
        | "OperationAborted"
        | "ResourceContention" => Refusal::Temporary,
        "ResourceNotFound" => Refusal::Missing,
        "ResourceAlreadyExists" => Refusal::Exists,
        code if code.starts_with("AccessDenied") => Refusal::Denied,
        "UnauthorizedOperation"
        | "AuthFailure"
        | "AuthorizationError"
        | "NotAuthorized"
        | "UnrecognizedClient"
        | "InvalidClientTokenId"
        | "InvalidAccessKeyId"
        | "SignatureDoesNotMatch"
        | "InvalidSignature"
        | "IncompleteSignature"
        | "MissingAuthenticationToken"
        | "InvalidToken"
        | "ExpiredToken"
        | "RequestExpired"
        | "OptInRequired" => Refusal::Denied,
        _ if status == 429 || status >= 500 => Refusal::Temporary,
        _ if status == 401 || status == 403 => Refusal::Denied,
        _ => Refusal::Invalid,
    }
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

/// The first line of what a server said, cut to a length that fits a sentence.
pub(super) fn first_line(text: &str) -> String {
    text.trim().lines().next().unwrap_or_default().chars().take(MAX_MESSAGE).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn what_is_worth_another_attempt_is_told_from_what_is_not() {
        for (status, code, expected) in [
            (400, "Throttling", Refusal::Temporary),
            (400, "OperationAborted", Refusal::Temporary),
            (429, "", Refusal::Temporary),
            (503, "ServiceUnavailable", Refusal::Temporary),
            (400, "ResourceNotFound", Refusal::Missing),
            (400, "ResourceAlreadyExists", Refusal::Exists),
            (400, "UnrecognizedClient", Refusal::Denied),
            (403, "UnauthorizedOperation", Refusal::Denied),
            (403, "", Refusal::Denied),
            (400, "InvalidParameterValue", Refusal::Invalid),
            (404, "", Refusal::Invalid),
        ] {
            assert_eq!(meaning(status, code), expected, "{status} {code}");
        }
    }
}
