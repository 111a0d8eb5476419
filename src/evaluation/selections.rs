//! Frame lists made elsewhere, judged by the annotation alone: no video is decoded and no model is needed.
//!
//! A file of selections is one JSON value: an object from question id to a list of frame numbers, or an array in the order of
//! the annotation's rows, each a list or an object with `frame_idx`. Rows that name a known question (`question_id`, `id`,
//! `index`) are found by that name. Frame numbers count at the video's own rate.

use std::collections::hash_map::Entry as Slot;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use super::item::folders;
use crate::benchmarks::scoring::{by_value, place};
use crate::benchmarks::{Entry, Loaded, found};
use crate::error::{Error, Result};
use crate::video::Video;

/// Seconds by which a frame may lie behind the annotated end: LVBench rounds durations to a tenth of a minute.
const END_SLACK: f64 = 4.;
/// Messages that are kept of each kind.
const TOLD: usize = 20;

/// How frame numbers become seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum FrameRate {
    /// By the annotation, else by the video file where it is there.
    Known,
    /// This many frames per second in every video.
    Given(f64),
    /// From the spacing of each row's frames, for selections from one candidate per second: their greatest common divisor,
    /// where 29 and 23 stand for 30000/1001 and 24000/1001. What is left goes as [`FrameRate::Known`].
    Spacing,
}

impl std::str::FromStr for FrameRate {
    type Err = Error;

    /// `spacing`, or a rate above 0.
    fn from_str(text: &str) -> Result<Self> {
        if text == "spacing" {
            return Ok(Self::Spacing);
        }
        let rate = text.parse::<f64>().ok().filter(|rate| rate.is_finite() && *rate > 0.);
        let text = || format!("video-fps: expected a rate above 0, or \"spacing\", got {text:?}");
        rate.map(Self::Given).ok_or_else(|| Error::Input(text()))
    }
}

/// The selections of a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Selections {
    rows: Vec<Chosen>,
    /// Whether rows without a known name go by their order.
    ordered: bool,
}

/// One selection: its names, its frames, or why it cannot be read.
#[derive(Debug, Clone, PartialEq)]
struct Chosen {
    names: Vec<String>,
    frames: std::result::Result<Vec<i64>, String>,
}

/// Selections by the place of their question, the questions that have several, and the names that no question has.
#[derive(Default)]
struct Joined<'a> {
    chosen: HashMap<usize, &'a Chosen>,
    repeated: Vec<usize>,
    unknown: Vec<String>,
}

