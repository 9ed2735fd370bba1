//! One line per step for people: on standard output, and at boot on `/dev/console`, which EC2 shows as the
//! instance's console output.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;

use super::Listener;
use super::event::{Event, EventKind};
use super::lines::Lines;
use super::progress::ProgressBars;

/// Writes step lines.
pub struct Console {
    lines: Lines,
    output: bool,
    device: Option<File>,
    bars: Option<ProgressBars>,
}

impl Console {
    /// Lines on standard output; with `boot` also on `/dev/console`; with `bars` long work is shown as progress bars.
    pub fn new(boot: bool, bars: bool) -> Self {
        let device = boot.then(|| {
            // Without O_NONBLOCK a stopped serial console would stop the run.
            OpenOptions::new()
                .write(true)
                .custom_flags(nix::libc::O_NONBLOCK | nix::libc::O_NOCTTY)
                .open("/dev/console")
        });
        Self {
            lines: Lines::default(),
            output: true,
            device: device.and_then(Result::ok),
            bars: bars.then(ProgressBars::new),
        }
    }

    /// Leaves standard output to another listener where `output` is false.
    #[must_use]
    pub fn with_output(self, output: bool) -> Self {
        Self { output, ..self }
    }

    fn line(&mut self, text: &str, everywhere: bool) {
        match &self.bars {
            _ if !self.output => {}
            Some(bars) => bars.print(text),
            // A closed standard output is the caller's choice, not a failure of the run.
            None => drop(writeln!(std::io::stdout(), "{text}")),
        }
        if let (Some(device), true) = (&mut self.device, everywhere) {
            let _ = writeln!(device, "gpu-bootstrap: {text}");
        }
    }
}

impl Listener for Console {
    fn hear(&mut self, event: &Event) {
        if let Some(bars) = &mut self.bars {
            match &event.kind {
                EventKind::Progress(progress) => bars.show(progress),
                EventKind::StepFinished { .. } | EventKind::Failed { .. } | EventKind::RunFinished { .. } => {
                    bars.clear();
                }
                _ => {}
            }
        }
        if let EventKind::Reported { text } = &event.kind {
            tracing::info!("{text}");
        }
        // EC2's console output is for many eyes; what commands print is not.
        let everywhere = !matches!(event.kind, EventKind::Output { .. });
        for line in self.lines.of(&event.kind) {
            self.line(&line, everywhere);
        }
    }
}
