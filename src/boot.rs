//! The run as one readable function: facts → config → plan → converge → report. Start reading here;
//! `docs/boot.md` has a table with the file behind each phase.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::stat::{Mode, umask};

use crate::action::Action;
use crate::action::repository::private::Private;
use crate::bundle::{self, Opened};
use crate::catalog::{Catalog, Choice, Stack};
use crate::config::schema::Reboot;
use crate::config::user_data::NotOurs;
use crate::config::{Config, layers};
use crate::engine::converge::{Outcome, converge, failed};
use crate::engine::receipt::{self, Found, Receipt};
use crate::engine::signals::Signals;
use crate::engine::{change, lock, reboot, self_wait};
use crate::error::{Code, Error, Result, exit};
use crate::facts::{self, Facts};
use crate::host::Host;
use crate::host::clock::Clock;
use crate::host::files::Files;
use crate::host::paths;
use crate::imds;
use crate::install::{self, Installer};
use crate::instance;
use crate::plan::step::Scope;
use crate::plan::{self, Plan};
use crate::report::cloud_init::CloudInit;
use crate::report::console::Console;
use crate::report::event::{Event, EventKind, StepTitle};
use crate::report::journal::Journal;
use crate::report::remote::{Remote, Settings};
use crate::report::status_file::StatusFile;
use crate::report::streams;
use crate::report::{Listener, Reports};

/// At boot the network may come up late, and nobody waits at a prompt.
pub const METADATA_DEADLINE_AT_BOOT: Duration = Duration::from_mins(5);
/// By hand a person waits, and the network is up.
pub const METADATA_DEADLINE_BY_HAND: Duration = Duration::from_secs(5);

/// What every command that looks at the machine needs to know.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// `/`, or a directory treated as the machine's root.
    pub root: PathBuf,
    /// `--config FILE`: the strongest configuration layer.
    pub config: Option<PathBuf>,
    /// `--catalog DIR`: files that take the place of the embedded catalog's.
    pub catalog: Option<PathBuf>,
    /// `None` with `--no-imds`; otherwise how long the metadata service may take.
    pub metadata_deadline: Option<Duration>,
    /// Started by one of our units, by its `--boot`: it shares with the others what the metadata service says. Whoever
    /// calls by hand may have changed something, and asks.
    pub unit: bool,
}

/// How a run behaves.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a command-line flag of its own")]
pub struct RunOptions {
    /// Where to look.
    pub inputs: Inputs,
    /// Go on with an earlier run; an error if there is none.
    pub resume: bool,
    /// Accept a plan that takes back what an earlier run finished.
    pub replan: bool,
    /// Started by the unit: lines also go to the console.
    pub boot: bool,
    /// Reboot the machine where it must be (the unit's right only).
    pub reboot: bool,
    /// Exit 194 where a reboot is needed, as Systems Manager wants it.
    pub ssm: bool,
    /// Suppress the step lines on standard output.
    pub quiet: bool,
    /// Write the files by which others wait for cloud-init, where it is not installed.
    pub cloud_init_compat: bool,
}

/// Facts, config, choice and plan, before anything is changed.
pub struct Prepared {
    /// What is true of this machine.
    pub facts: Facts,
    /// What the user asked for.
    pub config: Config,
    /// Where it came from, strongest last.
    pub layers: Vec<String>,
    /// Why the user-data is no configuration of ours, where there is user-data that is none.
    pub user_data: Option<NotOurs>,
    /// What of it looks like configuration of ours and was not read, and why.
    pub notices: Vec<String>,
    /// What follows from both.
    pub choice: Choice,
}

/// Facts → config → choice. Changes nothing.
pub async fn prepare(host: &Host, inputs: &Inputs, metadata: Option<&imds::Client>) -> Result<Prepared> {
    let facts = facts::gather(host, metadata).await?;
    let loaded = read_config(host, inputs, &facts)?;
    let bundle = bundle::open(host, &loaded.config, &facts, metadata).await?;
    let choice = decide(host, inputs, &facts, &loaded.config, bundle)?;
    Ok(Prepared::new(facts, loaded, choice))
}

fn read_config(host: &Host, inputs: &Inputs, facts: &Facts) -> Result<layers::Loaded> {
    let user_data = facts.identity.user_data.as_ref().map(|f| f.value.as_slice());
    let extra = inputs.config.as_deref().map(layers::Layer::from_file).transpose()?;
    layers::load(host, user_data, extra.as_slice())
}

