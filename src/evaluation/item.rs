//! A question as it is evaluated, from a benchmark or from the toy world.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::benchmarks::{Benchmark, Entry, Loaded, scoring};
use crate::data::samples::{self, Sample};
use crate::data::world::{Spec, Split, VERSION, World};
use crate::error::{Error, Result};
use crate::rl::tasks::{balanced, world_tasks};
use crate::rl::trajectory::Task;
use crate::text::{Dialogue, Question};

use super::settings::Form;

/// A multiple-choice question, its answer, and where its video is.
#[derive(Debug, Clone)]
pub struct Item {
    /// Unique among the questions evaluated together.
    pub id: String,
    /// The question.
    pub question: Question,
    /// The right option.
    pub answer: usize,
    /// What accuracy is reported by: name of the group, and the question's value.
    pub groups: Vec<(String, String)>,
    /// Where it comes from.
    pub origin: Origin,
}

/// Where a question comes from.
#[derive(Debug, Clone)]
pub enum Origin {
    /// The toy world: rendered in memory.
    World(Task),
    /// A file of questions about video files.
    File {
        /// The video.
        video: PathBuf,
        /// Seconds in which the answer is seen.
        evidence: Vec<Range<usize>>,
    },
    /// A benchmark.
    Benchmark {
        /// Its row.
        entry: Box<Entry>,
        /// Its video.
        video: PathBuf,
    },
}

/// The questions of an evaluation, and what could not be used.
#[derive(Debug, Clone, Default)]
pub struct Questions {
    /// Those that can be asked, in the order of the annotation.
    pub items: Vec<Item>,
    /// Hash of all questions read, those without a video included; of the toy world, of its settings and seed.
    pub hash: String,
    /// Videos that are missing, each with the number of its questions.
    pub missing: BTreeMap<String, usize>,
}

impl Item {
    /// A question of the toy world.
    pub fn of_world(task: Task) -> Self {
        Self {
            id: task.id.to_string(),
            question: task.question.clone(),
            answer: task.answer,
            groups: vec![("family".to_owned(), task.family.to_string())],
            origin: Origin::World(task),
        }
    }

    /// A question of a file.
    pub fn of_file(sample: Sample) -> Self {
        Self {
            id: sample.id,
            question: sample.question,
            answer: sample.answer,
            groups: sample.family.map(|family| ("family".to_owned(), family)).into_iter().collect(),
            origin: Origin::File { video: sample.video, evidence: sample.evidence },
        }
    }

    /// A question of a benchmark about the video at `video`.
    pub fn of_benchmark(entry: &Entry, video: PathBuf) -> Self {
        let groups = entry.groups.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
        Self {
            id: entry.id.clone(),
            question: entry.question.clone(),
            answer: entry.answer,
            groups: groups.collect(),
            origin: Origin::Benchmark { entry: Box::new(entry.clone()), video },
        }
    }

    /// What questions about one video share.
    pub fn video(&self) -> String {
        match &self.origin {
            Origin::World(task) => task.footage.id.to_string(),
            Origin::File { video, .. } | Origin::Benchmark { video, .. } => video.display().to_string(),
        }
    }

    /// The benchmark's row.
    pub fn entry(&self) -> Option<&Entry> {
        match &self.origin {
            Origin::World(_) | Origin::File { .. } => None,
            Origin::Benchmark { entry, .. } => Some(entry),
        }
    }

    /// The option that a reply names; see [`Form`].
    pub fn choice(&self, reply: &str, form: Form, dialogue: Dialogue) -> Option<usize> {
        match (form, self.entry()) {
            (Form::Letter, Some(entry)) => scoring::letter(entry, reply),
            _ => dialogue.read_answer(reply, &self.question).choice,
        }
    }

    /// Whether an option is right.
    pub fn is_right(&self, choice: Option<usize>) -> bool {
        match self.entry() {
            Some(entry) => entry.is_right(choice),
            None => choice == Some(self.answer),
        }
    }

    /// When the evidence is seen, in seconds, borders included; empty where that is not known. `fps` is the video's frame
    /// rate.
    pub fn windows(&self, fps: f64, duration: f64) -> Vec<Range<f64>> {
        let seconds = |range: &Range<usize>| range.start as f64..range.end.saturating_sub(1) as f64;
        match &self.origin {
            Origin::World(Task { evidence, .. }) | Origin::File { evidence, .. } => {
                evidence.iter().map(seconds).collect()
            }
            Origin::Benchmark { entry, .. } => entry.evidence.windows(fps, Some(duration)),
        }
    }
}

