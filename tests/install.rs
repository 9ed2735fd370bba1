//! How packages get onto the machine: the pipeline, the slower ways and what leads to each, on real apt and dpkg in
//! disposable roots, with a signed repository behind a web server on loopback.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/apt_machine.rs"]
mod apt_machine;
#[path = "support/debs.rs"]
mod debs;
#[path = "support/repository.rs"]
mod repository;
#[path = "support/root.rs"]
mod root;
#[path = "support/web.rs"]
mod web;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use apt_machine::{AGENT, Machine, block, most, noise, unmount};
use debs::{Deb, Repository};
use gpu_bootstrap::host::paths;
use gpu_bootstrap::install::{Installer, Options, Rung};
use root::Root;
use sha2::{Digest, Sha256};
use web::{Answer, Web};

/// Packages with every kind of entry that is treated in its own way.
fn set() -> Vec<Deb> {
    let library = Deb::new("liba", "1.0-1")
        .arch("amd64")
        .sums()
        .compressed("xz")
        .file("/usr/lib/liba.so.1", noise(700_000, 1))
        .file("/usr/lib/liba-small.so", noise(1000, 2))
        .file("/usr/bin/seta", noise(90_000, 3))
        .mode("/usr/bin/seta", 0o4755)
        .file("/opt/a/data.bin", noise(200_000, 4))
        .mode("/opt/a/data.bin", 0o640)
        .conffile("/opt/a/big.conf", &"setting\n".repeat(20_000))
        .conffile("/etc/a.conf", &"setting\n".repeat(20_000));
    let tool = Deb::new("tool", "1:2.0-1")
        .field("Depends", "liba (>= 1.0)")
        .sums()
        .compressed("gzip")
        .file(&format!("/usr/share/{}file", "a-long-name/".repeat(14)), noise(150_000, 5))
        .file("/usr/share/tool/umlaut-äöü", noise(70_000, 6))
        // Executed at once: nobody may have it open for writing any more.
        .file("/usr/share/zz/ztool", format!("#!/bin/sh\necho ran\nexit 0\n{}", "#\n".repeat(60_000)))
        .mode("/usr/share/zz/ztool", 0o755)
        .script(
            "postinst",
            "sha256sum /usr/lib/liba.so.1 >/var/lib/tool-saw; /usr/share/zz/ztool >>/var/lib/tool-saw",
        );
    let without_sums = Deb::new("plain", "3").file("/usr/share/plain/data", noise(100_000, 7));
    let meta = Deb::new("everything", "1").field("Depends", "tool, plain, zipped").sums();
    let zipped =
        Deb::new("zipped", "1").sums().compressed("zstd").file("/usr/lib/zipped", noise(5_000_000, 8));
    vec![library, tool, without_sums, meta, zipped]
}

/// Every path with all that a package decides about it.
fn tree(root: &Path) -> BTreeMap<String, String> {
    fn walk(root: &Path, dir: &Path, to: &mut BTreeMap<String, String>) {
        for entry in fs::read_dir(dir).unwrap().flatten() {
            let path = entry.path();
            let name = format!("/{}", path.strip_prefix(root).unwrap().display());
            if MAY_DIFFER.iter().any(|p| name.starts_with(p)) {
                continue;
            }
            let meta = path.symlink_metadata().unwrap();
            let mut about = format!("{:o} {} {}", meta.permissions().mode(), meta.uid(), meta.gid());
            if meta.is_file() {
                let sum = Sha256::digest(fs::read(&path).unwrap());
                let made_here = MADE_HERE.iter().any(|p| name.starts_with(p));
                let time = if made_here { 0 } else { meta.mtime() };
                let _ = write!(about, " {} {} {time} {sum:x}", meta.nlink(), meta.len());
            } else if meta.is_symlink() {
                let _ = write!(about, " {}", fs::read_link(&path).unwrap().display());
            }
            to.insert(name, about);
            if meta.is_dir() {
                walk(root, &path, to);
            }
        }
    }
    let mut all = BTreeMap::new();
    walk(root, root, &mut all);
    all
}

