//! One line per step for people: on standard output, and at boot on `/dev/console`, which EC2 shows as the
//! instance's console output.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;

use super::Listener;
use super::event::{Event, EventKind};
use super::progress::ProgressBars;
use super::streams::printable;
use crate::device_query::checks::Verdict;

/// Writes step lines.
pub struct Console {
    device: Option<File>,
    bars: Option<ProgressBars>,
    titles: Vec<(String, String)>,
}

impl Console {
    /// Lines on standard output; with `boot` also on `/dev/console`; with `bars` long work is shown as progress bars.
    pub fn new(boot: bool, bars: bool) -> Self {
        let device = boot.then(|| {
            // Without O_NONBLOCK a stopped serial console would stop the run.
            OpenOptions::new()
                .write(true)
                .custom_flags(nix::libc::O_NONBLOCK | nix::libc::O_NOCTTY)
                .open("/dev/console")
        });
        Self { device: device.and_then(Result::ok), bars: bars.then(ProgressBars::new), titles: Vec::new() }
    }

    fn line(&mut self, text: &str) {
        let text = &printable(text);
        match &self.bars {
            Some(bars) => bars.print(text),
            // A closed standard output is the caller's choice, not a failure of the run.
            None => drop(writeln!(std::io::stdout(), "{text}")),
        }
        if let Some(device) = &mut self.device {
            let _ = writeln!(device, "gpu-bootstrap: {text}\r");
        }
    }

    fn title(&self, step: &str) -> String {
        let known = self.titles.iter().find(|(id, _)| id == step);
        known.map_or_else(|| step.to_owned(), |(_, title)| title.clone())
    }
}

impl Listener for Console {
    fn hear(&mut self, event: &Event) {
        match &event.kind {
            EventKind::RunStarted { steps, plan_digest, choices, .. } => {
                self.titles = steps.iter().map(|s| (s.id.clone(), s.title.clone())).collect();
                for choice in choices {
                    self.line(&format!("chosen   {choice}"));
                }
                self.line(&format!("plan     {} steps, digest {:.12}", steps.len(), plan_digest));
            }
            EventKind::StepFinished { step, changed, evidence, seconds } => {
                if let Some(bars) = &mut self.bars {
                    bars.clear();
                }
                let word = if *changed { "done" } else { "ok" };
                let what = if *changed { format!("{seconds:.1} s") } else { evidence.join("; ") };
                let title = self.title(step);
                self.line(&format!("{word:<8} {title}: {what}"));
            }
            EventKind::Installed { sentence, .. } => self.line(sentence),
            // GPUs that all work are the evidence of their step.
            EventKind::GpusChecked(verdicts) if verdicts.result != Verdict::Pass => {
                self.line(&format!("GPUs     {}", verdicts.sentence()));
            }
            EventKind::Notice { text } => self.line(&format!("notice   {text}")),
            EventKind::Progress(progress) => {
                if let Some(bars) = &mut self.bars {
                    bars.show(progress);
                }
            }
            EventKind::Failed { step, code, message, causes, hint } => {
                if let Some(bars) = &mut self.bars {
                    bars.clear();
                }
                let place = step.as_deref().map(|s| format!("{}: ", self.title(s))).unwrap_or_default();
                self.line(&format!("FAILED   {place}{message} [{code}]"));
                for cause in causes {
                    self.line(&format!("         because: {}", cause.replace('\n', "\n                  ")));
                }
                if let Some(hint) = hint {
                    self.line(&format!("         what to do: {hint}"));
                }
            }
            EventKind::RebootNeeded { why } => self.line(&format!("reboot   needed: {why}")),
            EventKind::RunFinished { outcome, exit_code, seconds } => {
                if let Some(bars) = &mut self.bars {
                    bars.clear();
                }
                self.line(&format!("{outcome:<8} after {seconds:.1} s (exit code {exit_code})"));
            }
            EventKind::Reported { text } => tracing::info!("{text}"),
            EventKind::StepStarted { .. }
            | EventKind::ActionChecked { .. }
            | EventKind::GpusChecked(_)
            | EventKind::Unknown => {}
        }
    }
}
