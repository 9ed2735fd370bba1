//! What the agent finds out about a machine: every published capture with its right answer, whole instance
//! types in a scratch root, sources that disagree or are missing, and parsers that nothing brings down.

#![expect(clippy::unwrap_used, reason = "a test may panic, also in its helpers")]

#[path = "support/pci.rs"]
mod pci;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use gpu_bootstrap::facts::gpu::compare::{Role, role};
use gpu_bootstrap::facts::gpu::pci::{Function, ProcLine};
use gpu_bootstrap::facts::gpu::{AcceleratorKind, GpuFacts, Witnesses, driver, lspci, pci as bus};
use gpu_bootstrap::facts::os;
use pci::{Built, Machine, run};

const OPEN_580: &str =
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.142  Release Build  (builder)\n";

// ---- captures --------------------------------------------------------------------------------------------

fn captures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pci")
}

fn capture(name: &str) -> String {
    fs::read_to_string(captures().join(name)).unwrap()
}

/// The functions with a role, one line each: address, role, ids and class where they are told.
fn roles(name: &str) -> Vec<String> {
    lspci::parse(&capture(name)).iter().filter_map(|f| Some(line(f, role(f)?))).collect()
}

fn line(function: &Function, role: Role) -> String {
    let four = |id: Option<u16>| id.map_or("-".to_owned(), |id| format!("{id:04x}"));
    let role = match role {
        Role::Gpu => "gpu",
        Role::NvSwitch => "nvswitch",
        Role::Other(_) => "other",
    };
    let subsystem = function.subsystem.map(|s| format!(" sub {s:04x}")).unwrap_or_default();
    let (vendor, device) = (four(function.vendor), four(function.device));
    format!("{} {role} {vendor}:{device} {}{subsystem}", function.address, four(function.class))
}

fn each(addresses: &[&str], rest: &str) -> Vec<String> {
    addresses.iter().map(|a| format!("0000:{a} {rest}")).collect()
}

/// A capture without its answer here would be a fixture that proves nothing.
#[test]
fn every_capture_is_asserted_and_has_a_source() {
    let here = include_str!("detect.rs");
    let sources = capture("SOURCES.tsv");
    let listed: BTreeSet<_> = sources.lines().skip(1).filter_map(|l| l.split('\t').next()).collect();
    let mut files = BTreeSet::new();
    for entry in fs::read_dir(captures()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name != "SOURCES.tsv" {
            assert!(here.contains(&format!("\"{name}\"")), "{name} is not asserted");
            files.insert(name);
        }
    }
    let without_source: Vec<_> = files.iter().filter(|f| !listed.contains(f.as_str())).collect();
    assert!(without_source.is_empty(), "{without_source:?}");
    let without_file: Vec<_> = listed.iter().filter(|l| !files.contains(**l)).collect();
    assert!(without_file.is_empty(), "{without_file:?}");
}

#[test]
fn captures_with_ids_are_read_by_their_ids() {
    assert_eq!(
        roles("azure_a100.lspci_nn.txt"),
        [
            "0001:00:00.0 gpu 10de:20b2 0302",
            "0002:00:00.0 gpu 10de:20b2 0302",
            "0003:00:00.0 gpu 10de:20b2 0302",
            "0004:00:00.0 gpu 10de:20b2 0302",
            "0005:00:00.0 nvswitch 10de:1af1 0680",
            "0006:00:00.0 nvswitch 10de:1af1 0680",
            "0007:00:00.0 nvswitch 10de:1af1 0680",
            "0008:00:00.0 nvswitch 10de:1af1 0680",
            "0009:00:00.0 nvswitch 10de:1af1 0680",
            "000a:00:00.0 nvswitch 10de:1af1 0680",
            "000b:00:00.0 gpu 10de:20b2 0302",
            "000c:00:00.0 gpu 10de:20b2 0302",
            "000d:00:00.0 gpu 10de:20b2 0302",
            "000e:00:00.0 gpu 10de:20b2 0302",
        ]
    );
    assert_eq!(lspci::parse(&capture("azure_a100.lspci_nn.txt")).len(), 31);
    assert_eq!(roles("ec2_g2_2xlarge.lspci_nn.txt"), ["0000:00:03.0 gpu 10de:118a 0300"]);
    assert_eq!(roles("gce_v100.lspci_n.txt"), ["0000:00:04.0 gpu 10de:1db1 0302"]);
    assert_eq!(roles("nonec2_a10_qemu.lspci_nn.txt"), ["0000:06:00.0 gpu 10de:2236 0302"]);
    assert_eq!(
        roles("nonec2.lspci_mmnnn.txt"),
        ["0000:06:00.0 gpu 10de:2b85 0300 sub 1761", "0000:41:00.0 gpu 10de:20f1 0302 sub 145f"]
    );
    let mut hgx = each(&["07:00.0", "08:00.0", "09:00.0", "0a:00.0"], "nvswitch 10de:22a3 0680");
    let gpus = ["1b:00.0", "43:00.0", "52:00.0", "61:00.0", "9d:00.0", "c3:00.0"];
    hgx.extend(each(&gpus, "gpu 10de:2330 0302"));
    assert_eq!(roles("hgx_h100.lspci_Dnn.txt"), hgx);
}

