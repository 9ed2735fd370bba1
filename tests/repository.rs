//! A repository from its key to an installed package, with real apt in disposable roots, and every way in which a
//! repository is refused: each with its own error, nothing installed, no source enabled.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

#[path = "support/repository.rs"]
mod repository;
#[path = "support/root.rs"]
mod root;
#[path = "support/web.rs"]
mod web;

use std::fmt::Write as _;
use std::sync::{Arc, Mutex};

use gpu_bootstrap::action::Action;
use gpu_bootstrap::action::apt_components::AptComponents;
use gpu_bootstrap::action::apt_distrust::AptDistrust;
use gpu_bootstrap::action::apt_index::AptIndex;
use gpu_bootstrap::action::apt_key::AptKey;
use gpu_bootstrap::action::apt_pin::AptPin;
use gpu_bootstrap::action::apt_source::AptSource;
use gpu_bootstrap::error::{Code, Error, Result};
use gpu_bootstrap::host::Host;
use gpu_bootstrap::host::apt::Request;
use gpu_bootstrap::install::Installer;

use repository::{Key, Package, Repository};
use root::Root;
use web::{Answer, Identity, Web};

const KEYRING: &str = "/usr/share/keyrings/gpu-bootstrap-nvidia.gpg";
const PINS: &str = "/etc/apt/preferences.d/00-gpu-bootstrap-nvidia.pref";
const SOURCE: &str = "/etc/apt/sources.list.d/gpu-bootstrap-nvidia.sources";

/// A disposable root, and the repository step for one repository.
struct Scene {
    root: Root,
    url: String,
    architecture: &'static str,
    fingerprint: String,
    key: String,
    date_floor: String,
    packages: Vec<String>,
    pinned: Vec<String>,
    pinned_version: String,
    label: String,
    version_floor: String,
    notices: Arc<Mutex<Vec<String>>>,
}

impl Scene {
    fn new(repository: &Repository, server: &str, key: &Key) -> Self {
        Self {
            root: Root::new(),
            url: repository.url(server),
            architecture: repository.architecture(),
            fingerprint: key.fingerprint.clone(),
            key: key.armoured.clone(),
            date_floor: "2026-06-01".into(),
            packages: strings(&["cuda-toolkit-12-8"]),
            pinned: Vec::new(),
            pinned_version: String::new(),
            label: "NVIDIA CUDA".into(),
            version_floor: String::new(),
            notices: Arc::default(),
        }
    }

    fn host(&self) -> Host {
        let notices = Arc::clone(&self.notices);
        Host::new(self.root.path().to_path_buf()).with_notices(move |n| notices.lock().unwrap().push(n))
    }

    fn notices(&self) -> String {
        self.notices.lock().unwrap().join("\n")
    }

    /// The actions of the step file, in its order.
    fn actions(&self) -> Vec<Action> {
        let may_supply = strings(&["cuda-*", "libcu*", "libnvidia-*", "nvidia-*", "libnccl*"]);
        vec![
            Action::AptKey(AptKey {
                path: KEYRING.into(),
                fingerprint: self.fingerprint.clone(),
                key: self.key.clone(),
            }),
            Action::AptDistrust(AptDistrust {
                fingerprints: strings(&["AE09FE4BBD223A84B2CCFCE3F60F4B3D7FA2AF80"]),
            }),
            Action::AptIndex(AptIndex {
                url: self.url.clone(),
                architecture: self.architecture.into(),
                keyring: KEYRING.into(),
                label: self.label.clone(),
                date_floor: self.date_floor.clone(),
                may_supply: may_supply.clone(),
                packages: self.packages.clone(),
                version_floor: self.version_floor.clone(),
            }),
            Action::AptPin(AptPin {
                path: PINS.into(),
                url: self.url.clone(),
                label: self.label.clone(),
                packages: self.packages.clone(),
                may_supply,
                always_allow: strings(&["libnccl*"]),
                pinned: self.pinned.clone(),
                pinned_version: self.pinned_version.clone(),
                neighbours: Vec::new(),
            }),
            Action::AptSource(AptSource {
                path: SOURCE.into(),
                url: self.url.clone(),
                architecture: self.architecture.into(),
                keyring: KEYRING.into(),
            }),
        ]
    }

    /// What the engine does: check, apply, check again. The reasons why work was needed.
    async fn converge(&self) -> Result<Vec<String>> {
        let host = self.host();
        let mut reasons = Vec::new();
        for action in self.actions() {
            let before = action.check(&host).await?;
            if before.state() == "satisfied" {
                continue;
            }
            assert_eq!(before.state(), "needed", "{}: {}", action.describe(), before.why());
            reasons.push(before.why().to_owned());
            action.apply(&host).await?;
            let after = action.check(&host).await?;
            assert_eq!(after.state(), "satisfied", "{}: {}", action.describe(), after.why());
        }
        Ok(reasons)
    }