/// The questions of a benchmark whose videos are there, looked for beside `path`, which the questions were read from; the
/// first `limit` of them.
pub fn of_benchmark(loaded: &Loaded, path: &Path, limit: Option<usize>) -> Questions {
    let folders = folders(path);
    let mut videos: BTreeMap<&str, Option<PathBuf>> = BTreeMap::new();
    let mut questions = Questions::default();
    let mut all = vec![];
    for entry in &loaded.entries {
        let video = videos
            .entry(&entry.video)
            .or_insert_with(|| folders.iter().find_map(|folder| entry.find_video(folder)));
        all.push(Item::of_benchmark(entry, video.clone().unwrap_or_default()));
        match video {
            Some(_) => questions.items.extend(all.last().cloned()),
            None => *questions.missing.entry(entry.video.clone()).or_default() += 1,
        }
    }
    questions.hash = super::settings::hash_of(&all);
    questions.items.truncate(limit.unwrap_or(usize::MAX));
    questions
}

/// Where the files of an annotation may lie: its folder, and for a single file the folder above too.
pub fn folders(path: &Path) -> Vec<PathBuf> {
    if path.is_dir() {
        return vec![path.to_owned()];
    }
    let parent = |path: &Path| path.parent().map(Path::to_owned);
    let plain = |folder: PathBuf| if folder.as_os_str().is_empty() { PathBuf::from(".") } else { folder };
    parent(path).into_iter().chain(parent(path).and_then(|folder| parent(&folder))).map(plain).collect()
}

/// `count` questions of the toy world's test split, every family equally often.
///
/// # Errors
/// A number of questions that the world does not hold: 0, or more than a million.
pub fn of_world(spec: Spec, seed: u64, count: usize) -> Result<Questions> {
    if count == 0 || count > 1_000_000 {
        return Err(Error::Input(format!("questions: expected 1 to 1000000, got {count}")));
    }
    let kind = serde_json::to_string(&spec).map_err(|error| Error::Input(format!("world: {error}")))?;
    let hash = super::settings::hash_of_texts([kind.as_str(), &seed.to_string(), &VERSION.to_string()]);
    let world = World::new(spec, seed)?;
    // Most videos have a question of each of the six families.
    let mut videos = count as u64 / 4 + 8;
    loop {
        let tasks = balanced(world_tasks(&world, Split::Test, 0..videos), count);
        if tasks.len() == count {
            let items: Vec<Item> = tasks.into_iter().map(Item::of_world).collect();
            return Ok(Questions { items, hash, missing: BTreeMap::new() });
        }
        videos *= 2;
    }
}

/// The questions of a file as [`crate::data::samples`] reads them: the videos are there, or the file is refused. The first
/// `limit` of them.
///
/// # Errors
/// As [`crate::data::samples::read`].
pub fn of_file(path: &Path, limit: Option<usize>) -> Result<Questions> {
    let mut items: Vec<Item> = samples::read(path)?.samples.into_iter().map(Item::of_file).collect();
    let hash = super::settings::hash_of(&items);
    items.truncate(limit.unwrap_or(usize::MAX));
    Ok(Questions { items, hash, missing: BTreeMap::new() })
}

/// The questions in the order of the work: those about one video together, in the order in which videos first come.
pub fn by_video(items: &[Item]) -> Vec<Vec<&Item>> {
    let mut order: Vec<Vec<&Item>> = vec![];
    let mut place: BTreeMap<String, usize> = BTreeMap::new();
    for item in items {
        let at = *place.entry(item.video()).or_insert_with(|| {
            order.push(vec![]);
            order.len() - 1
        });
        order[at].push(item);
    }
    order
}

/// The group that a table of one line per method reports: its name and values in the benchmark's order.
pub fn main_group(benchmark: Option<Benchmark>) -> &'static str {
    match benchmark {
        None => "family",
        Some(Benchmark::VideoMme) => "duration",
        Some(Benchmark::LongVideoBench) => "duration_group",
        Some(Benchmark::LvBench) => "question_type",
        Some(Benchmark::Mlvu) => "task_type",
    }
}

/// The names of all groups, in the order in which they first come.
pub fn group_names(items: &[Item]) -> Vec<String> {
    let mut seen = BTreeSet::new();
    let names = items.iter().flat_map(|item| &item.groups).map(|(name, _)| name);
    names.filter(|name| seen.insert((*name).clone())).cloned().collect()
}
