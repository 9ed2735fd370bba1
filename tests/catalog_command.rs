//! `gpu-bootstrap catalog`, the real binary: the golden tables of every family on every distribution, one machine in full,
//! its documents against the schema, and every refusal with its exit code.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/json_schema.rs"]
mod json_schema;
#[path = "support/machine.rs"]
mod machine;

use std::collections::BTreeSet;
use std::path::Path;

use machine::{Machine, Ran, binary, ran};
use serde_json::Value;

fn catalog(args: &[&str]) -> Ran {
    ran(binary().arg("catalog").args(args))
}

#[track_caller]
fn answered(args: &[&str]) -> String {
    let ran = catalog(args);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{args:?}: {ran:?}");
    ran.stdout
}

/// The document, which fits the schema.
#[track_caller]
fn document(args: &[&str]) -> Value {
    let ran = catalog(&[args, &["--json"]].concat());
    let document: Value = serde_json::from_str(&ran.stdout).unwrap_or_else(|e| panic!("{e}: {ran:?}"));
    json_schema::validate(
        &serde_json::from_str(include_str!("../packaging/catalog.schema.json")).unwrap(),
        &document,
    );
    document
}

/// Compares with a file that people read; `UPDATE_GOLDEN=1` writes it anew.
fn golden(name: &str, actual: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/catalog").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, actual).unwrap();
    }
    let wanted = std::fs::read_to_string(&path).unwrap();
    let differing = wanted.lines().zip(actual.lines()).find(|(wanted, actual)| wanted != actual);
    assert!(
        wanted == actual,
        "{} differs, first here (wanted, actual): {differing:#?}; UPDATE_GOLDEN=1 writes it anew",
        path.display()
    );
}

#[test]
fn every_family_on_every_distribution_from_nvidia() {
    golden("nvidia.txt", &answered(&["--all"]));
}

#[test]
fn every_family_on_every_distribution_from_the_distribution() {
    golden("distro.txt", &answered(&["--all", "--source", "distro"]));
}

/// g2 to p6e, and those that are refused: none is missing in the tables.
#[test]
fn the_tables_have_every_family_of_ec2() {
    const SERVED: &[&str] = &[
        "g2",
        "g3",
        "g3s",
        "g4dn",
        "g5",
        "g5g",
        "g6",
        "g6e",
        "g6f",
        "g7",
        "g7e",
        "gr6",
        "gr6f",
        "p2",
        "p3",
        "p3dn",
        "p4d",
        "p4de",
        "p5",
        "p5e",
        "p5en",
        "p6-b200",
        "p6-b300",
        "p6e-gb200",
        "p6e-gb300",
    ];
    const REFUSED: &[&str] =
        &["dl1", "dl2q", "f1", "f2", "g4ad", "inf1", "inf2", "mac", "trn1", "trn1n", "trn2", "trn3", "vt1"];
    for name in ["nvidia.txt", "distro.txt"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/catalog").join(name);
        let table = std::fs::read_to_string(path).unwrap();
        let titles: Vec<_> = table.lines().filter(|l| !l.starts_with(' ') && !l.is_empty()).collect();
        let families: BTreeSet<_> = titles.iter().map(|t| t.split(['.', ',']).next().unwrap()).collect();
        for family in SERVED.iter().chain(REFUSED) {
            assert!(families.contains(family), "{name} lacks {family}");
        }
        for block in table.split("\n\n").filter(|b| !b.trim().is_empty()) {
            let lines = block.lines().count() - 1;
            assert!(lines == 8 || block.contains("\n  everywhere "), "{block}");
        }
        for family in REFUSED {
            let block =
                table.split("\n\n").find(|b| b.trim_start().starts_with(&format!("{family}."))).unwrap();
            assert!(block.contains("  everywhere   not-nvidia: "), "{block}");
        }
    }
}