    /// Converges, which must fail with this code and leave apt as it was.
    async fn refused(&self, code: Code) -> Error {
        let before = self.apt_state();
        let error = self.converge().await.expect_err("the repository is refused");
        assert_eq!(error.code(), code, "{}: {error}: {:?}", error.code(), error.causes());
        assert_eq!(self.apt_state(), before, "a refused repository leaves no source, no list and no package");
        error
    }

    /// What is installed, which sources are enabled and which lists apt has.
    fn apt_state(&self) -> String {
        let mut state = self.installed();
        for dir in ["/etc/apt/sources.list.d", "/var/lib/apt/lists"] {
            let entries = std::fs::read_dir(self.root.at(dir)).unwrap();
            let mut names: Vec<String> =
                entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
            // apt makes these for itself.
            names.retain(|n| !["lock", "partial", "auxfiles"].contains(&n.as_str()));
            names.sort();
            let _ = writeln!(state, "{dir}: {names:?}");
        }
        state
    }

    fn installed(&self) -> String {
        self.root.run("dpkg-query", &["-W", "-f", "${binary:Package} ${Version} ${db:Status-Abbrev}\n"])
    }

    fn remains(&self, path: &str) -> bool {
        self.root.at(path).symlink_metadata().is_ok()
    }
}

fn strings(all: &[&str]) -> Vec<String> {
    all.iter().map(|s| (*s).to_owned()).collect()
}

/// A toolkit of three packages, one of them by way of an exact version.
fn toolkit(distro: &str, arch_dir: &str) -> Repository {
    Repository::new(distro, arch_dir)
        .with(
            &Package::new("cuda-toolkit-12-8", "12.8.1-1")
                .depends("cuda-nvcc-12-8 (>= 12.8.93), libcublas-12-8"),
        )
        .with(&Package::new("cuda-nvcc-12-8", "12.8.93-1").depends("cuda-crt-12-8 (= 12.8.93-1)"))
        .with(&Package::new("cuda-crt-12-8", "12.8.93-1"))
        .with(&Package::new("libcublas-12-8", "12.8.4.1-1"))
        .with(&Package::new("nvidia-driver-580", "580.65.06-1"))
}

/// Makes apt and dpkg believe that everything in this root is built for arm64. Programs cannot be run then, but
/// packages without programs can be resolved, verified and installed.
fn pretend_arm64(root: &Root) {
    root.run("dpkg", &["--add-architecture", "arm64"]);
    root.write("/etc/apt/apt.conf.d/00architecture", "APT::Architecture \"arm64\";\n");
    let status = root.read("/var/lib/dpkg/status");
    root.write("/var/lib/dpkg/status", &status.replace("\nArchitecture: amd64\n", "\nArchitecture: arm64\n"));
    for entry in std::fs::read_dir(root.at("/var/lib/dpkg/info")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if name.contains(":amd64.") {
            std::fs::rename(&path, path.with_file_name(name.replace(":amd64.", ":arm64."))).unwrap();
        }
    }
}

async fn from_key_to_installed(distro: &str, arch_dir: &str) {
    let key = Key::generate("tests");
    let repository = toolkit(distro, arch_dir);
    repository.publish(&key);
    let web = Web::serve(repository.root());
    let scene = Scene::new(&repository, &web.url(), &key);
    if repository.architecture() == "arm64" {
        pretend_arm64(&scene.root);
    }
    let reasons = scene.converge().await.unwrap();
    assert_eq!(reasons.len(), 4, "{reasons:?}");
    let asked = web.requests().len();
    assert!(scene.converge().await.unwrap().is_empty(), "a second run has nothing to do");
    assert_eq!(web.requests().len(), asked, "and asks the network nothing");

    let request = Request { packages: strings(&["cuda-toolkit-12-8"]), ..Request::default() };
    Installer::new(&scene.host()).install(&request).await.unwrap();
    for name in ["cuda-toolkit-12-8", "cuda-nvcc-12-8", "cuda-crt-12-8", "libcublas-12-8"] {
        assert!(scene.remains(&format!("/usr/share/{name}/version")), "{name} is installed");
    }
    assert!(!scene.installed().contains("nvidia-driver"), "nothing else came along");
    let policy = scene.root.run("apt-cache", &["policy", "nvidia-driver-580"]);
    assert!(policy.contains("Candidate: (none)"), "what was not asked for cannot come: {policy}");
}

