//! Running programs inside the root: closed standard input, a scrubbed environment, a time limit, and output
//! that is kept for the error message.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

use super::fault;
use crate::error::{Code, Error, Result};

/// Output kept per stream; a program that prints more is read on, and the middle is dropped.
const KEEP_OUTPUT: usize = 1 << 20;

/// How long output is waited for after the program has ended: what it wrote itself lies in the pipe already.
const LINGER: Duration = Duration::from_secs(1);

/// How long a killed program is waited for. One that waits for a disk (or a driver) may take longer to go.
const GONE: Duration = Duration::from_secs(2);

/// How often [`Exec::logged`]'s listener is called.
const FOLLOW: Duration = Duration::from_millis(100);

/// How long a user's script may take to end when it is told to.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Bytes of one line that are handed to [`Exec::stream`]'s listener; a longer line is cut.
const KEEP_LINE: usize = 4096;

/// Runs programs, below the same root as [`super::files::Files`].
#[derive(Clone, Debug)]
pub struct Exec {
    root: PathBuf,
}

/// A program call: arguments as a list, never a shell string.
#[derive(Clone, Debug)]
pub struct Call {
    program: String,
    args: Vec<String>,
    env: Vec<(String, String)>,
    limit: Duration,
    status_descriptor: bool,
    input: Option<String>,
}

/// A program's standard streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Output,
    /// Standard error.
    Error,
}

/// What a program left behind.
#[derive(Clone, Debug)]
pub struct Output {
    /// Exit status; 128 + signal when killed.
    pub status: i32,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
}

impl Call {
    /// A call of `program` (found in the fixed PATH), limited to 60 s unless [`Call::limit`] says otherwise.
    pub fn new(program: &str) -> Self {
        Self {
            program: program.into(),
            args: Vec::new(),
            env: Vec::new(),
            limit: Duration::from_mins(1),
            status_descriptor: false,
            input: None,
        }
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<I: IntoIterator<Item = S>, S: Into<String>>(mut self, args: I) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets an environment variable. Nothing else is inherited but what [`Exec`] sets.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// The time after which the program is killed.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Gives the program a short text (less than a pipe holds, 64 KB) as its standard input, which arguments are not for:
    /// everybody can read those.
    #[must_use]
    pub fn input(mut self, text: String) -> Self {
        self.input = Some(text);
        self
    }

    /// Gives the program its standard output a second time, as descriptor 3. apt closes the descriptor of
    /// `APT::Status-Fd` in the programs that it starts: were that 1, maintainer scripts would fail at their
    /// first word (Debian's `adduser` does).
    #[must_use]
    pub fn status_descriptor(mut self) -> Self {
        self.status_descriptor = true;
        self
    }

    /// The argument list as one line for messages.
    pub fn line(&self) -> String {
        std::iter::once(&self.program).chain(&self.args).cloned().collect::<Vec<_>>().join(" ")
    }
}

impl Output {
    /// Whether it exited with 0.
    pub fn ok(&self) -> bool {
        self.status == 0
    }

    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// The last lines of standard error (or output), for a cause chain.
    pub fn tail(&self) -> String {
        let text = String::from_utf8_lossy(if self.stderr.is_empty() { &self.stdout } else { &self.stderr });
        let lines: Vec<_> = text.lines().filter(|l| !l.trim().is_empty()).collect();
        lines[lines.len().saturating_sub(8)..].join("\n")
    }
}

impl Exec {
    /// Runs programs below `root`.
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// Runs the call to its end and returns its output, whatever the exit status. Fails when the program
    /// cannot be started (`exec`) or exceeds its limit (`exec-timeout`; its process group is killed).
    pub async fn output(&self, call: &Call) -> Result<Output> {
        self.stream(call, |_| ()).await
    }

