//! `node-labels`: the labels of a Kubernetes node with these GPUs, by the names that NVIDIA's GPU feature discovery gives
//! them, in an environment file for `kubelet --node-labels`. A kubelet may set labels of `nvidia.com` itself; it may not
//! set those of `kubernetes.io` (the admission plugin `NodeRestriction`), so none of these is one.

use serde::{Deserialize, Serialize};

use super::cdi::driven;
use super::driver::module_version;
use super::{Applied, Check, Converge};
use crate::device_query;
use crate::error::{Code, Error, Result};
use crate::host::Host;

/// Labels of a Kubernetes node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct NodeLabels {
    /// The environment file.
    pub path: String,
    /// Version of the default toolkit; empty for none.
    #[serde(default)]
    pub toolkit: String,
    /// The GPUs' architecture (`turing`); empty where it is not known.
    #[serde(default)]
    pub family: String,
    /// MiB of a GPU's memory by the catalog, for where the driver does not say it; 0 where that does not, either.
    #[serde(default)]
    pub memory: u32,
}

impl Converge for NodeLabels {
    async fn check(&self, host: &Host) -> Result<Check> {
        let wanted = match self.content(host).await? {
            Ok(content) => content,
            Err(why) => return Ok(Check::unknown(why)),
        };
        Ok(match host.files.read_text(&self.path)? {
            None => Check::needed(format!("{} does not exist", self.path)),
            Some(text) if text != wanted => Check::needed(format!("{} has other labels", self.path)),
            Some(_) => Check::satisfied(format!("{} has the labels of this machine's GPUs", self.path)),
        })
    }

    async fn apply(&self, host: &Host) -> Result<Applied> {
        let content = self.content(host).await?.map_err(|why| Error::new(Code::DriverNotLoaded, why))?;
        host.files.write(&self.path, content.as_bytes(), 0o644)?;
        Ok(Applied::Done)
    }

    fn target(&self) -> Option<&str> {
        Some(&self.path)
    }

    fn describe(&self) -> String {
        format!("node labels {}", self.path)
    }
}

impl NodeLabels {
    async fn content(&self, host: &Host) -> Result<Result<String, String>> {
        // GPUs of several kinds get one label, the first one's, as by the discovery.
        let answer = Box::pin(device_query::memory(host)).await?.first().copied();
        let memory = answer.or_else(|| (self.memory > 0).then(|| self.memory.into()));
        let source = match (answer, memory) {
            (None, Some(_)) => {
                "# gpu.memory is EC2's figure for this instance type: the driver did not say it.\n"
            }
            _ => "",
        };
        Ok(self.labels(host, memory)?.map(|labels| {
            let pairs: Vec<_> = labels.iter().map(|(name, value)| format!("nvidia.com/{name}={value}")).collect();
            format!(
                "# Written by gpu-bootstrap: labels of a node with these GPUs. In a drop-in of kubelet.service:\n\
                 #   EnvironmentFile=-{}\n\
                 # and on kubelet's command line: --node-labels=${{GPU_NODE_LABELS}}\n{source}\
                 GPU_NODE_LABELS={}\n",
                self.path,
                pairs.join(",")
            )
        }))
    }

    fn labels(&self, host: &Host, memory: Option<u64>) -> Result<Result<Vec<(String, String)>, String>> {
        let Some(driver) = module_version(host)? else {
            return Ok(Err("no NVIDIA driver is loaded, so nothing says what this node has".into()));
        };
        let gpus = driven(host)?;
        let Some(product) = gpus.iter().find_map(|gpu| gpu.model.as_deref()) else {
            return Ok(Err("the loaded driver names no GPU".into()));
        };
        let mut labels = vec![
            ("gpu.present".to_owned(), "true".to_owned()),
            ("gpu.count".into(), gpus.len().to_string()),
            ("gpu.product".into(), value(product)),
        ];
        if let Some(memory) = memory {
            labels.push(("gpu.memory".into(), memory.to_string())); // MiB
        }
        if !self.family.is_empty() {
            labels.push(("gpu.family".into(), value(&family(&self.family))));
        }
        versions(&mut labels, "cuda.driver-version", &driver);
        if !self.toolkit.is_empty() {
            labels.push(("cuda.toolkit-version".into(), value(&self.toolkit)));
        }
        Ok(Ok(labels))
    }
}

