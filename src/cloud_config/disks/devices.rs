//! What user-data calls a device, and the device that the kernel has for it. On Nitro a volume that was attached as `sdf` is
//! `nvme1n1` to the kernel, and another number after the next boot; links of udev's, or the volume itself, tell which one.

use std::path::Path;

use super::super::read::Reader;
use crate::action::instance_store::device;
use crate::error::{Code, Error, Result};
use crate::facts::instance_store::{self, BLOCK};
use crate::host::Host;
use crate::host::exec::Call;
use crate::host::files::Files;
use crate::yaml::{Node, Value};

/// Links from one name to the next; udev makes one.
const MOST_LINKS: usize = 8;
/// What an EBS volume calls itself.
const EBS: &str = "Amazon Elastic Block Store";
/// Where an EBS volume has its name of the attachment in what the volume answers when it is asked to identify itself.
const ATTACHED_AS: std::ops::Range<usize> = 3072..3104;

/// Names of devices by other names: `device_aliases`.
pub(super) type Aliases = Vec<(String, String)>;

/// What user-data calls a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Name {
    /// As it was written.
    pub(super) text: String,
    kind: Kind,
    /// Behind a dot: `sdf.1`.
    pub(super) partition: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    /// The instance store's device with this number.
    Ephemeral(usize),
    /// A path in `/dev`.
    Device(String),
    /// A label, a server, a file system without a device: for mount(8) as it stands.
    Other,
}

/// A device that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Block {
    /// A path that leads to it.
    pub(super) path: String,
    /// The kernel's name.
    pub(super) kernel: String,
    /// Whether the path leads to the same device after the next boot.
    is_stable: bool,
}

/// `device_aliases`: a mapping of names to devices.
pub(super) fn aliases(reader: &mut Reader, node: Option<&Node>) -> Aliases {
    let Some(node) = node else { return Aliases::new() };
    let Value::Map(entries) = &node.value else {
        reader.wrong(node.at, format!("device_aliases takes a mapping, and this is {}", node.kind()));
        return Aliases::new();
    };
    let mut read = |(name, device): &(Node, Node)| {
        Some((reader.line("device_aliases", name)?, reader.line("device_aliases", device)?))
    };
    entries.iter().filter_map(&mut read).collect()
}

impl Name {
    /// Reads a name; the error says what is wrong with it.
    pub(super) fn parse(text: &str, aliases: &Aliases) -> Result<Self, String> {
        let other = Self { text: text.into(), kind: Kind::Other, partition: None };
        if text.contains(':') || text.contains('=') {
            return Ok(other); // server:/path, LABEL=…
        }
        let (base, partition) = match text.rsplit_once('.') {
            Some((base, number)) if !base.is_empty() && number.bytes().all(|b| b.is_ascii_digit()) => {
                let number = number.parse().ok().filter(|n| *n > 0);
                (base, Some(number.ok_or_else(|| format!("{text:?} names no partition"))?))
            }
            _ => (text, None),
        };
        let base =
            aliases.iter().find(|(alias, _)| alias == base).map_or(base, |(_, device)| device.as_str());
        let kind = if let Some(number) = base.strip_prefix("ephemeral") {
            let number = if number.is_empty() { Ok(0) } else { number.parse() };
            Kind::Ephemeral(
                number.map_err(|_| {
                    format!("{text:?} is no device of the instance store, such as ephemeral0")
                })?,
            )
        } else if ["ami", "root", "swap"].contains(&base) || base.starts_with("ebs") {
            return Err(format!(
                "{text:?} is a name of the metadata service that says nothing on today's instances; name the device as it was \
                 attached, such as /dev/sdf"
            ));
        } else if is_short(base) {
            Kind::Device(format!("/dev/{base}"))
        } else if base.starts_with("/dev/") && !base.split('/').any(|part| part == "..") {
            Kind::Device(base.into())
        } else {
            return Ok(other);
        };
        Ok(Self { text: text.into(), kind, partition })
    }

    /// Whether it names a block device, and not what only mount(8) can make sense of.
    pub(super) fn is_device(&self) -> bool {
        self.kind != Kind::Other
    }

    /// Whether it names a device of the instance store, which an instance type may not have.
    pub(super) fn is_ephemeral(&self) -> bool {
        matches!(self.kind, Kind::Ephemeral(_))
    }

