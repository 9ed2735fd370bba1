//! Where the time of a run went: its steps on a line of time, and its installations part by part.

use std::fmt::Write as _;

use super::html::{Tone, badge, details, list, section, table, text};
use crate::analyze;
use crate::install::report::{Bottleneck, Report};
use crate::report::status_file::{Status, StepStatus};

/// The steps, each with a bar where and as long as it ran.
pub(super) fn steps(heading: &str, status: &Status) -> String {
    if status.steps.is_empty() {
        return String::new();
    }
    let whole = whole(status);
    let mut out = String::new();
    if let (Some(started), Some(seconds)) = (status.started, status.seconds) {
        let _ = writeln!(
            out,
            "<p class=\"dim\">{}, {}</p>",
            started.strftime("%Y-%m-%d %H:%M:%S UTC"),
            duration(seconds)
        );
    }
    out.push_str("<ol class=\"steps\">\n");
    for (begin, step) in begins(status) {
        out.push_str(&one(step, begin, whole));
    }
    out.push_str("</ol>\n");
    section(heading, &out)
}

/// Seconds that the line of time is long.
fn whole(status: &Status) -> f64 {
    let since = |at: jiff::Timestamp| status.started.map_or(0.0, |t| at.duration_since(t).as_secs_f64());
    let until_now = status.updated.map_or(0.0, since);
    status.seconds.unwrap_or(until_now).max(f64::EPSILON)
}

/// Each step with the second in which it began: as it was noted, or (by a version that did not) after those before it.
fn begins(status: &Status) -> Vec<(f64, &StepStatus)> {
    let mut after = 0.0;
    let mut all = Vec::new();
    for step in &status.steps {
        let noted =
            status.started.zip(step.started).map(|(run, step)| step.duration_since(run).as_secs_f64());
        let begin = noted.unwrap_or(after).max(0.0);
        after = begin + step.seconds.unwrap_or_default();
        all.push((begin, step));
    }
    all
}

fn tone(step: &StepStatus) -> (Tone, &str) {
    match step.state.as_str() {
        "done" if step.changed => (Tone::Good, "done"),
        "done" => (Tone::Neutral, "as wanted"),
        "failed" => (Tone::Bad, "failed"),
        "interrupted" | "running" => (Tone::Attention, &step.state),
        other => (Tone::Neutral, other),
    }
}

fn one(step: &StepStatus, begin: f64, whole: f64) -> String {
    let (tone, word) = tone(step);
    let percent = |seconds: f64| (seconds / whole * 100.0).clamp(0.0, 100.0);
    let mut out = String::from("<li>\n");
    let took = step.seconds.map(duration).unwrap_or_default();
    let _ = writeln!(
        out,
        "<div class=\"step\"><span class=\"name\">{}</span> {} <span class=\"took\">{took}</span></div>",
        text(&step.title),
        badge(tone, word)
    );
    if let Some(seconds) = step.seconds {
        let left = percent(begin).min(99.5);
        // A step of a millisecond is to be seen, too.
        let width = percent(seconds).max(0.5).min(100.0 - left);
        let _ = writeln!(
            out,
            "<div class=\"line\" aria-hidden=\"true\"><div class=\"bar {}\" style=\"margin-left:{left:.2}%;width:{width:.2}%\"></div></div>",
            tone.class()
        );
    }
    let evidence: Vec<String> = step.evidence.iter().map(|line| text(line)).collect();
    if !evidence.is_empty() {
        out.push_str(&details(&format!("what was seen ({})", evidence.len()), &list(&evidence)));
    }
    out + "</li>\n"
}

/// How packages were installed, and what that took.
pub(super) fn installations(status: &Status) -> String {
    let mut rows = Vec::new();
    let mut remarks: Vec<(String, Vec<&str>)> = Vec::new();
    for step in &status.steps {
        for report in &step.installs {
            rows.push(installation(step, report));
            let waited = report
                .bottleneck()
                .map(|b| format!("waited for {}; {}", b.name(), analyze::advice(b, report)));
            let slower =
                Some(format!("no faster way, because {}", report.why)).filter(|_| !report.why.is_empty());
            for remark in waited.into_iter().chain(slower) {
                match remarks.iter_mut().find(|(known, _)| *known == remark) {
                    Some((_, steps)) => steps.push(&step.title),
                    None => remarks.push((remark, vec![&step.title])),
                }
            }
        }
    }
    if rows.is_empty() {
        return String::new();
    }
    let head = ["Step", "Way", "Packages", "Downloads", "Parts", "Time"];
    let remarks: Vec<_> =
        remarks.into_iter().map(|(remark, steps)| text(&format!("{}: {remark}", steps.join(", ")))).collect();
    section("Packages", &(table(&head, &rows) + &legend() + &list(&remarks)))
}

