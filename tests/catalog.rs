//! The catalog: what is chosen for every GPU and distribution, and what is refused with which words.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/facts.rs"]
mod support;

use std::path::Path;
use std::process::Command;

use gpu_bootstrap::catalog::choose::{Source, Toolkit};
use gpu_bootstrap::catalog::{Catalog, Choice, Stack, choose};
use gpu_bootstrap::config::Config;
use gpu_bootstrap::error::{Code, Error};
use gpu_bootstrap::facts::gpu::Driver;
use gpu_bootstrap::facts::os::Arch;
use gpu_bootstrap::facts::{Fact, Facts};
use support::{instance, machine, named, with_gpu};

fn config(toml: &str) -> Config {
    toml::from_str(toml).unwrap()
}

fn chosen(facts: &Facts, toml: &str) -> Stack {
    match choose(&Catalog::embedded().unwrap(), facts, &config(toml), None) {
        Ok(Choice::Install(stack)) => *stack,
        Ok(Choice::Nothing { why }) => panic!("nothing to do: {why}"),
        Err(e) => panic!("{}: {e} ({:?})", e.code(), e.hint()),
    }
}

fn refused(facts: &Facts, toml: &str) -> Error {
    match choose(&Catalog::embedded().unwrap(), facts, &config(toml), None) {
        Ok(choice) => panic!("not refused: {choice:?}"),
        Err(e) => e,
    }
}

