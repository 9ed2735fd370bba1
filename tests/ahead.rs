//! What later steps need is fetched while an earlier one installs, and what lies on the machine is not fetched at all: on
//! real apt and dpkg in disposable roots, behind servers that see when they are asked.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/apt_machine.rs"]
mod apt_machine;
#[path = "support/debs.rs"]
mod debs;
#[path = "support/machine.rs"]
mod machine;
#[path = "support/repository.rs"]
mod repository;
#[path = "support/root.rs"]
mod root;
#[path = "support/scripted_http.rs"]
mod scripted_http;
#[path = "support/web.rs"]
mod web;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use apt_machine::{Machine, block, most, noise, unmount};
use debs::{Deb, Repository};
use gpu_bootstrap::action::apt_package::AptPackage;
use gpu_bootstrap::action::{Action, deb};
use gpu_bootstrap::catalog::choose;
use gpu_bootstrap::engine::converge::{Outcome, converge};
use gpu_bootstrap::engine::receipt::Receipt;
use gpu_bootstrap::error::Error;
use gpu_bootstrap::host::apt::Request;
use gpu_bootstrap::host::{Host, paths};
use gpu_bootstrap::install::ahead::Wish;
use gpu_bootstrap::install::{Options, Report, Rung};
use gpu_bootstrap::plan::{self, Plan, Step, step::Scope};
use gpu_bootstrap::report::Reports;
use root::Root;
use scripted_http::{Reply, Server};
use sha2::{Digest, Sha256};
use web::{Answer, Web};

/// Says that the second step's packages have been asked for; the first step's script waits for it.
const SEEN: &str = "/seen";
/// Says that the first step's script has come to its end.
const ENDED: &str = "/ended";

/// What the repository's server was asked for, and whether the first step's script had ended by then.
type Asked = Arc<Mutex<Vec<(String, bool)>>>;

/// `first`, whose script goes on until the others have been asked for (for a minute at most), and `second` with a
/// dependency.
fn packages() -> [Deb; 3] {
    let waits = format!("for i in $(seq 600); do [ -e {SEEN} ] && break; sleep 0.1; done; touch {ENDED}");
    [
        Deb::new("first", "1").sums().file("/usr/lib/first", noise(90_000, 1)).script("postinst", &waits),
        Deb::new("second", "1:2")
            .field("Depends", "dependency")
            .sums()
            .compressed("xz")
            .file("/usr/lib/second", noise(700_000, 2)),
        Deb::new("dependency", "1").sums().file("/usr/lib/dependency", noise(200_000, 3)),
    ]
}

/// A machine whose server answers as `answer` says (path, the file's bytes).
fn machine(answer: impl Fn(&str, Vec<u8>) -> Answer + Send + Sync + 'static) -> (Machine, Asked) {
    let root = Root::new();
    let repo = Repository::new(root.path(), "repo");
    let (files, seen, ended) = (root.at("/srv/repo"), root.at(SEEN), root.at(ENDED));
    let asked = Asked::default();
    let log = asked.clone();
    let web = Web::answer(move |path| {
        let Ok(bytes) = fs::read(files.join(path.trim_start_matches('/'))) else { return Answer::Missing };
        if Path::new(path).extension().is_none_or(|e| e != "deb") {
            return Answer::Body(bytes);
        }
        let over = ended.exists();
        let mut log = log.lock().unwrap();
        log.push((path.trim_start_matches("/./").to_owned(), over));
        if ["second_", "dependency_"].iter().all(|name| log.iter().any(|(path, _)| path.contains(name))) {
            fs::write(&seen, "").unwrap();
        }
        drop(log);
        answer(path, bytes)
    });
    (Machine::serving(root, repo, web, &packages()), asked)
}

/// A machine whose server answers as it should.
fn honest() -> (Machine, Asked) {
    machine(|_, bytes| Answer::Body(bytes))
}

fn wish(packages: &[&str]) -> Wish {
    let packages = packages.iter().map(|p| (*p).to_owned()).collect();
    Wish { request: Request { packages, ..Request::default() }, files: Vec::new() }
}

/// How often each package was asked for, and whether any of that was after the first step's script.
fn counted(asked: &Asked) -> BTreeMap<String, (usize, bool)> {
    let mut all = BTreeMap::new();
    for (path, over) in asked.lock().unwrap().iter() {
        let name = path.trim_start_matches('/').split('_').next().unwrap().to_owned();
        let entry: &mut (usize, bool) = all.entry(name).or_default();
        (entry.0, entry.1) = (entry.0 + 1, entry.1 | over);
    }
    all
}

