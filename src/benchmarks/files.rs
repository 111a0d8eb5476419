//! The names of annotation files, videos and subtitles in a benchmark's folder, as the authors and the field lay it out.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{Benchmark, Entry, entry, mlvu};
use crate::{Error, Result};

const VIDEO_ENDINGS: [&str; 6] = ["mp4", "mkv", "webm", "avi", "mov", "m4v"];

/// The annotation files of a benchmark, likeliest first: those of the authors, then those of the field. A `*` stands for
/// any text; files that fit one name together are parts of one whole. Capitals do not matter in the file's name.
const VIDEO_MME: [&str; 9] = [
    "videomme/test-*.parquet",
    "test-*.parquet",
    "data/test-*.parquet",
    "videomme.json",
    "video-mme.json",
    "videomme.jsonl",
    "videomme.parquet",
    "videomme.tsv",
    "videomme.csv",
];
const LONG_VIDEO_BENCH: [&str; 8] = [
    "lvb_val.json",
    "validation-*.parquet",
    "data/validation-*.parquet",
    "longvideobench.json",
    "longvideobench.jsonl",
    "longvideobench.parquet",
    "longvideobench.tsv",
    "longvideobench.csv",
];
const LV_BENCH: [&str; 10] = [
    "video_info.meta.jsonl",
    "data/video_info.meta.jsonl",
    "train-*.parquet",
    "data/train-*.parquet",
    "test-*.parquet",
    "data/test-*.parquet",
    "lvbench.jsonl",
    "lvbench.parquet",
    "lvbench.tsv",
    "lvbench.csv",
];
const MLVU: [&str; 10] = [
    "json/[1-7]_*.json",
    "MLVU/json/[1-7]_*.json",
    "[1-7]_*.json",
    "mlvu.json",
    "mlvu.jsonl",
    "mlvu.parquet",
    "test-*.parquet",
    "data/test-*.parquet",
    "mlvu.tsv",
    "mlvu.csv",
];

fn names(benchmark: Benchmark) -> &'static [&'static str] {
    match benchmark {
        Benchmark::VideoMme => &VIDEO_MME,
        Benchmark::LongVideoBench => &LONG_VIDEO_BENCH,
        Benchmark::LvBench => &LV_BENCH,
        Benchmark::Mlvu => &MLVU,
    }
}

/// The annotation files of a folder, in the order of their names.
///
/// # Errors
/// [`Error::Input`] for a folder with none of them: which were looked for, and what is there.
pub(super) fn annotations(benchmark: Benchmark, folder: &Path) -> Result<Vec<PathBuf>> {
    let mut listings = BTreeMap::new();
    for pattern in names(benchmark) {
        let (inside, name) = pattern.rsplit_once('/').unwrap_or(("", pattern));
        let listing = listings.entry(inside).or_insert_with(|| listing(&folder.join(inside)));
        let fits = |file: &&String| fits(name, &file.to_lowercase());
        let found: Vec<PathBuf> =
            listing.iter().filter(fits).map(|file| folder.join(inside).join(file)).collect();
        if !found.is_empty() {
            return Ok(found);
        }
    }
    let there = listing(folder);
    let there = match there.len() {
        0 => "nothing".to_owned(),
        1..=8 => there.join(", "),
        more => format!("{} and {} more", there[..8].join(", "), more - 8),
    };
    Err(Error::Input(format!(
        "{}: expected the question file of {benchmark}, one of {}; the folder holds {there}. Give that folder, or the \
         file itself",
        folder.display(),
        names(benchmark).join(", "),
    )))
}

/// Names in a folder, sorted; none if it cannot be read.
fn listing(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Whether a lower-case name has the form of `pattern`, with at most one `*` and `[1-7]` for a digit at the start.
fn fits(pattern: &str, name: &str) -> bool {
    let (pattern, name) = match pattern.strip_prefix("[1-7]") {
        Some(pattern) => match name.strip_prefix(['1', '2', '3', '4', '5', '6', '7']) {
            Some(name) => (pattern, name),
            None => return false,
        },
        None => (pattern, name),
    };
    match pattern.split_once('*') {
        Some((start, end)) => {
            name.len() >= start.len() + end.len() && name.starts_with(start) && name.ends_with(end)
        }
        None => name == pattern,
    }
}

/// Whether a file with that ending is a video.
pub(super) fn is_video_ending(ending: &str) -> bool {
    VIDEO_ENDINGS.iter().any(|known| ending.eq_ignore_ascii_case(known))
}

pub(super) fn video_paths(entry: &Entry) -> Vec<PathBuf> {
    let mut folders: Vec<String> = vec![];
    if entry.benchmark == Benchmark::Mlvu {
        let mine =
            entry.group("task_type").find_map(|task| mlvu::TASKS.iter().find(|(name, _)| *name == task));
        let roots = ["video", "MLVU/video"];
        folders.extend(mine.iter().flat_map(|(_, folder)| roots.map(|root| format!("{root}/{folder}"))));
    }
    let plain = match entry.benchmark {
        Benchmark::VideoMme => ["data", "videos", "video", ""],
        Benchmark::LongVideoBench => ["videos", "video", "data", ""],
        Benchmark::LvBench => ["all_videos", "videos", "video", ""],
        Benchmark::Mlvu => ["video", "videos", "data", ""],
    };
    folders.extend(plain.map(str::to_owned));
    let stem = entry::stem(&entry.video);
    let mut names = vec![];
    if !entry.video.ends_with(stem) {
        names.push(entry.video.clone());
    }
    // Some of Video-MME's files end in capitals.
    names.extend(VIDEO_ENDINGS.iter().chain(&["MP4"]).map(|ending| format!("{stem}.{ending}")));
    let mut paths: Vec<PathBuf> = vec![];
    for folder in &folders {
        for path in names.iter().map(|name| Path::new(folder).join(name)) {
            if !paths.contains(&path) {
                paths.push(path);
            }
        }
    }
    paths
}

pub(super) fn subtitle_paths(entry: &Entry) -> Vec<PathBuf> {
    let names = entry.subtitles.iter().map(|subtitles| &subtitles.name);
    names.flat_map(|name| ["subtitles", "subtitle", ""].map(|folder| Path::new(folder).join(name))).collect()
}
