//! Every configuration key in one table: its name, what it takes, an example and its meaning. The validator
//! reads it to check a layer and to suggest the nearest name; `docs/config.md` is generated from it.

/// One key.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Full name, with the table: `driver.branch`.
    pub path: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// A value as it would be written.
    pub example: &'static str,
    /// What it does.
    pub meaning: &'static str,
}

/// What a key takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One of these strings.
    Choice(&'static [&'static str]),
    /// `true` or `false`.
    Switch,
    /// `true`, `false` or `"auto"`.
    SwitchOrAuto,
    /// A name of a package source, or the URL of a mirror.
    Source,
    /// A SHA-256, or nothing.
    Sum,
    /// A driver branch or full driver version.
    Branch,
    /// One toolkit version or a list of them.
    Toolkits,
    /// A cuDNN version.
    CudnnVersion,
    /// A list of `{ url, sha256 }`.
    Debs,
    /// Package files, each with its sum.
    SummedDebs,
    /// A list of EC2 instance types.
    InstanceTypes,
    /// A list of container runtimes.
    Runtimes,
    /// Where NVIDIA's container toolkit comes from.
    ContainerToolkit,
    /// A list of frameworks for Python.
    Frameworks,
    /// A version of NCCL.
    NcclVersion,
    /// A program and its arguments.
    Words,
    /// A number of GB/s.
    Bandwidth,
    /// The URL of a package index.
    Url,
    /// The name of a user of this machine, or `"auto"`.
    User,
    /// A directory for a mount, or nothing.
    Directory,
    /// A number from 1, or `"auto"`.
    GpuCount,
    /// A namespace of metrics.
    Namespace,
    /// An amount of memory.
    Memory,
    /// A number of seconds.
    Seconds,
    /// A number of days that log events can be kept.
    Days,
    /// A log group's name.
    LogGroup,
    /// A name in AWS, or nothing.
    Name,
    /// A tag's key, or nothing.
    TagKey,
    /// A topic's ARN, or nothing.
    Topic,
    /// The URL of a webhook, or nothing.
    Webhook,
}

impl Kind {
    /// What may be written, for messages and for the documentation.
    pub fn takes(self) -> String {
        match self {
            Self::Choice(values) => one_of(values),
            Self::Switch => "true or false".into(),
            Self::SwitchOrAuto => "true, false or \"auto\"".into(),
            Self::Source => {
                "\"nvidia\", \"distro\", the http(s) URL of a mirror, \"bundle:/directory\" or \"bundle:s3://bucket/prefix\"".into()
            }
            Self::Sum => "64 hexadecimal digits, or \"\" for none".into(),
            Self::Branch => {
                "\"auto\", \"none\", a branch such as \"580\" or a version such as \"535.309.01\"".into()
            }
            Self::Toolkits => {
                "\"auto\", \"none\", a version such as \"12.8\" or a list such as [\"12.8\", \"13.0\"]".into()
            }
            Self::CudnnVersion => "\"auto\", \"none\" or a version such as \"9.8.0\"".into(),
            Self::SummedDebs => "a list of { url = \"https://…\", sha256 = \"64 hexadecimal digits\" }".into(),
            Self::Debs => "a list of { url = \"https://…\", sha256 = \"64 hexadecimal digits\" }, or without sha256 for a file in a \
                          signed repository".into(),
            Self::InstanceTypes => "a list of instance types such as [\"g5.xlarge\"]".into(),
            Self::Runtimes => format!("a list of {}", one_of(RUNTIMES)),
            Self::ContainerToolkit => "\"nvidia\", \"none\" or the http(s) URL of a mirror".into(),
            Self::Frameworks => format!("a list of {}", one_of(FRAMEWORKS)),
            Self::NcclVersion => "\"auto\", \"none\" or a version such as \"2.28.9\"".into(),
            Self::Words => "a list of words: a program and its arguments".into(),
            Self::Bandwidth => format!("a number of GB/s up to {}, or 0 for any", BANDWIDTH.end()),
            Self::User => {
                "\"auto\" or a user's name: 1 to 32 lower-case letters, digits, - and _, not beginning with a digit or -".into()
            }
            Self::Directory => {
                "an absolute path of letters, digits and / _ . - that is no directory of the system, or \"\" for none".into()
            }
            Self::GpuCount => "\"auto\" or a number from 1".into(),
            Self::Memory => "\"auto\" or an amount from 64M such as \"512M\" or \"2G\"".into(),
            Self::Seconds => format!("a number of seconds from {} to {}", SECONDS.start(), SECONDS.end()),
            Self::Days => format!("one of the numbers {}", DAYS.map(|d| d.to_string()).join(", ")),
            Self::LogGroup => "1 to 512 letters, digits and . - _ / #, not beginning with \"aws/\"".into(),
            Self::Name => {
                "a name or an ARN of at most 512 characters without spaces, or \"\" for none".into()
            }
            Self::TagKey => "1 to 128 characters, not beginning with \"aws:\", or \"\" for none".into(),
            Self::Topic => {
                "an ARN such as \"arn:aws:sns:us-east-1:123456789012:gpu\", or \"\" for none".into()
            }
            Self::Url | Self::Webhook => "an http(s) URL, or \"\" for none".into(),
            Self::Namespace => "1 to 255 characters, not beginning with \":\" or \"AWS/\"".into(),
        }
    }
}

