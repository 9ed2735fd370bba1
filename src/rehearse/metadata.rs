//! The simulated instance metadata service: version 2 only, as strict about tokens as the real one.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use hyper::{Method, StatusCode};
use ring::rand::{SecureRandom, SystemRandom};

use super::http::{Answer, Question};
use crate::facts::os::Arch;

/// The id of the simulated instance: the right shape, and nobody's.
pub(super) const INSTANCE_ID: &str = "i-00000000000000000";
/// The account that Amazon's own documents use.
const ACCOUNT: &str = "123456789012";
const IMAGE_ID: &str = "ami-00000000000000000";
pub(super) const HOST_NAME: &str = "ip-10-0-0-23";
const MAC: &str = "0a:ff:d2:11:22:33";
/// The longest life that the real service grants a token.
const MAX_TOKEN_SECONDS: u64 = 21_600;

/// The service's answers and the tokens it has given out.
pub(super) struct Metadata {
    items: HashMap<String, Vec<u8>>,
    tokens: Mutex<HashMap<String, Instant>>,
}

impl Metadata {
    /// For an instance of this type with this user-data.
    pub(super) fn new(instance_type: &str, arch: Arch, user_data: Vec<u8>) -> Self {
        let document = serde_json::json!({
            "accountId": ACCOUNT,
            "architecture": match arch { Arch::Amd64 => "x86_64", Arch::Arm64 => "arm64" },
            "availabilityZone": "us-east-1a",
            "billingProducts": null,
            "devpayProductCodes": null,
            "imageId": IMAGE_ID,
            "instanceId": INSTANCE_ID,
            "instanceType": instance_type,
            "kernelId": null,
            "marketplaceProductCodes": null,
            "pendingTime": "2025-01-01T00:00:00Z",
            "privateIp": "10.0.0.23",
            "ramdiskId": null,
            "region": "us-east-1",
            "version": "2017-09-30",
        });
        let full_name = format!("{HOST_NAME}.ec2.internal");
        let texts = [
            ("dynamic/instance-identity/document", format!("{document:#}")),
            ("meta-data/ami-id", IMAGE_ID.to_owned()),
            ("meta-data/ami-launch-index", "0".to_owned()),
            ("meta-data/hostname", full_name.clone()),
            ("meta-data/instance-id", INSTANCE_ID.to_owned()),
            ("meta-data/instance-life-cycle", "on-demand".to_owned()),
            ("meta-data/instance-type", instance_type.to_owned()),
            ("meta-data/local-hostname", full_name),
            ("meta-data/local-ipv4", "10.0.0.23".to_owned()),
            ("meta-data/mac", MAC.to_owned()),
            ("meta-data/placement/availability-zone", "us-east-1a".to_owned()),
            ("meta-data/placement/region", "us-east-1".to_owned()),
            ("meta-data/services/domain", "amazonaws.com".to_owned()),
            ("meta-data/services/partition", "aws".to_owned()),
        ];
        let mut items: HashMap<_, _> = texts.map(|(k, v)| (k.to_owned(), v.into_bytes())).into();
        items.insert("user-data".into(), user_data);
        Self { items, tokens: Mutex::default() }
    }

    /// One request.
    pub(super) fn answer(&self, question: &Question) -> Answer {
        if question.method == Method::PUT {
            return self.token(question);
        }
        if question.method != Method::GET && question.method != Method::HEAD {
            return Answer::status(StatusCode::METHOD_NOT_ALLOWED);
        }
        if !self.is_valid(question.header("x-aws-ec2-metadata-token")) {
            return Answer::status(StatusCode::UNAUTHORIZED);
        }
        let path = question.path.strip_prefix("/latest/").map(|p| p.trim_end_matches('/'));
        match path.and_then(|p| self.items.get(p).map(|bytes| (p, bytes))) {
            Some(("user-data", bytes)) => Answer::bytes("application/octet-stream", bytes.clone()),
            Some((_, bytes)) => Answer::bytes("text/plain", bytes.clone()),
            None => path.map_or(Answer::status(StatusCode::NOT_FOUND), |p| self.listing(p)),
        }
    }

