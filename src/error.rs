//! One error type for the whole agent: a stable code, a sentence, a hint, and the cause chain.
//!
//! The codes stand in one table, below, with their exit code and meaning, so that `docs/status.md` can be
//! tested against it and a caller can match on [`Code`] without parsing text.

use std::error::Error as StdError;
use std::fmt;

/// `Result` with the agent's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Exit codes of the process. Fixed: scripts, units and CloudFormation stacks depend on them.
pub mod exit {
    /// The machine is in the wanted state.
    pub const CONVERGED: u8 = 0;
    /// Something failed; `--resume` may help.
    pub const FAILED: u8 = 1;
    /// Wrong usage, bad configuration or bad plan.
    pub const USAGE: u8 = 2;
    /// This host is not supported: no GPU, wrong operating system, not NVIDIA.
    pub const UNSUPPORTED: u8 = 3;
    /// Another run holds the lock.
    pub const LOCKED: u8 = 4;
    /// A GPU was found, but it does not work.
    pub const UNHEALTHY: u8 = 5;
    /// Not allowed (not root).
    pub const NOT_ALLOWED: u8 = 6;
    /// `--resume` found nothing to resume.
    pub const NOTHING_TO_RESUME: u8 = 7;
    /// A reboot is needed before the run can go on.
    pub const REBOOT_NEEDED: u8 = 10;
    /// Interrupted by SIGINT; `--resume` goes on.
    pub const INTERRUPTED: u8 = 130;
    /// Terminated by SIGTERM; `--resume` goes on.
    pub const TERMINATED: u8 = 143;
    /// What `--ssm` exits with where another run would exit 10: Systems Manager reboots on it.
    pub const REBOOT_NEEDED_SSM: u8 = 194;
}

macro_rules! codes {
    ($($variant:ident $name:literal $exit:ident $meaning:literal;)*) => {
        /// Stable identifier of a kind of failure. Names are never changed or reused.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Code { $(#[doc = $meaning] $variant,)* }

        impl Code {
            /// Every code, in the order of the table (for the test of `docs/status.md`).
            pub const ALL: &'static [Code] = &[$(Code::$variant,)*];

            /// The kebab-case name that status files, logs and metrics carry.
            pub fn name(self) -> &'static str {
                match self { $(Code::$variant => $name,)* }
            }

            /// The process exit code that belongs to it, one of [`exit`].
            pub fn exit_code(self) -> u8 {
                match self { $(Code::$variant => exit::$exit,)* }
            }

            /// What it means, one sentence.
            pub fn meaning(self) -> &'static str {
                match self { $(Code::$variant => $meaning,)* }
            }
        }
    };
}

