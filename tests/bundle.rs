//! Bundles, by the real binary with real apt and dpkg: made from a repository laid out like NVIDIA's and one that stands
//! for the distribution's, installed in a disposable root whose own sources lead nowhere, and refused with every flaw.
#![allow(clippy::unwrap_used, reason = "test code: a panic is a failure with a place")]

#[path = "support/bundle_scene.rs"]
mod bundle_scene;
#[path = "support/debs.rs"]
mod debs;
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
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bundle_scene::{Scene, copy, files, files_or_none, is_installed, told, verify};
use machine::{binary, ran};
use moto::Moto;
use repository::sum;
use root::Root;
use web::{Answer, Web};

#[test]
fn a_bundle_installs_where_no_source_can_be_reached_and_is_not_needed_afterwards() {
    let scene = Scene::new();
    let sha256 = scene.made("bundle");
    let bundle = scene.at("bundle");
    let names = files(&bundle);
    for part in [
        "cuda-toolkit-12-8_",
        "cuda-part-12-8_",
        "dist-lib_",
        "base-thing_",
        "debs/",
        "InRelease",
        "manifest.json",
    ] {
        assert!(names.iter().any(|n| n.contains(part)), "{part} is not in {names:#?}");
    }
    // What every machine has is not in it, unless something asks for a version of it.
    for part in ["base-other_", "cuda-not-wanted", "dist-apart"] {
        assert!(!names.iter().any(|n| n.contains(part)), "{part} is in {names:#?}");
    }
    // The same artefacts make the same bundle.
    assert_eq!(scene.made("again"), sha256);
    assert_eq!(verify(&bundle, &["--sha256", &sha256]).code, 0);

    let root = Root::of("bookworm", &[]);
    copy(&bundle, &root.at("/srv/bundle"));
    // A machine that lacks what every one is taken to have is told so, before anything is installed.
    let lacking = told(&mut scene.run(&root, "/srv/bundle", &sha256));
    assert_eq!(lacking.code, 1);
    assert!(lacking.stderr.contains("lacks base-other_1_all.deb"), "{}", lacking.stderr);
    assert!(!is_installed(&root, "cuda-toolkit-12-8"));
    scene.seed(&root);
    let first = told(&mut scene.run(&root, "/srv/bundle", &sha256));
    assert_eq!(first.code, 0, "{}\n{}", first.stdout, first.stderr);
    for package in ["cuda-toolkit-12-8", "cuda-part-12-8", "dist-lib", "libcudnn8"] {
        assert!(is_installed(&root, package), "{package}");
    }
    assert!(!root.at("/etc/apt/sources.list.d/gpu-bootstrap-nvidia.sources").exists());
    assert!(!root.at("/var/lib/gpu-bootstrap/bundle/files").exists(), "its space is given back");
    let result = root.read("/run/gpu-bootstrap/result.json");
    assert!(result.contains("\"pipeline\""), "the pipeline takes a bundle's files: {result}");

    fs::remove_dir_all(root.at("/srv/bundle")).unwrap();
    let second = told(&mut scene.run(&root, "/srv/bundle", &sha256));
    assert_eq!(second.code, 0, "{}\n{}", second.stdout, second.stderr);
}

#[test]
fn a_flipped_byte_anywhere_is_refused_by_name() {
    let scene = Scene::new();
    let sha256 = scene.made("bundle");
    let root = Root::of("bookworm", &[]);
    let names = files(&scene.at("bundle"));
    assert!(names.len() >= 10, "{names:?}");
    let before = root.read("/var/lib/dpkg/status");
    for name in &names {
        let flawed = root.at("/srv/bundle");
        drop(fs::remove_dir_all(&flawed));
        copy(&scene.at("bundle"), &flawed);
        let mut bytes = fs::read(flawed.join(name)).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(flawed.join(name), bytes).unwrap();
        let seen = verify(&flawed, &["--sha256", &sha256]);
        assert_eq!(seen.code, 1, "{name}: {}", seen.stdout);
        assert!(seen.stderr.contains(name.as_str()), "{name}: {}", seen.stderr);
        let run = told(&mut scene.run(&root, "/srv/bundle", &sha256));
        assert_eq!(run.code, 1, "{name}: {}", run.stdout);
        assert!(run.stderr.contains(name.as_str()), "{name}: {}", run.stderr);
        assert_eq!(root.read("/var/lib/dpkg/status"), before, "{name}");
        // What was kept of a manifest that was right must not make another one right.
        drop(fs::remove_file(root.at("/var/lib/gpu-bootstrap/bundle/manifest.json")));
    }
}

