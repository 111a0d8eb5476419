//! A minijinja environment that renders as transformers' jinja2 environment does (4.51.3,
//! `utils/chat_template_utils.py`): block trimming, Python's methods and spelling of values, `raise_exception`,
//! `strftime_now`, `tojson` without HTML escapes, and `{% generation %}` blocks. Known differences: a tuple prints as a
//! list, and `strftime_now` is in UTC.

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Output, State, Value};
use regex::Regex;

use super::clock::strftime;
use super::json_dump::{Layout, python_float};

pub(super) fn environment() -> Environment<'static> {
    let mut env = Environment::new();
    env.set_trim_blocks(true);
    env.set_lstrip_blocks(true);
    env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    env.set_formatter(|out: &mut Output, _: &State, value: &Value| {
        out.write_str(&python_str(value)).map_err(|_| ErrorKind::WriteFailure.into())
    });
    env.set_unknown_method_callback(python_method);
    env.add_filter("tojson", tojson);
    env.add_filter("string", |value: Value| python_str(&value));
    env.add_function("raise_exception", raise_exception);
    env.add_function("strftime_now", strftime_now);
    // Python counts text and mappings among sequences, undefined among the empty ones, None nowhere, bools among numbers
    env.add_test("sequence", |value: &Value| {
        value.is_undefined() || matches!(value.kind(), ValueKind::Seq | ValueKind::String | ValueKind::Map)
    });
    env.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
    env.add_test("number", |value: &Value| matches!(value.kind(), ValueKind::Number | ValueKind::Bool));
    env
}

/// Turns `{% generation %}` … `{% endgeneration %}`, with which transformers marks the assistant's tokens, into a
/// block of the same scope and the same whitespace control that prints its body.
pub(super) fn without_generation_tags(source: &str) -> crate::Result<String> {
    let tag = Regex::new(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")
        .map_err(|cause| crate::Error::Text(format!("generation tag: {cause}")))?;
    Ok(tag.replace_all(source, "{%$1 ${2}with $3%}").into_owned())
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, format!("the template refuses the conversation: {message}")))
}

fn strftime_now(format: &str) -> Result<String, Error> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    strftime(now.try_into().unwrap_or(0), format)
        .map_err(|cause| Error::new(ErrorKind::InvalidOperation, cause))
}

fn tojson(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let indent = match options.get::<Option<Value>>("indent")?.filter(|indent| !indent.is_none()) {
        None => None,
        Some(indent) if indent.kind() == ValueKind::String => Some(indent.to_string()),
        Some(indent) => Some(" ".repeat(usize::try_from(indent)?)),
    };
    let mut layout = Layout::new(indent);
    if let Some(separators) = options.get::<Option<Vec<String>>>("separators")? {
        let [item, key]: [String; 2] = separators.try_into().map_err(|given: Vec<_>| {
            Error::new(
                ErrorKind::InvalidOperation,
                format!("tojson: expected 2 separators, got {}", given.len()),
            )
        })?;
        (layout.item_separator, layout.key_separator) = (item, key);
    }
    layout.sort_keys = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    layout.ascii = options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    options.assert_all_used()?;
    let json = serde_json::to_value(value)
        .map_err(|cause| Error::new(ErrorKind::InvalidOperation, format!("tojson: {cause}")))?;
    Ok(Value::from(layout.dump(&json)))
}

/// Methods of `str` that the compatibility layer lacks, then that layer.
fn python_method(state: &State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    if let (Some(text), [argument, ..]) = (value.as_str(), args)
        && let Some(given) = argument.as_str()
    {
        match (method, args.len()) {
            ("removeprefix", 1) => return Ok(text.strip_prefix(given).unwrap_or(text).into()),
            ("removesuffix", 1) => return Ok(text.strip_suffix(given).unwrap_or(text).into()),
            ("partition", 1) => {
                let (head, tail) = text.split_once(given).unwrap_or((text, ""));
                return Ok(strings([head, if text.contains(given) { given } else { "" }, tail]));
            }
            ("rpartition", 1) => {
                let (head, tail) = text.rsplit_once(given).unwrap_or(("", text));
                return Ok(strings([head, if text.contains(given) { given } else { "" }, tail]));
            }
            ("rsplit", 1) => return Ok(strings(text.split(given))),
            ("rsplit", 2) => {
                let most = usize::try_from(args[1].clone())?;
                let mut pieces: Vec<&str> = text.rsplitn(most + 1, given).collect();
                pieces.reverse();
                return Ok(strings(pieces));
            }
            _ => {}
        }
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
}

fn strings<'a>(items: impl IntoIterator<Item = &'a str>) -> Value {
    items.into_iter().map(str::to_owned).collect()
}

/// Python's `str(value)`.
fn python_str(value: &Value) -> String {
    match value.as_str() {
        Some(text) => text.to_owned(),
        None if value.is_undefined() => String::new(),
        None => python_repr(value),
    }
}

fn python_repr(value: &Value) -> String {
    let items = |open: char, close: char, items: Vec<String>| format!("{open}{}{close}", items.join(", "));
    match value.kind() {
        ValueKind::None => "None".to_owned(),
        ValueKind::Bool => if value.is_true() { "True" } else { "False" }.to_owned(),
        ValueKind::Number if !value.is_integer() => {
            f64::try_from(value.clone()).map_or_else(|_| value.to_string(), python_float)
        }
        ValueKind::String => quoted(value.as_str().unwrap_or_default()),
        ValueKind::Seq | ValueKind::Iterable => match value.try_iter() {
            Ok(iter) => items('[', ']', iter.map(|item| python_repr(&item)).collect()),
            Err(_) => value.to_string(),
        },
        ValueKind::Map => match value.try_iter() {
            Ok(keys) => {
                let entry = |key: Value| {
                    let item = value.get_item(&key).unwrap_or_default();
                    format!("{}: {}", python_repr(&key), python_repr(&item))
                };
                items('{', '}', keys.map(entry).collect())
            }
            Err(_) => value.to_string(),
        },
        _ => value.to_string(),
    }
}

/// `repr` of a string: single quotes unless only they occur inside.
fn quoted(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::from(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => out.extend(['\\', c]),
            c if c.is_ascii_control() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push(quote);
    out
}
