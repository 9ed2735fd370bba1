//! containerd's config.toml, version 1, 2 or 3: CDI for Kubernetes' containers, and NVIDIA's runtime under the options
//! that `runc` has. What is in force is asked of `containerd config dump`, which also reads what the file imports.
//!
//! Why not a file of our own that config.toml imports: up to containerd 2.0 at least an imported table of a plugin takes the
//! place of the whole plugin's, so settings of others would be lost; and the line that imports it must be written, too.

use toml::{Table, Value};

use super::toml_text::{get, set};
use super::{Found, NVIDIA_RUNTIME, Runtime, refused};
use crate::error::{Code, Result};
use crate::host::Host;
use crate::host::exec::Call;

const PATH: &str = Runtime::Containerd.path();
/// What a file of ours begins with where there is none: versions 1.3 and later read it, 2.x as well as their own.
const NEW: &str = "version = 2\n";

/// Where Kubernetes' part is configured.
fn plugin(config: &Table) -> &'static str {
    match config.get("version").and_then(Value::as_integer) {
        Some(3..) => "io.containerd.cri.v1.runtime",
        Some(2) => "io.containerd.grpc.v1.cri",
        _ => "cri",
    }
}

pub(super) async fn look(host: &Host, text: &str, with_nvidia: bool) -> Result<Found> {
    let written = read(text)?;
    let in_force = dump(host).await?;
    let config = in_force.as_ref().unwrap_or(&written);
    let plugin = plugin(config);
    // containerd before 1.7 has no such key, and never shows it; 2.x has it on.
    let cdi = get(config, &["plugins", plugin, "enable_cdi"]).and_then(Value::as_bool);
    let knows_cdi = in_force.is_none() || cdi.is_some();
    if knows_cdi && cdi != Some(true) {
        return Ok(Found::Wrong(format!("{PATH} does not switch CDI on")));
    }
    let binary = get(config, &binary_path(plugin)).and_then(Value::as_str);
    let is_theirs = binary.is_some_and(|b| b.rsplit('/').next() == Some("nvidia-container-runtime"));
    if with_nvidia && !is_theirs {
        return Ok(Found::Wrong(format!("{PATH} does not know NVIDIA's runtime")));
    }
    let how = match (knows_cdi, in_force.is_some()) {
        (true, true) => "containerd reads its configuration with CDI on".to_owned(),
        (true, false) => format!("{PATH} switches CDI on"),
        (false, _) => "this containerd is too old for CDI in Kubernetes".to_owned(),
    };
    Ok(Found::Right(if with_nvidia { format!("{how}, and with NVIDIA's runtime") } else { how }))
}

pub(super) async fn extended(host: &Host, text: &str, with_nvidia: bool) -> Result<String> {
    let new = if text.trim().is_empty() && text.lines().next().is_none() { NEW } else { text };
    let config = read(new)?;
    let plugin = plugin(&config);
    let in_force = dump(host).await?;
    let mut out = new.to_owned();
    let mut put = |path: &[&str], value: Value| -> Result<()> {
        let what = |why: String| {
            refused(PATH, &why).with_hint(format!(
                "write `{} = {value}` into it by hand, below [plugins.\"{plugin}\"…], then run again",
                path.last().unwrap_or(&"")
            ))
        };
        out = set(&out, path, &value).map_err(what)?;
        Ok(())
    };
    let cdi = get(&config, &["plugins", plugin, "enable_cdi"]).and_then(Value::as_bool);
    let is_on = in_force.as_ref().and_then(|c| get(c, &["plugins", self::plugin(c), "enable_cdi"]));
    if cdi != Some(true) && is_on.and_then(Value::as_bool) != Some(true) {
        put(&["plugins", plugin, "enable_cdi"], Value::Boolean(true))?;
    }
    if with_nvidia {
        let runtime = ["plugins", plugin, "containerd", "runtimes", "nvidia"];
        put(&[&runtime[..], &["runtime_type"]].concat(), Value::String("io.containerd.runc.v2".into()))?;
        put(&binary_path(plugin), Value::String(NVIDIA_RUNTIME.into()))?;
        // With another cgroup driver than runc's, a kubelet's containers would not start.
        let cgroup = |c: &Table| {
            let path =
                ["plugins", self::plugin(c), "containerd", "runtimes", "runc", "options", "SystemdCgroup"];
            get(c, &path).cloned()
        };
        if let Some(value) = cgroup(&config).or_else(|| in_force.as_ref().and_then(cgroup)) {
            put(&[&runtime[..], &["options", "SystemdCgroup"]].concat(), value)?;
        }
    }
    Ok(out)
}

