//! Compiles the simulated driver (`src/rehearse/driver/`): one shared object that stands in for each of NVIDIA's
//! libraries. The probe loads it inside a rehearsal and in tests, whatever glibc is there, so that it asks for no
//! newer symbol than the probe does.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::stubs::{self, Stub};

const SOURCES: [&str; 4] = ["cuda.c", "nvml.c", "libraries.c", "settings.c"];

/// All that it may take from the C library.
const STUBS: [Stub; 1] = [Stub {
    name: "c",
    soname: "libc.so.6",
    first: &[
        "_exit", "abort", "access", "close", "fork", "getuid", "malloc", "memcpy", "memmove", "memset",
        "open", "pause", "raise", "read", "setsid", "sleep", "snprintf", "strchr", "strcmp", "strcspn",
        "strlen", "strncmp", "strstr", "syscall", "write",
    ],
    since_2_17: &[],
}];

/// Room for the longest soname that a library may get (`src/rehearse/driver.rs` writes it).
const SONAME: &str = "libsimulated.so................";

/// Builds it below `out` and returns its path.
pub(crate) fn build(out: &Path) -> PathBuf {
    println!("cargo:rerun-if-changed=src/rehearse/driver");
    let cc = stubs::c_compiler();
    let stubs = stubs::make(&cc, &out.join("simulated-driver-stubs"), &STUBS);
    let library = out.join("simulated-driver.so");
    let mut command = Command::new(cc);
    command.args(["-std=gnu11", "-Wall", "-Wextra", "-Os", "-fPIC", "-shared", "-nostdlib", "-s"]);
    // What distributions switch on and what would ask for newer symbols, or only make it bigger.
    command.args(["-U_FORTIFY_SOURCE", "-fno-stack-protector", "-fno-asynchronous-unwind-tables"]);
    if env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "x86_64") {
        command.arg("-fcf-protection=none");
    }
    command.args(SOURCES.map(|name| Path::new("src/rehearse/driver").join(name)));
    command.arg(format!("-Wl,-soname,{SONAME}")).arg("-Wl,-z,noseparate-code,--build-id=none,--no-undefined");
    command.arg("-L").arg(&stubs).arg("-lc").arg("-o").arg(&library);
    stubs::run(&mut command);
    library
}
