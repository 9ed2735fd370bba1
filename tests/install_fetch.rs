//! The package pipeline's fetcher, against servers that misbehave.

#![allow(clippy::unwrap_used, reason = "test code: a panic is a failure with a place")]

#[path = "support/namespace.rs"]
mod namespace;
#[path = "support/scripted_http.rs"]
mod scripted_http;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use gpu_bootstrap::error::{Code, Error};
use gpu_bootstrap::install::fetch::{Event, Item, ProxyChoice, Settings, Stats, fetch};
use namespace::{SmallDisk, run_in_namespace};
use scripted_http::{Reply, Request, Server, tls};
use sha2::{Digest, Sha256};

static NEVER: AtomicBool = AtomicBool::new(false);
/// Longer than any wait of the fetcher's; a test that needs it would take that long.
const FOREVER: Duration = Duration::from_secs(25);

/// Random numbers from a seed (xorshift).
#[derive(Clone)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).unwrap()
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).take(count).collect()
    }
}

/// Bytes that differ everywhere, so that none can stand for another's place.
fn content(seed: u64, count: usize) -> Vec<u8> {
    Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1).bytes(count)
}

fn sha256(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

/// What became of a fetch.
struct Outcome {
    stats: Stats,
    /// By item, in the order in which they ended.
    ended: Vec<(usize, Option<Error>)>,
    dir: tempfile::TempDir,
}

impl Outcome {
    fn verified(&self) -> Vec<usize> {
        self.ended.iter().filter(|(_, e)| e.is_none()).map(|(i, _)| *i).collect()
    }

    /// The only item's error.
    fn error(&self) -> &Error {
        let [(0, Some(error))] = &self.ended[..] else { panic!("{:?}", self.ended) };
        error
    }

    fn path(&self, item: usize) -> PathBuf {
        self.dir.path().join(item.to_string())
    }

    /// Every file that is there.
    fn files(&self) -> Vec<String> {
        let names = fs::read_dir(self.dir.path()).unwrap();
        let mut names: Vec<_> = names.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[track_caller]
    fn assert_all(&self, bodies: &[&[u8]]) {
        let mut verified = self.verified();
        verified.sort_unstable();
        assert_eq!(verified, (0..bodies.len()).collect::<Vec<_>>(), "{:?}", self.ended);
        for (index, body) in bodies.iter().enumerate() {
            assert!(fs::read(self.path(index)).unwrap() == *body, "item {index} has other bytes");
        }
    }
}

fn settings() -> Settings {
    Settings { proxy: ProxyChoice::Direct, extra_roots: None, threads: 1, ..Settings::default() }
}

/// Fetches files with these addresses and bodies into a directory of their own.
fn fetch_with(settings: &Settings, files: &[(String, &[u8])]) -> Outcome {
    let dir = tempfile::tempdir().unwrap();
    let items: Vec<_> = files
        .iter()
        .enumerate()
        .map(|(index, (uri, body))| Item {
            uri: uri.clone(),
            size: body.len() as u64,
            sha256: sha256(body),
            path: dir.path().join(index.to_string()),
        })
        .collect();
    fetch_items(settings, &items, dir)
}

fn fetch_items(settings: &Settings, items: &[Item], dir: tempfile::TempDir) -> Outcome {
    let ended = Mutex::new(Vec::new());
    let stats = fetch(items, settings, &NEVER, &|event| match event {
        Event::Verified { item } => ended.lock().unwrap().push((item, None)),
        Event::Failed { item, error } => {
            assert!(!items[item].path.exists(), "something of a failed item is left");
            ended.lock().unwrap().push((item, Some(error)));
        }
        Event::Progress { .. } | Event::Waiting { .. } => {}
    })
    .unwrap();
    Outcome { stats, ended: ended.into_inner().unwrap(), dir }
}

fn fetch_one(server: &Server, body: &[u8]) -> Outcome {
    fetch_with(&settings(), &[(server.url("/x.deb"), body)])
}

/// A server with one file, which answers the first requests with `first` and the rest as it should.
fn faulty(body: &[u8], first: Vec<fn(&Request, &[u8]) -> Reply>) -> Server {
    let (body, next) = (body.to_vec(), AtomicUsize::new(0));
    Server::start(move |request| match first.get(next.fetch_add(1, Ordering::SeqCst)) {
        Some(fault) => fault(request, &body),
        None => Reply::part(request, &body),
    })
}

/// A server that always answers so.
fn always(body: &[u8], reply: fn(&Request, &[u8]) -> Reply) -> Server {
    let body = body.to_vec();
    Server::start(move |request| reply(request, &body))
}

/// How a server answers, given its file.
type Lie = Box<dyn Fn(&Request, &[u8]) -> Reply + Send + Sync>;

/// What has been asked for, as first byte and byte after the last.
fn ranges(server: &Server, size: usize) -> Vec<(usize, usize)> {
    server.log().iter().map(|r| r.range().map_or((0, size), |(first, last)| (first, last + 1))).collect()
}

#[test]
fn files_are_fetched_in_parts_and_verified() {
    let bodies: Vec<_> = [10_000_000, 1, 0, 300_000, 5_000_001, 1 << 20]
        .iter()
        .zip(1..)
        .map(|(size, seed)| content(seed, *size))
        .collect();
    let by_path: BTreeMap<String, Vec<u8>> =
        bodies.iter().enumerate().map(|(i, b)| (format!("/{i}.deb"), b.clone())).collect();
    let server = Server::start(move |r| Reply::part(r, &by_path[&r.path]));
    let files: Vec<_> =
        bodies.iter().enumerate().map(|(i, b)| (server.url(&format!("/{i}.deb")), b.as_slice())).collect();
    for threads in [1, 3] {
        let outcome = fetch_with(&Settings { threads, ..settings() }, &files);
        outcome.assert_all(&bodies.iter().map(Vec::as_slice).collect::<Vec<_>>());
        for index in 0..bodies.len() {
            let mode = fs::metadata(outcome.path(index)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        let stats = &outcome.stats;
        assert_eq!(stats.bytes, bodies.iter().map(|b| b.len() as u64).sum::<u64>(), "nothing twice");
        assert_eq!((stats.retries, stats.is_stopped), (0, false));
        let host = &stats.hosts[&server.url("")];
        assert_eq!((host.ranges, host.bytes, host.requests), (Some(true), stats.bytes, stats.requests));
        assert!(stats.hash_cpu_seconds > 0.0 && stats.network_cpu_seconds > 0.0, "{stats:?}");
    }
    let log = server.log();
    assert!(log.iter().all(|r| r.path != "/2.deb"), "an empty file needs no request");
    assert!(log.iter().filter(|r| r.path == "/1.deb").all(|r| r.header("range").is_none()));
    assert!(log.iter().filter(|r| r.path == "/0.deb").count() >= 4);
    assert!(server.connections() < log.len(), "connections are used again");
}

#[test]
fn an_earlier_file_comes_first_and_the_rest_fills_the_link() {
    let bodies: Vec<_> = (0..6).map(|seed| content(seed + 10, 3_000_000)).collect();
    let shared = bodies.clone();
    let server = Server::start(move |r| {
        let index: usize = r.path[1..].parse().unwrap();
        Reply::part(r, &shared[index]).slowly(100_000, Duration::from_millis(4))
    });
    let files: Vec<_> =
        bodies.iter().enumerate().map(|(i, b)| (server.url(&format!("/{i}")), b.as_slice())).collect();
    let outcome = fetch_with(&settings(), &files);
    outcome.assert_all(&bodies.iter().map(Vec::as_slice).collect::<Vec<_>>());
    let order = outcome.verified();
    // Neighbours may overtake each other: the first four begin together, on a machine that does other things, too.
    let place = |file: usize| order.iter().position(|o| *o == file).unwrap();
    assert!(
        place(0) < place(5) && place(0) + place(1) + place(2) < place(3) + place(4) + place(5),
        "{order:?}"
    );
    let first: Vec<_> = server.log().iter().take(4).map(|r| r.path.clone()).collect();
    assert!((0..4).all(|i| first.contains(&format!("/{i}"))), "{first:?}");
}

#[test]
fn a_broken_connection_is_resumed_at_the_byte_where_it_broke() {
    let body = content(1, 1_200_000);
    for fault in [
        (|r, b| Reply::part(r, b).cut(700_001, Duration::ZERO)) as fn(&Request, &[u8]) -> Reply,
        // Without a length the end of the connection is the end of the body.
        |_, b| {
            let head =
                format!("HTTP/1.1 200 OK\r\nContent-Type: {}\r\nConnection: close\r\n\r\n", "text/plain");
            Reply::Raw([head.as_bytes(), &b[..700_001]].concat())
        },
    ] {
        let server = faulty(&body, vec![fault]);
        let outcome = fetch_one(&server, &body);
        outcome.assert_all(&[&body]);
        assert_eq!(ranges(&server, body.len()), [(0, 1_200_000), (700_001, 1_200_000)]);
        assert_eq!((outcome.stats.bytes, outcome.stats.retries), (1_200_000, 1));
    }
}

#[test]
fn failures_are_forgotten_where_the_file_gets_on() {
    let body = content(1, 12_000_000);
    // Every answer breaks, but only after more than 1 MiB.
    let server = always(&body, |r, b| Reply::part(r, b).cut(1_100_000, Duration::ZERO));
    let outcome = fetch_with(&Settings { max_connections: 1, ..settings() }, &[(server.url("/x"), &body)]);
    outcome.assert_all(&[&body]);
    assert!(outcome.stats.retries > 5, "{:?}", outcome.stats);
}

#[test]
fn a_file_that_does_not_get_on_is_given_up() {
    let body = content(1, 3_000_000);
    for (reply, text) in [
        ((|_, _| Reply::Reset) as fn(&Request, &[u8]) -> Reply, "cannot download"),
        (|_, _| Reply::Close, "cannot download"),
        (|_, _| Reply::status(500, ""), "answered 500"),
        (|r, b| Reply::part(r, b).cut(0, Duration::ZERO), "cannot download"),
    ] {
        let server = always(&body, reply);
        let outcome = fetch_one(&server, &body);
        assert_eq!(outcome.error().code(), Code::Fetch);
        assert!(outcome.error().message().contains(text), "{:?}", outcome.error());
        assert!(outcome.files().is_empty());
        // Once ranges are known to work, several are on their way together and count as one.
        assert!((5..=20).contains(&server.log().len()), "{}", server.log().len());
    }
}

#[test]
fn refusals_are_final_name_no_secret_and_leave_the_others_alone() {
    let body = content(1, 10_000);
    for (status, code) in
        [(401, Code::FetchDenied), (403, Code::FetchDenied), (407, Code::FetchDenied), (404, Code::Fetch)]
    {
        let shared = body.clone();
        let server = Server::start(move |r| {
            if r.path.starts_with("/bad") { Reply::status(status, "no") } else { Reply::part(r, &shared) }
        });
        let secret = format!("http://user:geheim@{}/bad.deb?token=geheim", server.addr);
        let outcome = fetch_with(&settings(), &[(secret, &body), (server.url("/good.deb"), &body)]);
        assert_eq!(outcome.verified(), [1]);
        let error = outcome.ended.iter().find_map(|(_, e)| e.as_ref()).unwrap();
        assert_eq!(error.code(), code);
        assert!(error.message().contains(&server.url("/bad.deb")), "{error:?}");
        assert!(!format!("{error:?}").contains("geheim"), "{error:?}");
        assert_eq!((server.log().len(), outcome.files()), (2, vec!["1".to_owned()]));
    }
}

#[test]
fn retry_after_is_honoured_and_has_a_limit() {
    let body = content(1, 10_000);
    let server = faulty(&body, vec![|_, _| Reply::status(429, "").with("Retry-After", "1")]);
    let began = Instant::now();
    fetch_one(&server, &body).assert_all(&[&body]);
    assert!(began.elapsed() >= Duration::from_secs(1));
    let server = always(&body, |_, _| Reply::status(503, "").with("Retry-After", "86400"));
    let outcome = fetch_one(&server, &body);
    assert!(outcome.error().message().contains("503"), "{:?}", outcome.error());
    assert_eq!(server.log().len(), 1);
}

#[test]
fn a_busy_host_is_left_alone_while_it_asks_for_that() {
    let body = content(1, 8_000_000);
    let (shared, busy_until) = (body.clone(), Mutex::new(None::<Instant>));
    let too_early = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&too_early);
    let server = Server::start(move |r| {
        let mut until = busy_until.lock().unwrap();
        match *until {
            None => {
                *until = Some(Instant::now() + Duration::from_secs(1));
                Reply::status(503, "").with("Retry-After", "1")
            }
            Some(at) => {
                // What was on its way already is not counted.
                if Instant::now() < at && Instant::now() + Duration::from_millis(700) > at {
                    counter.fetch_add(1, Ordering::SeqCst);
                }
                Reply::part(r, &shared).slowly(200_000, Duration::from_millis(5))
            }
        }
    });
    let files: Vec<_> = (0..8).map(|i| (server.url(&format!("/{i}")), body.as_slice())).collect();
    fetch_with(&settings(), &files).assert_all(&[body.as_slice(); 8]);
    assert_eq!(too_early.load(Ordering::SeqCst), 0);
}

#[test]
fn a_server_without_ranges_sends_whole_files_several_at_once() {
    let bodies: Vec<_> = (0..4).map(|seed| content(seed + 1, 4_000_000)).collect();
    let shared = bodies.clone();
    let (open, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let seen = Arc::clone(&most);
    let server = Server::start(move |r| {
        seen.fetch_max(open.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(100));
        open.fetch_sub(1, Ordering::SeqCst);
        Reply::ok(shared[r.path[1..].parse::<usize>().unwrap()].clone()).with("Accept-Ranges", "none")
    });
    let files: Vec<_> =
        bodies.iter().enumerate().map(|(i, b)| (server.url(&format!("/{i}")), b.as_slice())).collect();
    let outcome = fetch_with(&settings(), &files);
    outcome.assert_all(&bodies.iter().map(Vec::as_slice).collect::<Vec<_>>());
    assert_eq!(server.log().len(), 4, "the answer to the first request is used");
    assert_eq!(outcome.stats.hosts[&server.url("")].ranges, Some(false));
    assert!(most.load(Ordering::SeqCst) > 1);
}

#[test]
fn a_broken_download_without_ranges_is_begun_again() {
    let body = content(1, 3_000_000);
    let server = faulty(&body, vec![|_, b| Reply::ok(b).cut(2_000_000, Duration::ZERO)]);
    let shared = body.clone();
    let next = AtomicUsize::new(0);
    let whole = Server::start(move |_| {
        let reply = Reply::ok(shared.clone());
        if next.fetch_add(1, Ordering::SeqCst) == 0 { reply.cut(2_000_000, Duration::ZERO) } else { reply }
    });
    for server in [server, whole] {
        let outcome = fetch_one(&server, &body);
        outcome.assert_all(&[&body]);
        assert_eq!(server.log().len(), 2);
        assert!(server.log()[1].range().is_none(), "it has no ranges");
        assert_eq!(outcome.stats.bytes, 5_000_000);
    }
}

#[test]
fn answers_to_ranges_that_are_not_true_are_not_trusted() {
    let body = content(1, 20_000_000);
    let part = |r: &Request, b: &[u8]| {
        let (first, last) = r.range().unwrap();
        (first, last, b[first..=last].to_vec())
    };
    let wrong_start = move |r: &Request, b: &[u8]| {
        let (first, last, bytes) = part(r, b);
        Reply::status(206, bytes)
            .with("Content-Range", &format!("bytes {}-{}/{}", first + 1, last + 1, b.len()))
    };
    let nameless = move |r: &Request, b: &[u8]| Reply::status(206, part(r, b).2);
    let too_long = move |r: &Request, b: &[u8]| {
        let (first, last, bytes) = part(r, b);
        let range = format!("bytes {first}-{last}/{}", b.len());
        Reply::status(206, [bytes, vec![0; 10]].concat()).with("Content-Range", &range)
    };
    let too_long_unsaid = move |r: &Request, b: &[u8]| {
        let (first, last, bytes) = part(r, b);
        let head = format!(
            "HTTP/1.1 206 P\r\nContent-Range: bytes {first}-{last}/{}\r\nConnection: close\r\n\r\n",
            b.len()
        );
        Reply::Raw([head.as_bytes(), &bytes, &[0; 10]].concat())
    };
    let unsatisfiable = |_: &Request, _: &[u8]| Reply::status(416, "");
    let lies: [Lie; 5] = [
        Box::new(wrong_start),
        Box::new(nameless),
        Box::new(too_long),
        Box::new(too_long_unsaid),
        Box::new(unsatisfiable),
    ];
    for (index, lie) in lies.into_iter().enumerate() {
        let shared = body.clone();
        let server =
            Server::start(
                move |r| if r.range().is_some() { lie(r, &shared) } else { Reply::ok(shared.clone()) },
            );
        let outcome = fetch_one(&server, &body);
        outcome.assert_all(&[&body]);
        let log = server.log();
        assert!(log.last().unwrap().range().is_none(), "{index}: the whole file in one piece is the way out");
        assert_eq!(log.iter().filter(|r| r.range().is_none()).count(), 1, "{index}");
    }
}

#[test]
fn a_range_that_lies_and_no_other_way_is_an_error_that_says_so() {
    let body = content(1, 6_000_000);
    let server = always(&body, |_, b| {
        Reply::status(206, &b[..100]).with("Content-Range", &format!("bytes 0-99/{}", b.len()))
    });
    let outcome = fetch_one(&server, &body);
    let error = outcome.error();
    assert_eq!(error.code(), Code::Fetch);
    assert!(error.message().contains("/x.deb answered with bytes 0-99 where bytes 0-"), "{error:?}");
    assert!(error.hint().unwrap().contains("another mirror or proxy"));
    assert_eq!((server.log().len(), outcome.files().len()), (5, 0));
}

#[test]
fn a_file_of_another_size_is_an_error_that_names_both() {
    let body = content(1, 6_000_000);
    for size in [5_999_999, 6_000_001] {
        let other = content(1, size);
        for ranges in [true, false] {
            let shared = other.clone();
            let server =
                Server::start(
                    move |r| {
                        if ranges { Reply::part(r, &shared) } else { Reply::ok(shared.clone()) }
                    },
                );
            let outcome = fetch_one(&server, &body);
            let expected = format!("{} has {size} bytes, expected 6000000", server.url("/x.deb"));
            assert_eq!(outcome.error().message(), expected);
            assert!(outcome.error().hint().unwrap().contains("apt-get update"));
            assert_eq!((server.log().len(), outcome.files().len()), (5, 0));
        }
    }
}

#[test]
fn a_whole_body_that_is_too_long_is_cut_and_the_sum_decides() {
    let body = content(1, 100_000);
    let server = always(&body, |_, b| {
        Reply::Raw([b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n".as_slice(), b, b"more"].concat())
    });
    fetch_one(&server, &body).assert_all(&[&body]);
    assert_eq!(server.log().len(), 1);
    let server = always(&body, |_, _| {
        Reply::Raw(
            [b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n".as_slice(), &vec![b'x'; 100_001]].concat(),
        )
    });
    assert_eq!(fetch_one(&server, &body).error().code(), Code::ChecksumMismatch);
}

#[test]
fn a_wrong_sum_is_fetched_once_more_in_one_piece_past_caches() {
    let body = content(1, 6_000_000);
    // A cache that has damaged one byte, and passes on what it is asked to.
    let server = always(&body, |r, b| {
        if r.header("cache-control").is_some() {
            return Reply::ok(b);
        }
        let mut damaged = b.to_vec();
        damaged[4_000_000] ^= 1;
        Reply::part(r, &damaged)
    });
    let outcome = fetch_one(&server, &body);
    outcome.assert_all(&[&body]);
    let log = server.log();
    let last = log.last().unwrap();
    assert_eq!((last.header("cache-control"), last.range()), (Some("no-cache"), None));
    assert_eq!(log.iter().filter(|r| r.header("cache-control").is_some()).count(), 1);
}

#[test]
fn a_sum_that_stays_wrong_is_an_error_with_both_and_nothing_is_kept() {
    let (body, other) = (content(1, 3_000_000), content(2, 3_000_000));
    let server = always(&other, Reply::part);
    let outcome = fetch_one(&server, &body);
    let error = outcome.error();
    assert_eq!(error.code(), Code::ChecksumMismatch);
    let (url, got, expected) = (server.url("/x.deb"), sha256(&other), sha256(&body));
    let text = format!("sha256 of {url} is {got}, expected {expected}; nothing was kept");
    assert_eq!(error.message(), text);
    assert!(outcome.files().is_empty());
    assert_eq!(server.log().iter().filter(|r| r.header("cache-control").is_some()).count(), 1);
}

#[test]
fn a_file_that_changes_on_its_server_is_begun_anew() {
    let (old, body) = (content(1, 9_000_000), content(2, 9_000_000));
    for header in ["ETag", "Last-Modified"] {
        let (shared_old, shared, next) = (old.clone(), body.clone(), AtomicUsize::new(0));
        let server = Server::start(move |r| {
            if next.fetch_add(1, Ordering::SeqCst) < 2 {
                Reply::part(r, &shared_old).with(header, "old")
            } else {
                Reply::part(r, &shared).with(header, "new")
            }
        });
        let outcome = fetch_one(&server, &body);
        outcome.assert_all(&[&body]);
        assert!(server.log().iter().all(|r| r.header("cache-control").is_none()), "seen before the sum was");
        assert_eq!(ranges(&server, body.len()).iter().filter(|(first, _)| *first == 0).count(), 2);
    }
}

#[test]
fn mirrors_that_never_agree_on_a_version_serve_the_file_in_one_piece() {
    let body = content(1, 9_000_000);
    let (shared, next) = (body.clone(), AtomicUsize::new(0));
    let server = Server::start(move |r| {
        let version = next.fetch_add(1, Ordering::SeqCst).to_string();
        Reply::part(r, &shared).with("ETag", &version)
    });
    let outcome = fetch_one(&server, &body);
    outcome.assert_all(&[&body]);
    assert!(server.log().last().unwrap().range().is_none());
}

#[test]
fn a_redirect_is_followed_once_and_its_end_remembered() {
    let body = content(1, 9_000_000);
    let shared = body.clone();
    let store = Server::start(move |r| Reply::part(r, &shared));
    let target = store.url("/stored?signature=geheim");
    let front = Server::start(move |_| Reply::status(302, "").with("Location", &target));
    let outcome = fetch_one(&front, &body);
    outcome.assert_all(&[&body]);
    assert_eq!(front.log().len(), 1);
    assert!(store.log().len() > 2 && store.log().iter().all(|r| r.path == "/stored?signature=geheim"));
    assert_eq!(outcome.stats.hosts[&store.url("")].bytes, 9_000_000);
}

#[test]
fn where_the_end_of_a_redirect_expires_the_original_address_is_asked_again() {
    let body = content(1, 9_000_000);
    let (shared, next) = (body.clone(), AtomicUsize::new(0));
    let server = Server::start(move |r| match r.path.as_str() {
        "/x.deb" => {
            let n = next.fetch_add(1, Ordering::SeqCst);
            Reply::status(302, "").with("Location", &format!("/signed/{n}"))
        }
        "/signed/0" if r.range().unwrap().0 > 0 => Reply::status(403, "expired"),
        _ => Reply::part(r, &shared),
    });
    fetch_one(&server, &body).assert_all(&[&body]);
    assert!(server.log().iter().any(|r| r.path == "/signed/1"));
}

#[test]
fn more_than_five_redirects_are_an_error() {
    let server = Server::start(|r| Reply::status(302, "").with("Location", &format!("{}x", r.path)));
    let outcome = fetch_one(&server, b"body");
    assert!(outcome.error().message().contains("more than 5 times"), "{:?}", outcome.error());
    assert_eq!(server.log().len(), 6);
}

#[test]
fn tls_is_trusted_by_the_bundle_and_never_lost() {
    let body = content(1, 5_000_000);
    let shared = body.clone();
    let plain = Server::start(|_| Reply::ok("x"));
    let target = plain.url("/x");
    let (config, bundle) = tls();
    let secure = Server::start_tls(config, move |r| {
        if r.path == "/away" {
            Reply::status(301, "").with("Location", &target)
        } else {
            Reply::part(r, &shared)
        }
    });
    let trusting = Settings { extra_roots: Some(bundle.path().to_owned()), ..settings() };
    fetch_with(&trusting, &[(secure.url("/x"), &body)]).assert_all(&[&body]);
    let outcome = fetch_with(&trusting, &[(secure.url("/away"), &body)]);
    assert_eq!(outcome.error().code(), Code::InsecureRedirect);
    assert_eq!(plain.connections(), 0);
    let before = secure.connections();
    let outcome = fetch_with(&settings(), &[(secure.url("/x"), &body)]);
    assert!(outcome.error().hint().unwrap().contains("AWS_CA_BUNDLE"), "{:?}", outcome.error());
    assert_eq!(secure.connections(), before + 1, "another attempt would not help");
}

#[test]
fn a_given_proxy_is_used_and_a_wrong_one_is_refused() {
    let body = content(1, 5_000_000);
    let proxy = always(&body, Reply::part);
    let through = |url: &str| Settings {
        proxy: ProxyChoice::Given { http: Some(url.to_owned()), https: None },
        ..settings()
    };
    let at = format!("http://user:geheim@{}", proxy.addr);
    fetch_with(&through(&at), &[("http://mirror.invalid/x.deb".into(), &body)]).assert_all(&[&body]);
    let log = proxy.log();
    assert!(log.iter().all(|r| r.path == "http://mirror.invalid/x.deb"), "{log:?}");
    assert!(log.iter().all(|r| r.header("proxy-authorization") == Some("Basic dXNlcjpnZWhlaW0=")));
    for (wrong, says) in [
        ("http://user:geheim@[", "not the URL"),
        ("http://user:geheim@bücher.example:3128", "xn--…"),
        ("ftp://user:geheim@proxy", "not the URL"),
    ] {
        let error = fetch(&[], &through(wrong), &NEVER, &|_| {}).unwrap_err();
        assert!(error.message().starts_with("cannot use the proxy"), "{error:?}");
        assert!(
            error.message().contains("apt's configuration") && error.message().contains(says),
            "{error:?}"
        );
        assert!(!format!("{error:?}").contains("geheim"), "{error:?}");
    }
}

#[test]
fn a_silent_connection_does_not_hold_up_the_rest() {
    let body = content(1, 40_000_000);
    let (shared, next) = (body.clone(), AtomicUsize::new(0));
    let server = Server::start(move |r| {
        // The third request is answered with 100 000 bytes and then with silence.
        if next.fetch_add(1, Ordering::SeqCst) == 2 {
            return Reply::part(r, &shared).cut(100_000, FOREVER);
        }
        Reply::part(r, &shared).slowly(50_000, Duration::from_millis(4))
    });
    let began = Instant::now();
    let outcome = fetch_one(&server, &body);
    outcome.assert_all(&[&body]);
    assert!(began.elapsed() < FOREVER / 2, "{:?}", began.elapsed());
    assert!(outcome.stats.segments_stolen >= 1);
    assert_eq!((outcome.stats.bytes, outcome.stats.retries), (40_000_000, 0), "no byte twice, no failure");
    let silent = ranges(&server, body.len())[2].0;
    assert!(ranges(&server, body.len()).iter().any(|(first, _)| *first == silent + 100_000));
}

#[test]
fn a_slow_connection_does_not_hold_up_the_rest() {
    let body = content(1, 60_000_000);
    let (shared, next) = (body.clone(), AtomicUsize::new(0));
    let server = Server::start(move |r| {
        let reply = Reply::part(r, &shared);
        // The third connection would need minutes.
        if next.fetch_add(1, Ordering::SeqCst) == 2 {
            return reply.slowly(500, Duration::from_millis(50));
        }
        reply.slowly(50_000, Duration::from_millis(5))
    });
    let began = Instant::now();
    let outcome = fetch_one(&server, &body);
    outcome.assert_all(&[&body]);
    assert!(began.elapsed() < FOREVER, "{:?}", began.elapsed());
    assert!(outcome.stats.segments_stolen >= 1);
    assert_eq!((outcome.stats.bytes, outcome.stats.retries), (60_000_000, 0));
}

#[test]
fn the_last_segments_are_split_among_idle_connections() {
    let body = content(1, 8_000_000);
    // 1 MB/s per connection.
    let server = always(&body, |r, b| Reply::part(r, b).slowly(20_000, Duration::from_millis(20)));
    let outcome = fetch_one(&server, &body);
    outcome.assert_all(&[&body]);
    assert!(outcome.stats.segments_stolen >= 2, "{:?}", outcome.stats);
    assert_eq!(outcome.stats.bytes, 8_000_000);
}

#[test]
fn connections_are_added_while_they_help_and_a_host_has_its_limit() {
    let body = content(1, 40_000_000);
    let server = always(&body, |r, b| Reply::part(r, b).slowly(20_000, Duration::from_millis(10)));
    let limited = Settings { max_per_host: 10, ..settings() };
    let outcome = fetch_with(&limited, &[(server.url("/x"), &body)]);
    outcome.assert_all(&[&body]);
    assert!((8..=10).contains(&outcome.stats.connections), "{:?}", outcome.stats);
    let few = Settings { max_connections: 2, ..settings() };
    let small = &body[..4_000_000];
    let server = always(small, |r, b| Reply::part(r, b).slowly(20_000, Duration::from_millis(10)));
    let outcome = fetch_with(&few, &[(server.url("/x"), small)]);
    assert_eq!(outcome.stats.connections, 2);
}

#[test]
fn stop_ends_everything_at_once_and_leaves_only_what_is_verified() {
    let (done, body) = (content(1, 10_000), content(2, 5_000_000));
    let shared = done.clone();
    let server = Server::start(move |r| match r.path.as_str() {
        "/done" => Reply::part(r, &shared),
        "/hang" => Reply::Hang(FOREVER),
        _ => Reply::Drip(Duration::from_millis(5)),
    });
    let dir = tempfile::tempdir().unwrap();
    let item = |name: &str, body: &[u8]| Item {
        uri: server.url(&format!("/{name}")),
        size: body.len() as u64,
        sha256: sha256(body),
        path: dir.path().join(name),
    };
    let items = [item("done", &done), item("hang", &body), item("drip", &vec![0; 1000])];
    let (stop, ended) = (AtomicBool::new(false), Mutex::new(Vec::new()));
    let stopped_at = Mutex::new(Instant::now());
    let stats = std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(700));
            *stopped_at.lock().unwrap() = Instant::now();
            stop.store(true, Ordering::SeqCst);
        });
        fetch(&items, &settings(), &stop, &|event| match event {
            Event::Verified { item } => ended.lock().unwrap().push(item),
            Event::Failed { error, .. } => panic!("{error:?}"),
            Event::Progress { .. } | Event::Waiting { .. } => {}
        })
        .unwrap()
    });
    let took = stopped_at.lock().unwrap().elapsed();
    assert!(took < Duration::from_millis(200), "{took:?}");
    assert!(stats.is_stopped);
    assert_eq!(*ended.lock().unwrap(), [0]);
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["done"]);
}

#[test]
fn no_fetch_takes_for_ever() {
    let (body, small) = (content(1, 3_000_000), content(2, 1000));
    let (large, quick) = (body.clone(), small.clone());
    let server = Server::start(move |r| match r.path.as_str() {
        "/small" => Reply::part(r, &quick),
        _ => Reply::part(r, &large).slowly(5000, Duration::from_millis(20)),
    });
    let total = Duration::from_secs(1);
    let patience = gpu_bootstrap::host::fetch::Patience { total, ..Default::default() };
    let files = [(server.url("/small"), small.as_slice()), (server.url("/x?geheim"), body.as_slice())];
    let began = Instant::now();
    let outcome = fetch_with(&Settings { patience, max_connections: 2, ..settings() }, &files);
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    assert_eq!((outcome.verified(), outcome.files()), (vec![0], vec!["0".to_owned()]));
    let error = outcome.ended.iter().find_map(|(_, e)| e.as_ref()).unwrap();
    assert_eq!(error.message(), format!("{} was not there after 1 s", server.url("/x")));
}

#[test]
fn a_wait_is_said_with_its_reason() {
    let body = content(1, 10_000);
    let server = faulty(&body, vec![|_, _| Reply::status(429, "").with("Retry-After", "1")]);
    let dir = tempfile::tempdir().unwrap();
    let item =
        Item { uri: server.url("/x"), size: 10_000, sha256: sha256(&body), path: dir.path().join("x") };
    let said = Mutex::new(Vec::new());
    fetch(&[item], &settings(), &NEVER, &|event| {
        if let Event::Waiting { why, wait } = event {
            said.lock().unwrap().push((why, wait));
        }
    })
    .unwrap();
    let why = format!("{} answered 429 Too Many Requests", server.url("/x"));
    assert_eq!(said.into_inner().unwrap(), [(why, Duration::from_secs(1))]);
}

#[test]
fn progress_ends_with_all_bytes() {
    let body = content(1, 3_000_000);
    let server = always(&body, |r, b| Reply::part(r, b).slowly(100_000, Duration::from_millis(20)));
    let dir = tempfile::tempdir().unwrap();
    let item =
        Item { uri: server.url("/x"), size: 3_000_000, sha256: sha256(&body), path: dir.path().join("x") };
    let seen = Mutex::new(Vec::new());
    fetch(&[item], &settings(), &NEVER, &|event| {
        if let Event::Progress { bytes } = event {
            seen.lock().unwrap().push(bytes);
        }
    })
    .unwrap();
    let seen = seen.into_inner().unwrap();
    assert!(seen.len() >= 3 && seen.is_sorted(), "{seen:?}");
    assert_eq!((seen[0], *seen.last().unwrap()), (0, 3_000_000));
}

#[test]
fn items_that_make_no_sense_fail_by_themselves() {
    let body = content(1, 1000);
    let server = always(&body, Reply::part);
    let dir = tempfile::tempdir().unwrap();
    let good =
        Item { uri: server.url("/x"), size: 1000, sha256: sha256(&body), path: dir.path().join("good") };
    fs::write(dir.path().join("there"), "somebody's").unwrap();
    let items = [
        Item { uri: "ftp://user:geheim@host/x".into(), path: dir.path().join("a"), ..good.clone() },
        Item { uri: "x.deb?geheim".into(), path: dir.path().join("b"), ..good.clone() },
        Item { sha256: "../../etc/passwd".into(), path: dir.path().join("c"), ..good.clone() },
        Item { path: dir.path().join("no/such/directory"), ..good.clone() },
        Item { path: dir.path().join("there"), ..good.clone() },
        good,
    ];
    let ended = Mutex::new(BTreeMap::new());
    fetch(&items, &settings(), &NEVER, &|event| match event {
        Event::Verified { item } => drop(ended.lock().unwrap().insert(item, None)),
        Event::Failed { item, error } => drop(ended.lock().unwrap().insert(item, Some(error))),
        Event::Progress { .. } | Event::Waiting { .. } => {}
    })
    .unwrap();
    let ended = ended.into_inner().unwrap();
    let codes: Vec<_> = ended.values().map(|e| e.as_ref().map(Error::code)).collect();
    let (fetch, io) = (Some(Code::Fetch), Some(Code::Io));
    assert_eq!(codes, [fetch, fetch, fetch, io, io, None]);
    assert!(!format!("{ended:?}").contains("geheim"));
    assert_eq!(fs::read(dir.path().join("there")).unwrap(), b"somebody's", "what is not ours stays");
    assert_eq!(server.log().len(), 1, "no byte was asked for in vain");
}

/// A server whose every fault is drawn; it never lies about the same thing for ever.
fn unreliable(seed: u64, bodies: Vec<Vec<u8>>) -> Server {
    let random = Mutex::new(Random(seed));
    Server::start(move |r| {
        let body = &bodies[r.path[1..].parse::<usize>().unwrap()];
        let mut random = random.lock().unwrap();
        let good = Reply::part(r, body);
        let Reply::Send { body: sent, .. } = &good else { unreachable!() };
        let somewhere = random.below(sent.len() + 1);
        match random.below(40) {
            0 => Reply::Reset,
            1 => Reply::Close,
            2 => Reply::status(503, "busy"),
            3 => Reply::status(500, "broken"),
            4..=7 => good.cut(somewhere, Duration::ZERO),
            8 => good.cut(somewhere, Duration::from_millis(200)),
            9 => Reply::ok(body.clone()),
            10 if r.range().is_some() => {
                Reply::status(206, sent.clone()).with("Content-Range", "bytes 0-0/1")
            }
            11..=14 => good.slowly(1 + somewhere / 8, Duration::from_millis(3)),
            _ => good,
        }
    })
}

#[test]
fn whatever_goes_wrong_every_file_that_is_verified_has_its_bytes() {
    let mut failed = 0;
    for seed in 1..=12_u64 {
        let mut random = Random(seed.wrapping_mul(0x2545_f491_4f6c_dd1d));
        let bodies: Vec<_> = (0..8)
            .map(|i| {
                let size = match random.below(4) {
                    0 => random.below(1000),
                    1 => random.below(300_000),
                    2 => (1 << 20) + random.below(3),
                    _ => random.below(9_000_000),
                };
                content(seed * 100 + i, size)
            })
            .collect();
        let server = unreliable(seed, bodies.clone());
        let files: Vec<_> =
            bodies.iter().enumerate().map(|(i, b)| (server.url(&format!("/{i}")), b.as_slice())).collect();
        let drawn = Settings {
            max_connections: 1 + random.below(16),
            max_per_host: 1 + random.below(16),
            threads: 1 + random.below(3),
            hash_threads: 1 + random.below(3),
            ..settings()
        };
        let outcome = fetch_with(&drawn, &files);
        assert_eq!(outcome.ended.len(), bodies.len(), "seed {seed}: every item ends once");
        for (index, error) in &outcome.ended {
            match error {
                None => assert!(fs::read(outcome.path(*index)).unwrap() == bodies[*index], "seed {seed}"),
                Some(e) => {
                    assert_eq!(e.code(), Code::Fetch, "seed {seed}: {e:?} {:?}", e.causes());
                    failed += 1;
                }
            }
        }
    }
    assert!(failed <= 4, "{failed} of 96 items were given up");
}

/// Runs in a mount namespace of its own, with a file system of 1 MiB.
#[test]
#[ignore = "started by another test, in a mount namespace"]
fn child_with_a_small_disk() {
    let body = content(1, 4 << 20);
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().to_owned();
    let _disk = SmallDisk::at(&place);
    let server = always(&body, Reply::part);
    let item =
        Item { uri: server.url("/x"), size: 4 << 20, sha256: sha256(&body), path: dir.path().join("x") };
    let outcome = fetch_items(&settings(), &[item], dir);
    let error = outcome.error();
    assert_eq!(error.code(), Code::DiskFull, "{error:?}");
    let place = outcome.path(0).with_file_name("x").display().to_string();
    assert_eq!(error.message(), format!("there is no room for the 4194304 bytes of {place}"));
    assert!(error.hint().unwrap().starts_with("make room where "));
    assert!(outcome.files().is_empty());
    assert_eq!(server.connections(), 0, "not a byte was asked for");
    println!("it was full");
}

#[test]
fn a_full_disk_is_said_to_be_full_before_the_first_byte() {
    run_in_namespace("child_with_a_small_disk", "it was full");
}
