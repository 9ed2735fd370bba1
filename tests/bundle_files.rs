//! Package files by URL in bundles, by the real binary with real apt and dpkg: one whose sum nobody gave, from the signed index of
//! its repository, and one from a bucket; both installed where nothing but the bundle can be reached.
#![allow(clippy::unwrap_used, reason = "test code: a panic is a failure with a place")]

#[path = "support/bucket.rs"]
mod bucket;
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

use bucket::Bucket;
use bundle_scene::{Scene, copy, files, is_installed, told};
use debs::Deb;
use repository::sum;
use root::Root;

#[test]
fn files_without_a_sum_and_files_from_a_bucket_are_in_the_bundle_and_install_from_it() {
    let scene = Scene::new();
    let served = tempfile::tempdir().unwrap();
    let place = served.path().join("gpu-files");
    fs::create_dir_all(&place).unwrap();
    let gdrcopy = Deb::new("gdrdrv-dkms", "2.5.1").file("/usr/share/gdrdrv", "x").build(&place);
    let name = gdrcopy.file_name().unwrap().to_str().unwrap();
    let (sum_of_gdrcopy, _) = sum(&fs::read(&gdrcopy).unwrap());
    let bucket = Bucket::serve(&moto::python(), served.path());
    let more = format!(
        "[distributed]\ngdrcopy = [{{ url = \"s3://gpu-files/{name}\", sha256 = \"{sum_of_gdrcopy}\" }}]\n"
    );
    // A file of the repository that the configuration names, whose key the catalog has.
    let part = "cuda-not-wanted_1_amd64.deb";
    let (sum_of_part, _) = sum(&fs::read(scene.nvidia.index_dir().join(part)).unwrap());
    let url = format!("{}{part}", scene.nvidia.url(&scene.web.url()));
    let create = fs::read_to_string(scene.at("create.toml")).unwrap();
    let (before, _) = create.split_once("deb = [").unwrap();
    scene.write("create.toml", &format!("{before}deb = [{{ url = \"{url}\" }}]\n{more}"));

    let mut command = scene.create(scene.at("bundle").to_str().unwrap());
    command.env("AWS_ENDPOINT_URL_S3", &bucket.url).env("AWS_REGION", "us-east-1");
    command.env("AWS_ACCESS_KEY_ID", bucket::KEY.0).env("AWS_SECRET_ACCESS_KEY", bucket::KEY.1);
    let made = told(command.arg("--json"));
    assert_eq!(made.code, 0, "{}", made.stderr);
    let document: serde_json::Value = serde_json::from_str(&made.stdout).unwrap();
    let sha256 = document["manifest-sha256"].as_str().unwrap();
    let names = files(&scene.at("bundle"));
    for sum in [&sum_of_part, &sum_of_gdrcopy] {
        assert!(names.iter().any(|n| n.ends_with(&format!("/debs/{sum}.deb"))), "{sum}: {names:#?}");
    }

    let root = Root::of("bookworm", &[]);
    copy(&scene.at("bundle"), &root.at("/srv/bundle"));
    scene.seed(&root);
    drop(bucket);
    let asked = scene.web.requests().len();
    let mut command = scene.run(&root, "/srv/bundle", sha256);
    let config = fs::read_to_string(scene.at("run.toml")).unwrap();
    scene.write("run.toml", &format!("{config}{more}"));
    let done = told(&mut command);
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert!(is_installed(&root, "cuda-not-wanted") && is_installed(&root, "gdrdrv-dkms"));
    assert_eq!(scene.web.requests().len(), asked, "nothing came from elsewhere");
}
