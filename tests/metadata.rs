//! The metadata client and the identity facts, against a service that is as strict as EC2's.

#![allow(clippy::unwrap_used, reason = "test code: a panic is a failure with a place")]

#[path = "support/imds.rs"]
mod imds;

use std::net::{Ipv6Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use gpu_bootstrap::error::Code;
use gpu_bootstrap::facts::identity::{self, Identity};
use gpu_bootstrap::host::Host;
use gpu_bootstrap::host::fetch::Fetch;
use gpu_bootstrap::imds::{Client, Endpoint};
use gpu_bootstrap::install::fetch::{Settings, fetch};
use imds::scripted_http::{Reply, Server};
use imds::{Imds, Running};

const FIVE_SECONDS: Duration = Duration::from_secs(5);
const FOREVER: usize = usize::MAX;
const DOCUMENT: &str = "dynamic/instance-identity/document";

fn client(service: &Running) -> Client {
    client_within(service, FIVE_SECONDS)
}

fn client_within(service: &Running, limit: Duration) -> Client {
    Client::new(Endpoint::Fixed(service.url()), limit)
}

/// A root in which the firmware says `vendor`.
fn root(vendor: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let files = gpu_bootstrap::host::files::Files::new(dir.path().to_path_buf());
    files.write("/sys/class/dmi/id/sys_vendor", format!("{vendor}\n").as_bytes(), 0o444).unwrap();
    files.write("/proc/sys/kernel/random/boot_id", b"6f1c0c0e-0000-4000-8000-000000000001\n", 0o444).unwrap();
    dir
}

async fn gather(root: &Path, client: &Client) -> gpu_bootstrap::error::Result<Identity> {
    identity::gather(&Host::new(root.to_path_buf()), Some(client)).await
}

/// A port of `ip` on which nobody listens.
fn free_port(ip: &str) -> SocketAddr {
    TcpListener::bind((ip.parse::<std::net::IpAddr>().unwrap(), 0)).unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn identity_and_user_data_cost_three_requests_on_one_connection() {
    let service = Imds::new().item("user-data", "#gpu-bootstrap\n").start();
    let (root, client) = (root("Amazon EC2"), client(&service));
    let identity = gather(root.path(), &client).await.unwrap();

    assert_eq!(identity.instance_type(), Some("g5.xlarge"));
    assert_eq!(identity.instance_id(), "i-0123456789abcdef0");
    assert_eq!(identity.user_data.unwrap().value, b"#gpu-bootstrap\n");
    assert_eq!(identity.boot_id.value, "6f1c0c0e-0000-4000-8000-000000000001");
    assert_eq!(identity.instance.unwrap().source, format!("{}/latest/{DOCUMENT}", service.url()));
    assert_eq!(
        service.asked(),
        ["PUT /latest/api/token", &format!("GET /latest/{DOCUMENT}"), "GET /latest/user-data"]
    );
    assert_eq!(client.requests(), 3);
    assert_eq!(service.server.connections(), 1);
    let log = service.server.log();
    assert_eq!(log[0].header("x-aws-ec2-metadata-token-ttl-seconds"), Some("21600"));
    assert!(log[1].header("x-aws-ec2-metadata-token").is_some());
}

#[tokio::test]
async fn absent_user_data_is_none_and_keeps_the_connection() {
    let service = Imds::new().start();
    let client = client(&service);
    assert_eq!(client.get("user-data").await.unwrap(), None);
    assert!(client.get(DOCUMENT).await.unwrap().is_some());
    assert_eq!(service.server.connections(), 1);
}

#[tokio::test]
async fn binary_user_data_comes_byte_for_byte() {
    let bytes: Vec<u8> = (0..=255).cycle().take(16 * 1024).collect();
    let service = Imds::new().item("user-data", bytes.clone()).start();
    assert_eq!(client(&service).get("user-data").await.unwrap(), Some(bytes));
}

#[tokio::test]
async fn an_expired_token_is_renewed_once() {
    let service = Imds::new().item("user-data", "x").start();
    let client = client(&service);
    client.get("user-data").await.unwrap();
    service.expire_tokens();
    assert_eq!(client.get("user-data").await.unwrap().unwrap(), b"x");
    assert_eq!(
        service.asked()[2..],
        ["GET /latest/user-data", "PUT /latest/api/token", "GET /latest/user-data"]
    );
}

#[tokio::test]
async fn a_service_that_refuses_its_own_tokens_is_given_up_after_the_second() {
    let service = Imds::new().forgetting_tokens().start();
    let e = client(&service).get("user-data").await.unwrap_err();
    assert_eq!(e.code(), Code::MetadataInvalid);
    assert_eq!(service.asked().iter().filter(|a| a.starts_with("PUT")).count(), 2);
    assert_eq!(service.asked().len(), 4);
}

#[tokio::test]
async fn metadata_that_is_switched_off_fails_at_once_and_says_so() {
    for (method, requests) in [("PUT", 1), ("GET", 2)] {
        let service = Imds::new().fault(method, "/", FOREVER, imds::error(403)).start();
        let client = client_within(&service, Duration::from_mins(5));
        let e = client.get(DOCUMENT).await.unwrap_err();
        assert_eq!(e.code(), Code::MetadataDisabled);
        assert!(e.hint().unwrap().contains("--http-endpoint enabled"), "{e:?}");
        assert_eq!(client.requests(), requests);
    }
}

#[tokio::test]
async fn our_own_mistake_is_not_repeated() {
    let service = Imds::new().fault("PUT", "token", FOREVER, imds::error(400)).start();
    let client = client_within(&service, Duration::from_mins(5));
    assert_eq!(client.get(DOCUMENT).await.unwrap_err().code(), Code::MetadataInvalid);
    assert_eq!(client.requests(), 1);
}

#[tokio::test]
async fn there_is_no_way_back_to_imdsv1() {
    for status in [404, 405] {
        // It would answer a GET without token.
        let server = Server::start(move |request| match request.method.as_str() {
            "PUT" => imds::error(status),
            _ => Reply::ok(imds::document("g5.xlarge")),
        });
        let client = Client::new(Endpoint::Fixed(server.url("")), FIVE_SECONDS);
        let e = client.get(DOCUMENT).await.unwrap_err();
        assert_eq!(e.code(), Code::MetadataInvalid);
        assert!(server.log().iter().all(|r| r.method == "PUT"));
        assert_eq!(client.requests(), 1);
    }
}

#[tokio::test]
async fn overload_is_waited_out() {
    let service = Imds::new()
        .fault("PUT", "token", 3, imds::error(503))
        .fault("GET", "user-data", 2, imds::error(500))
        .item("user-data", "x")
        .start();
    assert_eq!(client(&service).get("user-data").await.unwrap().unwrap(), b"x");
    assert_eq!(service.asked().len(), 4 + 3);
}

fn http_date_in(seconds: i64) -> String {
    let then = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(seconds);
    jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&then).unwrap()
}

#[tokio::test]
async fn retry_after_is_honoured_in_both_forms() {
    for form in ["seconds", "date"] {
        let value = if form == "date" { http_date_in(2) } else { "1".into() };
        let busy = imds::error(503).with("Retry-After", &value);
        let service = Imds::new().item("user-data", "x").fault("PUT", "token", 1, busy).start();
        let began = Instant::now();
        client(&service).get("user-data").await.unwrap().unwrap();
        // A date has whole seconds, so up to one of the two may be lost; without it the wait would be 50 ms.
        assert!(began.elapsed() >= Duration::from_millis(900), "{value}: {:?}", began.elapsed());
        assert_eq!(service.asked().len(), 3);
    }
}

#[tokio::test]
async fn a_wait_beyond_the_deadline_is_not_begun() {
    let busy = imds::error(503).with("Retry-After", "3600");
    let service = Imds::new().fault("PUT", "token", FOREVER, busy).start();
    let began = Instant::now();
    let e = client(&service).get("user-data").await.unwrap_err();
    assert_eq!(e.code(), Code::MetadataUnreachable);
    assert!(e.causes()[0].contains("503"), "{:?}", e.causes());
    assert!(began.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn a_service_that_is_not_there_is_given_up_at_the_deadline() {
    let nobody = free_port("127.0.0.1");
    let limit = Duration::from_millis(1500);
    let client = Client::new(Endpoint::Fixed(format!("http://{nobody}")), limit);
    let began = Instant::now();
    let e = client.get(DOCUMENT).await.unwrap_err();
    assert_eq!(e.code(), Code::MetadataUnreachable);
    assert!(e.message().contains("within 1.5 s") && !e.causes().is_empty(), "{e:?}");
    assert!(began.elapsed() + Duration::from_millis(300) >= limit, "{:?}", began.elapsed());
    assert!(began.elapsed() <= limit + Duration::from_secs(1), "{:?}", began.elapsed());
    assert!(client.requests() > 3);
    // The deadline holds for all that is asked: the next item does not begin a new one.
    let again = Instant::now();
    client.get("user-data").await.unwrap_err();
    assert!(again.elapsed() < Duration::from_secs(1));
}

#[tokio::test]
async fn a_service_that_comes_late_is_waited_for() {
    let addr = free_port("127.0.0.1");
    let late = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(700));
        Imds::new().start_at(addr)
    });
    let client = Client::new(Endpoint::Fixed(format!("http://{addr}")), FIVE_SECONDS);
    assert!(client.get(DOCUMENT).await.unwrap().is_some());
    drop(late.join().unwrap());
}

