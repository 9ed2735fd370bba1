//! A real AWS-compatible server (moto, from the Python package index) that verifies Signature Version 4 and IAM policies, in a
//! virtual environment that is made on first use below cargo's target directory.

#![allow(clippy::unwrap_used, reason = "test code: a panic is a failure with a place")]
#![allow(dead_code, unreachable_pub, reason = "shared between test files, not each of which uses all of it")]

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use nix::fcntl::{Flock, FlockArg};

/// Pinned, so that a new release cannot change what is tested.
const PACKAGES: [&str; 2] = ["moto[server]==5.2.5", "boto3==1.44.5"];

/// Starts the server, makes the users, and answers questions from standard input, one JSON line for each.
const SCRIPT: &str = r#"
import json, sys, urllib.request
import boto3
from moto.server import ThreadedMotoServer

if "buckets" in sys.argv:
    import base64, hashlib, io
    import moto.moto_server.threaded_moto_server as threaded
    sys.path.insert(0, sys.argv[-1])
    import aws_signing

    KEYS, ASKED = {}, []

    class Checked(threaded.DomainDispatcherApplication):
        """Every request of ours is signed in its query, by somebody who may; moto, behind it, looks at neither."""

        def __call__(self, environ, start_response):
            if not KEYS or "HTTP_AUTHORIZATION" in environ:
                return super().__call__(environ, start_response)
            headers = {name[5:].replace("_", "-").lower(): value for name, value in environ.items() if name.startswith("HTTP_")}
            headers["Host"] = headers["host"]
            body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            path = environ["RAW_URI"]
            ASKED.append(environ["REQUEST_METHOD"] + " " + path.partition("?")[0]
                         + (" copy" if "x-amz-copy-source" in headers else ""))
            try:
                if aws_signing.check_query(KEYS, environ["REQUEST_METHOD"], path, headers) != writer[0]:
                    raise aws_signing.Refused(403, "AccessDenied", "not allowed")
                wanted = headers.get("x-amz-checksum-sha256")
                if wanted and base64.b64encode(hashlib.sha256(body).digest()).decode() != wanted:
                    raise aws_signing.Refused(400, "BadDigest", "other bytes")
            except aws_signing.Refused as refused:
                start_response(f"{refused.status} No", [("Content-Type", "application/xml")])
                return [f"<Error><Code>{refused.code}</Code><Message>{refused.message}</Message></Error>".encode()]
            environ["wsgi.input"] = io.BytesIO(body)
            return super().__call__(environ, start_response)

    threaded.DomainDispatcherApplication = Checked

server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
url = "http://%s:%d" % server.get_host_and_port()

def client(service, key, token=None):
    return boto3.client(service, endpoint_url=url, region_name="us-east-1", aws_access_key_id=key[0],
                        aws_secret_access_key=key[1], aws_session_token=token)

# moto names the action after the signing name, AWS after the API.
allowed = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Resource": "*", "Action": [
    "cloudwatch:PutMetricData", "monitoring:PutMetricData", "cloudwatch:GetMetricStatistics",
    "monitoring:GetMetricStatistics", "sts:AssumeRole", "logs:*", "s3:*"]}]}
iam = client("iam", ("setup", "setup"))

def user(name, policy):
    iam.create_user(UserName=name)
    if policy:
        iam.put_user_policy(UserName=name, PolicyName="p", PolicyDocument=json.dumps(policy))
    key = iam.create_access_key(UserName=name)["AccessKey"]
    return key["AccessKeyId"], key["SecretAccessKey"]

writer, stranger = user("writer", allowed), user("stranger", None)
trust = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "sts:AssumeRole",
         "Principal": {"Service": "ec2.amazonaws.com"}}]}
arn = iam.create_role(RoleName="gpu-node", AssumeRolePolicyDocument=json.dumps(trust))["Role"]["Arn"]
iam.put_role_policy(RoleName="gpu-node", PolicyName="p", PolicyDocument=json.dumps(allowed))
role = client("sts", writer).assume_role(RoleArn=arn, RoleSessionName="i-0123456789abcdef0")["Credentials"]

client("s3", ("setup", "setup")).create_bucket(Bucket="gpu-bundles")

# From here on, signatures and policies are checked.
if "buckets" in sys.argv:
    KEYS.update({key: (secret, None) for key, secret in (writer, stranger)})
else:
    request = urllib.request.Request(url + "/moto-api/reset-auth", data=b"0", headers={"Content-Type": "text/plain"})
    urllib.request.urlopen(request).read()

print(json.dumps({"url": url, "writer": writer, "stranger": stranger,
    "role": [role["AccessKeyId"], role["SecretAccessKey"], role["SessionToken"]]}), flush=True)

import datetime

def metric(asked):
    now = datetime.datetime.now(datetime.timezone.utc)
    answer = client("cloudwatch", writer).get_metric_statistics(
        Namespace=asked["namespace"], MetricName=asked["metric"], Dimensions=asked["dimensions"],
        StartTime=now - datetime.timedelta(minutes=10), EndTime=now + datetime.timedelta(minutes=10),
        Period=3600, Statistics=["SampleCount", "Sum"])
    points = answer["Datapoints"]
    return {"count": sum(p["SampleCount"] for p in points), "sum": sum(p["Sum"] for p in points),
        "unit": points[0]["Unit"] if points else None}

