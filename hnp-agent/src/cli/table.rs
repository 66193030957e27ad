//! Tables for people. What stands in them came from the network: nothing in it moves a terminal's cursor.

use std::fmt::Write as _;

use serde_json::Value;

use crate::telemetry::line::printable;

/// Rows under headings, each column as wide as its widest cell; nothing for no rows.
pub fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let rows: Vec<Vec<String>> =
        rows.iter().map(|row| row.iter().map(|cell| printable(cell)).collect()).collect();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([headings[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..headings.len()).map(width).collect();
    let mut text = String::new();
    let headings: Vec<String> = headings.iter().map(|heading| (*heading).to_owned()).collect();
    for row in std::iter::once(&headings).chain(&rows) {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(line, "{cell:<width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// A field as text: empty where there is none.
pub fn text(row: &Value, key: &str) -> String {
    match &row[key] {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// A list of texts, with commas.
pub fn list(row: &Value, key: &str) -> String {
    let items = row[key].as_array().into_iter().flatten().filter_map(Value::as_str);
    items.collect::<Vec<_>>().join(", ")
}

/// The rows of a list.
pub fn rows<'a>(all: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    all[key].as_array().into_iter().flatten()
}

/// JSON on one line.
pub fn json(value: &Value) -> String {
    // Characters that JSON allows and a terminal obeys stand within strings alone, where an escape means the same.
    printable(&value.to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn columns_are_as_wide_as_they_must_and_nothing_moves_the_cursor() {
        let rows = [vec!["a".into(), "b\u{1b}[2J".into()], vec!["long one".into(), "é".into()]];
        assert_eq!(table(&["ONE", "TWO"], &rows), "ONE       TWO\na         b\\u001b[2J\nlong one  é\n");
        assert_eq!(table(&["ONE"], &[]), "");
    }

    #[test]
    fn json_stays_what_it_says() {
        let value = json!({"a": "x\u{9b}31m\u{202e}\u{7f}\n\"é"});
        let text = json(&value);
        assert!(text.chars().all(|c| !c.is_control() && c != '\u{202e}'), "{text:?}");
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
    }
}
