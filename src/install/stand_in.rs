//! The stand-in for `dpkg-deb`: while the pipeline installs, a copy of this program lies under that name first in
//! dpkg's search path. dpkg calls it with the name of an archive; the archive is a placeholder, and the agent, asked
//! through a socket, says which file to take in its place as soon as that is ready. Then the real program takes over.
//!
//! A second part is to wait: apt calls it before any other program that looks at archives (debconf asks for the
//! questions of all packages before dpkg starts), and it ends when every package is verified. The placeholders have
//! their control data by then.
//!
//! When the agent is gone, so is the socket's other end: the stand-in fails at once, dpkg stops at a package that it
//! has not begun, and gives its lock back.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::stage::Stage;
use super::unpack::{Handle, Ready};
use crate::error::{Error, Result};
use crate::host::exec::{Call, Output};
use crate::host::fault::{self, Kind};
use crate::host::{Host, paths};

/// What is stood in for.
const DPKG_DEB: &str = "dpkg-deb";
/// Waits until every package is verified.
const WAIT: &str = "wait-for-packages";
/// The stand-ins' directory, below the stage.
const DIRECTORY: &str = "bin";
const SOCKET: &str = "socket";
/// Tells a stand-in where its agent listens.
const VARIABLE: &str = "GPU_BOOTSTRAP_STAGE";
/// Where programs are looked for behind the stand-ins; dpkg's own default.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What dpkg-deb leaves with when something is wrong.
const FAILED: i32 = 2;
/// How soon the listener notices that it is to end.
const POLL_MS: u16 = 100;

/// Answers: take the file as it is; take another; give up.
const AS_IT_IS: u8 = b'=';
const ANOTHER: u8 = b'>';
const GIVE_UP: u8 = b'!';

/// If this process was started under the name of one of the programs, plays its part and does not return.
pub fn play_if_called() {
    let name = std::env::args_os().next().unwrap_or_default();
    let name = Path::new(&name).file_name().unwrap_or_default().to_owned();
    let part: fn() -> String = match name.to_str() {
        Some(DPKG_DEB) => play,
        Some(WAIT) => wait,
        _ => return,
    };
    let error = part();
    let _ = writeln!(io::stderr(), "{}: {error}", name.display());
    std::process::exit(FAILED);
}

/// Returns only on failure.
fn wait() -> String {
    let stage = std::env::var_os(VARIABLE).map(PathBuf::from).unwrap_or_default();
    match ask(&stage, Path::new("")) {
        Ok(_) => std::process::exit(0),
        Err(why) => why,
    }
}

/// Replaces the arguments that name archives of the agent's and becomes the real program; returns only on failure.
fn play() -> String {
    let stage = std::env::var_os(VARIABLE).map(PathBuf::from);
    let mut command = match real(stage.as_deref()) {
        Some(real) => Command::new(real),
        None => return format!("there is no {DPKG_DEB} in {PATH}"),
    };
    for argument in std::env::args_os().skip(1) {
        let archive = stage.as_deref().filter(|_| argument.as_bytes().ends_with(b".deb"));
        // apt names archives by links in a directory of its own. What is not there is dpkg's to complain about.
        let archive = archive.and_then(|stage| Some((stage, fs::canonicalize(&argument).ok()?)));
        match archive.map(|(stage, file)| ask(stage, &file)) {
            None | Some(Ok(None)) => command.arg(argument),
            Some(Ok(Some(other))) => command.arg(other),
            Some(Err(why)) => return why,
        };
    }
    match fault::point(Kind::Exec, DPKG_DEB) {
        Ok(()) => format!("cannot be run: {}", command.exec()),
        Err(e) => format!("cannot be run: {e}"),
    }
}

/// The real program.
fn real(stage: Option<&Path>) -> Option<PathBuf> {
    let ours = stage.map(|s| s.join(DIRECTORY));
    let path = std::env::var("PATH").unwrap_or_default();
    let all = path.split(':').chain(PATH.split(':')).map(Path::new);
    let candidates = all.filter(|d| d.is_absolute() && Some(*d) != ours.as_deref()).map(|d| d.join(DPKG_DEB));
    candidates.into_iter().find(|p| p.is_file())
}

/// Asks the agent about an archive, or, by an empty path, about all. `None`: take it as it is.
fn ask(stage: &Path, file: &Path) -> std::result::Result<Option<PathBuf>, String> {
    let gone = |e: io::Error| format!("the agent that prepares {} is gone: {e}", file.display());
    let mut socket = fault::point(Kind::Socket, file)
        .and_then(|()| UnixStream::connect(stage.join(SOCKET)))
        .map_err(gone)?;
    socket.write_all(file.as_os_str().as_bytes()).map_err(gone)?;
    socket.shutdown(std::net::Shutdown::Write).map_err(gone)?;
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).map_err(gone)?;
    let rest = || std::ffi::OsString::from_vec(answer[1..].to_vec());
    match answer.first() {
        Some(&AS_IT_IS) => Ok(None),
        Some(&ANOTHER) => Ok(Some(rest().into())),
        Some(&GIVE_UP) => Err(format!("{}: {}", file.display(), rest().to_string_lossy())),
        _ => Err(format!("the agent that prepares {} is gone", file.display())),
    }
}