/// (instance type, distribution, config, part of the reason, part of the alternative)
const IMPOSSIBLE: &[(&str, &str, &str, &str, &str)] = &[
    (
        "p3.2xlarge",
        "ubuntu2204",
        "cuda.toolkit = '13.0'",
        "CUDA 13.0 has dropped Tesla V100",
        "cuda.toolkit = \"auto\", which gives driver branch 580 with CUDA 12.9",
    ),
    ("g3.8xlarge", "ubuntu2404", "cuda.toolkit = '13.2'", "12.9 is the last", "CUDA 12.9"),
    (
        "p2.xlarge",
        "ubuntu2204",
        "cuda.toolkit = '12.8'",
        "CUDA 12.8 has dropped Tesla K80 (Kepler); 11.8 is the last",
        "CUDA 11.8",
    ),
    (
        "p6-b200.48xlarge",
        "ubuntu2404",
        "cuda.toolkit = '12.6'",
        "does not know B200 (Blackwell); 12.8 is the first",
        "CUDA 13.2",
    ),
    (
        "p3.2xlarge",
        "ubuntu2204",
        "driver.flavour = 'open'",
        "open kernel modules do not run Tesla V100",
        "driver.flavour = \"auto\"",
    ),
    (
        "p6-b200.48xlarge",
        "ubuntu2404",
        "driver.flavour = 'proprietary'",
        "B200 (Blackwell) runs with the open kernel modules only",
        "driver.flavour = \"auto\"",
    ),
    (
        "p5.4xlarge",
        "ubuntu2204",
        "driver.branch = '470'",
        "branch 470 does not know H100",
        "driver branch 595",
    ),
    ("p3.2xlarge", "ubuntu2204", "driver.branch = '595'", "has dropped Tesla V100", "driver branch 580"),
    ("g4dn.xlarge", "ubuntu2204", "driver.branch = '536'", "no branch 536", "535"),
    ("g4dn.xlarge", "debian12", "driver.branch = '470'", "has no driver branch 470", "driver branch 595"),
    (
        "g4dn.xlarge",
        "ubuntu2204",
        "driver.branch = '550'\ncuda.toolkit = '13.0'",
        "CUDA 13.0 needs driver 580.65.06 or newer, not 550",
        "CUDA 12.4",
    ),
    (
        "g4dn.xlarge",
        "ubuntu2204",
        "driver.branch = '525.53'\ncuda.toolkit = '12.2'",
        "needs driver 525.60.13 or newer, not 525.53",
        "driver.branch = \"auto\"",
    ),
    (
        "g4dn.xlarge",
        "ubuntu2404",
        "cuda.toolkit = '11.8'",
        "NVIDIA's repository for Ubuntu 24.04 has CUDA 12.5 to 13.3, not 11.8",
        "CUDA 13.2",
    ),
    (
        "g4dn.xlarge",
        "ubuntu2204",
        "cuda.toolkit = '12.10'",
        "CUDA 12.10 does not exist in the catalog; the nearest are 12.9 and 13.0",
        "\"12.9\"",
    ),
    ("g4dn.xlarge", "ubuntu2204", "cuda.toolkit = '12.7'", "the nearest are 12.6 and 12.8", "\"12.6\""),
    ("g4dn.xlarge", "ubuntu2204", "cuda.toolkit = '99.0'", "the nearest is 13.3", "\"13.3\""),
    ("g4dn.xlarge", "ubuntu2204", "cuda.toolkit = '12.8.7'", "CUDA 12.8 has 12.8.0, 12.8.1", "\"12.8\""),
    (
        "g4dn.xlarge",
        "debian12",
        "source.packages = 'distro'\ncuda.toolkit = '12.8'",
        "Debian 12 packages CUDA 11.8 only",
        "source.packages = \"nvidia\"",
    ),
    (
        "g4dn.xlarge",
        "debian12",
        "source.packages = 'distro'\ncudnn.version = '9.8.0'",
        "packages no cuDNN",
        "cudnn.deb",
    ),
    (
        "g4dn.xlarge",
        "debian12",
        "driver.modules = 'prebuilt'",
        "has no such kernel modules",
        "driver.modules = \"auto\"",
    ),
    (
        "g4dn.xlarge",
        "ubuntu2204",
        "driver.modules = 'prebuilt'",
        "has no such kernel modules",
        "source.packages = \"distro\"",
    ),
    (
        "g4dn.xlarge",
        "ubuntu2204",
        "cudnn.version = '9.8.0'\ncuda.toolkit = '13.0'",
        "it was built for CUDA 11 and 12, not 13.0",
        "\"auto\"",
    ),
    ("g4dn.xlarge", "ubuntu2204", "cudnn.version = '9.99.0'", "the nearest is 9.25.0.15", "\"9.25.0.15\""),
    ("p3.2xlarge", "ubuntu2204", "cudnn.version = '9.15.0'", "needs Turing or newer", "\"auto\""),
    (
        "g4dn.xlarge",
        "ubuntu1804",
        "cudnn.version = '7.6.5'\ncuda.toolkit = '10.2'",
        "not in NVIDIA's CUDA repository",
        "cudnn.deb",
    ),
    (
        "g4dn.xlarge",
        "ubuntu2204",
        "cudnn.version = '9.8.0'\ncuda.toolkit = 'none'",
        "has no toolkit to go with",
        "cuda.toolkit",
    ),
    (
        "p4d.24xlarge",
        "debian12",
        "source.packages = 'distro'",
        "has no fabric manager",
        "source.packages = \"nvidia\"",
    ),
    (
        "g5g.xlarge",
        "ubuntu1804",
        "cuda.toolkit = '10.2'",
        "does not exist for this processor architecture",
        "CUDA 11.8",
    ),
    (
        "p3.2xlarge",
        "debian13",
        "",
        "no CUDA toolkit fits: Tesla V100 SXM2 16GB (Volta) needs CUDA 9.0 to 12.9, ",
        "source.packages = \"distro\"",
    ),
    (
        "p2.xlarge",
        "ubuntu2404",
        "",
        "Tesla K80 (Kepler) needs driver branch 470 or older, and NVIDIA's repository for Ubuntu 24.04 has 550 to 610",
        "use ",
    ),
];

#[test]
fn an_impossible_wish_is_refused_with_reason_and_alternative() {
    for (instance_type, distro, wish, reason, alternative) in IMPOSSIBLE {
        let error = refused(&instance(distro, instance_type), wish);
        let shown = format!("{instance_type} on {distro}, {wish:?}: {error}; {:?}", error.hint());
        assert_eq!(error.code(), Code::ImpossibleWish, "{shown}");
        assert!(error.message().contains(reason), "{shown}");
        assert!(error.hint().is_some_and(|hint| hint.contains(alternative)), "{shown}");
    }
}