// One row per code, grouped by the module that raises it. Keep docs/status.md in step (a test compares them).
codes! {
    // cli and engine
    Usage "usage" USAGE "The command line is wrong.";
    NotRoot "not-root" NOT_ALLOWED "This command changes the machine and needs root.";
    Locked "locked" LOCKED "Another run holds the lock.";
    NothingToResume "nothing-to-resume" NOTHING_TO_RESUME "There is no earlier run to resume.";
    PlanChanged "plan-changed" USAGE "The new plan would reverse or downgrade a finished step.";
    VerifyFailed "verify-failed" FAILED "An action was applied, but its check still says that work is needed.";
    CheckUnknown "check-unknown" FAILED "An action's check could not tell the state of the machine.";
    Interrupted "interrupted" INTERRUPTED "The run was interrupted by SIGINT.";
    Terminated "terminated" TERMINATED "The run was ended by SIGTERM.";
    RebootLoop "reboot-loop" FAILED "A reboot is asked for again and again.";
    WaitTimeout "wait-timeout" FAILED "`status --wait` ran out of time; the run itself may go on.";
    RebootNeeded "reboot-needed" REBOOT_NEEDED "The work goes on after a reboot.";
    // host
    Io "io" FAILED "A file operation failed.";
    Exec "exec" FAILED "A program could not be run, or it failed.";
    ExecTimeout "exec-timeout" FAILED "A program did not end within its time limit.";
    DiskFull "disk-full" FAILED "There is not enough disk space for what will be installed.";
    Fetch "fetch" FAILED "A download failed.";
    FetchDenied "fetch-denied" FAILED "The server refuses the download.";
    NotADeb "not-a-deb" FAILED "A download that should be a package is something else (often a login page).";
    ChecksumMismatch "checksum-mismatch" FAILED "The bytes do not have the expected SHA-256; nothing was kept.";
    InsecureRedirect "insecure-redirect" FAILED "An https download or repository redirects to plain http.";
    SumUnknown "sum-unknown" USAGE "The configuration gives no SHA-256 for a package file, and no signed index vouches for it; it was not fetched.";
    // config and plan
    ConfigRead "config-read" USAGE "A configuration file cannot be read.";
    ConfigSyntax "config-syntax" USAGE "A configuration file is not valid TOML.";
    ConfigUnknownKey "config-unknown-key" USAGE "A configuration file has a key that does not exist.";
    ConfigType "config-type" USAGE "A configuration value has the wrong type or an impossible value.";
    StepInvalid "step-invalid" USAGE "A step file is not valid.";
    StepUntrusted "step-untrusted" USAGE "Somebody other than root could have written a step file.";
    // instance store
    StoreInUse "store-in-use" FAILED "The instance store, or the directory for it, is not free; it was left as it is.";
    // containers
    ContainerConfig "container-config" FAILED "A container runtime's configuration cannot be extended; it was left as it is.";
    // frameworks
    PathInUse "path-in-use" FAILED "A directory that the configuration names for an environment holds something else; it was left as it is.";
    WheelMissing "wheel-missing" FAILED "The package index, or the directory of wheels, has no wheel that the lock names.";
    FrameworkFailed "framework-failed" FAILED "A framework does not train, does not learn, or falls back to the CPU.";
    // training on several GPUs and machines
    EfaFailed "efa-failed" FAILED "EFA's installer failed, or libfabric cannot use the EFA devices.";
    CollectiveFailed "collective-failed" UNHEALTHY "The GPUs do not add up each other's numbers, add up wrong, or are slower than asked for.";
    // user-data
    UserDataInvalid "user-data-invalid" USAGE "The user-data has something that cannot be acted on; nothing of it was done.";
    UserDataFailed "user-data-failed" FAILED "Something that the user-data asks for failed.";
    // facts
    MetadataDisabled "metadata-disabled" FAILED "The instance metadata service is switched off for this instance.";
    MetadataUnreachable "metadata-unreachable" FAILED "The instance metadata service did not answer in time.";
    MetadataInvalid "metadata-invalid" FAILED "The instance metadata service gave an answer that makes no sense.";
    MetadataEndpoint "metadata-endpoint" USAGE "The environment names a metadata endpoint that cannot be used.";
    FactsUnreadable "facts-unreadable" FAILED "A fact about this machine could not be read.";
    // catalog: refusals
    NoGpu "no-gpu" UNSUPPORTED "There is no NVIDIA GPU on this machine.";
    NotNvidia "not-nvidia" UNSUPPORTED "The accelerator of this machine is not made by NVIDIA.";
    FractionalGpu "fractional-gpu" UNSUPPORTED "A fractional GPU needs AWS's GRID driver, which is not in any apt repository.";
    UnsupportedOs "unsupported-os" UNSUPPORTED "This operating system or version is not supported.";
    UnsupportedArch "unsupported-arch" UNSUPPORTED "This processor architecture is not supported.";
    Container "container" UNSUPPORTED "A container has no kernel of its own to load a driver into.";
    RepositoryKeyUnknown "repository-key-unknown" UNSUPPORTED "Nobody here knows the key that signs the repository for this distribution.";
    ImpossibleWish "impossible-wish" UNSUPPORTED "The configuration asks for a combination that does not exist.";
    UnknownInstanceType "unknown-instance-type" USAGE "The named instance type is not in the catalog.";
    CatalogInvalid "catalog-invalid" USAGE "A catalog file is not valid.";
    // apt and dpkg
    AptFailed "apt-failed" FAILED "apt-get failed.";
    AptLocked "apt-locked" FAILED "Another program held apt's or dpkg's lock for too long.";
    AptUnsolvable "apt-unsolvable" FAILED "apt cannot find a set of packages that fulfils the request.";
    RepositoryUntrusted "repository-untrusted" FAILED "A repository's signature cannot be trusted; nothing was installed from it.";
    IndexOutdated "index-outdated" FAILED "A package list names a file that the repository no longer has.";
    UntrustedSource "untrusted-source" FAILED "apt would take a package from a source whose signatures are switched off.";
    WouldRemove "would-remove" FAILED "The installation would remove packages that are not NVIDIA's.";
    WouldDowngrade "would-downgrade" FAILED "The installation would replace a package by an older version.";
    WrongArchitecture "wrong-architecture" FAILED "A package file is built for another processor architecture.";
    DpkgBroken "dpkg-broken" FAILED "dpkg's database has half-installed packages that could not be repaired.";
    // repositories
    KeyInvalid "key-invalid" FAILED "The catalog's repository key is not a public key, or it is damaged.";
    KeyMismatch "key-mismatch" FAILED "The catalog's repository key does not have the pinned fingerprint.";
    KeyNotAlone "key-not-alone" FAILED "The catalog's repository key comes with other keys.";
    IndexTampered "index-tampered" FAILED "A repository's index does not match its signature or its checksums.";
    IndexTooOld "index-too-old" FAILED "A repository's index is validly signed, but older than it may be.";
    IndexMalformed "index-malformed" FAILED "A repository's index cannot be parsed.";
    WrongRepository "wrong-repository" FAILED "A repository is validly signed, but not the one that was asked for.";
    ForeignPackage "foreign-package" FAILED "A repository offers a package that it must not supply.";
    PackageNotOffered "package-not-offered" FAILED "A repository does not offer a wanted package.";
    PinConflict "pin-conflict" FAILED "A preferences file of somebody else's also pins the repository.";
    SourceConflict "source-conflict" FAILED "A sources file of somebody else's also names the repository.";
    ComponentMissing "component-missing" FAILED "The distribution's archive cannot supply a wanted component.";
    // bundles
    BundleInvalid "bundle-invalid" FAILED "A bundle, or its manifest, is not what its sum or its form says.";
    BundleTampered "bundle-tampered" FAILED "A file of a bundle is missing, or is not the one that the manifest names.";
    BundleMismatch "bundle-mismatch" UNSUPPORTED "The bundle was made for another machine or another stack.";
    BundleIncomplete "bundle-incomplete" FAILED "The bundle lacks a file that this machine needs.";
    LicenceNotAccepted "licence-not-accepted" USAGE "A bundle would hold files under a licence that has not been accepted.";
    // device query
    DriverNotLoaded "driver-not-loaded" UNHEALTHY "The NVIDIA kernel module is not loaded.";
    GpuNotDriven "gpu-not-driven" UNHEALTHY "The NVIDIA kernel module was loaded, found no GPU that it can drive, and went away again.";
    DriverMismatch "driver-mismatch" UNHEALTHY "Kernel module, libraries and services of the driver have different versions.";
    ModuleBuildFailed "module-build-failed" FAILED "DKMS could not build the driver's kernel module; the message has the compiler's line.";
    ServiceFailed "service-failed" UNHEALTHY "A service that the GPUs need does not start.";
    GpuCount "gpu-count" UNHEALTHY "Fewer GPUs work than the machine should have.";
    LibraryMissing "library-missing" UNHEALTHY "A CUDA library that the plan installed cannot be found.";
    NvmlFailed "nvml-failed" UNHEALTHY "NVML, the driver's management library, does not answer or has lost a GPU.";
    CudaFailed "cuda-failed" UNHEALTHY "CUDA does not start, or cannot use a GPU.";
    ComputeFailed "compute-failed" UNHEALTHY "A GPU does not compute, or computes wrong results.";
    GpuUnhealthy "gpu-unhealthy" UNHEALTHY "A GPU reports a fault.";
    LibraryBroken "library-broken" UNHEALTHY "A CUDA library does not load, or is another version than its package or the plan.";
    ProbeNotStarted "probe-not-started" UNHEALTHY "The GPU probe, a program of ours, cannot be executed on this machine.";
    // seal
    NetworkNamesMac "network-names-mac" FAILED "A network file names a MAC address, so that an instance of the image would have no network.";
    PackagesInFlight "packages-in-flight" FAILED "Packages are half installed, and would be so in an image.";
    // rehearsal
    RehearsalUnavailable "rehearsal-unavailable" UNSUPPORTED "This machine lacks something that the rehearsal needs.";
    RehearsalFailed "rehearsal-failed" FAILED "The rehearsal itself (not the run inside it) failed.";
}

