//! Making a bundle: the plan for a machine, here or elsewhere, and every artefact of it, each verified before it is kept.
//! `collect` says what belongs into it, `store` where it is kept, `licences` what has to be accepted.

use std::path::PathBuf;

use super::collect::Collector;
use super::manifest::{self, MadeFor, Manifest, SCHEMA};
use super::store::Store;
use super::target::Target;
use super::{Location, Remote, licences};
use crate::boot::{Inputs, metadata_client};
use crate::catalog::choose::Choice;
use crate::catalog::{Catalog, Stack, choose};
use crate::config::{Config, layers};
use crate::error::{Code, Error, Result};
use crate::facts::{self, Facts};
use crate::host::Host;
use crate::plan;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// Root, configuration, catalog, metadata.
    pub inputs: Inputs,
    /// Where the bundle goes.
    pub output: Location,
    /// The machine that it is for.
    pub target: Target,
    /// The keyring of the distribution's archive.
    pub keyring: Option<PathBuf>,
    /// Sources in place of the distribution's archive.
    pub sources: Option<PathBuf>,
    /// dpkg's status file of the machine that it is for.
    pub installed: Option<PathBuf>,
    /// Licences that are accepted.
    pub accepted: Vec<String>,
}

/// What was made.
pub struct Made {
    /// The manifest.
    pub manifest: Manifest,
    /// Its SHA-256: what a user pins.
    pub sha256: String,
}

/// Makes the bundle.
pub async fn create(options: &Options) -> Result<Made> {
    let host = Host::new(options.inputs.root.clone());
    let here = options.target.is_here();
    let metadata = if here || matches!(options.output, Location::S3 { .. }) {
        metadata_client(&options.inputs)?
    } else {
        None
    };
    let (facts, config, mut stack) = chosen(&host, options, metadata.as_ref()).await?;
    let region = facts.identity.instance.as_ref().map(|i| i.value.region.clone());
    let remote = Remote::new(&config.report.aws, region, metadata.as_ref());
    let mut store = Store::open(&options.output, remote).await?;
    let custom = if here { plan::custom::read(&host.files)? } else { Vec::new() };
    let kernel = here || options.target.kernel.is_some();
    let mut collector = Collector::begin(&host, options, &facts, &stack, &store).await?;
    collector.missing_sums(&mut stack).await?;
    let plan = plan::build(&facts, &config, &stack, &custom)?;
    collector.plan(&plan, kernel, &stack, &store).await?;
    let licences = licences::accepted(collector.files().map(|f| &f.path), &options.accepted)?;
    let directory = store.begin(collector.files()).to_owned();
    collector.keep(&store).await?;
    let made_for = MadeFor {
        os: facts.os.distro(),
        arch: facts.os.arch.value,
        instance_types: options.target.instance_types.clone(),
        kernel: if kernel { facts.os.kernel.value.clone() } else { String::new() },
        installed: collector.installed.clone(),
    };
    let manifest = Manifest {
        schema: SCHEMA,
        agent: env!("CARGO_PKG_VERSION").into(),
        made_for,
        stack,
        repositories: collector.repositories(),
        licences,
        directory,
        files: collector.files().cloned().collect(),
    };
    let bytes = manifest.text();
    // It is read as it will be read.
    Manifest::read(&bytes, None, &options.output.to_string())?;
    store.publish(&manifest, &bytes, &collector.new_files()).await?;
    collector.end()?;
    Ok(Made { sha256: manifest::sum(&bytes), manifest })
}

/// Facts, configuration and stack of the machine that the bundle is for.
async fn chosen(
    host: &Host,
    options: &Options,
    metadata: Option<&crate::imds::Client>,
) -> Result<(Facts, Config, Stack)> {
    let catalog = match &options.inputs.catalog {
        Some(dir) => Catalog::with_overrides(dir)?,
        None => Catalog::embedded()?,
    };
    let is_here = options.target.is_here();
    let mut facts = facts::gather(host, metadata.filter(|_| is_here)).await?;
    let user_data = facts.identity.user_data.as_ref().map(|f| f.value.as_slice());
    let extra = options.inputs.config.as_deref().map(layers::Layer::from_file).transpose()?;
    let mut config = layers::load(host, user_data, extra.as_slice())?.config;
    if super::is_wanted(&config) {
        let text = "source.packages names a bundle, and a bundle is made from repositories";
        return Err(Error::new(Code::ConfigType, text).with_hint(
            "give `bundle create` a configuration with source.packages = \"nvidia\" or \"distro\"",
        ));
    }
    if !is_here {
        let types = options.target.instance_types.iter();
        let arch = types.filter_map(|name| catalog.instance_type(name)).map(|t| t.arch).next();
        facts = options.target.facts(&facts, arch)?;
    }
    options.target.tell(&mut config);
    match choose(&catalog, &facts, &config, None)? {
        Choice::Install(stack) => Ok((facts, config, *stack)),
        Choice::Nothing { why } => Err(Error::new(Code::NoGpu, format!("there is nothing to bundle: {why}"))
            .with_hint("name the instance types by --instance-type")),
    }
}