#[test]
fn a_v100_is_told_why_cuda_13_is_not_for_it() {
    let text = answered(&["--instance-type", "p3.2xlarge", "--os", "ubuntu22.04"]);
    for wanted in [
        "p3.2xlarge: 1 x Tesla V100 SXM2 16GB (Volta) on ubuntu2204 (amd64)\n",
        "  driver          580, proprietary kernel modules, built on the machine (DKMS)\n",
        "  CUDA toolkit    12.9\n",
        "  expected GPUs   1\n",
        "  packages        linux-headers-aws cuda-drivers-580 cuda-toolkit-12-9 libcudnn9-cuda-12=9.10.2.21-1 ",
        "  Driver branch 580 is the last that runs Tesla V100 SXM2 16GB (Volta). NVIDIA supports branch 580 until 2028-06.\n",
        "  595  refused   driver branch 595 has dropped Tesla V100 SXM2 16GB (Volta); 580 is the last that runs it\n",
        "  580  chosen    supported until 2028-06 [unverified: repository.branches]\n",
        "  575  possible  a feature branch, never chosen by itself [unverified: repository.branches]\n",
        "  13.0  refused   CUDA 13.0 has dropped Tesla V100 SXM2 16GB (Volta); 12.9 is the last that supports it\n",
        "  12.9  chosen ",
        "  12.8  possible ",
        "  10.2  refused   NVIDIA's repository for Ubuntu 22.04 has CUDA 11.7 to 13.3, not 10.2 [unverified: repository.toolkits]\n",
        "  9.11 and newer  refused   cuDNN 9.11 needs Turing or newer, and Tesla V100 SXM2 16GB (Volta) is older [unverified: cudnn.architectures]\n",
        "  9.7 to 9.10     chosen    9.10.2.21 is the newest known for CUDA 12.9",
        "  7.0 to 7.6      refused   cuDNN 7.6 goes with CUDA 9 and 10, not 12.9\n",
        "No source confirms that NVIDIA's repository for Ubuntu 22.04 has driver branch 580 or that NVIDIA's repository for \
         Ubuntu 22.04 has CUDA 12.9.\n",
    ] {
        assert!(text.contains(wanted), "{wanted:?} is not in:\n{text}");
    }
}

#[test]
fn every_row_of_the_catalog_is_chosen_possible_or_refused_with_a_reason() {
    let distributions =
        ["ubuntu1804", "ubuntu2004", "ubuntu2204", "ubuntu2404", "debian11", "debian12", "debian13"];
    for instance_type in ["g2.2xlarge", "p2.xlarge", "g4dn.xlarge", "p5.48xlarge", "p6-b300.48xlarge"] {
        for (os, source) in distributions.iter().flat_map(|os| [(os, "nvidia"), (os, "distro")]) {
            let found = document(&["--instance-type", instance_type, "--os", os, "--source", source]);
            let rows = |kind: &str| found["candidates"][kind].as_array().unwrap().clone();
            assert_eq!(rows("drivers").len(), 20, "{instance_type} {os}");
            assert!(rows("toolkits").len() >= 23, "{instance_type} {os}");
            let chosen = |kind: &str| rows(kind).iter().filter(|r| r["state"] == "chosen").count();
            for row in ["drivers", "toolkits", "cudnn"].iter().flat_map(|kind| rows(kind)) {
                assert!(row["state"] != "refused" || !row["why"].as_str().unwrap().is_empty(), "{row}");
            }
            let stack = &found["stack"];
            if stack.is_null() {
                assert_eq!(chosen("drivers") + chosen("toolkits") + chosen("cudnn"), 0, "{found:#}");
            } else {
                assert_eq!((chosen("drivers"), chosen("toolkits")), (1, 1), "{instance_type} {os} {source}");
                assert_eq!(
                    chosen("cudnn"),
                    usize::from(!stack["cudnn"].is_null()),
                    "{instance_type} {os} {source}"
                );
                assert_eq!(rows("cudnn").len(), 7);
            }
        }
    }
}

/// What a row says is true: what is possible is chosen when it is asked for, and what is refused is refused.
#[test]
fn rows_keep_what_they_say() {
    for (instance_type, os) in
        [("p3.2xlarge", "ubuntu2204"), ("g4dn.xlarge", "debian12"), ("p6-b200.48xlarge", "ubuntu2404")]
    {
        let machine = ["--instance-type", instance_type, "--os", os];
        let all = document(&machine);
        for (kind, flag) in [("drivers", "--driver"), ("toolkits", "--cuda")] {
            for row in all["candidates"][kind].as_array().unwrap() {
                let name = row["name"].as_str().unwrap();
                let asked = document(&[&machine[..], &[flag, name]].concat());
                assert_eq!(asked["stack"].is_null(), row["state"] == "refused", "{instance_type} {os} {row}");
                if asked["stack"].is_null() {
                    assert_eq!(asked["refusal"]["message"], row["why"], "{row}");
                }
            }
        }
    }
}

