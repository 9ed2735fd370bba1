//! Installing without the internet: a directory or S3 prefix with every artefact of a plan, and a manifest with the
//! SHA-256 of each file, whose own SHA-256 is what a user pins. docs/bundle.md is the user's side,
//! docs/decisions/0015-bundles.md says why it is built so.
//!
//! [`create`] makes one, [`verify`] looks at one, and this file lets a run install from one: the catalog chooses within
//! what the bundle has, and apt gets the bundle's repositories, with the signatures of whoever signed them, in place of
//! the machine's sources. Called by `boot` and `crate::action::bundle`.

mod apart;
pub mod cli;
mod collect;
pub mod create;
mod licences;
pub mod manifest;
mod place;
mod remote;
mod store;
mod target;
pub mod verify;
mod wheels;

use std::collections::HashSet;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub use manifest::Manifest;
pub use place::{DIR, FILES, LISTS, SOURCES, WHEELS, tidy};
pub use remote::Remote;

use crate::action::python_environment::{self, Locked};
use crate::catalog::choose::{Choice, Source};
use crate::catalog::{Catalog, Stack, choose, frameworks};
use crate::config::Config;
use crate::config::schema::{AptMirror, OneOrMany};
use crate::error::{Code, Error, Result};
use crate::facts::Facts;
use crate::host::Host;
use crate::imds;

/// What `source.packages` begins with.
const SCHEME: &str = "bundle:";

/// Where a bundle lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// An absolute path of the machine.
    Directory(String),
    /// Objects whose keys begin with the prefix and a slash.
    S3 {
        /// The bucket's name.
        bucket: String,
        /// Without slashes at its ends; may be empty.
        prefix: String,
    },
}

impl Location {
    /// Reads `/directory` or `s3://bucket/prefix`; the error is one sentence.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Some(rest) = text.strip_prefix("s3://") {
            let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            let is_bucket = (3..=63).contains(&bucket.len())
                && bucket.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b));
            let prefix = prefix.trim_end_matches('/');
            if !is_bucket || !(prefix.is_empty() || manifest::is_path(prefix)) {
                return Err(format!("\"{text}\" is no s3://bucket/prefix"));
            }
            return Ok(Self::S3 { bucket: bucket.into(), prefix: prefix.into() });
        }
        let path = text.trim_end_matches('/');
        match path.strip_prefix('/') {
            Some(rest) if manifest::is_path(rest) => Ok(Self::Directory(path.into())),
            _ => Err(format!(
                "\"{text}\" is neither an absolute path (of letters, digits and - . _ + ~) nor s3://bucket/prefix"
            )),
        }
    }

    /// Reads `s3://bucket/key` as where the object lies, and its name there.
    pub fn of_object(text: &str) -> Result<(Self, String), String> {
        let split = text.rsplit_once('/').filter(|(_, name)| manifest::is_path(name));
        match split.map(|(place, name)| (Self::parse(place), name)) {
            Some((Ok(place @ Self::S3 { .. }), name)) => Ok((place, name.to_owned())),
            _ => Err(format!("\"{text}\" is no s3://bucket/key")),
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => f.write_str(path),
            Self::S3 { bucket, prefix } if prefix.is_empty() => write!(f, "s3://{bucket}"),
            Self::S3 { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
        }
    }
}

/// The bundle that a configuration names, with its manifest read and compared. Its files are looked at when a package is
/// missing.
#[derive(Debug)]
pub struct Opened {
    /// Where it lies.
    pub location: Location,
    /// Its manifest.
    pub manifest: Manifest,
    bytes: Vec<u8>,
    remote: Remote,
    is_verified: AtomicBool,
}

/// Whether packages come from a bundle.
pub fn is_wanted(config: &Config) -> bool {
    config.source.packages.starts_with(SCHEME)
}

