//! Who this machine is: EC2 or not (decided by DMI before any packet), instance identity, user-data, boot id.

use serde::{Deserialize, Serialize};

use super::Fact;
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::host::files::Files;
use crate::imds;

/// Xen's hypervisor id; readable by all.
const XEN_UUID: &str = "/sys/hypervisor/uuid";
/// The firmware's machine id; readable by root only.
const PRODUCT_UUID: &str = "/sys/class/dmi/id/product_uuid";
/// Who made the machine; on Nitro, `Amazon EC2`.
const VENDORS: [&str; 2] = ["/sys/class/dmi/id/sys_vendor", "/sys/class/dmi/id/bios_vendor"];
/// On Nitro, the instance id.
const ASSET_TAG: &str = "/sys/class/dmi/id/board_asset_tag";
/// A new id with every boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// One request for instance id, type, region, zone, account, image and architecture.
const DOCUMENT: &str = "dynamic/instance-identity/document";
const USER_DATA: &str = "user-data";

/// Who this machine is.
#[derive(Clone, Debug, Serialize)]
pub struct Identity {
    /// Whether this is an EC2 instance.
    pub on_ec2: Fact<bool>,
    /// What the metadata service says; absent off EC2 and with `--no-imds`.
    pub instance: Option<Fact<Instance>>,
    /// Raw user-data, as given at launch; absent when there is none. Never printed.
    #[serde(skip)]
    pub user_data: Option<Fact<Vec<u8>>>,
    /// The kernel's id of this boot.
    pub boot_id: Fact<String>,
}

/// The instance identity document's fields that we use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Instance {
    /// `i-…`
    pub id: String,
    /// For example `g5.xlarge`.
    pub instance_type: String,
    /// For example `us-east-1`.
    pub region: String,
    /// For example `us-east-1a`.
    pub availability_zone: String,
    /// Twelve digits.
    pub account_id: String,
    /// `ami-…`
    pub image_id: String,
    /// `x86_64` or `arm64`, as the document spells it.
    pub architecture: String,
}

/// The document as AWS spells it; its other fields are of no use here and may grow.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    instance_id: String,
    instance_type: String,
    region: String,
    availability_zone: String,
    account_id: String,
    image_id: String,
    architecture: String,
}

impl Identity {
    /// The instance type, where known.
    pub fn instance_type(&self) -> Option<&str> {
        self.instance.as_ref().map(|i| i.value.instance_type.as_str())
    }

    /// The id that keys receipts: the instance id, or `local` off EC2.
    pub fn instance_id(&self) -> &str {
        self.instance.as_ref().map_or("local", |i| i.value.id.as_str())
    }
}

/// Reads identity and user-data. The metadata service is asked only if DMI says that this is EC2, or if the
/// environment names the service: `AWS_EC2_METADATA_SERVICE_ENDPOINT` is how a test or a rehearsal brings its own.
pub async fn gather(host: &Host, metadata: Option<&imds::Client>) -> Result<Identity> {
    let mut identity = Identity {
        on_ec2: on_ec2(&host.files)?,
        instance: None,
        user_data: None,
        boot_id: boot_id(&host.files)?,
    };
    let Some(client) = metadata else { return Ok(identity) };
    if !identity.on_ec2.value && client.endpoint().is_explicit() {
        let dmi = identity.on_ec2.source;
        identity.on_ec2 = Fact::new(true, format!("AWS_EC2_METADATA_SERVICE_ENDPOINT, although {dmi}"));
    }
    if identity.on_ec2.value {
        identity.instance = Some(instance(client).await?);
        let user_data = client.get(USER_DATA).await?;
        identity.user_data = user_data.map(|bytes| Fact::new(bytes, client.url(USER_DATA)));
    }
    Ok(identity)
}