#[test]
fn a_machine_may_be_named_by_its_gpu() {
    let gb300 = document(&["--gpu", "10de:31c2", "--os", "ubuntu24.04"]);
    assert_eq!(gb300["machine"]["arch"], "arm64");
    assert_eq!(gb300["machine"]["gpus"][0]["architecture"], "Blackwell Ultra");
    assert_eq!(gb300["stack"]["driver"]["flavour"], "open");
    assert_eq!(gb300["stack"]["fabric_manager"], Value::Null);
    // With a type, in place of its GPUs, as many as it has.
    let resold = document(&["--gpu", "2901", "--instance-type", "p5.48xlarge", "--os", "ubuntu24.04"]);
    assert_eq!(resold["machine"]["gpus"].as_array().unwrap().len(), 8);
    assert_eq!(resold["machine"]["gpus"][7]["name"], "NVIDIA B200");
    // One that nobody knows yet: the newest architecture, and said so.
    let text = answered(&["--gpu", "10de:3fff", "--os", "ubuntu24.04"]);
    assert!(
        text.contains("does not know GPU 10de:3fff; it is taken for one of the newest architecture"),
        "{text}"
    );
    assert!(text.contains("No source confirms what architecture GPU 10de:3fff has"), "{text}");
    // Graviton, where a GPU is on both.
    let arm = document(&["--gpu", "10de:1eb8", "--arch", "arm64", "--os", "ubuntu22.04"]);
    assert!(arm["stack"]["repository"]["url"].as_str().unwrap().ends_with("/ubuntu2204/sbsa/"));
    // The switches of a type, which its GPUs do not show.
    let p5 = document(&["--instance-type", "p5.48xlarge", "--os", "debian12"]);
    assert_eq!(p5["stack"]["fabric_manager"], serde_json::json!(["nvidia-fabricmanager"]));
}

#[test]
fn what_no_source_confirms_is_said() {
    let keys = |found: &Value| -> Vec<String> {
        let all = found["unverified"].as_array().unwrap().iter();
        all.map(|u| u["key"].as_str().unwrap().to_owned()).collect()
    };
    let b300 = document(&["--instance-type", "p6-b300.48xlarge", "--os", "ubuntu24.04"]);
    assert_eq!(keys(&b300), ["gpu.fabric", "repository.branches", "repository.toolkits", "toolkit.driver"]);
    let last = b300["reasons"].as_array().unwrap().last().unwrap().as_str().unwrap();
    assert!(
        last.starts_with("No source confirms that B300 SXM6 AC (Blackwell Ultra) needs fabric manager"),
        "{last}"
    );
    // How many GPUs there are is not guessed: a wrong number would fail a healthy machine.
    let gb200 = document(&["--instance-type", "p6e-gb200.36xlarge", "--os", "ubuntu24.04"]);
    assert_eq!((&gb200["stack"]["expected_gpus"], keys(&gb200)[0].as_str()), (&Value::Null, "instance.gpus"));
    // At its limit a guess counts, beyond it it does not.
    let at = document(&["--instance-type", "p6-b300.48xlarge", "--os", "ubuntu24.04", "--cuda", "12.9"]);
    assert!(keys(&at).contains(&"gpu.limits".to_owned()), "{at:#}");
    // Debian's own indexes were read.
    let debian = document(&["--instance-type", "g4dn.xlarge", "--os", "debian12", "--source", "distro"]);
    assert_eq!(keys(&debian), Vec::<String>::new());
    // A refusal, too.
    let k80 = document(&["--instance-type", "p2.xlarge", "--os", "ubuntu24.04"]);
    assert_eq!(keys(&k80), ["repository.branches", "repository.toolkits"]);
    let b200 = document(&["--instance-type", "p6-b200.48xlarge", "--os", "ubuntu20.04"]);
    assert_eq!(keys(&b200), ["driver.packages"]);
    // Whoever states it in files of their own confirms it.
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(
        dir.path().join("repositories.toml"),
        "schema = 1\n[[repository]]\ndistro = 'ubuntu2404'\ntoolkits = { first = '12.5', last = '13.3' }\n\
         branches = { first = '550', last = '610' }\n",
    )
    .unwrap();
    let files = dir.path().to_str().unwrap();
    let confirmed = document(&["--instance-type", "g5.xlarge", "--os", "ubuntu24.04", "--catalog", files]);
    assert_eq!(keys(&confirmed), ["toolkit.driver"]);
}

