//! The probe: a small dynamic program that loads what the static agent cannot, the GPU driver's libraries.
//!
//! The agent embeds it (`build.rs` compiles it on its own, without std and without crates) and starts it once for
//! each risk, because a broken driver may hang or abort the process that loads it:
//!
//! ```text
//! gpu-probe nvml   LIBRARY
//! gpu-probe cuda   LIBRARY                      every device, and who can reach whose memory
//! gpu-probe smoke  LIBRARY INDEX                a kernel on one device, checked on the host
//! gpu-probe bandwidth LIBRARY INDEX NVML        copies to, from and on one device, and its link meanwhile
//! gpu-probe peers  LIBRARY FROM-TO,…            copies between devices
//! gpu-probe cudart|cudnn|cublas|nccl LIBRARY    its version, by its own word
//! ```
//!
//! A first argument `--user=UID` gives up root before any library is loaded. Standard output is one JSON
//! record per line; `STAGE.begin` stands before each call that may not come back.

#![no_std]
#![no_main]

extern crate alloc;

mod attributes;
mod bandwidth;
mod cuda;
mod device_test;
mod libraries;
mod library;
mod mix;
mod nvml;
mod peers;
mod record;
mod runtime;
mod smoke;
mod stream;

/// Exit status for arguments that make no sense.
const USAGE: i32 = 2;

fn run(args: &[&'static str]) -> i32 {
    let (user, args) = match args.get(1).and_then(|a| a.strip_prefix("--user=")) {
        Some(user) => (Some(user), &args[2..]),
        None => (None, args.get(1..).unwrap_or_default()),
    };
    if let Some(user) = user {
        let Ok(user) = user.parse() else { return USAGE };
        if !runtime::become_user(user) {
            record::Record::new("start").text("error", "cannot give up root").emit();
            return USAGE;
        }
    }
    runtime::die_with_parent();
    match *args {
        ["nvml", path] => nvml::query(path),
        ["cuda", path] => cuda::query(path),
        ["smoke", path, index] => match index.parse() {
            Ok(index) => smoke::test(path, index),
            Err(_) => return USAGE,
        },
        ["bandwidth", path, index, nvml] => match index.parse() {
            Ok(index) => bandwidth::test(path, index, nvml),
            Err(_) => return USAGE,
        },
        ["peers", path, pairs] => {
            if !peers::test(path, pairs) {
                return USAGE;
            }
        }
        [name, path] => match libraries::KNOWN.iter().find(|l| l.name == name) {
            Some(known) => libraries::version(known, path),
            None => return USAGE,
        },
        _ => return USAGE,
    }
    record::Record::new("end").emit();
    0
}
