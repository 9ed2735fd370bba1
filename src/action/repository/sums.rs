//! The SHA-256 of a package file by its URL, where nobody publishes one: from the signed index of the repository that the
//! file lies in.
//!
//! The index is fetched and verified apart, by exactly the key that is pinned for it; the machine's apt never hears of the
//! repository. What was verified is kept, so that a later check needs no network.

use std::io::{BufRead, BufReader};

use jiff::Timestamp;

use super::apart::Apart;
use super::control;
use super::private::{Private, malformed};
use super::release::Release;
use crate::action::Converge as _;
use crate::action::apt_key::AptKey;
use crate::catalog::choose::{Deb, DebIndex};
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::host::fetch::redact_url;
use crate::text::parse_url;

/// A sum, and the date of the index that has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sum {
    /// Lower-case hexadecimal.
    pub(crate) sha256: String,
    pub(crate) date: Timestamp,
}

/// What an index that is kept says, without network; `None` where none is kept, or where it does not list the file.
pub(crate) fn kept(host: &Host, deb: &Deb, index: &DebIndex) -> Result<Option<Sum>> {
    let private = Private::of_files(&index.url, &index.fingerprint);
    let Some(release) = private.release(host)? else { return Ok(None) };
    let path = private.packages_path();
    if !host.files.exists(&path)? {
        return Ok(None);
    }
    let file = std::fs::File::open(host.files.outside(&path)?).map_err(|e| Error::io("open", &path, e))?;
    match look_up(BufReader::with_capacity(64 * 1024, file), &release, deb, index) {
        Err(e) if e.code() == Code::SumUnknown => Ok(None),
        found => found.map(Some),
    }
}

/// Fetches the index, and keeps it where it vouches for the file.
pub(crate) async fn derive(host: &Host, deb: &Deb, index: &DebIndex) -> Result<Sum> {
    let private = Private::of_files(&index.url, &index.fingerprint);
    let path = Private::keyring_path(&index.fingerprint);
    let key = AptKey { path: path.clone(), fingerprint: index.fingerprint.clone(), key: index.key.clone() };
    key.apply(host).await?;
    let keyring = host.seen(&path);
    let apart = Apart { url: &index.url, architecture: &index.architecture, keyring: &keyring };
    let verified = apart.fetch(host, &private).await?;
    if !index.date_floor.is_empty() {
        verified.release.refuse_older(&index.url, &index.date_floor)?;
    }
    let sum = look_up(verified.packages.as_slice(), &verified.release, deb, index)?;
    private.keep(host, &verified.release_bytes, &verified.packages)?;
    Ok(sum)
}

/// Takes the sum of exactly this file out of Packages.
fn look_up(packages: impl BufRead, release: &Release, deb: &Deb, index: &DebIndex) -> Result<Sum> {
    let (shown, url) = (redact_url(&deb.url), &index.url);
    let unknown = |why: String| Error::new(Code::SumUnknown, why);
    if release.file("Packages").is_none() {
        return Err(unknown(format!(
            "the index of {url} vouches for its files by MD5 or SHA-1 only, which can be forged"
        )));
    }
    let name = name_below(&deb.url, url).ok_or_else(|| {
        unknown(format!("{shown} does not lie below {url}, whose index is to vouch for it"))
    })?;
    let mut found: Vec<String> = Vec::new();
    control::stream(packages, ["Filename", "SHA256"], |_, [file, sha256]| {
        if file.trim_start_matches("./") == name && !found.contains(sha256) {
            found.push(sha256.to_ascii_lowercase());
        }
        Ok(())
    })
    .map_err(|why| malformed(url, "Packages", &why))?;
    let is_sum = |s: &String| s.len() == 64 && s.bytes().all(|b| b.is_ascii_hexdigit());
    match found.as_slice() {
        [sha256] if is_sum(sha256) => Ok(Sum { sha256: sha256.clone(), date: release.date }),
        [] => Err(unknown(format!("the index of {url} does not list {name}"))),
        [_] => Err(unknown(format!("the index of {url} has no SHA-256 of {name}, only weaker sums"))),
        _ => Err(unknown(format!("the index of {url} has {} different SHA-256 of {name}", found.len()))),
    }
}

/// The file's path below the repository's directory, as `Filename` has it.
fn name_below(file: &str, directory: &str) -> Option<String> {
    let (file, directory) = (parse_url(file).ok()?, parse_url(directory).ok()?);
    let base = format!("{}/", directory.path().trim_end_matches('/'));
    let name = file.path().strip_prefix(&base)?;
    Some(crate::text::percent_decoded(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUM: &str = "07d73672d03836126050e5b78b1a5199fabaa5a540b924903acba00cbfe81848";

    fn looked_up(packages: &str, release: &str, file: &str) -> Result<Sum> {
        let url = "https://repo.example.org/ubuntu1804/x86_64/".to_owned();
        let index = DebIndex {
            url: url.clone(),
            fingerprint: String::new(),
            key: String::new(),
            architecture: "amd64".into(),
            date_floor: String::new(),
        };
        let deb = Deb { url: format!("{url}{file}"), sha256: String::new(), index: Some(index.clone()) };
        let release = Release::parse(release).unwrap();
        look_up(packages.as_bytes(), &release, &deb, &index)
    }

    #[test]
    fn the_sum_is_that_of_exactly_this_file() {
        let release = "Label: x\nDate: Sat, 14 Feb 2026 09:30:00 UTC\nSHA256:\n aa 12 Packages\n";
        let weak = "Label: x\nDate: Sat, 14 Feb 2026 09:30:00 UTC\nSHA1:\n aa 12 Packages\n";
        let stanza = |file: &str, sum: &str| format!("Package: p\nFilename: {file}\n{sum}\n\n");
        let good = stanza("./libcudnn7_7.6.5.32-1+cuda10.2_amd64.deb", &format!("SHA256: {SUM}"));
        let other =
            stanza("./libcudnn7_7.6.5.32-1+cuda10.1_amd64.deb", &format!("SHA256: {}", "0".repeat(64)));
        let both = format!("{other}{good}");
        for written in
            ["libcudnn7_7.6.5.32-1+cuda10.2_amd64.deb", "libcudnn7_7.6.5.32-1%2Bcuda10.2_amd64.deb"]
        {
            assert_eq!(looked_up(&both, release, written).unwrap().sha256, SUM);
        }
        let file = "libcudnn7_7.6.5.32-1+cuda10.2_amd64.deb";
        let md5 = stanza(&format!("./{file}"), "MD5sum: 00");
        let twice = format!("{good}{}", good.replace(SUM, &"1".repeat(64)));
        for (packages, release, why) in [
            (&other, release, "does not list libcudnn7_7.6.5.32-1+cuda10.2_amd64.deb"),
            (&md5, release, "only weaker sums"),
            (&twice, release, "2 different SHA-256"),
            (&both, weak, "MD5 or SHA-1 only"),
        ] {
            let error = looked_up(packages, release, file).unwrap_err();
            assert_eq!(error.code(), Code::SumUnknown);
            assert!(error.message().contains(why), "{error}");
        }
    }
}
