//! `launch-line`: the line by which somebody else's launcher starts training on the fleet that was found. A job launcher is not
//! ours. Facts and tables only: no network, no root, nothing is changed. docs/distributed.md is for its users.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::catalog::Catalog;
use crate::error::{Code, Error, Result, exit};
use crate::facts;
use crate::host::Host;
use crate::plan::distributed::PROFILE;
use crate::report::streams;

/// The shape of the JSON document.
const SCHEMA: u32 = 1;
/// Where `torchrun` meets by its own documentation, and Ray by its default.
const TORCHRUN_PORT: u16 = 29_500;
const RAY_PORT: u16 = 6379;
/// What `ParallelCluster` takes as a queue's name: 25 lower-case letters, digits and hyphens, a letter first.
const QUEUE_LENGTH: usize = 25;

/// Who starts the processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Launcher {
    /// `PyTorch`'s own, by hand on each machine.
    Torchrun,
    /// A batch script for sbatch.
    Slurm,
    /// A queue of AWS's `ParallelCluster`.
    Parallelcluster,
    /// A Ray cluster.
    Ray,
}

/// What is asked.
#[derive(Args, Debug)]
pub struct LaunchLineArgs {
    /// The launcher.
    #[arg(long = "for", value_name = "LAUNCHER", value_enum)]
    launcher: Launcher,

    /// How many machines like this one.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    nodes: u16,

    /// Name or address of the machine where all others meet (torchrun and Ray, with several machines).
    #[arg(long, value_name = "HOST")]
    head: Option<String>,

    /// Its port [default: 29500; for Ray 6379].
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,

    /// What tells this job from others at the same place (torchrun).
    #[arg(long, value_name = "ID", default_value = "gpu-bootstrap")]
    job_id: String,

    /// Machines of this EC2 instance type, in place of this one.
    #[arg(long, value_name = "TYPE")]
    instance_type: Option<String>,

    /// The subnet of the machines (parallelcluster).
    #[arg(long, value_name = "SUBNET")]
    subnet: Option<String>,

    /// The queue's name (parallelcluster), the job's (slurm).
    #[arg(long, value_name = "NAME", default_value = "train")]
    name: String,

    /// Print one JSON document.
    #[arg(long)]
    json: bool,

    /// The root of this machine, or a directory treated as if chrooted into it.
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub root: PathBuf,

    /// The program and its arguments, after `--` [default: train.py].
    #[arg(last = true, value_name = "PROGRAM")]
    program: Vec<String>,
}

/// One machine of the fleet.
#[derive(Debug, Serialize)]
struct Node {
    instance_type: Option<String>,
    gpus: u32,
    efa_devices: u32,
    /// Where this stands.
    source: String,
    /// Whether no source confirms the number of GPUs.
    gpus_unverified: bool,
}

/// The answer.
#[derive(Debug, Serialize)]
struct Line {
    schema: u32,
    launcher: Launcher,
    node: Node,
    nodes: u16,
    /// Things to know, a sentence each.
    notes: Vec<String>,
    /// What to run or to write to a file: commands, a batch script, or a part of a cluster's YAML.
    text: String,
}

/// Answers on standard output.
pub async fn run(args: &LaunchLineArgs) -> Result<u8> {
    let catalog = Catalog::embedded()?;
    let node = match &args.instance_type {
        Some(name) => named(&catalog, name)?,
        None => this_machine(&catalog, &Host::new(args.root.clone())).await?,
    };
    let line = line(args, node)?;
    streams::out(&if args.json { streams::json(&line)? } else { line.shown() })?;
    Ok(exit::CONVERGED)
}

fn named(catalog: &Catalog, name: &str) -> Result<Node> {
    let found = catalog.instance_type(name).ok_or_else(|| {
        let family = name.split('.').next().unwrap_or_default();
        Error::new(Code::UnknownInstanceType, format!("{name} is not in the catalog"))
            .with_hint(catalog.sizes_hint(family))
    })?;
    let [gpus, efa_devices] = [found.gpus, found.efa];
    if found.vendor != 0x10de {
        return Err(Error::new(
            Code::NotNvidia,
            format!("{name} has {}, which CUDA cannot use", found.gpu_name),
        ));
    }
    let (instance_type, source) = (Some(found.name), "the catalog".into());
    Ok(Node { instance_type, gpus, efa_devices, source, gpus_unverified: found.gpus_unverified })
}

