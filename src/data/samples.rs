//! Questions about video files, one JSON object per line.
//!
//! ```json
//! {"video": "clips/a.mp4", "question": "What colour is the car?", "options": ["red", "blue"], "answer": "B"}
//! ```
//!
//! `answer` is an option's letter, its text, or its index counted from 0. `video` is relative to the file. Optional are
//! `id` (else the file's name and the line), `difficulty` in 0..=1 (how rarely a base model is right), `family` (what kind of
//! question, for reports) and `evidence` (`[{"start": 3, "end": 9}]` in seconds). Everything is checked before the first
//! sample is handed out: training does not stop at a bad line hours later.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use crate::checkpoint::{parent, write_file};
use crate::text::{Question, labels, one_line};
use crate::{Error, Result};

/// A multiple-choice question about a video file.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Unique in its file.
    pub id: String,
    /// A video file, or a folder of images; it exists.
    pub video: PathBuf,
    /// The question with two options or more.
    pub question: Question,
    /// Index of the right option.
    pub answer: usize,
    /// From 0, always answered right, to 1, never; one minus the pass rate of a base model.
    pub difficulty: Option<f32>,
    /// What kind of question it is.
    pub family: Option<String>,
    /// Seconds in which the answer is seen; empty when not known.
    pub evidence: Vec<Range<usize>>,
}

/// The samples of a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Samples {
    /// In the order of the file; at least one.
    pub samples: Vec<Sample>,
    /// What was not understood and left out, as sentences: names of unknown fields.
    pub warnings: Vec<String>,
}

#[derive(Deserialize)]
struct Line {
    id: Option<String>,
    video: PathBuf,
    question: String,
    options: Vec<String>,
    answer: Value,
    difficulty: Option<f32>,
    family: Option<String>,
    #[serde(default)]
    evidence: Vec<Range<usize>>,
    #[serde(flatten)]
    unknown: BTreeMap<String, Value>,
}

/// Reads a JSONL file; empty lines are skipped.
///
/// # Errors
/// [`Error::Io`] for a file that cannot be read; [`Error::Input`] with file and line for a line that is not a JSON object of
/// the form above, a question or options that [`Question::new`] refuses, an answer that is none of the options or could be
/// two, a difficulty outside 0 to 1, evidence that ends before it starts, a video that does not exist, an `id` that is there
/// twice; and for a file without a sample.
pub fn read(path: impl AsRef<Path>) -> Result<Samples> {
    let path = path.as_ref();
    let bytes = std::fs::read(path).map_err(|error| Error::io(path, error))?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let (mut samples, mut unknown) = (vec![], BTreeSet::new());
    let mut lines_by_id: BTreeMap<String, usize> = BTreeMap::new();
    for (line, bytes) in bytes.split(|&byte| byte == b'\n').enumerate() {
        let number = line + 1;
        let at = |cause: String| Error::Input(format!("{}:{number}: {cause}", path.display()));
        // Some editors begin a file with a byte order mark.
        let bytes = if line == 0 { bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes) } else { bytes };
        if bytes.trim_ascii().is_empty() {
            continue;
        }
        let parsed: Line = serde_json::from_slice(bytes).map_err(|error| at(explain(&error)))?;
        unknown.extend(parsed.unknown.keys().cloned());
        let id = parsed.id.clone().unwrap_or_else(|| format!("{stem}-{number:06}"));
        let sample = check(parsed, id, folder).map_err(at)?;
        if let Some(first) = lines_by_id.insert(sample.id.clone(), number) {
            return Err(at(format!("the id {:?} is that of line {first} as well", sample.id)));
        }
        samples.push(sample);
    }
    if samples.is_empty() {
        return Err(Error::Input(format!(
            "{}: expected a JSON object per line, got a file without any",
            path.display()
        )));
    }
    let mut warnings = vec![];
    if !unknown.is_empty() {
        let names: Vec<&str> = unknown.iter().map(String::as_str).collect();
        let cause = format!("{}: fields without a meaning here: {}", path.display(), names.join(", "));
        tracing::warn!("{cause}");
        warnings.push(cause);
    }
    Ok(Samples { samples, warnings })
}

/// serde_json's message without its line, which is always 1 here.
fn explain(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let text = text.split(" at line ").next().unwrap_or_default();
    let column = if error.column() > 0 { format!(" (column {})", error.column()) } else { String::new() };
    format!("expected a JSON object with video, question, options and answer: {text}{column}")
}

