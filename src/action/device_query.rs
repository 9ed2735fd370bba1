//! `device-query`: GPUs that work. `/proc` and the linker's cache are looked at first; then the driver is asked, and
//! computes ([`crate::device_query`]).
//!
//! Little can be applied here: a reboot is asked for where it loads the right module, and a fabric that is being set
//! up is waited for. So that a plan can show the verdict without failing, `check` says `Needed` with the reason, and
//! `apply` returns that reason as the error, with its own code and the exit code for an unhealthy GPU. Both are one
//! look: a driver that hangs would otherwise cost two deadlines.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::driver::{self, Remedy};
use super::{Applied, Check, Converge};
use crate::device_query::checks::{self, Verdict};
use crate::device_query::libraries::Promised;
use crate::device_query::{Compute, Examination, ExpectedGpus, NotRun, Options, examine, fabric_manager};
use crate::error::{Code, Error, Result};
use crate::facts::gpu::driver::{DrivenGpu, information};
use crate::host::Host;

const GPUS: &str = "/proc/driver/nvidia/gpus";
/// How long GPUs may take to join the NVSwitch fabric once its manager runs; seconds as a rule, more after a cold start.
const FABRIC_LIMIT: Duration = Duration::from_mins(2);
const FABRIC_POLL: Duration = Duration::from_secs(2);

/// A GPU that works.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct DeviceQuery {
    /// How many GPUs there must be; 0 when unknown (then one is enough).
    pub gpus: u32,
    /// Sonames that the dynamic linker must know.
    pub libraries: Vec<String>,
    /// Whether a driver was asked for; without one, only the libraries are looked for.
    #[serde(default)]
    pub driver: bool,
    /// Versions of the toolkits that are installed, the default one first.
    #[serde(default)]
    pub toolkits: Vec<String>,
    /// Version of cuDNN that is installed; `auto` where the repository chose it, `none` (or nothing) without one.
    #[serde(default)]
    pub cudnn: String,
    /// Directories of the toolkits' libraries, where they have their own.
    #[serde(default)]
    pub library_dirs: Vec<String>,
}

/// What the machine says.
enum Answer {
    /// The GPUs work; the evidence.
    Works(String),
    /// It could not be told, and what to do.
    Unknown(String),
    /// The next boot mends it; why.
    Reboot(String),
    /// They do not work.
    Broken(Error),
    /// Not yet: they are joining the NVSwitch fabric, whose manager runs.
    Joining(Error),
}

/// What the driver said to `check`, for the `apply` of the same action.
struct Seen {
    action: DeviceQuery,
    answer: Answer,
}

impl DeviceQuery {
    async fn ask(&self, host: &Host) -> Result<Answer> {
        match self.ask_files(host).await? {
            Ok(module) => self.ask_driver(host, &module).await,
            Err(answer) => Ok(answer),
        }
    }

    /// Like [`Self::ask`], but where a check has just asked the driver, by that answer.
    async fn ask_once(&self, host: &Host) -> Result<Answer> {
        let seen = host.take_look::<Seen>().filter(|seen| seen.action == *self);
        match (self.ask_files(host).await?, seen) {
            (Err(answer), _) => Ok(answer),
            (Ok(_), Some(seen)) => Ok(seen.answer),
            (Ok(module), None) => self.ask_driver(host, &module).await,
        }
    }

    /// The loaded module's version; or the answer, where files alone give it.
    async fn ask_files(&self, host: &Host) -> Result<Result<String, Answer>> {
        if let Err(error) = self.libraries(host)? {
            return Ok(Err(Answer::Broken(error)));
        }
        if !self.driver {
            let evidence = format!("{} found by the linker", self.libraries.join(", "));
            return Ok(Err(Answer::Works(evidence)));
        }
        let Some(module) = driver::module_version(host)? else {
            return Ok(Err(Answer::Broken(driver::not_loaded(host, None)?)));
        };
        if let Some(libraries) = driver::library_version(host)?
            && libraries != module
        {
            return mismatch(host, &module, Some(&libraries)).await.map(Err);
        }
        Ok(self.count(host)?.map(|()| module).map_err(Answer::Broken))
    }

    async fn ask_driver(&self, host: &Host, module: &str) -> Result<Answer> {
        // Boxed: an examination's state is large, and a run would carry it through every step.
        let examination = Box::pin(examine(host, self.options())).await?;
        host.examined(examination.verdicts());
        judge(host, module, &examination).await
    }

    fn options(&self) -> Options {
        let expected = ExpectedGpus { number: self.gpus, or_more: true, by: "the plan" };
        Options {
            expect_gpus: (self.gpus > 0).then_some(expected),
            compute: Compute::Auto,
            promised: Promised {
                toolkits: self.toolkits.clone(),
                cudnn: (!matches!(self.cudnn.as_str(), "" | "none")).then(|| self.cudnn.clone()),
                library_dirs: self.library_dirs.clone(),
            },
            ..Options::default()
        }
    }

