//! The forms of user-data beyond scripts and `#cloud-config`, acted on without cloud-init: archives, links with a SHA-256,
//! templates, and configuration of ours that a script or `write_files` puts into a file. The real program over scratch
//! machines, with a metadata service and a web server on loopback.

#![allow(clippy::unwrap_used, reason = "test code: a panic is a failure with a place")]

#[path = "support/file_server.rs"]
mod file_server;
#[path = "support/imds.rs"]
mod imds;
#[path = "support/machine.rs"]
mod machine;

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};

use file_server::FileServer;
use imds::{Imds, Running};
use machine::{Machine, Ran, binary, ran};
use serde_json::Value;
use sha2::{Digest, Sha256};

const KEPT: &str = "/var/lib/gpu-bootstrap/included";
const IGNORE: &str = "[instance]\nuser-data = \"ignore\"\n";

/// A machine with a shell.
fn image() -> Machine {
    assert!(nix::unistd::geteuid().is_root(), "this test needs root, for chroot: start it by tests/run");
    let machine = Machine::debian12()
        .file("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\nadmin:x:1001:1002::/home/admin:/bin/sh\n")
        .file("/etc/group", "root:x:0:\nadmin:x:1002:\n")
        .file("/dev/null", "")
        .dir("/root")
        .dir("/tmp");
    machine.bring("dash");
    machine.bring("cat");
    symlink("dash", machine.outside("/usr/bin/sh")).unwrap();
    symlink("usr/bin", machine.outside("/bin")).unwrap();
    machine
}

fn service(user_data: &str) -> Running {
    Imds::new().item("user-data", user_data).start()
}

fn act(machine: &Machine, service: &Running, args: &[&str]) -> Ran {
    let mut command = binary();
    command.args(["user-data", "run", "--root"]).arg(machine.root()).args(args);
    command.env("AWS_EC2_METADATA_SERVICE_ENDPOINT", service.url());
    ran(&mut command)
}

#[track_caller]
fn boot(machine: &Machine, service: &Running) -> Ran {
    let ran = act(machine, service, &[]);
    assert_eq!(ran.code, 0, "{ran:#?}");
    ran
}

fn marks(machine: &Machine) -> String {
    fs::read_to_string(machine.outside("/marks")).unwrap_or_default()
}

fn state(machine: &Machine) -> String {
    let report: Value = serde_json::from_str(&machine.read("/run/gpu-bootstrap/user-data.json")).unwrap();
    report["state"].as_str().unwrap().into()
}

