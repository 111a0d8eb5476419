//! JSON as Python's `json.dumps` writes it, which is what a chat template's `tojson` means.

use serde_json::{Map, Value};

/// The options of `json.dumps` that templates use.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    /// One level of indentation; `None` writes one line.
    pub indent: Option<String>,
    pub item_separator: String,
    pub key_separator: String,
    pub sort_keys: bool,
    /// Escape everything beyond ASCII.
    pub ascii: bool,
}

impl Layout {
    /// Python's defaults: no space after a comma at a line's end, one within a line.
    pub fn new(indent: Option<String>) -> Self {
        let item_separator = if indent.is_some() { "," } else { ", " }.to_owned();
        Self { indent, item_separator, key_separator: ": ".to_owned(), sort_keys: false, ascii: false }
    }

    pub fn dump(&self, value: &Value) -> String {
        let mut out = String::new();
        self.write(&mut out, value, 0);
        out
    }

    fn write(&self, out: &mut String, value: &Value, depth: usize) {
        match value {
            Value::Null => out.push_str("null"),
            Value::Bool(flag) => out.push_str(if *flag { "true" } else { "false" }),
            Value::Number(number) => out.push_str(&python_number(number)),
            Value::String(text) => self.write_string(out, text),
            Value::Array(items) => self.write_items(out, ['[', ']'], depth, items.iter(), |out, item| {
                self.write(out, item, depth + 1);
            }),
            Value::Object(map) => {
                self.write_items(out, ['{', '}'], depth, self.entries(map), |out, (key, item)| {
                    self.write_string(out, key);
                    out.push_str(&self.key_separator);
                    self.write(out, item, depth + 1);
                })
            }
        }
    }

    fn entries<'a>(&self, map: &'a Map<String, Value>) -> std::vec::IntoIter<(&'a String, &'a Value)> {
        let mut entries: Vec<_> = map.iter().collect();
        if self.sort_keys {
            entries.sort_by_key(|(key, _)| *key);
        }
        entries.into_iter()
    }

    fn write_items<T>(
        &self,
        out: &mut String,
        [open, close]: [char; 2],
        depth: usize,
        items: impl ExactSizeIterator<Item = T>,
        mut write: impl FnMut(&mut String, T),
    ) {
        out.push(open);
        let empty = items.len() == 0;
        for (index, item) in items.enumerate() {
            if index > 0 {
                out.push_str(&self.item_separator);
            }
            self.break_line(out, depth + 1);
            write(out, item);
        }
        if !empty {
            self.break_line(out, depth);
        }
        out.push(close);
    }

    fn break_line(&self, out: &mut String, depth: usize) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            out.push_str(&indent.repeat(depth));
        }
    }

    fn write_string(&self, out: &mut String, text: &str) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if c < ' ' || (self.ascii && !c.is_ascii()) || (self.ascii && c == '\u{7f}') => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

/// A number as Python writes it: `1.0`, `1e-07`, `1e+16`.
pub(super) fn python_number(number: &serde_json::Number) -> String {
    match number.as_f64().filter(|_| number.is_f64()) {
        Some(float) => python_float(float),
        None => number.to_string(),
    }
}

/// `repr` of a float: both languages print the shortest digits that round-trip and differ only in the exponent's form
/// and in where it begins.
pub(super) fn python_float(float: f64) -> String {
    let size = float.abs();
    if float.is_nan() {
        return "nan".to_owned();
    }
    if float.is_infinite() {
        return if float > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    if size != 0.0 && !(1e-4..1e16).contains(&size) {
        let text = format!("{float:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |rest| ('-', rest));
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    let text = float.to_string();
    if text.contains('.') { text } else { text + ".0" }
}
