//! SIGINT and SIGTERM: the run stops where it is, says so, and `--resume` goes on.

use nix::sys::signal::SigSet;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::{Code, Error, Result};

/// The two signals that end a run in good order.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// Takes the signals over from their default (which would end the process at once).
    pub fn take() -> Result<Self> {
        // Whoever started us may have blocked them, and a mask is inherited: they would never arrive.
        let mask: SigSet = [nix::sys::signal::SIGINT, nix::sys::signal::SIGTERM].into_iter().collect();
        mask.thread_unblock().map_err(|e| Error::new(Code::Io, "cannot unblock signals").because(e))?;
        let take = |kind| signal(kind).map_err(|e| Error::new(Code::Io, "cannot handle signals").because(e));
        Ok(Self { interrupt: take(SignalKind::interrupt())?, terminate: take(SignalKind::terminate())? })
    }

    /// Waits for one of them.
    pub async fn next(&mut self) -> Error {
        let (code, name) = tokio::select! {
            _ = self.interrupt.recv() => (Code::Interrupted, "SIGINT"),
            _ = self.terminate.recv() => (Code::Terminated, "SIGTERM"),
        };
        Error::new(code, format!("stopped by {name}")).with_hint("`gpu-bootstrap --resume` goes on from here")
    }
}