/// The repository itself and its key, apt's caches and logs, our own state.
const MAY_DIFFER: [&str; 9] = [
    "/srv/repo",
    "/etc/apt/keyrings",
    "/etc/apt/sources.list",
    "/var/lib/apt/lists",
    "/var/cache/apt",
    "/var/cache/ldconfig",
    "/var/log",
    "/var/lib/gpu-bootstrap",
    "/run/gpu-bootstrap",
];
/// Written while packages are installed, with the time of that.
const MADE_HERE: [&str; 5] =
    ["/var/lib/dpkg", "/var/lib/apt", "/etc/ld.so.cache", "/var/cache/debconf", "/var/lib/tool-saw"];

#[test]
fn every_way_ends_in_the_machine_that_plain_apt_makes() {
    let plain = Machine::new(&set());
    plain.root.run("apt-get", &["-qq", "-y", "install", "everything"]);
    let wanted = tree(plain.root.path());
    assert!(wanted.contains_key("/usr/lib/liba.so.1") && wanted.contains_key("/var/lib/dpkg/status"));
    for rung in [Rung::Pipeline, Rung::Originals, Rung::Apt] {
        let m = Machine::new(&set());
        let report = m.install(&["everything"], most(rung)).unwrap();
        assert_eq!(report.install, rung, "{}", report.why);
        let found = tree(m.root.path());
        let differ: Vec<_> = wanted
            .iter()
            .filter(|(path, about)| found.get(*path) != Some(*about))
            .chain(found.iter().filter(|(path, _)| !wanted.contains_key(*path)))
            .map(|(path, about)| format!("{path}: {about} / {:?}", found.get(path)))
            .collect();
        assert!(differ.is_empty(), "{rung}: {differ:#?}");
        if rung == Rung::Pipeline {
            let work = report.prepared.unpacked.unwrap();
            // liba.so.1, data.bin, ztool, the long name, the umlaut, zipped; neither set-id nor configuration files.
            assert_eq!((work.stubs, work.originals, work.linked_files), (4, 1, 6), "{work:?}");
            let (file, why) = &report.prepared.originals[0];
            assert!(file.starts_with("plain_3") && why.contains("no sums"), "{file}: {why}");
        }
        assert!(!m.root.at(paths::STAGE_DIR).exists());
    }
}

