//! Finding our configuration in EC2 user-data: TOML that begins with the line `#gpu-bootstrap`, as it is, gzipped,
//! base64-encoded (launch templates and scripts sometimes encode twice), or as a part of a MIME multipart message.
//! Everything else belongs to cloud-init or to nobody, and is left alone with a reason. [`super::layers::load`]
//! and `user-data check` call this; the bytes are whatever someone pasted, so nothing here may panic on them.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::path::Path;

use base64::Engine as _;

use super::layers::{self, Layer, Origin};
use super::{carried, mime, url};
use crate::error::{Code, Error, Result};
use crate::user_data::{self as parts, Included};
use crate::user_data_stub;

/// The first line that marks user-data as ours. A comment to TOML.
pub const HEADER: &str = "#gpu-bootstrap";
/// The content type that marks a MIME part as ours, whatever its first line is.
pub const MIME_TYPE: &str = "text/x-gpu-bootstrap";
/// EC2's limit on user-data, before base64.
/// <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-add-user-data.html>
pub const MAX_BYTES: usize = 16_384;
/// What all gzipped parts of one user-data may unpack to. 16 KiB can pretend to be 16 MiB.
const MAX_UNPACKED: usize = 1 << 20;
/// How gzip begins.
const GZIP: &[u8] = b"\x1f\x8b";
/// Wrappings inside wrappings that are followed: base64 of gzip of MIME of gzip is four.
const MAX_DEPTH: usize = 6;

/// What user-data is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UserData {
    /// Configuration of ours: one layer, or one for each MIME part that is ours, in order.
    Config {
        /// The layers, weakest first.
        layers: Vec<Layer>,
        /// What was taken off to get there, outermost first: `base64`, `gzip`, `MIME`.
        wrapping: Vec<&'static str>,
    },
    /// Nothing of ours.
    NotOurs(NotOurs),
}

/// Why user-data holds no configuration of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotOurs {
    /// Nothing, or white space only.
    Empty,
    /// The shell stub that `user-data render` prints; it writes the configuration to a file by itself.
    Stub,
    /// Another script (`#!`).
    Script,
    /// `#cloud-config`.
    CloudConfig,
    /// Another format of cloud-init's (`#include`, `#part-handler`, …).
    CloudInit,
    /// A MIME message without a part of ours.
    MimeWithoutOurs,
    /// A first line that looks like ours, but is not: `# gpu-bootstrap`.
    NearlyOurs,
    /// gzip that is damaged or unpacks to more than [`MAX_UNPACKED`] bytes.
    BadGzip,
    /// Anything else.
    Unknown,
}

impl fmt::Display for NotOurs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "there is no user-data",
            Self::Stub => "the user-data is the stub of `gpu-bootstrap user-data render`",
            Self::Script => "the user-data is a script; cloud-init runs it",
            Self::CloudConfig => "the user-data is #cloud-config; cloud-init reads it",
            Self::CloudInit => "the user-data is in a format of cloud-init's",
            Self::MimeWithoutOurs => "the user-data is a MIME message without a part for gpu-bootstrap",
            Self::NearlyOurs => {
                "the first line of the user-data looks like #gpu-bootstrap, but is written differently"
            }
            Self::BadGzip => "the user-data is gzip that is damaged or unpacks to more than 1 MiB",
            Self::Unknown => "the user-data is in no format that gpu-bootstrap or cloud-init knows",
        })
    }
}

/// Finds out what `bytes` are. Fails only for user-data that is ours and cannot be read (`config-syntax`: not
/// UTF-8; `config-read`: gzip that ends too early).
pub fn read(bytes: &[u8]) -> Result<UserData> {
    let mut budget = MAX_UNPACKED;
    read_within(bytes, &mut budget)
}

/// What the parts of one user-data are, each on its own. Together they may unpack to as much as user-data may.
pub fn read_each<'a>(parts: impl Iterator<Item = &'a [u8]>) -> Vec<Result<UserData>> {
    let mut budget = MAX_UNPACKED;
    parts.map(|bytes| read_within(bytes, &mut budget)).collect()
}

fn read_within(bytes: &[u8], budget: &mut usize) -> Result<UserData> {
    let mut reader = Reader { budget: *budget, wrapping: Vec::new() };
    let found = reader.read(bytes, None);
    *budget = reader.budget;
    found
}

