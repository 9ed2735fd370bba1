//! The values that step files may use: a closed, typed list, computed from facts, config and stack.

use std::collections::BTreeMap;
use std::ops::Range;

use toml::de::DeValue;
use toml::{Spanned, Value};

use super::{containers, distributed, mount_unit, unattended};
use crate::bundle;
use crate::catalog::Stack;
use crate::catalog::choose::{self, Source};
use crate::catalog::distributed::{self as training, Distributed};
use crate::catalog::frameworks::Frameworks;
use crate::config::Config;
use crate::config::schema::{AptMirror, CollectiveCheck, FileSystem};
use crate::facts::Facts;
use crate::facts::os::Arch;

include!("value_names.rs");

/// Values by name, each as TOML text.
#[derive(Clone, Debug, Default)]
pub struct Values(BTreeMap<&'static str, String>);

/// Why a `${…}` cannot be filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfilled {
    /// The bytes of the text that hold the string it stands in.
    pub span: Range<usize>,
    /// The placeholder as far as it was read (`${cuda.home`).
    pub placeholder: String,
    /// One sentence.
    pub why: String,
}

impl Values {
    fn set(&mut self, name: &'static str, value: impl Into<Value>) {
        debug_assert!(VALUE_NAMES.contains(&name), "{name} is not in VALUE_NAMES");
        self.0.insert(name, value.into().to_string());
    }

    /// Replaces every `${name}` in `value`. A string that is one placeholder and nothing else becomes the
    /// value itself (a list stays a list); inside a longer string only text can stand. `names` are those that may be
    /// used here. What was filled in stands where the placeholder stood, so that later errors have a place.
    pub fn fill<'v>(
        &'v self,
        value: Spanned<DeValue<'v>>,
        names: &[&str],
    ) -> Result<Spanned<DeValue<'v>>, Unfilled> {
        let span = value.span();
        let filled = match value.into_inner() {
            DeValue::String(text) => self.fill_text(text.as_ref(), &span, names)?,
            DeValue::Array(items) => {
                let mut filled = Vec::new();
                for item in items {
                    let is_text = item.get_ref().is_str();
                    let item = self.fill(item, names)?;
                    let span = item.span();
                    match item.into_inner() {
                        // A list that stands alone as an element is spliced in.
                        DeValue::Array(inner) if is_text => filled.extend(inner),
                        other => filled.push(Spanned::new(span, other)),
                    }
                }
                DeValue::Array(filled.into_iter().collect())
            }
            DeValue::Table(table) => {
                let entries = table.into_iter().map(|(key, item)| Ok((key, self.fill(item, names)?)));
                DeValue::Table(entries.collect::<Result<_, Unfilled>>()?)
            }
            other => other,
        };
        Ok(Spanned::new(span, filled))
    }

    fn fill_text<'v>(
        &'v self,
        text: &str,
        span: &Range<usize>,
        names: &[&str],
    ) -> Result<DeValue<'v>, Unfilled> {
        if let Some(name) = text.strip_prefix("${").and_then(|t| t.strip_suffix('}'))
            && !name.contains("${")
        {
            return self.value(name, span, names);
        }
        let mut out = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("${") {
            let (name, tail) = after
                .split_once('}')
                .ok_or_else(|| unfilled(span, after, "${ begins a value's name, and no } ends it".into()))?;
            let value = self.value(name, span, names)?;
            let inside = value.as_str().ok_or_else(|| {
                unfilled(span, name, format!("${{{name}}} is no text, so it cannot stand inside one"))
            })?;
            out.push_str(before);
            out.push_str(inside);
            rest = tail;
        }
        out.push_str(rest);
        Ok(DeValue::String(out.into()))
    }

    fn value<'v>(&'v self, name: &str, span: &Range<usize>, names: &[&str]) -> Result<DeValue<'v>, Unfilled> {
        if !names.contains(&name) {
            let there = names.join(", ");
            return Err(unfilled(span, name, format!("no value is called {name}; there are: {there}")));
        }
        let text = self.0.get(name).ok_or_else(|| {
            let why = format!("{name} has no value on this machine; a `when` can keep the step away");
            unfilled(span, name, why)
        })?;
        // It was TOML when it was set.
        let value = DeValue::parse(text).map_err(|e| unfilled(span, name, e.message().to_owned()))?;
        Ok(placed(value.into_inner(), span))
    }
}

fn unfilled(span: &Range<usize>, name: &str, why: String) -> Unfilled {
    Unfilled { span: span.clone(), placeholder: format!("${{{name}"), why }
}

