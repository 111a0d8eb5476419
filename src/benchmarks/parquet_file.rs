//! Parquet files, in which the Hub keeps its tables. The one file that uses the `parquet` crate.

use std::fs::File;
use std::path::Path;

use ::parquet::file::reader::{FileReader, SerializedFileReader};
use ::parquet::record::{Field, Row as Record};
use serde_json::{Map, Value};

use super::rows::{Place, Row, Rows};
use crate::{Error, Result};

/// The rows of a parquet file, uncompressed or compressed with Snappy.
///
/// # Errors
/// [`Error::Io`] for a file that cannot be opened, [`Error::Input`] for one that is not parquet. A row that cannot be
/// decoded ends the rows, with the reason.
pub(super) fn read(path: &Path) -> Result<Rows> {
    let refused = |cause: &dyn std::fmt::Display| {
        Error::Input(format!("{}: expected a parquet file (plain or Snappy): {cause}", path.display()))
    };
    let file = File::open(path).map_err(|error| Error::io(path, error))?;
    let reader = SerializedFileReader::new(file).map_err(|error| refused(&error))?;
    let records = reader.get_row_iter(None).map_err(|error| refused(&error))?;
    let mut rows: Rows = vec![];
    for (index, record) in records.enumerate() {
        let place = Place::Row(index + 1);
        match record {
            Ok(record) => rows.push(Ok(Row { place, part: None, fields: fields(&record) })),
            Err(error) if rows.is_empty() => return Err(refused(&error)),
            Err(error) => {
                rows.push(Err((place, format!("cannot be decoded, nor can what follows: {error}"))));
                break;
            }
        }
    }
    Ok(rows)
}

fn fields(record: &Record) -> Map<String, Value> {
    record.get_column_iter().map(|(name, field)| (name.clone(), value(field))).collect()
}

fn value(field: &Field) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Bool(value) => Value::from(*value),
        Field::Byte(value) => Value::from(*value),
        Field::Short(value) => Value::from(*value),
        Field::Int(value) => Value::from(*value),
        Field::Long(value) => Value::from(*value),
        Field::UByte(value) => Value::from(*value),
        Field::UShort(value) => Value::from(*value),
        Field::UInt(value) => Value::from(*value),
        Field::ULong(value) => Value::from(*value),
        Field::Float(value) => Value::from(*value),
        Field::Double(value) => Value::from(*value),
        Field::Str(text) => Value::from(text.as_str()),
        Field::Bytes(bytes) => Value::from(String::from_utf8_lossy(bytes.data())),
        Field::ListInternal(list) => list.elements().iter().map(value).collect(),
        Field::Group(record) => Value::Object(fields(record)),
        other => Value::from(other.to_string()),
    }
}
