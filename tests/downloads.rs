//! Downloads into the cache, against servers that misbehave.

#![allow(clippy::unwrap_used, reason = "test code: a panic is a failure with a place")]

#[path = "support/namespace.rs"]
mod namespace;
#[path = "support/scripted_http.rs"]
mod scripted_http;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use gpu_bootstrap::error::{Code, Error};
use gpu_bootstrap::host::fetch::{Fetch, Patience};
use gpu_bootstrap::host::{Host, paths};
use gpu_bootstrap::install::deb_into_cache;
use namespace::{SmallDisk, run_in_namespace};
use scripted_http::{Reply, Request, Server, tls};
use sha2::{Digest, Sha256};

fn sha256(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

/// Something that begins as a Debian package does.
fn deb() -> Vec<u8> {
    [b"!<arch>\ndebian-binary   ".as_slice(), &vec![7; 300_000]].concat()
}

/// One of this size, whose bytes differ from place to place.
fn package(size: usize) -> Vec<u8> {
    let beginning = b"!<arch>\ndebian-binary   ";
    let rest = (0_u32..).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes());
    beginning.iter().copied().chain(rest).take(size).collect()
}

/// A host over an empty root.
struct Scratch {
    dir: tempfile::TempDir,
    host: Host,
}

impl Scratch {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path().to_path_buf());
        Self { dir, host }
    }

    fn cache(&self) -> PathBuf {
        self.dir.path().join(paths::CACHE_DIR.trim_start_matches('/'))
    }

    /// Names in the cache, hidden ones too.
    fn cached(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.cache()) else { return Vec::new() };
        entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }

    async fn fetch(&self, url: &str, sha256: &str) -> Result<PathBuf, Error> {
        self.host.fetch.into_cache(&self.host, url, sha256).await
    }

    async fn fetch_deb(&self, url: &str) -> Result<PathBuf, Error> {
        self.host.fetch.into_cache_deb(&self.host, url, &sha256(&deb())).await
    }
}

/// Answers the first requests with `first`, one after the other, and the rest with `then`.
fn scripted(first: Vec<Reply>, then: Reply) -> Server {
    let next = AtomicUsize::new(0);
    Server::start(move |_| first.get(next.fetch_add(1, Ordering::SeqCst)).unwrap_or(&then).clone())
}

#[tokio::test]
async fn a_verified_file_is_kept_under_its_sum() {
    let server = Server::start(|_| Reply::ok(deb()));
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&seen);
    let mut scratch = Scratch::new();
    scratch.host =
        Host::new(scratch.dir.path().to_path_buf()).with_progress(move |p| sink.lock().unwrap().push(p));
    let sum = sha256(&deb());
    let path = scratch.fetch(&server.url("/pool/cudnn.deb"), &sum.to_uppercase()).await.unwrap();
    assert_eq!(path, Path::new(paths::CACHE_DIR).join(&sum));
    let kept = scratch.cache().join(&sum);
    assert_eq!(fs::read(&kept).unwrap(), deb());
    assert_eq!(fs::metadata(&kept).unwrap().permissions().mode() & 0o777, 0o644);
    assert_eq!(scratch.cached(), [sum]);
    let last = seen.lock().unwrap().last().cloned().unwrap();
    assert_eq!((last.what.as_str(), last.done), ("downloading cudnn.deb", deb().len() as u64));
    assert_eq!(last.total, Some(last.done));
}

#[tokio::test]
async fn a_cached_file_is_hashed_again_and_replaced_if_it_has_changed() {
    let server = Server::start(|_| Reply::ok(deb()));
    let scratch = Scratch::new();
    let sum = sha256(&deb());
    scratch.fetch(&server.url("/x.deb"), &sum).await.unwrap();
    scratch.fetch(&server.url("/x.deb"), &sum).await.unwrap();
    assert_eq!(server.log().len(), 1);
    let kept = scratch.cache().join(&sum);
    let mut bytes = fs::read(&kept).unwrap();
    bytes[100_000] ^= 1;
    fs::write(&kept, bytes).unwrap();
    scratch.fetch(&server.url("/x.deb"), &sum).await.unwrap();
    assert_eq!((server.log().len(), fs::read(&kept).unwrap()), (2, deb()));
}

