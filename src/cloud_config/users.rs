//! `users` and `groups`: made by the distribution's own tools, as cloud-init makes them; `sudo` as a file of ours in
//! `/etc/sudoers.d`, and keys.

use std::fmt::Write as _;
use std::time::Duration;

use super::keys;
use super::read::{Map, Reader};
use crate::config::validate::is_user_name;
use crate::error::{Code, Error, Result};
use crate::facts::accounts::Accounts;
use crate::host::Host;
use crate::host::exec::Call;
use crate::yaml::{Node, Value};

const KEYS: [&str; 23] = [
    "name",
    "gecos",
    "groups",
    "primary_group",
    "homedir",
    "shell",
    "uid",
    "system",
    "no_create_home",
    "no_user_group",
    "no_log_init",
    "create_groups",
    "lock_passwd",
    "passwd",
    "hashed_passwd",
    "plain_text_passwd",
    "expiredate",
    "inactive",
    "sudo",
    "ssh_authorized_keys",
    "doas",
    "ssh_import_id",
    "ssh_redirect_user",
];
/// Those at the end of [`KEYS`] that cloud-init has and we do not.
const UNSUPPORTED: [&str; 3] = ["doas", "ssh_import_id", "ssh_redirect_user"];
/// Rules of all users; written whole.
const SUDOERS: &str = "/etc/sudoers.d/90-gpu-bootstrap-users";
/// Password hashing takes long on purpose, and a small machine may have a slow disk.
const LIMIT: Duration = Duration::from_mins(2);

/// Users and groups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Users {
    groups: Vec<(String, Vec<String>)>,
    accounts: Vec<User>,
    /// `default` was among the users: the one that the image was made for.
    with_login_user: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct User {
    name: String,
    /// Options of `useradd`, in its own spelling.
    options: Vec<String>,
    groups: Vec<String>,
    primary_group: Option<String>,
    create_groups: bool,
    has_home: bool,
    is_locked: bool,
    /// Hash, set when the user is made.
    passwd: Option<String>,
    hashed_passwd: Option<String>,
    plain_text_passwd: Option<String>,
    sudo: Vec<String>,
    keys: Vec<String>,
}

/// Options with a value: key, and what `useradd` calls it.
const OPTIONS: [(&str, &str); 6] = [
    ("expiredate", "--expiredate"),
    ("gecos", "--comment"),
    ("homedir", "--home"),
    ("inactive", "--inactive"),
    ("shell", "--shell"),
    ("uid", "--uid"),
];
/// Options without.
const FLAGS: [(&str, &str); 3] =
    [("no_log_init", "--no-log-init"), ("no_user_group", "--no-user-group"), ("system", "--system")];

/// What both keys say.
pub(super) fn read(reader: &mut Reader, users: Option<&Node>, groups: Option<&Node>) -> Users {
    let mut found = Users::default();
    if let Some(node) = groups {
        found.groups = read_groups(reader, node);
    }
    let Some(node) = users else { return found };
    for node in reader.list("users", node).unwrap_or_default() {
        match &node.value {
            Value::Text(names) => {
                for name in names.split(',').map(str::trim).filter(|name| !name.is_empty()) {
                    if name == "default" {
                        found.with_login_user = true;
                    } else if let Some(name) = user_name(reader, node, name) {
                        found.accounts.push(User {
                            name,
                            create_groups: true,
                            has_home: true,
                            is_locked: true,
                            ..User::default()
                        });
                    }
                }
            }
            Value::Map(_) => found.accounts.extend(user(reader, node)),
            _ => reader
                .wrong(node.at, format!("users: a user is a name or a mapping, and this is {}", node.kind())),
        }
    }
    for (index, user) in found.accounts.iter().enumerate() {
        if found.accounts[..index].iter().any(|earlier| earlier.name == user.name) {
            reader.wrong(node.at, format!("users has {} twice; write all of it in one entry", user.name));
        }
    }
    found
}

fn user_name(reader: &mut Reader, node: &Node, name: &str) -> Option<String> {
    if is_user_name(name) {
        return Some(name.to_owned());
    }
    let rule = "1 to 32 lower-case letters, digits, - and _, not beginning with a digit or -";
    reader.wrong(node.at, format!("{name:?} is no name of a user or group; it takes {rule}"));
    None
}

