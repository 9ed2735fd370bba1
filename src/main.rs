//! Parse, dispatch, exit code.

mod no_getaddrinfo;

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(gpu_bootstrap::cli::main())
}
