//! Commands and flags. `gpu-bootstrap --resume` works without a subcommand: the flags of `run` are the flags
//! of the program itself.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand};
use nix::sys::signal::{SigSet, Signal};

use crate::analyze;
use crate::boot::{self, Inputs, RunOptions};
use crate::bundle;
use crate::catalog::Choice;
use crate::catalog_query::{self, CatalogArgs};
use crate::config;
use crate::device_query::checks::Verdict;
use crate::device_query::libraries::Promised;
use crate::device_query::{self, Compute, ExpectedGpus};
use crate::engine::change;
use crate::error::{Code, Error, Result, exit};
use crate::facts;
use crate::host::Host;
use crate::host::files::Files;
use crate::install::stand_in;
use crate::instance;
use crate::launch_line::{self, LaunchLineArgs};
use crate::page;
use crate::plan;
use crate::rehearse;
use crate::report::remote::deliver;
use crate::report::{log, streams};
use crate::status;
use crate::uninstall;
use crate::user_data::Included;
use crate::{user_data_run, user_data_stub};

/// Turns a bare Ubuntu or Debian instance into one where CUDA provably works.
#[derive(Debug, Parser)]
#[command(
    name = "gpu-bootstrap",
    version,
    args_conflicts_with_subcommands = true,
    disable_help_subcommand = true
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,

    #[command(flatten)]
    run: RunArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make the machine as wanted (the default).
    Run(RunArgs),
    /// Show what a run would do: the check's answer and reason for every action. Changes nothing.
    Plan(PlanArgs),
    /// Show how the last run went, or how the current one is going.
    Status(StatusArgs),
    /// Show where the time of the last installation went, and what would make it faster.
    Analyze(AnalyzeArgs),
    /// Write a page about the last run: verdict, time, GPUs, changes, facts.
    Report(ReportArgs),
    /// Print every fact about this machine, with its source.
    Detect(DetectArgs),
    /// Enumerate, compute on and judge every GPU; exits 5 where one does not work.
    DeviceQuery(DeviceQueryArgs),
    /// Show which stack fits a machine, and why nothing else does: this one, or one that is not here.
    Catalog(CatalogArgs),
    /// Print the line by which another launcher (torchrun, Slurm, AWS's cluster tool, Ray) starts training on machines like this one.
    LaunchLine(LaunchLineArgs),
    /// Work with configuration files.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Work with EC2 user-data.
    #[command(subcommand)]
    UserData(UserDataCommand),
    /// Make and verify bundles: every artefact of a plan, for machines without the internet.
    #[command(subcommand)]
    Bundle(bundle::cli::Command),
    /// Take away what is this instance's, before an image is captured of the machine.
    Seal(SealArgs),
    /// Take back what runs have added to this machine: packages, files, services; what was changed since stays.
    Uninstall(UninstallArgs),
    /// Read every file of the installed packages once, so that a new volume has fetched its blocks before they are needed.
    Prewarm(PrewarmArgs),
    /// Run on a throw-away copy of this machine, with a simulated GPU, metadata service and repository.
    Rehearse(rehearse::Options),
    #[command(hide = true)]
    RehearseInside(rehearse::InsideOptions),
    /// The process beside a run that delivers its reports.
    #[command(hide = true)]
    Deliver,
    /// The early part of a boot without cloud-init: keys, name, size of the root. Started by its units.
    #[command(hide = true)]
    Early(EarlyArgs),
}

/// Where to look, shared by the commands that look.
#[derive(Args, Debug)]
pub(crate) struct InputArgs {
    /// The machine's root, or a directory treated as if chrooted into it.
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,

    /// A configuration file that overrides all other layers.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// A directory with catalog files that take the place of the embedded ones.
    #[arg(long, value_name = "DIR")]
    catalog: Option<PathBuf>,

    /// Do not ask the instance metadata service.
    #[arg(long)]
    no_imds: bool,

