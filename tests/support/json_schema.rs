//! As much of JSON Schema as our own schemas use. A keyword that is not known here fails the test, so that nothing
//! in a schema goes unchecked.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use serde_json::Value;

/// Panics where `value` does not fit `schema`; `at` names the place.
pub(crate) fn validate(schema: &Value, value: &Value) {
    if let Err(why) = fits(schema, schema, value, "$") {
        panic!("{why}");
    }
}

fn fits(root: &Value, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
    for (keyword, wanted) in schema.as_object().unwrap() {
        let right = match keyword.as_str() {
            "$schema" | "$defs" | "title" | "description" => true,
            // Looked at together with the keyword "properties".
            "required" | "additionalProperties" if schema.get("type").is_some() => {
                keyword != "additionalProperties" || extra(root, schema, value, at)?
            }
            "$ref" => {
                let target = wanted.as_str().unwrap().strip_prefix('#').unwrap();
                fits(root, root.pointer(target).unwrap(), value, at)?;
                true
            }
            "type" => match wanted {
                Value::Array(any) => any.iter().any(|t| is(value, t)),
                one => is(value, one),
            },
            "const" => value == wanted,
            "enum" => wanted.as_array().unwrap().contains(value),
            "anyOf" => wanted.as_array().unwrap().iter().any(|s| fits(root, s, value, at).is_ok()),
            "properties" => properties(root, schema, value, at)?,
            "items" => {
                for (i, item) in value.as_array().into_iter().flatten().enumerate() {
                    fits(root, wanted, item, &format!("{at}[{i}]"))?;
                }
                true
            }
            unknown => panic!("this validator does not know the keyword {unknown}"),
        };
        if !right {
            return Err(format!("{at}: {keyword} {wanted} does not hold for {value}"));
        }
    }
    Ok(())
}

fn properties(root: &Value, schema: &Value, value: &Value, at: &str) -> Result<bool, String> {
    for name in schema["required"].as_array().into_iter().flatten() {
        if value.get(name.as_str().unwrap()).is_none() {
            return Err(format!("{at}: {name} is missing"));
        }
    }
    for (name, wanted) in schema["properties"].as_object().unwrap() {
        if let Some(found) = value.get(name) {
            fits(root, wanted, found, &format!("{at}.{name}"))?;
        }
    }
    Ok(true)
}

fn extra(root: &Value, schema: &Value, value: &Value, at: &str) -> Result<bool, String> {
    for (name, found) in value.as_object().into_iter().flatten() {
        if schema.get("properties").is_some_and(|p| p.get(name).is_some()) {
            continue;
        }
        match &schema["additionalProperties"] {
            Value::Bool(false) => return Err(format!("{at}: {name} is not in the schema")),
            wanted => fits(root, wanted, found, &format!("{at}.{name}"))?,
        }
    }
    Ok(true)
}

fn is(value: &Value, kind: &Value) -> bool {
    match kind.as_str().unwrap() {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        unknown => panic!("no type is called {unknown}"),
    }
}