/// All configuration of ours in one user-data.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// What the user-data is, or parts of it are, weakest first.
    pub(crate) layers: Vec<Layer>,
    /// What was taken off to get to the first of them, outermost first.
    wrapping: Vec<&'static str>,
    /// What it puts into files of ours, by their paths.
    pub(crate) carried: BTreeMap<String, Layer>,
    /// What looks like configuration and was not read, and why.
    pub(crate) notices: Vec<String>,
    /// What the user-data is, where it is no configuration itself.
    pub(crate) not_ours: Option<NotOurs>,
}

/// Finds it: as [`read`] does, in archives, behind links as far as that is `included`, and in what it writes to files.
pub(crate) fn find(bytes: &[u8], included: &Included) -> Result<Found> {
    let mut found = match read(bytes)? {
        UserData::Config { layers, wrapping } => Found { layers, wrapping, ..Found::default() },
        UserData::NotOurs(why) => Found { not_ours: Some(why), ..Found::default() },
    };
    // What has no parts is refused where it would be acted on.
    let opened = parts::open(bytes, included).unwrap_or_default();
    let mut budget = MAX_UNPACKED;
    for (part, is_inner) in opened.parts.iter().zip(&opened.is_inner) {
        if !is_inner {
            continue; // read has seen it
        }
        let name = Some(part.filename.clone());
        if part.content_type == MIME_TYPE {
            found.layers.push(Layer::from_bytes(Origin::UserData(name), &part.bytes)?);
        } else if let UserData::Config { layers, .. } = read_within(&part.bytes, &mut budget)? {
            found
                .layers
                .extend(layers.into_iter().map(|l| Layer { origin: Origin::UserData(name.clone()), ..l }));
        }
    }
    let carried = carried::find(&opened.parts)?;
    (found.carried, found.notices) = (carried.files, carried.notices);
    let unfetched = parts::links(&opened.parts).into_iter().map(|link| url::redacted(&link.url));
    found.notices.extend(
        unfetched.map(|url| format!("{url} was not fetched on this machine, so that nothing in it is read")),
    );
    Ok(found)
}

/// Says what the agent makes of the user-data in a file (`user-data check`): its form, and the effective values or
/// every problem; then each part, and what becomes of it. User-data that EC2 would not take is an error.
pub fn check(path: &Path, included: &Included) -> Result<String> {
    let bytes = load(path)?;
    Ok(judge(path, &bytes, included)? + &parts::describe(&bytes, included))
}

/// The same as a JSON document, and the error that [`check`] gives.
pub fn check_json(path: &Path, included: &Included) -> Result<(String, Option<Error>)> {
    let bytes = load(path)?;
    let problem = judge(path, &bytes, included).err();
    Ok((parts::document(&path.display().to_string(), &bytes, included, problem.as_ref()), problem))
}

/// The user-data in a file. What EC2 would not take is an error.
pub(crate) fn load(path: &Path) -> Result<Vec<u8>> {
    let unreadable = |e| Error::new(Code::ConfigRead, format!("cannot read {}", path.display())).because(e);
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(unreadable)?;
    file.take(MAX_UNPACKED as u64).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() > MAX_BYTES {
        let name = path.display();
        let message =
            format!("{name} is longer than {MAX_BYTES} bytes, the most that EC2 takes as user-data");
        return Err(
            Error::new(Code::ConfigRead, message).with_hint("gzip it, or fetch the long part from a URL")
        );
    }
    Ok(bytes)
}

fn judge(path: &Path, bytes: &[u8], included: &Included) -> Result<String> {
    let name = path.display();
    let found = find(bytes, included)?;
    let notices = found.notices.iter().fold(String::new(), |all, notice| format!("{all}{name}: {notice}\n"));
    let carried = found.carried.values().cloned();
    let layers: Vec<_> = carried.chain(found.layers.iter().cloned()).collect();
    if layers.is_empty() {
        return match found.not_ours.unwrap_or(NotOurs::Empty) {
            why @ (NotOurs::NearlyOurs | NotOurs::Unknown) => {
                Err(Error::new(Code::ConfigSyntax, format!("{name}: {why}"))
                    .with_hint(format!("write {HEADER} alone as the first line")))
            }
            why @ NotOurs::BadGzip => Err(Error::new(Code::ConfigSyntax, format!("{name}: {why}"))),
            why => {
                let length = bytes.len();
                Ok(format!("{notices}{name}: no configuration for the agent: {why} ({length} bytes)\n"))
            }
        };
    }
    let values = layers::check_layers(&layers)?;
    let wrapped: String = found.wrapping.iter().map(|w| format!(" in {w}")).rev().collect();
    let form = if found.not_ours.is_some() {
        layers.iter().fold(String::new(), |all, layer| format!("{all} ({})", layer.origin.name()))
    } else {
        wrapped
    };
    Ok(format!("{notices}{name}: configuration{form}, {} bytes: ok\n{values}", bytes.len()))
}

