//! What is fuzzed: every reader of bytes that come from outside. Each target takes any bytes at all and must neither
//! panic nor hang nor take much memory; where two ways must agree, it compares them. `fuzz/run` drives them with
//! libFuzzer; the tests below run the kept corpora on every `cargo test`. Not part of a release.

use std::io::Write;

use crate::action::repository::packages::{Index, essential_closure};
use crate::action::repository::{control, openpgp, preferences, release::Release, sources};
use crate::config::layers::{Layer, Origin, check_layers};
use crate::config::user_data::{self, UserData};
use crate::engine::receipt::Receipt;
use crate::facts::gpu::{driver, lspci, pci};
use crate::facts::{identity, os};
use crate::host::dpkg::{Database, compare_versions};
use crate::host::{apt, ld_cache};
use crate::plan::{step, values};
use crate::report::remote;
use crate::report::status_file::Status;
use crate::user_data::{Included, parts, verdicts};
use crate::{aws, device_query, install, instance, user_data_run};

/// A target takes any bytes.
pub type Target = fn(&[u8]);

/// Every target, by the name that `fuzz/run` takes.
pub const TARGETS: [(&str, Target); 22] = [
    ("cloud-config", crate::cloud_config::fuzz),
    ("user-data", user_data),
    ("config", config),
    ("identity-document", identity_document),
    ("lspci", lspci),
    ("proc", proc),
    ("os", operating_system),
    ("release-file", release_file),
    ("packages-index", packages_index),
    ("openpgp-key", openpgp_key),
    ("apt-sources", apt_sources),
    ("apt-output", apt_output),
    ("dpkg-status", dpkg_status),
    ("package-file", package_file),
    ("http-answer", install::fetch::fuzz_answer),
    ("aws-answer", aws_answer),
    ("receipt", receipt),
    ("probe-records", probe_records),
    ("kernel-log", kernel_log),
    ("linker-cache", linker_cache),
    ("instance", instance::fuzz),
    ("step-file", step_file),
];

/// The target of this name.
pub fn target(name: &str) -> Option<Target> {
    TARGETS.iter().find(|(known, _)| *known == name).map(|(_, target)| *target)
}

/// Detection of user-data's form, MIME, base64, gzip; then what is ours as configuration; then every part by
/// cloud-init's rules; configuration in archives, behind links, in scripts and files.
fn user_data(bytes: &[u8]) {
    if let Ok(parts) = parts(bytes) {
        for part in &parts {
            assert!(!part.filename.is_empty() && part.content_type.contains('/'), "{part:?}");
        }
        verdicts(&parts);
    }
    if let Ok(UserData::Config { layers, .. }) = user_data::read(bytes) {
        let _ = check_layers(&layers);
    }
    // As they are, and as what a link brings; the seeds have links to three letters.
    let mut included = Included::default();
    included.insert(b"foo".to_vec());
    let linked = format!("#include\nhttps://a.b/c#sha256={}\n", included.insert(bytes.to_vec()));
    for bytes in [bytes, linked.as_bytes()] {
        let _ = user_data::find(bytes, &included);
        user_data_run::preview(bytes, &included);
    }
}

fn config(bytes: &[u8]) {
    if let Ok(layer) = Layer::from_bytes(Origin::File("config.toml".into()), bytes) {
        let _ = check_layers(&[layer]);
    }
}

fn step_file(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(raw) = step::parse("50-step.toml", &text) {
        let _ = raw.fill("step", values::VALUE_NAMES, &values::Values::default());
    }
}

fn identity_document(bytes: &[u8]) {
    if let Ok(instance) = identity::parse_document(bytes, "http://169.254.169.254/") {
        assert!(!instance.id.is_empty());
    }
}

fn lspci(bytes: &[u8]) {
    lspci::parse(&String::from_utf8_lossy(bytes));
}

/// `/proc/bus/pci/devices`, `/proc/driver/nvidia`, `/proc/devices`, and configuration space.
fn proc(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    pci::proc_bus_devices(&text);
    pci::sysfs_number(&text);
    driver::version(&text);
    driver::information("0000:00:1e.0", &text);
    driver::character_major(&text, "nvidia");
    if let Some(address) = pci::Address::parse(&text) {
        assert_eq!(
            pci::Address::parse(&address.to_string()),
            Some(address),
            "an address that does not print as itself"
        );
    }
    if let Some(address) = pci::Address::parse("0000:00:1e.0") {
        pci::config_space(address, bytes);
    }
}