#[test]
fn what_is_missing_extra_short_or_a_link_is_named() {
    let scene = Scene::new();
    scene.made("bundle");
    let bundle = scene.at("bundle");
    let present = files(&bundle);
    let named = |part: &str| present.iter().find(|n| n.contains(part)).unwrap().clone();
    let (gone, short, link) = (named("dist-lib"), named("cuda-part"), named("InRelease"));
    fs::remove_file(bundle.join(&gone)).unwrap();
    fs::write(bundle.join(&short), "!<arch>\n").unwrap();
    fs::rename(bundle.join(&link), scene.at("elsewhere")).unwrap();
    std::os::unix::fs::symlink(scene.at("elsewhere"), bundle.join(&link)).unwrap();
    let more = short.replace("cuda-part", "more");
    fs::write(bundle.join(&more), "").unwrap();
    let told = verify(&bundle, &["--json"]);
    assert_eq!(told.code, 1);
    let document: serde_json::Value = serde_json::from_str(&told.stdout).unwrap();
    assert_eq!(document["wrong"].as_object().unwrap().len(), 3, "{document:#}");
    assert_eq!(document["wrong"][&gone], "is missing");
    assert!(document["wrong"][&short].as_str().unwrap().contains("has 8 bytes"));
    assert!(document["wrong"][&link].as_str().unwrap().contains("symbolic link"));
    assert_eq!(document["extra"][0], more);
    // Made again, it is whole, and what no manifest names is gone.
    scene.made("bundle");
    let told = verify(&bundle, &[]);
    assert_eq!(told.code, 0, "{}", told.stdout);
}

#[test]
fn a_manifest_is_believed_by_its_sum_alone_and_paths_lead_nowhere_else() {
    let scene = Scene::new();
    let sha256 = scene.made("bundle");
    let root = Root::of("bookworm", &[]);
    copy(&scene.at("bundle"), &root.at("/srv/bundle"));
    let none = told(&mut scene.run(&root, "/srv/bundle", ""));
    assert_eq!(none.code, 2, "{}", none.stderr);
    assert!(none.stderr.contains("source.bundle-sha256 is not set"), "{}", none.stderr);
    let wrong = told(&mut scene.run(&root, "/srv/bundle", &"0".repeat(64)));
    assert_eq!(wrong.code, 1);
    assert!(wrong.stderr.contains("nothing of it was read"), "{}", wrong.stderr);
    let nowhere = told(&mut scene.run(&root, "/srv/nowhere", &sha256));
    assert!(nowhere.code == 1 && nowhere.stderr.contains("has no manifest.json"), "{}", nowhere.stderr);
    let text = root.read("/srv/bundle/manifest.json");
    for path in ["../../etc/passwd", "/etc/passwd", "debs/../../x"] {
        let hostile = text.replacen("keys/distribution.gpg", path, 2).replacen(
            "\"keys/nvidia.asc\"",
            &format!("\"{path}\""),
            1,
        );
        root.write("/srv/bundle/manifest.json", &hostile);
        let (sum, _) = sum(hostile.as_bytes());
        let run = told(&mut scene.run(&root, "/srv/bundle", &sum));
        assert_eq!(run.code, 1, "{path}");
        assert!(run.stderr.contains("no path below the bundle"), "{path}: {}", run.stderr);
    }
}

#[test]
fn another_gpu_another_system_and_another_wish_are_refused() {
    let scene = Scene::new();
    let sha256 = scene.made("bundle");
    let root = Root::of("bookworm", &[]);
    copy(&scene.at("bundle"), &root.at("/srv/bundle"));
    let mut run = scene.run(&root, "/srv/bundle", &sha256);
    let config = fs::read_to_string(scene.at("run.toml")).unwrap();
    scene.write("run.toml", &config.replace("g4dn.xlarge", "p5.48xlarge"));
    let it = told(&mut run);
    assert_eq!(it.code, 3, "{}", it.stderr);
    assert!(
        it.stderr.contains("was made for GPUs of Turing, and this machine has one of Hopper"),
        "{}",
        it.stderr
    );
    scene.write("run.toml", &format!("{config}[cuda]\ntoolkit = \"12.9\"\n"));
    let it = told(&mut run);
    assert_eq!(it.code, 3, "{}", it.stderr);
    assert!(it.stderr.contains("was not made with cuda-toolkit-12-9"), "{}", it.stderr);
    scene.write("run.toml", &config);
    let os = root.read("/etc/os-release");
    root.write("/etc/os-release", &os.replace("VERSION_ID=\"12\"", "VERSION_ID=\"13\""));
    let it = told(&mut run);
    assert_eq!(it.code, 3, "{}", it.stderr);
    assert!(it.stderr.contains("was made for debian12 on amd64, and this is debian13"), "{}", it.stderr);
}