    fn libraries(&self, host: &Host) -> Result<Result<(), Error>> {
        let cache = host.linker_cache()?;
        for soname in &self.libraries {
            let Some(library) = cache.iter().find(|l| l.soname == *soname) else {
                return Ok(Err(Error::new(
                    Code::LibraryMissing,
                    format!("the dynamic linker does not know {soname}"),
                )
                .with_hint("run ldconfig; if it stays, the package that ships it is damaged: run again")));
            };
            if !host.files.exists(&library.path)? {
                return Ok(Err(Error::new(
                    Code::LibraryMissing,
                    format!(
                        "{} is gone, although the dynamic linker's cache lists it",
                        library.path.display()
                    ),
                )
                .with_hint("run again: the package that ships it is installed anew")));
            }
        }
        Ok(Ok(()))
    }

    fn count(&self, host: &Host) -> Result<Result<(), Error>> {
        let found = working(host)?.len();
        let wanted = self.gpus.max(1);
        if found < wanted as usize {
            return Ok(Err(Error::new(
                Code::GpuCount,
                format!("the driver shows {found} of {wanted} GPUs in {GPUS}"),
            )
            .with_hint("dmesg | grep -i -e nvrm -e xid names the lost GPU; stop and start the instance to move it to other hardware")));
        }
        Ok(Ok(()))
    }
}

/// What follows from an examination: what a reboot mends, what is broken, what is not known, or the evidence.
async fn judge(host: &Host, module: &str, e: &Examination) -> Result<Answer> {
    let failed: Vec<&checks::Check> = e.checks.iter().filter(|c| c.verdict == Verdict::Fail).collect();
    let is_skew = failed.iter().any(|c| c.check == "driver-version");
    if is_skew {
        let libraries = libraries_version(host, e)?;
        return Ok(match mismatch(host, module, libraries.as_deref()).await? {
            Answer::Broken(error) => Answer::Broken(because(error, &failed)),
            other => other,
        });
    }
    let asking = e.asks_for_reboot();
    if !asking.is_empty() {
        let gpus: Vec<_> = asking.iter().map(ToString::to_string).collect();
        return Ok(Answer::Reboot(format!(
            "the driver asks for a reboot to recover GPU {}",
            gpus.join(", ")
        )));
    }
    if let Some((first, others)) = failed.split_first() {
        let error = Error::new(code(e, &first.check), format!("{}: {}", first.check, first.evidence))
            .with_hint(hint(&first.advice));
        let error = because(error, others);
        // One of another version than the driver's never gets there.
        let hopeless = others.iter().any(|c| c.check == "fabric-manager");
        let joining = !hopeless
            && e.waits_for_fabric()
            && fabric_manager::runs(host, fabric_manager::LIMIT).await? == Some(true);
        return Ok(if joining { Answer::Joining(error) } else { Answer::Broken(error) });
    }
    let unknown = |c: &&checks::Check| {
        c.verdict == Verdict::CouldNotTell && ["nvml", "cuda", "driver-version"].contains(&c.check.as_str())
    };
    Ok(match e.checks.iter().find(unknown) {
        Some(check) => Answer::Unknown(format!("{}: {}. {}", check.check, check.evidence, check.advice)),
        None => Answer::Works(e.summary()),
    })
}

/// Version of the library that does not go with the module. NVML says its own; libcuda's file may have it in its name.
fn libraries_version(host: &Host, e: &Examination) -> Result<Option<String>> {
    match &e.nvml_init.driver_version {
        Some(version) if e.cuda_init.error.is_none() => Ok(Some(version.clone())),
        _ => driver::library_version(host),
    }
}

/// The loaded module and the libraries do not go together.
async fn mismatch(host: &Host, module: &str, libraries: Option<&str>) -> Result<Answer> {
    Ok(match driver::remedy(host, module, libraries).await? {
        Remedy::Reboot(why) => Answer::Reboot(why),
        Remedy::None(error) => Answer::Broken(error),
    })
}

/// A check's advice, which is a sentence, as a hint.
fn hint(advice: &str) -> String {
    let mut letters = advice.trim_end_matches('.').chars();
    letters.next().map_or_else(String::new, |first| first.to_lowercase().chain(letters).collect())
}

/// The failed checks as the error's causes, in their order.
fn because(error: Error, checks: &[&checks::Check]) -> Error {
    let chain = checks.iter().rev().fold(None, |inner: Option<Error>, check| {
        let cause = Error::new(error.code(), format!("{}: {}", check.check, check.evidence));
        Some(match inner {
            Some(inner) => cause.because(inner),
            None => cause,
        })
    });
    match chain {
        Some(chain) => error.because(chain),
        None => error,
    }
}