#[tokio::test]
async fn a_wrong_sum_keeps_nothing_and_names_both() {
    let server = Server::start(|_| Reply::ok("other bytes"));
    let scratch = Scratch::new();
    let url = server.url("/cudnn.deb");
    let expected = sha256(b"expected");
    let e = scratch.fetch(&url, &expected).await.unwrap_err();
    assert_eq!(e.code(), Code::ChecksumMismatch);
    let actual = sha256(b"other bytes");
    assert_eq!(e.message(), format!("sha256 of {url} is {actual}, expected {expected}; nothing was kept"));
    assert_eq!(e.hint(), Some("run again, or correct the pin"));
    assert!(scratch.cached().is_empty());
    assert_eq!(server.log().len(), 1);
}

#[tokio::test]
async fn a_sum_that_is_none_is_refused_before_anything_is_asked() {
    let server = Server::start(|_| Reply::ok("x"));
    for sum in ["", "abc", "../../../../etc/passwd", &"g".repeat(64)] {
        let e = Scratch::new().fetch(&server.url("/x"), sum).await.unwrap_err();
        assert_eq!(e.code(), Code::ConfigType, "{sum}");
    }
    assert_eq!(server.connections(), 0);
}

#[tokio::test]
async fn a_broken_download_is_begun_again() {
    for reply in [Reply::Cut { body: deb(), missing: 9 }, Reply::Reset, Reply::Close, Reply::status(502, "x")]
    {
        let server = scripted(vec![reply.clone(), reply.clone()], Reply::ok(deb()));
        let scratch = Scratch::new();
        let sum = sha256(&deb());
        scratch.fetch(&server.url("/x.deb"), &sum).await.unwrap();
        assert_eq!((scratch.cached(), server.log().len()), (vec![sum], 3), "{reply:?}");
    }
}

#[tokio::test]
async fn a_download_goes_on_where_it_broke_only_if_it_is_the_same_file() {
    const CUT: usize = 100_000;
    let body = deb();
    let other = body.iter().map(|b| b ^ 1).collect::<Vec<_>>();
    // What the first answer's head names, the body behind it, and what a whole answer to the rest is asked with.
    for (header, first, resumes) in [
        ("ETag", &body, true),
        ("Last-Modified", &body, true),
        // Its server has another file by now, and says so by sending the whole of it.
        ("ETag", &other, false),
        ("X-Nothing", &body, false),
    ] {
        let (first, shared, next) = (first.clone(), body.clone(), AtomicUsize::new(0));
        let is_same = first == body;
        let server = Server::start(move |r| {
            if next.fetch_add(1, Ordering::SeqCst) == 0 {
                // Only the beginning of a package is looked at before its sum.
                let begun = [&shared[..8], &first[8..]].concat();
                return Reply::ok(begun).with(header, "\"one\"").cut(CUT, Duration::ZERO);
            }
            if is_same { Reply::part(r, &shared).with(header, "\"one\"") } else { Reply::ok(shared.clone()) }
        });
        let scratch = Scratch::new();
        scratch.fetch_deb(&server.url("/x.deb")).await.unwrap();
        let log = server.log();
        let asked = |name: &str| log[1].header(name).map(str::to_owned);
        if header == "X-Nothing" {
            assert_eq!((log.len(), asked("range")), (2, None), "no version, no range");
        } else {
            assert_eq!(asked("range"), Some(format!("bytes={CUT}-")), "{header}");
            assert_eq!(asked("if-range"), Some("\"one\"".into()), "{header}");
        }
        let rest = deb().len() - CUT;
        assert_eq!(
            log[1].range().map(|(first, _)| deb().len() - first),
            (header != "X-Nothing").then_some(rest)
        );
        assert!(resumes || log.len() == 2, "{header}");
    }
}

#[tokio::test]
async fn pieces_of_two_files_are_never_kept() {
    let (body, next) = (deb(), AtomicUsize::new(0));
    // The server calls two files by one name.
    let server = Server::start(move |r| {
        let mut other = body.clone();
        other[200_000] ^= 1;
        match next.fetch_add(1, Ordering::SeqCst) {
            0 => Reply::ok(body.clone()).with("ETag", "\"one\"").cut(100_000, Duration::ZERO),
            1 => Reply::part(r, &other).with("ETag", "\"one\""),
            _ => Reply::part(r, &body),
        }
    });
    let scratch = Scratch::new();
    scratch.fetch_deb(&server.url("/x.deb")).await.unwrap();
    assert_eq!(server.log().len(), 3);
    assert!(server.log()[2].range().is_none(), "the third attempt begins anew");
    assert_eq!(scratch.cached(), [sha256(&deb())]);
}