#[test]
fn every_function_of_a_capture_is_read_with_its_ids() {
    let functions = lspci::parse(&capture("nonec2_a10_qemu.lspci_nn.txt"));
    assert_eq!(functions.len(), 20);
    assert!(functions.iter().all(|f| f.vendor.is_some() && f.device.is_some() && f.class.is_some()));
    let sata = functions.iter().find(|f| f.address.to_string() == "0000:00:1f.2").unwrap();
    assert_eq!((sata.class, sata.vendor, sata.device), (Some(0x0106), Some(0x8086), Some(0x2922)));
}

/// Plain `lspci` prints names: what is a GPU and what an NVSwitch can be told, the device id cannot.
#[test]
fn captures_with_names_tell_vendor_and_class() {
    assert_eq!(roles("ec2_g4dn.lspci.txt"), ["0000:00:1e.0 gpu 10de:- 0302"]);
    assert_eq!(roles("ec2_g5_2xlarge.lspci.txt"), ["0000:00:1e.0 gpu 10de:- 0302"]);
    assert_eq!(roles("ec2_g6.lspci.txt"), ["0000:31:00.0 gpu 10de:- 0302"]);
    assert_eq!(
        roles("ec2_g6_12xlarge.lspci.txt"),
        each(&["38:00.0", "3a:00.0", "3c:00.0", "3e:00.0"], "gpu 10de:- 0302")
    );
    let eight = ["9e:00.0", "a0:00.0", "a2:00.0", "a4:00.0", "c6:00.0", "c8:00.0", "ca:00.0", "cc:00.0"];
    assert_eq!(roles("ec2_g6e_48xlarge.lspci_grep_nvidia_efa.txt"), each(&eight, "gpu 10de:- 0302"));
    assert_eq!(roles("ec2_p2_xlarge.lspci.txt"), ["0000:00:1e.0 gpu 10de:- 0302"]);
    // M60s have the class of a display, as the Cirrus VGA beside them has.
    assert_eq!(roles("ec2_g3_8xlarge.lspci.txt"), each(&["00:1d.0", "00:1e.0"], "gpu 10de:- 0300"));
    assert_eq!(roles("ec2_p3_2xlarge.lspci_v.txt"), ["0000:00:1e.0 gpu 10de:- 0302 sub 1212"]);
    let gpus = ["53:00.0", "64:00.0", "75:00.0", "86:00.0", "97:00.0", "a8:00.0", "b9:00.0", "ca:00.0"];
    let mut p5 = each(&gpus, "gpu 10de:- 0302");
    p5.extend(each(&["cf:00.0", "d0:00.0", "d1:00.0", "d2:00.0"], "nvswitch 10de:- 0680"));
    assert_eq!(roles("ec2_p5_48xlarge.lspci_grep_h100.txt"), p5);
}

#[test]
fn plain_lspci_prints_the_ids_that_it_has_no_name_for() {
    let g3 = lspci::parse(&capture("ec2_g3_8xlarge.lspci.txt"));
    let ena = g3.iter().find(|f| f.address.to_string() == "0000:00:03.0").unwrap();
    assert_eq!((ena.vendor, ena.device), (Some(0x1d0f), Some(0xec20)));
    let xen = g3.iter().find(|f| f.address.to_string() == "0000:00:1f.0").unwrap();
    assert_eq!(xen.class, Some(0xff80));
    let g5 = lspci::parse(&capture("ec2_g5_2xlarge.lspci.txt"));
    let vga = g5.iter().find(|f| f.address.to_string() == "0000:00:03.0").unwrap();
    assert_eq!((vga.vendor, vga.device, vga.class), (Some(0x1d0f), Some(0x1111), Some(0x0300)));
}

