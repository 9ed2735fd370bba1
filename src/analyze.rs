//! `analyze`: where the time of the last run that installed something went, what it waited for, and what would make
//! the next one faster.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::error::{Code, Error, Result, exit};
use crate::host::files::Files;
use crate::host::paths;
use crate::install::report::{Bottleneck, Report};
use crate::report::status_file::{Status, StepStatus};
use crate::report::streams;

/// How the time is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The steps as they followed each other, each installation in detail.
    Run,
    /// The longest step first, each with its longest parts only.
    Blame,
}

/// Prints the analysis.
pub fn show(files: &Files, order: Order, as_json: bool) -> Result<u8> {
    let path = paths::LAST_INSTALLATION;
    let bytes = files.read(path)?.ok_or_else(|| {
        Error::new(Code::NothingToResume, "no run has installed anything here yet")
            .with_hint("run `gpu-bootstrap`, then ask again")
    })?;
    let status: Status = serde_json::from_slice(&bytes)
        .map_err(|e| Error::new(Code::Io, format!("cannot understand {path}")).because(e))?;
    let text = if as_json {
        let document = match order {
            Order::Run => document(&status),
            Order::Blame => blame_document(&status),
        };
        let document = serde_json::to_string_pretty(&document);
        document.map_err(|e| Error::new(Code::Io, "cannot write the analysis as JSON").because(e))? + "\n"
    } else {
        match order {
            Order::Run => text(&status),
            Order::Blame => blame(&status),
        }
    };
    streams::out(&text)?;
    Ok(exit::CONVERGED)
}

fn document(status: &Status) -> Value {
    let install = |report: &Report| {
        let mut value = serde_json::to_value(report).unwrap_or_default();
        let bottleneck = report.bottleneck();
        value["bottleneck"] = bottleneck.map(Bottleneck::name).into();
        value["advice"] = bottleneck.map(|b| advice(b, report)).into();
        value
    };
    let step = |s: &StepStatus| {
        json!({
            "id": s.id,
            "title": s.title,
            "state": s.state,
            "seconds": s.seconds,
            "installs": s.installs.iter().map(install).collect::<Vec<_>>(),
        })
    };
    json!({
        "started": status.started,
        "seconds": status.seconds,
        "outcome": status.outcome,
        "instance_type": status.instance_type,
        "steps": status.steps.iter().map(step).collect::<Vec<_>>(),
    })
}

fn text(status: &Status) -> String {
    let mut out = String::new();
    let began =
        status.started.map_or_else(String::new, |t| format!(" of {}", t.strftime("%Y-%m-%d %H:%M UTC")));
    let on = status.instance_type.as_ref().map_or_else(String::new, |t| format!(" on {t}"));
    let outcome = status.outcome.as_deref().unwrap_or(&status.state);
    let whole = status.seconds.unwrap_or_default();
    let _ = writeln!(out, "run{began}{on}: {outcome} after {whole:.1} s");
    for step in &status.steps {
        let Some(seconds) = step.seconds else { continue };
        let share = if whole > 0.0 { seconds / whole * 100.0 } else { 0.0 };
        let _ = writeln!(out, "{seconds:8.2} s {share:4.0} %  {}", step.title);
        step.installs.iter().for_each(|report| out.push_str(&installation(report)));
    }
    out
}

/// A part that took less of its step than this explains nothing.
const TELLING: f64 = 0.05;

/// The steps that took time, the longest first; of one length, in their order.
fn longest(status: &Status) -> Vec<(f64, &StepStatus)> {
    let mut steps: Vec<_> = status.steps.iter().filter_map(|step| Some((step.seconds?, step))).collect();
    steps.sort_by(|a, b| b.0.total_cmp(&a.0));
    steps
}

/// The parts of a step's installations, added up, the longest first.
fn parts(step: &StepStatus) -> Vec<(f64, &'static str)> {
    let mut sums: Vec<(f64, &str)> = Vec::new();
    for report in &step.installs {
        for (part, seconds) in report.parts() {
            // Plain apt fetches for itself.
            let alone = part == Bottleneck::Dpkg && report.bottleneck().is_none();
            let name = if alone { "apt and dpkg, with apt's own fetching" } else { part.part() };
            match sums.iter_mut().find(|(_, known)| *known == name) {
                Some((sum, _)) => *sum += seconds,
                None => sums.push((seconds, name)),
            }
        }
    }
    sums.retain(|(seconds, _)| *seconds > 0.0);
    sums.sort_by(|a, b| b.0.total_cmp(&a.0));
    sums
}

