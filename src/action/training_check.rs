//! `training-check`: frameworks that learn. Each trains a tiny model for a few steps, in a process of its own that is nobody's,
//! and its loss has to fall; on a GPU where there is one, because a framework that does not find its libraries falls back to
//! the CPU without a word.
//!
//! As with `device-query`, nothing can be applied: `check` says `Needed` with the reason, and `apply` returns it as the error.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Applied, Check, Converge, trial};
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::host::exec::Call;

const PROGRAM: &str = include_str!("../../steps/files/training_check.py");
/// Importing TensorFlow from a cold volume takes a minute; building code for a new GPU takes longer.
const LIMIT: Duration = Duration::from_mins(10);
/// The loss must fall to less than this part. All of them reach a tenth.
const LEARNT: f64 = 0.7;

/// Frameworks that learn.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct TrainingCheck {
    /// The virtual environment.
    pub path: String,
    /// Names as in the configuration: `keras`, `torch`, `tensorflow`, `jax`, `tensorboard`.
    pub frameworks: Vec<String>,
    /// Whether they must use a GPU; otherwise none is shown to them.
    pub gpu: bool,
}

/// What one training came to.
#[derive(Debug, Deserialize)]
struct Outcome {
    framework: String,
    device: String,
    gpu: bool,
    before: Option<f64>,
    after: Option<f64>,
}

impl TrainingCheck {
    /// What trains: Keras with each of the frameworks that can be its back end; `PyTorch` and JAX by themselves. `TensorFlow` comes
    /// with Keras, and is trained by it in any case.
    fn trainings(&self) -> Vec<String> {
        let has = |name: &str| self.frameworks.iter().any(|f| f == name);
        let mut all = Vec::new();
        for backend in ["tensorflow", "torch", "jax"].into_iter().filter(|b| has(b)) {
            if has("keras") || backend == "tensorflow" {
                all.push(format!("keras-{backend}"));
            }
            if backend != "tensorflow" {
                all.push(backend.to_owned());
            }
        }
        if has("tensorboard") {
            all.push("tensorboard".into());
        }
        all
    }

    fn call(&self, what: &str) -> Call {
        let device = if self.gpu { "gpu" } else { "cpu" };
        trial::as_nobody([&format!("{}/bin/python", self.path), "-I", "-B", "-", what, device])
            .env("KERAS_HOME", "/nonexistent/keras")
            .env("CUDA_CACHE_DISABLE", "1")
            .env("TF_CPP_MIN_LOG_LEVEL", "2")
            // A few megabytes do, whoever else works on the GPU.
            .env("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
            .env("TF_FORCE_GPU_ALLOW_GROWTH", "true")
            .input(PROGRAM.into())
            .limit(LIMIT)
    }

    async fn train(&self, host: &Host, what: &str) -> Result<Result<String, Error>> {
        let failed =
            |text: String, hint: &str| Ok(Err(Error::new(Code::FrameworkFailed, text).with_hint(hint)));
        let output = match host.exec.output(&self.call(what)).await {
            Ok(output) => output,
            Err(e) if e.code() == Code::ExecTimeout => {
                return failed(
                    format!("{what} did not finish a tiny training within {} s", LIMIT.as_secs()),
                    "dmesg | grep -i -e nvrm -e xid says whether the GPU hangs",
                );
            }
            Err(e) => return Err(e),
        };
        let text = output.text();
        let outcome = text.lines().rev().find_map(|line| serde_json::from_str::<Outcome>(line).ok());
        let Some(outcome) = outcome.filter(|_| output.ok()) else {
            let error = Error::new(
                Code::FrameworkFailed,
                format!("{what} cannot train: it ended with {}", output.status),
            )
            .with_hint("the causes are the framework's own words; a library that it misses is in another version of its wheels")
            .because(output.tail());
            return Ok(Err(error));
        };
        let Outcome { framework, device, gpu, before, after } = outcome;
        if what == "tensorboard" {
            return Ok(Ok(format!("{framework} starts")));
        }
        if self.gpu && !gpu {
            return failed(
                format!("{framework} trains on the CPU ({device}), although a GPU is there"),
                "its CUDA libraries or the driver are not found: `gpu-bootstrap device-query` says whether the driver works",
            );
        }
        let label = if gpu { "GPU" } else { "CPU" };
        match (before, after) {
            (Some(before), Some(after))
                if after.is_finite() && before.is_finite() && after < before * LEARNT =>
            {
                Ok(Ok(format!("{framework} on {label} ({device}): loss {before:.4} to {after:.4}")))
            }
            (before, after) => failed(
                format!("{framework} does not learn on {label} ({device}): loss {before:?} to {after:?}"),
                "it computes wrong: `gpu-bootstrap device-query` says whether the GPU does",
            ),
        }
    }

    /// The evidence, or the first failure.
    async fn train_all(&self, host: &Host) -> Result<Result<String, Error>> {
        let mut evidence = Vec::new();
        for what in self.trainings() {
            match self.train(host, &what).await? {
                Ok(line) => evidence.push(line),
                Err(error) => return Ok(Err(error)),
            }
        }
        Ok(Ok(evidence.join("; ")))
    }
}

impl Converge for TrainingCheck {
    async fn check(&self, host: &Host) -> Result<Check> {
        if !host.files.exists(format!("{}/bin/python", self.path))? {
            return Ok(Check::needed(format!("{} has no Python yet", self.path)));
        }
        Ok(trial::check(host, self, Box::pin(self.train_all(host)).await?))
    }

