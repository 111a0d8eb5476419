//! Tables of text. In the field's TSV files quotes are ordinary characters and a row is a line; in CSV files quotes hold
//! commas, line ends and doubled quotes together (RFC 4180).

use serde_json::{Map, Value};

use super::rows::{Place, Row, Rows};

/// Cells of a table row, and the line it begins on.
struct Cells {
    line: usize,
    cells: Vec<Vec<u8>>,
}

/// A tab-separated table with a header. Quotes have no meaning: a reader that minds them joins or cuts rows of MLVU and
/// LVBench.
pub(super) fn tabs(bytes: &[u8]) -> Result<Rows, String> {
    let lines = bytes.split(|&byte| byte == b'\n').enumerate();
    let cells = lines.map(|(index, line)| {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let cells = line.split(|&byte| byte == b'\t').map(<[u8]>::to_vec).collect();
        Cells { line: index + 1, cells }
    });
    table(cells.collect(), "tab")
}

/// A comma-separated table with a header.
pub(super) fn commas(bytes: &[u8]) -> Result<Rows, String> {
    let mut records = vec![];
    let mut record = Cells { line: 1, cells: vec![] };
    let (mut cell, mut line, mut quoted) = (vec![], 1, false);
    let mut rest = bytes.iter().copied().peekable();
    while let Some(byte) = rest.next() {
        line += usize::from(byte == b'\n');
        match byte {
            b'"' if quoted && rest.peek() == Some(&b'"') => cell.extend(rest.next()),
            b'"' if quoted => quoted = false,
            // A quote inside a cell that does not begin with one is an ordinary character.
            b'"' if cell.is_empty() => quoted = true,
            b',' if !quoted => record.cells.push(std::mem::take(&mut cell)),
            b'\r' if !quoted && rest.peek() == Some(&b'\n') => {}
            b'\n' if !quoted => {
                record.cells.push(std::mem::take(&mut cell));
                records.push(std::mem::replace(&mut record, Cells { line, cells: vec![] }));
            }
            _ => cell.push(byte),
        }
    }
    let mut broken = None;
    if quoted {
        broken = Some((Place::Line(record.line), "a quote is opened here and never closed".to_owned()));
    } else if !cell.is_empty() || !record.cells.is_empty() {
        record.cells.push(cell);
        records.push(record);
    }
    let mut rows = table(records, "comma")?;
    rows.extend(broken.map(Err));
    Ok(rows)
}

fn table(records: Vec<Cells>, separator: &str) -> Result<Rows, String> {
    let mut records = records
        .into_iter()
        .filter(|record| record.cells.len() > 1 || !record.cells.concat().trim_ascii().is_empty());
    let expected = || format!("expected a {separator}-separated table whose first line names the columns");
    let header = records.next().ok_or_else(|| format!("{}, got an empty file", expected()))?;
    let names: Vec<String> =
        header.cells.iter().map(|name| String::from_utf8_lossy(name).trim().to_owned()).collect();
    if names.len() < 2 {
        return Err(format!("{}, got {:?}", expected(), names.concat()));
    }
    Ok(records.map(|record| row(record, &names)).collect())
}

fn row(record: Cells, names: &[String]) -> Result<Row, (Place, String)> {
    let place = Place::Line(record.line);
    if record.cells.len() != names.len() {
        return Err((place, format!("expected {} cells, got {}", names.len(), record.cells.len())));
    }
    let mut fields = Map::new();
    for (name, cell) in names.iter().zip(record.cells) {
        let text = String::from_utf8(cell).map_err(|_| (place, format!("{name} is not UTF-8")))?;
        fields.insert(name.clone(), Value::String(text));
    }
    Ok(Row { place, part: None, fields })
}