fn blame(status: &Status) -> String {
    let mut out = String::new();
    for (seconds, step) in longest(status) {
        let _ = writeln!(out, "{seconds:8.2} s  {}", streams::printable(&step.title));
        for (part, name) in parts(step).into_iter().filter(|(part, _)| *part >= seconds * TELLING) {
            let _ = writeln!(out, "            {part:8.2} s  {name}");
        }
    }
    out
}

fn blame_document(status: &Status) -> Value {
    let part = |(seconds, name): (f64, &str)| json!({ "part": name, "seconds": seconds });
    let step = |(seconds, step): (f64, &StepStatus)| {
        json!({
            "id": step.id,
            "title": step.title,
            "seconds": seconds,
            "parts": parts(step).into_iter().map(part).collect::<Vec<_>>(),
        })
    };
    json!({
        "started": status.started,
        "seconds": status.seconds,
        "outcome": status.outcome,
        "steps": longest(status).into_iter().map(step).collect::<Vec<_>>(),
    })
}

/// The lines of one installation.
fn installation(report: &Report) -> String {
    let mut out = format!("              {}\n", report.sentence());
    let mut line = |text: String| {
        let _ = writeln!(out, "                {text}");
    };
    line(format!("{:7.2} s  apt's planning", report.plan_seconds));
    if let (Some(at), Some(fetched)) = (report.prepared.verified_seconds, &report.prepared.fetched) {
        line(format!(
            "{at:7.2} s  until everything was fetched and verified: {}, {} at once, {} requests, {} retries",
            rate(fetched.bytes, at),
            fetched.connections,
            fetched.requests,
            fetched.retries
        ));
    }
    for (bytes, how) in [
        (report.prepared.ahead, "had come while earlier steps were at work"),
        (report.prepared.cached, "lay in a cache"),
    ] {
        if bytes > 0 {
            line(format!("           {} of packages {how}", megabytes(bytes)));
        }
    }
    if let (Some(at), Some(work)) = (report.prepared.ready_seconds, &report.prepared.unpacked) {
        let busy = work.decode_seconds + work.write_seconds;
        #[expect(clippy::cast_precision_loss, reason = "a handful of threads")]
        let share = if at > 0.0 { busy / (at * report.threads as f64) * 100.0 } else { 0.0 };
        line(format!(
            "{at:7.2} s  until everything was unpacked: {}, {:.1} s of decoding and {:.1} s of writing on {} threads ({share:.0} % of them)",
            rate(work.unpacked, at),
            work.decode_seconds,
            work.write_seconds,
            report.threads
        ));
    }
    line(format!("{:7.2} s  until apt and dpkg had ended", report.install_seconds));
    line(format!("{:7.2} s  until it was on the disk", report.install_seconds + report.sync_seconds));
    if let Some(bottleneck) = report.bottleneck() {
        line(format!("waited for {}; {}", bottleneck.name(), advice(bottleneck, report)));
    }
    out
}

#[expect(clippy::cast_precision_loss, reason = "shown with two digits")]
fn rate(bytes: u64, seconds: f64) -> String {
    if seconds > 0.0 {
        format!("{}, {:.0} MB/s", megabytes(bytes), bytes as f64 / 1e6 / seconds)
    } else {
        megabytes(bytes)
    }
}

#[expect(clippy::cast_precision_loss, reason = "shown without any digit behind the point")]
fn megabytes(bytes: u64) -> String {
    format!("{:.0} MB", bytes as f64 / 1e6)
}

