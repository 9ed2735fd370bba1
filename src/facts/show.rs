//! What `detect` prints: every fact with its source, as a table for people or as JSON. User-data may hold
//! secrets and is never printed, only its size and SHA-256.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::disk::Disk;
use super::gpu::{AcceleratorKind, GpuFacts, PciDevice};
use super::identity::Identity;
use super::os::Os;
use super::{Fact, Facts};

/// A line of the table.
pub struct Row {
    /// What it is about.
    pub fact: &'static str,
    /// The value, for people.
    pub value: String,
    /// The file, URL or program it came from.
    pub source: String,
}

impl Row {
    fn new(fact: &'static str, value: impl Into<String>, source: &str) -> Self {
        Self { fact, value: value.into(), source: source.to_owned() }
    }

    fn of<T: ToString>(fact: &'static str, from: &Fact<T>) -> Self {
        Self::new(fact, from.value.to_string(), &from.source)
    }
}

/// A table of facts, values and sources, then a warning for each disagreement. Ends with a newline.
pub fn text(facts: &Facts) -> String {
    let mut all = vec![Row::new("FACT", "VALUE", "SOURCE")];
    all.extend(rows(facts));
    let mut text = table(&all);
    for disagreement in &facts.gpu.disagreements {
        text.push_str(&printable(&format!("warning: {disagreement}")));
        text.push('\n');
    }
    text
}

/// Every fact, in the order in which a person would look. Values are as they were read: whoever shows them escapes them.
pub fn rows(facts: &Facts) -> Vec<Row> {
    let mut rows = Vec::new();
    identity(&facts.identity, &mut rows);
    os(&facts.os, &mut rows);
    gpu(&facts.gpu, &mut rows);
    for Fact { value: d, source } in &facts.efa {
        rows.push(Row::new("EFA device", format!("{} {:04x}:{:04x}", d.address, d.vendor, d.device), source));
    }
    disk(&facts.disk, &mut rows);
    rows
}

/// The facts as they are, each with `value` and `source`; `identity.user_data` has `bytes` and `sha256` instead
/// of the data.
pub fn json(facts: &Facts) -> Value {
    let mut all = serde_json::to_value(facts).unwrap_or_else(|e| json!({ "error": e.to_string() }));
    let user_data = facts.identity.user_data.as_ref().map(|data| {
        json!({
            "value": { "bytes": data.value.len(), "sha256": sha256(&data.value) },
            "source": data.source,
        })
    });
    if let Some(identity) = all.get_mut("identity").and_then(Value::as_object_mut) {
        identity.insert("user_data".into(), json!(user_data));
    }
    all
}

fn identity(identity: &Identity, rows: &mut Vec<Row>) {
    let on_ec2 = &identity.on_ec2;
    rows.push(Row::new("on EC2", if on_ec2.value { "yes" } else { "no" }, &on_ec2.source));
    if let Some(Fact { value: instance, source }) = &identity.instance {
        for (fact, value) in [
            ("instance", &instance.id),
            ("instance type", &instance.instance_type),
            ("region", &instance.region),
            ("availability zone", &instance.availability_zone),
            ("account", &instance.account_id),
            ("image", &instance.image_id),
            ("instance architecture", &instance.architecture),
        ] {
            rows.push(Row::new(fact, value, source));
        }
    }
    if let Some(Fact { value: data, source }) = &identity.user_data {
        rows.push(Row::new("user-data", format!("{} bytes, sha256 {}", data.len(), sha256(data)), source));
    }
    rows.push(Row::of("boot id", &identity.boot_id));
}

fn os(os: &Os, rows: &mut Vec<Row>) {
    let or_none = |value: &str| if value.is_empty() { "none".to_owned() } else { value.to_owned() };
    rows.push(Row::of("operating system", &os.id));
    rows.push(Row::new("version", or_none(&os.version_id.value), &os.version_id.source));
    rows.push(Row::new("codename", or_none(&os.codename.value), &os.codename.source));
    rows.push(Row::new("architecture", os.arch.value.debian_name(), &os.arch.source));
    rows.push(Row::of("kernel", &os.kernel));
    let secure_boot = if os.secure_boot.value { "on" } else { "off" };
    rows.push(Row::new("Secure Boot", secure_boot, &os.secure_boot.source));
    match &os.container {
        Some(container) => rows.push(Row::of("container", container)),
        None => rows.push(Row::new("container", "no", "no container manager's mark is there")),
    }
}