#[tokio::test]
async fn ubuntu2204_from_key_to_installed() {
    from_key_to_installed("ubuntu2204", "x86_64").await;
}

#[tokio::test]
async fn ubuntu2404_from_key_to_installed() {
    from_key_to_installed("ubuntu2404", "x86_64").await;
}

#[tokio::test]
async fn debian12_from_key_to_installed() {
    from_key_to_installed("debian12", "x86_64").await;
}

#[tokio::test]
async fn sbsa_from_key_to_installed() {
    from_key_to_installed("ubuntu2204", "sbsa").await;
}

#[tokio::test]
async fn damage_is_found_and_healed() {
    let key = Key::generate("tests");
    let other = Key::generate("other");
    let repository = toolkit("ubuntu2204", "x86_64");
    repository.publish(&key);
    let web = Web::serve(repository.root());
    let scene = Scene::new(&repository, &web.url(), &key);
    scene.converge().await.unwrap();

    // A keyring with a second key.
    let keyring = scene.root.at(KEYRING);
    let good = std::fs::read(&keyring).unwrap();
    let second = other.binary();
    std::fs::write(&keyring, [good.clone(), second].concat()).unwrap();
    let reasons = scene.converge().await.unwrap();
    assert_eq!(reasons.len(), 1, "{reasons:?}");
    assert!(reasons[0].contains("holds 2 keys") && reasons[0].contains(&other.fingerprint), "{reasons:?}");
    assert_eq!(std::fs::read(&keyring).unwrap(), good);

    // An edited pin, a source gone, an index cut short.
    scene.root.write(PINS, "Package: *\nPin: release l=NVIDIA CUDA\nPin-Priority: 600\n");
    std::fs::remove_file(scene.root.at(SOURCE)).unwrap();
    let lists = scene.root.at("/var/lib/gpu-bootstrap/lists");
    let index = walk(&lists).into_iter().find(|p| p.ends_with("Packages")).unwrap();
    let whole = std::fs::read(&index).unwrap();
    std::fs::write(&index, &whole[..whole.len() / 2]).unwrap();
    let reasons = scene.converge().await.unwrap();
    assert_eq!(reasons.len(), 3, "{reasons:?}");
    assert_eq!(std::fs::read(&index).unwrap(), whole);
    assert!(scene.converge().await.unwrap().is_empty());
}

fn walk(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { all.extend(walk(&path)) } else { all.push(path) }
    }
    all
}

#[tokio::test]
async fn a_wrong_key_is_refused() {
    let (key, other) = (Key::generate("tests"), Key::generate("other"));
    let repository = toolkit("ubuntu2204", "x86_64");
    repository.publish(&other);
    let web = Web::serve(repository.root());
    let mut scene = Scene::new(&repository, &web.url(), &key);
    let error = scene.refused(Code::RepositoryUntrusted).await;
    assert!(format!("{:?}", error.causes()).contains("NO_PUBKEY"), "{:?}", error.causes());

    // The other key in the catalog, under the pinned fingerprint.
    scene.key.clone_from(&other.armoured);
    let error = scene.refused(Code::KeyMismatch).await;
    assert!(error.message().contains(&other.fingerprint) && error.message().contains(&key.fingerprint));
    assert_eq!(std::fs::read(scene.root.at(KEYRING)).unwrap(), key.binary(), "nothing was written");

    // Both keys in the catalog.
    scene.key = format!("{}{}", key.armoured, other.armoured);
    scene.refused(Code::KeyNotAlone).await;

    // No signature at all.
    scene.key.clone_from(&key.armoured);
    for name in ["InRelease", "Release.gpg"] {
        std::fs::remove_file(repository.index_dir().join(name)).unwrap();
    }
    scene.refused(Code::RepositoryUntrusted).await;
}

#[tokio::test]
async fn a_tampered_index_is_refused() {
    let key = Key::generate("tests");
    let repository = toolkit("ubuntu2204", "x86_64");
    repository.publish(&key);
    let web = Web::serve(repository.root());
    let scene = Scene::new(&repository, &web.url(), &key);
    let edit = |name: &str, from: &str, to: &str| {
        let path = repository.index_dir().join(name);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(from));
        std::fs::write(path, text.replace(from, to)).unwrap();
    };
    // The Release file, changed after it was signed.
    edit("InRelease", "Origin: NVIDIA", "Origin: nvidia");
    scene.refused(Code::IndexTampered).await;
    // The list of packages, changed after its sum was signed.
    repository.publish(&key);
    edit("Packages", "12.8.93-1", "12.8.94-1");
    std::fs::write(repository.index_dir().join("Packages.gz"), b"not it").unwrap();
    scene.refused(Code::IndexTampered).await;
}

