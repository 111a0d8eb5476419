//! Answers on disk: one JSON line each, written as they come, and read again where an evaluation goes on.

use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::method::{Column, Source};
use super::settings::Settings;
use crate::checkpoint::{read_json, write_json};
use crate::error::{Error, Result};
use crate::pipeline::StepReport;
use crate::rl::run::held;

const SETTINGS: &str = "settings.json";
const PREDICTIONS: &str = "predictions.jsonl";

/// The answer to one question by one method with one number of frames and one seed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Prediction {
    /// The question.
    pub id: String,
    /// The method's name.
    pub method: String,
    /// Where its queries came from; `None` for methods that read none.
    pub queries_from: Option<Source>,
    /// K, as asked for.
    pub frames: usize,
    /// The seed.
    pub seed: u64,
    /// The option that the reply names.
    pub choice: Option<usize>,
    /// Whether that is right.
    pub right: bool,
    /// The reply.
    pub reply: String,
    /// What was looked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub queries: Vec<String>,
    /// The frames shown, by their place among the candidates.
    pub key_frames: Vec<usize>,
    /// When they are, in seconds.
    pub seconds: Vec<f64>,
    /// Share of the evidence that a frame lies in; `None` without evidence.
    pub evidence_recall: Option<f64>,
    /// What each step took. What questions or methods share is counted in full for each of them, and a batch is divided
    /// evenly among its questions.
    pub steps: Vec<StepReport>,
}

/// What tells answers apart: question, method, source, K, seed.
type Key = (String, String, Option<Source>, usize, u64);

impl Prediction {
    fn key(&self) -> Key {
        (self.id.clone(), self.method.clone(), self.queries_from, self.frames, self.seed)
    }

    /// Whether it is an answer of `column`.
    pub fn is_of(&self, column: Column) -> bool {
        let Column { method, frames, seed } = column;
        (self.frames, self.seed, self.queries_from) == (frames, seed, method.source)
            && self.method == method.choosing.name()
    }
}

/// The folder of an evaluation: `settings.json` and `predictions.jsonl`. Only one program writes to it at a time.
#[derive(Debug)]
pub struct Journal {
    folder: PathBuf,
    file: File,
    keys: HashSet<Key>,
    /// Every answer of the folder, in the order of the file.
    pub predictions: Vec<Prediction>,
    /// Lines that could not be read: a last one that was half written, which is cut off, and broken ones, which stay in the
    /// file. What they answered is answered again.
    pub dropped: usize,
}

impl Journal {
    /// Opens a folder, or makes a new one. A last line without its end, as a killed program leaves it, is cut off.
    ///
    /// # Errors
    /// [`Error::Io`] for files that cannot be read or written; [`Error::Input`] for a folder with other settings (with what
    /// differs), answers without settings, and a folder that another program is writing to.
    pub fn open(folder: impl AsRef<Path>, settings: &Settings) -> Result<Self> {
        settings.check()?;
        let folder = folder.as_ref().to_owned();
        std::fs::create_dir_all(&folder).map_err(|error| Error::io(&folder, error))?;
        let path = folder.join(PREDICTIONS);
        let there = path.exists();
        let opened = OpenOptions::new().create(true).read(true).append(true).open(&path);
        let file = opened.map_err(|error| Error::io(&path, error))?;
        if !held(&file).map_err(|error| Error::io(&path, error))? {
            let text = format!("{}: another program is writing to this evaluation", folder.display());
            return Err(Error::Input(text));
        }
        agree(&folder, settings, there)?;
        let mut journal = Self { folder, file, keys: HashSet::new(), predictions: vec![], dropped: 0 };
        journal.read(&path)?;
        Ok(journal)
    }

    fn read(&mut self, path: &Path) -> Result<()> {
        let bytes = std::fs::read(path).map_err(|error| Error::io(path, error))?;
        let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        if whole < bytes.len() {
            self.dropped += 1;
            let cut = self.file.set_len(whole as u64).and_then(|()| self.file.sync_all());
            cut.map_err(|error| Error::io(path, error))?;
        }
        for line in bytes[..whole].split(|&byte| byte == b'\n').filter(|line| !line.trim_ascii().is_empty()) {
            match serde_json::from_slice::<Prediction>(line) {
                Ok(prediction) => {
                    if self.keys.insert(prediction.key()) {
                        self.predictions.push(prediction);
                    }
                }
                Err(_) => self.dropped += 1,
            }
        }
        Ok(())
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether a question has been answered.
    pub fn has(&self, id: &str, column: Column) -> bool {
        let Column { method, frames, seed } = column;
        self.keys.contains(&(id.to_owned(), method.choosing.name(), method.source, frames, seed))
    }

    /// Writes the answers that are not there yet, all of them in one stroke. Gives their number.
    ///
    /// # Errors
    /// [`Error::Io`] for a file that cannot be written.
    pub fn add(&mut self, predictions: Vec<Prediction>) -> Result<usize> {
        let path = self.folder.join(PREDICTIONS);
        let mut lines = String::new();
        let mut new = vec![];
        for prediction in predictions {
            if self.keys.contains(&prediction.key()) {
                continue;
            }
            let line = serde_json::to_string(&prediction);
            lines += &line.map_err(|error| Error::Input(format!("prediction {}: {error}", prediction.id)))?;
            lines.push('\n');
            new.push(prediction);
        }
        let written = self.file.write_all(lines.as_bytes()).and_then(|()| self.file.sync_data());
        written.map_err(|error| Error::io(&path, error))?;
        let count = new.len();
        self.keys.extend(new.iter().map(Prediction::key));
        self.predictions.extend(new);
        Ok(count)
    }

    /// The answers of `column` by question.
    pub fn of(&self, column: Column) -> HashMap<&str, &Prediction> {
        let of_column = self.predictions.iter().filter(|prediction| prediction.is_of(column));
        of_column.map(|prediction| (prediction.id.as_str(), prediction)).collect()
    }
}

/// Refuses a folder that belongs to other settings; a new one gets these.
fn agree(folder: &Path, settings: &Settings, answers: bool) -> Result<()> {
    let path = folder.join(SETTINGS);
    if !path.exists() {
        let empty = std::fs::metadata(folder.join(PREDICTIONS)).is_ok_and(|data| data.len() == 0);
        if answers && !empty {
            return Err(Error::Input(format!(
                "{}: expected {SETTINGS} beside {PREDICTIONS}; take another folder, or move the answers away",
                folder.display()
            )));
        }
        return write_json(&path, settings);
    }
    let known: Settings = read_json(&path)?;
    let joined = settings.joined(&known).map_err(|error| {
        Error::Input(format!(
            "{}: belongs to an evaluation with other settings; take another folder or these settings. {error}",
            folder.display()
        ))
    })?;
    if joined == known { Ok(()) } else { write_json(&path, &joined) }
}
