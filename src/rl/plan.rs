//! The shape of a trajectory: where queries come from, how frames are chosen and shown, and how long turns may be.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
/// How key frames are shown.
pub use crate::pipeline::ShowKeyFrames as Shown;

/// Where the queries come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Asking {
    /// The model writes them.
    Model,
    /// The question is the query.
    Question,
}

/// How key frames are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Choosing {
    /// Drawn from the sampler's distribution.
    Draw,
    /// The sampler's K largest weights.
    Largest,
    /// Spread over the sampler's distribution, see [`crate::select::spread`]; where its draws keep apart, the most probable next
    /// frame again and again, see [`crate::select::take_apart`].
    Spread,
    /// The K frames most similar to any query.
    TopK,
    /// Evenly.
    Uniform,
    /// From where the evidence is known to be, evenly where it is the whole video: an upper bound, not a method.
    Evidence,
    /// No frame at all: what the question gives away by itself.
    Nothing,
}

impl Choosing {
    /// Whether frames are chosen by queries.
    pub fn by_queries(self) -> bool {
        matches!(self, Self::Draw | Self::Largest | Self::Spread | Self::TopK)
    }
}

/// Shape of a trajectory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Plan {
    /// K.
    pub key_frames: usize,
    /// Previews shown with the query turn; `None` for K / 2.
    pub previews: Option<usize>,
    /// Most visual tokens of a preview.
    pub preview_tokens: usize,
    /// Most visual tokens of all key frames together.
    pub key_frame_tokens: usize,
    /// How key frames are shown.
    pub show: Shown,
    /// Most queries.
    pub max_queries: usize,
    /// Most tokens of the query turn.
    pub query_tokens: usize,
    /// Most tokens of the answer turn.
    pub answer_tokens: usize,
    /// Where queries come from.
    pub asking: Asking,
    /// How key frames are chosen.
    pub choosing: Choosing,
    /// Sampling temperature of both turns; 0 is greedy.
    pub temperature: f32,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            key_frames: 8,
            previews: None,
            preview_tokens: 32,
            key_frame_tokens: 8192,
            show: Shown::Images,
            max_queries: 4,
            query_tokens: 256,
            answer_tokens: 64,
            asking: Asking::Model,
            choosing: Choosing::Draw,
            temperature: 1.0,
        }
    }
}

impl Plan {
    /// Previews of a trajectory.
    pub fn preview_count(&self) -> usize {
        match self.asking {
            Asking::Model if self.choosing.by_queries() => self.previews.unwrap_or(self.key_frames / 2),
            _ => 0,
        }
    }

    /// Checks the ranges.
    ///
    /// # Errors
    /// Names the setting, what was expected and what came.
    pub fn check(&self) -> Result<()> {
        let least_one = [
            ("key_frames", self.key_frames),
            ("max_queries", self.max_queries),
            ("preview_tokens", self.preview_tokens),
            ("query_tokens", self.query_tokens),
            ("answer_tokens", self.answer_tokens),
        ];
        if let Some((name, _)) = least_one.iter().find(|(_, value)| *value == 0) {
            return Err(Error::Input(format!("{name}: expected at least 1, got 0")));
        }
        let slices = if self.show == Shown::Images { self.key_frames } else { self.key_frames.div_ceil(2) };
        if self.key_frame_tokens < slices {
            return Err(Error::Input(format!(
                "key_frame_tokens: expected at least one for each of the {slices} temporal slices of {} key frames, got {}",
                self.key_frames, self.key_frame_tokens
            )));
        }
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return Err(Error::Input(format!("temperature: expected 0 or more, got {}", self.temperature)));
        }
        Ok(())
    }
}
