//! `cdi`: the GPUs of this machine, described for container runtimes by the Container Device Interface: device nodes,
//! the driver's libraries and its programs. What `docker run --device nvidia.com/gpu=0` and a kubelet's containers read.
//!
//! It is written by us, not by `nvidia-ctk cdi generate`: it follows from what the kernel module and the dynamic linker
//! say, so a check can tell at any time, without a program of NVIDIA's, whether it is still true. Each library is mounted
//! under the name that programs ask for, so that a container finds it without a hook; where NVIDIA's toolkit is
//! installed, its hook renews the container's linker cache, too, for images that search elsewhere.
//!
//! `docs/containers.md` says what it holds. <https://github.com/cncf-tags/container-device-interface>

mod spec;

use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Applied, Check, Converge};
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::host::exec::Call;
pub(super) use spec::driven;
use spec::{KIND, Spec, describe};

/// The GPUs, described for container runtimes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Cdi {
    /// The specification's file, in a directory that runtimes search.
    pub path: String,
}

impl Converge for Cdi {
    async fn check(&self, host: &Host) -> Result<Check> {
        if let Some(rival) = self.rivals(host)?.first() {
            return self.beside(host, rival);
        }
        let wanted = match describe(host)? {
            Ok(spec) => spec,
            Err(why) => return Ok(Check::unknown(why)),
        };
        let Some(bytes) = host.files.read(&self.path)? else {
            return Ok(Check::needed(format!("{} does not exist", self.path)));
        };
        let found = match serde_json::from_slice::<Spec>(&bytes) {
            Ok(found) => found,
            Err(e) => return Ok(Check::needed(format!("{} is no specification of ours: {e}", self.path))),
        };
        if let Some(difference) = wanted.differs(&found) {
            return Ok(Check::needed(format!("{} {difference}", self.path)));
        }
        if let Some(node) = missing_node(host, &wanted)? {
            return Ok(Check::needed(format!("{node} is no device node")));
        }
        Ok(Check::satisfied(format!(
            "{} describes {} with {} files of the driver",
            self.path,
            counted(wanted.gpus()),
            wanted.container_edits.mounts.len()
        )))
    }

    async fn apply(&self, host: &Host) -> Result<Applied> {
        for rival in self.rivals(host)? {
            if missing_path(host, &rival)?.is_none() {
                // A description that holds is somebody's own; two of the same device would be refused by every runtime.
                host.files.remove(&self.path)?;
                return Ok(Applied::Done);
            }
            let kept = host.files.set_aside(&rival)?;
            host.notice(format!(
                "{rival} described {KIND} by files that are gone: set aside as {}",
                kept.display()
            ));
        }
        let spec = describe(host)?.map_err(|why| Error::new(Code::DriverNotLoaded, why))?;
        if missing_node(host, &spec)?.is_some() {
            make_nodes(host, &spec).await?;
        }
        let mut json = serde_json::to_vec_pretty(&spec)
            .map_err(|e| Error::new(Code::Io, format!("cannot write {}", self.path)).because(e))?;
        json.push(b'\n');
        host.files.write(&self.path, &json, 0o644)?;
        Ok(Applied::Done)
    }

    fn target(&self) -> Option<&str> {
        Some(&self.path)
    }

    fn describe(&self) -> String {
        format!("CDI specification {}", self.path)
    }
}

impl Cdi {
    /// Other descriptions of the same devices in the same directory.
    fn rivals(&self, host: &Host) -> Result<Vec<String>> {
        let dir = Path::new(&self.path).parent().unwrap_or(Path::new("/"));
        let mut rivals = Vec::new();
        for name in host.files.list(dir)? {
            let path = dir.join(&name).display().to_string();
            let read =
                ["json", "yaml", "yml"].iter().any(|e| Path::new(&name).extension().is_some_and(|x| x == *e));
            if !read || path == self.path {
                continue;
            }
            let text = host.files.read_text(&path)?.unwrap_or_default();
            if values(&text, "kind").any(|kind| kind == KIND) {
                rivals.push(path);
            }
        }
        Ok(rivals)
    }

    /// The answer where somebody else describes the GPUs.
    fn beside(&self, host: &Host, rival: &str) -> Result<Check> {
        if let Some(gone) = missing_path(host, rival)? {
            return Ok(Check::needed(format!("{rival} describes {KIND} by {gone}, which is not there")));
        }
        if host.files.exists(&self.path)? {
            return Ok(Check::needed(format!("{} and {rival} both describe {KIND}", self.path)));
        }
        Ok(Check::satisfied(format!(
            "{rival}, which is not ours, describes {KIND}, and all that it names is there"
        )))
    }
}

