//! `write_files`: whole files with content, owner and mode. A file is written beside its place and renamed; a link that is
//! not root's is never followed ([`crate::host::guarded`]).

use base64::Engine as _;

use super::read::Reader;
use crate::error::{Code, Error, Result};
use crate::facts::accounts::Accounts;
use crate::host::Host;
use crate::host::guarded::Wanted;
use crate::yaml::{Node, Value};

const KEYS: [&str; 7] = ["path", "content", "encoding", "owner", "permissions", "append", "defer"];
/// What one file may unpack to.
const MOST_BYTES: u64 = 16 << 20;

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WantedFile {
    path: String,
    content: Vec<u8>,
    /// Names or numbers; `None` leaves it as it is, which for a new file is root.
    user: Option<String>,
    group: Option<String>,
    mode: u32,
    append: bool,
    pub(super) defer: bool,
}

/// Every entry.
pub(super) fn read(reader: &mut Reader, node: &Node) -> Option<Vec<WantedFile>> {
    Some(reader.list("write_files", node)?.iter().filter_map(|node| entry(reader, node)).collect())
}

fn entry(reader: &mut Reader, node: &Node) -> Option<WantedFile> {
    let map = reader.map("write_files", node, &KEYS)?;
    let Some(path) = map.get("path") else {
        reader.wrong(map.at, "write_files: an entry needs path");
        return None;
    };
    let path_text = reader.line("write_files.path", path)?;
    if !path_text.starts_with('/') || path_text.ends_with('/') {
        reader.wrong(path.at, "write_files.path takes an absolute path of a file");
    }
    let (user, group) = match map.get("owner") {
        Some(node) => owner(&reader.line("write_files.owner", node)?),
        None => (Some("root".into()), Some("root".into())),
    };
    let mut switch = |key: &str| map.get(key).is_some_and(|node| reader.switch(key, node) == Some(true));
    let (append, defer) = (switch("append"), switch("defer"));
    Some(WantedFile {
        content: content(reader, map.get("content"), map.get("encoding"))?,
        mode: map.get("permissions").map_or(Some(0o644), |node| mode(reader, node))?,
        path: path_text,
        user,
        group,
        append,
        defer,
    })
}

/// `user:group`, either of which may be missing.
fn owner(text: &str) -> (Option<String>, Option<String>) {
    let (user, group) = text.split_once(':').unwrap_or((text, ""));
    let named = |name: &str| {
        let name = name.trim();
        (!["", "-1", "none"].contains(&name.to_lowercase().as_str())).then(|| name.to_owned())
    };
    (named(user), named(group))
}

/// A text is octal. A number is what YAML made of it: `0644` means what it says, `644` does not.
fn mode(reader: &mut Reader, node: &Node) -> Option<u32> {
    let mode = match &node.value {
        Value::Int(number) => u32::try_from(*number).ok(),
        Value::Text(text) => {
            let text = text.trim();
            u32::from_str_radix(text.strip_prefix("0o").unwrap_or(text), 8).ok()
        }
        _ => None,
    };
    let mode = mode.filter(|mode| *mode <= 0o7777);
    if mode.is_none() {
        reader.wrong(node.at, "write_files.permissions takes an octal number in quotes, such as '0644'");
    }
    // 644 is 01204 to cloud-init: no mode that anybody wants has the sticky bit and no right for the owner to read.
    let is_decimal =
        matches!(node.value, Value::Int(number) if number >= 400 && mode.is_some_and(|m| m & 0o400 == 0));
    if is_decimal {
        reader.wrong(
            node.at,
            "write_files.permissions: YAML reads this as a decimal number; write it as '0644'",
        );
    }
    mode
}

fn content(reader: &mut Reader, node: Option<&Node>, encoding: Option<&Node>) -> Option<Vec<u8>> {
    let text = node.map_or(Some(String::new()), |node| match &node.value {
        // What stands there without quotes is meant as it is written, which YAML has forgotten.
        Value::Text(text) => Some(text.clone()),
        _ => reader.text("write_files.content", node),
    })?;
    let Some(encoding) = encoding else { return Some(text.into_bytes()) };
    let name = reader.line("write_files.encoding", encoding)?.trim().to_lowercase();
    let (is_base64, is_gzip) = match name.as_str() {
        "text/plain" | "" => (false, false),
        "b64" | "base64" => (true, false),
        "gz" | "gzip" => (false, true),
        "gz+base64" | "gzip+base64" | "gz+b64" | "gzip+b64" => (true, true),
        _ => {
            reader.wrong(
                encoding.at,
                format!("write_files.encoding {name:?} is not supported; supported are text/plain, b64, base64, gz+b64 and gz+base64"),
            );
            return None;
        }
    };
    let at = node.map_or(encoding.at, |node| node.at);
    let mut bytes = text.into_bytes();
    if is_base64 {
        bytes.retain(|b| !b.is_ascii_whitespace());
        match base64::engine::general_purpose::STANDARD.decode(&bytes) {
            Ok(decoded) => bytes = decoded,
            Err(e) => {
                reader.wrong(at, format!("write_files.content is no base64: {e}"));
                return None;
            }
        }
    }
    if is_gzip {
        let Some(unpacked) = gunzip(&bytes) else {
            let text = format!(
                "write_files.content is no gzip, damaged, or unpacks to more than {} MB",
                MOST_BYTES >> 20
            );
            reader.wrong(at, text);
            return None;
        };
        bytes = unpacked;
    }
    Some(bytes)
}