/// The agent's side: answers stand-ins until it is dropped.
pub(super) struct Server {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens. `archives`: paths inside the root, as a stand-in sees them, and which package each is.
    pub(super) fn start(stage: &Stage, archives: HashMap<PathBuf, usize>, unpacker: Handle) -> Result<Self> {
        let directory = File::open(stage.outside()).map_err(|e| Error::io("open", stage.outside(), e))?;
        // By descriptor: a socket's path may have 107 bytes only.
        let short = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())).join(SOCKET);
        let listener = fault::point(Kind::Socket, stage.outside())
            .and_then(|()| UnixListener::bind(short))
            .map_err(|e| Error::io("listen in", stage.outside(), e))?;
        listener.set_nonblocking(true).map_err(|e| Error::io("listen in", stage.outside(), e))?;
        let stop = Arc::new(AtomicBool::new(false));
        let (ended, archives) = (stop.clone(), Arc::new(archives));
        let thread = std::thread::spawn(move || listen(&listener, &archives, &unpacker, &ended));
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // it does not panic
        }
    }
}

fn listen(
    listener: &UnixListener,
    archives: &Arc<HashMap<PathBuf, usize>>,
    unpacker: &Handle,
    stop: &AtomicBool,
) {
    while !stop.load(Ordering::Acquire) {
        let mut waiting = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        // Interrupted or not: the loop looks again.
        let _ = poll(&mut waiting, PollTimeout::from(POLL_MS));
        while let Ok((connection, _)) = listener.accept() {
            let (archives, unpacker) = (archives.clone(), unpacker.clone());
            // One at a time asks, as a rule; each may wait for long. A thread ends with its answer, at the latest
            // when the unpacker ends.
            std::thread::spawn(move || answer(connection, &archives, &unpacker));
        }
    }
}

fn answer(mut connection: UnixStream, archives: &HashMap<PathBuf, usize>, unpacker: &Handle) {
    let mut question = Vec::new();
    let asked = connection.set_nonblocking(false).and_then(|()| connection.read_to_end(&mut question));
    if asked.is_err() {
        return; // whoever asked is gone
    }
    let path = PathBuf::from(OsStr::from_bytes(&question));
    let about_all = question.is_empty().then(|| unpacker.wait_verified());
    let about_one = archives.get(&path).map(|package| unpacker.wait_ready(*package));
    let mut reply = match about_one {
        None => match about_all {
            Some(Err(why)) => [&[GIVE_UP], why.as_bytes()].concat(),
            Some(Ok(())) | None => vec![AS_IT_IS],
        },
        Some(Ok(Ready::Stub(inside) | Ready::Original(inside, _))) => {
            [&[ANOTHER], inside.as_bytes()].concat()
        }
        Some(Err(why)) => [&[GIVE_UP], why.as_bytes()].concat(),
    };
    reply.truncate(4096);
    // Whoever asked may be gone.
    let _ = fault::point(Kind::Socket, &path).and_then(|()| connection.write_all(&reply));
}

/// Puts the stand-ins into the stage. False where they cannot be executed there (noexec, `SELinux`, fapolicyd).
pub(super) async fn install(host: &Host, stage: &Stage, program: &Path) -> Result<bool> {
    let directory = stage.outside().join(DIRECTORY);
    fault::point(Kind::MakeDir, &directory)
        .and_then(|()| fs::create_dir(&directory))
        .map_err(|e| Error::io("make", &directory, e))?;
    let first = directory.join(DPKG_DEB);
    fault::point(Kind::Write, &first)
        .and_then(|()| fs::copy(program, &first))
        .map_err(|e| Error::io("copy this program to", &first, e))?;
    fault::point(Kind::Mode, &first)
        .and_then(|()| fs::set_permissions(&first, Permissions::from_mode(0o700)))
        .map_err(|e| Error::io("chmod", &first, e))?;
    let wait = directory.join(WAIT);
    fault::point(Kind::Link, &wait)
        .and_then(|()| fs::hard_link(&first, &wait))
        .map_err(|e| Error::io("link", &wait, e))?;
    // The stand-in starts the real program, which says its version: all that dpkg will need of both.
    // By its path: a search for its name would pass over what cannot be executed.
    let path = format!("{}/{DIRECTORY}/{DPKG_DEB}", paths::STAGE_DIR);
    let call = call(Call::new(&path).args(["--version"]));
    for _ in 0..BUSY_ATTEMPTS {
        let tried = host.exec.output(&call).await;
        if !is_busy(&tried) {
            return Ok(tried.is_ok_and(|output| output.ok()));
        }
        tokio::time::sleep(BUSY_WAIT).await;
    }
    Ok(false)
}

/// A child that another thread has just forked holds every open file until it executes its program, and so for a moment
/// the copy that was being written: nobody can execute that meanwhile.
fn is_busy(tried: &Result<Output>) -> bool {
    match tried {
        Ok(output) => !output.ok() && output.tail().contains(TEXT_BUSY), // of chroot, where the root is another one
        Err(error) => error.causes().iter().any(|cause| cause.contains(TEXT_BUSY)),
    }
}

const BUSY_ATTEMPTS: u32 = 40;
const BUSY_WAIT: Duration = Duration::from_millis(25);
/// `ETXTBSY` in the C library's words.
const TEXT_BUSY: &str = "Text file busy";

/// The call in whose search path the stand-ins come first.
pub(super) fn call(call: Call) -> Call {
    fault::pass_on(call.env("PATH", search_path()).env(VARIABLE, paths::STAGE_DIR))
}

fn search_path() -> String {
    format!("{}/{DIRECTORY}:{PATH}", paths::STAGE_DIR)
}

/// apt's options: the search path that it sets for dpkg, and the wait before any other program.
pub(super) fn options() -> [String; 4] {
    let wait = format!("DPkg::Pre-Invoke::={}/{DIRECTORY}/{WAIT}", paths::STAGE_DIR);
    ["-o".to_owned(), format!("DPkg::Path={}", search_path()), "-o".to_owned(), wait]
}