fn gpu(gpu: &GpuFacts, rows: &mut Vec<Row>) {
    if gpu.gpus.is_empty() {
        rows.push(Row::new("GPU", "none", &gpu.sources.join(", ")));
    }
    for Fact { value: device, source } in &gpu.gpus {
        let driven = gpu.driven.iter().find(|d| d.value.address == device.address);
        let model = driven.and_then(|d| d.value.model.as_deref()).map(|m| format!(", {m}"));
        rows.push(Row::new("GPU", pci(device) + &model.unwrap_or_default(), source));
    }
    for switch in &gpu.nvswitches {
        rows.push(Row::new("NVSwitch", pci(&switch.value), &switch.source));
    }
    for other in &gpu.other_accelerators {
        rows.push(Row::new(kind(other.value.kind), pci(&other.value.device), &other.source));
    }
    match &gpu.driver {
        Some(Fact { value: driver, source }) => {
            let flavour = if driver.open { "open" } else { "proprietary" };
            rows.push(Row::new("driver", format!("{}, {flavour} modules", driver.version), source));
        }
        None => rows.push(Row::new("driver", "not loaded", "/proc/driver/nvidia/version")),
    }
    if let Some(major) = &gpu.uvm_major {
        rows.push(Row::new("nvidia-uvm", format!("loaded, device number {}", major.value), &major.source));
    }
}

fn disk(disk: &Disk, rows: &mut Vec<Row>) {
    rows.push(Row::new("free in /usr", gibibytes(disk.usr_free.value), &disk.usr_free.source));
    rows.push(Row::new("free in /var", gibibytes(disk.var_free.value), &disk.var_free.source));
    let Fact { value: devices, source } = &disk.instance_store;
    for device in devices {
        rows.push(Row::new(
            "instance store",
            format!("{}, {}", device.name, gibibytes(device.bytes)),
            source,
        ));
    }
}

fn kind(kind: AcceleratorKind) -> &'static str {
    match kind {
        AcceleratorKind::AmdGpu => "AMD GPU",
        AcceleratorKind::Inferentia => "AWS Inferentia",
        AcceleratorKind::Trainium => "AWS Trainium",
        AcceleratorKind::Gaudi => "Habana Gaudi",
    }
}

fn pci(device: &PciDevice) -> String {
    let subsystem = device.subsystem.map(|s| format!(", subsystem {s:04x}")).unwrap_or_default();
    format!(
        "{} {:04x}:{:04x}, class {:04x}{subsystem}",
        device.address, device.vendor, device.device, device.class
    )
}

/// With one decimal, rounded down: never more than there is.
fn gibibytes(bytes: u64) -> String {
    let tenths = bytes / (1 << 20) * 10 / 1024;
    format!("{}.{} GiB", tenths / 10, tenths % 10)
}

