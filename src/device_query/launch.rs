//! One run of the probe: a process of its own with a deadline. Whatever it does (hang, crash, become unkillable,
//! leave a grandchild that holds its output open), the agent gets what was printed and goes on.

use std::ffi::CString;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::prctl;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, chdir, chroot, fexecve};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};

use super::image::Image;
use super::record::{Record, records};
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::host::fault::{self, Kind};

/// What the driver's libraries see. Nothing is inherited: `LD_PRELOAD` or `CUDA_VISIBLE_DEVICES` of the caller
/// must not change the answer. No cache of compiled kernels is written anywhere.
const ENVIRONMENT: [&str; 4] = [
    "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME=/nonexistent",
    "CUDA_CACHE_DISABLE=1",
    "CUDA_DEVICE_ORDER=PCI_BUS_ID",
];

/// How long a killed process may take to vanish. One that waits for a dead device in the kernel never does.
const AFTER_KILL: Duration = Duration::from_secs(2);
/// How long the output may stay open when the process is gone: a grandchild may hold it for ever.
const AFTER_END: Duration = Duration::from_millis(50);
/// More than any machine's records.
const MOST_OUTPUT: usize = 4 << 20;
/// The end of what libraries print for people; one that prints without end is cut here.
const MOST_COMPLAINT: usize = 64 << 10;
/// Of that, so many letters stand in evidence.
const MOST_WORDS: usize = 400;

/// The probe's last record, where it comes to its end.
const END: &str = "end";

/// How a run of the probe ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "how", content = "with")]
pub enum Ended {
    /// By itself, with this status.
    Exited(i32),
    /// By a signal that nobody here sent.
    Signal(i32),
    /// Killed at its deadline of so many milliseconds.
    Deadline(u64),
    /// At its deadline it could not even be killed.
    Unkillable(u64),
}

impl Ended {
    /// In words.
    pub fn words(self) -> String {
        match self {
            Self::Exited(status) => format!("exited with status {status}"),
            Self::Signal(number) => {
                let name = Signal::try_from(number).map_or("an unknown signal", Signal::as_str);
                format!("was ended by {name}")
            }
            Self::Deadline(ms) => format!("did not answer within {ms} ms and was killed"),
            Self::Unkillable(ms) => {
                format!("did not answer within {ms} ms and cannot be killed: it waits inside the kernel")
            }
        }
    }
}

/// What a run of the probe left behind.
#[derive(Clone, Debug, Serialize)]
pub struct Launch {
    /// The probe's arguments.
    pub arguments: Vec<String>,
    /// How the probe could be executed.
    pub launched_from: String,
    /// How it ended.
    pub ended: Ended,
    /// Whether it came to its end, whatever the driver answered.
    pub finished: bool,
    /// The last stage before the end: where it hung or crashed, if it did.
    pub last_stage: String,
    /// Wall clock time.
    pub milliseconds: f64,
    /// The last lines that the libraries printed to standard error.
    pub stderr: String,
    /// What it printed.
    #[serde(skip)]
    pub records: Vec<Record>,
}

impl Launch {
    /// Whether it came to its end.
    pub fn complete(&self) -> bool {
        self.ended == Ended::Exited(0) && self.finished
    }
}

/// Runs the probe with `arguments` below the host's root, as `user` and on `cpus` where they are given, for `limit`
/// at most.
pub(super) async fn launch(
    host: &Host,
    arguments: &[String],
    user: Option<u32>,
    cpus: Option<CpuSet>,
    limit: Duration,
) -> Result<Launch> {
    let mut whole: Vec<String> = user.map(|u| format!("--user={u}")).into_iter().collect();
    whole.extend(arguments.iter().cloned());
    let mut denied = Vec::new();
    for image in Image::ways(&host.files) {
        let started = image.and_then(|image| Ok((start(&image, host.files.root(), &whole, cpus)?, image)));
        match started {
            Ok((child, image)) => return Ok(watch(child, &image, arguments, limit).await),
            Err(e) => denied.push(e.to_string()),
        }
    }
    denied.dedup();
    Err(Error::new(Code::ProbeNotStarted, "the GPU probe cannot be started from memory nor from any directory")
        .with_hint("allow execution in one of /run, /var/lib, /tmp, /dev/shm, /root (noexec, SELinux, fapolicyd), and check that glibc is there")
        .because(denied.join("; ")))
}