#[test]
fn each_reason_for_a_slower_way_is_found_and_named() {
    let m = Machine::new(&set());
    let plain = |name: &str| Deb::new(name, "1").sums().file("/usr/share/x", b"x");
    for n in ["a", "b", "c", "d", "e", "f", "g"] {
        m.repo.add(&plain(n).file(&format!("/usr/share/{n}"), noise(80_000, 1)));
    }
    for n in ["a", "b", "c", "d", "e", "f", "g"] {
        // One file of all of them would be a conflict.
        fs::remove_file(m.root.at(&format!("/srv/repo/{n}_1_all.deb"))).unwrap();
        m.repo.add(&Deb::new(n, "1").sums().file(&format!("/usr/share/{n}"), noise(80_000, 1)));
    }
    m.repo.publish(Some(&m.key));
    m.root.run("apt-get", &["-qq", "update"]);

    let expect = |package: &str, rung: Rung, words: &str| {
        let (way, why) = m.way(&[package]);
        assert!(way == rung && why.contains(words), "{package}: {way}, because {why}");
        assert!(m.state(package).starts_with("ii"), "{package}: {}", m.state(package));
    };
    m.root.write("/etc/apt/auth.conf.d/x.conf", "machine example.com login a password b\n");
    expect("a", Rung::Apt, "/etc/apt/auth.conf.d/x.conf holds logins");
    fs::remove_file(m.root.at("/etc/apt/auth.conf.d/x.conf")).unwrap();

    m.root.write("/etc/apt/apt.conf.d/99x", "DPkg::Pre-Install-Pkgs { \"cat >/dev/null\"; };\n");
    expect("b", Rung::Originals, "reads every archive first");
    fs::remove_file(m.root.at("/etc/apt/apt.conf.d/99x")).unwrap();

    m.root.write("/usr/bin/debsig-verify", "#!/bin/sh\nexit 0\n");
    m.root.write("/etc/dpkg/dpkg.cfg", "# Debian's own has no-debsig here\n");
    fs::set_permissions(m.root.at("/usr/bin/debsig-verify"), fs::Permissions::from_mode(0o755)).unwrap();
    expect("c", Rung::Originals, "debsig-verify");
    fs::remove_file(m.root.at("/usr/bin/debsig-verify")).unwrap();

    let status = m.root.read("/var/lib/dpkg/status");
    let at = status.find("Package: dpkg\n").unwrap();
    let (before, after) = status.split_at(at);
    m.root.write(
        "/var/lib/dpkg/status",
        &format!("{before}{}", after.replacen("Version: 1.", "Version: 9.", 1)),
    );
    expect("d", Rung::Originals, "has not been tried");
    let status = m.root.read("/var/lib/dpkg/status");
    m.root.write("/var/lib/dpkg/status", &status.replacen("Version: 9.21.", "Version: 1.21.", 1));

    expect("e", Rung::Pipeline, "");
    m.repo.add(&Deb::new("e", "2").sums().file("/usr/share/e", noise(90_000, 1)));
    m.repo.publish(Some(&m.key));
    m.root.run("apt-get", &["-qq", "update"]);
    expect("e", Rung::Originals, "every package replaces one");

    m.root.write(
        "/etc/apt/sources.list",
        &format!("deb [signed-by=/etc/apt/keyrings/repo.gpg] {} ./\n", m.repo.uri()),
    );
    m.root.run("apt-get", &["-qq", "update"]);
    expect("f", Rung::Apt, "comes by file:");
}

#[test]
fn where_the_stand_in_cannot_be_executed_packages_are_still_fetched() {
    use nix::mount::{MsFlags, mount};
    let m = Machine::new(&set());
    let state = m.root.at(paths::STATE_DIR);
    fs::create_dir_all(&state).unwrap();
    // The test's thread has a mount namespace of its own.
    mount(Some("tmpfs"), &state, Some("tmpfs"), MsFlags::MS_NOEXEC, Some("size=200m")).unwrap();
    let (way, why) = m.way(&["everything"]);
    assert!(way == Rung::Originals && why.contains("cannot be executed"), "{way}, because {why}");
    unmount(&state);
}

#[test]
fn a_stand_in_that_somebody_holds_open_for_a_moment_is_executed_after_it() {
    let m = Machine::new(&set());
    let program = m.root.at(paths::STAGE_DIR).join("bin/dpkg-deb");
    // As a child does that another thread has forked, until it executes its own program. Opened while it is being written:
    // nobody can open for writing what is being executed.
    let holder = std::thread::spawn(move || {
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(30) {
            if let Ok(held) = fs::OpenOptions::new().write(true).open(&program) {
                std::thread::sleep(Duration::from_millis(300));
                drop(held);
                return true;
            }
        }
        false
    });
    let (way, why) = m.way(&["everything"]);
    assert!(holder.join().unwrap(), "it was never open");
    assert_eq!(way, Rung::Pipeline, "{why}");
}