#[tokio::test]
async fn an_answer_about_the_rest_that_is_something_else_is_not_believed() {
    type Wrong = fn(&Request, &[u8]) -> Reply;
    let wrongs: [Wrong; 3] = [
        |_, b| Reply::status(206, &b[..50]).with("Content-Range", "bytes 0-49/300024"),
        |_, b| Reply::status(206, &b[100_000..]),
        |_, _| Reply::status(416, ""),
    ];
    for wrong in wrongs {
        let (body, next) = (deb(), AtomicUsize::new(0));
        let server = Server::start(move |r| match next.fetch_add(1, Ordering::SeqCst) {
            0 => Reply::ok(body.clone()).with("ETag", "\"one\"").cut(100_000, Duration::ZERO),
            1 => wrong(r, &body),
            _ => Reply::part(r, &body),
        });
        let scratch = Scratch::new();
        scratch.fetch_deb(&server.url("/x.deb")).await.unwrap();
        assert_eq!((server.log().len(), server.log()[2].range()), (3, None));
    }
}

#[tokio::test]
async fn no_download_takes_for_ever() {
    // Fast enough not to count as a trickle, and too slow to end.
    let server = Server::start(|_| Reply::ok(deb()).slowly(1000, Duration::from_millis(50)));
    let mut scratch = Scratch::new();
    let total = Duration::from_millis(600);
    scratch.host.fetch = Fetch::new().waiting(Patience { total, ..Patience::default() });
    let began = Instant::now();
    let e = scratch.fetch_deb(&server.url("/x.deb")).await.unwrap_err();
    assert_eq!(e.message(), format!("{} was not there after 0.6 s", server.url("/x.deb")));
    assert!(began.elapsed() < Duration::from_secs(3));
}

#[tokio::test]
async fn a_wait_is_said_with_its_reason() {
    let busy = Reply::status(503, "").with("Retry-After", "1");
    let server = scripted(vec![busy], Reply::ok(deb()));
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&seen);
    let mut scratch = Scratch::new();
    let root = scratch.dir.path().to_path_buf();
    scratch.host = Host::new(root).with_progress(move |p| sink.lock().unwrap().push(p));
    scratch.fetch_deb(&server.url("/x.deb?geheim")).await.unwrap();
    let seen = seen.lock().unwrap();
    let wait = seen.iter().find(|p| p.what == "waiting to try again").unwrap();
    assert_eq!(
        (wait.item.as_str(), wait.total),
        (format!("{} answered 503 Service Unavailable", server.url("/x.deb")).as_str(), Some(1))
    );
}

#[tokio::test]
async fn a_download_that_always_breaks_is_given_up_and_leaves_nothing() {
    let server = scripted(vec![], Reply::Cut { body: deb(), missing: 9 });
    let scratch = Scratch::new();
    let e = scratch.fetch(&server.url("/x.deb"), &sha256(&deb())).await.unwrap_err();
    assert_eq!(e.code(), Code::Fetch);
    assert!(!e.causes().is_empty());
    assert!(scratch.cached().is_empty());
    assert_eq!(server.log().len(), 5);
}

