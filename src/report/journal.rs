//! The console's lines with fields, by journald's native protocol, where standard output is the journal: so that
//! `journalctl` can be asked for a step, an error code or an outcome. `docs/status.md` lists the fields.
//!
//! A journal that does not keep up must not hold a run up: the socket does not block, and a line for which it has no room
//! is counted and left out.

use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use nix::sys::socket::{UnixAddr, getpeername};

use super::Listener;
use super::event::{Event, EventKind};
use super::lines::Lines;
use crate::device_query::checks::Verdict;

const SOCKET: &str = "/run/systemd/journal/socket";
/// journald breaks longer lines of a stream, too. A datagram of this size fits the socket's buffer everywhere.
const LONGEST: usize = 48 << 10;

/// Sends lines to the journal.
pub struct Journal {
    socket: UnixDatagram,
    lines: Lines,
    /// The step that runs: installations and notices do not name theirs.
    step: Option<String>,
    /// Where lines go once the first one could not be sent.
    instead: Box<dyn Write + Send>,
    state: State,
    dropped: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// No line was sent yet.
    Untried,
    /// journald took one.
    Reached,
    /// It did not take the first: it never will.
    Unreachable,
}

impl Journal {
    /// The journal, where standard output is a stream to it and its socket is there.
    pub fn of_standard_output() -> Option<Self> {
        let is_ours = std::env::var_os("JOURNAL_STREAM").is_some() && is_journal(&io::stdout());
        is_ours.then(|| Self::at(Path::new(SOCKET), Box::new(io::stdout())).ok()).flatten()
    }

    /// The journal whose socket is at `path`. Where it does not take the first line, all of them are written to `instead`.
    pub fn at(path: &Path, instead: Box<dyn Write + Send>) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        socket.connect(path)?;
        let state = State::Untried;
        Ok(Self { socket, lines: Lines::default(), step: None, instead, state, dropped: 0 })
    }

    /// Lines that the journal did not take.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    fn send(&mut self, line: &str, fields: &[(&str, String)]) {
        if self.state != State::Unreachable {
            let sent = self.socket.send(&datagram(line, fields));
            match (sent, self.state) {
                (Ok(_), _) => self.state = State::Reached,
                (Err(_), State::Reached) => self.dropped += 1,
                (Err(_), _) => self.state = State::Unreachable,
            }
        }
        if self.state == State::Unreachable {
            let _ = writeln!(self.instead, "{line}"); // as the console's lines
        }
    }

    /// What is known of an event besides its words.
    fn fields(&self, kind: &EventKind) -> Vec<(&'static str, String)> {
        let mut fields = vec![("PRIORITY", priority(kind).to_string())];
        fields.extend(name(kind).map(|name| ("GPU_BOOTSTRAP_EVENT", name)));
        let step = match kind {
            EventKind::StepFinished { step, .. } => Some(step),
            EventKind::Failed { step, .. } => step.as_ref(),
            _ => self.step.as_ref(),
        };
        fields.extend(step.map(|step| ("GPU_BOOTSTRAP_STEP", step.clone())));
        let seconds = match kind {
            EventKind::StepFinished { seconds, .. } | EventKind::RunFinished { seconds, .. } => {
                Some(*seconds)
            }
            EventKind::Installed { report, .. } => Some(report.seconds()),
            _ => None,
        };
        fields.extend(seconds.map(|seconds| ("GPU_BOOTSTRAP_SECONDS", format!("{seconds:.3}"))));
        if let EventKind::Failed { code, .. } = kind {
            fields.push(("GPU_BOOTSTRAP_CODE", code.clone()));
        }
        if let EventKind::RunFinished { outcome, exit_code, .. } = kind {
            fields.push(("GPU_BOOTSTRAP_OUTCOME", outcome.clone()));
            fields.push(("GPU_BOOTSTRAP_EXIT_CODE", exit_code.to_string()));
        }
        fields
    }
}

impl Listener for Journal {
    fn hear(&mut self, event: &Event) {
        match &event.kind {
            EventKind::StepStarted { step } => self.step = Some(step.clone()),
            EventKind::StepFinished { .. } | EventKind::Failed { .. } | EventKind::RunFinished { .. } => {
                self.step = None;
            }
            _ => {}
        }
        let lines = self.lines.of(&event.kind);
        if !lines.is_empty() {
            let fields = self.fields(&event.kind);
            for line in &lines {
                self.send(line, &fields);
            }
        }
        if matches!(event.kind, EventKind::RunFinished { .. }) && self.dropped > 0 {
            tracing::warn!(
                "the journal did not take {} lines; the status files have what they said",
                self.dropped
            );
        }
    }
}

/// Whether what is written to `stream` arrives at journald. `JOURNAL_STREAM` does not say it: a program inherits it while
/// its output is a pipe or a terminal, and where standard output and error are two streams it names the other one.
fn is_journal(stream: &impl AsRawFd) -> bool {
    let Ok(peer) = getpeername::<UnixAddr>(stream.as_raw_fd()) else { return false };
    let path = peer.path().and_then(Path::to_str).unwrap_or_default();
    // A namespace of the journal has a directory of its own: /run/systemd/journal.NAME.
    path.starts_with("/run/systemd/journal") && path.ends_with("/stdout")
}

/// syslog's numbers: 6 information, 4 to be looked at, 3 failed.
fn priority(kind: &EventKind) -> u8 {
    match kind {
        EventKind::Failed { .. } => 3,
        EventKind::GpusChecked(verdicts) if verdicts.result == Verdict::Fail => 3,
        EventKind::RunFinished { outcome, .. } => match outcome.as_str() {
            "converged" | "skipped" => 6,
            "reboot-needed" | "interrupted" => 4,
            _ => 3,
        },
        EventKind::GpusChecked(_) | EventKind::Notice { .. } | EventKind::RebootNeeded { .. } => 4,
        _ => 6,
    }
}

/// The event's name, as it stands in the stream.
fn name(kind: &EventKind) -> Option<String> {
    Some(serde_json::to_value(kind).ok()?.get("event")?.as_str()?.to_owned())
}

/// One entry in journald's native protocol.
fn datagram(line: &str, fields: &[(&str, String)]) -> Vec<u8> {
    let mut end = line.len().min(LONGEST);
    while !line.is_char_boundary(end) {
        end -= 1;
    }
    let mut bytes = Vec::new();
    field(&mut bytes, "MESSAGE", &line[..end]);
    field(&mut bytes, "SYSLOG_IDENTIFIER", "gpu-bootstrap");
    for (name, value) in fields {
        field(&mut bytes, name, value);
    }
    bytes
}

/// `NAME=value`; a value of several lines goes with its length.
fn field(bytes: &mut Vec<u8>, name: &str, value: &str) {
    bytes.extend_from_slice(name.as_bytes());
    if value.contains('\n') {
        bytes.push(b'\n');
        bytes.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        bytes.push(b'=');
    }
    bytes.extend_from_slice(value.as_bytes());
    bytes.push(b'\n');
}