#[test]
fn nonsense_in_the_config_is_a_config_error() {
    let facts = instance("ubuntu2204", "g4dn.xlarge");
    for wish in [
        "cuda.toolkit = 'twelve'",
        "cuda.toolkit = '12'",
        "cuda.toolkit = []",
        "cuda.toolkit = ['auto']",
        "driver.branch = '580-server'",
        "driver.branch = ''",
        "cudnn.version = '9'",
        "cudnn.deb = [{ url = 'https://h/x.deb', sha256 = 'abc' }]",
        "policy.expect-gpus = 'eight'",
        "source.packages = 'fedora'",
        "source.packages = 'ftp://mirror/compute'",
        "source.packages = 'https://'",
        "source.packages = 'https://mirror/repos?token=x'",
    ] {
        let error = refused(&facts, wish);
        assert_eq!(error.code(), Code::ConfigType, "{wish}: {error}");
        assert!(error.hint().is_some(), "{wish}");
    }
    let foreign = refused(&facts, "source.packages = 'https://bücher.example/repos'");
    assert!(foreign.message().contains("xn--…"), "{foreign}");
    let secret = refused(&facts, "source.packages = 'https://me:hunter2@mirror/repos'");
    assert_eq!(secret.code(), Code::ConfigType);
    assert!(!format!("{secret} {:?} {:?}", secret.hint(), secret.causes()).contains("hunter2"));
}

#[test]
fn machines_that_cannot_be_served_are_refused_with_the_next_step() {
    let mut plain = machine("ubuntu2204");
    named(&mut plain, "t2.medium");
    let mut gone = machine("ubuntu2204");
    named(&mut gone, "g5.xlarge");
    let mut container = instance("ubuntu2204", "g4dn.xlarge");
    container.os.container = Some(Fact::new("docker".into(), "test"));
    let mut fpga = machine("ubuntu2204");
    named(&mut fpga, "f2.6xlarge");
    let cases: &[(&Facts, Code, &str, &str)] = &[
        (&plain, Code::NoGpu, "t2.medium has no NVIDIA GPU", "g4dn.xlarge"),
        (&machine("debian12"), Code::NoGpu, "shows no NVIDIA GPU", "policy.on-no-gpu"),
        (&gone, Code::NoGpu, "g5.xlarge has 1 NVIDIA A10G, but the PCI bus shows none", "stop and start"),
        (&instance("ubuntu2204", "g4ad.xlarge"), Code::NotNvidia, "AMD Radeon Pro V520", "amdgpu-pro"),
        (&instance("ubuntu2204", "inf1.xlarge"), Code::NotNvidia, "AWS Inferentia", "Neuron"),
        (&instance("ubuntu2204", "trn1.2xlarge"), Code::NotNvidia, "AWS Trainium", "Neuron"),
        (&instance("ubuntu2204", "dl1.24xlarge"), Code::NotNvidia, "Gaudi", "SynapseAI"),
        (&fpga, Code::NotNvidia, "f2.6xlarge has an FPGA", "g5.xlarge"),
        (&instance("ubuntu2204", "g6f.xlarge"), Code::FractionalGpu, "L4-3Q", "g6.xlarge"),
        (&instance("ubuntu2204", "gr6f.4xlarge"), Code::FractionalGpu, "L4-12Q", "GPUs"),
        (&instance("ubuntu2310", "g4dn.xlarge"), Code::UnsupportedOs, "ubuntu 23.10", "Ubuntu 22.04"),
        (&instance("fedora40", "g4dn.xlarge"), Code::UnsupportedOs, "fedora 40", "Debian 12"),
        (
            &instance("ubuntu2604", "g4dn.xlarge"),
            Code::RepositoryKeyUnknown,
            "Ubuntu 26.04",
            "source.packages = \"distro\"",
        ),
        (
            &instance("debian12", "g5g.xlarge"),
            Code::UnsupportedArch,
            "Debian 12 on arm64",
            "source.packages = \"distro\"",
        ),
        (&container, Code::Container, "docker", "driver.branch = \"none\""),
        (&with_gpu("ubuntu2204", 0x06d1), Code::ImpossibleWish, "Fermi", "no other setting helps"),
    ];
    for (facts, code, reason, next_step) in cases {
        let error = refused(facts, "");
        assert_eq!(error.code(), *code, "{error}");
        assert!(error.message().contains(reason), "{error}");
        assert!(error.hint().is_some_and(|h| h.contains(next_step)), "{error}: {:?}", error.hint());
    }
}

#[test]
fn a_machine_without_gpu_may_be_skipped() {
    let wish = config("policy.on-no-gpu = 'skip'");
    let catalog = Catalog::embedded().unwrap();
    for facts in [machine("ubuntu2204"), instance("ubuntu2204", "g4ad.xlarge")] {
        let choice = choose(&catalog, &facts, &wish, None).unwrap();
        assert!(matches!(&choice, Choice::Nothing { why } if why.contains("no NVIDIA GPU")), "{choice:?}");
    }
}

