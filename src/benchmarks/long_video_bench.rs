//! LongVideoBench: the answer is an index, `position` lists frame numbers, and subtitles run by the clock of the video
//! from which this one was cut.

use serde_json::Value;

use super::answers::Reading;
use super::entry::{self, Columns, Read};
use super::literal;
use super::rows::{Row, brief};
use super::{Benchmark, Evidence, SubtitleFile};

const COLUMNS: Columns = Columns {
    id: &["id", "index", "question_id"],
    video: &["video_path", "video_name", "video"],
    groups: &[
        ("duration_group", &["duration_group"]),
        ("question_category", &["question_category"]),
        ("topic_category", &["topic_category"]),
        ("level", &["level"]),
    ],
    answer: Reading::Letter,
};

pub(super) fn read(row: &Row) -> Read {
    let mut entry = entry::read(Benchmark::LongVideoBench, row, &COLUMNS)?;
    let mut notes = vec![];
    entry.duration = row.number(&["duration"]).filter(|&seconds| seconds > 0.);
    if let Some(name) = row.text(&["subtitle_path"]) {
        let offset = row.number(&["starting_timestamp_for_subtitles"]).unwrap_or(0.);
        entry.subtitles = Some(SubtitleFile { name, offset });
    }
    match row.value(&["position"]).map(frames) {
        Some(Ok(frames)) if !frames.is_empty() => entry.evidence = Evidence::Frames(frames),
        Some(Err(cause)) => notes.push(cause),
        _ => {}
    }
    Ok((entry, notes))
}

/// Frame numbers from a list, or from one written as text.
fn frames(value: &Value) -> Result<Vec<u64>, String> {
    let cause = || {
        let got = brief(value);
        format!(
            "position: expected a list of frame numbers, got {got}; the question is used without evidence"
        )
    };
    let parsed;
    let list = match value {
        Value::String(text) if text.trim().is_empty() => return Ok(vec![]),
        Value::String(text) => {
            parsed = literal::parse(text).map_err(|_| cause())?;
            &parsed
        }
        other => other,
    };
    let frame = |value: &Value| {
        value
            .as_u64()
            .or_else(|| value.as_f64().filter(|at| *at >= 0. && at.fract() == 0.).map(|at| at as u64))
    };
    let Value::Array(values) = list else { return Err(cause()) };
    values.iter().map(frame).collect::<Option<Vec<_>>>().ok_or_else(cause)
}
