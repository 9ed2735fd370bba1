//! One package file by its URL, into the cache: over many connections where its server tells its size and answers ranges
//! with ranges, as any other download where it does not.

use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use super::ahead::{keep, partial};
use super::fetch::{Event, Item, ProxyChoice, Supply};
use super::prepare::{Fetching, wait_for};
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::host::fault::{self, Kind};
use crate::host::fetch::{downloading, full_hint, refuse_if_full, waiting};
use crate::report::event::{Progress, Unit};

/// Returns where the verified package lies in the cache (path inside the root). One that is there already is hashed again;
/// one that is being fetched ahead is waited for.
pub async fn deb_into_cache(host: &Host, url: &str, sha256: &str) -> Result<PathBuf> {
    host.ahead().wait(&sha256.to_ascii_lowercase()).await;
    let wanted = host.fetch.look_for(host, url, sha256).await?;
    if wanted.is_there {
        return Ok(wanted.inside);
    }
    let Some(size) = host.fetch.size_of_deb(&wanted.url).await else {
        return host.fetch.into_cache_deb(host, url, sha256).await;
    };
    refuse_if_full(host, &wanted.url, Some(size))?;
    let path = host.files.outside(partial(&wanted.sha256))?;
    let item = Item { uri: wanted.url.to_string(), size, sha256: wanted.sha256, path };
    let failed = Arc::new(Mutex::new(None));
    let failure = failed.clone();
    let (progress, what) = (host.progress_sink(), downloading(&wanted.url));
    let fetching = Fetching::start(
        host,
        &ProxyChoice::Environment,
        vec![item.clone()],
        |_| Supply::Address,
        move |event| match event {
            Event::Progress { bytes: done } => {
                let what = what.clone();
                progress(Progress { what, item: String::new(), done, total: Some(size), unit: Unit::Bytes });
            }
            Event::Waiting { why, wait } => progress(waiting(&why, wait)),
            Event::Failed { error, .. } => {
                *failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            }
            Event::Verified { .. } => {}
        },
    );
    wait_for(fetching).await?;
    let failed = failed.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(error) = failed {
        return Err(match error.code() {
            Code::ChecksumMismatch => error.with_hint("run again, or correct the pin"),
            _ => full_hint(error),
        });
    }
    let synced = File::open(&item.path).and_then(|file| {
        fault::point(Kind::Sync, &item.path)?;
        file.sync_all()
    });
    let kept = synced.and_then(|()| keep(&item, &wanted.place));
    kept.map_err(|e| full_hint(Error::io("keep", &wanted.place, e)))?;
    Ok(wanted.inside)
}

/// Fetches files to where their items say, over many connections. Each is whole and verified there, or is named with its
/// error by its number.
pub async fn fetch_files(host: &Host, items: Vec<Item>) -> Result<Vec<(usize, Error)>> {
    if items.is_empty() {
        return Ok(Vec::new());
    }
    let total = items.iter().map(|item| item.size).sum();
    let failed = Arc::new(Mutex::new(Vec::new()));
    let (failures, progress) = (failed.clone(), host.progress_sink());
    let what = "downloading files".to_owned();
    let on = move |event| match event {
        Event::Progress { bytes: done } => {
            let what = what.clone();
            progress(Progress { what, item: String::new(), done, total: Some(total), unit: Unit::Bytes });
        }
        Event::Waiting { why, wait } => progress(waiting(&why, wait)),
        Event::Failed { item, error } => {
            failures.lock().unwrap_or_else(PoisonError::into_inner).push((item, error));
        }
        Event::Verified { .. } => {}
    };
    let fetching = Fetching::start(host, &ProxyChoice::Environment, items, |_| Supply::Address, on);
    wait_for(fetching).await?;
    let failed = std::mem::take(&mut *failed.lock().unwrap_or_else(PoisonError::into_inner));
    Ok(failed)
}
