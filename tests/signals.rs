//! Who is told how a run ended, and in which words: CloudFormation, Auto Scaling, a tag, a topic, a bus, a webhook.

#![allow(clippy::unwrap_used, reason = "test code: a panic is a failure with a place")]

#[path = "support/deliveries.rs"]
mod deliveries;
#[path = "support/imds.rs"]
mod imds;

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use deliveries::{Delivered, Delivery, INSTANCE, body, clean_run, error, run_finished, scripted, with_role};
use gpu_bootstrap::config::schema::{Enabled, OnFailure, ReportConfig};
use gpu_bootstrap::report::event::{Event, EventKind};
use imds::scripted_http::{Reply, Request, Server};
use serde_json::{Value, json};

const KEY: (&str, &str) = ("AKIAEXAMPLE", "geheim");

/// Only the signals that `change` asks for.
fn to(server: &Server, change: impl FnOnce(&mut ReportConfig)) -> Delivery {
    let mut delivery = Delivery::new(&server.url("")).with_key(KEY);
    delivery.report.cloudwatch.enabled = Enabled::Fixed(false);
    change(&mut delivery.report);
    delivery
}

fn stack(report: &mut ReportConfig) {
    report.cloudformation.stack = "training".into();
    report.cloudformation.resource = "Nodes".into();
}

fn group(report: &mut ReportConfig) {
    report.autoscaling.group = "nodes".into();
    report.autoscaling.hook = "gpu-ready".into();
}

/// A form's fields.
fn fields(request: &Request) -> BTreeMap<String, String> {
    assert_eq!(request.header("content-type"), Some("application/x-www-form-urlencoded"));
    let url = format!("http://form/?{}", String::from_utf8_lossy(&request.body));
    let url = reqwest::Url::parse(&url).unwrap();
    url.query_pairs().map(|(k, v)| (k.into_owned(), v.into_owned())).collect()
}

fn action(request: &Request) -> String {
    fields(request).remove("Action").unwrap()
}

fn failed_run() -> Vec<EventKind> {
    let failed = EventKind::Failed {
        step: Some("driver".into()),
        code: "apt-failed".into(),
        message: "no".into(),
        causes: Vec::new(),
        hint: Some("try".into()),
    };
    vec![EventKind::StepStarted { step: "driver".into() }, failed, run_finished("failed")]
}

#[tokio::test]
async fn a_stack_hears_of_success_and_of_failure_and_of_nothing_between() {
    for (events, status) in [
        (clean_run(), Some("SUCCESS")),
        (vec![run_finished("skipped")], Some("SUCCESS")),
        (failed_run(), Some("FAILURE")),
        (vec![run_finished("reboot-needed")], None),
        (vec![run_finished("interrupted")], None),
        (Vec::new(), None), // killed
    ] {
        let server = scripted(vec![]);
        let delivered = to(&server, stack).run(events).await;
        let Some(status) = status else {
            assert_eq!(
                (server.connections(), delivered.of("cloudformation").as_str()),
                (0, "nothing to send")
            );
            continue;
        };
        assert_eq!(delivered.of("cloudformation"), "sent");
        let fields = fields(&server.log()[0]);
        let of = |name: &str| fields[name].as_str();
        assert_eq!((of("Action"), of("Version"), of("Status")), ("SignalResource", "2010-05-15", status));
        assert_eq!(
            (of("StackName"), of("LogicalResourceId"), of("UniqueId")),
            ("training", "Nodes", INSTANCE)
        );
        let authorization = server.log()[0].header("authorization").unwrap().to_owned();
        assert!(authorization.contains("/us-east-1/cloudformation/aws4_request"), "{authorization}");
    }
}

