//! Queries written as JSON or as a list.

use serde_json::Value;

/// Where a JSON value may begin; a reply with more brackets than this is no JSON.
const MAX_STARTS: usize = 64;

/// The strings of the first JSON value in `text` that holds queries: a list of strings or of objects with a `query`,
/// or an object with `queries`. A list cut off by the token limit gives its whole strings.
pub(super) fn json_items(text: &str) -> Vec<String> {
    for (start, _) in text.match_indices(['[', '{']).take(MAX_STARTS) {
        let mut values = serde_json::Deserializer::from_str(&text[start..]).into_iter::<Value>();
        let items = match values.next() {
            Some(Ok(value)) => strings(&value),
            Some(Err(cause)) if cause.is_eof() => quoted(&text[start..]),
            _ => Vec::new(),
        };
        if !items.is_empty() {
            return items;
        }
    }
    Vec::new()
}

fn strings(value: &Value) -> Vec<String> {
    let field = |map: &serde_json::Map<String, Value>, names: &[&str]| {
        let found = map.iter().find(|(key, _)| names.iter().any(|name| key.eq_ignore_ascii_case(name)));
        found.map(|(_, value)| value.clone())
    };
    match value {
        Value::Array(items) => items
            .iter()
            .filter_map(|item| match item {
                Value::String(text) => Some(text.clone()),
                Value::Object(map) => field(map, &["query", "text"])?.as_str().map(str::to_owned),
                _ => None,
            })
            .collect(),
        Value::Object(map) => match field(map, &["queries", "query", "visual_queries"]) {
            Some(Value::String(text)) => vec![text],
            Some(list @ Value::Array(_)) => strings(&list),
            _ => Vec::new(),
        },
        _ => Vec::new(),
    }
}

/// The complete strings of a list of strings that breaks off.
fn quoted(text: &str) -> Vec<String> {
    let mut rest = text.trim_start_matches('[').trim_start();
    let mut items = Vec::new();
    while rest.starts_with('"') {
        let mut values = serde_json::Deserializer::from_str(rest).into_iter::<String>();
        let Some(Ok(item)) = values.next() else { break };
        items.push(item);
        rest = rest[values.byte_offset()..].trim_start().trim_start_matches(',').trim_start();
    }
    items
}

/// The items of a list in `text`, one per line. Of several lists the one under the last heading that speaks of queries.
pub(super) fn list_items(text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    let items: Vec<(usize, &str)> = lines
        .iter()
        .enumerate()
        .filter_map(|(at, line)| strip_marker(line).map(|item| (at, item)))
        .filter(|(_, item)| !is_heading(item))
        .collect();
    let last = items.last().map_or(0, |(at, _)| *at);
    let speaks_of_queries = |line: &str| is_heading(line) && line.to_lowercase().contains("quer");
    let from = lines[..last.min(lines.len())].iter().rposition(|line| speaks_of_queries(line));
    items
        .into_iter()
        .filter(|(at, _)| from.is_none_or(|from| *at > from))
        .map(|(_, item)| item.to_owned())
        .collect()
}

fn is_heading(line: &str) -> bool {
    line.trim_end_matches(|c: char| c.is_whitespace() || c == '*').ends_with(':')
}

/// What follows a list marker: `- x`, `1. x`, `2) x`, `Query 3: x`, and one within the other; `None` without a marker.
pub(super) fn strip_marker(line: &str) -> Option<&str> {
    let line = line.trim();
    let rest = strip_bullet(line).or_else(|| strip_number(line)).or_else(|| strip_name(line))?;
    Some(strip_number(rest).or_else(|| strip_name(rest)).unwrap_or(rest))
}

fn strip_bullet(line: &str) -> Option<&str> {
    let rest = line.strip_prefix(['-', '*', '•', '–', '+', '·'])?;
    rest.starts_with(char::is_whitespace).then(|| rest.trim_start()).filter(|rest| !rest.is_empty())
}

fn strip_number(line: &str) -> Option<&str> {
    let line = line.trim_start_matches(['*', '_']);
    let rest = line.trim_start_matches(|c: char| c.is_ascii_digit());
    if !(1..=2).contains(&(line.len() - rest.len())) {
        return None;
    }
    after_delimiter(rest)
}

fn strip_name(line: &str) -> Option<&str> {
    let line = line.trim_start_matches(['*', '_']);
    let name = ["query", "q"]
        .into_iter()
        .find(|name| line.get(..name.len()).is_some_and(|l| l.eq_ignore_ascii_case(name)))?;
    let rest = line[name.len()..].trim_start().trim_start_matches('#');
    after_delimiter(rest.trim_start_matches(|c: char| c.is_ascii_digit()))
}

/// `. x`, `) x`, `: x`, with emphasis on either side of the delimiter. A delimiter without a blank is part of the text
/// (`1.5 litres`).
fn after_delimiter(rest: &str) -> Option<&str> {
    let rest = rest.trim_start_matches(['*', '_']).strip_prefix(['.', ')', ':'])?;
    let text = rest.trim_start_matches(['*', '_']);
    (text.starts_with(char::is_whitespace)).then(|| text.trim()).filter(|text| !text.is_empty())
}