#[test]
fn the_kernels_list_of_a_g4dn() {
    let lines = bus::proc_bus_devices(&capture("ec2_g4dn.proc_bus_pci_devices.txt"));
    let places: Vec<_> = lines.iter().map(|l| (l.slot, l.vendor, l.device)).collect();
    assert_eq!(
        places,
        [
            (0x03, 0x1d0f, 0x1111),
            (0x04, 0x1d0f, 0x8061),
            (0x05, 0x1d0f, 0xec20),
            (0x1e, 0x10de, 0x1eb8),
            (0x1f, 0x1d0f, 0xcd01),
            (0x06, 0x1d0f, 0xec20),
        ]
    );
    assert_eq!(lines[3], ProcLine { bus: 0, slot: 0x1e, function: 0, vendor: 0x10de, device: 0x1eb8 });
}

#[test]
fn driver_versions_of_every_shape() {
    let driver = |text: &str| driver::version(text).map(|d| (d.version, d.open));
    let of = |name: &str| driver(&capture(name)).unwrap();
    assert_eq!(of("proc_driver_nvidia_version.ec2_g4dn_470.txt"), ("470.103.01".into(), false));
    assert_eq!(of("proc_driver_nvidia_version.open_570.txt"), ("570.195.03".into(), true));
    assert_eq!(of("proc_driver_nvidia_version.open_580_two_part.txt"), ("580.142".into(), true));
    assert_eq!(of("proc_driver_nvidia_version.open_595_line1.txt"), ("595.91.07".into(), true));
    let variants = capture("proc_driver_nvidia_version.proprietary_variants.txt");
    let variants: Vec<_> = variants.lines().map(|l| driver(l).unwrap()).collect();
    let proprietary = |v: &str| (v.to_owned(), false);
    assert_eq!(variants, [proprietary("520.61.05"), proprietary("535.216.03"), proprietary("34.1.1")]);
}

#[test]
fn what_the_driver_says_of_an_a10g() {
    let gpu = driver::information("0000:00:1e.0", &capture("proc_driver_nvidia_gpus_information.a10g.txt"));
    assert_eq!(gpu.address, "0000:00:1e.0");
    assert_eq!(gpu.model.as_deref(), Some("NVIDIA A10G"));
    assert_eq!(gpu.uuid.as_deref(), Some("GPU-82523fd8-3897-f599-d088-ccd04ae45ec1"));
    assert_eq!((gpu.minor, gpu.excluded), (Some(3), false));
}

#[test]
fn device_numbers_of_the_driver() {
    let text = capture("proc_devices.nvidia.txt");
    assert_eq!(driver::character_major(&text, "nvidia-uvm"), Some(234));
    assert_eq!(driver::character_major(&text, "nvidia-frontend"), Some(195));
    assert_eq!(driver::character_major(&text, "nvidia"), None);
}

/// The device query and the fabric's state come from the same instance type as the list of its bus: they are
/// read here only as far as they must agree with it.
#[test]
fn the_captures_of_a_p5_fit_together() {
    let gpus = roles("ec2_p5_48xlarge.lspci_grep_h100.txt");
    let query = capture("ec2_p5_48xlarge.devicequery_device0.txt");
    let field =
        |name: &str| query.lines().find_map(|l| l.trim().strip_prefix(name)).unwrap().trim().to_owned();
    assert_eq!(field("Device 0:"), "\"NVIDIA H100 80GB HBM3\"");
    assert_eq!(field("CUDA Capability Major/Minor version number:"), "9.0");
    let place: Vec<u8> = field("Device PCI Domain ID / Bus ID / location ID:")
        .split('/')
        .map(|n| n.trim().parse().unwrap())
        .collect();
    let address = format!("{:04x}:{:02x}:{:02x}.0", place[0], place[1], place[2]);
    assert!(gpus[0].starts_with(&address), "{address} is not {}", gpus[0]);

    // Error 802 comes from switches whose fabric manager has not finished.
    assert_eq!(gpus.iter().filter(|g| g.contains("nvswitch")).count(), 4);
    let refused = capture("ec2_p5_48xlarge.devicequery_802.txt");
    assert!(refused.contains("returned 802\n-> system not yet initialized\nResult = FAIL"));
    let state = |name: &str| {
        let text = capture(name);
        let (_, state) = text.lines().find_map(|l| l.split_once(':')).unwrap();
        state.trim().to_owned()
    };
    assert_eq!(state("ec2_p5_48xlarge.fabric_state_before_fm.txt"), "In Progress");
    assert_eq!(state("ec2_p5_48xlarge.fabric_state_after_fm.txt"), "Completed");
}

