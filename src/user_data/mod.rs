//! What is in user-data: its parts with their types, by cloud-init's own rules, and what becomes of each on a machine
//! with cloud-init and on one without.
//!
//! [`parts`] takes any bytes; [`open`] also has what `#include` names. `tests/e2e/user-data` compares it with cloud-init's `UserDataProcessor`; docs/user-data.md
//! lists the differences. [`crate::config::user_data`] finds our own configuration, with more tolerance.

mod archive;
mod codecs;
mod headers;
mod include;
mod included;
mod message;
mod template;
mod verdict;

use std::fmt;

use codecs::{Unpacking, gunzip, strict_base64};
use include::Link;
pub use included::Included;
use message::{Id, Tree};
pub(crate) use template::filled_in;
pub(crate) use verdict::unsupported;
pub use verdict::{Verdict, describe, document, verdicts};

/// What all gzipped parts of one user-data may unpack to, and all links bring.
pub(crate) const MAX_UNPACKED: usize = 1 << 20;
/// Links that are followed, and links behind links: a sum cannot name itself, but a chain can be long, and a tree wide.
const MAX_LINKS: usize = 64;
const MAX_LINKS_DEEP: usize = 8;
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
const ARCHIVE: &str = "text/cloud-config-archive";
const INCLUDES: [&str; 2] = ["text/x-include-url", "text/x-include-once-url"];
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
    /// More than [`MAX_LINKS`] links, or more than [`MAX_LINKS_DEEP`] behind each other.
    TooManyLinks,
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
            Self::TooLong => write!(f, "gzip, archives and #include bring more than {MAX_UNPACKED} bytes"),
            Self::TooDeep => write!(f, "more than {MAX_DEPTH} MIME messages lie inside each other"),
            Self::TooManyParts => write!(f, "there are more than {MAX_PARTS} parts"),
            Self::TooManyLinks => {
                write!(
                    f,
                    "#include names more than {MAX_LINKS} URLs, or more than {MAX_LINKS_DEEP} behind each other"
                )
            }
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

/// The parts of user-data, in order. Archives are opened; what links name is not there, and they are parts themselves.
pub fn parts(bytes: &[u8]) -> Result<Vec<Part>, Refusal> {
    open(bytes, &Included::default()).map(|opened| opened.parts)
}

/// Parts, and which of them came out of archives and links.
#[derive(Clone, Debug, Default)]
pub struct Opened {
    /// In order.
    pub parts: Vec<Part>,
    /// For each part.
    pub(crate) is_inner: Vec<bool>,
}

/// The parts of user-data, in order, with those that its links name, as far as they are there: a list with one that is not
/// is a part itself.
pub fn open(bytes: &[u8], included: &Included) -> Result<Opened, Refusal> {
    let decoded = strict_base64(bytes);
    let mut opening =
        Opening { tree: Tree::default(), included, budget: MAX_UNPACKED, followed: 0, attached: Vec::new() };
    let root = opening.message(decoded.as_deref().unwrap_or(bytes))?;
    opening.attach(root, 0)?;
    collect(&mut opening.tree, &opening.attached)
}

/// User-data while it is taken apart.
struct Opening<'a> {
    tree: Tree,
    included: &'a Included,
    /// Bytes that may still be unpacked, included or taken out of archives.
    budget: usize,
    /// Links that were followed.
    followed: usize,
    /// What is a part, in order, and whether it came out of an archive or by a link.
    attached: Vec<(Id, bool)>,
}

