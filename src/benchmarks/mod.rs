//! The question files of the four benchmarks of the paper, read in the shapes in which their authors and the field publish
//! them, into one plain [`Entry`] per question.
//!
//! ```text
//! folder or file --files--> annotation files --rows--> rows --video_mme, ...--> entries      (+ refused rows, notes)
//! reply --scoring::letter--> choice --Entry::is_right--> Scores                    subtitle file --subtitles::read--> lines
//! ```
//!
//! | benchmark | shapes | answer |
//! |---|---|---|
//! | Video-MME (arXiv 2405.21075) | parquet and JSON of the authors, TSV, CSV | letter |
//! | LongVideoBench (arXiv 2407.15754) | `lvb_val.json`, parquet (also with `option0`, ...), TSV, CSV | index |
//! | LVBench (arXiv 2406.08035) | `video_info.meta.jsonl` with one video per line, parquet, TSV, CSV | letter; in the TSV the text |
//! | MLVU (arXiv 2406.04264) | one JSON per task, or one JSON, parquet, TSV, CSV of all | text; in the one JSON a letter |
//!
//! A row that cannot be used is in [`Loaded::refused`] with its file and place; it stops nothing. What can be used but not
//! in full (a reversed time range, say) is in [`Loaded::notes`]. No video has to exist to read the questions.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::text::Question;
use crate::{Error, Result};

mod answers;
mod entry;
mod evidence;
mod files;
mod literal;
mod long_video_bench;
mod lv_bench;
mod mlvu;
mod options;
mod parquet_file;
mod read;
mod rows;
pub mod scoring;
pub mod subtitles;
mod tables;
mod video_mme;

pub use evidence::{Evidence, found};
pub use read::{Loaded, read};
pub use rows::{Place, Remark};

/// A benchmark that can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Benchmark {
    /// Video-MME: 900 videos of 11 s to an hour, in three lengths.
    VideoMme,
    /// LongVideoBench, its validation part: questions that point at moments, with subtitles.
    LongVideoBench,
    /// LVBench: 103 videos of half an hour to over two hours, with the time in which the answer is seen.
    LvBench,
    /// MLVU, the multiple-choice tasks of its development part.
    Mlvu,
}

impl Benchmark {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::VideoMme, Self::LongVideoBench, Self::LvBench, Self::Mlvu];

    /// The name on the command line, which [`FromStr`] reads.
    pub fn name(self) -> &'static str {
        match self {
            Self::VideoMme => "video-mme",
            Self::LongVideoBench => "longvideobench",
            Self::LvBench => "lvbench",
            Self::Mlvu => "mlvu",
        }
    }

    /// How many questions the published file has: what a complete file can be held to.
    pub fn published(self) -> usize {
        match self {
            Self::VideoMme => 2700,
            Self::LongVideoBench => 1337,
            Self::LvBench => 1549,
            Self::Mlvu => 2174,
        }
    }
}

impl fmt::Display for Benchmark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Reads a name; capitals, hyphens, spaces and underscores do not matter.
impl FromStr for Benchmark {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let plain = |name: &str| -> String {
            name.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
        };
        Self::ALL.into_iter().find(|benchmark| plain(benchmark.name()) == plain(name)).ok_or_else(|| {
            let known = Self::ALL.map(Self::name).join(", ");
            Error::Input(format!("benchmark: expected one of {known}, got {name:?}"))
        })
    }
}

/// A multiple-choice question of a benchmark.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Where it is from.
    pub benchmark: Benchmark,
    /// Unique among the entries read together; the benchmark's own where it has one.
    pub id: String,
    /// Other names under which published selections list the question, without claim to be unique.
    pub other_ids: Vec<String>,
    /// Place among the questions of the files read, from 0, with refused ones counted: selections that are published as a
    /// list in the order of the annotation rows are found by it.
    pub row: usize,
    /// The video as the annotation names it: a file name, or its stem. See [`Entry::find_video`].
    pub video: String,
    /// Question and bare options; options are as many and in the order published, so an empty or repeated one stays.
    pub question: Question,
    /// Index of the right option. Compare with [`Entry::is_right`], which knows repeated options.
    pub answer: usize,
    /// What the benchmark reports accuracy by, in a fixed order: name of the group and this question's value. A name is
    /// there several times when the question has several values (`question_type` of LVBench).
    pub groups: Vec<(&'static str, String)>,
    /// Length of the video in seconds, where the annotation has it.
    pub duration: Option<f64>,
    /// Frames per second of the video, where the annotation has it.
    pub fps: Option<f64>,
    /// When the answer is seen.
    pub evidence: Evidence,
    /// The video's subtitles, where the benchmark has them.
    pub subtitles: Option<SubtitleFile>,
}

/// Where the subtitles of a video are, and how their clock relates to the video's.
#[derive(Debug, Clone, PartialEq)]
pub struct SubtitleFile {
    /// File name, `x.srt` or `x_en.json`. See [`Entry::find_subtitles`].
    pub name: String,
    /// Seconds of the subtitles' clock at which the video begins: LongVideoBench cuts videos, but not their subtitles.
    pub offset: f64,
}

impl Entry {
    /// Whether `choice`, an index into the options, is right: it is the answer, or an option with the same text. (MLVU has
    /// repeated options, and its files disagree about which of the two is the answer; the field's harness compares
    /// letters, which differs in at most 5 of 2,174 questions.)
    pub fn is_right(&self, choice: Option<usize>) -> bool {
        let options = self.question.options();
        choice
            .and_then(|choice| options.get(choice))
            .is_some_and(|said| Some(said) == options.get(self.answer))
    }

    /// The values of a group: `["short"]` for `duration`; none if the file does not say.
    pub fn group<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.groups.iter().filter(move |(group, _)| *group == name).map(|(_, value)| value.as_str())
    }

    /// Where the video may be, relative to the benchmark's folder, likeliest first.
    pub fn video_paths(&self) -> Vec<PathBuf> {
        files::video_paths(self)
    }

    /// The video: the first of [`Entry::video_paths`] that exists in `folder`.
    pub fn find_video(&self, folder: impl AsRef<Path>) -> Option<PathBuf> {
        first_there(folder.as_ref(), self.video_paths())
    }

    /// Where the subtitles may be, relative to the benchmark's folder; empty if the benchmark has none.
    pub fn subtitle_paths(&self) -> Vec<PathBuf> {
        files::subtitle_paths(self)
    }

    /// The subtitles: the first of [`Entry::subtitle_paths`] that exists in `folder`. Some videos have none.
    pub fn find_subtitles(&self, folder: impl AsRef<Path>) -> Option<PathBuf> {
        first_there(folder.as_ref(), self.subtitle_paths())
    }
}

fn first_there(folder: &Path, paths: Vec<PathBuf>) -> Option<PathBuf> {
    paths.into_iter().map(|path| folder.join(path)).find(|path| path.exists())
}