    /// Like [`Exec::output`]; `on_line` sees each whole line of standard output as it comes (progress).
    pub async fn stream(&self, call: &Call, mut on_line: impl FnMut(&str)) -> Result<Output> {
        self.watch(call, |stream, line| {
            if stream == Stream::Output {
                on_line(line);
            }
        })
        .await
    }

    /// Like [`Exec::stream`]; `on_line` sees the lines of both streams.
    pub async fn watch(&self, call: &Call, on_line: impl FnMut(Stream, &str)) -> Result<Output> {
        let mut command = self.command(call);
        let stdin = if call.input.is_some() { Stdio::piped() } else { Stdio::null() };
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).stdin(stdin);
        command.process_group(0);
        let child = fault::exec(call)
            .and_then(|()| command.spawn())
            .map_err(|e| Error::new(Code::Exec, format!("cannot run {}", call.line())).because(e))?;
        fault::child(child.id());
        // Dropped on a time-out, and when the run is interrupted: no grandchild is left to work unseen.
        let mut group = Group { child, grace: Duration::ZERO };
        if let (Some(text), Some(mut stdin)) = (&call.input, group.child.stdin.take()) {
            // A program that does not read it says so by its status.
            let _ = stdin.write_all(text.as_bytes()).await;
        }
        let mut out = group.child.stdout.take();
        let mut err = group.child.stderr.take();
        let on_line = Mutex::new(on_line);
        let see = |stream, line: &str| (on_line.lock().unwrap_or_else(PoisonError::into_inner))(stream, line);
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let work = async {
            let drained = async {
                tokio::join!(
                    drain_lines(&mut out, &mut stdout, |line| see(Stream::Output, line)),
                    drain_lines(&mut err, &mut stderr, |line| see(Stream::Error, line))
                )
            };
            tokio::pin!(drained);
            // A daemon that a maintainer script leaves behind may hold the pipes for as long as it lives.
            tokio::select! {
                _ = &mut drained => group.child.wait().await,
                status = group.child.wait() => {
                    let _ = tokio::time::timeout(LINGER, &mut drained).await;
                    status
                }
            }
        };
        let Ok(status) = tokio::time::timeout(call.limit, work).await else {
            return Err(Error::new(
                Code::ExecTimeout,
                format!("{} did not end within {} s", call.line(), call.limit.as_secs()),
            ));
        };
        let status = status
            .map_err(|e| Error::new(Code::Exec, format!("cannot wait for {}", call.line())).because(e))?;
        Ok(Output { status: code(status), stdout, stderr })
    }

    /// Runs a user's own program to its end, however long that takes, and returns its exit status. Standard output and
    /// standard error are files, which what it leaves running may go on writing to; `meanwhile` is called again and again,
    /// so that somebody reads them. Fails when the program cannot be started (`exec`).
    pub async fn logged(
        &self,
        call: &Call,
        [out, err]: [std::fs::File; 2],
        mut meanwhile: impl FnMut(),
    ) -> Result<i32> {
        let mut command = self.command(call);
        command.stdout(out).stderr(err).stdin(Stdio::null()).current_dir("/").process_group(0);
        let child = fault::exec(call)
            .and_then(|()| command.spawn())
            .map_err(|e| Error::new(Code::Exec, format!("cannot run {}", call.line())).because(e))?;
        fault::child(child.id());
        let mut group = Group { child, grace: LAST_WORDS };
        let status = loop {
            tokio::select! {
                status = group.child.wait() => break status,
                () = tokio::time::sleep(FOLLOW) => meanwhile(),
            }
        };
        status
            .map(code)
            .map_err(|e| Error::new(Code::Exec, format!("cannot wait for {}", call.line())).because(e))
    }

    /// Like [`Exec::output`], and a non-zero exit status is an error (`exec`) that carries the last lines printed.
    pub async fn run(&self, call: &Call) -> Result<Output> {
        let output = self.output(call).await?;
        if output.ok() {
            return Ok(output);
        }
        Err(Error::new(Code::Exec, format!("{} failed with status {}", call.line(), output.status))
            .because(output.tail()))
    }

