//! Temporary.
#![allow(missing_docs, clippy::all, clippy::pedantic)]
use crate::error::{Code, Error, Result};
use sha2::{Digest, Sha256};
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
pub struct Item {
    pub uri: String,
    pub size: u64,
    pub sha256: String,
    pub path: PathBuf,
}
#[derive(Default)]
pub struct Settings {}
impl Settings {
    pub fn of(_: &crate::host::fetch::Fetch) -> Self {
        Self {}
    }
}
pub enum Event {
    Verified { item: usize },
    Failed { item: usize, error: Error },
    Progress { bytes: u64 },
}
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Stats {
    pub bytes: u64,
}
pub fn fetch(items: &[Item], _: &Settings, stop: &AtomicBool, on: &(dyn Fn(Event) + Sync)) -> Result<Stats> {
    let next = AtomicU64::new(0);
    let bytes = AtomicU64::new(0);
    std::thread::scope(|s| {
        for _ in 0..8 {
            s.spawn(|| {
                let rt = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                let f = crate::host::fetch::Fetch::new();
                rt.block_on(async {
                    loop {
                        let i = next.fetch_add(1, Ordering::Relaxed) as usize;
                        if i >= items.len() || stop.load(Ordering::Relaxed) {
                            return;
                        }
                        let it = &items[i];
                        let mut h = Sha256::new();
                        let mut file = std::fs::File::create_new(&it.path).unwrap();
                        let ok: std::result::Result<(), String> = async {
                            let mut r = f
                                .http()
                                .map_err(|e| e.to_string())?
                                .get(&it.uri)
                                .send()
                                .await
                                .map_err(|e| e.to_string())?;
                            while let Some(c) = r.chunk().await.map_err(|e| e.to_string())? {
                                h.update(&c);
                                file.write_all(&c).map_err(|e| e.to_string())?;
                                on(Event::Progress {
                                    bytes: bytes.fetch_add(c.len() as u64, Ordering::Relaxed),
                                });
                            }
                            Ok(())
                        }
                        .await;
                        let d = format!("{:x}", h.finalize());
                        if let Err(e) = ok {
                            on(Event::Failed { item: i, error: Error::new(Code::Fetch, e) })
                        } else if d != it.sha256 {
                            on(Event::Failed {
                                item: i,
                                error: Error::new(Code::ChecksumMismatch, format!("{d}")),
                            })
                        } else {
                            on(Event::Verified { item: i })
                        }
                    }
                })
            });
        }
    });
    Ok(Stats { bytes: bytes.load(Ordering::Relaxed) })
}
