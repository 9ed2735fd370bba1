//! Metrics and logs on their way to CloudWatch, against a real AWS-compatible server that checks signatures and policies,
//! and against one that misbehaves.

#![allow(clippy::unwrap_used, reason = "test code: a panic is a failure with a place")]

#[path = "support/deliveries.rs"]
mod deliveries;
#[path = "support/imds.rs"]
mod imds;
#[path = "support/machine.rs"]
mod machine;
#[path = "support/moto.rs"]
mod moto;

use std::time::{Duration, Instant};

use base64::Engine as _;
use deliveries::{Delivered, Delivery, body, clean_run, error, run_finished, scripted, with_role};
use gpu_bootstrap::config::schema::Enabled;
use gpu_bootstrap::report::event::EventKind;
use imds::Imds;
use imds::scripted_http::{Reply, Server};
use moto::Moto;
use serde_json::{Value, json};

const KEY: (&str, &str) = ("AKIAEXAMPLE", "geheim");
const METRICS: &str = "cloudwatch metrics";
const LOGS: &str = "cloudwatch logs";

/// Only metrics, so that each run is one request.
fn metrics_to(server: &Server) -> Delivery {
    let mut delivery = Delivery::new(&server.url("")).with_key(KEY);
    delivery.report.cloudwatch.logs = false;
    delivery
}

async fn metrics(delivery: Delivery) -> Delivered {
    delivery.run(vec![run_finished("converged")]).await
}

