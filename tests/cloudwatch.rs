//! The CloudWatch report, against a real AWS-compatible server that checks signatures and policies, and against
//! one that misbehaves.

#![allow(clippy::unwrap_used, reason = "test code: a panic is a failure with a place")]

#[path = "support/imds.rs"]
mod imds;
#[path = "support/machine.rs"]
mod machine;
#[path = "support/moto.rs"]
mod moto;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use gpu_bootstrap::config::schema::{CloudwatchConfig, Enabled};
use gpu_bootstrap::facts::Fact;
use gpu_bootstrap::facts::identity::{Identity, Instance};
use gpu_bootstrap::imds::{Client, Endpoint};
use gpu_bootstrap::report::cloudwatch::{Delivery, Environment, RunMetrics, put_from};
use imds::scripted_http::{Reply, Server};
use imds::{Imds, Running};
use moto::Moto;

const RUN: RunMetrics = RunMetrics { outcome: "converged", seconds: 212.5 };

fn config(namespace: &str) -> CloudwatchConfig {
    CloudwatchConfig { namespace: namespace.into(), ..CloudwatchConfig::default() }
}

fn identity() -> Identity {
    let instance = Instance {
        id: "i-0123456789abcdef0".into(),
        instance_type: "g5.xlarge".into(),
        region: "us-east-1".into(),
        availability_zone: "us-east-1a".into(),
        account_id: "123456789012".into(),
        image_id: "ami-0abcdef1234567890".into(),
        architecture: "x86_64".into(),
    };
    Identity {
        on_ec2: Fact::new(true, "test"),
        instance: Some(Fact::new(instance, "test")),
        user_data: None,
        boot_id: Fact::new("boot".into(), "test"),
    }
}

fn environment(url: &str, key: Option<(&str, &str)>) -> Environment {
    Environment::from_lookup(|name| match (name, key) {
        ("AWS_ENDPOINT_URL_CLOUDWATCH", _) => Some(url.into()),
        ("AWS_ACCESS_KEY_ID", Some((id, _))) => Some(id.into()),
        ("AWS_SECRET_ACCESS_KEY", Some((_, secret))) => Some(secret.into()),
        _ => None,
    })
}

async fn put(url: &str, key: (&str, &str), namespace: &str) -> Delivery {
    put_from(&environment(url, Some(key)), &RUN, &config(namespace), &identity(), None).await
}

async fn put_as_role(url: &str, service: &Running, namespace: &str) -> Delivery {
    let client = Client::new(Endpoint::Fixed(service.url()), Duration::from_secs(5));
    put_from(&environment(url, None), &RUN, &config(namespace), &identity(), Some(&client)).await
}

/// A metadata service whose role has these credentials.
fn with_role(key: &str, secret: &str, token: &str) -> Imds {
    Imds::new().item("meta-data/iam/security-credentials/", "gpu-node").item(
        "meta-data/iam/security-credentials/gpu-node",
        serde_json::json!({
            "Code": "Success", "LastUpdated": "2026-11-23T00:00:00Z", "Type": "AWS-HMAC", "AccessKeyId": key,
            "SecretAccessKey": secret, "Token": token, "Expiration": "2030-01-01T00:00:00Z",
        })
        .to_string(),
    )
}

fn failure(delivery: Delivery) -> String {
    match delivery {
        Delivery::Failed { why } => why,
        other => panic!("expected a failure, got {other:?}"),
    }
}