struct Reader {
    /// Bytes that may still be unpacked.
    budget: usize,
    wrapping: Vec<&'static str>,
}

impl Reader {
    /// `part` names the MIME part that `bytes` came from.
    fn read(&mut self, bytes: &[u8], part: Option<&str>) -> Result<UserData> {
        if self.wrapping.len() >= MAX_DEPTH {
            return Ok(UserData::NotOurs(NotOurs::Unknown));
        }
        if bytes.starts_with(GZIP) {
            return self.gzip(bytes, part);
        }
        let why = match by_first_line(bytes) {
            Ok(()) => return self.ours(bytes, part),
            Err(why) => why,
        };
        if why != NotOurs::Unknown {
            return Ok(UserData::NotOurs(why));
        }
        if part.is_none() && is_mime(bytes) {
            return self.mime(bytes);
        }
        if let Some(decoded) = decode_base64(bytes) {
            let mark = self.wrapping.len();
            self.wrapping.push("base64");
            let found = self.read(&decoded, part)?;
            // Any word is valid base64; what decodes to nothing known was no base64.
            if found != UserData::NotOurs(NotOurs::Unknown) {
                return Ok(found);
            }
            self.wrapping.truncate(mark);
        }
        Ok(UserData::NotOurs(why))
    }

    fn ours(&self, bytes: &[u8], part: Option<&str>) -> Result<UserData> {
        let layer = Layer::from_bytes(Origin::UserData(part.map(str::to_owned)), bytes)?;
        Ok(UserData::Config { layers: vec![layer], wrapping: self.wrapping.clone() })
    }

    fn gzip(&mut self, bytes: &[u8], part: Option<&str>) -> Result<UserData> {
        let mut unpacked = Vec::new();
        // Several gzip members in a row are one file, as for gunzip.
        let result =
            flate2::read::MultiGzDecoder::new(bytes).take(self.budget as u64 + 1).read_to_end(&mut unpacked);
        let is_whole = result.is_ok() && unpacked.len() <= self.budget;
        self.budget = self.budget.saturating_sub(unpacked.len());
        if is_whole {
            self.wrapping.push("gzip");
            return self.read(&unpacked, part);
        }
        if by_first_line(&unpacked).is_ok() {
            let message = "the configuration in the user-data is gzip that is damaged, cut off or too long";
            let error = Error::new(Code::ConfigRead, message);
            return Err(match result {
                Err(e) => error.because(e),
                Ok(_) => error,
            });
        }
        Ok(UserData::NotOurs(NotOurs::BadGzip))
    }

    fn mime(&mut self, bytes: &[u8]) -> Result<UserData> {
        self.wrapping.push("MIME");
        let mark = self.wrapping.len();
        let mut layers = Vec::new();
        let mut inside = self.wrapping.clone();
        for (number, part) in mime::parts(bytes).iter().enumerate() {
            let name = format!("MIME part {}", number + 1);
            self.wrapping.truncate(mark);
            let found = match &part.body {
                Some(body) if part.content_type == MIME_TYPE && !body.starts_with(GZIP) => {
                    self.ours(body, Some(&name))?
                }
                Some(body) => self.read(body, Some(&name))?,
                None if part.content_type == MIME_TYPE => {
                    let message = format!("the configuration in the user-data ({name}) is damaged base64");
                    return Err(Error::new(Code::ConfigRead, message));
                }
                None => continue,
            };
            if let UserData::Config { layers: more, wrapping } = found {
                layers.extend(more);
                if wrapping.len() > inside.len() {
                    inside = wrapping;
                }
            }
        }
        if layers.is_empty() {
            return Ok(UserData::NotOurs(NotOurs::MimeWithoutOurs));
        }
        Ok(UserData::Config { layers, wrapping: inside })
    }
}

