//! The simulated package repositories: NVIDIA's flat layout, and a small archive that stands in for the
//! distribution's own; both signed by one throw-away key.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::{PoisonError, RwLock};

use hyper::{Method, StatusCode};
use jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::deb::Package;
use super::http::{Answer, Question};
use super::openpgp::Signer;
use crate::error::{Code, Error, Result};
use crate::text::hex;

/// Files by URL path.
pub(super) type Tree = HashMap<String, Vec<u8>>;

/// What the repository's web server serves; filled once the plan says which packages there must be.
#[derive(Default)]
pub(super) struct Site(RwLock<Tree>);

impl Site {
    /// Adds files.
    pub(super) fn add(&self, tree: Tree) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).extend(tree);
    }

    /// One request.
    pub(super) fn answer(&self, question: &Question) -> Answer {
        if question.method != Method::GET && question.method != Method::HEAD {
            return Answer::status(StatusCode::METHOD_NOT_ALLOWED);
        }
        let tree = self.0.read().unwrap_or_else(PoisonError::into_inner);
        // Flat repositories are asked for as `…/./Release`.
        let path = question.path.replace("/./", "/");
        match tree.get(&path) {
            Some(bytes) => Answer::bytes("application/octet-stream", bytes.clone()),
            None => Answer::status(StatusCode::NOT_FOUND),
        }
    }
}

/// A repository laid out as NVIDIA's are: everything in one directory. `base` is its URL path, with slashes at
/// both ends.
pub(super) fn flat(
    base: &str,
    label: &str,
    packages: &[Package],
    signer: &Signer,
    now: Timestamp,
) -> Result<Tree> {
    let mut tree = Tree::new();
    let index = add_packages(&mut tree, base, "./", packages, now)?;
    let head = format!("Origin: NVIDIA\nLabel: {label}\n");
    let indexes = [("Packages".to_owned(), index.into_bytes())];
    add_release(&mut tree, base, &head, &indexes, signer, now)?;
    Ok(tree)
}

/// An archive with a `dists` tree, which the agent knows by its origin to be the distribution's. Every component lists all packages: which of them a package belongs to in the
/// distribution makes no difference here.
pub(super) fn archive(
    origin: &str,
    suite: &str,
    arch: &str,
    components: &[String],
    packages: &[Package],
    signer: &Signer,
    now: Timestamp,
) -> Result<Tree> {
    let mut tree = Tree::new();
    let index = add_packages(&mut tree, "/distribution/", "pool/", packages, now)?;
    let indexes: Vec<_> = components
        .iter()
        .map(|c| {
            // Main stays empty, so that what the user's components hold is really asked of them.
            let content = if c == "main" && components.len() > 1 { String::new() } else { index.clone() };
            (format!("{c}/binary-{arch}/Packages"), content.into_bytes())
        })
        .collect();
    let head = format!(
        "Origin: {origin}\nLabel: {origin}\nSuite: {suite}\nCodename: {suite}\n\
         Architectures: {arch}\nComponents: {}\n",
        components.join(" ")
    );
    add_release(&mut tree, &format!("/distribution/dists/{suite}/"), &head, &indexes, signer, now)?;
    Ok(tree)
}

/// Writes the packages below `base` and returns their index, whose file names start with `prefix`.
fn add_packages(
    tree: &mut Tree,
    base: &str,
    prefix: &str,
    packages: &[Package],
    now: Timestamp,
) -> Result<String> {
    let mut index = String::new();
    let time = u64::try_from(now.as_second()).unwrap_or_default();
    for package in packages {
        let bytes = package.write(time)?;
        let name = package.file_name();
        let _ = writeln!(
            index,
            "{}Filename: {prefix}{name}\nSize: {}\nSHA256: {}\n",
            package.control(),
            bytes.len(),
            hex(&Sha256::digest(&bytes))
        );
        tree.insert(format!("{base}{}{name}", prefix.trim_start_matches("./")), bytes);
    }
    Ok(index)
}

/// Adds the indexes, plain and compressed, and a release file that lists and signs them.
fn add_release(
    tree: &mut Tree,
    base: &str,
    head: &str,
    indexes: &[(String, Vec<u8>)],
    signer: &Signer,
    now: Timestamp,
) -> Result<()> {
    let date = now.strftime("%a, %d %b %Y %H:%M:%S UTC");
    let mut release =
        format!("{head}Date: {date}\nDescription: simulated by gpu-bootstrap rehearse\nSHA256:\n");
    for (name, plain) in indexes {
        let compressed = gzip(plain)?;
        for (name, bytes) in [(name.clone(), plain.clone()), (format!("{name}.gz"), compressed)] {
            let _ = writeln!(release, " {} {:>8} {name}", hex(&Sha256::digest(&bytes)), bytes.len());
            tree.insert(format!("{base}{name}"), bytes);
        }
    }
    tree.insert(format!("{base}InRelease"), signer.cleartext(&release).into_bytes());
    tree.insert(format!("{base}Release.gpg"), signer.detached(release.as_bytes()).into_bytes());
    tree.insert(format!("{base}Release"), release.into_bytes());
    Ok(())
}

fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let done = encoder.write_all(bytes).and_then(|()| encoder.finish());
    done.map_err(|e| Error::new(Code::RehearsalFailed, "cannot compress a simulated index").because(e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flat_layout_has_everything_in_one_directory() {
        let signer = Signer::generate("test", 1_700_000_000).unwrap();
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        let package =
            Package { name: "x".into(), version: "1-1".into(), architecture: "all", ..Package::default() };
        let tree = flat("/repos/debian12/x86_64/", "NVIDIA CUDA", &[package], &signer, now).unwrap();
        let release = String::from_utf8(tree["/repos/debian12/x86_64/Release"].clone()).unwrap();
        assert!(
            release.starts_with("Origin: NVIDIA\nLabel: NVIDIA CUDA\nDate: Tue, 14 Nov 2023 22:13:20 UTC\n")
        );
        let index = &tree["/repos/debian12/x86_64/Packages"];
        assert!(release.contains(&hex(&Sha256::digest(index))));
        assert!(String::from_utf8_lossy(index).contains("\nFilename: ./x_1-1_all.deb\n"));
        assert!(tree.contains_key("/repos/debian12/x86_64/x_1-1_all.deb"));
    }
}
