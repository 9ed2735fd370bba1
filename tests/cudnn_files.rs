//! cuDNN as package files, by the real binary with real apt in disposable roots: the sum of a file that nobody publishes one
//! of comes from the signed index of its repository, or the file is refused by name; and files from a bucket.
#![allow(clippy::unwrap_used, reason = "test code: a panic is a failure with a place")]

#[path = "support/bucket.rs"]
mod bucket;
#[path = "support/machine.rs"]
mod machine;
#[path = "support/moto.rs"]
mod moto;
#[path = "support/repository.rs"]
mod repository;
#[path = "support/root.rs"]
mod root;
#[path = "support/web.rs"]
mod web;

use std::fs;
use std::path::Path;
use std::process::Command;

use bucket::Bucket;
use machine::{Ran, binary, ran};
use repository::{Key, Package, Repository, sum};
use root::Root;
use web::Web;

const FILE: &str = "libcudnn7_7.6.5.32-1+cuda10.2_amd64.deb";
const DEV: &str = "libcudnn7-dev_7.6.5.32-1+cuda10.2_amd64.deb";
const SOURCES: &str = "/etc/apt/sources.list.d";

/// A repository laid out like the machine-learning one, whose key the catalog knows as `learning`.
struct Scene {
    dir: tempfile::TempDir,
    learning: Repository,
    key: Key,
    web: Web,
    root: Root,
}

impl Scene {
    fn new() -> Self {
        let key = Key::generate("machine-learning test");
        let version = "7.6.5.32-1+cuda10.2";
        let learning = Repository::new("ubuntu1804", "x86_64")
            .labelled("")
            .with(&Package::new("libcudnn7", version))
            .with(&Package::new("libcudnn7-dev", version).depends(&format!("libcudnn7 (= {version})")))
            // What nobody asked for must not come from there.
            .with(&Package::new("bash", "99"));
        learning.publish(&key);
        let web = Web::serve(learning.root());
        let scene =
            Self { dir: tempfile::tempdir().unwrap(), learning, key, web, root: Root::of("bookworm", &[]) };
        let (id, armour) = (&scene.key.fingerprint, &scene.key.armoured);
        let url = scene.learning.url(&scene.web.url());
        fs::write(
            scene.dir.path().join("repositories.toml"),
            format!(
                "schema = 1\n[[key]]\nid = \"learning\"\nfingerprint = \"{id}\"\narmour = '''\n{armour}'''\nretired = true\n\
                 [[file-index]]\nid = \"test\"\nkey = \"learning\"\nurls = [\"{url}\"]\n"
            ),
        )
        .unwrap();
        scene.root.write("/etc/apt/sources.list", "");
        scene.root.write("/proc/sys/kernel/random/boot_id", "0b6d2a9c-7c3e-4c55-9f0a-3c1f6a1d2e3f\n");
        scene.root.write("/proc/sys/kernel/osrelease", "6.1.0-18-cloud-amd64\n");
        scene
    }

    /// Where a file of the repository is had from.
    fn url(&self, file: &str) -> String {
        format!("{}{}", self.learning.url(&self.web.url()), file)
    }

    fn command(&self, command: &str, debs: &str) -> Command {
        let config = self.dir.path().join("run.conf");
        let text = format!(
            "[driver]\nbranch = \"none\"\n[cuda]\ntoolkit = \"none\"\n[cudnn]\ndeb = [{debs}]\n\
             [policy]\non-no-gpu = \"install\"\nfor = [\"g4dn.xlarge\"]\n"
        );
        fs::write(&config, text).unwrap();
        let mut it = binary();
        it.args([command, "--no-imds", "--root"]).arg(self.root.path()).arg("--config").arg(config);
        it.arg("--catalog").arg(self.dir.path());
        it
    }

    fn run(&self, debs: &str) -> Ran {
        told(&mut self.command("run", debs))
    }

