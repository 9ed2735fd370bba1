//! `report --html`: one page for people about the last run: the verdict, where the time went, the GPUs as they are now, what
//! changed, what is known of the machine. It needs no network and no script, and has no link to anything outside.

mod html;
mod runs;
mod sections;

use jiff::Timestamp;

use crate::device_query::{self, Compute, Examination};
use crate::error::{Code, Error, Result};
use crate::facts::{self, Facts};
use crate::host::files::Files;
use crate::host::{Host, paths};
use crate::imds;
use crate::report::status_file::Status;
use crate::status;

/// Everything that the page shows.
pub struct Content {
    /// How the last run went, or how the current one is going.
    pub status: Status,
    /// The last run that installed something, where that was an earlier one.
    pub installation: Option<Status>,
    /// The machine; or why it could not be looked at.
    pub facts: Result<Facts, Error>,
    /// Its GPUs, where it has any; or why they could not be looked at.
    pub gpus: Result<Option<Examination>, Error>,
    /// When the machine was looked at.
    pub now: Timestamp,
}

/// Gathers what the page shows. Nothing is computed on the GPUs: a report must not disturb whoever uses them. An error
/// only where there is no run to report on.
pub async fn gather(
    host: &Host,
    metadata: Option<&imds::Client>,
    options: device_query::Options,
) -> Result<Content> {
    let status = status::read(&host.files)?.ok_or_else(|| {
        Error::new(Code::NothingToResume, "there was no run on this machine yet")
            .with_hint("run `gpu-bootstrap`, then ask again")
    })?;
    let facts = facts::gather(host, metadata).await;
    let gpus = match &facts {
        Ok(facts) if facts.gpu.gpus.is_empty() => Ok(None),
        _ => device_query::examine(host, device_query::Options { compute: Compute::Never, ..options })
            .await
            .map(Some),
    };
    let installation = last_installation(&host.files, &status);
    Ok(Content { status, installation, facts, gpus, now: host.clock.now() })
}

/// What cannot be read is left out: the page is about another run.
fn last_installation(files: &Files, status: &Status) -> Option<Status> {
    let bytes = files.read(paths::LAST_INSTALLATION).ok()??;
    let earlier: Status = serde_json::from_slice(&bytes).ok()?;
    (earlier.started != status.started).then_some(earlier)
}

/// The page.
pub fn render(content: &Content) -> String {
    let status = &content.status;
    let mut body = sections::verdict(content);
    body += &sections::error(status);
    body += &runs::steps("Steps", status);
    if let Some(earlier) = &content.installation {
        body += &runs::steps("The last run that installed something", earlier);
    }
    body += &runs::installations(content.installation.as_ref().unwrap_or(status));
    body += &sections::gpus(content);
    body += &sections::changes(status);
    body += &sections::notices(status);
    body += &sections::facts(content);
    body += &sections::footer(content);
    html::page(&sections::title(status), &body)
}