impl Code {
    /// What to do, where whoever raises it knows nothing more special. Every failure has a next step.
    #[expect(clippy::too_many_lines, reason = "one table, and the compiler sees that no code is missing")]
    pub fn usual_hint(self) -> &'static str {
        match self {
            Self::PathInUse => {
                "name another directory in the configuration, or free this one, then run again"
            }
            Self::WheelMissing => "add the wheel, or name an index that has it, then run again",
            Self::FrameworkFailed => {
                "`gpu-bootstrap device-query` says whether the GPU works; the causes are the framework's words"
            }
            Self::EfaFailed => "the causes are the installer's words; mend what they name, then run again",
            Self::CollectiveFailed => {
                "`gpu-bootstrap device-query --bandwidth` says how GPU and GPU reach each other; the causes are the test's words"
            }
            Self::Usage => "`gpu-bootstrap --help` shows what there is",
            Self::NotRoot => "run it with sudo",
            Self::Locked | Self::WaitTimeout => "`gpu-bootstrap status --wait` waits for the other run",
            Self::NothingToResume => "run without --resume to begin a run",
            Self::PlanChanged => "undo the change of the configuration, or run with --replan",
            Self::VerifyFailed | Self::CheckUnknown => "mend what the message names, then run again with -v",
            Self::Interrupted | Self::Terminated => "`gpu-bootstrap --resume` goes on",
            Self::RebootLoop => "`gpu-bootstrap status` shows what asks for it; mend that, then run again",
            Self::RebootNeeded => "reboot; the run goes on by its unit, or by `gpu-bootstrap --resume`",
            Self::Io => {
                "look at the path in the message and at the disk (df, mount, dmesg: full, read-only, failing), then run again"
            }
            Self::Exec => {
                "see that the program in the message is installed and may be executed, then run again"
            }
            Self::ExecTimeout => {
                "see what holds the program in the message up (disk, network, a question), then run again"
            }
            Self::DiskFull => "enlarge the volume, or free space where the message says, then run again",
            Self::Fetch => {
                "check that this machine may reach the address in the message (route, proxy, security group), then run again"
            }
            Self::FetchDenied => "put the file where this machine may read it without a login",
            Self::NotADeb => "check the URL; download the file by hand and compare",
            Self::ChecksumMismatch => "run again later; if it stays, do not trust the source",
            Self::InsecureRedirect => "name the final https address in the configuration",
            Self::ConfigRead | Self::ConfigSyntax | Self::ConfigUnknownKey | Self::ConfigType => {
                "correct the configuration where the message says; `gpu-bootstrap config check` lists every mistake"
            }
            Self::StepInvalid | Self::CatalogInvalid => {
                "correct the file that the message names, or leave the override away; the built-in files are tested"
            }
            Self::StoreInUse => "free what the message names, or leave [instance] store away",
            Self::StepUntrusted => "let root own it and every directory above it, writable by nobody else",
            Self::UserDataInvalid => {
                "correct the user-data where the message says; `gpu-bootstrap user-data check` tells before a launch"
            }
            Self::UserDataFailed => "see /var/log/gpu-bootstrap/user-data.log",
            Self::MetadataDisabled
            | Self::MetadataUnreachable
            | Self::MetadataInvalid
            | Self::MetadataEndpoint => {
                "see what answers at the metadata address, or go on without it by --no-imds"
            }
            Self::FactsUnreadable => "see why the file in the message cannot be read, then run again",
            Self::NoGpu | Self::NotNvidia | Self::FractionalGpu => {
                "use an instance type with a whole NVIDIA GPU; [policy] on-no-gpu = \"skip\" does nothing on others"
            }
            Self::UnsupportedOs | Self::UnsupportedArch | Self::Container | Self::RepositoryKeyUnknown => {
                "use one of the images that README.md names"
            }
            Self::ImpossibleWish | Self::UnknownInstanceType => {
                "leave the wish away (\"auto\"), or choose what `gpu-bootstrap plan` offers"
            }
            Self::AptFailed => {
                "`apt-get -f install` and /var/log/apt/term.log say more; mend that, then run again"
            }
            Self::AptLocked => "let the other program finish, then run again",
            Self::AptUnsolvable => {
                "`apt-mark showhold` and `apt-cache policy PACKAGE` show what stands in the way"
            }
            Self::RepositoryUntrusted | Self::UntrustedSource => {
                "mend or remove that source in /etc/apt/sources.list.d, then run again"
            }
            Self::IndexOutdated | Self::IndexMalformed => "the repository is being updated: run again later",
            Self::WouldRemove | Self::WouldDowngrade => {
                "do by hand what the message names, or wish for other versions, then run again"
            }
            Self::WrongArchitecture => "give the URL and sha256 of the file for this architecture",
            Self::DpkgBroken => "`dpkg --audit` says what is wrong; mend it, then run again",
            Self::KeyInvalid | Self::KeyMismatch | Self::KeyNotAlone => {
                "use the built-in catalog, or correct the key in the override"
            }
            Self::IndexTampered | Self::IndexTooOld | Self::WrongRepository | Self::ForeignPackage => {
                "use another mirror ([source] packages); if it stays, do not trust the address"
            }
            Self::PackageNotOffered | Self::ComponentMissing => {
                "wish for another version, or use a mirror that has it ([source] packages)"
            }
            Self::PinConflict | Self::SourceConflict | Self::ContainerConfig => {
                "correct the file that the message names, then run again"
            }
            Self::BundleInvalid | Self::BundleTampered => {
                "`gpu-bootstrap bundle verify` names every file that is wrong; copy the bundle again, or make it anew"
            }
            Self::BundleMismatch => "make a bundle for this machine: `gpu-bootstrap bundle create`",
            Self::BundleIncomplete => {
                "make the bundle anew with --installed and this machine's /var/lib/dpkg/status"
            }
            Self::SumUnknown => {
                "give the file's sha256 beside its url; or name the signed repository that lists it (repository, signed-by)"
            }
            Self::LicenceNotAccepted => "read it, then say --accept-licence nvidia",
            Self::DriverNotLoaded | Self::DriverMismatch => {
                "reboot; then `gpu-bootstrap device-query` tells what is left"
            }
            Self::ModuleBuildFailed => "`dkms status`, and make.log below /var/lib/dkms, say more",
            Self::ServiceFailed => "`systemctl status` and `journalctl -u` of the service say why",
            Self::GpuCount
            | Self::NvmlFailed
            | Self::CudaFailed
            | Self::ComputeFailed
            | Self::GpuUnhealthy
            | Self::GpuNotDriven => {
                "look for Xid lines in `dmesg`; stop and start the instance to get other hardware"
            }
            Self::LibraryMissing | Self::LibraryBroken => "run again: the packages are mended",
            Self::ProbeNotStarted => {
                "allow programs of ours to be executed (noexec, SELinux, fapolicyd), then run again"
            }
            Self::NetworkNamesMac => {
                "match the driver instead (netplan: match: {driver: ena}; networkd: Driver=ena), or remove the file, then seal"
            }
            Self::PackagesInFlight => "`gpu-bootstrap run` repairs them; then seal",
            Self::RehearsalUnavailable | Self::RehearsalFailed => {
                "run it as root on a machine with user namespaces and apt; -v shows more"
            }
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What went wrong (`message`: lower case, with the path, URL or argument list), what to do (`hint`), and why (`source`).
#[derive(Debug)]
pub struct Error {
    code: Code,
    message: String,
    hint: Option<String>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// A failure of kind `code`; `message` is lower case, without a full stop.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: shortened(message.into()), hint: None, source: None }
    }

    /// One line that a tired operator can act on.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The cause; printed below the message, never mixed into it.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// A failed file operation: `verb` names it ("read", "rename to …").
    pub fn io(verb: &str, path: impl AsRef<std::path::Path>, source: std::io::Error) -> Self {
        // By kind, not by errno: errors that tempfile has wrapped keep only the kind.
        let code = match source.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Code::DiskFull,
            _ => Code::Io,
        };
        Self::new(code, format!("cannot {verb} {}", path.as_ref().display())).because(source)
    }

