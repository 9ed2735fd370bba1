//! Downloads: bytes into memory (bounded) or into the cache (hashed while streaming).

use crate::error::{Code, Error, Result};

/// The HTTP client of the agent, made on first use (reading root certificates takes milliseconds).
#[derive(Debug, Default)]
pub struct Fetch {}

impl Fetch {
    /// A client that has not connected to anything.
    pub fn new() -> Self {
        Self::default()
    }

    /// Downloads `url` and returns where the verified file lies in the cache (path inside the root).
    pub async fn into_cache(
        &self,
        host: &super::Host,
        url: &str,
        sha256: &str,
    ) -> Result<std::path::PathBuf> {
        let _ = (host, sha256);
        Err(Error::new(Code::Fetch, format!("cannot download {url}")))
    }
}