async fn this_machine(catalog: &Catalog, host: &Host) -> Result<Node> {
    let facts = facts::gather(host, None).await?;
    let product = host.files.read_text("/sys/class/dmi/id/product_name")?.unwrap_or_default();
    let instance_type = catalog.instance_type(product.trim()).map(|t| t.name);
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    if facts.gpu.gpus.is_empty() {
        return Err(Error::new(
            Code::NoGpu,
            "this machine has no NVIDIA GPU, so it tells nothing of the fleet",
        )
        .with_hint("name its machines by --instance-type, for example p5.48xlarge"));
    }
    Ok(Node {
        instance_type,
        gpus: count(facts.gpu.gpus.len()),
        efa_devices: count(facts.efa.len()),
        source: "this machine's PCI bus".into(),
        gpus_unverified: false,
    })
}

fn line(args: &LaunchLineArgs, node: Node) -> Result<Line> {
    let text = match args.launcher {
        Launcher::Torchrun => torchrun(args, &node)?,
        Launcher::Slurm => slurm(args, &node)?,
        Launcher::Parallelcluster => parallelcluster(args, &node)?,
        Launcher::Ray => ray(args, &node)?,
    };
    let notes = notes(args, &node);
    Ok(Line { schema: SCHEMA, launcher: args.launcher, nodes: args.nodes, node, notes, text })
}

impl Line {
    /// Notes are comments in all of these languages. A script's first line stays the first.
    fn shown(&self) -> String {
        let notes = self.notes.iter().fold(String::new(), |all, note| all + "# " + note + "\n");
        match self.text.split_once('\n') {
            Some((first, rest)) if first.starts_with("#!") => format!("{first}\n{notes}{rest}"),
            _ => notes + &self.text,
        }
    }
}

fn notes(args: &LaunchLineArgs, node: &Node) -> Vec<String> {
    let kind = node.instance_type.as_deref().unwrap_or("no instance type that is known");
    let (gpus, machines, source) = (node.gpus, args.nodes, &node.source);
    let mut notes = vec![format!("{machines} x {gpus} GPUs ({kind}), by {source}")];
    if node.gpus_unverified {
        notes.push(format!("no source confirms that {kind} has {gpus} GPUs: look at one first"));
    }
    if machines > 1 && node.efa_devices > 0 {
        notes.push("EFA: the security group lets everything in and out between its own members".into());
    }
    if machines > 1 && node.efa_devices == 0 {
        notes.push("no EFA devices: machines exchange data by TCP".into());
    }
    notes
}

/// Where the machines meet; needed only by several.
fn head<'a>(args: &'a LaunchLineArgs, launcher: &str) -> Result<&'a str> {
    let missing = || {
        Error::new(Code::Usage, format!("{launcher} on {} machines needs --head", args.nodes))
            .with_hint("name the machine where all of them meet: its private address or name")
    };
    let head = args.head.as_deref().ok_or_else(missing)?;
    let is_name = !head.is_empty() && head.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._:".contains(&b));
    if !is_name || head.starts_with('-') || (head.contains(':') && head.parse::<IpAddr>().is_err()) {
        return Err(Error::new(Code::Usage, format!("--head {head:?} is no host's name or address"))
            .with_hint(
                "write it without a port (--port has that), such as ip-10-0-0-1.ec2.internal or 10.0.0.1",
            ));
    }
    Ok(head)
}

fn endpoint(head: &str, port: u16) -> String {
    if head.contains(':') { format!("[{head}]:{port}") } else { format!("{head}:{port}") }
}

/// The program and its arguments as a shell reads them.
fn program(args: &LaunchLineArgs) -> String {
    if args.program.is_empty() {
        return "train.py".into();
    }
    args.program.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
}

