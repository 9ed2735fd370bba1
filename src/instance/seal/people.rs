//! Who may log in, and what users left: below every home, and never over a link of a user's.

use std::ffi::OsStr;
use std::rc::Rc;

use super::Scene;
use super::trace::{Found, ends};
use crate::error::Result;
use crate::host::directory::{Directory, Entry};
use crate::instance::account;
use crate::instance::home::TEMPORARY;

const SSH: &str = ".ssh";
/// Where sshd looks by default; and what a power cut may have left of one.
const KEYS: [&str; 3] = ["authorized_keys", "authorized_keys2", TEMPORARY];
/// Of shells and of programs that ask like one.
const HISTORY: [&str; 11] = [
    ".bash_history",
    ".zsh_history",
    ".sh_history",
    ".history",
    ".python_history",
    ".node_repl_history",
    ".sqlite_history",
    ".mysql_history",
    ".psql_history",
    ".lesshst",
    ".viminfo",
];
const FISH: [&str; 3] = [".local", "share", "fish"];
/// Secrets that people put there, and that only they can tell from what the image is to have.
const SECRETS: [(&str, &str); 4] =
    [(".aws", "credentials"), (".docker", "config.json"), ("", ".netrc"), ("", ".git-credentials")];

/// Every home that there is.
fn homes(scene: &Scene<'_>) -> Result<Vec<Rc<Directory>>> {
    let mut homes = Vec::new();
    for path in account::homes(scene.files)? {
        homes.extend(Directory::open_followed(scene.files, &path, &scene.mounts)?.map(Rc::new));
    }
    Ok(homes)
}

/// Keys that let anybody in, whoever they are of: those of an instance are in the metadata service.
pub(super) fn keys(scene: &Scene<'_>, found: &mut Found) -> Result<()> {
    for home in homes(scene)? {
        match home.enter(SSH.as_ref()) {
            Ok(Some(directory)) => keys_in(&Rc::new(directory), found)?,
            Ok(None) => {}
            Err(error) => found.refused.push(error),
        }
        secrets(&home, found);
    }
    other_ways_in(scene, found)
}

fn keys_in(directory: &Rc<Directory>, found: &mut Found) -> Result<()> {
    for name in directory.names()? {
        let text = name.to_string_lossy();
        if KEYS.contains(&&*text) {
            let content = directory.read(&name)?.unwrap_or_default();
            let is_key = |line: &&[u8]| !line.trim_ascii().is_empty() && !line.trim_ascii().starts_with(b"#");
            let number = content.split(|b| *b == b'\n').filter(is_key).count();
            found.take(directory, &name, &format!(" (keys: {number})"));
        } else if text.starts_with("id_") && !ends(&text, ".pub") {
            found.leave(directory.path().join(&name), "is a private key of a user");
        }
    }
    Ok(())
}

fn secrets(home: &Rc<Directory>, found: &mut Found) {
    for (inner, name) in SECRETS {
        let below = if inner.is_empty() { Ok(None) } else { home.enter(inner.as_ref()) };
        let Ok(below) = below else { continue }; // a link of the user's, which is not followed
        let directory = match &below {
            Some(below) => below,
            None if inner.is_empty() => home,
            None => continue,
        };
        if let Ok(Some(Entry::File { bytes: 1.., .. })) = directory.entry(name.as_ref()) {
            found.leave(directory.path().join(name), "may hold a secret of a user's");
        }
    }
}

/// Ways in that are the image's to have or not: passwords, and keys that lie elsewhere.
fn other_ways_in(scene: &Scene<'_>, found: &mut Found) -> Result<()> {
    const SHADOW: &str = "/etc/shadow";
    for line in scene.files.read_text(SHADOW)?.unwrap_or_default().lines() {
        let mut fields = line.split(':');
        if let (Some(user), Some(password)) = (fields.next(), fields.next())
            && !password.starts_with(['!', '*'])
        {
            found.leave(SHADOW, format!("gives {user} a password"));
        }
    }
    let parts = scene.files.list("/etc/ssh/sshd_config.d")?;
    let parts = parts.iter().filter(|name| ends(name, ".conf"));
    let files = parts.map(|name| format!("/etc/ssh/sshd_config.d/{name}"));
    for path in files.chain(["/etc/ssh/sshd_config".into()]) {
        for (at, line) in scene.files.read_text(&path)?.unwrap_or_default().lines().enumerate() {
            if let Some(other) = other_keys(line) {
                found.leave(&path, format!("lets sshd look for keys in {other}, too (line {})", at + 1));
            }
        }
    }
    Ok(())
}

/// Where a line of sshd's configuration has keys looked for, besides the usual places.
fn other_keys(line: &str) -> Option<&str> {
    let mut words = line.split([' ', '\t', '=', '"']).filter(|word| !word.is_empty());
    if !words.next()?.eq_ignore_ascii_case("AuthorizedKeysFile") {
        return None;
    }
    let usual = |word: &&str| {
        let word = word.trim_start_matches("%h/");
        word == "none" || KEYS.iter().any(|name| word == format!("{SSH}/{name}"))
    };
    words.find(|word| !usual(word))
}

/// Where it is not asked for, it stays, and is said.
pub(super) fn history(scene: &Scene<'_>, found: &mut Found) -> Result<()> {
    for home in homes(scene)? {
        for name in HISTORY {
            one(scene, &home, name.as_ref(), found)?;
        }
        let mut directory = Some(home);
        for name in FISH {
            directory = directory.and_then(|d| d.enter(name.as_ref()).ok().flatten()).map(Rc::new);
        }
        if let Some(directory) = directory {
            one(scene, &directory, "fish_history".as_ref(), found)?;
        }
    }
    Ok(())
}

fn one(scene: &Scene<'_>, directory: &Rc<Directory>, name: &OsStr, found: &mut Found) -> Result<()> {
    if directory.entry(name)?.is_none() {
        return Ok(());
    }
    if scene.shell_history {
        found.take(directory, name, "");
    } else {
        found.leave(directory.path().join(name), "stays; --shell-history removes it");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_unusual_places_of_keys_are_told() {
        for usual in [
            "AuthorizedKeysFile .ssh/authorized_keys .ssh/authorized_keys2",
            "authorizedkeysfile=%h/.ssh/authorized_keys",
            "AuthorizedKeysFile none",
            "#AuthorizedKeysFile /etc/keys/%u",
            "AuthorizedKeysCommand /usr/bin/x",
            "",
        ] {
            assert_eq!(other_keys(usual), None, "{usual}");
        }
        let other = "AuthorizedKeysFile\t.ssh/authorized_keys \"/etc/ssh/keys/%u\"";
        assert_eq!(other_keys(other), Some("/etc/ssh/keys/%u"));
    }
}