fn user(reader: &mut Reader, node: &Node) -> Option<User> {
    let map = reader.map("users", node, &KEYS)?;
    for key in UNSUPPORTED {
        if let Some(node) = map.get(key) {
            let supported = KEYS[..KEYS.len() - UNSUPPORTED.len()].join(", ");
            reader.wrong(node.at, format!("users.{key} is not supported; supported are {supported}"));
        }
    }
    let Some(name) = map.get("name") else {
        reader.wrong(map.at, "users: an entry needs name");
        return None;
    };
    let text = reader.line("users.name", name)?;
    if text == "default" {
        reader.wrong(name.at, "users: default stands for the image's login user and takes no further keys; name the user itself");
        return None;
    }
    let mut user = User { name: user_name(reader, name, &text)?, ..User::default() };
    for (key, option) in OPTIONS {
        let Some(node) = map.get(key) else { continue };
        let value = match &node.value {
            Value::Int(number) if ["uid", "inactive"].contains(&key) => Some(number.to_string()),
            _ => field(reader, &format!("users.{key}"), node),
        };
        user.options.extend(
            value.filter(|value| !value.is_empty()).into_iter().flat_map(|value| [option.to_owned(), value]),
        );
    }
    for (key, flag) in FLAGS {
        if is_on(reader, &map, key) {
            user.options.push(flag.into());
        }
    }
    user.groups = map.get("groups").map(|node| group_list(reader, node)).unwrap_or_default();
    user.primary_group = map.get("primary_group").and_then(|node| {
        let text = reader.line("users.primary_group", node)?;
        user_name(reader, node, &text)
    });
    user.create_groups = !is_off(reader, &map, "create_groups");
    user.is_locked = !is_off(reader, &map, "lock_passwd");
    user.has_home = !is_on(reader, &map, "no_create_home") && !is_on(reader, &map, "system");
    let mut secret = |key: &str| {
        let node = map.get(key)?;
        reader.line(&format!("users.{key}"), node).filter(|text| !text.is_empty())
    };
    (user.passwd, user.hashed_passwd, user.plain_text_passwd) =
        (secret("passwd"), secret("hashed_passwd"), secret("plain_text_passwd"));
    user.sudo = match map.get("sudo") {
        Some(Node { value: Value::Bool(false), .. }) | None => Vec::new(),
        Some(node) => reader.lines("users.sudo", node).unwrap_or_default(),
    };
    if let Some(node) = map.get("ssh_authorized_keys") {
        user.keys = keys::read(reader, "users.ssh_authorized_keys", node);
        if !user.has_home && !user.keys.is_empty() {
            reader.wrong(
                node.at,
                format!("users: {} has no home directory, so that no keys can be put there", user.name),
            );
        }
    }
    Some(user)
}

/// A field of passwd(5), which has a colon behind it.
fn field(reader: &mut Reader, key: &str, node: &Node) -> Option<String> {
    let text = reader.line(key, node)?;
    if text.contains(':') {
        reader.wrong(node.at, format!("{key} takes a text without a colon"));
        return None;
    }
    Some(text)
}

fn is_on(reader: &mut Reader, map: &Map<'_>, key: &str) -> bool {
    map.get(key).is_some_and(|node| reader.switch(&format!("users.{key}"), node) == Some(true))
}

fn is_off(reader: &mut Reader, map: &Map<'_>, key: &str) -> bool {
    map.get(key).is_some_and(|node| reader.switch(&format!("users.{key}"), node) == Some(false))
}

/// Names in a list, or in a text with commas.
fn group_list(reader: &mut Reader, node: &Node) -> Vec<String> {
    let lines = reader.lines("users.groups", node).unwrap_or_default();
    let names = lines.iter().flat_map(|line| line.split(',')).map(str::trim).filter(|name| !name.is_empty());
    names.filter_map(|name| user_name(reader, node, name)).collect()
}

