//! Docker's daemon.json: `features.cdi`, and NVIDIA's runtime among `runtimes`. Everything else keeps its value; the
//! file is JSON, which knows neither comments nor an order.

use serde_json::{Map, Value, json};

use super::{Found, NVIDIA_RUNTIME, Runtime, refused};
use crate::error::Result;

const PATH: &str = Runtime::Docker.path();

pub(super) fn look(text: &str, with_nvidia: bool) -> Result<Found> {
    let config = read(text)?;
    if config.get("features").and_then(|f| f.get("cdi")) != Some(&Value::Bool(true)) {
        return Ok(Found::Wrong(format!("{PATH} does not switch CDI on")));
    }
    if with_nvidia && runtime(&config).is_none() {
        return Ok(Found::Wrong(format!("{PATH} does not know NVIDIA's runtime")));
    }
    let runtime = if with_nvidia { " and knows NVIDIA's runtime" } else { "" };
    Ok(Found::Right(format!("{PATH} switches CDI on{runtime}")))
}

pub(super) fn extended(text: &str, with_nvidia: bool) -> Result<String> {
    let mut config = read(text)?;
    object(&mut config, "features")?.insert("cdi".into(), Value::Bool(true));
    if with_nvidia && runtime(&config).is_none() {
        let ours = json!({ "args": [], "path": NVIDIA_RUNTIME });
        object(&mut config, "runtimes")?.insert("nvidia".into(), ours);
    }
    let text = serde_json::to_string_pretty(&config)
        .map_err(|e| refused(PATH, "it cannot be written").because(e))?;
    Ok(text + "\n")
}

/// NVIDIA's runtime, wherever somebody has put it.
fn runtime(config: &Map<String, Value>) -> Option<&str> {
    let path = config.get("runtimes")?.get("nvidia")?.get("path")?.as_str()?;
    (path.rsplit('/').next() == Some("nvidia-container-runtime")).then_some(path)
}

fn object<'c>(config: &'c mut Map<String, Value>, key: &str) -> Result<&'c mut Map<String, Value>> {
    let value = config.entry(key).or_insert_with(|| json!({}));
    value.as_object_mut().ok_or_else(|| refused(PATH, &format!("`{key}` is no object")))
}

/// Docker takes an empty file for an empty object.
fn read(text: &str) -> Result<Map<String, Value>> {
    if text.trim().is_empty() {
        return Ok(Map::new());
    }
    match serde_json::from_str(text) {
        Ok(Value::Object(config)) => Ok(config),
        Ok(_) => Err(refused(PATH, "it is no JSON object")),
        Err(e) => Err(refused(PATH, &format!("line {}, column {}: {e}", e.line(), e.column()))
            .with_hint("correct it (`dockerd --validate` says more), then run again")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn both(text: &str) -> Value {
        let extended = extended(text, true).unwrap();
        assert!(matches!(look(&extended, true).unwrap(), Found::Right(_)), "{extended}");
        serde_json::from_str(&extended).unwrap()
    }

    #[test]
    fn what_others_have_set_stays() {
        let theirs = r#"{"log-driver": "journald", "features": {"buildkit": true, "cdi": false},
                         "runtimes": {"kata": {"path": "/opt/kata"}}, "default-runtime": "kata"}"#;
        let ours = both(theirs);
        assert_eq!(ours["log-driver"], "journald");
        assert_eq!(ours["features"], json!({"buildkit": true, "cdi": true}));
        assert_eq!(ours["runtimes"]["kata"]["path"], "/opt/kata");
        assert_eq!(ours["default-runtime"], "kata");
        assert_eq!(ours["runtimes"]["nvidia"], json!({"path": NVIDIA_RUNTIME, "args": []}));
    }

    #[test]
    fn an_empty_file_and_one_by_nvidia_s_own_tool_are_understood() {
        assert_eq!(both("\n")["features"]["cdi"], true);
        let own = r#"{"runtimes": {"nvidia": {"args": ["--x"], "path": "nvidia-container-runtime"}}}"#;
        assert_eq!(both(own)["runtimes"]["nvidia"]["args"], json!(["--x"]));
    }

    #[test]
    fn without_nvidia_s_toolkit_only_cdi_is_switched_on() {
        let text = extended("", false).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), json!({"features": {"cdi": true}}));
        assert!(matches!(look(&text, false).unwrap(), Found::Right(_)));
        assert!(matches!(look(&text, true).unwrap(), Found::Wrong(_)));
    }

    #[test]
    fn what_has_another_shape_is_refused_with_its_place() {
        for (text, what) in
            [("[]", "no JSON object"), (r#"{"features": 1}"#, "`features`"), ("{\n\"a\" 1}", "line 2")]
        {
            let error = extended(text, true).unwrap_err();
            assert!(error.message().contains(what), "{error}");
        }
    }
}