fn decide(
    host: &Host,
    inputs: &Inputs,
    facts: &Facts,
    config: &Config,
    bundle: Option<Arc<Opened>>,
) -> Result<Choice> {
    let catalog = match &inputs.catalog {
        Some(dir) => Catalog::with_overrides(dir)?,
        None => Catalog::embedded()?,
    };
    let earlier = change::earlier(&host.files)?;
    let choice = bundle::choose_within(bundle.as_deref(), &catalog, facts, config, earlier.as_ref())?;
    if let Some(bundle) = bundle {
        host.install_from(bundle);
    }
    Ok(choice)
}

impl Prepared {
    fn new(facts: Facts, loaded: layers::Loaded, choice: Choice) -> Self {
        let layers::Loaded { config, layers, user_data, notices, set_by: _ } = loaded;
        Self { facts, config, layers, user_data, notices, choice }
    }
}

/// The metadata client that `inputs` ask for.
pub fn metadata_client(inputs: &Inputs) -> Result<Option<imds::Client>> {
    let client = inputs.metadata_deadline.map_or(Ok(None), imds::Client::from_env)?;
    let share = |client: imds::Client| client.sharing(Files::new(inputs.root.clone()));
    Ok(if inputs.unit { client.map(share) } else { client })
}

/// A whole run. Returns the process's exit code; everything else is said through the reports.
pub async fn run(options: &RunOptions) -> u8 {
    let began = Instant::now();
    // A hardened root's 077 would hide keyrings and indexes from apt's own user, and the status from everybody.
    umask(Mode::from_bits_truncate(0o022));
    let files = Files::new(options.inputs.root.clone());
    // Not root, or another run's turn: said on standard error only, so that the other run's files stay its own.
    let held = require_root().and_then(|()| lock::acquire(&files));
    let _lock = match held {
        Ok(lock) => lock,
        Err(error) => {
            streams::err(&explain(&error));
            return error.code().exit_code();
        }
    };
    let swept = paths::WRITTEN_DIRS.map(|dir| files.sweep(dir));
    for result in swept.into_iter().chain([Private::sweep(&files)]) {
        if let Err(error) = result {
            tracing::warn!("{}", explain(&error)); // tidiness is no reason not to run
        }
    }
    if options.boot
        && let Err(error) = instance::wait(&files)
    {
        tracing::warn!("{}", explain(&error)); // the run says itself what it lacks room for
    }
    let remote = Remote::default();
    let reports = reports(options, &files, &remote);
    let host = host(options, &reports);
    if let Err(error) = host.fetch.sweep(&host) {
        tracing::warn!("{}", explain(&error));
    }
    let ended = Box::pin(run_locked(options, &host, &reports, &remote)).await;
    let exit_code = finish(options, &reports, &remote, began, &ended);
    if ended.may_reboot
        && options.reboot
        && matches!(ended.result, Ok(Outcome::RebootNeeded { .. }))
        && let Err(error) = reboot::reboot(&host).await
    {
        streams::err(&explain(&error));
    }
    exit_code
}

/// What a run came to, for [`finish`].
struct Ended {
    result: Result<Outcome>,
    /// There was nothing to do, by the user's own policy.
    skipped: bool,
    /// The configuration lets the unit reboot.
    may_reboot: bool,
}

impl Ended {
    fn early(result: Result<Outcome>) -> Self {
        Self { result, skipped: false, may_reboot: false }
    }
}

async fn run_locked(options: &RunOptions, host: &Host, reports: &Reports, remote: &Remote) -> Ended {
    let began = host.clock.now();
    let metadata = match metadata_client(&options.inputs) {
        Ok(client) => client,
        Err(error) => return Ended::early(fail(reports, error)),
    };
    let mut signals = match Signals::take() {
        Ok(signals) => signals,
        Err(error) => return Ended::early(fail(reports, error)),
    };
    let facts = tokio::select! {
        facts = facts::gather(host, metadata.as_ref()) => facts,
        error = signals.next() => Err(error),
    };
    let facts = match facts {
        Ok(facts) => facts,
        Err(error) => return Ended::early(fail(reports, error)),
    };
    let loaded = read_config(host, &options.inputs, &facts);
    // Whoever gets this far can be told elsewhere, too, whatever goes wrong from here on. What a configuration with mistakes
    // says about reports cannot be read, either: the defaults send them where there is a role.
    let report = loaded.as_ref().map(|loaded| loaded.config.report.clone()).unwrap_or_default();
    let root = options.inputs.root.clone();
    remote.start(&Settings::new(root, report, &facts.identity, metadata.is_some(), began));
    match loaded {
        Ok(loaded) => {
            let region = facts.identity.instance.as_ref().map(|i| i.value.region.clone());
            let aws = &loaded.config.report.aws;
            host.reach_buckets(bundle::Remote::new(aws, region, metadata.as_ref()));
            let bundle = tokio::select! {
                bundle = bundle::open(host, &loaded.config, &facts, metadata.as_ref()) => bundle,
                error = signals.next() => Err(error),
            };
            match bundle {
                Ok(bundle) => {
                    run_configured(options, host, reports, facts, loaded, bundle, &mut signals).await
                }
                Err(error) => Ended::early(fail(reports, error)),
            }
        }
        Err(error) => Ended::early(fail(reports, error)),
    }
}

