//! `config.json` of a CLIP checkpoint, read as transformers 4.51.3 (`configuration_clip.py`) reads it.

use candle_core::Tensor;
use serde::Deserialize;

use crate::nn::{gelu_erf, quick_gelu};

/// Both towers and the width they are projected to.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(from = "File")]
pub struct Config {
    /// The image tower.
    pub vision_config: VisionConfig,
    /// The text tower.
    pub text_config: TextConfig,
    /// D, the common width of image and text features.
    pub projection_dim: usize,
}

/// The file itself. `*_config_dict`, where present, replaces `*_config` as a whole: what it leaves out gets the class
/// default, not the value of `*_config`.
#[derive(Deserialize)]
#[serde(default)]
struct File {
    vision_config: Option<VisionConfig>,
    vision_config_dict: Option<VisionConfig>,
    text_config: Option<TextConfig>,
    text_config_dict: Option<TextConfig>,
    projection_dim: usize,
}

impl Default for File {
    fn default() -> Self {
        Self {
            vision_config: None,
            vision_config_dict: None,
            text_config: None,
            text_config_dict: None,
            projection_dim: 512,
        }
    }
}

impl From<File> for Config {
    fn from(file: File) -> Self {
        Self {
            vision_config: file.vision_config_dict.or(file.vision_config).unwrap_or_default(),
            text_config: file.text_config_dict.or(file.text_config).unwrap_or_default(),
            projection_dim: file.projection_dim,
        }
    }
}

/// The image tower; missing keys get the class defaults (ViT-B/32).
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
#[allow(missing_docs)] // the keys of config.json under their own names
pub struct VisionConfig {
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_channels: usize,
    pub image_size: usize,
    pub patch_size: usize,
    pub hidden_act: Activation,
    pub layer_norm_eps: f64,
}

impl Default for VisionConfig {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            num_channels: 3,
            image_size: 224,
            patch_size: 32,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
        }
    }
}

/// The text tower; missing keys get the class defaults (ViT-B/32).
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
#[allow(missing_docs)] // the keys of config.json under their own names
pub struct TextConfig {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub max_position_embeddings: usize,
    pub hidden_act: Activation,
    pub layer_norm_eps: f64,
    /// The end-of-text token; 2 marks the files written before transformers #24773, see [`TextConfig::pooled`].
    pub eos_token_id: u32,
}

impl Default for TextConfig {
    fn default() -> Self {
        Self {
            vocab_size: 49408,
            hidden_size: 512,
            intermediate_size: 2048,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 77,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
            eos_token_id: 49407,
        }
    }
}

impl TextConfig {
    /// Position whose hidden state stands for the text: the first end-of-text token. With the legacy id 2 the
    /// end-of-text token is the largest id of the row. `None` when the row holds none.
    pub fn pooled(&self, ids: &[u32]) -> Option<usize> {
        let eos = if self.eos_token_id == 2 { *ids.iter().max()? } else { self.eos_token_id };
        ids.iter().position(|id| *id == eos)
    }
}

/// `hidden_act`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x * sigmoid(1.702 x)`.
    QuickGelu,
    /// The exact GELU.
    Gelu,
}

impl Activation {
    pub(super) fn apply(self, xs: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            Self::QuickGelu => quick_gelu(xs),
            Self::Gelu => gelu_erf(xs),
        }
    }
}

/// What the encoders of both towers share.
#[derive(Debug, Clone, Copy)]
pub(super) struct EncoderConfig {
    pub hidden: usize,
    pub intermediate: usize,
    pub layers: usize,
    pub heads: usize,
    pub activation: Activation,
    pub eps: f64,
}

impl From<&VisionConfig> for EncoderConfig {
    fn from(c: &VisionConfig) -> Self {
        Self {
            hidden: c.hidden_size,
            intermediate: c.intermediate_size,
            layers: c.num_hidden_layers,
            heads: c.num_attention_heads,
            activation: c.hidden_act,
            eps: c.layer_norm_eps,
        }
    }
}

impl From<&TextConfig> for EncoderConfig {
    fn from(c: &TextConfig) -> Self {
        Self {
            hidden: c.hidden_size,
            intermediate: c.intermediate_size,
            layers: c.num_hidden_layers,
            heads: c.num_attention_heads,
            activation: c.hidden_act,
            eps: c.layer_norm_eps,
        }
    }
}

impl Config {
    /// Whether the sizes fit each other.
    ///
    /// # Errors
    /// The first contradiction, with the keys and values concerned.
    pub fn check(&self) -> std::result::Result<(), String> {
        let (vision, text) = (&self.vision_config, &self.text_config);
        check_encoder("vision_config", EncoderConfig::from(vision))?;
        check_encoder("text_config", EncoderConfig::from(text))?;
        let sizes = [
            ("vision_config.image_size", vision.image_size),
            ("vision_config.patch_size", vision.patch_size),
            ("text_config.vocab_size", text.vocab_size),
            ("text_config.max_position_embeddings", text.max_position_embeddings),
            ("projection_dim", self.projection_dim),
        ];
        if let Some((key, _)) = sizes.iter().find(|(_, size)| *size == 0) {
            return Err(format!("config.json: {key} is 0, expected at least 1"));
        }
        if !vision.image_size.is_multiple_of(vision.patch_size) {
            return Err(format!(
                "config.json: vision_config.image_size {} is not a multiple of patch_size {}",
                vision.image_size, vision.patch_size
            ));
        }
        if vision.num_channels != 3 {
            return Err(format!(
                "config.json: vision_config.num_channels is {}, expected 3 (RGB)",
                vision.num_channels
            ));
        }
        Ok(())
    }
}

fn check_encoder(tower: &str, c: EncoderConfig) -> std::result::Result<(), String> {
    let sizes = [
        ("hidden_size", c.hidden),
        ("intermediate_size", c.intermediate),
        ("num_hidden_layers", c.layers),
        ("num_attention_heads", c.heads),
    ];
    if let Some((key, _)) = sizes.iter().find(|(_, size)| *size == 0) {
        return Err(format!("config.json: {tower}.{key} is 0, expected at least 1"));
    }
    if !c.hidden.is_multiple_of(c.heads) {
        return Err(format!(
            "config.json: {tower}.hidden_size {} is not a multiple of num_attention_heads {}",
            c.hidden, c.heads
        ));
    }
    if !(c.eps > 0.0 && c.eps.is_finite()) {
        return Err(format!("config.json: {tower}.layer_norm_eps is {}, expected a positive number", c.eps));
    }
    Ok(())
}
