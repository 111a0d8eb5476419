//! What the rows of all benchmarks share on their way to an entry.

use std::path::{Component, Path};

use serde_json::Value;

use super::answers::{self, Reading};
use super::rows::Row;
use super::{Benchmark, Entry, Evidence};

/// Where a benchmark's rows keep what an entry needs; the first name that is there counts.
pub(super) struct Columns {
    pub(super) id: &'static [&'static str],
    pub(super) video: &'static [&'static str],
    /// Name of the group, and where its value is.
    pub(super) groups: &'static [(&'static str, &'static [&'static str])],
    /// How an answer without options in the question is meant.
    pub(super) answer: Reading,
}

/// An entry, and what is to be noted about it.
pub(super) type Read = Result<(Entry, Vec<String>), String>;

/// An entry with what is named alike everywhere. Without an id it is named later, by file and row.
pub(super) fn read(benchmark: Benchmark, row: &Row, columns: &Columns) -> Result<Entry, String> {
    // The field's tables of two benchmarks have the benchmark's name in place of a task.
    let named = row.text(&["task_name"]).and_then(|name| name.parse::<Benchmark>().ok());
    if let Some(other) = named.filter(|&other| other != benchmark) {
        return Err(format!("expected a question of {benchmark}, got one of {other}; name that benchmark"));
    }
    let (question, answer) = answers::read(row, columns.answer)?;
    let video = row.required(columns.video)?;
    let inside = Path::new(&video).components().all(|part| matches!(part, Component::Normal(_)));
    if !inside {
        return Err(format!("video: expected a name inside the benchmark's folder, got {video:?}"));
    }
    let mut groups = vec![];
    for &(name, fields) in columns.groups {
        groups.extend(values(row, fields).into_iter().map(|value| (name, value)));
    }
    Ok(Entry {
        benchmark,
        id: row.text(columns.id).unwrap_or_default(),
        other_ids: vec![],
        row: 0,
        video,
        question,
        answer,
        groups,
        duration: None,
        fps: None,
        evidence: Evidence::Unknown,
        subtitles: None,
    })
}

/// The texts of the first of `fields` that has some: one, or those of a list.
fn values(row: &Row, fields: &[&str]) -> Vec<String> {
    let texts = |value: &Value| match value {
        Value::Array(values) => values.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        Value::String(text) if !text.trim().is_empty() => vec![text.trim().to_owned()],
        Value::Number(number) => vec![number.to_string()],
        _ => vec![],
    };
    fields
        .iter()
        .filter_map(|name| row.fields.get(*name))
        .map(texts)
        .find(|texts| !texts.is_empty())
        .unwrap_or_default()
}

/// A file name without folders and without the ending of a video. Names may have other dots.
pub(super) fn stem(video: &str) -> &str {
    let name = video.rsplit('/').next().unwrap_or(video);
    match name.rsplit_once('.') {
        Some((stem, ending)) if super::files::is_video_ending(ending) => stem,
        _ => name,
    }
}
