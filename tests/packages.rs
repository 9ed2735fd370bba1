//! Packages on real apt and dpkg, in disposable roots: what is installed, what is refused, what heals.
//! Repositories are `file:` ones inside the root; nothing but the base comes from the network.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/debs.rs"]
mod debs;
#[path = "support/root.rs"]
mod root;

use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use debs::{Deb, Key, Repository};
use gpu_bootstrap::action::apt_package::AptPackage;
use gpu_bootstrap::action::kernel_packages::KernelPackages;
use gpu_bootstrap::action::{Action, Check, deb};
use gpu_bootstrap::catalog::choose;
use gpu_bootstrap::config::schema::InstallConfig;
use gpu_bootstrap::error::{Code, Error};
use gpu_bootstrap::host::apt::Request;
use gpu_bootstrap::host::{Host, paths};
use gpu_bootstrap::install::{Installer, Options, Rung};
use root::Root;
use sha2::{Digest, Sha256};

const IN_FLIGHT: &str = paths::IN_FLIGHT;

/// A root whose only source is a signed repository, `/srv/repo`.
struct Machine {
    root: Root,
    host: Host,
    repo: Repository,
    key: Key,
}

impl Machine {
    fn new(packages: &[Deb]) -> Self {
        let machine = Self::unseen(Root::new(), Key::new(), packages);
        machine.publish();
        machine
    }

    /// The repository is there, and apt has not looked at it.
    fn unseen(root: Root, key: Key, packages: &[Deb]) -> Self {
        let repo = Repository::new(root.path(), "repo");
        for package in packages {
            repo.add(package);
        }
        key.export(&root.at("/etc/apt/keyrings/repo.gpg"));
        root.write(
            "/etc/apt/sources.list",
            &format!("deb [signed-by=/etc/apt/keyrings/repo.gpg] {} ./\n", repo.uri()),
        );
        let host = Host::new(root.path().into());
        Self { root, host, repo, key }
    }

    /// Signs the repository anew and lets apt see it.
    fn publish(&self) {
        self.repo.publish(Some(&self.key));
        self.root.run("apt-get", &["-qq", "update"]);
    }

    fn check(&self, action: &Action) -> Check {
        block(action.check(&self.host)).unwrap()
    }

    fn satisfied(&self, action: &Action) -> String {
        match self.check(action) {
            Check::Satisfied { evidence } => evidence,
            other => panic!("{other:?}"),
        }
    }

    /// The check must say `Needed` with these words; applying must heal, and touch nothing but `touched`.
    fn heals(&self, action: &Action, words: &str, touched: &[&str]) {
        let why = match self.check(action) {
            Check::Needed { why } => why,
            other => panic!("{words}: {other:?}"),
        };
        assert!(why.contains(words), "{words:?} is not in {why:?}");
        let log = "/var/log/dpkg.log";
        let before = self.root.read(log).lines().count();
        block(action.apply(&self.host)).unwrap();
        self.satisfied(action);
        let after = self.root.read(log);
        let mut changed: Vec<&str> = after
            .lines()
            .skip(before)
            .filter_map(|l| match l.split(' ').collect::<Vec<_>>()[..] {
                [_, _, "install" | "upgrade" | "remove", id, ..] => id.split(':').next(),
                _ => None,
            })
            .collect();
        changed.sort_unstable();
        assert_eq!(changed, touched, "{words}: {after}");
    }

