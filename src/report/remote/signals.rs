//! Who is told once how a run ended: CloudFormation, an Auto Scaling group, a tag of the instance, an SNS topic, an
//! event bus, a webhook. Each is a channel of its own, so that none waits for another.

use std::rc::Rc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Settings;
use super::channel::{Taken, Target};
use crate::aws::{self, Refusal, Refused, Service, Session};
use crate::config::schema::OnFailure;

const FORM: &str = "application/x-www-form-urlencoded";
/// A stack or a group waits for hours at most; a signal after that would be about another launch.
const WAITED_FOR: SignedDuration = SignedDuration::from_hours(12);
const NEWS: SignedDuration = SignedDuration::from_hours(14 * 24);
/// EC2's longest value of a tag, in characters.
const TAG_VALUE: usize = 256;
/// SNS's longest subject, in characters.
const SUBJECT: usize = 100;
const DOCUMENT: &str = "dynamic/instance-identity/document";
const SIGNATURE: &str = "dynamic/instance-identity/signature";

/// Who is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum To {
    CloudFormation,
    AutoScaling,
    Tag,
    Sns,
    EventBridge,
    Webhook,
}

/// What is said: of a run that ended, or that has begun.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Word {
    at: Timestamp,
    /// `running`, or the run's outcome.
    pub(super) state: String,
    instance_id: String,
    /// The whole story, for those who read one.
    story: Value,
}

impl Word {
    pub(super) fn new(settings: &Settings, at: Timestamp, state: &str, story: Value) -> Self {
        Self { at, state: state.into(), instance_id: settings.instance_id.clone(), story }
    }

    /// What a stack or a group makes of it; nothing, where the run goes on at another time.
    fn is_success(&self) -> Option<bool> {
        match self.state.as_str() {
            "converged" | "skipped" => Some(true),
            "failed" => Some(false),
            _ => None,
        }
    }
}

/// One of those who are told.
pub(super) struct Signal {
    pub(super) to: To,
    pub(super) session: Rc<Session>,
    pub(super) settings: Rc<Settings>,
}

/// Those that the configuration names.
pub(super) fn configured(settings: &Settings) -> Vec<To> {
    let report = &settings.report;
    let all = [
        (To::CloudFormation, &report.cloudformation.stack),
        (To::AutoScaling, &report.autoscaling.group),
        (To::Tag, &report.tag),
        (To::Sns, &report.sns),
        (To::EventBridge, &report.event_bus),
        (To::Webhook, &report.webhook),
    ];
    all.into_iter().filter(|(_, name)| !name.is_empty()).map(|(to, _)| to).collect()
}

impl To {
    /// Whether a word is for this one.
    pub(super) fn wants(self, word: &Word) -> bool {
        match self {
            Self::CloudFormation | Self::AutoScaling => word.is_success().is_some(),
            Self::Tag => true,
            Self::Sns | Self::EventBridge | Self::Webhook => word.state != "running",
        }
    }
}

impl Target for Signal {
    type Item = Word;

    fn name(&self) -> &'static str {
        match self.to {
            To::CloudFormation => "cloudformation",
            To::AutoScaling => "autoscaling",
            To::Tag => "tag",
            To::Sns => "sns",
            To::EventBridge => "event bus",
            To::Webhook => "webhook",
        }
    }

    fn keeps(&self) -> SignedDuration {
        if matches!(self.to, To::CloudFormation | To::AutoScaling) { WAITED_FOR } else { NEWS }
    }

    fn made(item: &Word) -> Timestamp {
        item.at
    }

    /// An image may have been captured with another instance's words in it.
    fn still_holds(&self, item: &Word) -> bool {
        item.instance_id == self.settings.instance_id
    }

    fn only_the_last(&self) -> bool {
        matches!(self.to, To::CloudFormation | To::AutoScaling | To::Tag)
    }

    async fn send(&self, items: &[Word]) -> Result<Taken, Refused> {
        let Some(word) = items.first() else { return Ok(Taken::default()) };
        let said = match self.to {
            To::CloudFormation => self.stack(word).await,
            To::AutoScaling => self.hook(word).await,
            To::Tag => self.tag(word).await,
            To::Sns => self.topic(word).await,
            To::EventBridge => self.bus(word).await,
            To::Webhook => self.webhook(word).await,
        };
        match said {
            Ok(()) => Ok(Taken::default()),
            // Every boot after the launch's, and a word that was taken while its answer was lost.
            Err(e) if self.nobody_waits(&e) => {
                Ok(Taken { note: Some("nobody waits for it any more"), ..Taken::default() })
            }
            Err(e) => Err(e),
        }
    }
}

