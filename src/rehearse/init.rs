//! The sandbox's first process: arranges `/proc`, `/sys`, `/dev`, `/run` and `/tmp`, makes the copy its root,
//! and then only reaps. When it ends, the kernel ends everything in the sandbox.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{chdir, pivot_root};

use super::filesystem::{make_dir, mount_tmpfs};
use super::{failed, metadata};
use crate::error::{Error, Result};

/// Below the throw-away directory: what stands in for `/sys/bus/pci`, `/proc/bus/pci` and `/sys/class/dmi/id`.
pub(super) const BUS_DIR: &str = "machine";
pub(super) const DMI_DIR: &str = "machine/dmi-id";

/// Directories of `/sys` that get entries of their own: rebuilt as directories in memory over the real entries,
/// because nothing can be created inside sysfs. The second half names entries that are left out: a rehearsal has no disks.
const REBUILT: &[(&str, &[&str])] =
    &[("class", &["dmi", "block"]), ("bus", &["pci"]), ("module", HIDDEN_MODULES)];
/// A real NVIDIA driver of the host must not be taken for the simulated one.
const HIDDEN_MODULES: &[&str] =
    &["nvidia", "nvidia_uvm", "nvidia_modeset", "nvidia_drm", "nvidia_fs", "nvidia_peermem", "nouveau"];

/// Name, major and minor number.
const DEVICES: &[(&str, u64, u64)] =
    &[("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

/// Makes `dir/root` the root, says `ready` on standard output, and reaps until the sandbox is ended from outside.
pub(super) fn run(dir: &Path) -> Result<u8> {
    // When the sandbox goes, so does everything in here.
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(|e| failed("tie init to the sandbox", e))?;
    unshare(CloneFlags::CLONE_NEWNS).map_err(|e| failed("make the inner mount namespace", e))?;
    let root = dir.join("root");
    proc(&root, dir)?;
    sys(&root, dir)?;
    dev(&root)?;
    bind(&dir.join("run"), &root.join("run"))?;
    for scratch in ["tmp", "var/tmp"] {
        mount_tmpfs(&root.join(scratch), "mode=1777")?;
    }
    nix::unistd::sethostname(metadata::HOST_NAME).map_err(|e| failed("set the host name", e))?;
    enter(&root)?;
    println!("ready");
    std::io::stdout().flush().map_err(|e| failed("report that the sandbox is ready", e))?;
    reap()
}

fn proc(root: &Path, dir: &Path) -> Result<()> {
    let proc = root.join("proc");
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), &proc, Some("proc"), flags, None::<&str>).map_err(|e| failed("mount /proc", e))?;
    // Only what the kernel has can be covered: nothing can be created in /proc.
    if proc.join("bus/pci").exists() {
        bind(&dir.join(BUS_DIR).join("proc-bus-pci"), &proc.join("bus/pci"))?;
    }
    if proc.join("driver").exists() {
        mount_tmpfs(&proc.join("driver"), "mode=0755")?;
    }
    if let Ok(modules) = fs::read_to_string(proc.join("modules")) {
        let kept: String = modules.lines().filter(|l| !is_nvidia(l)).flat_map(|l| [l, "\n"]).collect();
        let file = dir.join(BUS_DIR).join("proc-modules");
        fs::write(&file, kept).map_err(|e| Error::io("write", &file, e))?;
        bind(&file, &proc.join("modules"))?;
    }
    Ok(())
}

fn is_nvidia(line: &str) -> bool {
    line.split(' ').next().is_some_and(|name| HIDDEN_MODULES.contains(&name))
}

fn sys(root: &Path, dir: &Path) -> Result<()> {
    let real = dir.join("sysfs");
    make_dir(&real)?;
    mount(Some("sysfs"), &real, Some("sysfs"), MsFlags::empty(), None::<&str>)
        .map_err(|e| failed("mount /sys", e))?;
    let sys = root.join("sys");
    mount_tmpfs(&sys, "mode=0755")?;
    let rebuilt: Vec<&str> = REBUILT.iter().map(|(name, _)| *name).collect();
    bind_entries(&real, &sys, &rebuilt)?;
    for (name, left_out) in REBUILT {
        make_dir(&sys.join(name))?;
        bind_entries(&real.join(name), &sys.join(name), left_out)?;
    }
    make_dir(&sys.join("class/dmi/id"))?;
    bind(&dir.join(DMI_DIR), &sys.join("class/dmi/id"))?;
    make_dir(&sys.join("bus/pci"))?;
    bind(&dir.join(BUS_DIR).join("sys-bus-pci"), &sys.join("bus/pci"))?;
    umount2(&real, MntFlags::MNT_DETACH).map_err(|e| failed("unmount the real /sys", e))
}

