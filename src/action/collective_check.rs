//! `collective-check`: GPUs of one machine that add up each other's numbers (`all_reduce`), right and fast enough: by NVIDIA's
//! nccl-tests, or by `torchrun` and `PyTorch`. Without a GPU to use, `PyTorch` does it between two processes of the CPU, and that is
//! what the evidence says.
//!
//! As with `device-query`, nothing can be applied: `check` says `Needed` with the reason, and `apply` returns it as the error.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Applied, Check, Converge, trial};
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::host::exec::{Call, Output};
use crate::host::fetch::redact_text;

const PROGRAM: &str = include_str!("../../steps/files/all_reduce.py");
/// Building code for a new GPU and setting up a ring over eight of them take a minute or two.
const LIMIT: Duration = Duration::from_mins(10);
/// Where nccl-tests are usually put: by their own build in the usual places, and by AWS's guides.
const PLACES: [&str; 4] = [
    "/opt/nccl-tests/build/all_reduce_perf",
    "/usr/local/bin/all_reduce_perf",
    "/usr/bin/all_reduce_perf",
    "/usr/local/cuda/efa/test-cuda/all_reduce_perf",
];
/// Processes where there is no GPU.
const ON_CPU: u32 = 2;

/// GPUs that add up each other's numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct CollectiveCheck {
    /// A program of nccl-tests and its arguments; empty for `all_reduce_perf` where it is usually put.
    #[serde(default)]
    pub command: Vec<String>,
    /// The virtual environment whose `PyTorch` does it instead; empty for nccl-tests.
    #[serde(default)]
    pub environment: String,
    /// How many GPUs.
    pub gpus: u32,
    /// GB/s of bus bandwidth that they must reach; 0 for any.
    #[serde(default)]
    pub bandwidth: u32,
    /// Whether `PyTorch` must use the GPUs.
    pub gpu: bool,
}

/// What the program came to.
#[derive(Debug, PartialEq)]
struct Outcome {
    /// Who says it.
    what: String,
    wrong: u64,
    /// GB/s.
    bandwidth: f64,
}

/// What our program prints.
#[derive(Debug, Deserialize)]
struct Printed {
    backend: String,
    torch: String,
    device: String,
    gpu: bool,
    processes: u32,
    wrong: u64,
    bandwidth: f64,
}

fn failed(text: impl Into<String>) -> Error {
    Error::new(Code::CollectiveFailed, text)
}

/// The last lines of nccl-tests, `# Out of bounds values : 0 OK` and `# Avg bus bandwidth    : 67.9217`.
fn nccl_tests(text: &str) -> Option<Outcome> {
    let after = |name: &str| {
        let line = text.lines().rev().find_map(|l| l.trim().strip_prefix("# ")?.strip_prefix(name))?;
        line.trim().strip_prefix(':').map(str::trim)
    };
    let wrong = after("Out of bounds values")?.split_whitespace().next()?.parse().ok()?;
    let bandwidth = after("Avg bus bandwidth")?.split_whitespace().next()?.parse().ok()?;
    let collective = after("Collective test concluded").unwrap_or("nccl-tests");
    Some(Outcome { what: collective.to_owned(), wrong, bandwidth })
}

impl CollectiveCheck {
    fn processes(&self) -> u32 {
        if self.gpu { self.gpus.max(1) } else { ON_CPU }
    }

    /// `torchrun`, one process for each GPU. As `--standalone` does it, but by an address: neither this machine's name nor `localhost`
    /// need resolve.
    fn torchrun(&self) -> Call {
        let python = format!("{}/bin/python", self.environment);
        let processes = format!("--nproc_per_node={}", self.processes());
        let device = if self.gpu { "gpu" } else { "cpu" };
        let torchrun = ["-I", "-B", "-m", "torch.distributed.run", "--nnodes=1", processes.as_str()];
        let meeting = [
            "--rdzv_backend=c10d",
            "--rdzv_endpoint=127.0.0.1:0",
            "--local_addr=127.0.0.1",
            "--rdzv_id=gpu-bootstrap",
        ];
        let program = ["--no_python", python.as_str(), "-I", "-B", "-c", PROGRAM, device];
        let words = [&[python.as_str()], &torchrun[..], &meeting, &program].concat();
        trial::as_nobody(words)
            .limit(LIMIT)
            .env("OMP_NUM_THREADS", "1")
            .env("GLOO_SOCKET_IFNAME", "lo")
            .env("CUDA_CACHE_DISABLE", "1")
    }

