//! gpu-bootstrap: turns a bare Ubuntu or Debian instance into one where CUDA provably works.
//!
//! Data flows one way: facts → config → catalog → plan → engine (actions → host) → events → reports.
//! [`boot`] is that sentence as a function; start reading there.

pub mod action;
pub mod analyze;
pub mod aws;
pub mod boot;
pub mod bundle;
pub mod catalog;
pub mod catalog_query;
pub mod cli;
mod cloud_config;
pub mod config;
pub mod device_query;
mod embedded;
pub mod engine;
pub mod error;
pub mod facts;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod host;
pub mod imds;
pub mod install;
pub mod instance;
pub mod launch_line;
pub mod page;
pub mod plan;
pub mod rehearse;
pub mod report;
pub mod status;
pub mod text;
pub mod uninstall;
pub mod user_data;
pub mod user_data_run;
pub mod user_data_stub;
mod yaml;
