//! Making a bundle: the plan for a machine, here or elsewhere, and every artefact of it, each verified before it is kept.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest, Sha256};

use super::apart::{Apart, Distribution, Origin, Repo, keyring};
use super::manifest::{self, File, Licence, MadeFor, Manifest, Repository, SCHEMA};
use super::target::{self, Target};
use super::{Location, Remote, verify};
use crate::action::Action;
use crate::action::apt_index::AptIndex;
use crate::action::apt_source::AptSource;
use crate::action::repository::sums;
use crate::boot::{Inputs, metadata_client};
use crate::catalog::choose::{Choice, Source};
use crate::catalog::{Catalog, Stack, choose};
use crate::config::{Config, layers};
use crate::error::{Code, Error, Result};
use crate::facts::{self, Facts};
use crate::host::Host;
use crate::host::apt::Request;
use crate::install::fetch::Item;
use crate::install::fetch_files;
use crate::plan::{self, Plan};
use crate::report::streams;
use crate::text::hex;

/// Where work goes on in a bundle's own directory; it is gone when the bundle is whole.
const WORK: &str = ".gpu-bootstrap-create";
/// Files fetched together. What they are is kept when the next ones are begun, so that an interruption costs little.
const BATCH: usize = 32;
/// The directories of a bundle. What lies in them and is not in the manifest is removed.
const OURS: [&str; 4] = ["debs/", "distribution/", "keys/", "nvidia/"];

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

/// Something that belongs into a bundle. Other kinds of files (a framework's wheels) join here: a `File` with its URL, its
/// sum and its path, and the place in the manifest follows.
enum Artefact {
    /// Packages, by apt.
    Packages(Request),
    /// A file by URL and SHA-256.
    File { url: String, sha256: String, path: String },
}

/// What an action will install. `kernel` is whether the kernel is known for whose release packages may be asked.
fn artefacts(action: &Action, kernel: bool) -> Vec<Artefact> {
    let request = |packages: Vec<String>, recommends| {
        Artefact::Packages(Request { packages, recommends, ..Request::default() })
    };
    match action {
        Action::AptPackage(a) => vec![request(a.packages.clone(), a.recommends)],
        Action::KernelPackages(a) => {
            let other = if kernel { &a.running } else { &a.image };
            vec![request([&a.following[..], other].concat(), false)]
        }
        Action::Deb(a) => {
            let file = |d: &choose::Deb| Artefact::File {
                url: d.url.clone(),
                sha256: d.sha256.clone(),
                path: deb_path(&d.sha256),
            };
            a.files.iter().map(file).collect()
        }
        _ => Vec::new(),
    }
}

/// Where a package file by URL lies in a bundle.
pub(super) fn deb_path(sha256: &str) -> String {
    format!("debs/{sha256}.deb")
}

/// Where a file comes from.
enum From {
    Url(String),
    Path(PathBuf),
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
    let store = Store::open(&options.output, Remote::new(&config.report.aws, region, metadata.as_ref()))?;
    let custom = if here { plan::custom::read(&host.files)? } else { Vec::new() };
    let kernel = here || options.target.kernel.is_some();
    let mut collector = Collector::begin(&host, options, &facts, &stack, store).await?;
    for deb in &mut stack.cudnn_debs {
        if let Some(index) = deb.index.take() {
            deb.sha256 = sums::derive(&collector.apart.host, deb, &index).await?.sha256;
        }
    }
    let plan = plan::build(&facts, &config, &stack, &custom)?;
    collector.repository(&plan).await?;
    for action in plan.steps.iter().flat_map(|s| &s.actions) {
        for artefact in artefacts(action, kernel) {
            collector.take(artefact).await?;
        }
    }
    collector.indexes(&stack)?;
    let licences = collector.licences(&options.accepted)?;
    let files = collector.keep().await?;
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
        files,
    };
    let bytes = manifest.text();
    // It is read as it will be read.
    Manifest::read(&bytes, None, &options.output.to_string())?;
    collector.end(&manifest, &bytes).await?;
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

/// Where the bundle's files are put.
struct Store {
    location: Location,
    remote: Remote,
    /// The directory (outside path); none for a bucket.
    dir: Option<PathBuf>,
    /// Two at work in one directory would remove each other's files.
    _held: Option<Flock<fs::File>>,
}