/// The value with everything inside it standing at `span`.
fn placed<'v>(value: DeValue<'v>, span: &Range<usize>) -> DeValue<'v> {
    let inner = |item: Spanned<DeValue<'v>>| Spanned::new(span.clone(), placed(item.into_inner(), span));
    match value {
        DeValue::Array(items) => DeValue::Array(items.into_iter().map(inner).collect()),
        DeValue::Table(table) => DeValue::Table(
            table
                .into_iter()
                .map(|(key, item)| (Spanned::new(span.clone(), key.into_inner()), inner(item)))
                .collect(),
        ),
        other => other,
    }
}

fn container_values(v: &mut Values, facts: &Facts, config: &Config, stack: &Stack) {
    v.set("containers.architecture", facts.os.arch.value.debian_name());
    v.set("containers.key", containers::KEY);
    if let Some(url) = containers::repository(facts, config) {
        v.set("containers.repository", url);
    }
    v.set("repository.neighbours", containers::repository(facts, config).into_iter().collect::<Vec<_>>());
    v.set(
        "containers.family",
        match &stack.gpu_architectures[..] {
            [one] => one.clone(),
            _ => String::new(),
        },
    );
    v.set(
        "containers.memory",
        stack.gpu_memory.filter(|_| config.containers.node_labels).map_or(0, i64::from),
    );
    v.set("containers.cuda", stack.toolkits.first().map(|t| t.version.clone()).unwrap_or_default());
}

fn framework_values(v: &mut Values, facts: &Facts, config: &Config, chosen: &Frameworks) {
    v.set("frameworks.names", chosen.wanted.join(", "));
    v.set("frameworks.device", chosen.device);
    v.set("frameworks.wanted", chosen.wanted.clone());
    v.set("frameworks.path", chosen.path.clone());
    v.set("frameworks.python", chosen.python.clone());
    v.set("frameworks.requirements", chosen.requirements.clone());
    v.set("frameworks.index", config.frameworks.index.clone());
    v.set("frameworks.wheels", config.frameworks.wheels.clone());
    v.set("frameworks.gpu", chosen.device != "cpu" && !facts.gpu.gpus.is_empty());
}

/// Package files, as their action takes them. They are text only, which TOML has.
fn files(debs: &[choose::Deb]) -> Vec<Value> {
    debs.iter().filter_map(|d| Value::try_from(d).ok()).collect()
}

fn training_values(
    v: &mut Values,
    facts: &Facts,
    config: &Config,
    stack: &Stack,
    frameworks: Option<&Frameworks>,
    chosen: &Distributed,
) {
    v.set("nccl.packages", chosen.nccl.clone());
    v.set("gdrcopy.debs", files(&chosen.gdrcopy));
    if let Some(efa) = &chosen.efa {
        v.set("efa.url", efa.url.clone());
        v.set("efa.sha256", efa.sha256.clone());
    }
    v.set("efa.devices", i64::try_from(facts.efa.len()).unwrap_or(i64::MAX));
    let efa = training::wants_efa(facts, config, stack);
    v.set("distributed.profile", distributed::profile(efa));
    v.set("distributed.environment", distributed::environment(efa));
    v.set("distributed.limits", distributed::limits());
    let torch = frameworks.filter(|_| config.distributed.check == CollectiveCheck::Torch);
    v.set("collective.environment", torch.map(|f| f.path.clone()).unwrap_or_default());
    v.set("collective.gpu", torch.is_none_or(|f| f.device != "cpu"));
    v.set("collective.command", config.distributed.check_command.clone());
    v.set("collective.gpus", i64::try_from(facts.gpu.gpus.len()).unwrap_or(i64::MAX));
    v.set("collective.bandwidth", i64::try_from(config.distributed.check_bandwidth).unwrap_or(i64::MAX));
}