/// One server for all of these, because it takes seconds to start.
#[tokio::test]
async fn a_server_that_checks_signatures_takes_ours_and_no_forged_one() {
    let mut moto = Moto::start();
    let dimensions = [("InstanceType", "g5.xlarge"), ("Outcome", "converged")];
    let to = |namespace: &str| {
        let mut delivery = Delivery::new(&moto.url);
        delivery.report.cloudwatch.namespace = namespace.into();
        delivery.report.cloudwatch.log_group = format!("/{namespace}");
        delivery
    };
    let (by_user, by_role, forger, unknown, denied, stolen) =
        (to("ByUser"), to("ByRole"), to("Forged"), to("Unknown"), to("Denied"), to("Stolen"));

    let (id, secret) = moto.writer.clone();
    let delivered = by_user.with_key((&id, &secret)).run(clean_run()).await;
    assert_eq!((delivered.of(METRICS).as_str(), delivered.of(LOGS).as_str()), ("sent", "sent"));
    assert_eq!(delivered.spooled(), [""; 0]);
    assert_eq!(moto.metric("ByUser", "Outcome", &dimensions), (1.0, 1.0, "Count".into()));
    assert_eq!(moto.metric("ByUser", "Seconds", &dimensions), (1.0, 212.5, "Seconds".into()));
    let (messages, days) = moto.log("/ByUser", deliveries::INSTANCE);
    assert_eq!(days, Some(30));
    let names: Vec<_> = messages.iter().map(|m| m["event"].as_str().unwrap()).collect();
    assert_eq!(names, ["run-started", "step-started", "step-finished", "run-finished"]);
    assert_eq!(messages.iter().map(|m| m["seq"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 1, 3, 4]);
    let step = &messages[2];
    assert_eq!(
        (&step["step"], &step["seconds"], &step["StepSeconds"]),
        (&json!("driver"), &json!(41.5), &json!(41.5))
    );
    let metric = &step["_aws"]["CloudWatchMetrics"][0];
    assert_eq!(metric["Dimensions"], json!([["InstanceType", "Step", "Outcome"]]));
    for name in ["InstanceType", "Step", "Outcome"] {
        assert!(step[name].is_string(), "{name} is a dimension, so it stands in the event");
    }

    let (key, role_secret, token) = moto.role.clone();
    let service = with_role(&key, &role_secret, &token).start();
    let delivered = by_role.with_metadata(&service).run(clean_run()).await;
    assert_eq!((delivered.of(METRICS).as_str(), delivered.of(LOGS).as_str()), ("sent", "sent"));
    assert_eq!(moto.metric("ByRole", "Outcome", &dimensions), (1.0, 1.0, "Count".into()));
    let asked = service.asked().iter().filter(|a| a.ends_with("/gpu-node")).count();
    assert_eq!(asked, 1, "metrics and logs share the credentials");

    // The same key with one letter of the secret changed: only the signature can tell.
    let last = if secret.ends_with('A') { 'B' } else { 'A' };
    let one_off = format!("{}{last}", &secret[..secret.len() - 1]);
    let delivered = forger.with_key((&id, &one_off)).run(clean_run()).await;
    for channel in [METRICS, LOGS] {
        let why = delivered.of(channel);
        assert!(why.contains("403") && why.contains("SignatureDoesNotMatch"), "{why}");
        assert!(!why.contains(&one_off) && why.contains("kept for the next run"), "{why}");
    }

    let why = unknown.with_key(("AKIAUNKNOWNUNKNOWN00", &secret)).run(clean_run()).await.of(METRICS);
    assert!(why.contains("InvalidClientTokenId"), "{why}");

    let (id, secret) = moto.stranger.clone();
    let delivered = denied.with_key((&id, &secret)).run(clean_run()).await;
    let why = delivered.of(METRICS);
    assert!(why.contains("AccessDenied") && why.contains("cloudwatch:PutMetricData"), "{why}");
    let why = delivered.of(LOGS);
    assert!(why.contains("AccessDenied") && why.contains("PutLogEvents"), "{why}");

    let service = with_role(&key, &role_secret, "not-the-token").start();
    let why = stolen.with_metadata(&service).run(clean_run()).await.of(METRICS);
    assert!(why.contains("403"), "{why}");
    assert!(!why.contains("not-the-token"), "{why}");

    let nothing = (0.0, 0.0, String::new());
    for refused in ["Forged", "Unknown", "Denied", "Stolen"] {
        assert_eq!(moto.metric(refused, "Outcome", &dimensions), nothing, "{refused}");
        assert_eq!(moto.log(&format!("/{refused}"), deliveries::INSTANCE), (Vec::new(), None), "{refused}");
    }
}

/// The metadata service of these tests is only worth something if another client finds it to be one.
#[test]
fn botocore_reads_the_role_from_our_metadata_service_too() {
    let service = with_role("ASIAEXAMPLE", "geheim", "token").start();
    let script = "import json, sys\nfrom botocore.utils import InstanceMetadataFetcher\n\
                  fetcher = InstanceMetadataFetcher(base_url=sys.argv[1], num_attempts=1, timeout=20)\n\
                  print(json.dumps(fetcher.retrieve_iam_role_credentials()))";
    let read = python(script, &[&service.url()]);
    assert_eq!((&read["access_key"], &read["role_name"]), (&"ASIAEXAMPLE".into(), &"gpu-node".into()));
    assert_eq!(service.asked()[0], "PUT /latest/api/token");
    assert!(service.server.log()[1..].iter().all(|r| r.header("x-aws-ec2-metadata-token").is_some()));
}

fn python(script: &str, arguments: &[&str]) -> Value {
    let mut command = std::process::Command::new(moto::python());
    command.args(["-c", script]).args(arguments).env_remove("AWS_EC2_METADATA_DISABLED");
    serde_json::from_slice(&command.output().unwrap().stdout).unwrap()
}

/// Every partition, with FIPS and with IPv6, as AWS's own library resolves them.
#[test]
fn botocore_knows_the_same_hosts() {
    let script = "import json\nfrom botocore.loaders import Loader\nfrom botocore.endpoint_provider import EndpointProvider\n\
        loader, hosts = Loader(), []\npartitions = loader.load_data('partitions')\n\
        for service in ['cloudwatch', 'logs', 'cloudformation', 'autoscaling', 'ec2', 'sns', 'events']:\n    \
            provider = EndpointProvider(loader.load_service_model(service, 'endpoint-rule-set-1'), partitions)\n    \
            for region in ['us-east-1', 'us-gov-west-1', 'cn-north-1', 'eusc-de-east-1', 'us-iso-east-1', \
                           'us-isob-east-1', 'us-isof-south-1', 'eu-isoe-west-1', 'il-central-1', 'mx-central-1']:\n        \
                for fips in (False, True):\n            \
                    for dual in (False, True):\n                \
                        url = provider.resolve_endpoint(Region=region, UseFIPS=fips, UseDualStack=dual).url\n                \
                        hosts.append([service, region, fips, dual, url])\nprint(json.dumps(hosts))";
    let hosts = python(script, &[]);
    assert_eq!(hosts.as_array().unwrap().len(), 7 * 10 * 4);
    for host in hosts.as_array().unwrap() {
        let text = |n: usize| host[n].as_str().unwrap();
        let service = match text(0) {
            "cloudwatch" => &gpu_bootstrap::aws::CLOUDWATCH,
            "logs" => &gpu_bootstrap::aws::LOGS,
            "cloudformation" => &gpu_bootstrap::aws::CLOUDFORMATION,
            "autoscaling" => &gpu_bootstrap::aws::AUTO_SCALING,
            "ec2" => &gpu_bootstrap::aws::EC2,
            "sns" => &gpu_bootstrap::aws::SNS,
            _ => &gpu_bootstrap::aws::EVENTBRIDGE,
        };
        let config = gpu_bootstrap::config::schema::AwsConfig {
            fips: host[2].as_bool().unwrap(),
            dual_stack: host[3].as_bool().unwrap(),
        };
        let ours = service.url(text(1), &config).unwrap();
        assert_eq!(ours.trim_end_matches('/'), text(4), "{host}");
    }
}

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
        command.env("AWS_ENDPOINT_URL", server.url("")).env("AWS_REGION", "us-east-1");
        command.env("AWS_ACCESS_KEY_ID", KEY.0).env("AWS_SECRET_ACCESS_KEY", KEY.1);
        let ran = machine::ran(&mut command);
        assert_eq!(ran.code, code, "{ran:?}");
        let result = machine.read("/run/gpu-bootstrap/result.json");
        assert!(
            result.contains("cloudwatch metrics: sent") && result.contains("cloudwatch logs: sent"),
            "{result}"
        );
        let log = server.log();
        let metrics =
            log.iter().find(|r| r.header("x-amz-target").unwrap().contains("PutMetricData")).unwrap();
        assert_eq!(body(metrics)["MetricData"][0]["Dimensions"][1]["Value"], outcome);
        let end = log.iter().find(|r| r.header("x-amz-target").unwrap().contains("PutLogEvents")).unwrap();
        assert!(body(end).to_string().contains("run-finished"), "{}", body(end));
    }
}

