//! The user-data stub, run for real: in a root directory of its own, by dash, bash and busybox, with one download
//! program at a time, against a web server on loopback. Needs the right to make a mount namespace (root, or user
//! namespaces) and the programs named; what is missing fails a test.

#![allow(clippy::unwrap_used, reason = "a helper of a test fails like the test")]

#[path = "support/file_server.rs"]
mod file_server;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use base64::Engine as _;
use file_server::FileServer;
use gpu_bootstrap::config::user_data::{self, NotOurs, UserData};
use gpu_bootstrap::error::Code;
use gpu_bootstrap::user_data::{Included, open};
use gpu_bootstrap::user_data_stub::{RenderArgs, UNIT, render};
use serde_json::json;
use sha2::{Digest, Sha256};

/// Stands for the agent: it runs, and it is told apart by its bytes.
const AGENT: &[u8] = b"#!/usr/bin/sh\n[ \"$1\" = --version ]\n";
const ARM_AGENT: &[u8] = b"#!/usr/bin/sh\n# arm64\n[ \"$1\" = --version ]\n";
const CONFIG: &str = "[cuda]\ntoolkit = \"12.8\"\n";

fn sum(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

/// A root directory with a shell, the core utilities that the stub names, and a `systemctl` that takes notes.
struct Machine(tempfile::TempDir);

/// What the stub needs besides the shell and one download program.
const TOOLS: &[&str] =
    &["cat", "chmod", "id", "mkdir", "mktemp", "mv", "rm", "sha256sum", "sync", "tail", "timeout", "uname"];

/// Fails when `programs` or a mount namespace cannot be had: a test that does not run proves nothing.
fn require(programs: &[&str]) {
    let missing: Vec<_> = programs.iter().filter(|p| find(p).is_none()).collect();
    assert!(missing.is_empty(), "not installed: {missing:?}; start the tests by tests/run");
    assert!(
        unshare().arg("true").output().is_ok_and(|o| o.status.success()),
        "no mount namespace may be made"
    );
}

fn find(program: &str) -> Option<PathBuf> {
    ["/usr/bin", "/bin"].map(|d| Path::new(d).join(program)).into_iter().find(|p| p.exists())
}

fn unshare() -> Command {
    let mut command = Command::new("unshare");
    let is_root = nix::unistd::geteuid().is_root();
    command.args(if is_root { &["--mount"][..] } else { &["--map-root-user", "--mount"] });
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command
}

impl Machine {
    fn new(shell: &str, fetcher: &str) -> Self {
        let machine = Self(tempfile::tempdir().unwrap());
        for dir in ["usr/bin", "usr/lib", "usr/lib64", "dev", "tmp", "etc", "run/systemd/system"] {
            fs::create_dir_all(machine.path(dir)).unwrap();
        }
        for link in ["bin", "lib", "lib64"] {
            symlink(format!("usr/{link}"), machine.path(link)).unwrap();
        }
        fs::write(machine.path("dev/null"), "").unwrap();
        fs::write(machine.path("dev/console"), "").unwrap();
        if shell == "busybox" {
            machine.install("busybox", "busybox");
            for tool in TOOLS.iter().chain(&["sh", "wget"]) {
                symlink("busybox", machine.path(&format!("usr/bin/{tool}"))).unwrap();
            }
        } else {
            machine.install(shell, "sh");
            for tool in TOOLS {
                machine.install(tool, tool);
            }
            machine.install(fetcher, fetcher);
        }
        machine.script(
            "systemctl",
            "echo \"$*\" >>/systemctl.log\n[ \"$1\" != is-active ] || cat /unit-state 2>/dev/null",
        );
        machine.script("sleep", "echo \"$1\" >>/sleep.log");
        machine
    }

    fn path(&self, inside: &str) -> PathBuf {
        self.0.path().join(inside.trim_start_matches('/'))
    }

    fn text(&self, inside: &str) -> String {
        fs::read_to_string(self.path(inside)).unwrap_or_default()
    }

    fn install(&self, program: &str, name: &str) {
        fs::copy(find(program).unwrap(), self.path(&format!("usr/bin/{name}"))).unwrap();
    }

    fn script(&self, name: &str, body: &str) {
        let path = self.path(&format!("usr/bin/{name}"));
        let _ = fs::remove_file(&path);
        fs::write(&path, format!("#!/usr/bin/sh\n{body}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Runs the stub as the machine's user-data.
    fn run(&self, stub: &str) -> Output {
        fs::write(self.path("tmp/user-data"), stub).unwrap();
        let script = r#"
            set -e
            mount --bind /usr/lib "$1/usr/lib"
            [ ! -d /usr/lib64 ] || mount --bind /usr/lib64 "$1/usr/lib64"
            mount --bind /dev/null "$1/dev/null"
            exec chroot "$1" /usr/bin/sh /tmp/user-data
        "#;
        unshare().args(["sh", "-c", script, "sh"]).arg(self.0.path()).output().unwrap()
    }

    /// Files that the stub may have made, temporary ones included.
    fn installed(&self) -> Vec<String> {
        let mut found = Vec::new();
        for dir in ["usr/local/bin", "etc/gpu-bootstrap", "etc/systemd/system"] {
            for entry in fs::read_dir(self.path(dir)).into_iter().flatten().flatten() {
                found.push(format!("{dir}/{}", entry.file_name().to_string_lossy()));
            }
        }
        found
    }
}

fn config_file(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(&file, text).unwrap();
    file
}

fn args(server: &FileServer) -> RenderArgs {
    RenderArgs { url: Some(server.url("/agent")), sha256: Some(sum(AGENT)), ..RenderArgs::default() }
}

fn stub(server: &FileServer, config: &str) -> String {
    let file = config_file(config);
    render(&RenderArgs { config: Some(file.path().into()), ..args(server) }).unwrap()
}

fn server() -> FileServer {
    FileServer::start(&[("/agent", AGENT), ("/arm", ARM_AGENT)])
}

#[track_caller]
fn succeeded(output: &Output) {
    assert!(output.status.success(), "{:?} {}", output.status, String::from_utf8_lossy(&output.stderr));
}

/// Failed with one sentence, on standard error and on the console, and nothing of ours is on the machine.
#[track_caller]
fn refused(machine: &Machine, output: &Output, sentence: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.lines().count() == 1 && stderr.contains(sentence), "{stderr}");
    assert_eq!(machine.text("dev/console"), stderr);
    assert_eq!(machine.installed(), [""; 0]);
    assert_eq!(machine.text("systemctl.log"), "", "nothing was started");
}

#[test]
fn every_shell_and_every_download_program_installs_and_starts() {
    for (shell, fetcher) in
        [("dash", "curl"), ("dash", "wget"), ("dash", "python3"), ("bash", "curl"), ("busybox", "wget")]
    {
        require(&[shell, fetcher]);
        let (server, machine) = (server(), Machine::new(shell, fetcher));
        let output = machine.run(&stub(&server, CONFIG));
        succeeded(&output);
        assert_eq!(
            fs::read(machine.path("usr/local/bin/gpu-bootstrap")).unwrap(),
            AGENT,
            "{shell} {fetcher}"
        );
        let mode = |p: &str| fs::metadata(machine.path(p)).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode("usr/local/bin/gpu-bootstrap"), 0o755);
        assert_eq!(mode("etc/gpu-bootstrap/90-user-data.toml"), 0o644);
        assert_eq!(machine.text("etc/gpu-bootstrap/90-user-data.toml"), CONFIG);
        let unit = UNIT.replace("/usr/bin/", "/usr/local/bin/");
        assert_eq!(machine.text("etc/systemd/system/gpu-bootstrap.service"), unit);
        assert_eq!(machine.installed().len(), 3, "no temporary file stays: {:?}", machine.installed());
        let calls = "daemon-reload\nenable --quiet gpu-bootstrap.service\nis-active gpu-bootstrap.service\n\
                     start --no-block gpu-bootstrap.service\n";
        assert_eq!(machine.text("systemctl.log"), calls);
        assert_eq!(server.requests(), ["/agent"]);
    }
}

#[test]
fn a_second_run_downloads_nothing_and_starts_a_finished_service_again() {
    require(&["dash", "curl"]);
    let (server, machine) = (server(), Machine::new("dash", "curl"));
    succeeded(&machine.run(&stub(&server, CONFIG)));
    fs::write(machine.path("unit-state"), "active\n").unwrap();
    fs::remove_file(machine.path("systemctl.log")).unwrap();
    succeeded(&machine.run(&stub(&server, "driver.branch = \"580\"\n")));
    assert_eq!(server.requests().len(), 1);
    assert_eq!(machine.text("etc/gpu-bootstrap/90-user-data.toml"), "driver.branch = \"580\"\n");
    assert!(machine.text("systemctl.log").ends_with("restart --no-block gpu-bootstrap.service\n"));
    // A damaged agent is fetched again.
    fs::write(machine.path("usr/local/bin/gpu-bootstrap"), "torn").unwrap();
    succeeded(&machine.run(&stub(&server, CONFIG)));
    assert_eq!(fs::read(machine.path("usr/local/bin/gpu-bootstrap")).unwrap(), AGENT);
}

#[test]
fn a_wrong_sum_installs_nothing() {
    for (shell, fetcher) in [("dash", "curl"), ("dash", "python3"), ("busybox", "wget")] {
        require(&[shell, fetcher]);
        let (server, machine) = (server(), Machine::new(shell, fetcher));
        let other = RenderArgs { sha256: Some("0".repeat(64)), ..args(&server) };
        let output = machine.run(&render(&other).unwrap());
        let sentence =
            format!("sha256 of {} is {}, expected {}", server.url("/agent"), sum(AGENT), "0".repeat(64));
        refused(&machine, &output, &sentence);
    }
}

#[test]
fn a_server_that_recovers_is_waited_for() {
    for fetcher in ["curl", "wget", "python3"] {
        require(&["dash", fetcher]);
        let (server, machine) = (server(), Machine::new("dash", fetcher));
        server.fail_next(2);
        succeeded(&machine.run(&stub(&server, CONFIG)));
        assert_eq!(machine.text("sleep.log"), "2\n4\n");
    }
}

#[test]
fn a_download_that_never_works_is_one_sentence_without_the_query() {
    for (fetcher, reason) in [("curl", "404"), ("wget", "exit status 8"), ("python3", "HTTP Error 404")] {
        require(&["dash", fetcher]);
        let (server, machine) = (server(), Machine::new("dash", fetcher));
        let missing = RenderArgs { url: Some(server.url("/missing?signature=secret")), ..args(&server) };
        let output = machine.run(&render(&missing).unwrap());
        refused(&machine, &output, &format!("cannot download {}: ", server.url("/missing")));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.contains(reason) && !stderr.contains("secret"), "{stderr}");
        assert_eq!(machine.text("sleep.log"), "2\n4\n8\n16\n32\n");
    }
}

#[test]
fn without_a_download_program_the_stub_says_so() {
    require(&["dash", "curl"]);
    let (server, machine) = (server(), Machine::new("dash", "curl"));
    fs::remove_file(machine.path("usr/bin/curl")).unwrap();
    let output = machine.run(&stub(&server, CONFIG));
    refused(&machine, &output, "none of curl, wget and python3 is installed");
}

#[test]
fn the_machine_chooses_the_architecture() {
    require(&["dash", "curl"]);
    let server = server();
    let both = RenderArgs {
        url_arm64: Some(server.url("/arm")),
        sha256_arm64: Some(sum(ARM_AGENT)),
        ..args(&server)
    };
    for (name, bytes) in [("x86_64", AGENT), ("aarch64", ARM_AGENT)] {
        let machine = Machine::new("dash", "curl");
        machine.script("uname", &format!("echo {name}"));
        succeeded(&machine.run(&render(&both).unwrap()));
        assert_eq!(fs::read(machine.path("usr/local/bin/gpu-bootstrap")).unwrap(), bytes);
    }
    let machine = Machine::new("dash", "curl");
    machine.script("uname", "echo aarch64");
    let output = machine.run(&render(&args(&server)).unwrap());
    refused(&machine, &output, "this stub has no agent for aarch64");
    let arm_only = RenderArgs { url: None, sha256: None, ..both };
    machine.script("uname", "echo x86_64");
    fs::write(machine.path("dev/console"), "").unwrap();
    refused(&machine, &machine.run(&render(&arm_only).unwrap()), "this stub has no agent for x86_64");
}

#[test]
fn an_agent_that_does_not_run_here_is_not_installed() {
    require(&["dash", "curl"]);
    let server = FileServer::start(&[("/agent", b"\x7fELF of another world")]);
    let machine = Machine::new("dash", "curl");
    let wrong = RenderArgs { sha256: Some(sum(b"\x7fELF of another world")), ..args(&server) };
    refused(&machine, &machine.run(&render(&wrong).unwrap()), "does not run on this machine");
}

#[test]
fn without_systemd_nothing_is_done() {
    require(&["dash", "curl"]);
    let (server, machine) = (server(), Machine::new("dash", "curl"));
    fs::remove_dir(machine.path("run/systemd/system")).unwrap();
    refused(&machine, &machine.run(&stub(&server, CONFIG)), "this machine does not run systemd");
    assert_eq!(server.requests(), [""; 0]);
}

#[test]
fn a_failing_systemctl_is_reported() {
    require(&["dash", "curl"]);
    let (server, machine) = (server(), Machine::new("dash", "curl"));
    machine.script("systemctl", "[ \"$1\" != enable ]");
    let output = machine.run(&stub(&server, CONFIG));
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(machine.text("dev/console"), "gpu-bootstrap: the service cannot be enabled\n");
}

#[test]
fn nothing_in_the_configuration_is_run_or_changed() {
    let hostile = "# it's \"quoted\" \\ $(touch /pwned) `touch /pwned` ${HOME} %s \\n ü\n\
                   # END_OF_FILE\n\
                   report.cloudwatch.namespace = '$(touch /pwned)\"`touch /pwned`'";
    for shell in ["dash", "bash", "busybox"] {
        require(&[shell, "curl", "wget"]);
        let (server, machine) = (server(), Machine::new(shell, "curl"));
        succeeded(&machine.run(&stub(&server, hostile)));
        assert_eq!(machine.text("etc/gpu-bootstrap/90-user-data.toml"), format!("{hostile}\n"));
        assert!(!machine.path("pwned").exists());
    }
}

#[test]
fn the_stub_has_ec2s_limit() {
    let server = server();
    let room = user_data::MAX_BYTES - stub(&server, "").len();
    let config = |bytes: usize| format!("#{}\n", "x".repeat(bytes - 2));
    assert_eq!(stub(&server, &config(room)).len(), user_data::MAX_BYTES);
    let file = config_file(&config(room + 1));
    let e = render(&RenderArgs { config: Some(file.path().into()), ..args(&server) }).unwrap_err();
    assert_eq!(
        (e.code(), e.message()),
        (Code::ConfigRead, "the stub has 16385 bytes, but EC2 takes 16384 as user-data")
    );
}

#[test]
fn bad_arguments_and_a_bad_configuration_are_refused_before_anything_is_printed() {
    let url = || Some("https://example.com/a".to_owned());
    let sum = || Some("0".repeat(64));
    let render = |a: RenderArgs| render(&a).unwrap_err();
    for (args, says) in [
        (RenderArgs::default(), "the stub needs --url"),
        (RenderArgs { url: url(), ..RenderArgs::default() }, "--url and --sha256 go together"),
        (
            RenderArgs { sha256_arm64: sum(), ..RenderArgs::default() },
            "--url-arm64 and --sha256-arm64 go together",
        ),
        (
            RenderArgs { url: Some("https://a/'b".into()), sha256: sum(), ..RenderArgs::default() },
            "--url: a URL cannot contain the character '",
        ),
        (
            RenderArgs { url: Some("https://a/b\nrm -rf /".into()), sha256: sum(), ..RenderArgs::default() },
            "a line break",
        ),
        (
            RenderArgs { url: Some("https://u:p@a/b".into()), sha256: sum(), ..RenderArgs::default() },
            "a user or password",
        ),
        (
            RenderArgs { url: Some("s3://a/b".into()), sha256: sum(), ..RenderArgs::default() },
            "s3:// is not available",
        ),
        (
            RenderArgs { url: url(), sha256: Some("12".into()), ..RenderArgs::default() },
            "--sha256: a sha256 has 64",
        ),
    ] {
        let e = render(args);
        assert_eq!(e.code(), Code::Usage);
        assert!(e.message().contains(says), "{e}");
    }
    let file = config_file("[cuda]\ntoolkit = 12.10\n");
    let e = render(RenderArgs {
        url: url(),
        sha256: sum(),
        config: Some(file.path().into()),
        ..RenderArgs::default()
    });
    assert!(e.code() == Code::ConfigType && e.message().contains(":2:11: cuda.toolkit"), "{e}");
}

#[test]
fn the_agent_knows_the_stub_again() {
    let text = stub(&server(), CONFIG);
    assert_eq!(user_data::read(text.as_bytes()).unwrap(), UserData::NotOurs(NotOurs::Stub));
    let shown = user_data::check(config_file(&text).path(), &Included::default()).unwrap();
    for words in [
        ": configuration (user-data, /etc/gpu-bootstrap/90-user-data.toml in the stub), ",
        "the stub of `gpu-bootstrap user-data render`\n",
        "  without cloud-init: gpu-bootstrap reads its configuration, and does not run it\n",
    ] {
        assert!(shown.contains(words), "{shown}");
    }
    let changed = text.replace("systemctl daemon-reload", "true");
    assert_eq!(user_data::read(changed.as_bytes()).unwrap(), UserData::NotOurs(NotOurs::Script));
}

#[test]
fn user_data_check_says_what_the_agent_makes_of_it() {
    let check = |text: &str| user_data::check(config_file(text).path(), &Included::default());
    let shown = check("#gpu-bootstrap\n[cuda]\ntoolkit = \"12.8\"\n").unwrap();
    assert!(
        shown.contains(": configuration, 39 bytes: ok\n") && shown.contains("\ncuda.toolkit = \"12.8\"\n"),
        "{shown}"
    );
    assert!(check("#cloud-config\n").unwrap().contains("cloud-init reads it"));
    let e = check("#gpu-bootstrap\n[cuda]\ntoolkit = 12.10\n").unwrap_err();
    assert!(e.message().starts_with("user-data (line 3, column 11): "), "{e}");
    assert_eq!(
        check("# gpu-bootstrap\n").unwrap_err().hint(),
        Some("write #gpu-bootstrap alone as the first line")
    );
    let e = check("[cuda]\ntoolkit = \"12.8\"\n").unwrap_err();
    assert!(e.message().contains("in no format that gpu-bootstrap or cloud-init knows"), "{e}");
    assert!(check(&"#\n".repeat(9000)).unwrap_err().message().contains("longer than 16384 bytes"));
}

#[test]
fn shellcheck_has_nothing_to_say() {
    let both = RenderArgs {
        url_arm64: Some("https://example.com/arm".into()),
        sha256_arm64: Some(sum(ARM_AGENT)),
        ..args(&server())
    };
    let script = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/release")).unwrap();
    let texts =
        [("one agent", stub(&server(), CONFIG)), ("two", render(&both).unwrap()), ("release", script)];
    for (name, text) in texts {
        let file = config_file(&text);
        let output = Command::new("shellcheck").args(["--shell=sh"]).arg(file.path()).output().unwrap();
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stdout));
    }
}

