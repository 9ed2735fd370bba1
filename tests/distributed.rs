//! Training on several GPUs and machines, through the real binary: EFA's installer in a disposable root with real apt and dpkg (a
//! stand-in for AWS's script, which calls apt as that one does), what is written for NCCL, and what the plan has when. The
//! check with a real `PyTorch`: tests/e2e/distributed.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/debs.rs"]
mod debs;
#[path = "support/facts.rs"]
mod facts;
#[path = "support/file_server.rs"]
mod file_server;
#[path = "support/machine.rs"]
mod machine;
#[path = "support/root.rs"]
mod root;

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use debs::{Deb, Key, Repository};
use file_server::FileServer;
use gpu_bootstrap::action::Action;
use gpu_bootstrap::catalog::{Catalog, Choice, choose};
use gpu_bootstrap::config::Config;
use gpu_bootstrap::plan::{self, Plan};
use machine::{Ran, binary, ran};
use root::Root;
use sha2::{Digest, Sha256};

const NOTHING_ELSE: &str =
    "[driver]\nbranch = \"none\"\n[cuda]\ntoolkit = \"none\"\n[cudnn]\nversion = \"none\"\n";
const LIST: &str = "/opt/amazon/efa_installed_packages";
const FLAGS: &str = "/srv/flags";

