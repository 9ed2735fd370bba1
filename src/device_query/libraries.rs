//! The CUDA libraries that are installed: the file that a program would load, the version that it says itself, the
//! one of the package that owns it, and the one that the plan installed. [`super::checks`] compares them.

use std::fs;
use std::path::{Path, PathBuf};

use futures_util::future::join_all;

use super::library::{self, Found};
use super::record::LibraryVersion;
use super::{LIBRARY_LIMIT, NotRun, Probe, Run, all};
use crate::catalog::Stack;
use crate::catalog::version::Version;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::host::dpkg::{self, State};

/// What a plan installed, as far as it says. Empty where nobody knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Promised {
    /// Versions of the toolkits, the default one first.
    pub toolkits: Vec<String>,
    /// Version of cuDNN; `auto` where the repository chose it; `None` where none was asked for.
    pub cudnn: Option<String>,
    /// Directories of the toolkits' libraries, where they have their own.
    pub library_dirs: Vec<String>,
}

impl Promised {
    /// What a recorded choice says.
    pub fn of(stack: &Stack) -> Self {
        Self {
            toolkits: stack.toolkits.iter().map(|t| t.version.clone()).collect(),
            cudnn: stack.cudnn_version().map(str::to_owned),
            library_dirs: stack.library_dirs(),
        }
    }

    /// What must be there of a library; empty where nothing was promised.
    fn of_library(&self, name: &str) -> Vec<Promise> {
        let toolkits = || self.toolkits.iter().filter_map(|text| Version::parse(text));
        let mut promises: Vec<Promise> = match name {
            "cudart" => {
                toolkits().map(|v| Promise { soname: Some(cudart_soname(&v)), versions: vec![v] }).collect()
            }
            // Its minor version is its own from CUDA 13 on, and was before 12. A distribution packages it apart.
            "cublas" if !self.library_dirs.is_empty() => toolkits()
                .map(|v| Promise { soname: Some(cublas_soname(&v)), versions: vec![v.prefix(1)] })
                .collect(),
            "cudnn" => self.cudnn.iter().map(|text| Promise::of_cudnn(text)).collect(),
            _ => Vec::new(),
        };
        // Of two toolkits with the same soname, the linker finds one: either will do.
        let mut merged: Vec<Promise> = Vec::new();
        for promise in promises.drain(..) {
            match merged.iter_mut().find(|m| m.soname == promise.soname) {
                Some(known) => known.versions.extend(promise.versions),
                None => merged.push(promise),
            }
        }
        merged
    }
}

/// One library that the plan installed.
#[derive(Clone, Debug)]
struct Promise {
    /// Where its version tells.
    soname: Option<String>,
    /// Any of these, as precise as they are; empty where any version will do.
    versions: Vec<Version>,
}

impl Promise {
    fn of_cudnn(text: &str) -> Self {
        let version = Version::parse(text);
        let soname = version.as_ref().map(|v| format!("libcudnn.so.{}", v.major()));
        Self { soname, versions: version.into_iter().collect() }
    }
}

/// The runtime's soname: with the minor version up to 10, `11.0` for every 11, the major version alone from 12 on.
fn cudart_soname(toolkit: &Version) -> String {
    match toolkit.major() {
        12.. => format!("libcudart.so.{}", toolkit.major()),
        11 => "libcudart.so.11.0".to_owned(),
        _ => format!("libcudart.so.{}", toolkit.prefix(2)),
    }
}

/// cuBLAS's soname: with the minor version up to 10.0.
fn cublas_soname(toolkit: &Version) -> String {
    let minor = Version::parse("10.1").is_some_and(|first| *toolkit < first);
    format!("libcublas.so.{}", toolkit.prefix(if minor { 2 } else { 1 }))
}

/// A kind of library that is asked for its version.
struct Kind {
    /// The probe's argument and stage, and the check's name.
    name: &'static str,
    /// Newest first.
    sonames: &'static [&'static str],
    /// The version from the library's own number.
    version: fn(u64) -> String,
}

const KINDS: &[Kind] = &[
    Kind {
        name: "cudart",
        sonames: &["libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0"],
        version: |n| format!("{}.{}", n / 1000, n % 1000 / 10),
    },
    Kind { name: "cudnn", sonames: &["libcudnn.so.9", "libcudnn.so.8"], version: packed },
    Kind {
        name: "cublas",
        sonames: &["libcublas.so.13", "libcublas.so.12", "libcublas.so.11"],
        version: |n| format!("{}.{}.{}", n / 10_000, n / 100 % 100, n % 100),
    },
    Kind { name: "nccl", sonames: &["libnccl.so.2"], version: packed },
];

/// cuDNN's number up to 8 and NCCL's up to 2.8 have three digits behind the major version, later ones four.
fn packed(n: u64) -> String {
    let unit = if n < 10_000 { 1000 } else { 10_000 };
    format!("{}.{}.{}", n / unit, n % unit / 100, n % 100)
}

/// The package that owns a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Its name.
    pub name: String,
    /// Its whole version.
    pub version: String,
}

