//! What leaves the machine: metrics and logs to CloudWatch, and a word to whoever waits for the instance. The run only
//! hands its events over to the [`deliver`]er, a process of its own; at its end it asks once how far that has come.

mod channel;
pub mod deliver;
mod figures;
mod logs;
mod metrics;
mod signals;
mod spool;
mod story;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use channel::Standing;

use super::Listener;
use super::event::{Event, EventKind};
use crate::aws::Environment;
use crate::config::schema::{Enabled, ReportConfig};
use crate::error::{Code, Error, Result};
use crate::facts::identity::Identity;
use crate::host::files::Files;
use crate::host::{fault, paths};

/// What a run's end waits for reports that are on their way.
const WAIT: Duration = Duration::from_secs(1);

/// What runs left undelivered, while nobody delivers it.
pub(crate) struct Undelivered {
    /// How many files.
    pub(crate) count: usize,
    _spool: spool::Spool,
}

/// Lets whoever is delivering come to an end. What is left then is nobody's, until this is dropped.
pub(crate) async fn undelivered(files: &Files) -> Result<Undelivered> {
    let spool = spool::Spool::new(files.clone(), Timestamp::now());
    if spool.count() > 0 && !spool.claim().await {
        let message = format!("reports of an earlier run are being delivered: {} is held", paths::SPOOL_LOCK);
        return Err(Error::new(Code::Locked, message)
            .with_hint("`gpu-bootstrap status` says how that stands; it ends within an hour"));
    }
    Ok(Undelivered { count: spool.count(), _spool: spool })
}

/// What the deliverer has to know of a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Settings {
    /// `/`, or the directory that the run uses as root.
    pub root: PathBuf,
    /// Who is to be told.
    pub report: ReportConfig,
    /// The instance id, or `local` off EC2.
    pub instance_id: String,
    /// The instance type, where known.
    pub instance_type: Option<String>,
    /// The instance's region, where known.
    pub region: Option<String>,
    /// Whether there is a metadata service to ask for the role.
    pub asks_metadata: bool,
    /// When the run began; its name in logs.
    pub run: Timestamp,
}

/// `/run/gpu-bootstrap/delivery.json`: how it stands with each channel since the run is over.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DeliveryFile {
    /// When this was written.
    pub updated: Timestamp,
    /// When the run began that this is about.
    pub run: Timestamp,
    /// Each channel.
    pub channels: Vec<Standing>,
}

impl Settings {
    /// Those of a run on this machine that began at `run`.
    pub fn new(
        root: PathBuf,
        report: ReportConfig,
        identity: &Identity,
        asks_metadata: bool,
        run: Timestamp,
    ) -> Self {
        Self {
            root,
            report,
            instance_id: identity.instance_id().into(),
            instance_type: identity.instance_type().map(Into::into),
            region: identity.instance.as_ref().map(|i| i.value.region.clone()),
            // The firmware decides whether there is a metadata service to ask, here as for the facts.
            asks_metadata: asks_metadata && identity.on_ec2.value,
            run,
        }
    }

    fn instance_type(&self) -> &str {
        self.instance_type.as_deref().unwrap_or("unknown")
    }

    /// Why there is nothing to be delivered; `None` where there is.
    fn idle(&self, environment: &Environment) -> Option<String> {
        if !signals::configured(self).is_empty() {
            return None;
        }
        match self.report.cloudwatch.enabled {
            Enabled::Fixed(false) => Some("cloudwatch: off: the configuration says so".into()),
            Enabled::Auto(_) if !self.asks_metadata && !environment.has_credentials() => Some(
                "cloudwatch: off: there are no credentials in the environment and no instance role to ask for"
                    .into(),
            ),
            _ => None,
        }
    }
}

/// The run's side: a listener that hands events over and never waits. Clones are the same one.
#[derive(Clone, Default)]
pub struct Remote(Arc<Mutex<State>>);

enum State {
    /// It is not known yet who is to be told; events are kept.
    Waiting(Vec<String>),
    /// The deliverer hears what is said.
    Speaking { lines: Sender<String>, answers: Receiver<Vec<Standing>> },
    /// Nobody is to be told, or nobody can be; why.
    Silent(Option<String>),
}

impl Default for State {
    fn default() -> Self {
        Self::Waiting(Vec::new())
    }
}

