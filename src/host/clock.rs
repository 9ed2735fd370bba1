//! Time and boot identity.

use std::time::SystemTime;

use jiff::Timestamp;

/// Wall-clock time. Durations are measured with [`std::time::Instant`] by whoever needs one.
#[derive(Clone, Copy, Debug)]
pub struct Clock;

impl Clock {
    /// Now, UTC.
    pub fn now(&self) -> Timestamp {
        Timestamp::try_from(SystemTime::now()).unwrap_or(Timestamp::UNIX_EPOCH)
    }
}
