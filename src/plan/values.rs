//! The values that step files may use: a closed, typed list, computed from facts, config and stack.

use std::collections::BTreeMap;

use toml::Value;

use crate::catalog::Stack;
use crate::catalog::choose::Source;
use crate::facts::Facts;

include!("value_names.rs");

/// Values by name.
#[derive(Clone, Debug, Default)]
pub struct Values(BTreeMap<&'static str, Value>);

impl Values {
    fn set(&mut self, name: &'static str, value: impl Into<Value>) {
        debug_assert!(VALUE_NAMES.contains(&name), "{name} is not in VALUE_NAMES");
        self.0.insert(name, value.into());
    }

    /// Replaces every `${name}` in `value`. A string that is one placeholder and nothing else becomes the
    /// value itself (a list stays a list); inside a longer string only text can stand. The error is the
    /// unknown (or misplaced) name.
    pub fn fill(&self, value: &Value) -> Result<Value, String> {
        Ok(match value {
            Value::String(text) => self.fill_text(text)?,
            Value::Array(items) => {
                let mut filled = Vec::new();
                for item in items {
                    match (item, self.fill(item)?) {
                        // A list that stands alone as an element is spliced in.
                        (Value::String(_), Value::Array(inner)) => filled.extend(inner),
                        (_, other) => filled.push(other),
                    }
                }
                Value::Array(filled)
            }
            Value::Table(table) => {
                let mut filled = toml::Table::new();
                for (key, item) in table {
                    filled.insert(key.clone(), self.fill(item)?);
                }
                Value::Table(filled)
            }
            other => other.clone(),
        })
    }

    fn fill_text(&self, text: &str) -> Result<Value, String> {
        if let Some(name) = text.strip_prefix("${").and_then(|t| t.strip_suffix('}'))
            && !name.contains("${")
        {
            return self.0.get(name).cloned().ok_or_else(|| name.to_owned());
        }
        let mut out = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("${") {
            let (name, tail) = after.split_once('}').ok_or_else(|| after.to_owned())?;
            let Some(Value::String(value)) = self.0.get(name) else { return Err(name.to_owned()) };
            out.push_str(before);
            out.push_str(value);
            rest = tail;
        }
        out.push_str(rest);
        Ok(Value::String(out))
    }
}

/// Computes every value. Names that do not apply (no driver, no repository) are left out: a step that uses
/// them must have a `when` that keeps it away.
pub fn compute(facts: &Facts, stack: &Stack) -> Values {
    let mut v = Values::default();
    let toolkits: Vec<String> = stack.toolkits.iter().flat_map(|t| t.packages.clone()).collect();
    let cudnn = stack.cudnn.as_ref().map(|c| c.packages.clone()).unwrap_or_default();
    let driver = stack.driver.as_ref().map(|d| d.packages.clone()).unwrap_or_default();
    let fabric = stack.fabric_manager.clone().unwrap_or_default();
    match &stack.source {
        Source::Nvidia(r) => {
            v.set("repository.url", r.url.clone());
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
                [driver.clone(), fabric.clone(), toolkits.clone(), cudnn.clone()].concat(),
            );
        }
        Source::Distro { components } => v.set("distro.components", components.clone()),
    }
    if let Some(d) = &stack.driver {
        v.set("driver.branch", d.branch.clone());
        v.set("driver.packages", driver);
        v.set("driver.modules", d.modules.clone());
        v.set("driver.kernel-packages", d.kernel_packages.clone());
        v.set("driver.running-kernel-packages", d.running_kernel_packages.clone());
        v.set("driver.kernel-image", d.kernel_image.clone());
    }
    let pin = stack.driver.as_ref().and_then(|d| d.pin.clone());
    v.set("driver.pinned", pin.as_ref().map(|p| p.packages.clone()).unwrap_or_default());
    v.set("driver.pinned-version", pin.map(|p| p.version).unwrap_or_default());
    v.set("fabric-manager.packages", fabric);
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
    let debs = stack.cudnn_debs.iter().map(|d| {
        let pairs = [("url", &d.url), ("sha256", &d.sha256)];
        Value::Table(pairs.map(|(k, s)| (k.to_owned(), Value::String(s.clone()))).into_iter().collect())
    });
    v.set("cudnn.debs", debs.collect::<Vec<_>>());
    v.set("expect.gpus", i64::from(stack.expect_gpus.unwrap_or(0)));
    v.set("expect.libraries", expected_libraries(stack));
    v
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
    use super::*;

    fn values() -> Values {
        let mut v = Values::default();
        v.set("cuda.home", "/usr/local/cuda-12.8");
        v.set("cuda.packages", vec!["cuda-toolkit-12-8".to_owned()]);
        v
    }

    #[test]
    fn text_stands_inside_text_and_lists_stand_alone() {
        let v = values();
        assert_eq!(v.fill(&"${cuda.home}/bin".into()).unwrap(), "/usr/local/cuda-12.8/bin".into());
        assert_eq!(
            v.fill(&"${cuda.packages}".into()).unwrap(),
            Value::Array(vec!["cuda-toolkit-12-8".into()])
        );
        let spliced = v.fill(&Value::Array(vec!["dkms".into(), "${cuda.packages}".into()])).unwrap();
        assert_eq!(spliced, Value::Array(vec!["dkms".into(), "cuda-toolkit-12-8".into()]));
    }

    #[test]
    fn an_unknown_name_and_a_list_inside_text_are_errors() {
        assert_eq!(values().fill(&"${nope}".into()).unwrap_err(), "nope");
        assert_eq!(values().fill(&"x ${cuda.packages}".into()).unwrap_err(), "cuda.packages");
    }
}