/// Whether a bundle may be made there, where what is in its directories and not in the manifest is removed: nothing lies there,
/// or a bundle does, or what an interrupted `create` has left. A file called `manifest.json` is not yet a bundle.
fn is_free_or_ours(dir: &Path) -> Result<bool> {
    let names = verify::all(dir);
    if names.is_empty() || names.iter().any(|name| name.starts_with(WORK)) {
        return Ok(true);
    }
    let path = dir.join(manifest::NAME);
    match fs::read(&path) {
        Ok(bytes) => Ok(Manifest::read(&bytes, None, &path.display().to_string()).is_ok()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(Error::io("read", &path, e)),
    }
}

fn hold(dir: &Path) -> Result<Flock<fs::File>> {
    let file = fs::File::open(dir).map_err(|e| Error::io("open", dir, e))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, e)| match e {
        Errno::EWOULDBLOCK => {
            Error::new(Code::Locked, format!("another `bundle create` is at work in {}", dir.display()))
        }
        e => Error::io("lock", dir, e.into()),
    })
}

impl Store {
    fn open(location: &Location, remote: Remote) -> Result<Self> {
        let dir = match location {
            Location::S3 { .. } => None,
            Location::Directory(path) => {
                let dir = PathBuf::from(path);
                fs::create_dir_all(&dir).map_err(|e| Error::io("make the directory", &dir, e))?;
                if !is_free_or_ours(&dir)? {
                    let text = format!("--output {path} is neither empty nor a bundle");
                    return Err(
                        Error::new(Code::Usage, text).with_hint("name an empty directory, or a new one")
                    );
                }
                Some(dir)
            }
        };
        let held = dir.as_deref().map(hold).transpose()?;
        Ok(Self { location: location.clone(), remote, dir, _held: held })
    }

    async fn has(&self, file: &File) -> Result<bool> {
        match &self.dir {
            Some(dir) => Ok(verify::one(dir, file).is_ok()),
            None => self.remote.has(&self.location, file).await,
        }
    }

    /// Takes a file that has been verified; it is gone from where it was.
    async fn put(&self, from: &Path, file: &File) -> Result<()> {
        let Some(dir) = &self.dir else {
            self.remote.put(&self.location, from, file).await?;
            let _ = fs::remove_file(from); // its directory goes at the end
            return Ok(());
        };
        let to = dir.join(&file.path);
        let parent = to.parent().unwrap_or(dir);
        fs::create_dir_all(parent).map_err(|e| Error::io("make the directory", parent, e))?;
        let kept = fs::File::open(from).and_then(|f| f.sync_all()).and_then(|()| fs::rename(from, &to));
        kept.map_err(|e| Error::io("write", &to, e))
    }
}

/// A bundle being made.
struct Collector {
    apart: Apart,
    store: Store,
    work: PathBuf,
    /// Removes the work of a bundle for a bucket.
    _room: Option<tempfile::TempDir>,
    wanted: BTreeMap<String, (File, From)>,
    installed: String,
}

impl Collector {
    async fn begin(
        host: &Host,
        options: &Options,
        facts: &Facts,
        stack: &Stack,
        store: Store,
    ) -> Result<Self> {
        let (room, work) = if let Some(dir) = &store.dir {
            (None, dir.join(WORK))
        } else {
            let room = tempfile::Builder::new().prefix("gpu-bootstrap-bundle-").tempdir();
            let room = room.map_err(|e| Error::io("make a directory in", std::env::temp_dir(), e))?;
            let work = room.path().to_path_buf();
            (Some(room), work)
        };
        // What an interrupted attempt left of apt's state says nothing; the files that it kept are found by their sums.
        if work.exists() && room.is_none() {
            fs::remove_dir_all(&work).map_err(|e| Error::io("remove", &work, e))?;
        }
        fs::create_dir_all(work.join("new")).map_err(|e| Error::io("make the directory", &work, e))?;
        let distribution = Distribution::named(&facts.os.distro())?;
        let components = match &stack.source {
            Source::Nvidia(r) => &r.components,
            Source::Distro { components } => components,
        };
        let installed = match &options.installed {
            Some(path) => Some(target::file(path, "--installed")?),
            None if options.target.is_here() => host.files.read("/var/lib/dpkg/status")?,
            None => None,
        };
        let sources = match &options.sources {
            Some(path) => {
                let text = String::from_utf8_lossy(&target::file(path, "--sources")?).into_owned();
                Some((path.display().to_string(), text))
            }
            None => None,
        };
        let origin = Origin {
            distribution,
            arch: facts.os.arch.value.debian_name(),
            components,
            keyring: keyring(distribution.id, options.keyring.as_deref())?,
            sources,
            installed: installed.clone(),
        };
        let apart = Apart::make(work.join("apt"), origin).await?;
        let installed = installed.map_or_else(|| "minimal".to_owned(), |bytes| manifest::sum(&bytes));
        Ok(Self { apart, store, work, _room: room, wanted: BTreeMap::new(), installed })
    }

