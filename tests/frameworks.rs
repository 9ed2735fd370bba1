//! Python environments from locked wheels, through the real binary: a step with purpose-made wheels in a disposable root with the
//! distribution's Python and pip. docs/frameworks.md says the same in words; `tests/e2e/frameworks` installs and trains real ones.
#![allow(clippy::unwrap_used, reason = "test code: a panic is a failure with a place")]

#[path = "support/facts.rs"]
mod facts;
#[path = "support/machine.rs"]
mod machine;
#[path = "support/root.rs"]
mod root;
#[path = "support/wheels.rs"]
mod wheels;

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use gpu_bootstrap::action::Action;
use gpu_bootstrap::catalog::{Catalog, Choice, choose};
use gpu_bootstrap::config::Config;
use gpu_bootstrap::error::Code;
use gpu_bootstrap::plan;
use machine::{Ran, binary, ran};
use root::Root;

const NOTHING_ELSE: &str =
    "[driver]\nbranch = \"none\"\n[cuda]\ntoolkit = \"none\"\n[cudnn]\nversion = \"none\"\n";
const ENVIRONMENT: &str = "/opt/gpu-bootstrap/tools";
const SITE: &str = "/opt/gpu-bootstrap/tools/lib/python3.11/site-packages";

/// A root with a GPU on its bus, Python, and a step with an environment.
struct Scene {
    root: Root,
    lock: String,
}

impl Scene {
    fn new() -> Self {
        let root = Root::of("bookworm", &["python3-venv"]);
        for (file, value) in [("vendor", "0x10de"), ("device", "0x1eb8"), ("class", "0x030200")] {
            root.write(&format!("/sys/bus/pci/devices/0000:00:1e.0/{file}"), value);
        }
        root.write("/proc/sys/kernel/osrelease", "6.1.0-18-cloud-amd64\n");
        root.write("/proc/sys/kernel/random/boot_id", "0b6d2a9c-7c3e-4c55-9f0a-3c1f6a1d2e3f\n");
        root.write("/etc/gpu-bootstrap/none.toml", NOTHING_ELSE);
        fs::create_dir_all(root.at("/srv/wheels")).unwrap();
        Self { root, lock: String::new() }
    }

    /// Puts a wheel into the directory and into the lock.
    fn wheel(mut self, name: &str, version: &str, files: &[(&str, &str)]) -> Self {
        let sum = self.make(name, version, files);
        writeln!(self.lock, "{name}=={version} --hash=sha256:{sum} # 600 for: tests").unwrap();
        self.write_step();
        self
    }

    fn make(&self, name: &str, version: &str, files: &[(&str, &str)]) -> String {
        wheels::make(&self.root, "/srv/wheels", name, version, files)
    }

    fn write_step(&self) {
        let text = format!(
            "title = \"tools\"\nscope = \"image\"\n[[action]]\npython-environment = {{ path = \"{ENVIRONMENT}\", python = \"3.11\", \
             wheels = \"/srv/wheels\", requirements = '''{}''' }}\n",
            self.lock
        );
        self.root.write("/etc/gpu-bootstrap/steps.d/50-tools.toml", &text);
        for path in
            ["/etc/gpu-bootstrap/steps.d/50-tools.toml", "/etc/gpu-bootstrap/steps.d", "/etc/gpu-bootstrap"]
        {
            let mode = if path.ends_with("toml") { 0o644 } else { 0o755 };
            fs::set_permissions(self.root.at(path), fs::Permissions::from_mode(mode)).unwrap();
        }
    }

    fn command(&self) -> Command {
        let mut command = binary();
        command.args(["run", "--no-imds", "--root"]).arg(self.root.path());
        command
    }

    fn run(&self) -> Ran {
        ran(&mut self.command())
    }

    /// What the environment's Python prints.
    fn python(&self, program: &str) -> String {
        self.root.run(&format!("{ENVIRONMENT}/bin/python"), &["-c", program]).trim().to_owned()
    }

    #[track_caller]
    fn fails(&self, code: &str, words: &str) {
        let failed = self.run();
        assert_ne!(failed.code, 0, "{failed:?}");
        assert!(failed.stdout.contains(&format!("[{code}]")) && failed.stdout.contains(words), "{failed:?}");
    }
}

fn tools() -> Scene {
    Scene::new()
        .wheel("alpha", "1.2", &[("alpha/__init__.py", "answer = 42\n"), ("alpha/data.txt", "data\n")])
        .wheel("beta_tool", "0.1", &[("beta_tool.py", "import alpha\nanswer = alpha.answer\n")])
}