impl Selections {
    /// Reads a file.
    ///
    /// # Errors
    /// [`Error::Io`] for a file that cannot be read; [`Error::Input`] for another shape.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(|error| Error::io(path, error))?;
        let refuse = |cause: String| {
            Error::Input(format!(
                "{}: expected a JSON object {{question id: [frame numbers]}}, or an array with a list (or an object with \
                 frame_idx) per row of the annotation; {cause}",
                path.display()
            ))
        };
        let value: Value = serde_json::from_slice(&bytes).map_err(|error| refuse(error.to_string()))?;
        let (rows, ordered) = match value {
            Value::Object(rows) => {
                let row =
                    |(name, value): (String, Value)| Chosen { names: vec![name], frames: frames(&value) };
                (rows.into_iter().map(row).collect::<Vec<_>>(), false)
            }
            Value::Array(rows) => (rows.iter().map(of_row).collect(), true),
            _ => return Err(refuse("got a single value".to_owned())),
        };
        match rows.iter().find(|row| row.frames.is_ok()) {
            Some(_) => Ok(Self { rows, ordered }),
            None => {
                let first = rows.first().and_then(|row| row.frames.clone().err());
                Err(refuse(first.unwrap_or_else(|| "it is empty".to_owned())))
            }
        }
    }

    /// The selection of each entry, by its place in `loaded`, and what could not be joined.
    fn join(&self, loaded: &Loaded) -> Result<Joined<'_>> {
        let mut by_name: HashMap<&str, Option<usize>> = HashMap::new();
        for (at, entry) in loaded.entries.iter().enumerate() {
            by_name.insert(&entry.id, Some(at));
        }
        for (at, entry) in loaded.entries.iter().enumerate() {
            for other in &entry.other_ids {
                // A name of several questions names none of them.
                by_name
                    .entry(other)
                    .and_modify(|known| *known = known.filter(|&k| k == at))
                    .or_insert(Some(at));
            }
        }
        let rows = loaded.entries.iter().map(|entry| entry.row + 1).max().unwrap_or_default();
        let rows = rows.max(loaded.entries.len() + loaded.refused.len());
        let by_row: HashMap<usize, usize> =
            loaded.entries.iter().enumerate().map(|(at, entry)| (entry.row, at)).collect();
        let known = |chosen: &Chosen| {
            chosen.names.iter().find_map(|name| by_name.get(name.as_str()).copied().flatten())
        };
        let nameless = self.rows.iter().filter(|chosen| known(chosen).is_none()).count();
        if self.ordered && nameless > 0 && self.rows.len() != rows {
            return Err(Error::Input(format!(
                "selections: expected a row per question of the annotation ({rows}), got {}; rows in order need the file \
                 they were made for, or give an object from id to frames",
                self.rows.len()
            )));
        }
        let mut joined = Joined::default();
        for (number, chosen) in self.rows.iter().enumerate() {
            let at = known(chosen).or_else(|| by_row.get(&number).copied().filter(|_| self.ordered));
            match at {
                Some(at) => match joined.chosen.entry(at) {
                    Slot::Vacant(slot) => drop(slot.insert(chosen)),
                    Slot::Occupied(_) if joined.repeated.contains(&at) => {}
                    Slot::Occupied(_) => joined.repeated.push(at),
                },
                None => {
                    let name = chosen.names.first().cloned();
                    joined.unknown.push(name.unwrap_or(format!("row {}", number + 1)));
                }
            }
        }
        Ok(joined)
    }
}

fn of_row(value: &Value) -> Chosen {
    let Value::Object(row) = value else { return Chosen { names: vec![], frames: frames(value) } };
    let name = |field: &&str| match row.get(*field)? {
        Value::String(name) => Some(name.clone()),
        Value::Number(name) => Some(name.to_string()),
        _ => None,
    };
    let names = ["question_id", "id", "index"].iter().filter_map(name).collect();
    let frames = match row.get("frame_idx") {
        Some(value) => frames(value),
        None => {
            let there: Vec<&str> = row.keys().map(String::as_str).collect();
            Err(format!("a row without frame_idx; it has {}", there.join(", ")))
        }
    };
    Chosen { names, frames }
}

/// Frame numbers; published ones may be written as `12.0`.
fn frames(value: &Value) -> std::result::Result<Vec<i64>, String> {
    let text = || {
        let text = value.to_string();
        text.chars().take(60).collect::<String>()
    };
    let Value::Array(values) = value else {
        return Err(format!("expected a list of frame numbers, got {}", text()));
    };
    let number = |value: &Value| {
        let whole = |at: f64| (at.fract() == 0. && at.abs() < 1e15).then_some(at as i64);
        value.as_i64().or_else(|| value.as_f64().and_then(whole))
    };
    let numbers: Option<Vec<i64>> = values.iter().map(number).collect();
    numbers.ok_or_else(|| format!("expected whole frame numbers, got {}", text()))
}

/// Means over questions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Scored {
    /// Questions with a selection.
    pub questions: usize,
    /// Those of them whose evidence and frame rate are known.
    pub with_evidence: usize,
    /// Mean share of their evidence that a frame lies in.
    pub evidence_recall: Option<f64>,
    /// Share of them with a frame in some of the evidence.
    pub hit_rate: Option<f64>,
    /// Share of them with a frame in every part of it.
    pub all_hit_rate: Option<f64>,
    /// The mean recall of as many even frames on the same questions.
    pub even_recall: Option<f64>,
    /// Of as many equal stretches of the video as there are frames, the share that holds one; a mean over the questions
    /// whose duration and frame rate are known.
    pub coverage: Option<f64>,
}

