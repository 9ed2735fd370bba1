//! Which signed index vouches for a package file that the configuration gives no SHA-256 for: the one that the configuration
//! names, or that of a repository of the catalog in whose directory the file lies.

use reqwest::Url;

use super::{Context, DebIndex};
use crate::catalog::data::Key;
use crate::config::schema::DebConfig;
use crate::error::{Code, Error, Result};
use crate::host::fetch::redact_url;
use crate::text::parse_url;

/// A directory with an index, its key, and how old it may be.
struct Known<'a> {
    url: String,
    key: &'a Key,
    date_floor: &'a str,
}

/// The index for one entry of `cudnn.deb`.
pub(super) fn find(ctx: &Context, deb: &DebConfig) -> Result<DebIndex> {
    let shown = redact_url(&deb.url);
    if deb.url.starts_with("s3://") {
        return Err(unknown(format!(
            "cudnn.deb: {shown} has no sha256, and no signed index of a bucket is read"
        )));
    }
    let chosen = if deb.repository.is_empty() {
        let mut fitting: Vec<_> = known(ctx).into_iter().filter(|k| is_below(&deb.url, &k.url)).collect();
        fitting.sort_by_key(|k| k.url.len());
        fitting.pop().ok_or_else(|| {
            unknown(format!(
                "cudnn.deb: {shown} has no sha256, and lies in no repository whose signing key the catalog has"
            ))
        })?
    } else {
        named(ctx, deb)?
    };
    Ok(DebIndex {
        url: format!("{}/", chosen.url.trim_end_matches('/')),
        fingerprint: chosen.key.fingerprint.clone(),
        key: chosen.key.armour.clone(),
        architecture: ctx.facts.os.arch.value.debian_name().into(),
        date_floor: chosen.date_floor.into(),
    })
}

fn unknown(text: String) -> Error {
    Error::new(Code::SumUnknown, text)
}

/// What the entry itself names.
fn named<'a>(ctx: &Context<'a>, deb: &DebConfig) -> Result<Known<'a>> {
    let keys = &ctx.catalog.repositories.keys;
    let wished = deb.signed_by.replace(' ', "");
    let is_it = |k: &&Key| k.id == wished || k.fingerprint.eq_ignore_ascii_case(&wished);
    let key = keys.iter().find(is_it).ok_or_else(|| {
        let ids: Vec<_> = keys.iter().map(|k| format!("{} ({})", k.id, k.fingerprint)).collect();
        let text = format!("cudnn.deb: signed-by = {:?} is no key that the catalog has", deb.signed_by);
        Error::new(Code::RepositoryKeyUnknown, text)
            .with_hint(format!("it has {}; others can be added by --catalog", ids.join(", ")))
    })?;
    if !is_below(&deb.url, &deb.repository) {
        let text =
            format!("cudnn.deb: {} does not lie below {}", redact_url(&deb.url), redact_url(&deb.repository));
        return Err(unknown(text).with_hint("repository is the directory that Release and Packages lie in"));
    }
    Ok(Known { url: deb.repository.clone(), key, date_floor: "" })
}

/// Every directory whose index the catalog knows the key of; a mirror stands for NVIDIA's own.
fn known<'a>(ctx: &Context<'a>) -> Vec<Known<'a>> {
    let all = &ctx.catalog.repositories;
    let mirror = Some(ctx.config.source.packages.as_str()).filter(|p| p.starts_with("http"));
    let bases: Vec<&str> = [Some(all.base.as_str()), mirror].into_iter().flatten().collect();
    let mut found = Vec::new();
    for row in &all.rows {
        let Some(key) = all.key_of(row) else { continue };
        let date_floor = row.date_floor.as_deref().unwrap_or_default();
        for directory in row.directories.iter().flat_map(|d| d.values()) {
            let url = |base: &str| format!("{}/{}/{directory}/", base.trim_end_matches('/'), row.distro);
            found.extend(bases.iter().map(|base| Known { url: url(base), key, date_floor }));
        }
    }
    for row in &all.file_indexes {
        let Some(key) = all.keys.iter().find(|k| k.id == row.key) else { continue };
        let date_floor = row.date_floor.as_deref().unwrap_or_default();
        found.extend(row.urls.iter().map(|url| Known { url: url.clone(), key, date_floor }));
    }
    found
}

/// Whether a file lies below a directory, whichever of http and https it is had by: the signature is what counts.
fn is_below(file: &str, directory: &str) -> bool {
    let (Ok(file), Ok(directory)) = (parse_url(file), parse_url(directory)) else { return false };
    let place = |url: &Url| (url.host_str().map(str::to_ascii_lowercase), url.port());
    let path = format!("{}/", directory.path().trim_end_matches('/'));
    place(&file) == place(&directory) && file.path().starts_with(&path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_lies_below_a_directory_by_whole_names_and_real_paths() {
        let directory = "https://repo.example.org/repos/ubuntu1804/x86_64/";
        for (file, below) in [
            ("https://repo.example.org/repos/ubuntu1804/x86_64/a.deb", true),
            ("http://REPO.example.org/repos/ubuntu1804/x86_64/pool/a%2Bb.deb", true),
            ("https://repo.example.org/repos/ubuntu1804/x86_64/../../other/a.deb", false),
            ("https://repo.example.org/repos/ubuntu1804/x86_64more/a.deb", false),
            ("https://repo.example.org:8443/repos/ubuntu1804/x86_64/a.deb", false),
            ("https://evil.example/repos/ubuntu1804/x86_64/a.deb", false),
            ("https://repo.example.org@evil.example/repos/ubuntu1804/x86_64/a.deb", false),
        ] {
            assert_eq!(is_below(file, directory), below, "{file}");
        }
    }
}