/// Makes every entry of `from` appear in `to`, but those in `left_out`.
fn bind_entries(from: &Path, to: &Path, left_out: &[&str]) -> Result<()> {
    let Ok(entries) = fs::read_dir(from) else { return Ok(()) }; // this kernel has no such directory
    for entry in entries {
        let entry = entry.map_err(|e| Error::io("list", from, e))?;
        let name = entry.file_name();
        if left_out.iter().any(|l| name == *l) {
            continue;
        }
        let (source, target) = (entry.path(), to.join(&name));
        let kind = entry.file_type().map_err(|e| Error::io("stat", &source, e))?;
        if kind.is_dir() {
            make_dir(&target)?;
            bind(&source, &target)?;
        } else if kind.is_symlink() {
            let goal = fs::read_link(&source).map_err(|e| Error::io("read the link", &source, e))?;
            symlink(goal, &target).map_err(|e| Error::io("link", &target, e))?;
        }
        // Files at these places are switches for the kernel; nobody in a rehearsal may turn them.
    }
    Ok(())
}

fn dev(root: &Path) -> Result<()> {
    let dev = root.join("dev");
    mount_tmpfs(&dev, "mode=0755")?;
    for (name, major, minor) in DEVICES {
        let node = dev.join(name);
        match mknod(&node, SFlag::S_IFCHR, Mode::empty(), makedev(*major, *minor)) {
            // The umask may have taken bits away from a mode given above.
            Ok(()) => fs::set_permissions(&node, fs::Permissions::from_mode(0o666))
                .map_err(|e| Error::io("set the mode of", &node, e))?,
            // Root of a user namespace, in a container for example, may make none, but show those that there are.
            Err(Errno::EPERM) => {
                File::create(&node).map_err(|e| Error::io("make", &node, e))?;
                bind(&Path::new("/dev").join(name), &node)?;
            }
            Err(e) => return Err(Error::io("make the device", &node, e.into())),
        }
    }
    for name in ["pts", "shm"] {
        make_dir(&dev.join(name))?;
    }
    let options = Some("newinstance,ptmxmode=0666");
    mount(Some("devpts"), &dev.join("pts"), Some("devpts"), MsFlags::empty(), options)
        .map_err(|e| failed("mount /dev/pts", e))?;
    mount_tmpfs(&dev.join("shm"), "mode=1777")?;
    let links = [
        ("ptmx", "pts/ptmx"),
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ];
    for (name, goal) in links {
        let link = dev.join(name);
        symlink(goal, &link).map_err(|e| Error::io("link", &link, e))?;
    }
    Ok(())
}

fn bind(from: &Path, to: &Path) -> Result<()> {
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .map_err(|e| failed(&format!("bind {} to {}", from.display(), to.display()), e))
}

/// Makes `root` the root of this mount namespace and lets go of everything that was mounted before.
fn enter(root: &Path) -> Result<()> {
    let into = |e| failed(&format!("make {} the root", root.display()), e);
    chdir(root).map_err(into)?;
    pivot_root(".", ".").map_err(into)?; // the old root now lies over the new one …
    umount2(".", MntFlags::MNT_DETACH).map_err(into)?; // … until here
    chdir(&PathBuf::from("/")).map_err(into)
}

/// Waits for orphans, for ever: this process is ended by a signal from outside.
fn reap() -> Result<u8> {
    let mut child_ended = SigSet::empty();
    child_ended.add(Signal::SIGCHLD);
    child_ended.thread_block().map_err(|e| failed("block SIGCHLD", e))?;
    loop {
        while matches!(waitpid(None, Some(WaitPidFlag::WNOHANG)), Ok(status) if status != WaitStatus::StillAlive)
        {
        }
        child_ended.wait().map_err(|e| failed("wait for SIGCHLD", e))?;
    }
}