/// `systemd-analyze verify` of the unit beside cloud-init's, `change` applied to ours.
fn verify_unit(change: impl Fn(String) -> String) -> Output {
    let dir = tempfile::tempdir().unwrap();
    // As packaged by cloud-init: the final stage comes after multi-user.target, the config stage after the network.
    let cloud = |after: &str| {
        format!(
            "[Unit]\nAfter={after}\nBefore=apt-daily.service\n[Service]\nType=oneshot\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\n"
        )
    };
    let ours = change(UNIT.replace("/usr/bin/gpu-bootstrap run --boot", "/bin/true"));
    let units = [
        ("gpu-bootstrap.service", ours),
        ("cloud-config.service", cloud("network-online.target")),
        ("cloud-final.service", cloud("network-online.target cloud-config.service multi-user.target")),
    ];
    let wants = dir.path().join("multi-user.target.wants");
    fs::create_dir(&wants).unwrap();
    for (name, text) in units {
        fs::write(dir.path().join(name), text).unwrap();
        symlink(dir.path().join(name), wants.join(name)).unwrap();
    }
    Command::new("systemd-analyze")
        .args(["verify", "--man=no", "multi-user.target"])
        .arg(dir.path().join("gpu-bootstrap.service"))
        .env("SYSTEMD_UNIT_PATH", format!("{}:", dir.path().display()))
        .output()
        .unwrap()
}

