//! `prewarm`: reads every file of the packages that runs have installed, once. The volume of a new instance gets its blocks from
//! S3 when they are first read, each after a wait of its own; who wants the first `import torch` fast has them fetched before,
//! many at a time. Changes nothing, and may be killed at any moment.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use nix::fcntl::OFlag;

use crate::action;
use crate::boot;
use crate::error::{Code, Error, Result, exit};
use crate::host::Host;
use crate::report::streams;

/// What one thread asks for at a time: EBS fetches blocks of 512 KiB.
const CHUNK: usize = 1 << 20;
const MEGABYTE: u64 = 1_000_000;
/// So many names of files that could not be read are told.
const NAMED: usize = 5;

/// How files are read.
#[derive(Clone, Debug)]
pub struct Options {
    /// `/`, or a directory treated as the machine's root.
    pub root: PathBuf,
    /// Files that are read at the same time: each read waits for S3, not for a processor.
    pub jobs: usize,
}

#[derive(Default)]
struct Done {
    files: usize,
    bytes: u64,
    failures: Vec<Error>,
}

/// Reads them all. Returns the process's exit code: 0, or 1 where some could not be read, which are named.
pub fn prewarm(options: &Options) -> Result<u8> {
    boot::require_root()?;
    let host = Host::new(options.root.clone());
    let paths: Vec<PathBuf> =
        action::recorded_files(&host)?.into_iter().collect::<BTreeSet<_>>().into_iter().collect();
    if paths.is_empty() {
        return Err(Error::new(
            Code::NothingToResume,
            "no run has installed a package here, so that nothing is to be read",
        )
        .with_hint("run `gpu-bootstrap`, then ask again"));
    }
    let began = Instant::now();
    let done = read_all(&host, &paths, options.jobs);
    let took = began.elapsed();
    let per_second = u128::from(done.bytes) * 1000 / took.as_millis().max(1);
    streams::say(&format!(
        "read {} files, {} MB, in {:.1} s ({} MB/s)",
        done.files,
        done.bytes / MEGABYTE,
        took.as_secs_f64(),
        per_second / u128::from(MEGABYTE)
    ));
    let Some(first) = done.failures.first() else { return Ok(exit::CONVERGED) };
    for error in done.failures.iter().take(NAMED) {
        streams::err(&boot::explain(error));
    }
    if done.failures.len() > NAMED {
        streams::err(&format!("and {} more", done.failures.len() - NAMED));
    }
    Ok(first.code().exit_code())
}

fn read_all(host: &Host, paths: &[PathBuf], jobs: usize) -> Done {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Done::default());
    std::thread::scope(|scope| {
        for _ in 0..jobs.min(paths.len()) {
            scope.spawn(|| {
                let mut buffer = vec![0; CHUNK];
                while let Some(path) = paths.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let result = read(host, path, &mut buffer);
                    let mut done = done.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    match result {
                        Ok(bytes) => {
                            done.files += 1;
                            done.bytes += bytes;
                        }
                        Err(error) => done.failures.push(error),
                    }
                }
            });
        }
    });
    done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Reads one file to its end; how many bytes that were.
fn read(host: &Host, path: &Path, buffer: &mut [u8]) -> Result<u64> {
    let failed = |e| Error::io("read", path, e);
    // What has become a pipe or a link since is not what was installed.
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
    let mut file =
        File::options().read(true).custom_flags(flags).open(host.files.outside(path)?).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(Error::new(Code::Io, format!("{} is no regular file any more", path.display()))
            .with_hint("`gpu-bootstrap` puts back what packages had there"));
    }
    let mut bytes = 0;
    loop {
        match file.read(buffer) {
            Ok(0) => return Ok(bytes),
            Ok(length) => bytes += length as u64,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(failed(e)),
        }
    }
}
