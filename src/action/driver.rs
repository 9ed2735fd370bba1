//! What is known about the NVIDIA driver on this machine: the loaded module, the installed libraries, and, when
//! no module is loaded, the specific reason. Shared by `kernel-module` and `device-query`.

use std::path::Path;
use std::time::Duration;

use super::{module_build, module_refusal};
use crate::error::{Code, Error, Result};
use crate::facts::gpu::{driver, module_on_disk};
use crate::facts::os::secure_boot;
use crate::host::Host;
use crate::host::dpkg::compare_versions;
use crate::host::kernel_log;

const VERSION: &str = "/proc/driver/nvidia/version";
/// Longer chains than Debian's four are loops.
const MAX_LINKS: usize = 8;
/// It reads two files.
const MODINFO_LIMIT: Duration = Duration::from_mins(1);

/// Version of the loaded kernel module; `None` when none is loaded.
pub(super) fn module_version(host: &Host) -> Result<Option<String>> {
    let Some(text) = host.files.read_text(VERSION)? else { return Ok(None) };
    match driver::version(&text) {
        Some(driver) => Ok(Some(driver.version)),
        None => Err(Error::new(Code::FactsUnreadable, format!("{VERSION} has no version in it"))),
    }
}

/// Version of the installed user-space driver, from the file that `libcuda.so.1` leads to. `None` when the
/// linker knows no libcuda, or when its file carries no version.
pub(super) fn library_version(host: &Host) -> Result<Option<String>> {
    for library in host.linker_cache()?.into_iter().filter(|l| l.soname == "libcuda.so.1") {
        // One link on Ubuntu; on Debian an alternative and two links more.
        let mut at = library.path;
        for _ in 0..MAX_LINKS {
            let Some(target) = host.files.read_link(&at)? else { break };
            at = at.parent().unwrap_or(Path::new("/")).join(target);
            if let Some(version) = version_in_name(&at) {
                return Ok(Some(version));
            }
        }
    }
    Ok(None)
}

/// `…/libcuda.so.535.261.03` → `535.261.03`
fn version_in_name(path: &Path) -> Option<String> {
    let version = path.file_name()?.to_str()?.strip_prefix("libcuda.so.")?;
    let is_version = version.contains('.') && version.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    is_version.then(|| version.to_owned())
}

/// The running kernel's release.
pub(super) fn kernel(host: &Host) -> Result<String> {
    let text = host.files.read_text("/proc/sys/kernel/osrelease")?;
    Ok(text.map_or_else(|| "(unknown)".to_owned(), |t| t.trim().to_owned()))
}

/// What is to be done about a loaded module that does not go with the libraries.
#[derive(Debug)]
pub(super) enum Remedy {
    /// The next boot loads the right one; why.
    Reboot(String),
    /// A reboot would change nothing.
    None(Error),
}

/// Asks the machine what a reboot would change: it helps only if the module on disk is another than the loaded one and
/// goes with the libraries. `libraries` is their version, where it can be told.
pub(super) async fn remedy(host: &Host, loaded: &str, libraries: Option<&str>) -> Result<Remedy> {
    let on_disk = module_on_disk(host, MODINFO_LIMIT).await?;
    let goes_with_them = |disk: &str| libraries.is_none_or(|libraries| disk == libraries);
    if let Some(disk) = on_disk.as_deref().filter(|disk| *disk != loaded && goes_with_them(disk)) {
        return Ok(Remedy::Reboot(format!(
            "module {loaded} is loaded and in use; {disk} takes over with the next boot"
        )));
    }
    let disk =
        on_disk.map_or_else(|| "there is none on disk".to_owned(), |version| format!("on disk is {version}"));
    let (installed, hint) = match libraries {
        Some(libraries) if libraries != loaded => (
            format!("libraries {libraries} are installed"),
            "the module for these libraries was not built or installed: `dkms status`, or install linux-modules-nvidia for this kernel",
        ),
        _ => (
            "the driver's libraries refuse it".to_owned(),
            "a reboot would change nothing: look for a second copy of libcuda or libnvidia-ml (cuda-compat, /usr/local), and reinstall the driver's packages, all of one version",
        ),
    };
    let text = format!("kernel module {loaded} is loaded, {installed}, and {disk}");
    Ok(Remedy::None(Error::new(Code::DriverMismatch, text).with_hint(hint)))
}