/// An architecture as the discovery spells it (`getArchFamily` in its `internal/lm`).
fn family(architecture: &str) -> String {
    match architecture.to_lowercase().as_str() {
        "ada" => "ada-lovelace".into(),
        name => name.to_owned(),
    }
}

/// `NAME.full`, `.major`, `.minor`, `.revision`.
fn versions(labels: &mut Vec<(String, String)>, name: &str, version: &str) {
    labels.push((format!("{name}.full"), value(version)));
    for (part, number) in ["major", "minor", "revision"].iter().zip(version.split('.')) {
        labels.push((format!("{name}.{part}"), value(number)));
    }
}

/// What a label's value may hold: at most 63 letters, digits, `-`, `_` and `.`, with a letter or digit at both ends.
fn value(text: &str) -> String {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let words: Vec<_> = text.split_whitespace().collect();
    let text: String = words.join("-").chars().filter(|c| allowed(*c)).take(63).collect();
    text.trim_matches(|c: char| !c.is_ascii_alphanumeric()).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_what_kubernetes_takes() {
        assert_eq!(value("NVIDIA H100 80GB HBM3"), "NVIDIA-H100-80GB-HBM3");
        assert_eq!(value("RTX 6000 (Ada),"), "RTX-6000-Ada");
        assert_eq!(value(&"x".repeat(90)).len(), 63);
    }

    #[tokio::test]
    async fn labels_follow_from_the_loaded_driver() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path().into());
        let put = |path: &str, text: &str| host.files.write(path, text.as_bytes(), 0o644).unwrap();
        let action = NodeLabels {
            path: "/etc/default/x".into(),
            toolkit: "12.8".into(),
            family: "Turing".into(),
            memory: 0,
        };
        assert_eq!(action.check(&host).await.unwrap().state(), "unknown");
        put(
            "/proc/driver/nvidia/version",
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05  Thu\n",
        );
        for bus in ["10", "11"] {
            put(&format!("/proc/driver/nvidia/gpus/0000:{bus}:00.0/information"), "Model: \t\t Tesla T4\n");
        }
        assert_eq!(action.check(&host).await.unwrap().state(), "needed");
        action.apply(&host).await.unwrap();
        assert_eq!(action.check(&host).await.unwrap().state(), "satisfied");
        let text = host.files.read_text("/etc/default/x").unwrap().unwrap();
        let line = text.lines().find_map(|l| l.strip_prefix("GPU_NODE_LABELS=")).unwrap();
        assert_eq!(
            line.split(',').map(|l| l.strip_prefix("nvidia.com/").unwrap()).collect::<Vec<_>>(),
            [
                "gpu.present=true",
                "gpu.count=2",
                "gpu.product=Tesla-T4",
                "gpu.family=turing",
                "cuda.driver-version.full=580.95.05",
                "cuda.driver-version.major=580",
                "cuda.driver-version.minor=95",
                "cuda.driver-version.revision=05",
                "cuda.toolkit-version=12.8",
            ]
        );
        // The driver's library is not there: the catalog says it, and the file says that.
        let known = NodeLabels { memory: 16384, family: "Ada".into(), ..action.clone() };
        known.apply(&host).await.unwrap();
        let text = host.files.read_text("/etc/default/x").unwrap().unwrap();
        assert!(text.contains("nvidia.com/gpu.memory=16384,nvidia.com/gpu.family=ada-lovelace,"), "{text}");
        assert!(text.contains("# gpu.memory is EC2's figure"), "{text}");
        action.apply(&host).await.unwrap();
        put("/proc/driver/nvidia/gpus/0000:12:00.0/information", "Model: \t\t Tesla T4\n");
        assert_eq!(action.check(&host).await.unwrap().why(), "/etc/default/x has other labels");
    }
}