/// The stable code of a failed check.
fn code(e: &Examination, check: &str) -> Code {
    let missing = |l: &&crate::device_query::libraries::Installed| {
        l.check == check && matches!(l.run, Err(NotRun::Missing(_)))
    };
    match check {
        "driver" => Code::DriverNotLoaded,
        "nvml" => Code::NvmlFailed,
        "cuda" => Code::CudaFailed,
        "gpu-count" => Code::GpuCount,
        name if name.starts_with("device-") => Code::CudaFailed,
        name if e.smoke.iter().any(|test| name == format!("compute-{}", test.index)) => Code::ComputeFailed,
        name if name.starts_with("library-") && e.libraries.iter().any(|l| missing(&l)) => {
            Code::LibraryMissing
        }
        name if name.starts_with("library-") => Code::LibraryBroken,
        _ => Code::GpuUnhealthy,
    }
}

/// The GPUs that the kernel module drives and that are not excluded by the administrator.
fn working(host: &Host) -> Result<Vec<DrivenGpu>> {
    let mut gpus = Vec::new();
    for name in host.files.list(GPUS)? {
        let text = host.files.read_text(format!("{GPUS}/{name}/information"))?.unwrap_or_default();
        gpus.push(information(&name, &text));
    }
    gpus.retain(|g| !g.excluded);
    Ok(gpus)
}

impl Converge for DeviceQuery {
    async fn check(&self, host: &Host) -> Result<Check> {
        let (answer, by_driver) = match self.ask_files(host).await? {
            Ok(module) => (self.ask_driver(host, &module).await?, true),
            Err(answer) => (answer, false),
        };
        let check = match &answer {
            Answer::Works(evidence) => return Ok(Check::satisfied(evidence)),
            Answer::Unknown(why) => return Ok(Check::unknown(why)),
            Answer::Reboot(why) => Check::needed(why),
            Answer::Broken(error) | Answer::Joining(error) => Check::needed(error.message()),
        };
        if by_driver {
            host.keep_look(Seen { action: self.clone(), answer });
        }
        Ok(check)
    }

    async fn apply(&self, host: &Host) -> Result<Applied> {
        let began = Instant::now();
        let mut answer = self.ask_once(host).await?;
        loop {
            match answer {
                Answer::Works(_) => return Ok(Applied::Done),
                Answer::Reboot(why) => return Ok(Applied::RebootNeeded { why }),
                Answer::Broken(error) => return Err(error),
                Answer::Unknown(why) => return Err(Error::new(Code::CheckUnknown, why)),
                Answer::Joining(error) if began.elapsed() >= FABRIC_LIMIT => return Err(error),
                Answer::Joining(_) => tokio::time::sleep(FABRIC_POLL).await,
            }
            answer = self.ask(host).await?;
        }
    }

    fn describe(&self) -> String {
        match self.gpus {
            0 => "working GPUs".into(),
            1 => "1 working GPU".into(),
            n => format!("{n} working GPUs"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::driver::tests::machine;
    use super::*;
    use crate::host::ld_cache::tests::cache;

    #[tokio::test]
    async fn what_files_alone_tell_is_told_before_the_driver_is_asked() {
        let (_dir, host) = machine();
        let write = |path: &str, bytes: &[u8]| host.files.write(path, bytes, 0o644).unwrap();
        let action = DeviceQuery {
            gpus: 2,
            libraries: vec!["libcuda.so.1".into()],
            driver: true,
            toolkits: Vec::new(),
            cudnn: "none".into(),
            library_dirs: Vec::new(),
        };
        let code = async || action.apply(&host).await.unwrap_err().code();

        assert_eq!(code().await, Code::LibraryMissing);
        write("/etc/ld.so.cache", &cache(&[("libcuda.so.1", "/usr/lib/libcuda.so.1")]));
        assert_eq!(code().await, Code::LibraryMissing);
        host.files.symlink("/usr/lib/libcuda.so.1", "libcuda.so.570.195.03").unwrap();
        assert_eq!(code().await, Code::DriverNotLoaded);
        assert!(action.check(&host).await.unwrap().why().contains("has no NVIDIA module"));

        write(
            "/proc/driver/nvidia/version",
            b"NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.103.01  Thu\n",
        );
        assert_eq!(code().await, Code::DriverMismatch);
        write(
            "/proc/driver/nvidia/version",
            b"NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.195.03  Thu\n",
        );
        assert_eq!(code().await, Code::GpuCount);
        write(&format!("{GPUS}/0000:00:1e.0/information"), b"Model: \t\t NVIDIA A10G\n");
        write(&format!("{GPUS}/0000:00:1f.0/information"), b"Model: \t\t NVIDIA A10G\nGPU Excluded:\t Yes\n");
        assert_eq!(code().await, Code::GpuCount);
    }
}
