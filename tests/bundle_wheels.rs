//! Wheels in bundles, with the real pip of a disposable root: found on an index by the sums of a lock, kept, refused with every
//! flaw, and installed where no index can be reached. `tests/e2e/rig/bundle.py` does it with real frameworks.
#![allow(clippy::unwrap_used, reason = "test code: a panic is a failure with a place")]

#[path = "support/bundle_scene.rs"]
mod bundle_scene;
#[path = "support/debs.rs"]
mod debs;
#[path = "support/machine.rs"]
mod machine;
#[path = "support/repository.rs"]
mod repository;
#[path = "support/root.rs"]
mod root;
#[path = "support/web.rs"]
mod web;
#[path = "support/wheels.rs"]
mod wheels;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use bundle_scene::{Scene, copy, files, files_or_none, is_installed, told, verify};
use machine::{binary, ran};
use root::Root;
use web::{Answer, Web};

const STEP: &str = "/etc/gpu-bootstrap/steps.d/50-tools.toml";
const ENVIRONMENT: &str = "/opt/tools";
const SITE: &str = "/opt/tools/lib/python3.11/site-packages";

/// A machine with a GPU and a step of its own that wants wheels, an index that has them, and what bundles are made from.
struct Tools {
    scene: Scene,
    root: Root,
    index: Web,
    lock: String,
}

/// An index of the wheels in a directory, each with its sum on its project's page.
fn index(dir: PathBuf) -> Web {
    Web::answer(move |path| {
        let name = path.rsplit('/').next().unwrap_or_default();
        if !name.is_empty() {
            return fs::read(dir.join(name)).map_or(Answer::Missing, Answer::Body);
        }
        let project = path.trim_end_matches('/').rsplit('/').next().unwrap_or_default().replace('-', "_");
        let mut page = String::from("<!DOCTYPE html><html><body>\n");
        for entry in fs::read_dir(&dir).unwrap() {
            let file = entry.unwrap().file_name().into_string().unwrap();
            if file.starts_with(&format!("{project}-")) {
                let (sum, _) = repository::sum(&fs::read(dir.join(&file)).unwrap());
                writeln!(page, "<a href=\"../../files/{file}#sha256={sum}\">{file}</a><br/>").unwrap();
            }
        }
        Answer::Body(page.into_bytes())
    })
}

impl Tools {
    fn new() -> Self {
        let root = Root::of("bookworm", &["python3-venv"]);
        for (file, value) in [("vendor", "0x10de"), ("device", "0x1eb8"), ("class", "0x030200")] {
            root.write(&format!("/sys/bus/pci/devices/0000:00:1e.0/{file}"), value);
        }
        root.write("/proc/sys/kernel/osrelease", "6.1.0-18-cloud-amd64\n");
        root.write("/proc/sys/kernel/random/boot_id", "0b6d2a9c-7c3e-4c55-9f0a-3c1f6a1d2e3f\n");
        let scene = Scene::new();
        scene.seed(&root);
        fs::create_dir_all(root.at("/srv/wheels")).unwrap();
        let mut lock = String::new();
        for (name, version, file, text) in [
            ("alpha", "1.2", "alpha/__init__.py", "answer = 42\n"),
            ("beta_tool", "0.1", "beta_tool.py", "import alpha\nanswer = alpha.answer\n"),
        ] {
            let sum = wheels::make(&root, "/srv/wheels", name, version, &[(file, text)]);
            let size = fs::metadata(root.at(&format!("/srv/wheels/{name}-{version}-py3-none-any.whl")))
                .unwrap()
                .len();
            writeln!(lock, "{name}=={version} --hash=sha256:{sum} # {size}").unwrap();
        }
        let index = index(root.at("/srv/wheels"));
        let tools = Self { scene, root, index, lock };
        tools.write_step(&tools.index, &tools.lock);
        tools
    }

    fn write_step(&self, index: &Web, lock: &str) {
        let text = format!(
            "title = \"tools\"\nscope = \"image\"\n[[action]]\npython-environment = {{ path = \"{ENVIRONMENT}\", \
             python = \"3.11\", index = \"{}/simple\", requirements = '''{lock}''' }}\n",
            index.url()
        );
        self.root.write(STEP, &text);
        for (path, mode) in
            [(STEP, 0o644), ("/etc/gpu-bootstrap/steps.d", 0o755), ("/etc/gpu-bootstrap", 0o755)]
        {
            fs::set_permissions(self.root.at(path), std::os::unix::fs::PermissionsExt::from_mode(mode))
                .unwrap();
        }
    }