/// Whether this is EC2, by what hypervisor and firmware say, before any packet is sent: elsewhere 169.254.169.254
/// may be somebody else's service, or a black hole that costs the whole deadline.
fn on_ec2(files: &Files) -> Result<Fact<bool>> {
    if let Some(uuid) = trimmed(files, XEN_UUID)?
        && is_ec2_prefix(&uuid)
    {
        return Ok(Fact::new(true, XEN_UUID));
    }
    let mut vendor = None;
    for path in VENDORS {
        let Some(name) = trimmed(files, path)? else { continue };
        if name == "Amazon EC2" {
            return Ok(Fact::new(true, path));
        }
        vendor.get_or_insert(format!("{path} says {name:?}"));
    }
    if let Some(uuid) = trimmed(files, PRODUCT_UUID)?
        && is_ec2_uuid(&uuid)
    {
        return Ok(Fact::new(true, PRODUCT_UUID));
    }
    if trimmed(files, ASSET_TAG)?.is_some_and(|tag| is_instance_id(&tag)) {
        return Ok(Fact::new(true, ASSET_TAG));
    }
    Ok(Fact::new(false, vendor.unwrap_or_else(|| "/sys/class/dmi/id and /sys/hypervisor say nothing".into())))
}

/// The instance id that the firmware names (on Nitro); asked without any packet.
pub(crate) fn firmware_instance_id(files: &Files) -> Result<Option<String>> {
    Ok(trimmed(files, ASSET_TAG)?.filter(|tag| is_instance_id(tag)))
}

/// A one-line file's text; `None` when it is missing, empty, or not ours to read (`product_uuid` is root's, and
/// whoever is not root has the vendor to go by).
fn trimmed(files: &Files, path: &str) -> Result<Option<String>> {
    match files.read_text(path) {
        Ok(text) => Ok(text.map(|t| t.trim().to_owned()).filter(|t| !t.is_empty())),
        Err(e) if is_forbidden(&e) => Ok(None),
        Err(e) => {
            Err(Error::new(Code::FactsUnreadable, format!("cannot tell from {path} whether this is EC2"))
                .because(e))
        }
    }
}

fn is_forbidden(e: &Error) -> bool {
    std::error::Error::source(e)
        .and_then(|s| s.downcast_ref::<std::io::Error>())
        .is_some_and(|io| io.kind() == std::io::ErrorKind::PermissionDenied)
}

/// Old firmware stores the first three fields of the id little-endian, and then Linux shows them so.
fn is_ec2_uuid(uuid: &str) -> bool {
    if is_ec2_prefix(uuid) {
        return true;
    }
    let first: Vec<_> = uuid.split('-').next().unwrap_or_default().chars().collect();
    let swapped: String = first.rchunks(2).flatten().collect();
    first.len() == 8 && is_ec2_prefix(&swapped)
}

fn is_ec2_prefix(text: &str) -> bool {
    text.get(..3).is_some_and(|p| p.eq_ignore_ascii_case("ec2"))
}

fn is_instance_id(text: &str) -> bool {
    text.strip_prefix("i-")
        .is_some_and(|digits| matches!(digits.len(), 8 | 17) && digits.bytes().all(|b| b.is_ascii_hexdigit()))
}

fn boot_id(files: &Files) -> Result<Fact<String>> {
    let id = files.read_text(BOOT_ID)?.map(|t| t.trim().to_owned()).filter(|t| !t.is_empty());
    let id = id.ok_or_else(|| {
        Error::new(Code::FactsUnreadable, format!("{BOOT_ID} is missing or empty"))
            .with_hint("mount /proc; without the boot id a reboot cannot be told from none")
    })?;
    Ok(Fact::new(id, BOOT_ID))
}

async fn instance(client: &imds::Client) -> Result<Fact<Instance>> {
    let document = client.get(DOCUMENT).await?;
    let url = client.url(DOCUMENT);
    let document = document.ok_or_else(|| {
        Error::new(Code::MetadataInvalid, format!("{url} does not exist, but every instance has it"))
    })?;
    let instance = parse_document(&document, &url).inspect_err(|_| client.forget(DOCUMENT))?;
    Ok(Fact::new(instance, url))
}