impl Owner {
    /// The version of `library`, where the package is that library's own: `11.8.89` of `11.8.89~11.8.0-5~deb12u1`.
    /// A package of many things (a whole toolkit) has a version of its own.
    pub(super) fn version_of(&self, library: &str) -> Option<Version> {
        if !self.name.contains(library) {
            return None;
        }
        let version = self.version.split_once(':').map_or(self.version.as_str(), |(_, v)| v);
        let end = version.find(|c: char| c != '.' && !c.is_ascii_digit()).unwrap_or(version.len());
        Version::parse(version[..end].trim_end_matches('.'))
    }
}

/// A library that is installed, or that should be.
#[derive(Clone, Debug)]
pub struct Installed {
    /// `cudnn`, …
    pub name: &'static str,
    /// The check's name: `library-cudnn`.
    pub check: String,
    /// The process, or why there was none; [`NotRun::Missing`] only where the plan installed it.
    pub run: Run,
    /// What it said.
    pub version: Option<LibraryVersion>,
    /// The package that owns the file.
    pub owner: Option<Owner>,
    /// Whether the plan installed one.
    pub promised: bool,
    /// The versions that it may have by the plan; empty where the plan does not say.
    pub wanted: Vec<Version>,
    /// Another copy of the same soname, which a package owns, where no package owns the one that is loaded.
    pub shadowed: Option<(PathBuf, Owner)>,
}

impl Installed {
    /// The version that it says, for people: `9.8.0`.
    pub fn says(&self) -> Option<String> {
        let kind = KINDS.iter().find(|k| k.name == self.name)?;
        self.version.as_ref()?.version.map(kind.version)
    }

    /// The versions that the plan installed, for people.
    pub fn wanted_words(&self) -> Option<String> {
        let all: Vec<_> = self.wanted.iter().map(ToString::to_string).collect();
        (!all.is_empty()).then(|| all.join(" or "))
    }
}

/// Whether two versions are the same as far as both of them go.
pub(super) fn agree(a: &Version, b: &Version) -> bool {
    let depth = a.depth().min(b.depth());
    a.prefix(depth) == b.prefix(depth)
}

/// Asks every library that is installed, or that the plan promised.
pub(super) async fn ask(probe: &Probe<'_>, promised: &Promised) -> Result<Vec<Installed>> {
    let mut found = Vec::new();
    for kind in KINDS {
        let of_kind = promised.of_library(kind.name);
        if of_kind.is_empty() {
            found.extend(look(probe.host, kind, None, &promised.library_dirs, 0)?);
        }
        for (index, promise) in of_kind.iter().enumerate() {
            found.extend(look(probe.host, kind, Some(promise), &promised.library_dirs, index)?);
        }
    }
    Ok(join_all(found.into_iter().map(|(mut installed, path)| async move {
        if let Some(path) = path {
            installed.run = if probe.loaded {
                probe.run(vec![installed.name.to_owned(), path.display().to_string()], LIBRARY_LIMIT).await
            } else {
                // They load libcuda themselves, or link to it.
                Err(NotRun::NoDriver)
            };
            installed.version = all(&installed.run, installed.name).into_iter().next();
        }
        installed
    }))
    .await)
}

/// The file of one library and what is known of it without loading it.
fn look(
    host: &Host,
    kind: &Kind,
    promise: Option<&Promise>,
    dirs: &[String],
    index: usize,
) -> Result<Option<(Installed, Option<PathBuf>)>> {
    let own: Vec<&str>;
    let sonames = match promise.and_then(|p| p.soname.as_deref()) {
        Some(soname) => {
            own = vec![soname];
            own.as_slice()
        }
        None => kind.sonames,
    };
    let mut installed = Installed {
        name: kind.name,
        check: if index == 0 {
            format!("library-{}", kind.name)
        } else {
            format!("library-{}-{}", kind.name, index + 1)
        },
        run: Err(NotRun::NotAsked),
        version: None,
        owner: None,
        promised: promise.is_some(),
        wanted: promise.map(|p| p.versions.clone()).unwrap_or_default(),
        shadowed: None,
    };
    match library::find(host, sonames, dirs)? {
        Found::At(path) => {
            installed.owner = owner(host, &path)?;
            if installed.owner.is_none() {
                installed.shadowed = shadowed(host, &path, dirs)?;
            }
            Ok(Some((installed, Some(path))))
        }
        Found::Unsafe(why) => {
            installed.run = Err(NotRun::Unsafe(why));
            Ok(Some((installed, None)))
        }
        Found::Nowhere if promise.is_some() => {
            installed.run = Err(NotRun::Missing(sonames.join(", ")));
            Ok(Some((installed, None)))
        }
        Found::Nowhere => Ok(None),
    }
}

/// Another file of the same soname that belongs to a package.
fn shadowed(host: &Host, path: &Path, dirs: &[String]) -> Result<Option<(PathBuf, Owner)>> {
    let soname = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    for other in library::candidates(host, soname, dirs)? {
        if other != path
            && let Some(owner) = owner(host, &other)?
        {
            return Ok(Some((other, owner)));
        }
    }
    Ok(None)
}

