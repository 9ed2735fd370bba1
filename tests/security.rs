//! What an attacker or an unlucky neighbour may try, where no other file has the test: `docs/threat-model.md` lists all.

#![allow(clippy::unwrap_used, reason = "test code: a panic is a failure with a place")]

#[path = "support/imds.rs"]
mod imds;
#[path = "support/machine.rs"]
mod machine;
#[path = "support/repository.rs"]
mod repository;
#[path = "support/root.rs"]
mod root;

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use base64::Engine as _;
use gpu_bootstrap::action::Action;
use gpu_bootstrap::action::apt_index::AptIndex;
use gpu_bootstrap::error::Code;
use gpu_bootstrap::host::files::Files;
use gpu_bootstrap::host::{Host, paths};
use imds::scripted_http::{Reply, Server};
use imds::{Imds, Running};
use machine::{Machine, Ran, binary, ran};
use root::Root;
use sha2::{Digest, Sha256};

/// Every secret below begins so; none may leave the process but to whom it belongs.
const CANARY: &str = "canary-";

/// A T4 and a kernel, as plain files of a root.
fn furnish(root: &Root) {
    let device = "/sys/bus/pci/devices/0000:00:1e.0";
    for (path, text) in [
        (format!("{device}/vendor"), "0x10de\n"),
        (format!("{device}/device"), "0x1eb8\n"),
        (format!("{device}/class"), "0x030200\n"),
        ("/proc/sys/kernel/osrelease".into(), "6.1.0-18-cloud-amd64\n"),
        ("/proc/sys/kernel/random/boot_id".into(), "0b6d2a9c-7c3e-4c55-9f0a-3c1f6a1d2e3f\n"),
    ] {
        root.write(&path, text);
    }
}

/// Whether the text has a secret, plain or as a `Basic` login has it.
fn secret_in(text: &[u8]) -> bool {
    let text = String::from_utf8_lossy(text);
    let login = base64::engine::general_purpose::STANDARD.encode(format!("user:{CANARY}"));
    // The last group of a login without padding depends on what follows.
    text.contains(CANARY) || text.contains(&login[..12])
}

/// Files below `dir` that have a secret.
fn files_with_secrets(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let (path, kind) = (entry.path(), entry.file_type().unwrap());
        if kind.is_dir() {
            files_with_secrets(&path, found);
        } else if kind.is_file()
            && (secret_in(&fs::read(&path).unwrap()) || secret_in(path.as_os_str().as_encoded_bytes()))
        {
            found.push(path);
        }
    }
}

fn deb() -> Vec<u8> {
    [b"!<arch>\ndebian-binary   ".as_slice(), &[7; 3000]].concat()
}

/// The user-data of a user who wants one package file and nothing else.
fn wish(url: &str) -> String {
    let sum = format!("{:x}", Sha256::digest(deb()));
    format!(
        "#gpu-bootstrap\n[driver]\nbranch = \"none\"\n[cuda]\ntoolkit = \"none\"\n[cudnn]\ndeb = [{{ url = \"{url}\", sha256 = \"{sum}\" }}]\n"
    )
}

/// A metadata service with a role and this user-data.
fn service(user_data: &str) -> Running {
    Imds::new()
        .item("user-data", user_data)
        .item("meta-data/iam/security-credentials/", "gpu-node")
        .item(
            "meta-data/iam/security-credentials/gpu-node",
            format!(
                r#"{{"Code":"Success","AccessKeyId":"ASIAEXAMPLE","SecretAccessKey":"{CANARY}role","Token":"{CANARY}session"}}"#
            ),
        )
        .start()
}

/// CloudWatch as it answers a signature that it does not believe: with the request, session token included.
fn cloudwatch() -> Server {
    Server::start(|request| {
        let token = request.header("x-amz-security-token").unwrap_or_default();
        Reply::status(
            403,
            format!(
                r#"{{"__type":"x#SignatureDoesNotMatch","message":"no match\nThe Canonical String was\n'POST\nx-amz-security-token:{token}'"}}"#
            ),
        )
        .with("Date", "Mon, 23 Nov 2015 15:00:00 GMT")
    })
}

/// Runs and questions of the real binary over a root with apt, everything switched on that prints.
struct Watched {
    root: Root,
    service: Running,
    cloudwatch: Server,
    said: Vec<(String, Ran)>,
}

impl Watched {
    fn new(user_data: &str) -> Self {
        let root = Root::new();
        furnish(&root);
        Self { root, service: service(user_data), cloudwatch: cloudwatch(), said: Vec::new() }
    }