// ---- whole machines --------------------------------------------------------------------------------------

/// GPUs, switches, others.
fn counts(facts: &GpuFacts) -> [usize; 3] {
    [facts.gpus.len(), facts.nvswitches.len(), facts.other_accelerators.len()]
}

const NOTHING: [&str; 0] = [];

#[test]
fn instance_types_have_what_they_have() {
    for (name, expected) in [
        ("c7i.large", [0, 0, 0]),
        ("g2.2xlarge", [1, 0, 0]),
        ("g4dn.xlarge", [1, 0, 0]),
        ("g6f.large", [1, 0, 0]),
        ("p5.48xlarge", [8, 4, 0]),
        ("g4ad.xlarge", [0, 0, 1]),
        ("inf2.xlarge", [0, 0, 1]),
        ("trn1.2xlarge", [0, 0, 1]),
        ("dl1.24xlarge", [0, 0, 1]),
    ] {
        let facts = Machine::of_type(name).build().detect(Witnesses::WhenInDoubt);
        assert_eq!(counts(&facts), expected, "{name}");
        assert_eq!(facts.disagreements, NOTHING, "{name}");
        assert_eq!(facts.sources, ["/sys/bus/pci/devices", "/proc/bus/pci/devices"], "{name}");
        assert!(facts.driver.is_none(), "{name}");
    }
}

#[test]
fn a_fact_has_ids_and_every_source_that_confirms_it() {
    let facts = Machine::of_type("g6f.large").build().detect(Witnesses::WhenInDoubt);
    let gpu = &facts.gpus[0];
    assert_eq!(gpu.source, "/sys/bus/pci/devices, /proc/bus/pci/devices");
    assert_eq!(gpu.value.address, "0000:31:00.0");
    assert_eq!((gpu.value.vendor, gpu.value.device, gpu.value.class), (0x10de, 0x27b8, 0x0302));
    assert_eq!(gpu.value.subsystem, Some(0x1733));
}

#[test]
fn other_accelerators_are_told_by_kind() {
    for (name, kind) in [
        ("g4ad.xlarge", AcceleratorKind::AmdGpu),
        ("inf2.xlarge", AcceleratorKind::Inferentia),
        ("trn1.2xlarge", AcceleratorKind::Trainium),
        ("dl1.24xlarge", AcceleratorKind::Gaudi),
    ] {
        let facts = Machine::of_type(name).build().detect(Witnesses::WhenInDoubt);
        assert_eq!(facts.other_accelerators[0].value.kind, kind, "{name}");
    }
}

#[test]
fn domains_may_be_long_and_buses_may_repeat() {
    let machine = Machine::nitro()
        .card("0001:00:00.0", pci::H100)
        .card("0002:00:00.0", pci::H100)
        .card("10000:00:00.0", pci::H100)
        .card("0005:00:00.0", pci::H100_NVSWITCH);
    let facts = machine.build().detect(Witnesses::WhenInDoubt);
    let addresses: Vec<_> = facts.gpus.iter().map(|g| g.value.address.as_str()).collect();
    assert_eq!(addresses, ["0001:00:00.0", "0002:00:00.0", "10000:00:00.0"]);
    assert_eq!(facts.nvswitches.len(), 1);
    assert_eq!(facts.disagreements, NOTHING);
}

#[test]
fn without_sysfs_configuration_space_tells_domain_and_class() {
    let machine = Machine::of_type("p5.48xlarge").card("10000:e1:00.0", pci::FRACTIONAL_L4).without_sysfs();
    let facts = machine.build().detect(Witnesses::WhenInDoubt);
    assert_eq!(counts(&facts), [9, 4, 0]);
    let long = &facts.gpus[8];
    assert_eq!((long.value.address.as_str(), long.value.subsystem), ("10000:e1:00.0", Some(0x1733)));
    assert_eq!(long.source, "/proc/bus/pci/devices");
    assert_eq!(facts.disagreements, NOTHING);
}

