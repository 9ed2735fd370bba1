//! The one place that reads the machine for [`GpuFacts`]: the PCI bus from up to three sources, then what the
//! loaded kernel module says.

use std::time::Duration;

use super::compare::{self, Inventory};
use super::pci::{self, Address, Function, ProcLine};
use super::{GpuFacts, driver, lspci};
use crate::error::{Code, Result};
use crate::facts::Fact;
use crate::host::Host;
use crate::host::exec::Call;

const SYSFS: &str = "/sys/bus/pci/devices";
const PROC_BUS: &str = "/proc/bus/pci/devices";
const PROC_BUS_DIR: &str = "/proc/bus/pci";
const LSPCI: &str = "lspci -Dnnmm";
/// Where distributions install `lspci`, inside the PATH that programs are run with.
const LSPCI_FILES: &[&str] = &["/usr/bin/lspci", "/usr/sbin/lspci", "/sbin/lspci", "/bin/lspci"];

/// Where distributions install `modinfo`, likewise.
const MODINFO_FILES: [&str; 4] = ["/usr/sbin/modinfo", "/sbin/modinfo", "/usr/bin/modinfo", "/bin/modinfo"];

const DRIVER_VERSION: &str = "/proc/driver/nvidia/version";
const DRIVER_GPUS: &str = "/proc/driver/nvidia/gpus";
const PROC_DEVICES: &str = "/proc/devices";

/// Which sources to ask about the PCI bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Witnesses {
    /// The kernel's two files, and `lspci` only where one of them is missing or they disagree. `lspci` reads
    /// the same kernel data: when both files agree it adds nothing but 9 ms and a process, in every run.
    WhenInDoubt,
    /// All three, for `detect`, whose reader wants to see every source.
    Every,
}

/// Reads every source that `witnesses` asks for and compares them.
pub async fn gather(host: &Host, witnesses: Witnesses) -> Result<GpuFacts> {
    let mut notes = Vec::new();
    let mut inventories = kernel_inventories(host, &mut notes)?;
    let mut seen = compare::compare(&inventories);
    let doubt = inventories.len() < 2 || !seen.disagreements.is_empty() || !notes.is_empty();
    if (doubt || witnesses == Witnesses::Every)
        && let Some(functions) = ask_lspci(host, &mut notes).await?
    {
        inventories.push(Inventory { source: LSPCI, functions });
        seen = compare::compare(&inventories);
    }
    if inventories.is_empty() {
        notes.push(format!("no PCI bus can be seen: neither {SYSFS} nor {PROC_BUS} is there"));
    }
    notes.append(&mut seen.disagreements);
    let mut facts = GpuFacts {
        gpus: seen.gpus,
        nvswitches: seen.nvswitches,
        other_accelerators: seen.others,
        sources: inventories.iter().map(|i| i.source.to_owned()).collect(),
        disagreements: notes,
        ..GpuFacts::default()
    };
    read_driver(host, &mut facts)?;
    Ok(facts)
}

/// What the module's file is called. On Debian the name that it is loaded by is an "install" line of modprobe's.
pub const MODULE_NAMES: &[&str] = &["nvidia", "nvidia-current", "nvidia-tesla-470", "nvidia-tesla-535"];

/// Version of the module file that the next boot of this kernel loads; `None` where there is none, or no modinfo that
/// knows of it. One that is not done after `limit` is an error (`exec-timeout`).
pub async fn module_on_disk(host: &Host, limit: Duration) -> Result<Option<String>> {
    // Looked for first: a process that then cannot be executed costs a millisecond of every device query.
    let mut there = false;
    for file in MODINFO_FILES {
        there |= host.files.exists(file)?;
    }
    if !there {
        return Ok(None);
    }
    for name in MODULE_NAMES {
        match host.exec.output(&Call::new("modinfo").args(["-F", "version", *name]).limit(limit)).await {
            Ok(output) if output.ok() => {
                let version = output.text().trim().to_owned();
                return Ok(Some(version).filter(|version| !version.is_empty()));
            }
            Ok(_) => {}
            Err(e) if e.code() == Code::Exec => return Ok(None),
            Err(e) => return Err(e),
        }
    }
    Ok(None)
}

/// What sysfs and `/proc/bus/pci` list; a source that is not there is left out.
fn kernel_inventories(host: &Host, notes: &mut Vec<String>) -> Result<Vec<Inventory>> {
    let sysfs = read_sysfs(host, notes)?;
    let proc_bus = read_proc_bus(host, sysfs.as_deref().unwrap_or_default())?;
    let named =
        |source, functions: Option<Vec<Function>>| functions.map(|functions| Inventory { source, functions });
    Ok([named(SYSFS, sysfs), named(PROC_BUS, proc_bus)].into_iter().flatten().collect())
}