/// Computes every value. Names that do not apply (no driver, no repository) are left out: a step that uses
/// them must have a `when` that keeps it away.
pub fn compute(
    facts: &Facts,
    config: &Config,
    stack: &Stack,
    frameworks: Option<&Frameworks>,
    training: &Distributed,
) -> Values {
    let mut v = Values::default();
    v.set("output", "${output}"); // the command itself knows where
    v.set("instance.id", facts.identity.instance_id());
    if let Some(instance) = &facts.identity.instance {
        v.set("instance.type", instance.value.instance_type.clone());
        v.set("instance.region", instance.value.region.clone());
    }
    if bundle::is_wanted(config) {
        v.set("bundle.location", config.source.packages.trim_start_matches("bundle:").trim_end_matches('/'));
        v.set("bundle.sha256", config.source.bundle_sha256.to_ascii_lowercase());
    }
    if let Some((url, replaces)) = apt_mirror(facts, config) {
        v.set("apt-mirror.url", url);
        v.set("apt-mirror.replaces", replaces);
    }
    if let Some(store) = store(facts, config) {
        v.set("instance-store.path", store.path);
        v.set("instance-store.file-system", store.file_system);
        v.set("instance-store.packages", store.packages);
        v.set("instance-store.unit", mount_unit::name(store.path));
        v.set("instance-store.unit-file", mount_unit::text(store.path));
    }
    container_values(&mut v, facts, config, stack);
    if let Some(chosen) = frameworks {
        framework_values(&mut v, facts, config, chosen);
    }
    training_values(&mut v, facts, config, stack, frameworks, training);
    let toolkits: Vec<String> = stack.toolkits.iter().flat_map(|t| t.packages.clone()).collect();
    let cudnn = stack.cudnn.as_ref().map(|c| c.packages.clone()).unwrap_or_default();
    let driver = stack.driver.as_ref().map(|d| d.packages.clone()).unwrap_or_default();
    let fabric = stack.fabric_manager.clone().unwrap_or_default();
    let imex = stack.driver.as_ref().map(|d| d.imex.clone()).unwrap_or_default();
    match &stack.source {
        Source::Nvidia(r) => {
            v.set("repository.url", r.url.clone());
            v.set("repository.sources-file", sources_file(config));
            v.set("repository.architecture", facts.os.arch.value.debian_name());
            v.set("repository.fingerprint", r.fingerprint.clone());
            v.set("repository.key", r.key.clone());
            v.set("repository.label", r.label.clone());
            v.set("repository.date-floor", r.date_floor.clone());
            v.set("repository.may-supply", r.may_supply.clone());
            v.set("repository.always-allow", r.always_allow.clone());
            v.set("distro.components", r.components.clone());
            v.set(
                "repository.packages",
                [&driver, &fabric, &imex, &toolkits, &cudnn, &training.nccl].map(Clone::clone).concat(),
            );
        }
        Source::Distro { components } => v.set("distro.components", components.clone()),
    }
    if let Some(d) = &stack.driver {
        v.set("driver.branch", d.branch.clone());
        v.set("driver.packages", driver);
        v.set("driver.without", d.without.clone());
        v.set("driver.modules", d.modules.clone());
        v.set("driver.kernel-packages", d.kernel_packages.clone());
        v.set("driver.running-kernel-packages", d.running_kernel_packages.clone());
        v.set("driver.kernel-image", d.kernel_image.clone());
        v.set("driver.parameters", d.parameters.clone());
        v.set("driver.companions", [fabric.clone(), imex.clone()].concat());
        v.set("driver.unattended-upgrades", unattended::blacklist());
        if let Some(release) = &d.hold_kernel {
            v.set("driver.held-kernel", release.clone());
        }
    }
    let pin = stack.driver.as_ref().and_then(|d| d.pin.clone());
    v.set("driver.pinned", pin.as_ref().map(|p| p.packages.clone()).unwrap_or_default());
    v.set("driver.pinned-version", pin.map(|p| p.version).unwrap_or_default());
    v.set("fabric-manager.packages", fabric);
    v.set("imex.packages", imex);
    let versions: Vec<_> = stack.toolkits.iter().map(|t| t.version.clone()).collect();
    v.set("cuda.version", versions.join(", "));
    v.set("expect.toolkits", versions);
    v.set("expect.cudnn", stack.cudnn_version().unwrap_or("none"));
    v.set("cuda.packages", toolkits);
    if let Some(home) = stack.toolkits.first().and_then(|t| t.home.clone()) {
        v.set("cuda.profile", profile_script());
        v.set("cuda.home", home);
    }
    v.set("cuda.library-dirs", stack.library_dirs());
    v.set("cudnn.packages", cudnn);
    v.set("cudnn.debs", files(&stack.cudnn_debs));
    v.set("expect.gpus", i64::from(stack.expect_gpus.unwrap_or(0)));
    v.set("expect.libraries", expected_libraries(stack));
    v
}

/// A bundle's sources are no business of the machine's apt.
fn sources_file(config: &Config) -> String {
    let (dir, name) = if bundle::is_wanted(config) {
        (bundle::SOURCES, "nvidia")
    } else {
        ("/etc/apt/sources.list.d", "gpu-bootstrap-nvidia")
    };
    format!("{dir}/{name}.sources")
}

