//! `manifest.json`: what a bundle was made for, and the SHA-256 of every file in it. Its own SHA-256 is what a user pins;
//! nothing of it is read before that has been compared.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::catalog::Stack;
use crate::error::{Code, Error, Result};
use crate::facts::os::Arch;
use crate::text::hex;

/// The manifest's name.
pub const NAME: &str = "manifest.json";
/// How the directory of a bundle's files begins; so many digits of a SHA-256 follow.
const DIRECTORY: &str = "files-";
const DIGITS: usize = 16;
/// What this version reads and writes.
pub const SCHEMA: u32 = 1;
/// No manifest is longer: a thousand packages take 200 KB.
pub const LIMIT: u64 = 16 << 20;

/// The whole manifest. It holds no time: the same artefacts make the same manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Manifest {
    /// [`SCHEMA`]
    pub schema: u32,
    /// Version of the agent that made it.
    pub agent: String,
    /// The machine that it was made for.
    pub made_for: MadeFor,
    /// What it installs.
    pub stack: Stack,
    /// The distribution's repositories in it.
    pub repositories: Vec<Repository>,
    /// What was accepted when it was made.
    pub licences: Vec<Licence>,
    /// The directory of the bundle in which its files lie, named after what they are: a bundle that is made anew in the same
    /// place has another, and this manifest's files stay as they are. Empty where they lie beside the manifest.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub directory: String,
    /// Every file but the manifest, by path.
    pub files: Vec<File>,
}

/// The machine that a bundle was made for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct MadeFor {
    /// As NVIDIA's repositories spell it: `debian12`.
    pub os: String,
    /// dpkg's architecture.
    pub arch: Arch,
    /// Of which instance types, where it was made for some.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub instance_types: Vec<String>,
    /// The kernel whose headers are in it; empty where only those that follow the updates are.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub kernel: String,
    /// What was taken as installed: `minimal`, or the SHA-256 of a dpkg status file.
    pub installed: String,
}

/// A repository of the distribution's, as far as it was taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Repository {
    /// Where it lies in the bundle.
    pub path: String,
    /// Suites.
    pub suites: Vec<String>,
    /// Components; none in a flat repository.
    #[serde(default)]
    pub components: Vec<String>,
    /// The keyring, a file of the bundle.
    pub keyring: String,
}

/// A licence that had to be accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Licence {
    /// `nvidia`
    pub name: String,
    /// How many files of the bundle are under it.
    pub files: usize,
}

/// One file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct File {
    /// Relative to the manifest's directory.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// 64 hexadecimal digits, lower case.
    pub sha256: String,
}

/// What every schema has.
#[derive(Deserialize)]
struct Any {
    schema: u32,
}

impl Manifest {
    /// Compares the sum first, if one is `wanted`; only then is anything read.
    pub fn read(bytes: &[u8], wanted: Option<&str>, place: &str) -> Result<Self> {
        let sum = sum(bytes);
        if let Some(wanted) = wanted.map(str::to_ascii_lowercase).filter(|w| *w != sum) {
            let text =
                format!("the sha256 of {place}/{NAME} is {sum}, wanted is {wanted}; nothing of it was read");
            return Err(Error::new(Code::BundleInvalid, text).with_hint(
                "take the sum that `bundle create` printed; if it is that one, do not trust the bundle",
            ));
        }
        let invalid = |why: String| Error::new(Code::BundleInvalid, format!("{place}/{NAME}: {why}"));
        let any: Any = serde_json::from_slice(bytes).map_err(|e| invalid(e.to_string()))?;
        if any.schema != SCHEMA {
            return Err(invalid(format!("its schema is {}, this version reads {SCHEMA}", any.schema))
                .with_hint("use the version of gpu-bootstrap that made it"));
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(|e| invalid(e.to_string()))?;
        manifest.judge().map_err(invalid)?;
        Ok(manifest)
    }

    /// What cannot be right in it.
    fn judge(&self) -> Result<(), String> {
        let mut seen = HashSet::new();
        if !(self.directory.is_empty() || is_directory(&self.directory)) {
            return Err(format!("{:?} is no directory of a bundle", self.directory));
        }
        for file in &self.files {
            if !is_path(&file.path) {
                return Err(format!("{:?} is no path below the bundle", file.path));
            }
            if file.path == NAME || !seen.insert(file.path.as_str()) {
                return Err(format!("it names {} twice", file.path));
            }
            if file.sha256.len() != 64 || !file.sha256.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
            {
                return Err(format!("the sha256 of {} is not 64 lower-case hexadecimal digits", file.path));
            }
        }
        // They are written into a sources file.
        let is_word = |w: &String| w == "/" || w == "./" || is_path(w.trim_end_matches('/'));
        for repository in &self.repositories {
            let mut words = repository.suites.iter().chain(&repository.components);
            if !is_path(&repository.path)
                || !seen.contains(repository.keyring.as_str())
                || !words.all(is_word)
                || repository.suites.is_empty()
            {
                return Err(format!("its repository {:?} cannot be", repository.path));
            }
        }
        Ok(())
    }

    /// A file by its path.
    pub fn file(&self, path: &str) -> Option<&File> {
        self.files.iter().find(|f| f.path == path)
    }

    /// Where a file lies, relative to the bundle.
    pub fn place(&self, path: &str) -> String {
        join(&self.directory, path)
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|f| f.size).sum()
    }

    /// As it is written.
    pub fn text(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self).unwrap_or_default(); // fails for no value of this type
        bytes.push(b'\n');
        bytes
    }
}