    /// Whether both name the same.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        match self.kind {
            Kind::Other => self.text == other.text,
            _ => self.kind == other.kind && self.partition == other.partition,
        }
    }

    /// What stands in fstab for a device that is not there: its path, or what only mount(8) knows.
    pub(super) fn as_given(&self) -> Option<&str> {
        match &self.kind {
            Kind::Other => Some(&self.text),
            Kind::Device(path) if self.partition.is_none() => Some(path),
            _ => None,
        }
    }

    /// The device without regard to a partition; `None` where there is none.
    pub(super) async fn disk(&self, host: &Host) -> Result<Option<Block>> {
        let path = match &self.kind {
            Kind::Other => return Ok(None),
            Kind::Ephemeral(number) => {
                let devices = instance_store::gather(&host.files)?.value;
                let by_number =
                    |name: String| Block { path: format!("/dev/{name}"), kernel: name, is_stable: false };
                return Ok(devices.into_iter().nth(*number).map(|device| by_number(device.name)));
            }
            Kind::Device(path) => path,
        };
        for path in spellings(path) {
            if let Some(kernel) = kernel_name(&host.files, &path)? {
                return Ok(Some(Block { path, kernel, is_stable: true }));
            }
        }
        match attached(path) {
            Some((volume, None)) => volume_as(host, volume).await,
            Some((volume, Some(number))) => match volume_as(host, volume).await? {
                Some(disk) => disk.partition(&host.files, number),
                None => Ok(None),
            },
            None => Ok(None),
        }
    }

    /// What is to be mounted, by cloud-init's rule: the partition that is named, or else the first one, or else the device.
    pub(super) async fn source(&self, host: &Host) -> Result<Option<Block>> {
        let Some(disk) = self.disk(host).await? else { return Ok(None) };
        match self.partition {
            Some(number) => disk.partition(&host.files, number),
            None => Ok(Some(disk.partition(&host.files, 1)?.unwrap_or(disk))),
        }
    }
}

impl Block {
    /// One of its partitions.
    pub(super) fn partition(&self, files: &Files, number: u32) -> Result<Option<Self>> {
        let by_kernel = format!("/dev/{}", self.kernel);
        for base in [&self.path, &by_kernel] {
            for between in ["", "p", "-part"] {
                let path = format!("{base}{between}{number}");
                // "nvme1n1" and 2 are no "nvme1n12".
                if let Some(kernel) =
                    kernel_name(files, &path)?.filter(|k| is_partition(files, k).unwrap_or(false))
                {
                    return Ok(Some(Self { path, kernel, is_stable: self.is_stable }));
                }
            }
        }
        Ok(None)
    }

    /// What fstab calls it: a name that means this device after the next boot, too.
    pub(super) async fn lasting(&self, host: &Host) -> Result<String> {
        if self.is_stable {
            return Ok(self.path.clone());
        }
        let signatures = device::signatures(host, &self.kernel).await?;
        let uuid = device::value(&signatures, "UUID");
        Ok(if uuid.is_empty() { self.path.clone() } else { format!("UUID={uuid}") })
    }
}

/// Every name that a kernel may have given to it.
fn spellings(path: &str) -> Vec<String> {
    let mut all = vec![path.to_owned()];
    let name = path.trim_start_matches("/dev/");
    if let Some(letters) = ["xvd", "sd", "vd"].iter().find_map(|prefix| name.strip_prefix(prefix)) {
        let others = ["sd", "xvd", "vd"].map(|prefix| format!("/dev/{prefix}{letters}"));
        all.extend(others.into_iter().filter(|other| other != path));
    }
    all
}

/// `/dev/sdf1` → (`f`, 1): a volume's letters, as EC2's console shows them, and a partition.
fn attached(path: &str) -> Option<(&str, Option<u32>)> {
    let name = path.strip_prefix("/dev/")?;
    let rest = name.strip_prefix("xvd").or_else(|| name.strip_prefix("sd"))?;
    let letters = rest.trim_end_matches(|c: char| c.is_ascii_digit());
    let number = &rest[letters.len()..];
    let is_volume = !letters.is_empty() && letters.bytes().all(|b| b.is_ascii_lowercase());
    let number = if number.is_empty() { None } else { Some(number.parse().ok()?) };
    is_volume.then_some((letters, number))
}

/// The EBS volume that was attached by these letters, as the volume itself says.
async fn volume_as(host: &Host, letters: &str) -> Result<Option<Block>> {
    for name in host.files.list(BLOCK)? {
        let model = host.files.read_text(format!("{BLOCK}/{name}/device/model"))?.unwrap_or_default();
        if !name.starts_with("nvme") || model.trim() != EBS || is_partition(&host.files, &name)? {
            continue;
        }
        let own = attached_as(host, &name).await?;
        if attached(&own).is_some_and(|(own, number)| own == letters && number.is_none()) {
            return Ok(Some(Block { path: format!("/dev/{name}"), kernel: name, is_stable: false }));
        }
    }
    Ok(None)
}

