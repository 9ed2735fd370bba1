//! Which instance types and distributions the catalog knows.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use super::SCHEMA;
use super::subject::rank;
use crate::catalog::{Catalog, Distribution, distributions};

#[derive(Serialize)]
pub(super) struct Overview {
    schema: u32,
    kind: &'static str,
    program: &'static str,
    instance_families: Vec<Family>,
    refused_families: Vec<Refused>,
    distributions: Vec<Distribution>,
}

#[derive(Serialize)]
struct Family {
    name: String,
    arch: &'static str,
    gpu: String,
    pci_id: String,
    architecture: Option<String>,
    /// Size → GPUs.
    sizes: BTreeMap<String, u32>,
    /// Which of this no source confirms.
    unverified: Vec<String>,
}

#[derive(Serialize)]
struct Refused {
    families: Vec<String>,
    accelerator: String,
    next_step: String,
}

impl Overview {
    pub(super) fn new(catalog: &Catalog) -> Self {
        let families = catalog.instances.family.iter().map(|f| Family {
            name: f.name.clone(),
            arch: f.arch.debian_name(),
            gpu: catalog.gpu_name(f.gpu.0),
            pci_id: format!("10de:{:04x}", f.gpu.0),
            architecture: catalog.architecture(f.gpu.0).ok(),
            sizes: f.sizes.clone(),
            unverified: f.unverified.clone(),
        });
        let refused = catalog.instances.refused.iter().map(|r| Refused {
            families: r.families.clone(),
            accelerator: r.accelerator.clone(),
            next_step: r.next_step.clone(),
        });
        Self {
            schema: SCHEMA,
            kind: "overview",
            program: concat!("gpu-bootstrap ", env!("CARGO_PKG_VERSION")),
            instance_families: families.collect(),
            refused_families: refused.collect(),
            distributions: distributions(catalog),
        }
    }

    pub(super) fn text(&self) -> String {
        let mut out = String::from("Instance types (GPUs)\n");
        for f in &self.instance_families {
            let mut sizes: Vec<_> = f.sizes.iter().collect();
            sizes.sort_by_key(|(size, gpus)| (**gpus, rank(size)));
            let sizes: Vec<_> = sizes.iter().map(|(size, gpus)| format!("{size} {gpus}")).collect();
            let sizes = if sizes.is_empty() { "sizes not known".to_owned() } else { sizes.join(", ") };
            let unverified = match f.unverified.as_slice() {
                [] => String::new(),
                keys => format!(" [unverified: {}]", keys.join(", ")),
            };
            let architecture = f.architecture.as_deref().unwrap_or_default();
            let _ = writeln!(
                out,
                "  {:<11} {}  {} {} ({architecture}): {sizes}{unverified}",
                f.name, f.arch, f.pci_id, f.gpu
            ); // writing to a String cannot fail
        }
        out.push_str("\nRefused\n");
        for r in &self.refused_families {
            let _ = writeln!(out, "  {}: {}", r.families.join(", "), r.accelerator);
        }
        out.push_str("\nDistributions\n");
        for d in &self.distributions {
            let nvidia = match &d.nvidia {
                Some(n) if !n.key_known => {
                    "NVIDIA's repository is signed by a key that nobody here knows".to_owned()
                }
                Some(n) => format!(
                    "NVIDIA's repository ({}) has CUDA {}, driver branches {}",
                    n.architectures.join(", "),
                    n.toolkits,
                    n.branches
                ),
                None => "NVIDIA has no repository".to_owned(),
            };
            let _ = writeln!(
                out,
                "  {:<11} {nvidia}; its own packages ({}) have CUDA {}, driver branches {}",
                d.written(),
                d.own.architectures.join(", "),
                d.own.toolkits,
                d.own.branches
            );
        }
        out
    }
}