#[test]
fn an_image_is_baked_for_instance_types_that_agree() {
    let bake = |types: &str| format!("policy.on-no-gpu = 'install'\npolicy.for = {types}");
    let facts = machine("ubuntu2404");
    let stack = chosen(&facts, &bake("['p5.48xlarge', 'p5e.48xlarge']"));
    assert_eq!(stack.fabric_manager.unwrap(), ["nvidia-fabricmanager"]);
    assert_eq!(stack.expect_gpus, Some(8));
    let both = chosen(&facts, &bake("['p3.2xlarge', 'g4dn.12xlarge']"));
    let driver = both.driver.unwrap();
    assert_eq!((driver.branch.as_str(), driver.open), ("580", false));
    assert_eq!(both.toolkits[0].version, "12.9");
    assert_eq!(both.expect_gpus, None);
    assert_eq!(both.gpu_architectures, ["Volta", "Turing"]);
    for (types, code, reason) in [
        ("[]", Code::ConfigType, "policy.for"),
        ("['p3.2xlarge', 'p6-b200.48xlarge']", Code::ImpossibleWish, "fabric manager"),
        ("['p3.2xlarge', 'g7e.2xlarge']", Code::ImpossibleWish, "open ones only"),
        ("['p5.48xlarge', 'p5.4xlarge']", Code::ImpossibleWish, "p5.48xlarge needs a fabric manager"),
        ("['p2.xlarge', 'p5.4xlarge']", Code::ImpossibleWish, "needs driver branch 520 or newer"),
        ("['g5.13xlarge']", Code::UnknownInstanceType, "g5.13xlarge"),
        ("['t2.medium']", Code::UnknownInstanceType, "t2.medium"),
        ("['g4ad.xlarge']", Code::NotNvidia, "AMD"),
        ("['g6f.xlarge']", Code::FractionalGpu, "g6f.xlarge"),
        ("['g5g.xlarge']", Code::UnsupportedArch, "processor architecture"),
    ] {
        let error = refused(&facts, &bake(types));
        assert_eq!(error.code(), code, "{types}: {error}");
        assert!(error.message().contains(reason), "{types}: {error}");
        assert!(error.hint().is_some(), "{types}: {error}");
    }
}

#[test]
fn the_bus_decides_not_the_instance_type() {
    let mut facts = with_gpu("ubuntu2204", 0x1db1);
    named(&mut facts, "g5.xlarge");
    assert_eq!(chosen(&facts, "").driver.unwrap().branch, "580");
    // A small size of an NVSwitch family has no switch on its bus.
    assert!(chosen(&instance("ubuntu2204", "p5.4xlarge"), "").fabric_manager.is_none());
}

#[test]
fn the_gsp_firmware_is_off_where_aws_says_so_and_only_with_the_proprietary_modules() {
    let parameters = |facts: &Facts, wish: &str| {
        let stack = chosen(facts, wish);
        let told = stack.reasons.iter().any(|r| r.contains("EnableGpuFirmware=0: AWS"));
        let driver = stack.driver.unwrap();
        assert_eq!(told, !driver.parameters.is_empty(), "{:?}", stack.reasons);
        driver.parameters.join(" ")
    };
    let proprietary = "driver.flavour = 'proprietary'";
    for family in ["g4dn.xlarge", "g5.xlarge"] {
        assert_eq!(parameters(&instance("ubuntu2204", family), proprietary), "EnableGpuFirmware=0");
        assert_eq!(parameters(&instance("ubuntu2204", family), ""), "", "the open module needs it");
    }
    let old = "driver.flavour = 'proprietary'\ndriver.branch = '470'";
    assert_eq!(parameters(&instance("ubuntu2204", "g5.xlarge"), old), "", "branch 470 has no such firmware");
    assert_eq!(parameters(&instance("ubuntu2204", "g6.xlarge"), proprietary), "");
}

#[test]
fn a_rack_s_hosts_get_imex_in_the_driver_s_version_and_no_fabric_manager() {
    let facts = instance("ubuntu2404", "p6e-gb200.36xlarge");
    let stack = chosen(&facts, "");
    assert!(stack.fabric_manager.is_none());
    assert_eq!(stack.driver.unwrap().imex, ["nvidia-imex"]);
    let exact = chosen(&facts, "driver.branch = '580.95.05'").driver.unwrap();
    assert_eq!(exact.imex, ["nvidia-imex=580.95.05-*"]);
    assert!(exact.pin.unwrap().packages.contains(&"nvidia-imex*".to_owned()));
    assert!(chosen(&instance("ubuntu2404", "p5.48xlarge"), "").driver.unwrap().imex.is_empty());
}

