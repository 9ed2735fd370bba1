//! `status`: how the last run went, or how the current one is going. A run that was killed must not look like
//! one that still works: the lock tells them apart.

use std::fmt::Write as _;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::engine::lock;
use crate::error::{Code, Error, Result, exit};
use crate::host::files::Files;
use crate::host::paths;
use crate::report::event::{Progress, Unit};
use crate::report::remote::DeliveryFile;
use crate::report::status_file::{Status, StepStatus};
use crate::report::streams;
use crate::user_data_run;

/// How often a waiting `status` looks.
const POLL: Duration = Duration::from_millis(50);

/// What `status` is asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// `/`, or the directory that a run used as root.
    pub root: PathBuf,
    /// Wait for the end of the run, and exit with its code.
    pub wait: bool,
    /// Show what changes until the end of the run, and exit with its code.
    pub watch: bool,
    /// Longest wait.
    pub timeout: Option<Duration>,
    /// JSON instead of text.
    pub json: bool,
}

/// Prints the status and returns the exit code: with `--wait` and `--watch` the run's own, otherwise 0.
pub fn show(options: &Options) -> Result<u8> {
    let files = Files::new(options.root.clone());
    let began = Instant::now();
    let waits = options.wait || options.watch;
    let mut screen = options.watch.then(Screen::default);
    loop {
        let status = read(&files)?;
        let over = status.as_ref().is_some_and(|s| s.state != "running" && of_this_boot(&files, s));
        if !waits || over {
            if let Some(screen) = &mut screen {
                screen.clear()?;
            }
            return print(&files, status, options);
        }
        if let (Some(screen), Some(status)) = (&mut screen, &status) {
            screen.show(status)?;
        }
        if options.timeout.is_some_and(|limit| began.elapsed() >= limit) {
            return Err(Error::new(
                Code::WaitTimeout,
                "the run was not over when the time-out of `status --wait` came",
            )
            .with_hint("`gpu-bootstrap status` shows how far it is"));
        }
        std::thread::sleep(POLL);
    }
}

/// Whether a status belongs to this boot. A waiting script on a fresh boot means the run of that boot, not the
/// result that an image or an earlier boot left behind. A status without boot id (the run failed before it knew
/// it) lies in `/run`, which no reboot survives.
pub(crate) fn of_this_boot(files: &Files, status: &Status) -> bool {
    let boot_id = files.read_text("/proc/sys/kernel/random/boot_id").ok().flatten().unwrap_or_default();
    status.boot_id.is_empty() || status.boot_id == boot_id.trim()
}

/// The live status of this boot, or the result of an earlier boot. A `running` status whose lock is free
/// belongs to a run that was killed.
pub fn read(files: &Files) -> Result<Option<Status>> {
    for path in [paths::STATUS, paths::LAST_RESULT] {
        let Some(bytes) = files.read(path)? else { continue };
        let mut status: Status = serde_json::from_slice(&bytes)
            .map_err(|e| Error::new(Code::Io, format!("cannot understand {path}")).because(e))?;
        if status.state == "running" && !lock::is_held(files)? {
            // Between reading the file and asking the lock the run may have ended well: look again.
            let again: Option<Status> = files.read(path)?.and_then(|b| serde_json::from_slice(&b).ok());
            match again {
                Some(fresh) if fresh.state != "running" => status = fresh,
                _ => {
                    status.state = "killed".into();
                    status.outcome = Some("killed".into());
                    status.exit_code = Some(exit::FAILED);
                }
            }
        }
        reported_since(files, &mut status);
        return Ok(Some(status));
    }
    // A run that has the lock and has not said anything yet.
    Ok(lock::is_held(files)?.then(|| Status { schema: 1, state: "running".into(), ..Status::default() }))
}

/// Reports go on being delivered after the end of a run, whose result says how far they were by then.
fn reported_since(files: &Files, status: &mut Status) {
    let bytes = files.read(paths::DELIVERY).ok().flatten().unwrap_or_default();
    let Ok(delivery) = serde_json::from_slice::<DeliveryFile>(&bytes) else { return };
    if status.state != "running" && status.started.is_some_and(|began| delivery.run >= began) {
        status.reports = delivery.channels.iter().map(ToString::to_string).collect();
    }
}