/// A word as a shell reads it.
fn quoted(word: &str) -> String {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"_@%+=:,./-".contains(&b);
    if !word.is_empty() && word.bytes().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

fn torchrun(args: &LaunchLineArgs, node: &Node) -> Result<String> {
    let (gpus, program) = (node.gpus, program(args));
    if args.nodes == 1 {
        return Ok(format!("torchrun --standalone --nproc-per-node={gpus} {program}\n"));
    }
    let endpoint = endpoint(head(args, "torchrun")?, args.port.unwrap_or(TORCHRUN_PORT));
    let (nodes, id) = (args.nodes, quoted(&args.job_id));
    Ok(format!(
        "# on each of the {nodes} machines, the head too\n\
         torchrun --nnodes={nodes} --nproc-per-node={gpus} --rdzv-backend=c10d --rdzv-endpoint={endpoint} --rdzv-id={id} {program}\n"
    ))
}

fn slurm(args: &LaunchLineArgs, node: &Node) -> Result<String> {
    let name = plain_name(&args.name)?;
    let (gpus, nodes, program) = (node.gpus, args.nodes, program(args));
    let port = args.port.unwrap_or(TORCHRUN_PORT);
    Ok(format!(
        "#!/bin/bash\n\
         #SBATCH --job-name={name}\n\
         #SBATCH --nodes={nodes}\n\
         #SBATCH --ntasks-per-node=1\n\
         #SBATCH --gpus-per-node={gpus}\n\
         #SBATCH --exclusive\n\
         set -euo pipefail\n\
         if [ -r {PROFILE} ]; then . {PROFILE}; fi\n\
         head=$(scontrol show hostnames \"$SLURM_JOB_NODELIST\" | head -n 1)\n\
         srun torchrun --nnodes=\"$SLURM_JOB_NUM_NODES\" --nproc-per-node={gpus} --rdzv-backend=c10d \\\n    \
         --rdzv-endpoint=\"$head:{port}\" --rdzv-id=\"$SLURM_JOB_ID\" {program}\n"
    ))
}

/// A name that neither YAML nor Slurm reads as anything else.
fn plain_name(name: &str) -> Result<&str> {
    let is_letter = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let plain = name.len() <= QUEUE_LENGTH
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.bytes().all(is_letter);
    if plain {
        return Ok(name);
    }
    Err(Error::new(Code::Usage, format!("--name {name:?} is no name for a queue")).with_hint(format!(
        "write up to {QUEUE_LENGTH} lower-case letters, digits and hyphens, a letter first"
    )))
}

fn parallelcluster(args: &LaunchLineArgs, node: &Node) -> Result<String> {
    let name = plain_name(&args.name)?;
    let mut missing = Vec::new();
    if node.instance_type.is_none() {
        missing.push("--instance-type (this machine's is not known)");
    }
    if args.subnet.is_none() {
        missing.push("--subnet");
    }
    let (Some(instance_type), Some(subnet)) = (&node.instance_type, &args.subnet) else {
        return Err(Error::new(
            Code::Usage,
            format!("a queue of ParallelCluster needs {}", missing.join(" and ")),
        )
        .with_hint("`aws ec2 describe-subnets` lists subnets"));
    };
    let is_id = subnet
        .strip_prefix("subnet-")
        .is_some_and(|id| !id.is_empty() && id.bytes().all(|b| b.is_ascii_hexdigit()));
    if !is_id {
        return Err(Error::new(Code::Usage, format!("--subnet {subnet:?} is no subnet"))
            .with_hint("write its id, such as subnet-0123456789abcdef0"));
    }
    let nodes = args.nodes;
    let mut text = format!(
        "Scheduling:\n  Scheduler: slurm\n  SlurmQueues:\n    - Name: {name}\n      ComputeResources:\n        \
         - Name: {}\n          InstanceType: {instance_type}\n          MinCount: {nodes}\n          MaxCount: {nodes}\n",
        instance_type.replace('.', "-")
    );
    let efa = node.efa_devices > 0;
    if efa {
        text.push_str("          Efa:\n            Enabled: true\n");
    }
    let _ = write!(text, "      Networking:\n        SubnetIds:\n          - {subnet}\n"); // a String takes everything
    if efa || nodes > 1 {
        text.push_str("        PlacementGroup:\n          Enabled: true\n");
    }
    Ok(text)
}

fn ray(args: &LaunchLineArgs, node: &Node) -> Result<String> {
    let (gpus, port) = (node.gpus, args.port.unwrap_or(RAY_PORT));
    if args.nodes == 1 {
        return Ok(format!("ray start --head --port={port} --num-gpus={gpus}\n"));
    }
    let head = head(args, "Ray")?;
    // Ray takes an address there, and finds it by itself otherwise.
    let address = head.parse::<IpAddr>().map(|ip| format!(" --node-ip-address={ip}")).unwrap_or_default();
    Ok(format!(
        "# on {head}\nray start --head{address} --port={port} --num-gpus={gpus}\n\
         # on each of the other {}\nray start --address={} --num-gpus={gpus}\n",
        match args.nodes - 1 {
            1 => "machines (1)".to_owned(),
            n => format!("{n} machines"),
        },
        endpoint(head, port)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_gets_each_word_as_it_was() {
        for word in ["train.py", "--lr=0.1", "", "a b", "it's", "$HOME", "`id`", "a\"b", "*", "a\nb", "ü"] {
            let script = format!("printf '%s' {}", quoted(word));
            let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
            assert_eq!(String::from_utf8(output.stdout).unwrap(), word, "{script}");
        }
        assert_eq!(quoted("--data=s3://a/b"), "--data=s3://a/b");
    }

    #[test]
    fn an_address_of_ipv6_stands_in_brackets() {
        assert_eq!(endpoint("10.0.0.1", 29_500), "10.0.0.1:29500");
        assert_eq!(endpoint("fd00::1", 6379), "[fd00::1]:6379");
    }

    #[test]
    fn names_are_what_parallelcluster_takes() {
        assert!(plain_name("train-2").is_ok());
        for name in ["", "Train", "-a", "2a", "a b", "a:b", &"a".repeat(26)] {
            assert!(plain_name(name).is_err(), "{name}");
        }
    }
}
