//! Which driver branches, toolkits and cuDNN versions exist, and what fits which GPU and operating system.
//! Data in `steps/catalog/*.toml`; choosing is a pure function of (facts, config).

pub mod choose;
pub mod data;
pub mod distributed;
mod distributions;
pub mod frameworks;
pub mod machine;
mod tables;
pub mod version;

pub use choose::{Choice, Stack, choose};
pub use data::Catalog;
pub use distributions::{Distribution, all as distributions};