#[tokio::test]
async fn an_abandoned_download_leaves_nothing() {
    let server = Server::start(|_| Reply::Drip(Duration::from_millis(20)));
    let scratch = Scratch::new();
    let url = server.url("/x.deb");
    let sum = sha256(b"x");
    let abandoned = tokio::time::timeout(Duration::from_millis(400), scratch.fetch(&url, &sum));
    let watch = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        scratch.cached()
    };
    let (ended, meanwhile) = tokio::join!(abandoned, watch);
    assert!(ended.is_err());
    assert!(meanwhile.len() == 1 && meanwhile[0].starts_with(".download-"), "{meanwhile:?}");
    let deadline = Instant::now() + Duration::from_secs(5);
    while !scratch.cached().is_empty() {
        assert!(Instant::now() < deadline, "left behind: {:?}", scratch.cached());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn what_a_killed_run_left_is_removed() {
    let server = Server::start(|_| Reply::ok(deb()));
    let scratch = Scratch::new();
    fs::create_dir_all(scratch.cache()).unwrap();
    fs::write(scratch.cache().join(".download-abc"), "half of it").unwrap();
    let sum = sha256(&deb());
    scratch.fetch(&server.url("/x.deb"), &sum).await.unwrap();
    assert_eq!(scratch.cached(), [sum]);
}

#[tokio::test]
async fn a_login_page_instead_of_a_package_is_recognised() {
    let page = "<!DOCTYPE html><html><body>Please log in</body></html>";
    let html = Reply::ok(page).with("Content-Type", "text/html; charset=utf-8");
    for (reply, text) in [
        (html, "probably a login page"),
        (Reply::ok(page), "probably a login page"),
        (Reply::ok(vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0]), "begins with \"\\x1f\\x8b"),
        (Reply::ok("!<ar"), "begins with \"!<ar\""),
        (Reply::ok(""), "begins with \"\""),
    ] {
        let server = scripted(vec![], reply);
        let scratch = Scratch::new();
        let e = scratch.fetch_deb(&server.url("/cudnn.deb")).await.unwrap_err();
        assert_eq!(e.code(), Code::NotADeb);
        assert!(e.message().contains(text) && e.message().contains("/cudnn.deb"), "{e}");
        assert!(scratch.cached().is_empty());
        assert_eq!(server.log().len(), 1);
    }
}

#[tokio::test]
async fn a_package_with_a_wrong_content_type_is_still_one() {
    let server = Server::start(|_| Reply::ok(deb()).with("Content-Type", "text/html"));
    Scratch::new().fetch_deb(&server.url("/cudnn.deb")).await.unwrap();
}

