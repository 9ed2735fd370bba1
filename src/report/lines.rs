//! Events as lines for people. The console shows them and the journal gets them, in the same words.

use super::event::EventKind;
use super::streams::printable;
use crate::device_query::checks::Verdict;

/// Turns events into lines. It remembers the steps' titles, so it must hear every event.
#[derive(Default)]
pub struct Lines {
    titles: Vec<(String, String)>,
}

impl Lines {
    /// The lines of one event; most events have none. A line that quotes a program may hold line feeds.
    pub fn of(&mut self, kind: &EventKind) -> Vec<String> {
        self.words(kind).iter().map(|line| printable(line)).collect()
    }

    fn words(&mut self, kind: &EventKind) -> Vec<String> {
        match kind {
            EventKind::RunStarted { steps, plan_digest, choices, .. } => {
                self.titles = steps.iter().map(|s| (s.id.clone(), s.title.clone())).collect();
                let mut lines: Vec<_> = choices.iter().map(|choice| format!("chosen   {choice}")).collect();
                lines.push(format!("plan     {} steps, digest {plan_digest:.12}", steps.len()));
                lines
            }
            EventKind::StepFinished { step, changed, evidence, seconds } => {
                let word = if *changed { "done" } else { "ok" };
                let what = if *changed { format!("{seconds:.1} s") } else { evidence.join("; ") };
                vec![format!("{word:<8} {}: {what}", self.title(step))]
            }
            EventKind::Installed { sentence, .. } => vec![sentence.clone()],
            // GPUs that all work are the evidence of their step.
            EventKind::GpusChecked(verdicts) if verdicts.result != Verdict::Pass => {
                vec![format!("GPUs     {}", verdicts.sentence())]
            }
            EventKind::Output { line } => vec![format!("output   {line}")],
            EventKind::Notice { text } => vec![format!("notice   {text}")],
            EventKind::Failed { step, code, message, causes, hint } => {
                let place = step.as_deref().map(|s| format!("{}: ", self.title(s))).unwrap_or_default();
                let mut lines = vec![format!("FAILED   {place}{message} [{code}]")];
                lines.extend(causes.iter().map(|cause| {
                    format!("         because: {}", cause.replace('\n', "\n                  "))
                }));
                lines.extend(hint.iter().map(|hint| format!("         what to do: {hint}")));
                lines
            }
            EventKind::RebootNeeded { why } => vec![format!("reboot   needed: {why}")],
            EventKind::RunFinished { outcome, exit_code, seconds } => {
                vec![format!("{outcome:<8} after {seconds:.1} s (exit code {exit_code})")]
            }
            EventKind::StepStarted { .. }
            | EventKind::ActionChecked { .. }
            | EventKind::Progress(_)
            | EventKind::GpusChecked(_)
            | EventKind::Reported { .. }
            | EventKind::Unknown => Vec::new(),
        }
    }

    fn title(&self, step: &str) -> String {
        let known = self.titles.iter().find(|(id, _)| id == step);
        known.map_or_else(|| step.to_owned(), |(_, title)| title.clone())
    }
}
