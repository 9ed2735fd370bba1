//! `tests/gpu/`, the proof on a real GPU, where there is none: its script runs over a simulated driver with made-up
//! sources (nvcc, nvidia-smi, torch) that say what the simulated driver is; then every field is changed in turn, and
//! the comparer must name it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/archive.rs"]
mod archive;
#[path = "support/simulated_driver.rs"]
mod simulated_driver;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use gpu_bootstrap::device_query::attributes::ATTRIBUTES;
use serde_json::{Map, Value, json};
use simulated_driver::Simulated;

const GPU: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/gpu");
const KERNEL_LOG: &str = "3,9,9,-;NVRM: Xid (PCI:0000:10:00): 31, pid=12, Ch 00000008\n\
                          4,1,2,-;nvidia-nvswitch0: SXid (PCI:0000:c1:00.0): 12028, Non-fatal, Link 2 egress\n";

fn script(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// A machine with two GPUs, and what stands in for the programs of the real one.
struct Machine {
    simulated: Simulated,
    work: tempfile::TempDir,
}

impl Machine {
    fn new() -> Self {
        let simulated = Simulated::with(2, "H100", "")
            .file("/dev/kmsg", KERNEL_LOG)
            .file("/sys/class/dmi/id/product_name", "g3.8xlarge\n")
            .file("/sys/bus/pci/devices/0000:10:00.0/numa_node", "1\n")
            .file("/sys/devices/system/node/node1/cpulist", "0-1\n")
            .file("/sys/bus/pci/devices/0000:11:00.0/numa_node", "-1\n")
            .file(
                "/usr/local/cuda/version.json",
                "{\"cuda\": {\"name\": \"CUDA SDK\", \"version\": \"12.8.1\"}}",
            )
            .file("/var/lib/x", "");
        // As packages have it: the soname is a link to a file that has the whole version in its name.
        let cudnn = simulated.at("/usr/lib/x86_64-linux-gnu/libcudnn.so.9");
        fs::rename(&cudnn, cudnn.with_file_name("libcudnn.so.9.28.0")).unwrap();
        symlink("libcudnn.so.9.28.0", &cudnn).unwrap();
        let machine = Self { simulated, work: tempfile::tempdir().unwrap() };
        fs::create_dir(machine.work.path().join("bin")).unwrap();
        machine.programs();
        machine
    }

    fn bin(&self, name: &str) -> PathBuf {
        self.work.path().join("bin").join(name)
    }

    fn results(&self) -> PathBuf {
        self.work.path().join("results")
    }

    fn programs(&self) {
        let root = self.simulated.at("/");
        let work = self.work.path().display();
        // The agent over the simulated root. Static like the agent itself, so that LD_PRELOAD does not break the
        // stand-in; where files in memory are forbidden, its /run is noexec as check.sh makes the real one.
        let source = format!(
            r#"#include <fcntl.h>
#include <string.h>
#include <sys/mount.h>
#include <unistd.h>
int main(int argc, char **argv) {{
    char *all[64] = {{"gpu-bootstrap", argv[1]}}, mode = 0;
    int n = 2, fd = open("/proc/sys/vm/memfd_noexec", O_RDONLY);
    if (!strcmp(argv[1], "device-query")) {{ all[n++] = "--root"; all[n++] = "{root}"; }}
    for (int i = 2; i < argc; i++) all[n++] = argv[i];
    if (read(fd, &mode, 1) == 1 && mode == '2' && mount("none", "{root}/run", "tmpfs", MS_NOEXEC, 0)) return 99;
    execv("{agent}", all);
    return 98;
}}
"#,
            root = root.display(),
            agent = env!("CARGO_BIN_EXE_gpu-bootstrap"),
        );
        let c = self.work.path().join("agent.c");
        fs::write(&c, source).unwrap();
        archive::run(Command::new("cc").args(["-static", "-o"]).arg(self.bin("agent")).arg(&c));
        script(
            &self.bin("nvidia-smi"),
            &format!(
                "#!/bin/sh\ncase \"$*\" in *-x*) cat {work}/smi.xml ;; nvlink*) cat {work}/nvlink.txt ;; esac\n"
            ),
        );
        script(
            &self.bin("nvcc"),
            &format!(
                "#!/bin/sh\nif [ \"$1\" = --version ]; then echo 'release 12.8'; exit; fi\n\
                 [ -s \"$3\" ] && printf '#!/bin/sh\\ncat {work}/truth.json\\n' >\"$2\" && chmod +x \"$2\"\n"
            ),
        );
        script(&self.bin("sample"), &format!("#!/bin/sh\ncat {work}/sample.txt\n"));
        script(&self.bin("dmesg"), &format!("#!/bin/sh\ncat {}dev/kmsg\n", root.display()));
        script(&self.bin("ldconfig"), "#!/bin/sh\nexit 0\n");
        fs::create_dir(self.work.path().join("python")).unwrap();
        let document = self.document();
        fs::write(self.work.path().join("truth.json"), truth(&document).to_string()).unwrap();
        fs::write(self.work.path().join("smi.xml"), smi(&document)).unwrap();
        fs::write(self.work.path().join("nvlink.txt"), nvlink(&document)).unwrap();
        fs::write(self.work.path().join("python/torch.py"), torch(&document)).unwrap();
        let text = String::from_utf8(self.simulated.query(&["--text"]).output().unwrap().stdout).unwrap();
        // The sample's own first lines and its own runtime.
        let body = text.split_once("Detected").unwrap().1.replace("/ 12.8", "/ 11.8");
        let body = body.replace("Runtime Version = 12.8", "Runtime Version = 11.8");
        fs::write(
            self.work.path().join("sample.txt"),
            format!("./deviceQuery Starting...\n\nDetected{body}"),
        )
        .unwrap();
    }

    fn document(&self) -> Value {
        serde_json::from_slice(&self.simulated.query(&["--json"]).output().unwrap().stdout).unwrap()
    }

    /// The whole script, with `options`.
    fn check(&self, options: &[&str]) -> Output {
        let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", self.bin("").display());
        let mut command = Command::new(format!("{GPU}/check.sh"));
        command.env_clear().env("PATH", path).env("PYTHONPATH", self.work.path().join("python"));
        command.env("GPU_CHECK_ROOT", self.simulated.at("").to_str().unwrap().trim_end_matches('/'));
        command.arg("--results").arg(self.results()).args(options).arg(self.bin("agent"));
        command.output().unwrap()
    }

    /// The comparer alone, over what the script wrote, with our document or another file changed.
    fn compare(&self, file: &str, text: &str) -> (i32, String) {
        let changed = tempfile::tempdir().unwrap();
        for entry in fs::read_dir(self.results()).unwrap() {
            let entry = entry.unwrap();
            symlink(entry.path(), changed.path().join(entry.file_name())).unwrap();
        }
        fs::remove_file(changed.path().join(file)).unwrap();
        fs::write(changed.path().join(file), text).unwrap();
        let mut compare = Command::new("python3");
        // Without the site's packages: it needs none, and starts in half the time.
        let output =
            compare.args(["-I", "-S"]).arg(format!("{GPU}/compare.py")).arg(changed.path()).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
    }
}

/// The names that truth.cu asks for: properties, then attributes by the runtime's and by the driver's names.
fn asked() -> [BTreeSet<String>; 3] {
    let source = fs::read_to_string(format!("{GPU}/truth.cu")).unwrap();
    let names = |text: &str, before: &str| -> BTreeSet<String> {
        text.split(before).skip(1).map(|rest| rest.split('"').next().unwrap().to_owned()).collect()
    };
    let (tables, rest) = source.split_once("static void attribute").unwrap();
    let (runtime, driver) = tables.split_once("of_driver").unwrap();
    [names(rest, "    number(\""), names(runtime, "    {\""), names(driver, "    {\"")]
}

#[test]
fn the_truth_asks_for_every_attribute_that_we_print() {
    let [_, runtime, driver] = asked();
    let ours: BTreeSet<String> = ATTRIBUTES.iter().map(|a| a.name.to_owned()).collect();
    assert_eq!(runtime.union(&driver).cloned().collect::<BTreeSet<_>>(), ours);
}

fn truth(document: &Value) -> Value {
    let [properties, runtime, driver] = asked();
    let value = |device: &Value, name: &str| device["attributes"][name]["value"].clone();
    let attributes = |device: &Value, names: &BTreeSet<String>| {
        let all = ATTRIBUTES.iter().filter(|a| names.contains(a.name));
        Value::Object(
            all.map(|a| (a.name.into(), json!({ "number": a.number, "value": value(device, a.name) })))
                .collect::<Map<_, _>>(),
        )
    };
    let devices: Vec<Value> = document["devices"].as_array().unwrap().iter().map(|d| {
        let mut all: Map<_, _> = properties.iter().map(|p| (p.clone(), value(d, p))).collect();
        all.insert("total_memory".into(), d["total_memory"]["value"].clone());
        json!({
            "name": d["name"]["value"], "uuid": d["uuid"]["value"], "pci": d["pci"]["value"], "properties": all,
            "runtime_attributes": attributes(d, &runtime), "driver_attributes": attributes(d, &driver),
        })
    }).collect();
    json!({
        "driver_version": 12080, "runtime_version": 12080, "devices": devices,
        "can_access": [[null, true], [true, null]],
    })
}

/// As nvidia-smi of a Hopper machine prints it, less what nobody reads.
fn smi(document: &Value) -> String {
    let mut xml = String::from(
        "<?xml version=\"1.0\" ?>\n<nvidia_smi_log><driver_version>580.95.05</driver_version><cuda_version>12.8</cuda_version>",
    );
    for gpu in document["nvml"].as_array().unwrap() {
        let text = |key: &str| gpu[key]["value"].as_str().unwrap();
        let _ = writeln!(
            xml,
            "<gpu id=\"{}\"><product_name>{}</product_name><uuid>{}</uuid>\
             <persistence_mode>Enabled</persistence_mode><compute_mode>Default</compute_mode>\
             <mig_mode><current_mig>Disabled</current_mig><pending_mig>Disabled</pending_mig></mig_mode>\
             <mig_devices>None</mig_devices><gsp_firmware_version>580.95.05</gsp_firmware_version>\
             <gpu_recovery_action>None</gpu_recovery_action>\
             <pci><pci_gpu_link_info><pcie_gen><max_link_gen>5</max_link_gen><current_link_gen>1</current_link_gen>\
             </pcie_gen><link_widths><max_link_width>16x</max_link_width><current_link_width>16x</current_link_width>\
             </link_widths></pci_gpu_link_info><replay_counter>3</replay_counter></pci>\
             <clocks_event_reasons><clocks_event_reason_gpu_idle>Active</clocks_event_reason_gpu_idle>\
             <clocks_event_reason_hw_thermal_slowdown>Not Active</clocks_event_reason_hw_thermal_slowdown>\
             </clocks_event_reasons><fb_memory_usage><total>81559 MiB</total></fb_memory_usage><temperature><gpu_temp>39 C</gpu_temp></temperature>\
             <gpu_power_readings><instant_power_draw>72.50 W</instant_power_draw>\
             <current_power_limit>700.00 W</current_power_limit></gpu_power_readings>\
             <ecc_mode><current_ecc>Enabled</current_ecc><pending_ecc>Enabled</pending_ecc></ecc_mode>\
             <ecc_errors><volatile><sram_correctable>0</sram_correctable><sram_uncorrectable_parity>0</sram_uncorrectable_parity>\
             <dram_correctable>0</dram_correctable><dram_uncorrectable>0</dram_uncorrectable></volatile>\
             <aggregate><sram_uncorrectable_parity>0</sram_uncorrectable_parity><dram_uncorrectable>0</dram_uncorrectable>\
             </aggregate></ecc_errors>\
             <retired_pages><multiple_single_bit_retirement><retired_count>N/A</retired_count></multiple_single_bit_retirement>\
             <double_bit_retirement><retired_count>N/A</retired_count></double_bit_retirement>\
             <pending_retirement>N/A</pending_retirement></retired_pages>\
             <remapped_rows><remapped_row_corr>0</remapped_row_corr><remapped_row_unc>0</remapped_row_unc>\
             <remapped_row_pending>No</remapped_row_pending><remapped_row_failure>No</remapped_row_failure></remapped_rows>\
             <fabric><state>Completed</state><status>Success</status></fabric><processes></processes></gpu>",
            text("pci"),
            text("name"),
            text("uuid"),
        );
    }
    xml + "</nvidia_smi_log>\n"
}

fn nvlink(document: &Value) -> String {
    let mut text = String::new();
    for gpu in document["nvml"].as_array().unwrap() {
        let _ = writeln!(
            text,
            "GPU {}: simulated (UUID: {})",
            gpu["index"],
            gpu["uuid"]["value"].as_str().unwrap()
        );
        for link in 0..18 {
            let _ = writeln!(text, "\t Link {link}: 26.562 GB/s");
        }
    }
    text
}

/// As much of torch as `torch_truth.py` asks; every copy takes 5 ms, as the simulated driver's do.
fn torch(document: &Value) -> String {
    let device = &document["devices"][0];
    let value = |name: &str| device["attributes"][name]["value"].clone();
    let uuids: Vec<&Value> =
        document["devices"].as_array().unwrap().iter().map(|d| &d["uuid"]["value"]).collect();
    format!(
        "from types import SimpleNamespace\n\
         uint8 = 'uint8'\n\
         class Tensor:\n    def copy_(self, other, non_blocking=False):\n        return self\n\
         def empty(size, dtype=None, pin_memory=False, device=None):\n    return Tensor()\n\
         def empty_like(other):\n    return Tensor()\n\
         class Event:\n    def __init__(self, enable_timing=False):\n        pass\n\
         \x20   def record(self):\n        pass\n    def elapsed_time(self, other):\n        return 5.0\n\
         class device:\n    def __init__(self, index):\n        pass\n    def __enter__(self):\n        pass\n\
         \x20   def __exit__(self, *rest):\n        pass\n\
         uuids = {uuids}\n\
         def properties(index):\n    return SimpleNamespace(name={name}, uuid=uuids[index][4:], total_memory={memory}, \
         major={major}, minor={minor}, multi_processor_count={count}, is_integrated={integrated}, warp_size={warp}, \
         L2_cache_size={cache})\n\
         cuda = SimpleNamespace(device_count=lambda: {devices}, get_device_properties=properties, Event=Event, \
         device=device, synchronize=lambda: None)\n",
        uuids = json!(uuids),
        name = device["name"]["value"],
        memory = device["total_memory"]["value"],
        major = value("compute_capability_major"),
        minor = value("compute_capability_minor"),
        count = value("multiprocessor_count"),
        integrated = value("integrated"),
        warp = value("warp_size"),
        cache = value("l2_cache_size"),
        devices = uuids.len(),
    )
}

/// The three numbers of the last line.
fn counts(output: &str) -> [u32; 3] {
    let last = output.lines().last().unwrap();
    let numbers: Vec<u32> = last.split(['=', ' ']).filter_map(|w| w.parse().ok()).collect();
    assert!(last.starts_with("compared=") && numbers.len() == 3, "{last}");
    [numbers[0], numbers[1], numbers[2]]
}

/// Every plain value: its place as the comparer writes it, and its JSON pointer.
fn leaves(value: &Value, place: String, pointer: String, all: &mut Vec<(String, String)>) {
    let is_field =
        value.as_object().is_some_and(|o| o.len() == 3 && o.contains_key("source") && o.contains_key("unit"));
    match value {
        Value::Object(_) if is_field => leaves(&value["value"], place, pointer + "/value", all),
        Value::Object(object) => {
            for (key, inner) in object {
                let at = if place.is_empty() { key.clone() } else { format!("{place}.{key}") };
                leaves(inner, at, format!("{pointer}/{key}"), all);
            }
        }
        Value::Array(array) => {
            for (i, inner) in array.iter().enumerate() {
                leaves(inner, format!("{place}[{i}]"), format!("{pointer}/{i}"), all);
            }
        }
        _ => all.push((place, pointer)),
    }
}

/// Another value, farther away than any tolerance.
fn changed(value: &Value) -> Value {
    match value {
        Value::Null => json!(1),
        Value::Bool(b) => json!(!b),
        Value::String(s) => json!(format!("{s}x")),
        number => {
            number.as_i64().map_or_else(|| json!(number.as_f64().unwrap() * 1.5), |n| json!(n * 2 + 100_072))
        }
    }
}

/// Fields that the comparer leaves out, each with a reason of its own.
fn is_exempt(place: &str) -> bool {
    ["format", "expected_gpus", "compute_mode"].contains(&place)
        || (place.starts_with("compute[") && (place.ends_with("_ms") || place.ends_with(".elements")))
        || (place.starts_with("libraries[") && place.ends_with(".planned_version"))
}

#[test]
fn the_whole_check_passes_where_all_is_equal_and_names_each_field_that_is_not() {
    let machine = Machine::new();
    let sample = machine.bin("sample");
    let output = machine.check(&["--sample", sample.to_str().unwrap()]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    let [compared, equal, missing] = counts(&said);
    assert!(compared > 400 && equal == compared && missing == 0, "{}", said.lines().last().unwrap());
    for name in ["smi.xml", "truth.json", "torch.json", "timing.txt", "comparison.txt", "bandwidth.json"] {
        assert!(fs::metadata(machine.results().join(name)).unwrap().len() > 0, "{name}");
    }
    assert!(said.contains("bandwidth between GPUs in GB/s"), "{said}");

    let ours = fs::read_to_string(machine.results().join("bandwidth.json")).unwrap();
    let document: Value = serde_json::from_str(&ours).unwrap();
    let mut all = Vec::new();
    leaves(&document, String::new(), String::new(), &mut all);
    // The second GPU's fields are the first one's; our own account of processes and checks has one reason for all.
    let skipped = ["devices[1]", "nvml[1]", "processes", "checks"];
    all.retain(|(place, _)| !skipped.iter().any(|s| place.starts_with(s)));
    let threads = std::thread::available_parallelism().unwrap().get();
    let named: usize = std::thread::scope(|scope| {
        let change = |part: &[(String, String)]| {
            part.iter().filter(|(place, pointer)| is_named(&machine, &document, place, pointer)).count()
        };
        let parts = all.chunks(all.len().div_ceil(threads));
        let running: Vec<_> = parts.map(|part| scope.spawn(move || change(part))).collect();
        running.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    let exempt = all.len() - named;
    assert!(named > 120, "{named}");
    println!("{compared} comparisons; {named} fields changed and named, {exempt} without another source");

    no_source_is_no_pass(&machine, &document);
    an_old_document_without_a_field_is_no_pass(&machine, &document);
    another_sample_is_no_pass(&machine);
}

/// Changes one field of ours: true where the comparer names it, false where it leaves it out for a reason. Anything
/// else is a panic.
fn is_named(machine: &Machine, document: &Value, place: &str, pointer: &str) -> bool {
    let mut other = document.clone();
    let value = other.pointer_mut(pointer).unwrap();
    *value = changed(value);
    let (code, table) = machine.compare("bandwidth.json", &other.to_string());
    if is_exempt(place) {
        assert_eq!(code, 0, "{place}: {table}");
        return false;
    }
    assert_eq!(code, 1, "{place} was changed and nothing noticed");
    // A UUID or an address is the key by which the sources are found; the others may be off for that, too.
    let differs = table.lines().filter(|l| l.starts_with("NO"));
    let mut fields = differs.map(|l| l.split_ascii_whitespace().nth(1).unwrap());
    assert!(fields.any(|f| f == place), "{place} was changed and not named: {table}");
    true
}

fn no_source_is_no_pass(machine: &Machine, document: &Value) {
    let mut more = document.clone();
    more["devices"][0]["attributes"]["invented"] = json!({ "value": 7, "unit": null, "source": "nowhere" });
    let (code, table) = machine.compare("bandwidth.json", &more.to_string());
    assert_eq!((code, counts(&table)[2]), (1, 1), "{table}");
    assert!(table.contains("NONE  devices[0].attributes.invented"), "{table}");

    let mut less = truth(document);
    less["devices"][0]["driver_attributes"].as_object_mut().unwrap().remove("dma_buf");
    let (code, table) = machine.compare("truth.json", &less.to_string());
    assert_eq!((code, counts(&table)[2]), (1, 1), "{table}");
    assert!(table.contains("NONE  devices[0].attributes.dma_buf"), "{table}");

    // A list without links confirms none.
    let (code, table) = machine.compare("nvlink.txt", "");
    assert_eq!(code, 1);
    assert!(table.contains("NO    nvml[0].nvlink.active"), "{table}");

    let mut misnumbered = truth(document);
    misnumbered["devices"][0]["runtime_attributes"]["warp_size"]["number"] = json!(11);
    let (code, table) = machine.compare("truth.json", &misnumbered.to_string());
    assert_eq!(code, 1);
    assert!(table.contains("NO    devices[0].attributes.warp_size"), "{table}");
}

fn an_old_document_without_a_field_is_no_pass(machine: &Machine, document: &Value) {
    let mut less = document.clone();
    less["devices"][0]["attributes"].as_object_mut().unwrap().remove("warp_size");
    let (code, table) = machine.compare("bandwidth.json", &less.to_string());
    assert_eq!(code, 1);
    assert!(table.contains("no such field"), "{table}");
}

fn another_sample_is_no_pass(machine: &Machine) {
    let sample = fs::read_to_string(machine.results().join("sample.txt")).unwrap();
    let other = sample.replace("5120-bit", "5121-bit");
    let (code, table) = machine.compare("sample.txt", &other);
    assert_eq!(code, 1);
    assert!(table.contains("Memory Bus Width"), "{table}");
    let other = fs::read_to_string(machine.results().join("environment.json")).unwrap();
    let (code, _) = machine.compare("environment.json", &other.replace("\"PASS\"", "\"FAIL\""));
    assert_eq!(code, 1);
    let other = fs::read_to_string(machine.results().join("noexec.json")).unwrap();
    let memory = other.replace("\"launched_from\": \"/var/lib", "\"launched_from\": \"/run");
    assert_eq!(machine.compare("noexec.json", &memory).0, 1);
}

#[test]
fn what_is_missing_on_the_machine_fails_unless_it_is_left_out_by_name() {
    let machine = Machine::new();
    fs::remove_dir_all(machine.work.path().join("python")).unwrap();
    let output = machine.check(&[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("has no torch"), "{output:?}");
    assert_eq!(counts(&String::from_utf8_lossy(&output.stdout)), [0, 0, 1]);
    let output = machine.check(&["--without-torch"]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stdout));
    // A log that only we could read, or that nobody else can confirm, is no pass.
    script(&machine.bin("dmesg"), "#!/bin/sh\nexit 1\n");
    let output = machine.check(&["--without-torch"]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("NONE  xids[0].xid"), "{said}");
    fs::remove_file(machine.bin("nvidia-smi")).unwrap();
    let output = machine.check(&["--without-torch"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("nvidia-smi is not there"), "{output:?}");
}

#[test]
fn the_folder_is_one_tar_that_needs_nothing_else() {
    let work = tempfile::tempdir().unwrap();
    let tar = work.path().join("check.tar.gz");
    archive::run(Command::new(format!("{GPU}/pack")).arg(env!("CARGO_BIN_EXE_gpu-bootstrap")).arg(&tar));
    let listed = archive::run(Command::new("tar").arg("tzf").arg(&tar));
    let names: BTreeSet<&str> =
        listed.lines().filter_map(|l| l.strip_prefix("gpu-check/")).filter(|l| !l.is_empty()).collect();
    let expected = ["README.md", "check.sh", "compare.py", "gpu-bootstrap", "torch_truth.py", "truth.cu"];
    assert_eq!(names, BTreeSet::from(expected));
    // Every file of the folder but the packer itself.
    let folder: BTreeSet<String> =
        fs::read_dir(GPU).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    let packed: BTreeSet<String> =
        expected.iter().filter(|n| **n != "gpu-bootstrap").map(|n| (*n).to_owned()).collect();
    assert_eq!(folder, packed.into_iter().chain(["pack".to_owned()]).collect());
}

const HEADERS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/headers.c");

/// Every function that the probe calls by name is among those whose types are held against NVIDIA's headers.
#[test]
fn every_function_of_the_driver_that_the_probe_calls_is_compared() {
    let compared = fs::read_to_string(HEADERS).unwrap();
    let mut calls = BTreeSet::new();
    for file in fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/src/probe")).unwrap() {
        let source = fs::read_to_string(file.unwrap().path()).unwrap();
        let names = source.split('"').filter(|w| w.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'));
        // cuDevice…, nvmlDevice…; libraries of the toolkit have other headers.
        let is_driver = |w: &&str| {
            let rest = w.strip_prefix("cu").or_else(|| w.strip_prefix("nvml"));
            rest.is_some_and(|r| r.starts_with(|c: char| c.is_ascii_uppercase()))
        };
        calls.extend(names.filter(is_driver).map(str::to_owned));
    }
    assert!(calls.len() > 60, "{calls:?}");
    for call in &calls {
        let listed = [format!("({call},"), format!(", {call},")];
        assert!(listed.iter().any(|l| compared.contains(l)), "{call} is not in tests/support/headers.c");
    }
    println!("{} functions", calls.len());
}

/// The types against `include`'s headers; `define` is `WITH_CUDA` or `WITH_NVML`.
fn same_types(include: &Path, define: &str) {
    let mut cc = Command::new("cc");
    cc.args(["-std=gnu11", "-fsyntax-only", "-Wno-deprecated-declarations", "-Werror"]);
    archive::run(cc.arg(format!("-D{define}")).arg("-I").arg(include).arg(HEADERS));
}

#[test]
fn the_probe_calls_nvml_as_its_header_says() {
    let (_work, root) = archive::unpacked("trixie", "non-free", &["libnvidia-ml-dev"]);
    same_types(&root.join("usr/include"), "WITH_NVML");
}

/// NVIDIA's own compilers as Debian ships them: CUDA 11.8 and 12.4.
#[test]
#[ignore = "downloads 1.9 GB; part of .ci/long"]
fn real_compilers_take_the_truth_and_the_kernels() {
    for (release, version) in [("bookworm", "V11.8."), ("trixie", "V12.4.")] {
        let (work, root) =
            archive::unpacked(release, "non-free", &["nvidia-cuda-toolkit", "nvidia-cuda-dev"]);
        let [bin, private] = ["usr/bin", "usr/lib/nvidia-cuda-toolkit/bin"].map(|at| root.join(at));
        // Debian's choice of a host compiler; this machine's own serves.
        for wrapper in ["g++", "gcc", "nvcc.profile"] {
            fs::remove_file(private.join(wrapper)).unwrap();
        }
        let profile = format!(
            "NVVMIR_LIBRARY_DIR = {root}/usr/lib/nvidia-cuda-toolkit/libdevice\nPATH += $(_HERE_):{bin}:\n\
             INCLUDES += -I{root}/usr/include\nLIBRARIES =+ $(_SPACE_) -L{root}/usr/lib/x86_64-linux-gnu\n",
            root = root.display(),
            bin = bin.display(),
        );
        fs::write(private.join("nvcc.profile"), profile).unwrap();
        let nvcc = || Command::new(private.join("nvcc"));
        let said = archive::run(nvcc().arg("--version"));
        assert!(said.contains(version), "{said}");
        let truth = work.path().join("truth");
        archive::run(
            nvcc()
                .args(["-allow-unsupported-compiler", "-Xcompiler", "-Wall,-Wextra,-Werror", "-o"])
                .arg(&truth)
                .arg(format!("{GPU}/truth.cu"))
                .arg("-ldl"),
        );
        let output = Command::new(&truth).output().unwrap();
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(complaint.starts_with("truth: cudaGetDeviceCount"), "without a GPU: {complaint}");
        same_types(&root.join("usr/include"), "WITH_CUDA");
        let kernels = concat!(env!("CARGO_MANIFEST_DIR"), "/src/probe/kernels.ptx");
        let help = archive::run(Command::new(bin.join("ptxas")).arg("--help"));
        let targets: BTreeSet<&str> = help.split('\'').filter(|w| w.starts_with("sm_")).collect();
        assert!(targets.len() > 10, "{targets:?}");
        for target in &targets {
            let mut ptxas = Command::new(bin.join("ptxas"));
            let output = ptxas.args(["-arch", target, "-o", "/dev/null", kernels]).output().unwrap();
            let clean = output.status.success() && output.stdout.is_empty() && output.stderr.is_empty();
            assert!(clean, "{target}: {output:?}");
        }
        println!("{version}: truth.cu compiles, kernels.ptx assembles for {targets:?}");
    }
}

#[test]
fn shellcheck_has_nothing_to_say() {
    for name in ["check.sh", "pack"] {
        archive::run(Command::new("shellcheck").args(["--shell=sh"]).arg(format!("{GPU}/{name}")));
    }
}