#[test]
fn licences_are_asked_for_and_other_peoples_directories_are_left_alone() {
    let scene = Scene::new();
    let out = scene.at("out");
    let mut command = scene.create(out.to_str().unwrap());
    let args: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
    let at = args.iter().position(|a| a == "--accept-licence").unwrap();
    let mut without = binary();
    without.args(&args[..at]).args(&args[at + 2..]);
    let told = ran(&mut without);
    assert_eq!(told.code, 2, "{}", told.stderr);
    assert!(told.stderr.contains("--accept-licence nvidia"), "{}", told.stderr);
    assert!(!files(&out).iter().any(|n| n.ends_with("manifest.json")));
    drop(fs::remove_dir_all(&out));
    fs::create_dir(&out).unwrap();
    fs::write(out.join("thesis.tex"), "years of work").unwrap();
    let told = ran(&mut command);
    assert_eq!(told.code, 2, "{}", told.stderr);
    assert!(told.stderr.contains("neither empty nor a bundle"), "{}", told.stderr);
    assert_eq!(files(&out), ["thesis.tex"]);
}

#[test]
fn a_manifest_of_something_else_makes_no_bundle_and_two_do_not_work_in_one_directory() {
    let scene = Scene::new();
    let place = scene.at("site");
    fs::create_dir_all(place.join("keys")).unwrap();
    fs::write(place.join("manifest.json"), "{\"name\": \"a web page\"}").unwrap();
    fs::write(place.join("keys/mine.asc"), "mine").unwrap();
    let refused = told(&mut scene.create(place.to_str().unwrap()));
    assert_eq!(refused.code, 2, "{}", refused.stderr);
    assert!(refused.stderr.contains("is neither empty nor a bundle"), "{}", refused.stderr);
    assert_eq!(files(&place), ["keys/mine.asc", "manifest.json"]);
    scene.made("bundle");
    let held = fs::File::open(scene.at("bundle")).unwrap();
    let held = nix::fcntl::Flock::lock(held, nix::fcntl::FlockArg::LockExclusive).unwrap();
    let refused = told(&mut scene.create(scene.at("bundle").to_str().unwrap()));
    assert_eq!(refused.code, 4, "{}", refused.stderr);
    drop(held);
    scene.made("bundle");
}

#[test]
fn an_index_that_the_keyring_does_not_vouch_for_makes_no_bundle() {
    let scene = Scene::new();
    let other = debs::Key::new();
    other.export(&scene.at("dist.gpg"));
    let told = ran(&mut scene.create(scene.at("out").to_str().unwrap()));
    assert_eq!(told.code, 1, "{}", told.stderr);
    assert!(!scene.at("out/manifest.json").exists());
}