fn names(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn cache(m: &Machine) -> Vec<String> {
    names(&m.root.at(paths::CACHE_DIR))
}

/// The package's file in the repository.
fn deb(m: &Machine, package: &str) -> PathBuf {
    let dir = m.root.at("/srv/repo");
    let name = names(&dir).into_iter().find(|n| n.starts_with(&format!("{package}_")));
    dir.join(name.unwrap())
}

fn sum(path: &Path) -> String {
    format!("{:x}", Sha256::digest(fs::read(path).unwrap()))
}

/// Installs the first package while the second is expected, then the second.
fn both(m: &Machine, options: Options) -> [Report; 2] {
    m.host.ahead().expect(vec![wish(&["second"])]);
    let first = m.install(&["first"], options).unwrap();
    m.host.ahead().expect(Vec::new());
    let second = m.install(&["second"], options).unwrap();
    m.host.ahead().stop();
    assert!(m.state("second").starts_with("ii") && m.state("dependency").starts_with("ii"));
    assert_eq!(fs::read(m.root.at("/usr/lib/second")).unwrap(), noise(700_000, 2));
    [first, second]
}

/// Lets the first step's script end after a time in which the second package would have been asked for.
fn after_a_while(m: &Machine) -> std::thread::JoinHandle<()> {
    let seen = m.root.at(SEEN);
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_secs(4));
        fs::write(seen, "").unwrap();
    })
}

#[test]
fn what_the_next_step_needs_comes_while_dpkg_is_at_work_and_comes_once() {
    for rung in [Rung::Pipeline, Rung::Originals] {
        let (m, asked) = honest();
        let [first, second] = both(&m, most(rung));
        assert_eq!((first.install, second.install), (rung, rung), "{} {}", first.why, second.why);
        let counted = counted(&asked);
        assert_eq!(counted["second"], (1, false), "{counted:?}");
        assert_eq!(counted["dependency"], (1, false), "{counted:?}");
        assert_eq!((first.prepared.ahead, second.prepared.ahead), (0, second.download_bytes));
        assert_eq!(second.prepared.cached, 0);
        assert_eq!(second.prepared.fetched.unwrap().requests, 0);
        assert!(cache(&m).is_empty(), "what was used is gone: {:?}", cache(&m));
    }
}

#[test]
fn a_file_that_is_on_its_way_is_waited_for() {
    let (m, asked) = machine(|path, bytes| {
        if path.contains("second_") {
            std::thread::sleep(Duration::from_millis(1500));
        }
        Answer::Body(bytes)
    });
    let [_, second] = both(&m, Options::default());
    assert_eq!(counted(&asked)["second"], (1, false));
    assert_eq!((second.prepared.ahead, second.install), (second.download_bytes, Rung::Pipeline));
    assert!(second.prepared.verified_seconds.unwrap() > 0.2, "{:?}", second.prepared);
}

#[test]
fn without_prefetch_nothing_comes_before_its_time() {
    let (m, asked) = honest();
    let nobody_asks = after_a_while(&m);
    let [_, second] = both(&m, Options { prefetch: false, ..Options::default() });
    nobody_asks.join().unwrap();
    assert_eq!(counted(&asked)["second"], (1, true));
    assert_eq!(second.prepared.ahead, 0);
}

#[test]
fn what_cannot_be_fetched_ahead_is_fetched_when_it_is_needed() {
    // A wrong sum is worth a second attempt, a missing file is not.
    for (attempts, lies) in [(2, true), (1, false)] {
        let left = AtomicUsize::new(attempts);
        let (m, asked) = machine(move |path, mut bytes| {
            let is_bad = path.contains("second_")
                && left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok();
            match is_bad {
                true if lies => {
                    let middle = bytes.len() / 2;
                    bytes[middle] ^= 1;
                    Answer::Body(bytes)
                }
                true => Answer::Missing,
                false => Answer::Body(bytes),
            }
        });
        let [_, second] = both(&m, Options::default());
        let counted = counted(&asked);
        assert_eq!((counted["second"], counted["dependency"]), ((attempts + 1, true), (1, false)));
        assert_eq!(second.prepared.ahead, fs::metadata(deb(&m, "dependency")).unwrap().len());
        assert_eq!(second.install, Rung::Pipeline, "{}", second.why);
    }
}

