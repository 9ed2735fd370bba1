//! The deliverer: a process of its own, so that neither a service that hangs nor one that answers late can hold the run,
//! and so that a run that was killed is told of, too. It reads the run's events from its standard input, sends them, and
//! says on its standard output how it stands. When the run is over it goes on for as long as it takes, within reason.

use std::cell::{Cell, RefCell};
use std::io::{BufRead, Write};
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::{OptionFuture, join_all};
use jiff::Timestamp;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc, watch};

use super::channel::{Channel, Kept, Phase, Standing, Target};
use super::figures::Sums;
use super::logs::{self, Logs};
use super::metrics::Metrics;
use super::signals::{self, Signal, To, Word};
use super::spool::Spool;
use super::story::Story;
use super::{DeliveryFile, Settings};
use crate::aws::{Environment, Session};
use crate::config::schema::Enabled;
use crate::error::{Code, Error, Result, exit};
use crate::host::files::Files;
use crate::host::paths;
use crate::imds;
use crate::report::event::{Event, EventKind};

/// After the end of a run; then the next run or boot sends what is left.
const GIVE_UP: Duration = Duration::from_hours(1);
/// How often what waits is written to the disk while the other side does not take it.
const WRITE_AGAIN: Duration = Duration::from_secs(5);
/// What is not delivered so long after a run is written to the disk.
const PROMPTLY: Duration = Duration::from_millis(300);
/// What the metadata service gets; each question renews it.
const METADATA: Duration = Duration::from_secs(5);

/// Everything there is to deliver with.
pub struct Deliverer {
    settings: Rc<Settings>,
    spool: Spool,
    files: Files,
    phase: watch::Sender<Phase>,
    metrics: Option<Channel<Metrics>>,
    logs: Option<Channel<Logs>>,
    signals: Vec<Channel<Signal>>,
    sums: RefCell<Sums>,
    story: RefCell<Story>,
    number: Cell<u64>,
    told: Notify,
}

/// The process: settings on the first line of standard input, an event on each other line.
pub(crate) async fn main() -> Result<()> {
    let mut first = String::new();
    let read = std::io::stdin().lock().read_line(&mut first);
    let settings: Settings = read
        .map_err(|e| e.to_string())
        .and_then(|_| serde_json::from_str(&first).map_err(|e| e.to_string()))
        .map_err(|e| {
            Error::new(Code::Usage, format!("`deliver` is called by a run, with its settings: {e}"))
        })?;
    let (said, mut heard) = mpsc::unbounded_channel();
    // A thread of its own, because standard input can only be waited for. It ends with the process.
    std::thread::spawn(move || {
        let lines = std::io::stdin().lock().lines().map_while(std::result::Result::ok);
        for event in lines.filter_map(|line| serde_json::from_str(&line).ok()) {
            if said.send(event).is_err() {
                break;
            }
        }
    });
    let imds = if settings.asks_metadata { imds::Client::from_env(METADATA)? } else { None };
    let session =
        Session::new(Environment::of_process(), &settings.report.aws, settings.region.clone(), imds);
    let deliverer = Deliverer::new(settings, session);
    let tell = |standings: &[Standing]| {
        // The run may be over, and nobody listen any more.
        let line = serde_json::to_string(standings).unwrap_or_default();
        let mut stdout = std::io::stdout();
        let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
    };
    tokio::select! {
        () = deliverer.run(&mut heard, tell) => Ok(()),
        error = deliverer.heed_signals() => Err(error),
    }
}

impl Deliverer {
    /// Ready to deliver what `settings` ask for.
    pub fn new(settings: Settings, session: Session) -> Self {
        let (settings, session) = (Rc::new(settings), Rc::new(session));
        let phase = watch::Sender::new(Phase::Open);
        let cloudwatch = &settings.report.cloudwatch;
        let is_on = cloudwatch.enabled != Enabled::Fixed(false);
        let metrics = Metrics { session: Rc::clone(&session), settings: Rc::clone(&settings) };
        let logs = Logs::new(Rc::clone(&session), Rc::clone(&settings));
        let signal = |to| {
            let signal = Signal { to, session: Rc::clone(&session), settings: Rc::clone(&settings) };
            Channel::new(signal, phase.subscribe())
        };
        let files = Files::new(settings.root.clone());
        Self {
            spool: Spool::new(files.clone(), settings.run),
            files,
            metrics: is_on.then(|| Channel::new(metrics, phase.subscribe())),
            logs: (is_on && cloudwatch.logs).then(|| Channel::new(logs, phase.subscribe())),
            signals: signals::configured(&settings).into_iter().map(signal).collect(),
            sums: RefCell::default(),
            story: RefCell::default(),
            number: Cell::default(),
            told: Notify::new(),
            phase,
            settings,
        }
    }