#[tokio::test]
async fn broken_connections_and_nonsense_on_the_wire_are_tried_again() {
    for reply in [
        Reply::Reset,
        Reply::Close,
        Reply::Raw(b"\x00\xffnot http at all\r\n\r\n".to_vec()),
        Reply::Cut { body: vec![b'x'; 64], missing: 32 },
        Reply::Hang(Duration::from_secs(20)),
        Reply::Drip(Duration::from_millis(500)),
    ] {
        let service = Imds::new().fault("GET", DOCUMENT, 1, reply.clone()).start();
        let client = client_within(&service, Duration::from_secs(8));
        let began = Instant::now();
        let document = client.get(DOCUMENT).await.unwrap().unwrap();
        assert_eq!(document, imds::document("g5.xlarge").as_bytes(), "{reply:?}");
        assert!(began.elapsed() < Duration::from_secs(5), "{reply:?} cost {:?}", began.elapsed());
    }
}

#[tokio::test]
async fn an_endless_answer_is_refused() {
    let service = Imds::new().item("user-data", vec![b'x'; (1 << 20) + 1]).start();
    let e = client(&service).get("user-data").await.unwrap_err();
    assert_eq!(e.code(), Code::MetadataInvalid);
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let other = Imds::new().start();
    let target = format!("{}/latest/{DOCUMENT}", other.url());
    let away = Reply::status(302, "").with("Location", &target);
    let service = Imds::new().fault("GET", DOCUMENT, FOREVER, away).start();
    assert_eq!(client(&service).get(DOCUMENT).await.unwrap_err().code(), Code::MetadataInvalid);
    assert!(other.asked().is_empty());
}

