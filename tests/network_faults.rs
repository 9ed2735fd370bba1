//! Every fault of the network for every user of it: single downloads, packages, apt's fetching of an index, the metadata
//! service. What the first run comes to and in which time, what it leaves behind, and that the next one converges.
//! `docs/network-faults.md` shows the table for people; a test compares.

#![allow(clippy::unwrap_used, reason = "test code: a panic is a failure with a place")]

#[path = "support/debs.rs"]
mod debs;
#[path = "support/imds.rs"]
mod imds;
#[path = "support/repository.rs"]
mod repository;
#[path = "support/root.rs"]
mod root;

use std::fmt::Write as _;
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use debs::Deb;
use gpu_bootstrap::action::Action;
use gpu_bootstrap::action::apt_index::AptIndex;
use gpu_bootstrap::action::apt_package::AptPackage;
use gpu_bootstrap::error::{Code, Error};
use gpu_bootstrap::host::fetch::{Fetch, Patience};
use gpu_bootstrap::host::{Host, paths};
use gpu_bootstrap::imds::{Client, Endpoint};
use gpu_bootstrap::install::fetch::{Event, Item, ProxyChoice, Settings, fetch};
use gpu_bootstrap::install::{Options, Rung};
use imds::Imds;
use imds::scripted_http::{Reply, Request, Server};
use root::Root;
use sha2::{Digest, Sha256};

/// Longer than any wait here; a test that needs it would take that long.
const FOREVER: Duration = Duration::from_mins(2);
/// What a row may take, with the patience below, on a machine that does other things.
const BOUND: Duration = Duration::from_mins(1);
/// After so many bytes some firewalls cut connections.
const CUT: usize = 64 << 10;

/// The product's patience is 10, 30 and 60 seconds.
fn patience() -> Patience {
    Patience {
        connect: Duration::from_secs(1),
        silence: Duration::from_secs(1),
        trickle: Duration::from_secs(1),
        total: Duration::from_secs(20),
    }
}