    /// The program of nccl-tests; the error is what to say.
    fn program(&self, host: &Host) -> Result<Result<Vec<String>, Error>> {
        if !self.command.is_empty() {
            return Ok(Ok(self.command.clone()));
        }
        for place in PLACES {
            if host.files.exists(place)? {
                // As NVIDIA's README shows it; 256 MB are enough to see the links' rate.
                let arguments = ["-b", "8", "-e", "256M", "-f", "2", "-c", "1", "-g"].map(str::to_owned);
                let gpus = self.gpus.max(1).to_string();
                return Ok(Ok([vec![place.to_owned()], arguments.into(), vec![gpus]].concat()));
            }
        }
        Ok(Err(failed("all_reduce_perf of nccl-tests is not there")
            .with_hint("build https://github.com/NVIDIA/nccl-tests into /opt/nccl-tests, or name it by distributed.check-command")))
    }

    async fn ask(&self, host: &Host) -> Result<Result<Outcome, Error>> {
        let is_torch = !self.environment.is_empty();
        let call = if is_torch {
            if !host.files.exists(format!("{}/bin/python", self.environment))? {
                return Ok(Err(failed(format!("{} has no Python yet", self.environment))));
            }
            self.torchrun()
        } else {
            match self.program(host)? {
                Ok(words) => trial::as_nobody(words).limit(LIMIT),
                Err(error) => return Ok(Err(error)),
            }
        };
        let name = if is_torch { "torchrun" } else { "nccl-tests" };
        let output = match host.exec.output(&call).await {
            Ok(output) => output,
            Err(e) if e.code() == Code::ExecTimeout => {
                return Ok(Err(failed(format!("{name} did not come to an end within {} s", LIMIT.as_secs()))
                    .with_hint("a GPU or a link hangs: dmesg | grep -i -e nvrm -e xid; NCCL_DEBUG=INFO by hand says where")));
            }
            Err(e) => return Err(e),
        };
        let text = output.text();
        let outcome = if is_torch { self.torch(&text) } else { nccl_tests(&text).map(Ok) };
        Ok(match outcome {
            // nccl-tests end with 1 where numbers were wrong, which is said better below.
            Some(Ok(outcome)) if output.ok() || outcome.wrong > 0 => Ok(outcome),
            Some(Err(error)) => Err(error),
            _ => Err(failed(format!("{name} ended with {} and without a result", output.status))
                .with_hint("the causes are its own words; NCCL_DEBUG=INFO by hand says more")
                .because(redact_text(&words_of(&output)))),
        })
    }

    fn torch(&self, text: &str) -> Option<Result<Outcome, Error>> {
        let printed = text.lines().rev().find_map(|line| serde_json::from_str::<Printed>(line).ok())?;
        let Printed { backend, torch, device, gpu, processes, wrong, bandwidth } = printed;
        if self.gpu != gpu {
            return Some(Err(failed(format!(
                "PyTorch {torch} used {device}, wanted {}",
                if self.gpu { "GPUs" } else { "the CPU" }
            ))));
        }
        let where_ = if gpu {
            format!("{processes} GPUs ({device})")
        } else {
            format!("{processes} processes on the CPU")
        };
        Some(Ok(Outcome { what: format!("torch {torch} with {backend} over {where_}"), wrong, bandwidth }))
    }

