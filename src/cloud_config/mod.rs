//! `#cloud-config`, the part of it that we act on: read as a whole before anything is done, so that what is not supported
//! is an error with its place, never silence. [`read`] gives the tasks in cloud-init's order; [`Task::apply`] does one.

mod apt;
mod ca_certs;
mod commands;
mod disks;
pub(crate) mod ending;
mod hosts;
mod instance;
mod keys;
mod ntp;
mod packages;
mod passwords;
mod phone_home;
mod read;
mod services;
mod sshd;
mod system;
mod task;
mod template;
mod users;
mod write_files;

use crate::error::{Code, Error, Result};
use crate::user_data::Part;
use crate::yaml::{self, Node, Problem, Value};
pub(crate) use disks::Growth;
pub(crate) use instance::Instance;
use read::Reader;
pub(crate) use task::Task;
pub(crate) use write_files::WantedFile;

/// Every key, in the order in which cloud-init would act on it.
const KEYS: [&str; 38] = [
    "bootcmd",
    "write_files",
    "growpart",
    "resize_rootfs",
    "device_aliases",
    "disk_setup",
    "fs_setup",
    "mounts",
    "mount_default_fields",
    "swap",
    "preserve_hostname",
    "hostname",
    "fqdn",
    "prefer_fqdn_over_hostname",
    "manage_etc_hosts",
    "ca_certs",
    "groups",
    "users",
    "ssh_deletekeys",
    "ssh_genkeytypes",
    "disable_root",
    "ssh_authorized_keys",
    "locale",
    "chpasswd",
    "password",
    "ssh_pwauth",
    "apt",
    "ntp",
    "timezone",
    "package_update",
    "package_upgrade",
    "packages",
    "package_reboot_if_required",
    "runcmd",
    "phone_home",
    "final_message",
    "power_state",
    "output",
];

/// A task and what stands for it: the same for the same meaning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wish {
    /// What to do.
    pub(crate) task: Task,
    /// JSON of the keys that it came from.
    pub(crate) canonical: String,
}

/// What all `#cloud-config` parts of one user-data ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct CloudConfig {
    /// In order.
    pub(crate) wishes: Vec<Wish>,
    /// What a person should know.
    pub(crate) notes: Vec<String>,
}

/// A key's value and the part that it stands in.
struct Found<'a> {
    part: &'a str,
    node: Node,
}

