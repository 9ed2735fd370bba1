//! Programs that a rehearsal puts in the place of the machine's own, because they would reach the real kernel or
//! the real service manager: `modprobe`, `rmmod`, `modinfo` and `systemctl`. They say that they are simulated.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::driver;
use super::packages::{FABRIC_MANAGER_VERSION, MODULES_DIR};
use super::pci::Gpu;
use crate::error::{Error, Result, exit};

/// What the simulated programs know about the simulated machine.
pub(super) const MACHINE_FILE: &str = "/run/gpu-bootstrap-rehearsal/machine.json";
const UNITS_DIR: &str = "/run/gpu-bootstrap-rehearsal/units";
const DRIVER_DIR: &str = "/proc/driver/nvidia";
/// The unit of fabric manager.
pub(super) const FABRIC_MANAGER: &str = "nvidia-fabricmanager.service";
/// The state of a unit that runs.
pub(super) const ACTIVE: &str = "active";
const UNIT_DIRS: &[&str] = &["/etc/systemd/system", "/lib/systemd/system", "/usr/lib/systemd/system"];

/// The GPUs before this id (Volta and older) have no open modules; those from [`FIRST_BLACKWELL`] on have only them.
const FIRST_TURING: u16 = 0x1e00;
const FIRST_BLACKWELL: u16 = 0x2900;

/// The content of [`MACHINE_FILE`].
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Machine {
    /// The simulated GPUs.
    pub(super) gpus: Vec<Gpu>,
    /// How many `NVSwitch`es there are.
    pub(super) switches: u32,
}

/// A simulated kernel module file.
struct Module {
    version: String,
    open: bool,
}

/// `modprobe [OPTION…] [-a] MODULE… [PARAMETER…]`: loads a module that a simulated package has "built".
pub(super) fn modprobe(args: &[String]) -> Result<u8> {
    let (options, names): (Vec<&String>, Vec<&String>) = args.iter().partition(|a| a.starts_with('-'));
    let all = options.iter().any(|o| *o == "-a" || *o == "--all");
    let only_look =
        options.iter().any(|o| ["-n", "--dry-run", "--show", "--show-depends"].contains(&o.as_str()));
    let names = if all { &names[..] } else { &names[..names.len().min(1)] };
    let kernel = kernel_release()?;
    for name in names {
        if !name.starts_with("nvidia") && !only_look {
            // The kernel's own modules (ib_umad, …), which every instance has.
            put(&format!("/sys/module/{}/refcnt", name.replace('-', "_")), "0\n")?;
            continue;
        }
        let Some(module) = find(name, &kernel)? else {
            eprintln!(
                "modprobe (simulated): FATAL: Module {name} not found in directory /lib/modules/{kernel}"
            );
            return Ok(exit::FAILED);
        };
        if only_look {
            continue;
        }
        if let Err(why) = load(name, &module)? {
            eprintln!("modprobe (simulated): ERROR: could not insert '{name}': {why}");
            return Ok(exit::FAILED);
        }
    }
    Ok(exit::CONVERGED)
}

/// `rmmod [OPTION…] MODULE…`: a simulated module is no longer shown.
pub(super) fn rmmod(args: &[String]) -> Result<u8> {
    for name in args.iter().filter(|a| !a.starts_with('-')).map(|name| name.replace('-', "_")) {
        let sysfs = format!("/sys/module/{name}");
        if !Path::new(&sysfs).exists() {
            eprintln!("rmmod (simulated): ERROR: Module {name} is not currently loaded");
            return Ok(exit::FAILED);
        }
        let shown =
            if name == "nvidia" { [sysfs.as_str(), DRIVER_DIR].to_vec() } else { vec![sysfs.as_str()] };
        for dir in shown {
            fs::remove_dir_all(dir).map_err(|e| Error::io("remove", dir, e))?;
        }
        let modules = fs::read_to_string("/proc/modules").unwrap_or_default();
        let left: Vec<&str> =
            modules.lines().filter(|l| l.split(' ').next() != Some(name.as_str())).collect();
        put("/proc/modules", &format!("{}\n", left.join("\n")))?;
    }
    Ok(exit::CONVERGED)
}

fn kernel_release() -> Result<String> {
    let path = "/proc/sys/kernel/osrelease";
    Ok(fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?.trim().to_owned())
}

/// `modinfo [-F version] MODULE`: the version of a module that a simulated package has "built".
pub(super) fn modinfo(args: &[String]) -> Result<u8> {
    let name = args.iter().rfind(|a| !a.starts_with('-')).map_or("", String::as_str);
    let kernel = kernel_release()?;
    let Some(module) = find(name, &kernel)? else {
        eprintln!("modinfo (simulated): ERROR: Module {name} not found.");
        return Ok(exit::FAILED);
    };
    let only_version = args.windows(2).any(|w| w == ["-F", "version"]);
    println!("{}{}", if only_version { "" } else { "version:        " }, module.version);
    Ok(exit::CONVERGED)
}

