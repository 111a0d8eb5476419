//! What a caller may choose about one question.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::models::qwen2_5_vl::sampling::Sampling;
use crate::select::{Draw, Focus, Resolution, Scores, Settings, Strategy};

/// Where the visual queries come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QuerySource {
    /// The model writes them after looking at previews.
    Model,
    /// The question itself is the query (the paper's ablation); the model is asked once only.
    Question,
    /// The caller's own queries.
    Given(Vec<String>),
}

/// How the key frames are given to the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ShowKeyFrames {
    /// As one video: two frames share a temporal slice, which halves the tokens.
    Video,
    /// As separate images: twice the tokens, but a frame's features do not depend on its neighbour.
    Images,
}

/// Which times the model is told for key frames shown as a video.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FrameTiming {
    /// One interval, as the reference implementation knows it.
    Uniform,
    /// Each slice's own time; a departure from the reference.
    Exact,
}

/// Settings of one answer. The defaults are the paper's where it gives a value.
#[derive(Debug, Clone)]
pub struct Options {
    /// How key frames are chosen.
    pub strategy: Strategy,
    /// K, the number of key frames.
    pub key_frames: usize,
    /// Candidate frames per second of video.
    pub fps: f64,
    /// How `msjoe` and `tspo` take frames from the distribution; a seed here is that of `q-frame` and `focus` too.
    pub draw: Draw,
    /// Settings of the other strategies. With [`Resolution::Adaptive`] the frames of one size, or clip, are shown together, and
    /// those of a video at their own times.
    pub selection: Settings,
    /// Where the queries come from.
    pub queries: QuerySource,
    /// Most visual queries.
    pub max_queries: usize,
    /// Previews shown with the query prompt; `None` for K / 2.
    pub previews: Option<usize>,
    /// Most visual tokens of one preview.
    pub preview_tokens: usize,
    /// Most visual tokens of all key frames together.
    pub key_frame_tokens: usize,
    /// How the key frames are given to the model.
    pub show: ShowKeyFrames,
    /// Which times the model is told.
    pub timing: FrameTiming,
    /// Most tokens of the query turn.
    pub query_tokens: usize,
    /// Most tokens of the answer turn.
    pub answer_tokens: usize,
    /// How tokens are chosen; `None` for greedy with the checkpoint's repetition penalty.
    pub sampling: Option<Sampling>,
    /// Decoding threads; 0 for one per core.
    pub threads: usize,
    /// Bytes of candidate frames to keep at the model's size so that key frames need no second decoding; beyond it
    /// they are decoded again by seeking.
    pub frame_memory: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            strategy: Strategy::Msjoe,
            key_frames: 32,
            fps: 1.0,
            draw: Draw::Spread,
            selection: Settings::default(),
            queries: QuerySource::Model,
            max_queries: 4,
            previews: None,
            preview_tokens: 32,
            key_frame_tokens: 8192,
            show: ShowKeyFrames::Video,
            timing: FrameTiming::Uniform,
            query_tokens: 512,
            answer_tokens: 256,
            sampling: None,
            threads: 0,
            frame_memory: 1 << 30,
        }
    }
}

impl Options {
    /// Previews to show.
    pub(super) fn preview_count(&self) -> usize {
        match &self.queries {
            _ if !self.strategy.reads_queries() => 0,
            QuerySource::Question | QuerySource::Given(_) => 0,
            QuerySource::Model => self.previews.unwrap_or(self.key_frames / 2),
        }
    }

    /// What the selection goes by, before anything is known about the `frames` candidates.
    pub(super) fn scores(&self, frames: usize) -> Scores {
        let focus = Focus { fps: self.fps, ..self.selection.focus };
        let seed = if let Draw::Gumbel { seed } = self.draw { seed } else { 0 };
        Scores { frames, seed, settings: Settings { focus, ..self.selection }, ..Scores::default() }
    }

    /// Checks the ranges.
    ///
    /// # Errors
    /// Names the setting, what was expected and what came.
    pub fn validate(&self) -> Result<()> {
        let least_one = [
            ("key frames (K)", self.key_frames),
            ("queries", self.max_queries),
            ("tokens per preview", self.preview_tokens),
            ("tokens of the query turn", self.query_tokens),
            ("tokens of the answer turn", self.answer_tokens),
        ];
        if let Some((what, _)) = least_one.iter().find(|(_, value)| *value == 0) {
            return Err(Error::Input(format!("{what}: expected at least 1, got 0")));
        }
        if !(self.fps > 0.0 && self.fps.is_finite()) {
            return Err(Error::Input(format!("fps: expected a finite rate above 0, got {}", self.fps)));
        }
        if self.selection.resolution == Resolution::Adaptive
            && !matches!(self.strategy, Strategy::QFrame | Strategy::F2c)
        {
            return Err(Error::Input(format!(
                "selection: frames of several sizes are chosen by q-frame and f2c, expected full resolution for {}",
                self.strategy
            )));
        }
        self.sampling.as_ref().map_or(Ok(()), Sampling::validate)
    }
}
