//! What an examination came to, GPU by GPU: for the event stream and the status files, which everybody may read. So there
//! is nothing in it that tells one GPU of the world from another (no UUID), and only checks that did not pass.

use serde::{Deserialize, Serialize};

use super::Examination;
use super::checks::{Check, Place, Verdict};
use super::numa::sysfs_name;
use super::record::{CudaDevice, NvmlGpu};
use crate::catalog::data::InstanceType;

/// The verdicts on all GPUs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Verdicts {
    /// How many GPUs were found, working or not.
    pub found: u32,
    /// How many there must be, where that is known.
    pub expected: Option<u32>,
    /// On all of it: what failed anywhere fails it, and what was not computed on leaves it open.
    pub result: Verdict,
    /// Each GPU, in the order of PCI addresses.
    pub gpus: Vec<GpuVerdict>,
    /// Checks that did not pass and are not of one GPU.
    pub machine: Vec<Finding>,
}

/// The verdict on one GPU: it passes where it computed rightly and nothing failed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GpuVerdict {
    /// Its place in the order of PCI addresses, from 0: CUDA's and NVML's number where both see every GPU.
    pub index: u32,
    /// Marketing name, where the driver gave one.
    pub name: Option<String>,
    /// PCI address, where known.
    pub pci: Option<String>,
    /// `pass`, `fail` or `could-not-tell`.
    pub verdict: Verdict,
    /// Checks that it did not pass. A warning is among them, and fails nothing.
    pub findings: Vec<Finding>,
}

/// A check that did not pass.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Finding {
    /// The check's name.
    pub check: String,
    /// `warn`, `fail` or `could-not-tell`.
    pub verdict: Verdict,
    /// What was seen.
    pub evidence: String,
}

/// One GPU, as each of the witnesses sees it.
struct Seen<'a> {
    address: Option<String>,
    nvml: Option<&'a NvmlGpu>,
    cuda: Option<&'a CudaDevice>,
}

impl Verdicts {
    /// The verdicts of an examination.
    pub(super) fn of(e: &Examination) -> Self {
        let seen = everybody(e);
        let gpus: Vec<_> = (0..).zip(&seen).map(|(index, gpu)| verdict(e, index, gpu)).collect();
        let of_no_gpu = |check: &&Check| {
            check.verdict != Verdict::Pass
                && (check.parts.is_empty()
                    || check.parts.iter().any(|(place, _)| !seen.iter().any(|gpu| gpu.is_at(place))))
        };
        let machine: Vec<_> =
            e.checks.iter().filter(of_no_gpu).map(|c| finding(c, c.evidence.clone())).collect();
        // Without an answer to these, nobody knows which driver computed.
        let open = |f: &Finding| {
            f.verdict == Verdict::CouldNotTell && ["nvml", "cuda", "driver-version"].contains(&&*f.check)
        };
        let result = if !e.passes() {
            Verdict::Fail
        } else if gpus.iter().any(|g| g.verdict != Verdict::Pass) || machine.iter().any(open) {
            Verdict::CouldNotTell
        } else {
            Verdict::Pass
        };
        let expected = e.options.expect_gpus.map(|expected| expected.number);
        let of_type = || e.instance_type.as_ref().and_then(InstanceType::expected_gpus);
        let expected = expected.or_else(of_type).filter(|n| *n > 0);
        Self { found: u32::try_from(seen.len()).unwrap_or(u32::MAX), expected, result, gpus, machine }
    }

    /// For people: `7 of 8 pass; GPU 3: compute-3 fails`.
    pub fn sentence(&self) -> String {
        let passed = self.gpus.iter().filter(|g| g.verdict == Verdict::Pass).count();
        let mut parts = vec![format!("{passed} of {} pass", self.found.max(self.expected.unwrap_or(0)))];
        for gpu in &self.gpus {
            // What is open of a GPU that fails anyhow says nothing more.
            let telling = gpu.findings.iter().filter(|f| f.verdict == gpu.verdict);
            parts.extend(
                telling.filter_map(|f| Some(format!("GPU {}: {} {}", gpu.index, f.check, f.verb()?))),
            );
        }
        let failed = self.machine.iter().filter(|f| f.verdict == Verdict::Fail);
        parts.extend(failed.filter_map(|f| Some(format!("{} {}", f.check, f.verb()?))));
        parts.join("; ")
    }