/// Opens the bundle that the configuration names, if it names one, and refuses one for another system. Changes nothing.
pub async fn open(
    host: &Host,
    config: &Config,
    facts: &Facts,
    metadata: Option<&imds::Client>,
) -> Result<Option<Arc<Opened>>> {
    let wanted = &config.source.bundle_sha256;
    let Some(place) = config.source.packages.strip_prefix(SCHEME) else {
        if wanted.is_empty() {
            return Ok(None);
        }
        let text = "source.bundle-sha256 is set, and source.packages names no bundle";
        return Err(Error::new(Code::ConfigType, text)
            .with_hint("set source.packages = \"bundle:/directory\", or remove source.bundle-sha256"));
    };
    let location = Location::parse(place)
        .map_err(|why| Error::new(Code::ConfigType, format!("source.packages: {why}")))?;
    if wanted.is_empty() {
        let text =
            format!("source.packages names the bundle {location}, and source.bundle-sha256 is not set");
        return Err(Error::new(Code::ConfigType, text).with_hint(
            "set it to the sum that `bundle create` printed: it is what everything in the bundle is trusted by",
        ));
    }
    let region = facts.identity.instance.as_ref().map(|i| i.value.region.clone());
    let remote = Remote::new(&config.report.aws, region, metadata);
    let bytes = match place::kept(host, wanted)? {
        Some(bytes) => bytes,
        None => remote.manifest(host, &location).await?,
    };
    let manifest = Manifest::read(&bytes, Some(wanted), &location.to_string())?;
    let opened = Opened { location, manifest, bytes, remote, is_verified: AtomicBool::new(false) };
    opened.refuse_another_system(facts)?;
    Ok(Some(Arc::new(opened)))
}

/// Chooses a stack: with a bundle, one that is in it.
pub fn choose_within(
    bundle: Option<&Opened>,
    catalog: &Catalog,
    facts: &Facts,
    config: &Config,
    earlier: Option<&Stack>,
) -> Result<Choice> {
    let Some(bundle) = bundle else { return choose(catalog, facts, config, earlier) };
    // What an earlier run chose was chosen from something else, or from this bundle.
    let choice = choose(catalog, facts, &bundle.narrowed(config), None).map_err(|e| match e.code() {
        Code::ImpossibleWish => bundle.mismatch(format!("does not fit this machine: {e}")),
        _ => e,
    })?;
    match choice {
        Choice::Install(stack) => {
            let stack = bundle.adopted(*stack)?;
            let wanted = frameworks::choose(facts, config, &stack)?;
            if let Some(wanted) = wanted.filter(|_| config.frameworks.wheels.is_empty()) {
                bundle
                    .refuse_without(&python_environment::locked(&wanted.requirements)?, &wanted.describe())?;
            }
            Ok(Choice::Install(Box::new(stack)))
        }
        nothing @ Choice::Nothing { .. } => Ok(nothing),
    }
}

impl Opened {
    fn mismatch(&self, how: impl fmt::Display) -> Error {
        Error::new(Code::BundleMismatch, format!("the bundle {} {how}", self.location))
    }

    fn refuse_another_system(&self, facts: &Facts) -> Result<()> {
        let for_ = &self.manifest.made_for;
        let (os, arch) = (facts.os.distro(), facts.os.arch.value);
        if for_.os == os && for_.arch == arch {
            return Ok(());
        }
        let (made, is) = (for_.arch.debian_name(), arch.debian_name());
        Err(self.mismatch(format!("was made for {} on {made}, and this is {os} on {is}", for_.os)))
    }

    /// The configuration with what it leaves open set to what the bundle has.
    fn narrowed(&self, config: &Config) -> Config {
        let (mut config, stack) = (config.clone(), &self.manifest.stack);
        config.source.packages =
            if matches!(stack.source, Source::Nvidia(_)) { "nvidia".into() } else { "distro".into() };
        config.source.bundle_sha256.clear();
        config.source.apt_mirror = AptMirror::Keep;
        let or_none = |version: Option<&str>| version.unwrap_or("none").to_owned();
        if config.driver.branch == "auto" {
            config.driver.branch = or_none(stack.driver.as_ref().map(|d| d.branch.as_str()));
        }
        if config.cuda.toolkit == OneOrMany::One("auto".into()) {
            let versions: Vec<_> = stack.toolkits.iter().map(|t| t.version.clone()).collect();
            config.cuda.toolkit =
                if versions.is_empty() { OneOrMany::One("none".into()) } else { OneOrMany::Many(versions) };
        }
        if config.cudnn.deb.is_empty() && config.cudnn.version == "auto" {
            let deb = |d: &choose::Deb| crate::config::schema::DebConfig {
                url: d.url.clone(),
                sha256: d.sha256.clone(),
                repository: String::new(),
                signed_by: String::new(),
            };
            config.cudnn.deb = stack.cudnn_debs.iter().map(deb).collect();
            config.cudnn.version = or_none(stack.cudnn_version());
        }
        config
    }

