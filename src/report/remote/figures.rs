//! Events → figures: what a run and each of its steps came to, as numbers with names, units and dimensions.

use std::collections::HashMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Settings;
use crate::device_query::checks::Verdict;
use crate::report::event::{Event, EventKind};

/// One figure. Every combination of dimensions is billed as a metric, so there are few, with few values.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Figure {
    pub(super) name: String,
    pub(super) unit: String,
    pub(super) value: f64,
    pub(super) dimensions: Vec<(String, String)>,
    pub(super) at: Timestamp,
}

/// What a step came to.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct StepFigure {
    pub(super) step: String,
    /// `changed`, `unchanged` or `failed`.
    pub(super) outcome: &'static str,
    pub(super) seconds: f64,
    pub(super) at: Timestamp,
}

/// How many GPUs there are, must be, and pass.
struct Gpus {
    found: u32,
    expected: Option<u32>,
    healthy: usize,
}

/// Adds up what events say.
#[derive(Default)]
pub(super) struct Sums {
    began: HashMap<String, Timestamp>,
    downloaded: u64,
    retries: u64,
    gpus: Option<Gpus>,
}

impl Sums {
    /// Takes note of an event; the step's figure where it ends one.
    pub(super) fn hear(&mut self, event: &Event) -> Option<StepFigure> {
        match &event.kind {
            EventKind::StepStarted { step } => {
                self.began.insert(step.clone(), event.at);
                None
            }
            EventKind::Installed { report, .. } => {
                self.downloaded += report.download_bytes;
                self.retries += report.prepared.fetched.as_ref().map_or(0, |f| f.retries);
                None
            }
            EventKind::GpusChecked(verdicts) => {
                let healthy = verdicts.gpus.iter().filter(|gpu| gpu.verdict == Verdict::Pass).count();
                self.gpus = Some(Gpus { found: verdicts.found, expected: verdicts.expected, healthy });
                None
            }
            EventKind::StepFinished { step, changed, seconds, .. } => Some(StepFigure {
                step: step.clone(),
                outcome: if *changed { "changed" } else { "unchanged" },
                seconds: *seconds,
                at: event.at,
            }),
            EventKind::Failed { step: Some(step), .. } => Some(StepFigure {
                step: step.clone(),
                outcome: "failed",
                seconds: self.began.get(step).map_or(0.0, |at| event.at.duration_since(*at).as_secs_f64()),
                at: event.at,
            }),
            _ => None,
        }
    }

    /// What the run came to.
    #[expect(clippy::cast_precision_loss, reason = "CloudWatch's values are floating-point numbers")]
    pub(super) fn of_run(
        &self,
        settings: &Settings,
        outcome: &str,
        seconds: f64,
        at: Timestamp,
    ) -> Vec<Figure> {
        let mut values = vec![
            ("Outcome", "Count", 1.0),
            ("Seconds", "Seconds", seconds),
            ("DownloadedBytes", "Bytes", self.downloaded as f64),
            ("Retries", "Count", self.retries as f64),
        ];
        if let Some(gpus) = &self.gpus {
            values.push(("GpusFound", "Count", gpus.found.into()));
            values.push(("GpusHealthy", "Count", gpus.healthy as f64));
            values.extend(gpus.expected.map(|n| ("GpusExpected", "Count", n.into())));
        }
        let sets = dimension_sets(settings, &[("Outcome", outcome)]);
        let figures = values.into_iter().flat_map(|(name, unit, value)| {
            sets.iter().map(move |dimensions| Figure {
                name: name.into(),
                unit: unit.into(),
                value,
                dimensions: dimensions.clone(),
                at,
            })
        });
        figures.collect()
    }
}

impl StepFigure {
    /// As metrics of their own, where they do not travel inside of log events.
    pub(super) fn figures(&self, settings: &Settings) -> Vec<Figure> {
        let sets = dimension_sets(settings, &[("Step", &self.step), ("Outcome", self.outcome)]);
        let figure = |dimensions| Figure {
            name: "StepSeconds".into(),
            unit: "Seconds".into(),
            value: self.seconds,
            dimensions,
            at: self.at,
        };
        sets.into_iter().map(figure).collect()
    }
}

/// By instance type, and where it is asked for by instance.
fn dimension_sets(settings: &Settings, others: &[(&str, &str)]) -> Vec<Vec<(String, String)>> {
    let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
    let by = |first: (&str, &str)| std::iter::once(first).chain(others.iter().copied()).map(owned).collect();
    let mut sets = vec![by(("InstanceType", settings.instance_type()))];
    if settings.report.cloudwatch.instance_dimension {
        sets.push(by(("InstanceId", &settings.instance_id)));
    }
    sets
}
