//! What is true of this machine. Every fact keeps its source. Parsers are pure; [`gather`] is the one place
//! that reads the machine.

pub mod accounts;
pub mod disk;
pub mod efa;
pub mod gpu;
pub mod identity;
pub mod instance_store;
pub mod os;
pub mod show;

use serde::Serialize;

use crate::error::Result;
use crate::host::Host;
use crate::imds;

/// A value and where it was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fact<T> {
    /// The value.
    pub value: T,
    /// The file, URL or program it came from.
    pub source: String,
}

impl<T> Fact<T> {
    /// A fact read from `source`.
    pub fn new(value: T, source: impl Into<String>) -> Self {
        Self { value, source: source.into() }
    }
}

/// All facts the plan follows from.
#[derive(Clone, Debug, Serialize)]
pub struct Facts {
    /// Who this machine is.
    pub identity: identity::Identity,
    /// Operating system, kernel, architecture.
    pub os: os::Os,
    /// GPUs and what belongs to them.
    pub gpu: gpu::GpuFacts,
    /// Network adapters that bypass the kernel.
    pub efa: Vec<Fact<gpu::PciDevice>>,
    /// Free space where packages go.
    pub disk: disk::Disk,
}

/// Reads every fact that a run needs. `metadata` is `None` with `--no-imds`.
pub async fn gather(host: &Host, metadata: Option<&imds::Client>) -> Result<Facts> {
    gather_from(host, metadata, gpu::Witnesses::WhenInDoubt).await
}

/// Like [`gather`], and every source is asked, also those that add nothing where all is well: for `detect`.
pub async fn gather_from_every_source(host: &Host, metadata: Option<&imds::Client>) -> Result<Facts> {
    gather_from(host, metadata, gpu::Witnesses::Every).await
}

async fn gather_from(
    host: &Host,
    metadata: Option<&imds::Client>,
    witnesses: gpu::Witnesses,
) -> Result<Facts> {
    Ok(Facts {
        identity: identity::gather(host, metadata).await?,
        os: os::gather(host).await?,
        gpu: gpu::gather(host, witnesses).await?,
        efa: efa::gather(host)?,
        disk: disk::gather(host)?,
    })
}