    /// The names of the checks that failed, in order and each once: by them two looks at a machine are compared.
    pub fn failed(&self) -> Vec<&str> {
        let all = self.gpus.iter().flat_map(|g| &g.findings).chain(&self.machine);
        let mut names: Vec<_> =
            all.filter(|f| f.verdict == Verdict::Fail).map(|f| f.check.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}

impl Finding {
    fn verb(&self) -> Option<&'static str> {
        match self.verdict {
            Verdict::Fail => Some("fails"),
            Verdict::CouldNotTell => Some("could not tell"),
            Verdict::Pass | Verdict::Warn => None,
        }
    }
}

impl Seen<'_> {
    fn is_at(&self, place: &Place) -> bool {
        match place {
            Place::Cuda(index) => self.cuda.is_some_and(|d| d.index == *index),
            Place::Nvml(index) => self.nvml.is_some_and(|g| g.index == *index),
            // The kernel's log names a slot, without the function.
            Place::Pci(at) => self.address.as_deref().is_some_and(|address| {
                address
                    .strip_prefix(&*sysfs_name(at))
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            }),
        }
    }
}

/// The GPUs of the PCI bus with what the driver says of each; then those that only the driver knows of.
fn everybody(e: &Examination) -> Vec<Seen<'_>> {
    let bus: Vec<&String> = e.facts.gpus.iter().map(|gpu| &gpu.value.address).collect();
    // Who is asked names no address of a GPU that is lost. Both count in the order of addresses.
    let address = |pci: Option<&String>, index: u32, all: usize| {
        let by_number = || bus.get(index as usize).filter(|_| all == bus.len()).map(|a| (*a).clone());
        pci.map(|pci| sysfs_name(pci)).or_else(by_number)
    };
    let nvml: Vec<_> = e.gpus.iter().map(|g| (address(g.pci.as_ref(), g.index, e.gpus.len()), g)).collect();
    let cuda: Vec<_> =
        e.devices.iter().map(|d| (address(d.pci.as_ref(), d.index, e.devices.len()), d)).collect();
    let at = |wanted: &str| Seen {
        address: Some(wanted.to_owned()),
        nvml: nvml.iter().find(|(a, _)| a.as_deref() == Some(wanted)).map(|(_, g)| *g),
        cuda: cuda.iter().find(|(a, _)| a.as_deref() == Some(wanted)).map(|(_, d)| *d),
    };
    let mut all: Vec<_> = bus.iter().map(|address| at(address)).collect();
    let alive = nvml.iter().filter(|(_, g)| g.error.is_none()).map(|(address, _)| address);
    for address in alive.chain(cuda.iter().map(|(address, _)| address)).flatten() {
        if all.iter().all(|gpu| gpu.address.as_ref() != Some(address)) {
            all.push(at(address));
        }
    }
    all
}

fn verdict(e: &Examination, index: u32, gpu: &Seen<'_>) -> GpuVerdict {
    let mut findings = Vec::new();
    let mut computed = false;
    for check in &e.checks {
        for (place, evidence) in check.parts.iter().filter(|(place, _)| gpu.is_at(place)) {
            if check.verdict != Verdict::Pass {
                findings.push(finding(check, evidence.clone()));
            } else if let Place::Cuda(index) = place {
                computed |= check.check == format!("compute-{index}");
            }
        }
    }
    findings.extend(unseen(e, gpu));
    let verdict = if findings.iter().any(|f| f.verdict == Verdict::Fail) {
        Verdict::Fail
    } else if computed {
        Verdict::Pass
    } else {
        Verdict::CouldNotTell
    };
    let name = gpu.nvml.and_then(|g| g.name.clone()).or_else(|| gpu.cuda.and_then(|d| d.name.clone()));
    GpuVerdict { index, name, pci: gpu.address.clone(), verdict, findings }
}

