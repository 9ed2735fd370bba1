//! `ssh_authorized_keys`: public keys, with options before them or without, added to a user's file. What stands there stays.
//! `disable_root: false` lets root log in by the same keys.

use super::read::Reader;
use crate::error::{Code, Error, Result};
use crate::host::files::Files;
use crate::instance::account::{self, Account};
use crate::instance::authorized_keys::{has, refusal};
use crate::instance::home::AuthorizedKeys;
use crate::instance::public_key::PublicKey;
use crate::yaml::Node;

/// Keys of the login user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Keys {
    lines: Vec<String>,
    /// Root may log in by them, and by the key pair.
    for_root: bool,
}

/// What both keys say.
pub(super) fn read_keys(
    reader: &mut Reader,
    keys: Option<&Node>,
    disable_root: Option<&Node>,
) -> Option<Keys> {
    let lines = keys.map(|node| read(reader, "ssh_authorized_keys", node));
    let for_root = disable_root.is_some_and(|node| reader.switch("disable_root", node) == Some(false));
    (lines.is_some() || for_root).then(|| Keys { lines: lines.unwrap_or_default(), for_root })
}

impl Keys {
    pub(super) fn sentence(&self) -> String {
        let root = if self.for_root { ", and root may log in by them and the key pair" } else { "" };
        format!("{} keys for the login user{root}", self.lines.len())
    }
}

/// The lines, each of which sshd would take.
pub(super) fn read(reader: &mut Reader, key: &str, node: &Node) -> Vec<String> {
    let lines = reader.lines(key, node).unwrap_or_default();
    for line in &lines {
        if let Err(why) = public_key(line) {
            let shown: String = line.chars().take(40).collect();
            reader.wrong(node.at, format!("{key}: {shown:?} is no public key: {why}"));
        }
    }
    lines.iter().map(|line| line.trim().to_owned()).collect()
}

/// The key in a line that may have options before it.
fn public_key(line: &str) -> Result<PublicKey, String> {
    let line = line.trim();
    PublicKey::parse(line).or_else(|why| {
        // Options end with the first blank that is not in quotes (sshd(8)).
        let mut is_quoted = false;
        let mut is_escaped = false;
        let end = line.find(|c: char| {
            if c == '"' && !is_escaped {
                is_quoted = !is_quoted;
            }
            is_escaped = c == '\\' && !is_escaped;
            !is_quoted && (c == ' ' || c == '\t')
        });
        let rest = end.map(|end| line[end..].trim_start()).unwrap_or_default();
        PublicKey::parse(rest).map_err(|_| why)
    })
}

/// Adds the keys to the user's file. Returns whether anything was changed.
pub(super) fn add(files: &Files, user: &str, lines: &[String]) -> Result<bool> {
    let account = account::login(files, user)?;
    write(files, &account, lines)
}

/// The keys for the login user, and a word for whoever tries root with one of them, as for the key pair.
pub(super) fn apply(files: &Files, user: &str, keys: &Keys) -> Result<String> {
    let account = account::login(files, user)?;
    let lines = &keys.lines;
    write(files, &account, lines)?;
    if let Some(root) = account::superuser(files)?.filter(|root| root.uid != account.uid) {
        let refusal = refusal(&account.name);
        if keys.for_root {
            let mut file = AuthorizedKeys::open(files, &root)?;
            let welcome = merge(&without(&refusal, file.content()), lines)?;
            file.write(&welcome)?;
            return Ok(format!(
                "{} and root may log in by {} keys of the user-data and the key pair",
                account.name,
                lines.len()
            ));
        }
        let refused: Vec<String> = lines
            .iter()
            .filter_map(|line| public_key(line).ok())
            .map(|key| format!("{refusal} {}", key.line()))
            .collect();
        write(files, &root, &refused)?;
    }
    Ok(format!("{} may log in by {} keys of the user-data", account.name, lines.len()))
}

/// The lines without the refusal that stands before them.
fn without(refusal: &str, content: &[u8]) -> Vec<u8> {
    let refusal = format!("{refusal} ");
    let lines = content.split_inclusive(|b| *b == b'\n');
    lines.flat_map(|line| line.strip_prefix(refusal.as_bytes()).unwrap_or(line)).copied().collect()
}

fn write(files: &Files, account: &Account, lines: &[String]) -> Result<bool> {
    let mut file = AuthorizedKeys::open(files, account)?;
    let merged = merge(file.content(), lines)?;
    file.write(&merged)
}

fn merge(content: &[u8], lines: &[String]) -> Result<Vec<u8>> {
    let mut merged = content.to_vec();
    for line in lines {
        let key = public_key(line).map_err(|why| Error::new(Code::UserDataInvalid, why))?;
        let bare = key.bare();
        if String::from_utf8_lossy(&merged).lines().any(|known| has(known, &bare)) {
            continue;
        }
        if merged.last().is_some_and(|b| *b != b'\n') {
            merged.push(b'\n');
        }
        merged.extend_from_slice(format!("{line}\n").as_bytes());
    }
    Ok(merged)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOSiGVDiFa++x5w97nqER1hKffHxP6aFSK0irMVLZOeI";

    #[test]
    fn keys_with_options_are_keys() {
        for line in [
            format!("{KEY} me"),
            format!("from=\"10.0.0.0/8\" {KEY}"),
            format!("command=\"echo \\\"a b\\\"\",no-pty {KEY} me"),
        ] {
            assert_eq!(public_key(&line).unwrap().bare(), KEY, "{line}");
        }
        for line in ["", "ssh-rsa", "from=\"x ssh-ed25519 AAAA", "me@host"] {
            assert!(public_key(line).is_err(), "{line}");
        }
    }

    #[test]
    fn a_refusal_is_taken_away_and_nothing_else() {
        let refusal = refusal("admin");
        let before = format!("{refusal} {KEY} pair #gpu-bootstrap\nno-pty {KEY}\n{refusal}\n");
        let after = format!("{KEY} pair #gpu-bootstrap\nno-pty {KEY}\n{refusal}\n");
        assert_eq!(String::from_utf8(without(&refusal, before.as_bytes())).unwrap(), after);
    }

    #[test]
    fn what_is_there_stays_and_nothing_is_there_twice() {
        let lines = [format!("{KEY} a"), format!("no-pty {KEY} b")];
        let once = merge(b"ssh-rsa AAAA mine", &lines).unwrap();
        assert_eq!(String::from_utf8_lossy(&once), format!("ssh-rsa AAAA mine\n{KEY} a\n"));
        assert_eq!(merge(&once, &lines).unwrap(), once);
    }
}