/// Reads the instance identity document; `url` is for the message.
pub(crate) fn parse_document(json: &[u8], url: &str) -> Result<Instance> {
    let invalid = || {
        Error::new(Code::MetadataInvalid, format!("{url} is no instance identity document"))
            .with_hint("look for something that answers in the metadata service's place")
    };
    let d: Document = serde_json::from_slice(json).map_err(|e| invalid().because(e))?;
    if !is_instance_id(&d.instance_id) {
        return Err(invalid().because(format!("instanceId is {:?}", d.instance_id)));
    }
    Ok(Instance {
        id: d.instance_id,
        instance_type: d.instance_type,
        region: d.region,
        availability_zone: d.availability_zone,
        account_id: d.account_id,
        image_id: d.image_id,
        architecture: d.architecture,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A root with these one-line files.
    fn root(lines: &[(&str, &str)]) -> (tempfile::TempDir, Files) {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path().to_path_buf());
        for (path, line) in lines {
            files.write(path, format!("{line}\n").as_bytes(), 0o644).unwrap();
        }
        (dir, files)
    }

    #[test]
    fn ec2_is_known_by_firmware_and_hypervisor() {
        for (path, line) in [
            (XEN_UUID, "ec2e1916-9099-7caf-fd21-012345abcdef"),
            (VENDORS[0], "Amazon EC2"),
            (VENDORS[1], "Amazon EC2"),
            (PRODUCT_UUID, "EC2E1916-9099-7CAF-FD21-012345ABCDEF"),
            (PRODUCT_UUID, "45E12AEC-DCD1-B213-94ED-012345ABCDEF"), // AWS's own little-endian example
            (ASSET_TAG, "i-0123456789abcdef0"),
        ] {
            let (_dir, files) = root(&[(path, line)]);
            assert_eq!(on_ec2(&files).unwrap(), Fact::new(true, path), "{line}");
        }
    }

    #[test]
    fn other_machines_are_not_ec2_and_say_by_what() {
        let (_dir, files) = root(&[
            (VENDORS[0], "QEMU"),
            (VENDORS[1], "SeaBIOS"),
            (PRODUCT_UUID, "12aec245-0000-0000-0000-000000000000"),
            (ASSET_TAG, "Not Specified"),
        ]);
        let fact = on_ec2(&files).unwrap();
        assert!(!fact.value);
        assert_eq!(fact.source, "/sys/class/dmi/id/sys_vendor says \"QEMU\"");
        let (_dir, bare) = root(&[]);
        assert!(!on_ec2(&bare).unwrap().value);
    }

    #[test]
    fn a_fact_that_is_there_but_unreadable_is_an_error() {
        let (dir, files) = root(&[]);
        std::fs::create_dir_all(dir.path().join("sys/class/dmi/id/sys_vendor")).unwrap();
        assert_eq!(on_ec2(&files).unwrap_err().code(), Code::FactsUnreadable);
    }

    #[test]
    fn awss_own_example_document_is_read() {
        let json =
            br#"{ "devpayProductCodes" : null, "marketplaceProductCodes" : [ "1abc2defghijklm3nopqrs4tu" ],
          "availabilityZone" : "us-west-2b", "privateIp" : "10.158.112.84", "version" : "2017-09-30",
          "instanceId" : "i-1234567890abcdef0", "billingProducts" : null, "instanceType" : "t2.micro",
          "accountId" : "123456789012", "imageId" : "ami-5fb8c835", "pendingTime" : "2016-11-19T16:32:11Z",
          "architecture" : "x86_64", "kernelId" : null, "ramdiskId" : null, "region" : "us-west-2" }"#;
        let instance = parse_document(json, "u").unwrap();
        assert_eq!((instance.id.as_str(), instance.region.as_str()), ("i-1234567890abcdef0", "us-west-2"));
        assert_eq!((instance.instance_type.as_str(), instance.architecture.as_str()), ("t2.micro", "x86_64"));
    }

    #[test]
    fn nonsense_is_not_a_document() {
        for nonsense in [&b"<html>login</html>"[..], b"", b"{}", b"[1]", b"\xff\xfe"] {
            let e = parse_document(nonsense, "http://x/document").unwrap_err();
            assert_eq!(e.code(), Code::MetadataInvalid);
            assert!(e.message().contains("http://x/document") && !e.causes().is_empty());
        }
    }
}
