//! The page's sections besides the runs: verdict, error, GPUs, changes, facts.

use std::fmt::Write as _;

use super::Content;
use super::html::{Tone, badge, details, list, section, table, text};
use super::runs::duration;
use crate::device_query::Examination;
use crate::device_query::checks::{Check, Verdict};
use crate::device_query::verdicts::{Finding, GpuVerdict, Verdicts};
use crate::error::Error;
use crate::facts::show;
use crate::host::paths;
use crate::report::status_file::Status;

/// What the run came to, for people.
fn outcome(status: &Status) -> (Tone, String) {
    let word = status.outcome.as_deref().unwrap_or(&status.state);
    let (tone, words) = match word {
        "converged" => (Tone::Good, "The machine is as wanted"),
        "skipped" => (Tone::Good, "There was nothing to do"),
        "failed" => (Tone::Bad, "The run failed"),
        "reboot-needed" => (Tone::Attention, "A reboot is needed"),
        "interrupted" => (Tone::Attention, "The run was interrupted"),
        "killed" => (Tone::Bad, "The run was killed"),
        "running" => (Tone::Attention, "The run goes on"),
        other => (Tone::Neutral, other),
    };
    (tone, words.to_owned())
}

/// The document's title.
pub(super) fn title(status: &Status) -> String {
    format!("{}: {} (gpu-bootstrap)", status.instance_id, outcome(status).1)
}

/// The verdict, first and large.
pub(super) fn verdict(content: &Content) -> String {
    let status = &content.status;
    let (tone, words) = outcome(status);
    let mut about: Vec<String> = Vec::new();
    let instance = if status.instance_id.is_empty() { "this machine" } else { &status.instance_id };
    about.push(text(instance));
    about.extend(status.instance_type.as_deref().map(text));
    about.extend(status.started.map(|t| t.strftime("%Y-%m-%d %H:%M UTC").to_string()));
    about.extend(status.seconds.map(|s| format!("took {}", duration(s))));
    about.extend(status.exit_code.map(|code| format!("exit code {code}")));
    let mut out = format!(
        "<header class=\"verdict {}\">\n<p class=\"mark\" aria-hidden=\"true\">{}</p>\n<div>\n<h1>{}</h1>\n<p>{}</p>\n",
        tone.class(),
        tone.sign(),
        text(&words),
        about.join(" · ")
    );
    if let Some(why) = &status.reboot {
        let _ = writeln!(out, "<p>{}</p>", text(why));
    }
    if let Some(proof) = status.steps.last().filter(|_| tone == Tone::Good).and_then(|s| s.evidence.last()) {
        let _ = writeln!(out, "<p>{}</p>", text(proof));
    }
    out + "</div>\n</header>\n"
}

/// What went wrong, and what to do.
pub(super) fn error(status: &Status) -> String {
    let Some(error) = &status.error else { return String::new() };
    let mut out =
        format!("<p class=\"message\">{} <code>{}</code></p>\n", text(&error.message), text(&error.code));
    if let Some(hint) = &error.hint {
        let _ = writeln!(out, "<p class=\"hint\"><strong>What to do:</strong> {}</p>", text(hint));
    }
    let step =
        error.step.as_ref().map(|id| status.steps.iter().find(|s| s.id == *id).map_or(id, |s| &s.title));
    if let Some(step) = step {
        let _ = writeln!(out, "<p class=\"dim\">in the step “{}”</p>", text(step));
    }
    for cause in &error.causes {
        let _ = writeln!(out, "<pre>{}</pre>", text(cause));
    }
    section("What went wrong", &out)
}

/// What the run saw, and how they were when the page was made.
pub(super) fn gpus(content: &Content) -> String {
    let shown = match &content.gpus {
        Ok(Some(examination)) => examined(examination),
        Ok(None) => "<p>There is no NVIDIA GPU on this machine.</p>\n".into(),
        Err(error) => unreadable("The GPUs could not be looked at", error),
    };
    let when = format!(
        "<p class=\"dim\">as they were when this page was made, {}; nothing was computed</p>\n",
        content.now.strftime("%Y-%m-%d %H:%M UTC")
    );
    section("GPUs", &(of_the_run(content) + &when + &shown))
}