def log(asked):
    logs = client("logs", writer)
    groups = logs.describe_log_groups(logGroupNamePrefix=asked["group"])["logGroups"]
    if not groups:
        return {"days": None, "messages": []}
    events = logs.get_log_events(logGroupName=asked["group"], logStreamName=asked["stream"], startFromHead=True)["events"]
    return {"days": groups[0].get("retentionInDays"), "messages": [e["message"] for e in events]}

def flip(asked):
    s3 = client("s3", writer)
    body = bytearray(s3.get_object(Bucket="gpu-bundles", Key=asked["flip"])["Body"].read())
    body[len(body) // 2] ^= 1
    s3.put_object(Bucket="gpu-bundles", Key=asked["flip"], Body=bytes(body))
    return {}

for line in sys.stdin:
    asked = json.loads(line)
    if "requests" in asked:
        print(json.dumps({"requests": ASKED}), flush=True)
        if asked["requests"] == "forget":
            ASKED.clear()
        continue
    if "flip" in asked:
        print(json.dumps(flip(asked)), flush=True)
        continue
    print(json.dumps(metric(asked) if "metric" in asked else log(asked)), flush=True)
"#;

/// The server, with a user who may write metrics, one who may not, and a role's temporary credentials.
pub struct Moto {
    child: Child,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
    /// Its base URL.
    pub url: String,
    /// Access key and secret of a user who may write metrics.
    pub writer: (String, String),
    /// Access key and secret of a user who may do nothing.
    pub stranger: (String, String),
    /// Access key, secret and session token of a role that may write metrics.
    pub role: (String, String, String),
}

impl Moto {
    /// Starts it on a free port.
    pub fn start() -> Self {
        Self::started(&[])
    }

    /// The same for S3, whose requests are signed in their query: moto knows no such signatures, so they are checked before
    /// it by what the end-to-end tests' fake AWS has.
    pub fn start_for_buckets() -> Self {
        Self::started(&["buckets", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/rig")])
    }

    fn started(words: &[&str]) -> Self {
        let mut child = Command::new(python())
            .args(["-c", SCRIPT])
            .args(words)
            .env_remove("http_proxy")
            .env_remove("HTTP_PROXY")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let questions = child.stdin.take().unwrap();
        let mut answers = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        answers.read_line(&mut line).unwrap();
        let ready: serde_json::Value = serde_json::from_str(&line).unwrap();
        let text = |v: &serde_json::Value| v.as_str().unwrap().to_owned();
        let pair = |v: &serde_json::Value| (text(&v[0]), text(&v[1]));
        Self {
            url: text(&ready["url"]),
            writer: pair(&ready["writer"]),
            stranger: pair(&ready["stranger"]),
            role: (text(&ready["role"][0]), text(&ready["role"][1]), text(&ready["role"][2])),
            child,
            questions,
            answers,
        }
    }

    /// How often a metric was written, the sum of its values, and its unit, read back with boto3.
    pub fn metric(
        &mut self,
        namespace: &str,
        metric: &str,
        dimensions: &[(&str, &str)],
    ) -> (f64, f64, String) {
        let dimensions: Vec<_> =
            dimensions.iter().map(|(n, v)| serde_json::json!({ "Name": n, "Value": v })).collect();
        let question =
            serde_json::json!({ "namespace": namespace, "metric": metric, "dimensions": dimensions });
        let answer = self.ask(&question);
        let unit = answer["unit"].as_str().unwrap_or_default().to_owned();
        (answer["count"].as_f64().unwrap(), answer["sum"].as_f64().unwrap(), unit)
    }
}

impl Moto {
    fn ask(&mut self, question: &serde_json::Value) -> serde_json::Value {
        writeln!(self.questions, "{question}").unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    /// The requests to buckets so far: method, path, and `copy` where S3 was asked to copy.
    pub fn requests(&mut self) -> Vec<String> {
        serde_json::from_value(self.ask(&serde_json::json!({ "requests": "" }))["requests"].take()).unwrap()
    }

    /// Forgets them.
    pub fn forget_requests(&mut self) {
        self.ask(&serde_json::json!({ "requests": "forget" }));
    }

    /// Flips a bit in the middle of an object of the bucket `gpu-bundles`.
    pub fn flip(&mut self, key: &str) {
        self.ask(&serde_json::json!({ "flip": key }));
    }

    /// The messages of a log's stream, and for how many days the group keeps them, read back with boto3.
    pub fn log(&mut self, group: &str, stream: &str) -> (Vec<serde_json::Value>, Option<u64>) {
        let answer = self.ask(&serde_json::json!({ "group": group, "stream": stream }));
        let messages = answer["messages"].as_array().unwrap().iter();
        let read = |m: &serde_json::Value| serde_json::from_str(m.as_str().unwrap()).unwrap();
        (messages.map(read).collect(), answer["days"].as_u64())
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The virtual environment's Python, made once. Test processes that start together wait for each other.
pub fn python() -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let lock = std::fs::File::create(dir.join("moto.lock")).unwrap();
    let held = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, e)| e).unwrap();
    let venv = dir.join("moto");
    let python = venv.join("bin/python");
    let stamp = venv.join("packages");
    if std::fs::read_to_string(&stamp).unwrap_or_default() != PACKAGES.concat() {
        run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv));
        run(Command::new(&python)
            .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
            .args(PACKAGES));
        std::fs::write(&stamp, PACKAGES.concat()).unwrap();
    }
    drop(held);
    python
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