    /// Refuses where a wheel of a lock is not in the bundle. What matters is the sum, not the name.
    pub(crate) fn refuse_without(&self, locked: &[Locked], whose: &str) -> Result<()> {
        let has: HashSet<&str> = self.manifest.files.iter().map(|f| f.sha256.as_str()).collect();
        let Some(missing) = locked.iter().find(|l| !has.contains(l.sha256.as_str())) else { return Ok(()) };
        let how = format!("has no wheel of {}=={}, which {whose} needs", missing.name, missing.version);
        Err(self.mismatch(how).with_hint(
            "make the bundle with the same [frameworks]; where only the device differs, name it there (device = \"cuda12\")",
        ))
    }

    /// The stack with the bundle as its source, if everything that it asks for is in there.
    fn adopted(&self, mut stack: Stack) -> Result<Stack> {
        let has = &self.manifest.stack;
        if let Some(other) = stack.gpu_architectures.iter().find(|a| !has.gpu_architectures.contains(a)) {
            let made = has.gpu_architectures.join(" and ");
            return Err(
                self.mismatch(format!("was made for GPUs of {made}, and this machine has one of {other}"))
            );
        }
        let here = names(has);
        if let Some(name) = names(&stack).into_iter().find(|name| !here.contains(name)) {
            return Err(self.mismatch(format!("was not made with {name}, which this configuration asks for")));
        }
        let debs = &has.cudnn_debs;
        // Where an index would have had the sum, the bundle has it.
        for deb in stack.cudnn_debs.iter_mut().filter(|d| d.index.is_some()) {
            if let Some(same) = debs.iter().find(|b| b.url == deb.url) {
                deb.clone_from(same);
            }
        }
        if let Some(deb) = stack.cudnn_debs.iter().find(|d| !debs.iter().any(|b| b.sha256 == d.sha256)) {
            return Err(self.mismatch(format!("has no file with the sha256 {}", deb.sha256)));
        }
        match (&mut stack.source, &has.source) {
            (Source::Nvidia(repository), Source::Nvidia(_)) => {
                let directory = self.nvidia_directory().unwrap_or_default();
                repository.url = format!("file://{FILES}/{directory}");
                repository.components.clear();
            }
            (Source::Distro { components }, _) => components.clear(),
            (Source::Nvidia(_), Source::Distro { .. }) => {}
        }
        stack.reasons.push(format!("Everything comes from the bundle {}.", self.location));
        Ok(stack)
    }

    /// `nvidia/debian12/x86_64/`
    fn nvidia_directory(&self) -> Option<&str> {
        let paths = self.manifest.files.iter().map(|f| f.path.as_str());
        let mut indexes = paths.filter(|p| p.starts_with("nvidia/"));
        indexes.find_map(|p| p.strip_suffix("Packages"))
    }

    /// The file of this bundle that apt means by a `file:` URI, with the sum that it must have, once all were verified.
    pub(crate) fn supplies(&self, host: &Host, uri: &str) -> Option<(PathBuf, &manifest::File)> {
        let path = uri.strip_prefix("file:")?.trim_start_matches('/');
        let path = path.strip_prefix(FILES.trim_start_matches('/'))?.trim_start_matches('/');
        let path = crate::text::percent_decoded(path).replace("/./", "/");
        let file = self.manifest.file(&path).filter(|_| self.is_verified())?;
        Some((host.files.outside(format!("{FILES}/{path}")).ok()?, file))
    }

    /// Whether its files have been looked at in this process.
    pub(crate) fn is_verified(&self) -> bool {
        self.is_verified.load(Ordering::Acquire)
    }
}

/// Every package that a stack asks for by name.
fn names(stack: &Stack) -> Vec<&str> {
    let driver = stack.driver.iter().flat_map(|d| &d.packages);
    let toolkits = stack.toolkits.iter().flat_map(|t| &t.packages);
    let cudnn = stack.cudnn.iter().flat_map(|c| &c.packages);
    let fabric = stack.fabric_manager.iter().flatten();
    driver.chain(toolkits).chain(cudnn).chain(fabric).map(String::as_str).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_directories_or_prefixes() {
        let shown = |text: &str| Location::parse(text).map(|l| l.to_string());
        assert_eq!(shown("/srv/bundle/"), Ok("/srv/bundle".into()));
        assert_eq!(shown("s3://gpu-images/a/b/"), Ok("s3://gpu-images/a/b".into()));
        assert_eq!(shown("s3://gpu-images"), Ok("s3://gpu-images".into()));
        for bad in
            ["", "/", "srv", "/a/../b", "/a b", "s3://", "s3://UP/x", "s3://bucket/../x", "https://x/y"]
        {
            assert!(Location::parse(bad).is_err(), "{bad}");
        }
    }
}
