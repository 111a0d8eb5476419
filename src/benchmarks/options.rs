//! The options of a question, from the four ways in which they are published: a list, a list as text in a table cell, one
//! column per option, lines of the question itself.

use serde_json::Value;

use super::literal;
use super::rows::{Row, brief};
use crate::text::labels::letter;
use crate::text::one_line;

/// Columns of one option each: `option0`, ... (LongVideoBench), `A`, ... (tables of the field).
const COLUMNS: [[&str; 5]; 3] = [
    ["option0", "option1", "option2", "option3", "option4"],
    ["option_0", "option_1", "option_2", "option_3", "option_4"],
    ["A", "B", "C", "D", "E"],
];

/// A question's text apart from the options that are written below it.
#[derive(Debug, PartialEq)]
pub(super) struct Split {
    pub(super) text: String,
    pub(super) options: Vec<String>,
}

/// Splits `text\n(A) red\n(B) blue`; `None` without two lines or more that begin with `(A)`, `(B)`, ... in order. A line
/// that begins with none of them belongs to the option above it.
pub(super) fn split(question: &str) -> Option<Split> {
    let mut text: Vec<&str> = vec![];
    let mut options: Vec<String> = vec![];
    for line in question.lines() {
        let label = format!("({})", letter(options.len()));
        match line.trim_start().strip_prefix(&label) {
            Some(option) => options.push(option.trim().to_owned()),
            None => match options.last_mut() {
                Some(last) => *last = format!("{last} {}", line.trim()).trim().to_owned(),
                None => text.push(line),
            },
        }
    }
    (options.len() >= 2).then(|| Split { text: text.join("\n").trim().to_owned(), options })
}

/// The options of a row, without labels, with empty and repeated ones; `below` are those found in the question.
pub(super) fn read(row: &Row, below: Option<Vec<String>>) -> Result<Vec<String>, String> {
    let listed = row.value(&["candidates", "options", "option"]);
    let options = match listed {
        Some(value) => list(value).map_err(|cause| format!("options: {cause}, in {}", brief(value)))?,
        None => columns(row).or(below).ok_or_else(|| {
            let there: Vec<&str> = row.fields.keys().map(String::as_str).collect();
            format!(
                "options are missing (an open question cannot be scored); the row has {}",
                there.join(", ")
            )
        })?,
    };
    Ok(bare(options))
}

fn list(value: &Value) -> Result<Vec<String>, String> {
    let parsed;
    let value = match value {
        Value::String(text) => {
            parsed = literal::parse(text)?;
            &parsed
        }
        other => other,
    };
    let Value::Array(values) = value else { return Err("expected a list".into()) };
    let text = |value: &Value| match value {
        Value::String(text) => Ok(one_line(text)),
        Value::Number(number) => Ok(number.to_string()),
        Value::Bool(true) => Ok("True".into()),
        Value::Bool(false) => Ok("False".into()),
        Value::Null => Ok(String::new()),
        Value::Array(_) | Value::Object(_) => Err("expected a list of texts".to_owned()),
    };
    values.iter().map(text).collect()
}

/// One column per option; unused ones at the end are null, empty or `N/A`.
fn columns(row: &Row) -> Option<Vec<String>> {
    let names = COLUMNS.iter().find(|names| row.fields.contains_key(names[0]))?;
    let cell = |name: &&str| {
        row.fields.get(*name).map(|value| match value {
            Value::String(text) => one_line(text),
            Value::Number(number) => number.to_string(),
            _ => String::new(),
        })
    };
    let cells: Vec<String> = names.iter().map_while(cell).collect();
    let unused = |text: &String| text.is_empty() || text == "N/A";
    let used = cells.iter().rposition(|text| !unused(text)).map_or(0, |last| last + 1);
    Some(cells[..used].to_vec())
}

/// Takes labels (`A. red`, `(B) blue`) off if every option carries that of its place. Where only some do, they are words:
/// `A. Lincoln` beside `Washington`.
fn bare(options: Vec<String>) -> Vec<String> {
    let rests: Option<Vec<String>> = options
        .iter()
        .enumerate()
        .map(|(index, option)| unlabelled(option, index).map(str::to_owned))
        .collect();
    rests.unwrap_or(options)
}

/// What follows the label of place `index`: `A. red`, `A) red`, `A: red`, `(A) red`; the space may be missing.
pub(super) fn unlabelled(option: &str, index: usize) -> Option<&str> {
    let (rest, closers): (&str, &[char]) = match option.strip_prefix('(') {
        Some(rest) => (rest, &[')']),
        None => (option, &['.', ')', ':']),
    };
    Some(rest.strip_prefix(letter(index))?.strip_prefix(closers)?.trim())
}
