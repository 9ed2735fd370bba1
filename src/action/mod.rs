//! Actions: one typed piece of wanted state each, with one predicate, `check`, that serves as dry run, skip
//! decision and proof. An action touches the machine only through [`Host`].

pub mod apt_components;
pub mod apt_distrust;
pub mod apt_index;
pub mod apt_key;
pub mod apt_mirror;
pub mod apt_package;
pub mod apt_pin;
pub mod apt_source;
pub mod bundle;
pub mod cdi;
pub mod collective_check;
pub mod command;
pub mod container_runtime;
pub mod deb;
pub mod device_query;
mod driver;
pub mod driver_match;
pub mod efa_devices;
pub mod efa_installer;
pub mod file;
pub mod instance_store;
pub mod kernel_hold;
pub mod kernel_module;
pub mod kernel_packages;
pub mod library_path;
pub mod link;
pub mod module_blacklist;
mod module_build;
pub mod module_options;
mod module_refusal;
pub mod node_labels;
mod package_set;
pub mod python_environment;
pub(crate) mod repository;
pub mod service;
pub mod training_check;
mod trial;
mod unload;

pub(crate) use package_set::recorded_files;
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::host::Host;
use crate::install::ahead::Wish;

/// What a check found. `Unknown` is never "fine".
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Check {
    /// The machine is as wanted.
    Satisfied {
        /// What was looked at, for people.
        evidence: String,
    },
    /// Work is needed.
    Needed {
        /// What differs.
        why: String,
    },
    /// All is as wanted but for what the next installation of packages would take. Where none is to come, nothing is to
    /// be done: [`crate::plan::Plan::check`] tells, and passes on one of the others.
    Deferred {
        /// What is missing.
        why: String,
    },
    /// It could not be told.
    Unknown {
        /// What stood in the way.
        why: String,
    },
}

/// What applying did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Applied {
    /// The work is done; `check` will be asked again.
    Done,
    /// The work takes effect with the next boot.
    RebootNeeded {
        /// Why.
        why: String,
    },
}

impl Check {
    /// Satisfied, with evidence.
    pub fn satisfied(evidence: impl Into<String>) -> Self {
        Self::Satisfied { evidence: evidence.into() }
    }

    /// Work is needed, with the reason.
    pub fn needed(why: impl Into<String>) -> Self {
        Self::Needed { why: why.into() }
    }

    /// Could not tell, with the reason.
    pub fn unknown(why: impl Into<String>) -> Self {
        Self::Unknown { why: why.into() }
    }

    /// Missing for installations only, with what.
    pub fn deferred(why: impl Into<String>) -> Self {
        Self::Deferred { why: why.into() }
    }

    /// `satisfied`, `needed`, `deferred` or `unknown`.
    pub fn state(&self) -> &'static str {
        match self {
            Self::Satisfied { .. } => "satisfied",
            Self::Needed { .. } => "needed",
            Self::Deferred { .. } => "deferred",
            Self::Unknown { .. } => "unknown",
        }
    }

    /// Evidence or reason.
    pub fn why(&self) -> &str {
        match self {
            Self::Satisfied { evidence: text }
            | Self::Needed { why: text }
            | Self::Deferred { why: text }
            | Self::Unknown { why: text } => text,
        }
    }
}

/// What every kind of action can do.
pub(crate) trait Converge {
    /// Looks, and changes nothing.
    async fn check(&self, host: &Host) -> Result<Check>;
    /// Makes it so. Called only after `check` said `Needed`.
    async fn apply(&self, host: &Host) -> Result<Applied>;
    /// What applying it will ask for of packages, as far as the machine tells now: for whoever fetches ahead.
    fn wish(&self, _host: &Host) -> Result<Wish> {
        Ok(Wish::default())
    }
    /// A path that is written whole: what a killed run left unfinished lies beside it.
    fn target(&self) -> Option<&str> {
        None
    }
    /// The wanted state in a few words ("package cuda-toolkit-12-8").
    fn describe(&self) -> String;
}

