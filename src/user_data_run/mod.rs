//! Acting on user-data where cloud-init does not: `gpu-bootstrap user-data run`, started by its own unit at every boot.
//! [`run`] is all of it as one readable function; `docs/user-data.md` is the same for people.
//!
//! Everything is read and judged before anything is done. An item counts as done only after it ended, so that one that was
//! killed is begun again at the next boot: at least once, where cloud-init has at most once.

mod done;
mod ending;
mod item;
mod log;
mod report;
mod script;

use std::cell::Cell;
use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::stat::{Mode, umask};

use crate::boot::{self, Inputs};
use crate::cloud_config::{Growth, Instance, Task};
use crate::config::layers::{self, Layer};
use crate::config::schema::{InstanceConfig, UserDataPolicy};
use crate::config::user_data as limits;
use crate::engine::signals::Signals;
use crate::error::{Code, Error, Result};
use crate::facts::identity::{self, Identity};
use crate::host::Host;
use crate::host::fault::{self, Kind};
use crate::host::fetch::redact_url;
use crate::host::files::Files;
use crate::host::paths;
use crate::imds;
use crate::instance::cloud_init;
use crate::report::streams;
use crate::user_data::{self, Included};
use done::{Done, Due};
pub use item::Stage;
use item::{Item, Work};
pub use report::summary;
use report::{Outcome, Report};

/// How long what is at work may take to end by itself when the machine goes down: a script whose last words are `reboot`
/// is to be recorded as done.
const LAST_WORDS: Duration = Duration::from_secs(2);

const IGNORED: &str = "[instance] user-data = \"ignore\": nothing is done";

/// How acting on user-data behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where to look.
    pub inputs: Inputs,
    /// This file in place of the instance's user-data.
    pub file: Option<PathBuf>,
    /// Act on parts that came after this instance was set up.
    pub changed: bool,
    /// Do once more what is done.
    pub again: bool,
    /// Only what belongs to this stage; everything without.
    pub stage: Option<Stage>,
}

/// Does what the user-data asks for and is not done yet. Returns the process's exit code: 0, or 1 where something failed.
pub async fn run(options: &Options) -> Result<u8> {
    umask(Mode::from_bits_truncate(0o022));
    boot::require_root()?;
    let host = Host::new(options.inputs.root.clone());
    let mut signals = Signals::take()?;
    let _turn = turn(&host.files)?;
    let mut report = Report::default();
    if let Some(path) = cloud_init::enabled_by(&host.files)? {
        report.is("not-ours", format!("cloud-init is at work here ({path}), so that nothing is done"));
        return report.finish(&host.files);
    }
    let metadata = boot::metadata_client(&options.inputs)?;
    let identity = tokio::select! {
        identity = identity::gather(&host, metadata.as_ref()) => identity,
        stopped = signals.next() => return Err(stopped),
    };
    report.metadata_requests = metadata.as_ref().map_or(0, imds::Client::requests);
    let identity = match identity {
        Ok(identity) => identity,
        Err(error) => return refuse(report, &host.files, error),
    };
    report.boot_id.clone_from(&identity.boot_id.value);
    identity.instance_id().clone_into(&mut report.instance_id);
    let Some(bytes) = user_data(options, &identity, &mut report)? else { return report.finish(&host.files) };
    // Nothing is fetched for nothing; but some of the configuration may be what is fetched.
    if is_ignored(&host, &options.inputs, &bytes) {
        report.is("ignored", IGNORED);
        return report.finish(&host.files);
    }
    let included = tokio::select! {
        included = Included::fetched(&host, &bytes) => included,
        stopped = signals.next() => return Err(stopped),
    };
    let included = match included {
        Ok(included) => included,
        Err(error) => return refuse(report, &host.files, error),
    };
    let config = config(&host, &options.inputs, &bytes, &mut report);
    if config.user_data == UserDataPolicy::Ignore {
        report.is("ignored", IGNORED);
        return report.finish(&host.files);
    }
    if options.file.is_none() {
        included.sweep(&host.files)?;
    }
    let items = user_data::open(&bytes, &included).map_err(refused);
    let items = items.and_then(|opened| item::items(&opened.parts));
    let items = match items {
        Ok((items, notes)) => {
            for note in &notes {
                streams::say(note);
            }
            items
        }
        Err(error) => return refuse(report, &host.files, error),
    };
    let stopping = Cell::new(false);
    {
        let instance_id = report.instance_id.clone();
        let instance = Instance { id: &instance_id, login_user: &config.user, metadata: metadata.as_ref() };
        let work = act(&host, options, instance, &items, &mut report, &stopping);
        tokio::pin!(work);
        tokio::select! {
            result = &mut work => result?,
            stopped = signals.next() => {
                stopping.set(true);
                let _ = tokio::time::timeout(LAST_WORDS, &mut work).await; // what did not end is begun again
                return Err(Error::new(stopped.code(), stopped.message().to_owned())
                    .with_hint("what did not come to its end is begun again at the next boot"));
            }
        }
    }
    report.finish(&host.files)
}

