//! Fabric manager as it is seen from outside: whether it runs, which version is installed, and whether the switches
//! have device nodes. GPUs behind NVSwitches do not compute without it, and it works with exactly its own version of
//! the driver.

use std::time::Duration;

use crate::error::{Code, Result};
use crate::host::Host;
use crate::host::dpkg::State;
use crate::host::exec::Call;

use super::libraries::Owner;

const UNIT: &str = "nvidia-fabricmanager.service";
/// The kernel keeps 15 letters of `nv-fabricmanager`.
const PROCESS: &str = "nv-fabricmanage";
/// Milliseconds as a rule; a systemd that is stuck answers nobody.
pub(crate) const LIMIT: Duration = Duration::from_secs(10);
/// What systemctl exits with for a unit that does not run, and for one that does not exist.
const INACTIVE: [i32; 2] = [3, 4];

/// What is known of it.
#[derive(Clone, Debug)]
pub struct FabricManager {
    /// Whether it runs; none where neither `/proc` nor systemd tells (in a container).
    pub runs: Option<bool>,
    /// Its package; none where it was installed in another way, or is not installed.
    pub package: Option<Owner>,
    /// How many `/dev/nvidia-nvswitch*` there are.
    pub nodes: usize,
}

/// Looks, and asks nothing of the driver.
pub(super) async fn look(host: &Host, limit: Duration) -> Result<FabricManager> {
    let nodes = host.files.list("/dev")?.iter().filter(|n| n.starts_with("nvidia-nvswitch")).count();
    Ok(FabricManager { runs: runs(host, limit).await?, package: package(host), nodes })
}

/// Whether it is at work: as a process that we see, else as a unit, where systemd answers within `limit`.
pub(crate) async fn runs(host: &Host, limit: Duration) -> Result<Option<bool>> {
    for name in host.files.list("/proc")?.iter().filter(|n| n.bytes().all(|b| b.is_ascii_digit())) {
        // Processes end while we look.
        let comm = host.files.read_text(format!("/proc/{name}/comm")).unwrap_or_default();
        if comm.is_some_and(|comm| comm.trim_end() == PROCESS) {
            return Ok(Some(true));
        }
    }
    match host.exec.output(&Call::new("systemctl").args(["is-active", "--quiet", UNIT]).limit(limit)).await {
        Ok(output) if output.ok() => Ok(Some(true)),
        Ok(output) if INACTIVE.contains(&output.status) => Ok(Some(false)),
        // No systemd is at work here.
        Ok(_) => Ok(None),
        Err(e) if [Code::Exec, Code::ExecTimeout].contains(&e.code()) => Ok(None),
        Err(e) => Err(e),
    }
}

/// A dpkg database that cannot be read has none: whether it is in order is not the GPUs' question.
fn package(host: &Host) -> Option<Owner> {
    let database = host.packages().ok()?;
    let is_one = |name: &str| {
        ["nvidia-fabricmanager", "nvidia-fabric-manager"].iter().any(|start| name.starts_with(start))
            && !name.contains("-dev")
    };
    let package = database.all().find(|p| p.state == State::Installed && is_one(&p.name))?;
    Some(Owner { name: package.name.clone(), version: package.version.clone() })
}