/// `groups`: names, each perhaps with members.
fn read_groups(reader: &mut Reader, node: &Node) -> Vec<(String, Vec<String>)> {
    let mut found: Vec<(String, Vec<String>)> = Vec::new();
    let entries: Vec<(&Node, Option<&Node>)> = match &node.value {
        Value::List(nodes) => nodes
            .iter()
            .flat_map(|node| match &node.value {
                Value::Map(entries) => entries.iter().map(|(name, members)| (name, Some(members))).collect(),
                _ => vec![(node, None)],
            })
            .collect(),
        Value::Map(entries) => entries.iter().map(|(name, members)| (name, Some(members))).collect(),
        _ => {
            reader.wrong(node.at, format!("groups takes a list or a mapping, and this is {}", node.kind()));
            Vec::new()
        }
    };
    for (name, members) in entries {
        let Some(text) = reader.line("groups", name) else { continue };
        let Some(group) = user_name(reader, name, &text) else { continue };
        let mut names = Vec::new();
        for line in members
            .filter(|m| m.value != Value::Null)
            .and_then(|m| reader.lines("groups", m))
            .unwrap_or_default()
        {
            names.extend(line.split(',').filter_map(|member| user_name(reader, name, member.trim())));
        }
        match found.iter_mut().find(|(known, _)| *known == group) {
            Some((_, known)) => known.extend(names),
            None => found.push((group, names)),
        }
    }
    for (_, members) in &mut found {
        members.sort(); // as cloud-init does
        members.dedup();
    }
    found
}

/// Makes groups, then users. Each is tried; the first failure is what is told.
pub(super) async fn apply(host: &Host, users: &Users) -> Result<String> {
    let mut failures = Vec::new();
    for (group, members) in &users.groups {
        failures.extend(make_group(host, group, members).await.err());
    }
    for user in &users.accounts {
        failures.extend(make_user(host, user).await.err());
    }
    failures.extend(sudo(host, users).await.err());
    let failed = failures.len();
    if let Some(first) = failures.into_iter().next() {
        if failed == 1 {
            return Err(first);
        }
        let message = format!("{failed} users or groups failed; the first: {}", first.message());
        return Err(Error::new(first.code(), message).because(first));
    }
    Ok(users.sentence())
}

fn tool(name: &str) -> Call {
    Call::new(name).limit(LIMIT)
}

async fn make_group(host: &Host, group: &str, members: &[String]) -> Result<()> {
    let accounts = Accounts::read(&host.files)?;
    if !accounts.has_group(group) {
        host.exec.run(&tool("groupadd").args([group])).await?;
    }
    for member in members {
        if accounts.has_user(member) {
            host.exec.run(&tool("usermod").args(["-a", "-G", group, member])).await?;
        } else {
            return Err(Error::new(
                Code::UserDataFailed,
                format!("groups.{group}: this machine has no user {member}"),
            )
            .with_hint("groups are made before users: name the group in the user's groups"));
        }
    }
    Ok(())
}

async fn make_user(host: &Host, user: &User) -> Result<()> {
    let accounts = Accounts::read(&host.files)?;
    let is_new = !accounts.has_user(&user.name);
    if is_new {
        add_user(host, user).await?;
    }
    if let Some(hash) = user.passwd.as_ref().filter(|_| is_new) {
        set_password(host, &user.name, hash, true).await?;
    }
    if let Some(password) = &user.plain_text_passwd {
        set_password(host, &user.name, password, false).await?;
    }
    if let Some(hash) = &user.hashed_passwd {
        set_password(host, &user.name, hash, true).await?;
    }
    if user.is_locked {
        host.exec.run(&tool("passwd").args(["-l", &user.name])).await?;
    }
    if user.keys.is_empty() { Ok(()) } else { keys::add(&host.files, &user.name, &user.keys).map(drop) }
}

async fn add_user(host: &Host, user: &User) -> Result<()> {
    if user.create_groups && !user.groups.is_empty() {
        for group in user.groups.iter().chain(&user.primary_group) {
            // Looked at anew: a group may stand there twice.
            if !Accounts::read(&host.files)?.has_group(group) {
                host.exec.run(&tool("groupadd").args([group])).await?;
            }
        }
    }
    let mut call = tool("useradd").args(user.options.iter().cloned());
    if !user.groups.is_empty() {
        call = call.args(["--groups".to_owned(), user.groups.join(",")]);
    }
    if let Some(group) = &user.primary_group {
        call = call.args(["--gid", group]);
    }
    host.exec.run(&call.args([if user.has_home { "-m" } else { "-M" }, &user.name])).await?;
    Ok(())
}

/// By standard input: arguments can be read by everybody.
async fn set_password(host: &Host, user: &str, password: &str, is_hash: bool) -> Result<()> {
    let call = tool("chpasswd").args(is_hash.then_some("-e")).input(format!("{user}:{password}\n"));
    host.exec.run(&call).await.map(drop)
}

