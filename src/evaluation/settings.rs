//! What an evaluation depends on besides methods and questions: kept in its folder, and refused when it changes.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::item::Item;
use crate::checkpoint::files;
use crate::error::{Error, Result};
use crate::pipeline::{FrameTiming, ShowKeyFrames};

/// How the answer is asked for and read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// In the checkpoint's own dialogue, read strictly: what models trained by this crate know.
    Dialogue,
    /// An option's letter and nothing else, read by the field's rule ([`crate::benchmarks::scoring::letter`]).
    Letter,
}

/// Everything that answers depend on besides the method, K, the seed and the question. A folder of predictions belongs to one
/// of these; methods, numbers of frames and questions may be added to it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Name of the benchmark, or `toy`.
    pub benchmark: String,
    /// Hash of all questions, options and answers.
    pub questions: String,
    /// Identity of the language model, see [`identity`].
    pub mllm: String,
    /// That of its adapter.
    pub adapter: Option<String>,
    /// That of CLIP.
    pub clip: Option<String>,
    /// Those of the samplers, in the order of `msjoe`'s seeds.
    pub samplers: Vec<String>,
    /// Those of the temporal agents, in the order of `tspo`'s seeds.
    #[serde(default)]
    pub agents: Vec<String>,
    /// Candidate frames per second of video.
    pub fps: f64,
    /// Frames shown with the query turn: the same for every K, so that a question is asked for queries once.
    pub previews: usize,
    /// Most visual tokens of a preview.
    pub preview_tokens: usize,
    /// Most visual tokens of all key frames together.
    pub key_frame_tokens: usize,
    /// Key frames as one video or as images.
    pub show: ShowKeyFrames,
    /// The times of a video's frames.
    pub timing: FrameTiming,
    /// Most queries.
    pub max_queries: usize,
    /// Most tokens of the query turn.
    pub query_tokens: usize,
    /// Most tokens of the answer.
    pub answer_tokens: usize,
    /// Penalty on repeated tokens; 1 is none.
    pub repetition_penalty: f32,
    /// How the answer is asked for and read.
    pub form: Form,
    /// Whether subtitles are shown.
    pub subtitles: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            benchmark: String::new(),
            questions: String::new(),
            mllm: String::new(),
            adapter: None,
            clip: None,
            samplers: vec![],
            agents: vec![],
            fps: 1.0,
            previews: 4,
            preview_tokens: 32,
            key_frame_tokens: 8192,
            show: ShowKeyFrames::Video,
            timing: FrameTiming::Uniform,
            max_queries: 4,
            query_tokens: 512,
            answer_tokens: 256,
            repetition_penalty: 1.0,
            form: Form::Dialogue,
            subtitles: false,
        }
    }
}

impl Settings {
    /// Checks the ranges.
    ///
    /// # Errors
    /// Names the setting, what was expected and what came.
    pub fn check(&self) -> Result<()> {
        let least_one = [
            ("max_queries", self.max_queries),
            ("preview_tokens", self.preview_tokens),
            ("key_frame_tokens", self.key_frame_tokens),
            ("query_tokens", self.query_tokens),
            ("answer_tokens", self.answer_tokens),
        ];
        if let Some((name, _)) = least_one.iter().find(|(_, value)| *value == 0) {
            return Err(Error::Input(format!("{name}: expected at least 1, got 0")));
        }
        if !(self.fps > 0.0 && self.fps.is_finite()) {
            return Err(Error::Input(format!("fps: expected a finite rate above 0, got {}", self.fps)));
        }
        Ok(())
    }

    /// These settings for a folder that has `known` ones: models that only one of the two needed belong to both.
    ///
    /// # Errors
    /// [`Error::Input`] with what is different, `name: the folder has this, now that`.
    pub fn joined(&self, known: &Self) -> Result<Self> {
        let (mut mine, mut theirs) = (self.clone(), known.clone());
        let clip = mine.clip.clone().or(theirs.clip.clone());
        (mine.clip, theirs.clip) = (mine.clip.or(clip.clone()), theirs.clip.or(clip));
        share(&mut mine.samplers, &mut theirs.samplers);
        share(&mut mine.agents, &mut theirs.agents);
        let differences = theirs.differences(&mine);
        if differences.is_empty() { Ok(mine) } else { Err(Error::Input(differences.join("; "))) }
    }

    fn differences(&self, other: &Self) -> Vec<String> {
        let fields = |settings: &Self| serde_json::to_value(settings).unwrap_or_default();
        let (mine, theirs) = (fields(self), fields(other));
        let names = mine.as_object().into_iter().flatten();
        names
            .filter(|(name, value)| theirs.get(name) != Some(value))
            .map(|(name, value)| {
                let now = theirs.get(name).cloned().unwrap_or_default();
                format!("{name}: the folder has {value}, now {now}")
            })
            .collect()
    }
}

/// Gives the longer list to both where the shorter one is its beginning.
fn share(a: &mut Vec<String>, b: &mut Vec<String>) {
    if a.iter().zip(b.iter()).all(|(a, b)| a == b) {
        let longer = if a.len() < b.len() { &*b } else { &*a }.clone();
        (*a, *b) = (longer.clone(), longer);
    }
}

/// A hash of the questions with their options and answers, in their order.
pub fn hash_of(items: &[Item]) -> String {
    let answers: Vec<String> = items.iter().map(|item| item.answer.to_string()).collect();
    let texts = items.iter().zip(&answers).flat_map(|(item, answer)| {
        let options = item.question.options().iter().map(String::as_str);
        [item.id.as_str(), item.question.text()].into_iter().chain(options).chain([answer.as_str()])
    });
    hash_of_texts(texts)
}

/// A hash of texts in their order.
pub(super) fn hash_of_texts<'a>(texts: impl IntoIterator<Item = &'a str>) -> String {
    let mut hash = Sha256::new();
    for text in texts {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    }
    short(hash)
}

/// Bytes at either end of a file that count for its identity.
const END: u64 = 1 << 20;

/// A short name for a model's file, or for the files of its folder: a hash over names, sizes and the first and last MiB of
/// each, so that large checkpoints need not be read in full.
///
/// # Errors
/// A file that cannot be read.
pub fn identity(path: &Path) -> Result<String> {
    let files = if path.is_dir() { files(path)? } else { vec![path.to_owned()] };
    let mut hash = Sha256::new();
    for file in files {
        // The name of a single file says nothing about what is in it.
        if path.is_dir() {
            hash.update(file.file_name().unwrap_or_default().as_encoded_bytes());
        }
        add_ends(&file, &mut hash).map_err(|error| Error::io(&file, error))?;
    }
    Ok(short(hash))
}

fn add_ends(path: &Path, hash: &mut Sha256) -> std::io::Result<()> {
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    hash.update(size.to_le_bytes());
    let mut ends = vec![];
    (&mut file).take(END).read_to_end(&mut ends)?;
    if size > END {
        file.seek(SeekFrom::Start(size.saturating_sub(END).max(END)))?;
        file.take(END).read_to_end(&mut ends)?;
    }
    hash.update(ends);
    Ok(())
}

fn short(hash: Sha256) -> String {
    format!("{:x}", hash.finalize())[..16].to_owned()
}
