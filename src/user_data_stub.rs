//! `user-data render`: the shell stub that a launch template carries.

use std::path::Path;

use crate::error::Result;

/// Flags of `user-data render`.
#[derive(clap::Args, Debug)]
pub struct RenderArgs {}

/// The stub.
pub fn render(_args: &RenderArgs) -> Result<String> {
    Ok(String::new())
}

/// What the agent makes of a user-data file.
pub fn check(_file: &Path) -> Result<String> {
    Ok(String::new())
}
