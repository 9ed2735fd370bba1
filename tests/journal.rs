//! Lines with fields in the journal. What is sent is read back by a parser that knows only the protocol's description
//! (systemd's "Native Journal Protocol"): of a fake socket, of the real binary under a fake journald, and by the real
//! journald and journalctl.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/machine.rs"]
mod machine;
#[path = "support/namespace.rs"]
mod namespace;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use gpu_bootstrap::device_query::checks::Verdict;
use gpu_bootstrap::device_query::verdicts::Verdicts;
use gpu_bootstrap::report::Listener;
use gpu_bootstrap::report::event::{Event, EventKind, Progress, StepTitle, Unit};
use gpu_bootstrap::report::journal::Journal;
use machine::Machine;
use namespace::{MARK, run_in_namespace};

type Entry = BTreeMap<String, String>;

/// An entry of the native protocol. A name comes once.
fn parse(mut bytes: &[u8]) -> Entry {
    let mut entry = Entry::new();
    while !bytes.is_empty() {
        let end = bytes.iter().position(|&b| b == b'=' || b == b'\n').unwrap();
        let name = String::from_utf8(bytes[..end].to_vec()).unwrap();
        assert!(name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_'), "{name}");
        let (value, rest) = if bytes[end] == b'=' {
            let line = bytes[end..].iter().position(|&b| b == b'\n').unwrap() + end;
            (&bytes[end + 1..line], &bytes[line..])
        } else {
            let (size, rest) = bytes[end + 1..].split_at(8);
            rest.split_at(usize::try_from(u64::from_le_bytes(size.try_into().unwrap())).unwrap())
        };
        bytes = rest.strip_prefix(b"\n").expect("a line feed ends each field");
        assert_eq!(entry.insert(name, String::from_utf8(value.to_vec()).unwrap()), None);
    }
    entry
}

/// A writer that can be looked into.
#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl Written {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Written {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A fake journald, and the listener that sends to it.
struct Fake {
    dir: tempfile::TempDir,
    socket: UnixDatagram,
    journal: Journal,
    instead: Written,
}

impl Fake {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_nonblocking(true).unwrap();
        let instead = Written::default();
        let journal = Journal::at(&path, Box::new(instead.clone())).unwrap();
        Self { dir, socket, journal, instead }
    }

    fn hear(&mut self, kind: EventKind) {
        self.journal.hear(&Event { at: jiff::Timestamp::UNIX_EPOCH, kind });
    }

    /// What has come since the last time.
    fn entries(&self) -> Vec<Entry> {
        let mut buffer = vec![0; 1 << 20];
        let mut entries = Vec::new();
        while let Ok(size) = self.socket.recv(&mut buffer) {
            entries.push(parse(&buffer[..size]));
        }
        entries
    }

    /// The one entry that has come.
    fn entry(&self) -> Entry {
        let mut entries = self.entries();
        assert_eq!(entries.len(), 1, "{entries:#?}");
        entries.remove(0)
    }
}

/// Name and value of each field, less those that every entry has.
fn assert_entry(entry: &Entry, wanted: &[(&str, &str)]) {
    let identifier = ("SYSLOG_IDENTIFIER".to_owned(), "gpu-bootstrap".to_owned());
    let wanted = wanted.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    assert_eq!(*entry, wanted.chain([identifier]).collect::<Entry>());
}

fn started() -> EventKind {
    EventKind::RunStarted {
        steps: vec![StepTitle { id: "driver".into(), title: "NVIDIA driver".into() }],
        plan_digest: "0123456789abcdef".into(),
        instance_id: "local".into(),
        instance_type: None,
        boot_id: String::new(),
        choices: vec!["a choice".into()],
    }
}

fn failed(step: Option<&str>) -> EventKind {
    EventKind::Failed {
        step: step.map(Into::into),
        code: "apt-failed".into(),
        message: "apt-get failed".into(),
        causes: vec!["it said:\nE: one=two\n\u{1b}[31mred".into()],
        hint: Some("look".into()),
    }
}

fn finished(outcome: &str) -> EventKind {
    EventKind::RunFinished { outcome: outcome.into(), exit_code: 1, seconds: 61.25 }
}

fn notice(text: &str) -> EventKind {
    EventKind::Notice { text: text.into() }
}

