//! What the pipeline needs of a multimodal language model. The crate's one trait of its own, so that the flow can be
//! tested with a scripted stand-in.

use std::ops::ControlFlow;

use image::RgbImage;
use serde::Serialize;

use super::qwen2_5_vl::generate::Finish;
use super::qwen2_5_vl::mrope::Timing;
use super::qwen2_5_vl::processor::{Budget, Size};
use super::qwen2_5_vl::sampling::Sampling;
use crate::error::Result;
use crate::text::Dialogue;

/// Frames that are shown to the model together.
#[derive(Debug, Clone)]
pub enum Show<'a> {
    /// Independent images.
    Images(&'a [RgbImage]),
    /// Frames of one video or clip, in order of time.
    Video {
        /// The frames, all of one size.
        frames: &'a [RgbImage],
        /// When they are shown.
        timing: Timing,
    },
}

/// One turn: frames and a text, to be answered without memory of earlier turns.
#[derive(Debug, Clone)]
pub struct Turn<'a> {
    /// What is seen before the text, in order.
    pub show: Vec<Show<'a>>,
    /// What is said.
    pub text: &'a str,
    /// Most tokens of the reply.
    pub max_new_tokens: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
}

/// The model's reply to a turn, and what it cost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reply {
    /// The text, without special tokens.
    pub text: String,
    /// Tokens of the prompt, the visual ones included.
    pub prompt_tokens: usize,
    /// Visual tokens of the prompt.
    pub visual_tokens: usize,
    /// Generated tokens.
    pub new_tokens: usize,
    /// Why the reply ended.
    pub finish: Finish,
}

/// Called with each piece of text as it is generated; `Break` ends the turn with [`crate::Error::Interrupted`].
pub type OnText<'a> = &'a mut dyn FnMut(&str) -> ControlFlow<()>;

/// A multimodal language model that looks at frames and answers in text.
pub trait VideoLanguageModel: Send {
    /// The size to bring frames of `width` x `height` pixels to before they are shown.
    ///
    /// # Errors
    /// A frame or budget for which there is none.
    fn plan(&self, width: u32, height: u32, budget: &Budget) -> Result<Size>;

    /// The sampling that the checkpoint recommends, made deterministic.
    fn sampling(&self) -> Sampling;

    /// How the model is spoken to.
    fn dialogue(&self) -> Dialogue {
        Dialogue::Instructed
    }

    /// Answers one turn. Every frame has a planned size.
    ///
    /// # Errors
    /// A prompt longer than the context, frames of a wrong size, an interruption.
    fn reply(&self, turn: &Turn, on_text: OnText) -> Result<Reply>;
}
