//! What comes back: the answer, the frames it rests on, and what each step cost.

use std::ops::ControlFlow;
use std::time::Instant;

use image::RgbImage;
use serde::{Deserialize, Serialize};

use crate::models::language::Reply;
use crate::select::Selection;
use crate::text::{Answer, Queries};

/// A step of the flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// Decoding candidates, CLIP features, previews.
    Watch,
    /// The query turn.
    Ask,
    /// Text features and the similarity matrix.
    Compare,
    /// Weights and draw.
    Sample,
    /// Key frames at the model's sizes.
    Fetch,
    /// The answer turn.
    Answer,
}

impl Step {
    /// As it is written in tables and files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Watch => "watch",
            Self::Ask => "ask",
            Self::Compare => "compare",
            Self::Sample => "sample",
            Self::Fetch => "fetch",
            Self::Answer => "answer",
        }
    }
}

/// What a step took.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepReport {
    /// Which step.
    pub step: Step,
    /// Wall-clock time.
    pub seconds: f64,
    /// Prompt tokens, in the two turns of the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_tokens: Option<usize>,
    /// Visual tokens among them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub visual_tokens: Option<usize>,
    /// Generated tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_tokens: Option<usize>,
}

impl StepReport {
    pub(crate) fn new(step: Step, seconds: f64) -> Self {
        Self { step, seconds, prompt_tokens: None, visual_tokens: None, new_tokens: None }
    }

    /// With the tokens of a turn: prompt, visual ones among them, new.
    pub(crate) fn with_tokens(self, [prompt, visual, new]: [usize; 3]) -> Self {
        Self { prompt_tokens: Some(prompt), visual_tokens: Some(visual), new_tokens: Some(new), ..self }
    }

    pub(super) fn of(step: Step, start: Instant) -> Self {
        Self::new(step, start.elapsed().as_secs_f64())
    }

    pub(super) fn of_reply(step: Step, start: Instant, reply: &Reply) -> Self {
        Self::of(step, start).with_tokens([reply.prompt_tokens, reply.visual_tokens, reply.new_tokens])
    }
}

/// News from a running answer.
#[derive(Debug, Clone, Copy)]
pub enum Event<'a> {
    /// `done` of `total` frames of a step.
    Progress {
        /// Which step.
        step: Step,
        /// Frames done; key frames of several sizes are fetched size by size, each from 0.
        done: usize,
        /// Frames in all.
        total: usize,
    },
    /// Text that the model has just written.
    Text {
        /// Which turn.
        step: Step,
        /// The next piece.
        piece: &'a str,
    },
}

/// Receives events; `Break` ends the call.
pub type Observer<'a> = &'a mut dyn FnMut(Event) -> ControlFlow<()>;

/// A chosen frame.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct KeyFrame {
    /// Number among the candidates.
    pub index: usize,
    /// Presentation time, counted from the first displayed frame.
    pub seconds: f64,
    /// Its weight in the distribution over candidates.
    pub weight: f32,
    /// Its side length as a part of a full key frame's; below 1 only with [`crate::select::Resolution::Adaptive`].
    pub scale: f32,
}

/// The result of [`super::Pipeline::answer`].
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// The answer; `None` when only frames were chosen.
    pub answer: Option<Answer>,
    /// The answer turn as it came.
    pub reply: Option<Reply>,
    /// The visual queries; `None` for strategies that read none (`uniform`, `maxinfo`).
    pub queries: Option<Queries>,
    /// The query turn as it came; `None` where the model was not asked.
    pub query_reply: Option<Reply>,
    /// The key frames, ascending.
    pub key_frames: Vec<KeyFrame>,
    /// The key frames' pixels, at the model's sizes.
    #[serde(skip)]
    pub images: Vec<RgbImage>,
    /// Presentation time of every candidate (T).
    #[serde(skip)]
    pub candidates: Vec<f64>,
    /// Cosine similarity of queries and candidates (Q, T); empty for strategies that read no queries.
    #[serde(skip)]
    pub similarity: Vec<Vec<f32>>,
    /// Distribution over the candidates (T).
    #[serde(skip)]
    pub weights: Vec<f32>,
    /// Log-probability of the draw, where it was random.
    pub log_prob: Option<f64>,
    /// Whether the CLIP features came from the cache.
    pub features_cached: bool,
    /// Length of the video in seconds.
    pub duration: f64,
    /// What each step took.
    pub steps: Vec<StepReport>,
    /// What the user should know although it was no error.
    pub warnings: Vec<String>,
}

pub(super) fn key_frames(selection: &Selection, seconds: &[f64]) -> Vec<KeyFrame> {
    let weight = |index: usize| selection.weights.get(index).copied().unwrap_or_default();
    let scale = |at: usize| selection.scales.get(at).copied().unwrap_or(1.0);
    (selection.frames.iter().enumerate())
        .map(|(at, &index)| KeyFrame {
            index,
            seconds: seconds[index],
            weight: weight(index),
            scale: scale(at),
        })
        .collect()
}
