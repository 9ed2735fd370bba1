//! A bundle that is made anew in its own place: whoever installs from it finds the old one or the new one, whole, whenever the
//! making is killed.
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

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use bundle_scene::{Scene, copy, files, verify};
use repository::sum;

/// How long a making may take here.
const PATIENCE: Duration = Duration::from_mins(2);

/// The directories of bundles' files.
fn directories(bundle: &Path) -> Vec<String> {
    let names = fs::read_dir(bundle).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.filter(|n| n.starts_with("files-")).collect();
    names.sort();
    names
}

/// The only file whose path has this in it.
fn one(bundle: &Path, part: &str) -> PathBuf {
    let found: Vec<String> = files(bundle).into_iter().filter(|n| n.contains(part)).collect();
    let [path] = &found[..] else { panic!("{part}: {found:?}") };
    bundle.join(path)
}

#[test]
fn the_old_files_stay_until_the_new_manifest_is_there_and_what_both_have_is_had_once() {
    let scene = Scene::new();
    let first = scene.made("bundle");
    let bundle = scene.at("bundle");
    let old = directories(&bundle);
    // A file that somebody has changed meanwhile is not one that both have.
    let changed = one(&bundle, "cuda-part-12-8_");
    let mut bytes = fs::read(&changed).unwrap();
    bytes[200] ^= 1;
    fs::write(&changed, bytes).unwrap();
    let same = fs::metadata(one(&bundle, "cuda-toolkit-12-8_")).unwrap().ino();
    scene.update("2.1");
    let asked = scene.web.requests().len();
    let second = scene.made("bundle");
    assert_ne!(first, second);
    let new = directories(&bundle);
    assert!(old.len() == 1 && new.len() == 1 && old != new, "{old:?} {new:?}");
    assert_eq!(fs::metadata(one(&bundle, "cuda-toolkit-12-8_")).unwrap().ino(), same, "it was linked");
    let again: Vec<String> = scene.web.requests().split_off(asked);
    assert!(!again.iter().any(|r| r.contains("cuda-toolkit")), "{again:?}");
    assert!(again.iter().any(|r| r.contains("cuda-part")), "{again:?}");
    one(&bundle, "dist-lib_2.1");
    assert_eq!(verify(&bundle, &["--sha256", &second]).code, 0);
    // The same from nothing is the same.
    assert_eq!(scene.made("fresh"), second);
}

/// What lies there must be a whole bundle, the old one or the new one; what else lies there is nobody's.
fn judge(bundle: &Path, wanted: [&str; 2], when: &str) -> usize {
    let (now, _) = sum(&fs::read(bundle.join("manifest.json")).unwrap());
    let which =
        wanted.iter().position(|sum| *sum == now).unwrap_or_else(|| panic!("{when}: neither manifest"));
    let told = verify(bundle, &["--sha256", &now, "--json"]);
    let document: serde_json::Value = serde_json::from_str(&told.stdout).unwrap();
    assert!(document["wrong"].as_object().unwrap().is_empty(), "{when}: {document:#}");
    which
}

fn kill_after(mut child: Child, is_time: impl Fn() -> bool, then: Duration) {
    let until = Instant::now() + PATIENCE;
    while !is_time() && child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < until);
        std::thread::sleep(Duration::from_micros(200));
    }
    std::thread::sleep(then);
    drop(child.kill());
    child.wait().unwrap();
}

#[test]
fn a_making_that_is_killed_leaves_the_old_bundle_or_the_new_one_whole() {
    let scene = Scene::new();
    let first = scene.made("old");
    scene.update("2.1");
    let second = scene.made("new");
    let (bundle, manifest) = (scene.at("bundle"), scene.at("bundle/manifest.json"));
    let mut seen = [0; 2];
    let mut again = |when: &str, is_time: &dyn Fn() -> bool, then: Duration| {
        drop(fs::remove_dir_all(&bundle));
        copy(&scene.at("old"), &bundle);
        let mut create = scene.create(bundle.to_str().unwrap());
        let child = create.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        kill_after(child, is_time, then);
        seen[judge(&bundle, [&first, &second], when)] += 1;
    };
    let has_begun = || directories(&bundle).len() == 2;
    for then in [0, 1, 2, 4, 8, 16, 32] {
        again(&format!("{then} ms after the first new file"), &has_begun, Duration::from_millis(then));
    }
    // While what is left of the old one is being removed.
    let has_turned = || fs::read(&manifest).is_ok_and(|bytes| sum(&bytes).0 == second);
    for then in [0, 1, 2, 4] {
        again(&format!("{then} ms after the new manifest"), &has_turned, Duration::from_millis(then));
    }
    assert!(seen[0] >= 1 && seen[1] >= 4, "{seen:?}");
    // Whatever was left: the next one ends it, and nothing else is there.
    assert_eq!(scene.made("bundle"), second);
    assert_eq!(verify(&bundle, &["--sha256", &second]).code, 0);
    assert_eq!(files(&bundle), files(&scene.at("new")));
}
