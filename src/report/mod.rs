//! What the agent says while it works. Every report listens to the same [`event`] stream; none can fail a run.

pub mod cloudwatch;
pub mod event;