#[tokio::test]
async fn the_request_is_the_documented_one() {
    let server = scripted(vec![]);
    assert_eq!(metrics(metrics_to(&server)).await.of(METRICS), "sent");
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
    let body = body(&request);
    assert_eq!(body["Namespace"], "GpuBootstrap");
    let data = body["MetricData"].as_array().unwrap().iter();
    let data: Vec<_> = data.map(|m| (&m["MetricName"], &m["Value"], &m["Unit"])).collect();
    assert_eq!(
        json!(data),
        json!([
            ["Outcome", 1.0, "Count"],
            ["Seconds", 212.5, "Seconds"],
            ["DownloadedBytes", 0.0, "Bytes"],
            ["Retries", 0.0, "Count"]
        ])
    );
}

/// Two hundred steps are more than 10 KB. The server of the other test cannot check such a request (it decompresses
/// first, and refuses botocore's, too), so botocore signs ours again.
#[tokio::test]
async fn a_long_request_is_compressed_and_signed_as_botocore_would() {
    let server = scripted(vec![]);
    let mut events = Vec::new();
    for n in 0..200 {
        let step = format!("step-{n}");
        events.push(EventKind::StepFinished { step, changed: true, evidence: Vec::new(), seconds: 1.0 });
    }
    events.push(run_finished("converged"));
    metrics_to(&server).run(events).await;
    let request = server.log().remove(0);
    assert_eq!(request.header("content-encoding"), Some("gzip"));
    let data = body(&request)["MetricData"].as_array().unwrap().len();
    assert_eq!(data, 204);
    let script = "import base64, json, sys\nfrom botocore.auth import SigV4Auth\nfrom botocore.awsrequest import AWSRequest\n\
        from botocore.credentials import Credentials\n\
        url, headers, body, key, secret = json.loads(sys.argv[1])\n\
        request = AWSRequest('POST', url, data=base64.b64decode(body), headers=headers)\n\
        request.context['timestamp'] = headers['x-amz-date']\n\
        auth = SigV4Auth(Credentials(key, secret), 'monitoring', 'us-east-1')\n\
        text = auth.string_to_sign(request, auth.canonical_request(request))\n\
        print(json.dumps(auth.signature(text, request)))";
    let signed = ["content-encoding", "content-type", "host", "x-amz-date", "x-amz-target"];
    let headers: std::collections::BTreeMap<_, _> =
        signed.iter().map(|name| (*name, request.header(name).unwrap())).collect();
    let packed = base64::engine::general_purpose::STANDARD.encode(&request.body);
    let expected = python(script, &[&json!([server.url("/"), headers, packed, KEY.0, KEY.1]).to_string()]);
    let authorization = request.header("authorization").unwrap();
    assert!(authorization.contains(&format!("SignedHeaders={}", signed.join(";"))), "{authorization}");
    assert_eq!(authorization.rsplit("Signature=").next(), expected.as_str());
}