/// The first path of this machine that a specification in JSON or YAML names and that is not there.
fn missing_path(host: &Host, spec: &str) -> Result<Option<String>> {
    let text = host.files.read_text(spec)?.unwrap_or_default();
    for path in values(&text, "hostPath").chain(values(&text, "path")) {
        if path.starts_with('/') && !host.files.exists(path)? {
            return Ok(Some(path.to_owned()));
        }
    }
    Ok(None)
}

/// The values of a key on lines of their own, in YAML or in JSON written over lines.
fn values<'t>(text: &'t str, key: &'t str) -> impl Iterator<Item = &'t str> {
    text.split(['\n', '{', ',']).filter_map(move |line| {
        let (name, value) = line.trim().trim_start_matches("- ").split_once(':')?;
        let quotes: &[char] = &['"', '\'', ' ', ',', '}', ']'];
        (name.trim_matches(quotes) == key).then(|| value.trim_matches(quotes))
    })
}

fn counted(gpus: usize) -> String {
    if gpus == 1 { "1 GPU".into() } else { format!("{gpus} GPUs") }
}

fn missing_node(host: &Host, spec: &Spec) -> Result<Option<String>> {
    for path in spec.all_nodes() {
        if !host.files.lstat(path)?.is_some_and(|m| m.file_type().is_char_device()) {
            return Ok(Some(path.to_owned()));
        }
    }
    Ok(None)
}

