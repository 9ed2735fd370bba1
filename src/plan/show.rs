//! The plan with the check's answer and reason for every action: for people and as JSON.

use std::fmt::Write as _;

use serde::Serialize;

use super::Plan;
use super::step::Scope;
use crate::host::Host;

/// A plan and what the machine says to it.
#[derive(Debug, Serialize)]
pub struct Shown {
    /// SHA-256 of the plan.
    pub plan_digest: String,
    /// Where the configuration came from, strongest last; none for defaults alone.
    pub config: Vec<String>,
    /// One sentence per choice.
    pub choices: Vec<String>,
    /// The steps.
    pub steps: Vec<ShownStep>,
}

/// One step.
#[derive(Debug, Serialize)]
pub struct ShownStep {
    /// Stable id.
    pub id: String,
    /// For people.
    pub title: String,
    /// How often it belongs to run.
    pub scope: Scope,
    /// The administrator's file that it stands in; absent for a built-in step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// SHA-256 of its filled-in form.
    pub digest: String,
    /// The actions.
    pub actions: Vec<ShownAction>,
}

/// One action and its check.
#[derive(Debug, Serialize)]
pub struct ShownAction {
    /// The wanted state in a few words.
    pub action: String,
    /// `satisfied`, `needed`, `unknown` or `error`.
    pub state: String,
    /// Evidence, reason, or the error's sentence.
    pub why: String,
}

/// Checks every action and changes nothing. A check that fails is shown as such: a plan is never refused for it.
pub async fn look(plan: &Plan, choices: &[String], config: &[String], host: &Host) -> Shown {
    let mut steps = Vec::new();
    for step in &plan.steps {
        let mut actions = Vec::new();
        for action in &step.actions {
            let (state, why) = match plan.check(action, host).await {
                Ok(check) => (check.state(), check.why().to_owned()),
                Err(e) => ("error", format!("{} [{}]", e.message(), e.code())),
            };
            actions.push(ShownAction { action: action.describe(), state: state.into(), why });
        }
        steps.push(ShownStep {
            id: step.id.clone(),
            title: step.title.clone(),
            scope: step.scope,
            origin: step.origin.clone(),
            digest: step.digest.clone(),
            actions,
        });
    }
    Shown { plan_digest: plan.digest.clone(), config: config.to_vec(), choices: choices.to_vec(), steps }
}

impl Shown {
    /// For people: a line per choice, step and action.
    pub fn text(&self) -> String {
        let mut out = String::new();
        if !self.config.is_empty() {
            let _ = writeln!(out, "config     {}", self.config.join(", ")); // writing to a String cannot fail
        }
        for choice in &self.choices {
            let _ = writeln!(out, "chosen     {choice}");
        }
        for step in &self.steps {
            let origin = step.origin.as_ref().map(|path| format!(", {path}")).unwrap_or_default();
            let _ = writeln!(out, "{} ({}, {}{origin})", step.title, step.id, step.scope.name());
            for action in &step.actions {
                let _ = writeln!(out, "  {:<9}  {}: {}", action.state, action.action, action.why);
            }
        }
        let todo = self.steps.iter().flat_map(|s| &s.actions).filter(|a| a.state != "satisfied").count();
        let all = self.steps.iter().map(|s| s.actions.len()).sum::<usize>();
        let _ = writeln!(out, "{} of {all} actions are satisfied; plan {:.12}", all - todo, self.plan_digest);
        out
    }
}
