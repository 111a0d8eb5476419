//! Annotation files as rows of named values, whatever their format.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::{DeserializeSeed, Deserializer, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::{parquet_file, tables};
use crate::{Error, Result};

/// Where in a file something stands, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A line: JSONL, TSV, CSV.
    Line(usize),
    /// An element of a JSON array, or a row of a parquet file.
    Row(usize),
}

/// Something to be told about a place in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remark {
    /// The annotation file.
    pub file: PathBuf,
    /// Where in it.
    pub place: Place,
    /// What is wrong: expected and found.
    pub cause: String,
}

/// `file:line: cause`, or `file, row 3: cause`.
impl fmt::Display for Remark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        match self.place {
            Place::Line(line) => write!(f, ":{line}")?,
            Place::Row(row) => write!(f, ", row {row}")?,
        }
        write!(f, ": {}", self.cause)
    }
}

/// A row and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Row {
    pub(super) place: Place,
    /// Which question of the line, from 1, where a line holds several.
    pub(super) part: Option<usize>,
    pub(super) fields: Map<String, Value>,
}

/// What a file holds: rows, and the places that are none, with the reason.
pub(super) type Rows = Vec<std::result::Result<Row, (Place, String)>>;

impl Row {
    /// The first of `names` that is there and not null.
    pub(super) fn value(&self, names: &[&str]) -> Option<&Value> {
        names.iter().filter_map(|name| self.fields.get(*name)).find(|value| !value.is_null())
    }

    /// The first of `names` with a text or number that is not blank, as a trimmed text.
    pub(super) fn text(&self, names: &[&str]) -> Option<String> {
        names.iter().filter_map(|name| self.fields.get(*name)).find_map(|value| match value {
            Value::String(text) if !text.trim().is_empty() => Some(text.trim().to_owned()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        })
    }

    /// As [`Row::text`]; the error names the fields that were looked for and those that are there.
    pub(super) fn required(&self, names: &[&str]) -> std::result::Result<String, String> {
        self.text(names).ok_or_else(|| {
            let there: Vec<&str> = self.fields.keys().map(String::as_str).collect();
            let what = if names.iter().any(|name| self.fields.contains_key(*name)) {
                "is empty"
            } else {
                "is missing"
            };
            format!("{} {what}; the row has {}", names.join(" or "), there.join(", "))
        })
    }

    /// The first of `names` that is a finite number, or a text of one.
    pub(super) fn number(&self, names: &[&str]) -> Option<f64> {
        let number = |name: &&str| match self.fields.get(*name)? {
            Value::Number(number) => number.as_f64(),
            Value::String(text) => text.trim().parse().ok(),
            _ => None,
        };
        names.iter().filter_map(number).find(|number| number.is_finite())
    }
}

/// Reads a file by the ending of its name.
pub(super) fn read(path: &Path) -> Result<Rows> {
    let ending = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    if ending == "parquet" {
        return parquet_file::read(path);
    }
    let bytes = std::fs::read(path).map_err(|error| Error::io(path, error))?;
    // Some editors and spreadsheets begin a file with a byte order mark.
    let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(&bytes);
    let rows = match ending.as_str() {
        "json" if bytes.trim_ascii_start().starts_with(b"{") => Ok(lines(bytes)),
        "json" => array(bytes),
        "jsonl" => Ok(lines(bytes)),
        "tsv" => tables::tabs(bytes),
        "csv" => tables::commas(bytes),
        _ => Err("expected a name that ends in .json, .jsonl, .tsv, .csv or .parquet".into()),
    };
    rows.map_err(|cause| Error::Input(format!("{}: {cause}", path.display())))
}

fn object(value: Value, place: Place) -> std::result::Result<Row, (Place, String)> {
    match value {
        Value::Object(fields) => Ok(Row { place, part: None, fields }),
        other => Err((place, format!("expected an object with a question's fields, got {}", brief(&other)))),
    }
}

/// The start of a value as JSON, for messages.
pub(super) fn brief(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

/// One JSON value per line; blank lines are skipped.
fn lines(bytes: &[u8]) -> Rows {
    let lines =
        bytes.split(|&byte| byte == b'\n').enumerate().filter(|(_, line)| !line.trim_ascii().is_empty());
    let rows = lines.map(|(index, line)| {
        let place = Place::Line(index + 1);
        let value = serde_json::from_slice(line);
        let cause = |error| (place, format!("expected one JSON object per line: {}", without_line(&error)));
        object(value.map_err(cause)?, place)
    });
    rows.collect()
}

/// serde_json's message without its line, which is always 1 here.
fn without_line(error: &serde_json::Error) -> String {
    let text = error.to_string();
    format!("{} (column {})", text.split(" at line ").next().unwrap_or_default(), error.column())
}

/// A JSON array of objects. Where the text breaks off (a download cut short), what stands before it counts.
fn array(bytes: &[u8]) -> std::result::Result<Rows, String> {
    let mut values = vec![];
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let end = Elements(&mut values).deserialize(&mut reader).and_then(|()| reader.end());
    let numbered = values.into_iter().enumerate();
    let mut rows: Rows = numbered.map(|(index, value)| object(value, Place::Row(index + 1))).collect();
    match end {
        Ok(()) => {}
        Err(error) if rows.is_empty() => return Err(format!("expected a JSON array of objects: {error}")),
        Err(error) => {
            let cause =
                format!("not JSON from here on, so only the {} rows before it are read: {error}", rows.len());
            rows.push(Err((Place::Line(error.line()), cause)));
        }
    }
    Ok(rows)
}

/// Collects the elements of an array one by one, so that those before an error are kept.
struct Elements<'a>(&'a mut Vec<Value>);

impl<'de> DeserializeSeed<'de> for Elements<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> std::result::Result<(), D::Error> {
        reader.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Elements<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of objects, one per question")
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut elements: S) -> std::result::Result<(), S::Error> {
        while let Some(value) = elements.next_element()? {
            self.0.push(value);
        }
        Ok(())
    }
}
