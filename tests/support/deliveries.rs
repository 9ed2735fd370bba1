//! Reports on their way out of a machine: the deliverer itself, in this process, against servers of the test's own.

#![allow(dead_code, unreachable_pub, reason = "shared between test files, not each of which uses all of it")]
#![allow(clippy::unwrap_used, reason = "test code: a panic is a failure with a place")]

use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use gpu_bootstrap::aws::{Environment, Session};
use gpu_bootstrap::config::schema::ReportConfig;
use gpu_bootstrap::imds::{Client, Endpoint};
use gpu_bootstrap::report::event::{Event, EventKind, Progress, StepTitle, Unit};
use gpu_bootstrap::report::remote::deliver::Deliverer;
use gpu_bootstrap::report::remote::{Settings, Standing};
use serde_json::Value;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::imds::scripted_http::{Reply, Request, Server};
use super::imds::{Imds, Running};

/// The instance that reports.
pub const INSTANCE: &str = "i-0123456789abcdef0";

/// A delivery to be made.
pub struct Delivery {
    url: String,
    key: Option<(String, String)>,
    imds: Option<Client>,
    root: Arc<tempfile::TempDir>,
    /// Who is told.
    pub report: ReportConfig,
}

/// What came of it.
pub struct Delivered {
    standings: Vec<Standing>,
    root: Arc<tempfile::TempDir>,
}

impl Delivery {
    /// To this endpoint, as nobody.
    pub fn new(url: &str) -> Self {
        let root = Arc::new(tempfile::tempdir().unwrap());
        Self { url: url.into(), key: None, imds: None, root, report: ReportConfig::default() }
    }

    /// As the owner of a key.
    pub fn with_key(mut self, (id, secret): (&str, &str)) -> Self {
        self.key = Some((id.into(), secret.into()));
        self
    }

    /// As the role that this metadata service has.
    pub fn with_metadata(mut self, service: &Running) -> Self {
        self.imds = Some(Client::new(Endpoint::Fixed(service.url()), Duration::from_secs(5)));
        self
    }

    /// On a machine that an earlier delivery was on.
    pub fn at(mut self, root: Arc<tempfile::TempDir>) -> Self {
        self.root = root;
        self
    }

    /// The machine.
    pub fn root(&self) -> Arc<tempfile::TempDir> {
        Arc::clone(&self.root)
    }

    /// Delivers a whole run's events, until the deliverer has ended.
    pub async fn run(self, events: Vec<EventKind>) -> Delivered {
        let (said, mut heard) = unbounded_channel();
        for kind in events {
            said.send(Event { at: jiff::Timestamp::now(), kind }).unwrap();
        }
        drop(said);
        self.hear(&mut heard).await
    }

    /// Delivers what is heard.
    pub async fn hear(self, heard: &mut UnboundedReceiver<Event>) -> Delivered {
        self.hear_telling(heard, |_| ()).await
    }

    /// Delivers what is heard, and tells how it stands.
    pub async fn hear_telling(
        self,
        heard: &mut UnboundedReceiver<Event>,
        mut tell: impl FnMut(&[Standing]),
    ) -> Delivered {
        let settings = Settings {
            root: self.root.path().into(),
            report: self.report.clone(),
            instance_id: INSTANCE.into(),
            instance_type: Some("g5.xlarge".into()),
            region: Some("us-east-1".into()),
            asks_metadata: self.imds.is_some(),
            run: jiff::Timestamp::now(),
        };
        let environment = Environment::from_lookup(|name| match (name, &self.key) {
            ("AWS_ENDPOINT_URL", _) => Some(self.url.clone()),
            ("AWS_ACCESS_KEY_ID", Some((id, _))) => Some(id.clone()),
            ("AWS_SECRET_ACCESS_KEY", Some((_, secret))) => Some(secret.clone()),
            _ => None,
        });
        let session = Session::new(environment, &self.report.aws, settings.region.clone(), self.imds);
        let mut standings = Vec::new();
        let keep = |now: &[Standing]| {
            tell(now);
            standings = now.to_vec();
        };
        Deliverer::new(settings, session).run(heard, keep).await;
        Delivered { standings, root: self.root }
    }
}