/// `Ok` if the first line is our header, else what the first line tells. cloud-init's rule: leading white space does
/// not count, nor does case.
fn by_first_line(bytes: &[u8]) -> Result<(), NotOurs> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes).trim_ascii_start();
    let line = bytes.split(|b| *b == b'\n').next().unwrap_or_default();
    // Enough for every header; a "line" of a binary can be long.
    let line = String::from_utf8_lossy(&line[..line.len().min(64)]).to_ascii_lowercase();
    let line = line.trim_end();
    let word = line.split_ascii_whitespace().next().unwrap_or_default();
    let letters: String = line.chars().filter(char::is_ascii_alphanumeric).collect();
    match word {
        "" => Err(NotOurs::Empty),
        HEADER => Ok(()),
        _ if line.starts_with("#!") && user_data_stub::is_stub(bytes) => Err(NotOurs::Stub),
        _ if line.starts_with("#!") => Err(NotOurs::Script),
        _ if line.starts_with('#') && letters.starts_with("gpubootstrap") => Err(NotOurs::NearlyOurs),
        // Longest prefix first, as cloud-init does.
        _ if line.starts_with("#cloud-config-archive") || line.starts_with("#cloud-config-jsonp") => {
            Err(NotOurs::CloudInit)
        }
        _ if line.starts_with("#cloud-config") => Err(NotOurs::CloudConfig),
        _ if ["#cloud-boothook", "#include", "#part-handler", "## template: jinja"]
            .iter()
            .any(|p| line.starts_with(p)) =>
        {
            Err(NotOurs::CloudInit)
        }
        _ => Err(NotOurs::Unknown),
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|w| w == needle)
}

/// cloud-init's rule, and the same message with the one header that matters in front.
fn is_mime(bytes: &[u8]) -> bool {
    let head = bytes[..bytes.len().min(4096)].to_ascii_lowercase();
    contains(&head, b"mime-version:") || head.trim_ascii_start().starts_with(b"content-type: multipart/")
}