    /// How long the instance metadata service may take, in seconds [default: 5, with --boot 300].
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    imds_timeout: Option<u64>,

    /// More log lines on standard error (twice for debugging).
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
}

#[derive(Args, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a command-line flag of its own")]
struct RunArgs {
    #[command(flatten)]
    inputs: InputArgs,

    /// Go on with the run that an interruption, a failure or a reboot ended.
    #[arg(long)]
    resume: bool,

    /// Accept a plan that takes back or downgrades what an earlier run finished.
    #[arg(long)]
    replan: bool,

    /// Show the plan and change nothing (like `plan`).
    #[arg(long)]
    dry_run: bool,

    /// Never reboot; exit 10 where a reboot is needed.
    #[arg(long)]
    no_reboot: bool,

    /// Started by the systemd unit: wait longer for the metadata service, and write to the console.
    #[arg(long)]
    boot: bool,

    /// Exit 194 instead of 10 where a reboot is needed (Systems Manager reboots on it).
    #[arg(long)]
    ssm: bool,

    /// Print nothing but errors.
    #[arg(short, long)]
    quiet: bool,

    /// Write the files by which Packer, Ansible and others wait for cloud-init, where it is not installed.
    #[arg(long)]
    cloud_init_compat: bool,
}

#[derive(Args, Debug)]
struct EarlyArgs {
    #[command(flatten)]
    inputs: InputArgs,

    /// Make the RSA host key, which the first call leaves out because it takes so long.
    #[arg(long)]
    rsa: bool,
}

#[derive(Args, Debug)]
struct PlanArgs {
    #[command(flatten)]
    inputs: InputArgs,

    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
struct SealArgs {
    /// The machine's root, or a directory treated as if chrooted into it.
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,

    /// Say what would go, and change nothing.
    #[arg(long)]
    dry_run: bool,

    /// Remove the history of users' shells, too.
    #[arg(long)]
    shell_history: bool,

    /// Print a JSON document.
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a command-line flag of its own")]
struct UninstallArgs {
    /// The machine's root, or a directory treated as if chrooted into it.
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,

    /// Say what would go, and change nothing.
    #[arg(long)]
    dry_run: bool,

    /// Ask nothing.
    #[arg(short, long)]
    yes: bool,

    /// Remove downloads, results and the rest of the agent's own state, too.
    #[arg(long)]
    purge: bool,

    /// Print the plan as a JSON document.
    #[arg(long)]
    json: bool,
}

impl From<UninstallArgs> for uninstall::Options {
    fn from(args: UninstallArgs) -> Self {
        let UninstallArgs { root, dry_run, yes, purge, json } = args;
        Self { root, dry_run, yes, purge, json }
    }
}

#[derive(Args, Debug)]
struct PrewarmArgs {
    /// The machine's root, or a directory treated as if chrooted into it.
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,

    /// How many files are read at the same time.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u8).range(1..))]
    jobs: u8,
}

#[derive(Args, Debug)]
#[command(group = clap::ArgGroup::new("until_the_end").args(["wait", "watch"]).multiple(true))]
struct StatusArgs {
    /// The machine's root.
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,

    /// Wait until the run is over, and exit with its exit code.
    #[arg(long)]
    wait: bool,

    /// Show what changes until the run is over, and exit with its exit code.
    #[arg(long, conflicts_with = "json")]
    watch: bool,

    /// Give up waiting after so many seconds.
    #[arg(long, value_name = "SECONDS", requires = "until_the_end")]
    timeout: Option<u64>,

    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl From<StatusArgs> for status::Options {
    fn from(args: StatusArgs) -> Self {
        let StatusArgs { root, wait, watch, timeout, json } = args;
        Self { root, wait, watch, timeout: timeout.map(Duration::from_secs), json }
    }
}

#[derive(Args, Debug)]
struct AnalyzeArgs {
    /// The machine's root.
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,