/// What would be faster.
pub(crate) fn advice(bottleneck: Bottleneck, report: &Report) -> String {
    match bottleneck {
        Bottleneck::Link => {
            "a mirror in the same region (source.packages), or an instance type with more network \
                             bandwidth, would be faster"
                .into()
        }
        Bottleneck::Cores => {
            let cores = report.threads * 4;
            let unpacking = report.prepared.unpacked.map_or(0.0, |w| w.decode_seconds + w.write_seconds);
            let ready = report.prepared.ready_seconds.unwrap_or_default();
            #[expect(clippy::cast_precision_loss, reason = "a handful of cores")]
            let then = report.seconds() - ready
                + (unpacking / cores as f64).max(report.prepared.verified_seconds.unwrap_or_default());
            format!("with {cores} vCPUs it would take some {then:.0} s instead of {:.0}", report.seconds())
        }
        Bottleneck::Disk => {
            "more throughput of the volume (aws ec2 modify-volume --throughput) would be faster".into()
        }
        Bottleneck::Dpkg => {
            "no instance type is faster at that: installing while an AMI is baked leaves it out of the boot"
                .into()
        }
        Bottleneck::Plan => "fewer package sources on the machine would be faster".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::install::Rung;
    use crate::install::report::{Prepared, Work};

    fn status() -> Status {
        let report = Report {
            install: Rung::Pipeline,
            why: String::new(),
            threads: 2,
            packages: 94,
            download_bytes: 1_637_000_000,
            installed_bytes: 5_608_000_000,
            plan_seconds: 2.0,
            install_seconds: 33.0,
            sync_seconds: 1.0,
            prepared: Prepared {
                fetched: Some(crate::install::fetch::Stats {
                    bytes: 1_200_000_000,
                    connections: 24,
                    requests: 200,
                    ..Default::default()
                }),
                verified_seconds: Some(3.0),
                ready_seconds: Some(31.0),
                unpacked: Some(Work {
                    unpacked: 5_608_000_000,
                    decode_seconds: 50.0,
                    write_seconds: 10.0,
                    ..Work::default()
                }),
                originals: Vec::new(),
                ahead: 412_000_000,
                cached: 25_000_000,
            },
        };
        let step = StepStatus {
            id: "cuda-toolkit".into(),
            title: "CUDA toolkit 12.8".into(),
            state: "done".into(),
            seconds: Some(36.5),
            installs: vec![report],
            ..StepStatus::default()
        };
        Status {
            seconds: Some(73.0),
            outcome: Some("converged".into()),
            steps: vec![step],
            ..Status::default()
        }
    }

    #[test]
    fn the_time_the_rates_and_the_bottleneck_are_shown() {
        let text = text(&status());
        for words in [
            "run: converged after 73.0 s",
            "36.50 s   50 %  CUDA toolkit 12.8",
            "1200 MB, 400 MB/s, 24 at once",
            "412 MB of packages had come while earlier steps were at work",
            "25 MB of packages lay in a cache",
            "97 % of them",
            "waited for the cores; with 8 vCPUs it would take some 12 s instead of 36",
        ] {
            assert!(text.contains(words), "{words:?} is not in\n{text}");
        }
    }

    #[test]
    fn the_document_has_the_same() {
        let document = document(&status());
        let install = &document["steps"][0]["installs"][0];
        assert_eq!(install["install"], "pipeline");
        assert_eq!(install["bottleneck"], "the cores");
        assert_eq!(install["unpacked"]["decode_seconds"], 50.0);
        assert_eq!((&install["ahead"], &install["cached"]), (&412_000_000.into(), &25_000_000.into()));
    }

    /// The step of [`status`] in the middle of others.
    fn several() -> Status {
        let mut status = status();
        let step = |title: &str, seconds| StepStatus {
            id: title.to_lowercase(),
            title: title.into(),
            seconds,
            ..StepStatus::default()
        };
        let plain = Report {
            install: Rung::Apt,
            prepared: Prepared::default(),
            plan_seconds: 0.5,
            install_seconds: 11.0,
            sync_seconds: 0.0,
            ..status.steps[0].installs[0].clone()
        };
        // Two installations of one step.
        let driver = StepStatus { installs: vec![plain.clone(), plain], ..step("Driver", Some(23.5)) };
        status.steps.splice(0..0, [step("Repository", Some(2.0)), driver]);
        status.steps.extend([step("Search paths", Some(0.004)), step("Later", None)]);
        status
    }

    #[test]
    fn the_longest_step_is_blamed_first_and_its_longest_parts_beneath_it() {
        let wanted = [
            "   36.50 s  CUDA toolkit 12.8",
            "               28.00 s  unpacking",
            "                3.00 s  fetching",
            "                2.00 s  planning",
            "                2.00 s  apt and dpkg",
            "   23.50 s  Driver",
            "               22.00 s  apt and dpkg, with apt's own fetching",
            "    2.00 s  Repository",
            "    0.00 s  Search paths",
        ];
        assert_eq!(blame(&several()).lines().collect::<Vec<_>>(), wanted);
    }

    #[test]
    fn the_document_of_the_blame_is_in_the_same_order_and_has_every_part() {
        let document = blame_document(&several());
        let steps = document["steps"].as_array().unwrap();
        let ids: Vec<_> = steps.iter().map(|s| s["id"].as_str().unwrap()).collect();
        assert_eq!(ids, ["cuda-toolkit", "driver", "repository", "search paths"]);
        let parts = steps[1]["parts"].as_array().unwrap();
        assert_eq!(parts.len(), 2);
        assert_eq!((&parts[1]["part"], &parts[1]["seconds"]), (&"planning".into(), &1.0.into()));
    }

    #[test]
    fn without_an_installation_there_is_nothing_to_analyse() {
        let dir = tempfile::tempdir().unwrap();
        let error = show(&Files::new(dir.path().into()), Order::Blame, false).unwrap_err();
        assert_eq!(error.code(), Code::NothingToResume);
    }
}
