//! Questions to train on or to be graded by, from the toy world or from a file.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::footage::Footage;
use super::trajectory::Task;
use crate::data::samples::{self, Sample};
use crate::data::world::{Split, World};
use crate::error::{Error, Result};

/// The questions of the toy world's videos `videos` of a split; questions about one video share its footage.
pub fn world_tasks(world: &World, split: Split, videos: Range<u64>) -> Vec<Task> {
    let tasks = videos.flat_map(|index| {
        let footage = Arc::new(Footage::of_world(world.script(split, index)));
        world.samples(split, index).into_iter().map(move |sample| Task {
            id: sample.id.into(),
            question: sample.question,
            answer: sample.answer,
            pass_rate: None,
            family: sample.family.name().into(),
            evidence: sample.evidence,
            footage: footage.clone(),
        })
    });
    tasks.collect()
}

/// The first `count` of `tasks` that keep every family equally often, in their order.
pub fn balanced(tasks: Vec<Task>, count: usize) -> Vec<Task> {
    let families: std::collections::BTreeSet<Arc<str>> =
        tasks.iter().map(|task| task.family.clone()).collect();
    let most = count.div_ceil(families.len().max(1));
    let mut taken: BTreeMap<Arc<str>, usize> = BTreeMap::new();
    let kept = tasks.into_iter().filter(|task| {
        let taken = taken.entry(task.family.clone()).or_default();
        *taken += 1;
        *taken <= most
    });
    kept.take(count).collect()
}

/// The questions of JSONL files ([`samples::read`]), file by file, with the footage that `open` makes of each video;
/// questions about one video share it. All files are read before a video is opened.
///
/// # Errors
/// As [`samples::read`] and `open`; [`Error::Interrupted`] when `progress` (done, of) says so.
pub fn file_tasks(
    paths: &[&Path],
    fps: f64,
    open: &mut dyn FnMut(&Path) -> Result<Footage>,
    progress: &mut dyn FnMut(usize, usize) -> bool,
) -> Result<Vec<Vec<Task>>> {
    let mut read = vec![];
    for path in paths {
        read.push(samples::read(path)?.samples);
    }
    let mut footages: BTreeMap<PathBuf, Arc<Footage>> = BTreeMap::new();
    let (mut files, mut done, total) = (vec![], 0, read.iter().map(Vec::len).sum());
    for samples in read {
        let mut tasks = vec![];
        for sample in samples {
            let footage = match footages.get(&sample.video) {
                Some(footage) => footage.clone(),
                None => {
                    let footage = Arc::new(open(&sample.video)?);
                    footages.insert(sample.video.clone(), footage.clone());
                    footage
                }
            };
            tasks.push(task(sample, fps, footage));
            done += 1;
            if !progress(done, total) {
                return Err(Error::Interrupted);
            }
        }
        files.push(tasks);
    }
    Ok(files)
}

fn task(sample: Sample, fps: f64, footage: Arc<Footage>) -> Task {
    let candidate = |second: usize| (second as f64 * fps).ceil() as usize;
    let candidates = |range: &Range<usize>| candidate(range.start)..candidate(range.end);
    Task {
        id: sample.id.into(),
        question: sample.question,
        answer: sample.answer,
        pass_rate: sample.difficulty.map(|difficulty| 1.0 - difficulty),
        family: sample.family.unwrap_or_else(|| "all".to_owned()).into(),
        evidence: sample.evidence.iter().map(candidates).filter(|range| !range.is_empty()).collect(),
        footage,
    }
}

/// Refuses a step of more questions than there are.
///
/// # Errors
/// Both numbers.
pub fn enough(tasks: &[Task], questions: usize) -> Result<()> {
    if questions <= tasks.len() {
        return Ok(());
    }
    Err(Error::Input(format!(
        "config: questions: expected at most the {} questions of the training set in a step, got {questions}",
        tasks.len()
    )))
}

/// Refuses videos with fewer candidates than key frames or previews, before anything is asked about any of them.
///
/// # Errors
/// Names the question, its video and the number of its candidates.
pub fn long_enough<'a>(
    tasks: impl IntoIterator<Item = &'a Task>,
    (key_frames, previews): (usize, usize),
) -> Result<()> {
    let least = key_frames.max(previews);
    match tasks.into_iter().find(|task| task.footage.len() < least) {
        None => Ok(()),
        Some(task) => Err(Error::Input(format!(
            "question {}: {key_frames} key frames and {previews} previews were asked for, but video {} has {} candidates",
            task.id,
            task.footage.id,
            task.footage.len()
        ))),
    }
}