/// What [`Kind::Seconds`] takes.
pub(super) const SECONDS: std::ops::RangeInclusive<u64> = 1..=86_400;

/// What [`Kind::Bandwidth`] takes: ten times what the GPUs of today reach within one machine.
pub(super) const BANDWIDTH: std::ops::RangeInclusive<u64> = 0..=10_000;

/// What [`Kind::Days`] takes: what `PutRetentionPolicy` does.
pub(super) const DAYS: [u64; 22] =
    [1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827, 2192, 2557, 2922, 3288, 3653];

/// Values of `report.autoscaling.on-failure`.
const ON_FAILURE: &[&str] = &["continue", "abandon"];
/// What `containers.runtime` may list.
pub(super) const RUNTIMES: &[&str] = &["docker", "containerd"];
/// Values of `driver.flavour`.
const FLAVOURS: &[&str] = &["auto", "open", "proprietary"];
/// Values of `driver.modules`.
const MODULES: &[&str] = &["auto", "prebuilt", "dkms"];
/// Values of `source.apt-mirror`.
const APT_MIRRORS: &[&str] = &["keep", "region"];
/// Values of `instance.store-file-system`.
const FILE_SYSTEMS: &[&str] = &["ext4", "xfs"];
/// What `frameworks.python` may name.
pub(super) const FRAMEWORKS: &[&str] = &["keras", "torch", "tensorflow", "jax", "tensorboard"];
/// Values of `frameworks.device`.
const DEVICES: &[&str] = &["auto", "cuda12", "cuda13", "cpu"];
/// Values of `distributed.check`.
const COLLECTIVE_CHECKS: &[&str] = &["none", "nccl-tests", "torch"];
/// Values of `install.method`.
const METHODS: &[&str] = &["auto", "originals", "apt"];
/// Values of `instance.user-data`.
const USER_DATA: &[&str] = &["run", "ignore"];
/// Values of `policy.on-no-gpu`.
const ON_NO_GPU: &[&str] = &["fail", "skip", "install"];
/// Values of `policy.reboot`.
const REBOOT: &[&str] = &["auto", "never"];

/// Values of `policy.hold-kernel`.
const HOLD_KERNEL: &[&str] = &["auto", "always", "never"];