/// Reads the parts. A key of a later part takes the place of an earlier one's, as cloud-init merges them. The error has
/// every mistake, each with part, line and column.
pub(crate) fn read(parts: &[&Part]) -> Result<CloudConfig> {
    let mut found: Vec<(String, Found<'_>)> = Vec::new();
    let (mut mistakes, mut notes) = (Vec::new(), Vec::new());
    for part in parts {
        let entries = match entries(part) {
            Ok(entries) => entries,
            Err(problem) => {
                mistakes.push(sentence(&part.filename, &problem));
                continue;
            }
        };
        for (key, mut node) in entries {
            let name = key.python().unwrap_or_default();
            // The one key that asks for something without a value.
            if name == "ntp" && node.value == Value::Null {
                node.value = Value::Map(Vec::new());
            }
            if !KEYS.contains(&name.as_str()) {
                let text = match apt::OLD.iter().find(|(old, _)| *old == name) {
                    Some((_, new)) => format!("{name} is an old spelling; write {new}"),
                    None => format!("{name} is not supported; supported are {}", KEYS.join(", ")),
                };
                mistakes.push(sentence(&part.filename, &Problem { at: key.at, text }));
                continue;
            }
            let value = Found { part: &part.filename, node };
            match found.iter_mut().find(|(known, _)| *known == name) {
                Some((_, earlier)) => {
                    notes.push(format!(
                        "{name} of {} takes the place of that of {}",
                        value.part, earlier.part
                    ));
                    *earlier = value;
                }
                None => found.push((name, value)),
            }
        }
    }
    let mut keys = Keys { found, mistakes };
    let wishes = keys.wishes();
    notes.extend(keys.notes());
    if keys.mistakes.is_empty() {
        return Ok(CloudConfig { wishes, notes });
    }
    Err(Error::new(Code::UserDataInvalid, keys.mistakes.join("\n")))
}

fn sentence(part: &str, Problem { at: (line, column), text }: &Problem) -> String {
    format!("{part} (line {line}, column {column}): {text}")
}

/// The keys of one part.
fn entries(part: &Part) -> Result<Vec<(Node, Node)>, Problem> {
    let text = std::str::from_utf8(&part.bytes).map_err(|e| {
        let good = String::from_utf8_lossy(&part.bytes[..e.valid_up_to()]);
        Problem {
            at: crate::text::position(&good, good.len()),
            text: "this is not UTF-8 text; save it as UTF-8".into(),
        }
    })?;
    match yaml::parse(text)? {
        None | Some(Node { value: Value::Null, .. }) => Ok(Vec::new()),
        Some(Node { value: Value::Map(entries), .. }) => Ok(entries),
        Some(node) => Err(Problem {
            at: node.at,
            text: format!("#cloud-config is a mapping of keys, and this is {}", node.kind()),
        }),
    }
}

struct Keys<'a> {
    found: Vec<(String, Found<'a>)>,
    mistakes: Vec<String>,
}

impl Keys<'_> {
    /// The value of a key that is there and not `null`.
    fn get(&self, key: &str) -> Option<&Node> {
        let (_, found) = self.found.iter().find(|(known, _)| known == key)?;
        (found.node.value != Value::Null).then_some(&found.node)
    }

    /// Reads from some keys: `read` gets the nodes in their order.
    fn read<const N: usize, T>(
        &mut self,
        keys: [&str; N],
        read: impl FnOnce(&mut Reader, [Option<&Node>; N]) -> T,
    ) -> Option<(T, String)> {
        let nodes = keys.map(|key| self.get(key));
        if nodes.iter().all(Option::is_none) {
            return None;
        }
        let mut reader = Reader::default();
        let value = read(&mut reader, nodes);
        let canonical =
            serde_json::json!(keys.map(|key| self.get(key).map(Node::canonical)).to_vec()).to_string();
        // Mistakes are told of the part of the first key that is there; keys of one task seldom stand in two.
        let part = keys
            .iter()
            .find_map(|key| self.found.iter().find(|(known, _)| known == key))
            .map_or("", |f| f.1.part);
        let mistakes: Vec<_> = reader.problems.iter().map(|problem| sentence(part, problem)).collect();
        self.mistakes.extend(mistakes);
        Some((value, canonical))
    }

    fn one<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&mut Reader, &Node) -> Option<T>,
        task: impl FnOnce(T) -> Task,
    ) -> Option<Wish> {
        let (value, canonical) =
            self.read([key], |reader, [node]| node.and_then(|node| read(reader, node)))?;
        Some(Wish { task: task(value?), canonical })
    }

    fn wishes(&mut self) -> Vec<Wish> {
        let script = |key| move |reader: &mut Reader, node: &Node| commands::read(reader, key, node);
        let bootcmd = self.one("bootcmd", script("bootcmd"), Task::Bootcmd);
        let files = self
            .read(["write_files"], |reader, [node]| node.and_then(|node| write_files::read(reader, node)));
        let (files, canonical) =
            files.map_or((Vec::new(), String::new()), |(files, c)| (files.unwrap_or_default(), c));
        let (deferred, files): (Vec<_>, Vec<_>) = files.into_iter().partition(|file| file.defer);
        let some = |files: Vec<WantedFile>, task: fn(Vec<WantedFile>) -> Task| {
            (!files.is_empty()).then(|| Wish { task: task(files), canonical: canonical.clone() })
        };
        let [growth, disks, mounts] = self.disks();
        let hostname = self
            .read(["hostname", "fqdn", "preserve_hostname", "prefer_fqdn_over_hostname"], system::hostname);
        let hostname =
            hostname.and_then(|(name, canonical)| Some(Wish { task: Task::Hostname(name?), canonical }));
        let users =
            self.read(["users", "groups"], |reader, [list, groups]| users::read(reader, list, groups));
        let users = users.map(|(users, canonical)| Wish { task: Task::Users(users), canonical });
        let keys = self.read(["ssh_authorized_keys", "disable_root"], |reader, [list, disable_root]| {
            keys::read_keys(reader, list, disable_root)
        });
        let keys = keys.and_then(|(keys, canonical)| Some(Wish { task: Task::Keys(keys?), canonical }));
        let locale = self.one("locale", system::locale, Task::Locale);
        let timezone = self.one("timezone", system::timezone, Task::Timezone);
        let packages = self
            .read(["packages", "package_update", "package_upgrade"], |reader, [list, update, upgrade]| {
                packages::read(reader, list, update, upgrade)
            });
        let packages = packages
            .filter(|(packages, _)| !packages.is_empty())
            .map(|(packages, canonical)| Wish { task: Task::Packages(packages), canonical });
        let runcmd = self.one("runcmd", script("runcmd"), Task::Runcmd);
        let files = some(files, Task::WriteFiles);
        let deferred = some(deferred, Task::DeferredFiles);
        let [hosts, certs] = self.name_and_trust();
        let host_keys = self.one("ssh_genkeytypes", sshd::read_kinds, Task::HostKeys);
        let passwords = self.logins();
        let [apt, ntp] = self.services();
        let [lists, reboot] = self.around_packages(apt.as_ref(), packages.is_some());
        let first =
            [bootcmd, files, growth, disks, mounts, hostname, hosts, certs, users, host_keys, keys, locale];
        let then = [apt, ntp, timezone, lists, packages, reboot, deferred, runcmd];
        first.into_iter().chain(passwords).chain(then).chain(self.last()).flatten().collect()
    }
}