fn find(name: &str, kernel: &str) -> Result<Option<Module>> {
    let file = format!("/lib/modules/{kernel}/{MODULES_DIR}/{}.ko", name.replace('_', "-"));
    let text = match fs::read_to_string(&file) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io("read", file, e)),
    };
    let field = |key: &str| text.lines().find_map(|l| l.strip_prefix(key)).map(str::to_owned);
    let version = field("version=").unwrap_or_default();
    Ok(Some(Module { version, open: field("flavour=").as_deref() == Some("open") }))
}

/// The inner error is what a kernel would answer.
fn load(name: &str, module: &Module) -> Result<Result<(), &'static str>> {
    let machine: Machine = match fs::read(MACHINE_FILE) {
        Ok(json) => serde_json::from_slice(&json).unwrap_or_default(),
        Err(e) => return Err(Error::io("read", MACHINE_FILE, e)),
    };
    if machine.gpus.is_empty() || !machine.gpus.iter().all(|g| supports(g, module)) {
        return Ok(Err("No such device"));
    }
    let sysfs = format!("/sys/module/{}", name.replace('-', "_"));
    put(&format!("{sysfs}/version"), &format!("{}\n", module.version))?;
    put(&format!("{sysfs}/initstate"), "live\n")?;
    put(&format!("{sysfs}/refcnt"), "0\n")?;
    add_to_proc_modules(&name.replace('-', "_"))?;
    // The kernel loads the module that all others need.
    if name != "nvidia" && !Path::new("/sys/module/nvidia/version").exists() {
        return load("nvidia", module);
    }
    if name == "nvidia" {
        show_driver(&machine.gpus, module)?;
        for switch in 0..machine.switches {
            put(&format!("/dev/nvidia-nvswitch{switch}"), "")?;
        }
    }
    Ok(Ok(()))
}

fn supports(gpu: &Gpu, module: &Module) -> bool {
    if module.open { gpu.device >= FIRST_TURING } else { gpu.device < FIRST_BLACKWELL }
}

/// What the driver shows under `/proc/driver/nvidia`.
fn show_driver(gpus: &[Gpu], module: &Module) -> Result<()> {
    let kind = if module.open {
        "NVIDIA UNIX Open Kernel Module for x86_64"
    } else {
        "NVIDIA UNIX x86_64 Kernel Module"
    };
    let version = &module.version;
    let text = format!(
        "NVRM version: {kind}  {version}  Release Build  (simulated by gpu-bootstrap rehearse)\n\
         GCC version:  simulated\n"
    );
    put(&format!("{DRIVER_DIR}/version"), &text)?;
    for (minor, gpu) in gpus.iter().enumerate() {
        let text = format!(
            "Model: \t\t {}\nIRQ:   \t\t {}\nGPU UUID: \t {}\n\
             Bus Type: \t PCIe\nBus Location: \t {}\nDevice Minor: \t {minor}\n",
            gpu.name,
            100 + minor,
            driver::uuid(minor),
            gpu.address
        );
        put(&format!("{DRIVER_DIR}/gpus/{}/information", gpu.address), &text)?;
    }
    Ok(())
}

fn add_to_proc_modules(name: &str) -> Result<()> {
    let path = "/proc/modules";
    let Ok(modules) = fs::read_to_string(path) else { return Ok(()) }; // a kernel without loadable modules
    if modules.lines().any(|l| l.split(' ').next() == Some(name)) {
        return Ok(());
    }
    put(path, &format!("{name} 16384 0 - Live 0x0000000000000000 (OE)\n{modules}"))
}

/// `systemctl [OPTION…] COMMAND [UNIT…]`: the commands that packages and the agent use.
pub(super) fn systemctl(args: &[String]) -> Result<u8> {
    // `-p NAME` is the one option here whose value may be a word of its own.
    let args: Vec<String> = args.join("\n").replace("-p\n", "-p").split('\n').map(str::to_owned).collect();
    let (options, words): (Vec<&String>, Vec<&String>) = args.iter().partition(|a| a.starts_with('-'));
    let has = |name: &str| options.iter().any(|o| *o == name);
    let Some((command, units)) = words.split_first() else { return Ok(exit::CONVERGED) };
    let units: Vec<Unit> = units.iter().map(|u| Unit::named(u)).collect();
    let mut status = exit::CONVERGED;
    for unit in &units {
        let code = match command.as_str() {
            "is-active" => unit.say(ACTIVE, ACTIVE, "inactive", has("--quiet")),
            "is-enabled" => unit.say("enabled", "enabled", "disabled", has("--quiet")),
            "is-failed" => EXIT_INACTIVE,
            "enable" if has("--now") => unit.set("enabled").and_then(|()| unit.start())?,
            "enable" => unit.set("enabled").map(|()| exit::CONVERGED)?,
            "start" | "restart" | "reload-or-restart" | "try-restart" => unit.start()?,
            "stop" => unit.clear(ACTIVE),
            "disable" => unit.clear("enabled"),
            "show" => unit.show(&options),
            "cat" | "status" if unit.file().is_none() => EXIT_NO_UNIT,
            _ => exit::CONVERGED,
        };
        status = status.max(code);
    }
    Ok(status)
}

