//! A disposable root whose only source is a signed repository behind a web server on loopback.
#![allow(dead_code, reason = "shared between test files, not each of which uses all of it")]

use std::path::Path;

use gpu_bootstrap::error::Error;
use gpu_bootstrap::host::Host;
use gpu_bootstrap::host::apt::Request;
use gpu_bootstrap::install::{Installer, Options, Report, Rung};

use super::debs::{Deb, Key, Repository};
use super::root::Root;
use super::web::Web;

/// Plays the stand-ins' part.
pub(crate) const AGENT: &str = env!("CARGO_BIN_EXE_gpu-bootstrap");

/// A root whose only source is a signed repository behind http.
pub(crate) struct Machine {
    pub(crate) root: Root,
    pub(crate) host: Host,
    pub(crate) repo: Repository,
    pub(crate) key: Key,
    pub(crate) web: Web,
}

impl Machine {
    pub(crate) fn new(packages: &[Deb]) -> Self {
        Self::in_root(Root::new(), packages)
    }

    pub(crate) fn in_root(root: Root, packages: &[Deb]) -> Self {
        let repo = Repository::new(root.path(), "repo");
        let web = Web::serve(&root.at("/srv/repo"));
        Self::serving(root, repo, web, packages)
    }

    pub(crate) fn serving(root: Root, repo: Repository, web: Web, packages: &[Deb]) -> Self {
        let key = Key::new();
        for package in packages {
            repo.add(package);
        }
        key.export(&root.at("/etc/apt/keyrings/repo.gpg"));
        root.write(
            "/etc/apt/sources.list",
            &format!("deb [signed-by=/etc/apt/keyrings/repo.gpg] {} ./\n", web.url()),
        );
        repo.publish(Some(&key));
        root.run("apt-get", &["-qq", "update"]);
        let host = Host::new(root.path().into());
        Self { root, host, repo, key, web }
    }

    pub(crate) fn install(&self, packages: &[&str], options: Options) -> Result<Report, Error> {
        let request =
            Request { packages: packages.iter().map(|p| (*p).to_owned()).collect(), ..Request::default() };
        let installer = Installer::new(&self.host).with(options).playing(Path::new(AGENT));
        block(installer.install(&request))
    }

    /// Installs, and says how and why so.
    pub(crate) fn way(&self, packages: &[&str]) -> (Rung, String) {
        let report = self.install(packages, Options::default()).unwrap();
        (report.install, report.why)
    }

    pub(crate) fn state(&self, package: &str) -> String {
        let query = ["-W", "-f", "${db:Status-Abbrev}${Version}", package];
        let output = self.root.command("dpkg-query", &query).output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

pub(crate) fn block<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

pub(crate) fn most(most: Rung) -> Options {
    Options { most, ..Options::default() }
}

/// Bytes that do not compress to nothing.
pub(crate) fn noise(length: usize, seed: u32) -> Vec<u8> {
    let mut x = seed | 1;
    let next = |x: &mut u32| {
        *x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        x.to_be_bytes()[0]
    };
    (0..length).map(|i| if i % 2 == 0 { next(&mut x) } else { 0 }).collect()
}

/// Takes a mount away at once, although a program that another test is just starting may still hold a file of it.
pub(crate) fn unmount(path: &Path) {
    nix::mount::umount2(path, nix::mount::MntFlags::MNT_DETACH).unwrap();
}