#[test]
fn systemd_takes_the_unit_and_cloud_final_does_not_wait_for_it() {
    let output = verify_unit(|u| u);
    let said = |o: &Output| String::from_utf8_lossy(&o.stderr).into_owned();
    assert!(output.status.success() && !said(&output).contains("gpu-bootstrap"), "{}", said(&output));
    // If the unit were ordered after cloud-final.service, that would be a cycle only if multi-user.target waited
    // for the unit. With systemd's default dependencies it does.
    let after_final = |u: String| u.replace("After=cloud-config.service", "After=cloud-final.service");
    let cycle = |o: Output| said(&o).contains("ordering cycle");
    assert!(!cycle(verify_unit(after_final)));
    assert!(cycle(verify_unit(|u| after_final(u).replace("DefaultDependencies=no\n", ""))));
}

/// What `tests/e2e/user-data --record` got from cloud-init, changed by the listed differences only.
#[test]
fn the_parts_are_those_that_cloud_init_sees() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/user-data/recorded.json");
    let recorded: serde_json::Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let decoded = |text: &serde_json::Value| {
        base64::engine::general_purpose::STANDARD.decode(text.as_str().unwrap()).unwrap()
    };
    // What links name.
    let mut included = Included::default();
    for content in recorded["contents"].as_array().unwrap() {
        included.insert(decoded(content));
    }
    let cases = recorded["cases"].as_array().unwrap();
    assert!(cases.len() > 150);
    for case in cases {
        let name = case["name"].as_str().unwrap();
        let bytes = decoded(&case["user_data"]);
        let found = open(&bytes, &included).map_or(serde_json::Value::Null, |opened| {
            opened
                .parts
                .iter()
                .map(|part| {
                    json!({
                        "content_type": part.content_type,
                        "filename": part.filename,
                        "bytes": part.bytes.len(),
                        "sha256": sum(&part.bytes),
                    })
                })
                .collect()
        });
        assert_eq!(found, case["parts"], "{name}: {:?}", String::from_utf8_lossy(&bytes));
    }
}