#[test]
fn a_kernel_is_held_where_no_headers_follow_it_or_as_configured() {
    let held = |kernel: &str, wish: &str| {
        let mut facts = instance("ubuntu2204", "g5.xlarge");
        kernel.clone_into(&mut facts.os.kernel.value);
        chosen(&facts, wish).driver.unwrap().hold_kernel
    };
    assert_eq!(held("6.8.0-1021-aws", ""), None);
    assert_eq!(held("6.5.0-mine", "").as_deref(), Some("6.5.0-mine"));
    assert_eq!(held("6.5.0-mine", "policy.hold-kernel = 'never'"), None);
    let always = held("6.8.0-1021-aws", "policy.hold-kernel = 'always'");
    assert_eq!(always.as_deref(), Some("6.8.0-1021-aws"));
}

#[test]
fn an_unknown_gpu_is_taken_for_the_newest_and_said_so() {
    let stack = chosen(&with_gpu("ubuntu2404", 0x3fff), "");
    assert!(stack.driver.unwrap().open);
    assert!(stack.reasons.iter().any(|r| r.contains("10de:3fff") && r.contains("newest architecture")));
    let by_range = chosen(&with_gpu("ubuntu2404", 0x1eff), "");
    assert_eq!(by_range.gpu_architectures, ["Turing"]);
    assert!(by_range.reasons.iter().any(|r| r.contains("10de:1eff") && r.contains("Turing")));
    assert!(by_range.expect_gpus.is_none());
}

#[test]
fn an_earlier_choice_is_kept_while_it_fits() {
    let catalog = Catalog::embedded().unwrap();
    let again = |facts: &Facts, toml: &str, earlier: &Stack| match choose(
        &catalog,
        facts,
        &config(toml),
        Some(earlier),
    ) {
        Ok(Choice::Install(stack)) => *stack,
        other => panic!("{other:?}"),
    };
    let t4 = instance("ubuntu2204", "g4dn.xlarge");
    let old = chosen(&t4, "driver.branch = '570'\ncuda.toolkit = ['12.6', '12.4']");
    let kept = again(&t4, "", &old);
    assert_eq!(kept.driver, old.driver);
    assert_eq!(kept.toolkits, old.toolkits);
    assert!(kept.reasons.iter().any(|r| r.contains("570 is kept")), "{:?}", kept.reasons);
    // What the config asks for wins.
    assert_eq!(again(&t4, "cuda.toolkit = '12.8'", &old).toolkits[0].version, "12.8");
    // Another class of GPU, or another source: anew.
    let resized = again(&instance("ubuntu2204", "g6.xlarge"), "", &old);
    assert_eq!(resized.driver.unwrap().branch, "595");
    assert!(resized.reasons.iter().any(|r| r.contains("for Turing, the GPUs are Ada")));
    let moved = again(&t4, "source.packages = 'distro'", &old);
    assert_eq!(moved.toolkits[0].version, "11.5");
    // What no longer exists is dropped with its reason.
    let mut impossible = old.clone();
    impossible.toolkits =
        vec![Toolkit { version: "12.7".into(), packages: vec!["cuda-toolkit-12-7".into()], home: None }];
    let mended = again(&t4, "", &impossible);
    assert_eq!(mended.toolkits[0].version, "12.8");
    assert!(mended.reasons.iter().any(|r| r.contains("12.7 of an earlier run is not kept")));
    // The second choice of the same machine is the first one: a plan's digest must not change by itself.
    let first = chosen(&t4, "");
    let second = again(&t4, "", &first);
    assert_eq!((first.driver, first.toolkits, first.cudnn), (second.driver, second.toolkits, second.cudnn));
}