/// The decoded bytes if all of `bytes` is base64 (line breaks do not count).
pub(super) fn decode_base64(bytes: &[u8]) -> Option<Vec<u8>> {
    let packed: Vec<u8> = bytes.iter().copied().filter(|b| !b.is_ascii_whitespace()).collect();
    base64::engine::general_purpose::STANDARD.decode(packed).ok()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    const TOML: &str = "#gpu-bootstrap\n[driver]\nbranch = \"580\"\n";

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut e = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        e.write_all(bytes).unwrap();
        e.finish().unwrap()
    }

    fn encode(bytes: &[u8]) -> Vec<u8> {
        base64::engine::general_purpose::STANDARD.encode(bytes).into_bytes()
    }

    #[track_caller]
    fn config(bytes: &[u8]) -> (Vec<Layer>, Vec<&'static str>) {
        match read(bytes).unwrap() {
            UserData::Config { layers, wrapping } => (layers, wrapping),
            UserData::NotOurs(why) => panic!("{why:?}"),
        }
    }

    #[track_caller]
    fn not_ours(bytes: &[u8], why: NotOurs) {
        assert_eq!(read(bytes).unwrap(), UserData::NotOurs(why), "{}", String::from_utf8_lossy(bytes));
    }

    #[test]
    fn toml_plain_and_wrapped() {
        assert_eq!(config(TOML.as_bytes()).0[0].text, TOML);
        for (bytes, wrapping) in [
            (gzip(TOML.as_bytes()), vec!["gzip"]),
            (encode(TOML.as_bytes()), vec!["base64"]),
            (encode(&gzip(TOML.as_bytes())), vec!["base64", "gzip"]),
            (encode(&encode(TOML.as_bytes())), vec!["base64", "base64"]),
            (gzip(&encode(TOML.as_bytes())), vec!["gzip", "base64"]),
        ] {
            let (layers, found) = config(&bytes);
            assert_eq!((layers[0].text.as_str(), found), (TOML, wrapping));
        }
    }

    #[test]
    fn how_people_paste() {
        for text in [
            "\u{feff}#gpu-bootstrap\r\n[driver]\r\nbranch = \"580\"\r\n",
            "\n  #gpu-bootstrap\n[driver]\n",
            "#GPU-Bootstrap\n",
            "#gpu-bootstrap v1\n",
            "#gpu-bootstrap",
        ] {
            assert_eq!(config(text.as_bytes()).0[0].text, text);
        }
        // Lines of 76 characters, as base64(1) writes them.
        let mut wrapped = Vec::new();
        for line in encode(format!("{TOML}# {}\n", "x".repeat(200)).as_bytes()).chunks(76) {
            wrapped.extend_from_slice(line);
            wrapped.extend_from_slice(b"\r\n");
        }
        assert_eq!(config(&wrapped).1, ["base64"]);
    }

    #[test]
    fn what_is_not_ours_has_a_reason() {
        not_ours(b"", NotOurs::Empty);
        not_ours(b" \r\n\t", NotOurs::Empty);
        not_ours(b"#!/bin/sh\necho gpu-bootstrap\n", NotOurs::Script);
        not_ours(b"\n  #!/bin/sh\n# MIME-Version: 1.0\n", NotOurs::Script);
        not_ours(b"#cloud-config\nruncmd: []\n", NotOurs::CloudConfig);
        not_ours(b"#cloud-config-archive\n", NotOurs::CloudInit);
        not_ours(b"#include\nhttps://example.com\n", NotOurs::CloudInit);
        not_ours(b"## template: jinja\n#cloud-config\n", NotOurs::CloudInit);
        not_ours(b"# gpu-bootstrap\n", NotOurs::NearlyOurs);
        not_ours(b"#gpu_bootstrap\n", NotOurs::NearlyOurs);
        not_ours(b"[driver]\nbranch = \"580\"\n", NotOurs::Unknown);
        not_ours(b"1234", NotOurs::Unknown);
        not_ours(&encode(b"#!/bin/sh\n"), NotOurs::Script);
        not_ours(&gzip(b"#cloud-config\n"), NotOurs::CloudConfig);
        not_ours(b"\x1f\x8b\x08\x00garbage", NotOurs::BadGzip);
        not_ours(&gzip(&vec![0; 2 << 20]), NotOurs::BadGzip);
        not_ours(b"\x7fELF\x02\x01\x01\0\0\0", NotOurs::Unknown);
    }

    #[test]
    fn ours_but_unreadable_is_an_error() {
        let whole = gzip(format!("{TOML}{}", "# some text that is long enough\n".repeat(40)).as_bytes());
        let e = read(&whole[..whole.len() - 6]).unwrap_err();
        assert_eq!(e.code(), Code::ConfigRead);
        let bomb = gzip(format!("{TOML}{}", "# \n".repeat(1 << 20)).as_bytes());
        assert_eq!(read(&bomb).unwrap_err().code(), Code::ConfigRead);
        let e = read(b"#gpu-bootstrap\nx = \"\xff\"\n").unwrap_err();
        assert_eq!(
            e.message(),
            "user-data (line 2, column 6): this is not UTF-8 text; save the file as UTF-8"
        );
    }

    fn mime(parts: &[(&str, &str)]) -> String {
        let mut out =
            String::from("Content-Type: multipart/mixed; boundary=\"==BOUND==\"\nMIME-Version: 1.0\n\n");
        for (headers, body) in parts {
            out += &["--==BOUND==", headers, "", body, ""].join("\n");
        }
        out + "--==BOUND==--\n"
    }

    #[test]
    fn a_damaged_part_of_ours_is_an_error_and_somebody_elses_is_not() {
        let base64 = |kind: &str| format!("Content-Type: {kind}\nContent-Transfer-Encoding: base64");
        let ours = mime(&[(&base64(MIME_TYPE), "I2dwdS1ib290c3RyYXAK!")]);
        let error = read(ours.as_bytes()).unwrap_err();
        assert_eq!(error.code(), Code::ConfigRead);
        assert!(error.message().contains("MIME part 1"), "{error}");
        not_ours(mime(&[(&base64("text/x-other"), "!")]).as_bytes(), NotOurs::MimeWithoutOurs);
    }

    #[test]
    fn parts_of_a_mime_message() {
        let base64 = String::from_utf8(encode(TOML.as_bytes())).unwrap();
        let gz = String::from_utf8(encode(&gzip(TOML.as_bytes()))).unwrap();
        let bare = "[driver]\nbranch = \"580\"";
        let script = ("Content-Type: text/x-shellscript; charset=\"us-ascii\"", "#!/bin/sh\necho hi");
        for (headers, body, wrapping) in [
            ("Content-Type: text/x-gpu-bootstrap", bare, vec!["MIME"]),
            ("Content-Type: TEXT/X-GPU-Bootstrap; charset=utf-8", bare, vec!["MIME"]),
            ("Content-Type: text/plain", TOML, vec!["MIME"]),
            ("Content-Type: text/x-gpu-bootstrap\nContent-Transfer-Encoding: base64", &base64, vec!["MIME"]),
            (
                "Content-Type: text/plain\nContent-Transfer-Encoding: quoted-printable",
                "#gpu-bootstrap\n[driver]\nbranch =3D \"580\"",
                vec!["MIME"],
            ),
            ("Content-Type: application/gzip\nContent-Transfer-Encoding: base64", &gz, vec!["MIME", "gzip"]),
            (
                "Content-Type: text/x-gpu-bootstrap\nContent-Transfer-Encoding: base64",
                &gz,
                vec!["MIME", "gzip"],
            ),
        ] {
            let text = mime(&[script, (headers, body)]);
            for text in [text.clone(), text.replace('\n', "\r\n")] {
                let (layers, found) = config(text.as_bytes());
                assert_eq!(found, wrapping, "{text}");
                assert_eq!(layers[0].origin, Origin::UserData(Some("MIME part 2".into())));
                assert!(layers[0].text.contains("branch = \"580\""), "{:?}", layers[0].text);
            }
        }
        not_ours(mime(&[script]).as_bytes(), NotOurs::MimeWithoutOurs);
        assert_eq!(config(&gzip(mime(&[("Content-Type: text/plain", TOML)]).as_bytes())).1, ["gzip", "MIME"]);
    }

    #[test]
    fn several_parts_are_several_layers() {
        let part = "Content-Type: text/x-gpu-bootstrap";
        let (layers, _) = config(mime(&[(part, "a.b = 1"), (part, "a.c = 2")]).as_bytes());
        assert_eq!(layers.len(), 2);
        assert!(layers[1].text.starts_with("a.c = 2"));
    }

    #[test]
    fn a_nested_message_is_followed_and_endless_nesting_is_not() {
        let inner = mime(&[("Content-Type: text/x-gpu-bootstrap", "driver.branch = \"580\"")])
            .replace("BOUND", "INNER");
        let (head, body) = inner.split_once("\n\n").unwrap();
        let (layers, _) = config(mime(&[(head, body)]).as_bytes());
        assert_eq!(layers[0].text.trim(), "driver.branch = \"580\"");
        let mut deep = TOML.as_bytes().to_vec();
        for _ in 0..10 {
            deep = gzip(&deep);
        }
        not_ours(&deep, NotOurs::Unknown);
    }

    #[test]
    fn hostile_bytes_never_panic() {
        let seeds = [
            TOML.as_bytes().to_vec(),
            gzip(TOML.as_bytes()),
            encode(&gzip(TOML.as_bytes())),
            mime(&[
                (
                    "Content-Type: text/x-gpu-bootstrap\nContent-Transfer-Encoding: quoted-printable",
                    "a=3D=\n\"x\"",
                ),
                ("Content-Type: multipart/mixed; boundary=x", "--x\n\n--x--"),
                ("Content-Type: message/rfc822", "MIME-Version: 1.0\n\n#gpu-bootstrap"),
            ])
            .into_bytes(),
        ];
        let mut random = crate::text::noise();
        for round in 0..20_000 {
            let mut bytes = seeds[round % seeds.len()].clone();
            for _ in 0..=random() % 6 {
                let at = random() % bytes.len().max(1);
                match random() % 4 {
                    0 => bytes.truncate(at),
                    1 => bytes.insert(at.min(bytes.len()), random().to_le_bytes()[0]),
                    2 => bytes
                        .splice(at.min(bytes.len())..at.min(bytes.len()), b"\r\n--==BOUND==".iter().copied())
                        .for_each(drop),
                    _ => {
                        if let Some(b) = bytes.get_mut(at) {
                            *b = random().to_le_bytes()[0];
                        }
                    }
                }
            }
            // Any answer will do, as long as there is one.
            let _ = read(&bytes);
        }
    }
}
