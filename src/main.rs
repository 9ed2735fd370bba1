//! Parse, dispatch, exit code.

mod no_getaddrinfo;
mod no_stack_bounds;

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(gpu_bootstrap::cli::main())
}