/// One server for all of these, because it takes seconds to start.
#[tokio::test]
async fn a_server_that_checks_signatures_takes_ours_and_no_forged_one() {
    let mut moto = Moto::start();
    let dimensions = [("InstanceType", "g5.xlarge"), ("Outcome", "converged")];
    let url = moto.url.clone();

    let (id, secret) = moto.writer.clone();
    assert_eq!(put(&url, (&id, &secret), "ByUser").await, Delivery::Sent);
    assert_eq!(moto.metric("ByUser", "Outcome", &dimensions), (1.0, 1.0, "Count".into()));
    assert_eq!(moto.metric("ByUser", "Seconds", &dimensions), (1.0, 212.5, "Seconds".into()));

    let (key, role_secret, token) = moto.role.clone();
    let service = with_role(&key, &role_secret, &token).start();
    assert_eq!(put_as_role(&url, &service, "ByRole").await, Delivery::Sent);
    assert_eq!(moto.metric("ByRole", "Outcome", &dimensions), (1.0, 1.0, "Count".into()));

    // The same key with one letter of the secret changed: only the signature can tell.
    let last = if secret.ends_with('A') { 'B' } else { 'A' };
    let forged = format!("{}{last}", &secret[..secret.len() - 1]);
    let why = failure(put(&url, (&id, &forged), "Forged").await);
    assert!(why.contains("403") && why.contains("SignatureDoesNotMatch"), "{why}");
    assert!(!why.contains(&forged), "{why}");

    let why = failure(put(&url, ("AKIAUNKNOWNUNKNOWN00", &secret), "Unknown").await);
    assert!(why.contains("InvalidClientTokenId"), "{why}");

    let (id, secret) = moto.stranger.clone();
    let why = failure(put(&url, (&id, &secret), "Denied").await);
    assert!(why.contains("AccessDenied") && why.contains("cloudwatch:PutMetricData"), "{why}");

    let stolen = with_role(&key, &role_secret, "not-the-token").start();
    let why = failure(put_as_role(&url, &stolen, "Stolen").await);
    assert!(why.contains("403"), "{why}");
    assert!(!why.contains("not-the-token"), "{why}");

    let nothing = (0.0, 0.0, String::new());
    for refused in ["Forged", "Unknown", "Denied", "Stolen"] {
        assert_eq!(moto.metric(refused, "Outcome", &dimensions), nothing, "{refused}");
    }
}

/// The metadata service of these tests is only worth something if another client finds it to be one.
#[test]
fn botocore_reads_the_role_from_our_metadata_service_too() {
    let service = with_role("ASIAEXAMPLE", "geheim", "token").start();
    let script = "import json, sys\nfrom botocore.utils import InstanceMetadataFetcher\n\
                  fetcher = InstanceMetadataFetcher(base_url=sys.argv[1], num_attempts=1, timeout=20)\n\
                  print(json.dumps(fetcher.retrieve_iam_role_credentials()))";
    let output = std::process::Command::new(moto::python())
        .args(["-c", script, &service.url()])
        .env_remove("AWS_EC2_METADATA_DISABLED")
        .output()
        .unwrap();
    let read: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&read["access_key"], &read["role_name"]), (&"ASIAEXAMPLE".into(), &"gpu-node".into()));
    assert_eq!(service.asked()[0], "PUT /latest/api/token");
    assert!(service.server.log()[1..].iter().all(|r| r.header("x-aws-ec2-metadata-token").is_some()));
}

/// Answers the first requests with `first`, one after the other, and then as CloudWatch does.
fn scripted(first: Vec<Reply>) -> Server {
    let next = AtomicUsize::new(0);
    Server::start(move |_| first.get(next.fetch_add(1, Ordering::SeqCst)).cloned().unwrap_or(Reply::ok("{}")))
}