    fn version(&self, package: &str) -> String {
        let output = self
            .root
            .command("dpkg-query", &["-W", "-f", "${db:Status-Abbrev}${Version}", package])
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    fn refuses(&self, packages: &[&str]) -> Error {
        let before = self.root.read("/var/lib/dpkg/status");
        let error = block(Installer::new(&self.host).install(&request(packages))).unwrap_err();
        assert_eq!(self.root.read("/var/lib/dpkg/status"), before, "{error}");
        assert!(!self.root.at(IN_FLIGHT).exists());
        error
    }
}

fn block<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn request(packages: &[&str]) -> Request {
    Request { packages: packages.iter().map(|p| (*p).to_owned()).collect(), ..Request::default() }
}

fn packages(names: &[&str]) -> Action {
    Action::AptPackage(AptPackage {
        packages: names.iter().map(|p| (*p).to_owned()).collect(),
        hold: true,
        ..AptPackage::default()
    })
}

fn toolkit() -> [Deb; 5] {
    let lib = |version: &str| {
        Deb::new("libcublas-12-8", version)
            .file("/usr/local/cuda-12.8/lib64/libcublas.so.12", vec![7; 40_000])
            .file(
                "/usr/share/doc/libcublas-12-8/copyright",
                "left out on machines that exclude documentation",
            )
    };
    [
        Deb::new("cuda-toolkit-12-8", "12.8.1-1")
            .field("Depends", "libcublas-12-8, plain-tool")
            .field("Recommends", "not-wanted"),
        lib("12.8.4.1-1"),
        Deb::new("plain-tool", "1.0")
            .file("/usr/bin/plain-tool", "#!/bin/sh\n")
            .conffile("/etc/plain.conf", "a=1\n"),
        Deb::new("not-wanted", "1.0"),
        lib("12.8.19.9-1"),
    ]
}

#[test]
fn installs_once_and_heals_exactly_what_was_damaged() {
    let m = Machine::new(&toolkit()[..4]);
    let action = packages(&["cuda-toolkit-12-8"]);
    assert!(matches!(m.check(&action), Check::Needed { why } if why == "cuda-toolkit-12-8 is not installed"));
    block(action.apply(&m.host)).unwrap();

    let evidence = m.satisfied(&action);
    assert_eq!(evidence, "cuda-toolkit-12-8 and 2 more installed, 2 files as recorded");
    assert!(!m.version("not-wanted").starts_with("ii"));
    // NVIDIA's are held; what others need stays open to security updates.
    assert_eq!(m.root.run("apt-mark", &["showhold"]), "cuda-toolkit-12-8\nlibcublas-12-8\n");
    assert!(!m.root.at(IN_FLIGHT).exists());

    // A second look starts no program at all: it must not even need one.
    let blind = Host::new(m.root.path().into());
    fs::rename(m.root.at("/usr/bin/dpkg"), m.root.at("/usr/bin/dpkg.gone")).unwrap();
    assert_eq!(block(action.check(&blind)).unwrap(), Check::satisfied(evidence));
    fs::rename(m.root.at("/usr/bin/dpkg.gone"), m.root.at("/usr/bin/dpkg")).unwrap();

    let lib = m.root.at("/usr/local/cuda-12.8/lib64/libcublas.so.12");
    fs::remove_file(&lib).unwrap();
    m.heals(
        &action,
        "/usr/local/cuda-12.8/lib64/libcublas.so.12 is missing of libcublas-12-8",
        &["libcublas-12-8"],
    );

    fs::File::options().write(true).open(&lib).unwrap().set_len(100).unwrap();
    m.heals(&action, "libcublas.so.12 has 100 bytes, not 40000 of libcublas-12-8", &["libcublas-12-8"]);
    assert_eq!(fs::metadata(&lib).unwrap().len(), 40_000);

    m.root.run("apt-mark", &["unhold", "libcublas-12-8"]);
    m.heals(&action, "libcublas-12-8 is not on hold", &[]);

    m.root.run("dpkg", &["--force-depends", "--force-hold", "--purge", "libcublas-12-8"]);
    m.heals(&action, "libcublas-12-8 12.8.4.1-1 is no longer installed", &["libcublas-12-8"]);

    // apt takes a status file of the same second and size for unchanged: this version has another length.
    let newer = toolkit()[4].build(&m.root.at("/srv/other"));
    let newer = format!("/srv/other/{}", newer.file_name().unwrap().to_string_lossy());
    m.root.run("dpkg", &["--force-hold", "-i", &newer]);
    m.heals(
        &action,
        "changed held version: libcublas-12-8 is 12.8.19.9-1, was 12.8.4.1-1",
        &["libcublas-12-8"],
    );
    assert_eq!(m.version("libcublas-12-8"), "hi 12.8.4.1-1");

    // An administrator's own setting is no damage.
    m.root.write("/etc/plain.conf", "a=2\n");
    m.satisfied(&action);
}

#[test]
fn what_others_installed_is_recorded_and_held_without_apt() {
    let m = Machine::new(&toolkit()[..4]);
    m.root.run("apt-get", &["-qqy", "--no-install-recommends", "install", "cuda-toolkit-12-8"]);
    let action = packages(&["cuda-toolkit-12-8=12.8.*"]);
    m.heals(&action, "cuda-toolkit-12-8 is not on hold", &[]);
    // The record reaches what the toolkit depends on of NVIDIA's.
    fs::remove_file(m.root.at("/usr/local/cuda-12.8/lib64/libcublas.so.12")).unwrap();
    m.heals(&action, "is missing of libcublas-12-8", &["libcublas-12-8"]);
}

#[test]
fn what_an_update_replaced_by_another_package_is_not_missed() {
    let meta = |version: &str, abi: &str| {
        Deb::new("linux-modules-nvidia-580-aws", version)
            .field("Depends", &format!("linux-modules-nvidia-580-6.8.0-{abi}-aws"))
    };
    let modules = |abi: &str| {
        Deb::new(&format!("linux-modules-nvidia-580-6.8.0-{abi}-aws"), "1")
            .file(&format!("/lib/modules/6.8.0-{abi}-aws/kernel/nvidia/nvidia.ko"), "x")
    };
    let m = Machine::new(&[meta("1021", "1021"), modules("1021")]);
    let action = packages(&["linux-modules-nvidia-580-aws"]);
    block(action.apply(&m.host)).unwrap();
    m.root.run("dpkg", &["--force-depends", "--purge", "linux-modules-nvidia-580-6.8.0-1021-aws"]);
    m.heals(&action, "is no longer installed", &["linux-modules-nvidia-580-6.8.0-1021-aws"]);

    // The kernel's update, as unattended-upgrades makes it; the archive has the old version no more.
    m.repo.add(&meta("1040", "1040"));
    m.repo.add(&modules("1040"));
    m.repo.remove("linux-modules-nvidia-580-6.8.0-1021-aws_1_all.deb");
    m.publish();
    m.root.run("apt-get", &["-qqy", "dist-upgrade"]);
    m.root.run("dpkg", &["--purge", "linux-modules-nvidia-580-6.8.0-1021-aws"]);
    m.satisfied(&action);
}

/// `kernel-packages` for one running kernel.
fn kernel(running: &str) -> Action {
    Action::KernelPackages(KernelPackages {
        running: vec![format!("linux-headers-{running}")],
        following: vec!["linux-headers-aws".into()],
        image: vec!["linux-image-aws".into()],
    })
}

#[test]
fn headers_are_those_of_the_running_kernel_and_else_of_the_newest_with_its_kernel() {
    let meta = |what: &str| {
        Deb::new(&format!("linux-{what}-aws"), "1").field("Depends", &format!("linux-{what}-6.8.0-1040-aws"))
    };
    let of = |what: &str, release: &str| Deb::new(&format!("linux-{what}-{release}"), "1");
    let m = Machine::new(&[
        meta("headers"),
        meta("image"),
        of("headers", "6.8.0-1021-aws"),
        of("headers", "6.8.0-1040-aws"),
        of("image", "6.8.0-1040-aws"),
    ]);
    m.root.write("/var/log/dpkg.log", "");
    let offered = kernel("6.8.0-1021-aws");
    m.heals(
        &offered,
        "linux-headers-aws is not installed",
        &["linux-headers-6.8.0-1021-aws", "linux-headers-6.8.0-1040-aws", "linux-headers-aws"],
    );
    m.root.run("dpkg", &["--purge", "linux-headers-6.8.0-1021-aws"]);
    m.heals(&offered, "is no longer installed", &["linux-headers-6.8.0-1021-aws"]);
    assert_eq!(m.root.run("apt-mark", &["showhold"]), "");

    let gone = kernel("6.8.0-1009-aws");
    m.heals(&gone, "not recorded yet", &["linux-image-6.8.0-1040-aws", "linux-image-aws"]);
    m.root.run("dpkg", &["--purge", "linux-image-aws"]);
    m.heals(&gone, "linux-image-aws 1 is no longer installed", &["linux-image-aws"]);
}

#[test]
fn a_library_gone_from_the_repository_is_replaced_by_what_there_is() {
    let m = Machine::new(&toolkit()[..4]);
    let action = packages(&["cuda-toolkit-12-8"]);
    block(action.apply(&m.host)).unwrap();
    m.repo.remove("libcublas-12-8_12.8.4.1-1_all.deb");
    m.repo.add(&toolkit()[4]);
    m.repo.publish(Some(&m.key)); // apt has not seen it: its lists are old
    m.root.run("dpkg", &["--force-depends", "--force-hold", "--purge", "libcublas-12-8"]);
    m.heals(&action, "is no longer installed", &["libcublas-12-8"]);
    assert_eq!(m.version("libcublas-12-8"), "hi 12.8.19.9-1");
}

#[test]
fn nothing_is_asked_and_changed_configuration_stays() {
    let script = "if read answer; then echo answered; else echo closed; fi > /stdin-was\n\
                  env | grep -E '^(DEBIAN_FRONTEND|UCF_FORCE_CONFFOLD|NEEDRESTART_SUSPEND|LD_PRELOAD)=' | sort > /env-was";
    let tool = |version: &str, conf: &str| {
        Deb::new("tool", version).conffile("/etc/tool.conf", conf).script("postinst", script)
    };
    let m = Machine::new(&[tool("1.0", "setting=1\n")]);
    block(Installer::new(&m.host).install(&request(&["tool"]))).unwrap();
    assert_eq!(m.root.read("/stdin-was"), "closed\n");
    let env = m.root.read("/env-was");
    assert_eq!(env, "DEBIAN_FRONTEND=noninteractive\nNEEDRESTART_SUSPEND=1\nUCF_FORCE_CONFFOLD=1\n");

    m.root.write("/etc/tool.conf", "setting=mine\n");
    m.repo.add(&tool("2.0", "setting=2\n"));
    m.publish();
    block(Installer::new(&m.host).install(&request(&["tool=2.0"]))).unwrap();
    assert_eq!(m.version("tool"), "ii 2.0");
    assert_eq!(m.root.read("/etc/tool.conf"), "setting=mine\n");
}

#[test]
fn a_source_without_signatures_is_refused_by_file_and_line() {
    let m = Machine::new(&[Deb::new("tool", "1.0"), Deb::new("other", "1.0")]);
    let rogue = Repository::new(m.root.path(), "rogue");
    rogue.add(&Deb::new("tool", "9.0"));
    rogue.publish(None);
    m.root.write("/etc/apt/sources.list.d/rogue.list", "# ours\ndeb [trusted=yes] file:///srv/rogue/ ./\n");
    // The machine's configuration switches everything off that we force on.
    m.root.write(
        "/etc/apt/apt.conf.d/99insecure",
        "APT::Get::AllowUnauthenticated \"1\";\nAcquire::AllowInsecureRepositories \"1\";\n",
    );
    m.root.run("apt-get", &["-qq", "update"]);
    let error = m.refuses(&["tool"]);
    assert_eq!(error.code(), Code::UntrustedSource);
    assert_eq!(
        error.message(),
        "apt would take tool 9.0 from /etc/apt/sources.list.d/rogue.list:2, where signatures are switched off \
         (trusted=yes); nothing was installed"
    );
    // The source is no reason to refuse what does not come from it.
    block(Installer::new(&m.host).install(&request(&["other"]))).unwrap();

    // Without the option, the same source is merely unsigned: apt itself refuses, its configuration overruled.
    m.root.write("/etc/apt/sources.list.d/rogue.list", "deb file:///srv/rogue/ ./\n");
    let error = m.refuses(&["tool=9.0"]);
    assert_eq!(error.code(), Code::RepositoryUntrusted, "{error} {:?}", error.causes());
    let error = block(m.host.apt().update()).unwrap_err();
    assert_eq!(error.code(), Code::RepositoryUntrusted, "{error} {:?}", error.causes());
}

#[test]
fn an_index_apart_leaves_the_machine_s_lists_alone() {
    let m = Machine::new(&[Deb::new("tool", "1.0")]);
    let sources = "/var/lib/gpu-bootstrap/test.sources";
    let stanza = |key: &str| {
        format!("Types: deb\nURIs: file:/srv/apart\nSuites: ./\nSigned-By: /etc/apt/keyrings/{key}.gpg\n")
    };
    let apart = Repository::new(m.root.path(), "apart");
    apart.add(&Deb::new("tool", "2.0"));
    apart.publish(Some(&m.key));
    let before = listing(&m.root.at("/var/lib/apt/lists"));
    m.root.write(sources, &stanza("repo"));
    block(m.host.apt().update_apart(sources, paths::LISTS_DIR)).unwrap();
    let fetched = listing(&m.root.at(paths::LISTS_DIR));
    assert!(fetched.iter().any(|n| n.ends_with("_InRelease")), "{fetched:?}");
    assert_eq!(listing(&m.root.at("/var/lib/apt/lists")), before);

    Key::new().export(&m.root.at("/etc/apt/keyrings/wrong.gpg"));
    m.root.write(sources, &stanza("wrong"));
    let error = block(m.host.apt().update_apart(sources, "/var/lib/gpu-bootstrap/lists2")).unwrap_err();
    assert_eq!(error.code(), Code::RepositoryUntrusted, "{error} {:?}", error.causes());
}

fn listing(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn removals_downgrades_holds_and_impossible_wishes_are_refused() {
    let m = Machine::new(&[
        Deb::new("keepme", "2.0"),
        Deb::new("keepme", "1.0"),
        Deb::new("greedy", "1.0").field("Conflicts", "keepme"),
        Deb::new("nvidia-driver-a", "1.0"),
        Deb::new("nvidia-driver-b", "1.0").field("Conflicts", "nvidia-driver-a"),
        Deb::new("lonely", "1.0").field("Depends", "nobody-has-this"),
    ]);
    block(Installer::new(&m.host).install(&request(&["keepme=2.0", "nvidia-driver-a"]))).unwrap();

    let error = m.refuses(&["greedy"]);
    assert_eq!(error.code(), Code::WouldRemove);
    assert!(error.message().contains("would remove keepme;"), "{error}");

    let error = m.refuses(&["keepme=1.0"]);
    assert!(matches!(error.code(), Code::WouldDowngrade), "{error} {:?}", error.causes());

    let error = m.refuses(&["lonely"]);
    assert_eq!(error.code(), Code::AptUnsolvable);
    assert!(error.causes()[0].contains("nobody-has-this"), "{:?}", error.causes());

    let error = m.refuses(&["no-such-package"]);
    assert_eq!(error.code(), Code::AptUnsolvable);

    // The administrator's hold is respected, even when we may change what we hold ourselves.
    m.root.run("apt-mark", &["hold", "keepme"]);
    m.repo.add(&Deb::new("pushy", "1.0").field("Depends", "keepme (>= 3)"));
    m.repo.add(&Deb::new("keepme", "3.0"));
    m.publish();
    let pushy = Request { change_held: true, ..request(&["pushy"]) };
    let error = block(Installer::new(&m.host).install(&pushy)).unwrap_err();
    assert_eq!(error.code(), Code::AptUnsolvable);
    assert_eq!(m.version("keepme"), "hi 2.0");

    // Only NVIDIA's own driver packages make room.
    block(Installer::new(&m.host).install(&request(&["nvidia-driver-b"]))).unwrap();
    assert_eq!(m.version("nvidia-driver-b"), "ii 1.0");
    assert!(!m.version("nvidia-driver-a").starts_with("ii"));
}

#[test]
fn a_full_disk_is_told_before_anything_is_fetched() {
    let m = Machine::new(&[Deb::new("huge", "1.0").field("Installed-Size", "900000000")]);
    let error = m.refuses(&["huge"]);
    assert_eq!(error.code(), Code::DiskFull);
    assert!(error.message().contains("and the installation needs 922."), "{error}");
    assert!(error.message().ends_with("nothing was fetched"), "{error}");
}

/// A dpkg that holds its locks for some seconds.
fn slow_dpkg(m: &Machine, seconds: u32) -> Child {
    let slow = Deb::new("slow", "1.0").script("postinst", &format!("touch /slow-began; sleep {seconds}"));
    slow.build(&m.root.at("/srv/slow"));
    let mut command = m.root.command("dpkg", &["-i", "/srv/slow/slow_1.0_all.deb"]);
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while !m.root.at("/slow-began").exists() {
        assert!(Instant::now() < deadline, "dpkg does not begin");
        std::thread::sleep(Duration::from_millis(20));
    }
    child
}

#[test]
fn locks_are_waited_for_and_their_holder_is_named() {
    let m = Machine::new(&[Deb::new("tool", "1.0")]);
    let mut dpkg = slow_dpkg(&m, 4);
    let named = format!("is held by dpkg (process {})", dpkg.id());

    let hurried = Host::new(m.root.path().into());
    hurried.install_as(Options::from(&InstallConfig { lock_timeout: 1, ..InstallConfig::default() }));
    let error = block(Installer::new(&hurried).install(&request(&["tool"]))).unwrap_err();
    assert_eq!(error.code(), Code::AptLocked);
    assert!(error.message().ends_with("gave up after 1 s"), "{error}");
    assert!(error.hint().unwrap().contains("lock-timeout"), "{error:?}");
    assert!(error.message().contains(&named), "{error}");

    let seen = Arc::new(Mutex::new(Vec::new()));
    let sink = seen.clone();
    let host = Host::new(m.root.path().into())
        .with_progress(move |p| sink.lock().unwrap().push(format!("{}: {}", p.what, p.item)));
    block(Installer::new(&host).install(&request(&["tool"]))).unwrap();
    assert!(dpkg.try_wait().unwrap().is_some_and(|s| s.success()), "apt did not wait for dpkg");
    let seen = seen.lock().unwrap();
    assert!(seen.iter().any(|what| what.contains(&named)), "{seen:?}");
    assert!(seen.iter().any(|what| what == "installing packages: tool"), "{seen:?}");
    assert_eq!(m.version("tool"), "ii 1.0");
}

#[test]
fn a_lock_that_somebody_took_first_is_waited_for() {
    let m = Machine::new(&[Deb::new("tool", "1.0")]);
    // Between our look and apt's own, once for each call.
    let apt = m.root.at("/usr/bin/apt-get");
    fs::rename(&apt, m.root.at("/usr/bin/apt-get.real")).unwrap();
    m.root.write(
        "/usr/bin/apt-get",
        "#!/bin/sh\nif [ ! -e /was-locked ]; then\n  touch /was-locked\n  \
         echo 'E: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 1 (apt)' >&2\n  exit 100\nfi\n\
         exec /usr/bin/apt-get.real \"$@\"\n",
    );
    fs::set_permissions(&apt, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let hurried = Installer::new(&m.host).waiting(Duration::ZERO);
    let error = block(hurried.install(&request(&["tool"]))).unwrap_err();
    assert_eq!(error.code(), Code::AptLocked, "{error}: {:?}", error.causes());
    assert!(error.message().contains("held by process 1 (apt)"), "{error}");
    fs::remove_file(m.root.at("/was-locked")).unwrap();
    block(Installer::new(&m.host).install(&request(&["tool"]))).unwrap();
    assert_eq!(m.version("tool"), "ii 1.0");
}

/// The lock of apt's package lists, held through an open file: the kernel names no process for it.
#[expect(clippy::cast_possible_truncation, reason = "small constants, of another type than the field")]
fn lists_held(m: &Machine) -> fs::File {
    let lists = fs::File::options().write(true).open(m.root.at("/var/lib/apt/lists/lock")).unwrap();
    let whole = nix::libc::flock {
        l_type: nix::libc::F_WRLCK as nix::libc::c_short,
        l_whence: 0,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    nix::fcntl::fcntl(&lists, nix::fcntl::FcntlArg::F_OFD_SETLK(&whole)).unwrap();
    lists
}

#[test]
fn lists_in_doubt_stay_as_long_as_another_program_holds_their_lock() {
    let m = Machine::new(&[Deb::new("tool", "1.0")]);
    let lists = fs::read_dir(m.root.at("/var/lib/apt/lists")).unwrap().map(|entry| entry.unwrap().path());
    let list = lists.into_iter().find(|path| path.to_str().unwrap().ends_with("Release")).unwrap();
    let whole = fs::read(&list).unwrap();
    m.root.write(paths::LISTS_UNSYNCED, "another boot");
    let lists = lists_held(&m);
    let error = block(m.host.apt().waiting(Duration::from_millis(300)).update()).unwrap_err();
    assert_eq!(error.code(), Code::AptLocked, "{error}");
    assert!(list.exists(), "the lists have gone");
    drop(lists);
    fs::write(&list, "torn").unwrap();
    block(m.host.apt().update()).unwrap();
    assert!(fs::read(&list).unwrap() == whole, "the torn list has stayed");
}

#[test]
fn a_holder_that_the_kernel_does_not_name_is_waited_for_too() {
    let m = Machine::new(&[]);
    let lists = lists_held(&m);
    let error = block(m.host.apt().waiting(Duration::from_millis(300)).update()).unwrap_err();
    assert_eq!(error.code(), Code::AptLocked);
    assert!(
        error
            .message()
            .starts_with("/var/lib/apt/lists/lock is held by a process that is not visible from here"),
        "{error}"
    );
    drop(lists);
    block(m.host.apt().waiting(Duration::from_millis(300)).update()).unwrap();
}

#[test]
fn after_a_kill_every_package_in_flight_is_installed_again() {
    let counted = |name: &str, body: &str| {
        Deb::new(name, "1.0")
            .file(&format!("/usr/lib/{name}.so"), vec![1; 5000])
            .script("postinst", &format!("echo {name} >> /configured\n{body}"))
    };
    let m = Machine::new(&[
        counted("cuda-first", ""),
        counted("cuda-last", "if [ ! -e /slow-began ]; then touch /slow-began; sleep 3; fi")
            .field("Depends", "cuda-first"),
    ]);
    let action = packages(&["cuda-last"]);
    // Dropping the future kills apt in the middle of dpkg's work, as the agent's own death would not even do.
    block(async {
        let install = action.apply(&m.host);
        tokio::select! {
            done = install => panic!("ended too early: {done:?}"),
            () = async { while !m.root.at("/slow-began").exists() { tokio::time::sleep(Duration::from_millis(20)).await } } => {}
        }
    });
    assert!(m.root.read(IN_FLIGHT).contains("\"cuda-first\""));
    // What a power cut does to a file that was never synced.
    fs::write(m.root.at("/usr/lib/cuda-first.so"), "").unwrap();
    let Check::Needed { why } = m.check(&action) else { panic!("not needed") };
    assert!(why.starts_with("an earlier run was killed while it installed packages"), "{why}");

    block(action.apply(&m.host)).unwrap();
    m.satisfied(&action);
    assert!(!m.root.at(IN_FLIGHT).exists());
    assert_eq!(fs::metadata(m.root.at("/usr/lib/cuda-first.so")).unwrap().len(), 5000);
    let configured = m.root.read("/configured");
    assert!(configured.matches("cuda-first").count() >= 2, "{configured}");
    assert!(configured.matches("cuda-last").count() >= 2, "{configured}");
    assert_eq!(m.root.run("dpkg", &["--audit"]), "");
}

/// Applies the action, and stops it between apt's end and the record of what came, as a kill would: there is no `apt-mark`.
fn stopped_before_the_record(m: &Machine, action: &Action) {
    let (program, away) = (m.root.at("/usr/bin/apt-mark"), m.root.at("/usr/bin/apt-mark.gone"));
    fs::rename(&program, &away).unwrap();
    let error = block(action.apply(&m.host)).unwrap_err();
    let about_marks = ["hold packages", "mark packages"].iter().any(|words| error.message().contains(words));
    assert!(about_marks, "{error}");
    assert!(!m.root.at(IN_FLIGHT).exists(), "apt has not come to its end");
    fs::rename(away, program).unwrap();
    let Check::Needed { why } = m.check(action) else { panic!("not needed") };
    assert!(why.contains("not recorded yet") || why.contains("not on hold"), "{why}");
}

#[test]
fn a_kill_before_the_record_loses_no_dependency() {
    let m = Machine::new(&toolkit()[..4]);
    let action = packages(&["cuda-toolkit-12-8"]);
    stopped_before_the_record(&m, &action);
    block(action.apply(&m.host)).unwrap();
    assert_eq!(m.satisfied(&action), "cuda-toolkit-12-8 and 2 more installed, 2 files as recorded");
    fs::remove_file(m.root.at("/usr/bin/plain-tool")).unwrap();
    m.heals(&action, "/usr/bin/plain-tool is missing of plain-tool", &["plain-tool"]);
}

#[test]
fn what_a_killed_run_brought_for_one_record_gets_into_no_other() {
    let tool = |name: &str| Deb::new(name, "1").file(&format!("/usr/bin/{name}"), "x");
    let m = Machine::new(&[
        Deb::new("cuda-one", "1").field("Depends", "for-one"),
        Deb::new("cuda-two", "1").field("Depends", "for-two"),
        tool("for-one"),
        tool("for-two"),
    ]);
    let (one, two) = (packages(&["cuda-one"]), packages(&["cuda-two"]));
    block(one.apply(&m.host)).unwrap();
    stopped_before_the_record(&m, &two);
    // The next run finds something to do for the first set, too.
    fs::remove_file(m.root.at("/usr/bin/for-one")).unwrap();
    m.heals(&one, "/usr/bin/for-one is missing", &["for-one"]);
    assert_eq!(m.satisfied(&one), "cuda-one and 1 more installed, 1 files as recorded");
    block(two.apply(&m.host)).unwrap();
    assert_eq!(m.satisfied(&two), "cuda-two and 1 more installed, 1 files as recorded");
}

#[test]
fn a_kill_after_a_repair_leaves_no_dependency_marked_as_wanted() {
    let m = Machine::new(&toolkit()[..4]);
    let action = packages(&["cuda-toolkit-12-8"]);
    block(action.apply(&m.host)).unwrap();
    let automatic = m.root.run("apt-mark", &["showauto"]);
    assert!(automatic.contains("libcublas-12-8\n") && automatic.contains("plain-tool\n"), "{automatic}");
    m.root.run("dpkg", &["--force-depends", "--purge", "plain-tool"]);
    stopped_before_the_record(&m, &action);
    block(action.apply(&m.host)).unwrap();
    m.satisfied(&action);
    assert_eq!(m.root.run("apt-mark", &["showauto"]), automatic);
}

/// The first time, a maintainer script with this in it waits to be killed.
const WAITS_ONCE: &str = "if [ ! -e /slow-began ]; then touch /slow-began; sleep 30; fi";

/// Applies the action, and kills apt, dpkg and the maintainer script as soon as that waits.
fn killed_while_it_waits(m: &Machine, action: &Action) {
    let began = m.root.at("/slow-began");
    block(async {
        tokio::select! {
            done = action.apply(&m.host) => panic!("ended too early: {done:?}"),
            () = async { while !began.exists() { tokio::time::sleep(Duration::from_millis(10)).await } } => {}
        }
    });
    assert!(m.root.at(IN_FLIGHT).exists());
}

#[test]
fn dpkg_killed_in_unpack_configure_or_trigger_is_brought_to_its_end() {
    // Which script waits, what it does otherwise, and what dpkg says of the package meanwhile.
    let phases = [
        ("preinst", WAITS_ONCE.to_owned(), "half-installed"),
        ("postinst", format!("[ \"$1\" != configure ] || {{ {WAITS_ONCE}; }}"), "half-configured"),
        (
            "postinst",
            format!("[ \"$1\" != triggered ] || {{ {WAITS_ONCE}; echo ran >/triggered; }}"),
            "half-configured",
        ),
    ];
    for (script, body, state) in phases {
        let m = Machine::new(&[
            Deb::new("cuda-slow", "1")
                .file("/usr/lib/slow.so", vec![1; 5000])
                .control("triggers", "interest-noawait /usr/share/pulls\n")
                .script(script, &body),
            Deb::new("cuda-pulls", "1").field("Depends", "cuda-slow").file("/usr/share/pulls/it", "x"),
        ]);
        if body.contains("triggered") {
            // Only what is configured already can be triggered.
            block(packages(&["cuda-slow"]).apply(&m.host)).unwrap();
        }
        let action = packages(&["cuda-pulls"]);
        killed_while_it_waits(&m, &action);
        let status = m.root.run("dpkg-query", &["-W", "-f", "${db:Status-Status}", "cuda-slow"]);
        assert_eq!(status, state, "{script}: {body}");
        block(action.apply(&m.host)).unwrap();
        m.satisfied(&action);
        assert_eq!((m.version("cuda-slow").as_str(), m.version("cuda-pulls").as_str()), ("hi 1", "hi 1"));
        assert_eq!(m.root.run("dpkg", &["--audit"]), "", "{script}: {body}");
        assert!(!m.root.at(IN_FLIGHT).exists());
        assert_eq!(body.contains("triggered"), m.root.at("/triggered").exists());
    }
}

#[test]
fn whatever_a_power_cut_tears_is_made_whole_again() {
    // No sums, as dpkg --verify would need them; a link; and files that only the script makes.
    let torn = Deb::new("cuda-torn", "1")
        .file("/usr/lib/torn.so", vec![1; 5000])
        .file("/usr/lib/zeroed.so", vec![2; 5000])
        .link("/usr/lib/link.so", "torn.so")
        .script("postinst", "cat /usr/lib/torn.so /usr/lib/zeroed.so >/usr/lib/made-by-script");
    let m = Machine::new(&[
        torn,
        Deb::new("cuda-last", "1").field("Depends", "cuda-torn").script("postinst", WAITS_ONCE),
    ]);
    let action = packages(&["cuda-last"]);
    killed_while_it_waits(&m, &action);
    let at = |name: &str| m.root.at(&format!("/usr/lib/{name}"));
    let list = m.root.at("/var/lib/dpkg/info/cuda-torn.list");
    let whole = fs::read(&list).unwrap();

    fs::write(at("torn.so"), vec![1; 100]).unwrap();
    fs::write(at("zeroed.so"), vec![0; 5000]).unwrap();
    fs::remove_file(at("link.so")).unwrap();
    fs::write(at("made-by-script"), "").unwrap();
    fs::write(&list, "").unwrap();
    assert_eq!(m.root.run("dpkg", &["--verify", "cuda-torn"]), "", "dpkg does not see it");

    block(action.apply(&m.host)).unwrap();
    m.satisfied(&action);
    assert_eq!(fs::read(at("torn.so")).unwrap(), vec![1; 5000]);
    assert_eq!(fs::read(at("zeroed.so")).unwrap(), vec![2; 5000]);
    assert_eq!(fs::read_link(at("link.so")).unwrap(), Path::new("torn.so"));
    assert_eq!(fs::read(at("made-by-script")).unwrap(), [vec![1; 5000], vec![2; 5000]].concat());
    assert_eq!(fs::read(&list).unwrap(), whole);
    assert!(!m.root.at(IN_FLIGHT).exists());
}

#[test]
fn a_script_that_fails_once_is_run_again_and_one_that_always_fails_is_named_each_time() {
    let m = Machine::new(&[
        Deb::new("cuda-once", "1").script("postinst", "if [ ! -e /failed ]; then touch /failed; exit 3; fi"),
        Deb::new("cuda-always", "1").script("postinst", "echo out of order >&2; exit 3"),
    ]);
    let once = packages(&["cuda-once"]);
    let error = block(once.apply(&m.host)).unwrap_err();
    assert_eq!(error.code(), Code::AptFailed);
    block(once.apply(&m.host)).unwrap();
    m.satisfied(&once);

    let always = packages(&["cuda-always"]);
    let error = block(always.apply(&m.host)).unwrap_err();
    assert_eq!(error.code(), Code::AptFailed);
    assert!(error.causes()[0].contains("cuda-always"), "{:?}", error.causes());
    for _ in 0..2 {
        let error = block(always.apply(&m.host)).unwrap_err();
        assert_eq!(error.code(), Code::DpkgBroken, "{error}");
        assert!(error.message().starts_with("cuda-always:all could not be repaired"), "{error}");
    }
    // What is wrong with it is no reason to touch what is right.
    m.satisfied(&once);
}

#[test]
fn a_script_that_hangs_is_ended_with_its_package_s_name_and_the_next_run_goes_on() {
    for method in [Rung::Originals, Rung::Apt] {
        let hangs = "if [ ! -e /mended ]; then echo $$ >/hanging; sleep 600; fi";
        let m = Machine::new(&[
            Deb::new("cuda-hangs", "1").file("/usr/lib/hangs.so", vec![1; 5000]).script("postinst", hangs),
            Deb::new("cuda-last", "1").field("Depends", "cuda-hangs"),
        ]);
        let options = Options { most: method, script_timeout: Duration::from_secs(2), ..Options::default() };
        let install = || block(Installer::new(&m.host).with(options).install(&request(&["cuda-last"])));
        // The first time while it installs, the second while the next run repairs what is left.
        for _ in 0..2 {
            let began = Instant::now();
            let error = install().unwrap_err();
            assert!(began.elapsed() < Duration::from_mins(1), "{:?}", began.elapsed());
            assert_eq!(error.code(), Code::ExecTimeout, "{error}");
            assert!(error.message().contains("cuda-hangs"), "{error}");
            assert!(error.hint().unwrap().contains("script-timeout"), "{error:?}");
            // Nothing of it is left at work, and nobody holds dpkg's lock.
            let pid = m.root.read("/hanging").trim().to_owned();
            let deadline = Instant::now() + Duration::from_secs(10);
            while Path::new("/proc").join(&pid).exists() {
                assert!(Instant::now() < deadline, "the script goes on");
                std::thread::sleep(Duration::from_millis(10));
            }
            block(m.host.apt().waiting(Duration::ZERO).update()).unwrap();
        }
        m.root.write("/mended", "");
        install().unwrap();
        assert_eq!((m.version("cuda-hangs").as_str(), m.version("cuda-last").as_str()), ("ii 1", "ii 1"));
        assert_eq!(m.root.run("dpkg", &["--audit"]), "");
        assert!(!m.root.at(IN_FLIGHT).exists());
    }
}

#[test]
fn a_slow_script_that_says_something_is_left_alone() {
    let m = Machine::new(&[Deb::new("cuda-slow", "1")
        .script("postinst", "for i in 1 2 3 4 5 6 7 8 9 10; do echo still here; sleep 0.5; done")]);
    let options = Options { script_timeout: Duration::from_secs(4), ..Options::default() };
    block(Installer::new(&m.host).with(options).install(&request(&["cuda-slow"]))).unwrap();
}

#[test]
fn what_another_program_left_half_installed_is_completed_from_the_repository() {
    let m = Machine::new(&[Deb::new("other", "1").script("preinst", WAITS_ONCE), Deb::new("tool", "1.0")]);
    let deb = "/srv/repo/other_1_all.deb";
    let mut dpkg = m.root.command("dpkg", &["-i", deb]);
    let mut dpkg = std::os::unix::process::CommandExt::process_group(&mut dpkg, 0)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while !m.root.at("/slow-began").exists() {
        assert!(Instant::now() < deadline, "dpkg does not begin");
        std::thread::sleep(Duration::from_millis(10));
    }
    let group = nix::unistd::Pid::from_raw(i32::try_from(dpkg.id()).unwrap());
    nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL).unwrap();
    dpkg.wait().unwrap();
    assert!(!m.root.at(IN_FLIGHT).exists());
    block(Installer::new(&m.host).install(&request(&["tool"]))).unwrap();
    assert_eq!((m.version("other").as_str(), m.version("tool").as_str()), ("ii 1", "ii 1.0"));
}

#[test]
fn a_script_that_fails_because_its_own_package_s_file_is_torn_gets_the_whole_file() {
    let m = Machine::new(&[
        Deb::new("cuda-slow", "1.0")
            .script("postinst", "if [ ! -e /slow-began ]; then touch /slow-began; sleep 3; fi"),
        // Unpacked, and not configured before the other one is.
        Deb::new("cuda-tool", "1.0")
            .field("Depends", "cuda-slow")
            .file("/usr/lib/cuda-tool", "whole")
            .script("postinst", "grep -q whole /usr/lib/cuda-tool"),
    ]);
    let action = packages(&["cuda-tool"]);
    block(async {
        let install = action.apply(&m.host);
        tokio::select! {
            done = install => panic!("ended too early: {done:?}"),
            () = async { while !m.root.at("/slow-began").exists() { tokio::time::sleep(Duration::from_millis(20)).await } } => {}
        }
    });
    assert!(m.version("cuda-tool").starts_with("iU"), "{}", m.version("cuda-tool"));
    fs::write(m.root.at("/usr/lib/cuda-tool"), "").unwrap();

    block(action.apply(&m.host)).unwrap();
    m.satisfied(&action);
    assert_eq!(m.root.read("/usr/lib/cuda-tool"), "whole");
    assert_eq!(m.root.run("dpkg", &["--audit"]), "");
}

#[test]
fn half_installed_packages_are_repaired_or_named() {
    let m = Machine::new(&[
        Deb::new("tool", "1.0"),
        Deb::new("moody", "1.0").script("postinst", "test -e /mood || { echo no mood >&2; exit 1; }"),
    ]);
    let error = block(Installer::new(&m.host).install(&request(&["moody"]))).unwrap_err();
    assert_eq!(error.code(), Code::AptFailed);
    assert!(error.causes()[0].contains("moody"), "{:?}", error.causes());

    let error = block(Installer::new(&m.host).install(&request(&["tool"]))).unwrap_err();
    assert_eq!(error.code(), Code::DpkgBroken);
    assert!(error.message().starts_with("moody:all could not be repaired"), "{error}");

    m.root.write("/mood", "");
    block(Installer::new(&m.host).install(&request(&["tool"]))).unwrap();
    assert_eq!((m.version("moody").as_str(), m.version("tool").as_str()), ("ii 1.0", "ii 1.0"));
}

/// Puts a file into the cache as a download would, and returns the action for it.
fn cached(m: &Machine, files: &[&Path]) -> Action {
    let mut list = Vec::new();
    for file in files {
        let bytes = fs::read(file).unwrap();
        let sha256 = debs::hex(&Sha256::digest(&bytes));
        let to = m.root.at(&format!("{}/{sha256}", paths::CACHE_DIR));
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::write(to, bytes).unwrap();
        // Port 9 of this machine: nobody is there, so nothing but the cache can answer.
        let name = file.file_name().unwrap().to_string_lossy();
        list.push(choose::Deb {
            url: format!("http://127.0.0.1:9/{name}?Signature=secret"),
            sha256,
            index: None,
        });
    }
    Action::Deb(deb::Deb { files: list, hold: true })
}

#[test]
fn package_files_are_installed_with_their_dependencies_and_need_no_network_afterwards() {
    let m = Machine::new(&[Deb::new("plain-tool", "1.0").file("/usr/bin/plain-tool", "x")]);
    let out = m.root.at("/srv/files");
    let cudnn = Deb::new("libcudnn9-cuda-12", "9.8.0.87-1")
        .arch("amd64")
        .field("Depends", "plain-tool")
        .file("/usr/lib/libcudnn.so.9", vec![3; 9000])
        .build(&out);
    let headers = Deb::new("libcudnn9-dev", "9.8.0.87-1").field("Depends", "libcudnn9-cuda-12").build(&out);
    let action = cached(&m, &[&headers, &cudnn]);
    let Check::Needed { why } = m.check(&action) else { panic!("not needed") };
    assert!(!why.contains("secret") && why.contains("libcudnn9-dev_9.8.0.87-1_all.deb"), "{why}");
    block(action.apply(&m.host)).unwrap();
    assert_eq!(m.version("plain-tool"), "ii 1.0");
    assert_eq!(m.version("libcudnn9-cuda-12"), "hi 9.8.0.87-1");
    assert_eq!(listing(&m.root.at("/var/lib/gpu-bootstrap/debs")), Vec::<String>::new());

    // Healing a dependency needs the repository; healing the package needs its file.
    fs::remove_file(m.root.at("/usr/lib/libcudnn.so.9")).unwrap();
    m.heals(&action, "/usr/lib/libcudnn.so.9 is missing of libcudnn9-cuda-12", &["libcudnn9-cuda-12"]);

    fs::remove_dir_all(m.root.at(paths::CACHE_DIR)).unwrap();
    m.satisfied(&action);
}

#[test]
fn package_files_that_are_wrong_are_refused() {
    let m = Machine::new(&[]);
    let out = m.root.at("/srv/files");
    let foreign = Deb::new("libcudnn9", "9.0-1").arch("s390x").build(&out);
    let error = block(cached(&m, &[&foreign]).apply(&m.host)).unwrap_err();
    assert_eq!(error.code(), Code::WrongArchitecture);
    assert!(
        error.message().starts_with("libcudnn9_9.0-1_s390x.deb is built for s390x, and this machine runs")
    );

    let torn = out.join("torn.deb");
    fs::write(&torn, "!<arch>\nnot really").unwrap();
    let error = block(cached(&m, &[&torn]).apply(&m.host)).unwrap_err();
    assert_eq!(error.code(), Code::NotADeb, "{error} {:?}", error.causes());
}

#[ignore = "downloads a Debian 13 (two minutes)"]
#[test]
fn a_key_that_apt_3_refuses_for_its_sha1_is_accepted_for_one_source_and_no_other() {
    let key = Key::certified_with("rsa3072", "SHA1");
    let m = Machine::unseen(Root::of("trixie", &["sqv"]), key, &[Deb::new("tool", "1.0")]);
    m.repo.publish(Some(&m.key));
    let sources = "/var/lib/gpu-bootstrap/test.sources";
    let stanza = "Types: deb\nURIs: file:/srv/repo\nSuites: ./\nSigned-By: /etc/apt/keyrings/repo.gpg\n";
    m.root.write(sources, stanza);

    // A key that is not pinned opens nothing for the machine.
    let machine_policy = m.root.at("/etc/crypto-policies/back-ends/apt-sequoia.config");
    let error = block(m.host.apt().update()).unwrap_err();
    assert_eq!(error.code(), Code::RepositoryUntrusted, "{error} {:?}", error.causes());
    assert!(error.causes()[0].contains("SHA1 is not considered secure"), "{:?}", error.causes());
    assert!(!machine_policy.exists());

    block(m.host.apt().update_apart(sources, paths::LISTS_DIR)).unwrap();
    assert!(listing(&m.root.at(paths::LISTS_DIR)).iter().any(|n| n.ends_with("_InRelease")));
    assert!(!machine_policy.exists());

    // The relaxed policy still refuses what was changed on the way.
    let signed = m.root.read("/srv/repo/InRelease");
    m.root.write("/srv/repo/InRelease", &signed.replace("Label: repo", "Label: evil"));
    let error = block(m.host.apt().update_apart(sources, "/var/lib/gpu-bootstrap/lists2")).unwrap_err();
    assert_eq!(error.code(), Code::RepositoryUntrusted, "{error} {:?}", error.causes());

    // The same policy where apt looks for the machine's makes the source usable for everybody's apt.
    m.root.write("/srv/repo/InRelease", &signed);
    let policy = include_str!("../steps/files/apt-sequoia.config");
    m.root.write("/etc/crypto-policies/back-ends/apt-sequoia.config", policy);
    block(m.host.apt().update()).unwrap();
}
