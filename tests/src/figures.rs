//! Figures of a scenario as lines for people. Machines get the JSON.

use serde_json::Value;

/// Every leaf with its path, such as `("pings.0.ping.sent", "200")`, in the order of the JSON.
pub fn flatten(figures: &Value) -> Vec<(String, String)> {
    let mut lines = Vec::new();
    walk(figures, String::new(), &mut lines);
    lines
}

/// Every leaf as a line, those of `columns` (names at the top) side by side and before all others.
pub fn beside(figures: &Value, columns: &[String]) -> Vec<String> {
    let mut rows: Vec<(String, Vec<String>)> = vec![(String::new(), columns.to_vec())];
    for (at, column) in columns.iter().enumerate() {
        for (name, value) in flatten(&figures[column]) {
            let row = rows.iter().position(|(of, _)| *of == name).unwrap_or_else(|| {
                rows.push((name, vec![String::new(); columns.len()]));
                rows.len() - 1
            });
            rows[row].1[at] = value;
        }
    }
    let beside = rows.iter().filter(|_| !columns.is_empty()).map(|(name, values)| {
        let values: String = values.iter().map(|value| format!(" {value:>12}")).collect();
        format!("{name:32}{values}")
    });
    let others = flatten(figures).into_iter().filter(|(name, _)| {
        let top = name.split('.').next();
        !columns.iter().any(|column| Some(column.as_str()) == top)
    });
    let others = others.map(|(name, value)| format!("{name:32} {value:>12}"));
    beside.chain(others).map(|line| line.trim_end().to_owned()).collect()
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
    fn columns_stand_side_by_side_and_may_lack_a_row() {
        let figures =
            serde_json::json!({ "a": { "lost": 0, "x": { "y": 1 } }, "all": 5, "b": { "lost": 7 } });
        let lines = beside(&figures, &["b".to_owned(), "a".to_owned()]);
        let words = lines.iter().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let expected = [vec!["b", "a"], vec!["lost", "7", "0"], vec!["x.y", "1"], vec!["all", "5"]];
        assert_eq!(words.collect::<Vec<_>>(), expected);
        assert!(lines[2].ends_with("             1") && lines[2].len() == lines[0].len(), "{lines:?}");
        assert_eq!(beside(&figures, &[]).len(), 4);
    }

    #[test]
    fn leaves_have_their_paths() {
        let figures = serde_json::json!({ "a": [1, { "b": "x" }], "c": null, "d": true });
        let lines = flatten(&figures);
        let expected = [("a.0", "1"), ("a.1.b", "x"), ("d", "true")];
        assert_eq!(lines, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }
}
