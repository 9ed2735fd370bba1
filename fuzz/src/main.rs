//! One program for all targets of `gpu_bootstrap::fuzz`; `GPU_BOOTSTRAP_FUZZ` names the one to run.
#![no_main]

use std::sync::LazyLock;

use gpu_bootstrap::fuzz::{Target, target};
use libfuzzer_sys::fuzz_target;

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var("GPU_BOOTSTRAP_FUZZ").unwrap_or_default();
    target(&name).unwrap_or_else(|| panic!("GPU_BOOTSTRAP_FUZZ={name:?} names no target"))
});

fuzz_target!(|bytes: &[u8]| TARGET(bytes));