    fn run(&mut self, args: &[&str], environment: &[(&str, &str)]) {
        let mut command = binary();
        command.args(args).arg("--root").arg(self.root.path());
        command.env("AWS_EC2_METADATA_SERVICE_ENDPOINT", self.service.url());
        command.env("AWS_ENDPOINT_URL", self.cloudwatch.url(""));
        command.env("GPU_BOOTSTRAP_LOG", "trace").envs(environment.iter().copied());
        self.said.push((args.join(" "), ran(&mut command)));
    }

    /// Everything that left the process: streams, files, CloudWatch's request.
    #[track_caller]
    fn assert_no_secret(&self, name: &str) {
        for (args, ran) in &self.said {
            let said = ran.stdout.lines().chain(ran.stderr.lines());
            let secrets: Vec<_> = said.filter(|line| secret_in(line.as_bytes())).collect();
            assert!(secrets.is_empty(), "{name}: {args}: {secrets:#?}");
        }
        let mut found = Vec::new();
        files_with_secrets(self.root.path(), &mut found);
        // What the user wrote there, the user wrote there.
        found.retain(|path| path != &self.root.at("/etc/apt/sources.list"));
        assert!(found.is_empty(), "{name}: {found:?}");
        let token =
            self.service.server.log()[0].header("x-aws-ec2-metadata-token-ttl-seconds").map(str::to_owned);
        assert!(token.is_some(), "the metadata service was asked");
        for request in self.cloudwatch.log() {
            assert!(!secret_in(&request.body), "{name}: {:?}", request.body);
            for (header, value) in &request.headers {
                assert!(
                    header == "x-amz-security-token" || !secret_in(value.as_bytes()),
                    "{name}: {header}: {value}"
                );
            }
        }
    }

    /// How the last run ended.
    fn result(&self) -> serde_json::Value {
        serde_json::from_str(&self.root.read(paths::RESULT)).unwrap()
    }
}

/// The token of the metadata service begins so.
const TOKEN: &str = "AQAEAFTNrA4eEGx0AQgJ1arIq";

#[test]
fn no_secret_leaves_the_process_whatever_a_download_comes_to() {
    let secret =
        |reply: Reply| reply.with("Set-Cookie", "session=canary-cookie").with("X-Canary", "canary-header");
    let body = "canary-body";
    let other = Server::start(|_| Reply::Reset);
    let elsewhere = format!("http://user:canary-password@{}/x?canary-query", other.addr);
    let downgraded = "ftp://user:canary-password@host/x?canary-query";
    for (name, code, reply) in [
        ("403", "fetch-denied", secret(Reply::status(403, body))),
        ("404", "fetch", secret(Reply::status(404, body))),
        ("418", "fetch", secret(Reply::status(418, body))),
        (
            "a login page",
            "not-a-deb",
            secret(Reply::ok("<html>canary-body").with("Content-Type", "text/html")),
        ),
        ("another file", "checksum-mismatch", secret(Reply::ok([deb(), body.into()].concat()))),
        ("cut short", "fetch", Reply::Cut { body: deb(), missing: 9 }),
        ("elsewhere", "fetch", secret(Reply::status(302, body)).with("Location", &elsewhere)),
        ("a foreign scheme", "fetch", secret(Reply::status(302, body)).with("Location", downgraded)),
        ("a package that is none", "not-a-deb", secret(Reply::ok(deb()))),
    ] {
        let server = Server::start(move |_| reply.clone());
        let url = format!("http://user:canary-password@{}/x.deb?X-Amz-Signature=canary-query", server.addr);
        let mut watched = Watched::new(&wish(&url));
        for args in [
            &["run", "-vv"][..],
            &["plan", "-vv"],
            &["detect", "--json"],
            &["detect"],
            &["status"],
            &["status", "--json"],
        ] {
            watched.run(args, &[]);
        }
        assert_eq!(watched.result()["error"]["code"], code, "{name}: {:?}", watched.result());
        assert!(
            !server.log().is_empty() && server.log()[0].path.contains("canary-query"),
            "{name}: it was asked"
        );
        watched.assert_no_secret(name);
        for (args, ran) in &watched.said {
            assert!(
                !ran.stdout.contains(TOKEN) && !ran.stderr.contains(TOKEN),
                "{name}: {args}: the metadata token"
            );
        }
        assert_eq!(watched.cloudwatch.log()[0].header("x-amz-security-token"), Some("canary-session"));
    }
}