fn sha256(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

/// No value of ours is wider; padding everything to a damaged one helps nobody, and formatting has its limit, too.
const WIDEST_COLUMN: usize = 100;

/// Columns as wide as their widest entry; the last one is not padded.
fn table(rows: &[Row]) -> String {
    let width = |column: fn(&Row) -> &str| {
        rows.iter().map(|r| column(r).chars().count().min(WIDEST_COLUMN)).max().unwrap_or(0)
    };
    let (fact, value) = (width(|r| r.fact), width(|r| &r.value));
    rows.iter()
        .map(|r| printable(&format!("{:fact$}  {:value$}  {}", r.fact, r.value, r.source)) + "\n")
        .collect()
}

/// Values come from files and from the network: what would steer a terminal becomes a question mark.
fn printable(line: &str) -> String {
    line.chars().map(|c| if c.is_control() { '?' } else { c }).collect::<String>().trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::gpu::driver::DrivenGpu;
    use crate::facts::gpu::{Accelerator, Driver};
    use crate::facts::identity::Instance;
    use crate::facts::os::Arch;

    fn facts() -> Facts {
        let fact = |v: &str| Fact::new(v.to_owned(), "a file");
        let device = |address: &str, device| PciDevice {
            address: address.into(),
            vendor: 0x10de,
            device,
            class: 0x0302,
            subsystem: Some(0x12a2),
        };
        Facts {
            identity: Identity {
                on_ec2: Fact::new(true, "dmi"),
                instance: Some(Fact::new(
                    Instance {
                        id: "i-1".into(),
                        instance_type: "g4dn.xlarge".into(),
                        region: "r".into(),
                        availability_zone: "z".into(),
                        account_id: "1".into(),
                        image_id: "ami-1".into(),
                        architecture: "x86_64".into(),
                    },
                    "imds",
                )),
                user_data: Some(Fact::new(b"password=hunter2".to_vec(), "imds user-data")),
                boot_id: fact("b"),
            },
            os: Os {
                id: fact("ubuntu"),
                version_id: fact("22.04"),
                codename: fact("\u{1b}[31mjammy"),
                arch: Fact::new(Arch::Amd64, "dpkg"),
                kernel: fact("6.8.0"),
                secure_boot: Fact::new(false, "efivars"),
                container: None,
            },
            gpu: GpuFacts {
                gpus: vec![Fact::new(device("0000:00:1e.0", 0x1eb8), "sysfs")],
                other_accelerators: vec![Fact::new(
                    Accelerator { kind: AcceleratorKind::Gaudi, device: device("0000:00:1f.0", 1) },
                    "sysfs",
                )],
                driver: Some(Fact::new(Driver { version: "580.142".into(), open: true }, "proc")),
                driven: vec![Fact::new(
                    DrivenGpu {
                        address: "0000:00:1e.0".into(),
                        model: Some("Tesla T4".into()),
                        ..DrivenGpu::default()
                    },
                    "proc",
                )],
                disagreements: vec!["one says this, two says that".into()],
                ..GpuFacts::default()
            },
            efa: vec![Fact::new(PciDevice { vendor: 0x1d0f, ..device("0000:00:1d.0", 0xefa1) }, "sysfs")],
            disk: Disk {
                usr_free: Fact::new(1_610_612_735, "statvfs"),
                var_free: Fact::new(0, "statvfs"),
                instance_store: Fact::new(Vec::new(), "sysfs"),
            },
        }
    }

    #[test]
    fn the_table_is_aligned_and_ends_with_the_warnings() {
        let text = text(&facts());
        let lines: Vec<_> = text.lines().collect();
        let at = |line: &str, what: &str| line.find(what).unwrap();
        let t4 = lines.iter().find(|l| l.starts_with("GPU")).unwrap();
        assert!(t4.contains("0000:00:1e.0 10de:1eb8, class 0302, subsystem 12a2, Tesla T4"));
        assert_eq!(at(lines[0], "VALUE"), at(t4, "0000:00"));
        assert_eq!(at(lines[0], "SOURCE"), at(t4, "sysfs"));
        assert!(lines.iter().any(|l| l.starts_with("free in /usr") && l.contains("1.4 GiB")));
        assert!(lines.iter().any(|l| l.starts_with("driver") && l.contains("580.142, open modules")));
        assert!(lines.iter().any(|l| l.starts_with("Habana Gaudi")));
        assert!(lines.iter().any(|l| l.starts_with("EFA device") && l.contains("0000:00:1d.0 1d0f:efa1")));
        assert_eq!(*lines.last().unwrap(), "warning: one says this, two says that");
    }

    #[test]
    fn neither_form_shows_user_data_or_steers_the_terminal() {
        let sum = "42c842031e73fa74cb753b09101a15f4c0d7844be5f37bfa4af9b9ac435c6ca4";
        let text = text(&facts());
        assert!(!text.contains("hunter2") && !text.contains('\u{1b}'));
        let json = json(&facts());
        assert!(!json.to_string().contains("hunter2"));
        assert_eq!(json["identity"]["user_data"]["value"]["bytes"], 16);
        assert_eq!(json["identity"]["user_data"]["value"]["sha256"], sum);
        assert!(text.contains(&format!("16 bytes, sha256 {sum}")));
    }

    #[test]
    fn json_keeps_every_source() {
        let json = json(&facts());
        assert_eq!(json["gpu"]["gpus"][0]["source"], "sysfs");
        assert_eq!(json["gpu"]["gpus"][0]["value"]["device"], 0x1eb8);
        assert_eq!(json["gpu"]["other_accelerators"][0]["value"]["kind"], "gaudi");
        assert_eq!(json["os"]["arch"]["value"], "amd64");
        assert_eq!(json["gpu"]["disagreements"][0], "one says this, two says that");
    }
}
