//! A full run on a throw-away copy of this machine. No code outside this module knows that it is rehearsing.

use crate::error::Result;

/// Flags of `rehearse`.
#[derive(clap::Args, Debug)]
pub struct Options {}

/// Flags of the hidden inner command.
#[derive(clap::Args, Debug)]
pub struct InsideOptions {}

/// The supervisor.
pub fn run(_options: &Options) -> Result<u8> {
    Ok(1)
}

/// The sandbox's first process.
pub fn inside(_options: &InsideOptions) -> Result<u8> {
    Ok(1)
}
