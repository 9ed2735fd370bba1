//! The configuration's shape. Names are fixed; every key is optional; unknown keys are errors; versions are strings.

use serde::{Deserialize, Serialize};

use crate::action::container_runtime::Runtime;

/// The whole configuration, with every default filled in.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// Where packages come from.
    pub source: SourceConfig,
    /// The kernel driver.
    pub driver: DriverConfig,
    /// The CUDA toolkit.
    pub cuda: CudaConfig,
    /// cuDNN.
    pub cudnn: CudnnConfig,
    /// Search paths of login shells and of the dynamic linker.
    pub profile: ProfileConfig,
    /// Container runtimes and Kubernetes.
    pub containers: ContainersConfig,
    /// How packages are installed.
    pub install: InstallConfig,
    /// Frameworks for Python.
    pub frameworks: FrameworksConfig,
    /// Training on several GPUs and machines.
    pub distributed: DistributedConfig,
    /// The early part of a boot without cloud-init.
    pub instance: InstanceConfig,
    /// What to do in cases of doubt.
    pub policy: PolicyConfig,
    /// Who is told.
    pub report: ReportConfig,
}

/// `[source]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct SourceConfig {
    /// `nvidia`, `distro`, the URL of a mirror of NVIDIA's `compute/cuda/repos` tree, or `bundle:` and where it lies.
    pub packages: String,
    /// SHA-256 of the bundle's manifest; empty without a bundle.
    pub bundle_sha256: String,
    /// Where Ubuntu's own packages come from on EC2.
    pub apt_mirror: AptMirror,
}

/// Which address of Ubuntu's archive is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AptMirror {
    /// The one that apt's sources name.
    #[default]
    Keep,
    /// The mirror in the instance's region.
    Region,
}

/// `[driver]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct DriverConfig {
    /// `auto`, `none`, a branch (`580`) or a full version (`535.309.01`).
    pub branch: String,
    /// Open or proprietary kernel modules.
    pub flavour: Flavour,
    /// Modules built and signed by the distribution, or built here by DKMS.
    pub modules: Modules,
}

/// Kernel module flavour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Flavour {
    /// By the GPU's architecture.
    #[default]
    Auto,
    /// NVIDIA's open kernel modules.
    Open,
    /// NVIDIA's proprietary kernel modules.
    Proprietary,
}

/// Where kernel modules come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Modules {
    /// Prebuilt where the distribution has them, DKMS otherwise.
    #[default]
    Auto,
    /// The distribution's signed modules only.
    Prebuilt,
    /// DKMS only.
    Dkms,
}

/// `[cuda]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct CudaConfig {
    /// `auto`, `none`, a version (`12.8`), or a list of versions, the first of which is the default.
    pub toolkit: OneOrMany,
}

/// A string or a list of strings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum OneOrMany {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

/// `[cudnn]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct CudnnConfig {
    /// `auto`, `none`, or a version (`9.8.0`).
    pub version: String,
    /// `.deb` files to install instead of packages from the repository.
    pub deb: Vec<DebConfig>,
}

/// One entry of `cudnn.deb`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct DebConfig {
    /// `https://…`, `http://…` or `s3://…` (the sum is what is trusted).
    pub url: String,
    /// 64 hexadecimal digits; empty where a signed index has the sum.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sha256: String,
    /// The directory of the repository whose signed index has the sum; empty for one that the catalog knows.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub repository: String,
    /// Id or fingerprint of the key of the catalog by which that index must be signed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub signed_by: String,
}

/// `[profile]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct ProfileConfig {
    /// Whether PATH, `LD_LIBRARY_PATH`, the linker's directories and `/usr/local/cuda` are set up.
    pub path: bool,
}

/// `[containers]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct ContainersConfig {
    /// Which runtimes get the GPUs.
    pub runtime: Vec<Runtime>,
    /// `nvidia`, `none`, or the URL of a mirror of the toolkit's repository.
    pub toolkit: String,
    /// Whether a file with the labels of a Kubernetes node is written.
    pub node_labels: bool,
}

/// `[install]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct InstallConfig {
    /// The fastest way that may be taken.
    pub method: Method,
    /// `auto`, or how much memory unpacking may take (`512M`, `2G`).
    pub memory: String,
    /// Whether dpkg may leave it to the end of an installation to bring new files to the disk.
    pub unsafe_io: bool,
    /// Whether manuals and documentation are unpacked.
    pub documentation: bool,
    /// Whether packages of later steps are fetched while an earlier one installs.
    pub prefetch: bool,
    /// Seconds that other programs may hold apt's and dpkg's locks.
    pub lock_timeout: u64,
    /// Seconds that packages' own scripts may say nothing.
    pub script_timeout: u64,
}

/// The fastest way to install that may be taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// The fastest that the machine allows.
    #[default]
    Auto,
    /// Packages are fetched by us and installed by plain apt and dpkg.
    Originals,
    /// Everything by plain apt.
    Apt,
}