#[tokio::test]
async fn each_figure_goes_one_way() {
    // With logs, a step's figure travels in its event; without, as a metric; and by instance only where that is asked for.
    for (logs, by_instance, expected) in [(true, false, 0), (false, false, 1), (false, true, 2)] {
        let server = scripted(vec![]);
        let mut delivery = metrics_to(&server);
        delivery.report.cloudwatch.logs = logs;
        delivery.report.cloudwatch.instance_dimension = by_instance;
        delivery.run(clean_run()).await;
        let log = server.log();
        let of =
            |target: &str| log.iter().find(|r| r.header("x-amz-target").unwrap().contains(target)).map(body);
        let metrics = of("PutMetricData").unwrap();
        let steps =
            metrics["MetricData"].as_array().unwrap().iter().filter(|m| m["MetricName"] == "StepSeconds");
        assert_eq!(steps.count(), expected, "{metrics}");
        let embedded = of("PutLogEvents").map_or(0, |b| b.to_string().matches("_aws").count());
        assert_eq!(embedded, usize::from(logs));
    }
}

#[tokio::test]
async fn denied_access_is_said_once_and_what_was_refused_is_kept() {
    let server = scripted(vec![error(403, "AccessDeniedException"); 9]);
    let delivery = metrics_to(&server);
    let root = delivery.root();
    let delivered = metrics(delivery).await;
    let why = delivered.of(METRICS);
    assert!(why.contains("AccessDenied: because") && why.contains("cloudwatch:PutMetricData"), "{why}");
    assert_eq!(server.log().len(), 1);
    assert_eq!(delivered.spooled().len(), 1);
    // The next run, of a role that may, brings both.
    let server = scripted(vec![]);
    let delivered = metrics(metrics_to(&server).at(root)).await;
    assert_eq!(delivered.of(METRICS), "sent");
    let requests = server.log();
    let sent: usize = requests.iter().map(|r| body(r)["MetricData"].as_array().unwrap().len()).sum();
    assert_eq!((sent, delivered.spooled().len()), (8, 0));
}