#[tokio::test]
async fn refusals_are_final_and_name_no_secret() {
    for (status, code) in
        [(401, Code::FetchDenied), (403, Code::FetchDenied), (404, Code::Fetch), (418, Code::Fetch)]
    {
        let server = scripted(vec![], Reply::status(status, "no"));
        let url = format!("http://user:geheim@{}/x.deb?X-Amz-Signature=geheim", server.addr);
        let e = Scratch::new().fetch(&url, &sha256(b"x")).await.unwrap_err();
        assert_eq!(e.code(), code);
        assert!(
            e.message().contains(&server.url("/x.deb")) && e.message().contains(&status.to_string()),
            "{e}"
        );
        assert!(!format!("{e:?}").contains("geheim"), "{e:?}");
        let log = server.log();
        assert_eq!(log.len(), 1);
        assert_eq!(log[0].path, "/x.deb?X-Amz-Signature=geheim");
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_names_no_secret_either() {
    let addr = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("http://user:geheim@{addr}/x.deb?token=geheim");
    let e = Scratch::new().fetch(&url, &sha256(b"x")).await.unwrap_err();
    assert_eq!(e.code(), Code::Fetch);
    assert!(!format!("{e:?} {:?}", e.causes()).contains("geheim"), "{e:?}");
    assert!(e.causes().iter().any(|c| c.contains("refused")), "{:?}", e.causes());
}

#[tokio::test]
async fn retry_after_is_honoured_and_has_a_limit() {
    let busy = |wait: &str| Reply::status(429, "slow down").with("Retry-After", wait);
    let server = scripted(vec![busy("1")], Reply::ok("x"));
    let began = Instant::now();
    assert_eq!(Fetch::new().get(&server.url("/x"), 10).await.unwrap(), b"x");
    assert!(began.elapsed() >= Duration::from_secs(1));
    let server = scripted(vec![], busy("86400"));
    let e = Fetch::new().get(&server.url("/x"), 10).await.unwrap_err();
    assert!(e.message().contains("429"), "{e}");
    assert_eq!(server.log().len(), 1);
}

#[tokio::test]
async fn memory_is_bounded() {
    let server = Server::start(|_| Reply::ok(vec![b'x'; 1001]));
    assert_eq!(Fetch::new().get(&server.url("/x"), 1001).await.unwrap().len(), 1001);
    let e = Fetch::new().get(&server.url("/x"), 1000).await.unwrap_err();
    assert!(e.message().contains("longer than 1000 bytes"), "{e}");
}

#[tokio::test]
async fn five_redirects_are_followed_and_six_are_not() {
    let server = Server::start(|request| {
        let left: u32 = request.path.trim_start_matches('/').parse().unwrap();
        match left {
            0 => Reply::ok("arrived"),
            n => Reply::status(302, "").with("Location", &format!("/{}", n - 1)),
        }
    });
    assert_eq!(Fetch::new().get(&server.url("/5"), 10).await.unwrap(), b"arrived");
    let e = Fetch::new().get(&server.url("/6"), 10).await.unwrap_err();
    assert!(e.message().contains("more than 5 times"), "{e}");
}

#[tokio::test]
async fn a_password_does_not_follow_a_redirect_to_another_server() {
    let other = Server::start(|_| Reply::ok("x"));
    let target = other.url("/x");
    let first = Server::start(move |_| Reply::status(307, "").with("Location", &target));
    let url = format!("http://user:geheim@{}/x", first.addr);
    Fetch::new().get(&url, 10).await.unwrap();
    assert!(first.log()[0].header("authorization").is_some());
    assert!(other.log()[0].header("authorization").is_none());
}

#[tokio::test]
async fn encryption_is_not_lost_by_a_redirect() {
    let plain = Server::start(|_| Reply::ok("x"));
    let (config, bundle) = tls();
    let target = plain.url("/x");
    let secure = Server::start_tls(config, move |request| match request.path.as_str() {
        "/here" => Reply::ok("encrypted"),
        "/on" => Reply::status(301, "").with("Location", "/here"),
        _ => Reply::status(301, "").with("Location", &target),
    });
    let fetch = Fetch::trusting(bundle.path().to_owned());
    assert_eq!(fetch.get(&secure.url("/on"), 10).await.unwrap(), b"encrypted");
    let e = fetch.get(&secure.url("/away"), 10).await.unwrap_err();
    assert_eq!(e.code(), Code::InsecureRedirect);
    assert!(e.message().contains(&plain.url("/x")), "{e}");
    assert_eq!(plain.connections(), 0);
}

#[tokio::test]
async fn an_unknown_certificate_is_refused_at_once_with_a_hint() {
    let (config, bundle) = tls();
    let secure = Server::start_tls(config, |_| Reply::ok("x"));
    let e = Fetch::new().get(&secure.url("/x"), 10).await.unwrap_err();
    assert_eq!(e.code(), Code::Fetch);
    assert!(e.hint().unwrap().contains("AWS_CA_BUNDLE"), "{e:?}");
    assert_eq!(secure.connections(), 1);
    assert_eq!(Fetch::trusting(bundle.path().to_owned()).get(&secure.url("/x"), 10).await.unwrap(), b"x");
}

#[tokio::test]
async fn a_package_comes_over_many_connections_where_its_server_has_ranges() {
    let body = package(20_000_000);
    let shared = body.clone();
    let server = Server::start(move |r| Reply::part(r, &shared).slowly(100_000, Duration::from_millis(5)));
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&seen);
    let mut scratch = Scratch::new();
    scratch.host =
        Host::new(scratch.dir.path().to_path_buf()).with_progress(move |p| sink.lock().unwrap().push(p));
    fs::create_dir_all(scratch.cache()).unwrap();
    fs::write(scratch.cache().join(".download-abc"), "half of another").unwrap();
    let (url, sum) = (server.url("/pool/cudnn.deb?Signature=geheim"), sha256(&body));
    let path = deb_into_cache(&scratch.host, &url, &sum.to_uppercase()).await.unwrap();
    assert_eq!(path, Path::new(paths::CACHE_DIR).join(&sum));
    let kept = scratch.cache().join(&sum);
    assert!(fs::read(&kept).unwrap() == body);
    assert_eq!(fs::metadata(&kept).unwrap().permissions().mode() & 0o777, 0o644);
    assert_eq!(scratch.cached(), std::slice::from_ref(&sum));
    let log = server.log();
    let connections: std::collections::BTreeSet<_> = log.iter().map(|r| r.connection).collect();
    assert!(connections.len() >= 4, "{} connections", connections.len());
    assert_eq!(
        log[0].range(),
        Some((0, 7)),
        "how many bytes there are is asked with GET, which may be signed"
    );
    let last = seen.lock().unwrap().last().cloned().unwrap();
    assert_eq!((last.what.as_str(), last.done), ("downloading cudnn.deb", body.len() as u64));

    deb_into_cache(&scratch.host, &url, &sum).await.unwrap();
    assert_eq!(server.log().len(), log.len(), "it was there");
}

#[tokio::test]
async fn a_package_comes_whole_where_its_server_has_no_ranges() {
    let lies = |range: &'static str| {
        Server::start(move |r| match r.range() {
            Some(_) => Reply::status(206, b"!<arch>\n".as_slice()).with("Content-Range", range),
            None => Reply::ok(deb()),
        })
    };
    let servers = [
        Server::start(|_| Reply::ok(deb())),
        Server::start(|r| if r.range().is_some() { Reply::status(416, "") } else { Reply::ok(deb()) }),
        lies("bytes 0-7/*"),
        lies("bytes 8-15/300000"),
        lies("nonsense"),
    ];
    for (number, server) in servers.iter().enumerate() {
        let scratch = Scratch::new();
        let path = deb_into_cache(&scratch.host, &server.url("/x.deb"), &sha256(&deb())).await;
        assert!(path.is_ok(), "{number}: {path:?}");
        let log = server.log();
        assert_eq!((log.len(), log[1].range()), (2, None), "{number}");
    }
}