    /// NVIDIA's repository, judged and pinned as on the machine that installs.
    async fn repository(&mut self, plan: &Plan) -> Result<()> {
        let host = &self.apart.host;
        for action in plan.steps.iter().flat_map(|s| &s.actions) {
            match action {
                Action::AptKey(_) | Action::AptPin(_) => {
                    action.apply(host).await?;
                }
                Action::AptIndex(a) => {
                    let apart = AptIndex { keyring: host.seen(&a.keyring), ..a.clone() };
                    Action::AptIndex(apart).apply(host).await?;
                }
                Action::AptSource(a) => {
                    let apart = AptSource { keyring: host.seen(&a.keyring), ..a.clone() };
                    host.files.write(
                        "/etc/apt/sources.list.d/nvidia.sources",
                        apart.content().as_bytes(),
                        0o644,
                    )?;
                    let uri = format!("{}/", a.url.trim_end_matches('/'));
                    let mut names = uri.trim_end_matches('/').rsplit('/');
                    let arch = names.next().unwrap_or_default();
                    let distro = names.next().unwrap_or_default();
                    self.apart.repos.push(Repo {
                        path: format!("nvidia/{distro}/{arch}"),
                        uri,
                        suites: vec!["/".into()],
                        components: Vec::new(),
                    });
                }
                _ => {}
            }
        }
        self.apart.host.apt().update().await
    }

    async fn take(&mut self, artefact: Artefact) -> Result<()> {
        match artefact {
            Artefact::Packages(request) => self.packages(&request).await,
            Artefact::File { url, sha256, path } => {
                let url = if url.starts_with("s3://") { self.store.remote.object(&url).await? } else { url };
                let inside = self.apart.host.fetch.into_cache_deb(&self.apart.host, &url, &sha256).await?;
                let from = self.apart.host.files.outside(&inside)?;
                let size = fs::metadata(&from).map_err(|e| Error::io("stat", &from, e))?.len();
                // apt asks for a name that ends so.
                let named = self.work.join(format!("{sha256}.deb"));
                if !named.exists() {
                    fs::hard_link(&from, &named).map_err(|e| Error::io("link", &named, e))?;
                }
                let request = Request { packages: vec![named.display().to_string()], ..Request::default() };
                let file = File { path: path.clone(), size, sha256 };
                self.wanted.insert(path, (file, From::Path(named)));
                self.packages(&request).await
            }
        }
    }

    /// What apt would fetch for it.
    async fn packages(&mut self, request: &Request) -> Result<()> {
        if request.packages.is_empty() {
            return Ok(());
        }
        let work = self.work.display().to_string();
        for download in self.apart.host.apt().resolve(request).await?.downloads {
            if download.uri.strip_prefix("file:").is_some_and(|path| path.contains(&work)) {
                continue; // a package file that the request names
            }
            let path = self.apart.path_of(&download.uri)?;
            let sha256 = download.sha256.ok_or_else(|| {
                let text = format!("the index has no SHA-256 of {}", download.file);
                Error::new(Code::IndexMalformed, text)
            })?;
            let file = File { path: path.clone(), size: download.size, sha256 };
            let from = match download.uri.strip_prefix("file:") {
                Some(local) => From::Path(PathBuf::from(decoded(local))),
                None => From::Url(download.uri),
            };
            self.wanted.insert(path, (file, from));
        }
        Ok(())
    }

    /// The indexes that apt has verified, and the keys that they were verified by.
    fn indexes(&mut self, stack: &Stack) -> Result<()> {
        let mut put = Vec::new();
        for (inside, path) in self.apart.indexes()? {
            put.push((path, self.apart.list(&inside)?));
        }
        put.push((self.apart.keyring.clone(), self.apart.keyring_bytes.clone()));
        if let Source::Nvidia(repository) = &stack.source {
            put.push(("keys/nvidia.asc".into(), repository.key.clone().into_bytes()));
        }
        for (number, (path, bytes)) in put.into_iter().enumerate() {
            let at = self.work.join(format!("index-{number}"));
            fs::write(&at, &bytes).map_err(|e| Error::io("write", &at, e))?;
            let size = bytes.len() as u64;
            let file = File { path: path.clone(), size, sha256: hex(&Sha256::digest(&bytes)) };
            self.wanted.insert(path, (file, From::Path(at)));
        }
        Ok(())
    }

    /// Asks for what must be accepted, before anything is kept.
    fn licences(&self, accepted: &[String]) -> Result<Vec<Licence>> {
        let debs = self.wanted.keys().filter(|path| Path::new(path).extension().is_some_and(|e| e == "deb"));
        let files = debs.filter(|path| is_nvidias(path)).count();
        if files == 0 {
            return Ok(Vec::new());
        }
        let text = format!(
            "{files} files of this bundle are under NVIDIA's licences (driver, CUDA, cuDNN) or in a component that is not \
             free; whether you may pass them on to others is for those licences to say, and nobody here has verified it"
        );
        if !accepted.iter().any(|name| name == "nvidia") {
            return Err(Error::new(Code::LicenceNotAccepted, text));
        }
        streams::err(&text);
        Ok(vec![Licence { name: "nvidia".into(), files }])
    }

