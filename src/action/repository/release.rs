//! Release files: who a repository says it is, when its index was made, and which files it vouches for.

use jiff::Timestamp;

use super::control;
use crate::error::{Code, Error, Result};

/// What is read from a Release or `InRelease` file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Release {
    /// `Origin`, empty when absent.
    pub(crate) origin: String,
    /// `Label`, empty when absent.
    pub(crate) label: String,
    /// `Date`: when the index was made.
    pub(crate) date: Timestamp,
    /// `Components`, without the directory some archives put before them.
    pub(crate) components: Vec<String>,
    sha256: String,
}

/// A file that a Release vouches for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Vouched<'a> {
    /// Lower-case hexadecimal.
    pub(crate) sha256: &'a str,
    /// Bytes.
    pub(crate) size: u64,
}

impl Release {
    /// Parses a Release file, or the signed part of an `InRelease` file: what stands outside the signature
    /// is nobody's word.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let text = signed_part(text)?;
        let stanzas = control::parse(&text)?;
        let [stanza] = stanzas.as_slice() else {
            return Err(format!("it has {} stanzas, not one", stanzas.len()));
        };
        let get = |name| stanza.get(name).unwrap_or_default().to_owned();
        let date = stanza.get("Date").ok_or("it has no Date")?;
        Ok(Self {
            origin: get("Origin"),
            label: get("Label"),
            date: parse_date(date)?,
            components: get("Components")
                .split_whitespace()
                .map(|c| c.rsplit('/').next().unwrap_or(c).to_owned())
                .collect(),
            sha256: get("SHA256"),
        })
    }

    /// What it says about a file, named relative to itself (`Packages`, `./Packages`).
    pub(crate) fn file(&self, name: &str) -> Option<Vouched<'_>> {
        self.sha256.lines().find_map(|line| {
            let mut words = line.split_whitespace();
            let (sha256, size, path) = (words.next()?, words.next()?, words.next()?);
            let path = path.trim_start_matches("./");
            (path == name).then_some(Vouched { sha256, size: size.parse().ok()? })
        })
    }

    /// Refuses an index that is older than `floor`: these repositories carry no Valid-Until, so that an old index stays
    /// validly signed for ever.
    pub(crate) fn refuse_older(&self, url: &str, floor: &str) -> Result<()> {
        let floor = parse_floor(floor)
            .map_err(|why| Error::new(Code::CatalogInvalid, format!("date floor of {url}: {why}")))?;
        if self.date >= floor {
            return Ok(());
        }
        Err(Error::new(
            Code::IndexTooOld,
            format!(
                "the index of {url} is validly signed but dated {}, older than {floor}: a replayed index?",
                self.date
            ),
        )
        .with_hint("a mirror that is not synchronised any more looks the same: use another address"))
    }
}

/// The text between the headers of a clear-signed message and its signature, dash escapes undone
/// (RFC 9580, section 7); a text that is not clear-signed is returned as it is.
fn signed_part(text: &str) -> Result<String, String> {
    const BEGIN: &str = "-----BEGIN PGP SIGNED MESSAGE-----";
    const SIGNATURE: &str = "-----BEGIN PGP SIGNATURE-----";
    if !text.contains(BEGIN) {
        return Ok(text.to_owned());
    }
    let mut lines = text.lines().map(|l| l.trim_end_matches('\r'));
    if lines.next() != Some(BEGIN) {
        return Err("something stands before its signed part".into());
    }
    let mut lines = lines.skip_while(|l| !l.is_empty()).skip(1);
    let mut signed = String::new();
    for line in &mut lines {
        if line == SIGNATURE {
            return Ok(signed);
        }
        signed.push_str(line.strip_prefix("- ").unwrap_or(line));
        signed.push('\n');
    }
    Err("its signature is missing".into())
}

/// `Sat, 14 Feb 2026 09:30:00 UTC`, with the zone names Debian's archive tools write.
fn parse_date(text: &str) -> Result<Timestamp, String> {
    let numeric = match text.trim().strip_suffix("UTC").or_else(|| text.trim().strip_suffix('Z')) {
        Some(rest) => format!("{} +0000", rest.trim_end()),
        None => text.trim().to_owned(),
    };
    let zoned = jiff::fmt::rfc2822::parse(&numeric).map_err(|e| format!("Date {text:?}: {e}"))?;
    Ok(zoned.timestamp())
}

/// A date floor: `2026-03-01` (midnight, UTC) or a whole RFC 3339 time.
pub(crate) fn parse_floor(text: &str) -> Result<Timestamp, String> {
    let whole = if text.contains('T') { text.to_owned() } else { format!("{text}T00:00:00Z") };
    whole.parse().map_err(|e| format!("{text:?} is no date: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: &str = "Origin: NVIDIA\nLabel: NVIDIA CUDA\nDate: Sat, 14 Feb 2026 09:30:00 UTC\nSHA256:\n \
                         aa 12 Packages\n bb 5 ./Packages.gz\n";

    #[test]
    fn label_date_and_files_are_read() {
        let release = Release::parse(PLAIN).unwrap();
        assert_eq!(release.label, "NVIDIA CUDA");
        assert_eq!(release.date, "2026-02-14T09:30:00Z".parse().unwrap());
        assert_eq!(release.file("Packages"), Some(Vouched { sha256: "aa", size: 12 }));
        assert_eq!(release.file("Packages.gz"), Some(Vouched { sha256: "bb", size: 5 }));
        assert_eq!(release.file("Packages.xz"), None);
        for zone in ["+0000", "GMT", "Z"] {
            assert_eq!(Release::parse(&PLAIN.replace("UTC", zone)).unwrap().date, release.date);
        }
    }

    #[test]
    fn only_the_signed_part_counts() {
        let signed = format!(
            "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA512\n\n{PLAIN}- -X: 1\n\
             -----BEGIN PGP SIGNATURE-----\n\nxx\n-----END PGP SIGNATURE-----\nLabel: Evil\n"
        );
        assert_eq!(Release::parse(&signed).unwrap().label, "NVIDIA CUDA");
        assert!(Release::parse(&format!("Label: Evil\n{signed}")).unwrap_err().contains("before its signed"));
        let cut = signed.split("-----BEGIN PGP SIGNATURE").next().unwrap();
        assert!(Release::parse(cut).unwrap_err().contains("signature is missing"));
    }

    #[test]
    fn a_floor_is_a_date_or_a_time() {
        assert_eq!(parse_floor("2026-03-01").unwrap(), parse_floor("2026-03-01T00:00:00Z").unwrap());
        assert!(parse_floor("March").is_err());
    }
}
