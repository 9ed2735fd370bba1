//! Digests: the SHA-256 of a step's canonical, filled-in form. They tell whether a plan changed; whether
//! work is needed is always asked of the machine.

use sha2::{Digest, Sha256};

use super::Step;
use crate::action::Action;
use crate::text::hex;

/// The digest of one step: its id and its actions as canonical JSON (keys in the order of the types).
pub fn step(id: &str, actions: &[Action]) -> String {
    let mut hash = Sha256::new();
    hash.update(id.as_bytes());
    hash.update([0]);
    for action in actions {
        hash.update(serde_json::to_vec(action).unwrap_or_default());
        hash.update([0]);
    }
    hex(&hash.finalize())
}

/// The digest of a plan: over its steps' digests.
pub fn plan(steps: &[Step]) -> String {
    let mut hash = Sha256::new();
    for step in steps {
        hash.update(step.digest.as_bytes());
    }
    hex(&hash.finalize())
}