fn sum(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

/// What `user-data check` prints, with this machine's root.
fn check(machine: &Machine, user_data: &str) -> Ran {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(&file, user_data).unwrap();
    ran(binary().args(["user-data", "check"]).arg(file.path()).arg("--root").arg(machine.root()))
}

#[test]
fn an_archive_is_its_parts() {
    let machine = image();
    let user_data = "#cloud-config-archive\n- |\n  #!/bin/sh\n  echo script >>/marks\n- type: text/x-shellscript\n  filename: a.sh\n  \
                     content: |\n    #!/bin/sh\n    echo \"${0##*/}\" >>/marks\n- \"#cloud-config\\nwrite_files: [{path: /written, content: x}]\"\n";
    boot(&machine, &service(user_data));
    assert_eq!((marks(&machine).as_str(), machine.read("/written").as_str()), ("a.sh\nscript\n", "x"));

    let machine = image();
    let ran = act(&machine, &service("#cloud-config-archive\n- '#!/bin/sh'\n- content: 5\n"), &[]);
    assert_eq!((ran.code, state(&machine).as_str()), (2, "refused"), "{ran:#?}");
    let why =
        "part-001 (text/cloud-config-archive): line 3, column 12: content takes a text, and this is a number";
    assert!(ran.stderr.contains(why), "{ran:#?}");
}

#[test]
fn what_a_link_names_is_fetched_once_and_done_in_its_place() {
    let inner = b"#!/bin/sh\necho inner >>/marks\n";
    let script = b"#!/bin/sh\necho script >>/marks\n";
    // A list may name a list: the server's own address is known only afterwards.
    let second = FileServer::start(&[("/inner", inner)]);
    let list = format!("#include-once {}#sha256={}\n", second.url("/inner"), sum(inner));
    let server = FileServer::start(&[("/script?token=geheim", script), ("/list", list.as_bytes())]);
    let user_data = format!(
        "#include\n# the first one\n{}#sha256={}\n{}?token=geheim#sha256={}\n",
        server.url("/list"),
        sum(list.as_bytes()),
        server.url("/script"),
        sum(script).to_uppercase()
    );
    let (machine, service) = (image(), service(&user_data));
    server.fail_next(1);
    let ran = boot(&machine, &service);
    assert_eq!(marks(&machine), "inner\nscript\n", "{ran:#?}");
    assert_eq!(server.requests(), ["/list", "/list", "/script?token=geheim"]);
    assert!(!format!("{ran:?}").contains("geheim"), "{ran:#?}");
    let dir = fs::metadata(machine.outside(KEPT)).unwrap();
    assert_eq!(dir.mode() & 0o7777, 0o700);
    for kept in fs::read_dir(machine.outside(KEPT)).unwrap() {
        let (path, meta) = (kept.as_ref().unwrap().path(), kept.unwrap().metadata().unwrap());
        assert_eq!(meta.mode() & 0o7777, 0o600);
        assert_eq!(path.file_name().unwrap().to_str().unwrap(), sum(&fs::read(&path).unwrap()));
    }
    assert_eq!(fs::read_dir(machine.outside(KEPT)).unwrap().count(), 3);

    // A later boot needs no network, and an --again does the same once more.
    assert_eq!(act(&machine, &service, &["--again"]).code, 0);
    assert_eq!((marks(&machine).as_str(), server.requests().len()), ("inner\nscript\ninner\nscript\n", 3));
    // What is damaged is fetched again.
    fs::write(machine.outside(&format!("{KEPT}/{}", sum(script))), "damaged").unwrap();
    boot(&machine, &service);
    assert_eq!(server.requests().len(), 4);
    // Other user-data needs nothing of it.
    boot(&machine, &self::service("#!/bin/sh\n"));
    assert_eq!(fs::read_dir(machine.outside(KEPT)).unwrap().count(), 0);
}

#[test]
fn what_is_not_what_its_sum_says_is_nowhere_and_nothing_is_done() {
    let server = FileServer::start(&[("/x", b"#!/bin/sh\necho wrong >>/marks\n")]);
    for (link, code, words) in [
        (format!("{}#sha256={}", server.url("/x"), "0".repeat(64)), 1, "expected 000000"),
        (format!("{}#sha256={}", server.url("/missing"), "0".repeat(64)), 1, "404"),
        (server.url("/x"), 2, "says nothing of what should be there; write its SHA-256 behind it"),
        (format!("s3://bucket/key#sha256={}", "0".repeat(64)), 2, "s3:// is not available"),
    ] {
        let machine = image();
        let ran = act(&machine, &service(&format!("#include\n{link}\n")), &[]);
        assert_eq!(
            (ran.code, marks(&machine).as_str(), state(&machine).as_str()),
            (code, "", "refused"),
            "{ran:#?}"
        );
        assert!(ran.stderr.contains(words), "{link}: {ran:#?}");
        let kept = fs::read_dir(machine.outside(KEPT)).map_or(0, Iterator::count);
        assert_eq!(kept, 0, "{link}");
    }
}

#[test]
fn links_behind_links_have_an_end() {
    // Each list names the one before it, so that every sum is known: a chain of ten.
    let mut files = vec![b"#!/bin/sh\n".to_vec()];
    let server = FileServer::start(&[]);
    for _ in 0..10 {
        let list = format!("#include {}#sha256={}\n", server.url("/x"), sum(files.last().unwrap()));
        files.push(list.into_bytes());
    }
    let machine = image();
    for bytes in &files {
        let path = machine.outside(&format!("{KEPT}/{}", sum(bytes)));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    let user_data = |number: usize| String::from_utf8(files[number].clone()).unwrap();
    assert_eq!(boot(&machine, &service(&user_data(8))).code, 0);
    let machine = machine.dir(KEPT);
    for bytes in &files {
        fs::write(machine.outside(&format!("{KEPT}/{}", sum(bytes))), bytes).unwrap();
    }
    let ran = act(&machine, &service(&user_data(10)), &[]);
    assert_eq!(ran.code, 2, "{ran:#?}");
    assert!(
        ran.stderr.contains("#include names more than 64 URLs, or more than 8 behind each other"),
        "{ran:#?}"
    );
    assert!(server.requests().is_empty(), "all of it was there");
}

#[test]
fn configuration_may_lie_behind_a_link_and_in_an_archive() {
    let config = format!("#gpu-bootstrap\n{IGNORE}");
    let server = FileServer::start(&[("/config", config.as_bytes())]);
    let machine = image();
    let linked = format!("#include\n{}#sha256={}\n", server.url("/config"), sum(config.as_bytes()));
    boot(&machine, &service(&linked));
    assert_eq!(state(&machine), "ignored");
    let archive = "#cloud-config-archive\n- '#!/bin/sh'\n- type: text/x-gpu-bootstrap\n  content: |\n    [instance]\n    user-data = \"ignore\"\n";
    let machine = image();
    boot(&machine, &service(archive));
    assert_eq!(state(&machine), "ignored");
}

#[test]
fn configuration_that_a_script_or_write_files_carries_counts_before_it_is_written() {
    let document = format!("cat >/etc/gpu-bootstrap/gpu.toml <<'EOF'\n{IGNORE}EOF\n");
    for user_data in [
        format!("#!/bin/sh\nmkdir -p /etc/gpu-bootstrap\n{document}"),
        format!("#!/bin/sh\r\n{}", document.replace('\n', "\r\n")),
        format!("## template: jinja\n#!/bin/sh\n{document}"),
        "#cloud-config\nwrite_files:\n- path: /etc/gpu-bootstrap/gpu.toml\n  content: |\n    [instance]\n    user-data = \"ignore\"\n".into(),
    ] {
        let machine = image();
        boot(&machine, &service(&user_data));
        assert_eq!(state(&machine), "ignored", "{user_data}");
        assert!(!machine.outside("/etc/gpu-bootstrap/gpu.toml").exists(), "nothing is run to find it");
        // Who has written the file since then has the last word.
        let machine = machine.file("/etc/gpu-bootstrap/gpu.toml", "[instance]\nuser-data = \"run\"\n");
        boot(&machine, &service(&user_data));
        assert_eq!(state(&machine), "done", "{user_data}");
        assert_eq!(machine.read("/etc/gpu-bootstrap/gpu.toml"), IGNORE, "it is run like any script");
    }
    // A file of a later name is the stronger one, as it would be if both lay there.
    let machine = image().file("/etc/gpu-bootstrap/z.toml", "[instance]\nuser-data = \"run\"\n");
    boot(&machine, &service(&format!("#!/bin/sh\nx=1\n{document}")));
    assert_eq!(state(&machine), "done");
}

#[test]
fn what_a_shell_would_have_to_say_is_named_and_not_read() {
    let user_data = "#!/bin/sh\nif true; then\n  cat >/etc/gpu-bootstrap/gpu.toml <<'EOF'\n[instance]\nuser-data = \"ignore\"\nEOF\nfi\n";
    let machine = image().dir("/etc/gpu-bootstrap");
    let ran = boot(&machine, &service(user_data));
    assert_eq!(state(&machine), "done");
    let notice = "/etc/gpu-bootstrap/gpu.toml in part-001, line 3 is not read as configuration: it stands inside of something";
    assert!(ran.stdout.contains(notice), "{ran:#?}");
    let shown = check(&machine, user_data);
    assert!(shown.stdout.contains(notice) && shown.code == 0, "{shown:#?}");
}

#[test]
fn a_mistake_in_carried_configuration_has_its_place() {
    let user_data = "#!/bin/sh\ncat >/etc/gpu-bootstrap/gpu.toml <<'EOF'\n[cuda]\ntoolkit = 12.10\nEOF\n";
    let shown = check(&image(), user_data);
    assert_eq!(shown.code, 2, "{shown:#?}");
    let place =
        "user-data, /etc/gpu-bootstrap/gpu.toml in part-001, line 2 (line 2, column 11): cuda.toolkit";
    assert!(shown.stderr.contains(place), "{shown:#?}");
}

#[test]
fn user_data_check_says_what_would_happen_with_each_form() {
    let machine = image();
    let inner = b"#!/bin/sh\necho\n";
    let link = format!("https://a.b/c#sha256={}", sum(inner));
    for (user_data, words) in [
        (format!("#include\n{link}\n"), "fetches https://a.b/c (sha256 "),
        (
            "#include\nhttps://a.b/c\n".into(),
            "part-001 (text/x-include-url): line 2: https://a.b/c says nothing",
        ),
        (
            "#cloud-config-archive\n- '#!/bin/sh'\n".into(),
            "part-001 (per-instance): runs a script of 9 bytes",
        ),
        ("## template: jinja\n#!/bin/sh\n".into(), "a template in which there is nothing to fill in"),
        ("## template: jinja\n#!/bin/sh\n{{ x }}\n".into(), "line 3: {{ would have to be filled in"),
        ("#part-handler\n".into(), "part-001 (text/part-handler): a part handler is not supported"),
        (
            "#!/bin/sh\ncat >/etc/gpu-bootstrap/a.toml <<'E'\n[cuda]\ntoolkit = \"12.8\"\nE\n".into(),
            "configuration (user-data, /etc/gpu-bootstrap/a.toml in part-001, line 2), ",
        ),
    ] {
        let shown = check(&machine, &user_data);
        assert!(shown.code == 0 && shown.stdout.contains(words), "{user_data}: {shown:#?}");
    }
    // What this machine has fetched is shown opened.
    let machine = machine.dir(KEPT);
    fs::write(machine.outside(&format!("{KEPT}/{}", sum(inner))), inner).unwrap();
    let shown = check(&machine, &format!("#include\n{link}\n"));
    assert!(shown.stdout.contains("part-001: text/x-shellscript, 15 bytes: a script"), "{shown:#?}");
}
