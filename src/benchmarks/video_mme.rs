//! Video-MME: `videoID` is the file's stem, `question_id` (`001-1`) the id; `duration` is a word, not a time.

use super::answers::Reading;
use super::entry::{self, Columns, Read};
use super::rows::Row;
use super::{Benchmark, SubtitleFile};

const COLUMNS: Columns = Columns {
    id: &["question_id", "index", "id"],
    video: &["videoID", "video_name", "video_path", "video"],
    groups: &[
        ("duration", &["duration"]),
        ("domain", &["domain"]),
        ("sub_category", &["sub_category"]),
        ("task_type", &["task_type"]),
    ],
    answer: Reading::Letter,
};

pub(super) fn read(row: &Row) -> Read {
    let mut entry = entry::read(Benchmark::VideoMme, row, &COLUMNS)?;
    let name = format!("{}.srt", entry::stem(&entry.video));
    entry.subtitles = Some(SubtitleFile { name, offset: 0. });
    Ok((entry, vec![]))
}