/// The container toolkit's repository: a label with an address in it, and a date that never changes.
#[tokio::test]
async fn where_the_date_never_changes_the_version_tells_an_old_index() {
    const LABEL: &str = "NVIDIA CORPORATION <cudatools@nvidia.com>";
    let key = Key::generate("tests");
    let of_version = |version: &str| {
        Repository::new("stable", "x86_64")
            .labelled(LABEL)
            .dated("Fri, 27 Apr 2018 21:29:25 +0000")
            .with(&Package::new("nvidia-container-toolkit", version).depends("nvidia-container-toolkit-base"))
            .with(&Package::new("nvidia-container-toolkit-base", version))
    };
    for (version, is_taken) in [("1.17.7-1", false), ("1.17.8-1", true), ("1.20.1-1", true)] {
        let repository = of_version(version);
        repository.publish(&key);
        let web = Web::serve(repository.root());
        let mut scene = Scene::new(&repository, &web.url(), &key);
        scene.label = LABEL.into();
        scene.date_floor = "2018-04-27".into();
        scene.version_floor = "1.17.8-1".into();
        scene.packages = strings(&["nvidia-container-toolkit"]);
        if !is_taken {
            let error = scene.refused(Code::IndexTooOld).await;
            assert!(error.message().contains("1.17.7-1"), "{error}");
            continue;
        }
        scene.converge().await.unwrap();
        // The pins name this label, in which apt must read no pattern of its own.
        let policy = scene.root.run("apt-cache", &["policy", "nvidia-container-toolkit-base"]);
        assert!(policy.contains(&format!("Candidate: {version}")), "{policy}");
    }
}

#[tokio::test]
async fn an_old_but_validly_signed_index_is_refused() {
    let key = Key::generate("tests");
    let mut repository = toolkit("ubuntu2204", "x86_64").dated("Mon, 02 Mar 2026 12:00:00 UTC");
    repository.publish(&key);
    let web = Web::serve(repository.root());
    let mut scene = Scene::new(&repository, &web.url(), &key);
    let error = scene.refused(Code::IndexTooOld).await;
    assert!(error.message().contains("2026-03-02") && error.message().contains("2026-06-01"), "{error}");

    // An index that passes, and then an older one for the machine's own apt.
    scene.date_floor = "2026-01-01".into();
    repository.set_date("Sun, 01 Nov 2026 12:00:00 UTC");
    repository.publish(&key);
    let host = scene.host();
    let actions = scene.actions();
    for action in &actions[..4] {
        action.apply(&host).await.unwrap();
    }
    repository.set_date("Mon, 02 Mar 2026 12:00:00 UTC");
    repository.publish(&key);
    let error = actions[4].apply(&host).await.unwrap_err();
    assert_eq!(error.code(), Code::IndexTooOld, "{error}");
    assert!(!scene.remains(SOURCE), "the source is not left enabled");
}

#[tokio::test]
async fn a_swapped_package_is_refused() {
    let key = Key::generate("tests");
    let repository = toolkit("ubuntu2204", "x86_64");
    repository.publish(&key);
    let deb = repository.index_dir().join("cuda-crt-12-8_12.8.93-1_amd64.deb");
    let mut bytes = std::fs::read(&deb).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&deb, bytes).unwrap();
    let web = Web::serve(repository.root());
    let scene = Scene::new(&repository, &web.url(), &key);
    scene.converge().await.unwrap();
    let before = scene.installed();
    let request = Request { packages: strings(&["cuda-toolkit-12-8"]), ..Request::default() };
    let error = Installer::new(&scene.host()).install(&request).await.unwrap_err();
    assert_eq!(error.code(), Code::ChecksumMismatch, "{error}: {:?}", error.causes());
    assert_eq!(scene.installed(), before, "nothing was installed");
}

