//! What belongs into a bundle: every artefact that the actions of a plan would fetch, each known by its SHA-256 before any byte
//! of it is kept.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::apart::{Apart, Distribution, Origin, Repo, keyring};
use super::create::Options;
use super::manifest::{self, File, Repository};
use super::store::{Store, WORK};
use super::wheels::{self, Source as Wheels};
use super::{Remote, target, verify};
use crate::action::Action;
use crate::action::apt_index::AptIndex;
use crate::action::apt_source::AptSource;
use crate::action::python_environment::PythonEnvironment;
use crate::action::repository::sums;
use crate::catalog::Stack;
use crate::catalog::choose::{self, Source};
use crate::error::{Code, Error, Result};
use crate::facts::Facts;
use crate::host::Host;
use crate::host::apt::Request;
use crate::host::files::Files;
use crate::install::fetch::Item;
use crate::install::fetch_files;
use crate::plan::Plan;
use crate::text;

/// Files fetched together, and bytes: what they are is kept when the next ones are begun, so that an interruption costs little.
const BATCH: usize = 32;
const BATCH_BYTES: u64 = 256 << 20;

/// Something that belongs into a bundle.
enum Artefact<'a> {
    /// Packages, by apt.
    Packages(Request),
    /// A package file by URL and SHA-256.
    Deb(&'a choose::Deb),
    /// Locked wheels.
    Wheels(&'a PythonEnvironment),
}

/// What an action will install. `kernel` is whether the kernel is known for whose release packages may be asked.
fn artefacts(action: &Action, kernel: bool) -> Vec<Artefact<'_>> {
    let request = |packages: Vec<String>, recommends| {
        Artefact::Packages(Request { packages, recommends, ..Request::default() })
    };
    match action {
        Action::AptPackage(a) => vec![request(a.packages.clone(), a.recommends)],
        Action::KernelPackages(a) => {
            let other = if kernel { &a.running } else { &a.image };
            vec![request([&a.following[..], other].concat(), false)]
        }
        Action::Deb(a) => a.files.iter().map(Artefact::Deb).collect(),
        Action::PythonEnvironment(a) => vec![Artefact::Wheels(a)],
        _ => Vec::new(),
    }
}

/// Where package files by URL lie in a bundle.
pub(super) const DEBS: &str = "debs/";

/// Where a file comes from.
enum From {
    Url(String),
    Path(PathBuf),
}

/// What a bundle shall have.
pub(super) struct Collector {
    apart: Apart,
    work: PathBuf,
    /// Removes the work of a bundle for a bucket.
    _room: Option<tempfile::TempDir>,
    wanted: BTreeMap<String, (File, From)>,
    /// What was taken as installed.
    pub(super) installed: String,
}

impl Collector {
    /// Reads the distribution's indexes.
    pub(super) async fn begin(
        host: &Host,
        options: &Options,
        facts: &Facts,
        stack: &Stack,
        store: &Store,
    ) -> Result<Self> {
        let callers = Files::new("/".into());
        let (room, work) = if let Some(dir) = &store.dir {
            (None, dir.join(WORK))
        } else {
            let room = tempfile::Builder::new().prefix("gpu-bootstrap-bundle-").tempdir();
            let room = room.map_err(|e| Error::io("make a directory in", std::env::temp_dir(), e))?;
            let work = room.path().to_path_buf();
            (Some(room), work)
        };
        // What an interrupted attempt left of apt's state says nothing; the files that it kept are found by their sums.
        if room.is_none() {
            callers.remove_tree(&work)?;
        }
        callers.make_dir(work.join("new"), 0o755)?;
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
        Ok(Self { apart, work, _room: room, wanted: BTreeMap::new(), installed })
    }

    /// A directory for what is not yet kept.
    pub(super) fn new_files(&self) -> PathBuf {
        self.work.join("new")
    }

    /// The sums that nobody gave, from the signed indexes of the files' repositories.
    pub(super) async fn missing_sums(&self, stack: &mut Stack) -> Result<()> {
        for deb in &mut stack.cudnn_debs {
            if let Some(index) = deb.index.take() {
                deb.sha256 = sums::derive(&self.apart.host, deb, &index).await?.sha256;
            }
        }
        Ok(())
    }