    /// The command with the root and the environment applied; standard streams are the caller's to set.
    pub fn command(&self, call: &Call) -> Command {
        // The shell sees one fixed sentence; the call's own words reach it as arguments only.
        let wrapper: &[&str] =
            if call.status_descriptor { &["sh", "-c", "exec \"$@\" 3>&1", "sh"] } else { &[] };
        let words = wrapper.iter().copied().chain([call.program.as_str()]);
        let mut words = words.chain(call.args.iter().map(String::as_str));
        let mut command = if self.root == std::path::Path::new("/") {
            Command::new(words.next().unwrap_or_default())
        } else {
            let mut c = Command::new("chroot");
            c.arg(&self.root);
            c
        };
        command.args(words);
        // The same however the agent was started; chroot goes there by itself.
        command.current_dir("/");
        // A fixed environment: LD_*, APT_CONFIG, DPKG_* and DEBCONF_* of the caller must not steer what root runs.
        command.env_clear();
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.env("HOME", "/root").env("LC_ALL", "C.UTF-8");
        command.envs(call.env.iter().map(|(k, v)| (k, v)));
        command
    }
}

/// Reads to the end of the stream; what comes is kept in `kept` as it comes.
async fn drain_lines(
    stream: &mut Option<impl tokio::io::AsyncRead + Unpin>,
    kept: &mut Vec<u8>,
    mut on_line: impl FnMut(&str),
) {
    let Some(stream) = stream else { return };
    let mut line = Vec::new();
    let mut chunk = vec![0; 16 * 1024];
    // A read error on a pipe means that the other side is gone; what came before is what there is.
    while let Ok(n @ 1..) = stream.read(&mut chunk).await {
        kept.extend_from_slice(&chunk[..n]);
        if kept.len() > KEEP_OUTPUT {
            kept.drain(KEEP_OUTPUT / 4..kept.len() - KEEP_OUTPUT / 2);
        }
        for &byte in &chunk[..n] {
            if byte == b'\n' {
                on_line(&String::from_utf8_lossy(&line));
                line.clear();
            } else if line.len() < KEEP_LINE {
                line.push(byte);
            }
        }
    }
}

/// 128 + signal when killed.
fn code(status: std::process::ExitStatus) -> i32 {
    status
        .code()
        .unwrap_or_else(|| 128 + std::os::unix::process::ExitStatusExt::signal(&status).unwrap_or_default())
}

/// A running program that leads its process group; dropped before its end, it takes the whole group with it. A program
/// that ended by itself leaves behind what it left running on purpose (a daemon).
struct Group {
    child: Child,
    /// How long it may take to end by itself when it is told to; nothing where it is killed at once.
    grace: Duration,
}