/// A GPU that somebody does not show although he answers.
fn unseen(e: &Examination, gpu: &Seen<'_>) -> Option<Finding> {
    let of_count = |verdict, evidence: &str| {
        Some(Finding { check: "gpu-count".into(), verdict, evidence: evidence.into() })
    };
    let is_mig = e.gpus.iter().any(|g| g.number("mig_mode") == Some(1));
    let by_nvml = gpu.nvml.is_none() && e.nvml_init.devices.is_some();
    let by_cuda = gpu.cuda.is_none() && e.cuda_init.devices.is_some();
    let mut driven = e.facts.driven.iter().map(|d| &d.value);
    if (by_nvml || by_cuda) && driven.any(|d| d.excluded && Some(&d.address) == gpu.address.as_ref()) {
        return of_count(Verdict::CouldNotTell, "the administrator excluded it from use");
    }
    match (by_nvml, by_cuda) {
        (false, false) => None,
        (false, true) if is_mig => {
            of_count(Verdict::CouldNotTell, "with MIG, CUDA shows a program its share, and not this GPU")
        }
        (true, true) => of_count(Verdict::Fail, "neither NVML nor CUDA shows it"),
        (true, false) => of_count(Verdict::Fail, "NVML does not show it"),
        (false, true) => of_count(Verdict::Fail, "CUDA does not show it"),
    }
}

fn finding(check: &Check, evidence: String) -> Finding {
    Finding { check: check.check.clone(), verdict: check.verdict, evidence }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu(index: u32, findings: &[(&str, Verdict)], verdict: Verdict) -> GpuVerdict {
        let finding = |(check, verdict): &(&str, Verdict)| Finding {
            check: (*check).into(),
            verdict: *verdict,
            ..Finding::default()
        };
        GpuVerdict {
            index,
            verdict,
            findings: findings.iter().map(finding).collect(),
            ..GpuVerdict::default()
        }
    }

    #[test]
    fn the_sentence_names_what_failed_or_is_open_and_no_warning() {
        let mut verdicts = Verdicts {
            found: 4,
            expected: Some(5),
            result: Verdict::Fail,
            gpus: vec![
                gpu(0, &[("pcie-width", Verdict::Warn)], Verdict::Pass),
                gpu(1, &[("compute-1", Verdict::Fail), ("ecc", Verdict::Fail)], Verdict::Fail),
                gpu(2, &[("compute-2", Verdict::CouldNotTell)], Verdict::CouldNotTell),
                gpu(3, &[], Verdict::Pass),
            ],
            machine: vec![Finding {
                check: "gpu-count".into(),
                verdict: Verdict::Fail,
                ..Finding::default()
            }],
        };
        assert_eq!(
            verdicts.sentence(),
            "2 of 5 pass; GPU 1: compute-1 fails; GPU 1: ecc fails; GPU 2: compute-2 could not tell; gpu-count fails"
        );
        assert_eq!(verdicts.failed(), ["compute-1", "ecc", "gpu-count"]);
        verdicts.gpus.truncate(1);
        verdicts.machine.clear();
        (verdicts.found, verdicts.expected) = (1, None);
        assert_eq!(verdicts.sentence(), "1 of 1 pass");
    }

    #[test]
    fn words_of_a_later_version_leave_it_open() {
        let text = r#"{"result":"splendid","gpus":[{"verdict":"pass","more":1},{}],"later":[]}"#;
        let verdicts: Verdicts = serde_json::from_str(text).unwrap();
        assert_eq!(verdicts.result, Verdict::CouldNotTell);
        let each: Vec<_> = verdicts.gpus.iter().map(|g| g.verdict).collect();
        assert_eq!(each, [Verdict::Pass, Verdict::CouldNotTell]);
        assert_eq!(serde_json::to_value(Verdict::CouldNotTell).unwrap(), "could-not-tell");
    }
}
