//! Reboots: only the unit makes them, at most twice until the machine has converged, and never under
//! cloud-init's feet.

use std::time::{Duration, Instant};

use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::host::exec::Call;

use super::receipt::Receipt;

/// Reboots asked for until a machine has converged. One loads a new module; a second covers a kernel that
/// the first brought along. A third would be a loop.
const MOST_REBOOTS: u32 = 2;
/// cloud-init's own stages end within minutes; a user's script inside it may take longer, and we go first then.
const CLOUD_INIT_LIMIT: Duration = Duration::from_mins(10);
/// How often cloud-init is looked at.
const CLOUD_INIT_POLL: Duration = Duration::from_millis(500);

/// Notes that a reboot is needed in this boot, or refuses because it would be a loop.
pub fn note(receipt: &mut Receipt, why: &str) -> Result<()> {
    if receipt.reboot_asked_in.as_ref() == Some(&receipt.boot_id) {
        return Ok(()); // asked already, and not yet done
    }
    if receipt.reboots >= MOST_REBOOTS {
        return Err(Error::new(
            Code::RebootLoop,
            format!("{MOST_REBOOTS} reboots did not help, and a further one is asked for: {why}"),
        )
        .with_hint("look into the step that asks for it; `gpu-bootstrap status` names it"));
    }
    receipt.reboots += 1;
    receipt.reboot_asked_in = Some(receipt.boot_id.clone());
    Ok(())
}

/// Reboots this machine, after cloud-init has finished where there is one.
pub async fn reboot(host: &Host) -> Result<()> {
    let began = Instant::now();
    while host.files.exists("/run/cloud-init/status.json")?
        && !host.files.exists("/run/cloud-init/result.json")?
        && began.elapsed() < CLOUD_INIT_LIMIT
    {
        tokio::time::sleep(CLOUD_INIT_POLL).await;
    }
    host.exec.run(&Call::new("systemctl").args(["--no-block", "reboot"])).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_third_reboot_is_refused_and_one_boot_counts_once() {
        let mut receipt = Receipt::new("i-1");
        for boot in ["a", "a", "b"] {
            receipt.boot_id = boot.into();
            note(&mut receipt, "x").unwrap();
        }
        assert_eq!(receipt.reboots, 2);
        receipt.boot_id = "c".into();
        assert_eq!(note(&mut receipt, "x").unwrap_err().code(), Code::RebootLoop);
    }
}