/// `[frameworks]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct FrameworksConfig {
    /// Frameworks, by their names; empty for none.
    pub python: Vec<String>,
    /// The virtual environment's directory; empty for one below `/opt/gpu-bootstrap`.
    pub path: String,
    /// What the wheels are built for.
    pub device: Device,
    /// URL of the package index; empty for pip's own, which is `PyPI`.
    pub index: String,
    /// A directory of wheels that takes the index's place; empty for none.
    pub wheels: String,
    /// Whether each framework trains a tiny model.
    pub training_check: bool,
}

/// What the frameworks' wheels are built for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Device {
    /// The toolkit's CUDA generation, where driver, GPU and locks have it; the other one else.
    #[default]
    Auto,
    /// CUDA 12.
    Cuda12,
    /// CUDA 13.
    Cuda13,
    /// No GPU is used.
    Cpu,
}

/// `[distributed]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct DistributedConfig {
    /// `none`, `auto`, or a version of NCCL (`2.28.9`).
    pub nccl: String,
    /// Whether EFA is set up.
    pub efa: Enabled,
    /// URL of EFA's installer; empty for one whose sum is known here.
    pub efa_url: String,
    /// SHA-256 of that file.
    pub efa_sha256: String,
    /// `GDRCopy`'s packages, as files.
    pub gdrcopy: Vec<DebConfig>,
    /// What shows that the GPUs of this machine exchange data.
    pub check: CollectiveCheck,
    /// The program of nccl-tests, and its arguments; empty for the usual one.
    pub check_command: Vec<String>,
    /// GB/s that it must reach; 0 for any.
    pub check_bandwidth: u64,
}

/// What shows that the GPUs of a machine exchange data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CollectiveCheck {
    /// Nothing.
    #[default]
    None,
    /// `all_reduce_perf` of NVIDIA's nccl-tests.
    NcclTests,
    /// The `PyTorch` of `[frameworks]`.
    Torch,
}

/// `[instance]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct InstanceConfig {
    /// Whether a new instance gets its key pair's public key and host keys of its own.
    pub ssh_keys: bool,
    /// Whether a new instance gets its name.
    pub hostname: bool,
    /// Whether the root partition and its file system grow to the size of a new instance's disk.
    pub grow_root: bool,
    /// `auto`, or the user that logs in.
    pub user: String,
    /// Where the instance store is mounted; empty for nowhere.
    pub store: String,
    /// What is made on a blank instance store.
    pub store_file_system: FileSystem,
    /// Whether user-data is acted on where cloud-init does not.
    pub user_data: UserDataPolicy,
}

/// Kinds of file systems.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileSystem {
    /// ext4.
    #[default]
    Ext4,
    /// XFS.
    Xfs,
}

/// What becomes of scripts and `#cloud-config` in user-data where cloud-init does not act on them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UserDataPolicy {
    /// They are acted on.
    #[default]
    Run,
    /// Nothing.
    Ignore,
}

/// `[policy]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct PolicyConfig {
    /// What a machine without GPU means.
    pub on_no_gpu: OnNoGpu,
    /// The instance types an image is baked for (with `on-no-gpu = "install"`).
    #[serde(rename = "for")]
    pub bake_for: Vec<String>,
    /// Whether the unit may reboot the machine.
    pub reboot: Reboot,
    /// Whether the running kernel's packages are held.
    pub hold_kernel: HoldKernel,
    /// `auto`, or how many GPUs there must be.
    pub expect_gpus: ExpectGpus,
}

/// What a machine without GPU means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnNoGpu {
    /// An error (exit code 3).
    #[default]
    Fail,
    /// Nothing to do (exit code 0).
    Skip,
    /// Install for the instance types named in `for`.
    Install,
}

/// Whether the unit may reboot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reboot {
    /// The unit reboots when it must; a run by hand exits 10.
    #[default]
    Auto,
    /// Nobody reboots.
    Never,
}

/// Whether the running kernel's packages are held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HoldKernel {
    /// Only where modules are built here and no package of headers follows the kernel's updates.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// How many GPUs there must be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ExpectGpus {
    /// Exactly so many.
    Count(u32),
    /// `auto`: as many as the instance type has.
    Auto(String),
}

/// `[report]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct ReportConfig {
    /// Amazon's metrics and logs.
    pub cloudwatch: CloudwatchConfig,
    /// The stack that waits for this instance.
    pub cloudformation: CloudformationConfig,
    /// The group whose launch waits for this instance.
    pub autoscaling: AutoscalingConfig,
    /// Key of the instance's tag that says how far it is; empty for none.
    pub tag: String,
    /// ARN of an SNS topic; empty for none.
    pub sns: String,
    /// Name or ARN of an event bus; empty for none.
    pub event_bus: String,
    /// A URL that gets the outcome by POST; empty for none.
    pub webhook: String,
    /// How AWS is reached.
    pub aws: AwsConfig,
}