#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(bytes: &[u8]) {
    let part =
        Part { content_type: "text/cloud-config".into(), filename: "part-001".into(), bytes: bytes.to_vec() };
    if let Ok(config) = read(&[&part]) {
        config.wishes.iter().for_each(|wish| drop(wish.task.sentence()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(name: &str, text: &str) -> Part {
        Part {
            content_type: "text/cloud-config".into(),
            filename: name.into(),
            bytes: text.as_bytes().to_vec(),
        }
    }

    fn names(text: &str) -> Vec<&'static str> {
        let part = part("p", text);
        read(&[&part]).unwrap().wishes.iter().map(|wish| wish.task.name()).collect()
    }

    #[test]
    fn tasks_come_in_cloud_inits_order_whatever_the_order_of_keys() {
        let text = "#cloud-config\nruncmd: [a]\npackages: [b]\ntimezone: UTC\nhostname: h\nbootcmd: [c]\n\
                    locale: C.UTF-8\nwrite_files:\n- {path: /d, defer: true}\n- {path: /e}\nusers: [default]\nssh_authorized_keys: []\n";
        assert_eq!(
            names(text),
            [
                "bootcmd",
                "write_files",
                "hostname",
                "users",
                "ssh_authorized_keys",
                "locale",
                "timezone",
                "packages",
                "write_files (deferred)",
                "runcmd"
            ]
        );
        let of_disks = "mounts: [[sdf, /a]]\nfs_setup: [{device: sdf, filesystem: xfs}]\nresize_rootfs: false\nhostname: h\n\
                        write_files: [{path: /e}]\n";
        assert_eq!(names(of_disks), ["write_files", "growpart", "disk_setup", "mounts", "hostname"]);
        assert_eq!(names("swap: {size: 0}\nmounts: [[swap, null]]\ndisk_setup: {}\n"), Vec::<&str>::new());
        assert_eq!(names("#cloud-config\n"), Vec::<&str>::new());
        assert_eq!(names("#cloud-config\nruncmd:\npackage_update: false\n"), Vec::<&str>::new());
    }

    #[test]
    fn every_mistake_is_told_with_part_line_and_column() {
        let (first, second) = (part("a", "#cloud-config\nchef: {}\nruncmd: x\n"), part("b", "- x\n"));
        let error = read(&[&first, &second]).unwrap_err();
        let lines: Vec<_> = error.message().lines().collect();
        assert!(
            lines[0].starts_with(
                "a (line 2, column 1): chef is not supported; supported are bootcmd, write_files"
            )
        );
        assert!(lines[1].starts_with("b (line 1, column 1): #cloud-config is a mapping"), "{error}");
        assert_eq!(lines[2], "a (line 3, column 9): runcmd takes a list, and this is a text");
    }

    #[test]
    fn a_later_part_takes_the_place_of_an_earlier_one_and_that_is_said() {
        let (first, second) = (part("a", "runcmd: [x]\ntimezone: UTC"), part("b", "runcmd: [y]"));
        let config = read(&[&first, &second]).unwrap();
        assert!(config.wishes.iter().any(|wish| wish.task == Task::Runcmd("#!/bin/sh\ny\n".into())));
        assert_eq!(config.notes, ["runcmd of b takes the place of that of a"]);
    }

    #[test]
    fn what_means_the_same_is_the_same() {
        let canonical = |text: &str| read(&[&part("p", text)]).unwrap().wishes[0].canonical.clone();
        assert_eq!(canonical("runcmd: [a]"), canonical("# later\nruncmd:\n  - 'a'\n"));
        assert_ne!(canonical("runcmd: [a]"), canonical("runcmd: [b]"));
    }
}
