//! What is chosen for one machine, and everything that is not: text for people, and a document.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::SCHEMA;
use crate::catalog::choose::explain::{self, Candidate, Candidates};
use crate::catalog::choose::{Deb, Driver, Source, Unverified, unverified_words};
use crate::catalog::{Catalog, Choice, Stack};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::facts::Facts;

/// An answer about one machine on one distribution.
pub(super) struct Answer {
    title: String,
    instance_type: Option<String>,
    system: String,
    arch: &'static str,
    source: String,
    gpus: Vec<Value>,
    pub choice: Result<Choice>,
    pub unverified: Vec<Unverified>,
    candidates: Candidates,
}

impl Answer {
    pub(super) fn new(catalog: &Catalog, facts: &Facts, config: &Config, title: String) -> Self {
        let short = Self::short(catalog, facts, config, title);
        let stack = match &short.choice {
            Ok(Choice::Install(stack)) => Some(&**stack),
            _ => None,
        };
        let candidates = explain::candidates(catalog, facts, config, stack);
        Self { candidates, ..short }
    }

    /// Without what was not chosen.
    pub(super) fn short(catalog: &Catalog, facts: &Facts, config: &Config, title: String) -> Self {
        let (choice, unverified) = explain::judge(catalog, facts, config);
        let gpu = |device: u16, address: &str| {
            json!({
                "address": address,
                "pci_id": format!("10de:{device:04x}"),
                "name": catalog.gpu_name(device),
                "architecture": catalog.architecture(device).ok(),
                "compute_capability": catalog.compute_capability(device).map(ToString::to_string),
            })
        };
        Self {
            title,
            instance_type: facts.identity.instance_type().map(Into::into),
            system: facts.os.distro(),
            arch: facts.os.arch.value.debian_name(),
            source: config.source.packages.clone(),
            gpus: facts.gpu.gpus.iter().map(|g| gpu(g.value.device, &g.value.address)).collect(),
            choice,
            unverified,
            candidates: Candidates::default(),
        }
    }

    pub(super) fn arch(&self) -> &'static str {
        self.arch
    }

    fn stack(&self) -> Option<&Stack> {
        match &self.choice {
            Ok(Choice::Install(stack)) => Some(stack),
            _ => None,
        }
    }

    /// Machine, stack and refusal, as every document has them.
    pub(super) fn row(&self) -> Value {
        json!({
            "machine": {
                "instance_type": self.instance_type,
                "os": self.system,
                "arch": self.arch,
                "gpus": self.gpus,
            },
            "source": self.source,
            "stack": self.stack().map(stack),
            "refusal": self.choice.as_ref().err().map(refusal),
            "reasons": self.reasons(),
            "unverified": self.unverified,
        })
    }

    pub(super) fn document(&self) -> Value {
        let mut document = self.row();
        document["schema"] = SCHEMA.into();
        document["kind"] = "stack".into();
        document["program"] = concat!("gpu-bootstrap ", env!("CARGO_PKG_VERSION")).into();
        document["candidates"] = serde_json::to_value(&self.candidates).unwrap_or_default();
        document
    }

    fn reasons(&self) -> Vec<&str> {
        match &self.choice {
            Ok(Choice::Install(stack)) => stack.reasons.iter().map(String::as_str).collect(),
            Ok(Choice::Nothing { why }) => vec![why],
            Err(_) => Vec::new(),
        }
    }

    pub(super) fn text(&self) -> String {
        let mut out = format!("{} on {} ({})\n", self.title, self.system, self.arch);
        let mut line = |name: &str, value: &str| {
            let _ = writeln!(out, "  {name:<15} {value}"); // writing to a String cannot fail
        };
        match &self.choice {
            Ok(Choice::Install(stack)) => stack_lines(stack, &mut line),
            Ok(Choice::Nothing { why }) => line("nothing to do", why),
            Err(error) => {
                line("refused", &format!("{} [{}]", error.message(), error.code()));
                line("what to do", error.hint().unwrap_or_default());
            }
        }
        if !self.reasons().is_empty() {
            out.push_str("\nWhy\n");
        }
        for reason in self.reasons() {
            let _ = writeln!(out, "  {reason}");
        }
        if let (None, Some(words)) = (self.stack(), unverified_words(&self.unverified)) {
            let _ = writeln!(out, "\nThe refusal rests on what no source confirms: {words}.");
        }
        for (title, rows) in [
            ("Driver branches", &self.candidates.drivers),
            ("CUDA toolkits", &self.candidates.toolkits),
            ("cuDNN", &self.candidates.cudnn),
        ] {
            candidate_lines(title, rows, &mut out);
        }
        out
    }

    /// One line, for tables.
    pub(super) fn line(&self) -> String {
        let mut line = match &self.choice {
            Ok(Choice::Install(stack)) => summary(stack),
            Ok(Choice::Nothing { why }) => format!("nothing to do: {why}"),
            Err(error) => {
                format!("{}: {}; {}", error.code(), error.message(), error.hint().unwrap_or_default())
            }
        };
        line.push_str(&marks(&self.unverified));
        line
    }
}

/// ` [unverified: repository.branches]`, or nothing.
fn marks(unverified: &[Unverified]) -> String {
    let mut keys: Vec<_> = unverified.iter().map(|u| u.key.as_str()).collect();
    keys.dedup();
    if keys.is_empty() { String::new() } else { format!(" [unverified: {}]", keys.join(", ")) }
}