/// What the run itself found, by computing: the looking below would call such a GPU well. In full only where that looking
/// does not say the same.
fn of_the_run(content: &Content) -> String {
    let mut out = found_by_the_run(&content.status);
    if let Some(verdicts) = &content.status.gpus {
        let _ = writeln!(out, "<p>When the run asked: {}.</p>", text(&verdicts.sentence()));
        let now = content.gpus.as_ref().ok().and_then(Option::as_ref).map(Examination::verdicts);
        if !now.is_some_and(|now| now.found == verdicts.found && now.failed() == verdicts.failed()) {
            out += &seen_by_the_run(verdicts);
        }
    }
    out
}

fn seen_by_the_run(verdicts: &Verdicts) -> String {
    let dash = || "–".to_owned();
    let row = |gpu: &GpuVerdict| {
        let findings: Vec<String> = gpu.findings.iter().map(finding).collect();
        vec![
            format!("GPU {}", gpu.index),
            gpu.name.as_deref().map_or_else(dash, text),
            badge(tone(gpu.verdict), gpu.verdict.name()),
            if findings.is_empty() { dash() } else { list(&findings) },
            gpu.pci.as_ref().map_or_else(dash, |pci| format!("<code>{}</code>", text(pci))),
        ]
    };
    let rows: Vec<_> = verdicts.gpus.iter().map(row).collect();
    let head = ["", "Model", "Verdict", "What did not pass", "PCI address"];
    let mut out = String::from("<h3>As the run saw them</h3>\n");
    if !rows.is_empty() {
        out += &table(&head, &rows);
    }
    let is_open = |f: &&Finding| f.verdict == Verdict::CouldNotTell;
    let (open, found): (Vec<&Finding>, Vec<_>) = verdicts.machine.iter().partition(is_open);
    let lines = |findings: Vec<&Finding>| list(&findings.into_iter().map(finding).collect::<Vec<_>>());
    out += &lines(found);
    if !open.is_empty() {
        out += &details("what could not be told of the machine", &lines(open));
    }
    out
}

fn finding(finding: &Finding) -> String {
    format!(
        "{} <code>{}</code> {}",
        badge(tone(finding.verdict), finding.verdict.name()),
        text(&finding.check),
        text(&finding.evidence)
    )
}

fn found_by_the_run(status: &Status) -> String {
    let last = status.steps.last().map(|step| &step.id);
    let found = status.error.as_ref().filter(|error| error.step.is_some() && error.step.as_ref() == last);
    found.map_or_else(String::new, |error| {
        format!("<p class=\"hint\"><strong>Found by the run:</strong> {}</p>\n", text(&error.message))
    })
}

fn examined(e: &Examination) -> String {
    let mut rows = Vec::new();
    for (number, gpu) in e.facts.gpus.iter().enumerate() {
        let address = &gpu.value.address;
        let nvml = e.gpus.iter().find(|g| is_at(g.pci.as_deref(), address));
        let cuda = e.devices.iter().find(|d| is_at(d.pci.as_deref(), address));
        let model = nvml.and_then(|g| g.name.clone()).or_else(|| cuda.and_then(|d| d.name.clone()));
        let answers = match (nvml.filter(|g| g.error.is_none()), cuda.filter(|d| d.error.is_none())) {
            (Some(_), Some(_)) => badge(Tone::Good, "answers"),
            (Some(_), None) => badge(Tone::Bad, "CUDA does not see it"),
            (None, Some(_)) => badge(Tone::Attention, "NVML does not see it"),
            (None, None) => badge(Tone::Bad, "does not answer"),
        };
        let memory = cuda.and_then(|d| d.total_memory).map(|bytes| format!("{} GiB", bytes >> 30));
        let temperature = nvml.and_then(|g| g.number("temperature")).map(|t| format!("{t} °C"));
        let unknown = || format!("PCI device {:04x}:{:04x}", gpu.value.vendor, gpu.value.device);
        rows.push(vec![
            format!("GPU {number}"),
            text(&model.unwrap_or_else(unknown)),
            answers,
            memory.unwrap_or_else(|| "–".into()),
            temperature.unwrap_or_else(|| "–".into()),
            format!("<code>{}</code>", text(address)),
        ]);
    }
    let mut out = table(&["", "Model", "State", "Memory", "Temperature", "PCI address"], &rows);
    let of = |wanted: &[Verdict]| -> Vec<&Check> {
        // What was not asked for is no finding.
        let is_asked = |c: &&Check| !(c.check.starts_with("compute-") && c.verdict == Verdict::CouldNotTell);
        e.checks.iter().filter(|c| wanted.contains(&c.verdict)).filter(is_asked).collect()
    };
    let findings = of(&[Verdict::Fail, Verdict::Warn]);
    if !findings.is_empty() {
        out += &checks(&findings);
    }
    for (verdict, words) in [(Verdict::Pass, "passed"), (Verdict::CouldNotTell, "could not tell")] {
        let these = of(&[verdict]);
        if !these.is_empty() {
            let noun = if these.len() == 1 { "check" } else { "checks" };
            out += &details(&format!("{} {noun} {words}", these.len()), &checks(&these));
        }
    }
    out
}

