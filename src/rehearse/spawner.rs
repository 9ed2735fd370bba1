//! Starts processes in the sandbox's process namespace.
//!
//! A thread that has left its process namespace for a new one can start processes there, but no more threads.
//! So one thread does that and nothing else. It lives as long as this process, because the processes inside are
//! ended with the *thread* that started them.

use std::io;
use std::process::{Child, Command};
use std::sync::mpsc::{Sender, channel};

use nix::sched::{CloneFlags, unshare};

use super::failed;
use crate::error::{Code, Error, Result};

type Request = (Command, Sender<io::Result<Child>>);

/// The thread's mailbox.
pub(super) struct Spawner(Sender<Request>);

impl Spawner {
    /// Makes the process namespace. The first process started in it is its init.
    pub(super) fn start() -> Result<Self> {
        let (requests, inbox) = channel::<Request>();
        let (report, made) = channel();
        std::thread::spawn(move || {
            let unshared = unshare(CloneFlags::CLONE_NEWPID);
            let is_made = unshared.is_ok();
            // Both channels end with the other side: then nobody waits for an answer any more.
            let _ = report.send(unshared);
            while is_made && let Ok((mut command, answer)) = inbox.recv() {
                let _ = answer.send(command.spawn());
            }
        });
        match made.recv() {
            Ok(Ok(())) => Ok(Self(requests)),
            Ok(Err(e)) => Err(no_namespaces(e)),
            Err(e) => Err(failed("make the process namespace", e)),
        }
    }

    /// Starts `command` inside; `what` names it in the error.
    pub(super) fn spawn(&self, command: Command, what: &str) -> Result<Child> {
        let (answer, started) = channel();
        let what = format!("start {what}");
        self.0.send((command, answer)).map_err(|e| failed(&what, e.to_string()))?;
        started.recv().map_err(|e| failed(&what, e))?.map_err(|e| failed(&what, e))
    }
}

/// The refusal of a kernel (or of a container's limits).
pub(super) fn no_namespaces(cause: nix::Error) -> Error {
    Error::new(Code::RehearsalUnavailable, "the kernel grants no new namespaces")
        .with_hint("in a container this needs CAP_SYS_ADMIN; run it on a machine or a virtual machine")
        .because(cause)
}