fn gunzip(bytes: &[u8]) -> Option<Vec<u8>> {
    use std::io::Read;
    let mut unpacked = Vec::new();
    let read = flate2::read::MultiGzDecoder::new(bytes).take(MOST_BYTES + 1).read_to_end(&mut unpacked);
    (read.is_ok() && unpacked.len() as u64 <= MOST_BYTES).then_some(unpacked)
}

/// Writes every file. Each is tried; the first failure is what is told.
pub(super) fn apply(host: &Host, files: &[WantedFile]) -> Result<String> {
    let accounts = Accounts::read(&host.files)?;
    let failures: Vec<Error> = files.iter().filter_map(|file| write(host, &accounts, file).err()).collect();
    let failed = failures.len();
    match failures.into_iter().next() {
        None => Ok(format!(
            "{} written",
            files.iter().map(|file| file.path.as_str()).collect::<Vec<_>>().join(", ")
        )),
        Some(first) if failed == 1 => Err(first),
        Some(first) => Err(Error::new(
            first.code(),
            format!("{failed} of {} files failed; the first: {}", files.len(), first.message()),
        )
        .because(first)),
    }
}

fn write(host: &Host, accounts: &Accounts, file: &WantedFile) -> Result<()> {
    let unknown = |kind: &str, name: &str| {
        Error::new(
            Code::UserDataFailed,
            format!("{} is for the {kind} {name}, which this machine does not have", file.path),
        )
        .with_hint("make it by users or groups, and write the file with defer: true")
    };
    let uid = file
        .user
        .as_deref()
        .map(|name| accounts.uid(name).ok_or_else(|| unknown("user", name)))
        .transpose()?;
    let gid = file
        .group
        .as_deref()
        .map(|name| accounts.gid(name).ok_or_else(|| unknown("group", name)))
        .transpose()?;
    let wanted = Wanted { content: &file.content, mode: file.mode, uid, gid, append: file.append };
    host.files.write_guarded(&file.path, &wanted)
}

impl WantedFile {
    /// Path, content, and whether that is put behind what is there.
    pub(crate) fn written(&self) -> (&str, &[u8], bool) {
        (&self.path, &self.content, self.append)
    }

    /// What `user-data check` says.
    pub(super) fn sentence(&self) -> String {
        let (user, group) = (self.user.as_deref().unwrap_or("-"), self.group.as_deref().unwrap_or("-"));
        let verb = if self.append { "appends to" } else { "writes" };
        format!("{verb} {} ({} bytes, {:04o}, {user}:{group})", self.path, self.content.len(), self.mode)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::yaml::parse;

    fn files(text: &str) -> (Vec<WantedFile>, Vec<String>) {
        let mut reader = Reader::default();
        let found = read(&mut reader, &parse(text).unwrap().unwrap()).unwrap_or_default();
        (found, reader.problems.into_iter().map(|p| format!("{}:{} {}", p.at.0, p.at.1, p.text)).collect())
    }

    #[test]
    fn modes_are_octal_however_they_are_written() {
        for (written, mode) in
            [("'0600'", 0o600), ("0600", 0o600), ("\"755\"", 0o755), ("0o640", 0o640), ("'4755'", 0o4755)]
        {
            let (found, problems) = files(&format!("- path: /a\n  permissions: {written}\n"));
            assert_eq!((found[0].mode, problems.len()), (mode, 0), "{written} {problems:?}");
        }
        for wrong in ["644", "755", "'9'", "rw-r--r--", "'77777'", "[1]"] {
            assert!(
                files(&format!("- path: /a\n  permissions: {wrong}\n")).1[0].starts_with("2:16 "),
                "{wrong}"
            );
        }
    }

    #[test]
    fn mistakes_are_named_with_their_place() {
        let (_, problems) = files(
            "- path: a\n- content: x\n- path: /a\n  contents: y\n- path: /b\n  encoding: b64\n  content: '!'\n- path: /c\n  content: 7\n",
        );
        for (problem, words) in problems.iter().zip([
            "1:9 write_files.path takes an absolute path",
            "2:3 write_files: an entry needs path",
            "4:3 write_files.contents is not supported; supported are path, content",
            "7:12 write_files.content is no base64",
            "9:12 write_files.content takes a text, and YAML reads this as a number; put it in quotes",
        ]) {
            assert!(problem.starts_with(words), "{problem}");
        }
        assert_eq!(problems.len(), 5);
    }

    #[test]
    fn owners_may_be_halves() {
        assert_eq!(owner("a:b"), (Some("a".into()), Some("b".into())));
        assert_eq!(owner("a"), (Some("a".into()), None));
        assert_eq!(owner(":b"), (None, Some("b".into())));
        assert_eq!(owner("none:-1"), (None, None));
    }

    #[test]
    fn encodings() {
        let (found, problems) = files(
            "- {path: /a, encoding: b64, content: YQ==}\n- {path: /b, encoding: gz+b64, content: H4sIAAAAAAACA0sEAEO+t+gBAAAA}\n- {path: /c, encoding: gzip, content: x}\n- {path: /d, encoding: xz, content: x}\n",
        );
        assert_eq!(found.iter().map(|f| f.content.as_slice()).collect::<Vec<_>>(), [b"a", b"a"]);
        assert!(
            problems[0].contains("no gzip") && problems[1].contains("\"xz\" is not supported"),
            "{problems:?}"
        );
    }
}
