//! What the plan inside asks of package repositories. Asked of the same functions that the run itself goes through,
//! in the sandbox, so that facts, user-data and catalog are those of the rehearsal.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::network::REPOSITORY;
use super::sandbox::CATALOG_DIR;
use crate::action::Action;
use crate::action::repository::matches_any;
use crate::action::repository::packages::request_name;
use crate::boot::{self, Inputs, METADATA_DEADLINE_BY_HAND};
use crate::catalog::Choice;
use crate::error::{Code, Error, Result, exit};
use crate::host::Host;
use crate::plan;

/// Packages and where the plan expects them.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Wanted {
    /// From NVIDIA's repository: its URL path, its label, and the packages.
    pub(super) nvidia: Option<(String, String, Vec<String>)>,
    /// From the distribution's archive.
    pub(super) distribution: Vec<String>,
    /// Branch of the driver that all driver packages belong to.
    pub(super) driver_branch: Option<String>,
    /// Version of the default toolkit.
    pub(super) toolkit: Option<String>,
    /// Components of the distribution's archive.
    pub(super) components: Vec<String>,
}

/// Prints [`Wanted`] as JSON. A machine on which nothing will be installed wants nothing; the run itself says why.
pub(super) fn print_wanted() -> Result<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| super::failed("start the event loop", e))?;
    let wanted = runtime.block_on(wanted())?;
    let json = serde_json::to_string(&wanted).map_err(|e| super::failed("write the packages", e))?;
    crate::report::streams::out(&format!("{json}\n"))?;
    Ok(exit::CONVERGED)
}

async fn wanted() -> Result<Wanted> {
    let inputs = Inputs {
        root: "/".into(),
        config: None,
        catalog: Some(Path::new(CATALOG_DIR).into()),
        metadata_deadline: Some(METADATA_DEADLINE_BY_HAND),
        unit: false,
    };
    let host = Host::new("/".into());
    let metadata = boot::metadata_client(&inputs)?;
    let prepared = match boot::prepare(&host, &inputs, metadata.as_ref()).await {
        Ok(prepared) => prepared,
        Err(e) if e.code().exit_code() == exit::UNSUPPORTED => return Ok(Wanted::default()),
        Err(e) => return Err(e),
    };
    let Choice::Install(stack) = &prepared.choice else { return Ok(Wanted::default()) };
    let custom = plan::custom::read(&host.files)?;
    let plan = plan::build(&prepared.facts, &prepared.config, stack, &custom)?;
    let wanted = of(plan.steps.iter().flat_map(|s| &s.actions))?;
    let toolkit = stack.toolkits.first().map(|t| t.version.clone());
    Ok(Wanted { driver_branch: stack.driver.as_ref().map(|d| d.branch.clone()), toolkit, ..wanted })
}

fn of<'a>(actions: impl Iterator<Item = &'a Action>) -> Result<Wanted> {
    let mut wanted = Wanted::default();
    let mut asked = Vec::new();
    for action in actions {
        match action {
            Action::AptIndex(index) => {
                // What NVIDIA may not supply (linux-headers-…, infiniband-diags) is the distribution's.
                let supplies = |p: &&String| matches_any(&index.may_supply, request_name(p));
                let packages = index.packages.iter().filter(supplies).cloned().collect();
                wanted.nvidia = Some((url_path(&index.url)?, index.label.clone(), packages));
            }
            Action::AptComponents(components) => wanted.components.clone_from(&components.components),
            Action::KernelPackages(kernel) => {
                asked.extend([&kernel.running[..], &kernel.following].concat());
            }
            Action::AptPackage(package) => asked.extend(package.packages.clone()),
            Action::Deb(deb) => {
                let urls: Vec<_> = deb.files.iter().map(|f| f.url.as_str()).collect();
                return Err(unreachable_url(&urls.join(", ")));
            }
            _ => {}
        }
    }
    let from_nvidia = wanted.nvidia.as_ref().map(|(_, _, packages)| packages.clone()).unwrap_or_default();
    wanted.distribution = asked.into_iter().filter(|p| !from_nvidia.contains(p)).collect();
    Ok(wanted)
}

/// The path of a URL on the simulated repository's address.
fn url_path(url: &str) -> Result<String> {
    let path = url.strip_prefix(&format!("http://{REPOSITORY}"));
    path.map(|p| format!("{}/", p.trim_end_matches('/'))).ok_or_else(|| unreachable_url(url))
}

fn unreachable_url(url: &str) -> Error {
    Error::new(Code::RehearsalUnavailable, format!("a rehearsal has no network and cannot reach {url}")).with_hint(
        "rehearse with a copy of the configuration that leaves `source.packages` at \"nvidia\" and `cudnn.deb` empty",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::action::apt_package::AptPackage;

    #[test]
    fn what_nvidia_does_not_supply_comes_from_the_distribution() {
        let packages = ["dkms", "nvidia-open-580"].map(str::to_owned).to_vec();
        let action = Action::AptPackage(AptPackage { packages, hold: true, ..AptPackage::default() });
        let wanted = of([action].iter()).unwrap();
        assert_eq!(wanted.distribution, ["dkms", "nvidia-open-580"]);
        assert_eq!(wanted.nvidia, None);
    }

    #[test]
    fn only_the_simulated_repository_can_be_reached() {
        let path = url_path("http://192.0.2.1/compute/cuda/repos/debian12/x86_64/").unwrap();
        assert_eq!(path, "/compute/cuda/repos/debian12/x86_64/");
        assert_eq!(url_path("https://mirror.example/x/").unwrap_err().code(), Code::RehearsalUnavailable);
    }
}