    /// The steps by how long they took, the longest first, each with its longest parts.
    #[arg(long)]
    blame: bool,

    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
struct ReportArgs {
    #[command(flatten)]
    inputs: InputArgs,

    /// Print one HTML page, which needs no network (`report --html >report.html`).
    #[arg(long, required = true)]
    html: bool,
}

#[derive(Args, Debug)]
struct DetectArgs {
    #[command(flatten)]
    inputs: InputArgs,

    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
struct DeviceQueryArgs {
    /// The machine's root, or a directory treated as if chrooted into it.
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,

    /// Print one JSON document: every field with its unit and its source.
    #[arg(long, conflicts_with = "text")]
    json: bool,

    /// Print the text of NVIDIA's deviceQuery (the default).
    #[arg(long)]
    text: bool,

    /// How many GPUs there must be [default: what the instance type has, else what is on the PCI bus].
    #[arg(long, value_name = "N")]
    expect_gpus: Option<u32>,

    /// When to run a kernel on a GPU: `auto` leaves a GPU alone that another process computes on.
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = Compute::Auto)]
    compute: Compute,

    /// Measure copies between host and device and between devices, too.
    #[arg(long)]
    bandwidth: bool,

    /// How long the driver may take for one answer, in seconds [default: 60 to 120].
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    deadline: Option<Duration>,

