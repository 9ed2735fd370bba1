//! `detect`.
use super::Facts;

/// Text.
pub fn text(_facts: &Facts) -> String {
    String::new()
}

/// JSON.
pub fn json(facts: &Facts) -> serde_json::Value {
    serde_json::json!(facts)
}