#[test]
fn without_sysfs_and_configuration_space_a_gpu_is_named_but_not_counted() {
    let machine = Machine::of_type("g4dn.xlarge").without_sysfs().without_config_space();
    let facts = machine.build().detect(Witnesses::WhenInDoubt);
    assert_eq!(counts(&facts), [0, 0, 0]);
    assert_eq!(
        facts.disagreements,
        ["no source tells the class of 0000:00:1e.0 (10de:1eb8), so it is not counted"]
    );
}

#[test]
fn the_captured_list_of_a_g4dn_gives_its_gpu() {
    let built = Machine::of_type("g4dn.xlarge").without_sysfs().build();
    built.write("/proc/bus/pci/devices", capture("ec2_g4dn.proc_bus_pci_devices.txt"));
    let facts = built.detect(Witnesses::WhenInDoubt);
    assert_eq!(counts(&facts), [1, 0, 0]);
    assert_eq!(facts.gpus[0].value.address, "0000:00:1e.0");
}

#[test]
fn without_proc_sysfs_is_enough() {
    let facts = Machine::of_type("g4dn.xlarge").without_proc_bus().build().detect(Witnesses::WhenInDoubt);
    assert_eq!(counts(&facts), [1, 0, 0]);
    assert_eq!(facts.gpus[0].source, "/sys/bus/pci/devices");
    assert_eq!(facts.disagreements, NOTHING);
}

#[test]
fn without_any_source_it_is_said_that_nothing_can_be_seen() {
    let machine = Machine::of_type("g4dn.xlarge").without_sysfs().without_proc_bus();
    let facts = machine.build().detect(Witnesses::WhenInDoubt);
    assert_eq!(counts(&facts), [0, 0, 0]);
    assert_eq!(
        facts.disagreements,
        ["no PCI bus can be seen: neither /sys/bus/pci/devices nor /proc/bus/pci/devices is there"]
    );
}

#[test]
fn a_gpu_that_one_source_hides_is_counted_and_the_hiding_is_said() {
    let machine =
        Machine::of_type("p5.48xlarge").hidden_from_proc("0000:ca:00.0").hidden_from_sysfs("0000:53:00.0");
    let facts = machine.build().detect(Witnesses::WhenInDoubt);
    assert_eq!(counts(&facts), [8, 4, 0]);
    assert_eq!(
        facts.disagreements,
        [
            "0000:53:00.0 (10de:2330) is listed by /proc/bus/pci/devices, but not by /sys/bus/pci/devices",
            "0000:ca:00.0 (10de:2330) is listed by /sys/bus/pci/devices, but not by /proc/bus/pci/devices",
        ]
    );
}

#[test]
fn ids_that_differ_are_said_and_sysfs_is_believed() {
    let built = Machine::of_type("g4dn.xlarge").build();
    built.write("/proc/bus/pci/devices", "00f0\t10de2237\ta\n");
    let facts = built.detect(Witnesses::WhenInDoubt);
    assert_eq!(facts.gpus[0].value.device, 0x1eb8);
    assert_eq!(
        facts.disagreements,
        [
            "the device id of 0000:00:1e.0 is 1eb8 according to /sys/bus/pci/devices, but 2237 according to /proc/bus/pci/devices"
        ]
    );
}

#[test]
fn a_network_interface_that_comes_and_goes_is_no_disagreement() {
    let facts = Machine::of_type("g4dn.xlarge").hidden_from_proc("0000:00:05.0").build();
    assert_eq!(facts.detect(Witnesses::WhenInDoubt).disagreements, NOTHING);
}

#[test]
fn a_sysfs_entry_that_makes_no_sense_is_named() {
    let built = Machine::of_type("g4dn.xlarge").build();
    built.write("/sys/bus/pci/devices/0000:00:07.0/vendor", "nonsense\n");
    let facts = built.detect(Witnesses::WhenInDoubt);
    assert_eq!(counts(&facts), [1, 0, 0]);
    assert_eq!(facts.disagreements, ["/sys/bus/pci/devices/0000:00:07.0 does not describe a PCI function"]);
}

// ---- lspci -----------------------------------------------------------------------------------------------