fn start(image: &Image, root: &Path, arguments: &[String], cpus: Option<CpuSet>) -> io::Result<Child> {
    let mut command = match image {
        // Replaced before it is executed: see below.
        Image::Memory(_) => Command::new("/gpu-probe"),
        Image::File { inside, .. } => Command::new(inside),
    };
    command.args(arguments).env_clear();
    command.envs(ENVIRONMENT.iter().filter_map(|e| e.split_once('=')));
    command.stdin(nothing()?).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let root = (root != Path::new("/")).then(|| root.to_path_buf());
    let memory = match image {
        Image::Memory(fd) => Some(fd.as_fd().try_clone_to_owned()?),
        Image::File { .. } => None,
    };
    let argv = c_strings(std::iter::once("gpu-probe").chain(arguments.iter().map(String::as_str)))?;
    let environment = c_strings(ENVIRONMENT)?;
    let before_exec = move || {
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        if let Some(cpus) = &cpus {
            // Refused where a container may use none of these: the probe then is slower, not wrong.
            let _ = sched_setaffinity(Pid::from_raw(0), cpus);
        }
        if let Some(root) = &root {
            chroot(root)?;
        }
        chdir("/")?;
        match &memory {
            // By descriptor: inside the root there may be no /proc to name it by.
            Some(fd) => fexecve(fd, &argv, &environment).map(|_| ()).map_err(io::Error::from),
            None => Ok(()),
        }
    };
    run_before_exec(&mut command, before_exec);
    fault::point(Kind::Exec, arguments.last().map_or("", String::as_str))?;
    let child = command.spawn()?;
    fault::child(child.id());
    Ok(child)
}

/// Standard input that has ended. `/dev/null` may not be there.
fn nothing() -> io::Result<Stdio> {
    Ok(io::pipe()?.0.into())
}

#[expect(unsafe_code, reason = "the parent-death signal, chroot and fexecve belong between fork and exec")]
fn run_before_exec(command: &mut Command, work: impl FnMut() -> io::Result<()> + Send + Sync + 'static) {
    // SAFETY: the closure makes system calls and, in fexecve, two small allocations; glibc keeps its heap usable
    // in the child of a fork. It touches no lock of this program's.
    unsafe { command.pre_exec(work) };
}

fn c_strings<'a>(words: impl IntoIterator<Item = &'a str>) -> io::Result<Vec<CString>> {
    words.into_iter().map(|w| CString::new(w).map_err(io::Error::from)).collect()
}

async fn watch(mut child: Child, image: &Image, arguments: &[String], limit: Duration) -> Launch {
    let began = Instant::now();
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (mut printed, mut complained) = (Vec::new(), Vec::new());
    let ended = {
        let reading = async { tokio::join!(head(stdout, &mut printed), tail(stderr, &mut complained)) };
        let ending = end_of(&mut child, limit);
        tokio::pin!(reading, ending);
        let mut all_read = false;
        let ended = loop {
            tokio::select! {
                ended = &mut ending => break ended,
                _ = &mut reading, if !all_read => all_read = true,
            }
        };
        if !all_read {
            // Too late is no failure: what was read until then is kept.
            let _ = tokio::time::timeout(AFTER_END, reading).await;
        }
        ended
    };
    let records = records(&printed);
    Launch {
        arguments: arguments.to_vec(),
        launched_from: image.place(),
        ended,
        finished: records.last().is_some_and(|r| r.stage == END),
        last_stage: records.iter().rfind(|r| r.stage != END).map(|r| r.stage.clone()).unwrap_or_default(),
        milliseconds: began.elapsed().as_secs_f64() * 1e3,
        stderr: last_lines(&complained),
        records,
    }
}

async fn end_of(child: &mut Child, limit: Duration) -> Ended {
    let ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
    if let Ok(status) = tokio::time::timeout(limit, child.wait()).await {
        return of_status(&status);
    }
    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
        // With everything it started. It may have ended in this moment: nothing to kill then.
        let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
    }
    match tokio::time::timeout(AFTER_KILL, child.wait()).await {
        Ok(_) => Ended::Deadline(ms),
        Err(_) => Ended::Unkillable(ms),
    }
}

fn of_status(status: &io::Result<ExitStatus>) -> Ended {
    match status {
        Ok(status) => match (status.code(), status.signal()) {
            (Some(code), _) => Ended::Exited(code),
            (None, signal) => Ended::Signal(signal.unwrap_or_default()),
        },
        // Somebody else took the status (SIGCHLD ignored): the records tell how far it came.
        Err(_) => Ended::Exited(0),
    }
}

/// The first bytes of a stream that is read to its end.
async fn head(stream: Option<impl AsyncRead + Unpin>, to: &mut Vec<u8>) {
    drain(stream, |chunk| to.extend_from_slice(&chunk[..chunk.len().min(MOST_OUTPUT - to.len())])).await;
}

/// The last bytes of a stream that is read to its end.
async fn tail(stream: Option<impl AsyncRead + Unpin>, to: &mut Vec<u8>) {
    drain(stream, |chunk| {
        to.extend_from_slice(chunk);
        to.drain(..to.len().saturating_sub(MOST_COMPLAINT));
    })
    .await;
}

async fn drain(stream: Option<impl AsyncRead + Unpin>, mut keep: impl FnMut(&[u8])) {
    let Some(mut stream) = stream else { return };
    let mut chunk = vec![0; 16 * 1024];
    // A read error means that the other side is gone; what came before is what there is.
    while let Ok(n @ 1..) = stream.read(&mut chunk).await {
        keep(&chunk[..n]);
    }
}

/// The last four lines, and of them the last letters.
fn last_lines(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<_> = text.lines().filter(|l| !l.trim().is_empty()).collect();
    let last = lines[lines.len().saturating_sub(4)..].join("\n");
    match last.char_indices().rev().nth(MOST_WORDS) {
        Some((at, _)) => format!("…{}", &last[at..]),
        None => last,
    }
}