/// What a run comes to.
#[derive(Clone, Copy)]
enum End {
    /// It gets over the fault.
    Converges,
    /// An error with this code, whose sentence or causes have these words.
    Fails(Code, &'static str),
}

impl End {
    /// As the documentation shows it.
    fn shown(self) -> String {
        match self {
            Converges => "goes on".into(),
            Fails(code, _) => format!("`{code}`"),
        }
    }
}
use End::{Converges, Fails};

/// What a server does about a request for a file.
type Fault = fn(&Request, &[u8]) -> Reply;

/// A fault, and what it means to each user.
struct Row {
    name: &'static str,
    /// `None`: nobody listens.
    fault: Option<Fault>,
    /// So many requests are answered so.
    times: usize,
    download: End,
    packages: End,
    index: End,
}

const ALWAYS: usize = usize::MAX;

const fn row(
    name: &'static str,
    times: usize,
    fault: Fault,
    download: End,
    packages: End,
    index: End,
) -> Row {
    Row { name, fault: Some(fault), times, download, packages, index }
}

/// One for each fault.
fn rows() -> Vec<Row> {
    [broken_connections(), wrong_answers(), refusals()].into_iter().flatten().collect()
}

fn broken_connections() -> Vec<Row> {
    let f = Code::Fetch;
    let nobody = Row {
        name: "refused",
        fault: None,
        times: ALWAYS,
        download: Fails(f, "refused"),
        packages: Fails(f, "refused"),
        index: Fails(f, "Connection refused"),
    };
    vec![
        nobody,
        row(
            "reset",
            ALWAYS,
            |_, _| Reply::Reset,
            Fails(f, "cannot download"),
            Fails(f, "cannot download"),
            Fails(f, "cannot be fetched"),
        ),
        row("reset, then not", 2, |_, _| Reply::Reset, Converges, Converges, Converges),
        row(
            "closed without an answer",
            ALWAYS,
            |_, _| Reply::Close,
            Fails(f, "cannot download"),
            Fails(f, "cannot download"),
            Fails(f, "cannot be fetched"),
        ),
        row(
            "silence",
            ALWAYS,
            |_, _| Reply::Hang(FOREVER),
            Fails(f, "timed out"),
            Fails(f, "timed out"),
            Fails(f, "cannot be fetched"),
        ),
        row(
            "silence in the middle",
            ALWAYS,
            |r, b| Reply::part(r, b).cut(500, FOREVER),
            Fails(f, "timed out"),
            Fails(f, "timed out"),
            Fails(f, "cannot be fetched"),
        ),
        row(
            "a byte at a time",
            ALWAYS,
            |r, b| Reply::part(r, b).slowly(1, Duration::from_millis(20)),
            Fails(f, "bytes in 1 s"),
            Fails(f, "bytes in 1 s"),
            Fails(f, "have not got on for"),
        ),
        row(
            "cut short",
            ALWAYS,
            |_, b| Reply::ok(b).cut(b.len() / 2, Duration::ZERO),
            Fails(f, "cannot download"),
            Fails(f, "cannot download"),
            Fails(f, "cannot be fetched"),
        ),
        row(
            "cut at every 64 KB",
            ALWAYS,
            |r, b| Reply::part(r, b).with("ETag", "\"one\"").cut(CUT, Duration::ZERO),
            Converges,
            Converges,
            Fails(f, "cannot be fetched"),
        ),
        row(
            "cut at every 64 KB, no ranges",
            ALWAYS,
            |_, b| Reply::ok(b).cut(CUT, Duration::ZERO),
            Fails(f, "cannot download"),
            Fails(f, "cannot download"),
            Fails(f, "cannot be fetched"),
        ),
    ]
}

fn wrong_answers() -> Vec<Row> {
    let f = Code::Fetch;
    vec![
        row(
            "a length of ten bytes more",
            ALWAYS,
            |_, b| {
                Reply::Raw(
                    [format!("HTTP/1.1 200 O\r\nContent-Length: {}\r\n\r\n", b.len() + 10).as_bytes(), b]
                        .concat(),
                )
            },
            Fails(f, "cannot download"),
            Fails(f, "expected"),
            Fails(f, "cannot be fetched"),
        ),
        row(
            "a file of ten bytes less",
            ALWAYS,
            |_, b| Reply::ok(&b[..b.len().saturating_sub(10)]),
            Fails(Code::ChecksumMismatch, "nothing was kept"),
            Fails(f, "bytes, expected"),
            Fails(Code::RepositoryUntrusted, "signed"),
        ),
        row(
            "garbage",
            ALWAYS,
            |_, _| Reply::Raw(b"\x00\xffnot http at all\r\n\r\n".to_vec()),
            Fails(f, "cannot download"),
            Fails(f, "cannot download"),
            Fails(f, "cannot be fetched"),
        ),
        row(
            "a login page",
            ALWAYS,
            |_, _| Reply::ok("<!DOCTYPE html><p>log in").with("Content-Type", "text/html"),
            Fails(Code::NotADeb, "login page"),
            Fails(f, "bytes, expected"),
            Fails(Code::IndexTampered, "require authentication"),
        ),
        row(
            "redirects without an end",
            ALWAYS,
            |r, _| Reply::status(302, "").with("Location", &format!("{}x", r.path)),
            Fails(f, "more than 5 times"),
            Fails(f, "more than 5 times"),
            Fails(f, "have not got on for"),
        ),
        row(
            "another file by now",
            ALWAYS,
            |r, b| Reply::part(r, &b.iter().map(|x| x ^ 1).collect::<Vec<_>>()),
            Fails(Code::NotADeb, "not a Debian package"),
            Fails(Code::ChecksumMismatch, "nothing was kept"),
            Fails(Code::IndexTampered, "does not match its signature"),
        ),
    ]
}

fn refusals() -> Vec<Row> {
    let f = Code::Fetch;
    vec![
        row(
            "403",
            ALWAYS,
            |_, _| Reply::status(403, "no"),
            Fails(Code::FetchDenied, "answered 403"),
            Fails(Code::FetchDenied, "answered 403"),
            Fails(Code::FetchDenied, "403"),
        ),
        row(
            "404",
            ALWAYS,
            |_, _| Reply::status(404, "no"),
            Fails(f, "does not exist"),
            Fails(f, "does not exist"),
            Fails(f, "404"),
        ),
        row(
            "429 twice, Retry-After: 1",
            2,
            |_, _| Reply::status(429, "").with("Retry-After", "1"),
            Converges,
            Converges,
            Converges,
        ),
        row(
            "429, Retry-After: a day",
            ALWAYS,
            |_, _| Reply::status(429, "").with("Retry-After", "86400"),
            Fails(f, "answered 429"),
            Fails(f, "answered 429"),
            Fails(f, "429"),
        ),
        row("503 twice", 2, |_, _| Reply::status(503, ""), Converges, Converges, Converges),
        row(
            "500",
            ALWAYS,
            |_, _| Reply::status(500, ""),
            Fails(f, "answered 500"),
            Fails(f, "answered 500"),
            Fails(f, "500"),
        ),
    ]
}

/// What lies at a path.
type File = dyn Fn(&str) -> Option<Vec<u8>> + Send + Sync;

/// A server that is faulty until it is healed. It keeps its address.
struct Faulty {
    addr: SocketAddr,
    file: Arc<File>,
    wrong: Arc<AtomicBool>,
    server: Option<Server>,
}

impl Faulty {
    fn start(row: &Row, file: impl Fn(&str) -> Option<Vec<u8>> + Send + Sync + 'static) -> Self {
        let addr = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (wrong, seen) = (Arc::new(AtomicBool::new(true)), AtomicUsize::new(0));
        let mut faulty = Self { addr, file: Arc::new(file), wrong, server: None };
        if let Some(fault) = row.fault {
            let (file, wrong, times) = (faulty.file.clone(), faulty.wrong.clone(), row.times);
            faulty.server = Some(Server::start_at(addr, move |request| {
                let Some(body) = file(&request.path) else { return Reply::status(404, "") };
                let is_one = wrong.load(Ordering::SeqCst) && seen.fetch_add(1, Ordering::SeqCst) < times;
                if is_one { fault(request, &body) } else { Reply::part(request, &body) }
            }));
        }
        faulty
    }