    /// The names below a path, one per line, directories with a slash.
    fn listing(&self, path: &str) -> Answer {
        let prefix = format!("{path}/");
        let mut names: Vec<String> = (self.items.keys().filter_map(|k| k.strip_prefix(&prefix)))
            .map(|rest| {
                rest.split_once('/').map_or(rest.to_owned(), |(directory, _)| format!("{directory}/"))
            })
            .collect();
        names.sort();
        names.dedup();
        if names.is_empty() {
            return Answer::status(StatusCode::NOT_FOUND);
        }
        Answer::bytes("text/plain", names.join("\n").into_bytes())
    }

    /// The codes are those of the real service: 403 for another version's path and for a proxy in between, 400
    /// for a missing or impossible life.
    fn token(&self, question: &Question) -> Answer {
        if question.path != "/latest/api/token" || question.header("x-forwarded-for").is_some() {
            return Answer::status(StatusCode::FORBIDDEN);
        }
        let seconds = question.header("x-aws-ec2-metadata-token-ttl-seconds").and_then(|v| v.parse().ok());
        let Some(seconds @ 1..=MAX_TOKEN_SECONDS) = seconds else {
            return Answer::status(StatusCode::BAD_REQUEST);
        };
        let mut random = [0; 28];
        if SystemRandom::new().fill(&mut random).is_err() {
            return Answer::status(StatusCode::SERVICE_UNAVAILABLE);
        }
        let token = random.iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}"); // writing to a String cannot fail
            text
        });
        let until = Instant::now() + Duration::from_secs(seconds);
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner).insert(token.clone(), until);
        Answer::bytes("text/plain", token.into_bytes())
            .with_header("x-aws-ec2-metadata-token-ttl-seconds", seconds.to_string())
    }

    fn is_valid(&self, token: Option<&str>) -> bool {
        let tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        token.and_then(|t| tokens.get(t)).is_some_and(|until| *until > Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(service: &Metadata, method: Method, path: &str, headers: &[(&str, &str)]) -> Answer {
        service.answer(&Question::new(method, path, headers))
    }

    fn token(service: &Metadata) -> String {
        let life = ("x-aws-ec2-metadata-token-ttl-seconds", "60");
        let answer = ask(service, Method::PUT, "/latest/api/token", &[life]);
        assert_eq!(answer.status, StatusCode::OK);
        String::from_utf8(answer.body).unwrap()
    }

    #[test]
    fn nothing_is_said_without_a_token() {
        let service = Metadata::new("g5.xlarge", Arch::Amd64, b"#gpu-bootstrap\n".to_vec());
        for headers in [&[][..], &[("x-aws-ec2-metadata-token", "guessed")]] {
            let answer = ask(&service, Method::GET, "/latest/user-data", headers);
            assert_eq!((answer.status, answer.body), (StatusCode::UNAUTHORIZED, Vec::new()));
        }
    }

    #[test]
    fn a_token_opens_identity_and_user_data() {
        let service = Metadata::new("g5.xlarge", Arch::Amd64, b"#gpu-bootstrap\n".to_vec());
        let token = token(&service);
        let get = |path: &str| ask(&service, Method::GET, path, &[("x-aws-ec2-metadata-token", &token)]);
        assert_eq!(get("/latest/user-data").body, b"#gpu-bootstrap\n");
        let document = get("/latest/dynamic/instance-identity/document").body;
        let document: serde_json::Value = serde_json::from_slice(&document).unwrap();
        assert_eq!(document["instanceType"], "g5.xlarge");
        assert_eq!(get("/latest/meta-data/placement/").body, b"availability-zone\nregion");
        assert_eq!(get("/latest/meta-data/iam/security-credentials/").status, StatusCode::NOT_FOUND);
    }

    #[test]
    fn a_token_needs_a_life_and_no_proxy() {
        let service = Metadata::new("g5.xlarge", Arch::Amd64, Vec::new());
        let life = "x-aws-ec2-metadata-token-ttl-seconds";
        let put = |path, headers: &[_]| ask(&service, Method::PUT, path, headers).status;
        assert_eq!(put("/latest/api/token", &[]), StatusCode::BAD_REQUEST);
        assert_eq!(put("/latest/api/token", &[(life, "21601")]), StatusCode::BAD_REQUEST);
        assert_eq!(put("/2021-03-23/api/token", &[(life, "60")]), StatusCode::FORBIDDEN);
        let proxied = [(life, "60"), ("x-forwarded-for", "10.0.0.1")];
        assert_eq!(put("/latest/api/token", &proxied), StatusCode::FORBIDDEN);
    }
}