/// What came of judging a file of selections.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Judged {
    /// Questions of the annotation.
    pub questions: usize,
    /// Those with a selection.
    pub selected: usize,
    /// Those without.
    pub without: usize,
    /// Selections for questions that the annotation does not have.
    pub unknown: usize,
    /// Questions with several selections, of which the first counts.
    pub repeated: usize,
    /// Selections that cannot be read.
    pub unreadable: usize,
    /// Selections without a frame.
    pub empty: usize,
    /// Questions whose frame rate is not known, so that frames cannot be placed in time.
    pub without_frame_rate: usize,
    /// Questions with a frame outside of their video.
    pub out_of_range: usize,
    /// Such frames; they are left out.
    pub frames_out_of_range: usize,
    /// Questions whose frames repeat or do not ascend.
    pub not_ascending: usize,
    /// Fewest and most frames of a selection.
    pub frames: [usize; 2],
    /// All selections.
    pub all: Scored,
    /// Those with the most frames: the rows that published numbers count.
    pub full: Scored,
    /// All by group and value.
    pub groups: BTreeMap<String, Vec<(String, Scored)>>,
    /// What was wrong, the first of each kind.
    pub messages: Vec<String>,
}

/// One judged selection.
struct One<'a> {
    entry: &'a Entry,
    frames: usize,
    recall: Option<f64>,
    even: Option<f64>,
    coverage: Option<f64>,
}

/// Judges `selections` by the evidence of `loaded`, which was read from `path`.
///
/// # Errors
/// Rows in the order of an annotation with another number of rows; no selection for any of the questions.
pub fn judge(loaded: &Loaded, path: &Path, selections: &Selections, rate: FrameRate) -> Result<Judged> {
    let Joined { chosen: joined, repeated, unknown } = selections.join(loaded)?;
    if joined.is_empty() {
        return Err(strangers(loaded, &unknown));
    }
    let mut judged = Judged {
        questions: loaded.entries.len(),
        unknown: unknown.len(),
        repeated: repeated.len(),
        ..Judged::default()
    };
    judged.tell(twice(&repeated, loaded).into_iter());
    judged.tell(unknown.iter().map(|name| format!("{name}: no question of the annotation")));
    let mut rates = Rates { folders: folders(path), rate, known: HashMap::new() };
    let (mut all, mut told): (Vec<One>, [Vec<String>; 3]) = Default::default();
    for (at, entry) in loaded.entries.iter().enumerate() {
        let Some(chosen) = joined.get(&at) else {
            judged.without += 1;
            continue;
        };
        let frames = match &chosen.frames {
            Ok(frames) => frames,
            Err(cause) => {
                judged.unreadable += 1;
                told[0].push(format!("{}: {cause}", entry.id));
                continue;
            }
        };
        judged.selected += 1;
        judged.empty += usize::from(frames.is_empty());
        judged.not_ascending += usize::from(frames.windows(2).any(|two| two[0] >= two[1]));
        let fps = rates.of(entry, frames);
        let outside = outside(frames, fps, entry.duration);
        if let (Some(frame), Some(fps)) = (outside.first(), fps) {
            judged.out_of_range += 1;
            judged.frames_out_of_range += outside.len();
            told[1].push(format!(
                "{}: frame {frame} is at {:.1} s, but the video lasts {} s; {} of {} frames are left out",
                entry.id,
                *frame as f64 / fps,
                entry.duration.map_or("?".to_owned(), |duration| format!("{duration:.1}")),
                outside.len(),
                frames.len()
            ));
        } else if let Some(frame) = outside.first() {
            judged.out_of_range += 1;
            judged.frames_out_of_range += outside.len();
            told[1]
                .push(format!("{}: frame {frame} is before the start of the video and left out", entry.id));
        }
        if fps.is_none() {
            judged.without_frame_rate += 1;
            told[2].push(format!("{}: its frame rate is not known; give --video-fps", entry.id));
        }
        all.push(one(entry, frames, &outside, fps));
    }
    told.into_iter().for_each(|messages| judged.tell(messages.into_iter()));
    judged.sum_up(&all);
    Ok(judged)
}

