//! Users and groups by name, from `/etc/passwd` and `/etc/group` (passwd(5), group(5)).

use std::collections::HashMap;

use crate::error::Result;
use crate::host::files::Files;

/// What the two files say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accounts {
    users: HashMap<String, u32>,
    groups: HashMap<String, u32>,
}

impl Accounts {
    /// Reads them; a file that does not exist is empty.
    pub fn read(files: &Files) -> Result<Self> {
        let read = |path: &str| -> Result<_> { Ok(numbers(&files.read_text(path)?.unwrap_or_default())) };
        Ok(Self { users: read("/etc/passwd")?, groups: read("/etc/group")? })
    }

    /// The number of a user that is named, or given as a number.
    pub fn uid(&self, user: &str) -> Option<u32> {
        by_name(&self.users, user)
    }

    /// The number of a group that is named, or given as a number.
    pub fn gid(&self, group: &str) -> Option<u32> {
        by_name(&self.groups, group)
    }

    /// Whether there is a user of this name.
    pub fn has_user(&self, name: &str) -> bool {
        self.users.contains_key(name)
    }

    /// Whether there is a group of this name.
    pub fn has_group(&self, name: &str) -> bool {
        self.groups.contains_key(name)
    }
}

/// Root is there even where nobody has written it down.
fn by_name(numbers: &HashMap<String, u32>, name: &str) -> Option<u32> {
    numbers.get(name).copied().or_else(|| if name == "root" { Some(0) } else { name.parse().ok() })
}

/// The third field by the first; the first line of a name counts.
fn numbers(text: &str) -> HashMap<String, u32> {
    let mut found = HashMap::new();
    for line in text.lines() {
        let mut fields = line.split(':');
        if let (Some(name), Some(number)) = (fields.next(), fields.nth(1).and_then(|n| n.parse().ok())) {
            found.entry(name.to_owned()).or_insert(number);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_numbers() {
        let accounts = Accounts {
            users: numbers("root:x:0:0::/root:/bin/sh\nodd\nme:x:1000:1000::/:\nme:x:7:7::/:\n"),
            groups: numbers("adm:x:4:me\n"),
        };
        assert_eq!(
            (accounts.uid("me"), accounts.uid("root"), accounts.uid("odd")),
            (Some(1000), Some(0), None)
        );
        assert_eq!(
            (accounts.gid("adm"), accounts.gid("33"), accounts.has_group("33")),
            (Some(4), Some(33), false)
        );
    }
}