impl Remote {
    /// Starts the deliverer, where there is something to be delivered.
    pub fn start(&self, settings: &Settings) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let State::Waiting(early) = &mut *state else { return };
        if let Some(why) = settings.idle(&Environment::of_process()) {
            *state = State::Silent(Some(why));
            return;
        }
        let early = std::mem::take(early);
        *state = match start(settings) {
            Ok((lines, answers)) => {
                // It cannot have ended yet, and if it has, the answers say so.
                for line in early {
                    drop(lines.send(line));
                }
                State::Speaking { lines, answers }
            }
            Err(e) => State::Silent(Some(format!("reports: failed: cannot start the deliverer: {e}"))),
        };
    }

    /// Says that the run is over, waits a moment, and returns a sentence for each channel. What is not delivered by then
    /// is delivered later.
    pub fn finish(&self, end: &Event) -> Vec<String> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (lines, answers) = match std::mem::replace(&mut *state, State::Silent(None)) {
            State::Waiting(_) => return Vec::new(),
            State::Silent(why) => return why.into_iter().collect(),
            State::Speaking { lines, answers } => (lines, answers),
        };
        drop(state);
        let _ = lines.send(line(end)); // if it cannot hear any more, its last answer says so
        drop(lines);
        let deadline = Instant::now() + WAIT;
        let mut last = Vec::new();
        while let Ok(standings) = answers.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            last = standings;
            if last.iter().all(|s| s.is_over) {
                break;
            }
        }
        if last.is_empty() {
            return vec!["reports: failed: the deliverer does not answer".into()];
        }
        last.iter().map(ToString::to_string).collect()
    }
}

impl Listener for Remote {
    fn hear(&mut self, event: &Event) {
        // The end is told by `finish`, progress and what commands print to nobody.
        if matches!(
            event.kind,
            EventKind::Progress(_)
                | EventKind::Output { .. }
                | EventKind::RunFinished { .. }
                | EventKind::Reported { .. }
        ) {
            return;
        }
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *state {
            State::Waiting(early) => early.push(line(event)),
            State::Speaking { lines, .. } => drop(lines.send(line(event))), // see `finish`
            State::Silent(_) => {}
        }
    }
}

fn line(event: &Event) -> String {
    serde_json::to_string(event).unwrap_or_default()
}

/// Starts the process, and two threads that wait for its pipes.
fn start(settings: &Settings) -> std::io::Result<(Sender<String>, Receiver<Vec<Standing>>)> {
    fault::point(fault::Kind::Exec, "deliver")?;
    let mut command = Command::new("/proc/self/exe");
    fault::keep_from(&mut command);
    let mut child = command
        .arg0("gpu-bootstrap")
        .arg("deliver")
        // The terminal's Ctrl-C ends the run, and the run's end is what is to be told.
        .process_group(0)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let (lines, queued) = channel::<String>();
    let (answered, answers) = channel();
    if let (Some(mut stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) {
        let settings = serde_json::to_string(settings)?;
        std::thread::Builder::new().spawn(move || {
            for line in std::iter::once(settings).chain(queued) {
                if stdin.write_all((line + "\n").as_bytes()).is_err() {
                    break;
                }
            }
        })?;
        std::thread::Builder::new().spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let Ok(standings) = serde_json::from_str(&line) else { continue };
                if answered.send(standings).is_err() {
                    break;
                }
            }
        })?;
    }
    Ok((lines, answers))
}

/// Any bytes as an answer of CloudWatch Logs.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz_answer(bytes: &[u8]) {
    logs::fuzz_answer(bytes);
}

/// Any bytes as a file of the spool, of each channel, and as the file about deliveries.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz_spool(bytes: &[u8]) {
    let _ = serde_json::from_slice::<channel::Kept<logs::Line>>(bytes);
    let _ = serde_json::from_slice::<channel::Kept<figures::Figure>>(bytes);
    let _ = serde_json::from_slice::<channel::Kept<signals::Word>>(bytes);
    let _ = serde_json::from_slice::<DeliveryFile>(bytes);
    let _ = serde_json::from_slice::<Vec<Event>>(bytes);
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;
    use crate::aws::Session;

    pub(super) fn settings() -> Settings {
        Settings {
            root: "/nonexistent".into(),
            report: ReportConfig::default(),
            instance_id: "i-0123456789abcdef0".into(),
            instance_type: Some("g5.xlarge".into()),
            region: Some("us-east-1".into()),
            asks_metadata: false,
            run: "2026-11-23T12:00:00Z".parse().unwrap(),
        }
    }

    pub(super) fn session() -> Rc<Session> {
        let environment = Environment::from_lookup(|_| None);
        Session::new(environment, &ReportConfig::default().aws, Some("us-east-1".into()), None).into()
    }

    #[test]
    fn where_nobody_can_be_told_nothing_is_started() {
        let nobody = Environment::from_lookup(|_| None);
        let with = |change: fn(&mut Settings)| {
            let mut settings = settings();
            change(&mut settings);
            settings.idle(&nobody)
        };
        assert!(with(|_| ()).unwrap().contains("no credentials"));
        assert!(
            with(|s| s.report.cloudwatch.enabled = Enabled::Fixed(false)).unwrap().contains("configuration")
        );
        assert_eq!(with(|s| s.asks_metadata = true), None);
        assert_eq!(with(|s| s.report.webhook = "http://a/".into()), None);
        assert_eq!(with(|s| s.report.cloudwatch.enabled = Enabled::Fixed(true)), None);
    }
}
