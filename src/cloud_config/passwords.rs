//! `chpasswd` and `password`: passwords of users who are there, by chpasswd(8); `ssh_pwauth`: whether sshd takes them.

use std::time::Duration;

use super::read::Reader;
use super::sshd;
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::host::exec::Call;
use crate::instance::account;
use crate::yaml::{Node, Value};

const KEYS: [&str; 3] = ["expire", "users", "list"];
const USER_KEYS: [&str; 3] = ["name", "password", "type"];
/// Hashing takes long on purpose.
const LIMIT: Duration = Duration::from_mins(2);
const SSHD_FILE: &str = "/etc/ssh/sshd_config.d/10-gpu-bootstrap.conf";

/// Passwords to be set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Passwords {
    entries: Vec<Entry>,
    /// The login user's, where no list gives any.
    of_login_user: Option<String>,
    /// They are to be changed at the first login.
    expire: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    user: String,
    password: String,
    is_hash: bool,
}

/// What both keys say.
pub(super) fn read(
    reader: &mut Reader,
    chpasswd: Option<&Node>,
    password: Option<&Node>,
) -> Option<Passwords> {
    let mut found = Passwords { entries: Vec::new(), of_login_user: None, expire: true };
    if let Some(node) = chpasswd {
        let map = reader.map("chpasswd", node, &KEYS)?;
        found.expire =
            map.get("expire").is_none_or(|node| reader.switch("chpasswd.expire", node) != Some(false));
        if let Some(node) = map.get("users") {
            for node in reader.list("chpasswd.users", node).unwrap_or_default() {
                found.entries.extend(user(reader, node));
            }
        }
        if let Some(node) = map.get("list") {
            found.entries.extend(list(reader, node));
        }
    }
    if let Some(node) = password {
        found.of_login_user = reader.line("password", node).filter(|_| found.entries.is_empty());
    }
    (!found.entries.is_empty() || found.of_login_user.is_some()).then_some(found)
}

fn user(reader: &mut Reader, node: &Node) -> Option<Entry> {
    let map = reader.map("chpasswd.users", node, &USER_KEYS)?;
    let kind = match map.get("type") {
        Some(node) => reader.line("chpasswd.users.type", node)?,
        None => "hash".into(),
    };
    if kind == "RANDOM" {
        random(reader, map.at);
        return None;
    }
    if kind != "text" && kind != "hash" {
        reader.wrong(map.at, format!("chpasswd.users.type is text or hash, and this is {kind:?}"));
    }
    let (Some(name), Some(password)) = (map.get("name"), map.get("password")) else {
        reader.wrong(map.at, "chpasswd.users: an entry needs name and password");
        return None;
    };
    let (at, name) = (name.at, reader.line("chpasswd.users.name", name)?);
    let password = reader.line("chpasswd.users.password", password)?;
    entry(reader, at, &name, &password, kind == "hash")
}

/// The old form: `name:password` lines. What looks like a hash is one, as in cloud-init.
fn list(reader: &mut Reader, node: &Node) -> Vec<Entry> {
    let lines = match &node.value {
        Value::Text(text) => text.lines().map(str::to_owned).collect(),
        _ => reader.lines("chpasswd.list", node).unwrap_or_default(),
    };
    let mut found = Vec::new();
    for line in lines.iter().filter(|line| !line.trim().is_empty()) {
        let Some((name, password)) = line.split_once(':') else {
            reader.wrong(node.at, "chpasswd.list takes lines of name:password, and one has no colon");
            continue;
        };
        if password == "R" || password == "RANDOM" {
            random(reader, node.at);
        } else {
            found.extend(entry(reader, node.at, name, password, is_hash(password)));
        }
    }
    found
}

fn entry(
    reader: &mut Reader,
    at: (usize, usize),
    name: &str,
    password: &str,
    is_hash: bool,
) -> Option<Entry> {
    if name.is_empty()
        || name.contains([':', '\n', ' '])
        || password.is_empty()
        || password.chars().any(char::is_control)
    {
        reader.wrong(at, format!("chpasswd: the entry of {name:?} is no name and password"));
        return None;
    }
    Some(Entry { user: name.to_owned(), password: password.to_owned(), is_hash })
}

/// `$6$salt$hash` and its like, of the kinds that cloud-init knows.
fn is_hash(password: &str) -> bool {
    let kinds = ["$1$", "$2a$", "$2y$", "$5$", "$6$"];
    let rest = kinds.iter().find_map(|kind| password.strip_prefix(kind));
    rest.is_some_and(|rest| {
        !rest.contains(':') && rest.split('$').filter(|part| !part.is_empty()).count() >= 2
    })
}