/// Every key, in the order in which the documentation lists them. A test holds it against
/// [`super::Config`]'s fields.
pub const KEYS: &[Key] = &[
    Key {
        path: "source.packages",
        kind: Kind::Source,
        example: "\"distro\"",
        meaning: "Where packages come from: NVIDIA's repositories, the distribution's own packages, or a \
                  mirror of NVIDIA's `compute/cuda/repos` tree (still checked against NVIDIA's key), or a bundle \
                  ([bundle.md](bundle.md)).",
    },
    Key {
        path: "source.bundle-sha256",
        kind: Kind::Sum,
        example: "\"9f2c0c52c2e7f2b5a6d7d3b1b8a4a2a5c6d7e8f90123456789abcdef01234567\"",
        meaning: "SHA-256 of the bundle's `manifest.json`, as `bundle create` printed it. A bundle is not used without.",
    },
    Key {
        path: "source.apt-mirror",
        kind: Kind::Choice(APT_MIRRORS),
        example: "\"region\"",
        meaning: "Where Ubuntu's own packages come from on EC2. `region` lets apt's sources that name Ubuntu's main archive \
                  (or another region's mirror) name the mirror in the instance's region; other mirrors, and security \
                  updates, stay. `keep` changes nothing.",
    },
    Key {
        path: "driver.branch",
        kind: Kind::Branch,
        example: "\"580\"",
        meaning: "The kernel driver's branch or exact version. `auto` follows from the GPU; `none` installs \
                  no driver; one that is loaded is proved nevertheless.",
    },
    Key {
        path: "driver.flavour",
        kind: Kind::Choice(FLAVOURS),
        example: "\"open\"",
        meaning: "Open or proprietary kernel modules. `auto` follows from the GPU's architecture.",
    },
    Key {
        path: "driver.modules",
        kind: Kind::Choice(MODULES),
        example: "\"dkms\"",
        meaning: "Modules built and signed by the distribution, or built on this machine by DKMS. `auto` \
                  prefers prebuilt ones.",
    },
    Key {
        path: "cuda.toolkit",
        kind: Kind::Toolkits,
        example: "[\"12.8\", \"13.0\"]",
        meaning: "The CUDA toolkit, as major.minor. Of several, the first is `/usr/local/cuda`. `none` \
                  installs no toolkit.",
    },
    Key {
        path: "cudnn.version",
        kind: Kind::CudnnVersion,
        example: "\"9.8.0\"",
        meaning: "The cuDNN version from the package source. `none` installs no cuDNN.",
    },
    Key {
        path: "cudnn.deb",
        kind: Kind::Debs,
        example: "[{ url = \"https://example.com/libcudnn9-cuda-12_9.8.0.87-1_amd64.deb\", sha256 = \
                  \"1f2e0d4c7b6a59881f2e0d4c7b6a59881f2e0d4c7b6a59881f2e0d4c7b6a5988\" }]",
        meaning: "cuDNN packages to install from these URLs (`https://`, `http://` or `s3://bucket/key`) instead. The sum is what \
                  is trusted; write the one that you checked. Without one, the sum is taken from the signed index of the \
                  repository that the file lies in, where the catalog has that repository's key (NVIDIA's `compute/cuda` and \
                  `compute/machine-learning`), or where the entry names both: `repository = \"https://…/\"` and `signed-by`, a \
                  key's fingerprint or id in the catalog ([stacks.md](stacks.md)).",
    },
    Key {
        path: "profile.path",
        kind: Kind::Switch,
        example: "false",
        meaning: "Whether PATH and `LD_LIBRARY_PATH` of login shells, the dynamic linker's directories and \
                  the `/usr/local/cuda` link are set up.",
    },
    Key {
        path: "containers.runtime",
        kind: Kind::Runtimes,
        example: "[\"docker\", \"containerd\"]",
        meaning: "The container runtimes that get the GPUs: NVIDIA's container toolkit is installed, the GPUs are described \
                  (CDI), and the runtimes' own configuration is extended. The runtimes themselves are not installed.",
    },
    Key {
        path: "containers.toolkit",
        kind: Kind::ContainerToolkit,
        example: "\"none\"",
        meaning: "Where NVIDIA's container toolkit comes from: its own repository, or a mirror of that repository's \
                  `stable/deb` tree (still checked against its key). `none` leaves it out: `--device nvidia.com/gpu=all` \
                  works without it, `--gpus all` does not.",
    },
    Key {
        path: "containers.node-labels",
        kind: Kind::Switch,
        example: "true",
        meaning: "Whether `/etc/default/gpu-bootstrap-node-labels` is written, with the labels of these GPUs for \
                  `kubelet --node-labels`.",
    },
    Key {
        path: "install.method",
        kind: Kind::Choice(METHODS),
        example: "\"apt\"",
        meaning: "How packages are installed. `auto` takes the fastest way that the machine allows: many connections and \
                  all cores, with apt deciding and dpkg installing. `originals` only fetches the packages that way; `apt` \
                  leaves everything to apt. The end state is the same.",
    },
    Key {
        path: "install.memory",
        kind: Kind::Memory,
        example: "\"512M\"",
        meaning: "How much memory unpacked data may take on its way to the disk. `auto` is a quarter of the machine's memory; \
                  as much as the cores need at once is used, some 32 MB each.",
    },
    Key {
        path: "install.unsafe-io",
        kind: Kind::Switch,
        example: "false",
        meaning: "Whether dpkg may leave it to the end of an installation to bring files to the disk \
                  (`--force-unsafe-io`), where it replaces nothing that is installed. A power cut before the end makes the next \
                  run install the packages again.",
    },
    Key {
        path: "install.documentation",
        kind: Kind::Switch,
        example: "false",
        meaning: "Whether manuals and documentation are unpacked. Copyright files always are.",
    },
    Key {
        path: "install.prefetch",
        kind: Kind::Switch,
        example: "false",
        meaning: "Whether packages of later steps are fetched while an earlier one installs. They take no more than half of \
                  the disk that all installations leave free, and of the memory.",
    },
    Key {
        path: "install.lock-timeout",
        kind: Kind::Seconds,
        example: "1800",
        meaning: "How long another program (unattended-upgrades, a person's apt) may hold apt's and dpkg's locks. Who holds \
                  them is shown meanwhile; after that the run ends with `apt-locked`.",
    },
    Key {
        path: "install.script-timeout",
        kind: Kind::Seconds,
        example: "900",
        meaning: "How long an installation may show no sign of life: no line of apt, of dpkg or of a package's own script, and \
                  nothing fetched. Then its programs are ended, and the run fails with `exec-timeout` and the package's name.",
    },
    Key {
        path: "frameworks.python",
        kind: Kind::Frameworks,
        example: "[\"keras\", \"torch\"]",
        meaning: "Frameworks to install for the distribution's Python, in one virtual environment, in locked versions. Keras needs \
                  one of the others that it computes with: `torch`, `tensorflow` or `jax`. See [frameworks](frameworks.md).",
    },
    Key {
        path: "frameworks.path",
        kind: Kind::Directory,
        example: "\"/opt/ml\"",
        meaning: "The virtual environment's directory. With nothing here, it is below `/opt/gpu-bootstrap`, and named after the \
                  frameworks and what they are built for: `/opt/gpu-bootstrap/keras-torch-cuda12`.",
    },
    Key {
        path: "frameworks.device",
        kind: Kind::Choice(DEVICES),
        example: "\"cuda12\"",
        meaning: "What the wheels are built for; they bring CUDA's libraries themselves. `auto` is the toolkit's generation, where \
                  the driver, the GPUs and the locks have it, or else the other one. `cpu` uses no GPU.",
    },
    Key {
        path: "frameworks.index",
        kind: Kind::Url,
        example: "\"https://mirror.example/simple\"",
        meaning: "The package index, a mirror of PyPI; without it, pip's own, which is PyPI. Whatever it has, only wheels with the locked SHA-256 are installed. \
                  From a [bundle](bundle.md) wheels come without it.",
    },
    Key {
        path: "frameworks.wheels",
        kind: Kind::Directory,
        example: "\"/srv/wheels\"",
        meaning: "A directory of wheels on this machine, for installing without a network: no index is asked then.",
    },
    Key {
        path: "frameworks.training-check",
        kind: Kind::Switch,
        example: "false",
        meaning: "Whether each run lets each framework train a tiny model, on the GPU where there is one, and fails where the loss \
                  does not fall. It takes some seconds for each.",
    },
    Key {
        path: "distributed.nccl",
        kind: Kind::NcclVersion,
        example: "\"auto\"",
        meaning: "NCCL as packages (`libnccl2`, `libnccl-dev`), for programs that are built against it; `auto` is the newest that was \
                  built for the toolkit's CUDA generation. Frameworks' wheels bring their own. See [distributed](distributed.md).",
    },
    Key {
        path: "distributed.efa",
        kind: Kind::SwitchOrAuto,
        example: "\"auto\"",
        meaning: "Whether EFA is set up: libfabric and NCCL's plugin by AWS's installer, limits, and a look whether libfabric finds the \
                  devices. `auto` does it where the machine, or a type that an image is baked for, has EFA devices. `true` refuses a \
                  machine without.",
    },
    Key {
        path: "distributed.efa-url",
        kind: Kind::Url,
        example: "\"https://efa-installer.amazonaws.com/aws-efa-installer-1.50.0.tar.gz\"",
        meaning: "The installer of EFA to take. Without it, one whose SHA-256 is known here from AWS, where that knows the distribution.",
    },
    Key {
        path: "distributed.efa-sha256",
        kind: Kind::Sum,
        example: "\"9f2c0c52c2e7f2b5a6d7d3b1b8a4a2a5c6d7e8f90123456789abcdef01234567\"",
        meaning: "SHA-256 of that file, as AWS's user guide lists it (\"Verify the EFA installer using a checksum\").",
    },
    Key {
        path: "distributed.gdrcopy",
        kind: Kind::SummedDebs,
        example: "[{ url = \"https://example.com/gdrdrv-dkms_2.5.1-1_amd64.Ubuntu22_04.deb\", sha256 = \
                  \"1f2e0d4c7b6a59881f2e0d4c7b6a59881f2e0d4c7b6a59881f2e0d4c7b6a5988\" }]",
        meaning: "Packages of GDRCopy to install from these URLs (`gdrdrv-dkms`, `libgdrapi`); its kernel module `gdrdrv` is loaded. No \
                  apt repository has them.",
    },
    Key {
        path: "distributed.check",
        kind: Kind::Choice(COLLECTIVE_CHECKS),
        example: "\"torch\"",
        meaning: "What shows in each run that the GPUs of this machine add up each other's numbers: `all_reduce_perf` of NVIDIA's \
                  nccl-tests, which you install, or `torchrun` with the PyTorch of `[frameworks]`.",
    },
    Key {
        path: "distributed.check-command",
        kind: Kind::Words,
        example: "[\"/opt/nccl-tests/build/all_reduce_perf\", \"-b\", \"8\", \"-e\", \"1G\", \"-f\", \"2\", \"-g\", \"8\"]",
        meaning: "With `nccl-tests`: the program and its arguments. Without it, `all_reduce_perf` where it is usually put, over all GPUs. \
                  It runs as nobody, for ten minutes at most.",
    },
    Key {
        path: "distributed.check-bandwidth",
        kind: Kind::Bandwidth,
        example: "100",
        meaning: "GB/s of bus bandwidth that the check must reach; 0 for any.",
    },
    Key {
        path: "instance.ssh-keys",
        kind: Kind::Switch,
        example: "false",
        meaning: "On an image without cloud-init: whether a new instance gets its key pair's public key into \
                  `authorized_keys`, and host keys of its own. See [instance](instance.md).",
    },
    Key {
        path: "instance.hostname",
        kind: Kind::Switch,
        example: "false",
        meaning: "Whether a new instance gets the name that EC2 gives it.",
    },
    Key {
        path: "instance.grow-root",
        kind: Kind::Switch,
        example: "false",
        meaning: "Whether the root partition and its file system grow to the size of a new instance's disk.",
    },
    Key {
        path: "instance.user",
        kind: Kind::User,
        example: "\"ubuntu\"",
        meaning: "Who logs in with the key pair. `auto` is `ubuntu`, `admin` or `debian`, whichever the image has, or else \
                  the user with the number 1000. The image must have the user.",
    },
    Key {
        path: "instance.store",
        kind: Kind::Directory,
        example: "\"/mnt\"",
        meaning: "Where the instance store is mounted (NVMe devices of the host computer; several as one, by RAID 0). It is \
                  looked at by each run, and is empty after each stop and start. Only blank devices are formatted. With \
                  nothing here, it is left alone. See [instance](instance.md).",
    },
    Key {
        path: "instance.store-file-system",
        kind: Kind::Choice(FILE_SYSTEMS),
        example: "\"xfs\"",
        meaning: "What is made on a blank instance store.",
    },
    Key {
        path: "instance.user-data",
        kind: Kind::Choice(USER_DATA),
        example: "\"ignore\"",
        meaning: "What becomes of scripts and `#cloud-config` in user-data, on an image without cloud-init. See \
                  [user-data](user-data.md).",
    },
    Key {
        path: "policy.on-no-gpu",
        kind: Kind::Choice(ON_NO_GPU),
        example: "\"install\"",
        meaning: "What a machine without an NVIDIA GPU means: an error (exit code 3), nothing to do (exit \
                  code 0), or an image being baked for the instance types in `for`.",
    },
    Key {
        path: "policy.for",
        kind: Kind::InstanceTypes,
        example: "[\"g5.xlarge\", \"g6.xlarge\"]",
        meaning: "The instance types an image is baked for, with `on-no-gpu = \"install\"`.",
    },
    Key {
        path: "policy.reboot",
        kind: Kind::Choice(REBOOT),
        example: "\"never\"",
        meaning: "Whether the unit may reboot the machine when the work needs it. A run by hand never \
                  reboots; it exits 10.",
    },
    Key {
        path: "policy.hold-kernel",
        kind: Kind::Choice(HOLD_KERNEL),
        example: "\"always\"",
        meaning: "Whether the packages of the running kernel are held, so that no update brings another one. `auto` holds \
                  them where DKMS builds the driver's modules and no package of headers follows the kernel's updates. A held \
                  kernel gets no security updates; `apt-mark unhold` lets it go.",
    },
    Key {
        path: "policy.expect-gpus",
        kind: Kind::GpuCount,
        example: "8",
        meaning: "How many GPUs must work. `auto` is what the instance type has.",
    },
    Key {
        path: "report.cloudwatch.enabled",
        kind: Kind::SwitchOrAuto,
        example: "false",
        meaning: "Whether metrics and events are sent to CloudWatch. `auto` sends them when the instance has a role.",
    },
    Key {
        path: "report.cloudwatch.namespace",
        kind: Kind::Namespace,
        example: "\"Training/Gpu\"",
        meaning: "The namespace of the metrics.",
    },
    Key {
        path: "report.cloudwatch.instance-dimension",
        kind: Kind::Switch,
        example: "true",
        meaning: "Whether every metric exists for each instance, too, which is what CloudWatch charges for.",
    },
    Key {
        path: "report.cloudwatch.logs",
        kind: Kind::Switch,
        example: "false",
        meaning: "Whether the run's events are sent to CloudWatch Logs. Without them the steps' durations are sent as metrics of their own.",
    },
    Key {
        path: "report.cloudwatch.log-group",
        kind: Kind::LogGroup,
        example: "\"/training/gpu\"",
        meaning: "The log group. It is made where it does not exist; the stream is the instance's id.",
    },
    Key {
        path: "report.cloudwatch.retention-days",
        kind: Kind::Days,
        example: "90",
        meaning: "How long a log group that was made by a run keeps its events.",
    },
    Key {
        path: "report.cloudformation.stack",
        kind: Kind::Name,
        example: "\"training\"",
        meaning: "The stack whose resource waits for a signal of this instance (a `CreationPolicy`). No role is needed.",
    },
    Key {
        path: "report.cloudformation.resource",
        kind: Kind::Name,
        example: "\"Nodes\"",
        meaning: "The logical id of that resource.",
    },
    Key {
        path: "report.autoscaling.group",
        kind: Kind::Name,
        example: "\"training-nodes\"",
        meaning: "The Auto Scaling group whose launch hook waits for this instance.",
    },
    Key {
        path: "report.autoscaling.hook",
        kind: Kind::Name,
        example: "\"gpu-ready\"",
        meaning: "The name of that lifecycle hook.",
    },
    Key {
        path: "report.autoscaling.on-failure",
        kind: Kind::Choice(ON_FAILURE),
        example: "\"abandon\"",
        meaning: "What a failed run tells the hook. `abandon` terminates the instance, and its group launches another one.",
    },
    Key {
        path: "report.autoscaling.heartbeat",
        kind: Kind::Seconds,
        example: "600",
        meaning: "How often the hook's time-out is prolonged while the run works; less than that time-out.",
    },
    Key {
        path: "report.tag",
        kind: Kind::TagKey,
        example: "\"gpu-bootstrap\"",
        meaning: "The instance's tag that says `running`, and then how the run ended.",
    },
    Key {
        path: "report.sns",
        kind: Kind::Topic,
        example: "\"arn:aws:sns:us-east-1:123456789012:gpu\"",
        meaning: "The SNS topic that is told how the run ended.",
    },
    Key {
        path: "report.event-bus",
        kind: Kind::Name,
        example: "\"default\"",
        meaning: "The EventBridge bus that is told how the run ended.",
    },
    Key {
        path: "report.webhook",
        kind: Kind::Webhook,
        example: "\"https://hooks.example.com/gpu\"",
        meaning: "The URL that is told how the run ended, by a POST of JSON.",
    },
    Key {
        path: "report.aws.fips",
        kind: Kind::Switch,
        example: "true",
        meaning: "Whether AWS is reached at its FIPS endpoints (`AWS_USE_FIPS_ENDPOINT` does the same).",
    },
    Key {
        path: "report.aws.dual-stack",
        kind: Kind::Switch,
        example: "true",
        meaning: "Whether AWS is reached at its endpoints with IPv6 (`AWS_USE_DUALSTACK_ENDPOINT` does the same).",
    },
];

