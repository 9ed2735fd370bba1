//! `file`: a file with this content and mode.

use std::os::unix::fs::MetadataExt;

use serde::{Deserialize, Serialize};

use super::{Applied, Check, Converge};
use crate::error::Result;
use crate::host::Host;

/// A whole file that is ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct File {
    /// Absolute path.
    pub path: String,
    /// The whole content.
    pub content: String,
    /// Permission bits, octal (`"0644"`).
    #[serde(default = "default_mode", with = "octal")]
    pub mode: u32,
}

fn default_mode() -> u32 {
    0o644
}

impl Converge for File {
    async fn check(&self, host: &Host) -> Result<Check> {
        let Some(meta) = host.files.lstat(&self.path)? else {
            return Ok(Check::needed(format!("{} does not exist", self.path)));
        };
        if !meta.is_file() {
            return Ok(Check::needed(format!("{} is not a regular file", self.path)));
        }
        if host.files.read(&self.path)?.as_deref() != Some(self.content.as_bytes()) {
            return Ok(Check::needed(format!("{} has other content", self.path)));
        }
        let mode = meta.mode() & 0o7777;
        if mode != self.mode {
            return Ok(Check::needed(format!("{} has mode {mode:04o}, wanted {:04o}", self.path, self.mode)));
        }
        Ok(Check::satisfied(format!("{} has the wanted {} bytes", self.path, self.content.len())))
    }

    async fn apply(&self, host: &Host) -> Result<Applied> {
        host.files.write(&self.path, self.content.as_bytes(), self.mode)?;
        Ok(Applied::Done)
    }

    fn target(&self) -> Option<&str> {
        Some(&self.path)
    }

    fn describe(&self) -> String {
        format!("file {}", self.path)
    }
}

/// Modes are written as octal strings, as in every Unix document.
mod octal {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
    pub(super) fn serialize<S: Serializer>(mode: &u32, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&format!("{mode:04o}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<u32, D::Error> {
        let text = String::deserialize(d)?;
        match u32::from_str_radix(&text, 8) {
            Ok(mode) if mode <= 0o7777 => Ok(mode),
            _ => Err(D::Error::custom(format!("mode {text:?} is not an octal number such as \"0644\""))),
        }
    }
}