#[test]
fn each_line_has_the_fields_of_its_event() {
    let mut fake = Fake::new();
    fake.hear(started());
    let entries = fake.entries();
    assert_eq!(entries.len(), 2);
    assert_entry(
        &entries[0],
        &[("MESSAGE", "chosen   a choice"), ("PRIORITY", "6"), ("GPU_BOOTSTRAP_EVENT", "run-started")],
    );
    assert_eq!(entries[1]["MESSAGE"], "plan     1 steps, digest 0123456789ab");

    fake.hear(EventKind::StepStarted { step: "driver".into() });
    fake.hear(EventKind::Progress(Progress {
        what: "downloading".into(),
        item: String::new(),
        done: 1,
        total: None,
        unit: Unit::Bytes,
    }));
    fake.hear(EventKind::Reported { text: "cloudwatch: off".into() });
    assert_eq!(fake.entries(), [], "nothing that a person would read");

    fake.hear(notice("a file was set aside"));
    let of_step = ("GPU_BOOTSTRAP_STEP", "driver");
    assert_entry(
        &fake.entry(),
        &[
            ("MESSAGE", "notice   a file was set aside"),
            ("PRIORITY", "4"),
            ("GPU_BOOTSTRAP_EVENT", "notice"),
            of_step,
        ],
    );
    fake.hear(EventKind::StepFinished {
        step: "driver".into(),
        changed: true,
        evidence: Vec::new(),
        seconds: 36.5,
    });
    assert_entry(
        &fake.entry(),
        &[
            ("MESSAGE", "done     NVIDIA driver: 36.5 s"),
            ("PRIORITY", "6"),
            ("GPU_BOOTSTRAP_EVENT", "step-finished"),
            ("GPU_BOOTSTRAP_SECONDS", "36.500"),
            of_step,
        ],
    );
    fake.hear(notice("no step runs"));
    assert!(!fake.entry().contains_key("GPU_BOOTSTRAP_STEP"));
    fake.hear(finished("failed"));
    assert_entry(
        &fake.entry(),
        &[
            ("MESSAGE", "failed   after 61.2 s (exit code 1)"),
            ("PRIORITY", "3"),
            ("GPU_BOOTSTRAP_EVENT", "run-finished"),
            ("GPU_BOOTSTRAP_SECONDS", "61.250"),
            ("GPU_BOOTSTRAP_OUTCOME", "failed"),
            ("GPU_BOOTSTRAP_EXIT_CODE", "1"),
        ],
    );
    assert_eq!((fake.journal.dropped(), fake.instead.text()), (0, String::new()));
}

#[test]
fn each_line_of_a_failure_has_its_code_and_line_feeds_stay_in_the_value() {
    let mut fake = Fake::new();
    fake.hear(started());
    fake.entries();
    fake.hear(EventKind::StepStarted { step: "driver".into() });
    fake.hear(failed(Some("driver")));
    let entries = fake.entries();
    let messages: Vec<_> = entries.iter().map(|e| e["MESSAGE"].as_str()).collect();
    let indent = "                  ";
    assert_eq!(
        messages,
        [
            "FAILED   NVIDIA driver: apt-get failed [apt-failed]",
            &format!("         because: it said:\n{indent}E: one=two\n{indent}?[31mred"),
            "         what to do: look",
        ]
    );
    for entry in &entries {
        let of = |name: &str| entry[name].as_str();
        assert_eq!((of("PRIORITY"), of("GPU_BOOTSTRAP_EVENT")), ("3", "failed"));
        assert_eq!((of("GPU_BOOTSTRAP_CODE"), of("GPU_BOOTSTRAP_STEP")), ("apt-failed", "driver"));
    }
    // The run's own failure is of no step.
    fake.hear(EventKind::StepStarted { step: "driver".into() });
    fake.hear(failed(None));
    assert!(fake.entries().iter().all(|e| !e.contains_key("GPU_BOOTSTRAP_STEP")));
}

#[test]
fn the_priority_follows_from_how_bad_it_is() {
    let mut fake = Fake::new();
    let mut of = |kind| {
        fake.hear(kind);
        fake.entry()["PRIORITY"].clone()
    };
    for (outcome, wanted) in
        [("converged", "6"), ("skipped", "6"), ("reboot-needed", "4"), ("interrupted", "4"), ("failed", "3")]
    {
        assert_eq!(of(finished(outcome)), wanted, "{outcome}");
    }
    assert_eq!(of(EventKind::RebootNeeded { why: "another kernel".into() }), "4");
    for (result, wanted) in [(Verdict::Fail, "3"), (Verdict::CouldNotTell, "4")] {
        let verdicts = Verdicts { result, ..Verdicts::default() };
        assert_eq!(of(EventKind::GpusChecked(Box::new(verdicts))), wanted, "{result:?}");
    }
}