#[test]
fn debian_s_branches_and_flavours_do_not_stay_beside_each_other() {
    let driver = |os, wish: &str| {
        let wish = format!("source.packages = 'distro'\n{wish}");
        chosen(&instance(os, "g4dn.xlarge"), &wish).driver.unwrap()
    };
    for os in ["debian11", "debian12"] {
        let newest = driver(os, "");
        assert_eq!((newest.branch.as_str(), &newest.packages[0][..]), ("535", "nvidia-kernel-dkms"), "{os}");
        assert_eq!(newest.without, ["nvidia-tesla-470-alternative"], "{os}");
        let old = driver(os, "driver.branch = '470'");
        assert_eq!(&old.packages[0], "nvidia-tesla-470-kernel-dkms", "{os}");
        assert_eq!(old.without, ["nvidia-alternative"], "{os}");
    }
    let others = |flavour: &str| driver("debian13", &format!("driver.flavour = '{flavour}'")).without;
    assert_eq!(others("open"), ["nvidia-tesla-535-alternative", "nvidia-kernel-support"]);
    assert_eq!(others("proprietary"), ["nvidia-tesla-535-alternative", "nvidia-open-kernel-support"]);
    // Ubuntu's and NVIDIA's exclude each other by themselves.
    assert_eq!(driver("ubuntu2404", "").without, Vec::<String>::new());
}

#[test]
fn the_source_is_the_repository_of_this_machine() {
    let repository = |facts: &Facts, toml: &str| match chosen(facts, toml).source {
        Source::Nvidia(repository) => repository,
        other @ Source::Distro { .. } => panic!("{other:?}"),
    };
    let own = repository(&instance("ubuntu2204", "g4dn.xlarge"), "");
    assert_eq!(own.url, "https://developer.download.nvidia.com/compute/cuda/repos/ubuntu2204/x86_64/");
    assert_eq!(own.fingerprint, "EB693B3035CD5710E231E123A4B469963BF863CC");
    let sbsa = repository(&instance("ubuntu2404", "g5g.xlarge"), "");
    assert!(sbsa.url.ends_with("/ubuntu2404/sbsa/"));
    let newer = repository(&instance("debian13", "g4dn.xlarge"), "");
    assert_eq!(newer.fingerprint, "02182E60104FCDC26EAE1B8597A5D4CB8793F200");
    assert_eq!(newer.components, ["contrib"]);
    let mirror =
        repository(&instance("debian12", "g4dn.xlarge"), "source.packages = 'http://mirror.example/cuda/'");
    assert_eq!(mirror.url, "http://mirror.example/cuda/debian12/x86_64/");
    let distro = chosen(&instance("debian12", "g4dn.xlarge"), "source.packages = 'distro'").source;
    assert_eq!(
        distro,
        Source::Distro { components: ["contrib", "non-free", "non-free-firmware"].map(String::from).into() }
    );
}

#[test]
fn exact_versions_name_themselves() {
    let facts = instance("ubuntu2204", "p5.48xlarge");
    let stack =
        chosen(&facts, "driver.branch = '570.124.06'\ncuda.toolkit = '12.8.0'\ncudnn.version = '9.8.0'");
    let driver = stack.driver.unwrap();
    assert_eq!(driver.packages, ["nvidia-open-570=570.124.06-*"]);
    assert_eq!(driver.pin.unwrap().version, "570.124.06-*");
    assert_eq!(stack.fabric_manager.unwrap(), ["nvidia-fabricmanager-570=570.124.06-*"]);
    assert_eq!(stack.toolkits[0].packages, ["cuda-toolkit-12-8=12.8.0-*"]);
    assert_eq!(stack.toolkits[0].home.as_deref(), Some("/usr/local/cuda-12.8"));
    assert_eq!(stack.cudnn.unwrap().packages[0], "libcudnn9-cuda-12=9.8.0.87-1");
}

#[test]
fn nothing_is_installed_that_the_config_does_not_want() {
    let facts = instance("ubuntu2204", "p4d.24xlarge");
    let bare = chosen(&facts, "driver.branch = 'none'\ncuda.toolkit = 'none'");
    assert_eq!((bare.driver, bare.toolkits, bare.cudnn, bare.fabric_manager), (None, vec![], None, None));
    // Without a driver of ours, the loaded one limits the toolkit.
    let mut facts = instance("ubuntu2204", "g4dn.xlarge");
    facts.gpu.driver = Some(Fact::new(Driver { version: "550.54.15".into(), open: true }, "test"));
    assert_eq!(chosen(&facts, "driver.branch = 'none'").toolkits[0].version, "12.4");
    // Package files take the place of the repository's cuDNN.
    let sum = "AB".repeat(32);
    let files = chosen(&facts, &format!("cudnn.deb = [{{ url = 'https://h/c.deb', sha256 = '{sum}' }}]"));
    assert_eq!(files.cudnn, None);
    assert_eq!(files.cudnn_debs[0].sha256, "ab".repeat(32));
}