/// `report.cloudwatch`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct CloudwatchConfig {
    /// `auto` (when the instance has a role), `true` or `false`.
    pub enabled: Enabled,
    /// Metric namespace.
    pub namespace: String,
    /// Whether metrics have the instance as a dimension, too.
    pub instance_dimension: bool,
    /// Whether events are sent to CloudWatch Logs.
    pub logs: bool,
    /// The log group.
    pub log_group: String,
    /// Days that a log group made by us keeps its events.
    pub retention_days: u64,
}

/// `report.cloudformation`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct CloudformationConfig {
    /// The stack's name or ARN; empty for none.
    pub stack: String,
    /// The logical id of the resource that waits.
    pub resource: String,
}

/// `report.autoscaling`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct AutoscalingConfig {
    /// The group's name; empty for none.
    pub group: String,
    /// The launch hook's name.
    pub hook: String,
    /// What a failed run means for the instance.
    pub on_failure: OnFailure,
    /// Seconds between heartbeats while the run works.
    pub heartbeat: u64,
}

/// What a failed run means for an instance that its group is launching.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnFailure {
    /// It goes into service all the same.
    #[default]
    Continue,
    /// It is terminated.
    Abandon,
}

/// `report.aws`
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct AwsConfig {
    /// Endpoints whose cryptography is validated by FIPS 140.
    pub fips: bool,
    /// Endpoints with IPv6.
    pub dual_stack: bool,
}

/// A switch that may be left to the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Enabled {
    /// `true` or `false`.
    Fixed(bool),
    /// `auto`.
    Auto(String),
}

impl Default for SourceConfig {
    fn default() -> Self {
        Self { packages: "nvidia".into(), bundle_sha256: String::new(), apt_mirror: AptMirror::Keep }
    }
}

impl Default for DriverConfig {
    fn default() -> Self {
        Self { branch: "auto".into(), flavour: Flavour::Auto, modules: Modules::Auto }
    }
}

impl Default for CudaConfig {
    fn default() -> Self {
        Self { toolkit: OneOrMany::One("auto".into()) }
    }
}

impl Default for CudnnConfig {
    fn default() -> Self {
        Self { version: "auto".into(), deb: Vec::new() }
    }
}

impl Default for ProfileConfig {
    fn default() -> Self {
        Self { path: true }
    }
}

impl Default for ContainersConfig {
    fn default() -> Self {
        Self { runtime: Vec::new(), toolkit: "nvidia".into(), node_labels: false }
    }
}

impl Default for InstallConfig {
    fn default() -> Self {
        Self {
            method: Method::Auto,
            memory: "auto".into(),
            unsafe_io: true,
            documentation: true,
            prefetch: true,
            // First-boot upgrades (cloud-init, unattended-upgrades) take minutes on small instances; ten is well above
            // what is seen, and well below a stack's creation timeout.
            lock_timeout: 600,
            // A kernel module that DKMS builds in silence takes ten minutes on two cores, half an hour without CPU credits.
            script_timeout: 3600,
        }
    }
}

impl Default for FrameworksConfig {
    fn default() -> Self {
        Self {
            python: Vec::new(),
            path: String::new(),
            device: Device::Auto,
            index: String::new(),
            wheels: String::new(),
            training_check: true,
        }
    }
}

impl Default for DistributedConfig {
    fn default() -> Self {
        Self {
            nccl: "none".into(),
            efa: Enabled::Fixed(false),
            efa_url: String::new(),
            efa_sha256: String::new(),
            gdrcopy: Vec::new(),
            check: CollectiveCheck::None,
            check_command: Vec::new(),
            check_bandwidth: 0,
        }
    }
}

impl InstallConfig {
    /// Bytes of `memory`; `None` for `auto`.
    pub fn memory_bytes(&self) -> Option<u64> {
        super::validate::memory_bytes(&self.memory)
    }
}

impl Default for InstanceConfig {
    fn default() -> Self {
        Self {
            ssh_keys: true,
            hostname: true,
            grow_root: true,
            user: "auto".into(),
            store: String::new(),
            store_file_system: FileSystem::Ext4,
            user_data: UserDataPolicy::Run,
        }
    }
}

impl Default for PolicyConfig {
    fn default() -> Self {
        Self {
            on_no_gpu: OnNoGpu::Fail,
            bake_for: Vec::new(),
            reboot: Reboot::Auto,
            hold_kernel: HoldKernel::Auto,
            expect_gpus: ExpectGpus::Auto("auto".into()),
        }
    }
}

impl Default for CloudwatchConfig {
    fn default() -> Self {
        Self {
            enabled: Enabled::Auto("auto".into()),
            namespace: "GpuBootstrap".into(),
            instance_dimension: false,
            logs: true,
            log_group: "/gpu-bootstrap".into(),
            retention_days: 30,
        }
    }
}

impl Default for AutoscalingConfig {
    fn default() -> Self {
        Self { group: String::new(), hook: String::new(), on_failure: OnFailure::Continue, heartbeat: 300 }
    }
}