    /// Runs, which must fail with this code and words, and install nothing.
    fn refused(&self, debs: &str, exit: i32, code: &str, words: &str) {
        let ran = self.run(debs);
        assert_eq!(ran.code, exit, "{}", ran.stderr);
        assert!(ran.stderr.contains(words) && ran.stderr.contains(code), "{words}: {}", ran.stderr);
        assert!(!is_installed(&self.root, "libcudnn7"));
    }

    fn result(&self) -> String {
        self.root.read("/run/gpu-bootstrap/result.json")
    }
}

fn entry(url: &str) -> String {
    format!("{{ url = \"{url}\" }}")
}

/// What it says is all in `stderr`, whichever stream it came by.
fn told(command: &mut Command) -> Ran {
    let ran = ran(command);
    Ran { stderr: format!("{}{}", ran.stdout, ran.stderr), ..ran }
}

fn is_installed(root: &Root, package: &str) -> bool {
    let output = root.command("dpkg-query", &["-W", "-f", "${db:Status-Abbrev}", package]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).starts_with(['i', 'h'])
}

fn sum_of(path: &Path) -> String {
    sum(&fs::read(path).unwrap()).0
}

#[test]
fn a_sum_that_nobody_gave_is_that_of_the_signed_index() {
    let scene = Scene::new();
    let debs = format!("{}, {}", entry(&scene.url(FILE)), entry(&scene.url(DEV)));
    let planned = told(&mut scene.command("plan", &debs));
    assert!(planned.stderr.contains("has not been taken from the index of"), "{}", planned.stderr);
    assert!(scene.web.requests().is_empty(), "a plan asks no repository");
    let first = scene.run(&debs);
    assert_eq!(first.code, 0, "{}", first.stderr);
    assert!(is_installed(&scene.root, "libcudnn7") && is_installed(&scene.root, "libcudnn7-dev"));
    let receipt = scene.root.read("/var/lib/gpu-bootstrap/receipt.json");
    for file in [FILE, DEV] {
        let wanted = format!("sha256 {} of", sum_of(&scene.learning.index_dir().join(file)));
        assert!(receipt.contains(&wanted), "{wanted}: {receipt}");
    }
    assert!(receipt.contains(&format!("signed by {}", scene.key.fingerprint)), "{receipt}");
    // Neither apt nor the machine's keyrings know of the repository.
    assert_eq!(
        scene.root.run(
            "find",
            &[SOURCES, "/usr/share/keyrings", "/etc/apt/preferences.d", "-name", "*gpu-bootstrap*"]
        ),
        ""
    );
    let before = scene.web.requests().len();
    let second = scene.run(&debs);
    assert_eq!(second.code, 0, "{}", second.stderr);
    assert_eq!(scene.web.requests().len(), before, "what is installed needs no network");
    // Damage is mended, by an index that is asked again.
    fs::write(scene.root.at("/usr/share/libcudnn7/version"), "").unwrap();
    assert_eq!(scene.run(&debs).code, 0);
    assert_eq!(scene.root.read("/usr/share/libcudnn7/version"), "7.6.5.32-1+cuda10.2");
}

#[test]
fn an_entry_can_name_repository_and_key() {
    let scene = Scene::new();
    // The same files by another name of the server, which the catalog does not know.
    let other = scene.web.url().replace("127.0.0.1", "127.0.0.2");
    let (url, repository) =
        (format!("{other}/ubuntu1804/x86_64/{FILE}"), scene.learning.url(&scene.web.url()));
    scene.refused(&entry(&url), 2, "sum-unknown", "lies in no repository whose signing key the catalog has");
    let named = |repository: &str, key: &str| {
        format!("{{ url = \"{}\", repository = \"{repository}\", signed-by = \"{key}\" }}", scene.url(FILE))
    };
    scene.refused(
        &named(&repository, "3bf863cc"),
        1,
        "repository-untrusted",
        "not signed by the one key that is pinned",
    );
    scene.refused(
        &named(&repository, "no-such-key"),
        3,
        "repository-key-unknown",
        "is no key that the catalog has",
    );
    scene.refused(&named(&format!("{other}/"), "learning"), 2, "sum-unknown", "does not lie below");
    let done = scene.run(&named(&repository, &scene.key.fingerprint));
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert!(is_installed(&scene.root, "libcudnn7"));
}