/// As `cfn-signal` does it: the service looks whether the instance belongs to the stack.
#[tokio::test]
async fn without_a_role_a_stack_takes_the_instances_identity() {
    let document = imds::document("g5.xlarge");
    let service = imds::Imds::new()
        .item("dynamic/instance-identity/document", document.clone())
        .item("dynamic/instance-identity/signature", "abc\ndef\n")
        .start();
    let server = scripted(vec![]);
    let mut delivery = Delivery::new(&server.url("")).with_metadata(&service);
    delivery.report.cloudwatch.enabled = Enabled::Fixed(false);
    stack(&mut delivery.report);
    assert_eq!(delivery.run(clean_run()).await.of("cloudformation"), "sent");
    let request = server.log().remove(0);
    let (word, rest) = request.header("authorization").unwrap().split_once(' ').unwrap();
    let (encoded, signature) = rest.split_once(':').unwrap();
    assert_eq!((word, signature), ("CFN_V1", "abcdef"));
    let decoded = base64::engine::general_purpose::STANDARD.decode(encoded).unwrap();
    assert_eq!(String::from_utf8(decoded).unwrap(), document);

    // A role that may not signal is no reason not to, either.
    let service = with_role("ASIAEXAMPLE", "geheim", "token")
        .item("dynamic/instance-identity/document", document)
        .item("dynamic/instance-identity/signature", "abc")
        .start();
    let server = scripted(vec![error(403, "AccessDeniedException")]);
    let mut delivery = Delivery::new(&server.url("")).with_metadata(&service);
    delivery.report.cloudwatch.enabled = Enabled::Fixed(false);
    stack(&mut delivery.report);
    assert_eq!(delivery.run(clean_run()).await.of("cloudformation"), "sent");
    assert_eq!(server.log().len(), 2);
}

#[tokio::test]
async fn a_hook_is_prolonged_and_then_completed_as_configured() {
    for (events, on_failure, result) in [
        (clean_run(), OnFailure::Abandon, "CONTINUE"),
        (failed_run(), OnFailure::Continue, "CONTINUE"),
        (failed_run(), OnFailure::Abandon, "ABANDON"),
    ] {
        let server = scripted(vec![]);
        let delivery = to(&server, |report| {
            group(report);
            report.autoscaling.on_failure = on_failure;
            report.autoscaling.heartbeat = 1;
        });
        let (said, mut heard) = tokio::sync::mpsc::unbounded_channel();
        let work = async {
            // The run works for three heartbeats.
            tokio::time::sleep(Duration::from_millis(2500)).await;
            for kind in events {
                said.send(Event { at: jiff::Timestamp::now(), kind }).unwrap();
            }
            drop(said);
        };
        let (delivered, ()) = tokio::join!(delivery.hear(&mut heard), work);
        assert_eq!(delivered.of("autoscaling"), "sent");
        let log = server.log();
        let actions: Vec<_> = log.iter().map(action).collect();
        let beat = "RecordLifecycleActionHeartbeat";
        assert_eq!(actions, [beat, beat, beat, "CompleteLifecycleAction"]);
        let last = fields(&log[3]);
        assert_eq!((last["LifecycleActionResult"].as_str(), last["InstanceId"].as_str()), (result, INSTANCE));
        assert_eq!(
            (last["AutoScalingGroupName"].as_str(), last["LifecycleHookName"].as_str()),
            ("nodes", "gpu-ready")
        );
    }
}

/// An instance that no hook waits for, or a hook that is gone.
#[tokio::test]
async fn a_heartbeat_that_is_refused_changes_nothing() {
    let refused =
        Reply::status(400, "<ErrorResponse><Error><Code>ValidationError</Code></Error></ErrorResponse>");
    let server = Server::start(move |_| refused.clone());
    let delivered = to(&server, group).run(clean_run()).await;
    let why = delivered.of("autoscaling");
    assert!(
        why.contains("Auto Scaling answered 400: ValidationError") && why.contains("1 given up"),
        "{why}"
    );
}