#[test]
fn a_making_that_was_killed_goes_on_with_what_is_there() {
    let scene = Scene::new();
    let reference = scene.made("reference");
    let root = scene.nvidia.root().to_path_buf();
    // A server on which one file never ends.
    let slow = Web::answer(move |path| {
        if path.contains("cuda-toolkit") {
            std::thread::sleep(Duration::from_secs(30));
        }
        fs::read(root.join(path.trim_start_matches('/'))).map_or(Answer::Missing, Answer::Body)
    });
    let config = fs::read_to_string(scene.at("create.toml")).unwrap();
    let out = scene.at("out");
    scene.write("create.toml", &config.replace(&scene.web.url(), &slow.url()));
    let mut child =
        scene.create(out.to_str().unwrap()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let until = Instant::now() + Duration::from_mins(2);
    while !files_or_none(&out).iter().any(|n| n.contains("/distribution/") && n.contains("dist-lib")) {
        assert!(Instant::now() < until && child.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!out.join("manifest.json").exists());
    let kept =
        fs::metadata(out.join(files_or_none(&out).iter().find(|n| n.contains("dist-lib")).unwrap())).unwrap();
    scene.write("create.toml", &config);
    assert_eq!(scene.made("out"), reference);
    let now = files(&out);
    let dist = out.join(now.iter().find(|n| n.contains("dist-lib")).unwrap());
    assert_eq!(
        fs::metadata(dist).unwrap().modified().unwrap(),
        kept.modified().unwrap(),
        "it was not had again"
    );
    assert!(!out.join(".gpu-bootstrap-create").exists());
}

#[test]
fn a_bucket_is_made_verified_and_installed_from() {
    let scene = Scene::new();
    let mut moto = Moto::start_for_buckets();
    let (url, writer, stranger) = (moto.url.clone(), moto.writer.clone(), moto.stranger.clone());
    let signed_by = |(key, secret): (&str, &str), command: &mut Command| {
        command.env("AWS_ENDPOINT_URL", &url).env("AWS_REGION", "us-east-1");
        ran(command.env("AWS_ACCESS_KEY_ID", key).env("AWS_SECRET_ACCESS_KEY", secret))
    };
    let signed = |command: &mut Command| signed_by((&writer.0, &writer.1), command);
    let place = "s3://gpu-bundles/debian12/t4";
    for other in [(&*stranger.0, &*stranger.1), (&writer.0, "another secret"), ("AKIANOBODY", "nothing")] {
        let refused = signed_by(other, &mut scene.create(place));
        assert_eq!(refused.code, 1, "{}", refused.stderr);
        assert!(refused.stderr.contains("s3:PutObject"), "{}", refused.stderr);
    }
    let made = signed(scene.create(place).arg("--json"));
    assert_eq!(made.code, 0, "{}", made.stderr);
    let document: serde_json::Value = serde_json::from_str(&made.stdout).unwrap();
    let sha256 = document["manifest-sha256"].as_str().unwrap().to_owned();
    assert_eq!(scene.made("local"), sha256, "a bucket's bundle is a directory's");
    let told = signed(binary().args(["bundle", "verify", place, "--sha256", &sha256]));
    assert_eq!(told.code, 0, "{}\n{}", told.stdout, told.stderr);

    let root = Root::of("bookworm", &[]);
    scene.seed(&root);
    let run = signed(&mut scene.run(&root, place, &sha256));
    assert_eq!(run.code, 0, "{}\n{}", run.stdout, run.stderr);
    assert!(is_installed(&root, "cuda-toolkit-12-8") && is_installed(&root, "libcudnn8"));

    // Made anew: S3 itself copies what both have, and what only the first had is gone.
    scene.update("2.1");
    moto.forget_requests();
    let made = signed(scene.create(place).arg("--json"));
    assert_eq!(made.code, 0, "{}", made.stderr);
    let sent: Vec<String> =
        moto.requests().into_iter().filter(|r| r.starts_with("PUT") && !r.contains(" copy")).collect();
    for what in ["dist-lib_2.1", "Packages", "InRelease", "manifest.json"] {
        assert!(sent.iter().any(|r| r.contains(what)), "{what}: {sent:#?}");
    }
    assert!(!sent.iter().any(|r| r.contains("cuda-part") || r.contains("/debs/")), "{sent:#?}");
    let told = signed(binary().args(["bundle", "verify", place]));
    assert_eq!(told.code, 0, "{}\n{}", told.stdout, told.stderr);
    let document: serde_json::Value = serde_json::from_str(&made.stdout).unwrap();
    let sha256 = document["manifest-sha256"].as_str().unwrap().to_owned();
    assert_eq!(scene.made("local"), sha256);

    let flipped = files(&scene.at("local")).into_iter().find(|n| n.contains("cuda-part")).unwrap();
    moto.flip(&format!("debian12/t4/{flipped}"));
    let told = signed(binary().args(["bundle", "verify", place]));
    assert!(told.code == 1 && told.stderr.contains(&flipped), "{}\n{}", told.stdout, told.stderr);
    let root = Root::of("bookworm", &[]);
    let run = signed(&mut scene.run(&root, place, &sha256));
    let said = format!("{}{}", run.stdout, run.stderr);
    assert!(run.code == 1 && said.contains(&flipped), "{said}");
    assert!(!is_installed(&root, "cuda-toolkit-12-8"));
}
