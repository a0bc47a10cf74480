//! Whether JSON is what a schema says.

use serde_json::Value;

/// Where a value is not what its schema says, as far as kiln's schemas go.
pub fn misfits(value: &Value, schema: &Value, at: &str) -> Vec<String> {
    for kind in ["anyOf", "oneOf"] {
        if let Some(choices) = schema[kind].as_array() {
            let each = choices.iter().map(|s| misfits(value, s, at));
            return each.min_by_key(Vec::len).unwrap_or_default();
        }
    }
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
    };
    let allowed = |t: &Value| t == kind || t == "number" && kind == "integer";
    let mut found = Vec::new();
    let right = match &schema["type"] {
        Value::Null => true,
        Value::Array(types) => types.iter().any(allowed),
        one => allowed(one),
    };
    if !right || !schema["const"].is_null() && schema["const"] != *value {
        found.push(format!("{at}: {value} is not {}", schema["type"]));
    }
    if let Some(fields) = value.as_object() {
        for (key, v) in fields {
            let of = match (&schema["properties"][key], &schema["additionalProperties"]) {
                (Value::Null, Value::Null) => {
                    found.push(format!("{at}: {key} is not described"));
                    continue;
                }
                (Value::Null, more) => more,
                (one, _) => one,
            };
            found.extend(misfits(v, of, &format!("{at}.{key}")));
        }
        let required = schema["required"].as_array().into_iter().flatten();
        let missing = required.filter(|k| fields.get(k.as_str().unwrap()).is_none());
        found.extend(missing.map(|k| format!("{at}: {k} is missing")));
    }
    for (k, v) in value.as_array().into_iter().flatten().enumerate() {
        let of = schema["prefixItems"].get(k).unwrap_or(&schema["items"]);
        found.extend(misfits(v, of, &format!("{at}[{k}]")));
    }
    found
}
