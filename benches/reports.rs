//! A fleet that reports at the same moment: so many deliverers, in one process, against one endpoint that takes only so
//! many requests a second and turns the others away, as AWS does. Everything has to arrive, once, within five minutes.
//!
//! ```sh
//! cargo bench --bench reports                              # 1,000 agents, 50 requests a second
//! cargo bench --bench reports -- --agents 100 --rate 20    # half a minute
//! ```
//!
//! The last line is for programs; the exit status is 0 where everything arrived in time.
#![allow(clippy::unwrap_used, reason = "a benchmark fails by panicking, like a test")]
#![allow(clippy::cast_precision_loss, reason = "figures of a few digits")]

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use gpu_bootstrap::aws::{Environment, Session};
use gpu_bootstrap::config::schema::ReportConfig;
use gpu_bootstrap::report::event::{Event, EventKind};
use gpu_bootstrap::report::remote::Settings;
use gpu_bootstrap::report::remote::deliver::Deliverer;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::{Value, json};
use tokio::sync::mpsc::unbounded_channel;

const LIMIT: Duration = Duration::from_mins(5);
/// Of each agent's run; with its beginning and its end, twice as many events and one more.
const STEPS: usize = 7;
const EVENTS: usize = 2 * STEPS + 1;
const FIGURES: usize = 4;

/// The service: what it takes, and what it was asked.
#[derive(Default)]
struct Service {
    rate: f64,
    tokens: f64,
    filled: Option<Instant>,
    has_group: bool,
    streams: HashMap<String, HashSet<u64>>,
    twice: usize,
    figures: usize,
    calls: HashMap<String, usize>,
    turned_away: usize,
}

impl Service {
    fn may(&mut self) -> bool {
        let now = Instant::now();
        let since = self.filled.replace(now).map_or(1.0, |at| now.duration_since(at).as_secs_f64());
        self.tokens = (self.tokens + since * self.rate).min(self.rate);
        let may = self.tokens >= 1.0;
        self.tokens -= f64::from(u8::from(may));
        may
    }

    fn answer(&mut self, key: &str, target: &str, body: &Value) -> (u16, Value) {
        *self.calls.entry(key.into()).or_default() += 1;
        if !self.may() {
            self.turned_away += 1;
            return error("ThrottlingException");
        }
        let stream = body["logStreamName"].as_str().unwrap_or_default();
        match target.rsplit('.').next().unwrap_or_default() {
            "PutMetricData" => self.figures += body["MetricData"].as_array().unwrap().len(),
            "CreateLogGroup" => self.has_group = true,
            "PutRetentionPolicy" => {}
            "CreateLogStream" if self.has_group => drop(self.streams.entry(stream.into()).or_default()),
            "PutLogEvents" if self.streams.contains_key(stream) => {
                let seen = self.streams.get_mut(stream).unwrap();
                for event in body["logEvents"].as_array().unwrap() {
                    let message: Value = serde_json::from_str(event["message"].as_str().unwrap()).unwrap();
                    self.twice += usize::from(!seen.insert(message["seq"].as_u64().unwrap()));
                }
            }
            _ => return error("ResourceNotFoundException"),
        }
        (200, json!({}))
    }
}

fn error(code: &str) -> (u16, Value) {
    (400, json!({ "__type": code, "message": "" }))
}

async fn serve(listener: tokio::net::TcpListener, service: Arc<Mutex<Service>>) {
    loop {
        let (socket, _) = listener.accept().await.unwrap();
        let service = Arc::clone(&service);
        tokio::spawn(async move {
            let answer = service_fn(move |request: Request<Incoming>| {
                let service = Arc::clone(&service);
                async move {
                    let header = |name| request.headers()[name].to_str().unwrap().to_owned();
                    let (target, signed) = (header("x-amz-target"), header("authorization"));
                    let key = signed.split(['=', '/']).nth(1).unwrap().to_owned();
                    let body = request.into_body().collect().await.unwrap().to_bytes();
                    let body = serde_json::from_slice(&body).unwrap();
                    let (status, body) = service.lock().unwrap().answer(&key, &target, &body);
                    let body = Full::new(Bytes::from(body.to_string()));
                    Ok::<_, Infallible>(Response::builder().status(status).body(body).unwrap())
                }
            });
            // A client that went away is not this server's business.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(socket), answer)
                .await;
        });
    }
}