    /// Delivers what is heard until nothing is left or it is given up; `tell` hears how it stands.
    pub async fn run(&self, heard: &mut mpsc::UnboundedReceiver<Event>, mut tell: impl FnMut(&[Standing])) {
        let now = Timestamp::now();
        self.say("running", now);
        let deliver = async {
            let close = async {
                tokio::join!(self.listen(heard), self.take_over());
                self.at_least(Phase::Closed);
            };
            let work = async {
                tokio::join!(
                    OptionFuture::from(self.metrics.as_ref().map(|c| c.work(&self.spool, &self.told))),
                    OptionFuture::from(self.logs.as_ref().map(|c| c.work(&self.spool, &self.told))),
                    join_all(self.signals.iter().map(|c| c.work(&self.spool, &self.told))),
                )
            };
            tokio::join!(close, work, self.prolong())
        };
        let tell_on = async {
            loop {
                self.told.notified().await;
                self.tell(&mut tell);
            }
        };
        let too_long = async {
            let mut phase = self.phase.subscribe();
            let _ = phase.wait_for(|p| *p >= Phase::Draining).await; // the sender is ours
            tokio::time::sleep(GIVE_UP).await;
            self.at_least(Phase::Stop);
            std::future::pending::<()>().await;
        };
        tokio::select! {
            _ = deliver => {}
            () = tell_on => {}
            () = too_long => {}
            () = self.secure() => {}
        }
        self.tell(&mut tell);
    }

    /// Brings what waits to the disk, in time. Never ends.
    async fn secure(&self) {
        let mut phase = self.phase.subscribe();
        let all = |is_over| {
            self.metrics.iter().for_each(|c| c.secure(&self.spool, is_over));
            self.logs.iter().for_each(|c| c.secure(&self.spool, is_over));
            self.signals.iter().for_each(|c| c.secure(&self.spool, is_over));
        };
        let over = phase.wait_for(|p| *p >= Phase::Draining);
        let while_it_works = async {
            loop {
                tokio::time::sleep(WRITE_AGAIN).await;
                all(false);
            }
        };
        tokio::select! {
            _ = over => {}
            () = while_it_works => {}
        }
        all(false);
        tokio::time::sleep(PROMPTLY).await;
        loop {
            all(true);
            tokio::time::sleep(WRITE_AGAIN).await;
            if !self.settings.root.exists() {
                self.at_least(Phase::Stop); // a root that is gone was a test's, or a container's
            }
        }
    }

    /// Makes room when another run's deliverer asks for it, and ends when the machine goes down.
    async fn heed_signals(&self) -> Error {
        let take =
            |kind| signal(kind).map_err(|e| Error::new(Code::Io, "cannot listen to signals").because(e));
        let (mut end, mut interrupt, mut make_room) = match (
            take(SignalKind::terminate()),
            take(SignalKind::interrupt()),
            take(SignalKind::user_defined1()),
        ) {
            (Ok(end), Ok(interrupt), Ok(make_room)) => (end, interrupt, make_room),
            (Err(e), ..) | (_, Err(e), _) | (.., Err(e)) => return e,
        };
        loop {
            tokio::select! {
                _ = end.recv() => self.at_least(Phase::Stop),
                _ = interrupt.recv() => self.at_least(Phase::Stop),
                _ = make_room.recv() => self.at_least(Phase::HandOver),
            }
        }
    }

    /// Goes on to `phase`, never back.
    pub(super) fn at_least(&self, phase: Phase) {
        self.phase.send_if_modified(|now| {
            let is_news = *now < phase;
            *now = (*now).max(phase);
            is_news
        });
        self.told.notify_one();
    }

