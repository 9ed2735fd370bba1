//! Parse, dispatch, exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(gpu_bootstrap::cli::main())
}