    async fn apply(&self, host: &Host) -> Result<Applied> {
        if let Some(error) = trial::found(host, self) {
            return Err(error);
        }
        Box::pin(self.train_all(host)).await?.map(|_| Applied::Done)
    }

    fn describe(&self) -> String {
        format!("training with {}", self.frameworks.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keras_is_trained_with_each_back_end_that_is_there() {
        let of = |names: &[&str]| {
            let frameworks = names.iter().map(|n| (*n).to_owned()).collect();
            TrainingCheck { path: "/e".into(), frameworks, gpu: false }.trainings().join(" ")
        };
        assert_eq!(of(&["keras", "torch"]), "keras-torch torch");
        assert_eq!(of(&["tensorflow", "tensorboard"]), "keras-tensorflow tensorboard");
        assert_eq!(of(&["jax"]), "jax");
        assert_eq!(
            of(&["jax", "keras", "tensorflow", "torch"]),
            "keras-tensorflow keras-torch torch keras-jax jax"
        );
    }

    /// A stand-in for Python says what a framework would.
    async fn judged(gpu: bool, says: &str) -> (Check, Code) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bin/python");
        std::fs::create_dir(dir.path().join("bin")).unwrap();
        std::fs::write(&path, format!("#!/bin/sh\ncat >/dev/null\n{says}\n")).unwrap();
        for file in [dir.path(), &path] {
            std::fs::set_permissions(file, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        }
        let action =
            TrainingCheck { path: dir.path().display().to_string(), frameworks: vec!["torch".into()], gpu };
        let host = Host::new("/".into());
        let check = action.check(&host).await.unwrap();
        let code = match check.state() {
            "needed" => action.apply(&host).await.unwrap_err().code(),
            _ => Code::Usage,
        };
        (check, code)
    }

    #[tokio::test]
    async fn the_loss_falls_on_the_device_that_is_asked_for_or_it_is_a_failure() {
        if !nix::unistd::geteuid().is_root() {
            return; // only root can become nobody
        }
        let line = |gpu: bool, after: &str| {
            format!(
                "echo '{{\"framework\": \"torch 2\", \"device\": \"d\", \"gpu\": {gpu}, \"before\": 4.0, \"after\": {after}}}'"
            )
        };
        let (check, _) = judged(true, &line(true, "0.5")).await;
        assert_eq!(check, Check::satisfied("torch 2 on GPU (d): loss 4.0000 to 0.5000"));
        let (check, _) = judged(false, &line(false, "0.5")).await;
        assert_eq!(check, Check::satisfied("torch 2 on CPU (d): loss 4.0000 to 0.5000"));
        for (gpu, says, why) in [
            (true, line(false, "0.5"), "torch 2 trains on the CPU (d), although a GPU is there"),
            (false, line(false, "3.9"), "torch 2 does not learn on CPU (d): loss Some(4.0) to Some(3.9)"),
            (false, line(false, "null"), "does not learn"),
            (false, "echo no libcudnn >&2; exit 1".into(), "torch cannot train: it ended with 1"),
            (false, "kill -11 $$".into(), "torch cannot train: it ended with 139"),
            (false, format!("{}; id -u; exit 3", line(false, "0.5")), "torch cannot train: it ended with 3"),
            (false, "[ $(id -u) = 0 ] && echo root".into(), "torch cannot train"),
        ] {
            let (check, code) = judged(gpu, &says).await;
            assert!(check.why().contains(why), "{says}: {check:?}");
            assert_eq!(code, Code::FrameworkFailed);
        }
    }
}