impl Delivered {
    /// What there is to say of a channel.
    pub fn of(&self, channel: &str) -> String {
        let found = self.standings.iter().find(|s| s.channel == channel);
        found.unwrap_or_else(|| panic!("no {channel} in {:?}", self.standings)).sentence.clone()
    }

    /// The machine.
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// Files in the spool.
    pub fn spooled(&self) -> Vec<String> {
        spooled(self.root.path())
    }
}

/// Files in the spool of a machine.
pub fn spooled(root: &Path) -> Vec<String> {
    let Ok(names) = std::fs::read_dir(root.join("var/lib/gpu-bootstrap/spool")) else { return Vec::new() };
    let mut names: Vec<_> = names.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| name != "lock" && !name.starts_with('.'));
    names
}

/// Events of a run of one step that went well; one of them is told to nobody.
pub fn clean_run() -> Vec<EventKind> {
    vec![
        EventKind::RunStarted {
            steps: vec![StepTitle { id: "driver".into(), title: "Driver".into() }],
            plan_digest: "d".into(),
            instance_id: INSTANCE.into(),
            instance_type: Some("g5.xlarge".into()),
            boot_id: "b".into(),
            choices: vec!["driver 580".into()],
        },
        EventKind::StepStarted { step: "driver".into() },
        EventKind::Progress(Progress {
            what: "downloading".into(),
            item: String::new(),
            done: 1,
            total: None,
            unit: Unit::Bytes,
        }),
        EventKind::StepFinished {
            step: "driver".into(),
            changed: true,
            evidence: vec!["580.126.09".into()],
            seconds: 41.5,
        },
        run_finished("converged"),
    ]
}

/// The end of a run.
pub fn run_finished(outcome: &str) -> EventKind {
    EventKind::RunFinished {
        outcome: outcome.into(),
        exit_code: u8::from(outcome == "failed"),
        seconds: 212.5,
    }
}

/// A metadata service whose role has these credentials.
pub fn with_role(key: &str, secret: &str, token: &str) -> Imds {
    Imds::new().item("meta-data/iam/security-credentials/", "gpu-node").item(
        "meta-data/iam/security-credentials/gpu-node",
        serde_json::json!({
            "Code": "Success", "LastUpdated": "2026-11-23T00:00:00Z", "Type": "AWS-HMAC", "AccessKeyId": key,
            "SecretAccessKey": secret, "Token": token, "Expiration": "2030-01-01T00:00:00Z",
        })
        .to_string(),
    )
}

/// Answers the first requests with `first`, one after the other, and then as AWS does.
pub fn scripted(first: Vec<Reply>) -> Server {
    let next = AtomicUsize::new(0);
    Server::start(move |_| first.get(next.fetch_add(1, Ordering::SeqCst)).cloned().unwrap_or(Reply::ok("{}")))
}

/// An answer of AWS's JSON protocols.
pub fn error(status: u16, code: &str) -> Reply {
    Reply::status(status, format!(r#"{{"__type":"x#{code}","message":"because"}}"#))
}

/// A request's JSON, compressed or not.
pub fn body(request: &Request) -> Value {
    if request.header("content-encoding") != Some("gzip") {
        return serde_json::from_slice(&request.body).unwrap();
    }
    let mut text = String::new();
    flate2::read::GzDecoder::new(request.body.as_slice()).read_to_string(&mut text).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// Waits until something is so.
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_so() {
        assert!(Instant::now() < deadline, "not within 30 s: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The same, while other work goes on.
pub async fn soon(mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_so() {
        assert!(Instant::now() < deadline, "not within 30 s");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
