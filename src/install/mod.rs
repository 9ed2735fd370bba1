//! Installing packages: apt decides what and in which order, dpkg does it and keeps its database; what takes long,
//! fetching and unpacking, is done for them by as many connections and cores as there are.
//!
//! Three ways lead to the same machine, each with less of our own in it than the one before. [`rung`] chooses, and
//! the result says which one it was and why:
//!
//! 1. **pipeline**: package files are fetched in pieces ([`fetch`]) and, once their SHA-256 is that of apt's signed
//!    index, unpacked by all cores ([`unpack`]): big files into a stage on the same file system, everything else into
//!    a stub of the package, in which hard links stand for the big files. apt runs meanwhile, over placeholders of the
//!    right size, and dpkg gets the stubs from a stand-in for `dpkg-deb` ([`stand_in`]).
//! 2. **originals**: fetched and verified the same way, installed by plain apt and dpkg.
//! 3. **apt**: everything by plain apt.
//!
//! Called by the actions that deal with packages.

mod in_flight;

use std::time::Duration;

use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::host::apt::{self, LOCK_BUDGET, Request, judge};
use crate::host::exec::Output;
use in_flight::InFlight;

/// Exit statuses from here on say that a signal ended the program.
const KILLED: i32 = 128;

/// Installs packages on a [`Host`].
#[derive(Clone, Copy)]
pub struct Installer<'a> {
    host: &'a Host,
    lock_budget: Duration,
}

impl<'a> Installer<'a> {
    /// Nothing is touched until a method is called.
    pub fn new(host: &'a Host) -> Self {
        Self { host, lock_budget: LOCK_BUDGET }
    }

    /// Waits at most `budget` for other programs' locks, instead of [`LOCK_BUDGET`].
    #[must_use]
    pub fn waiting(mut self, budget: Duration) -> Self {
        self.lock_budget = budget;
        self
    }

    fn apt(&self) -> apt::Apt<'a> {
        self.host.apt().waiting(self.lock_budget)
    }

    /// Resolves, downloads, verifies and installs: after repairing what a killed run left behind, and only if
    /// apt's own simulation removes nothing, downgrades nothing, trusts no unsigned source and fits on the disk.
    pub async fn install(&self, request: &Request) -> Result<()> {
        self.recover().await?;
        let files = request.files(self.host).await?;
        let plan = self.apt().plan(request).await?;
        InFlight::of(&plan, &files).write(self.host)?;
        let result = self.apt().execute(request, &plan, |call| call).await;
        // apt came to an end by itself: what dpkg says is true, even if it says that something failed. Only
        // when apt was killed (by us, or by the kernel for want of memory) does the list stay.
        let over = match &result {
            Ok(output) => output.status < KILLED,
            Err(error) => error.code() == Code::AptLocked, // it never began
        };
        if over {
            InFlight::clear(self.host).await?;
        }
        judge(request, &result?)
    }

    /// Repairs what a killed run (ours or another's) left behind; does nothing on a healthy machine.
    pub async fn recover(&self) -> Result<()> {
        let in_flight = InFlight::read(self.host)?;
        let broken = !self.host.packages()?.broken().is_empty();
        if in_flight.is_none() && !broken {
            return Ok(());
        }
        tracing::warn!("an earlier package installation did not finish: repairing it");
        let configured = self.apt().configure().await?;
        let mut repaired = None;
        if !self.host.packages()?.broken().is_empty() {
            repaired = Some(self.fix_broken().await?);
        }
        let names: Vec<String> = self.host.packages()?.broken().iter().map(|p| p.id()).collect();
        if !names.is_empty() {
            return Err(Error::new(
                Code::DpkgBroken,
                format!("{} could not be repaired", names.join(", ")),
            )
            .with_hint("`dpkg --audit` says what is wrong; `apt-get install --reinstall PACKAGE` often helps; then run again")
            .because(format!("{}\n{}", configured.tail(), repaired.map(|o| o.tail()).unwrap_or_default()).trim().to_owned()));
        }
        if let Some(list) = in_flight {
            self.reinstall_in_flight(&list).await?;
            InFlight::clear(self.host).await?;
        }
        Ok(())
    }

    /// `apt-get -f install`, judged like any other installation.
    async fn fix_broken(&self) -> Result<Output> {
        let request = Request::default();
        let plan = self.apt().plan(&request).await?;
        self.apt().execute(&request, &plan, |call| call).await
    }

    /// Installs again, with their scripts, the packages that were in flight and are there: their files may be
    /// torn in ways that dpkg cannot see. The others come with the request that wanted them.
    async fn reinstall_in_flight(&self, list: &InFlight) -> Result<()> {
        let database = self.host.packages()?;
        let mut versioned = Request { change_held: true, ..Request::default() };
        let mut any = versioned.clone();
        for entry in &list.packages {
            let there = database.installed(&entry.name, Some(&entry.arch));
            if there.is_none_or(|p| p.version != entry.version) {
                continue;
            }
            match &entry.file {
                Some(file) if self.host.files.exists(file)? => {
                    versioned.reinstall.push(file.clone());
                    any.reinstall.push(file.clone());
                }
                _ => {
                    versioned.reinstall.push(format!("{}:{}={}", entry.name, entry.arch, entry.version));
                    any.reinstall.push(format!("{}:{}", entry.name, entry.arch));
                }
            }
        }
        if versioned.reinstall.is_empty() {
            return Ok(());
        }
        let plan = match self.apt().plan(&versioned).await {
            Ok(plan) => return judge(&versioned, &self.apt().execute(&versioned, &plan, |call| call).await?),
            // The repository has moved on meanwhile: a newer version is as whole as the same one.
            Err(e) if e.code() == Code::AptUnsolvable => self.apt().plan(&any).await?,
            Err(e) => return Err(e),
        };
        judge(&any, &self.apt().execute(&any, &plan, |call| call).await?)
    }
}