macro_rules! actions {
    ($($(#[$doc:meta])* $variant:ident($type:path),)*) => {
        /// The closed set of actions. In a step file: `[[action]]` with one key, the action's name.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case")]
        pub enum Action { $($(#[$doc])* $variant($type),)* }

        impl Action {
            /// Looks, and changes nothing.
            pub async fn check(&self, host: &Host) -> Result<Check> {
                match self { $(Self::$variant(a) => a.check(host).await,)* }
            }

            /// Makes it so.
            pub async fn apply(&self, host: &Host) -> Result<Applied> {
                match self { $(Self::$variant(a) => a.apply(host).await,)* }
            }

            /// What applying it will ask for of packages, as far as the machine tells now.
            pub fn wish(&self, host: &Host) -> Result<Wish> {
                match self { $(Self::$variant(a) => a.wish(host),)* }
            }

            /// A path that is written whole: what a killed run left unfinished lies beside it.
            pub fn target(&self) -> Option<&str> {
                match self { $(Self::$variant(a) => a.target(),)* }
            }

            /// The wanted state in a few words.
            pub fn describe(&self) -> String {
                match self { $(Self::$variant(a) => a.describe(),)* }
            }
        }
    };
}

actions! {
    /// A file with this content.
    File(file::File),
    /// A symbolic link.
    Link(link::Link),
    /// A keyring that holds exactly one pinned key.
    AptKey(apt_key::AptKey),
    /// A retired key that apt must not trust for every repository.
    AptDistrust(apt_distrust::AptDistrust),
    /// A repository's index, fetched apart and verified before the machine's apt sees the repository.
    AptIndex(apt_index::AptIndex),
    /// Pins: the repository negative as a whole, our packages positive.
    AptPin(apt_pin::AptPin),
    /// A repository in apt's sources.
    AptSource(apt_source::AptSource),
    /// Another address of the distribution's own archive.
    AptMirror(apt_mirror::AptMirror),
    /// Components of the distribution's own archive.
    AptComponents(apt_components::AptComponents),
    /// A bundle that takes the place of all repositories.
    Bundle(bundle::Bundle),
    /// Packages, by apt.
    AptPackage(apt_package::AptPackage),
    /// Packages that go with the kernel, for the running one and for its updates.
    KernelPackages(kernel_packages::KernelPackages),
    /// Packages as files, by URL and SHA-256.
    Deb(deb::Deb),
    /// Directories of the dynamic linker.
    LibraryPath(library_path::LibraryPath),
    /// The running kernel's packages, on hold.
    KernelHold(kernel_hold::KernelHold),
    /// What modprobe tells a kernel module.
    ModuleOptions(module_options::ModuleOptions),
    /// A kernel module that is not loaded by itself.
    ModuleBlacklist(module_blacklist::ModuleBlacklist),
    /// One version of everything that belongs to the driver.
    DriverMatch(driver_match::DriverMatch),
    /// Loaded kernel modules.
    KernelModule(kernel_module::KernelModule),
    /// A command of the administrator's own.
    Command(command::Command),
    /// A file system on the instance store.
    InstanceStore(instance_store::InstanceStore),
    /// The GPUs, described for container runtimes.
    Cdi(cdi::Cdi),
    /// A container runtime that knows the GPUs.
    ContainerRuntime(container_runtime::ContainerRuntime),
    /// Labels of a Kubernetes node.
    NodeLabels(node_labels::NodeLabels),
    /// A running systemd service.
    Service(service::Service),
    /// A virtual environment with locked packages.
    PythonEnvironment(python_environment::PythonEnvironment),
    /// Frameworks that learn.
    TrainingCheck(training_check::TrainingCheck),
    /// EFA's libraries.
    EfaInstaller(efa_installer::EfaInstaller),
    /// EFA devices that libfabric can use.
    EfaDevices(efa_devices::EfaDevices),
    /// GPUs that add up each other's numbers.
    CollectiveCheck(collective_check::CollectiveCheck),
    /// A GPU that works.
    DeviceQuery(device_query::DeviceQuery),
}

impl Action {
    /// Whether applying it installs packages, for which apt's own indexes must be there.
    pub fn installs(&self) -> bool {
        matches!(self, Self::AptPackage(_) | Self::Deb(_) | Self::KernelPackages(_))
    }
}
