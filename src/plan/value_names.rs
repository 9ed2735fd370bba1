// The closed list of values that a step file may use as `${name}`. build.rs includes this file, too, and
// refuses to build when a step file uses a name that is not here.
/// Every value name.
pub const VALUE_NAMES: &[&str] = &[
    // The repository that packages come from (source = "nvidia" or a mirror)
    "repository.url",            // text: base URL with a trailing slash
    "repository.fingerprint",    // text: 40 hexadecimal digits
    "repository.key",            // text: the ASCII-armoured public key
    "repository.label",          // text: Label of the Release file
    "repository.date-floor",     // text: oldest acceptable date of the index
    "repository.may-supply",     // list: patterns of package names that it may supply at all
    "repository.always-allow",   // list: patterns pinned positive besides the closure
    "repository.neighbours",     // list: base URLs of other repositories of the plan
    "repository.packages",       // list: every package that any step asks this repository for
    "repository.sources-file",   // text: where apt's sources name it
    "bundle.location",           // text: a directory, or s3://bucket/prefix
    "bundle.sha256",             // text: of its manifest
    "repository.architecture",   // text: dpkg's name of the machine's architecture
    "distro.components",         // list: components of the distribution that must be enabled
    // The driver
    "driver.branch",             // text
    "driver.packages",           // list
    "driver.without",            // list: packages that would keep another driver in use
    "driver.kernel-packages",    // list: headers and the like, which go with the kernel
    "driver.running-kernel-packages", // list: the same for exactly the running kernel
    "driver.kernel-image",       // list: the newest kernel, for when the running one's packages are gone
    "driver.pinned",             // list: patterns of packages that must have driver.pinned-version
    "driver.pinned-version",     // text: pattern of that version, "" when the names tell branches apart
    "driver.modules",            // list: kernel modules to load, in order
    "driver.parameters",         // list: `name=value` that the driver's module is loaded with
    "driver.companions",         // list: packages that must have exactly the driver's version
    "driver.held-kernel",        // text: the running kernel, where its packages are to be held
    "driver.unattended-upgrades", // text: what keeps unattended-upgrades from the driver
    "fabric-manager.packages",   // list
    "imex.packages",             // list
    // Toolkit and cuDNN
    "cuda.version",              // text: versions of the toolkits, joined by ", "
    "cuda.packages",             // list
    "cuda.home",                 // text: directory of the default toolkit
    "cuda.library-dirs",         // list: directories for the dynamic linker, empty where the toolkit lies in /usr
    "cuda.profile",              // text: the script for /etc/profile.d
    "cudnn.packages",            // list
    "cudnn.debs",                // list of { url, sha256 }, or of { url, index }
    // Frameworks
    "frameworks.names",          // text: their names, joined by ", "
    "frameworks.device",         // text: what the wheels are built for: cuda12, cuda13, cpu
    "frameworks.wanted",         // list: their names
    "frameworks.path",           // text: directory of the virtual environment
    "frameworks.python",         // text: version of the distribution's Python
    "frameworks.requirements",   // text: the lock, as a pip requirements file
    "frameworks.index",          // text: URL of the package index
    "frameworks.wheels",         // text: directory of wheels that takes its place, "" for none
    "frameworks.gpu",            // whether they must train on a GPU
    // Training on several GPUs and machines
    "nccl.packages",             // list
    "efa.url",                   // text: EFA's installer
    "efa.sha256",                // text: its sum
    "efa.devices",               // number: EFA devices on the bus
    "gdrcopy.debs",              // list of { url, sha256 }
    "distributed.profile",       // text: the script for /etc/profile.d
    "distributed.environment",   // text: the file for EnvironmentFile=
    "distributed.limits",        // text: the file for /etc/security/limits.d
    "collective.command",        // list: a program of nccl-tests and its arguments, possibly none
    "collective.environment",    // text: directory of the virtual environment with PyTorch, "" for nccl-tests
    "collective.gpus",           // number: GPUs that must exchange data
    "collective.bandwidth",      // number: GB/s that they must reach, 0 for any
    "collective.gpu",            // whether PyTorch must use them
    // The machine
    "instance.id",               // text: the EC2 instance id, "local" elsewhere
    "instance.type",             // text, on EC2 only
    "instance.region",           // text, on EC2 only
    "apt-mirror.url",            // text: Ubuntu's archive in the instance's region
    "apt-mirror.replaces",       // list: the addresses it takes the place of
    "instance-store.path",       // text: where it is mounted
    "instance-store.file-system", // text: what is made on blank devices
    "instance-store.packages",   // list: what the programs for it are in
    "instance-store.unit",       // text: name of the unit that mounts it
    "instance-store.unit-file",  // text: the unit
    // Containers and Kubernetes
    "containers.repository",     // text: base URL of NVIDIA's container toolkit
    "containers.architecture",   // text: dpkg's name of the machine's architecture
    "containers.key",            // text: the ASCII-armoured public key of that repository
    "containers.family",         // text: the GPUs' architecture, "" where there are several
    "containers.memory",         // number: MiB of a GPU by the instance type, 0 where the catalog does not know it
    "containers.cuda",           // text: version of the default toolkit, "" for none
    // A command's own
    "output",                    // text: where the command makes what it `creates`; filled in when it runs
    // The check at the end
    "expect.gpus",               // number: 0 when unknown
    "expect.libraries",          // list: sonames that ldconfig must list
    "expect.toolkits",           // list: versions of the toolkits, the default one first
    "expect.cudnn",              // text: cuDNN's version, "auto" where the repository chooses, "none"
];

/// Those that the administrator's own steps may use: what stays as it is. `docs/custom-steps.md` lists them (a test looks).
#[allow(dead_code, reason = "build.rs, which includes this file, does not use it")]
pub const CUSTOM_VALUE_NAMES: &[&str] = &[
    "cuda.home",
    "cuda.library-dirs",
    "cuda.version",
    "driver.branch",
    "expect.gpus",
    "instance.id",
    "instance.region",
    "instance.type",
    "output",
];