/// Nothing of it is done.
fn refuse(mut report: Report, files: &Files, error: Error) -> Result<u8> {
    report.refused(&error);
    report.finish(files)?;
    Err(error)
}

/// The bytes to act on; `None` where there is nothing, which is said.
fn user_data(options: &Options, identity: &Identity, report: &mut Report) -> Result<Option<Vec<u8>>> {
    if let Some(path) = &options.file {
        return limits::load(path).map(Some);
    }
    if !identity.on_ec2.value || identity.instance.is_none() {
        let why = if identity.on_ec2.value {
            "the metadata service is not to be asked".into()
        } else {
            format!("this is no EC2 instance ({})", identity.on_ec2.source)
        };
        report.is("not-ours", format!("{why}, so that nothing is done; --file names user-data by hand"));
        return Ok(None);
    }
    // None is user-data as well: what is given to this instance later has come later.
    Ok(Some(identity.user_data.as_ref().map(|fact| fact.value.clone()).unwrap_or_default()))
}

fn is_ignored(host: &Host, inputs: &Inputs, user_data: &[u8]) -> bool {
    let extra = inputs.config.as_deref().map(Layer::from_file).transpose();
    let loaded = extra.and_then(|extra| layers::load(host, Some(user_data), extra.as_slice()));
    loaded.is_ok_and(|loaded| loaded.config.instance.user_data == UserDataPolicy::Ignore)
}

/// `[instance]`. What has a mistake is left out, as by the early part: scripts may be what mends it.
fn config(host: &Host, inputs: &Inputs, user_data: &[u8], report: &mut Report) -> InstanceConfig {
    let extra = inputs.config.as_deref().map(Layer::from_file).transpose();
    let error = match extra.and_then(|extra| layers::load(host, Some(user_data), extra.as_slice())) {
        Ok(loaded) => {
            loaded.notices.iter().for_each(|notice| streams::say(notice));
            return loaded.config.instance;
        }
        Err(error) => error,
    };
    report.problem(&error);
    layers::load(host, None, &[]).map(|loaded| loaded.config.instance).unwrap_or_default()
}

fn refused(why: user_data::Refusal) -> Error {
    Error::new(Code::UserDataInvalid, format!("user-data: {why}"))
}