    fn heal(&mut self) {
        self.wrong.store(false, Ordering::SeqCst);
        if self.server.is_none() {
            let file = self.file.clone();
            self.server = Some(Server::start_at(self.addr, move |request| match file(&request.path) {
                Some(body) => Reply::part(request, &body),
                None => Reply::status(404, ""),
            }));
        }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr)
    }
}

/// A first run against the fault, and a second one without it.
fn through<T>(row: &Row, end: End, faulty: &mut Faulty, run: impl Fn() -> Result<T, Error>) -> T {
    let began = Instant::now();
    let first = run();
    let took = began.elapsed();
    assert!(took < BOUND, "{}: took {took:?}", row.name);
    match (end, &first) {
        (Converges, Ok(_)) => {}
        (Fails(code, words), Err(e)) => {
            let said = format!("{e}\n{}", e.causes().join("\n"));
            assert_eq!(e.code(), code, "{}: {said}", row.name);
            assert!(said.contains(words), "{}: {words:?} is not in {said:?}", row.name);
            assert!(e.hint().is_some_and(|h| !h.is_empty()), "{}: no hint: {said}", row.name);
        }
        (Converges, Err(e)) => panic!("{}: {e:?}", row.name),
        (Fails(code, _), Ok(_)) => panic!("{}: converged instead of {code}", row.name),
    }
    faulty.heal();
    run().unwrap_or_else(|e| panic!("{}: the next run: {e:?}", row.name))
}

