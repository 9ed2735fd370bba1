//! Whom requests are signed as: the environment's credentials, or the instance role's. They are asked for when they are
//! needed, and neither logged nor stored.

use std::fmt;
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use jiff::Timestamp;
use serde::Deserialize;

use super::refusal::{Refusal, Refused, first_line};
use crate::imds;

/// What the metadata service gets for one question; it is one hop away and has answered before.
const METADATA: Duration = Duration::from_secs(3);
const ROLES: &str = "meta-data/iam/security-credentials/";
/// EC2 has new credentials five minutes before the old ones end.
const EARLY: Duration = Duration::from_mins(5);

/// What the process's environment says, by the AWS SDKs' names.
#[derive(Clone, Default)]
pub struct Environment {
    pub(super) credentials: Option<Credentials>,
    pub(super) region: Option<String>,
    endpoints: Vec<(String, String)>,
    /// `AWS_USE_FIPS_ENDPOINT`
    pub(super) fips: bool,
    /// `AWS_USE_DUALSTACK_ENDPOINT`
    pub(super) dual_stack: bool,
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Environment")
            .field("region", &self.region)
            .field("has_credentials", &self.credentials.is_some())
            .finish_non_exhaustive()
    }
}

impl Environment {
    /// Reads the process's environment.
    pub fn of_process() -> Self {
        Self::from_lookup(|name| std::env::var(name).ok())
    }

    /// Reads it through `lookup`.
    pub fn from_lookup(lookup: impl Fn(&str) -> Option<String>) -> Self {
        let set = |name: &str| lookup(name).map(|v| v.trim().to_owned()).filter(|v| !v.is_empty());
        let credentials = match (set("AWS_ACCESS_KEY_ID"), set("AWS_SECRET_ACCESS_KEY")) {
            (Some(id), Some(secret)) => {
                Some(Credentials::new(id, secret, set("AWS_SESSION_TOKEN"), None, "environment"))
            }
            _ => None,
        };
        let services = [
            &super::CLOUDWATCH,
            &super::LOGS,
            &super::CLOUDFORMATION,
            &super::AUTO_SCALING,
            &super::EC2,
            &super::SNS,
            &super::EVENTBRIDGE,
            &super::S3,
        ];
        let names = services.iter().map(|s| s.endpoint_variable()).chain([super::ANY_ENDPOINT.into()]);
        let is_on = |name| set(name).is_some_and(|v| v.eq_ignore_ascii_case("true"));
        Self {
            credentials,
            region: set("AWS_REGION").or_else(|| set("AWS_DEFAULT_REGION")),
            endpoints: names.filter_map(|name| set(&name).map(|url| (name, url))).collect(),
            fips: is_on("AWS_USE_FIPS_ENDPOINT"),
            dual_stack: is_on("AWS_USE_DUALSTACK_ENDPOINT"),
        }
    }

    /// Whether it names somebody to sign as.
    pub fn has_credentials(&self) -> bool {
        self.credentials.is_some()
    }

    /// The endpoint that a variable names.
    pub(super) fn endpoint(&self, variable: &str) -> Option<&str> {
        self.endpoints.iter().find(|(name, _)| name == variable).map(|(_, url)| url.as_str())
    }
}

/// Whether credentials end so soon that others must be asked for.
pub(super) fn is_over(credentials: &Credentials, now: Timestamp) -> bool {
    credentials.expiry().is_some_and(|end| end <= SystemTime::from(now) + EARLY)
}

/// The instance role's credentials. `Nobody` where the instance has no role.
pub(super) async fn of_role(imds: &imds::Client) -> Result<Credentials, Refused> {
    let client = imds.renewed(METADATA);
    let roles = client.get(ROLES).await.map_err(|e| Refused::because(&e))?.unwrap_or_default();
    let role = String::from_utf8_lossy(&roles).lines().next().unwrap_or_default().trim().to_owned();
    if role.is_empty() {
        return Err(Refused::new(Refusal::Nobody, "the instance has no role"));
    }
    if !role.bytes().all(|b| b.is_ascii_alphanumeric() || b"+=,.@-_".contains(&b)) {
        let why = format!("{} names an impossible role", client.url(ROLES));
        return Err(Refused::new(Refusal::Denied, why));
    }
    let answer = client.get(&format!("{ROLES}{role}")).await.map_err(|e| Refused::because(&e))?;
    read(&answer.unwrap_or_default(), &role)
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
    #[serde(default)]
    expiration: Option<String>,
}

fn read(answer: &[u8], role: &str) -> Result<Credentials, Refused> {
    let denied = |why: String| Refused::new(Refusal::Denied, why);
    // serde's message is left out: it may quote what it could not read.
    let answer: RoleAnswer = serde_json::from_slice(answer).map_err(|_quotes_secrets| {
        denied(format!("the metadata service has no usable credentials of role {role}"))
    })?;
    if answer.code != "Success" {
        let code = first_line(&answer.code);
        return Err(denied(format!("the metadata service has no credentials of role {role}: {code}")));
    }
    let end = answer.expiration.and_then(|text| text.parse::<Timestamp>().ok()).map(SystemTime::from);
    Ok(Credentials::new(answer.access_key_id, answer.secret_access_key, Some(answer.token), end, "role"))
}

#[cfg(any(test, fuzzing))]
pub(super) fn fuzz_role(bytes: &[u8]) {
    if let Ok(credentials) = read(bytes, "gpu-node") {
        let _ = is_over(&credentials, Timestamp::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(vars: &[(&str, &str)]) -> Environment {
        let vars: Vec<_> = vars.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Environment::from_lookup(|name| vars.iter().find(|(k, _)| k == name).map(|(_, v)| v.clone()))
    }

    #[test]
    fn the_environments_names_are_the_sdks() {
        let all = environment(&[
            ("AWS_ACCESS_KEY_ID", "AKIA"),
            ("AWS_SECRET_ACCESS_KEY", "geheim"),
            ("AWS_DEFAULT_REGION", "eu-west-1"),
            ("AWS_REGION", "eu-central-1"),
            ("AWS_ENDPOINT_URL", "http://all"),
            ("AWS_ENDPOINT_URL_CLOUDWATCH_LOGS", "http://logs"),
            ("AWS_USE_FIPS_ENDPOINT", "True"),
        ]);
        assert_eq!(all.region.as_deref(), Some("eu-central-1"));
        assert_eq!(all.endpoint("AWS_ENDPOINT_URL_CLOUDWATCH_LOGS"), Some("http://logs"));
        assert_eq!(all.endpoint("AWS_ENDPOINT_URL"), Some("http://all"));
        assert!(all.fips && !all.dual_stack);
        assert!(all.has_credentials() && !format!("{all:?}").contains("geheim"));
        assert!(!environment(&[("AWS_ACCESS_KEY_ID", "AKIA")]).has_credentials());
    }

    #[test]
    fn a_roles_credentials_are_renewed_before_they_end() {
        let answer = br#"{"Code":"Success","AccessKeyId":"a","SecretAccessKey":"b","Token":"c","Expiration":"2026-11-23T15:00:00Z"}"#;
        let credentials = read(answer, "gpu-node").unwrap_or_else(|_| panic!("they can be read"));
        let over = |at: &str| is_over(&credentials, at.parse().unwrap());
        assert!(!over("2026-11-23T14:54:59Z"));
        assert!(over("2026-11-23T14:55:01Z") && over("2027-01-01T00:00:00Z"));
    }
}