fn strangers(loaded: &Loaded, unknown: &[String]) -> Error {
    let example = |name: Option<&String>| name.map_or("none".to_owned(), |name| format!("{name:?}"));
    Error::Input(format!(
        "selections: expected ids of the annotation such as {}, got such as {}",
        example(loaded.entries.first().map(|entry| &entry.id)),
        example(unknown.first())
    ))
}

fn twice(repeated: &[usize], loaded: &Loaded) -> Option<String> {
    let first = &loaded.entries.get(*repeated.first()?)?.id;
    Some(match repeated.len() {
        1 => format!("{first}: selected twice; the first selection counts"),
        n => format!("{n} questions are selected twice (first: {first}); the first selection counts"),
    })
}

/// Frames before the start or behind the end.
fn outside(frames: &[i64], fps: Option<f64>, duration: Option<f64>) -> Vec<i64> {
    let last = fps.zip(duration).map_or(f64::INFINITY, |(fps, duration)| (duration + END_SLACK) * fps);
    frames.iter().copied().filter(|&frame| frame < 0 || frame as f64 > last).collect()
}

fn one<'a>(entry: &'a Entry, frames: &[i64], outside: &[i64], fps: Option<f64>) -> One<'a> {
    let inside: Vec<i64> = frames.iter().copied().filter(|frame| !outside.contains(frame)).collect();
    let mut one = One { entry, frames: frames.len(), recall: None, even: None, coverage: None };
    let Some(fps) = fps else { return one };
    let seconds: Vec<f64> = inside.iter().map(|&frame| frame as f64 / fps).collect();
    let windows = entry.evidence.windows(fps, entry.duration);
    one.recall = found(&windows, &seconds);
    let Some(duration) = entry.duration.filter(|_| !frames.is_empty()) else { return one };
    let (k, last) = (frames.len(), duration - 1. / fps);
    let even = |j: usize| if k == 1 { last / 2. } else { last * j as f64 / (k - 1) as f64 };
    one.even = found(&windows, &(0..k).map(even).collect::<Vec<_>>());
    let mut stretches = vec![false; k];
    for second in seconds {
        let at = (second / duration * k as f64) as usize;
        stretches[at.min(k - 1)] = true;
    }
    one.coverage = Some(stretches.iter().filter(|there| **there).count() as f64 / k as f64);
    one
}

/// Frame rates by video.
struct Rates {
    folders: Vec<std::path::PathBuf>,
    rate: FrameRate,
    known: HashMap<String, Option<f64>>,
}

impl Rates {
    fn of(&mut self, entry: &Entry, frames: &[i64]) -> Option<f64> {
        match self.rate {
            FrameRate::Given(rate) => return Some(rate),
            FrameRate::Spacing => {
                if let Some(rate) = spacing(frames) {
                    return Some(rate);
                }
            }
            FrameRate::Known => {}
        }
        if entry.fps.is_some() {
            return entry.fps;
        }
        if let Some(&known) = self.known.get(&entry.video) {
            return known;
        }
        let file = self.folders.iter().find_map(|folder| entry.find_video(folder));
        let rate = file.and_then(|file| Video::open(file).ok()).map(|video| video.info.frame_rate);
        self.known.insert(entry.video.clone(), rate);
        rate
    }
}