/// The driver's own program makes its nodes; libcuda would, too, but a container must not have to wait for that.
async fn make_nodes(host: &Host, spec: &Spec) -> Result<()> {
    let minors = spec.all_nodes().filter_map(|path| path.strip_prefix("/dev/nvidia"));
    let mut minors: Vec<&str> = minors.filter(|m| m.parse::<u32>().is_ok()).collect();
    minors.sort_unstable();
    minors.dedup();
    let mut args = vec!["-u".to_owned(), "-c".into(), "255".into()];
    if spec.all_nodes().any(|path| path == "/dev/nvidia-modeset") {
        args.push("-m".into());
    }
    args.extend(minors.into_iter().flat_map(|minor| ["-c".to_owned(), minor.to_owned()]));
    let call = Call::new("nvidia-modprobe").args(args).limit(Duration::from_mins(3));
    host.exec.run(&call).await.map_err(|e| {
        Error::new(
            Code::DriverNotLoaded,
            "the driver's device nodes are missing, and nvidia-modprobe does not make them",
        )
        .with_hint(
            "install nvidia-modprobe, or run `gpu-bootstrap device-query` once as root, then run again",
        )
        .because(e)
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::spec::Node;
    use super::*;
    use crate::host::ld_cache::tests::cache;
    use nix::sys::stat::{Mode, SFlag, makedev, mknod};

    const PATH: &str = "/etc/cdi/gpu-bootstrap-nvidia.json";
    const LIB: &str = "/usr/lib/x86_64-linux-gnu";

    /// A machine with one GPU under driver 580.95.05, whose libraries Debian's way keeps behind links.
    fn machine() -> (tempfile::TempDir, Host) {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path().into());
        let put = |path: &str, text: &str| host.files.write(path, text.as_bytes(), 0o644).unwrap();
        put(
            "/proc/driver/nvidia/version",
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05  Thu\n",
        );
        put(
            "/proc/driver/nvidia/gpus/0000:00:1e.0/information",
            "Model: \t\t Tesla T4\nGPU UUID: \t GPU-6fd5\nBus Location: \t 0000:00:1e.0\nDevice Minor: \t 3\n",
        );
        for name in ["libcuda.so", "libnvidia-ml.so"] {
            put(&format!("{LIB}/nvidia/current/{name}.580.95.05"), "");
            host.files
                .symlink(format!("{LIB}/{name}.1"), format!("nvidia/current/{name}.580.95.05"))
                .unwrap();
        }
        put("/usr/bin/nvidia-smi", "");
        put("/usr/lib/x86_64-linux-gnu/libc.so.6", "");
        let listed = cache(&[
            ("libc.so.6", "/lib/x86_64-linux-gnu/libc.so.6"),
            ("libcuda.so.1", "/lib/x86_64-linux-gnu/libcuda.so.1"),
            ("libcuda.so.1", "/lib/i386-linux-gnu/libcuda.so.1"),
            ("libnvidia-ml.so.1", "/lib/x86_64-linux-gnu/libnvidia-ml.so.1"),
        ]);
        host.files.write("/etc/ld.so.cache", &listed, 0o644).unwrap();
        host.files.symlink("/lib", "usr/lib").unwrap();
        (dir, host)
    }

    fn make_devices(dir: &Path, names: &[&str]) {
        std::fs::create_dir_all(dir.join("dev")).unwrap();
        for name in names {
            mknod(&dir.join("dev").join(name), SFlag::S_IFCHR, Mode::S_IRUSR, makedev(1, 3)).unwrap();
        }
    }

    fn cdi() -> Cdi {
        Cdi { path: PATH.into() }
    }

    async fn state(host: &Host) -> (&'static str, String) {
        let check = cdi().check(host).await.unwrap();
        (check.state(), check.why().to_owned())
    }

    #[tokio::test]
    async fn the_driver_s_files_are_mounted_under_the_names_that_programs_ask_for() {
        let (_dir, host) = machine();
        let spec = describe(&host).unwrap().unwrap();
        let mounts: Vec<_> = spec
            .container_edits
            .mounts
            .iter()
            .map(|m| format!("{} < {}", m.container_path.display(), m.host_path.display()))
            .collect();
        let own = format!("{LIB}/nvidia/current/libcuda.so.580.95.05");
        for wanted in [
            format!("{LIB}/libcuda.so.1 < {own}"),
            format!("{LIB}/libcuda.so.580.95.05 < {own}"),
            "/usr/bin/nvidia-smi < /usr/bin/nvidia-smi".to_owned(),
        ] {
            assert!(mounts.contains(&wanted), "{wanted} in {mounts:?}");
        }
        assert_eq!(mounts.len(), 5, "nothing of others: {mounts:?}");
        let devices: Vec<_> = spec.devices.iter().map(|d| d.name.as_str()).collect();
        assert_eq!(devices, ["0", "GPU-6fd5", "all"]);
        for device in &spec.devices {
            assert_eq!(device.container_edits.device_nodes, [Node { path: "/dev/nvidia3".into() }]);
        }
        assert!(spec.container_edits.hooks.is_empty());
    }

    #[tokio::test]
    async fn a_specification_is_true_as_long_as_driver_and_nodes_are() {
        let (dir, host) = machine();
        assert_eq!(state(&host).await.0, "needed");
        make_devices(dir.path(), &["nvidia3", "nvidiactl", "nvidia-uvm", "nvidia-uvm-tools"]);
        cdi().apply(&host).await.unwrap();
        assert_eq!(
            state(&host).await,
            ("satisfied", format!("{PATH} describes 1 GPU with 5 files of the driver"))
        );
        std::fs::remove_file(dir.path().join("dev/nvidia-uvm")).unwrap();
        assert_eq!(state(&host).await, ("needed", "/dev/nvidia-uvm is no device node".into()));
        // NVIDIA's toolkit came later: its hook belongs into it.
        make_devices(dir.path(), &["nvidia-uvm"]);
        host.files.write("/usr/bin/nvidia-ctk", b"", 0o755).unwrap();
        assert_eq!(state(&host).await.0, "needed");
        let hook = describe(&host).unwrap().unwrap().container_edits.hooks.remove(0);
        assert_eq!(hook.args, ["nvidia-ctk", "hook", "update-ldcache", "--folder", LIB]);
        // The driver was upgraded, the module not yet.
        host.files
            .write("/proc/driver/nvidia/version", b"NVRM version: X Kernel Module  590.1  T\n", 0o644)
            .unwrap();
        let (state, why) = state(&host).await;
        assert!(state == "unknown" && why.contains("another"), "{why}");
    }

    #[tokio::test]
    async fn another_description_in_the_directory_counts_while_it_holds() {
        let (_dir, host) = machine();
        let rival = "/etc/cdi/nvidia.yaml";
        let put = |text: &str| host.files.write(rival, text.as_bytes(), 0o644).unwrap();
        put(
            "cdiVersion: 0.5.0\nkind: \"nvidia.com/gpu\"\ndevices:\n- name: \"0\"\n  containerEdits:\n    mounts:\n      - hostPath: /usr/bin/nvidia-smi\n",
        );
        assert_eq!(state(&host).await.0, "satisfied");
        put("kind: nvidia.com/gpu\ndevices: [{hostPath: /usr/lib/libcuda.so.470.1}]\n");
        let (found, why) = state(&host).await;
        assert!(found == "needed" && why.contains("libcuda.so.470.1"), "{why}");
        put("kind: example.com/nic\n");
        assert!(state(&host).await.1.contains(PATH));
    }
}