/// Every boot after the launch's.
#[tokio::test]
async fn a_launch_that_is_over_is_no_failure() {
    let refusal = |message: &str| {
        let body = format!("<E><Error><Code>ValidationError</Code><Message>{message}</Message></Error></E>");
        Server::start(move |_| Reply::status(400, body.clone()))
    };
    let server = refusal("No active Lifecycle Action found with instance ID i-0123456789abcdef0");
    assert_eq!(to(&server, group).run(clean_run()).await.of("autoscaling"), "nobody waits for it any more");
    let server = refusal("Stack:arn:x is in CREATE_COMPLETE state and can not be signaled");
    assert_eq!(
        to(&server, stack).run(clean_run()).await.of("cloudformation"),
        "nobody waits for it any more"
    );
    let server = refusal("Stack:training does not exist");
    let why = to(&server, stack).run(clean_run()).await.of("cloudformation");
    assert!(why.contains("does not exist") && why.contains("1 given up"), "{why}");
}

#[tokio::test]
async fn a_tag_says_how_far_the_instance_is() {
    for (events, value) in [
        (clean_run(), "converged"),
        (failed_run(), "failed: apt-failed"),
        (vec![run_finished("reboot-needed")], "reboot-needed"),
        (Vec::new(), "killed"),
    ] {
        let server = scripted(vec![]);
        let delivered = to(&server, |report| report.tag = "gpu".into()).run(events).await;
        assert_eq!(delivered.of("tag"), "sent");
        let log = server.log();
        let last = fields(log.last().unwrap());
        assert_eq!((last["Action"].as_str(), last["ResourceId.1"].as_str()), ("CreateTags", INSTANCE));
        assert_eq!((last["Tag.1.Key"].as_str(), last["Tag.1.Value"].as_str()), ("gpu", value));
    }
}