#[test]
fn a_disk_without_room_to_spare_gets_nothing_ahead() {
    use nix::mount::{MsFlags, mount};
    let (m, asked) = honest();
    let state = m.root.at(paths::STATE_DIR);
    fs::create_dir_all(&state).unwrap();
    // Room for the packages, and not for what an installation has to leave free besides.
    mount(Some("tmpfs"), &state, Some("tmpfs"), MsFlags::empty(), Some("size=100m")).unwrap();
    let nobody_asks = after_a_while(&m);
    let [_, second] = both(&m, most(Rung::Originals));
    nobody_asks.join().unwrap();
    assert_eq!(counted(&asked)["second"], (1, true));
    assert_eq!(second.prepared.ahead, 0);
    unmount(&state);
}

#[test]
fn a_cached_file_is_taken_if_it_is_the_right_one() {
    for poisoned in [false, true] {
        let (m, asked) = honest();
        let packages = ["second", "dependency"].map(|package| deb(&m, package));
        fs::create_dir_all(m.root.at(paths::CACHE_DIR)).unwrap();
        for from in &packages {
            let mut bytes = fs::read(from).unwrap();
            if poisoned {
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
            }
            fs::write(m.root.at(paths::CACHE_DIR).join(sum(from)), bytes).unwrap();
        }
        let report = m.install(&["second"], Options::default()).unwrap();
        assert_eq!(report.install, Rung::Pipeline, "{}", report.why);
        assert_eq!(counted(&asked).len(), if poisoned { 2 } else { 0 });
        assert_eq!(report.prepared.cached, if poisoned { 0 } else { report.download_bytes });
        assert_eq!(fs::read(m.root.at("/usr/lib/second")).unwrap(), noise(700_000, 2));
        assert!(cache(&m).is_empty(), "{:?}", cache(&m));
    }
}

#[test]
fn apt_s_own_archives_are_used_and_left_alone() {
    let (m, asked) = honest();
    let archives = m.root.at("/var/cache/apt/archives");
    let (second, dependency) = (deb(&m, "second"), deb(&m, "dependency"));
    // As apt names it: with the colon of the epoch written out.
    let kept = archives.join("second_1%3a2_all.deb");
    fs::copy(&second, &kept).unwrap();
    let other = archives.join("dependency_1_all.deb");
    let mut bytes = fs::read(&dependency).unwrap();
    bytes[300] ^= 1;
    fs::write(&other, &bytes).unwrap();
    let report = m.install(&["second"], Options::default()).unwrap();
    assert_eq!(report.prepared.cached, fs::metadata(&second).unwrap().len());
    assert_eq!(counted(&asked).into_keys().collect::<Vec<_>>(), ["dependency"]);
    assert_eq!(report.install, Rung::Pipeline, "{}", report.why);
    assert_eq!((sum(&kept), fs::read(&other).unwrap()), (sum(&second), bytes));

    // A file that others than root may write could change after it was hashed.
    m.root.run("dpkg", &["--purge", "second"]);
    fs::set_permissions(&kept, fs::Permissions::from_mode(0o666)).unwrap();
    assert_eq!(m.install(&["second"], Options::default()).unwrap().prepared.cached, 0);
}

fn step(id: &str, action: Action) -> Step {
    let actions = vec![action];
    let digest = plan::digest::step(id, &actions);
    Step { id: id.into(), title: id.into(), scope: Scope::Image, origin: None, actions, digest }
}

fn plan(steps: Vec<Step>) -> Plan {
    Plan { digest: plan::digest::plan(&steps), steps }
}

fn packages_step(package: &str) -> Step {
    let packages = vec![package.to_owned()];
    step(package, Action::AptPackage(AptPackage { packages, ..AptPackage::default() }))
}

/// The machine's host, as a run has it: with reports kept, and without the program that plays the stand-ins' part.
fn run_host(m: &Machine) -> (Host, Arc<Mutex<Vec<Report>>>) {
    let reports = Arc::new(Mutex::new(Vec::new()));
    let sink = reports.clone();
    let host =
        Host::new(m.root.path().into()).with_installations(move |report| sink.lock().unwrap().push(report));
    host.install_as(most(Rung::Originals));
    (host, reports)
}

