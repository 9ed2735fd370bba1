//! `check → apply → check`, step by step, with the receipt written before anything changes and after it did.

use std::time::Instant;

use crate::action::{Action, Applied, Check};
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::install::ahead::Ahead;
use crate::plan::{Plan, Step};
use crate::report::Reports;
use crate::report::event::EventKind;

use super::receipt::Receipt;

/// How a run ended, errors apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The machine is as wanted.
    Converged {
        /// Whether anything had to be changed.
        changed: bool,
    },
    /// The rest has to wait for the next boot.
    RebootNeeded {
        /// Why.
        why: String,
    },
}

/// Makes the plan true. On failure the receipt already says what failed, and the error is returned.
pub async fn converge(plan: &Plan, host: &Host, receipt: &mut Receipt, reports: &Reports) -> Result<Outcome> {
    let mut changed_any = false;
    let _ahead = Ending(host.ahead());
    for (number, step) in plan.steps.iter().enumerate() {
        let later = plan.steps.get(number + 1..).unwrap_or_default();
        reports.emit(EventKind::StepStarted { step: step.id.clone() });
        let began = Instant::now();
        let ended = match run_step(plan, step, later, host, receipt, reports).await {
            Ok(StepOutcome::Done { changed, evidence }) => note_done(step, changed, &evidence, host, receipt)
                .map(|()| StepOutcome::Done { changed, evidence }),
            other => other,
        };
        match ended {
            Ok(StepOutcome::Done { changed, evidence }) => {
                changed_any |= changed;
                let seconds = began.elapsed().as_secs_f64();
                reports.emit(EventKind::StepFinished { step: step.id.clone(), changed, evidence, seconds });
            }
            Ok(StepOutcome::RebootNeeded { why }) => return Ok(Outcome::RebootNeeded { why }),
            Err(error) => {
                let record = receipt.record(&step.id);
                record.digest.clone_from(&step.digest);
                record.state = "failed".into();
                record.finished = Some(host.clock.now());
                record.code = Some(error.code().name().into());
                reports.emit(failed(Some(&step.id), &error));
                return Err(error);
            }
        }
    }
    if changed_any {
        tidy(plan, host);
    }
    Ok(Outcome::Converged { changed: changed_any })
}

/// Ends what is fetched ahead, however the run ends.
struct Ending<'a>(&'a Ahead);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// Removes downloads that no step of the plan can want again.
fn tidy(plan: &Plan, host: &Host) {
    host.ahead().stop();
    let debs = plan.steps.iter().flat_map(|s| &s.actions).filter_map(|a| match a {
        Action::Deb(deb) => Some(&deb.files),
        _ => None,
    });
    let keep: Vec<_> = debs.flatten().map(|file| file.sha256.to_ascii_lowercase()).collect();
    if let Err(error) = host.ahead().tidy(host, &keep) {
        tracing::warn!("the cache could not be tidied: {error}"); // no reason to fail a machine that works
    }
}

/// Tells whoever fetches ahead what the actions after this one will ask for. One that cannot tell says why when its turn
/// comes.
fn look_ahead<'a>(later: impl Iterator<Item = &'a Action>, host: &Host) {
    if !host.install_options().prefetch {
        return;
    }
    let wish = |action: &Action| {
        let wish = action.wish(host);
        wish.inspect_err(|e| tracing::debug!("{} is not fetched ahead: {e}", action.describe())).ok()
    };
    host.ahead().expect(later.filter_map(wish).collect());
}

/// The event for an error.
pub fn failed(step: Option<&str>, error: &Error) -> EventKind {
    EventKind::Failed {
        step: step.map(str::to_owned),
        code: error.code().name().into(),
        message: error.message().into(),
        causes: error.causes(),
        hint: error.hint().map(str::to_owned),
    }
}

enum StepOutcome {
    Done { changed: bool, evidence: Vec<String> },
    RebootNeeded { why: String },
}

async fn run_step(
    plan: &Plan,
    step: &Step,
    later: &[Step],
    host: &Host,
    receipt: &mut Receipt,
    reports: &Reports,
) -> Result<StepOutcome> {
    let mut changed = false;
    let mut evidence = Vec::new();
    for (number, action) in step.actions.iter().enumerate() {
        let before = look(plan, step, action, host, reports).await?;
        if let Check::Satisfied { evidence: seen } = before {
            evidence.push(seen);
            note_ours(action, host)?;
            continue;
        }
        if !changed {
            // The journal is written before the first change of a step, so that a step that needs no work
            // costs no disk write.
            note_running(step, host, receipt)?;
            changed = true;
        }
        tracing::info!("{}: {}: {}", step.id, action.describe(), before.why());
        look_ahead(step.actions.iter().skip(number + 1).chain(later.iter().flat_map(|s| &s.actions)), host);
        note_before(action, host)?;
        if let Applied::RebootNeeded { why } = action.apply(host).await? {
            return Ok(StepOutcome::RebootNeeded { why });
        }
        match look(plan, step, action, host, reports).await? {
            Check::Satisfied { evidence: seen } => {
                note_ours(action, host)?;
                evidence.push(seen);
            }
            Check::Needed { why } | Check::Deferred { why } | Check::Unknown { why } => {
                return Err(Error::new(
                    Code::VerifyFailed,
                    format!("{} was applied, but it is still not as wanted: {why}", action.describe()),
                )
                .with_hint(
                    "something else may be changing it at the same time; run again, then look at that",
                ));
            }
        }
    }
    Ok(StepOutcome::Done { changed, evidence })
}