/// Why no module is loaded, as an error. `words` is what modprobe said, if it was asked.
pub(super) fn not_loaded(host: &Host, words: Option<&str>) -> Result<Error> {
    let kernel = kernel(host)?;
    let words = words.unwrap_or_default();
    let error = if let Some((why, hint)) = no_module(host, &kernel)? {
        fail(format!("the driver is installed but kernel {kernel} has no NVIDIA module: {why}"), &hint)
    } else if !host.files.exists("/proc/modules")? {
        fail(
            format!("kernel {kernel} cannot load modules: it has no /proc/modules"),
            "use a kernel of the distribution; this one was built without loadable modules, or /proc is not mounted",
        )
    } else if refused_by_signature(words) {
        let secure = if secure_boot(host)?.value {
            "Secure Boot is on"
        } else {
            "the kernel enforces module signatures"
        };
        fail(
            format!(
                "kernel {kernel} refuses the NVIDIA module, because {secure} and nobody the kernel trusts has signed it"
            ),
            "use the distribution's signed modules (driver.modules = \"prebuilt\"), or an AMI without Secure Boot",
        )
    } else if nouveau(host)? {
        fail(
            "the nouveau driver holds the GPU, so that NVIDIA's module cannot take it".into(),
            "blacklist nouveau in /etc/modprobe.d, run update-initramfs -u, and reboot",
        )
    } else if ["Exec format error", "Unknown symbol", "Invalid module format"]
        .iter()
        .any(|w| words.contains(w))
    {
        fail(
            format!("the NVIDIA module for kernel {kernel} was built for another kernel or is damaged"),
            "reinstall the module's package (or run dkms autoinstall), then run again",
        )
    } else if let Some((why, hint)) = refusal(host, words) {
        let text = format!(
            "kernel {kernel} loaded the NVIDIA module, which found no GPU that it can drive and went away again: {why}"
        );
        Error::new(Code::GpuNotDriven, text).with_hint(hint)
    } else if words.is_empty() {
        fail(
            format!("kernel {kernel} has an NVIDIA module, but it is not loaded"),
            "run `modprobe nvidia`; dmesg says more",
        )
    } else {
        fail(
            format!("the NVIDIA module for kernel {kernel} cannot be loaded"),
            "dmesg says more than modprobe does",
        )
    };
    Ok(if words.is_empty() { error } else { error.because(words.to_owned()) })
}

/// What the module said when it gave up, and what to do; `None` where neither it nor modprobe says that it did.
///
/// modprobe alone does not tell: on Debian it starts another modprobe, whose "No such device" it turns into "Invalid argument".
fn refusal(host: &Host, words: &str) -> Option<(String, &'static str)> {
    let unread = match kernel_log::read(&host.files) {
        Ok(log) => match module_refusal::last(&log) {
            Some(refusal) => return Some((format!("{:?} (kernel log)", refusal.words), refusal.hint)),
            None => "the kernel's log has no reason".to_owned(),
        },
        Err(why) => why,
    };
    words.contains("No such device").then_some((
        unread,
        "`dmesg` may name the reason; older GPUs (before Turing) need driver.flavour = \"proprietary\" and a branch that still has them",
    ))
}

fn fail(message: String, hint: &str) -> Error {
    Error::new(Code::DriverNotLoaded, message).with_hint(hint)
}

/// Why there is no module file for the kernel, and what to do; `None` if there is one.
fn no_module(host: &Host, kernel: &str) -> Result<Option<(String, String)>> {
    let here = format!("/lib/modules/{kernel}");
    if has_module(host, &here)? {
        return Ok(None);
    }
    let mut others = Vec::new();
    for other in host.files.list("/lib/modules")?.into_iter().filter(|k| k != kernel) {
        if has_module(host, &format!("/lib/modules/{other}"))? {
            others.push(other);
        }
    }
    if let Some(failure) = module_build::failure(host, kernel)? {
        return Ok(Some((
            format!("building it failed: {}", failure.message()),
            failure.hint().unwrap_or_default().to_owned(),
        )));
    }
    if !others.is_empty() {
        let others = others.join(", ");
        return Ok(Some((
            format!("there is one for {others}"),
            format!("reboot into {others}, then run again"),
        )));
    }
    if !host.files.exists(&here)? {
        return Ok(Some((
            format!("{here} does not exist, so this kernel is not one of this system's packages"),
            "boot a kernel of the distribution (linux-aws, linux-image-cloud-amd64), then run again".into(),
        )));
    }
    let headers = host.files.exists(format!("{here}/build"))?
        || host.files.exists(format!("/usr/src/linux-headers-{kernel}"))?;
    if !headers {
        return Ok(Some((
            format!("it could not be built, because linux-headers-{kernel} is not installed"),
            format!(
                "apt-get install linux-headers-{kernel}, or reboot into a kernel whose headers can be had; then run again"
            ),
        )));
    }
    Ok(Some((
        format!("{here} holds none, although the kernel's headers are there"),
        "`dkms status` shows what was built; `dkms autoinstall` builds it".into(),
    )))
}