/// The parts of an installation in their order, with the class of the colour.
const PARTS: [(Bottleneck, &str); 5] = [
    (Bottleneck::Plan, "p1"),
    (Bottleneck::Link, "p2"),
    (Bottleneck::Cores, "p3"),
    (Bottleneck::Dpkg, "p4"),
    (Bottleneck::Disk, "p5"),
];

fn installation(step: &StepStatus, report: &Report) -> Vec<String> {
    let whole = report.seconds().max(f64::EPSILON);
    let mut bar = String::from("<div class=\"stack\" aria-hidden=\"true\">");
    let mut words = Vec::new();
    for ((part, class), (_, seconds)) in PARTS.into_iter().zip(report.parts()) {
        let _ = write!(bar, "<div class=\"{class}\" style=\"width:{:.2}%\"></div>", seconds / whole * 100.0);
        words.push(format!("{} {}", part.part(), duration(seconds)));
    }
    let mut downloads = amount(report.download_bytes);
    if let (Some(fetched), Some(seconds)) = (&report.prepared.fetched, report.prepared.verified_seconds)
        && fetched.bytes >= 1_000_000
        && seconds > 0.0
    {
        #[expect(clippy::cast_precision_loss, reason = "shown without any digit behind the point")]
        let rate = fetched.bytes as f64 / 1e6 / seconds;
        let _ = write!(downloads, ", {rate:.0} MB/s");
    }
    vec![
        text(&step.title),
        text(&report.install.to_string()),
        report.packages.to_string(),
        downloads,
        format!("{bar}</div><span class=\"dim small\">{}</span>", words.join(", ")),
        format!("<span class=\"nowrap\">{}</span>", duration(report.seconds())),
    ]
}

fn legend() -> String {
    let mut out = String::from("<p class=\"legend small\" aria-hidden=\"true\">");
    for (part, class) in PARTS {
        let name = part.part();
        let _ = write!(out, "<span class=\"nowrap\"><span class=\"key {class}\"></span> {name}</span> ");
    }
    out + "</p>\n"
}

/// Bytes for people, in powers of 1000 as links are sold.
pub(super) fn amount(bytes: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "shown with one digit behind the point")]
    let number = bytes as f64;
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.0} kB", number / 1e3),
        1_000_000..1_000_000_000 => format!("{:.0} MB", number / 1e6),
        _ => format!("{:.1} GB", number / 1e9),
    }
}

/// A time for people: `42 ms`, `3.1 s`, `4 min 12 s`.
pub(super) fn duration(seconds: f64) -> String {
    let seconds = seconds.max(0.0);
    if seconds < 0.95 {
        format!("{:.0} ms", seconds * 1000.0)
    } else if seconds < 99.95 {
        format!("{seconds:.1} s")
    } else {
        let whole = seconds.round();
        format!("{:.0} min {:.0} s", (whole / 60.0).floor(), whole % 60.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_for_people() {
        for (seconds, words) in [
            (0.0, "0 ms"),
            (0.042, "42 ms"),
            (3.12, "3.1 s"),
            (99.9, "99.9 s"),
            (252.0, "4 min 12 s"),
            (119.7, "2 min 0 s"),
        ] {
            assert_eq!(duration(seconds), words);
        }
    }

    #[test]
    fn amounts_are_for_people() {
        for (bytes, words) in
            [(0, "0 B"), (999, "999 B"), (1_500, "2 kB"), (314_159_265, "314 MB"), (1_637_000_000, "1.6 GB")]
        {
            assert_eq!(amount(bytes), words);
        }
    }

    #[test]
    fn steps_without_a_noted_beginning_follow_each_other() {
        let step = |seconds| StepStatus { seconds: Some(seconds), ..StepStatus::default() };
        let mut status = Status { steps: vec![step(1.0), step(2.0), step(3.0)], ..Status::default() };
        assert_eq!(begins(&status).iter().map(|(at, _)| *at).collect::<Vec<_>>(), [0.0, 1.0, 3.0]);
        let run: jiff::Timestamp = "2026-11-26T10:00:00Z".parse().unwrap();
        status.started = Some(run);
        status.steps[1].started = Some(run + jiff::SignedDuration::from_secs(5));
        assert_eq!(begins(&status).iter().map(|(at, _)| *at).collect::<Vec<_>>(), [0.0, 5.0, 7.0]);
    }
}