    /// Hears events until the run is over.
    async fn listen(&self, heard: &mut mpsc::UnboundedReceiver<Event>) {
        let mut phase = self.phase.subscribe();
        let mut is_finished = false;
        loop {
            let event = tokio::select! {
                event = heard.recv() => event,
                _ = phase.wait_for(|p| *p >= Phase::HandOver) => None,
            };
            let Some(event) = event else { break };
            is_finished |= matches!(event.kind, EventKind::RunFinished { .. });
            self.hear(&event);
        }
        if !is_finished && *self.phase.borrow() < Phase::HandOver {
            // Nobody said that the run is over, and nobody can say anything any more: it was killed.
            let at = Timestamp::now();
            let seconds = at.duration_since(self.settings.run).as_secs_f64();
            let kind = EventKind::RunFinished { outcome: "killed".into(), exit_code: exit::FAILED, seconds };
            self.hear(&Event { at, kind });
        }
        self.at_least(Phase::Draining);
    }

    /// Passes an event on to every channel that it is for.
    fn hear(&self, event: &Event) {
        let step = self.sums.borrow_mut().hear(event);
        self.story.borrow_mut().hear(event, step.as_ref());
        let number = self.number.replace(self.number.get() + 1);
        if let Some(logs) = &self.logs
            && let Some(line) = logs::line(&self.settings, event, number, step.as_ref())
        {
            logs.push(line);
        } else if let (Some(metrics), Some(step)) = (&self.metrics, &step) {
            for figure in step.figures(&self.settings) {
                metrics.push(figure);
            }
        }
        if let EventKind::RunFinished { outcome, seconds, .. } = &event.kind {
            if let Some(metrics) = &self.metrics {
                let figures = self.sums.borrow().of_run(&self.settings, outcome, *seconds, event.at);
                for figure in figures {
                    metrics.push(figure);
                }
            }
            self.say(outcome, event.at);
        }
    }

    /// Tells everybody who wants to know it that the run is in this state.
    fn say(&self, state: &str, at: Timestamp) {
        let word = Word::new(&self.settings, at, state, self.story.borrow().json(&self.settings, state));
        for channel in self.signals.iter().filter(|c| c.target().to.wants(&word)) {
            channel.push(word.clone());
        }
    }

    /// Tells the Auto Scaling group that the instance is being worked on.
    async fn prolong(&self) {
        let mut phase = self.phase.subscribe();
        let Some(channel) = self.signals.iter().find(|c| c.target().to == To::AutoScaling) else { return };
        let interval = Duration::from_secs(self.settings.report.autoscaling.heartbeat);
        while *phase.borrow_and_update() == Phase::Open {
            // Not every instance of a group was launched by way of its hook, and not every run is the launch's.
            if let Err(e) = channel.target().heartbeat().await {
                tracing::info!("the lifecycle hook was not prolonged: {e}");
            }
            let _ = tokio::time::timeout(interval, phase.wait_for(|p| *p > Phase::Open)).await;
        }
    }

    /// Takes over what earlier runs could not deliver.
    async fn take_over(&self) {
        let mut phase = self.phase.subscribe();
        let is_ours = tokio::select! {
            is_ours = self.spool.claim() => is_ours,
            _ = phase.wait_for(|p| *p >= Phase::HandOver) => false,
        };
        if !is_ours {
            return;
        }
        self.spool.sweep();
        if let Some(metrics) = &self.metrics {
            self.adopt(metrics);
        }
        if let Some(logs) = &self.logs {
            self.adopt(logs);
        }
        self.signals.iter().for_each(|channel| self.adopt(channel));
    }

    fn adopt<T: Target>(&self, channel: &Channel<T>) {
        for mut left in self.spool.left::<Kept<T::Item>>(channel.target().name()) {
            channel.adopt(std::mem::take(&mut left.kept));
            channel.write(&self.spool);
            self.spool.forget(&left);
        }
    }

    fn standings(&self) -> Vec<Standing> {
        let cloudwatch =
            self.metrics.iter().map(Channel::standing).chain(self.logs.iter().map(Channel::standing));
        cloudwatch.chain(self.signals.iter().map(Channel::standing)).collect()
    }

    fn tell(&self, tell: &mut impl FnMut(&[Standing])) {
        if *self.phase.borrow() == Phase::Open {
            return; // nobody asks before the run is over
        }
        let channels = self.standings();
        tell(&channels);
        let file = DeliveryFile { updated: Timestamp::now(), run: self.settings.run, channels };
        let written = serde_json::to_vec_pretty(&file)
            .map_err(|e| e.to_string())
            .and_then(|json| self.files.write(paths::DELIVERY, &json, 0o644).map_err(|e| e.to_string()));
        if let Err(e) = written {
            tracing::warn!("{e}");
        }
    }
}