#[test]
fn lspci_that_fails_is_noted_where_it_is_asked() {
    let built = Machine::of_type("g4dn.xlarge").build();
    built.write("/usr/bin/lspci", "not a program");
    let unasked = built.detect(Witnesses::WhenInDoubt);
    assert_eq!(unasked.disagreements, NOTHING);
    let asked = built.detect(Witnesses::Every);
    assert_eq!(counts(&asked), [1, 0, 0]);
    let [note] = asked.disagreements.as_slice() else { panic!("{:?}", asked.disagreements) };
    assert!(note.starts_with("lspci -Dnnmm failed with status 12"), "{note}");
}

/// Copies a program and the libraries that it is linked to into the scratch root.
fn install(built: &Built, program: &str) {
    let ldd = std::process::Command::new("ldd").arg(program).output().unwrap();
    let text = String::from_utf8(ldd.stdout).unwrap();
    for file in text.split_ascii_whitespace().filter(|w| w.starts_with('/')).chain([program]) {
        built.write(file, "");
        fs::copy(file, built.path(file)).unwrap();
    }
}

/// The real program over the made-up bus. It needs root (for chroot) and pciutils, which CI has.
#[test]
fn lspci_is_the_third_witness() {
    assert!(nix::unistd::geteuid().is_root(), "this test needs root, for chroot: start it by tests/run");
    assert!(Path::new("/usr/bin/lspci").exists(), "this test needs pciutils: start it by tests/run");
    let built = Machine::of_type("p5.48xlarge").card("10000:e1:00.0", pci::FRACTIONAL_L4).build();
    install(&built, "/usr/bin/lspci");
    let facts = built.detect(Witnesses::Every);
    assert_eq!(facts.disagreements, NOTHING);
    assert_eq!(facts.sources.len(), 3);
    assert_eq!(counts(&facts), [9, 4, 0]);
    let everyone = "/sys/bus/pci/devices, /proc/bus/pci/devices, lspci -Dnnmm";
    assert!(facts.gpus.iter().chain(&facts.nvswitches).all(|f| f.source == everyone));
    assert_eq!(facts.gpus[8].value.subsystem, Some(0x1733));

    // All is well: not asked. One of the others is silent: asked.
    assert_eq!(built.detect(Witnesses::WhenInDoubt).sources.len(), 2);
    fs::remove_dir_all(built.path("/proc/bus")).unwrap();
    let facts = built.detect(Witnesses::WhenInDoubt);
    assert_eq!(facts.sources, ["/sys/bus/pci/devices", "lspci -Dnnmm"]);
    assert_eq!(counts(&facts), [9, 4, 0]);
}

// ---- the driver ------------------------------------------------------------------------------------------

#[test]
fn a_loaded_driver_is_reported_with_the_gpus_it_drives() {
    let facts = Machine::of_type("p5.48xlarge").driver(OPEN_580).build().detect(Witnesses::WhenInDoubt);
    let driver = facts.driver.unwrap();
    assert_eq!((driver.value.version.as_str(), driver.value.open), ("580.142", true));
    assert_eq!(driver.source, "/proc/driver/nvidia/version");
    assert_eq!(facts.driven.len(), 8);
    assert_eq!(facts.driven[0].source, "/proc/driver/nvidia/gpus/0000:53:00.0/information");
    assert_eq!(facts.uvm_major.unwrap().value, 511);
    assert_eq!(facts.disagreements, NOTHING);
}

#[test]
fn a_gpu_that_the_driver_lost_is_named() {
    let machine = Machine::of_type("p5.48xlarge").driver(OPEN_580).undriven("0000:ca:00.0");
    let facts = machine.build().detect(Witnesses::WhenInDoubt);
    assert_eq!(facts.gpus.len(), 8);
    assert_eq!(
        facts.disagreements,
        [
            "0000:ca:00.0 (10de:2330) is on the PCI bus, but the loaded driver does not list it in /proc/driver/nvidia/gpus"
        ]
    );
}

#[test]
fn a_gpu_that_only_the_driver_sees_or_excludes_is_named() {
    let built = Machine::of_type("g4dn.xlarge").driver(OPEN_580).build();
    built.write("/proc/driver/nvidia/gpus/0000:00:1d.0/information", "");
    built.write("/proc/driver/nvidia/gpus/0000:00:1e.0/information", "GPU Excluded:\t Yes\n");
    assert_eq!(
        built.detect(Witnesses::WhenInDoubt).disagreements,
        [
            "0000:00:1e.0 (10de:1eb8) is excluded from use by the driver's settings (/proc/driver/nvidia/gpus/0000:00:1e.0/information)",
            "the loaded driver lists 0000:00:1d.0 in /proc/driver/nvidia/gpus, but no PCI source has a GPU there",
        ]
    );
}

