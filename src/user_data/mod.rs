//! What is in user-data: its parts with their types, by cloud-init's own rules, and what becomes of each on a machine
//! with cloud-init and on one without.
//!
//! [`parts`] takes any bytes. `tests/e2e/user-data` compares it with cloud-init's `UserDataProcessor`; docs/user-data.md
//! lists the differences. [`crate::config::user_data`] finds our own configuration, with more tolerance.

mod codecs;
mod headers;
mod message;
mod verdict;

use std::fmt;

use codecs::{Unpacking, gunzip, strict_base64};
use message::{Id, Tree};
pub(crate) use verdict::unsupported;
pub use verdict::{Verdict, describe, document, verdicts};

/// What all gzipped parts of one user-data may unpack to.
const MAX_UNPACKED: usize = 1 << 20;
/// Messages inside messages that are read.
const MAX_DEPTH: usize = 32;
/// Messages in one user-data, those that only hold others included; and parts.
const MAX_PARTS: usize = 1024;
/// User-data is a MIME message if this stands in its first [`MIME_WITHIN`] bytes, in any case.
const MIME_MARK: &[u8] = b"mime-version:";
const MIME_WITHIN: usize = 4096;

/// User-data that is no MIME message and begins like nothing that is known.
pub const NOT_MULTIPART: &str = "text/x-not-multipart";
const PLAIN: &str = "text/plain";
const SCRIPT: &str = "text/x-shellscript";
/// Content types of gzip.
const GZIP_TYPES: [&str; 8] = [
    "application/gzip",
    "application/gzip-compressed",
    "application/gzipped",
    "application/x-compress",
    "application/x-compressed",
    "application/x-gunzip",
    "application/x-gzip",
    "application/x-gzip-compressed",
];
/// How a part begins, in lower case, and its type then; the longest first.
const BEGINNINGS: [(&str, &str); 12] = [
    ("text/x-shellscript-per-instance", "text/x-shellscript-per-instance"),
    ("text/x-shellscript-per-boot", "text/x-shellscript-per-boot"),
    ("text/x-shellscript-per-once", "text/x-shellscript-per-once"),
    ("#cloud-config-archive", "text/cloud-config-archive"),
    ("#cloud-config-jsonp", "text/cloud-config-jsonp"),
    ("## template: jinja", "text/jinja2"),
    ("#cloud-boothook", "text/cloud-boothook"),
    ("#include-once", "text/x-include-once-url"),
    ("#cloud-config", "text/cloud-config"),
    ("#part-handler", "text/part-handler"),
    ("#include", "text/x-include-url"),
    ("#!", SCRIPT),
];

/// One part of user-data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// `type/subtype`, from the header or from how the part begins.
    pub content_type: String,
    /// From the header, or `part-001`.
    pub filename: String,
    /// Without compression and transfer encoding.
    pub bytes: Vec<u8>,
}

/// Why user-data has no parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A MIME message that is not UTF-8.
    NotUtf8,
    /// A part that calls itself gzip cannot be unpacked, or is no text then.
    BadPart,
    /// More than [`MAX_UNPACKED`] bytes.
    TooLong,
    /// More than [`MAX_DEPTH`] messages inside messages.
    TooDeep,
    /// More than [`MAX_PARTS`] parts.
    TooManyParts,
}

impl Refusal {
    /// Whether cloud-init gives up on it as well. The limits are ours alone.
    pub fn is_cloud_inits(self) -> bool {
        matches!(self, Self::NotUtf8 | Self::BadPart)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotUtf8 => f.write_str("the MIME message is not UTF-8 text"),
            Self::BadPart => f.write_str("a gzipped part of the MIME message is damaged or no text"),
            Self::TooLong => write!(f, "gzip unpacks to more than {MAX_UNPACKED} bytes"),
            Self::TooDeep => write!(f, "more than {MAX_DEPTH} MIME messages lie inside each other"),
            Self::TooManyParts => write!(f, "there are more than {MAX_PARTS} parts"),
        }
    }
}

impl From<Unpacking> for Refusal {
    fn from(why: Unpacking) -> Self {
        match why {
            Unpacking::Damaged => Self::BadPart,
            Unpacking::TooLong => Self::TooLong,
        }
    }
}

