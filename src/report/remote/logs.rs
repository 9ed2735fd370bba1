//! Events → CloudWatch Logs: one JSON object for each, with the step's figure inside in embedded metric format.
//! <https://docs.aws.amazon.com/AmazonCloudWatchLogs/latest/APIReference/API_PutLogEvents.html>

use std::cell::Cell;
use std::rc::Rc;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::Settings;
use super::channel::{Taken, Target};
use super::figures::StepFigure;
use crate::aws::{self, Refusal, Refused, Session};
use crate::config::schema::Enabled;
use crate::report::event::{Event, EventKind};

/// The service takes 1,048,576 bytes, each event counted with 26 more.
const MOST_BYTES: usize = 1_000_000;
const OVERHEAD: usize = 26;
/// The service takes 10,000.
const MOST: usize = 10_000;
/// The service takes what lies within 24 hours.
const SPAN: SignedDuration = SignedDuration::from_mins(24 * 60 - 1);
/// The service takes what is not older than 14 days.
const KEEPS: SignedDuration = SignedDuration::from_hours(14 * 24 - 1);
/// Longer than any event but one that quotes megabytes of somebody's output.
const LONGEST: usize = 200_000;

/// One line of a log.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Line {
    stream: String,
    at: Timestamp,
    message: String,
    /// May be dropped before others.
    is_detail: bool,
}

/// CloudWatch Logs.
pub(super) struct Logs {
    pub(super) session: Rc<Session>,
    pub(super) settings: Rc<Settings>,
    /// The group was made, and its retention could not be set.
    keeps_for_ever: Cell<bool>,
}

impl Target for Logs {
    type Item = Line;

    fn name(&self) -> &'static str {
        "cloudwatch logs"
    }

    fn keeps(&self) -> SignedDuration {
        KEEPS
    }

    fn made(item: &Line) -> Timestamp {
        item.at
    }

    fn is_detail(item: &Line) -> bool {
        item.is_detail
    }

    fn may_be_off(&self) -> bool {
        self.settings.report.cloudwatch.enabled != Enabled::Fixed(true)
    }

    fn batch<'a>(&self, items: impl Iterator<Item = &'a Line>) -> usize {
        let mut items = items.peekable();
        let Some(first) = items.peek().copied() else { return 0 };
        let (mut bytes, mut earliest, mut latest) = (0, first.at, first.at);
        let fits = |line: &&'a Line| {
            bytes += line.message.len() + OVERHEAD;
            (earliest, latest) = (earliest.min(line.at), latest.max(line.at));
            line.stream == first.stream && bytes <= MOST_BYTES && latest.duration_since(earliest) <= SPAN
        };
        items.take(MOST).take_while(fits).count()
    }

    async fn send(&self, items: &[Line]) -> Result<Taken, Refused> {
        let stream = items.first().map(|line| line.stream.as_str()).unwrap_or_default();
        let put = match self.put(stream, items).await {
            Err(e) if e.refusal == Refusal::Missing => {
                self.make_stream(stream).await?;
                self.put(stream, items).await
            }
            other => other,
        };
        let note = self.keeps_for_ever.get().then_some("sent; the log group's retention could not be set");
        put.map(|taken| Taken { note, ..taken }).map_err(|e| self.advised(e))
    }
}

impl Logs {
    pub(super) fn new(session: Rc<Session>, settings: Rc<Settings>) -> Self {
        Self { session, settings, keeps_for_ever: Cell::new(false) }
    }

    async fn put(&self, stream: &str, items: &[Line]) -> Result<Taken, Refused> {
        // A clock that was set back makes later events earlier ones; the service wants them by their time.
        let mut order: Vec<&Line> = items.iter().collect();
        order.sort_by_key(|line| line.at);
        let events: Vec<_> = order
            .iter()
            .map(|line| {
                json!({ "timestamp": self.session.corrected(line.at).as_millisecond(), "message": line.message })
            })
            .collect();
        let answer = self
            .call("Logs_20140328.PutLogEvents", &json!({ "logStreamName": stream, "logEvents": events }))
            .await?;
        Ok(taken(&answer, items.len()))
    }