/// NVML writes a PCI address with eight digits of the domain and in capitals.
fn is_at(pci: Option<&str>, address: &str) -> bool {
    let short = |a: &str| a.to_ascii_lowercase().trim_start_matches('0').to_owned();
    pci.is_some_and(|pci| short(pci) == short(address))
}

fn tone(verdict: Verdict) -> Tone {
    match verdict {
        Verdict::Pass => Tone::Good,
        Verdict::Warn => Tone::Attention,
        Verdict::Fail => Tone::Bad,
        Verdict::CouldNotTell => Tone::Neutral,
    }
}

fn checks(checks: &[&Check]) -> String {
    let row = |check: &&Check| {
        vec![
            format!("<code>{}</code>", text(&check.check)),
            badge(tone(check.verdict), check.verdict.name()),
            text(&check.evidence),
            text(&check.advice),
        ]
    };
    table(&["Check", "Verdict", "What was seen", "What to do"], &checks.iter().map(row).collect::<Vec<_>>())
}

/// What the run did to the machine, and why this was chosen.
pub(super) fn changes(status: &Status) -> String {
    let mut out = String::new();
    for step in status.steps.iter().filter(|s| s.changed) {
        let evidence: Vec<String> = step.evidence.iter().map(|line| text(line)).collect();
        let _ = write!(out, "<h3>{}</h3>\n{}", text(&step.title), list(&evidence));
    }
    if out.is_empty() && status.outcome.as_deref() == Some("converged") {
        out.push_str("<p>Nothing: everything was as wanted already.</p>\n");
    }
    let choices: Vec<String> = status.choices.iter().map(|line| text(line)).collect();
    if !choices.is_empty() {
        out += &details("what was chosen, and why", &list(&choices));
    }
    section("What changed on this machine", &out)
}

/// Things to know that are no failure, and what became of the reports.
pub(super) fn notices(status: &Status) -> String {
    let lines: Vec<String> = status.notices.iter().chain(&status.reports).map(|line| text(line)).collect();
    section("Notices", &list(&lines))
}

/// Every fact with its source.
pub(super) fn facts(content: &Content) -> String {
    let facts = match &content.facts {
        Ok(facts) => facts,
        Err(error) => return section("Facts", &unreadable("The machine could not be looked at", error)),
    };
    let row = |row: show::Row| {
        vec![text(row.fact), text(&row.value), format!("<span class=\"dim\">{}</span>", text(&row.source))]
    };
    let rows: Vec<_> = show::rows(facts).into_iter().map(row).collect();
    let doubts: Vec<String> = facts.gpu.disagreements.iter().map(|line| text(line)).collect();
    section("Facts", &(list(&doubts) + &table(&["Fact", "Value", "Source"], &rows)))
}

fn unreadable(what: &str, error: &Error) -> String {
    format!("<p>{what}: {} <code>{}</code></p>\n", text(error.message()), text(&error.code().to_string()))
}

/// Who made the page, and where the same stands for programs.
pub(super) fn footer(content: &Content) -> String {
    let status = &content.status;
    let by = if status.agent_version.is_empty() { "?" } else { &status.agent_version };
    format!(
        "<footer>\n<p>Made by gpu-bootstrap {} on {}; the run was of version {}, plan <code>{:.12}</code>, boot <code>{}</code>. \
         For programs: <code>gpu-bootstrap status --json</code>, <code>{}</code>.</p>\n</footer>\n",
        env!("CARGO_PKG_VERSION"),
        content.now.strftime("%Y-%m-%d %H:%M:%S UTC"),
        text(by),
        text(&status.plan_digest),
        text(&status.boot_id),
        paths::LAST_RESULT
    )
}