#[test]
fn every_key_of_what_is_unverified_is_explained() {
    let page = include_str!("../docs/stacks.md");
    let mut keys = BTreeSet::new();
    let mut collect = |document: &Value| {
        let text = document.to_string();
        let found = text.split("\"key\":\"").skip(1).map(|rest| rest.split('"').next().unwrap().to_owned());
        keys.extend(found);
    };
    for source in ["nvidia", "distro"] {
        collect(&document(&["--all", "--source", source]));
        for instance_type in ["p3.2xlarge", "p6-b300.48xlarge", "g5g.xlarge"] {
            for os in ["ubuntu18.04", "ubuntu24.04", "debian12"] {
                collect(&document(&["--instance-type", instance_type, "--os", os, "--source", source]));
            }
        }
    }
    collect(&document(&["--gpu", "3fff", "--os", "ubuntu24.04"]));
    assert!(keys.len() >= 10, "{keys:?}");
    for key in keys {
        assert!(page.contains(&format!("| `{key}` |")), "docs/stacks.md does not explain {key}");
    }
}

#[test]
fn a_refusal_is_answered_in_full_and_has_its_exit_code() {
    for (args, exit_code, code, message, hint) in [
        (
            &["--instance-type", "p3.2xlarge", "--os", "ubuntu22.04", "--cuda", "13.0"][..],
            3,
            "impossible-wish",
            "CUDA 13.0 has dropped Tesla V100",
            "set cuda.toolkit = \"auto\", which gives driver branch 580 with CUDA 12.9",
        ),
        (
            &["--instance-type", "inf1.xlarge", "--os", "ubuntu26.04"],
            3,
            "not-nvidia",
            "AWS Inferentia",
            "Neuron",
        ),
        (
            &["--instance-type", "mac2-m2.metal", "--os", "debian12"],
            3,
            "not-nvidia",
            "an Apple GPU",
            "g5.xlarge",
        ),
        (&["--instance-type", "g6f.xlarge", "--os", "debian12"], 3, "fractional-gpu", "L4-3Q", "g6.xlarge"),
        (
            &["--instance-type", "t3.micro", "--os", "debian12"],
            3,
            "no-gpu",
            "t3.micro has no NVIDIA GPU",
            "g4dn",
        ),
        (&["--gpu", "1002:7362", "--os", "debian12"], 3, "not-nvidia", "Radeon Pro V520", "amdgpu-pro"),
        (
            &["--instance-type", "g4dn.xlarge", "--os", "debian12", "--cuda", "twelve"],
            2,
            "config-type",
            "twelve",
            "12.8",
        ),
    ] {
        let shown = catalog(args);
        assert_eq!(shown.code, exit_code, "{args:?}: {shown:?}");
        assert!(
            shown.stdout.contains(&format!("  refused         {}", "")) && shown.stdout.contains(code),
            "{shown:?}"
        );
        assert!(
            shown.stderr.contains(&format!("[{code}]")) && shown.stderr.contains("what to do: "),
            "{shown:?}"
        );
        let document = document(args);
        let refusal = &document["refusal"];
        assert_eq!((&refusal["code"], &refusal["exit_code"]), (&code.into(), &exit_code.into()), "{args:?}");
        assert!(refusal["message"].as_str().unwrap().contains(message), "{refusal}");
        assert!(refusal["hint"].as_str().unwrap().contains(hint), "{refusal}");
        assert!(document["stack"].is_null());
    }
}

