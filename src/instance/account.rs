//! Who logs in: users by `/etc/passwd` (passwd(5)). Only what the image has is looked at; no user is made here.

use crate::config::validate::is_user_name;
use crate::error::{Code, Error, Result};
use crate::host::files::Files;

const PASSWD: &str = "/etc/passwd";
/// The users of Ubuntu's and Debian's own images.
const USUAL: [&str; 3] = ["ubuntu", "admin", "debian"];
/// The first user that is made on such systems.
const FIRST: u32 = 1000;

/// A user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Account {
    /// The name, which means nothing to a shell.
    pub(crate) name: String,
    /// The user's number.
    pub(crate) uid: u32,
    /// The number of the user's group.
    pub(crate) gid: u32,
    /// Where the user's files are, an absolute path.
    pub(crate) home: String,
}

/// The user that `wanted` names; `auto` is the one whom the image was made for.
pub(crate) fn login(files: &Files, wanted: &str) -> Result<Account> {
    let text = files.read_text(PASSWD)?.unwrap_or_default();
    let accounts: Vec<Account> = text.lines().filter_map(parse).collect();
    let named = |name: &str| accounts.iter().find(|a| a.name == name);
    let found = match wanted {
        "auto" => USUAL.iter().find_map(|name| named(name)).or(accounts.iter().find(|a| a.uid == FIRST)),
        name => named(name),
    };
    found.cloned().ok_or_else(|| {
        let message = if wanted == "auto" {
            format!("{PASSWD} has none of the users {}, and none with the number {FIRST}", USUAL.join(", "))
        } else {
            format!("{PASSWD} has no user {wanted} with a home directory")
        };
        Error::new(Code::Io, message)
            .with_hint("make the user in the image, or name another one by [instance] user")
    })
}

/// The superuser, where the image has one with a home directory.
pub(crate) fn superuser(files: &Files) -> Result<Option<Account>> {
    let text = files.read_text(PASSWD)?.unwrap_or_default();
    Ok(text.lines().filter_map(parse).find(|a| a.uid == 0 && a.name == "root"))
}

/// Every directory that may be somebody's home: of whoever is in the file, whatever the name, and what lies where homes
/// usually lie.
pub(super) fn homes(files: &Files) -> Result<Vec<String>> {
    const USUAL_PLACE: &str = "/home";
    let text = files.read_text(PASSWD)?.unwrap_or_default();
    let mut homes: Vec<String> = text
        .lines()
        .filter_map(|line| line.split(':').nth(5))
        .map(|home| if home == "/" { home } else { home.trim_end_matches('/') })
        .filter(|home| home.starts_with('/'))
        .map(str::to_owned)
        .chain(files.list(USUAL_PLACE)?.iter().map(|name| format!("{USUAL_PLACE}/{name}")))
        .collect();
    homes.sort();
    homes.dedup();
    Ok(homes)
}

/// A line of the file; `None` for what is no user whom keys can be given.
fn parse(line: &str) -> Option<Account> {
    let fields: Vec<_> = line.split(':').collect();
    let [name, _, uid, gid, _, home, _] = fields[..] else { return None };
    let account =
        Account { name: name.into(), uid: uid.parse().ok()?, gid: gid.parse().ok()?, home: home.into() };
    (is_user_name(name) && home.starts_with('/') && home.len() > 1).then_some(account)
}

#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(text: &str) {
    text.lines().for_each(|line| drop(parse(line)));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(passwd: &str) -> (tempfile::TempDir, Files) {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path().into());
        files.write(PASSWD, passwd.as_bytes(), 0o644).unwrap();
        (dir, files)
    }

    #[test]
    fn the_login_user_is_the_one_that_the_image_was_made_for() {
        let (_dir, files) = files(
            "root:x:0:0:root:/root:/bin/bash\nfirst:x:1000:1000::/home/first:/bin/sh\n\
             admin:x:1001:1002:Debian:/home/admin:/bin/bash\n",
        );
        let admin = Account { name: "admin".into(), uid: 1001, gid: 1002, home: "/home/admin".into() };
        assert_eq!(login(&files, "auto").unwrap(), admin);
        assert_eq!(login(&files, "first").unwrap().uid, 1000);
        assert_eq!(superuser(&files).unwrap().unwrap().home, "/root");
        let error = login(&files, "nobody-here").unwrap_err();
        assert!(error.message().contains("no user nobody-here"), "{error}");
    }

    #[test]
    fn every_home_is_known_once() {
        let (_dir, files) = files(
            "root:x:0:0::/root:/bin/sh\nJohn.Doe:x:1001:1::/home/john/:/bin/sh\ndaemon:x:1:1::/:/\nx:x:1:1::home:/\n\n",
        );
        files.make_dir("/home/john", 0o755).unwrap();
        files.make_dir("/home/gone", 0o755).unwrap();
        assert_eq!(homes(&files).unwrap(), ["/", "/home/gone", "/home/john", "/root"]);
    }

    #[test]
    fn without_a_usual_name_it_is_the_first_user() {
        let (_dir, files) = files("x:x:999:1::/x:/\nanna:x:1000:1000::/home/anna:/bin/sh\n");
        assert_eq!(login(&files, "auto").unwrap().name, "anna");
    }

    #[test]
    fn lines_that_are_no_users_are_passed_by() {
        let (_dir, files) = files(
            "# x\n\nubuntu:x:1000\nadmin:x:-1:0::/home/admin:/\ndebian:x:1:1:::/\na$(reboot):x:1000:1::/h:/\n\
             b:x:1000:1::home:/\n",
        );
        assert!(login(&files, "auto").unwrap_err().message().contains("none with the number 1000"));
        assert!(superuser(&files).unwrap().is_none());
    }
}