/// Runs every row in a thread of its own.
fn each(check: impl Fn(&Row) + Sync) {
    std::thread::scope(|scope| {
        let rows = rows();
        let threads: Vec<_> = rows
            .into_iter()
            .map(|row| {
                scope.spawn(|| {
                    let row = row;
                    check(&row);
                })
            })
            .collect();
        let failed = threads.into_iter().filter_map(|t| t.join().err()).count();
        assert_eq!(failed, 0, "rows failed; each says why above");
    });
}

fn block<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// Bytes that differ everywhere and begin as a Debian package does.
fn body() -> Vec<u8> {
    let mut x = 1_u32;
    let noise = std::iter::repeat_with(|| {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        x.to_be_bytes()[0]
    });
    b"!<arch>\n".iter().copied().chain(noise).take(1_000_000).collect()
}

fn sha256(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

fn names(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn every_fault_of_a_single_download() {
    let (body, sum) = (body(), sha256(&body()));
    each(|row| {
        let shared = body.clone();
        let mut faulty = Faulty::start(row, move |_| Some(shared.clone()));
        let dir = tempfile::tempdir().unwrap();
        let cache = dir.path().join(paths::CACHE_DIR.trim_start_matches('/'));
        let url = faulty.url("/cudnn.deb?X-Amz-Signature=geheim");
        through(row, row.download, &mut faulty, || {
            let mut host = Host::new(dir.path().to_path_buf());
            host.fetch = Fetch::new().waiting(patience());
            let outcome = block(host.fetch.into_cache_deb(&host, &url, &sum));
            if let Err(e) = &outcome {
                assert!(!format!("{e:?} {:?}", e.causes()).contains("geheim"), "{}: {e:?}", row.name);
                assert_eq!(names(&cache), Vec::<String>::new(), "{}: something is left", row.name);
            }
            outcome
        });
        assert_eq!(names(&cache), [sum.as_str()], "{}", row.name);
        assert!(fs::read(cache.join(&sum)).unwrap() == body, "{}: other bytes", row.name);
    });
}

#[test]
fn every_fault_of_a_packages_download() {
    let body = body();
    each(|row| {
        let shared = body.clone();
        let mut faulty = Faulty::start(row, move |_| Some(shared.clone()));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.deb");
        let item = Item {
            uri: faulty.url("/x.deb"),
            size: body.len() as u64,
            sha256: sha256(&body),
            path: path.clone(),
        };
        let settings = Settings {
            proxy: ProxyChoice::Direct,
            extra_roots: None,
            threads: 1,
            patience: patience(),
            ..Settings::default()
        };
        through(row, row.packages, &mut faulty, || {
            // As the stage is purged before every installation.
            let _ = fs::remove_file(&path);
            let ended = Mutex::new(None);
            fetch(std::slice::from_ref(&item), &settings, &AtomicBool::new(false), &|event| match event {
                Event::Verified { .. } => *ended.lock().unwrap() = Some(Ok(())),
                Event::Failed { error, .. } => {
                    assert!(!path.exists(), "{}: something is left", row.name);
                    *ended.lock().unwrap() = Some(Err(error));
                }
                Event::Progress { .. } | Event::Waiting { .. } => {}
            })?;
            ended.into_inner().unwrap().unwrap()
        });
        assert!(fs::read(&path).unwrap() == body, "{}: other bytes", row.name);
    });
}

/// Packages that are listed and not there, so that the index is longer than what a firewall lets through.
fn many_packages() -> String {
    (0..9000).fold(String::new(), |mut text, n| {
        let sum = sha256(format!("{n}").as_bytes());
        let _ = write!(
            text,
            "Package: cuda-part-{n}\nVersion: 1\nArchitecture: amd64\nFilename: ./{sum}.deb\nSize: 1\nSHA256: {sum}\n\n"
        );
        text
    })
}

/// A root whose apt has little patience, and a repository to be fetched from.
struct Indexed {
    root: Root,
    repository: repository::Repository,
}

impl Indexed {
    fn new() -> Self {
        let (root, key) = (Root::new(), repository::Key::generate("tests"));
        let repository = repository::Repository::new("debian12", "x86_64").with_stanzas(&many_packages());
        repository.publish(&key);
        fs::create_dir_all(root.at("/usr/share/keyrings")).unwrap();
        fs::write(root.at("/usr/share/keyrings/test.gpg"), key.binary()).unwrap();
        root.write(
            "/etc/apt/apt.conf.d/99patience",
            "Acquire::http::Timeout \"1\";\nAcquire::Retries::Delay \"false\";\n",
        );
        Self { root, repository }
    }

    fn files(&self) -> impl Fn(&str) -> Option<Vec<u8>> + Send + Sync + use<> {
        let dir: PathBuf = self.repository.root().to_owned();
        move |path| fs::read(dir.join(path.trim_start_matches('/'))).ok()
    }

    fn check(&self, row: &Row) {
        let files = self.files();
        // What is asked for by a redirect is there, too: the redirects are the fault.
        let mut faulty =
            Faulty::start(row, move |path| files(path.trim_end_matches('x')).or_else(|| files(path)));
        let action = Action::AptIndex(AptIndex {
            url: self.repository.url(&faulty.url("")),
            architecture: "amd64".into(),
            keyring: "/usr/share/keyrings/test.gpg".into(),
            label: "NVIDIA CUDA".into(),
            date_floor: "2026-06-01".into(),
            may_supply: vec!["cuda-*".into()],
            packages: vec!["cuda-part-8999".into()],
            version_floor: String::new(),
        });
        let mut host = Host::new(self.root.path().to_path_buf());
        host.fetch = Fetch::new().waiting(patience());
        through(row, row.index, &mut faulty, || {
            let outcome = block(action.apply(&host));
            let found = block(action.check(&host)).unwrap();
            let wanted = if outcome.is_ok() { "satisfied" } else { "needed" };
            assert_eq!(found.state(), wanted, "{}: {}", row.name, found.why());
            outcome
        });
    }
}

/// The rows in two halves, because each of apt's runs takes a second or more.
fn every_fault_of_an_index(half: usize) {
    let indexed = Indexed::new();
    let checked = |row: &&Row| std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| indexed.check(row)));
    let rows = rows();
    let failed = rows.iter().skip(half).step_by(2).filter(|row| checked(row).is_err()).count();
    assert_eq!(failed, 0, "rows failed; each says why above");
}