    /// The stable code.
    pub fn code(&self) -> Code {
        self.code
    }

    /// The sentence, without its causes.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// What to do about it. There always is one: that of the place that failed, or else the code's usual one.
    pub fn hint(&self) -> Option<&str> {
        Some(self.hint.as_deref().unwrap_or(self.code.usual_hint()))
    }

    /// Whether the place that failed said what to do, so that nothing more special is known.
    pub fn has_own_hint(&self) -> bool {
        self.hint.is_some()
    }

    /// The causes, outermost first, each as text.
    pub fn causes(&self) -> Vec<String> {
        let mut causes = Vec::new();
        let mut next: Option<&(dyn StdError + 'static)> = self.source();
        while let Some(cause) = next {
            causes.push(shortened(cause.to_string()));
            next = cause.source();
        }
        causes
    }
}

/// Messages quote what was found, and what was found may be a damaged file of any size. They go to the status
/// file, the console and the receipt.
const LONGEST_TEXT: usize = 16 << 10;

fn shortened(text: String) -> String {
    if text.len() <= LONGEST_TEXT {
        return text;
    }
    let boundary = |mut at: usize| {
        while !text.is_char_boundary(at) {
            at -= 1;
        }
        at
    };
    let (begin, end) = (boundary(LONGEST_TEXT / 2), boundary(text.len() - LONGEST_TEXT / 2));
    format!("{} … [{} bytes left out] … {}", &text[..begin], end - begin, &text[end..])
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|s| s as &(dyn StdError + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_kebab_case() {
        let mut names: Vec<_> = Code::ALL.iter().map(|c| c.name()).collect();
        assert!(
            names.iter().all(|n| n.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'))
        );
        names.sort_unstable();
        let before = names.len();
        names.dedup();
        assert_eq!(before, names.len());
    }

    #[test]
    fn a_message_that_quotes_a_damaged_file_stays_short() {
        let e = Error::new(Code::Io, "é".repeat(100_001)).because("€".repeat(100_000));
        assert!(e.message().len() < LONGEST_TEXT + 100 && e.causes()[0].len() < LONGEST_TEXT + 100);
        assert!(e.message().contains("bytes left out"));
    }

    #[test]
    fn causes_are_listed_outermost_first() {
        let inner = std::io::Error::other("the disk is on fire");
        let e = Error::new(Code::Fetch, "outer").because(Error::new(Code::Io, "middle").because(inner));
        assert_eq!(e.causes(), ["middle", "the disk is on fire"]);
    }
}
