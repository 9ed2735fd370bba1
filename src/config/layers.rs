//! Layers, weakest first: defaults, `/usr/lib/gpu-bootstrap/*.toml`, `/etc/gpu-bootstrap/*.toml`, user-data, command line.

use std::collections::BTreeMap;

use super::Config;
use super::user_data::NotOurs;
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

/// The merged configuration and where it came from.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    /// The configuration, every key filled in.
    pub config: Config,
    /// Names of the layers that took part, weakest first; the defaults are not named.
    pub layers: Vec<String>,
    /// Which layer set which key (`driver.branch` → layer name); keys left at their default are absent.
    pub set_by: BTreeMap<String, String>,
    /// Why there was no configuration in the user-data, if user-data was given and held none.
    pub user_data: Option<NotOurs>,
}

/// Reads the file layers, adds `user_data` and `extra` (from `--config`), and merges them.
pub fn load(host: &Host, user_data: Option<&[u8]>, extra: &[Layer]) -> Result<Loaded> {
    let _ = (host, user_data, extra);
    Ok(Loaded::default())
}