fn error(status: u16, code: &str) -> Reply {
    Reply::status(status, format!(r#"{{"__type":"x#{code}","message":"because"}}"#))
}

const KEY: (&str, &str) = ("AKIAEXAMPLE", "geheim");

/// A run that ends before there is a plan is one that somebody waits for, too.
#[test]
fn refusals_mistakes_and_skipped_machines_are_told_too() {
    let config = |text: &str| machine::Machine::debian12().file("/etc/gpu-bootstrap/a.toml", text);
    for (machine, code, outcome) in [
        (machine::Machine::debian12(), 3, "failed"),
        (config("[cuda]\ntoolkit = 12.10\n"), 2, "failed"),
        (config("[policy]\non-no-gpu = \"skip\"\n"), 0, "skipped"),
    ] {
        let server = scripted(vec![]);
        let mut command = machine.command(&["run"]);
        command.env("AWS_ENDPOINT_URL_CLOUDWATCH", server.url("")).env("AWS_REGION", "us-east-1");
        command.env("AWS_ACCESS_KEY_ID", KEY.0).env("AWS_SECRET_ACCESS_KEY", KEY.1);
        let ran = machine::ran(&mut command);
        assert_eq!(ran.code, code, "{ran:?}");
        let log = server.log();
        assert_eq!(log.len(), 1, "{ran:?}");
        let body: serde_json::Value = serde_json::from_slice(&log[0].body).unwrap();
        assert_eq!(body["MetricData"][0]["Dimensions"][1]["Value"], outcome);
        assert!(machine.read("/run/gpu-bootstrap/result.json").contains("cloudwatch: sent"));
    }
}

#[tokio::test]
async fn the_request_is_the_documented_one() {
    let server = scripted(vec![]);
    assert_eq!(put(&server.url(""), KEY, "GpuBootstrap").await, Delivery::Sent);
    let request = server.log().remove(0);
    assert_eq!((request.method.as_str(), request.path.as_str()), ("POST", "/"));
    assert_eq!(request.header("content-type"), Some("application/x-amz-json-1.0"));
    assert_eq!(request.header("x-amz-target"), Some("GraniteServiceVersion20100801.PutMetricData"));
    let authorization = request.header("authorization").unwrap();
    assert!(authorization.contains("/us-east-1/monitoring/aws4_request"), "{authorization}");
    assert!(
        authorization.contains("SignedHeaders=content-type;host;x-amz-date;x-amz-target"),
        "{authorization}"
    );
    let body: serde_json::Value = serde_json::from_slice(&request.body).unwrap();
    assert_eq!(body["Namespace"], "GpuBootstrap");
    let metrics: Vec<_> = body["MetricData"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| (&m["MetricName"], &m["Value"], &m["Unit"]))
        .collect();
    assert_eq!(
        serde_json::json!(metrics),
        serde_json::json!([["Outcome", 1.0, "Count"], ["Seconds", 212.5, "Seconds"]])
    );
}

#[tokio::test]
async fn denied_access_is_said_once_and_not_repeated() {
    let server = scripted(vec![error(403, "AccessDeniedException"), error(403, "AccessDeniedException")]);
    let why = failure(put(&server.url(""), KEY, "N").await);
    assert!(why.contains("403 ") || why.contains("403:"), "{why}");
    assert!(why.contains("AccessDenied: because") && why.contains("cloudwatch:PutMetricData"), "{why}");
    assert_eq!(server.log().len(), 1);
}

#[tokio::test]
async fn throttling_and_outages_are_waited_out_three_times() {
    let server = scripted(vec![error(400, "ThrottlingException"), error(503, "ServiceUnavailable")]);
    assert_eq!(put(&server.url(""), KEY, "N").await, Delivery::Sent);
    assert_eq!(server.log().len(), 3);
    let server = scripted(vec![error(500, "InternalServiceError"); 9]);
    assert!(failure(put(&server.url(""), KEY, "N").await).contains("InternalServiceError"));
    assert_eq!(server.log().len(), 3);
}

#[tokio::test]
async fn a_wrong_clock_is_corrected_by_the_servers() {
    let date = "Mon, 23 Nov 2015 15:00:00 GMT";
    let server = scripted(vec![error(403, "SignatureDoesNotMatch").with("Date", date)]);
    assert_eq!(put(&server.url(""), KEY, "N").await, Delivery::Sent);
    let log = server.log();
    assert!(log[1].header("x-amz-date").unwrap().starts_with("20151123T150"), "{log:?}");
    let body: serde_json::Value = serde_json::from_slice(&log[1].body).unwrap();
    let at = body["MetricData"][0]["Timestamp"].as_i64().unwrap();
    assert!((1_448_290_800..1_448_290_830).contains(&at), "{at}");
    // With a right clock the same answer means a wrong secret, and is final.
    let server = scripted(vec![error(403, "SignatureDoesNotMatch")]);
    failure(put(&server.url(""), KEY, "N").await);
    assert_eq!(server.log().len(), 1);
}

#[tokio::test]
async fn expired_role_credentials_are_asked_for_once_more() {
    let service = with_role("ASIAEXAMPLE", "geheim", "token").start();
    let server = scripted(vec![error(403, "ExpiredTokenException")]);
    assert_eq!(put_as_role(&server.url(""), &service, "N").await, Delivery::Sent);
    let asked = service.asked().iter().filter(|a| a.ends_with("/gpu-node")).count();
    assert_eq!((asked, server.log().len()), (2, 2));
    let server = scripted(vec![error(403, "ExpiredTokenException"); 9]);
    assert!(failure(put_as_role(&server.url(""), &service, "N").await).contains("ExpiredToken"));
    assert_eq!(server.log().len(), 2);
}

#[tokio::test]
async fn a_server_that_never_answers_costs_eight_seconds() {
    let server = scripted(vec![Reply::Hang(Duration::from_secs(30))]);
    let began = Instant::now();
    let why = failure(put(&server.url(""), KEY, "N").await);
    assert!(why.contains("within 8 s"), "{why}");
    assert!(began.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn a_server_that_is_not_there_is_a_sentence() {
    let addr = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let why = failure(put(&format!("http://{addr}"), KEY, "N").await);
    assert!(why.contains("cannot be reached") && why.contains("refused"), "{why}");
}

#[tokio::test]
async fn an_endpoint_outside_ascii_is_refused_with_the_mend() {
    let why = failure(put("https://bücher.example", KEY, "N").await);
    assert!(why.contains("AWS_ENDPOINT_URL is https://bücher.example") && why.contains("xn--…"), "{why}");
}

#[tokio::test]
async fn without_a_role_auto_is_off_and_true_is_a_failure() {
    let service = Imds::new().start();
    let client = Client::new(Endpoint::Fixed(service.url()), Duration::from_secs(5));
    let nobody = environment("http://127.0.0.1:1", None);
    let off = put_from(&nobody, &RUN, &config("N"), &identity(), Some(&client)).await;
    assert_eq!(off, Delivery::Off { why: "the instance has no role".into() });
    assert_eq!(off.to_string(), "off: the instance has no role");
    let wanted = CloudwatchConfig { enabled: Enabled::Fixed(true), ..config("N") };
    let failed = put_from(&nobody, &RUN, &wanted, &identity(), Some(&client)).await;
    assert_eq!(failed, Delivery::Failed { why: "the instance has no role".into() });
}

#[tokio::test]
async fn off_ec2_the_metadata_service_is_not_asked() {
    let service = with_role("ASIAEXAMPLE", "geheim", "token").start();
    let client = Client::new(Endpoint::Fixed(service.url()), Duration::from_secs(5));
    let elsewhere = Identity { on_ec2: Fact::new(false, "test"), instance: None, ..identity() };
    let nobody = environment("http://127.0.0.1:1", None);
    let delivery = put_from(&nobody, &RUN, &config("N"), &elsewhere, Some(&client)).await;
    assert!(matches!(delivery, Delivery::Off { .. }), "{delivery:?}");
    assert_eq!(service.server.connections(), 0);
}

#[tokio::test]
async fn switched_off_is_off() {
    let server = scripted(vec![]);
    let off = CloudwatchConfig { enabled: Enabled::Fixed(false), ..config("N") };
    let delivery = put_from(&environment(&server.url(""), Some(KEY)), &RUN, &off, &identity(), None).await;
    assert!(matches!(delivery, Delivery::Off { .. }));
    assert_eq!(server.connections(), 0);
}

#[tokio::test]
async fn a_role_that_cannot_be_assumed_is_named_and_nothing_is_sent() {
    let server = scripted(vec![]);
    for (body, text) in [
        (r#"{"Code":"AssumeRoleUnauthorizedAccess","Message":"x"}"#, "AssumeRoleUnauthorizedAccess"),
        (r#"{"SecretAccessKey":"geheim"}"#, "no usable credentials of role gpu-node"),
        ("<html>geheim</html>", "no usable credentials of role gpu-node"),
    ] {
        let service =
            with_role("a", "b", "c").item("meta-data/iam/security-credentials/gpu-node", body).start();
        let why = failure(put_as_role(&server.url(""), &service, "N").await);
        assert!(why.contains(text) && !why.contains("geheim"), "{why}");
    }
    assert_eq!(server.connections(), 0);
}