#[test]
fn files_on_another_mount_are_written_by_dpkg() {
    use nix::mount::{MsFlags, mount};
    let m = Machine::new(&set());
    let (opt, behind) = (m.root.at("/opt"), m.root.at("/srv/opt"));
    fs::create_dir_all(&behind).unwrap();
    let none: Option<&str> = None;
    // The same file system: only trying tells that no link leads there.
    mount(Some(&behind), &opt, none, MsFlags::MS_BIND, none).unwrap();
    let report = m.install(&["everything"], Options::default()).unwrap();
    assert_eq!((report.install, report.prepared.unpacked.unwrap().linked_files), (Rung::Pipeline, 5));
    assert_eq!(fs::read(behind.join("a/data.bin")).unwrap(), noise(200_000, 4));
    unmount(&opt);
}

/// Mounts a file system of its own for the agent's state: no link leads from there to `/usr`.
fn small_state(m: &Machine, size: &str) {
    use nix::mount::{MsFlags, mount};
    let state = m.root.at(paths::STATE_DIR);
    fs::create_dir_all(&state).unwrap();
    mount(Some("tmpfs"), &state, Some("tmpfs"), MsFlags::empty(), Some(format!("size={size}").as_str()))
        .unwrap();
}

/// A package that is small to fetch and large when it is unpacked.
fn large() -> Deb {
    Deb::new("large", "1").sums().compressed("xz").file("/usr/lib/large.bin", vec![7; 40_000_000])
}

#[test]
fn what_lies_on_another_file_system_than_the_stage_is_not_unpacked_twice() {
    let m = Machine::new(&[set(), vec![large()]].concat());
    small_state(&m, "100m");
    let report = m.install(&["everything", "large"], Options::default()).unwrap();
    assert_eq!(report.install, Rung::Pipeline, "{}", report.why);
    assert_eq!(report.prepared.unpacked.unwrap().linked_files, 0);
    let mut named: Vec<_> = report.prepared.originals.iter().map(|(file, _)| file.as_str()).collect();
    named.sort_unstable();
    assert_eq!(named, ["large_1_all.deb", "plain_3_all.deb"], "{:?}", report.prepared.originals);
    assert_eq!(fs::metadata(m.root.at("/usr/lib/large.bin")).unwrap().len(), 40_000_000);
    unmount(&m.root.at(paths::STATE_DIR));
}

#[test]
fn a_disk_that_fills_up_meanwhile_is_told_and_the_next_run_converges() {
    let m = Machine::new(&set());
    // Room for this program's copy and the downloads, and not for what is unpacked.
    let program = fs::metadata(AGENT).unwrap().len();
    let packed: u64 = fs::read_dir(m.root.at("/srv/repo"))
        .unwrap()
        .map(|e| e.unwrap())
        .filter(|e| e.file_name().to_string_lossy().ends_with(".deb"))
        .map(|e| e.metadata().unwrap().len())
        .sum();
    small_state(&m, &format!("{}k", (program + packed) / 1024 + 600));
    let before = m.root.read("/var/lib/dpkg/status");
    let error = m.install(&["everything"], Options::default()).unwrap_err();
    assert_eq!(error.code().name(), "disk-full", "{error}: {:?}", error.causes());
    assert!(error.hint().is_some_and(|h| h.contains("free space")), "{error}: {:?}", error.hint());
    assert!(!m.root.at(paths::STAGE_DIR).exists(), "the stage's space is given back");
    // What dpkg had by then is configured; nothing is half there.
    let after = m.root.read("/var/lib/dpkg/status");
    let states = after.lines().filter(|l| l.starts_with("Status: "));
    assert!(states.clone().all(|l| l == "Status: install ok installed"), "{:?}", states.collect::<Vec<_>>());
    assert!(after.len() >= before.len());
    unmount(&m.root.at(paths::STATE_DIR));
    m.install(&["everything"], Options::default()).unwrap();
    assert!(m.state("everything").starts_with("ii"));
}