#[tokio::test]
async fn a_source_without_signatures_is_refused() {
    let key = Key::generate("tests");
    let repository = toolkit("ubuntu2204", "x86_64");
    repository.publish(&key);
    let web = Web::serve(repository.root());
    let scene = Scene::new(&repository, &web.url(), &key);
    scene.converge().await.unwrap();
    // It calls itself NVIDIA's, so the pins hold for it as well, and its version is the higher one.
    let impostor = Repository::new("debian12", "x86_64").with(&Package::new("cuda-toolkit-12-8", "99"));
    impostor.publish(&key);
    for name in ["InRelease", "Release.gpg"] {
        std::fs::remove_file(impostor.index_dir().join(name)).unwrap();
    }
    let second = Web::serve(impostor.root());
    let line = format!("deb [trusted=yes] {} /\n", impostor.url(&second.url()));
    scene.root.write("/etc/apt/sources.list.d/impostor.list", &line);
    scene.root.run("apt-get", &["-qq", "update"]);
    let policy = scene.root.run("apt-cache", &["policy", "cuda-toolkit-12-8"]);
    assert!(policy.contains("Candidate: 99"), "apt itself would take it: {policy}");
    let before = scene.installed();
    let request = Request { packages: strings(&["cuda-toolkit-12-8"]), ..Request::default() };
    let error = Installer::new(&scene.host()).install(&request).await.unwrap_err();
    assert_eq!(error.code(), Code::UntrustedSource, "{error}: {:?}", error.causes());
    assert_eq!(scene.installed(), before, "nothing was installed");
}

#[tokio::test]
async fn a_redirect_to_http_is_refused() {
    let key = Key::generate("tests");
    let repository = toolkit("ubuntu2204", "x86_64");
    repository.publish(&key);
    let plain = Web::serve(repository.root());
    let identity = Identity::new();
    let to = plain.url();
    let tls = Web::answer_tls(&identity, move |path| Answer::Redirect(format!("{to}{path}")));
    let mut scene = Scene::new(&repository, &tls.url(), &key);
    let authority = std::fs::read_to_string(identity.certificate()).unwrap();
    scene.root.write("/etc/test-ca.pem", &authority);
    scene.root.write("/etc/apt/apt.conf.d/00ca", "Acquire::https::CaInfo \"/etc/test-ca.pem\";\n");
    scene.refused(Code::InsecureRedirect).await;
    assert!(!tls.requests().is_empty() && plain.requests().is_empty(), "nothing was asked for in the clear");

    // The same repository without the redirect: it was the redirect that was refused.
    let tls = Web::serve_tls(&identity, repository.root());
    scene.url = repository.url(&tls.url());
    scene.converge().await.unwrap();
}

#[tokio::test]
async fn a_repository_that_offers_libc6_is_refused() {
    let key = Key::generate("tests");
    // Once as a dependency of what is wanted, once beside it.
    let wanted = Repository::new("ubuntu2204", "x86_64")
        .with(&Package::new("cuda-toolkit-12-8", "12.8.1-1").depends("libc6 (>= 2.34)"))
        .with(&Package::new("libc6", "2.99-1"));
    let beside = toolkit("ubuntu2204", "x86_64").with(&Package::new("libc6", "2.99-1"));
    for repository in [wanted, beside] {
        repository.publish(&key);
        let web = Web::serve(repository.root());
        let scene = Scene::new(&repository, &web.url(), &key);
        let error = scene.refused(Code::ForeignPackage).await;
        assert!(error.message().contains("offers libc6 2.99-1, a package of the distribution"), "{error}");
    }
}

#[tokio::test]
async fn other_failures_have_errors_of_their_own() {
    let key = Key::generate("tests");
    let repository = toolkit("ubuntu2204", "x86_64");
    repository.publish(&key);
    let web = Web::serve(repository.root());
    let mut scene = Scene::new(&repository, &web.url(), &key);

    scene.packages = strings(&["cuda-toolkit-12-9"]);
    let error = scene.refused(Code::PackageNotOffered).await;
    assert_eq!(error.hint(), Some("it offers cuda-toolkit-12-8"));
    scene.packages = strings(&["cuda-toolkit-12-8=12.8.0-1"]);
    let error = scene.refused(Code::PackageNotOffered).await;
    assert_eq!(error.hint(), Some("it offers cuda-toolkit-12-8=12.8.1-1"));
    scene.packages = strings(&["cuda-toolkit-12-8"]);

    scene.url = format!("{}/nothing/here/", web.url());
    scene.refused(Code::Fetch).await;
    scene.url = "http://127.0.0.1:9/ubuntu2204/x86_64/".into();
    scene.refused(Code::Fetch).await;
    scene.url = repository.url(&web.url());

    let repository = toolkit("ubuntu2204", "x86_64").labelled("Something else");
    repository.publish(&key);
    let web = Web::serve(repository.root());
    scene.url = repository.url(&web.url());
    scene.refused(Code::WrongRepository).await;

    let repository =
        toolkit("ubuntu2204", "x86_64").with_stanzas("Version: 1\nFilename: ./x.deb\nSHA256: 00\n\n");
    repository.publish(&key);
    let web = Web::serve(repository.root());
    scene.url = repository.url(&web.url());
    scene.refused(Code::IndexMalformed).await;
}