fn check(line: Line, id: String, folder: &Path) -> std::result::Result<Sample, String> {
    let question = Question::new(line.question, line.options).map_err(|error| error.to_string())?;
    if question.is_open() {
        return Err("options: expected at least 2, got none; a reward needs options".into());
    }
    let answer = answer(&line.answer, question.options())?;
    if let Some(difficulty) = line.difficulty.filter(|difficulty| !(0. ..=1.).contains(difficulty)) {
        return Err(format!("difficulty: expected 0 to 1, got {difficulty}"));
    }
    if let Some(range) = line.evidence.iter().find(|range| range.is_empty()) {
        return Err(format!(
            "evidence: expected an end after the start, got {} to {}",
            range.start, range.end
        ));
    }
    if id.is_empty() || line.video.as_os_str().is_empty() {
        return Err(format!("{} is empty", if id.is_empty() { "id" } else { "video" }));
    }
    let video = folder.join(line.video);
    if !video.exists() {
        return Err(format!("video: {} does not exist", video.display()));
    }
    let (difficulty, family, evidence) = (line.difficulty, line.family, line.evidence);
    Ok(Sample { id, video, question, answer, difficulty, family, evidence })
}

/// The option that `answer` means: exactly one, whether read as text, as a letter or as both.
fn answer(answer: &Value, options: &[String]) -> std::result::Result<usize, String> {
    let listed = || labels::listed(options).join(", ");
    let text = match answer {
        Value::Number(number) => {
            let index = number.as_u64().and_then(|index| usize::try_from(index).ok());
            return index.filter(|&index| index < options.len()).ok_or_else(|| {
                format!("answer: expected an index from 0 to {}, got {number}", options.len() - 1)
            });
        }
        Value::String(text) => normal(text),
        other => return Err(format!("answer: expected a letter, a text or an index, got {other}")),
    };
    let means = |(at, option): (usize, &String)| {
        let (letter, option) = (labels::letter(at).to_lowercase().to_string(), normal(option));
        let labels =
            [format!("{letter}."), format!("{letter})"), format!("({letter})"), format!("{letter}:")];
        let labelled = labels.iter().any(|label| {
            text.strip_prefix(label.as_str()).is_some_and(|rest| rest.is_empty() || rest.trim() == option)
        });
        (labelled || text == option || text == letter).then_some(at)
    };
    let found: Vec<usize> = options.iter().enumerate().filter_map(means).collect();
    match found[..] {
        [at] => Ok(at),
        [] => Err(format!("answer: {answer} is none of the options {}", listed())),
        _ => Err(format!("answer: {answer} could be several of the options {}; give an index", listed())),
    }
}

fn normal(text: &str) -> String {
    one_line(text).to_lowercase()
}

/// Writes the lines of `source` whose id is in `difficulty` to `out`, with the difficulty given there, and returns how many they
/// are. Every other field stays as it is, those without a meaning here too; ids are written out, and in another folder than
/// `source`'s videos with their full path, so that a line still means the same. `out` may be `source`: there is the whole new
/// file, or what was there before.
///
/// # Errors
/// As [`read`] for a line that is none; a difficulty outside 0 to 1; no line that is left; [`Error::Io`] when `out` cannot be
/// written.
pub fn write_difficulty(
    source: impl AsRef<Path>,
    out: impl AsRef<Path>,
    difficulty: &BTreeMap<String, f32>,
) -> Result<usize> {
    let (source, out) = (source.as_ref(), out.as_ref());
    if let Some((id, bad)) = difficulty.iter().find(|(_, value)| !(0. ..=1.).contains(*value)) {
        return Err(Error::Input(format!("difficulty of {id}: expected 0 to 1, got {bad}")));
    }
    let samples = read(source)?.samples;
    let bytes = std::fs::read(source).map_err(|error| Error::io(source, error))?;
    let lines = bytes.split(|&byte| byte == b'\n').enumerate().map(|(number, line)| match number {
        0 => line.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(line),
        _ => line,
    });
    let lines = lines.filter(|line| !line.trim_ascii().is_empty());
    let moved = folder(source)? != folder(out)?;
    let (mut text, mut written) = (vec![], 0);
    for (line, sample) in lines.zip(&samples) {
        let Some(difficulty) = difficulty.get(&sample.id) else { continue };
        let mut fields: serde_json::Map<String, Value> = serde_json::from_slice(line)
            .map_err(|error| Error::Input(format!("{}: {}", source.display(), explain(&error))))?;
        fields.insert("id".to_owned(), sample.id.as_str().into());
        if moved {
            let video = std::path::absolute(&sample.video).map_err(|e| Error::io(&sample.video, e))?;
            fields.insert("video".to_owned(), video.to_string_lossy().as_ref().into());
        }
        fields.insert("difficulty".to_owned(), (*difficulty).into());
        text.extend(Value::Object(fields).to_string().into_bytes());
        text.push(b'\n');
        written += 1;
    }
    if written == 0 {
        return Err(Error::Input(format!(
            "{}: no line is left to write to {}",
            source.display(),
            out.display()
        )));
    }
    write_file(out, &text)?;
    Ok(written)
}

/// The folder of a file, by its one true name.
fn folder(file: &Path) -> Result<PathBuf> {
    let folder = parent(file);
    folder.canonicalize().map_err(|error| Error::io(folder, error))
}