#[test]
fn every_instance_type_of_ec2_is_there() {
    let catalog = Catalog::embedded().unwrap();
    let all = include_str!("fixtures/catalog/ec2_types.txt");
    let mut count = 0;
    for pair in all.lines().filter(|l| !l.starts_with('#')).flat_map(str::split_whitespace) {
        let (name, rest) = pair.split_once('=').unwrap();
        let (gpus, id) = rest.split_once(':').unwrap();
        let found = catalog.instance_type(name).unwrap_or_else(|| panic!("{name}"));
        assert_eq!(found.gpus.to_string(), gpus, "{name}");
        assert_eq!(format!("{:04x}", found.device.unwrap()), id, "{name}");
        count += 1;
    }
    assert!(count >= 78, "{count}");
    for family in ["dl1", "dl2q", "f1", "f2", "g4ad", "inf1", "inf2", "trn1", "trn1n", "trn2", "trn3", "vt1"]
    {
        assert_ne!(catalog.instance_type(&format!("{family}.xlarge")).unwrap().vendor, 0x10de, "{family}");
    }
}

#[test]
fn architectures_follow_from_exact_ids_and_from_ranges() {
    let catalog = Catalog::embedded().unwrap();
    for (id, architecture) in [
        (0x118a, "Kepler"),
        (0x102d, "Kepler"),
        (0x1094, "Fermi"),
        (0x1000, "Kepler"), // shared with Fermi: the newer one
        (0x13f2, "Maxwell"),
        (0x17fd, "Maxwell"),
        (0x15f8, "Pascal"),
        (0x1db1, "Volta"),
        (0x1eb8, "Turing"),
        (0x2237, "Ampere"),
        (0x27b8, "Ada"),
        (0x2330, "Hopper"),
        (0x2901, "Blackwell"),
        (0x2c3a, "Blackwell"),
        (0x3182, "Blackwell Ultra"),
        (0x2fff, "Blackwell"),
        (0x5000, "Blackwell Ultra"),
    ] {
        assert_eq!(catalog.architecture(id).unwrap(), architecture, "{id:04x}");
    }
    assert_eq!(catalog.compute_capability(0x102d).unwrap().to_string(), "3.7");
    assert_eq!(catalog.nvswitch_name(0x22a3), Some("H100 NVSwitch"));
}

#[test]
fn the_embedded_keys_are_the_pinned_ones() {
    for distro in ["ubuntu2204", "debian13"] {
        let Source::Nvidia(repository) = chosen(&instance(distro, "g4dn.xlarge"), "").source else {
            panic!("not NVIDIA's")
        };
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key.asc");
        std::fs::write(&file, &repository.key).unwrap();
        let gpg = Command::new("gpg")
            .args(["--batch", "--no-options", "--show-keys", "--with-colons", "--homedir"])
            .args([dir.path(), &file])
            .output();
        let Ok(output) = gpg else { panic!("this test needs gpg (apt-get install gnupg)") };
        let listing = String::from_utf8(output.stdout).unwrap();
        let fingerprints: Vec<_> = listing.lines().filter_map(|l| l.strip_prefix("fpr:::::::::")).collect();
        assert_eq!(fingerprints, [format!("{}:", repository.fingerprint)], "{distro}");
    }
}