    /// Brings everything into the bundle that is not in it.
    async fn keep(&self) -> Result<Vec<File>> {
        let mut urls = Vec::new();
        for (file, from) in self.wanted.values() {
            if self.store.has(file).await? {
                continue;
            }
            match from {
                From::Url(url) => urls.push((file, url)),
                From::Path(path) => {
                    let copy = self.work.join("new/file");
                    fs::copy(path, &copy).map_err(|e| Error::io("copy", path, e))?;
                    let as_it_is = File { path: "new/file".into(), ..file.clone() };
                    if let Err(what) = verify::one(&self.work, &as_it_is) {
                        let text = format!("{} {what}; nothing of it was kept", path.display());
                        return Err(Error::new(Code::ChecksumMismatch, text));
                    }
                    self.store.put(&copy, file).await?;
                }
            }
        }
        for batch in urls.chunks(BATCH) {
            let item = |(number, (file, url)): (usize, &(&File, &String))| Item {
                uri: (*url).clone(),
                size: file.size,
                sha256: file.sha256.clone(),
                path: self.work.join(format!("new/{number}")),
            };
            let items: Vec<Item> = batch.iter().enumerate().map(item).collect();
            let failed = fetch_files(&self.apart.host, items.clone()).await?;
            for (number, (file, _)) in batch.iter().enumerate() {
                if !failed.iter().any(|(other, _)| *other == number) {
                    self.store.put(&items[number].path, file).await?;
                }
            }
            if let Some((_, error)) = failed.into_iter().next() {
                return Err(error);
            }
        }
        Ok(self.wanted.values().map(|(file, _)| file.clone()).collect())
    }

    fn repositories(&self) -> Vec<Repository> {
        let of_distribution = self.apart.repos.iter().filter(|r| r.path.starts_with("distribution/"));
        let repository = |r: &Repo| Repository {
            path: r.path.clone(),
            suites: r.suites.clone(),
            components: r.components.clone(),
            keyring: self.apart.keyring.clone(),
        };
        of_distribution.map(repository).collect()
    }

    /// Removes what is left of other bundles, and writes the manifest last.
    async fn end(self, manifest: &Manifest, bytes: &[u8]) -> Result<()> {
        let is_left =
            |path: &String| OURS.iter().any(|dir| path.starts_with(dir)) && manifest.file(path).is_none();
        let file =
            File { path: manifest::NAME.into(), size: bytes.len() as u64, sha256: manifest::sum(bytes) };
        let at = self.work.join("new/manifest");
        fs::write(&at, bytes).map_err(|e| Error::io("write", &at, e))?;
        if let Some(dir) = &self.store.dir {
            for path in verify::all(dir).iter().filter(|p| is_left(p)) {
                fs::remove_file(dir.join(path)).map_err(|e| Error::io("remove", dir.join(path), e))?;
            }
            self.store.put(&at, &file).await?;
            return fs::remove_dir_all(&self.work).map_err(|e| Error::io("remove", &self.work, e));
        }
        let (remote, location) = (&self.store.remote, &self.store.location);
        for path in remote.list(location).await?.iter().filter(|p| is_left(p)) {
            remote.remove(location, path).await?;
        }
        self.store.put(&at, &file).await
    }
}

/// Whether a package is under a licence of NVIDIA's, or of somebody else's that is not free.
fn is_nvidias(path: &str) -> bool {
    const NOT_FREE: [&str; 3] = ["/pool/non-free", "/pool/restricted/", "/pool/multiverse/"];
    path.starts_with("nvidia/")
        || path.starts_with("debs/")
        || NOT_FREE.iter().any(|part| path.contains(part))
}

/// A path of a URI without its percent signs.
pub(crate) fn decoded(text: &str) -> String {
    let mut out = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let digits = after.get(..2).and_then(|d| std::str::from_utf8(d).ok());
        if let Some(byte) = digits.filter(|_| first == b'%').and_then(|d| u8::from_str_radix(d, 16).ok()) {
            out.push(byte);
            rest = &after[2..];
        } else {
            out.push(first);
            rest = after;
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_signs_are_undone_once() {
        assert_eq!(decoded("pool/g%2b%2b_1%253a2%zz%4"), "pool/g++_1%3a2%zz%4");
    }

    #[test]
    fn licences_are_by_where_a_package_comes_from() {
        for path in ["nvidia/debian12/x86_64/a.deb", "debs/0.deb", "distribution/0/pool/non-free/n/a.deb"] {
            assert!(is_nvidias(path), "{path}");
        }
        assert!(!is_nvidias("distribution/0/pool/main/g/gcc.deb"));
    }
}
