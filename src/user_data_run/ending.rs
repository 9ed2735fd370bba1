//! The end of a boot, as the user-data asks for it: the last message, and what takes the machine down. That waits for the run
//! that sets up the GPUs, and for its reports.

use std::cell::Cell;
use std::io::Write;
use std::time::{Duration, Instant};

use super::item::{Item, Work};
use super::log::{self, Log};
use crate::cloud_config::Task;
use crate::cloud_config::ending::{self, PowerState};
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::host::exec::Call;
use crate::host::files::Files;
use crate::host::paths;
use crate::report::remote::DeliveryFile;
use crate::report::streams;
use crate::status;

/// What packages leave that want a reboot (Debian's and Ubuntu's hooks; `/var/run` is `/run`).
const REBOOT_REQUIRED: &str = "/run/reboot-required";
/// How often reports on their way are looked at.
const GLANCE: Duration = Duration::from_millis(250);

/// Why an item that takes the machine down has to wait: the run that sets up the GPUs has not come to its end.
pub(super) fn put_off(files: &Files, item: &Item) -> Result<Option<String>> {
    let Work::Task(task @ (Task::PowerState(_) | Task::RebootIfRequired)) = &item.work else {
        return Ok(None);
    };
    let Some(status) = status::read(files)? else { return Ok(None) };
    if !status::of_this_boot(files, &status) {
        return Ok(None);
    }
    let comes_back = match task {
        Task::PowerState(state) => state.is_reboot(),
        _ => true,
    };
    let why = if status.state == "running" {
        "the GPUs are being set up"
    } else if status.outcome.as_deref() == Some("reboot-needed") && !comes_back {
        "the GPUs are not set up before the next boot"
    } else {
        return Ok(None);
    };
    Ok(Some(format!(
        "{why}: `gpu-bootstrap user-data run` does it afterwards, and so does its unit in the next boot"
    )))
}

/// Says the last message: in the log, and where errors go, which is journal and console for the unit.
pub(super) fn say(host: &Host, text: &str) -> Result<String> {
    let message = ending::message(host, text)?;
    let [mut out, _] = Log::open(&host.files, "final_message")?.writers()?;
    writeln!(out, "{message}").map_err(|e| Error::io("write to", log::PATH, e))?;
    streams::err(&message);
    Ok("said".into())
}

/// Reboots where a package wants it. What has not been done is done in the next boot.
pub(super) async fn reboot_if_required(host: &Host, stopping: &Cell<bool>) -> Result<String> {
    if !host.files.exists(REBOOT_REQUIRED)? {
        return Ok("no package wants a reboot".into());
    }
    delivered(&host.files, ending::TIMEOUT).await;
    let call = Call::new("shutdown").args(["-r", "now", "packages need a reboot"]);
    host.exec.run(&call).await.map_err(|e| {
        Error::new(Code::UserDataFailed, "package_reboot_if_required: the reboot was not accepted").because(e)
    })?;
    stopping.set(true);
    Ok(format!("{REBOOT_REQUIRED} is there: the machine reboots, and the rest is done then"))
}

/// Takes the machine down, if the condition is met.
pub(super) async fn power_state(host: &Host, state: &PowerState) -> Result<String> {
    if !state.is_met(host).await? {
        return Ok("its condition is not met, so that nothing is done".into());
    }
    delivered(&host.files, state.timeout).await;
    state.shut_down(host).await
}

/// Waits until nothing of the run's reports is on its way, for `limit` at most: what is left then is kept, and delivered in
/// the next boot.
async fn delivered(files: &Files, limit: Duration) {
    let began = Instant::now();
    while began.elapsed() < limit && is_delivering(files) {
        tokio::time::sleep(GLANCE).await;
    }
}

/// Whether reports of this boot's last run are on their way.
fn is_delivering(files: &Files) -> bool {
    // What cannot be read says of nothing that it is on its way.
    let status = status::read(files).ok().flatten().filter(|status| status::of_this_boot(files, status));
    let began = status.and_then(|status| status.started);
    let bytes = files.read(paths::DELIVERY).ok().flatten().unwrap_or_default();
    let Ok(delivery) = serde_json::from_slice::<DeliveryFile>(&bytes) else { return false };
    began.is_some_and(|began| delivery.run >= began)
        && delivery.channels.iter().any(|channel| !channel.is_over)
}