/// The key called `path`.
pub fn find(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|k| k.path == path)
}

/// Whether `path` is a table that holds keys.
pub fn is_table(path: &str) -> bool {
    KEYS.iter().any(|k| k.path.strip_prefix(path).is_some_and(|rest| rest.starts_with('.')))
}

/// The name that was probably meant by the unknown `path`: a neighbour in the same table that differs by a
/// few letters, or a key of that very name in another table.
pub fn suggest(path: &str) -> Option<&'static str> {
    let (table, name) = path.rsplit_once('.').unwrap_or(("", path));
    let neighbours = KEYS.iter().filter_map(|k| child_of(k.path, table));
    let near = neighbours
        .map(|candidate| (distance(last(candidate), name), candidate))
        .min()
        .filter(|(d, candidate)| *d <= 1 + last(candidate).len() / 4)
        .map(|(_, candidate)| candidate);
    near.or_else(|| KEYS.iter().map(|k| k.path).find(|p| last(p) == name))
}

/// The nearest of `values` to what was written, if one is near.
pub fn nearest<'a>(written: &str, values: &[&'a str]) -> Option<&'a str> {
    let (d, value) = values.iter().map(|v| (distance(v, written), *v)).min()?;
    (d <= 1 + value.len() / 4).then_some(value)
}

