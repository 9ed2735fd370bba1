//! Files of the network that name a MAC address. The next instance has another one, and with such a file no network: then
//! nothing is sealed.

use super::Scene;
use super::trace::ends;
use crate::error::{Code, Error, Result};
use crate::host::files::Files;

/// A directory, and which names in it are meant.
type Place = (&'static str, fn(&str) -> bool);

/// Directories and what is read in them; below `*.d`, drop-ins.
const PLACES: [Place; 10] = [
    ("/etc/netplan", |name| ends(name, ".yaml")),
    ("/lib/netplan", |name| ends(name, ".yaml")),
    ("/etc/systemd/network", is_networkds),
    ("/lib/systemd/network", is_networkds),
    ("/etc/network", |name| name == "interfaces"),
    ("/etc/network/interfaces.d", |_| true),
    ("/etc/udev/rules.d", |name| ends(name, ".rules")),
    ("/etc/NetworkManager", |name| ends(name, ".conf")),
    ("/etc/NetworkManager/conf.d", |name| ends(name, ".conf")),
    ("/etc/NetworkManager/system-connections", |_| true),
];

/// What cloud-init's renderers write, and write anew on another instance.
pub(super) const OF_CLOUD_INIT: [Place; 5] = [
    ("/etc/netplan", |name| name == "50-cloud-init.yaml"),
    ("/etc/network/interfaces.d", |name| name == "50-cloud-init" || name == "50-cloud-init.cfg"),
    ("/etc/systemd/network", |name| name.starts_with("10-cloud-init-")),
    ("/etc/NetworkManager/system-connections", |name| name.starts_with("cloud-init-")),
    ("/etc/udev/rules.d", |name| name == "70-persistent-net.rules"),
];

fn is_networkds(name: &str) -> bool {
    [".network", ".link", ".netdev"].iter().any(|ending| name.ends_with(ending))
}

/// Refuses to seal while a file names a MAC address, with every place.
pub(super) fn refuse_addresses(scene: &Scene<'_>) -> Result<()> {
    let places = places(scene)?;
    if places.is_empty() {
        return Ok(());
    }
    let message = format!("an instance of this image would have no network: {}", places.join("; "));
    Err(Error::new(Code::NetworkNamesMac, message))
}

fn places(scene: &Scene<'_>) -> Result<Vec<String>> {
    let mut places = Vec::new();
    for (directory, is_read) in PLACES {
        let is_renewed = |name: &str| {
            let mut of_cloud_init = OF_CLOUD_INIT.iter().filter(|(place, _)| *place == directory);
            scene.cloud_init_network && of_cloud_init.any(|(_, is_its)| is_its(name))
        };
        for name in scene.files.list(directory)? {
            let path = format!("{directory}/{name}");
            if ends(&name, ".d") && is_networkds(name.trim_end_matches(".d")) {
                for drop_in in scene.files.list(&path)? {
                    places.extend(places_in(scene.files, &format!("{path}/{drop_in}"))?);
                }
            } else if is_read(&name) && !is_renewed(&name) {
                places.extend(places_in(scene.files, &path)?);
            }
        }
    }
    Ok(places)
}

fn places_in(files: &Files, path: &str) -> Result<Vec<String>> {
    let text = files.read_text(path)?.unwrap_or_default();
    let named = text.lines().enumerate().filter_map(|(at, line)| Some((at + 1, address(line)?)));
    Ok(named.map(|(line, address)| format!("{path}:{line} names {address}")).collect())
}

/// The first MAC address of a line, comments left out: six pairs of digits, and neither all of them 0 nor all f.
fn address(line: &str) -> Option<&str> {
    let line = line.split(" #").next().filter(|line| !line.trim_start().starts_with(['#', ';']))?;
    let is_part = |c: char| c.is_ascii_hexdigit() || c == ':' || c == '-';
    line.split(|c| !is_part(c)).find(|word| {
        let pairs: Vec<_> = word.split([':', '-']).collect();
        let is_pair = |pair: &&str| pair.len() == 2 && pair.bytes().all(|b| b.is_ascii_hexdigit());
        pairs.len() == 6
            && pairs.iter().all(is_pair)
            && !pairs.iter().all(|p| *p == "00")
            && !pairs.iter().all(|p| p.eq_ignore_ascii_case("ff"))
    })
}

/// Whether the administrator has taken the network's files from cloud-init: then it writes none anew.
pub(super) fn is_kept_from_cloud_init(files: &Files) -> Result<bool> {
    const DIRECTORY: &str = "/etc/cloud/cloud.cfg.d";
    let parts = files.list(DIRECTORY)?;
    let parts = parts.iter().filter(|name| ends(name, ".cfg")).map(|name| format!("{DIRECTORY}/{name}"));
    for path in parts.chain(["/etc/cloud/cloud.cfg".into()]) {
        let text = files.read_text(path)?.unwrap_or_default();
        let says = |line: &str| {
            let line = line.split('#').next().unwrap_or_default();
            let value = line
                .split_once("config:")
                .map(|(_, value)| value.trim_start().trim_start_matches(['"', '\'']));
            value.is_some_and(|value| value.starts_with("disabled"))
        };
        if text.lines().any(says) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_found_in_every_form() {
        for (line, wanted) in [
            ("      macaddress: \"06:1a:2b:3c:4d:5e\"", Some("06:1a:2b:3c:4d:5e")),
            ("MACAddress=06-1A-2B-3C-4D-5E", Some("06-1A-2B-3C-4D-5E")),
            (
                "SUBSYSTEM==\"net\", ATTR{address}==\"06:1a:2b:3c:4d:5e\", NAME=\"eth0\"",
                Some("06:1a:2b:3c:4d:5e"),
            ),
            ("mac-address=06:1A:2B:3C:4D:5E;", Some("06:1A:2B:3C:4D:5E")),
            ("hwaddress ether 06:1a:2b:3c:4d:5e # ours", Some("06:1a:2b:3c:4d:5e")),
            ("  # macaddress: 06:1a:2b:3c:4d:5e", None),
            ("; MACAddress=06:1a:2b:3c:4d:5e", None),
            ("dhcp4: true # was 06:1a:2b:3c:4d:5e", None),
            ("Driver=ena", None),
            ("Gateway=fe80:00:00:00:00:00:00:01", None),
            ("clientid 00:01:00:01:2c:06:1a:2b:3c:4d:5e:00:11:22", None),
            ("cloned-mac-address=00:00:00:00:00:00", None),
            ("broadcast FF:FF:FF:FF:FF:FF", None),
        ] {
            assert_eq!(address(line), wanted, "{line}");
        }
    }

    #[test]
    fn cloud_init_is_believed_to_write_its_files_unless_it_is_told_not_to() {
        for (text, is_kept) in [
            ("network: {config: disabled}\n", true),
            ("network:\n  config: \"disabled\" # by hand\n", true),
            ("# network: {config: disabled}\n", false),
            ("network:\n  config:\n    version: 2\n", false),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let files = Files::new(dir.path().into());
            files.write("/etc/cloud/cloud.cfg.d/99-net.cfg", text.as_bytes(), 0o644).unwrap();
            assert_eq!(is_kept_from_cloud_init(&files).unwrap(), is_kept, "{text}");
        }
    }
}
