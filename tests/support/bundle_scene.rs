//! What bundles are made from and installed into: a repository laid out like NVIDIA's, one that stands for the
//! distribution's, a package file by URL, and disposable roots whose own sources lead nowhere.
#![allow(dead_code, unreachable_pub, reason = "shared between test files, not each of which uses all of it")]
#![allow(clippy::unwrap_used, reason = "test code: a panic is a failure with a place")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::debs::{self, Deb};
use super::machine::{Ran, binary, ran};
use super::repository::{Key, Package, Repository, sum};
use super::root::Root;
use super::web::Web;

/// What a bundle is made from.
pub struct Scene {
    pub dir: tempfile::TempDir,
    pub nvidia: Repository,
    pub web: Web,
    key: Key,
    dist: debs::Repository,
    dist_key: debs::Key,
}

impl Scene {
    pub fn new() -> Self {
        let key = Key::generate("bundle test");
        let nvidia = Repository::new("debian12", "x86_64")
            .with(&Package::new("cuda-toolkit-12-8", "12.8.1-1").depends("cuda-part-12-8, dist-lib (>= 1)"))
            .with(&Package::new("cuda-part-12-8", "12.8.1-1"))
            .with(&Package::new("cuda-not-wanted", "1"));
        nvidia.publish(&key);
        let web = Web::serve(nvidia.root());
        let dir = tempfile::tempdir().unwrap();
        let (dist_key, dist) = (debs::Key::new(), debs::Repository::new(dir.path(), "dist"));
        let scene = Self { dir, nvidia, web, key, dist, dist_key };
        fs::create_dir_all(scene.at("catalog")).unwrap();
        fs::create_dir_all(scene.at("machine/var/lib/dpkg")).unwrap();
        let armour = &scene.key.armoured;
        scene.write(
            "catalog/repositories.toml",
            &format!(
                "schema = 1\n[[key]]\nid = \"test\"\nfingerprint = \"{}\"\narmour = '''\n{armour}'''\n\
                 [[repository]]\ndistro = \"debian12\"\nkey = \"test\"\n",
                scene.key.fingerprint
            ),
        );
        let dist = &scene.dist;
        dist.add(
            &Deb::new("dist-lib", "2.0")
                .field("Depends", "base-thing (>= 5), base-other")
                .file("/usr/share/dist/lib", "x"),
        );
        dist.add(&Deb::new("base-thing", "5").field("Priority", "required"));
        dist.add(&Deb::new("base-other", "1").field("Priority", "required"));
        dist.add(&Deb::new("dist-apart", "1"));
        dist.publish(Some(&scene.dist_key));
        scene.dist_key.export(&scene.at("dist.gpg"));
        let uri = format!("file:{}", scene.at("srv/dist").display());
        scene.write("dist.sources", &format!("Types: deb\nURIs: {uri}\nSuites: ./\n"));
        // As `debs::Repository` has it, sources files end in `.list`; both forms are read.
        fs::rename(scene.at("dist.sources"), scene.at("archive.sources")).unwrap();
        let cudnn = Deb::new("libcudnn8", "8.9.7.29-1").arch("amd64").file("/usr/lib/libcudnn.so.8", "cudnn");
        let cudnn = cudnn.build(&scene.at("files"));
        fs::copy(&cudnn, scene.nvidia.root().join("cudnn.deb")).unwrap();
        let (sha256, _) = sum(&fs::read(cudnn).unwrap());
        let url = scene.web.url();
        scene.write(
            "create.toml",
            &format!(
                "[source]\npackages = \"{url}\"\n[driver]\nbranch = \"none\"\n[cuda]\ntoolkit = \"12.8\"\n\
                 [cudnn]\ndeb = [{{ url = \"{url}/cudnn.deb\", sha256 = \"{sha256}\" }}]\n"
            ),
        );
        scene
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        fs::write(self.at(name), text).unwrap();
    }

    pub fn create(&self, output: &str) -> Command {
        let mut command = binary();
        let text = |name: &str| self.at(name).display().to_string();
        command.args(["bundle", "create", "--no-imds", "--os", "debian12", "--instance-type", "g4dn.xlarge"]);
        command.args(["--keyring", &text("dist.gpg"), "--sources", &text("archive.sources")]);
        command.args(["--config", &text("create.toml"), "--catalog", &text("catalog")]);
        command.args(["--accept-licence", "nvidia", "--output", output]);
        command
    }

    /// Makes the bundle in a directory of the scene, and returns the manifest's sum.
    pub fn made(&self, name: &str) -> String {
        let made = ran(self.create(self.at(name).to_str().unwrap()).arg("--json"));
        assert_eq!(made.code, 0, "{}", made.stderr);
        let document: serde_json::Value = serde_json::from_str(&made.stdout).unwrap();
        document["manifest-sha256"].as_str().unwrap().to_owned()
    }

    /// The distribution has a newer version of one of its packages.
    pub fn update(&self, version: &str) {
        self.dist.add(
            &Deb::new("dist-lib", version)
                .field("Depends", "base-thing (>= 5), base-other")
                .file("/usr/share/dist/lib", version),
        );
        self.dist.publish(Some(&self.dist_key));
    }

    /// Installs what a bundle takes as installed.
    pub fn seed(&self, root: &Root) {
        fs::copy(self.at("srv/dist/base-other_1_all.deb"), root.at("/base.deb")).unwrap();
        root.run("dpkg", &["--install", "/base.deb"]);
    }

    /// Configures a root for the bundle and runs the agent in it.
    pub fn run(&self, root: &Root, place: &str, sha256: &str) -> Command {
        root.write("/etc/apt/sources.list", "deb http://192.0.2.1/debian bookworm main\n");
        root.write("/proc/sys/kernel/random/boot_id", "0b6d2a9c-7c3e-4c55-9f0a-3c1f6a1d2e3f\n");
        root.write("/proc/sys/kernel/osrelease", "6.1.0-18-cloud-amd64\n");
        self.write(
            "run.toml",
            &format!(
                "[source]\npackages = \"bundle:{place}\"\nbundle-sha256 = \"{sha256}\"\n\
                 [policy]\non-no-gpu = \"install\"\nfor = [\"g4dn.xlarge\"]\n"
            ),
        );
        let mut command = binary();
        command.args(["run", "--no-imds", "--root"]).arg(root.path());
        command.arg("--config").arg(self.at("run.toml")).arg("--catalog").arg(self.at("catalog"));
        command
    }
}

pub fn verify(place: &Path, more: &[&str]) -> Ran {
    ran(binary().args(["bundle", "verify"]).arg(place).args(more))
}

/// Runs; what it says is all in `stderr`, whichever stream it came by.
pub fn told(command: &mut Command) -> Ran {
    let ran = ran(command);
    Ran { stderr: format!("{}{}", ran.stdout, ran.stderr), ..ran }
}

pub fn files(dir: &Path) -> Vec<String> {
    let listed =
        debs::run(Command::new("find").arg(".").args(["-type", "f", "-printf", "%P\n"]).current_dir(dir));
    let mut names: Vec<String> = listed.lines().map(str::to_owned).collect();
    names.sort();
    names
}

pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    debs::run(Command::new("cp").arg("-a").arg(from).arg(to));
}

pub fn is_installed(root: &Root, package: &str) -> bool {
    let output = root.command("dpkg-query", &["-W", "-f", "${db:Status-Abbrev}", package]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).starts_with(['i', 'h'])
}

pub fn files_or_none(dir: &Path) -> Vec<String> {
    if dir.exists() { files(dir) } else { Vec::new() }
}