    /// The evidence, or what is wrong.
    fn judge(&self, Outcome { what, wrong, bandwidth }: &Outcome) -> Result<String, Error> {
        if *wrong > 0 {
            return Err(failed(format!("{what}: {wrong} sums are wrong"))
                .with_hint("stop and start the instance to move it to other hardware; `gpu-bootstrap device-query` looks at each GPU"));
        }
        // One alone sends nothing, so there is no rate to be reached.
        if self.processes() == 1 && *bandwidth == 0.0 {
            return Ok(format!("{what}: every sum is right, with nobody to exchange data with"));
        }
        // Also where it is no number.
        let reached = *bandwidth >= f64::from(self.bandwidth);
        if !reached {
            return Err(failed(format!("{what}: {bandwidth:.1} GB/s of bus bandwidth, wanted {}", self.bandwidth))
                .with_hint("`nvidia-smi topo -m` shows how GPUs are joined, `nvidia-smi nvlink -s` which links are down; or lower distributed.check-bandwidth"));
        }
        Ok(format!("{what}: every sum is right, {bandwidth:.1} GB/s of bus bandwidth"))
    }

    async fn look(&self, host: &Host) -> Result<Result<String, Error>> {
        Ok(Box::pin(self.ask(host)).await?.and_then(|outcome| self.judge(&outcome)))
    }
}

/// Which of the two streams has the reason differs.
fn words_of(output: &Output) -> String {
    let text = output.text();
    let lines: Vec<_> = text.lines().filter(|l| !l.trim().is_empty()).collect();
    let last = lines[lines.len().saturating_sub(4)..].join("\n");
    if output.stderr.is_empty() { last } else { format!("{last}\n{}", output.tail()).trim().to_owned() }
}

impl Converge for CollectiveCheck {
    async fn check(&self, host: &Host) -> Result<Check> {
        Ok(trial::check(host, self, self.look(host).await?))
    }

    async fn apply(&self, host: &Host) -> Result<Applied> {
        if let Some(error) = trial::found(host, self) {
            return Err(error);
        }
        self.look(host).await?.map(|_| Applied::Done)
    }

