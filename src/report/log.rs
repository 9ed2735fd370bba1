//! Logging: to the journal with priorities under systemd, to standard error otherwise.

use std::fmt;
use std::io::IsTerminal;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Starts logging. `verbosity` 0 shows warnings, 1 information, 2 debugging; the environment's
/// `GPU_BOOTSTRAP_LOG` (tracing's filter syntax) overrides it.
pub fn start(verbosity: u8) {
    let default = match verbosity {
        0 => "gpu_bootstrap=warn",
        1 => "gpu_bootstrap=info",
        _ => "gpu_bootstrap=debug",
    };
    let filter = EnvFilter::try_from_env("GPU_BOOTSTRAP_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    // A line that cannot be written must not be complained about on the same stream, which would panic.
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .log_internal_errors(false);
    // systemd sets JOURNAL_STREAM where standard error is the journal; it reads the priority from "<N>".
    let started = if std::env::var_os("JOURNAL_STREAM").is_some() && !std::io::stderr().is_terminal() {
        builder.event_format(Journal).try_init()
    } else {
        builder.with_target(false).without_time().try_init()
    };
    // Only a second start could fail, and the first one's settings then stay.
    drop(started);
}

/// `<priority>message`, the form that systemd-journald parses (sd-daemon(3)).
struct Journal;

impl<S, N> FormatEvent<S, N> for Journal
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        ctx: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let priority = match *event.metadata().level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            Level::DEBUG | Level::TRACE => 7,
        };
        write!(writer, "<{priority}>")?;
        ctx.field_format().format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}