#[test]
fn every_fault_of_an_index_even_rows() {
    every_fault_of_an_index(0);
}

#[test]
fn every_fault_of_an_index_odd_rows() {
    every_fault_of_an_index(1);
}

/// A root whose only source is a signed repository behind a server that can be told to misbehave.
struct Mirrored {
    root: Root,
    host: Host,
    repo: debs::Repository,
    key: debs::Key,
    _server: Server,
}

impl Mirrored {
    /// `misbehave` is asked first about each request.
    fn new(packages: &[Deb], misbehave: impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static) -> Self {
        let root = Root::new();
        let (repo, key) = (debs::Repository::new(root.path(), "repo"), debs::Key::new());
        let dir = root.at("/srv/repo");
        let server = Server::start(move |request| {
            let file = fs::read(dir.join(request.path.trim_start_matches('/')));
            let orderly = || file.map_or_else(|_| Reply::status(404, ""), |body| Reply::part(request, &body));
            misbehave(request).unwrap_or_else(orderly)
        });
        for package in packages {
            repo.add(package);
        }
        key.export(&root.at("/etc/apt/keyrings/repo.gpg"));
        let line = format!("deb [signed-by=/etc/apt/keyrings/repo.gpg] {} ./\n", server.url(""));
        root.write("/etc/apt/sources.list", &line);
        let patience_of_apt = "Acquire::http::Timeout \"1\";\nAcquire::Retries::Delay \"false\";\n";
        root.write("/etc/apt/apt.conf.d/99patience", patience_of_apt);
        let mut host = Host::new(root.path().to_path_buf());
        host.fetch = Fetch::new().waiting(patience());
        host.install_as(Options { most: Rung::Originals, ..Options::default() });
        let mirrored = Self { root, host, repo, key, _server: server };
        mirrored.publish();
        mirrored.root.run("apt-get", &["-qq", "update"]);
        mirrored
    }