/// Notes for `uninstall` what this action is about to write or to start. What the administrator's commands make is theirs.
fn note_before(action: &Action, host: &Host) -> Result<()> {
    match action {
        Action::Command(_) => Ok(()),
        Action::Service(service) => host.note_unit(&service.unit),
        Action::PythonEnvironment(environment) => host.note_environment(&environment.path),
        action => action.target().map_or(Ok(()), |path| host.note_before(path)),
    }
}

/// Notes what lies there now that the action is satisfied: after its own work, or after that of a run that was killed.
fn note_ours(action: &Action, host: &Host) -> Result<()> {
    match action {
        Action::Command(_) | Action::PythonEnvironment(_) => Ok(()),
        action => action.target().map_or(Ok(()), |path| host.note_written(path)),
    }
}

/// Checks an action, says what was found, and turns "could not tell" into the step's failure.
async fn look(plan: &Plan, step: &Step, action: &Action, host: &Host, reports: &Reports) -> Result<Check> {
    let check = plan.check(action, host).await?;
    reports.emit(EventKind::ActionChecked {
        step: step.id.clone(),
        action: action.describe(),
        state: check.state().into(),
        why: check.why().into(),
    });
    if let Check::Unknown { why } = &check {
        return Err(Error::new(
            Code::CheckUnknown,
            format!("cannot tell the state of {}: {why}", action.describe()),
        ));
    }
    Ok(check)
}

fn note_running(step: &Step, host: &Host, receipt: &mut Receipt) -> Result<()> {
    let record = receipt.record(&step.id);
    record.digest.clone_from(&step.digest);
    record.state = "running".into();
    record.started = Some(host.clock.now());
    record.finished = None;
    record.code = None;
    receipt.save(&host.files)
}

fn note_done(
    step: &Step,
    changed: bool,
    evidence: &[String],
    host: &Host,
    receipt: &mut Receipt,
) -> Result<()> {
    let now = host.clock.now();
    let record = receipt.record(&step.id);
    record.digest.clone_from(&step.digest);
    record.state = "done".into();
    record.code = None;
    record.evidence = evidence.to_vec();
    if changed || record.finished.is_none() {
        record.finished = Some(now);
    }
    // Without a change the receipt is written once, at the end of the run.
    if changed { receipt.save(&host.files) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::action::{file::File, link::Link};
    use crate::engine::receipt::{Found, load};
    use crate::plan::step::Scope;

    fn plan(actions: Vec<Action>) -> Plan {
        let digest = crate::plan::digest::step("s", &actions);
        let step =
            Step { id: "s".into(), title: "S".into(), scope: Scope::Image, origin: None, actions, digest };
        Plan { digest: crate::plan::digest::plan(std::slice::from_ref(&step)), steps: vec![step] }
    }

    fn file(content: &str) -> Action {
        Action::File(File { path: "/etc/x".into(), content: content.into(), mode: 0o644 })
    }

    #[tokio::test]
    async fn the_second_run_changes_nothing_and_damage_is_healed() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path().to_path_buf());
        let (plan, reports) = (plan(vec![file("a")]), Reports::default());
        let mut receipt = Receipt::new("i-1");
        let run = async |receipt: &mut Receipt| converge(&plan, &host, receipt, &reports).await.unwrap();
        assert_eq!(run(&mut receipt).await, Outcome::Converged { changed: true });
        assert_eq!(run(&mut receipt).await, Outcome::Converged { changed: false });
        host.files.write("/etc/x", b"damaged", 0o644).unwrap();
        assert_eq!(run(&mut receipt).await, Outcome::Converged { changed: true });
        assert_eq!(host.files.read("/etc/x").unwrap().unwrap(), b"a");
    }

    /// Puts a directory in the receipt's place once the action has been applied, and keeps what was said.
    struct Saboteur(std::path::PathBuf, std::sync::Arc<std::sync::Mutex<Vec<String>>>);

    impl crate::report::Listener for Saboteur {
        fn hear(&mut self, event: &crate::report::event::Event) {
            match &event.kind {
                EventKind::ActionChecked { state, .. } if state == "satisfied" => {
                    std::fs::remove_file(&self.0).unwrap();
                    std::fs::create_dir(&self.0).unwrap();
                }
                EventKind::Failed { message, .. } => self.1.lock().unwrap().push(message.clone()),
                _ => {}
            }
        }
    }

    #[tokio::test]
    async fn a_receipt_that_cannot_be_written_after_the_work_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path().to_path_buf());
        let said = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        let receipt = host.files.outside(crate::host::paths::RECEIPT).unwrap();
        let reports = Reports::new(vec![Box::new(Saboteur(receipt, said.clone()))]);
        let plan = plan(vec![file("a")]);
        converge(&plan, &host, &mut Receipt::new("i-1"), &reports).await.unwrap_err();
        let said = said.lock().unwrap();
        assert!(said.len() == 1 && said[0].contains("receipt.json"), "{said:?}");
    }

    #[tokio::test]
    async fn the_receipt_says_running_before_anything_changes() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path().to_path_buf());
        host.files.write("/l", b"somebody's file", 0o644).unwrap();
        let plan = plan(vec![file("a"), Action::Link(Link { path: "/l".into(), target: "/etc/x".into() })]);
        let mut receipt = Receipt::new("i-1");
        let error = converge(&plan, &host, &mut receipt, &Reports::default()).await.unwrap_err();
        assert!(error.message().contains("/l is not a link"));
        let Found::Ours(on_disk) = load(&host.files, "i-1").unwrap() else { panic!("no receipt") };
        assert_eq!(on_disk.steps[0].state, "running");
        assert_eq!(receipt.steps[0].state, "failed");
        assert_eq!(host.files.read("/l").unwrap().unwrap(), b"somebody's file");
    }
}