/// `/dev/sdf`, by whichever program the image has that can ask.
async fn attached_as(host: &Host, name: &str) -> Result<String> {
    let device = format!("/dev/{name}");
    let there = |program: &str| -> Result<bool> {
        for dir in ["/usr/sbin", "/sbin", "/usr/bin"] {
            if host.files.exists(format!("{dir}/{program}"))? {
                return Ok(true);
            }
        }
        Ok(false)
    };
    let text = if there("ebsnvme-id")? {
        host.exec.run(&Call::new("ebsnvme-id").args(["-b", device.as_str()])).await?.text()
    } else if there("nvme")? {
        let call = Call::new("nvme").args(["id-ctrl", "--raw-binary", device.as_str()]);
        let answer = host.exec.run(&call).await?.stdout;
        String::from_utf8_lossy(answer.get(ATTACHED_AS).unwrap_or_default()).into_owned()
    } else {
        let message = format!("nothing on this image tells as what the volume {device} was attached");
        return Err(Error::new(Code::UserDataFailed, message).with_hint(
            "install amazon-ec2-utils or nvme-cli in the image, or name the device by LABEL= or UUID=",
        ));
    };
    let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
    Ok(format!("/dev/{}", text.trim_start_matches("/dev/")))
}

/// The kernel's name of what lies at a path in `/dev`; `None` where that is no block device.
pub(super) fn kernel_name(files: &Files, path: &str) -> Result<Option<String>> {
    let mut path = path.to_owned();
    for _ in 0..MOST_LINKS {
        let Some(target) = files.read_link(&path)? else { break };
        let parent = Path::new(&path).parent().unwrap_or(Path::new("/"));
        path = parent.join(target).to_string_lossy().into_owned();
    }
    let Some(name) = Path::new(&path).file_name().map(|name| name.to_string_lossy().into_owned()) else {
        return Ok(None);
    };
    let is_there = files.exists(&path)? && files.exists(format!("{BLOCK}/{name}"))?;
    Ok(is_there.then_some(name))
}

/// Whether the kernel has it as a partition of something.
pub(super) fn is_partition(files: &Files, kernel: &str) -> Result<bool> {
    files.exists(format!("{BLOCK}/{kernel}/partition"))
}

/// Names that stand for a device in `/dev` without saying so; cloud-init's list, and the kernel's of today.
fn is_short(name: &str) -> bool {
    let by_letters =
        ["xvd", "xsd", "xhd", "sd", "hd", "vd"].iter().find_map(|prefix| name.strip_prefix(prefix));
    let is_letters = |rest: &str| {
        let rest = rest.trim_end_matches(|c: char| c.is_ascii_digit());
        (1..=2).contains(&rest.len()) && rest.bytes().all(|b| b.is_ascii_lowercase())
    };
    let is_nvme = name.strip_prefix("nvme").is_some_and(|rest| {
        rest.starts_with(|c: char| c.is_ascii_digit())
            && rest.contains('n')
            && rest.bytes().all(|b| b.is_ascii_digit() || b == b'n' || b == b'p')
    });
    by_letters.is_some_and(is_letters) || is_nvme
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::parse(text, &vec![("data".into(), "/dev/sdg".into())]).unwrap()
    }

    #[test]
    fn names_are_read_as_cloud_init_reads_them() {
        let device = |path: &str| Kind::Device(path.into());
        for (text, kind, partition) in [
            ("ephemeral", Kind::Ephemeral(0), None),
            ("ephemeral1.2", Kind::Ephemeral(1), Some(2)),
            ("sdf", device("/dev/sdf"), None),
            ("xvdba1", device("/dev/xvdba1"), None),
            ("nvme1n1", device("/dev/nvme1n1"), None),
            ("/dev/sdf.1", device("/dev/sdf"), Some(1)),
            ("data.3", device("/dev/sdg"), Some(3)),
            ("/dev/disk/by-label/a.b", device("/dev/disk/by-label/a.b"), None),
            ("LABEL=a.1", Kind::Other, None),
            ("fs-1.efs.example.com:/", Kind::Other, None),
            ("tmpfs", Kind::Other, None),
            ("/srv/data", Kind::Other, None),
            ("/dev/../etc", Kind::Other, None),
        ] {
            assert_eq!((name(text).kind, name(text).partition), (kind, partition), "{text}");
        }
        for text in ["ebs1", "swap", "root.1", "ephemeralx", "sdf.0"] {
            assert!(Name::parse(text, &Aliases::new()).is_err(), "{text}");
        }
    }

    #[test]
    fn a_volume_has_letters_and_perhaps_a_partition() {
        assert_eq!(attached("/dev/sdf"), Some(("f", None)));
        assert_eq!(attached("/dev/xvdbc12"), Some(("bc", Some(12))));
        assert_eq!(attached("/dev/nvme1n1"), None);
        assert_eq!(attached("/dev/sd1"), None);
        assert_eq!(spellings("/dev/sdf1"), ["/dev/sdf1", "/dev/xvdf1", "/dev/vdf1"]);
        assert_eq!(spellings("/dev/disk/by-label/sdf"), ["/dev/disk/by-label/sdf"]);
    }
}