#[test]
fn a_directory_can_take_the_place_of_embedded_files() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write(
        "repositories.toml",
        "schema = 1\nbase = 'http://127.0.0.1:1/repos/'\n[[key]]\nid = 'test'\n\
         fingerprint = '0123456789ABCDEF0123456789ABCDEF01234567'\n\
         armour = '''-----BEGIN PGP PUBLIC KEY BLOCK-----\n-----END PGP PUBLIC KEY BLOCK-----'''\n\
         [[repository]]\ndistro = 'debian12'\nkey = 'test'\ndate-floor = '2020-01-01'\n",
    );
    let catalog = Catalog::with_overrides(dir.path()).unwrap();
    let facts = instance("debian12", "g4dn.xlarge");
    let Ok(Choice::Install(stack)) = choose(&catalog, &facts, &Config::default(), None) else {
        panic!("nothing is chosen")
    };
    let Source::Nvidia(r) = stack.source else { panic!("not NVIDIA's") };
    assert_eq!(r.url, "http://127.0.0.1:1/repos/debian12/x86_64/");
    assert_eq!(
        (r.fingerprint.as_str(), r.date_floor.as_str()),
        ("0123456789ABCDEF0123456789ABCDEF01234567", "2020-01-01")
    );
    assert_eq!(r.label, "NVIDIA CUDA");

    for (name, text, wanted) in [
        ("repositories.toml", "schema = 1\nbse = 'x'\n", "repositories.toml:2:1: unknown field `bse`"),
        ("repositories.toml", "schema = 2\n", "repositories.toml:1:10: this program reads schema 1"),
        (
            "repositories.toml",
            "schema = 1\n[[repository]]\ndistro = 'debian12'\nkey = '7fa2af80'\n",
            "debian12: the key 7fa2af80 is retired",
        ),
        (
            "repositories.toml",
            "schema = 1\n[[repository]]\ndistro = 'debian12'\nkey = 'no'\n",
            "debian12: there is no key no",
        ),
        (
            "repositories.toml",
            "schema = 1\n[[repository]]\ndistro = 'debian99'\n",
            "debian99: directories is missing",
        ),
        (
            "repositories.toml",
            "schema = 1\n[[key]]\nid = 'k'\nfingerprint = 'abc'\n",
            "40 hexadecimal digits",
        ),
        ("drivers.toml", "schema = 1\n\"", "drivers.toml:2:"),
        ("nonsense.toml", "", "nonsense.toml is no file of the catalog"),
    ] {
        std::fs::remove_file(dir.path().join("repositories.toml")).ok();
        write(name, text);
        let error = Catalog::with_overrides(dir.path()).unwrap_err();
        assert_eq!(error.code(), Code::CatalogInvalid, "{name}: {error}");
        assert!(error.message().contains(wanted), "{error}");
        std::fs::remove_file(dir.path().join(name)).unwrap();
    }
    assert_eq!(Catalog::with_overrides(Path::new("/nonexistent")).unwrap_err().code(), Code::CatalogInvalid);
}

#[test]
fn under_secure_boot_only_signed_modules_are_chosen() {
    let catalog = Catalog::embedded().unwrap();
    let mut facts = instance("ubuntu2204", "g5.xlarge");
    facts.os.secure_boot.value = true;
    let error = choose(&catalog, &facts, &config(""), None).unwrap_err();
    assert_eq!(error.code(), Code::ImpossibleWish);
    assert!(error.message().starts_with("Secure Boot is on"), "{error}");
    assert!(error.hint().unwrap().contains("source.packages = \"distro\""), "{:?}", error.hint());
    let signed = chosen(&facts, "[source]\npackages = \"distro\"\n");
    assert!(signed.driver.unwrap().packages.iter().any(|p| p.starts_with("linux-modules-nvidia-")));
    let own = chosen(&facts, "[driver]\nmodules = \"dkms\"\n");
    assert!(own.reasons.iter().any(|r| r.starts_with("Secure Boot is on")));
    assert!(chosen(&facts, "[driver]\nbranch = \"none\"\n").driver.is_none());
}

#[test]
fn kernels_are_followed_by_their_own_headers() {
    let mut facts = instance("debian12", "g4dn.xlarge");
    let headers = |facts: &Facts| chosen(facts, "").driver.unwrap().kernel_packages;
    for (kernel, package) in [
        ("6.1.0-28-cloud-amd64", "linux-headers-cloud-amd64"),
        ("6.12.41+deb13-cloud-amd64", "linux-headers-cloud-amd64"),
        ("6.1.0-28-amd64", "linux-headers-amd64"),
    ] {
        facts.os.kernel.value = kernel.into();
        assert_eq!(headers(&facts), [package], "{kernel}");
        let driver = chosen(&facts, "").driver.unwrap();
        assert_eq!(driver.running_kernel_packages, [format!("linux-headers-{kernel}")]);
        assert_eq!(driver.kernel_image, [package.replace("headers", "image")]);
    }
    facts.os.kernel.value = "6.1.55-custom".into();
    assert!(headers(&facts).is_empty());
    assert!(chosen(&facts, "").reasons.iter().any(|r| r.contains("6.1.55-custom")));
    facts.os.arch.value = Arch::Amd64;
}