#[test]
fn what_no_index_vouches_for_is_refused_by_name() {
    let scene = Scene::new();
    let index = scene.learning.index_dir();
    scene.refused(
        &entry(&scene.url("libcudnn7_7.0_amd64.deb")),
        2,
        "sum-unknown",
        "does not list libcudnn7_7.0_amd64.deb",
    );
    // Other bytes under the same name, as NVIDIA's repositories have seen.
    let deb = fs::read(index.join(FILE)).unwrap();
    let mut other = deb.clone();
    let middle = other.len() / 2;
    other[middle] ^= 1;
    fs::write(index.join(FILE), other).unwrap();
    scene.refused(&entry(&scene.url(FILE)), 1, "checksum-mismatch", "expected");
    fs::write(index.join(FILE), deb).unwrap();
    // An index with weak sums only, rightly signed.
    let release = fs::read_to_string(index.join("Release")).unwrap();
    let packages = fs::read_to_string(index.join("Packages")).unwrap();
    let weak = format!(
        "{}MD5Sum:\n d41d8cd98f00b204e9800998ecf8427e {} Packages\n",
        release.split("SHA256:").next().unwrap(),
        packages.len()
    );
    repository::sign(&index, &weak, &scene.key);
    scene.refused(&entry(&scene.url(FILE)), 1, "repository-untrusted", "MD5 or SHA-1 only");
    // Packages that was changed after it was signed.
    repository::sign(&index, &release, &scene.key);
    fs::write(index.join("Packages"), packages.replace("Package: bash", "Package: dash")).unwrap();
    fs::remove_file(index.join("Packages.gz")).unwrap();
    scene.refused(&entry(&scene.url(FILE)), 1, "index-tampered", "does not match its signature");
    for name in ["InRelease", "Release", "Release.gpg"] {
        fs::remove_file(index.join(name)).unwrap();
    }
    scene.refused(&entry(&scene.url(FILE)), 1, "fetch", "cannot be fetched");
}

#[test]
fn a_file_in_a_bucket_is_had_by_a_signed_url_and_only_with_its_sum() {
    let scene = Scene::new();
    let served = tempfile::tempdir().unwrap();
    let place = served.path().join("gpu-files/cudnn");
    fs::create_dir_all(&place).unwrap();
    fs::copy(scene.learning.index_dir().join(FILE), place.join(FILE)).unwrap();
    let bucket = Bucket::serve(&moto::python(), served.path());
    let with = |debs: &str, secret: &str| {
        let mut command = scene.command("run", debs);
        command.env("AWS_ENDPOINT_URL_S3", &bucket.url).env("AWS_REGION", "us-east-1");
        command.env("AWS_ACCESS_KEY_ID", bucket::KEY.0).env("AWS_SECRET_ACCESS_KEY", secret);
        told(&mut command)
    };
    let url = format!("s3://gpu-files/cudnn/{FILE}");
    let given = |sum: &str| format!("{{ url = \"{url}\", sha256 = \"{sum}\" }}");
    let right = given(&sum_of(&place.join(FILE)));
    let none = with(&entry(&url), bucket::KEY.1);
    assert!(none.code == 2 && none.stderr.contains("has no sha256"), "{}", none.stderr);
    let unsigned = with(&right, "another secret");
    assert!(unsigned.code == 1 && unsigned.stderr.contains("fetch-denied"), "{}", unsigned.stderr);
    let wrong = with(&given(&"0".repeat(64)), bucket::KEY.1);
    assert!(wrong.code == 1 && wrong.stderr.contains("checksum-mismatch"), "{}", wrong.stderr);
    assert!(!is_installed(&scene.root, "libcudnn7"));
    let done = with(&right, bucket::KEY.1);
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert!(is_installed(&scene.root, "libcudnn7"));
    assert!(!scene.result().contains("X-Amz-Signature"), "a signed URL is nobody's business");
}
