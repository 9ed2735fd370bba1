//! What `auto` chose on this image, and whether a new choice would take back what an earlier run finished.

use crate::catalog::Stack;
use crate::catalog::choose::Source;
use crate::error::{Code, Error, Result};
use crate::host::files::Files;
use crate::host::paths;

use super::receipt::Receipt;

/// The choice recorded on this image; `None` if there is none, or none that this version can read.
pub fn earlier(files: &Files) -> Result<Option<Stack>> {
    let Some(bytes) = files.read(paths::CHOICE)? else { return Ok(None) };
    match serde_json::from_slice(&bytes) {
        Ok(stack) => Ok(Some(stack)),
        Err(e) => {
            tracing::warn!("{} is not understood and is ignored: {e}", paths::CHOICE);
            Ok(None)
        }
    }
}

/// Records the choice, unless it is recorded already.
pub fn record(files: &Files, stack: &Stack) -> Result<()> {
    let json = serde_json::to_vec_pretty(stack)
        .map_err(|e| Error::new(Code::Io, format!("cannot write {}", paths::CHOICE)).because(e))?;
    if files.read(paths::CHOICE)?.as_deref() == Some(&json) {
        return Ok(());
    }
    files.write(paths::CHOICE, &json, 0o644)
}

/// Refuses (`plan-changed`) where a finished step would be reversed or downgraded.
pub fn refuse_reversal(before: &Stack, after: &Stack, receipt: &Receipt) -> Result<()> {
    let done = |id: &str| receipt.is_done(id);
    let mut reversed = Vec::new();
    if done("driver")
        && let (Some(old), Some(new)) = (&before.driver, &after.driver)
    {
        if older(&new.branch, &old.branch) {
            reversed.push(format!("driver {} → {}", old.branch, new.branch));
        } else if new.branch == old.branch && new.open != old.open {
            reversed.push(format!("driver {}: {} → {}", old.branch, flavour(old.open), flavour(new.open)));
        }
    }
    if done("cuda-toolkit")
        && let (Some(old), Some(new)) = (before.toolkits.first(), after.toolkits.first())
        && older(&new.version, &old.version)
    {
        reversed.push(format!("default toolkit {} → {}", old.version, new.version));
    }
    if done("cudnn")
        && let (Some(old), Some(new)) = (&before.cudnn, &after.cudnn)
        && older(&new.version, &old.version)
    {
        reversed.push(format!("cuDNN {} → {}", old.version, new.version));
    }
    if done("cuda-toolkit") && std::mem::discriminant(&before.source) != std::mem::discriminant(&after.source)
    {
        reversed.push(format!("packages from {} → {}", source(&before.source), source(&after.source)));
    }
    if reversed.is_empty() {
        return Ok(());
    }
    Err(Error::new(
        Code::PlanChanged,
        format!("the new plan takes back what is installed: {}", reversed.join(", ")),
    )
    .with_hint("run with --replan if that is what you want, or put the configuration back"))
}

fn flavour(open: bool) -> &'static str {
    if open { "open" } else { "proprietary" }
}

fn source(source: &Source) -> &'static str {
    match source {
        Source::Nvidia(_) => "NVIDIA's repository",
        Source::Distro { .. } => "the distribution",
    }
}

/// Whether version `a` is older than `b`, part by part as numbers (driver versions have two or three parts).
fn older(a: &str, b: &str) -> bool {
    let parts = |v: &str| v.split(['.', '-', '+']).map(|p| p.parse::<u64>().ok()).collect::<Option<Vec<_>>>();
    match (parts(a), parts(b)) {
        (Some(a), Some(b)) => a < b,
        _ => false, // "auto" has no order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_as_numbers() {
        assert!(older("12.8", "12.10"));
        assert!(older("535.309.01", "580"));
        assert!(!older("13.0", "12.9"));
        assert!(!older("auto", "9.8.0"));
    }
}