fn read_sysfs(host: &Host, notes: &mut Vec<String>) -> Result<Option<Vec<Function>>> {
    if !host.files.exists(SYSFS)? {
        return Ok(None);
    }
    let mut functions = Vec::new();
    for name in host.files.list(SYSFS)? {
        let attribute = |a: &str| host.files.read_text(format!("{SYSFS}/{name}/{a}"));
        let (vendor, device, class) = (attribute("vendor")?, attribute("device")?, attribute("class")?);
        let subsystem = attribute("subsystem_device")?;
        let [vendor, device, class] = [vendor, device, class].map(Option::unwrap_or_default);
        match pci::sysfs_function(&name, &vendor, &device, &class, subsystem.as_deref()) {
            Some(function) => functions.push(function),
            None => notes.push(format!("{SYSFS}/{name} does not describe a PCI function")),
        }
    }
    Ok(Some(functions))
}

fn read_proc_bus(host: &Host, known: &[Function]) -> Result<Option<Vec<Function>>> {
    let Some(text) = host.files.read_text(PROC_BUS)? else { return Ok(None) };
    let (mut functions, left) = compare::place(&pci::proc_bus_devices(&text), known);
    for line in left {
        functions.push(read_config_space(host, line)?);
    }
    Ok(Some(functions))
}

/// A function that only `/proc/bus/pci/devices` lists: its domain and class stand in `/proc/bus/pci/BUS` (domain
/// 0 on x86) or `/proc/bus/pci/DOMAIN:BUS`. Without these files it is taken to be in domain 0, class unknown.
fn read_config_space(host: &Host, line: ProcLine) -> Result<Function> {
    let ids = (Some(line.vendor), Some(line.device));
    let place = format!("{:02x}.{:x}", line.slot, line.function);
    if compare::of_interest(ids.0, ids.1) {
        for dir in host.files.list(PROC_BUS_DIR)? {
            let Some(address) = address_of(&dir, &place).filter(|a| a.bus == line.bus) else { continue };
            let file = format!("{PROC_BUS_DIR}/{dir}/{place}");
            let bytes = host.files.read_limited(&file, 64)?.unwrap_or_default();
            if let Some(function) = pci::config_space(address, &bytes)
                && (function.vendor, function.device) == ids
            {
                return Ok(function);
            }
        }
    }
    let address = Address { domain: 0, bus: line.bus, slot: line.slot, function: line.function };
    Ok(Function { vendor: ids.0, device: ids.1, ..Function::at(address) })
}

fn address_of(bus_dir: &str, place: &str) -> Option<Address> {
    Address::parse(&format!("{bus_dir}:{place}"))
}

/// What `lspci` lists; `None` when it is not installed (which is no error) or failed (which is noted).
async fn ask_lspci(host: &Host, notes: &mut Vec<String>) -> Result<Option<Vec<Function>>> {
    let mut installed = false;
    for file in LSPCI_FILES {
        installed |= host.files.exists(file)?;
    }
    if !installed {
        return Ok(None);
    }
    let output = match host.exec.output(&Call::new("lspci").args(["-Dnnmm"])).await {
        Ok(output) => output,
        Err(e) => {
            notes.push(format!("{LSPCI} could not be asked: {e}: {}", e.causes().join(": ")));
            return Ok(None);
        }
    };
    if output.ok() {
        return Ok(Some(lspci::parse(&output.text())));
    }
    notes.push(format!(
        "{LSPCI} failed with status {}: {}",
        output.status,
        output.tail().replace('\n', "; ")
    ));
    Ok(None)
}

/// The loaded kernel module, the GPUs it drives, and where these differ from the PCI bus.
fn read_driver(host: &Host, facts: &mut GpuFacts) -> Result<()> {
    let Some(text) = host.files.read_text(DRIVER_VERSION)? else { return Ok(()) };
    facts.driver = driver::version(&text).map(|d| Fact::new(d, DRIVER_VERSION));
    if facts.driver.is_none() {
        let line = text.lines().next().unwrap_or_default();
        facts.disagreements.push(format!("{DRIVER_VERSION} names no driver version: {line:?}"));
    }
    for name in host.files.list(DRIVER_GPUS)? {
        let file = format!("{DRIVER_GPUS}/{name}/information");
        let text = host.files.read_text(&file)?.unwrap_or_default();
        facts.driven.push(Fact::new(driver::information(&name, &text), file));
    }
    let devices = host.files.read_text(PROC_DEVICES)?.unwrap_or_default();
    facts.uvm_major = driver::character_major(&devices, "nvidia-uvm").map(|m| Fact::new(m, PROC_DEVICES));
    compare_driver(facts);
    Ok(())
}

fn compare_driver(facts: &mut GpuFacts) {
    for gpu in &facts.gpus {
        let driven = facts.driven.iter().find(|d| d.value.address == gpu.value.address);
        let ids = format!("{} ({:04x}:{:04x})", gpu.value.address, gpu.value.vendor, gpu.value.device);
        match driven {
            None => facts.disagreements.push(format!(
                "{ids} is on the PCI bus, but the loaded driver does not list it in {DRIVER_GPUS}"
            )),
            Some(d) if d.value.excluded => {
                facts
                    .disagreements
                    .push(format!("{ids} is excluded from use by the driver's settings ({})", d.source));
            }
            Some(_) => {}
        }
    }
    for driven in &facts.driven {
        if !facts.gpus.iter().any(|g| g.value.address == driven.value.address) {
            facts.disagreements.push(format!(
                "the loaded driver lists {} in {DRIVER_GPUS}, but no PCI source has a GPU there",
                driven.value.address
            ));
        }
    }
}