impl Opening<'_> {
    /// The message that the bytes are, packed or not.
    fn message(&mut self, bytes: &[u8]) -> Result<Id, Refusal> {
        let blob = match gunzip(bytes, self.budget) {
            Ok(unpacked) => {
                self.budget -= unpacked.len();
                unpacked
            }
            // Bytes that only look like gzip are user-data as they are.
            Err(Unpacking::Damaged) => bytes.to_vec(),
            Err(why @ Unpacking::TooLong) => return Err(why.into()),
        };
        let head = blob[..blob.len().min(MIME_WITHIN)].to_ascii_lowercase();
        let tree = if head.windows(MIME_MARK.len()).any(|w| w == MIME_MARK) {
            std::str::from_utf8(&blob).map_err(|_| Refusal::NotUtf8)?;
            Tree::parse(&blob)?
        } else {
            Tree::single(NOT_MULTIPART, blob)
        };
        Ok(self.tree.absorb(tree))
    }

    /// Gives every message in `root` its type and its name, unpacks those that say that they are gzip, and opens what holds
    /// further parts. `depth` links led here.
    fn attach(&mut self, root: Id, depth: usize) -> Result<(), Refusal> {
        let mut last_type = None;
        for id in self.tree.walk(root) {
            if self.tree.is_container(id) {
                continue;
            }
            let mut id = id;
            let mut stated = self.tree.content_type(id);
            let mut bytes = self.tree.decoded(id);
            let is_packed = GZIP_TYPES.contains(&stated.as_str());
            if is_packed {
                bytes = gunzip(&bytes, self.budget)?;
                self.budget -= bytes.len();
                std::str::from_utf8(&bytes).map_err(|_| Refusal::BadPart)?;
                PLAIN.clone_into(&mut stated);
            }
            let content_type = match type_by_beginning(&bytes) {
                Some(found) if [PLAIN, NOT_MULTIPART, SCRIPT].contains(&stated.as_str()) => found,
                _ => &stated,
            };
            if self.opens(content_type, &bytes, depth)? {
                continue;
            }
            if is_packed {
                let filename = self.tree.headers(id).filename();
                id = self.tree.add(content_type, bytes);
                if let Some(filename) = filename.filter(|name| !name.is_empty()) {
                    self.tree.headers(id).set_filename(&filename);
                }
            }
            // A part that got another type loses what else stood in that header, a name for example.
            if content_type != stated {
                self.tree.headers(id).replace("Content-Type", content_type.to_owned());
            }
            if id == root {
                self.tree.headers(root).replace("Content-Type", content_type.to_owned());
            }
            last_type = Some(content_type.to_owned());
            self.push(id, depth > 0);
        }
        // cloud-init gives the whole message the type of each part in turn. That shows where the message is a part itself.
        if let Some(last_type) = last_type {
            self.tree.headers(root).replace("Content-Type", last_type);
        }
        Ok(())
    }

    /// One more part; it gets a number as its name if it has none.
    fn push(&mut self, id: Id, is_inner: bool) {
        self.attached.push((id, is_inner));
        if self.tree.headers(id).filename().is_none_or(|name| name.is_empty()) {
            let number = self.attached.len();
            self.tree.headers(id).set_filename(&format!("part-{number:03}"));
        }
    }

    /// Attaches what an archive or a list of links holds, in its place. `false` where this is none, or one with a mistake,
    /// or not all that it names is there.
    fn opens(&mut self, content_type: &str, bytes: &[u8], depth: usize) -> Result<bool, Refusal> {
        if content_type == ARCHIVE {
            let Ok(entries) = archive::read(bytes) else { return Ok(false) };
            for entry in entries {
                // A text behind an alias stands there once and counts each time.
                self.budget = self.budget.checked_sub(entry.bytes.len()).ok_or(Refusal::TooLong)?;
                let id = self.tree.add(&entry.content_type, entry.bytes);
                if let Some(filename) = entry.filename {
                    self.tree.headers(id).set_filename(&filename);
                }
                self.push(id, true);
            }
            return Ok(true);
        }
        if !INCLUDES.contains(&content_type) {
            return Ok(false);
        }
        let Ok(links) = include::links(bytes) else { return Ok(false) };
        let included = self.included;
        let contents: Option<Vec<_>> = links.iter().map(|link| included.get(&link.sha256)).collect();
        let Some(contents) = contents else { return Ok(false) };
        for content in contents {
            self.followed += 1;
            if depth >= MAX_LINKS_DEEP || self.followed > MAX_LINKS {
                return Err(Refusal::TooManyLinks);
            }
            self.budget = self.budget.checked_sub(content.len()).ok_or(Refusal::TooLong)?;
            let root = self.message(content)?;
            self.attach(root, depth + 1)?;
        }
        Ok(true)
    }
}

/// Links of these parts that can be followed.
pub(crate) fn links(parts: &[Part]) -> Vec<Link> {
    let lists = parts.iter().filter(|part| INCLUDES.contains(&part.content_type.as_str()));
    lists.filter_map(|part| include::links(&part.bytes).ok()).flatten().collect()
}

/// A message inside a part is a part once more.
fn collect(tree: &mut Tree, attached: &[(Id, bool)]) -> Result<Opened, Refusal> {
    let mut found = Opened::default();
    for (id, is_inner) in attached {
        for id in tree.walk(*id) {
            if tree.is_container(id) {
                continue;
            }
            if found.parts.len() >= MAX_PARTS {
                return Err(Refusal::TooManyParts);
            }
            let filename = tree.headers(id).filename().filter(|name| !name.is_empty());
            found.parts.push(Part {
                content_type: tree.content_type(id),
                filename: filename.unwrap_or_else(|| format!("part-{:03}", found.parts.len())),
                bytes: tree.decoded(id),
            });
            found.is_inner.push(*is_inner);
        }
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
        let mut random = crate::text::noise();
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
    fn archives_share_that_limit() {
        let archive = |texts: usize| {
            format!("--b\n\n#cloud-config-archive\n- &x {}\n{}", "x".repeat(1000), "- *x\n".repeat(texts - 1))
        };
        let message = |count| {
            format!(
                "MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=b\n\n{}",
                archive(100).repeat(count)
            )
        };
        assert_eq!(parts(message(10).as_bytes()).unwrap().len(), 1000);
        assert_eq!(parts(message(11).as_bytes()), Err(Refusal::TooLong));
    }

    #[test]
    fn the_limits_are_refusals() {
        let message = b"MIME-Version: 1.0\nContent-Type: application/gzip\n\nno gzip";
        assert_eq!(parts(message), Err(Refusal::BadPart));
        assert_eq!(parts(b"MIME-Version: 1.0\n\n\xff"), Err(Refusal::NotUtf8));
        assert!(Refusal::NotUtf8.is_cloud_inits() && !Refusal::TooDeep.is_cloud_inits());
    }
}
