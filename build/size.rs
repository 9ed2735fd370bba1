//! Keeps out of the release binary what it carries for nothing. docs/decisions/0009-size.md has the figures.

use std::env;
use std::process::Command;

/// From this version on, glibc's start code applies packed relocations in a static program.
const PACKED_SINCE: (u32, u32) = (2, 36);

/// Arguments for the linker, in release builds of the architecture where they were measured.
pub(crate) fn link_arguments() {
    let is_release = env::var("PROFILE").is_ok_and(|p| p == "release");
    let is_x86_64 = env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|a| a == "x86_64");
    if !is_release || !is_x86_64 {
        return;
    }
    let root = env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    // Nothing unwinds: a release panics by abort. Tests do unwind, so this is for the program alone.
    println!("cargo:rustc-link-arg-bins=-Wl,-T,{root}/build/no-unwind-tables.ld");
    // The program relocates itself at its start, by the code of the glibc that it is linked with. Older code would
    // leave packed relocations alone, and the program would crash at once.
    if glibc().is_some_and(|version| version >= PACKED_SINCE) {
        println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}

/// The version of the glibc that programs are linked with, by its header; `None` where it is another C library.
fn glibc() -> Option<(u32, u32)> {
    let cc = crate::stubs::c_compiler();
    let output =
        Command::new(cc).args(["-E", "-dM", "-include", "features.h", "-x", "c", "/dev/null"]).output();
    let macros = String::from_utf8(output.ok()?.stdout).ok()?;
    let value = |name: &str| {
        macros
            .lines()
            .find_map(|l| l.strip_prefix("#define ")?.strip_prefix(name)?.trim().parse::<u32>().ok())
    };
    Some((value("__GLIBC__ ")?, value("__GLIBC_MINOR__ ")?))
}