/// What cannot be read is of no use to anybody; what nobody takes any more goes, whoever it was for; the rest stays.
#[tokio::test]
async fn a_spool_of_strange_files_holds_nothing_up() {
    let server = scripted(vec![]);
    let delivery = metrics_to(&server);
    let root = delivery.root();
    let spool = root.path().join("var/lib/gpu-bootstrap/spool");
    std::fs::create_dir_all(&spool).unwrap();
    let now = jiff::Timestamp::now().as_microsecond();
    let (old, new) = ("tag.1500000000000000.json".to_owned(), format!("tag.{now}.json"));
    for (name, text) in [
        ("cloudwatch-metrics.1.json", "{"),
        (&format!("cloudwatch-metrics.{now}.json"), "[]"),
        (&old, "{}"),
        (&new, "{}"),
    ] {
        std::fs::write(spool.join(name), text).unwrap();
    }
    let delivered = metrics(delivery).await;
    assert_eq!(delivered.of(METRICS), "sent");
    assert_eq!(delivered.spooled(), [new]);
}

#[tokio::test]
async fn what_cannot_be_kept_is_not_said_to_be() {
    let server = scripted(vec![error(403, "AccessDeniedException"); 9]);
    let delivery = metrics_to(&server);
    let state = delivery.root().path().join("var/lib/gpu-bootstrap");
    std::fs::create_dir_all(&state).unwrap();
    std::fs::write(state.join("spool"), "a file in the directory's place").unwrap();
    let why = metrics(delivery).await.of(METRICS);
    assert!(
        why.contains("AccessDenied") && why.contains("4 not kept: ") && !why.contains("next run"),
        "{why}"
    );
}

/// A role that may do everything but that.
#[tokio::test]
async fn a_group_without_retention_is_told() {
    let asked = std::sync::atomic::AtomicUsize::new(0);
    // The first two questions for the stream find no group.
    let front = Server::start(move |request| {
        let target = request.header("x-amz-target").unwrap();
        let is_about_the_stream = target.ends_with("PutLogEvents") || target.ends_with("CreateLogStream");
        if is_about_the_stream && asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst) < 2 {
            return error(400, "ResourceNotFoundException");
        }
        if target.ends_with("PutRetentionPolicy") {
            error(400, "AccessDeniedException")
        } else {
            Reply::ok("{}")
        }
    });
    let delivered = Delivery::new(&front.url("")).with_key(KEY).run(clean_run()).await;
    assert_eq!(delivered.of(LOGS), "sent; the log group's retention could not be set");
}

/// From a third of a second after the end of a run on, the disk knows what waits.
#[test]
fn a_deliverer_that_is_killed_after_the_run_has_what_waits_on_the_disk() {
    let machine =
        machine::Machine::debian12().file("/etc/gpu-bootstrap/a.toml", "[policy]\non-no-gpu = \"skip\"\n");
    let slow = Server::start(|_| Reply::Hang(Duration::from_secs(20)));
    let run = |url: &str| {
        let mut command = machine.command(&["run"]);
        command.env("AWS_ENDPOINT_URL", url).env("AWS_REGION", "us-east-1");
        command.env("AWS_ACCESS_KEY_ID", KEY.0).env("AWS_SECRET_ACCESS_KEY", KEY.1);
        assert_eq!(machine::ran(&mut command).code, 0);
    };
    run(&slow.url(""));
    assert_eq!(
        deliveries::spooled(&machine.outside("/")).len(),
        2,
        "no answer has come, and none was refused"
    );
    let pid = machine.read("/var/lib/gpu-bootstrap/spool/lock").trim().parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    let server = scripted(vec![]);
    run(&server.url(""));
    deliveries::until("the spool is empty", || deliveries::spooled(&machine.outside("/")).is_empty());
    let requests = server.log();
    let ends: usize = requests.iter().map(|r| body(r).to_string().matches("run-finished").count()).sum();
    assert_eq!(ends, 2, "{requests:?}");
}