/// Every item in its order: due or not, then done, then recorded.
async fn act(
    host: &Host,
    options: &Options,
    instance: Instance<'_>,
    items: &[Item],
    report: &mut Report,
    stopping: &Cell<bool>,
) -> Result<()> {
    let kept = Done::load(&host.files);
    let mut done = kept.clone().of(&report.instance_id, &report.boot_id);
    if done.is_new() || options.changed || options.file.is_some() {
        done.accept(items);
    }
    if done != kept {
        done.save(&host.files)?;
    }
    script::sweep(&host.files)?;
    report.begin(items);
    report.write(&host.files)?;
    for (index, item) in items.iter().enumerate() {
        if stopping.get() {
            return Ok(());
        }
        if options.stage.is_some_and(|stage| stage != item.stage) {
            continue;
        }
        match done.due(item, options.again) {
            Due::Now => {}
            Due::Not(outcome, why) => {
                report.not_now(index, outcome, why);
                continue;
            }
            Due::Never(error) => {
                report.ended(index, Err(error), Duration::ZERO);
                continue;
            }
        }
        if let Some(why) = ending::put_off(&host.files, item)? {
            report.not_now(index, Outcome::Waiting, &why);
            continue;
        }
        // Before: an item that takes the machine down again and again is not begun for ever.
        if item.may_end_the_boot() {
            done.end(item, true);
        } else {
            done.begin(item);
        }
        done.save(&host.files)?;
        report.running(index);
        report.write(&host.files)?;
        let began = Instant::now();
        let result = perform(host, item, instance, stopping).await;
        done.end(item, result.is_ok());
        let saved = done.save(&host.files);
        report.ended(index, result, began.elapsed());
        saved?;
        report.write(&host.files)?;
    }
    Ok(())
}

/// Does one item. Returns a sentence.
async fn perform(host: &Host, item: &Item, instance: Instance<'_>, stopping: &Cell<bool>) -> Result<String> {
    match &item.work {
        Work::Script(bytes) => script::run(host, &item.name, bytes, instance.id).await,
        Work::Task(Task::FinalMessage(text)) => ending::say(host, text),
        Work::Task(Task::RebootIfRequired) => ending::reboot_if_required(host, stopping).await,
        Work::Task(Task::PowerState(state)) => ending::power_state(host, state).await,
        Work::Task(task) => task.apply(host, &instance).await,
    }
}

/// What an image without cloud-init would do with it, in order: a line for each item, or why nothing would be done.
pub fn preview(bytes: &[u8], included: &Included) -> Vec<String> {
    let opened = user_data::open(bytes, included).map_err(refused);
    let items = opened.and_then(|opened| Ok((item::items(&opened.parts)?, user_data::links(&opened.parts))));
    match items {
        Ok(((items, notes), links)) => {
            let fetched = links.into_iter().map(|link| {
                let shown = redact_url(link.url.as_str());
                format!("fetches {shown} (sha256 {}) and does what it says, in its place", link.sha256)
            });
            let line = |item: &Item| {
                let what = match &item.work {
                    Work::Script(script) => format!("runs a script of {} bytes", script.len()),
                    Work::Task(task) => task.sentence(),
                };
                format!("{} ({}): {what}", item.name, item.frequency.name())
            };
            notes.into_iter().chain(fetched).chain(items.iter().map(line)).collect()
        }
        Err(error) => error.message().lines().map(str::to_owned).collect(),
    }
}

/// What the user-data says of the root's size, for the early part of the boot.
pub(crate) fn growth(bytes: &[u8]) -> Growth {
    let items = user_data::parts(bytes).map_err(refused).and_then(|parts| item::items(&parts));
    let found = items.ok().and_then(|(items, _)| {
        items.into_iter().find_map(|item| match item.work {
            Work::Task(Task::Growth(growth)) => Some(growth),
            _ => None,
        })
    });
    found.unwrap_or_default()
}

/// One call at a time. The second one is refused: it may be a script of the first, which would wait for itself.
fn turn(files: &Files) -> Result<Flock<File>> {
    let file = files.open_rw(paths::USER_DATA_LOCK)?;
    fault::point(Kind::Lock, paths::USER_DATA_LOCK)
        .map_err(|e| Error::io("lock", paths::USER_DATA_LOCK, e))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        Errno::EWOULDBLOCK => Error::new(Code::Locked, "another `user-data run` is at work")
            .with_hint("`journalctl -u gpu-bootstrap-user-data` shows what it does"),
        errno => Error::io("lock", paths::USER_DATA_LOCK, errno.into()),
    })
}

/// Whether somebody acts on the user-data now.
pub(crate) fn is_at_work(files: &Files) -> Result<bool> {
    if !files.exists(paths::USER_DATA_LOCK)? {
        return Ok(false);
    }
    let file = files.open_rw(paths::USER_DATA_LOCK)?;
    Ok(Flock::lock(file, FlockArg::LockSharedNonblock).is_err())
}
