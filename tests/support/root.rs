//! Disposable Debian or Ubuntu roots of this machine's own release, made by mmdebstrap from this machine's own
//! apt sources. The base is made once and kept as a tar file; each test unpacks its own copy.
#![allow(dead_code, reason = "shared between test files, not each of which uses all of it")]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// Part of the kept file's name: raise it when the recipe below changes.
const RECIPE: &str = "base-1";

/// A root of its own, removed at the end.
pub(crate) struct Root {
    dir: tempfile::TempDir,
}

impl Drop for Root {
    fn drop(&mut self) {
        // Lets the directory be removed; a root on disk has nothing mounted.
        let _ = nix::mount::umount2(self.dir.path(), nix::mount::MntFlags::MNT_DETACH);
    }
}

impl Root {
    /// This machine's own release.
    pub(crate) fn new() -> Self {
        Self::of(&codename(), &[])
    }

    /// This machine's own release, with further packages.
    pub(crate) fn with(packages: &[&str]) -> Self {
        Self::of(&codename(), packages)
    }

    /// A release by its codename, with further packages.
    pub(crate) fn of(codename: &str, packages: &[&str]) -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "this test installs packages into a disposable root and needs root: run the tests as root"
        );
        few_descriptors();
        let dir = tempfile::Builder::new().prefix("root-").tempdir_in(cache_dir()).unwrap();
        in_memory(dir.path());
        run(Command::new("tar")
            .args(["--numeric-owner", "-xf"])
            .arg(base(codename, packages))
            .arg("-C")
            .arg(dir.path()));
        // mkdtemp makes 0700; apt's unprivileged user must get through.
        fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        Self { dir }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Where a path of the root lies.
    pub(crate) fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join(path.trim_start_matches('/'))
    }

    pub(crate) fn write(&self, path: &str, content: &str) {
        let to = self.at(path);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::write(to, content).unwrap();
    }

    pub(crate) fn read(&self, path: &str) -> String {
        fs::read_to_string(self.at(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
    }

    /// A program inside the root.
    pub(crate) fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new("chroot");
        command.arg(self.path()).arg(program).args(args);
        command
            .env("DEBIAN_FRONTEND", "noninteractive")
            .env("LC_ALL", "C.UTF-8")
            .stdin(std::process::Stdio::null());
        command
    }

    /// Runs a program inside the root; it must succeed.
    pub(crate) fn run(&self, program: &str, args: &[&str]) -> String {
        run(&mut self.command(program, args))
    }
}

/// Mounts a tmpfs for this thread and its children alone, so that dpkg's many fsyncs cost nothing; it vanishes
/// with the thread. Where namespaces are not allowed, the disk has to do.
fn in_memory(dir: &Path) {
    let none: Option<&str> = None;
    let _ = unshare(CloneFlags::CLONE_NEWNS)
        .and_then(|()| mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none))
        .and_then(|()| mount(Some("tmpfs"), dir, Some("tmpfs"), MsFlags::empty(), Some("size=1g,mode=0755")));
}

/// Without /proc, apt closes every possible descriptor one by one in each child: a second each where a million
/// are allowed.
fn few_descriptors() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard.min(1024), hard).unwrap();
}

/// Where the base is kept and roots are unpacked.
fn cache_dir() -> PathBuf {
    let dir = std::env::var_os("GPU_BOOTSTRAP_TEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    fs::create_dir_all(&dir).unwrap();
    dir
}

/// The kept base, made if it is not there. Other test processes wait meanwhile.
fn base(codename: &str, packages: &[&str]) -> PathBuf {
    let name = [&[RECIPE, codename], packages].concat().join("+");
    let kept = cache_dir().join(format!("{name}.tar"));
    let lock = File::create(cache_dir().join(format!("{name}.lock"))).unwrap();
    let _lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, e)| e).unwrap();
    if !kept.exists() {
        let new = cache_dir().join(format!("{name}.new.tar"));
        let mut command = Command::new("mmdebstrap");
        command.args(["--variant=minbase", "--mode=root", "--aptopt=Acquire::Languages \"none\""]);
        command.arg(format!("--include={}", [&["gpgv"], packages].concat().join(",")));
        command.args(["man", "doc", "locale"].map(|d| format!("--dpkgopt=path-exclude=/usr/share/{d}/*")));
        command.arg("--customize-hook=rm -rf \"$1\"/etc/apt/sources.list \"$1\"/var/lib/apt/lists/*");
        command.arg(codename).arg(&new).args(sources(codename));
        run(&mut command);
        fs::rename(new, &kept).unwrap();
    }
    kept
}

fn codename() -> String {
    let release = fs::read_to_string("/etc/os-release").unwrap();
    let line = release
        .lines()
        .find_map(|l| l.strip_prefix("VERSION_CODENAME="))
        .expect("a released Debian or Ubuntu");
    line.trim_matches('"').to_owned()
}

/// This machine's own sources of its release; none lets mmdebstrap take its default.
fn sources(codename: &str) -> Vec<String> {
    let format = "$(ORIGIN) $(RELEASE) $(COMPONENT) $(REPO_URI)";
    let targets =
        run(Command::new("apt-get").args(["indextargets", "--format", format, "Created-By: Packages"]));
    let mut sources: Vec<String> = targets
        .lines()
        .filter_map(|line| match line.split(' ').collect::<Vec<_>>()[..] {
            ["Debian" | "Ubuntu", release, "main", uri] if release.starts_with(codename) => {
                Some(format!("deb {uri} {release} main"))
            }
            _ => None,
        })
        .collect();
    sources.sort();
    sources.dedup();
    sources
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(
        output.status.success(),
        "{command:?} failed:\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}