#[test]
fn locked_wheels_are_installed_once_and_damage_is_healed() {
    let scene = tools();
    let first = scene.run();
    assert_eq!(first.code, 0, "{first:?}");
    assert!(first.stdout.contains("done     tools"), "{first:?}");
    assert_eq!(scene.python("import beta_tool; print(beta_tool.answer)"), "42");
    // Nobody's dependency came along, and nothing of ours is left lying.
    assert!(!scene.root.at(&format!("{SITE}/not_asked_for")).exists());
    for gone in ["gpu-bootstrap-in-flight", "gpu-bootstrap-tmp"] {
        assert!(!scene.root.at(&format!("{ENVIRONMENT}/{gone}")).exists(), "{gone}");
    }
    let second = scene.run();
    assert!(second.code == 0 && second.stdout.contains("ok       tools"), "{second:?}");
    assert!(second.stdout.contains("Python 3.11 and 2 locked packages, each file in its size"), "{second:?}");

    let at = |path: &str| scene.root.at(path);
    let breaks: [(&str, &dyn Fn()); 6] = [
        ("a file is gone", &|| fs::remove_file(at(&format!("{SITE}/alpha/data.txt"))).unwrap()),
        ("a file is cut", &|| fs::write(at(&format!("{SITE}/alpha/__init__.py")), "").unwrap()),
        ("RECORD is gone", &|| {
            fs::remove_file(at(&format!("{SITE}/beta_tool-0.1.dist-info/RECORD"))).unwrap();
        }),
        ("a distribution is gone", &|| {
            fs::remove_dir_all(at(&format!("{SITE}/beta_tool-0.1.dist-info"))).unwrap();
        }),
        ("the interpreter is gone", &|| fs::remove_file(at(&format!("{ENVIRONMENT}/bin/python"))).unwrap()),
        ("a run was killed while it installed", &|| {
            fs::write(at(&format!("{ENVIRONMENT}/gpu-bootstrap-in-flight")), "alpha\n").unwrap();
        }),
    ];
    for (what, damage) in breaks {
        damage();
        let healed = scene.run();
        assert!(healed.code == 0 && healed.stdout.contains("done     tools"), "{what}: {healed:?}");
        assert_eq!(scene.python("import beta_tool; print(beta_tool.answer)"), "42", "{what}");
        assert_eq!(fs::read_to_string(at(&format!("{SITE}/alpha/data.txt"))).unwrap(), "data\n", "{what}");
        let quiet = scene.run();
        assert!(quiet.stdout.contains("ok       tools"), "{what}: {quiet:?}");
    }
}

#[test]
fn another_version_in_the_lock_takes_the_place_of_the_first() {
    let mut scene = Scene::new().wheel("alpha", "1.2", &[("alpha/old.py", "x = 1\n")]);
    assert_eq!(scene.run().code, 0);
    scene.lock.clear();
    let scene = scene.wheel("alpha", "1.3", &[("alpha/new.py", "x = 1\n")]);
    let run = scene.run();
    assert_eq!(run.code, 0, "{run:?}");
    let names: Vec<_> = fs::read_dir(scene.root.at(SITE)).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(
        names.iter().any(|n| n == "alpha-1.3.dist-info") && !names.iter().any(|n| n == "alpha-1.2.dist-info")
    );
    assert!(!scene.root.at(&format!("{SITE}/alpha/old.py")).exists());
}

#[test]
fn a_damaged_or_swapped_wheel_is_refused_by_name_and_a_missing_one_too() {
    let scene = tools();
    let wheel = scene.root.at("/srv/wheels/beta_tool-0.1-py3-none-any.whl");
    let whole = fs::read(&wheel).unwrap();
    let mut flipped = whole.clone();
    flipped[60] ^= 1;
    fs::write(&wheel, &flipped).unwrap();
    scene.fails("checksum-mismatch", "beta-tool==0.1 in /srv/wheels does not have the locked SHA-256");
    fs::write(&wheel, &whole[..whole.len() / 2]).unwrap();
    scene.fails("checksum-mismatch", "beta-tool==0.1");
    // A whole wheel of the same name and version, by somebody else.
    scene.make("beta_tool", "0.1", &[("beta_tool.py", "evil = True\n")]);
    scene.fails("checksum-mismatch", "beta-tool==0.1");
    assert!(!scene.root.at(&format!("{SITE}/beta_tool.py")).exists());
    fs::remove_file(&wheel).unwrap();
    scene.fails("wheel-missing", "/srv/wheels has no wheel of beta-tool==0.1");
    // A source archive would be built by its own setup.py, as root.
    scene.root.run("sh", &["-c", "mkdir -p /tmp/beta_tool-0.1 && cd /tmp && echo 'open(\"/ran\", \"w\")' >beta_tool-0.1/setup.py && \
         tar czf /srv/wheels/beta_tool-0.1.tar.gz beta_tool-0.1"]);
    scene.fails("wheel-missing", "beta-tool==0.1");
    assert!(!scene.root.at("/ran").exists());
    fs::write(&wheel, &whole).unwrap();
    assert_eq!(scene.run().code, 0);
}

