//! A full run on a throw-away copy of this machine. No code outside this module knows that it is rehearsing.
//!
//! Three processes, all of them this binary:
//! - the *supervisor* ([`run`]), in the host's namespaces: checks what the rehearsal needs, makes the throw-away
//!   directory, waits, and removes the directory whatever happened;
//! - the *sandbox* ([`sandbox`]), in fresh mount, network, host name and IPC namespaces: mounts the copy, serves
//!   metadata and packages, and starts commands inside;
//! - *init* ([`init`]), the first process of the inner process namespace.
//!
//! The agent inside is started as anybody would start it, with `--catalog` naming the repository's key and address.

mod deb;
pub mod driver;
mod fault;
mod filesystem;
mod http;
mod init;
mod metadata;
mod network;
mod openpgp;
mod packages;
mod pci;
mod plan;
mod prerequisites;
mod programs;
mod repository;
mod sandbox;
mod spawner;
mod supervisor;
mod verdict;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::catalog::Catalog;
use crate::error::{Code, Error, Result};

/// Flags of `rehearse`.
#[derive(clap::Args, Debug)]
pub struct Options {
    /// The EC2 instance type to simulate.
    #[arg(long, value_name = "TYPE", default_value = "g4dn.xlarge")]
    instance_type: String,

    /// A configuration file; it becomes the simulated instance's user-data.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Keep status.json, result.json and receipt.json in this directory.
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,

    /// Print the plan and the result as one JSON document; everything else goes to standard error.
    #[arg(long)]
    json: bool,

    /// Make the simulated driver faulty, for example bitflip=0 or fail=cuInit=802 (docs/device-query.md has all); may
    /// be given several times.
    #[arg(long = "fault", value_name = "SETTING", value_parser = fault::parse)]
    faults: Vec<String>,

    /// Run this command inside instead of the agent, to look around.
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Arguments of the hidden inner command: which part to play, and what for.
#[derive(clap::Args, Debug)]
pub struct InsideOptions {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    args: Vec<String>,
}

/// What the supervisor tells the sandbox, as JSON on its standard input.
#[derive(Debug, Serialize, Deserialize)]
struct Job {
    /// Whose child the sandbox is; when that process is gone, so is the reason for the sandbox.
    supervisor: i32,
    /// The throw-away directory.
    dir: PathBuf,
    instance_type: String,
    /// The configuration, as user-data without its first line.
    config: String,
    /// Settings of the simulated driver that make it faulty.
    faults: Vec<String>,
    /// A directory of the host; absolute.
    keep: Option<PathBuf>,
    json: bool,
    command: Vec<String>,
}

/// Rehearses: returns the exit code of the run inside. Call it from the main thread, outside any event loop.
pub fn run(options: &Options) -> Result<u8> {
    let instance_type = Catalog::embedded()?.instance_type(&options.instance_type);
    fault::check(&options.faults, &options.instance_type, instance_type.as_ref())?;
    prerequisites::check()?;
    if !nix::unistd::geteuid().is_root() {
        return prerequisites::ask_sudo();
    }
    supervisor::run(options)
}

/// The parts that are played by processes of their own.
pub fn inside(options: &InsideOptions) -> Result<u8> {
    let (part, args) = options.args.split_first().map_or(("", &[][..]), |(part, args)| (part.as_str(), args));
    match (part, args) {
        ("sandbox", []) => sandbox::run(),
        ("init", [dir]) => init::run(dir.as_ref()),
        ("enter", [init, command @ ..]) if !command.is_empty() => sandbox::enter(init, command),
        ("packages", []) => plan::print_wanted(),
        ("modprobe", args) => programs::modprobe(args),
        ("modinfo", args) => programs::modinfo(args),
        ("systemctl", args) => programs::systemctl(args),
        ("rmmod", args) => programs::rmmod(args),
        _ => Err(Error::new(Code::Usage, "this command is for `gpu-bootstrap rehearse` only")),
    }
}

/// A failed step of the rehearsal itself.
fn failed(what: &str, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::new(Code::RehearsalFailed, format!("cannot {what}")).because(cause)
}