#[tokio::test]
async fn a_running_instance_is_tagged_so() {
    let server = scripted(vec![]);
    let delivery = to(&server, |report| report.tag = "gpu".into());
    let (said, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let work = async {
        deliveries::soon(|| !server.log().is_empty()).await;
        assert_eq!(fields(&server.log()[0])["Tag.1.Value"], "running");
        said.send(Event { at: jiff::Timestamp::now(), kind: run_finished("converged") }).unwrap();
        drop(said);
    };
    tokio::join!(delivery.hear(&mut heard), work);
    assert_eq!(fields(&server.log()[1])["Tag.1.Value"], "converged");
}

/// An image captured before its builder had told its own stack.
#[tokio::test]
async fn a_clone_does_not_speak_for_the_instance_it_was_made_of() {
    let server = scripted(vec![error(403, "AccessDenied")]);
    let delivery = to(&server, stack);
    let root = delivery.root();
    let delivered = delivery.run(clean_run()).await;
    assert_eq!(delivered.spooled().len(), 1);
    let path = root.path().join("var/lib/gpu-bootstrap/spool").join(&delivered.spooled()[0]);
    let of_another = std::fs::read_to_string(&path).unwrap().replace(INSTANCE, "i-0fedcba9876543210");
    std::fs::write(&path, of_another).unwrap();

    let server = scripted(vec![]);
    let (said, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let work = async {
        // What was left is taken over at once, and would be sent while the run works.
        tokio::time::sleep(Duration::from_secs(6)).await;
        said.send(Event { at: jiff::Timestamp::now(), kind: run_finished("converged") }).unwrap();
        drop(said);
    };
    let (delivered, ()) = tokio::join!(to(&server, stack).at(root).hear(&mut heard), work);
    assert_eq!((delivered.of("cloudformation").as_str(), delivered.spooled().len()), ("sent", 0));
    let told: Vec<_> = server.log().iter().map(|request| fields(request)["UniqueId"].clone()).collect();
    assert_eq!(told, [INSTANCE]);
}

fn told(story: &Value) {
    assert_eq!((&story["outcome"], &story["instance_id"]), (&json!("failed"), &json!(INSTANCE)));
    assert_eq!(
        story["error"],
        json!({ "step": "driver", "code": "apt-failed", "message": "no", "hint": "try" })
    );
    assert_eq!(
        (&story["steps"][0]["id"], &story["steps"][0]["outcome"]),
        (&json!("driver"), &json!("failed"))
    );
    assert_eq!((&story["exit_code"], &story["seconds"]), (&json!(1), &json!(212.5)));
}

#[tokio::test]
async fn a_topic_is_told_the_story_in_its_own_region() {
    let server = scripted(vec![]);
    let delivery = to(&server, |report| report.sns = "arn:aws:sns:eu-west-1:123456789012:gpu".into());
    assert_eq!(delivery.run(failed_run()).await.of("sns"), "sent");
    let request = server.log().remove(0);
    let authorization = request.header("authorization").unwrap();
    assert!(authorization.contains("/eu-west-1/sns/aws4_request"), "{authorization}");
    let fields = fields(&request);
    assert_eq!(fields["TopicArn"], "arn:aws:sns:eu-west-1:123456789012:gpu");
    assert_eq!(fields["Subject"], format!("gpu-bootstrap: {INSTANCE} failed"));
    told(&serde_json::from_str(&fields["Message"]).unwrap());
}

#[tokio::test]
async fn a_bus_is_told_the_story_and_its_refusal_is_heard() {
    let bus = |report: &mut ReportConfig| report.event_bus = "default".into();
    let server = scripted(vec![Reply::ok(
        r#"{"FailedEntryCount":1,"Entries":[{"ErrorCode":"ThrottlingException"}]}"#,
    )]);
    assert_eq!(to(&server, bus).run(failed_run()).await.of("event bus"), "sent");
    let log = server.log();
    assert_eq!(log.len(), 2);
    assert_eq!(log[1].header("x-amz-target"), Some("AWSEvents.PutEvents"));
    let entry = body(&log[1])["Entries"][0].clone();
    assert_eq!((&entry["Source"], &entry["EventBusName"]), (&json!("gpu-bootstrap"), &json!("default")));
    told(&serde_json::from_str(entry["Detail"].as_str().unwrap()).unwrap());

    let never = Reply::ok(r#"{"FailedEntryCount":1,"Entries":[{"ErrorCode":"MalformedDetail"}]}"#);
    let server = scripted(vec![never]);
    let why = to(&server, bus).run(failed_run()).await.of("event bus");
    assert!(why.contains("MalformedDetail") && why.contains("1 given up"), "{why}");
}

#[tokio::test]
async fn a_webhook_needs_no_role_and_its_path_is_nobodys_business() {
    let server = scripted(vec![Reply::status(500, "")]);
    let run = async |url: String| -> Delivered {
        let mut delivery = Delivery::new("http://127.0.0.1:1");
        delivery.report.cloudwatch.enabled = Enabled::Fixed(false);
        delivery.report.webhook = url;
        delivery.run(failed_run()).await
    };
    assert_eq!(run(server.url("/secret?token=x")).await.of("webhook"), "sent");
    let log = server.log();
    assert_eq!((log.len(), log[1].path.as_str()), (2, "/secret?token=x"));
    assert_eq!(log[1].header("content-type"), Some("application/json"));
    told(&body(&log[1]));

    let server = scripted(vec![Reply::status(404, "secret")]);
    let why = run(server.url("/secret?token=x")).await.of("webhook");
    assert!(why.contains("the webhook at 127.0.0.1 answered 404") && !why.contains("secret"), "{why}");
}

/// Nobody waits for another.
#[tokio::test]
async fn one_that_hangs_holds_nobody_up() {
    let server = Server::start(|request| {
        if request.path == "/slow" {
            std::thread::sleep(Duration::from_secs(3));
        }
        Reply::ok("{}")
    });
    let mut delivery = to(&server, |report| report.tag = "gpu".into());
    delivery.report.webhook = server.url("/slow");
    let (said, mut heard) = tokio::sync::mpsc::unbounded_channel();
    said.send(Event { at: jiff::Timestamp::now(), kind: run_finished("converged") }).unwrap();
    drop(said);
    let mut first = None;
    let began = std::time::Instant::now();
    delivery
        .hear_telling(&mut heard, |standings| {
            let of = |name: &str| standings.iter().find(|s| s.channel == name).unwrap().clone();
            if of("tag").is_over {
                first.get_or_insert((began.elapsed(), of("webhook").is_over));
            }
        })
        .await;
    let (after, webhook_is_over) = first.unwrap();
    assert!(!webhook_is_over && after < Duration::from_secs(3), "{after:?}");
}