    /// Makes the stream, and the group where there is none. Whoever did so meanwhile has done our work.
    async fn make_stream(&self, stream: &str) -> Result<(), Refused> {
        const STREAM: &str = "Logs_20140328.CreateLogStream";
        let names = json!({ "logStreamName": stream });
        match exists(self.call(STREAM, &names).await) {
            Err(e) if e.refusal == Refusal::Missing => {
                exists(self.call("Logs_20140328.CreateLogGroup", &json!({})).await)?;
                let days = self.settings.report.cloudwatch.retention_days;
                let kept =
                    self.call("Logs_20140328.PutRetentionPolicy", &json!({ "retentionInDays": days })).await;
                // No reason not to log, and one to say so: the group keeps its events for ever then.
                self.keeps_for_ever.set(kept.is_err());
                exists(self.call(STREAM, &names).await)
            }
            other => other,
        }
    }

    async fn call(&self, target: &'static str, fields: &Value) -> Result<Value, Refused> {
        let mut body = fields.clone();
        body["logGroupName"] = self.settings.report.cloudwatch.log_group.as_str().into();
        let request = aws::Request {
            service: &aws::LOGS,
            region: None,
            content_type: "application/x-amz-json-1.1",
            target: Some(target),
            is_gzip: false,
            body: body.to_string().into_bytes(),
        };
        let answer = self.session.send(&request).await?;
        Ok(serde_json::from_slice(&answer).unwrap_or_default())
    }

    fn advised(&self, e: Refused) -> Refused {
        if !e.code.starts_with("AccessDenied") {
            return e;
        }
        let group = &self.settings.report.cloudwatch.log_group;
        e.with_advice(&format!(
            "the role needs logs:CreateLogGroup, CreateLogStream, PutLogEvents and PutRetentionPolicy on {group}"
        ))
    }
}

/// Made by somebody else is made.
fn exists(answer: Result<Value, Refused>) -> Result<(), Refused> {
    match answer {
        Err(e) if e.refusal != Refusal::Exists => Err(e),
        _ => Ok(()),
    }
}

/// What an answer says about a batch: events before an index were too old, from another on too new (a clock that runs
/// ahead: later they will not be).
fn taken(answer: &Value, all: usize) -> Taken {
    let rejected = &answer["rejectedLogEventsInfo"];
    let index = |name: &str| rejected[name].as_u64().and_then(|n| usize::try_from(n).ok());
    let later = index("tooNewLogEventStartIndex").map_or(0, |start| all.saturating_sub(start));
    let lost = index("tooOldLogEventEndIndex").max(index("expiredLogEventEndIndex")).unwrap_or(0);
    Taken { later, lost: lost.min(all - later), note: None }
}

/// An event's line; none for what only matters while it happens.
pub(super) fn line(
    settings: &Settings,
    event: &Event,
    number: u64,
    figure: Option<&StepFigure>,
) -> Option<Line> {
    if matches!(event.kind, EventKind::Progress(_) | EventKind::ActionChecked { .. } | EventKind::Unknown) {
        return None;
    }
    let Ok(Value::Object(mut message)) = serde_json::to_value(event) else { return None };
    let mut add = |name: &str, value: Value| drop(message.insert(name.into(), value));
    add("instance_id", settings.instance_id.as_str().into());
    add("instance_type", settings.instance_type().into());
    add("run", settings.run.to_string().into());
    add("seq", number.into());
    if let Some(figure) = figure {
        embed(&mut message, settings, figure);
    }
    let mut text = Value::Object(message).to_string();
    if text.len() > LONGEST {
        let name = serde_json::to_value(event).ok().and_then(|v| v["event"].as_str().map(str::to_owned));
        text = json!({ "event": name, "at": event.at, "instance_id": settings.instance_id, "seq": number,
                       "run": settings.run, "left_out": text.len() })
        .to_string();
    }
    Some(Line {
        stream: stream(&settings.instance_id),
        at: event.at,
        message: text,
        is_detail: matches!(
            event.kind,
            EventKind::StepStarted { .. } | EventKind::Notice { .. } | EventKind::Reported { .. }
        ),
    })
}