#[test]
fn a_question_that_makes_no_sense_is_no_answer() {
    for (args, exit_code, code, words) in [
        (
            &["--instance-type", "g5.13xlarge", "--os", "debian12"][..],
            2,
            "unknown-instance-type",
            "g5.xlarge",
        ),
        (
            &["--instance-type", "p6e-gb300.36xlarge", "--os", "debian12"],
            2,
            "unknown-instance-type",
            "--gpu 10de:31c2",
        ),
        (
            &["--instance-type", "nonsense", "--os", "debian12"],
            2,
            "unknown-instance-type",
            "known families are g2",
        ),
        (&["--instance-type", "g5.xlarge", "--os", "fedora40"], 3, "unsupported-os", "ubuntu22.04"),
        (
            &["--instance-type", "g5g.xlarge", "--os", "debian12", "--arch", "amd64"],
            2,
            "usage",
            "g5g.xlarge is an arm64",
        ),
        (&["--gpu", "1eb8", "--os", "debian12", "--arch", "sparc"], 2, "usage", "amd64 or arm64"),
        (&["--gpu", "T4", "--os", "debian12"], 2, "usage", "10de:1eb8"),
        (&["--gpu", "8086:1234", "--os", "debian12"], 2, "usage", "no accelerator"),
        (&["--arch", "arm64"], 2, "usage", "--instance-type"),
        (&["--catalog", "/nonexistent", "--all"], 2, "catalog-invalid", "/nonexistent"),
        (&["--config", "/nonexistent", "--all"], 2, "config-read", "/nonexistent"),
    ] {
        let ran = catalog(args);
        assert_eq!((ran.code, ran.stdout.as_str()), (exit_code, ""), "{args:?}: {ran:?}");
        assert!(
            ran.stderr.contains(&format!("[{code}]")) && ran.stderr.contains(words),
            "{args:?}: {}",
            ran.stderr
        );
    }
    assert_eq!(catalog(&["--all", "--instance-type", "g5.xlarge"]).code, 2);
}

#[test]
fn one_machine_or_one_distribution_makes_a_table() {
    let types = answered(&["--os", "debian13", "--cuda", "13.0"]);
    assert!(types.contains("p3.2xlarge: ") && types.contains("CUDA 13.0 has dropped Tesla V100"), "{types}");
    let systems = answered(&["--instance-type", "g5.xlarge"]);
    assert_eq!(systems.lines().filter(|l| l.starts_with("  ")).count(), 8, "{systems}");
    let table = document(&["--instance-type", "g5.xlarge"]);
    assert_eq!((&table["kind"], table["rows"].as_array().unwrap().len()), (&"table".into(), 8));
    assert_eq!(document(&["--all"])["rows"].as_array().unwrap().len() % 8, 0);
    let overview = document(&["--list"]);
    assert_eq!(
        (&overview["kind"], overview["distributions"].as_array().unwrap().len()),
        (&"overview".into(), 8)
    );
    let text = answered(&["--list"]);
    assert!(
        text.contains(
            "  p5          amd64  10de:2330 NVIDIA H100 SXM5 80GB (Hopper): 4xlarge 1, 48xlarge 8\n"
        ),
        "{text}"
    );
}

#[test]
fn this_machine_is_judged_with_its_own_configuration_and_without_network() {
    let ask = |machine: &Machine, args: &[&str]| {
        ran(binary().arg("catalog").args(args).arg("--root").arg(machine.root()))
    };
    let t4 = Machine::debian12().t4().file("/etc/gpu-bootstrap/a.toml", "[cuda]\ntoolkit = \"12.4\"\n");
    let found = ask(&t4, &[]);
    assert_eq!(found.code, 0, "{found:?}");
    assert!(found.stdout.starts_with("this machine on debian12 (amd64)\n"), "{}", found.stdout);
    assert!(found.stdout.contains("  CUDA toolkit    12.4\n"), "{}", found.stdout);
    let flag = ask(&t4, &["--cuda", "12.8"]);
    assert!(flag.stdout.contains("  CUDA toolkit    12.8\n"), "{}", flag.stdout);
    // One that is not here is not asked about with this one's configuration.
    let other = ask(&t4, &["--instance-type", "g4dn.xlarge", "--os", "debian12"]);
    assert!(other.stdout.contains("  CUDA toolkit    13.2\n"), "{}", other.stdout);
    // On Nitro the firmware has the instance type, and so the number of GPUs.
    let nitro = t4.file("/sys/class/dmi/id/product_name", "g4dn.12xlarge\n");
    assert!(ask(&nitro, &[]).stdout.contains("  expected GPUs   4\n"));
    let bare = ask(&Machine::debian12(), &[]);
    assert_eq!(bare.code, 0, "{bare:?}");
    assert!(bare.stdout.starts_with("This machine has no NVIDIA GPU; name another one"), "{}", bare.stdout);
    assert_eq!(ran(binary().args(["catalog", "--root", "/nonexistent"])).code, 2);
}