#[test]
fn a_journal_that_does_not_keep_up_holds_nothing_up() {
    let mut fake = Fake::new();
    let began = Instant::now();
    for _ in 0..5000 {
        fake.hear(notice(&"x".repeat(1000)));
    }
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    let came = fake.entries().len() as u64;
    assert!(came > 0 && fake.journal.dropped() > 0, "{came}");
    assert_eq!(came + fake.journal.dropped(), 5000);
    // There is room again.
    fake.hear(notice("later"));
    assert_eq!(fake.entry()["MESSAGE"], "notice   later");
    assert_eq!(fake.instead.text(), "");
}

#[test]
fn a_journal_that_does_not_take_the_first_line_gets_none() {
    let mut fake = Fake::new();
    let path = fake.dir.path().join("socket");
    fs::remove_file(&path).unwrap();
    fake.socket = UnixDatagram::bind(&path).unwrap(); // the one that was connected to is closed
    fake.socket.set_nonblocking(true).unwrap();
    fake.hear(notice("one"));
    fake.hear(finished("converged"));
    assert_eq!(fake.instead.text(), "notice   one\nconverged after 61.2 s (exit code 1)\n");
    assert_eq!((fake.entries(), fake.journal.dropped()), (Vec::new(), 0));
    assert!(Journal::at(&fake.dir.path().join("nothing"), Box::new(std::io::sink())).is_err());
}

#[test]
fn a_line_without_end_is_cut_between_two_letters() {
    let mut fake = Fake::new();
    fake.hear(notice(&"ü".repeat(1 << 20)));
    let size = fake.entry()["MESSAGE"].len();
    assert!((48 << 10) - 2 < size && size <= 48 << 10, "{size}");
}

/// Where journald's sockets are, in a namespace of this test.
const SOCKETS: &str = "/run/systemd/journal";

fn empty_run() {
    // Whoever asks for the ignored tests by hand keeps this machine's own.
    assert!(std::env::var_os(MARK).is_some(), "only in a namespace");
    let mounted = Command::new("mount").args(["-t", "tmpfs", "tmpfs", "/run"]).status().unwrap();
    assert!(mounted.success());
    fs::create_dir_all(SOCKETS).unwrap();
}

/// A run that fails in a step, and whose standard output is `output`; what the environment says of it is `stream`.
fn run_into(output: OwnedFd, stream: Option<String>) -> (String, i32) {
    let unreachable = format!(
        "[driver]\nbranch = \"none\"\n[cuda]\ntoolkit = \"none\"\n\
         [cudnn]\ndeb = [{{ url = \"http://127.0.0.1:9/x.deb\", sha256 = \"{}\" }}]\n",
        "0".repeat(64)
    );
    let machine = Machine::debian12().t4().file("/etc/gpu-bootstrap/a.toml", &unreachable);
    let mut command = machine.command(&["run"]);
    command.envs(stream.map(|stream| ("JOURNAL_STREAM", stream)));
    let ran = command.stdout(Stdio::from(output)).stderr(Stdio::piped()).output().unwrap();
    (String::from_utf8(ran.stderr).unwrap(), ran.status.code().unwrap())
}

#[test]
fn lines_go_either_to_the_socket_or_to_standard_output() {
    run_in_namespace("under_a_fake_journald", "all of it was said once");
}

