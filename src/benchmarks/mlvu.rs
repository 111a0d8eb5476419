//! MLVU: one JSON per task without ids (answers are texts), or one JSON of all tasks (options also in the question, answers
//! are letters), or a table in which `question_id` is always 0. One task has two names, `needle` and `findNeedle`.

use super::Benchmark;
use super::answers::Reading;
use super::entry::{self, Columns, Read};
use super::rows::Row;

const COLUMNS: Columns = Columns {
    id: &["index", "question_id", "id"],
    video: &["video_name", "video", "video_path"],
    groups: &[("task_type", &["task_type", "question_type", "task_name"])],
    answer: Reading::Text,
};

/// The multiple-choice tasks: the folder of their videos, which is also their file's stem.
pub(super) const TASKS: [(&str, &str); 7] = [
    ("plotQA", "1_plotQA"),
    ("needle", "2_needle"),
    ("ego", "3_ego"),
    ("count", "4_count"),
    ("order", "5_order"),
    ("anomaly_reco", "6_anomaly_reco"),
    ("topic_reasoning", "7_topic_reasoning"),
];

/// `index` is the row's place in its file, from 0: published selections call a row of the table by video and place.
pub(super) fn read(row: &Row, index: usize) -> Read {
    let mut entry = entry::read(Benchmark::Mlvu, row, &COLUMNS)?;
    for (_, task) in &mut entry.groups {
        if task == "findNeedle" {
            *task = "needle".into();
        }
    }
    if row.fields.contains_key("answer_number") {
        entry.other_ids.push(format!("{}_{index}", entry::stem(&entry.video)));
    }
    entry.duration = row.number(&["duration"]).filter(|&seconds| seconds > 0.);
    Ok((entry, vec![]))
}