#[tokio::test]
async fn what_others_wrote_about_the_repository_is_set_aside() {
    let key = Key::generate("tests");
    let repository = toolkit("ubuntu2204", "x86_64");
    repository.publish(&key);
    let web = Web::serve(repository.root());
    let scene = Scene::new(&repository, &web.url(), &key);
    let url = &scene.url;
    let theirs = [
        ("/etc/apt/sources.list.d/cuda.list", format!("deb {url} /\n")),
        (
            "/etc/apt/sources.list.d/cuda-ubuntu2204-x86_64.list",
            format!("deb [signed-by=/usr/share/keyrings/cuda-archive-keyring.gpg] {url} /\n"),
        ),
        ("/etc/apt/sources.list.d/nv.sources", format!("Types: deb\nURIs: {url}\nSuites: /\n")),
        (
            "/etc/apt/preferences.d/cuda-repository-pin-600",
            "Package: nsight-compute\nPin: origin *ubuntu.com*\nPin-Priority: -1\n\n\
             Package: *\nPin: release l=NVIDIA CUDA\nPin-Priority: 600\n"
                .into(),
        ),
    ];
    for (path, text) in &theirs {
        scene.root.write(path, text);
    }
    // nsight-compute is NVIDIA's, too, but the scene's patterns do not know it: a file about something else.
    let error = scene.converge().await.unwrap_err();
    assert_eq!(error.code(), Code::PinConflict, "{error}");
    assert!(error.message().starts_with("/etc/apt/preferences.d/cuda-repository-pin-600:5 "), "{error}");
    scene.root.write(theirs[3].0, "Package: *\nPin: release l=NVIDIA CUDA\nPin-Priority: 600\n");

    scene.converge().await.unwrap();
    for (path, _) in &theirs {
        assert!(!scene.remains(path), "{path} is out of the way");
        assert!(scene.notices().contains(path), "{path} is in {}", scene.notices());
        assert!(scene.remains(&format!("/var/lib/gpu-bootstrap/set-aside/{}", path[1..].replace('/', "__"))));
    }
    assert!(scene.converge().await.unwrap().is_empty());
}

/// As many packages as NVIDIA's largest repository has, ten versions of each, and things that must not come
/// from there.
fn full_size() -> String {
    let mut text = String::new();
    let mut add = |name: &str, version: &str, depends: &str| {
        let _ = write!(
            text,
            "Package: {name}\nVersion: {version}\nArchitecture: amd64\nMaintainer: x <x@localhost>\nSection: misc\n\
             Priority: optional\nInstalled-Size: 1\nDepends: {depends}\nFilename: ./{name}_{version}_amd64.deb\nSize: 1\n\
             SHA256: {:064x}\nDescription: package {name}\n a second line\n\n",
            version.len()
        );
    };
    for minor in 0..10 {
        for patch in 0..10 {
            let v = format!("12.{minor}.{patch}-1");
            add(&format!("cuda-toolkit-12-{minor}"), &v, &format!("cuda-part-0-12-{minor} (>= {v}), bash"));
            for part in 0..78 {
                let next = format!("cuda-part-{}-12-{minor} (= {v})", part + 1);
                add(&format!("cuda-part-{part}-12-{minor}"), &v, if part < 40 { &next } else { "bash" });
            }
        }
    }
    add("libnccl2", "2.29.1-1", "bash");
    add("sudo-nvidia", "9", "bash");
    add("hello", "99", "bash");
    text
}

#[tokio::test]
async fn pins_hold_on_a_full_size_index() {
    let key = Key::generate("tests");
    let repository = Repository::new("ubuntu2204", "x86_64").with_stanzas(&full_size());
    repository.publish(&key);
    let web = Web::serve(repository.root());
    let scene = Scene::new(&repository, &web.url(), &key);
    scene.converge().await.unwrap();

    let simulated = scene.root.run("apt-get", &["-s", "install", "cuda-toolkit-12-8"]);
    let parts = simulated.lines().filter(|l| l.starts_with("Inst cuda-part-")).count();
    assert!(simulated.contains("Inst cuda-toolkit-12-8 (12.8.9-1 "), "{simulated}");
    assert_eq!(parts, 41, "{simulated}");
    let candidate = |name: &str| {
        let policy = scene.root.run("apt-cache", &["policy", name]);
        let line = policy.lines().find_map(|l| l.trim().strip_prefix("Candidate: "));
        line.unwrap_or_else(|| panic!("{policy}")).to_owned()
    };
    assert_eq!(candidate("libnccl2"), "2.29.1-1");
    for name in ["hello", "sudo-nvidia", "cuda-toolkit-12-9", "cuda-part-50-12-8"] {
        assert_eq!(candidate(name), "(none)", "{name}");
    }
    let installed = scene.root.run("dpkg-query", &["-W", "-f", "${Version}", "libc6"]);
    assert_eq!(candidate("libc6"), installed);

    let pins = scene.root.read(PINS);
    assert!(pins.len() < 2000, "the pin file is compact: {} bytes", pins.len());
    assert!(pins.contains("Pin: origin \"127.0.0.1\""), "the host has no other source: {pins}");
}