#[tokio::test]
async fn a_document_that_is_none_is_a_clear_error() {
    for body in ["<html>please log in</html>", "{}", "{\"instanceId\": \"web-1\"}"] {
        let service = Imds::new().item(DOCUMENT, body).start();
        let root = root("Amazon EC2");
        let e = gather(root.path(), &client(&service)).await.unwrap_err();
        assert_eq!(e.code(), Code::MetadataInvalid);
        assert!(e.message().contains(DOCUMENT), "{e}");
    }
}

#[tokio::test]
async fn off_ec2_no_packet_is_sent() {
    let service = Imds::new().start();
    let client = Client::new(Endpoint::Race { v4: service.url(), v6: service.url() }, FIVE_SECONDS);
    let elsewhere = root("QEMU");
    let identity = gather(elsewhere.path(), &client).await.unwrap();
    assert!(!identity.on_ec2.value && identity.instance.is_none() && identity.user_data.is_none());
    assert_eq!(identity.instance_id(), "local");
    assert_eq!((service.server.connections(), client.requests()), (0, 0));
    // The same client does ask where the firmware says EC2.
    let ec2 = root("Amazon EC2");
    assert!(gather(ec2.path(), &client).await.unwrap().instance.is_some());
}

#[tokio::test]
async fn an_endpoint_named_by_the_environment_is_asked_off_ec2_too() {
    let service = Imds::new().start();
    let client = Client::new(Endpoint::Explicit(service.url()), FIVE_SECONDS);
    let elsewhere = root("QEMU");
    let identity = gather(elsewhere.path(), &client).await.unwrap();
    assert!(identity.on_ec2.value && identity.instance.is_some());
    assert!(identity.on_ec2.source.starts_with("AWS_EC2_METADATA_SERVICE_ENDPOINT, although"));
    assert!(identity.on_ec2.source.contains("QEMU"));
}

fn on_ipv6(service: Imds) -> Running {
    service.start_at((Ipv6Addr::LOCALHOST, 0).into())
}

#[tokio::test]
async fn ipv4_that_answers_is_enough() {
    let (v4, v6) = (Imds::new().start(), on_ipv6(Imds::new()));
    let client = Client::new(Endpoint::Race { v4: v4.url(), v6: v6.url() }, FIVE_SECONDS);
    client.get(DOCUMENT).await.unwrap().unwrap();
    assert_eq!((v4.asked().len(), v6.server.connections()), (2, 0));
    assert!(client.url("user-data").starts_with(&v4.url()));
}

#[tokio::test]
async fn ipv6_takes_over_when_ipv4_refuses() {
    let v6 = on_ipv6(Imds::new());
    let nobody = free_port("127.0.0.1");
    let client = Client::new(Endpoint::Race { v4: format!("http://{nobody}"), v6: v6.url() }, FIVE_SECONDS);
    client.get(DOCUMENT).await.unwrap().unwrap();
    assert_eq!(client.requests(), 3);
    assert_eq!(client.url("user-data"), format!("{}/latest/user-data", v6.url()));
    assert_eq!(v6.asked().len(), 2);
}

