//! The unit by which systemd mounts the instance store.

use std::fmt::Write as _;

use crate::action::instance_store::LABEL;

/// The unit's name for a mount point, by systemd's rule: `/mnt/a-b` → `mnt-a\x2db.mount`.
pub(super) fn name(path: &str) -> String {
    let mut name = String::new();
    for (at, byte) in path.trim_matches('/').bytes().enumerate() {
        match byte {
            b'/' => name.push('-'),
            b'.' if at == 0 => name.push_str("\\x2e"),
            b':' | b'_' | b'.' => name.push(byte.into()),
            byte if byte.is_ascii_alphanumeric() => name.push(byte.into()),
            byte => _ = write!(name, "\\x{byte:02x}"), // a String takes everything
        }
    }
    name + ".mount"
}

/// The unit itself.
pub(super) fn text(path: &str) -> String {
    format!(
        "# Written by gpu-bootstrap ([instance] store in its configuration).\n\
         [Unit]\n\
         Description=Instance store\n\
         # Nothing waits for it, neither a boot nor sshd: after a stop and start the devices are empty until\n\
         # gpu-bootstrap.service has been there.\n\
         DefaultDependencies=no\n\
         Conflicts=umount.target\n\
         Before=umount.target\n\
         \n\
         [Mount]\n\
         What=/dev/disk/by-label/{LABEL}\n\
         Where={path}\n\
         Options=noatime,nofail\n\
         \n\
         [Install]\n\
         WantedBy=multi-user.target\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_called_as_systemd_calls_them() {
        for (path, unit) in [
            ("/mnt", "mnt.mount"),
            ("/mnt/store", "mnt-store.mount"),
            ("/mnt/a-b/c_d.e", r"mnt-a\x2db-c_d.e.mount"),
            ("/.store/.x", r"\x2estore-.x.mount"),
        ] {
            assert_eq!(name(path), unit);
        }
    }
}
