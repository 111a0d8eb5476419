//! The record of an estimation of pass rates: one line per question as it is done, so that it can be gone on with.
//!
//! ```json
//! {"settings":{...}}
//! {"of":"5f0c9e...","id":"q-17","pass_rate":0.375,"blind":0.25}
//! ```
//! `of` is the hash of the question with its options, answer and video: a question that was changed is asked again.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::difficulty::Rated;
use super::trajectory::Task;
use crate::checkpoint::write_file;
use crate::error::{Error, Result};

/// A record that this program writes to.
#[derive(Debug)]
pub struct Record {
    path: PathBuf,
    file: File,
    /// By the question's hash.
    known: BTreeMap<String, Rated>,
    /// Lines that could not be read and were dropped: the last one of a program that was killed.
    pub dropped: usize,
}

#[derive(Serialize, Deserialize)]
struct Line {
    of: String,
    #[serde(flatten)]
    rated: Rated,
}

impl Record {
    /// The record at `path`, made if there is none. `settings` are everything besides the question that a rate depends on.
    ///
    /// # Errors
    /// [`Error::Input`] for a record of other settings or a file that is no record; [`Error::Io`] when it cannot be read or
    /// written.
    pub fn open(path: impl AsRef<Path>, settings: &Value) -> Result<Self> {
        let path = path.as_ref().to_owned();
        let header = format!("{}\n", json!({ "settings": settings }));
        let before = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => vec![],
            Err(error) => return Err(Error::io(&path, error)),
        };
        let (mut known, mut whole, mut dropped) = (BTreeMap::new(), header.clone().into_bytes(), 0);
        if !before.is_empty() {
            let (first, rest) = match before.iter().position(|&byte| byte == b'\n') {
                Some(end) => before.split_at(end + 1),
                None => (before.as_slice(), &[][..]),
            };
            if first != header.as_bytes() {
                return Err(other(&path, first, &header));
            }
            for text in rest.split_inclusive(|&byte| byte == b'\n') {
                match serde_json::from_slice::<Line>(text) {
                    Ok(Line { of, rated }) if text.ends_with(b"\n") => {
                        known.insert(of, rated);
                        whole.extend(text);
                    }
                    _ => dropped += 1,
                }
            }
        }
        if whole != before {
            write_file(&path, &whole)?;
        }
        let file = OpenOptions::new().append(true).open(&path).map_err(|error| Error::io(&path, error))?;
        Ok(Self { path, file, known, dropped })
    }

    /// What is known of a question.
    pub fn get(&self, task: &Task) -> Option<&Rated> {
        self.known.get(&hash(task)).filter(|rated| rated.id == *task.id)
    }

    /// Questions that are known.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Whether nothing is known yet.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// Adds a question, to the file first.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn add(&mut self, task: &Task, rated: Rated) -> Result<()> {
        let line = Line { of: hash(task), rated };
        let text = serde_json::to_string(&line).map_err(|error| Error::Input(format!("record: {error}")))?;
        let written = self.file.write_all(format!("{text}\n").as_bytes());
        written.and_then(|()| self.file.sync_data()).map_err(|error| Error::io(&self.path, error))?;
        self.known.insert(line.of, line.rated);
        Ok(())
    }

    /// Removes the file: everything in it is written where it belongs.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn remove(self) -> Result<()> {
        std::fs::remove_file(&self.path).map_err(|error| Error::io(&self.path, error))
    }
}

fn other(path: &Path, first: &[u8], expected: &str) -> Error {
    let got = String::from_utf8_lossy(&first[..first.len().min(2000)]);
    Error::Input(format!(
        "{}: not a record of this estimation: expected {}, got {}; remove it to begin anew",
        path.display(),
        expected.trim(),
        got.trim()
    ))
}

fn hash(task: &Task) -> String {
    let parts =
        json!([&*task.id, &*task.footage.id, task.question.text(), task.question.options(), task.answer]);
    let digest = Sha256::digest(parts.to_string());
    digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}