/// Facts and config → choice → run.
async fn run_configured(
    options: &RunOptions,
    host: &Host,
    reports: &Reports,
    facts: Facts,
    loaded: layers::Loaded,
    bundle: Option<Arc<Opened>>,
    signals: &mut Signals,
) -> Ended {
    let prepared = match decide(host, &options.inputs, &facts, &loaded.config, bundle) {
        Ok(choice) => Prepared::new(facts, loaded, choice),
        Err(error) => return Ended::early(fail(reports, error)),
    };
    let stack = match &prepared.choice {
        Choice::Install(stack) => stack,
        Choice::Nothing { why } => {
            reports.emit(EventKind::Notice { text: format!("nothing to do: {why}") });
            return Ended { skipped: true, ..Ended::early(Ok(Outcome::Converged { changed: false })) };
        }
    };
    let result = run_plan(options, host, reports, &prepared, stack, signals).await;
    Ended { result, skipped: false, may_reboot: prepared.config.policy.reboot == Reboot::Auto }
}

/// Choice → plan → converge, with the receipt around it.
async fn run_plan(
    options: &RunOptions,
    host: &Host,
    reports: &Reports,
    prepared: &Prepared,
    stack: &Stack,
    signals: &mut Signals,
) -> Result<Outcome> {
    let identity = &prepared.facts.identity;
    let how = install::Options::from(&prepared.config.install);
    // What lies in a bundle is here already.
    host.install_as(install::Options { prefetch: how.prefetch && host.bundle().is_none(), ..how });
    let custom = plan::custom::read(&host.files);
    let plan = custom.and_then(|custom| plan::build(&prepared.facts, &prepared.config, stack, &custom));
    let begun = plan.and_then(|plan| {
        begin(options, host, reports, prepared, stack, &plan).map(|receipt| (plan, receipt))
    });
    let (plan, before) = match begun {
        Ok(begun) => begun,
        Err(error) => return fail(reports, error),
    };
    if let Err(error) = Installer::new(host).tidy().await {
        tracing::warn!("{}", explain(&error)); // the next run tries again
    }
    sweep_beside(&plan, &host.files);
    let mut receipt = before.clone();
    receipt.begin(&plan, &identity.boot_id.value);
    let result = tokio::select! {
        result = converge(&plan, host, &mut receipt, reports) => result,
        error = signals.next() => fail(reports, error),
        never = self_wait::watch(host) => match never {},
    };
    let result = note_end(&mut receipt, result, reports);
    if host.bundle().is_some()
        && matches!(result, Ok(Outcome::Converged { .. }))
        && let Err(error) = bundle::tidy(host)
    {
        tracing::warn!("{}", explain(&error)); // no reason to fail a machine that works
    }
    // Only what is installed is a choice to be kept: one that the repository could not meet is made anew.
    let mut of_image = plan.steps.iter().filter(|s| s.scope == Scope::Image && s.origin.is_none());
    if of_image.all(|s| receipt.is_done_as(&s.id, &s.digest))
        && let Err(error) = change::record(&host.files, stack)
    {
        return result.and(fail(reports, error));
    }
    // A run that found everything as it was leaves the receipt as it was, too.
    if receipt != before
        && let Err(error) = receipt.save(&host.files)
    {
        return result.and(fail(reports, error));
    }
    result
}

/// Removes what a killed run left unfinished where the plan's steps write: the administrator's may do so anywhere.
fn sweep_beside(plan: &Plan, files: &Files) {
    let targets = plan.steps.iter().flat_map(|s| &s.actions).filter_map(Action::target);
    let dirs: BTreeSet<_> = targets.filter_map(|path| path.rsplit_once('/')).map(|(dir, _)| dir).collect();
    for dir in dirs {
        if let Err(error) = files.sweep(if dir.is_empty() { "/" } else { dir }) {
            tracing::warn!("{}", explain(&error)); // tidiness is no reason not to run
        }
    }
}