#[test]
fn downloads_that_cannot_even_begin_hold_nobody_up() {
    let m = Machine::new(&set());
    let before = m.root.read("/var/lib/dpkg/status");
    m.root.write("/etc/apt/apt.conf.d/99proxy", "Acquire::http::Proxy \"http://user:a^b@127.0.0.1:1\";\n");
    let began = std::time::Instant::now();
    let error = m.install(&["everything"], Options::default()).unwrap_err();
    // apt, whose turn it is then, cannot use it either, and waits between its attempts.
    assert!(began.elapsed() < std::time::Duration::from_mins(1), "{:?}: {error}", began.elapsed());
    assert_eq!(m.root.read("/var/lib/dpkg/status"), before);
    fs::remove_file(m.root.at("/etc/apt/apt.conf.d/99proxy")).unwrap();
    assert_eq!(m.way(&["everything"]), (Rung::Pipeline, String::new()));
}

#[test]
fn a_server_that_lies_gets_nothing_installed() {
    let root = Root::new();
    let repo = Repository::new(root.path(), "repo");
    let dir = root.at("/srv/repo");
    let web = Web::answer(move |path| match fs::read(dir.join(path.trim_start_matches('/'))) {
        Ok(mut bytes) => {
            if path.contains("tool_") {
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
            }
            Answer::Body(bytes)
        }
        Err(_) => Answer::Missing,
    });
    let m = Machine::serving(root, repo, web, &set());
    let before = m.root.read("/var/lib/dpkg/status");
    let error = m.install(&["everything"], Options::default()).unwrap_err();
    assert_eq!(error.code().name(), "checksum-mismatch", "{error} {:?}", error.causes());
    assert_eq!(m.root.read("/var/lib/dpkg/status"), before);
    assert!(!m.root.at("/usr/lib/liba.so.1").exists());
    assert!(!m.root.at(paths::IN_FLIGHT).exists() && !m.root.at(paths::STAGE_DIR).exists());
}

#[test]
fn package_files_among_the_request_are_unpacked_by_all_cores_too() {
    let m = Machine::new(&set());
    let deb = Deb::new("local", "1")
        .field("Depends", "liba")
        .sums()
        .compressed("xz")
        .file("/usr/lib/local.bin", noise(400_000, 9))
        .build(&m.root.at("/var/lib"));
    let inside = format!("/var/lib/{}", deb.file_name().unwrap().to_string_lossy());
    let report = m.install(&[&inside], Options::default()).unwrap();
    assert_eq!(report.install, Rung::Pipeline, "{}", report.why);
    let work = report.prepared.unpacked.unwrap();
    assert_eq!((work.stubs, work.linked_files), (2, 3), "{work:?}");
    assert_eq!(fs::read(m.root.at("/usr/lib/local.bin")).unwrap(), noise(400_000, 9));
    assert!(deb.exists());
}

#[test]
fn files_that_reach_over_blocks_are_whole_whichever_thread_decodes_which() {
    // Of blocks of 3 MiB: the first two files share one, the last reaches over five.
    let files = [("first", 700_000, 11), ("second", 1_800_000, 12), ("third", 16_000_000, 13)];
    let deb = files
        .iter()
        .fold(Deb::new("blocks", "1").sums().compressed("xz").level(1), |deb, (name, length, seed)| {
            deb.file(&format!("/usr/lib/blocks/{name}"), noise(*length, *seed))
        });
    let m = Machine::new(&[deb]);
    let report = m.install(&["blocks"], Options::default()).unwrap();
    assert_eq!((report.install, &report.prepared.originals[..]), (Rung::Pipeline, &[][..]));
    assert_eq!(report.prepared.unpacked.unwrap().linked_files, 3);
    for (name, length, seed) in files {
        let found = fs::read(m.root.at(&format!("/usr/lib/blocks/{name}"))).unwrap();
        assert!(found == noise(length, seed), "{name}");
    }
}