/// Adds a step's figure in embedded metric format: CloudWatch makes metrics of it when the event arrives.
fn embed(message: &mut Map<String, Value>, settings: &Settings, figure: &StepFigure) {
    let mut dimensions = vec![json!(["InstanceType", "Step", "Outcome"])];
    if settings.report.cloudwatch.instance_dimension {
        dimensions.push(json!(["InstanceId", "Step", "Outcome"]));
        message.insert("InstanceId".into(), settings.instance_id.as_str().into());
    }
    message.insert("InstanceType".into(), settings.instance_type().into());
    message.insert("Step".into(), figure.step.as_str().into());
    message.insert("Outcome".into(), figure.outcome.into());
    message.insert("StepSeconds".into(), figure.seconds.into());
    let metadata = json!({
        "Timestamp": figure.at.as_millisecond(),
        "CloudWatchMetrics": [{
            "Namespace": settings.report.cloudwatch.namespace,
            "Dimensions": dimensions,
            "Metrics": [{ "Name": "StepSeconds", "Unit": "Seconds" }],
        }],
    });
    message.insert("_aws".into(), metadata);
}

/// A stream's name has no colon and no asterisk.
fn stream(instance_id: &str) -> String {
    instance_id.replace([':', '*'], "-")
}

/// Any bytes as an answer to a batch of ten.
#[cfg(any(test, fuzzing))]
pub(super) fn fuzz_answer(bytes: &[u8]) {
    let taken = taken(&serde_json::from_slice(bytes).unwrap_or_default(), 10);
    assert!(taken.later + taken.lost <= 10);
}

#[cfg(test)]
mod tests {
    use super::super::tests::{session, settings};
    use super::*;

    fn line_at(at: &str, stream: &str, bytes: usize) -> Line {
        Line { stream: stream.into(), at: at.parse().unwrap(), message: "x".repeat(bytes), is_detail: false }
    }

    #[test]
    fn a_batch_keeps_the_services_limits() {
        let logs = Logs::new(session(), settings().into());
        let batch = |lines: &[Line]| logs.batch(lines.iter());
        let noon = "2026-11-23T12:00:00Z";
        assert_eq!(batch(&vec![line_at(noon, "a", 10); 10_001]), 10_000);
        assert_eq!(batch(&vec![line_at(noon, "a", 199_974); 7]), 5, "five of them are a million bytes");
        assert_eq!(batch(&[line_at(noon, "a", 1), line_at(noon, "b", 1)]), 1);
        assert_eq!(batch(&[line_at(noon, "a", 1), line_at("2026-11-24T12:00:00Z", "a", 1)]), 1);
        assert_eq!(batch(&[line_at(noon, "a", 1), line_at("2026-11-22T12:00:00Z", "a", 1)]), 1);
        assert_eq!(batch(&[line_at(noon, "a", 1), line_at("2026-11-24T11:00:00Z", "a", 1)]), 2);
    }

    #[test]
    fn a_partial_refusal_is_told_apart() {
        let of = |json: Value| taken(&json!({ "rejectedLogEventsInfo": json }), 10);
        let told = |t: Taken| (t.later, t.lost);
        assert_eq!(told(of(json!({ "tooNewLogEventStartIndex": 4 }))), (6, 0));
        assert_eq!(told(of(json!({ "tooOldLogEventEndIndex": 3, "tooNewLogEventStartIndex": 8 }))), (2, 3));
        assert_eq!(told(of(json!({ "expiredLogEventEndIndex": 99 }))), (0, 10));
        assert_eq!(told(taken(&json!({}), 10)), (0, 0));
    }

    #[test]
    fn an_event_that_is_too_long_is_said_to_be_left_out() {
        let kind = EventKind::Notice { text: "x".repeat(LONGEST) };
        let event = Event { at: Timestamp::now(), kind };
        let line = line(&settings(), &event, 7, None).unwrap();
        let message: Value = serde_json::from_str(&line.message).unwrap();
        assert!(message["event"] == "notice" && message["left_out"].as_u64().unwrap() > LONGEST as u64);
    }
}