    /// Everything that a plan installs.
    pub(super) async fn plan(
        &mut self,
        plan: &Plan,
        kernel: bool,
        stack: &Stack,
        store: &Store,
    ) -> Result<()> {
        self.repository(plan).await?;
        for action in plan.steps.iter().flat_map(|s| &s.actions) {
            for artefact in artefacts(action, kernel) {
                match artefact {
                    Artefact::Packages(request) => self.packages(&request).await?,
                    Artefact::Deb(deb) => self.deb(deb, &store.remote).await?,
                    Artefact::Wheels(environment) => self.wheels(environment).await?,
                }
            }
        }
        self.indexes(stack)
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

    /// A package file by URL, and what apt would fetch for it.
    async fn deb(&mut self, deb: &choose::Deb, remote: &Remote) -> Result<()> {
        let host = &self.apart.host;
        let in_bucket = deb.url.starts_with("s3://");
        let url = if in_bucket { remote.object(&deb.url).await? } else { deb.url.clone() };
        let inside = host.fetch.into_cache_deb(host, &url, &deb.sha256).await?;
        let size = host.files.lstat(&inside)?.map_or(0, |meta| meta.len());
        // apt asks for a name that ends so.
        let named = format!("/{}.deb", deb.sha256);
        if !host.files.exists(&named)? {
            host.files.link_or_copy(&inside, &named)?;
        }
        let named = host.files.outside(&named)?;
        let request = Request { packages: vec![named.display().to_string()], ..Request::default() };
        let file = File { path: format!("{DEBS}{}.deb", deb.sha256), size, sha256: deb.sha256.clone() };
        self.wanted.insert(file.path.clone(), (file, From::Path(named)));
        self.packages(&request).await
    }

    /// The wheels of a lock.
    async fn wheels(&mut self, environment: &PythonEnvironment) -> Result<()> {
        let host = &self.apart.host;
        let source = Wheels::of(host, environment).await?;
        for locked in environment.locked()? {
            let wheel = source.find(host, &locked).await?;
            let (size, from) = match (&source, locked.bytes) {
                (Wheels::Index(_), Some(bytes)) => (bytes, From::Url(wheel.from)),
                (Wheels::Index(_), None) => {
                    let inside = host.fetch.into_cache(host, &wheel.from, &locked.sha256).await?;
                    let size = host.files.lstat(&inside)?.map_or(0, |meta| meta.len());
                    (size, From::Path(host.files.outside(&inside)?))
                }
                (Wheels::Directory(..), _) => {
                    let meta = Files::new("/".into()).lstat(&wheel.from)?;
                    (meta.map_or(0, |meta| meta.len()), From::Path(wheel.from.into()))
                }
            };
            let path = format!("{}/{}", wheels::DIRECTORY, wheel.name);
            let file = File { path: path.clone(), size, sha256: locked.sha256 };
            self.wanted.insert(path, (file, from));
        }
        Ok(())
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
                Some(local) => From::Path(PathBuf::from(text::percent_decoded(local))),
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
            Files::new("/".into()).write(&at, &bytes, 0o644)?;
            let file = File { path: path.clone(), size: bytes.len() as u64, sha256: manifest::sum(&bytes) };
            self.wanted.insert(path, (file, From::Path(at)));
        }
        Ok(())
    }

    /// Every file, by path.
    pub(super) fn files(&self) -> impl Iterator<Item = &File> {
        self.wanted.values().map(|(file, _)| file)
    }

    /// Brings everything into the bundle that is not in it.
    pub(super) async fn keep(&self, store: &Store) -> Result<()> {
        let new = self.new_files();
        let callers = Files::new("/".into());
        let mut urls = Vec::new();
        for (file, from) in self.wanted.values() {
            if store.has(file, &new).await? {
                continue;
            }
            match from {
                From::Url(url) => urls.push((file, url)),
                From::Path(path) => {
                    callers.copy(path, new.join("file"))?;
                    if let Err(what) = verify::one(&callers, &new.display().to_string(), "file", file) {
                        let text = format!("{} {what}; nothing of it was kept", path.display());
                        return Err(Error::new(Code::ChecksumMismatch, text));
                    }
                    store.put(&new.join("file"), file).await?;
                }
            }
        }
        for batch in batches(&urls) {
            let item = |(number, (file, url)): (usize, &(&File, &String))| Item {
                uri: (*url).clone(),
                size: file.size,
                sha256: file.sha256.clone(),
                path: new.join(number.to_string()),
            };
            let items: Vec<Item> = batch.iter().enumerate().map(item).collect();
            let failed = fetch_files(&self.apart.host, items.clone()).await?;
            for (number, (file, _)) in batch.iter().enumerate() {
                if !failed.iter().any(|(other, _)| *other == number) {
                    store.put(&items[number].path, file).await?;
                }
            }
            if let Some((_, error)) = failed.into_iter().next() {
                return Err(error);
            }
        }
        Ok(())
    }

    /// The distribution's repositories.
    pub(super) fn repositories(&self) -> Vec<Repository> {
        let of_distribution = self.apart.repos.iter().filter(|r| r.path.starts_with("distribution/"));
        let repository = |r: &Repo| Repository {
            path: r.path.clone(),
            suites: r.suites.clone(),
            components: r.components.clone(),
            keyring: self.apart.keyring.clone(),
        };
        of_distribution.map(repository).collect()
    }

    /// Removes the work.
    pub(super) fn end(self) -> Result<()> {
        Files::new("/".into()).remove_tree(&self.work)
    }
}

/// Files in their order, so many together as may be fetched again after an interruption; a big one by itself.
fn batches<'a, T>(files: &'a [(&'a File, T)]) -> Vec<&'a [(&'a File, T)]> {
    let mut batches = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (number, (file, _)) in files.iter().enumerate() {
        if number > start && (number - start == BATCH || bytes + file.size > BATCH_BYTES) {
            batches.push(&files[start..number]);
            (start, bytes) = (number, 0);
        }
        bytes += file.size;
    }
    batches.extend((start < files.len()).then(|| &files[start..]));
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_fetched_together_is_bounded_in_number_and_bytes() {
        let sizes = |sizes: &[u64]| {
            let file = |size: &u64| File { path: String::new(), size: *size, sha256: String::new() };
            let files: Vec<File> = sizes.iter().map(file).collect();
            let pairs: Vec<(&File, ())> = files.iter().map(|f| (f, ())).collect();
            batches(&pairs).iter().map(|b| b.len()).collect::<Vec<_>>()
        };
        assert_eq!(sizes(&[]), [0; 0]);
        assert_eq!(sizes(&[1; 70]), [32, 32, 6]);
        assert_eq!(sizes(&[1, 1, BATCH_BYTES * 3, 1, BATCH_BYTES - 1, 1]), [2, 1, 2, 1]);
    }
}