impl Drop for Group {
    fn drop(&mut self) {
        let Some(pid) = self.child.id().and_then(|p| i32::try_from(p).ok()) else { return };
        let group = Pid::from_raw(pid);
        if !self.grace.is_zero() {
            let _ = killpg(group, Signal::SIGTERM);
            let deadline = Instant::now() + self.grace;
            while Instant::now() < deadline && matches!(self.child.try_wait(), Ok(None)) {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        // The group may be gone already: nothing to do then.
        let _ = killpg(group, Signal::SIGKILL);
        // A killed program keeps its locks until it is gone: whoever hears of its end may take them at once.
        let deadline = Instant::now() + GONE;
        while Instant::now() < deadline {
            // It stays in its group until it is waited for; what it had started is waited for by process 1, in its time.
            let _ = self.child.try_wait();
            if killpg(group, None).is_err() || !works(group) {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Whether a process of the group is more than a zombie, which keeps nothing; `true` when it can't be told.
fn works(group: Pid) -> bool {
    let Ok(processes) = std::fs::read_dir("/proc") else { return true };
    processes.filter_map(|entry| std::fs::read_to_string(entry.ok()?.path().join("stat")).ok()).any(|stat| {
        // The name before it, in brackets, may contain anything.
        let mut fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
        let (state, _parent, of) = (fields.next(), fields.next(), fields.next());
        !matches!(state, Some("Z" | "X")) && of.and_then(|g| g.parse().ok()) == Some(group.as_raw())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exec() -> Exec {
        Exec::new("/".into())
    }

    #[tokio::test]
    async fn a_time_out_kills_the_whole_group() {
        let dir = tempfile::tempdir().unwrap();
        let mark = dir.path().join("mark");
        let script = format!("(sleep 0.4; touch {}) & wait", mark.display());
        let call = Call::new("sh").args(["-c", &script]).limit(Duration::from_millis(100));
        assert_eq!(exec().output(&call).await.unwrap_err().code(), Code::ExecTimeout);
        tokio::time::sleep(Duration::from_millis(600)).await;
        assert!(!mark.exists());
    }

    #[tokio::test]
    async fn whoever_hears_of_a_time_out_finds_no_lock_of_the_program_held() {
        let dir = tempfile::tempdir().unwrap();
        let lock = dir.path().join("lock");
        // The lock is a grandchild's, and so is the memory that takes its time to be given back.
        let script = format!(
            "flock {} sh -c 'head -c 200000000 /dev/zero | tail -c 200000000 & echo held >{0}; sleep 30'; true",
            lock.display()
        );
        let call = Call::new("sh").args(["-c", &script]).limit(Duration::from_millis(500));
        for _ in 0..5 {
            assert_eq!(exec().output(&call).await.unwrap_err().code(), Code::ExecTimeout);
            let file = std::fs::File::open(&lock).unwrap();
            assert_eq!(std::io::read_to_string(&file).unwrap(), "held\n");
            nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock).unwrap();
        }
    }

    #[tokio::test]
    async fn a_daemon_that_holds_the_output_does_not_hold_the_run() {
        let call = Call::new("sh").args(["-c", "sleep 30 & echo $!"]).limit(Duration::from_secs(20));
        let began = std::time::Instant::now();
        let daemon = exec().run(&call).await.unwrap().text();
        assert!(began.elapsed() < Duration::from_secs(10));
        // It was left running, as dpkg's own caller would leave it.
        let daemon = Pid::from_raw(daemon.trim().parse().unwrap());
        nix::sys::signal::kill(daemon, Signal::SIGKILL).unwrap();
    }

    #[tokio::test]
    async fn the_status_descriptor_is_standard_output_again() {
        let call = Call::new("sh").args(["-c", "echo one; echo \"$1\" >&3", "sh", "$(two) 'x'"]);
        let output = Exec::new("/".into()).run(&call.status_descriptor()).await.unwrap();
        assert_eq!(output.text(), "one\n$(two) 'x'\n");
    }

    #[tokio::test]
    async fn the_environment_is_scrubbed_and_input_is_closed() {
        let call = Call::new("sh").args(["-c", "cat; env"]).env("LANG", "C");
        let out = exec().run(&call).await.unwrap().text();
        assert!(out.contains("LANG=C\n") && out.contains("HOME=/root\n"), "{out}");
        assert!(!out.contains("CARGO"), "{out}");
    }

    #[tokio::test]
    async fn input_comes_by_a_pipe_that_ends() {
        let call = Call::new("sh").args(["-c", "cat; echo \"$# $0\""]).input("secret\n".into());
        assert_eq!(exec().run(&call).await.unwrap().text(), "secret\n0 sh\n");
        assert!(!call.line().contains("secret"));
    }

    #[tokio::test]
    async fn a_failure_carries_the_last_words() {
        let call = Call::new("sh").args(["-c", "echo first >&2; echo last >&2; exit 3"]);
        let error = exec().run(&call).await.unwrap_err();
        assert!(error.message().ends_with("failed with status 3"));
        assert_eq!(error.causes(), ["first\nlast"]);
    }
}