impl Signal {
    /// Whether a refusal says that the launch is over. Both services have one code for all that is wrong.
    fn nobody_waits(&self, e: &Refused) -> bool {
        e.code == "ValidationError"
            && match self.to {
                To::CloudFormation => e.message.contains("and can not be signaled"),
                To::AutoScaling => e.message.contains("No active Lifecycle Action found"),
                _ => false,
            }
    }

    /// By the role; without one, or where the role may not, by the instance's identity document, as `cfn-signal` does: the
    /// service then looks whether the instance belongs to the stack.
    async fn stack(&self, word: &Word) -> Result<(), Refused> {
        let config = &self.settings.report.cloudformation;
        let status = if word.is_success() == Some(true) { "SUCCESS" } else { "FAILURE" };
        let body = form(&[
            ("Action", "SignalResource"),
            ("Version", "2010-05-15"),
            ("StackName", &config.stack),
            ("LogicalResourceId", &config.resource),
            ("UniqueId", &word.instance_id),
            ("Status", status),
        ]);
        let request = query(&aws::CLOUDFORMATION, None, body);
        let refused = match self.session.send(&request).await {
            Ok(_) => return Ok(()),
            Err(e) if matches!(e.refusal, Refusal::Nobody | Refusal::Denied) => e,
            Err(e) => return Err(e),
        };
        let Some(authorization) = self.identity().await? else { return Err(refused) };
        self.session.send_as(&request, &authorization).await.map(drop)
    }

    /// `CFN_V1`: the signed identity document as an `Authorization`.
    async fn identity(&self) -> Result<Option<String>, Refused> {
        let Some(imds) = self.session.imds() else { return Ok(None) };
        let imds = imds.renewed(std::time::Duration::from_secs(3));
        let document = imds.get(DOCUMENT).await.map_err(|e| Refused::because(&e))?;
        let signature = imds.get(SIGNATURE).await.map_err(|e| Refused::because(&e))?;
        let (Some(document), Some(signature)) = (document, signature) else { return Ok(None) };
        let signature: String = String::from_utf8_lossy(&signature).split_whitespace().collect();
        Ok(Some(format!("CFN_V1 {}:{signature}", STANDARD.encode(document))))
    }

    async fn hook(&self, word: &Word) -> Result<(), Refused> {
        let config = &self.settings.report.autoscaling;
        let goes_on = word.is_success() == Some(true) || config.on_failure == OnFailure::Continue;
        let result = if goes_on { "CONTINUE" } else { "ABANDON" };
        let body = form(&[
            ("Action", "CompleteLifecycleAction"),
            ("Version", "2011-01-01"),
            ("AutoScalingGroupName", &config.group),
            ("LifecycleHookName", &config.hook),
            ("InstanceId", &word.instance_id),
            ("LifecycleActionResult", result),
        ]);
        self.asked(&aws::AUTO_SCALING, None, body, "autoscaling:CompleteLifecycleAction").await
    }

    /// Prolongs the hook's time-out.
    pub(super) async fn heartbeat(&self) -> Result<(), Refused> {
        let config = &self.settings.report.autoscaling;
        let body = form(&[
            ("Action", "RecordLifecycleActionHeartbeat"),
            ("Version", "2011-01-01"),
            ("AutoScalingGroupName", &config.group),
            ("LifecycleHookName", &config.hook),
            ("InstanceId", &self.settings.instance_id),
        ]);
        self.asked(&aws::AUTO_SCALING, None, body, "autoscaling:RecordLifecycleActionHeartbeat").await
    }

    async fn tag(&self, word: &Word) -> Result<(), Refused> {
        let value = match word.story["error"]["code"].as_str() {
            Some(code) if word.state == "failed" => format!("{}: {code}", word.state),
            _ => word.state.clone(),
        };
        let body = form(&[
            ("Action", "CreateTags"),
            ("Version", "2016-11-15"),
            ("ResourceId.1", &word.instance_id),
            ("Tag.1.Key", &self.settings.report.tag),
            ("Tag.1.Value", &value.chars().take(TAG_VALUE).collect::<String>()),
        ]);
        self.asked(&aws::EC2, None, body, "ec2:CreateTags").await
    }