/// A file that sudo would stumble over locks everybody out of root: it is checked before it gets its name.
async fn sudo(host: &Host, users: &Users) -> Result<()> {
    let mut text = String::new();
    for user in users.accounts.iter().filter(|user| !user.sudo.is_empty()) {
        let _ = writeln!(text, "\n# User rules for {}", user.name); // writing to a String cannot fail
        text.extend(user.sudo.iter().map(|rule| format!("{} {rule}\n", user.name)));
    }
    if text.is_empty() {
        return Ok(());
    }
    let text = format!(
        "# Written by gpu-bootstrap from user-data, whole: changes are lost on the next new instance.\n{text}"
    );
    if host.files.exists("/usr/sbin/visudo")? {
        const CHECKED: &str = "/run/gpu-bootstrap/sudoers";
        host.files.write(CHECKED, text.as_bytes(), 0o440)?;
        let checked = host.exec.run(&tool("visudo").args(["-c", "-q", "-f", CHECKED])).await;
        host.files.remove(CHECKED)?;
        checked.map_err(|e| {
            Error::new(Code::UserDataFailed, "users.sudo: sudo does not take these rules; none was written")
                .with_hint(
                    "a rule is what follows the user's name in sudoers(5), such as ALL=(ALL) NOPASSWD:ALL",
                )
                .because(e)
        })?;
    }
    host.files.make_dir("/etc/sudoers.d", 0o750)?;
    host.files.write(SUDOERS, text.as_bytes(), 0o440)
}

impl Users {
    /// What `user-data check` says, and what is told afterwards.
    pub(super) fn sentence(&self) -> String {
        let mut words = Vec::new();
        if !self.groups.is_empty() {
            let names: Vec<_> = self.groups.iter().map(|(name, _)| name.as_str()).collect();
            words.push(format!("groups {}", names.join(", ")));
        }
        if !self.accounts.is_empty() {
            let names: Vec<_> = self.accounts.iter().map(|user| user.name.as_str()).collect();
            words.push(format!("users {}", names.join(", ")));
        }
        if self.with_login_user {
            words.push("default is the login user, whom the image has".into());
        }
        if words.is_empty() { "no users".into() } else { words.join("; ") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::yaml::parse;

    fn users(text: &str) -> (Users, Vec<String>) {
        let mut reader = Reader::default();
        let found = read(&mut reader, parse(text).unwrap().as_ref(), None);
        (found, reader.problems.into_iter().map(|p| format!("{}:{} {}", p.at.0, p.at.1, p.text)).collect())
    }

    #[test]
    fn users_as_people_write_them() {
        let (found, problems) = users(
            "- default\n- plain, other\n- name: full\n  gecos: A B\n  groups: [adm, 'x, y']\n  ssh-authorized-keys: []\n  sudo: ALL=(ALL) ALL\n  uid: 1234\n  lock-passwd: false\n  system: yes\n",
        );
        assert_eq!(problems, Vec::<String>::new());
        assert!(found.with_login_user);
        assert_eq!(
            found.accounts.iter().map(|u| u.name.as_str()).collect::<Vec<_>>(),
            ["plain", "other", "full"]
        );
        let full = &found.accounts[2];
        assert_eq!(full.options, ["--comment", "A B", "--uid", "1234", "--system"]);
        assert_eq!((full.groups.join(" "), full.is_locked, full.has_home), ("adm x y".into(), false, false));
        assert!(found.accounts[0].is_locked && found.accounts[0].has_home);
    }

    #[test]
    fn mistakes_are_named_with_their_place() {
        let (_, problems) = users(
            "- name: Bad Name\n- gecos: x\n- name: a\n  shel: /bin/sh\n- name: b\n  gecos: 'a:b'\n- name: c\n  ssh_import_id: [gh:x]\n- name: default\n- 7\n- name: a\n",
        );
        for (problem, words) in problems.iter().zip([
            "1:9 \"Bad Name\" is no name",
            "2:3 users: an entry needs name",
            "4:3 users.shel is not supported; supported are name, gecos",
            "6:10 users.gecos takes a text without a colon",
            "8:18 users.ssh_import_id is not supported",
            "9:9 users: default stands for",
            "10:3 users: a user is a name or a mapping",
            "1:1 users has a twice",
        ]) {
            assert!(problem.starts_with(words), "{problem}");
        }
        assert_eq!(problems.len(), 8, "{problems:?}");
    }
}