/// SHA-256 in hexadecimal.
pub fn sum(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// A path below a directory of the bundle, which may be the bundle itself.
pub fn join(directory: &str, path: &str) -> String {
    if directory.is_empty() { path.to_owned() } else { format!("{directory}/{path}") }
}

/// What the directory of these files is called: other files, another directory.
pub fn directory_of<'a>(files: impl Iterator<Item = &'a File>) -> String {
    let all = files.fold(String::new(), |text, file| text + &file.sha256 + " " + &file.path + "\n");
    format!("{DIRECTORY}{}", &sum(all.as_bytes())[..DIGITS])
}

/// Whether something is called as the directory of a bundle's files.
pub fn is_directory(name: &str) -> bool {
    let digits = name.strip_prefix(DIRECTORY).unwrap_or_default();
    digits.len() == DIGITS && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whether a path stays below the directory that it is joined to, and can stand in a URL, a key and a sources file.
pub fn is_path(path: &str) -> bool {
    let is_name = |name: &str| {
        !matches!(name, "" | "." | "..")
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._+~:%@=,".contains(&b))
    };
    path.len() <= 900 && path.split('/').all(is_name)
}

#[cfg(test)]
pub(crate) fn example(files: &[(&str, &[u8])]) -> Manifest {
    use crate::catalog::choose::Source;
    Manifest {
        schema: SCHEMA,
        agent: "0".into(),
        made_for: MadeFor {
            os: "debian12".into(),
            arch: Arch::Amd64,
            instance_types: Vec::new(),
            kernel: String::new(),
            installed: "minimal".into(),
        },
        stack: Stack {
            gpu_architectures: vec!["Turing".into()],
            source: Source::Distro { components: Vec::new() },
            driver: None,
            toolkits: Vec::new(),
            cudnn: None,
            cudnn_debs: Vec::new(),
            fabric_manager: None,
            expect_gpus: None,
            most_efa: None,
            gpu_memory: None,
            reasons: Vec::new(),
            unverified: Vec::new(),
        },
        repositories: Vec::new(),
        licences: Vec::new(),
        directory: String::new(),
        files: files
            .iter()
            .map(|(path, bytes)| File { path: (*path).into(), size: bytes.len() as u64, sha256: sum(bytes) })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_is_compared_before_anything_is_read() {
        let error = Manifest::read(b"{ no json", Some(&"0".repeat(64)), "/b").unwrap_err();
        assert!(error.message().contains("nothing of it was read"), "{}", error.message());
        let good = example(&[("a/b.deb", b"x")]).text();
        assert!(Manifest::read(&good, Some(&sum(&good).to_uppercase()), "/b").is_ok());
    }

    #[test]
    fn paths_that_lead_elsewhere_are_refused() {
        for path in ["/etc/passwd", "../x", "a/../../x", "a//b", "a/./b", "", "a\nb", "a b", "manifest.json"]
        {
            let text = example(&[(path, b"x")]).text();
            let error = Manifest::read(&text, None, "/b").unwrap_err();
            assert_eq!(error.code(), Code::BundleInvalid, "{path:?}");
        }
        let twice = example(&[("a", b"x"), ("a", b"y")]).text();
        assert!(Manifest::read(&twice, None, "/b").unwrap_err().message().contains("twice"));
    }

    #[test]
    fn files_lie_in_a_directory_that_is_named_after_them() {
        let of = |files: &[(&str, &[u8])]| directory_of(example(files).files.iter());
        let one = of(&[("a", b"x"), ("b", b"y")]);
        assert!(is_directory(&one), "{one}");
        assert_eq!(one, of(&[("a", b"x"), ("b", b"y")]));
        for other in [of(&[("a", b"x"), ("b", b"z")]), of(&[("a", b"x"), ("c", b"y")]), of(&[("a", b"x")])] {
            assert_ne!(one, other);
        }
        let mut manifest = example(&[("a", b"x")]);
        assert_eq!(manifest.place("a"), "a");
        manifest.directory.clone_from(&one);
        assert_eq!(manifest.place("a"), format!("{one}/a"));
        assert!(Manifest::read(&manifest.text(), None, "/b").is_ok());
        for wrong in ["..", "/etc", "files-", "debs", "files-0123456789abcdeF", "files-0123456789abcdef/.."] {
            manifest.directory = wrong.into();
            assert!(Manifest::read(&manifest.text(), None, "/b").is_err(), "{wrong}");
        }
    }

    #[test]
    fn another_schema_and_unknown_keys_are_refused() {
        let text = String::from_utf8(example(&[]).text()).unwrap();
        let newer = text.replace("\"schema\": 1", "\"schema\": 2");
        assert!(Manifest::read(newer.as_bytes(), None, "/b").unwrap_err().message().contains("schema is 2"));
        let more = text.replace("\"agent\"", "\"more\": 1, \"agent\"");
        assert!(Manifest::read(more.as_bytes(), None, "/b").is_err());
    }

    #[test]
    fn words_of_a_sources_file_are_words() {
        let mut manifest = example(&[("keys/d.gpg", b"k")]);
        let repository = |suite: &str| Repository {
            path: "distribution/0".into(),
            suites: vec![suite.into()],
            components: vec!["main".into()],
            keyring: "keys/d.gpg".into(),
        };
        manifest.repositories = vec![repository("bookworm-security"), repository("./")];
        assert!(Manifest::read(&manifest.text(), None, "/b").is_ok());
        manifest.repositories = vec![repository("x\nTrusted: yes")];
        assert!(Manifest::read(&manifest.text(), None, "/b").is_err());
    }
}