#[test]
#[ignore = "in a namespace, by the test above"]
fn under_a_fake_journald() {
    empty_run();
    let socket = UnixDatagram::bind(format!("{SOCKETS}/socket")).unwrap();
    socket.set_nonblocking(true).unwrap();
    let listener = UnixListener::bind(format!("{SOCKETS}/stdout")).unwrap();
    // Entries of the socket, and what came by the stream.
    let run = |stream: Option<&str>| {
        let output = UnixStream::connect(format!("{SOCKETS}/stdout")).unwrap();
        let mut by_stream = String::new();
        let (stderr, code) = run_into(output.into(), stream.map(Into::into));
        listener.accept().unwrap().0.read_to_string(&mut by_stream).unwrap();
        let mut buffer = vec![0; 1 << 20];
        let mut entries = Vec::new();
        while let Ok(size) = socket.recv(&mut buffer) {
            entries.push(parse(&buffer[..size]));
        }
        assert_eq!(code, 1, "{by_stream}{stderr}{entries:#?}");
        (entries, by_stream)
    };
    // It names standard error's stream where that is another one, as with our unit.
    let (entries, by_stream) = run(Some("9:12345"));
    assert_eq!(by_stream, "");
    let last = entries.last().unwrap();
    assert_eq!((&*last["GPU_BOOTSTRAP_OUTCOME"], &*last["GPU_BOOTSTRAP_EXIT_CODE"]), ("failed", "1"));
    assert!(entries.iter().any(|e| e.contains_key("GPU_BOOTSTRAP_STEP")), "{entries:#?}");

    // Without the environment's word: the same lines, less what took a time of its own.
    let (none, by_stream) = run(None);
    assert_eq!(none, []);
    let untimed = |text: &str| text.split(" after ").next().unwrap().to_owned();
    let messages: Vec<_> = entries.iter().flat_map(|e| e["MESSAGE"].lines()).map(untimed).collect();
    assert_eq!(by_stream.lines().map(untimed).collect::<Vec<_>>(), messages);

    // A pipe of whoever was started by systemd, as Systems Manager.
    let (mut reader, writer) = std::io::pipe().unwrap();
    run_into(writer.into(), Some("9:12345".into()));
    let mut piped = String::new();
    reader.read_to_string(&mut piped).unwrap();
    assert!(piped.contains("FAILED") && socket.recv(&mut [0; 16]).is_err(), "{piped}");

    // A socket that nobody reads from is full at the first line.
    let full = UnixDatagram::unbound().unwrap();
    full.set_nonblocking(true).unwrap();
    while full.send_to(&[0; 1000], format!("{SOCKETS}/socket")).is_ok() {}
    let output = UnixStream::connect(format!("{SOCKETS}/stdout")).unwrap();
    run_into(output.into(), Some("9:12345".into()));
    let mut by_stream = String::new();
    listener.accept().unwrap().0.read_to_string(&mut by_stream).unwrap();
    assert_eq!(by_stream.lines().map(untimed).collect::<Vec<_>>(), messages);
    println!("all of it was said once");
}

/// A journald of our own; it ends with this.
struct Journald(Child);

impl Journald {
    fn start() -> Self {
        fs::create_dir_all("/run/systemd/journald.conf.d").unwrap();
        // Nothing of the kernel's: neither its log nor its audit is this test's.
        let config =
            "[Journal]\nStorage=volatile\nAudit=no\nReadKMsg=no\nForwardToSyslog=no\nForwardToWall=no\n";
        fs::write("/run/systemd/journald.conf.d/test.conf", config).unwrap();
        let mut command = Command::new("/lib/systemd/systemd-journald");
        let journald = Self(command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        let until = Instant::now() + Duration::from_secs(20);
        while !Path::new(SOCKETS).join("stdout").exists() {
            assert!(Instant::now() < until, "journald does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        journald
    }
}

impl Drop for Journald {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_real_journald_finds_a_step_by_its_field() {
    run_in_namespace("under_the_real_journald", "journalctl found it");
}

#[test]
#[ignore = "in a namespace, by the test above"]
fn under_the_real_journald() {
    empty_run();
    let _journald = Journald::start();
    let stream = UnixStream::connect(format!("{SOCKETS}/stdout")).unwrap();
    // Identifier, unit, priority, whether lines have one of their own, and three places to forward to.
    (&stream).write_all(b"by-the-stream\n\n6\n1\n0\n0\n0\n").unwrap();
    let output: OwnedFd = stream.into();
    let meta = fs::File::from(output.try_clone().unwrap()).metadata().unwrap();
    let (stderr, _) = run_into(output, Some(format!("{}:{}", meta.dev(), meta.ino())));

    let ask = |arguments: &[&str]| -> Vec<serde_json::Value> {
        let asked = Command::new("journalctl")
            .args(["--directory=/run/log/journal", "--quiet", "--output=json"])
            .args(arguments)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&asked.stdout);
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let until = Instant::now() + Duration::from_secs(20);
    while ask(&["GPU_BOOTSTRAP_EVENT=run-finished"]).is_empty() {
        assert!(Instant::now() < until, "{stderr}{:#?}", ask(&[]));
        std::thread::sleep(Duration::from_millis(50));
    }
    let by_code = ask(&["--identifier=gpu-bootstrap", "--priority=err", "GPU_BOOTSTRAP_EVENT=failed"]);
    let step = by_code[0]["GPU_BOOTSTRAP_STEP"].as_str().unwrap();
    assert!(by_code[0]["MESSAGE"].as_str().unwrap().starts_with("FAILED"), "{by_code:#?}");
    let by_step = ask(&[&format!("GPU_BOOTSTRAP_STEP={step}")]);
    assert!(by_step.len() >= by_code.len() && by_code.len() > 1, "{by_step:#?}");
    assert_eq!(ask(&["--identifier=by-the-stream"]), [] as [serde_json::Value; 0]);
    println!("journalctl found it");
}
