//! What `uninstall` prints: the plan before anything is changed, and the last word.

use super::Options;
use super::plan::Plan;
use crate::error::Result;
use crate::host::{Host, paths};
use crate::report::streams;

/// Packages that a line names; the document has all.
const SHOWN: usize = 8;

/// Shows what goes and what stays.
pub(super) fn plan(plan: &Plan, options: &Options) -> Result<()> {
    if options.json {
        return streams::out(&streams::json(plan)?);
    }
    let mut lines = Vec::new();
    for unit in &plan.units {
        lines.push(format!("stop     {unit}"));
    }
    if !plan.packages.remove.is_empty() {
        lines.push(format!(
            "remove   {} packages: {}",
            plan.packages.remove.len(),
            few(&plan.packages.remove)
        ));
    } else if !plan.packages.purge.is_empty() {
        lines.push(format!("purge    {}", few(&plan.packages.purge)));
    }
    for file in &plan.files {
        lines.push(format!("{} {}", if file.is_restored() { "restore " } else { "remove  " }, file.path));
    }
    lines.extend(plan.environments.iter().map(|path| format!("remove   {path}")));
    if !plan.packages.unhold.is_empty() {
        lines.push(format!("unhold   {}", few(&plan.packages.unhold)));
    }
    for left in plan.packages.left.iter().chain(&plan.left) {
        lines.push(format!("leave    {}: {}", left.what, left.why));
    }
    for note in &plan.notes {
        lines.push(format!("note     {note}"));
    }
    if plan.is_empty() {
        lines.push("nothing that a run has added is here".into());
    }
    streams::out(&streams::printable(&(lines.join("\n") + "\n")))
}

/// The end.
pub(super) fn done(plan: &Plan, host: &Host, options: &Options) -> Result<()> {
    if options.json || plan.is_empty() {
        return Ok(());
    }
    let left = plan.packages.left.len() + plan.left.len();
    let mut text = String::from("done: what runs had added is gone");
    if left > 0 {
        text = format!("{text}, but for {left} that stay (named above)");
    }
    if !options.purge && host.files.exists(paths::CACHE_DIR)? {
        text = format!("{text}; downloads stay in {} (--purge removes them)", paths::CACHE_DIR);
    }
    streams::out(&(text + "\n"))
}

fn few(ids: &[String]) -> String {
    let names: Vec<_> = ids.iter().take(SHOWN).map(|id| id.split(':').next().unwrap_or(id)).collect();
    let more = ids.len().saturating_sub(SHOWN);
    if more > 0 { format!("{} and {more} more", names.join(", ")) } else { names.join(", ") }
}