/// What an agent says in its run.
fn events() -> impl Iterator<Item = EventKind> {
    let step = |n: usize| {
        let step = format!("step-{n}");
        let finished = EventKind::StepFinished {
            step: step.clone(),
            changed: true,
            evidence: vec!["it is there".into()],
            seconds: 1.5,
        };
        [EventKind::StepStarted { step }, finished]
    };
    let end = EventKind::RunFinished { outcome: "converged".into(), exit_code: 0, seconds: 60.0 };
    (0..STEPS).flat_map(step).chain([end])
}

async fn agent(number: usize, url: String, root: std::path::PathBuf) -> Duration {
    let began = Instant::now();
    let (said, mut heard) = unbounded_channel();
    for kind in events() {
        said.send(Event { at: jiff::Timestamp::now(), kind }).unwrap();
    }
    drop(said);
    let settings = Settings {
        root: root.join(number.to_string()),
        report: ReportConfig::default(),
        instance_id: format!("i-{number:017x}"),
        instance_type: Some("g5.xlarge".into()),
        region: Some("us-east-1".into()),
        asks_metadata: false,
        run: jiff::Timestamp::now(),
    };
    std::fs::create_dir_all(&settings.root).unwrap();
    // Each has a key of its own, by which its calls are counted.
    let environment = Environment::from_lookup(|name| match name {
        "AWS_ENDPOINT_URL" => Some(url.clone()),
        "AWS_ACCESS_KEY_ID" => Some(format!("AKIA{number}")),
        "AWS_SECRET_ACCESS_KEY" => Some("secret".into()),
        _ => None,
    });
    let session = Session::new(environment, &settings.report.aws, settings.region.clone(), None);
    Deliverer::new(settings, session).run(&mut heard, |_| ()).await;
    began.elapsed()
}

fn flag(name: &str, default: usize) -> usize {
    let words: Vec<_> = std::env::args().collect();
    let at = words.iter().position(|word| word == name);
    at.map_or(default, |at| words[at + 1].parse().unwrap())
}

fn percentile(sorted: &[f64], part: f64) -> f64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index of a list")]
    let at = ((sorted.len() - 1) as f64 * part) as usize;
    sorted[at]
}

fn main() -> ExitCode {
    let (agents, rate) = (flag("--agents", 1000), flag("--rate", 50));
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let service = Arc::new(Mutex::new(Service { rate: rate as f64, ..Service::default() }));
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let served = Arc::clone(&service);
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { serve(tokio::net::TcpListener::from_std(listener).unwrap(), served).await });
    });

    let root = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let began = Instant::now();
    let all = join_all((0..agents).map(|n| agent(n, url.clone(), root.path().into())));
    let ended = runtime.block_on(async { tokio::time::timeout(LIMIT, all).await });
    let seconds = began.elapsed().as_secs_f64();
    let mut waited: Vec<f64> = ended.iter().flatten().map(Duration::as_secs_f64).collect();
    waited.sort_by(f64::total_cmp);

    let service = service.lock().unwrap();
    let events: usize = service.streams.values().map(HashSet::len).sum();
    let mut calls: Vec<f64> = service.calls.values().map(|n| *n as f64).collect();
    calls.sort_by(f64::total_cmp);
    let is_whole = events == agents * EVENTS && service.figures == agents * FIGURES && service.twice == 0;
    println!("{agents} agents, an endpoint that takes {rate} requests a second");
    println!("events delivered      {events} of {}, {} of them twice", agents * EVENTS, service.twice);
    println!("figures delivered     {} of {}", service.figures, agents * FIGURES);
    if let Some(last) = waited.last() {
        println!(
            "an agent was done     after {:.1} s (half of them), {last:.1} s (the last)",
            percentile(&waited, 0.5)
        );
    }
    println!(
        "calls of an agent     {} (half of them), {} (95 %), {} (most); 4 are needed",
        percentile(&calls, 0.5),
        percentile(&calls, 0.95),
        percentile(&calls, 1.0)
    );
    let total: f64 = calls.iter().sum();
    println!("calls in all          {total}, of them {} turned away", service.turned_away);
    println!(
        "agents={agents} delivered={events}/{} twice={} seconds={seconds:.1} calls-per-agent={:.2}",
        agents * EVENTS,
        service.twice,
        total / agents as f64
    );
    ExitCode::from(u8::from(!is_whole))
}
