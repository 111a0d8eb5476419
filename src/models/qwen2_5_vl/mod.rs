//! Qwen2.5-VL: the multimodal language model that asks and answers.
//!
//! Follows transformers 4.51.3 (`models/qwen2_5_vl`): old and new tensor prefixes, both position rules. Sequences are
//! packed, never padded.

pub mod adapter;
pub mod chat;
pub mod config;
pub mod generate;
pub mod mrope;
pub mod packed;
pub mod processor;
pub mod sampling;
pub mod text;
pub mod vision;
pub mod window;

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;

use crate::checkpoint::Checkpoint;
use crate::checkpoint::peft::names::legacy;
use crate::error::{Error, Result};
use config::Config;
use mrope::{Media, PositionRule, Positions, positions};
use text::{Context, TextModel};
use vision::VisionTower;

use crate::ops::attention::Segments;

/// Vision tower and text model. Clones share their weights.
#[derive(Clone)]
pub struct Qwen2_5Vl {
    /// The checkpoint's configuration.
    pub config: Config,
    /// How positions continue after an image or a video.
    pub position_rule: PositionRule,
    vision: VisionTower,
    text: TextModel,
}

/// A tokenised prompt: ids with one placeholder per visual token, the media behind them, and their features.
#[derive(Debug, Clone)]
pub struct Prompt {
    /// Token ids.
    pub input_ids: Vec<u32>,
    /// Images and videos in the order of their placeholders.
    pub media: Vec<Media>,
    /// Features (n, hidden) of each of `media`.
    pub features: Vec<Tensor>,
}

impl Prompt {
    /// A prompt without images or videos.
    pub fn text(input_ids: Vec<u32>) -> Self {
        Self { input_ids, media: vec![], features: vec![] }
    }
}

impl Qwen2_5Vl {
    /// Reads a folder in Hugging Face layout.
    ///
    /// # Errors
    /// Names the file and the tensor: missing, of another shape, not finite, or not part of the model.
    pub fn load(dir: impl AsRef<Path>, dtype: DType, device: &Device) -> Result<Self> {
        let dir = dir.as_ref();
        let config = Config::load(dir)?;
        let weights = Self::weights(dir)?;
        let model =
            Self::new(&config, weights.var_builder(dtype, device)).map_err(|e| Error::checkpoint(dir, e))?;
        weights.finish(&[])?;
        Ok(model)
    }

    /// The weights of a folder under the names that [`Self::new`] asks for, whichever version of transformers wrote them,
    /// and without the copy of the embeddings that some exporters put into a tied checkpoint.
    ///
    /// # Errors
    /// As [`Config::load`] and [`Checkpoint::open`].
    pub fn weights(dir: impl AsRef<Path>) -> Result<Checkpoint> {
        let tied = Config::load(dir.as_ref())?.text.tie_word_embeddings;
        Checkpoint::open_renamed(dir, |name| {
            (!tied || !name.ends_with("lm_head.weight")).then(|| legacy(name))
        })
    }

    /// Builds the model from tensors under their published names.
    ///
    /// # Errors
    /// A tensor that is missing or has another shape.
    pub fn new(config: &Config, vb: VarBuilder) -> candle_core::Result<Self> {
        Ok(Self {
            config: config.clone(),
            position_rule: PositionRule::default(),
            vision: VisionTower::new(&config.vision, vb.pp("visual"))?,
            text: TextModel::new(&config.text, vb)?,
        })
    }

    /// The same model on the same storage, outside any graph: it costs no memory, records nothing and sees every step of
    /// the optimizer.
    pub fn detached(&self) -> Self {
        Self {
            config: self.config.clone(),
            position_rule: self.position_rule,
            vision: self.vision.detached(),
            text: self.text.detached(),
        }
    }

    /// Patch rows (N, patch width) of grids `[t, h, w]` -> features (N / merge^2, hidden).
    ///
    /// # Errors
    /// Rows that do not fit the grids.
    pub fn vision(&self, pixels: &Tensor, grids: &[[usize; 3]]) -> candle_core::Result<Tensor> {
        self.vision.forward(pixels, grids)
    }

    /// What the vision tower knows of each patch before patches are merged: (N, vision hidden), with the row and column
    /// of each.
    ///
    /// # Errors
    /// As [`Self::vision`].
    pub fn patch_states(
        &self,
        pixels: &Tensor,
        grids: &[[usize; 3]],
    ) -> candle_core::Result<(Tensor, Vec<[usize; 2]>)> {
        self.vision.patch_states(pixels, grids)
    }

    /// The text model.
    pub fn text(&self) -> &TextModel {
        &self.text
    }

    /// Position ids (t, h, w) of a prompt.
    ///
    /// # Errors
    /// Placeholders that do not fit the media.
    pub fn positions(&self, prompt: &Prompt) -> Result<Positions> {
        positions(&prompt.input_ids, &prompt.media, &self.config, self.position_rule)
    }

    /// Embeddings (L, hidden) of a prompt, features in the place of the placeholders.
    ///
    /// # Errors
    /// Placeholders and feature rows that do not match in number.
    pub fn embed(&self, prompt: &Prompt) -> candle_core::Result<Tensor> {
        self.embed_tokens(&prompt.input_ids, &prompt.features)
    }

    /// Logits (L, V) of every token of a prompt, in f32; differentiable.
    ///
    /// # Errors
    /// As [`Self::positions`] and [`Self::embed`].
    pub fn forward(&self, prompt: &Prompt) -> Result<Tensor> {
        let positions = self.positions(prompt)?;
        let segments = Segments::new(&[prompt.input_ids.len()]);
        let hidden = self.text.hidden(&self.embed(prompt)?, &positions.ids, Context::Packed(&segments))?;
        Ok(self.text.logits(&hidden)?)
    }
}