fn candidate_lines(title: &str, rows: &[Candidate], out: &mut String) {
    if rows.is_empty() {
        return;
    }
    let _ = writeln!(out, "\n{title}");
    let width = rows.iter().map(|row| row.name.len()).max().unwrap_or_default();
    for row in rows {
        let line =
            format!("  {:<width$}  {:<8}  {}{}", row.name, row.state.name(), row.why, marks(&row.unverified));
        let _ = writeln!(out, "{}", line.trim_end());
    }
}

fn flavour(driver: &Driver) -> &'static str {
    if driver.open { "open" } else { "proprietary" }
}

fn stack_lines(stack: &Stack, line: &mut impl FnMut(&str, &str)) {
    line(
        "packages from",
        &match &stack.source {
            Source::Nvidia(repository) => repository.url.clone(),
            Source::Distro { components } if components.is_empty() => "the distribution".to_owned(),
            Source::Distro { components } => format!("the distribution ({})", components.join(", ")),
        },
    );
    match &stack.driver {
        Some(driver) => {
            let modules = if driver.prebuilt { "prebuilt and signed" } else { "built on the machine (DKMS)" };
            line("driver", &format!("{}, {} kernel modules, {modules}", driver.branch, flavour(driver)));
        }
        None => line("driver", "none"),
    }
    let toolkits: Vec<_> = stack.toolkits.iter().map(|t| t.version.as_str()).collect();
    line("CUDA toolkit", if toolkits.is_empty() { "none".into() } else { toolkits.join(", ") }.as_str());
    line(
        "cuDNN",
        &match &stack.cudnn {
            Some(cudnn) if cudnn.version == "auto" => "the newest there".to_owned(),
            Some(cudnn) => cudnn.version.clone(),
            None if stack.cudnn_debs.is_empty() => "none".to_owned(),
            None => "the configured package files".to_owned(),
        },
    );
    line("fabric manager", if stack.fabric_manager.is_some() { "yes" } else { "none" });
    line("expected GPUs", &stack.expect_gpus.map_or("what the PCI bus shows".into(), |n| n.to_string()));
    line("packages", &packages(stack).join(" "));
}

/// Every package that apt is asked for.
fn packages(stack: &Stack) -> Vec<&str> {
    let driver = stack.driver.iter().flat_map(|d| d.kernel_packages.iter().chain(&d.packages));
    let toolkits = stack.toolkits.iter().flat_map(|t| &t.packages);
    let cudnn = stack.cudnn.iter().flat_map(|c| &c.packages);
    let fabric = stack.fabric_manager.iter().flatten();
    driver.chain(fabric).chain(toolkits).chain(cudnn).map(String::as_str).collect()
}

/// A stack in one line.
fn summary(stack: &Stack) -> String {
    let mut parts = Vec::new();
    if let Some(d) = &stack.driver {
        let pin = d.pin.as_ref().map_or(String::new(), |p| format!(", pinned to {}", p.version));
        parts.push(format!("{} {} ({}{pin})", d.branch, flavour(d), d.packages.join(" ")));
        if !d.kernel_packages.is_empty() {
            parts.push(d.kernel_packages.join(" "));
        }
    }
    parts.extend(stack.fabric_manager.iter().map(|p| p.join(" ")));
    parts.extend(stack.toolkits.iter().map(|t| format!("CUDA {} ({})", t.version, t.packages.join(" "))));
    parts.extend(stack.cudnn.iter().map(|c| c.packages.join(" ")));
    parts.push(stack.expect_gpus.map_or("GPUs unknown".into(), |n| format!("GPUs {n}")));
    parts.join("; ")
}

fn stack(stack: &Stack) -> Value {
    let driver = stack.driver.as_ref().map(|d| {
        json!({
            "branch": d.branch,
            "flavour": flavour(d),
            "modules": if d.prebuilt { "prebuilt" } else { "dkms" },
            "packages": d.packages,
            "kernel_packages": d.kernel_packages,
            "pinned_to": d.pin.as_ref().map(|p| &p.version),
        })
    });
    let repository = match &stack.source {
        Source::Nvidia(repository) => json!({ "url": repository.url, "fingerprint": repository.fingerprint }),
        Source::Distro { .. } => Value::Null,
    };
    let components = match &stack.source {
        Source::Nvidia(repository) => &repository.components,
        Source::Distro { components } => components,
    };
    json!({
        "gpu_architectures": stack.gpu_architectures,
        "repository": repository,
        "components": components,
        "driver": driver,
        "fabric_manager": stack.fabric_manager,
        "toolkits": stack.toolkits,
        "cudnn": stack.cudnn,
        "cudnn_debs": stack.cudnn_debs.iter().map(deb).collect::<Vec<_>>(),
        "expected_gpus": stack.expect_gpus,
        "packages": packages(stack),
    })
}

/// Without the key, which is long.
fn deb(deb: &Deb) -> Value {
    let index = deb.index.as_ref().map(|i| json!({ "url": i.url, "fingerprint": i.fingerprint }));
    json!({ "url": deb.url, "sha256": Some(&deb.sha256).filter(|s| !s.is_empty()), "index": index })
}

fn refusal(error: &Error) -> Value {
    json!({
        "code": error.code().name(),
        "exit_code": error.code().exit_code(),
        "message": error.message(),
        "hint": error.hint(),
    })
}