/// The parts of user-data, in order. Included URLs are not followed and archives are not opened: they are parts.
pub fn parts(bytes: &[u8]) -> Result<Vec<Part>, Refusal> {
    let mut budget = MAX_UNPACKED;
    let decoded = strict_base64(bytes);
    let bytes = decoded.as_deref().unwrap_or(bytes);
    let blob = match gunzip(bytes, budget) {
        Ok(unpacked) => {
            budget -= unpacked.len();
            unpacked
        }
        // Bytes that only look like gzip are user-data as they are.
        Err(Unpacking::Damaged) => bytes.to_vec(),
        Err(why @ Unpacking::TooLong) => return Err(why.into()),
    };
    let head = blob[..blob.len().min(MIME_WITHIN)].to_ascii_lowercase();
    let mut tree = if head.windows(MIME_MARK.len()).any(|w| w == MIME_MARK) {
        std::str::from_utf8(&blob).map_err(|_| Refusal::NotUtf8)?;
        Tree::parse(&blob)?
    } else {
        Tree::single(NOT_MULTIPART, blob)
    };
    let attached = attach(&mut tree, budget)?;
    collect(&mut tree, &attached)
}

/// Gives every message its type and its name, and unpacks those that say that they are gzip.
fn attach(tree: &mut Tree, mut budget: usize) -> Result<Vec<Id>, Refusal> {
    const ROOT: Id = 0;
    let (mut attached, mut last_type) = (Vec::new(), String::new());
    for id in tree.walk(ROOT) {
        if tree.is_container(id) {
            continue;
        }
        let mut id = id;
        let mut stated = tree.content_type(id);
        let mut bytes = tree.decoded(id);
        let is_packed = GZIP_TYPES.contains(&stated.as_str());
        if is_packed {
            bytes = gunzip(&bytes, budget)?;
            budget -= bytes.len();
            std::str::from_utf8(&bytes).map_err(|_| Refusal::BadPart)?;
            PLAIN.clone_into(&mut stated);
        }
        let content_type = match type_by_beginning(&bytes) {
            Some(found) if [PLAIN, NOT_MULTIPART, SCRIPT].contains(&stated.as_str()) => found,
            _ => &stated,
        };
        if is_packed {
            let filename = tree.headers(id).filename();
            id = tree.add(content_type, bytes);
            if let Some(filename) = filename.filter(|name| !name.is_empty()) {
                tree.headers(id).set_filename(&filename);
            }
        }
        // A part that got another type loses what else stood in that header, a name for example.
        if content_type != stated {
            tree.headers(id).replace("Content-Type", content_type.to_owned());
        }
        content_type.clone_into(&mut last_type);
        if id == ROOT {
            tree.headers(ROOT).replace("Content-Type", last_type.clone());
        }
        attached.push(id);
        if tree.headers(id).filename().is_none_or(|name| name.is_empty()) {
            tree.headers(id).set_filename(&format!("part-{:03}", attached.len()));
        }
    }
    // cloud-init gives the whole message the type of each part in turn. That shows where the message is a part itself.
    if !attached.is_empty() {
        tree.headers(ROOT).replace("Content-Type", last_type);
    }
    Ok(attached)
}

/// A message inside a part is a part once more.
fn collect(tree: &mut Tree, attached: &[Id]) -> Result<Vec<Part>, Refusal> {
    let mut found = Vec::new();
    for id in attached.iter().flat_map(|id| tree.walk(*id)).collect::<Vec<_>>() {
        if tree.is_container(id) {
            continue;
        }
        if found.len() >= MAX_PARTS {
            return Err(Refusal::TooManyParts);
        }
        let filename = tree.headers(id).filename().filter(|name| !name.is_empty());
        found.push(Part {
            content_type: tree.content_type(id),
            filename: filename.unwrap_or_else(|| format!("part-{:03}", found.len())),
            bytes: tree.decoded(id),
        });
    }
    Ok(found)
}