    fn describe(&self) -> String {
        match (self.environment.as_str(), self.gpu) {
            ("", _) => "all_reduce by nccl-tests".into(),
            (_, true) => format!("all_reduce by torchrun over {} GPUs", self.processes()),
            (_, false) => "all_reduce by torchrun on the CPU".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "   8388608       2097152     float     sum      -1    123.4   67.98  118.97      0    122.1   68.70  120.22      0\n\
                        # Out of bounds values : 0 OK\n# Avg bus bandwidth    : 119.595 \n#\n# Collective test concluded: all_reduce_perf\n";

    fn action(dir: &std::path::Path, environment: bool, bandwidth: u32) -> CollectiveCheck {
        let environment = if environment { dir.display().to_string() } else { String::new() };
        let command = if environment.is_empty() {
            vec![dir.join("bin/python").display().to_string()]
        } else {
            Vec::new()
        };
        CollectiveCheck { command, environment, gpus: 8, bandwidth, gpu: true }
    }

    #[test]
    fn one_gpu_alone_has_no_rate_to_reach() {
        let one = CollectiveCheck { gpus: 1, ..action(std::path::Path::new("/x"), true, 100) };
        let outcome = |bandwidth| Outcome { what: "torch".into(), wrong: 0, bandwidth };
        assert!(one.judge(&outcome(0.0)).unwrap().ends_with("nobody to exchange data with"));
        assert!(
            one.judge(&outcome(5.0)).is_err() && one.judge(&Outcome { wrong: 1, ..outcome(0.0) }).is_err()
        );
        assert!(CollectiveCheck { gpus: 2, ..one }.judge(&outcome(0.0)).is_err());
    }

    #[test]
    fn the_end_of_nccl_tests_is_read() {
        let found = nccl_tests(GOOD).unwrap();
        assert_eq!(found, Outcome { what: "all_reduce_perf".into(), wrong: 0, bandwidth: 119.595 });
        assert_eq!(nccl_tests(&GOOD.replace(": 0 OK", ": 12 FAILED")).unwrap().wrong, 12);
        assert_eq!(nccl_tests("# Out of bounds values : 0 OK\n"), None);
        assert_eq!(nccl_tests("# Out of bounds values : N/A\n# Avg bus bandwidth : 1\n"), None);
        assert!(
            nccl_tests("# Out of bounds values : 0 OK\n# Avg bus bandwidth : nan\n")
                .unwrap()
                .bandwidth
                .is_nan()
        );
    }

    /// A stand-in for the program says what it would.
    async fn judged(environment: bool, bandwidth: u32, says: &str) -> Check {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bin/python");
        std::fs::create_dir(dir.path().join("bin")).unwrap();
        std::fs::write(&path, format!("#!/bin/sh\n{says}\n")).unwrap();
        for file in [dir.path(), &path] {
            std::fs::set_permissions(file, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        }
        let (action, host) = (action(dir.path(), environment, bandwidth), Host::new("/".into()));
        let check = action.check(&host).await.unwrap();
        if check.state() == "needed" {
            assert_eq!(action.apply(&host).await.unwrap_err().code(), Code::CollectiveFailed);
        }
        check
    }

    #[tokio::test]
    async fn sums_must_be_right_and_fast_enough() {
        if !nix::unistd::geteuid().is_root() {
            return; // only root can become nobody
        }
        let says = |text: &str| format!("cat <<'E'\n{text}\nE");
        let check = judged(false, 100, &says(GOOD)).await;
        assert_eq!(
            check,
            Check::satisfied("all_reduce_perf: every sum is right, 119.6 GB/s of bus bandwidth")
        );
        let wrong = GOOD.replace(": 0 OK", ": 12 FAILED");
        for (bandwidth, says, why) in [
            (120, says(GOOD), "all_reduce_perf: 119.6 GB/s of bus bandwidth, wanted 120"),
            (0, format!("{}; exit 1", says(&wrong).replace("\nE", "\nE\n:")), "12 sums are wrong"),
            (0, format!("{}\nexit 3", says(GOOD)), "nccl-tests ended with 3 and without a result"),
            (1, says(&GOOD.replace("119.595", "nan")), "NaN GB/s"),
            (0, "echo NCCL failure >&2; exit 1".into(), "nccl-tests ended with 1"),
            (0, "[ $(id -u) = 0 ] && echo '# Out of bounds values : 0'".into(), "without a result"),
        ] {
            let check = judged(false, bandwidth, &says).await;
            assert!(check.why().contains(why), "{says}: {check:?}");
        }
    }

    #[tokio::test]
    async fn pytorch_must_use_what_is_wanted() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let line = |gpu: bool, wrong: u32| {
            format!(
                "echo '{{\"backend\": \"nccl 2.28.9\", \"torch\": \"2.9\", \"device\": \"H100\", \"gpu\": {gpu}, \"processes\": 8, \"wrong\": {wrong}, \"bandwidth\": 400.25}}'"
            )
        };
        let check = judged(true, 400, &line(true, 0)).await;
        let evidence =
            "torch 2.9 with nccl 2.28.9 over 8 GPUs (H100): every sum is right, 400.2 GB/s of bus bandwidth";
        assert_eq!(check, Check::satisfied(evidence));
        let alone = line(true, 0).replace("400.25", "0.0").replace("\"processes\": 8", "\"processes\": 1");
        let check = judged(true, 0, &alone).await;
        assert!(check.why().ends_with("0.0 GB/s of bus bandwidth"), "eight that exchange nothing: {check:?}");
        for (says, why) in [
            (line(false, 0), "used H100, wanted GPUs"),
            (line(true, 3), "3 sums are wrong"),
            (format!("{}; exit 1", line(true, 0)), "torchrun ended with 1"),
            ("kill -9 $$".into(), "torchrun ended with 137"),
        ] {
            let check = judged(true, 0, &says).await;
            assert!(check.why().contains(why), "{says}: {check:?}");
        }
    }

    #[tokio::test]
    async fn nccl_tests_are_looked_for_where_they_are_usually_put() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path().into());
        let action = CollectiveCheck { command: Vec::new(), ..action(dir.path(), false, 0) };
        assert_eq!(action.check(&host).await.unwrap().why(), "all_reduce_perf of nccl-tests is not there");
        host.files.write(PLACES[0], b"", 0o755).unwrap();
        let words = action.program(&host).unwrap().unwrap();
        assert_eq!(words.join(" "), format!("{} -b 8 -e 256M -f 2 -c 1 -g 8", PLACES[0]));
    }
}