    /// More log lines on standard error (twice for debugging).
    #[arg(short, long, action = clap::ArgAction::Count)]
    verbose: u8,
}

/// A time span in seconds, with a fraction or without.
fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    let span = Duration::try_from_secs_f64(seconds).map_err(|e| e.to_string())?;
    if span.is_zero() { Err("must be more than 0".into()) } else { Ok(span) }
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Say whether a configuration file is valid, and what it sets.
    Check {
        /// The file.
        file: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
enum UserDataCommand {
    /// Act on user-data where cloud-init does not: run scripts, apply #cloud-config. Started by its unit at every boot.
    Run(UserDataRunArgs),
    /// Print the shell stub that a launch template carries.
    Render(user_data_stub::RenderArgs),
    /// Say what the agent makes of a user-data file, and what becomes of each part with cloud-init and without.
    Check {
        /// The file.
        file: PathBuf,
        /// Print a JSON document.
        #[arg(long)]
        json: bool,
        /// The machine's root: what #include names is shown opened as far as this machine has fetched it.
        #[arg(long, value_name = "DIR", default_value = "/")]
        root: PathBuf,
    },
}

#[derive(Args, Debug)]
struct UserDataRunArgs {
    #[command(flatten)]
    inputs: InputArgs,

    /// Act on this file in place of the instance's user-data (off EC2, the only way).
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,

    /// Act on parts that came after this instance was set up, too.
    #[arg(long)]
    changed: bool,

    /// Do once more what was done or failed before.
    #[arg(long)]
    again: bool,

    /// Started by a unit: wait longer for the metadata service.
    #[arg(long)]
    boot: bool,

    /// Only what comes before the GPUs are set up (`config`) or after it (`final`) [default: both].
    #[arg(long, value_name = "STAGE", value_enum)]
    stage: Option<StageName>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum StageName {
    Config,
    Final,
}

impl From<StageName> for user_data_run::Stage {
    fn from(name: StageName) -> Self {
        match name {
            StageName::Config => Self::Config,
            StageName::Final => Self::Final,
        }
    }
}

/// Every command and flag, for what is made of them: manual page and completions (`packaging/manual.rs`).
pub fn definition() -> clap::Command {
    Cli::command()
}

/// Parses the command line, does what it says, and returns the process's exit code.
pub fn main() -> u8 {
    stand_in::play_if_called();
    // A file beyond the limit of whoever started us (RLIMIT_FSIZE) is an error with a sentence then, not a signal that
    // ends us. Programs that we start get an empty mask.
    let _ = SigSet::from(Signal::SIGXFSZ).thread_block(); // fails for no signal that exists
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            let _ = e.print(); // a closed terminal
            return if e.use_stderr() { exit::USAGE } else { exit::CONVERGED };
        }
    };
    match dispatch(cli) {
        Ok(code) => code,
        Err(error) => {
            streams::err(&boot::explain(&error));
            error.code().exit_code()
        }
    }
}

fn dispatch(cli: Cli) -> Result<u8> {
    let command = cli.command.unwrap_or(Command::Run(cli.run));
    command.root().map_or(Ok(()), require_directory)?;
    match command {
        Command::Run(args) if args.dry_run => show_plan(&args.inputs, false),
        Command::Run(args) => {
            log::start(args.inputs.verbose);
            runtime()?.block_on(async { Ok(Box::pin(boot::run(&args.options())).await) })
        }
        Command::Plan(args) => show_plan(&args.inputs, args.json),
        Command::Status(args) => status::show(&args.into()),
        Command::Analyze(args) => {
            let order = if args.blame { analyze::Order::Blame } else { analyze::Order::Run };
            analyze::show(&Files::new(args.root), order, args.json)
        }
        Command::Report(args) => report(&args.inputs),
        Command::Detect(args) => detect(&args.inputs, args.json),
        Command::DeviceQuery(args) => query_devices(&args),
        Command::Catalog(args) => runtime()?.block_on(catalog_query::run(&args)),
        Command::LaunchLine(args) => runtime()?.block_on(launch_line::run(&args)),
        Command::Config(ConfigCommand::Check { file }) => {
            streams::out(&config::check(&file)?)?;
            Ok(exit::CONVERGED)
        }
        Command::UserData(UserDataCommand::Run(args)) => {
            log::start(args.inputs.verbose);
            let options = user_data_run::Options {
                inputs: args.inputs.inputs(args.boot),
                file: args.file,
                changed: args.changed,
                again: args.again,
                stage: args.stage.map(Into::into),
            };
            runtime()?.block_on(user_data_run::run(&options))
        }
        Command::UserData(UserDataCommand::Render(args)) => {
            streams::out(&user_data_stub::render(&args)?)?;
            Ok(exit::CONVERGED)
        }
        Command::UserData(UserDataCommand::Check { file, json: false, root }) => {
            let included = Included::for_file(&Files::new(root), &file)?;
            let told = config::user_data::check(&file, &included)?;
            let lines = user_data_run::preview(&config::user_data::load(&file)?, &included);
            let lines = lines.iter().flat_map(|line| ["  ", line.as_str(), "\n"]).collect::<String>();
            let title =
                if lines.is_empty() { "" } else { "\nOn an image without cloud-init, in this order:\n" };
            streams::out(&streams::printable(&format!("{told}{title}{lines}")))?;
            Ok(exit::CONVERGED)
        }
        Command::UserData(UserDataCommand::Check { file, json: true, root }) => {
            let included = Included::for_file(&Files::new(root), &file)?;
            let (document, problem) = config::user_data::check_json(&file, &included)?;
            streams::out(&document)?;
            problem.map_or(Ok(exit::CONVERGED), Err)
        }
        Command::Bundle(command) => {
            log::start(match &command {
                bundle::cli::Command::Create(args) => args.inputs.verbose,
                bundle::cli::Command::Verify(_) => 0,
            });
            runtime()?.block_on(Box::pin(bundle::cli::main(command)))
        }
        Command::Rehearse(options) => rehearse::run(&options),
        Command::RehearseInside(options) => rehearse::inside(&options),
        Command::Early(args) => {
            log::start(args.inputs.verbose);
            let mut inputs = args.inputs.inputs(true);
            if args.inputs.imds_timeout.is_none() {
                inputs.metadata_deadline = inputs.metadata_deadline.map(|_| instance::METADATA_DEADLINE);
            }
            let options = instance::Options { inputs, rsa: args.rsa };
            runtime()?.block_on(instance::early(&options))
        }
        Command::Seal(args) => {
            log::start(0);
            let options = instance::seal::Options {
                root: args.root,
                dry_run: args.dry_run,
                json: args.json,
                shell_history: args.shell_history,
            };
            runtime()?.block_on(instance::seal::seal(&options))
        }
        Command::Uninstall(args) => {
            log::start(0);
            runtime()?.block_on(Box::pin(uninstall::uninstall(&args.into())))
        }
        Command::Prewarm(args) => {
            log::start(0);
            instance::prewarm::prewarm(&instance::prewarm::Options {
                root: args.root,
                jobs: args.jobs.into(),
            })
        }
        Command::Deliver => runtime()?.block_on(deliver::main()).map(|()| exit::CONVERGED),
    }
}

impl Command {
    /// The root directory, of the commands that have one.
    fn root(&self) -> Option<&Path> {
        match self {
            Self::Run(args) => Some(&args.inputs.root),
            Self::Plan(args) => Some(&args.inputs.root),
            Self::Report(args) => Some(&args.inputs.root),
            Self::Detect(args) => Some(&args.inputs.root),
            Self::Early(args) => Some(&args.inputs.root),
            Self::UserData(UserDataCommand::Run(args)) => Some(&args.inputs.root),
            Self::Catalog(args) => Some(&args.root),
            Self::LaunchLine(args) => Some(&args.root),
            Self::Status(args) => Some(&args.root),
            Self::Seal(args) => Some(&args.root),
            Self::Uninstall(args) => Some(&args.root),
            Self::Prewarm(args) => Some(&args.root),
            _ => None,
        }
    }
}

/// A misspelt `--root` must not become a new tree with a lock and a status in it.
fn require_directory(root: &Path) -> Result<()> {
    let refused = |why: String| {
        Err(Error::new(Code::Usage, format!("--root {} {why}", root.display()))
            .with_hint("name the directory that holds the machine's /etc, /usr and /var"))
    };
    match std::fs::metadata(root) {
        Ok(meta) if meta.is_dir() => Ok(()),
        Ok(_) => refused("is not a directory".into()),
        Err(e) => refused(format!("cannot be used: {e}")),
    }
}

impl InputArgs {
    pub(crate) fn inputs(&self, boot: bool) -> Inputs {
        let deadline = if boot { boot::METADATA_DEADLINE_AT_BOOT } else { boot::METADATA_DEADLINE_BY_HAND };
        let deadline = self.imds_timeout.map_or(deadline, Duration::from_secs);
        Inputs {
            root: self.root.clone(),
            config: self.config.clone(),
            catalog: self.catalog.clone(),
            metadata_deadline: (!self.no_imds).then_some(deadline),
            unit: boot,
        }
    }
}

impl RunArgs {
    fn options(&self) -> RunOptions {
        RunOptions {
            inputs: self.inputs.inputs(self.boot),
            resume: self.resume,
            replan: self.replan,
            boot: self.boot,
            reboot: self.boot && !self.no_reboot,
            ssm: self.ssm,
            quiet: self.quiet,
            cloud_init_compat: self.cloud_init_compat,
        }
    }
}

/// One thread is enough: the work is waiting for the network and for child processes.
fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::new(Code::Io, "cannot start the event loop").because(e))
}

fn show_plan(args: &InputArgs, json: bool) -> Result<u8> {
    log::start(args.verbose);
    let inputs = args.inputs(false);
    let host = Host::new(inputs.root.clone());
    runtime()?.block_on(async {
        let metadata = boot::metadata_client(&inputs)?;
        let prepared = boot::prepare(&host, &inputs, metadata.as_ref()).await?;
        let stack = match &prepared.choice {
            Choice::Install(stack) => stack,
            Choice::Nothing { why } => {
                streams::out(&format!("nothing to do: {why}\n"))?;
                return Ok(exit::CONVERGED);
            }
        };
        let custom = plan::custom::read(&host.files)?;
        let plan = plan::build(&prepared.facts, &prepared.config, stack, &custom)?;
        let choices = boot::choices(&host.files, stack, prepared.facts.identity.instance_id())?;
        let shown = plan::show::look(&plan, &choices, &prepared.layers, &host).await;
        streams::out(&if json { streams::json(&shown)? } else { shown.text() })?;
        Ok(exit::CONVERGED)
    })
}

fn detect(args: &InputArgs, json: bool) -> Result<u8> {
    log::start(args.verbose);
    let inputs = args.inputs(false);
    let host = Host::new(inputs.root.clone());
    runtime()?.block_on(async {
        let metadata = boot::metadata_client(&inputs)?;
        let facts = facts::gather_from_every_source(&host, metadata.as_ref()).await?;
        streams::out(&if json {
            streams::json(&facts::show::json(&facts))?
        } else {
            facts::show::text(&facts)
        })?;
        Ok(exit::CONVERGED)
    })
}

/// How long a driver may take to answer for the page: it has been initialised before, and whoever waits for the page sees
/// nothing meanwhile.
const PAGE_LIMIT: Duration = Duration::from_mins(1);

fn report(args: &InputArgs) -> Result<u8> {
    log::start(args.verbose);
    let inputs = args.inputs(false);
    let host = Host::new(inputs.root.clone());
    let choice = change::earlier(&host.files)?;
    let options = device_query::Options {
        promised: choice.as_ref().map(Promised::of).unwrap_or_default(),
        deadline: Some(PAGE_LIMIT),
        ..device_query::Options::default()
    };
    runtime()?.block_on(async {
        let metadata = boot::metadata_client(&inputs)?;
        let content = page::gather(&host, metadata.as_ref(), options).await?;
        streams::out(&page::render(&content))?;
        Ok(exit::CONVERGED)
    })
}

/// deviceQuery's text on standard output, measurements and findings on standard error, or everything as JSON.
fn query_devices(args: &DeviceQueryArgs) -> Result<u8> {
    log::start(args.verbose);
    let host = Host::new(args.root.clone());
    let choice = change::earlier(&host.files)?;
    let options = device_query::Options {
        expect_gpus: args.expect_gpus.map(|number| ExpectedGpus {
            number,
            or_more: false,
            by: "--expect-gpus",
        }),
        promised: choice.as_ref().map(Promised::of).unwrap_or_default(),
        compute: args.compute,
        bandwidth: args.bandwidth,
        deadline: args.deadline,
    };
    let examination = runtime()?.block_on(device_query::examine(&host, options))?;
    if args.json {
        streams::out(&streams::json(&examination.json())?)?;
    } else {
        streams::out(&examination.text())?;
        for line in examination.measurements().lines() {
            streams::err(line);
        }
        for check in examination.checks.iter().filter(|c| c.verdict != Verdict::Pass) {
            let finding = format!("{} {}: {}", check.verdict.name(), check.check, check.evidence);
            streams::err(&format!("{finding}\n  {}", check.advice));
        }
    }
    Ok(if examination.passes() { exit::CONVERGED } else { exit::UNHEALTHY })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn units_start_what_there_is() {
        for unit in [
            include_str!("../packaging/gpu-bootstrap.service"),
            include_str!("../packaging/gpu-bootstrap-early.service"),
            include_str!("../packaging/gpu-bootstrap-rsa.service"),
            include_str!("../packaging/gpu-bootstrap-cloud-config.service"),
            include_str!("../packaging/gpu-bootstrap-user-data.service"),
        ] {
            let line = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
            Cli::try_parse_from(line.split(' ')).unwrap_or_else(|e| panic!("{line}: {e}"));
        }
    }

    #[test]
    fn resume_works_without_a_subcommand() {
        let cli = Cli::try_parse_from(["gpu-bootstrap", "--resume"]).unwrap();
        assert!(cli.command.is_none() && cli.run.resume);
    }
}