#[test]
fn a_run_fetches_packages_and_package_files_of_its_later_steps_and_tidies_up() {
    let (m, asked) = honest();
    let file = Deb::new("third", "1")
        .sums()
        .file("/usr/lib/third", noise(6_000_000, 4))
        .build(&m.root.at("/srv/files"));
    let bytes = fs::read(&file).unwrap();
    let server = Server::start(move |request| Reply::part(request, &bytes));
    let url = server.url("/third.deb?Signature=secret");
    let action = deb::Deb { files: vec![choose::Deb { url, sha256: sum(&file), index: None }], hold: false };
    let (host, reports) = run_host(&m);
    let unused = m.root.at(paths::CACHE_DIR).join("0".repeat(64));
    fs::create_dir_all(unused.parent().unwrap()).unwrap();
    fs::write(&unused, "of a run that was killed, and whose packages there are no more").unwrap();

    let plan =
        plan(vec![packages_step("first"), packages_step("second"), step("third", Action::Deb(action))]);
    let outcome = block(converge(&plan, &host, &mut Receipt::new("i-1"), &Reports::default())).unwrap();
    assert_eq!(outcome, Outcome::Converged { changed: true });
    assert!(m.state("third").starts_with("ii"));
    assert_eq!(counted(&asked)["second"], (1, false));
    let reports = reports.lock().unwrap();
    let ahead: Vec<_> = reports.iter().map(|r| r.prepared.ahead).collect();
    let size = |path: &Path| fs::metadata(path).unwrap().len();
    assert_eq!(ahead, [0, reports[1].download_bytes, size(&file)]);
    // By parts, each once: the first is the question how many bytes there are.
    let parts = server.log();
    assert!(parts.len() >= 3 && parts.iter().all(|r| r.range().is_some()), "{}", parts.len());
    let asked_for: usize = parts.iter().map(|r| r.range().map_or(0, |(first, last)| last + 1 - first)).sum();
    assert_eq!(asked_for as u64, size(&file) + 8);
    assert_eq!(cache(&m), [sum(&file)], "a step's own files stay, for when the package has to be healed");
    for step in &plan.steps {
        let Wish { request, files } = step.actions[0].wish(&host).unwrap();
        assert!(
            request.packages.is_empty() && request.reinstall.is_empty() && files.is_empty(),
            "{}",
            step.id
        );
    }
}

#[test]
fn an_interrupted_run_stops_at_once_and_leaves_nothing_torn() {
    let (m, _) = machine(|path, bytes| {
        if path.contains("second_") {
            std::thread::sleep(Duration::from_secs(8));
        }
        Answer::Body(bytes)
    });
    let (host, _) = run_host(&m);
    let plan = plan(vec![packages_step("first"), packages_step("second")]);
    let seen = m.root.at(SEEN);
    let (mut receipt, reports) = (Receipt::new("i-1"), Reports::default());
    let began = block(async {
        let asked = async {
            while !seen.exists() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            // Taken back, so that the first step's script goes on waiting.
            fs::remove_file(&seen).unwrap();
        };
        tokio::select! {
            outcome = converge(&plan, &host, &mut receipt, &reports) => panic!("{outcome:?}"),
            () = asked => Instant::now(),
        }
    });
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert!(cache(&m).iter().all(|name| !name.starts_with('.')), "{:?}", cache(&m));
    let state = names(&m.root.at(paths::STATE_DIR));
    assert!(state.iter().all(|name| !name.starts_with('.')), "{state:?}");
}

#[test]
fn what_a_killed_run_was_fetching_is_removed_by_the_next() {
    let m = machine::Machine::debian12();
    let left = format!("{}/.download-{}", paths::CACHE_DIR, "0".repeat(64));
    let m = m.file(&left, "half of it");
    assert_eq!(m.run(&["run"]).code, 3, "there is no GPU");
    assert!(!m.outside(&left).exists());
}

/// Installs `first` while apt cannot find what is expected.
#[test]
fn a_wish_that_apt_cannot_fulfil_holds_nobody_up() {
    let (m, asked) = honest();
    m.host.ahead().expect(vec![wish(&["unheard-of"]), wish(&["second"])]);
    let report: Result<_, Error> = m.install(&["first"], Options::default());
    m.host.ahead().stop();
    assert_eq!(report.unwrap().install, Rung::Pipeline);
    assert_eq!(counted(&asked)["second"], (1, false), "the next wish is looked at all the same");
}