/// The type of what begins like this, white space and case aside.
fn type_by_beginning(bytes: &[u8]) -> Option<&'static str> {
    let text = String::from_utf8_lossy(bytes);
    // Lower case can be longer than upper case, never more than three times.
    let start: String =
        text.trim_start_matches(headers::is_space).chars().take(32).collect::<String>().to_lowercase();
    BEGINNINGS
        .iter()
        .find(|(beginning, _)| start.starts_with(beginning))
        .map(|(_, content_type)| *content_type)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn has(user_data: &[u8], wanted: &[(&str, &str, &str)]) {
        let found = parts(user_data).unwrap();
        let found: Vec<_> = found
            .iter()
            .map(|p| (p.content_type.as_str(), p.filename.as_str(), std::str::from_utf8(&p.bytes).unwrap()))
            .collect();
        assert_eq!(found, wanted, "{:?}", String::from_utf8_lossy(user_data));
    }

    #[test]
    fn a_part_with_another_type_than_stated_loses_its_name() {
        let part = |kind: &str| format!("MIME-Version: 1.0\nContent-Type: {kind}; name=x.sh\n\n#!/bin/sh");
        let inside = |kind: &str| {
            let part = part(kind).replace("MIME-Version: 1.0\n", "");
            format!("MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=b\n\n--b\n{part}\n--b--\n")
        };
        has(inside("text/x-shellscript").as_bytes(), &[(SCRIPT, "x.sh", "#!/bin/sh")]);
        has(inside("text/plain").as_bytes(), &[(SCRIPT, "part-001", "#!/bin/sh")]);
        // A message that is its only part gets the header anew in any case.
        has(part("text/x-shellscript").as_bytes(), &[(SCRIPT, "part-001", "#!/bin/sh")]);
    }

    #[test]
    fn a_message_in_a_message_is_seen_twice() {
        let text =
            "MIME-Version: 1.0\nContent-Type: message/rfc822\n\nContent-Type: text/plain\n\n#cloud-config";
        has(
            text.as_bytes(),
            &[
                ("text/cloud-config", "part-001", ""),
                ("text/cloud-config", "part-002", "#cloud-config"),
                ("text/cloud-config", "part-002", "#cloud-config"),
            ],
        );
    }

    #[test]
    fn hostile_bytes_never_panic() {
        let seeds = [
            "MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=\"b\"\n\n--b\nContent-Type: message/rfc822\n\n\
             Content-Type: multipart/digest; boundary*0*=''%63\n\n--c\n\n\nx\n--c--\n--b\nContent-Type: application/gzip\n\
             Content-Transfer-Encoding: base64\n\nH4sIAAAAAAACA1NW1E/KzNMvzuACAAYjrUYKAAAA\n--b--\n",
            "Content-Type: message/delivery-status\nMIME-Version: 1.0\n\nA: b\n c\n\nFrom x\n\n",
            "MIME-Version: 1.0\nContent-Transfer-Encoding: quoted-printable\nContent-Disposition: a; filename*1=\"b;c\"; \
             filename*0*=utf-8''%C3%BC\n\n#!/bin/sh=3D=\n",
        ];
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            usize::try_from(state >> 16).unwrap()
        };
        let signs = [
            &b"\n"[..],
            b"\r\n--b",
            b"--c--\r",
            b"\xff",
            b"\xe2\x80",
            b"=",
            b"*0*=",
            b"\"",
            b";",
            b"%",
            b":",
            b" ",
            b"",
        ];
        for round in 0..20_000 {
            let mut bytes = seeds[round % seeds.len()].as_bytes().to_vec();
            for _ in 0..=random() % 6 {
                let from = random() % (bytes.len() + 1);
                let to = (from + random() % 3).min(bytes.len());
                bytes.splice(from..to, signs[random() % signs.len()].iter().copied());
            }
            for part in parts(&bytes).iter().flatten() {
                assert!(!part.filename.is_empty() && part.content_type.contains('/'), "{part:?}");
            }
        }
    }

    #[test]
    fn parts_share_one_limit_on_what_they_unpack_to() {
        let bomb = "H4sIAAAAAAACA+3BMQEAAADCoPVPbQwfoAAAAAAAAAAAAAAAAAAAAIC3AYbSVKsAQAAA"; // 16 KiB
        let part =
            format!("--b\nContent-Type: application/gzip\nContent-Transfer-Encoding: base64\n\n{bomb}\n");
        let message = |count| {
            format!("MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=b\n\n{}", part.repeat(count))
        };
        assert_eq!(parts(message(64).as_bytes()).unwrap().len(), 64);
        assert_eq!(parts(message(65).as_bytes()), Err(Refusal::TooLong));
    }

    #[test]
    fn the_limits_are_refusals() {
        let message = b"MIME-Version: 1.0\nContent-Type: application/gzip\n\nno gzip";
        assert_eq!(parts(message), Err(Refusal::BadPart));
        assert_eq!(parts(b"MIME-Version: 1.0\n\n\xff"), Err(Refusal::NotUtf8));
        assert!(Refusal::NotUtf8.is_cloud_inits() && !Refusal::TooDeep.is_cloud_inits());
    }
}