/// As AWS's: it wants to stand in its own directory, calls apt by itself, and writes its list last.
const SCRIPT: &str = r#"#!/bin/bash
[ -e common.sh ] || { echo "Please cd into the installer directory." >&2; exit 1; }
echo "$@" >>/srv/flags
apt-config dump DPkg::Options >>/srv/apt
[ -e /srv/broken ] && { echo "Error: Failed to install packages."; exit 1; }
apt-get install -y ./DEBS/*.deb || exit 1
[ -e /srv/slow ] && { touch /srv/waiting; sleep 60; }
mkdir -p /opt/amazon
cat >/opt/amazon/efa_installed_packages <<EOF
# EFA installer version: 1.50.0
# Debug packages installed: no
# Packages installed:
libfabric1-aws_2.6.0amzn1.0_all rdma-core_64.0-1_all
EOF
"#;

/// A root with a GPU and two EFA devices, and a server with the installer.
struct Scene {
    root: Root,
    server: FileServer,
    sum: String,
}

impl Scene {
    fn new() -> Self {
        let root = Root::new();
        let pci = |address: &str, vendor: &str, device: &str, class: &str| {
            for (file, value) in [("vendor", vendor), ("device", device), ("class", class)] {
                root.write(&format!("/sys/bus/pci/devices/{address}/{file}"), value);
            }
        };
        pci("0000:00:1e.0", "0x10de", "0x2330", "0x030200");
        pci("0000:00:1c.0", "0x1d0f", "0xefa1", "0x020000");
        pci("0000:00:1d.0", "0x1d0f", "0xefa1", "0x020000");
        root.write("/sys/module/efa/version", "3.3.0\n");
        root.write("/proc/sys/kernel/osrelease", "6.1.0-18-cloud-amd64\n");
        root.write("/proc/sys/kernel/random/boot_id", "0b6d2a9c-7c3e-4c55-9f0a-3c1f6a1d2e3f\n");
        let tar = installer();
        let sum = format!("{:x}", Sha256::digest(&tar));
        let server = FileServer::start(&[("/aws-efa-installer-1.50.0.tar.gz", &tar)]);
        let scene = Self { root, server, sum };
        scene.configure(&scene.sum);
        scene
    }

    fn configure(&self, sum: &str) {
        let url = self.server.url("/aws-efa-installer-1.50.0.tar.gz");
        let text = format!(
            "{NOTHING_ELSE}[distributed]\nefa = \"auto\"\nefa-url = \"{url}\"\nefa-sha256 = \"{sum}\"\n"
        );
        self.root.write("/etc/gpu-bootstrap/a.toml", &text);
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = binary();
        command.args(args).arg("--root").arg(self.root.path());
        command
    }

    fn run(&self) -> Ran {
        ran(&mut self.command(&["run", "--no-imds"]))
    }

    fn has(&self, path: &str) -> bool {
        self.root.at(path).exists()
    }
}

/// The tar file. Two of its packages depend on each other, as rdma-core's do; libfabric's program lists the devices of the scene.
fn installer() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let inside = dir.path().join("aws-efa-installer");
    fs::create_dir_all(inside.join("DEBS")).unwrap();
    fs::write(inside.join("common.sh"), "").unwrap();
    fs::write(inside.join("efa_installer.sh"), SCRIPT).unwrap();
    let fi_info = "#!/bin/sh\n[ \"$*\" = '-p efa -t FI_EP_RDM' ] || exit 2\n[ -e /srv/deaf ] && exit 61\n\
                   for n in 16 32; do echo 'provider: efa'; echo \"    domain: rdmap${n}s27-rdm\"; done\n";
    let libfabric = Deb::new("libfabric1-aws", "2.6.0amzn1.0")
        .field("Depends", "rdma-core")
        .file("/opt/amazon/efa/bin/fi_info", fi_info)
        .mode("/opt/amazon/efa/bin/fi_info", 0o755);
    let rdma = Deb::new("rdma-core", "64.0-1").file("/usr/share/rdma-core/x", "x\n");
    libfabric.build(&inside.join("DEBS"));
    rdma.build(&inside.join("DEBS"));
    debs::run(Command::new("chmod").arg("0755").arg(inside.join("efa_installer.sh")));
    let tar = dir.path().join("efa.tar.gz");
    debs::run(Command::new("tar").arg("-czf").arg(&tar).arg("-C").arg(dir.path()).arg("aws-efa-installer"));
    fs::read(tar).unwrap()
}

#[test]
fn efa_is_installed_once_seen_by_libfabric_and_taken_back() {
    let scene = Scene::new();
    scene.server.fail_next(1);
    let first = scene.run();
    assert_eq!(first.code, 0, "{first:?}");
    assert_eq!(scene.root.read(FLAGS), "--yes --no-verify --skip-limit-conf\n");
    assert!(scene.root.read("/srv/apt").contains("force-confold"), "apt asks nothing");
    let limits = scene.root.read("/etc/security/limits.d/gpu-bootstrap-efa.conf");
    assert!(limits.contains("* hard memlock unlimited\n"), "{limits}");
    let environment = scene.root.read("/etc/default/gpu-bootstrap-nccl");
    assert!(environment.contains("\nFI_PROVIDER=efa\n"), "{environment}");
    for gone in ["/var/lib/gpu-bootstrap/efa", "/var/lib/gpu-bootstrap/efa-before"] {
        assert!(!scene.has(gone), "{gone}");
    }
    let second = scene.run();
    assert_eq!(second.code, 0, "{second:?}");
    assert!(second.stdout.contains("ok       EFA: EFA's installer 1.50.0 has been here"), "{second:?}");
    assert!(
        second.stdout.contains("libfabric lists 2 of 2 EFA devices: rdmap16s27-rdm, rdmap32s27-rdm"),
        "{second:?}"
    );
    assert_eq!(scene.root.read(FLAGS).lines().count(), 1, "the installer ran once");
    assert_eq!(scene.server.requests().len(), 2, "asked for once more after an error, and never again");

    let gone = ran(&mut scene.command(&["uninstall", "--yes"]));
    assert_eq!(gone.code, 0, "{gone:?}");
    for path in [
        "/opt/amazon",
        "/usr/share/rdma-core",
        "/etc/security/limits.d/gpu-bootstrap-efa.conf",
        "/etc/profile.d/gpu-bootstrap-nccl.sh",
    ] {
        assert!(!scene.has(path), "{path}: {gone:?}");
    }
    let left = scene.root.run("dpkg-query", &["-W", "-f", "${Package} ${db:Status-Status}\n"]);
    assert!(!left.contains("libfabric1-aws") && !left.contains("rdma-core"), "{left}");
}

#[test]
fn the_kernel_s_own_module_is_used_where_it_has_one() {
    let scene = Scene::new();
    scene.root.write(
        "/usr/sbin/modinfo",
        "#!/bin/sh\ncase \"$*\" in *6.1.0-18-cloud-amd64*efa) exit 0; esac\nexit 1\n",
    );
    scene.root.run("chmod", &["0755", "/usr/sbin/modinfo"]);
    assert_eq!(scene.run().code, 0);
    assert_eq!(scene.root.read(FLAGS), "--yes --no-verify --skip-limit-conf --skip-kmod\n");
}

#[test]
fn an_installer_with_another_sum_never_runs() {
    let scene = Scene::new();
    scene.configure(&"0".repeat(64));
    let failed = scene.run();
    assert!(failed.code == 1 && failed.stdout.contains("[checksum-mismatch]"), "{failed:?}");
    assert!(!scene.has(FLAGS) && !scene.has("/opt/amazon"));
    // And a file with the right sum that is something else.
    let scene = Scene::new();
    let page = b"<html>sign in</html>";
    let server = FileServer::start(&[("/efa.tar.gz", page)]);
    let (url, sum) = (server.url("/efa.tar.gz"), format!("{:x}", Sha256::digest(page)));
    let text =
        format!("{NOTHING_ELSE}[distributed]\nefa = \"auto\"\nefa-url = \"{url}\"\nefa-sha256 = \"{sum}\"\n");
    scene.root.write("/etc/gpu-bootstrap/a.toml", &text);
    let failed = scene.run();
    assert!(failed.code == 1 && failed.stdout.contains("is no installer of EFA"), "{failed:?}");
}

#[test]
fn an_installer_that_fails_is_told_in_its_own_words_and_gone_on_with() {
    let scene = Scene::new();
    scene.root.write("/srv/broken", "");
    let failed = scene.run();
    assert!(failed.code == 1 && failed.stdout.contains("[efa-failed]"), "{failed:?}");
    assert!(format!("{failed:?}").contains("Failed to install packages"), "{failed:?}");
    fs::remove_file(scene.root.at("/srv/broken")).unwrap();
    let healed = scene.run();
    assert_eq!(healed.code, 0, "{healed:?}");
    // Damage is healed, too.
    fs::remove_file(scene.root.at("/opt/amazon/efa/bin/fi_info")).unwrap();
    scene.root.run("dpkg", &["--purge", "libfabric1-aws"]);
    let healed = scene.run();
    assert!(healed.code == 0 && scene.has("/opt/amazon/efa/bin/fi_info"), "{healed:?}");
}

#[test]
fn a_run_that_was_killed_inside_the_installer_is_finished_and_still_taken_back() {
    let scene = Scene::new();
    scene.root.write("/srv/slow", "");
    let mut child = scene.command(&["run", "--no-imds"]).stdout(std::process::Stdio::null()).spawn().unwrap();
    let end = Instant::now() + Duration::from_mins(2);
    while !scene.has("/srv/waiting") {
        assert!(
            Instant::now() < end && child.try_wait().unwrap().is_none(),
            "the installer never got so far"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(scene.has("/opt/amazon/efa/bin/fi_info") && !scene.has(LIST));
    fs::remove_file(scene.root.at("/srv/slow")).unwrap();
    let finished = scene.run();
    assert_eq!(finished.code, 0, "{finished:?}");
    assert_eq!(ran(&mut scene.command(&["uninstall", "--yes"])).code, 0);
    assert!(!scene.has("/opt/amazon") && !scene.has("/usr/share/rdma-core"));
}

#[test]
fn devices_that_libfabric_does_not_see_fail_the_run() {
    let scene = Scene::new();
    scene.root.write("/usr/sbin/modprobe", "#!/bin/sh\nexit 0\n");
    scene.root.run("chmod", &["0755", "/usr/sbin/modprobe"]);
    scene.root.write("/srv/deaf", "");
    let failed = scene.run();
    assert!(failed.code == 1 && failed.stdout.contains("libfabric lists 0 of 2 EFA devices"), "{failed:?}");
}

/// NVIDIA's repository has each version once for each CUDA generation, and the newest is another generation's.
#[test]
fn apt_takes_the_newest_nccl_of_the_toolkits_generation() {
    let scene = Scene::new();
    let plan =
        plan_of("ubuntu2204", "g5.xlarge", "[cuda]\ntoolkit = \"12.8\"\n[distributed]\nnccl = \"auto\"\n");
    let packages = plan.steps.iter().flat_map(|s| &s.actions).find_map(|a| match a {
        Action::AptPackage(a) if a.packages[0].starts_with("libnccl2") => Some(a.packages.clone()),
        _ => None,
    });
    let (repo, key) = (Repository::new(scene.root.path(), "repo"), Key::new());
    for version in ["2.28.9-1+cuda12.9", "2.32.3-1+cuda12.9", "2.32.3-1+cuda13.2"] {
        repo.add(&Deb::new("libnccl2", version).file("/usr/lib/libnccl.so.2", version));
        repo.add(&Deb::new("libnccl-dev", version).field("Depends", &format!("libnccl2 (= {version})")));
    }
    key.export(&scene.root.at("/etc/apt/keyrings/repo.gpg"));
    let line = format!("deb [signed-by=/etc/apt/keyrings/repo.gpg] {} ./\n", repo.uri());
    scene.root.write("/etc/apt/sources.list", &line);
    repo.publish(Some(&key));
    scene.root.run("apt-get", &["-qq", "update"]);
    scene.root.write("/etc/gpu-bootstrap/a.toml", NOTHING_ELSE);
    let step = format!(
        "title = \"NCCL\"\nscope = \"image\"\n[[action]]\napt-package = {{ packages = {:?}, hold = true }}\n",
        packages.unwrap()
    );
    scene.root.write("/etc/gpu-bootstrap/steps.d/50-own-nccl.toml", &step);
    scene.root.run("chmod", &["-R", "go-w", "/etc/gpu-bootstrap"]);
    for _ in 0..2 {
        let run = scene.run();
        assert_eq!(run.code, 0, "{run:?}");
    }
    assert_eq!(scene.root.read("/usr/lib/libnccl.so.2"), "2.32.3-1+cuda12.9");
    assert_eq!(scene.root.run("apt-mark", &["showhold"]), "libnccl-dev\nlibnccl2\n");
    assert!(scene.run().stdout.contains("ok       NCCL"));
}

fn plan_of(distro: &str, instance_type: &str, text: &str) -> Plan {
    let facts = facts::instance(distro, instance_type);
    let config: Config = toml::from_str(text).unwrap();
    match choose(&Catalog::embedded().unwrap(), &facts, &config, None).unwrap() {
        Choice::Install(stack) => plan::build(&facts, &config, &stack, &[]).unwrap(),
        Choice::Nothing { why } => panic!("{why}"),
    }
}

fn steps(plan: &Plan) -> Vec<&str> {
    let ours =
        ["nccl", "nccl-environment", "efa", "gdrcopy", "gdrcopy-module", "efa-devices", "collective-check"];
    plan.steps.iter().map(|s| s.id.as_str()).filter(|id| ours.contains(id)).collect()
}

#[test]
fn the_plan_has_what_is_asked_for_in_an_order_that_works() {
    assert!(steps(&plan_of("ubuntu2204", "p5.48xlarge", "")).is_empty());
    let sum = "0".repeat(64);
    let all = format!(
        "[distributed]\nnccl = \"auto\"\nefa = \"auto\"\ncheck = \"nccl-tests\"\ncheck-bandwidth = 300\n\
         gdrcopy = [{{ url = \"https://x/gdrdrv-dkms.deb\", sha256 = \"{sum}\" }}]\n"
    );
    let plan = plan_of("ubuntu2204", "p5.48xlarge", &all);
    let wanted =
        ["nccl", "nccl-environment", "efa", "gdrcopy", "gdrcopy-module", "efa-devices", "collective-check"];
    assert_eq!(steps(&plan), wanted);
    let at = |id: &str| plan.steps.iter().position(|s| s.id == id).unwrap();
    // DKMS needs the driver's sources; the module needs the driver's; the proof is the last.
    assert!(at("driver") < at("gdrcopy") && at("kernel-module") < at("gdrcopy-module"));
    assert!(at("gdrcopy-module") < at("collective-check") && at("collective-check") < at("device-query"));
    assert!(at("cuda-toolkit") < at("nccl") && at("repository") < at("nccl"));
    let check = plan.steps.iter().flat_map(|s| &s.actions).find_map(|a| match a {
        Action::CollectiveCheck(check) => Some(check),
        _ => None,
    });
    let check = check.unwrap();
    assert_eq!((check.gpus, check.bandwidth, check.environment.as_str()), (8, 300, ""));
    // The repository's index is asked for NCCL before anything is installed from it, and pinned.
    let asked = plan.steps.iter().flat_map(|s| &s.actions).any(|a| match a {
        Action::AptIndex(index) => index.packages.iter().any(|p| p.starts_with("libnccl2=*+cuda")),
        _ => false,
    });
    assert!(asked);
    // A machine without EFA devices gets no EFA, and says so to NCCL.
    let plan = plan_of("ubuntu2204", "g5.xlarge", "[distributed]\nefa = \"auto\"\nnccl = \"auto\"\n");
    assert_eq!(steps(&plan), ["nccl", "nccl-environment"]);
    let files: Vec<_> = plan
        .steps
        .iter()
        .flat_map(|s| &s.actions)
        .filter_map(|a| match a {
            Action::File(file) if file.path.contains("nccl") => Some(file),
            _ => None,
        })
        .collect();
    assert_eq!(files.len(), 2);
    assert!(files.iter().all(|f| f.content.contains("NCCL_SOCKET_IFNAME") && !f.content.contains("FI_")));
}

#[test]
fn pytorch_s_check_uses_the_frameworks_environment() {
    let text = "[frameworks]\npython = [\"torch\"]\n[distributed]\ncheck = \"torch\"\n";
    let plan = plan_of("ubuntu2204", "g5.12xlarge", text);
    let check = plan.steps.iter().flat_map(|s| &s.actions).find_map(|a| match a {
        Action::CollectiveCheck(check) => Some(check),
        _ => None,
    });
    let check = check.unwrap();
    assert!(check.environment.starts_with("/opt/gpu-bootstrap/torch-cuda") && check.gpu && check.gpus == 4);
    let text = text.replace("[distributed]", "device = \"cpu\"\n[distributed]");
    let plan = plan_of("ubuntu2204", "g5.12xlarge", &text);
    assert!(
        plan.steps.iter().flat_map(|s| &s.actions).any(|a| matches!(a, Action::CollectiveCheck(c) if !c.gpu))
    );
}

#[test]
fn wrong_wishes_are_refused_with_their_place() {
    for (written, words) in [
        ("nccl = 2.28", "versions are strings; write \"2.28\""),
        ("nccl = \"latest\"", "\"2.28.9\""),
        ("efa = \"yes\"", "true, false or \"auto\""),
        ("efa-sha256 = \"12\"", "64 hexadecimal digits"),
        ("check = \"mpi\"", "\"nccl-tests\""),
        ("check-command = \"all_reduce_perf -g 8\"", "[\"all_reduce_perf\", \"-g\", \"8\"]"),
        ("check-command = [\"\"]", "names no program"),
        ("check-bandwidth = -1", "a number of GB/s up to 10000"),
        ("gdrcopy = [{ url = \"https://x/a.deb\" }]", "sha256"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.toml");
        fs::write(&file, format!("[distributed]\n{written}\n")).unwrap();
        let refused = ran(binary().args(["config", "check"]).arg(&file));
        let said = refused.stderr.clone() + &refused.stdout;
        assert!(refused.code == 2 && said.contains(":2:") && said.contains(words), "{written}: {said}");
    }
}