#[tokio::test]
async fn a_package_with_a_wrong_sum_is_not_kept_and_the_pin_is_named() {
    let body = package(3_000_000);
    let server = Server::start(move |r| Reply::part(r, &body));
    let scratch = Scratch::new();
    let e = deb_into_cache(&scratch.host, &server.url("/x.deb"), &sha256(b"expected")).await.unwrap_err();
    assert_eq!((e.code(), e.hint()), (Code::ChecksumMismatch, Some("run again, or correct the pin")));
    assert!(e.message().contains(&sha256(b"expected")) && e.message().contains(&server.url("/x.deb")), "{e}");
    assert!(scratch.cached().is_empty());
    let page = Server::start(|r| Reply::part(r, b"<!DOCTYPE html><html>Please log in</html>"));
    let e = deb_into_cache(&scratch.host, &page.url("/x.deb"), &sha256(b"x")).await.unwrap_err();
    assert_eq!(e.code(), Code::NotADeb, "{e}");
}

#[tokio::test]
async fn an_abandoned_package_leaves_nothing() {
    let body = package(20_000_000);
    let sum = sha256(&body);
    let server = Server::start(move |r| Reply::part(r, &body).slowly(10_000, Duration::from_millis(50)));
    let scratch = Scratch::new();
    let url = server.url("/x.deb");
    let abandoned = deb_into_cache(&scratch.host, &url, &sum);
    let ended = tokio::time::timeout(Duration::from_millis(1500), abandoned).await;
    assert!(ended.is_err() && server.log().len() > 1);
    assert!(scratch.cached().is_empty(), "{:?}", scratch.cached());
}

/// Runs in a mount namespace of its own, with a cache of 1 MiB, started by [`a_full_disk_is_said_to_be_full`].
#[tokio::test]
#[ignore = "started by another test, in a mount namespace"]
async fn child_with_a_small_disk() {
    let scratch = Scratch::new();
    fs::create_dir_all(scratch.cache()).unwrap();
    let cache = scratch.cache();
    let _disk = SmallDisk::at(&cache);
    let body = vec![b'x'; 4 << 20];
    let (known, sum) = (Reply::ok(body.clone()), sha256(&body));
    // Without a length, the end of the connection is the end of the body.
    let unknown = Reply::Raw([b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n".as_slice(), &body].concat());
    for (reply, text) in [(known, "has 4194304 bytes, but only"), (unknown, "cannot write the download of")] {
        let server = scripted(vec![], reply);
        let e = scratch.fetch(&server.url("/x.deb"), &sum).await.unwrap_err();
        assert_eq!(e.code(), Code::DiskFull, "{e}");
        assert!(e.message().contains(text) && e.hint().unwrap().contains(paths::CACHE_DIR), "{e:?}");
        assert!(scratch.cached().is_empty());
        assert_eq!(server.log().len(), 1);
    }
    let ranges = Server::start(move |request| Reply::part(request, &package(4 << 20)));
    let e = deb_into_cache(&scratch.host, &ranges.url("/x.deb"), &sum).await.unwrap_err();
    assert_eq!(e.code(), Code::DiskFull, "{e}");
    assert!(e.message().contains("has 4194304 bytes, but only"), "{e}");
    assert_eq!((scratch.cached(), ranges.log().len()), (vec![], 1));
    println!("all were full");
}

#[test]
fn a_full_disk_is_said_to_be_full() {
    run_in_namespace("child_with_a_small_disk", "all were full");
}
