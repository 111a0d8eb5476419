//! LVBench: one line per video with its questions, the options in the question's text, `uid` a text or a number, and
//! `time_reference` sometimes reversed or `None`.

use serde_json::{Map, Value};

use super::answers::Reading;
use super::entry::{self, Columns, Read};
use super::rows::{Row, Rows, brief};
use super::{Benchmark, Evidence, evidence};

const COLUMNS: Columns = Columns {
    id: &["index", "question_id"],
    video: &["key", "video_name", "video_path", "video"],
    groups: &[("type", &["type"]), ("question_type", &["question_type"])],
    answer: Reading::Text,
};

/// A row per question: those of a line's `qa` with the line's own fields beside them. Rows without `qa` stay.
pub(super) fn expand(rows: Rows) -> Rows {
    let mut questions = vec![];
    for row in rows {
        let Ok(Row { place, mut fields, .. }) = row else {
            questions.push(row);
            continue;
        };
        match fields.remove("qa") {
            None => questions.push(Ok(Row { place, part: None, fields })),
            Some(Value::Array(list)) => {
                if let Some(Value::Object(info)) = fields.remove("video_info") {
                    fields.extend(info);
                }
                let numbered = list.into_iter().enumerate();
                questions.extend(numbered.map(|(index, question)| match question {
                    Value::Object(own) => {
                        let mut fields: Map<String, Value> = fields.clone();
                        fields.extend(own);
                        Ok(Row { place, part: Some(index + 1), fields })
                    }
                    other => Err((
                        place,
                        format!("question {}: expected an object, got {}", index + 1, brief(&other)),
                    )),
                }));
            }
            Some(other) => questions
                .push(Err((place, format!("qa: expected a list of questions, got {}", brief(&other))))),
        }
    }
    questions
}

pub(super) fn read(row: &Row) -> Read {
    let mut entry = entry::read(Benchmark::LvBench, row, &COLUMNS)?;
    let mut notes = vec![];
    let key = entry::stem(&entry.video).to_owned();
    let uid = row.text(&["uid"]).or_else(|| entry.id.strip_prefix(&key).map(str::to_owned));
    if let Some(uid) = uid.filter(|uid| !uid.is_empty()) {
        if entry.id.is_empty() {
            entry.id = format!("{key}{uid}");
        }
        entry.other_ids.push(uid);
    }
    // In the table of the field both groups are one cell, `cartoon_reasoning`.
    if entry.groups.is_empty()
        && let Some((kind, question)) =
            row.text(&["task_name"]).as_deref().and_then(|name| name.split_once('_'))
    {
        entry.groups = vec![("type", kind.into()), ("question_type", question.into())];
    }
    entry.duration =
        row.number(&["duration_minutes"]).filter(|&minutes| minutes > 0.).map(|minutes| minutes * 60.);
    entry.fps = row.number(&["fps"]).filter(|&fps| fps > 0.);
    match row.text(&["time_reference"]).map(|text| evidence::interval(&text)) {
        Some(Ok(range)) => entry.evidence = Evidence::Seconds(vec![range]),
        Some(Err(cause)) => notes.push(cause),
        None => {}
    }
    Ok((entry, notes))
}
