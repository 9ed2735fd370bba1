//! What the agent says while it works. Every report listens to the same [`event`] stream; none can fail a run.

pub mod cloud_init;
pub mod console;
pub mod event;
pub mod journal;
pub mod lines;
pub mod log;
pub mod progress;
pub mod remote;
pub mod status_file;
pub mod streams;

use std::sync::{Arc, Mutex, PoisonError};

use event::{Event, EventKind};

use crate::host::clock::Clock;

/// Hears every event, in order. It must not block for long, and it has no way to fail the run: what goes
/// wrong in it is logged by itself.
pub trait Listener: Send {
    /// One more thing happened.
    fn hear(&mut self, event: &Event);
}

/// The event stream: whoever holds a clone may speak.
#[derive(Clone, Default)]
pub struct Reports {
    listeners: Arc<Mutex<Vec<Box<dyn Listener>>>>,
}

impl Reports {
    /// A stream heard by `listeners`.
    pub fn new(listeners: Vec<Box<dyn Listener>>) -> Self {
        Self { listeners: Arc::new(Mutex::new(listeners)) }
    }

    /// Says that something happened now.
    pub fn emit(&self, kind: EventKind) {
        let event = Event { at: Clock.now(), kind };
        // A listener that panicked must not silence the others.
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        for listener in listeners.iter_mut() {
            listener.hear(&event);
        }
    }
}