#[test]
fn no_secret_of_a_proxy_or_of_apts_sources_leaves_the_process() {
    let proxy = Server::start(|_| {
        Reply::status(407, "canary-body").with("Proxy-Authenticate", "Basic realm=\"canary-realm\"")
    });
    let with_login = format!("http://user:canary-proxy@{}", proxy.addr);
    let mut watched = Watched::new(&wish("http://mirror.invalid/x.deb?canary-query"));
    // apt asks it when packages are missing, and says what became of it.
    watched.root.write(
        "/etc/apt/sources.list",
        "deb [trusted=yes] http://user:canary-apt@archive.invalid/debian bookworm main\n",
    );
    let environment = [("http_proxy", with_login.as_str()), ("https_proxy", &with_login)];
    watched.run(&["run", "-vv"], &environment);
    assert_eq!(watched.result()["error"]["code"], "fetch-denied", "{:?}", watched.result());
    assert!(proxy.log().iter().any(|r| r.header("proxy-authorization").is_some()), "the proxy got its login");
    watched.run(&["run", "-vv"], &[("http_proxy", "http://user:canary-proxy@bücher.example")]);
    assert_eq!(watched.result()["error"]["code"], "fetch");
    watched.assert_no_secret("a proxy");

    // The whole job: the repository's step asks apt.
    let mut watched = Watched::new("#gpu-bootstrap\n[source]\npackages = \"http://127.0.0.1:9/\"\n");
    watched.root.write(
        "/etc/apt/sources.list",
        "deb [trusted=yes] http://user:canary-apt@127.0.0.1:9/debian bookworm main\n",
    );
    for args in [&["run", "-vv"][..], &["plan", "-vv"], &["status", "--json"]] {
        watched.run(args, &[]);
    }
    let result = watched.result();
    assert_eq!(result["error"]["code"], "apt-failed", "{result:?}");
    assert!(result["notices"].to_string().contains("127.0.0.1:9/debian"), "apt was asked: {result:?}");
    watched.assert_no_secret("apt's sources");
}

/// EC2's most.
const SIZE: usize = 16 << 10;

/// 16 KB, EC2's most, of everything that a parser might trip over.
#[test]
fn hostile_user_data_ends_in_a_sentence() {
    let mut x = 7_u32;
    let mut noise = |length: usize| {
        let byte = || {
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            x.to_be_bytes()[0]
        };
        std::iter::repeat_with(byte).take(length).collect::<Vec<u8>>()
    };
    let packed = |bytes: &[u8]| {
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        gz.write_all(bytes).unwrap();
        gz.finish().unwrap()
    };
    let head = b"#gpu-bootstrap\n".to_vec();
    let bomb = packed(&packed(&vec![b'#'; 1 << 28]));
    assert!(bomb.len() < SIZE, "{}", bomb.len());
    let boundary = "Content-Type: multipart/mixed; boundary=\"x\"\n\n--x\n";
    let cases = [
        ("noise", noise(SIZE)),
        ("noise with our first line", [head.clone(), noise(SIZE - 15)].concat()),
        ("zeros", vec![0; SIZE]),
        ("escapes", [head.clone(), "\u{1b}]0;owned\u{7}\u{1b}[2J".repeat(900).into_bytes()].concat()),
        ("an open string", [head.clone(), b"a = \"".to_vec(), vec![b'x'; SIZE - 20]].concat()),
        ("brackets", [head.clone(), b"a = ".to_vec(), vec![b'['; SIZE - 19]].concat()),
        ("one key", [head.clone(), vec![b'k'; SIZE - 15]].concat()),
        ("256 MB, packed twice", bomb),
        ("8 MB with our first line, packed", packed(&[head, vec![b'#'; 1 << 23]].concat())),
        ("packed noise", packed(&noise(SIZE - 100))),
        ("half a gzip", packed(&noise(SIZE))[..SIZE / 2].to_vec()),
        ("messages in messages", boundary.repeat(SIZE / boundary.len()).into_bytes()),
        ("a script that is none of ours", b"#!/bin/sh\ntouch /owned\n".to_vec()),
    ];
    for (name, bytes) in cases {
        assert!(bytes.len() <= SIZE, "{name}: {} bytes", bytes.len());
        let machine = Machine::debian12();
        let service = Imds::new().item("user-data", bytes).start();
        let mut command = binary();
        command.args(["run", "--root"]).arg(machine.root());
        command.env("AWS_EC2_METADATA_SERVICE_ENDPOINT", service.url());
        let began = Instant::now();
        let ran = ran(&mut limited(&command, 256 << 20));
        assert!(began.elapsed() < Duration::from_secs(10), "{name}: {:?}", began.elapsed());
        // Refused as a configuration, or none of ours, and then there is no GPU.
        assert!([2, 3].contains(&ran.code), "{name}: {ran:?}");
        let said = ran.stdout + &ran.stderr;
        assert!(said.len() < 100_000 && !said.contains(['\u{1b}', '\u{7}']), "{name}: {} bytes", said.len());
        assert!(!said.contains("panicked") && !machine.outside("/owned").exists(), "{name}: {said}");
        assert!(machine.read(paths::RESULT).contains("\"failed\""), "{name}");
    }
}