#[test]
fn a_killed_run_is_finished_by_the_next() {
    let scene = tools();
    // At a moment of each kind: the environment half made, pip at work, nearly done.
    let mut killed = 0;
    for milliseconds in [300, 1200, 2500, 4000, 5500, 7000] {
        let mut child = scene.command().stdout(std::process::Stdio::null()).spawn().unwrap();
        let end = Instant::now() + Duration::from_millis(milliseconds);
        while Instant::now() < end && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(20));
        }
        if child.try_wait().unwrap().is_none() {
            child.kill().unwrap();
            child.wait().unwrap();
            killed += 1;
        }
    }
    assert!(killed >= 2, "killed {killed} times");
    let finished = scene.run();
    assert_eq!(finished.code, 0, "{finished:?}");
    assert_eq!(scene.python("import beta_tool; print(beta_tool.answer)"), "42");
    let left = fs::read_dir(scene.root.at("/opt/gpu-bootstrap")).unwrap().map(|e| e.unwrap().file_name());
    assert_eq!(left.collect::<Vec<_>>(), ["tools"]);
}

#[test]
fn uninstall_takes_an_environment_back_but_not_one_with_others_packages() {
    let scene = tools();
    assert_eq!(scene.run().code, 0);
    let uninstall = || {
        let mut command = binary();
        ran(command.args(["uninstall", "--yes", "--root"]).arg(scene.root.path()))
    };
    // Somebody has put a package of their own into it.
    let theirs = format!("{SITE}/theirs-1.0.dist-info");
    scene.root.write(&format!("{theirs}/METADATA"), "Name: theirs\n");
    let kept = uninstall();
    assert!(kept.stdout.contains(&format!("leave    {ENVIRONMENT}: it has theirs, too")), "{kept:?}");
    assert_eq!(scene.python("import beta_tool; print(beta_tool.answer)"), "42");
    // What stays stays known.
    fs::remove_dir_all(scene.root.at(&theirs)).unwrap();
    let gone = uninstall();
    assert!(gone.stdout.contains(&format!("remove   {ENVIRONMENT}\n")), "{gone:?}");
    assert!(
        !scene.root.at(ENVIRONMENT).exists() && !scene.root.at("/opt/gpu-bootstrap").exists(),
        "{gone:?}"
    );
    assert!(!scene.root.at("/var/lib/gpu-bootstrap/added.json").exists());
}

#[test]
fn a_directory_that_is_somebody_elses_is_left_alone() {
    let scene = tools();
    scene.root.write(&format!("{ENVIRONMENT}/thesis.tex"), "years of work");
    scene.fails(
        "path-in-use",
        "/opt/gpu-bootstrap/tools holds something that is not ours; it was left as it is",
    );
    assert_eq!(scene.root.read(&format!("{ENVIRONMENT}/thesis.tex")), "years of work");
}

/// What the plan for this machine and configuration says of frameworks.
fn planned(
    facts: &gpu_bootstrap::facts::Facts,
    config: &str,
) -> Result<Vec<Action>, gpu_bootstrap::error::Error> {
    let config: Config = toml::from_str(config).unwrap();
    let Choice::Install(stack) = choose(&Catalog::embedded().unwrap(), facts, &config, None)? else {
        panic!("nothing")
    };
    let plan = plan::build(facts, &config, &stack, &[])?;
    let steps = plan.steps.into_iter().filter(|s| s.id == "frameworks" || s.id == "training");
    Ok(steps.flat_map(|s| s.actions).collect())
}