fn random(reader: &mut Reader, at: (usize, usize)) {
    reader.wrong(
        at,
        "chpasswd: random passwords are not supported, because the console that shows them is for many eyes; give a hash \
         (`mkpasswd`) or a key",
    );
}

impl Passwords {
    /// What `user-data check` says, and what is told afterwards.
    pub(super) fn sentence(&self) -> String {
        let names: Vec<_> = self.entries.iter().map(|entry| entry.user.as_str()).collect();
        let whose = if names.is_empty() { "the login user".into() } else { names.join(", ") };
        let until = if self.expire { ", to be changed at the first login" } else { "" };
        format!("passwords of {whose}{until}")
    }
}

/// As cloud-init does it: texts, hashes, and then what is to be changed. Each is tried.
pub(super) async fn apply(host: &Host, login_user: &str, passwords: &Passwords) -> Result<String> {
    let mut entries = passwords.entries.clone();
    if let Some(password) = &passwords.of_login_user {
        let user = account::login(&host.files, login_user)?.name;
        entries.push(Entry { user, is_hash: is_hash(password), password: password.clone() });
    }
    let mut failures = Vec::new();
    for is_hash in [false, true] {
        let of_kind = entries.iter().filter(|entry| entry.is_hash == is_hash);
        let lines =
            of_kind.map(|entry| format!("{}:{}\n", entry.user, entry.password)).collect::<Vec<_>>().concat();
        if !lines.is_empty() {
            let call = Call::new("chpasswd").args(is_hash.then_some("-e")).input(lines).limit(LIMIT);
            failures.extend(host.exec.run(&call).await.err());
        }
    }
    for entry in entries.iter().filter(|_| passwords.expire) {
        let call = Call::new("passwd").args(["--expire", &entry.user]).limit(LIMIT);
        failures.extend(host.exec.run(&call).await.err());
    }
    match failures.into_iter().next() {
        None => Ok(passwords.sentence()),
        Some(error) => {
            let message = "chpasswd: not every password could be set";
            Err(Error::new(Code::UserDataFailed, message)
                .with_hint("see that each user is there: users are made before passwords are set")
                .because(error))
        }
    }
}

/// `ssh_pwauth`; `None` leaves it as it is.
pub(super) fn read_pwauth(reader: &mut Reader, node: &Node) -> Option<bool> {
    if matches!(&node.value, Value::Text(text) if text.eq_ignore_ascii_case("unchanged")) {
        return None;
    }
    reader.switch("ssh_pwauth", node)
}

/// What `user-data check` says, and what is told afterwards.
pub(super) fn pwauth_sentence(is_on: bool) -> String {
    format!("sshd {} passwords", if is_on { "takes" } else { "does not take" })
}

/// As a setting of sshd.
pub(super) async fn apply_pwauth(host: &Host, is_on: bool) -> Result<String> {
    let word = if is_on { "yes" } else { "no" };
    sshd::set(host, "ssh_pwauth", SSHD_FILE, &format!("PasswordAuthentication {word}\n")).await?;
    Ok(pwauth_sentence(is_on))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::yaml::parse;

    fn passwords(text: &str) -> (Option<Passwords>, Vec<String>) {
        let mut reader = Reader::default();
        let found = read(&mut reader, parse(text).unwrap().as_ref(), None);
        (found, reader.problems.into_iter().map(|p| format!("{}:{} {}", p.at.0, p.at.1, p.text)).collect())
    }

    #[test]
    fn both_forms_and_hashes() {
        let (found, problems) = passwords(
            "expire: false\nusers:\n- {name: a, password: x, type: text}\n- {name: b, password: '$6$s$h'}\nlist: |\n  c:pa:ss\n  d:$5$s$h\n  e:$5$x\n",
        );
        assert_eq!(problems, Vec::<String>::new());
        let found = found.unwrap();
        let kinds: Vec<_> =
            found.entries.iter().map(|e| (e.user.as_str(), e.password.as_str(), e.is_hash)).collect();
        assert_eq!(
            kinds,
            [
                ("a", "x", false),
                ("b", "$6$s$h", true),
                ("c", "pa:ss", false),
                ("d", "$5$s$h", true),
                ("e", "$5$x", false)
            ]
        );
        assert!(!found.expire && !found.sentence().contains("pa:ss"));
        assert_eq!(passwords("expire: false\n").0, None);
    }

    #[test]
    fn mistakes_are_named_and_no_password_is() {
        let (_, problems) = passwords(
            "users:\n- {name: a, type: RANDOM}\n- {name: a}\n- {name: 'a:b', password: secret}\n- {name: a, password: secret, type: x}\nlist: [secret, 'a:R']\n",
        );
        assert_eq!(problems.len(), 6, "{problems:#?}");
        assert!(!problems.concat().contains("secret"), "{problems:#?}");
    }
}