/// systemctl's own exit codes.
const EXIT_INACTIVE: u8 = 3;
const EXIT_NO_UNIT: u8 = 4;
const EXIT_NOT_FOUND: u8 = 5;

/// A simulated systemd unit.
pub(super) struct Unit {
    name: String,
}

impl Unit {
    /// By its name, `.service` by default.
    pub(super) fn named(name: &str) -> Self {
        let suffix = if name.contains('.') { "" } else { ".service" };
        Self { name: format!("{name}{suffix}") }
    }

    fn file(&self) -> Option<String> {
        UNIT_DIRS.iter().map(|dir| format!("{dir}/{}", self.name)).find(|f| Path::new(f).exists())
    }

    /// A file that is there while the unit is in the state.
    pub(super) fn state_file(&self, state: &str) -> String {
        format!("{UNITS_DIR}/{}.{state}", self.name)
    }

    fn is(&self, state: &str) -> bool {
        Path::new(&self.state_file(state)).exists()
    }

    fn set(&self, state: &str) -> Result<()> {
        put(&self.state_file(state), "simulated\n")
    }

    fn clear(&self, state: &str) -> u8 {
        // It was not in that state.
        let _ = fs::remove_file(self.state_file(state));
        exit::CONVERGED
    }

    fn say(&self, state: &str, yes: &str, no: &str, quiet: bool) -> u8 {
        let is = self.is(state);
        if !quiet {
            println!("{}", if is { yes } else { no });
        }
        match (is, state) {
            (true, _) => exit::CONVERGED,
            (false, "enabled") => exit::FAILED,
            (false, _) => EXIT_INACTIVE,
        }
    }

    fn start(&self) -> Result<u8> {
        if self.file().is_none() {
            eprintln!("systemctl (simulated): Failed to start {0}: Unit {0} not found.", self.name);
            return Ok(EXIT_NOT_FOUND);
        }
        if let Some(why) = self.why_it_would_fail() {
            eprintln!("systemctl (simulated): Job for {} failed: {why}", self.name);
            return Ok(exit::FAILED);
        }
        self.set(ACTIVE)?;
        Ok(exit::CONVERGED)
    }

    /// Fabric manager works with exactly its own version of the driver.
    fn why_it_would_fail(&self) -> Option<String> {
        if self.name != FABRIC_MANAGER {
            return None;
        }
        let own = fs::read_to_string(FABRIC_MANAGER_VERSION).unwrap_or_default();
        match fs::read_to_string("/sys/module/nvidia/version") {
            Err(_) => Some("the NVIDIA driver is not loaded".into()),
            Ok(driver) if driver.trim() != own.trim() => {
                Some(format!("fabric manager {} does not match driver {}", own.trim(), driver.trim()))
            }
            Ok(_) => None,
        }
    }

    /// `show --property=A,B [--value]`, or `-p A`; all known properties without one.
    fn show(&self, options: &[&String]) -> u8 {
        let active = self.is(ACTIVE);
        let known = [
            ("LoadState", if self.file().is_some() { "loaded" } else { "not-found" }),
            ("ActiveState", if active { ACTIVE } else { "inactive" }),
            ("SubState", if active { "running" } else { "dead" }),
            ("UnitFileState", if self.is("enabled") { "enabled" } else { "disabled" }),
            ("Result", "success"),
        ];
        let wished: Vec<&str> = (options.iter())
            .filter_map(|o| o.strip_prefix("--property=").or_else(|| o.strip_prefix("-p")))
            .flat_map(|list| list.split(','))
            .collect();
        let only_value = options.iter().any(|o| *o == "--value");
        for (name, value) in known {
            if wished.is_empty() || wished.contains(&name) {
                println!("{}", if only_value { value.to_owned() } else { format!("{name}={value}") });
            }
        }
        exit::CONVERGED
    }
}

fn put(path: &str, text: &str) -> Result<()> {
    let dir = Path::new(path).parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(dir).map_err(|e| Error::io("make the directory", dir, e))?;
    fs::write(path, text).map_err(|e| Error::io("write", path, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_gpu_takes_the_modules_that_support_it() {
        let gpu = |device| Gpu { address: String::new(), device, name: String::new() };
        let module = |open| Module { version: String::new(), open };
        let (v100, t4, b200) = (gpu(0x1db1), gpu(0x1eb8), gpu(0x2901));
        assert!(supports(&v100, &module(false)) && !supports(&v100, &module(true)));
        assert!(supports(&t4, &module(false)) && supports(&t4, &module(true)));
        assert!(!supports(&b200, &module(false)) && supports(&b200, &module(true)));
    }
}
