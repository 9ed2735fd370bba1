//! An examination in one sentence, for the evidence of a run. What was not computed on, what could not be told and what
//! needs attention is said there, too.

use super::Examination;
use super::checks::{Check, Verdict};
use super::libraries::Installed;
use super::text::version;

/// How people call the libraries.
const NAMES: [(&str, &str); 3] = [("cudart", "CUDA runtime"), ("cublas", "cuBLAS"), ("cudnn", "cuDNN")];

pub(super) fn summary(e: &Examination) -> String {
    let mut parts = Vec::new();
    if let Some(driver) = &e.facts.driver {
        parts.push(format!("driver {} loaded", driver.value.version));
    }
    parts.push(models(e));
    parts.push(format!("CUDA {}", version(e.cuda_load.driver_version)));
    for (name, title) in NAMES {
        let says = e.libraries.iter().find(|l| l.name == name && l.promised).and_then(Installed::says);
        parts.extend(says.map(|version| format!("{title} {version}")));
    }
    let tests: Vec<String> = e.smoke.iter().map(|test| format!("compute-{}", test.index)).collect();
    let computed: Vec<&Check> = e.checks.iter().filter(|c| tests.contains(&c.check)).collect();
    let passed = computed.iter().filter(|c| c.verdict == Verdict::Pass).count();
    parts.push(format!("computed on {passed} of {}", e.devices.len()));
    for check in computed.iter().filter(|c| c.verdict != Verdict::Pass) {
        let gpu = check.check.trim_start_matches("compute-");
        parts.push(format!("GPU {gpu}: {}", check.evidence));
    }
    for library in e.libraries.iter().filter(|l| l.promised) {
        let unknown = |c: &&Check| c.check == library.check && c.verdict == Verdict::CouldNotTell;
        parts.extend(
            e.checks.iter().find(unknown).map(|c| format!("{} is not known: {}", c.check, c.evidence)),
        );
    }
    let warnings: Vec<_> =
        e.checks.iter().filter(|c| c.verdict == Verdict::Warn).map(|c| c.check.as_str()).collect();
    if !warnings.is_empty() {
        parts.push(format!("device-query warns of {}", warnings.join(", ")));
    }
    parts.join("; ")
}

/// `8 × NVIDIA H100 80GB HBM3`, in the order of the devices.
fn models(e: &Examination) -> String {
    let mut models: Vec<(&str, usize)> = Vec::new();
    for device in &e.devices {
        let name = device.name.as_deref().unwrap_or("GPU of unknown model");
        match models.iter_mut().find(|(known, _)| *known == name) {
            Some((_, count)) => *count += 1,
            None => models.push((name, 1)),
        }
    }
    let shown: Vec<_> = models.iter().map(|(name, count)| format!("{count} × {name}")).collect();
    shown.join(", ")
}