/// The same command, with so much memory.
fn limited(command: &Command, bytes: u64) -> Command {
    let mut limited = Command::new("sh");
    let script = format!("ulimit -v {}; exec \"$0\" \"$@\"", bytes / 1024);
    limited.args(["-c", &script]).arg(command.get_program()).args(command.get_args()).env_clear();
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            limited.env(name, value);
        }
    }
    limited
}

/// A directory in which everybody may lay traps.
#[test]
fn nothing_is_written_to_tmp() {
    let machine = Machine::debian12().t4().file(
        "/etc/gpu-bootstrap/10-idle.toml",
        "[driver]\nbranch = \"none\"\n[cuda]\ntoolkit = \"none\"\n[cudnn]\nversion = \"none\"\n",
    );
    let trap = tempfile::tempdir().unwrap();
    fs::set_permissions(trap.path(), fs::Permissions::from_mode(0o1777)).unwrap();
    symlink(trap.path(), machine.outside("/tmp")).unwrap();
    for args in [&["run"][..], &["plan"], &["status"], &["detect"]] {
        let mut command = machine.command(args);
        assert_eq!(ran(command.env("TMPDIR", trap.path())).code, 0, "{args:?}");
        assert_eq!(fs::read_dir(trap.path()).unwrap().count(), 0, "{args:?}");
        // And none is needed.
        let mut command = machine.command(args);
        assert_eq!(ran(command.env("TMPDIR", "/nowhere")).code, 0, "{args:?}");
    }
}

/// On the machine itself, where no root directory keeps links inside.
#[test]
fn a_link_in_the_place_of_our_file_is_replaced_and_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let (victim, ours) = (dir.path().join("victim"), dir.path().join("ours.conf"));
    fs::write(&victim, "theirs").unwrap();
    symlink(&victim, &ours).unwrap();
    let files = Files::new("/".into());
    files.write(&ours, b"ours", 0o600).unwrap();
    assert_eq!(fs::read(&victim).unwrap(), b"theirs");
    assert!(ours.symlink_metadata().unwrap().is_file());
    assert_eq!(fs::read(&ours).unwrap(), b"ours");
    fs::remove_file(&ours).unwrap();
    symlink(&victim, &ours).unwrap();
    files.symlink(&ours, "/nowhere").unwrap();
    files.remove(&ours).unwrap();
    assert_eq!(fs::read(&victim).unwrap(), b"theirs");
}

/// The clock of the machine and that of the repository, years apart.
#[tokio::test]
async fn an_index_from_the_future_is_refused_with_a_word_about_the_clock() {
    let (root, key) = (Root::new(), repository::Key::generate("tests"));
    let package = repository::Package::new("cuda-toolkit-12-8", "12.8.1-1");
    let mut repository = repository::Repository::new("debian12", "x86_64").with(&package);
    fs::create_dir_all(root.at("/usr/share/keyrings")).unwrap();
    fs::write(root.at("/usr/share/keyrings/test.gpg"), key.binary()).unwrap();
    let dir = repository.root().to_owned();
    let server = Server::start(move |r| match fs::read(dir.join(r.path.trim_start_matches('/'))) {
        Ok(body) => Reply::part(r, &body),
        Err(_) => Reply::status(404, ""),
    });
    let action = Action::AptIndex(AptIndex {
        url: repository.url(&server.url("")),
        architecture: "amd64".into(),
        keyring: "/usr/share/keyrings/test.gpg".into(),
        label: "NVIDIA CUDA".into(),
        date_floor: "2026-06-01".into(),
        may_supply: vec!["cuda-*".into()],
        packages: vec!["cuda-toolkit-12-8".into()],
        version_floor: String::new(),
    });
    let host = Host::new(root.path().to_path_buf());
    repository.set_date("Sun, 01 Jan 2040 12:00:00 UTC");
    repository.publish(&key);
    let error = action.apply(&host).await.unwrap_err();
    assert_eq!(error.code(), Code::RepositoryUntrusted, "{error}: {:?}", error.causes());
    assert!(error.hint().unwrap().contains("clock"), "{error:?}");
    repository.set_date("Sun, 01 Nov 2026 12:00:00 UTC");
    repository.publish(&key);
    action.apply(&host).await.unwrap();
}