#[tokio::test]
async fn throttling_and_outages_are_waited_out() {
    let server = scripted(vec![
        error(400, "ThrottlingException"),
        error(503, "ServiceUnavailable"),
        error(429, ""),
        error(500, "InternalServiceError"),
    ]);
    assert_eq!(metrics(metrics_to(&server)).await.of(METRICS), "sent");
    assert_eq!(server.log().len(), 5);
}

#[tokio::test]
async fn what_is_wrong_in_itself_is_given_up_and_counted() {
    let server = scripted(vec![error(400, "InvalidParameterValueException")]);
    let delivered = metrics(metrics_to(&server)).await;
    let why = delivered.of(METRICS);
    assert!(why.contains("InvalidParameterValue") && why.contains("4 given up"), "{why}");
    assert_eq!((server.log().len(), delivered.spooled().len()), (1, 0));
}

#[tokio::test]
async fn a_wrong_clock_is_corrected_by_the_servers() {
    let date = "Mon, 23 Nov 2015 15:00:00 GMT";
    let server = scripted(vec![error(403, "SignatureDoesNotMatch").with("Date", date)]);
    assert_eq!(metrics(metrics_to(&server)).await.of(METRICS), "sent");
    let log = server.log();
    assert!(log[1].header("x-amz-date").unwrap().starts_with("20151123T150"), "{log:?}");
    // With a right clock the same answer means a wrong secret, and is final.
    let server = scripted(vec![error(403, "SignatureDoesNotMatch"); 9]);
    assert!(metrics(metrics_to(&server)).await.of(METRICS).starts_with("failed"));
    assert_eq!(server.log().len(), 1);
}

#[tokio::test]
async fn expired_role_credentials_are_asked_for_once_more() {
    let service = with_role("ASIAEXAMPLE", "geheim", "token").start();
    let by_role = |server: &Server| {
        let mut delivery = Delivery::new(&server.url("")).with_metadata(&service);
        delivery.report.cloudwatch.logs = false;
        delivery
    };
    let server = scripted(vec![error(403, "ExpiredTokenException")]);
    assert_eq!(metrics(by_role(&server)).await.of(METRICS), "sent");
    let asked = service.asked().iter().filter(|a| a.ends_with("/gpu-node")).count();
    assert_eq!((asked, server.log().len()), (2, 2));
    let server = scripted(vec![error(403, "ExpiredTokenException"); 9]);
    assert!(metrics(by_role(&server)).await.of(METRICS).contains("ExpiredToken"));
    assert_eq!(server.log().len(), 2);
}

/// A run waits a second for its reports, whatever they wait for, and what they wait for is delivered all the same, once.
#[test]
fn a_slow_server_costs_a_second_and_gets_everything_once() {
    let machine =
        machine::Machine::debian12().file("/etc/gpu-bootstrap/a.toml", "[policy]\non-no-gpu = \"skip\"\n");
    let server = Server::start(|_| {
        std::thread::sleep(Duration::from_secs(4));
        Reply::ok("{}")
    });
    let mut command = machine.command(&["run"]);
    command.env("AWS_ENDPOINT_URL", server.url("")).env("AWS_REGION", "us-east-1");
    command.env("AWS_ACCESS_KEY_ID", KEY.0).env("AWS_SECRET_ACCESS_KEY", KEY.1);
    let began = Instant::now();
    let ran = machine::ran(&mut command);
    let took = began.elapsed();
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(took < Duration::from_millis(2500), "{took:?}");
    let result = machine.read("/run/gpu-bootstrap/result.json");
    assert!(result.contains("on the way"), "{result}");
    assert!(
        machine::ran(&mut machine.command(&["status"])).stdout.contains("cloudwatch logs: "),
        "status tells it, too"
    );
    deliveries::until("everything is delivered", || {
        let file = machine.read("/run/gpu-bootstrap/delivery.json");
        let file: Value = serde_json::from_str(&file).unwrap_or_default();
        file["channels"]
            .as_array()
            .is_some_and(|all| all.iter().all(|c| c["sentence"] == "sent" && c["is_over"] == true))
    });
    let status = machine::ran(&mut machine.command(&["status"])).stdout;
    assert!(status.contains("reported to cloudwatch logs: sent\n"), "{status}");
    let targets: Vec<_> = server.log().iter().map(|r| r.header("x-amz-target").unwrap().to_owned()).collect();
    assert_eq!(targets.len(), 2, "{targets:?}");
    assert_eq!(deliveries::spooled(&machine.outside("/")), [""; 0]);
}