#[tokio::test]
async fn pins_keep_the_driver_on_its_branch() {
    let key = Key::generate("tests");
    let mut repository = Repository::new("debian12", "x86_64");
    for version in ["580.65.06-1", "580.82.07-1", "610.10.01-1"] {
        let same = format!("libnvidia-ml1 (= {version})");
        repository = repository
            .with(&Package::new("nvidia-open", version).depends(&same))
            .with(&Package::new("libnvidia-ml1", version));
    }
    repository.publish(&key);
    let web = Web::serve(repository.root());
    let mut scene = Scene::new(&repository, &web.url(), &key);
    // dkms is the distribution's to supply: it is neither looked for nor pinned.
    scene.packages = strings(&["nvidia-open", "dkms"]);
    scene.pinned = strings(&["nvidia-*", "libnvidia-*"]);
    scene.pinned_version = "580.*".into();
    scene.converge().await.unwrap();
    let simulated = scene.root.run("apt-get", &["-s", "install", "nvidia-open"]);
    for name in ["nvidia-open", "libnvidia-ml1"] {
        assert!(simulated.contains(&format!("Inst {name} (580.82.07-1 ")), "{simulated}");
    }
    scene.pinned_version = "595.*".into();
    let error = scene.converge().await.unwrap_err();
    assert_eq!(error.code(), Code::PackageNotOffered);
    assert!(error.message().ends_with("does not offer nvidia-open in a version 595.*"), "{error}");
}

#[tokio::test]
async fn a_mirror_that_holds_other_repositories_is_not_pinned_as_a_host() {
    let key = Key::generate("tests");
    let repository = toolkit("ubuntu2204", "x86_64");
    repository.publish(&key);
    let other = Repository::new("debian12", "x86_64").labelled("Other").with(&Package::new("other", "1"));
    other.publish(&key);
    let web = Web::serve(repository.root());
    let second = Web::serve(other.root());
    let scene = Scene::new(&repository, &web.url(), &key);
    // apt knows hosts without ports, so this is "the same host".
    scene.root.write("/usr/share/keyrings/other.asc", &key.armoured);
    let line = format!("deb [signed-by=/usr/share/keyrings/other.asc] {} /\n", other.url(&second.url()));
    scene.root.write("/etc/apt/sources.list.d/other.list", &line);
    scene.converge().await.unwrap();
    let policy = scene.root.run("apt-cache", &["policy", "other"]);
    assert!(policy.contains("Candidate: 1"), "the other repository still counts: {policy}");
}

/// An archive with components, as the distribution's own has them.
fn archive(key: &Key, origin: &str, components: &[&str]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let suite = dir.path().join("debian/dists/bookworm");
    let mut release = format!(
        "Origin: {origin}\nLabel: {origin}\nSuite: stable\nCodename: bookworm\nArchitectures: amd64\nComponents: {}\n\
         Date: Sun, 01 Nov 2026 12:00:00 UTC\nSHA256:\n",
        components.join(" ")
    );
    for component in components {
        let path = format!("{component}/binary-amd64/Packages");
        let text = format!(
            "Package: from-{component}\nVersion: 1\nArchitecture: all\nMaintainer: x <x@localhost>\nDescription: x\n\
             Filename: pool/x.deb\nSize: 1\nSHA256: {:064x}\n\n",
            1
        );
        std::fs::create_dir_all(suite.join(&path).parent().unwrap()).unwrap();
        std::fs::write(suite.join(&path), &text).unwrap();
        let (sha256, size) = repository::sum(text.as_bytes());
        let _ = writeln!(release, " {sha256} {size} {path}");
    }
    repository::sign(&suite, &release, key);
    dir
}