#[test]
fn user_data_check_says_what_becomes_of_each_part() {
    let message = "MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=b\n\n--b\nContent-Type: text/x-gpu-bootstrap\n\n\
                   [driver]\nbranch = \"580\"\n--b\nContent-Type: text/x-shellscript; name=a.sh\n\n#!/bin/sh\n--b--\n";
    let shown = user_data::check(config_file(message).path(), &Included::default()).unwrap();
    for sentence in [
        "\npart-001: text/x-gpu-bootstrap, 23 bytes: configuration of gpu-bootstrap\n  with cloud-init: gpu-bootstrap reads it; \
         cloud-init warns that it does not know it, and `cloud-init status` says degraded\n  \
         without cloud-init: gpu-bootstrap reads it\n",
        "\na.sh: text/x-shellscript, 9 bytes: a script\n  with cloud-init: cloud-init runs it at the end of the instance's first \
         boot\n  without cloud-init: gpu-bootstrap runs it to its end once for each instance\n",
    ] {
        assert!(shown.contains(sentence), "{shown}");
    }
    let shown = user_data::check(
        config_file("MIME-Version: 1.0\nContent-Type: application/gzip\n\nx").path(),
        &Included::default(),
    )
    .unwrap();
    assert!(
        shown.contains(
            "\nno parts: a gzipped part of the MIME message is damaged or no text; cloud-init fails"
        ),
        "{shown}"
    );
}