#[test]
fn what_cannot_be_delivered_is_kept_and_brought_by_the_next_run() {
    let machine =
        machine::Machine::debian12().file("/etc/gpu-bootstrap/a.toml", "[policy]\non-no-gpu = \"skip\"\n");
    let addr = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let run = |url: &str| {
        let mut command = machine.command(&["run"]);
        command.env("AWS_ENDPOINT_URL", url).env("AWS_REGION", "us-east-1");
        command.env("AWS_ACCESS_KEY_ID", KEY.0).env("AWS_SECRET_ACCESS_KEY", KEY.1);
        let ran = machine::ran(&mut command);
        assert_eq!(ran.code, 0, "{ran:?}");
        machine.read("/run/gpu-bootstrap/result.json")
    };
    let result = run(&format!("http://{addr}"));
    assert!(result.contains("cannot be reached") && result.contains("on the way"), "{result}");
    deliveries::until("it is kept", || deliveries::spooled(&machine.outside("/")).len() == 2);
    // The first one's deliverer still tries; this one's takes over from it.
    let server = scripted(vec![]);
    let result = run(&server.url(""));
    deliveries::until("the spool is empty", || deliveries::spooled(&machine.outside("/")).is_empty());
    let requests = server.log();
    let of = |target: &str, list: &str| -> usize {
        let wanted = requests.iter().filter(|r| r.header("x-amz-target").unwrap().contains(target));
        wanted.map(|r| body(r)[list].as_array().unwrap().len()).sum()
    };
    assert_eq!(of("PutMetricData", "MetricData"), 8, "both runs, each once\n{result}");
    let ends: usize = requests.iter().map(|r| body(r).to_string().matches("run-finished").count()).sum();
    assert_eq!(ends, 2, "{requests:?}");
}

#[tokio::test]
async fn an_endpoint_outside_ascii_is_refused_with_the_mend() {
    let mut delivery = Delivery::new("https://bücher.example").with_key(KEY);
    delivery.report.cloudwatch.logs = false;
    let why = metrics(delivery).await.of(METRICS);
    assert!(why.contains("AWS_ENDPOINT_URL is https://bücher.example") && why.contains("xn--…"), "{why}");
}

#[tokio::test]
async fn without_a_role_auto_is_off_and_true_is_a_failure() {
    let service = Imds::new().start();
    let delivered = Delivery::new("http://127.0.0.1:1").with_metadata(&service).run(clean_run()).await;
    assert_eq!(delivered.of(METRICS), "off: the instance has no role");
    assert_eq!(delivered.of(LOGS), "off: the instance has no role");
    assert!(
        !delivered.root().join("var/lib/gpu-bootstrap").exists(),
        "nothing is left on a machine that tells nobody"
    );
    let mut delivery = Delivery::new("http://127.0.0.1:1").with_metadata(&service);
    delivery.report.cloudwatch.enabled = Enabled::Fixed(true);
    let why = delivery.run(clean_run()).await.of(METRICS);
    assert!(why.starts_with("failed: the instance has no role"), "{why}");
}