#[test]
fn a_driver_without_a_version_is_said_to_have_none() {
    let facts =
        Machine::of_type("g4dn.xlarge").driver("NVRM version: ?\n").build().detect(Witnesses::WhenInDoubt);
    assert!(facts.driver.is_none());
    assert_eq!(
        facts.disagreements,
        ["/proc/driver/nvidia/version names no driver version: \"NVRM version: ?\""]
    );
}

// ---- operating system ------------------------------------------------------------------------------------

fn bare(files: &[(&str, &str)]) -> Built {
    let built = Machine::nitro().build();
    built.write("/var/lib/dpkg/arch", "amd64\ni386\n");
    for (path, text) in files {
        built.write(path, text);
    }
    built
}

fn container(files: &[(&str, &str)]) -> Option<(String, String)> {
    let found = run(os::gather(&bare(files).host())).unwrap().container;
    found.map(|c| (c.value, c.source))
}

#[test]
fn the_operating_system_is_read_with_its_sources() {
    let built = bare(&[
        ("/usr/lib/os-release", "ID=ubuntu\nVERSION_ID=\"24.04\"\nVERSION_CODENAME=noble\n"),
        ("/proc/sys/kernel/osrelease", "6.8.0-1021-aws\n"),
    ]);
    let os = run(os::gather(&built.host())).unwrap();
    assert_eq!((os.distro().as_str(), os.codename.value.as_str()), ("ubuntu2404", "noble"));
    assert_eq!(os.id.source, "/usr/lib/os-release");
    assert_eq!((os.arch.value, os.arch.source.as_str()), (os::Arch::Amd64, "/var/lib/dpkg/arch"));
    assert_eq!(os.kernel.value, "6.8.0-1021-aws");
    assert!(os.container.is_none());

    built.write("/etc/os-release", "ID=debian\nVERSION_ID=\"12\"\n");
    assert_eq!(run(os::gather(&built.host())).unwrap().distro(), "debian12");
}

#[test]
fn an_unknown_system_is_a_fact_and_an_unknown_architecture_an_error() {
    let built = bare(&[]);
    let os = run(os::gather(&built.host())).unwrap();
    assert_eq!((os.id.value.as_str(), os.id.source.as_str()), ("linux", "no os-release file"));
    built.write("/var/lib/dpkg/arch", "riscv64\n");
    let error = run(os::gather(&built.host())).unwrap_err();
    assert_eq!(error.code().name(), "unsupported-arch");
    assert_eq!(error.message(), "the architecture is \"riscv64\" (says /var/lib/dpkg/arch)");
}

#[test]
fn containers_are_told_by_their_marks() {
    let found = |kind: &str, mark: &str| Some((kind.to_owned(), mark.to_owned()));
    assert_eq!(container(&[]), None);
    assert_eq!(container(&[("/run/systemd/container", "lxc\n")]), found("lxc", "/run/systemd/container"));
    assert_eq!(
        container(&[("/run/host/container-manager", "systemd-nspawn\n")]),
        found("systemd-nspawn", "/run/host/container-manager")
    );
    assert_eq!(
        container(&[("/proc/1/environ", "a=b\0container=podman\0")]),
        found("podman", "/proc/1/environ")
    );
    assert_eq!(container(&[("/.dockerenv", "")]), found("docker", "/.dockerenv"));
    assert_eq!(container(&[("/run/.containerenv", "")]), found("podman", "/run/.containerenv"));
}