/// The newest installed kernel that has an NVIDIA module, where the running one has none and is older: the boot loader
/// starts the newest, so that a reboot helps.
pub(super) fn next_kernel(host: &Host) -> Result<Option<String>> {
    let running = kernel(host)?;
    if has_module(host, &format!("/lib/modules/{running}"))? {
        return Ok(None);
    }
    let mut next: Option<String> = None;
    for other in host.files.list("/lib/modules")? {
        let newest = next.as_ref().unwrap_or(&running);
        if compare_versions(&other, newest).is_gt()
            && host.files.exists(format!("/boot/vmlinuz-{other}"))?
            && has_module(host, &format!("/lib/modules/{other}"))?
        {
            next = Some(other);
        }
    }
    Ok(next)
}

/// Whether there is an NVIDIA module below the directory (`nvidia.ko`, Debian's `nvidia-current.ko`, compressed or not).
fn has_module(host: &Host, dir: &str) -> Result<bool> {
    for name in host.files.list(dir)? {
        let is_module = name.starts_with("nvidia")
            && ["ko", "ko.xz", "ko.zst", "ko.gz"].iter().any(|end| name.ends_with(&format!(".{end}")))
            // Modules of the kernel's own tree that only share the name's beginning.
            && !["nvidiafb", "nvidia-wmi", "nvidia_wmi", "nvidia_cspmu"].iter().any(|start| name.starts_with(start));
        if is_module {
            return Ok(true);
        }
        let path = format!("{dir}/{name}");
        // `build` and `source` are links out of the tree.
        if host.files.lstat(&path)?.is_some_and(|m| m.is_dir()) && has_module(host, &path)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn refused_by_signature(words: &str) -> bool {
    ["Key was rejected by service", "Required key not available", "Operation not permitted"]
        .iter()
        .any(|w| words.contains(w))
}

/// Whether nouveau is loaded.
pub(super) fn nouveau(host: &Host) -> Result<bool> {
    host.files.exists("/sys/module/nouveau")
}

/// Whether the next boot does not load the module by itself.
pub(super) fn is_blacklisted(host: &Host, module: &str) -> Result<bool> {
    for dir in ["/etc/modprobe.d", "/usr/lib/modprobe.d", "/lib/modprobe.d"] {
        for name in host.files.list(dir)? {
            let text = host.files.read_text(format!("{dir}/{name}"))?.unwrap_or_default();
            if text.lines().any(|l| l.split_ascii_whitespace().eq(["blacklist", module])) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A machine with a kernel and nothing else.
    pub(crate) fn machine() -> (tempfile::TempDir, Host) {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path().into());
        for (path, text) in
            [("/proc/sys/kernel/osrelease", "6.8.0-1021-aws\n"), ("/proc/modules", "ext4 1 1 - Live 0\n")]
        {
            host.files.write(path, text.as_bytes(), 0o644).unwrap();
        }
        (dir, host)
    }

    fn says(host: &Host, words: Option<&str>) -> String {
        let error = not_loaded(host, words).unwrap();
        assert_eq!(error.code(), Code::DriverNotLoaded);
        assert!(error.hint().is_some());
        error.message().to_owned()
    }

    #[test]
    fn each_reason_is_told_from_the_others() {
        let (_dir, host) = machine();
        let write = |path: &str, bytes: &[u8]| host.files.write(path, bytes, 0o644).unwrap();
        let modules = "/lib/modules/6.8.0-1021-aws";
        assert_eq!(
            says(&host, None),
            "the driver is installed but kernel 6.8.0-1021-aws has no NVIDIA module: /lib/modules/6.8.0-1021-aws does not exist, so this kernel is not one of this system's packages"
        );
        // A module of the kernel's own that only sounds like the driver.
        write(&format!("{modules}/kernel/drivers/video/fbdev/nvidia/nvidiafb.ko"), b"");
        assert!(says(&host, None).ends_with("because linux-headers-6.8.0-1021-aws is not installed"));
        write("/usr/src/linux-headers-6.8.0-1021-aws/Makefile", b"");
        assert!(says(&host, None).ends_with("although the kernel's headers are there"));
        write("/lib/modules/6.8.0-1030-aws/updates/dkms/nvidia.ko.zst", b"");
        assert!(says(&host, None).ends_with("there is one for 6.8.0-1030-aws"));
        write(
            "/var/lib/dkms/nvidia/580.82.07/build/make.log",
            b"DKMS make.log for nvidia-580.82.07 for kernel 6.8.0-1021-aws (x86_64)\n",
        );
        assert!(says(&host, None).contains(
            "building it failed: DKMS could not build the NVIDIA module for kernel 6.8.0-1021-aws"
        ));

        write(&format!("{modules}/updates/dkms/nvidia-current.ko.xz"), b"");
        assert!(says(&host, None).ends_with("has an NVIDIA module, but it is not loaded"));
        assert!(says(&host, Some("could not insert 'nvidia': Exec format error")).contains("another kernel"));
        let rejected = "modprobe: ERROR: could not insert 'nvidia': Key was rejected by service";
        assert!(says(&host, Some(rejected)).contains("the kernel enforces module signatures"));
        write("/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c", &[6, 0, 0, 0, 1]);
        assert!(says(&host, Some(rejected)).contains("Secure Boot is on"));
        write("/sys/module/nouveau/refcnt", b"0");
        assert!(says(&host, Some("could not insert 'nvidia': No such device")).contains("nouveau"));
        host.files.remove("/proc/modules").unwrap();
        assert!(says(&host, None).contains("cannot load modules"));
    }

    #[test]
    fn a_module_that_found_no_gpu_is_told_by_its_own_words() {
        let (_dir, host) = machine();
        let write = |path: &str, text: &str| host.files.write(path, text.as_bytes(), 0o644).unwrap();
        write("/lib/modules/6.8.0-1021-aws/updates/dkms/nvidia-current.ko.xz", "");
        let none = "modprobe: ERROR: could not insert 'nvidia_current': No such device";
        let error = not_loaded(&host, Some(none)).unwrap();
        assert_eq!(error.code(), Code::GpuNotDriven);
        assert!(
            error
                .message()
                .ends_with("went away again: cannot read /dev/kmsg: No such file or directory (os error 2)")
        );
        write("/dev/kmsg", "3,1,2,-;NVRM: No NVIDIA GPU found.\n");
        let wrapped = "modprobe: ERROR: could not insert 'nvidia': Invalid argument";
        let error = not_loaded(&host, Some(wrapped)).unwrap();
        assert_eq!(
            error.message(),
            "kernel 6.8.0-1021-aws loaded the NVIDIA module, which found no GPU that it can drive and went away again: \
             \"No NVIDIA GPU found\" (kernel log)"
        );
        assert_eq!((error.code().exit_code(), error.causes().len()), (5, 1));
        // What modprobe says of the file itself comes first: the log may be of an earlier attempt.
        let rejected = "modprobe: ERROR: could not insert 'nvidia': Key was rejected by service";
        assert!(says(&host, Some(rejected)).contains("refuses the NVIDIA module"));
        write("/dev/kmsg", "3,1,2,-;eth0: link is up\n");
        assert!(says(&host, Some(wrapped)).ends_with("cannot be loaded"));
    }

    #[test]
    fn versions_of_module_and_library_are_read() {
        let (_dir, host) = machine();
        assert_eq!((module_version(&host).unwrap(), library_version(&host).unwrap()), (None, None));
        let text = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.142  Release Build\n";
        host.files.write(VERSION, text.as_bytes(), 0o444).unwrap();
        for (link, target) in [
            ("/usr/lib/libcuda.so.1", "/etc/alternatives/nvidia--libcuda.so.1-x86_64-linux-gnu"),
            (
                "/etc/alternatives/nvidia--libcuda.so.1-x86_64-linux-gnu",
                "/usr/lib/nvidia/current/libcuda.so.1",
            ),
            ("/usr/lib/nvidia/current/libcuda.so.1", "libcuda.so.580.142"),
        ] {
            host.files.symlink(link, target).unwrap();
        }
        let cache = crate::host::ld_cache::tests::cache(&[("libcuda.so.1", "/usr/lib/libcuda.so.1")]);
        host.files.write("/etc/ld.so.cache", &cache, 0o644).unwrap();
        assert_eq!(module_version(&host).unwrap().as_deref(), Some("580.142"));
        assert_eq!(library_version(&host).unwrap().as_deref(), Some("580.142"));
        host.files.write(VERSION, b"garbage", 0o444).unwrap();
        assert!(module_version(&host).is_err());
    }
}
