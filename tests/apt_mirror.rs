//! Ubuntu's archive at another address, with real apt: the sources that name it, its index, and a mirror that does not
//! answer. The archive is a signed repository on loopback.
#![allow(clippy::unwrap_used, reason = "test code: a panic is a failure with a place")]

#[path = "support/apt_machine.rs"]
mod apt_machine;
#[path = "support/debs.rs"]
mod debs;
#[path = "support/facts.rs"]
mod facts;
#[path = "support/repository.rs"]
mod repository;
#[path = "support/root.rs"]
mod root;
#[path = "support/web.rs"]
mod web;

use apt_machine::{Machine, block};
use debs::Deb;
use gpu_bootstrap::action::{Action, Applied, Check};
use gpu_bootstrap::catalog::choose::{Source, Stack};
use gpu_bootstrap::config::Config;
use gpu_bootstrap::config::schema::AptMirror;
use gpu_bootstrap::plan;

const SOURCES: &str = "/etc/apt/sources.list";

fn action(url: &str) -> Action {
    serde_json::from_value(serde_json::json!({
        "apt-mirror": { "url": url, "replaces": ["archive.ubuntu.com/ubuntu/"] }
    }))
    .unwrap()
}

/// A machine whose sources name Ubuntu's archive; what they are then.
fn machine() -> (Machine, String) {
    let machine = Machine::new(&[Deb::new("tool", "1")]);
    let sources = machine.root.read(SOURCES).replace(&machine.web.url(), "http://archive.ubuntu.com/ubuntu");
    let sources = format!("# of the image\n{sources}");
    assert!(sources.contains("archive.ubuntu.com"), "{sources}");
    machine.root.write(SOURCES, &sources);
    machine.root.run("sh", &["-c", "rm -rf /var/lib/apt/lists/*"]);
    (machine, sources)
}

#[test]
fn the_archive_is_named_by_the_mirror_and_packages_come_from_it() {
    let (machine, sources) = machine();
    let mirror = action(&machine.web.url());
    assert!(matches!(block(mirror.check(&machine.host)).unwrap(), Check::Needed { .. }));
    assert_eq!(block(mirror.apply(&machine.host)).unwrap(), Applied::Done);
    let found = block(mirror.check(&machine.host)).unwrap();
    assert!(matches!(found, Check::Satisfied { .. }), "{found:?}");
    assert_eq!(
        machine.root.read(SOURCES),
        sources.replace("http://archive.ubuntu.com/ubuntu", &machine.web.url())
    );
    machine.install(&["tool"], gpu_bootstrap::install::Options::default()).unwrap();
    assert_eq!(machine.state("tool"), "ii 1");
}

#[test]
fn a_mirror_that_does_not_answer_leaves_the_sources_as_they_were() {
    let (machine, sources) = machine();
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mirror = action(&format!("http://{}/ubuntu/", nobody.local_addr().unwrap()));
    drop(nobody);
    let error = block(mirror.apply(&machine.host)).unwrap_err();
    assert!(error.causes().join(" ").contains("127.0.0.1"), "{error}: {:?}", error.causes());
    assert_eq!(machine.root.read(SOURCES), sources);
}

#[test]
fn it_is_planned_on_ubuntu_in_a_known_region_where_it_is_asked_for() {
    let stack = Stack {
        gpu_architectures: Vec::new(),
        source: Source::Distro { components: Vec::new() },
        driver: None,
        toolkits: Vec::new(),
        cudnn: None,
        cudnn_debs: Vec::new(),
        fabric_manager: None,
        expect_gpus: None,
        most_efa: None,
        gpu_memory: None,
        reasons: Vec::new(),
        unverified: Vec::new(),
    };
    let planned = |distro: &str, mirror: AptMirror, on_ec2: bool| {
        let mut facts = facts::with_gpu(distro, 0x1eb8);
        if on_ec2 {
            facts.identity.instance = facts::instance(distro, "g4dn.xlarge").identity.instance;
        }
        let mut config = Config::default();
        config.source.apt_mirror = mirror;
        config.profile.path = false;
        let plan = plan::build(&facts, &config, &stack, &[]).unwrap();
        let step = plan.steps.into_iter().find(|step| step.id == "apt-mirror")?;
        Some(
            serde_json::to_value(&step.actions[0]).unwrap()["apt-mirror"]["url"].as_str().unwrap().to_owned(),
        )
    };
    let region = facts::instance("ubuntu2404", "g4dn.xlarge").identity.instance.unwrap().value.region;
    let url = format!("http://{region}.ec2.archive.ubuntu.com/ubuntu/");
    assert_eq!(planned("ubuntu2404", AptMirror::Region, true), Some(url));
    assert_eq!(planned("ubuntu2404", AptMirror::Keep, true), None);
    assert_eq!(planned("ubuntu2404", AptMirror::Region, false), None);
    assert_eq!(planned("debian12", AptMirror::Region, true), None);
}