/// EC2's images of Debian 12 and 13 name their archives in files of mirrors.
#[tokio::test]
async fn components_are_enabled_where_the_archive_is_named_in_a_file_of_mirrors() {
    let key = Key::generate("tests");
    let files = archive(&key, "Debian", &["main", "contrib", "non-free"]);
    let web = Web::serve(files.path());
    let root = Root::new();
    let host = Host::new(root.path().to_path_buf());
    root.write("/usr/share/keyrings/archive.asc", &key.armoured);
    root.write("/etc/apt/mirrors/debian.list", &format!("{}/debian\n", web.url()));
    let list = "Types: deb\nURIs: mirror+file:///etc/apt/mirrors/debian.list\nSuites: bookworm\n\
                Components: main\nSigned-By: /usr/share/keyrings/archive.asc\n";
    root.write("/etc/apt/sources.list.d/debian.sources", list);
    let path = "/etc/apt/sources.list.d/gpu-bootstrap-components.sources";
    let action = Action::AptComponents(AptComponents {
        path: path.into(),
        components: strings(&["contrib", "non-free"]),
    });

    assert_eq!(action.check(&host).await.unwrap().state(), "needed");
    action.apply(&host).await.unwrap();
    let after = action.check(&host).await.unwrap();
    assert_eq!(after.state(), "satisfied", "{}", after.why());
    assert!(root.read(path).contains("URIs: mirror+file:///etc/apt/mirrors/debian.list\n"));
    assert!(root.run("apt-cache", &["policy", "from-non-free"]).contains("Candidate: 1"));

    // A mirror that is away for now is told as what it is, and keeps nobody else's packages from being installed.
    root.write("/etc/apt/mirrors/debian.list", "http://127.0.0.1:9/debian\n");
    host.apt().update_for(&["repo.example.org/cuda/".to_owned()]).await.unwrap();
    let ours = ["/etc/apt/mirrors/debian.list/".to_owned()];
    let error = host.apt().update_for(&ours).await.unwrap_err();
    assert!(error.causes().join("\n").contains("/etc/apt/mirrors/debian.list/dists/bookworm"), "{error}");
}

#[tokio::test]
async fn an_archive_that_apt_cannot_read_is_told_as_that_and_not_as_none() {
    let root = Root::new();
    let host = Host::new(root.path().to_path_buf());
    root.write("/etc/apt/sources.list", "deb http://127.0.0.1:9/debian bookworm main\n");
    let path = "/etc/apt/sources.list.d/gpu-bootstrap-components.sources";
    let action =
        Action::AptComponents(AptComponents { path: path.into(), components: strings(&["contrib"]) });
    let error = action.apply(&host).await.unwrap_err();
    assert_eq!(error.code(), Code::AptFailed, "{error}");
    assert!(error.causes().join("\n").contains("http://127.0.0.1:9/debian"), "{error:?}");
}

#[tokio::test]
async fn components_of_the_distribution_are_enabled_beside_its_own_files() {
    let key = Key::generate("tests");
    let debian_files = archive(&key, "Debian", &["main", "contrib", "non-free"]);
    let third_files = archive(&key, "Third Party", &["main", "contrib", "non-free"]);
    let (debian, third) = (Web::serve(debian_files.path()), Web::serve(third_files.path()));
    let root = Root::new();
    let host = Host::new(root.path().to_path_buf());
    root.write("/usr/share/keyrings/archive.asc", &key.armoured);
    let entry = |web: &Web, components: &str| {
        format!(
            "deb [signed-by=/usr/share/keyrings/archive.asc] {}/debian bookworm {components}\n",
            web.url()
        )
    };
    let list = entry(&debian, "main") + &entry(&third, "main");
    root.write("/etc/apt/sources.list", &list);
    let path = "/etc/apt/sources.list.d/gpu-bootstrap-components.sources";
    let action = |components: &[&str]| {
        Action::AptComponents(AptComponents { path: path.into(), components: strings(components) })
    };

    let wanted = action(&["contrib", "non-free"]);
    assert_eq!(wanted.check(&host).await.unwrap().state(), "needed");
    wanted.apply(&host).await.unwrap();
    let after = wanted.check(&host).await.unwrap();
    assert_eq!(after.state(), "satisfied", "{}", after.why());
    let ours = root.read(path);
    assert!(ours.contains(&debian.url()) && !ours.contains(&third.url()), "{ours}");
    assert_eq!(root.read("/etc/apt/sources.list"), list, "a shared file is not edited");
    assert!(root.run("apt-cache", &["policy", "from-non-free"]).contains("Candidate: 1"));

    let error = action(&["non-free-firmware"]).apply(&host).await.unwrap_err();
    assert_eq!(error.code(), Code::ComponentMissing, "{error}");
    assert_eq!(root.read(path), ours, "what was there stays");
}