/// Loads the receipt, refuses what must be refused, and announces the run.
fn begin(
    options: &RunOptions,
    host: &Host,
    reports: &Reports,
    prepared: &Prepared,
    stack: &Stack,
    plan: &Plan,
) -> Result<Receipt> {
    let identity = &prepared.facts.identity;
    reports.emit(EventKind::RunStarted {
        steps: plan.steps.iter().map(|s| StepTitle { id: s.id.clone(), title: s.title.clone() }).collect(),
        plan_digest: plan.digest.clone(),
        instance_id: identity.instance_id().into(),
        instance_type: identity.instance_type().map(Into::into),
        boot_id: identity.boot_id.value.clone(),
        choices: choices(&host.files, stack, identity.instance_id())?,
    });
    if let Some(why @ (NotOurs::NearlyOurs | NotOurs::BadGzip)) = &prepared.user_data {
        reports.emit(EventKind::Notice { text: format!("configuration in user-data was not used: {why}") });
    }
    for text in &prepared.notices {
        reports.emit(EventKind::Notice { text: format!("configuration in user-data was not used: {text}") });
    }
    let store = &prepared.config.instance.store;
    if !store.is_empty() && prepared.facts.disk.instance_store.value.is_empty() {
        let text = format!("this instance has no instance store; {store} is left as it is");
        reports.emit(EventKind::Notice { text });
    }
    for text in &prepared.facts.gpu.disagreements {
        reports.emit(EventKind::Notice { text: text.clone() });
    }
    let receipt = match receipt::load(&host.files, identity.instance_id())? {
        Found::Ours(receipt) => receipt,
        Found::None if options.resume => {
            return Err(Error::new(
                Code::NothingToResume,
                "there is no earlier run on this instance to resume",
            )
            .with_hint("run without --resume to begin one"));
        }
        Found::None => Receipt::new(identity.instance_id()),
        Found::SetAside(text) => {
            reports.emit(EventKind::Notice { text });
            Receipt::new(identity.instance_id())
        }
    };
    if let Some(earlier) = change::earlier(&host.files)?
        && !options.replan
    {
        change::refuse_reversal(&earlier, stack, &receipt)?;
    }
    if !receipt.plan_digest.is_empty() && receipt.plan_digest != plan.digest {
        reports.emit(EventKind::Notice { text: difference(&receipt, plan) });
    }
    Ok(receipt)
}

/// Why the plan is as it is; on an image's new instance, also how what was installed before is known.
pub fn choices(files: &Files, stack: &Stack, instance_id: &str) -> Result<Vec<String>> {
    let mut choices = stack.reasons.clone();
    if receipt::is_of_an_image(files, instance_id)? {
        choices.push(format!(
            "{instance_id} is new on this image: what an earlier run installed is proved by dpkg's database and the files' \
             sizes, and only what is missing is done."
        ));
    }
    Ok(choices)
}

/// Which steps are not the ones of the last run.
fn difference(receipt: &Receipt, plan: &Plan) -> String {
    let known = |id: &str| receipt.steps.iter().find(|r| r.id == id);
    let changed = plan.steps.iter().filter_map(|step| match known(&step.id) {
        Some(record) if record.digest == step.digest => None,
        Some(_) => Some(format!("{} changed", step.id)),
        None => Some(format!("{} is new", step.id)),
    });
    let gone = receipt.steps.iter().filter(|r| plan.steps.iter().all(|s| s.id != r.id));
    let all: Vec<_> = changed.chain(gone.map(|r| format!("{} is gone", r.id))).collect();
    format!("the plan is not the last run's: {}", all.join(", "))
}

/// Writes the end of the run into the receipt; a reboot too many turns into an error here.
fn note_end(receipt: &mut Receipt, result: Result<Outcome>, reports: &Reports) -> Result<Outcome> {
    let result = match result {
        Ok(Outcome::RebootNeeded { why }) => match reboot::note(receipt, &why) {
            Ok(()) => Ok(Outcome::RebootNeeded { why }),
            Err(error) => fail(reports, error),
        },
        other => other,
    };
    receipt.outcome = outcome_name(&result, false).into();
    match &result {
        Ok(Outcome::Converged { .. }) => {
            receipt.reboots = 0;
            receipt.reboot_asked_in = None;
        }
        Err(error) if matches!(error.code(), Code::Interrupted | Code::Terminated) => {
            for record in receipt.steps.iter_mut().filter(|r| r.state == "running") {
                record.state = "interrupted".into();
            }
        }
        Ok(Outcome::RebootNeeded { .. }) | Err(_) => {}
    }
    result
}