    /// For this machine, whose own steps count.
    fn create(&self, out: &Path) -> Command {
        let mut command = binary();
        let at = |name: &str| self.scene.at(name).display().to_string();
        command.args(["bundle", "create", "--no-imds", "--json", "--root"]).arg(self.root.path());
        command.args(["--keyring", &at("dist.gpg"), "--sources", &at("archive.sources")]);
        command.args(["--config", &at("create.toml"), "--catalog", &at("catalog")]);
        command.args(["--accept-licence", "nvidia", "--output"]).arg(out);
        command
    }

    /// Makes a bundle where the machine finds it, and returns the manifest's sum.
    fn made(&self) -> String {
        let made = ran(&mut self.create(&self.root.at("/srv/bundle")));
        assert_eq!(made.code, 0, "{}", made.stderr);
        let document: serde_json::Value = serde_json::from_str(&made.stdout).unwrap();
        document["manifest-sha256"].as_str().unwrap().to_owned()
    }

    fn answer(&self) -> String {
        let program = "import beta_tool; print(beta_tool.answer)";
        self.root.run(&format!("{ENVIRONMENT}/bin/python"), &["-c", program]).trim().to_owned()
    }
}

#[test]
fn wheels_come_along_and_are_installed_where_no_index_is_asked() {
    let tools = Tools::new();
    let sha256 = tools.made();
    let bundle = tools.root.at("/srv/bundle");
    let names = files(&bundle);
    for wheel in ["alpha-1.2-py3-none-any.whl", "beta_tool-0.1-py3-none-any.whl"] {
        assert!(names.iter().any(|n| n.ends_with(&format!("/wheels/{wheel}"))), "{wheel}: {names:#?}");
    }
    assert_eq!(verify(&bundle, &["--sha256", &sha256]).code, 0);
    let asked = tools.index.requests().len();
    let run = || told(&mut tools.scene.run(&tools.root, "/srv/bundle", &sha256));
    let first = run();
    assert_eq!(first.code, 0, "{}", first.stderr);
    assert_eq!(tools.answer(), "42");
    assert!(is_installed(&tools.root, "cuda-toolkit-12-8"));
    // All packages are there, but a wheel is damaged: the bundle is looked at again.
    fs::remove_file(tools.root.at(&format!("{SITE}/beta_tool.py"))).unwrap();
    let healed = run();
    assert_eq!(healed.code, 0, "{}", healed.stderr);
    assert_eq!(tools.answer(), "42");
    assert_eq!(tools.index.requests().len(), asked, "{:?}", tools.index.requests());
    // Where all is there, the bundle need not be.
    fs::remove_dir_all(&bundle).unwrap();
    let quiet = run();
    assert_eq!(quiet.code, 0, "{}", quiet.stderr);
}

#[test]
fn another_wheel_is_refused_by_name_wherever_it_lies() {
    let tools = Tools::new();
    let sha256 = tools.made();
    let bundle = tools.root.at("/srv/bundle");
    copy(&bundle, &tools.scene.at("whole"));
    let name = files(&bundle).into_iter().find(|n| n.contains("beta_tool-0.1")).unwrap();
    let mut bytes = fs::read(bundle.join(&name)).unwrap();
    bytes[60] ^= 1;
    fs::write(bundle.join(&name), &bytes).unwrap();
    let refused = told(&mut tools.scene.run(&tools.root, "/srv/bundle", &sha256));
    assert!(refused.code == 1 && refused.stderr.contains("[bundle-tampered]"), "{}", refused.stderr);
    assert!(refused.stderr.contains(&name), "{}", refused.stderr);
    // A manifest that goes with it, pinned by whoever was told so: pip has the lock's own sums.
    let (sum, size) = repository::sum(&bytes);
    let text = fs::read_to_string(bundle.join("manifest.json")).unwrap();
    let (was, _) = repository::sum(&fs::read(tools.scene.at("whole").join(&name)).unwrap());
    let forged = text.replace(&was, &sum);
    assert!(forged != text && forged.contains(&format!("\"size\": {size}")));
    fs::write(bundle.join("manifest.json"), &forged).unwrap();
    let (forged, _) = repository::sum(forged.as_bytes());
    let refused = told(&mut tools.scene.run(&tools.root, "/srv/bundle", &forged));
    assert!(
        refused.code != 0 && refused.stderr.contains("has no wheel of beta-tool==0.1"),
        "{}",
        refused.stderr
    );
    assert!(!tools.root.at(&format!("{SITE}/beta_tool.py")).exists());

    // An index that gives other bytes than its page says makes no bundle, and one that lacks a wheel neither.
    let place = tools.root.at("/srv/wheels/beta_tool-0.1-py3-none-any.whl");
    let whole = fs::read(&place).unwrap();
    let honest = tools.root.at("/srv/wheels");
    let lying = Web::answer(move |path| {
        let name = path.rsplit('/').next().unwrap_or_default();
        let bytes = fs::read(honest.join("beta_tool-0.1-py3-none-any.whl")).unwrap();
        let (sum, _) = repository::sum(&bytes);
        let flipped = [&bytes[..60], &[bytes[60] ^ 1], &bytes[61..]].concat();
        if name.starts_with("beta") {
            return Answer::Body(flipped);
        }
        Answer::Body(format!("<a href=\"/beta_tool-0.1-py3-none-any.whl#sha256={sum}\">").into_bytes())
    });
    let beta = tools.lock.lines().find(|l| l.starts_with("beta")).unwrap().to_owned()
        + "
";
    tools.write_step(&lying, &beta);
    let refused = ran(&mut tools.create(&tools.scene.at("out")));
    assert!(refused.code == 1 && refused.stderr.contains("beta_tool-0.1"), "{}", refused.stderr);
    assert!(refused.stderr.contains("sha256") || refused.stderr.contains("SHA-256"), "{}", refused.stderr);
    assert!(
        !files_or_none(&tools.scene.at("out")).iter().any(|n| n.contains("/wheels/") || n == "manifest.json")
    );
    fs::remove_file(&place).unwrap();
    tools.write_step(&tools.index, &tools.lock);
    let refused = ran(&mut tools.create(&tools.scene.at("other")));
    assert!(refused.code == 1 && refused.stderr.contains("no wheel of beta-tool==0.1"), "{}", refused.stderr);
    fs::write(&place, whole).unwrap();
}