#[tokio::test]
async fn ipv6_takes_over_when_ipv4_is_silent() {
    let silent = Server::start(|_| Reply::Hang(Duration::from_secs(20)));
    let v6 = on_ipv6(Imds::new());
    let client = Client::new(Endpoint::Race { v4: silent.url(""), v6: v6.url() }, FIVE_SECONDS);
    let began = Instant::now();
    client.get(DOCUMENT).await.unwrap().unwrap();
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(150) && took < Duration::from_secs(2), "{took:?}");
    assert_eq!(client.requests(), 3);
}

#[tokio::test]
async fn slow_ipv4_beats_ipv6_that_refuses() {
    // The IPv4 service takes longer than the stagger; the other one is switched off.
    let v4 = Server::start(|request| {
        if request.method == "PUT" {
            std::thread::sleep(Duration::from_millis(400));
            return Reply::ok("token==");
        }
        Reply::ok("from v4")
    });
    let v6 = on_ipv6(Imds::new().fault("PUT", "/", FOREVER, imds::error(403)));
    let client = Client::new(Endpoint::Race { v4: v4.url(""), v6: v6.url() }, FIVE_SECONDS);
    assert_eq!(client.get("user-data").await.unwrap().unwrap(), b"from v4");
    assert_eq!(v6.asked().len(), 1);
}

/// Runs in a process of its own, started by [`the_environment_is_read_and_proxies_are_not`].
#[tokio::test]
#[ignore = "started by another test, with an environment of its own"]
async fn child_that_gathers_by_its_environment() {
    let Some(client) = Client::from_env(FIVE_SECONDS).unwrap() else {
        println!("metadata disabled");
        return;
    };
    let elsewhere = root("QEMU");
    let identity = gather(elsewhere.path(), &client).await.unwrap();
    println!("instance {}", identity.instance_id());
    match Fetch::new().get("http://proxied.invalid/x", 100).await {
        Ok(answer) => println!("fetched {}", String::from_utf8(answer).unwrap()),
        Err(error) => println!("refused: {error}"),
    }
    // It has runtimes of its own, which may not end within this one.
    let packages = || fetch(&[], &Settings::default(), &AtomicBool::new(false), &|_| {});
    if let Err(error) = std::thread::spawn(packages).join().unwrap() {
        println!("packages refused: {error}");
    }
}

fn child(env: &[(&str, &str)]) -> String {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child_that_gathers_by_its_environment", "--ignored", "--nocapture"]);
    for name in
        ["no_proxy", "NO_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "REQUEST_METHOD"]
    {
        command.env_remove(name);
    }
    let output = command.envs(env.iter().copied()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    text
}

#[test]
fn the_environment_is_read_and_proxies_are_not() {
    let service = Imds::new().start();
    let proxy = Server::start(|_| Reply::ok("through the proxy"));
    let text = child(&[
        ("AWS_EC2_METADATA_SERVICE_ENDPOINT", &service.url()),
        ("http_proxy", &proxy.url("")),
        ("HTTP_PROXY", &proxy.url("")),
        ("all_proxy", &proxy.url("")),
    ]);
    assert!(text.contains("instance i-0123456789abcdef0"), "{text}");
    // Other downloads do go through it, so the proxy would have been used.
    assert!(text.contains("fetched through the proxy"), "{text}");
    let proxied: Vec<_> = proxy.log().into_iter().map(|r| r.path).collect();
    assert_eq!(proxied, ["http://proxied.invalid/x"]);
}

#[test]
fn a_proxy_that_cannot_be_used_is_refused_instead_of_passed_by() {
    let service = Imds::new().start();
    let text = child(&[
        ("AWS_EC2_METADATA_SERVICE_ENDPOINT", &service.url()),
        ("HTTPS_PROXY", "http://user:geheim@bücher.example:3128"),
    ]);
    assert!(text.contains("instance i-0123456789abcdef0"), "{text}");
    let refusal = "refused: cannot use the proxy http://bücher.example:3128 that HTTPS_PROXY names: it is not in ASCII; \
                   write the host name as xn--…";
    assert_eq!(text.matches(refusal).count(), 2, "{text}");
    assert!(text.contains(&format!("packages {refusal}")), "{text}");
}

#[test]
fn metadata_disabled_by_the_environment_is_no_client() {
    let service = Imds::new().start();
    let text = child(&[
        ("AWS_EC2_METADATA_DISABLED", "true"),
        ("AWS_EC2_METADATA_SERVICE_ENDPOINT", &service.url()),
    ]);
    assert!(text.contains("metadata disabled"), "{text}");
    assert_eq!(service.server.connections(), 0);
}