#[test]
fn user_data_check_has_a_document_that_comes_with_every_verdict() {
    let document = |text: &str, code: i32| {
        let file = config_file(text);
        let output = agent(&["user-data", "check", "--json", file.path().to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(code), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
    };
    let script = document("#!/bin/sh\n", 0);
    assert_eq!((&script["is_configuration"], &script["problem"]), (&json!(false), &json!(null)));
    assert_eq!(script["parts"][0]["sha256"], sum(b"#!/bin/sh\n"));
    assert_eq!(script["parts"][0]["what"], "a script");
    let wrong = document("#gpu-bootstrap\ncuda.toolkit = 12.10\n", 2);
    assert_eq!(wrong["is_configuration"], true);
    assert!(wrong["problem"].as_str().unwrap().contains("cuda.toolkit"), "{wrong}");
    let deep = (0..40)
        .map(|n| format!("Content-Type: multipart/mixed; boundary=b{n}\n\n--b{n}\n"))
        .collect::<Vec<_>>()
        .concat();
    let refused = document(&format!("MIME-Version: 1.0\n{deep}"), 0);
    assert_eq!(refused["parts"], json!([]));
    assert!(
        refused["refused"].as_str().unwrap().ends_with("that is a limit of gpu-bootstrap's"),
        "{refused}"
    );
}

fn agent(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_gpu-bootstrap")).args(args).output().unwrap()
}

#[test]
fn the_commands_print_and_exit_as_documented() {
    let file = config_file("driver.branch = 580\n");
    let path = file.path().to_str().unwrap();
    for args in [
        &["config", "check", path][..],
        &["user-data", "render", "--url", "https://a.b/c", "--sha256", &sum(AGENT), "--config", path],
    ] {
        let output = agent(args);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{stderr}");
        let sentence =
            format!("{path}:1:17: driver.branch: versions are strings; write \"580\" [config-type]");
        assert!(stderr.contains(&sentence), "{stderr}");
    }
    let rendered = agent(&["user-data", "render", "--url", "https://a.b/c", "--sha256", &sum(AGENT)]);
    succeeded(&rendered);
    let stub = config_file(&String::from_utf8(rendered.stdout).unwrap());
    let checked = agent(&["user-data", "check", stub.path().to_str().unwrap()]);
    succeeded(&checked);
    assert!(
        String::from_utf8_lossy(&checked.stdout).contains("the stub of `gpu-bootstrap user-data render`")
    );
    assert_eq!(agent(&["user-data", "render", "--url", "https://a.b/c"]).status.code(), Some(2));
    // The stub asks an agent for its version before it installs it.
    succeeded(&agent(&["--version"]));
}