#[test]
fn a_bundle_without_the_wheels_that_are_asked_for_is_another_ones() {
    let scene = Scene::new();
    let sha256 = scene.made("bundle");
    let root = Root::of("bookworm", &[]);
    scene.seed(&root);
    copy(&scene.at("bundle"), &root.at("/srv/bundle"));
    let mut run = scene.run(&root, "/srv/bundle", &sha256);
    let config = fs::read_to_string(scene.at("run.toml")).unwrap();
    scene.write("run.toml", &format!("{config}[frameworks]\npython = [\"jax\"]\ndevice = \"cpu\"\n"));
    let refused = told(&mut run);
    assert_eq!(refused.code, 3, "{}", refused.stderr);
    assert!(
        refused.stderr.contains("has no wheel of") && refused.stderr.contains("jax for cpu and Python 3.11"),
        "{}",
        refused.stderr
    );
    assert!(!is_installed(&root, "cuda-toolkit-12-8"), "before anything is done");
}

#[test]
fn a_making_that_failed_does_not_fetch_again_what_came() {
    let tools = Tools::new();
    let (beta, aside) =
        (tools.root.at("/srv/wheels/beta_tool-0.1-py3-none-any.whl"), tools.root.at("/srv/aside"));
    let page = index(tools.root.at("/srv/wheels"));
    let (gone, from) = (aside.clone(), tools.root.at("/srv/wheels"));
    // Its page names a wheel that cannot be had.
    let broken = Web::answer(move |path| match path.rsplit('/').next().unwrap_or_default() {
        "" => Answer::Redirect(format!("{}{path}", page.url())),
        name if name.starts_with("beta") && !gone.exists() => Answer::Missing,
        name => fs::read(from.join(name)).map_or(Answer::Missing, Answer::Body),
    });
    tools.write_step(&broken, &tools.lock);
    let out = tools.scene.at("out");
    let failed = ran(&mut tools.create(&out));
    assert!(failed.code == 1 && failed.stderr.contains("beta_tool-0.1"), "{}", failed.stderr);
    let kept = files_or_none(&out);
    assert!(
        kept.iter().any(|n| n.contains("/wheels/alpha-1.2")) && !kept.contains(&"manifest.json".to_owned()),
        "{kept:?}"
    );
    fs::copy(&beta, &aside).unwrap();
    let asked = broken.requests().len();
    let made = ran(&mut tools.create(&out));
    assert_eq!(made.code, 0, "{}", made.stderr);
    assert_eq!(verify(&out, &[]).code, 0);
    let again = broken.requests().split_off(asked);
    assert!(
        again.iter().any(|r| r.contains("beta_tool-0.1")) && !again.iter().any(|r| r.contains("alpha-1.2")),
        "{again:?}"
    );
}