fn spacing(frames: &[i64]) -> Option<f64> {
    if frames.len() < 2 {
        return None;
    }
    let divisor = frames.iter().fold(0u64, |divisor, frame| gcd(divisor, frame.unsigned_abs()));
    match divisor {
        0 | 1 => None,
        29 => Some(30_000. / 1001.),
        23 => Some(24_000. / 1001.),
        whole => Some(whole as f64),
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

impl Judged {
    fn tell(&mut self, messages: impl Iterator<Item = String>) {
        let messages: Vec<String> = messages.collect();
        let more = messages.len().saturating_sub(TOLD);
        self.messages.extend(messages.into_iter().take(TOLD));
        if more > 0 {
            self.messages.push(format!("... and {more} more like the last"));
        }
    }

    fn sum_up(&mut self, all: &[One]) {
        let most = all.iter().map(|one| one.frames).max().unwrap_or_default();
        self.frames = [all.iter().map(|one| one.frames).min().unwrap_or_default(), most];
        self.all = scored(all.iter());
        self.full = scored(all.iter().filter(|one| one.frames == most));
        let mut groups: BTreeMap<(&str, &str), Vec<&One>> = BTreeMap::new();
        for one in all {
            for (name, value) in &one.entry.groups {
                groups.entry((name, value)).or_default().push(one);
            }
        }
        let mut groups: Vec<_> = groups.into_iter().collect();
        groups.sort_by(|((a, x), _), ((b, y), _)| place(a).cmp(&place(b)).then_with(|| by_value(x, y)));
        for ((name, value), of_value) in groups {
            let scores = scored(of_value.into_iter());
            self.groups.entry(name.to_owned()).or_default().push((value.to_owned(), scores));
        }
    }

    /// Tables in Markdown: all, full rows, and the groups of `main_group`.
    pub fn markdown(&self, main_group: &str) -> String {
        let mut text = "| selections | questions | with evidence | evidence recall | even frames | hit rate | every part hit \
                        | coverage |\n|---|---|---|---|---|---|---|---|\n"
            .to_owned();
        let mut line = |name: &str, scored: &Scored| {
            let say = |share: Option<f64>| share.map_or("-".to_owned(), |share| format!("{share:.4}"));
            let shares = [
                scored.evidence_recall,
                scored.even_recall,
                scored.hit_rate,
                scored.all_hit_rate,
                scored.coverage,
            ];
            let shares = shares.map(say).join(" | ");
            text += &format!("| {name} | {} | {} | {shares} |\n", scored.questions, scored.with_evidence);
        };
        line("all", &self.all);
        line(&format!("those of {} frames", self.frames[1]), &self.full);
        for (value, scored) in self.groups.get(main_group).into_iter().flatten() {
            line(&format!("{main_group} {}", value.replace('|', "\\|")), scored);
        }
        text
    }

    /// The counts in one sentence.
    pub fn counts(&self) -> String {
        format!(
            "{} of {} questions have a selection of {} to {} frames ({} without, {} selected twice, {} unknown ids, {} unreadable, {} empty, {} \
             not ascending, {} without frame rate; {} frames of {} questions are out of range)",
            self.selected,
            self.questions,
            self.frames[0],
            self.frames[1],
            self.without,
            self.repeated,
            self.unknown,
            self.unreadable,
            self.empty,
            self.not_ascending,
            self.without_frame_rate,
            self.frames_out_of_range,
            self.out_of_range
        )
    }
}

fn scored<'a>(all: impl Iterator<Item = &'a One<'a>>) -> Scored {
    let all: Vec<&One> = all.collect();
    let mean =
        |values: Vec<f64>| (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64);
    let recalls: Vec<f64> = all.iter().filter_map(|one| one.recall).collect();
    let share = |of: fn(f64) -> bool| mean(recalls.iter().map(|&recall| f64::from(of(recall))).collect());
    Scored {
        questions: all.len(),
        with_evidence: recalls.len(),
        hit_rate: share(|recall| recall > 0.),
        all_hit_rate: share(|recall| recall >= 1.),
        even_recall: mean(all.iter().filter_map(|one| one.even).collect()),
        coverage: mean(all.iter().filter_map(|one| one.coverage).collect()),
        evidence_recall: mean(recalls),
    }
}