    async fn topic(&self, word: &Word) -> Result<(), Refused> {
        let topic = &self.settings.report.sns;
        let subject = format!("gpu-bootstrap: {} {}", word.instance_id, word.state);
        let body = form(&[
            ("Action", "Publish"),
            ("Version", "2010-03-31"),
            ("TopicArn", topic),
            ("Subject", &subject.chars().filter(char::is_ascii).take(SUBJECT).collect::<String>()),
            ("Message", &word.story.to_string()),
        ]);
        // A topic lives in the region that its name says.
        self.asked(&aws::SNS, topic.split(':').nth(3), body, "sns:Publish").await
    }

    async fn bus(&self, word: &Word) -> Result<(), Refused> {
        let bus = &self.settings.report.event_bus;
        let entry = json!({
            "EventBusName": bus, "Source": "gpu-bootstrap", "DetailType": "GPU Bootstrap State Change",
            "Time": self.session.corrected(word.at).as_second(), "Detail": word.story.to_string(),
        });
        let request = aws::Request {
            service: &aws::EVENTBRIDGE,
            region: bus.strip_prefix("arn:").and_then(|arn| arn.split(':').nth(2)),
            content_type: "application/x-amz-json-1.1",
            target: Some("AWSEvents.PutEvents"),
            is_gzip: false,
            body: json!({ "Entries": [entry] }).to_string().into_bytes(),
        };
        let answer = self.session.send(&request).await.map_err(|e| advised(e, "events:PutEvents"))?;
        let answer: Value = serde_json::from_slice(&answer).unwrap_or_default();
        if answer["FailedEntryCount"].as_u64().unwrap_or(0) == 0 {
            return Ok(());
        }
        let code = answer["Entries"][0]["ErrorCode"].as_str().unwrap_or("without a reason");
        let refusal = if code == "InternalFailure" || code.starts_with("Thrott") {
            Refusal::Temporary
        } else {
            Refusal::Invalid
        };
        Err(Refused::new(refusal, format!("EventBridge refused the event: {code}")))
    }

    async fn webhook(&self, word: &Word) -> Result<(), Refused> {
        let url = &self.settings.report.webhook;
        let request = self
            .session
            .http()?
            .post(url)
            .header("content-type", "application/json")
            .body(word.story.to_string());
        // The path of a webhook is often its secret.
        let host = reqwest::Url::parse(url).ok().and_then(|url| url.host_str().map(str::to_owned));
        let name = format!("the webhook at {}", host.unwrap_or_default());
        aws::send_plain(&name, "webhook", request).await
    }

    async fn asked(
        &self,
        service: &Service,
        region: Option<&str>,
        body: Vec<u8>,
        action: &str,
    ) -> Result<(), Refused> {
        self.session.send(&query(service, region, body)).await.map(drop).map_err(|e| advised(e, action))
    }
}

fn query<'a>(service: &'a Service, region: Option<&'a str>, body: Vec<u8>) -> aws::Request<'a> {
    aws::Request { service, region, content_type: FORM, target: None, is_gzip: false, body }
}

fn advised(e: Refused, action: &str) -> Refused {
    let is_denial = e.code.starts_with("AccessDenied")
        || e.code == "UnauthorizedOperation"
        || e.code == "AuthorizationError";
    if is_denial { e.with_advice(&format!("the role needs {action}")) } else { e }
}

/// `a=b&c=d`, as HTML forms and AWS's Query protocol have it.
fn form(fields: &[(&str, &str)]) -> Vec<u8> {
    let url = reqwest::Url::parse_with_params("http://form/", fields);
    url.ok().and_then(|url| url.query().map(|q| q.as_bytes().to_vec())).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_is_encoded() {
        assert_eq!(form(&[("A", "b c&d"), ("E", "ä=1")]), b"A=b+c%26d&E=%C3%A4%3D1");
    }

    #[test]
    fn a_run_that_goes_on_later_is_no_success_and_no_failure() {
        let word = |state: &str| Word {
            at: Timestamp::now(),
            state: state.into(),
            instance_id: "i-1".into(),
            story: Value::Null,
        };
        for (state, expected) in [
            ("converged", Some(true)),
            ("skipped", Some(true)),
            ("failed", Some(false)),
            ("reboot-needed", None),
            ("interrupted", None),
            ("killed", None),
            ("running", None),
        ] {
            assert_eq!(word(state).is_success(), expected, "{state}");
            assert_eq!(To::CloudFormation.wants(&word(state)), expected.is_some());
            assert!(To::Tag.wants(&word(state)));
            assert_eq!(To::Sns.wants(&word(state)), state != "running");
        }
    }
}