/// `converged`, `skipped`, `reboot-needed`, `interrupted` or `failed`.
fn outcome_name(result: &Result<Outcome>, skipped: bool) -> &'static str {
    match result {
        Ok(Outcome::Converged { .. }) if skipped => "skipped",
        Ok(Outcome::Converged { .. }) => "converged",
        Ok(Outcome::RebootNeeded { .. }) => "reboot-needed",
        Err(e) if matches!(e.code(), Code::Interrupted | Code::Terminated) => "interrupted",
        Err(_) => "failed",
    }
}

/// Says how the run ended and returns its exit code.
fn finish(options: &RunOptions, reports: &Reports, remote: &Remote, began: Instant, ended: &Ended) -> u8 {
    let exit_code = match &ended.result {
        Ok(Outcome::Converged { .. }) => exit::CONVERGED,
        Ok(Outcome::RebootNeeded { why }) => {
            reports.emit(EventKind::RebootNeeded { why: why.clone() });
            if options.ssm { exit::REBOOT_NEEDED_SSM } else { exit::REBOOT_NEEDED }
        }
        Err(error) => error.code().exit_code(),
    };
    let end = EventKind::RunFinished {
        outcome: outcome_name(&ended.result, ended.skipped).into(),
        exit_code,
        seconds: began.elapsed().as_secs_f64(),
    };
    // What became of reports is part of the result, so they are told first.
    for text in remote.finish(&Event { at: Clock.now(), kind: end.clone() }) {
        reports.emit(EventKind::Reported { text });
    }
    reports.emit(end);
    exit_code
}

/// Reports an error that no step reported, and passes it on.
fn fail(reports: &Reports, error: Error) -> Result<Outcome> {
    reports.emit(failed(None, &error));
    Err(error)
}

fn reports(options: &RunOptions, files: &Files, remote: &Remote) -> Reports {
    let mut listeners: Vec<Box<dyn Listener>> =
        vec![Box::new(StatusFile::new(files.clone()).begun()), Box::new(remote.clone())];
    if !options.quiet {
        let bars = !options.boot && std::io::stderr().is_terminal();
        let journal = Journal::of_standard_output();
        listeners.push(Box::new(Console::new(options.boot, bars).with_output(journal.is_none())));
        listeners.extend(journal.map(|journal| Box::new(journal) as Box<dyn Listener>));
    }
    if options.cloud_init_compat
        && let Some(listener) = CloudInit::new(files.clone())
    {
        listeners.push(Box::new(listener));
    }
    Reports::new(listeners)
}

fn host(options: &RunOptions, reports: &Reports) -> Host {
    let (progress, notices, installations) = (reports.clone(), reports.clone(), reports.clone());
    let (verdicts, output) = (reports.clone(), reports.clone());
    Host::new(options.inputs.root.clone())
        .with_progress(move |p| progress.emit(EventKind::Progress(p)))
        .with_notices(move |text| notices.emit(EventKind::Notice { text }))
        .with_output(move |line| output.emit(EventKind::Output { line }))
        .with_installations(move |report| {
            installations
                .emit(EventKind::Installed { sentence: report.sentence(), report: Box::new(report) });
        })
        .with_verdicts(move |of_gpus| verdicts.emit(EventKind::GpusChecked(Box::new(of_gpus))))
}

pub(crate) fn require_root() -> Result<()> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    Err(Error::new(
        Code::NotRoot,
        "a run installs packages and writes below /etc, /usr and /var: it needs root",
    )
    .with_hint("run it with sudo; `plan` and `detect` work without"))
}

/// An error as people see it on standard error: the sentence, its causes, what to do.
pub fn explain(error: &Error) -> String {
    let mut text = format!("gpu-bootstrap: {} [{}]", error.message(), error.code());
    for cause in error.causes() {
        let _ = write!(text, "\n  because: {}", cause.replace('\n', "\n           ")); // a String takes everything
    }
    if let Some(hint) = error.hint() {
        let _ = write!(text, "\n  what to do: {hint}");
    }
    text
}
