//! How a run went, as one JSON object for those who want the whole of it: topics, buses, webhooks.

use serde_json::{Value, json};

use super::Settings;
use super::figures::StepFigure;
use crate::report::event::{Event, EventKind};

/// What is known so far.
#[derive(Default)]
pub(super) struct Story {
    steps: Vec<Value>,
    error: Value,
    end: Option<(u8, f64)>,
}

impl Story {
    pub(super) fn hear(&mut self, event: &Event, step: Option<&StepFigure>) {
        if let Some(step) = step {
            self.steps.push(json!({ "id": step.step, "outcome": step.outcome, "seconds": step.seconds }));
        }
        match &event.kind {
            EventKind::Failed { step, code, message, hint, .. } => {
                self.error = json!({ "step": step, "code": code, "message": message, "hint": hint });
            }
            EventKind::RunFinished { exit_code, seconds, .. } => self.end = Some((*exit_code, *seconds)),
            _ => {}
        }
    }

    pub(super) fn json(&self, settings: &Settings, state: &str) -> Value {
        json!({
            "source": "gpu-bootstrap",
            "version": env!("CARGO_PKG_VERSION"),
            "instance_id": settings.instance_id,
            "instance_type": settings.instance_type,
            "region": settings.region,
            "run": settings.run,
            "outcome": state,
            "exit_code": self.end.map(|(code, _)| code),
            "seconds": self.end.map(|(_, seconds)| seconds),
            "error": self.error,
            "steps": self.steps,
        })
    }
}
