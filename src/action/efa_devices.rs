//! `efa-devices`: EFA devices that libfabric can use. Their kernel module is loaded, and libfabric's own program lists them: NCCL
//! would use TCP in their place without a word.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Applied, Check, Converge};
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::host::exec::{Call, Output};

const FI_INFO: &str = "/opt/amazon/efa/bin/fi_info";
/// What the kernel's RDMA core shows of each device.
const RDMA: &str = "/sys/class/infiniband";
/// 32 devices come up in a second or two.
const LIMIT: Duration = Duration::from_mins(2);
/// The domains of EFA devices end so: `rdmap16s27-rdm`, one for each device.
const DOMAIN_END: &str = "-rdm";

/// EFA devices that libfabric can use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct EfaDevices {
    /// How many are on the bus.
    pub devices: u32,
}

/// The domains that `fi_info -p efa -t FI_EP_RDM` lists, each once.
fn domains(text: &str) -> Vec<&str> {
    let named = text.lines().filter_map(|l| l.trim().strip_prefix("domain:")).map(str::trim);
    let mut all: Vec<_> = named.filter(|d| d.ends_with(DOMAIN_END)).collect();
    all.sort_unstable();
    all.dedup();
    all
}

impl EfaDevices {
    /// The evidence, or what is wrong, with what libfabric said.
    async fn look(&self, host: &Host) -> Result<Result<String, (String, Option<Output>)>> {
        if !host.files.exists("/sys/module/efa")? {
            return Ok(Err(("the kernel module efa is not loaded".into(), None)));
        }
        let output =
            host.exec.output(&Call::new(FI_INFO).args(["-p", "efa", "-t", "FI_EP_RDM"]).limit(LIMIT)).await?;
        let text = output.text();
        let found = domains(&text);
        if output.ok() && found.len() >= self.devices as usize {
            return Ok(Ok(format!(
                "libfabric lists {} of {} EFA devices: {}",
                found.len(),
                self.devices,
                found.join(", ")
            )));
        }
        let why = format!("libfabric lists {} of {} EFA devices", found.len(), self.devices);
        Ok(Err((why, Some(output))))
    }
}

impl Converge for EfaDevices {
    async fn check(&self, host: &Host) -> Result<Check> {
        Ok(match self.look(host).await? {
            Ok(evidence) => Check::satisfied(evidence),
            Err((why, _)) => Check::needed(why),
        })
    }

    async fn apply(&self, host: &Host) -> Result<Applied> {
        let call = Call::new("modprobe").args(["-a", "ib_uverbs", "efa"]).limit(LIMIT);
        let loaded = host.exec.output(&call).await?;
        if !loaded.ok() {
            return Err(Error::new(Code::EfaFailed, "the kernel module efa does not load")
                .with_hint("its kernel lacks it, or it is not signed under Secure Boot: `modinfo efa`, `dmesg | grep -i efa`")
                .because(loaded.tail()));
        }
        let Err((why, output)) = self.look(host).await? else { return Ok(Applied::Done) };
        let devices = host.files.list(RDMA)?;
        let error = Error::new(Code::EfaFailed, why).with_hint(match devices.len() {
            0 => format!("the kernel shows none in {RDMA}: `dmesg | grep -i efa` says why"),
            n => format!("the kernel shows {n} in {RDMA}; `{FI_INFO} -p efa` must list them, too: run EFA's installer of another version"),
        });
        Err(match output.map(|o| o.tail()).filter(|tail| !tail.is_empty()) {
            Some(tail) => error.because(tail),
            None => error,
        })
    }

    fn describe(&self) -> String {
        format!("{} EFA devices", self.devices)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_device_is_one_domain() {
        let text = "provider: efa\n    fabric: efa\n    domain: rdmap16s27-rdm\n    version: 122.0\n\
                    provider: efa\n    fabric: efa\n    domain: rdmap32s27-rdm\n\
                    provider: efa\n    fabric: efa\n    domain: rdmap32s27-rdm\n\
                    provider: efa\n    fabric: efa-direct\n    domain: rdmap32s27-dgrm\n";
        assert_eq!(domains(text), ["rdmap16s27-rdm", "rdmap32s27-rdm"]);
        assert!(domains("fi_getinfo: -61\n").is_empty());
    }

    #[tokio::test]
    async fn without_its_module_libfabric_is_not_asked() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path().into());
        let check = EfaDevices { devices: 4 }.check(&host).await.unwrap();
        assert_eq!(check, Check::needed("the kernel module efa is not loaded"));
    }
}