/// The part of `path` that is a key or table directly below `table` ("" is the top).
fn child_of(path: &'static str, table: &str) -> Option<&'static str> {
    let rest = if table.is_empty() { path } else { path.strip_prefix(table)?.strip_prefix('.')? };
    let end = path.len() - rest.len() + rest.find('.').unwrap_or(rest.len());
    Some(&path[..end])
}

/// The last component of a dotted name.
pub fn last(path: &str) -> &str {
    path.rsplit_once('.').map_or(path, |(_, name)| name)
}

/// `"a", "b" or "c"`.
pub fn one_of(values: &[&str]) -> String {
    let quoted: Vec<_> = values.iter().map(|v| format!("\"{v}\"")).collect();
    match quoted.split_last() {
        Some((only, [])) => only.clone(),
        Some((end, rest)) => format!("{} or {end}", rest.join(", ")),
        None => String::new(),
    }
}

/// Levenshtein distance in characters.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let substitute = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = substitute.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_counts_edits() {
        for (a, b, d) in [("", "", 0), ("", "abc", 3), ("flavor", "flavour", 1), ("kitten", "sitting", 3)] {
            assert_eq!(distance(a, b), d, "{a} {b}");
            assert_eq!(distance(b, a), d, "{b} {a}");
        }
    }

    #[test]
    fn suggestions_are_near_or_of_the_same_name() {
        assert_eq!(suggest("driver.flavor"), Some("driver.flavour"));
        assert_eq!(suggest("policy.on_no_gpu"), Some("policy.on-no-gpu"));
        assert_eq!(suggest("divers"), Some("driver"));
        assert_eq!(suggest("report.cloud-watch"), Some("report.cloudwatch"));
        assert_eq!(suggest("report.cloudwatch.namespaces"), Some("report.cloudwatch.namespace"));
        assert_eq!(suggest("toolkit"), Some("cuda.toolkit"), "right name, wrong table");
        assert_eq!(suggest("driver.toolkit"), Some("cuda.toolkit"));
        assert_eq!(suggest("kubernetes"), None);
        assert_eq!(suggest("driver.x"), None);
    }

    #[test]
    fn the_table_has_exactly_the_fields_of_config() {
        let defaults = toml::Table::try_from(super::super::Config::default()).unwrap();
        let mut fields = Vec::new();
        collect("", &defaults, &mut fields);
        fields.sort();
        let mut keys: Vec<_> = KEYS.iter().map(|k| k.path.to_owned()).collect();
        keys.sort();
        assert_eq!(fields, keys);
    }

    fn collect(prefix: &str, table: &toml::Table, into: &mut Vec<String>) {
        for (name, value) in table {
            match value {
                toml::Value::Table(inner) => collect(&format!("{prefix}{name}."), inner, into),
                _ => into.push(format!("{prefix}{name}")),
            }
        }
    }
}
