//! Figures of a scenario as lines for people. Machines get the JSON.

use serde_json::Value;

/// Every leaf with its path, such as `("pings.0.ping.sent", "200")`, in the order of the JSON.
pub fn flatten(figures: &Value) -> Vec<(String, String)> {
    let mut lines = Vec::new();
    walk(figures, String::new(), &mut lines);
    lines
}

fn walk(value: &Value, path: String, lines: &mut Vec<(String, String)>) {
    let below = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    match value {
        Value::Null => {}
        Value::Bool(value) => lines.push((path, value.to_string())),
        Value::Number(value) => lines.push((path, value.to_string())),
        Value::String(value) => lines.push((path, value.clone())),
        Value::Array(values) => {
            for (index, value) in values.iter().enumerate() {
                walk(value, below(&index.to_string()), lines);
            }
        }
        Value::Object(values) => {
            for (name, value) in values {
                walk(value, below(name), lines);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_have_their_paths() {
        let figures = serde_json::json!({ "a": [1, { "b": "x" }], "c": null, "d": true });
        let lines = flatten(&figures);
        let expected = [("a.0", "1"), ("a.1.b", "x"), ("d", "true")];
        assert_eq!(lines, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }
}