    fn publish(&self) {
        self.repo.publish(Some(&self.key));
    }

    fn apply(&self, package: &str) -> Result<(), Error> {
        let packages = vec![package.to_owned()];
        let action = Action::AptPackage(AptPackage { packages, ..AptPackage::default() });
        block(action.apply(&self.host)).map(drop)
    }

    fn state(&self, package: &str) -> String {
        let query = ["-W", "-f", "${db:Status-Abbrev}${Version}", package];
        let output = self.root.command("dpkg-query", &query).output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

fn tool(version: &str, byte: u8) -> Deb {
    Deb::new("tool", version).sums().file("/usr/share/tool", vec![byte; 5000])
}

#[test]
fn a_mirror_that_changes_between_index_and_package_is_asked_for_its_new_index() {
    let m = Mirrored::new(&[tool("1.0", 1)], |_| None);
    // The package of the index is gone.
    fs::remove_file(m.root.at("/srv/repo/tool_1.0_all.deb")).unwrap();
    m.repo.add(&tool("2.0", 2));
    m.publish();
    m.apply("tool").unwrap();
    assert_eq!(m.state("tool"), "ii 2.0");

    let m = Mirrored::new(&[tool("1.0", 1)], |_| None);
    // It is there with other bytes, and the index says so by now.
    m.repo.add(&tool("1.0", 2));
    m.publish();
    m.apply("tool").unwrap();
    assert_eq!(fs::read(m.root.at("/usr/share/tool")).unwrap(), vec![2; 5000]);
}

#[test]
fn a_mirror_in_the_middle_of_its_change_installs_nothing_until_it_is_done() {
    let m = Mirrored::new(&[tool("1.0", 1)], |_| None);
    let before = m.root.read("/var/lib/dpkg/status");
    // The new index is not there yet.
    m.repo.add(&tool("1.0", 2));
    let error = m.apply("tool").unwrap_err();
    assert_eq!(error.code(), Code::ChecksumMismatch, "{error}: {:?}", error.causes());
    fs::remove_file(m.root.at("/srv/repo/tool_1.0_all.deb")).unwrap();
    let error = m.apply("tool").unwrap_err();
    assert_eq!(error.code(), Code::IndexOutdated, "{error}: {:?}", error.causes());
    assert_eq!(m.root.read("/var/lib/dpkg/status"), before, "nothing was installed");
    m.repo.add(&tool("2.0", 3));
    m.publish();
    m.apply("tool").unwrap();
    assert_eq!(m.state("tool"), "ii 2.0");
}

#[test]
fn a_mirror_that_is_silent_about_packages_is_given_up_and_waited_for_no_longer() {
    let is_silent = Arc::new(AtomicBool::new(true));
    let silent = is_silent.clone();
    let names = ["a", "b", "c", "d", "e"];
    let mut packages: Vec<_> = names.iter().map(|n| Deb::new(n, "1").sums()).collect();
    packages.push(Deb::new("all", "1").sums().field("Depends", "a, b, c, d, e"));
    let m = Mirrored::new(&packages, move |request| {
        let is_package = Path::new(&request.path).extension().is_some_and(|e| e == "deb");
        (is_package && silent.load(Ordering::SeqCst)).then_some(Reply::Hang(FOREVER))
    });
    let before = m.root.read("/var/lib/dpkg/status");
    let began = Instant::now();
    let error = m.apply("all").unwrap_err();
    println!("given up after {:?}: {error}: {:?}", began.elapsed(), error.causes());
    assert!(began.elapsed() < BOUND, "{:?}", began.elapsed());
    assert_eq!(error.code(), Code::AptFailed, "{error}: {:?}", error.causes());
    assert!(error.message().contains("have not got on for 10 s"), "{error}: {:?}", error.causes());
    assert!(error.hint().unwrap().contains("network route"), "{error:?}");
    assert_eq!(m.root.read("/var/lib/dpkg/status"), before);
    is_silent.store(false, Ordering::SeqCst);
    m.apply("all").unwrap();
    assert_eq!(m.state("all"), "ii 1");
}

#[test]
fn every_fault_of_the_metadata_service() {
    const DOCUMENT: &str = "dynamic/instance-identity/document";
    const LIMIT: Duration = Duration::from_secs(3);
    let megabytes = || vec![b'x'; 10 << 20];
    let endless = [b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n".as_slice(), &megabytes()].concat();
    let (invalid, unreachable) = (Code::MetadataInvalid, Code::MetadataUnreachable);
    let faults = [
        ("megabytes", Reply::ok(megabytes()), invalid),
        ("megabytes without a length", Reply::Raw(endless), invalid),
        ("megabytes of an error", Reply::status(503, megabytes()), invalid),
        ("silence", Reply::Hang(FOREVER), unreachable),
        ("a byte at a time", Reply::Drip(Duration::from_millis(100)), unreachable),
        ("reset", Reply::Reset, unreachable),
        ("closed without an answer", Reply::Close, unreachable),
        ("garbage", Reply::Raw(b"\x00\xffnot http at all\r\n\r\n".to_vec()), unreachable),
        ("cut short", Reply::Cut { body: vec![b'x'; 64], missing: 32 }, unreachable),
        ("503", imds::error(503), unreachable),
        ("403", imds::error(403), Code::MetadataDisabled),
        ("a redirect", Reply::status(302, "").with("Location", "/elsewhere"), invalid),
        ("a login page", Reply::ok("<html> log in"), invalid),
    ];
    std::thread::scope(|scope| {
        for (name, reply, code) in faults {
            for (method, path) in [("PUT", "token"), ("GET", DOCUMENT)] {
                // A document is judged by who reads it.
                if name == "a login page" && method == "GET" {
                    continue;
                }
                let reply = reply.clone();
                scope.spawn(move || {
                    let service = Imds::new().fault(method, path, ALWAYS, reply).start();
                    let client = Client::new(Endpoint::Fixed(service.url()), LIMIT);
                    let began = Instant::now();
                    let error = block(client.get(DOCUMENT)).unwrap_err();
                    let took = began.elapsed();
                    assert_eq!(error.code(), code, "{name}, {method}: {error:?}");
                    assert!(error.hint().is_some(), "{name}");
                    assert!(took < LIMIT + Duration::from_secs(2), "{name}, {method}: {took:?}");
                    if code != unreachable {
                        let attempts = if method == "PUT" { 1 } else { 2 };
                        assert_eq!(
                            client.requests(),
                            attempts,
                            "{name}, {method}: another attempt would not help"
                        );
                    }
                });
            }
        }
    });
    // The next run's service is in order.
    let service = Imds::new().start();
    assert!(block(Client::new(Endpoint::Fixed(service.url()), LIMIT).get(DOCUMENT)).unwrap().is_some());
}

#[test]
fn the_documentation_shows_these_rows() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/network-faults.md");
    let text = fs::read_to_string(path).unwrap();
    let shown: Vec<_> = text.lines().filter(|l| l.starts_with("| ")).collect();
    for row in rows() {
        let ends = [row.download, row.packages, row.index].map(End::shown).join(" | ");
        let wanted = format!("| {} | {ends} |", row.name);
        assert!(shown.iter().any(|l| l.starts_with(&wanted)), "docs/network-faults.md lacks\n{wanted}");
    }
    let patience = Patience::default();
    for (what, time) in [
        ("a connection is waited for", patience.connect),
        ("silence ends it after", patience.silence),
        ("less than 16 KiB in", patience.trickle),
        ("a download as a whole has", patience.total),
    ] {
        let wanted = format!("{what} {} s", time.as_secs());
        assert!(text.contains(&wanted), "docs/network-faults.md lacks {wanted:?}");
    }
}