#[test]
fn an_image_made_from_a_container_is_no_container() {
    let built = bare(&[("/.dockerenv", "")]);
    let namespace = built.path("/proc/self/ns/pid");
    fs::create_dir_all(namespace.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink("pid:[4026531836]", &namespace).unwrap();
    assert!(run(os::gather(&built.host())).unwrap().container.is_none());
    fs::remove_file(&namespace).unwrap();
    std::os::unix::fs::symlink("pid:[4026532281]", &namespace).unwrap();
    assert!(run(os::gather(&built.host())).unwrap().container.is_some());
}

// ---- the command -----------------------------------------------------------------------------------------

fn detect_command(built: &Built, args: &[&str]) -> String {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_gpu-bootstrap"))
        .args(["detect", "--no-imds", "--root"])
        .arg(built.path("/"))
        .args(args)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {errors}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_command_prints_every_fact_with_its_source() {
    let built = Machine::of_type("p5.48xlarge").driver(OPEN_580).undriven("0000:ca:00.0").build();
    built.write("/proc/sys/kernel/random/boot_id", "9b2f8a3e-0d5c-4a53-9d0b-3c5d3f1f7a10\n");
    built.write("/var/lib/dpkg/arch", "amd64\n");
    built.write("/etc/os-release", "ID=ubuntu\nVERSION_ID=\"22.04\"\n");

    let text = detect_command(&built, &[]);
    let starting = |what: &str| text.lines().filter(|l| l.starts_with(what)).count();
    assert_eq!((starting("GPU "), starting("NVSwitch "), starting("warning: 0000:ca:00.0 ")), (8, 4, 1));
    let release = text.lines().find(|l| l.starts_with("version ")).unwrap();
    assert_eq!(release.split_ascii_whitespace().collect::<Vec<_>>(), ["version", "22.04", "/etc/os-release"]);

    let json: serde_json::Value = serde_json::from_str(&detect_command(&built, &["--json"])).unwrap();
    assert_eq!(json["gpu"]["gpus"].as_array().unwrap().len(), 8);
    assert_eq!(json["gpu"]["driver"]["value"]["version"], "580.142");
    assert_eq!(json["gpu"]["driver"]["source"], "/proc/driver/nvidia/version");
    assert_eq!(json["os"]["id"]["value"], "ubuntu");
}

// ---- no input brings a parser down -----------------------------------------------------------------------

/// xorshift64*: the same inputs in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(high).unwrap() % limit
    }

    fn byte(&mut self) -> u8 {
        u8::try_from(self.below(256)).unwrap()
    }

    /// Mostly the characters that the formats are made of, so that the parsers get past their first test.
    fn noise(&mut self) -> Vec<u8> {
        let alphabet = b"0123456789abcdef::..[]\"\"\\ \t\n\0=-'#xX\xe9";
        (0..self.below(200))
            .map(|_| if self.below(8) == 0 { self.byte() } else { alphabet[self.below(alphabet.len())] })
            .collect()
    }

    /// A real input with a few bytes changed, doubled or cut off.
    fn damage(&mut self, mut bytes: Vec<u8>) -> Vec<u8> {
        for _ in 0..=self.below(8) {
            if bytes.is_empty() {
                return bytes;
            }
            let at = self.below(bytes.len());
            match self.below(4) {
                0 => bytes.truncate(at),
                1 => bytes.insert(at, self.byte()),
                2 => drop(bytes.remove(at)),
                _ => bytes[at] = self.byte(),
            }
        }
        bytes
    }
}

fn parse_with_everything(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    for function in lspci::parse(&text) {
        assert!(function.address.slot < 32 && function.address.function < 8);
        role(&function);
    }
    for line in bus::proc_bus_devices(&text) {
        assert!(line.slot < 32 && line.function < 8);
    }
    bus::sysfs_number(&text);
    if let Some(address) = bus::Address::parse(text.lines().next().unwrap_or_default()) {
        assert_eq!(bus::Address::parse(&address.to_string()), Some(address));
        bus::config_space(address, bytes);
    }
    bus::sysfs_function("0000:00:1e.0", &text, &text, &text, Some(&text));
    bus::config_space(bus::Address::parse("00:1e.0").unwrap(), bytes);
    driver::version(&text);
    driver::information(&text, &text);
    driver::character_major(&text, "nvidia-uvm");
    os::os_release(&text);
    os::container_of_environment(bytes);
}

#[test]
fn random_bytes_bring_no_parser_down() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for _ in 0..4000 {
        parse_with_everything(&random.noise());
    }
}

#[test]
fn damaged_captures_bring_no_parser_down() {
    let mut random = Random(0x1234_5678_9abc_def1);
    for entry in fs::read_dir(captures()).unwrap() {
        let bytes = fs::read(entry.unwrap().path()).unwrap();
        for _ in 0..40 {
            parse_with_everything(&random.damage(bytes.clone()));
        }
    }
}