/// The installed package that owns the file that `path` leads to. A dpkg database that cannot be read owns nothing
/// here: whether it is in order is not the GPUs' question.
fn owner(host: &Host, path: &Path) -> Result<Option<Owner>> {
    /// Of these words, every package that ships one of the libraries has one in its name.
    const NAMES: [&str; 4] = ["cud", "cublas", "nccl", "nvidia"];
    let Some(real) = resolved(host, path)? else { return Ok(None) };
    let database = match host.packages() {
        Ok(database) => database,
        Err(e) => {
            tracing::debug!("which package owns {} cannot be told: {e}", path.display());
            return Ok(None);
        }
    };
    let likely = database
        .all()
        .filter(|p| p.state == State::Installed && NAMES.iter().any(|word| p.name.contains(word)));
    for package in likely {
        for listed in dpkg::file_list(host, package)?.unwrap_or_default() {
            // The list may name the file by way of a directory that is a link.
            if listed.file_name() == real.file_name() && resolved(host, &listed)?.as_ref() == Some(&real) {
                return Ok(Some(Owner { name: package.name.clone(), version: package.version.clone() }));
            }
        }
    }
    Ok(None)
}

/// The file at the end of all links, seen from outside; `None` where there is none.
fn resolved(host: &Host, path: &Path) -> Result<Option<PathBuf>> {
    let Some(file) = library::real_file(host, path)? else { return Ok(None) };
    match fs::canonicalize(host.files.outside(&file)?) {
        Ok(real) => Ok(Some(real)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("look at", file, e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> Version {
        Version::parse(text).unwrap()
    }

    #[test]
    fn each_librarys_number_is_read_in_its_own_way() {
        let says = |name: &str, n| (KINDS.iter().find(|k| k.name == name).unwrap().version)(n);
        for (name, number, text) in [
            ("cudart", 12080, "12.8"),
            ("cudart", 9010, "9.1"),
            ("cudnn", 90800, "9.8.0"),
            ("cudnn", 8907, "8.9.7"),
            ("cublas", 120_804, "12.8.4"),
            ("cublas", 111_103, "11.11.3"),
            ("nccl", 22602, "2.26.2"),
            ("nccl", 2804, "2.8.4"),
        ] {
            assert_eq!(says(name, number), text, "{name}");
        }
    }

    #[test]
    fn a_packages_version_is_read_up_to_what_is_no_number() {
        for (whole, upstream) in [
            ("9.8.0.87-1", "9.8.0.87"),
            ("11.8.89~11.8.0-5~deb12u1", "11.8.89"),
            ("8.9.7.29-1+cuda12.2", "8.9.7.29"),
            ("1:12.8.90-1", "12.8.90"),
        ] {
            let owner = Owner { name: "libcudnn9-cuda-12".into(), version: whole.into() };
            assert_eq!(owner.version_of("cudnn"), Some(version(upstream)), "{whole}");
            assert_eq!(owner.version_of("cudart"), None);
        }
        let owner = Owner { name: "libcudnn9-cuda-12".into(), version: "git".into() };
        assert_eq!(owner.version_of("cudnn"), None);
    }

    #[test]
    fn sonames_follow_the_toolkits_version() {
        for (toolkit, cudart, cublas) in [
            ("9.1", "libcudart.so.9.1", "libcublas.so.9.1"),
            ("10.0", "libcudart.so.10.0", "libcublas.so.10.0"),
            ("10.2", "libcudart.so.10.2", "libcublas.so.10"),
            ("11.8", "libcudart.so.11.0", "libcublas.so.11"),
            ("12.8.1", "libcudart.so.12", "libcublas.so.12"),
        ] {
            assert_eq!(cudart_soname(&version(toolkit)), cudart);
            assert_eq!(cublas_soname(&version(toolkit)), cublas);
        }
    }

    #[test]
    fn toolkits_that_share_a_soname_are_one_promise() {
        let promised = Promised {
            toolkits: ["12.8", "12.6", "13.0"].map(str::to_owned).to_vec(),
            cudnn: Some("auto".into()),
            library_dirs: vec!["/usr/local/cuda-12.8/lib64".into()],
        };
        let cudart = promised.of_library("cudart");
        assert_eq!(cudart.len(), 2);
        assert_eq!(cudart[0].versions, [version("12.8"), version("12.6")]);
        assert_eq!(promised.of_library("cublas")[0].versions, [version("12"), version("12")]);
        let cudnn = &promised.of_library("cudnn")[0];
        assert!(cudnn.soname.is_none() && cudnn.versions.is_empty());
        assert!(promised.of_library("nccl").is_empty());
        let distribution = Promised { library_dirs: Vec::new(), ..promised };
        assert!(distribution.of_library("cublas").is_empty());
    }

    #[test]
    fn versions_agree_as_far_as_both_go() {
        assert!(
            agree(&version("9.8.0"), &version("9.8.0.87")) && agree(&version("12.8.90"), &version("12.8"))
        );
        assert!(!agree(&version("9.8.0"), &version("9.8.1.2")) && !agree(&version("13"), &version("12.8")));
    }
}