#[test]
fn off_ec2_and_switched_off_nobody_is_asked() {
    let server = scripted(vec![]);
    let service = with_role("ASIAEXAMPLE", "geheim", "token").start();
    for (text, sentence) in [
        ("[policy]\non-no-gpu = \"skip\"\n", "cloudwatch: off: there are no credentials"),
        (
            "[policy]\non-no-gpu = \"skip\"\n[report]\ncloudwatch.enabled = false\n",
            "cloudwatch: off: the configuration",
        ),
    ] {
        let machine = machine::Machine::debian12().file("/etc/gpu-bootstrap/a.toml", text);
        let mut command = machine.command(&["run"]);
        command.env("AWS_ENDPOINT_URL", server.url(""));
        assert_eq!(machine::ran(&mut command).code, 0);
        let result = machine.read("/run/gpu-bootstrap/result.json");
        assert!(result.contains(sentence), "{result}");
    }
    assert_eq!((server.connections(), service.server.connections()), (0, 0));
}

#[tokio::test]
async fn a_role_that_cannot_be_assumed_is_named_and_nothing_is_sent() {
    let server = scripted(vec![]);
    for (answer, text) in [
        (r#"{"Code":"AssumeRoleUnauthorizedAccess","Message":"x"}"#, "AssumeRoleUnauthorizedAccess"),
        (r#"{"SecretAccessKey":"geheim"}"#, "no usable credentials of role gpu-node"),
        ("<html>geheim</html>", "no usable credentials of role gpu-node"),
    ] {
        let service =
            with_role("a", "b", "c").item("meta-data/iam/security-credentials/gpu-node", answer).start();
        let why = Delivery::new(&server.url("")).with_metadata(&service).run(clean_run()).await.of(METRICS);
        assert!(why.contains(text) && !why.contains("geheim"), "{why}");
    }
    assert_eq!(server.connections(), 0);
}

#[tokio::test]
async fn gpus_are_counted() {
    let server = scripted(vec![]);
    let verdicts = json!({ "event": "gpus-checked", "found": 8, "expected": 8, "result": "fail", "machine": [],
        "gpus": [{ "verdict": "pass" }, { "verdict": "fail" }, { "verdict": "could-not-tell" }, { "verdict": "pass" }] });
    let events = vec![serde_json::from_value(verdicts).unwrap(), run_finished("failed")];
    metrics_to(&server).run(events).await;
    let data = body(&server.log()[0])["MetricData"].as_array().unwrap().clone();
    let of = |name: &str| data.iter().find(|m| m["MetricName"] == name).map(|m| m["Value"].as_f64().unwrap());
    assert_eq!((of("GpusFound"), of("GpusExpected"), of("GpusHealthy")), (Some(8.0), Some(8.0), Some(2.0)));
}

/// A failed step has its figure, too.
#[tokio::test]
async fn a_failed_step_is_told_with_its_duration() {
    let server = scripted(vec![]);
    let mut events = clean_run();
    events.truncate(2);
    events.push(EventKind::Failed {
        step: Some("driver".into()),
        code: "apt-failed".into(),
        message: "no".into(),
        causes: vec!["a".into()],
        hint: None,
    });
    events.push(run_finished("failed"));
    Delivery::new(&server.url("")).with_key(KEY).run(events).await;
    let log = server.log();
    let logs = log.iter().find(|r| r.header("x-amz-target").unwrap().contains("PutLogEvents")).unwrap();
    let messages = body(logs)["logEvents"].as_array().unwrap().clone();
    let failed: Value = serde_json::from_str(messages[2]["message"].as_str().unwrap()).unwrap();
    assert_eq!(
        (&failed["event"], &failed["code"], &failed["Outcome"]),
        (&json!("failed"), &json!("apt-failed"), &json!("failed"))
    );
    assert_eq!(failed["causes"], json!(["a"]));
    assert!(failed["StepSeconds"].is_number());
}