#[test]
fn the_plan_has_the_lock_that_fits_the_machine() {
    let actions =
        planned(&facts::instance("debian12", "g5.xlarge"), "[frameworks]\npython = [\"torch\", \"keras\"]")
            .unwrap();
    let [Action::AptPackage(_), Action::PythonEnvironment(environment), Action::TrainingCheck(training)] =
        &actions[..]
    else {
        panic!("{actions:?}")
    };
    assert!(environment.path.starts_with("/opt/gpu-bootstrap/keras-torch-cuda1"), "{}", environment.path);
    assert_eq!(environment.python, "3.11");
    assert!(environment.requirements.contains("torch==2.") && environment.requirements.contains("keras==3."));
    assert!(!environment.requirements.contains("tensorflow"), "{}", environment.requirements);
    assert!(training.gpu);

    let cpu = planned(
        &facts::instance("debian12", "g5.xlarge"),
        "[frameworks]\npython = [\"jax\"]\ndevice = \"cpu\"\npath = \"/opt/ml\"\ntraining-check = false",
    )
    .unwrap();
    assert!(
        matches!(&cpu[..], [Action::AptPackage(_), Action::PythonEnvironment(e)] if e.path == "/opt/ml" && !e.requirements.contains("nvidia"))
    );
    assert!(planned(&facts::instance("debian12", "g5.xlarge"), "").unwrap().is_empty());
}

#[test]
fn what_does_not_exist_is_refused_before_anything_is_done() {
    let config = "[frameworks]\npython = [\"tensorflow\"]";
    for (distro, instance, config, why) in [
        ("ubuntu2004", "g5.xlarge", config, "no wheels of these frameworks for cuda12 and Python 3.8"),
        ("ubuntu2404", "g5g.xlarge", config, "there are no locks of the frameworks for arm64"),
        ("ubuntu2204", "p2.xlarge", config, "needs driver 525.60.13"),
        (
            "debian12",
            "g5.xlarge",
            "[frameworks]\npython = [\"tensorflow\"]\ndevice = \"cuda13\"",
            "no wheel of tensorflow for cuda13",
        ),
    ] {
        let error = planned(&facts::instance(distro, instance), config).unwrap_err();
        assert_eq!(error.code(), Code::ImpossibleWish, "{distro} {instance}: {error}");
        assert!(error.message().contains(why), "{distro} {instance}: {error}");
    }
}

/// The table of docs/frameworks.md is made from the locks: `UPDATE_DOCS=1 cargo test --test frameworks` writes it.
#[test]
fn every_lock_says_what_it_is_and_the_page_says_it_too() {
    const BEGIN: &str = "| Python | Device | Wheels | Download | Versions |\n|---|---|---|---|---|\n";
    let house = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut rows = Vec::new();
    for entry in fs::read_dir(house.join("steps/frameworks")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "txt") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let (device, python) = name.split_once('-').unwrap();
        assert!(
            text.lines().next().unwrap().contains(&format!("for {device}, Python {python}, x86_64")),
            "{name}"
        );
        assert!(!text.contains("http"), "{name}: no address of any index");
        let lines: Vec<_> = text.lines().filter(|l| !l.starts_with('#')).collect();
        let bytes: u64 = lines
            .iter()
            .map(|l| l.split(" # ").nth(1).unwrap().split(' ').next().unwrap().parse::<u64>().unwrap())
            .sum();
        let frameworks = ["torch", "tensorflow", "tensorflow-cpu", "jax", "keras", "tensorboard"];
        let versions: Vec<_> = frameworks
            .iter()
            .filter_map(|f| {
                lines.iter().find_map(|l| l.strip_prefix(&format!("{f}=="))).map(|rest| (f, rest))
            })
            .map(|(f, rest)| format!("{f} {}", rest.split(' ').next().unwrap()))
            .collect();
        let minor: u32 = python.split_once('.').unwrap().1.parse().unwrap();
        let row = format!(
            "| {python} | `{device}` | {} | {:.1} GB | {} |\n",
            lines.len(),
            f64::from(u32::try_from(bytes / 1_000_000).unwrap()) / 1000.0,
            versions.join(", ")
        );
        rows.push((minor, device.to_owned(), row));
    }
    rows.sort();
    let table: String = rows.iter().map(|(_, _, row)| row.as_str()).collect();
    assert!(rows.len() >= 15, "{table}");
    let path = house.join("docs/frameworks.md");
    let page = fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once(BEGIN).unwrap();
    let (found, after) = rest.split_once("\n\n").unwrap();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, format!("{before}{BEGIN}{table}\n{after}")).unwrap();
    } else {
        assert_eq!(format!("{found}\n"), table, "UPDATE_DOCS=1 cargo test --test frameworks");
    }
}
