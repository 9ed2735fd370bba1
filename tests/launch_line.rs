//! `launch-line`, through the real binary: its lines for each launcher, to the letter; that a shell can read them; and what it
//! refuses.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/machine.rs"]
mod machine;

use std::io::Write;
use std::process::{Command, Stdio};

use machine::{Machine, Ran, binary, ran};
use serde_json::Value;

fn asked(args: &[&str]) -> Ran {
    ran(binary().arg("launch-line").args(args))
}

#[track_caller]
fn line(args: &[&str]) -> String {
    let answer = asked(args);
    assert_eq!(answer.code, 0, "{answer:?}");
    answer.stdout
}

#[track_caller]
fn refused(args: &[&str], code: i32, words: &str) {
    let answer = asked(args);
    assert!(answer.code == code && answer.stderr.contains(words), "{args:?}: {answer:?}");
}

/// `bash -n`: it can be read.
#[track_caller]
fn readable(script: &str) {
    let mut child =
        Command::new("bash").arg("-n").stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{script}\n{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn torchrun() {
    let one = line(&["--for", "torchrun", "--instance-type", "g5.12xlarge"]);
    assert_eq!(
        one,
        "# 1 x 4 GPUs (g5.12xlarge), by the catalog\ntorchrun --standalone --nproc-per-node=4 train.py\n"
    );
    let four = line(&[
        "--for",
        "torchrun",
        "--instance-type",
        "p5.48xlarge",
        "--nodes",
        "4",
        "--head",
        "10.0.0.1",
        "--job-id",
        "run 7",
        "--",
        "train.py",
        "--data",
        "/mnt/my data",
        "it's",
    ]);
    assert_eq!(
        four,
        "# 4 x 8 GPUs (p5.48xlarge), by the catalog\n\
         # EFA: the security group lets everything in and out between its own members\n\
         # on each of the 4 machines, the head too\n\
         torchrun --nnodes=4 --nproc-per-node=8 --rdzv-backend=c10d --rdzv-endpoint=10.0.0.1:29500 --rdzv-id='run 7' \
         train.py --data '/mnt/my data' 'it'\\''s'\n"
    );
    readable(&one);
    readable(&four);
    let six = line(&[
        "--for",
        "torchrun",
        "--instance-type",
        "g5.xlarge",
        "--nodes",
        "2",
        "--head",
        "fd00::1",
        "--port",
        "1234",
    ]);
    assert!(
        six.contains("--rdzv-endpoint=[fd00::1]:1234 ")
            && six.contains("# no EFA devices: machines exchange data by TCP\n"),
        "{six}"
    );
}

#[test]
fn slurm() {
    let script = line(&["--for", "slurm", "--instance-type", "p4d.24xlarge", "--nodes", "2"]);
    let expected = r#"#!/bin/bash
# 2 x 8 GPUs (p4d.24xlarge), by the catalog
# EFA: the security group lets everything in and out between its own members
#SBATCH --job-name=train
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
set -euo pipefail
if [ -r /etc/profile.d/gpu-bootstrap-nccl.sh ]; then . /etc/profile.d/gpu-bootstrap-nccl.sh; fi
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun torchrun --nnodes="$SLURM_JOB_NUM_NODES" --nproc-per-node=8 --rdzv-backend=c10d \
    --rdzv-endpoint="$head:29500" --rdzv-id="$SLURM_JOB_ID" train.py
"#;
    assert_eq!(script, expected);
    readable(&script);
}

/// The script, run with stand-ins for Slurm's programs: what torchrun is told in the end.
#[test]
fn a_batch_script_starts_torchrun_with_the_jobs_own_numbers() {
    let script = line(&["--for", "slurm", "--instance-type", "g5.48xlarge", "--nodes", "2", "--", "a b.py"]);
    let stand_ins = "scontrol() { [ \"$3\" = 'ip-[1-2]' ] && printf 'ip-1\\nip-2\\n'; }\n\
                     srun() { printf '%s\\n' \"$@\"; }\nSLURM_JOB_NODELIST='ip-[1-2]' SLURM_JOB_NUM_NODES=2 SLURM_JOB_ID=77\n";
    let output = Command::new("bash").args(["-c", &format!("{stand_ins}{script}")]).output().unwrap();
    let words = String::from_utf8(output.stdout).unwrap();
    let expected = "torchrun\n--nnodes=2\n--nproc-per-node=8\n--rdzv-backend=c10d\n--rdzv-endpoint=ip-1:29500\n--rdzv-id=77\na b.py\n";
    assert_eq!(words, expected, "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn parallelcluster() {
    let queue = line(&[
        "--for",
        "parallelcluster",
        "--instance-type",
        "p5.48xlarge",
        "--nodes",
        "16",
        "--subnet",
        "subnet-0123456789abcdef0",
        "--name",
        "h100",
    ]);
    let expected = "\
# 16 x 8 GPUs (p5.48xlarge), by the catalog
# EFA: the security group lets everything in and out between its own members
Scheduling:
  Scheduler: slurm
  SlurmQueues:
    - Name: h100
      ComputeResources:
        - Name: p5-48xlarge
          InstanceType: p5.48xlarge
          MinCount: 16
          MaxCount: 16
          Efa:
            Enabled: true
      Networking:
        SubnetIds:
          - subnet-0123456789abcdef0
        PlacementGroup:
          Enabled: true
";
    assert_eq!(queue, expected);
    let one = line(&["--for", "parallelcluster", "--instance-type", "g5.xlarge", "--subnet", "subnet-0a"]);
    assert!(!one.contains("Efa") && !one.contains("PlacementGroup"), "{one}");
}

#[test]
fn ray() {
    let three =
        line(&["--for", "ray", "--instance-type", "g6e.48xlarge", "--nodes", "3", "--head", "10.0.0.1"]);
    assert!(
        three.ends_with(
            "# on 10.0.0.1\nray start --head --node-ip-address=10.0.0.1 --port=6379 --num-gpus=8\n\
             # on each of the other 2 machines\nray start --address=10.0.0.1:6379 --num-gpus=8\n"
        ),
        "{three}"
    );
    readable(&three);
    let named = line(&["--for", "ray", "--instance-type", "g5.xlarge", "--nodes", "2", "--head", "node-1"]);
    assert!(
        named.contains("ray start --head --port=6379") && named.contains("--address=node-1:6379"),
        "{named}"
    );
    assert!(
        line(&["--for", "ray", "--instance-type", "g5.xlarge"])
            .ends_with("ray start --head --port=6379 --num-gpus=1\n")
    );
}

#[test]
fn this_machine_tells_what_its_bus_has() {
    let machine = Machine::debian12()
        .pci("0000:00:1e.0", 0x10de, 0x2237, 0x0302)
        .pci("0000:00:1f.0", 0x10de, 0x2237, 0x0302)
        .pci("0000:00:1d.0", 0x1d0f, 0xefa0, 0x0200)
        .file("/sys/class/dmi/id/product_name", "g5.12xlarge\n");
    let root = machine.outside("/").display().to_string();
    let text = line(&["--for", "slurm", "--nodes", "2", "--root", &root]);
    assert!(text.contains("# 2 x 2 GPUs (g5.12xlarge), by this machine's PCI bus\n"), "{text}");
    let json: Value = serde_json::from_str(&line(&["--for", "torchrun", "--json", "--root", &root])).unwrap();
    assert_eq!(json["node"]["gpus"], 2);
    assert_eq!(json["node"]["efa_devices"], 1);
    assert_eq!(json["text"], "torchrun --standalone --nproc-per-node=2 train.py\n");
    assert_eq!((&json["schema"], &json["launcher"]), (&Value::from(1), &Value::from("torchrun")));
}

#[test]
fn a_refusal_names_what_is_missing() {
    let p5 = |rest: &[&'static str]| [&["--instance-type", "p5.48xlarge", "--nodes", "2"], rest].concat();
    refused(&p5(&["--for", "torchrun"]), 2, "torchrun on 2 machines needs --head");
    refused(&p5(&["--for", "ray"]), 2, "Ray on 2 machines needs --head");
    refused(&p5(&["--for", "parallelcluster"]), 2, "needs --subnet");
    refused(&p5(&["--for", "parallelcluster", "--subnet", "10.0.0.0/24"]), 2, "is no subnet");
    for head in ["a b", "$(id)", "10.0.0.1:29500", "-x", ""] {
        let answer =
            asked(&p5(&["--for", "torchrun"]).into_iter().chain(["--head", head]).collect::<Vec<_>>());
        assert_eq!(answer.code, 2, "{head}: {answer:?}");
    }
    refused(&p5(&["--for", "slurm", "--name", "Train 1"]), 2, "is no name for a queue");
    refused(&["--for", "slurm", "--instance-type", "p5.49xlarge"], 2, "p5.49xlarge is not in the catalog");
    refused(&["--for", "slurm", "--instance-type", "g4ad.xlarge"], 3, "which CUDA cannot use");
    refused(&["--for", "mpirun"], 2, "torchrun, slurm, parallelcluster, ray");
    let machine = Machine::debian12();
    let root = machine.outside("/").display().to_string();
    refused(&["--for", "slurm", "--root", &root], 3, "tells nothing of the fleet");
}

#[test]
fn a_number_that_no_source_confirms_is_said() {
    let text = line(&["--for", "torchrun", "--instance-type", "p6e-gb200.36xlarge"]);
    assert!(text.contains("# no source confirms that p6e-gb200.36xlarge has 4 GPUs"), "{text}");
}