fn operating_system(bytes: &[u8]) {
    os::os_release(&String::from_utf8_lossy(bytes));
    os::container_of_environment(bytes);
}

fn release_file(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(release) = Release::parse(&text) {
        release.file("Packages.gz");
    }
}

fn packages_index(bytes: &[u8]) {
    let _ = essential_closure(bytes);
    let Ok(index) = Index::read(bytes) else { return };
    for request in ["cuda-toolkit-12-4", "cuda-toolkit-12-4=12.4.1-1", "cuda-tolkit=8.*"] {
        index.can_meet(request);
        index.nearest(request);
        index.closure(&[request.to_owned()]);
    }
    for name in index.names() {
        assert!(index.newest(name).is_some(), "a name without a version");
    }
}

fn openpgp_key(bytes: &[u8]) {
    if let Ok(certificates) = openpgp::certificates(bytes) {
        assert!(!certificates.is_empty());
    }
}

/// Sources in both forms, and preferences.
fn apt_sources(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    for file in ["a.list", "a.sources"] {
        sources::parse(file, &text);
    }
    for record in preferences::parse(&text) {
        record.concerns("NVIDIA CUDA", "developer.download.nvidia.com");
    }
    let _ = control::parse(&text);
    apt::fuzz_sources(&text);
}

/// apt's simulation, list of files, status lines and complaints.
fn apt_output(bytes: &[u8]) {
    apt::fuzz_output(bytes);
}

/// dpkg's database; versions must be ordered the same from both sides.
fn dpkg_status(bytes: &[u8]) {
    let mut database = Database::default();
    database.add(bytes);
    let versions: Vec<&str> = database.all().map(|p| p.version.as_str()).take(16).collect();
    for a in &versions {
        for b in &versions {
            assert_eq!(compare_versions(a, b), compare_versions(b, a).reverse(), "{a} and {b}");
        }
    }
    for package in database.all().take(64) {
        database.dependencies(package).for_each(drop);
    }
    database.broken();
}

/// A `.deb`, from its headers to the last byte of its archive.
fn package_file(bytes: &[u8]) {
    let Ok(mut file) = tempfile::tempfile() else { return };
    if file.write_all(bytes).is_ok() {
        install::fuzz_package(&file, bytes.len() as u64);
    }
}

/// What a service answers, and what the metadata service does when it is asked for a role.
fn aws_answer(bytes: &[u8]) {
    aws::fuzz_answer(bytes);
    remote::fuzz_answer(bytes);
}

/// Everything that we wrote ourselves and read again: receipt, list in flight, reports, status, what was not
/// delivered, what the metadata service said.
fn receipt(bytes: &[u8]) {
    remote::fuzz_spool(bytes);
    let _ = serde_json::from_slice::<Receipt>(bytes);
    let _ = serde_json::from_slice::<Status>(bytes);
    let _ = serde_json::from_slice::<install::Report>(bytes);
    install::fuzz_in_flight(bytes);
    crate::imds::fuzz(bytes);
}

fn probe_records(bytes: &[u8]) {
    device_query::fuzz_records(bytes);
}

fn kernel_log(bytes: &[u8]) {
    device_query::fuzz_kernel_log(&String::from_utf8_lossy(bytes));
}

fn linker_cache(bytes: &[u8]) {
    ld_cache::parse(bytes);
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    /// Seeds, what libFuzzer kept, and every input that once failed.
    #[test]
    fn every_kept_input_passes_through_its_target() {
        let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
        for (name, target) in TARGETS {
            let inputs =
                fs::read_dir(corpora.join(name)).unwrap_or_else(|e| panic!("{name} has no corpus: {e}"));
            let mut count = 0;
            for input in inputs {
                target(&fs::read(input.unwrap().path()).unwrap());
                count += 1;
            }
            assert!(count > 0, "the corpus of {name} is empty");
            target(b"");
        }
    }

    #[test]
    fn a_target_is_found_by_its_name() {
        assert!(target("lspci").is_some() && target("lspcj").is_none());
    }
}
