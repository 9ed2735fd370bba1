//! What everybody waits for: the state of a whole set of packages, for those who tell and those who wait.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Instant;

use super::{Ready, Shared, Task};
use crate::error::{Code, Error};

/// What everybody waits for.
#[derive(Default)]
pub(super) struct Outcome {
    pub(super) ready: BTreeMap<usize, Ready>,
    pub(super) all_ready_at: Option<Instant>,
    pub(super) verified: HashSet<usize>,
    /// What stand-ins are told, and what the caller gets.
    pub(super) failed: Option<String>,
    pub(super) error: Option<Error>,
    pub(super) over: bool,
    /// Begins when every package is ready.
    pub(super) next: Option<Box<dyn FnOnce() + Send>>,
}

/// Tells the unpacker what is there, and waits for what it makes of it.
#[derive(Clone)]
pub(in super::super) struct Handle(pub(super) Arc<Shared>);

impl Handle {
    /// The package's bytes are the right ones.
    pub(in super::super) fn verified(&self, package: usize) {
        self.0.outcome().verified.insert(package);
        self.0.changed.notify_all();
        self.0.pool.push((package, 0), Task::Open, 0);
    }

    /// Nothing more will come of it.
    pub(in super::super) fn fail(&self, error: Error) {
        self.0.fail(error);
    }

    /// The first failure, if there was one.
    pub(in super::super) fn take_failure(&self) -> Option<Error> {
        self.0.outcome().error.take()
    }

    /// Waits until every package is verified. Before that nothing is handed to dpkg, so that a download that fails
    /// leaves the machine as it was.
    pub(in super::super) fn wait_verified(&self) -> Result<(), String> {
        self.0.wait(|outcome, all| (outcome.verified.len() == all).then_some(()))
    }

    /// Waits until dpkg can have this package.
    pub(in super::super) fn wait_ready(&self, package: usize) -> Result<Ready, String> {
        self.wait_verified()?;
        let unchanged = self.0.unchanged.get_or_init(|| (self.0.policy.unchanged)());
        if let Err(why) = unchanged {
            self.fail(Error::new(Code::AptFailed, why.clone()));
        }
        self.0.wait(|outcome, _| outcome.ready.get(&package).cloned())
    }

    /// When the last package became ready; `None` before that.
    pub(in super::super) fn all_ready_at(&self) -> Option<Instant> {
        self.0.outcome().all_ready_at
    }

    /// Why packages were handed over as they came, with their number.
    pub(in super::super) fn originals(&self) -> Vec<(usize, String)> {
        let outcome = self.0.outcome();
        let why = |(package, ready): (&usize, &Ready)| match ready {
            Ready::Original(_, why) => Some((*package, why.clone())),
            Ready::Stub(_) => None,
        };
        outcome.ready.iter().filter_map(why).collect()
    }
}

impl Shared {
    pub(super) fn outcome(&self) -> MutexGuard<'_, Outcome> {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<T>(&self, mut done: impl FnMut(&Outcome, usize) -> Option<T>) -> Result<T, String> {
        let mut outcome = self.outcome();
        loop {
            if let Some(error) = &outcome.failed {
                return Err(error.clone());
            }
            if outcome.over {
                return Err("the installation was ended".into());
            }
            if let Some(answer) = done(&outcome, self.packages.len()) {
                return Ok(answer);
            }
            outcome = self.changed.wait(outcome).unwrap_or_else(PoisonError::into_inner);
        }
    }

    pub(super) fn fail(&self, error: Error) {
        let mut outcome = self.outcome();
        if outcome.failed.is_none() {
            outcome.failed = Some(error.to_string());
            outcome.error = Some(error);
        }
        drop(outcome);
        self.pool.stop();
        self.changed.notify_all();
    }

    pub(super) fn ready(&self, package: usize, ready: Ready) {
        let mut outcome = self.outcome();
        outcome.ready.insert(package, ready);
        let is_last = outcome.ready.len() == self.packages.len();
        if is_last {
            outcome.all_ready_at = Some(Instant::now());
        }
        let next = outcome.next.take_if(|_| is_last);
        drop(outcome);
        self.changed.notify_all();
        if let Some(begin) = next {
            begin();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::super::{Limits, Package, Policy, Unpacker};
    use super::*;
    use crate::host::Host;
    use crate::install::stage::{Mounts, Stage};

    #[tokio::test]
    async fn what_comes_next_begins_when_the_last_package_is_ready() {
        let root = tempfile::tempdir().unwrap();
        let host = Host::new(root.path().into());
        let stage = Arc::new(Stage::make(&host, Instant::now()).await.unwrap());
        let policy = Policy {
            fresh: HashSet::new(),
            special: HashSet::new(),
            mounts: Mounts::new(&host.files, &stage).unwrap(),
            unchanged: Box::new(|| Ok(())),
        };
        // Files that are not there: each is handed over as it came.
        let package = |name: &str| Package {
            file: root.path().join(name),
            inside: name.into(),
            size: 0,
            disposable: false,
        };
        let (begin, told) = channel();
        let next = Box::new(move || begin.send(()).unwrap());
        let limits = Limits { threads: 1, memory: 1 << 20, nice: 0 };
        let unpacker = Unpacker::start(stage, policy, vec![package("a"), package("b")], limits, Some(next));
        let handle = unpacker.handle();
        handle.verified(0);
        while handle.0.outcome().ready.is_empty() {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(told.try_recv().is_err(), "one package is not unpacked yet");
        handle.verified(1);
        told.recv_timeout(Duration::from_secs(30)).expect("all are ready");
        assert!(handle.all_ready_at().is_some());
    }
}
