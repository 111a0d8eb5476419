//! A benchmark's files, counted without running anything.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::item::folders;
use crate::benchmarks::{Benchmark, Entry, Evidence, Loaded};

/// What is known of a benchmark's files without running anything.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Check {
    /// Name of the benchmark.
    pub benchmark: String,
    /// The files read.
    pub files: Vec<PathBuf>,
    /// Questions that can be asked.
    pub questions: usize,
    /// Those of the published file.
    pub published: usize,
    /// Rows that cannot be used.
    pub refused: usize,
    /// Remarks on rows that can.
    pub notes: usize,
    /// Questions with evidence.
    pub with_evidence: usize,
    /// Different videos.
    pub videos: usize,
    /// Those that are there.
    pub videos_there: usize,
    /// Subtitle files that are there.
    pub subtitles_there: usize,
    /// Questions by group and value.
    pub groups: BTreeMap<String, BTreeMap<String, usize>>,
    /// Seconds that reading and validating took, without looking for videos.
    pub seconds: f64,
}

impl Check {
    /// Counts what was read from `path` in `seconds`.
    pub fn of(benchmark: Benchmark, loaded: &Loaded, path: &Path, seconds: f64) -> Self {
        let folders = folders(path);
        let mut check = Self {
            benchmark: benchmark.to_string(),
            files: loaded.files.clone(),
            questions: loaded.entries.len(),
            published: benchmark.published(),
            refused: loaded.refused.len(),
            notes: loaded.notes.len(),
            with_evidence: loaded.entries.iter().filter(|entry| entry.evidence != Evidence::Unknown).count(),
            seconds,
            ..Self::default()
        };
        let videos: BTreeMap<&str, &Entry> =
            loaded.entries.iter().map(|entry| (entry.video.as_str(), entry)).collect();
        check.videos = videos.len();
        let there = |find: &dyn Fn(&Path) -> bool| folders.iter().any(|folder| find(folder));
        let count = |find: &dyn Fn(&Entry, &Path) -> bool| {
            videos.values().filter(|entry| there(&|folder| find(entry, folder))).count()
        };
        check.videos_there = count(&|entry, folder| entry.find_video(folder).is_some());
        check.subtitles_there = count(&|entry, folder| entry.find_subtitles(folder).is_some());
        for (name, value) in loaded.entries.iter().flat_map(|entry| &entry.groups) {
            *check.groups.entry((*name).to_owned()).or_default().entry(value.clone()).or_default() += 1;
        }
        check
    }
}
