//! What one look at the machine has found, for the work that follows it at once: a driver that hangs is not to be
//! asked twice for one answer. It is taken out once, and only while it is fresh, so that it never becomes a record
//! that decides.

use std::any::Any;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Between a check and its work lies one line of the journal, written durably.
const FRESH: Duration = Duration::from_secs(10);

/// Room for one finding of any type.
#[derive(Default)]
pub(super) struct Look(Mutex<Option<(Instant, Box<dyn Any + Send>)>>);

impl Look {
    /// Keeps `finding` in place of an earlier one.
    pub(super) fn keep(&self, finding: impl Any + Send, now: Instant) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((now, Box::new(finding)));
    }

    /// The finding, where it is a `T` and fresh; in any case nothing is kept any more.
    pub(super) fn take<T: Any>(&self, now: Instant) -> Option<T> {
        let (kept, finding) = self.0.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        let fresh = now.saturating_duration_since(kept) <= FRESH;
        finding.downcast().ok().filter(|_| fresh).map(|finding| *finding)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_taken_once_while_it_is_fresh() {
        let (look, now) = (Look::default(), Instant::now());
        look.keep("a", now);
        assert_eq!(look.take::<&str>(now + FRESH), Some("a"));
        assert_eq!(look.take::<&str>(now), None);
        look.keep("a", now);
        assert_eq!(look.take::<&str>(now + FRESH + Duration::from_millis(1)), None, "it is stale");
        look.keep("a", now);
        assert_eq!(look.take::<u32>(now), None, "it is something else");
        assert_eq!(look.take::<&str>(now), None);
    }
}