fn binary_path(plugin: &str) -> [&str; 7] {
    ["plugins", plugin, "containerd", "runtimes", "nvidia", "options", "BinaryName"]
}

fn read(text: &str) -> Result<Table> {
    toml::from_str(text).map_err(|e| {
        let at = e.span().map_or(0, |span| span.start);
        let line = text[..at.min(text.len())].matches('\n').count() + 1;
        refused(PATH, &format!("line {line}: {}", e.message()))
            .with_hint("correct it (`containerd config dump` says more), then run again")
    })
}

/// The configuration as containerd itself reads it; `None` where it is not installed.
async fn dump(host: &Host) -> Result<Option<Table>> {
    let output = match host.exec.output(&Call::new("containerd").args(["config", "dump"])).await {
        // chroot's word for a program that is not there.
        Ok(output) if output.status == 127 => return Ok(None),
        Ok(output) => output,
        Err(e) if e.code() == Code::Exec => return Ok(None),
        Err(e) => return Err(e),
    };
    if !output.ok() {
        return Err(refused(PATH, "containerd does not read it").because(output.tail()));
    }
    let text = output.text();
    toml::from_str(&text)
        .map(Some)
        .map_err(|e| refused(PATH, "what `containerd config dump` prints is no TOML").because(e))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bare() -> (tempfile::TempDir, Host) {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path().into());
        (dir, host)
    }

    #[tokio::test]
    async fn every_version_is_extended_in_its_own_words() {
        let (_dir, host) = bare();
        for (text, plugin) in [
            ("", "io.containerd.grpc.v1.cri"),
            ("version = 2\n", "io.containerd.grpc.v1.cri"),
            ("version = 3\n", "io.containerd.cri.v1.runtime"),
            ("disabled_plugins = [\"cri\"]\n", "cri"),
        ] {
            let out = extended(&host, text, true).await.unwrap();
            let config = read(&out).unwrap();
            assert!(out.starts_with(text), "{out}");
            assert_eq!(
                get(&config, &["plugins", plugin, "enable_cdi"]),
                Some(&Value::Boolean(true)),
                "{out}"
            );
            let binary = get(&config, &binary_path(plugin)).and_then(Value::as_str);
            assert_eq!(binary, Some(NVIDIA_RUNTIME), "{out}");
            assert!(matches!(look(&host, &out, true).await.unwrap(), Found::Right(_)));
            assert_eq!(extended(&host, &out, true).await.unwrap(), out, "twice is once");
        }
    }

    #[tokio::test]
    async fn nvidia_s_runtime_has_runc_s_cgroup_driver() {
        let (_dir, host) = bare();
        let text = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc.options]\n  SystemdCgroup = true # kubelet's\n";
        let out = extended(&host, text, true).await.unwrap();
        assert!(out.starts_with(text), "{out}");
        let path = [
            "plugins",
            "io.containerd.grpc.v1.cri",
            "containerd",
            "runtimes",
            "nvidia",
            "options",
            "SystemdCgroup",
        ];
        assert_eq!(get(&read(&out).unwrap(), &path), Some(&Value::Boolean(true)));
    }

    #[tokio::test]
    async fn without_nvidia_s_toolkit_only_cdi_is_switched_on() {
        let (_dir, host) = bare();
        let out = extended(&host, "", false).await.unwrap();
        assert_eq!(out, "version = 2\n\n[plugins.\"io.containerd.grpc.v1.cri\"]\nenable_cdi = true\n");
    }
}
