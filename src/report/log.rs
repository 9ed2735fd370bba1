//! Logging: to the journal with priorities under systemd, to standard error otherwise.

use std::fmt;
use std::io::IsTerminal;
use std::str::FromStr;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

/// Starts logging. `verbosity` 0 shows warnings, 1 information, 2 debugging; the environment's
/// `GPU_BOOTSTRAP_LOG` (`LEVEL` or `TARGET=LEVEL,…`) overrides it.
pub fn start(verbosity: u8) {
    let level = match verbosity {
        0 => Level::WARN,
        1 => Level::INFO,
        _ => Level::DEBUG,
    };
    let wish = std::env::var("GPU_BOOTSTRAP_LOG").ok().and_then(|text| Targets::from_str(&text).ok());
    let filter = wish.unwrap_or_else(|| Targets::new().with_target("gpu_bootstrap", level));
    // At its finest level the signer says what it signs, session token included.
    let filter = filter.with_target("aws_sigv4", Level::DEBUG);
    // A line that cannot be written must not be complained about on the same stream, which would panic.
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).log_internal_errors(false);
    let registry = tracing_subscriber::registry();
    // systemd sets JOURNAL_STREAM where standard error is the journal; it reads the priority from "<N>".
    let started = if std::env::var_os("JOURNAL_STREAM").is_some() && !std::io::stderr().is_terminal() {
        registry.with(layer.event_format(Journal).with_filter(filter)).try_init()
    } else {
        registry.with(layer.with_target(false).without_time().with_filter(filter)).try_init()
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
