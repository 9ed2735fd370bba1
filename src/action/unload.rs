//! Kernel modules that make room for others without a reboot, where nobody uses them.

use std::time::Duration;

use crate::error::{Code, Result};
use crate::host::Host;
use crate::host::exec::Call;

/// Giving up a GPU takes seconds.
const LIMIT: Duration = Duration::from_mins(2);
/// The driver's modules, those first that use the others.
const MODULES: [&str; 5] = ["nvidia_drm", "nvidia_modeset", "nvidia_uvm", "nvidia_peermem", "nvidia"];
/// Services that hold the driver open and do nothing else with it. They are started again by later steps.
const HOLDERS: [&str; 3] =
    ["nvidia-imex.service", "nvidia-fabricmanager.service", "nvidia-persistenced.service"];

/// Unloads the loaded NVIDIA driver; `false` where it is in use, and then it stays as it is.
pub(super) async fn driver(host: &Host) -> Result<bool> {
    let mut stopped = Vec::new();
    for unit in HOLDERS {
        if systemctl(host, &["is-active", "--quiet", unit]).await? && systemctl(host, &["stop", unit]).await?
        {
            stopped.push(unit);
        }
    }
    let mut all = !is_in_use(host)?;
    for name in MODULES {
        all = all && module(host, name).await?;
    }
    if !all {
        for unit in stopped.into_iter().rev() {
            systemctl(host, &["start", unit]).await?;
        }
    }
    Ok(all)
}

/// Whether one of the driver's modules has other users than the driver's own modules: half a driver unloaded would be worse
/// than the wrong one.
fn is_in_use(host: &Host) -> Result<bool> {
    for name in MODULES {
        let Some(count) = host.files.read_text(format!("/sys/module/{name}/refcnt"))? else { continue };
        let users = host.files.list(format!("/sys/module/{name}/holders"))?;
        let is_ours = |user: &String| MODULES.contains(&user.as_str());
        // What cannot be read is in use.
        let count: usize = count.trim().parse().unwrap_or(usize::MAX);
        if count > users.iter().filter(|u| is_ours(u)).count() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Unloads one module; `false` where it is in use, `true` where it is not loaded.
pub(super) async fn module(host: &Host, name: &str) -> Result<bool> {
    if !host.files.exists(format!("/sys/module/{name}"))? {
        // The driver shows itself in /proc, too, where /sys is not the whole truth (a container).
        return Ok(name != "nvidia" || !host.files.exists("/proc/driver/nvidia/version")?);
    }
    // rmmod takes the module by the name it has now; modprobe would look for it among the files on disk.
    done(host, &Call::new("rmmod").args([name]).limit(LIMIT)).await
}

async fn systemctl(host: &Host, args: &[&str]) -> Result<bool> {
    if !host.files.exists("/run/systemd/system")? {
        return Ok(false);
    }
    done(host, &Call::new("systemctl").args(args.iter().copied()).limit(LIMIT)).await
}

async fn done(host: &Host, call: &Call) -> Result<bool> {
    match host.exec.output(call).await {
        Ok(output) => Ok(output.ok()),
        Err(e) if [Code::Exec, Code::ExecTimeout].contains(&e.code()) => Ok(false),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_driver_that_somebody_uses_stays_whole() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path().into());
        let put = |path: &str, text: &str| host.files.write(path, text.as_bytes(), 0o444).unwrap();
        put("/sys/module/nvidia/refcnt", "1\n");
        put("/sys/module/nvidia/holders/nvidia_uvm", "");
        put("/sys/module/nvidia_uvm/refcnt", "0\n");
        assert!(!is_in_use(&host).unwrap());
        put("/sys/module/nvidia_uvm/refcnt", "2\n");
        assert!(is_in_use(&host).unwrap());
        assert!(!driver(&host).await.unwrap());
        assert!(module(&host, "nouveau").await.unwrap(), "one that is not loaded is out of the way");
    }
}