#[test]
fn without_documentation_licences_stay() {
    let m = Machine::new(&[Deb::new("documented", "1")
        .sums()
        .file("/usr/share/doc/documented/copyright", b"licence")
        .file("/usr/share/doc/documented/manual.txt", b"text")
        .file("/usr/share/man/man1/documented.1", noise(100_000, 1))]);
    m.install(&["documented"], Options { documentation: false, ..Options::default() }).unwrap();
    let there = |path: &str| m.root.at(path).exists();
    assert!(there("/usr/share/doc/documented/copyright"));
    assert!(!there("/usr/share/doc/documented/manual.txt") && !there("/usr/share/man/man1/documented.1"));
}

#[test]
fn requests_are_few() {
    let m = Machine::new(&set());
    let before = m.web.requests().len();
    m.install(&["everything"], Options::default()).unwrap();
    let asked = &m.web.requests()[before..];
    assert_eq!(asked.len(), 5, "{asked:?}");
}

#[test]
fn what_another_program_installs_meanwhile_stops_the_pipeline_before_the_first_package() {
    let m = Machine::new(&set());
    let other = Deb::new("liba", "1.0-1").arch("amd64").sums().file("/usr/lib/liba.so.1", noise(1000, 9));
    let other = other.build(&m.root.at("/srv/other"));
    // apt holds its lock, lets dpkg's go, and calls this before it starts dpkg: the last moment for anybody.
    m.root.write(
        "/etc/apt/apt.conf.d/99other",
        "DPkg::Pre-Invoke { \"[ -e /meanwhile ] || { touch /meanwhile; \
         DPKG_FRONTEND_LOCKED=1 dpkg -i /srv/other/liba_1.0-1_amd64.deb; }\"; };\n",
    );
    let (way, why) = m.way(&["everything"]);
    assert!(other.exists() && m.root.at("/meanwhile").exists());
    // Whatever the other program did, plain apt goes on from there.
    assert_eq!(way, Rung::Apt, "{why}");
    assert!(why.contains("another program has installed liba meanwhile"), "{why}");
    for package in ["liba", "tool", "plain", "zipped", "everything"] {
        assert!(m.state(package).starts_with("ii"), "{package}: {}", m.state(package));
    }
    m.root.run("dpkg", &["--audit"]);
    assert!(!m.root.at(paths::STAGE_DIR).exists() && !m.root.at(paths::IN_FLIGHT).exists());
}

#[test]
fn a_stage_is_kept_while_a_dpkg_that_outlived_its_run_may_link_from_it() {
    let m = Machine::new(&set());
    Deb::new("slow", "1").script("postinst", "touch /began; sleep 3").build(&m.root.at("/srv/slow"));
    let mut dpkg = m.root.command("dpkg", &["-i", "/srv/slow/slow_1_all.deb"]);
    let mut dpkg = dpkg.stdout(Stdio::null()).spawn().unwrap();
    while !m.root.at("/began").exists() {
        std::thread::sleep(Duration::from_millis(20));
    }
    let staged = format!("{}/files/0", paths::STAGE_DIR);
    m.root.write(&staged, "what dpkg may still want");
    m.root.write(paths::IN_FLIGHT, r#"{"version": 1, "packages": []}"#);
    let recover = |budget: u64| {
        let installer = Installer::new(&m.host).waiting(Duration::from_millis(budget));
        block(installer.recover())
    };
    let began = Instant::now();
    let error = recover(500).unwrap_err();
    assert_eq!(error.code().name(), "apt-locked", "{error}");
    assert!(error.message().contains(&format!("is held by dpkg (process {})", dpkg.id())), "{error}");
    assert!((Duration::from_millis(500)..Duration::from_secs(2)).contains(&began.elapsed()));
    assert!(m.root.at(&staged).exists() && m.root.at(paths::IN_FLIGHT).exists());
    recover(30_000).unwrap();
    assert!(dpkg.try_wait().unwrap().is_some_and(|status| status.success()), "it was waited for");
    assert!(!m.root.at(paths::STAGE_DIR).exists() && !m.root.at(paths::IN_FLIGHT).exists());
}