fn print(files: &Files, status: Option<Status>, options: &Options) -> Result<u8> {
    let user_data =
        user_data_run::summary(files)?.map(|text| streams::printable(&format!("user-data: {text}\n")));
    let Some(status) = status else {
        if let Some(user_data) = user_data.filter(|_| !options.json) {
            streams::out(&user_data)?;
            return Ok(exit::CONVERGED);
        }
        return Err(Error::new(Code::NothingToResume, "there was no run on this machine yet")
            .with_hint("`gpu-bootstrap plan` shows what a run would do"));
    };
    if options.json {
        streams::out(&streams::json(&status)?)?;
    } else {
        streams::out(&streams::printable(&text(&status)))?;
        streams::out(&user_data.unwrap_or_default())?;
    }
    Ok(if options.wait || options.watch { status.exit_code.unwrap_or(exit::FAILED) } else { exit::CONVERGED })
}

/// What `--watch` shows: on a terminal the whole status, drawn over the last one; elsewhere a line for each step that
/// ends.
#[derive(Default)]
struct Screen {
    shown: String,
    ended: usize,
}

impl Screen {
    fn show(&mut self, status: &Status) -> Result<()> {
        if !std::io::stdout().is_terminal() {
            let ended: Vec<_> = status.steps.iter().filter(|s| s.seconds.is_some()).collect();
            for step in ended.iter().skip(self.ended) {
                streams::out(&streams::printable(&line(step)))?;
            }
            self.ended = self.ended.max(ended.len());
            return Ok(());
        }
        let text = streams::printable(&text(status));
        if text != self.shown {
            self.clear()?;
            // Lines that are too long are cut, not broken: what is drawn is counted by lines.
            streams::out(&format!("\u{1b}[?7l{text}\u{1b}[?7h"))?;
            self.shown = text;
        }
        Ok(())
    }

    /// Takes what stands there away.
    fn clear(&mut self) -> Result<()> {
        let lines = std::mem::take(&mut self.shown).lines().count();
        if lines > 0 {
            streams::out(&format!("\u{1b}[{lines}F\u{1b}[J"))?;
        }
        Ok(())
    }
}

fn line(step: &StepStatus) -> String {
    let seconds = step.seconds.map(|s| format!(" {s:.1} s")).unwrap_or_default();
    format!("  {:<8} {}{seconds}\n", step.state, step.title)
}

/// How far a piece of work has come, in words.
fn amount(p: &Progress) -> String {
    let megabytes = |bytes: u64| bytes / 1_000_000;
    match (p.unit, p.total) {
        (Unit::Bytes, Some(total)) => format!(" ({} of {} MB)", megabytes(p.done), megabytes(total)),
        (Unit::Bytes, None) => format!(" ({} MB)", megabytes(p.done)),
        (Unit::Fraction, _) => format!(" ({} %)", p.done / 100),
        (Unit::Seconds, _) => format!(" ({} s)", p.done),
    }
}

/// For people.
pub fn text(status: &Status) -> String {
    let mut out = String::new();
    let state = status.outcome.as_deref().unwrap_or(&status.state);
    let _ = write!(out, "{state}"); // writing to a String cannot fail
    if let Some(code) = status.exit_code {
        let _ = write!(out, " (exit code {code})");
    }
    if let Some(seconds) = status.seconds {
        let _ = write!(out, " after {seconds:.1} s");
    }
    let _ = writeln!(out);
    for step in &status.steps {
        out.push_str(&line(step));
    }
    if let Some(gpus) = &status.gpus {
        let _ = writeln!(out, "GPUs: {}", gpus.sentence());
    }
    if let Some(p) = &status.progress {
        let _ = writeln!(out, "  now: {} {}{}", p.what, p.item, amount(p));
    }
    if let Some(error) = &status.error {
        let _ = writeln!(out, "{} [{}]", error.message, error.code);
        for cause in &error.causes {
            let _ = writeln!(out, "  because: {}", cause.replace('\n', "\n           "));
        }
        if let Some(hint) = &error.hint {
            let _ = writeln!(out, "  what to do: {hint}");
        }
    }
    if let Some(why) = &status.reboot {
        let _ = writeln!(out, "a reboot is needed: {why}");
    }
    for report in &status.reports {
        let _ = writeln!(out, "reported to {report}");
    }
    out
}
