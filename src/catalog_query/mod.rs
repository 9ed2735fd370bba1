//! `catalog`: which stack fits a machine, this one or one that is not here, and why everything else does not. It reads
//! facts and tables only: no network, no root, nothing is changed. docs/stacks.md is for its users.

mod answer;
mod overview;
mod subject;
mod table;

use std::path::PathBuf;

use clap::Args;

use crate::catalog::{Catalog, distributions};
use crate::config::Config;
use crate::config::layers::{self, Layer};
use crate::config::schema::OneOrMany;
use crate::error::{Code, Error, Result, exit};
use crate::facts;
use crate::host::Host;
use crate::report::streams;
use answer::Answer;
use subject::Subject;

/// The shape of the JSON documents; packaging/catalog.schema.json has it.
const SCHEMA: u32 = 1;

/// What is asked.
#[derive(Args, Debug)]
pub struct CatalogArgs {
    /// A machine of this EC2 instance type, in place of this one.
    #[arg(long, value_name = "TYPE")]
    instance_type: Option<String>,

    /// A machine with this GPU, by PCI id (10de:1eb8); with --instance-type, in place of the type's GPUs. Once for each GPU.
    #[arg(long, value_name = "ID")]
    gpu: Vec<String>,

    /// Its distribution: ubuntu22.04, debian12, … [default: all of them]
    #[arg(long, value_name = "OS")]
    os: Option<String>,

    /// Its processor architecture, amd64 or arm64 [default: that of the type or of the types with this GPU]
    #[arg(long, value_name = "ARCH")]
    arch: Option<String>,

    /// The toolkits wished for (cuda.toolkit).
    #[arg(long, value_name = "VERSION", value_delimiter = ',')]
    cuda: Vec<String>,

    /// The driver wished for (driver.branch).
    #[arg(long, value_name = "VERSION")]
    driver: Option<String>,

    /// The cuDNN wished for (cudnn.version).
    #[arg(long, value_name = "VERSION")]
    cudnn: Option<String>,

    /// Where packages come from (source.packages): nvidia, distro, or the URL of a mirror.
    #[arg(long, value_name = "SOURCE")]
    source: Option<String>,

    /// One line for every family of instance types on every distribution.
    #[arg(long, conflicts_with_all = ["instance_type", "gpu", "arch", "list"])]
    all: bool,

    /// The instance types and distributions that the catalog knows.
    #[arg(long, conflicts_with_all = ["instance_type", "gpu", "arch", "os", "cuda", "driver", "cudnn", "source"])]
    list: bool,

    /// Print one JSON document.
    #[arg(long)]
    json: bool,

    /// A configuration file that overrides all other layers.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// A directory with catalog files that take the place of the embedded ones.
    #[arg(long = "catalog", value_name = "DIR")]
    files: Option<PathBuf>,

    /// The root of this machine, or a directory treated as if chrooted into it.
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub root: PathBuf,
}

/// Answers on standard output. A refusal is an answer, too, and then the error that the exit code follows.
pub async fn run(args: &CatalogArgs) -> Result<u8> {
    let catalog = match &args.files {
        Some(dir) => Catalog::with_overrides(dir)?,
        None => Catalog::embedded()?,
    };
    if args.list {
        return overview(args, &catalog, "");
    }
    let elsewhere = args.all || args.instance_type.is_some() || !args.gpu.is_empty() || args.os.is_some();
    if !elsewhere {
        return this_machine(args, &catalog).await;
    }
    let config = config(args, &[])?;
    let subjects = if args.instance_type.is_some() || !args.gpu.is_empty() {
        vec![Subject::named(&catalog, args.instance_type.as_deref(), &args.gpu, args.arch.as_deref())?]
    } else {
        refuse_arch(args)?;
        Subject::all(&catalog)
    };
    let systems = match &args.os {
        Some(name) => vec![subject::distribution(&catalog, name)?],
        None => distributions(&catalog),
    };
    match (subjects.as_slice(), systems.as_slice()) {
        ([subject], [system]) if !args.all => {
            let answer = Answer::new(&catalog, &subject.facts(system), &config, subject.title());
            tell(args, answer)
        }
        _ => {
            let table = table::Table::new(&catalog, &subjects, &systems, &config);
            streams::out(&if args.json { streams::json(&table.document())? } else { table.text() })?;
            Ok(exit::CONVERGED)
        }
    }
}

/// An architecture without anything that has it asks nothing.
fn refuse_arch(args: &CatalogArgs) -> Result<()> {
    match &args.arch {
        None => Ok(()),
        Some(_) => Err(Error::new(Code::Usage, "--arch needs --instance-type or --gpu")
            .with_hint("name the machine, for example --gpu 10de:1eb8 --arch arm64")),
    }
}

async fn this_machine(args: &CatalogArgs, catalog: &Catalog) -> Result<u8> {
    refuse_arch(args)?;
    let host = Host::new(args.root.clone());
    let mut facts = facts::gather(&host, None).await?;
    if let Some(name) = host.files.read_text("/sys/class/dmi/id/product_name")?
        && let Some(found) = catalog.instance_type(name.trim())
    {
        crate::catalog::machine::name(&mut facts, &found.name);
    }
    let is_bare = facts.gpu.gpus.is_empty() && facts.gpu.other_accelerators.is_empty();
    if is_bare && facts.identity.instance.is_none() && !facts.identity.on_ec2.value {
        return overview(
            args,
            catalog,
            "This machine has no NVIDIA GPU; name another one by --instance-type and --os. The catalog knows:\n\n",
        );
    }
    let own = layers::load(&host, None, &[])?.config;
    let config = config(args, &[own])?;
    tell(args, Answer::new(catalog, &facts, &config, "this machine".into()))
}

fn overview(args: &CatalogArgs, catalog: &Catalog, title: &str) -> Result<u8> {
    let overview = overview::Overview::new(catalog);
    streams::out(&if args.json { streams::json(&overview)? } else { format!("{title}{}", overview.text()) })?;
    Ok(exit::CONVERGED)
}

fn tell(args: &CatalogArgs, answer: Answer) -> Result<u8> {
    let shown =
        if args.json { streams::json(&answer.document())? } else { streams::printable(&answer.text()) };
    streams::out(&shown)?;
    answer.choice.map(|_| exit::CONVERGED)
}

/// The machine's own configuration, if it is this one, then `--config`, then the flags.
fn config(args: &CatalogArgs, own: &[Config]) -> Result<Config> {
    let file = args.config.as_deref().map(Layer::from_file).transpose()?;
    let mut config = match (own, file) {
        ([own, ..], None) => own.clone(),
        ([_, ..], Some(file)) => layers::load(&Host::new(args.root.clone()), None, &[file])?.config,
        ([], file) => layers::merge(file.as_slice())?.config,
    };
    match args.cuda.as_slice() {
        [] => {}
        [one] => config.cuda.toolkit = OneOrMany::One(one.clone()),
        many => config.cuda.toolkit = OneOrMany::Many(many.to_vec()),
    }
    let take = |key: &mut String, flag: &Option<String>| {
        if let Some(value) = flag {
            key.clone_from(value);
        }
    };
    take(&mut config.driver.branch, &args.driver);
    take(&mut config.cudnn.version, &args.cudnn);
    take(&mut config.source.packages, &args.source);
    Ok(config)
}