/// Ubuntu's archive in the instance's region, and the addresses that it takes the place of. `None` where it is not asked
/// for, on another distribution, or where nobody knows the region.
pub(super) fn apt_mirror(facts: &Facts, config: &Config) -> Option<(String, Vec<String>)> {
    let region = &facts.identity.instance.as_ref()?.value.region;
    let is_name = !region.is_empty() && region.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if bundle::is_wanted(config)
        || config.source.apt_mirror != AptMirror::Region
        || facts.os.id.value != "ubuntu"
        || !is_name
    {
        return None;
    }
    // Other architectures than amd64 have an archive of their own.
    let (host, path) = match facts.os.arch.value {
        Arch::Amd64 => ("archive.ubuntu.com", "ubuntu"),
        Arch::Arm64 => ("ports.ubuntu.com", "ubuntu-ports"),
    };
    let of_region = |region: &str| format!("{region}.ec2.{host}/{path}/");
    Some((format!("http://{}", of_region(region)), vec![format!("{host}/{path}/"), of_region("*")]))
}

/// What is wanted of an instance store that is there.
pub(super) struct Store<'a> {
    path: &'a str,
    file_system: &'static str,
    /// Packages that the programs for it are in.
    pub(super) packages: Vec<&'static str>,
}

/// `None` where the configuration wants none, or this machine has none.
pub(super) fn store<'a>(facts: &Facts, config: &'a Config) -> Option<Store<'a>> {
    let (path, devices) = (config.instance.store.as_str(), &facts.disk.instance_store.value);
    if path.is_empty() || devices.is_empty() {
        return None;
    }
    let mut packages = Vec::new();
    let file_system = match config.instance.store_file_system {
        FileSystem::Ext4 => "ext4",
        FileSystem::Xfs => "xfs",
    };
    if config.instance.store_file_system == FileSystem::Xfs {
        packages.push("xfsprogs");
    }
    if devices.len() > 1 {
        packages.push("mdadm");
    }
    Some(Store { path, file_system, packages })
}

/// Sonames that the dynamic linker must know after the run.
fn expected_libraries(stack: &Stack) -> Vec<String> {
    let mut all = Vec::new();
    if stack.driver.is_some() {
        all.extend(["libcuda.so.1".to_owned(), "libnvidia-ml.so.1".to_owned()]);
    }
    all
}

/// PATH and `LD_LIBRARY_PATH` for login shells, by way of `/usr/local/cuda` (the default toolkit's link).
/// Never leaves an empty element, which would mean the current directory.
fn profile_script() -> String {
    include_str!("../../steps/files/profile.sh").to_owned()
}

#[cfg(test)]
mod tests {
    use serde::Deserialize as _;

    use super::*;

    fn values() -> Values {
        let mut v = Values::default();
        v.set("cuda.home", "/usr/local/cuda-12.8");
        v.set("cuda.packages", vec!["cuda-toolkit-12-8".to_owned()]);
        v
    }

    /// The value that `text`, a TOML value, becomes.
    fn filled(text: &str) -> Result<String, String> {
        let values = values();
        let filled = values.fill(DeValue::parse(text).unwrap(), VALUE_NAMES).map_err(|e| e.why)?;
        Ok(Value::deserialize(toml::de::ValueDeserializer::from(filled)).unwrap().to_string())
    }

    #[test]
    fn text_stands_inside_text_and_lists_stand_alone() {
        assert_eq!(filled("'${cuda.home}/bin'").unwrap(), r#""/usr/local/cuda-12.8/bin""#);
        assert_eq!(filled("'${cuda.packages}'").unwrap(), r#"["cuda-toolkit-12-8"]"#);
        assert_eq!(filled("['dkms', '${cuda.packages}']").unwrap(), r#"["dkms", "cuda-toolkit-12-8"]"#);
        assert_eq!(
            filled("{ a = '${cuda.home}', b = 2 }").unwrap(),
            r#"{ a = "/usr/local/cuda-12.8", b = 2 }"#
        );
    }

    #[test]
    fn what_cannot_stand_there_is_an_error() {
        for (text, why) in [
            ("'${nope}'", "no value is called nope"),
            ("'x ${cuda.packages}'", "${cuda.packages} is no text"),
            ("'${cudnn.packages}'", "cudnn.packages has no value on this machine"),
            ("'x ${cuda.home'", "no } ends it"),
        ] {
            let error = filled(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn every_custom_value_is_a_value() {
        assert!(CUSTOM_VALUE_NAMES.iter().all(|name| VALUE_NAMES.contains(name)));
    }
}
